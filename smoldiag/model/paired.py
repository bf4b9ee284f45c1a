"""Two series of the same figure: how far apart they are, and whether that is more than noise. Pure arithmetic.

Neighbouring steps are not independent: what disturbs one of them lasts for several. So each series is cut into batches
of neighbours, and the difference is held against the spread of the batches (batch means, with Welch's interval).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log, sqrt
from statistics import NormalDist, fmean, variance

from smoldiag.model.stats import median

Middle = Callable[[Sequence[float]], float]

CONFIDENCE = 0.99  # of the interval: a comparison looks at dozens of figures
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
ALIKE = 0.25  # correlation of neighbouring batches from which on they are no repeats: 20 of noise stay below 0.4
MIN_BATCHES, MAX_BATCHES = 4, 20  # on each side; fewer say nothing about noise
BATCH = 5  # values in a batch, where there are enough for MIN_BATCHES
MIN_SAMPLES = 2 * MIN_BATCHES
MIN_CHANGE_PERCENT = 2.0  # smaller ones are not worth a word: docs/train.md, steps spread by 2 to 4 %
SHORT_RUN_S = 30.0  # what disturbs a machine lasts for seconds to minutes: a shorter run saw one state of it
SHORT_RUN_PERCENT = 15.0  # so that two such runs of the same thing may differ by this


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Between the middles of two series."""

    a: float
    b: float
    low: float | None  # of b - a; None: a series is too short to tell
    high: float | None

    @property
    def percent(self) -> float:
        """Of a; 0 where a is 0."""
        return 100 * (self.b - self.a) / abs(self.a) if self.a else 0.0

    @property
    def excludes_zero(self) -> bool | None:
        if self.low is None or self.high is None:
            return None
        return self.low > 0 or self.high < 0


def difference(a: Sequence[float], b: Sequence[float], middle: Middle = median) -> Difference:
    """`middle`: `median` of typical values, `fmean` of what adds up to a whole. Raises ValueError without values."""
    in_a, in_b = _batches(a, middle), _batches(b, middle)
    mid_a, mid_b = middle(a), middle(b)
    if in_a is None or in_b is None:
        return Difference(a=mid_a, b=mid_b, low=None, high=None)
    half = _half_width(in_a, in_b)
    return Difference(a=mid_a, b=mid_b, low=mid_b - mid_a - half, high=mid_b - mid_a + half)


def of_pairs(gaps: Sequence[float]) -> tuple[float, float, float] | None:
    """Mean of differences that belong together, and its interval; None where they are too few."""
    batches = _batches(gaps, fmean)
    if batches is None:
        return None
    mean, half = fmean(gaps), _half_width(batches, None)
    return mean, mean - half, mean + half


def of_ratios(a: Sequence[float], b: Sequence[float]) -> Difference | None:
    """Of figures that were taken in pairs, as by size: the typical ratio b / a, as if a were 1.

    None without values. Sizes are no repeats of each other, so that their spread is an upper bound for noise.
    """
    logs = [log(y / x) for x, y in zip(a, b, strict=True) if x > 0 and y > 0]
    if not logs:
        return None
    ratio = exp(median(logs))
    if len(logs) < MIN_BATCHES:
        return Difference(a=1.0, b=ratio, low=None, high=None)
    half = _t(len(logs) - 1) * sqrt(variance(logs) / len(logs))
    return Difference(a=1.0, b=ratio, low=ratio * (1 - half) - 1, high=ratio * (1 + half) - 1)


def rare(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Of the means of what few steps have at all: the error of so many events of such sizes (compound Poisson)."""
    mid_a, mid_b = fmean(a), fmean(b)
    half = Z * sqrt(sum(sum(v * v for v in values) / len(values) ** 2 for values in (a, b)))
    return Difference(a=mid_a, b=mid_b, low=mid_b - mid_a - half, high=mid_b - mid_a + half)


def _batches(values: Sequence[float], middle: Middle) -> list[float] | None:
    """As many as there are values for, fewer and longer ones while neighbours are alike."""
    if len(values) < MIN_SAMPLES:
        return None
    count = min(max(len(values) // BATCH, MIN_BATCHES), MAX_BATCHES)
    while True:
        edges = [len(values) * i // count for i in range(count + 1)]
        batches = [middle(values[low:high]) for low, high in pairwise(edges)]
        if count == MIN_BATCHES or _alikeness(batches) < ALIKE:
            return batches
        count = max(count // 2, MIN_BATCHES)


def _alikeness(values: Sequence[float]) -> float:
    """Correlation of each value with the next."""
    mean = fmean(values)
    spread = sum((v - mean) ** 2 for v in values)
    return sum((x - mean) * (y - mean) for x, y in pairwise(values)) / spread if spread else 0.0


def _half_width(a: Sequence[float], b: Sequence[float] | None) -> float:
    """Welch's, with Satterthwaite's degrees of freedom."""
    parts = [variance(x) / len(x) for x in (a, b) if x]
    total = sum(parts)
    if total <= 0:
        return 0.0
    sizes = [len(x) for x in (a, b) if x]
    freedom = total**2 / sum(p**2 / (n - 1) for p, n in zip(parts, sizes, strict=True))
    return _t(freedom) * sqrt(total)


def _t(freedom: float) -> float:
    """Student's t for CONFIDENCE, two-sided; from 3 degrees of freedom on within 4 % (Abramowitz and Stegun 26.7.5)."""
    z, v = Z, max(freedom, 3.0)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
