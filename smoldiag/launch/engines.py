"""Which launcher, what it would type, and the run itself."""

import asyncio
import os
from collections.abc import Mapping
from types import ModuleType

from smoldiag.errors import SmoldiagError
from smoldiag.launch import joined, local, slurm, ssh
from smoldiag.launch.request import Choice, Configure, Finished, OnEvent, Request, no_program

ENGINES: dict[str, ModuleType] = {"joined": joined, "ssh": ssh, "slurm": slurm, "local": local}  # as auto tries them


def choose(launcher: str, request: Request, env: Mapping[str, str]) -> Choice:
    """The launcher that was asked for, or the first that fits. Raises SmoldiagError with the choices if none does."""
    if request.survey is not None and request.survey.job is not None and launcher in ("auto", "slurm"):
        launcher = "slurm"
    if launcher != "auto":
        choice: Choice | None = ENGINES[launcher].choice(request, env, asked=True)
        assert choice is not None
        return choice
    for engine in ENGINES.values():
        choice = engine.choice(request, env, asked=False)
        if choice is not None:
            return choice
    raise SmoldiagError(f"nothing here reaches {request.nodes} hosts", hint=hint(request, env))


def hint(request: Request, env: Mapping[str, str]) -> str:
    n = request.nodes or 2
    names = ",".join(f"HOST{i}" for i in range(min(n, 3))) + (",..." if n > 3 else "")
    command = request.command
    lines = [
        "one of these:",
        f"  smoldiag {command} --hosts {names}            # ssh without a password",
        f"  srun -N {n} --ntasks-per-node=1 smoldiag {command}   # on a host with Slurm; there is no srun here",
        f"  torchrun --nnodes {n} --node-rank I --nproc-per-node 8 --master-addr HOST0 -m smoldiag {command}",
    ]
    return "\n".join(lines)


def run(choice: Choice, request: Request, *, on_event: OnEvent, configure: Configure = no_program) -> Finished:
    """Start the ranks, watch them, end them; or read the facts of the hosts. What happens on hosts is in
    `Finished.launch.faults`.
    """
    running = ENGINES[choice.launcher].run(choice, request, os.environ, on_event, configure)
    finished: Finished = asyncio.run(running)
    return finished


def is_joined(env: Mapping[str, str]) -> bool:
    """Whether a launcher has started this process among others."""
    part = joined.part(env)
    return part is not None and part.size > 1 and part.launcher != joined.UNKNOWN_LAUNCHER


def is_silent(choice: Choice, env: Mapping[str, str]) -> bool:
    """Whether this process is a joined one that leaves the talking to that of rank 0."""
    part = joined.part(env) if choice.launcher == "joined" else None
    return part is not None and part.rank != 0
