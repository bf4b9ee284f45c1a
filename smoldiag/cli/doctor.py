"""`smoldiag doctor`: is this machine, and every machine of the job, set up right?"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smoldiag.cli.common import (
    AllOption,
    ContainerOption,
    FailOn,
    FailOnOption,
    HostfileOption,
    HostsOption,
    JobOption,
    Launcher,
    LauncherOption,
    MountOption,
    NodesOption,
    OutputOption,
    PythonOption,
    RootOption,
    SlurmArgsOption,
    SshCommandOption,
    TimeoutOption,
    check_output,
    emit,
    failed,
    printed,
)
from smoldiag.errors import SmoldiagError

if TYPE_CHECKING:
    from smoldiag.findings import Report

EXAMPLES = """\b
Examples:
  smoldiag doctor                             this host
  smoldiag doctor --hosts a,b,c               these hosts over ssh, and what differs between them
  smoldiag doctor --nodes all                 all hosts of the Slurm job that this is
  smoldiag doctor --job 4711                  the hosts of a running job, and its ranks
  smoldiag doctor --bundle a.zip b.zip        hosts that were saved with smoldiag bundle
  smoldiag doctor --only GPU,NIC --fail-on warning
  smoldiag doctor --as prolog                 for schedulers and monitors: hardware only, one line
"""


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"
    PROMETHEUS = "prometheus"


class Hook(StrEnum):
    PROLOG = "prolog"
    HEALTHCHECK = "healthcheck"
    NAGIOS = "nagios"
    PROBE = "k8s-probe"


HOOK_S = 8.0  # for reading; the whole command takes at most 10 s


def doctor(
    more_bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="More archives for --bundle.")
    ] = None,
    bundle: Annotated[
        list[Path] | None,
        typer.Option(
            help="Judge saved hosts: an archive of smoldiag bundle, a folder of them or a pattern. Repeatable."
        ),
    ] = None,
    root: RootOption = None,
    nodes: NodesOption = None,
    hosts: HostsOption = "",
    hostfile: HostfileOption = None,
    job: JobOption = None,
    launcher: LauncherOption = Launcher.AUTO,
    ssh_command: SshCommandOption = None,
    python: PythonOption = None,
    slurm_args: SlurmArgsOption = "",
    container: ContainerOption = None,
    mount: MountOption = None,
    timeout: TimeoutOption = 30.0,
    only: Annotated[str, typer.Option(help="Run these rules: codes or families, separated by commas.")] = "",
    ignore: Annotated[str, typer.Option(help="Leave out these rules: codes or families, separated by commas.")] = "",
    ignore_file: Annotated[
        Path | None, typer.Option(help="Findings to leave out, one a line: CODE @HOST,HOST # reason.")
    ] = None,
    nccl_version: Annotated[
        str | None, typer.Option(help="Judge for this version of NCCL, e.g. 2.27.5. Without: the one that is found.")
    ] = None,
    interface: Annotated[
        str | None, typer.Option(help="Judge as if the ranks were bound to this network interface, e.g. eth0.")
    ] = None,
    with_facts: Annotated[bool, typer.Option("--facts", help="Put the facts of the hosts into the JSON.")] = False,
    hook: Annotated[
        Hook | None,
        typer.Option(
            "--as",
            help="Be a hook of a scheduler or monitor: this host's hardware only, 10 s, one line, its exit codes.",
        ),
    ] = None,
    fmt: Annotated[Format, typer.Option("--format", help="How to print the report.")] = Format.TEXT,
    output: OutputOption = None,
    everything: AllOption = False,
    fail_on: FailOnOption = FailOn.ERROR,
) -> None:
    """Look at this host, or at those that are named, and say what is set up wrong.

    Passive: nothing is started on GPUs or networks. Exits with 0, or 1 where something was found from --fail-on on,
    2 for wrong usage, 3 where a host could not be reached.
    """
    from smoldiag import doctor as checkup
    from smoldiag.cli import gather

    check_output(output)
    if hook is not None:
        if bundle or more_bundles or nodes or hosts or hostfile or job:
            raise SmoldiagError(f"--as {hook.value} looks at this host alone", hint="leave the other hosts away")
        raise typer.Exit(answer(hook, only=only, ignore=ignore, ignore_file=ignore_file, root=root, output=output))
    options = checkup.Options(
        only=checkup.codes(only, option="--only"),
        ignore=checkup.codes(ignore, option="--ignore"),
        ignored=checkup.read_ignore_file(ignore_file),
        nccl_version=checkup.version(nccl_version),
        interface=interface,
        facts=with_facts,
    )
    asked = gather.Asked(
        command="doctor",
        bundles=[*(bundle or ()), *(more_bundles or ())],
        root=root,
        nodes=nodes,
        hosts=hosts,
        hostfile=hostfile,
        job=job,
        launcher=launcher.value,
        ssh_command=ssh_command,
        python=python,
        slurm_args=slurm_args,
        container=container,
        mounts=mount or (),
        timeout_s=timeout,
    )
    seen = gather.gathered(asked)
    report = checkup.judge(seen, options)
    looked_at = "; ".join(report.notes)
    if fmt is not Format.TEXT or output:
        print(looked_at, file=sys.stderr)
    emit(shown(report, fmt, looked_at=looked_at, everything=everything, colour=output is None), output)
    if report.verdict.value == "incomplete":
        raise typer.Exit(3)
    raise typer.Exit(int(failed({f.severity.value for f in report.findings}, fail_on)))


def answer(
    hook: Hook, *, only: str, ignore: str, ignore_file: Path | None, root: Path | None, output: Path | None
) -> int:
    """As a hook: print its line, give its exit code. No trouble of ours takes a node out of service."""
    import os

    from smoldiag import doctor as checkup
    from smoldiag.render import hooks

    os.environ["SMOLDIAG_METADATA"] = "off"  # no network
    chosen, left_out = checkup.codes(only, option="--only"), checkup.codes(ignore, option="--ignore")
    try:
        options = checkup.Options(
            families=checkup.HARDWARE, only=chosen, ignore=left_out, ignored=checkup.read_ignore_file(ignore_file)
        )
        report = checkup.judge(checkup.this_host(root=root, seconds=HOOK_S), options)
        line, code = hooks.line(report, hook.value), hooks.code(report, hook.value)
    except Exception as error:
        line, code = hooks.failure(f"{type(error).__name__}: {error}", hook.value)
    emit(line + "\n", output)
    return code


def shown(report: "Report", fmt: Format, *, looked_at: str, everything: bool, colour: bool) -> str:
    """The document in the format that was asked for."""
    if fmt is Format.JSON:
        from smoldiag.render import json

        return json.document(report)
    if fmt is Format.PROMETHEUS:
        from smoldiag.render import prometheus

        return prometheus.report(report)
    if fmt is Format.MARKDOWN:
        from smoldiag.render import markdown

        return markdown.report(report, looked_at=looked_at)
    from smoldiag.render import text

    return printed(text.report(report, looked_at=looked_at, everything=everything), colour=colour)
