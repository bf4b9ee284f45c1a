"""doctor between its facts and its report: which rules run, which findings are left out, what was looked at."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from smoldiag import __version__, profiles, rules
from smoldiag.bundle import Bundle, of_answers, read_answer, without_collector
from smoldiag.collect import guarded
from smoldiag.errors import SmoldiagError
from smoldiag.facts import Cluster, Env, Evidence, Host, Variable
from smoldiag.facts.cloud import CloudProfile
from smoldiag.findings import RANK, Finding, Report, ranked, verdict
from smoldiag.model import folded, topology
from smoldiag.rules import RULES, Known, Outcome

SETUP = ("ENV", "HST", "GPU", "NVL", "PCI", "NIC", "TOP", "VER", "CLD")
HARDWARE = ("HST", "GPU", "NVL", "PCI", "NIC", "TOP")
REACHING = ("HST001", "HST002", "VER001")  # of the rules on a launch, those that judge how hosts were reached
INCOMPLETE = {
    "unreachable",
    "lost",
    "stalled",
    "no-python",
    "pending",
    "refused",
}  # faults after which hosts are missing
NO_JOB = "no running job was named with --job"
NO_RANKS = "no ranks were started"
PRESET = "CLD004"  # what a job must set besides
READ_S = 20.0  # for the facts of a host; 2 s are usual with eight GPUs
MAX_IGNORE_BYTES = 1 << 20
IGNORED = re.compile(r"(?P<code>[A-Z]{3}\d{0,3})(?:\s+@(?P<hosts>\S+))?\s*(?:#\s*(?P<reason>\S.*))?")


@dataclass(frozen=True, kw_only=True)
class Ignored:
    """A line of an ignore file."""

    code: str  # or the beginning of codes
    reason: str
    hosts: tuple[str, ...] = ("*",)  # patterns

    def fits(self, code: str, host: str) -> bool:
        return code.startswith(self.code) and any(fnmatchcase(host, pattern) for pattern in self.hosts)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was typed, checked."""

    families: tuple[str, ...] = SETUP
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    ignored: tuple[Ignored, ...] = ()
    nccl_version: str | None = None
    interface: str | None = None
    facts: bool = False  # put them into the report


def codes(text: str, *, option: str) -> tuple[str, ...]:
    """Codes, families or beginnings of codes, separated by commas."""
    found = tuple(dict.fromkeys(part.strip().upper() for part in text.split(",") if part.strip()))
    for code in found:
        if code not in SETUP and not any(known.startswith(code) for known in RULES if known.startswith(SETUP)):
            raise SmoldiagError(
                f"{option} {code[:40]!r} is no rule and no family of doctor",
                hint=f"families: {', '.join(SETUP)}; smoldiag rule lists all rules",
            )
    return found


def parsed_ignore_file(text: str, *, name: str) -> tuple[Ignored, ...]:
    """Lines `CODE [@HOST,HOST] # reason`. Raises SmoldiagError for a line that is none, or that gives no reason."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = IGNORED.fullmatch(line.strip())
        if not match:
            raise SmoldiagError(
                f"{name}:{number}: {line.strip()[:80]!r} is no line of an ignore file", hint="CODE @HOST # reason"
            )
        if not match["reason"]:
            raise SmoldiagError(
                f"{name}:{number}: {match['code']} is ignored without a reason", hint="write it after a #"
            )
        hosts = tuple(match["hosts"].split(",")) if match["hosts"] else ("*",)
        found.append(Ignored(code=match["code"], hosts=hosts, reason=match["reason"].strip()))
    return tuple(found)


def read_ignore_file(path: Path | None) -> tuple[Ignored, ...]:
    if path is None:
        return ()
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_IGNORE_BYTES)
    except OSError as error:
        raise SmoldiagError(f"--ignore-file {path}: {error.strerror}") from None
    return parsed_ignore_file(text, name=str(path))


def version(text: str | None) -> str | None:
    if text is not None and not re.fullmatch(r"\d{1,3}(\.\d{1,5}){1,3}\S{0,40}", text):
        raise SmoldiagError(f"--nccl-version {text[:40]!r} is no version", hint="e.g. 2.27.5")
    return text


def this_host(*, root: Path | None = None, logs: tuple[str, ...] = (), seconds: float = READ_S) -> Bundle:
    """Facts of this host, or of a tree, read within so many seconds."""
    if root is not None and not root.is_dir():
        raise SmoldiagError(f"--root {root} is no folder")
    plan = guarded.Plan(root=str(root or "/"), files=logs, seconds=seconds)
    return of_answers([read_answer(guarded.read(plan))])


def judge(bundle: Bundle, options: Options, *, command: str = "doctor") -> Report:
    """The report on these hosts."""
    hosts, outcomes = outcomes_of(bundle, options)
    found = once_per_cause(ranked(tuple(f for o in outcomes for f in o.findings)))
    return Report(
        command=command,
        version=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        verdict=verdict(found, incomplete=is_incomplete(bundle)),
        findings=found,
        checks=rules.checks(outcomes),
        notes=(looked_at(bundle),),
        facts={"hosts": msgspec.to_builtins(hosts)} if options.facts else None,
    )


def outcomes_of(bundle: Bundle, options: Options) -> tuple[tuple[Host, ...], tuple[Outcome, ...]]:
    """What became of each rule on these hosts, and the hosts as they were judged."""
    hosts = tuple(topology.filled(_as_asked(host, options)) for host in bundle.hosts)
    with without_collector():
        return hosts, tuple(_ignoring(outcome, options.ignored) for outcome in _outcomes(bundle, hosts, options))


def once_per_cause(found: Sequence[Finding]) -> tuple[Finding, ...]:
    """Without what a comparison of hosts says of hosts whose own facts say the same; it becomes evidence there."""
    kept: list[Finding] = []
    left_out: dict[int, list[Finding]] = {}
    for f in found:
        same = next((i for i, other in enumerate(found) if _says_the_same(other, f)), None)
        if same is None:
            kept.append(f)
        else:
            left_out.setdefault(same, []).append(f)
    number = {id(f): i for i, f in enumerate(found)}
    return tuple(_with_evidence(f, left_out.get(number[id(f)], ())) for f in kept)


def _says_the_same(own: Finding, compared: Finding) -> bool:
    return (
        _is_comparison(compared)
        and not _is_comparison(own)
        and own.cause == compared.cause
        and RANK[own.severity] <= RANK[compared.severity]
        and set(compared.where.hosts) <= set(own.where.hosts)
    )


def _is_comparison(finding: Finding) -> bool:
    rule = RULES.get(finding.code)
    return rule is not None and rule.needs == ("cluster",)


def _with_evidence(finding: Finding, compared: Sequence[Finding]) -> Finding:
    more = tuple(Evidence(text=c.message, where="compared with the other hosts") for c in compared)
    return replace(finding, evidence=(*finding.evidence, *more)) if more else finding


def is_incomplete(bundle: Bundle) -> bool:
    """Whether hosts are missing that were asked for."""
    launch = bundle.launch
    return launch is not None and (launch.interrupted is not None or any(f.kind in INCOMPLETE for f in launch.faults))


def _as_asked(host: Host, options: Options) -> Host:
    """With what was typed in place of what was found."""
    if options.nccl_version:
        host = replace(host, versions={**(host.versions or {}), "nccl": options.nccl_version})
    if options.interface:
        names = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
        typed = tuple(Variable(name=n, value=options.interface, origin="--interface") for n in names)
        env = host.env or Env(complete=False)
        kept = tuple(v for v in env if v.name not in names)
        host = replace(host, env=replace(env, variables=(*kept, *typed)))
    return host


def _profile(hosts: Sequence[Host], families: Sequence[str]) -> tuple[CloudProfile | None, str]:
    """Of the instances that these hosts are; or why there is none."""
    if "CLD" not in families:
        return None, "not asked for"
    if not hosts:
        return None, "no host was looked at"
    if len({host.product for host in hosts}) > 1:
        return None, "the hosts are of several kinds"
    names = [v.name for v in hosts[0].env or ()]
    found = profiles.detect(hosts[0], metadata=hosts[0].ids, variables=names)
    if found.profile is None:
        return (
            None,
            "this is no cloud that is known" if found.cloud == "unknown" else f"no profile of {found.cloud} fits",
        )
    return profiles.of_size(profiles.load(found.profile), found.instance), ""


def _outcomes(bundle: Bundle, hosts: tuple[Host, ...], options: Options) -> Iterator[Outcome]:
    profile, why_not = _profile(hosts, options.families)
    known = Known(
        cluster=Cluster(hosts=hosts) if hosts else None,
        launch=bundle.launch,
        profile=profile,
        unread={
            "profile": why_not,
            "log": "no log was given",
            "processes": NO_JOB,
            "increase": NO_JOB,
            "launch": NO_RANKS,
            "bench": NO_RANKS,
            "hosts": "no host was reached",
            "network": "smoldiag topo --nodes looks at it",
            "cluster": "no host was reached",
        },
    )
    chosen, others = [], []
    for r in RULES.values():
        if r.code[:3] not in options.families:
            continue
        if options.only and not r.code.startswith(options.only):
            continue
        if options.ignore and r.code.startswith(options.ignore):
            yield Outcome(r, skipped="left out by --ignore")
        elif r.code == PRESET and profile and not _knows_of_a_job(hosts):
            yield Outcome(r, skipped=f"no job's variables are known; smoldiag cloud check --profile {profile.name}")
        elif {"bench", "probes"} & set(r.needs) or ("launch" in r.needs and r.code not in REACHING):
            others.append(r)
        else:
            chosen.append(r)
    yield from (Outcome(r, skipped=f"judges a run: {NO_RANKS}") for r in others)
    yield from rules.run(known, chosen)


def _knows_of_a_job(hosts: Sequence[Host]) -> bool:
    """Whether variables of a job or of NCCL's files are known: a person's shell rightly lacks what a job sets."""
    return any(v.origin != "environment" for h in hosts for v in h.env or ())


def _ignoring(outcome: Outcome, ignored: Sequence[Ignored]) -> Outcome:
    """Without the findings that the ignore file names; its reason becomes that of a skipped check."""
    if not ignored or not outcome.findings:
        return outcome
    reasons: list[str] = []
    left: list[Finding] = []
    for f in outcome.findings:
        kept = []
        for host in f.where.hosts or ("",):
            line = next((i for i in ignored if i.fits(outcome.rule.code, host)), None)
            if line is None:
                kept.append(host)
            else:
                reasons.append(line.reason)
        if len(kept) == len(f.where.hosts or ("",)):
            left.append(f)
        elif kept:
            left.append(replace(f, where=replace(f.where, hosts=tuple(kept))))
    if not reasons:
        return outcome
    if left:
        return replace(outcome, findings=tuple(left))
    return replace(outcome, findings=(), skipped=f"ignored: {reasons[0]}")


# -- what was looked at


def looked_at(bundle: Bundle) -> str:
    """The hosts, and where no GPU or NIC was checked: a sentence without its full stop."""
    hosts = bundle.hosts
    if not hosts:
        return "no host was looked at"
    names = folded.hosts([h.name for h in hosts])
    return f"looked at {names if len(hosts) == 1 else f'{len(hosts)} hosts ({names})'}: {_gpus(hosts)}; {_nics(hosts)}"


def _gpus(hosts: Sequence[Host]) -> str:
    count = sum(len(h.gpus or ()) for h in hosts)
    return _checked(hosts, count, "GPU", "gpus", [h for h in hosts if not h.gpus])


def _nics(hosts: Sequence[Host]) -> str:
    count = sum(len(h.nics or ()) for h in hosts)
    return _checked(hosts, count, "NIC", "nics", [h for h in hosts if not h.nics])


def _checked(hosts: Sequence[Host], count: int, what: str, fact: str, without: Sequence[Host]) -> str:
    if not without:
        return f"{count} {what}{'s' if count != 1 else ''}"
    reasons = list(dict.fromkeys(h.unread.get(fact, "there is none") for h in without))
    why = reasons[0] + (f" and {len(reasons) - 1} other reasons" if len(reasons) > 1 else "")
    if len(without) == len(hosts):
        return f"no {what} was checked ({why})"
    return f"{count} {what}s; no {what} was checked on {folded.hosts([h.name for h in without])} ({why})"
