"""Where the time of a step goes: phases, and in the collectives waiting for a peer and transfer told apart. Pure.

All ranks of a group leave a collective together. The rank that comes last stays only as long as the transfer takes;
what the others stay longer, they wait for it. So no clocks need to agree.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from smoldiag.facts.run import Run, StepTimes
from smoldiag.model.stats import median

WARM_UP_STEPS = 3  # first steps that allocate, compile and connect; left out where enough others are there
MIN_STEPS = 3
TRANSFER, WAIT = "*transfer", "*wait"  # parts of a step that are no phases


@dataclass(frozen=True, kw_only=True)
class Share:
    """The parts of one rank's steps: means in microseconds per step, so that they add up to the mean step."""

    rank: int
    host: str
    step_us: float
    phases_us: Mapping[str, float]  # own time: without what is in collectives
    transfer_us: float
    wait_us: float
    unattributed_us: float


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Over the steps that count."""

    steps: tuple[int, ...]
    step_us: float  # median over the steps of the slowest rank's time
    mean_step_us: float
    shares: tuple[Share, ...]
    waited_for_us: Mapping[int, float] = field(default_factory=dict)  # per rank: how long others waited for it, a step

    @property
    def phases(self) -> list[str]:
        return list(dict.fromkeys(name for s in self.shares for name in s.phases_us))


def counted(steps: Iterable[StepTimes]) -> dict[int, dict[int, StepTimes]]:
    """step -> rank -> times, without warm-up, and of steps that every rank has finished."""
    by_step: dict[int, dict[int, StepTimes]] = {}
    for s in steps:
        by_step.setdefault(s.step, {})[s.rank] = s
    everybody = max((len(ranks) for ranks in by_step.values()), default=0)
    whole = {number: ranks for number, ranks in sorted(by_step.items()) if len(ranks) == everybody}
    first = min(whole, default=0)
    settled = {n: ranks for n, ranks in whole.items() if n >= first + WARM_UP_STEPS}
    return settled if len(settled) >= MIN_STEPS else whole


def budget(run: Run) -> Budget | None:
    """None where no step was finished by all ranks."""
    steps = counted(run.steps)
    if not steps:
        return None
    totals: dict[int, dict[str, float]] = {}
    hosts: dict[int, str] = {}
    waited_for: dict[int, float] = {}
    for ranks in steps.values():
        for rank, own in parts(ranks, waited_for).items():
            hosts[rank] = ranks[rank].host
            sums = totals.setdefault(rank, {"*step": 0.0})
            sums["*step"] += ranks[rank].step_us
            for name, us in own.items():
                sums[name] = sums.get(name, 0.0) + us
    count = len(steps)
    shares = tuple(_share(rank, hosts[rank], sums, count) for rank, sums in sorted(totals.items()))
    slowest = [max(s.step_us for s in ranks.values()) for ranks in steps.values()]
    return Budget(
        steps=tuple(steps),
        step_us=median(slowest),
        mean_step_us=sum(slowest) / count,
        shares=shares,
        waited_for_us={rank: us / count for rank, us in waited_for.items()},
    )


def _share(rank: int, host: str, sums: Mapping[str, float], count: int) -> Share:
    phases = {name: us / count for name, us in sums.items() if not name.startswith("*") and name != "other"}
    return Share(
        rank=rank,
        host=host,
        step_us=sums["*step"] / count,
        phases_us=phases,
        transfer_us=sums[TRANSFER] / count,
        wait_us=sums[WAIT] / count,
        unattributed_us=sums.get("other", 0.0) / count,
    )


def parts(ranks: Mapping[int, StepTimes], waited_for: dict[int, float] | None = None) -> dict[int, dict[str, float]]:
    """rank -> part of one step -> us: its phases without what is in collectives, transfer and waiting."""
    stays = split(ranks, {} if waited_for is None else waited_for)
    made = {}
    for rank, s in ranks.items():
        own = {**s.phases_us, TRANSFER: 0.0, WAIT: 0.0}
        for phase, (transfer, wait) in stays[rank].items():
            own[phase] = own.get(phase, 0.0) - transfer - wait
            own[TRANSFER] += transfer
            own[WAIT] += wait
        made[rank] = own
    return made


def split(ranks: Mapping[int, StepTimes], waited_for: dict[int, float]) -> dict[int, dict[str, tuple[float, float]]]:
    """rank -> phase -> (transfer, wait) of one step; adds to `waited_for` what others waited for each rank."""
    calls: dict[tuple[str, str, int], list[tuple[int, float, str]]] = {}
    for rank, s in ranks.items():
        seen: dict[tuple[str, str], int] = {}
        for c in s.collectives:
            number = seen[c.group, c.name] = seen.get((c.group, c.name), -1) + 1
            calls.setdefault((c.group, c.name, number), []).append((rank, c.stay_us, c.phase))
    result: dict[int, dict[str, tuple[float, float]]] = {rank: {} for rank in ranks}
    for stays in calls.values():
        last_rank, transfer, _ = min(stays, key=lambda stay: stay[1])
        for rank, stay, phase in stays:
            t, w = result[rank].get(phase, (0.0, 0.0))
            result[rank][phase] = (t + transfer, w + stay - transfer)
        if len(stays) > 1:
            waited = max(stay for _, stay, _ in stays) - transfer
            waited_for[last_rank] = waited_for.get(last_rank, 0.0) + waited
    return result


def tokens_per_s(run: Run, step_us: float) -> float | None:
    return run.tokens_per_step / step_us * 1e6 if run.tokens_per_step else None


def mfu(tokens_per_s_per_gpu: float, flops_per_token: float, peak_tflops: float | None) -> float | None:
    """Model FLOP/s over the dense peak (PaLM, arXiv:2204.02311, appendix B). None: the peak is not known."""
    return tokens_per_s_per_gpu * flops_per_token / (peak_tflops * 1e12) if peak_tflops else None


def longest(values: Sequence[float], *, times_median: float) -> list[int]:
    """Places of the values that are more than so many times the median."""
    middle = median(values)
    return [i for i, v in enumerate(values) if v > times_median * middle]
