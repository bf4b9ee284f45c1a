"""Sets of time intervals: unions, what lies in one and not in another, lengths. Pure; any unit."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Interval = tuple[float, float]  # (start, end)


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Disjoint and sorted."""
    joined: list[Interval] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1]:
            if end > joined[-1][1]:
                joined[-1] = (joined[-1][0], end)
        elif end > start:
            joined.append((start, end))
    return joined


def length(disjoint: Iterable[Interval]) -> float:
    return sum(end - start for start, end in disjoint)


def overlap(a: Sequence[Interval], b: Sequence[Interval]) -> float:
    """How long both are on; each disjoint and sorted."""
    total, i, j = 0.0, 0, 0
    while i < len(a) and j < len(b):
        total += max(0.0, min(a[i][1], b[j][1]) - max(a[i][0], b[j][0]))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return total


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
    compute: Iterable[Interval], communication: Iterable[Interval], memory: Iterable[Interval], *, window: Interval
) -> Busy:
    computing, communicating, copying = union(compute), union(communication), union(memory)
    anything = union([*computing, *communicating, *copying])
    return Busy(
        window=window[1] - window[0],
        compute=length(computing),
        communication=length(communicating),
        exposed_communication=length(communicating) - overlap(communicating, computing),
        memory=length(copying),
        idle=max(window[1] - window[0] - length(anything), 0.0),
    )
