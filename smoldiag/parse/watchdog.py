"""What torch's and gloo's own watchdogs print about collectives, fed line by line -> Watchdog.

ProcessGroupNCCL since torch 1.9 (its wording changed in 1.13, 2.2, 2.4 and 2.6), the heartbeat monitor, desync reports,
TORCH_DISTRIBUTED_DEBUG=DETAIL, monitored_barrier, store barriers, gloo's transport.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from smoldiag import redact
from smoldiag.facts import Evidence
from smoldiag.facts.flight import (
    Absence,
    Fingerprint,
    Frame,
    Progress,
    RankState,
    SizesDiffer,
    Timer,
    Watchdog,
)
from smoldiag.parse.flight_recorder import named_rank
from smoldiag.parse.log_origin import origin

MAX_LINE = 8192
MAX_TEXT = 400
MAX_STATES = 100_000
MAX_OF_A_KIND = 256
MAX_FRAMES = 64
FOLDED_LINES = 6  # over which a terminal may have broken a fingerprint

_WORDS = (
    "WorkNCCL(",
    "NCCL work",
    "work sequence id",
    "CollectiveFingerPrint",
    "monitoredBarrier",
    "store based barrier",
    "eartbeat monitor",
    "watchdog got stuck",
    "acquire GIL",
    "collective #",
    "Timeout at collective",
    "lagging ranks",
    "stack trace of the failed",
    "Stack trace of the failed",
    "operation to complete",
    "op.preamble.length",
    "essage truncated",
    "onnection closed by peer",
    "onnection reset by peer",
    "connected peer ranks",
    "dump signal due to",
    "TIMEOUT(ms)",
    "HEARTBEAT_TIMEOUT",
    "%|",
)
_GROUP = re.compile(r"\[PG (?:ID )?(\d{1,9})(?: PG GUID ([^\s()\]]{1,80}))?(?: ?\(([^)\]]{0,80})\))? Rank (\d{1,7})\]")
_WORK = re.compile(
    r"WorkNCCL\((?:SeqNum=(?P<seq>\d{1,18}), )?OpType=(?P<op>\w{1,40})"
    r"(?:, TensorShape=\[(?P<shape>[\d, ]{0,200})\])?(?:, NumelIn=(?P<nin>\d{1,18}), NumelOut=(?P<nout>\d{1,18}))?"
    r"(?:, Timeout\(ms\)=(?P<timeout>\d{1,12}))?\)"
)
_RAN = re.compile(r"ran for (\d{1,12}) milliseconds")
_AT = re.compile(r"at (?:NCCL )?work(?: sequence id)?: (\d{1,18})")
_ENQUEUED = re.compile(r"[Ll]ast enqueued (?:NCCL )?work: (-?\d{1,18})")
_STARTED = re.compile(r"[Ll]ast started (?:NCCL )?work: (-?\d{1,18})")
_COMPLETED = re.compile(r"[Ll]ast completed (?:NCCL )?work: (-?\d{1,18})")
_FRAME = re.compile(r"#\d{1,3} (\S{1,200}) from (\S{1,400}):(\d{1,7})")
_FINGERPRINT = re.compile(
    r"Rank (?P<rank>\d{1,7}) is running (?:inconsistent )?collective: CollectiveFingerPrint\("
    r"(?:SequenceNumber=(?P<seq>\d{1,18}), )?OpType=(?P<op>\w{1,40})(?:, TensorShape ?=(?P<shape>\[[^\]]{0,200}\]))?"
    r"(?:, TensorDtypes=(?P<dtypes>[^,)]{1,80}))?"
)
_BARRIER = re.compile(r"Ranks? (\d[\d, ]{0,2000}) failed to pass monitoredBarrier in (\d{1,12}) ms")
_STORE = re.compile(
    r"store based barrier on rank:? ?(\d{1,7}).{0,200}?world_size=(\d{1,7}), "
    r"(?:worker_count|num_workers_joined)=(\d{1,7})"
    r"(?:, timeout=(?:(\d{1,3}):(\d\d):(\d\d)))?"
)
_LAGGING = re.compile(
    r"ranks \[([\d, ]{1,4000})\] are the lagging ranks|\[([\d, ]{1,4000})\] finished collective #\d+, but didn"
)
_STUCK = re.compile(r"watchdog got stuck for (\d{1,9}) seconds")
_GLOO_TIMEOUT = re.compile(r"Timed out waiting (\d{1,12})ms for \w{1,20} operation to complete")
_PREAMBLE = re.compile(r"op\.preamble\.length <= op\.nbytes\. (\d{1,18}) vs (\d{1,18})")
_TRUNCATED = re.compile(r"[Mm]essage truncated ?: received (\d{1,18}) bytes instead of (\d{1,18})")
_LOST = re.compile(r"[Cc]onnection (?:closed|reset) by peer")
_GLOO_PEERS = re.compile(r"\[Gloo\] Rank \d{1,7} is connected to \d{1,7} peer ranks\. Expected .{0,40}: (\d{1,7})")
_WORLD = re.compile(r"ProcessGroupNCCL initialization options: size: (\d{1,7})")
_BAR = re.compile(
    r"^(?P<label>[^|%]{0,120}?):? {0,20}(?P<percent>\d{1,3})%\|[^|]{0,400}\| ?(?P<done>\S{1,40})/\S{1,40} "
    r"\[(?:(?P<h>\d{1,3}):)?(?P<m>\d{1,3}):(?P<s>\d\d)<"
)
_STEPPING = re.compile(r"(?i)\b(epoch|train(?:ing)?|steps?|iter(?:ation)?s?|loss)\b")


@dataclass(kw_only=True)
class _Said:
    states: dict[tuple[int, str], RankState] = field(default_factory=dict)
    fingerprints: list[Fingerprint] = field(default_factory=list)
    timers: dict[tuple[str, int | None], Timer] = field(default_factory=dict)
    absent: list[Absence] = field(default_factory=list)
    sizes: list[SizesDiffer] = field(default_factory=list)
    lost: list[Evidence] = field(default_factory=list)
    gil: list[Evidence] = field(default_factory=list)
    busy: dict[str, Progress] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)
    world: int | None = None
    own_rank: int | None = None  # of the process whose file this is, where its name tells
    folded: str = ""
    folded_at: str = ""
    folded_lines: int = 0
    stack_of: tuple[int, str] | None = None


def looks_like(name: str, head: bytes) -> bool:
    text = head.decode("utf-8", "replace")
    return any(word in text for word in _WORDS[:14])


def wants(line: str) -> bool:
    """Whether a line of a log is worth giving to `parse`."""
    return any(word in line for word in _WORDS) or (" from " in line and _FRAME.search(line) is not None)


def parse(lines: Iterable[str], *, where: str) -> Watchdog:
    """What these lines say. `where` names the file."""
    said = _Said(own_rank=named_rank(where))
    for number, line in enumerate(lines, 1):
        if line or said.folded:  # of a long log all but the wanted lines are empty
            _read(said, line[:MAX_LINE].rstrip(), f"{where}:{number}")
    return Watchdog(
        states=tuple(said.states.values()),
        fingerprints=tuple(said.fingerprints),
        timers=tuple(said.timers.values()),
        absent=tuple(said.absent),
        sizes_differ=tuple(said.sizes),
        lost_peers=tuple(said.lost),
        gil=tuple(said.gil),
        busy=tuple(said.busy.values()),
        seen=tuple(sorted(said.seen)),
        world=said.world,
    )


def merged(parts: Sequence[Watchdog]) -> Watchdog:
    """One of several files; a rank's later word on a group stands."""
    states = {(s.rank, s.group): s for p in parts for s in p.states}
    timers: dict[tuple[str, int | None], Timer] = {}
    for p in parts:
        for t in p.timers:
            before = timers.get((t.name, t.value_ms), t)
            timers[t.name, t.value_ms] = replace(before, ranks=tuple(sorted({*before.ranks, *t.ranks})))
    return Watchdog(
        states=tuple(states.values()),
        fingerprints=tuple(f for p in parts for f in p.fingerprints)[:MAX_OF_A_KIND],
        timers=tuple(timers.values()),
        absent=tuple(a for p in parts for a in p.absent)[:MAX_OF_A_KIND],
        sizes_differ=tuple(s for p in parts for s in p.sizes_differ)[:MAX_OF_A_KIND],
        lost_peers=tuple(e for p in parts for e in p.lost_peers)[:MAX_OF_A_KIND],
        gil=tuple(e for p in parts for e in p.gil)[:MAX_OF_A_KIND],
        busy=tuple({b.label: b for p in parts for b in p.busy}.values()),
        seen=tuple(sorted({r for p in parts for r in p.seen})),
        world=max((p.world for p in parts if p.world), default=None),
    )


def _read(said: _Said, line: str, where: str) -> None:
    if said.folded:
        said.folded += line
        said.folded_lines += 1
        if ")" in line or said.folded_lines > FOLDED_LINES:
            _fingerprints(said, said.folded, said.folded_at)
            said.folded = ""
        return
    if not wants(line):
        return
    by = origin(line)
    rank = said.own_rank if by.rank is None else by.rank
    if rank is not None and len(said.seen) < MAX_STATES:
        said.seen.add(rank)
    if "CollectiveFingerPrint(" in line:
        if line.endswith(")") or "TensorDtypes" in line:
            _fingerprints(said, line, where)
        else:
            said.folded, said.folded_at, said.folded_lines = line, where, 0
        return
    evidence = Evidence(text=_shown(line), where=where)
    _state(said, line, rank, by.host, evidence)
    _frames(said, line)
    _timer(said, line, rank, evidence)
    _absence(said, line, evidence)
    _transport(said, line, rank, evidence)
    _progress(said, line, evidence)


def _shown(line: str) -> str:
    text = redact.text(line.strip())
    text = text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."
    return "".join(c if c.isprintable() else "?" for c in text)


def _state(said: _Said, line: str, rank: int | None, host: str | None, evidence: Evidence) -> None:
    work, enqueued, group = _WORK.search(line), _ENQUEUED.search(line), _GROUP.search(line)
    if not work and not enqueued:
        return
    own = rank if rank is not None else int(group.group(4)) if group else None
    if own is None or len(said.states) >= MAX_STATES:
        return
    name = (group.group(3) or group.group(2) or group.group(1)) if group else ""
    key = (own, name)
    before = said.states.get(key) or RankState(rank=own, host=host, group=name, evidence=evidence)
    if group:
        before = replace(before, group_rank=int(group.group(4)))
    if work and (before.op is None or "Watchdog caught" in line):
        shape = work.group("shape")
        numel = _numel(shape) if shape is not None else _int(work.group("nin"))
        before = replace(
            before,
            seq=_int(work.group("seq")),
            op=work.group("op"),
            numel_in=numel,
            numel_out=_int(work.group("nout")),
            timeout_ms=_int(work.group("timeout")),
            evidence=evidence,
        )
    ran, at, started, completed = (p.search(line) for p in (_RAN, _AT, _STARTED, _COMPLETED))
    said.states[key] = replace(
        before,
        ran_ms=int(ran.group(1)) if ran else before.ran_ms,
        seq=before.seq if before.seq is not None else _int(at.group(1) if at else None),
        last_enqueued=int(enqueued.group(1)) if enqueued else before.last_enqueued,
        last_started=int(started.group(1)) if started else before.last_started,
        last_completed=int(completed.group(1)) if completed else before.last_completed,
    )
    said.stack_of = key


def _frames(said: _Said, line: str) -> None:
    """`#0 all_reduce from .../distributed_c10d.py:2696` after "Stack trace of the failed collective"."""
    state = said.states.get(said.stack_of) if said.stack_of else None
    if state is None or len(state.frames) >= MAX_FRAMES:
        return
    if found := _FRAME.findall(line):
        more = tuple(Frame(_shown(name), _shown(file), int(number)) for name, file, number in found)
        said.states[state.rank, state.group] = replace(state, frames=(*state.frames, *more))


def _timer(said: _Said, line: str, rank: int | None, evidence: Evidence) -> None:
    work = _WORK.search(line)
    fired: tuple[str, int | None] | None = None
    if work and "Watchdog caught" in line:
        fired = ("watchdog", _int(work.group("timeout")))
    elif work and "blocking wait" in line:
        fired = ("blocking-wait", _int(work.group("timeout")))
    elif stuck := _STUCK.search(line):
        fired = ("heartbeat-monitor", int(stuck.group(1)) * 1000)
    elif "eartbeat monitor timed out" in line:
        fired = ("heartbeat-monitor", None)
    elif gloo := _GLOO_TIMEOUT.search(line):
        fired = ("gloo", int(gloo.group(1)))
    elif barrier := _BARRIER.search(line):
        fired = ("monitored-barrier", int(barrier.group(2)))
    elif store := _STORE.search(line):
        h, m, s = (int(x or 0) for x in store.group(4, 5, 6))
        fired = ("store", (h * 3600 + m * 60 + s) * 1000 or None)
    if "acquire GIL" in line and len(said.gil) < MAX_OF_A_KIND:
        said.gil.append(evidence)
    if fired:
        before = said.timers.get(fired) or Timer(name=fired[0], value_ms=fired[1], evidence=evidence)
        ranks = {*before.ranks, *(() if rank is None else (rank,))}
        said.timers[fired] = replace(before, ranks=tuple(sorted(ranks)))


def _absence(said: _Said, line: str, evidence: Evidence) -> None:
    if len(said.absent) >= MAX_OF_A_KIND:
        return
    if barrier := _BARRIER.search(line):
        said.absent.append(Absence(ranks=_numbers(barrier.group(1)), what="monitored barrier", evidence=evidence))
    for one, other in _LAGGING.findall(line):
        said.absent.append(Absence(ranks=_numbers(one or other), what="desync report", evidence=evidence))
    if store := _STORE.search(line):
        said.absent.append(Absence(ranks=(), what="store barrier", evidence=evidence))
        said.world = max(said.world or 0, int(store.group(2)))


def _transport(said: _Said, line: str, rank: int | None, evidence: Evidence) -> None:
    sizes = _PREAMBLE.search(line) or _TRUNCATED.search(line)
    if sizes and len(said.sizes) < MAX_OF_A_KIND:
        received, expected = map(int, sizes.groups())
        said.sizes.append(SizesDiffer(rank=rank, received=received, expected=expected, evidence=evidence))
    if _LOST.search(line) and "gloo" in line and len(said.lost) < MAX_OF_A_KIND:
        said.lost.append(evidence)
    if peers := _GLOO_PEERS.search(line):
        said.world = max(said.world or 0, int(peers.group(1)) + 1)
    if world := _WORLD.search(line):
        said.world = max(said.world or 0, int(world.group(1)))


def _progress(said: _Said, line: str, evidence: Evidence) -> None:
    """A progress bar of something that is no training step; the last state of each."""
    bar = _BAR.search(line.rpartition("\r")[2])
    if not bar or int(bar.group("percent")) >= 100 or len(said.busy) >= MAX_OF_A_KIND:
        return
    label = _shown(bar.group("label")) or "(no name)"
    if _STEPPING.search(label):
        return
    seconds = (int(bar.group("h") or 0) * 60 + int(bar.group("m"))) * 60 + int(bar.group("s"))
    said.busy[label] = Progress(label=label, percent=int(bar.group("percent")), elapsed_s=seconds, evidence=evidence)


def _fingerprints(said: _Said, line: str, where: str) -> None:
    evidence = Evidence(text=_shown(line), where=where)
    for found in _FINGERPRINT.finditer(line):
        if len(said.fingerprints) >= MAX_OF_A_KIND:
            return
        said.fingerprints.append(
            Fingerprint(
                rank=int(found.group("rank")),
                op=found.group("op"),
                shape=found.group("shape") or "",
                dtypes=found.group("dtypes") or "",
                seq=_int(found.group("seq")),
                evidence=evidence,
            )
        )


def _int(text: str | None) -> int | None:
    return int(text) if text else None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d{1,7}", text))


def _numel(shape: str) -> int:
    product = 1
    for n in _numbers(shape):
        product *= n
    return product
