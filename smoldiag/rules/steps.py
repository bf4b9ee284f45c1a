"""STP, CKP: what makes training steps slow, from what the step monitor recorded on every rank.

Each cause is measured by replaying the steps without it (`model.run_causes`); these rules say which are worth a word.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from smoldiag.facts import Evidence
from smoldiag.facts.run import Run
from smoldiag.findings import Finding, Fix, Severity, Where
from smoldiag.knowledge import frameworks
from smoldiag.model import run_causes
from smoldiag.model import steps as model
from smoldiag.model.run_causes import Cause
from smoldiag.rules import rule

# From which share of the step on a cause is worth a warning. Where ranks are compared with others, the gain must be so
# far above its own standard error; where a phase was timed, so many steps must have had it. Of clean runs on two noisy
# processors shared with other programs the largest share was 7 %, at 2.8 standard errors; of faults that were put in
# the smallest was 13 %, at 6 (docs/train.md).
WORTH_A_WARNING = 0.10
GC_WORTH_A_WARNING = CHECKPOINT_WORTH_A_WARNING = 0.05
SIGMAS = 4.0
MIN_HIT = 3
MIN_STEPS = 8  # fewer say nothing about what is usual
MIN_GAIN_US = 500.0
MIN_SAVES = 3  # besides the last step's, which every run has
MOST_NAMED = 8
MEASURED = 1000  # what was measured comes before what was only read of the hosts
SILENT_S = 3.0  # for so long the others were still there when a rank was through

REPLAYED = "the steps replayed without it"


def _of(run: Run, *slugs: str, least: float = WORTH_A_WARNING) -> Iterator[tuple[int, Cause]]:
    """Those that are worth a warning, with their places among all of this run."""
    if len(model.counted(run.steps)) < MIN_STEPS:
        return
    for place, c in enumerate(run_causes.causes(run)):
        sure = c.sigmas >= SIGMAS if c.cause in run_causes.COMPARED else c.steps_hit >= MIN_HIT
        if c.cause in slugs and c.share >= least and c.gain_us >= MIN_GAIN_US and sure:
            yield place, c


def _cost(run: Run, c: Cause) -> str:
    words = f"{c.gain_us / 1e3:.1f} ms of {c.mean_us / 1e3:.1f} ms per step ({c.share:.0%}); what if: "
    words += f"{c.without_us / 1e3:.1f} ms per step without it ({REPLAYED}"
    with_it, without = (model.tokens_per_s(run, us) for us in (c.mean_us, c.without_us))
    return f"{words}; {with_it:,.0f} -> {without:,.0f} tokens/s)" if with_it and without else f"{words})"


def _where(c: Cause) -> Where:
    return Where(hosts=c.hosts, ranks=c.ranks)


def _who(c: Cause) -> str:
    """rank 1 on node1 | node1 with all its ranks (2, 3) | all ranks"""
    if not c.ranks:
        return "all ranks"
    if c.whole_hosts and len(c.hosts) == 1:
        return f"{c.hosts[0]} with all its ranks ({', '.join(map(str, c.ranks[:MOST_NAMED]))})"
    named = ", ".join(map(str, c.ranks[:MOST_NAMED])) + (" ..." if len(c.ranks) > MOST_NAMED else "")
    hosts = f" on {', '.join(c.hosts[:MOST_NAMED])}" if c.hosts else ""
    return f"rank{'s' if len(c.ranks) > 1 else ''} {named}{hosts}"


def _several(c: Cause) -> bool:
    return len(c.ranks) != 1 and not (c.whole_hosts and len(c.hosts) == 1)


def _takes(c: Cause) -> str:
    return f"a step takes {c.mean_us / 1e3:.1f} ms, and {c.without_us / 1e3:.1f} ms"


def _when(c: Cause) -> str:
    return f", every {c.every} steps" if c.every else ""


def _evidence(run: Run, part: Mapping[int, float], name: str) -> tuple[Evidence, ...]:
    worst = sorted(part, key=lambda rank: -part[rank])[:MOST_NAMED]
    return tuple(Evidence(text=f"rank {r}: {name} {part[r] / 1e3:.1f} ms per step", where=run.where) for r in worst)


def _phase(run: Run, name: str) -> dict[int, float]:
    budget = model.budget(run)
    return {s.rank: s.phases_us.get(name, 0.0) for s in budget.shares} if budget else {}


def _in_frameworks(what: str, cause: str) -> tuple[Fix, ...]:
    return tuple(Fix(do=f"{what} ({program})", command=line) for program, line in frameworks.LINES[cause])


@rule("STP001", Severity.WARNING)
def waits_for_data(run: Run) -> Iterator[Finding]:
    """The step waits for its next batch.

    While a rank waits for its loader, all ranks wait for that rank in their next collective. A loader that stalls
    only now and then (a cold cache, a shard that is fetched, a worker that starts) costs as much in the mean.

    Fix: more loader workers, prefetching, an index in memory, data on a local disk.
    """
    for place, c in _of(run, run_causes.DATA):
        yield Finding(
            message=f"{_who(c)} wait{'' if _several(c) else 's'} for data{_when(c)}: {_takes(c)} were "
            "each batch there in time",
            cause=c.cause,
            where=_where(c),
            evidence=_evidence(run, _phase(run, "data"), "waiting for data"),
            why="nobody computes until the batch is there",
            cost=_cost(run, c),
            fixes=(
                *_in_frameworks("prepare batches ahead", c.cause),
                Fix(do="where it stalls now and then: copy the data to a local disk before the run, and read it once"),
            ),
            confirm="the same run on synthetic data: smoldiag train without --tokens",
            explains=("straggler-rank",),
            first=place - MEASURED,
        )


@rule("STP002", Severity.WARNING)
def ranks_are_late(run: Run) -> Iterator[Finding]:
    """A rank, or a host with all its ranks, is late, and all the others wait for it.

    All ranks leave a collective together, so that the last one sets the time of the step. Its own work takes longer
    (clocks, temperature, another program, more data), or its control group keeps it off the processors.

    Fix: look at that rank's GPU (clocks, temperature), its host's processors and quota, and its share of the data.
    """
    for place, c in _of(run, run_causes.RANK):
        yield Finding(
            message=f"{_who(c)} {'are' if _several(c) else 'is'} late{_by_quota(c)}: {_takes(c)} "
            "were it like the others",
            cause=c.cause,
            where=_where(c),
            evidence=_of_late(run, c),
            why="a synchronous step is as slow as its slowest rank",
            cost=_cost(run, c),
            fixes=_for_late(c),
            confirm="run without that host, or with the ranks of two hosts swapped: does it stay with the host?",
            explains=("limits-differ", "slow-link") if c.throttled_us else (),
            first=place - MEASURED,
        )


def _by_quota(c: Cause) -> str:
    return f", kept off the processors by a quota for {c.throttled_us / 1e3:.1f} ms per step" if c.throttled_us else ""


def _of_late(run: Run, c: Cause) -> tuple[Evidence, ...]:
    budget = model.budget(run)
    shares = budget.shares if budget else ()
    counted = model.counted(run.steps)
    found = []
    for name, chosen in (("of the late", True), ("of the others", False)):
        those = [s for s in shares if (s.rank in c.ranks) == chosen]
        if not those:
            continue
        own = sum(sum(s.phases_us.values()) + s.unattributed_us for s in those) / len(those)
        words = f"own work {name}: {own / 1e3:.1f} ms per step"
        delays = [r[s.rank].delay_us or 0.0 for r in counted.values() for s in those]
        if delays:
            words += f", of it {sum(delays) / len(delays) / 1e3:.1f} ms ready to run without a processor"
        found.append(Evidence(text=words, where=run.where))
    if c.throttled_us:
        seen = {r: us for r, us in run.beside.throttled_us.items() if r in c.ranks}
        most = max(seen.values(), default=0) / 1e6
        words = f"cpu.stat of its control group: throttled for {most:.1f} s of {run.beside.watched_s:.1f} s"
        found.append(Evidence(text=words, where=run.where))
    return tuple(found)


def _for_late(c: Cause) -> tuple[Fix, ...]:
    host = c.hosts[0] if c.hosts else "these hosts"
    if c.throttled_us:
        return (
            Fix(do=f"raise or remove the CPU quota of the job on {host}", command="cat /sys/fs/cgroup/.../cpu.max"),
            Fix(do="in Kubernetes: leave out limits.cpu of the pod, and ask for whole processors (requests.cpu)"),
            Fix(do="in Slurm: as many as the rank's threads and loader workers need", command="--cpus-per-task=N"),
        )
    return (
        Fix(do=f"see on {host} whether a GPU is throttled", command="nvidia-smi -q -d CLOCK,PERFORMANCE,TEMPERATURE"),
        Fix(do=f"see what else runs on {host}", command="top -b -n 1 | head -20"),
        Fix(do="give all ranks alike batches: the same number of tokens, lengths sorted or packed"),
    )


@rule("STP003", Severity.WARNING)
def garbage_collection_stalls_steps(run: Run) -> Iterator[Finding]:
    """Python's garbage collector stops ranks, each at another time, so that all wait for each.

    A full collection walks through every object of the process; with W ranks a step is hit W times as often.

    Fix: gc.freeze() after start-up, gc.disable(), and one gc.collect() on all ranks at the same step.
    """
    for place, c in _of(run, run_causes.GC, least=GC_WORTH_A_WARNING):
        yield Finding(
            message=f"garbage collections stop {_who(c)}{_when(c)}: {_takes(c)} without them",
            cause=c.cause,
            where=_where(c),
            evidence=_evidence(run, _phase(run, "gc"), "collecting"),
            why="every collective waits for the rank that is collecting",
            cost=_cost(run, c),
            fixes=_in_frameworks("collect on all ranks at the same step", c.cause),
            confirm="the same run with gc.disable()",
            sources=("pytorch/torchtitan issue 148",),
            explains=("straggler-rank",),
            first=place - MEASURED,
        )


@rule("STP004", Severity.WARNING)
def host_sends_slowly(run: Run) -> Iterator[Finding]:
    """What one host sends takes far longer on its way than what the others send.

    The kernel says for each TCP connection how many bytes were acknowledged and for how long some were under way. A
    ring is as slow as its slowest link, so that one shaped, half-duplex or lossy port holds all ranks up.

    Fix: look at the port, cable and shaping of that host; leave the host out until it is like the others.
    """
    for place, c in _of(run, run_causes.LINK):
        link = c.slow_link
        if link is None:
            continue
        resent = sum(x.resent_bytes for x in run.beside.connections if x.rank in c.ranks)
        yield Finding(
            message=f"{link.host} sends at {link.bytes_per_us:.0f} MB/s, the others at "
            f"{link.usual_bytes_per_us:.0f} MB/s: {_takes(c)} were its link like theirs",
            cause=c.cause,
            where=_where(c),
            evidence=(
                Evidence(
                    text=f"data of {link.host} was under way for {link.busy_share:.0%} of the time, "
                    f"{resent / 1e6:.1f} MB were sent again",
                    where=f"{run.where}: TCP_INFO of its connections",
                ),
            ),
            why="all ranks wait for the slowest link of a ring",
            cost=_cost(run, c),
            fixes=(
                Fix(do=f"on {link.host}: look for shaping and drops", command="tc -s qdisc show dev IFACE"),
                Fix(
                    do=f"on {link.host}: look at rate, duplex and errors",
                    command="ethtool IFACE; ethtool -S IFACE | grep -iE 'err|drop|pause'",
                ),
                *_in_frameworks("until then, send less", c.cause),
            ),
            confirm=f"smoldiag find-slow, or nccl-bench between {link.host} and another host",
            explains=("straggler-rank",),
            first=place - MEASURED,
        )


@rule("STP005", Severity.WARNING)
def quota_holds_all_ranks_up(run: Run) -> Iterator[Finding]:
    """The CPU quota of the control group keeps all ranks off the processors.

    With a quota a process that has used its share of a period stands still until the next one, in the middle of a
    collective as well; with many ranks one of them always does.

    Fix: no CPU limit for training (ask for processors instead), or fewer threads and loader workers.
    """
    for place, c in _of(run, run_causes.QUOTA):
        yield Finding(
            message=f"a CPU quota keeps all ranks off the processors for {c.throttled_us / 1e3:.1f} ms per step: "
            f"{_takes(c)} without it",
            cause=c.cause,
            evidence=(
                Evidence(
                    text=f"cpu.stat of their control groups: throttled for "
                    f"{max(run.beside.throttled_us.values()) / 1e6:.1f} s of {run.beside.watched_s:.1f} s",
                    where=run.where,
                ),
            ),
            why="a rank that stands still holds all others up",
            cost=_cost(run, c),
            fixes=_for_late(c),
            confirm="the same run without the quota",
            explains=("straggler-rank",),
            first=place - MEASURED,
        )


@rule("STP006", Severity.ERROR)
def rank_ran_out_of_data(run: Run) -> Iterator[Finding]:
    """A rank was through with its steps while the others still took theirs.

    Its data gave fewer batches than those of the others. They wait for it in their next collective, until a timeout.

    Fix: the same number of steps on all ranks: drop_last, a sampler that pads, or a fixed number of steps.
    """
    last = {rank: max(s.step for s in run.steps if s.rank == rank) for rank in {s.rank for s in run.steps}}
    through = {rank: at for rank, (step, at) in run.beside.ended.items() if step >= last.get(rank, step)}
    going = {rank: at for rank, at in run.beside.seen.items() if rank not in through}
    early = {rank: at for rank, at in through.items() if going and max(going.values()) > at + SILENT_S}
    if not early:
        return
    hosts = {s.rank: s.host for s in run.steps}
    ranks = tuple(sorted(early))
    c = ", ".join(map(str, ranks[:MOST_NAMED]))
    at = datetime.fromtimestamp(min(early.values()), UTC).strftime("%H:%M:%S UTC")
    yield Finding(
        message=f"rank {c} was through after {last[ranks[0]] + 1} steps, at {at}; {len(going)} other"
        f"{'s' if len(going) > 1 else ''} went on and waited for it",
        cause="uneven-data-across-ranks",
        severity=Severity.ERROR,
        where=Where(hosts=tuple(dict.fromkeys(hosts[r] for r in ranks if hosts.get(r))), ranks=ranks),
        evidence=tuple(
            Evidence(text=f"rank {r}: last seen {going[r] - min(early.values()):.0f} s later", where=run.where)
            for r in sorted(going)[:MOST_NAMED]
        ),
        why="a collective needs all ranks",
        fixes=_in_frameworks("the same number of steps on all ranks", "uneven-data-across-ranks"),
        confirm="print the number of batches of each rank's loader",
        explains=("rank-stalled", "straggler-or-hung-rank", "rank-died"),
        restart="fix first",
    )


@rule("CKP001", Severity.WARNING)
def checkpoints_stop_the_run(run: Run) -> Iterator[Finding]:
    """Saving checkpoints takes a good part of the run.

    A synchronous save stops every rank until the slowest has written its part; one in the background still copies the
    state, and waits for the save before it.

    Fix: save asynchronously, less often, or to faster storage.
    """
    saves = _saves(run)
    if len(saves) < MIN_SAVES:
        return
    for place, c in _of(run, run_causes.CHECKPOINT, least=CHECKPOINT_WORTH_A_WARNING):
        per_save = c.gain_us * len(model.counted(run.steps)) / len(saves)
        yield Finding(
            message=f"checkpoints{_when(c)} stop the run for {per_save / 1e3:.0f} ms each: {_takes(c)} without them",
            cause=c.cause,
            where=_where(c),
            evidence=_evidence(run, _phase(run, "checkpoint"), "saving"),
            why="nobody trains while the state is copied or written",
            cost=_cost(run, c),
            fixes=_in_frameworks("save in the background, and less often", c.cause),
            confirm="the same run without checkpoints",
            first=place - MEASURED,
        )


def _saves(run: Run) -> Sequence[int]:
    """The steps that saved, besides the last one."""
    steps = sorted({s.step for s in run.steps if s.phases_us.get("checkpoint", 0.0) > 0})
    last = max((s.step for s in run.steps), default=0)
    return [step for step in steps if step != last]
