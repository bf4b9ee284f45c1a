"""The inside of machines for people: the matrix, which NIC each GPU gets, and how hosts lie to each other."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from smoldiag.facts import GpuWay, Network, Topology
from smoldiag.render import markdown as pages
from smoldiag.render import numbers
from smoldiag.render import text as reports
from smoldiag.topo import Inside, Seen

COLUMNS = ("GPU", "NUMA", "NIC", "path", "GB/s", "narrowest hop", "GPUDirect")
STYLE = {"NVL": "green", "NVB": "green", "C2C": "green", "PIX": "green", "PXB": "green", "P2C": "green"}
FAR = {"PXN": "cyan", "PHB": "yellow", "SYS": "red", "DIS": "bold red"}
MAX_HOSTS = 4  # shown in full; the others are alike or have findings


def text(seen: Seen, *, everything: bool = False) -> RenderableType:
    r = seen.report
    looked = seen.network is not None or any(i.topology for i in seen.insides)
    word = (r.verdict.value, reports.VERDICT_STYLE[r.verdict]) if looked else ("nothing looked at", "yellow")
    head = Text.assemble(word, f": {headline(seen)}")
    parts: list[Text] = [head]
    for inside in seen.insides if everything else seen.insides[:MAX_HOSTS]:
        parts += _inside(inside)
    if len(seen.insides) > MAX_HOSTS and not everything:
        parts.append(Text(f"... {len(seen.insides) - MAX_HOSTS} more hosts: --all shows them", style="dim"))
    if seen.network:
        parts += [Text(), *(Text(line) for line in network(seen.network, everything=everything))]
    found = list(reports.findings(r.findings, everything=everything))
    return Group(*parts, *([Text()] if found else []), *found)


def headline(seen: Seen) -> str:
    """What was looked at, in a sentence without its full stop."""
    known = [i for i in seen.insides if i.topology]
    said = [f"{_counted(i.topology)} ({i.topology.source})" for i in known[:1] if i.topology]
    if len(known) > 1:
        said = [f"{len(known)} hosts; the first: {said[0]}"]
    said += [f"{i.host}: no topology ({i.why_not})" for i in seen.insides if not i.topology][:2]
    if seen.network:
        said.append(f"{len(seen.network.placements)} hosts in the network ({seen.network.source})")
    return "; ".join(said) or "nothing was looked at"


def _counted(t: Topology | None) -> str:
    assert t is not None
    counts = ((len(t.gpus), "GPU"), (len(t.nics), "NIC"))
    return ", ".join(f"{n} {what}{'s' if n != 1 else ''}" for n, what in counts)


def _inside(inside: Inside) -> Iterator[Text]:
    t = inside.topology
    if t is None:
        return
    yield Text()
    yield Text(f"{inside.host} ({t.source})" + ("" if t.tells_nvlinks else "; NVLinks are not told"), style="bold")
    yield from _matrix(t)
    yield Text()
    yield from _table([COLUMNS, *(_way(w) for w in inside.ways)])


def _matrix(t: Topology) -> Iterator[Text]:
    names = [d.name for d in (*t.gpus, *t.nics)]
    cells = {(g.name, n): cell(t, g.name, n) for g in t.gpus for n in names}
    widths = {n: max([len(n), *(len(cells[g.name, n]) for g in t.gpus)]) for n in names}
    first = max((len(g.name) for g in t.gpus), default=3)
    yield Text("  ".join([" " * first, *(n.ljust(widths[n]) for n in names)]).rstrip(), style="bold")
    for g in t.gpus:
        line = Text(g.name.ljust(first))
        for n in names:
            kind = _kind(t, g.name, n)
            line.append("  " + cells[g.name, n].ljust(widths[n]), style=STYLE.get(kind, FAR.get(kind, "")))
        line.rstrip()
        yield line


def _kind(t: Topology, a: str, b: str) -> str:
    path = t.path(a, b)
    return path.kind if path else ""


def cell(t: Topology, a: str, b: str) -> str:
    """NV18, else NCCL's word; with the GPU's own way where NCCL goes through another GPU."""
    path = t.path(a, b)
    if a == b or path is None:
        return "-" if a == b else "?"
    if path.kind == "DIS" and t.nodes and b not in {n.id for n in t.nodes}:
        return "?"  # nobody knows where it sits
    if path.kind == "PXN":
        return f"PXN({path.direct})"
    return path.written if path.kind == "NVL" and path.written else path.kind


def _way(w: GpuWay) -> tuple[str, ...]:
    possible = {True: "yes", False: "no", None: "unknown"}[w.gpudirect]
    return (
        w.gpu,
        numbers.ranges(w.numa) if w.numa else "?",
        ", ".join(w.nics[:2]) + (f" and {len(w.nics) - 2} more" if len(w.nics) > 2 else "") if w.nics else "none",
        w.kind or "?",
        f"{w.gb_per_s:g}" if w.gb_per_s else "?",
        w.narrowest or "?",
        f"{possible}: {w.why}" if w.why else possible,
    )


def _table(rows: Sequence[Sequence[str]]) -> Iterator[Text]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    for number, row in enumerate(rows):
        line = "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        yield Text(line, style="bold" if number == 0 else "")


def network(n: Network, *, everything: bool = False) -> Iterator[str]:
    """Hosts below their lowest switch, and how many switches lie between the farthest two."""
    leaves: dict[str, list[str]] = {}
    for p in n.placements:
        leaves.setdefault(p.switches[0] if p.switches else "?", []).append(p.host)
    yield f"{len(n.placements)} hosts below {len(leaves)} lowest switch{'es' if len(leaves) != 1 else ''} ({n.source})"
    listed = sorted(leaves.items(), key=lambda item: -len(item[1]))
    for leaf, hosts in listed if everything else listed[:12]:
        yield f"  {leaf}: {numbers.hosts(hosts)}"
    if len(listed) > 12 and not everything:
        yield f"  ... {len(listed) - 12} more switches: --all shows them"
    yield f"  switches between two hosts, up and down: {_distances(n)}"
    if n.missing:
        yield f"  not in it: {numbers.hosts(n.missing)}"


def _distances(n: Network) -> str:
    counts: dict[int | None, int] = {}
    groups: dict[tuple[str, ...], int] = {}
    for p in n.placements:
        groups[p.switches] = groups.get(p.switches, 0) + 1
    ways = list(groups.items())
    for i, (a, count) in enumerate(ways):
        pairs = count * (count - 1) // 2
        if pairs:
            counts[1] = counts.get(1, 0) + pairs
        for b, others in ways[i + 1 :]:
            between = switches_between(a, b)
            counts[between] = counts.get(between, 0) + count * others
    said = [f"{k} for {v} pairs" for k, v in sorted((k, v) for k, v in counts.items() if k is not None)]
    said += [f"no common switch for {counts[None]} pairs"] if None in counts else []
    return ", ".join(said) or "one host alone"


def switches_between(a: Sequence[str], b: Sequence[str]) -> int | None:
    """How many switches traffic passes; None where they share none."""
    for up, switch in enumerate(a):
        if switch in b:
            return up + b.index(switch) + 1
    return None


def markdown(seen: Seen) -> str:
    lines = [f"# smoldiag topo: {seen.report.verdict.value}", "", pages.escape(headline(seen)), ""]
    for inside in seen.insides:
        if t := inside.topology:
            names = [d.name for d in (*t.gpus, *t.nics)]
            lines += [f"## {pages.escape(inside.host)}", "", _row(["", *names]), _row(["---"] * (len(names) + 1))]
            lines += [_row([g.name, *(cell(t, g.name, n) for n in names)]) for g in t.gpus]
            lines += ["", _row(COLUMNS), _row(["---"] * len(COLUMNS)), *(_row(_way(w)) for w in inside.ways), ""]
    if seen.network:
        lines += ["## Network", "", *(f"- {pages.escape(line.strip())}" for line in network(seen.network)), ""]
    return "\n".join([*lines, *pages.findings(seen.report.findings)]).rstrip() + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(pages.escape(c) for c in cells)} |"
