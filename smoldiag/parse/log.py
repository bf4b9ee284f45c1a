"""Logs of a job, of whatever mixture of origins, ranks and hosts -> Log, in one pass of bounded memory.

Lines are sorted by their shape: the line without digits and without a to f. Only the first line of a shape is searched
for what it says; the others of that shape cost a look-up. So the pass runs at memory's pace, however many ranks repeat
themselves, and whatever is numbered in their lines.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from smoldiag import redact
from smoldiag.facts import Log, LogEvent
from smoldiag.parse import log_origin, nccl_log
from smoldiag.parse.log_lines import MAX_DETAIL, Pattern, matching

_VARYING = b"0123456789abcdef"
MAX_LINE = 16_384
MAX_TEXT = 400  # of a line that is kept
MAX_SHAPES = 200_000
FULL_LINES_PER_SHAPE = 4096  # that are read one by one: 1,024 ranks and their repetitions; then the last of a chunk
MAX_PICTURE_LINES = 200_000  # of NCCL's INFO lines per attempt
MAX_PICTURE_PER_SHAPE = 60_000  # 1,024 ranks x 24 channels x 2 directions
MAX_EVENTS_PER_KIND = 64  # that differ; more of a kind only count
MAX_NAMES = 65_536
MAX_WANTED = 200_000  # lines kept for another reader, per file


@dataclass(kw_only=True)
class _Shape:
    """What lines of one shape are."""

    patterns: tuple[Pattern, ...] = ()
    picture: bool = False
    wanted: tuple[str, ...] = ()
    taken: int = 0


_NOTHING = _Shape()


@dataclass(kw_only=True)
class _Event:
    event: LogEvent
    count: int = 1
    hosts: dict[str, None] = field(default_factory=dict)
    ranks: dict[int, None] = field(default_factory=dict)


@dataclass(kw_only=True)
class _Attempt:
    """One start of the job, as far as one file tells it."""

    events: dict[tuple[str, str], _Event] = field(default_factory=dict)
    per_kind: dict[str, int] = field(default_factory=dict)
    picture: list[tuple[int, str]] = field(default_factory=list)
    started: dict[str, str] = field(default_factory=dict)  # who -> which process
    over: bool = False  # something ended it


@dataclass(kw_only=True)
class State:
    """What was read so far, over all files."""

    wants: Mapping[str, Callable[[str], bool]] = field(default_factory=dict)
    shapes: dict[bytes, _Shape] = field(default_factory=dict)
    nccl: nccl_log.State = field(default_factory=nccl_log.State)
    files: list[str] = field(default_factory=list)
    num_lines: int = 0
    num_bytes: int = 0
    attempts: int = 1
    last: list[_Attempt] = field(default_factory=list)
    earlier: list[LogEvent] = field(default_factory=list)
    hosts: dict[str, None] = field(default_factory=dict)
    ranks: dict[int, None] = field(default_factory=dict)
    host_of_rank: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one file had in it."""

    known: bool
    wanted: Mapping[str, Mapping[int, str]]


def start(*, wants: Mapping[str, Callable[[str], bool]] | None = None) -> State:
    return State(wants=wants or {})


def read(state: State, chunks: Iterable[bytes], *, where: str) -> Seen:
    """One file, in chunks that end at line ends. `where` names it in the evidence."""
    attempts = [_Attempt()]
    wanted: dict[str, dict[int, str]] = {}
    number = 0
    known = False
    for shape in state.shapes.values():
        shape.taken = 0
    for chunk in chunks:
        state.num_bytes += len(chunk)
        raw = chunk.removesuffix(b"\n").split(b"\n")
        shapes = chunk.removesuffix(b"\n").translate(None, _VARYING).split(b"\n")
        get = state.shapes.get
        last_of: dict[bytes, int] = {}
        for i, seen in enumerate(map(get, shapes)):
            if seen is _NOTHING:
                continue
            shape = seen or state.shapes.setdefault(shapes[i], _shape(state, raw[i]))
            if shape is _NOTHING:
                continue
            known = True
            if shape.taken >= FULL_LINES_PER_SHAPE and not shape.picture:
                last_of[shapes[i]] = i
                shape.taken += 1
                continue
            shape.taken += 1
            _line(state, attempts, shape, raw[i], number + i + 1, where, wanted)
        for key, i in last_of.items():
            _line(state, attempts, state.shapes[key], raw[i], number + i + 1, where, wanted)
        number += len(raw)
        if len(state.shapes) > MAX_SHAPES:
            state.shapes.clear()
    _close(state, attempts, where, number)
    return Seen(known=known, wanted=wanted)


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
    events = sorted((_told(e) for e in merged.values()), key=lambda e: e.order)
    transport = nccl_log.picture(state.nccl)
    return Log(
        files=tuple(state.files),
        num_lines=state.num_lines,
        num_bytes=state.num_bytes,
        events=tuple(events),
        earlier=tuple(state.earlier),
        attempts=state.attempts,
        hosts=tuple(state.hosts),
        ranks=tuple(sorted(state.ranks)),
        world=transport.ranks,
        transport=transport,
        host_of_rank=state.host_of_rank,
    )


def _shape(state: State, raw: bytes) -> _Shape:
    """What lines like this one say."""
    line = raw[:MAX_LINE].decode("utf-8", "replace")
    patterns = tuple(matching(line))
    picture = nccl_log.concerns(line)
    wanted = tuple(kind for kind, wants in state.wants.items() if wants(line))
    return _Shape(patterns=patterns, picture=picture, wanted=wanted) if patterns or picture or wanted else _NOTHING


def _line(
    state: State,
    attempts: list[_Attempt],
    shape: _Shape,
    raw: bytes,
    number: int,
    where: str,
    wanted: dict[str, dict[int, str]],
) -> None:
    line = raw[:MAX_LINE].decode("utf-8", "replace")
    for kind in shape.wanted:
        kept = wanted.setdefault(kind, {})
        if len(kept) < MAX_WANTED:
            kept[number] = line
    attempt = attempts[-1]
    if shape.picture and shape.taken <= MAX_PICTURE_PER_SHAPE and len(attempt.picture) < MAX_PICTURE_LINES:
        attempt.picture.append((number, line))
    if shape.patterns:
        said = log_origin.origin(line)
        for pattern in shape.patterns:
            if found := pattern.regex.search(line):
                _note(state, attempt, pattern, found, said, number, where)


def _note(
    state: State,
    attempt: _Attempt,
    pattern: Pattern,
    found: re.Match[str],
    said: log_origin.Origin,
    number: int,
    where: str,
) -> None:
    groups = {k: v for k, v in found.groupdict().items() if v is not None}
    rank = int(groups["rank"]) if "rank" in groups else said.rank
    host = groups.get("host", said.host)
    key = (pattern.kind, "|".join(groups.get(k, "") for k in pattern.key)[:200])
    known = attempt.events.get(key)
    if known is None:
        if attempt.per_kind.get(pattern.kind, 0) >= MAX_EVENTS_PER_KIND:
            key = next(k for k in reversed(attempt.events) if k[0] == pattern.kind)
            known = attempt.events[key]
        else:
            attempt.per_kind[pattern.kind] = attempt.per_kind.get(pattern.kind, 0) + 1
            event = LogEvent(
                kind=pattern.kind,
                text=_shown(said.text),
                where=f"{where}:{number}",
                order=len(state.files) * 10**10 + number,
                host=host,
                rank=rank,
                time=said.time,
                details={k: v[:MAX_DETAIL] for k, v in groups.items()},
            )
            known = attempt.events[key] = _Event(event=event, count=0)
    known.count += 1
    if host is not None and len(known.hosts) < MAX_NAMES:
        known.hosts.setdefault(host)
    if rank is not None and len(known.ranks) < MAX_NAMES:
        known.ranks.setdefault(rank)


def _close(state: State, attempts: list[_Attempt], where: str, number: int) -> None:
    """What one file told, added to the whole."""
    for line_number, line in attempts[-1].picture:
        nccl_log.feed(state.nccl, line, line_number, where)
    attempts[-1].picture = []
    state.last.append(attempts[-1])
    state.files.append(where)
    state.num_lines += number
    for event in attempts[-1].events.values():
        for host in event.hosts:
            state.hosts.setdefault(host)
        for rank in event.ranks:
            state.ranks.setdefault(rank)


def _joined(a: _Event, b: _Event) -> _Event:
    a.count += b.count
    a.hosts |= b.hosts
    a.ranks |= b.ranks
    return a


def _told(e: _Event) -> LogEvent:
    return replace(e.event, count=e.count, hosts=tuple(e.hosts), ranks=tuple(sorted(e.ranks)))


def _shown(text: str) -> str:
    cut = text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."
    return "".join(c if c.isprintable() else "?" for c in redact.text(cut))
