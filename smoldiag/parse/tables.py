"""One text with tables of any kind -> Tables.

nccl-tests' own, tables with named columns, link tests, profiles, single figures: the first reader that
knows a line has it.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from smoldiag.facts.tables import BandwidthTable, Device, Measured, Pair, PairTable, Row, Tables
from smoldiag.knowledge import hardware
from smoldiag.parse import figures, link_tests, named_columns, nccl_tests, pair_tables, path_matrix, profiler

MAX_JSON_CHARS = 64 * 2**20
MAX_LINE = 2_000
MAX_DEPTH = 6  # of keys above a curve in JSON
MAX_CURVES = 1_000
MAX_LOOKED_AT = 150_000  # lines that every reader sees; of later ones only nccl-tests' own are looked for
MAX_LINES = 1_000_000

_NCCL_SAYS = re.compile(r"\+ (?:PCI|NET)\[|set by environment|CCL version")  # of its log, what readers here want
_ASKS = re.compile(
    r"amazonaws\.com/efa|rdma/|networking\.gke\.io|ip link set .* mtu|flushes|retries"
)  # notes that count alone
_JSON = re.compile(r"\s*(?:\{|\[\s*[{\[])")
_WANTED = re.compile(
    r"(?:float|half|bfloat16|double|u?int(?:8|32|64))\s+(?:sum|none|prod|max|min|avg)\s|Avg bus bandwidth|"
    r"Rank\s+\d+ .*\bdevice\b|nThread \d|BW average|_perf\b|\+ (?:PCI|NET)\[|^\s*GPU\d|"
    r"alloc_retries|allocator cache flushes"
)


def looks_like(name: str, head: bytes) -> bool:
    """By the first 4 KiB; a job's log with a table further down is found by `wants`."""
    text = head.decode("utf-8", "replace")
    if _JSON.match(text):
        started = '"start_time"' in text and '"args"' in text  # nccl-tests -J
        known = any(w in text for w in ("smoldiag.bench/", '"bus_bw"', '"busBw"', '"bandwidth"', '"busbw'))
        return started or known or pair_tables.looks_like_json(text)
    readers = _Readers(name)
    for number, line in enumerate(text.splitlines(), 1):
        readers.read(number, line[:MAX_LINE])
    found = readers.finish()
    return bool(replace(found, notes=tuple(n for n in found.notes if _ASKS.search(n.text))))


def is_json(head: bytes) -> bool:
    return bool(_JSON.match(head.decode("utf-8", "replace")))


def wants(line: str) -> bool:
    """A line that makes a log worth reading for tables, too."""
    return bool(_WANTED.search(line))


def parse(lines: Iterable[str], *, where: str) -> Tables:
    """ValueError where there is nothing of the kind."""
    kept: list[str] | None = None
    collected = _Readers(where)
    for number, line in enumerate(lines, 1):
        if number == 1 and (_JSON.match(line) or line.strip() == "["):
            kept = []
        if kept is not None:
            kept.append(line)
        else:
            collected.read(number, line[:MAX_LINE])
        if number >= MAX_LINES:
            break
    found = from_json("\n".join(kept), where=where) if kept is not None else collected.finish()
    if not found:
        raise ValueError(f"{where}: no table that is known")
    return found


class _Readers:
    """The readers of one text; the first that knows a line has it."""

    def __init__(self, where: str) -> None:
        self.nccl = nccl_tests.Reader(where=where)
        self.paths = path_matrix.Reader(where=where)
        self.links = link_tests.Reader(where=where)
        self.profiler = profiler.Reader(where=where)
        self.pairs = pair_tables.Reader(where=where)
        self.columns = named_columns.Reader(where=where)
        self.figures = figures.Reader(where=where)
        self.looked_at = 0

    def read(self, number: int, line: str) -> bool:
        if not line or line.isspace() or ("NCCL INFO" in line and not _NCCL_SAYS.search(line)):
            return False
        self.looked_at += 1
        if self.looked_at > MAX_LOOKED_AT:
            return bool(_WANTED.search(line)) and self.nccl.read(number, line)
        return (
            self.nccl.read(number, line)
            or self.pairs.read(number, line)
            or self.paths.read(number, line)
            or self.links.read(number, line)
            or self.figures.read(number, line)
            or self.profiler.read(number, line)
            or self.columns.read(number, line)
            or self.links.pair(number, line)
        )

    def finish(self) -> Tables:
        kernels = self.profiler.finish()
        settings = tuple((name, value, at) for (name, value), at in self.nccl.settings.items())
        return Tables(
            bandwidth=(*self.nccl.finish(), *self.columns.finish()),
            pairs=(*self.links.finish(), *self.pairs.finish()),
            links=tuple(self.links.links),
            graph_nics=self.links.graph_nics(),
            topologies=self.paths.finish(),
            figures=tuple(self.figures.figures),
            profiles=tuple(self.profiler.tables),
            timelines=tuple(self.profiler.timelines),
            kernels=kernels,
            settings=settings,
            notes=tuple(self.figures.notes),
        )


def from_json(text: str, *, where: str) -> Tables:
    """nccl-tests' -J file, rccl-tests' records, or smoldiag.bench/1."""
    if len(text) > MAX_JSON_CHARS:
        raise ValueError(f"{where}: JSON larger than {MAX_JSON_CHARS // 2**20} MiB")
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError):
        return Tables()
    if isinstance(document, dict):
        if str(document.get("schema", "")).startswith("smoldiag.bench/"):
            return _own(document, where)
        if document.get("command") == "find-slow" and (pairs := pair_tables.of_report(document, where=where)):
            return Tables(pairs=(pairs,))
        if table := nccl_tests.from_json(document, where=where):
            return Tables(bandwidth=(table,))
    if isinstance(document, list) and (records := _records(document, where)):
        return Tables(bandwidth=records)
    if pairs := pair_tables.from_json(document, where=where):
        return Tables(pairs=(pairs,))
    return Tables(bandwidth=tuple(_curves(document, where, ())))


def _own(document: dict[str, Any], where: str) -> Tables:
    world = document.get("world") if isinstance(document.get("world"), dict) else {}
    environment = document.get("environment") if isinstance(document.get("environment"), dict) else {}
    assert isinstance(world, dict)
    assert isinstance(environment, dict)
    gpus = environment.get("gpus") or []
    versions = environment.get("versions") or {}
    gpu = str(gpus[0]) if isinstance(gpus, list) and gpus and document.get("backend") == "nccl" else None
    spec = hardware.gpu(gpu)
    hosts = [str(h) for h in world.get("hosts") or []]
    groups: dict[tuple[str, int, int], list[Row]] = {}
    for number, r in enumerate(document.get("results") or [], 1):
        group = r.get("group") if isinstance(r, dict) else None
        if (
            not isinstance(group, dict)
            or group.get("kind") != "world"
            or str(r.get("purpose", "")).startswith(("fsdp", "ddp"))
        ):
            continue
        ranks, nodes = len(group.get("ranks") or ()), int(group.get("nodes") or 1)
        time = r.get("time_us") or {}
        groups.setdefault((str(r.get("collective")), nodes, ranks), []).append(
            Row(
                size_bytes=int(r.get("size_bytes") or 0),
                count=int(r.get("count") or 0),
                dtype=str(r.get("dtype", "")),
                redop=str(r.get("op", "")),
                out_of_place=Measured(
                    time_us=_float(time.get("p50")),
                    algbw_gbs=_float(r.get("algbw_gbs")),
                    busbw_gbs=_float(r.get("busbw_gbs")),
                    wrong=_float(r.get("wrong")),
                ),
                line=number,
            )
        )
    tables = tuple(
        BandwidthTable(
            where=f"{where}:{rows[0].line}",
            tool="smoldiag",
            rows=tuple(sorted(rows, key=lambda r: r.size_bytes or 0)),
            collective=collective,
            ranks=ranks,
            nodes=nodes,
            devices=_seats(hosts, nodes, ranks, gpu),
            gpu=gpu,
            gpu_class=spec.gpu_class if spec else None,
            nccl_version=str(versions["nccl"]) if isinstance(versions, dict) and versions.get("nccl") else None,
        )
        for (collective, nodes, ranks), rows in groups.items()
    )
    return Tables(
        bandwidth=tables, pairs=tuple(_own_pairs(document, hosts, int(world.get("ranks_per_node") or 1), where))
    )


def _seats(hosts: Sequence[str], nodes: int, ranks: int, gpu: str | None) -> tuple[Device, ...]:
    """A part of the world has its first hosts, each with as many ranks."""
    each = ranks // nodes
    if nodes > len(hosts) or each * nodes != ranks:
        return ()
    return tuple(Device(rank=i, host=hosts[i // each], name=gpu) for i in range(ranks))


def _own_pairs(document: dict[str, Any], hosts: Sequence[str], ranks_per_node: int, where: str) -> Iterator[PairTable]:
    """Transfers in one direction, and groups of two ranks."""
    directed = [
        Pair(
            a=str(p.get("src_host")),
            b=str(p.get("dst_host")),
            gb_per_s=float(p.get("gb_per_s") or 0),
            where=where,
            lane=int(p.get("src") or 0) % ranks_per_node,
            round=p.get("round"),
            confirming=bool(p.get("confirming")),
        )
        for p in document.get("pairs") or []
        if isinstance(p, dict)
    ]
    both = []
    for r in document.get("results") or []:
        group = r.get("group") if isinstance(r, dict) else None
        ranks = group.get("ranks") if isinstance(group, dict) and group.get("kind") == "pair" else None
        if not isinstance(ranks, list) or len(ranks) != 2 or max(ranks) >= len(hosts) * ranks_per_node:
            continue
        a, b = (hosts[rank // ranks_per_node] for rank in ranks)
        if a != b:
            lane = ranks[0] % ranks_per_node
            both.append(
                (
                    int(r.get("size_bytes") or 0),
                    Pair(a=a, b=b, gb_per_s=_float(r.get("busbw_gbs")) or 0.0, where=where, lane=lane),
                )
            )
    if directed:
        yield PairTable(where=where, kind="hosts", pairs=tuple(directed), directed=True)
    largest = max((size for size, _ in both), default=0)
    if both:
        yield PairTable(where=where, kind="hosts", pairs=tuple(p for size, p in both if size == largest))


def _records(items: list[Any], where: str) -> tuple[BandwidthTable, ...]:
    """rccl-tests -Z json: a record per size."""
    groups: dict[tuple[str | None, int | None, int | None], list[Row]] = {}
    for number, item in enumerate(items[: nccl_tests.MAX_ROWS], 1):
        if not isinstance(item, dict) or "busBw" not in item or "size" not in item:
            continue
        name = nccl_tests.collective_of(str(item.get("name", "")))
        nodes, ranks = (v if isinstance(v, int) else None for v in (item.get("nodes"), item.get("ranks")))
        groups.setdefault((name, nodes, ranks), []).append(
            Row(
                size_bytes=int(item["size"]) if str(item["size"]).isdigit() else None,
                dtype=str(item.get("type", "")),
                redop=str(item.get("redop", "")),
                out_of_place=Measured(
                    time_us=_float(item.get("time")),
                    algbw_gbs=_float(item.get("algBw")),
                    busbw_gbs=_float(item.get("busBw")),
                    wrong=_float(item.get("wrong")),
                ),
                line=number,
            )
        )
    return tuple(
        BandwidthTable(
            where=f"{where}:{rows[0].line}",
            tool="rccl-tests",
            rows=tuple(rows),
            collective=name,
            nodes=nodes,
            ranks=ranks,
        )
        for (name, nodes, ranks), rows in groups.items()
    )


def _curves(node: Any, where: str, path: tuple[str, ...]) -> Iterator[BandwidthTable]:
    """Lists of sizes with bandwidths, wherever they stand; the keys above them say what they are of."""
    if isinstance(node, dict) and len(path) < MAX_DEPTH:
        for key, value in list(node.items())[:MAX_CURVES]:
            yield from _curves(value, where, (*path, str(key)))
    if not isinstance(node, list) or not node or not isinstance(node[0], dict):
        return
    sizes = [k for k in node[0] if k.lower().replace("_", "") in ("size", "sizebytes", "messagesize", "bytes")]
    rates = [k for k in node[0] if k.lower().replace("_", "") in ("bandwidth", "busbw", "busbwgbs", "busbandwidth")]
    if not sizes or not rates:
        return
    words = " ".join((where, *path))
    nodes = re.search(r"(\d{1,5})[_ ]?nodes?|nodes?[_ ]?(\d{1,5})", words, re.IGNORECASE)
    rows = tuple(
        Row(
            size_bytes=int(item[sizes[0]]),
            out_of_place=Measured(busbw_gbs=_float(item.get(rates[0]))),
            line=number,
        )
        for number, item in enumerate(node[: nccl_tests.MAX_ROWS], 1)
        if isinstance(item, dict) and isinstance(item.get(sizes[0]), int)
    )
    if rows:
        yield BandwidthTable(
            where=f"{where}:1",
            tool="table",
            rows=rows,
            collective=nccl_tests.collective_of_name(words.replace("/", " ")),
            label=" ".join(path),
            nodes=int(nodes[1] or nodes[2]) if nodes else None,
        )


def _float(value: Any) -> float | None:
    try:
        return float(value) if value is not None and not isinstance(value, bool) else None
    except (TypeError, ValueError):
        return None


def merged(parts: Iterable[Tables]) -> Tables:
    """All of one call."""
    total = Tables()
    for part in parts:
        total = total + part
    return replace(total, settings=tuple(dict.fromkeys(total.settings)))
