"""A step along its latest rank: the parts of that rank's time add up to the step, so that a difference of two steps
is the sum of the differences of their parts. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from smoldiag.facts.comparison import CHECKPOINT, COMMUNICATION, COMPUTE, DATA, HOST
from smoldiag.facts.run import StepTimes
from smoldiag.model import steps as model

TRANSFER, WAIT, OTHER = "transfer", "waiting for a peer", "not attributed"
AREA_OF_PART = {
    "data": DATA,
    "h2d": DATA,
    "forward": COMPUTE,
    "backward": COMPUTE,
    "optimizer": COMPUTE,
    "gc": HOST,
    "checkpoint": CHECKPOINT,
    TRANSFER: COMMUNICATION,
}


@dataclass(kw_only=True)
class Series:
    """By step, in order; times in microseconds."""

    steps: list[int] = field(default_factory=list)
    step_us: list[float] = field(default_factory=list)  # of the slowest rank
    times: list[float] = field(default_factory=list)  # Unix time at the step's start, the earliest rank's
    parts: dict[str, list[float]] = field(default_factory=dict)  # along the latest rank
    own: dict[str, dict[int, list[float]]] = field(default_factory=dict)  # phase -> rank -> without collectives
    transfers: dict[tuple[str, int, str], list[float]] = field(default_factory=dict)  # (name, bytes, group)
    hosts: dict[int, str] = field(default_factory=dict)

    @property
    def span_s(self) -> float:
        return sum(self.step_us) / 1e6


def series(counted: Mapping[int, Mapping[int, StepTimes]]) -> Series:
    """From the steps that count (`model.steps.counted`)."""
    made = Series()
    for number, ranks in enumerate(counted.values()):
        stays = model.split(dict(ranks), {})
        waits = {rank: sum(w for _, w in stays[rank].values()) for rank in ranks}
        latest = min(ranks, key=lambda rank: (waits[rank], -ranks[rank].step_us))
        made.steps.append(ranks[latest].step)
        made.step_us.append(max(s.step_us for s in ranks.values()))
        made.times.append(min(s.time for s in ranks.values()))
        for rank, s in ranks.items():
            made.hosts[rank] = s.host
            own = dict(s.phases_us)
            for phase, (transfer, wait) in stays[rank].items():
                own[phase] = own.get(phase, 0.0) - transfer - wait
            own[OTHER] = own.pop("other", 0.0)
            for name, us in own.items():
                _put(made.own.setdefault(name, {}).setdefault(rank, []), number, us)
            if rank == latest:
                own[TRANSFER] = sum(t for t, _ in stays[rank].values())
                own[WAIT] = waits[rank]
                for name, us in own.items():
                    _put(made.parts.setdefault(name, []), number, us)
        for what, us in _transfers(ranks).items():
            _put(made.transfers.setdefault(what, []), number, us)
    return _padded(made)


def _put(values: list[float], number: int, us: float) -> None:
    """At its place: a phase that a step did not have took no time."""
    values += [0.0] * (number - len(values))
    values.append(us)


def _padded(made: Series) -> Series:
    count = len(made.steps)
    of_ranks = [values for ranks in made.own.values() for values in ranks.values()]
    for values in (*made.parts.values(), *of_ranks, *made.transfers.values()):
        values += [0.0] * (count - len(values))
    return made


def _transfers(ranks: Mapping[int, StepTimes]) -> dict[tuple[str, int, str], float]:
    """(name, bytes, group) -> what these collectives took in a step, each from when its last rank came."""
    stays: dict[tuple[tuple[str, int, str], int], float] = {}
    for s in ranks.values():
        seen: dict[tuple[str, int, str], int] = {}
        for c in s.collectives:
            what = (c.name, c.size_bytes, c.group)
            number = seen[what] = seen.get(what, -1) + 1
            stays[what, number] = min(stays.get((what, number), c.stay_us), c.stay_us)
    found: dict[tuple[str, int, str], float] = {}
    for (what, _), us in stays.items():
        found[what] = found.get(what, 0.0) + us
    return found
