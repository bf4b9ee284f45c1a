"""What-if: traces of a small simulated job, with and without a fault; the replay of the one must foretell the other."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from smoldiag.facts.trace import RankTrace
from smoldiag.model import traces as model
from smoldiag.parse import trace
from tests.test_traces import document, kernel

STEPS = 6


@dataclass(frozen=True)
class Job:
    """Times in microseconds."""

    ranks: int = 4
    layers: int = 12
    gemm: float = 400.0
    launch: float = 12.0  # of the host, for one kernel
    kernels: int = 4  # of a layer
    transfer: float = 150.0
    hidden: bool = True  # collectives run beside the next layer
    load: float = 50.0  # of the host, before a step
    slow: float = 1.0  # the last rank's kernels take so much longer
    pause: float = 0.0  # of the host of the last rank, in every step
    ahead: float = 0.0  # the last rank's clock


def simulated(job: Job) -> list[RankTrace]:
    """Each rank: a host that launches, a stream that computes, a stream that communicates."""
    noise = random.Random(7)
    host, device = [1000.0] * job.ranks, [0.0] * job.ranks
    network = [0.0] * job.ranks
    events: list[list[list[object]]] = [[] for _ in range(job.ranks)]
    number = 0
    for step in range(STEPS):
        begun = list(host)
        for r in range(job.ranks):
            if job.load:
                events[r].append([span("enumerate(DataLoader)#_Single.__next__", host[r], job.load, "cpu_op")])
            host[r] += job.load
            if job.pause and r == job.ranks - 1:
                events[r].append([span("Python GC", host[r], job.pause, "python_function")])
                host[r] += job.pause
        for _ in range(job.layers):
            came = []
            for r in range(job.ranks):
                for _ in range(job.kernels):
                    number += 1
                    host[r] += job.launch
                    took = (
                        job.gemm / job.kernels * (job.slow if r == job.ranks - 1 else 1.0) * (1 + noise.random() / 50)
                    )
                    start = max(device[r], host[r] + 4.0)
                    events[r].append(kernel("gemm", start, took, launched=host[r] - 4, n=number))
                    device[r] = start + took
                number += 1
                host[r] += job.launch
                came.append((max(device[r], network[r], host[r] + 4.0), host[r] - 4, number))
            end = max(start for start, _, _ in came) + job.transfer
            for r, (start, launched, n) in enumerate(came):
                info = {"Collective name": "allreduce", "In msg nelems": 1 << 22, "dtype": "Float"}
                name = "ncclDevKernel_AllReduce_Sum_f32_RING_LL"
                event = kernel(name, start, end - start, launched=launched, n=n, **info, **{"Group size": job.ranks})
                event[0]["args"]["stream"] = 20
                events[r].append(event)
                network[r] = end
                if not job.hidden:
                    device[r] = end
        for r in range(job.ranks):
            end = max(device[r], network[r])
            events[r].append([call("cudaDeviceSynchronize", host[r], end + 5.0 - host[r])])
            host[r] = device[r] = end + 5.0
            events[r].append([span(f"ProfilerStep#{step}", begun[r], host[r] - begun[r], "user_annotation")])
    shift = [job.ahead if r == job.ranks - 1 else 0.0 for r in range(job.ranks)]
    return [
        trace.parse([document(*(shifted(e, shift[r]) for e in own), rank=r)], where=f"rank{r}.json")
        for r, own in enumerate(events)
    ]


def span(name: str, ts: float, dur: float, cat: str) -> dict[str, object]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur}


def call(name: str, ts: float, dur: float) -> dict[str, object]:
    return {**span(name, ts, dur, "cuda_runtime"), "args": {"correlation": 0}}


def shifted(events: Sequence[object], by: float) -> list[object]:
    return [{**e, "ts": e["ts"] + by} for e in events if isinstance(e, dict)]


def step_us(job: Job) -> float:
    replay = model.summary(simulated(job)).replay
    assert replay is not None
    assert abs(replay.error_percent) < 1
    return replay.step_us


@pytest.mark.parametrize(
    ("cause", "fault", "without"),
    [
        ("dataloader-stall", Job(load=3000.0), Job(load=0.0)),
        ("cpu-launch-bound", Job(launch=150.0), Job(launch=0.5)),
        ("comm-not-overlapped", Job(hidden=False), Job(hidden=False, transfer=0.0)),
        ("straggler-rank", Job(slow=1.5), Job()),
        ("straggler-rank", Job(slow=1.5, hidden=False, ahead=123_456.0), Job(hidden=False)),
        ("gc-stragglers", Job(pause=4000.0), Job()),
    ],
)
def test_the_step_without_the_fault_is_foretold(cause: str, fault: Job, without: Job) -> None:
    replay = model.summary(simulated(fault)).replay
    assert replay is not None
    foretold = next(w.step_us for w in replay.what_if if w.cause == cause)
    assert foretold == pytest.approx(step_us(without), rel=0.05)
    assert foretold < 0.95 * replay.step_us


def test_the_unchanged_trace_gives_itself() -> None:
    for job in (Job(), Job(hidden=False, slow=1.3, launch=60.0), Job(ranks=1), Job(ahead=-5e6, load=2000.0)):
        replay = model.summary(simulated(job)).replay
        assert replay is not None
        assert abs(replay.error_percent) < 0.5


def test_a_sound_job_has_nothing_to_gain() -> None:
    replay = model.summary(simulated(Job())).replay
    assert replay is not None
    assert {w.cause for w in replay.what_if if w.saved_us > 0.1 * replay.step_us} == set()


def test_clocks_are_aligned_by_the_collectives() -> None:
    summary = model.summary(simulated(replace(Job(), ahead=250_000.0, slow=1.4)))
    assert summary.clock_offsets_us[3] == pytest.approx(250_000, abs=1)
    (late,) = summary.late
    assert (late.name, late.ranks) == ("all_reduce", (3,))
