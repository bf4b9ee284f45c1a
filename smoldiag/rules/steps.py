"""STP, CKP: where the time of training steps goes, from what the step monitor recorded on every rank."""

from collections.abc import Iterator, Mapping, Sequence

from smoldiag.facts import Evidence
from smoldiag.facts.run import Run
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.model import steps as model
from smoldiag.model.stats import median
from smoldiag.rules import rule

# From which share of the step on a part is worth a warning. The monitor's own error is below 1 %, and the spread from
# step to step on a quiet machine 2 to 4 % (docs/train.md), so that a part of this size can be seen and is worth a fix.
WORTH_A_WARNING = 0.10
GC_WORTH_A_WARNING = 0.05
SHARE_OF_STEPS = 0.6  # a straggler is the last one in most steps; noise chooses another rank each time
MOST_NAMED = 8


def _cost(us: float, budget: model.Budget, run: Run) -> str:
    share = us / budget.mean_step_us
    tokens = model.tokens_per_s(run, budget.mean_step_us)
    faster = model.tokens_per_s(run, max(budget.mean_step_us - us, 1.0))
    gain = f", {faster - tokens:,.0f} tokens/s of {faster:,.0f} at most" if tokens and faster else ""
    return f"{us / 1e3:.1f} ms of {budget.mean_step_us / 1e3:.1f} ms per step ({share:.0%}){gain}"


def _where(run: Run, shares: Sequence[model.Share]) -> Where:
    """Which ranks; empty where all are alike."""
    everybody = len({s.rank for s in run.steps})
    if len(shares) == everybody:
        return Where()
    return Where(hosts=tuple(dict.fromkeys(s.host for s in shares if s.host)), ranks=tuple(s.rank for s in shares))


def _evidence(run: Run, shares: Sequence[model.Share], part: str, us: Mapping[int, float]) -> tuple[Evidence, ...]:
    worst = sorted(shares, key=lambda s: -us[s.rank])[:MOST_NAMED]
    return tuple(
        Evidence(text=f"rank {s.rank}: {part} {us[s.rank] / 1e3:.1f} ms of {s.step_us / 1e3:.1f} ms", where=run.where)
        for s in worst
    )


def _slow_phase(run: Run, phase: str, least: float) -> tuple[model.Budget, list[model.Share], dict[int, float]] | None:
    """The ranks on which a phase takes more than its share of the step."""
    budget = model.budget(run)
    if budget is None:
        return None
    us = {s.rank: s.phases_us.get(phase, 0.0) for s in budget.shares}
    slow = [s for s in budget.shares if us[s.rank] > least * budget.mean_step_us]
    return (budget, slow, us) if slow else None


@rule("STP001", Severity.WARNING)
def waits_for_data(run: Run) -> Iterator[Finding]:
    """The step waits for its next batch.

    While a rank waits for its loader, all ranks wait for that rank in their next collective.

    Fix: more loader workers, prefetching, an index in memory, data on a local disk.
    """
    if not (slow := _slow_phase(run, "data", WORTH_A_WARNING)):
        return
    budget, ranks, us = slow
    worst = max(us[s.rank] for s in ranks)
    yield Finding(
        message=f"the loader holds the step up for {worst / 1e3:.1f} ms of {budget.mean_step_us / 1e3:.1f} ms on "
        f"{_ranks(run, ranks)}",
        cause="dataloader-stall",
        where=_where(run, ranks),
        evidence=_evidence(run, ranks, "data", us),
        why="the GPUs are idle until the batch is there",
        cost=_cost(worst, budget, run),
        fixes=(
            Fix(do="prepare batches ahead: more workers, persistent_workers, a larger prefetch_factor"),
            Fix(do="see how fast the loop is without a loader: train on synthetic tokens"),
        ),
        confirm="the same run on synthetic data",
        explains=("straggler-rank",),
    )


@rule("STP002", Severity.WARNING)
def one_rank_is_late(run: Run) -> Iterator[Finding]:
    """One rank comes late to most collectives, and all the others wait for it.

    All ranks leave a collective together: the one that stays shortest is the one that came last.

    Fix: look at that rank's GPU (clocks, temperature), its host's processors, and its share of the data.
    """
    budget = model.budget(run)
    if budget is None or len(budget.shares) < 2:
        return
    late = _late_rank(run, budget)
    if late is None:
        return
    waited = budget.waited_for_us[late]
    share = next(s for s in budget.shares if s.rank == late)
    rest = [s for s in budget.shares if s.rank != late]
    others = median([s.wait_us for s in rest])
    place = f"rank {late} on {share.host}" if share.host else f"rank {late}"
    yield Finding(
        message=f"{place} is late: the others wait {others / 1e3:.1f} ms of {budget.mean_step_us / 1e3:.1f} ms per "
        f"step, it waits {share.wait_us / 1e3:.1f} ms",
        cause="straggler-rank",
        confidence=Confidence.LIKELY,
        where=Where(hosts=(share.host,) if share.host else (), ranks=(late,)),
        evidence=(
            Evidence(text=f"waited for rank {late}: {waited / 1e3:.1f} ms per step", where=run.where),
            Evidence(text=f"own work of rank {late}: {_own(share) / 1e3:.1f} ms per step", where=run.where),
            Evidence(
                text=f"own work of the others: {median([_own(s) for s in rest]) / 1e3:.1f} ms per step",
                where=run.where,
            ),
        ),
        why="a synchronous step is as slow as its slowest rank",
        cost=_cost(min(others, waited), budget, run),
        fixes=(
            Fix(do="see whether its GPU is throttled", command="nvidia-smi -q -d CLOCK,PERFORMANCE,TEMPERATURE"),
            Fix(do="see what else runs on its host", command="top -b -n 1 | head -20"),
        ),
        confirm="run without that host, or with the ranks of two hosts swapped: does it stay with the host?",
    )


def _own(share: model.Share) -> float:
    return sum(share.phases_us.values()) + share.unattributed_us


def _late_rank(run: Run, budget: model.Budget) -> int | None:
    """The rank that works longest, by more than its share, and for which the others wait in most steps."""
    own = {s.rank: _own(s) for s in budget.shares}
    late = max(own, key=own.__getitem__)
    excess = own[late] - median([us for rank, us in own.items() if rank != late])
    if excess < WORTH_A_WARNING * budget.mean_step_us or late not in budget.waited_for_us:
        return None
    steps = model.counted(run.steps)
    last = 0
    for ranks in steps.values():
        waited: dict[int, float] = {}
        model.split(ranks, waited)
        last += max(waited, key=waited.__getitem__, default=-1) == late
    return late if last >= SHARE_OF_STEPS * len(steps) else None


@rule("STP003", Severity.WARNING)
def garbage_collection_stalls_steps(run: Run) -> Iterator[Finding]:
    """Python's garbage collector stops ranks, each at another time, so that all wait for each.

    A full collection walks through every object of the process; with W ranks a step is hit W times as often.

    Fix: gc.freeze() after start-up, gc.disable(), and one gc.collect() on all ranks at the same step.
    """
    if not (slow := _slow_phase(run, "gc", GC_WORTH_A_WARNING)):
        return
    budget, ranks, us = slow
    worst = max(us[s.rank] for s in ranks)
    yield Finding(
        message=f"garbage collection takes {worst / 1e3:.1f} ms of {budget.mean_step_us / 1e3:.1f} ms per step on "
        f"{_ranks(run, ranks)}",
        cause="gc-stragglers",
        where=_where(run, ranks),
        evidence=_evidence(run, ranks, "gc", us),
        why="every collective waits for the rank that is collecting",
        cost=_cost(worst, budget, run),
        fixes=(Fix(do="collect on all ranks at the same step", command="gc.freeze(); gc.disable()"),),
        confirm="the same run with gc.disable()",
        sources=("pytorch/torchtitan issue 148",),
        explains=("straggler-rank",),
    )


@rule("CKP001", Severity.WARNING)
def checkpoints_stop_the_run(run: Run) -> Iterator[Finding]:
    """Saving checkpoints takes a good part of the run.

    A synchronous save stops every rank until the slowest has written its part.

    Fix: save asynchronously, less often, or to faster storage.
    """
    if not (slow := _slow_phase(run, "checkpoint", GC_WORTH_A_WARNING)):
        return
    budget, ranks, us = slow
    worst = max(us[s.rank] for s in ranks)
    saves = sum("checkpoint" in s.phases_us for s in run.steps if s.rank == ranks[0].rank)
    yield Finding(
        message=f"checkpoints take {worst / 1e3:.1f} ms per step, {worst / budget.mean_step_us:.0%} of the run "
        f"({saves} saves)",
        cause="checkpoint-stall",
        where=_where(run, ranks),
        evidence=_evidence(run, ranks, "checkpoint", us),
        why="nobody trains while the state is written",
        cost=_cost(worst, budget, run),
        fixes=(Fix(do="save in the background", command="torch.distributed.checkpoint.async_save"),),
        confirm="the same run without checkpoints",
    )


def _ranks(run: Run, shares: Sequence[model.Share]) -> str:
    everybody = len({s.rank for s in run.steps})
    if len(shares) == everybody:
        return "all ranks" if everybody > 1 else "the one rank"
    named = ", ".join(str(s.rank) for s in shares[:MOST_NAMED])
    return f"rank {named}" + (f" and {len(shares) - MOST_NAMED} more" if len(shares) > MOST_NAMED else "")
