"""Now and then one step under torch.profiler: how much of the communication is exposed, how long the GPU is idle."""

import importlib
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch

from smoldiag.model import intervals

EVERY = 200  # steps; a profiled step takes some per cent longer
FIRST = 20  # after compilation and the first allocations
MIN_EVENTS = 2


class Windows:
    """Profiles the steps that are due; gives what the device did in them."""

    def __init__(self) -> None:
        self.profiler: Any = None

    def begin(self, step: int) -> None:
        if step >= FIRST and (step - FIRST) % EVERY == 0:
            module: Any = importlib.import_module("torch.profiler")
            with suppress(RuntimeError):  # another profiler runs already
                self.profiler = module.profile(activities=[module.ProfilerActivity.CUDA])
                self.profiler.__enter__()

    def end(self) -> dict[str, float] | None:
        """Microseconds of the window that was profiled; None where this step was not."""
        profiler, self.profiler = self.profiler, None
        if profiler is None:
            return None
        torch.cuda.synchronize()
        with suppress(RuntimeError):
            profiler.__exit__(None, None, None)
            return parts(profiler.profiler.kineto_results.events())
        return None


def parts(events: Any) -> dict[str, float] | None:
    """Kernels by what they are for: NCCL's begin with nccl, copies with Memcpy or Memset."""
    kinds: dict[str, list[intervals.Interval]] = {"compute": [], "communication": [], "memory": []}
    for event in events:
        if "CUDA" not in str(event.device_type()):
            continue
        name, start = event.name(), event.start_ns() / 1e3
        kind = "communication" if name.startswith("nccl") else "memory" if name.startswith("Mem") else "compute"
        kinds[kind].append((start, start + event.duration_ns() / 1e3))
    every = [i for found in kinds.values() for i in found]
    if len(every) < MIN_EVENTS:
        return None
    window = (min(start for start, _ in every), max(end for _, end in every))
    found = intervals.busy(kinds["compute"], kinds["communication"], kinds["memory"], window=window)
    return {name: round(value, 1) for name, value in asdict(found).items()}
