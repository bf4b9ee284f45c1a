"""Memory of one device beyond its caches, and the way between a GPU and its host, by size.

Each record holds the seconds of its repeats; how many bytes a copy moves is for who judges them.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.compute import device
from smoldiag import ranks
from smoldiag.collect import limits
from smoldiag.facts.probes import Copy, Memory
from smoldiag.ranks import Rank

DEFAULT_BUDGET_S = 10.0
DEVICE_BYTES = 1 << 30  # far above the second-level cache of any GPU (B200: 126 MB)
HOST_BYTES = 256 << 20  # above the last-level cache that one process gets; less where memory is short
MOST_OF_FREE = 0.1  # of the free memory, for both buffers together
LEAST_BYTES = 32 << 20
LINK_BYTES = tuple(1 << n for n in range(12, 29, 2))  # 4 KiB, where latency counts, to 256 MiB
LEAST_REPEATS, REPEATS = 3, 20
cuda: Any = torch.cuda


def measure(me: Rank, config: Mapping[str, Any]) -> dict[str, Any]:
    """A `Memory` as a dictionary. Of `config`: budget_s."""
    until = time.monotonic() + float(config.get("budget_s", DEFAULT_BUDGET_S))
    size, free, _ = limits.shm(Path("/"))
    skipped: dict[str, str] = {}
    copies: list[Copy] = []
    kinds = ("device", "h2d", "d2h") if me.device.type == "cuda" else ("host",)
    for number, kind in enumerate(kinds):
        share_s = max(until - time.monotonic(), 0) / (len(kinds) - number)
        try:
            copies += (
                link(me.device, kind, share_s) if kind.endswith(("2h", "2d")) else [within(me.device, kind, share_s)]
            )
        except RuntimeError as error:  # no memory for the buffers, or none to pin
            skipped[kind] = str(error).strip().partition("\n")[0][:200]
    if me.device.type == "cuda":
        cuda.empty_cache()
    return asdict(Memory(device=device(me), copies=tuple(copies), shm_bytes=size, shm_free_bytes=free, skipped=skipped))


def within(on: torch.device, kind: str, share_s: float) -> Copy:
    """From one buffer to another in the device's own memory."""
    num_bytes = buffer_bytes(on)
    src = torch.zeros(num_bytes, dtype=torch.uint8, device=on)
    dst = torch.ones_like(src)
    return repeated(kind, num_bytes, lambda: dst.copy_(src), on, share_s)


def buffer_bytes(on: torch.device) -> int:
    """Raises RuntimeError where so little memory is free that caches would be measured."""
    free = cuda.mem_get_info(on)[0] if on.type == "cuda" else limits.memory_free_bytes(Path("/"))
    most = DEVICE_BYTES if on.type == "cuda" else HOST_BYTES
    num_bytes = min(int(free * MOST_OF_FREE) // 2, most) // 4096 * 4096
    if num_bytes < LEAST_BYTES:
        raise RuntimeError(f"only {free} bytes of memory are free")
    return int(num_bytes)


def link(on: torch.device, kind: str, share_s: float) -> Iterator[Copy]:
    """Between pinned memory of the host and the device, small copies to large ones."""
    until = time.monotonic() + share_s
    most = min(LINK_BYTES[-1], buffer_bytes(on))
    there = torch.zeros(most, dtype=torch.uint8, device=on)
    here = torch.zeros(most, dtype=torch.uint8, pin_memory=True)
    sizes = [size for size in LINK_BYTES if size <= most]
    for number, size in enumerate(sizes):
        dst, src = (there[:size], here[:size]) if kind == "h2d" else (here[:size], there[:size])
        left_s = max(until - time.monotonic(), 0) / (len(sizes) - number)
        yield repeated(kind, size, _copying(dst, src), on, left_s)


def _copying(dst: torch.Tensor, src: torch.Tensor) -> Callable[[], object]:
    return lambda: dst.copy_(src, non_blocking=True)


def repeated(kind: str, num_bytes: int, copy: Callable[[], object], on: torch.device, share_s: float) -> Copy:
    until = time.monotonic() + share_s
    copy()
    seconds: list[float] = []
    cpu_s: list[float] = []
    while len(seconds) < LEAST_REPEATS or (time.monotonic() < until and len(seconds) < REPEATS):
        synchronise(on)
        cpu, start = time.process_time(), time.perf_counter()
        copy()
        synchronise(on)
        seconds.append(time.perf_counter() - start)
        cpu_s.append(time.process_time() - cpu)
    return Copy(kind=kind, num_bytes=num_bytes, seconds=tuple(seconds), cpu_s=tuple(cpu_s) if kind == "host" else ())


def synchronise(on: torch.device) -> None:
    if on.type == "cuda":
        cuda.synchronize(on)


def main() -> None:
    me = ranks.join()
    ranks.record("memory", measure(me, me.config))
    ranks.leave()


if __name__ == "__main__":
    main()
