"""Where the ranks stand in their collectives, as a table."""

from collections.abc import Iterator

from smoldiag.facts import Flight
from smoldiag.model.hangs import Row, table

MAX_ROWS = 48  # of a job of thousands; those that wait first


def read(flight: Flight) -> str:
    """What was given, in a few words."""
    counted = [
        (len(flight.dumps), "Flight Recorder dump", "Flight Recorder dumps"),
        (len(flight.stacks), "stack", "stacks"),
        (len(flight.ras), "RAS report", "RAS reports"),
        (len(flight.diagnostics), "line of NCCL's diagnostics", "lines of NCCL's diagnostics"),
        (len(flight.arrivals), "rank timed by Inspector", "ranks timed by Inspector"),
    ]
    return ", ".join(f"{n} {one if n == 1 else several}" for n, one, several in counted if n)


def lines(flight: Flight) -> Iterator[str]:
    """`rank 2  default_pg (0)  last enqueued #9, completed #8; in all_reduce [2] at train.py:83`."""
    rows = sorted(table(flight), key=lambda r: (not r.waits, r.rank))
    for row in rows[:MAX_ROWS]:
        yield f"{'rank':12} {_row(row)}"
    if len(rows) > MAX_ROWS:
        yield f"{'rank':12} and {len(rows) - MAX_ROWS} more; all of them: --format json --facts"


def _row(row: Row) -> str:
    where = f"{row.rank} on {row.host}" if row.host else str(row.rank)
    named = [("enqueued", row.last_enqueued), ("started", row.last_started), ("completed", row.last_completed)]
    last = ", ".join(f"{name} #{seq}" for name, seq in named if seq is not None)
    does = f"{'in' if row.waits else 'last'} {row.op or '?'} {row.sizes}".rstrip() + (
        f" at {row.line}" if row.line else ""
    )
    return f"{where}, {row.group}: {last}; {does}" if last else f"{where}, {row.group}: {does}"
