"""A training run for people at a terminal: what it reached, and where the time of its steps went."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from smoldiag.facts.run import Run
from smoldiag.findings import Report
from smoldiag.model import steps as model
from smoldiag.model.stats import median
from smoldiag.render import text

ORDER = ("data", "h2d", "forward", "backward", "optimizer", "gc", "checkpoint", "evaluation")
MOST_RANKS = 8  # shown one by one; of more only the extremes


def run(report: Report, of: Run, budget: model.Budget | None) -> RenderableType:
    return Group(
        Text.assemble((report.verdict.value, text.VERDICT_STYLE[report.verdict]), f": {headline(of, budget)}"),
        *text.findings(report.findings),
        *([Text(), *table(budget)] if budget else []),
        *windows(of),
        *(Text(f"note: {note}", style="dim") for note in report.notes),
    )


def headline(of: Run, budget: model.Budget | None) -> str:
    if budget is None:
        return "no step was finished by all ranks"
    ranks = len(budget.shares)
    words = [f"{len({s.step for s in of.steps})} steps on {ranks} rank{'s' if ranks != 1 else ''}"]
    words.append(f"{budget.step_us / 1e3:.1f} ms per step (median of the {len(budget.steps)} after warm-up)")
    if rate := model.tokens_per_s(of, budget.mean_step_us):
        words.append(f"{rate:,.0f} tokens/s")
    losses = [s.notes["loss"] for s in of.steps if s.rank == 0 and "loss" in s.notes]
    if losses:
        words.append(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return ", ".join(words)


def windows(of: Run) -> Iterator[Text]:
    """Of the last profiled steps: what the GPUs did."""
    last = {s.rank: s for s in of.steps if s.window_us}
    if not last:
        return
    found = [s.window_us for s in last.values() if s.window_us]

    def share(part: str) -> str:
        return f"{median([w[part] / w['window'] for w in found]):.0%}"

    yield Text(
        f"of a profiled step, median of {len(found)} ranks: compute {share('compute')}, exposed communication "
        f"{share('exposed_communication')}, copies {share('memory')}, GPU idle {share('idle')}"
    )


def table(budget: model.Budget) -> Iterator[Text]:
    """Means in ms per step, so that the parts add up to the whole; the last column is the rank that has most."""
    phases = [p for p in ORDER if p in budget.phases] + [p for p in budget.phases if p not in ORDER]
    rows = [(p, {s.rank: s.phases_us.get(p, 0.0) for s in budget.shares}) for p in phases]
    rows += [
        ("transfer", {s.rank: s.transfer_us for s in budget.shares}),
        ("waiting for a peer", {s.rank: s.wait_us for s in budget.shares}),
        ("not attributed", {s.rank: s.unattributed_us for s in budget.shares}),
        ("step", {s.rank: s.step_us for s in budget.shares}),
    ]
    yield Text(f"{'ms per step':20} {'median':>9} {'share':>7} {'most':>9}  on", style="bold")
    for name, us in rows:
        worst = max(us, key=us.__getitem__)
        middle = median(list(us.values()))
        yield Text(
            f"{name:20} {middle / 1e3:9.2f} {middle / budget.mean_step_us:7.1%} {us[worst] / 1e3:9.2f}  rank {worst}"
        )
