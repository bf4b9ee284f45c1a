"""What a step would take without something: a replay of what waited for what in the traces of all ranks. Pure.

Events are replayed in the order of their starts. A call of the host begins after the one before it, a kernel after
the one before it on its stream, after its launch, and after the kernel of another stream that it was seen to wait
for; a call that waits for the device ends after that kernel; a collective ends on all ranks after the last has come.
What an event's start comes later than all of that is kept, so that the unchanged trace gives itself. Then durations
or gaps are taken away, and the same order gives the time of the step without them.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan, nan

from smoldiag.facts.trace import ALLOCATE, COMMUNICATION, COMPUTE, OTHER, SYNC, WAIT, RankTrace, Replay, WhatIf
from smoldiag.model import intervals
from smoldiag.model.collectives import Match
from smoldiag.model.stats import median

MAX_EVENTS = 6_000  # that are replayed, of all ranks...
MAX_EVENTS_OF_FEW_STEPS = 600_000  # ...unless that were fewer steps than
FEW_STEPS = 2
TRUSTED_PERCENT = 2.0  # of the step's time; a replay that misses it by more says nothing
WORTH_SAYING = 0.01  # of the step
BLOCKED_US = 20.0  # a call that takes longer waits for something
AFTER_US = 30.0  # so soon after a kernel's end a call that waited for it returns
CROSS_US = 10.0  # so soon after the end of a kernel of another stream one starts that waited for it
CALL_US = 5.0  # what a call takes that need not wait
HOST_WORK_US = 2000.0  # a longer gap between two calls is other work of the host, not a launch
KEPT_OF_THE_HOST = ("loader", "gc", "checkpoint", "peers")  # what faster launches do not change
LATENCY_US = 100.0  # a kernel that starts so soon after its launch, and long after another's end, waited for the launch
EARLY_US = 1.0  # clocks of host and device agree about so well
HOST_CAUSES = {  # cause -> (what the host does, in words)
    "dataloader-stall": ("loader", "with the batch there when it is asked for"),
    "gc-stragglers": ("gc", "without Python's garbage collection"),
    "checkpoint-stall": ("checkpoint", "without saving the checkpoint in the step"),
}


def replayed(
    traces: Sequence[RankTrace], found: Sequence[Match], ahead: Mapping[int, float], *, late: Collection[int] = ()
) -> Replay | None:
    """None where the host's launches are not known, or too much happens in a step. `late`: ranks that others await."""
    windows = _windows(traces)
    if windows is None:
        return None
    ranks = [_Rank(t, windows[t.rank], ahead.get(t.rank, 0.0)) for t in traces]
    steps = len(windows[ranks[0].rank]) - 1
    shared = _shared(ranks, found)
    measured = _time_of_step([r.completions(r.end) for r in ranks], ranks)
    plain = _run(ranks, shared, Change())
    error = 100.0 * (plain - measured) / measured if measured > 0 else nan
    if isnan(error):
        return None
    what_if = []
    for cause, without, change in _changes(ranks, frozenset(late)) if abs(error) <= TRUSTED_PERCENT else ():
        took = min(max(_run(ranks, shared, change), change.at_least_us), plain)
        if plain - took >= WORTH_SAYING * plain:
            what_if.append(WhatIf(cause=cause, without=without, step_us=took, saved_us=plain - took))
    what_if.sort(key=lambda w: w.step_us)
    return Replay(steps=steps, step_us=measured, replayed_us=plain, error_percent=error, what_if=tuple(what_if))


def _windows(traces: Sequence[RankTrace]) -> dict[int, list[float]] | None:
    """rank -> where the steps begin that are replayed, and where the last of them ends, on its own clock."""
    if not traces or any(not len(t.call_start) for t in traces):
        return None
    common = set.intersection(*({name for name, _, _ in t.steps} for t in traces))
    names = [name for name, _, _ in traces[0].steps if name in common]
    total = sum(len(t.start) + len(t.call_start) for t in traces)
    if len(names) < 2:
        if total > MAX_EVENTS_OF_FEW_STEPS:
            return None
        return {t.rank: [min(t.call_start[0], t.start[0]), max(t.call_end) + 1.0] for t in traces}
    a_step = total / len(names)
    wanted = max(MAX_EVENTS / a_step, min(FEW_STEPS, MAX_EVENTS_OF_FEW_STEPS / a_step))
    if wanted < 2:
        return None
    wanted = min(int(wanted), len(names))
    first = (len(names) - wanted) // 2
    inside = names[first : first + wanted]
    windows = {}
    for t in traces:
        begins = {name: start for name, start, _ in t.steps}
        ends = {name: end for name, _, end in t.steps}
        windows[t.rank] = [*(begins[name] for name in inside), ends[inside[-1]]]
    return windows


def _time_of_step(completions: Sequence[Sequence[float]], ranks: Sequence["_Rank"]) -> float:
    """Between the ends of the first and the last step; of a single one, from its begin to its end."""
    ends: list[float] = [max(of_step) for of_step in zip(*completions, strict=True)]
    if len(ends) > 1:
        return (ends[-1] - ends[0]) / (len(ends) - 1)
    return ends[0] - min(r.origin for r in ranks)


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is taken away."""

    spans: tuple[str, ...] = ()  # time of the host in these
    launches: bool = False  # the host's own time, but not what it waits for
    transfers: bool = False  # the time that collectives take once all ranks are there
    allocations: bool = False
    late: frozenset[int] = frozenset()  # these ranks come to a collective no later than the others' median
    at_least_us: float = 0.0


class _Rank:
    """The calls and kernels of one rank in a window, as columns, in order of start; times on the common clock."""

    def __init__(self, t: RankTrace, steps: Sequence[float], ahead: float) -> None:
        self.rank = t.rank
        self.origin = steps[0] - ahead
        first, last = bisect_left(t.call_start, steps[0]), bisect_left(t.call_start, steps[-1])
        events = [i for i, call in enumerate(t.call) if first <= call < last and t.name_kind[t.name_of[i]] != OTHER]
        calls = range(first, last)
        rows = [(t.call_start[c], t.call_end[c], -1, c) for c in calls]
        for i in events:  # the clocks of device and host may differ a little: no kernel runs before its launch
            start = max(t.start[i], t.call_start[t.call[i]])
            rows.append((start, max(t.end[i], start), t.name_kind[t.name_of[i]], i))
        rows.sort(key=lambda row: (row[0], row[2]))
        rows.append((steps[-1], steps[-1], -1, -1))  # the end of the window is a call without effect
        self.start = [row[0] - ahead for row in rows]
        self.end = [row[1] - ahead for row in rows]
        self.kind = [row[2] for row in rows]  # of the event; -1: a call of the host
        self.place = {at: n for n, (_, _, kind, at) in enumerate(rows) if kind >= 0}
        of_call = {at: n for n, (_, _, kind, at) in enumerate(rows) if kind < 0}
        self.call_kind = [t.call_kind[at] if kind < 0 <= at else -1 for _, _, kind, at in rows]
        self.launched_by = [of_call[t.call[at]] if kind >= 0 else -1 for _, _, kind, at in rows]
        self.stream = [t.stream[at] if kind >= 0 else -1 for _, _, kind, at in rows]
        begins = [s - ahead for s in steps[:-1]]
        self.step = [
            max(bisect_right(begins, self.start[n if by < 0 else by]) - 1, 0) for n, by in enumerate(self.launched_by)
        ]
        self.step[-1] = len(begins) - 1
        self.steps = len(begins)
        window = [(steps[0] - ahead, steps[-1] - ahead)]
        self.spans = {
            what: intervals.intersection(intervals.union((s - ahead, e - ahead) for s, e in spans), window)
            for what, spans in t.spans.items()
        }
        self._connect()

    def completions(self, end: Sequence[float]) -> list[float]:
        """When each step's last kernel, or the host's last call, is through."""
        ends = [-inf] * self.steps
        for n, step in enumerate(self.step):
            if end[n] > ends[step]:
                ends[step] = end[n]
        return ends

    def _connect(self) -> None:
        """Who waits for whom."""
        size = len(self.start)
        self.waits: list[tuple[int, ...]] = [()] * size  # of a kernel: those whose ends it waits for
        self.ends_after = [-1] * size  # of a call: the kernel whose end it waits for
        self.before = [-1] * size  # of a call: the one before it
        self.overlaps = [False] * size  # of a call: it begins while the one before it still runs
        self.gap = [0.0] * size  # from the last end that it waits for to its start
        self.latency = [0.0] * size  # of a kernel: from its launch to its start
        by_end = sorted((n for n in range(size) if self.kind[n] >= 0), key=self.end.__getitem__)
        ends = [self.end[n] for n in by_end]
        told = self._told_to_wait()
        on_stream: dict[int, int] = {}
        host = -1
        for n in range(size):
            if self.kind[n] < 0:
                self.before[n] = host
                self.overlaps[n] = host >= 0 and self.start[n] < self.end[host]
                self.gap[n] = self.start[n] - self._since(n)
                self.ends_after[n] = self._blocked_by(n, by_end, ends)
                host = n
            else:
                waits = [w for w in (on_stream.get(self.stream[n], -1), told.get(n, -1)) if w >= 0]
                launched, seen = self.start[self.launched_by[n]], max([self.end[w] for w in waits], default=-inf)
                at = bisect_right(ends, self.start[n] + EARLY_US) - 1
                if (
                    at >= 0
                    and by_end[at] < n
                    and ends[at] > max(launched, seen)
                    and self.start[n] - ends[at] <= CROSS_US < self.start[n] - launched
                ):
                    waits.append(by_end[at])
                    seen = ends[at]
                self.waits[n] = tuple(waits)
                self.gap[n] = self.start[n] - seen
                self.latency[n] = self.start[n] - launched
                on_stream[self.stream[n]] = n
        self._tell_apart()

    def _tell_apart(self) -> None:
        """A kernel starts some time after its launch, and some after the end that it waits for. Only the one of the
        two that came last is seen; the other is taken as it is where it is seen."""
        kernels = [n for n, kind in enumerate(self.kind) if kind >= 0]
        launched = {
            n
            for n in kernels
            if self.latency[n] <= self.gap[n] or (self.gap[n] > CROSS_US and self.latency[n] <= LATENCY_US)
        }
        usual_latency = median([self.latency[n] for n in launched] or [0.0])
        usual_gap = median([self.gap[n] for n in kernels if n not in launched] or [0.0])
        for n in kernels:
            if n in launched:
                self.gap[n] = min(self.gap[n], usual_gap)
            else:
                self.latency[n] = min(self.latency[n], usual_latency)

    def _since(self, n: int) -> float:
        """Where the gap before a call begins."""
        host = self.before[n]
        if host < 0:
            return self.origin
        return self.start[host] if self.overlaps[n] else self.end[host]

    def _told_to_wait(self) -> dict[int, int]:
        """What streams wait for across them, where the times do not contradict.

        torch lets a collective wait for what was launched before it, and what follows a cudaStreamWaitEvent for the
        collective before it (ProcessGroupNCCL: syncStreams, WorkNCCL::synchronizeStream).
        """
        order = sorted((n for n, kind in enumerate(self.kind) if kind >= 0), key=self.launched_by.__getitem__)
        busy: dict[int, float] = {}
        for n in order:
            if self.kind[n] == COMPUTE:
                busy[self.stream[n]] = busy.get(self.stream[n], 0.0) + self.end[n] - self.start[n]
        main = max(busy, key=busy.__getitem__, default=-1)
        waiting = [n for n, kind in enumerate(self.call_kind) if kind == WAIT]
        found: dict[int, int] = {}
        on_main = collective = launched = -1
        for n in order:
            if self.kind[n] == COMMUNICATION:
                if on_main >= 0 and self.end[on_main] <= self.start[n] + EARLY_US:
                    found[n] = on_main
                collective = n
            elif self.stream[n] == main:
                told = bisect_left(waiting, self.launched_by[n]) > bisect_left(waiting, launched)
                if told and collective >= 0 and self.end[collective] <= self.start[n] + EARLY_US:
                    found[n] = collective
                on_main, launched = n, self.launched_by[n]
        return found

    def _blocked_by(self, n: int, by_end: Sequence[int], ends: Sequence[float]) -> int:
        """The kernel whose end a call waits for; -1 where it takes its own time."""
        took = self.end[n] - self.start[n]
        if took < BLOCKED_US:
            return -1
        at = bisect_right(ends, self.end[n] + EARLY_US) - 1
        if at < 0 or ends[at] <= self.start[n]:
            return -1
        late = max(AFTER_US, took / 10) if self.call_kind[n] == SYNC else AFTER_US
        return by_end[at] if self.end[n] - ends[at] <= late else -1


def _shared(ranks: Sequence[_Rank], found: Sequence[Match]) -> dict[int, dict[int, int]]:
    """Collectives that all their ranks have in the window: their number -> rank -> place among its items."""
    by_rank = {r.rank: r for r in ranks}
    shared = {}
    for number, match in enumerate(found):
        places = {rank: by_rank[rank].place[i] for rank, i in match.places.items() if i in by_rank[rank].place}
        if len(places) > 1 and len(places) == len(match.places):
            shared[number] = places
    return shared


def _run(ranks: Sequence[_Rank], shared: Mapping[int, Mapping[int, int]], change: Change) -> float:
    """The time of a step in microseconds; nan where the ranks wait for each other in a circle."""
    board = _Board(ranks, shared)
    made = [_Replayed(r, board, change) for r in ranks]
    programs = {n: one.run() for n, one in enumerate(made)}
    while programs:
        before = (len(programs), board.arrivals)
        for n in list(programs):
            if next(programs[n], True):
                del programs[n]
        if (len(programs), board.arrivals) == before:
            return nan
    in_time = [one for one in made if one.rank.rank not in change.late] or made
    return _time_of_step([one.rank.completions(one.end) for one in in_time], ranks)


class _Board:
    """Where ranks note that they came to a collective."""

    def __init__(self, ranks: Sequence[_Rank], shared: Mapping[int, Mapping[int, int]]) -> None:
        starts = {r.rank: r.start for r in ranks}
        self.shared = shared
        self.number = {(rank, n): number for number, places in shared.items() for rank, n in places.items()}
        self.arrivals = 0
        self.came: dict[int, dict[int, float]] = {number: {} for number in shared}
        self.seen_last = {
            number: max(starts[rank][n] for rank, n in places.items()) for number, places in shared.items()
        }

    def arrive(self, number: int, rank: int, at: float) -> None:
        self.arrivals += 1
        self.came[number][rank] = at

    def last(self, number: int) -> float | None:
        """When all were there; None while some are missing."""
        came = self.came[number]
        return max(came.values()) if len(came) == len(self.shared[number]) else None

    def others(self, number: int, late: frozenset[int]) -> float | None:
        """The median of those that are not late; infinite where all are, None while some are missing."""
        came = self.came[number]
        others = self.shared[number].keys() - late
        if not others:
            return inf
        return median([came[rank] for rank in others]) if others <= came.keys() else None


class _Replayed:
    """One rank while it is replayed."""

    def __init__(self, rank: _Rank, board: _Board, change: Change) -> None:
        self.rank, self.board, self.change = rank, board, change
        self.begin = [nan] * len(rank.start)
        self.end = [nan] * len(rank.start)
        self.away = [rank.spans[what] for what in change.spans if rank.spans.get(what)]
        self.kept = [spans for what, spans in rank.spans.items() if what in KEPT_OF_THE_HOST and spans]

    def run(self) -> Iterator[bool]:
        """Yields False while it waits for others, and True at its end."""
        r, begin, board = self.rank, self.begin, self.board
        for n, kind in enumerate(r.kind):
            if kind < 0:
                host = r.before[n]
                if host < 0:
                    at = r.origin
                elif r.overlaps[n]:
                    at = begin[host]
                else:
                    while not self.ended(host):
                        yield False
                    at = self.end[host]
                begin[n] = at + self.own_time(r.gap[n], r.start[n] - r.gap[n], r.start[n])
                continue
            at = begin[r.launched_by[n]] + r.latency[n]
            for w in r.waits[n]:
                while not self.ended(w):
                    yield False
                at = max(at, self.end[w] + r.gap[n])
            begin[n] = at
            number = board.number.get((r.rank, n))
            if number is not None:
                if r.rank in self.change.late:
                    while (others := board.others(number, self.change.late)) is None:
                        yield False
                    begin[n] = min(begin[n], others)
                board.arrive(number, r.rank, begin[n])
        for n in range(len(begin)):
            while not self.ended(n):
                yield False
        yield True

    def ended(self, n: int) -> bool:
        """Whether its end is known; computes it where it can be."""
        if not isnan(self.end[n]):
            return True
        r, change = self.rank, self.change
        took = r.end[n] - r.start[n]
        if r.kind[n] < 0:
            waits_for = r.ends_after[n]
            if waits_for >= 0 and not isnan(self.begin[waits_for]):
                if not self.ended(waits_for):
                    return False
                after = r.end[n] - r.end[waits_for]
                self.end[n] = max(self.begin[n] + min(CALL_US, took), self.end[waits_for] + after)
                return True
            if change.allocations and r.call_kind[n] == ALLOCATE:
                took = 0.0
            self.end[n] = self.begin[n] + self.own_time(took, r.start[n], r.end[n])
            return True
        number = self.board.number.get((r.rank, n))
        if number is not None:
            last = self.board.last(number)
            if last is None:
                return False
            took = 0.0 if change.transfers else max(r.end[n] - self.board.seen_last[number], 0.0)
            self.end[n] = last + took
            return True
        if r.kind[n] == COMMUNICATION:
            took = 0.0 if change.transfers else took
        self.end[n] = self.begin[n] + took
        return True

    def own_time(self, took: float, start: float, end: float) -> float:
        """Of the host, without what is taken away."""
        if took <= 0.0:
            return 0.0
        if self.change.launches and took < HOST_WORK_US:
            return sum(intervals.within(spans, start, end) for spans in self.kept)
        for spans in self.away:
            took -= intervals.within(spans, start, end)
        return max(took, 0.0)


def _changes(ranks: Sequence[_Rank], late: frozenset[int]) -> Iterator[tuple[str, str, Change]]:
    """What may be taken away from these traces: its cause, in words, and the change."""
    steps = ranks[0].steps
    for cause, (what, without) in HOST_CAUSES.items():
        if any(r.spans.get(what) for r in ranks):
            yield cause, without, Change(spans=(what,))
    if any(ALLOCATE in r.call_kind for r in ranks):
        yield "allocator-retries", "without memory taken from the driver in the step", Change(allocations=True)
    if any(COMMUNICATION in r.kind for r in ranks):
        busy = max(_transfer_us(r) for r in ranks) / steps if len(ranks) == 1 else 0.0
        yield (
            "comm-not-overlapped",
            "with communication hidden behind computation",
            Change(transfers=True, at_least_us=busy),
        )
    yield "cpu-launch-bound", "with launches that cost the host nothing (CUDA graphs)", Change(launches=True)
    if late and len(late) < len(ranks):
        named = ", ".join(map(str, sorted(late)[:8]))
        yield "straggler-rank", f"with rank {named} coming to the collectives with the others", Change(late=late)


def _transfer_us(r: _Rank) -> float:
    return intervals.length(
        intervals.union((r.start[n], r.end[n]) for n, kind in enumerate(r.kind) if kind == COMMUNICATION)
    )
