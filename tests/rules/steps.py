"""Rules that judge the steps of a training run."""

from smoldiag.facts import CollectiveCall, Run, StepTimes
from smoldiag.rules import Known
from tests.rules.known import Facts

STEP_US = 100_000.0


def run(*, late: int | None = None, **extra_us: float) -> Known:
    """Ten steps of three ranks; `late` works 40 ms longer, and the others wait for it; `extra_us` on rank 0."""
    steps = []
    for step in range(10):
        for rank in range(3):
            phases = {"data": 500.0, "forward": 30_000.0, "backward": 40_000.0, "optimizer": 5_000.0, "other": 200.0}
            stay = 24_300.0
            if rank == 0:
                phases |= extra_us
            if late is not None:
                stay = 4_300.0 if rank == late else 44_300.0
                phases["forward"] += 40_000.0 if rank == late else 0.0
            phases["backward"] += stay
            call = CollectiveCall(
                name="all_reduce", group="all", size_bytes=8, entered_us=50_000, stay_us=stay, phase="backward"
            )
            total = sum(phases.values())
            steps.append(
                StepTimes(
                    rank=rank, step=step, host=f"node{rank}", step_us=total, phases_us=phases, collectives=(call,)
                )
            )
    return Known(run=Run(steps=tuple(steps), hosts=("node0", "node1", "node2"), tokens_per_step=1000, where="RUN"))


CASES: list[tuple[str, Facts, list[str]]] = [
    ("STP001", run(data=30_000.0), ["warning"]),
    ("STP001", run(), []),
    ("STP002", run(late=2), ["warning"]),
    ("STP002", run(), []),
    ("STP003", run(gc=20_000.0), ["warning"]),
    ("STP003", run(gc=1_000.0), []),
    ("CKP001", run(checkpoint=20_000.0), ["warning"]),
    ("CKP001", run(checkpoint=2_000.0), []),
]
