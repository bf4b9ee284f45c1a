"""What limits a storage: from rates over threads and sizes of an operation.

Four pictures. Operations per second: the rate grows with the size of an operation and not with threads (a volume with
an IOPS limit). Latency: it grows with threads up to the most that were tried. Bandwidth: it stops growing while threads
and sizes still do - of one client where several together get more, else of the file system.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from smoldiag.facts.probes import Storage, StorageRate

FLAT = 1.3  # threads that multiply the rate by less add nothing
GROWS = 1.5  # from half of the threads to all of them, or from one to all where two counts were tried
PROPORTIONAL = 0.5  # of the ratio of two sizes: the rate grows with the size
NEAR_BEST = 0.8
SHARED_OUT = 0.6  # of the rate alone: below it the hosts share what there is


@dataclass(frozen=True)
class Limit:
    kind: str  # iops | latency | client | file-system | bandwidth (one host: nobody knows whose)
    text: str
    gb_per_s: float  # the best


def limit(s: Storage, operation: str) -> Limit | None:
    """None where too little was measured."""
    grid = {(r.threads, r.io_bytes): r for r in s.rates if r.operation == operation and r.pattern == "sequential"}
    grid = {key: r for key, r in grid.items() if r.operations}
    threads, sizes = sorted({t for t, _ in grid}), sorted({size for _, size in grid})
    if len(threads) < 2 or len(sizes) < 2 or len(grid) < len(threads) * len(sizes):
        return None
    best = max(grid.values(), key=lambda r: r.gb_per_s)
    if text := _iops(grid, threads, sizes):
        return Limit("iops", text, best.gb_per_s)
    if text := _latency(grid, threads, sizes, best):
        return Limit("latency", text, best.gb_per_s)
    return _bandwidth(s, operation, grid, best)


def _iops(grid: dict[tuple[int, int], StorageRate], threads: Sequence[int], sizes: Sequence[int]) -> str:
    small = [grid[t, sizes[0]].gb_per_s for t in threads]
    larger = grid[threads[0], sizes[1]].gb_per_s / grid[threads[0], sizes[0]].gb_per_s
    if max(small) > FLAT * min(small) or larger < PROPORTIONAL * sizes[1] / sizes[0]:
        return ""
    return f"about {grid[threads[-1], sizes[0]].iops:,.0f} operations per second, whatever the threads"


def _latency(
    grid: dict[tuple[int, int], StorageRate], threads: Sequence[int], sizes: Sequence[int], best: StorageRate
) -> str:
    most, fewer = threads[-1], threads[-2]
    gain = max(grid[most, size].gb_per_s for size in sizes) / max(grid[fewer, size].gb_per_s for size in sizes)
    if gain < min(GROWS, most / fewer):
        return ""
    return f"one thread gets {max(grid[threads[0], z].gb_per_s for z in sizes):.3g} GB/s, {most} still get more"


def _bandwidth(s: Storage, operation: str, grid: dict[tuple[int, int], StorageRate], best: StorageRate) -> Limit:
    enough = min(t for (t, _), r in grid.items() if r.gb_per_s >= NEAR_BEST * best.gb_per_s)
    text = f"{best.gb_per_s:.3g} GB/s from {enough} thread{'s' if enough > 1 else ''} on"
    same = s.alone and grid.get((s.alone.threads, s.alone.io_bytes))
    if operation != "write" or not s.alone or not same or s.hosts < 2:
        return Limit("bandwidth", text, best.gb_per_s)
    ratio = same.gb_per_s / s.alone.gb_per_s
    if ratio < SHARED_OUT:
        return Limit("file-system", f"{text}; alone it got {s.alone.gb_per_s:.3g} GB/s", best.gb_per_s)
    return Limit("client", f"{text}, and as much with {s.hosts} hosts at once", best.gb_per_s)


def checkpoint_s(s: Storage) -> float | None:
    """Seconds that this host would take for its whole part of a checkpoint, at the rate that was measured."""
    if not s.checkpoint or not s.checkpoint.num_bytes:
        return None
    took = s.checkpoint.write_s + s.checkpoint.fsync_s
    return took * s.checkpoint.wanted_bytes / s.checkpoint.num_bytes
