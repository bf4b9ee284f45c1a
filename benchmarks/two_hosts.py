"""One pair of hosts: how fast does each send to the other, how evenly, and how fast does each compute?

Local rank i of one host talks to local rank i of the other, all of them at the same time, first in one direction and
then in the other. The receiver's clock counts; before each message it tells the sender that it is ready.
"""

import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from benchmarks import compute, pairs
from smoldiag.model.stats import median
from smoldiag.ranks import Rank

REPEATS = 6  # of a message, at most; the first one warms up
LEAST_REPEATS = 3
BUDGET_S = 1.0  # for one direction; the repeats end with it
COMPUTE_S = 0.05
COMPUTED = {"cuda": ("bfloat16", 8192, 8192, 8192), "cpu": ("float32", 512, 512, 512)}


def measure(me: Rank, config: Mapping[str, Any]) -> dict[str, Any]:
    """Of this rank: what it received (none on the sender's side) by direction, and its time for one product.

    Of `config`: budget_s for one direction.
    """
    budget_s = float(config.get("budget_s", BUDGET_S))
    product = compute.timed(common_product(me.device), me.device, COMPUTE_S)
    lane = partner(me)
    found: dict[str, Any] = {"lane": me.local_rank, "compute_s": median(product.seconds), "received": None}
    if lane is None:
        return found
    buffer = torch.zeros(pairs.MAX_BYTES, dtype=torch.uint8, device=me.device)
    for sender, receiver in ((min(me.rank, lane), max(me.rank, lane)), (max(me.rank, lane), min(me.rank, lane))):
        seconds = transfers(me, (sender, receiver), buffer[: pairs.MIN_BYTES], repeats=2, budget_s=budget_s)
        size = agreed_size(me, (sender, receiver), pairs.MIN_BYTES / seconds[-1] / 1e9)
        seconds = transfers(me, (sender, receiver), buffer[:size], repeats=REPEATS, budget_s=budget_s)
        if receiver == me.rank:
            timed = seconds[1:]
            found["received"] = {
                "src_host": me.hosts[me.host_of_rank[sender]],
                "num_bytes": size,
                "gb_per_s": size / median(timed) / 1e9,
                "spread": max(timed) / median(timed) if len(timed) >= LEAST_REPEATS else None,
            }
    return found


@lru_cache(maxsize=1)
def common_product(on: torch.device) -> compute.Product:
    """The same on all hosts; made once, as ranks of a crew measure round after round."""
    return compute.made(on, *COMPUTED[on.type])


def partner(me: Rank) -> int | None:
    """The rank of the other host at the same place; None where that host has fewer ranks."""
    own = [r for r, host in enumerate(me.host_of_rank) if host == me.host_of_rank[me.rank]]
    others = [r for r, host in enumerate(me.host_of_rank) if host != me.host_of_rank[me.rank]]
    place = own.index(me.rank)
    return others[place] if place < len(others) else None


def transfers(me: Rank, lane: tuple[int, int], message: torch.Tensor, *, repeats: int, budget_s: float) -> list[float]:
    """Seconds of each message, on the receiver's clock, until the repeats are done or the time is over."""
    seconds: list[float] = []
    go_on = torch.ones(1, dtype=torch.uint8, device=me.device)
    until = time.monotonic() + budget_s
    while True:
        if lane[1] == me.rank:
            done = len(seconds) >= repeats or (len(seconds) >= 2 and time.monotonic() > until)
            go_on.fill_(not done)
        pairs.transfer(me, (lane[1], lane[0]), go_on)
        if not go_on.item():
            return seconds
        seconds.append(pairs.transfer(me, lane, message))


def agreed_size(me: Rank, lane: tuple[int, int], rate_gbs: float) -> int:
    """The receiver says how long a message must be to take long enough."""
    size = torch.tensor([pairs.size_for(rate_gbs)], dtype=torch.int64, device=me.device)
    pairs.transfer(me, (lane[1], lane[0]), size)
    return int(size.item())
