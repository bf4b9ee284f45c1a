"""HNG020 to HNG026: who keeps a job whose ranks wait for each other, from their Flight Recorder dumps."""

from collections.abc import Iterator

from smoldiag.facts import Evidence, Flight
from smoldiag.findings import Confidence, Finding, Fix, Severity
from smoldiag.model.hangs import Diagnosis, Suspect, diagnosis
from smoldiag.model.streams import site
from smoldiag.model.turns import Turn
from smoldiag.rules import rule
from smoldiag.rules.hang_words import (
    CONSEQUENCES,
    FIX_FIRST,
    SHOWN,
    SOURCE,
    WAITING_IS,
    at,
    call_text,
    file_of,
    place_text,
    ranks_text,
    stack_of,
    suspects,
    where_of,
    who,
)


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
                where=file_of(flight, rank),
            )
        )
    for call, ranks in s.divergence.calls if s.divergence else ():
        lines.append(
            Evidence(
                text=f"{s.divergence.group} #{s.divergence.seq}: {ranks_text(ranks)}: "  # type: ignore[union-attr]
                f"{call_text(call)}{place_text(call)}",
                where=file_of(flight, ranks[0]),
            )
        )
    if s.last and s.ranks and s.ranks[0] in d.ranks:
        text = f"rank {s.ranks[0]}: last did {call_text(s.last)}{place_text(s.last)}, and waits in none"
        lines.append(Evidence(text=text, where=file_of(flight, s.ranks[0])))
    for w in s.waits[:SHOWN]:
        age = f" for {w.age_s:.0f} s" if w.age_s is not None and 0 < w.age_s < 1e6 else ""
        on = f" for {ranks_text(w.absent)}" if w.absent else ""
        lines.append(
            Evidence(
                text=f"rank {w.rank}: in {w.group} #{w.seq}, {call_text(w.call)}{place_text(w.call)}{age}; waits{on}",
                where=file_of(flight, w.rank),
            )
        )
    for r in s.ranks[:SHOWN]:
        if stack := stack_of(flight, r):
            frames = " < ".join(f"{f.name} ({f})" for f in stack.frames[:4])
            lines.append(Evidence(text=f"rank {r} is in {frames}", where=stack.where))
    return tuple(dict.fromkeys(lines))


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
    ranks = who(flight, s.ranks)
    did, usual = call_text(turn.did) + place_text(turn.did), call_text(turn.usual) + place_text(turn.usual)
    verb = HOW[turn.how]
    if turn.how == "skipped":
        return f"{ranks} {verb} {usual}: went on to {did} ({turn.group} #{turn.seq})"
    if turn.saving and turn.how == "branch":
        return f"{ranks} saves or evaluates alone: {did}, where {usual} comes next ({turn.group} #{turn.seq})"
    return f"{ranks} {verb} {did}, where {usual} comes next ({turn.group} #{turn.seq})"


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
        message=f"or, for {who(flight, s.ranks)}{place_text(s.turn.did)}: {what}",
        cause=cause,
        severity=Severity.WARNING,
        confidence=Confidence.POSSIBLE,
        where=where_of(flight, s.ranks),
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
    for d, s in suspects(flight, "differs", "circle"):
        if s.turn:
            message = _turn_text(flight, s, s.turn) + _others_wait(s)
        elif s.divergence is None:
            sides = "; ".join(f"rank {w.rank}: {call_text(w.call)}{place_text(w.call)}" for w in s.waits[:4])
            message = f"{ranks_text(s.ranks)} wait for each other, in different operations: {sides}"
        else:
            sides = "; ".join(
                f"{who(flight, ranks)}: {call_text(c)}{place_text(c)}" for c, ranks in s.divergence.calls[:3]
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
            where=where_of(flight, s.ranks),
            evidence=_table(flight, d, s),
            why="collectives are paired by their order: after one that differs, none fits",
            cost="the job stands still until its timeout, or goes on with wrong sums",
            fixes=(Fix(do=fix),) if fix else (),
            confirm="TORCH_DISTRIBUTED_DEBUG=DETAIL: torch then compares every collective and prints both sides",
            sources=(SOURCE, "pytorch issues 77562, 78022"),
            explains=WAITING_IS,
        )
    for d, s in suspects(flight, "uneven"):
        if s.turn and s.turn.below:
            yield _or_else(flight, d, s, "collective-mismatch", "a branch at the end of the loop that it alone takes")


@rule("HNG021", Severity.ERROR)
def ranks_have_unequal_amounts_of_data(flight: Flight) -> Iterator[Finding]:
    """A rank is through with its loop while the others are still in theirs.

    Its part of the data has fewer batches (no drop_last, a filter, an uneven split), so that the others wait in a
    step that it never makes.

    Fix: give all ranks the same number of batches (drop_last, DistributedSampler), or use join contexts.
    """
    for d, s in suspects(flight, "uneven"):
        assert s.turn is not None
        other = place_text(s.turn.did)
        yield Finding(
            message=_turn_text(flight, s, s.turn) + _others_wait(s),
            cause="uneven-data-across-ranks",
            restart=FIX_FIRST,
            severity=_severity(d, s),
            confidence=_confidence(d, s),
            where=where_of(flight, s.ranks),
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
    for d, s in suspects(flight, "differs"):
        if s.turn and s.turn.below:
            yield _or_else(flight, d, s, "uneven-data-across-ranks", "its loop is over before that of the others")


@rule("HNG022", Severity.ERROR)
def rank_does_not_come_to_a_collective(flight: Flight) -> Iterator[Finding]:
    """A rank is alive and waits in no collective, while the others wait for it.

    It computes, reads data, writes a file, holds the GIL or hangs in the driver; or its loop is over.

    Fix: see where it is: py-spy dump --pid PID on its host.
    """
    for d, s in suspects(flight, "absent"):
        stack = stack_of(flight, s.ranks[0])
        now = f"; it is at {at(stack)} ({at(stack).name})" if stack else ""
        after = f" after {call_text(s.last)}{place_text(s.last)}" if s.last else ""
        verb = "do" if len(s.ranks) > 1 else "does"
        unclear = "or, if its last operation did not fail with another: " if s.shortlist else ""
        yield Finding(
            message=f"{unclear}{who(flight, s.ranks)} {verb} not come{after}{now}{_others_wait(s)}",
            cause="slow-rank-preprocessing" if s.early else "straggler-or-hung-rank",
            severity=_severity(d, s),
            confidence=_confidence(d, s),
            where=where_of(flight, s.ranks),
            evidence=_table(flight, d, s),
            why="the ranks that wait are healthy; the one that has not entered is busy elsewhere, or its loop is over",
            cost="all others stand still",
            fixes=(Fix(do="see where it is, on its host", command="py-spy dump --pid PID"),)
            if not stack
            else (Fix(do=f"look at {at(stack)}: that keeps the rank"),),
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
    for d, s in suspects(flight, "no-dump"):
        lost = flight.watchdog.lost_peers if flight.watchdog else ()
        open_end = "" if d.world is not None else " (or a rank above: nothing says how many the job has)"
        if s.shortlist:
            gone = f"one of {ranks_text(s.ranks)}{open_end}" if s.ranks else f"a rank without a dump{open_end}"
        else:
            gone = who(flight, s.ranks)
        last = f"; the others' last operation: {call_text(s.last)}{place_text(s.last)}" if not s.waits else ""
        dead = bool(lost) and not s.shortlist
        state = "left no dump: dead (its connections were closed)" if dead else "left no dump: dead, stopped or lost"
        yield Finding(
            message=f"{gone} {state}{_others_wait(s)}{last}",
            cause="rank-died" if dead else "straggler-or-hung-rank",
            severity=_severity(d, s),
            confidence=_confidence(d, s),
            where=where_of(flight, s.ranks),
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
    for d, s in suspects(flight, "together"):
        first = s.waits[0]
        peer = "; the first collectives of a job on one host: PCI peer-to-peer blocked by ACS or IOMMU looks the same"
        yield Finding(
            message=f"{who(flight, s.ranks)} all entered {first.group} #{first.seq}, {call_text(first.call)}"
            f"{place_text(first.call)}, and it does not end{peer if s.early else ''}",
            cause="network-wedged",
            severity=_severity(d, s),
            confidence=Confidence.POSSIBLE if not d.still or d.world is None else Confidence.LIKELY,
            where=where_of(flight, s.ranks),
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
    for d, s in suspects(flight, "pairing"):
        w = s.waits[0]
        yield Finding(
            message=f"rank {w.rank} waits in {call_text(w.call)}{place_text(w.call)} for {who(flight, w.absent)}, "
            f"whose other half is not called; it last did {call_text(s.last)}{place_text(s.last)}",
            cause="collective-mismatch",
            restart=FIX_FIRST,
            severity=_severity(d, s),
            confidence=_confidence(d, s),
            where=where_of(flight, s.ranks),
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
