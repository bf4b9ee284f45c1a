"""How findings are merged, ranked and summed up."""

from typing import Any

from smoldiag.facts import Evidence
from smoldiag.findings import Confidence, Finding, Severity, Verdict, Where, ranked, verdict


def finding(cause: str, severity: Severity = Severity.WARNING, host: str = "a", **more: Any) -> Finding:
    return Finding(
        message=f"{cause} here", cause=cause, severity=severity, where=Where(hosts=(host,)), code="BWD001", **more
    )


def test_a_cause_ranks_above_the_symptoms_that_it_explains() -> None:
    symptom = finding("busbw-below-expected", Severity.ERROR)
    cause = finding("slow-node", Severity.WARNING, explains=("busbw-below-expected",))
    assert [f.cause for f in ranked((symptom, cause))] == ["slow-node", "busbw-below-expected"]


def test_the_same_cause_on_many_hosts_is_one_finding() -> None:
    (merged,) = ranked(
        tuple(finding("slow-node", host=f"n{i}", evidence=(Evidence(text=str(i), where="x"),)) for i in range(30))
    )
    assert merged.where.hosts == tuple(f"n{i}" for i in range(30))
    assert len(merged.evidence) == 13
    assert merged.evidence[-1].text == "18 more observations alike"


def test_one_cause_of_two_subjects_is_two_findings() -> None:
    found = [finding("variable-typo", subject=name, host=host) for name in ("NCCL_A", "NCCL_B") for host in "ab"]
    assert [(f.subject, f.where.hosts) for f in ranked(tuple(found))] == [
        ("NCCL_A", ("a", "b")),
        ("NCCL_B", ("a", "b")),
    ]


def test_findings_are_sorted_by_severity_then_confidence() -> None:
    found = (
        finding("a", Severity.INFO),
        finding("b", Severity.ERROR, confidence=Confidence.POSSIBLE),
        finding("c", Severity.ERROR),
    )
    assert [f.cause for f in ranked(found)] == ["c", "b", "a"]


def test_an_info_finding_explains_nothing_away() -> None:
    found = (finding("x", Severity.INFO, explains=("y",)), finding("y", Severity.ERROR))
    assert ranked(found)[0].cause == "y"


def test_verdicts() -> None:
    assert verdict(()) is Verdict.OK
    assert verdict((finding("a", Severity.INFO), finding("b"))) is Verdict.WARNING
    assert verdict((), incomplete=True) is Verdict.INCOMPLETE
