"""The hosts that a command was told to look at: this one, others, or saved ones."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from smoldiag.errors import SmoldiagError

if TYPE_CHECKING:
    from smoldiag.bundle import Bundle
    from smoldiag.launch import Choice, Request

READ_SHARE = 0.6  # of --timeout, for reading; the rest is for the way there and back


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which hosts, and how to reach them; as typed."""

    command: str
    bundles: Sequence[Path] = ()
    root: Path | None = None
    nodes: str | None = None
    hosts: str = ""
    hostfile: Path | None = None
    job: str | None = None
    launcher: str = "auto"
    ssh_command: str | None = None
    python: str | None = None
    slurm_args: str = ""
    container: str | None = None
    mounts: Sequence[str] = ()
    timeout_s: float = 30.0
    logs: Sequence[str] = ()


def gathered(asked: Asked) -> "Bundle":
    """Facts of these hosts. Ends the program in a joined process that is not the reporting one."""
    from smoldiag import bundle, doctor

    others = {"--nodes": asked.nodes, "--hosts": asked.hosts, "--hostfile": asked.hostfile, "--job": asked.job}
    typed = [name for name, value in {"--bundle": asked.bundles, "--root": asked.root, **others}.items() if value]
    if len(typed) > 1 and set(typed) != {"--nodes", "--hosts"} and set(typed) != {"--nodes", "--hostfile"}:
        raise SmoldiagError(f"{' and '.join(typed)} name different hosts", hint="type one of them")
    if asked.bundles:
        return bundle.load(asked.bundles)
    if asked.root is None and (any(others.values()) or asked.launcher != "auto" or _takes_part()):
        return _over_a_launcher(asked)
    return doctor.this_host(root=asked.root, logs=tuple(asked.logs), seconds=asked.timeout_s * READ_SHARE)


def user_names() -> list[str]:
    """Of who types this."""
    import getpass

    try:
        return [getpass.getuser()]
    except (OSError, KeyError):  # an id without a name
        return []


def _takes_part() -> bool:
    """Whether srun, torchrun or mpirun has started several of us."""
    if not any(
        name in os.environ for name in ("SLURM_STEP_ID", "SLURM_STEPID", "RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
    ):
        return False
    from smoldiag import launch

    return launch.is_joined(os.environ)


def _over_a_launcher(asked: Asked) -> "Bundle":
    from smoldiag import launch
    from smoldiag.cli import progress

    request = _request(asked)
    choice = launch.choose(asked.launcher, request, os.environ)
    found = _read(choice, request)
    if asked.job and asked.launcher == "auto" and not found.hosts and choice.hosts:
        progress.say("srun could not enter the job; its hosts are tried over ssh")
        request = replace(request, hosts=choice.hosts, nodes=None)
        found = _read(launch.choose("ssh", request, os.environ), request)
    return found


def _read(choice: "Choice", request: "Request") -> "Bundle":
    from smoldiag import launch
    from smoldiag.cli import progress

    plan = f"{choice.nodes or 'the'} hosts; each has {request.timeout_s:.0f} s to answer"
    with progress.shown(choice, plan=plan, quiet=launch.is_silent(choice, os.environ)) as on_event:
        finished = launch.run(choice, request, on_event=on_event)
    if not finished.reporting:
        raise typer.Exit(finished.exit_code)
    assert finished.bundle is not None
    return finished.bundle


def _request(asked: Asked) -> "Request":
    from smoldiag import bench, launch
    from smoldiag.launch import slurm

    named, _ = bench.hosts(asked.hosts, asked.hostfile)
    if asked.job and asked.launcher == "ssh":
        named = slurm.running_job(asked.job, os.environ).hosts
    return launch.Request(
        command=asked.command,
        survey=launch.Survey(seconds=asked.timeout_s * READ_SHARE, files=tuple(asked.logs), job=asked.job),
        nodes=_nodes(asked),
        hosts=named,
        ssh_command=asked.ssh_command,
        python=asked.python,
        timeout_s=asked.timeout_s,
        slurm_args=bench.words(asked.slurm_args, option="--slurm-args"),
        container=asked.container,
        mounts=tuple(asked.mounts),
    )


def _nodes(asked: Asked) -> int | None:
    text = asked.nodes
    if text is None:
        return None
    if text == "all":
        if not asked.hosts and not asked.hostfile and "SLURM_JOB_ID" not in os.environ:
            raise SmoldiagError(
                "--nodes all: this is no Slurm job, so that nobody knows all hosts",
                hint="name them: --hosts a,b or --hostfile FILE, or a running job: --job ID",
            )
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise SmoldiagError(f"--nodes {text[:40]!r} is no number of hosts", hint="a number, or all")
    return int(text)
