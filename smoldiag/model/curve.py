"""The shape of a bandwidth curve: its plateau, its latency floor, where it rises, where it breaks. Pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from smoldiag.facts.tables import Row

SMALL_BYTES = 64 * 2**10  # below it the time of a collective is its latency
LARGE_BYTES = 16 * 2**20  # from here on bandwidth decides on every machine that is published
DROP_RATIO = 0.75  # of the plateau that was reached: a protocol switch costs less and the curve recovers
COLLAPSE_RATIO = 0.40  # of both neighbouring sizes
LEVEL_RATIO = 0.6  # lowest to highest behind a step
MIN_DROP_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What a table's rows by size say. Bandwidths in GB/s."""

    plateau_gbs: float  # the best of all sizes
    plateau_bytes: int
    largest_bytes: int
    largest_gbs: float
    latency_us: float | None  # least time of the small sizes
    half_bytes: int | None  # the smallest size that reaches half of the plateau


@dataclass(frozen=True, kw_only=True)
class Break:
    """A place where the bandwidth falls: at one size, or from one size on."""

    before: Row
    at: Row
    after: Row | None  # the size behind it, where it recovers
    lost_ratio: float  # 0-1
    level: bool = True  # whether it stays there, rather than falling on


def by_size(rows: Sequence[Row]) -> list[Row]:
    """Rows with size and rate, one for each size, in its order."""
    kept = {r.size_bytes: r for r in rows if r.size_bytes and r.best_gbs is not None}
    return [kept[size] for size in sorted(kept)]


def curve(rows: Sequence[Row]) -> Curve | None:
    ordered = by_size(rows)
    if not ordered:
        return None
    best = max(ordered, key=_rate)
    small = [t for r in ordered if _size(r) <= SMALL_BYTES and (t := _time(r)) is not None]
    half = next((_size(r) for r in ordered if _rate(r) >= _rate(best) / 2), None)
    return Curve(
        plateau_gbs=_rate(best),
        plateau_bytes=_size(best),
        largest_bytes=_size(ordered[-1]),
        largest_gbs=_rate(ordered[-1]),
        latency_us=min(small, default=None),
        half_bytes=half,
    )


def collapses(rows: Sequence[Row]) -> list[Break]:
    """Sizes far below both neighbours, out of place and in place alike."""
    ordered = [r for r in by_size(rows) if _size(r) >= SMALL_BYTES]
    found = []
    for before, at, after in zip(ordered, ordered[1:], ordered[2:], strict=False):
        level = min(_rate(before), _rate(after))
        if level > 0 and _rate(at) < COLLAPSE_RATIO * level:
            found.append(Break(before=before, at=at, after=after, lost_ratio=1 - _rate(at) / level))
    return found


def drop(rows: Sequence[Row]) -> Break | None:
    """The size from which on the bandwidth stays below what smaller messages reach."""
    ordered = [r for r in by_size(rows) if _size(r) >= MIN_DROP_BYTES]
    for i, (before, at) in enumerate(pairwise(ordered)):
        reached = max(_rate(r) for r in ordered[: i + 1])
        rest = ordered[i + 1 :]
        if len(rest) >= 2 and _rate(before) >= 0.9 * reached and max(map(_rate, rest)) < DROP_RATIO * reached:
            low, high = min(map(_rate, rest)), max(map(_rate, rest))
            return Break(
                before=before, at=at, after=None, lost_ratio=1 - high / reached, level=low >= LEVEL_RATIO * high
            )
    return None


def _rate(row: Row) -> float:
    return row.best_gbs or 0.0


def _size(row: Row) -> int:
    return row.size_bytes or 0


def _time(row: Row) -> float | None:
    times = [m.time_us for m in (row.out_of_place, row.in_place) if m is not None and m.time_us]
    return min(times, default=None)
