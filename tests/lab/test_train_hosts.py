"""`smoldiag train` on real hosts: over ssh and in Slurm, and when a host dies."""

import gzip
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from smoldiag import runs
from tests.lab import software
from tests.lab.bench import Ran, Running, running
from tests.lab.hosts import HOME, PATH, Lab

pytestmark = pytest.mark.lab

SHORT = ("--steps", "8", "--checkpoint-every", "2", "--timeout", "20", "--format", "json", "--fail-on", "never")


def train(lab: Lab, *options: str | Path) -> list[str | Path]:
    return [software.with_smoldiag(lab), "-m", "smoldiag", "train", *options]


def over_ssh(lab: Lab, hosts: list[str], *options: str | Path) -> Running:
    ssh = ["--hosts", ",".join(hosts), "--ssh-command", f"ssh -F {lab.ssh_config}", "--interface", "eth0"]
    env = {"PATH": PATH, "HOME": str(HOME), "LANG": "C.UTF-8", "SMOLDIAG_METADATA": "off"}
    return Running(
        lab.popen(train(lab, *ssh, *options), env=env, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    )


def report(ran: Ran) -> dict[str, Any]:
    try:
        return dict(json.loads(ran.out))
    except ValueError:
        raise AssertionError(f"no report (exit {ran.code}):\n{ran.out}\n{ran.err}") from None


def folders(lab: Lab, name: str) -> tuple[Path, Path]:
    """The run folder, which the head alone writes, and the checkpoints, which all hosts see."""
    shared = lab.folder / f"shared-{name}"
    shared.mkdir()
    return lab.folder / f"run-{name}", shared


def losses(folder: Path) -> list[float]:
    return [s.notes["loss"] for s in runs.read(folder).steps if s.rank == 0]


def test_two_hosts_train_one_model_over_ssh(two_hosts: Lab) -> None:
    run, shared = folders(two_hosts, "ssh")
    ran = over_ssh(two_hosts, ["node0", "node1"], "--output", run, "--checkpoint", shared, *SHORT).ended()
    assert ran.code == 0, ran.err
    assert {s.host for s in runs.read(run).steps} == {"node0", "node1"}
    assert sorted(p.name for p in (run / "hosts").iterdir()) == ["node0.json", "node1.json"]
    assert all(json.loads(p.read_bytes())["limits"] for p in (run / "hosts").iterdir())  # all facts, read there
    assert len(losses(run)) == 8
    assert two_hosts.left_over(within_s=5) == []


def test_traces_come_from_hosts_that_share_no_folder(two_hosts: Lab) -> None:
    run, shared = folders(two_hosts, "traced")
    options = ("--output", run, "--checkpoint", shared, "--trace", "1", "--trace-ranks", "0,1", *SHORT)
    ran = over_ssh(two_hosts, ["node0", "node1"], *options).ended()
    assert ran.code == 0, ran.err
    assert sorted(p.name for p in (run / "traces").iterdir()) == ["rank0.json.gz", "rank1.json.gz"]
    for path in (run / "traces").iterdir():
        assert json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def test_a_trace_that_cannot_be_written_does_not_stop_the_job(two_hosts: Lab) -> None:
    run, shared = folders(two_hosts, "untraced")
    ssh = ("--trace", "1", "--trace-ranks", "1", *SHORT)
    two_hosts.hosts[1].run(["mount", "-o", "remount,size=16k", "/tmp"], check=True)
    try:
        ran = over_ssh(two_hosts, ["node0", "node1"], "--output", run, "--checkpoint", shared, *ssh).ended()
    finally:
        two_hosts.hosts[1].run(["mount", "-o", "remount,size=50%", "/tmp"], check=True)
    assert ran.code == 0, ran.err
    assert any("the trace of rank 1 was not kept" in note for note in report(ran)["notes"])
    assert len(losses(run)) == 8


def test_two_hosts_train_one_model_in_slurm(slurm_hosts: Lab) -> None:
    run, shared = folders(slurm_hosts, "slurm")
    words = train(slurm_hosts, "--nodes", "2", "--output", run, "--checkpoint", shared, *SHORT)
    ran = running(slurm_hosts.hosts[0], words).ended()
    assert ran.code == 0, ran.err
    assert len(losses(run)) == 8
    assert slurm_hosts.left_over(within_s=5) == []


def test_a_host_that_dies_is_named_and_the_rest_goes_on(two_hosts: Lab) -> None:
    run, shared = folders(two_hosts, "dies")
    options = ("--output", run, "--checkpoint", shared, *SHORT, "--fault", "slow-loader:seconds=0.5")
    training = over_ssh(two_hosts, ["node0", "node1"], *options)
    wait_for_checkpoint(shared)
    for pid in two_hosts.hosts[1].torch_pids():
        os.kill(pid, signal.SIGKILL)
    ran = training.ended()
    assert ran.code == 3, ran.err
    first = report(ran)["findings"][0]
    assert first["severity"] == "error"
    assert first["where"]["hosts"] == ["node1"]
    alone = over_ssh(two_hosts, ["node0"], "--resume", run, "--format", "json", "--fail-on", "never").ended()
    assert alone.code == 0, alone.err
    assert len(losses(run)) == 8
    assert two_hosts.left_over(within_s=5) == []


def wait_for_checkpoint(shared: Path) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if any((p / ".metadata").is_file() for p in shared.glob("step-*")):
            return
        time.sleep(0.05)
    raise AssertionError("no checkpoint was written")
