"""Certificates of nodes, and the table of earlier runs."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from smoldiag.facts.acceptance import Certificate, Certificates, Criteria, History, Line
from smoldiag.model.history import Row, rows, table
from smoldiag.render.json import document
from smoldiag.render.markdown import escape
from smoldiag.rules.acceptance import WORDS, shown

WORTH_SHOWING = 0.02  # of a figure; less is noise


def certificates(criteria: Criteria, found: Sequence[Certificate]) -> RenderableType:
    """A table per node; in text one below the other."""
    return Group(*(part for c in found for part in (Text(_title(criteria, c)), _requirements(c), Text(_parts(c)))))


def _title(criteria: Criteria, c: Certificate) -> str:
    what = f" against {criteria.name or criteria.where}"
    return f"{c.host or 'all nodes together'}: {'accepted' if c.passed else 'NOT accepted'}{what}"


def _requirements(c: Certificate) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("figure", "required", "measured", ""):
        table.add_column(name, justify="left" if name in ("figure", "") else "right")
    for line in c.lines:
        table.add_row(*map(Text, _cells(line)))
    return table


def _cells(line: Line) -> tuple[str, str, str, str]:
    r = line.requirement
    measured = "not measured" if line.measured is None else shown(line.measured)
    return r.name, f"{WORDS[r.kind]} {shown(r.value)}", measured, "met" if line.met else "NOT met"


def _parts(c: Certificate) -> str:
    serials = ", ".join(f"{name} {number}" for name, number in c.serials.items())
    firmware = ", ".join(f"{name} {version}" for name, version in c.firmware.items())
    lines = (f"serial numbers: {serials}" if serials else "", f"firmware: {firmware}" if firmware else "")
    return "".join(f"{line}\n" for line in lines if line)


def as_markdown(criteria: Criteria, found: Sequence[Certificate]) -> str:
    return "\n".join(line for c in found for line in _markdown(criteria, c))


def _markdown(criteria: Criteria, c: Certificate) -> Iterator[str]:
    yield f"## {escape(_title(criteria, c))}\n"
    yield "| figure | required | measured | |\n| --- | ---: | ---: | --- |"
    yield from (f"| {' | '.join(map(escape, _cells(line)))} |" for line in c.lines)
    yield f"\n{escape(_parts(c))}"


def as_json(criteria: Criteria, found: Sequence[Certificate]) -> str:
    made = Certificates(
        criteria=criteria,
        accepted=tuple(c.host for c in found if c.host and c.passed),
        refused=tuple(c.host for c in found if c.host and not c.passed),
        certificates=tuple(found),
    )
    return document(made)


def history(found: History) -> RenderableType:
    """A row per node: how often it failed, when, why, and which figures fell."""
    shown_rows = Table(box=None, pad_edge=False)
    for name in ("node", "failed", "rate", "runs, the newest last", "because of", "figures against before"):
        shown_rows.add_column(name, justify="right" if name in ("failed", "rate") else "left")
    for row in rows(found):
        shown_rows.add_row(*map(Text, _row(row)))
    head = f"{len(found.runs)} runs in {found.where}"
    return Group(Text(head), shown_rows, *(Text(f"note: {note}") for note in found.notes))


def _row(row: Row) -> tuple[str, ...]:
    low, high = row.interval
    falling = [t for t in row.trends if t.change < -WORTH_SHOWING]
    worst = sorted(falling, key=lambda t: t.change)[:2]
    figures = ", ".join(f"{t.figure} {t.change:+.0%}" for t in worst)
    return (
        row.host,
        f"{row.failed} of {row.runs}",
        f"{low:.0%} to {high:.0%}",
        row.marks,
        ", ".join(row.codes[:3]),
        figures,
    )


def history_as_markdown(found: History) -> str:
    head = "| node | failed | rate | runs, the newest last | because of | figures against before |"
    lines = [f"{len(found.runs)} runs in {escape(found.where)}\n", head, "| --- | ---: | ---: | --- | --- | --- |"]
    lines += [f"| {' | '.join(map(escape, _row(row)))} |" for row in rows(found)]
    return "\n".join([*lines, *(f"\n- {escape(note)}" for note in found.notes)]) + "\n"


def history_as_json(found: History) -> str:
    return document(table(found))
