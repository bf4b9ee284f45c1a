"""What the step monitor costs: pairs of blocks of steps with and without it, in one process, in turns.

    python -m benchmarks.peers.monitor_overhead [--pairs 30] [--step-ms 100]

Prints the ratio of the medians with its 95 % interval (bootstrap over the pairs), and the CPU time of the monitor
itself as a share of the step. Goal: at most 1 %.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from smoldiag import monitor

STEPS_PER_BLOCK = 5
RESAMPLES = 2000


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pairs", type=int, default=30)
    arguments.add_argument("--step-ms", type=float, default=100.0)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    step = calibrated(given.step_ms)
    with tempfile.TemporaryDirectory() as folder:
        ratios, plain = compared(step, Path(folder), given.pairs)
        own = own_share(step, Path(folder) / "own", STEPS_PER_BLOCK * 4)
    middle = median(ratios)
    means = sorted(median(random.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    low, high = means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)]
    print(f"step without the monitor    {median(plain) * 1e3:8.2f} ms, median of {len(plain)} blocks")
    print(f"with / without              {middle:8.4f}, 95 % interval {low:.4f} to {high:.4f}, {len(ratios)} pairs")
    print(f"the monitor's own CPU time  {own:8.3%} of the step")


def calibrated(step_ms: float) -> Callable[[], None]:
    """A training step of a small network of about this length."""
    layers = [torch.nn.Linear(256, 256) for _ in range(24)]
    network = torch.nn.Sequential(*[m for layer in layers for m in (layer, torch.nn.ReLU())])
    optimizer = torch.optim.AdamW(network.parameters())
    rows = 64
    while True:
        batch = torch.ones(rows, 256)

        def step(batch: torch.Tensor = batch) -> None:
            network(batch).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        began = time.perf_counter()
        for _ in range(STEPS_PER_BLOCK):
            step()
        took_ms = (time.perf_counter() - began) / STEPS_PER_BLOCK * 1e3
        if took_ms > 0.85 * step_ms:
            return step
        rows = int(rows * min(4.0, max(1.2, step_ms / took_ms)))


def compared(step: Callable[[], None], folder: Path, pairs: int) -> tuple[list[float], list[float]]:
    """Ratios of neighbouring blocks, and the times without; which of the two comes first alternates."""
    ratios, plain = [], []
    for pair in range(pairs):
        times = {}
        for watched in (True, False) if pair % 2 else (False, True):
            if watched:
                monitor.install(folder / f"run{pair}")
            step()
            began = time.perf_counter()
            for _ in range(STEPS_PER_BLOCK):
                step()
            times[watched] = (time.perf_counter() - began) / STEPS_PER_BLOCK
            if watched:
                monitor.uninstall()
        ratios.append(times[True] / times[False])
        plain.append(times[False])
    return ratios, plain


def own_share(step: Callable[[], None], folder: Path, steps: int) -> float:
    watch = monitor.install(folder)
    before, began = watch.spent_ns, time.perf_counter_ns()
    for _ in range(steps):
        step()
    share = (watch.spent_ns - before) / (time.perf_counter_ns() - began)
    monitor.uninstall()
    return share


if __name__ == "__main__":
    main()
