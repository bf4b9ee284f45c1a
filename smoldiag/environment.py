"""env between its facts and its report: whose variables, what is known of each, what differs between two."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from smoldiag import __version__, rules
from smoldiag.collect import env as collect
from smoldiag.collect import files, gpus, libraries, nics, system, versions
from smoldiag.errors import SmoldiagError
from smoldiag.facts import Cluster, Cpu, Env, Host, Variable
from smoldiag.facts.script import Script
from smoldiag.findings import Check, Finding, Report, Severity, ranked, verdict
from smoldiag.knowledge import variables
from smoldiag.knowledge.variables import VariableSpec
from smoldiag.parse import script
from smoldiag.rules import Known
from smoldiag.rules.env_reading import version_of

LIVE = Path("/")
MOST_BYTES = 4 << 20  # of a script
FAMILY = "ENV"
BETWEEN = "ENV05"  # rules that compare hosts, and so two processes
OF_LAUNCHERS = ("SLURM_", "OMPI_", "PMI_")
NOT_A_SCRIPT = re.compile(rb"[\x00-\x08\x0e-\x1f]")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A variable that is set, and all that is said of it."""

    variable: Variable
    spec: VariableSpec | None  # None: nobody knows it
    default: str  # of the release here, where it is known
    verdict: str  # ok | info | warning | error | unknown
    code: str = ""  # of the finding


@dataclass(frozen=True, kw_only=True)
class Difference:
    name: str
    here: str | None  # None: not set
    there: str | None
    must_match: bool


def of_process(*, root: Path | None = None, pid: int | None = None) -> Host:
    """Variables of this process, or of another one, with what the rules hold them against. No NVML, no commands."""
    place = root or LIVE
    if not place.is_dir():
        raise SmoldiagError(f"--root {place} is no folder")
    try:
        found = collect.env(root=place, pid=pid)
    except OSError as error:
        raise SmoldiagError(f"--pid {pid}: {error}", hint="name a process of yours that runs on this host") from None
    sites = versions.sites(place, os.environ, libraries.mapped_files(place, pid) if pid else [])
    loaded = libraries.libraries(place, os.environ, sites, pid)
    return Host(
        name=f"process {pid}" if pid else system.names(os.environ, place)[0],
        env=found,
        nics=nics.nics(place),
        gpus=gpus.listed(place),
        cpu_count=len(os.sched_getaffinity(pid or 0)) if place == LIVE else None,
        cpu=Cpu(threads=os.cpu_count()) if place == LIVE else None,
        versions=versions.versions(place, sites, loaded),
    )


def of_file(path: str, text: str | None = None) -> Host:
    """What a file sets, for whatever host it will run on. `text`: its content, where it was read already."""
    if text is None:
        text = _read(path)
    nobody = dict.fromkeys(("nics", "gpus", "cpu_count", "cpu", "versions"), "a file does not tell where it will run")
    return Host(name=path, env=script.parse(text, file=path), unread=nobody)


def job_script(path: str) -> Script:
    """What a job script would run. Raises SmoldiagError for what is no script."""
    return script.commands(_read(path), file=path)


def _read(path: str) -> str:
    where = Path(path)
    if where.is_dir():
        raise SmoldiagError(f"{path} is a folder", hint="name a script, a Dockerfile or a YAML file")
    content = files.content(where, MOST_BYTES + 1)
    if content is None:
        raise SmoldiagError(f"{path} can't be read", hint="a file, or the name of a variable: smoldiag env NCCL_IB_HCA")
    if len(content) > MOST_BYTES or NOT_A_SCRIPT.search(content[:4096]):
        raise SmoldiagError(f"{path} is no script", hint="a shell script, a Dockerfile, YAML, or - for standard input")
    return content.decode(errors="replace")


def report(*hosts: Host, nccl_version: str | None = None, facts: bool = False) -> Report:
    """One finding per variable that deserves one."""
    hosts = tuple(_as_asked(host, nccl_version) for host in hosts)
    apart = () if len(hosts) > 1 else (BETWEEN,)
    outcomes = tuple(rules.run(Known(cluster=Cluster(hosts=hosts)), rules.select((FAMILY,), apart)))
    found = one_per_variable(ranked(tuple(f for o in outcomes for f in o.findings)))
    if all(host.env is not None and not host.env.complete for host in hosts):  # a file is no host
        found = tuple(replace(f, where=replace(f.where, hosts=())) for f in found)
    told = {"variables": msgspec.to_builtins([row for host in hosts for row in rows(host, found)])} if facts else None
    return _report("env", found, rules.checks(outcomes), told)


def _as_asked(host: Host, nccl_version: str | None) -> Host:
    return replace(host, versions={**(host.versions or {}), "nccl": nccl_version}) if nccl_version else host


def one_per_variable(found: Sequence[Finding]) -> tuple[Finding, ...]:
    """On each host the first of each, which is the worst: an old name that caps channels is one thing to change."""
    kept: list[Finding] = []
    covered: dict[str, set[str]] = {}
    for f in found:
        hosts = set(f.where.hosts)
        if f.code.startswith(BETWEEN) or not f.subject:
            kept.append(f)
        elif not hosts or hosts - covered.get(f.subject, set()):
            kept.append(f)
            covered.setdefault(f.subject, set()).update(hosts)
    return tuple(kept)


def _report(
    command: str, found: tuple[Finding, ...], checks: tuple[Check, ...], told: Mapping[str, object] | None
) -> Report:
    return Report(
        command=command,
        version=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        verdict=verdict(found),
        findings=found,
        checks=checks,
        facts=told,
    )


def rows(host: Host, found: Iterable[Finding], *, nccl_version: str | None = None) -> tuple[Row, ...]:
    """Every variable that is set, the worst first; what a launcher says of the job is no setting."""
    host = _as_asked(host, nccl_version)
    by_name = {f.subject: f for f in found}
    listed = [_row(v, by_name.get(v.name), host) for v in host.env or () if not v.name.startswith(OF_LAUNCHERS)]
    order = {"error": 0, "warning": 1, "info": 2, "ok": 3, "unknown": 4}
    return tuple(sorted(listed, key=lambda r: (order[r.verdict], r.variable.name)))


def _row(v: Variable, f: Finding | None, host: Host) -> Row:
    spec = variables.find(v.name)
    return Row(
        variable=v,
        spec=spec,
        default=_default(spec, host) if spec else "",
        verdict=f.severity.value if f else "ok" if spec else "unknown",
        code=f.code if f else "",
    )


def _default(spec: VariableSpec, host: Host) -> str:
    version = version_of(spec, host.versions)
    known = variables.default_at(spec, version) if version and spec.defaults else None
    return known if known is not None and _integer(known) not in (-1, -2) else spec.default or "not set"


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def looked_at(*hosts: Host, nccl_version: str | None = None) -> str:
    """What the report rests on: a sentence without its full stop."""
    if len(hosts) > 1:
        return f"variables of {len(hosts)} hosts"
    host = _as_asked(hosts[0], nccl_version)
    env = host.env or Env()
    count = sum(not v.name.startswith(OF_LAUNCHERS) for v in env)
    where = f"set by {host.name}" if not env.complete else f"of {host.name}"
    release = version_of(variables.specs()["NCCL_DEBUG"], host.versions)
    judged = f"NCCL {'.'.join(map(str, release))}" if release else "release of NCCL unknown (--nccl-version)"
    return f"{count or 'no'} variable{'s' if count != 1 else ''} {where}; {judged}"


def differences(here: Host, there: Host) -> tuple[Difference, ...]:
    """What is set on one side alone, or to another value; what differs by rank and host is left out."""
    a = {v.name: v.value for v in here.env or ()}
    b = {v.name: v.value for v in there.env or ()}
    names = sorted(n for n in {*a, *b} if a.get(n) != b.get(n) and not _is_own(n))
    return tuple(
        Difference(name=n, here=a.get(n), there=b.get(n), must_match=n in variables.must_match()) for n in names
    )


def _is_own(name: str) -> bool:
    """Ranks and ids of a launch: they tell nothing about settings."""
    spec = variables.find(name)
    return name.startswith((*OF_LAUNCHERS, "TORCHELASTIC_")) or (spec is not None and spec.match == "rank")


def compared(here: Host, there: Host, *, nccl_version: str | None = None) -> Report:
    """What the rules say about the differences between two processes, or a process and a file."""
    pair = tuple(_as_asked(h, nccl_version) for h in (here, there))
    both = all(h.env is not None and h.env.complete for h in pair)  # a script shows only some of the variables
    outcomes = tuple(rules.run(Known(cluster=Cluster(hosts=pair)), rules.select((BETWEEN,)) if both else ()))
    found = ranked(tuple(f for o in outcomes for f in o.findings))
    told = {"differences": msgspec.to_builtins(differences(here, there))}
    return _report("env", found, rules.checks(outcomes), told)


def rules_about(name: str) -> list[tuple[str, Severity, str]]:
    """Rules whose text or pattern names this variable: code, severity, title."""
    return [(r.code, r.severity, r.summary) for r in rules.RULES.values() if name in r.doc]
