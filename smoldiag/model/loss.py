"""The loss of runs, from their metrics: noise, spikes, divergence, joins after a resume, two runs side by side. Pure.

Two runs are paired at equal tokens (else equal steps): what both see of the same data cancels out, so that a gap far
below the noise of one run can be told.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from smoldiag.facts.series import Series
from smoldiag.model.remember import by_identity
from smoldiag.model.series import begins, points_axis, running_median
from smoldiag.model.stats import median

MIN_ROWS = 20
SETTLED = 0.10  # of the tokens, at whose start losses fall fast and differ with everything
WINDOW = 101  # rows of the running median that noise is told against; a tenth of a shorter series
SPIKE_SIGMAS = 8.0
SPIKE_LEAST = 0.05  # of the loss
RISE_SIGMAS = 10.0
RISE_LEAST = 0.08  # of the loss: other data, another schedule and restarts move it less in published runs
DIVERGED = 0.25  # of the loss
MAX_SPIKES = 200
MIN_PAIRS = 30
BLOCKS = 20  # of pairs, whose means tell how sure a gap is
JOIN_ROWS = 200  # on either side of a resume
NOT_FINITE_TAIL = 3  # rows at the end without a finite loss: it is lost
MISSING_SHARE = 0.1  # of the rows before: so many NaN are an export's word for nothing
WANDERS = 2.0  # times as far as it rose before and came back: a loss that wanders is not diverging


@dataclass(frozen=True, kw_only=True)
class Spike:
    at: float
    loss: float
    above: float  # the running median
    rows: int


@dataclass(frozen=True, kw_only=True)
class Join:
    """Where a run goes on after a restart."""

    a: str
    b: str  # the same as `a` within one file
    at: float  # step, else tokens, from which on it was repeated
    repeated: float  # steps, else tokens
    before: float  # mean loss of the last rows before
    after: float  # of the first rows after
    noise: float
    rows: int

    @property
    def jump(self) -> float:
        return self.after - self.before

    @property
    def is_clean(self) -> bool:
        return self.jump <= max(4 * self.noise / math.sqrt(self.rows), 0.01 * self.before)


@dataclass(frozen=True, kw_only=True)
class Loss:
    axis: str  # tokens | step | row
    rows: int
    first: float  # loss of the first row
    last: float  # median of the last rows
    lowest: float  # of the running median
    noise: float  # standard deviation from the running median, without spikes
    lag1: float  # correlation of a row's deviation with the one before
    not_finite: int
    lost_from: float | None  # where the loss stopped being a number for good
    spikes: tuple[Spike, ...]  # that came back
    rises_from: float | None  # where it left its trend for good
    end_above: float  # the last rows above the lowest

    @property
    def diverged(self) -> bool:
        learned = max(self.first - self.lowest, 0.0)
        return self.rises_from is not None and self.end_above >= DIVERGED * max(abs(self.lowest), 0.5 * learned)


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Losses of two runs at the same tokens: `above` has the higher ones."""

    above: str
    below: str
    where: str  # of `above`
    axis: str
    pairs: int
    mean: float
    std: float
    positive: float  # share of the pairs in which `above` is above
    sigmas: float  # the mean over its standard error, from means of blocks
    early: float  # mean over the first quarter of the pairs
    late: float
    noises: tuple[float, float]  # of each alone, about its running median
    levels: tuple[float, float]  # median loss over the later half

    @property
    def shape(self) -> str:
        if abs(self.late - self.early) <= max(0.5 * abs(self.mean), 1e-9):
            return "constant"
        return "growing" if abs(self.late) > abs(self.early) else "shrinking"


@by_identity
def points(series: Series) -> tuple[tuple[float, float], ...]:
    """(tokens, else step, else row; loss) in the order of the file, means over ranks; NaN where it was written."""
    groups: dict[tuple[int, float], list[float]] = {}
    parts: dict[float | None, tuple[int, float]] = {}  # of each rank, whose lines may stand one rank after the other
    for x, loss, rank in zip(axis(series), series.column("loss"), series.column("rank"), strict=True):
        if x is None or loss is None:
            continue
        part, last = parts.get(rank, (0, -math.inf))
        part += x < last
        parts[rank] = part, x
        groups.setdefault((part, x), []).append(loss)
    return tuple((x, sum(v) / len(v)) for (_, x), v in groups.items())


def axis(series: Series) -> Sequence[float | None]:
    """Of each row the tokens, else the step, else its number."""
    return series.column("tokens") if series.has("tokens") else points_axis(series)


def axis_name(series: Series) -> str:
    return next((name for name in ("tokens", "step") if series.has(name)), "row")


@by_identity
def loss(series: Series) -> Loss | None:
    """None where too few losses are told."""
    everything = points(series)
    finite = [(x, v) for x, v in everything if math.isfinite(v)]
    if len(finite) < MIN_ROWS:
        return None
    missing = len(everything) - len(finite)
    tail = len(everything) - 1 - max(i for i, (_, v) in enumerate(everything) if math.isfinite(v))
    xs, values = [x for x, _ in finite], [v for _, v in finite]
    trend = running_median(values, _window(len(values)))
    off = [v - t for v, t in zip(values, trend, strict=True)]
    settled = _settled(xs)
    noise, lag1 = _noise(off[settled:])
    level = abs(median(values[len(values) // 2 :]))
    limit = max(SPIKE_SIGMAS * _sigma(off[settled:]), SPIKE_LEAST * level)
    slow = running_median(values, max(5, len(values) // 50 | 1))
    lowest = min(slow)
    ending = median(values[-max(5, len(values) // 50) :])
    rises = _rises(xs, slow, noise=_sigma(off[settled:]), lowest=lowest, ending=ending)
    settling = xs[min(settled, len(xs) - 1)] - xs[0]
    anew = begins(series) if axis_name(series) == "step" else ()
    spikes = [
        s
        for s in _spikes(xs, values, off, limit, first=settled)
        if not any(x <= s.at <= x + settling for x in (xs[0], *anew))
    ]
    if rises is not None:
        near = 0.05 * (xs[-1] - xs[0])
        rises = min([rises, *(s.at for s in spikes if rises - near <= s.at <= rises)])
        spikes = [s for s in spikes if s.at < rises]
    return Loss(
        axis=axis_name(series),
        rows=len(finite),
        first=values[0],
        last=ending,
        lowest=lowest,
        noise=noise,
        lag1=lag1,
        not_finite=missing,
        lost_from=everything[-tail][0]
        if tail >= NOT_FINITE_TAIL and missing - tail <= MISSING_SHARE * len(finite)
        else None,
        spikes=tuple(spikes[:MAX_SPIKES]),
        rises_from=rises,
        end_above=ending - lowest,
    )


def _window(rows: int) -> int:
    return min(WINDOW, max(5, rows // 10)) | 1


def _settled(xs: Sequence[float]) -> int:
    """The place from which on the loss falls slowly."""
    start = xs[0] + SETTLED * (xs[-1] - xs[0])
    return min(sum(x < start for x in xs), len(xs) - MIN_ROWS // 2)


def _sigma(off: Sequence[float]) -> float:
    middle = median(off)
    return 1.4826 * median([abs(v - middle) for v in off])


def _noise(off: Sequence[float]) -> tuple[float, float]:
    """Standard deviation and lag-1 correlation, without what is far out."""
    limit = 6 * max(_sigma(off), 1e-12)
    kept = [v for v in off if abs(v) <= limit]
    if len(kept) < 3:
        return 0.0, 0.0
    mean = sum(kept) / len(kept)
    variance = sum((v - mean) ** 2 for v in kept) / len(kept)
    lag = sum((a - mean) * (b - mean) for a, b in pairwise(kept)) / len(kept)
    return math.sqrt(variance), lag / variance if variance else 0.0


def _spikes(
    xs: Sequence[float], values: Sequence[float], off: Sequence[float], limit: float, *, first: int
) -> list[Spike]:
    found: list[Spike] = []
    group: list[int] = []
    for i in range(first, len(values) + 1):
        if i < len(values) and off[i] > limit:
            group.append(i)
        elif group:
            top = max(group, key=lambda k: values[k])
            found.append(Spike(at=xs[top], loss=values[top], above=off[top], rows=len(group)))
            group = []
    return found


def _rises(xs: Sequence[float], slow: Sequence[float], *, noise: float, lowest: float, ending: float) -> float | None:
    """Where the running median left its lowest level and never came back to it."""
    if ending - lowest < max(RISE_SIGMAS * noise, RISE_LEAST * abs(lowest)):
        return None
    near = lowest + max(4 * noise, 0.01 * abs(lowest))
    last = max(i for i, v in enumerate(slow) if v <= near)
    least, rose = math.inf, 0.0
    for v in slow[: last + 1]:
        least = min(least, v)
        rose = max(rose, v - least)
    if ending - lowest < WANDERS * rose:
        return None
    return xs[min(last + 1, len(xs) - 1)]


def gap(a: Series, b: Series) -> Gap | None:
    """None where they have too few losses at the same tokens (or steps)."""
    name = axis_name(a)
    if name == "row" or name != axis_name(b):
        return None
    at_a, at_b = _finite(a), _finite(b)
    if min(len(at_a), len(at_b)) < MIN_PAIRS:
        return None
    start, end = max(min(at_a), min(at_b)), min(max(at_a), max(at_b))
    shared = sorted(x for x in at_a.keys() & at_b.keys() if x > SETTLED * end)
    if len(shared) < MIN_PAIRS:
        return None
    differences = [at_a[x] - at_b[x] for x in shared]
    mean = sum(differences) / len(differences)
    if mean < 0:
        return gap(b, a)
    std = math.sqrt(sum((d - mean) ** 2 for d in differences) / (len(differences) - 1))
    quarter = max(1, len(differences) // 4)
    size = len(differences) / BLOCKS
    means = [_mean(differences[round(i * size) : round((i + 1) * size)]) for i in range(BLOCKS)]
    error = math.sqrt(sum((m - mean) ** 2 for m in means) / (BLOCKS - 1) / BLOCKS)
    figures = [loss(s) for s in (a, b)]
    return Gap(
        above=a.label,
        below=b.label,
        where=a.where,
        axis=name,
        pairs=len(differences),
        mean=mean,
        std=std,
        positive=sum(d > 0 for d in differences) / len(differences),
        sigmas=mean / error if error > 0 else math.inf,
        early=_mean(differences[:quarter]),
        late=_mean(differences[-quarter:]),
        noises=(figures[0].noise if figures[0] else 0.0, figures[1].noise if figures[1] else 0.0),
        levels=tuple(median([v for x, v in at.items() if (start + end) / 2 <= x <= end]) for at in (at_a, at_b)),  # type: ignore[arg-type]
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@by_identity
def _finite(series: Series) -> Mapping[float, float]:
    return {x: v for x, v in points(series) if math.isfinite(v)}


@by_identity
def joins(series: Series) -> tuple[Join, ...]:
    """Restarts within one file: the steps go back."""
    found = []
    rows = [(x, v) for x, v in points(series) if math.isfinite(v)]
    for i, (before, after) in enumerate(pairwise(rows), 1):
        if after[0] < before[0]:
            found.append(_join(series, series, rows[:i], rows[i:]))
    return tuple(j for j in found if j)


def resumed(a: Series, b: Series) -> Join | None:
    """Where `b` goes on with what `a` did: it begins within the later part of `a` and reaches further."""
    name = axis_name(a)
    rows_a, rows_b = ([(x, v) for x, v in points(s) if math.isfinite(v)] for s in (a, b))
    if name == "row" or name != axis_name(b) or min(len(rows_a), len(rows_b)) < MIN_ROWS:
        return None
    first_a, last_a, first_b, last_b = rows_a[0][0], rows_a[-1][0], rows_b[0][0], rows_b[-1][0]
    steps = last_a - first_a
    if not (first_a + 0.2 * steps < first_b <= last_a + 0.05 * steps and last_b > last_a):
        return None
    return _join(a, b, rows_a, rows_b)


def _join(
    a: Series, b: Series, before: Sequence[tuple[float, float]], after: Sequence[tuple[float, float]]
) -> Join | None:
    rows = min(JOIN_ROWS, len(before), len(after))
    if rows < 5:
        return None
    figures = loss(a)
    at, until = after[0][0], before[-1][0]
    if a.has("step") and b.has("step") and axis_name(a) == "tokens":
        at, until = _as_step(b, at), _as_step(a, until)
    return Join(
        a=a.label,
        b=b.label,
        at=at,
        repeated=max(0.0, until - at),
        before=_mean([v for _, v in before[-rows:]]),
        after=_mean([v for _, v in after[:rows]]),
        noise=figures.noise if figures else 0.0,
        rows=rows,
    )


def _as_step(series: Series, tokens: float) -> float:
    rows = zip(series.column("tokens"), series.column("step"), strict=True)
    return next((s for t, s in rows if t == tokens and s is not None), tokens)
