"""preflight before and during the run: the plan, and the stages one after the other, all with one crew.

What a stage has measured is kept when the next one fails, or nobody waits for it. Who does not answer is left out, and
the others go on. What it all means is said in `clearance`.
"""

import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import msgspec

from smoldiag import bench, launch, probes, rules
from smoldiag.facts import Bench, PairRate, Result, World
from smoldiag.facts.preflight import STAGES, Contact, Lookup, Plan, Reach, StageResult
from smoldiag.facts.probes import Probes
from smoldiag.facts.tables import Pair, PairTable, Tables
from smoldiag.findings import Finding
from smoldiag.launch import Choice, Event, Finished, Request
from smoldiag.launch.crew import Answers, Crew, Interrupted, Job
from smoldiag.model import blame, fsdp, inside_hosts
from smoldiag.rules import Known

LEVELS = {"quick": 60.0, "standard": 300.0, "deep": 1800.0}  # seconds in all, for up to FULL_NODES hosts
FULL_NODES = 64
PLANNED = {  # seconds of each stage; what is left of the budget is for what goes wrong
    "quick": {
        "reach": 12.0,
        "facts": 4.0,
        "device": 6.0,
        "node": 4.0,
        "pairs": 8.0,
        "together": 8.0,
        "storage": 10.0,
        "resume": 15.0,
        "script": 1.0,
    },
    "standard": {
        "reach": 15.0,
        "facts": 10.0,
        "device": 60.0,
        "node": 30.0,
        "pairs": 60.0,
        "together": 50.0,
        "storage": 40.0,
        "resume": 30.0,
        "script": 1.0,
    },
    "deep": {
        "reach": 15.0,
        "facts": 20.0,
        "device": 360.0,
        "node": 240.0,
        "pairs": 400.0,
        "together": 300.0,
        "storage": 240.0,
        "resume": 180.0,
        "script": 1.0,
    },
}
HIGH_PORTS = 3
CONNECT_S = 2.5  # two SYNs: the kernel repeats the first after a second
ALL_TO_ALL = 12  # up to so many hosts each connects to every other one; above to log2 of them
MASTER_PORT = 29500  # torchrun's
DEVICE_SHARES = {  # of the stage's time, by probe
    "nccl": {"compute": 0.5, "memory": 0.25, "links": 0.25},
    "gloo": {"compute": 0.6, "memory": 0.4},
}
CHECKPOINT_BYTES = 12  # per parameter: itself and two moments of AdamW, in float32
PROBE_EXTRA_S, STORAGE_EXTRA_S = 5.0, 15.0  # what a probe takes at most beyond its budget
SLOW_HOST = "BWD002"  # the rule that judges hosts by rates of pairs
SLOW_RAIL = ("BWD025", "BWD056")  # and those that judge one GPU's place in its host against the same in others
SPENT = "the budget is spent"
LATE_FACTOR, LEAST_DEADLINE_S = 2.0, 10.0  # a stage is over at the latest after so much of its planned time
MEASURING_SHARE = 0.5  # of a stage of collectives; the rest is for its group, warm-up and what is slow
SMALLEST, LARGEST = 64 << 10, 1 << 40  # bytes of a message
CALLS = 16  # of a collective, with warm-up and checks: so many fit into the measuring part of a stage


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was typed, checked."""

    level: str = "quick"
    budget_s: float | None = None
    nodes: int | None = None
    need: int | None = None  # hosts that the job needs; None: all that are asked for
    master_port: int = MASTER_PORT
    profile: str | None = None
    step: fsdp.Step | None = None  # the collectives of a model's training step
    path: Path | None = None  # where checkpoints go
    trainer: bool = False
    script: Path | None = None


@dataclass(kw_only=True)
class Run:
    """What is known so far. The report is written from it, whatever comes next."""

    options: Options
    plan: Plan
    on_event: Callable[[Event], None]
    began: float = field(default_factory=time.monotonic)
    stages: list[StageResult] = field(default_factory=list)
    reach: Reach | None = None
    results: list[Result] = field(default_factory=list)
    pairs: list[PairRate] = field(default_factory=list)
    pairs_again: list[PairRate] | None = None  # where the first ones spoke against somebody
    by_rail: bool = False  # ranks of a host have GPUs and NICs of their own
    probed: dict[str, Mapping[int, dict[str, Any]]] = field(default_factory=dict)  # records by probe and rank
    probed_again: dict[str, Mapping[int, dict[str, Any]]] | None = None  # where the first ones accused somebody
    hosts: list[str] = field(default_factory=list)  # of each rank of the crew
    notes: list[str] = field(default_factory=list)
    ended: float | None = None

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.began

    @property
    def left_s(self) -> float:
        return max(self.plan.budget_s - self.seconds, 0.0)

    def limits(self, planned_s: float) -> "Limits":
        """For a job of a stage: who takes far longer than planned is to blame; when the budget is spent, nobody is."""
        return {"deadline_s": max(LATE_FACTOR * planned_s, LEAST_DEADLINE_S), "cut_s": self.left_s}


class Limits(TypedDict):
    deadline_s: float
    cut_s: float


class Skipped(Exception):
    """A stage that has nothing to do here, and why."""


class Failed(Exception):
    """A stage that came to no result, and why."""


Stage = Callable[[Run, Crew, float], Awaitable[str]]


# -- the plan


def budget_s(level: str, nodes: int) -> float:
    """Stages take longer with many hosts, as the logarithm of their number: rounds of pairs, trees of collectives."""
    return LEVELS[level] * (1 + max(math.log2(max(nodes, 1) / FULL_NODES), 0) / math.log2(FULL_NODES))


def plan(options: Options, *, nodes: int | None) -> Plan:
    """The stages and their seconds, for so many hosts."""
    usual = budget_s(options.level, nodes or 1)
    budget = options.budget_s or usual
    wanted = {"storage": options.path is not None, "resume": options.trainer, "script": options.script is not None}
    chosen = [name for name in STAGES if wanted.get(name, True)]
    seconds = {name: PLANNED[options.level][name] * budget / LEVELS[options.level] for name in chosen}
    return Plan(level=options.level, nodes=nodes, budget_s=budget, stages=tuple(seconds.items()))


def in_words(p: Plan) -> str:
    stages = ", ".join(f"{name} {_time(seconds)}" for name, seconds in p.stages)
    return f"preflight {p.level}: about {_time(sum(s for _, s in p.stages))} of at most {_time(p.budget_s)}: {stages}"


def _hosts(count: int) -> str:
    return f"{count} host{'s' if count != 1 else ''}"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


# -- the stages


def run(
    choice: Choice, request: Request, options: Options, planned: Plan, on_event: Callable[[Event], None]
) -> tuple[Run, Finished]:
    """All of it: what is known at the end, and what became of the launch."""
    known = Run(options=options, plan=planned, on_event=on_event)
    finished = launch.run(choice, replace(request, crew=partial(conduct, known)), on_event=on_event)
    if not known.stages:
        why = finished.launch.interrupted or "no host could start its ranks"
        status = "interrupted" if finished.launch.interrupted else "failed"
        name, seconds = planned.stages[0]
        known.stages.append(StageResult(name=name, status=status, seconds=known.seconds, budget_s=seconds, detail=why))
    known.ended = known.ended or time.monotonic()
    return known, finished


async def conduct(run: Run, crew: Crew) -> None:
    """All stages of the plan, each with what it came to. Raises Interrupted once that is noted."""
    run.hosts = _host_names(crew)
    for number, (name, seconds) in enumerate(run.plan.stages):
        began = run.began if number == 0 else time.monotonic()  # the first one includes the start
        if run.left_s < 1:
            run.stages.append(StageResult(name=name, status="skipped", budget_s=seconds, detail=SPENT))
            continue
        status = "done"
        try:
            detail = await SEQUENCE[name](run, crew, seconds)
        except Skipped as why:
            status, detail = "skipped", str(why)
        except Failed as why:
            status, detail = "failed", str(why)
        except Interrupted as why:
            _not_reached(run, number, time.monotonic() - began, str(why))
            raise
        took = time.monotonic() - began
        run.stages.append(StageResult(name=name, status=status, seconds=took, budget_s=seconds, detail=detail))
        run.on_event(
            Event(text=f"{name}: {status} in {took:.1f} s of {seconds:.0f} s; {detail}".rstrip("; "), passing=False)
        )
    run.ended = time.monotonic()


def _not_reached(run: Run, number: int, seconds: float, why: str) -> None:
    for i, (name, planned) in enumerate(run.plan.stages[number:]):
        status, took = ("interrupted", seconds) if i == 0 else ("skipped", 0.0)
        run.stages.append(
            StageResult(name=name, status=status, seconds=took, budget_s=planned, detail=f"interrupted by {why}")
        )
    run.ended = time.monotonic()


async def reach(run: Run, crew: Crew, seconds: float) -> str:
    """Names, the master port and high ports between the hosts."""
    port, hosts = run.options.master_port, crew.hosts
    limits = run.limits(seconds)
    opened = await crew.do(
        "benchmarks.reach",
        {"do": "open", "master_port": port, "high_ports": HIGH_PORTS},
        crew.firsts,
        group=False,
        **limits,
    )
    listening = {crew.host_of(r): result for r, result in opened.results.items()}
    addresses = {host: crew.addresses(host) for host in crew.hosts}
    partners = partners_of([h for h in crew.hosts if h in listening])
    jobs = [
        Job(
            module="benchmarks.reach",
            members=crew.on(host)[:1],
            config={
                "do": "connect",
                "src": host,
                "master_port": port,
                "timeout_s": CONNECT_S,
                "targets": [_target(other, listening[other], addresses, host, port) for other in partners[host]],
            },
            group=False,
            **limits,
        )
        for host in partners
    ]
    answers = await crew.do_all(jobs)
    await crew.do("benchmarks.reach", {"do": "close"}, crew.firsts, group=False, **limits)
    tried = [result for a in answers for result in a.results.values()]
    in_use = tuple(h for h, found in listening.items() if found["master_error"])
    run.reach = Reach(
        hosts=hosts,
        contacts=tuple(msgspec.convert(c, Contact) for t in tried for c in t["contacts"]),
        lookups=tuple(msgspec.convert(found, Lookup) for t in tried for found in t["lookups"]),
        master_in_use=in_use,
        master_port=port,
    )
    _leave_out_unconnected(run.reach, crew)
    failed = sum(bool(c.error) for c in run.reach.contacts)
    return f"{_hosts(len(hosts))}; {len(run.reach.contacts) - failed} of {len(run.reach.contacts)} connections"


def partners_of(hosts: Sequence[str]) -> dict[str, list[str]]:
    """To whom each host connects: to all, or to the next ones at distances 1, 2, 4 ..., so that each is met often."""
    n = len(hosts)
    steps = range(1, n) if n <= ALL_TO_ALL else [2**i for i in range(int(math.log2(n - 1)) + 1)]
    return {host: [hosts[(i + step) % n] for step in steps] for i, host in enumerate(hosts)}


def _target(
    host: str, listening: Mapping[str, Any], addresses: Mapping[str, Sequence[str]], src: str, port: int
) -> dict[str, Any]:
    own = set(addresses[src])  # of bridges that every host has alike
    ports = [*([] if listening["master_error"] else [port]), *listening["high_ports"]]
    return {"name": host, "addresses": [a for a in addresses[host] if a not in own], "ports": ports}


def _leave_out_unconnected(found: Reach, crew: Crew) -> None:
    """Hosts that no process group could have as a member."""
    failed = [c for c in found.contacts if c.error and not c.master]
    blamed = blame.of_edges([(c.src, c.dst) for c in failed], found.hosts, own={c.src for c in failed if c.local})
    for host in (*blamed.hosts, *(b for _, b in blamed.pairs)):
        crew.drop(host, "high ports are blocked")
    if blamed.general:
        raise Failed("high ports are blocked between most hosts")


async def facts(run: Run, crew: Crew, seconds: float) -> str:
    """Until the agents have read their hosts, which they do since they were reached."""
    await crew.surveyed(min(LATE_FACTOR * seconds, run.left_s))
    return f"{_hosts(len(crew.facts))} read"


async def node(run: Run, crew: Crew, seconds: float) -> str:
    """Collectives inside each host, all hosts at the same time."""
    several = [crew.on(host) for host in crew.hosts if len(crew.on(host)) > 1]
    if not several:
        raise Skipped("one rank on each host")
    config = _collectives(run, crew, several[0], seconds)
    jobs = [Job(module="benchmarks.collectives", members=m, config=config, **run.limits(seconds)) for m in several]
    answers = await crew.do_all(jobs)
    found = [r for a in answers for r in inside(a)]
    if slow := {s.host for s in inside_hosts.slow(found, run.hosts, backend=crew.backend)}:
        again = await crew.do_all([job for job in jobs if crew.host_of(job.members[0]) in slow])
        found = better(found, [r for a in again for r in inside(a)])
    run.results += found
    _all_or_failed(answers, crew)
    return _hosts(len(several))


def inside(answers: Answers) -> list[Result]:
    return [replace(r, group=replace(r.group, kind="node")) for r in results_of(answers)]


def better(first: Sequence[Result], again: Sequence[Result]) -> list[Result]:
    """Of what was measured twice, the faster one."""
    second = {(r.collective, r.size_bytes, r.group): r for r in again}
    both = ((r, second.get((r.collective, r.size_bytes, r.group), r)) for r in first)
    return [max(two, key=lambda r: r.busbw_gbs) for two in both]


async def pairs(run: Run, crew: Crew, seconds: float) -> str:
    """Disjoint pairs of hosts, round by round; who looks slow is measured again."""
    if len(crew.hosts) < 2:
        raise Skipped("one host alone")
    answers = await _with_the_others(run, crew, "benchmarks.pairs", {}, seconds)
    run.pairs += pairs_of(answers)
    run.by_rail = crew.backend == "nccl"
    _all_or_failed([answers], crew)
    if slow_in_pairs(run.pairs) or (run.by_rail and slow_rails(run.pairs)):
        again = await crew.do("benchmarks.pairs", {}, **run.limits(seconds))
        run.pairs_again = pairs_of(again) if again.whole else None
    rounds = len({p.round for p in run.pairs})
    return f"{len(run.pairs)} rates in {rounds} rounds"


def slow_in_pairs(found: Sequence[PairRate]) -> set[str]:
    """Hosts that the rates of pairs speak against."""
    hosts = tuple(dict.fromkeys(h for p in found for h in (p.src_host, p.dst_host)))
    world = World(nodes=len(hosts), ranks=len(hosts), ranks_per_node=1, hosts=hosts)
    bench_of_pairs = Bench(backend="", launcher="", world=world, host_of_rank=hosts, results=(), pairs=tuple(found))
    of_hosts = [r for r in rules.load("bandwidth") if r.code == SLOW_HOST]
    outcomes = rules.run(Known(bench=bench_of_pairs), of_hosts)
    return {host for o in outcomes for f in o.findings for host in f.where.hosts}


def slow_rails(found: Sequence[PairRate]) -> tuple[Finding, ...]:
    """GPUs whose rates with the same local rank of other hosts are low while others of their host are fast, and rails
    that are slow on all hosts: in the sum over a host one of eight is lost."""
    on: dict[str, set[int]] = {}
    for p in found:
        on.setdefault(p.src_host, set()).add(p.src)
        on.setdefault(p.dst_host, set()).add(p.dst)
    lane = {rank: place for held in on.values() for place, rank in enumerate(sorted(held))}
    if not any(lane.values()):
        return ()
    pairs = tuple(
        Pair(
            a=p.src_host,
            b=p.dst_host,
            gb_per_s=p.gb_per_s,
            where="pairs of hosts",
            lane=lane[p.src],
            round=p.round,
            confirming=p.confirming,
        )
        for p in found
    )
    table = PairTable(where="pairs of hosts", kind="hosts", pairs=pairs, directed=True)
    of_rails = [r for r in rules.load("slow_pairs") if r.code in SLOW_RAIL]
    outcomes = rules.run(Known(tables=Tables(pairs=(table,))), of_rails)
    return tuple(f for o in outcomes for f in o.findings if f.where.gpus)


async def together(run: Run, crew: Crew, seconds: float) -> str:
    """Collectives over all ranks. A rank that comes late is believed when it does so twice."""
    if len(crew.ranks) < 2:
        raise Skipped("one rank alone")
    if not crew.on(crew.hosts[0])[1:] and len(crew.hosts) < 2:
        raise Skipped("one host alone, measured before")
    config = _collectives(run, crew, crew.ranks, seconds)
    answers = await _with_the_others(run, crew, "benchmarks.collectives", config, seconds)
    found = results_of(answers)
    if answers.whole and any(r.late_us > 0 for r in found):
        again = results_of(await crew.do("benchmarks.collectives", config, **run.limits(seconds)))
        found = confirmed(found, again)
    run.results += found
    run.notes += [str(r["text"]) for r in answers.records if r["kind"] == "note"]
    _all_or_failed([answers], crew)
    return f"{len(crew.ranks)} ranks on {_hosts(len(crew.hosts))}"


def confirmed(first: Sequence[Result], again: Sequence[Result]) -> list[Result]:
    """Without late ranks that came late once only."""
    late = {(r.collective, r.size_bytes, r.slowest_rank) for r in again if r.late_us > 0}
    return [r if (r.collective, r.size_bytes, r.slowest_rank) in late else replace(r, late_us=0.0) for r in first]


async def device(run: Run, crew: Crew, seconds: float) -> str:
    """Each device alone, all at the same time. What speaks against a host is measured twice."""
    first = await _devices(run, crew, seconds)
    run.probed |= first.results
    read = probes.read(first.results, run.hosts)
    if accused(read):
        again = await _devices(run, crew, seconds)
        run.probed_again = again.results
    if first.failed:
        raise Failed(first.failed)
    return probes.in_words(read)


@dataclass(kw_only=True)
class Devices:
    """Records of the probes of devices, by probe and rank."""

    results: dict[str, Mapping[int, dict[str, Any]]] = field(default_factory=dict)
    failed: str = ""


async def _devices(run: Run, crew: Crew, seconds: float) -> Devices:
    found = Devices()
    for name, share in DEVICE_SHARES[crew.backend].items():
        budget = seconds * share
        answers = await crew.do(
            f"benchmarks.{name}", {"budget_s": budget}, group=False, **run.limits(budget + PROBE_EXTRA_S)
        )
        found.results[name] = answers.results
        found.failed = found.failed or _failure(answers, crew)
    return found


def accused(read: Probes) -> set[tuple[str, str]]:
    """Rules and hosts: what the probes say against somebody."""
    outcomes = rules.run(Known(probes=read), rules.load("devices"))
    return {(f.code, host) for o in outcomes for f in o.findings for host in f.where.hosts}


async def storage(run: Run, crew: Crew, seconds: float) -> str:
    """The folder for checkpoints, from all hosts at the same time."""
    config: dict[str, Any] = {"path": str(run.options.path), "budget_s": seconds}
    if run.options.step:
        config["model_bytes"] = run.options.step.model.parameters * CHECKPOINT_BYTES
    limit_s = seconds + STORAGE_EXTRA_S
    answers = await _with_the_others(run, crew, "benchmarks.storage", config, limit_s, one_per_host=True)
    run.probed["storage"] = answers.results
    _all_or_failed([answers], crew)
    return probes.in_words(probes.read({"storage": answers.results}, run.hosts))


async def resume(run: Run, crew: Crew, seconds: float) -> str:
    """Steps of the reference trainer, and the last ones again from its checkpoint."""
    config = {"path": str(run.options.path)} if run.options.path else {}
    groups = [crew.ranks] if run.options.path else [crew.on(host) for host in crew.hosts]
    limits = run.limits(seconds + STORAGE_EXTRA_S)
    answers = await crew.do_all([Job(module="benchmarks.resume", members=g, config=config, **limits) for g in groups])
    run.probed["resume"] = {rank: result for a in answers for rank, result in a.results.items()}
    _all_or_failed(answers, crew)
    return probes.in_words(probes.read({"resume": run.probed["resume"]}, run.hosts))


async def script(run: Run, crew: Crew, seconds: float) -> str:
    """Judged with the rest; it runs nowhere."""
    return str(run.options.script)


SEQUENCE: dict[str, Stage] = {
    "reach": reach,
    "facts": facts,
    "device": device,
    "node": node,
    "pairs": pairs,
    "together": together,
    "storage": storage,
    "resume": resume,
    "script": script,
}


# -- what stages have in common


async def _with_the_others(
    run: Run, crew: Crew, module: str, config: Mapping[str, Any], seconds: float, *, one_per_host: bool = False
) -> Answers:
    """A job of all ranks, or of one on each host; where it fails because of hosts, again without them."""
    while True:
        members = crew.firsts if one_per_host else crew.ranks
        answers = await crew.do(module, config, members, **run.limits(seconds))
        left_out = set(answers.job.members) - set(crew.ranks)
        if answers.whole or not answers.faults or not left_out or len(crew.hosts) < 2 or run.left_s < 1:
            return answers


def _collectives(run: Run, crew: Crew, members: Sequence[int], seconds: float) -> dict[str, Any]:
    quick = run.options.level == "quick"
    options = bench.Options(
        collectives=("all_reduce",) if quick else bench.DEFAULT_COLLECTIVES,
        sizes=None,
        dtype="float32",
        budget_s=seconds * MEASURING_SHARE,
        iterations=None,
        groups=("all",),
        scale=False,
        pairs=(),
        per_rank=False,
        step=run.options.step if len(members) == len(crew.ranks) else None,
        profile=run.options.profile,
        references=(),
    )
    named = [crew.place_of[m].host for m in members]
    hosts = list(dict.fromkeys(h.name for h in named))
    world = World(
        nodes=len(hosts),
        ranks=len(members),
        ranks_per_node=max(sum(h.name == name for h in named) for name in hosts),
        hosts=tuple(hosts),
    )
    config = options.config(named, world, crew.backend)
    most = _largest(run, crew, seconds) if len(hosts) > 1 else config["verdict_size"]
    sizes = [] if quick else [size for size in config["sizes"] if size <= most]
    return {**config, "suspects": False, "sizes": sizes, "verdict_size": min(config["verdict_size"], most)}


def _largest(run: Run, crew: Crew, seconds: float) -> int:
    """Bytes of a message that the slowest pair of hosts carries often enough in the time of a stage."""
    flows: dict[tuple[str, str, int], float] = {}
    for p in run.pairs:
        if {p.src_host, p.dst_host} <= set(crew.hosts):
            key = (p.src_host, p.dst_host, p.round)
            flows[key] = flows.get(key, 0.0) + p.gb_per_s
    slowest = min((rate for rate in flows.values() if rate > 0), default=math.inf)
    fits = slowest * 1e9 * seconds * MEASURING_SHARE / CALLS / 2  # an all_reduce sends nearly twice its size
    return 1 << int(math.log2(min(max(fits, SMALLEST), LARGEST)))


def _all_or_failed(answers: Iterable[Answers], crew: Crew) -> None:
    for a in answers:
        if why := _failure(a, crew):
            raise Failed(why)


def _failure(a: Answers, crew: Crew) -> str:
    """Why a job has not come to an end on hosts that still take part; empty where it has."""
    if set(a.job.members) & set(crew.ranks) <= set(a.results):
        return ""
    if a.cut:
        return SPENT
    return a.faults[0].detail if a.faults else next(iter(a.failed.values()), "no answer").splitlines()[0][:200]


def _host_names(crew: Crew) -> list[str]:
    """Of each rank; empty where there is no rank of that number."""
    last = max(crew.place_of, default=-1)
    return [crew.host_of(r) if r in crew.place_of else "" for r in range(last + 1)]


def results_of(answers: Answers) -> list[Result]:
    """With the ranks of the crew instead of those of the job's group."""
    members = answers.job.members
    found = [msgspec.convert(_bare(r), Result) for r in answers.records if r["kind"] == "result"]
    return [
        replace(
            r,
            group=replace(r.group, ranks=tuple(members[i] for i in r.group.ranks)),
            slowest_rank=members[r.slowest_rank],
        )
        for r in found
    ]


def pairs_of(answers: Answers) -> list[PairRate]:
    members = answers.job.members
    found = [msgspec.convert(_bare(r), PairRate) for r in answers.records if r["kind"] == "pair"]
    return [replace(p, src=members[p.src], dst=members[p.dst]) for p in found]


def _bare(record: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k not in ("kind", "rank")}
