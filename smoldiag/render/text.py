"""Reports for people at a terminal. Text that we did not write is never markup."""

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from smoldiag.facts import Expected, Result
from smoldiag.findings import BenchReport, Check, Finding, Report, Severity, Status, Verdict
from smoldiag.model.sizes import human
from smoldiag.render import numbers

STYLE = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}
VERDICT_STYLE = {
    Verdict.OK: "bold green",
    Verdict.INFO: "bold green",
    Verdict.WARNING: "bold yellow",
    Verdict.ERROR: "bold red",
    Verdict.INCOMPLETE: "bold red",
}
MAX_LINES = 40  # for any number of hosts; --all shows the rest
MAX_REASONS = 6  # for which checks were skipped
MAX_TEXT = 220  # characters of a reason or a list of codes
MAX_EVIDENCE = 3


def report(r: Report, *, looked_at: str = "", everything: bool = False) -> RenderableType:
    """At most MAX_LINES lines unless everything is asked for; the first says what was looked at."""
    nothing = bool(r.checks) and all(c.status in (Status.SKIPPED, Status.CRASHED) for c in r.checks)
    said = "nothing could be checked" if nothing else _counted(r.findings)
    head = Text.assemble((r.verdict.value, VERDICT_STYLE[r.verdict]), f": {said}")
    if looked_at:
        head.append(f"; {looked_at}")
    skipped = list(skipped_checks(r.checks))
    if not everything and len(skipped) > MAX_REASONS:
        rest = len(skipped) - MAX_REASONS
        skipped = [*skipped[:MAX_REASONS], Text(f"... {rest} more reasons: --all shows them", style="dim")]
    left = MAX_LINES - len(skipped) - 3  # this line, the last one, and the one that says what is left out
    return Group(head, *findings(r.findings, everything=everything, most=left), *skipped, checked(r.checks))


def bench(r: BenchReport, *, everything: bool = False) -> RenderableType:
    """The verdict, the transport, the findings, then the table that people know from nccl-tests."""
    return Group(
        Text.assemble((r.verdict.value, VERDICT_STYLE[r.verdict]), f": {headline(r)}"),
        Text(transport(r)),
        *findings(r.findings, everything=everything),
        *([Text()] if r.results else []),
        *table(r),
        *(Text(f"note: {note}", style="dim") for note in r.notes),
        *skipped_checks(r.checks),
    )


def headline(r: BenchReport) -> str:
    best: dict[str, Result] = {}
    for x in r.results:
        if x.group.kind == "world" and (x.collective not in best or _weight(x) > _weight(best[x.collective])):
            best[x.collective] = x
    if r.world is None or not best:
        return f"nothing was measured ({_counted(r.findings)})"
    x = best.get("all_reduce") or next(iter(best.values()))
    where = f"{len(x.group.ranks)} ranks on {x.group.nodes} node{'s' if x.group.nodes != 1 else ''}"
    text = f"{x.collective} {human(x.size_bytes)} {numbers.gbs(x.busbw_gbs)} GB/s busbw over {where}"
    normal = next((e for e in r.expected if e.fits(x)), None)
    text += f"; {_against(x, normal)}" if normal else "; what is normal for this hardware is unknown"
    if r.backend != "nccl":
        text += " (CPU, gloo: no GPU was measured)"
    return text


def _weight(x: Result) -> tuple[int, bool, int]:
    return len(x.group.ranks), x.purpose == "verdict", x.size_bytes


def _against(x: Result, e: Expected) -> str:
    kind = {"site": "site reference", "measured": "published", "estimated": "estimated", "bound": "at most"}[e.kind]
    return f"{x.busbw_gbs / e.busbw_gbs:.0%} of {numbers.gbs(e.busbw_gbs)} ({kind}: {e.source})"


def transport(r: BenchReport) -> str:
    t = r.transport
    if t is None:
        return "network: unknown (no rank said)"
    yes = {True: "on", False: "off", None: "n/a" if r.backend != "nccl" else "unknown"}
    nics = ", ".join(t.nics[:8]) + (f" and {len(t.nics) - 8} more" if len(t.nics) > 8 else "") if t.nics else "unknown"
    channels = t.channels if t.channels is not None else yes[None]
    return (
        f"network {t.network or 'unknown'}; plugin {t.plugin or 'none'}; NICs {nics}; GPUDirect {yes[t.gpudirect]}; "
        f"NVLS {yes[t.nvls]}; channels {channels}"
    )


def findings(found: Sequence[Finding], *, everything: bool = False, most: int = MAX_LINES) -> Iterator[Text]:
    left = most if not everything else 10**9
    for number, f in enumerate(found):
        lines = list(finding(f, everything=everything))
        if len(lines) > left and number:
            yield Text(f"... {len(found) - number} more findings: --all shows them", style="dim")
            return
        left -= len(lines)
        yield from lines


def finding(f: Finding, *, everything: bool = False) -> Iterator[Text]:
    sure = "" if f.confidence.value == "certain" else f" ({f.confidence.value})"
    yield Text.assemble((f"{f.code} {f.severity.value}", STYLE[f.severity]), f"{sure}: {f.message}")
    if where := place(f):
        yield Text(f"    where: {where}")
    shown = f.evidence if everything else f.evidence[:MAX_EVIDENCE]
    for e in shown:
        yield Text(f"    seen: {e.text}  [{e.where}]", style="dim")
    if len(f.evidence) > len(shown):
        yield Text(f"    seen: {len(f.evidence) - len(shown)} more observations", style="dim")
    if f.cost:
        yield Text(f"    cost: {f.cost}")
    for fix in f.fixes:
        yield Text(f"    fix: {fix.do}" + (f": {fix.command}" if fix.command else ""))
    if f.confirm and f.severity is not Severity.INFO:
        yield Text(f"    confirm: {f.confirm}")


def place(f: Finding) -> str:
    parts = [
        numbers.hosts(f.where.hosts) if f.where.hosts else "",
        f"rank {numbers.ranges(f.where.ranks)}" if f.where.ranks else "",
        f"GPU {numbers.ranges(f.where.gpus)}" if f.where.gpus else "",
        numbers.hosts(f.where.nics) if f.where.nics else "",
    ]
    return "; ".join(part for part in parts if part)


COLUMNS = ("collective", "size", "count", "type", "redop", "time us", "p99 us", "algbw", "busbw", "#wrong", "slowest")


def table(r: BenchReport) -> Iterator[Text]:
    """Bandwidths in GB/s (1e9), time is the median of the last rank's."""
    shown = rows(r.results)
    if not shown:
        return
    cells = [COLUMNS, *(cell for _, cell in shown)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS))]
    group = None
    yield Text(
        "  ".join(_cell(text, width, i) for i, (text, width) in enumerate(zip(COLUMNS, widths, strict=True))),
        style="bold",
    )
    for title, cell in shown:
        if title != group:
            group = title
            yield Text(f"-- {title}", style="dim")
        yield Text(
            "  ".join(_cell(text, width, i) for i, (text, width) in enumerate(zip(cell, widths, strict=True))).rstrip()
        )
    for s in r.sets:
        yield Text(
            f"-- {s.purpose}: {s.collectives} collectives, {human(s.total_bytes)}, "
            f"one after the other {numbers.microseconds(s.time_us)} us"
        )


def rows(results: Iterable[Result]) -> list[tuple[str, tuple[str, ...]]]:
    """Each result with the title of its group; of many nodes alone, only the slowest per size."""
    kept: dict[tuple[object, ...], tuple[Result, int]] = {}
    for x in results:
        alone = x.group.kind == "node"
        key = (x.group.kind, () if alone else x.group.ranks, x.collective, x.size_bytes, x.dtype, x.purpose)
        before = kept.get(key)
        slower = x if before is None or x.busbw_gbs < before[0].busbw_gbs else before[0]
        kept[key] = (slower, (before[1] if before else 0) + 1)
    order = {"world": 0, "node": 1, "inter": 2, "pair": 3}
    listed = sorted(
        kept.values(),
        key=lambda k: (order.get(k[0].group.kind, 9), k[0].group.nodes, k[0].collective, k[0].size_bytes),
    )
    return [(_title(x, count), _row(x)) for x, count in listed]


def _title(x: Result, count: int) -> str:
    nodes = f"{x.group.nodes} node{'s' if x.group.nodes != 1 else ''}"
    if x.group.kind == "node":
        return "each node alone" + (f", the slowest of {count}" if count > 1 else "")
    if x.group.kind == "inter":
        return f"one rank per node, {nodes}"
    if x.group.kind == "pair":
        return f"pair of ranks {x.group.ranks[0]} and {x.group.ranks[-1]}"
    return f"{len(x.group.ranks)} ranks on {nodes}"


def _row(x: Result) -> tuple[str, ...]:
    return (
        x.collective,
        str(x.size_bytes),
        str(x.count),
        x.dtype,
        x.op,
        numbers.microseconds(x.time_us.p50),
        numbers.microseconds(x.time_us.p99),
        numbers.gbs(x.algbw_gbs),
        numbers.gbs(x.busbw_gbs),
        str(x.wrong),
        f"rank {x.slowest_rank}",
    )


def _cell(text: str, width: int, column: int) -> str:
    return text.ljust(width) if column in (0, 3, 4, 10) else text.rjust(width)


def skipped_checks(checks: Iterable[Check]) -> Iterator[Text]:
    """One line per reason."""
    reasons: dict[tuple[Status, str], list[str]] = {}
    for c in checks:
        if c.status in (Status.SKIPPED, Status.CRASHED):
            reasons.setdefault((c.status, c.reason), []).append(c.code)
    for (status, reason), codes in sorted(
        reasons.items(), key=lambda item: (item[0][0] is not Status.CRASHED, -len(item[1]))
    ):
        yield Text(
            f"{status.value} {numbers.hosts(sorted(set(codes)), most=12)}: {_cut(reason)}",
            style="red" if status is Status.CRASHED else "dim",
        )


def _cut(words: str) -> str:
    words = " ".join(words.split())
    return words if len(words) <= MAX_TEXT else f"{words[:MAX_TEXT]} ..."


def checked(checks: Sequence[Check]) -> Text:
    by_status = {s: len({c.code for c in checks if c.status is s}) for s in Status}
    said = ", ".join(f"{count} {status.value}" for status, count in by_status.items() if count)
    return Text(f"checks: {said or 'none'}")


def _counted(found: Sequence[Finding]) -> str:
    counts = {s: sum(f.severity is s for f in found) for s in Severity}
    said = ", ".join(f"{n} {s.value}{'s' if n != 1 and s is not Severity.INFO else ''}" for s, n in counts.items() if n)
    return said or "nothing found"
