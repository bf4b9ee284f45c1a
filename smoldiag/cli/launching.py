"""Options of the commands that start ranks on hosts: how many, where, and by which launcher."""

import importlib
import threading
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from smoldiag.cli.common import Launcher


class Backend(StrEnum):
    AUTO = "auto"
    NCCL = "nccl"
    GLOO = "gloo"


NodesOption = Annotated[
    int | None,
    typer.Option("--nodes", help="Hosts to use. Without: the allocation, the named hosts, or this host.", min=1),
]
RanksPerNodeOption = Annotated[
    int | None,
    typer.Option(
        "--ranks-per-node",
        help="Ranks per host. Without: its GPUs; on CPU 1, and 2 on a single host.",
        min=1,
        max=1024,
    ),
]
LauncherOption = Annotated[Launcher, typer.Option("--launcher", help="How ranks reach the hosts.")]
BackendOption = Annotated[Backend, typer.Option("--backend", help="nccl on GPUs, gloo on CPUs.")]
TimeoutOption = Annotated[
    float,
    typer.Option("--timeout", help="Seconds without progress after which a stage counts as hung.", min=5, max=86_400),
]
InterfaceOption = Annotated[
    str | None,
    typer.Option("--interface", help="Network interface for gloo and for NCCL's bootstrap, e.g. eth0."),
]
HostsOption = Annotated[str, typer.Option("--hosts", help="Hosts for ssh, separated by commas. The first has rank 0.")]
HostfileOption = Annotated[Path | None, typer.Option("--hostfile", help="A file with one host per line, for ssh.")]
SshCommandOption = Annotated[str | None, typer.Option("--ssh-command", help='The ssh to use, e.g. "ssh -F FILE".')]
PythonOption = Annotated[
    str | None,
    typer.Option("--python", help="The Python with torch on the hosts. Without: this one's path there, else python3."),
]
SlurmArgsOption = Annotated[str, typer.Option("--slurm-args", help='More for srun, e.g. "-p gpu -A account -t 10".')]
ContainerOption = Annotated[str | None, typer.Option("--container", help="Container image for the ranks (pyxis).")]
MountOption = Annotated[
    list[str] | None, typer.Option("--mount", help="SRC:DST to mount into the container. Repeatable.")
]
BusyOkOption = Annotated[bool, typer.Option("--busy-ok", help="Use GPUs that other processes use, too.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would run, and end.")]


def load_ahead(module: str, *, every_rule: bool = False) -> None:
    """Load what will judge the run while the ranks start: it takes a tenth of a second that nobody waits for."""

    def load() -> None:
        importlib.import_module(module)
        if every_rule:
            from smoldiag import rules

            rules.select()

    threading.Thread(target=load, daemon=True).start()
