"""The report of find-slow: who is slow, what each host reaches, the line that leaves hosts out."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from smoldiag.findings import Report
from smoldiag.model import exclusion
from smoldiag.render import markdown as documents
from smoldiag.render import text as lines

MAX_HOSTS = 8
MAX_COMMANDS = 3
COLUMNS = ("send", "receive", "compute")


def text(r: Report, *, everything: bool = False) -> RenderableType:
    tail = [*hosts(r, everything=everything), *commands(r)]
    return Group(
        Text.assemble((r.verdict.value, lines.VERDICT_STYLE[r.verdict]), f": {headline(r)}"),
        Text("; ".join(r.notes[:1])),
        *lines.findings(r.findings, everything=everything, most=lines.MAX_LINES - len(tail) - 3),
        *tail,
        *(Text(f"note: {note}", style="dim") for note in r.notes[1:]),
    )


def markdown(r: Report) -> str:
    head = [f"# smoldiag find-slow: {r.verdict.value}", "", documents.escape(headline(r)), ""]
    tail = [documents.code(line.plain) for line in (*hosts(r), *commands(r))]
    return "\n".join([*head, *documents.findings(r.findings), *tail]) + "\n"


def headline(r: Report) -> str:
    named = r.facts["exclude"] if r.facts else []
    first = next((f"{f.cause} ({f.code})" for f in r.findings if f.severity.value != "info"), "")
    if named:
        return f"leave out {', '.join(named[:MAX_HOSTS])}{' ...' if len(named) > MAX_HOSTS else ''}"
    return first or "no host, link or rail stands out"


def hosts(r: Report, *, everything: bool = False) -> Iterator[Text]:
    """What each reaches of the usual, the slowest first."""
    terms: Mapping[str, Mapping[str, Any]] = (r.facts or {}).get("terms", {})
    ordered = sorted(terms, key=lambda h: min((terms[h][c] for c in COLUMNS if terms[h][c] is not None), default=1.0))
    if not ordered:
        return
    width = max(len(h) for h in ordered)
    yield Text()
    yield Text(f"{'host':{width}}  " + "  ".join(f"{c:>7}" for c in COLUMNS) + "   of the usual")
    for host in ordered if everything else ordered[:MAX_HOSTS]:
        cells = ("-" if (v := terms[host][c]) is None else f"{v:.0%}" for c in COLUMNS)
        yield Text(f"{host:{width}}  " + "  ".join(f"{cell:>7}" for cell in cells))
    if len(ordered) > MAX_HOSTS and not everything:
        yield Text(f"... {len(ordered) - MAX_HOSTS} more hosts, none slower: --all shows them", style="dim")


def commands(r: Report) -> Iterator[Text]:
    """Lines that leave the named hosts out."""
    causes: dict[str, list[str]] = {h: [] for h in (r.facts or {}).get("exclude", [])}
    for f in r.findings:
        for host in f.where.hosts:
            if host in causes:
                causes[host].append(f.cause)
    for scheduler, line in exclusion.commands(causes, of="find-slow")[:MAX_COMMANDS]:
        yield Text(f"{scheduler}: {line}")
