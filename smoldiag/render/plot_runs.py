"""Curves of a run folder: the parts of a step over the steps, each rank's own work, and the pace with its stretches."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smoldiag.errors import SmoldiagError
from smoldiag.facts.run import Run, StepTimes
from smoldiag.model import run_causes, series
from smoldiag.model import steps as model
from smoldiag.model.stats import median
from smoldiag.render.plot import check_path, pyplot

WIDTH, HEIGHT = 11, 3.8  # inches, of one panel
MOST_RANKS = 12  # drawn one by one; of more the range and the median
NAMES = {model.TRANSFER: "transfer", model.WAIT: "waiting for a peer", "other": "not attributed"}
ORDER = ("data", "h2d", "forward", "backward", "optimizer", "gc", "checkpoint", "evaluation")
LAST = (model.TRANSFER, model.WAIT, "other")


def draw(run: Run, path: Path) -> None:
    """Write the curves to a file; its ending says the format. SmoldiagError where no step was finished by all."""
    check_path(path)
    counted = model.counted(run.steps)
    if not counted:
        raise SmoldiagError(f"--plot: {run.where} has no step that all ranks have finished")
    plt = pyplot()
    figure, (parts, ranks, pace) = plt.subplots(3, figsize=(WIDTH, 3 * HEIGHT), layout="constrained", sharex=True)
    split = {number: model.parts(times) for number, times in counted.items()}
    _parts(parts, split)
    _ranks(ranks, split, {rank: s.host for times in counted.values() for rank, s in times.items()})
    _pace(pace, run, counted)
    pace.set_xlabel("step")
    figure.savefig(path)
    plt.close(figure)


def _parts(axes: Any, split: Mapping[int, Mapping[int, Mapping[str, float]]]) -> None:
    """Means over the ranks, one on the other: their sum is the mean step."""
    there = {name for by_rank in split.values() for own in by_rank.values() for name in own}
    middle = sorted(there - {*ORDER, *LAST})
    names = [name for name in (*ORDER, *middle, *LAST) if name in there]
    rows = [
        [sum(own.get(name, 0.0) for own in by_rank.values()) / len(by_rank) / 1e3 for by_rank in split.values()]
        for name in names
    ]
    axes.stackplot(list(split), rows, labels=[NAMES.get(name, name) for name in names], linewidth=0)
    _finished(axes, "parts of a step, mean of the ranks", "ms")


def _ranks(axes: Any, split: Mapping[int, Mapping[int, Mapping[str, float]]], hosts: Mapping[int, str]) -> None:
    """What each rank does by itself; the highest is the one that the others wait for."""
    own = {
        rank: [sum(us for name, us in by_rank[rank].items() if name not in LAST) / 1e3 for by_rank in split.values()]
        for rank in sorted(hosts)
    }
    if len(own) > MOST_RANKS:
        across = list(zip(*own.values(), strict=True))
        axes.fill_between(list(split), [min(a) for a in across], [max(a) for a in across], alpha=0.3, label="all ranks")
        axes.plot(list(split), [median(a) for a in across], linewidth=1, label="median rank")
        means = {rank: sum(us) for rank, us in own.items()}
        own = {rank: own[rank] for rank in sorted(means, key=lambda r: -means[r])[:3]}
    for rank, us in own.items():
        axes.plot(list(split), us, linewidth=0.9, label=f"rank {rank}" + (f", {hosts[rank]}" if hosts[rank] else ""))
    _finished(axes, "own work of each rank: phases without collectives", "ms")


def _pace(axes: Any, run: Run, counted: Mapping[int, Mapping[int, StepTimes]]) -> None:
    """Of the slowest rank, with its stretches and slow steps, and what it would be without the first cause."""
    times = {number: max(s.step_us for s in ranks.values()) for number, ranks in counted.items()}
    unit = "tokens/s" if run.tokens_per_step else "steps/s"
    each = run.tokens_per_step or 1
    axes.plot(list(times), [each / us * 1e6 for us in times.values()], linewidth=0.9, label="each step")
    whole = each * len(times) / sum(times.values()) * 1e6
    axes.axhline(whole, linestyle="--", label=f"all of them: {whole:,.0f} {unit}")
    first = next(iter(run_causes.causes(run)), None)
    if first is not None and first.share >= WORTH_A_LINE:
        rate = each / first.without_us * 1e6
        axes.axhline(rate, linestyle=":", color="green", label=f"without {first.cause}: {rate:,.0f} {unit}")
    found = series.pace(series.of_run(run))
    if found is not None and len(found.stretches) > 1:
        for stretch in found.stretches:
            axes.hlines(each * stretch.median, stretch.first, stretch.last, color="black", linewidth=2.5, alpha=0.6)
        for stretch in found.stretches[1:]:
            label = f"from step {stretch.first:.0f} on, {clock(stretch.time_s)}" if stretch.time_s else None
            axes.axvline(stretch.first, color="black", linestyle="--", alpha=0.6, label=label)
    if found is not None and found.irregular:
        slow = [d.step for d in found.irregular if d.step in times]
        shown = [each / times[int(step)] * 1e6 for step in slow]
        axes.plot(slow, shown, linestyle="", marker="v", color="black", markersize=5, label="slow steps, no schedule")
    axes.set_ylim(bottom=0)
    _finished(axes, "pace of the slowest rank", unit)


def clock(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


WORTH_A_LINE = 0.05  # of the step


def _finished(axes: Any, title: str, unit: str) -> None:
    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small")
