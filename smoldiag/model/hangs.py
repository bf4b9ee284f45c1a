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
from itertools import pairwise
from statistics import median

from smoldiag.facts.flight import ENDED, STARTED, TIMED_OUT, Call, Dump, Flight, RankState, Track
from smoldiag.model.streams import Codes, Stream, group_size, is_library, rows, site, stream
from smoldiag.model.turns import Turn, differs_in, parting, turn

DEVICE_BACKENDS = ("nccl", "ncclx", "rccl", "rcclx", "xccl", "mccl", "hccl")
STILL_S = 3.0  # newer operations than this are a run that goes on, where all dumps fit into one picture
STILL_INCOMPLETE_S = 5.0  # where some are missing; writing a first dump takes up to 4 s (torch imports its compiler)
STILL_TOGETHER_S = 60.0  # where all are in the same operation, which may just take long
USUAL_GAPS = 3  # ... and so are operations within this many times the longest recent gap
RECENT = 200  # operations
EARLY = 20  # operations of a job that has not begun to train
NOT_SYNCHRONISING = ("broadcast", "reduce", "scatter", "gather", "send", "recv", "coalesced", "_broadcast_oop")
SAME_TIME_S = 60.0  # a pickle and JSON of one rank are written one after the other
MAX_STREAMS = 16  # ranks that are looked at one by one
LOOK_BACK = 64  # operations before the first that has not ended, in which a rank may have left the order


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
        first, second = self.calls[0][0], self.calls[1][0]
        return "op" if first.op != second.op else differs_in(first, second)


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
class Suspect:
    """Ranks at the root of a hang, and what is known of them."""

    ranks: tuple[int, ...]
    kind: str  # differs | uneven | absent | no-dump | pairing | together | circle
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
    moved_on = _moved_on(groups, complete=not missing)
    still_s = _still_s(dumps)
    timed_out = any(TIMED_OUT in t.states for d in dumps.values() for t in d.tracks)
    divergences = tuple(sorted(_divergences(groups), key=lambda d: d.created_ns))
    waits = _waits(groups, dumps, missing if named else ())
    known = _Known(dumps=dumps, codes=codes, kinds=kinds, groups=groups, waits=waits, missing=missing)
    suspects = tuple(_of_divergence(known, d) for d in divergences[:3])
    proven = timed_out or _fired(flight)
    if not divergences and (proven or not moved_on):
        suspects = _suspects(known) or (_circle(known) if proven else ())
        if not suspects and waits:
            moved_on = moved_on or "ranks wait for each other, though all keep the same order"
    still = _still(known, suspects, moved_on, still_s, proven=proven)
    return Diagnosis(
        ranks=tuple(sorted(dumps)),
        missing=missing,
        world=world if world_said else None,
        still=still,
        moved_on=moved_on,
        still_s=still_s,
        divergences=divergences,
        waits=waits,
        suspects=suspects if divergences or still is not False else (),
        unplaced=unplaced,
    )


def _placed(dumps: Iterable[Dump]) -> tuple[dict[int, Dump], tuple[str, ...]]:
    """By rank; of several dumps of one rank the best. A rank that no name tells is where all its groups meet."""
    placed: dict[int, Dump] = {}
    unplaced = []
    for d in dumps:
        rank = d.rank
        if rank is None:
            common = set.intersection(*(set(r) for r in d.groups.values())) if d.groups else set()
            rank = common.pop() if len(common) == 1 else None
        if rank is None:
            unplaced.append(d.where)
        elif rank not in placed or _better(d, placed[rank]):
            placed[rank] = replace(d, rank=rank)
    return placed, tuple(unplaced)


def _better(a: Dump, b: Dump) -> bool:
    """Of two dumps of one rank: that with stacks, where both are of one time; else the newer one."""
    later_s = ((a.newest_ns or 0) - (b.newest_ns or 0)) / 1e9
    stacks = any(c.frames for c in a.calls), any(c.frames for c in b.calls)
    return stacks[0] if abs(later_s) < SAME_TIME_S and stacks[0] != stacks[1] else later_s > 0


def _groups(dumps: Mapping[int, Dump], codes: Codes) -> list[_Group]:
    groups: dict[tuple[str, str, tuple[int, ...] | None], _Group] = {}
    for rank, dump in dumps.items():
        agreed = [codes.of(c)[0] for c in dump.calls]
        for t in dump.tracks:
            if t.p2p:
                continue
            g = groups.setdefault((t.group, t.backend, t.ranks), _Group(name=t.group, desc=t.desc, ranks=t.ranks))
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
                first = min((t.records[0] for t in dump.tracks if t.records), default=0)
                lost = first > 0 or (
                    not dump.entries and dump.enqueued > 0
                )  # overwritten, or only active ones asked for
                g.members[rank] = _Member(entered=None if lost else 0, dump=dump)


def _moved_on(groups: Sequence[_Group], *, complete: bool) -> str:
    """A rank that ended an operation, and then went on, which another had not ended when its dump was made.

    On gloo an operation ends when it fails, too: where a rank may be gone it counts what the other had not entered,
    and nothing where its timeout was over.
    """
    for g in groups:
        reached = {r: _reached(m, complete=complete) for r, m in g.members.items()}
        behind, last = min(((seq, r) for r, seq in reached.items() if seq is not None), default=(0, -1))
        if last < 0 or None in reached.values():
            continue
        for rank, m in g.members.items():
            if (seq := _went_past(m, behind)) is not None:
                return f"rank {rank} had ended #{seq} of {g.label} and gone on, which rank {last} had not"
    return ""


def _reached(m: _Member, *, complete: bool) -> int | None:
    """The last operation that a member has ended, or may have; None where its buffer does not say."""
    if m.track is None or m.pending is None or not (complete or m.track.backend in DEVICE_BACKENDS):
        return m.entered
    return m.track.seqs[m.pending] - 1


def _went_past(m: _Member, behind: int) -> int | None:
    """An operation after number `behind` that the member has ended before it issued another."""
    t = m.track
    if t is None or m.dump is None or t.seqs[-1] <= behind:
        return None
    newest = max(x.records[-1] for x in m.dump.tracks)
    columns = (t.seqs, t.states, t.calls, t.records, t.created_ns)
    for seq, state, call, record, created in zip(*(reversed(c) for c in columns), strict=True):
        if seq <= behind:
            return None
        made = m.dump.calls[call]
        if t.backend not in DEVICE_BACKENDS and _timed_out(made, created, m.dump):
            return None
        if state == ENDED and record < newest and _synchronises(made):
            return int(seq)
    return None


def _timed_out(call: Call, created_ns: int, dump: Dump) -> bool:
    if dump.written_s is None or not call.timeout_ms:
        return False
    return dump.written_s - created_ns / 1e9 >= call.timeout_ms / 1e3


def _synchronises(call: Call) -> bool:
    """No rank gets through it before all have come."""
    return call.peer is None and call.op not in NOT_SYNCHRONISING


def _still_s(dumps: Mapping[int, Dump]) -> float | None:
    """How old the newest operation was when the dumps were written: the least over the ranks."""
    ages = [
        d.written_s - d.newest_ns / 1e9 for d in dumps.values() if d.written_s is not None and d.newest_ns is not None
    ]
    return min(ages) if len(ages) == len(dumps) and ages else None


def _still(
    known: "_Known", suspects: Sequence["Suspect"], moved_on: str, still_s: float | None, *, proven: bool
) -> bool | None:
    """Whether the job stood still when the dumps were made."""
    if proven:
        return True
    if moved_on:
        return False
    concerned = {r for w in known.waits for r in (w.rank, *w.absent)}
    complete = not known.missing and not any(w.unnamed for w in known.waits)
    if complete and not concerned >= set(known.dumps):  # in a hang each rank waits, or is waited for
        return False
    together = any(s.kind == "together" for s in suspects)  # operations in flight: the usual picture of a run
    if still_s is None or still_s < 0:  # a clock that is off
        return False if together else None
    gaps = [_longest_gap_s(d) for d in list(known.dumps.values())[:MAX_STREAMS]]
    usual_s = USUAL_GAPS * median(gaps) if gaps else 0.0
    return still_s >= max(STILL_TOGETHER_S if together else STILL_S if complete else STILL_INCOMPLETE_S, usual_s)


def _longest_gap_s(dump: Dump) -> float:
    """Between two operations, the start aside: the second longest of the recent ones."""
    times = sorted(t for track in dump.tracks for t in track.created_ns[-RECENT:])[-RECENT:]
    gaps = sorted(b - a for a, b in pairwise(times))
    return gaps[-2] / 1e9 if len(gaps) > 1 else 0.0


def _fired(flight: Flight) -> bool:
    return bool(flight.watchdog and any(t.name in ("watchdog", "blocking-wait") for t in flight.watchdog.timers))


def _divergences(groups: Sequence[_Group]) -> Iterable[Divergence]:
    """Of each group the first operation in which ranks differ, in the part that all dumps still have."""
    for g in groups:
        tracks = {r: m for r, m in g.members.items() if m.track}
        if len(tracks) < 2:
            continue
        start = max(m.track.seqs[0] for m in tracks.values() if m.track)
        made: dict[bytes, list[int]] = defaultdict(list)
        for rank, m in tracks.items():
            made[_row(m, start).tobytes()].append(rank)
        if len(made) > 1 and (seq := _first_difference(made, start)) is not None:
            yield _divergence(g, seq)
            continue
        waited = {m.track.seqs[m.pending] for m in tracks.values() if m.track and m.pending is not None}
        for seq in sorted(waited)[:2]:  # some buffers may have lost it
            if seq < start and len((found := _divergence(g, seq)).calls) > 1:
                yield found
                break


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
    streams: dict[int, Stream] = field(default_factory=dict)

    def stream(self, rank: int) -> Stream:
        if rank not in self.streams:
            self.streams[rank] = stream(self.dumps[rank], self.codes, self.kinds)
        return self.streams[rank]

    def turn(self, rank: int) -> Turn | None:
        """Where this rank left the order, if it did, shortly before what it waits in or at its end."""
        own = self.stream(rank)
        others = [self.stream(r) for r in self._near(rank)]
        recent = turn(own, others, since=max(own.open - LOOK_BACK, 1))
        if recent and recent.how not in ("left-loop", "stays-in-loop"):
            return recent
        at_end = recent is not None or own.open == len(own.places)
        return (parting(own, others) if at_end else None) or recent  # it is through: it may have lost step long ago

    def _near(self, rank: int) -> list[int]:
        """Others to compare with: of its groups first."""
        together = [r for g in self.groups if rank in g.members for r in g.members]
        return [r for r in dict.fromkeys((*together, *self.dumps)) if r != rank and r in self.dumps][:MAX_STREAMS]


def _suspects(known: _Known) -> tuple[Suspect, ...]:
    """Where no operation of a group differs. Nothing where the waits run in a circle that no rank's order explains."""
    roots = _roots(known)
    if left := _left_order(known, roots):
        return left
    if roots:
        return (*_of_roots(known, roots), *_of_unclear(known))
    if known.waits and all(not w.absent and not w.unnamed for w in known.waits):
        return (_together(known),)
    unnamed = tuple(w for w in known.waits if w.unnamed)
    if unnamed:
        return (Suspect(ranks=tuple(known.missing), kind="no-dump", waits=unnamed, shortlist=True),)
    if known.missing and not known.waits:
        return _after_failures(known)
    return ()


def _circle(known: _Known) -> tuple[Suspect, ...]:
    """Ranks that wait for each other; of dumps that were not made at one moment any run shows some."""
    ranks = {r for w in known.waits for r in w.absent} & {w.rank for w in known.waits}
    waits = tuple(w for w in known.waits if w.rank in ranks)
    return (Suspect(ranks=tuple(sorted(ranks)), kind="circle", waits=waits, shortlist=True),) if ranks else ()


def _roots(known: _Known) -> dict[int, list[Wait]]:
    """Ranks that are waited for and wait for nobody, with who waits for them."""
    waited: dict[int, list[Wait]] = defaultdict(list)
    for w in known.waits:
        for r in w.absent:
            waited[r].append(w)
    waiting = {w.rank for w in known.waits}
    roots = {r: ws for r, ws in waited.items() if r not in waiting}
    roots |= {r: [] for r in known.dumps if r not in roots and r not in waiting and _idle(known, r)}
    for r in list(roots):
        if r in known.dumps and (blockers := _failed_with(known, r)):
            waits = roots.pop(r)
            for blocker in blockers:
                roots.setdefault(blocker, []).extend(waits)
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


def _failed_with(known: _Known, rank: int) -> tuple[int, ...]:
    """Gloo's operations end when they fail, too: who has no dump and may be in the group of the rank's last one."""
    tracks = [t for t in known.dumps[rank].tracks if t.records]
    last = max(tracks, key=lambda t: t.records[-1], default=None)
    if last is None or last.backend in DEVICE_BACKENDS or last.states[-1] != ENDED or _idle(known, rank):
        return ()
    for g in known.groups:
        if rank in g.members and g.members[rank].track is last:
            if g.ranks:
                return tuple(r for r in g.ranks if r not in known.dumps)
            if (g.size or 0) > len(g.members):
                return tuple(r for r in known.missing if not _elsewhere(known.groups, g, r))
    return ()


def _left_order(known: _Known, roots: Mapping[int, Sequence[Wait]]) -> tuple[Suspect, ...]:
    """Ranks that left the order of operations which they, or most others, kept before."""
    odd = _odd_ones(known)
    present = [r for r in roots if r in known.dumps]
    candidates = present if len(present) == len(roots) and roots else _pressed(known, roots)
    chosen = [r for r in candidates if r in odd] or candidates
    turns = {r: t for r in chosen[:MAX_STREAMS] if (t := known.turn(r)) and not _shared(known, t)}
    if not turns and odd:  # too early for a past; but most others did the same
        most = [known.stream(r) for r in known.dumps if r not in odd][:1]
        turns = {r: t for r in chosen[:MAX_STREAMS] if r in odd and (t := parting(known.stream(r), most, after=0))}
    if not turns:
        return ()
    rank = next(iter(turns))
    alike = tuple(sorted(r for r, t in turns.items() if (t.how, t.place) == (turns[rank].how, turns[rank].place)))
    waits = tuple(roots.get(rank, ())) or tuple(w for w in known.waits if rank in w.absent)
    return (Suspect(ranks=alike, kind=_kind(turns[rank]), waits=waits, turn=turns[rank]),)


def _pressed(known: _Known, roots: Mapping[int, Sequence[Wait]]) -> list[int]:
    """Ranks that wait and are waited for, or that alone wait for the ranks without a dump."""
    gone = [r for r in roots if r not in known.dumps]
    waited = {r for w in known.waits for r in w.absent}
    alone = {w.rank for r in gone for w in roots[r]}
    return sorted({w.rank for w in known.waits if w.rank in waited} | (alone if len(alone) == 1 else set()))


def _kind(t: Turn) -> str:
    return "uneven" if t.how in ("left-loop", "stays-in-loop") else "differs"


def _shared(known: _Known, t: Turn) -> bool:
    """At least half of the ranks with a dump are at the same place: it is where the program goes."""
    if t.beside:
        return False
    ends = [known.codes.of(last)[1] for d in known.dumps.values() if (last := _last(d)[0])]
    return 2 * ends.count(known.codes.of(t.did)[1]) > len(ends) or len(ends) < 2


def _odd_ones(known: _Known) -> set[int]:
    """Ranks whose operations, in their order over all groups, part from those of most others first."""
    alike: dict[bytes, list[int]] = defaultdict(list)
    made = {r: rows(d, known.codes, known.kinds) for r, d in known.dumps.items()}
    filled = {r: (first, row) for r, (first, _, row) in made.items() if row}
    if len(filled) < 3:
        return set()
    start = max(first for first, _ in filled.values())
    end = min(first + len(row) for first, row in filled.values())
    for rank, (first, row) in filled.items():
        alike[row[start - first : max(end - first, 0)].tobytes()].append(rank)
    most = max(alike.values(), key=len)
    if 2 * len(most) <= len(filled):
        return set()
    return {r for ranks in alike.values() if ranks is not most for r in ranks}


def _of_divergence(known: _Known, d: Divergence) -> Suspect:
    """Fewer are wrong; where as many did the one as the other, those that left what they did before."""
    most = d.calls[0][1]
    fewer = tuple(sorted(r for _, ranks in d.calls[1:] for r in ranks))
    tie = len(d.calls) == 2 and len(most) == len(fewer)
    asked = (*fewer[:MAX_STREAMS], *(most[:MAX_STREAMS] if tie else ()))
    turns = {r: t for r in asked if (t := known.turn(r) or (None if tie else _parting_at(known, r, most[0], d)))}
    ranks, shortlist = fewer, False
    if tie:
        sides = [side for side in (fewer, most) if any(r in turns for r in side)]
        shortlist = len(sides) != 1
        ranks = tuple(sorted((*most, *fewer))) if shortlist else tuple(sides[0])
    first = next((turns[r] for r in ranks if r in turns), None) if not shortlist else None
    kind = _kind(first) if first else "differs"
    return Suspect(
        ranks=ranks,
        kind=kind,
        turn=first,
        divergence=d,
        waits=tuple(w for w in known.waits if w.group == d.group and w.seq == d.seq),
        certain=not tie and kind == "differs",
        shortlist=shortlist,
    )


def _parting_at(known: _Known, rank: int, other: int, d: Divergence) -> Turn | None:
    """Where it parted from one of most others, if that is the divergence."""
    t = parting(known.stream(rank), [known.stream(other)], after=0)
    return t if t and t.seq == d.seq and d.group.startswith(t.group) else None


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


def _of_unclear(known: _Known) -> tuple[Suspect, ...]:
    """Ranks that wait in nothing, after an operation that has ended, or has failed with a rank without a dump."""
    waiting = {w.rank for w in known.waits}
    ranks = tuple(sorted(r for r in known.dumps if r not in waiting and _failed_with(known, r)))
    waits = tuple(w for w in known.waits if set(w.absent) & set(ranks))
    if not waits:
        return ()
    named = tuple(r for r in ranks if any(r in w.absent for w in waits))
    last, _ = _last(known.dumps[named[0]])
    return (Suspect(ranks=named, kind="absent", waits=waits, last=last, shortlist=True),)


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
        count = _last(known.dumps[w.rank])[1]
        calls = [d.calls[c] for d in (known.dumps[w.rank],) for t in d.tracks for c in t.calls]
        if count > EARLY or calls.count(w.call) > 1:
            return False
    return bool(waits)


def joined(parts: Sequence[Flight]) -> Flight:
    """One of what several readers found."""
    said = [p.watchdog for p in parts if p.watchdog]
    return Flight(
        dumps=tuple(d for p in parts for d in p.dumps),
        watchdog=said[0] if said else None,
        stacks=tuple(s for p in parts for s in p.stacks),
        ras=tuple(r for p in parts for r in p.ras),
        diagnostics=tuple(d for p in parts for d in p.diagnostics),
        arrivals=tuple(a for p in parts for a in p.arrivals),
        hosts={s.rank: s.host for w in said for s in w.states if s.host}
        | {rank: host for p in parts for rank, host in p.hosts.items()},
        world=max((p.world for p in parts if p.world), default=None),
    )


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: where a rank stands in a group."""

    rank: int
    host: str | None
    group: str
    last_enqueued: int | None
    last_started: int | None
    last_completed: int | None
    op: str | None  # the one it waits in, or its last
    sizes: str
    line: str | None  # of the program
    waits: bool


def table(flight: Flight) -> tuple[Row, ...]:
    """Rank by rank and group by group, from the dumps, else from what the watchdogs said."""
    dumps, _ = _placed(flight.dumps)
    made = [_row_of(d, t, flight.hosts) for _, d in sorted(dumps.items()) for t in d.tracks if t.seqs]
    if not made and flight.watchdog:
        made = [_row_said(s, flight.hosts) for s in sorted(flight.watchdog.states, key=lambda s: (s.rank, s.group))]
    return tuple(made)


def _row_of(d: Dump, t: Track, hosts: Mapping[int, str]) -> Row:
    pending = next((i for i, s in enumerate(t.states) if s != ENDED), None)
    ended = [seq for seq, s in zip(t.seqs, t.states, strict=True) if s == ENDED]
    started = [seq for seq, s in zip(t.seqs, t.states, strict=True) if s in (STARTED, ENDED)]
    call = d.calls[t.calls[-1 if pending is None else pending]]
    frame = site(call)
    return Row(
        rank=d.rank if d.rank is not None else -1,
        host=d.host or hosts.get(d.rank if d.rank is not None else -1),
        group=f"{t.desc} ({t.group})" if t.desc else t.group,
        last_enqueued=t.seqs[-1],
        last_started=started[-1] if started else None,
        last_completed=ended[-1] if ended else None,
        op=call.op,
        sizes=" ".join(str(list(s)) for s in call.input_sizes[:3]),
        line=str(frame) if frame else None,
        waits=pending is not None,
    )


def _row_said(s: RankState, hosts: Mapping[int, str]) -> Row:
    frame = next((f for f in s.frames if not is_library(f)), None)
    return Row(
        rank=s.rank,
        host=s.host or hosts.get(s.rank),
        group=s.group,
        last_enqueued=s.last_enqueued,
        last_started=s.last_started,
        last_completed=s.last_completed,
        op=s.op,
        sizes="" if s.numel_in is None else f"{s.numel_in} elements",
        line=str(frame) if frame else None,
        waits=True,
    )
