"""Single rates in lines of words: `busbw: 1146 Gbps`, `NCCL 2.25: about 7 GB/s`, `expected 50 GB/s, measured 27 GB/s`.

Only lines that are little else than a name and a rate; sentences of prose give nothing.
"""

import re
from dataclasses import dataclass, field

from smoldiag import redact
from smoldiag.facts import Evidence
from smoldiag.facts.tables import Figure
from smoldiag.parse import units

MAX_FIGURES = 2_000
MAX_NOTES = 100

_UNIT = r"(?:[KMGT]i?[bB](?:it|yte)?s?(?:/s(?:ec)?|ps))"
_RATE = rf"(?:about |around |approx\.? |~ ?)?(\d{{1,6}}(?:\.\d{{1,6}})?) ?({_UNIT})"
_SETTING = re.compile(r"\b((?:NCCL|FI|CUDA|UCX)_[A-Z0-9_]{2,60})=([\w,.:^-]{1,80})")
_NAMED = re.compile(
    rf"^\W{{0,4}}([A-Za-z][^:=]{{1,90}}?(?:{_SETTING.pattern}[^:=]{{0,40}}?){{0,4}})\s?[:=]\s?{_RATE}(?![A-Za-z])"
)
_BANDWIDTH = re.compile(
    r"b(?:and)?w(?:idth)?\b|busbw|algbw|ib_\w+_bw|perftest|iperf|\bNCCL\b|NCCL_|FI_|throughput|GPUDirect|GDR|default",
    re.IGNORECASE,
)
_NCCL = re.compile(r"\bNCCL (?:v(?:ersion)? ?)?(\d\.\d{1,2}(?:\.\d{1,2})?)", re.IGNORECASE)
_EXPECTED = re.compile(
    rf"\bexpect(?:ed|ing|s)?\b(.{{0,80}}?)\b(?:measured?|got|seen?|see|only|get(?:ting)?|actual(?:ly)?|reach(?:es|ed)?)\b.{{0,20}}?{_RATE}",
    re.IGNORECASE,
)
_ANY_RATE = re.compile(_RATE)
_HINT = re.compile(r"[bB](?:it|yte)?s?(?:/s|ps)|\d ?x ?\d|mtu|MTU|VM|QEMU|irtual|efa|rdma/|gke\.io|flushes|retries")
_HEADING = re.compile(r"^[\s#=*-]*(\d{1,7})\s?[x\u00d7]\s?(\d{1,9}(?:\.\d{1,6})?\s?[KMG]i?B)\b[\s#=*-]*$")
_WORDS = re.compile(  # beside figures they say what the network was set up like
    r"\b(?:active_)?mtu\b[:= ]{1,3}\d{3,5}\b|\bof the VM\b|\bVMs\b|virtual machine|\bKVM\b|\bQEMU\b|"
    r"vpc\.amazonaws\.com/efa\"?: |rdma/[\w-]{1,60}\"?: ?\"?\d|networking\.gke\.io/interfaces|"
    r"allocator cache flushes|alloc_retries|cudaMalloc retries",
    re.IGNORECASE,
)


@dataclass(kw_only=True)
class Reader:
    where: str
    figures: list[Figure] = field(default_factory=list)
    notes: list[Evidence] = field(default_factory=list)
    _repeats: int | None = None
    _size: int | None = None

    def read(self, number: int, line: str) -> bool:
        if len(line) > 400 or not _HINT.search(line):
            return False
        at = f"{self.where}:{number}"
        if match := _HEADING.match(line):
            self._repeats, self._size = int(match[1]), units.size_bytes(match[2].replace(" ", ""))
            return False
        if _WORDS.search(line) and len(self.notes) < MAX_NOTES:
            self.notes.append(Evidence(text=redact.text(line.strip()), where=at))
        if match := _EXPECTED.search(line):
            wanted = _ANY_RATE.findall(match[1])
            got = units.gb_per_s(match[2] + match[3])
            if wanted and got:
                return self._add("measured", got, at, line, expected=units.gb_per_s("".join(wanted[-1])))
        if (match := _NAMED.match(line)) and _BANDWIDTH.search(match[1]):
            number_, unit = match.groups()[-2:]
            rate = units.gb_per_s(number_ + unit)
            return rate is not None and self._add(match[1].strip(), rate, at, line)
        return False

    def _add(self, what: str, rate: float, at: str, line: str, *, expected: float | None = None) -> bool:
        if len(self.figures) >= MAX_FIGURES:
            return False
        version = _NCCL.search(line)
        self.figures.append(
            Figure(
                what=redact.text(what[:120]),
                gb_per_s=rate,
                where=at,
                version=version[1] if version else None,
                size_bytes=self._size,
                repeats=self._repeats,
                settings=tuple((name, redact.variable(name, value)) for name, value in _SETTING.findall(what)),
                expected_gbs=expected,
            )
        )
        return True
