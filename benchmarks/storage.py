"""What a folder's storage gives: sequential and random reads and writes by threads and sizes, fsync, metadata, and a
checkpoint's part, on all hosts at the same time.

Space is looked at before anything is written. All is written below one folder of ours; data files lose their names as
soon as they are open, and a process of its own removes the folder whenever and however this one ends.
"""

import errno
import mmap
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.compute import device
from smoldiag import ranks
from smoldiag.collect import mounts
from smoldiag.facts.probes import CheckpointTime, Storage, StorageRate
from smoldiag.model.stats import median
from smoldiag.ranks import Rank

DEFAULT_BUDGET_S = 30.0
PREFIX = "smoldiag-storage-"
LEAST_FREE_BYTES = 64 << 20  # below it a disk is full
MOST_OF_FREE = 0.2  # of the free space, for all that is written at the same time by all hosts
MOST_BYTES = 1 << 30  # of data files on one host
SEQUENTIAL_BYTES = (64 << 10, 1 << 20, 8 << 20)
RANDOM_BYTES = 4 << 10
THREADS = (1, 4, 16)
ALIGNED = 4096  # O_DIRECT: the logical block size is 512 or 4096
PIECE_BYTES = 8 << 20  # of a checkpoint
FSYNCS, FILES = 50, 200  # at most
SHARES = {
    "alone": 0.05,
    "write": 0.25,
    "fsync": 0.05,
    "metadata": 0.10,
    "checkpoint": 0.20,
    "read": 0.20,
    "random": 0.15,
}  # of the budget
PATIENCE = 2  # times its share that a phase may take where single operations are slow
FULL = (errno.ENOSPC, errno.EDQUOT)
REMOVE_S = 5.0
STALE_S = 4 * 3600.0  # far longer than a probe: containers may share a name and see other processes
# Waits until its input ends, with whoever wrote to it, and removes the folder if it was told that there is one. NFS
# keeps unlinked files for a moment.
JANITOR = """
import os, shutil, sys, time
for _ in range(50 if sys.stdin.read() else 0):
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    if not os.path.lexists(sys.argv[1]):
        break
    time.sleep(0.1)
"""


@dataclass
class Bench:
    """One host's part, while it runs."""

    me: Rank
    result: Storage
    folder: Path | None = None
    janitor: "subprocess.Popen[bytes] | None" = None
    files: list[int] = field(default_factory=list)  # open, and without names
    file_bytes: int = 0
    rates: list[StorageRate] = field(default_factory=list)

    @property
    def works(self) -> bool:
        return self.folder is not None and not self.result.refused

    def give_up(self, why: str, error: object) -> None:
        self.result = replace(self.result, refused=why, error=str(error)[:300])


def measure(me: Rank, config: Mapping[str, Any]) -> dict[str, Any]:
    """A `Storage` as a dictionary. Of `config`: path; budget_s; model_bytes, of a whole checkpoint."""
    budget_s = float(config.get("budget_s", DEFAULT_BUDGET_S))
    until = time.monotonic() + budget_s
    path, hosts = Path(str(config["path"])), len(set(me.host_of_rank)) or 1
    bench = Bench(me, looked_at(me, path, hosts, int(config.get("model_bytes") or 0)))
    if me.local_rank:
        bench.result = replace(bench.result, skipped={"all": "the first rank of the host measures"})
    names = folder_names(me)
    try:
        if not bench.result.refused and me.local_rank == 0:
            remove_stale(path)
            guarded(bench, lambda: make_folder(bench, path / names[me.rank]))
        there = gathered(me, int(bench.works))
        if bench.works:
            bench.result = replace(bench.result, shared=sees_others(me, path, names, there))
        for phase, work in PHASES.items():
            together(me)
            if bench.works and time.monotonic() > until:
                bench.result = replace(bench.result, skipped={**bench.result.skipped, phase: "no time was left"})
            elif bench.works:
                guarded(bench, partial(work, bench, budget_s * SHARES[phase]))
        together(me)
    finally:
        clean(bench)
    return asdict(replace(bench.result, rates=tuple(bench.rates)))


def together(me: Rank) -> None:
    if me.world_size > 1:
        ranks.barrier(me)


def guarded(bench: Bench, work: Callable[[], None]) -> None:
    """What fails here is a result: the others go on, and meet this host at their barriers."""
    try:
        work()
    except OSError as error:
        bench.give_up("space" if error.errno in FULL else reason_of(error), error)


def reason_of(error: OSError) -> str:
    known = {errno.EROFS: "readonly", errno.EACCES: "permission", errno.EPERM: "permission", errno.ENOENT: "missing"}
    return known.get(error.errno or 0, "failed")


# -- before anything is written


def looked_at(me: Rank, path: Path, hosts: int, model_bytes: int) -> Storage:
    """What the file system says of itself, and whether there is room for the probe."""
    kind, source = mounts.of(path)
    found = Storage(
        device=device(me),
        path=str(path),
        hosts=hosts,
        file_system=kind,
        source=source,
        needed_bytes=LEAST_FREE_BYTES,
        model_bytes=model_bytes or None,
    )
    try:
        told = os.statvfs(path)
        free = told.f_bavail * told.f_frsize
        found = replace(
            found,
            size_bytes=told.f_blocks * told.f_frsize,
            free_bytes=free,
            free_inodes=told.f_favail if told.f_files else None,
        )
        if not path.is_dir():
            return replace(found, refused="missing", error="is no folder")
    except OSError as error:
        return replace(found, refused=reason_of(error), error=str(error))
    if told.f_flag & os.ST_RDONLY:
        return replace(found, refused="readonly", error="mounted read-only")
    if not os.access(path, os.W_OK | os.X_OK):
        return replace(found, refused="permission", error=f"user {os.geteuid()} may not write there")
    if free < LEAST_FREE_BYTES or found.free_inodes == 0:
        return replace(found, refused="space", error=f"{free} bytes and {found.free_inodes} inodes are free")
    return found


def folder_names(me: Rank) -> list[str]:
    """Of every rank, known to all: whose host and process it is."""
    return [f"{PREFIX}{host_of(me, rank)}-{pid}" for rank, pid in enumerate(gathered(me, os.getpid()))]


def gathered(me: Rank, mine: int) -> list[int]:
    """A number of every rank, once all have come here."""
    numbers = torch.zeros(me.world_size, dtype=torch.int64, device=me.device)
    numbers[me.rank] = mine
    if me.world_size > 1:
        ranks.entering()
        dist.all_reduce(numbers)
        ranks.left()
    return [int(number) for number in numbers.tolist()]


def host_of(me: Rank, rank: int) -> str:
    return me.hosts[me.host_of_rank[rank]].replace("/", "_")


def remove_stale(path: Path) -> None:
    """Old folders that a process of ours on this host left behind, whose number no process has any more."""
    for folder in path.glob(f"{PREFIX}*"):
        host, _, pid = folder.name.removeprefix(PREFIX).rpartition("-")
        with suppress(OSError):
            old = time.time() - folder.stat().st_mtime > STALE_S
            if old and host == socket.gethostname() and pid.isdigit() and not Path(f"/proc/{pid}").exists():
                shutil.rmtree(folder)


def watched(folder: Path) -> "subprocess.Popen[bytes]":
    """Makes the folder, and the process that removes it when this one is gone. Raises OSError."""
    janitor = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", JANITOR, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        bufsize=0,
    )
    assert janitor.stdin
    try:
        folder.mkdir()
        janitor.stdin.write(b"made")
    except OSError:
        dismissed(janitor)
        raise
    return janitor


def dismissed(janitor: "subprocess.Popen[bytes]") -> None:
    """It does its work, and is waited for."""
    if janitor.stdin:
        janitor.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        janitor.wait(REMOVE_S)


def make_folder(bench: Bench, folder: Path) -> None:
    """The folder, and data files without names in it, as many as there are threads at most."""
    bench.janitor = watched(folder)
    bench.folder = folder
    free = (bench.result.free_bytes or 0) / bench.result.hosts  # they may all write to the same file system
    bench.file_bytes = int(min(free * MOST_OF_FREE / 2, MOST_BYTES)) // THREADS[-1] // PIECE_BYTES * PIECE_BYTES
    bench.file_bytes = max(bench.file_bytes, SEQUENTIAL_BYTES[1])
    bench.result = replace(bench.result, needed_bytes=bench.file_bytes * THREADS[-1])
    direct = takes_direct(folder / "direct")
    for number in range(THREADS[-1]):
        name = folder / str(number)
        bench.files.append(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | (os.O_DIRECT if direct else 0), 0o600))
        name.unlink()
    bench.result = replace(bench.result, direct=direct)


def takes_direct(name: Path) -> bool:
    """Whether O_DIRECT works here. Some file systems refuse it when a file is opened, some when it is written."""
    handle = -1
    try:
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)
        os.pwritev(handle, [mmap.mmap(-1, ALIGNED)], 0)
        return True
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return False
    finally:
        if handle >= 0:
            os.close(handle)
        name.unlink(missing_ok=True)


def sees_others(me: Rank, path: Path, names: list[str], there: list[int]) -> bool | None:
    """Whether the folders that other hosts have made are seen here; None where no other host made one."""
    own = me.host_of_rank[me.rank]
    others = [names[r] for r in range(me.world_size) if there[r] and me.host_of_rank[r] != own]
    return all((path / name).is_dir() for name in dict.fromkeys(others)) if others else None


# -- the phases


def alone(bench: Bench, share_s: float) -> None:
    """The first host writes by itself: what one client gets where nobody else asks."""
    if bench.me.rank == 0 and bench.result.hosts > 1:
        took = transfer(bench, "write", "sequential", THREADS[-1], SEQUENTIAL_BYTES[1], share_s)
        bench.result = replace(bench.result, alone=took)


def write(bench: Bench, share_s: float) -> None:
    _grid(bench, "write", share_s)


def read(bench: Bench, share_s: float) -> None:
    _grid(bench, "read", share_s)


def _grid(bench: Bench, operation: str, share_s: float) -> None:
    points = [(threads, size) for size in SEQUENTIAL_BYTES for threads in THREADS if size <= bench.file_bytes]
    until = time.monotonic() + PATIENCE * share_s
    for threads, size in points:
        if time.monotonic() > until:
            skipped = {**bench.result.skipped, f"{operation} by {threads} threads of {size} bytes": "no time was left"}
            bench.result = replace(bench.result, skipped=skipped)
            continue
        bench.rates.append(transfer(bench, operation, "sequential", threads, size, share_s / len(points)))


def random(bench: Bench, share_s: float) -> None:
    for operation in ("read", "write"):
        for threads in (THREADS[0], THREADS[-1]):
            bench.rates.append(transfer(bench, operation, "random", threads, RANDOM_BYTES, share_s / 4))


def transfer(bench: Bench, operation: str, pattern: str, threads: int, io_bytes: int, share_s: float) -> StorageRate:
    """Each thread in a file of its own, until the time is over. Raises OSError as its threads do."""
    lanes = [_Lane(bench, handle, operation, pattern, io_bytes) for handle in bench.files[:threads]]
    start = time.perf_counter()
    running = [threading.Thread(target=lane.run, args=(start + share_s,), daemon=True) for lane in lanes]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    seconds = time.perf_counter() - start
    for lane in lanes:
        if lane.error:
            raise lane.error
    return StorageRate(
        operation=operation,
        pattern=pattern,
        threads=threads,
        io_bytes=io_bytes,
        operations=sum(len(lane.seconds) for lane in lanes),
        seconds=seconds,
        latency_us=median(took) * 1e6 if (took := [s for lane in lanes for s in lane.seconds]) else None,
    )


class _Lane:
    """One thread and its file."""

    def __init__(self, bench: Bench, handle: int, operation: str, pattern: str, io_bytes: int) -> None:
        self.handle, self.io_bytes = handle, io_bytes
        self.buffer = mmap.mmap(-1, io_bytes)  # aligned to pages, as O_DIRECT wants
        self.buffer.write(os.urandom(ALIGNED) * (io_bytes // ALIGNED))  # nothing that compresses to nothing
        self.operate: Callable[[int, Any, int], int] = os.pwritev if operation == "write" else os.preadv
        self.writes, self.through_cache = operation == "write", not bench.result.direct
        reachable = os.fstat(handle).st_size if operation == "read" or pattern == "random" else bench.file_bytes
        self.slots = reachable // io_bytes  # what was never written would be read from nowhere
        self.step = 1 if pattern == "sequential" else _coprime_step(self.slots)
        self.seconds: list[float] = []
        self.error: OSError | None = None

    def run(self, until: float) -> None:
        try:
            self._prepare()
            slot = 0
            while self.slots and (not self.seconds or time.perf_counter() < until):
                began = time.perf_counter()
                self.operate(self.handle, [self.buffer], slot * self.io_bytes)
                self.seconds.append(time.perf_counter() - began)
                slot = (slot + self.step) % self.slots
            if self.writes and self.through_cache:
                os.fdatasync(self.handle)
        except OSError as error:
            self.error = error

    def _prepare(self) -> None:
        if self.through_cache:
            os.posix_fadvise(self.handle, 0, 0, os.POSIX_FADV_DONTNEED)


def _coprime_step(slots: int) -> int:
    """A stride that visits every slot once, far from the one before: slots of a file are powers of two times 1 MiB."""
    step = int(slots * 0.618) | 1
    while slots % step == 0 and step > 1:
        step += 2
    return step


def fsync(bench: Bench, share_s: float) -> None:
    """A small append made durable, again and again, as a log or a small checkpoint is."""
    assert bench.folder
    until = time.monotonic() + share_s
    took: list[float] = []
    handle = os.open(bench.folder / "fsync", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.unlink(bench.folder / "fsync")
        block = os.urandom(ALIGNED)
        while not took or (time.monotonic() < until and len(took) < FSYNCS):
            began = time.perf_counter()
            os.write(handle, block)
            os.fsync(handle)
            took.append((time.perf_counter() - began) * 1e6)
    finally:
        os.close(handle)
    bench.result = replace(bench.result, fsync_us=tuple(took))


def metadata(bench: Bench, share_s: float) -> None:
    """Empty files made, looked at and removed by one thread, as data sets of many small files are read."""
    assert bench.folder
    names = [bench.folder / f"file-{number}" for number in range(FILES)]
    found = {}
    for what, act in (("create", _create), ("stat", os.stat), ("unlink", os.unlink)):
        began = time.perf_counter()
        until = began + (share_s / 3 if what == "create" else share_s)
        done = 0
        for name in names:
            act(name)
            done += 1
            if what != "unlink" and time.perf_counter() > until:
                break
        found[what] = done / (time.perf_counter() - began)
        names = names[:done]
    bench.result = replace(bench.result, metadata=found)


def _create(name: Path) -> None:
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def checkpoint(bench: Bench, share_s: float) -> None:
    """This host's part through the page cache, as frameworks write it, then fsync, then read back."""
    assert bench.folder
    wanted = -(-(bench.result.model_bytes or 0) // bench.result.hosts)
    if not wanted:
        skipped = {**bench.result.skipped, "checkpoint": "no size of a model was given"}
        bench.result = replace(bench.result, skipped=skipped)
        return
    free = (bench.result.free_bytes or 0) / bench.result.hosts
    most = min(wanted, int(free * MOST_OF_FREE))
    piece = os.urandom(ALIGNED) * (PIECE_BYTES // ALIGNED)
    handle = os.open(bench.folder / "checkpoint", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.unlink(bench.folder / "checkpoint")
        began = time.perf_counter()
        written = 0
        while written < most and (not written or time.perf_counter() < began + share_s / 2):
            written += os.write(handle, piece[: most - written])
        write_s = time.perf_counter() - began
        os.fsync(handle)
        fsync_s = time.perf_counter() - began - write_s
        read_s = _read_back(handle, written, until=time.perf_counter() + share_s / 2)
    finally:
        os.close(handle)
    took = CheckpointTime(num_bytes=written, wanted_bytes=wanted, write_s=write_s, fsync_s=fsync_s, read_s=read_s)
    bench.result = replace(bench.result, checkpoint=took)


def _read_back(handle: int, num_bytes: int, *, until: float) -> float | None:
    """Seconds; None where the time is over before all is read."""
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    began, done = time.perf_counter(), 0
    buffer = bytearray(PIECE_BYTES)
    while done < num_bytes:
        if time.perf_counter() > until:
            return None
        done += os.preadv(handle, [buffer], done) or num_bytes
    return time.perf_counter() - began


PHASES: dict[str, Callable[[Bench, float], None]] = {
    f.__name__: f for f in (alone, write, fsync, metadata, checkpoint, read, random)
}


def clean(bench: Bench) -> None:
    for handle in bench.files:
        with suppress(OSError):
            os.close(handle)
    if bench.folder is not None:
        shutil.rmtree(bench.folder, ignore_errors=True)
    if bench.janitor is not None:
        dismissed(bench.janitor)


def main() -> None:
    me = ranks.join()
    ranks.record("storage", measure(me, me.config))
    ranks.leave()


if __name__ == "__main__":
    main()
