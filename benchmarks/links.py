"""From each GPU of a node to each other one: NVLink where there is, else PCI Express. By one rank per node."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.compute import device
from benchmarks.memory import DEVICE_BYTES, LEAST_REPEATS, MOST_OF_FREE, REPEATS
from smoldiag import ranks
from smoldiag.facts.probes import LinkRate, Links
from smoldiag.ranks import Rank

DEFAULT_BUDGET_S = 10.0
MOST_BYTES = DEVICE_BYTES // 4
cuda: Any = torch.cuda


def measure(me: Rank, config: Mapping[str, Any]) -> dict[str, Any]:
    """A `Links` as a dictionary; of a node's ranks the first one measures, while the others are idle."""
    until = time.monotonic() + float(config.get("budget_s", DEFAULT_BUDGET_S))
    count = cuda.device_count() if me.device.type == "cuda" else 0
    why = "no GPU" if not count else "the first rank of the node measures" if me.local_rank else ""
    if not why and count == 1:
        why = "one GPU"
    if why:
        return asdict(Links(device=device(me), rates=(), skipped={"pairs": why}))
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    rates, skipped = [], {}
    for number, (a, b) in enumerate(pairs):
        share_s = max(until - time.monotonic(), 0) / (len(pairs) - number)
        try:
            rates.append(rate(a, b, share_s))
        except RuntimeError as error:
            skipped[f"{a} to {b}"] = str(error).strip().partition("\n")[0][:200]
    for gpu in range(count):
        with cuda.device(gpu):
            cuda.empty_cache()
    cuda.set_device(me.device)
    return asdict(Links(device=device(me), rates=tuple(rates), skipped=skipped))


def rate(a: int, b: int, share_s: float) -> LinkRate:
    until = time.monotonic() + share_s
    num_bytes = int(min(MOST_BYTES, *(cuda.mem_get_info(gpu)[0] * MOST_OF_FREE for gpu in (a, b))))
    src = torch.zeros(num_bytes, dtype=torch.uint8, device=f"cuda:{a}")
    dst = torch.zeros(num_bytes, dtype=torch.uint8, device=f"cuda:{b}")
    dst.copy_(src)
    seconds: list[float] = []
    while len(seconds) < LEAST_REPEATS or (time.monotonic() < until and len(seconds) < REPEATS):
        cuda.synchronize(a)
        cuda.synchronize(b)
        start = time.perf_counter()
        dst.copy_(src, non_blocking=True)
        cuda.synchronize(a)
        cuda.synchronize(b)
        seconds.append(time.perf_counter() - start)
    peer = bool(cuda.can_device_access_peer(a, b))
    return LinkRate(src=a, dst=b, num_bytes=num_bytes, seconds=tuple(seconds), peer=peer)


def main() -> None:
    me = ranks.join()
    ranks.record("links", measure(me, me.config))
    ranks.leave()


if __name__ == "__main__":
    main()
