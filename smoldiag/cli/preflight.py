"""`smoldiag preflight`: may this cluster start the job, and which hosts must stay out?"""

import re
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smoldiag.cli.common import (
    AllOption,
    FailOn,
    FailOnOption,
    Launcher,
    OutputOption,
    check_output,
    emit,
    failed,
    printed,
)
from smoldiag.cli.doctor import Format
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
from smoldiag.errors import SmoldiagError

if TYPE_CHECKING:
    from smoldiag.findings import PreflightReport

REACH_S = 15.0  # for a host to answer; also how long an agent goes on without its head
EXAMPLES = """\b
Examples:
  smoldiag preflight                               all hosts of the job that this is, else this host
  smoldiag preflight --hosts a,b,c --level standard
  smoldiag preflight --nodes 66 --need 64 --nodelist-file good.txt && srun -w ./good.txt train.sh
  smoldiag preflight --exclude-file bad.txt; sbatch --exclude=./bad.txt train.sbatch
"""


class Level(StrEnum):
    QUICK = "quick"
    STANDARD = "standard"
    DEEP = "deep"


def preflight(
    nodes: NodesOption = None,
    need: Annotated[
        int | None, typer.Option(help="Hosts that the job needs: GO with so many good ones. Without: all.", min=1)
    ] = None,
    level: Annotated[
        Level, typer.Option(help="For up to 64 hosts: quick takes at most 60 s, standard 5 min, deep 30 min.")
    ] = Level.QUICK,
    budget: Annotated[
        float | None, typer.Option(help="Seconds in all, instead of the level's.", min=10, max=86_400)
    ] = None,
    ranks_per_node: RanksPerNodeOption = None,
    launcher: LauncherOption = Launcher.AUTO,
    backend: BackendOption = Backend.AUTO,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds that a host may take to answer.", min=5, max=3600)
    ] = REACH_S,
    interface: InterfaceOption = None,
    master_port: Annotated[
        int, typer.Option(help="The port at which the ranks of the job will meet.", min=1, max=65_535)
    ] = 29_500,
    hosts: HostsOption = "",
    hostfile: HostfileOption = None,
    ssh_command: SshCommandOption = None,
    python: PythonOption = None,
    slurm_args: SlurmArgsOption = "",
    container: ContainerOption = None,
    mount: MountOption = None,
    profile: Annotated[
        str | None, typer.Option(help="The instance to compare with, e.g. p5.48xlarge; auto: what is recognised.")
    ] = "auto",
    fsdp: Annotated[
        str | None, typer.Option(help="A model (SmolLM3-3B ...) or an HF config.json: measure what FSDP of it sends.")
    ] = None,
    path: Annotated[
        Path | None, typer.Option(help="Also measure the storage of this folder, from all hosts at once.")
    ] = None,
    trainer: Annotated[
        bool, typer.Option("--trainer", help="Also train 20 steps, and the last ones again from a checkpoint.")
    ] = False,
    script: Annotated[
        Path | None, typer.Option(help="Also read this job script, and say what in it loses a run.")
    ] = None,
    criteria_file: Annotated[
        Path | None,
        typer.Option("--criteria", help="Acceptance: requirements for each node (TOML or JSON), with certificates."),
    ] = None,
    history_folder: Annotated[
        Path | None, typer.Option("--history", help="Keep each run as a file in this folder, and judge by it.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="With --history: print its table of nodes, and end.")] = False,
    repeat: Annotated[
        str, typer.Option(help="Again and again for so long: 90s, 30m, 2h. What befalls a host once counts.")
    ] = "",
    busy_ok: BusyOkOption = False,
    nodelist_file: Annotated[
        Path | None, typer.Option(help="Write the hosts for the job here, one per line, for srun -w ./FILE.")
    ] = None,
    exclude_file: Annotated[
        Path | None, typer.Option(help="Write the hosts to leave out here, one per line, for --exclude=./FILE.")
    ] = None,
    fmt: Annotated[Format, typer.Option("--format", help="How to print the report.")] = Format.TEXT,
    output: OutputOption = None,
    everything: AllOption = False,
    fail_on: FailOnOption = FailOn.ERROR,
    dry_run: DryRunOption = False,
) -> None:
    """Try the hosts of a job, stage by stage, and say GO or NO-GO; name the hosts to leave out.

    Exits with 0 for GO, 1 for NO-GO or for what was found from --fail-on on, 2 for wrong usage, 3 where it was not
    finished.
    """
    import os

    from smoldiag import bench, criteria, environment, history, launch, preflight
    from smoldiag.cli import progress
    from smoldiag.model import exclusion

    for file in (output, nodelist_file, exclude_file):
        check_output(file)
    if show:
        emit(table_of(history_folder, fmt, colour=output is None), output)
        return
    repeat_s = seconds_of(repeat)
    wanted = criteria.load(criteria_file) if criteria_file else None
    if script:
        environment.job_script(str(script))  # what is no script is said before anything is started
    named_hosts, slots = bench.hosts(hosts, hostfile)
    options = preflight.Options(
        level=level.value,
        budget_s=budget,
        nodes=nodes,
        need=need,
        master_port=master_port,
        profile=bench.known_profile(None if profile == "auto" else profile),
        step=bench.step(model=fsdp, params=None, layers=None, ddp_bucket_mb=None),
        path=path,
        trainer=trainer,
        script=script,
    )
    request = launch.Request(
        program="benchmarks.crew",
        command="preflight",
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
    planned = preflight.plan(options, nodes=choice.nodes)
    if dry_run:
        print("\n".join([f"launcher {choice.launcher}: {choice.why}", *choice.commands, preflight.in_words(planned)]))
        return
    load_ahead("smoldiag.clearance", every_rule=True)
    quiet = launch.is_silent(choice, os.environ)
    reports: list[PreflightReport] = []
    until = time.monotonic() + repeat_s
    while not reports or time.monotonic() < until:
        with progress.shown(choice, plan=preflight.in_words(planned), quiet=quiet) as on_event:
            run, finished = preflight.run(choice, request, options, planned, on_event)
        if not finished.reporting:
            raise typer.Exit(finished.exit_code)
        from smoldiag import clearance

        past = history.read(history_folder) if history_folder and history_folder.is_dir() else None
        beside = clearance.Beside(criteria=wanted, history=past, script=script)
        reports.append(clearance.judge(run, finished, asked=choice.hosts or named_hosts[: choice.nodes], beside=beside))
        if history_folder:
            of_hosts, _ = clearance.figures(run, finished)
            history.record(
                history_folder,
                clearance.past_run(reports[-1], of_hosts, job=os.environ.get("SLURM_JOB_ID", "")),
            )
        if repeat_s:
            progress.say(f"run {len(reports)}: {reports[-1].preflight.decision.value}")
        if finished.launch.interrupted:
            break
    report = clearance.merged(reports)
    if nodelist_file:
        emit(exclusion.host_file(report.preflight.nodelist), nodelist_file)
    if exclude_file:
        emit(exclusion.host_file(report.preflight.exclude), exclude_file)
    emit(shown(report, fmt, everything=everything, colour=output is None), output)
    raise typer.Exit(exit_code(report, fail_on))


def seconds_of(text: str) -> float:
    """90s, 30m, 2h; 0 for nothing."""
    match = re.fullmatch(r"(\d{1,6})([smh]?)", text) if text else None
    if text and match is None:
        raise SmoldiagError(f"--repeat {text[:20]!r} is no duration", hint="e.g. 90s, 30m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "": 1}[match[2]] if match else 0.0


def table_of(folder: Path | None, fmt: Format, *, colour: bool) -> str:
    """Of the nodes over earlier runs."""
    from smoldiag import history
    from smoldiag.render import acceptance

    if folder is None:
        raise SmoldiagError("--show needs a folder", hint="--history DIR")
    found = history.read(folder)
    if fmt is Format.JSON:
        return acceptance.history_as_json(found)
    if fmt is Format.MARKDOWN:
        return acceptance.history_as_markdown(found)
    return printed(acceptance.history(found), colour=colour)


def exit_code(report: "PreflightReport", fail_on: FailOn) -> int:
    """NO-GO is 1 unless nothing shall fail; a finding on a host that is not needed stops nobody."""
    if report.verdict.value == "incomplete":
        return 3
    severities = {report.verdict.value} - {"ok"}
    return int(failed(severities, fail_on))


def shown(report: "PreflightReport", fmt: Format, *, everything: bool, colour: bool) -> str:
    """The document in the format that was asked for."""
    if fmt is Format.JSON:
        from smoldiag.render import json

        return json.document(report)
    if fmt is Format.PROMETHEUS:
        from smoldiag.render import prometheus

        return prometheus.preflight(report)
    from smoldiag.render import preflight

    if fmt is Format.MARKDOWN:
        return preflight.markdown(report)
    return printed(preflight.text(report, everything=everything), colour=colour)
