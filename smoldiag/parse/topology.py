"""Descriptions of a machine's inside: `nvidia-smi topo -m`, NCCL topology XML, lstopo XML."""

import re
from itertools import pairwise

from smoldiag.facts import TopoDevice, Topology, TopoPath

MAX_DEVICES = 256  # columns of a matrix
MAX_LINES = 20_000

NCCL_NAME = {"X": "LOC", "PIX": "PIX", "PXB": "PXB", "PHB": "PHB", "NODE": "PHB", "SYS": "SYS", "SOC": "SYS"}
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_CELL = re.compile(r"^(?:X|NV\d{1,3}|PIX|PXB|PHB|NODE|SYS|SOC|N/A)$")
_DEVICE = re.compile(r"^[A-Za-z][\w.:+-]{1,40}$")
_LEGEND = re.compile(r"\b(NIC\d{1,3}):\s*([A-Za-z][\w.:-]{0,40})")
_GPU = re.compile(r"^GPU(\d{1,3})$")


def smi_matrix(text: str, *, source: str = "nvidia-smi topo -m") -> Topology | None:
    """The matrix of `nvidia-smi topo -m` of any version; whole, or as much of it as was posted. None: there is none."""
    lines = [_ANSI.sub("", line) for line in text.splitlines()[:MAX_LINES]]
    head = next(((i, names) for i, line in enumerate(lines) if (names := _header(line))), None)
    if head is None:
        return None
    start, columns = head
    names = dict(_LEGEND.findall("\n".join(lines[start:])))
    rows: dict[str, list[str]] = {}
    near: dict[str, tuple[int, ...]] = {}
    for line in lines[start + 1 :]:
        if (row := _row(line)) and row[0] not in rows:
            rows[row[0]] = row[1][: len(columns)]
            near[row[0]] = _numa(row[1][len(columns) :] if len(row[1]) > len(columns) else row[2])
        elif rows and _header(line):
            break  # the matrix of another host
    if not rows:
        return None
    known = list(dict.fromkeys((*columns, *rows)))
    return Topology(
        source=source,
        devices=tuple(_device(name, names, near) for name in known),
        paths=tuple(_paths(columns, rows, names)),
    )


def _header(line: str) -> list[str] | None:
    """Names of the columns; the first is a GPU."""
    before = re.split(r"\s+CPU Affinity|\s+CPU\b", line, maxsplit=1)[0]
    tokens = [t for t in before.split() if t.strip(".")]
    start = next((i for i, t in enumerate(tokens) if _GPU.match(t)), None)
    if start is None or start > 3 or len(tokens) - start > MAX_DEVICES:  # a log may put a few words before it
        return None
    names = tokens[start:]
    alone = len(names) == 1 and "CPU Affinity" in line
    are_devices = all(_DEVICE.match(t) and not _CELL.match(t) for t in names)
    return names if are_devices and (alone or len(names) > 1) else None


def _row(line: str) -> tuple[str, list[str], list[str]] | None:
    """(device, cells, what stands behind them)."""
    tokens = line.split()
    for i, (name, cell) in enumerate(pairwise(tokens[:5])):  # a log may put a few words before it
        if _DEVICE.match(name) and not _CELL.match(name) and _CELL.match(cell):
            cells = []
            for token in tokens[i + 1 :]:
                if not _CELL.match(token):
                    break
                cells.append(token)
            return name, cells, tokens[i + 1 + len(cells) :]
    return None


def _numa(behind: list[str]) -> tuple[int, ...]:
    """Behind the CPU affinity: 0, or 0-1 where the machine does not tell which. Older versions have no such column."""
    words = [w for w in behind if w != "..."]
    if len(words) < 2 or not re.fullmatch(r"\d{1,3}(?:[-,]\d{1,3})*", words[1]):
        return ()
    found: list[int] = []
    for part in words[1].split(","):
        low, _, high = part.partition("-")
        found += range(int(low), min(int(high or low), int(low) + 63) + 1)
    return tuple(found)


def _device(name: str, names: dict[str, str], near: dict[str, tuple[int, ...]]) -> TopoDevice:
    gpu = _GPU.match(name)
    return TopoDevice(
        name=names.get(name, name),
        kind="gpu" if gpu else "nic",
        index=int(gpu[1]) if gpu else None,
        numa=near.get(name) or None,
    )


def _paths(columns: list[str], rows: dict[str, list[str]], names: dict[str, str]) -> list[TopoPath]:
    found: dict[frozenset[str], TopoPath] = {}
    for row, cells in rows.items():
        for column, cell in zip(columns, cells, strict=False):
            ends = (names.get(row, row), names.get(column, column))
            if row == column or cell in ("X", "N/A") or not (_GPU.match(row) or _GPU.match(column)):
                continue
            kind = "NVL" if cell.startswith("NV") else NCCL_NAME[cell]
            path = TopoPath(ends=ends, kind=kind, written=cell if cell != kind else None)
            found.setdefault(frozenset(ends), path)
    return list(found.values())
