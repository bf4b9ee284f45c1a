"""What probes measured on the devices and hosts of a fleet: seconds and bytes as they were taken, figures derived.

Every record says whose it is (`Device`). A probe returns its record as a dictionary of the same form.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from smoldiag.facts.evidence import Evidence


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU, or the processors of a host that a rank may use."""

    host: str
    rank: int = 0
    gpu: int | None = None  # torch's index on its host; None: the processors
    model: str | None = None  # NVML's name, or that of /proc/cpuinfo
    serial: str | None = None  # UUID of a GPU
    software: str = ""  # torch, CUDA and instruction set: equal devices with equal software compute equal bits

    @property
    def name(self) -> str:
        return self.host if self.gpu is None else f"{self.host} GPU {self.gpu}"


@dataclass(frozen=True, kw_only=True)
class Load:
    """A GPU while the probe kept it busy, sampled through NVML."""

    samples: int
    sm_clock_mhz: float | None = None  # median
    sm_clock_max_mhz: int | None = None  # the board's
    temperature_c: int | None = None  # highest
    power_w: float | None = None  # highest
    power_limit_w: float | None = None
    throttle: Mapping[str, float] = field(default_factory=dict)  # reason -> ratio of the samples


@dataclass(frozen=True, kw_only=True)
class Throttling:
    """How far a control group's counters went during a measurement."""

    group: str  # folder
    periods: int
    throttled_periods: int
    throttled_s: float  # of all processors together
    cpus: float | None = None  # quota / period


@dataclass(frozen=True, kw_only=True)
class Matmul:
    """A (m, k) matrix times a (k, n) matrix, again and again."""

    dtype: str
    m: int
    n: int
    k: int
    seconds: tuple[float, ...]  # wall time of each repeat; on a GPU its own clock
    cpu_s: tuple[float, ...] = ()  # processor time of the process for each repeat, on processors
    checksum: str | None = None  # of the bits of the first result
    changed: int = 0  # repeats whose bits differ from those of the first

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.n * self.k

    @property
    def shape(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"


@dataclass(frozen=True, kw_only=True)
class Compute:
    device: Device
    matmuls: tuple[Matmul, ...]
    threads: int = 1  # of torch, on processors
    wall_s: float | None = None  # of the timed part
    cpu_s: float | None = None  # processor time of the process in it
    waited_s: float | None = None  # for a processor that others had (/proc/self/schedstat)
    throttling: Throttling | None = None  # of the control group that lost most; None: no counters
    load: Load | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)  # dtype or part -> why


@dataclass(frozen=True, kw_only=True)
class Copy:
    """`num_bytes` copied again and again."""

    kind: str  # device: within its memory | host: within the host's | h2d | d2h
    num_bytes: int
    seconds: tuple[float, ...]  # of each repeat
    cpu_s: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Memory:
    device: Device
    copies: tuple[Copy, ...]
    shm_bytes: int | None = None  # /dev/shm
    shm_free_bytes: int | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LinkRate:
    """From one GPU of a node to another."""

    src: int
    dst: int
    num_bytes: int
    seconds: tuple[float, ...]
    peer: bool  # direct; else through the host's memory


@dataclass(frozen=True, kw_only=True)
class Links:
    device: Device  # who measured
    rates: tuple[LinkRate, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StorageRate:
    """Operations of one kind by some threads of one host at the same time."""

    operation: str  # read | write
    pattern: str  # sequential | random
    threads: int
    io_bytes: int
    operations: int
    seconds: float
    latency_us: float | None = None  # median of one operation

    @property
    def gb_per_s(self) -> float:
        return self.operations * self.io_bytes / self.seconds / 1e9

    @property
    def iops(self) -> float:
        return self.operations / self.seconds


@dataclass(frozen=True, kw_only=True)
class CheckpointTime:
    """A checkpoint's part of one host, written in large pieces, made durable and read back."""

    num_bytes: int
    wanted_bytes: int  # the part of the model that this host would write
    write_s: float
    fsync_s: float
    read_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Storage:
    device: Device
    path: str
    hosts: int = 1  # that measured at the same time
    file_system: str | None = None  # ext4, lustre, nfs4
    source: str | None = None  # what is mounted
    size_bytes: int | None = None
    free_bytes: int | None = None  # before anything was written
    free_inodes: int | None = None  # None: the file system has no fixed number
    needed_bytes: int = 0  # by the probe
    model_bytes: int | None = None  # of a whole checkpoint, where one was named
    refused: str = ""  # why nothing was measured: space | readonly | missing | permission | failed
    error: str = ""  # the system's words
    direct: bool | None = None  # O_DIRECT; False: the page cache was dropped after each write
    shared: bool | None = None  # the other hosts see our files; None: not tried
    alone: StorageRate | None = None  # of the first host, while the others waited
    rates: tuple[StorageRate, ...] = ()
    fsync_us: tuple[float, ...] = ()  # of a small append
    metadata: Mapping[str, float] = field(default_factory=dict)  # create | stat | unlink -> operations per second
    checkpoint: CheckpointTime | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Steps of the reference trainer, and the last of them again from its checkpoint."""

    device: Device
    ranks: int
    model: str
    steps: int
    checkpoint_step: int
    losses: Mapping[int, float]  # step -> loss of the run without a break
    resumed: Mapping[int, float]  # step -> loss after the checkpoint was read
    step_s: tuple[float, ...] = ()
    save_s: float | None = None  # the longest
    tokens_per_step: int | None = None
    flops_per_token: float | None = None
    error: str = ""  # it could not be written or read back
    skipped: str = ""  # why nothing was tried


@dataclass(frozen=True, kw_only=True)
class Probes:
    """All of a fleet. None: that probe did not run."""

    compute: tuple[Compute, ...] | None = None
    memory: tuple[Memory, ...] | None = None
    links: tuple[Links, ...] | None = None
    storage: tuple[Storage, ...] | None = None
    resume: tuple[Resume, ...] | None = None
    where: str = "this run"  # for evidence

    def seen(self, text: str) -> Evidence:
        return Evidence(text=text, where=self.where)
