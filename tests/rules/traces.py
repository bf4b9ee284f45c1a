"""Rules that judge traces of a profiler."""

from dataclasses import replace
from typing import Any

from smoldiag.facts.trace import CollectiveShare, Late, ProductShare, RankShare, Roofline, Trace
from smoldiag.rules import Known
from tests.rules.known import Facts


def share(rank: int = 0, **more: Any) -> RankShare:
    """A healthy rank: 80 % computes, communication is hidden."""
    made = RankShare(
        rank=rank,
        window_us=100_000,
        compute_us=80_000,
        communication_us=30_000,
        memory_us=1_000,
        idle_us=14_000,
        exposed_communication_us=5_000,
        overlap_percent=83.0,
        idle_launch_us=8_000,
        idle_data_us=1_000,
        kernels=1000,
        short_kernels_percent=30,
    )
    return replace(made, **more)


def traces(*shares: RankShare, late: tuple[Late, ...] = (), **more: Any) -> Known:
    return Known(trace=Trace(definition="ours", ranks=shares, late=late, **more))


def late(us: float, *ranks: int) -> tuple[Late, ...]:
    return (Late(name="all_reduce", ranks=ranks, times=9, of=10, us=us),)


def sent(name: str, size: int, us: float, count: int = 1, ranks: int = 4) -> tuple[CollectiveShare, ...]:
    one = CollectiveShare(
        name=name,
        size_bytes=size,
        group="",
        ranks=tuple(range(ranks)),
        transfer_us=us,
        wait_us=1.0,
        last_rank=0,
        busbw_gbs=size / us / 1e3,
    )
    return (one,) * count


HOPPER: dict[str, Any] = {"device": "NVIDIA H100 80GB HBM3", "capability": (9, 0)}


def products(of_peak: float | None, *, bound: str = "compute", of_compute: float = 0.6) -> Known:
    product = ProductShare(
        op="aten::bmm",
        dtype="bfloat16",
        shape=(96, 3137, 64, 3137),
        count=12,
        device_us=20_000.0,
        tflops=71.0,
        gb_per_s=1157.0,
        flop_per_byte=61.5,
        bound=bound,
        peak_tflops=989.0,
        of_roof=0.35,
    )
    roof = Roofline(
        products=(product,),
        device_us=20_000.0,
        of_compute=of_compute,
        of_peak=of_peak,
        memory_bound=0.9 if bound == "memory" else 0.0,
        source="data sheet",
    )
    return traces(share(), roofline=roof, **HOPPER)


HEALTHY = traces(*(share(r) for r in range(4)), late=late(1000.0, 2), collectives=sent("all_gather", 1 << 26, 200, 50))
WAITING: dict[str, Any] = {"idle_us": 60_000.0, "idle_launch_us": 55_000.0}
EXPOSED = [share(r, exposed_communication_us=40_000, overlap_percent=10, compute_us=50_000) for r in range(4)]

CASES: list[tuple[str, Facts, list[str]]] = [
    ("TRC001", traces(*(share(r) for r in range(4)), late=late(30_000.0, 2)), ["warning"]),
    ("TRC001", HEALTHY, []),
    ("TRC001", traces(share()), []),
    ("TRC001", traces(cpu_only=(0,)), []),
    ("TRC002", traces(share(exposed_communication_us=40_000, overlap_percent=10)), ["warning"]),
    ("TRC002", traces(*EXPOSED, late=late(30_000.0, 2)), []),
    ("TRC002", HEALTHY, []),
    ("TRC003", traces(share(**WAITING)), ["warning"]),
    ("TRC003", traces(share(**WAITING, idle_data_us=50_000)), []),
    ("TRC003", traces(share(**WAITING, idle_gc_us=50_000)), []),
    ("TRC003", HEALTHY, []),
    ("TRC004", traces(share(**WAITING, idle_data_us=50_000)), ["warning"]),
    ("TRC004", HEALTHY, []),
    ("TRC005", traces(share(0), share(1, idle_gc_us=9_000)), ["warning"]),
    ("TRC005", HEALTHY, []),
    ("TRC006", traces(share(idle_checkpoint_us=9_000)), ["warning"]),
    ("TRC006", HEALTHY, []),
    ("TRC007", traces(share(idle_allocate_us=9_000)), ["warning"]),
    ("TRC007", HEALTHY, []),
    ("TRC008", traces(share(), older_kernels={"sm75": 0.28}, **HOPPER), ["info"]),
    ("TRC008", traces(share(), older_kernels={"sm80": 0.02}, **HOPPER), []),
    ("TRC009", traces(cpu_only=(3,)), ["info"]),
    ("TRC009", HEALTHY, []),
    ("TRC010", traces(*EXPOSED, collectives=sent("all_reduce", 4096, 100, 300)), ["warning"]),
    ("TRC010", traces(*EXPOSED, collectives=sent("all_reduce", 1 << 26, 1000, 30)), []),
    ("TRC010", HEALTHY, []),
    ("TRC011", traces(*EXPOSED, collectives=sent("all_gather", 1 << 26, 10_000, 9)), ["warning"]),
    ("TRC011", traces(*EXPOSED, collectives=sent("all_gather", 1 << 26, 10_000, 3)), []),
    ("TRC011", HEALTHY, []),
    ("TRC012", traces(share(recompute_us=20_000)), ["info"]),
    ("TRC012", HEALTHY, []),
    ("TRC013", products(0.17, bound="memory"), ["info"]),
    ("TRC013", products(0.3), ["info"]),
    ("TRC013", products(0.7), []),
    ("TRC013", products(0.17, of_compute=0.1), []),
    ("TRC013", products(None), []),
    ("TRC013", HEALTHY, []),
]
