"""Logs of a job, of whatever mixture of origins, ranks and hosts -> Log, in one pass of bounded memory.

Lines are sorted by their shape: the line without digits and without a to f. Only the first line of a shape is searched
for what it says; the others of that shape cost a look-up. So the pass runs at memory's pace, however many ranks repeat
themselves, and whatever is numbered in their lines.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import accumulate

from smoldiag import redact
from smoldiag.facts import InitTiming, Log, LogEvent
from smoldiag.parse import log_origin, nccl_log
from smoldiag.parse.log_lines import MAX_DETAIL, VITAL, WEAK, Pattern, matching

_DIGITS = b"0123456789"
_VARYING = _DIGITS + b"abcdef"
MAX_LINE = 16_384
MAX_TEXT = 400  # of a line that is kept
MAX_SHAPES = 200_000
NOVEL_SHAPES = 10_000  # of one file; logs have a few thousand, prose that never repeats has more
FULL_LINES_PER_SHAPE = 4096  # that are read one by one: 1,024 ranks and their repetitions; then the last of a chunk
MAX_WORDS = 200_000  # that are known to be no bad news
MAX_PICTURE_LINES = 120_000  # of NCCL's INFO lines per attempt
MAX_PICTURE_PER_SHAPE = 50_000  # 1,024 ranks x 24 channels x 2 directions
MAX_EVENTS_PER_KIND = 64  # that differ; more of a kind only count
MAX_EARLIER = 2000  # events of the attempts before the last
MAX_NAMES = 65_536
MAX_VALUES = 16  # of one variable, over the ranks
MAX_WANTED = 200_000  # lines kept for another reader, per file
LINES_PER_FILE = 10**10  # more than any file has: the place of a line among all files

# What a job says when it starts, with whose start it is; what it says when it is over
STARTS = {"init-start", "init-complete", "bootstrap-using", "interface-using", "started"}
TERMINAL = {"elastic-failed", "elastic-restart", "cancelled", "task-exit", "mpi-exit", "node-failed"}
OVER = TERMINAL | {
    "exception",
    "elastic-exit",
    "killed",
    "oom-kill",
    "segfault",
    "watchdog-timeout",
    "ib-completion",
    "peer-closed",
    "nccl-error",
    "heartbeat",
    "finished",
}
# Lines that only give facts, or the context of the next line
FACTS = {"env", "timings", "ring", "tree", "step", "torch-version", "frame", "elastic-host", "elastic-rank"}
_LIBRARY_PATH = re.compile(r"site-packages|dist-packages|/lib(?:64)?/python\d|<frozen|importlib|/bin/torchrun")


@dataclass(kw_only=True)
class _Shape:
    """What lines of one shape are."""

    patterns: tuple[Pattern, ...] = ()
    picture: bool = False
    wanted: tuple[str, ...] = ()
    telling: bool = False  # such a line makes a text the log of a job
    taken: int = 0


_NOTHING = _Shape()


@dataclass(kw_only=True)
class _Event:
    event: LogEvent
    count: int = 0
    hosts: dict[str, None] = field(default_factory=dict)
    ranks: dict[int, None] = field(default_factory=dict)


@dataclass(kw_only=True)
class _Attempt:
    """One start of the job, as far as one file tells it."""

    events: dict[tuple[str, str], _Event] = field(default_factory=dict)
    per_kind: dict[str, int] = field(default_factory=dict)
    picture: list[tuple[int, str]] = field(default_factory=list)
    processes: dict[tuple[str, ...], str] = field(default_factory=dict)  # who started -> as which process
    over: bool = False  # something ended it
    terminal: bool = False  # the launcher said so
    env: dict[str, dict[str, None]] = field(default_factory=dict)
    timings: list[InitTiming] = field(default_factory=list)
    rings: dict[str, None] = field(default_factory=dict)
    trees: dict[str, None] = field(default_factory=dict)
    host_of_rank: dict[int, str] = field(default_factory=dict)
    world: int | None = None
    last_step: int | None = None
    num_steps: int = 0
    first_order: dict[str, int] = field(default_factory=dict)  # kind -> place of its first line
    last_order: dict[str, int] = field(default_factory=dict)  # kind -> place of its last line


@dataclass(kw_only=True)
class _File:
    """Where we are in one file."""

    name: str
    index: int
    attempts: list[_Attempt] = field(default_factory=lambda: [_Attempt()])
    wanted: dict[str, dict[int, str]] = field(default_factory=dict)
    time: float | None = None  # the last that a line told
    frames: dict[int | str | None, str] = field(default_factory=dict)  # whose -> last frame of the user's own code
    table_host: str | None = None  # of torchrun's table of failures
    table_rank: int | None = None
    table_root: bool = False
    earlier: list[LogEvent] = field(default_factory=list)
    started: int = 1
    novel: int = 0  # shapes that were met in it for the first time


@dataclass(kw_only=True)
class State:
    """What was read so far, over all files."""

    wants: Mapping[str, Callable[[str], bool]] = field(default_factory=dict)
    shapes: dict[bytes, _Shape] = field(default_factory=dict)
    plain_words: set[bytes] = field(default_factory=set)
    nccl: nccl_log.State = field(default_factory=nccl_log.State)
    files: list[str] = field(default_factory=list)
    num_lines: int = 0
    num_bytes: int = 0
    attempts: int = 1
    last: list[_Attempt] = field(default_factory=list)
    earlier: list[LogEvent] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one file had in it."""

    known: bool
    wanted: Mapping[str, Mapping[int, str]]


def start(*, wants: Mapping[str, Callable[[str], bool]] | None = None) -> State:
    return State(wants=wants or {})


def read(state: State, chunks: Iterable[bytes], *, where: str) -> Seen:
    """One file, in chunks that end at line ends. `where` names it in the evidence."""
    file = _File(name=where, index=len(state.files))
    number = 0
    known = False
    for shape in state.shapes.values():
        shape.taken = 0
    for chunk in chunks:
        state.num_bytes += len(chunk)
        chunk = chunk.removesuffix(b"\n")
        raw = chunk.split(b"\n")
        if b"\r" in chunk:
            known |= _read_overwritten(state, file, raw, number)
        else:
            known |= _read_lines(state, file, raw, chunk.translate(None, _VARYING).split(b"\n"), number)
        number += len(raw)
        if len(state.shapes) > MAX_SHAPES:
            state.shapes.clear()
    _close(state, file, number)
    return Seen(known=known, wanted=file.wanted)


def _read_lines(state: State, file: _File, raw: list[bytes], shapes: list[bytes], number: int) -> bool:
    """Lines `number` + 1 and on. Whether any of them says anything."""
    known = False
    last_of: dict[bytes, int] = {}
    novel: list[int] = []
    for i, seen in enumerate(map(state.shapes.get, shapes)):
        if seen is _NOTHING:
            continue
        if seen is None and file.novel > NOVEL_SHAPES:
            novel.append(i)
            continue
        shape = seen or _new_shape(state, file, shapes[i], raw[i])
        if shape is _NOTHING:
            continue
        known |= shape.telling
        shape.taken += 1
        if shape.taken > FULL_LINES_PER_SHAPE and not _in_picture(shape, file):
            last_of[shapes[i]] = i
            if shape.wanted:
                _want(file, shape, raw[i].decode("utf-8", "replace"), number + i + 1)
            continue
        _line(state, file, shape, raw[i], number + i + 1)
    for i in _vital(state, raw, novel):
        shape = _new_shape(state, file, shapes[i], raw[i])
        if shape is not _NOTHING:
            known |= shape.telling
            _line(state, file, shape, raw[i], number + i + 1)
    for key, i in last_of.items():
        _line(state, file, state.shapes[key], raw[i], number + i + 1)
    return known


def _vital(state: State, raw: list[bytes], novel: list[int]) -> Iterator[int]:
    """Of lines that resemble none before, where lines never repeat: those with a word that bad news has."""
    if not novel:
        return
    text = b"\n".join([raw[i] for i in novel]).translate(None, _DIGITS)
    words = set(text.split()) - state.plain_words
    telling = [word for word in words if VITAL.search(word)]
    if len(state.plain_words) < MAX_WORDS:
        state.plain_words |= words.difference(telling)
    ends = list(accumulate(len(line) + 1 for line in text.split(b"\n"))) if telling else []
    found: dict[int, None] = {}
    for word in telling:
        at = text.find(word)
        while at >= 0:
            line = bisect_right(ends, at)
            found.setdefault(novel[line])
            at = text.find(word, ends[line])
    yield from sorted(found)


def _read_overwritten(state: State, file: _File, raw: list[bytes], number: int) -> bool:
    """Lines of which parts were overwritten on a terminal (progress bars): each part is looked at, under one number."""
    known = False
    for i, line in enumerate(raw):
        parts = [part for part in line.split(b"\r") if part]
        for part in parts:
            known |= _read_lines(state, file, [part], [part.translate(None, _VARYING)], number + i)
    return known


def parse(text: str, *, where: str = "log") -> Log:
    """A log that is in memory."""
    state = start()
    read(state, [text.encode("utf-8", "replace")], where=where)
    return finish(state)


def finish(state: State) -> Log:
    """What the files add up to."""
    merged: dict[tuple[str, str], _Event] = {}
    for attempt in state.last:
        for key, new in attempt.events.items():
            before = merged.get(key)
            merged[key] = new if before is None else _joined(before, new)
    host_of_rank = {rank: host for a in state.last for rank, host in a.host_of_rank.items()}
    addresses = _addresses(merged.values())
    told = [_told(e, host_of_rank, addresses) for e in merged.values()]
    events = _in_order(told, len(state.files))
    spoke = nccl_log.hosts(state.nccl)
    transport = nccl_log.picture(state.nccl)
    world = max((a.world for a in state.last if a.world), default=None)
    steps = [a.last_step for a in state.last if a.last_step is not None]
    return Log(
        files=tuple(state.files),
        num_lines=state.num_lines,
        num_bytes=state.num_bytes,
        events=events,
        earlier=tuple(state.earlier),
        attempts=state.attempts,
        hosts=tuple(dict.fromkeys((*host_of_rank.values(), *spoke, *(h for e in events for h in e.hosts)))),
        nccl_hosts=spoke,
        ranks=tuple(sorted({*host_of_rank, *(r for e in events for r in e.ranks)})),
        world=world or transport.ranks,
        transport=transport,
        versions=state.versions,
        env={
            name: tuple(dict.fromkeys(v for a in state.last for v in a.env.get(name, ())))
            for name in sorted({name for a in state.last for name in a.env})
        },
        timings=tuple(sorted((t for a in state.last for t in a.timings), key=lambda t: -t.total_s)[:8]),
        pairs=nccl_log.pairs(state.nccl),
        rings=tuple(dict.fromkeys(r for a in state.last for r in a.rings))[:64],
        trees=tuple(dict.fromkeys(t for a in state.last for t in a.trees))[:64],
        host_of_rank=host_of_rank,
        last_step=max(steps, default=None),
        num_steps=sum(a.num_steps for a in state.last),
        steps_from=_place(
            told, min((a.first_order["step"] for a in state.last if "step" in a.first_order), default=None)
        ),
        steps_to=_place(told, max((a.last_order["step"] for a in state.last if "step" in a.last_order), default=None)),
        started=bool(steps) or any("init-complete" in a.last_order for a in state.last),
        ended_well=any(_ended_well(a) for a in state.last),
    )


def _new_shape(state: State, file: _File, key: bytes, raw: bytes) -> _Shape:
    file.novel += 1
    return state.shapes.setdefault(key, _shape(state, raw))


def _shape(state: State, raw: bytes) -> _Shape:
    line = raw[:MAX_LINE].decode("utf-8", "replace")
    patterns = tuple(matching(line))
    picture = nccl_log.concerns(line)
    wanted = tuple(kind for kind, wants in state.wants.items() if wants(line))
    telling = picture or any(pattern.kind not in WEAK for pattern in patterns)
    if not (patterns or picture or wanted):
        return _NOTHING
    return _Shape(patterns=patterns, picture=picture, wanted=wanted, telling=telling)


def _in_picture(shape: _Shape, file: _File) -> bool:
    return shape.picture and shape.taken <= MAX_PICTURE_PER_SHAPE and len(file.attempts[-1].picture) < MAX_PICTURE_LINES


def _line(state: State, file: _File, shape: _Shape, raw: bytes, number: int) -> None:
    line = raw[:MAX_LINE].decode("utf-8", "replace")
    _want(file, shape, line, number)
    if shape.patterns:
        said = log_origin.origin(line)
        if said.time is not None:
            file.time = _with_year(said.time, file.time)
        for pattern in shape.patterns:
            if found := pattern.regex.search(line):
                _note(state, file, pattern, found, said, number)
    if _in_picture(shape, file):
        file.attempts[-1].picture.append((number, line))


def _want(file: _File, shape: _Shape, line: str, number: int) -> None:
    for kind in shape.wanted:
        kept = file.wanted.setdefault(kind, {})
        if len(kept) < MAX_WANTED:
            kept[number] = line[:MAX_LINE]


def _with_year(time: float, before: float | None) -> float:
    """glog and syslog tell no year: that of the line before, if it had one."""
    nowhere = datetime(log_origin.NO_YEAR + 1, 1, 1, tzinfo=UTC).timestamp()
    if time >= nowhere or before is None or before < nowhere:
        return time
    year = datetime.fromtimestamp(before, UTC).year
    try:
        return datetime.fromtimestamp(time, UTC).replace(year=year).timestamp()
    except ValueError:  # 29 February
        return time


def _note(
    state: State, file: _File, pattern: Pattern, found: re.Match[str], said: log_origin.Origin, number: int
) -> None:
    groups = {k: v for k, v in found.groupdict().items() if v is not None}
    rank = int(groups["rank"]) if "rank" in groups else said.rank
    host = groups.get("host", said.host)
    if pattern.kind in STARTS and _starts_again(file.attempts[-1], pattern.kind, groups, said, rank):
        _next_attempt(file)
    attempt = file.attempts[-1]
    if said.host and said.rank is not None and said.pid is None and len(attempt.host_of_rank) < MAX_NAMES:
        attempt.host_of_rank.setdefault(said.rank, said.host)  # both stand in what launchers put before the line
    order = file.index * LINES_PER_FILE + number
    attempt.first_order.setdefault(pattern.kind, order)
    attempt.last_order[pattern.kind] = order
    if pattern.kind in FACTS:
        _fact(state, file, attempt, pattern.kind, groups, rank)
        return
    if pattern.kind in OVER:
        attempt.over = True
        attempt.terminal |= pattern.kind in TERMINAL
    if pattern.kind in ("elastic-exit", "signal") and file.table_rank is not None:
        host, rank = file.table_host or host, file.table_rank
        groups |= {"root": "1"} if file.table_root else {}
    if pattern.kind == "elastic-root":
        file.table_root = True
    if pattern.kind == "exception" and (frame := file.frames.get(rank)):
        groups["frame"] = frame
    if pattern.kind in ("init-start", "init-complete", "device-table") and rank is not None:
        _placed(attempt, groups, rank, host)
    key = (pattern.kind, "|".join(groups.get(k, "") for k in pattern.key)[:200])
    known = attempt.events.get(key)
    if known is None and attempt.per_kind.get(pattern.kind, 0) >= MAX_EVENTS_PER_KIND:
        key = (pattern.kind, "more")
        known = attempt.events.get(key)
    if known is None:
        attempt.per_kind[pattern.kind] = attempt.per_kind.get(pattern.kind, 0) + 1
        event = LogEvent(
            kind=pattern.kind,
            text=_shown(said.text),
            where=f"{file.name}:{number}",
            order=order,
            host=host,
            rank=rank,
            time=file.time,
            details={k: redact.text(v[:MAX_DETAIL]) for k, v in groups.items()},
        )
        known = attempt.events[key] = _Event(event=event)
    known.count += 1
    if host is not None and len(known.hosts) < MAX_NAMES:
        known.hosts.setdefault(host)
    if rank is not None and len(known.ranks) < MAX_NAMES:
        known.ranks.setdefault(rank)


def _placed(attempt: _Attempt, groups: Mapping[str, str], rank: int, host: str | None) -> None:
    """Which host a rank is on, of the largest communicator: others count their ranks anew."""
    world = int(groups.get("world", groups.get("world2", "0")))
    if world > (attempt.world or 0):
        attempt.world = world
        attempt.host_of_rank.clear()
    if host and (world == attempt.world or not attempt.world) and len(attempt.host_of_rank) < MAX_NAMES:
        attempt.host_of_rank[rank] = host


def _fact(state: State, file: _File, attempt: _Attempt, kind: str, groups: Mapping[str, str], rank: int | None) -> None:
    match kind:
        case "env":
            name = groups.get("name") or groups["name2"]
            value = (groups.get("value") or groups.get("value2", "")).rstrip(".,")
            values = attempt.env.setdefault(name, {})
            if len(values) < MAX_VALUES:
                values.setdefault(redact.variable(name, value))
        case "step":
            step = int(groups.get("step") or groups.get("step2", "0"))
            attempt.last_step = max(step, attempt.last_step or 0)
            attempt.num_steps += 1
        case "timings":
            parts = (part.strip().rpartition(" ") for part in groups["parts"].split(","))
            timing = InitTiming(
                rank=rank or 0,
                ranks=int(groups["world"]),
                total_s=_number(groups["total"]),
                parts=tuple((name, _number(seconds)) for name, _, seconds in parts),
            )
            attempt.timings = sorted([*attempt.timings, timing], key=lambda t: -t.total_s)[:8]
        case "ring" | "tree":
            lines = attempt.rings if kind == "ring" else attempt.trees
            if len(lines) < 64:
                lines.setdefault(" ".join(groups[kind].split())[:MAX_TEXT])
        case "torch-version":
            state.versions.setdefault("torch", groups["version"])
        case "frame":
            if not _LIBRARY_PATH.search(groups["path"]) and (rank in file.frames or len(file.frames) < MAX_NAMES):
                file.frames[rank] = redact.text(f"{groups['path']}:{groups['line']} in {groups['function']}")
        case "elastic-host":
            file.table_host = groups["host"].partition(".")[0]
        case "elastic-rank":
            file.table_rank = int(groups["rank"])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _starts_again(
    attempt: _Attempt, kind: str, groups: Mapping[str, str], said: log_origin.Origin, rank: int | None
) -> bool:
    """Whether this line is of a later start: the same GPU is taken by another process, or all was over before."""
    process = said.pid or ""
    if kind == "started":
        again = attempt.terminal
        who: tuple[str, ...] = ("started",)
    elif kind in ("init-start", "init-complete"):
        if "bus" not in groups or said.host is None:
            return False
        who = ("gpu", said.host, groups["bus"], str(rank), groups["world"])
        again = attempt.processes.get(who, process) != process
    else:
        who = ("host", said.host or "", said.device or "")
        again = attempt.over and attempt.processes.get(who, process) != process
    if again:
        return True
    if len(attempt.processes) < MAX_NAMES:
        attempt.processes[who] = process
    return False


def _next_attempt(file: _File) -> None:
    before = file.attempts[-1]
    room = MAX_EARLIER - len(file.earlier)
    told = (replace(_told(e, before.host_of_rank, {}), attempt=file.started - 1) for e in before.events.values())
    file.earlier += list(told)[: max(room, 0)]
    file.attempts = [_Attempt()]
    file.started += 1
    file.table_host, file.table_rank, file.table_root = None, None, False
    file.frames.clear()


def _close(state: State, file: _File, number: int) -> None:
    """What one file told, added to the whole."""
    attempt = file.attempts[-1]
    for line_number, line in attempt.picture:
        nccl_log.feed(state.nccl, line, line_number, file.name)
    attempt.picture = []
    state.last.append(attempt)
    state.files.append(file.name)
    state.num_lines += number
    state.attempts = max(state.attempts, file.started)
    state.earlier += file.earlier[: max(MAX_EARLIER - len(state.earlier), 0)]


def _joined(a: _Event, b: _Event) -> _Event:
    first, second = (b, a) if (b.event.time or 0) < (a.event.time or 0) and b.event.time else (a, b)
    first.count += second.count
    first.hosts |= second.hosts
    first.ranks |= second.ranks
    return first


def _addresses(events: Iterable[_Event]) -> dict[str, str]:
    """Address -> host, as each host's bootstrap line tells it; an address that two hosts claim is nobody's."""
    found: dict[str, str] = {}
    for e in events:
        if e.event.kind == "bootstrap-using" and len(e.hosts) == 1:
            address, host = e.event.details.get("address", ""), next(iter(e.hosts))
            found[address] = host if found.get(address, host) == host else ""
    return {address: host for address, host in found.items() if host and not address.startswith("127.")}


def _told(e: _Event, host_of_rank: Mapping[int, str], addresses: Mapping[str, str]) -> LogEvent:
    """With one name per host: that of NCCL, which is the host name up to its first dot."""
    known = set(host_of_rank.values())
    hosts = dict.fromkeys(_host_name(h, known, addresses) for h in e.hosts)
    rank = e.event.rank
    host = (
        _host_name(e.event.host, known, addresses) if e.event.host else host_of_rank.get(-1 if rank is None else rank)
    )
    hosts |= dict.fromkeys(host_of_rank[r] for r in e.ranks if r in host_of_rank and len(e.ranks) <= 64)
    if host:
        hosts = {host: None} | hosts
    return replace(e.event, host=host, count=e.count, hosts=tuple(hosts), ranks=tuple(sorted(e.ranks)))


def _host_name(name: str, known: set[str], addresses: Mapping[str, str]) -> str:
    if name in known:
        return name
    if name in addresses:
        return addresses[name]
    short = name.partition(".")[0]
    return short if short and not short.isdigit() else name


def _in_order(events: list[LogEvent], num_files: int) -> tuple[LogEvent, ...]:
    """By time where several files tell it, else as they stand."""
    timed = num_files > 1 and all(e.time is not None for e in events)
    ordered = sorted(events, key=lambda e: (e.time or 0.0, e.order) if timed else (0.0, e.order))
    return tuple(replace(e, order=i) for i, e in enumerate(ordered, 1))


def _place(events: list[LogEvent], order: int | None) -> int | None:
    """How many events come before."""
    return None if order is None else sum(e.order < order for e in events)


def _ended_well(attempt: _Attempt) -> bool:
    if "finished" not in attempt.last_order:
        return False
    bad = OVER - {"finished"}
    return attempt.last_order["finished"] > max((o for k, o in attempt.last_order.items() if k in bad), default=-1)


def _shown(text: str) -> str:
    cut = text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."
    return "".join(c if c.isprintable() else "?" for c in redact.text(cut))
