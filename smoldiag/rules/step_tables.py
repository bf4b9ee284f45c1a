"""STP and TRC: what step logs and tables of profilers show, without a trace."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from smoldiag.facts import Evidence
from smoldiag.facts.tables import KernelTable, Operator, ProfilerTable, Tables
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.rules import rule

MIN_STEPS = 40  # fewer show no habit
WARMUP_SHARE = 0.02  # of the points, at least two: the first steps compile and connect
DIP_RATIO = 0.80  # of the median throughput
STALL_RATIO = 0.50
MIN_DIPS = 3
MAX_DIP_SHARE = 0.25  # more is no exception
MIN_DIP_SHARE = 0.01  # of the steps
MIN_LOST = 0.01  # of the time, by such steps; runs that are called sound lose less
DATA_SHARE = 0.15  # of the step's time that is spent waiting for data
REGIME_RATIO = 1.4  # between two stretches of a run: noise and longer sequences stay below it in published runs
MIN_STRETCH = 10
START_SHARE = 0.25  # of a run, that may be slow because it starts
MAX_BLOCKS = 300  # medians of so many blocks stand for longer series
EXPOSED_PERCENT = 25.0
OVERLAP_PERCENT = 25.0
IDLE_PERCENT = 40.0
GATHER_SHARE = 0.30  # of the GPU's time, and more than computation
LATE_SHARE = 0.30  # of all the waiting in a step, caused by one rank
LATE_US = 300.0
SHORT_RATIO = 0.25  # the last rank's kernel against the others': it does not wait

_GATHERS = ("allgather", "all_gather", "reducescatter", "reduce_scatter")
_COMPUTE = (
    "gemm",
    "cutlass",
    "ampere",
    "hopper",
    "sm80",
    "sm90",
    "flash",
    "elementwise",
    "triton",
    "conv",
    "cublas",
    "nvjet",
)


@rule("STP023", Severity.WARNING)
def allocator_starts_over(tables: Tables) -> Iterator[Finding]:
    """The caching allocator ran full, gave its blocks back and asked again.

    Each time it waits for the GPU to be idle, and the steps around it are several times slower.

    Fix: a smaller batch or fewer all-gathers in flight (limit_all_gathers), expandable segments.
    """
    found = [(n, match) for n in tables.notes if (match := _RETRIES.search(n.text))]
    seen = [n for n, match in found if int(next(g for g in match.groups() if g)) > 0]
    if seen:
        yield Finding(
            message=f"the caching allocator ran full and started over: {seen[0].text[:120]}",
            cause="allocator-retries",
            confidence=Confidence.LIKELY,
            evidence=tuple(seen[:6]),
            why="blocks are given back with cudaFree, which waits for all streams, and asked for again",
            cost="seconds per step where it happens in each (7.3 instead of 5.0 s, pytorch issue 104509)",
            fixes=(
                Fix(do="let segments grow", command="export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"),
                Fix(do="make the batch smaller, or limit all-gathers in flight (FSDP: limit_all_gathers=True)"),
            ),
            confirm="torch.cuda.memory_stats()['num_alloc_retries'] stays the same over steps",
            sources=("PyTorch notes on CUDA semantics: memory management",),
        )


_RETRIES = re.compile(
    r"(\d{1,9}) (?:pytorch )?allocator cache flushes|alloc_retries[\"']?\s?[:=]\s?(\d{1,9})|"
    r"cudaMalloc retries:? ?(\d{1,9})"
)


@rule("TRC020", Severity.WARNING)
def communication_is_exposed(tables: Tables) -> Iterator[Finding]:
    """A large part of the step is communication with no computation beside it.

    GPU utilisation counts it as busy. What is exposed is lost in full.

    Fix: overlap (DDP buckets, FSDP prefetching, asynchronous collectives), a larger batch, fewer recomputations.
    """
    for line in tables.timelines:
        exposed, overlap, idle = (line.percent.get(k) for k in ("exposed_comm", "overlap", "idle"))
        comm = line.percent.get("comm")
        where = Where(ranks=(line.rank,)) if line.rank is not None else Where()
        if (exposed is not None and exposed >= EXPOSED_PERCENT) or (overlap is not None and overlap < OVERLAP_PERCENT):
            shown = f"{exposed:.0f} % of the time is exposed communication" if exposed is not None else ""
            shown = shown or f"only {overlap:.0f} % of the communication overlaps computation"
            more = f"; {comm:.0f} % is communication in all" if comm is not None else ""
            yield Finding(
                message=shown + more,
                cause="comm-not-overlapped",
                confidence=Confidence.LIKELY if exposed is not None else Confidence.POSSIBLE,
                where=where,
                evidence=(Evidence(text=_percents(line.percent), where=line.where),),
                why="the GPUs wait for the network or for each other and compute nothing meanwhile",
                cost=f"{exposed:.0f} % of the step (time line)" if exposed is not None else "",
                fixes=(Fix(do="overlap it: larger buckets, prefetching, asynchronous collectives; a larger batch"),),
                confirm="the stream view of a trace: collectives beside kernels of computation",
            )
        elif idle is not None and idle >= IDLE_PERCENT:
            yield Finding(
                message=f"the GPU is idle {idle:.0f} % of the time",
                cause="cpu-launch-bound",
                confidence=Confidence.POSSIBLE,
                where=where,
                evidence=(Evidence(text=_percents(line.percent), where=line.where),),
                why="kernels are not launched fast enough, or the loop waits for data",
                cost=f"{idle:.0f} % of the step (time line)",
                fixes=(Fix(do="see what the CPU does between kernels; CUDA graphs or a larger batch"),),
                confirm="the trace: gaps between short kernels, or one long gap before forward",
            )


def _percents(percent: object) -> str:
    assert isinstance(percent, dict)
    return ", ".join(f"{name} {value:.1f} %" for name, value in percent.items())


@dataclass(frozen=True, kw_only=True)
class _Shares:
    gather: float
    reduce: float
    compute: float
    pageable: float
    data: float
    malloc: float


@rule("TRC021", Severity.WARNING)
def profile_dominated_by_one_thing(tables: Tables) -> Iterator[Finding]:
    """torch.profiler's table shows one thing besides computation that takes the time.

    All-gathers of sharded parameters over a slow link, copies from pageable memory, the data loader, cudaMalloc
    within steps.

    Fix: hybrid sharding or a faster link; pinned memory; more workers; fewer allocations in flight.
    """
    for table in tables.profiles:
        s = _shares(table)
        if s.gather >= GATHER_SHARE and s.gather > s.compute:
            yield _profile(
                table, "fsdp-full-shard-over-slow-link",
                f"all-gathers and reduce-scatters take {s.gather:.0%} of the GPU's time, computation {s.compute:.0%}",
                "sharded parameters cross the slowest link in every layer", s.gather, _GATHERS,
                "shard within a node only (HSDP), reshard_after_forward=False, or a faster link",
            )  # fmt: skip
        elif s.reduce >= GATHER_SHARE and s.reduce > s.compute:
            yield _profile(
                table, "comm-not-overlapped",
                f"all-reduces take {s.reduce:.0%} of the GPU's time, computation {s.compute:.0%}",
                "gradients wait for the network", s.reduce, ("allreduce", "all_reduce"),
                "larger buckets and overlap with backward; accumulate gradients",
            )  # fmt: skip
        if s.data >= DATA_SHARE:
            yield _profile(
                table, "dataloader-stall", f"the data loader takes {s.data:.0%} of the CPU's time",
                "the loop waits for the next batch", s.data, ("dataloader",), "raise num_workers and prefetch_factor",
            )  # fmt: skip
        if s.malloc >= 0.10:
            yield _profile(
                table, "allocator-retries", f"cudaMalloc and cudaFree take {s.malloc:.0%} of the CPU's time",
                "the caching allocator is full and starts over, which waits for the GPU", s.malloc,
                ("cudamalloc", "cudafree"), "export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True; a smaller batch",
            )  # fmt: skip
        if s.pageable >= 0.15:
            yield _profile(
                table, "cpu-offload", f"copies of pageable host memory take {s.pageable:.0%} of the GPU's time",
                "pageable copies are slow, and the stream waits for them", s.pageable, ("pageable",),
                "pin the memory (pin_memory=True), or turn CPU offload off",
            )  # fmt: skip


def _shares(table: ProfilerTable) -> _Shares:
    kernels = [o for o in table.operators if o.name.lower().startswith(("nccl", "rccl"))]
    ops = kernels or [o for o in table.operators if o.name.startswith(("c10d", "nccl:"))]
    total = table.gpu_us or sum(o.self_gpu_us or 0.0 for o in table.operators)
    cpu = table.cpu_us or sum(o.self_cpu_us or 0.0 for o in table.operators)

    def share(among: Sequence[Operator], words: Sequence[str], *, of_cpu: bool = False) -> float:
        whole = cpu if of_cpu else total
        times = [
            (o.self_cpu_us if of_cpu else o.self_gpu_us) or 0.0
            for o in among
            if any(w in o.name.lower() for w in words)
        ]
        return min(1.0, sum(times) / whole) if whole else 0.0

    own = [o for o in table.operators if o not in ops]
    return _Shares(
        gather=share(ops, _GATHERS),
        reduce=share(ops, ("allreduce", "all_reduce")),
        compute=share(own, _COMPUTE),
        pageable=share(own, ("pageable",)),
        data=share(own, ("dataloader",), of_cpu=True),
        malloc=share(own, ("cudamalloc", "cudafree"), of_cpu=True),
    )


def _profile(
    table: ProfilerTable, cause: str, message: str, why: str, share: float, words: Sequence[str], do: str
) -> Finding:
    rows = [o for o in table.operators if any(w in o.name.lower() for w in words)][:4]
    return Finding(
        message=message,
        cause=cause,
        confidence=Confidence.LIKELY if share >= 0.25 else Confidence.POSSIBLE,
        evidence=tuple(
            Evidence(text=f"{o.name}: {o.calls} calls, GPU {(o.self_gpu_us or 0) / 1e6:.3g} s", where=table.where)
            for o in rows
        ),
        why=why,
        cost=f"{share:.0%} (torch.profiler's table)",
        fixes=(Fix(do=do),),
        confirm="the same steps with the change, profiled again",
    )


@rule("TRC022", Severity.WARNING)
def rank_comes_last_to_collectives(tables: Tables) -> Iterator[Finding]:
    """One rank has the shortest communication kernels: the others wait for it inside theirs.

    The time of a collective's kernel includes waiting for the peers: the rank with the shortest one is late.

    Fix: see what that rank computes more, or what its host does (clocks, data, CPU binding).
    """
    for table in tables.kernels:
        caused, total = _waits(table)
        if not caused or total < LATE_US:
            continue
        rank, wait = max(caused.items(), key=lambda item: item[1])
        if wait < LATE_SHARE * total or wait < LATE_US:
            continue
        own = [k for k in table.kernels if k.rank == rank]
        yield Finding(
            message=f"rank {rank} comes last: the others wait {wait / 1e3:.2f} ms for it inside their kernels "
            f"({wait / total:.0%} of all waiting)",
            cause="straggler-rank",
            confidence=Confidence.LIKELY,
            where=Where(ranks=(rank,)),
            evidence=tuple(
                Evidence(text=f"rank {k.rank}: {k.name} {k.duration_us:.0f} us", where=table.where) for k in own[:3]
            ),
            why="a collective ends when the last rank has joined",
            cost=f"{wait / 1e3:.2f} ms in the steps of the table (median of the others' kernels less its own)",
            fixes=(Fix(do=f"see what rank {rank} does before: its kernels, its host work, clocks, data"),),
            confirm="the ranks' traces side by side: its computation ends last",
        )


def _waits(table: KernelTable) -> tuple[dict[int, float], float]:
    """Microseconds of waiting that each rank caused, and all of it."""
    by_rank: dict[int, list[tuple[str, float]]] = {}
    for k in sorted(table.kernels, key=lambda k: k.start_us):
        by_rank.setdefault(k.rank, []).append((k.name, k.duration_us))
    caused: dict[int, float] = {}
    total = 0.0
    if len(by_rank) < 3:
        return caused, total
    for place in range(min(len(v) for v in by_rank.values())):
        row = {rank: kernels[place] for rank, kernels in by_rank.items()}
        if len({name for name, _ in row.values()}) > 1:
            continue
        times = {rank: us for rank, (_, us) in row.items()}
        last = min(times, key=lambda r: times[r])
        usual = median(times.values())
        total += max(0.0, usual - times[last])
        if times[last] < SHORT_RATIO * usual:
            caused[last] = caused.get(last, 0.0) + usual - times[last]
    return caused, total
