"""Times and throughputs of training steps, out of logs and CSV files of any trainer -> StepSeries."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from smoldiag.facts.tables import StepPoint, StepSeries
from smoldiag.parse import units

MAX_POINTS = 20_000  # of one series; of a longer one every second, fourth ... is kept
MAX_SERIES = 2_000
MIN_POINTS = 4  # fewer make no series
MAX_COLUMNS = 500

_STEP = re.compile(
    r"(?<![A-Za-z_])(?:global[_ ]?step|train[_ ]?step|steps?|iter(?:ation)?s?|it)[\s:=\[#]{1,12}(\d{1,9})"
    r"(?![\d.]*\s?(?:s|ms)\b)",
    re.IGNORECASE,
)
_RANK = re.compile(r"\[(?:default)?rank ?(\d{1,6})\]|\brank[ =:](\d{1,6})\b|\bcuda:(\d{1,3})\b", re.IGNORECASE)
_PER_STEP = re.compile(
    r"([\d.]{1,15})\s?(s|sec|secs|seconds|ms)\s?/\s?(?:step|it|iter|iteration|batch)\b", re.IGNORECASE
)
_PER_SECOND = re.compile(r"([\d.]{1,15})\s?(?:steps?|it|iters?|iterations?)\s?/\s?s(?:ec)?\b", re.IGNORECASE)
_STEP_TIME = r"(?:step|iter(?:ation)?|batch)[_ ]?time"
_IS = r"[\"']?\s?[:=]\s?([\d.]{1,15})"
_TIMED = (  # the words before a time of a step, and its unit in seconds
    (re.compile(r"elapsed time per iteration \(ms\): ([\d.]{1,15})"), 1e-3),
    (re.compile(rf"{_STEP_TIME}(?:[_ ]?(?:in[_ ]?)?s|\(s\))?{_IS}(?![\d.]*\s?ms)", re.IGNORECASE), 1.0),
    (re.compile(rf"{_STEP_TIME}(?:[_ ]?ms|\(ms\))?{_IS}\s?ms?", re.IGNORECASE), 1e-3),
    (re.compile(r"Batch \(t\): ([\d.]{1,15})"), 1.0),  # open_clip
)
_DATA_TIME = r"(?<![a-z])(?:data(?:loader|loading|_loading|_wait)?(?:[_ ]?time)?|load[_ ]?time)"
_DATA = (
    (re.compile(r"Data \(t\): ([\d.]{1,15})"), 1.0),
    (re.compile(rf"{_DATA_TIME}(?:\(s\)|_s)?{_IS}(?![\d.]*\s?(?:ms|%|[KMG]?B))(?=\s?s?\b)", re.IGNORECASE), 1.0),
    (re.compile(rf"{_DATA_TIME}(?:[_ ]?ms|\(ms\))?{_IS}\s?ms", re.IGNORECASE), 1e-3),
)
_THROUGHPUT = re.compile(
    r"(tokens?|samples?|images?|imgs?|sequences?)(?:[_ ]?per[_ ]?sec(?:ond)?|\s?/\s?s(?:ec)?)(?:[_ /]?(?:per[_ ])?gpu)?"
    r"[\"']?\s?[:=|]\s?([\d.,]{1,20})\s?([KM]?)\b",
    re.IGNORECASE,
)
_COLUMN_STEP = re.compile(r"^#?\s*(?:global_)?(?:step|iteration|iter)s?$", re.IGNORECASE)
_COLUMN_RATE = re.compile(
    r"(?:^| - )(?:(tokens?|samples?|images?|imgs?)[_ ]?(?:per|/)[_ ]?s(?:ec(?:ond)?)?(?:[_ ]per[_ ]gpu)?|"
    r"(throughput|wps|tps))(?:\s*\(.*)?$",
    re.IGNORECASE,
)
_COLUMN_TIME = re.compile(
    r"(?:^| - )(?:step|iter(?:ation)?|batch)[_ ]?time[_ ]?\(?(ms|us|s)?\)?$|(?:^| - )(?:s|sec)/(?:step|it)$",
    re.IGNORECASE,
)
_COLUMN_DATA = re.compile(r"^data(?:loader|_loading)?[_ ]?(?:time|wait)[_ ]?\(?(ms|s|us)?\)?", re.IGNORECASE)
_COLUMN_NAME = re.compile(r"^(?:run|name|run[_ ]?name|experiment)$", re.IGNORECASE)
_FACTORS = {"ms": 1e-3, "us": 1e-6}


@dataclass(frozen=True, kw_only=True)
class _Value:
    place: int
    title: str
    unit: str
    factor: float


@dataclass(frozen=True, kw_only=True)
class _Csv:
    step: int
    values: tuple[_Value, ...]
    name: int | None
    data: int | None
    data_factor: float
    width: int


@dataclass(kw_only=True)
class Reader:
    where: str
    _series: dict[tuple[str, str], list[StepPoint]] = field(default_factory=dict)
    _first: dict[tuple[str, str], int] = field(default_factory=dict)
    _seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    _stride: dict[tuple[str, str], int] = field(default_factory=dict)
    _csv: _Csv | None = None

    def read(self, number: int, line: str) -> bool:
        if "," in line and (csv := _csv_header(line)):
            self._csv = csv
            return True
        if self._csv and self._csv_row(number, line):
            return True
        step = _STEP.search(line)
        if not step:
            return False
        found = _value(line)
        data = next((float(m[1]) * f for p, f in _DATA if (m := p.search(line)) and _is_float(m[1])), None)
        if found is None:
            return False
        unit, value = found
        rank = _RANK.search(line)
        of = int(next(g for g in rank.groups() if g)) if rank else None
        self._add(number, ("", unit), StepPoint(step=int(step[1]), value=value, rank=of, data_s=data))
        return True

    def finish(self) -> tuple[StepSeries, ...]:
        return tuple(
            StepSeries(where=f"{self.where}:{self._first[key]}", name=key[0], unit=key[1], points=tuple(points))
            for key, points in self._series.items()
            if len(points) >= MIN_POINTS
        )

    def _csv_row(self, number: int, line: str) -> bool:
        c = self._csv
        assert c is not None
        cells = _csv_cells(line)
        if len(cells) < c.width or (step := units.number(cells[c.step])) is None:
            return False
        data = units.number(cells[c.data]) if c.data is not None else None
        run = cells[c.name][:80] if c.name is not None else ""
        found = False
        for v in c.values:
            value = units.number(cells[v.place])
            if value is None:
                continue
            found = True
            point = StepPoint(
                step=int(step), value=value * v.factor, data_s=data * c.data_factor if data is not None else None
            )
            self._add(number, (run or v.title, v.unit), point)
        return found

    def _add(self, number: int, key: tuple[str, str], point: StepPoint) -> None:
        if key not in self._series and len(self._series) >= MAX_SERIES:
            return
        points = self._series.setdefault(key, [])
        self._first.setdefault(key, number)
        self._seen[key] += 1
        if point.value >= 0 and self._seen[key] % self._stride.get(key, 1) == 0:
            points.append(point)
        if len(points) >= MAX_POINTS:
            del points[::2]
            self._stride[key] = 2 * self._stride.get(key, 1)


def _value(line: str) -> tuple[str, float] | None:
    """Time of the step where it is told, else a throughput."""
    if (match := _PER_STEP.search(line)) and _is_float(match[1]):
        return "s", float(match[1]) * (1e-3 if match[2].lower() == "ms" else 1.0)
    for pattern, factor in _TIMED:
        if (match := pattern.search(line)) and _is_float(match[1]):
            return "s", float(match[1]) * factor
    if (match := _PER_SECOND.search(line)) and _is_float(match[1]) and float(match[1]) > 0:
        return "s", 1 / float(match[1])
    if match := _THROUGHPUT.search(line):
        value = units.number(match[2].replace(",", ""))
        if value is not None:
            factor = {"": 1.0, "k": 1e3, "m": 1e6}[match[3].lower()]
            return ("tokens/s" if match[1].lower().startswith("token") else "samples/s"), value * factor
    return None


def _is_float(text: str) -> bool:
    return text.count(".") <= 1 and text not in ("", ".")


def _csv_cells(line: str) -> list[str]:
    return [c.strip().strip('"') for c in line.split(",")]


def _csv_header(line: str) -> _Csv | None:
    cells = _csv_cells(line)
    if len(cells) > MAX_COLUMNS:
        return None
    plain = [re.sub(r"\s+\(.*", "", c) for c in cells]
    step = _place(plain, _COLUMN_STEP)
    if step is None:
        return None
    values = []
    for place, cell in enumerate(plain):
        if match := _COLUMN_RATE.search(cell):
            unit = "samples/s" if match[1] and not match[1].lower().startswith("token") else "tokens/s"
            values.append(_Value(place=place, title=cell.rpartition(" - ")[0][:80], unit=unit, factor=1.0))
        elif match := _COLUMN_TIME.search(cell):
            title = cell.rpartition(" - ")[0][:80]
            values.append(_Value(place=place, title=title, unit="s", factor=_FACTORS.get(match[1] or "", 1.0)))
    if not values:
        return None
    data = _place(plain, _COLUMN_DATA)
    match = _COLUMN_DATA.match(plain[data]) if data is not None else None
    return _Csv(
        step=step,
        values=tuple(values),
        name=_place(plain, _COLUMN_NAME),
        data=data,
        data_factor=_FACTORS.get(match[1] or "", 1.0) if match else 1.0,
        width=len(cells),
    )


def _place(cells: Sequence[str], pattern: re.Pattern[str]) -> int | None:
    return next((i for i, c in enumerate(cells) if pattern.match(c)), None)
