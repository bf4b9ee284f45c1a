"""Ranks of one host, forked from a process that has loaded torch: it is loaded once, not once per rank.

Carried; standard library only. Only for hosts without accelerators: no driver's library is asked to live through a
fork. Where a rank does not come out of the nursery, whoever asked starts it in the usual way, on the same pipes.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, WSL's
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
MOST = 64  # ranks: seven descriptors of each are open until they are born
POLL_S = 0.002
END_S = 3.0


@dataclass(frozen=True)
class Cradle:
    """What a rank will have: descriptors that are open in the nursery."""

    stdin: int
    stdout: int  # and stderr
    record: int
    log: int

    def pipes(self) -> tuple[int, int, int]:
        return (self.stdin, self.stdout, self.record)

    def fds(self) -> tuple[int, int, int, int]:
        return (*self.pipes(), self.log)


@dataclass
class Forked:
    """A rank, before and after its birth: the part of `subprocess.Popen` that an agent uses."""

    cradle: Cradle
    pid: int  # the nursery's, until it is born
    born: bool = False
    unwanted: bool = False
    returncode: int | None = None

    def poll(self) -> int | None:
        if self.born and self.returncode is None:
            with suppress(ChildProcessError):  # the nursery has not ended yet, and is still the parent
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def kill(self) -> None:
        if not self.born:
            self.unwanted = True
        elif self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float) -> int:
        """Raises TimeoutExpired. One that is unwanted is not waited for: it goes as soon as it comes."""
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if not self.born and self.unwanted:
                return -signal.SIGKILL
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("rank", timeout)
            time.sleep(POLL_S)
        return code


@dataclass
class Nursery:
    """The agent's side of it."""

    process: subprocess.Popen[bytes]
    births: int  # to be read from
    forked: list[Forked]
    said: bytes = b""

    def take(self) -> bool:
        """Read what is there of births. True at the end: no other will come."""
        try:
            data = os.read(self.births, 4096)
        except BlockingIOError:
            return False
        *lines, self.said = (self.said + data).split(b"\n")
        for number, pid in (map(int, line.split()) for line in lines):
            rank = self.forked[number]
            rank.pid, rank.born = pid, True
            if rank.unwanted:
                rank.kill()
        if data:
            return False
        self.process.wait()
        for rank in self.forked:
            if rank.born and rank.unwanted:
                rank.wait(END_S)
        return True

    def end(self) -> None:
        """Stop it, and what it has brought forth. Waits for END_S at most."""
        self.process.kill()
        for rank in self.forked:
            rank.kill()
        until = time.monotonic() + END_S
        with suppress(OSError, subprocess.TimeoutExpired):
            while not self.take() and time.monotonic() < until:
                time.sleep(POLL_S)


def fits(count: int) -> bool:
    """Whether so many ranks of this host are better forked."""
    return sys.platform == "linux" and 1 < count <= MOST and not any(map(os.path.exists, ACCELERATORS))


def opened(program: str, cradles: Sequence[Cradle], env: Mapping[str, str], *, keep: Sequence[int]) -> Nursery:
    """Start a nursery with a rank for each cradle. `keep`: further descriptors that all of them need.

    Raises OSError.
    """
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1):  # when the nursery ends, its ranks are ours
        raise OSError("this process can't become the parent of its grandchildren")
    births_r, births_w = os.pipe()
    told = {"births": births_w, "cradles": [cradle.fds() for cradle in cradles]}
    try:
        process = subprocess.Popen(
            [sys.executable, program, json.dumps(told)],
            stdin=subprocess.DEVNULL,
            stdout=cradles[0].stdout,
            stderr=subprocess.STDOUT,
            env=env,
            pass_fds=(births_w, *(fd for cradle in cradles for fd in cradle.fds()), *keep),
        )
    except OSError:
        os.close(births_r)
        raise
    finally:
        os.close(births_w)
    os.set_blocking(births_r, False)
    return Nursery(process, births_r, [Forked(cradle, process.pid) for cradle in cradles])


def main(told: str) -> None:
    """The nursery itself: load torch, fork the ranks, and leave them to the agent."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    plan = json.loads(told)
    cradles = [Cradle(*fds) for fds in plan["cradles"]]
    from smoldiag import ranks

    if len(os.listdir("/proc/self/task")) > 1:  # a thread of some library: it would be missing after a fork
        os._exit(1)
    sys.stdout.flush()  # what a library said is said once
    del sys.argv[1:]  # as in any other rank
    nursery = os.getpid()
    for number, cradle in enumerate(cradles):
        if os.fork() == 0:
            try:
                _live(cradle, [c for c in cradles if c != cradle])
                os.write(plan["births"], b"%d %d\n" % (number, os.getpid()))
                os.close(plan["births"])
                while os.getppid() == nursery:  # what a parent's death sends shall come from the agent's
                    time.sleep(POLL_S)
                ranks.start()
            finally:
                os._exit(1)
    os._exit(0)


def _live(cradle: Cradle, others: Sequence[Cradle]) -> None:
    for target, fd in enumerate((cradle.stdin, cradle.stdout, cradle.stdout)):
        os.dup2(fd, target)
    for other in others:
        for fd in other.fds():
            os.close(fd)
    os.close(cradle.stdin)
    os.close(cradle.stdout)
