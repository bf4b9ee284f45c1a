"""One step of all ranks side by side, on one clock. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from smoldiag.facts.trace import COMMUNICATION, COMPUTE, MEMORY, RankTrace
from smoldiag.model import collectives, intervals
from smoldiag.model.intervals import Interval

PARTS = {"compute": COMPUTE, "communication": COMMUNICATION, "memory": MEMORY}


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one rank's device does, in microseconds since the step began on the first of them."""

    rank: int
    parts: Mapping[str, Sequence[Interval]]  # compute, communication, memory
    exposed: Sequence[Interval]  # communication while nothing is computed


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Ranks wait in a collective for the one that comes last."""

    name: str
    last_rank: int
    rank: int
    start: float
    until: float


@dataclass(frozen=True, kw_only=True)
class Timeline:
    step: str  # ProfilerStep#N; empty where the traces know no steps
    lines: Sequence[Line]
    waits: Sequence[Wait]


def timeline(traces: Sequence[RankTrace]) -> Timeline | None:
    """The middle one of the steps that all ranks have, or all there is. None without a device's events."""
    ordered = sorted((t for t in traces if len(t.start)), key=lambda t: t.rank)
    if not ordered:
        return None
    ahead = offsets(ordered)
    common = set.intersection(*({name for name, _, _ in t.steps} for t in ordered))
    names = [name for name, _, _ in ordered[0].steps if name in common]
    step = names[len(names) // 2] if names else ""
    places = {t.rank: _places(t, step) for t in ordered}
    begin = min(
        (t.start[i] - ahead.get(t.rank, 0.0) for t in ordered for i in places[t.rank]),
        default=0.0,
    )
    lines = []
    for t in ordered:
        back = begin + ahead.get(t.rank, 0.0)
        parts = {
            part: intervals.union(
                (t.start[i] - back, t.end[i] - back) for i in places[t.rank] if t.name_kind[t.name_of[i]] == kind
            )
            for part, kind in PARTS.items()
        }
        exposed = intervals.difference(parts["communication"], parts["compute"])
        lines.append(Line(rank=t.rank, parts=parts, exposed=exposed))
    inside = {t.rank: set(places[t.rank]) for t in ordered}
    shown = [
        Wait(
            name=w.name,
            last_rank=w.last_rank,
            rank=w.rank,
            start=w.start - begin,
            until=w.until - begin,
        )
        for w, place in _waits(ordered, ahead)
        if place in inside[w.rank]
    ]
    return Timeline(step=step, lines=lines, waits=shown)


def offsets(traces: Sequence[RankTrace]) -> dict[int, float]:
    """rank -> how far its clock is ahead of the first one's, in microseconds."""
    return collectives.offsets(traces, collectives.matches(traces, {t.rank: range(len(t.start)) for t in traces}))


def waits(traces: Sequence[RankTrace], ahead: Mapping[int, float]) -> list[Wait]:
    """On the common clock, of all collectives in which somebody waited for a late rank."""
    return [wait for wait, _ in _waits(traces, ahead)]


def _waits(traces: Sequence[RankTrace], ahead: Mapping[int, float]) -> list[tuple[Wait, int]]:
    """And the place of the collective's kernel on the rank that waits."""
    by_rank = {t.rank: t for t in traces}
    found = collectives.matches(traces, {t.rank: range(len(t.start)) for t in traces})
    made = []
    for stay in collectives.stays(traces, found, ahead):
        last = by_rank[stay.last_rank]
        came = last.start[stay.match.places[stay.last_rank]] - ahead.get(stay.last_rank, 0.0)
        for rank, i in stay.match.places.items():
            start = by_rank[rank].start[i] - ahead.get(rank, 0.0)
            if stay.late_ranks and rank not in stay.late_ranks and start < came:
                wait = Wait(name=stay.match.name, last_rank=stay.last_rank, rank=rank, start=start, until=came)
                made.append((wait, i))
    return made


def _places(t: RankTrace, step: str) -> list[int]:
    """Events whose launch is in the step; without launches those that begin in it."""
    found = next(((start, end) for name, start, end in t.steps if name == step), None)
    if found is None:
        return list(range(len(t.start)))
    at = [t.call_start[call] if call >= 0 else t.start[i] for i, call in enumerate(t.call)]
    return [i for i, time in enumerate(at) if found[0] <= time < found[1]]
