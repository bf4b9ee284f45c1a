"""Running `smoldiag nccl-bench`, or the bare script beside it, on the hosts of a lab."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab import software
from tests.lab.hosts import CHECKOUT, HOME, PATH, Host, Lab, finished

BARE = CHECKOUT / "benchmarks" / "peers" / "bare.py"
PORTS = iter(range(29_500, 65_000))


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What became of one command."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def document(self) -> dict[str, Any]:
        try:
            document: dict[str, Any] = json.loads(self.out)
        except ValueError:
            raise AssertionError(f"not one JSON document (exit {self.code}):\n{self.out[:2000]}\n{self.err}") from None
        assert document["schema"] == "smoldiag.bench/1"
        return document

    @property
    def results(self) -> list[dict[str, Any]]:
        return list(self.document["results"])

    @property
    def findings(self) -> list[dict[str, Any]]:
        """Those above info, the first first."""
        return [f for f in self.document["findings"] if f["severity"] != "info"]

    def __str__(self) -> str:
        return f"exit {self.code} after {self.seconds:.1f} s\n{self.err}\n{json.dumps(self.findings, indent=1)}"


class Running:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.began = process, time.monotonic()

    def ended(self, *, timeout: float = 90.0) -> Ran:
        done = finished(self.process, timeout=timeout)
        return Ran(
            code=done.returncode,
            out=done.stdout,
            err=done.stderr or "",
            seconds=round(time.monotonic() - self.began, 2),
        )

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        os.kill(self.process.pid, number)


def command(lab: Lab, *options: str | Path) -> list[str | Path]:
    return [software.with_smoldiag(lab), "-m", "smoldiag", "nccl-bench", "--format", "json", *options]


def over_ssh(lab: Lab, *options: str | Path, hosts: Sequence[str] = ()) -> Running:
    """From outside the hosts, as from a workstation."""
    names = ",".join(hosts or [h.name for h in lab.hosts])
    ssh = ["--hosts", names, "--ssh-command", f"ssh -F {lab.ssh_config}"]
    env = {"PATH": PATH, "HOME": str(HOME), "LANG": "C.UTF-8", "SMOLDIAG_METADATA": "off"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return Running(lab.popen(command(lab, *ssh, *options), env=env, cwd="/", **pipes))


def on(host: Host, *options: str | Path, before: Sequence[str] = (), env: Mapping[str, str] | None = None) -> Running:
    """On one host, possibly started by what stands `before` it: srun, salloc, torchrun's module."""
    argv = [*before, *command(host.lab, *options)]
    return running(host, argv, env=env)


def running(host: Host, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> Running:
    env = {"SMOLDIAG_METADATA": "off", **dict(env or {})}
    return Running(host.popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE))


def under_torchrun(lab: Lab, *options: str | Path, ranks_per_node: int) -> list[Running]:
    """One torchrun per host, as a person types them."""
    port = next(PORTS)
    python = software.with_smoldiag(lab)
    return [
        running(
            host,
            [
                *(python, "-m", "torch.distributed.run", f"--nnodes={len(lab.hosts)}", f"--node-rank={host.index}"),
                *(f"--nproc-per-node={ranks_per_node}", "--master-addr=node0", f"--master-port={port}"),
                *("-m", "smoldiag", "nccl-bench", "--format", "json", *options),
            ],
            env={"OMP_NUM_THREADS": "1"},
        )
        for host in lab.hosts
    ]


def bare_all_reduce_gb_per_s(lab: Lab, *, num_bytes: int, iterations: int) -> float:
    """The bare script's busbw with one rank per host."""
    config = json.dumps({"collectives": ["all_reduce"], "sizes": [num_bytes], "iterations": iterations})
    world = {"WORLD_SIZE": str(len(lab.hosts)), "MASTER_ADDR": "node0", "MASTER_PORT": str(next(PORTS))}
    env = world | {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    ranks = [
        running(host, [sys.executable, BARE, config], env=env | {"RANK": str(host.index)}).process for host in lab.hosts
    ]
    said = [finished(rank, timeout=120, check=True).stdout for rank in ranks]
    time_us = json.loads(said[0])["rows"][0]["time_us"]
    return float(2 * (len(lab.hosts) - 1) / len(lab.hosts) * num_bytes / time_us / 1e3)
