"""Sets of time intervals: unions, what lies in one and not in another, lengths. Pure; any unit."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

Interval = tuple[float, float]  # (start, end)


def union(intervals: Iterable[Interval], *, inverted: bool = False) -> list[Interval]:
    """Disjoint and sorted. `inverted`: intervals that end before they start count, too, if nothing else covers them."""
    joined: list[Interval] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1]:
            if end > joined[-1][1]:
                joined[-1] = (joined[-1][0], end)
        elif end > start or inverted:
            joined.append((start, end))
    return joined


def length(disjoint: Iterable[Interval]) -> float:
    return sum(end - start for start, end in disjoint)


def overlap(a: Sequence[Interval], b: Sequence[Interval]) -> float:
    """How long both are on; each disjoint and sorted."""
    return length(intersection(a, b))


def intersection(a: Sequence[Interval], b: Sequence[Interval]) -> list[Interval]:
    """What lies in both; each disjoint and sorted."""
    both: list[Interval] = []
    i = j = 0
    while i < len(a) and j < len(b):
        start, end = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if start < end:
            both.append((start, end))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return both


def within(disjoint: Sequence[Interval], start: float, end: float) -> float:
    """How much of one interval is covered."""
    covered = 0.0
    for i in range(max(bisect_right(disjoint, (start, inf)) - 1, 0), len(disjoint)):
        if disjoint[i][0] >= end:
            break
        covered += max(0.0, min(disjoint[i][1], end) - max(disjoint[i][0], start))
    return covered


def difference(a: Sequence[Interval], b: Sequence[Interval]) -> list[Interval]:
    """What lies in `a` and not in `b`; each disjoint and sorted."""
    left: list[Interval] = []
    j = 0
    for start, end in a:
        while j < len(b) and b[j][1] <= start:
            j += 1
        k = j
        while k < len(b) and b[k][0] < end:
            if b[k][0] > start:
                left.append((start, b[k][0]))
            start = max(start, b[k][1])
            k += 1
        if start < end:
            left.append((start, end))
    return left


@dataclass(frozen=True, kw_only=True)
class Busy:
    """What a device did in a window. The parts may overlap; idle is what none of them covers."""

    window: float
    compute: float
    communication: float
    exposed_communication: float  # while nothing is computed
    memory: float
    idle: float


def busy(
    compute: Iterable[Interval],
    communication: Iterable[Interval],
    memory: Iterable[Interval],
    *,
    window: Interval,
    other: Iterable[Interval] = (),
    inverted: bool = False,
) -> Busy:
    """`other`: what keeps the device from being idle, and is none of the three. `inverted`: as of `union`."""
    compute, communication, memory = list(compute), list(communication), list(memory)
    anything = union([*compute, *communication, *memory, *other], inverted=inverted)
    communicating = length(union(communication, inverted=inverted))
    return Busy(
        window=window[1] - window[0],
        compute=length(union(compute, inverted=inverted)),
        communication=communicating,
        exposed_communication=communicating - overlap(union(communication), union(compute)),
        memory=length(union(memory, inverted=inverted)),
        idle=max(window[1] - window[0] - length(anything), 0.0),
    )
