"""`smoldiag preflight` on four real hosts: exactly the guilty one is named, and nothing stays behind."""

import signal
import time
from pathlib import Path

import pytest

from tests.lab import bench, preflight, slurm
from tests.lab.hosts import Host, Lab, until

pytestmark = pytest.mark.lab

QUICK_S = 60.0
TWO_HOSTS_S = 25.0
GRACE_S = 10.0
OWN_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def test_healthy_hosts_may_go(four_hosts: Lab) -> None:
    ran = preflight.start(four_hosts).ended()
    said = preflight.report(ran)
    assert (ran.code, said["preflight"]["decision"], said["verdict"]) == (0, "GO", "ok"), ran
    assert preflight.accused(said) == {}
    assert said["preflight"]["nodelist"] == [h.name for h in four_hosts.hosts]
    assert [s["name"] for s in said["preflight"]["stages"]] == ["reach", "facts", "device", "node", "pairs", "together"]
    assert ran.seconds < QUICK_S
    assert four_hosts.left_over(within_s=5) == []


def test_two_hosts_take_less_than_25_seconds_and_the_stages_say_theirs(two_hosts: Lab) -> None:
    before = [files_of(h) for h in two_hosts.hosts]
    ran = preflight.start(two_hosts).ended(timeout=90)
    stages = preflight.report(ran)["preflight"]["stages"]
    assert ran.code == 0, ran
    assert ran.seconds < TWO_HOSTS_S, stages
    assert ran.seconds - sum(s["seconds"] for s in stages) < 3
    assert [files_of(h) for h in two_hosts.hosts] == before


def files_of(host: Host) -> str:
    return host.run(["ls", "-A", *OWN_FOLDERS]).stdout


@pytest.mark.parametrize("name", preflight.FAULTS)
def test_exactly_the_guilty_host_is_named(four_hosts: Lab, name: str) -> None:
    fault, guilty = preflight.FAULTS[name], four_hosts.hosts[2]
    if name == "CPU quota" and not guilty.cgroup:
        pytest.skip("no writable cpu cgroup on this machine")
    ran = preflight.with_fault(four_hosts, fault, 2)
    said = preflight.report(ran)
    assert list(preflight.accused(said)) == [guilty.name], ran
    assert said["preflight"]["decision"] in ("NO-GO", "GO with warnings"), ran
    assert {f["cause"] for f in said["findings"] if f["severity"] != "info"} & set(fault.causes), ran
    assert ran.seconds < preflight.BUDGET_S + GRACE_S
    assert [line for line in four_hosts.left_over(within_s=5) if ": sshd: " not in line] == []


def test_interrupted_while_the_hosts_start_it_says_so_and_leaves_nothing(two_hosts: Lab, tmp_path: Path) -> None:
    there, said = [files_of(h) for h in two_hosts.hosts], tmp_path / "stderr"
    running = preflight.start(two_hosts, said=said)
    until(lambda: "launcher " in said.read_text(), timeout=60, what="the start")
    assert interrupted_in(two_hosts, running, after_s=0.1) == "reach"
    assert [files_of(h) for h in two_hosts.hosts] == there


STAGES = ("reach", "facts", "device", "pairs", "together", "storage", "resume")


@pytest.mark.parametrize("before", STAGES[:-1])
def test_interrupted_in_any_stage_it_reports_those_before_and_leaves_nothing(
    two_hosts: Lab, tmp_path: Path, before: str
) -> None:
    there, said = [files_of(h) for h in two_hosts.hosts], tmp_path / "stderr"
    for host in two_hosts.hosts:
        host.shape("400mbit")  # so that stages between hosts take a while
    running = preflight.start(two_hosts, "--budget", "30", "--path", "/var/tmp", "--trainer", said=said)
    until(lambda: f"\n{before}: " in said.read_text(), timeout=60, what=f"the end of {before}")
    assert interrupted_in(two_hosts, running, after_s=0.1) in STAGES[STAGES.index(before) + 1 :][:2]
    assert [files_of(h) for h in two_hosts.hosts] == there


def interrupted_in(lab: Lab, running: bench.Running, *, after_s: float) -> str:
    """The stage that was interrupted; nothing runs on."""
    time.sleep(after_s)
    began = time.monotonic()
    running.interrupt(signal.SIGINT)
    ran = running.ended()
    assert time.monotonic() - began < GRACE_S
    said = preflight.report(ran)
    assert (ran.code, said["preflight"]["decision"]) == (3, "INCOMPLETE"), ran
    assert said["preflight"]["unfinished"] == "interrupted by SIGINT"
    (stage,) = [str(s["name"]) for s in said["preflight"]["stages"] if s["status"] == "interrupted"]
    assert lab.left_over(within_s=5) == []
    return stage


def test_enough_good_hosts_are_enough_and_are_written_down(four_hosts: Lab, tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    four_hosts.hosts[1].blackhole_port(29_500)
    options = ("--need", "3", "--nodelist-file", good, "--exclude-file", bad)
    ran = preflight.start(four_hosts, *options).ended(timeout=90)
    said = preflight.report(ran)["preflight"]
    assert (ran.code, said["decision"], said["good"], said["needed"]) == (0, "GO", 3, 3), ran
    assert good.read_text().split() == ["node0", "node2", "node3"]
    assert bad.read_text().split() == ["node1"]


def test_lines_for_slurm_keep_the_next_job_off_the_host(slurm_hosts: Lab, tmp_path: Path) -> None:
    first, second = slurm_hosts.hosts
    second.blackhole_port("29500", peer=first)
    argv = [*preflight.command(slurm_hosts), "--nodes", "2", "--exclude-file", "/tmp/bad"]
    ran = bench.running(first, argv).ended(timeout=120)
    said = preflight.report(ran)["preflight"]
    assert (said["decision"], said["exclude"]) == ("NO-GO", ["node1"]), ran
    exclude, drain, _ = (c["line"] for c in said["commands"])
    assert where(first, exclude) == where(first, "--exclude=/tmp/bad") == "node0"
    first.run(["sh", "-c", drain], check=True)
    assert where(first) == "node0"
    assert "port-blocked" in first.run(["scontrol", "show", "node", "node1"]).stdout
    assert slurm.states(slurm_hosts) == ["idle", "drained"]


def where(host: Host, *options: str) -> str:
    return host.run(["srun", "-N1", *options, "hostname"], check=True).stdout.strip()
