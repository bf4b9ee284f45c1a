"""The report of a preflight: GO or NO-GO first, then who and why, the lines for the scheduler, the stages."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from smoldiag.facts.preflight import StageResult
from smoldiag.findings import Decision, Preflight, PreflightReport
from smoldiag.render import acceptance, numbers
from smoldiag.render import markdown as documents
from smoldiag.render import text as lines

STYLE = {
    Decision.GO: "bold green",
    Decision.WARNINGS: "bold yellow",
    Decision.NO_GO: "bold red",
    Decision.INCOMPLETE: "bold red",
}
MAX_LINES = 40
MAX_COMMANDS = 6
MAX_HOSTS = 8  # with their reasons


def text(r: PreflightReport, *, everything: bool = False) -> RenderableType:
    p = r.preflight
    tail = [*hosts(p, everything=everything), *commands(p, everything=everything), *stages(p)]
    left = MAX_LINES - len(tail) - 3
    return Group(
        Text.assemble((p.decision.value, STYLE[p.decision]), f": {headline(p)}"),
        Text("; ".join(r.notes[:1])),
        *lines.findings(r.findings, everything=everything, most=left),
        *tail,
        *([acceptance.certificates(r.criteria, r.certificates)] if r.criteria else []),
        *(lines.skipped_checks(r.checks) if everything else ()),
        lines.checked(r.checks),
    )


def headline(p: Preflight) -> str:
    said = f"{p.good} of {len(p.hosts)} hosts may take part, {p.needed} needed"
    if p.exclude:
        said += f"; leave out {numbers.hosts(p.exclude)}"
    if p.unfinished:
        said += f"; {p.unfinished}"
    return f"{said}; {p.level} in {p.seconds:.0f} s of {p.budget_s:.0f} s"


def hosts(p: Preflight, *, everything: bool = False) -> Iterator[Text]:
    """Those that are not simply good."""
    others = [h for h in p.hosts if h.decision is not Decision.GO]
    for h in others if everything else others[:MAX_HOSTS]:
        codes = ", ".join(dict.fromkeys(reason.partition(":")[0] for reason in h.reasons))
        yield Text.assemble("host ", (h.name, "bold"), ": ", (h.decision.value, STYLE[h.decision]), f" ({codes})")
    if len(others) > MAX_HOSTS and not everything:
        yield Text(f"... {len(others) - MAX_HOSTS} more hosts: --all shows them", style="dim")


def commands(p: Preflight, *, everything: bool = False) -> Iterator[Text]:
    shown = p.commands if everything else p.commands[:MAX_COMMANDS]
    for c in shown:
        yield Text(f"{c.scheduler}: {c.line}")
    if len(shown) < len(p.commands):
        yield Text(f"... {len(p.commands) - len(shown)} more lines: --all shows them", style="dim")


def stages(p: Preflight) -> Iterator[Text]:
    for s in p.stages:
        yield Text(stage(s), style="" if s.status in ("done", "skipped") else "red")


def stage(s: StageResult) -> str:
    took = f"{s.seconds:5.1f} s of {s.budget_s:.0f} s" if s.status != "skipped" else "    -"
    return f"stage {s.name:<9}{s.status:<12}{took:<18}{s.detail}".rstrip()


def markdown(r: PreflightReport) -> str:
    p = r.preflight
    listed = [(h.name, h.decision.value, "; ".join(h.reasons)) for h in p.hosts]
    took = [(s.name, s.status, f"{s.seconds:.1f}", f"{s.budget_s:.0f}", s.detail) for s in p.stages]
    return "\n".join(
        [
            f"# smoldiag preflight: {p.decision.value}",
            "",
            documents.escape(headline(p)),
            "",
            *_table(("host", "decision", "reasons"), listed),
            *(f"    {c.line}" for c in p.commands),
            "",
            *_table(("stage", "status", "seconds", "planned", "what"), took),
            *documents.findings(r.findings),
            *([acceptance.as_markdown(r.criteria, r.certificates)] if r.criteria else []),
        ]
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(map(documents.escape, row))} |" for row in rows)
    yield ""
