"""`smoldiag cloud`: which instance this is, what it needs, what stands against it, and what to paste."""

import os
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
    RootOption,
    check_output,
    emit,
    failed,
    printed,
)
from smoldiag.errors import SmoldiagError

if TYPE_CHECKING:
    from smoldiag.facts import Host
    from smoldiag.findings import Report
    from smoldiag.render.json import Document

EXAMPLES = """\b
Examples:
  smoldiag cloud detect                            which cloud and instance this is, and by what it is told
  smoldiag cloud check                             this host and its variables against its profile
  smoldiag cloud check --profile aws-p5 --log nccl.log
  smoldiag cloud show aws-p5                       everything known of p5.48xlarge, with sources
  smoldiag cloud explain aws-p5 NCCL_PROTO         what it does there, and in which versions it is right
  smoldiag cloud apply azure-nd-h100-v5 --as kubernetes
  smoldiag cloud apply gcp-a3-mega --as shell --diff
  smoldiag cloud new --from-host > mine.toml       a profile of your own; folder: SMOLDIAG_PROFILES
"""

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    help="Cloud instances: recognise one, show what it needs, check a host against it, print what to set.",
)


class ListFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


class As(StrEnum):
    SHELL = "shell"
    NCCL_CONF = "nccl-conf"
    SLURM = "slurm"
    KUBERNETES = "kubernetes"
    DOCKER = "docker"


ListFormatOption = Annotated[ListFormat, typer.Option("--format", help="How to print it.")]
ProfileArgument = Annotated[
    str, typer.Argument(metavar="PROFILE", help="A profile's name, an instance's name, or a TOML file of your own.")
]
BundleOption = Annotated[
    Path | None, typer.Option(help="Look at the hosts of this archive of smoldiag bundle; no metadata request.")
]
NoMetadataOption = Annotated[
    bool, typer.Option("--no-metadata", help="Do not ask the cloud's metadata service (or SMOLDIAG_METADATA=off).")
]
NcclVersionOption = Annotated[
    str | None, typer.Option(help="Judge for this version of NCCL, e.g. 2.27.5. Without: the one that is found.")
]


@app.command("list")
def list_profiles(fmt: ListFormatOption = ListFormat.TEXT) -> None:
    """List the profiles: one per instance family."""
    from smoldiag import profiles
    from smoldiag.render import cloud as rendered

    found = rendered.listed(profiles.heads().values())
    emit(_json(found) if fmt is ListFormat.JSON else rendered.list_text(found), None)


@app.command()
def detect(
    root: RootOption = None,
    bundle: BundleOption = None,
    no_metadata: NoMetadataOption = False,
    fmt: ListFormatOption = ListFormat.TEXT,
) -> None:
    """Say which cloud and instance this is, and by what it is told.

    Firmware, PCI ids and files are read first; the metadata service is asked only where they name its cloud, for at
    most one second.
    """
    from smoldiag import cloud
    from smoldiag.render import cloud as rendered

    host = _hosts(root, bundle)[0]
    found = cloud.detected(host, environ=os.environ, ask=not (no_metadata or root or bundle))
    emit(_json(found) if fmt is ListFormat.JSON else rendered.detected_text(found), None)


@app.command()
def show(profile: ProfileArgument, fmt: ListFormatOption = ListFormat.TEXT) -> None:
    """Show a profile: hardware, settings with reasons and sources, what must not be set, expected bandwidths."""
    from smoldiag import profiles
    from smoldiag.render import cloud as rendered

    found = profiles.find(profile)
    emit(_json(found) if fmt is ListFormat.JSON else rendered.profile_text(found), None)


@app.command()
def explain(
    profile: ProfileArgument,
    variable: Annotated[str, typer.Argument(metavar="VARIABLE", help="The name of a variable, e.g. NCCL_PROTO.")],
    fmt: ListFormatOption = ListFormat.TEXT,
) -> None:
    """Say what a profile thinks of one variable, and in which versions it is right or wrong."""
    from smoldiag import cloud
    from smoldiag.render import cloud as rendered

    found = cloud.explained(profile, variable)
    emit(_json(found) if fmt is ListFormat.JSON else rendered.explained_text(found), None)


@app.command()
def check(
    profile: Annotated[
        str | None, typer.Option(help="Check against this profile, or TOML file. Without: the one of this host.")
    ] = None,
    nccl_version: NcclVersionOption = None,
    log: Annotated[
        list[str] | None, typer.Option(help="NCCL's log (NCCL_DEBUG=INFO): what was really chosen. Repeatable.")
    ] = None,
    pid: Annotated[
        int | None, typer.Option(help="Check the variables of this running process, not of this shell.", min=1)
    ] = None,
    root: RootOption = None,
    bundle: BundleOption = None,
    no_metadata: NoMetadataOption = False,
    fmt: FormatOption = Format.TEXT,
    output: OutputOption = None,
    everything: AllOption = False,
    fail_on: FailOnOption = FailOn.ERROR,
) -> None:
    """Check this host, its variables and a log against the profile of its instance.

    Found are variables that are missing, wrong, harmful, obsolete or redundant, files, GPUs and NICs that are missing,
    and a network that NCCL did not take. GPUs, NICs and files are judged only where this host is such an instance.
    """
    from smoldiag import cloud, doctor

    check_output(output)
    request = cloud.Request(
        profile=profile,
        nccl_version=doctor.version(nccl_version),
        logs=tuple(log or ()),
        ask=not (no_metadata or root or bundle or log),
        pid=pid,
    )
    report = cloud.check(_hosts(root, bundle), request, environ=os.environ, root=root)
    if fmt is not Format.TEXT or output:
        for note in report.notes:
            print(note, file=sys.stderr)
    emit(_report(report, fmt, everything=everything, colour=output is None), output)
    raise typer.Exit(int(failed({f.severity.value for f in report.findings}, fail_on)))


@app.command()
def apply(
    profile: ProfileArgument,
    kind: Annotated[As, typer.Option("--as", help="What to print.")] = As.SHELL,
    nccl_version: NcclVersionOption = None,
    write: Annotated[
        Path | None, typer.Option(help="Write it to this file, keeping what was there as FILE.bak.")
    ] = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="Print what differs from the variables of this environment instead.")
    ] = False,
) -> None:
    """Print what to source, mount or paste, each line with its reason, and what to unset. Changes nothing itself."""
    from smoldiag import doctor, profiles
    from smoldiag.collect import env
    from smoldiag.render import preset

    found = profiles.find(profile)
    versions = {"nccl": version} if (version := doctor.version(nccl_version)) else {}
    text = preset.difference(found, env.env(), versions) if diff else preset.rendered(found, kind.value, versions)
    if write is not None:
        _backup(write)
    emit(text, write)


@app.command()
def new(
    from_host: Annotated[
        bool, typer.Option("--from-host", help="Draft it from what this host, or --root, has.")
    ] = False,
    root: RootOption = None,
    no_metadata: NoMetadataOption = False,
    output: OutputOption = None,
) -> None:
    """Draft a profile of your own, as TOML to be completed."""
    from smoldiag import cloud

    if not from_host and root is None:
        raise SmoldiagError("what should it be drafted from?", hint="smoldiag cloud new --from-host")
    check_output(output)
    host = _hosts(root, None)[0]
    found = cloud.detected(host, environ=os.environ, ask=not (no_metadata or root))
    emit(cloud.draft(host, found), output)


def _hosts(root: Path | None, bundle: Path | None) -> "tuple[Host, ...]":
    from smoldiag import bundle as archives
    from smoldiag import cloud, doctor

    if root and bundle:
        raise SmoldiagError("--root and --bundle name different hosts", hint="type one of them")
    if bundle:
        hosts = archives.load([bundle]).hosts
    else:
        hosts = tuple(cloud.with_listed_gpus(h, root) for h in doctor.this_host(root=root).hosts)
    if not hosts:
        raise SmoldiagError(f"{bundle or root or 'this host'}: there are no facts of a host")
    return hosts


def _json(document: "Document") -> str:
    from smoldiag.render import json

    return json.document(document)


def _report(report: "Report", fmt: Format, *, everything: bool, colour: bool) -> str:
    looked_at = "; ".join(report.notes)
    if fmt is Format.JSON:
        return _json(report)
    if fmt is Format.MARKDOWN:
        from smoldiag.render import markdown

        return markdown.report(report, looked_at=looked_at)
    from smoldiag.render import text

    return printed(text.report(report, looked_at=looked_at, everything=everything), colour=colour)


def _backup(path: Path) -> None:
    """What is there now, under a name that is free."""
    if not path.exists():
        return
    free = next(
        p for number in range(1_000_000) if not (p := path.with_name(f"{path.name}.bak{number or ''}")).exists()
    )
    try:
        free.write_bytes(path.read_bytes())
    except OSError as error:
        raise SmoldiagError(f"can't keep {path} as {free}: {error.strerror}") from None
    print(f"kept the file that was there as {free}", file=sys.stderr)
