"""From the dumps of a job's ranks to who keeps it: divergences, waits, and what the rank at their root did.

A rank waits in an operation that it has entered and that has not ended, for the members that have not entered it. Who
is waited for and waits for nobody is at the root; where the waits run in a circle, the one that left the common order.

A hang is a healthy run whose last rank never comes: a single picture of both is the same. So it counts as standing
still only where nothing speaks against it: no rank went on past what another has not entered (`moved_on`), and the
newest operations were old when the dumps were written.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from statistics import median

from smoldiag.facts.flight import ENDED, TIMED_OUT, Call, Dump, Flight, Track
from smoldiag.model.streams import Codes, Stream, agreement, foreseen, group_size, places, site, stream

STILL_S = 2.0  # newer operations than this are a run that goes on, where all dumps fit into one picture
STILL_INCOMPLETE_S = 5.0  # where some are missing; writing a first dump takes up to 4 s (torch imports its compiler)
USUAL_GAPS = 3  # ... and so are operations within this many times the longest recent gap
RECENT = 200  # operations
EARLY = 20  # operations of a job that has not begun to train
NOT_SYNCHRONISING = ("broadcast", "reduce", "scatter", "gather", "send", "recv", "coalesced", "_broadcast_oop")
SAVING = ("save", "checkpoint", "state_dict", "evaluate", "validat", "eval_")
MAX_STREAMS = 16  # ranks that are looked at one by one


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """An operation of a group in which ranks differ: what, with the ranks that did it, most of them first."""

    group: str
    seq: int
    calls: tuple[tuple[Call, tuple[int, ...]], ...]
    created_ns: int

    @property
    def kind(self) -> str:
        """`op`, `size` or `dtype`: what differs first."""
        ops = {c.op for c, _ in self.calls}
        if len(ops) > 1:
            return "op"
        types = {(c.input_dtypes, c.output_dtypes) for c, _ in self.calls}
        sizes = {agreement(replace(c, input_dtypes=(), output_dtypes=())) for c, _ in self.calls}
        return "dtype" if len(sizes) == 1 and len(types) > 1 else "size"


@dataclass(frozen=True, kw_only=True)
class Wait:
    """A rank that waits, and for whom."""

    rank: int
    group: str
    seq: int
    call: Call
    absent: tuple[int, ...]  # ranks that have not entered it
    unnamed: int = 0  # further members that have not, whose ranks nothing tells
    age_s: float | None = None  # since it was entered, when the dump was written


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Where a rank left the order that was usual, or that the others kept."""

    rank: int
    did: Call | None  # None: nothing more
    usual: Call | None
    seq: int
    group: str
    how: str  # skipped | order | size | dtype | op | branch | left-loop | stays-in-loop | idle
    saving: bool = False


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """Ranks at the root of a hang, and what is known of them."""

    ranks: tuple[int, ...]
    kind: str  # differs | uneven | absent | no-dump | pairing | together | order
    waits: tuple[Wait, ...] = ()
    turn: Turn | None = None
    divergence: Divergence | None = None
    last: Call | None = None  # what the first of them ended last
    early: bool = False  # before training began
    certain: bool = False
    shortlist: bool = False  # it is one of these, not all of them


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    ranks: tuple[int, ...]  # with a dump
    missing: tuple[int, ...]  # without one
    world: int | None
    still: bool | None  # False: the dumps are of a run that goes on; None: nothing tells
    moved_on: str = ""
    still_s: float | None = None  # how long nothing new had come when the dumps were written
    divergences: tuple[Divergence, ...] = ()
    waits: tuple[Wait, ...] = ()
    suspects: tuple[Suspect, ...] = ()
    unplaced: tuple[str, ...] = ()  # dumps whose rank nothing tells


@dataclass(kw_only=True)
class _Member:
    """One rank in one group."""

    entered: int | None  # the last that it entered; None: it may have, the buffer does not say
    track: Track | None = None
    dump: Dump | None = None
    agreed: "array[int]" = field(default_factory=lambda: array("l"))
    pending: int | None = None  # place in the track of the first that has not ended


@dataclass(kw_only=True)
class _Group:
    name: str
    desc: str
    ranks: tuple[int, ...] | None
    size: int | None = None
    members: dict[int, _Member] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.desc} ({self.name})" if self.desc not in ("", "undefined") else f"group {self.name}"


@lru_cache(maxsize=2)
def diagnosis(flight: Flight) -> Diagnosis:
    """What the dumps say together."""
    dumps, unplaced = _placed(flight.dumps)
    codes, kinds = Codes(), dict[str, int]()
    groups = _groups(dumps, codes)
    world, world_said = _world(flight, dumps, groups)
    missing = tuple(r for r in range(world) if r not in dumps)
    named = world_said or 2 * len(missing) <= len(dumps)
    _complete(groups, dumps, world)
    moved_on = _moved_on(groups)
    still_s = _still_s(dumps, groups)
    timed_out = any(TIMED_OUT in m.track.states for g in groups for m in g.members.values() if m.track)
    divergences = tuple(sorted(_divergences(groups), key=lambda d: d.created_ns))
    waits = _waits(groups, dumps, missing if named else ())
    least_s = STILL_S if _closed(dumps, waits, missing) else STILL_INCOMPLETE_S
    still = _still(dumps, moved_on, still_s, least_s=least_s, proven=timed_out or _fired(flight))
    known = _Known(dumps=dumps, codes=codes, kinds=kinds, groups=groups, waits=waits, missing=missing)
    return Diagnosis(
        ranks=tuple(sorted(dumps)),
        missing=missing,
        world=world if world_said else None,
        still=still,
        moved_on=moved_on,
        still_s=still_s,
        divergences=divergences,
        waits=waits,
        suspects=_suspects(known, divergences, still=still is not False),
        unplaced=unplaced,
    )


def _placed(dumps: Iterable[Dump]) -> tuple[dict[int, Dump], tuple[str, ...]]:
    """By rank; of several dumps of one rank the newest. A rank that no name tells is where all its groups meet."""
    placed: dict[int, Dump] = {}
    unplaced = []
    for d in dumps:
        rank = d.rank
        if rank is None:
            common = set.intersection(*(set(r) for r in d.groups.values())) if d.groups else set()
            rank = common.pop() if len(common) == 1 else None
        if rank is None:
            unplaced.append(d.where)
        elif rank not in placed or (d.newest_ns or 0) > (placed[rank].newest_ns or 0):
            placed[rank] = replace(d, rank=rank)
    return placed, tuple(unplaced)


def _groups(dumps: Mapping[int, Dump], codes: Codes) -> list[_Group]:
    groups: dict[tuple[str, tuple[int, ...] | None], _Group] = {}
    for rank, dump in dumps.items():
        agreed = [codes.of(c)[0] for c in dump.calls]
        for t in dump.tracks:
            if t.p2p:
                continue
            g = groups.setdefault((t.group, t.ranks), _Group(name=t.group, desc=t.desc, ranks=t.ranks))
            pending = next((i for i, s in enumerate(t.states) if s != ENDED), None)
            own = array("l", map(agreed.__getitem__, t.calls))
            g.members[rank] = _Member(entered=t.seqs[-1], track=t, dump=dump, agreed=own, pending=pending)
            if g.size is None:
                g.size = len(t.ranks) if t.ranks else next(filter(None, map(group_size, dump.calls_of(t))), None)
    return list(groups.values())


def _world(flight: Flight, dumps: Mapping[int, Dump], groups: Sequence[_Group]) -> tuple[int, bool]:
    """Ranks of the job, and whether something says so; else at least as many as the groups need."""
    said = [d.world for d in dumps.values() if d.world]
    said += [w for w in (flight.world, flight.watchdog.world if flight.watchdog else None) if w]
    said += [max(g.ranks) + 1 for g in groups if g.ranks]
    needed: Counter[str] = Counter()
    for g in groups:  # groups of one kind have no rank in common, and nobody waits alone
        needed[g.desc] += max(g.size or 2, len(g.members))
    at_least = max([max(dumps, default=-1) + 1, *needed.values()])
    return max([*said, at_least]), bool(said) and max(said) >= at_least


def _complete(groups: Sequence[_Group], dumps: Mapping[int, Dump], world: int) -> None:
    """Members whose dump does not show the group, and sizes that a group of the same kind tells."""
    sizes = {g.desc: g.size for g in groups if g.size}
    for g in groups:
        if g.ranks is None and g.desc == "default_pg":
            g.ranks = tuple(range(world))
        g.size = len(g.ranks) if g.ranks else g.size or sizes.get(g.desc)
        for rank in g.ranks or ():
            dump = dumps.get(rank)
            if dump is not None and rank not in g.members:
                lost = min((t.records[0] for t in dump.tracks if t.records), default=0) > 0
                g.members[rank] = _Member(entered=None if lost else 0, dump=dump)


def _moved_on(groups: Sequence[_Group]) -> str:
    """A rank that ended an operation, and then went on, which another had not entered when its dump was made."""
    for g in groups:
        entered = [m.entered for m in g.members.values()]
        if len(entered) < 2 or None in entered:
            continue
        behind, last = min((m.entered or 0, r) for r, m in g.members.items())
        for rank, m in g.members.items():
            t = m.track
            if t is None or m.dump is None or t.seqs[-1] <= behind:
                continue
            newest = max(x.records[-1] for x in m.dump.tracks)
            for seq, state, call, record in zip(
                reversed(t.seqs), reversed(t.states), reversed(t.calls), reversed(t.records), strict=True
            ):
                if seq <= behind:
                    break
                if state == ENDED and record < newest and _synchronises(m.dump.calls[call]):
                    return f"rank {rank} had ended #{seq} of {g.label}, and rank {last} had not entered it"
    return ""


def _synchronises(call: Call) -> bool:
    """No rank gets through it before all have come."""
    return call.peer is None and call.op not in NOT_SYNCHRONISING


def _still_s(dumps: Mapping[int, Dump], groups: Sequence[_Group]) -> float | None:
    """How old the newest operation was when the dumps were written: the least over the ranks."""
    ages = [
        d.written_s - d.newest_ns / 1e9 for d in dumps.values() if d.written_s is not None and d.newest_ns is not None
    ]
    return min(ages) if len(ages) == len(dumps) and ages else None


def _closed(dumps: Mapping[int, Dump], waits: Sequence[Wait], missing: Sequence[int]) -> bool:
    """Each rank has a dump, and waits for another or is waited for."""
    concerned = {r for w in waits for r in (w.rank, *w.absent)}
    return not missing and not any(w.unnamed for w in waits) and concerned >= set(dumps)


def _still(
    dumps: Mapping[int, Dump], moved_on: str, still_s: float | None, *, least_s: float, proven: bool
) -> bool | None:
    if proven:
        return True
    if moved_on:
        return False
    if still_s is None or still_s < 0:  # a clock that is off
        return None
    gaps = [_longest_gap_s(d) for d in list(dumps.values())[:MAX_STREAMS]]
    return still_s >= max(least_s, USUAL_GAPS * median(gaps) if gaps else 0)


def _longest_gap_s(dump: Dump) -> float:
    times = sorted(t for track in dump.tracks for t in track.created_ns[-RECENT:])
    times = times[-RECENT:]
    return max((b - a for a, b in zip(times, times[1:], strict=False)), default=0) / 1e9


def _fired(flight: Flight) -> bool:
    return bool(flight.watchdog and any(t.name in ("watchdog", "blocking-wait") for t in flight.watchdog.timers))


def _divergences(groups: Sequence[_Group]) -> Iterable[Divergence]:
    """Of each group the first operation in which ranks differ, in the part that all dumps still have."""
    for g in groups:
        tracks = {r: m for r, m in g.members.items() if m.track}
        if len(tracks) < 2:
            continue
        start = max(m.track.seqs[0] for m in tracks.values() if m.track)
        rows: dict[bytes, list[int]] = defaultdict(list)
        for rank, m in tracks.items():
            rows[_row(m, start).tobytes()].append(rank)
        if len(rows) > 1 and (seq := _first_difference(rows, start)) is not None:
            yield _divergence(g, seq)


def _row(m: _Member, start: int) -> "array[int]":
    """What the rank agreed to, by sequence number from `start` on; several operations under one number are one."""
    t = m.track
    assert t is not None
    if t.seqs[-1] - t.seqs[0] == len(t.seqs) - 1:
        return m.agreed[start - t.seqs[0] :]
    by_seq: dict[int, tuple[int, ...]] = {}
    for seq, agreed in zip(t.seqs, m.agreed, strict=True):
        by_seq[seq] = (*by_seq.get(seq, ()), agreed)
    last = t.seqs[-1]
    return array("l", [hash(by_seq.get(s, ())) if s in by_seq else -1 for s in range(start, last + 1)])


def _first_difference(rows: Mapping[bytes, Sequence[int]], start: int) -> int | None:
    made = [memoryview(raw).cast("l") for raw in rows]
    seq: int | None = None
    longest = max(made, key=len)
    for row in made:
        pairs = zip(longest, row, strict=False)
        here = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if here is not None and (seq is None or start + here < seq):
            seq = start + here
    return seq


def _divergence(g: _Group, seq: int) -> Divergence:
    by_agreement: dict[tuple[int, ...], list[int]] = defaultdict(list)
    calls: dict[tuple[int, ...], Call] = {}
    created = []
    for rank, m in g.members.items():
        if m.track is None or m.dump is None:
            continue
        here = [i for i in _around(m.track, seq) if m.track.seqs[i] == seq]
        if here:
            key = tuple(m.agreed[i] for i in here)
            by_agreement[key].append(rank)
            calls.setdefault(key, m.dump.calls[m.track.calls[here[0]]])
            created.append(m.track.created_ns[here[0]])
    ordered = sorted(by_agreement.items(), key=lambda item: -len(item[1]))
    return Divergence(
        group=g.label,
        seq=seq,
        calls=tuple((calls[key], tuple(sorted(ranks))) for key, ranks in ordered),
        created_ns=min(created),
    )


def _around(t: Track, seq: int) -> range:
    at = seq - t.seqs[0]
    contiguous = t.seqs[-1] - t.seqs[0] == len(t.seqs) - 1
    return range(at, at + 1) if contiguous and 0 <= at < len(t.seqs) else range(len(t.seqs))


def _waits(groups: Sequence[_Group], dumps: Mapping[int, Dump], missing: Sequence[int]) -> tuple[Wait, ...]:
    waits = []
    for g in groups:
        for rank, m in g.members.items():
            if m.track is None or m.pending is None or m.dump is None:
                continue
            seq = m.track.seqs[m.pending]
            absent = [r for r, other in g.members.items() if other.entered is not None and other.entered < seq]
            without = [r for r in g.ranks or () if r not in g.members]
            unnamed = (g.size or 2) - len(g.members) - len(without) if g.ranks is None else 0  # nobody waits alone
            if unnamed > 0:
                candidates = [r for r in missing if not _elsewhere(groups, g, r)]
                if len(candidates) == unnamed:
                    without, unnamed = candidates, 0
            age = None
            if m.dump.written_s is not None:
                age = m.dump.written_s - m.track.created_ns[m.pending] / 1e9
            call = m.dump.calls[m.track.calls[m.pending]]
            all_absent = tuple(sorted({*absent, *without}))
            waits.append(
                Wait(
                    rank=rank, group=g.label, seq=seq, call=call, absent=all_absent, unnamed=max(unnamed, 0), age_s=age
                )
            )
    waits += _p2p_waits(dumps)
    return tuple(sorted(waits, key=lambda w: w.rank))


def _elsewhere(groups: Sequence[_Group], g: _Group, rank: int) -> bool:
    """The rank is known to be in another group of this kind."""
    return any(other is not g and other.desc == g.desc and rank in other.members for other in groups)


def _p2p_waits(dumps: Mapping[int, Dump]) -> list[Wait]:
    """A send that no pending receive of the peer answers, or the other way round."""
    open_: dict[int, set[tuple[str, str, int, int]]] = defaultdict(set)
    first: dict[tuple[int, tuple[str, str, int, int]], tuple[Track, int]] = {}
    for rank, dump in dumps.items():
        for t in dump.tracks:
            for i, state in enumerate(t.states if t.p2p else b""):
                call = dump.calls[t.calls[i]]
                if state == ENDED or call.peer is None or t.ranks is None or max(call.peer) >= len(t.ranks):
                    continue
                key = (t.group, call.op, t.ranks[call.peer[0]], t.ranks[call.peer[1]])
                open_[rank].add(key)
                first.setdefault((rank, key), (t, i))
    waits = []
    for (rank, key), (t, i) in first.items():
        group, op, source, target = key
        peer = target if op == "send" else source
        answer = (group, "recv" if op == "send" else "send", source, target)
        dump = dumps[rank]
        absent = () if answer in open_.get(peer, ()) else (peer,)
        age = dump.written_s - t.created_ns[i] / 1e9 if dump.written_s is not None else None
        waits.append(Wait(rank=rank, group=group, seq=t.seqs[i], call=dump.calls[t.calls[i]], absent=absent, age_s=age))
    return waits


@dataclass(frozen=True, kw_only=True)
class _Known:
    dumps: Mapping[int, Dump]
    codes: Codes
    kinds: dict[str, int]
    groups: Sequence[_Group]
    waits: Sequence[Wait]
    missing: Sequence[int]

    def stream(self, rank: int) -> Stream:
        return stream(self.dumps[rank], self.codes, self.kinds)


def _suspects(known: _Known, divergences: Sequence[Divergence], *, still: bool) -> tuple[Suspect, ...]:
    if divergences:
        return tuple(_of_divergence(known, d) for d in divergences[:3])
    if not still:
        return ()
    roots = _roots(known)
    left = _left_order(known, roots)
    if left:
        return left
    if roots:
        return _of_roots(known, roots)
    if known.waits and all(not w.absent and not w.unnamed for w in known.waits):
        return (_together(known),)
    cycle = {r for w in known.waits for r in w.absent} & {w.rank for w in known.waits}
    if cycle:
        return (Suspect(ranks=tuple(sorted(cycle)), kind="order", waits=tuple(known.waits), shortlist=True),)
    unnamed = tuple(w for w in known.waits if w.unnamed)
    if unnamed:
        return (Suspect(ranks=tuple(known.missing), kind="no-dump", waits=unnamed, shortlist=True),)
    if known.missing and not known.waits:
        return _after_failures(known)
    return ()


def _roots(known: _Known) -> dict[int, list[Wait]]:
    """Ranks that are waited for and wait for nobody, with who waits for them."""
    waited: dict[int, list[Wait]] = defaultdict(list)
    for w in known.waits:
        for r in w.absent:
            waited[r].append(w)
    waiting = {w.rank for w in known.waits if w.absent or w.unnamed}
    roots = {r: ws for r, ws in waited.items() if r not in waiting}
    roots |= {r: [] for r in known.dumps if r not in roots and r not in waiting and _idle(known, r)}
    for r in list(roots):
        if r in known.dumps and (blocker := _failed_with(known, r)) and blocker not in known.dumps:
            roots.setdefault(blocker, []).extend(roots.pop(r))
    return roots


def _idle(known: _Known, rank: int) -> bool:
    """It waits in nothing, and its last operation did not fail: another member has gone on after it."""
    if any(w.rank == rank for w in known.waits):
        return False
    tracks = [t for t in known.dumps[rank].tracks if t.records]
    last = max(tracks, key=lambda t: t.records[-1], default=None)
    for g in known.groups:
        if rank in g.members and g.members[rank].track is last and last is not None:
            for other, m in g.members.items():
                if other == rank or m.track is None or m.dump is None:
                    continue
                at = [i for i in _around(m.track, last.seqs[-1]) if m.track.seqs[i] == last.seqs[-1]]
                newest = max(t.records[-1] for t in m.dump.tracks)
                if at and m.track.states[at[-1]] == ENDED and m.track.records[at[-1]] < newest:
                    return True
    return False


def _failed_with(known: _Known, rank: int) -> int | None:
    """Gloo's operations end when they fail, too: the member without a dump of the group of the rank's last one."""
    tracks = [t for t in known.dumps[rank].tracks if t.records]
    if not tracks or not known.missing:
        return None
    last = max(tracks, key=lambda t: t.records[-1])
    call = known.dumps[rank].calls[last.calls[-1]]
    if call.backend in ("nccl", "ncclx", "rccl") or last.states[-1] != ENDED:
        return None
    for g in known.groups:
        if rank in g.members and g.members[rank].track is last:
            members = g.ranks or ()
            absent = [r for r in members if r not in known.dumps]
            if not members and (g.size or 0) > len(g.members):
                absent = [r for r in known.missing if not _elsewhere(known.groups, g, r)]
            return absent[0] if len(absent) == 1 else None
    return None


def _left_order(known: _Known, roots: Mapping[int, Sequence[Wait]]) -> tuple[Suspect, ...]:
    """Ranks that left the order of operations which they, or most others, kept before."""
    odd = _odd_ones(known)
    present = [r for r in roots if r in known.dumps]
    candidates = present if len(present) == len(roots) and roots else sorted({w.rank for w in known.waits})
    chosen = [r for r in candidates if r in odd] or (candidates if len(candidates) <= MAX_STREAMS else [])
    suspects = []
    for rank in chosen[:MAX_STREAMS]:
        turn = _turn(known, rank, _reference(known, rank, odd))
        if turn and not _shared(known, turn):
            waits = tuple(roots.get(rank, ())) or tuple(w for w in known.waits if rank in w.absent)
            suspects.append((rank, turn, waits))
    if not suspects:
        return ()
    first = [s for s in suspects if s[0] in odd] or suspects
    rank, turn, waits = first[0]
    alike = tuple(
        sorted(r for r, t, _ in first if (t.how, t.did and site(t.did)) == (turn.how, turn.did and site(turn.did)))
    )
    kind = "uneven" if turn.how in ("left-loop", "stays-in-loop") and not turn.saving else "differs"
    return (Suspect(ranks=alike, kind=kind, waits=waits, turn=turn),)


def _shared(known: _Known, turn: Turn) -> bool:
    """At least half of the ranks with a dump are at the same place: it is where the program goes."""
    assert turn.did is not None
    place = known.codes.of(turn.did)[1]
    ends = [last for d in known.dumps.values() if (last := _last(d)[0])]
    return 2 * sum(known.codes.of(c)[1] == place for c in ends) > len(ends) or len(ends) < 2


def _odd_ones(known: _Known) -> set[int]:
    """Ranks whose operations, in their order over all groups, part from those of most others first."""
    rows: dict[bytes, list[int]] = defaultdict(list)
    all_rows = {r: places(d, known.codes, known.kinds) for r, d in known.dumps.items()}
    filled = {r: (first, row) for r, (first, row) in all_rows.items() if row}
    if len(filled) < 3:
        return set()
    start = max(first for first, _ in filled.values())
    end = min(first + len(row) for first, row in filled.values())
    for rank, (first, row) in filled.items():
        rows[row[start - first : max(end - first, 0)].tobytes()].append(rank)
    if len(rows) > 1:
        most = max(rows.values(), key=len)
        if 2 * len(most) > len(filled):
            return {r for ranks in rows.values() if ranks is not most for r in ranks}
    return set()


def _reference(known: _Known, rank: int, odd: set[int]) -> Stream | None:
    others = [r for r in known.dumps if r != rank and r not in odd]
    best = max(others, key=lambda r: known.dumps[r].entries, default=None)
    return known.stream(best) if best is not None else None


def _turn(known: _Known, rank: int, reference: Stream | None) -> Turn | None:
    """The last place where the rank did other than was usual, and what it is."""
    own = known.stream(rank)
    if not own.places:
        return None
    parts_at = _parting(own, reference) if reference else None
    at = parts_at if parts_at is not None else len(own.places) - 1
    usual_from, usual_at = own, foreseen(own.places, at)
    if parts_at is not None and reference is not None:
        usual_from, usual_at = reference, parts_at + own.first - reference.first
    if usual_at is None or usual_from.places[usual_at] == own.places[at]:
        return None
    return _classified(own, at, usual_from, usual_at)


def _parting(own: Stream, other: Stream) -> int | None:
    """Where the rank's operations part from the other's for good, though both had been alike and usual."""
    start = max(own.first, other.first)
    a, b = own.places[start - own.first :], other.places[start - other.first :]
    here = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    if here is None:
        return None
    at = here + start - own.first
    seen = foreseen(own.places, at)
    if seen is not None and own.places[seen] == own.places[at]:
        return None  # what it always did there: roles differ
    return at


def _classified(own: Stream, at: int, usual: Stream, usual_at: int) -> Turn:
    did, expected = own.calls[at], usual.calls[usual_at]
    assert did is not None
    assert expected is not None
    turn = Turn(rank=own.rank, did=did, usual=expected, seq=own.seqs[at], group=own.kinds[at], how="branch")
    history = [(c, k, p) for c, k, p in zip(own.calls[:at], own.kinds[:at], own.places[:at], strict=True) if c]
    cycle = _after(usual, usual_at) or _after_own(own, usual.places[usual_at])
    same = (agreement(did), own.kinds[at])
    here, there = site(did), site(expected)
    if did.op == expected.op and own.kinds[at] == usual.kinds[usual_at] and here == there:
        return replace(turn, how=Divergence(group="", seq=0, calls=((did, ()), (expected, ())), created_ns=0).kind)
    if own.places[at] in {p for _, _, p in cycle}:
        return replace(turn, how="skipped")
    if any((agreement(c), k) == same for c, k, _ in cycle):
        return replace(turn, how="order")
    saving = any(word in f.name.lower() for f in did.frames for word in SAVING)
    seen_here = any(site(c) == here for c, _, _ in history)
    if not seen_here and here and _after_loop(did, [c for c, _, _ in history]):
        return replace(turn, how="left-loop", saving=saving)
    if seen_here and there and not any(site(c) == there for c, _, _ in history):
        return replace(turn, how="stays-in-loop", saving=saving)
    return replace(turn, how="branch", saving=saving)


def _after(usual: Stream, at: int) -> list[tuple[Call, str, int]]:
    """What came after this operation in earlier rounds of the same stream, until it came again."""
    before = [i for i in range(at - 1, -1, -1) if usual.places[i] == usual.places[at]]
    if not before:
        return []
    rows = range(before[0] + 1, at)
    return [(c, usual.kinds[i], usual.places[i]) for i in rows if (c := usual.calls[i])]


def _after_own(own: Stream, place: int) -> list[tuple[Call, str, int]]:
    found = [i for i, p in enumerate(own.places) if p == place]
    return _after(own, found[-1]) if len(found) > 1 else []


def _after_loop(did: Call, history: Sequence[Call]) -> bool:
    """It is called from further down than all that this function called before."""
    lines = {(f.filename, f.name): f.line for f in did.frames}
    last: dict[tuple[str, str], int] = {}
    for c in set(map(id, history)) and {id(c): c for c in history}.values():
        for f in c.frames:
            key = (f.filename, f.name)
            last[key] = max(last.get(key, 0), f.line)
    shared = [key for key in lines if key in last and lines[key] != last[key]]
    return bool(shared) and all(lines[key] > last[key] for key in shared)


def _of_divergence(known: _Known, d: Divergence) -> Suspect:
    most = d.calls[0][1]
    fewer = tuple(sorted(r for _, ranks in d.calls[1:] for r in ranks))
    tie = len(d.calls) == 2 and len(most) == len(fewer)
    turns = {}
    for r in (*fewer[:MAX_STREAMS], *(most[:MAX_STREAMS] if tie or len(most) == 1 else ())):
        others = [x for _, ranks in d.calls for x in ranks if x != r and (x in most) != (r in most)]
        turns[r] = _turn_at(known, r, d, others[0] if others else None)
    odd = [r for r, t in turns.items() if t]
    named = [r for r in odd if r in fewer] or odd
    ranks, shortlist = fewer, False
    if tie:
        ranks = tuple(named) if named and len(named) <= len(fewer) else tuple(sorted((*most, *fewer)))
        shortlist = not named or len(odd) > len(fewer)
        if shortlist:
            ranks = tuple(sorted((*most, *fewer)))
    turn = turns.get(named[0]) if named else None
    uneven = turn is not None and turn.how in ("left-loop", "stays-in-loop") and not turn.saving
    return Suspect(
        ranks=ranks,
        kind="uneven" if uneven else "differs",
        turn=turn,
        divergence=d,
        waits=tuple(w for w in known.waits if w.group == d.group and w.seq == d.seq),
        certain=not tie and not uneven,
        shortlist=shortlist,
    )


def _turn_at(known: _Known, rank: int, d: Divergence, other: int | None) -> Turn | None:
    """What the rank did at the divergence, against what it did before, or against what another did."""
    own = known.stream(rank)
    labels = {(g.desc, g.label) for g in known.groups}
    desc = next((desc for desc, label in labels if label == d.group), "")
    at = next((i for i, (k, s) in enumerate(zip(own.kinds, own.seqs, strict=True)) if k == desc and s == d.seq), None)
    if at is None:
        return None
    reference = known.stream(other) if other is not None else None
    parted = _parting(own, reference) if reference else None
    if parted is not None and parted <= at and reference is not None:
        usual_at = parted + own.first - reference.first
        return _classified(own, parted, reference, usual_at)
    seen = foreseen(own.places, at)
    if seen is None or own.places[seen] == own.places[at]:
        return None
    return _classified(own, at, own, seen)


def _of_roots(known: _Known, roots: Mapping[int, Sequence[Wait]]) -> tuple[Suspect, ...]:
    here = tuple(sorted(r for r in roots if r in known.dumps))
    gone = tuple(sorted(r for r in roots if r not in known.dumps))
    suspects = []
    if here:
        waits = tuple(dict.fromkeys(w for r in here for w in roots[r]))
        last, _ = _last(known.dumps[here[0]])
        pairing = bool(waits) and all(w.call.peer is not None for w in waits)
        suspects.append(
            Suspect(
                ranks=here, kind="pairing" if pairing else "absent", waits=waits, last=last, early=_early(known, waits)
            )
        )
    if gone:
        waits = tuple(dict.fromkeys(w for r in gone for w in roots[r]))
        suspects.append(Suspect(ranks=gone, kind="no-dump", waits=waits, shortlist=len(gone) > 1))
    return tuple(suspects)


def _last(dump: Dump) -> tuple[Call | None, int]:
    tracks = [t for t in dump.tracks if t.records]
    if not tracks:
        return None, 0
    t = max(tracks, key=lambda t: t.records[-1])
    return dump.calls[t.calls[-1]], t.records[-1] + 1


def _together(known: _Known) -> Suspect:
    """All have entered, none gets through."""
    ranks = tuple(sorted({w.rank for w in known.waits}))
    last, _ = _last(known.dumps[ranks[0]])
    waits = tuple(known.waits)
    return Suspect(ranks=ranks, kind="together", waits=waits, last=last, early=_early(known, waits))


def _after_failures(known: _Known) -> tuple[Suspect, ...]:
    """On gloo all that waited have failed: who is missing is the one that left."""
    lasts = Counter(t.seqs[-1] for d in known.dumps.values() for t in d.tracks if t.desc == "default_pg")
    if not lasts:
        return ()
    last, _ = _last(next(iter(known.dumps.values())))
    return (Suspect(ranks=tuple(known.missing), kind="no-dump", last=last, shortlist=len(known.missing) > 1),)


def _early(known: _Known, waits: Sequence[Wait]) -> bool:
    """Before training began: who waits has done little, and this operation never before."""
    for w in waits:
        last, count = _last(known.dumps[w.rank])
        calls = [d.calls[c] for d in (known.dumps[w.rank],) for t in d.tracks for c in t.calls]
        if count > EARLY or calls.count(w.call) > 1:
            return False
    return bool(waits)
