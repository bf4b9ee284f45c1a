"""What tables of other tools say: bandwidths, pairs, link tests, profiles.

GB/s are 1e9 bytes/s, times microseconds unless the name says otherwise. None = the text does not say.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from smoldiag.facts.evidence import Evidence
from smoldiag.facts.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One cell group of a row."""

    time_us: float | None = None
    algbw_gbs: float | None = None
    busbw_gbs: float | None = None
    wrong: float | None = None  # elements that differ; None where it was not checked

    @property
    def rate(self) -> float | None:
        return self.busbw_gbs if self.busbw_gbs is not None else self.algbw_gbs


@dataclass(frozen=True, kw_only=True)
class Row:
    size_bytes: int | None = None
    count: int | None = None
    dtype: str = ""
    redop: str = ""
    root: int | None = None  # -1 where the collective has none
    out_of_place: Measured = field(default_factory=Measured)
    in_place: Measured | None = None
    nodes: int | None = None  # where the table goes over node or rank counts
    ranks: int | None = None
    line: int = 0

    @property
    def best_gbs(self) -> float | None:
        """The higher of out of place and in place: one bad repeat does not make a machine slow."""
        rates = [m.rate for m in (self.out_of_place, self.in_place) if m is not None and m.rate is not None]
        return max(rates, default=None)


@dataclass(frozen=True, kw_only=True)
class Device:
    """One line of the device header."""

    rank: int
    host: str
    device: int | None = None
    bus_id: str | None = None  # 0000:1b:00.0
    name: str | None = None  # NVML's


@dataclass(frozen=True, kw_only=True)
class BandwidthTable:
    """Collectives by size, or by node count."""

    where: str  # file:line of its first row
    tool: str  # nccl-tests | rccl-tests | smoldiag | table
    rows: tuple[Row, ...]
    collective: str | None = None
    label: str = ""  # what tells it from its sisters: NVLS off, Ring, a column's title
    ranks: int | None = None
    nodes: int | None = None
    devices: tuple[Device, ...] = ()
    gpu: str | None = None  # NVML name, from the device header
    gpu_class: str | None = None  # H100 SXM: from the name, else from the words around the table
    nccl_version: str | None = None
    average_gbs: float | None = None  # over all sizes, as the tool prints it
    warmup: int | None = None
    iterations: int | None = None
    worlds: int = 1  # programs that started side by side, each with ranks of its own
    settings: tuple[tuple[str, str], ...] = ()  # variables on its command line
    notes: tuple[Evidence, ...] = ()  # comments that people added

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(d.host for d in self.devices))

    @property
    def file(self) -> str:
        return self.where.rpartition(":")[0] or self.where


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The rate between two hosts, or two GPUs of a host."""

    a: str  # the sender, where the table is directed
    b: str
    gb_per_s: float
    where: str
    lane: int = 0  # local rank on both hosts: GPU and rail
    spread: float | None = None  # time of the slowest repeat over that of the median one
    fate: str = ""  # hung | failed, of a transfer that did not end; its rate is 0
    round: int | None = None
    confirming: bool = False  # measured again because of what the search showed


@dataclass(frozen=True, kw_only=True)
class HostCompute:
    """How long one host took for the work that all were given."""

    host: str
    lane: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class PairTable:
    where: str
    kind: str  # hosts | gpus
    pairs: tuple[Pair, ...]
    label: str = ""  # device_to_device_memcpy_read_ce, P2P=Enabled ...
    directed: bool = False  # a sent and b received; else one figure for both directions
    computes: tuple["HostCompute", ...] = ()  # the same work on each host, once in each round


@dataclass(frozen=True, kw_only=True)
class LinkTest:
    """One size of a point-to-point test of a NIC (perftest)."""

    where: str
    tool: str  # ib_write_bw ...
    size_bytes: int | None = None
    gbit_per_s: float
    device: str | None = None
    mtu: int | None = None  # bytes, of the connection
    gpu_memory: bool | None = None  # --use_cuda


@dataclass(frozen=True, kw_only=True)
class GraphNic:
    """A NIC in NCCL's graph of the machine (NCCL_DEBUG_SUBSYS=GRAPH): its own rate, and that of the link to it."""

    where: str
    name: str  # NET/0
    net_gbs: float
    pci_gbs: float
    fastest_gbs: float  # the fastest PCIe link of the graph: where all are alike, nobody read them
    text: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One rate that a line of text gives."""

    what: str  # the words before it
    gb_per_s: float
    where: str
    version: str | None = None  # of NCCL, where the words name one
    size_bytes: int | None = None  # from the heading above it
    repeats: int | None = None  # how many messages of that size, from the heading
    settings: tuple[tuple[str, str], ...] = ()  # variables that its words set
    expected_gbs: float | None = None  # where the same sentence says what was expected


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One row of torch.profiler's table of averages."""

    name: str
    self_cpu_us: float | None = None
    cpu_us: float | None = None
    self_gpu_us: float | None = None
    gpu_us: float | None = None
    calls: int | None = None


@dataclass(frozen=True, kw_only=True)
class ProfilerTable:
    where: str
    operators: tuple[Operator, ...]
    cpu_us: float | None = None  # Self CPU time total
    gpu_us: float | None = None  # Self CUDA time total


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Where the GPU's time went, in percent of the whole (TraceLens, HTA)."""

    where: str
    percent: Mapping[str, float]  # computation, exposed_comm, exposed_memcpy, idle, comm, overlap
    rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class KernelTime:
    """One communication kernel of one rank."""

    rank: int
    start_us: float
    duration_us: float
    name: str


@dataclass(frozen=True, kw_only=True)
class KernelTable:
    where: str
    kernels: tuple[KernelTime, ...]


@dataclass(frozen=True, kw_only=True)
class Tables:
    """All of one call."""

    bandwidth: tuple[BandwidthTable, ...] = ()
    pairs: tuple[PairTable, ...] = ()
    links: tuple[LinkTest, ...] = ()
    topologies: tuple[Topology, ...] = ()
    graph_nics: tuple[GraphNic, ...] = ()
    figures: tuple[Figure, ...] = ()
    profiles: tuple[ProfilerTable, ...] = ()
    timelines: tuple[Timeline, ...] = ()
    kernels: tuple[KernelTable, ...] = ()
    settings: tuple[tuple[str, str, str], ...] = ()  # (variable, value, where) on command lines of benches
    notes: tuple[Evidence, ...] = ()  # words about the network's setup beside the tables

    def __bool__(self) -> bool:
        return any(getattr(self, f.name) for f in fields(self))

    def __add__(self, other: "Tables") -> "Tables":
        return Tables(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})
