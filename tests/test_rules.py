"""Each rule: at least one set of facts that it flags and one that it passes."""

from collections.abc import Iterator, Mapping

import pytest

from smoldiag import rules, verdict
from smoldiag.facts import Bench, Cluster, Host, Launch
from smoldiag.findings import Finding
from smoldiag.rules import Known
from tests.rules import CASES
from tests.rules.bench import NODE2_SENDS_SLOWLY, bench, pairs
from tests.rules.known import Facts, known


@pytest.mark.parametrize(
    ("code", "facts", "severities"), CASES, ids=[f"{c}-{'-'.join(s) or 'passes'}" for c, _, s in CASES]
)
def test_rule(code: str, facts: Facts, severities: list[str]) -> None:
    outcomes = list(rules.run(known(facts), [rules.RULES[code]]))
    assert not any(o.skipped or o.crashed for o in outcomes), outcomes
    assert [f.severity.value for o in outcomes for f in o.findings] == severities


def test_every_rule_is_seen_to_flag_and_to_pass() -> None:
    assert {c for c, _, s in CASES if s} == {c for c, _, s in CASES if not s} == set(rules.RULES)


@pytest.mark.parametrize("rule", rules.RULES.values(), ids=rules.RULES)
def test_every_rule_is_documented(rule: rules.Rule) -> None:
    title, blank, *body = rule.doc.split("\n")
    assert title.endswith(".")
    assert len(title) < 90
    assert blank == ""
    assert any(line.startswith("Fix: ") for line in body)


def test_the_slow_host_alone_is_named() -> None:
    outcomes = rules.run(known(bench(nodes=3, pairs=pairs(NODE2_SENDS_SLOWLY))), [rules.RULES["BWD002"]])
    (finding,) = (f for o in outcomes for f in o.findings)
    assert finding.where.hosts == ("node2",)
    assert finding.message == "node2 sends to even its best partner at 0.013 GB/s; the other hosts reach 0.05 GB/s"


def test_a_bench_and_a_run_load_all_their_rules() -> None:
    every = rules.RULES.values()
    assert verdict.for_bench() == [r for r in every if {"bench", "launch"} & set(r.needs) and "run" not in r.needs]
    assert verdict.for_run() == [r for r in every if set(r.needs) <= {"run", "launch"}]


def test_missing_facts_skip_a_rule() -> None:
    (outcome,) = rules.run(Known(unread={"launch": "no run"}), [rules.RULES["HNG001"]])
    assert outcome.skipped == "not known: launch (no run)"
    (outcome,) = rules.run(Known(bench=bench()), [rules.RULES["BWD008"]])
    assert outcome.skipped == "not known: cluster (not collected)"


def test_a_fact_that_may_be_none_skips_no_rule() -> None:
    seen = []

    def lenient(memory_free_bytes: int, versions: Mapping[str, str] | None, launch: Launch | None) -> Iterator[Finding]:
        seen.append((versions, launch))
        yield from ()

    lenient_rule = rules.Rule("ENV999", rules.RULES["BWD001"].severity, lenient)
    hosts = Cluster(hosts=(Host(name="a", memory_free_bytes=1), Host(name="b", versions={"nccl": "2.27.5"})))
    outcomes = list(rules.run(Known(cluster=hosts), [lenient_rule]))
    assert [o.skipped for o in outcomes] == ["", "not known: memory_free_bytes (not collected)"]
    assert seen == [(None, None)]
    assert lenient_rule.reads == "memory_free_bytes, versions where known, launch where known"


def test_a_broken_rule_is_an_outcome() -> None:
    def broken(bench: Bench) -> None:
        raise ZeroDivisionError

    (outcome,) = rules.run(Known(bench=bench()), [rules.Rule("BWD999", rules.RULES["BWD001"].severity, broken)])  # type: ignore[arg-type]
    assert "ZeroDivisionError" in outcome.crashed
