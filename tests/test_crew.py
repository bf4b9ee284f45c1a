"""A crew on this host: ranks that are started once, jobs with and without a group, and what becomes of failures."""

from collections.abc import Awaitable, Callable
from typing import Any

from smoldiag import launch
from smoldiag.launch.crew import Answers, Crew, Job
from smoldiag.launch.request import Finished, Request, Survey

ONE_SIZE = {"collectives": ["all_reduce"], "sizes": [1024], "iterations": 3}


def conducted(conduct: Callable[[Crew], Awaitable[None]]) -> Finished:
    request = Request(
        program="benchmarks.crew", crew=conduct, survey=Survey(), backend="gloo", ranks_per_node=2, timeout_s=30
    )
    choice = launch.choose("local", request, {})
    return launch.run(choice, request, on_event=lambda event: None)


def test_jobs_follow_each_other_whatever_becomes_of_them() -> None:
    seen: list[Any] = []

    async def conduct(crew: Crew) -> None:
        opened = await crew.do("benchmarks.reach", {"do": "open", "master_port": 0, "high_ports": 1}, [0], group=False)
        both = await crew.do("benchmarks.collectives", ONE_SIZE)
        apart = [Job(module="benchmarks.collectives", members=(r,), config=ONE_SIZE) for r in crew.ranks]
        alone = await crew.do_all(apart)
        unknown = await crew.do("benchmarks.nothing", {}, group=False)
        cut = await crew.do("benchmarks.compute", {"budget_s": 20}, group=False, cut_s=0.3)
        after = await crew.do("benchmarks.collectives", ONE_SIZE)
        await crew.surveyed(20)
        seen.extend([opened, both, alone, unknown, cut, after, crew.hosts, dict(crew.facts)])

    finished = conducted(conduct)
    opened, both, alone, unknown, cut, after, hosts, facts = seen
    assert finished.launch.faults == ()  # an error of all members, or a spent budget, is nobody's fault
    assert len(opened.results[0]["high_ports"]) == 1
    assert both.whole
    assert [r["group"]["ranks"] for r in both.records if r["kind"] == "result"] == [[0, 1]]
    assert all(a.whole for a in alone)
    assert "benchmarks.nothing" in unknown.failed[0]
    assert set(unknown.failed) == {0, 1}
    assert (cut.cut, cut.results) == (True, {})
    assert after.whole
    assert tuple(facts) == hosts
    assert finished.bundle is not None
    assert finished.records == ()


def test_a_rank_that_dies_is_named_and_nobody_waits_for_it() -> None:
    seen: list[Answers] = []

    async def conduct(crew: Crew) -> None:
        dies = {**ONE_SIZE, "break": {"kind": "exit", "rank": 1, "code": 7}}
        seen.append(await crew.do("benchmarks.collectives", dies))
        seen.append(await crew.do("benchmarks.collectives", ONE_SIZE))

    finished = conducted(conduct)
    (fault,) = finished.launch.faults
    assert (fault.kind, fault.ranks) == ("exited", (1,))
    assert "exit code 7" in fault.detail
    assert seen[0].faults == (fault,)
    assert seen[1].job.members == ()  # its host takes no part any more
