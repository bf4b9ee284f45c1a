"""Chrome traces of torch.profiler (Kineto: CUDA, ROCm, CPU) -> RankTrace.

Memory does not grow with the file but with its device events.
"""

import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec

from smoldiag.facts.trace import (
    ALLOCATE,
    COMMUNICATION,
    COMPUTE,
    LAUNCH,
    MEMORY,
    OTHER,
    SPANS,
    SYNC,
    WAIT,
    CollectiveInfo,
    Product,
    RankTrace,
)
from smoldiag.parse import trace_pieces

MAX_DIGITS = 4000  # of a whole number; Python refuses to read longer ones
MAX_CORRELATION = 1 << 62
MAX_US = 1e18  # times beyond it are no times
MAX_CACHED = 50_000  # names of the host's events, which may hold addresses
_HIGH, _LOW = r"\\u[dD][89abAB][0-9a-fA-F]{2}", r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
HALF_A_CHARACTER = re.compile(f"{_HIGH}(?!{_LOW})|(?<!{_HIGH}){_LOW}")  # of a surrogate pair
RANK_IN_NAME = re.compile(r"(?:rank|worker)[-_]?(\d{1,6})(?=[-_.]|$|of)")
NAMED = re.compile(r"trace.*\.json")
WRITTEN_BY_KINETO = re.compile(rb'"schemaVersion"|"deviceProperties"|"distributedInfo"|"torch_profiler_kwargs"')
RANK = re.compile(rb'"distributedInfo"\s*:\s*\{[^{}]{0,4096}?"rank"\s*:\s*"?(\d{1,9})\b')
WORLD_SIZE = re.compile(rb'"world_size"\s*:\s*"?(\d{1,9})\b')
_PROPERTIES = rb'"deviceProperties"\s*:\s*\[\s*\{[^}]{0,800}?'
DEVICE_NAME = re.compile(_PROPERTIES + rb'"name"\s*:\s*"([^"]{1,100})"')
CAPABILITY = re.compile(_PROPERTIES + rb'"computeMajor"\s*:\s*(\d{1,3})\s*,\s*"computeMinor"\s*:\s*(\d{1,3})')
DEVICE = {"kernel", "gpu_memcpy", "gpu_memset", "Kernel", "Memcpy", "Memset"}
RUNTIME = {"cuda_runtime", "cuda_driver", "hip_runtime", "Runtime", "runtime", "driver", "privateuse1_runtime"}
HOST = {"cpu_op", "user_annotation", "python_function", "Operator", "gpu_user_annotation"}
FLOWS = {"ac2g", "async_cpu_to_gpu", "fwdbwd", "async", "overhead", "Trace"}
STEP = "ProfilerStep"
UNSEEN = "?"
_SPAN_WORDS = {  # names of the host's events, by what the host does meanwhile
    "loader": r"enumerate\(DataLoader\)|dataloader_next|train_dataloader|(?:wait_for|next|get|load|fetch)_?batch\b",
    "gc": r"Python GC$|<built-in function collect>$|gc\.collect",
    "checkpoint": r"torch/serialization\.py\(\d+\): save$|state_dict_saver\.py\(\d+\): (?:async_)?save$|"
    r"save_checkpoint|checkpoint_save|(?i:checkpoint)er?\.save",
    "recompute": r"CheckpointFunctionBackward|torch/utils/checkpoint\.py\(\d+\): recompute_fn",
    "peers": r"(?:gloo|mpi):|c10d::barrier|\S*barrier\b",
}
_SPAN = re.compile("|".join(f"(?P<{what}>{words})" for what, words in _SPAN_WORDS.items()))
assert set(_SPAN_WORDS) == set(SPANS)
ANNOTATION = ("FSDP::", "nccl:")  # FSDP's phases by layer, and the operation whose kernel is launched within
SENDS = ("send_recv", "Generic", "collective")  # kernels that do not say which operation they are of
_CALLS = (  # what a call of the runtime is, by a part of its name; the first that fits
    ("Synchronize", SYNC),
    ("StreamWaitEvent", WAIT),
    ("cudaMalloc", ALLOCATE),
    ("cudaFree", ALLOCATE),
    ("hipMalloc", ALLOCATE),
    ("hipFree", ALLOCATE),
    ("cuMem", ALLOCATE),
)
_NO_LAUNCH = re.compile(r"Query|Get|Set|IsCapturing|Attribute|Occupancy|Event|Peek|Pointer|ModuleLoad")
ELEMENT_BYTES = {
    "Float": 4, "float": 4, "float32": 4, "Half": 2, "float16": 2, "BFloat16": 2, "bfloat16": 2, "Double": 8,
    "Long": 8, "Int": 4, "Byte": 1, "Char": 1, "Bool": 1, "Float8_e4m3fn": 1, "Float8_e5m2": 1,
}  # fmt: skip
COLLECTIVES = {  # as NCCL and torch spell them, without regard to case and underscores
    "allreduce": "all_reduce",
    "allreducecoalesced": "all_reduce",
    "allgather": "all_gather",
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
PRODUCTS = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1, "aten::_scaled_mm": 0}  # first factor
DTYPES = {"float": "float32", "double": "float64", "c10::Half": "float16", "c10::BFloat16": "bfloat16"}
WIDTHS = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}  # bytes
RESULT_WIDTH = 2  # products of fp8 are written in bf16
MAX_PRODUCTS = 1_000_000
_KERNEL = re.compile(r"nccl(?:Dev)?Kernel_?([A-Za-z]+?)(?:_|\(|$)")


TEXTS = ("collective", "dtype", "group_name", "group_ranks")
RAW = ("dims", "types")  # decoded where they are needed
MAX_HOLES = 16  # numbers per call that are not of a call


class Args(msgspec.Struct, gc=False):
    stream: int | str | float | None = None
    correlation: int | str | float | None = None
    collective: str | None = msgspec.field(default=None, name="Collective name")
    elements_in: int | str | float | None = msgspec.field(default=None, name="In msg nelems")
    elements_out: int | str | float | None = msgspec.field(default=None, name="Out msg nelems")
    dtype: str | None = None
    group_size: int | str | float | None = msgspec.field(default=None, name="Group size")
    group_name: str | None = msgspec.field(default=None, name="Process Group Name")
    group_ranks: str | None = msgspec.field(default=None, name="Process Group Ranks")
    dims: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="Input Dims")
    types: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="Input type")


class Event(msgspec.Struct, gc=False):
    name: str | None = None
    ph: str | None = None
    cat: str | None = None
    ts: float | str | None = None
    dur: float | str | None = None
    args: Args | None = None


_EVENTS = msgspec.json.Decoder(list[Event])
_DAMAGED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def looks_like(name: str, head: bytes) -> bool:
    """By its events or what Kineto writes before them; a head of somebody else's by the file's name."""
    if head.lstrip()[:1] not in (b"{", b"["):
        return False
    if b'"traceEvents"' in head or WRITTEN_BY_KINETO.search(head):
        return True
    if b'"ph"' in head and b'"ts"' in head:
        return True
    return bool(NAMED.search(name.rpartition("/")[2])) and b'"pg_config"' not in head and b'"entries"' not in head


def parse(chunks: Iterable[bytes], *, where: str, rank: int | None = None) -> RankTrace:
    """Raises ValueError where there are no events. `rank`: where the trace does not say it."""
    reader = _Reader()
    for events in trace_pieces.pieces(chunks, decode=_decoded, loosely=_loosely, head=reader.head, state=reader.state):
        reader.keep(events)
    if not reader.events:
        raise ValueError(f"{where} has no trace events")
    if reader.rank is None:
        reader.rank = rank if rank is not None else _rank_of_name(where)
    return reader.trace(where)


def plain_events(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """All that is written of the events, as it is."""
    for events in trace_pieces.pieces(chunks, decode=_plain, loosely=_plain_loosely):
        yield from (e for e in events if isinstance(e, dict))


def _plain(data: bytes) -> list[Any] | None:
    try:
        return msgspec.json.decode(data, type=list[Any])
    except _DAMAGED:
        return None


def _plain_loosely(data: bytes) -> list[Any] | None:
    """With numbers that are none (NaN) and characters that are not allowed."""
    try:
        text = HALF_A_CHARACTER.sub(r"\\ufffd", data.decode("utf-8", "replace"))
        found = json.loads(text, strict=False, parse_int=_int)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def _decoded(data: bytes) -> Sequence[Event] | None:
    """None where they are no JSON."""
    try:
        return _EVENTS.decode(data)
    except msgspec.ValidationError:
        return _loosely(data)
    except _DAMAGED:
        return None


def _loosely(data: bytes) -> list[Event] | None:
    """Events with values of other kinds than known."""
    found = _plain_loosely(data)
    return None if found is None else [_event(e) for e in found if isinstance(e, dict)]


def _int(digits: str) -> int | float:
    return int(digits) if len(digits) < MAX_DIGITS else float("inf")


def _event(given: dict[str, Any]) -> Event:
    args = given.get("args")
    kept: dict[str, Any] = {}
    if isinstance(args, dict):
        for f in msgspec.structs.fields(Args):
            value = args.get(f.encode_name)
            if f.name in RAW:
                kept[f.name] = msgspec.Raw(msgspec.json.encode(value))
            elif f.name in TEXTS:
                kept[f.name] = None if value is None else str(value)
            elif isinstance(value, str | int | float):
                kept[f.name] = value
    ts, dur = given.get("ts"), given.get("dur")
    return Event(
        name=None if given.get("name") is None else str(given["name"]),
        ph=given["ph"] if isinstance(given.get("ph"), str) else None,
        cat=given["cat"] if isinstance(given.get("cat"), str) else None,
        ts=ts if isinstance(ts, str | float | int) else None,
        dur=dur if isinstance(dur, str | float | int) else None,
        args=Args(**kept) if kept else None,
    )


class _Reader:
    """Collects what is kept of the events."""

    def __init__(self) -> None:
        self.events = 0
        self.state = trace_pieces.State()
        self.with_stack = False
        self.rank: int | None = None
        self.world_size: int | None = None
        self.device: str | None = None
        self.capability: tuple[int, int] | None = None
        self.categories: dict[str | None, int] = {None: _NONE}
        self.names: dict[tuple[str, bool], int] = {}
        self.name_of, self.start, self.end = array("l"), array("d"), array("d")
        self.stream, self.correlation = array("l"), array("q")
        self.streams: dict[object, int] = {}
        self.collectives: dict[int, CollectiveInfo] = {}
        self.known_collectives: dict[tuple[object, ...], CollectiveInfo] = {}
        self.call_start, self.call_end = array("d"), array("d")
        self.call_kind, self.call_correlation = bytearray(), array("q")
        self.call_kinds: dict[str | None, int] = {}
        self.span_names: dict[str | None, str] = {}
        self.spans: dict[str, list[tuple[float, float]]] = {}
        self.products: list[tuple[float, float, Product]] = []
        self.known_products: dict[tuple[str, bytes, bytes], Product | None] = {}
        self.annotations: list[tuple[str, float, float]] = []
        self.steps: dict[str, tuple[float, float]] = {}
        self.last_step = float("-inf")

    def head(self, text: bytes) -> None:
        """rank, world size and device stand before or behind the events."""
        if self.rank is None and (match := RANK.search(text)):
            self.rank = int(match[1])
        if self.world_size is None and (match := WORLD_SIZE.search(text)):
            self.world_size = int(match[1])
        if self.device is None and (match := DEVICE_NAME.search(text)):
            self.device = match[1].decode(errors="replace")
        if self.capability is None and (match := CAPABILITY.search(text)):
            self.capability = (int(match[1]), int(match[2]))

    def keep(self, events: Sequence[Event]) -> None:
        self.events += len(events)
        categories, span_names = self.categories, self.span_names
        for event in events:
            cat = event.cat
            category = categories.get(cat)
            if category is None:
                category = categories[cat] = _category(cat)
                self.with_stack = self.with_stack or cat == "python_function"
            if category == _NONE:
                continue
            what = ""
            if category == _HOST:
                name = event.name
                what = span_names.get(name, UNSEEN)
                if what == UNSEEN:
                    if len(span_names) > MAX_CACHED:
                        span_names.clear()
                    what = span_names[name] = _span(name, cat)
                if not what:
                    continue
            if event.ph != "X":
                continue
            try:
                start = float(event.ts)  # type: ignore[arg-type]
                end = start + float(event.dur)  # type: ignore[arg-type]
                if not (-MAX_US < start <= end < MAX_US):
                    raise ValueError
                if category == _HOST:
                    self._host(event, what, start, end)
                elif category == _RUNTIME:
                    self._call(event, start, end)
                else:
                    self._device(event, start, end, synchronises=category == _OTHER_DEVICE)
            except (ValueError, TypeError, OverflowError):
                self.state.damaged += 1

    def _host(self, event: Event, what: str, start: float, end: float) -> None:
        name = event.name or ""
        if what == STEP:
            self.last_step = max(self.last_step, start)
            if event.cat != "gpu_user_annotation":
                self.steps.setdefault(name, (start, end))
        elif event.cat == "gpu_user_annotation":
            return
        elif what == "product":
            made = self._product(name, event.args)
            if made is not None and len(self.products) < MAX_PRODUCTS:
                self.products.append((start, end, made))
        elif what == "annotation":
            self.annotations.append((name, start, end))
        else:
            self.spans.setdefault(what, []).append((start, end))

    def _product(self, op: str, args: Args | None) -> Product | None:
        if args is None:
            return None
        key = op, bytes(args.dims), bytes(args.types)
        if key not in self.known_products:
            if len(self.known_products) > MAX_CACHED:
                self.known_products.clear()
            self.known_products[key] = product(*key)
        return self.known_products[key]

    def _call(self, event: Event, start: float, end: float) -> None:
        kind = self.call_kinds.get(event.name, -1)
        if kind < 0:
            kind = self.call_kinds[event.name] = _kind_of_call(event.name or "")
        if kind == _NO_CALL:
            return
        correlation = event.args.correlation if event.args else None
        self.call_start.append(start)
        self.call_end.append(end)
        self.call_kind.append(kind)
        self.call_correlation.append(int(correlation) % MAX_CORRELATION if correlation is not None else -1)

    def _device(self, event: Event, start: float, end: float, *, synchronises: bool) -> None:
        args, name = event.args, event.name or ""
        stream = args.stream if args else None
        if synchronises and (stream is None or float(stream) < 0):
            return
        correlation = args.correlation if args else None
        correlation = int(correlation) % MAX_CORRELATION if correlation is not None else -1
        place = self.names.get((name, synchronises), -1)
        if place < 0:
            place = self.names[name, synchronises] = len(self.names)
        if not synchronises and kind_of(name) == COMMUNICATION:
            self.collectives[len(self.start)] = self._collective(name, args)
        self.name_of.append(place)
        self.start.append(start)
        self.end.append(end)
        self.stream.append(self.streams.setdefault(stream, len(self.streams)))
        self.correlation.append(correlation)

    def _collective(self, name: str, args: Args | None) -> CollectiveInfo:
        key = (name, args and msgspec.structs.astuple(args)[2 : -len(RAW)])
        info = self.known_collectives.get(key)
        if info is None:
            info = self.known_collectives[key] = collective(name, args)
        return info

    def trace(self, where: str) -> RankTrace:
        notes = ["it is cut off; what stands before the cut was read"] if self.state.cut_off else []
        if self.state.damaged:
            notes.append(f"{self.state.damaged} damaged events in it were left out")
        calls = _order(self.call_start)
        call_of = _places(_put(self.call_correlation, calls))
        events = _order(self.start)
        correlation = _put(self.correlation, events)
        places = range(len(self.start)) if events is None else events
        call = array("l", map(call_of, correlation))
        call_start = _put(self.call_start, calls)
        annotations = tuple(sorted(self.annotations, key=lambda a: a[1]))
        collectives = {i: self.collectives[at] for i, at in enumerate(places) if at in self.collectives}
        return RankTrace(
            where=where,
            rank=self.rank if self.rank is not None else 0,
            world_size=self.world_size,
            device=self.device,
            capability=self.capability,
            names=tuple(name for name, _ in self.names),
            name_kind=bytes(OTHER if synchronises else kind_of(name) for name, synchronises in self.names),
            name_of=_put(self.name_of, events),
            start=_put(self.start, events),
            end=_put(self.end, events),
            stream=_put(self.stream, events),
            call=call,
            collective=_named(collectives, call, call_start, annotations),
            call_start=call_start,
            call_end=_put(self.call_end, calls),
            call_kind=bytes(self.call_kind if calls is None else map(self.call_kind.__getitem__, calls)),
            steps=tuple(sorted(((n, s, e) for n, (s, e) in self.steps.items()), key=lambda step: step[1])),
            last_step_us=self.last_step if self.steps else None,
            spans={what: tuple(sorted(spans)) for what, spans in self.spans.items()},
            products=tuple(sorted(self.products, key=lambda p: p[0])),
            annotations=annotations,
            with_stack=self.with_stack,
            notes=tuple(notes),
        )


def _named(
    collectives: dict[int, CollectiveInfo],
    call: "array[int]",
    call_start: "array[float]",
    annotations: tuple[tuple[str, float, float], ...],
) -> dict[int, CollectiveInfo]:
    """Kernels that serve several operations (send and receive; all of RCCL) by the annotation of their launch."""
    operations = [(start, end, name[5:]) for name, start, end in annotations if name.startswith("nccl:")]
    starts = [start for start, _, _ in operations]
    made = {}
    for i, info in collectives.items():
        if info.name in SENDS and call[i] >= 0 and operations:
            launched = call_start[call[i]]
            at = bisect_right(starts, launched) - 1
            if at >= 0 and launched <= operations[at][1]:
                info = replace(info, name=spelled(operations[at][2]))
        made[i] = info
    return made


_NONE, _DEVICE, _OTHER_DEVICE, _RUNTIME, _HOST = range(5)
_NO_CALL = 255


def _category(cat: str | None) -> int:
    if cat in FLOWS:
        return _NONE
    if cat in DEVICE:
        return _DEVICE
    if cat in RUNTIME or (cat or "").endswith(("_runtime", "_driver")):
        return _RUNTIME
    if cat in HOST:
        return _HOST
    return _OTHER_DEVICE if cat else _NONE


def _span(name: str | None, cat: str | None) -> str:
    """What the host does meanwhile, by the name of its event; empty where that is of no interest."""
    if not name:
        return ""
    if name.startswith(STEP):
        return STEP
    if name.startswith(ANNOTATION):
        return "annotation"
    if name in PRODUCTS:
        return "product"
    match = _SPAN.match(name)
    if match is None and cat in ("user_annotation", "gpu_user_annotation"):
        match = _SPAN.search(name)
    return (match.lastgroup or "") if match else ""


def _kind_of_call(name: str) -> int:
    for part, kind in _CALLS:
        if part in name:
            return kind
    if "Launch" in name or "Memcpy" in name or "Memset" in name:
        return LAUNCH
    return _NO_CALL if _NO_LAUNCH.search(name) else LAUNCH


def _order(start: "array[float]") -> list[int] | None:
    """The places in order of their start; None where they stand so."""
    if all(a <= b for a, b in pairwise(start)):
        return None
    return sorted(range(len(start)), key=start.__getitem__)


def _put(column: Any, order: list[int] | None) -> Any:
    return column if order is None else array(column.typecode, map(column.__getitem__, order))


def _places(correlations: "array[int]") -> Callable[[int], int]:
    """From a correlation to the place of the host's call; -1 where there is none.

    Kineto numbers them in sequence: a plain array holds them in a tenth of a dict's memory.
    """
    known = [c for c in correlations if c >= 0]
    if not known:
        return lambda correlation: -1
    low, high = min(known), max(known)
    if high - low > len(known) * MAX_HOLES:
        named = {c: i for i, c in enumerate(correlations) if c >= 0}
        return lambda correlation: named.get(correlation, -1)
    places = array("l", [-1]) * (high - low + 1)
    for i, c in enumerate(correlations):
        if c >= 0:
            places[c - low] = i
    return lambda correlation: places[correlation - low] if low <= correlation <= high else -1


def kind_of(name: str) -> int:
    """By the name of a device event."""
    if name.startswith(("ncclKernel", "ncclDevKernel", "ncclDev", "nccl:", "rccl")):
        return COMMUNICATION
    return MEMORY if "Memcpy" in name or "Memset" in name else COMPUTE


def collective(kernel: str, args: Args | None) -> CollectiveInfo:
    """From what the profiler recorded with the kernel, else from the kernel's name."""
    if args is not None and args.collective:
        name = spelled(args.collective)
        elements = max(_whole(args.elements_in) or 0, _whole(args.elements_out) or 0)
        width = ELEMENT_BYTES.get(args.dtype or "")
        group = args.group_ranks or args.group_name or ""
        return CollectiveInfo(
            name=name,
            group=group[:200],
            group_size=_whole(args.group_size),
            size_bytes=elements * width if elements and width else None,
            dtype=args.dtype or "",
        )
    match = _KERNEL.match(kernel)
    return CollectiveInfo(name=spelled(match[1]) if match else "collective")


def product(op: str, dims: bytes, types: bytes) -> Product | None:
    """2 m n k operations per matrix product, as torch.utils.flop_counter counts them; None without two factors."""
    first = PRODUCTS[op]
    try:
        a, b = msgspec.json.decode(dims, type=list[list[int]])[first : first + 2]
        dtype = msgspec.json.decode(types, type=list[str])[first]
    except (msgspec.MsgspecError, ValueError, IndexError):
        return None
    if len(a) != len(b) or len(a) not in (2, 3) or a[-1] != b[-2] or min(*a, *b) < 1:
        return None
    batch, (m, k), n = a[0] if len(a) == 3 else 1, a[-2:], b[-1]
    dtype = DTYPES.get(dtype, dtype.removeprefix("c10::").lower())
    width = WIDTHS.get(dtype, 1 if dtype.startswith("float8") else 0)
    if not width:
        return None
    return Product(
        op=op,
        dtype=dtype,
        shape=(*a[:-2], m, n, k),
        flops=2.0 * batch * m * n * k,
        num_bytes=float(batch * width * (m * k + k * n) + batch * m * n * max(width, RESULT_WIDTH)),
    )


def spelled(name: str) -> str:
    return COLLECTIVES.get(name.lower().replace("_", ""), name)


def _whole(value: int | str | float | None) -> int | None:
    try:
        return None if value is None else int(value)
    except (ValueError, OverflowError):
        return None


def _rank_of_name(where: str) -> int | None:
    match = RANK_IN_NAME.search(where.rpartition("/")[2])
    return int(match[1]) if match else None
