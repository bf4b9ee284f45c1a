"""What a profiler's trace says of one rank, as columns, and what all traces say together. Times in microseconds."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan

COMPUTE, COMMUNICATION, MEMORY, OTHER = range(4)  # kinds of device events; OTHER: synchronisation, not counted as busy
LAUNCH, SYNC, WAIT, ALLOCATE = range(4)  # kinds of the host's calls
SPANS = ("loader", "gc", "checkpoint", "recompute", "peers")  # what the host was seen doing


@dataclass(frozen=True, kw_only=True)
class CollectiveInfo:
    """What the profiler knows of a collective's kernel."""

    name: str  # all_reduce, as smoldiag names it
    group: str = ""  # its ranks or name, as the trace has it
    group_size: int | None = None
    size_bytes: int | None = None  # as nccl-tests counts size
    dtype: str = ""


@dataclass(frozen=True, kw_only=True)
class Product:
    """A matrix product by the shapes that its operator was called with."""

    op: str  # aten::addmm
    dtype: str  # as torch spells it: bfloat16
    shape: tuple[int, ...]  # batch (where there is one), m, n, k
    flops: float
    num_bytes: float  # both factors read and the result written, once


@dataclass(frozen=True, kw_only=True, eq=False)
class RankTrace:
    """The device's events of one rank in order of their start, and what of the host explains its gaps."""

    where: str
    rank: int
    world_size: int | None = None
    device: str | None = None
    capability: tuple[int, int] | None = None  # of the device: (9, 0)
    names: tuple[str, ...] = ()
    name_kind: bytes = b""  # COMPUTE, COMMUNICATION, MEMORY, OTHER of each name
    name_of: "array[int]" = field(default_factory=lambda: array("l"))  # place in `names`
    start: "array[float]" = field(default_factory=lambda: array("d"))
    end: "array[float]" = field(default_factory=lambda: array("d"))
    stream: "array[int]" = field(default_factory=lambda: array("l"))
    call: "array[int]" = field(default_factory=lambda: array("l"))  # the host's call that launched it; -1: not known
    collective: Mapping[int, CollectiveInfo] = field(default_factory=dict)  # of communication kernels, by their place
    call_start: "array[float]" = field(default_factory=lambda: array("d"))  # of the host's calls that matter, in order
    call_end: "array[float]" = field(default_factory=lambda: array("d"))
    call_kind: bytes = b""  # LAUNCH, SYNC, WAIT, ALLOCATE
    steps: tuple[tuple[str, float, float], ...] = ()  # ProfilerStep#N, start, end
    last_step_us: float | None = None  # the last start of a step, the device's annotations among them
    spans: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)  # of the host, by SPANS
    products: tuple[tuple[float, float, Product], ...] = ()  # calls of the host in order: start, end
    annotations: tuple[tuple[str, float, float], ...] = ()  # FSDP:: and nccl: of the host: name, start, end
    with_stack: bool = False  # Python's calls were recorded: they slow the host
    notes: tuple[str, ...] = ()

    def launch(self, i: int) -> float:
        """When the host launched a device event; nan where that is not known."""
        call = self.call[i]
        return self.call_start[call] if call >= 0 else nan


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a device did in a window. Communication may overlap computation."""

    window_us: float
    compute_us: float
    communication_us: float
    memory_us: float
    idle_us: float
    exposed_communication_us: float
    overlap_percent: float | None  # of the communication; None where there is none


@dataclass(frozen=True, kw_only=True)
class StepShare(Share):
    """One step of a rank: from the first kernel that it launched to the first of the next step."""

    rank: int
    name: str  # ProfilerStep#N


@dataclass(frozen=True, kw_only=True)
class RankShare(Share):
    """All that counts of one rank's trace. Idle is split by what the host did until it launched the next kernel."""

    rank: int
    idle_launch_us: float | None = None  # idle until the host launched the next kernel, whatever it did
    idle_data_us: float | None = None  # of that: it waited for its loader
    idle_gc_us: float | None = None  # of that: Python collected garbage
    idle_checkpoint_us: float | None = None  # of that: it saved a checkpoint
    idle_peer_us: float | None = None  # of that: it waited for other ranks in a barrier or a collective of the host
    idle_allocate_us: float | None = None  # of that: it took memory from the driver or gave it back
    waited_for_peers_us: float | None = None  # in collectives, until the last rank came
    recompute_us: float | None = None  # computed again for activation checkpointing
    pageable_us: float | None = None  # copies from or to memory of the host that is not pinned
    step_us: float | None = None  # median of the host's steps
    kernels: int = 0
    short_kernels_percent: float = 0.0  # kernels shorter than a launch takes
    with_stack: bool = False  # Python's calls were recorded, which slows the host


@dataclass(frozen=True, kw_only=True)
class CollectiveShare:
    """One collective over the ranks whose traces are there."""

    name: str
    size_bytes: int | None
    group: str
    ranks: tuple[int, ...]
    transfer_us: float  # the shortest stay of all ranks: that of the last to come
    wait_us: float  # how much longer the others stayed at most
    last_rank: int
    busbw_gbs: float | None
    algbw_gbs: float | None = None
    late_ranks: tuple[int, ...] = ()  # the last one and those that came with it; empty where nobody waited


@dataclass(frozen=True, kw_only=True)
class Late:
    """Ranks that come late to one kind of collective again and again."""

    name: str  # of the collective
    ranks: tuple[int, ...]
    times: int  # that one of them came last
    of: int  # times that somebody waited
    us: float  # waited for them


@dataclass(frozen=True, kw_only=True)
class LayerShare:
    """FSDP's collectives of one layer, over all ranks and steps."""

    layer: str
    all_gather_us: float
    exposed_all_gather_us: float  # while nothing is computed: the prefetch does not hide it
    reduce_scatter_us: float
    exposed_reduce_scatter_us: float


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What a device can at best."""

    tflops: Mapping[str, float]  # dense, by dtype
    memory_gb_per_s: float | None
    source: str


@dataclass(frozen=True, kw_only=True)
class ProductShare:
    """All calls of a matrix product of one shape, over all ranks, beside what the device can (the roofline)."""

    op: str
    dtype: str
    shape: tuple[int, ...]
    count: int
    device_us: float
    tflops: float
    gb_per_s: float
    flop_per_byte: float
    bound: str | None  # compute | memory: what would limit it; None where the device's figures are not known
    peak_tflops: float | None  # dense, of this dtype
    of_roof: float | None

    @property
    def text(self) -> str:
        """aten::bmm 96x3137x64x3137 bfloat16: batch, m, n, k."""
        return f"{self.op} {'x'.join(map(str, self.shape))} {self.dtype}"


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Matrix products whose shapes were recorded, beside the peaks of the device."""

    products: tuple[ProductShare, ...]  # the longest first
    device_us: float  # of all of them
    of_compute: float  # share of the computation, 0-1
    of_peak: float | None  # of the dense peak of their dtypes, while they run
    memory_bound: float | None  # share of their time in shapes that the memory limits
    source: str  # of the peaks


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """The step's time with one cause removed, from a replay of what waited for what."""

    cause: str
    without: str  # what was removed, in words
    step_us: float  # as it would be
    saved_us: float


@dataclass(frozen=True, kw_only=True)
class Replay:
    """How the replay was made, and how well it reproduces the unchanged trace."""

    steps: int  # that were replayed, the middle ones
    step_us: float  # measured: from the first event to the last, by steps
    replayed_us: float  # the same from the replay of the unchanged trace
    error_percent: float
    what_if: tuple[WhatIf, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Trace:
    """`facts.trace` of the report."""

    definition: str
    ranks: tuple[RankShare, ...]
    collectives: tuple[CollectiveShare, ...] = ()
    steps: tuple[StepShare, ...] = ()
    layers: tuple[LayerShare, ...] = ()
    top_kernels: tuple[tuple[str, int, float], ...] = ()  # name, calls, microseconds over all ranks
    late: tuple[Late, ...] = ()  # the costliest first
    last_to_come: Mapping[str, Mapping[int, int]] = field(default_factory=dict)  # collective -> rank -> how often
    waited_us: Mapping[int, float] = field(default_factory=dict)  # rank -> what others waited for it
    clock_offsets_us: Mapping[int, float] = field(default_factory=dict)  # against the first rank, by the collectives
    older_kernels: Mapping[str, float] = field(default_factory=dict)  # architecture -> share of the computation, 0-1
    roofline: Roofline | None = None
    replay: Replay | None = None
    files: Mapping[int, str] = field(default_factory=dict)  # rank -> its trace
    device: str | None = None
    capability: tuple[int, int] | None = None
    device_events: int = 0
    cpu_only: tuple[int, ...] = ()  # ranks whose traces have no event of a GPU
