"""TRC: what traces of torch.profiler say of a slow step."""

from collections.abc import Callable, Iterator, Sequence

from smoldiag.facts import Evidence
from smoldiag.facts.trace import RankShare, Roofline, Share, Trace
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.knowledge.hardware import LEAST_OF_PEAK, TYPICAL_OF_PEAK
from smoldiag.model.stats import median
from smoldiag.rules import rule

WORTH_A_WARNING = 0.10  # of the window; smaller parts are not worth a fix
PAUSE = 0.03  # of the window, for pauses that come now and then: a trace of a few steps sees few of them
EXPOSED = 0.25  # of the window: published FSDP runs that overlap well expose less than 10 %
OVERLAP_IS_GOOD = 50.0  # per cent of the communication
IDLE = 0.25  # of the window, for the host's share of it
SHORT_KERNELS = 50.0  # per cent shorter than a launch takes (model/traces.py: LAUNCH_US)
OLDER_KERNELS = 0.10  # of the computation in kernels for an older architecture
PRODUCTS_COUNT = 0.20  # of the computation: less is not what a step waits for
ALIGNED = 8  # 16 bytes of bf16: what fast kernels want of each dimension (NVIDIA, Matrix Multiplication Guide)
MOST_SHAPES = 3
SMALL_BYTES = 1 << 20  # below it a collective over a network is ruled by latency (nccl-tests: far below the plateau)
SMALL_SHARE = 0.5  # of the communication in collectives that small
RECOMPUTED = 0.05  # of the computation: less is not worth a word
MOST_NAMED = 8
MOST_LAYERS = 4

COMPILE = (
    Fix(do="compile the model", command="model = torch.compile(model)"),
    Fix(do="in Accelerate", command="accelerate launch --dynamo_backend inductor ..."),
    Fix(do="in torchtitan", command="--compile.enable"),
    Fix(do="in Lightning, before the Trainer gets it", command="module = torch.compile(module)"),
    Fix(do="give the step more work: a larger micro batch, fused optimizers (AdamW(..., fused=True))"),
)
HIDE = (
    Fix(
        do="FSDP2: gather the next layers ahead",
        command="layer.set_modules_to_forward_prefetch([next_layer]); "
        "layer.set_modules_to_backward_prefetch([previous_layer])",
    ),
    Fix(do="in Accelerate (FSDP1)", command="fsdp_forward_prefetch: true; fsdp_backward_prefetch: BACKWARD_PRE"),
    Fix(do="in Lightning", command='FSDPStrategy(forward_prefetch=True, backward_prefetch="BACKWARD_PRE")'),
    Fix(
        do="DDP: larger buckets, fewer and longer collectives",
        command="DistributedDataParallel(..., bucket_cap_mb=100)",
    ),
    Fix(do="more work between two collectives: a larger micro batch, or gradient accumulation without synchronising"),
)
SHARD_INSIDE = (
    Fix(
        do="FSDP2: shard inside the node, replicate between nodes (HSDP)",
        command='fully_shard(layer, mesh=init_device_mesh("cuda", (NODES, GPUS_PER_NODE), '
        'mesh_dim_names=("replicate", "shard")))',
    ),
    Fix(do="in Accelerate", command="fsdp_sharding_strategy: HYBRID_SHARD"),
    Fix(
        do="in torchtitan",
        command="--parallelism.data_parallel_replicate_degree NODES --parallelism.data_parallel_shard_degree GPUS",
    ),
    Fix(do="in Lightning", command='FSDPStrategy(sharding_strategy="HYBRID_SHARD")'),
    Fix(do="keep the parameters after the forward pass, where memory allows", command="reshard_after_forward=False"),
)
LOAD_AHEAD = (
    Fix(
        do="load ahead, in processes of their own",
        command="DataLoader(..., num_workers=8, persistent_workers=True, pin_memory=True, prefetch_factor=4)",
    ),
    Fix(do="in the Hugging Face Trainer", command="--dataloader_num_workers 8 --dataloader_persistent_workers true"),
    Fix(
        do="Accelerate and Lightning take the same DataLoader; torchtitan's loader is the dataset's: prepare the tokens"
    ),
)
COLLECT_TOGETHER = (
    Fix(
        do="collect on all ranks at the same step, and freeze what stays",
        command="gc.collect(); gc.freeze(); gc.disable()  # then gc.collect(1) every 50 steps",
    ),
    Fix(do="in torchtitan", command="--training.gc_freq 50"),
)
SAVE_BESIDE = (
    Fix(do="save while training goes on", command="torch.distributed.checkpoint.async_save(state, checkpoint_id=PATH)"),
    Fix(do="in torchtitan", command="--checkpoint.async_mode async"),
    Fix(do="in Lightning", command="Trainer(plugins=[AsyncCheckpointIO()])"),
    Fix(do="in Accelerate", command="fsdp_state_dict_type: SHARDED_STATE_DICT"),
)


def _seen(trace: Trace, text: str, rank: int | None = None) -> Evidence:
    """From the trace of a rank, or from all of them."""
    files = list(trace.files.values())
    together = f"{len(files)} traces" if len(files) > 1 else files[0] if files else "the trace"
    return Evidence(text=text, where=together if rank is None else trace.files.get(rank, together))


def _part(part_us: float, of: Share) -> str:
    return f"{part_us / 1e3:.1f} ms of {of.window_us / 1e3:.1f} ms ({part_us / of.window_us:.0%})"


def _cost(trace: Trace, cause: str, part_us: float, of: Share) -> str:
    """What was measured, and the step without it where the replay can tell."""
    said = _part(part_us, of)
    for what in trace.replay.what_if if trace.replay else ():
        if what.cause == cause:
            now = what.step_us + what.saved_us
            said += (
                f"; {what.without} a step would take {what.step_us / 1e3:.1f} ms instead of {now / 1e3:.1f} ms: "
                f"{100 * what.saved_us / what.step_us:.0f} % more tokens/s (replayed)"
            )
    return said


def _where(trace: Trace, ranks: Sequence[RankShare]) -> Where:
    """None named where all are concerned."""
    return Where(ranks=tuple(r.rank for r in ranks) if len(ranks) < len(trace.ranks) else ())


def _evidence(trace: Trace, ranks: Sequence[RankShare], says: Callable[[RankShare], str]) -> tuple[Evidence, ...]:
    return tuple(_seen(trace, f"rank {r.rank}: {says(r)}", r.rank) for r in ranks[:MOST_NAMED])


@rule("TRC001", Severity.WARNING)
def ranks_wait_for_a_late_one(trace: Trace) -> Iterator[Finding]:
    """Some ranks come late to the collectives, and the others wait for them inside of theirs.

    A collective's kernel runs from the moment its rank comes to the moment the last one is through: the shortest
    belongs to the rank that came last. Of a single rank's trace nothing can be said.

    Fix: look at what that rank computes more, and at its GPU's clocks and its host.
    """
    if not trace.ranks:
        return
    window = median([r.window_us for r in trace.ranks])
    if all(one.us < WORTH_A_WARNING * window for one in trace.late):
        return
    costly = [one for one in trace.late if one.us >= PAUSE * window]
    ranks = tuple(dict.fromkeys(rank for one in costly for rank in one.ranks))
    shares = [r for r in trace.ranks if r.rank in ranks]
    others = median([r.compute_us for r in trace.ranks if r.rank not in ranks] or [0.0])
    said = [
        f"{_ranks(one.ranks)} {'come' if len(one.ranks) > 1 else 'comes'} last to {one.times} of {one.of} {one.name} "
        f"(the others wait {one.us / 1e3:.1f} ms)"
        for one in costly
    ]
    yield Finding(
        message="; ".join(said),
        cause="straggler-rank",
        confidence=Confidence.LIKELY,
        where=Where(ranks=ranks),
        evidence=(
            *(
                _seen(
                    trace,
                    f"{c.name}: rank {c.last_rank} stays {c.transfer_us:.0f} us, others up to {c.wait_us:.0f} us more",
                    c.last_rank,
                )
                for c in sorted(trace.collectives, key=lambda c: -c.wait_us)[:4]
                if set(c.late_ranks) & set(ranks)
            ),
            *_evidence(
                trace, shares, lambda r: f"computes {r.compute_us / 1e3:.1f} ms, the others {others / 1e3:.1f} ms"
            ),
        ),
        why="a collective ends when its last rank is through",
        cost=_cost(trace, "straggler-rank", sum(one.us for one in costly), shares[0]),
        fixes=(
            Fix(do="see whether its GPU is throttled", command="nvidia-smi -q -d CLOCK,PERFORMANCE"),
            Fix(do="give it the same work as the others: equal sequence lengths, experts and shards"),
        ),
        confirm="swap the ranks of two hosts: does the lateness stay with the host, or go with the rank's data?",
        sources=("HolisticTraceAnalysis, potential stragglers",),
        explains=("comm-not-overlapped", "cpu-launch-bound", "fsdp-full-shard-over-slow-link"),
    )


def _ranks(ranks: Sequence[int]) -> str:
    named = ", ".join(map(str, ranks[:MOST_NAMED])) + (" ..." if len(ranks) > MOST_NAMED else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {named}"


def _exposed(trace: Trace) -> list[RankShare]:
    """Ranks that communicate for long while they could compute, and not because they wait for one of them."""
    bad = [
        r
        for r in trace.ranks
        if r.exposed_communication_us > EXPOSED * r.window_us
        and r.overlap_percent is not None
        and r.overlap_percent < OVERLAP_IS_GOOD
        and r.compute_us > WORTH_A_WARNING * r.window_us
    ]
    if len(bad) < len(trace.ranks) / 2:
        return []
    waits = sum(one.us for one in trace.late) > max((r.exposed_communication_us for r in bad), default=0.0) / 2
    return [] if waits else bad


def _fsdp_us(trace: Trace) -> float:
    """Of one rank, gathering and scattering parameters and gradients, without waiting for others."""
    return sum(
        c.transfer_us * len(c.ranks) for c in trace.collectives if c.name in {"all_gather", "reduce_scatter"}
    ) / max(len(trace.ranks), 1)


@rule("TRC002", Severity.WARNING)
def communication_is_not_hidden(trace: Trace) -> Iterator[Finding]:
    """The device waits for communication while it could compute.

    Prefetching, an asynchronous collective or a stream of its own hides communication behind computation.

    Fix: prefetch (FSDP2: set_modules_to_forward_prefetch), larger buckets, HSDP inside nodes, more work per step.
    """
    bad = _exposed(trace)
    if not bad:
        return
    worst = max(bad, key=lambda r: r.exposed_communication_us)
    layers = sorted(trace.layers, key=lambda a: -(a.exposed_all_gather_us + a.exposed_reduce_scatter_us))
    yield Finding(
        message=f"{worst.exposed_communication_us / worst.window_us:.0%} of the time the device only communicates; "
        f"{worst.overlap_percent or 0:.0f} % of the communication is hidden",
        cause="comm-not-overlapped",
        confidence=Confidence.CERTAIN if len(trace.ranks) > 1 else Confidence.LIKELY,
        where=_where(trace, bad),
        evidence=(
            *_evidence(trace, bad, lambda r: f"exposed {_part(r.exposed_communication_us, r)}"),
            *(
                _seen(
                    trace,
                    f"{a.layer}: {a.exposed_all_gather_us / 1e3:.1f} of {a.all_gather_us / 1e3:.1f} ms of all-gathers, "
                    f"{a.exposed_reduce_scatter_us / 1e3:.1f} of {a.reduce_scatter_us / 1e3:.1f} ms of reduce-scatters "
                    "exposed",
                )
                for a in layers[:MOST_LAYERS]
            ),
        ),
        why="exposed communication adds to the step, hidden communication does not",
        cost=_cost(trace, "comm-not-overlapped", worst.exposed_communication_us, worst),
        fixes=HIDE,
        confirm="the traces of all ranks: does one come late? Else the same trace with the prefetch on"
        if len(trace.ranks) == 1
        else "the same trace with the prefetch on; smoldiag nccl-bench --fsdp MODEL says what the links give alone",
    )


@rule("TRC003", Severity.WARNING)
def host_launches_too_slowly(trace: Trace) -> Iterator[Finding]:
    """The device waits for the host to launch its next kernel.

    Many short kernels, Python between them, or a host whose processors are slow or taken.

    Fix: torch.compile, CUDA graphs, larger batches, fused optimizers; free processors for the ranks.
    """
    bad = [r for r in trace.ranks if _launch_idle(r) > IDLE * r.window_us]
    if not bad or len(bad) < len(trace.ranks) / 2:
        return
    worst = max(bad, key=_launch_idle)
    stacks = any(r.with_stack for r in bad)
    yield Finding(
        message=f"the device is idle {worst.idle_us / worst.window_us:.0%} of the time, most of it until the host has "
        f"launched the next kernel ({worst.short_kernels_percent:.0f} % of the kernels are shorter than a launch)",
        cause="cpu-launch-bound",
        confidence=Confidence.LIKELY
        if worst.short_kernels_percent > SHORT_KERNELS and not stacks
        else Confidence.POSSIBLE,
        where=_where(trace, bad),
        evidence=_evidence(trace, bad, lambda r: f"{_part(_launch_idle(r), r)} until a launch, {r.kernels} kernels"),
        why="the GPU can't be faster than the host that feeds it",
        cost=_cost(trace, "cpu-launch-bound", _launch_idle(worst), worst),
        fixes=COMPILE,
        confirm="a trace without Python's stacks (with_stack=False), which slow the host; then torch.compile"
        if stacks
        else "the same step with torch.compile or a CUDA graph",
    )


def _launch_idle(r: RankShare) -> float:
    """Until the host launched, but not because of anything else that it was seen doing."""
    others = (r.idle_data_us, r.idle_gc_us, r.idle_checkpoint_us, r.idle_peer_us, r.idle_allocate_us)
    return max((r.idle_launch_us or 0.0) - sum(us or 0.0 for us in others), 0.0)


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
        where=_where(trace, bad),
        evidence=_evidence(trace, bad, lambda r: f"{_part(r.idle_data_us or 0.0, r)} in the loader"),
        why="nothing is computed until the batch is there",
        cost=_cost(trace, "dataloader-stall", idle, worst),
        fixes=LOAD_AHEAD,
        confirm="the same step on synthetic data",
        explains=("cpu-launch-bound", "straggler-rank"),
    )


@rule("TRC005", Severity.WARNING)
def garbage_is_collected_in_the_step(trace: Trace) -> Iterator[Finding]:
    """The device is idle while Python collects garbage.

    Each rank collects when its own count of objects says so, so that in every step another one is late for all.

    Fix: disable the automatic collection and collect on all ranks at the same step.
    """
    yield from _pause(
        trace,
        lambda r: r.idle_gc_us,
        "gc-stragglers",
        "Python collects garbage",
        "a collection walks through all objects, and all other ranks wait for the one that collects",
        COLLECT_TOGETHER,
        "the same steps with gc.disable()",
    )


@rule("TRC006", Severity.WARNING)
def checkpoint_is_saved_in_the_step(trace: Trace) -> Iterator[Finding]:
    """The device is idle while the host saves a checkpoint.

    Training waits until the state is copied and written.

    Fix: save asynchronously, sharded, to a local disk first.
    """
    yield from _pause(
        trace,
        lambda r: r.idle_checkpoint_us,
        "checkpoint-stall",
        "the host saves a checkpoint",
        "nothing is computed until the state is written",
        SAVE_BESIDE,
        "the same steps without a checkpoint",
    )


@rule("TRC007", Severity.WARNING)
def memory_is_taken_from_the_driver_in_the_step(trace: Trace) -> Iterator[Finding]:
    """The device is idle while the allocator takes memory from the driver or gives it back.

    cudaMalloc and cudaFree wait for the device; in a steady step the caching allocator needs neither. It frees and
    retries where memory is short or cut into pieces.

    Fix: expandable segments, a smaller micro batch, fewer all-gathers in flight.
    """
    yield from _pause(
        trace,
        lambda r: r.idle_allocate_us,
        "allocator-retries",
        "the allocator calls cudaMalloc and cudaFree",
        "they wait for all that the device still has to do",
        (
            Fix(do="let segments grow", command="export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"),
            Fix(do="leave more memory free: a smaller micro batch, activation checkpointing"),
        ),
        'torch.cuda.memory_stats()["num_alloc_retries"] before and after a step',
    )


def _pause(
    trace: Trace,
    us: Callable[[RankShare], float | None],
    cause: str,
    meanwhile: str,
    why: str,
    fixes: tuple[Fix, ...],
    confirm: str,
) -> Iterator[Finding]:
    bad = [r for r in trace.ranks if (us(r) or 0.0) > PAUSE * r.window_us]
    if not bad:
        return
    worst = max(bad, key=lambda r: us(r) or 0.0)
    idle = us(worst) or 0.0
    yield Finding(
        message=f"the device is idle for {idle / 1e3:.1f} ms of {worst.window_us / 1e3:.1f} ms while {meanwhile}",
        cause=cause,
        where=_where(trace, bad),
        evidence=_evidence(trace, bad, lambda r: _part(us(r) or 0.0, r)),
        why=why,
        cost=_cost(trace, cause, idle, worst),
        fixes=fixes,
        confirm=confirm,
        explains=("straggler-rank", "cpu-launch-bound"),
    )


@rule("TRC008", Severity.INFO)
def kernels_are_for_an_older_architecture(trace: Trace) -> Iterator[Finding]:
    """Kernels that were written for an older GPU do a good part of the computation.

    They run, but without the matrix instructions and copies of the newer one. Some libraries have nothing else for a
    type, a layout or an alignment.

    Fix: bf16 or fp16 with dimensions that are multiples of 8 (fp8: 16), channels_last, a newer torch and cuDNN.
    """
    share = sum(trace.older_kernels.values())
    if share < OLDER_KERNELS or trace.capability is None:
        return
    named = ", ".join(f"{name} {part:.0%}" for name, part in trace.older_kernels.items())
    yield Finding(
        message=f"{share:.0%} of the computation runs in kernels written for an older GPU than {trace.device} "
        f"(sm{trace.capability[0]}{trace.capability[1]}): {named}",
        cause="kernels-for-older-gpu",
        severity=Severity.INFO,
        evidence=tuple(
            _seen(trace, f"{us / 1e3:.1f} ms in {count} x {name[:120]}")
            for name, count, us in trace.top_kernels
            if any(_written_for(name, older) for older in trace.older_kernels)
        )[:MOST_NAMED],
        why="the GPU's own matrix instructions are not used by them",
        fixes=(
            *(_unaligned(trace.roofline) or (Fix(do="see which operator launches them, its type, layout, alignment"),)),
            Fix(do="let the compiler write kernels for this GPU", command="model = torch.compile(model)"),
        ),
        confirm="the operator alone, with dimensions that are multiples of 8 and in bf16",
    )


def _unaligned(roof: Roofline | None) -> tuple[Fix, ...]:
    """The longest slow products with a dimension for which the tensor cores' own kernels do not fit."""
    slow = [p for p in roof.products if (p.of_roof or 0.0) < LEAST_OF_PEAK] if roof else []
    found = [p.text for p in slow if any(d % ALIGNED for d in p.shape[-3:])]
    if not found:
        return ()
    return (Fix(do=f"pad dimensions that are no multiples of {ALIGNED}, as in {'; '.join(found[:MOST_SHAPES])}"),)


def _written_for(kernel: str, architecture: str) -> bool:
    number = architecture.removeprefix("sm")
    return any(word in kernel for word in (f"sm{number}", f"sm_{number}", f"cutlass_{number}", f"cutlass{number}"))


@rule("TRC009", Severity.INFO)
def trace_does_not_show_the_device(trace: Trace) -> Iterator[Finding]:
    """The trace has no event of a GPU.

    Recorded with activities=[ProfilerActivity.CPU], without CUPTI's permission, or by a run on CPUs: what a step waits
    for can't be read from it.

    Fix: torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]).
    """
    if not trace.cpu_only:
        return
    yield Finding(
        message=f"{_ranks(trace.cpu_only)}: no event of a GPU in the trace",
        cause="measurement-artifact",
        severity=Severity.INFO,
        where=Where(ranks=trace.cpu_only),
        evidence=(_seen(trace, "no kernel, no copy"),),
        why="how busy the device is can't be told without its events",
        fixes=(
            Fix(
                do="record the device, too",
                command="profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])",
            ),
        ),
        confirm="nvidia-smi on the host while it runs; CUPTI's messages in the log",
    )


@rule("TRC010", Severity.WARNING)
def collectives_are_too_small(trace: Trace) -> Iterator[Finding]:
    """Most of the communication is in collectives so small that latency rules them.

    A small collective costs about the same whatever its size: many of them cost more than one with all of their data.

    Fix: larger buckets (DDP: bucket_cap_mb), larger FSDP units, fused or coalesced collectives.
    """
    known = [c for c in trace.collectives if c.size_bytes]
    small = [c for c in known if (c.size_bytes or 0) < SMALL_BYTES]
    us = sum(c.transfer_us * len(c.ranks) for c in small) / max(len(trace.ranks), 1)
    bad = [r for r in trace.ranks if r.exposed_communication_us > WORTH_A_WARNING * r.window_us]
    if len(bad) < len(trace.ranks) / 2 or not bad:
        return
    window = median([r.window_us for r in bad])
    total = sum(c.transfer_us * len(c.ranks) for c in known) / len(trace.ranks)
    if us < WORTH_A_WARNING * window or us < SMALL_SHARE * total:
        return
    sizes = sorted(c.size_bytes or 0 for c in small)
    yield Finding(
        message=f"{len(small)} of {len(known)} collectives are smaller than 1 MiB (median {sizes[len(sizes) // 2]} "
        f"bytes) and take {us / total:.0%} of the communication",
        cause="small-message-latency-bound",
        confidence=Confidence.LIKELY,
        evidence=tuple(
            _seen(trace, f"{c.name} of {c.size_bytes} bytes: {c.transfer_us:.0f} us")
            for c in sorted(small, key=lambda c: -c.transfer_us)[:4]
        ),
        why="below some MiB the time of a collective hardly depends on its size",
        cost=_part(us, bad[0]),
        fixes=(
            Fix(do="DDP: larger buckets", command="DistributedDataParallel(..., bucket_cap_mb=100)"),
            Fix(do="FSDP: one unit per transformer block, not per layer of it", command="fully_shard(block)"),
            Fix(do="in Accelerate", command="fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP"),
        ),
        confirm="smoldiag nccl-bench: where the curve of this collective leaves its latency",
        explains=("comm-not-overlapped",),
    )


@rule("TRC011", Severity.WARNING)
def sharding_moves_more_than_computation_hides(trace: Trace) -> Iterator[Finding]:
    """Gathering parameters and scattering gradients takes longer than all computation.

    No prefetch can hide it: FSDP moves the parameters twice and the gradients once per step over this link.

    Fix: shard inside the node and replicate between nodes (HSDP), keep parameters after the forward pass, or larger
    batches.
    """
    bad = _exposed(trace)
    if not bad:
        return
    compute = median([r.compute_us for r in bad])
    us = _fsdp_us(trace)
    if us < compute:
        return
    rates = [c.busbw_gbs for c in trace.collectives if c.busbw_gbs and c.name in {"all_gather", "reduce_scatter"}]
    at = f" at {median(rates):.0f} GB/s bus bandwidth" if rates else ""
    yield Finding(
        message=f"all-gathers and reduce-scatters take {us / 1e3:.1f} ms{at}, all computation {compute / 1e3:.1f} ms",
        cause="fsdp-full-shard-over-slow-link",
        confidence=Confidence.LIKELY if len(trace.ranks) > 1 else Confidence.POSSIBLE,
        where=_where(trace, bad),
        evidence=_evidence(trace, bad, lambda r: f"exposed {_part(r.exposed_communication_us, r)}"),
        why="what takes longer than the computation can't be hidden behind it",
        cost=_cost(trace, "comm-not-overlapped", bad[0].exposed_communication_us, bad[0]),
        fixes=SHARD_INSIDE,
        confirm="smoldiag nccl-bench --fsdp MODEL: what the links give alone",
        explains=("comm-not-overlapped",),
    )


@rule("TRC012", Severity.INFO)
def activations_are_computed_again(trace: Trace) -> Iterator[Finding]:
    """A part of the computation is the forward pass run again, for activation checkpointing.

    It is the price of the memory that is saved. Where memory is left, less of it makes the step faster.

    Fix: checkpoint every second layer, or only the cheap operators (selective checkpointing).
    """
    again = [(r.recompute_us or 0.0) / r.compute_us for r in trace.ranks if r.recompute_us and r.compute_us]
    if not again or median(again) < RECOMPUTED:
        return
    first = next(r for r in trace.ranks if r.recompute_us)
    yield Finding(
        message=f"{median(again):.0%} of the computation is done again for activation checkpointing",
        cause="activation-recompute",
        severity=Severity.INFO,
        evidence=(_seen(trace, f"rank {first.rank}: {_part(first.recompute_us or 0.0, first)}", first.rank),),
        why="checkpointed activations are computed twice",
        cost=_part(first.recompute_us or 0.0, first),
        fixes=(
            Fix(do="in torchtitan", command="--activation_checkpoint.mode selective"),
            Fix(do="else checkpoint fewer layers, where torch.cuda.max_memory_allocated() leaves room"),
        ),
        confirm="one step without activation checkpointing, if memory allows",
    )


@rule("TRC013", Severity.INFO)
def products_stay_below_the_peak(trace: Trace) -> Iterator[Finding]:
    """Matrix products are far below the GPU's peak, by memory or by shape.

    By the roofline: a product with fewer operations per byte than peak / bandwidth can't be faster than its bytes.
    Read where the profiler recorded shapes (record_shapes=True).

    Fix: attention by scaled_dot_product_attention in place of two products; more rows in one product.
    """
    roof = trace.roofline
    if roof is None or roof.of_compute < PRODUCTS_COUNT or roof.of_peak is None or roof.memory_bound is None:
        return
    if roof.of_peak >= LEAST_OF_PEAK:
        return
    fixes: tuple[Fix, ...]
    by_memory = roof.memory_bound > 0.5
    shown = [p for p in roof.products if p.bound == ("memory" if by_memory else "compute")]
    if by_memory:
        said = f"{roof.memory_bound:.0%} of their time is in shapes that the memory limits"
        fixes = (
            Fix(do="attention without its matrix in memory", command="F.scaled_dot_product_attention(q, k, v)"),
            Fix(do="in Transformers", command='from_pretrained(..., attn_implementation="sdpa")'),
            Fix(do="more rows in one product: a larger micro batch, projections joined into one (q, k and v)"),
        )
    else:
        said = "although their shapes would allow more"
        fixes = (
            Fix(do="dimensions that are multiples of 64, the vocabulary among them: pad them"),
            Fix(do="look at clocks and power under load", command="smoldiag preflight --level standard"),
        )
    yield Finding(
        message=f"matrix products take {roof.of_compute:.0%} of the computation and reach {roof.of_peak:.0%} of "
        f"{trace.device}'s dense peak: {said}",
        cause="memory-bound-products" if by_memory else "products-below-peak",
        severity=Severity.INFO,
        evidence=tuple(
            _seen(
                trace,
                f"{p.device_us / 1e3:.1f} ms in {p.count} x {p.text}: {p.tflops:.3g} TFLOP/s, {p.of_roof:.0%} of what "
                f"{p.flop_per_byte:.3g} FLOP/byte allow",
            )
            for p in shown[:MOST_NAMED]
            if p.of_roof is not None
        ),
        why=f"peaks: {roof.source}",
        cost=f"{roof.device_us * (1 - roof.of_peak / TYPICAL_OF_PEAK) / 1e3:.1f} ms over all ranks, against products "
        f"that reach {TYPICAL_OF_PEAK:.0%} of the peak",
        fixes=(*_unaligned(roof), *fixes),
        confirm="the same step with the change: smoldiag compare BEFORE AFTER",
    )
