"""Earlier runs: one JSON file each in a folder, which may lie on NFS or Lustre and be shared by many jobs.

`record` writes a run to a hidden file of its own and renames it: readers see it whole or not at all, and nobody waits
for a lock. `read` gives all runs, the oldest first; `model.history.rows` makes the table of nodes from them, and
`render.history` shows it (`smoldiag preflight --history DIR --show`).
"""

import os
import re
import socket
from contextlib import suppress
from pathlib import Path

import msgspec

from smoldiag.errors import SmoldiagError
from smoldiag.facts.acceptance import History, PastRun

MOST_BYTES = 16 << 20  # of one file; 4,096 hosts with a dozen figures are about 2 MB
MOST_RUNS = 2000  # the newest
SUFFIX = ".smoldiag.json"


def record(folder: Path, run: PastRun) -> Path:
    """The file that was written. Raises SmoldiagError where it can't be."""
    moment = re.sub(r"\W", "", run.created) or "undated"
    job = re.sub(r"[^\w.-]", "_", run.job)[:40] or "nojob"
    host = re.sub(r"[^\w.-]", "_", socket.gethostname())[:60]
    name = f"{moment}-{job}-{host}-{os.getpid()}-{os.urandom(3).hex()}{SUFFIX}"
    part = folder / f".{name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(part, "xb") as file:
            file.write(msgspec.json.encode(run))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, folder / name)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise SmoldiagError(f"the history in {folder} can't be written: {error.strerror or error}") from None
    return folder / name


def read(folder: Path) -> History:
    """Raises SmoldiagError where the folder can't be read; a file that can't is left out, with a note."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.name.endswith(SUFFIX) and not e.name.startswith("."))
    except OSError as error:
        raise SmoldiagError(
            f"{folder} can't be read: {error.strerror or error}", hint="a folder of --history"
        ) from None
    notes = [f"of {len(names)} runs only the newest {MOST_RUNS} are read"] if len(names) > MOST_RUNS else []
    runs = []
    for name in names[-MOST_RUNS:]:
        try:
            runs.append(_run(folder / name))
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError) as error:
            notes.append(f"{name} is left out: {str(error)[:160]}")
    return History(runs=tuple(sorted(runs, key=lambda r: r.created)), notes=tuple(notes), where=str(folder))


def _run(path: Path) -> PastRun:
    with open(path, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"larger than {MOST_BYTES} bytes")
    found = msgspec.json.decode(content, type=PastRun)
    if found.schema != PastRun.schema:
        raise ValueError(f"is of {found.schema[:60]}, not {PastRun.schema}")
    return found
