"""What a rank did, operation by operation: which of them may be compared, and where they stem from.

Two ranks agree on a collective where the library would pair them: same operation, same number of elements, same
types. Shapes may differ, and so may the sizes of operations that are uneven by design.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

from smoldiag.facts.flight import ENDED, Call, Dump, Frame

UNEVEN_BY_DESIGN = (
    "all_to_all",
    "alltoall",
    "all_gather_v",
    "reduce_scatter_v",
    "sparse",
    "barrier",
    "coalesced",
    "split",
)
LIBRARY = ("/site-packages/", "/dist-packages/", "/lib/python3", "<frozen ", "<string>", "/torch/")


def agreement(call: Call) -> tuple[object, ...]:
    """What must be equal on all ranks: operation, elements, types; of gather and scatter what all ranks have."""
    op = call.op
    ins, outs = elements(call.input_sizes), elements(call.output_sizes)
    types = tuple(sorted(set(call.input_dtypes) or set(call.output_dtypes)))
    if call.peer is not None or any(word in op.lower() for word in UNEVEN_BY_DESIGN):
        return (op,)
    if op.startswith("scatter"):
        return (op, outs, tuple(sorted(set(call.output_dtypes))))
    if op.startswith("gather"):
        return (op, ins, types)
    if "reduce_scatter" in op and len(set(ins)) > 1:
        return (op, sum(ins), types)
    if "all_gather" in op and len(set(outs)) > 1:
        return (op, sum(outs), types)
    if op in ("reduce", "broadcast"):
        return (op, ins or outs, types)
    return (op, ins, outs, types)


def elements(sizes: Iterable[Sequence[int]]) -> tuple[int, ...]:
    return tuple(map(prod, sizes))


def group_size(call: Call) -> int | None:
    """How many ranks take part, where the sizes tell it."""
    ins, outs = sum(elements(call.input_sizes)), sum(elements(call.output_sizes))
    if "all_gather" in call.op or "allgather" in call.op:
        large, small = outs, ins
    elif "reduce_scatter" in call.op:
        large, small = ins, outs
    else:
        return None
    return large // small if small and large % small == 0 else None


def is_library(frame: Frame) -> bool:
    return any(part in frame.filename for part in LIBRARY) or not frame.filename


def user_frames(call: Call) -> tuple[Frame, ...]:
    """Of the program itself, innermost first; of its libraries where it is none."""
    own = tuple(f for f in call.frames if not is_library(f))
    return own or tuple(f for f in call.frames if "/torch/" not in f.filename)[:1] or call.frames[:1]


def site(call: Call) -> Frame | None:
    """The line of the program that called it."""
    frames = user_frames(call)
    return frames[0] if frames else None


@dataclass(kw_only=True)
class Codes:
    """Numbers for what operations agree on, and for that with the place in the program."""

    agreements: dict[tuple[object, ...], int] = field(default_factory=dict)
    places: dict[tuple[object, ...], int] = field(default_factory=dict)
    known: dict[int, tuple[int, int]] = field(default_factory=dict)  # by the identity of the call, which the dump keeps

    def of(self, call: Call) -> tuple[int, int]:
        found = self.known.get(id(call))
        if found is None:
            agreed = agreement(call)
            sites = tuple((f.filename, f.line) for f in user_frames(call))
            found = self.known[id(call)] = (
                self.agreements.setdefault(agreed, len(self.agreements)),
                self.places.setdefault((agreed, sites), len(self.places)),
            )
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """All operations of one rank in the order in which it issued them; empty places where a record is not there."""

    rank: int
    first: int  # record of the first
    places: "array[int]"  # kind of group, operation and line; -1 in empty places
    agreed: "array[int]"  # kind of group and what all members must agree on; -1 in empty places
    calls: tuple[Call | None, ...]
    kinds: tuple[str, ...]  # desc of the group: the same on all ranks, unlike its name
    seqs: tuple[int, ...]
    open: int  # place of the first that has not ended; the length where all have


def rows(dump: Dump, codes: Codes, kinds: dict[str, int]) -> "tuple[int, array[int], array[int]]":
    """First record, and from there for each record the place and what is agreed on; -1 where there is none."""
    filled = [t for t in dump.tracks if t.records]
    first = min((t.records[0] for t in filled), default=0)
    last = max((max(t.records) for t in filled), default=-1)
    count = last - first + 1
    if not 0 <= count <= 4 * dump.entries + 16:  # consecutive, but where only the active ones were asked for
        return first, array("q"), array("q")
    places, agreed = array("q", [-1]) * count, array("q", [-1]) * count
    for t in filled:
        kind = kinds.setdefault(t.desc or t.group, len(kinds)) << 40
        of_call = [codes.of(c) for c in dump.calls]
        for record, call in zip(t.records, t.calls, strict=True):
            agreement_code, place_code = of_call[call]
            places[record - first] = kind | place_code
            agreed[record - first] = kind | agreement_code
    return first, places, agreed


def stream(dump: Dump, codes: Codes, kinds: dict[str, int]) -> Stream:
    first, places, agreed = rows(dump, codes, kinds)
    calls: list[Call | None] = [None] * len(places)
    descs, seqs = [""] * len(places), [0] * len(places)
    still_open = len(places)
    for t in dump.tracks if places else ():
        for record, call, seq, state in zip(t.records, t.calls, t.seqs, t.states, strict=True):
            calls[record - first], descs[record - first], seqs[record - first] = dump.calls[call], t.desc, seq
            if state != ENDED:
                still_open = min(still_open, record - first)
    return Stream(
        rank=dump.rank if dump.rank is not None else -1,
        first=first,
        places=places,
        agreed=agreed,
        calls=tuple(calls),
        kinds=tuple(descs),
        seqs=tuple(seqs),
        open=still_open,
    )
