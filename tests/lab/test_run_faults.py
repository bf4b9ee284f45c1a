"""What slows a run down on real hosts is named from the run folder alone, and its host with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smoldiag import explain
from smoldiag.findings import Severity
from tests.lab.hosts import Lab
from tests.lab.test_train_hosts import over_ssh

pytestmark = pytest.mark.lab

STEPS = ("--steps", "40", "--ranks-per-node", "1", "--timeout", "60", "--fail-on", "never")


def trained(lab: Lab, *options: str) -> Path:
    run = lab.folder / f"run-{len(list(lab.folder.glob('run-*')))}"
    ran = over_ssh(lab, [h.name for h in lab.hosts], "--output", run, *STEPS, *options).ended()
    assert ran.code == 0, ran.err
    return run


def quota(lab: Lab) -> None:
    lab.hosts[2].cpu_quota(0.2)


def shaped(lab: Lab) -> None:
    lab.hosts[1].shape("100mbit")


@pytest.mark.parametrize(
    ("befall", "options", "cause", "host"),
    [
        (quota, (), "straggler-rank", "node2"),
        (shaped, (), "slow-link", "node1"),
        (None, ("--fault", "slow-rank:ranks=0,seconds=0.1"), "straggler-rank", "node0"),
        (None, ("--fault", "slow-loader:ranks=2,seconds=0.1"), "dataloader-stall", "node2"),
        (None, ("--fault", "gc-storm:ranks=1"), "gc-stragglers", "node1"),
    ],
    ids=["quota", "shaped link", "slow rank", "slow loader", "gc storm"],
)
def test_the_one_host_of_three_is_named(
    befall: Callable[[Lab], Any] | None, options: tuple[str, ...], cause: str, host: str, three_hosts: Lab
) -> None:
    if befall:
        befall(three_hosts)
    run = trained(three_hosts, *options)
    first = explain.explain([str(run)]).report.findings[0]
    assert (first.cause, first.where.hosts) == (cause, (host,)), first
    assert "what if" in first.cost


def test_three_equal_hosts_are_clean(three_hosts: Lab) -> None:
    found = explain.explain([str(trained(three_hosts))]).report.findings
    assert [f for f in found if f.severity is not Severity.INFO] == []
