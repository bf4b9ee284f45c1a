"""The same failure with other names, numbers, layouts and prefixes, between other lines, after other attempts."""

import random

import pytest

from benchmarks.explain_mutations import MUTATIONS, ended_attempt, healthy_job, mutation
from smoldiag.parse import log
from tests.causes import CAUSES
from tests.test_causes import causes

TEN = (
    "dev-shm-too-small",
    "duplicate-gpu-rank-mapping",
    "socket-ifname-no-match",
    "port-in-use",
    "memlock-limit",
    "gpu-ecc-error",
    "ib-hca-fatal-error",
    "efa-security-group",
    "nvls-fabric-manager-state",
    "ddp-unused-parameters",
)
WHOLE = [i for i, (how, _) in enumerate(MUTATIONS) if "decisive" not in how]


@pytest.mark.parametrize("cause", TEN)
def test_a_failure_told_otherwise_is_the_same(cause: str) -> None:
    rng = random.Random(cause)
    for number in [n for n in range(36) if n % len(MUTATIONS) in WHOLE]:
        how, told, _ = mutation(CAUSES[cause][number % len(CAUSES[cause])], [], number, rng)
        assert causes(told)[:1] == [cause], (how, told)


@pytest.mark.parametrize("cause", TEN)
def test_a_failure_in_the_last_of_three_attempts_is_the_one_that_is_judged(cause: str) -> None:
    rng = random.Random(cause)
    healthy = list(healthy_job(rng, pid=7000))[:3000]
    lines = CAUSES[cause][0].split("\n")
    places = sorted(rng.sample(range(1500, len(healthy)), len(lines)))
    for place, line in reversed(list(zip(places, lines, strict=True))):
        healthy.insert(place, line)
    told = "\n".join([*ended_attempt(rng, 3000), *ended_attempt(rng, 5000), *healthy])
    assert causes(told)[:1] == [cause]
    read = log.parse(told)
    assert read.attempts == 3
    assert {e.attempt for e in read.earlier if e.kind == "cuda-oom"} == {0, 1}
    assert not read.has("cuda-oom")


def test_an_attempt_that_is_well_is_judged_so() -> None:
    rng = random.Random(1)
    told = "\n".join([*ended_attempt(rng, 3000), *list(healthy_job(rng, pid=7000))[:3000]])
    assert causes(told) == []


def test_restart_by_torchrun_is_another_attempt() -> None:
    told = (
        "[rank3]: torch.OutOfMemoryError: CUDA out of memory.\n"
        "INFO:torch.distributed.elastic.agent.server.api:[default] Worker group FAILED. 2/3 attempts left; will "
        "restart worker group\n"
        "INFO:torch.distributed.elastic.agent.server.api:[default] Rendezvous complete for workers. Result:\n"
        "  restart_count=1\n[rank3]: step 1 loss 2.0\n"
        "[rank3]: RuntimeError: CUDA error: uncorrectable ECC error encountered"
    )
    assert causes(told)[:1] == ["gpu-ecc-error"]


def test_one_host_under_several_names_is_one() -> None:
    told = (
        "node3:1:1 [0] NCCL INFO Bootstrap: Using eth0:10.0.0.3<0>\n  host      : node3.cluster.local\n"
        "  rank      : 5 (local_rank: 5)\n  exitcode  : -9 (pid: 9)\n"
        "(RayTrainWorker pid=9, ip=10.0.0.3) torch.OutOfMemoryError: CUDA out of memory."
    )
    assert log.parse(told).hosts == ("node3",)


def test_the_first_rank_to_fail_is_named_over_several_files() -> None:
    state = log.start()
    late = b"[rank0]:[E1123 08:15:03.195 x.cpp:1] [Rank 0] Watchdog caught collective operation timeout: "
    late += b"WorkNCCL(SeqNum=5, OpType=ALLREDUCE, NumelIn=9, NumelOut=9, Timeout(ms)=600000) ran for 600055 ms\n"
    log.read(state, [late], where="rank0.log")
    early = b"[rank1]:[E1123 08:05:01.001 x.cpp:1] RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB\n"
    log.read(state, [early], where="rank1.log")
    read = log.finish(state)
    assert [e.kind for e in read.events if e.kind in ("cuda-oom", "watchdog-timeout")] == [
        "cuda-oom",
        "watchdog-timeout",
    ]
