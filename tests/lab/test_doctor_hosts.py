"""`smoldiag doctor` and `bundle` on real hosts: what differs between them, who can't be reached, running jobs."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from smoldiag import bundle
from tests.lab import bench, software
from tests.lab.bench import Ran, Running
from tests.lab.hosts import HOME, PATH, Host, Lab, until

pytestmark = pytest.mark.lab


def smoldiag(lab: Lab, *words: str | Path) -> list[str | Path]:
    return [software.with_smoldiag(lab), "-m", "smoldiag", *words]


def over_ssh(lab: Lab, command: str, *options: str | Path, hosts: Sequence[str] = ()) -> Ran:
    """From outside the hosts, as from a workstation."""

    names = ",".join(hosts or [h.name for h in lab.hosts])
    argv = smoldiag(lab, command, *options, "--hosts", names, "--ssh-command", f"ssh -F {lab.ssh_config}")
    env = {"PATH": PATH, "HOME": str(HOME), "LANG": "C.UTF-8", "SMOLDIAG_METADATA": "off"}
    process = lab.popen(argv, env=env, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return Running(process).ended()


def on(host: Host, *words: str | Path, before: Sequence[str] = ()) -> Ran:
    return bench.running(host, [*before, *smoldiag(host.lab, *words)]).ended()


def report(ran: Ran) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(ran.out)
    assert document["schema"] == "smoldiag.report/1"
    return document


def test_hosts_are_read_and_nothing_stays_there(three_hosts: Lab) -> None:
    ran = over_ssh(three_hosts, "doctor", "--format", "json", "--facts")
    assert ran.code in (0, 1), ran.err
    hosts = report(ran)["facts"]["hosts"]
    assert [h["name"] for h in hosts] == ["node0", "node1", "node2"]
    assert all(abs(h["clock"]["offset_s"]) <= h["clock"]["uncertainty_s"] < 1 for h in hosts)
    assert three_hosts.left_over(within_s=5) == []


def test_each_host_that_differs_is_named(three_hosts: Lab) -> None:
    """One by the memlock limit of its logins, one by a variable, one by the name of its interface."""
    limited, variable, named = three_hosts.hosts
    conf = f"{HOME}/.nccl.conf"
    variable.run(["sh", "-c", f"echo NCCL_BUFFSIZE=8388608 > {conf}"], check=True)
    with memlock(limited, 64 * 1024), renamed(named, "eth0", "ens5"):
        ran = over_ssh(three_hosts, "doctor", "--format", "json")
    variable.run(["rm", conf], check=True)
    assert ran.code == 1, ran.err
    found = {f["code"]: f for f in report(ran)["findings"] if f["code"] in ("HST050", "ENV050", "NIC053")}
    assert {code: f["where"]["hosts"] for code, f in found.items()} == {
        "HST050": ["node0"],
        "ENV050": ["node1"],
        "NIC053": ["node2"],
    }
    assert found["ENV050"]["subject"] == "NCCL_BUFFSIZE"
    assert found["ENV050"]["evidence"][0] == {"text": "NCCL_BUFFSIZE=8388608", "where": f"node1: {conf}:1"}
    assert "64 KiB on node0" in found["HST050"]["message"]
    assert found["NIC053"]["message"].startswith("node2 has no interface eth0 that is up, but ens5;")
    others = [f for f in report(ran)["findings"] if f["severity"] != "info" and f["code"] not in found]
    assert others == []


@contextmanager
def memlock(host: Host, limit: int) -> Iterator[None]:
    """Of what sshd starts from now on."""
    (sshd,) = (pid for pid, line in host.processes().items() if "sshd" in line)
    before = resource.prlimit(sshd, resource.RLIMIT_MEMLOCK)
    resource.prlimit(sshd, resource.RLIMIT_MEMLOCK, (limit, before[1]))
    yield
    resource.prlimit(sshd, resource.RLIMIT_MEMLOCK, before)


@contextmanager
def renamed(host: Host, name: str, new: str) -> Iterator[None]:
    for before, after in ((name, new), (new, name)):
        for words in (["set", before, "down"], ["set", before, "name", after], ["set", after, "up"]):
            host.run(["ip", "link", *words], check=True)
        if after == new:
            yield


def test_a_host_that_is_not_there_is_a_finding_and_the_others_are_reported(three_hosts: Lab) -> None:
    ran = over_ssh(three_hosts, "doctor", "--format", "json", "--facts", hosts=["node0", "nobody", "node2"])
    assert ran.code == 3, ran.err
    found = report(ran)
    assert found["verdict"] == "incomplete"
    assert [f["where"]["hosts"] for f in found["findings"] if f["code"] == "HST001"] == [["nobody"]]
    assert [h["name"] for h in found["facts"]["hosts"]] == ["node0", "node2"]


def test_under_srun_all_tasks_take_part_and_one_reports(slurm_hosts: Lab) -> None:
    for before in (["srun", "-N2", "--ntasks-per-node=1"], ["srun", "-N2", "--ntasks-per-node=2"]):
        ran = on(slurm_hosts.hosts[0], "doctor", "--format", "json", "--facts", before=before)
        assert ran.code in (0, 1), ran.err
        assert [h["name"] for h in report(ran)["facts"]["hosts"]] == ["node0", "node1"]
    assert slurm_hosts.left_over(within_s=5) == []


@pytest.mark.parametrize(
    ("before", "options", "names"),
    [
        (["salloc", "-N2"], [], ["node0"]),
        (["salloc", "-N2"], ["--nodes", "all"], ["node0", "node1"]),
        ([], ["--nodes", "2"], ["node0", "node1"]),
    ],
    ids=["this host in an allocation", "all of an allocation", "a new allocation"],
)
def test_slurm(slurm_hosts: Lab, before: list[str], options: list[str], names: list[str]) -> None:
    ran = on(slurm_hosts.hosts[0], "doctor", "--format", "json", "--facts", *options, before=before)
    assert ran.code in (0, 1), ran.err
    assert [h["name"] for h in report(ran)["facts"]["hosts"]] == names
    assert slurm_hosts.left_over(within_s=5) == []


# -- a running job

RANK = """
import time
def inner():
    time.sleep(300)
inner()
"""


def test_a_running_job_is_looked_at_from_beside_it(slurm_hosts: Lab) -> None:
    first = slurm_hosts.hosts[0]
    argv = ["srun", "-N2", "--ntasks-per-node=2", "sh", "-c", 'RANK=$SLURM_PROCID NCCL_ALGO=Ring exec "$0" -c "$1"']
    job = first.popen([*argv, sys.executable, RANK])
    until(lambda: len(ranks(slurm_hosts)) == 4, timeout=20, what="the ranks run")
    stopped = next(pid for pid in slurm_hosts.hosts[1].pids() if pid in ranks(slurm_hosts))
    os.kill(stopped, signal.SIGSTOP)
    number = first.run(["squeue", "--noheader", "--format=%i"]).stdout.split()[0]
    ran = on(first, "doctor", "--job", number, "--format", "json", "--facts", "--timeout", "20")
    assert ran.code == 1, ran.err
    said = report(ran)
    processes = {h["name"]: [p["rank"] for p in h["processes"]] for h in said["facts"]["hosts"]}
    assert processes == {"node0": [0, 1], "node1": [2, 3]}
    envs = [p["env"]["variables"] for h in said["facts"]["hosts"] for p in h["processes"]]
    assert all({"NCCL_ALGO": "Ring"}.items() <= {v["name"]: v["value"] for v in env}.items() for env in envs)
    (found,) = (f for f in said["findings"] if f["code"] == "HST060")
    assert found["where"]["hosts"] == ["node1"]
    assert len(ranks(slurm_hosts)) == 4
    assert job.poll() is None
    os.kill(stopped, signal.SIGCONT)


def ranks(lab: Lab) -> dict[int, str]:
    return {pid: line for pid, line in lab.processes().items() if "def inner" in line and "srun" not in line}


def test_a_job_that_does_not_run_is_a_sentence(slurm_hosts: Lab) -> None:
    ran = on(slurm_hosts.hosts[0], "doctor", "--job", "99999")
    assert ran.code == 2, ran.err
    assert ran.err.startswith("error: --job 99999: "), ran.err


def test_collecting_needs_neither_smoldiag_nor_torch_there(two_hosts: Lab) -> None:
    ran = over_ssh(two_hosts, "doctor", "--python", software.without_torch(two_hosts), "--format", "json", "--facts")
    assert ran.code in (0, 1), ran.err
    assert len(report(ran)["facts"]["hosts"]) == 2


def test_a_host_without_python_is_a_finding(two_hosts: Lab) -> None:
    ran = over_ssh(two_hosts, "doctor", "--python", "/nowhere/python", "--format", "json")
    assert ran.code == 3, ran.err
    (found,) = (f for f in report(ran)["findings"] if f["code"] == "VER001")
    assert found["where"]["hosts"] == ["node0", "node1"]


def test_a_bundle_over_ssh_gives_the_same_report_elsewhere(two_hosts: Lab) -> None:
    archive = two_hosts.folder / "x.zip"
    for host in two_hosts.hosts:
        host.run(["sh", "-c", f"echo {host.name} --token hf_abcdefghijklmnopqrstuv > /tmp/nccl.log"], check=True)
    ran = over_ssh(two_hosts, "bundle", archive, "--log", "/tmp/nccl.log")
    assert ran.code == 0, ran.err
    assert "2 logs" in ran.err
    texts = [log.text for log in bundle.load([archive], logs=True).logs]
    assert texts == ["node0 --token [redacted]\n", "node1 --token [redacted]\n"]
    here, there = (
        report(bench.running(two_hosts.hosts[0], smoldiag(two_hosts, "doctor", *map(str, words))).ended())
        for words in ([archive, "--format", "json"], ["--bundle", archive, "--format", "json"])
    )
    assert here | {"created": ""} == there | {"created": ""}
