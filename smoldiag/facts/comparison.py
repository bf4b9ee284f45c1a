"""What differs between two of a kind: two runs, logs, bundles, benches, tables, traces, environments."""

from dataclasses import dataclass

# What of a training step a setting, or a part of the step, has to do with.
COMMUNICATION, COMPUTE, HOST, DATA, CHECKPOINT = AREAS = ("communication", "compute", "host", "data", "checkpoint")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A setting that is not the same on both sides."""

    family: str  # of the rules that judge such settings: ENV, VER, HST, GPU, NIC
    name: str  # NCCL_ALGO | driver | gpu power_limit_w
    a: str | None  # None: not set, or not there
    b: str | None
    hosts: tuple[str, ...] = ()  # on which; empty: on all, or the hosts are not the same
    weight: str = "other"  # known: what it is tells that it can matter to speed; other: nobody knows that it does
    affects: tuple[str, ...] = ()  # of AREAS
    why: str = ""  # what is known of it
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A measured figure on both sides. `low` and `high` bound the change with 99 % confidence."""

    name: str  # step | rank 1: forward | all_reduce 1 GiB
    kind: str  # step | stalls | part | collective | busbw | latency | loss | share | kernel
    unit: str  # us | GB/s | % | tokens/s | nats
    a: float
    b: float
    change_percent: float  # of a
    low: float | None = None  # per cent; None: there are too few samples to say
    high: float | None = None
    significant: bool | None = None  # beyond noise and worth a word; None: can't be said
    worse: bool = False  # in the direction in which slower, or a higher loss, is
    samples: tuple[int, int] = (1, 1)
    part: str = ""  # of a step: forward, transfer; of a collective: its name
    area: str = ""  # of AREAS
    hosts: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()  # empty: all alike
    cost_us: float | None = None  # how much longer a step takes for it
    size_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Shift:
    """A place where the pace of a run changed for good."""

    side: str  # a | b
    run: str  # its name, where the file tells one
    axis: str  # step | tokens | row
    at: float
    time: str | None  # ISO 8601, UTC
    unit: str  # of the medians before and after: steps/s, tokens/s/GPU ...
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`facts.compare` of the report."""

    a: str  # as the sides were named
    b: str
    kinds: tuple[str, ...]  # what is there on both sides: run, trace, bench, tables, hosts, log
    changed: tuple[Change, ...] = ()
    metrics: tuple[Metric, ...] = ()
    hosts_gone: tuple[str, ...] = ()  # in a only
    hosts_new: tuple[str, ...] = ()  # in b only
    gone: tuple[str, ...] = ()  # what was found of a and not of b: code and message
    same: int = 0  # findings that are the same on both sides
    tokens_per_s: tuple[float, float] | None = None
    shifts: tuple[Shift, ...] = ()

    @property
    def slower(self) -> tuple[Metric, ...]:
        """What got worse beyond noise."""
        return tuple(m for m in self.metrics if m.significant and m.worse)

    @property
    def slowed(self) -> tuple[Shift, ...]:
        """Where the second side became slower on its way, if the first did not."""
        found = [x for x in self.shifts if x.after < x.before]
        return tuple(found) if all(x.side == "b" for x in found) else ()

    @property
    def areas(self) -> tuple[str, ...]:
        """What of the step got worse, the largest part first; empty where nothing says so."""
        found = sorted((m for m in self.slower if m.area), key=lambda m: -(m.cost_us or 0.0))
        return tuple(dict.fromkeys(m.area for m in found))
