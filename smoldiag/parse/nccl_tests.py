"""Output of nccl-tests and rccl-tests, text of every version since 2017 and JSON -> BandwidthTable.

A row is known by its shape (size, count, type ...) wherever it stands, so that launchers' prefixes, cut tops and
excerpts do not matter. Which numbers are time and bandwidth is told by the header, and without one by the identity
algbw = size / time.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smoldiag import redact
from smoldiag.facts import Evidence
from smoldiag.facts.tables import BandwidthTable, Device, Measured, Row
from smoldiag.knowledge import hardware
from smoldiag.parse import units

MAX_ROWS = 10_000  # of one table
MAX_TABLES = 2_000
MAX_DEVICES = 65_536
MAX_NOTES = 40
MAX_TEXT = 300

PROGRAMS = {  # nccl-tests' programs -> collective
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "all_to_all": "all_to_all",
    "broadcast": "broadcast",
    "reduce": "reduce",
    "sendrecv": "send_recv",
    "send_recv": "send_recv",
    "gather": "gather",
    "scatter": "scatter",
    "hypercube": "hypercube",
}
ELEMENT_BYTES = {
    "int8": 1, "uint8": 1, "char": 1, "f8e4m3": 1, "f8e5m2": 1, "fp8_e4m3": 1, "fp8_e5m2": 1,
    "half": 2, "float16": 2, "fp16": 2, "bfloat16": 2, "bf16": 2,
    "int32": 4, "int": 4, "uint32": 4, "float": 4, "float32": 4, "fp32": 4,
    "int64": 8, "uint64": 8, "double": 8, "float64": 8,
}  # fmt: skip
_TYPES = "|".join(sorted(ELEMENT_BYTES, key=len, reverse=True))
_ROW = re.compile(rf"(?<![\w.])(\d{{1,18}})\s+(\d{{1,18}}|\d\.\d{{1,4}}e\+\d{{2}})\s+({_TYPES})\s+(\S.*)$")
_OLD_ROW = re.compile(rf"^\s*(\d{{1,18}})\s+({_TYPES})\s+(sum|prod|max|min)\s+(\S.*)$")  # NCCL 1: N type op time ...
_DEVICE = re.compile(
    r"Rank\s+(\d{1,7})\s+(?:Group\s+\d{1,6}\s+)?(?:Pid\s+\d{1,10}\s+)?on\s+(\S{1,255})\s+device\s+(\d{1,4})\s+"
    r"\[([0-9a-fA-Fx:.]{1,20})\]\s*(.{0,80})"
)
_PROGRAM = re.compile(r"\b(all_reduce|all_gather|reduce_scatter|alltoallv?|all_to_all|broadcast|reduce|sendrecv|gather|"
                      r"scatter|hypercube)_(?:perf|test)\b")  # fmt: skip
_NAMED = re.compile(r"(?<![a-z])(all[_-]?reduce|all[_-]?gather|reduce[_-]?scatter|all[_-]?to[_-]?all|broadcast|"
                    r"send[_-]?recv)(?![a-z])", re.IGNORECASE)  # fmt: skip
_CONFIG = re.compile(
    r"# ?nThread (\d{1,5}) nGpus (\d{1,5}) .*?warmup iters: (\d{1,9}) iters: (\d{1,9})|"
    r"# ?nThread (\d{1,5}) nGpus (\d{1,5})"
)
_AVERAGE = re.compile(r"Avg bus bandwidth\s*:\s*([\d.]{1,20})|average busbw\s*:?\s*([\d.]{1,20})\s*GB/s", re.IGNORECASE)
_LIBRARY = re.compile(r"nccl-library=(\d{3,6})")
_VERSION = re.compile(r"\b[NR]CCL version\s?:?\s?(\d{1,3}\.\d{1,3}(?:\.\d{1,3})?)")
_SETTING = re.compile(r"(?:^|[\s;])((?:NCCL|RCCL|CUDA|FI|UCX|OFI|OMPI|HSA)_[A-Z0-9_]{1,60})=([^\s;]{1,300})")
_NODES = re.compile(r"\bnodes?:? ?=? ?(\d{1,5})\b|\b(\d{1,5})[ -]?nodes?\b|SLURM_(?:JOB_NUM_NODES|NNODES)=(\d{1,5})")
_RANKS = re.compile(
    r"\b(?:gpus?/node|gpus per node): ?(\d{1,4})\b|SLURM_NTASKS=(\d{1,6})|\s-np? (\d{1,6})\s|(\d{1,6}) GPUs\b"
)
_OLD_COMMAND = re.compile(r"_test\s+\d{1,15}\s+(\d{1,3})((?:\s+\d{1,3}){1,64})\s*$")  # NCCL 1: bytes, GPUs, which
_GPUS_ARGUMENT = re.compile(r"_perf\b.*\s-g (\d{1,3})\b")
_HEADER = re.compile(r"\b(?:size|bytes)\b.*\btime\b.*\bbusbw\b|\btype\b.*\balgbw\b", re.IGNORECASE)
_HINT = re.compile(
    r"\d\s+(?:f|h|d|b|u?int|char)|busbw|algbw|Rank|nThread|Avg bus|_perf|_test|version|nccl|mpirun|srun|SLURM|"
    r"^\s*(?:\S{1,64}\s)?#|^reporter|set by environment"
)
_SIMPLE = {"#wrong": "wrong", "error": "delta", "res": "delta", "cputime": "time"}


@dataclass(kw_only=True)
class _Open:
    """The table that is being read, and what stands above it."""

    rows: list[Row] = field(default_factory=list)
    collective: str | None = None
    where: str = ""
    tool: str = "nccl-tests"
    columns: tuple[str, ...] = ()
    devices: dict[int, Device] = field(default_factory=dict)
    version: str | None = None
    threads: int | None = None
    gpus: int | None = None
    warmup: int | None = None
    iterations: int | None = None
    average: float | None = None
    settings: dict[str, str] = field(default_factory=dict)
    notes: list[Evidence] = field(default_factory=list)
    ranks: int | None = None
    nodes: int | None = None
    headers: int = 0  # of programs that started, before the first row


@dataclass(kw_only=True)
class Reader:
    """Feed it lines; `finish` gives the tables."""

    where: str
    tables: list[BandwidthTable] = field(default_factory=list)
    _open: _Open = field(default_factory=_Open)
    settings: dict[tuple[str, str], str] = field(default_factory=dict)

    def read(self, number: int, line: str) -> bool:
        """Whether the line is nccl-tests' own."""
        if not _HINT.search(line):
            return False
        if (match := _ROW.search(line)) and self._row(number, match):
            return True
        if "time" in line and _HEADER.search(line) and "|" not in line:
            self._start(number)
            self._open.columns = _columns(line)
            return "count" in self._open.columns or "type" in self._open.columns
        if match := _DEVICE.search(line):
            self._device(match)
            return True
        if match := _CONFIG.search(line):
            self._start(number, above=True)
            o = self._open
            o.threads, o.gpus = int(match[1] or match[5]), int(match[2] or match[6])
            o.warmup, o.iterations = (int(match[3]), int(match[4])) if match[3] else (None, None)
            o.devices = {}
            o.headers += 1
            return True
        if match := _AVERAGE.search(line):
            self._open.average = units.number(match[1] or match[2])
            self._open.where = self._open.where or f"{self.where}:{number}"
            self._close()
            return True
        if match := _OLD_ROW.match(line):
            return self._old_row(number, match)
        self._words(number, line)
        return False

    def finish(self) -> tuple[BandwidthTable, ...]:
        self._close()
        return tuple(self.tables)

    def _words(self, number: int, line: str) -> None:
        """Versions, command lines, and what people wrote around the table."""
        o = self._open
        if match := _LIBRARY.search(line):
            o.version = library_version(int(match[1]))
        elif match := _VERSION.search(line):
            o.version = match[1]
        elif "rccl-tests" in line:
            o.tool = "rccl-tests"
        program = _PROGRAM.search(line)
        command = program is not None or "mpirun" in line or "srun" in line or "set by environment to" in line
        if program:
            self._start(number, above=True)
            self._open.collective = PROGRAMS.get(program[1])
        o = self._open
        if match := _OLD_COMMAND.search(line):
            o.ranks, o.nodes = int(match[1]), 1
        if command:
            for name, value in _SETTING.findall(line):
                o.settings[name] = redact.variable(name, value)
                self.settings.setdefault((name, o.settings[name]), f"{self.where}:{number}")
        if match := _GPUS_ARGUMENT.search(line):
            o.gpus = int(match[1])
        if line.lstrip().startswith(("#", "reporter", "//")) or command or "SLURM" in line:
            if o.collective is None and (named := _NAMED.search(line)):
                o.collective = collective_of(named[1])
            if match := _NODES.search(line):
                o.nodes = int(next(g for g in match.groups() if g))
            if match := _RANKS.search(line):
                count = int(next(g for g in match.groups() if g))
                o.ranks = count * (o.nodes or 1) if match[1] else count
            words = line.strip().strip("#").strip()
            if words and len(o.notes) < MAX_NOTES and any(c.isalpha() for c in words) and not words.startswith("(B)"):
                o.notes.append(Evidence(text=redact.text(words[:MAX_TEXT]), where=f"{self.where}:{number}"))

    def _start(self, number: int, *, above: bool = False) -> None:
        """A header: rows that were read belong to a table before it."""
        if self._open.rows:
            self._close()
        if above and self._open.average is not None:
            self._open = _Open(version=self._open.version)

    def _device(self, match: re.Match[str]) -> None:
        self._start(0)
        rank = int(match[1])
        if rank == 0:
            self._open.devices = {}
        if len(self._open.devices) < MAX_DEVICES:
            self._open.devices[rank] = Device(
                rank=rank, host=match[2], device=int(match[3]), bus_id=bus_id(match[4]), name=match[5].strip() or None
            )

    def _row(self, number: int, match: re.Match[str]) -> bool:
        size, count, dtype = int(match[1]), int(float(match[2])), match[3]
        tokens = match[4].split()
        redop = tokens.pop(0) if tokens and tokens[0].isalpha() else ""
        start = _first(size, tokens, self._open.columns)
        groups = _groups(size, tokens[start:], self._open.columns) if start is not None else []
        if not groups:
            return False
        last = self._open.rows[-1].size_bytes if self._open.rows else None
        if last is not None and size < last and self._open.headers < 2:
            self._close()
        self._open.where = self._open.where or f"{self.where}:{number}"
        if len(self._open.rows) < MAX_ROWS:
            self._open.rows.append(
                Row(
                    size_bytes=size,
                    count=count,
                    dtype=dtype,
                    redop=redop,
                    root=int(tokens[0]) if start and re.fullmatch(r"-?\d{1,6}", tokens[0]) else None,
                    out_of_place=groups[0],
                    in_place=groups[1] if len(groups) > 1 else None,
                    line=number,
                )
            )
        return True

    def _old_row(self, number: int, match: re.Match[str]) -> bool:
        """NCCL 1's tests: elements, type, op, milliseconds, algbw, busbw."""
        values = [units.number(t) for t in match[4].split()[:3]]
        if len(values) < 3 or any(v is None for v in values):
            return False
        self._open.where = self._open.where or f"{self.where}:{number}"
        elements = int(match[1])
        self._open.rows.append(
            Row(
                size_bytes=elements * ELEMENT_BYTES[match[2]],
                count=elements,
                dtype=match[2],
                redop=match[3],
                out_of_place=Measured(
                    time_us=(values[0] or 0.0) * 1e3, algbw_gbs=values[1], busbw_gbs=values[2], wrong=None
                ),
                line=number,
            )
        )
        return True

    def _close(self) -> None:
        o = self._open
        if (o.rows or o.average is not None) and len(self.tables) < MAX_TABLES:
            self.tables.append(_table(o, self.where))
        kept = {} if o.average is not None else o.settings
        self._open = _Open(
            devices=o.devices,
            version=o.version,
            tool=o.tool,
            threads=o.threads,
            gpus=o.gpus,
            warmup=o.warmup,
            iterations=o.iterations,
            settings=dict(kept),
            columns=o.columns,
            average=o.average if not o.rows and o.average is not None else None,
        )
        self._open.average = None


def library_version(code: int) -> str:
    """22903 -> 2.29.3; 2708 -> 2.7.8 (NCCL_VERSION of nccl.h, which changed with 2.9)."""
    major, rest = divmod(code, 10_000) if code >= 10_000 else divmod(code, 1_000)
    return f"{major}.{rest // 100}.{rest % 100}"


def collective_of(words: str) -> str | None:
    return PROGRAMS.get(re.sub(r"[\s-]", "_", words.lower())) or PROGRAMS.get(
        {"allreduce": "all_reduce", "allgather": "all_gather", "reducescatter": "reduce_scatter"}.get(
            re.sub(r"[\s_-]", "", words.lower()), re.sub(r"[\s_-]", "", words.lower())
        )
    )


def bus_id(text: str) -> str:
    """As facts have it: 0000:1b:00.0; the old header has the bus alone, 0x1b."""
    text = text.lower()
    parts = text.split(":")
    if len(parts) == 3 and "." not in parts[2]:
        return f"{parts[0]}:{parts[1]}:{parts[2]}.0"
    return text


def _columns(header: str) -> tuple[str, ...]:
    words = header.replace("#wrong", " #wrong").split("busbw", 1)[0] + " busbw" + header.split("busbw", 1)[-1]
    found = [w.strip("#").lower() if w != "#wrong" else w for w in words.split()]
    while found and found[0] not in ("size", "bytes", "n"):
        found.pop(0)
    return tuple(_SIMPLE.get(w, w) for w in found)


def _groups(size: int, rest: Sequence[str], columns: Sequence[str]) -> list[Measured]:
    """Out of place, and in place where it is there."""
    kinds = columns[columns.index("time") :] if "time" in columns else ()
    second = kinds.index("time", 1) if "time" in kinds[1:] else None
    if second is None or second + 3 > len(rest):
        second = next((i for i in (4, 3, 5) if len(rest) >= i + 3 and (i != 3 or len(rest) == 6)), None)
        if second is not None and not _consistent(size, rest[second], rest[second + 1]):
            second = next((i for i in range(3, len(rest) - 2) if _consistent(size, rest[i], rest[i + 1])), None)
    delta = "delta" in kinds
    groups = [_measured(size, rest[: second or len(rest)], delta)]
    if second is not None and second + 3 <= len(rest):
        groups.append(_measured(size, rest[second:], delta))
    return [g for g in groups if g.time_us is not None and g.algbw_gbs is not None]


def _first(size: int, tokens: Sequence[str], columns: Sequence[str]) -> int | None:
    """Where the time stands: behind the root, where there is one."""
    if len(tokens) < 3:
        return None
    if size > 2**16:
        for start in (0, 1):
            if len(tokens) >= start + 3 and _consistent(size, tokens[start], tokens[start + 1]):
                return start
    if "root" in columns:
        return 1
    if "time" in columns:
        return 0
    return 1 if re.fullmatch(r"-?\d{1,6}", tokens[0]) and len(tokens) >= 4 else 0


def _consistent(size: int, time: str, algbw: str) -> bool:
    t, a = units.number(time), units.number(algbw)
    if t is None or a is None or t <= 0:
        return False
    rates = size / t / 1e3, size / t / 1e6  # microseconds, or the milliseconds of 2017
    return any(abs(r - a) <= max(0.006, 0.02 * a) for r in rates)


def _measured(size: int, tokens: Sequence[str], delta: bool) -> Measured:
    values = [units.number(t) for t in tokens[:3]]
    values += [None] * (3 - len(values))
    time, algbw, busbw = values
    if time and algbw and abs(size / time / 1e6 - algbw) <= 0.02 * algbw:
        time *= 1e3
    wrong = None
    if len(tokens) > 3 and not delta and "e-" not in tokens[-1] and len(tokens) <= 5:
        wrong = units.number(tokens[-1])
    return Measured(time_us=time, algbw_gbs=algbw, busbw_gbs=busbw, wrong=wrong)


def _table(o: _Open, where: str) -> BandwidthTable:
    ranks = o.ranks
    devices = tuple(o.devices[r] for r in sorted(o.devices))
    if devices:
        ranks = devices[-1].rank + 1
    elif counted := ranks_of_rows(o.rows):
        ranks = counted
    nodes = nodes_of(devices, ranks) if devices else o.nodes
    if nodes is None and ranks and o.threads and o.gpus and o.threads * o.gpus == ranks:
        nodes = 1  # one process drives them all
    if ranks is None and o.gpus and not o.nodes and o.gpus > 1:
        ranks, nodes = o.gpus, nodes or 1
    gpu = next((d.name for d in devices if d.name), None)
    spec = hardware.gpu(gpu)
    collective = o.collective or collective_of_name(where) or collective_of_rows(o.rows)
    return BandwidthTable(
        where=o.where or where,
        tool=o.tool,
        rows=tuple(o.rows),
        collective=collective,
        ranks=ranks,
        nodes=nodes,
        devices=devices,
        gpu=gpu,
        gpu_class=spec.gpu_class if spec else None,
        nccl_version=o.version,
        average_gbs=o.average,
        warmup=o.warmup,
        iterations=o.iterations,
        worlds=max(1, o.headers),
        settings=tuple(o.settings.items()),
        notes=tuple(o.notes),
    )


def collective_of_name(name: str) -> str | None:
    found = _NAMED.search(name.rpartition("/")[2].lower())
    return collective_of(found[1]) if found else None


def nodes_of(devices: Sequence[Device], ranks: int | None) -> int | None:
    """Where lines are cut out of the list, the highest device number says how many there are on a host."""
    hosts = len({d.host for d in devices})
    if ranks is None or len(devices) == ranks:
        return hosts
    local = 1 + max((d.device or 0 for d in devices), default=0)
    return max(hosts, -(-ranks // local)) if local > 1 else None


def collective_of_rows(rows: Sequence[Row]) -> str | None:
    """From the operation, the root and the ratio of busbw to algbw, as nccl-tests defines them.

    None where two would fit: all_gather and all_to_all differ in nothing that a row shows.
    """
    ratio = _ratio(rows)
    if ratio is None:
        return None
    last = rows[-1]
    rooted = last.root is not None and last.root >= 0
    if last.redop in ("none", ""):
        if ratio > 0.99:
            return "broadcast" if rooted else "send_recv" if last.root == -1 else None
        return "all_gather" if last.redop == "none" and _sum_of_parts(rows) else None
    if ratio < 0.99:
        return "reduce_scatter"
    if ratio > 1.01:
        return "all_reduce"
    return "reduce" if rooted else "all_reduce" if last.root == -1 else None  # of two ranks


def ranks_of_rows(rows: Sequence[Row]) -> int | None:
    """all_reduce: busbw = 2(n-1)/n algbw; where size is the sum over ranks: size = n * count * element."""
    if parts := _sum_of_parts(rows):
        return parts
    ratio = _ratio(rows)
    if ratio is None or rows[-1].redop in ("none", ""):
        return None
    if abs(ratio - 1) < 0.01 and rows[-1].root == -1:
        return 2
    if not 1.05 < ratio < 1.995:
        return None
    ranks = 2 / (2 - ratio)
    busbw = max(r.out_of_place.busbw_gbs or 0.0 for r in rows)
    uncertain = ranks**2 / 2 * ratio * (0.005 / busbw + 0.0005)  # both figures are printed with few digits
    return round(ranks) if uncertain < 0.5 and abs(ranks - round(ranks)) <= max(0.1, uncertain) else None


def _sum_of_parts(rows: Sequence[Row]) -> int | None:
    for row in reversed(rows):
        each = (row.count or 0) * ELEMENT_BYTES.get(row.dtype, 0)
        if each and row.size_bytes and row.size_bytes >= 2**20:
            return round(row.size_bytes / each) if row.size_bytes >= 2 * each else None
    return None


def _ratio(rows: Sequence[Row]) -> float | None:
    """busbw / algbw of the row with the largest figures; algbw from size and time, which have more digits."""
    usable = [
        (m.busbw_gbs, r.size_bytes / m.time_us / 1e3)
        for r in rows
        if (m := r.out_of_place).time_us and m.busbw_gbs and m.busbw_gbs >= 0.5 and r.size_bytes
    ]
    busbw, algbw = max(usable, default=(0.0, 0.0))
    return busbw / algbw if algbw else None


def from_json(document: Mapping[str, Any], *, where: str) -> BandwidthTable | None:
    """The file that nccl-tests writes with -J; None where it is none."""
    results = document.get("results")
    if not isinstance(results, list) or ("nccl_version" not in document and "average_bus_bandwidth" not in document):
        return None
    config = document.get("config") if isinstance(document.get("config"), dict) else {}
    assert isinstance(config, dict)
    listed = document.get("devices") or config.get("devices") or []
    devices = tuple(d for item in listed[:MAX_DEVICES] if (d := _json_device(item))) if isinstance(listed, list) else ()
    rows = tuple(r for number, item in enumerate(results[:MAX_ROWS], 1) if (r := _json_row(item, number)))
    arguments = [str(a) for a in document.get("args") or [] if isinstance(a, str)]
    program = _PROGRAM.search(" ".join(arguments))
    pairs = (str(v).partition("=") for v in document.get("env") or [] if isinstance(v, str))
    average = document.get("average_bus_bandwidth")
    ranks = devices[-1].rank + 1 if devices else ranks_of_rows(rows)
    gpu = next((d.name for d in devices if d.name), None)
    spec = hardware.gpu(gpu)
    version = document.get("nccl_version")
    return BandwidthTable(
        where=where,
        tool="nccl-tests",
        rows=rows,
        collective=PROGRAMS.get(program[1]) if program else collective_of_rows(rows),
        ranks=ranks,
        nodes=nodes_of(devices, ranks) if devices else None,
        devices=devices,
        gpu=gpu,
        gpu_class=spec.gpu_class if spec else None,
        nccl_version=library_version(version) if isinstance(version, int) else None,
        average_gbs=_float(average.get("bandwidth")) if isinstance(average, dict) else None,
        warmup=_int(config.get("warmup_iters")),
        iterations=_int(config.get("iterations")),
        settings=tuple(
            (name, redact.variable(name, value[:MAX_TEXT]))
            for name, _, value in pairs
            if name.startswith(("NCCL_", "FI_", "UCX_", "OFI_", "CUDA_VISIBLE_DEVICES"))
        ),
    )


def _json_device(item: Any) -> Device | None:
    if not isinstance(item, dict) or not isinstance(item.get("rank"), int):
        return None
    return Device(
        rank=item["rank"],
        host=str(item.get("hostname", "")).strip(),
        device=_int(item.get("device")),
        bus_id=bus_id(str(item["device_hex"]).strip()) if item.get("device_hex") else None,
        name=str(item["device_info"]).strip() if item.get("device_info") else None,
    )


def _json_row(item: Any, number: int) -> Row | None:
    if not isinstance(item, dict) or _int(item.get("size")) is None:
        return None
    return Row(
        size_bytes=_int(item.get("size")),
        count=_int(item.get("count")),
        dtype=str(item.get("type", "")),
        redop=str(item.get("redop", "")),
        out_of_place=_json_measured(item.get("out_of_place")) or Measured(),
        in_place=_json_measured(item.get("in_place")),
        line=number,
    )


def _json_measured(item: Any) -> Measured | None:
    if not isinstance(item, dict):
        return None
    return Measured(
        time_us=_float(item.get("time", item.get("cpu_time"))),
        algbw_gbs=_float(item.get("alg_bw")),
        busbw_gbs=_float(item.get("bus_bw")),
        wrong=_float(item.get("nwrong")),
    )


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def parse(lines: Iterable[str], *, where: str) -> tuple[BandwidthTable, ...]:
    """Only nccl-tests' own tables; `smoldiag.parse.tables` reads them together with all others."""
    reader = Reader(where=where)
    for number, line in enumerate(lines, 1):
        reader.read(number, line)
    return reader.finish()
