"""Where a rank left the order of operations that it kept before and that its peers keep, and what it did instead.

An operation is out of order where nothing of the kind ever followed the operations before it, neither on the rank
itself nor on a rank of the same role. What is usual there is taken from a peer at the same place, else from the rank's
own past.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from smoldiag.facts.flight import Call
from smoldiag.model.streams import Stream, agreement, site

CONTEXT = 6  # operations that must have gone before in the same order for the next one to be foreseen
ALIKE = 0.9  # of the operations that two ranks of one role have in common
ALIKE_SHORT = 0.5  # where what may be out of order is most of what there is to compare
COMPARED = 400  # operations, for the role
ENOUGH = 40  # of them for the stricter share
SEEN = 2  # times that an operation must have come before what follows it is known
SEEN_KNOWN = 6  # where what follows now is nothing new in itself
SAVING = ("save", "checkpoint", "state_dict", "evaluate", "validat", "eval_")

How = Literal["skipped", "order", "size", "dtype", "branch", "left-loop", "stays-in-loop"]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a rank did, and what was usual at that place."""

    rank: int
    did: Call
    usual: Call
    seq: int
    group: str  # what kind of group
    how: How
    saving: bool = False  # in a function that saves or evaluates
    place: int  # what and where, as a number
    beside: bool = False  # a peer did the usual under the same record
    below: bool = False  # it was called from further down than all before: after the loop, or at its end


def peers(own: Stream, others: Iterable[Stream], *, before: int) -> list[Stream]:
    """Ranks of the same role: their operations are the same, record by record, before place `before`."""
    return [o for o in others if _alike(own, o, before)]


def _alike(own: Stream, other: Stream, before: int) -> bool:
    shift = own.first - other.first
    start = max(0, -shift)
    end = min(len(own.agreed), len(other.agreed) - shift)
    early = range(max(start, before - COMPARED), min(before, end))
    chosen, share = (early, ALIKE) if len(early) >= ENOUGH else (range(start, end), ALIKE_SHORT)
    same = sum(own.agreed[i] == other.agreed[i + shift] for i in chosen)
    return len(chosen) > 0 and same >= share * len(chosen)


def turn(own: Stream, others: Sequence[Stream], *, since: int) -> Turn | None:
    """The first operation from place `since` on that is out of order."""
    alike = peers(own, others, before=since)
    common = {pair for o in alike for pair in zip(o.agreed, o.agreed[1:], strict=False)}
    index = _index(own)
    for at in range(max(since, len(own.places) // 2, 1), len(own.places)):
        if own.places[at] < 0 or not _is_new(own, index, at):
            continue
        beside = _beside(own, alike, at)
        if any(o.agreed[j] == own.agreed[at] for o, j in beside):
            continue
        if not beside and (own.agreed[at - 1], own.agreed[at]) in common:
            continue
        usual = beside[0] if beside else _foreseen(own, index, at)
        if usual:
            return replace(_classified(own, at, *usual), beside=bool(beside))
    return None


def parting(own: Stream, others: Sequence[Stream], *, after: int = ENOUGH) -> Turn | None:
    """The first operation in which the rank parted from another that had done the same, however long ago."""
    for other in others:
        shift = own.first - other.first
        start, end = max(0, -shift), min(len(own.agreed), len(other.agreed) - shift)
        at = next((i for i in range(start, end) if own.agreed[i] != other.agreed[i + shift]), None)
        if at is not None and at - start >= after and own.calls[at] and other.calls[at + shift]:
            return replace(_classified(own, at, other, at + shift), beside=True)
    return None


def _beside(own: Stream, alike: Sequence[Stream], at: int) -> list[tuple[Stream, int]]:
    """What peers did under the same record."""
    places = [(o, at + own.first - o.first) for o in alike]
    return [(o, j) for o, j in places if 0 <= j < len(o.agreed) and o.calls[j]]


def _index(own: Stream) -> dict[int, list[int]]:
    """Where each operation stands."""
    found: dict[int, list[int]] = {}
    for i, place in enumerate(own.places):
        found.setdefault(place, []).append(i)
    return found


def _ends(own: Stream, index: dict[int, list[int]], at: int) -> list[int]:
    """Places before `at` that followed the longest same context, newest first."""
    candidates = [i + 1 for i in reversed(index[own.places[at - 1]]) if i + 1 < at]
    for length in range(2, CONTEXT + 1):
        context = own.places[max(at - length, 0) : at]
        longer = [e for e in candidates if own.places[max(e - length, 0) : e] == context]
        if not longer:
            break
        candidates = longer
    return candidates


def _is_new(own: Stream, index: dict[int, list[int]], at: int) -> bool:
    """Never before did this operation come after the one before it, though that one came often enough to tell."""
    before = [i + 1 for i in index[own.places[at - 1]] if i + 1 < at]
    known = index[own.places[at]][0] < at
    return len(before) >= (SEEN_KNOWN if known else SEEN) and all(own.places[i] != own.places[at] for i in before)


def _foreseen(own: Stream, index: dict[int, list[int]], at: int) -> tuple[Stream, int] | None:
    ends = _ends(own, index, at)
    return (own, ends[0]) if ends and own.calls[ends[0]] else None


def _classified(own: Stream, at: int, usual: Stream, usual_at: int) -> Turn:
    did, expected = own.calls[at], usual.calls[usual_at]
    assert did is not None
    assert expected is not None
    saving = any(word in f.name.lower() for f in did.frames for word in SAVING)
    made = Turn(
        rank=own.rank,
        did=did,
        usual=expected,
        seq=own.seqs[at],
        group=own.kinds[at],
        how="branch",
        saving=saving,
        place=own.places[at],
    )
    history = [c for c in own.calls[:at] if c]
    here, there = site(did), site(expected)
    if did.op == expected.op and own.kinds[at] == usual.kinds[usual_at] and here == there:
        return replace(made, how=differs_in(did, expected))
    cycle = _round(usual, usual_at) or _round_of(own, usual.places[usual_at])
    if own.places[at] in {s.places[i] for s, i in cycle}:
        return replace(made, how="skipped")
    seen_here, seen_there = (any(site(c) == x for c in history) for x in (here, there))
    below = not seen_here and seen_there and here is not None and _below(did, history)
    made = replace(made, below=below)
    if here is None and did.op == "barrier" and all(c.op != "barrier" for c in history):
        return replace(made, how="left-loop")  # no stack tells it, but nothing in the loop was a barrier
    if below and (did.op == "barrier" or (saving and own.rank != 0)):  # rank 0 alone saves or evaluates by mistake
        return replace(made, how="left-loop")
    if own.agreed[at] in {s.agreed[i] for s, i in cycle}:
        return replace(made, how="order")
    if seen_here and there and not seen_there:
        return replace(made, how="stays-in-loop")
    return made


def differs_in(a: Call, b: Call) -> Literal["size", "dtype"]:
    """Of two calls of one operation."""
    bare = [agreement(replace(c, input_dtypes=(), output_dtypes=())) for c in (a, b)]
    return "dtype" if bare[0] == bare[1] else "size"


def _round(usual: Stream, at: int) -> list[tuple[Stream, int]]:
    """What came after this operation the last time, until it came again."""
    before = next((i for i in range(at - 1, -1, -1) if usual.places[i] == usual.places[at]), None)
    return [(usual, i) for i in range(before + 1, at)] if before is not None else []


def _round_of(own: Stream, place: int) -> list[tuple[Stream, int]]:
    found = [i for i, p in enumerate(own.places) if p == place]
    return _round(own, found[-1]) if len(found) > 1 else []


def _below(did: Call, history: Sequence[Call]) -> bool:
    """It is called from further down than all that the same functions called before."""
    last: dict[tuple[str, str], int] = {}
    for c in {id(c): c for c in history}.values():
        for f in c.frames:
            last[f.filename, f.name] = max(last.get((f.filename, f.name), 0), f.line)
    lines = {(f.filename, f.name): f.line for f in did.frames}
    moved = [key for key in lines if key in last and lines[key] != last[key]]
    return bool(moved) and all(lines[key] > last[key] for key in moved)
