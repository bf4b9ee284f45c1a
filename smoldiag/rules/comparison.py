"""What got worse between two of a kind, and which of the settings that changed can be the reason."""

from collections.abc import Iterator, Sequence

from smoldiag.facts import Evidence
from smoldiag.facts.alone import Alone, Beside
from smoldiag.facts.comparison import CHECKPOINT, COMMUNICATION, COMPUTE, DATA, HOST, Change, Comparison, Metric
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.model import folded
from smoldiag.model.sizes import human
from smoldiag.rules import rule

SLOWER, STALLS, BANDWIDTH = "slower-than-before", "stalls-more-than-before", "bandwidth-lower-than-before"
CAUSE_OF_AREA = {
    DATA: "dataloader-stall",
    COMPUTE: "compute-slower",
    HOST: "straggler-rank",
    CHECKPOINT: "checkpoint-stall",
    COMMUNICATION: "communication-slower",
}
CAUSE_OF_PART = {
    "idle": "idle-more-than-before",
    "gc": "gc-stragglers",
    "evaluation": "evaluation-slower",
    "waiting for a peer": "uneven-work",
}
WORTH_A_WARNING = 5.0  # per cent of the step: what is slower by less is told as info
SHARE_OF_WHOLE = 0.15  # of what the step got longer: smaller parts are not its cause
LOSS_WORTH_A_WARNING = 0.01  # nats: a run that was repeated with the same seed on other hardware stays below
ONCE_WORTH_A_WORD = 10.0  # per cent, of a figure that was measured once on each side
MOST_NAMED = 8
STEPS = "smoldiag explain RUN --facts on both runs; a third run tells whether it stays"


def cause_of(m: Metric) -> str:
    """The slug for a figure that got worse."""
    if m.kind in ("busbw", "latency"):
        return BANDWIDTH
    if m.kind in ("step", "stalls"):
        return SLOWER if m.kind == "step" else STALLS
    return CAUSE_OF_PART.get(m.part, CAUSE_OF_AREA.get(m.area, SLOWER))


def figures(m: Metric) -> str:
    """98.1 ms against 55.0 ms: +78 % (99 %: +61 to +95 %, 27 and 27 samples)."""
    sure = f"99 %: {m.low:+.1f} to {m.high:+.1f} %, " if m.low is not None and m.high is not None else ""
    change = f"{m.change_percent:+.1f} %" if m.a else "new"
    counted = f"{m.samples[1]} against {m.samples[0]} samples"
    return f"{brief(m)}: {change} ({sure}{counted})"


def brief(m: Metric) -> str:
    return f"{shown(m.b, m.unit)} against {shown(m.a, m.unit)}"


def shown(value: float, unit: str) -> str:
    if unit == "us":
        return f"{value / 1e3:.2f} ms" if abs(value) >= 1e3 else f"{value:.1f} us"
    return f"{value:,.0f} {unit}" if unit.endswith("/s") and abs(value) >= 1e3 else f"{value:.4g} {unit}"


def _evidence(c: Comparison, metrics: Sequence[Metric]) -> tuple[Evidence, ...]:
    return tuple(Evidence(text=f"{m.name}: {figures(m)}", where=f"{c.a}, {c.b}") for m in metrics[:MOST_NAMED])


def _cost(c: Comparison, m: Metric) -> str:
    if m.cost_us is None:
        return ""
    step = next((x for x in c.metrics if x.kind == "step" and x.unit == "us"), None)
    of = f" of {shown(step.a, 'us')} before" if step else ""
    return f"{shown(m.cost_us, 'us')} more per step{of}"


@rule("STP040", Severity.WARNING)
def step_takes_longer_than_before(comparison: Comparison) -> Iterator[Finding]:
    """A step takes longer than in the run that it is compared with.

    The difference of the medians is more than the spread of batches of neighbouring steps explains, with 99 %
    confidence. Runs of less than half a minute have to differ by 15 %.

    Fix: see the parts of the step that grew, and the settings that changed.
    """
    for m in comparison.metrics:
        if m.kind != "step" or not m.significant or not m.worse:
            continue
        rates = comparison.tokens_per_s
        lost = f"; {rates[1]:,.0f} tokens/s against {rates[0]:,.0f}" if rates and m.unit == "us" else ""
        yield Finding(
            message=f"{m.name} {figures(m)}{lost}",
            cause=SLOWER,
            subject=m.name,
            severity=Severity.WARNING if abs(m.change_percent) >= WORTH_A_WARNING else Severity.INFO,
            evidence=_evidence(comparison, (m,)),
            why="the same work takes longer",
            cost=_cost(comparison, m),
            fixes=(Fix(do="find what changed between the two: the findings before this one, and the parts below"),),
            confirm=STEPS,
        )


@rule("STP041", Severity.WARNING)
def part_of_the_step_grew(comparison: Comparison) -> Iterator[Finding]:
    """A part of the step is what made it longer.

    Along the rank that comes last to the collectives, the parts of a step add up to the step. Where only few ranks'
    own time grew they are named: all the others wait for them.

    Fix: look at that part: the loader for data, the network for transfers, clocks and processors for computing.
    """
    whole = next((m for m in comparison.slower if m.kind in ("step", "stalls")), None)
    if whole is None or whole.cost_us is None or whole.cost_us <= 0:
        return
    grown = [
        m
        for m in comparison.slower
        if m.kind == "part" and m.cost_us is not None and m.cost_us >= SHARE_OF_WHOLE * whole.cost_us
    ]
    for m in sorted(grown, key=lambda m: -(m.cost_us or 0.0)):
        on = f" on rank {folded.ranges(m.ranks, most=MOST_NAMED)}" if m.ranks else ""
        on += f" ({folded.hosts(m.hosts)})" if m.ranks and m.hosts else ""
        told = [x for x in comparison.slower if x.kind == "collective" and m.area == COMMUNICATION]
        told.sort(key=lambda x: -(x.cost_us or 0.0))
        yield Finding(
            message=f"{m.part} takes {shown(m.cost_us or 0.0, 'us')} more per step{on}, "
            f"{min((m.cost_us or 0.0) / whole.cost_us, 1.0):.0%} of what the step got longer ({brief(m)})",
            cause=cause_of(m),
            subject=m.part,
            confidence=Confidence.LIKELY,
            where=Where(hosts=m.hosts if m.ranks else (), ranks=m.ranks),
            evidence=_evidence(comparison, (m, *told)),
            why="this part is longer than before, and the others are not",
            cost=_cost(comparison, m),
            fixes=_fixes(m),
            confirm=STEPS,
            explains=(SLOWER, STALLS),
        )


def _fixes(m: Metric) -> tuple[Fix, ...]:
    words = {
        DATA: Fix(do="see what feeds the loader: its storage, its workers, the processors that they have"),
        COMPUTE: Fix(do="see clocks and throttling of the GPUs", command="nvidia-smi -q -d CLOCK,PERFORMANCE"),
        HOST: Fix(do="see what else runs on that host, and its GPU's clocks", command="top -b -n 1 | head -20"),
        CHECKPOINT: Fix(do="see how fast the file system of the checkpoints writes, and save asynchronously"),
        COMMUNICATION: Fix(do="measure the network alone", command="smoldiag nccl-bench"),
    }
    return (words[m.area],) if m.area in words else ()


@rule("STP042", Severity.WARNING)
def more_time_is_lost_in_stalls(comparison: Comparison) -> Iterator[Finding]:
    """More steps than before take more than twice the usual time.

    The typical step may be as fast as before while a good part of the time is lost in a few steps.

    Fix: see what those steps have in common: their numbers, their time of day, what the storage did.
    """
    for m in comparison.slower:
        if m.kind == "stalls":
            yield Finding(
                message=f"{m.b:.1f} % of the time is lost in stalls, {m.a:.1f} % before",
                cause=STALLS,
                evidence=_evidence(comparison, (m,)),
                why="a step that waits holds all ranks up",
                cost=_cost(comparison, m),
                confirm="smoldiag explain RUN: the steps that stall, and in which phase",
                explains=(SLOWER,),
            )


@rule("STP043", Severity.WARNING)
def runs_are_configured_differently(comparison: Comparison) -> Iterator[Finding]:
    """The two runs were not asked to do the same.

    Another model, batch, precision or sharding takes another time; only what is equal can be slower for a reason.

    Fix: repeat one of the runs with the configuration of the other.
    """
    yield from _changed(comparison, ("STP",), "configuration-changed", "the runs do different work")


@rule("STP044", Severity.INFO)
def step_is_faster_than_before(comparison: Comparison) -> Iterator[Finding]:
    """A step takes less time than in the run that it is compared with.

    Worth knowing before a difference is looked for in the wrong direction.

    Fix: nothing to fix; keep what changed.
    """
    for m in comparison.metrics:
        if m.kind == "step" and m.significant and not m.worse:
            yield Finding(
                message=f"{m.name} {figures(m)}: faster than before",
                cause="faster-than-before",
                subject=m.name,
                severity=Severity.INFO,
                evidence=_evidence(comparison, (m,)),
            )


@rule("STP045", Severity.WARNING)
def window_of_the_trace_is_longer(comparison: Comparison) -> Iterator[Finding]:
    """The same kernels take longer in one trace than in the other.

    One window on each side says nothing about noise: the finding is at most possible.

    Fix: trace several steps on both sides; compare two runs for what is beyond noise.
    """
    shares = [m for m in comparison.metrics if m.kind == "share"]
    window = next((m for m in comparison.metrics if m.name == "window"), None)
    if window is None or window.change_percent < ONCE_WORTH_A_WORD:
        return
    grown = max(shares, key=lambda m: m.cost_us or 0.0, default=None)
    said = f", most of it {grown.part} ({figures(grown)})" if grown and grown.worse else ""
    yield Finding(
        message=f"the window takes {figures(window)}{said}",
        cause=CAUSE_OF_AREA.get(grown.area, SLOWER) if grown and grown.worse and grown.area != HOST else SLOWER,
        confidence=Confidence.POSSIBLE,
        evidence=_evidence(comparison, (window, *shares)),
        why="both windows have the same number of kernels",
        cost=_cost(comparison, window),
        confirm="several windows on each side: smoldiag train --trace-steps",
    )


@rule("STP046", Severity.WARNING)
def run_became_slower_on_its_way(comparison: Comparison) -> Iterator[Finding]:
    """The pace of the second run falls for good at some step, and that of the first does not.

    Over all its steps it may be as fast as the first: what matters is what happened at that step, at that time.

    Fix: see what else began at that time: other jobs, a full disk, clocks of a GPU that became warm.
    """
    for x in comparison.slowed if "run" in comparison.kinds else ():
        when = f" ({x.time})" if x.time else ""
        percent = 100 * (x.after / x.before - 1)
        pace = f"{x.after:.4g} {x.unit}, before {x.before:.4g} ({percent:+.0f} %)"
        yield Finding(
            message=f"from {x.axis} {x.at:g} on{when} it makes {pace}",
            cause="slower-from-a-step-on",
            subject=f"{x.at:g}",
            confidence=Confidence.LIKELY,
            evidence=(
                Evidence(text=f"{x.before:.4g} -> {x.after:.4g} {x.unit} at {x.axis} {x.at:g}{when}", where=x.side),
            ),
            why="something changed while it ran",
            cost=f"{-percent:.0f}% of the speed from there on",
            confirm="logs of hosts, network and storage at that time",
        )


@rule("BWD090", Severity.WARNING)
def bandwidth_is_lower_than_before(comparison: Comparison) -> Iterator[Finding]:
    """A collective is slower than in the bench or table that it is compared with.

    Large sizes by bandwidth, small ones by latency. A single size may be chance; most of them are not.

    Fix: see what changed; measure pairs of hosts for the one that is slow.
    """
    by_collective: dict[tuple[str, str], list[Metric]] = {}
    for m in comparison.metrics:
        if m.kind in ("busbw", "latency"):
            by_collective.setdefault((m.part, m.kind), []).append(m)
    for (part, kind), metrics in by_collective.items():
        worse = [m for m in metrics if m.significant and m.worse]
        whole = next((m for m in metrics if m.size_bytes is None and m.name.endswith("large sizes")), None)
        most = len(worse) * 2 > len(metrics)
        if not worse or (not most and not (whole and whole.significant and whole.worse)):
            if kind == "busbw":
                yield from _collapsed(comparison, part, metrics)
            continue
        worst = max((m for m in worse if m is not whole), key=lambda m: abs(m.change_percent), default=worse[0])
        sizes = len([m for m in metrics if m is not whole])
        what = "bus bandwidth" if kind == "busbw" else "small messages"
        yield Finding(
            message=f"{part}: {what} worse at {len([m for m in worse if m is not whole])} of {sizes} sizes, most at "
            f"{worst.name.removeprefix(part).strip()}: {figures(worst)}",
            cause=BANDWIDTH,
            subject=f"{part} {kind}",
            severity=Severity.WARNING if kind == "busbw" else Severity.INFO,
            evidence=_evidence(comparison, sorted(worse, key=lambda m: -abs(m.change_percent))),
            why="every step waits for the same collectives",
            fixes=(Fix(do="find the pair or host that is slow", command="smoldiag nccl-bench --pairs"),),
            confirm="the same bench again, on both sides in turn",
            explains=(SLOWER, CAUSE_OF_AREA[COMMUNICATION]),
        )


COLLAPSE_PERCENT = -50.0  # of the other table: more than any protocol switch or bad repeat takes


def _collapsed(c: Comparison, part: str, metrics: Sequence[Metric]) -> Iterator[Finding]:
    """Sizes that broke in, while the others are as before."""
    broken = [m for m in metrics if m.worse and m.significant and m.change_percent <= COLLAPSE_PERCENT]
    if broken:
        sizes = ", ".join(m.name.removeprefix(part).strip() for m in broken[:MOST_NAMED])
        yield Finding(
            message=f"{part}: less than half of the bus bandwidth at {sizes}: {figures(broken[0])}",
            cause=BANDWIDTH,
            subject=part,
            confidence=Confidence.LIKELY,
            evidence=_evidence(c, broken),
            why="the other sizes are as before, so that it is no rate of a link",
            confirm="the same sizes again",
        )


LOST_WORTH_A_WARNING = 0.10  # of the step


@rule("BWD091", Severity.WARNING)
def collectives_slower_than_alone(alone: Alone) -> Iterator[Finding]:
    """Collectives take longer in training than the same size takes when nothing else runs.

    What computes beside them takes bandwidth of memory and multiprocessors from them; other jobs share the network.

    Fix: where they are not hidden anyway, give them fewer competitors: larger buckets, another order, other hosts.
    """
    slow = [r for r in alone.rows if r.lost_us > 0]
    lost = sum(r.lost_us for r in slow)
    if alone.exposed_us is not None:
        lost = min(lost, alone.exposed_us)  # what is hidden costs nothing
    if not slow or lost < LOST_WORTH_A_WARNING * alone.step_us:
        return
    worst = slow[0]
    yield Finding(
        message=f"{beside(worst)}; with all that are slower than alone {shown(lost, 'us')} of a "
        f"{'step' if alone.where == 'run' else 'window'} of {shown(alone.step_us, 'us')}",
        cause="collectives-slower-than-alone",
        confidence=Confidence.LIKELY,
        evidence=tuple(Evidence(text=beside(r), where=alone.bench) for r in slow[:MOST_NAMED]),
        why="the network gave more when nothing else ran",
        cost=f"{shown(lost, 'us')} of {shown(alone.step_us, 'us')} ({lost / alone.step_us:.0%}): more than alone, "
        "as far as nothing hides it",
        confirm="the bench again on the same hosts, now: is the network itself slower than it was?",
    )


def beside(r: Beside) -> str:
    """all_gather of 16 MiB over 8 ranks: 12.1 GB/s, alone 39.8 GB/s (1.20 ms against 0.37 ms)."""
    rates = ""
    if r.busbw_gbs is not None and r.alone_busbw_gbs is not None:
        rates = f"{r.busbw_gbs:.4g} GB/s, alone {r.alone_busbw_gbs:.4g} GB/s "
    times = f"({shown(r.transfer_us, 'us')} against {shown(r.alone_us or 0.0, 'us')})"
    between = f", alone between {human(r.between[0])} and {human(r.between[1])}" if r.between else ""
    return f"{r.name} of {human(r.size_bytes)} over {r.ranks} ranks: {rates}{times}{between}"


@rule("LOS040", Severity.WARNING)
def loss_is_higher_at_the_same_step(comparison: Comparison) -> Iterator[Finding]:
    """At the same steps the loss is higher than in the other run.

    Paired by step, the noise that both runs share cancels: gaps of a hundredth show that are invisible in two curves.

    Fix: compare configuration, seed, data order, precision and sharding; the first step that differs tells where.
    """
    for m in comparison.slower:
        if m.kind == "loss":
            yield Finding(
                message=f"the loss is {m.b - m.a:.4f} higher at the same step: {figures(m)}",
                cause="loss-higher-than-before",
                severity=Severity.WARNING if m.b - m.a >= LOSS_WORTH_A_WARNING else Severity.INFO,
                evidence=_evidence(comparison, (m,)),
                why="the same model on the same data should learn the same",
                confirm="the same seed on both sides: the losses are equal until the step where they part",
            )


# -- settings


def explained(change: Change, c: Comparison) -> tuple[str, ...]:
    """The causes of what got worse that this change can be the reason of."""
    found = []
    for m in c.slower:
        if m.kind in ("step", "stalls"):
            if not c.areas:  # nothing tells which part it is
                found.append(cause_of(m))
        elif m.area in change.affects and not (m.ranks and m.hosts and not set(m.hosts) & set(change.hosts)):
            found += [cause_of(m), SLOWER, STALLS]
    return tuple(dict.fromkeys(found))


def _changed(c: Comparison, families: tuple[str, ...], cause: str, why: str) -> Iterator[Finding]:
    """What can be the reason one by one; what is only known to matter in general in one finding."""
    known = [x for x in c.changed if x.family in families and x.weight == "known"]
    reasons = [(x, explained(x, c)) for x in known]
    for x, slugs in reasons:
        if slugs:
            place = min((c.areas.index(area) for area in x.affects if area in c.areas), default=0)
            yield Finding(
                message=f"{said(x)}, and {', '.join(c.areas[:2]) or 'the step'} got slower",
                cause=cause,
                subject=x.name,
                confidence=Confidence.LIKELY if len([s for _, s in reasons if s]) == 1 else Confidence.POSSIBLE,
                where=Where(hosts=x.hosts),
                evidence=(Evidence(text=said(x), where=f"{c.a}, {c.b}"),),
                why=x.why or why,
                fixes=_back(x),
                confirm=f"the same run with {x.name} as it was",
                sources=(x.source,) if x.source else (),
                explains=slugs,
                first=2 * place,
            )
    rest = [x for x, slugs in reasons if not slugs]
    if rest:
        more = f" and {len(rest) - 3} more" if len(rest) > 3 else ""
        yield Finding(
            message=f"{'; '.join(said(x) for x in rest[:3])}{more}",
            cause=cause,
            subject="*",
            severity=Severity.INFO,
            where=Where(hosts=tuple(dict.fromkeys(h for x in rest for h in x.hosts))),
            evidence=tuple(Evidence(text=said(x), where=f"{c.a}, {c.b}") for x in rest),
            why=why,
        )


def said(x: Change) -> str:
    """NCCL_ALGO: Ring, before not set."""
    on = f" on {folded.hosts(x.hosts, most=4)}" if x.hosts else ""
    return f"{x.name}{on}: {_cut(x.b)}, before {_cut(x.a)}"


def _cut(value: str | None, most: int = 80) -> str:
    if value is None:
        return "not there"
    return value if len(value) <= most else f"{value[:most]} ..."


def _back(x: Change) -> tuple[Fix, ...]:
    if x.family == "ENV":
        return (Fix(do="as before", command=f"unset {x.name}" if x.a is None else f"export {x.name}={x.a}"),)
    return (Fix(do=f"try it with {x.name} as before: {_cut(x.a)}"),)


@rule("ENV090", Severity.WARNING)
def variable_changed(comparison: Comparison) -> Iterator[Finding]:
    """A variable that decides how collectives or kernels run is not what it was.

    Where what it governs got slower, it is the first thing to try back; else it is only told.

    Fix: set it as it was, or remove it.
    """
    yield from _changed(comparison, ("ENV",), "variable-changed", "it changes how the libraries work")


@rule("VER090", Severity.WARNING)
def version_changed(comparison: Comparison) -> Iterator[Finding]:
    """A library, driver or kernel has another version than before.

    Releases of NCCL, its network plugins and the driver choose other algorithms and have faults of their own.

    Fix: run the old version in the same allocation.
    """
    yield from _changed(comparison, ("VER",), "version-changed", "other releases choose and perform otherwise")


@rule("HST090", Severity.WARNING)
def host_changed(comparison: Comparison) -> Iterator[Finding]:
    """A host is not what it was: its kernel, processors, limits or mounts.

    Fix: set it as it was.
    """
    yield from _changed(comparison, ("HST",), "host-changed", "training depends on it")


@rule("HST091", Severity.INFO)
def other_hosts_than_before(comparison: Comparison) -> Iterator[Finding]:
    """The two sides did not run on the same hosts.

    A host that is new here may be the one that is slow.

    Fix: where it got slower, run without the new hosts, or find the slow one with `smoldiag nccl-bench`.
    """
    new, gone = comparison.hosts_new, comparison.hosts_gone
    if new or gone:
        parts = [f"new: {folded.hosts(new)}"] if new else []
        parts += [f"gone: {folded.hosts(gone)}"] if gone else []
        yield Finding(
            message=f"not the same hosts: {'; '.join(parts)}",
            cause="hosts-changed",
            severity=Severity.INFO,
            where=Where(hosts=new),
            evidence=(Evidence(text="; ".join(parts), where=f"{comparison.a}, {comparison.b}"),),
            why="hosts differ in links, clocks and what else runs on them",
        )


@rule("GPU090", Severity.WARNING)
def gpu_setting_changed(comparison: Comparison) -> Iterator[Finding]:
    """A GPU is set otherwise than before: its power limit, clocks, ECC, link or model.

    Fix: set it as it was.
    """
    yield from _changed(comparison, ("GPU",), "gpu-changed", "it decides how fast the GPU can be")


@rule("NIC090", Severity.WARNING)
def nic_changed(comparison: Comparison) -> Iterator[Finding]:
    """A network device, or what NCCL makes of the network, is not what it was.

    Its rate, state, MTU, firmware or driver differ, or it is missing.

    Fix: bring it back to what it was.
    """
    yield from _changed(comparison, ("NIC",), "nic-changed", "collectives between hosts go through it")


@rule("PCI090", Severity.WARNING)
def pci_link_changed(comparison: Comparison) -> Iterator[Finding]:
    """A PCI Express link or its access control is not what it was.

    Fix: bring it back; a link that came up narrower wants the device seated again.
    """
    yield from _changed(comparison, ("PCI",), "pcie-changed", "what GPUs and NICs exchange goes through it")
