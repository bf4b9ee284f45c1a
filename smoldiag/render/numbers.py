"""Numbers with their unit and as many digits as are meant; hosts and ranks folded."""

import re
from collections.abc import Iterable


def gbs(value: float) -> str:
    """GB/s (1e9) with three significant digits, never in powers of ten."""
    if value >= 100:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def microseconds(value: float) -> str:
    return f"{value:.1f}" if value < 10_000 else f"{value:.0f}"


def hosts(names: Iterable[str], *, most: int = 8) -> str:
    """node3, node4, node5, node12 -> node[3-5,12], the way Slurm writes it."""
    groups: dict[tuple[str, int], list[int]] = {}
    plain: list[str] = []
    for name in names:
        match = re.fullmatch(r"(.*?)(\d{1,9})", name)
        if match:
            groups.setdefault((match[1], len(match[2]) if match[2].startswith("0") else 0), []).append(int(match[2]))
        else:
            plain.append(name)
    folded = [
        f"{stem}{numbers[0]:0{width}d}" if len(numbers) == 1 else f"{stem}[{ranges(numbers, width=width)}]"
        for (stem, width), numbers in groups.items()
    ]
    parts = [*plain, *folded]
    return ", ".join(parts[:most]) + (f" and {len(parts) - most} more" if len(parts) > most else "")


def ranges(numbers: Iterable[int], *, width: int = 0) -> str:
    """1, 2, 3, 7 -> 1-3,7"""
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(f"{a:0{width}d}" if a == b else f"{a:0{width}d}-{b:0{width}d}" for a, b in runs)
