"""`smoldiag` alone: from the symptom to the command, and where it stands."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from smoldiag import __version__


def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if version:
        print(f"smoldiag {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print("\n".join(lines(os.environ)))


def lines(env: Mapping[str, str]) -> list[str]:
    nodes = env.get("SLURM_JOB_NUM_NODES") or env.get("SLURM_NNODES")
    on_all = f" --nodes {nodes}" if nodes else " --nodes N"
    return [
        f"smoldiag {__version__} on {place(env)}",
        "",
        "new cluster      smoldiag nccl-bench" + " " * 14 + "how fast are the collectives, and is that normal?",
        f"before a job     smoldiag nccl-bench{on_all} --fsdp SmolLM3-3B   at the sizes that FSDP of this model sends",
        f"hangs or died    smoldiag nccl-bench{on_all} --timeout 20   which rank or host does not take part?",
        f"slow             smoldiag nccl-bench{on_all} --scale   from how many nodes on does it break?",
        "what it means    smoldiag rule CODE",
        "",
        "smoldiag COMMAND --help has examples.",
    ]


def place(env: Mapping[str, str], *, root: Path = Path("/")) -> str:
    """Where we stand, in words: the scheduler, and whether this host has GPUs."""
    gpus = sorted((root / "proc/driver/nvidia/gpus").glob("*")) if (root / "proc/driver/nvidia/gpus").is_dir() else []
    has = f"{len(gpus)} NVIDIA GPU{'s' if len(gpus) != 1 else ''} here" if gpus else "no NVIDIA GPU here"
    if "RANK" in env and "WORLD_SIZE" in env:
        return f"rank {env['RANK']} of {env['WORLD_SIZE']}, {has}"
    if job := env.get("SLURM_JOB_ID"):
        return f"a host of Slurm job {job} ({env.get('SLURM_JOB_NUM_NODES', '?')} nodes), {has}"
    if shutil.which("srun"):
        return f"a host with Slurm, outside of a job, {has}"
    if "KUBERNETES_SERVICE_HOST" in env:
        return f"a Kubernetes pod, {has}"
    return f"a host without a scheduler, {has}"
