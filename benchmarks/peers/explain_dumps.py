"""`smoldiag explain` on Flight Recorder dumps of a large job, beside torch's own `torchfrtrace`.

`python -m benchmarks.peers.explain_dumps` writes dumps of 1,024 ranks x 2,000 operations with stacks of 8 frames, once
as pickles and once as JSON, in which one rank misses the last collective; runs both programs on them; prints seconds,
memory and what each says. torchfrtrace reads pickles only, and is ended after --peer-timeout seconds.
"""

import argparse
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

START_NS = 1_790_000_000_000_000_000
SHARDS = 8  # ranks of a shard group
KINDS = 40  # operations of a step, each with sizes and a stack of its own
ROOT = Path(__file__).parent.parent.parent


def entries(operations: int, frames: int, rank: int) -> list[dict[str, Any]]:
    """As torch writes them: the frames of one place are one object."""
    stacks = [
        [
            {
                "name": f"call_{kind}_{i}",
                "filename": f"/opt/env/lib/python3.12/site-packages/lib/module_{i}.py",
                "line": i,
            }
            for i in range(frames - 1)
        ]
        + [{"name": "train", "filename": "/home/user/train.py", "line": 100 + kind}]
        for kind in range(KINDS)
    ]
    counts = {"0": 0, "1": 0, "2": 0}
    made = []
    for record in range(operations):
        group = (
            ("0", "default_pg") if record % KINDS == KINDS - 1 else ("1", "replicate") if record % 2 else ("2", "shard")
        )
        counts[group[0]] += 1
        kind = record % KINDS
        last = record == operations - 1
        created = START_NS + record * 1_000_000 + rank
        made.append(
            {
                "frames": stacks[kind],
                "record_id": record,
                "pg_id": int(group[0]),
                "process_group": group,
                "thread_name": "pt_main_thread",
                "thread_id": "140469388221312",
                "collective_seq_id": counts[group[0]],
                "p2p_seq_id": 0,
                "op_id": counts[group[0]],
                "profiling_name": "nccl:all_reduce",
                "time_created_ns": created,
                "input_sizes": [[4096 + kind]],
                "input_dtypes": ["BFloat16"],
                "output_sizes": [[4096 + kind]],
                "output_dtypes": ["BFloat16"],
                "state": "scheduled" if last else "completed",
                "time_discovered_started_ns": None,
                "time_discovered_completed_ns": None if last else created + 900_000,
                "retired": not last,
                "timeout_ms": 600_000,
                "is_p2p": False,
            }
        )
    return made


def dump(rank: int, ranks: int, made: list[dict[str, Any]]) -> dict[str, Any]:
    first = rank // SHARDS * SHARDS
    groups = {
        "0": ("default_pg", range(ranks)),
        "1": ("replicate", range(rank % SHARDS, ranks, SHARDS)),
        "2": ("shard", range(first, first + SHARDS)),
    }
    return {
        "version": "2.10",
        "comm_lib_version": "2.27.5",
        "pg_config": {name: {"name": name, "desc": d, "ranks": str(list(r))} for name, (d, r) in groups.items()},
        "pg_status": {},
        "entries": made,
    }


def write(folder: Path, *, ranks: int, operations: int, frames: int, late: int, json: bool) -> int:
    """Bytes written."""
    total = 0
    made = entries(operations, frames, 0)
    for rank in range(ranks):
        own = dump(rank, ranks, made[:-1] if rank == late else made)
        data = msgspec.json.encode(own) if json else pickle.dumps(own, 2)
        total += (folder / f"fr_rank_{rank}").write_bytes(data)
    return total


def measured(command: list[str], timeout_s: float) -> tuple[float, float, float, str]:
    """Seconds, those of the CPU, MB of memory at most, and what it printed (both streams)."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT)
        timer = threading.Timer(timeout_s, child.kill)
        timer.start()
        _, status, usage = os.wait4(child.pid, 0)
        timer.cancel()
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        out.seek(0)
        said = out.read()
    if child.returncode == -9:
        said = f"(ended after {timeout_s:.0f} s)\n{said}"
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--operations", type=int, default=2000)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--peer-timeout", type=float, default=600, help="seconds for torchfrtrace")
    args = parser.parse_args()
    late = args.ranks // 2 + 5
    explain = [sys.executable, "-m", "smoldiag", "explain"]
    peer = [sys.executable, "-m", "torch.distributed.flight_recorder.fr_trace", "-p", "fr_rank_"]
    for kind in ("json", "pickle"):
        with tempfile.TemporaryDirectory() as folder:
            size = write(
                Path(folder),
                ranks=args.ranks,
                operations=args.operations,
                frames=args.frames,
                late=late,
                json=kind == "json",
            )
            print(
                f"{args.ranks} {kind} dumps of {args.operations} operations x {args.frames} frames: {size / 1e6:.0f} MB"
            )
            _show("smoldiag explain", *measured([*explain, folder], 600))
            if kind == "pickle":
                _show("torchfrtrace", *measured([*peer, folder], args.peer_timeout))
    print(f"rank {late} misses the last collective")


def _show(name: str, seconds: float, cpu_s: float, mb: float, said: str) -> None:
    lines = [line for line in said.splitlines() if line.strip()] or ["(nothing)"]
    telling = next((line for line in lines if "missing ranks" in line or "Error" in line), lines[0])
    print(f"  {name:16} {seconds:7.1f} s ({cpu_s:.1f} s CPU) {mb:7.0f} MB   {telling[:300]}", flush=True)


if __name__ == "__main__":
    main()
