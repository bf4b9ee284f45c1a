"""`smoldiag find-slow` on six real hosts: the shaped host, the shaped pair, or nobody, in few rounds."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from smoldiag.model import pair_schedule
from tests.lab import preflight
from tests.lab.bench import Ran
from tests.lab.hosts import Lab, until

pytestmark = pytest.mark.lab

RATE = "400mbit"  # a tenth of what the hosts exchange otherwise, or less


def found(lab: Lab, ran: Ran) -> list[dict[str, Any]]:
    """What is above info, once the rest is as it should be."""
    document = preflight.report(ran)
    assert document["facts"]["rounds"] <= pair_schedule.most_rounds(len(lab.hosts)) == 6
    assert lab.left_over(within_s=5) == []
    return [f for f in document["findings"] if f["severity"] != "info"]


def searched(lab: Lab, *options: str) -> Ran:
    return preflight.start(lab, "--interface", "eth0", *options, name="find-slow").ended(timeout=90)


def test_nobody_is_named_among_sound_hosts(six_hosts: Lab) -> None:
    ran = searched(six_hosts)
    assert found(six_hosts, ran) == [], ran
    assert ran.code == 0


def test_the_shaped_host_is_named(six_hosts: Lab) -> None:
    six_hosts.hosts[3].shape(RATE)
    ran = searched(six_hosts)
    first = found(six_hosts, ran)[0]
    assert (first["code"], first["where"]["hosts"], first["confidence"]) == ("BWD025", ["node3"], "certain"), ran
    assert preflight.report(ran)["facts"]["exclude"] == ["node3"]


def test_the_shaped_pair_is_named_and_neither_of_its_hosts(six_hosts: Lab) -> None:
    six_hosts.hosts[1].shape_towards(six_hosts.hosts[4], RATE)
    ran = searched(six_hosts)
    first = found(six_hosts, ran)[0]
    assert (first["code"], first["where"]["hosts"]) == ("BWD052", ["node1", "node4"]), ran
    assert preflight.report(ran)["facts"]["exclude"] == []


def test_interrupted_it_reports_the_rounds_it_has(six_hosts: Lab, tmp_path: Path) -> None:
    for host in six_hosts.hosts:
        host.shape(RATE)  # so that it is in the middle of the pairs by then
    options, said = ("--interface", "eth0", "--budget", "20", "--exhaustive"), tmp_path / "stderr"
    running = preflight.start(six_hosts, *options, name="find-slow", said=said)
    until(lambda: " ranks on " in said.read_text(), timeout=60, what="the ranks")
    time.sleep(1)
    running.interrupt(signal.SIGINT)
    ran = running.ended(timeout=30)
    assert ran.code == 3, ran
    assert preflight.report(ran)["verdict"] == "incomplete"
    assert six_hosts.left_over(within_s=5) == []
