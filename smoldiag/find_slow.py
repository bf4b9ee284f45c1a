"""find-slow: rounds of pairs of hosts over one crew, or a table of somebody's pairs, and who is slow in it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from smoldiag import __version__, explain, launch, rules
from smoldiag.errors import SmoldiagError
from smoldiag.facts import Fault, Tables
from smoldiag.facts.tables import HostCompute, Pair, PairTable
from smoldiag.findings import Finding, Report, ranked, verdict
from smoldiag.launch import Choice, Event, Finished, Request
from smoldiag.launch.crew import Answers, Crew, Job
from smoldiag.model import pair_schedule, slow_nodes, slow_search
from smoldiag.rules import Known, node_growth, slow_pairs

WHERE = "find-slow"
LEAST_HOSTS = 3
EXTRA_S = 6.0  # of a pair, besides its budgets: meeting, warming up, computing
MAX_PAIRS_IN_REPORT = 2_000  # more only where they are asked for: a report of many hosts stays small
NO_FAILURE = {"busy"}  # faults that leave a device out, while the search goes on
OF_TABLES = {f"BWD{number:03d}" for number in (25, 52, 53, 54, 55, 56, 57, 65, 66)}
HUNG = {"stalled", "stopped", "lost"}  # kinds of faults


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was typed, checked."""

    exhaustive: bool = False
    budget_s: float = 1.0  # for one direction of a pair
    deadline_s: float = 20.0  # after which a pair counts as hung
    with_pairs: bool = False


@dataclass(kw_only=True)
class Search:
    """What is known so far. The report is written from it, however the search ends."""

    options: Options
    on_event: Callable[[Event], None]
    hosts: tuple[str, ...] = ()
    rounds: int = 0
    pairs: list[Pair] = field(default_factory=list)
    computes: list[HostCompute] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)  # host -> why it takes no part any more
    whole: bool = False  # it came to its end
    interrupted: bool = False

    @property
    def table(self) -> PairTable:
        return PairTable(
            where=WHERE, kind="hosts", pairs=tuple(self.pairs), directed=True, computes=tuple(self.computes)
        )


def in_words(nodes: int | None, options: Options) -> str:
    """The plan, before it begins. SmoldiagError where there is nobody to compare."""
    if not nodes:
        return "find-slow: rounds of disjoint pairs of hosts"
    if nodes < LEAST_HOSTS:
        raise SmoldiagError(
            f"{nodes} host{'s' if nodes > 1 else ''}: who is slow shows only beside {LEAST_HOSTS - nodes} more",
            hint="name them: smoldiag find-slow --hosts a,b,c, or stand in an allocation",
        )
    planned = len(pair_schedule.searching(nodes, exhaustive=options.exhaustive))
    seconds = planned * (2 * options.budget_s + 1)
    most = max(pair_schedule.most_rounds(nodes), planned + 1)
    return f"find-slow: {planned} rounds of pairs among {nodes} hosts, at most {most}; about {seconds:.0f} s"


def run(
    choice: Choice, request: Request, options: Options, on_event: Callable[[Event], None]
) -> tuple[Search, Finished]:
    """All rounds: what is known at the end, and what became of the launch."""
    search = Search(options=options, on_event=on_event)
    finished = launch.run(choice, replace(request, crew=partial(conduct, search)), on_event=on_event)
    search.interrupted = finished.launch.interrupted is not None
    return search, finished


async def conduct(search: Search, crew: Crew) -> None:
    """Round after round, until it is known who is slow. Raises Interrupted."""
    search.hosts = crew.hosts
    while planned := slow_search.next_round(
        search.hosts,
        done=search.rounds,
        pairs=search.pairs,
        computes=search.computes,
        lost=tuple(search.lost),
        exhaustive=search.options.exhaustive,
    ):
        jobs = [_job(crew, pair, search.options) for pair in planned.pairs if set(pair) <= set(crew.hosts)]
        for answers in await crew.do_all(jobs):
            add(search, crew, planned, answers)
        search.lost = dict(crew.dropped)
        search.rounds += 1
        search.on_event(Event(text=_progress(search, planned)))
    search.whole = True


def _job(crew: Crew, pair: tuple[str, str], options: Options) -> Job:
    return Job(
        module="benchmarks.two_hosts",
        members=tuple(sorted(r for host in pair for r in crew.on(host))),
        config={"budget_s": options.budget_s},
        deadline_s=options.deadline_s,
    )


def _progress(search: Search, planned: slow_search.Round) -> str:
    doing = "measured again" if planned.confirming else "measured"
    lost = f", {len(search.lost)} hosts left out" if search.lost else ""
    return f"round {search.rounds}: {len(planned.pairs)} pairs {doing}{lost}"


def add(search: Search, crew: Crew, planned: slow_search.Round, answers: Answers) -> None:
    """What one pair has measured, or that it came to nothing, where neither host is to blame for that alone."""
    hosts = {r: crew.host_of(r) for r in answers.job.members}
    for rank, result in answers.results.items():
        search.computes.append(HostCompute(host=hosts[rank], lane=result["lane"], seconds=result["compute_s"]))
        if got := result["received"]:
            search.pairs.append(
                Pair(
                    a=got["src_host"],
                    b=hosts[rank],
                    gb_per_s=got["gb_per_s"],
                    where=WHERE,
                    lane=result["lane"],
                    spread=got["spread"],
                    round=planned.number,
                    confirming=planned.confirming,
                )
            )
    if answers.whole or set(hosts.values()) & set(crew.dropped):
        return
    fate = "hung" if any(f.kind in HUNG for f in answers.faults) else "failed"
    both = tuple(dict.fromkeys(hosts.values()))
    if len(both) == 2:
        search.pairs += [
            Pair(a=a, b=b, gb_per_s=0.0, where=WHERE, fate=fate, round=planned.number, confirming=planned.confirming)
            for a, b in (both, both[::-1])
        ]


# -- what it means


def judge(search: Search, finished: Finished) -> Report:
    """The report of what was measured, whatever the search came to."""
    table = search.table
    sure = replace(finished.launch, faults=tuple(f for f in finished.launch.faults if not _told_by_pairs(f, search)))
    known = Known(
        tables=Tables(pairs=(table,)) if table.pairs else None,
        launch=sure,
        unread={"tables": "no pair was measured"},
    )
    wanted = [r for r in rules.RULES.values() if r.code in OF_TABLES or set(r.needs) == {"launch"}]
    outcomes = tuple(rules.run(known, wanted))
    found = ranked(tuple(f for o in outcomes for f in o.findings))
    failed = any(f.kind not in NO_FAILURE for f in sure.faults)
    incomplete = failed or search.interrupted or not search.whole or not search.pairs
    return Report(
        command="find-slow",
        version=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        verdict=verdict(found, incomplete=incomplete),
        findings=found,
        checks=rules.checks(outcomes),
        facts=facts(search, excluded(found)),
        notes=(summary(search), *_notes(search, finished)),
    )


def _told_by_pairs(fault: Fault, search: Search) -> bool:
    """What befell pairs whose hosts went on with others: their rates say who it was."""
    went_on = set(search.hosts) - set(search.lost)
    return not fault.certain or (bool(fault.hosts) and set(fault.hosts) <= went_on)


def summary(search: Search) -> str:
    """How much was measured, and what that can show."""
    met = {frozenset((p.a, p.b)) for p in search.pairs}
    total = len(search.hosts) * (len(search.hosts) - 1) // 2
    said = f"{len(search.hosts)} hosts, {search.rounds} rounds, {len(met)} of {total} pairs"
    explained = slow_nodes.explain(search.pairs, directed=True)
    if explained is None:
        return said
    count = len({p.round for p in search.pairs})
    shown = slow_nodes.limit(explained.sigma, count, of=2 * len(search.hosts))
    return (
        f"{said}; usual {explained.usual_gbs:.4g} GB/s, noise {explained.sigma:.0%}: a host below {shown:.0%} of the "
        "usual rate would show"
    )


def _notes(search: Search, finished: Finished) -> tuple[str, ...]:
    said = [f"{host} was left out: {why}" for host, why in search.lost.items()]
    if finished.launch.interrupted:
        said.append(f"interrupted by {finished.launch.interrupted}: these are the rounds until then")
    return (*said, *finished.launch.warnings)


def excluded(found: Sequence[Finding]) -> tuple[str, ...]:
    """Hosts that a job should do without: those named alone, above info."""
    return tuple(
        dict.fromkeys(
            f.where.hosts[0] for f in found if len(f.where.hosts) == 1 and f.severity.value in ("error", "warning")
        )
    )


def facts(search: Search, exclude: Sequence[str]) -> Mapping[str, Any]:
    explained = slow_nodes.explain(search.pairs, directed=True, computes=search.computes)
    made: dict[str, Any] = {
        "hosts": list(search.hosts),
        "rounds": search.rounds,
        "exclude": list(exclude),
        "lost": dict(search.lost),
    }
    if explained:
        made |= {
            "usual_gbs": explained.usual_gbs,
            "noise": explained.sigma,
            "terms": {host: asdict(terms) for host, terms in explained.terms.items()},
        }
    if len(search.pairs) <= MAX_PAIRS_IN_REPORT or search.options.with_pairs:
        made["pairs"] = [asdict(p) for p in search.pairs]
    return made


# -- files


def of_files(names: Sequence[str]) -> tuple[Report, tuple[Pair, ...]]:
    """Who is slow by tables of pairs, sweeps over node counts or saved benches, and the pairs.

    SmoldiagError where nothing in it is known.
    """
    explained = explain.explain(names)
    found = tuple(f for f in explained.report.findings if f.code in OF_TABLES)
    tables = explained.known.tables or Tables()
    report = replace(
        explained.report,
        command="find-slow",
        findings=found,
        verdict=verdict(found),
        checks=tuple(c for c in explained.report.checks if c.code in OF_TABLES),
        facts=_facts_of(tables, excluded(found)),
        notes=(_read(tables), *explained.notes),
        restart="",
    )
    return report, tuple(p for table, _ in slow_pairs.of_hosts(tables) for p in table.pairs)


def _facts_of(tables: Tables, exclude: Sequence[str]) -> Mapping[str, Any]:
    judged = [e for _, e in slow_pairs.of_hosts(tables)]
    terms = {host: asdict(t) for e in judged for host, t in e.terms.items()}
    return {"exclude": list(exclude), "terms": terms} | ({"usual_gbs": judged[0].usual_gbs} if judged else {})


def _read(tables: Tables) -> str:
    pairs = [table for table, _ in slow_pairs.of_hosts(tables)]
    sweeps = list(node_growth.sweeps(tables))
    said = [f"{sum(len(t.pairs) for t in pairs)} rates of pairs"] if pairs else []
    for sweep in sweeps:
        counts = sorted({n for points in sweep.values() for n in points})
        said.append(f"{', '.join(sweep)} over {counts[0]} to {counts[-1]} nodes")
    return "; ".join(said) or "no pairs of hosts and no sweep over node counts in it"
