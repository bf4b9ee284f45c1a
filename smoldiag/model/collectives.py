"""The same collective on several ranks: which events belong together, whose clock runs ahead, who comes late. Pure.

A collective's kernel runs from the moment its rank comes to the moment the last one is through. So all ranks leave
together, which gives the offsets of their clocks, and the rank whose kernel is shortest came last.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from smoldiag.facts.trace import CollectiveInfo, Late, RankTrace
from smoldiag.model.stats import median

TOGETHER = {"all_reduce", "all_gather", "reduce_scatter", "all_to_all"}  # all ranks leave at the same time
SAME_TIME, SAME_TIME_US = 0.1, 100.0  # of the wait, and at most: who comes so close to the last one is as late
NOTICED_US = 20.0  # waits below it are the jitter of launches
PAIR = 2
LATE_SHARE = 0.5  # of the waits in which a rank must be among the last to be called late
CLEARLY = 2.0  # times as much must be waited for the late as for all others together
APART_US = 1000.0  # ends that lie further apart, clocks aligned, are not of the same collective...
APART = 0.5  # ...nor those further apart than this part of the shortest stay


@dataclass(frozen=True, kw_only=True)
class Match:
    """One collective: the place of its kernel in each rank's trace."""

    name: str
    info: CollectiveInfo
    places: Mapping[int, int]  # rank -> place


def matches(traces: Sequence[RankTrace], kept: Mapping[int, Iterable[int]]) -> list[Match]:
    """The same collective is the one with the same number among those of its name and group."""
    found: dict[tuple[str, str, int | None, int], dict[int, int]] = {}
    infos: dict[tuple[str, str, int | None, int], CollectiveInfo] = {}
    for t in traces:
        counts: dict[tuple[str, str, int | None], int] = {}
        inside = None if isinstance(kept[t.rank], range) else set(kept[t.rank])
        for i, info in t.collective.items():
            if inside is not None and i not in inside:
                continue
            what = (info.name, info.group, info.group_size)
            number = counts[what] = counts.get(what, -1) + 1
            found.setdefault((*what, number), {})[t.rank] = i
            infos.setdefault((*what, number), info)
    return [Match(name=_name(infos[key], places), info=infos[key], places=places) for key, places in found.items()]


def _name(info: CollectiveInfo, places: Mapping[int, int]) -> str:
    if info.name == "send_recv" and info.group_size is None and len(places) > PAIR:
        return "all_to_all"  # NCCL has no kernel of its own for it: it sends and receives, on all ranks together
    return info.name


def offsets(traces: Sequence[RankTrace], found: Sequence[Match]) -> dict[int, float]:
    """How far each rank's clock is ahead of the first one's, in microseconds; 0 where no collective tells."""
    ends = {t.rank: t.end for t in traces}
    apart: dict[tuple[int, int], list[float]] = {}
    for m in found:
        if m.name in TOGETHER and len(m.places) > 1:
            first = min(m.places)
            for rank, i in m.places.items():
                if rank != first:
                    apart.setdefault((first, rank), []).append(ends[rank][i] - ends[first][m.places[first]])
    edges: dict[int, list[tuple[int, float]]] = {}
    for (a, b), differences in apart.items():
        ahead = median(differences)
        edges.setdefault(a, []).append((b, ahead))
        edges.setdefault(b, []).append((a, -ahead))
    known: dict[int, float] = {}
    for start in sorted(ends):
        if start in known:
            continue
        known[start] = 0.0
        waiting = [start]
        for rank in waiting:
            for other, ahead in edges.get(rank, ()):
                if other not in known:
                    known[other] = known[rank] + ahead
                    waiting.append(other)
    return known


@dataclass(frozen=True, kw_only=True)
class Stay:
    """Who waited for whom in one collective."""

    match: Match
    last_rank: int
    transfer_us: float  # of the last to come
    wait_us: float  # how much longer the others stayed at most
    late_ranks: tuple[int, ...]  # the last one and those that came with it; empty where nobody waited


def stays(traces: Sequence[RankTrace], found: Sequence[Match], ahead: Mapping[int, float]) -> list[Stay]:
    by_rank = {t.rank: t for t in traces}
    made = []
    for m in found:
        us = {rank: by_rank[rank].end[i] - by_rank[rank].start[i] for rank, i in m.places.items()}
        last = min(us, key=us.__getitem__)
        wait = max(us.values()) - us[last]
        ends = [by_rank[rank].end[i] - ahead.get(rank, 0.0) for rank, i in m.places.items()]
        same = max(ends) - min(ends) <= max(APART_US, APART * us[last])
        waited = len(us) > 1 and wait >= NOTICED_US and same
        near = min(SAME_TIME * wait, SAME_TIME_US)
        late = tuple(sorted(r for r, stay in us.items() if stay <= us[last] + near)) if waited else ()
        made.append(Stay(match=m, last_rank=last, transfer_us=us[last], wait_us=wait, late_ranks=late))
    return made


def late(found: Iterable[Stay]) -> tuple[Late, ...]:
    """Who is late again and again, by the name of the collective; the costliest first."""
    by_name: dict[str, list[Stay]] = {}
    for stay in found:
        if stay.late_ranks:
            by_name.setdefault(stay.match.name, []).append(stay)
    made = []
    for name, waits in by_name.items():
        counts: dict[int, int] = {}
        for stay in waits:
            for rank in stay.late_ranks:
                counts[rank] = counts.get(rank, 0) + 1
        all_ranks = {rank for stay in waits for rank in stay.match.places}
        ranks = {rank for rank, count in counts.items() if count >= LATE_SHARE * len(waits)}
        theirs = [stay for stay in waits if ranks & set(stay.late_ranks)]
        us = sum(stay.wait_us for stay in theirs)
        if ranks and 2 * len(ranks) <= len(all_ranks) and us >= CLEARLY * (sum(stay.wait_us for stay in waits) - us):
            made.append(Late(name=name, ranks=tuple(sorted(ranks)), times=len(theirs), of=len(waits), us=us))
    return tuple(sorted(made, key=lambda one: -one.us))
