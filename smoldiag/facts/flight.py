"""What is known of a job's collectives on each rank: Flight Recorder dumps, watchdog lines, stacks, NCCL's RAS.

Columns instead of a record per operation: 1,024 ranks hold two million of them.
"""

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from smoldiag.facts.evidence import Evidence

SCHEDULED, STARTED, ENDED, TIMED_OUT = range(4)  # of an operation; ended: completed, on gloo also failed


@dataclass(frozen=True)
class Frame:
    name: str
    filename: str
    line: int

    def __str__(self) -> str:
        return f"{self.filename}:{self.line}"


@dataclass(frozen=True, kw_only=True)
class Call:
    """What the operations of one kind from one place have in common."""

    op: str  # all_reduce, as torch names it
    backend: str = "nccl"
    peer: tuple[int, int] | None = None  # of send and recv: (from, to), ranks in the group
    input_sizes: tuple[tuple[int, ...], ...] = ()
    output_sizes: tuple[tuple[int, ...], ...] = ()
    input_dtypes: tuple[str, ...] = ()
    output_dtypes: tuple[str, ...] = ()
    frames: tuple[Frame, ...] = ()  # innermost first
    timeout_ms: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Track:
    """The collectives, or the sends and receives, of one group on one rank, oldest first."""

    group: str  # torch's name of it
    desc: str = ""  # default_pg, mesh_shard ...
    ranks: tuple[int, ...] | None = None  # members, as ranks of the job
    backend: str = "nccl"  # a group may have one for each kind of device, which count apart
    p2p: bool = False
    seqs: "array[int]" = field(default_factory=lambda: array("q"))  # collective_seq_id or p2p_seq_id
    records: "array[int]" = field(default_factory=lambda: array("q"))  # order over all groups of the rank
    created_ns: "array[int]" = field(default_factory=lambda: array("q"))  # since 1970
    calls: "array[int]" = field(default_factory=lambda: array("l"))  # place in Dump.calls
    states: bytearray = field(default_factory=bytearray)  # SCHEDULED, STARTED, ENDED, TIMED_OUT


@dataclass(frozen=True, kw_only=True, eq=False)
class Dump:
    """What Flight Recorder held on one rank."""

    where: str
    rank: int | None = None
    host: str | None = None
    version: str = ""
    calls: tuple[Call, ...] = ()
    tracks: tuple[Track, ...] = ()
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of pg_config, those whose ranks are known
    world: int | None = None  # ranks of the job, where the dump says it
    entries: int = 0
    enqueued: int = 0  # the highest number that any group of it has enqueued, whether or not its entry is here
    newest_ns: int | None = None  # latest time in it
    written_s: float | None = None  # when the file was written, since 1970

    def calls_of(self, track: Track) -> Iterator[Call]:
        """Each kind of call of the track once."""
        return (self.calls[place] for place in dict.fromkeys(track.calls))


@dataclass(frozen=True, kw_only=True)
class RankState:
    """A line of the table: what a rank's watchdog said of a group."""

    rank: int
    host: str | None = None
    group: str = ""
    group_rank: int | None = None
    last_enqueued: int | None = None
    last_started: int | None = None
    last_completed: int | None = None
    seq: int | None = None  # the operation that it speaks of
    op: str | None = None  # ALLREDUCE, as the watchdog spells it
    numel_in: int | None = None
    numel_out: int | None = None
    timeout_ms: int | None = None  # effective
    ran_ms: int | None = None
    frames: tuple[Frame, ...] = ()  # innermost first, where the watchdog printed the stack
    evidence: Evidence


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """A collective as TORCH_DISTRIBUTED_DEBUG=DETAIL describes it."""

    rank: int | None
    op: str
    shape: str = ""
    dtypes: str = ""
    seq: int | None = None
    evidence: Evidence


@dataclass(frozen=True, kw_only=True)
class Timer:
    """A timer that fired."""

    name: str  # watchdog | heartbeat-monitor | gloo | monitored-barrier | store | blocking-wait
    value_ms: int | None = None  # its effective value, where the text says it
    ranks: tuple[int, ...] = ()
    evidence: Evidence


@dataclass(frozen=True, kw_only=True)
class Absence:
    """Ranks that a message names as not having come."""

    ranks: tuple[int, ...]
    what: str  # monitored barrier | desync report | store barrier | size
    evidence: Evidence


@dataclass(frozen=True, kw_only=True)
class SizesDiffer:
    """A message of another size than the collective that a rank is in."""

    rank: int | None
    received: int  # bytes
    expected: int
    evidence: Evidence


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A progress bar of something that is no training step: preprocessing, a scan, a save."""

    label: str
    percent: int
    elapsed_s: int
    evidence: Evidence


@dataclass(frozen=True, kw_only=True)
class Watchdog:
    """What the processes' own watchdogs said in the logs."""

    states: tuple[RankState, ...] = ()  # the last per rank and group
    fingerprints: tuple[Fingerprint, ...] = ()
    timers: tuple[Timer, ...] = ()
    absent: tuple[Absence, ...] = ()
    sizes_differ: tuple[SizesDiffer, ...] = ()
    lost_peers: tuple[Evidence, ...] = ()  # connection closed by peer
    gil: tuple[Evidence, ...] = ()  # could not acquire the GIL
    busy: tuple[Progress, ...] = ()
    seen: tuple[int, ...] = ()  # ranks that say anything
    world: int | None = None

    @property
    def speaks(self) -> bool:
        """Whether there is more in it than progress bars."""
        return any(
            (self.states, self.fingerprints, self.timers, self.absent, self.sizes_differ, self.lost_peers, self.gil)
        )


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A thread's stack, from py-spy."""

    where: str
    rank: int | None = None
    pid: int | None = None
    command: str = ""
    thread: str = ""
    active: bool = False
    frames: tuple[Frame, ...] = ()  # innermost first


@dataclass(frozen=True, kw_only=True)
class RasRank:
    rank: int
    host: str = ""
    pid: int | None = None
    gpu: int | None = None
    state: str = "ok"  # ok | unresponsive | dead | missing
    counts: Mapping[str, int] = field(default_factory=dict)  # collective -> operations so far


@dataclass(frozen=True, kw_only=True)
class RasComm:
    """A communicator as NCCL's RAS sees it."""

    id: str
    size: int | None = None
    status: str = ""  # RUNNING, INIT, ABORT ...
    errors: str = ""  # OK, INCOMPLETE, MISMATCH ...
    ranks: tuple[RasRank, ...] = ()  # all of them in JSON, outliers in text
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ras:
    where: str
    version: str | None = None
    comms: tuple[RasComm, ...] = ()
    notes: tuple[Evidence, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Diagnostic:
    """A line of NCCL's own diagnostics (2.31 and later)."""

    level: str  # OK, INFO, WARN, FAIL ...
    check: str  # p2p, net bw, ecc ...
    text: str
    evidence: Evidence


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """Of the collectives that Inspector timed on all ranks of a communicator: who spent how long in them."""

    comm: str
    ranks: int  # of the communicator
    rank: int
    host: str
    collectives: int  # compared
    median_us: float
    last: int  # how often it spent the least time of all: it came last


@dataclass(frozen=True, kw_only=True, eq=False)
class Flight:
    """All that was read of a job's collectives. Compared by identity: it is large."""

    dumps: tuple[Dump, ...] = ()
    watchdog: Watchdog | None = None
    stacks: tuple[Stack, ...] = ()
    ras: tuple[Ras, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    arrivals: tuple[Arrival, ...] = ()
    hosts: Mapping[int, str] = field(default_factory=dict)  # rank -> host
    world: int | None = None  # ranks of the job, where something says it
