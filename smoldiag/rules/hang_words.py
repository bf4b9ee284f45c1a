"""What the rules on hangs say alike: ranks, collectives, places."""

from collections.abc import Iterator, Sequence

from smoldiag.facts import Flight
from smoldiag.facts.flight import Call, Frame, Stack
from smoldiag.findings import Fix, Where
from smoldiag.model import folded
from smoldiag.model.hangs import Diagnosis, Suspect, diagnosis
from smoldiag.model.streams import is_library, site

SHOWN = 8  # ranks, lines of a table
CONSEQUENCES = ("rank-stalled", "rank-failed", "nccl-failed", "peer-died")
WAITING_IS = (*CONSEQUENCES, "straggler-or-hung-rank", "network-wedged")
RECORD = Fix(
    do="keep the stacks of all ranks next time",
    command="export TORCH_FR_BUFFER_SIZE=2000 TORCH_NCCL_DUMP_ON_TIMEOUT=1 TORCH_FR_DUMP_TEMP_FILE=/tmp/fr_rank_",
)
FIX_FIRST = "fix first: the program would come to the same place again"
SOURCE = "pytorch torch/csrc/distributed/c10d/FlightRecorder.hpp"
WATCHDOG_SOURCE = "pytorch torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp"


def ranks_text(ranks: Sequence[int]) -> str:
    """rank 3; ranks 0, 1, 4-9"""
    return f"rank{'s' if len(ranks) > 1 else ''} {folded.ranges(ranks, most=SHOWN)}" if ranks else "no rank"


def call_text(call: Call | None) -> str:
    """all_reduce of [4096] Float"""
    if call is None:
        return "nothing"
    sizes = call.input_sizes or call.output_sizes
    shapes = ", ".join(str(list(s)) for s in sizes[:3]) + (f" and {len(sizes) - 3} more" if len(sizes) > 3 else "")
    types = ", ".join(sorted(set(call.input_dtypes or call.output_dtypes)))
    peer = f" {call.peer[0]}->{call.peer[1]}" if call.peer else ""
    return f"{call.op}{peer}" + (f" of {shapes} {types}".rstrip() if sizes else "")


def place_text(call: Call | None) -> str:
    """at train.py:56 (in main)"""
    frame = site(call) if call else None
    return f" at {frame} ({frame.name})" if frame else ""


def on(hosts: Sequence[str]) -> str:
    return f" on {', '.join(hosts[:SHOWN])}" + (" ..." if len(hosts) > SHOWN else "") if hosts else ""


def hosts_of(flight: Flight, ranks: Sequence[int]) -> tuple[str, ...]:
    named = {**{d.rank: d.host for d in flight.dumps if d.rank is not None and d.host}, **flight.hosts}
    return tuple(dict.fromkeys(named[r] for r in ranks if r in named))


def who(flight: Flight, ranks: Sequence[int]) -> str:
    hosts = hosts_of(flight, ranks)
    on = f" on {', '.join(hosts[:SHOWN])}" + (" ..." if len(hosts) > SHOWN else "") if hosts else ""
    return ranks_text(ranks) + on


def where_of(flight: Flight, ranks: Sequence[int]) -> Where:
    return Where(ranks=tuple(sorted(ranks)), hosts=hosts_of(flight, ranks))


def file_of(flight: Flight, rank: int) -> str:
    newest = [d for d in flight.dumps if d.rank == rank]
    return max(newest, key=lambda d: d.newest_ns or 0).where if newest else "the dumps"


def stack_of(flight: Flight, rank: int) -> Stack | None:
    own = [s for s in flight.stacks if s.rank == rank and s.frames]
    main = [s for s in own if s.thread.lower().startswith("main")]
    return next(iter(main or own), None)


def at(stack: Stack) -> Frame:
    return next((f for f in stack.frames if not is_library(f)), stack.frames[0])


def suspects(flight: Flight, *kinds: str) -> Iterator[tuple[Diagnosis, Suspect]]:
    if flight.dumps:
        d = diagnosis(flight)
        yield from ((d, s) for s in d.suspects if s.kind in kinds)
