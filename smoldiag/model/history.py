"""Nodes over many runs: who fails now and then, and whose figures fall."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from smoldiag.facts.acceptance import History
from smoldiag.model.stats import median

Z95 = 1.96  # standard normal quantile of 0.975
MARKS = {"passed": ".", "failed": "F", "unknown": "?"}
SHOWN_RUNS = 30
RECENT, LEAST_EARLIER = 3, 5  # runs


@dataclass(frozen=True)
class Trend:
    figure: str
    last: float
    recent: float  # median of the last runs
    earlier: float  # median of those before
    spread: float  # of the earlier ones: median absolute deviation as a standard deviation
    runs: int

    @property
    def change(self) -> float:
        """-0.1: a tenth is missing now."""
        return self.recent / self.earlier - 1 if self.earlier else 0.0


@dataclass(frozen=True)
class Row:
    """One node."""

    host: str
    runs: int  # in which it was judged
    failed: int
    interval: tuple[float, float]  # of the rate of failures, 95 %
    marks: str  # of the last runs, the newest last
    codes: tuple[str, ...]  # why it failed, the most frequent first
    trends: tuple[Trend, ...]

    @property
    def flaky(self) -> bool:
        """It failed, and passed, more than once: neither broken nor well."""
        return 1 < self.failed < self.runs - 1


@dataclass(frozen=True, kw_only=True)
class HistoryTable:
    """`smoldiag.history-table/1`."""

    schema: str = "smoldiag.history-table/1"
    where: str
    runs: int
    nodes: tuple[Row, ...]
    notes: tuple[str, ...]


def table(history: History) -> HistoryTable:
    return HistoryTable(where=history.where, runs=len(history.runs), nodes=tuple(rows(history)), notes=history.notes)


def rows(history: History) -> list[Row]:
    """The most failing nodes first."""
    hosts = sorted({name for run in history.runs for name in run.hosts})
    return sorted((_row(history, host) for host in hosts), key=lambda r: (-r.failed / max(r.runs, 1), r.host))


def _row(history: History, host: str) -> Row:
    of_host = [run.hosts[host] for run in history.runs if host in run.hosts]
    judged = [h for h in of_host if h.status in ("passed", "failed")]
    failed = [h for h in judged if h.status == "failed"]
    codes = [code for h in failed for code in h.codes]
    figures: dict[str, list[float]] = {}
    for h in of_host:
        for name, value in h.figures.items():
            figures.setdefault(name, []).append(value)
    return Row(
        host=host,
        runs=len(judged),
        failed=len(failed),
        interval=wilson(len(failed), len(judged)),
        marks="".join(MARKS.get(h.status, "?") for h in of_host[-SHOWN_RUNS:]),
        codes=tuple(sorted(set(codes), key=lambda c: (-codes.count(c), c))),
        trends=tuple(t for name, values in figures.items() if (t := trend(name, values))),
    )


def wilson(failed: int, runs: int) -> tuple[float, float]:
    """Wilson's score interval of a rate, 95 % (JASA 22, 1927): usable for few runs and for none that failed."""
    if not runs:
        return 0.0, 1.0
    rate, n = failed / runs, runs
    middle = (rate + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * math.sqrt(rate * (1 - rate) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def trend(figure: str, values: Sequence[float]) -> Trend | None:
    """The last runs against those before; None where there are too few."""
    earlier, recent = values[:-RECENT], values[-RECENT:]
    if len(earlier) < LEAST_EARLIER:
        return None
    usual = median(earlier)
    spread = 1.4826 * median([abs(v - usual) for v in earlier])
    return Trend(figure, values[-1], median(recent), usual, spread, len(values))
