"""The steps of a run once more, with something taken away: what would a step take then? Pure. Times in microseconds.

A step of a rank is what it does by itself and the collectives between. A collective is over `transfer` after its last
rank has come; a rank that waits for it goes on then, and each rank takes its own time to the next one. So times are
sums along a rank and maxima over ranks (max-plus). Subtracting what one rank loses would be wrong wherever another
rank is late as well.

Clocks of ranks need not agree: they are set by the moments in which ranks leave the same collective.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from smoldiag.facts.run import StepTimes
from smoldiag.model.stats import median

Key = tuple[str, str, int]  # group, name, how many of these were before it in the step
# Own work of a rank by its place in the step; a transfer, of nobody; how late a rank went on after one.
_Stay = tuple[int | None, int | Key]
OWN, ENTER, LEAVE = "own", "enter", "leave"
BETWEEN = "between"  # the phase from the end of a step to the start of the next
SYNCHRONISED = "backward"  # the phase in which gradients are reduced
STALL_US = (
    10_000.0  # a longer one is no noise of a processor; a quota's period is 100 ms (Linux, CFS bandwidth control)
)
STALL_COSTS_MORE = 0.05  # than the kernel counts: 0 to 0.07 in six runs of the lab (benchmarks.run_faults)
WAITED_US = 20.0  # a shorter stay is the call itself
MAX_OPERATIONS = 1_000_000  # of all ranks, some seconds; of longer runs the last steps are replayed


@dataclass(frozen=True, slots=True)
class Op:
    """Own work, the entry to a collective, or the point where its end is awaited."""

    kind: str
    phase: str
    us: float = 0.0  # of own work
    key: Key | None = None
    place: int = 0  # how many collectives this rank has entered before


@dataclass(frozen=True)
class Call:
    """A collective on one rank; times since the step began there."""

    key: Key
    phase: str
    size_bytes: int
    entered: float
    waits: float  # from here on this rank does nothing else
    left: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of all ranks."""

    number: int
    ranks: Mapping[int, Sequence[Op]]
    transfer_us: Mapping[Key, float]
    lag_us: Mapping[tuple[Key, int], float]  # how much later than the first a rank went on that waited
    size_bytes: Mapping[Key, int]
    least_us: Mapping[Key, float]  # the shortest stay of its ranks, that of the last to come: no clock is compared


def steps(counted: Mapping[int, Mapping[int, StepTimes]]) -> list[Step]:
    """From step -> rank -> times, in their order."""
    made: list[Step] = []
    operations = 0
    for number in reversed(list(counted)):
        ranks = counted[number]
        operations += sum(2 * len(s.collectives) + len(s.spans) for s in ranks.values())
        if made and operations > MAX_OPERATIONS:
            break
        made.append(_step(number, ranks, counted.get(number - 1, {})))
    return made[::-1]


def _step(number: int, ranks: Mapping[int, StepTimes], before: Mapping[int, StepTimes]) -> Step:
    ranks = {rank: _on_device(s) for rank, s in ranks.items()}
    calls = {rank: list(_calls(s)) for rank, s in ranks.items()}
    if len(ranks) > 1 and not any(c.phase == SYNCHRONISED for own in calls.values() for c in own):
        calls = _with_hidden_call(ranks, calls)
    together: dict[Key, dict[int, Call]] = {}
    for rank, own in calls.items():
        for c in own:
            together.setdefault(c.key, {})[rank] = c
    ahead = _clocks(ranks, together)
    transfer: dict[Key, float] = {}
    lag: dict[tuple[Key, int], float] = {}
    for key, by_rank in together.items():
        done = min(c.left + ahead[rank] for rank, c in by_rank.items())
        transfer[key] = max(done - max(c.entered + ahead[rank] for rank, c in by_rank.items()), 0.0)
        for rank, c in by_rank.items():
            if c.left - c.waits > WAITED_US:
                lag[key, rank] = c.left + ahead[rank] - done
    return Step(
        number=number,
        ranks={rank: list(_ops(s, calls[rank], before.get(rank))) for rank, s in ranks.items()},
        transfer_us=transfer,
        lag_us=lag,
        size_bytes={c.key: c.size_bytes for own in calls.values() for c in own},
        least_us={key: min(c.left - c.entered for c in by_rank.values()) for key, by_rank in together.items()},
    )


def _calls(s: StepTimes) -> Iterator[Call]:
    """In the order in which they were entered, which is the same on all ranks of a group."""
    seen: Counter[tuple[str, str]] = Counter()
    for c in sorted(s.collectives, key=lambda c: c.entered_us):
        left = c.entered_us + c.stay_us if c.left_us is None else c.left_us
        yield Call(
            (c.group, c.name, seen[c.group, c.name]),
            c.phase,
            c.size_bytes,
            c.entered_us,
            max(left - c.stay_us, c.entered_us),
            left,
        )
        seen[c.group, c.name] += 1


def _on_device(s: StepTimes) -> StepTimes:
    """On a GPU: the phases as it saw them. What Python collects meanwhile it waits for, at most."""
    if not s.device_us:
        return s
    phases = dict(s.device_us)
    collecting = s.phases_us.get("gc", 0.0)
    if collecting and phases:
        longest = max(phases, key=phases.__getitem__)
        collecting = min(collecting, phases[longest])
        phases[longest] -= collecting
        phases["gc"] = collecting
    return replace(s, phases_us=phases, spans=(), collectives=())


def _with_hidden_call(ranks: Mapping[int, StepTimes], calls: Mapping[int, Sequence[Call]]) -> dict[int, list[Call]]:
    """Gradients that are reduced out of the monitor's sight, as those of DDP: what backward takes longer on a rank than
    on the one where it is shortest, that rank waits at its end."""
    backward = {rank: s.phases_us.get(SYNCHRONISED, 0.0) for rank, s in ranks.items()}
    shortest = min(backward.values())
    made = {rank: list(own) for rank, own in calls.items()}
    if shortest <= 0:
        return made
    for rank, s in ranks.items():
        spans = [x for x in (s.spans or _in_a_row(s)) if x[0] == SYNCHRONISED]
        _, begins, length = spans[-1]
        left = begins + length
        waits = max(left - (backward[rank] - shortest), begins)
        made[rank].append(Call(("all", "in backward", 0), SYNCHRONISED, 0, waits, waits, left))
        made[rank].sort(key=lambda c: c.entered)
    return made


def _clocks(ranks: Mapping[int, StepTimes], together: Mapping[Key, Mapping[int, Call]]) -> dict[int, float]:
    """What to add to each rank's times of this step to have one clock: the median over the calls that it left with
    others. Where there is none, what the hosts' own clocks say."""
    first = min(ranks)
    ahead = {rank: (s.time - ranks[first].time) * 1e6 for rank, s in ranks.items()}
    differences: dict[tuple[int, int], list[float]] = {}
    waited = {key: {r: c for r, c in calls.items() if c.left - c.waits > WAITED_US} for key, calls in together.items()}
    if not any(len(calls) > 1 for calls in waited.values()):
        waited = {key: dict(calls) for key, calls in together.items()}
    for by_rank in waited.values():
        leader, *others = sorted(by_rank) or [first]
        for rank in others:
            differences.setdefault((leader, rank), []).append(by_rank[leader].left - by_rank[rank].left)
    for (leader, rank), found in sorted(differences.items()):  # leaders have lower numbers: theirs are set before
        ahead[rank] = ahead[leader] + median(found)
    return ahead


def _ops(s: StepTimes, calls: Sequence[Call], before: StepTimes | None) -> Iterator[Op]:
    if before is not None:
        gap = (s.time - before.time) * 1e6 - before.step_us
        if gap > 0:
            yield Op(OWN, BETWEEN, gap)
    points = [(c.entered, 0, place, c) for place, c in enumerate(calls)]
    points += [(c.waits, 1, place, c) for place, c in enumerate(calls)]
    spans = list(s.spans) or _in_a_row(s)
    at, index, place = 0.0, 0, 0
    for until, leaves, _, call in sorted(points, key=lambda p: p[:3]):
        index, pieces = _pieces(spans, index, at, until)
        yield from (Op(OWN, phase, us, None, place) for phase, us in pieces)
        if leaves:
            at = max(at, call.left)
            yield Op(LEAVE, call.phase, 0.0, call.key, place)
        else:
            at = max(at, until)
            yield Op(ENTER, call.phase, 0.0, call.key, place)
            place += 1
    _, pieces = _pieces(spans, index, at, s.step_us)
    yield from (Op(OWN, phase, us, None, place) for phase, us in pieces)


def _in_a_row(s: StepTimes) -> list[tuple[str, float, float]]:
    """Of a record without their times: the phases in the order in which they first came."""
    made, at = [], 0.0
    for phase, us in s.phases_us.items():
        if phase != "other":
            made.append((phase, at, us))
            at += us
    return made


def _pieces(
    spans: Sequence[tuple[str, float, float]], index: int, start: float, end: float
) -> tuple[int, list[tuple[str, float]]]:
    """What lies between two moments, by phase, and the span to go on with."""
    found: list[tuple[str, float]] = []
    at = start
    while at < end:
        while index < len(spans) and spans[index][1] + spans[index][2] <= at:
            index += 1
        if index == len(spans):
            found.append(("other", end - at))
            break
        phase, begins, length = spans[index]
        if begins > at:
            found.append(("other", min(begins, end) - at))
            at = min(begins, end)
            continue
        until = min(begins + length, end)
        found.append((phase, until - at))
        at = until
    return index, found


# -- once more


def step_times(of: Sequence[Step]) -> list[float]:
    """How long each step takes on its slowest rank."""
    clock: dict[int, float] = {}
    return [_played(s, clock) for s in of]


def _played(s: Step, clock: dict[int, float]) -> float:
    """Moves the clocks of all ranks to the end of the step."""
    members = Counter(op.key for ops in s.ranks.values() for op in ops if op.kind == ENTER)
    entered: dict[Key, list[float]] = {}
    began: dict[int, float] = {}
    going = dict.fromkeys(s.ranks, 0)
    while going:
        moved = False
        for rank in list(going):
            ops, place, now = s.ranks[rank], going[rank], clock.get(rank, 0.0)
            while place < len(ops):
                op = ops[place]
                if op.phase != BETWEEN:
                    began.setdefault(rank, now)
                if op.kind == OWN:
                    now += op.us
                elif op.key is not None and op.kind == ENTER:
                    entered.setdefault(op.key, []).append(now)
                elif op.key is not None:
                    if len(entered[op.key]) < members[op.key]:
                        break
                    done = max(entered[op.key]) + s.transfer_us[op.key]
                    now = max(now, done + s.lag_us.get((op.key, rank), 0.0))
                place += 1
                moved = True
            clock[rank] = now
            going[rank] = place
            if place == len(ops):
                del going[rank]
        if not moved:  # the calls of some rank are not all there: the others do not wait for it
            members = Counter({key: len(there) for key, there in entered.items()})
    return max((clock[rank] - began.get(rank, clock[rank]) for rank in s.ranks), default=0.0)


# -- with something taken away


def without_phase(of: Sequence[Step], phase: str) -> list[Step]:
    """Own work of this phase takes no time, and its collectives are not called."""
    return [replace(s, ranks={r: [op for op in ops if op.phase != phase] for r, ops in s.ranks.items()}) for s in of]


def levelled(of: Sequence[Step], ranks: Collection[int], *, but: Collection[str]) -> list[Step]:
    """Own work of `ranks` takes what it takes on one of the other ranks, between the same two collectives of the step
    before: of the same step all ranks would be alike, which those of a sound run are not. Phases in `but` stay."""
    others = sorted({rank for s in of for rank in s.ranks} - set(ranks))
    if not others:
        return list(of)
    made = []
    for number, s in enumerate(of):
        changed = dict(s.ranks)
        for slot, rank in enumerate(sorted(ranks)):
            like = of[number - 1].ranks.get(others[(number + slot) % len(others)], ())
            wanted, own = _by_place(like, but), _by_place(s.ranks.get(rank, ()), but)
            share = {place: wanted.get(place, us) / us for place, us in own.items() if us}
            changed[rank] = [
                replace(op, us=op.us * share.get(op.place, 1.0)) if _counts(op, but) else op
                for op in s.ranks.get(rank, ())
            ]
        made.append(replace(s, ranks=changed))
    return made


def own_us(s: Step, rank: int, *, but: Collection[str]) -> float:
    """Own work of a rank in a step."""
    return sum(op.us for op in s.ranks[rank] if _counts(op, but))


def _by_place(ops: Sequence[Op], but: Collection[str]) -> dict[int, float]:
    found: dict[int, float] = {}
    for op in ops:
        if _counts(op, but):
            found[op.place] = found.get(op.place, 0.0) + op.us
    return found


def _counts(op: Op, but: Collection[str]) -> bool:
    return op.kind == OWN and op.phase != BETWEEN and op.phase not in but


def with_transfers(of: Sequence[Step], transfer: Callable[[Key, int, float], float]) -> list[Step]:
    """Each collective's transfer is what `transfer` makes of (key, size in bytes, its time). How much later than others
    a rank usually goes on after it is the transfer's, too (a link that is slow one way), or the clocks'. What varies of
    that is the processors', and stays."""
    later: dict[tuple[Key, int], list[float]] = {}
    for s in of:
        for at, us in s.lag_us.items():
            later.setdefault(at, []).append(us)
    usual = {at: median(found) for at, found in later.items()}
    made = []
    for s in of:
        varies = {at: us - usual[at] for at, us in s.lag_us.items()}
        first: dict[Key, float] = {}
        for (key, _), us in varies.items():
            first[key] = min(us, first.get(key, us))
        made.append(
            replace(
                s,
                transfer_us={key: transfer(key, s.size_bytes[key], us) for key, us in s.transfer_us.items()},
                lag_us={(key, rank): us - first[key] for (key, rank), us in varies.items()},
            )
        )
    return made


def without_stalls(of: Sequence[Step], ranks: Collection[int], total_us: float) -> list[Step]:
    """`total_us` are taken out of what `ranks` do by themselves, of the transfers, and of what they went on later after
    these: out of those first that are longest over what is usual at their place in a step, then out of all that is over
    the shortest. For how long a rank stood still is known, and not when. Long ones are stalls for sure: what they cost
    beyond that, and what others went on later, goes with them."""
    stays = _stays(of, ranks)
    alike: dict[_Stay, list[float]] = {}
    for (_, at), us in stays.items():
        alike.setdefault(at, []).append(us)
    usual = {at: median(found) for at, found in alike.items()}
    excess = {stay: us - usual[stay[1]] for stay, us in stays.items()}
    taken = dict.fromkeys(stays, 0.0)
    later: dict[tuple[int, int | Key], float] = {}  # taken from the rank that went on last
    left = total_us
    theirs = {stay for stay in stays if stay[1][0] is None or stay[1][0] in ranks}
    for stay in sorted(excess, key=lambda stay: -excess[stay]):
        i, (rank, place) = stay
        beyond = total_us * STALL_COSTS_MORE if excess[stay] > STALL_US else 0.0
        if left + beyond <= 0 or excess[stay] <= 0:
            break
        if stay not in theirs and not beyond:
            continue
        again = later.get((i, place), 0.0) if rank is not None else 0.0  # one stall makes several ranks go on later
        taken[stay] = min(excess[stay], max(left + beyond, again))
        if not again:
            left -= taken[stay]
        if rank is not None and not isinstance(place, int):
            later.setdefault((i, place), taken[stay])
    least = {at: min(found) for at, found in alike.items()}
    rest = {stay: stays[stay] - taken[stay] - least[stay[1]] for stay in theirs}
    if left > 0 and (whole := sum(rest.values())) > 0:  # what is usual at a place has stalls in it, too
        taken |= {stay: taken[stay] + us * min(left / whole, 1.0) for stay, us in rest.items()}

    def share(i: int, at: _Stay) -> float:
        return 1 - taken[i, at] / stays[i, at] if stays.get((i, at)) else 1.0

    return [
        replace(
            s,
            ranks={
                rank: [replace(op, us=op.us * share(i, (rank, _place(op)))) if op.kind == OWN else op for op in ops]
                for rank, ops in s.ranks.items()
            },
            transfer_us={key: us * share(i, (None, key)) for key, us in s.transfer_us.items()},
            lag_us={(key, rank): us * share(i, (rank, key)) for (key, rank), us in s.lag_us.items()},
        )
        for i, s in enumerate(of)
    ]


def _stays(of: Sequence[Step], ranks: Collection[int]) -> dict[tuple[int, _Stay], float]:
    """By the index of the step: own work of `ranks`, transfers, and what was gone on later."""
    found: dict[tuple[int, _Stay], float] = {}
    for i, s in enumerate(of):
        for rank in ranks:
            for op in s.ranks.get(rank, ()):
                if op.kind == OWN:
                    at: _Stay = (rank, _place(op))
                    found[i, at] = found.get((i, at), 0.0) + op.us
        found |= {(i, (None, key)): us for key, us in s.transfer_us.items()}
        found |= {(i, (rank, key)): us for (key, rank), us in s.lag_us.items()}
    return found


def _place(op: Op) -> int:
    """Of own work in a step; before it, -1."""
    return -1 if op.phase == BETWEEN else op.place
