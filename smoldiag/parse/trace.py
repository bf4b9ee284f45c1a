"""Chrome traces of torch.profiler (Kineto: CUDA, ROCm, CPU) -> RankTrace.

The events are decoded in pieces, so that memory does not grow with the file but with its device events. What is cut off
at the end of a file is left out, with a note.
"""

import re
from array import array
from collections.abc import Iterable, Iterator
from math import nan
from typing import Any

import msgspec

from smoldiag.facts.trace import COMMUNICATION, COMPUTE, MEMORY, CollectiveInfo, RankTrace

PIECE_BYTES = 8 << 20
MAX_HEAD_BYTES = 64 << 20  # of what stands before the events
MAX_EVENT_BYTES = 64 << 20
BOUNDARY = re.compile(rb"\}\s*,\s*\{")
ARRAY_END = re.compile(rb"\}\s*\]")
MAX_ENDS = 16  # arrays that may stand behind the events, or in the last ones
EVENTS = re.compile(rb'"traceEvents"\s*:\s*\[')
RANK_IN_NAME = re.compile(r"(?:rank|worker)[-_]?(\d{1,6})(?=[-_.]|$|of)")
NAMED = re.compile(r"trace.*\.json")
RANK = re.compile(rb'"distributedInfo"\s*:\s*\{[^{}]{0,4096}?"rank"\s*:\s*"?(\d+)')
WORLD_SIZE = re.compile(rb'"world_size"\s*:\s*"?(\d+)')
DEVICE_NAME = re.compile(rb'"deviceProperties"\s*:\s*\[\s*\{[^}]{0,400}?"name"\s*:\s*"([^"]{1,100})"')
SEARCHED_BYTES = 1 << 16  # from a piece's end backwards, for the end of an event
DEVICE = {"kernel", "gpu_memcpy", "gpu_memset", "Kernel", "Memcpy", "Memset"}
RUNTIME = {"cuda_runtime", "cuda_driver", "hip_runtime", "Runtime", "runtime", "driver", "privateuse1_runtime"}
STEP = "ProfilerStep"
LOADER = "enumerate(DataLoader)"
ELEMENT_BYTES = {
    "Float": 4, "float": 4, "float32": 4, "Half": 2, "float16": 2, "BFloat16": 2, "bfloat16": 2, "Double": 8,
    "Long": 8, "Int": 4, "Byte": 1, "Char": 1, "Bool": 1, "Float8_e4m3fn": 1, "Float8_e5m2": 1,
}  # fmt: skip
COLLECTIVES = {  # as NCCL and torch spell them, without regard to case and underscores
    "allreduce": "all_reduce",
    "allgather": "all_gather",
    "_allgather_base": "all_gather",
    "allgatherbase": "all_gather",
    "allgatherintotensorcoalesced": "all_gather",
    "reducescatter": "reduce_scatter",
    "reducescatterbase": "reduce_scatter",
    "reducescattertensorcoalesced": "reduce_scatter",
    "broadcast": "broadcast",
    "reduce": "reduce",
    "alltoall": "all_to_all",
    "alltoallv": "all_to_all",
    "alltoallbase": "all_to_all",
    "sendrecv": "send_recv",
    "send": "send_recv",
    "recv": "send_recv",
}
_KERNEL = re.compile(r"nccl(?:Dev)?Kernel_?([A-Za-z]+?)(?:_|\(|$)")


class Args(msgspec.Struct, gc=False):
    stream: int | str | float | None = None
    correlation: int | str | float | None = None
    collective: str | None = msgspec.field(default=None, name="Collective name")
    elements_in: int | str | float | None = msgspec.field(default=None, name="In msg nelems")
    elements_out: int | str | float | None = msgspec.field(default=None, name="Out msg nelems")
    dtype: str | None = None
    group_size: int | str | float | None = msgspec.field(default=None, name="Group size")
    group_name: str | None = msgspec.field(default=None, name="Process Group Name")
    group_ranks: Any = msgspec.field(default=None, name="Process Group Ranks")


class Event(msgspec.Struct, gc=False):
    name: str | int | float | None = None
    ph: str | None = None
    cat: str | None = None
    ts: float | str | None = None
    dur: float | str | None = None
    args: Args | None = None


class _Loose(msgspec.Struct, gc=False):
    """An event whose arguments are of no known form."""

    name: Any = None
    ph: Any = None
    cat: Any = None
    ts: Any = None
    dur: Any = None
    args: Any = None


_EVENTS = msgspec.json.Decoder(list[Event])
_LOOSE = msgspec.json.Decoder(list[_Loose])


def looks_like(name: str, head: bytes) -> bool:
    """By its events or what Kineto writes before them; a head of somebody else's by the file's name."""
    if head.lstrip()[:1] not in (b"{", b"["):
        return False
    if b'"traceEvents"' in head or (b'"schemaVersion"' in head and b'"deviceProperties"' in head):
        return True
    if b'"ph"' in head and b'"ts"' in head:
        return True
    return bool(NAMED.search(name.rpartition("/")[2])) and b'"pg_config"' not in head and b'"entries"' not in head


def parse(chunks: Iterable[bytes], *, where: str, rank: int | None = None) -> RankTrace:
    """Raises ValueError where there are no events. `rank`: where the trace does not say it."""
    reader = _Reader()
    notes: list[str] = []
    pieces = _pieces(iter(chunks), reader, notes)
    for piece in pieces:
        reader.take(piece)
    if not reader.events:
        raise ValueError(f"{where} has no trace events")
    if reader.rank is None:
        reader.rank = rank if rank is not None else _rank_of_name(where)
    return reader.trace(where, notes)


def _pieces(chunks: Iterator[bytes], reader: "_Reader", notes: list[str]) -> Iterator[bytes]:
    """Arrays of whole events."""
    buffer = b""
    found = None
    while found is None:
        chunk = next(chunks, b"")
        if not chunk:
            return
        buffer += chunk
        if buffer.lstrip()[:1] == b"[":
            buffer, found = buffer.lstrip()[1:], True
            break
        match = EVENTS.search(buffer)
        if match:
            reader.head(buffer[: match.start()])
            buffer, found = buffer[match.end() :], True
        elif len(buffer) > MAX_HEAD_BYTES:
            raise ValueError("no trace events in its first 64 MiB")
    while True:
        chunk = next(chunks, b"")
        buffer += chunk
        if chunk and len(buffer) < PIECE_BYTES:
            continue
        if not chunk:
            yield from _last(buffer, reader, notes)
            return
        cut = _last_boundary(buffer)
        if cut is None:
            if len(buffer) > MAX_EVENT_BYTES:
                raise ValueError("one event is longer than 64 MiB")
            continue
        yield buffer[:cut]
        buffer = buffer[cut:].lstrip()[1:]


def _last_boundary(buffer: bytes) -> int | None:
    """Behind the last event that is whole."""
    for begin in (max(0, len(buffer) - SEARCHED_BYTES), 0):
        cut = None
        for match in BOUNDARY.finditer(buffer, begin):
            cut = match.start() + 1
        if cut is not None:
            return cut
    return None


def _last(buffer: bytes, reader: "_Reader", notes: list[str]) -> Iterator[bytes]:
    """What stands behind the events, or the cut."""
    ends = [match.start() + 1 for match in ARRAY_END.finditer(buffer)] or [buffer.find(b"]")]
    for end in reversed(ends[-MAX_ENDS:]):
        if end >= 0 and reader.is_whole(buffer[:end]):
            if buffer[:end].strip():
                yield buffer[:end]
            reader.head(buffer[end:])
            return
    cut = _last_boundary(buffer)
    notes.append("it is cut off; what stands before the cut was read")
    if cut is not None:
        yield buffer[:cut]


class _Reader:
    """Collects what is kept of the events."""

    def __init__(self) -> None:
        self.events = 0
        self.rank: int | None = None
        self.world_size: int | None = None
        self.device: str | None = None
        self.names: dict[str, int] = {}
        self.rows: list[tuple[float, float, int, int, int | None, CollectiveInfo | None]] = []
        self.launches: dict[int, float] = {}
        self.steps: dict[str, tuple[float, float]] = {}
        self.data_waits: list[tuple[float, float]] = []

    def is_whole(self, events: bytes) -> bool:
        try:
            _LOOSE.decode(b"[" + events + b"]")
        except msgspec.MsgspecError:
            return False
        return True

    def head(self, text: bytes) -> None:
        """rank, world size and device stand before or behind the events."""
        if self.rank is None and (match := RANK.search(text)):
            self.rank = int(match[1])
        if self.world_size is None and (match := WORLD_SIZE.search(text)):
            self.world_size = int(match[1])
        if self.device is None and (match := DEVICE_NAME.search(text)):
            self.device = match[1].decode(errors="replace")

    def take(self, piece: bytes) -> None:
        data = b"[" + piece + b"]"
        try:
            for event in _EVENTS.decode(data):
                self.event(event.name, event.ph, event.cat, event.ts, event.dur, event.args)
        except msgspec.ValidationError:
            for loose in _LOOSE.decode(data):
                self.event(loose.name, loose.ph, loose.cat, loose.ts, loose.dur, _args(loose.args))
        except msgspec.DecodeError as error:
            raise ValueError(f"its events are no JSON: {error}") from None

    def event(self, name: Any, ph: Any, cat: Any, ts: Any, dur: Any, args: Args | None) -> None:
        self.events += 1
        if ph != "X" or dur is None or ts is None:
            return
        if cat in RUNTIME:
            if args is not None and args.correlation is not None:
                self.launches[int(args.correlation)] = float(ts)
            return
        if cat in DEVICE:
            text = str(name)
            place = self.names.setdefault(text, len(self.names))
            correlation = int(args.correlation) if args is not None and args.correlation is not None else None
            kind = kind_of(text)
            info = collective(text, args) if kind == COMMUNICATION else None
            self.rows.append((float(ts), float(ts) + float(dur), place, kind, correlation, info))
        elif isinstance(name, str) and name.startswith((STEP, LOADER)) and cat != "gpu_user_annotation":
            start, end = float(ts), float(ts) + float(dur)
            if name.startswith(LOADER):
                self.data_waits.append((start, end))
            else:
                self.steps.setdefault(name, (start, end))

    def trace(self, where: str, notes: list[str]) -> RankTrace:
        self.rows.sort(key=lambda row: row[0])
        launches = self.launches
        return RankTrace(
            where=where,
            rank=self.rank if self.rank is not None else 0,
            world_size=self.world_size,
            device=self.device,
            names=tuple(self.names),
            name_of=array("l", (row[2] for row in self.rows)),
            start=array("d", (row[0] for row in self.rows)),
            end=array("d", (row[1] for row in self.rows)),
            kind=bytes(row[3] for row in self.rows),
            launch=array("d", (launches.get(row[4], nan) if row[4] is not None else nan for row in self.rows)),
            collective={i: row[5] for i, row in enumerate(self.rows) if row[5] is not None},
            steps=tuple(sorted(((n, s, e) for n, (s, e) in self.steps.items()), key=lambda step: step[1])),
            data_waits=tuple(sorted(self.data_waits)),
            notes=tuple(notes),
        )


def kind_of(name: str) -> int:
    """By the name of a device event, as HolisticTraceAnalysis tells them."""
    if name.startswith(("ncclKernel", "ncclDevKernel", "ncclDev", "nccl:", "rccl")):
        return COMMUNICATION
    return MEMORY if "Memcpy" in name or "Memset" in name else COMPUTE


def collective(kernel: str, args: Args | None) -> CollectiveInfo:
    """From what the profiler recorded with the kernel, else from the kernel's name."""
    if args is not None and args.collective:
        name = spelled(args.collective)
        elements = max(_whole(args.elements_in) or 0, _whole(args.elements_out) or 0)
        width = ELEMENT_BYTES.get(args.dtype or "")
        ranks = args.group_ranks
        group = str(ranks) if isinstance(ranks, str) and ranks else f"[{ranks}]" if ranks else args.group_name or ""
        return CollectiveInfo(
            name=name,
            group=group[:200],
            group_size=_whole(args.group_size),
            size_bytes=elements * width if elements and width else None,
            dtype=args.dtype or "",
        )
    match = _KERNEL.match(kernel)
    return CollectiveInfo(name=spelled(match[1]) if match else "collective")


def spelled(name: str) -> str:
    return COLLECTIVES.get(name.lower().replace("_", ""), name)


TEXTS = ("collective", "dtype", "group_name")


def _args(given: Any) -> Args | None:
    if not isinstance(given, dict):
        return None
    kept: dict[str, Any] = {}
    for field in msgspec.structs.fields(Args):
        value = given.get(field.encode_name)
        if field.name in TEXTS:
            kept[field.name] = None if value is None else str(value)
        elif isinstance(value, str | int | float) or field.name == "group_ranks":
            kept[field.name] = value
    return Args(**kept)


def _whole(value: int | str | float | None) -> int | None:
    try:
        return None if value is None else int(value)
    except ValueError:
        return None


def _rank_of_name(where: str) -> int | None:
    match = RANK_IN_NAME.search(where.rpartition("/")[2])
    return int(match[1]) if match else None
