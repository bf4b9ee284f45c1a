"""Runs the loops of `train.py` on four real ranks and writes what Flight Recorder holds on each while it hangs.

A program of its own: torch is imported once, and every run's ranks are forked from here, some runs at the same time.
`python -m tests.hangs.record OUT [RANK ...]` writes OUT/LOOP-FAULT/rank_N.pickle, .json and .log; FAULT `none` is a
healthy run. With ranks it starts these alone: those of one host, while the other hosts start theirs into the same OUT.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")

import torch
import torch._inductor.codecache  # a first dump imports it, which takes seconds
import torch.distributed as dist

from tests.hangs.train import FAULTS, LOOPS

RANKS = 4
FAULTY = 2
DUMP_AFTER_S = 7.0  # the fault
HEALTHY_AFTER_S = 3.0  # the same step
AT_MOST_S = 90.0  # of a run
STILL_S = 5.0  # for the ranks of other hosts to stop, too
APART_S = 1.0  # between the starts of two runs
HEALTHY_STEPS = 100_000


@dataclass(frozen=True, kw_only=True)
class Recording:
    out: Path
    fault: str
    pids: dict[int, int]  # of the own ranks
    until: float

    @property
    def over(self) -> bool:
        """On all hosts: who ends before the others have dumped changes what they dump."""
        for rank, pid in self.pids.items():
            if not self._dumped(rank) and _gone(pid):
                self._mark_of(rank).touch()
        ranks = [r for r in range(RANKS) if not (self.fault == "stopped" and r == FAULTY)]
        return time.monotonic() > self.until or all(self._dumped(r) or self._mark_of(r).exists() for r in ranks)

    def _dumped(self, rank: int) -> bool:
        return (self.out / f"rank_{rank}.json").exists()

    def _mark_of(self, rank: int) -> Path:
        return self.out / f"gone_{rank}"

    def end(self) -> None:
        for rank, pid in self.pids.items():  # who is stopped prints no more that others have ended
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
            (self.out / f"still_{rank}").touch()
        until = time.monotonic() + STILL_S
        while time.monotonic() < until and len(list(self.out.glob("still_*"))) < RANKS:
            time.sleep(0.02)
        for pid in self.pids.values():
            with suppress(ProcessLookupError, ChildProcessError):  # it may be gone
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        (self.out / "store").unlink(missing_ok=True)


def record_all(out: Path, ranks: Sequence[int]) -> None:
    """Every loop with every fault, several at a time; then each once without, alone."""
    running: list[Recording] = []
    for loop, fault in ((loop, fault) for loop in LOOPS for fault in FAULTS):
        running.append(start(out / f"{loop}-{fault}", loop, fault, ranks, after_s=DUMP_AFTER_S))
        _wait(APART_S, running)
    while running:
        _wait(0.1, running)
    for loop in LOOPS:
        alone = [start(out / f"{loop}-none", loop, "none", ranks, after_s=HEALTHY_AFTER_S)]
        while alone:
            _wait(0.1, alone)


def _wait(seconds: float, running: list[Recording]) -> None:
    time.sleep(seconds)
    for r in _over(running):
        r.end()
        running.remove(r)


def _over(running: list[Recording]) -> Iterator[Recording]:
    return iter([r for r in running if r.over])


def start(out: Path, loop: str, fault: str, ranks: Sequence[int], *, after_s: float) -> Recording:
    """These ranks of one run, with `fault` on rank FAULTY."""
    out.mkdir(parents=True, exist_ok=True)
    pids = {r: _fork(r, out=out, loop=loop, fault=fault, after_s=after_s) for r in ranks}
    return Recording(out=out, fault=fault, pids=pids, until=time.monotonic() + AT_MOST_S)


def _gone(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _fork(own: int, *, out: Path, loop: str, fault: str, after_s: float) -> int:
    pid = os.fork()
    if pid:
        return pid
    log = os.open(out / f"rank_{own}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    threading.Thread(target=_dump, args=(out, own, after_s), daemon=True).start()
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{out / 'store'}", rank=own, world_size=RANKS)
        steps = {"steps": HEALTHY_STEPS} if fault == "none" else {}
        LOOPS[loop](fault=fault, faulty=own == FAULTY, reached=(out / "reached").touch, **steps)
    except RuntimeError:
        traceback.print_exc()
    threading.Event().wait()  # a rank that failed or is through waits for its dump
    return 0


def _dump(out: Path, own: int, after_s: float) -> None:
    while not (out / "reached").exists():
        time.sleep(0.05)
    time.sleep(after_s)
    c10d: Any = torch._C._distributed_c10d
    (out / f"rank_{own}.pickle").write_bytes(c10d._dump_fr_trace())
    part = out / f"part_{own}"
    part.write_bytes(c10d._dump_fr_trace_json())
    part.rename(out / f"rank_{own}.json")


if __name__ == "__main__":
    record_all(Path(sys.argv[1]), [int(r) for r in sys.argv[2:]] or range(RANKS))
