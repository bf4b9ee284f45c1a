"""Reading small files below a root: bounded, and None for what is not there."""

import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
MOST = 1 << 20  # bytes of one file; the longest here is /proc/cpuinfo of a machine with hundreds of threads
NAME = re.compile(r"[\w.@:+-]{1,128}", re.ASCII)
BLANKS = " \t\r\n\0"  # tar fills files of sysfs up to the 4096 bytes that they claim to have
MOST_LINKS = 40  # as the kernel: MAXSYMLINKS


def text(path: Path, most: int = MOST) -> str | None:
    """Its first `most` bytes, without blanks and zeros around. None: not there, or not readable."""
    found = content(path, most)
    return None if found is None else found.decode(errors="replace").strip(BLANKS)


def name(path: Path) -> str | None:
    """A file that holds one name, which may be looked for in a folder afterwards."""
    found = text(path, 256)
    return found if found and NAME.fullmatch(found) and found not in (".", "..") else None


def content(path: Path, most: int = MOST) -> bytes | None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        parts = []
        while most > 0 and (part := os.read(handle, most)):
            parts.append(part)
            most -= len(part)
        return b"".join(parts)
    except OSError:
        return None
    finally:
        os.close(handle)


def number(path: Path) -> int | None:
    """A file that holds one integer, decimal or 0x..."""
    try:
        return int(text(path, 64) or "", 0)
    except ValueError:
        return None


def process(root: Path, pid: int | None) -> str:
    """Name of the folder of /proc to read: in a copied tree `self` may lead nowhere, process 1 is the next best."""
    if pid is not None:
        return str(pid)
    return next((who for who in ("self", "1") if (root / "proc" / who).is_dir()), "self")


def listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def link_name(path: Path) -> str | None:
    """Name of what a symlink of sysfs leads to: the driver, the master, the group."""
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return None


def below(root: Path, path: str) -> Path:
    """`path` of the host, with every symlink followed inside the root, absolute ones too."""
    if root == Path("/"):
        return Path(os.path.realpath(path))
    done: list[str] = []
    left = [part for part in path.split("/") if part][::-1]
    links = 0
    while left:
        part = left.pop()
        if part == "..":
            done[-1:] = []
            continue
        here = root.joinpath(*done, part)
        if links < MOST_LINKS and here.is_symlink():
            links += 1
            target = os.readlink(here)
            if target.startswith("/"):
                done = []
            left += [p for p in target.split("/") if p not in ("", ".")][::-1]
        else:
            done.append(part)
    return root.joinpath(*done)


def within(seconds: float, calls: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """What each call gives, for those that are through in time: a dead network mount answers never."""
    answers: dict[str, T] = {}

    def ask(key: str, call: Callable[[], T]) -> None:
        with suppress(OSError, ValueError):
            answers[key] = call()

    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in calls.items()]
    until = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0))
    return dict(answers)
