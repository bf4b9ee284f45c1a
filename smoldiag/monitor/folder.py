"""A run folder that the ranks of a job write by themselves: a file per host, appended to by its ranks."""

import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from smoldiag import redact
from smoldiag.collect import guarded
from smoldiag.collect import host as host_facts

FLUSH_S = 2.0
FACTS_S = 5.0  # at start and end of the process; a driver that hangs takes so long and no longer
SCHEMA = "smoldiag.run/1"


class Writer:
    """Appends the records of this rank. What can't be written is lost, and counted; the job goes on."""

    def __init__(self, folder: Path, *, rank: int, world_size: int, host: str, local_rank: int) -> None:
        self.folder, self.rank, self.world_size, self.host = folder, rank, world_size, host
        self.lost = 0
        self.lines: list[str] = []
        self.flushed = time.monotonic()
        try:
            (folder / "steps").mkdir(parents=True, exist_ok=True)
            (folder / "hosts").mkdir(exist_ok=True)
        except OSError:
            self.lost += 1
        self.first_here = local_rank == 0
        if self.first_here:
            self._once(folder / "hosts" / f"{host}.json", facts())

    def take(self, kind: str, what: Mapping[str, Any]) -> None:
        self.lines.append(json.dumps({"kind": kind, **what}) + "\n")
        if time.monotonic() - self.flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """One write to the end of the host's file: lines of several ranks do not mix."""
        lines, self.lines = self.lines, []
        self.flushed = time.monotonic()
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            file = os.open(self.folder / "steps" / f"{self.host}.jsonl", flags, 0o644)
        except OSError:
            self.lost += len(lines)
            return
        try:
            data = "".join(lines).encode()
            if os.write(file, data) < len(data):
                self.lost += 1  # the disk is full
        except OSError:
            self.lost += len(lines)
        finally:
            os.close(file)

    def end(self) -> None:
        """What is left, and the counters of this host as they are now."""
        self.flush()
        if self.first_here:
            with suppress(OSError):
                (self.folder / "facts").mkdir(exist_ok=True)
            self._once(self.folder / "facts" / f"{self.host}-after.json", facts())

    def describe(self, device: str) -> None:
        """run.json, by rank 0."""
        if self.rank == 0:
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            what = {
                "schema": SCHEMA,
                "created": now,
                "command": "monitor",
                "config": {},
                "attempts": [{"started": now, "command": redact.text(" ".join(sys.argv))[:2000]}],
                "world": {"ranks": self.world_size, "hosts": [self.host]},
                "run": {"device": device},
            }
            self._once(self.folder / "run.json", what)

    def _once(self, path: Path, what: Any) -> None:
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            part.write_text(json.dumps(what))
            os.replace(part, path)
        except (OSError, TypeError, ValueError):
            self.lost += 1
            with suppress(OSError):
                part.unlink()


def facts() -> Any:
    """Of this host, by a child that may hang without us."""
    return json.loads(guarded.read(guarded.Plan(seconds=FACTS_S)))["host"]


def place() -> tuple[int, int, int, str]:
    """(rank, world size, local rank, host) as the launcher says it; alone where there is none."""

    def number(*names: str) -> int | None:
        return next((int(v) for n in names if (v := os.environ.get(n, "")).isdecimal()), None)

    rank = number("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK") or 0
    world = number("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE") or 1
    local = number("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK") or 0
    return rank, world, local, host_facts.names(os.environ)[0] or socket.gethostname()
