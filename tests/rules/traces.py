"""Rules that judge traces of a profiler."""

from dataclasses import replace

from smoldiag.facts.trace import RankShare, Trace
from smoldiag.rules import Known
from tests.rules.known import Facts


def share(rank: int = 0, **more: float) -> RankShare:
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
    return replace(made, **more)  # type: ignore[arg-type]


def traces(*shares: RankShare, waited: dict[int, float] | None = None) -> Known:
    late = {"all_reduce": dict.fromkeys(waited or {}, 10)}
    return Known(trace=Trace(definition="ours", ranks=shares, waited_us=waited or {}, late=late))


HEALTHY = traces(*(share(r) for r in range(4)), waited={0: 1000.0, 1: 900.0, 2: 1100.0, 3: 800.0})

CASES: list[tuple[str, Facts, list[str]]] = [
    ("TRC001", traces(*(share(r) for r in range(4)), waited={0: 500.0, 2: 30_000.0}), ["warning"]),
    ("TRC001", HEALTHY, []),
    ("TRC001", traces(share()), []),
    ("TRC002", traces(share(exposed_communication_us=40_000, overlap_percent=10)), ["warning"]),
    ("TRC002", HEALTHY, []),
    ("TRC003", traces(share(idle_us=60_000, idle_launch_us=55_000)), ["warning"]),
    ("TRC003", traces(share(idle_us=60_000, idle_launch_us=55_000, idle_data_us=50_000)), []),
    ("TRC003", HEALTHY, []),
    ("TRC004", traces(share(idle_us=60_000, idle_launch_us=55_000, idle_data_us=50_000)), ["warning"]),
    ("TRC004", HEALTHY, []),
]
