"""From the device events of all ranks to what they did in a window, and who comes late to which collective. Pure."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil, floor, inf, isnan, nan
from typing import Any

from smoldiag.facts.trace import (
    ALLOCATE,
    COMMUNICATION,
    COMPUTE,
    MEMORY,
    OTHER,
    CollectiveShare,
    LayerShare,
    Peaks,
    RankShare,
    RankTrace,
    StepShare,
    Trace,
)
from smoldiag.model import collectives, intervals, trace_replay
from smoldiag.model.bus import bus_factor
from smoldiag.model.intervals import Interval
from smoldiag.model.roofline import roofline
from smoldiag.model.stats import median

OURS = "all device events of the trace, exact times; window from the first start to the last end"
HTA = (
    "HolisticTraceAnalysis: starts rounded up and ends down to whole microseconds; a kernel belongs to a step by its "
    "launch; the last of several ProfilerSteps dropped; window from the first kernel's start to the last one's end"
)
LAUNCH_US = 10.0  # a kernel launch takes 5 to 10 us of the host; shorter kernels can't keep the device busy
MAX_COLLECTIVES = 20_000
MAX_STEPS = 20_000
TOP = 20
MAX_LAYERS = 500
HTA_COMMUNICATION = re.compile(r"nccl.*Kernel")
HTA_MEMORY = re.compile(r"Memcpy|Memset|dma")
HTA_OTHER = re.compile(r".*Memcpy|Memset|.*Sync")
ARCHITECTURE = re.compile(r"(?<![a-zA-Z0-9])(?:sm_?|cutlass_?)(\d{2,3})(?!\d)|\b(volta|turing|ampere|hopper)_")
ARCHITECTURES = {"volta": 70, "turing": 75, "ampere": 80, "hopper": 90}  # compute capability times ten
LAYER = re.compile(r"FSDP::\w+ \((.+)\)$")


def summary(
    traces: Sequence[RankTrace],
    *,
    hta: bool = False,
    cpu_only: Sequence[RankTrace] = (),
    peaks: Peaks | None = None,
) -> Trace:
    """What `facts.trace` says. `cpu_only`: traces without a device's events. `peaks`: of the device, where known."""
    several = len({name for t in traces for name, _, _ in t.steps}) > 1
    ordered = sorted(traces, key=lambda t: t.rank)
    kinds = {t.rank: _kinds(t, hta=hta) for t in ordered}
    kept = {t.rank: _kept(t, kinds[t.rank], hta=hta, several=several) for t in ordered}
    with_events = [t for t in ordered if _takes_time(t, kept[t.rank], hta=hta)]
    found = collectives.matches(with_events, kept)
    ahead = collectives.offsets(with_events, found)
    stays = collectives.stays(with_events, found, ahead)
    waited = _waited(stays, with_events)
    shares = []
    steps: list[StepShare] = []
    layers: dict[str, list[float]] = {}
    for t in with_events:
        share, computing = _share(t, kept[t.rank], kinds[t.rank], hta=hta, waited_us=waited.get(t.rank))
        shares.append(share)
        if len(steps) < MAX_STEPS:
            steps += _steps(t, kept[t.rank], kinds[t.rank])
        _add_layers(layers, t, kept[t.rank], computing)
    late = collectives.late(stays)
    device = next((t.device for t in ordered if t.device), None)
    capability = next((t.capability for t in ordered if t.capability), None)
    return Trace(
        definition=HTA if hta else OURS,
        ranks=tuple(shares),
        collectives=tuple(_collective(stay) for stay in stays[:MAX_COLLECTIVES]),
        steps=tuple(steps),
        layers=tuple(LayerShare(layer=n, **dict(zip(_LAYER_PARTS, us, strict=True))) for n, us in layers.items()),
        top_kernels=_top(with_events, kept),
        late=late,
        last_to_come=_last_to_come(stays),
        waited_us=_waited_for(stays),
        clock_offsets_us=ahead if len(ahead) > 1 else {},
        older_kernels=_older(with_events, kept, kinds, capability) if device and "AMD" not in device else {},
        roofline=roofline(with_events, kept, kinds, peaks),
        replay=trace_replay.replayed(with_events, found, ahead, late={rank for one in late for rank in one.ranks}),
        files={t.rank: t.where for t in (*ordered, *cpu_only)},
        cpu_only=tuple(t.rank for t in (*cpu_only, *(t for t in ordered if t not in with_events))),
        device=device,
        capability=capability,
        device_events=sum(len(t.start) for t in with_events),
    )


def _takes_time(t: RankTrace, places: Sequence[int], *, hta: bool) -> bool:
    return any(start < end for start, end in _times(t, places, hta=hta))


def _kinds(t: RankTrace, *, hta: bool) -> bytes:
    """Of each of its names."""
    return bytes(map(_kind_of_hta, t.names)) if hta else t.name_kind


def _kind_of_hta(name: str) -> int:
    if HTA_COMMUNICATION.match(name):
        return COMMUNICATION
    if HTA_MEMORY.match(name):
        return MEMORY
    return OTHER if HTA_OTHER.match(name) else COMPUTE


def _kept(t: RankTrace, kinds: bytes, *, hta: bool, several: bool) -> range | list[int]:
    """Places of the events that count."""
    if not hta:
        if OTHER not in kinds:
            return range(len(t.start))
        return [i for i, name in enumerate(t.name_of) if kinds[name] != OTHER]
    if not several or t.last_step_us is None:
        return range(len(t.start))
    last = ceil(t.last_step_us)
    starts = [ceil(s) < last for s in t.call_start]
    return [i for i, call in enumerate(t.call) if call >= 0 and starts[call]]


def _times(t: RankTrace, places: Iterable[int], *, hta: bool) -> Iterator[Interval]:
    if hta:
        return ((float(ceil(t.start[i])), float(floor(t.end[i]))) for i in places)
    return ((t.start[i], t.end[i]) for i in places)


def _parts(t: RankTrace, places: Sequence[int], kinds: bytes, *, hta: bool) -> tuple[list[Interval], ...]:
    """Intervals of computation, communication, copies and the rest."""
    parts: tuple[list[Interval], ...] = ([], [], [], [])
    names = t.name_of
    for i, time in zip(places, _times(t, places, hta=hta), strict=True):
        parts[kinds[names[i]]].append(time)
    return parts


def _busy(parts: Sequence[Sequence[Interval]], window: Interval, *, hta: bool = False) -> dict[str, Any]:
    """`hta`: a kernel within a microsecond, which rounding turns around, counts as less than none."""
    compute, communication, memory, other = (parts[kind] for kind in (COMPUTE, COMMUNICATION, MEMORY, OTHER))
    busy = intervals.busy(compute, communication, memory, window=window, other=other, inverted=hta)
    hidden = busy.communication - busy.exposed_communication
    return {
        "window_us": busy.window,
        "compute_us": busy.compute,
        "communication_us": busy.communication,
        "memory_us": busy.memory,
        "idle_us": busy.idle,
        "exposed_communication_us": busy.exposed_communication,
        "overlap_percent": 100.0 * hidden / busy.communication if busy.communication else None,
    }


def _share(
    t: RankTrace, places: Sequence[int], kinds: bytes, *, hta: bool, waited_us: float | None
) -> tuple[RankShare, list[Interval]]:
    """And when it computed."""
    parts = _parts(t, places, kinds, hta=hta)
    first = min(part[0][0] for part in parts if part)
    last = max(end for part in parts for _, end in part)
    short = sum(end - start < LAUNCH_US for part in parts for start, end in part)
    pageable = {n for n, name in enumerate(t.names) if "Pageable" in name and kinds[n] == MEMORY}
    share = RankShare(
        rank=t.rank,
        **_busy(parts, (first, last), hta=hta),
        **_idle(t, places),
        waited_for_peers_us=waited_us,
        recompute_us=_recomputed(t, places, kinds),
        pageable_us=sum(t.end[i] - t.start[i] for i in places if t.name_of[i] in pageable) if pageable else None,
        step_us=median([end - start for _, start, end in t.steps]) if t.steps else None,
        kernels=len(places),
        short_kernels_percent=100.0 * short / len(places),
        with_stack=t.with_stack,
    )
    return share, intervals.union(parts[COMPUTE])


_IDLE = (
    ("checkpoint", "idle_checkpoint_us"),
    ("gc", "idle_gc_us"),
    ("loader", "idle_data_us"),
    ("peers", "idle_peer_us"),
)


def _idle(t: RankTrace, places: Sequence[int]) -> dict[str, Any]:
    """Of the gaps: until the next kernel was launched, and within that what the host was seen doing."""
    none_known = all(t.call[i] < 0 for i in places)
    if none_known:
        return {}
    end, gaps = t.start[places[0]], []
    for i in places:
        start = t.start[i]
        if start > end and t.call[i] >= 0:
            until = min(max(t.call_start[t.call[i]], end), start)
            if until > end:
                gaps.append((end, until))
        if t.end[i] > end:
            end = t.end[i]
    parts = {"idle_launch_us": intervals.length(gaps)}
    for what, name in _IDLE:
        seen = intervals.union(t.spans.get(what, ()))
        parts[name] = intervals.overlap(gaps, seen)
        gaps = intervals.difference(gaps, seen)
    allocating = [(t.call_start[i], t.call_end[i]) for i, kind in enumerate(t.call_kind) if kind == ALLOCATE]
    parts["idle_allocate_us"] = intervals.overlap(gaps, intervals.union(allocating))
    return parts


def _recomputed(t: RankTrace, places: Sequence[int], kinds: bytes) -> float | None:
    """Computation launched while the forward pass of a checkpointed module was run again."""
    spans = intervals.union(t.spans.get("recompute", ()))
    if not spans:
        return None
    starts = [start for start, _ in spans]

    def again(launched: float) -> bool:
        at = bisect_right(starts, launched) - 1
        return at >= 0 and launched < spans[at][1]

    return intervals.length(
        intervals.union((t.start[i], t.end[i]) for i in places if kinds[t.name_of[i]] == COMPUTE and again(t.launch(i)))
    )


def _steps(t: RankTrace, places: Sequence[int], kinds: bytes) -> Iterator[StepShare]:
    """Kernels belong to a step by their launch; where that is not known, by their start."""
    starts = [start for _, start, _ in t.steps]
    if not starts:
        return
    by_step: list[list[int]] = [[] for _ in starts]
    for i in places:
        launched = t.launch(i)
        at = bisect_right(starts, t.start[i] if isnan(launched) else launched) - 1
        if at >= 0:
            by_step[at].append(i)
    firsts = [min((t.start[i] for i in step), default=nan) for step in by_step]
    for n, step in enumerate(by_step):
        if not step:
            continue
        until = next((f for f in firsts[n + 1 :] if not isnan(f)), -inf)
        until = max(until, firsts[n]) if until > -inf else max(t.end[i] for i in step)
        parts = _parts(t, step, kinds, hta=False)
        if until <= firsts[n]:
            continue
        inside = [[(s, min(e, until)) for s, e in part if s < until] for part in parts]
        yield StepShare(rank=t.rank, name=t.steps[n][0], **_busy(inside, (firsts[n], until)))


def _waited(stays: Sequence[collectives.Stay], traces: Sequence[RankTrace]) -> dict[int, float]:
    """rank -> how long it waited in collectives for the last one; only of those that several traces show."""
    by_rank = {t.rank: t for t in traces}
    waited: dict[int, float] = {}
    for stay in stays:
        if len(stay.match.places) > 1:
            for rank, i in stay.match.places.items():
                own = by_rank[rank].end[i] - by_rank[rank].start[i]
                waited[rank] = waited.get(rank, 0.0) + (own - stay.transfer_us if stay.late_ranks else 0.0)
    return waited


def _last_to_come(stays: Iterable[collectives.Stay]) -> dict[str, dict[int, int]]:
    counts: dict[str, dict[int, int]] = {}
    for stay in stays:
        if stay.late_ranks:
            of_name = counts.setdefault(stay.match.name, {})
            of_name[stay.last_rank] = of_name.get(stay.last_rank, 0) + 1
    return counts


def _waited_for(stays: Iterable[collectives.Stay]) -> dict[int, float]:
    waited: dict[int, float] = {}
    for stay in stays:
        if stay.late_ranks:
            waited[stay.last_rank] = waited.get(stay.last_rank, 0.0) + stay.wait_us
    return waited


def _collective(stay: collectives.Stay) -> CollectiveShare:
    info, places = stay.match.info, stay.match.places
    ranks = info.group_size or len(places)
    alone = len(places) < ranks  # what this rank waited for others is not known
    size = info.size_bytes if not alone else None
    return CollectiveShare(
        name=stay.match.name,
        size_bytes=info.size_bytes,
        group=info.group,
        ranks=tuple(sorted(places)),
        transfer_us=stay.transfer_us,
        wait_us=stay.wait_us,
        last_rank=stay.last_rank,
        late_ranks=stay.late_ranks,
        algbw_gbs=size / stay.transfer_us / 1e3 if size and stay.transfer_us > 0 else None,
        busbw_gbs=_busbw(stay.match.name, size, stay.transfer_us, ranks) if size else None,
    )


def _busbw(name: str, size_bytes: int, us: float, ranks: int) -> float | None:
    try:
        return size_bytes / us / 1e3 * bus_factor(name, ranks) if us > 0 else None
    except (ValueError, KeyError):
        return None


def _top(traces: Sequence[RankTrace], kept: Mapping[int, Iterable[int]]) -> tuple[tuple[str, int, float], ...]:
    sums: dict[str, tuple[int, float]] = {}
    for t in traces:
        counts, us = [0] * len(t.names), [0.0] * len(t.names)
        for i in kept[t.rank]:
            name = t.name_of[i]
            counts[name] += 1
            us[name] += t.end[i] - t.start[i]
        for text, count, time in zip(t.names, counts, us, strict=True):
            if count:
                before = sums.get(text, (0, 0.0))
                sums[text] = (before[0] + count, before[1] + time)
    ordered = sorted(((name, count, us) for name, (count, us) in sums.items()), key=lambda row: -row[2])
    return tuple(ordered[:TOP])


def architecture(kernel: str) -> int | None:
    """Compute capability times ten that a kernel was written for, where its name tells."""
    match = ARCHITECTURE.search(kernel)
    if match is None:
        return None
    return int(match[1]) if match[1] else ARCHITECTURES[match[2]]


def _older(
    traces: Sequence[RankTrace],
    kept: Mapping[int, Iterable[int]],
    kinds: Mapping[int, bytes],
    capability: tuple[int, int] | None,
) -> dict[str, float]:
    """Share of the computation in kernels written for an older major architecture than the device's."""
    if capability is None:
        return {}
    own, total = capability[0] * 10 + capability[1], 0.0
    us: dict[str, float] = {}
    for t in traces:
        of = [architecture(name) for name in t.names]
        for i in kept[t.rank]:
            if kinds[t.rank][t.name_of[i]] == COMPUTE:
                time = t.end[i] - t.start[i]
                total += time
                written = of[t.name_of[i]]
                if written is not None and written // 10 < own // 10:
                    us[f"sm{written}"] = us.get(f"sm{written}", 0.0) + time
    return {name: time / total for name, time in sorted(us.items()) if total}


_LAYER_PARTS = ("all_gather_us", "exposed_all_gather_us", "reduce_scatter_us", "exposed_reduce_scatter_us")
_LAYER_PLACE = {"all_gather": 0, "reduce_scatter": 2}


def _add_layers(
    layers: dict[str, list[float]], t: RankTrace, places: Sequence[int], computing: Sequence[Interval]
) -> None:
    """FSDP2 names the layer in the annotation within which it launches a collective."""
    named = [(start, end, m[1]) for name, start, end in t.annotations if (m := LAYER.match(name))]
    if not named:
        return
    starts = [start for start, _, _ in named]
    inside = None if isinstance(places, range) else set(places)
    for i, info in t.collective.items():
        launched = t.launch(i)
        if info.name not in _LAYER_PLACE or isnan(launched) or (inside is not None and i not in inside):
            continue
        at = bisect_right(starts, launched) - 1
        while at >= 0 and named[at][1] < launched and starts[at] > launched - 1e6:
            at -= 1
        if at < 0 or not named[at][0] <= launched <= named[at][1] or len(layers) >= MAX_LAYERS:
            continue
        own = (t.start[i], t.end[i])
        us = layers.setdefault(named[at][2], [0.0] * len(_LAYER_PARTS))
        place = _LAYER_PLACE[info.name]
        us[place] += own[1] - own[0]
        near = computing[max(0, bisect_right(computing, own) - 1) : bisect_right(computing, (own[1], inf))]
        us[place + 1] += own[1] - own[0] - intervals.overlap([own], near)
