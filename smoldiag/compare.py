"""Two of a kind: what changed, what got worse beyond noise, and which change is the likeliest reason.

Both sides are read as `explain` reads them. A rule that speaks of the second side alone says most; then come settings
that are known to matter, to what got slower first; the rest is counted.
"""

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from smoldiag import __version__, bundle, documents, explain, rules, settings
from smoldiag.collect import inputs
from smoldiag.errors import SmoldiagError
from smoldiag.explained import as_facts
from smoldiag.facts import Cluster, Evidence, Host, Log, Run, Series, Transport
from smoldiag.facts.comparison import AREAS, CHECKPOINT, COMMUNICATION, COMPUTE, DATA, HOST, Change, Comparison, Metric
from smoldiag.findings import BenchReport, Finding, Report, Severity, ranked, verdict
from smoldiag.model import compared, series
from smoldiag.model import steps as model
from smoldiag.rules import Known
from smoldiag.rules import comparison as rules_of_two

KINDS = {  # as they are told
    "run": "a run",
    "trace": "a trace",
    "bench": "a bench",
    "report": "a report",
    "hosts": "settings of hosts",
    "bandwidth": "a table of bandwidths",
    "steps": "a step log",
    "log": "a log",
    "flight": "dumps of a hang",
}
AREAS_OF_FAMILY = {
    **dict.fromkeys(("NIC", "NVL", "PCI", "TOP", "CLD", "BWD"), (COMMUNICATION,)),
    "GPU": (COMPUTE, HOST),
    "HST": (HOST, DATA, COMPUTE),
    "STO": (DATA, CHECKPOINT),
    "VER": AREAS,
    "ENV": (COMMUNICATION, COMPUTE),
}
MEASURED = ("STP", "TRC", "CKP", "STO", "BWD")  # families whose rules judge figures that are compared here as well
PLACES = {"checkpoint_folder"}  # of the run itself
NOT_THE_WORK = {"faults", "trace_steps", "trace_at", "trace_ranks", "seed", "steps"}


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one of the two is."""

    name: str
    known: Known
    findings: tuple[Finding, ...] = ()
    bench: BenchReport | None = None
    report: Report | None = None
    notes: tuple[str, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        tables = self.known.tables
        there = {
            "run": self.known.run,
            "trace": self.known.trace,
            "bench": self.bench,
            "report": self.report,
            "hosts": self.known.cluster,
            "bandwidth": tables and tables.bandwidth,
            "steps": self.metrics,
            "log": self.known.log,
            "flight": self.known.flight,
        }
        return tuple(kind for kind, value in there.items() if value)

    @property
    def metrics(self) -> tuple[Series, ...]:
        """Of trainers' logs and boards; a run folder tells more of its steps than these."""
        return tuple(s for s in self.known.series or () if s.source != series.RUN_FOLDER)

    @property
    def hosts(self) -> frozenset[str]:
        """All names that it tells of."""
        named = {name for h in self.known.cluster or () for name in (h.name, *h.aliases)}
        named |= {name for f in self.findings for name in f.where.hosts}
        named |= {*(self.known.run.hosts if self.known.run else ())}
        return frozenset(named | {*(self.bench.world.hosts if self.bench and self.bench.world else ())})


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Both sides, and what is said of them."""

    a: Side
    b: Side
    comparison: Comparison
    report: Report


def compare(a: str, b: str, *, with_facts: bool = False) -> Compared:
    """What changed from a to b. SmoldiagError where one can't be read, or they are not of a kind."""
    left, right = read(a), read(b)
    kinds = tuple(kind for kind in left.kinds if kind in right.kinds)
    if not kinds:
        words = [" and ".join(KINDS[k] for k in side.kinds) or "nothing that is known" for side in (left, right)]
        raise SmoldiagError(
            f"{a} is {words[0]}, {b} is {words[1]}: they have nothing in common to compare",
            hint="name two of a kind: two run folders, logs, bundles, benches, reports, tables, traces or scripts",
        )
    new, gone, same = _apart(left, right)
    found = comparison(left, right, kinds)
    found = replace(found, gone=tuple(f"{f.code}: {f.message}" for f in gone), same=same)
    found = replace(found, changed=tuple(_covered(c, new) for c in found.changed))
    outcomes = tuple(rules.run(Known(comparison=found), _rules()))
    of_two = tuple(f for o in outcomes for f in o.findings)
    findings = ranked(tuple(_together([_as_reason(f, found) for f in new], of_two)))
    report = Report(
        command="compare",
        version=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        verdict=verdict(findings),
        findings=findings,
        checks=rules.checks(outcomes),
        facts={"compare": _as_facts(found)}
        | ({"a": as_facts(left.known), "b": as_facts(right.known)} if with_facts else {}),
        notes=tuple(dict.fromkeys((*left.notes, *right.notes))),
    )
    return Compared(a=left, b=right, comparison=found, report=report)


def _rules() -> list[rules.Rule]:
    return [r for r in rules.RULES.values() if r.needs == ("comparison",)]


def _as_facts(found: Comparison) -> dict[str, Any]:
    made: dict[str, Any] = msgspec.to_builtins(found, str_keys=True)
    return made


# -- reading


def read(name: str) -> Side:
    """One side. SmoldiagError says in a sentence why it can't be read."""
    path = Path(name)
    if name != "-" and not path.exists():
        raise SmoldiagError(f"{name}: there is no such file or folder")
    if name != "-" and _is_bundle(path):
        return _of_bundle(name, path)
    found = inputs.find([name])
    if len(found.sources) == 1:
        (source,) = found.sources
        if documents.is_bench(source):
            told = documents.bench(source)
            return Side(name=name, known=Known(), findings=told.findings, bench=told, notes=told.notes)
        if documents.is_report(source):
            report = documents.report(source)
            return Side(name=name, known=Known(), findings=report.findings, report=report, notes=report.notes)
    known, notes = explain.facts_of(found, readers=_readers())
    return Side(name=name, known=known, findings=_judged(known), notes=notes)


def _is_bundle(path: Path) -> bool:
    """Of archives of other things the readers of `explain` know."""
    if path.is_dir():
        inside = [p for p in path.iterdir() if not p.name.startswith(".")]
        return bool(inside) and all(p.suffix == bundle.ENDING and _is_bundle(p) for p in inside)
    try:
        with zipfile.ZipFile(path) as archive:
            return bundle.INDEX in archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def _of_bundle(name: str, path: Path) -> Side:
    saved = bundle.load([path], logs=True)
    parts = [Known(cluster=Cluster(hosts=saved.hosts))]
    logs = tuple(inputs.of_text(f"{log.path} of {log.host}", log.text) for log in saved.logs if log.text)
    notes: tuple[str, ...] = ()
    if logs:
        try:
            said, notes = explain.facts_of(inputs.Found(sources=logs))
            parts.append(said)
        except SmoldiagError as error:
            notes = (str(error),)
    known = explain.merged(parts)
    return Side(name=name, known=known, findings=_judged(known), notes=notes)


def _readers() -> tuple[explain.Reader, ...]:
    """Those of `explain`; facts of a host with their variables, which count where two sides are compared."""
    return tuple(
        replace(r, read=explain.each(_host, explain.as_cluster)) if r.kind == HOSTS else r for r in explain.READERS
    )


HOSTS = explain.READERS[0].kind


def _host(source: inputs.Source) -> Host:
    host = msgspec.json.decode(source.data(explain.MAX_TEXT_BYTES), type=Host, strict=False)
    return bundle.clean(replace(host, kernel_log=None))


def _judged(known: Known) -> tuple[Finding, ...]:
    return ranked(tuple(f for o in explain.judged(known) for f in o.findings))


# -- what is different


def comparison(a: Side, b: Side, kinds: tuple[str, ...]) -> Comparison:
    """Of all kinds that both sides have."""
    changed: list[Change] = []
    metrics: list[Metric] = []
    gone: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    rates = None
    x, y = a.known, b.known
    if x.cluster and y.cluster:
        of_hosts, gone, new = settings.changes(x.cluster, y.cluster)
        changed += of_hosts
    if x.run and y.run:
        changed += _of_runs(x.run, y.run)
        metrics += (*compared.of_runs(x.run, y.run), *compared.of_losses(*map(compared.losses, (x.run, y.run))))
        rates = _rates(x.run, y.run)
        if x.run.hosts and y.run.hosts:
            gone, new = (
                tuple(sorted({*s} - {*t})) for s, t in ((x.run.hosts, y.run.hosts), (y.run.hosts, x.run.hosts))
            )
    if x.log and y.log:
        changed += _of_logs(x.log, y.log)
    if a.bench and b.bench:
        changed += _of_benches(a.bench, b.bench)
        metrics += compared.of_results(a.bench.results, b.bench.results)
        if a.bench.world and b.bench.world:
            s, t = a.bench.world.hosts, b.bench.world.hosts
            gone, new = tuple(sorted({*s} - {*t})), tuple(sorted({*t} - {*s}))
    if x.tables and y.tables:
        metrics += compared.of_tables(x.tables.bandwidth, y.tables.bandwidth)
    metrics += compared.of_series(a.metrics, b.metrics)
    if x.trace and y.trace:
        metrics += compared.of_traces(x.trace, y.trace)
    return Comparison(
        a=a.name,
        b=b.name,
        kinds=kinds,
        changed=_once(changed),
        metrics=tuple(metrics),
        hosts_gone=gone,
        hosts_new=new,
        tokens_per_s=rates,
        shifts=tuple(x for name, side in (("a", a), ("b", b)) for x in compared.shifts(name, side.known.series or ())),
    )


def _once(changed: Iterable[Change]) -> tuple[Change, ...]:
    """What several sources tell counts once, those that are known to matter first."""
    kept: dict[tuple[str, str], Change] = {}
    for c in changed:
        kept.setdefault((c.family, c.name), c)
    return tuple(sorted(kept.values(), key=lambda c: (c.weight != "known", c.family, c.name)))


def _of_runs(a: Run, b: Run) -> list[Change]:
    return [
        *_values("STP", _configuration(a), _configuration(b), AREAS, other=NOT_THE_WORK),
        *settings.of_variables(a.environment, b.environment),
        *settings.of_versions(a.versions, b.versions),
    ]


def _configuration(run: Run) -> dict[str, Any]:
    told = {"ranks": run.world_size, "device": run.device, "backend": run.backend, "parameters": run.parameters}
    return told | {name: value for name, value in run.config.items() if name not in PLACES}


def _of_logs(a: Log, b: Log) -> list[Change]:
    x, y = ({k: " | ".join(v) for k, v in log.env.items()} for log in (a, b))
    versions = [{**log.versions, **_nccl(log.transport)} for log in (a, b)]
    return [
        *settings.of_variables(x, y),
        *settings.of_versions(*versions),
        *_values("STP", {"ranks": a.world}, {"ranks": b.world}, AREAS),
        *_transport(a.transport, b.transport),
    ]


def _nccl(t: Transport | None) -> dict[str, str]:
    told = {"nccl": t.nccl_version, "cuda": t.cuda_version} if t else {}
    return {name: version for name, version in told.items() if version}


USED = ("network", "plugin", "nics", "gpudirect", "nvls", "channels", "algorithms", "provider", "link_layer")


def _transport(a: Any, b: Any) -> Iterable[Change]:
    """What NCCL chose, from its log or a bench."""
    x, y = ({f"NCCL's {n}": getattr(t, n, None) for n in USED} if t else {} for t in (a, b))
    return _values("NIC", x, y, (COMMUNICATION,))


def _of_benches(a: BenchReport, b: BenchReport) -> list[Change]:
    x, y = ({"backend": r.backend, "ranks": r.world.ranks if r.world else None} for r in (a, b))
    variables = [_texts(r.environment.get("variables")) for r in (a, b)]
    versions = [_texts(r.environment.get("versions")) for r in (a, b)]
    return [
        *_values("STP", x, y, AREAS),
        *_transport(a.transport, b.transport),
        *settings.of_variables(*variables),
        *settings.of_versions(*versions),
    ]


def _texts(value: object) -> dict[str, str]:
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, Mapping) else {}


def _values(
    family: str, a: Mapping[str, Any], b: Mapping[str, Any], affects: tuple[str, ...], *, other: Iterable[str] = ()
) -> Iterable[Change]:
    """Of what both sides tell."""
    for name in a:
        x, y = a[name], b.get(name)
        if x is not None and y is not None and x != y:
            yield Change(
                family=family,
                name=name,
                a=_word(x),
                b=_word(y),
                weight="other" if name in other else "known",
                affects=affects,
            )


def _word(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _rates(a: Run, b: Run) -> tuple[float, float] | None:
    budgets = [model.budget(run) for run in (a, b)]
    rates = [model.tokens_per_s(r, x.mean_step_us) if x else None for r, x in zip((a, b), budgets, strict=True)]
    return (rates[0], rates[1]) if rates[0] and rates[1] else None


# -- what is said of it


def _key(f: Finding) -> tuple[str, str, str]:
    return f.code, f.cause, f.subject


def _apart(a: Side, b: Side) -> tuple[list[Finding], list[Finding], int]:
    """What only b shows, what only a shows, and how many both show. A finding on further hosts of a is new there."""
    in_a = {_key(f): f for f in a.findings}
    new: list[Finding] = []
    for f in b.findings:
        before = in_a.get(_key(f))
        if before is None:
            new.append(f)
        elif more := tuple(h for h in f.where.hosts if h in a.hosts and h not in before.where.hosts):
            new.append(replace(f, where=replace(f.where, hosts=more)))
    in_b = {_key(f) for f in b.findings}
    gone = [f for f in a.findings if _key(f) not in in_b]
    return new, gone, len(b.findings) - len(new)


def _covered(c: Change, new: Sequence[Finding]) -> Change:
    """A rule speaks of this change already."""
    names = {c.name, c.name.partition(" of ")[0]}
    return replace(c, weight="rule") if any(f.subject in names and f.subject for f in new) else c


def _as_reason(f: Finding, c: Comparison) -> Finding:
    """A finding of the second side alone, with what it can be the reason of."""
    family = f.code[:3]
    step = [m for m in c.metrics if m.kind in ("step", "busbw") and m.significant is not None]
    if family in MEASURED and step and not c.slower and not c.slowed and f.severity is Severity.WARNING:
        return replace(f, severity=Severity.INFO)  # what it judges did not change beyond noise
    seen = Evidence(text="not so on the other side", where=c.a)
    change = Change(family=family, name=f.subject, a=None, b=None, hosts=f.where.hosts, affects=_areas(f))
    slugs = (
        tuple(s for s in rules_of_two.explained(change, c) if s != f.cause) if f.severity is not Severity.INFO else ()
    )
    if family in MEASURED and c.slower:
        slugs = (*slugs, rules_of_two.SLOWER)
    place = min((c.areas.index(area) for area in change.affects if area in c.areas), default=len(AREAS))
    return replace(f, evidence=(*f.evidence, seen), explains=(*f.explains, *slugs), first=2 * place + 1)


def _areas(f: Finding) -> tuple[str, ...]:
    if f.code.startswith("ENV") and f.subject:
        return settings.areas_of(f.subject)
    return AREAS_OF_FAMILY.get(f.code[:3], ())


def _together(new: Sequence[Finding], of_two: Sequence[Finding]) -> Iterable[Finding]:
    """A rule's finding and a part of the step that grew, where both name one cause: the rule's, with both evidence."""
    by_cause = {f.cause: f for f in of_two if f.code == PART}
    told = set()
    for f in new:
        part = by_cause.get(f.cause)
        if part is None:
            yield f
            continue
        told.add(f.cause)
        yield replace(
            f,
            message=f"{f.message}; before it was not so: {part.message}",
            evidence=(*part.evidence, *f.evidence),
            explains=tuple(dict.fromkeys((*f.explains, *part.explains))),
        )
    yield from (f for f in of_two if f.code != PART or f.cause not in told)


PART = "STP041"
