"""Tables of profilers: torch.profiler's averages, TraceLens' and HTA's time lines, communication kernels by rank."""

import re
from dataclasses import dataclass, field

from smoldiag.facts.tables import KernelTable, KernelTime, Operator, ProfilerTable, Timeline
from smoldiag.parse import units

MAX_OPERATORS = 5_000
MAX_TIMELINES = 10_000
MAX_KERNELS = 200_000
MAX_NAME = 200

_HINT = re.compile(r"%|Self |_time[,\s]|_pctg|ernel")
_VALUE = r"(?:-?[\d.]{1,20}(?:us|ms|s|%)|nan|NaN|--|-?\d{1,15}(?:\.\d+)? ?(?:[KMG]?b|[KMG]?FLOPs)|\d{1,12})"
_OPERATOR = re.compile(rf"^\s*(\S.{{0,400}}?)\s{{1,200}}((?:{_VALUE}\s+){{4,20}})(\d{{1,12}})\s*$")
_HEADER = re.compile(r"^\s*Name\s+Self CPU")
_TOTAL = re.compile(r"^\s*Self (CPU|CUDA|XPU|PrivateUse1) time total: ([\d.]{1,20}(?:us|ms|s))")
_DEFAULT = ("Self CPU %", "Self CPU", "CPU total %", "CPU total", "CPU time avg", "Self CUDA", "Self CUDA %",
            "CUDA total", "CUDA time avg")  # fmt: skip
_GPU_TIMELINE = re.compile(
    r"^\s*(computation|exposed_comm|exposed_memcpy|busy|idle|total_comm|total_memcpy)_time\s*[,\s]\s*"
    r"([\d.eE+-]{1,30})\s*[,\s]\s*([\d.eE+-]{1,30})"
)
_TIMELINE_NAMES = {"computation": "computation", "exposed_comm": "exposed_comm", "exposed_memcpy": "exposed_memcpy",
                   "busy": "busy", "idle": "idle", "total_comm": "comm", "total_memcpy": "memcpy"}  # fmt: skip
_HTA = re.compile(r"\brank\b.*\b(idle_time_pctg|comp_comm_overlap_pctg)\b")
_HTA_NAMES = {
    "idle_time_pctg": "idle",
    "compute_time_pctg": "computation",
    "non_compute_time_pctg": "non_compute",
    "comp_comm_overlap_pctg": "overlap",
}
_KERNEL = re.compile(
    r"^\s*(?:rank\s*)?(\d{1,6})\s*[,\s]\s*([\d.]{1,20})\s*[,\s]\s*([\d.]{1,20})\s*[,\s]\s*((?:nccl|rccl)(?:Dev)?Kernel\S{0,200})"
)


@dataclass(kw_only=True)
class Reader:
    where: str
    tables: list[ProfilerTable] = field(default_factory=list)
    timelines: list[Timeline] = field(default_factory=list)
    _operators: list[Operator] = field(default_factory=list)
    _at: int = 0
    _columns: tuple[str, ...] = _DEFAULT
    _totals: dict[str, float] = field(default_factory=dict)
    _percent: dict[str, float] = field(default_factory=dict)
    _hta: tuple[str, ...] = ()
    _kernels: list[KernelTime] = field(default_factory=list)
    _kernels_at: int = 0

    def read(self, number: int, line: str) -> bool:
        if not (self._at or self._hta or _HINT.search(line)):
            return False
        if ("%" in line or self._at) and (match := _OPERATOR.match(line)) and self._operator(number, match):
            return True
        if match := _TOTAL.match(line):
            self._totals["cpu" if match[1] == "CPU" else "gpu"] = units.microseconds(match[2]) or 0.0
            return True
        if _HEADER.match(line):
            self._end_table()
            self._columns = tuple(c for c in re.split(r"\s{2,}", line.strip())[1:] if c != "# of Calls")
            return True
        if match := _GPU_TIMELINE.match(line):
            share = units.number(match[3])
            name = _TIMELINE_NAMES[match[1]]
            if name in self._percent:
                self._end_timeline()
            if share is not None:
                self._at = self._at or number
                self._percent[name] = share
            return True
        return self._hta_row(number, line) or self._kernel(number, line)

    def finish(self) -> tuple[KernelTable, ...]:
        self._end_table()
        self._end_timeline()
        if not self._kernels:
            return ()
        return (KernelTable(where=f"{self.where}:{self._kernels_at}", kernels=tuple(self._kernels)),)

    def _operator(self, number: int, match: re.Match[str]) -> bool:
        values = re.findall(_VALUE, match[2])
        if len(values) < 4 or not any(v.endswith(("s", "%")) for v in values):
            return False
        got = dict(zip(self._columns, values, strict=False))
        self._at = self._at or number
        if len(self._operators) < MAX_OPERATORS:
            self._operators.append(
                Operator(
                    name=match[1].strip()[:MAX_NAME],
                    self_cpu_us=_time(got, "Self CPU"),
                    cpu_us=_time(got, "CPU total"),
                    self_gpu_us=_time(got, "Self CUDA", "Self XPU", "Self PrivateUse1"),
                    gpu_us=_time(got, "CUDA total", "XPU total", "PrivateUse1 total"),
                    calls=int(match[3]),
                )
            )
        return True

    def _end_table(self) -> None:
        if self._operators:
            self.tables.append(
                ProfilerTable(
                    where=f"{self.where}:{self._at}",
                    operators=tuple(self._operators),
                    cpu_us=self._totals.get("cpu"),
                    gpu_us=self._totals.get("gpu"),
                )
            )
        self._operators, self._totals, self._at = [], {}, 0

    def _end_timeline(self) -> None:
        if self._percent and len(self.timelines) < MAX_TIMELINES:
            self.timelines.append(Timeline(where=f"{self.where}:{self._at}", percent=dict(self._percent)))
        self._percent, self._at = {}, 0

    def _hta_row(self, number: int, line: str) -> bool:
        words = [w.strip() for w in re.split(r"[,|\s]+", line.strip()) if w.strip()]
        if _HTA.search(line):
            self._hta = tuple(words)
            return True
        if not self._hta:
            return False
        values = words[len(words) - len(self._hta) :]  # pandas prints the index before them
        got = dict(zip(self._hta, (units.number(v) for v in values), strict=False))
        rank = got.get("rank")
        if len(values) != len(self._hta) or rank is None or len(self.timelines) >= MAX_TIMELINES:
            self._hta = ()
            return False
        percent = {_HTA_NAMES[k]: v for k, v in got.items() if k in _HTA_NAMES and v is not None}
        self.timelines.append(Timeline(where=f"{self.where}:{number}", percent=percent, rank=int(rank)))
        return True

    def _kernel(self, number: int, line: str) -> bool:
        if "ernel" not in line or not (match := _KERNEL.match(line)):
            return False
        start, duration = units.number(match[2]), units.number(match[3])
        if start is None or duration is None or len(self._kernels) >= MAX_KERNELS:
            return False
        self._kernels_at = self._kernels_at or number
        self._kernels.append(
            KernelTime(rank=int(match[1]), start_us=start, duration_us=duration, name=match[4][:MAX_NAME])
        )
        return True


def _time(got: dict[str, str], *names: str) -> float | None:
    for name in names:
        if name in got:
            return units.microseconds(got[name])
    return None
