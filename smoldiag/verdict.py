"""nccl-bench after the run: what the records of the ranks mean, what is normal, what was found."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from smoldiag import __version__, profiles, redact, rules
from smoldiag.bench import Options
from smoldiag.facts import Bench, Cluster, PairRate, Result, Transport
from smoldiag.findings import BenchReport, Report, SetResult, TransportSummary, ranked, verdict
from smoldiag.knowledge import busbw
from smoldiag.launch import Finished
from smoldiag.model import expected
from smoldiag.parse import nccl_log
from smoldiag.rules import Known
from smoldiag.runs import Trained

T = TypeVar("T")
NO_FAILURE = {"busy"}  # faults that leave a device out, while the run goes on
OF_A_BENCH = rules.load("bandwidth", "cloud", "inside_hosts", "launch")  # the others need not be imported for it


def facts(finished: Finished, options: Options, *, nodes_asked: int | None) -> Bench | None:
    """What the records of the ranks say, as facts."""
    if finished.world is None:
        return None
    return Bench(
        backend=finished.backend,
        launcher=finished.launch.launcher,
        world=finished.world,
        host_of_rank=finished.host_of_rank,
        results=tuple(_decoded(finished.records, "result", Result)),
        pairs=tuple(_decoded(finished.records, "pair", PairRate)),
        transport=transport(finished),
        nodes_asked=nodes_asked,
        ranks_asked=finished.ranks_asked,
    )


def _decoded(records: Iterable[dict[str, Any]], kind: str, to: type[T]) -> Iterator[T]:
    for record in records:
        if record.get("kind") == kind:
            yield msgspec.convert({k: v for k, v in record.items() if k != "kind"}, to)


def transport(finished: Finished) -> Transport | None:
    """NCCL's own words where there are any; for gloo the interfaces that the ranks were bound to."""
    if finished.backend == "nccl":
        logs = {f"NCCL's log on {host}": text for host, text in finished.logs.items() if text}
        return nccl_log.parse_all(logs) if logs else None
    names = tuple(dict.fromkeys(s.interface for s in finished.launch.seats if s.interface))
    return Transport(network=f"gloo over {', '.join(names)}" if names else "gloo", nics=names or None)


def judge(finished: Finished, options: Options, *, nodes_asked: int | None) -> BenchReport:
    """The report: what was measured, what is normal, what was found."""
    known_hosts = Cluster(hosts=finished.hosts) if finished.hosts else None
    bench = facts(finished, options, nodes_asked=nodes_asked)
    if bench is not None and finished.hosts:
        bench = compared(bench, finished, options)
    known = Known(
        cluster=known_hosts,
        bench=bench,
        launch=finished.launch,
        profile=profiles.find(options.profile) if options.profile else profiles.of_hosts(finished.hosts),
        unread={
            "bench": "the ranks were never started",
            "cluster": "no host was reached",
            "profile": "no cloud profile fits all of these hosts",
        },
    )
    outcomes = tuple(rules.run(known, for_bench()))
    found = ranked(tuple(f for o in outcomes for f in o.findings))
    t = bench.transport if bench else None
    failed = any(f.kind not in NO_FAILURE for f in finished.launch.faults) or not (bench and bench.results)
    return BenchReport(
        version=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        verdict=verdict(found, incomplete=failed or finished.launch.interrupted is not None),
        backend=finished.backend,
        launcher=finished.launch.launcher,
        world=finished.world,
        transport=TransportSummary(
            network=t.network, plugin=t.plugin, nics=t.nics, gpudirect=t.gpudirect, nvls=t.nvls, channels=t.channels
        )
        if t
        else None,
        results=bench.results if bench else (),
        expected=bench.expected if bench else (),
        environment=environment(finished, t),
        findings=found,
        checks=rules.checks(outcomes),
        pairs=bench.pairs if bench else (),
        sets=tuple(_decoded(finished.records, "set", SetResult)),
        launch=finished.launch,
        notes=notes(finished),
    )


def of_run(trained: Trained) -> Report:
    """The report of a training run: who kept it from finishing, and where the time of its steps went."""
    known = Known(run=trained.run if trained.run.steps else None, launch=trained.finished.launch)
    outcomes = tuple(rules.run(replace(known, unread={"run": "no step was recorded"}), for_run()))
    found = ranked(tuple(f for o in outcomes for f in o.findings))
    launched = trained.finished.launch
    failed = any(f.kind not in NO_FAILURE for f in launched.faults) or not trained.run.steps
    return Report(
        command="train",
        version=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        verdict=verdict(found, incomplete=failed or launched.interrupted is not None),
        findings=found,
        checks=rules.checks(outcomes),
        notes=(*notes(trained.finished), *trained.notes),
    )


def for_bench() -> list[rules.Rule]:
    """The rules that a bench has facts for."""
    return [r for r in OF_A_BENCH if {"bench", "launch"} & set(r.needs) and "run" not in r.needs]


def for_run() -> list[rules.Rule]:
    """The rules that a training run has facts for."""
    return [r for r in rules.load("launch", "steps", "weights") if set(r.needs) <= {"run", "launch"}]


def compared(bench: Bench, finished: Finished, options: Options) -> Bench:
    """With what this hardware gives, as far as anybody knows."""
    interface = next((s.interface for s in finished.launch.seats if s.interface), None)
    profile = profiles.find(options.profile) if options.profile else None
    hardware = profiles.hardware(
        finished.hosts, backend=finished.backend, profile=profile, transport=bench.transport, interface=interface
    )
    rows = expected.for_results(
        bench.results, backend=finished.backend, hardware=hardware, published=busbw.rows(), site=options.references
    )
    return replace(bench, expected=rows, nics_gbs=hardware.nic_gb_per_s)


def environment(finished: Finished, t: Transport | None) -> dict[str, Any]:
    """What a later run is compared with: variables, versions, hardware."""
    versions = dict(finished.versions)
    if t and t.nccl_version:
        versions["nccl"] = t.nccl_version
    gpus = sorted({g.name for h in finished.hosts for g in h.gpus or ()})
    products = sorted({h.product for h in finished.hosts if h.product})
    taken = {k: redact.variable(k, v) for k, v in (t.env if t else ())}
    return {
        "variables": dict(finished.environment),
        "nccl_took": taken,
        "versions": versions,
        "gpus": gpus,
        "products": products,
    }


def notes(finished: Finished) -> tuple[str, ...]:
    said = [str(r.get("text", "")) for r in finished.records if r.get("kind") == "note"]
    if finished.launch.interrupted:
        said.append(f"interrupted by {finished.launch.interrupted}: these are the results until then")
    return (*said, *finished.launch.warnings)


def reference_document(bench: BenchReport) -> str:
    gpus = bench.environment["gpus"]
    products = bench.environment["products"]
    made = expected.make_references(
        bench_facts(bench),
        gpu=gpus[0] if gpus and bench.backend == "nccl" else None,
        created=bench.created,
        host_class=products[0] if products else None,
        versions=bench.environment["versions"],
    )
    return msgspec.json.format(msgspec.json.encode(made), indent=2).decode() + "\n"


def bench_facts(report: BenchReport) -> Bench:
    assert report.world is not None
    return Bench(
        backend=report.backend, launcher=report.launcher, world=report.world, host_of_rank=(), results=report.results
    )
