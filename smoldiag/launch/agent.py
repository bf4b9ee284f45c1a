"""The agent: one small process per host, between the head and the ranks there. Carried; standard library only.

It says hello with the facts of its host, starts ranks, hands their records to the head, tells how far they are, and
ends them: when the head says so, when the head is silent for longer than the lease, and when its input ends. Nothing
of it or of its ranks stays behind.
"""

import base64
import ctypes
import importlib.util
import json
import mmap
import os
import queue
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from smoldiag.launch import forkserver
from smoldiag.launch.forkserver import Forked, ForkServer, RankFds

if TYPE_CHECKING:
    from smoldiag.collect.guarded import Child

PIECE = 800  # srun interleaves the tasks' output in chunks of 1,024 bytes
TICK_S = 0.1
PATIENT_LEASE_S = 3600.0  # before the head has said its own
TAIL_BYTES = 64 * 1024  # kept of what a rank prints
SAID_LINES = 20  # of it, sent when a rank fails
MAX_RECORD_BYTES = 64 * 2**20
RANK0_LOG_BYTES, OTHER_LOG_BYTES = 256 * 1024, 16 * 1024
KILL_S = 3.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h
SLOT = struct.Struct("<QQQ")  # as smoldiag.ranks writes it
SLOT_BYTES = 64
FORWARDED_FROM_FIRST = {"versions", "interface"}  # the local ranks say the same
KEPT_HERE = {"stage", "done"}
NCCL_DEBUG = {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,NET,ENV,GRAPH"}
LOG_WORDS = (
    "NET",
    "Using",
    "via ",
    "NVLS",
    "Channel",
    "channels",
    "Connected",
    "version",
    "WARN",
    "comm ",
    "set by",
    "set to",
    "GPU Direct",
    "DMA-BUF",
    "TUNER",
    "Trees",
)


Process: TypeAlias = subprocess.Popen[bytes] | Forked


@dataclass
class Rank:
    rank: int
    slot: int
    process: Process
    fds: RankFds  # its ends of the pipes
    stdin: BinaryIO
    stage: str = "import"
    finished: str | None = None
    done: bool = False
    pending: bytes = b""
    tail: deque[bytes] = field(default_factory=deque)
    tail_bytes: int = 0
    exited: bool = False


class Agent:
    """All that it knows, and its one loop."""

    def __init__(self, program: str, lines: Iterable[bytes]) -> None:
        self.program = program  # the zip that ranks run
        self.id = f"{os.uname().nodename}:{os.getpid()}:{os.urandom(4).hex()}"  # containers may share name and pid
        self.commands: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.wake_r, self.wake_w = os.pipe()
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.wake_r, selectors.EVENT_READ, self._woken)
        self.ranks: list[Rank] = []
        self.ahead: list[Rank] = []  # started, and not given a plan yet
        self.fork_server: ForkServer | None = None  # while ranks are still to be forked by it
        self.progress_fd = anonymous_file("smoldiag-progress")
        self.progress: mmap.mmap | None = None
        self.out = bytearray()
        self.plan: dict[str, Any] = {}  # of the ranks here
        self.lease_s = PATIENT_LEASE_S
        self.heard = time.monotonic()
        self.ending = False
        self.with_facts = True
        self.reading: Child | None = None
        os.set_blocking(1, False)
        threading.Thread(target=self._listen, args=(lines,), daemon=True).start()

    def run(self) -> None:
        self._first()
        self.send({"say": "hello", **hello(with_facts=self.with_facts)})
        while not self.ending:
            self.step()
        self.end_ranks()
        if self.reading is not None:
            self.reading.end()
        self.send({"say": "bye"})
        until = time.monotonic() + 1.0
        while self.out and time.monotonic() < until:
            self._flush()
            time.sleep(0.01)

    def step(self) -> None:
        for key, _ in self.selector.select(TICK_S):
            key.data()
        self._reap()
        self._flush()
        if self.reading is not None and time.monotonic() > self.reading.until:
            self._read()
        if time.monotonic() - self.heard > self.lease_s:
            self.ending = True  # the head is gone, or the way to it: nobody waits for us

    # -- what the head says

    def _listen(self, lines: Iterable[bytes]) -> None:
        with suppress(OSError, ValueError):
            for line in lines:
                self.commands.put(line)
                os.write(self.wake_w, b"x")
        self.commands.put(None)
        with suppress(OSError):
            os.write(self.wake_w, b"x")

    def _first(self) -> None:
        """The head's settings, before anything is read here."""
        line = self.commands.get()
        os.read(self.wake_r, 1)
        if line is None:
            self.ending = True
            return
        with suppress(ValueError):
            self.obey(json.loads(line))

    def _woken(self) -> None:
        os.read(self.wake_r, 4096)
        while not self.commands.empty():
            line = self.commands.get()
            if line is None:
                self.ending = True
                return
            self.heard = time.monotonic()
            with suppress(ValueError):
                self.obey(json.loads(line))

    def obey(self, command: dict[str, Any]) -> None:
        if command.get("to", self.id) != self.id:
            return
        do = command.get("do")
        if do == "settings":
            self.lease_s = command["lease_s"]
            self.with_facts = command.get("facts", True)
            if prepare := command.get("prepare"):
                self.prepare(**prepare)
        elif do == "ping":
            self.pong(command)
        elif do == "collect":
            self.collect(command)
        elif do == "start":
            self.start(command)
        elif do == "store":
            for r in self.ranks:
                if r.rank:
                    write_line(r, {"store": command["store"]})
        elif do == "tell":
            for r in self.ranks:
                if r.rank in command["ranks"]:
                    write_line(r, command["line"])
        elif do == "restart":
            self.restart(command)
        elif do == "logs":
            for r in self.ranks[:1]:
                self.send({"say": "log", "rank": r.rank, "text": self.nccl_log(r)})
        elif do == "stop":
            self.ending = True

    # -- facts

    def collect(self, command: dict[str, Any]) -> None:
        """Read the facts of this host with the environment that ranks would get here."""
        env = {k: v for k, v in os.environ.items() if k != "SMOLDIAG_FIXED_RANK"} | command["env"]
        from smoldiag.collect import guarded  # only a survey needs it

        plan = guarded.Plan(env=env, files=command["files"], seconds=command["seconds"], job=command["job"])
        self.reading = guarded.start(plan)
        self.selector.register(self.reading.fd, selectors.EVENT_READ, self._reading)

    def _reading(self) -> None:
        if self.reading is not None and self.reading.take():
            self._read()

    def _read(self) -> None:
        assert self.reading is not None
        self.selector.unregister(self.reading.fd)
        answer = self.reading.whole()
        self.reading = None
        self.send({"say": "facts", "z": base64.b64encode(zlib.compress(answer)).decode()})

    # -- ranks

    def prepare(self, *, count: int | None, on_cpu: int, env: dict[str, str]) -> None:
        """Start as many ranks as this host will probably get: they load torch while the head asks for facts."""
        count = count or num_gpus() or on_cpu
        with suppress(OSError):  # it will come again, and be told, when they are needed
            self.ahead = (
                self._forked(count, env) if forkserver.fits(count) else [self._new_rank(env) for _ in range(count)]
            )

    def start(self, plan: dict[str, Any]) -> None:
        seat = plan["seats"][self.id]
        count = seat["count"]
        self.ahead, surplus = self.ahead[:count], self.ahead[count:]
        end(surplus)
        if count == 0:
            return
        os.ftruncate(self.progress_fd, SLOT_BYTES * count)
        self.progress = mmap.mmap(self.progress_fd, SLOT_BYTES * count)
        self.plan = {**plan, "seat": seat}
        for slot in range(count):
            if r := self._seated(slot):
                self.ranks.append(r)

    def restart(self, command: dict[str, Any]) -> None:
        """End ranks; `again`: a fresh process for each."""
        for i, r in enumerate(self.ranks):
            if r.rank in command["ranks"]:
                r.exited = True  # nobody needs to hear of it
                end([r])
                if command["again"] and (fresh := self._seated(r.slot)):
                    self.ranks[i] = fresh

    def _seated(self, slot: int) -> Rank | None:
        """The rank of this slot with its plan; None where no process can be started."""
        plan, seat = self.plan, self.plan["seat"]
        rank, local_rank = seat["first"] + slot, seat["first_local"] + slot
        assert self.progress is not None
        SLOT.pack_into(self.progress, slot * SLOT_BYTES, 0, 0, 0)
        try:
            r = self.ahead.pop(0) if self.ahead else self._new_rank(plan["env"])
        except OSError as error:
            self._not_started(rank, error)
            return None
        r.rank, r.slot = rank, slot
        given = {
            key: plan[key]
            for key in (
                "program",
                "config",
                "world_size",
                "host_of_rank",
                "hosts",
                "backend",
                "interface",
                "timeout_s",
            )
        }
        given |= {"rank": rank, "local_rank": local_rank, "local_world_size": seat["local_world"]}
        given |= {"host_index": seat["host_index"], "slot": slot, "slots": seat["count"]}
        given |= {"record_fd": r.fds.record, "progress_fd": self.progress_fd, "parent_pid": os.getpid()}
        given |= {"environ": own_environ(plan, seat, r, local_rank)}
        write_line(r, given)
        return r

    def _not_started(self, rank: int, error: OSError) -> None:
        at = {"say": "exit", "rank": rank, "code": None, "signal": None, "stage": "start", "finished": None}
        self.send({**at, "said": [str(error)]})

    def _new_rank(self, variables: dict[str, str]) -> Rank:
        """A process that loads torch and waits for its plan. Raises OSError."""
        fds, ours = piped()
        try:
            process = self._process(fds, variables)
        except OSError:
            close([*ours, fds.log])
            raise
        finally:
            close(fds.pipes())
        return self._watched(process, fds, *ours)

    def _forked(self, count: int, variables: dict[str, str]) -> list[Rank]:
        """The same for all ranks of this host at once. Raises OSError."""
        made = [piped() for _ in range(count)]
        keep = (self.progress_fd, *program_fds(self.program))
        try:
            self.fork_server = forkserver.opened(self.program, [c for c, _ in made], environ(variables), keep=keep)
        except OSError:
            close(fd for fds, ours in made for fd in (*fds.all(), *ours))
            raise
        took = partial(self._forks, self.fork_server, variables)
        self.selector.register(self.fork_server.pids, selectors.EVENT_READ, took)
        return [self._watched(f, c, *ours) for f, (c, ours) in zip(self.fork_server.forked, made, strict=True)]

    def _forks(self, server: ForkServer, variables: dict[str, str]) -> None:
        """Ranks are forked. Those that were not are started by themselves, and read what they were told."""
        if not server.take():
            return
        self.selector.unregister(server.pids)
        os.close(server.pids)
        self.fork_server = None
        for r in [*self.ranks, *self.ahead]:
            if not isinstance(r.process, Forked) or r.process.started or r.process.unwanted:
                continue
            try:
                r.process = self._process(r.fds, variables)
            except OSError as error:
                r.process.kill()
                if r in self.ahead:  # it will come again, and be told, when it is needed
                    self.ahead.remove(r)
                else:
                    r.exited = True
                    self._not_started(r.rank, error)
        close(fd for f in server.forked for fd in f.fds.pipes())

    def _process(self, fds: RankFds, variables: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, self.program],
            stdin=fds.stdin,
            stdout=fds.stdout,
            stderr=subprocess.STDOUT,
            env=environ(variables),
            pass_fds=(fds.record, fds.log, self.progress_fd, *program_fds(self.program)),
        )

    def _watched(self, process: Process, fds: RankFds, stdin: int, stdout: int, record: int) -> Rank:
        r = Rank(rank=-1, slot=-1, process=process, fds=fds, stdin=os.fdopen(stdin, "wb"))
        self._watch(record, partial(self._records, r))
        self._watch(stdout, partial(keep_tail, r))
        return r

    def _watch(self, fd: int, take: Callable[[bytes], None]) -> None:
        os.set_blocking(fd, False)

        def readable() -> None:
            try:
                data = os.read(fd, 1 << 20)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                take(data)
            else:
                self.selector.unregister(fd)

        self.selector.register(fd, selectors.EVENT_READ, readable)

    def _records(self, r: Rank, data: bytes) -> None:
        *lines, r.pending = (r.pending + data).split(b"\n")
        r.pending = r.pending[-MAX_RECORD_BYTES:]
        for line in lines:
            try:
                record = json.loads(line)
                kind = record["kind"]
            except (ValueError, KeyError, TypeError):
                continue
            if kind == "stage":
                r.stage, r.finished = record["name"], record["finished"]
            elif kind == "done":
                r.done, r.finished = True, r.stage
                if all(x.done for x in self.ranks):
                    self.send({"say": "done", "ranks": len(self.ranks)})
            if kind == "stage" and r.rank == 0:
                self.send({"say": "stage", "name": r.stage, "finished": r.finished})
            elif kind not in KEPT_HERE and (kind not in FORWARDED_FROM_FIRST or r.slot == 0):
                self.send({"say": "record", "rank": r.rank, "record": record})

    def _reap(self) -> None:
        for r in self.ranks:
            if r.exited or (code := r.process.poll()) is None:
                continue
            r.exited = True
            self._drain(r)
            if r.done:
                continue
            self.send(
                {
                    "say": "exit",
                    "rank": r.rank,
                    "code": code if code >= 0 else None,
                    "signal": -code if code < 0 else None,
                    "stage": r.stage,
                    "finished": r.finished,
                    "said": said(r),
                }
            )

    def _drain(self, r: Rank) -> None:
        """What a rank wrote just before it ended."""
        for key in list(self.selector.get_map().values()):
            with suppress(KeyError, ValueError, OSError):
                key.data() if key.fd != self.wake_r else None

    def end_ranks(self) -> None:
        if self.fork_server is not None:
            self.fork_server.end()
        end([*self.ranks, *self.ahead])

    # -- what the head hears

    def pong(self, ping: dict[str, Any]) -> None:
        clock = {"clock": time.time(), "sent": ping["sent"]} if "sent" in ping else {}
        rows = []
        for r in self.ranks:
            counts = SLOT.unpack_from(self.progress, r.slot * SLOT_BYTES) if self.progress else (0, 0, 0)
            state = "X" if r.exited else process_state(r.process.pid)
            rows.append([r.rank, *counts, state, r.stage, r.finished])
        from smoldiag.collect import host as host_facts

        down = [name for name, carrier in host_facts.carriers().items() if not carrier]
        self.send({"say": "pong", "n": ping["n"], "ranks": rows, "no_carrier": down[:16], **clock})

    def nccl_log(self, r: Rank) -> str:
        from smoldiag import redact

        most = RANK0_LOG_BYTES if r.rank == 0 else OTHER_LOG_BYTES
        kept, size = [], 0
        with open(f"/proc/self/fd/{r.fds.log}", errors="replace") as log:
            for line in log:
                if any(word in line for word in LOG_WORDS) and size < most:
                    kept.append(line[:2048])
                    size += len(kept[-1])
        return redact.text("".join(kept))

    def send(self, message: dict[str, Any]) -> None:
        text = json.dumps(message)  # ASCII
        pieces = [text[i : i + PIECE] for i in range(0, len(text), PIECE)]
        self.out += "".join(
            f"\x1e{self.id}\x1f{int(number < len(pieces))}\x1f{piece}\n" for number, piece in enumerate(pieces, 1)
        ).encode()
        self._flush()

    def _flush(self) -> None:
        while self.out:
            try:
                del self.out[: os.write(1, self.out[: 1 << 16])]
            except BlockingIOError:
                return
            except OSError:  # nobody reads any more
                self.out.clear()
                self.ending = True


def hello(*, with_facts: bool) -> dict[str, Any]:
    from smoldiag.collect import host as host_facts  # here: the ranks start before it is loaded
    from smoldiag.facts import Host

    if with_facts:
        facts = host_facts.quick()
    else:
        name, aliases = host_facts.names(os.environ)
        facts = Host(name=name, aliases=aliases)
    spec = importlib.util.find_spec("torch")
    addresses = host_facts.addresses()
    return {
        "host": asdict(facts),
        "pid": os.getpid(),
        "born": born(),
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "torch": spec is not None,
        "addresses": addresses,
        "interfaces": [i for i, n in ((n.name, n) for n in facts.nics or ()) if n.kind == "ethernet" and n.up],
        "no_carrier": [name for name, carrier in host_facts.carriers().items() if not carrier],
        "slurm": {k: os.environ[k] for k in ("SLURM_JOB_ID", "SLURM_NODEID", "SLURM_PROCID") if k in os.environ},
        "fixed": os.environ.get("SMOLDIAG_FIXED_RANK"),
    }


def born() -> str:
    """When this process started, in clock ticks since boot: with its id, it names this process and no other."""
    try:
        with open("/proc/self/stat", "rb") as stat:
            return stat.read().rpartition(b") ")[2].split()[19].decode()
    except (OSError, IndexError):
        return ""


def num_gpus() -> int:
    """Of NVIDIA, as the driver lists them; 0 without a driver."""
    try:
        return len(os.listdir("/proc/driver/nvidia/gpus"))
    except OSError:
        return 0


def own_environ(plan: dict[str, Any], seat: dict[str, Any], r: Rank, local_rank: int) -> dict[str, str]:
    """Variables of one rank, which it sets itself before anything reads them."""
    own = {**plan["env"], "RANK": r.rank, "WORLD_SIZE": plan["world_size"], "LOCAL_RANK": local_rank}
    own["LOCAL_WORLD_SIZE"] = seat["local_world"]
    if seat.get("visible"):
        own["CUDA_VISIBLE_DEVICES"] = seat["visible"]
    if plan["backend"] == "nccl" and "NCCL_DEBUG_FILE" not in {**os.environ, **plan["env"]}:
        own |= {**NCCL_DEBUG, "NCCL_DEBUG_FILE": f"/proc/self/fd/{r.fds.log}"}
    return {k: str(v) for k, v in own.items()}


def end(ranks: Sequence[Rank]) -> None:
    """Kill them, and wait until they are gone."""
    for r in ranks:
        if r.process.poll() is None:
            with suppress(OSError):
                r.process.kill()  # SIGKILL ends stopped processes, too
    until = time.monotonic() + KILL_S
    for r in ranks:
        with suppress(subprocess.TimeoutExpired):
            r.process.wait(max(until - time.monotonic(), 0.01))


def write_line(r: Rank, line: dict[str, Any]) -> None:
    """To the stdin of a rank."""
    with suppress(OSError):
        r.stdin.write(json.dumps(line).encode() + b"\n")
        r.stdin.flush()


def keep_tail(r: Rank, data: bytes) -> None:
    r.tail.append(data)
    r.tail_bytes += len(data)
    while r.tail_bytes > TAIL_BYTES and len(r.tail) > 1:
        r.tail_bytes -= len(r.tail.popleft())


def said(r: Rank) -> list[str]:
    from smoldiag import redact

    text = b"".join(r.tail)[-TAIL_BYTES:].decode(errors="replace")
    return [redact.text(line)[:500] for line in text.splitlines() if line.strip()][-SAID_LINES:]


def process_state(pid: int) -> str:
    """R, S, D, T, t, Z as /proc says it; X where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b") ")[2][:1].decode()
    except OSError:
        return "X"


def anonymous_file(name: str) -> int:
    """A file that needs no writable path and leaves nothing behind."""
    try:
        return os.memfd_create(name, 0)
    except (AttributeError, OSError):
        handle, path = tempfile.mkstemp(prefix=name)
        os.unlink(path)
        return handle


def piped() -> tuple[RankFds, tuple[int, int, int]]:
    """Descriptors of a rank to be: its own, and our ends of its stdin, its stdout and its records."""
    (stdin_r, stdin_w), (stdout_r, stdout_w), (record_r, record_w) = os.pipe(), os.pipe(), os.pipe()
    log = anonymous_file("smoldiag-nccl")
    return RankFds(stdin=stdin_r, stdout=stdout_w, record=record_w, log=log), (stdin_w, stdout_r, record_r)


def close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def environ(variables: dict[str, str]) -> dict[str, str]:
    """The variables that a rank starts with: with one thread each, unless somebody said how many."""
    return {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ, **variables}


def program_fds(program: str) -> tuple[int, ...]:
    return (int(program.rpartition("/")[2]),) if program.startswith("/proc/self/fd/") else ()


def main(program: str, lines: BinaryIO) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    agent = Agent(program, lines)

    def leave(*_: object) -> None:
        agent.ending = True

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, leave)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        agent.run()
    finally:
        agent.end_ranks()
        os._exit(0)
