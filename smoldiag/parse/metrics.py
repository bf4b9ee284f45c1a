"""Metrics of training runs -> Series: CSV files, exports of boards, JSON, JSON lines, logs of trainers."""

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smoldiag import redact
from smoldiag.facts.series import COLUMNS, Series
from smoldiag.parse import log_origin, metric_names, step_lines
from smoldiag.parse.metric_names import EXACT, Meaning

MAX_ROWS = 200_000  # of one series; of a longer one every second, fourth ... is kept
MAX_SERIES = 2_000
MIN_ROWS = 4  # fewer make no series
MAX_COLUMNS = 500
MAX_HEADER = 64_000  # characters
MAX_HEADER_LINE = 8  # further down no table begins whose columns have no telling names
MAX_LINE = 4_000  # characters of a log's line that are looked at
MAX_DEPTH = 6
MAX_VALUE = 1e15  # of any column; a thousand times the tokens of the longest run
MIN_SPEED = 1e-9
MIN_LOSS_ROWS = 20  # of a column without a telling name
AXES = ("step", "tokens", "time_s", "elapsed_s", "rank")
VALUES = ("rate", "step_s", "loss", "data_s", "grad_norm")
_UNIX = 1e9  # a time from here on is Unix time; before, time since the start
_LM_LOSS = (0.05, 20.0)  # what the loss of a language model lies between: ln(vocabulary) is at most 13
_LM_FALLS = 1.15  # by this it falls from its first values to its later half

_AXIS = re.compile(r"step|iter|token|time", re.IGNORECASE)
_METRICS_JSON = re.compile(
    r'"log_history"|"(?:\w{0,20}[ _/])?(?:global_)?(?:step|iteration|tokens|consumed_tokens)s?"\s{0,4}:'
)
_JSON_VALUES = re.compile(
    r'"log_history"|"[^"]{0,60}(?:loss|throughput|tokens_per_s|samples_per_s|tps|step_time|step_s|time_per_iteration)'
    r'[^"]{0,30}"\s{0,4}:',
    re.IGNORECASE,
)
_OBJECT = re.compile(r"\{[^{}]{2,20000}\}")


def looks_like(name: str, head: bytes) -> bool:
    """By the first 4 KiB; a job's log with such lines further down is found by `wants`."""
    text = head.decode("utf-8", "replace")
    if is_json(head):
        return bool(_METRICS_JSON.search(text)) and bool(_JSON_VALUES.search(text))
    reader = _Lines(name)
    for number, line in enumerate(text.splitlines(), 1):
        reader.read(number, line[:MAX_LINE])
    return reader.rows > 0


def wants(line: str) -> bool:
    """A line that makes a log worth reading for metrics, too."""
    return step_lines.line(line[:MAX_LINE]) is not None


def is_json(head: bytes) -> bool:
    """A JSON document, or JSON lines."""
    return bool(re.match(rb"(?:\xef\xbb\xbf)?\s*(?:\{\s*[\"}\n]|\[\s*[\[{\"\d\n])", head))


def parse(lines: Iterable[str], *, where: str) -> tuple[Series, ...]:
    """A CSV file or a log. ValueError where it has no rows of metrics."""
    reader = _Lines(where)
    for number, line in enumerate(lines, 1):
        reader.read(number, line[:MAX_LINE] if reader.table is None else line)
    return _some(reader.finish(), where)


def from_json(data: bytes, *, where: str) -> tuple[tuple[Series, ...], str]:
    """A document or JSON lines, and a note on what is missing of it. ValueError where it has no rows of metrics."""
    text = data.decode("utf-8", "replace").lstrip("\ufeff")
    rows = _Rows(where)
    note = ""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        objects = [o for o in _objects(text) if o[1]]
        if not objects:
            return _only_begins_so(text, where=where), ""
        source = "Hugging Face Trainer" if '"log_history"' in text[:4096] else "JSON lines"
        if source != "JSON lines" or not text.rstrip().endswith("}"):
            note = f"{where}: cut off; its {len(objects)} whole rows are read"
        _add_records(rows, [o for _, o in objects], source=source, numbers=[n for n, _ in objects])
    else:
        _walk(rows, document, (), 0)
    return _some(rows.finish(), where), note


def _only_begins_so(text: str, *, where: str) -> tuple[Series, ...]:
    """A log whose first line looks like JSON. ValueError as of a JSON document where it is none either."""
    try:
        return parse(text.splitlines(), where=where)
    except ValueError:
        raise ValueError(f"{where}: JSON that can't be read, and no row of metrics in it") from None


def _some(found: tuple[Series, ...], where: str) -> tuple[Series, ...]:
    if not found:
        raise ValueError(f"{where}: no metrics of a run in it (steps with a time, a throughput or a loss)")
    return found


class _Rows:
    """Rows of several runs, as columns."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._runs: dict[str, _Run] = {}

    def add(
        self, number: int, values: Mapping[str, float], *, run: str = "", source: str = "table", unit: str = ""
    ) -> None:
        values = _sane(values)
        if not any(name in values for name in VALUES):
            return
        of = self._runs.get(run)
        if of is None:
            if len(self._runs) >= MAX_SERIES:
                return
            of = self._runs[run] = _Run(number=number, source=source)
        if "rate" in values:
            of.unit = of.unit if of.unit is not None else unit
            if of.unit != unit:  # two throughputs side by side: the first counts
                values = {k: v for k, v in values.items() if k != "rate"}
        of.add(values)

    def finish(self) -> tuple[Series, ...]:
        return tuple(
            Series(
                where=f"{self.where}:{of.number}",
                name=redact.text(run[:80]),
                source=of.source,
                columns={name: tuple(of.columns[name]) for name in COLUMNS if name in of.columns},
                rate_unit=of.unit or "",
                thinned=of.stride,
            )
            for run, of in self._runs.items()
            if of.rows >= MIN_ROWS and any(name in of.columns for name in VALUES[:3])
        )


@dataclass(kw_only=True)
class _Run:
    number: int
    source: str
    unit: str | None = None
    columns: dict[str, list[float | None]] = field(default_factory=dict)
    rows: int = 0
    seen: int = 0
    stride: int = 1

    def add(self, values: Mapping[str, float]) -> None:
        if self._completes(values):
            for name, value in values.items():
                self.columns.setdefault(name, [None] * self.rows)[-1] = value
            return
        self.seen += 1
        if self.seen % self.stride:
            return
        for name, value in values.items():
            column = self.columns.get(name)
            if column is None:
                column = self.columns[name] = [None] * self.rows
            column.append(value)
        self.rows += 1
        for column in self.columns.values():
            if len(column) < self.rows:
                column.append(None)
        if self.rows >= MAX_ROWS:
            for column in self.columns.values():
                del column[::2]
            self.rows = len(next(iter(self.columns.values())))
            self.stride *= 2

    def _completes(self, values: Mapping[str, float]) -> bool:
        """Whether a row only adds columns to the row before it, of the same step: Lightning writes a row per logger."""
        if not self.rows or "step" not in values or not any(name in values for name in VALUES):
            return False
        return all(
            self._last(name) == value if name in ("step", "rank") else self._last(name) is None
            for name, value in values.items()
        )

    def _last(self, name: str) -> float | None:
        column = self.columns.get(name)
        return column[-1] if column else None


@dataclass(frozen=True, kw_only=True)
class _Table:
    """What the columns of a CSV file are."""

    delimiter: str
    shared: tuple[tuple[int, Meaning], ...]  # of every run of a row
    values: tuple[tuple[int, Meaning], ...]
    run: int | None
    source: str
    by_run: bool  # columns of several runs side by side
    width: int


class _Lines:
    """Reads a text line by line: a table from its header on, else what lines say of steps."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.table: _Table | None = None
        self.rows = 0
        self._rows = _Rows(where)
        self._steps = step_lines.Reader()
        self._unnamed: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self._source = "log"

    def read(self, number: int, line: str) -> None:
        if self.table is not None and self._row(number, line):
            return
        said = self._steps.line(line)
        if said is not None:
            self.rows += 1
            if said.source != "log":
                self._source = said.source
            self._rows.add(number, said.values, source=self._source, unit=said.rate_unit)
        elif table := _header(line, self.where, first=number <= MAX_HEADER_LINE):
            self.table = table

    def finish(self) -> tuple[Series, ...]:
        for run, rows in self._unnamed.items():
            if _falls_like_a_loss([values["?"] for _, values in rows]):
                for number, values in rows:
                    told = {("loss" if k == "?" else k): v for k, v in values.items()}
                    self._rows.add(number, told, run=run, source=self.table.source if self.table else "table")
        return self._rows.finish()

    def _row(self, number: int, line: str) -> bool:
        table = self.table
        assert table is not None
        cells = _cells(line, table.delimiter)
        if len(cells) < table.width:
            return False
        shared = {m.kind: v for p, m in table.shared if (v := _number(cells[p], m)) is not None}
        run = cells[table.run].strip() if table.run is not None and table.run < len(cells) else ""
        rows: dict[str, dict[str, float]] = {}
        units: dict[str, str] = {}
        for place, m in table.values:
            value = _number(cells[place], m)
            if value is not None and not (table.by_run and math.isnan(value)):  # a run that has no row there
                of = m.run if table.by_run else run
                rows.setdefault(of, {})[m.kind] = value
                if m.kind == "rate":
                    units[of] = m.unit
        if not shared and not rows:
            return False
        for of, values in rows.items():
            if not any(k in VALUES or k == "?" for k in values):
                continue
            self.rows += 1
            told = _dated(shared | values)
            if "?" in told:
                self._unnamed.setdefault(of, []).append((number, told))
            else:
                self._rows.add(number, told, run=of, source=table.source, unit=units.get(of, ""))
        return True


def _header(line: str, where: str, *, first: bool) -> _Table | None:
    """The columns of a table; None where the line is no header of metrics. Further down names must be telling."""
    delimiter = next((d for d in ("\t", ",", ";") if d in line), None)
    if delimiter is None or len(line) > MAX_HEADER or not _AXIS.search(line):
        return None
    cells = _cells(line, delimiter)
    if not 2 <= len(cells) <= MAX_COLUMNS or sum(_plain_number(c) is not None for c in cells) > len(cells) // 4:
        return None
    found = [(i, m) for i, c in enumerate(cells) if (m := metric_names.meaning(c))]
    named = next((i for i, m in found if m.kind == "run"), None)
    axes = [(i, m) for i, m in found if m.kind in AXES]
    board = [c.strip().lower() for c in cells] == ["wall time", "step", "value"]
    if board:  # TensorBoard's export: the metric is in the file's name
        return _of_board(where, delimiter)
    values = list(_surest([(i, m) for i, m in found if m.kind in VALUES]))
    exporting = any(c.strip('" ').endswith(("__MIN", "__MAX")) or " - " in c for c in cells)
    if not any(m.kind in ("rate", "step_s", "loss") for _, m in values):
        unnamed = [(i, m) for i, m in found if m.kind == "?"]
        if not first or not unnamed:
            return None
        values = [(i, m) for i, m in unnamed if m.run.lower() not in _NO_METRIC]
    runs = {m.run for _, m in values if m.run}
    if not values or not any(m.kind in ("step", "tokens", "time_s", "elapsed_s") for _, m in axes):
        return None
    own = [(i, m) for i, m in axes if m.run and m.run in runs]  # axes that a run has for itself
    lightning = where.endswith("metrics.csv") and cells[:2] == ["epoch", "step"]
    return _Table(
        delimiter=delimiter,
        shared=tuple((i, m) for i, m in axes if (i, m) not in own),
        values=(*values, *own),
        run=named,
        source="W&B export" if exporting else "Lightning CSV" if lightning else "table",
        by_run=bool(runs) and named is None,
        width=1 + max(i for i, _ in (*values, *axes)),
    )


_NO_METRIC = {"epoch", "lr", "learning_rate", "learning rate", "seed", "host", "hostname", "node", "value", "metric"}


def _of_board(where: str, delimiter: str) -> _Table | None:
    tag = re.sub(r"\.csv$", "", where.rpartition("/")[2])
    words = re.split(r"[-_.]tag-|tag=", tag)
    named = metric_names.meaning(words[-1]) or Meaning(kind="?", run=tag, sure=metric_names.UNKNOWN)
    meant = named if named.kind in VALUES else Meaning(kind="?", run=tag, sure=metric_names.UNKNOWN)
    return _Table(
        delimiter=delimiter,
        shared=((0, Meaning(kind="time_s")), (1, Meaning(kind="step"))),
        values=((2, Meaning(kind=meant.kind, run=words[0] if len(words) > 1 else tag, unit=meant.unit)),),
        run=None,
        source="TensorBoard export",
        by_run=True,
        width=3,
    )


def _surest(found: Sequence[tuple[int, Meaning]]) -> Iterator[tuple[int, Meaning]]:
    """Of each kind and run the columns with the surest names; of exact ones the first, per GPU where there is one."""
    for kind in VALUES:
        of_kind = [(i, m) for i, m in found if m.kind == kind]
        best = min((m.sure for _, m in of_kind), default=EXACT)
        seen: set[str] = set()
        for i, m in sorted(of_kind, key=lambda x: ("/GPU" not in x[1].unit, x[0])):
            if m.sure != best or (m.run in seen and best == EXACT):
                continue
            seen.add(m.run)
            yield i, m


def _cells(line: str, delimiter: str) -> list[str]:
    if '"' not in line:
        return line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return line.split(delimiter)


def _plain_number(text: str) -> float | None:
    try:
        return float(text.strip().strip('"'))
    except ValueError:
        return None


def _number(cell: str, meant: Meaning) -> float | None:
    text = cell.strip()
    if not text:
        return None
    value = _plain_number(text)
    if value is None:
        return log_origin.time_of(text) if meant.kind == "time_s" else None
    if not math.isfinite(value):
        return math.nan if meant.kind in ("loss", "grad_norm", "?") else None
    if value < 0 and meant.kind in ("rate", "data_s", "step", "tokens"):
        return None
    return value * meant.factor


def _sane(values: Mapping[str, float]) -> dict[str, float]:
    """Without what no run has; a loss beyond all bounds is no number."""
    kept = {}
    for name, value in values.items():
        if name in ("loss", "grad_norm"):
            kept[name] = value if abs(value) <= MAX_VALUE else math.nan
        elif value <= MAX_VALUE and (value >= MIN_SPEED or name not in ("rate", "step_s")):
            kept[name] = value
    return kept


def _dated(values: dict[str, float]) -> dict[str, float]:
    """A small time is one since the start; a very large one is in milliseconds."""
    at = values.get("time_s")
    if at is not None and at < _UNIX:
        values = {("elapsed_s" if k == "time_s" else k): v for k, v in values.items()}
    elif at is not None and at > 1e3 * _UNIX:
        values["time_s"] = at / 1e3
    return values


def _falls_like_a_loss(values: Sequence[float]) -> bool:
    known = [v for v in values if math.isfinite(v)]
    if len(known) < MIN_LOSS_ROWS or not all(_LM_LOSS[0] < v < _LM_LOSS[1] for v in known):
        return False
    later = sorted(known[len(known) // 2 :])
    return max(known[:5]) > _LM_FALLS * later[len(later) // 2]


def _objects(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Lines that are objects, else the innermost objects of a document that was cut off: (line, object)."""
    number, end = 1, 0
    for match in _OBJECT.finditer(text):
        number += text.count("\n", end, match.start())
        end = match.start()
        try:
            found = json.loads(match[0])
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            yield number, found


def _walk(rows: _Rows, node: Any, path: tuple[str, ...], depth: int) -> None:
    """Lists of records, and tables by column, wherever they stand; the keys above them are the run's name."""
    if depth > MAX_DEPTH:
        return
    if isinstance(node, list) and node and all(isinstance(item, dict) for item in node[:8]):
        trainer = bool(path) and path[-1] == "log_history"
        source = "Hugging Face Trainer" if trainer else "JSON"
        _add_records(rows, node, source=source, run="" if trainer else " ".join(path))
    elif isinstance(node, dict):
        lists = {k: v for k, v in node.items() if isinstance(v, list) and v and not isinstance(v[0], list | dict)}
        if len(lists) >= 2 and len({len(v) for v in lists.values()}) == 1:
            length = len(next(iter(lists.values())))
            records = [{k: v[i] for k, v in lists.items()} for i in range(length)]
            _add_records(rows, records, source="JSON", run=" ".join(path))
        for key, value in list(node.items())[:MAX_SERIES]:
            if isinstance(value, dict | list) and key not in lists:
                _walk(rows, value, (*path, str(key)[:60]), depth + 1)


def _add_records(
    rows: _Rows, records: Sequence[Any], *, source: str, run: str = "", numbers: Sequence[int] = ()
) -> None:
    keys = list(dict.fromkeys(k for record in records[:200] if isinstance(record, dict) for k in record))
    found = [(i, m) for i, name in enumerate(keys) if (m := metric_names.meaning(name))]
    values = list(_surest([(i, m) for i, m in found if m.kind in VALUES]))
    meanings = {keys[i]: m for i, m in (*values, *((i, m) for i, m in found if m.kind in (*AXES, "run")))}
    if not any(m.kind in ("rate", "step_s", "loss") for m in meanings.values()):
        return
    for place, record in enumerate(records):
        if not isinstance(record, dict):
            continue
        told: dict[str, float] = {}
        of, unit = run, ""
        for key, value in record.items():
            m = meanings.get(key)
            if m is None or isinstance(value, bool) or value is None:
                continue
            if m.kind == "run":
                of = str(value)
            elif (number := _number(str(value), m)) is not None:
                told[m.kind] = number
                unit = m.unit if m.kind == "rate" else unit
        if any(k in told for k in VALUES) and any(k in told for k in AXES[:4]):
            number_ = numbers[place] if numbers else place + 1
            rows.add(number_, _dated(told), run=of, source=source, unit=unit)
