"""NCCL Inspector's JSON lines (2.28.3 and later), one file per process -> who comes last to the collectives."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

import msgspec

from smoldiag.facts.flight import Arrival

MAX_LINE = 1_000_000
MAX_COLLECTIVES = 200_000  # per file: the last ones


class _Header(msgspec.Struct):
    id: str = ""
    rank: int = -1
    n_ranks: int = 0


class _Metadata(msgspec.Struct):
    hostname: str = ""


class _Perf(msgspec.Struct):
    coll_sn: int = 0
    coll_exec_time_us: float = 0.0


class _Line(msgspec.Struct):
    header: _Header
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    coll_perf: _Perf | None = None


@dataclass(kw_only=True)
class Process:
    """What one process timed: per communicator the microseconds of each collective by its number."""

    host: str = ""
    rank_in: dict[str, tuple[int, int]] = field(default_factory=dict)  # communicator -> rank, ranks
    times: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))


_LINE = msgspec.json.Decoder(_Line)


def looks_like(name: str, head: bytes) -> bool:
    return head.lstrip()[:1] == b"{" and b'"header"' in head and (b'"coll_perf"' in head or b"inspector_output" in head)


def parse(lines: Iterable[str | bytes], *, where: str) -> Process:
    """One file; lines that are cut off are left out. ValueError where no line is Inspector's."""
    process = Process()
    for line in lines:
        try:
            made = _LINE.decode(line[:MAX_LINE])
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            continue
        if made.coll_perf is None or made.header.rank < 0:
            continue
        process.host = made.metadata.hostname or process.host
        process.rank_in[made.header.id] = (made.header.rank, made.header.n_ranks)
        times = process.times[made.header.id]
        times[made.coll_perf.coll_sn] = made.coll_perf.coll_exec_time_us
        if len(times) > MAX_COLLECTIVES:
            del times[next(iter(times))]
    if not process.rank_in:
        raise ValueError("no line of NCCL's Inspector in it")
    return process


def arrivals(processes: Sequence[Process]) -> tuple[Arrival, ...]:
    """Over the collectives that all given ranks of a communicator timed: who spent the least time, and how often."""
    by_comm: dict[str, list[Process]] = defaultdict(list)
    for p in processes:
        for comm in p.rank_in:
            by_comm[comm].append(p)
    made = []
    for comm, members in by_comm.items():
        common = set.intersection(*(set(p.times[comm]) for p in members))
        if len(members) < 2 or not common:
            continue
        last = Counter(min(members, key=lambda p: p.times[comm][sn]).rank_in[comm][0] for sn in common)
        for p in members:
            rank, ranks = p.rank_in[comm]
            made.append(
                Arrival(
                    comm=comm,
                    ranks=ranks,
                    rank=rank,
                    host=p.host,
                    collectives=len(common),
                    median_us=median(p.times[comm][sn] for sn in common),
                    last=last[rank],
                )
            )
    return tuple(made)
