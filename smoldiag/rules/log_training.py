"""Failures of the training program and how a job ended, as logs show them."""

import re
from collections.abc import Iterator

from smoldiag.facts import Flight, Log, LogEvent
from smoldiag.findings import Confidence, Finding, Severity
from smoldiag.rules import rule
from smoldiag.rules.logs import NETWORK, SYMPTOMS, died_before, found, on, ranks_of

# Exceptions that pass on what was found elsewhere
PASSED_ON = re.compile(
    r"(?:Dist\w*Error|ChildFailedError|Rendezvous\w+|ProcessExitedException|ProcessRaisedException|CalledProcessError"
    r"|OutOfMemoryError|KeyboardInterrupt|SystemExit|nccl\w+|NCCLError|RayTaskError|RayActorError|WorkerCrashedError"
    r"|BrokenPipeError|ConnectionResetError|ConnectionRefusedError|EOFError|SignalException|DistNetworkError|TimeoutError)$"
)
PASSED_ON_TEXT = re.compile(
    r"(?i)nccl|cuda error|cuda out of memory|socket|connection|store|rendezvous|timed? ?out|gloo|address already"
    r"|host not found|name or service|shared memory|bus error|detected mismatch|finished reduction|driver"
    r"|DataLoader worker"
)
STEPS = re.compile(r"(?i)epoch|\btrain|\bstep|\biter|loss")  # a progress bar of the training itself
EARLY_SEQUENCE = 20  # collectives before which a job is still setting up
FEW_ELEMENTS = 8  # of a barrier's or a flag's all_reduce
UNFINISHED_PERCENT = 100


@rule("LOG090", Severity.ERROR)
def ranks_call_different_collectives(log: Log) -> Iterator[Finding]:
    """Ranks call different collectives, or the same with different sizes.

    A branch that depends on the rank or its data, batches of different shape, or sends and receives in another order.

    Fix: make all ranks call the same collectives with the same sizes; gather sizes first where they differ.
    """
    prints = log.find("fingerprint", "mismatch")
    sizes = log.find("size-mismatch")
    desync = [e for e in log.find("desync") if "finished collective" in e.details.get("what", "")]
    refused = [e for e in log.find("ib-completion") if e.details.get("status") in ("1", "9")]
    events = [*prints, *desync, *sizes, *refused]
    if events:
        yield found(
            "collective-mismatch",
            f"{_difference(log, prints, sizes)}{on(prints or sizes or desync or refused)}",
            events,
            why="collectives must be called by all ranks in the same order with the same sizes",
            fixes=[
                ("see who calls what", "export TORCH_DISTRIBUTED_DEBUG=DETAIL  # or TORCH_FR_BUFFER_SIZE=2000"),
                ("gather sizes first, or pad", "torch.distributed.all_gather of the sizes"),
            ],
            confidence=Confidence.CERTAIN if prints else Confidence.LIKELY if sizes else Confidence.POSSIBLE,
            confirm="Flight Recorder dumps of all ranks: `smoldiag explain DUMPS` names the first difference",
            sources=("torch ProcessGroupWrapper.cpp", "NCCL src/transport/net_socket.cc: message truncated"),
            explains=(*SYMPTOMS, "env-or-version-mismatch-across-ranks") if prints else SYMPTOMS,
            restart="fix first: the program",
        )


def _difference(log: Log, prints: tuple[LogEvent, ...], sizes: tuple[LogEvent, ...]) -> str:
    aspects = next((e.details["aspects"] for e in prints if e.details.get("aspects")), "")
    if aspects:
        return f"ranks call different collectives: {' '.join(aspects.split())[:160]}"
    if prints:
        op = next((e.details["op"] for e in prints if "op" in e.details), "")
        return f"ranks call different collectives{f' ({op})' if op else ''}"
    if sizes:
        d = sizes[0].details
        pair = (d.get("local") or d.get("got") or d.get("got2"), d.get("remote") or d.get("wanted") or d.get("wanted2"))
        return (
            f"the two ends of a message differ in its size ({pair[0]} and {pair[1]} bytes)"
            if all(pair)
            else ("the two ends of a message differ in its size")
        )
    return "ranks are at different collectives"


@rule("LOG091", Severity.ERROR)
def parameters_without_gradient(log: Log) -> Iterator[Finding]:
    """DDP waits for gradients that never come: some parameters were not used in the loss.

    A branch that some batches or ranks do not take leaves parameters out.

    Fix: find_unused_parameters=True, or use all parameters in every step.
    """
    events = log.find("ddp-unused")
    if events:
        yield found(
            "ddp-unused-parameters",
            f"some parameters got no gradient, so that DDP's reduction never ended{on(events)}",
            events,
            why="DDP reduces a bucket when all its parameters have a gradient",
            fixes=[
                ("let DDP look for them", "DistributedDataParallel(model, find_unused_parameters=True)"),
                ("name them", "export TORCH_DISTRIBUTED_DEBUG=DETAIL"),
            ],
            confirm="TORCH_DISTRIBUTED_DEBUG=DETAIL prints their names",
            sources=("torch reducer.cpp",),
            restart="fix first: the model or find_unused_parameters",
        )


@rule("LOG092", Severity.ERROR)
def ranks_run_out_of_data_at_different_times(log: Log) -> Iterator[Finding]:
    """Ranks make a different number of steps: one has run out of batches.

    The ranks that go on wait in the gradients' all_reduce, the one that is done in the barrier or the evaluation after.

    Fix: the same number of batches on every rank: drop_last, a distributed sampler, or Join.
    """
    said = log.find("uneven")
    waits = log.find("watchdog-timeout")
    ops = {e.details.get("op") or e.details.get("op2", "") for e in waits}
    at = {e.details["seq"] for e in waits if e.details.get("seq", "").isdigit()}
    apart = len(ops) > 1 and log.last_step is not None and not log.has("fingerprint", "mismatch", "size-mismatch")
    if said or (apart and len(at) > 1):
        yield found(
            "uneven-data-across-ranks",
            "ranks make a different number of steps"
            + (f": some wait in {', '.join(sorted(filter(None, ops))[:3])}" if apart else ""),
            [*said, *waits],
            why="a collective ends only when every rank has come to it",
            fixes=[
                ("the same number of batches everywhere", "DistributedSampler(..., drop_last=True)"),
                ("or let ranks leave early", "torch.distributed.algorithms.Join"),
            ],
            confidence=Confidence.LIKELY if said else Confidence.POSSIBLE,
            confirm="len(dataloader) on every rank; Flight Recorder dumps of all ranks",
            sources=("torch.distributed.algorithms.join",),
            restart="fix first: the data loader",
        )


@rule("LOG093", Severity.ERROR)
def a_rank_is_still_preparing(log: Log) -> Iterator[Finding]:
    """Ranks wait in a barrier until the timer ends them while one still prepares data.

    Tokenising, indexing, downloading or an evaluation on rank 0 takes longer than the time-out of the process group.

    Fix: prepare before the job, or give the first barrier a longer time-out.
    """
    waits = log.find("watchdog-timeout", "monitored-barrier", "store-key", "gloo-timeout")
    timed = [e for e in waits if e.kind != "store-key" or "ms" in e.details]
    if not timed or died_before(log, timed[0]):
        return
    bars = [
        e
        for e in log.find("progress-bar")
        if int(e.details.get("percent", "100")) < UNFINISHED_PERCENT
        and not STEPS.search(e.text.partition("%")[0] + e.text[-80:])
    ]
    work = [e for e in log.find("preparing") if e.order > 0]
    at_start = [e for e in timed if _early(e)]
    if not bars and log.last_step is not None:
        return
    if not bars and not work:
        barrier = [e for e in at_start if e.kind == "watchdog-timeout" and _is_barrier(e)]
        if barrier:
            yield _perhaps_preparing(barrier)
        return
    if not bars and not at_start:
        return
    evidence = [*bars[-2:], *([] if bars else work[-2:]), *timed]
    what = next((e.details["what"].strip() for e in (*bars, *work) if e.details.get("what", "").strip()), "preparing")
    yield found(
        "slow-rank-preprocessing",
        f"ranks waited until their time-out while one was still at work ({what[:60]})",
        evidence,
        why="the others wait in a collective, and the process group ends them when its time-out is over",
        fixes=[
            ("prepare once, before the job", "run the preprocessing alone and cache it"),
            ("or wait longer", "init_process_group(timeout=timedelta(hours=2))"),
        ],
        confidence=Confidence.LIKELY,
        confirm="py-spy dump of the rank that did not arrive",
        sources=("torch ProcessGroupNCCL: watchdog", "torch.distributed.init_process_group: timeout"),
        restart="same nodes with a longer time-out, or fix first: prepare before the job",
    )


def _is_barrier(e: LogEvent) -> bool:
    numel = e.details.get("numel", "")
    return e.details.get("op") == "BARRIER" or (numel.isdigit() and int(numel) <= FEW_ELEMENTS)


def _perhaps_preparing(barrier: list[LogEvent]) -> Finding:
    """Nothing says what the rank that did not come was doing; before the first step it is most often this."""
    return found(
        "slow-rank-preprocessing",
        f"a barrier before the first step timed out{on(barrier)}: a rank may still have been preparing data",
        barrier,
        why="the others wait in a collective, and the process group ends them when its time-out is over",
        fixes=[("wait longer, to see whether it comes", "init_process_group(timeout=timedelta(hours=2))")],
        severity=Severity.WARNING,
        confidence=Confidence.POSSIBLE,
        confirm="py-spy dump of the rank that printed no time-out",
        sources=("torch ProcessGroupNCCL: watchdog",),
        explains=(),
        restart="same nodes with a longer time-out",
    )


def _early(e: LogEvent) -> bool:
    """A wait of a job that still sets up: one of the first collectives, or a barrier's."""
    sequence, numel = e.details.get("seq", ""), e.details.get("numel", "")
    if e.kind != "watchdog-timeout":
        return True
    if sequence.isdigit() and int(sequence) <= EARLY_SEQUENCE:
        return True
    return (numel.isdigit() and int(numel) <= FEW_ELEMENTS) or not sequence


@rule("LOG094", Severity.WARNING)
def ranks_waited_until_their_timeout(log: Log, flight: Flight | None) -> Iterator[Finding]:
    """Ranks waited in a collective until a timer ended them.

    A time-out is how a hang ends. Which rank did not come, and what it did, decides.

    Fix: Flight Recorder dumps on time-out, and a stack of the rank that did not come.
    """
    events = log.find("watchdog-timeout", "heartbeat", "monitored-barrier", "gloo-timeout", "desync")
    if flight is not None and flight.watchdog is not None and flight.watchdog.speaks:
        return  # the HNG rules tell who waited where
    if events and not log.ended_well:
        first = events[0]
        d = first.details
        where = f" in {d['op']}" if "op" in d and first.kind == "watchdog-timeout" else ""
        number = f" #{d['seq']}" if d.get("seq") else ""
        limit = f" after {int(d['timeout']) / 1000:.0f} s" if d.get("timeout", "").isdigit() else ""
        missing = next((e.details["missing"] for e in events if e.details.get("missing")), "")
        yield found(
            "straggler-or-hung-rank",
            (f"ranks {missing.strip()} did not come to a barrier" if missing else f"ranks waited{where}{number}{limit}")
            + on(events),
            [*events, *log.find("pg-status")[:2]],
            why="a collective ends only when every rank has come to it",
            fixes=[
                (
                    "have evidence next time",
                    "smoldiag run -- CMD  # or export TORCH_FR_BUFFER_SIZE=2000 TORCH_NCCL_DUMP_ON_TIMEOUT=1",
                )
            ],
            severity=Severity.WARNING,
            confidence=Confidence.LIKELY if missing else Confidence.POSSIBLE,
            confirm="Flight Recorder dumps of all ranks; py-spy dump of the rank that did not come",
            sources=("torch ProcessGroupNCCL.cpp: watchdog",),
            explains=("peer-died", "nccl-failed", "rank-failed"),
            restart="unknown: it may hang again at the same place, or on the same host",
            ranks=_numbers(missing) or ranks_of(events),
        )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d{1,7}", text))


@rule("LOG095", Severity.ERROR)
def the_program_raised_an_exception(log: Log) -> Iterator[Finding]:
    """A rank ended with an exception of the program; the others only wait for it.

    The first one counts: what other ranks raise afterwards is mostly their view of it.

    Fix: at the line that is named.
    """
    raised = [
        e
        for e in log.find("exception")
        if not PASSED_ON.search(e.details.get("type", "")) and not PASSED_ON_TEXT.search(e.details.get("said", ""))
    ]
    ended = log.has("elastic-failed", "elastic-exit", "task-exit", "mpi-exit", "watchdog-timeout")
    went_on = bool(raised) and (log.steps_to or 0) >= raised[0].order and not ended
    if raised and log.has("traceback", "elastic-failed", "frame") and not log.ended_well and not went_on:
        first = raised[0]
        kind = first.details["type"].rpartition(".")[2]
        at = f" at {first.details['frame']}" if "frame" in first.details else ""
        yield found(
            "program-exception",
            f"{kind}{on([first])}{at}: {first.details.get('said', '').strip()[:160]}",
            raised,
            why="that rank ends, and the others wait in their next collective until a timer ends them",
            confidence=Confidence.LIKELY if len(raised) == 1 or first.rank is not None else Confidence.POSSIBLE,
            confirm="the same rank's log above this line",
            sources=("Python traceback",),
            explains=(*SYMPTOMS, *NETWORK),
            restart="fix first: the program, unless the message tells of the host",
            ranks=first.ranks,
            hosts=first.hosts,
        )


@rule("LOG096", Severity.WARNING)
def a_rank_ended_first(log: Log) -> Iterator[Finding]:
    """A rank ended with an error; the launcher then ended the others.

    torchrun names the first failure that it saw; its exit code alone does not tell why.

    Fix: the output of that rank; torchrun --redirects 3 --log-dir keeps it.
    """
    exits = log.find("elastic-exit", "mpi-exit", "task-exit", "elastic-failed", "signal", "segfault")
    rooted = [e for e in exits if e.details.get("root")] or [
        e for e in exits if e.details.get("code") not in ("0", None)
    ]
    shown = rooted or exits
    if shown and not log.ended_well:
        first = shown[0]
        code = first.details.get("code") or first.details.get("what") or first.details.get("name") or "a signal"
        yield found(
            "rank-failed",
            f"a rank ended first{on([first])}: {'exit code ' if code.lstrip('-').isdigit() else ''}{code}",
            shown,
            why="a launcher ends all ranks when one fails",
            severity=Severity.WARNING,
            confidence=Confidence.POSSIBLE,
            confirm="that rank's own output: torchrun --redirects 3 --log-dir DIR; dmesg of its host",
            sources=("torch.distributed.elastic: Root Cause (first observed failure)",),
            explains=("peer-died",),
            restart="unknown: the rank's own output is not here",
            ranks=first.ranks,
            hosts=first.hosts,
        )


@rule("LOG097", Severity.WARNING)
def the_job_was_ended_from_outside(log: Log) -> Iterator[Finding]:
    """The scheduler ended the job: its time was over, it was cancelled or preempted.

    Errors that follow in the same second are its consequence.

    Fix: more time, or checkpoints often enough to go on from.
    """
    events = [e for e in log.find("cancelled") if not log.has("oom-kill")]
    if events:
        said = (e.details[k].strip() for e in events for k in ("why", "state") if e.details.get(k))
        why = next(said, "TIME LIMIT" if "TIME LIMIT" in events[0].text else "")
        hung = log.first("watchdog-timeout", "heartbeat")
        yield found(
            "job-cancelled",
            f"the scheduler ended the job{f' ({why.lower()})' if why else ''}{on(events)}",
            events,
            why="what ranks report after that is how they were ended",
            severity=Severity.WARNING,
            confidence=Confidence.LIKELY if why and not hung else Confidence.POSSIBLE,
            confirm="sacct -j JOB -o State,Elapsed,Timelimit,ExitCode",
            sources=("Slurm: job state codes",),
            explains=("peer-died", "rank-failed") if not hung else (),
            restart="same nodes, from the last checkpoint",
        )


@rule("LOG098", Severity.WARNING)
def nccl_failed_without_saying_why(log: Log) -> Iterator[Finding]:
    """NCCL returned an error, and the lines that say why are not in this log.

    Without NCCL_DEBUG=WARN only the class of the error is told.

    Fix: NCCL_DEBUG=WARN in the job's environment, always.
    """
    events = log.find("nccl-error", "cuda-failure", "ofi-error", "ib-qp-event")
    if events and not log.ended_well:
        said = next(
            (e.details[k].strip() for e in events for k in ("said", "said2", "code") if e.details.get(k)), "an error"
        )
        yield found(
            "nccl-failed",
            f"NCCL failed{on(events)}: {said[:120]}",
            events,
            why="the class of the error is not its cause",
            fixes=[("have NCCL say why, next time", "export NCCL_DEBUG=WARN NCCL_DEBUG_FILE=/tmp/nccl.%h.%p")],
            severity=Severity.WARNING,
            confidence=Confidence.POSSIBLE,
            confirm="the same run with NCCL_DEBUG=INFO, logs of all ranks",
            sources=("NCCL user guide: NCCL_DEBUG",),
            explains=("rank-failed",),
            restart="unknown: the cause is not in these logs",
        )
