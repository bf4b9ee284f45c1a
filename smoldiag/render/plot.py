"""Curves of a bench: busbw over size, one line per collective, with what is expected; two sides over each other."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smoldiag.errors import SmoldiagError
from smoldiag.facts import Result
from smoldiag.facts.tables import Pair
from smoldiag.findings import BenchReport
from smoldiag.model import series
from smoldiag.model.compared import losses
from smoldiag.model.sizes import human

if TYPE_CHECKING:
    from smoldiag.compare import Compared, Side

FORMATS = (".png", ".svg", ".pdf")
MAX_NAMES = 64  # of hosts at an axis


def busbw(r: BenchReport, path: Path) -> None:
    """Write the curves to a file; its ending says the format."""
    check_path(path)
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for label, curve in _curves(r.results).items():
        (line,) = axes.plot(
            [x.size_bytes for x in curve], [x.busbw_gbs for x in curve], marker="o", markersize=4, label=label
        )
        points = [(e.size_bytes, e.busbw_gbs) for e in r.expected if e.collective == curve[0].collective]
        if points:
            xs, ys = zip(*sorted(points), strict=True)
            kind = next(e.kind for e in r.expected if e.collective == curve[0].collective)
            axes.plot(
                xs,
                ys,
                linestyle="--",
                marker="x",
                color=line.get_color(),
                alpha=0.6,
                label=f"{curve[0].collective} expected ({kind})",
            )
    _by_size(axes)
    axes.legend()
    world = f"{r.world.ranks} ranks on {r.world.nodes} node{'s' if r.world.nodes != 1 else ''}" if r.world else ""
    axes.set_title(f"{r.backend}, {world}, smoldiag {r.version}")
    figure.savefig(path)
    plt.close(figure)


def both(c: "Compared", path: Path) -> None:
    """Steps, losses and bandwidths of two sides over each other. Raises SmoldiagError where there is none of them."""
    panels = [p for p in (_steps(c), _losses(c), _bandwidths(c)) if p]
    if not panels:
        raise SmoldiagError("--plot: neither steps, losses nor bandwidths are on both sides", hint="leave it away")
    plt = pyplot()
    figure, rows = plt.subplots(len(panels), figsize=(9, 4 * len(panels)), layout="constrained", squeeze=False)
    for axes, (label, unit, curves) in zip((row[0] for row in rows), panels, strict=True):
        for name, xs, ys in curves:
            axes.plot(xs, ys, linewidth=1, marker="." if len(xs) < 60 else "", label=name)
        axes.set_xlabel(label)
        axes.set_ylabel(unit)
        if label == "message size":
            _by_size(axes)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path)
    plt.close(figure)


Curves = list[tuple[str, Sequence[float], Sequence[float]]]


def _steps(c: "Compared") -> tuple[str, str, Curves] | None:
    def curve(side: "Side") -> tuple[Sequence[float], Sequence[float], str] | None:
        if run := side.known.run:
            longest: dict[int, float] = {}
            for s in run.steps:
                longest[s.step] = max(longest.get(s.step, 0.0), s.step_us / 1e3)
            return list(longest), list(longest.values()), "step (ms)"
        if side.metrics:
            first = side.metrics[0]
            is_time, points = series.tells_times(first), series.points(first)
            unit = "s" if is_time else first.rate_unit or "throughput"
            return [p.step for p in points], [1 / p.speed if is_time else p.speed for p in points], f"step ({unit})"
        return None

    sides = [(side.name, curve(side)) for side in (c.a, c.b)]
    curves: Curves = [(name, found[0], found[1]) for name, found in sides if found]
    units = {found[2] for _, found in sides if found}
    return ("step", units.pop(), curves) if len(curves) == 2 and len(units) == 1 else None


def _losses(c: "Compared") -> tuple[str, str, Curves] | None:
    found = [(side.name, losses(side.known.run)) for side in (c.a, c.b) if side.known.run]
    curves: Curves = [(name, list(by_step), list(by_step.values())) for name, by_step in found if by_step]
    return ("step", "loss (nats)", curves) if len(curves) == 2 else None


def _bandwidths(c: "Compared") -> tuple[str, str, Curves] | None:
    curves: Curves = []
    for side in (c.a, c.b):
        if side.bench:
            curves += [
                (f"{side.name}: {label}", [x.size_bytes for x in curve], [x.busbw_gbs for x in curve])
                for label, curve in _curves(side.bench.results).items()
            ]
        for table in side.known.tables.bandwidth if side.known.tables else ():
            rows = [(r.size_bytes, r.best_gbs) for r in table.rows if r.size_bytes and r.best_gbs]
            name = f"{side.name}: {table.collective or 'bandwidth'} {table.label}".rstrip()
            curves.append((name, [size for size, _ in rows], [rate for _, rate in rows]))
    return ("message size", "bus bandwidth (GB/s)", curves) if curves else None


def pyplot() -> Any:
    """matplotlib's, for files. Raises SmoldiagError where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise SmoldiagError(
            "--plot needs matplotlib, which is not installed here", hint="pip install 'smoldiag[plot]'"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _by_size(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human(int(value)) if value >= 1 else ""))
    axes.tick_params(axis="x", rotation=30)
    axes.set_xlabel("message size")
    axes.set_ylabel("bus bandwidth (GB/s)")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)


def pairs(of: Sequence[Pair], path: Path) -> None:
    """A heat map of hosts that send by hosts that receive; the best rate of each pair."""
    plt = pyplot()
    names = sorted({h for p in of for h in (p.a, p.b)})
    place = {name: i for i, name in enumerate(names)}
    rates = [[math.nan] * len(names) for _ in names]
    for p in of:
        row, column = place[p.a], place[p.b]
        known = rates[row][column]
        rates[row][column] = p.gb_per_s if math.isnan(known) else max(known, p.gb_per_s)
    figure, axes = plt.subplots(figsize=(8, 7), layout="constrained")
    image = axes.imshow(rates, vmin=0, cmap="viridis", interpolation="nearest")
    figure.colorbar(image, label="GB/s")
    every = max(1, len(names) // MAX_NAMES)
    axes.set_xticks(range(0, len(names), every), names[::every], rotation=90)
    axes.set_yticks(range(0, len(names), every), names[::every])
    axes.set_xlabel("receives")
    axes.set_ylabel("sends")
    figure.savefig(path)
    plt.close(figure)


def check_path(path: Path) -> None:
    if path.suffix not in FORMATS:
        raise SmoldiagError(f"--plot {path}: the file's ending must be one of {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise SmoldiagError(f"--plot {path}: there is no folder {path.parent}")


def _curves(results: Iterable[Result]) -> dict[str, list[Result]]:
    curves: dict[str, list[Result]] = {}
    several = len({(x.group.kind, x.group.nodes) for x in results}) > 1
    for x in results:
        label = x.collective
        if several:
            label += f", {x.group.nodes} node{'s' if x.group.nodes != 1 else ''}"
            label += {"node": " alone", "inter": " (one rank each)"}.get(x.group.kind, "")
        curves.setdefault(label, []).append(x)
    return {label: sorted(curve, key=lambda x: x.size_bytes) for label, curve in curves.items()}
