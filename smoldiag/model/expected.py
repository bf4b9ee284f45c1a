"""What bus bandwidth to expect, and from where that is known. Pure: the published rows are handed in.

In this order:
  site       this site's own references: same collective, size, backend, nodes, ranks per node, GPU
  measured   a published row of the same hardware, size (within 1 %) and node count, from 16 MiB on
  estimated  a published row below 16 MiB (figures of one machine differ by a factor of two there); between two
             published sizes of one curve; between two published node counts; from another collective's row
  bound      what the hardware allows at most (model/bounds.py)
else unknown. A figure is never carried beyond a published size or node count, and thresholds of health checks,
averages over sizes and runs with special settings are no measurements (`Published.use`).

"Same hardware" is the instance that the machine was recognised as. One node of a board with NVLink switches is the
same machine in every cloud, so that there the GPU is enough: published single nodes of one GPU model agree within
5 % at 1 GiB and within 25 % from 16 MiB on.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from smoldiag.errors import SmoldiagError
from smoldiag.facts import Bench, Expected, Result
from smoldiag.facts.reference import Hardware, Published, Reference
from smoldiag.model.bounds import bound
from smoldiag.model.sizes import human

SCHEMA = "smoldiag.reference/1"
SIZE_TOLERANCE = 0.01
LATEST_REFERENCES = 5  # the median is over these
MIN_LIKE_FOR_LIKE_BYTES = 16 * 2**20  # below it latency decides: figures of one machine differ, and have no fixed ratio
FIRST_NODES_WITHOUT_ARTEFACT = 3  # two nodes' trees send less than busbw assumes
MAX_REFERENCE_ROWS = 100_000
DONORS = ("reduce_scatter", "all_gather", "broadcast", "reduce", "all_reduce", "all_to_all", "send_recv")


def expected(
    collective: str,
    size_bytes: int,
    *,
    nodes: int,
    ranks_per_node: int,
    backend: str,
    hardware: Hardware,
    published: Sequence[Published] = (),
    site: Sequence[Reference] = (),
    dtype: str | None = None,
) -> Expected | None:
    asked = _Asked(
        collective=collective,
        size_bytes=size_bytes,
        nodes=nodes,
        ranks_per_node=ranks_per_node,
        backend=backend,
        dtype=dtype,
        hardware=hardware,
    )
    if nodes * ranks_per_node < 2:
        return None
    rows = _comparable(published, asked) if backend == "nccl" else []
    return (
        _from_site(site, asked)
        or _measured(rows, asked)
        or _between_sizes(rows, asked)
        or _between_node_counts(rows, asked)
        or _from_another_collective(rows, asked)
        or upper_bound(
            collective, size_bytes, nodes=nodes, ranks_per_node=ranks_per_node, backend=backend, hardware=hardware
        )
    )


def upper_bound(
    collective: str, size_bytes: int, *, nodes: int, ranks_per_node: int, backend: str, hardware: Hardware
) -> Expected | None:
    """The bound alone, whatever else is known."""
    limit = bound(collective, nodes=nodes, ranks_per_node=ranks_per_node, hardware=hardware, backend=backend)
    if limit is None:
        return None
    source = f"arithmetic on the hardware: {limit.formula}"
    return Expected(
        collective=collective,
        size_bytes=size_bytes,
        busbw_gbs=limit.busbw_gbs,
        kind="bound",
        source=source,
        nodes=nodes,
    )


def for_results(
    results: Iterable[Result],
    *,
    backend: str,
    hardware: Hardware,
    published: Sequence[Published] = (),
    site: Sequence[Reference] = (),
) -> tuple[Expected, ...]:
    """For each result of the world or of whole nodes; for an all_reduce on two nodes also what the NICs carry."""
    known: dict[tuple[str, int, int], Expected] = {}
    nic_rates: list[Expected | None] = []
    for r in results:
        nodes, ranks = r.group.nodes, len(r.group.ranks)
        if r.group.kind not in ("world", "node") or nodes < 1 or ranks % nodes:
            continue
        local = ranks // nodes
        if (r.collective, r.size_bytes, nodes) not in known:
            found = expected(
                r.collective,
                r.size_bytes,
                nodes=nodes,
                ranks_per_node=local,
                backend=backend,
                hardware=hardware,
                published=published,
                site=site,
                dtype=r.dtype,
            )
            if found is not None:
                known[r.collective, r.size_bytes, nodes] = found
        if r.collective == "all_reduce" and nodes == 2:  # a tree of two nodes may exceed this
            nic_rates.append(
                upper_bound(
                    "all_gather",
                    r.size_bytes,
                    nodes=nodes,
                    ranks_per_node=local,
                    backend=backend,
                    hardware=hardware,
                )
            )
    return tuple(dict.fromkeys([*known.values(), *(e for e in nic_rates if e is not None)]))


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What is asked for, and on what."""

    collective: str
    size_bytes: int
    nodes: int
    ranks_per_node: int
    backend: str
    dtype: str | None
    hardware: Hardware

    def answer(self, busbw_gbs: float, kind: str, source: str) -> Expected:
        return Expected(
            collective=self.collective,
            size_bytes=self.size_bytes,
            busbw_gbs=busbw_gbs,
            kind=kind,
            source=source,
            nodes=self.nodes,
        )

    def is_size(self, size_bytes: int) -> bool:
        return abs(size_bytes - self.size_bytes) <= SIZE_TOLERANCE * self.size_bytes


def _from_site(site: Sequence[Reference], asked: _Asked) -> Expected | None:
    same = [r for r in site if _is_same(r, asked)]
    if not same:
        return None
    latest = sorted(same, key=lambda r: r.created)[-LATEST_REFERENCES:]
    when = latest[-1].created[:10] or "undated"
    source = f"this site's reference of {when}" + (f" (median of {len(latest)})" if len(latest) > 1 else "")
    return asked.answer(median(r.busbw_gbs for r in latest), "site", source)


def _is_same(r: Reference, asked: _Asked) -> bool:
    return (
        r.collective == asked.collective
        and asked.is_size(r.size_bytes)
        and (r.backend, r.nodes, r.ranks_per_node) == (asked.backend, asked.nodes, asked.ranks_per_node)
        and r.gpu == asked.hardware.gpu
        and _agree(r.dtype, asked.dtype)
        and _agree(r.host_class, asked.hardware.host_class)
    )


def _agree(a: str | None, b: str | None) -> bool:
    return a is None or b is None or a == b


def _comparable(published: Sequence[Published], asked: _Asked) -> list[Published]:
    """Measured rows of this hardware with as many ranks per node."""
    hardware = asked.hardware
    return [
        row
        for row in published
        if row.use == "measured"
        and row.size_bytes
        and row.nodes
        and row.gpu == hardware.gpu_class
        and row.gpus_per_node == asked.ranks_per_node
        and (row.instance in hardware.instances or (row.nodes == 1 and hardware.nvswitch))
    ]


def _measured(rows: Sequence[Published], asked: _Asked) -> Expected | None:
    row = _at(rows, asked, asked.collective, asked.nodes)
    if row is None:
        return None
    kind = "measured" if asked.size_bytes >= MIN_LIKE_FOR_LIKE_BYTES else "estimated"
    return asked.answer(row.busbw_gbs, kind, _named(row))


def _at(rows: Iterable[Published], asked: _Asked, collective: str, nodes: int) -> Published | None:
    """The row at the size that is asked for, the instance's own before others of its kind.

    Of several the median; of two the lower, as published figures are rather good days than bad ones.
    """
    fitting = [r for r in rows if (r.collective, r.nodes) == (collective, nodes) and asked.is_size(r.size_bytes or 0)]
    own = [r for r in fitting if r.instance in asked.hardware.instances]
    ordered = sorted(own or fitting, key=lambda r: r.busbw_gbs)
    return ordered[(len(ordered) - 1) // 2] if ordered else None


def _between_sizes(rows: Sequence[Published], asked: _Asked) -> Expected | None:
    """Between the neighbouring sizes of a published curve, straight in the logarithms; the lowest of several curves."""
    curves: dict[tuple[bool, str, str, str], list[Published]] = {}
    for row in rows:
        if (row.collective, row.nodes) == (asked.collective, asked.nodes):
            foreign = row.instance not in asked.hardware.instances
            curves.setdefault((foreign, row.instance, row.fabric, row.source), []).append(row)
    found = []
    for (foreign, *_), curve in curves.items():
        ordered = sorted(((row.size_bytes or 0, row) for row in curve), key=lambda item: item[0])
        for (before, a), (after, b) in pairwise(ordered):
            if before < asked.size_bytes < after:
                busbw = _log_between(asked.size_bytes, (before, a.busbw_gbs), (after, b.busbw_gbs))
                found.append((foreign, busbw, f"between {_named(a)} and {_named(b)}"))
    if not found:
        return None
    _, busbw, source = min(found)
    return asked.answer(busbw, "estimated", source)


def _log_between(x: float, left: tuple[float, float], right: tuple[float, float]) -> float:
    share = math.log(x / left[0]) / math.log(right[0] / left[0])
    return math.exp(math.log(left[1]) + share * math.log(right[1] / left[1]))


def _between_node_counts(rows: Sequence[Published], asked: _Asked) -> Expected | None:
    """Between a smaller and a larger published node count at the same size; two nodes are not taken as the smaller."""
    if asked.nodes < FIRST_NODES_WITHOUT_ARTEFACT:
        return None
    counts = {row.nodes or 0 for row in rows if _at((row,), asked, asked.collective, row.nodes or 0)}
    fewer = max((n for n in counts if FIRST_NODES_WITHOUT_ARTEFACT <= n < asked.nodes), default=0)
    more = min((n for n in counts if n > asked.nodes), default=0)
    left, right = _at(rows, asked, asked.collective, fewer), _at(rows, asked, asked.collective, more)
    if left is None or right is None:
        return None
    busbw = _log_between(asked.nodes, (fewer, left.busbw_gbs), (more, right.busbw_gbs))
    return asked.answer(busbw, "estimated", f"between {_named(left)} and {_named(right)}")


def _from_another_collective(rows: Sequence[Published], asked: _Asked) -> Expected | None:
    """Another collective's row, in the proportion of their bounds."""
    if asked.size_bytes < MIN_LIKE_FOR_LIKE_BYTES:
        return None
    mine = _bound_of(asked.collective, asked)
    for donor in DONORS:
        row = _at(rows, asked, donor, asked.nodes)
        theirs = _bound_of(donor, asked)
        if row is None or donor == asked.collective or not mine or not theirs:
            continue
        source = (
            f"{row.busbw_gbs:g} GB/s x {mine:.4g} / {theirs:.4g} GB/s "
            f"(bounds of {asked.collective} and {donor}); {_named(row)}"
        )
        return asked.answer(row.busbw_gbs * mine / theirs, "estimated", source)
    return None


def _bound_of(collective: str, asked: _Asked) -> float | None:
    limit = bound(
        collective,
        nodes=asked.nodes,
        ranks_per_node=asked.ranks_per_node,
        hardware=asked.hardware,
        backend=asked.backend,
    )
    return limit.busbw_gbs if limit else None


def _named(row: Published) -> str:
    where = row.instance or row.gpu
    nodes = "1 node" if row.nodes == 1 else f"{row.nodes} nodes"
    version = f", NCCL {row.nccl_version}" if row.nccl_version else ""
    figure = f"{row.busbw_gbs:g} GB/s {row.collective} of {human(row.size_bytes or 0)}"
    return f"{figure} on {where}, {nodes} x {row.gpus_per_node}, {row.fabric}{version} [{row.source}]"


def parse_references(data: bytes, *, where: str = "the reference") -> tuple[Reference, ...]:
    """`smoldiag.reference/1` -> rows."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SmoldiagError(f"{where} is not JSON: {error}", hint="make one with --save-reference FILE") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise SmoldiagError(f"{where} is not a {SCHEMA} document", hint="make one with --save-reference FILE")
    rows = document.get("rows")
    if not isinstance(rows, list) or len(rows) > MAX_REFERENCE_ROWS:
        raise SmoldiagError(f"{where} has no list of rows", hint="make one with --save-reference FILE")
    return tuple(_reference(row, number, where) for number, row in enumerate(rows, 1))


def _reference(row: Any, number: int, where: str) -> Reference:
    try:
        reference = Reference(
            collective=_text(row["collective"]),
            size_bytes=_whole(row["size_bytes"]),
            nodes=_whole(row["nodes"]),
            ranks_per_node=_whole(row["ranks_per_node"]),
            backend=_text(row["backend"]),
            busbw_gbs=_rate(row["busbw_gbs"]),
            dtype=_text_or_none(row.get("dtype")),
            gpu=_text_or_none(row.get("gpu")),
            host_class=_text_or_none(row.get("host_class")),
            created=_text(row.get("created", "")),
            versions={str(k): str(v) for k, v in dict(row.get("versions") or {}).items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SmoldiagError(
            f"row {number} of {where} is not usable: {error!r}", hint="make it again with --save-reference FILE"
        ) from error
    return reference


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text")
    return value


def _text_or_none(value: object) -> str | None:
    return None if value is None else _text(value)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is not a whole number above 0")
    return value


def _rate(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{value!r} is not a rate")
    return float(value)


def make_references(
    bench: Bench, *, gpu: str | None, created: str, host_class: str | None = None, versions: Mapping[str, str] = {}
) -> dict[str, Any]:
    """The figures of a run over the whole world (and of parts of it, with --scale), to be compared with later."""
    rows = [
        asdict(
            Reference(
                collective=r.collective,
                size_bytes=r.size_bytes,
                nodes=r.group.nodes,
                ranks_per_node=len(r.group.ranks) // r.group.nodes,
                backend=bench.backend,
                busbw_gbs=r.busbw_gbs,
                dtype=r.dtype,
                gpu=gpu,
                host_class=host_class,
                created=created,
                versions=dict(versions),
            )
        )
        for r in bench.results
        if r.group.kind == "world"
        and not r.purpose.startswith(("fsdp", "ddp"))
        and r.wrong == 0
        and r.busbw_gbs > 0
        and len(r.group.ranks) % r.group.nodes == 0
        and len(r.group.ranks) > 1
    ]
    return {"schema": SCHEMA, "created": created, "rows": rows}
