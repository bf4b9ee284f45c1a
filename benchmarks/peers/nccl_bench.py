"""nccl-bench beside the same collectives in a bare script under torchrun, and beside the floor, in one run.

    python -m benchmarks.peers.nccl_bench [--repeats 5]

The floor is two processes that import torch and join gloo. Whole-command times are medians of alternating repeats.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

BARE = Path(__file__).with_name("bare.py")
SMALL, LARGE = 8, 16 << 20
ITERATIONS = {SMALL: 200, LARGE: 10}
LIMIT_OVER_FLOOR = 1.3  # times the floor, plus the measuring time


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--repeats", type=int, default=5)
    repeats = arguments.parse_args().repeats
    config = {"sizes": [LARGE], "iterations": ITERATIONS[LARGE]}
    floor, torchrun, ours, measuring = [], [], [], []
    for _ in range(repeats):  # alternating, so that a busy minute of the machine hits all alike
        floor.append(by_hand({"sizes": [], "iterations": 0})[0])
        seconds, said = under_torchrun(config)
        torchrun.append(seconds)
        measuring.append(said["measuring_s"])
        ours.append(nccl_bench(str(LARGE), ITERATIONS[LARGE])[0])
    limit = LIMIT_OVER_FLOOR * median(floor) + median(measuring)
    print(f"whole command, two local ranks, three collectives at 16 MiB, median of {repeats}:")
    print(f"  floor (import torch, join gloo)    {median(floor):6.2f} s")
    print(f"  measuring time of the bare script  {median(measuring):6.2f} s")
    print(f"  smoldiag nccl-bench                {median(ours):6.2f} s")
    print(
        f"  bare script under torchrun         {median(torchrun):6.2f} s   ours: {median(ours) / median(torchrun):.2f}"
    )
    print(
        f"  limit: {LIMIT_OVER_FLOOR} x floor + measuring    {limit:6.2f} s   ours/limit    {median(ours) / limit:.2f}"
    )
    for size, what in ((SMALL, "latency"), (LARGE, "bandwidth")):
        compare(size, what, repeats)


def compare(size: int, what: str, repeats: int) -> None:
    """Time per call in our bench and in the bare script, alternating."""
    ours: dict[str, list[float]] = {}
    bare: dict[str, list[float]] = {}
    for _ in range(repeats):
        for row in nccl_bench(str(size), ITERATIONS[size])[1]["results"]:
            ours.setdefault(row["collective"], []).append(row["time_us"]["p50"])
        for row in by_hand({"sizes": [size], "iterations": ITERATIONS[size]})[1]["rows"]:
            bare.setdefault(row["collective"], []).append(row["time_us"])
    print(f"{what} at {size} bytes, two local gloo ranks, median of {repeats}:")
    for name in bare:
        a, b = median(ours[name]), median(bare[name])
        print(f"  {name:15} ours {a:9.1f} us   bare {b:9.1f} us   bandwidth ours/bare {b / a:.2f}")


def nccl_bench(sizes: str, iterations: int) -> tuple[float, dict[str, Any]]:
    command = [sys.executable, "-m", "smoldiag", "nccl-bench", "--backend", "gloo", "--ranks-per-node", "2"]
    command += ["--sizes", sizes, "--iterations", str(iterations), "--format", "json"]
    return timed([command], os.environ.copy())


def under_torchrun(config: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return timed([[*run, str(BARE), json.dumps(config)]], os.environ | {"OMP_NUM_THREADS": "1"})


def by_hand(config: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    env |= {"GLOO_SOCKET_IFNAME": "lo"}
    return timed([["env", f"RANK={rank}", sys.executable, str(BARE), json.dumps(config)] for rank in (0, 1)], env)


def timed(commands: list[list[str]], env: dict[str, str]) -> tuple[float, dict[str, Any]]:
    """Wall seconds until the last has ended, and the JSON that the first one printed."""
    began = time.perf_counter()
    running = [
        subprocess.Popen(c, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands
    ]
    said = [p.communicate(timeout=300) for p in running]
    seconds = time.perf_counter() - began
    if any(p.returncode for p in running):
        raise SystemExit(f"{commands[0]} failed:\n{said[0][1][-2000:]}")
    document: dict[str, Any] = json.loads(said[0][0])
    return seconds, document


if __name__ == "__main__":
    main()
