"""A preflight without hosts: the plan, who is blamed, who may take part, the lines for schedulers."""

import random
from collections.abc import Mapping, Sequence

import pytest

from smoldiag import clearance, preflight, rules
from smoldiag.facts import Fault, Host, Launch, PairRate
from smoldiag.facts.preflight import StageResult
from smoldiag.findings import Confidence, Decision, Finding, Preflight, Severity, Where
from smoldiag.launch.request import Finished
from smoldiag.model import blame, exclusion
from tests.rules.known import Facts, known
from tests.rules.reach import EVERYBODY, HOSTS, around, reach


def test_stages_fit_into_the_budget_of_each_level() -> None:
    for level, seconds in preflight.LEVELS.items():
        plan = preflight.plan(preflight.Options(level=level), nodes=64)
        assert plan.budget_s == seconds
        assert sum(s for _, s in plan.stages) <= 0.9 * seconds


def test_budget_grows_as_the_logarithm_of_the_hosts_and_scales_the_stages() -> None:
    assert preflight.budget_s("quick", 4) == preflight.budget_s("quick", 64) == 60
    assert preflight.budget_s("quick", 4096) == 120
    half = preflight.plan(preflight.Options(budget_s=30), nodes=2)
    assert dict(half.stages)["device"] == dict(preflight.plan(preflight.Options(), nodes=2).stages)["device"] / 2


@pytest.mark.parametrize("n", [2, 3, 12, 13, 64, 1000])
def test_every_host_is_tried_by_several_others(n: int) -> None:
    hosts = [f"h{i}" for i in range(n)]
    partners = preflight.partners_of(hosts)
    tried = [b for others in partners.values() for b in others]
    assert all(host not in others for host, others in partners.items())
    assert {tried.count(h) for h in hosts} == {len(partners["h0"])}
    assert len(partners["h0"]) == (n - 1 if n <= preflight.ALL_TO_ALL else (n - 1).bit_length())


@pytest.mark.parametrize(
    ("failed", "own", "hosts", "pairs", "general"),
    [
        ([], [], (), (), False),
        (around("node2"), [], ("node2",), (), False),
        ([("node2", "node0"), ("node2", "node1")], [], ("node2",), (), False),
        ([("node1", "node2"), ("node2", "node1")], [], (), (("node1", "node2"),), False),
        ([("node1", "node2")], ["node1"], ("node1",), (), False),
        (EVERYBODY, [], (), (), True),
    ],
    ids=["nothing", "all with one", "one way", "one pair", "its own words", "all"],
)
def test_fewest_hosts_are_blamed(
    failed: Sequence[tuple[str, str]], own: Sequence[str], hosts: Sequence[str], pairs: Sequence[object], general: bool
) -> None:
    found = blame.of_edges(failed, HOSTS, own=own)
    assert (found.hosts, found.pairs, found.general) == (hosts, pairs, general)


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        (reach(around("node2")), [("node2",)]),
        (reach([("node1", "node2")]), [("node1", "node2")]),
        (reach(EVERYBODY), [()]),
    ],
)
def test_blocked_port_names_who_is_behind_it(facts: Facts, named: list[tuple[str, ...]]) -> None:
    outcomes = rules.run(known(facts), [rules.RULES["HST100"]])
    assert [f.where.hosts for o in outcomes for f in o.findings] == named


def finding(severity: Severity, *hosts: str, cause: str = "x", confidence: Confidence = Confidence.CERTAIN) -> Finding:
    return Finding(
        message="m", code="HST001", cause=cause, severity=severity, confidence=confidence, where=Where(hosts=hosts)
    )


def decided(
    *found: Finding,
    need: int | None = None,
    stages: Sequence[str] = ("reach", "facts"),
    failed: str = "",
    interrupted: str | None = None,
) -> Preflight:
    options = preflight.Options(need=need)
    run = preflight.Run(options=options, plan=preflight.plan(options, nodes=4), on_event=lambda event: None)
    run.stages += [StageResult(name=s, status="failed" if s == failed else "done") for s in stages]
    launch = Launch(launcher="ssh", seats=(), interrupted=interrupted)
    hosts = tuple(Host(name=h) for h in HOSTS)
    finished = Finished(launch=launch, backend="gloo", hosts=hosts)
    return clearance.decide(run, finished, found, HOSTS)


BAD, WARN, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO


@pytest.mark.parametrize(
    ("found", "need", "decision", "exclude"),
    [
        ([], None, Decision.GO, ()),
        ([finding(INFO, *HOSTS)], None, Decision.GO, ()),
        ([finding(WARN, "node2")], None, Decision.WARNINGS, ()),
        ([finding(WARN, "node2")], 3, Decision.GO, ()),
        ([finding(BAD, "node2")], None, Decision.NO_GO, ("node2",)),
        ([finding(BAD, "node2")], 3, Decision.GO, ("node2",)),
        ([finding(BAD, "node1", "node2")], 3, Decision.NO_GO, ("node1", "node2")),
        ([finding(WARN, "node2", cause="slow-node")], None, Decision.NO_GO, ("node2",)),
        ([finding(BAD)], 3, Decision.NO_GO, ()),
        ([finding(BAD, *HOSTS, confidence=Confidence.LIKELY)], None, Decision.NO_GO, ()),
        ([finding(WARN, *HOSTS)], None, Decision.WARNINGS, ()),
    ],
)
def test_decisions(found: list[Finding], need: int | None, decision: Decision, exclude: tuple[str, ...]) -> None:
    said = decided(*found, need=need)
    assert (said.decision, said.exclude) == (decision, exclude)


def test_what_was_not_finished_is_no_go_for_nobody() -> None:
    assert decided(stages=("reach",)).decision is Decision.INCOMPLETE
    assert decided(stages=("reach", "facts", "pairs"), failed="pairs").decision is Decision.INCOMPLETE
    assert decided(interrupted="SIGINT").decision is Decision.INCOMPLETE
    assert decided(finding(BAD, "node1"), interrupted="SIGINT").decision is Decision.NO_GO


def test_the_best_hosts_are_chosen_in_their_order() -> None:
    said = decided(finding(BAD, "node0"), finding(WARN, "node1"), need=2)
    assert said.nodelist == ("node2", "node3")
    assert decided(finding(BAD, "node0"), finding(WARN, "node1"), need=3).nodelist == ("node1", "node2", "node3")


def test_hosts_that_never_answered_are_known_by_the_name_they_were_called() -> None:
    fault = Fault(kind="unreachable", hosts=("c",), stage="reach hosts", detail="no")
    finished = Finished(launch=Launch(launcher="ssh", seats=(), faults=(fault,)), backend="", hosts=(Host(name="a"),))
    assert clearance.names(finished, ["a", "me@c"]) == ("a", "c")


def test_lines_for_schedulers() -> None:
    lines = [line for _, line in exclusion.commands({"node2": ["slow-node", "slow-node"], "node7": ["it's bad"]})]
    assert lines == [
        "--exclude=node2,node7",
        "scontrol update nodename=node2 state=drain reason='smoldiag preflight: slow-node'",
        "scontrol update nodename=node7 state=drain reason='smoldiag preflight: it'\"'\"'s bad'",
        "kubectl cordon node2",
        "kubectl cordon node7",
    ]
    assert exclusion.commands({"node2; rm -rf /": ["x"]}) == ()
    assert exclusion.host_file(["a", "b"]) == "a\nb\n"


def rates_by_rail(slow: Mapping[tuple[str, int], float], *, rails: int = 8) -> list[PairRate]:
    """Four hosts of eight GPUs in three rounds; `slow`: ratio of a host's GPU, or of one on all hosts (empty name)."""
    rng = random.Random(1)
    found = []
    for number, met in enumerate([[(0, 3), (1, 2)], [(0, 2), (3, 1)], [(0, 1), (2, 3)]]):
        for a, b in [flow for x, y in met for flow in ((x, y), (y, x))]:
            for rail in range(rails):
                ratio = min(slow.get((h, rail), 1.0) for h in (HOSTS[a], HOSTS[b], ""))
                found.append(
                    PairRate(
                        src=8 * a + rail,
                        dst=8 * b + rail,
                        src_host=HOSTS[a],
                        dst_host=HOSTS[b],
                        size_bytes=1 << 26,
                        gb_per_s=48.0 * ratio * rng.gauss(1, 0.02),
                        round=number,
                    )
                )
    return found


@pytest.mark.parametrize(
    ("slow", "named"),
    [
        ({}, []),
        ({("node2", 5): 0.5}, [("slow-node", ("node2",), (5,))]),
        ({("", 3): 0.5}, [("slow-rail", (), (3,))]),
        ({("node2", rail): 0.5 for rail in range(8)}, []),  # the whole host: another rule names it
    ],
)
def test_one_slow_rail_is_named_though_the_sum_of_its_host_hides_it(
    slow: Mapping[tuple[str, int], float], named: list[tuple[str, tuple[str, ...], tuple[int, ...]]]
) -> None:
    found = preflight.slow_rails(rates_by_rail(slow))
    assert [(f.cause, f.where.hosts, f.where.gpus) for f in found] == named


def test_hosts_with_one_rank_each_have_no_rails() -> None:
    assert preflight.slow_rails(rates_by_rail({("node2", 0): 0.5}, rails=1)) == ()
