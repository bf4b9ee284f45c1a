"""Options that several commands share, and how a document leaves the program."""

import os
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smoldiag.errors import SmoldiagError

if TYPE_CHECKING:
    from rich.console import RenderableType


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"


class FailOn(StrEnum):
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    NEVER = "never"


class Launcher(StrEnum):
    AUTO = "auto"
    LOCAL = "local"
    JOINED = "joined"
    SLURM = "slurm"
    SSH = "ssh"


FormatOption = Annotated[Format, typer.Option("--format", help="How to print the report.")]
OutputOption = Annotated[Path | None, typer.Option("--output", help="Write the report to this file, not to stdout.")]
NodesOption = Annotated[
    str | None, typer.Option("--nodes", help="Look at so many hosts of this Slurm job, or at all: N or all.")
]
HostsOption = Annotated[str, typer.Option("--hosts", help="Look at these hosts over ssh, separated by commas.")]
HostfileOption = Annotated[
    Path | None, typer.Option("--hostfile", help="Look at the hosts of this file over ssh, one per line.")
]
JobOption = Annotated[
    str | None, typer.Option("--job", help="Look at the hosts of this running Slurm job, and at its ranks.")
]
LauncherOption = Annotated[Launcher, typer.Option("--launcher", help="How the hosts are reached.")]
SshCommandOption = Annotated[str | None, typer.Option("--ssh-command", help='The ssh to use, e.g. "ssh -F FILE".')]
PythonOption = Annotated[
    str | None,
    typer.Option(
        "--python", help="The Python (3.10 or newer) on the hosts. Without: this one's path there, else python3."
    ),
]
SlurmArgsOption = Annotated[str, typer.Option("--slurm-args", help='More for srun, e.g. "-p gpu -A account -t 10".')]
ContainerOption = Annotated[
    str | None, typer.Option("--container", help="Look from inside of this container image (pyxis).")
]
MountOption = Annotated[
    list[str] | None, typer.Option("--mount", help="SRC:DST to mount into the container. Repeatable.")
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", help="Seconds that a host may take to answer.", min=5, max=600)
]
RootOption = Annotated[
    Path | None,
    typer.Option("--root", help="Read this tree instead of /: no NVML of this machine, no metadata.", file_okay=False),
]
AllOption = Annotated[bool, typer.Option("--all", help="Show every finding with all its evidence.")]
FailOnOption = Annotated[FailOn, typer.Option("--fail-on", help="Exit with 1 from this severity on.")]


def failed(severities: set[str], fail_on: FailOn) -> bool:
    order = [FailOn.ERROR, FailOn.WARNING, FailOn.INFO]
    return fail_on is not FailOn.NEVER and bool(severities & {s.value for s in order[: order.index(fail_on) + 1]})


def printed(renderable: "RenderableType", *, colour: bool) -> str:
    """As text: coloured only on a terminal, never cut at its width."""
    from io import StringIO

    from rich.console import Console

    on_terminal = colour and sys.stdout.isatty()
    out = StringIO()
    Console(file=out, force_terminal=on_terminal, soft_wrap=True, highlight=False, width=240).print(renderable)
    return out.getvalue()


def emit(document: str, output: Path | None) -> None:
    """To stdout, or to a file in one step: a reader never sees half of it."""
    if output is None:
        sys.stdout.write(document)
        sys.stdout.flush()
        return
    try:
        handle, name = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
        with os.fdopen(handle, "w") as file:
            file.write(document)
        os.chmod(name, 0o644)
        os.replace(name, output)
    except OSError as error:
        raise SmoldiagError(
            f"can't write {output}: {error.strerror}", hint="name a file in a folder you may write to"
        ) from None


def check_output(output: Path | None) -> None:
    """Before the work, not after it."""
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise SmoldiagError(
            f"can't write {output}: " + ("it is a folder" if output.is_dir() else f"no folder {output.parent}")
        )
