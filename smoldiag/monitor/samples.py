"""Once a second beside the steps: clocks and heat of the GPU, and the host's network and disk counters."""

import importlib
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

PERIOD_S = 1.0
SECTOR_BYTES = 512  # /proc/diskstats counts in these, whatever the disk has


class Sampler:
    """A thread that never raises, and never holds the job up: what it can't read it leaves out."""

    def __init__(self, record: Callable[[str, Mapping[str, Any]], None], *, gpu: int | None) -> None:
        self.record, self.gpu = record, gpu
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, name="smoldiag-samples", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.ended.set()
        self.thread.join(timeout=2 * PERIOD_S)

    def _run(self) -> None:
        ask = gpu_reader(self.gpu)
        while not self.ended.wait(PERIOD_S):
            with suppress(Exception):  # a sample less
                self.record("sample", {"time": time.time(), **counters(), **ask()})


def counters() -> dict[str, int]:
    """Bytes since boot over all network interfaces but the loopback, and over all whole disks."""
    found: dict[str, int] = {}
    with suppress(OSError, ValueError, IndexError), open("/proc/net/dev") as lines:
        rows = [line.replace(":", " ").split() for line in lines if ":" in line]
        own = [row for row in rows if row[0] != "lo"]
        found["network_received_bytes"] = sum(int(row[1]) for row in own)
        found["network_sent_bytes"] = sum(int(row[9]) for row in own)
    with suppress(OSError, ValueError, IndexError), open("/proc/diskstats") as lines:
        disks = [row for row in map(str.split, lines) if not row[2][-1:].isdigit() or row[2].startswith("nvme")]
        whole = [row for row in disks if "p" not in row[2].removeprefix("nvme")]
        found["disk_read_bytes"] = sum(int(row[5]) for row in whole) * SECTOR_BYTES
        found["disk_written_bytes"] = sum(int(row[9]) for row in whole) * SECTOR_BYTES
    return found


def gpu_reader(index: int | None) -> Callable[[], dict[str, Any]]:
    """SM clock (MHz), temperature (C), power (W) and limiter bits of a GPU, as NVML tells them."""
    if index is None:
        return dict
    try:
        pynvml: Any = importlib.import_module("pynvml")
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    except Exception:  # no driver, no module, no permission: the samples go without a GPU
        return dict
    calls: dict[str, Callable[[], Any]] = {
        "sm_clock_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "temperature_c": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        "power_w": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        "limiters": lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
    }

    def read() -> dict[str, Any]:
        found: dict[str, Any] = {"gpu": index}
        for name, call in calls.items():
            with suppress(pynvml.NVMLError):
                found[name] = call()
        return found

    return read
