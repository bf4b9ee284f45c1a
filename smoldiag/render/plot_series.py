"""Curves of runs: throughput with changes of pace and slow steps; loss with spikes; one below the other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smoldiag.facts.series import Series
from smoldiag.model import loss, series
from smoldiag.render.plot import check_path, pyplot

MAX_RUNS = 10
WIDTH, HEIGHT = 11, 4.5  # inches, of one curve


def draw(found: Sequence[Series], path: Path) -> None:
    """Write the curves to a file; its ending says the format. SmoldiagError where matplotlib is missing."""
    check_path(path)
    plt = pyplot()
    paced = [(s, p) for s in found[:MAX_RUNS] if (p := series.pace(s))]
    losses = [(s, f) for s in found[:MAX_RUNS] if (f := loss.loss(s))]
    units = list(dict.fromkeys(p.unit for _, p in paced))
    rows = len(units) + bool(losses)
    if not rows:
        units = [""]
    figure, axes = plt.subplots(
        max(rows, 1), figsize=(WIDTH, HEIGHT * max(rows, 1)), layout="constrained", squeeze=False
    )
    places = iter(axes[:, 0])
    for unit in units:
        _speeds(next(places), [(s, p) for s, p in paced if p.unit == unit], unit)
    if losses:
        _losses(next(places), losses)
    figure.savefig(path)
    plt.close(figure)


def _speeds(axes: Any, paced: Sequence[tuple[Series, series.Pace]], unit: str) -> None:
    for s, p in paced:
        points = series.points(s)
        (line,) = axes.plot(
            [x.step for x in points], [_shown(p, x.speed) for x in points], linewidth=0.7, label=_label(s, p)
        )
        for stretch in p.stretches:
            axes.hlines(_shown(p, stretch.median), stretch.first, stretch.last, color=line.get_color(), linewidth=2.5)
        for stretch in p.stretches[1:]:
            axes.axvline(stretch.first, color=line.get_color(), linestyle="--", alpha=0.6)
        dips = p.irregular
        usual = {x.step: _shown(p, x.speed) for x in points}
        axes.plot(
            [d.step for d in dips],
            [usual[d.step] for d in dips],
            linestyle="",
            marker="v",
            markersize=5,
            color=line.get_color(),
            markeredgecolor="black",
            markeredgewidth=0.5,
        )
    axes.set_xlabel(paced[0][1].axis if paced else "step")
    axes.set_ylabel("seconds per step" if unit == "s" else unit or "throughput")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="best", fontsize="small")
    axes.set_title("speed; bars: median of each stretch; marks: slow steps without a schedule")


def _shown(p: series.Pace, speed: float) -> float:
    return 1 / speed if p.is_time else speed


def _label(s: Series, p: series.Pace) -> str:
    return f"{s.label}: {len(p.irregular)} slow steps, {p.time_lost:.1%} of the time lost"


def _losses(axes: Any, losses: Sequence[tuple[Series, loss.Loss]]) -> None:
    highest = 0.0
    for s, f in losses:
        points = loss.points(s)
        (line,) = axes.plot(
            [x for x, _ in points], [v for _, v in points], linewidth=0.7, label=f"{s.label}: noise {f.noise:.3g}"
        )
        axes.plot(
            [x.at for x in f.spikes], [x.loss for x in f.spikes], linestyle="", marker="^", color=line.get_color()
        )
        if f.rises_from is not None:
            axes.axvline(f.rises_from, color=line.get_color(), linestyle="--", alpha=0.6)
        settled = [v for _, v in points[len(points) // 20 :] if v == v]
        highest = max(highest, *settled, *(x.loss for x in f.spikes))
    lowest = min(f.lowest for _, f in losses)
    axes.set_ylim(lowest - 0.05 * (highest - lowest), highest + 0.05 * (highest - lowest))
    axes.set_xlabel(losses[0][1].axis)
    axes.set_ylabel("loss")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="best", fontsize="small")
    axes.set_title("loss; marks: spikes; dashed: where it left its trend")
