"""Which launcher, what it would type, and the run itself."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from smoldiag.errors import SmoldiagError
from smoldiag.facts import Host, World
from smoldiag.launch import joined, local, slurm, ssh
from smoldiag.launch.request import Choice, Event, Finished, Request

OnEvent = Callable[[Event], None]
Configure = Callable[[Sequence[Host], World, str], dict[str, Any]]


def choose(launcher: str, request: Request, env: Mapping[str, str]) -> Choice:
    """The launcher that was asked for, or the first that fits. Raises SmoldiagError with the choices if none does."""
    engines = {"joined": joined, "ssh": ssh, "slurm": slurm, "local": local}
    if launcher != "auto":
        choice = engines[launcher].choice(request, env, asked=True)
        assert choice is not None
        return choice
    for engine in engines.values():
        if choice := engine.choice(request, env, asked=False):
            return choice
    raise SmoldiagError(f"nothing here reaches {request.nodes} hosts", hint=hint(request, env))


def hint(request: Request, env: Mapping[str, str]) -> str:
    n = request.nodes or 2
    names = ",".join(f"HOST{i}" for i in range(min(n, 3))) + (",..." if n > 3 else "")
    lines = [
        "one of these:",
        f"  smoldiag nccl-bench --hosts {names}            # ssh without a password",
        f"  srun -N {n} --ntasks-per-node=1 smoldiag nccl-bench   # on a host with Slurm (there is no srun on PATH here)",
        f"  torchrun --nnodes {n} --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST0:29500 -m smoldiag nccl-bench",
    ]
    return "\n".join(lines)


def run(choice: Choice, request: Request, *, on_event: OnEvent, configure: Configure) -> Finished:
    """Start the ranks, watch them, end them. What happens on hosts is in `Finished.launch.faults`."""
    engine = {"joined": joined, "ssh": ssh, "slurm": slurm, "local": local}[choice.launcher]
    return asyncio.run(engine.run(choice, request, os.environ, on_event, configure))


def is_silent(choice: Choice, env: Mapping[str, str]) -> bool:
    """Whether this process is a joined one that leaves the talking to that of rank 0."""
    part = joined.part(env) if choice.launcher == "joined" else None
    return part is not None and part.rank != 0
