"""What `compare` found, for people: the verdict, the findings, the figures beside each other, what changed."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from smoldiag.compare import KINDS, Compared
from smoldiag.facts.comparison import Change, Comparison, Metric
from smoldiag.findings import Severity
from smoldiag.render import markdown as md
from smoldiag.render import numbers
from smoldiag.render import text as plain
from smoldiag.rules.comparison import shown

MOST_METRICS = 10  # in text; --all shows all
MOST_CHANGES = 8
MOST_SHIFTS = 4
MOST_FINDINGS = 20  # lines
MAX_VALUE = 48  # characters of a value in a line
MAX_NOTES = 6
COLUMNS = ("", "before", "now", "change", "99 %", "")


def text(c: Compared, *, everything: bool = False) -> RenderableType:
    found = c.report.findings
    loud = [f for f in found if everything or f.severity is not Severity.INFO] or list(found)
    lines = [Text(line) for line in verdict(c)]
    lines[0].stylize(plain.VERDICT_STYLE[c.report.verdict], 0, len(c.report.verdict.value))
    lines += plain.findings(loud, everything=everything, most=MOST_FINDINGS)
    if len(found) > len(loud):
        lines.append(Text(f"{len(found) - len(loud)} more worth knowing: --all shows them", style="dim"))
    rows = _rows(c.comparison.metrics, everything=everything)
    if rows:
        lines += [Text(), *_table(rows)]
        if len(rows) < len(c.comparison.metrics):
            lines.append(
                Text(f"... {len(c.comparison.metrics) - len(rows)} more figures: --all shows them", style="dim")
            )
    lines += map(Text, shifts(c.comparison, most=10**6 if everything else MOST_SHIFTS))
    lines += map(Text, changes(c.comparison, most=10**6 if everything else MOST_CHANGES))
    notes = c.report.notes if everything else c.report.notes[:MAX_NOTES]
    lines += [Text(f"note: {note}", style="dim") for note in notes]
    return Group(*lines)


def verdict(c: Compared) -> Iterator[str]:
    """What got worse, or that nothing did; then what was compared."""
    found, first = c.comparison, next(iter(c.report.findings), None)
    judged = [m for m in found.metrics if m.significant is not None]
    if first is not None and first.severity is not Severity.INFO:
        yield f"{c.report.verdict.value}: {first.message} ({first.cause}, {first.confidence.value})"
    elif any(m.kind == "step" and m.significant and not m.worse for m in judged):
        yield f"{c.report.verdict.value}: faster than before"
    elif judged:
        yield f"{c.report.verdict.value}: no difference beyond noise{_headline(found)}"
    elif found.metrics:
        yield f"{c.report.verdict.value}: figures that were measured once on each side do not tell a change from noise"
    else:
        known = sum(x.weight != "other" for x in found.changed)
        yield f"{c.report.verdict.value}: " + (
            f"{known} settings that can matter differ" if known else "no difference that is known to matter"
        )
    yield f"compared {' and '.join(KINDS[k] for k in found.kinds)}: {found.a} (before) and {found.b} (now)"


def _headline(c: Comparison) -> str:
    """The first figure: that of the step, or of the largest message."""
    m = next((m for m in c.metrics if m.kind == "step"), None) or next(iter(c.metrics), None)
    return f": {m.name} {shown(m.b, m.unit)} against {shown(m.a, m.unit)} ({_change(m)})" if m else ""


def _rows(metrics: Sequence[Metric], *, everything: bool) -> list[tuple[str, ...]]:
    """The step first, then what changed beyond noise, then what costs most."""
    ordered = sorted(
        metrics, key=lambda m: (m.kind != "step", not m.significant, -abs(m.cost_us or 0.0), -abs(m.change_percent))
    )
    chosen = ordered if everything else ordered[:MOST_METRICS]
    return [(_name(m), shown(m.a, m.unit), shown(m.b, m.unit), _change(m), _interval(m), _word(m)) for m in chosen]


def _name(m: Metric) -> str:
    return f"{m.name} (rank {numbers.ranges(m.ranks)})" if m.ranks else m.name


def _change(m: Metric) -> str:
    return f"{m.change_percent:+.1f} %" if m.a else "new"


def _interval(m: Metric) -> str:
    return f"{m.low:+.1f} to {m.high:+.1f}" if m.low is not None and m.high is not None else ""


def _word(m: Metric) -> str:
    if m.significant is None:
        return "too few samples"
    if not m.significant:
        return "noise"
    return "worse" if m.worse else "better"


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[Text]:
    widths = [max(len(row[i]) for row in (COLUMNS, *rows)) for i in range(len(COLUMNS))]
    for row in (COLUMNS, *rows):
        cells = [c.ljust(w) if i in (0, 5) else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        yield Text("  ".join(cells).rstrip(), style="bold" if row is COLUMNS else "")


def shifts(c: Comparison, *, most: int) -> Iterator[str]:
    """Changes of pace within a side, those of the second first."""
    ordered = sorted(c.shifts, key=lambda x: x.side != "b")
    for x in ordered[:most]:
        side = c.a if x.side == "a" else c.b
        name = f"{side}, {x.run}" if x.run else side
        when = f" ({x.time})" if x.time else ""
        change = f"{100 * (x.after / x.before - 1):+.0f} %" if x.before else "new"
        yield f"pace of {name} changes at {x.axis} {x.at:g}{when}: {x.before:.4g} -> {x.after:.4g} {x.unit} ({change})"
    if len(ordered) > most:
        yield f"... {len(ordered) - most} more changes of pace: --all shows them"


def changes(c: Comparison, *, most: int) -> Iterator[str]:
    """Settings that differ, those that matter first; hosts; what was found before and is gone."""
    known = [x for x in c.changed if x.weight != "other"]
    yield from (f"changed: {change(x)}" for x in known[:most])
    if len(known) > most:
        yield f"... {len(known) - most} more that can matter: --all shows them"
    others = [x for x in c.changed if x.weight == "other"]
    if others:
        shown_here = others if most > MOST_CHANGES else others[:4]
        rest = f" and {len(others) - len(shown_here)} more" if len(others) > len(shown_here) else ""
        yield f"also different: {'; '.join(change(x) for x in shown_here)}{rest}"
    if c.gone:
        yield f"found before and not now: {'; '.join(_cut(x, 120) for x in c.gone[:3])}" + (
            f" and {len(c.gone) - 3} more" if len(c.gone) > 3 else ""
        )
    if c.same:
        yield f"the same on both sides: {c.same} finding{'s' if c.same != 1 else ''} (smoldiag explain {c.b})"


def change(x: Change) -> str:
    on = f" on {numbers.hosts(x.hosts)}" if x.hosts else ""
    a, b = ("not there" if v is None else _cut(v, MAX_VALUE) for v in (x.a, x.b))
    return f"{x.name}{on}: {a} -> {b}"


def _cut(words: str, most: int) -> str:
    words = " ".join(words.split())
    return words if len(words) <= most else f"{words[:most]} ..."


def markdown(c: Compared) -> str:
    """A text for an issue."""
    first, *rest = verdict(c)
    lines = [f"# {md.escape(first)}", "", *(f"- {md.escape(line)}" for line in rest)]
    if c.report.findings:
        lines += ["", "## Findings", "", *md.findings(c.report.findings)]
    rows = _rows(c.comparison.metrics, everything=True)
    if rows:
        head = ("figure", "before", "now", "change", "99 % interval", "")
        lines += ["", "## Figures", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        lines += [f"| {' | '.join(md.escape(cell) for cell in row)} |" for row in rows]
    told = [*shifts(c.comparison, most=10**6), *changes(c.comparison, most=10**6)]
    if told:
        lines += ["", "## Changes", "", *(f"- {md.escape(line)}" for line in told)]
    if c.report.notes:
        lines += ["", "## Notes", "", *(f"- {md.escape(note)}" for note in c.report.notes)]
    return "\n".join([*lines, "", f"smoldiag {c.report.version}, {c.report.created}"]) + "\n"
