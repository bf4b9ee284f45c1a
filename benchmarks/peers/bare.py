"""The peer: the same collectives as a person writes them in ten lines, under plain torchrun or by hand.

    torchrun --nproc-per-node 2 benchmarks/peers/bare.py '{"sizes": [8, 16777216], "iterations": 20}'

Prints one JSON line from rank 0: seconds in the loops, and the median of microseconds per call. No
verification, no spread, no late ranks. With {"sizes": []} it only joins: the floor of any bench.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

WARM_UP = 5
DEFAULT = {"sizes": [8, 16 << 20], "iterations": 20}


def main() -> None:
    config: dict[str, Any] = json.loads(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    dist.init_process_group("gloo")
    began = time.perf_counter()
    rows = [
        {"collective": name, "size_bytes": size, "time_us": measure(call, size, config["iterations"])}
        for size in config["sizes"]
        for name, call in COLLECTIVES.items()
        if name in config.get("collectives", COLLECTIVES)
    ]
    if dist.get_rank() == 0:
        print(json.dumps({"measuring_s": time.perf_counter() - began, "rows": rows}), flush=True)
    dist.barrier()
    os._exit(0)


def measure(call: Callable[[torch.Tensor, torch.Tensor], object], size: int, iterations: int) -> float:
    world = dist.get_world_size()
    part = torch.ones(max(size // 4 // world, 1))
    whole = torch.ones(part.numel() * world)
    for _ in range(WARM_UP):
        call(whole, part)
    dist.barrier()
    seconds = []
    for _ in range(iterations):
        start = time.perf_counter()
        call(whole, part)
        seconds.append(time.perf_counter() - start)
    return median(seconds) * 1e6


def all_gather(whole: torch.Tensor, part: torch.Tensor) -> object:
    run = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    return run(whole, part)


def reduce_scatter(whole: torch.Tensor, part: torch.Tensor) -> object:
    run = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    return run(part, whole)


COLLECTIVES: dict[str, Callable[[torch.Tensor, torch.Tensor], object]] = {
    "all_reduce": lambda whole, part: dist.all_reduce(whole),
    "all_gather": all_gather,
    "reduce_scatter": reduce_scatter,
}


if __name__ == "__main__":
    main()
