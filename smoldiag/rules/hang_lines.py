"""HNG027 to HNG033: what the processes' own watchdogs say in the logs."""

from collections.abc import Iterator, Sequence

from smoldiag.facts import Evidence, Flight
from smoldiag.facts.flight import RankState, Timer
from smoldiag.findings import Confidence, Finding, Fix, Severity
from smoldiag.model.hangs import diagnosis
from smoldiag.model.streams import is_library
from smoldiag.model.watchdogs import Reading, readings
from smoldiag.rules import rule
from smoldiag.rules.hang_words import (
    CONSEQUENCES,
    FIX_FIRST,
    RECORD,
    SHOWN,
    WAITING_IS,
    WATCHDOG_SOURCE,
    call_text,
    place_text,
    ranks_text,
    suspects,
    where_of,
    who,
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
            message=f"{who(flight, r.ranks)} {'behind' if behind else 'differ'} in group {r.group or 'default'}: "
            f"{sides}{_stack_place(r, r.ranks)}",
            cause="collective-mismatch" if not behind or mixed else "straggler-or-hung-rank",
            severity=Severity.ERROR,
            confidence=Confidence.LIKELY if not behind else Confidence.POSSIBLE,
            where=where_of(flight, r.ranks),
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
            message=f"{who(flight, [s.rank for s in rows])} timed out in the same operation: {_row(first).text}"
            f"{_stack_place(r, ())}{silent}{bar}",
            cause="slow-rank-preprocessing" if slow else "straggler-or-hung-rank",
            severity=Severity.ERROR if preparing else Severity.WARNING,
            confidence=Confidence.LIKELY if preparing else Confidence.POSSIBLE,
            where=where_of(flight, r.ranks),
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
        where=where_of(flight, ranks),
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
    if not found or any(suspects(flight, "differs", "uneven")):
        return
    ranks = tuple(sorted({f.rank for f in found if f.rank is not None}))
    peers = ""
    for _, gone in suspects(flight, "no-dump"):  # gloo ends the process that gets such a message
        ranks = ranks or (() if gone.shortlist else gone.ranks)
        call = gone.waits[0].call if gone.waits else gone.last
        peers = f"; its peers are in {call_text(call)}{place_text(call)}"
    named = who(flight, ranks) if ranks else "a rank"
    yield Finding(
        message=f"{named} got {found[0].received} bytes where its collective expects {found[0].expected}: it is "
        f"in another collective than its peers, or calls it with another size{peers}",
        cause="collective-mismatch",
        restart=FIX_FIRST,
        severity=Severity.ERROR,
        confidence=Confidence.LIKELY,
        where=where_of(flight, ranks),
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
            message=f"{who(flight, ranks)} did not come ({', '.join(dict.fromkeys(a.what for a in found))})",
            cause="straggler-or-hung-rank",
            severity=Severity.ERROR,
            confidence=Confidence.LIKELY,
            where=where_of(flight, ranks),
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
            where=where_of(flight, t.ranks),
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
