"""What a bench of collectives measured. GB/s are 1e9 bytes/s; times are microseconds."""

from dataclasses import dataclass

from smoldiag.facts.transport import Transport


@dataclass(frozen=True, kw_only=True)
class Group:
    """The ranks that took part. `kind`: world (or a part of it with --scale) | node | inter | pair."""

    kind: str
    ranks: tuple[int, ...]
    nodes: int


@dataclass(frozen=True, kw_only=True)
class TimeUs:
    """Over the iterations; one iteration lasts until its last rank is through."""

    min: float
    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, kw_only=True)
class RankTimeUs:
    """Over the ranks: the spread of their own medians."""

    min: float
    p50: float
    max: float


@dataclass(frozen=True, kw_only=True)
class RankTime:
    """One rank's own medians: inside the collective, and between two collectives, where others wait for it."""

    rank: int
    time_us: float
    late_us: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """One collective at one size in one group."""

    collective: str
    group: Group
    dtype: str
    op: str  # sum, or none where nothing is reduced
    size_bytes: int  # as nccl-tests counts size
    count: int  # elements, as nccl-tests counts them
    iterations: int
    time_us: TimeUs
    algbw_gbs: float
    busbw_gbs: float
    wrong: int  # elements that differ from the expected values
    slowest_rank: int  # the one that the others wait for; where none is late, the one that takes longest
    rank_time_us: RankTimeUs
    late_us: float  # the slowest rank's median time between two collectives
    purpose: str = ""  # why this size was measured: verdict | "" | fsdp:... | ddp:...
    per_rank: tuple[RankTime, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class PairRate:
    """One direction between two ranks on different hosts, other pairs of the round busy at the same time."""

    src: int
    dst: int
    src_host: str
    dst_host: str
    size_bytes: int
    gb_per_s: float
    round: int
    confirming: bool = False


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What this hardware gives, and from where we know it."""

    collective: str
    size_bytes: int
    busbw_gbs: float
    kind: str  # site | measured | estimated | bound
    source: str
    nodes: int | None = None

    def fits(self, result: Result) -> bool:
        """Whether it is about this collective, size (within 1 %) and node count."""
        near = abs(self.size_bytes - result.size_bytes) <= 0.01 * result.size_bytes
        return self.collective == result.collective and near and self.nodes in (None, result.group.nodes)


@dataclass(frozen=True, kw_only=True)
class World:
    nodes: int
    ranks: int
    ranks_per_node: int  # the largest, where hosts differ
    hosts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """All that one run of nccl-bench knows, for the rules that judge it."""

    backend: str
    launcher: str
    world: World
    host_of_rank: tuple[str, ...]
    results: tuple[Result, ...]
    expected: tuple[Expected, ...] = ()
    pairs: tuple[PairRate, ...] = ()
    transport: Transport | None = None
    nics_gbs: float | None = None  # what the NICs of one node carry in one direction
    nodes_asked: int | None = None
    ranks_asked: int | None = None
