"""Tables of rates between two hosts: columns with a header, a matrix of hosts, JSON records -> PairTable."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from smoldiag.facts.tables import Pair, PairTable
from smoldiag.parse import units

MAX_PAIRS = 200_000
MAX_COLUMNS = 4_200  # a matrix of 4,096 hosts
MAX_RECORDS = 200_000

_SENDER = re.compile(r"^(?:src|source|from|sender|client|tx)(?:[ _]?(?:host|node|name|hostname))?$", re.IGNORECASE)
_RECEIVER = re.compile(
    r"^(?:dst|dest|destination|to|receiver|server|target|rx)(?:[ _]?(?:host|node|name|hostname))?$", re.IGNORECASE
)
_FIRST = re.compile(r"^(?:(?:host|node|hostname|server|peer)[ _]?(?:a|1|0|i)|a|host|node)$", re.IGNORECASE)
_SECOND = re.compile(r"^(?:(?:host|node|hostname|server|peer)[ _]?(?:b|2|1|j)|b|partner|peer)$", re.IGNORECASE)
_RATE = re.compile(
    r"^(?:(?:avg|average|mean|median|p50|peak|max)[ _])?"
    r"(?:(?:bus|alg)?[ _]?b(?:and)?w(?:idth)?|rate|throughput|speed|gb[_ ]?per[_ ]?s|gbit[_ ]?per[_ ]?s|gb/?p?s|gbps)",
    re.IGNORECASE,
)
_UNIT = re.compile(
    r"([KMGT]i?[bB](?:it|yte)?s?(?:/s(?:ec)?|ps))|_(gbs|gbps|gbits?)\b|^(gbps|gbit[_ ]per[_ ]s)$", re.IGNORECASE
)
# What may be a header at all: every line of a log is looked at.
_STARTS = re.compile(r"[\s#|\"]{0,8}(?:src|source|from|sender|client|tx|host|node|server|peer|a[\s,;|])", re.IGNORECASE)
_CELLS = re.compile(r"[\s#|\"]{0,8}[\w ./()-]{0,24}([,;\t|])(?:\s*\"?[\w.-]{1,64}\"?\s*\1){2}")
_SIZE = re.compile(r"^(?:message|msg)?[ _]?(?:size|bytes|size[_ ]bytes)\b", re.IGNORECASE)
_OTHER = re.compile(
    r"^(?:(?:message|msg)?_?size|bytes|count|round|time|latency|algbw|busbw|bw|lane|rail|#.*)\b", re.IGNORECASE
)
_HOST = re.compile(r"^[A-Za-z0-9][\w.:-]{0,252}$")


@dataclass(frozen=True, kw_only=True)
class _Columns:
    a: int
    b: int
    rate: int
    factor: float  # to GB/s
    size: int | None
    directed: bool
    separator: str
    count: int


@dataclass(kw_only=True)
class Reader:
    """Columns and matrices, line by line."""

    where: str
    tables: list[PairTable] = field(default_factory=list)
    _columns: _Columns | None = None
    _matrix: tuple[str, tuple[str, ...]] | None = None  # separator, hosts of the columns
    _pairs: list[tuple[Pair, float]] = field(default_factory=list)  # with the message size, 0 where none is said

    def read(self, number: int, line: str) -> bool:
        if self._columns and self._row(number, line):
            return True
        if self._matrix and self._matrix_row(number, line):
            return True
        return self._header(line)

    def finish(self) -> tuple[PairTable, ...]:
        self._close()
        return tuple(self.tables)

    def _header(self, line: str) -> bool:
        if len(line) > MAX_COLUMNS * 64 or not (_STARTS.match(line) or _CELLS.match(line)):
            return False
        for separator in (",", ";", "\t", "|", ""):
            if separator and separator not in line:
                continue
            cells = _cells(line, separator)
            if columns := _columns(cells, separator):
                self._close()
                self._columns = columns
                return True
            if separator and _is_matrix(cells):
                self._close()
                self._matrix = (separator, tuple(cells[1:]))
                return True
        return False

    def _row(self, number: int, line: str) -> bool:
        c = self._columns
        assert c is not None
        cells = _cells(line.split("#")[0], c.separator)
        if set(line.strip()) <= set("|-:+ "):
            return bool(line.strip())
        if len(cells) < max(c.a, c.b, c.rate) + 1 or not _HOST.match(cells[c.a]) or not _HOST.match(cells[c.b]):
            return False
        found = units.split(cells[c.rate])
        factor = units.rate_factor(found[1]) if found and found[1] else c.factor
        if found is None or factor is None or found[0] < 0 or cells[c.a] == cells[c.b]:
            return False
        size = units.size_bytes(cells[c.size]) if c.size is not None and c.size < len(cells) else None
        if len(self._pairs) < MAX_PAIRS:
            pair = Pair(a=cells[c.a], b=cells[c.b], gb_per_s=found[0] * factor, where=f"{self.where}:{number}")
            self._pairs.append((pair, float(size or 0)))
        return True

    def _matrix_row(self, number: int, line: str) -> bool:
        assert self._matrix is not None
        separator, hosts = self._matrix
        cells = _cells(line, separator)
        if len(cells) != len(hosts) + 1 or cells[0] not in hosts:
            return False
        for host, cell in zip(hosts, cells[1:], strict=True):
            rate = units.gb_per_s(cell, unit="GB/s")
            if rate is not None and host != cells[0] and len(self._pairs) < MAX_PAIRS:
                self._pairs.append((Pair(a=cells[0], b=host, gb_per_s=rate, where=f"{self.where}:{number}"), 0.0))
        return True

    def _close(self) -> None:
        directed = bool(self._matrix) or bool(self._columns and self._columns.directed)
        if table := _table(self._pairs, directed=directed, where=self.where):
            self.tables.append(table)
        self._columns, self._matrix, self._pairs = None, None, []


def from_json(document: Any, *, where: str) -> PairTable | None:
    """Records with two hosts and a rate: a list of them, or below a key such as `pairs`."""
    if isinstance(document, dict):
        lists = [v for v in document.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        return next((found for v in lists if (found := from_json(v, where=where))), None)
    if not isinstance(document, list) or not document or not isinstance(document[0], dict):
        return None
    names = [str(name) for name in document[0]]
    columns = _columns(names, "json")
    if columns is None:
        return None
    a, b, rate = names[columns.a], names[columns.b], names[columns.rate]
    size = names[columns.size] if columns.size is not None else ""
    pairs = [
        (Pair(a=item[a], b=item[b], gb_per_s=float(item[rate]) * columns.factor, where=where), _number(item.get(size)))
        for item in document[:MAX_RECORDS]
        if _is_record(item, a, b, rate)
    ]
    return _table(pairs, directed=columns.directed, where=where)


def of_report(document: Mapping[str, Any], *, where: str) -> PairTable | None:
    """The transfers that find-slow saved with its report."""
    facts = document.get("facts")
    items = facts.get("pairs") if isinstance(facts, dict) else None
    kept = {f.name for f in fields(Pair)} - {"where"}
    pairs = tuple(
        Pair(**{name: value for name, value in item.items() if name in kept}, where=where)
        for item in (items if isinstance(items, list) else ())[:MAX_RECORDS]
        if _is_record(item, "a", "b", "gb_per_s")
    )
    return PairTable(where=where, kind="hosts", pairs=pairs, directed=True) if pairs else None


def looks_like_json(text: str) -> bool:
    """By the first 4 KiB."""
    found = re.findall(r'"([\w /]{1,40})"\s*:', text)
    return bool(_columns(list(dict.fromkeys(found)), "json"))


def _is_record(item: Any, a: str, b: str, rate: str) -> bool:
    if not isinstance(item, Mapping) or not isinstance(item.get(rate), int | float):
        return False
    hosts = item.get(a), item.get(b)
    return all(isinstance(h, str) and _HOST.match(h) for h in hosts) and hosts[0] != hosts[1] and item[rate] >= 0


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _columns(cells: Sequence[str], separator: str) -> _Columns | None:
    def place(pattern: re.Pattern[str], but: int | None = None) -> int | None:
        return next((i for i, c in enumerate(cells) if i != but and pattern.match(c.strip("*` "))), None)

    sender, receiver, rate = place(_SENDER), place(_RECEIVER), place(_RATE)
    directed = sender is not None and receiver is not None
    a = sender if directed else place(_FIRST)
    b = receiver if directed else place(_SECOND, but=a)
    if a is None or b is None or rate is None or len(cells) > 64:
        return None
    if not separator and any(not _OTHER.match(c) for i, c in enumerate(cells) if i not in (a, b, rate)):
        return None  # a sentence
    unit = _UNIT.search(cells[rate])
    word = next(g for g in unit.groups() if g) if unit else "GB/s"
    bits = word.lower() in ("gbps", "gbit", "gbits", "gbit_per_s", "gbit per s")
    factor = 1 / 8 if bits else 1.0 if word.lower() == "gbs" else units.rate_factor(word)
    if factor is None:
        return None
    return _Columns(
        a=a,
        b=b,
        rate=rate,
        factor=factor,
        size=place(_SIZE),
        directed=directed,
        separator=separator,
        count=len(cells),
    )


def _is_matrix(cells: Sequence[str]) -> bool:
    """A header of at least three different hosts behind an empty or one-word corner."""
    hosts = cells[1:]
    named = len(hosts) >= 3 and len(set(hosts)) == len(hosts) and all(_HOST.match(h) for h in hosts)
    return named and all(any(c.isalpha() for c in h) and any(c.isdigit() for c in h) for h in hosts)


def _table(pairs: Sequence[tuple[Pair, float]], *, directed: bool, where: str) -> PairTable | None:
    """Of several message sizes the largest."""
    if len(pairs) < 2:
        return None
    largest = max(size for _, size in pairs)
    kept = tuple(p for p, size in pairs if size == largest)
    return PairTable(where=kept[0].where, kind="hosts", pairs=kept, directed=directed)


def _cells(line: str, separator: str) -> list[str]:
    text = line.strip().lstrip("#").strip()
    if separator == "|":
        text = text.strip("|")
    return [c.strip().strip('"') for c in (text.split(separator) if separator else text.split())]
