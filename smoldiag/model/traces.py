"""From the device events of all ranks to what they did in a window, and who comes late to which collective. Pure."""

from collections.abc import Iterable, Sequence
from math import ceil, floor, isnan

from smoldiag.facts.trace import COMMUNICATION, COMPUTE, MEMORY, CollectiveShare, RankShare, RankTrace, Trace
from smoldiag.model import intervals
from smoldiag.model.bus import bus_factor

OURS = "all device events of the trace, exact times; window from the first start to the last end"
HTA = (
    "HolisticTraceAnalysis: starts rounded up and ends down to whole microseconds; a kernel belongs to a step by its "
    "launch; the last of several ProfilerSteps dropped; window from the first kernel's start to the last one's end"
)
LAUNCH_US = 10.0  # a kernel launch takes 5 to 10 us of the host; shorter kernels can't keep the device busy
MAX_COLLECTIVES = 20_000
TOP = 20
PAIR = 2


def summary(traces: Sequence[RankTrace], *, hta: bool = False) -> Trace:
    """What `facts.trace` says."""
    kept = {t.rank: _kept(t, hta=hta) for t in traces}
    shares = tuple(_share(t, kept[t.rank], hta=hta) for t in sorted(traces, key=lambda t: t.rank) if kept[t.rank])
    collectives, late, waited = _collectives(traces, kept)
    return Trace(
        definition=HTA if hta else OURS,
        ranks=shares,
        collectives=collectives,
        top_kernels=_top(traces, kept),
        late=late,
        waited_us=waited,
        device=next((t.device for t in traces if t.device), None),
    )


def _kept(t: RankTrace, *, hta: bool) -> range | list[int]:
    """Places of the events that count."""
    if not hta or len(t.steps) < 2:
        return range(len(t.start))
    last = t.steps[-1][1]
    return [i for i, launched in enumerate(t.launch) if launched < last]  # nan is not less


def _times(t: RankTrace, places: Iterable[int], *, hta: bool) -> list[tuple[float, float, int]]:
    if not hta:
        return [(t.start[i], t.end[i], t.kind[i]) for i in places]
    return [(float(ceil(t.start[i])), float(floor(t.end[i])), t.kind[i]) for i in places]


def _share(t: RankTrace, places: Sequence[int], *, hta: bool) -> RankShare:
    times = _times(t, places, hta=hta)
    window = (min(s for s, _, _ in times), max(e for _, e, _ in times))
    parts = {k: [(s, e) for s, e, kind in times if kind == k] for k in (COMPUTE, COMMUNICATION, MEMORY)}
    busy = intervals.busy(parts[COMPUTE], parts[COMMUNICATION], parts[MEMORY], window=window)
    launch, data = _idle(t, places)
    communication = busy.communication
    overlapped = communication - busy.exposed_communication
    short = sum(e - s < LAUNCH_US for s, e, _ in times)
    return RankShare(
        rank=t.rank,
        window_us=busy.window,
        compute_us=busy.compute,
        communication_us=communication,
        memory_us=busy.memory,
        idle_us=busy.idle,
        exposed_communication_us=busy.exposed_communication,
        overlap_percent=100.0 * overlapped / communication if communication else None,
        idle_launch_us=launch,
        idle_data_us=data,
        kernels=len(times),
        short_kernels_percent=100.0 * short / len(times),
    )


def _idle(t: RankTrace, places: Sequence[int]) -> tuple[float | None, float | None]:
    """Of the gaps: until the next kernel was launched, and within that while the loader was waited for."""
    if not len(places) or all(isnan(t.launch[i]) for i in places):
        return None, None
    end, launch = t.start[places[0]], 0.0
    gaps: list[tuple[float, float]] = []
    for i in places:
        if t.start[i] > end and not isnan(t.launch[i]):
            until = min(max(t.launch[i], end), t.start[i])
            launch += until - end
            if until > end:
                gaps.append((end, until))
        end = max(end, t.end[i])
    return launch, intervals.overlap(intervals.union(gaps), intervals.union(t.data_waits))


def _collectives(
    traces: Sequence[RankTrace], kept: dict[int, range | list[int]]
) -> tuple[tuple[CollectiveShare, ...], dict[str, dict[int, int]], dict[int, float]]:
    """The same collective on all ranks is the one with the same number among those of its name and group."""
    calls: dict[tuple[str, str, int | None, int], dict[int, float]] = {}
    sizes: dict[tuple[str, str, int | None, int], int | None] = {}
    for t in traces:
        counts: dict[tuple[str, str, int | None], int] = {}
        for i in kept[t.rank]:
            info = t.collective.get(i)
            if info is None:
                continue
            what = (info.name, info.group, info.group_size)
            number = counts[what] = counts.get(what, -1) + 1
            calls.setdefault((*what, number), {})[t.rank] = t.end[i] - t.start[i]
            sizes.setdefault((*what, number), info.size_bytes)
    shares: list[CollectiveShare] = []
    late: dict[str, dict[int, int]] = {}
    waited: dict[int, float] = {}
    for key, stays in calls.items():
        name, group, group_size, _ = key
        if name == "send_recv" and group_size is None and len(stays) > PAIR:
            name = "all_to_all"  # NCCL has no kernel of its own for it: it sends and receives, on all ranks together
        last, transfer = min(stays.items(), key=lambda stay: stay[1])
        wait = max(stays.values()) - transfer
        if len(stays) > 1:
            by_rank = late.setdefault(name, {})
            by_rank[last] = by_rank.get(last, 0) + 1
            waited[last] = waited.get(last, 0.0) + wait
        size, ranks = sizes[key], group_size or len(stays)
        alone = len(stays) < ranks  # what this rank waited for others is not known
        shares.append(
            CollectiveShare(
                name=name,
                size_bytes=size,
                group=group,
                ranks=tuple(sorted(stays)),
                transfer_us=transfer,
                wait_us=wait,
                last_rank=last,
                busbw_gbs=_busbw(name, size, transfer, ranks) if size and not alone else None,
            )
        )
    return tuple(shares[:MAX_COLLECTIVES]), late, waited


def _busbw(name: str, size_bytes: int, us: float, ranks: int) -> float | None:
    try:
        return size_bytes / us / 1e3 * bus_factor(name, ranks) if us > 0 else None
    except (ValueError, KeyError):
        return None


def _top(traces: Sequence[RankTrace], kept: dict[int, range | list[int]]) -> tuple[tuple[str, int, float], ...]:
    sums: dict[str, tuple[int, float]] = {}
    for t in traces:
        for i in kept[t.rank]:
            name = t.names[t.name_of[i]]
            count, us = sums.get(name, (0, 0.0))
            sums[name] = (count + 1, us + t.end[i] - t.start[i])
    ordered = sorted(((name, count, us) for name, (count, us) in sums.items()), key=lambda row: -row[2])
    return tuple(ordered[:TOP])
