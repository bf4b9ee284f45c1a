"""Tests of single links: perftest (`ib_write_bw`), nvbandwidth and CUDA's p2pBandwidthLatencyTest, pairs of hosts."""

import re
from dataclasses import dataclass, field, replace

from smoldiag.facts.tables import GraphNic, LinkTest, Pair, PairTable
from smoldiag.parse import units

MAX_TESTS = 5_000
MAX_PAIRS = 100_000
MAX_SIDE = 2_048

_PERFTEST = re.compile(r"^\s*(?:RDMA_(Write|Read)|(Send)|(Atomic)\S*) (?:Post List )?(?:Bidirectional )?BW Test")
_PERFTEST_HEAD = re.compile(r"#bytes\s+#iterations\s+BW peak\s?\[(\S+?)\]\s+BW average\s?\[(\S+?)\]")
_PERFTEST_ROW = re.compile(r"^\s*(\d{1,12})\s+(\d{1,12})\s+([\d.]{1,20})\s+([\d.]{1,20})(?:\s+[\d.]{1,20})?\s*$")
_DEVICE = re.compile(r"\bDevice\s*: (\S{1,64})")
_MTU = re.compile(r"\bMtu\s*: (\d{3,5})\[B\]")
_MATRIX = re.compile(r"^\s*(?:D\\D\s+)?(0(?:\s+\d{1,4})+)\s*$")
_MATRIX_ROW = re.compile(r"^\s*(\d{1,4})\s+((?:(?:N/A|[\d.]{1,12})\s*)+)$")
_MATRIX_TITLE = re.compile(
    r"(memcpy \S+ (?:CPU|GPU)\(row\) \S{2,3} GPU\(column\)) bandwidth \(GB/s\)|"
    r"((?:Uni|Bi)directional P2P=\w+ Bandwidth.{0,40}Matrix) \(GB/s\)"
)
_RUNNING = re.compile(r"^Running (\w{1,80})\.")
_HINT = re.compile(r"BW Test|#bytes|Device  |Mtu|Running |bandwidth|Bandwidth|\+ (?:PCI|NET)\[|CUDA dev|GPUDirect")
_GRAPH_PCI = re.compile(r"\+ PCI\[([\d.]{1,10})\] - ([A-Z]{3})/(\S{1,40})")
_GRAPH_NET = re.compile(r"\+ NET\[([\d.]{1,10})\] - (NET/\S{1,40})")
_SIDE = r"[A-Za-z][A-Za-z0-9_.-]{1,100}"
_PAIR = re.compile(
    rf"^\s*\(?({_SIDE})\)?\s*(?:,|;|->|<->|<-->|--|\||:|\s)\s*\(?({_SIDE})\)?(?:\s*[:=,|]\s*|\s+)"
    r"(\d{1,5}(?:\.\d{1,6})?)\s*([KMGkmg]i?[bB](?:it)?(?:/s|ps))?\s*(?:\|?\s*(?:#.*)?)$"
)
_NO_HOST = {"step", "rank", "size", "time", "gpu", "node", "total", "avg", "average", "min", "max", "loss", "epoch",
            "iteration", "iter", "nccl", "of", "mem", "float", "sum", "none", "in", "version"}  # fmt: skip


@dataclass(kw_only=True)
class Reader:
    where: str
    links: list[LinkTest] = field(default_factory=list)
    matrices: list[PairTable] = field(default_factory=list)
    _nics: list[GraphNic] = field(default_factory=list)
    _fastest: float = 0.0
    _pairs: list[Pair] = field(default_factory=list)
    _pci: tuple[float, str] | None = None  # the NIC of the graph that was seen last
    _tool: str = "ib_write_bw"
    _device: str | None = None
    _mtu: int | None = None
    _unit: str | None = None
    _cuda: bool | None = None
    _title: str = ""
    _side: int = 0
    _cells: list[Pair] = field(default_factory=list)
    _cpu: bool = False

    def read(self, number: int, line: str) -> bool:
        """Tests with a header of their own."""
        if not (self._unit or self._side or _HINT.search(line)):
            return False
        return self._perftest(number, line) or self._matrix(number, line) or self._graph(number, line)

    def finish(self) -> tuple[PairTable, ...]:
        self._end_matrix()
        pairs = tuple(self._pairs)
        own = (PairTable(where=pairs[0].where, kind="hosts", pairs=pairs),) if len(pairs) >= 2 else ()
        return (*self.matrices, *own)

    def _perftest(self, number: int, line: str) -> bool:
        if match := _PERFTEST.match(line):
            kind = next(g for g in match.groups() if g).lower()
            self._tool, self._device, self._mtu, self._unit, self._cuda = f"ib_{kind}_bw", None, None, None, None
            return True
        if match := _PERFTEST_HEAD.search(line):
            self._unit = match[2]
            return True
        if match := _DEVICE.search(line):
            self._device = match[1]
        if match := _MTU.search(line):
            self._mtu = int(match[1])
            return True
        if "CUDA device" in line or "GPUDirect" in line or "cuMemAlloc" in line:
            self._cuda = True
        if self._unit and (match := _PERFTEST_ROW.match(line)):
            rate = float(match[4]) if match[4].count(".") < 2 else 0.0
            # perftest's MB are 2**20 bytes (its man page, --report_gbits)
            gbit = rate if self._unit.lower().startswith("gb") else rate * 2**20 * 8 / 1e9
            if rate > 0 and len(self.links) < MAX_TESTS:
                self.links.append(
                    LinkTest(
                        where=f"{self.where}:{number}",
                        tool=self._tool,
                        size_bytes=int(match[1]),
                        gbit_per_s=gbit,
                        device=self._device,
                        mtu=self._mtu,
                        gpu_memory=self._cuda,
                    )
                )
            return True
        return False

    def _matrix(self, number: int, line: str) -> bool:
        if match := _RUNNING.match(line):
            self._end_matrix()
            self._title = match[1]
            return True
        if match := _MATRIX_TITLE.search(line):
            self._end_matrix()
            self._cpu = "CPU(row)" in line
            self._title = match[2] or self._title or match[1]
            self._side = -1
            return True
        if self._side and (match := _MATRIX.match(line)):
            self._side = min(len(match[1].split()), MAX_SIDE)
            return True
        if self._side > 0 and (match := _MATRIX_ROW.match(line)):
            values = match[2].split()
            if len(values) == self._side and len(self._cells) < MAX_PAIRS:
                for column, text in enumerate(values):
                    value = units.number(text)
                    row = f"cpu{match[1]}" if self._cpu else match[1]
                    if value is not None and row != str(column):
                        self._cells.append(Pair(a=row, b=str(column), gb_per_s=value, where=f"{self.where}:{number}"))
                return True
        return False

    def _graph(self, number: int, line: str) -> bool:
        """NCCL's print of its graph: a NIC below its PCI link, and the network below the NIC."""
        if "+ " not in line:
            return False
        if match := _GRAPH_PCI.search(line):
            rate = units.number(match[1])
            self._fastest = max(self._fastest, rate or 0.0)
            self._pci = (rate, match[3]) if rate and match[2] == "NIC" else None
            return True
        if match := _GRAPH_NET.search(line):
            net = units.number(match[1])
            if self._pci and net and len(self._nics) < MAX_TESTS:
                self._nics.append(
                    GraphNic(
                        where=f"{self.where}:{number}",
                        name=match[2],
                        net_gbs=net,
                        pci_gbs=self._pci[0],
                        fastest_gbs=0.0,
                        text=f"PCI[{self._pci[0]:g}] - NIC/{self._pci[1]} + NET[{net:g}]",
                    )
                )
            return True
        return False

    def graph_nics(self) -> tuple[GraphNic, ...]:
        return tuple(replace(n, fastest_gbs=self._fastest) for n in self._nics)

    def _end_matrix(self) -> None:
        if self._cells:
            pairs = tuple(self._cells)
            kind = "cpu-gpu" if self._cpu else "gpus"
            self.matrices.append(PairTable(where=pairs[0].where, kind=kind, pairs=pairs, label=self._title))
        self._cells, self._side, self._cpu = [], 0, False

    def pair(self, number: int, line: str) -> bool:
        """Two hosts and a rate; to be asked last, as it has no header."""
        match = _PAIR.match(line)
        if not match or len(self._pairs) >= MAX_PAIRS:
            return False
        a, b = match[1], match[2]
        if a == b or not _is_host(a) or not _is_host(b):
            return False
        factor = units.rate_factor(match[4]) if match[4] else 1.0
        if factor is None:
            return False
        self._pairs.append(Pair(a=a, b=b, gb_per_s=float(match[3]) * factor, where=f"{self.where}:{number}"))
        return True


def _is_host(name: str) -> bool:
    """Hosts of a cluster are numbered; words of sentences are not."""
    return name.lower() not in _NO_HOST and any(c.isdigit() for c in name)
