"""HNG020 and on: who keeps a job whose ranks wait for each other, from dumps, watchdog lines, stacks and RAS."""

import re
from collections.abc import Iterator, Sequence

from smoldiag.facts import Evidence, Flight
from smoldiag.facts.flight import Call, Frame, RankState, RasComm, Stack, Timer
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.model.hangs import Diagnosis, Suspect, diagnosis
from smoldiag.model.streams import is_library, site
from smoldiag.model.turns import Turn
from smoldiag.model.watchdogs import Reading, readings
from smoldiag.rules import rule

SHOWN = 8  # ranks, lines of a table
CONSEQUENCES = ("rank-stalled", "rank-failed", "nccl-failed", "peer-died")
WAITING_IS = (*CONSEQUENCES, "straggler-or-hung-rank", "network-wedged")
RECORD = Fix(
    do="keep the stacks of all ranks next time",
    command="export TORCH_FR_BUFFER_SIZE=2000 TORCH_NCCL_DUMP_ON_TIMEOUT=1 TORCH_FR_DUMP_TEMP_FILE=/tmp/fr_rank_",
)
FIX_FIRST = "fix first: the program would come to the same place again"
SOURCE = "pytorch torch/csrc/distributed/c10d/FlightRecorder.hpp"
WATCHDOG_SOURCE = "pytorch torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp"


def ranks_text(ranks: Sequence[int]) -> str:
    """rank 3; ranks 0, 1, 4-9"""
    if not ranks:
        return "no rank"
    runs: list[list[int]] = []
    for r in sorted(ranks):
        if runs and r == runs[-1][-1] + 1:
            runs[-1].append(r)
        else:
            runs.append([r])
    parts = [p for run in runs for p in ([f"{run[0]}-{run[-1]}"] if len(run) > 2 else map(str, run))]
    more = f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(parts[:SHOWN])}{more}"


def call_text(call: Call | None) -> str:
    """all_reduce of [4096] Float"""
    if call is None:
        return "nothing"
    sizes = call.input_sizes or call.output_sizes
    shapes = ", ".join(str(list(s)) for s in sizes[:3]) + (f" and {len(sizes) - 3} more" if len(sizes) > 3 else "")
    types = ", ".join(sorted(set(call.input_dtypes or call.output_dtypes)))
    peer = f" {call.peer[0]}->{call.peer[1]}" if call.peer else ""
    return f"{call.op}{peer}" + (f" of {shapes} {types}".rstrip() if sizes else "")


def place_text(call: Call | None) -> str:
    """at train.py:56 (in main)"""
    frame = site(call) if call else None
    return f" at {frame} ({frame.name})" if frame else ""


def _hosts(flight: Flight, ranks: Sequence[int]) -> tuple[str, ...]:
    named = {**{d.rank: d.host for d in flight.dumps if d.rank is not None and d.host}, **flight.hosts}
    return tuple(dict.fromkeys(named[r] for r in ranks if r in named))


def _who(flight: Flight, ranks: Sequence[int]) -> str:
    hosts = _hosts(flight, ranks)
    on = f" on {', '.join(hosts[:SHOWN])}" + (" ..." if len(hosts) > SHOWN else "") if hosts else ""
    return ranks_text(ranks) + on


def _where(flight: Flight, ranks: Sequence[int]) -> Where:
    return Where(ranks=tuple(sorted(ranks)), hosts=_hosts(flight, ranks))


def _file(flight: Flight, rank: int) -> str:
    newest = [d for d in flight.dumps if d.rank == rank]
    return max(newest, key=lambda d: d.newest_ns or 0).where if newest else "the dumps"


def _stack_of(flight: Flight, rank: int) -> Stack | None:
    own = [s for s in flight.stacks if s.rank == rank and s.frames]
    main = [s for s in own if s.thread.lower().startswith("main")]
    return next(iter(main or own), None)


def _at(stack: Stack) -> Frame:
    return next((f for f in stack.frames if not is_library(f)), stack.frames[0])


def _table(flight: Flight, d: Diagnosis, s: Suspect) -> tuple[Evidence, ...]:
    """A line per rank that matters: who waits where since when, what the suspects did last."""
    lines = []
    if s.turn:
        usual = f"; usual there: {call_text(s.turn.usual)}{place_text(s.turn.usual)}"
        rank = s.turn.rank
        lines.append(
            Evidence(
                text=f"rank {rank}: {call_text(s.turn.did)}{place_text(s.turn.did)}, "
                f"{s.turn.group} #{s.turn.seq}{usual}",
                where=_file(flight, rank),
            )
        )
    for call, ranks in s.divergence.calls if s.divergence else ():
        lines.append(
            Evidence(
                text=f"{s.divergence.group} #{s.divergence.seq}: {ranks_text(ranks)}: "  # type: ignore[union-attr]
                f"{call_text(call)}{place_text(call)}",
                where=_file(flight, ranks[0]),
            )
        )
    if s.last and s.ranks and s.ranks[0] in d.ranks:
        text = f"rank {s.ranks[0]}: last did {call_text(s.last)}{place_text(s.last)}, and waits in none"
        lines.append(Evidence(text=text, where=_file(flight, s.ranks[0])))
    for w in s.waits[:SHOWN]:
        age = f" for {w.age_s:.0f} s" if w.age_s is not None and 0 < w.age_s < 1e6 else ""
        on = f" for {ranks_text(w.absent)}" if w.absent else ""
        lines.append(
            Evidence(
                text=f"rank {w.rank}: in {w.group} #{w.seq}, {call_text(w.call)}{place_text(w.call)}{age}; waits{on}",
                where=_file(flight, w.rank),
            )
        )
    for r in s.ranks[:SHOWN]:
        if stack := _stack_of(flight, r):
            frames = " < ".join(f"{f.name} ({f})" for f in stack.frames[:4])
            lines.append(Evidence(text=f"rank {r} is in {frames}", where=stack.where))
    return tuple(dict.fromkeys(lines))


def _suspects(flight: Flight, *kinds: str) -> Iterator[tuple[Diagnosis, Suspect]]:
    if flight.dumps:
        d = diagnosis(flight)
        yield from ((d, s) for s in d.suspects if s.kind in kinds)


def _confidence(d: Diagnosis, s: Suspect) -> Confidence:
    if s.shortlist or (d.still is None and not s.divergence):
        return Confidence.POSSIBLE
    return Confidence.CERTAIN if s.certain else Confidence.LIKELY


def _severity(d: Diagnosis, s: Suspect) -> Severity:
    return Severity.ERROR if s.divergence or d.still else Severity.WARNING


HOW = {
    "skipped": "skips",
    "order": "calls out of turn:",
    "size": "calls with another size:",
    "dtype": "calls with another type:",
    "branch": "alone calls",
    "left-loop": "has left its loop and is in",
    "stays-in-loop": "goes on with its loop and is in",
}


def _turn_text(flight: Flight, s: Suspect, turn: Turn) -> str:
    who = _who(flight, s.ranks)
    did, usual = call_text(turn.did) + place_text(turn.did), call_text(turn.usual) + place_text(turn.usual)
    verb = HOW[turn.how]
    if turn.how == "skipped":
        return f"{who} {verb} {usual}: went on to {did} ({turn.group} #{turn.seq})"
    if turn.saving and turn.how == "branch":
        return f"{who} saves or evaluates alone: {did}, where {usual} comes next ({turn.group} #{turn.seq})"
    return f"{who} {verb} {did}, where {usual} comes next ({turn.group} #{turn.seq})"


def _others_wait(s: Suspect) -> str:
    waiting = sorted({w.rank for w in s.waits} - set(s.ranks))
    if not waiting:
        return ""
    first = next(w for w in s.waits if w.rank == waiting[0])
    verb = "wait" if len(waiting) > 1 else "waits"
    place = f"{call_text(first.call)}{place_text(first.call)} ({first.group} #{first.seq})"
    return f"; {ranks_text(waiting)} {verb} in {place}"


def _or_else(flight: Flight, d: Diagnosis, s: Suspect, cause: str, what: str) -> Finding:
    """What looks the same from outside: after a loop, or at its end."""
    assert s.turn is not None
    return Finding(
        message=f"or, for {_who(flight, s.ranks)}{place_text(s.turn.did)}: {what}",
        cause=cause,
        severity=Severity.WARNING,
        confidence=Confidence.POSSIBLE,
        where=_where(flight, s.ranks),
        evidence=_table(flight, d, s)[:1],
        confirm="whether that line stands inside the loop",
        sources=(SOURCE,),
        restart=FIX_FIRST,
    )


@rule("HNG020", Severity.ERROR)
def collectives_differ_between_ranks(flight: Flight) -> Iterator[Finding]:
    """A rank calls another collective than the others, or in another order, size or type.

    Collectives are paired by their order alone. From the first difference on, ranks wait in operations that the
    others never enter, or reduce values that have nothing to do with each other.

    Fix: let all ranks take the branch at the named line, or none: decide it from a value that was reduced over them.
    """
    for d, s in _suspects(flight, "differs", "circle"):
        if s.turn:
            message = _turn_text(flight, s, s.turn) + _others_wait(s)
        elif s.divergence is None:
            sides = "; ".join(f"rank {w.rank}: {call_text(w.call)}{place_text(w.call)}" for w in s.waits[:4])
            message = f"{ranks_text(s.ranks)} wait for each other, in different operations: {sides}"
        else:
            sides = "; ".join(
                f"{_who(flight, ranks)}: {call_text(c)}{place_text(c)}" for c, ranks in s.divergence.calls[:3]
            )
            message = f"ranks differ in {s.divergence.group} #{s.divergence.seq}: {sides}"
        fix = ""
        if s.turn and s.turn.how == "skipped":
            fix = f"look at why it does not come to {site(s.turn.usual)}"
        elif s.turn:
            fix = f"look at what leads it to {site(s.turn.did)}"
        yield Finding(
            message=message,
            cause="collective-mismatch",
            restart=FIX_FIRST,
            severity=_severity(d, s),
            confidence=_confidence(d, s),
            where=_where(flight, s.ranks),
            evidence=_table(flight, d, s),
            why="collectives are paired by their order: after one that differs, none fits",
            cost="the job stands still until its timeout, or goes on with wrong sums",
            fixes=(Fix(do=fix),) if fix else (),
            confirm="TORCH_DISTRIBUTED_DEBUG=DETAIL: torch then compares every collective and prints both sides",
            sources=(SOURCE, "pytorch issues 77562, 78022"),
            explains=WAITING_IS,
        )
    for d, s in _suspects(flight, "uneven"):
        if s.turn and s.turn.below:
            yield _or_else(flight, d, s, "collective-mismatch", "a branch at the end of the loop that it alone takes")


@rule("HNG021", Severity.ERROR)
def ranks_have_unequal_amounts_of_data(flight: Flight) -> Iterator[Finding]:
    """A rank is through with its loop while the others are still in theirs.

    Its part of the data has fewer batches (no drop_last, a filter, an uneven split), so that the others wait in a
    step that it never makes.

    Fix: give all ranks the same number of batches (drop_last, DistributedSampler), or use join contexts.
    """
    for d, s in _suspects(flight, "uneven"):
        assert s.turn is not None
        other = place_text(s.turn.did)
        yield Finding(
            message=_turn_text(flight, s, s.turn) + _others_wait(s),
            cause="uneven-data-across-ranks",
            restart=FIX_FIRST,
            severity=_severity(d, s),
            confidence=_confidence(d, s),
            where=_where(flight, s.ranks),
            evidence=_table(flight, d, s),
            why="each step needs all ranks; who has no batch left makes none",
            cost="the job stands still until its timeout",
            fixes=(
                Fix(do="give all ranks the same number of batches", command="DistributedSampler(..., drop_last=True)"),
                Fix(do=f"or, where the code{other} is a branch inside the loop, let all ranks take it"),
            ),
            confirm="print len(loader) on each rank, or reduce it with min and max before the loop",
            sources=(SOURCE, "pytorch torch.distributed.algorithms.Join"),
            explains=WAITING_IS,
        )
    for d, s in _suspects(flight, "differs"):
        if s.turn and s.turn.below:
            yield _or_else(flight, d, s, "uneven-data-across-ranks", "its loop is over before that of the others")


@rule("HNG022", Severity.ERROR)
def rank_does_not_come_to_a_collective(flight: Flight) -> Iterator[Finding]:
    """A rank is alive and waits in no collective, while the others wait for it.

    It computes, reads data, writes a file, holds the GIL or hangs in the driver; or its loop is over.

    Fix: see where it is: py-spy dump --pid PID on its host.
    """
    for d, s in _suspects(flight, "absent"):
        stack = _stack_of(flight, s.ranks[0])
        now = f"; it is at {_at(stack)} ({_at(stack).name})" if stack else ""
        after = f" after {call_text(s.last)}{place_text(s.last)}" if s.last else ""
        several = len(s.ranks) > 1
        yield Finding(
            message=f"{_who(flight, s.ranks)} {'do' if several else 'does'} not come{after}{now}{_others_wait(s)}",
            cause="slow-rank-preprocessing" if s.early else "straggler-or-hung-rank",
            severity=_severity(d, s),
            confidence=_confidence(d, s),
            where=_where(flight, s.ranks),
            evidence=_table(flight, d, s),
            why="the ranks that wait are healthy; the one that has not entered is busy elsewhere, or its loop is over",
            cost="all others stand still",
            fixes=(Fix(do="see where it is, on its host", command="py-spy dump --pid PID"),)
            if not stack
            else (Fix(do=f"look at {_at(stack)}: that keeps the rank"),),
            confirm="two stacks of it, 30 s apart: the same line is a hang, another one is slow",
            sources=(SOURCE,),
            explains=CONSEQUENCES,
        )


@rule("HNG023", Severity.ERROR)
def rank_left_no_dump_and_is_waited_for(flight: Flight) -> Iterator[Finding]:
    """The others wait for a rank that left no dump: dead, stopped, or its host is gone.

    A process that lives writes its dump; one that was killed, stopped (SIGSTOP, a debugger) or stuck in the kernel does
    not. Where dumps were lost or not copied, this is a list of those that may be at fault.

    Fix: look for its end in its own log, the kernel log (OOM killer, Xid) and the scheduler.
    """
    for d, s in _suspects(flight, "no-dump"):
        lost = flight.watchdog.lost_peers if flight.watchdog else ()
        open_end = "" if d.world is not None else " (or a rank above: nothing says how many the job has)"
        if s.shortlist:
            who = f"one of {ranks_text(s.ranks)}{open_end}" if s.ranks else f"a rank without a dump{open_end}"
        else:
            who = _who(flight, s.ranks)
        last = f"; the others' last operation: {call_text(s.last)}{place_text(s.last)}" if not s.waits else ""
        dead = bool(lost) and not s.shortlist
        state = "left no dump: dead (its connections were closed)" if dead else "left no dump: dead, stopped or lost"
        yield Finding(
            message=f"{who} {state}{_others_wait(s)}{last}",
            cause="rank-died" if dead else "straggler-or-hung-rank",
            severity=_severity(d, s),
            confidence=_confidence(d, s),
            where=_where(flight, s.ranks),
            evidence=(*_table(flight, d, s), *lost[:3]),
            why="the other ranks can't finish a collective without it",
            cost="all others stand still",
            fixes=(
                Fix(
                    do="see on its host whether it runs, and whether the kernel ended it",
                    command="ps -eo pid,stat,wchan:32,args | grep -E ' [TDZ]'; "
                    "dmesg -T | grep -iE 'killed process|out of memory|xid'",
                ),
            ),
            confirm="the dump of that rank, or its log: give both to smoldiag explain",
            sources=(SOURCE,),
            explains=CONSEQUENCES,
        )


@rule("HNG024", Severity.ERROR)
def collective_entered_by_all_does_not_end(flight: Flight) -> Iterator[Finding]:
    """All ranks have entered the same collective, and it does not end.

    The program is not at fault: the transport is (network, PCI peer-to-peer, a NIC, NCCL), or a GPU that hangs in a
    kernel before it.

    Fix: run the same collective alone on the same hosts; halves of them lead to the one that is guilty.
    """
    for d, s in _suspects(flight, "together"):
        first = s.waits[0]
        peer = "; the first collectives of a job on one host: PCI peer-to-peer blocked by ACS or IOMMU looks the same"
        yield Finding(
            message=f"{_who(flight, s.ranks)} all entered {first.group} #{first.seq}, {call_text(first.call)}"
            f"{place_text(first.call)}, and it does not end{peer if s.early else ''}",
            cause="network-wedged",
            severity=_severity(d, s),
            confidence=Confidence.POSSIBLE if not d.still or d.world is None else Confidence.LIKELY,
            where=_where(flight, s.ranks),
            evidence=_table(flight, d, s),
            why="all did their part: what remains is the path between them, or a GPU that is stuck",
            fixes=(
                Fix(do="measure the path without the program", command="smoldiag nccl-bench --collective all_reduce"),
                Fix(do="look for NIC, link and GPU errors", command="dmesg -T | grep -iE 'mlx5|xid|aer|link'"),
            ),
            confirm="NCCL's RAS, twice: equal counts that do not move: echo verbose status | nc localhost 28028",
            sources=(SOURCE,),
            explains=(*CONSEQUENCES, "straggler-or-hung-rank"),
        )


@rule("HNG025", Severity.ERROR)
def send_and_receive_do_not_pair(flight: Flight) -> Iterator[Finding]:
    """A rank sends or receives, and its peer never calls the other half.

    In pipelines the order of sends and receives must fit on both sides; two ranks that both send first wait for ever.

    Fix: post them together (batch_isend_irecv), or let even and odd stages take turns.
    """
    for d, s in _suspects(flight, "pairing"):
        w = s.waits[0]
        yield Finding(
            message=f"rank {w.rank} waits in {call_text(w.call)}{place_text(w.call)} for {_who(flight, w.absent)}, "
            f"whose other half is not called; it last did {call_text(s.last)}{place_text(s.last)}",
            cause="collective-mismatch",
            restart=FIX_FIRST,
            severity=_severity(d, s),
            confidence=_confidence(d, s),
            where=_where(flight, s.ranks),
            evidence=_table(flight, d, s),
            why="a send ends only when it is received",
            fixes=(Fix(do="post sends and receives of a step together", command="dist.batch_isend_irecv(ops)"),),
            sources=(SOURCE,),
            explains=WAITING_IS,
        )


@rule("HNG026", Severity.INFO)
def dumps_are_of_a_run_that_goes_on(flight: Flight) -> Iterator[Finding]:
    """The dumps show ranks at different places, as they are in any run that goes on.

    A hang is seen only where nothing moves: here a rank had gone on past what another had not entered, or the newest
    operations were made just before the dumps.

    Fix: dump again when the job stands still, or twice, a minute apart.
    """
    if not flight.dumps:
        return
    d = diagnosis(flight)
    if d.still is False and d.waits and not d.divergences:
        why = d.moved_on or f"the newest operation was {max(d.still_s or 0, 0):.1f} s old when the dumps were written"
        yield Finding(
            message=f"no hang in these dumps: {why}",
            cause="run-goes-on",
            severity=Severity.INFO,
            evidence=(Evidence(text=why, where=flight.dumps[0].where),),
            confirm="dump again a minute later",
            sources=(SOURCE,),
        )


def _row(s: RankState) -> Evidence:
    parts = [f"rank {s.rank}", f"group {s.group}" if s.group else ""]
    if s.op:
        numel = f" of {s.numel_in} elements" if s.numel_in is not None else ""
        parts.append(f"waits in #{s.seq if s.seq is not None else '?'} {s.op}{numel}")
    named = [("enqueued", s.last_enqueued), ("started", s.last_started), ("completed", s.last_completed)]
    parts += [f"last {name} #{value}" for name, value in named if value is not None]
    return Evidence(text=", ".join(p for p in parts if p), where=s.evidence.where)


def _stack_place(reading: Reading, ranks: Sequence[int]) -> str:
    """Where a watchdog printed that the operation was called."""
    own = [s for s in reading.states if s.frames and (s.rank in ranks or not ranks)]
    frame = next((f for s in own or reading.states for f in s.frames if not is_library(f)), None)
    return f" at {frame} ({frame.name})" if frame else ""


def _watched(flight: Flight, *kinds: str) -> Iterator[Reading]:
    """Only where dumps, which know more, have not said it."""
    if flight.watchdog and not (flight.dumps and diagnosis(flight).suspects):
        yield from (r for r in readings(flight.watchdog) if r.kind in kinds)


@rule("HNG027", Severity.ERROR)
def watchdogs_name_different_operations(flight: Flight) -> Iterator[Finding]:
    """The watchdogs of one group timed out in different operations, sizes or numbers.

    The ranks are no longer in the same place of the program: one has skipped a collective, called another one, or is
    behind.

    Fix: find the first difference with Flight Recorder, which keeps the stacks.
    """
    for r in _watched(flight, "different-op", "different-size", "behind"):
        rows = [s for s in r.states if s.op or s.last_enqueued is not None]
        sides = "; ".join(_row(s).text for s in rows[:4])
        behind = r.kind == "behind"
        stuck = [s for s in rows if s.rank in r.ranks and s.op]
        mixed = behind and bool({s.op for s in stuck} - {s.op for s in rows if s.rank not in r.ranks and s.op})
        yield Finding(
            message=f"{_who(flight, r.ranks)} {'behind' if behind else 'differ'} in group {r.group or 'default'}: "
            f"{sides}{_stack_place(r, r.ranks)}",
            cause="collective-mismatch" if not behind or mixed else "straggler-or-hung-rank",
            severity=Severity.ERROR,
            confidence=Confidence.LIKELY if not behind else Confidence.POSSIBLE,
            where=_where(flight, r.ranks),
            evidence=tuple(_row(s) for s in rows[:SHOWN]),
            why="operations are paired by their number: these do not fit",
            fixes=(RECORD,),
            confirm="TORCH_DISTRIBUTED_DEBUG=DETAIL prints both sides at the first difference",
            sources=(WATCHDOG_SOURCE, "accelerate issue 3250"),
            explains=CONSEQUENCES,
        )


@rule("HNG028", Severity.ERROR)
def watchdogs_wait_for_a_silent_rank(flight: Flight) -> Iterator[Finding]:
    """The watchdogs timed out in one and the same operation.

    A rank that said nothing did not come, or the network hangs. Where it is an early operation (a barrier after set-up)
    and a progress bar ran meanwhile, a rank was still preparing its data.

    Fix: prepare data before the process group exists, or on all ranks; look at the rank that printed no timeout.
    """
    for r in _watched(flight, "together", "alone"):
        rows = [s for s in r.states if s.op or s.seq is not None]
        preparing = r.meanwhile is not None
        slow = preparing or (r.early and all((s.numel_in or 0) <= 1 for s in rows) and len(rows) > 1)
        first = rows[0]
        silent = f"; {ranks_text(r.ranks)} said nothing" if r.ranks else ""
        bar = f"; meanwhile: {r.meanwhile.evidence.text[:120]}" if r.meanwhile else ""
        yield Finding(
            message=f"{_who(flight, [s.rank for s in rows])} timed out in the same operation: {_row(first).text}"
            f"{_stack_place(r, ())}{silent}{bar}",
            cause="slow-rank-preprocessing" if slow else "straggler-or-hung-rank",
            severity=Severity.ERROR if preparing else Severity.WARNING,
            confidence=Confidence.LIKELY if preparing else Confidence.POSSIBLE,
            where=_where(flight, r.ranks),
            evidence=(*(_row(s) for s in rows[:SHOWN]), *((r.meanwhile.evidence,) if r.meanwhile else ())),
            why="who times out has waited; who is at fault prints nothing",
            fixes=(
                Fix(
                    do="prepare the data in a step of its own, or give the barrier more time",
                    command="init_process_group(timeout=...)",
                ),
            )
            if slow
            else (RECORD,),
            confirm="py-spy dump --pid PID on the rank that printed no timeout",
            sources=(WATCHDOG_SOURCE, "pytorch issue 118369"),
            explains=CONSEQUENCES,
        )


@rule("HNG029", Severity.ERROR)
def debug_mode_found_different_collectives(flight: Flight) -> Iterator[Finding]:
    """torch's debug mode compared the collectives of the ranks, and they differ.

    TORCH_DISTRIBUTED_DEBUG=DETAIL names both: another operation, another shape or type, under the same number.

    Fix: make the call the same on all ranks: pad, drop the last batch, take the same branch.
    """
    prints = flight.watchdog.fingerprints if flight.watchdog else ()
    if not prints:
        return
    sides = list(dict.fromkeys((f.rank, f.op, f.shape, f.dtypes) for f in prints))
    what = [name for name, i in (("operation", 1), ("shape", 2), ("type", 3)) if len({s[i] for s in sides}) > 1]
    ranks = sorted({f.rank for f in prints if f.rank is not None})
    text = "; ".join(f"rank {rank}: {op} {shape} {types}".rstrip() for rank, op, shape, types in sides[:4])
    number = next((f" #{f.seq}" for f in prints if f.seq is not None), "")
    yield Finding(
        message=f"ranks differ in the {' and '.join(what) or 'number'} of a collective{number}: {text}",
        cause="collective-mismatch",
        restart=FIX_FIRST,
        severity=Severity.ERROR,
        where=_where(flight, ranks),
        evidence=tuple(dict.fromkeys(f.evidence for f in prints))[:SHOWN],
        why="they would wait for each other, or mix up their values",
        fixes=(Fix(do="give the call the same operation, shape and type on all ranks (pad, drop_last, one branch)"),),
        sources=("pytorch torch/csrc/distributed/c10d/ProcessGroupWrapper.cpp",),
        explains=(*WAITING_IS, "uneven-data-across-ranks"),
    )


@rule("HNG030", Severity.ERROR)
def peers_send_messages_of_another_size(flight: Flight) -> Iterator[Finding]:
    """A rank received a message of another size than the collective that it is in.

    Its peers are in another collective, or call the same one with another size.

    Fix: compare the calls of both ranks at the lines where they were.
    """
    found = flight.watchdog.sizes_differ if flight.watchdog else ()
    if not found or any(_suspects(flight, "differs", "uneven")):
        return
    ranks = tuple(sorted({f.rank for f in found if f.rank is not None}))
    peers = ""
    for _, gone in _suspects(flight, "no-dump"):  # gloo ends the process that gets such a message
        ranks = ranks or (() if gone.shortlist else gone.ranks)
        call = gone.waits[0].call if gone.waits else gone.last
        peers = f"; its peers are in {call_text(call)}{place_text(call)}"
    who = _who(flight, ranks) if ranks else "a rank"
    yield Finding(
        message=f"{who} got {found[0].received} bytes where its collective expects {found[0].expected}: it is "
        f"in another collective than its peers, or calls it with another size{peers}",
        cause="collective-mismatch",
        restart=FIX_FIRST,
        severity=Severity.ERROR,
        confidence=Confidence.LIKELY,
        where=_where(flight, ranks),
        evidence=tuple(f.evidence for f in found[:SHOWN]),
        why="sizes of a message are fixed by the collective: both sides must be in the same one",
        fixes=(RECORD,),
        confirm="TORCH_DISTRIBUTED_DEBUG=DETAIL prints both calls",
        sources=("gloo transport/tcp/pair.cc", "NCCL src/transport/net_socket.cc"),
        explains=(*WAITING_IS, "rank-died"),
    )


@rule("HNG031", Severity.ERROR)
def ranks_named_as_absent(flight: Flight) -> Iterator[Finding]:
    """torch names the ranks that did not come to a barrier or a collective.

    monitored_barrier and the desync report say who is missing; why is in the log of that rank.

    Fix: look at what the named rank did at that time.
    """
    found = [a for a in (flight.watchdog.absent if flight.watchdog else ()) if a.ranks]
    if found:
        ranks = sorted({r for a in found for r in a.ranks})
        yield Finding(
            message=f"{_who(flight, ranks)} did not come ({', '.join(dict.fromkeys(a.what for a in found))})",
            cause="straggler-or-hung-rank",
            severity=Severity.ERROR,
            confidence=Confidence.LIKELY,
            where=_where(flight, ranks),
            evidence=tuple(a.evidence for a in found[:SHOWN]),
            why="the others wait for it in the same operation",
            fixes=(Fix(do="see where it is, on its host", command="py-spy dump --pid PID"),),
            sources=("pytorch torch/csrc/distributed/c10d/TraceUtils.h", "torch.distributed.monitored_barrier"),
            explains=CONSEQUENCES,
        )


TIMERS = {
    "watchdog": (
        "the process group's timeout",
        "an operation took longer than the group's timeout",
        "init_process_group(timeout=...)",
    ),
    "blocking-wait": (
        "the process group's timeout, in a blocking wait",
        "as above, in wait()",
        "TORCH_NCCL_BLOCKING_WAIT",
    ),
    "heartbeat-monitor": (
        "the heartbeat monitor",
        "the watchdog thread itself made no progress: a CUDA call or the GIL held it",
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC",
    ),
    "gloo": ("gloo's timeout", "a peer sent nothing for so long", "init_process_group(timeout=...)"),
    "monitored-barrier": ("monitored_barrier's timeout", "named ranks did not come", "monitored_barrier(timeout=...)"),
    "store": ("the store's timeout", "not all ranks have joined the group", "init_process_group(timeout=...)"),
}


def _value(t: Timer) -> str:
    return f" ({t.value_ms / 1e3:.0f} s)" if t.value_ms else ""


@rule("HNG032", Severity.INFO)
def timer_that_fired(flight: Flight) -> Iterator[Finding]:
    """Which of torch's timers ended the job, and its effective value.

    There are several: the group's timeout (10 min for NCCL, 30 min else), the heartbeat monitor (8 min) over the
    watchdog thread, and those of gloo, barriers and the store. Raising the wrong one changes nothing.

    Fix: none of them is the cause; they say how long somebody was waited for.
    """
    for t in flight.watchdog.timers if flight.watchdog else ():
        name, means, setting = TIMERS[t.name]
        yield Finding(
            message=f"{name}{_value(t)} fired on {ranks_text(t.ranks) if t.ranks else 'a rank'}: {means}",
            cause="timer-fired",
            severity=Severity.INFO,
            where=_where(flight, t.ranks),
            evidence=(t.evidence,),
            why="a timer is the messenger: the cause is who did not come",
            fixes=(Fix(do=f"its setting is {setting}; more time helps only where the rank is slow, not stuck"),),
            sources=(WATCHDOG_SOURCE,),
        )


@rule("HNG033", Severity.WARNING)
def watchdog_could_not_get_the_gil(flight: Flight) -> Iterator[Finding]:
    """torch could not get Python's interpreter lock: a thread of the program holds it.

    A C extension that keeps the lock, or one that died with it, stops the main thread before its next collective.

    Fix: py-spy dump --native --pid PID shows the thread that holds it.
    """
    found = flight.watchdog.gil if flight.watchdog else ()
    if found:
        yield Finding(
            message=f"the interpreter lock was held for long: {found[0].text[:160]}",
            cause="gil-held",
            severity=Severity.WARNING,
            confidence=Confidence.POSSIBLE,
            evidence=found[:SHOWN],
            why="no Python code of that rank runs meanwhile, and no collective is called",
            fixes=(Fix(do="see which thread holds it", command="py-spy dump --native --pid PID"),),
            sources=(WATCHDOG_SOURCE,),
        )


def _gone(comm: RasComm) -> Finding | None:
    gone = [r for r in comm.ranks if r.state in ("dead", "unresponsive")]
    if not gone:
        return None
    ranks = [r.rank for r in gone]
    hosts = tuple(dict.fromkeys(r.host for r in gone if r.host))
    pids = ", ".join(f"pid {r.pid}" for r in gone[:SHOWN] if r.pid)
    return Finding(
        message=f"{ranks_text(ranks)}{_on(hosts)}: {', '.join(dict.fromkeys(r.state for r in gone))} for NCCL's RAS in "
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
            message=f"{ranks_text([r.rank for r in late])}{_on(hosts)} made {counts} in communicator {comm.id} "
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


def _on(hosts: Sequence[str]) -> str:
    return f" on {', '.join(hosts[:SHOWN])}" + (" ..." if len(hosts) > SHOWN else "") if hosts else ""


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
    places = "; ".join(f"{_named(s)} is at {_at(s)} ({_at(s).name})" for s in away[:4])
    ranks = [s.rank for s in away if s.rank is not None]
    yield Finding(
        message=f"{len(main) - len(away)} of {len(main)} processes wait in a collective; {places}",
        cause="straggler-or-hung-rank",
        severity=Severity.WARNING,
        confidence=Confidence.POSSIBLE,
        where=_where(flight, ranks),
        evidence=tuple(Evidence(text=f"{_named(s)}: {_at(s).name} ({_at(s)})", where=s.where) for s in away[:SHOWN]),
        why="the others wait for it, if it is there for long",
        fixes=(Fix(do=f"look at {_at(away[0])}: that keeps it"),),
        confirm="a second py-spy dump 30 s later: the same line is a hang, another one is slow",
        explains=CONSEQUENCES,
    )
