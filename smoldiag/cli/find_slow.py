"""`smoldiag find-slow`: which host, link or rail is slow?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smoldiag.cli.common import (
    AllOption,
    FailOn,
    FailOnOption,
    Format,
    FormatOption,
    Launcher,
    OutputOption,
    check_output,
    emit,
    failed,
    printed,
)
from smoldiag.cli.launching import (
    Backend,
    BackendOption,
    BusyOkOption,
    ContainerOption,
    DryRunOption,
    HostfileOption,
    HostsOption,
    InterfaceOption,
    LauncherOption,
    MountOption,
    NodesOption,
    PythonOption,
    RanksPerNodeOption,
    SlurmArgsOption,
    SshCommandOption,
    load_ahead,
)

if TYPE_CHECKING:
    from smoldiag.findings import Report

EXAMPLES = """\b
Examples:
  smoldiag find-slow                               all hosts of the job that this is
  smoldiag find-slow --hosts a,b,c,d --interface eth0
  smoldiag find-slow --nodes 64 --exhaustive       every pair, and with that every link
  smoldiag find-slow pairs.csv                     somebody's table: two hosts and a rate in each line
  smoldiag find-slow nccl-*.out                    a sweep over node counts: which node joined when it fell?
"""


def find_slow(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            help="Tables of pairs, sweeps over node counts, saved benches. Without: measure.", show_default=False
        ),
    ] = None,
    nodes: NodesOption = None,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Measure every pair: with N hosts N-1 rounds, and one more.")
    ] = False,
    budget: Annotated[float, typer.Option(help="Seconds for one direction of a pair.", min=0.1, max=60)] = 1.0,
    ranks_per_node: RanksPerNodeOption = None,
    launcher: LauncherOption = Launcher.AUTO,
    backend: BackendOption = Backend.AUTO,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds after which a pair counts as hung.", min=5, max=3600)
    ] = 20.0,
    interface: InterfaceOption = None,
    hosts: HostsOption = "",
    hostfile: HostfileOption = None,
    ssh_command: SshCommandOption = None,
    python: PythonOption = None,
    slurm_args: SlurmArgsOption = "",
    container: ContainerOption = None,
    mount: MountOption = None,
    busy_ok: BusyOkOption = False,
    facts: Annotated[bool, typer.Option("--facts", help="Every pair in the JSON, however many there are.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the pairs as a heat map into this .png or .svg.")] = None,
    fmt: FormatOption = Format.TEXT,
    output: OutputOption = None,
    everything: AllOption = False,
    fail_on: FailOnOption = FailOn.ERROR,
    dry_run: DryRunOption = False,
) -> None:
    """Find the slow or broken host, link or rail: measure pairs of hosts in few rounds, or read a table.

    Exits with 0, or 1 where something was found from --fail-on on, 2 for wrong usage, 3 where it was not finished.
    """
    from smoldiag import find_slow as finding

    check_output(output)
    if plot:
        from smoldiag.render import plot as plots

        plots.check_path(plot)
    if files:
        report, pairs = finding.of_files(files)
    else:
        import os

        from smoldiag import bench, launch
        from smoldiag.cli import progress

        named_hosts, slots = bench.hosts(hosts, hostfile)
        options = finding.Options(
            exhaustive=exhaustive,
            budget_s=budget,
            deadline_s=max(timeout, 2 * budget + finding.EXTRA_S),
            with_pairs=facts,
        )
        request = launch.Request(
            program="benchmarks.crew",
            command="find-slow",
            survey=launch.Survey(seconds=timeout),
            nodes=nodes,
            ranks_per_node=ranks_per_node or slots,
            backend=backend.value,
            hosts=named_hosts,
            ssh_command=ssh_command,
            python=python,
            interface=interface,
            timeout_s=timeout,
            slurm_args=bench.words(slurm_args, option="--slurm-args"),
            container=container,
            mounts=tuple(mount or ()),
            busy_ok=busy_ok,
        )
        choice = launch.choose(launcher.value, request, os.environ)
        plan = finding.in_words(choice.nodes, options)
        if dry_run:
            print("\n".join([f"launcher {choice.launcher}: {choice.why}", *choice.commands, plan]))
            return
        load_ahead("smoldiag.find_slow", every_rule=True)
        with progress.shown(choice, plan=plan, quiet=launch.is_silent(choice, os.environ)) as on_event:
            search, finished = finding.run(choice, request, options, on_event)
        if not finished.reporting:
            raise typer.Exit(finished.exit_code)
        report, pairs = finding.judge(search, finished), search.table.pairs
    emit(shown(report, fmt, everything=everything, colour=output is None), output)
    if plot and pairs:
        plots.pairs(pairs, plot)
    if report.verdict.value == "incomplete":
        raise typer.Exit(3)
    raise typer.Exit(int(failed({f.severity.value for f in report.findings}, fail_on)))


def shown(report: "Report", fmt: Format, *, everything: bool, colour: bool) -> str:
    """The document in the format that was asked for."""
    from smoldiag.render import json, slow

    if fmt is Format.JSON:
        return json.document(report)
    if fmt is Format.MARKDOWN:
        return slow.markdown(report)
    return printed(slow.text(report, everything=everything), colour=colour)
