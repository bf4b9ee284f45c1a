"""STP, STO: how fast a run went by its own metrics: slow steps, changes of pace, schedules, drift.

What a curve of speeds carries, and no more: where several causes give the same curve, the likeliest is named as
possible, `why` has the others, and `confirm` the cheapest observation that tells them apart.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import combinations

from smoldiag.facts import Evidence
from smoldiag.facts.series import Series
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.knowledge import frameworks
from smoldiag.model import series as model
from smoldiag.model.series import Dip, NodeCounts, Pace, Replay, Stretch
from smoldiag.model.stats import median
from smoldiag.rules import rule

MIN_STEPS = 40  # fewer show no habit
MIN_DIPS = 3
VERY_SLOW = 0.1  # of the usual speed: one such step is worth a word
MAX_DIP_SHARE = 0.25  # more is no exception
MIN_DIP_SHARE = 0.01  # of the steps
MIN_LOST = 0.01  # of the time; runs that are called sound lose less (Smol Training Playbook: 0.9 % without the fault)
PERIODIC_LOST = 0.05  # of the time that checkpoints and the like may take
DEEP_SHARE = 0.5
DATA_SHARE = 0.15  # of a step's time that is spent waiting for data
DATA_EXPLAINS = 0.6  # of what slow steps take longer
DATA_CLEARED = 0.2
SLOW_STRETCH = 0.85  # of the best pace: longer sequences and other neighbours stay above it
START_SHARE = 0.25  # of a run, that may be slow because it starts
LONG_STRETCH = 0.1  # of the run: a pace that lasts so long is one to compare with
UNSTEADY = 3.0  # times the scatter of the best stretch
UNSTEADY_CV = 0.04
SAWTOOTH = 2  # slow stretches with fast ones between them
DRIFT = 0.10
DRIFT_SIGMAS = 2.5  # of the scatter; a straight line alone has 3.5
GROWS = 1.4
SAME_RATE = 2.0
MANY_PAIRS = 200
LONGEST_SHARE = 0.6  # of the steps; chance gives each of two ranks half of them
LATE_SHARE = 0.10  # of a step
OTHERS = "garbage collection, the allocator, hooks that log or save"
CONFIRM = (
    "log the time that the loop waits for the loader: is it long in these steps? then, the same steps on synthetic data"
)


def _paced(series: Sequence[Series]) -> Iterator[tuple[Series, Pace]]:
    for s in series:
        found = model.pace(s)
        if found is not None and found.rows >= MIN_STEPS and s.source != model.RUN_FOLDER:
            yield s, found


@rule("STP020", Severity.WARNING)
def steps_waiting_for_data(series: tuple[Series, ...]) -> Iterator[Finding]:
    """The loop waits for data in each step, or the more the longer it runs.

    Fix: more workers and prefetching; keep indices in memory bounded; measure once with synthetic data.
    """
    for s in series:
        timed = [
            (step, took, min(waited, took))
            for step, took, waited in zip(model.points_axis(s), s.column("step_s"), s.column("data_s"), strict=True)
            if step is not None and took and waited is not None
        ]
        if len(timed) < model.MIN_STRETCH or s.source == model.RUN_FOLDER:
            continue
        share = sum(waited for *_, waited in timed) / sum(took for _, took, _ in timed)
        if share < DATA_SHARE:
            continue
        quarter = max(1, len(timed) // 4)
        first, last = (median([waited for *_, waited in part]) for part in (timed[:quarter], timed[-quarter:]))
        grows = f", from {first:.3g} s to {last:.3g} s" if last > GROWS * first else ""
        worst = max(timed, key=lambda row: row[2])
        yield Finding(
            message=f"{share:.0%} of the time of a step{_of(s)} is waiting for data{grows}",
            cause="dataloader-stall",
            subject=s.name,
            confidence=Confidence.LIKELY,
            evidence=tuple(
                Evidence(text=f"step {step:g}: {took:.3g} s, of them {waited:.3g} s for data", where=s.where)
                for step, took, waited in (timed[0], worst)
            ),
            why="the GPUs stand still until the batch is there",
            cost=f"{share:.0%} of each step (data time / step time)",
            fixes=(
                *_as_set_there(s, "prepare batches ahead", "dataloader-stall"),
                Fix(do="copy the data to local NVMe, or see how fast the storage reads"),
            ),
            confirm="the same steps with synthetic data",
        )


@rule("STP021", Severity.WARNING)
def throughput_drops_on_single_steps(series: tuple[Series, ...]) -> Iterator[Finding]:
    """Some steps are far slower than the others, and not on a schedule.

    Irregular ones that come back to full speed at once wait for something, mostly for data: a loader that runs dry, an
    index that grows. A cost that is the same each time points at software on the host.

    Fix: log the time of the loader; run once with synthetic data; look at memory and storage of the slow steps.
    """
    for s, pace in _paced(series):
        waited = _waited_for_data(s, pace)
        cleared = waited is not None and waited <= DATA_CLEARED
        if not _are_worth_a_word(pace) or (pace.deep_share >= DEEP_SHARE and not cleared):
            continue
        replays = [r for r in _replays(s, series) if r.is_sure]
        alike = _alike(s, pace, series) if pace.narrow else None
        how = "about the same each time, " if pace.narrow else ""
        evidence = (*_usual(s, pace), *_slowest(s, pace), *_replayed(replays), *(e for e in (alike,) if e))
        sure = (waited is not None and waited >= DATA_EXPLAINS) or bool(replays)
        yield Finding(
            message=f"{len(pace.irregular)} of {pace.rows} steps{_of(s)} ({pace.rate:.1%}) drop below "
            f"{_limit(pace):.0%} of the usual speed, to {_worst(pace).ratio:.0%} at {pace.axis} "
            f"{_worst(pace).step:.0f}, without a period; each takes {pace.extra(50):.2g} usual steps longer, "
            f"{how}{pace.extra(5):.2g} to {pace.extra(95):.2g}"
            + ("; another run stumbles as often, at another cost: a setting decides it" if alike else ""),
            cause="step-stalls" if cleared else "dataloader-stall",
            subject=s.name,
            severity=Severity.WARNING if pace.lost >= MIN_LOST else Severity.INFO,
            confidence=Confidence.LIKELY if sure and not cleared else Confidence.POSSIBLE,
            evidence=evidence,
            why="the loop does not wait for data in these steps: garbage collection, the allocator or a hook that logs "
            "or saves is left"
            if cleared
            else f"speed that returns at once is no clock and no link: a step waited for something, for data most of "
            f"all; or else: storage, {OTHERS}",
            cost=f"{pace.lost:.1%} of the time (what these steps take longer than the usual one)",
            fixes=(
                Fix(do="log the loader's time per step, and look at memory and storage when it drops"),
                *(() if cleared else _as_set_there(s, "prepare batches ahead", "dataloader-stall")),
                Fix(do="keep the loader's index small: one that is built for all planned steps grows with them"),
            ),
            confirm=CONFIRM,
            sources=("Smol Training Playbook, the training marathon: mystery 2",),
        )


@rule("STO001", Severity.WARNING)
def steps_stand_still_in_bursts(series: tuple[Series, ...]) -> Iterator[Finding]:
    """Single steps take several times as long, close together, at full speed before and after.

    So reads behave that miss a cache: data that a storage tier has moved away, a cold page cache, a throttled bucket.
    Where a second run with the same order of data stands still at the same steps, the data decides when; hardware that
    fails by chance can't do that.

    Fix: keep the data set on local NVMe, or pinned in the storage's fast tier; read ahead.
    """
    for s, pace in _paced(series):
        if not _are_worth_a_word(pace) or pace.deep_share < DEEP_SHARE:
            continue
        waited = _waited_for_data(s, pace)
        if waited is not None and waited <= DATA_CLEARED:
            continue
        replays = [r for r in _replays(s, series) if r.is_sure]
        bursts = f" in {pace.clusters} bursts" if pace.clusters < len(pace.irregular) else ""
        yield Finding(
            message=f"{len(pace.irregular)} of {pace.rows} steps{_of(s)} ({pace.rate:.1%}) stand still{bursts}, down "
            f"to {_worst(pace).ratio:.1%} of the usual speed; they take {pace.extra(5):.2g} to {pace.extra(95):.2g} "
            f"usual steps longer: {pace.lost:.0%} of the time is lost"
            + (
                f", at the same steps as {replays[0].b if replays[0].a == s.label else replays[0].a}" if replays else ""
            ),
            cause="storage-read-stall",
            subject=s.name,
            severity=Severity.WARNING if pace.lost >= MIN_LOST else Severity.INFO,
            confidence=Confidence.LIKELY if replays or waited is not None else Confidence.POSSIBLE,
            evidence=(*_usual(s, pace), *_slowest(s, pace), *_replayed(replays)),
            why=(
                "the order of the data decides which steps they are: the reads of these batches stall"
                if replays
                else "stalls of seconds at full speed before and after are those of reads that miss a cache"
            )
            + f"; or else: the loader's own work, {OTHERS}",
            cost=f"{pace.lost:.0%} of the time: {_value(pace, pace.harmonic)} instead of {_value(pace, pace.median)} "
            "(rows over time, against the median)",
            fixes=(
                Fix(do="copy the data set to local NVMe, or pin it in the fast tier of the storage"),
                Fix(do="see whether the storage is full or evicts", command="df -h; df -i"),
            ),
            confirm=CONFIRM + "; the storage's read latency at these times",
            sources=("Smol Training Playbook, the training marathon: mystery 1",),
        )


@rule("STO002", Severity.WARNING)
def pace_collapses_and_scatters(series: tuple[Series, ...]) -> Iterator[Finding]:
    """For a stretch of the run all steps are slow and scatter, with stalls on top.

    Clocks and links are slow evenly. A pace that falls, scatters many times as much as before and stalls is that of
    something shared that is overloaded: storage that is full and reads from a slower tier.

    Fix: look at how full the storage is and what it evicts while it is slow; move the data to local NVMe.
    """
    for s, pace in _paced(series):
        for slow, best in _slow_stretches(pace):
            if not _is_collapse(pace, slow, best):
                continue
            yield Finding(
                message=f"from {pace.axis} {slow.first:.0f} to {slow.last:.0f}{_of(s)}{_since(slow)} the pace is "
                f"{slow.median / best.median:.0%} of the best ({_value(pace, slow.median)} against "
                f"{_value(pace, best.median)}), scatters {_times(slow.cv, best.cv)} as much and stalls "
                f"{slow.dips} times",
                cause="storage-read-stall",
                subject=s.name,
                confidence=Confidence.POSSIBLE,
                evidence=tuple(_level(s, pace, x) for x in (best, slow)),
                why="something shared is overloaded, storage most of all; or else: another job on the same storage or "
                "network; a GPU that is throttled is slow evenly",
                cost=f"{pace.time_lost:.0%} of the time, stalls included (beyond the median step)",
                fixes=(
                    Fix(do="see whether the storage is full or evicts", command="df -h; df -i"),
                    Fix(do="copy the data set to local NVMe"),
                ),
                confirm="the loader's time per step and the storage's read latency before and after this place",
                sources=("Smol Training Playbook, the training marathon: mystery 1",),
            )
            break


@rule("STP022", Severity.WARNING)
def run_changes_its_pace(series: tuple[Series, ...]) -> Iterator[Finding]:
    """One stretch of the run is much slower than another, evenly.

    Code and data are the same, so that the machine changed: clocks under heat or a power cap, a neighbour, a node.

    Fix: look at the clocks and throttle reasons of the GPUs while it is slow; repeat without that node.
    """
    for s, pace in _paced(series):
        slow = [(x, best) for x, best in _slow_stretches(pace) if not _is_collapse(pace, x, best)]
        if not slow:
            continue
        worst, best = min(slow, key=lambda pair: pair[0].median)
        sawtooth = len(slow) >= SAWTOOTH and len(slow) < len(pace.stretches)
        often = f"in {len(slow)} stretches, each between fast ones, " if sawtooth else ""
        ends = worst.last < pace.last
        place = f"from {pace.axis} {worst.first:.0f} {f'to {worst.last:.0f}' if ends else 'on'}"
        if worst.first <= pace.first:
            place = f"until {pace.axis} {worst.last:.0f}"
        share = sum(x.rows for x, _ in slow) / pace.rows
        yield Finding(
            message=f"{often}{place}{_of(s)}{_since(worst)} steps take {best.median / worst.median:.2f} times as long "
            "as in the best stretch, evenly",
            cause="gpu-throttled" if sawtooth else "slow-node",
            subject=s.name,
            confidence=Confidence.POSSIBLE,
            evidence=tuple(_level(s, pace, x) for x in (best, worst)),
            why="nothing of the program changes there: clocks (heat, a power cap), a link, or what else runs on the "
            "nodes; or else a setting that changes there: sequence length, batch size, a stage of the schedule",
            cost=f"{1 - worst.median / best.median:.0%} of the speed for {share:.0%} of the steps",
            fixes=(
                Fix(
                    do="look at clocks and throttle reasons on each node while it is slow",
                    command="nvidia-smi -q -d CLOCK,PERFORMANCE,TEMPERATURE",
                ),
            ),
            confirm="smoldiag find-slow, while it is slow; in the logs: what was started or changed at that time",
        )


@rule("STP024", Severity.WARNING)
def steps_slow_on_a_schedule(series: tuple[Series, ...]) -> Iterator[Finding]:
    """Every so many steps one takes much longer, as by a checkpoint or an evaluation.

    Fix: save asynchronously, less often, or to faster storage; evaluate elsewhere.
    """
    for s, pace in _paced(series):
        for period in pace.periods:
            members = period.dips * period.extra_steps
            lost = members / (pace.rows + members)
            yield Finding(
                message=f"every {period.every} steps{_of(s)} one takes {1 + period.extra_steps:.2g} times as long "
                f"({period.dips} times, where step % {period.every} = {period.offset})",
                cause="checkpoint-stall",
                subject=f"{s.name} {period.every}",
                severity=Severity.WARNING if lost >= PERIODIC_LOST else Severity.INFO,
                confidence=Confidence.POSSIBLE,
                evidence=_usual(s, pace),
                why="nothing but a schedule is so regular: checkpoints first of all; or else: evaluation, logging of "
                "samples, gc.collect() at an interval, loader workers that restart",
                cost=f"{lost:.1%} of the time",
                fixes=(
                    *_as_set_there(s, "save in the background, or less often", "checkpoint-stall"),
                    Fix(do="evaluate less often, or elsewhere"),
                ),
                confirm=f"what the settings do every {period.every} steps; the same run without it",
            )


@rule("STP025", Severity.WARNING)
def run_slows_down_little_by_little(series: tuple[Series, ...]) -> Iterator[Finding]:
    """The pace falls steadily along the run.

    Fix: see what grows: memory of the host and the loader, fragments of the allocator, sequence lengths, temperature.
    """
    for s, pace in _paced(series):
        longest = max(pace.stretches, key=lambda x: x.rows)
        if pace.drift > -DRIFT or -pace.drift < DRIFT_SIGMAS * longest.cv:
            continue
        yield Finding(
            message=f"the pace{_of(s)} falls steadily by {-pace.drift:.0%} from {pace.axis} {longest.first:.0f} to "
            f"{longest.last:.0f}",
            cause="throughput-drift",
            subject=s.name,
            confidence=Confidence.LIKELY,
            evidence=(_level(s, pace, longest),),
            why="something grows with the steps: the loader's memory or index, fragments of the GPU's memory, longer "
            "sequences, heat; the curve alone does not say which",
            cost=f"{-pace.drift:.0%} of the speed at the end (straight line)",
            fixes=(Fix(do="log host memory, allocator retries, sequence length and GPU clocks along the run"),),
            confirm="restart from the last checkpoint: full speed again means that the process grew",
        )


@rule("STP026", Severity.INFO)
def same_steps_are_slow_in_two_runs(series: tuple[Series, ...]) -> Iterator[Finding]:
    """Two runs are slow at the same step numbers, far more often than by chance.

    Runs with one seed read the same data in the same order. So the data decides which steps are slow, and no
    hardware that fails now and then.

    Fix: look at what is read or computed in these steps.
    """
    for a, b in list(combinations([s for s, _ in _paced(series)], 2))[:MANY_PAIRS]:
        found = None if model.same_run(a, b) else model.replay(a, b)
        if found is None or not found.is_sure:
            continue
        pace = model.pace(a)
        like = found.correlation is not None and found.correlation > 0.8
        yield Finding(
            message=f"{found.shared} of {min(found.of_a, found.of_b)} slow steps of {a.label} and {b.label} have the "
            f"same numbers; chance gives {found.by_chance:.1f}",
            cause="uneven-data"
            if like
            else "storage-read-stall"
            if pace and pace.deep_share > 0.5
            else "dataloader-stall",
            severity=Severity.INFO,
            confidence=Confidence.LIKELY,
            evidence=_replayed([found]),
            why="the order of the data decides it"
            + ("; they take about as long in both: the batches themselves are expensive" if like else "")
            + (
                "; how long they take differs: the state of what is read decides that"
                if found.correlation is not None and found.correlation < 0.5
                else ""
            ),
            fixes=(Fix(do="look at what the loader reads in these steps"),),
        )


@rule("STP027", Severity.INFO)
def pace_against_the_number_of_nodes(series: tuple[Series, ...]) -> Iterator[Finding]:
    """Two runs on different numbers of nodes: speed, and whether slow steps come from nodes.

    If each node stumbled for itself, a job on N nodes would stumble N times as often.

    Fix: nothing, or where the rate does not grow: look for what all ranks share (code, order of data, storage).
    """
    told: set[tuple[int, int]] = set()
    for a, b in list(combinations([s for s, _ in _paced(series)], 2))[:MANY_PAIRS]:
        found = model.node_counts(a, b)
        if found is None or found.nodes in told:
            continue
        told.add(found.nodes)
        yield Finding(
            message=f"{found.nodes[1]} nodes reach {found.efficiency:.0%} of the speed of {found.nodes[0]} "
            f"({found.many}: {found.speeds[1]:.5g}, {found.few}: {found.speeds[0]:.5g}); {_rates(found)}",
            cause="pace-by-nodes",
            severity=Severity.INFO,
            confidence=Confidence.LIKELY,
            evidence=(Evidence(text=_rates(found), where=b.where),),
            why="a rate that does not grow with the nodes has a cause that all ranks share: code, order of the data, "
            "storage; one that does is in single nodes",
            fixes=(Fix(do="compare runs of the same model, batch per GPU and code"),),
        )


@rule("STP028", Severity.WARNING)
def one_rank_takes_longer(series: tuple[Series, ...]) -> Iterator[Finding]:
    """Of the ranks that a log tells of, one takes longer in most steps.

    Fix: look at that rank's GPU and host, and at its share of the data.
    """
    for s in series:
        found = None if s.source == model.RUN_FOLDER else model.late_rank(s)
        if found is None or found.longest_share < LONGEST_SHARE:
            continue
        step_s = [v for v in s.column("step_s") if v is not None]
        usual = median(step_s) if step_s else found.usual_s
        if found.own_s - found.usual_s < LATE_SHARE * usual:
            continue
        data = found.column == "data_s"
        yield Finding(
            message=f"rank {found.rank} {'waits for data' if data else 'takes'} {found.own_s:.3g} s per step, the rest "
            f"{found.usual_s:.3g} s; it is the longest in {found.longest_share:.0%} of {found.steps} steps",
            cause="dataloader-stall" if data else "straggler-rank",
            subject=s.name,
            confidence=Confidence.LIKELY,
            where=Where(ranks=(found.rank,)),
            evidence=(Evidence(text=f"medians of {found.column} by rank", where=s.where),),
            why="a synchronous step is as slow as its slowest rank",
            cost=f"{found.own_s - found.usual_s:.3g} s of {usual:.3g} s per step",
            fixes=_as_set_there(s, "prepare batches ahead", "dataloader-stall")
            if data
            else (
                Fix(do="see whether its GPU is throttled", command="nvidia-smi -q -d CLOCK,PERFORMANCE,TEMPERATURE"),
            ),
            confirm="run without that rank's host: does it stay with the host?",
        )


def _as_set_there(s: Series, what: str, cause: str) -> tuple[Fix, ...]:
    """As the program that wrote the metrics spells it, where that is known."""
    lines = frameworks.LINES[cause]
    program = PROGRAMS.get(s.source, "plain")
    own = [(name, line) for name, line in lines if program in name] or [lines[0]]
    return tuple(Fix(do=f"{what} ({name})", command=line) for name, line in own)


PROGRAMS = {  # sources of metrics -> names in knowledge.frameworks
    "Hugging Face Trainer": "Hugging Face",
    "Lightning CSV": "Lightning",
    "torchtitan": "torchtitan",
    "Megatron-LM": "Megatron-LM",
    "nanotron": "nanotron",
}


def _rates(found: NodeCounts) -> str:
    few, many = found.dip_rates
    return (
        f"slow steps: {few:.2%} on {found.nodes[0]}, {many:.2%} on {found.nodes[1]} nodes "
        f"(for itself each node would make it {found.independent:.0%})"
    )


def _are_worth_a_word(pace: Pace) -> bool:
    enough = len(pace.irregular) >= MIN_DIPS or any(d.ratio < VERY_SLOW for d in pace.irregular)
    return enough and max(pace.rate, pace.lost) >= MIN_DIP_SHARE and pace.rate <= MAX_DIP_SHARE


def _slow_stretches(pace: Pace) -> list[tuple[Stretch, Stretch]]:
    """Each with the best stretch, from which it differs by more than noise; what is only the start does not count."""
    long = [x for x in pace.stretches if x.rows >= LONG_STRETCH * pace.rows] or list(pace.stretches)
    best = max(long, key=lambda x: x.median)
    found = []
    for i, x in enumerate(pace.stretches):
        if x.median >= SLOW_STRETCH * best.median or (i == 0 and x.rows < START_SHARE * pace.rows):
            continue
        found.append((x, best))
    return found


def _is_collapse(pace: Pace, slow: Stretch, best: Stretch) -> bool:
    deep = sum(d.ratio < model.DEEP_RATIO for d in pace.irregular)
    return slow.cv >= max(UNSTEADY * best.cv, UNSTEADY_CV) and deep >= MIN_DIPS


def _waited_for_data(s: Series, pace: Pace) -> float | None:
    """Share of what slow steps take longer that is waiting for data; None where it was not logged."""
    if not (s.has("data_s") and s.has("step_s")):
        return None
    rows = {
        step: (took, waited)
        for step, took, waited in zip(model.points_axis(s), s.column("step_s"), s.column("data_s"), strict=True)
        if step is not None and took and waited is not None
    }
    slow = [rows[d.step] for d in pace.irregular if d.step in rows]
    if not slow:
        return None
    usual = [median([r[i] for r in rows.values()]) for i in (0, 1)]
    longer = sum(took - usual[0] for took, _ in slow)
    return sum(waited - usual[1] for _, waited in slow) / longer if longer > 0 else None


def _replays(s: Series, series: Sequence[Series]) -> Iterator[Replay]:
    for other in series:
        if other is not s and not model.same_run(s, other) and (found := model.replay(s, other)):
            yield found


def _alike(s: Series, pace: Pace, series: Sequence[Series]) -> Evidence | None:
    """Another run with the same rate of slow steps, each of another constant cost: a setting decides the cost."""
    for other in series:
        theirs = model.pace(other) if other is not s else None
        if theirs is None or not theirs.narrow or theirs.lost < MIN_LOST / 2:
            continue
        rates = sorted((pace.rate, theirs.rate))
        sizes = sorted((pace.extra(50), theirs.extra(50)))
        if rates[1] <= SAME_RATE * rates[0] and sizes[1] >= GROWS * sizes[0]:
            return Evidence(
                text=f"{other.label}: as often ({theirs.rate:.2%} of its steps against {pace.rate:.2%}), each "
                f"{theirs.extra(50):.3g} usual steps longer against {pace.extra(50):.3g}: "
                f"x{sizes[1] / sizes[0]:.1f}, by a setting that differs",
                where=other.where,
            )
    return None


def _replayed(found: Sequence[Replay]) -> tuple[Evidence, ...]:
    return tuple(
        Evidence(
            text=f"{r.shared} slow steps of {r.a} ({r.of_a}) and {r.b} ({r.of_b}) have the same numbers, chance gives "
            f"{r.by_chance:.1f}; their lengths correlate with {r.correlation:.2f}"
            if r.correlation is not None
            else f"{r.shared} slow steps of {r.a} and {r.b} have the same numbers, chance gives {r.by_chance:.1f}",
            where="steps " + ", ".join(f"{x:.0f}" for x in r.steps),
        )
        for r in found[:3]
    )


def _usual(s: Series, pace: Pace) -> tuple[Evidence, ...]:
    return (
        Evidence(
            text=f"usual {_value(pace, pace.median)}, over time {_value(pace, pace.harmonic)}; "
            f"{pace.time_lost:.1%} of the time is beyond the usual step",
            where=s.where,
        ),
    )


def _slowest(s: Series, pace: Pace) -> tuple[Evidence, ...]:
    worst = sorted(pace.irregular, key=lambda d: d.ratio)[:4]
    return tuple(
        Evidence(
            text=f"{pace.axis} {d.step:.0f}: {d.ratio:.1%} of the usual speed, {d.extra_steps:.2g} usual steps longer"
            + (f", {_clock(d.time_s)}" if d.time_s is not None else ""),
            where=s.where,
        )
        for d in worst
    )


def _level(s: Series, pace: Pace, x: Stretch) -> Evidence:
    return Evidence(
        text=f"{pace.axis} {x.first:.0f} to {x.last:.0f}{_since(x)}: {_value(pace, x.median)}, scatter {x.cv:.1%}, "
        f"{x.dips} stalls",
        where=s.where,
    )


def _value(pace: Pace, speed: float) -> str:
    return f"{1 / speed:.4g} s per step" if pace.is_time else f"{speed:,.0f} {pace.unit}".strip()


def _since(x: Stretch) -> str:
    return f" (since {_clock(x.time_s)})" if x.time_s is not None else ""


def _clock(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _of(s: Series) -> str:
    return f" of {s.name}" if s.name else ""


def _worst(pace: Pace) -> Dip:
    return min(pace.irregular, key=lambda d: d.ratio)


def _limit(pace: Pace) -> float:
    return max(x.dip_below for x in pace.stretches)


def _times(a: float, b: float) -> str:
    return f"{a / b:.0f} times" if b > 0 else "far more than"
