"""What a profiler's trace says of one rank, as columns, and what all traces say together. Times in microseconds."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

from smoldiag.facts.evidence import Evidence

COMPUTE, COMMUNICATION, MEMORY = range(3)


@dataclass(frozen=True, kw_only=True)
class CollectiveInfo:
    """What the profiler knows of a collective's kernel."""

    name: str  # all_reduce, as smoldiag names it
    group: str = ""  # its ranks or name, as the trace has it
    group_size: int | None = None
    size_bytes: int | None = None  # as nccl-tests counts size
    dtype: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class RankTrace:
    """The device's events of one rank in order of their start, and what of the host explains its gaps."""

    where: str
    rank: int
    world_size: int | None = None
    device: str | None = None
    names: tuple[str, ...] = ()
    name_of: "array[int]" = field(default_factory=lambda: array("l"))  # place in `names`
    start: "array[float]" = field(default_factory=lambda: array("d"))
    end: "array[float]" = field(default_factory=lambda: array("d"))
    kind: bytes = b""  # COMPUTE, COMMUNICATION, MEMORY
    launch: "array[float]" = field(default_factory=lambda: array("d"))  # when the host launched it; nan: not known
    collective: Mapping[int, CollectiveInfo] = field(default_factory=dict)  # of communication kernels, by their place
    steps: tuple[tuple[str, float, float], ...] = ()  # ProfilerStep#N, start, end
    data_waits: tuple[tuple[float, float], ...] = ()  # in the loader's __next__
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RankShare:
    """What the device of one rank did in the window."""

    rank: int
    window_us: float
    compute_us: float
    communication_us: float
    memory_us: float
    idle_us: float
    exposed_communication_us: float
    overlap_percent: float | None  # of the communication; None where there is none
    idle_launch_us: float | None = None  # idle until the host launched the next kernel
    idle_data_us: float | None = None  # of that, while the host waited for its loader
    kernels: int = 0
    short_kernels_percent: float = 0.0  # kernels shorter than a launch takes


@dataclass(frozen=True, kw_only=True)
class CollectiveShare:
    """The occurrences of one collective over the ranks whose traces are there."""

    name: str
    size_bytes: int | None
    group: str
    ranks: tuple[int, ...]
    transfer_us: float  # the shortest stay of all ranks: that of the last to come
    wait_us: float  # how much longer the others stayed at most
    last_rank: int
    busbw_gbs: float | None


@dataclass(frozen=True, kw_only=True)
class Trace:
    """`facts.trace` of the report."""

    definition: str
    ranks: tuple[RankShare, ...]
    collectives: tuple[CollectiveShare, ...] = ()
    top_kernels: tuple[tuple[str, int, float], ...] = ()  # name, calls, microseconds over all ranks
    late: Mapping[str, Mapping[int, int]] = field(default_factory=dict)  # collective -> rank -> how often it came last
    waited_us: Mapping[int, float] = field(default_factory=dict)  # rank -> what others waited for it
    evidence: tuple[Evidence, ...] = ()
    device: str | None = None
