"""The matrix of `nvidia-smi topo -m`: how GPUs reach each other, and their affinities."""

import re
from dataclasses import dataclass, field

from smoldiag.facts.tables import PathMatrix

MAX_GPUS = 64
MAX_MATRICES = 2_000

_HEADER = re.compile(r"^\s*(?:\x1b\[4m)?\s*GPU0\s+(?:GPU\d+\s+)*.*$")
_ROW = re.compile(r"^\s*GPU(\d{1,2})\s+((?:(?:X|NV\d{1,2}|PIX|PXB|PHB|NODE|SYS|N/A)\s+)+)(.*)$")
_PATH = re.compile(r"X|NV\d{1,2}|PIX|PXB|PHB|NODE|SYS|N/A")
_RANGE = re.compile(r"^(?:\d{1,5}(?:-\d{1,5})?)(?:,\d{1,5}(?:-\d{1,5})?)*$")


@dataclass(kw_only=True)
class Reader:
    where: str
    matrices: list[PathMatrix] = field(default_factory=list)
    _at: int = 0
    _gpus: int = 0
    _paths: dict[tuple[int, int], str] = field(default_factory=dict)
    _cpus: dict[int, str] = field(default_factory=dict)
    _numa: dict[int, str] = field(default_factory=dict)

    def read(self, number: int, line: str) -> bool:
        if "GPU" not in line:
            return False
        if match := _ROW.match(line + " "):
            self._row(number, match)
            return bool(self._gpus)
        if _HEADER.match(line) and "->" not in line:
            self._end()
            self._gpus, self._at = len(re.findall(r"\bGPU\d{1,2}\b", line)), number
            return True
        return False

    def finish(self) -> tuple[PathMatrix, ...]:
        self._end()
        return tuple(self.matrices)

    def _row(self, number: int, match: re.Match[str]) -> None:
        row, cells = int(match[1]), _PATH.findall(match[2])
        for column, path in enumerate(cells[: min(self._gpus, MAX_GPUS)]):
            if path not in ("X", "N/A"):
                self._paths[row, column] = path
        rest = [w for w in match[3].split() if _RANGE.match(w)]
        if rest:
            self._cpus[row] = rest[0]
        if len(rest) > 1:
            self._numa[row] = rest[1]

    def _end(self) -> None:
        if self._paths and len(self.matrices) < MAX_MATRICES:
            self.matrices.append(
                PathMatrix(
                    where=f"{self.where}:{self._at}",
                    paths=tuple((a, b, kind) for (a, b), kind in self._paths.items()),
                    cpu_affinity=dict(self._cpus),
                    numa_affinity=dict(self._numa),
                )
            )
        self._paths, self._cpus, self._numa, self._gpus = {}, {}, {}, 0
