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
    rows = (
        ("new cluster", "smoldiag doctor", "is this machine set up right? (--hosts a,b: and those?)"),
        ("", "smoldiag cloud check", "what does this cloud instance need, and what harms it?"),
        ("", "smoldiag topo", "which NIC does each GPU use, and over what?"),
        ("before a job", f"smoldiag preflight{on_all}", "GO or NO-GO, and which hosts must stay out?"),
        ("", f"smoldiag nccl-bench{on_all}", "how fast are the collectives, and is that normal?"),
        ("", "smoldiag env job.sbatch", "what do the variables of this script do?"),
        ("hangs or died", "smoldiag explain LOG|FOLDER", "what did the job die of, and who was it?"),
        ("", "smoldiag run -- torchrun ...", "the same job with the evidence on"),
        ("", "smoldiag doctor --job ID", "where do the ranks of a running job stand?"),
        ("slow", f"smoldiag nccl-bench{on_all} --scale", "from how many nodes on does it break?"),
        ("", f"smoldiag find-slow{on_all}", "which host, link or rail is the slow one?"),
        ("", "smoldiag run --monitor -- ...", "where does the time of each step go?"),
        ("", f"smoldiag train{on_all}", "what can this cluster do with a reference trainer?"),
        ("", "smoldiag compare A B", "what changed between two runs, benches, logs, bundles?"),
        ("to ask others", "smoldiag bundle job.zip", "facts and logs of the hosts, without secrets"),
        ("what it means", "smoldiag rule CODE", "the page of a rule"),
    )
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    table = [f"{when:{widths[0]}}   {command:{widths[1]}}   {why}" for when, command, why in rows]
    return [f"smoldiag {__version__} on {place(env)}", "", *table, "", "smoldiag COMMAND --help has examples."]


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
