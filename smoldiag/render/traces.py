"""Traces for people at a terminal: what each rank's device did, and the kernels that took longest."""

from collections.abc import Iterator

from smoldiag.facts.trace import Trace
from smoldiag.model.stats import median

MAX_RANKS = 16
MAX_KERNELS = 10
MAX_NAME = 80
MAX_LAYERS = 8
MAX_PRODUCTS = 8


def read(trace: Trace) -> str:
    """One part of a sentence: of how many ranks, and the medians of what their devices did."""

    def share(part: str) -> str:
        return f"{median([getattr(r, part) / r.window_us for r in trace.ranks]):.0%}"

    if not trace.ranks:
        return f"traces without a GPU of {len(trace.cpu_only)} rank{'s' if len(trace.cpu_only) != 1 else ''}"
    ranks = (
        f"traces of {len(trace.ranks)} ranks" if len(trace.ranks) != 1 else f"the trace of rank {trace.ranks[0].rank}"
    )
    device = f" on {trace.device}" if trace.device else ""
    return (
        f"{ranks}{device}: compute {share('compute_us')}, exposed communication {share('exposed_communication_us')}, "
        f"idle {share('idle_us')}"
    )


def lines(trace: Trace) -> Iterator[str]:
    """A row per rank, then the kernels."""
    yield f"{'definition':12} {trace.definition}"
    yield "  rank  window ms  compute communic.  exposed  overlap  memory   idle"
    for r in trace.ranks[:MAX_RANKS]:
        overlap = f"{r.overlap_percent:.1f} %" if r.overlap_percent is not None else "none"
        parts = (r.compute_us, r.communication_us, r.exposed_communication_us)
        compute, communication, exposed = (f"{us / r.window_us:.1%}" for us in parts)
        yield (
            f"{r.rank:6} {r.window_us / 1e3:10.2f} {compute:>8} {communication:>9} {exposed:>8} {overlap:>8} "
            f"{r.memory_us / r.window_us:7.1%} {r.idle_us / r.window_us:6.1%}"
        )
    if len(trace.ranks) > MAX_RANKS:
        yield f"... and {len(trace.ranks) - MAX_RANKS} more ranks"
    for collective, ranks in trace.last_to_come.items():
        last = sorted(ranks.items(), key=lambda row: -row[1])
        yield f"last to come to {collective}: " + ", ".join(f"rank {rank} {count} times" for rank, count in last[:8])
    yield from _idle(trace)
    yield from _layers(trace)
    yield from _replay(trace)
    yield from _products(trace)
    for name, count, us in trace.top_kernels[:MAX_KERNELS]:
        yield f"{us / 1e3:10.2f} ms {count:6} x  {name[:MAX_NAME]}"


IDLE = {
    "idle_launch_us": "until the host launched",
    "idle_data_us": "in the loader",
    "idle_gc_us": "in garbage collection",
    "idle_checkpoint_us": "in a checkpoint",
    "idle_peer_us": "waiting for other hosts",
    "idle_allocate_us": "in cudaMalloc and cudaFree",
}


def _idle(trace: Trace) -> Iterator[str]:
    """The medians of what the devices were idle for."""
    for field, words in IDLE.items():
        shares = [getattr(r, field) / r.window_us for r in trace.ranks if getattr(r, field)]
        if shares:
            yield f"{'idle':12} {median(shares):.1%} {words}"


def _layers(trace: Trace) -> Iterator[str]:
    for a in sorted(trace.layers, key=lambda a: -a.exposed_all_gather_us - a.exposed_reduce_scatter_us)[:MAX_LAYERS]:
        yield (
            f"{a.layer}: all-gathers {a.all_gather_us / 1e3:.2f} ms, {a.exposed_all_gather_us / 1e3:.2f} exposed; "
            f"reduce-scatters {a.reduce_scatter_us / 1e3:.2f} ms, {a.exposed_reduce_scatter_us / 1e3:.2f} exposed"
        )


def _products(trace: Trace) -> Iterator[str]:
    if trace.roofline is None:
        return
    yield "     time    calls  TFLOP/s  of roof  FLOP/byte  bound    matrix product"
    for p in trace.roofline.products[:MAX_PRODUCTS]:
        of_roof = "-" if p.of_roof is None else f"{p.of_roof:.0%}"
        yield (
            f"{p.device_us / 1e3:6.2f} ms {p.count:8} {p.tflops:8.1f} {of_roof:>8} {p.flop_per_byte:10.1f}  "
            f"{p.bound or '-':8} {p.text}"
        )


def _replay(trace: Trace) -> Iterator[str]:
    r = trace.replay
    if r is None:
        return
    yield (
        f"{'replay':12} {r.steps} step{'s' if r.steps != 1 else ''} of {r.step_us / 1e3:.2f} ms each; "
        f"unchanged it gives {r.replayed_us / 1e3:.2f} ms ({r.error_percent:+.1f} %)"
    )
    for w in r.what_if:
        yield f"{'what if':12} {w.step_us / 1e3:.2f} ms {w.without} ({w.cause})"
