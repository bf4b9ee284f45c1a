"""Runs a loop of `train.py` on four real ranks and writes what Flight Recorder holds on each while it hangs.

A program of its own: torch is imported once, and every run's ranks are forked from here.
`python -m tests.hangs.record OUT LOOP FAULT RANK` writes OUT/rank_N.pickle and OUT/rank_N.json.
"""

import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")

import torch
import torch.distributed as dist

from tests.hangs.train import LOOPS

RANKS = 4
DUMP_AFTER_S = 6.0  # of the start: the loops are in their fault within a second or two
DUMP_TAKES_S = 20.0
HEALTHY_STEPS = 100_000


def record(out: Path, loop: str, fault: str, rank: int, *, after_s: float = DUMP_AFTER_S) -> None:
    """One run with `fault` on `rank` ("none": a healthy one that goes on); returns when its ranks are gone."""
    out.mkdir(parents=True, exist_ok=True)
    store = out / "store"
    pids = [_fork(r, out=out, store=store, loop=loop, fault=fault, rank=rank, after_s=after_s) for r in range(RANKS)]
    deadline = time.monotonic() + after_s + DUMP_TAKES_S
    while time.monotonic() < deadline and not all(_dumped(out, r) or _gone(p) for r, p in enumerate(pids)):
        time.sleep(0.05)
        if fault == "stopped" and all(_dumped(out, r) for r in range(RANKS) if r != rank):
            break
    for pid in pids:
        with suppress(ProcessLookupError, ChildProcessError):  # it may be gone
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    store.unlink(missing_ok=True)


def _dumped(out: Path, rank: int) -> bool:
    return (out / f"rank_{rank}.json").exists()


def _gone(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _fork(own: int, *, out: Path, store: Path, loop: str, fault: str, rank: int, after_s: float) -> int:
    pid = os.fork()
    if pid:
        return pid
    log = os.open(out / f"rank_{own}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    threading.Thread(target=_dump, args=(out, own, after_s), daemon=True).start()
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=own, world_size=RANKS)
        steps = {"steps": HEALTHY_STEPS} if fault == "none" else {}
        LOOPS[loop](fault=fault, faulty=own == rank, **steps)
    except RuntimeError:
        traceback.print_exc()
    threading.Event().wait()  # a rank that failed or is through waits for its dump
    return 0


def _dump(out: Path, own: int, after_s: float) -> None:
    time.sleep(after_s)
    c10d: Any = torch._C._distributed_c10d
    (out / f"rank_{own}.pickle").write_bytes(c10d._dump_fr_trace())
    part = out / f"part_{own}"
    part.write_bytes(c10d._dump_fr_trace_json())
    part.rename(out / f"rank_{own}.json")


if __name__ == "__main__":
    where, loop_name, fault_name, faulty_rank = sys.argv[1:]
    record(Path(where), loop_name, fault_name, int(faulty_rank))
