"""cloud between its facts and its documents: what this host is, and how it stands to a profile."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from smoldiag import __version__, profiles, redact, rules
from smoldiag.collect import env, gpus, inputs, metadata
from smoldiag.errors import SmoldiagError
from smoldiag.facts import Cluster, Env, Host, Log, Variable
from smoldiag.facts.cloud import CloudProfile, Detected, ExplainedVariable
from smoldiag.findings import Report, ranked, verdict
from smoldiag.knowledge import variables
from smoldiag.parse import log as logs
from smoldiag.rules import Known
from smoldiag.rules.cloud import FROM_LOG

FAMILY = "CLD"
HARDWARE = ("gpus", "nics", "pci", "files")
INSTANCES = re.compile(  # names of instances as plugins, schedulers and people write them into logs
    r"\b(?:[pg]\d\w*(?:-[a-z]+\d+)?\.\d*xlarge|Standard_N[CD]\w+|a[234]x?-\w+gpu-\d+g|BM\.GPU[\w.-]+\d)\b"
)
MAX_SEARCHED_LINES = 200_000


def detected(host: Host, *, environ: Mapping[str, str], ask: bool) -> Detected:
    """What this host is; its metadata service is asked where its firmware or files name a cloud, and `ask`."""
    seen = profiles.detect(host, variables=environ)
    if not ask or seen.cloud not in metadata.READERS or metadata.is_off(environ):
        return seen
    try:
        said = metadata.read(seen.cloud, environ=environ)
    except OSError as error:
        return replace(seen, saw=(*seen.saw, str(error)))
    return profiles.detect(host, metadata=said, variables=environ)


def with_listed_gpus(host: Host, root: Path | None) -> Host:
    """Where NVML was not asked, the driver's list of models will do to recognise an instance."""
    return replace(host, gpus=gpus.listed(root or Path("/"))) if host.gpus is None else host


def chosen(name: str | None, found: Detected, in_log: str | None) -> CloudProfile:
    """The profile that was typed, else that of the instance that the log names, else that of the host."""
    if name:
        profile = profiles.find(name)
        return profiles.of_size(profile, found.instance if found.profile == profile.name else name)
    if in_log:
        return profiles.of_size(profiles.find(in_log), in_log)
    if found.profile:
        return profiles.of_size(profiles.load(found.profile), found.instance)
    where = "no cloud is known" if found.cloud == "unknown" else f"this is {found.cloud}, but no profile fits"
    saw = "; ".join(found.saw)[:300]
    raise SmoldiagError(f"{where} ({saw})", hint="name the profile: --profile aws-p5; smoldiag cloud list has all")


def read_logs(names: Sequence[str]) -> tuple[Log, str | None]:
    """The log's picture of the run, and the instance that it names."""
    found = inputs.find(names)
    state = logs.start()
    instance = None
    for source in found.sources:
        logs.read(state, source.chunks(), where=source.name)
        instance = instance or _instance(source.lines())
    if not found.sources:
        raise SmoldiagError(f"--log {names[0]}: " + "; ".join(found.problems[:2] or ("nothing to read",)))
    return logs.finish(state), instance


def _instance(lines: Iterator[str]) -> str | None:
    """The first name of an instance that has a profile."""
    for number, line in enumerate(lines):
        if number > MAX_SEARCHED_LINES:
            return None
        for match in INSTANCES.finditer(line):
            name = match[0].lower()
            if any(profiles.has_instance(p, name) for p in profiles.heads().values()):
                return str(match[0])
    return None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was typed for a check."""

    profile: str | None = None
    nccl_version: str | None = None
    logs: tuple[str, ...] = ()
    ask: bool = False  # the metadata service may be asked
    pid: int | None = None  # of the job's process whose variables are checked


def check(hosts: Sequence[Host], request: Request, *, environ: Mapping[str, str], root: Path | None) -> Report:
    """Hosts, their variables and logs against the profile."""
    log, in_log = read_logs(request.logs) if request.logs else (None, None)
    found = detected(hosts[0], environ=environ, ask=request.ask)
    profile = chosen(request.profile, found, in_log)
    if root or request.pid:  # the variables of this process or of that one, the files of the tree
        hosts = tuple(replace(h, env=_variables(root, request.pid, environ)) for h in hosts)
    why_not = not_such(profile, found, hosts[0])
    judged = tuple(_judged(host, log, request.nccl_version, why_not) for host in hosts)
    known = Known(cluster=Cluster(hosts=judged), log=log, profile=profile, unread={"log": "no --log was given"})
    outcomes = tuple(rules.run(known, rules.select((FAMILY,))))
    findings = ranked(tuple(f for o in outcomes for f in o.findings))
    judged_by = f"judged by {profile.name} ({profile.title})"
    return Report(
        command="cloud check",
        version=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        verdict=verdict(findings),
        findings=findings,
        checks=rules.checks(outcomes),
        notes=(judged_by, f"GPUs, NICs and files were not judged: {why_not}") if why_not else (judged_by,),
    )


def _variables(root: Path | None, pid: int | None, environ: Mapping[str, str]) -> Env:
    try:
        return env.env(root=root or Path("/"), environ=environ, pid=pid)
    except OSError as error:
        raise SmoldiagError(f"--pid {pid}: {error}", hint="name a process of yours that runs on this host") from None


def not_such(profile: CloudProfile, found: Detected, host: Host) -> str:
    """Why this host's GPUs, NICs and files say nothing of the profile; empty where they do."""
    if found.profile == profile.name or (found.cloud == profile.cloud and found.profile is None):
        return ""
    if found.cloud == "unknown" and not profiles.has_marks(profile) and profiles.gpu_names(host):
        return ""
    return f"this host is {found.profile or 'no instance that is known'}, not {profile.name}"


def _judged(host: Host, log: Log | None, nccl_version: str | None, why_not: str) -> Host:
    """With the variables and versions that the log tells besides; without what is not to be judged."""
    versions = dict(host.versions or {})
    if log:
        versions |= {"nccl": log.transport.nccl_version} if log.transport and log.transport.nccl_version else {}
        host = replace(host, env=_with_log(host.env, log))
    if nccl_version:
        versions["nccl"] = nccl_version
    host = replace(host, versions=versions)
    if why_not:
        unread = {**host.unread, **dict.fromkeys(HARDWARE, why_not)}
        host = replace(host, gpus=None, nics=None, pci=None, files=None, unread=unread)
    return host


def _with_log(ours: Env | None, log: Log) -> Env:
    """NCCL says of each variable that it takes it; which ones it does not take, it does not say."""
    own = ours.variables if ours else ()
    names = {v.name for v in own}
    said = tuple(
        Variable(name=name, value=redact.variable(name, values[0]), origin=FROM_LOG)
        for name, values in log.env.items()
        if name not in names and values
    )
    return Env(variables=(*own, *said), complete=False)


def explained(name: str, variable: str) -> ExplainedVariable:
    """What a profile says of a variable, and what the variable does anywhere."""
    profile = profiles.find(name)
    wanted = variable.strip().upper()
    spec = variables.find(wanted)
    return ExplainedVariable(
        profile=profile.name,
        name=wanted,
        settings=tuple(s for s in profile.settings if s.name == wanted),
        conditional=tuple(s for s in profile.conditional if s.name == wanted),
        automatic=tuple(
            f"{a.name}={a.value} by {a.by}{f' from {a.since} on' if a.since else ''}: {a.why} [{a.source}]"
            for a in profile.automatic
            if a.name == wanted
        ),
        forbidden=tuple(f for f in profile.forbidden if fnmatchcase(wanted, f.name)),
        does=spec.does if spec else "no component that smoldiag knows reads it",
        default=spec.default if spec else "",
    )


def draft(host: Host, found: Detected) -> str:
    """A profile of this host, as TOML to be completed."""
    names = list(dict.fromkeys(profiles.gpu_names(host)))
    nics = profiles.compute_nics(host)
    dmi = profiles.dmi_of(host)
    rate = nics[0].gbit_per_s if nics else None
    name = re.sub(r"[^a-z0-9]+", "-", (dmi.get("product_name") or host.name).lower()).strip("-") or "mine"
    lines = [
        "# Drafted by `smoldiag cloud new --from-host`: complete it, and put it into the folder of SMOLDIAG_PROFILES.",
        f"name = {_quoted(name)}",
        f"cloud = {_quoted(found.cloud if found.cloud != 'unknown' else 'onprem')}",
        f"family = {_quoted(name)}",
        f"title = {_quoted(dmi.get('product_name') or name)}",
        'status = "documented" # measured, once there are [[expected]] figures',
        f"instances = [{_quoted(found.instance or dmi.get('product_name') or name)}]",
        "",
        "[hardware]",
        f"gpu_class = {_quoted(profiles.CLASS_OF_GPU.get(names[0], names[0]) if names else 'any')}",
        f"gpu = [{', '.join(map(_quoted, names))}]",
        f"gpus = {len(profiles.gpu_names(host))}",
        f"nics = {len(nics)}",
        *([f"nic_gbit_per_s = {rate:g}"] if rate else []),
        f"nic_kind = {_quoted(nics[0].kind if nics else 'ethernet')}",
        f"nic_devices = [{', '.join(_quoted(n.name) for n in nics)}]",
        f"fabric = {_quoted(f'{nics[0].kind}' if nics else 'TCP')}",
        f'source = "this host, {datetime.now(UTC).date().isoformat()}"',
        "",
        "[recognise]",
    ]
    if dmi.get("product_name"):
        lines.append(f"dmi = {{ product_name = [{_quoted(dmi['product_name'])}] }}")
    else:
        lines.append('how = "by its name"')
    lines += [
        "",
        "# [[settings]]",
        '# name = "NCCL_SOCKET_IFNAME"',
        '# value = "eth0"',
        '# level = "required"',
        '# why = "..."',
        '# scope = "launcher"',
        '# source = "..."',
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return msgspec.json.encode(redact.text(text)).decode()
