"""Rules that judge certificates and earlier runs."""

from dataclasses import replace

from smoldiag.facts import Cluster, Host
from smoldiag.facts.acceptance import Certificate, History, HostRun, Line, PastRun, Requirement
from smoldiag.rules import Known
from tests.rules.known import Facts


def certificate(measured: float | None) -> Certificate:
    """Eight GPUs are required."""
    line = Line(requirement=Requirement(name="gpus", kind="minimum", value=8), measured=measured, met=measured == 8)
    return Certificate(host="node0", lines=(line,))


def past(created: str, **status: str) -> PastRun:
    return PastRun(
        created=created, command="preflight", verdict="ok", hosts={h: HostRun(status=s) for h, s in status.items()}
    )


def nights(*of_node0: str) -> Known:
    runs = tuple(past(f"2026-11-{i + 1:02}T03:00:00Z", node0=s, node1="passed") for i, s in enumerate(of_node0))
    return Known(history=History(runs=runs, where="HISTORY"))


def clocks(*tflops: float) -> Known:
    runs = tuple(
        PastRun(
            created=f"2026-11-{i + 1:02}T03:00:00Z",
            command="preflight",
            verdict="ok",
            hosts={"node0": HostRun(status="passed", figures={"bfloat16_tflops": rate})},
        )
        for i, rate in enumerate(tflops)
    )
    return Known(history=History(runs=runs, where="HISTORY"))


ELSEWHERE = Cluster(hosts=(Host(name="node9"),))

CASES: list[tuple[str, Facts, list[str]]] = [
    ("ACC001", Known(certificates=(certificate(7),)), ["error"]),
    ("ACC001", Known(certificates=(certificate(8), certificate(None))), []),
    ("ACC002", Known(certificates=(certificate(None),)), ["error"]),
    ("ACC002", Known(certificates=(certificate(8), certificate(7))), []),
    ("ACC003", nights("passed", "failed", "passed", "failed", "passed"), ["warning"]),
    ("ACC003", nights(*["passed"] * 8), []),
    ("ACC003", replace(nights("passed", "failed", "passed", "failed", "passed"), cluster=ELSEWHERE), []),
    ("ACC004", clocks(700, 705, 698, 702, 701, 620, 610, 600), ["info"]),
    ("ACC004", clocks(700, 705, 698, 702, 701, 690, 705, 700), []),
]
