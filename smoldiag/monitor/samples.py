"""Beside the steps: what the processors, connections and GPU of this rank and its host's network and disks did."""

import importlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

PERIOD_S = 1.0
SECTOR_BYTES = 512  # /proc/diskstats counts in these, whatever the disk has
MAX_SOCKETS = 256  # of this process that are looked at
# linux/tcp.h: offsets in struct tcp_info; kernels append to it, and older ones give less
TCP_INFO_BYTES = 232
MIN_RTT, BYTES_ACKED, BYTES_RETRANS, BUSY_TIME = 148, 120, 208, 168
SAME_MACHINE = ("127.", "::1")


class Processor:
    """What one thread got of the processors between two moments."""

    def __init__(self) -> None:
        self.file: int | None = None
        with suppress(OSError):  # a kernel without scheduler statistics
            self.file = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        self.began: tuple[int, int] | None = None

    def _now(self) -> tuple[int, int] | None:
        """(ns on a processor, ns waiting for one): the first two fields, Documentation/scheduler/sched-stats.rst."""
        if self.file is None:
            return None
        try:
            ran, waited, *_ = os.pread(self.file, 128, 0).split()
            return int(ran), int(waited)
        except (OSError, ValueError):
            return None

    def begin(self) -> None:
        self.began = self._now()

    def since_begin(self) -> dict[str, float]:
        now = self._now()
        if now is None or self.began is None:
            return {}
        ran, waited = (round((b - a) / 1e3, 1) for a, b in zip(self.began, now, strict=True))
        return {"cpu_us": ran, "delay_us": waited}


class Sampler:
    """A thread that never raises, and never holds the job up: what it can't read it leaves out."""

    def __init__(self, record: Callable[[str, Mapping[str, Any]], None], *, rank: int, gpu: int | None) -> None:
        self.record, self.rank, self.gpu = record, rank, gpu
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, name="smoldiag-samples", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """With one last sample, so that short runs have two."""
        self.ended.set()
        self.thread.join(timeout=2 * PERIOD_S)

    def _run(self) -> None:
        ask = gpu_reader(self.gpu)
        going = True
        while going:
            with suppress(Exception):  # a sample less
                found = {**counters(), **throttled(), **ask(), "peers": connections()}
                self.record("sample", {"time": round(time.time(), 3), "rank": self.rank, **found})
            going = not self.ended.wait(PERIOD_S)
        with suppress(Exception):
            self.record(
                "sample", {"time": round(time.time(), 3), "rank": self.rank, "peers": connections(), **throttled()}
            )


def connections() -> dict[str, list[int]]:
    """By the other host's address: bytes acknowledged, bytes sent again, us with data under way, smallest RTT in us.

    Of the TCP connections of this process; those to its own host are left out.
    """
    found: dict[str, list[int]] = {}
    for file in _sockets():
        with suppress(OSError, struct.error), socket.socket(fileno=os.dup(file)) as s:
            if s.type != socket.SOCK_STREAM or s.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            peer, own = s.getpeername()[0], s.getsockname()[0]
            if peer == own or peer.startswith(SAME_MACHINE):
                continue
            info = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
            acked, busy = (struct.unpack_from("=Q", info, at)[0] for at in (BYTES_ACKED, BUSY_TIME))
            again = struct.unpack_from("=Q", info, BYTES_RETRANS)[0] if len(info) >= BYTES_RETRANS + 8 else 0
            rtt = struct.unpack_from("=I", info, MIN_RTT)[0]
            before = found.get(peer, [0, 0, 0, rtt])
            sums = [a + b for a, b in zip(before, (acked, again, busy), strict=False)]
            found[peer] = [*sums, min(before[3], rtt)]
    return found


def _sockets() -> Iterator[int]:
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                count += 1
                yield int(name)
        if count >= MAX_SOCKETS:
            return


def throttled() -> dict[str, int]:
    """How long the control group of this process was kept off the processors by its quota."""
    for folder in _cgroups():
        with suppress(OSError, ValueError), open(f"{folder}/cpu.stat") as lines:
            told = {key: int(value) for key, value in map(str.split, lines)}
            if "throttled_usec" in told:
                return {"throttled_us": told["throttled_usec"]}
            if "throttled_time" in told:
                return {"throttled_us": told["throttled_time"] // 1000}
    return {}


def _cgroups() -> Iterator[str]:
    """Version 1 names the controllers, version 2 none."""
    with suppress(OSError), open("/proc/self/cgroup") as lines:
        for line in lines:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if "cpu" in controllers.split(","):
                yield from (f"/sys/fs/cgroup/{name}{path}" for name in (controllers, "cpu"))
                yield "/sys/fs/cgroup/cpu"  # where the namespace of the container begins
            elif not controllers:
                yield from (f"/sys/fs/cgroup{path}", "/sys/fs/cgroup")


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
