"""The rules: functions from facts to findings, each with a code that never changes.

A rule asks for facts by parameter name, as a pytest test asks for fixtures: a field of Host
(the rule runs once per host), or a field of Known such as `bench` or `log` (it runs once). A rule whose
facts are missing is skipped, and the report says which. A parameter annotated `| None` is optional: without
that fact the rule runs all the same, and gets None. `NotKnown` skips a rule from within.
"""

import importlib
import inspect
import pkgutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, get_args

from smoldiag.findings import Check, Finding, Severity, Status

RuleFunction = Callable[..., Iterator[Finding]]
if TYPE_CHECKING:  # the rules for traces need none of the others, nor the facts of a host
    from smoldiag.facts import Bench, Cluster, Flight, Launch, Log, Network, Run, Series, Tables
    from smoldiag.facts.acceptance import Certificate, History
    from smoldiag.facts.alone import Alone
    from smoldiag.facts.cloud import CloudProfile
    from smoldiag.facts.comparison import Comparison
    from smoldiag.facts.preflight import Reach
    from smoldiag.facts.probes import Probes
    from smoldiag.facts.script import Script
    from smoldiag.facts.trace import Trace

    RULES: dict[str, "Rule"]  # all of them, imported when first asked for
RETIRED: dict[str, str] = {}  # a code is never given out twice: code -> where to look instead
FAMILIES = {
    "ENV": "variables",
    "HST": "host and container",
    "GPU": "GPUs",
    "NVL": "NVLink",
    "PCI": "PCI Express",
    "NIC": "network devices",
    "TOP": "topology",
    "VER": "versions",
    "CLD": "cloud",
    "BWD": "bandwidth",
    "LOG": "failures read from logs",
    "HNG": "hangs",
    "STP": "step time",
    "TRC": "traces",
    "LOS": "loss",
    "CKP": "checkpoints",
    "STO": "storage",
    "ACC": "acceptance and earlier runs",
    "JOB": "job scripts",
}


class NotKnown(Exception):
    """Raised by a rule whose facts are there, but without what it judges: it is skipped with this sentence."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """All facts of one report. None = nobody looked, or could not read it: `unread` says which."""

    cluster: "Cluster | None" = None
    bench: "Bench | None" = None
    launch: "Launch | None" = None
    log: "Log | None" = None
    tables: "Tables | None" = None
    profile: "CloudProfile | None" = None  # of the instance family that the hosts belong to
    run: "Run | None" = None
    trace: "Trace | None" = None
    series: "tuple[Series, ...] | None" = None  # metrics of runs, of any trainer
    network: "Network | None" = None
    flight: "Flight | None" = None
    comparison: "Comparison | None" = None  # of two of a kind
    alone: "Alone | None" = None  # collectives of a run or trace beside those of a bench
    probes: "Probes | None" = None
    certificates: "tuple[Certificate, ...] | None" = None
    history: "History | None" = None
    script: "Script | None" = None  # of the job, as it would be submitted
    reach: "Reach | None" = None
    unread: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    code: str
    severity: Severity  # the worst that it says
    check: RuleFunction

    @property
    def name(self) -> str:
        return self.check.__name__.replace("_", "-")

    @property
    def doc(self) -> str:
        return inspect.cleandoc(self.check.__doc__ or "")

    @property
    def summary(self) -> str:
        return self.doc.partition("\n")[0]

    @cached_property
    def needs(self) -> tuple[str, ...]:
        code = self.check.__code__  # inspect.signature of all rules takes a tenth of the start of a command
        return code.co_varnames[: code.co_argcount]

    @cached_property
    def optional(self) -> tuple[str, ...]:
        """Those of `needs` without which the rule runs all the same."""
        parameters = inspect.signature(self.check, eval_str=True).parameters
        return tuple(name for name, p in parameters.items() if type(None) in get_args(p.annotation))

    @property
    def reads(self) -> str:
        """What it needs, in words."""
        return ", ".join(f"{need} where known" if need in self.optional else need for need in self.needs)


@dataclass(frozen=True)
class Outcome:
    """What became of one rule on one host, or on all of them. No findings, no skip, no crash: it passed."""

    rule: Rule
    host: str | None = None
    findings: tuple[Finding, ...] = ()
    skipped: str = ""
    crashed: str = ""

    @property
    def status(self) -> Status:
        if self.crashed:
            return Status.CRASHED
        if self.skipped:
            return Status.SKIPPED
        return Status.FOUND if self.findings else Status.PASSED


_registered: dict[str, Rule] = {}
MAX_REASONS = 8  # per code and status; a reason may hold values of its host
OTHER_REASONS = "other reasons alike"
MAX_CHECK_HOSTS = 32  # names in a check; `num_hosts` has the count, findings have all names
ONCE = {f.name for f in fields(Known)} - {"unread"}


def rule(code: str, severity: Severity) -> Callable[[RuleFunction], RuleFunction]:
    """Register a rule. The function's name and docstring are its name and its page."""

    def register(check: RuleFunction) -> RuleFunction:
        new = Rule(code, severity, check)
        if code in _registered or code in RETIRED:
            raise ValueError(f"{code} is taken")
        if code[:3] not in FAMILIES or not code[3:].isdigit():
            raise ValueError(f"{code} is not a family ({', '.join(FAMILIES)}) and three digits")
        if unknown := _unknown(set(new.needs) - ONCE):
            raise ValueError(f"{code} asks for facts that do not exist: {', '.join(sorted(unknown))}")
        _registered[code] = new
        return check

    return register


def _unknown(names: set[str]) -> set[str]:
    if not names:
        return names
    from smoldiag.facts import Host

    return names - {f.name for f in fields(Host)}


def load(*modules: str) -> list[Rule]:
    """The rules of these modules of this package; the others need not be imported for them."""
    names = [f"{__name__}.{module}" for module in modules]
    for name in names:
        importlib.import_module(name)
    return [r for code, r in sorted(_registered.items()) if r.check.__module__ in names]


def __getattr__(name: str) -> Any:
    if name != "RULES":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return _all()


@cache
def _all() -> dict[str, Rule]:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return {code: _registered[code] for code in sorted(_registered)}


def select(prefixes: Iterable[str] = ("",), ignore: Iterable[str] = ()) -> list[Rule]:
    """Rules by code or prefix, as ruff selects: `ENV`, `ENV0`, `ENV003`."""
    return [r for r in _all().values() if r.code.startswith(tuple(prefixes)) and not r.code.startswith(tuple(ignore))]


def run(known: Known, rules: Iterable[Rule]) -> Iterator[Outcome]:
    for r in rules:
        once = {need: getattr(known, need) for need in r.needs if need in ONCE}
        per_host = [need for need in r.needs if need not in ONCE]
        if not per_host:
            yield _run(r, once, known.unread)
        elif known.cluster is None:
            yield Outcome(r, skipped=_missing(["hosts"], known.unread))
        else:
            yield from _run_on_hosts(r, known.cluster, once, per_host, known.unread)


def _run_on_hosts(
    r: Rule, cluster: "Cluster", once: dict[str, Any], per_host: Sequence[str], unread: Mapping[str, str]
) -> Iterator[Outcome]:
    """Hosts that share the very same facts (a loader keeps equal ones once) are judged once."""
    judged: dict[tuple[int, ...], Outcome] = {}
    for host in cluster:
        facts = [getattr(host, need) for need in per_host]
        same = tuple(map(id, facts))
        if same not in judged or judged[same].skipped:  # the reason of a skip is the host's own
            judged[same] = _run(r, once | dict(zip(per_host, facts, strict=True)), {**unread, **host.unread})
        yield _of_host(judged[same], host.name)


def _of_host(outcome: Outcome, host: str) -> Outcome:
    found = outcome.findings
    if found:
        found = tuple(f if f.where.hosts else replace(f, where=replace(f.where, hosts=(host,))) for f in found)
    return Outcome(outcome.rule, host, found, outcome.skipped, outcome.crashed)


def _run(r: Rule, facts: dict[str, Any], unread: Mapping[str, str]) -> Outcome:
    if missing := [name for name, value in facts.items() if value is None and name not in r.optional]:
        return Outcome(r, skipped=_missing(missing, unread))
    try:
        found = tuple(replace(f, code=r.code) for f in r.check(**facts))
    except NotKnown as error:
        return Outcome(r, skipped=str(error))
    except Exception:  # one broken rule must not hide the others
        return Outcome(r, crashed=traceback.format_exc(limit=-2))
    return Outcome(r, findings=found)


def _missing(names: Iterable[str], unread: Mapping[str, str]) -> str:
    return "not known: " + ", ".join(f"{name} ({unread.get(name, 'not collected')})" for name in names)


def checks(outcomes: Iterable[Outcome]) -> tuple[Check, ...]:
    """One entry per code, status and reason; of very many reasons the first ones, and the others together."""
    groups: dict[tuple[str, Status, str], list[Outcome]] = {}
    reasons: Counter[tuple[str, Status]] = Counter()
    for o in outcomes:
        key = (o.rule.code, o.status, o.skipped or o.crashed.strip().rpartition("\n")[2])
        if key not in groups:
            reasons[key[:2]] += 1
            if reasons[key[:2]] > MAX_REASONS:
                key = (*key[:2], OTHER_REASONS)
        groups.setdefault(key, []).append(o)
    return tuple(
        Check(
            code=code,
            status=status,
            reason=reason,
            hosts=() if status is Status.PASSED else tuple(o.host for o in group if o.host)[:MAX_CHECK_HOSTS],
            num_hosts=sum(o.host is not None for o in group),
        )
        for (code, status, reason), group in groups.items()
    )
