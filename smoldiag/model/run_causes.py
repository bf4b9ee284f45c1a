"""What makes the steps of a run slow, each with the time that a step would take without it. Pure.

Every candidate is measured in the same way: the steps are replayed without it (`model.replay`). What is worth saying
is for the rules.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

from smoldiag.facts.run import Connection, Run
from smoldiag.model import replay
from smoldiag.model import steps as model
from smoldiag.model.remember import by_identity
from smoldiag.model.replay import Step
from smoldiag.model.stats import median

DATA, GC, CHECKPOINT = "dataloader-stall", "gc-stragglers", "checkpoint-stall"
RANK, LINK, QUOTA = "straggler-rank", "slow-link", "cpu-quota"
OWN_CAUSES = {"data": DATA, "gc": GC, "checkpoint": CHECKPOINT}  # phases whose whole time is the cause's
COMPARED = (RANK, LINK)  # seen by comparing ranks or hosts with the others
NOT_COMPUTING = (*OWN_CAUSES, "evaluation")
LARGE_PART = 0.5  # of the most that any rank has: who has so much has it, too
SLOW_LINK_RATIO = 0.6  # of the others' rate; equal links of a noisy machine stay above 0.75 (docs/train.md)
SMALL_CALL_BYTES = 4096  # a collective of this size takes what any takes, whatever the link
HIT_SHARE = 0.02  # of a step
MIN_COMPARED, SLOWED_SIGMAS, SLOWED_SHARE = 3, 4.0, 0.05  # of steps after a save beside the others
QUOTA_SHARE = 0.05
TIMER_US = 0.1  # no gain is known better
STALL_RATIO = 3.0  # a step that has so many times the usual of a phase is one in which it stalls


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One cause, and the steps without it."""

    cause: str
    mean_us: float  # a step with it, on its slowest rank
    without_us: float
    median_us: float
    without_median_us: float
    ranks: tuple[int, ...] = ()  # empty: all alike
    hosts: tuple[str, ...] = ()
    whole_hosts: bool = False  # all ranks of these hosts, of which there are several each
    every: int | None = None  # steps from one time to the next, where it comes regularly and not in each
    sigmas: float  # the mean gain of a step over its standard error
    steps_hit: int  # in which it costs something
    throttled_us: float = 0.0  # per step: what the quota of the control group took
    slow_link: "Link | None" = None

    @property
    def gain_us(self) -> float:
        return self.mean_us - self.without_us

    @property
    def share(self) -> float:
        return self.gain_us / self.mean_us if self.mean_us else 0.0


@dataclass(frozen=True, kw_only=True)
class Link:
    """What a host sends to the others, or to one of them, beside what the other hosts reach."""

    host: str
    peer: str  # empty: all of them
    bytes_per_us: float  # = MB/s, while data was under way
    usual_bytes_per_us: float
    busy_share: float  # of the time


@by_identity
def causes(run: Run) -> tuple[Cause, ...]:
    """Those with a gain, the largest first."""
    counted = model.counted(run.steps)
    of = replay.steps(counted)
    if not of:
        return ()
    base = replay.step_times(of)
    hosts = {rank: s.host for ranks in counted.values() for rank, s in ranks.items()}
    late, held = _of_late_ranks(of, base, hosts), _of_quota(run, of, base, hosts)
    if late and held and set(late.ranks) <= set(held.ranks):  # the same seen in two ways
        late, held = (None, held) if held.gain_us > late.gain_us else (late, None)
    found = [_of_phase(of, base, phase, slug, hosts) for phase, slug in OWN_CAUSES.items()]
    if held is None or held.share < QUOTA_SHARE:  # to a host that stands still everybody sends slowly
        found.append(_of_link(run, of, base, hosts))
    there = [c for c in (*found, late, held) if c is not None and c.gain_us > 0]
    return tuple(sorted(there, key=lambda c: -c.gain_us))


def summary(run: Run) -> dict[str, Any]:
    """The run in figures: a step, its parts on each rank, and what it would be without each cause."""
    budget = model.budget(run)
    if budget is None:
        return {}
    return {
        "ranks": len(budget.shares),
        "steps": len({s.step for s in run.steps}),
        "steps_counted": len(budget.steps),
        "step_us": budget.mean_step_us,
        "median_step_us": budget.step_us,
        "tokens_per_step": run.tokens_per_step,
        "budget": budget.shares,
        "what_if": [{**asdict(c), "gain_us": c.gain_us} for c in causes(run)],
    }


def _measured(cause: str, base: Sequence[float], without: Sequence[float], **more: Any) -> Cause:
    gains = [a - b for a, b in zip(base, without, strict=True)]
    error = stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    made: dict[str, Any] = {
        "cause": cause,
        "mean_us": mean(base),
        "without_us": mean(without),
        "median_us": median(base),
        "without_median_us": median(without),
        "steps_hit": sum(gain > HIT_SHARE * median(base) for gain in gains),
        "sigmas": min(mean(gains) / max(error, TIMER_US), 1e6),
    }
    return Cause(**made, **more)


def _of_phase(
    of: Sequence[Step], base: Sequence[float], phase: str, slug: str, hosts: Mapping[int, str]
) -> Cause | None:
    """A phase that need not be: no step waits for it."""
    per_step = {rank: [sum(op.us for op in s.ranks.get(rank, ()) if op.phase == phase) for s in of] for rank in hosts}
    sums = {rank: sum(us) for rank, us in per_step.items()}
    if not any(sums.values()):
        return None
    ranks = _large(sums)
    steps = _stalls(of, [max(us[i] for us in per_step.values()) for i in range(len(of))])
    without: Sequence[Step] = replay.without_phase(of, phase)
    if slug == CHECKPOINT:
        without = _without_writing(without, steps)
    return _measured(
        slug,
        base,
        replay.step_times(without),
        every=period(steps),
        **_where(ranks, hosts),
    )


def _without_writing(of: Sequence[Step], saves: Collection[int]) -> Sequence[Step]:
    """A checkpoint that is written in the background slows the steps after it: where they are longer than the others,
    the nearest of these stands for them. `of` is already without the saving itself."""
    times = replay.step_times(of)
    since: list[int] = []  # steps since the last save, 0: none was before
    for i in range(len(of)):
        saved = i > 0 and of[i - 1].number in saves
        since.append(1 if saved else since[-1] + 1 if since and since[-1] else 0)
    slowed = 0
    while True:
        these = [us for us, n in zip(times, since, strict=True) if n == slowed + 1]
        others = [us for us, n in zip(times, since, strict=True) if n == 0 or n > slowed + 1]
        if len(these) < MIN_COMPARED or len(others) < MIN_COMPARED:
            break
        error = (stdev(these) ** 2 / len(these) + stdev(others) ** 2 / len(others)) ** 0.5
        if mean(these) - mean(others) < max(SLOWED_SIGMAS * error, SLOWED_SHARE * mean(others)):
            break
        slowed += 1
    sound = [i for i, n in enumerate(since) if n == 0 or n > slowed]
    return [s if i in sound else of[min(sound, key=lambda j: abs(j - i))] for i, s in enumerate(of)]


def _large(values: Mapping[int, float]) -> tuple[int, ...]:
    most = max(values.values())
    return tuple(rank for rank, us in sorted(values.items()) if us >= LARGE_PART * most)


def _stalls(of: Sequence[Step], us: Sequence[float]) -> list[int]:
    """The numbers of the steps that have far more of it than is usual; all where it is alike in all."""
    usual = median(us)
    least = usual + LARGE_PART * (max(us) - usual) if max(us) > STALL_RATIO * usual else 0.0
    return [s.number for s, one in zip(of, us, strict=True) if one > least]


def period(steps: Sequence[int]) -> int | None:
    """Of steps that come regularly; None where they do not, or where it is every one."""
    gaps = [b - a for a, b in pairwise(steps)]
    if len(gaps) < 2:
        return None
    usual = int(median(gaps))
    return usual if usual > 1 and sum(gap == usual for gap in gaps) >= 0.8 * len(gaps) else None


def _hosts(ranks: Collection[int], hosts: Mapping[int, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(hosts[r] for r in sorted(ranks) if hosts[r]))


def _of_late_ranks(of: Sequence[Step], base: Sequence[float], hosts: Mapping[int, str]) -> Cause | None:
    """Ranks that compute longer than the others in most of the steps."""
    own = {rank: [replay.own_us(s, rank, but=NOT_COMPUTING) if rank in s.ranks else 0.0 for s in of] for rank in hosts}
    if len(own) < 2:
        return None
    middle = {rank: median(us) for rank, us in own.items()}
    ordered = sorted(middle.values())
    usual = ordered[(len(ordered) - 1) // 2]
    excess = {rank: us - usual for rank, us in middle.items()}
    if max(excess.values()) <= 0:  # one that is late now and then
        means = {rank: mean(us) for rank, us in own.items()}
        excess = {rank: us - min(means.values()) for rank, us in means.items()}
    ranks = _large(excess)
    if len(ranks) > len(hosts) // 2:
        return None
    without = replay.step_times(replay.levelled(of, ranks, but=NOT_COMPUTING))
    return _measured(RANK, base, without, **_where(ranks, hosts))


def _where(ranks: Collection[int], hosts: Mapping[int, str]) -> dict[str, Any]:
    """Nothing where it is all of them."""
    if len(ranks) == len(hosts):
        return {}
    slow = set(_hosts(ranks, hosts))
    theirs = {rank for rank, host in hosts.items() if host in slow}
    whole = theirs == set(ranks) and len(theirs) > len(slow) and len(set(hosts.values())) > len(slow)
    return {"ranks": tuple(ranks), "hosts": _hosts(ranks, hosts), "whole_hosts": whole}


def _of_quota(run: Run, of: Sequence[Step], base: Sequence[float], hosts: Mapping[int, str]) -> Cause | None:
    """The control group of a host's ranks, or of one rank, was kept off the processors."""
    share = {
        rank: us / 1e6 / run.beside.watched_s
        for rank, us in run.beside.throttled_us.items()
        if run.beside.watched_s > 0 and rank in hosts
    }
    if not any(share.values()):
        return None
    ranks = _large(share)
    per_step = max(share.values()) * mean(base)
    without = replay.step_times(replay.without_stalls(of, ranks, per_step * len(of)))
    cause = QUOTA if len(ranks) == len(hosts) else RANK
    return _measured(cause, base, without, throttled_us=per_step, **_where(ranks, hosts))


def _of_link(run: Run, of: Sequence[Step], base: Sequence[float], hosts: Mapping[int, str]) -> Cause | None:
    """A host that sends slower than the others: to all of them, else to one."""
    link = slow_link(run, hosts)
    if link is None:
        return None
    sizes = sum(sum(s.size_bytes.values()) for s in of)
    sent = sum(c.acked_bytes for c in run.beside.connections if hosts.get(c.rank) == link.host)
    steps = len({s.step for s in run.steps})
    factor = sent / steps * len(of) / sizes if sizes else 0.0  # bytes on the wire for each of a collective's size
    latencies = [us for s in of for key, us in s.least_us.items() if s.size_bytes[key] <= SMALL_CALL_BYTES]
    latency = median(latencies) if latencies else 0.0

    def at_the_usual_rate(key: replay.Key, size_bytes: int, us: float) -> float:
        return min(us, latency + size_bytes * factor / link.usual_bytes_per_us)

    ranks = tuple(rank for rank, host in sorted(hosts.items()) if host == link.host)
    without = replay.step_times(replay.with_transfers(_without_sending(of, ranks), at_the_usual_rate))
    return _measured(LINK, base, without, ranks=ranks, hosts=(link.host,), slow_link=link)


def _without_sending(of: Sequence[Step], ranks: Collection[int]) -> Sequence[Step]:
    """The kernel sends and sends again in the time of the ranks of that host: what they work longer than others is the
    link's."""
    own = {r: median([replay.own_us(s, r, but=NOT_COMPUTING) for s in of if r in s.ranks]) for r in of[0].ranks}
    others = [us for r, us in own.items() if r not in ranks]
    longer = others and median([own[r] for r in ranks if r in own] or [0.0]) > median(others)
    return replay.levelled(of, ranks, but=NOT_COMPUTING) if longer else of


def slow_link(run: Run, hosts: Mapping[int, str]) -> Link | None:
    """By what the kernel says of the connections: bytes, and for how long some were under way."""
    watched_us = run.beside.watched_s * 1e6
    names = {address: host for host, address in run.addresses.items()}
    both: dict[tuple[str, str], list[Connection]] = {}
    for c in run.beside.connections:
        if c.busy_us and c.rank in hosts:
            both.setdefault((hosts[c.rank], names.get(c.peer, c.peer)), []).append(c)
    volume = max((sum(c.acked_bytes for c in found) for found in both.values()), default=0)
    rates = {
        pair: sum(c.acked_bytes for c in found) / sum(c.busy_us for c in found)
        for pair, found in both.items()
        if sum(c.acked_bytes for c in found) > volume / 10
    }
    if len(rates) < 2 or watched_us <= 0:
        return None
    senders = {host: median([rate for (h, _), rate in rates.items() if h == host]) for host, _ in rates}
    slow = min(senders, key=senders.__getitem__)
    others = [rate for pair, rate in rates.items() if slow not in pair]  # what is sent to it waits for its answers
    others = others or [rate for (host, _), rate in rates.items() if host != slow]
    if not others:
        return None
    usual = median(others)
    busy = max(sum(c.busy_us for c in found) for (host, _), found in both.items() if host == slow) / watched_us
    if senders[slow] > SLOW_LINK_RATIO * usual:
        return None
    return Link(host=slow, peer="", bytes_per_us=senders[slow], usual_bytes_per_us=usual, busy_share=busy)
