"""What a step would take without a cause: the steps of made-up runs, replayed."""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from smoldiag import runs
from smoldiag.facts import Run, StepTimes
from smoldiag.facts.run import Beside, CollectiveCall, Connection
from smoldiag.model import replay, run_causes
from smoldiag.model import steps as model
from smoldiag.model.run_causes import Cause
from tests import run_folders

TOLERANCE = 0.02  # of the step time of the same run without the fault


def run(folder: Path, *, steps: int = 120, **what: Any) -> Run:
    return runs.read(run_folders.write(folder, steps=steps, noise=0.05, **what))


def step_us(of: Run) -> float:
    budget = model.budget(of)
    assert budget is not None
    return budget.mean_step_us


def cause(of: Run, slug: str) -> Cause:
    return next(c for c in run_causes.causes(of) if c.cause == slug)


def test_steps_are_replayed_as_they_were(tmp_path: Path) -> None:
    of = run(tmp_path / "run", added_ms={"forward": 60.0}, on=(1,))
    assert mean(replay.step_times(replay.steps(model.counted(of.steps)))) == pytest.approx(step_us(of), rel=0.002)


def test_clocks_of_hosts_need_not_agree(tmp_path: Path) -> None:
    of = run(tmp_path / "run", added_ms={"forward": 60.0}, on=(1,))
    drift = {"node0": 0.0, "node1": 37.5}
    apart = replace(of, steps=tuple(replace(s, time=s.time + drift[s.host] + s.step * 1e-5) for s in of.steps))
    assert cause(apart, "straggler-rank").without_us == pytest.approx(cause(of, "straggler-rank").without_us, rel=0.002)


@pytest.mark.parametrize(
    ("fault", "slug", "ranks"),
    [
        ({"added_ms": {"data": 100.0}, "on": (1,)}, "dataloader-stall", (1,)),
        ({"added_ms": {"data": 100.0}}, "dataloader-stall", ()),
        ({"added_ms": {"data": 900.0}, "on": (3,), "every": 9}, "dataloader-stall", (3,)),
        ({"added_ms": {"gc": 120.0}, "on": (0, 2)}, "gc-stragglers", (0, 2)),
        ({"added_ms": {"checkpoint": 800.0}, "every": 10}, "checkpoint-stall", ()),
        ({"added_ms": {"forward": 100.0}, "on": (2,)}, "straggler-rank", (2,)),
        ({"added_ms": {"forward": 60.0, "backward": 90.0}, "on": (2, 3)}, "straggler-rank", (2, 3)),
        ({"added_ms": {"optimizer": 80.0}, "on": (0,)}, "straggler-rank", (0,)),
    ],
)
def test_without_its_cause_a_step_takes_what_it_takes_without(
    fault: Mapping[str, Any], slug: str, ranks: tuple[int, ...], tmp_path: Path
) -> None:
    sound = run(tmp_path / "sound", seed=1)
    found = run_causes.causes(run(tmp_path / "faulty", **fault))[0]
    assert (found.cause, found.ranks) == (slug, ranks)
    assert found.without_us == pytest.approx(step_us(sound), rel=TOLERANCE)
    assert found.every == fault.get("every")


def test_two_causes_do_not_hide_each_other(tmp_path: Path) -> None:
    """Without one of them, the other one still holds the step up: not the sum of what each rank loses."""
    both = run(tmp_path / "both", added_ms={"data": 100.0, "gc": 100.0}, on=(1,))
    alone = run(tmp_path / "alone", added_ms={"gc": 100.0}, on=(1,), seed=1)
    assert cause(both, "dataloader-stall").without_us == pytest.approx(step_us(alone), rel=TOLERANCE)


def without_calls(s: StepTimes) -> StepTimes:
    return replace(s, collectives=())


def on_gpus(s: StepTimes) -> StepTimes:
    return replace(s, device_us=s.phases_us, phases_us={"forward": 1000.0}, collectives=(), spans=())


@pytest.mark.parametrize("seen", [without_calls, on_gpus])
@pytest.mark.parametrize("phase", ["data", "forward"])
def test_gradients_may_be_reduced_out_of_sight(
    phase: str, seen: Callable[[StepTimes], StepTimes], tmp_path: Path
) -> None:
    """As DDP does: the ranks wait for each other within backward. The test's folder lets them do so at the very end."""
    sound, faulty = run(tmp_path / "sound", seed=1), run(tmp_path / "faulty", added_ms={phase: 150.0}, on=(1,))
    found = run_causes.causes(replace(faulty, steps=tuple(seen(s) for s in faulty.steps)))[0]
    assert found.ranks == (1,)
    assert found.without_us == pytest.approx(step_us(sound), rel=2 * TOLERANCE)


def sending(**mb_per_s: float) -> Beside:
    """What each host sends to the others, 50 GB in all."""
    rates = list(mb_per_s.values())
    return Beside(
        connections=tuple(
            Connection(rank=rank, peer=f"10.0.0.{1 - rank // 2}", acked_bytes=5 * 10**10, resent_bytes=0,
                       busy_us=int(5e10 / rates[rank // 2]), min_rtt_us=20)
            for rank in (0, 2)
        ),
        watched_s=200.0,
    )  # fmt: skip


def test_a_slow_link_is_that_of_the_host_that_sends(tmp_path: Path) -> None:
    of = run(tmp_path / "run", transfer=3.0)
    slow = replace(of, beside=sending(node0=5000.0, node1=1500.0))
    link = cause(slow, "slow-link")
    assert (link.hosts, link.ranks) == (("node1",), (2, 3))
    assert [c.cause for c in run_causes.causes(of) if c.cause == "slow-link"] == []


SENT_BYTES = 2**20
OWN_US, LATENCY_US, NOISE_US, STALL_US = 5000.0, 300.0, 200.0, 70_000.0


def two_hosts(*, rates: tuple[float, float], seed: int, stalls: str = "", steps: int = 200) -> Run:
    """Two ranks that send each other SENT_BYTES in a gather and a scatter, and then a small reduction, in each step.

    `rates` in bytes/us of each host: a rank is done when what the other sent has come. Clocks are 3 ms apart.
    `stalls`: where node1 stands still for STALL_US, in two of five steps.
    """
    pick = random.Random(seed)
    made: list[StepTimes] = []
    now = [0.0, 0.0]
    stalled = 0
    for number in range(steps):
        stall = STALL_US if stalls and pick.random() < 0.4 else 0.0
        stalled += stall > 0
        if stalls == "between":
            now[1] += stall
        began = list(now)
        calls: tuple[list[CollectiveCall], list[CollectiveCall]] = ([], [])
        phases: tuple[list[tuple[str, float, float]], list[tuple[str, float, float]]] = ([], [])
        for name, size in (("all_gather", SENT_BYTES), ("reduce_scatter", SENT_BYTES), ("all_reduce", 8)):
            for rank in (0, 1):
                own = OWN_US * pick.uniform(0.9, 1.1)
                phases[rank].append(("backward", now[rank] - began[rank], own))
                now[rank] += own
            held = {"own": 0.0, "transfer": 0.0, "lag": 0.0, stalls: stall if name == "all_gather" else 0.0}
            if held["own"]:  # at work, before the call
                phases[1][-1] = ("backward", phases[1][-1][1], phases[1][-1][2] + stall)
                now[1] += stall
            last, entered = max(now) + held["transfer"], list(now)
            for rank in (0, 1):
                now[rank] = last + LATENCY_US + size / rates[1 - rank] + pick.expovariate(1 / NOISE_US)
                now[rank] += held["lag"] * (rank == 0)
                stay = now[rank] - entered[rank]
                call = CollectiveCall(name=name, group="all", size_bytes=size, entered_us=entered[rank] - began[rank],
                                      stay_us=stay, phase="backward", left_us=now[rank] - began[rank])  # fmt: skip
                calls[rank].append(call)
        made += [
            StepTimes(rank=rank, step=number, host=f"node{rank}", time=(began[rank] + 3000.0 * rank) / 1e6,
                      step_us=now[rank] - began[rank], phases_us={"backward": now[rank] - began[rank]},
                      collectives=tuple(calls[rank]), spans=tuple(phases[rank]))
            for rank in (0, 1)
        ]  # fmt: skip
    sent = 2 * SENT_BYTES * steps
    beside = Beside(
        connections=tuple(
            Connection(rank=rank, peer=f"10.0.0.{1 - rank}", acked_bytes=sent, resent_bytes=0,
                       busy_us=int(sent / rates[rank]), min_rtt_us=20)
            for rank in (0, 1)
        ),
        throttled_us={0: 0, 1: int(stalled * STALL_US)},
        watched_s=max(now) / 1e6,
    )  # fmt: skip
    return Run(steps=tuple(made), beside=beside)


@pytest.mark.parametrize("place", ["between", "own", "transfer", "lag"])
def test_wherever_a_host_stands_still_all_of_it_goes(place: str) -> None:
    """Between steps, at work, in a call that both wait for, and in one that only the other has to wait for."""
    sound = two_hosts(rates=(200.0, 200.0), seed=1)
    found = cause(two_hosts(rates=(200.0, 200.0), seed=2, stalls=place), "straggler-rank")
    assert (found.hosts, found.throttled_us > 0) == (("node1",), True)
    assert found.without_us == pytest.approx(step_us(sound), rel=2 * TOLERANCE)


@pytest.mark.parametrize("slow", [0, 1])
def test_without_a_slow_link_nobody_goes_on_later_than_others(slow: int) -> None:
    """The one that waits for the slow link goes on last: that is the transfer's, and not its own."""
    sound = two_hosts(rates=(200.0, 200.0), seed=1)
    faulty = two_hosts(rates=(40.0, 200.0) if slow == 0 else (200.0, 40.0), seed=2)
    found = cause(faulty, "slow-link")
    assert found.hosts == (f"node{slow}",)
    assert found.without_us == pytest.approx(step_us(sound), rel=2 * TOLERANCE)


def one_after_another(steps: Iterable[StepTimes]) -> tuple[StepTimes, ...]:
    """Steps of several runs as those of one: each begins when the one before is over."""
    made: list[StepTimes] = []
    ends: dict[int, float] = {}
    for s in steps:
        made.append(replace(s, time=ends.get(s.rank, 0.0)))
        ends[s.rank] = made[-1].time + s.step_us / 1e6
    return tuple(made)


def test_a_quota_takes_as_much_as_the_kernel_says(tmp_path: Path) -> None:
    """A third of the steps stand still for 300 ms somewhere on rank 1, which is 100 ms per step in the mean."""
    sound = run(tmp_path / "sound", seed=1)
    of = run(tmp_path / "run")
    pick = random.Random(2)
    stalled = {s.step for s in of.steps if s.rank == 1 and pick.random() < 1 / 3}
    steps = run(tmp_path / "faulty", added_ms={"forward": 300.0}, on=(1,)).steps
    mixed = one_after_another(f if f.step in stalled else s for f, s in zip(steps, of.steps, strict=True))
    seconds = sum(s.step_us for s in mixed if s.rank == 0) / 1e6
    beside = Beside(throttled_us={0: 0, 1: 300_000 * len(stalled)}, watched_s=seconds)
    found = run_causes.causes(replace(of, steps=mixed, beside=beside))[0]
    assert (found.cause, found.ranks) == ("straggler-rank", (1,))
    assert found.throttled_us > 0
    assert found.without_us == pytest.approx(step_us(sound), rel=2 * TOLERANCE)


def test_steps_after_a_save_in_the_background_are_slow_as_well(tmp_path: Path) -> None:
    sound = run(tmp_path / "sound", seed=1)
    saving = run(tmp_path / "saving", added_ms={"checkpoint": 200.0}, every=6)
    writing = run(tmp_path / "writing", added_ms={"forward": 300.0}, seed=2)
    after = tuple(w if w.step % 6 == 1 else s for s, w in zip(saving.steps, writing.steps, strict=True))
    found = cause(replace(saving, steps=after), "checkpoint-stall")
    assert found.without_us == pytest.approx(step_us(sound), rel=TOLERANCE)


@pytest.mark.parametrize("seed", range(20))
def test_clean_runs_are_clean(seed: int, tmp_path: Path) -> None:
    of = run(tmp_path / "run", seed=seed, steps=40)
    assert all(c.share < 0.05 for c in run_causes.causes(of))
