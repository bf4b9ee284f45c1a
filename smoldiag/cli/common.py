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


FormatOption = Annotated[Format, typer.Option("--format", help="How to print the report.")]
OutputOption = Annotated[Path | None, typer.Option("--output", help="Write the report to this file, not to stdout.")]
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
