"""The metrics of runs that `explain` read, a line each; with --facts all figures."""

from collections.abc import Iterator, Sequence
from itertools import combinations, permutations

from smoldiag.facts.series import Series
from smoldiag.model import loss, series

MAX_LINES = 8
MAX_PAIRS = 12


def lines(found: Sequence[Series], *, everything: bool = False) -> Iterator[str]:
    """At most eight lines, unless everything is wanted."""
    most = len(found) if everything or len(found) <= MAX_LINES else MAX_LINES - 1
    yield from (_line(s) for s in found[:most])
    if len(found) > most:
        yield f"and {len(found) - most} more runs: --all shows them"


def read(found: Sequence[Series]) -> str:
    """How many of what: `metrics of 2 runs (W&B export)`."""
    sources = ", ".join(dict.fromkeys(s.source for s in found))
    return f"metrics of {len(found)} run{'s' if len(found) != 1 else ''} ({sources})"


def _line(s: Series) -> str:
    parts = []
    if p := series.pace(s):
        parts.append(f"median {_value(p, p.median)}")
        if p.time_lost >= 0.01:
            parts.append(f"over time {_value(p, p.harmonic)}, {p.time_lost:.1%} of the time lost")
        if p.irregular:
            parts.append(f"{len(p.irregular)} slow steps ({p.rate:.1%})")
        rows = p.rows + p.warm_up
    if figures := loss.loss(s):
        parts.append(f"loss {figures.first:.4g} -> {figures.last:.4g}, noise {figures.noise:.3g}")
        rows = s.rows
    if not parts:
        return f"{s.rows} rows of {s.label}, too few to judge [{s.where}]"
    return f"{rows} rows of {s.label}: {'; '.join(parts)} [{s.where}]"


def _value(p: series.Pace, speed: float) -> str:
    return f"{1 / speed:.4g} s per step" if p.is_time else f"{speed:,.0f} {p.unit}".strip()


def figures(found: Sequence[Series]) -> Iterator[str]:
    """Everything that was computed, for --facts."""
    for s in found:
        yield f"{'run':12} {s.label} ({s.source}, {s.where}): {s.rows} rows of {', '.join(s.columns)}"
        if p := series.pace(s):
            yield from (f"{name:12} {text}" for name, text in _pace(p))
        if told := series.tokens_per_step(s):
            yield f"{'tokens':12} {told.per_step:.10g} per step" + (", exactly in every row" if told.exact else "")
        if f := loss.loss(s):
            yield from (f"{name:12} {text}" for name, text in _loss(f))
    for a, b in list(combinations(found, 2))[:MAX_PAIRS]:
        yield from (f"{'pair':12} {text}" for text in _pair(a, b))
    for a, b in permutations(found[:MAX_LINES], 2):
        if j := loss.resumed(a, b):
            yield f"{'pair':12} {j.b} goes on with {j.a}: {j.repeated:.10g} repeated, {j.before:.4f} / {j.after:.4f}"


def _pace(p: series.Pace) -> Iterator[tuple[str, str]]:
    least = f", down to {_value(p, p.warm_up_least)}" if p.warm_up_least else ""
    yield "warm-up", f"{p.warm_up} rows left out{least}"
    yield (
        "speed",
        f"{p.rows} rows, {p.axis} {p.first:.0f} to {p.last:.0f} ({p.sampled:.0%} of them): median "
        f"{_value(p, p.median)}, mean {_value(p, p.mean)}, harmonic {_value(p, p.harmonic)}, "
        f"least {_value(p, p.least)}",
    )
    yield "lost", f"{p.time_lost:.2%} of the time is beyond the median step; {p.lost:.2%} in slow steps"
    yield "scatter", f"{p.usual_cv:.2%} (rows at 0.9 of the median or above); drift {p.drift:+.1%}"
    yield "below", f"0.9: {p.below_90:.2%}, 0.5: {p.below_50:.2%}, 0.25: {p.below_25:.2%} of the rows"
    for x in p.stretches if len(p.stretches) > 1 else ():
        yield (
            "stretch",
            f"{p.axis} {x.first:.0f} to {x.last:.0f}: {x.rows} rows, median {_value(p, x.median)}, scatter {x.cv:.1%}, "
            f"{x.dips} slow",
        )
    for period in p.periods:
        yield "schedule", f"every {period.every} steps: {period.dips} slow, {period.extra_steps:.2g} steps longer"
    if p.irregular:
        shown = ", ".join(f"p{q} {p.extra(q):.4g}" for q in (5, 50, 95)) + f", most {p.extra(100):.4g}"
        yield (
            "slow steps",
            f"{len(p.irregular)} ({p.rate:.2%}) in {p.clusters} groups, the largest of {p.longest_cluster}; longer by "
            f"{shown} usual steps",
        )


def _loss(f: loss.Loss) -> Iterator[tuple[str, str]]:
    yield "loss", f"{f.first:.4g} -> {f.last:.4g}, lowest {f.lowest:.4g}, noise {f.noise:.4f}, lag 1 {f.lag1:+.2f}"
    for spike in f.spikes[:MAX_LINES]:
        yield "spike", f"{f.axis} {spike.at:.10g}: {spike.loss:.4g} ({spike.above:+.3g}, {spike.rows} rows)"
    if f.rises_from is not None:
        yield "rise", f"from {f.axis} {f.rises_from:.10g} on, ends {f.end_above:.3g} above the lowest"
    if f.not_finite:
        yield "no number", f"{f.not_finite} losses"


def _pair(a: Series, b: Series) -> Iterator[str]:
    if series.same_run(a, b):
        yield f"{a.label} and {b.label} are one run"
        return
    if r := series.replay(a, b):
        more = f", lengths correlate with {r.correlation:.2f}" if r.correlation is not None else ""
        yield (
            f"slow steps of {r.a} ({r.of_a}) and {r.b} ({r.of_b}): {r.shared} at the same step, chance gives "
            f"{r.by_chance:.2g}{more}"
        )
    if n := series.node_counts(a, b):
        yield (
            f"{n.nodes[0]} against {n.nodes[1]} nodes: speed x{n.efficiency:.2f}, slow steps {n.dip_rates[0]:.2%} and "
            f"{n.dip_rates[1]:.2%} (independent: {n.independent:.0%})"
        )
    if g := loss.gap(a, b):
        yield (
            f"{g.above} - {g.below} at equal {g.axis}: {g.mean:+.4f} +- {g.std:.4f} ({g.pairs} pairs, "
            f"{g.positive:.1%} above), {g.shape}; noise x{max(g.noises) / max(min(g.noises), 1e-12):.2f}"
        )
