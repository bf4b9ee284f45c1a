"""What the logs of a job say: events, each with all who said the same, and the picture of the run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from smoldiag.facts.evidence import Evidence
from smoldiag.facts.transport import Transport


@dataclass(frozen=True, kw_only=True)
class LogEvent:
    """One thing that the log says, with how many said the same. `host`, `rank`, `where` are the first one's."""

    kind: str  # what it is: cuda-oom, ib-completion, watchdog-timeout ...
    text: str  # the line without launcher prefixes, redacted and cut
    where: str  # node3.log:118
    order: int = 0  # place among all lines of its file
    host: str | None = None
    rank: int | None = None
    time: float | None = None  # seconds since 1970 (UTC assumed), where the line has a time
    attempt: int = 0  # 0 is the first start of the job in this file
    count: int = 1
    hosts: tuple[str, ...] = ()  # of all that said the same, in order
    ranks: tuple[int, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)  # what the pattern captured: status, peer, bytes ...

    @property
    def evidence(self) -> Evidence:
        more = f" (and {self.count - 1} more alike)" if self.count > 1 else ""
        return Evidence(text=f"{self.text}{more}", where=self.where)


@dataclass(frozen=True, kw_only=True)
class InitTiming:
    """Seconds of a communicator's set-up by part, of the rank that took longest."""

    rank: int
    ranks: int
    total_s: float
    parts: tuple[tuple[str, float], ...] = ()  # (bootstrap, 0.5) ...


@dataclass(frozen=True, kw_only=True)
class Log:
    """All logs of one job together; events of its last attempt and, apart, of those before."""

    files: tuple[str, ...] = ()
    num_lines: int = 0
    num_bytes: int = 0
    events: tuple[LogEvent, ...] = ()  # of the last attempt, in their order
    earlier: tuple[LogEvent, ...] = ()  # of the attempts before it
    attempts: int = 1
    hosts: tuple[str, ...] = ()
    nccl_hosts: tuple[str, ...] = ()  # of these, by NCCL's own prefix
    ranks: tuple[int, ...] = ()  # that say anything
    world: int | None = None  # ranks of the job, where the log says it
    transport: Transport | None = None  # what NCCL says of its network
    versions: Mapping[str, str] = field(default_factory=dict)  # torch, python, nccl ...
    env: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # NCCL_X -> every value that a rank took
    timings: tuple[InitTiming, ...] = ()
    pairs: tuple[tuple[int, int, str, int], ...] = ()  # (from rank, to rank, P2P/CUMEM, channels)
    rings: tuple[str, ...] = ()  # Channel 00/02 : 0 1 2 3
    trees: tuple[str, ...] = ()
    host_of_rank: Mapping[int, str] = field(default_factory=dict)
    last_step: int | None = None  # the last training step that the log reports
    num_steps: int = 0  # such lines that were read
    steps_from: int | None = None  # place of the first and the last such line among the events
    steps_to: int | None = None
    started: bool = False  # a communicator was set up, or steps were made
    ended_well: bool = False  # the last words are those of a run that came to its end
    notes: tuple[str, ...] = ()

    def find(self, *kinds: str) -> tuple[LogEvent, ...]:
        return tuple(e for e in self.events if e.kind in kinds)

    def first(self, *kinds: str) -> LogEvent | None:
        return next((e for e in self.events if e.kind in kinds), None)

    def has(self, *kinds: str) -> bool:
        return self.first(*kinds) is not None

    def __iter__(self) -> Iterator[LogEvent]:
        return iter(self.events)
