"""`smoldiag explain`: from the files that a job left to the cause."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from smoldiag.errors import SmoldiagError

if TYPE_CHECKING:
    from smoldiag.collect.inputs import Found
    from smoldiag.explained import Explained


class Definition(StrEnum):
    OURS = "ours"
    HTA = "hta"


PlotOption = Annotated[
    Path | None,
    typer.Option("--plot", help="Draw the curves of what was read: .png, .svg or .pdf.", dir_okay=False),
]
PerfettoOption = Annotated[
    Path | None,
    typer.Option(
        help="Write one trace of all ranks for ui.perfetto.dev, on one clock, with the findings: .json or .json.gz.",
        dir_okay=False,
    ),
]

EXAMPLES = """\b
Examples:
  smoldiag explain slurm-4711.out                        one log of all ranks
  smoldiag explain logs/                                 a folder: logs per rank, dumps, tables; weights are left alone
  smoldiag explain node*.log fr_trace_* dmesg.txt        several kinds together
  kubectl logs -l job=train --prefix | smoldiag explain -
  smoldiag explain slurm-4711.out --format markdown      a text for an issue, redacted
  smoldiag explain rank0.json.gz rank1.json.gz           traces of torch.profiler, one per rank
  smoldiag explain traces/ --plot step.svg --perfetto all.json.gz   one step of all ranks, drawn and merged
  smoldiag explain run/ --bench bench.json               each collective against what the same size reached alone
  smoldiag explain metrics.csv --plot pace.png           speed and loss of a run, and their curves
  smoldiag explain nccl.log --facts                      the picture of the run
  smoldiag explain --job 4711                            what Slurm has of that job
"""


def explain(
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Logs, dumps, tables, or folders of them; - is standard input.", show_default=False),
    ] = None,
    job: Annotated[
        str | None, typer.Option(help="A Slurm job: its output, state and hosts, as scontrol and sacct have them.")
    ] = None,
    facts: Annotated[
        bool, typer.Option("--facts", help="Print what was read: versions, hosts, ranks, network, paths, timings.")
    ] = False,
    definition: Annotated[
        Definition, typer.Option(help="Of a trace's shares: ours, or HolisticTraceAnalysis' (hta).")
    ] = Definition.OURS,
    bench: Annotated[
        Path | None,
        typer.Option(
            help="Hold the collectives of a run or trace against this smoldiag.bench/1 (nccl-bench --format json)."
        ),
    ] = None,
    plot: PlotOption = None,
    perfetto: PerfettoOption = None,
    fmt: FormatOption = Format.TEXT,
    output: OutputOption = None,
    everything: AllOption = False,
    fail_on: FailOnOption = FailOn.ERROR,
) -> None:
    """Read what a job left behind and say what it died of, or why it crawls.

    Exits with 0, or 1 where something was found from --fail-on on, 2 where nothing could be read as anything known.
    """
    from smoldiag import trace_files
    from smoldiag.collect import inputs

    check_output(output)
    if plot is not None:
        from smoldiag.render.plot import check_path

        check_path(plot)
    if not paths and not job:
        raise SmoldiagError("nothing to explain", hint="name files or folders, - for standard input, or --job ID")
    found = None if job else inputs.find(paths or ())
    if found and not bench and trace_files.only(found):  # without loading all that logs need
        explained = trace_files.explain(found, with_facts=facts, hta=definition is Definition.HTA)
    else:
        from smoldiag import explain as explaining

        explained = explaining.explain(
            paths or (), with_facts=facts, job=job, definition=definition.value, bench=bench, found=found
        )
    if plot is not None or perfetto is not None:
        drawn(explained, found, plot=plot, perfetto=perfetto)
    emit(shown(explained, fmt, facts=facts, everything=everything, colour=output is None), output)
    raise typer.Exit(int(failed({f.severity.value for f in explained.report.findings}, fail_on)))


def drawn(explained: "Explained", found: "Found | None", *, plot: Path | None, perfetto: Path | None) -> None:
    """What was asked for of the curves and the merged trace. SmoldiagError where nothing of it has any."""
    from smoldiag import trace_files

    known = explained.known
    if plot and known.run:
        from smoldiag.render import plot_runs

        plot_runs.draw(known.run, plot)
        plot = None
    elif plot and known.series:
        from smoldiag.render import plot_series

        plot_series.draw(known.series, plot)
        plot = None
    if plot is None and perfetto is None:
        return
    sources = trace_files.among(found) if found and known.trace else []
    if not known.trace or not sources:
        what = "--plot: nothing that was read has a curve" if plot else "--perfetto: no trace of a profiler was named"
        raise SmoldiagError(
            what, hint="name the traces of the ranks" + (", a run folder, or the metrics of a run" if plot else "")
        )
    traces, _ = trace_files.load(sources)
    if plot:
        from smoldiag.model.timeline import timeline
        from smoldiag.render import plot_traces

        line = timeline(traces)
        if line is None:
            raise SmoldiagError("--plot: the traces have no event of a GPU")
        plot_traces.draw(known.trace, line, plot)
    if perfetto:
        from smoldiag import merged_trace

        if not merged_trace.write(perfetto, sources, traces, explained.report.findings):
            print(f"{perfetto}: devices, steps and annotations only; all events would be too many", file=sys.stderr)


def shown(explained: "Explained", fmt: Format, *, facts: bool, everything: bool, colour: bool) -> str:
    """The document in the format that was asked for."""
    if fmt is Format.JSON:
        from smoldiag.render import json

        return json.document(explained.report)
    from smoldiag.render import explained as rendered

    if fmt is Format.MARKDOWN:
        return rendered.markdown(explained)
    return printed(rendered.text(explained, facts=facts, everything=everything), colour=colour)
