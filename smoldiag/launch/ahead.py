"""The agent of this host, started before the command line is read: its ranks load torch while the options are parsed.

Only where a look at the arguments already says that ranks will run on this host. An agent that nobody takes ends with
this process.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from smoldiag.launch import carry

COMMANDS = ("nccl-bench",)
ELSEWHERE = (  # options that lead to other hosts, to another Python, or to no run
    "--nodes",
    "--hosts",
    "--hostfile",
    "--launcher",
    "--python",
    "--container",
    "--slurm-args",
    "--dry-run",
    "--help",
    "-h",
)
LAUNCHED = ("RANK", "SLURM_", "OMPI_", "PMI", "FLUX_", "SMOLDIAG_FIXED_RANK")  # by these a launcher shows
RANKS_ON_CPU = 2  # of a host that is alone; one on each of several
MOST_RANKS = 64  # a typing error shall not start a thousand processes before it is read
LEASE_S = 60.0  # until the head says its own
FORWARDED = ("NCCL_", "TORCH_", "GLOO_", "FI_", "OFI_", "UCX_", "OMP_", "CUDA_")
NOT_FORWARDED = {"CUDA_VISIBLE_DEVICES"}  # each host's own


_started: list[subprocess.Popen[bytes]] = []


def start(arguments: Sequence[str], env: Mapping[str, str]) -> None:
    """Start the agent where these arguments will surely want it."""
    names = {a.partition("=")[0] for a in arguments}
    if not arguments or arguments[0] not in COMMANDS or names.intersection(ELSEWHERE):
        return
    if any(name.startswith(LAUNCHED) for name in env):
        return
    try:
        program = os.memfd_create("smoldiag", 0)
    except (AttributeError, OSError):  # an old kernel, or no Linux: the launcher has another way
        return
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", carry.BOOTSTRAP_HERE, f"/proc/self/fd/{program}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=(program,),
        )
    except OSError:  # the launcher will come upon it, and say it
        os.close(program)
        return
    settings = {"do": "settings", "lease_s": LEASE_S, "prepare": prepare(typed_ranks(arguments), env, alone=True)}
    assert process.stdin is not None
    try:
        with open(program, "wb") as file:  # not in a thread: each of 500 system calls would wait for a turn
            file.write(carry.programs(compiled=True))
    except OSError:  # no memory for it
        process.kill()
        process.wait()
        return
    _started.append(process)
    with suppress(OSError):  # it ended; its stderr says why
        process.stdin.write(b"ready\n" + json.dumps(settings).encode() + b"\n")
        process.stdin.flush()


def take() -> subprocess.Popen[bytes] | None:
    """The agent that was started ahead, with its first settings on the way to it."""
    return _started.pop() if _started else None


def typed_ranks(arguments: Sequence[str]) -> int | None:
    """The value of --ranks-per-node; None where it is not there, or no number: the command line will say so."""
    words = [part for a in arguments for part in a.split("=", 1)]
    after = words[words.index("--ranks-per-node") + 1 :][:1] if "--ranks-per-node" in words else []
    return int(after[0]) if after and after[0].isdecimal() and 0 < int(after[0]) <= MOST_RANKS else None


def prepare(ranks: int | None, env: Mapping[str, str], *, alone: bool) -> dict[str, object]:
    """What an agent needs to know before it says hello: how many ranks to start, and with what variables."""
    return {"count": ranks, "on_cpu": RANKS_ON_CPU if alone else 1, "env": forwarded(env)}


def forwarded(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that ranks get from us."""
    return {k: v for k, v in sorted(env.items()) if k.startswith(FORWARDED) and k not in NOT_FORWARDED}
