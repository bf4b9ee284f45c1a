"""preflight after the run: what was found, which hosts may take part, GO or NO-GO."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from smoldiag import __version__, criteria, doctor, environment, probes, profiles, rules
from smoldiag.bundle import Bundle
from smoldiag.facts import Bench, Cluster
from smoldiag.facts.acceptance import Criteria, History, HostRun, PastRun
from smoldiag.findings import (
    Command,
    Confidence,
    Decision,
    Finding,
    HostDecision,
    Preflight,
    PreflightReport,
    Severity,
    Verdict,
    ranked,
)
from smoldiag.knowledge import busbw
from smoldiag.launch import Finished
from smoldiag.model import exclusion, expected
from smoldiag.preflight import SLOW_HOST, SPENT, Run, accused, slow_in_pairs, slow_rails
from smoldiag.rules import Known, Outcome
from smoldiag.verdict import transport as transport_of

MEASURED = {"bench", "certificates", "history", "launch", "probes", "reach", "script"}  # facts that only a run has
NOT_OF_A_PREFLIGHT = {"alone", "comparison", "flight", "log", "run", "tables", "trace"}
NEEDED_STAGES = ("reach", "facts")  # without these nobody knows
VERDICTS = {
    Decision.GO: Verdict.OK,
    Decision.WARNINGS: Verdict.WARNING,
    Decision.NO_GO: Verdict.ERROR,
    Decision.INCOMPLETE: Verdict.INCOMPLETE,
}
LEAVE_OUT = {
    "slow-node",
    "slow-gpu",
    "slow-cpu",
}  # causes for which a host stays out, though it could run: all the others would wait for it
MAX_REASONS = 5  # per host


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What a run is judged by besides itself."""

    criteria: Criteria | None = None
    history: History | None = None
    script: Path | None = None  # of the job


def judge(run: Run, finished: Finished, *, asked: Sequence[str], beside: Beside | None = None) -> PreflightReport:
    """The report, whatever the run came to. `asked`: hosts by the names they were called by."""
    beside = beside or Beside()
    bundle = replace(finished.bundle or Bundle(), launch=finished.launch)
    hosts = names(finished, asked)
    known = _known(run, finished, bundle, hosts, beside)
    outcomes = [*_of_setup(bundle), *_of_measurements(known, run)]
    rails = _of_rails(run)
    lint = environment.report(environment.of_file(str(beside.script))).findings if beside.script else ()
    found = doctor.once_per_cause(ranked((*(f for o in outcomes for f in o.findings), *rails, *lint)))
    decided = decide(run, finished, found, hosts)
    return PreflightReport(
        command="preflight",
        version=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        verdict=VERDICTS[decided.decision],
        findings=found,
        checks=rules.checks(outcomes),
        notes=(doctor.looked_at(bundle), *run.notes),
        preflight=decided,
        criteria=beside.criteria,
        certificates=known.certificates or (),
    )


def _of_setup(bundle: Bundle) -> list[Outcome]:
    _, outcomes = doctor.outcomes_of(bundle, doctor.Options())
    return [o for o in outcomes if not MEASURED & set(o.rule.needs)]


def _known(run: Run, finished: Finished, bundle: Bundle, hosts: Sequence[str], beside: Beside) -> Known:
    bench = measured(run, finished)
    probed = probes.read(run.probed, run.hosts) if run.probed else None
    certificates = None
    if beside.criteria:
        of_hosts, fleet = figures(run, finished)
        certificates = criteria.certificates(beside.criteria, bundle.hosts, of_hosts, fleet, names=hosts)
    return Known(
        cluster=Cluster(hosts=bundle.hosts) if bundle.hosts else None,
        bench=bench,
        launch=finished.launch,
        reach=run.reach,
        probes=probed,
        certificates=certificates,
        history=beside.history,
        script=environment.job_script(str(beside.script)) if beside.script else None,
        profile=profiles.find(run.options.profile) if run.options.profile else profiles.of_hosts(bundle.hosts),
        unread={
            "bench": "no collective was measured",
            "certificates": "no --criteria were named",
            "cluster": "no host was reached",
            "history": "no --history was named",
            "probes": "no device was measured",
            "profile": "no cloud profile fits all of these hosts",
            "reach": "the hosts did not try to connect",
            "script": "no --script was named",
        },
    )


def _of_measurements(known: Known, run: Run) -> list[Outcome]:
    wanted = [r for r in rules.RULES.values() if MEASURED & set(r.needs) and not NOT_OF_A_PREFLIGHT & set(r.needs)]
    return [_confirmed(o, run) for o in rules.run(known, wanted)]


def _of_rails(run: Run) -> list[Finding]:
    """Those that both measurements show, where there were two."""
    if not run.by_rail:
        return []
    again = None if run.pairs_again is None else {(f.code, f.where) for f in slow_rails(run.pairs_again)}
    return [f for f in slow_rails(run.pairs) if again is None or (f.code, f.where) in again]


def figures(run: Run, finished: Finished) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Of each host, and of all together."""
    return criteria.figures(
        (finished.bundle or Bundle()).hosts,
        probes.read(run.probed, run.hosts) if run.probed else None,
        run.results,
        run.pairs,
        host_of_rank=run.hosts,
    )


def _confirmed(outcome: Outcome, run: Run) -> Outcome:
    """Without the hosts that a measurement spoke against once only, of two times."""
    if outcome.rule.code == SLOW_HOST and run.pairs_again is not None:
        again = slow_in_pairs(run.pairs_again)
    elif outcome.rule in rules.load("devices") and run.probed_again is not None:
        read = accused(probes.read(run.probed_again, run.hosts))
        again = {host for code, host in read if code == outcome.rule.code}
    else:
        return outcome
    kept = [
        replace(f, where=replace(f.where, hosts=tuple(h for h in f.where.hosts if h in again)))
        for f in outcome.findings
    ]
    return replace(outcome, findings=tuple(f for f in kept if f.where.hosts))


def measured(run: Run, finished: Finished) -> Bench | None:
    """The collectives and pairs, with what this hardware gives."""
    if finished.world is None or not (run.results or run.pairs):
        return None
    transport = transport_of(finished)
    found = Bench(
        backend=finished.backend,
        launcher=finished.launch.launcher,
        world=finished.world,
        host_of_rank=finished.host_of_rank,
        results=tuple(run.results),
        pairs=tuple(run.pairs),
        transport=transport,
    )
    interface = next((s.interface for s in finished.launch.seats if s.interface), None)
    profile = profiles.find(run.options.profile) if run.options.profile else None
    hardware = profiles.hardware(
        finished.hosts, backend=finished.backend, profile=profile, transport=transport, interface=interface
    )
    rows = expected.for_results(run.results, backend=finished.backend, hardware=hardware, published=busbw.rows())
    return replace(found, expected=rows, nics_gbs=hardware.nic_gb_per_s)


# -- who may take part


def names(finished: Finished, asked: Sequence[str]) -> tuple[str, ...]:
    """All hosts that were asked for, by the names that findings use."""
    bundle = finished.bundle or Bundle()
    own = {alias: h.name for h in bundle.hosts for alias in (h.name, *h.aliases)}
    unreached = [h for f in finished.launch.faults for h in f.hosts if h not in own]
    called = [own.get(h.rpartition("@")[2], h.rpartition("@")[2]) for h in asked]
    seen = (*called, *(h.name for h in bundle.hosts), *(h.name for h in finished.hosts), *unreached)
    return tuple(dict.fromkeys(own.get(h, h) for h in seen))


def decide(run: Run, finished: Finished, found: Sequence[Finding], hosts: Sequence[str]) -> Preflight:
    """Each host, and then the whole: enough good hosts, and nothing that concerns all of them."""
    severe = {h: [f for f in found if h in _guilty(f, hosts) and _is_severe(f)] for h in hosts}
    mild = {
        h: [f for f in found if h in _guilty(f, hosts) and f.severity is Severity.WARNING and not _is_severe(f)]
        for h in hosts
    }
    general = [f for f in found if not _guilty(f, hosts) and f.severity is not Severity.INFO]
    each = tuple(_host(h, severe[h], mild[h]) for h in hosts)
    good = [h.name for h in each if h.decision is not Decision.NO_GO]
    best = sorted(good, key=lambda h: bool(mild[h]))
    needed = run.options.need or run.options.nodes or len(hosts)
    decision = Decision.GO
    if any(mild[h] for h in best[:needed]) or general:
        decision = Decision.WARNINGS
    if len(good) < needed or any(f.severity is Severity.ERROR for f in general):
        decision = Decision.NO_GO
    unfinished = _unfinished(run, finished)
    if decision is not Decision.NO_GO and unfinished:
        decision = Decision.INCOMPLETE
    chosen = set(best[:needed])
    causes = {h: [f.cause for f in severe[h]] for h in hosts if severe[h]}
    return Preflight(
        decision=decision,
        unfinished=unfinished,
        level=run.plan.level,
        needed=needed,
        good=len(good),
        hosts=each,
        stages=tuple(run.stages),
        exclude=tuple(causes),
        commands=tuple(Command(scheduler=s, line=line) for s, line in exclusion.commands(causes)),
        nodelist=tuple(h for h in hosts if h in chosen),
        budget_s=run.plan.budget_s,
        seconds=round(run.seconds, 2),
    )


def _is_severe(f: Finding) -> bool:
    return f.severity is Severity.ERROR or f.cause in LEAVE_OUT


def _guilty(f: Finding, hosts: Sequence[str]) -> tuple[str, ...]:
    """The hosts that a finding is about, where it is about some of them and not about all."""
    concerned = tuple(h for h in hosts if h in f.where.hosts)
    sure = f.confidence is not Confidence.LIKELY or 2 * len(concerned) <= len(hosts)
    return concerned if sure and (len(concerned) < len(hosts) or len(hosts) == 1) else ()


def _host(name: str, severe: Sequence[Finding], mild: Sequence[Finding]) -> HostDecision:
    decision = Decision.NO_GO if severe else Decision.WARNINGS if mild else Decision.GO
    return HostDecision(
        name=name, decision=decision, reasons=tuple(f"{f.code}: {f.message}" for f in (*severe, *mild))[:MAX_REASONS]
    )


def _unfinished(run: Run, finished: Finished) -> str:
    """Why nobody can say GO; empty where somebody can."""
    if finished.launch.interrupted:
        return f"interrupted by {finished.launch.interrupted}"
    done = {s.name for s in run.stages if s.status in ("done", "failed")}
    if missing := [name for name in NEEDED_STAGES if name not in done]:
        return f"stage {missing[0]} was not reached"
    failed = [s for s in run.stages if s.status == "failed" or s.detail == SPENT]
    return f"stage {failed[0].name}: {failed[0].detail}" if failed else ""


# -- over several runs


STATUS = {Decision.GO: "passed", Decision.WARNINGS: "passed", Decision.NO_GO: "failed", Decision.INCOMPLETE: "unknown"}
WORST = (Decision.NO_GO, Decision.INCOMPLETE, Decision.WARNINGS, Decision.GO)


def past_run(report: PreflightReport, of_hosts: Mapping[str, Mapping[str, float]], *, job: str) -> PastRun:
    """What a history keeps of a run."""
    p = report.preflight
    return PastRun(
        created=report.created,
        command="preflight",
        verdict=p.decision.value,
        job=job,
        level=p.level,
        hosts={
            h.name: HostRun(
                status=STATUS[h.decision],
                codes=tuple(dict.fromkeys(reason.partition(":")[0] for reason in h.reasons)),
                figures=of_hosts.get(h.name, {}),
            )
            for h in p.hosts
        },
    )


def merged(reports: Sequence[PreflightReport]) -> PreflightReport:
    """Of repeated runs: the worst that was decided of each host, all findings, the stages of the last run."""
    last = reports[-1]
    if len(reports) == 1:
        return last
    seen: dict[str, list[HostDecision]] = {}
    for r in reports:
        for h in r.preflight.hosts:
            seen.setdefault(h.name, []).append(h)
    each = tuple(_over_runs(name, decisions, len(reports)) for name, decisions in seen.items())
    worst = min((r.preflight for r in reports), key=lambda p: WORST.index(p.decision))
    causes = {h.name: ["failed in repeated runs"] for h in each if h.decision is Decision.NO_GO}
    nodelist = tuple(h.name for h in each if h.name not in causes)[: worst.needed]
    decision = Decision.NO_GO if len(nodelist) < worst.needed else worst.decision
    decided = replace(
        last.preflight,
        decision=decision,
        unfinished=worst.unfinished,
        good=len(each) - len(causes),
        hosts=each,
        exclude=tuple(causes),
        commands=tuple(Command(scheduler=s, line=line) for s, line in exclusion.commands(causes)),
        nodelist=nodelist,
        seconds=sum(r.preflight.seconds for r in reports),
    )
    return replace(
        last,
        verdict=VERDICTS[decision],
        findings=ranked(tuple(f for r in reports for f in r.findings)),
        notes=(*last.notes, f"{len(reports)} runs, one after the other"),
        preflight=decided,
    )


def _over_runs(name: str, decisions: Sequence[HostDecision], num_runs: int) -> HostDecision:
    worst = min(decisions, key=lambda h: WORST.index(h.decision))
    times = sum(h.decision is worst.decision for h in decisions)
    reasons = tuple(f"{reason} ({times} of {num_runs} runs)" for reason in worst.reasons)
    return replace(worst, name=name, reasons=reasons)
