"""What `explain` found: the verdict in three lines, then the findings; as text, and as an issue's text."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby, islice

from rich.console import Group, RenderableType
from rich.text import Text

from smoldiag.explained import Explained
from smoldiag.facts import Log, Transport
from smoldiag.facts.alone import Alone
from smoldiag.findings import Finding, Report, Severity
from smoldiag.model.sizes import human
from smoldiag.model.steps import budget
from smoldiag.render import flight, numbers, series, steps, tables, traces
from smoldiag.render import markdown as md
from smoldiag.render import text as plain
from smoldiag.rules import Known

MAX_NOTES = 6
MAX_LISTED = 16
MAX_TABLES = 4
MAX_BESIDE = 8
MAX_ROWS = 24  # of a table


def text(explained: Explained, *, facts: bool = False, everything: bool = False) -> RenderableType:
    report = explained.report
    shown = [f for f in report.findings if everything or f.severity is not Severity.INFO] or report.findings
    hidden = len(report.findings) - len(shown)
    notes = report.notes if everything else report.notes[:MAX_NOTES]
    lines: list[Text] = [Text(line) for line in verdict(report, explained.known)]
    lines[0].stylize(plain.VERDICT_STYLE[report.verdict], 0, len(report.verdict.value))
    if explained.known.tables:
        lines += [Text(), *(Text(line) for line in tables.lines(explained.known.tables, everything=everything))]
    if explained.known.alone:
        lines += [Text(), *map(Text, beside_bench(explained.known.alone, everything=everything))]
    if explained.known.series:
        lines += [Text(), *(Text(line) for line in series.lines(explained.known.series, everything=everything))]
    if facts:
        lines += [Text(), *(Text(line) for line in (*picture(explained.known), *bandwidths(explained.known)))]
    if shown:
        lines += [Text(), *plain.findings(shown, everything=everything)]
    if hidden:
        lines.append(Text(f"{hidden} more worth knowing: --all shows them", style="dim"))
    lines += [Text(f"note: {note}", style="dim") for note in notes]
    if len(report.notes) > len(notes):
        lines.append(Text(f"note: {len(report.notes) - len(notes)} more: --all shows them", style="dim"))
    return Group(*lines)


def verdict(report: Report, known: Known) -> Iterator[str]:
    """Three lines: what it is, what it explains or what would decide it, what to do."""
    read = what_was_read(known)
    first = report.findings[0] if report.findings else None
    if first is None or first.severity is Severity.INFO:
        yield f"{report.verdict.value}: no failure in what was read"
        yield read
        yield "do: nothing" if first is None else f"worth knowing: {first.message}"
        return
    yield f"{report.verdict.value}: {first.message} ({first.cause}, {first.confidence.value})"
    others = [f for f in report.findings[1:] if f.severity is not Severity.INFO]
    explained = [f for f in others if f.cause in first.explains]
    if explained:
        yield f"it explains: {'; '.join(f.message for f in explained[:3])}"
    elif others and first.confidence.value != "certain":
        causes = ", ".join(dict.fromkeys(f.cause for f in others[:3]))
        yield f"or else: {causes}; to decide: {first.confirm or 'unknown'}"
    elif first.confidence.value != "certain" and first.confirm:
        yield f"to be sure: {first.confirm}"
    else:
        yield read
    do = (
        f"{first.fixes[0].do}{': ' + first.fixes[0].command if first.fixes[0].command else ''}"
        if first.fixes
        else "see below"
    )
    yield f"do: {do}" + (f"; restart: {report.restart}" if report.restart else "")


def what_was_read(known: Known) -> str:
    parts = []
    if log := known.log:
        files = f"{len(log.files)} files" if len(log.files) != 1 else log.files[0]
        parts.append(f"{files}, {log.num_lines} lines")
        if log.ranks:
            parts.append(f"{len(log.ranks)} rank{'s' if len(log.ranks) != 1 else ''} speak")
        if log.hosts:
            parts.append(f"hosts {numbers.hosts(log.hosts)}")
        if log.attempts > 1:
            parts.append(f"{log.attempts} attempts, the last is judged")
        if log.last_step is not None:
            parts.append(f"last step {log.last_step}")
    elif known.cluster:
        parts.append(f"hosts {numbers.hosts(h.name for h in known.cluster)}")
    if known.tables and (counted := tables.read(known.tables)):
        parts.append(counted)
    if known.flight and (counted := flight.read(known.flight)):
        parts.append(counted)
    if known.trace:
        parts.append(traces.read(known.trace))
    if known.series:
        parts.append(series.read(known.series))
    return f"read: {'; '.join(parts)}" if parts else "read: see --facts"


def picture(known: Known) -> Iterator[str]:
    """The run as logs and dumps show it: what is not said is left out."""
    if known.log:
        yield from _logged(known.log)
    yield from _machines(known)
    if known.flight:
        yield from flight.lines(known.flight)
    if known.trace:
        yield from traces.lines(known.trace)
    if known.run and (whole := budget(known.run)):
        yield steps.headline(known.run, whole)
        yield from (line.plain for line in steps.table(whole))
    if known.series:
        yield from series.figures(known.series)


def _machines(known: Known) -> Iterator[str]:
    """Hosts and topologies that other texts than logs tell of."""
    for host in list(known.cluster or ())[:MAX_LISTED]:
        gpus = Counter(g.name for g in host.gpus or ())
        said = [
            host.product or "",
            ", ".join(f"{count} x {name}" for name, count in gpus.items()),
            ", ".join(f"{name} {version}" for name, version in sorted((host.versions or {}).items())),
        ]
        if any(said):
            yield f"{'host':12} {host.name}: {'; '.join(filter(None, said))}"
    for topology in known.tables.topologies[:MAX_TABLES] if known.tables else ():
        gpu_names = {d.name for d in topology.gpus}
        between = Counter(p.written or p.kind for p in topology.paths if set(p.ends) <= gpu_names)
        to_nics = Counter(p.written or p.kind for p in topology.paths if not set(p.ends) <= gpu_names)
        parts = [f"{len(topology.gpus)} GPUs, {len(topology.nics)} NICs"]
        parts += [
            f"{what} {', '.join(f'{kind} x{count}' for kind, count in kinds.most_common(6))}"
            for what, kinds in (("GPU to GPU", between), ("GPU to NIC", to_nics))
            if kinds
        ]
        yield f"{'topology':12} {'; '.join(parts)} ({topology.source})"


def _logged(log: Log) -> Iterator[str]:
    t = log.transport or Transport()
    versions = {
        **({"nccl": t.nccl_version} if t.nccl_version else {}),
        **({"cuda": t.cuda_version} if t.cuda_version else {}),
    }
    versions |= {"driver supports cuda": t.driver_version} if t.driver_version else {}
    versions |= dict(log.versions)
    rows: list[tuple[str, str]] = [
        ("versions", ", ".join(f"{name} {value}" for name, value in versions.items())),
        ("hosts", numbers.hosts(log.hosts)),
        ("GPUs", ", ".join(f"{count} x {name}" for name, count in _gpus(log).items())),
        ("world", _world(log, t)),
        ("ranks seen", numbers.ranges(log.ranks) if log.ranks else ""),
        ("network", _network(t)),
        ("NICs", numbers.hosts(t.nics or ())),
        ("GPUDirect", {True: "on", False: "off", None: ""}[t.gpudirect]),
        ("NVLS", {True: "on", False: "off", None: ""}[t.nvls]),
        ("MNNVL", {True: "on", False: "off", None: ""}[t.mnnvl]),
        ("SHARP", "on" if "CollNet" in t.algorithms else ""),
        ("channels", str(t.channels) if t.channels is not None else ""),
        ("paths", ", ".join(f"{name} x{count}" for name, count in t.paths)),
        ("topology", _topology(log)),
        ("algorithms", ", ".join(t.algorithms)),
    ]
    yield from (f"{name:12} {value}" for name, value in rows if value)
    yield from islice((f"{'pair':12} {line}" for line in _pairs(log)), MAX_LISTED)
    yield from (f"{'ring':12} {ring}" for ring in log.rings[:4])
    yield from (f"{'tree':12} {tree}" for tree in log.trees[:4])
    for x in log.timings[:4]:
        parts = ", ".join(f"{name} {seconds:g}" for name, seconds in x.parts)
        yield f"{'init':12} {x.total_s:g} s on rank {x.rank} of {x.ranks}" + (f" ({parts})" if parts else "")
    for name, values in sorted(log.env.items())[: MAX_LISTED * 4]:
        yield f"{'variable':12} {name}={' | '.join(values)}"


def _gpus(log: Log) -> Counter[str]:
    return Counter(e.details["gpu"].strip() for e in log.find("device-table") for _ in range(e.count))


def _pairs(log: Log) -> Iterator[str]:
    """Ranks by the path to their neighbours: `P2P/CUMEM x2: 0->1 1->2`."""
    by_path: dict[tuple[str, int], list[str]] = {}
    for a, b, path, channels in log.pairs:
        by_path.setdefault((path, channels), []).append(f"{a}->{b}")
    for (path, channels), ends in by_path.items():
        more = f" and {len(ends) - MAX_LISTED} more" if len(ends) > MAX_LISTED else ""
        yield f"{path} x{channels}: {' '.join(ends[:MAX_LISTED])}{more}"


def _topology(log: Log) -> str:
    said = log.first("system")
    return said.details["said"] if said else ""


def bandwidths(known: Known) -> Iterator[str]:
    """The tables of bandwidths that were read, each with its largest sizes."""
    for table in known.tables.bandwidth[:MAX_TABLES] if known.tables else ():
        title = " ".join(filter(None, (table.collective, table.label)))
        yield f"{title or table.tool} ({table.where}" + (f", {table.ranks} ranks)" if table.ranks else ")")
        rows = [r for r in table.rows if r.best_gbs is not None]
        if len(rows) > MAX_ROWS:
            yield f"... {len(rows) - MAX_ROWS} smaller sizes"
        for r in rows[-MAX_ROWS:]:
            size = f"{r.size_bytes} B" if r.size_bytes is not None else f"{r.nodes or r.ranks or '?'} nodes"
            time = f"{r.out_of_place.time_us:g} us, " if r.out_of_place.time_us is not None else ""
            yield f"{size}: {time}{r.best_gbs:g} GB/s"


def beside_bench(alone: Alone, *, everything: bool = False) -> Iterator[str]:
    """Each collective of the run or trace against the bench, those that lose most first."""
    yield f"collectives of the {alone.where}, and alone ({alone.bench})"
    shown = alone.rows if everything else alone.rows[:MAX_BESIDE]
    for r in shown:
        gbs = ["?" if v is None else numbers.gbs(v) for v in (r.busbw_gbs, r.alone_busbw_gbs)]
        times = [numbers.microseconds(v or 0.0) for v in (r.transfer_us, r.alone_us)]
        lost = f", loses {numbers.microseconds(r.lost_us)} us" if r.lost_us else ""
        what = f"{r.name} {human(r.size_bytes)} over {r.ranks}"
        rates = f"{gbs[0]:>8} GB/s, alone {gbs[1]:>8} GB/s"
        yield f"{what:32} x{r.calls:<5.3g} {rates}  ({times[0]} us, alone {times[1]} us{lost})"
    if len(alone.rows) > len(shown):
        yield f"... {len(alone.rows) - len(shown)} more: --all shows them"


def _world(log: Log, t: Transport) -> str:
    ranks = t.ranks or log.world
    if ranks is None:
        return ""
    return f"{ranks} ranks" + (f" on {t.nodes} nodes" if t.nodes else "")


def _network(t: Transport) -> str:
    if t.network is None:
        return ""
    more = [x for x in (t.plugin if t.plugin != t.network else None, t.provider, t.link_layer) if x]
    return t.network + (f" ({', '.join(more)})" if more else "")


def markdown(explained: Explained) -> str:
    """A text for an issue: what happened, where, with what; redacted where it was read."""
    report, known = explained.report, explained.known
    lines = [f"# {md.escape(next(iter(verdict(report, known))))}", ""]
    lines += [f"- {md.escape(line)}" for line in list(verdict(report, known))[1:]]
    facts = list(picture(known))
    if facts:
        lines += ["", "## The run", "", "| | |", "|---|---|"]
        for name, group in groupby(facts, key=lambda row: row[:12].strip()):
            lines.append(f"| {md.escape(name)} | {'<br>'.join(md.escape(row[13:]) for row in group)} |")
    told = list(tables.lines(known.tables, everything=True)) if known.tables else []
    if told:
        lines += ["", "## Tables", "", *(f"- {md.escape(line)}" for line in told)]
    if known.alone:
        lines += ["", "## Beside a bench", "", "```", *beside_bench(known.alone, everything=True), "```"]
    if known.series:
        runs = series.lines(known.series, everything=True)
        lines += ["", "## Metrics", "", *(f"- {md.escape(line)}" for line in runs)]
    rows = list(bandwidths(known))
    if rows:
        lines += ["", "## Bandwidth", "", "```", *rows, "```"]
    lines += _findings(report.findings)
    if report.notes:
        lines += ["", "## Notes", "", *(f"- {md.escape(note)}" for note in report.notes)]
    lines += ["", f"smoldiag {report.version}, {report.created}"]
    return "\n".join(lines) + "\n"


def _findings(found: Sequence[Finding]) -> list[str]:
    if not found:
        return []
    return ["", "## Findings", "", *md.findings(found)]
