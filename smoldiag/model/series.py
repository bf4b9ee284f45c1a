"""How fast a run went, from its metrics: warm-up, changes of pace, single slow steps, what they cost. Pure.

Speeds are in the series' own unit, of times of steps in steps per second. A slow step is told against the stretch of
the run that it is in; shares and rates are of the rows that are there, so that a log of every tenth step reads alike.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from smoldiag.facts.run import Run
from smoldiag.facts.series import Series
from smoldiag.model.remember import by_identity
from smoldiag.model.stats import median, percentile

WARM_UP_STEPS = 20  # compilation, allocator and connections in the Smol Training Playbook's runs
LONG = 200  # rows from which on that many steps are left out
SHORT_WARM_UP = 0.02  # of the rows of a shorter series, at least two
MIN_ROWS = 8
MIN_EPOCH = 10  # steps that are counted before they start over
DIP_RATIO = 0.90  # of the usual speed
DIP_SIGMAS = 5.0  # below the usual speed, where the steps scatter so much that 0.90 is no exception
MAX_BLOCKS = 600  # medians of so many blocks stand for a longer series
MIN_STRETCH = 10  # rows or blocks of which a stretch consists at least
MIN_CHANGE = 0.08  # of the speed, from one stretch to the next
APART = 0.85  # of the rows on either side of a change that lie on their side of the middle
CLUSTER_GAP = 4  # steps between slow steps that belong together
MIN_PERIODS = 4
COVERAGE = 0.8  # of the multiples of a period that are slow
MAX_PERIODIC_SHARE = 0.25
NARROW = 1.5  # p95 over p5 of what slow steps take longer: a constant cost
DEEP_RATIO = 0.25
SAME_VALUES = 0.9  # of the rows of two series that are equal: one run in two files
RUN_FOLDER = "run folder"  # the source of metrics of which phases say more: other rules judge their speed
_NODES = re.compile(
    r"(?:^|[^A-Za-z0-9])nn0*([1-9]\d{0,3})(?![A-Za-z0-9])|"
    r"(?:^|[^A-Za-z0-9])0*([1-9]\d{0,3})(?:nn(?![A-Za-z])|[ _-]?nodes?(?![A-Za-z]))"
)


@dataclass(frozen=True, kw_only=True)
class Point:
    step: float  # of tokens or rows where there are no steps
    speed: float
    time_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Dip:
    """A step that is far slower than its stretch of the run."""

    step: float
    ratio: float  # of the usual speed
    extra_steps: float  # so many usual steps longer
    time_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A part of the run with one pace."""

    first: float
    last: float
    rows: int
    median: float
    harmonic: float
    time_lost: float  # share of its time beyond its median
    cv: float  # standard deviation over mean, of the rows that are not slow
    dip_below: float  # of its median
    dips: int
    time_s: float | None = None  # when it began


@dataclass(frozen=True, kw_only=True)
class Period:
    every: int  # steps
    offset: int  # slow where step % every == offset
    dips: int
    extra_steps: float  # median


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The speed of one series. Slow steps of `periods` are among `dips`; `irregular` has those without."""

    unit: str  # tokens/s/GPU ...; s where times of steps were written
    axis: str  # step | tokens | row
    rows: int  # that count
    first: float
    last: float
    sampled: float  # share of the steps between first and last that have a row
    warm_up: int  # rows left out at the start
    warm_up_least: float | None  # the slowest of them
    median: float
    mean: float
    harmonic: float  # rows over time: what a run of these rows reaches
    least: float
    below_90: float  # shares of the rows below so much of the median
    below_50: float
    below_25: float
    time_lost: float  # share of the time that goes beyond the median's
    usual_cv: float  # of the rows at 0.9 of the median or above
    drift: float  # share of the speed that is gained (lost: below 0) along the longest stretch, on a straight line
    stretches: tuple[Stretch, ...]
    dips: tuple[Dip, ...]
    irregular: tuple[Dip, ...]
    periods: tuple[Period, ...]
    clusters: int  # groups of irregular dips at most 4 steps apart
    longest_cluster: int

    @property
    def is_time(self) -> bool:
        return self.unit == "s"

    @property
    def rate(self) -> float:
        """Share of the rows that are slow without a period."""
        return len(self.irregular) / self.rows

    @property
    def lost(self) -> float:
        """Share of the time that the irregular slow steps take longer."""
        return _lost(self.irregular, self.rows)

    def extra(self, percent: float) -> float:
        """Of the irregular slow steps, in usual steps."""
        return percentile([d.extra_steps for d in self.irregular], percent)

    @property
    def narrow(self) -> bool:
        """Whether all slow steps cost about the same."""
        return len(self.irregular) >= 5 and self.extra(95) <= NARROW * max(self.extra(5), 1e-9)

    @property
    def deep_share(self) -> float:
        """Of the irregular slow steps, those below a quarter of the usual speed."""
        return sum(d.ratio < DEEP_RATIO for d in self.irregular) / max(len(self.irregular), 1)


def _lost(dips: Sequence[Dip], rows: int) -> float:
    extra = sum(d.extra_steps for d in dips)
    return extra / (rows + extra)


def nodes(series: Series) -> int | None:
    """How many nodes the name of the run says, else that of the file: `nn48`, `1node`."""
    for name in (series.name, series.where):
        if match := _NODES.search(name):
            return int(match[1] or match[2])
    return None


def speed_unit(series: Series) -> str | None:
    """Which column tells the speed: `s`, a throughput's unit, or `derived`; None where none does."""
    counts = {name: sum(v is not None for v in series.column(name)) for name in ("step_s", "rate")}
    if counts["rate"] and (counts["rate"] >= 2 * counts["step_s"] or series.source == "nanotron"):
        return series.rate_unit
    if counts["step_s"]:
        return "s"
    clock = "elapsed_s" if series.has("elapsed_s") else "time_s"
    fine = any(v is not None and v % 1 for v in series.column(clock))
    return "derived" if fine and series.has("step") else None


def of_run(run: Run) -> Series:
    """What the step monitor recorded, as metrics."""
    rows = sorted(run.steps, key=lambda s: (s.step, s.rank))
    noted = {name: tuple(s.notes.get(name) for s in rows) for name in ("loss", "grad_norm")}
    return Series(
        where=run.where,
        source=RUN_FOLDER,
        columns={
            "step": tuple(float(s.step) for s in rows),
            "time_s": tuple(s.time or None for s in rows),
            "rank": tuple(float(s.rank) for s in rows),
            "step_s": tuple(s.step_us / 1e6 for s in rows),
            "data_s": tuple(s.phases_us.get("data", 0.0) / 1e6 for s in rows),
            **{name: column for name, column in noted.items() if any(v is not None for v in column)},
        },
    )


def tells_times(series: Series) -> bool:
    """Whether its speed is written as times of steps."""
    return speed_unit(series) in ("s", "derived")


@by_identity
def points(series: Series) -> tuple[Point, ...]:
    """By step, with the median of several ranks; of a step that ran twice the later time counts."""
    unit = speed_unit(series)
    if unit is None:
        return ()
    if unit == "derived":
        return _derived(series)
    values = series.column("step_s" if unit == "s" else "rate")
    axis = points_axis(series)
    groups: dict[float, dict[float | None, tuple[float, float | None]]] = {}
    for step, value, rank, at in zip(axis, values, series.column("rank"), series.column("time_s"), strict=True):
        if step is not None and value is not None and value > 0:
            groups.setdefault(step, {})[rank] = (1 / value if unit == "s" else value, at)
    found = []
    for step, group in sorted(groups.items()):
        at = next((t for _, t in group.values() if t is not None), None)
        found.append(Point(step=step, speed=median([v for v, _ in group.values()]), time_s=at))
    return tuple(found)


def points_axis(series: Series) -> Sequence[float | None]:
    """Of each row the step, else the tokens, else its number. Steps that start over with an epoch go on."""
    if series.has("step"):
        return _going_on(series)
    if series.has("tokens"):
        return series.column("tokens")
    return tuple(float(i) for i in range(1, series.rows + 1))


@by_identity
def _going_on(series: Series) -> tuple[float | None, ...]:
    """The steps, counted on where a log begins anew."""
    return _parts(series)[0]


def begins(series: Series) -> tuple[float, ...]:
    """Where on the axis of steps a log begins anew."""
    return _parts(series)[1]


@by_identity
def _parts(series: Series) -> tuple[tuple[float | None, ...], tuple[float, ...]]:
    first = next((s for s in series.column("step") if s is not None), 0.0)
    last: dict[float | None, float] = {}
    before: dict[float | None, float] = {}
    found: list[float | None] = []
    anew: set[float] = set()
    for step, rank in zip(series.column("step"), series.column("rank"), strict=True):
        if step is None:
            found.append(None)
            continue
        ended = last.get(rank, step)
        if step <= first + 1 and ended >= step + MIN_EPOCH:
            before[rank] = before.get(rank, 0.0) + ended + 1 - first
            anew.add(step + before[rank])
        last[rank] = step
        found.append(step + before.get(rank, 0.0))
    return tuple(found), tuple(sorted(anew))


def axis_name(series: Series) -> str:
    return "step" if series.has("step") else "tokens" if series.has("tokens") else "row"


def _derived(series: Series) -> tuple[Point, ...]:
    """From the clock of the rows: steps per second since the row before."""
    clock = series.column("elapsed_s" if series.has("elapsed_s") else "time_s")
    rows = [(s, c) for s, c in zip(series.column("step"), clock, strict=True) if s is not None and c is not None]
    return tuple(
        Point(step=b, speed=(b - a) / (after - before), time_s=after if not series.has("elapsed_s") else None)
        for (a, before), (b, after) in pairwise(rows)
        if b > a and after > before
    )


@by_identity
def pace(series: Series) -> Pace | None:
    """None where the series tells no speed, or of too few steps."""
    everything = points(series)
    if len(everything) < MIN_ROWS:
        return None
    warm = _warm_up(everything, axis_name(series))
    settled = everything[warm:]
    speeds = [p.speed for p in settled]
    usual = median(speeds)
    steady = [v for v in speeds if v >= DIP_RATIO * usual]
    bounds, drift = _bounds(speeds)
    stretches, dips = [], []
    for a, b in pairwise((0, *bounds, len(settled))):
        stretch, slow = _stretch(settled[a:b])
        stretches.append(stretch)
        dips += slow
    gap = _gap(settled)
    periods, irregular = _periods(dips, [p.step for p in settled])
    clusters = _clusters(irregular, CLUSTER_GAP * gap)
    unit = speed_unit(series) or ""
    return Pace(
        unit="s" if tells_times(series) else unit,
        axis=axis_name(series),
        rows=len(settled),
        first=settled[0].step,
        last=settled[-1].step,
        sampled=_sampled([p.step for p in settled]) if axis_name(series) == "step" else 1.0,
        warm_up=warm,
        warm_up_least=min((p.speed for p in everything[:warm]), default=None),
        median=usual,
        mean=sum(speeds) / len(speeds),
        harmonic=len(speeds) / sum(1 / v for v in speeds),
        least=min(speeds),
        below_90=sum(v < 0.9 * usual for v in speeds) / len(speeds),
        below_50=sum(v < 0.5 * usual for v in speeds) / len(speeds),
        below_25=sum(v < 0.25 * usual for v in speeds) / len(speeds),
        time_lost=_time_lost(speeds, usual),
        usual_cv=_cv(steady),
        drift=drift,
        stretches=tuple(stretches),
        dips=tuple(dips),
        irregular=tuple(irregular),
        periods=tuple(periods),
        clusters=len(clusters),
        longest_cluster=max(clusters, default=0),
    )


def _warm_up(everything: Sequence[Point], axis: str) -> int:
    """How many rows at the start do not count."""
    n = len(everything)
    if n >= LONG and axis == "step":
        warm = sum(p.step < max(everything[0].step, 1) + WARM_UP_STEPS for p in everything)
    else:
        warm = max(2, int(n * SHORT_WARM_UP))
    usual = median([p.speed for p in everything[warm:]])
    while warm < n // 10 and all(p.speed < DIP_RATIO * usual for p in everything[warm : warm + 5]):
        warm += 5
    return warm


def _stretch(part: Sequence[Point]) -> tuple[Stretch, list[Dip]]:
    usual = median([p.speed for p in part])
    sigma = 1.4826 * median([abs(p.speed / usual - 1) for p in part])
    limit = min(DIP_RATIO, 1 - DIP_SIGMAS * sigma)
    dips = [
        Dip(step=p.step, ratio=p.speed / usual, extra_steps=usual / p.speed - 1, time_s=p.time_s)
        for p in part
        if p.speed < limit * usual
    ]
    stretch = Stretch(
        first=part[0].step,
        last=part[-1].step,
        rows=len(part),
        median=usual,
        harmonic=len(part) / sum(1 / p.speed for p in part),
        time_lost=_time_lost([p.speed for p in part], usual),
        cv=_cv([p.speed for p in part if p.speed >= limit * usual]),
        dip_below=limit,
        dips=len(dips),
        time_s=part[0].time_s,
    )
    return stretch, dips


def _time_lost(speeds: Sequence[float], usual: float) -> float:
    return sum(max(0.0, 1 / v - 1 / usual) for v in speeds) / sum(1 / v for v in speeds)


def _cv(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / len(values)) / mean


def _sampled(steps: Sequence[float]) -> float:
    """Share of the steps between the first and the last that have a row."""
    return min(1.0, len(steps) / max(1.0, steps[-1] - steps[0] + 1))


def _gap(settled: Sequence[Point]) -> float:
    """The usual distance of two rows, in steps."""
    return median([b.step - a.step for a, b in pairwise(settled)]) if len(settled) > 1 else 1.0


def _clusters(dips: Sequence[Dip], gap: float) -> list[int]:
    sizes: list[int] = []
    for i, dip in enumerate(dips):
        if i and dip.step - dips[i - 1].step <= gap:
            sizes[-1] += 1
        else:
            sizes.append(1)
    return sizes


def _bounds(speeds: Sequence[float]) -> tuple[list[int], float]:
    """Where the pace changes, and the share of the speed that a straight line gains along the longest stretch.

    Least squares on the logarithms of block medians with a penalty per change (optimal partitioning, Jackson 2005),
    then each change is moved to the row that tells both sides apart best.
    """
    n = len(speeds)
    block = -(-n // MAX_BLOCKS)
    blocks = [math.log(median(speeds[i : i + block])) for i in range(0, n, block)]
    smooth = running_median(blocks, 9 if block == 1 else 5)
    if len(smooth) < 2 * MIN_STRETCH:
        return [], 0.0
    cuts = _merged(smooth, _partition(smooth, blocks))
    if cuts and _rss_line(smooth) <= 1.3 * sum(_rss(smooth[a:b]) for a, b in pairwise((0, *cuts, len(smooth)))):
        cuts = []  # a slope, not steps
    a, b = max(pairwise((0, *cuts, len(smooth))), key=lambda part: part[1] - part[0])
    slope = _slope(smooth[a:b])
    drift = math.exp(slope * (b - a - 1)) - 1
    return [_refined(speeds, c * block, block) for c in cuts], drift


def running_median(values: Sequence[float], width: int) -> list[float]:
    """Centred; shorter at both ends."""
    half = width // 2
    return [median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def _partition(smooth: Sequence[float], blocks: Sequence[float]) -> list[int]:
    n = len(smooth)
    trend = running_median(blocks, 31)
    sigma = 1.4826 * median([abs(v - t) for v, t in zip(blocks, trend, strict=True)])
    penalty = 6 * sigma**2 * math.log(n) + MIN_STRETCH * MIN_CHANGE**2 / 2
    total, squares = [0.0], [0.0]
    middle = median(smooth)  # against cancellation
    for v in smooth:
        total.append(total[-1] + v - middle)
        squares.append(squares[-1] + (v - middle) ** 2)
    best = [0.0] + [math.inf] * n
    come_from = [0] * (n + 1)
    for end in range(MIN_STRETCH, n + 1):
        for start in (0, *range(MIN_STRETCH, end - MIN_STRETCH + 1)):
            length = end - start
            cost = best[start] + squares[end] - squares[start] - (total[end] - total[start]) ** 2 / length
            if cost + penalty < best[end]:
                best[end], come_from[end] = cost + penalty, start
    cuts = []
    at = n
    while at > 0:
        at = come_from[at]
        if at:
            cuts.append(at)
    return cuts[::-1]


def _merged(smooth: Sequence[float], cuts: list[int]) -> list[int]:
    """Without changes that are small, or that do not tell both sides apart."""
    least = -math.log(1 - MIN_CHANGE)
    while cuts:
        edges = (0, *cuts, len(smooth))
        levels = [median(smooth[a:b]) for a, b in pairwise(edges)]
        steps = []
        for i, cut in enumerate(cuts):
            low, high = sorted((levels[i], levels[i + 1]))
            middle = (low + high) / 2
            sides = (smooth[edges[i] : cut], smooth[cut : edges[i + 2]])
            down = levels[i] > levels[i + 1]
            right = sum((v > middle) == down for v in sides[0]) / len(sides[0])
            left = sum((v < middle) == down for v in sides[1]) / len(sides[1])
            steps.append((high - low if min(right, left) >= APART else 0.0, cut))
        size, cut = min(steps)
        if size >= least:
            return cuts
        cuts = [c for c in cuts if c != cut]
    return cuts


def _refined(speeds: Sequence[float], near: int, block: int) -> int:
    reach = max(12, 4 * block)
    a, b = max(1, near - reach), min(len(speeds) - 1, near + reach)
    before, after = median(speeds[max(0, a - 4 * reach) : a]), median(speeds[b : b + 4 * reach])
    middle = math.sqrt(before * after)
    falls = before > after
    wrong = sum((v < middle) != falls for v in speeds[a:b])  # all of them belong to the right side
    best, place = wrong, a
    for i in range(a, b):
        wrong += 1 if (speeds[i] < middle) == falls else -1
        if wrong < best:
            best, place = wrong, i + 1
    return place


def _rss(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values)


def _slope(values: Sequence[float]) -> float:
    """Of a straight line by least squares."""
    n = len(values)
    middle = (n - 1) / 2
    mean = sum(values) / n
    return sum((i - middle) * (v - mean) for i, v in enumerate(values)) / max(
        sum((i - middle) ** 2 for i in range(n)), 1e-12
    )


def _rss_line(values: Sequence[float]) -> float:
    slope, middle, mean = _slope(values), (len(values) - 1) / 2, sum(values) / len(values)
    return sum((v - mean - slope * (i - middle)) ** 2 for i, v in enumerate(values))


def _periods(dips: Sequence[Dip], steps: Sequence[float]) -> tuple[list[Period], list[Dip]]:
    """Schedules of which nearly every turn is slow, and the slow steps that belong to none."""
    left = list(dips)
    found: list[Period] = []
    while len(left) >= MIN_PERIODS and len(found) < 3 and len(left) <= MAX_PERIODIC_SHARE * len(steps):
        period, members = _best_period(left, steps)
        if period is None:
            break
        found.append(period)
        left = [d for d in left if d.step not in members]
    return found, left


def _best_period(dips: Sequence[Dip], steps: Sequence[float]) -> tuple[Period | None, set[float]]:
    places = [int(d.step) for d in dips]
    counts = Counter(b - a for a, b in pairwise(places)) + Counter(
        b - a for a, b in zip(places, places[2:], strict=False)
    )
    span = range(places[0], places[-1] + 1)
    share = _sampled(steps)
    best: tuple[int, int, int, int] | None = None  # hits, -every, offset, width
    for every in (p for p, _ in counts.most_common(40) if p >= 3):
        for width in (1, 2) if every >= 10 else (1,):
            residues = Counter(p % every for p in places)
            offset = max(residues, key=lambda r: residues[r] + (residues[(r + 1) % every] if width == 2 else 0))
            mine = [p for p in places if (p - offset) % every < width]
            turns = {(p - offset) // every for p in mine}
            if len(turns) < max(MIN_PERIODS, COVERAGE / 2 * share * len(span) / every):
                continue
            all_turns = {(int(s) - offset) // every for s in steps if (int(s) - offset) % every < width and s in span}
            if len(turns) >= COVERAGE * len(all_turns):
                best = max(best or (0, 0, 0, 0), (len(mine), -every, offset, width))
    if best is None:
        return None, set()
    hits, minus, offset, width = best
    members = {d.step for d in dips if (int(d.step) - offset) % -minus < width}
    extra = median([d.extra_steps for d in dips if d.step in members])
    return Period(every=-minus, offset=offset, dips=hits, extra_steps=extra), members


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Slow steps of two runs at the same step numbers."""

    a: str
    b: str
    of_a: int  # irregular slow steps of `a` among the rows that both have
    of_b: int
    shared: int
    by_chance: float  # so many would be, were they independent
    likelihood: float  # that chance gives as many (Poisson)
    correlation: float | None  # of their lengths
    steps: tuple[float, ...]  # the first of them

    @property
    def is_sure(self) -> bool:
        return self.shared >= 3 and self.likelihood < 1e-4


def replay(a: Series, b: Series) -> Replay | None:
    """None where one has no slow steps, or they have too few steps in common."""
    pace_a, pace_b = pace(a), pace(b)
    if pace_a is None or pace_b is None or pace_a.axis != pace_b.axis:
        return None
    both = _settled_steps(a, pace_a) & _settled_steps(b, pace_b)
    if len(both) < LONG // 2:
        return None
    dips_a = {d.step: d for d in pace_a.irregular if d.step in both}
    dips_b = {d.step: d for d in pace_b.irregular if d.step in both}
    if not dips_a or not dips_b:
        return None
    shared = sorted(dips_a.keys() & dips_b.keys())
    chance = len(dips_a) * len(dips_b) / len(both)
    sizes = [(dips_a[s].extra_steps, dips_b[s].extra_steps) for s in shared]
    return Replay(
        a=a.label,
        b=b.label,
        of_a=len(dips_a),
        of_b=len(dips_b),
        shared=len(shared),
        by_chance=chance,
        likelihood=_poisson_tail(len(shared), chance),
        correlation=_correlation(sizes) if len(sizes) >= 5 else None,
        steps=tuple(shared[:12]),
    )


def _settled_steps(series: Series, of: Pace) -> set[float]:
    return {p.step for p in points(series)[of.warm_up :]}


def _poisson_tail(count: int, expected: float) -> float:
    """P(at least `count`)."""
    if count == 0:
        return 1.0
    term = math.exp(-expected)
    below = term
    for k in range(1, count):
        term *= expected / k
        below += term
    if 1 - below > 1e-9:
        return 1 - below
    log_term = -expected + count * math.log(expected) - math.lgamma(count + 1)
    return math.exp(max(log_term, -700.0))


def _correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Pearson's, of the logarithms."""
    xs, ys = ([math.log(max(p[i], 1e-9)) for p in pairs] for i in (0, 1))
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    sx, sy = (math.sqrt(sum((v - m) ** 2 for v in vs)) for vs, m in ((xs, mx), (ys, my)))
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / (sx * sy) if sx and sy else 0.0


@by_identity
def same_run(a: Series, b: Series) -> bool:
    """Whether two files tell of one run: equal values, perhaps with steps counted from 0 and from 1."""
    xs, ys = ([p.speed for p in points(s)] for s in (a, b))
    n = min(len(xs), len(ys))
    if n < MIN_ROWS:
        return False
    at = {round(v, 6) for v in ys}
    return sum(round(v, 6) in at for v in xs[:n]) >= SAME_VALUES * n


@dataclass(frozen=True, kw_only=True)
class NodeCounts:
    """Two runs on different numbers of nodes."""

    few: str
    many: str
    nodes: tuple[int, int]
    dip_rates: tuple[float, float]
    independent: float  # rate on the many, did each node of the few stumble for itself
    speeds: tuple[float, float]  # medians

    @property
    def efficiency(self) -> float:
        return self.speeds[1] / self.speeds[0]


def node_counts(a: Series, b: Series) -> NodeCounts | None:
    """None where names do not say different numbers of nodes, or no throughput per GPU is told."""
    few, many = sorted((a, b), key=lambda s: nodes(s) or 0)
    n_few, n_many = nodes(few), nodes(many)
    pace_few, pace_many = pace(few), pace(many)
    if n_few is None or n_many is None or n_few == n_many or pace_few is None or pace_many is None:
        return None
    if pace_few.is_time != pace_many.is_time:
        return None
    return NodeCounts(
        few=few.label,
        many=many.label,
        nodes=(n_few, n_many),
        dip_rates=(pace_few.rate, pace_many.rate),
        independent=1 - (1 - pace_few.rate) ** (n_many / n_few),
        speeds=(pace_few.median, pace_many.median),
    )


@dataclass(frozen=True, kw_only=True)
class LateRank:
    """A rank whose own times are longer than those of the others."""

    rank: int
    column: str  # step_s | data_s
    usual_s: float  # median of the medians of the others
    own_s: float
    longest_share: float  # of the steps in which it is the longest
    steps: int


def late_rank(series: Series) -> LateRank | None:
    """Of the ranks that one log has, the one with the longest times; None with fewer than two ranks."""
    for column in ("data_s", "step_s"):
        by_step: dict[float, dict[int, float]] = {}
        rows = zip(series.column("step"), series.column("rank"), series.column(column), strict=True)
        for step, rank, value in rows:
            if step is not None and rank is not None and value is not None:
                by_step.setdefault(step, {})[int(rank)] = value
        ranks = {rank for at in by_step.values() for rank in at}
        whole = [at for at in by_step.values() if len(at) == len(ranks)]
        if len(ranks) < 2 or len(whole) < MIN_ROWS:
            continue
        own = {rank: median([at[rank] for at in whole]) for rank in ranks}
        worst = max(own, key=own.__getitem__)
        return LateRank(
            rank=worst,
            column=column,
            usual_s=median([s for rank, s in own.items() if rank != worst]),
            own_s=own[worst],
            longest_share=sum(max(at, key=at.__getitem__) == worst for at in whole) / len(whole),
            steps=len(whole),
        )
    return None


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Tokens of a step, where both are told."""

    per_step: float
    exact: bool  # the same in all rows


def tokens_per_step(series: Series) -> Tokens | None:
    pairs = [(s, t) for s, t in zip(series.column("step"), series.column("tokens"), strict=True) if s and t]
    if len(pairs) < MIN_ROWS:
        return None
    each = [t / s for s, t in pairs]
    usual = median(each)
    return Tokens(per_step=usual, exact=all(abs(e / usual - 1) < 1e-6 for e in each))


def summary(of: Pace) -> Mapping[str, object]:
    """For a report: figures without every single step."""
    extra = {f"p{p}": of.extra(p) for p in (5, 50, 95, 100)} if of.irregular else {}
    return {
        "unit": of.unit,
        "axis": of.axis,
        "rows": of.rows,
        "first": of.first,
        "last": of.last,
        "sampled": of.sampled,
        "warm_up_rows": of.warm_up,
        "median": of.median,
        "mean": of.mean,
        "harmonic": of.harmonic,
        "least": of.least,
        "below": {"0.9": of.below_90, "0.5": of.below_50, "0.25": of.below_25},
        "time_lost": of.time_lost,
        "usual_cv": of.usual_cv,
        "drift": of.drift,
        "stretches": of.stretches,
        "periods": of.periods,
        "dips": {
            "count": len(of.dips),
            "irregular": len(of.irregular),
            "rate": of.rate,
            "time_lost": of.lost,
            "clusters": of.clusters,
            "longest_cluster": of.longest_cluster,
            "extra_steps": extra,
            "steps": [d.step for d in of.irregular[:200]],
        },
    }
