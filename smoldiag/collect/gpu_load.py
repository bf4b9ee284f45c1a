"""A GPU while it works: clock, temperature, power and what holds its clock down, sampled in a thread."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from smoldiag.collect.gpus import REASONS, SM, TEMPERATURE_OF_GPU, Nvml
from smoldiag.facts.probes import Load

EVERY_S = 0.1


class Sampler:
    """Samples of one GPU, the one with this UUID. Raises OSError where NVML does not know it."""

    def __init__(self, uuid: str) -> None:
        self.nvml = Nvml()
        handles = {self.nvml.text("nvmlDeviceGetUUID", handle): handle for _, handle, _ in self.nvml.handles()}
        if uuid not in handles:
            raise OSError(f"NVML knows no GPU {uuid}")
        self.handle = handles[uuid]
        self.clocks: list[int] = []
        self.hottest: int | None = None
        self.most_mw: int | None = None
        self.reasons: Counter[str] = Counter()
        self.samples = 0

    def sample(self) -> None:
        clock = self.nvml.ask("nvmlDeviceGetClockInfo", self.handle, SM)
        bits = self.nvml.ask("nvmlDeviceGetCurrentClocksEventReasons", self.handle)
        if bits is None:
            bits = self.nvml.ask("nvmlDeviceGetCurrentClocksThrottleReasons", self.handle)
        heat = self.nvml.ask("nvmlDeviceGetTemperature", self.handle, TEMPERATURE_OF_GPU)
        power = self.nvml.ask("nvmlDeviceGetPowerUsage", self.handle)
        if bits is not None and bits & 1:
            return  # between two kernels
        self.samples += 1
        if clock is not None:
            self.clocks.append(clock)
        self.reasons.update(name for bit, name in REASONS.items() if bits is not None and bits & bit)
        self.hottest = _highest(self.hottest, heat)
        self.most_mw = _highest(self.most_mw, power)

    def load(self) -> Load | None:
        """What was seen; None without a sample under load."""
        if not self.samples:
            return None
        limit = self.nvml.ask("nvmlDeviceGetEnforcedPowerLimit", self.handle)
        return Load(
            samples=self.samples,
            sm_clock_mhz=median(self.clocks) if self.clocks else None,
            sm_clock_max_mhz=self.nvml.ask("nvmlDeviceGetMaxClockInfo", self.handle, SM),
            temperature_c=self.hottest,
            power_w=self.most_mw / 1000 if self.most_mw is not None else None,
            power_limit_w=limit / 1000 if limit is not None else None,
            throttle={name: count / self.samples for name, count in self.reasons.items()},
        )


@contextmanager
def sampled(uuid: str) -> Iterator[Sampler]:
    """Samples until the end of the block. Raises OSError where NVML does not know the GPU."""
    sampler, over = Sampler(uuid), threading.Event()

    def watch() -> None:
        while not over.wait(EVERY_S):
            sampler.sample()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield sampler
    finally:
        over.set()
        thread.join(1.0)


def _highest(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else max(a, b)
