"""Collectives of a run or trace against what the same size reached alone. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import exp, log

from smoldiag.facts import Result, Run
from smoldiag.facts.alone import Alone, Beside
from smoldiag.facts.trace import Trace
from smoldiag.model import folded
from smoldiag.model import steps as model
from smoldiag.model.bus import busbw_gbs
from smoldiag.model.stats import median, percentile

NEAR = 0.01  # ratio: sizes that are the same for a bench
MAX_GAP = 4  # times: between sizes of the bench that lie further apart nothing is read
NOISE_RATIO = 1.10  # published repeats of one machine differ by 5 to 10 % (knowledge/busbw.csv)
Calls = dict[tuple[str, int, int], list[float]]  # (name, bytes, ranks) -> transfers in microseconds


def of_run(run: Run, results: Sequence[Result], *, bench: str) -> Alone | None:
    """None where no step was finished by all ranks, or its collectives were not recorded."""
    steps = model.counted(run.steps)
    calls: Calls = defaultdict(list)
    for ranks in steps.values():
        stays: dict[tuple[str, str, int, int], list[float]] = defaultdict(list)
        for s in ranks.values():
            seen: dict[tuple[str, str], int] = {}
            for c in s.collectives:
                number = seen[c.group, c.name] = seen.get((c.group, c.name), -1) + 1
                stays[c.name, c.group, c.size_bytes, number].append(c.stay_us)
        for (name, group, size, _), us in stays.items():
            calls[name, size, _size_of(group, len(ranks), len(us))].append(min(us))
    budget = model.budget(run)
    if budget is None or not calls:
        return None
    exposed = median([s.transfer_us + s.wait_us for s in budget.shares])
    return Alone(
        bench=bench,
        where="run",
        step_us=budget.mean_step_us,
        exposed_us=exposed,
        rows=_rows(calls, results, len(steps)),
    )


def of_trace(trace: Trace, results: Sequence[Result], *, bench: str) -> Alone | None:
    """None where no collective's size is known on all of its ranks."""
    calls: Calls = defaultdict(list)
    for c in trace.collectives:
        if c.size_bytes and c.busbw_gbs is not None and c.transfer_us > 0:
            calls[c.name, c.size_bytes, len(c.ranks)].append(c.transfer_us)
    if not calls:
        return None
    return Alone(
        bench=bench,
        where="trace",
        step_us=median([r.window_us for r in trace.ranks]),
        exposed_us=median([r.exposed_communication_us for r in trace.ranks]),
        rows=_rows(calls, results, 1),
    )


def _size_of(group: str, world: int, seen: int) -> int:
    """How many ranks a group has: 0-3 | 0,2 | all."""
    if group in ("", "all"):
        return world
    return max(len(folded.expanded(f"[{group}]")), seen)


def _rows(calls: Calls, results: Sequence[Result], steps: int) -> tuple[Beside, ...]:
    rows = [_row(*what, us, results, steps) for what, us in calls.items()]
    return tuple(sorted(rows, key=lambda r: (-r.lost_us, -r.size_bytes, r.name)))


def _row(name: str, size: int, ranks: int, us: Sequence[float], results: Iterable[Result], steps: int) -> Beside:
    curve = _curve(name, ranks, results)
    alone, slow, between = _at(size, curve)
    typical = median(us)
    beyond = alone is not None and slow is not None and percentile(us, 25) > max(slow, NOISE_RATIO * alone)
    lost = (sum(us) - len(us) * alone) / steps if beyond and alone is not None else 0.0
    return Beside(
        name=name,
        size_bytes=size,
        ranks=ranks,
        calls=len(us) / steps,
        transfer_us=typical,
        alone_us=alone,
        busbw_gbs=_busbw(name, size, typical, ranks),
        alone_busbw_gbs=_busbw(name, size, alone, ranks) if alone is not None else None,
        lost_us=max(lost, 0.0),
        between=between,
    )


def _busbw(name: str, size: int, us: float, ranks: int) -> float | None:
    try:
        return busbw_gbs(name, size, us, ranks) if us > 0 else None
    except ValueError:
        return None


def _curve(name: str, ranks: int, results: Iterable[Result]) -> dict[int, tuple[float, float]]:
    """bytes -> (median, 95th percentile) of the best group of so many ranks."""
    found: dict[int, tuple[float, float]] = {}
    for r in results:
        if r.collective == name and len(r.group.ranks) == ranks and r.size_bytes > 0 and r.time_us.p50 > 0:
            both = (r.time_us.p50, r.time_us.p95)
            found[r.size_bytes] = min(found.get(r.size_bytes, both), both)
    return dict(sorted(found.items()))


def _at(size: int, curve: dict[int, tuple[float, float]]) -> tuple[float | None, float | None, tuple[int, int] | None]:
    """(median, 95th percentile, sizes between which they were interpolated): linear in the logarithms."""
    for at, (p50, p95) in curve.items():
        if abs(at - size) <= NEAR * size:
            return p50, p95, None
    for low, high in pairwise(curve):
        if low < size < high <= MAX_GAP * low:
            share = log(size / low) / log(high / low)
            p50, p95 = (
                exp((1 - share) * log(a) + share * log(b)) for a, b in zip(curve[low], curve[high], strict=True)
            )
            return p50, p95, (low, high)
    return None, None, None
