"""The tables that `explain` read, a line each: what was measured, and how much of the published figure it is."""

from collections.abc import Iterator

from smoldiag.facts import Tables
from smoldiag.facts.tables import BandwidthTable
from smoldiag.model.curve import curve
from smoldiag.model.sizes import human
from smoldiag.render import numbers
from smoldiag.rules import tables as judging

MAX_LINES = 8


def lines(tables: Tables, *, everything: bool = False) -> Iterator[str]:
    """At most eight lines, unless everything is wanted."""
    found = list(_all(tables))
    most = len(found) if everything or len(found) <= MAX_LINES else MAX_LINES - 1
    yield from found[:most]
    if len(found) > most:
        yield f"and {len(found) - most} more tables: --all shows them"


def read(tables: Tables) -> str:
    """How many of what: `3 tables of bandwidths, 1 profile`."""
    counts = (
        (len(tables.bandwidth), "table of bandwidths", "tables of bandwidths"),
        (len(tables.pairs), "table of pairs", "tables of pairs"),
        (len(tables.links), "link test", "link tests"),
        (len(tables.topologies), "matrix of paths", "matrices of paths"),
        (len(tables.profiles) + len(tables.timelines) + len(tables.kernels), "profile", "profiles"),
        (len(tables.figures), "figure", "figures"),
    )
    return ", ".join(f"{count} {one if count == 1 else many}" for count, one, many in counts if count)


def _all(tables: Tables) -> Iterator[str]:
    yield from (_table(t) for t in tables.bandwidth)
    for p in tables.pairs:
        rates = [x.gb_per_s for x in p.pairs]
        what = p.label or f"pairs of {p.kind}"
        yield f"{what}: {len(rates)} rates, {min(rates):.4g} to {max(rates):.4g} GB/s [{p.where}]"
    for link in tables.links[:MAX_LINES]:
        yield f"{link.tool} on {link.device or 'a NIC'}: {link.gbit_per_s:.4g} Gb/s [{link.where}]"


def _table(table: BandwidthTable) -> str:
    found = judging.compared(table)
    row = found[0] if found else judging.judged(table)
    if row is not None:
        said = judging.against(table, row, found[1] if found else None)
    elif table.average_gbs is not None and not table.rows:
        said = f"{table.collective or 'a collective'} over {judging.world(table)}: {table.average_gbs:.4g} GB/s average"
    elif by_world := [r for r in table.rows if (r.nodes or r.ranks) and r.best_gbs is not None]:
        steps = ", ".join(f"{r.nodes or r.ranks}: {numbers.gbs(r.best_gbs or 0.0)}" for r in by_world[:8])
        label = f" [{table.label}]" if table.label else ""
        of = "nodes" if by_world[0].nodes else "ranks"
        said = f"{table.collective or 'a collective'}{label} by {of}: {steps} GB/s"
    else:
        shape = curve(table.rows)
        sizes = f"up to {human(shape.largest_bytes)}" if shape else "no sizes"
        said = f"{table.collective or 'a collective'} over {judging.world(table)}: {sizes}, too small to judge"
    shape = curve(table.rows)
    floor = f"; {shape.latency_us:.0f} us for small messages" if shape and shape.latency_us is not None else ""
    half = f"; half of it from {human(shape.half_bytes)} on" if shape and shape.half_bytes and row is not None else ""
    return f"{said}{floor}{half} [{table.where}]"
