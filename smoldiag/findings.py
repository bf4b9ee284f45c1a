"""What is said about facts: findings, what became of each check, the documents that carry them. No printing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, TypeVar

from smoldiag.facts import Evidence, Expected, Launch, PairRate, Result, World
from smoldiag.facts.acceptance import Certificate, Criteria
from smoldiag.facts.preflight import StageResult

T = TypeVar("T")


class Severity(StrEnum):
    ERROR = "error"  # cannot run, or is failing
    WARNING = "warning"  # slower or more fragile than it should be
    INFO = "info"  # worth knowing


class Confidence(StrEnum):
    CERTAIN = "certain"
    LIKELY = "likely"
    POSSIBLE = "possible"


class Status(StrEnum):
    PASSED = "passed"
    FOUND = "found"
    SKIPPED = "skipped"
    CRASHED = "crashed"


class Verdict(StrEnum):
    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    INCOMPLETE = "incomplete"  # a probe could not finish


@dataclass(frozen=True, kw_only=True)
class Where:
    """What is concerned; empty where it does not apply."""

    hosts: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    gpus: tuple[int, ...] = ()
    nics: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Fix:
    do: str  # what to do, in words
    command: str = ""  # what to type, on this host


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One root cause: what is wrong, where, how we know, what it costs, what to do."""

    message: str
    cause: str  # a slug of the vocabulary
    code: str = ""  # filled in by the registry
    subject: str = ""  # where a rule says the same of several things: which one, e.g. the variable
    severity: Severity = Severity.WARNING
    confidence: Confidence = Confidence.CERTAIN
    where: Where = field(default_factory=Where)
    evidence: tuple[Evidence, ...] = ()
    why: str = ""
    cost: str = ""
    fixes: tuple[Fix, ...] = ()
    confirm: str = ""  # which probe shows that it is so, or that it matters
    sources: tuple[str, ...] = ()
    explains: tuple[str, ...] = ()  # causes that are symptoms of this one
    restart: str = ""  # same nodes | without HOSTS: the line | fix first | unknown: why; of a job that failed
    first: int = 0  # place of its first evidence among the lines of a log: of two equals, the earlier is the cause


@dataclass(frozen=True, kw_only=True)
class Check:
    """What became of one rule, on all the hosts where the same became of it."""

    code: str
    status: Status
    reason: str = ""
    hosts: tuple[str, ...] = ()  # the first of those that did not pass; findings name all
    num_hosts: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """`smoldiag.report/1`."""

    schema: str = "smoldiag.report/1"
    command: str
    version: str
    created: str  # ISO 8601, UTC
    verdict: Verdict
    findings: tuple[Finding, ...]
    checks: tuple[Check, ...]
    facts: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()  # what was not read or not understood
    restart: str = ""  # what to do about a restart of the job that failed


@dataclass(frozen=True, kw_only=True)
class TransportSummary:
    network: str | None
    plugin: str | None
    nics: tuple[str, ...] | None
    gpudirect: bool | None
    nvls: bool | None
    channels: int | None


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """Collectives of a step in their order, one after the other, timed as a whole."""

    purpose: str
    collectives: int
    total_bytes: int
    time_us: float  # median of the slowest rank


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """`smoldiag.bench/1`."""

    schema: str = "smoldiag.bench/1"
    version: str
    created: str
    verdict: Verdict
    backend: str
    launcher: str
    world: World | None
    transport: TransportSummary | None
    results: tuple[Result, ...]
    expected: tuple[Expected, ...]
    environment: Mapping[str, Any]
    findings: tuple[Finding, ...]
    checks: tuple[Check, ...] = ()
    pairs: tuple[PairRate, ...] = ()
    sets: tuple[SetResult, ...] = ()
    launch: Launch | None = None
    notes: tuple[str, ...] = ()


RANK = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.INFO: 2}
TRUST = {Confidence.CERTAIN: 0, Confidence.LIKELY: 1, Confidence.POSSIBLE: 2}
MAX_EVIDENCE = 12  # per finding; the rest is counted


def ranked(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Causes before their symptoms, then by severity, confidence, time and code; one per code, cause and subject."""
    merged = _one_per_cause(findings)
    explained = {slug for f in merged for slug in f.explains if f.severity is not Severity.INFO}
    return tuple(
        sorted(merged, key=lambda f: (f.cause in explained, RANK[f.severity], TRUST[f.confidence], f.first, f.code))
    )


def _one_per_cause(findings: tuple[Finding, ...]) -> list[Finding]:
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for f in findings:
        groups.setdefault((f.code, f.cause, f.subject), []).append(f)
    return [_merge(group) for group in groups.values()]


def _merge(group: list[Finding]) -> Finding:
    worst = min(group, key=lambda f: (RANK[f.severity], TRUST[f.confidence]))
    if len(group) == 1:
        return worst
    where = Where(
        hosts=_union(f.where.hosts for f in group),
        ranks=tuple(sorted(_union(f.where.ranks for f in group))),
        gpus=tuple(sorted(_union(f.where.gpus for f in group))),
        nics=_union(f.where.nics for f in group),
    )
    others = sum(f.message != worst.message for f in group)
    message = worst.message if not others else f"{worst.message} (and {others} more alike)"
    evidence = _union(f.evidence for f in group)
    if len(evidence) > MAX_EVIDENCE:
        rest = len(evidence) - MAX_EVIDENCE
        evidence = (*evidence[:MAX_EVIDENCE], Evidence(text=f"{rest} more observations alike", where="this report"))
    return replace(worst, where=where, message=message, evidence=evidence, fixes=_union(f.fixes for f in group)[:5])


def _union(parts: Iterable[tuple[T, ...]]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(item for part in parts for item in part))


def verdict(findings: tuple[Finding, ...], *, incomplete: bool = False) -> Verdict:
    """The worst that was found; a probe that could not finish outranks it."""
    if incomplete:
        return Verdict.INCOMPLETE
    worst = min((f.severity for f in findings), key=RANK.__getitem__, default=None)
    return Verdict(worst.value) if worst else Verdict.OK


class Decision(StrEnum):
    GO = "GO"
    WARNINGS = "GO with warnings"
    NO_GO = "NO-GO"
    INCOMPLETE = "INCOMPLETE"  # it was not finished, so that nobody knows


@dataclass(frozen=True, kw_only=True)
class Command:
    """A line for a scheduler."""

    scheduler: str  # slurm | kubernetes
    line: str


@dataclass(frozen=True, kw_only=True)
class HostDecision:
    name: str
    decision: Decision
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What a preflight decides: of the whole, and of each host."""

    decision: Decision
    unfinished: str = ""  # what keeps a GO from being sure
    level: str
    needed: int  # hosts that the job needs
    good: int  # hosts that may take part
    hosts: tuple[HostDecision, ...]
    stages: tuple[StageResult, ...]
    exclude: tuple[str, ...]  # hosts that must not take part
    commands: tuple[Command, ...] = ()  # that leave them out
    nodelist: tuple[str, ...]  # the hosts for the job: as many as it needs, the best first chosen
    budget_s: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class PreflightReport(Report):
    """`smoldiag.report/1` with what was decided."""

    preflight: Preflight
    criteria: Criteria | None = None  # of an acceptance
    certificates: tuple[Certificate, ...] = ()  # of each node, then of all together
