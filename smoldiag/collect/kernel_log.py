"""The kernel log of this machine, from the first place where it is readable."""

import ctypes
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from smoldiag.facts import KernelLog
from smoldiag.model import kernel_log

FILES = ("var/log/dmesg", "var/log/kern.log", "var/log/messages", "var/log/syslog")  # Debian, Red Hat, Ubuntu
MIXED = {"messages", "syslog"}  # hold the lines of every program
MAX_BYTES = 4 * 2**20  # from the end of a file; the kernel's own buffer is smaller
MAX_SECONDS = 1.0  # for records that keep coming
MAX_RECORD = 8192  # the kernel's own limit for one record of /dev/kmsg
READ_ALL, SIZE_BUFFER = 3, 10  # syslog(2): SYSLOG_ACTION_*


def read(*, root: Path = Path("/")) -> KernelLog:
    """What it says that concerns training. Raises OSError with the reasons, where none of the places is readable."""
    why = []
    places: list[tuple[str, Callable[[Path], str]]] = [("dev/kmsg", _records), *((name, _file) for name in FILES)]
    if root == Path("/"):
        places.insert(1, ("dmesg", _buffer))
    for name, text in places:
        where = name if text is _buffer else f"/{name}"
        try:
            return kernel_log.read(text(root / name), where=where)
        except OSError as error:
            why.append(f"{where}: {error.strerror or error}")
    raise OSError("kernel log: " + "; ".join(why))


def _records(device: Path) -> str:
    """The records of /dev/kmsg, without waiting for the next one; in a captured tree it is a file."""
    handle = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISCHR(os.fstat(handle).st_mode):
            return _file(device)
        records, until = [], time.monotonic() + MAX_SECONDS
        while time.monotonic() < until:
            try:
                records.append(os.read(handle, MAX_RECORD))
            except BlockingIOError:
                break
            except BrokenPipeError:  # overwritten while we read: the next read goes on with the oldest one left
                continue
        return b"".join(records).decode(errors="replace")
    finally:
        os.close(handle)


def _buffer(_: Path) -> str:
    """The kernel's buffer, as `dmesg` asks for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = libc.klogctl(SIZE_BUFFER, None, 0)
    held = ctypes.create_string_buffer(min(max(size, 1), MAX_BYTES))
    length = libc.klogctl(READ_ALL, held, len(held))
    if length < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return held.raw[:length].decode(errors="replace")


def _file(path: Path) -> str:
    """Its last lines; of a file that holds every program's, the kernel's."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - MAX_BYTES, 0))
        text = file.read(MAX_BYTES).decode(errors="replace")
    if path.name not in MIXED:
        return text
    return "\n".join(line if " kernel: " in line else "" for line in text.splitlines())  # numbers of lines stay
