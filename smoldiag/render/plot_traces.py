"""Traces drawn: one step of all ranks, and what their devices do over all steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smoldiag.facts.trace import RankShare, Trace
from smoldiag.model.timeline import Timeline
from smoldiag.render.plot import check_path, pyplot

COLOURS = {"compute": "#4c9f70", "communication": "#e0a030", "exposed communication": "#c0392b", "memory": "#7a6fbe"}
LANES = {"compute": (0.36, 0.28), "communication": (0.04, 0.28), "memory": (-0.28, 0.28)}  # of a rank: from, height
MOST_RANKS = 64
INCHES_OF_RANK = 0.45


def draw(trace: Trace, timeline: Timeline, path: Path) -> None:
    """Write both to a file; its ending says the format."""
    check_path(path)
    plt = pyplot()
    lines = timeline.lines[:MOST_RANKS]
    height = max(2.5, 1.2 + INCHES_OF_RANK * len(lines))
    figure, (above, below) = plt.subplots(2, figsize=(12, 2 * height), layout="constrained", height_ratios=(1.3, 1.0))
    _timeline(above, timeline)
    _shares(below, trace.ranks[:MOST_RANKS])
    device = f", {trace.device}" if trace.device else ""
    figure.suptitle(f"{len(trace.ranks)} rank{'s' if len(trace.ranks) != 1 else ''}{device}")
    figure.savefig(path)
    plt.close(figure)


def _timeline(axes: Any, timeline: Timeline) -> None:
    lines = timeline.lines[:MOST_RANKS]
    row = {line.rank: n for n, line in enumerate(lines)}
    for n, line in enumerate(lines):
        for part, spans in line.parts.items():
            low, height = LANES[part]
            axes.broken_barh(_ms(spans), (n + low, height), facecolors=COLOURS[part])
        low, height = LANES["communication"]
        axes.broken_barh(_ms(line.exposed), (n + low, height), facecolors=COLOURS["exposed communication"])
    for wait in timeline.waits:
        if wait.rank in row:
            low, height = LANES["communication"]
            axes.broken_barh(
                _ms([(wait.start, wait.until)]),
                (row[wait.rank] + low, height),
                facecolors="none",
                edgecolors="white",
                hatch="////",
                linewidth=0.5,
            )
    axes.set_yticks(range(len(lines)), [f"rank {line.rank}" for line in lines])
    axes.set_ylim(len(lines) - 0.3, -0.7)
    axes.set_xlabel("ms since the first kernel of the step")
    axes.set_title(f"{timeline.step or 'all of the trace'} (hatched: waiting for a late rank)")
    axes.legend(handles=_legend(), loc="upper center", ncols=4, bbox_to_anchor=(0.5, -0.16), frameon=False)
    axes.grid(visible=True, axis="x", alpha=0.3)


def _shares(axes: Any, ranks: Sequence[RankShare]) -> None:
    """Computation, communication beyond it, the rest that is busy, and idle: together all of the window."""
    parts = {
        "compute": [100 * r.compute_us / r.window_us for r in ranks],
        "exposed communication": [100 * r.exposed_communication_us / r.window_us for r in ranks],
    }
    idle = [100 * r.idle_us / r.window_us for r in ranks]
    rows = range(len(ranks))
    left = [0.0] * len(ranks)
    for part, shares in parts.items():
        axes.barh(rows, shares, left=left, color=COLOURS[part], label=part)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    rest = [max(100.0 - a - b, 0.0) for a, b in zip(left, idle, strict=True)]
    axes.barh(rows, rest, left=left, color=COLOURS["memory"], label="copies alone")
    left = [a + b for a, b in zip(left, rest, strict=True)]
    axes.barh(rows, idle, left=left, color="#d5d8dc", label="idle")
    for n, r in enumerate(ranks):
        if r.overlap_percent is not None:
            axes.text(100.5, n, f"{r.overlap_percent:.0f} % hidden", va="center", fontsize="small")
    axes.set_yticks(rows, [f"rank {r.rank}" for r in ranks])
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.set_xlabel("% of the window; beside it: part of the communication that computation hides")
    axes.legend(loc="upper center", ncols=4, bbox_to_anchor=(0.5, -0.2), frameon=False)


def _ms(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(start / 1e3, (end - start) / 1e3) for start, end in spans]


def _legend() -> list[Any]:
    from matplotlib.patches import Patch

    return [Patch(color=colour, label=part) for part, colour in COLOURS.items()]
