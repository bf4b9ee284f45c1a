"""Ranks of one host, forked from a process that has loaded torch: it is loaded once, not once per rank.

Carried; standard library only. Only for hosts without accelerators: no driver's library is asked to live through a
fork. Where a rank does not come out of it, whoever asked starts it in the usual way, on the same pipes.
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
MOST = 64  # ranks: seven descriptors of each are open until they are forked
POLL_S = 0.002
END_S = 3.0


@dataclass(frozen=True)
class RankFds:
    """What a rank will have: descriptors that are open in the fork server."""

    stdin: int
    stdout: int  # and stderr
    record: int
    log: int

    def pipes(self) -> tuple[int, int, int]:
        return (self.stdin, self.stdout, self.record)

    def all(self) -> tuple[int, int, int, int]:
        return (*self.pipes(), self.log)


@dataclass
class Forked:
    """A rank, before and after the fork: the part of `subprocess.Popen` that an agent uses."""

    fds: RankFds
    pid: int  # the fork server's, until it is forked
    started: bool = False
    unwanted: bool = False
    returncode: int | None = None

    def poll(self) -> int | None:
        if self.started and self.returncode is None:
            with suppress(ChildProcessError):  # the fork server has not ended yet, and is still the parent
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def kill(self) -> None:
        if not self.started:
            self.unwanted = True
        elif self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float) -> int:
        """Raises TimeoutExpired. One that is unwanted is not waited for: it goes as soon as it comes."""
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if not self.started and self.unwanted:
                return -signal.SIGKILL
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("rank", timeout)
            time.sleep(POLL_S)
        return code


@dataclass
class ForkServer:
    """The agent's side of it."""

    process: subprocess.Popen[bytes]
    pids: int  # descriptor: a line with number and process id for each rank that was forked
    forked: list[Forked]
    said: bytes = b""

    def take(self) -> bool:
        """Read which ranks were forked. True at the end: no other will come."""
        try:
            data = os.read(self.pids, 4096)
        except BlockingIOError:
            return False
        *lines, self.said = (self.said + data).split(b"\n")
        for number, pid in (map(int, line.split()) for line in lines):
            rank = self.forked[number]
            rank.pid, rank.started = pid, True
            if rank.unwanted:
                rank.kill()
        if data:
            return False
        self.process.wait()
        for rank in self.forked:
            if rank.started and rank.unwanted:
                rank.wait(END_S)
        return True

    def end(self) -> None:
        """Stop it, and what it has forked. Waits for END_S at most."""
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


def opened(program: str, ranks_fds: Sequence[RankFds], env: Mapping[str, str], *, keep: Sequence[int]) -> ForkServer:
    """Start a fork server with a rank for each of `ranks_fds`. `keep`: further descriptors that all of them need.

    Raises OSError.
    """
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1):  # when the fork server ends, its ranks are ours
        raise OSError("this process can't become the parent of its grandchildren")
    pids_r, pids_w = os.pipe()
    told = {"pids": pids_w, "ranks_fds": [fds.all() for fds in ranks_fds]}
    try:
        process = subprocess.Popen(
            [sys.executable, program, json.dumps(told)],
            stdin=subprocess.DEVNULL,
            stdout=ranks_fds[0].stdout,
            stderr=subprocess.STDOUT,
            env=env,
            pass_fds=(pids_w, *(fd for fds in ranks_fds for fd in fds.all()), *keep),
        )
    except OSError:
        os.close(pids_r)
        raise
    finally:
        os.close(pids_w)
    os.set_blocking(pids_r, False)
    return ForkServer(process, pids_r, [Forked(fds, process.pid) for fds in ranks_fds])


def main(told: str) -> None:
    """The fork server itself: load torch, fork the ranks, and leave them to the agent."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    plan = json.loads(told)
    ranks_fds = [RankFds(*fds) for fds in plan["ranks_fds"]]
    from smoldiag import ranks

    if len(os.listdir("/proc/self/task")) > 1:  # a thread of some library: it would be missing after a fork
        os._exit(1)
    sys.stdout.flush()  # what a library said is said once
    del sys.argv[1:]  # as in any other rank
    server = os.getpid()
    for number, fds in enumerate(ranks_fds):
        if os.fork() == 0:
            try:
                _take_over(fds, [other for other in ranks_fds if other != fds])
                os.write(plan["pids"], b"%d %d\n" % (number, os.getpid()))
                os.close(plan["pids"])
                while os.getppid() == server:  # what a parent's death sends shall come from the agent's
                    time.sleep(POLL_S)
                ranks.start()
            finally:
                os._exit(1)
    os._exit(0)


def _take_over(fds: RankFds, others: Sequence[RankFds]) -> None:
    for target, fd in enumerate((fds.stdin, fds.stdout, fds.stdout)):
        os.dup2(fd, target)
    for other in others:
        for fd in other.all():
            os.close(fd)
    os.close(fds.stdin)
    os.close(fds.stdout)
