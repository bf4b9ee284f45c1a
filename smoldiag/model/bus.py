"""Bandwidth from times, and nccl-tests' count column, as nccl-tests defines them (its doc/PERFORMANCE.md, src/*.cu)."""

TOTAL_OVER_RANKS = {"all_gather", "reduce_scatter", "all_to_all"}  # size is the sum of all ranks' parts
REDUCING = {"all_reduce", "reduce_scatter", "reduce"}


def bus_factor(collective: str, ranks: int) -> float:
    """busbw = algbw * factor: what a link carries in a ring, so that figures of different world sizes compare.

    Raises ValueError for an unknown collective.
    """
    if collective == "all_reduce":
        return 2 * (ranks - 1) / ranks
    if collective in TOTAL_OVER_RANKS:
        return (ranks - 1) / ranks
    if collective in ("broadcast", "reduce", "send_recv"):
        return 1.0
    raise ValueError(f"no bus factor is known for {collective}")


def algbw_gbs(size_bytes: int, time_us: float) -> float:
    """GB/s (1e9)."""
    return size_bytes / time_us / 1e3 if time_us > 0 else 0.0


def busbw_gbs(collective: str, size_bytes: int, time_us: float, ranks: int) -> float:
    return algbw_gbs(size_bytes, time_us) * bus_factor(collective, ranks)


def count(collective: str, size_bytes: int, element_bytes: int, ranks: int) -> int:
    """Elements as nccl-tests prints them: one rank's part where size is the sum of all parts."""
    return size_bytes // element_bytes // (ranks if collective in TOTAL_OVER_RANKS else 1)
