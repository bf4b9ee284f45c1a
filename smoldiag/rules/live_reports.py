"""HNG034 to HNG037: what a running job answers: NCCL's RAS, diagnostics and Inspector, stacks."""

import re
from collections.abc import Iterator

from smoldiag.facts import Evidence, Flight
from smoldiag.facts.flight import RasComm, Stack
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.model.hangs import diagnosis
from smoldiag.rules import rule
from smoldiag.rules.hang_words import CONSEQUENCES, SHOWN, at, on, ranks_text, where_of


def _gone(comm: RasComm) -> Finding | None:
    gone = [r for r in comm.ranks if r.state in ("dead", "unresponsive")]
    if not gone:
        return None
    ranks = [r.rank for r in gone]
    hosts = tuple(dict.fromkeys(r.host for r in gone if r.host))
    pids = ", ".join(f"pid {r.pid}" for r in gone[:SHOWN] if r.pid)
    return Finding(
        message=f"{ranks_text(ranks)}{on(hosts)}: {', '.join(dict.fromkeys(r.state for r in gone))} for NCCL's RAS in "
        f"communicator {comm.id}{' (' + pids + ')' if pids else ''}",
        cause="rank-died" if all(r.state == "dead" for r in gone) else "straggler-or-hung-rank",
        severity=Severity.ERROR,
        confidence=Confidence.LIKELY,
        where=Where(ranks=tuple(sorted(ranks)), hosts=hosts),
        evidence=comm.evidence[:SHOWN],
        why="its process does not answer: ended, stopped, or the host is gone",
        fixes=(Fix(do="see whether it runs", command="ps -eo pid,stat,wchan:32,args | grep -E ' [TDZ]'"),),
        sources=RAS_SOURCES,
        explains=CONSEQUENCES,
    )


def _lagging(comm: RasComm, *, again: bool) -> Finding | None:
    """Of one report it is worth knowing; the same in two of them is a hang."""
    counted = [r for r in comm.ranks if r.counts]
    for op in sorted({op for r in counted for op in r.counts}):
        named = [r for r in counted if op in r.counts]
        least = min(r.counts[op] for r in named)
        late = [r for r in named if r.counts[op] == least]
        most = max(r.counts[op] for r in named)
        listed_alone = len(late) == len(named)  # in text RAS lists the outliers only
        if not late or (least == most and not (listed_alone and comm.errors == "MISMATCH")):
            continue
        hosts = tuple(dict.fromkeys(r.host for r in late if r.host))
        counts = f"{least} {op}" + ("" if least == most else f", others up to {most}")
        return Finding(
            message=f"{ranks_text([r.rank for r in late])}{on(hosts)} made {counts} in communicator {comm.id} "
            f"of NCCL's RAS{', in both reports' if again else ''}",
            cause="straggler-or-hung-rank",
            severity=Severity.ERROR if again else Severity.INFO,
            confidence=Confidence.LIKELY if again else Confidence.POSSIBLE,
            where=Where(ranks=tuple(sorted(r.rank for r in late)), hosts=hosts),
            evidence=comm.evidence[:SHOWN],
            why="who has made fewest is waited for, if the counts stand still",
            fixes=(Fix(do="see where it is, on its host", command="py-spy dump --pid PID"),),
            confirm="query again: counts that move are a run that goes on",
            sources=RAS_SOURCES,
            explains=CONSEQUENCES if again else (),
        )
    return None


RAS_SOURCES = ("NCCL src/ras", "NCCL user guide: RAS")


@rule("HNG034", Severity.ERROR)
def ras_reports_ranks_that_lag_or_are_gone(flight: Flight) -> Iterator[Finding]:
    """NCCL's RAS sees processes that do not answer, or ranks that lag behind.

    It counts the collectives of each rank. Counts that differ are normal in a run that goes on; the same difference in
    two queries is a rank that is waited for.

    Fix: look at the named rank; query again to see whether the counts move.
    """
    seen: dict[str, RasComm] = {}
    for report in flight.ras:
        for comm in report.comms:
            before = seen.get(comm.id)
            seen[comm.id] = comm
            again = before is not None and before.ranks == comm.ranks
            if finding := _gone(comm) or _lagging(comm, again=again):
                yield finding


CHECKS = {  # of NCCL's diagnostics: what it means where ranks differ or something is wrong
    "ecc": "gpu-ecc-error",
    "nvlink": "nvlink-error",
    "cuda driver version": "env-or-version-mismatch-across-ranks",
    "nccl environment": "env-or-version-mismatch-across-ranks",
    "gpu inventory": "gpus-differ-across-ranks",
    "p2p": "gpu-p2p-unavailable",
    "net bw": "slow-nic",
}
NOT_A_FAULT = ("unavailable", "not available", "partial", "incomplete", "skipped", "unsupported", "min/median/max")
MAY_DIFFER = re.compile(r"\bNCCL_(?:DEBUG\w*|HOSTID|RAS_ADDR|TOPO_DUMP\w*|GRAPH_DUMP\w*)\b")


@rule("HNG035", Severity.WARNING)
def nccl_diagnostics_found_something(flight: Flight) -> Iterator[Finding]:
    """NCCL's own diagnostics (2.31 and later) report a check that did not pass.

    They test peer-to-peer between GPUs, network bandwidth, ECC, NVLink and whether variables agree over ranks. What
    they mark `[INFO]` is to be looked at; they never end a program.

    Fix: as the line says; the same checks again: NCCL_RUN_DIAGNOSTICS=1, or ncclras -D.
    """
    for line in flight.diagnostics:
        if line.level == "OK" or any(word in line.text.lower() for word in NOT_A_FAULT):
            continue
        harmless = MAY_DIFFER.search(line.text) is not None or " env var(s) differ" in line.text
        cause = CHECKS.get(line.check.lower(), "nccl-diagnostics")
        yield Finding(
            message=f"NCCL's diagnostics, {line.check}: {line.text}",
            cause=cause,
            severity=Severity.INFO if harmless or cause == "nccl-diagnostics" else Severity.WARNING,
            confidence=Confidence.LIKELY,
            evidence=(line.evidence,),
            why="NCCL tested it on this machine",
            confirm="NCCL_RUN_DIAGNOSTICS=1 in front of the program, or ncclras -D while it runs",
            sources=("NCCL user guide: RAS diagnostics",),
        )


LATE_SHARE = 0.5  # of the collectives in which one and the same rank came last
LATE_MIN = 50  # collectives compared
LATE_RATIO = 0.7  # its own time in them, against the median of all: who comes last waits least


@rule("HNG036", Severity.WARNING)
def one_rank_comes_last_to_most_collectives(flight: Flight) -> Iterator[Finding]:
    """One rank comes last to most collectives, as NCCL's Inspector times them.

    Who waits spends long in a collective; who is waited for comes late and is through at once.

    Fix: look for what slows that rank: data loading, clocks, another process on its GPU.
    """
    by_comm: dict[str, list[float]] = {}
    for a in flight.arrivals:
        by_comm.setdefault(a.comm, []).append(a.median_us)
    for a in flight.arrivals:
        usual = sorted(by_comm[a.comm])[len(by_comm[a.comm]) // 2]
        share = a.last / a.collectives if a.collectives else 0.0
        many = a.collectives >= LATE_MIN and share >= max(LATE_SHARE, 3 / a.ranks)
        if many and a.median_us <= LATE_RATIO * usual:
            yield Finding(
                message=f"rank {a.rank} on {a.host} came last to {a.last} of {a.collectives} collectives: "
                f"{a.median_us:.0f} us in them, the others {usual:.0f} us",
                cause="straggler-or-hung-rank",
                severity=Severity.WARNING,
                confidence=Confidence.LIKELY,
                where=Where(ranks=(a.rank,), hosts=(a.host,) if a.host else ()),
                evidence=(
                    Evidence(text=f"least time in {share:.0%} of them", where=f"Inspector, communicator {a.comm}"),
                ),
                why="all others wait for it in each of them",
                cost=f"about {usual - a.median_us:.0f} us per collective",
                confirm="smoldiag find-slow",
                sources=("NCCL plugins/profiler/inspector",),
            )


WAITING_IN = ("torch/distributed/", "torch/cuda/streams.py", "torch/cuda/__init__.py", "_functional_collectives")


def _is_waiting(stack: Stack) -> bool:
    """In a collective, or in a synchronisation with the GPU, which is where NCCL's collectives are waited for."""
    return any(part in f.filename for f in stack.frames for part in WAITING_IN)


def _named(stack: Stack) -> str:
    return f"rank {stack.rank}" if stack.rank is not None else f"pid {stack.pid} ({stack.where})"


@rule("HNG037", Severity.WARNING)
def most_stacks_wait_in_a_collective_and_one_does_not(flight: Flight) -> Iterator[Finding]:
    """Most main threads wait in a collective; one is elsewhere in the program.

    Who waits is healthy. Who is elsewhere is waited for: reading data, writing a checkpoint, in a lock or a loop.

    Fix: look at the named line; a second stack a while later shows whether it moves.
    """
    if flight.dumps and diagnosis(flight).suspects:
        return  # dumps know more, and have the stack of the rank in their evidence
    main = [s for s in flight.stacks if s.thread.startswith("MainThread") and s.frames]
    away = [s for s in main if not _is_waiting(s)]
    if len(main) < 3 or not away or 2 * len(away) >= len(main):
        return
    places = "; ".join(f"{_named(s)} is at {at(s)} ({at(s).name})" for s in away[:4])
    ranks = [s.rank for s in away if s.rank is not None]
    yield Finding(
        message=f"{len(main) - len(away)} of {len(main)} processes wait in a collective; {places}",
        cause="straggler-or-hung-rank",
        severity=Severity.WARNING,
        confidence=Confidence.POSSIBLE,
        where=where_of(flight, ranks),
        evidence=tuple(Evidence(text=f"{_named(s)}: {at(s).name} ({at(s)})", where=s.where) for s in away[:SHOWN]),
        why="the others wait for it, if it is there for long",
        fixes=(Fix(do=f"look at {at(away[0])}: that keeps it"),),
        confirm="a second py-spy dump 30 s later: the same line is a hang, another one is slow",
        explains=CONSEQUENCES,
    )
