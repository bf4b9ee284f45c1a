"""Facts read by a child that can be killed: a driver, mount or service that hangs must not hang whoever asks.

Carried to the hosts. The child writes one JSON object: {"host": {...}, "files": [{"path", "text"}]}; what it had read
until then where something hangs, with the place that hangs in `unread`.
"""

import json
import os
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from smoldiag import redact
from smoldiag.collect import gpus, job, metadata, nics
from smoldiag.collect import host as host_facts
from smoldiag.facts import Gpu, Host

COUNTING_S = 5.0  # between the two readings of the counters of a running job
READING_SHARE = 0.7  # of the time for a host, for the stacks of its ranks
GRACE_S = 1.0  # from the child's own deadline until it is killed
MAX_FILE_BYTES = 8 * 2**20  # of a log: its head and its end are kept
HEAD_BYTES = 2**20
MAX_FILES = 64


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to read."""

    root: str = "/"
    env: Mapping[str, str] | None = None  # as the ranks would get it; None: this process's
    files: Sequence[str] = ()  # logs that were named
    job: str | None = None  # a running job: its ranks, too
    seconds: float = 20.0


@dataclass
class Child:
    """A child that reads; its answer comes through `fd`."""

    plan: Plan
    pid: int
    fd: int
    until: float
    answer: bytearray = field(default_factory=bytearray)

    def take(self) -> bool:
        """Read what is there. True at the end of the answer."""
        try:
            piece = os.read(self.fd, 1 << 20)
        except BlockingIOError:
            return False
        except OSError:
            piece = b""
        self.answer += piece
        return not piece

    def whole(self) -> bytes:
        """End the child: its answer, or one that says that there was none."""
        self.end()
        return bytes(self.answer) if self.answer.endswith(b"}\n") else nothing(self.plan)

    def end(self) -> None:
        """Kill it where it still runs; do not wait for one that is stuck in the kernel."""
        with suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)  # with the commands that it runs
        with suppress(OSError):
            os.close(self.fd)
        for _ in range(20):
            with suppress(OSError):
                if os.waitpid(self.pid, os.WNOHANG)[0]:
                    return
            time.sleep(0.005)


def start(plan: Plan) -> Child:
    """Fork a child that carries out the plan."""
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a thread that only reads a pipe holds no lock we need
        pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            os.close(ours)
            _answer(plan, theirs)
        finally:
            os._exit(0)
    with suppress(OSError):
        os.setpgid(pid, pid)  # whoever of the two comes first
    os.close(theirs)
    os.set_blocking(ours, False)
    return Child(plan=plan, pid=pid, fd=ours, until=time.monotonic() + plan.seconds + GRACE_S)


def read(plan: Plan) -> bytes:
    """The child's answer, or one that says that there was none. Takes `plan.seconds` and a little at most."""
    child = start(plan)
    try:
        while (left := child.until - time.monotonic()) > 0:
            if select.select([child.fd], [], [], left)[0] and child.take():
                break
    finally:
        answer = child.whole()
    return answer


def nothing(plan: Plan) -> bytes:
    why = f"reading the facts of this host did not end within {plan.seconds:.0f} s"
    return _encoded(_unfinished(plan, {}, {}, why), [])


def _answer(plan: Plan, fd: int) -> None:
    found: dict[str, Any] = {}
    unread: dict[str, str] = {}
    writing = threading.Lock()
    reader = threading.main_thread().ident

    def give_up() -> None:
        with writing:
            frame = sys._current_frames().get(reader or 0)
            why = f"did not answer within {plan.seconds:.0f} s ({_place(frame)})"
            _write(fd, _encoded(_unfinished(plan, dict(found), dict(unread), why), []))
            os._exit(0)

    timer = threading.Timer(plan.seconds, give_up)
    timer.daemon = True
    timer.start()
    with suppress(OSError):
        os.nice(5)  # a running job comes first
    try:
        host = _with_instance(plan, _host(plan, found, unread))
    except Exception as error:  # what was read until then is kept
        host = _unfinished(plan, found, unread, f"reading failed: {type(error).__name__}: {error}"[:300])
    files = [_file(path) for path in plan.files[:MAX_FILES]]
    with writing:
        _write(fd, _encoded(host, files))


def _host(plan: Plan, found: dict[str, Any], unread: dict[str, str]) -> Host:
    if plan.job is None:
        return host_facts.collect(root=Path(plan.root), env=plan.env, found=found, unread=unread)
    began = time.monotonic()
    nics_before, gpus_before = nics.nics(Path(plan.root)), _gpus(plan)
    node = (os.environ if plan.env is None else plan.env).get("SLURMD_NODENAME")
    ranks = job.ranks(plan.job, root=Path(plan.root), node=node)
    pid = ranks[0].pid if ranks else None
    host = host_facts.collect(root=Path(plan.root), env=plan.env, pid=pid, found=found, unread=unread)
    found["processes"] = job.looked_at(ranks, root=Path(plan.root), until=began + plan.seconds * READING_SHARE)
    time.sleep(max(began + min(COUNTING_S, plan.seconds / 2) - time.monotonic(), 0))
    seconds = time.monotonic() - began
    increase = job.increase((gpus_before, _gpus(plan)), (nics_before, nics.nics(Path(plan.root))), seconds=seconds)
    if not ranks:
        unread["processes"] = f"no rank of job {plan.job} runs here that we may read"
    return replace(host, processes=found["processes"] if ranks else None, increase=increase, unread=unread)


def _with_instance(plan: Plan, host: Host) -> Host:
    """With what the cloud says of this instance: what its support asks for first."""
    if plan.root != "/":
        return host
    try:
        said = metadata.of_host(host.dmi, environ=plan.env if plan.env is not None else os.environ)
    except OSError as error:
        return replace(host, unread={**host.unread, "metadata": str(error)})
    return replace(host, ids={**(host.ids or {}), **said}) if said else host


def _gpus(plan: Plan) -> Sequence[Gpu] | None:
    try:
        return gpus.read(root=Path(plan.root))[0]
    except (OSError, ValueError):
        return None


def _unfinished(plan: Plan, found: Mapping[str, Any], unread: Mapping[str, str], why: str) -> Host:
    name, aliases = host_facts.names(plan.env if plan.env is not None else os.environ, Path(plan.root))
    known = {k: v for k, v in found.items() if v is not None} | {"name": name, "aliases": aliases}
    missing = set(Host.__dataclass_fields__) - set(known) - set(unread) - {"created", "unread"}
    return Host(**known, unread={**unread, **dict.fromkeys(sorted(missing), why)})


def _place(frame: Any) -> str:
    """Where the reader stands: the innermost function of ours."""
    while frame is not None:
        folder, _, name = frame.f_code.co_filename.rpartition("/")
        if "smoldiag" in folder:
            return f"{frame.f_code.co_name} in {name}"
        frame = frame.f_back
    return "unknown where"


def _file(path: str) -> dict[str, str]:
    """A log, redacted as a whole; of a long one its head and its end."""
    try:
        size = os.stat(path).st_size
        with open(path, "rb") as file:
            if size <= MAX_FILE_BYTES:
                text = file.read(MAX_FILE_BYTES).decode(errors="replace")
            else:
                head = file.read(HEAD_BYTES)
                file.seek(size - (MAX_FILE_BYTES - HEAD_BYTES))
                left_out = f"\n[... {size - MAX_FILE_BYTES} bytes left out ...]\n"
                text = redact.text(head.decode(errors="replace")) + left_out
                text += redact.text(file.read(MAX_FILE_BYTES).decode(errors="replace"))
                return {"path": path, "text": text}
    except OSError as error:
        return {"path": path, "text": "", "error": error.strerror or str(error)}
    return {"path": path, "text": redact.text(text)}


def _encoded(host: Host, files: list[dict[str, str]]) -> bytes:
    return json.dumps({"host": asdict(host), "files": files}).encode() + b"\n"


def _write(fd: int, data: bytes) -> None:
    with suppress(OSError):
        while data:
            data = data[os.write(fd, data) :]
