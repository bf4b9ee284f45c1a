"""Disjoint pairs of hosts, round by round: who is slow with every partner?

In each round every host has one partner; local rank i of one talks to local rank i of the other, first in one
direction, then in the other. The receiver's clock counts. Hosts that look slow are measured again, alone, before
anybody is named.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from smoldiag import ranks
from smoldiag.facts import PairRate
from smoldiag.model import pair_schedule
from smoldiag.model.stats import median
from smoldiag.ranks import Rank

MAX_ROUNDS = 6  # different partners per host are enough to tell it from its partner
TARGET_S = 0.1  # of one message: long against latency and the burst of a traffic shaper
MIN_BYTES, MAX_BYTES = 1 << 20, 64 << 20
REPEATS, REPEATS_AGAIN = 4, 6  # the first of them warms up
SUSPECT_RATIO = 0.75  # of the median host's best rate; a little wider than what is finally said
MAX_SUSPECTS = 4

Flow = tuple[int, int]  # (host that sends, host that receives)


def rounds(num_hosts: int) -> list[list[Flow]]:
    """Each round pairs every host with another one, each time another one."""
    return pair_schedule.every_round(num_hosts)[:MAX_ROUNDS]


def measure(me: Rank, config: Mapping[str, Any]) -> dict[str, Any]:
    """As a job of a crew: rates are recorded as they come."""
    probe(me)
    return {}


def probe(me: Rank) -> None:
    """All ranks come here. Rank 0 records every rate."""
    hosts = sorted(set(me.host_of_rank))
    on = {h: [r for r, at in enumerate(me.host_of_rank) if at == h] for h in hosts}
    buffer = torch.zeros(MAX_BYTES, dtype=torch.uint8, device=me.device)
    ranks.stage("pairs of hosts")
    plan = [[(hosts[a], hosts[b]) for a, b in met] for met in rounds(len(hosts))]
    rates: dict[Flow, float] = {}
    for number, met in enumerate(plan):
        for flows in (met, [(b, a) for a, b in met]):
            rates |= measured(me, on, flows, buffer, REPEATS, number, confirming=False)
    suspects = slow_hosts(rates, hosts)
    if not suspects:
        return
    ranks.stage("pairs of suspected hosts")
    trusted = [h for h in hosts if h not in suspects] or hosts
    for suspect in suspects[:MAX_SUSPECTS]:
        for number, partner in enumerate([h for h in trusted if h != suspect][:2]):
            for flow in ((suspect, partner), (partner, suspect)):
                measured(me, on, [flow], buffer, REPEATS_AGAIN, len(plan) + number, confirming=True)


def slow_hosts(rates: dict[Flow, float], hosts: Sequence[int]) -> list[int]:
    """Hosts whose best rate, out or in, is far below that of the median host; the slowest first."""
    worst: dict[int, float] = {}
    for end in (0, 1):
        best = {h: max((rate for flow, rate in rates.items() if flow[end] == h), default=0.0) for h in hosts}
        usual = median(list(best.values()))
        for h, rate in best.items():
            if usual > 0 and rate < SUSPECT_RATIO * usual:
                worst[h] = min(worst.get(h, 1.0), rate / usual)
    return sorted(worst, key=lambda h: worst[h])


def measured(
    me: Rank,
    on: dict[int, list[int]],
    flows: Sequence[Flow],
    buffer: torch.Tensor,
    repeats: int,
    number: int,
    *,
    confirming: bool,
) -> dict[Flow, float]:
    """GB/s of each flow, all its ranks together; the same on all ranks."""
    lanes = [(a, b) for src, dst in flows for a, b in zip(on[src], on[dst], strict=False)]
    mine = next(((a, b) for a, b in lanes if me.rank in (a, b)), None)
    first = rates_of(me, mine, buffer[:MIN_BYTES], 2)
    size = {lane: size_for(first[lane[1]]) for lane in lanes}
    rate_of = rates_of(me, mine, buffer[: size[mine]] if mine else buffer, repeats)
    found: dict[Flow, float] = {}
    for a, b in lanes:
        src, dst = me.host_of_rank[a], me.host_of_rank[b]
        found[src, dst] = found.get((src, dst), 0.0) + rate_of[b]
        if me.rank == 0:
            ranks.record("pair", rate_record(me, a, b, size[a, b], rate_of[b], number, confirming=confirming))
    return found


def size_for(rate_gbs: float) -> int:
    """A message that takes TARGET_S at this rate."""
    size = MIN_BYTES
    while size * 2 <= min(rate_gbs * 1e9 * TARGET_S, MAX_BYTES):
        size *= 2
    return size


def rates_of(me: Rank, mine: tuple[int, int] | None, message: torch.Tensor, repeats: int) -> list[float]:
    """GB/s by receiving rank, the same on all ranks; the first repeat warms up."""
    ranks.barrier(me)
    seconds = [transfer(me, mine, message) for _ in range(repeats)] if mine else []
    everyone = torch.zeros(me.world_size, dtype=torch.float64, device=me.device)
    if mine and mine[1] == me.rank:
        everyone[me.rank] = message.nbytes / median(seconds[1:]) / 1e9
    ranks.entering()
    dist.all_reduce(everyone)
    ranks.left()
    rates: list[float] = everyone.tolist()
    return rates


def rate_record(me: Rank, a: int, b: int, num_bytes: int, rate: float, number: int, *, confirming: bool) -> Any:
    return PairRate(
        src=a,
        dst=b,
        src_host=me.hosts[me.host_of_rank[a]],
        dst_host=me.hosts[me.host_of_rank[b]],
        size_bytes=num_bytes,
        gb_per_s=rate,
        round=number,
        confirming=confirming,
    )


def transfer(me: Rank, lane: tuple[int, int], buffer: torch.Tensor) -> float:
    """Seconds of one message, from posting it to having it."""
    ranks.entering()
    start = time.perf_counter()
    op = dist.P2POp(dist.isend, buffer, lane[1]) if lane[0] == me.rank else dist.P2POp(dist.irecv, buffer, lane[0])
    for work in dist.batch_isend_irecv([op]):
        work.wait()
    if me.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    ranks.left()
    return seconds
