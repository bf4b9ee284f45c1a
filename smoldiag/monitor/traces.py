"""torch.profiler traces of some steps of a rank, and their way to where they are kept. What fails is only a note."""

import base64
import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FIRST = 10  # step; after compilation and the first allocations, where the run is long enough
MAX_TRACE_BYTES = 32 * 2**20  # compressed, through the channel of records; some hundred thousand events
PART_BYTES = 256 * 1024

Record = Callable[[str, Mapping[str, Any]], None]


def profiler(rank: int, *, steps: int, first: int, keep: Callable[[str], None], record: Record) -> Any:
    """A torch profiler to be entered, and stepped after each step; `keep` takes the path of the finished trace."""
    module: Any = importlib.import_module("torch.profiler")

    def ready(profiled: Any) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix=f"smoldiag-trace-{os.getpid()}-") as folder:
                path = os.path.join(folder, f"rank{rank}.json.gz")
                profiled.export_chrome_trace(path)
                keep(path)
        except Exception as error:  # a full disk, a profiler that another one has taken
            record("note", {"text": f"the trace of rank {rank} was not kept: {error}"[:300]})

    schedule = module.schedule(wait=max(first - 1, 0), warmup=1, active=steps, repeat=1)
    return module.profile(schedule=schedule, on_trace_ready=ready, record_shapes=True)  # for the roofline of products


def sent(path: str, *, rank: int, record: Record) -> None:
    """As records of kind `trace`: no folder is shared with whoever started this rank."""
    size = os.path.getsize(path)
    if size > MAX_TRACE_BYTES:
        limit = f"{MAX_TRACE_BYTES / 2**20:.0f} MiB"
        raise ValueError(f"it has {size / 2**20:.0f} MiB compressed, more than {limit}: trace fewer steps")
    parts = -(-size // PART_BYTES)
    with open(path, "rb") as file:
        for part in range(parts):
            data = base64.b64encode(file.read(PART_BYTES)).decode()
            record("trace", {"rank": rank, "part": part, "parts": parts, "data": data})


def moved(path: str, *, folder: Path) -> None:
    """Into a folder that this host sees."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / os.path.basename(path)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(path, part)
    part.replace(target)
