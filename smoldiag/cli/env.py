"""`smoldiag env`: variables, set in this process, another one, or a file."""

import sys
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
    from smoldiag.facts import Host
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
    if (
        len(pids) > 2
        or (target and pids)
        or (diff and (target or len(pids) > 1))
        or (bundle and (target or pids or diff))
    ):
        hint = "one of FILE, --pid N, --pid A --pid B, --diff FILE, --bundle FILE"
        raise SmoldiagError("too many things to look at", hint=hint)
    if bundle:
        raise typer.Exit(
            _judge_saved(bundle, nccl_version, fmt, output, fail_on, everything=everything, facts=with_facts)
        )
    if target and target != "-" and not Path(target).exists() and (spec := _named(target)):
        emit(_page(spec, root, fmt, colour=output is None), output)
        return
    if everything and not target and not pids and not diff:
        emit(_catalogue(fmt, colour=output is None), output)
        return
    if diff or len(pids) == 2:
        here = environment.of_process(root=root, pid=pids[0] if pids else None)
        there = environment.of_file(str(diff)) if diff else environment.of_process(root=root, pid=pids[1])
        code = _compare(here, there, nccl_version, fmt, output, fail_on)
    else:
        host = _host(target, root, pids[0] if pids else None)
        code = _judge(host, nccl_version, fmt, output, fail_on, everything=everything, facts=with_facts)
    raise typer.Exit(code)


def _host(target: str, root: Path | None, pid: int | None) -> "Host":
    from smoldiag import environment

    if target == "-":
        return environment.of_file("stdin", sys.stdin.read(environment.MOST_BYTES))
    return environment.of_file(target) if target else environment.of_process(root=root, pid=pid)


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


def _judge(
    host: "Host",
    nccl_version: str | None,
    fmt: Format,
    output: Path | None,
    fail_on: FailOn,
    *,
    everything: bool,
    facts: bool,
) -> int:
    from smoldiag import environment

    report = environment.report(host, nccl_version=nccl_version, facts=facts)
    seen = environment.looked_at(host, nccl_version=nccl_version)
    if fmt is Format.JSON:
        from smoldiag.render import json

        document = json.document(report)
    else:
        from smoldiag.render import variables

        rows = environment.rows(host, report.findings, nccl_version=nccl_version)
        document = (
            variables.as_markdown(report, rows, looked_at=seen)
            if fmt is Format.MARKDOWN
            else printed(variables.shown(report, rows, looked_at=seen, everything=everything), colour=output is None)
        )
    emit(document, output)
    return int(failed({f.severity.value for f in report.findings}, fail_on))


def _judge_saved(
    paths: list[Path],
    nccl_version: str | None,
    fmt: Format,
    output: Path | None,
    fail_on: FailOn,
    *,
    everything: bool,
    facts: bool,
) -> int:
    from smoldiag import bundle, environment

    hosts = bundle.load(paths).hosts
    if len(hosts) == 1:
        return _judge(hosts[0], nccl_version, fmt, output, fail_on, everything=everything, facts=facts)
    report = environment.report(*hosts, nccl_version=nccl_version, facts=facts)
    seen = f"variables of {len(hosts)} hosts"
    if fmt is Format.JSON:
        from smoldiag.render import json

        document = json.document(report)
    elif fmt is Format.MARKDOWN:
        from smoldiag.render import markdown

        document = markdown.report(report, looked_at=seen)
    else:
        from smoldiag.render import text

        document = printed(text.report(report, looked_at=seen, everything=everything), colour=output is None)
    emit(document, output)
    return int(failed({f.severity.value for f in report.findings}, fail_on))


def _compare(
    here: "Host", there: "Host", nccl_version: str | None, fmt: Format, output: Path | None, fail_on: FailOn
) -> int:
    from smoldiag import environment

    report = environment.compared(here, there, nccl_version=nccl_version)
    if fmt is Format.JSON:
        from smoldiag.render import json

        document = json.document(report)
    else:
        from smoldiag.render import variables

        found = environment.differences(here, there)
        document = printed(variables.differing(found, (here.name, there.name)), colour=output is None)
    emit(document, output)
    return int(failed({f.severity.value for f in report.findings}, fail_on))


def _page(spec: "VariableSpec", root: Path | None, fmt: Format, *, colour: bool) -> str:
    import msgspec

    from smoldiag import environment
    from smoldiag.render import variables

    if fmt is Format.JSON:
        return msgspec.json.format(msgspec.json.encode(spec), indent=2).decode() + "\n"
    found = environment.of_process(root=root).env
    set_here = found.find(spec.name) if found else None
    return printed(
        variables.page(
            spec,
            set_here=f"{spec.name}={set_here.value} ({set_here.origin})" if set_here else "not set",
            rules=environment.rules_about(spec.name),
        ),
        colour=colour,
    )


def _catalogue(fmt: Format, *, colour: bool) -> str:
    import msgspec

    from smoldiag.knowledge import variables
    from smoldiag.render import variables as rendered

    if fmt is Format.JSON:
        return msgspec.json.format(msgspec.json.encode(list(variables.specs().values())), indent=2).decode() + "\n"
    return printed(rendered.catalogue(variables.by_component()), colour=colour)
