"""Tables whose header names the columns, as people and scripts make them: markdown, CSV, blanks -> BandwidthTable.

A header needs a bandwidth and something that it goes by (size, nodes, ranks). Several columns of bandwidth are
several tables, each with its title as label.
"""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from smoldiag.facts import Evidence
from smoldiag.facts.tables import BandwidthTable, Measured, Row
from smoldiag.parse import units
from smoldiag.parse.nccl_tests import collective_of, collective_of_name

MAX_ROWS = 10_000
MAX_TABLES = 500
MAX_COLUMNS = 64

_KINDS = (  # the first that fits
    ("busbw", re.compile(r"bus[ _]?b(?:and)?w(?:idth)?", re.IGNORECASE)),
    ("algbw", re.compile(r"alg(?:o|orithm)?[ _]?b(?:and)?w(?:idth)?", re.IGNORECASE)),
    ("algbw", re.compile(r"^(?:avg|average|mean|peak|max)?[ _]?(?:bandwidth|bw)$", re.IGNORECASE)),
    ("run", re.compile(r"^(?:run|run[ _]?name|experiment|label|config)$", re.IGNORECASE)),
    ("wrong", re.compile(r"^#?wrong|^errors?$", re.IGNORECASE)),
    ("time", re.compile(r"^(?:avg |mean |median )?(?:time|latency|lat|duration)\b|latency_8B|_[um]s$", re.IGNORECASE)),
    ("size", re.compile(r"^(?:message|msg|data|buffer|payload|transfer)?[ _]?(?:size|bytes|payload)\b", re.IGNORECASE)),
    ("size", re.compile(r"^#bytes$|^nbytes|^message$|^msg$|^size", re.IGNORECASE)),
    ("nodes", re.compile(r"^#?(?:num[ _]?)?(?:nodes|hosts|servers|machines)$|^nnodes$", re.IGNORECASE)),
    ("ranks", re.compile(r"^#?(?:num[ _]?)?(?:gpus|ranks|world[ _]?size|nranks|np|procs|processes)$", re.IGNORECASE)),
    ("collective", re.compile(r"^(?:collective|operation|op|name|test)$", re.IGNORECASE)),
    ("count", re.compile(r"^count$|^elements$|^n$", re.IGNORECASE)),
    ("dtype", re.compile(r"^d?type$", re.IGNORECASE)),
)
_RATE_UNIT = re.compile(r"\b([kKMGT]i?[bB](?:it|yte)?s?(?:/s(?:ec)?|ps))\b|_(GB[p_]?s|Gbps)\b")
_TIME_UNIT = re.compile(r"\(?\b(ns|us|\u00b5s|ms|sec|s)\b\)?|_(us|ms|ns)\b")
_JOIN = re.compile(r"(\d)\s+([KMGT]i?B(?:ps|/s)?|[KMG]bps|Gb/s|[um]s)\b")
_MODES = re.compile(
    r"ring|tree|nvls(?:tree)?|collnet|pat|ll128|ll|simple|auto|default|before|after|old|new|with|without|on|off|"
    r"NCCL[ _][\w.=-]+|v?\d+\.\d+\.\d+",
    re.IGNORECASE,
)
_HINTS = ("size", "payload", "bytes", "message", "nodes", "hosts", "gpus", "ranks", "msg", "procs", " np ", "servers")
_RULER = re.compile(r"^[\s|:+=-]+$")
_UNITS_LINE = re.compile(r"^[#\s]*(?:\([^()]{1,12}\)\s*){2,}$")


@dataclass(frozen=True, kw_only=True)
class _Column:
    kind: str
    title: str
    unit: str = ""


@dataclass(kw_only=True)
class _Open:
    columns: tuple[_Column, ...]
    style: str  # | , or blank
    line: int
    rows: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)


@dataclass(kw_only=True)
class Reader:
    where: str
    tables: list[BandwidthTable] = field(default_factory=list)
    _open: _Open | None = None
    _heading: deque[str] = field(default_factory=lambda: deque(maxlen=4))
    _notes: list[Evidence] = field(default_factory=list)

    def read(self, number: int, line: str) -> bool:
        """Whether the line belongs to such a table."""
        if self._open and (_RULER.match(line) or not line.strip()):
            return False
        if self._open and self._row(number, _cells(line, self._open.style), line):
            return True
        header = _header(line)
        if header:
            self._close()
            style, columns = header
            self._open = _Open(columns=columns, style=style, line=number)
            return True
        if self._open and not line.lstrip().startswith("#"):
            self._close()
        if line.strip():
            self._heading.append(line[:200])
            if line.lstrip().startswith("#") and len(self._notes) < 20:
                self._notes.append(Evidence(text=line.strip("# \n")[:200], where=f"{self.where}:{number}"))
        return False

    def finish(self) -> tuple[BandwidthTable, ...]:
        self._close()
        return tuple(self.tables)

    def _row(self, number: int, cells: Sequence[str], line: str) -> bool:
        o = self._open
        assert o is not None
        if o.style == " " and _UNITS_LINE.match(line):
            shown = re.findall(r"\(([^()]{1,12})\)", line)
            places = [i for i, c in enumerate(o.columns) if c.kind in ("size", "time", "busbw", "algbw")]
            for place, unit in zip(places, shown, strict=False):
                if unit not in ("B", "elements"):
                    o.columns = (*o.columns[:place], _with_unit(o.columns[place], unit), *o.columns[place + 1 :])
            return True
        if len(cells) < len(o.columns) or len(cells) > len(o.columns) + 4:
            return False
        keys = [i for i, c in enumerate(o.columns) if c.kind in ("size", "nodes", "ranks")]
        rates = [i for i, c in enumerate(o.columns) if c.kind in ("busbw", "algbw")]
        if not all(units.size_bytes(cells[i]) is not None for i in keys):
            return False
        if not any(units.gb_per_s(cells[i], unit=o.columns[i].unit) is not None for i in rates):
            return False
        if len(o.rows) < MAX_ROWS:
            o.rows.append((number, tuple(cells)))
        return True

    def _close(self) -> None:
        o, self._open = self._open, None
        if o is None or not o.rows:
            return
        above = " ".join(x.strip() for x in self._heading)
        collective = collective_of_name(self.where) or _collective(above)
        buses = [i for i, c in enumerate(o.columns) if c.kind == "busbw"]
        algs = [i for i, c in enumerate(o.columns) if c.kind == "algbw"]
        rates = buses or algs
        world = _world(above)
        for i in rates:
            groups: dict[tuple[str | None, str], list[Row]] = {}
            for number, cells in o.rows:
                if row := _as_row(number, cells, o.columns, i, algs):
                    named, run = _cell(cells, o.columns, "collective"), _cell(cells, o.columns, "run")
                    of = collective_of(named) if named else collective
                    groups.setdefault((of, run or ""), []).append(row)
            for (of, run), part in groups.items():
                if len(self.tables) < MAX_TABLES:
                    self.tables.append(
                        BandwidthTable(
                            where=f"{self.where}:{part[0].line}",
                            tool="table",
                            rows=tuple(part),
                            collective=of,
                            label=run or (o.columns[i].title if len(rates) > 1 else ""),
                            nodes=world[0],
                            ranks=world[1],
                            notes=tuple(self._notes),
                        )
                    )


def _cell(cells: Sequence[str], columns: Sequence[_Column], kind: str) -> str | None:
    place = next((i for i, c in enumerate(columns) if c.kind == kind), None)
    return cells[place][:80] if place is not None else None


def _with_unit(column: _Column, unit: str) -> _Column:
    return _Column(kind=column.kind, title=column.title, unit=unit)


def _cells(line: str, style: str) -> list[str]:
    text = line.strip()
    if style == "|":
        return [c.strip() for c in text.strip("|").split("|")][:MAX_COLUMNS]
    if style == ",":
        return [c.strip() for c in text.split(",")][:MAX_COLUMNS]
    return _JOIN.sub(r"\1\2", text.lstrip("#")).split()[:MAX_COLUMNS]


def _header(line: str) -> tuple[str, tuple[_Column, ...]] | None:
    if len(line) > 1000:
        return None
    lowered = line.lower()
    if not any(word in lowered for word in _HINTS):
        return None
    text = line.strip().lstrip("#").strip()
    tries: list[tuple[str, list[str]]] = []
    if text.count("|") >= 2:
        tries.append(("|", _cells(text, "|")))
    elif text.count(",") >= 1 and "  " not in text:
        tries.append((",", _cells(text, ",")))
    if "|" not in text:
        tries.append((" ", re.split(r"\s{2,}|\t", text)))
        tries.append((" ", text.split()))
    for style, cells in tries:
        columns = _columns(cells)
        if columns:
            return style, columns
    return None


def _columns(cells: Sequence[str]) -> tuple[_Column, ...]:
    """All of them, where they make a header; () otherwise."""
    if not 2 <= len(cells) <= MAX_COLUMNS or any(units.split(c) for c in cells):
        return ()
    columns = tuple(_column(c) for c in cells)
    kinds = [c.kind for c in columns]
    keys = {"size", "nodes", "ranks"} & set(kinds)
    if not keys:
        return ()
    if not {"busbw", "algbw"} & set(kinds):  # ring | tree, or an instance's name, below words that say what they are
        free = [i for i, c in enumerate(columns) if c.kind == "other" and (c.unit or _MODES.fullmatch(c.title))]
        if not free:
            return ()
        columns = tuple(
            _Column(kind="busbw", title=c.title, unit=c.unit or "GB/s") if i in free else c
            for i, c in enumerate(columns)
        )
    return columns


def _column(title: str) -> _Column:
    title = title.strip().strip("*`")
    kind = next((k for k, pattern in _KINDS if pattern.search(title)), "other")
    unit = ""
    if match := _RATE_UNIT.search(title):
        unit = (match[1] or match[2]).replace("_s", "/s").replace("GBs", "GB/s")
        if kind in ("other", "size"):
            kind = "other"
    if kind in ("busbw", "algbw"):
        return _Column(kind=kind, title=title, unit=unit or "GB/s")
    if kind == "time":
        match = _TIME_UNIT.search(title.replace("time", "").replace("latency", ""))
        return _Column(kind=kind, title=title, unit=(match[1] or match[2]) if match else "us")
    return _Column(kind=kind, title=title, unit=unit)


def _as_row(
    number: int, cells: Sequence[str], columns: Sequence[_Column], rate: int, algs: Sequence[int]
) -> Row | None:
    got: dict[str, int | float | None] = {}
    for cell, column in zip(cells, columns, strict=False):
        if column.kind in ("size", "nodes", "ranks", "count"):
            got.setdefault(column.kind, units.size_bytes(cell))
        elif column.kind == "time":
            got.setdefault("time", units.microseconds(cell, unit=column.unit))
    value = units.gb_per_s(cells[rate], unit=columns[rate].unit)
    if value is None:
        return None
    bus = columns[rate].kind == "busbw"
    algbw = units.gb_per_s(cells[algs[0]], unit=columns[algs[0]].unit) if algs and bus else None
    size, nodes, ranks, time = (got.get(k) for k in ("size", "nodes", "ranks", "time"))
    return Row(
        size_bytes=int(size) if size is not None else None,
        nodes=int(nodes) if nodes is not None else None,
        ranks=int(ranks) if ranks is not None else None,
        out_of_place=Measured(
            time_us=time, algbw_gbs=algbw if bus else value, busbw_gbs=value if bus else None, wrong=None
        ),
        line=number,
    )


def _collective(words: str) -> str | None:
    found = re.search(
        r"(?<![a-z])(all[ _-]?reduce|all[ _-]?gather|reduce[ _-]?scatter|all[ _-]?to[ _-]?all|broadcast|"
        r"send[ _-]?recv)(?![a-z])",
        words,
        re.IGNORECASE,
    )
    return collective_of(found[1]) if found else None


def _world(words: str) -> tuple[int | None, int | None]:
    """(nodes, ranks) that the words above the table name."""
    nodes = re.search(r"\bnodes?: ?(\d{1,5})\b|\b(\d{1,5})[ -]nodes?\b|--nnodes[ =](\d{1,5})\b", words)
    local = re.search(r"\bgpus?/node: ?(\d{1,3})\b|--nproc[_-]per[_-]node[ =](\d{1,3})\b", words)
    ranks = re.search(r"\b(\d{1,6}) (?:GPUs|ranks|devices)\b|\s-g (\d{1,3})\b", words)
    n = int(next(g for g in nodes.groups() if g)) if nodes else None
    if local:
        each = int(next(g for g in local.groups() if g))
        return n or 1, each * (n or 1)
    if ranks:
        count = int(next(g for g in ranks.groups() if g))
        return n or (1 if ranks[2] else None), count
    return n, None
