"""The figures of two runs, benches, tables or traces beside each other: which are worse beyond noise. Pure."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from itertools import pairwise
from math import isfinite, sqrt
from statistics import fmean

from smoldiag.facts import Result, Run
from smoldiag.facts.comparison import COMMUNICATION, COMPUTE, DATA, HOST, Metric, Shift
from smoldiag.facts.series import Series
from smoldiag.facts.tables import BandwidthTable, Row
from smoldiag.facts.trace import CollectiveShare, StepShare, Trace
from smoldiag.model import loss, paired, series, step_parts
from smoldiag.model import steps as model
from smoldiag.model.paired import Difference
from smoldiag.model.sizes import human
from smoldiag.model.stats import median

STALL_RATIO = 2.0  # times the median: a step that takes longer is a stall
MIN_STALLS = 3  # fewer are chance
LOCAL_SHARE = 0.5  # of the largest change of a rank: from here on a rank is named with it
MOST_PARTS_OF_RANKS = 0.5  # of the ranks; where more have it, all have it
OFTEN = 0.5  # of the steps: a part that fewer steps have is judged by those that have it
BENCH_CHANGE_PERCENT = 10.0  # published repeats of one machine differ by 5 to 10 % (knowledge/busbw.csv)
BENCH_Z = 4.0  # standard errors: a bench has dozens of sizes, and times with long tails
LARGE_BYTES = 2**20  # from here on bandwidth decides, below the latency
MEDIAN_ERROR = 1.2533  # of the standard error of a mean: sqrt(pi / 2)
P95 = 1.645  # standard deviations above the middle
WARM_UP = 25  # steps of a log that allocate, compile and connect, at most; a tenth of a short one
LOSS_CHANGE = 0.003  # nats: a gap that stays below is what another order of summation leaves


# -- runs


def of_runs(a: Run, b: Run) -> tuple[Metric, ...]:
    """The step, its parts along the latest rank, the collectives, and on which ranks a part changed."""
    left, right = (step_parts.series(model.counted(run.steps)) for run in (a, b))
    if not left.steps or not right.steps:
        return ()
    floor = paired.MIN_CHANGE_PERCENT
    if min(left.span_s, right.span_s) < paired.SHORT_RUN_S:
        floor = paired.SHORT_RUN_PERCENT
    whole = _metric("step", "step", "us", paired.difference(left.step_us, right.step_us), floor=floor)
    whole = replace(whole, samples=(len(left.steps), len(right.steps)), cost_us=whole.b - whole.a)
    metrics = [whole, *_stalls(left.step_us, right.step_us)]
    noise = floor / 100 * whole.a  # of a step, in us: what is less of the whole is nobody's cause
    for part in dict.fromkeys((*left.parts, *right.parts)):
        metrics += _part(part, left, right, noise)
    for what in left.transfers.keys() & right.transfers.keys():
        metrics += _transfer(what, left.transfers[what], right.transfers[what], noise)
    return tuple(metrics)


def _metric(
    name: str, kind: str, unit: str, d: Difference, *, floor: float, lower_is_better: bool = True, least: float = 0.0
) -> Metric:
    """`floor`: per cent of a; `least`: in the figure's own unit. What changes by less is not significant."""
    change = d.percent
    enough = abs(change) >= floor and abs(d.b - d.a) >= least
    sure = d.excludes_zero
    scale = 100 / abs(d.a) if d.a else 0.0
    return Metric(
        name=name,
        kind=kind,
        unit=unit,
        a=d.a,
        b=d.b,
        change_percent=change,
        low=d.low * scale if d.low is not None and d.a else None,
        high=d.high * scale if d.high is not None and d.a else None,
        significant=None if sure is None else sure and (enough if d.a else abs(d.b) >= least),
        worse=d.b > d.a if lower_is_better else d.b < d.a,
    )


def _stalls(a: Sequence[float], b: Sequence[float]) -> Iterator[Metric]:
    """Steps that take more than twice the median, and the time that they cost."""
    found = [[us - median(values) for us in values if us > STALL_RATIO * median(values)] for values in (a, b)]
    rates = [len(f) / len(values) for f, values in zip(found, (a, b), strict=True)]
    if max(map(len, found)) < MIN_STALLS:
        return
    lost = [100 * sum(f) / sum(values) for f, values in zip(found, (a, b), strict=True)]
    spread = sqrt(sum(p * (1 - p) / len(v) for p, v in zip(rates, (a, b), strict=True)))
    change = rates[1] - rates[0]
    yield Metric(
        name="time lost in stalls",
        kind="stalls",
        unit="%",
        a=lost[0],
        b=lost[1],
        change_percent=100 * (lost[1] - lost[0]) / lost[0] if lost[0] else 0.0,
        significant=abs(change) > paired.Z * spread and abs(lost[1] - lost[0]) >= paired.MIN_CHANGE_PERCENT,
        worse=lost[1] > lost[0],
        samples=(len(a), len(b)),
        cost_us=fmean(b) - fmean(a),
    )


def _part(part: str, a: step_parts.Series, b: step_parts.Series, noise: float) -> Iterator[Metric]:
    """A part of the step along the latest rank, and the ranks whose own time in it changed."""
    left, right = a.parts.get(part, [0.0] * len(a.steps)), b.parts.get(part, [0.0] * len(b.steps))
    cost = fmean(right) - fmean(left)
    m = _metric(f"step: {part}", "part", "us", _typical(left, right), floor=paired.MIN_CHANGE_PERCENT, least=noise)
    if not m.significant and abs(cost) >= noise:  # it may be some long ones
        m = _metric(m.name, "part", "us", paired.difference(left, right, fmean), floor=0.0, least=noise)
    if max(m.a, m.b, abs(cost)) < noise:
        return
    area = step_parts.AREA_OF_PART.get(part, "")
    ranks = _ranks(a.own.get(part, {}), b.own.get(part, {}), worse=m.worse) if m.significant else ()
    yield replace(
        m,
        significant=m.significant and abs(cost) >= noise if m.significant is not None else None,
        samples=(len(left), len(right)),
        part=part,
        area=HOST if ranks and area == COMPUTE else area,
        ranks=ranks,
        hosts=tuple(dict.fromkeys(h for r in ranks if (h := b.hosts.get(r) or a.hosts.get(r, "")))),
        cost_us=cost,
    )


def _typical(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Of a part that few steps have, the means with all of them."""
    often = any(sum(us > 0 for us in values) >= OFTEN * len(values) for values in (a, b))
    return paired.difference(a, b, _without_stalls) if often else paired.rare(a, b)


def _without_stalls(values: Sequence[float]) -> float:
    """The middle half's mean: adds up nearly as means do, and one bad step does not move it."""
    ordered = sorted(values)
    cut = len(ordered) // 4
    return fmean(ordered[cut : len(ordered) - cut])


def _ranks(a: Mapping[int, Sequence[float]], b: Mapping[int, Sequence[float]], *, worse: bool) -> tuple[int, ...]:
    """Those that changed, where most did not; empty where all are alike, or the ranks are not the same."""
    both = sorted(a.keys() & b.keys())
    if len(both) < 2:
        return ()
    sign = 1 if worse else -1
    grown = {rank: sign * (fmean(b[rank]) - fmean(a[rank])) for rank in both}
    most = max(grown.values())
    those = tuple(rank for rank, us in grown.items() if us >= LOCAL_SHARE * most)
    return those if most > 0 and len(those) <= MOST_PARTS_OF_RANKS * len(both) else ()


def _transfer(what: tuple[str, int, str], a: Sequence[float], b: Sequence[float], noise: float) -> Iterator[Metric]:
    name, size, group = what
    d = paired.difference(a, b)
    if max(d.a, d.b) < noise:
        return
    m = _metric(
        f"{name} of {human(size)}" + (f" over {group}" if group not in ("", "all") else ""),
        "collective",
        "us",
        d,
        floor=paired.MIN_CHANGE_PERCENT,
        least=noise / 2,
    )
    yield replace(
        m, samples=(len(a), len(b)), part=name, area=COMMUNICATION, size_bytes=size, cost_us=fmean(b) - fmean(a)
    )


# -- losses


def of_losses(a: Mapping[float, float], b: Mapping[float, float]) -> tuple[Metric, ...]:
    """At the same steps (or tokens): the mean gap over their second half, where a cause has had time to show."""
    common = sorted(a.keys() & b.keys())
    late = common[len(common) // 2 :]
    found = paired.of_pairs([b[step] - a[step] for step in late])
    if found is None:
        return ()
    gap, low, high = found
    middle = fmean([a[step] for step in late])
    return (
        Metric(
            name="loss at the same step",
            kind="loss",
            unit="nats",
            a=middle,
            b=middle + gap,
            change_percent=100 * gap / abs(middle) if middle else 0.0,
            low=100 * low / abs(middle) if middle else None,
            high=100 * high / abs(middle) if middle else None,
            significant=(low > 0 or high < 0) and abs(gap) >= LOSS_CHANGE,
            worse=gap > 0,
            samples=(len(late), len(late)),
        ),
    )


def losses(run: Run) -> dict[float, float]:
    """Of the lowest rank that tells one."""
    told = [s for s in run.steps if "loss" in s.notes]
    first = min((s.rank for s in told), default=None)
    return {s.step: s.notes["loss"] for s in told if s.rank == first}


# -- metrics of any trainer


def of_series(a: Sequence[Series], b: Sequence[Series]) -> tuple[Metric, ...]:
    """Series of the same name and unit; where a side has but one of a unit, that one."""
    metrics: list[Metric] = []
    for s, t in _alike(a, b):
        is_time = series.tells_times(s)
        left, right = ([1 / v if is_time else v for v in _settled(x)] for x in (s, t))
        if not left or not right:
            continue
        factor, unit = (1e6, "us") if is_time else (1.0, s.rate_unit)
        d = paired.difference([factor * v for v in left], [factor * v for v in right])
        name = "step" if is_time else "throughput"
        named = f"{name} of {s.name}" if s.name and s.name == t.name else name
        m = _metric(named, "step", unit, d, floor=paired.MIN_CHANGE_PERCENT, lower_is_better=is_time)
        metrics.append(replace(m, samples=(len(left), len(right))))
        stalls = _stalls(*([1e6 * v if is_time else 1 / v for v in x] for x in (left, right)))
        metrics += stalls if is_time else (replace(m, cost_us=None) for m in stalls)
        waits, now = ([1e6 * v for v in x.column("data_s")[WARM_UP:] if v is not None] for x in (s, t))
        if waits and now:
            d = paired.difference(waits, now, _without_stalls)
            m = _metric(f"{name}: data", "part", "us", d, floor=paired.MIN_CHANGE_PERCENT, least=_share_of(left, s))
            metrics.append(replace(m, part="data", area=DATA, cost_us=d.b - d.a, samples=(len(waits), len(now))))
    with_loss = [[s for s in x if s.has("loss")] for x in (a, b)]
    for s, t in _pairs(*with_loss):
        metrics += of_losses(*({x: y for x, y in loss.points(side) if isfinite(y)} for side in (s, t)))
    return tuple(metrics)


def _share_of(values: Sequence[float], s: Series) -> float:
    """MIN_CHANGE_PERCENT of a step, in us; of throughputs the step is not known."""
    return paired.MIN_CHANGE_PERCENT / 100 * median(values) * 1e6 if series.tells_times(s) else 0.0


def _settled(s: Series) -> list[float]:
    """Speeds of its steps, without the warm-up."""
    speeds = [p.speed for p in series.points(s)]
    return speeds[min(WARM_UP, len(speeds) // 10 + 1) :]


def _alike(a: Sequence[Series], b: Sequence[Series]) -> Iterator[tuple[Series, Series]]:
    for unit in dict.fromkeys(u for s in a if (u := series.speed_unit(s))):
        yield from _pairs(*([s for s in x if series.speed_unit(s) == unit] for x in (a, b)))


def _pairs(a: Sequence[Series], b: Sequence[Series]) -> Iterator[tuple[Series, Series]]:
    """Those of one name; where each side has but one, these."""
    left, right = ({s.name: s for s in x} for x in (a, b))
    if common := left.keys() & right.keys():
        yield from ((left[name], right[name]) for name in sorted(common))
    elif len(left) == len(right) == 1:
        yield next(iter(left.values())), next(iter(right.values()))


def shifts(side: str, metrics: Iterable[Series]) -> Iterator[Shift]:
    """Where a run's pace changed for good, and when that was."""
    for s in metrics:
        pace = series.pace(s)
        for before, after in pairwise(pace.stretches if pace else ()):
            at = datetime.fromtimestamp(after.time_s, timezone.utc) if after.time_s else None
            yield Shift(
                side=side,
                run=s.name,
                axis=pace.axis if pace else "",
                at=after.first,
                time=at.isoformat(timespec="seconds") if at else None,
                unit="steps/s" if series.tells_times(s) else s.rate_unit,
                before=before.median,
                after=after.median,
            )


# -- benches and tables


def of_results(a: Sequence[Result], b: Sequence[Result]) -> tuple[Metric, ...]:
    """Bus bandwidth of the same collective, size, type and group; below LARGE_BYTES the time, which is latency."""
    left, right = ({_key(r): r for r in results} for results in (a, b))
    return tuple(_result(left[key], right[key]) for key in left if key in right)


def _key(r: Result) -> tuple[object, ...]:
    return (r.collective, r.size_bytes, r.dtype, r.group.kind, len(r.group.ranks), r.group.nodes, r.purpose)


def _result(a: Result, b: Result) -> Metric:
    """From the median of the iterations; its error from how far the 95th percentile lies above it."""
    large = a.size_bytes >= LARGE_BYTES
    errors = [
        MEDIAN_ERROR * (r.time_us.p95 - r.time_us.p50) / P95 / sqrt(max(r.iterations, 1)) / max(r.time_us.p50, 1e-9)
        for r in (a, b)
    ]
    x, y = (a.busbw_gbs, b.busbw_gbs) if large and a.busbw_gbs else (a.time_us.p50, b.time_us.p50)
    half = BENCH_Z * sqrt(sum(e**2 for e in errors)) * abs(y)
    d = Difference(a=x, b=y, low=y - x - half, high=y - x + half)
    where = {"node": ", each node alone", "inter": ", one rank a node", "pair": ", a pair"}.get(a.group.kind, "")
    m = _metric(
        f"{a.collective} {human(a.size_bytes)}{where}",
        "busbw" if large else "latency",
        "GB/s" if large else "us",
        d,
        floor=BENCH_CHANGE_PERCENT,
        lower_is_better=not large,
    )
    return replace(
        m, part=a.collective, area=COMMUNICATION, size_bytes=a.size_bytes, samples=(a.iterations, b.iterations)
    )


def of_tables(a: Sequence[BandwidthTable], b: Sequence[BandwidthTable]) -> tuple[Metric, ...]:
    """Tables of the same collective; where a side has but one, that one. Size by size, and the large ones together."""
    metrics: list[Metric] = []
    for s, t in _same_tables(a, b):
        rows = [(x, y) for key, x in _rows(s).items() if (y := _rows(t).get(key))]
        rated = [(x, y) for x, y in rows if x.best_gbs and y.best_gbs]
        noise = _noise(rated)
        name = s.collective or t.collective or "bandwidth"
        metrics += (_row(name, x, y, noise) for x, y in rated)
        large = [(x, y) for x, y in rated if (x.size_bytes or LARGE_BYTES) >= LARGE_BYTES]
        if len(large) > 1:
            metrics.append(_together(name, large))
    return tuple(metrics)


def _together(name: str, rows: Sequence[tuple[Row, Row]]) -> Metric:
    d = paired.of_ratios([x.best_gbs or 0.0 for x, _ in rows], [y.best_gbs or 0.0 for _, y in rows])
    assert d is not None
    best = [max(r.best_gbs or 0.0 for r in side) for side in zip(*rows, strict=True)]
    m = _metric(f"{name}, large sizes", "busbw", "GB/s", d, floor=BENCH_CHANGE_PERCENT, lower_is_better=False)
    return replace(m, a=best[0], b=best[0] * d.b, part=name, area=COMMUNICATION, samples=(len(rows), len(rows)))


def _same_tables(
    a: Sequence[BandwidthTable], b: Sequence[BandwidthTable]
) -> Iterator[tuple[BandwidthTable, BandwidthTable]]:
    left, right = ({(t.collective, t.label, t.ranks, t.nodes): t for t in x} for x in (a, b))
    if common := [key for key in left if key in right]:
        yield from ((left[key], right[key]) for key in common)
    elif len(left) == len(right) == 1:
        yield next(iter(left.values())), next(iter(right.values()))


def _rows(t: BandwidthTable) -> dict[tuple[object, ...], Row]:
    return {(r.size_bytes, r.nodes, r.ranks, r.dtype, r.redop): r for r in t.rows}


def _noise(rows: Sequence[tuple[Row, Row]]) -> float:
    """Ratio by which in place and out of place, which measure the same, differ at the large sizes; their 90 %."""
    apart = [
        abs(m.rate / r.out_of_place.rate - 1)
        for pair in rows
        for r in pair
        if (m := r.in_place) and m.rate and r.out_of_place.rate and (r.size_bytes or 0) >= LARGE_BYTES
    ]
    return sorted(apart)[int(0.9 * (len(apart) - 1))] if apart else 0.0


def _row(name: str, x: Row, y: Row, noise: float) -> Metric:
    a, b = x.best_gbs or 0.0, y.best_gbs or 0.0
    half = paired.Z * noise * b
    d = Difference(a=a, b=b, low=b - a - half, high=b - a + half)
    at = human(x.size_bytes) if x.size_bytes is not None else f"on {x.nodes or x.ranks or '?'} nodes"
    small = x.size_bytes is not None and x.size_bytes < LARGE_BYTES
    floor = 2 * BENCH_CHANGE_PERCENT if small else BENCH_CHANGE_PERCENT  # latencies repeat less well
    m = _metric(f"{name} {at}", "latency" if small else "busbw", "GB/s", d, floor=floor, lower_is_better=False)
    return replace(m, part=name, area=COMMUNICATION, size_bytes=x.size_bytes)


# -- traces


def of_traces(a: Trace, b: Trace) -> tuple[Metric, ...]:
    """Shares of the window per rank, collectives by name, size and group, the top kernels per call."""
    parts = tuple(_steps(a, b)) or tuple(_shares(a, b))
    return (*parts, *_collectives(a.collectives, b.collectives), *_kernels(a, b))


SHARES: tuple[tuple[str, str, Callable[..., float]], ...] = (
    ("computing", COMPUTE, lambda r: r.compute_us),
    ("exposed communication", COMMUNICATION, lambda r: r.exposed_communication_us),
    ("copies", DATA, lambda r: r.memory_us),
    ("idle", HOST, lambda r: r.idle_us),
)
SHARE_CHANGE = 5.0  # points of the window; one window on each side says nothing about noise
SAME_WORK = 0.02  # ratio by which the numbers of kernels of two windows of the same work may differ


def _steps(a: Trace, b: Trace) -> Iterator[Metric]:
    """Step by step, where both have enough of them: the longest rank's window, and the parts over the ranks."""
    left, right = (_by_step(t) for t in (a, b))
    if min(len(left), len(right)) < paired.MIN_SAMPLES:
        return
    windows = [[max(r.window_us for r in ranks) for ranks in side] for side in (left, right)]
    d = paired.difference(windows[0], windows[1])
    samples = (len(left), len(right))
    whole = _metric("step", "step", "us", d, floor=paired.MIN_CHANGE_PERCENT)
    yield replace(whole, samples=samples, cost_us=d.b - d.a)
    for name, area, of in SHARES:
        x, y = ([fmean([of(r) for r in ranks]) for ranks in side] for side in (left, right))
        d = paired.difference(x, y)
        if max(d.a, d.b) >= SHARE_CHANGE / 100 * whole.a:
            least = paired.MIN_CHANGE_PERCENT / 100 * whole.a
            m = _metric(f"step: {name}", "part", "us", d, floor=paired.MIN_CHANGE_PERCENT, least=least)
            yield replace(m, samples=samples, part=name, area=area, cost_us=d.b - d.a)


def _by_step(t: Trace) -> list[list[StepShare]]:
    found: dict[str, list[StepShare]] = defaultdict(list)
    for step in t.steps:
        found[step.name].append(step)
    return list(found.values())


def _shares(a: Trace, b: Trace) -> Iterator[Metric]:
    """Of windows with the same number of kernels in time, else in per cent of the window."""
    left, right = {r.rank: r for r in a.ranks}, {r.rank: r for r in b.ranks}
    if not left or not right:
        return
    kernels = [median([r.kernels for r in side.values()]) for side in (left, right)]
    same_work = abs(kernels[0] - kernels[1]) <= SAME_WORK * max(kernels)
    windows = [[r.window_us for r in side.values()] for side in (left, right)]
    if same_work:
        yield replace(
            _once("window", "step", "us", *map(median, windows)), cost_us=median(windows[1]) - median(windows[0])
        )
    for name, area, of in SHARES:
        us = [[of(r) for r in side.values()] for side in (left, right)]
        percent = [[100 * x / w for x, w in zip(u, ws, strict=True)] for u, ws in zip(us, windows, strict=True)]
        x, y = (median(u) for u in (us if same_work else percent))
        if max(map(median, percent)) < SHARE_CHANGE:
            continue
        m = _once(f"window: {name}", "share", "us" if same_work else "%", x, y)
        cost = y - x if same_work else (y - x) / 100 * median(windows[1])
        lower_is_better = same_work or name != "computing"
        yield replace(m, area=area, part=name, cost_us=cost, worse=(y > x) if lower_is_better else (y < x))


def _once(name: str, kind: str, unit: str, a: float, b: float) -> Metric:
    """Measured once on each side: what noise is, nobody knows."""
    return _metric(name, kind, unit, Difference(a=a, b=b, low=None, high=None), floor=0.0)


def _collectives(a: Iterable[CollectiveShare], b: Iterable[CollectiveShare]) -> Iterator[Metric]:
    left, right = _by_kind(a), _by_kind(b)
    for key in left:
        if key in right:
            name, size, _ = key
            at = f" {human(size)}" if size else ""
            d = paired.difference(left[key], right[key])
            m = _metric(f"{name}{at}", "collective", "us", d, floor=BENCH_CHANGE_PERCENT)
            samples = (len(left[key]), len(right[key]))
            cost = sum(right[key]) - sum(left[key])
            yield replace(m, samples=samples, part=name, area=COMMUNICATION, size_bytes=size, cost_us=cost)


def _by_kind(shares: Iterable[CollectiveShare]) -> dict[tuple[str, int | None, int], list[float]]:
    found: dict[tuple[str, int | None, int], list[float]] = defaultdict(list)
    for c in shares:
        if c.busbw_gbs is not None or len(c.ranks) > 1:  # of one rank alone, nobody knows what it waited
            found[c.name, c.size_bytes, len(c.ranks)].append(c.transfer_us)
    return found


def _kernels(a: Trace, b: Trace) -> Iterator[Metric]:
    left, right = ({name: (n, us) for name, n, us in t.top_kernels} for t in (a, b))
    for name in left:
        if name in right and not name.startswith(("nccl", "rccl")):
            (n, us), (m, vs) = left[name], right[name]
            yield replace(_once(f"kernel {name[:80]}", "kernel", "us", us / n, vs / m), part=name, area=COMPUTE)
