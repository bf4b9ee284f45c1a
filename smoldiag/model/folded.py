"""Many names in few words: hosts, ranks, codes; and back."""

import re
from collections.abc import Iterable

MAX_RUNS = 12  # of numbers in one name


def hosts(names: Iterable[str], *, most: int = 8) -> str:
    """node3, node4, node5, node12 -> node[3-5,12], the way Slurm writes it."""
    matches = [(name, re.fullmatch(r"(.*?)(\d{1,9})(\D*)", name)) for name in names]
    padded = {(m[1], len(m[2]), m[3]) for _, m in matches if m and len(m[2]) > 1 and m[2].startswith("0")}
    groups: dict[tuple[str, int, str], list[int]] = {}
    plain: list[str] = []
    for name, match in matches:
        if match:
            key = (match[1], len(match[2]), match[3])
            groups.setdefault(key if key in padded else (match[1], 0, match[3]), []).append(int(match[2]))
        else:
            plain.append(name)
    folded = [
        f"{stem}{numbers[0]:0{width}d}{end}"
        if len(numbers) == 1
        else f"{stem}[{ranges(numbers, width=width, most=MAX_RUNS)}]{end}"
        for (stem, width, end), numbers in groups.items()
    ]
    parts = [*plain, *folded]
    return ", ".join(parts[:most]) + (f" and {len(parts) - most} more" if len(parts) > most else "")


def ranges(numbers: Iterable[int], *, width: int = 0, most: int | None = None) -> str:
    """1, 2, 3, 7 -> 1-3,7"""
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    left_out = sum(b - a + 1 for a, b in runs[most:]) if most is not None else 0
    said = ",".join(f"{a:0{width}d}" if a == b else f"{a:0{width}d}-{b:0{width}d}" for a, b in runs[:most])
    return f"{said} and {left_out} more" if left_out else said


def expanded(hostlist: str) -> list[str]:
    """node[1-3,07],gpu5 -> node1, node2, node3, node07, gpu5 (Slurm's hostlist form; bounded)."""
    found: list[str] = []
    for part in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", hostlist[: 1 << 20]):
        names = [""]
        for piece in re.split(r"(\[[^\]]*\])", part):
            options = _numbers(piece[1:-1]) if piece.startswith("[") else [piece]
            names = [a + b for a in names for b in options][: 1 << 17]
        found += names
    return found


def _numbers(text: str) -> list[str]:
    out = []
    for item in text.split(","):
        low, dash, high = item.partition("-")
        if dash and low.isdecimal() and high.isdecimal() and int(high) - int(low) < 1 << 17:
            out += [f"{n:0{len(low)}d}" for n in range(int(low), int(high) + 1)]
        else:
            out.append(item)
    return out
