"""Where in a text `nvidia-smi topo -m` stands; what it says is read by `smoldiag.parse.topology`."""

import re
from dataclasses import dataclass, field

from smoldiag.facts import Topology
from smoldiag.parse import topology

MAX_MATRICES = 1_000
MAX_LINES = 400  # of one matrix with its legend

_HEADER = re.compile(r"^.{0,40}?\bGPU0\s+(?:GPU\d|NIC\d|mlx5|CPU|NUMA|\.)")
_ROW = re.compile(
    r"^\s*(?:GPU|NIC|mlx5_|irdma|bnxt_re|rdmap|efa)\w{0,20}\s+(?:X|NV\d{1,2}|PIX|PXB|PHB|NODE|SYS|SOC|N/A)\s"
)
_LEGEND = re.compile(r"^\s*(?:Legend:|(?:X|SYS|NODE|PHB|PXB|PIX|NV#)\s+= |NIC Legend|NIC\d+: )")


@dataclass(kw_only=True)
class Reader:
    where: str
    found: list[Topology] = field(default_factory=list)
    _at: int = 0
    _lines: list[str] = field(default_factory=list)

    def read(self, number: int, line: str) -> bool:
        if "GPU0" in line and "->" not in line and _HEADER.match(line) and not _ROW.match(line):
            self._end()
            self._at, self._lines = number, [line]
            return True
        if not self._at or len(self._lines) > MAX_LINES:
            return False
        if _ROW.match(line + " ") or _LEGEND.match(line):
            self._lines.append(line)
            return True
        return False

    def finish(self) -> tuple[Topology, ...]:
        self._end()
        return tuple(self.found)

    def _end(self) -> None:
        if self._lines and len(self.found) < MAX_MATRICES:
            made = topology.smi_matrix("\n".join(self._lines), source=f"{self.where}:{self._at}")
            if made is not None:
                self.found.append(made)
        self._lines, self._at = [], 0
