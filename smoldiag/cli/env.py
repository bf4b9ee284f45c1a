"""`smoldiag env`: variables, set in this process, another one, or a file."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smoldiag.cli.common import (
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
    from rich.console import RenderableType

    from smoldiag.facts import Host
    from smoldiag.findings import Report
    from smoldiag.knowledge.variables import VariableSpec

EXAMPLES = """\b
Examples:
  smoldiag env                                what is set here, where it comes from, what it does, whether it is right
  smoldiag env train.sbatch                   what a script sets; Dockerfiles, Kubernetes YAML and nccl.conf too
  echo 'mpirun -x NCCL_DEBUG=INFO ./a' | smoldiag env -
  smoldiag env --nccl-version 2.27.5          judged for this release
  smoldiag env --pid 4242                     of a rank that runs on this host
  smoldiag env --pid 4242 --pid 4243          what differs between two ranks
  smoldiag env --diff train.sbatch            what differs between here and a file
  smoldiag env NCCL_IB_HCA                    one variable
  smoldiag env --all                          every variable that is known
"""


def env(
    target: Annotated[
        str, typer.Argument(metavar="[FILE|NAME]", help="A file to read, - for standard input, or a variable's name.")
    ] = "",
    pid: Annotated[
        list[int] | None, typer.Option(help="A running process instead of this one. Twice: compare them.")
    ] = None,
    bundle: Annotated[
        list[Path] | None, typer.Option(help="Judge the variables of saved hosts (smoldiag bundle). Repeatable.")
    ] = None,
    diff: Annotated[Path | None, typer.Option(help="Compare with what this file sets.")] = None,
    root: RootOption = None,
    nccl_version: Annotated[
        str | None, typer.Option(help="Judge for this version of NCCL, e.g. 2.27.5. Without: the one that is found.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="List every variable that is known; with a file, all findings in full.")
    ] = False,
    with_facts: Annotated[bool, typer.Option("--facts", help="Put the variables into the JSON.")] = False,
    fmt: FormatOption = Format.TEXT,
    output: OutputOption = None,
    fail_on: FailOnOption = FailOn.ERROR,
) -> None:
    """Say which variables are set for training, where they come from, what they do, and which should go.

    Reads nothing but files. Exits with 0, or 1 where something was found from --fail-on on, 2 for wrong usage.
    """
    from smoldiag import environment
    from smoldiag.knowledge import variables

    check_output(output)
    if nccl_version is not None and variables.release(nccl_version) is None:
        raise SmoldiagError(f"--nccl-version {nccl_version[:40]!r} is no version", hint="e.g. 2.27.5")
    pids = pid or []
    places = sum(map(bool, (target, pids, bundle)))
    if places > 1 or len(pids) > 2 or (diff and (target or bundle or len(pids) > 1)):
        hint = "one of FILE, --pid N, --pid A --pid B, --diff FILE, --bundle FILE"
        raise SmoldiagError("too many things to look at", hint=hint)
    asked = Asked(nccl_version, fmt, output, fail_on, everything, with_facts)
    if target and target != "-" and not Path(target).exists() and (spec := _named(target)):
        emit(_page(spec, root, asked), output)
    elif everything and not places and not diff:
        emit(_catalogue(asked), output)
    elif diff or len(pids) == 2:
        here = environment.of_process(root=root, pid=pids[0] if pids else None)
        there = environment.of_file(str(diff)) if diff else environment.of_process(root=root, pid=pids[1])
        raise typer.Exit(_compare(here, there, asked))
    else:
        raise typer.Exit(_judge(_hosts(target, bundle or [], root, pids[0] if pids else None), asked))


@dataclass(frozen=True)
class Asked:
    """How to judge and to answer, as typed."""

    nccl_version: str | None
    fmt: Format
    output: Path | None
    fail_on: FailOn
    everything: bool
    facts: bool

    def printed(self, renderable: "RenderableType") -> str:
        return printed(renderable, colour=self.output is None)

    def exit_code(self, report: "Report") -> int:
        return int(failed({f.severity.value for f in report.findings}, self.fail_on))


def _hosts(target: str, saved: list[Path], root: Path | None, pid: int | None) -> "Sequence[Host]":
    from smoldiag import bundle, environment

    if saved:
        return bundle.load(saved).hosts
    if target == "-":
        return [environment.of_file("stdin", sys.stdin.read(environment.MOST_BYTES))]
    return [environment.of_file(target) if target else environment.of_process(root=root, pid=pid)]


def _named(name: str) -> "VariableSpec | None":
    """The variable, or a word on what may have been meant; None for what looks like a path."""
    from smoldiag.knowledge import variables

    if not name.replace("_", "").isalnum() or ("_" not in name and name.upper() not in variables.specs()):
        return None
    if spec := variables.find(name.upper()):
        return spec
    if name.upper() != name:
        return None
    near = variables.misspelt(name) or variables.nearest(name)
    raise SmoldiagError(
        f"no variable {name} is known, and no such file is here",
        hint=f"did you mean {near.name}?" if near else "smoldiag env --all lists those that are known",
    )


def _judge(hosts: "Sequence[Host]", asked: Asked) -> int:
    from smoldiag import environment

    report = environment.report(*hosts, nccl_version=asked.nccl_version, facts=asked.facts)
    if asked.fmt is Format.JSON:
        from smoldiag.render import json

        document = json.document(report)
    else:
        from smoldiag.render import variables

        seen = environment.looked_at(*hosts, nccl_version=asked.nccl_version)
        rows = environment.rows(hosts[0], report.findings, nccl_version=asked.nccl_version) if len(hosts) == 1 else ()
        document = (
            variables.as_markdown(report, rows, looked_at=seen)
            if asked.fmt is Format.MARKDOWN
            else asked.printed(variables.shown(report, rows, looked_at=seen, everything=asked.everything))
        )
    emit(document, asked.output)
    return asked.exit_code(report)


def _compare(here: "Host", there: "Host", asked: Asked) -> int:
    from smoldiag import environment

    report = environment.compared(here, there, nccl_version=asked.nccl_version)
    if asked.fmt is Format.JSON:
        from smoldiag.render import json

        document = json.document(report)
    else:
        from smoldiag.render import variables

        found = environment.differences(here, there)
        document = asked.printed(variables.differing(found, (here.name, there.name)))
    emit(document, asked.output)
    return asked.exit_code(report)


def _page(spec: "VariableSpec", root: Path | None, asked: Asked) -> str:
    import msgspec

    from smoldiag import environment
    from smoldiag.render import variables

    if asked.fmt is Format.JSON:
        return msgspec.json.format(msgspec.json.encode(spec), indent=2).decode() + "\n"
    found = environment.of_process(root=root).env
    set_here = found.find(spec.name) if found else None
    return asked.printed(
        variables.page(
            spec,
            set_here=f"{spec.name}={set_here.value} ({set_here.origin})" if set_here else "not set",
            rules=environment.rules_about(spec.name),
        )
    )


def _catalogue(asked: Asked) -> str:
    import msgspec

    from smoldiag.knowledge import variables
    from smoldiag.render import variables as rendered

    if asked.fmt is Format.JSON:
        return msgspec.json.format(msgspec.json.encode(list(variables.specs().values())), indent=2).decode() + "\n"
    return asked.printed(rendered.catalogue(variables.by_component()))
