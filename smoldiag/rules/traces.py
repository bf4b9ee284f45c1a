"""TRC: what traces of torch.profiler say of a slow step."""

from collections.abc import Iterator

from smoldiag.facts import Evidence
from smoldiag.facts.trace import RankShare, Trace
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.model.stats import median
from smoldiag.rules import rule

WORTH_A_WARNING = 0.10  # of the window; smaller parts are not worth a fix
LATE_SHARE = 0.5  # of the waiting that one rank has to be the reason of
EXPOSED = 0.25  # of the window: published FSDP runs that overlap well expose less than 10 %
OVERLAP_IS_GOOD = 50.0  # per cent of the communication
IDLE = 0.25  # of the window, for the host's share of it
SHORT_KERNELS = 50.0  # per cent shorter than a launch takes (model/traces.py: LAUNCH_US)
MOST_NAMED = 8


def _seen(trace: Trace, text: str) -> Evidence:
    return Evidence(text=text, where=trace.evidence[0].where if trace.evidence else "the traces")


def _cost(part_us: float, of: RankShare) -> str:
    return f"{part_us / 1e3:.1f} ms of {of.window_us / 1e3:.1f} ms ({part_us / of.window_us:.0%})"


@rule("TRC001", Severity.WARNING)
def ranks_wait_for_a_late_one(trace: Trace) -> Iterator[Finding]:
    """One rank comes late to the collectives, and the others wait for it inside of theirs.

    A collective's kernel runs from the moment its rank comes to the moment the last one is through: the shortest
    belongs to the rank that came last. Of a single rank's trace nothing can be said.

    Fix: look at what that rank computes more, and at its GPU's clocks and its host.
    """
    if len(trace.ranks) < 2 or not trace.waited_us:
        return
    total = sum(trace.waited_us.values())
    window = median([r.window_us for r in trace.ranks])
    late = max(trace.waited_us, key=trace.waited_us.__getitem__)
    waited = trace.waited_us[late]
    if waited < LATE_SHARE * total or waited < WORTH_A_WARNING * window:
        return
    share = next(r for r in trace.ranks if r.rank == late)
    counts = [f"{ranks[late]} of {sum(ranks.values())} {name}" for name, ranks in trace.late.items() if late in ranks]
    others = median([r.compute_us for r in trace.ranks if r.rank != late])
    yield Finding(
        message=f"rank {late} comes last to {', '.join(counts)}: the others wait {waited / 1e3:.1f} ms for it",
        cause="straggler-rank",
        confidence=Confidence.LIKELY,
        where=Where(ranks=(late,)),
        evidence=(
            _seen(trace, f"rank {late} computes {share.compute_us / 1e3:.1f} ms, the others {others / 1e3:.1f} ms"),
            *(
                _seen(
                    trace, f"{c.name}: rank {c.last_rank} {c.transfer_us:.0f} us, others up to {c.wait_us:.0f} us more"
                )
                for c in sorted(trace.collectives, key=lambda c: -c.wait_us)[:4]
                if c.last_rank == late
            ),
        ),
        why="a collective ends when its last rank is through",
        cost=_cost(waited, share),
        fixes=(Fix(do="see whether its GPU is throttled", command="nvidia-smi -q -d CLOCK,PERFORMANCE"),),
        confirm="swap the ranks of two hosts: does the lateness stay with the host, or go with the rank's data?",
        sources=("HolisticTraceAnalysis, potential stragglers",),
        explains=("comm-not-overlapped", "cpu-launch-bound"),
    )


@rule("TRC002", Severity.WARNING)
def communication_is_not_hidden(trace: Trace) -> Iterator[Finding]:
    """The device waits for communication while it could compute.

    Prefetching, an asynchronous collective or a stream of its own hides communication behind computation.

    Fix: prefetch (FSDP2: set_modules_to_forward_prefetch), larger buckets, HSDP inside nodes, more work per step.
    """
    bad = [
        r
        for r in trace.ranks
        if r.exposed_communication_us > EXPOSED * r.window_us
        and r.overlap_percent is not None
        and r.overlap_percent < OVERLAP_IS_GOOD
        and r.compute_us > WORTH_A_WARNING * r.window_us
    ]
    waited = sum(trace.waited_us.values())
    if not bad or len(bad) < len(trace.ranks) / 2:
        return
    worst = max(bad, key=lambda r: r.exposed_communication_us)
    if len(trace.ranks) > 1 and waited > worst.exposed_communication_us / 2:
        return  # it is waiting for a rank, not the network
    yield Finding(
        message=f"{worst.exposed_communication_us / worst.window_us:.0%} of the time the device only communicates; "
        f"{worst.overlap_percent or 0:.0f} % of the communication is hidden",
        cause="comm-not-overlapped",
        confidence=Confidence.CERTAIN if len(trace.ranks) > 1 else Confidence.LIKELY,
        where=Where(ranks=tuple(r.rank for r in bad) if len(bad) < len(trace.ranks) else ()),
        evidence=tuple(
            _seen(trace, f"rank {r.rank}: exposed {_cost(r.exposed_communication_us, r)}") for r in bad[:MOST_NAMED]
        ),
        why="exposed communication adds to the step, hidden communication does not",
        cost=_cost(worst.exposed_communication_us, worst),
        fixes=(
            Fix(do="gather the next layers ahead", command="layer.set_modules_to_forward_prefetch([next_layer])"),
            Fix(do="shard inside the node, replicate between nodes (HSDP), where the network is the slower link"),
        ),
        confirm="the same trace with the prefetch on; smoldiag nccl-bench --fsdp MODEL says what the links give alone",
        explains=("fsdp-full-shard-over-slow-link",),
    )


@rule("TRC003", Severity.WARNING)
def host_launches_too_slowly(trace: Trace) -> Iterator[Finding]:
    """The device waits for the host to launch its next kernel.

    Many short kernels, Python between them, or a host whose processors are slow or taken.

    Fix: torch.compile, CUDA graphs, larger batches, fused optimizers; free processors for the ranks.
    """
    bad = [r for r in trace.ranks if _launch_idle(r) > IDLE * r.window_us and _launch_idle(r) > (r.idle_data_us or 0.0)]
    if not bad or len(bad) < len(trace.ranks) / 2:
        return
    worst = max(bad, key=_launch_idle)
    yield Finding(
        message=f"the device is idle {worst.idle_us / worst.window_us:.0%} of the time, most of it until the host has "
        f"launched the next kernel ({worst.short_kernels_percent:.0f} % of the kernels are shorter than a launch)",
        cause="cpu-launch-bound",
        confidence=Confidence.LIKELY if worst.short_kernels_percent > SHORT_KERNELS else Confidence.POSSIBLE,
        where=Where(ranks=tuple(r.rank for r in bad) if len(bad) < len(trace.ranks) else ()),
        evidence=tuple(
            _seen(trace, f"rank {r.rank}: {_cost(_launch_idle(r), r)} until a launch, {r.kernels} kernels")
            for r in bad[:MOST_NAMED]
        ),
        why="the GPU can't be faster than the host that feeds it",
        cost=_cost(_launch_idle(worst), worst),
        fixes=(
            Fix(do="compile the model", command="model = torch.compile(model)"),
            Fix(do="give the step more work: a larger micro batch"),
        ),
        confirm="the same step with torch.compile or a CUDA graph",
    )


def _launch_idle(r: RankShare) -> float:
    """Until the host launched, but not because it waited for data."""
    return max((r.idle_launch_us or 0.0) - (r.idle_data_us or 0.0), 0.0)


@rule("TRC004", Severity.WARNING)
def device_waits_for_the_loader(trace: Trace) -> Iterator[Finding]:
    """The device is idle while the host waits for its DataLoader.

    The next batch is not there when the step could begin.

    Fix: more workers, persistent_workers, pin_memory, a larger prefetch_factor; data on a local disk.
    """
    bad = [r for r in trace.ranks if (r.idle_data_us or 0.0) > WORTH_A_WARNING * r.window_us]
    if not bad:
        return
    worst = max(bad, key=lambda r: r.idle_data_us or 0.0)
    idle = worst.idle_data_us or 0.0
    yield Finding(
        message=f"the device is idle for {idle / 1e3:.1f} ms of {worst.window_us / 1e3:.1f} ms while the host waits "
        "for its DataLoader",
        cause="dataloader-stall",
        where=Where(ranks=tuple(r.rank for r in bad) if len(bad) < len(trace.ranks) else ()),
        evidence=tuple(
            _seen(trace, f"rank {r.rank}: {_cost(r.idle_data_us or 0.0, r)} in the loader") for r in bad[:MOST_NAMED]
        ),
        why="nothing is computed until the batch is there",
        cost=_cost(idle, worst),
        fixes=(
            Fix(do="load ahead", command="DataLoader(..., num_workers=8, persistent_workers=True, pin_memory=True)"),
        ),
        confirm="the same step on synthetic data",
        explains=("cpu-launch-bound", "straggler-rank"),
    )
