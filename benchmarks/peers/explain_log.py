"""`smoldiag explain` on a log of 1,024 ranks, beside `grep` for one word on the same file.

    python -m benchmarks.peers.explain_log [--gigabytes 1] [--keep FILE]

The log is synthetic: NCCL's lines of init and channels of every rank, steps, collectives with pointers and sequence
numbers, prose that never repeats, and an out-of-memory on one rank with what 1,023 others say afterwards. Wall time and
peak memory are of the whole command, on one core.
"""

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

RANKS, PER_NODE = 1024, 8
OOM_RANK = 517
WORDS = ("gradient", "norm", "batch", "shard", "tokens", "cache", "scale", "worker", "pipeline", "sample", "merge")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--keep", type=Path, help="write the log here, and leave it there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.keep or Path(folder, "job.log")
        if not path.exists():
            write(path, int(options.gigabytes * 1e9))
        size = path.stat().st_size
        print(f"{size / 1e9:.2f} GB, {RANKS} ranks, one core")
        cpu = {min(os.sched_getaffinity(0))}
        for name, command in (
            ("grep -c 'NCCL WARN'", ["grep", "-c", "NCCL WARN", str(path)]),
            ("grep -cE of 12 words", ["grep", "-cE", "|".join(TWELVE), str(path)]),
            ("smoldiag explain", [sys.executable, "-m", "smoldiag", "explain", str(path)]),
        ):
            seconds, busy, mib, said = measured(command, cpu)
            print(
                f"{name:24} {seconds:6.1f} s, {busy:5.1f} s on the core, {size / 1e6 / busy:6.0f} MB per s of it, "
                f"{mib:4.0f} MiB  {said[:100]}"
            )


TWELVE: tuple[str, ...] = (
    "NCCL WARN",
    "out of memory",
    "Watchdog caught",
    "Xid",
    "No space left",
    "timed out",
    "SIGKILL",
    "ECC",
)
TWELVE += ("address already in use", "mismatch", "Connection closed", "Segmentation fault")


def measured(command: list[str], cpu: set[int]) -> tuple[float, float, float, str]:
    """Seconds of wall time and of the core, peak MiB, first line of the output."""
    began = time.perf_counter()
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, cpu)
    )
    said = child.stdout.read() if child.stdout else ""
    _, _, usage = os.wait4(child.pid, 0)
    child.returncode = 0
    busy = usage.ru_utime + usage.ru_stime
    return time.perf_counter() - began, busy, usage.ru_maxrss / 1024, said.partition("\n")[0]


def write(path: Path, size: int) -> None:
    rng = random.Random(4)
    with path.open("w") as file:
        file.writelines(line + "\n" for line in start())
        step = 0
        while file.tell() < size * 0.98:
            step += 1
            file.writelines(line + "\n" for line in one_step(step, rng))
        file.writelines(line + "\n" for line in end(step))


def host(rank: int) -> str:
    return f"gpu-{rank // PER_NODE:03d}"


def start() -> Iterator[str]:
    yield "NCCL version 2.26.2+cuda12.8"
    for r in range(RANKS):
        head = f"[rank{r}]: {host(r)}:{4000 + r % 8}:{5000 + r % 8} [{r % 8}] NCCL INFO"
        yield f"{head} Bootstrap: Using eth0:10.0.{r // PER_NODE // 200}.{r // PER_NODE % 200 + 1}<0>"
        yield f"{head} NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/IB [RO]; OOB eth0:10.0.0.1<0>"
        yield f"{head} Using network IB"
        device = f"cudaDev {r % 8} nvmlDev {r % 8} busId {r % 8 + 1}b000"
        comm = f"comm 0x{r:x}55aa rank {r} nranks {RANKS} {device} commId 0x6a"
        yield f"{head} ncclCommInitRankConfig {comm} - Init START"
        layout = f"nRanks {RANKS} nNodes {RANKS // 8} localRanks 8 localRank {r % 8}"
        yield f"{head} comm 0x{r:x}55aa rank {r} {layout} MNNVL 0"
        for channel in range(16):
            yield f"{head} Channel {channel:02d}/0 : {r}[{r % 8}] -> {(r + 1) % RANKS}[{(r + 1) % 8}] via P2P/CUMEM"
        yield f"{head} Channel 00/0 : {r}[7] -> {(r + 1) % RANKS}[0] [send] via NET/IB/0/GDRDMA"
        yield f"{head} ncclCommInitRankConfig {comm} - Init COMPLETE"


def one_step(step: int, rng: random.Random) -> Iterator[str]:
    yield f"[rank0]: 2026-11-20 10:00:{step % 60:02d} step {step} | loss {8 / (1 + step / 900):.4f} | lr 3.0e-04"
    for r in range(0, RANKS, 4):
        head = f"[rank{r}]: {host(r)}:{4000 + r % 8}:{6000 + r % 8} [{r % 8}] NCCL INFO"
        yield (
            f"{head} AllReduce: opCount {step:x} sendbuff 0x7f{rng.getrandbits(36):09x} recvbuff "
            f"0x7f{rng.getrandbits(36):09x} count {rng.getrandbits(20)} datatype 7 op 0 root 0 comm 0x{r:x}55aa"
        )
        yield f"[rank{r}]: {' '.join(rng.choices(WORDS, k=6))} {rng.random():.6f} at {step}"


def end(step: int) -> Iterator[str]:
    yield (
        f"[rank{OOM_RANK}]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.25 GiB. GPU 5 has a total "
        "capacity of 79.11 GiB of which 1.03 GiB is free."
    )
    for r in range(RANKS):
        if r != OOM_RANK:
            yield (
                f"[rank{r}]:[E1120 11:05:03.195 ProcessGroupNCCL.cpp:632] [Rank {r}] Watchdog caught collective "
                f"operation timeout: WorkNCCL(SeqNum={step * 9}, OpType=_ALLGATHER_BASE, NumelIn=1, NumelOut=2, "
                "Timeout(ms)=600000) ran for 600055 milliseconds before timing out."
            )


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
