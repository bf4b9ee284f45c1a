"""Reading the table rank x (last enqueued, last started, last completed, operation, sizes) of the watchdogs' lines.

A rank times out in the oldest operation that has not completed on its GPU. Ranks of one group that time out in
operations of the same number wait together: for a rank that said nothing, or for the network. Different numbers, or
different operations under one number, are ranks that left the common order.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from smoldiag.facts.flight import Progress, RankState, Watchdog

EARLY_SEQ = 20  # operations of a job that has not begun to train
BARRIER_NUMEL = 1  # ProcessGroupNCCL's barrier is an all_reduce of one element
ABOUT = 0.35  # a progress bar that runs about as long as the others have waited


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Of one group."""

    group: str
    states: tuple[RankState, ...]
    kind: str  # different-op | different-size | behind | together | alone
    ranks: tuple[int, ...] = ()  # that differ, are behind, or (together, alone) said nothing
    early: bool = False
    meanwhile: Progress | None = None  # what went on while the others waited


def readings(watchdog: Watchdog) -> tuple[Reading, ...]:
    """One per group in which a rank named the operation that it waits in."""
    by_group: dict[str, list[RankState]] = defaultdict(list)
    for s in watchdog.states:
        by_group[s.group].append(s)
    return tuple(
        _reading(group, sorted(states, key=lambda s: s.rank), watchdog)
        for group, states in by_group.items()
        if any(s.op or s.seq is not None for s in states)
    )


def _reading(group: str, states: Sequence[RankState], watchdog: Watchdog) -> Reading:
    waiting = [s for s in states if s.seq is not None]
    by_seq: dict[int, list[RankState]] = defaultdict(list)
    for s in waiting:
        by_seq[s.seq or 0].append(s)
    base = Reading(group=group, states=tuple(states), kind="together", early=_early(states))
    for same in by_seq.values():
        if odd := _odd([(s.rank, s.op) for s in same if s.op]):
            return Reading(group=group, states=base.states, kind="different-op", ranks=odd)
    for same in by_seq.values():
        sizes = [(s.rank, s.numel_in) for s in same if s.numel_in is not None and s.op not in ("ALLTOALL", "SCATTER")]
        if odd := _odd([(rank, str(n)) for rank, n in sizes]):
            return Reading(group=group, states=base.states, kind="different-size", ranks=odd)
    last = max(by_seq, default=0)
    behind = [
        s.rank
        for s in states
        if (s.last_enqueued is not None and s.last_enqueued < last) or (s.seq is not None and s.seq < last)
    ]
    if behind:
        return Reading(group=group, states=base.states, kind="behind", ranks=tuple(behind))
    everybody = set(watchdog.seen) | set(range(watchdog.world or 0))
    silent = tuple(sorted(everybody - {s.rank for s in states})) if group in ("", "default_pg", "0") else ()
    return Reading(
        group=group,
        states=base.states,
        kind="together" if len(states) > 1 else "alone",
        ranks=silent,
        early=base.early,
        meanwhile=_meanwhile(states, watchdog.busy),
    )


def _odd(named: Sequence[tuple[int, str | None]]) -> tuple[int, ...]:
    """Ranks that differ from most; all of them where there is no majority."""
    groups: dict[str | None, list[int]] = defaultdict(list)
    for rank, what in named:
        groups[what].append(rank)
    if len(groups) < 2:
        return ()
    most = max(groups.values(), key=len)
    rest = tuple(sorted(r for ranks in groups.values() if ranks is not most for r in ranks))
    return rest if len(most) > len(rest) else tuple(sorted((*most, *rest)))


def _early(states: Sequence[RankState]) -> bool:
    seqs = [s.seq for s in states if s.seq is not None]
    return bool(seqs) and max(seqs) <= EARLY_SEQ


def _meanwhile(states: Sequence[RankState], busy: Sequence[Progress]) -> Progress | None:
    waited = max((s.ran_ms or s.timeout_ms or 0 for s in states), default=0) / 1e3
    near = [p for p in busy if waited and abs(p.elapsed_s - waited) <= ABOUT * waited]
    return near[-1] if near else None
