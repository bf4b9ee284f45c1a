"""`smoldiag compare A B`: what changed, and what got worse beyond noise."""

from pathlib import Path
from typing import Annotated

import typer

from smoldiag.cli.common import (
    AllOption,
    FailOn,
    FailOnOption,
    Format,
    FormatOption,
    OutputOption,
    check_output,
    emit,
    failed,
    printed,
)

EXAMPLES = """\b
Examples:
  smoldiag compare monday/ tuesday/           two run folders: which part of the step grew, and which settings changed
  smoldiag compare before.json after.json     two benches (smoldiag.bench/1), reports, or facts of a host
  smoldiag compare a.zip b.zip                two bundles: versions, variables, GPUs, NICs, limits
  smoldiag compare old.log new.log            NCCL logs, nccl-tests tables, step logs, CSV files
  smoldiag compare a.sbatch b.sbatch          what two scripts set
  smoldiag compare a/ b/ --plot both.png
"""


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="How it was: a file or a folder; - is standard input.")],
    b: Annotated[str, typer.Argument(metavar="B", help="How it is now: of the same kind.")],
    facts: Annotated[bool, typer.Option("--facts", help="Put all that was read of both sides into the JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw both sides into this .png, .svg or .pdf: steps, losses, bandwidths.")
    ] = None,
    fmt: FormatOption = Format.TEXT,
    output: OutputOption = None,
    everything: AllOption = False,
    fail_on: FailOnOption = FailOn.ERROR,
) -> None:
    """Say what changed between two of a kind, likely causes first, and whether a difference is more than noise.

    Exits with 0, or 1 where something was found from --fail-on on, 2 where a side can't be read or they are not of a
    kind.
    """
    from smoldiag import compare as comparing
    from smoldiag.render import compared as rendered

    check_output(output)
    if plot:
        from smoldiag.render import plot as plotted

        plotted.check_path(plot)
    found = comparing.compare(a, b, with_facts=facts)
    if plot:
        plotted.both(found, plot)
    if fmt is Format.JSON:
        from smoldiag.render import json

        document = json.document(found.report)
    elif fmt is Format.MARKDOWN:
        document = rendered.markdown(found)
    else:
        document = printed(rendered.text(found, everything=everything), colour=output is None)
    emit(document, output)
    raise typer.Exit(int(failed({f.severity.value for f in found.report.findings}, fail_on)))
