"""Variables for people: those that are set, the catalogue, one page, differences. Text and markdown."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from smoldiag.findings import Report
from smoldiag.knowledge.variables import VariableSpec
from smoldiag.render import markdown, text

if TYPE_CHECKING:
    from smoldiag.environment import Difference, Row

STYLE = {"error": "bold red", "warning": "yellow", "info": "cyan", "ok": "green", "unknown": "dim"}
MOST_VALUE = 48  # characters of NAME=value in the table
MOST_DEFAULT = 28
MOST_ORIGIN = 28
MATCH = {
    "required": "must be the same on all ranks",
    "recommended": "should be the same on all ranks",
    "host": "may differ between hosts",
    "rank": "differs between ranks",
    "first rank": "counts on the first rank alone",
}
RISK = {"slow": "can cost speed", "breaks": "can hang, fail or corrupt", "debug": "for debugging"}


def shown(r: Report, rows: Sequence["Row"], *, looked_at: str, everything: bool) -> RenderableType:
    """The table of what is set, then the findings."""
    return Group(*table(rows), *([Text()] if rows else []), text.report(r, looked_at=looked_at, everything=everything))


def table(rows: Sequence["Row"]) -> Iterator[Text]:
    if not rows:
        return
    cells = [("verdict", "set", "from", "default", "risk", "what it does")]
    cells += [
        (
            f"{r.verdict} {r.code}".strip(),
            cut(f"{r.variable.name}={r.variable.value}", MOST_VALUE),
            cut(r.variable.origin, MOST_ORIGIN),
            cut(r.default, MOST_DEFAULT),
            ",".join(r.spec.risk) if r.spec and r.spec.risk else "-",
            r.spec.does if r.spec else "not in the catalogue",
        )
        for r in rows
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(5)]
    for number, row in enumerate(cells):
        padded = [*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[5]]
        style = "bold" if number == 0 else STYLE[rows[number - 1].verdict]
        yield Text.assemble((padded[0], style), "  ", "  ".join(padded[1:]).rstrip())


def catalogue(groups: Iterable[tuple[str, Sequence[VariableSpec]]]) -> RenderableType:
    lines = []
    for component, specs in groups:
        lines.append(Text(f"{component}: {len(specs)} variables", style="bold"))
        width = max(len(s.name) for s in specs)
        lines += [Text(f"  {s.name.ljust(width)}  {s.does}" + _life(s)) for s in specs]
        lines.append(Text())
    return Group(*lines)


def _life(s: VariableSpec) -> str:
    if s.removed:
        return f" (removed in {s.removed})" if s.removed != "unknown" else " (removed)"
    if s.deprecated:
        return f" (now {s.instead})" if s.instead else " (deprecated)"
    return f" (since {s.since})" if s.since else ""


def page(s: VariableSpec, *, set_here: str, rules: Sequence[tuple[str, str, str]]) -> RenderableType:
    """All that is known of one variable."""
    history = "; ".join(
        f"{default or 'by the machine'} from {since or 'the first release'}" for since, default in s.defaults
    )
    ranges = f"{s.lowest} to {s.highest}" if s.highest is not None and s.lowest is not None else ""
    facts = [
        ("values", s.values or ", ".join(s.choices) or s.kind),
        ("range", ranges),
        ("default", s.default or "not set"),
        ("defaults", history if len(s.defaults) > 1 else ""),
        ("since", s.since or ""),
        ("deprecated", s.deprecated or ""),
        ("removed", s.removed or ""),
        ("instead", s.instead or ""),
        ("risk", "; ".join(RISK[r] for r in s.risk) or "none known"),
        ("ranks", MATCH.get(s.match, "does not matter")),
        ("set by", s.set_by or ""),
        ("here", set_here),
        *(("rule", f"{code} {severity}: {title}") for code, severity, title in rules),
        ("source", s.source + ("" if s.documented else " (not documented)")),
    ]
    head = [Text.assemble((s.name, "bold"), f"  {s.component}, {s.kind}"), Text(f"  {s.does}."), Text()]
    return Group(*head, *(Text(f"  {label:<11}{words}") for label, words in facts if words))


def differing(found: Sequence["Difference"], names: tuple[str, str]) -> RenderableType:
    if not found:
        return Text(f"{names[0]} and {names[1]} have the same variables")
    cells = [("variable", *names, "")]
    cells += [
        (d.name, _value(d.here), _value(d.there), "must be the same on all ranks" if d.must_match else "")
        for d in found
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(3)]
    return Group(
        *(
            Text("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]).rstrip(), style=style)
            for row, style in zip(cells, ["bold", *("yellow" if d.must_match else "" for d in found)], strict=True)
        )
    )


def _value(value: str | None) -> str:
    return "(not set)" if value is None else cut(value, MOST_VALUE)


def cut(words: str, most: int) -> str:
    one_line = " ".join(words.split("\n"))
    return one_line if len(one_line) <= most else one_line[: most - 3] + "..."


def as_markdown(r: Report, rows: Sequence["Row"], *, looked_at: str) -> str:
    lines = [markdown.report(r, looked_at=looked_at).rstrip(), ""]
    if rows:
        lines += ["| verdict | set | from | default | what it does |", "|---|---|---|---|---|"]
    for x in rows:
        does = x.spec.does if x.spec else "not in the catalogue"
        words = (x.verdict, x.variable.origin, x.default, does)
        verdict, origin, default, does = map(markdown.escape, words)
        typed = markdown.code(f"{x.variable.name}={x.variable.value}")
        lines.append(f"| {verdict} | {typed} | {origin} | {default} | {does} |")
    return "\n".join(lines).rstrip() + "\n"
