"""Reports for issues and wikis, and pages made from the registry."""

from collections.abc import Iterator, Mapping, Sequence

from smoldiag.findings import BenchReport, Finding, Report
from smoldiag.render import text
from smoldiag.rules import FAMILIES, RETIRED, Rule


def report(r: Report, *, looked_at: str = "") -> str:
    head = [f"# smoldiag {r.command}: {r.verdict.value}", ""]
    return "\n".join([*head, *([escape(looked_at), ""] if looked_at else []), *findings(r.findings)]) + "\n"


def bench(r: BenchReport) -> str:
    lines = [
        f"# smoldiag nccl-bench: {r.verdict.value}",
        "",
        escape(text.headline(r)),
        "",
        escape(text.transport(r)),
        "",
    ]
    lines += [*findings(r.findings), *_table(r)]
    lines += [f"- {escape(note)}" for note in r.notes]
    return "\n".join(lines).rstrip() + "\n"


def findings(found: Sequence[Finding]) -> Iterator[str]:
    for f in found:
        yield f"- **{f.code} {f.severity.value}** ({f.confidence.value}): {escape(f.message)}"
        if where := text.place(f):
            yield f"  - where: {escape(where)}"
        yield from (f"  - seen: {code(e.text)} ({escape(e.where)})" for e in f.evidence)
        if f.cost:
            yield f"  - cost: {escape(f.cost)}"
        yield from (f"  - fix: {escape(x.do)}" + (f": {code(x.command)}" if x.command else "") for x in f.fixes)
        if f.sources:
            yield f"  - sources: {escape('; '.join(f.sources))}"
    if found:
        yield ""


def _table(r: BenchReport) -> Iterator[str]:
    title = None
    for group, cells in text.rows(r.results):
        if group != title:
            title = group
            yield from (
                "",
                f"## {escape(group)}",
                "",
                f"| {' | '.join(text.COLUMNS)} |",
                f"|{'---|' * len(text.COLUMNS)}",
            )
        yield f"| {' | '.join(escape(c) for c in cells)} |"
    if title is not None:
        yield ""


def escape(words: str) -> str:
    for character in "\\`*_[]<>|#":
        words = words.replace(character, f"\\{character}") if character != "_" else words
    return words.replace("\n", " ")


def code(words: str) -> str:
    fence = "``" if "`" in words else "`"
    return f"{fence}{words.replace(chr(10), ' ')}{fence}"


def rules_page(rules: Mapping[str, Rule]) -> str:
    rows = [f"| {r.code} | {r.name} | {r.severity.value} | {r.reads} | {r.summary} |" for r in rules.values()]
    pages = [f"## {r.code} {r.name}\n\n{r.doc}" for r in rules.values()]
    families = ", ".join(f"{code} {words}" for code, words in FAMILIES.items())
    gone = [f"- {code}: {why}" for code, why in RETIRED.items()]
    head = f"<!-- made by `pytest --update`; edit the docstrings instead -->\n# Rules\n\nFamilies: {families}.\n"
    table = "| code | name | worst severity | reads | what |\n|---|---|---|---|---|\n" + "\n".join(rows)
    tail = ["## Retired codes\n\n" + "\n".join(gone)] if gone else []
    return "\n\n".join([head + "\n" + table, *pages, *tail]) + "\n"
