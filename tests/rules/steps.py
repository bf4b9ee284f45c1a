"""Rules that judge the steps of a training run."""

from dataclasses import replace

from smoldiag.facts import CollectiveCall, Run, StepTimes
from smoldiag.facts.run import Beside, Connection, Weights
from smoldiag.rules import Known
from tests.rules.known import Facts

STEPS = 20
JITTER_US = (0.0, 900.0, 300.0, 1500.0, 600.0)  # of own work from step to step, another on each rank


def run(
    *,
    late: tuple[int, ...] = (),
    every: int = 1,
    transfer_us: float = 4_000.0,
    beside: Beside | None = None,
    **extra_us: float,
) -> Known:
    """Steps of six ranks on three hosts: 30 ms forward, an all-reduce, 10 ms backward. `late` work 40 ms longer, and
    the others wait for them; `extra_us` is what rank 0 does besides in every `every`-th step."""
    steps = []
    for step in range(STEPS):
        before = {}
        for rank in range(6):
            phases = {"data": 500.0, "forward": 30_000.0 + JITTER_US[(step + 2 * rank) % 5]}
            if rank == 0 and step % every == 0:
                phases |= extra_us
            if rank in late:
                phases["forward"] += 40_000.0
            before[rank] = phases
        enter = {rank: sum(phases.values()) for rank, phases in before.items()}
        done = max(enter.values()) + transfer_us
        for rank, phases in before.items():
            call = CollectiveCall(
                name="all_reduce", group="all", size_bytes=1_000_000, entered_us=enter[rank],
                stay_us=done - enter[rank], phase="backward", left_us=done,
            )  # fmt: skip
            spans, at = [], 0.0
            for name, us in phases.items():
                spans.append((name, at, us))
                at += us
            spans.append(("backward", at, done - at + 10_000.0))
            whole = phases | {"backward": done - at + 10_000.0}
            steps.append(
                StepTimes(
                    rank=rank, step=step, host=f"node{rank // 2}", time=step * 0.2, step_us=sum(whole.values()),
                    phases_us=whole, collectives=(call,), spans=tuple(spans),
                )
            )  # fmt: skip
    hosts = ("node0", "node1", "node2")
    return Known(run=Run(steps=tuple(steps), hosts=hosts, tokens_per_step=1000, where="RUN", beside=beside or Beside()))


def updated(
    *, equal: tuple[int, ...] = (), constant: bool = False, alike: bool = False, parameters: str = "float32",
    state: str = "float32",
) -> Beside:  # fmt: skip
    """Shards of six ranks; those of `equal` start with the same values, and differ in place unless `alike`."""
    made = {}
    for rank in range(6):
        values = (
            (1000.0, 1000.0, 5e5, 1000.0) if constant else (3.0 + (0 if rank in equal else rank), 40.0, 7.0, 1000.0)
        )
        made[rank] = Weights(
            optimizer="AdamW", learning_rate=3e-4, parameters={parameters: 10_000}, state={state: 20_000},
            shards={"0": values, "1": (float(rank), 5.0, 1.0, 10.0)}, place=(0,) if alike else (rank,),
        )  # fmt: skip
    return Beside(weights=made)


def throttled(*ranks: int) -> Beside:
    return Beside(throttled_us={rank: 2_000_000 if rank in ranks else 0 for rank in range(6)}, watched_s=4.0)


def sending(mb_per_s: float) -> Beside:
    """Each host sends 40 MB to the next one, node1 at this rate and the others at 100 MB/s."""
    rates = {0: 100.0, 2: mb_per_s, 4: 100.0}
    connections = tuple(
        Connection(
            rank=r, peer=f"10.0.0.{r}", acked_bytes=40_000_000, resent_bytes=0, busy_us=int(40e6 / rate), min_rtt_us=9
        )
        for r, rate in rates.items()
    )
    return Beside(connections=connections, watched_s=4.0)


def ended(rank: int, *, silent_s: float) -> Beside:
    return Beside(ended={rank: (STEPS - 1, 100.0)}, seen=dict.fromkeys(range(6), 100.0 + silent_s))


def stopped(known: Known) -> Known:
    """The same run with a checkpoint of 60 ms after every fourth step, on all ranks."""
    assert known.run is not None
    steps = [
        replace(
            s,
            step_us=s.step_us + 60_000.0,
            phases_us={**s.phases_us, "checkpoint": 60_000.0},
            spans=(*s.spans, ("checkpoint", s.step_us, 60_000.0)),
        )
        if s.step % 4 == 3
        else s
        for s in known.run.steps
    ]
    return Known(run=replace(known.run, steps=tuple(steps)))


CASES: list[tuple[str, Facts, list[str]]] = [
    ("LOS007", run(beside=updated(equal=(2, 3))), ["error"]),
    ("LOS007", run(beside=updated()), []),
    ("LOS007", run(beside=updated(constant=True)), []),
    ("LOS007", run(beside=updated(equal=(2, 3), alike=True)), []),
    ("LOS007", run(), []),
    ("LOS008", run(beside=updated(parameters="bfloat16", state="bfloat16")), ["info"]),
    ("LOS008", run(beside=updated(parameters="bfloat16")), []),
    ("LOS008", run(beside=updated()), []),
    ("STP001", run(data=30_000.0), ["warning"]),
    ("STP001", run(data=300_000.0, every=5), ["warning"]),
    ("STP001", run(), []),
    ("STP002", run(late=(2,)), ["warning"]),
    ("STP002", run(late=(2, 3)), ["warning"]),
    ("STP002", run(beside=throttled(4)), []),  # its quota cost these steps nothing
    ("STP002", run(), []),
    ("STP003", run(gc=20_000.0), ["warning"]),
    ("STP003", run(gc=1_000.0), []),
    ("STP004", run(transfer_us=60_000.0, beside=sending(20.0)), ["warning"]),
    ("STP004", run(beside=sending(20.0)), []),  # the transfers take no longer than at the usual rate
    ("STP004", run(beside=sending(90.0)), []),
    ("STP005", run(stood_still=60_000.0, every=4, beside=throttled(*range(6))), ["warning"]),
    ("STP005", run(beside=throttled(*range(6))), []),
    ("STP006", run(beside=ended(3, silent_s=8.0)), ["error"]),
    ("STP006", run(beside=ended(3, silent_s=0.1)), []),
    ("CKP001", stopped(run()), ["warning"]),
    ("CKP001", run(), []),
]
