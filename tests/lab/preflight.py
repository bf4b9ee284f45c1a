"""Running `smoldiag preflight` on the hosts of a lab, and what may be wrong with one of them."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab import software
from tests.lab.bench import Ran, Running
from tests.lab.hosts import HOME, PATH, Host, Lab, until

BUDGET_S = 30  # in place of the minute of quick
DISK = "/var/tmp/checkpoints"  # a small file system of its own on each host
DISK_BYTES = 400 << 20


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What befalls a host before the command, and during it."""

    name: str
    before: Callable[[Host], AbstractContextManager[object]] = lambda host: nullcontext()
    during: Callable[[Host], None] = lambda host: None
    options: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()  # one of them is named


def command(lab: Lab, name: str = "preflight") -> list[str | Path]:
    return [software.with_smoldiag(lab), "-m", "smoldiag", name, "--format", "json"]


def start(
    lab: Lab, *options: str | Path, hosts: Sequence[str] = (), name: str = "preflight", said: Path | None = None
) -> Running:
    """From outside the hosts, over ssh. What it says on stderr goes into the file `said`, if given."""
    names = ",".join(hosts or [h.name for h in lab.hosts])
    argv = [*command(lab, name), "--hosts", names, "--ssh-command", f"ssh -F {lab.ssh_config}", *options]
    env = {"PATH": PATH, "HOME": str(HOME), "LANG": "C.UTF-8", "SMOLDIAG_METADATA": "off"}
    with said.open("w") if said else nullcontext(subprocess.PIPE) as stderr:
        return Running(lab.popen(argv, env=env, cwd="/", stdout=subprocess.PIPE, stderr=stderr))


def report(ran: Ran) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(ran.out)
    except ValueError:
        raise AssertionError(f"not one JSON document (exit {ran.code}):\n{ran.out[:2000]}\n{ran.err}") from None
    assert document["schema"] == "smoldiag.report/1"
    return document


def accused(document: dict[str, Any]) -> dict[str, list[str]]:
    """Each host that is not simply good, and why."""
    return {h["name"]: h["reasons"] for h in document["preflight"]["hosts"] if h["decision"] != "GO"}


def with_fault(lab: Lab, fault: Fault, index: int) -> Ran:
    host = lab.hosts[index]
    with fault.before(host):
        running = start(lab, "--budget", str(BUDGET_S), *fault.options)
        fault.during(host)
        return running.ended(timeout=120)


@contextmanager
def shaped(host: Host) -> Iterator[None]:
    host.shape("100mbit")
    yield
    host.restore()


@contextmanager
def under_quota(host: Host) -> Iterator[None]:
    host.cpu_quota(0.3)
    yield
    host.restore()


@contextmanager
def cut(host: Host) -> Iterator[None]:
    host.cut()
    yield
    host.restore()


@contextmanager
def other_variable(host: Host) -> Iterator[None]:
    """In what its logins read: bash reads it when sshd starts it."""
    host.run(["sh", "-c", f"echo export NCCL_BUFFSIZE=8388608 > {HOME}/.bashrc"], check=True)
    yield
    host.run(["rm", f"{HOME}/.bashrc"], check=True)


@contextmanager
def small_shm(host: Host) -> Iterator[None]:
    host.run(["mount", "-o", "remount,size=1m", "/dev/shm"], check=True)
    yield
    host.run(["mount", "-o", "remount,size=50%", "/dev/shm"], check=True)


@contextmanager
def blocked_port(host: Host) -> Iterator[None]:
    host.blackhole_port(29_500)
    yield
    host.restore()


@contextmanager
def full_disk(host: Host) -> Iterator[None]:
    """Every host has a small file system for checkpoints; that of this one is full."""
    for h in host.lab.hosts:
        h.run(["sh", "-c", f"mkdir -p {DISK} && mount -t tmpfs -o size={DISK_BYTES} tmpfs {DISK}"], check=True)
    host.run(["sh", "-c", f"head -c {DISK_BYTES} /dev/zero > {DISK}/full"])  # it ends with "no space left"
    yield
    for h in host.lab.hosts:
        h.run(["umount", DISK], check=True)


def stop_a_rank(host: Host) -> None:
    until(lambda: len(host.torch_pids()) == 1, timeout=30, what="the rank has loaded torch")
    os.kill(host.torch_pids().pop(), signal.SIGSTOP)


FAULTS = {
    f.name: f
    for f in (
        Fault(name="shaped link", before=shaped, causes=("slow-node",)),
        Fault(name="CPU quota", before=under_quota, causes=("cpu-quota", "limits-differ")),
        Fault(name="cut host", before=cut, causes=("host-unreachable",)),
        Fault(name="other variable", before=other_variable, causes=("env-or-version-mismatch-across-ranks",)),
        Fault(name="small /dev/shm", before=small_shm, causes=("dev-shm-too-small", "limits-differ")),
        Fault(name="blocked port", before=blocked_port, causes=("port-blocked",)),
        Fault(name="stopped process", during=stop_a_rank, causes=("rank-stopped",)),
        Fault(name="full disk", before=full_disk, options=("--path", DISK), causes=("file-system-full",)),
    )
}
