"""`smoldiag bundle`: facts of hosts and named logs in one redacted archive."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from smoldiag.cli.common import (
    ContainerOption,
    HostfileOption,
    HostsOption,
    JobOption,
    Launcher,
    LauncherOption,
    MountOption,
    NodesOption,
    PythonOption,
    RootOption,
    SlurmArgsOption,
    SshCommandOption,
    TimeoutOption,
    check_output,
)

EXAMPLES = """\b
Examples:
  smoldiag bundle host.zip                          this host
  smoldiag bundle job.zip --hosts a,b --log /tmp/nccl.log
  smoldiag bundle job.zip --job 4711 --anonymise    of a running job, without names
  smoldiag doctor --bundle job.zip                  the report on it, anywhere
"""


def bundle(
    file: Annotated[Path, typer.Argument(help="The archive to write, e.g. host.zip.")],
    anonymise: Annotated[
        bool,
        typer.Option("--anonymise", help="Put pseudonyms for hosts, addresses, users, ids and paths."),
    ] = False,
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
    log: Annotated[
        list[str] | None, typer.Option(help="A log to put in, from each host where it exists. Repeatable.")
    ] = None,
) -> None:
    """Save facts of this host, or of those that are named, for doctor and others to read elsewhere.

    Secrets are taken out of everything that is saved. Exits with 0, 2 for wrong usage, 3 where a host could not be
    reached: the archive has the others.
    """
    from smoldiag import bundle as archives
    from smoldiag import doctor as checkup
    from smoldiag.cli import gather

    check_output(file)
    asked = gather.Asked(
        command="bundle",
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
        logs=tuple(log or ()),
    )
    seen = gather.gathered(asked)
    archives.save(seen, file, anonymise=anonymise, users=gather.user_names())
    print(f"{checkup.looked_at(seen)}; {archives.logs_in_words(seen)}; saved in {file}", file=sys.stderr)
    raise typer.Exit(3 if checkup.is_incomplete(seen) else 0)
