"""Bandwidth by node count: at which count did it fall in one step, and stay there? Pure arithmetic.

A network that runs short loses a little with every node that is added. A slow node costs nothing until it takes part,
and then the same share of every collective at every large size, at that count and at all later ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from smoldiag.model.stats import median

LARGE_BYTES = 2**30  # judged where there are such sizes; below, repeats of one sweep differ by a quarter
LEAST_BYTES = 16 * 2**20
STEP_RATIO = 0.87  # where several collectives say the same; sound sweeps of one cluster stay above 0.92
STEP_RATIO_ALONE = 0.82  # of one collective
STEEP_SHARE = 0.6  # of the fall, that lies between two neighbouring counts
STEADY = 0.92  # as STEP_RATIO has it of sound sweeps
STEADY_COUNTS = 4  # a network that loses a thirtieth with each node lost a tenth by then
SCATTERS = 3.0  # the fall, over the scatter before it
TREE_OF_TWO = 0.5  # all_reduce over three nodes against two: between two, a tree sends half (nccl-tests issue 22)
# What two nodes that a tree joins reach over what more do, where only the network limits: 1.8 (57, 32, 30 GB/s over 2,
# 3, 4 nodes with a NIC missing on each: NVIDIA/nccl issue 527); by arithmetic up to 2(N-1)/N of N ranks (model.bounds).
ROOM_OF_TWO = 1.7
TREE_SEEN = 1.25  # by less, it may be a ring over two as well
NEXT_COUNTS = 4  # after two; with more nodes a network loses a little
SATURATED = 0.95  # of the largest size, that half of it reaches, too
HALF = (0.42, 0.60)  # send_recv against the others when NCCL gives each of more peers fewer channels

Curve = Mapping[int, float]  # message size (0 where the table has none) -> GB/s of bus bandwidth
Falls = dict[str, dict[int, float]]  # collective -> node count -> logarithm of its rate over the usual one


@dataclass(frozen=True, kw_only=True)
class Step:
    """From `at` nodes on the bandwidth is `ratio` of what it was up to `before` nodes."""

    before: int
    at: int
    ratio: float
    collectives: tuple[str, ...]
    during: bool = False  # it began while `at` nodes were measured: only the largest messages are slow there


def step(series: Mapping[str, Mapping[int, Curve]]) -> Step | None:
    """`series`: collective -> node count -> curve. One node alone does not count: it has no network."""
    logs = {name: of for name, by_count in series.items() if len(of := _logs(name, by_count)) >= 2}
    logs = _without_halving(logs)
    usual = _together(logs)
    counts = list(usual)
    if len(counts) < 2:
        return _after_two(series)
    at = min(counts[1:], key=lambda n: _squares(usual, n))
    falls = {name: fall for name, of in logs.items() if (fall := _fall(of, at)) is not None}
    names = tuple(name for name, fall in falls.items() if fall < math.log(STEP_RATIO))
    if 2 * len(names) <= len(falls) or not _is_one_step(usual, at, alone=len(names) == 1):
        return _after_two(series)
    before = max(n for n in counts if n < at)
    found = Step(before=before, at=at, ratio=math.exp(_fall(usual, at) or 0.0), collectives=names)
    earlier = [n for n in counts if n < before]
    if earlier and all(_begins(series[name], before, earlier, found.ratio) for name in names):
        return replace(found, before=earlier[-1], at=before, during=True)
    return found


def steady(series: Mapping[str, Mapping[int, Curve]]) -> int | None:
    """The largest node count, where all collectives together are at every count within STEADY of the first count over
    one; None where they are not, or for fewer than STEADY_COUNTS counts."""
    logs = {name: of for name, by_count in series.items() if len(of := _logs(name, by_count)) >= 2}
    usual = _together(_without_halving(logs))
    if len(usual) < STEADY_COUNTS or max(usual.values()) - min(usual.values()) > -math.log(STEADY):
        return None
    return max(usual)


def _together(logs: Falls) -> dict[int, float]:
    """One curve of all collectives: from count to count, what most of them say."""
    counts = sorted({n for of in logs.values() for n in of})
    joined, level = {}, 0.0
    for before, at in pairwise((counts[0] if counts else 0, *counts)):
        changes = [of[at] - of[before] for of in logs.values() if before in of and at in of]
        level += median(changes) if changes else 0.0
        joined[at] = level
    return joined


def _is_one_step(usual: Mapping[int, float], at: int, *, alone: bool) -> bool:
    """Large against the scatter before it, between neighbouring counts, and never made good."""
    before = [v for n, v in usual.items() if n < at]
    after = [v for n, v in usual.items() if n >= at]
    fall = median(after) - median(before)
    scatter = median([abs(v - median(before)) for v in before])
    return (
        fall < math.log(STEP_RATIO_ALONE if alone else STEP_RATIO)
        and -fall >= SCATTERS * scatter
        and max(after) <= median(before) + fall / 2
        and before[-1] - after[0] >= STEEP_SHARE * -fall
    )


def _logs(name: str, by_count: Mapping[int, Curve]) -> dict[int, float]:
    """By node count: the median over the large sizes of log(rate / rate usual at that size)."""
    counts = sorted(n for n in by_count if n > (2 if name == "all_reduce" else 1))
    curves = {n: {_power(size): rate * _share(name, n) for size, rate in by_count[n].items()} for n in counts}
    large = _large({size for curve in curves.values() for size in curve})
    usual = {size: median([c[size] for c in curves.values() if size in c]) for size in large}
    found = {}
    for n, curve in curves.items():
        ratios = [math.log(curve[s] / usual[s]) for s in large if curve.get(s, 0.0) > 0 and usual[s] > 0]
        if ratios:
            found[n] = median(ratios)
    return found


def _power(size: int) -> int:
    """Sizes of one sweep differ a little where they are multiples of the ranks: the power of two next to it."""
    return 2 ** round(math.log2(size)) if size > 0 else 0


def _share(name: str, nodes: int) -> float:
    """Of all_to_all's bus bandwidth only what goes to other nodes is the network's."""
    return (nodes - 1) / nodes if name == "all_to_all" else 1.0


def _large(sizes: set[int]) -> list[int]:
    large = sorted(s for s in sizes if s >= LARGE_BYTES or s == 0)
    return large or sorted(s for s in sizes if s >= LEAST_BYTES)[-3:]


def _without_halving(logs: Falls) -> Falls:
    """send_recv at its level before NCCL shared out its channels, which is no fault."""
    others = {name: of for name, of in logs.items() if name != "send_recv"}
    own = logs.get("send_recv")
    if not own:
        return logs
    counts = sorted(own)
    for before, at in pairwise(counts):
        usual = [of[at] - of[before] for of in others.values() if before in of and at in of]
        apart = own[at] - own[before] - (median(usual) if usual else 0.0)
        if math.log(HALF[0]) <= apart <= math.log(HALF[1]):
            return {**others, "send_recv": {n: v - (apart if n >= at else 0.0) for n, v in own.items()}}
    return logs


def _squares(usual: Mapping[int, float], at: int) -> float:
    """What two levels, one before `at` and one from there on, leave unexplained."""
    parts = [[v for n, v in usual.items() if n < at], [v for n, v in usual.items() if n >= at]]
    return sum((v - sum(part) / len(part)) ** 2 for part in parts for v in part)


def _fall(of: Mapping[int, float], at: int) -> float | None:
    before, after = [v for n, v in of.items() if n < at], [v for n, v in of.items() if n >= at]
    return median(after) - median(before) if before and after else None


def _begins(by_count: Mapping[int, Curve], at: int, earlier: Sequence[int], ratio: float) -> bool:
    """Whether at `at` nodes the largest size alone has fallen as later counts have."""
    curve = by_count.get(at, {})
    against = {
        size: rate / median(usual)
        for size, rate in curve.items()
        if (usual := [by_count[n][size] for n in earlier if n in by_count and by_count[n].get(size)])
    }
    large = [against[size] for size in _large(set(against))]
    return len(large) > 1 and large[-1] / median(large) < min((1 + ratio) / 2, STEP_RATIO_ALONE)


def second(by_count: Mapping[int, Curve]) -> float | None:
    """`by_count`: all_reduce, with one node alone. The share that two nodes reach of what the first node and the
    network both leave room for; None where nothing is missing, or nothing can be said.

    Two nodes that a tree joins send half as much through the network as a ring of more nodes. Where they reach neither
    what the first does alone, nor nearly twice what more nodes reach, it is the second one itself that is slow.
    """
    curves = {n: {_power(size): rate for size, rate in curve.items()} for n, curve in by_count.items() if curve}
    if not {1, 2} <= set(curves):
        return None
    size = max(set(curves[1]) & set(curves[2]), default=0)
    more = [curves[n][size] for n in sorted(curves) if n > 2 and size in curves[n]][:NEXT_COUNTS]
    if size < LARGE_BYTES or len(more) < 2 or curves[2].get(size // 2, 0.0) < SATURATED * curves[2][size]:
        return None
    reached, ring = curves[2][size], median(more)
    share = reached / min(curves[1][size], ROOM_OF_TWO * ring)
    return share if reached > TREE_SEEN * ring and share < STEP_RATIO else None


def _after_two(series: Mapping[str, Mapping[int, Curve]]) -> Step | None:
    """all_reduce alone, from two nodes to more: a tree of two explains a half, not less."""
    by_count = series.get("all_reduce", {})
    counts = sorted(n for n in by_count if n > 1)
    if set(series) != {"all_reduce"} or len(counts) < 2 or counts[0] != 2:
        return None
    large = _large(set(by_count[2]))
    ratios = [
        median([by_count[n][s] / by_count[2][s] for s in large if by_count[n].get(s) and by_count[2][s]] or [1.0])
        for n in counts[1:]
    ]
    if max(ratios) >= TREE_OF_TWO * STEP_RATIO_ALONE:
        return None
    return Step(before=2, at=counts[1], ratio=median(ratios), collectives=("all_reduce",))
