"""Who of a fleet is slow: one figure per device, held against the median of its equals.

Robust: the median and the median absolute deviation (MAD) are not moved by a few slow devices. The spread has a
floor, since a handful of equal figures would make a hair's breadth an outlier. Where there is no majority - two
hosts, or half of the devices - nobody is named.
"""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from smoldiag.model.stats import median

K = TypeVar("K", bound=Hashable)
LEAST_MEMBERS = 3
SIGMAS = 5.0  # of a fleet of 4,096 healthy devices with normal spread, one in 800 fleets has one so far out
MAD_TO_SIGMA = 1.4826  # of a normal distribution: 1 / Phi^-1(3/4)
SPREAD_FLOOR = 0.02  # of the median; equal H100s differ by 1 to 3 % in a matrix product under a power cap


@dataclass(frozen=True)
class Slow:
    value: float
    usual: float  # median of all, higher is better

    @property
    def shortfall(self) -> float:
        """0.25: a quarter of the usual figure is missing."""
        return 1 - self.value / self.usual


def slow(values: Mapping[K, float], *, shortfall: float, spread_floor: float = SPREAD_FLOOR) -> dict[K, Slow]:
    """Those whose figure (higher is better) is below the median by `shortfall` and out of the others' spread."""
    if len(values) < LEAST_MEMBERS:
        return {}
    usual = median(list(values.values()))
    spread = MAD_TO_SIGMA * median([abs(v - usual) for v in values.values()])
    least_gap = max(SIGMAS * max(spread, spread_floor * usual), shortfall * usual)
    found = {key: Slow(value, usual) for key, value in values.items() if usual > 0 and usual - value > least_gap}
    return dict(sorted(found.items(), key=lambda item: item[1].value))


def geometric_mean(values: list[float]) -> float:
    """Of ratios or rates. Raises ValueError without values, or for one that is not positive."""
    if not values or min(values) <= 0:
        raise ValueError("needs positive values")
    return math.exp(sum(map(math.log, values)) / len(values))


def dissenters(checksums: Mapping[K, str]) -> tuple[tuple[K, ...], bool]:
    """(who differs, whether it is certain that they are the wrong ones). All where there is no majority."""
    if len(set(checksums.values())) < 2:
        return (), True
    counts: dict[str, int] = {}
    for value in checksums.values():
        counts[value] = counts.get(value, 0) + 1
    usual = max(counts, key=lambda value: counts[value])
    if counts[usual] * 2 <= len(checksums):
        return tuple(checksums), False
    return tuple(key for key, value in checksums.items() if value != usual), True
