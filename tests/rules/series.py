"""Metrics of runs as trainers write them, with faults put in; the noise is that of a seeded generator."""

import math
import random
from collections.abc import Callable, Sequence

from smoldiag.facts.series import Series
from smoldiag.parse import metrics
from smoldiag.rules import Known
from tests.rules.known import Facts

STEPS = 1000


def read(*texts: str) -> Known:
    """What explain would make of these files."""
    return Known(series=tuple(s for i, t in enumerate(texts) for s in series(t, where=f"file{i}")))


def series(text: str, *, where: str = "file") -> tuple[Series, ...]:
    return metrics.parse(text.splitlines(), where=where)


def speeds(
    change: Callable[[int, float], float] = lambda step, speed: speed, *, steps: int = STEPS, seed: int = 1
) -> list[float]:
    """Tokens/s per GPU of each step: a slow start, then 1.2 % of noise, as 48 nodes had them."""
    random_ = random.Random(seed)
    noisy = [13_800 * (1 + random_.gauss(0, 0.012)) for _ in range(steps)]
    started = [v * (0.01 if i == 0 else 0.9) if i < 20 else v for i, v in enumerate(noisy)]
    return [change(i, v) for i, v in enumerate(started, 1)]


def table(values: Sequence[float], *, name: str = "run", column: str = "tokens_per_sec_per_gpu") -> str:
    return f"run_name,step,{column}\n" + "".join(f"{name},{i},{v}\n" for i, v in enumerate(values, 1))


def log(values: Sequence[float], data: Sequence[float] | None = None) -> str:
    """Seconds per step as a trainer of one's own prints them."""
    return "\n".join(
        f"step {i}: loss 2.1, step_time: {v:.3f}s" + (f", data_time: {data[i]:.3f}s" if data else "")
        for i, v in enumerate(values)
    )


def by_rank(slow: int | None) -> str:
    """Four ranks in one log."""
    random_ = random.Random(1)
    return "\n".join(
        f"[rank{rank}]: step {step} loss 2.1 step_time: {(1.3 if rank == slow else 1.0) * random_.gauss(1, 0.03):.3f}s"
        for step in range(60)
        for rank in range(4)
    )


def losses(
    change: Callable[[int, float], float] = lambda row, loss: loss,
    *,
    name: str = "run",
    noise: float = 0.03,
    rows: int = STEPS,
    seed: int = 1,
    first: int = 1,
) -> str:
    """A language model's loss by tokens. The data's noise is the same in all runs, `seed` is of the rest."""
    data, own = random.Random(0), random.Random(seed)
    shared = [data.gauss(0, noise) for _ in range(2 * rows)]
    values = [
        2.4 + 8.6 * math.exp(-i / (rows / 30)) + shared[i] + own.gauss(0, 0.004) for i in range(first, rows + first)
    ]
    return "run_name,step,tokens,loss\n" + "".join(
        f"{name},{i},{i * 2_359_296},{change(i, v)}\n" for i, v in enumerate(values, first)
    )


STALLED = {291, 294, 295, 327, 418, 419, 422, 462, 722, 723, 726, 727, 731, 732, 735, 805, 865}
OFTEN = {*random.Random(5).sample(range(40, STEPS), 17)}


def stalls(step: int, speed: float) -> float:
    return speed / (8 + 40 * math.sin(step) ** 2) if step in STALLED else speed


def other_stalls(step: int, speed: float) -> float:
    return speed / (8 + 40 * math.cos(3 * step) ** 2) if step in STALLED else speed


def narrow(ratio: float) -> Callable[[int, float], float]:
    return lambda step, speed: ratio * speed if step in OFTEN else speed


def collapse(step: int, speed: float) -> float:
    scatter = 1 + 0.12 * math.sin(7.1 * step)
    return stalls(step, speed) * (0.62 * scatter if 450 < step <= 880 else 1)


def throttled(step: int, speed: float) -> float:
    return speed * (0.7 if step > 600 else 1)


def sawtooth(step: int, speed: float) -> float:
    return speed * (0.65 if step // 100 % 2 else 1)


def checkpoints(step: int, speed: float) -> float:
    return speed / 3 if step % 50 == 0 else speed


def rare_checkpoints(step: int, speed: float) -> float:
    return speed / 3 if step % 200 == 0 else speed


def drifting(step: int, speed: float) -> float:
    return speed * (1 - 0.25 * step / STEPS)


def spike(row: int, loss: float) -> float:
    return loss + 0.6 if row == 700 else loss


def small_spike(row: int, loss: float) -> float:
    return loss + 0.3 if row == 700 else loss


def rise(row: int, loss: float) -> float:
    return loss + 0.01 * max(0, row - 700)


def wandering(row: int, loss: float) -> float:
    return loss + math.sin(row / 60)


def broken(row: int, loss: float) -> float:
    return loss if row < 900 else math.nan


def higher(by: float) -> Callable[[int, float], float]:
    return lambda row, loss: loss + by


def growing(row: int, loss: float) -> float:
    return loss + 0.1 * row / STEPS


def noisier(row: int, loss: float) -> float:
    return loss + 0.05 * math.sin(12.9 * row)


HEALTHY = table(speeds())
STALLS, SAME_STALLS = table(speeds(stalls)), table(speeds(other_stalls, seed=2), name="later")
SOUND, ALIKE = losses(), losses(name="other", seed=2)
BY_TOKENS = losses(name="bs256").replace("step,", "row,")
SMALL_BATCH = losses(noisier, name="bs64", seed=2).replace("step,", "row,")
STEADY = [1.0 + 0.01 * (i % 3) for i in range(80)]
UNEVEN = [6.0 if i in {7, 19, 41, 44, 70} else v for i, v in enumerate(STEADY)]
WAITED = [4.9 if v > 5 else 0.01 for v in UNEVEN]
ONE_NODE, MANY_NODES = table(speeds(narrow(0.7)), name="a-nn1"), table(speeds(narrow(0.6)), name="a-nn48")

CASES: list[tuple[str, Facts, list[str]]] = [
    ("STP020", read(log(STEADY, data=[0.4] * 80)), ["warning"]),
    ("STP020", read(log(STEADY, data=[0.01] * 80)), []),
    ("STP021", read(table(speeds(narrow(0.438)))), ["warning"]),
    ("STP021", read(table(speeds(narrow(0.7)))), ["info"]),
    ("STP021", read(log(UNEVEN, data=[0.01] * 80)), ["warning"]),
    ("STP021", read(log(UNEVEN)), []),
    ("STP021", read(HEALTHY), []),
    ("STP021", read(table(speeds(checkpoints))), []),
    ("STP021", read(STALLS), []),
    ("STO001", read(STALLS), ["warning"]),
    ("STO001", read(STALLS, SAME_STALLS), ["warning", "warning"]),
    ("STO001", read(log(UNEVEN)), ["warning"]),
    ("STO001", read(log(UNEVEN, data=WAITED)), ["warning"]),
    ("STO001", read(log(UNEVEN, data=[0.01] * 80)), []),
    ("STO001", read(HEALTHY), []),
    ("STO001", read(table(speeds(narrow(0.438)))), []),
    ("STO002", read(table(speeds(collapse))), ["warning"]),
    ("STO002", read(table(speeds(throttled))), []),
    ("STO002", read(HEALTHY), []),
    ("STP022", read(table(speeds(throttled))), ["warning"]),
    ("STP022", read(table(speeds(sawtooth))), ["warning"]),
    ("STP022", read(table(speeds(collapse))), []),
    ("STP022", read(log([3.3] * 40 + STEADY)), ["warning"]),
    ("STP022", read(log([3.3] * 14 + STEADY)), []),
    ("STP022", read(HEALTHY), []),
    ("STP024", read(table(speeds(checkpoints))), ["info"]),
    ("STP024", read(log([5.0 if i % 10 == 9 else v for i, v in enumerate(STEADY)])), ["warning"]),
    ("STP024", read(table(speeds(rare_checkpoints))), ["info"]),
    ("STP024", read(STALLS), []),
    ("STP024", read(HEALTHY), []),
    ("STP025", read(table(speeds(drifting))), ["warning"]),
    ("STP025", read(table(speeds(throttled))), []),
    ("STP025", read(HEALTHY), []),
    ("STP026", read(STALLS, SAME_STALLS), ["info"]),
    ("STP026", read(STALLS, HEALTHY), []),
    ("STP026", read(STALLS, STALLS), []),
    ("STP027", read(ONE_NODE, MANY_NODES), ["info"]),
    ("STP027", read(HEALTHY, STALLS), []),
    ("STP028", read(by_rank(slow=3)), ["warning"]),
    ("STP028", read(by_rank(slow=None)), []),
    ("STP028", read(HEALTHY), []),
    ("LOS001", read(losses(broken)), ["error"]),
    ("LOS001", read(losses(lambda row, loss: math.nan if row == 300 else loss)), []),
    ("LOS001", read(losses(lambda row, loss: loss if row % 3 else math.nan)), []),
    ("LOS001", read(SOUND), []),
    ("LOS002", read(losses(rise)), ["error"]),
    ("LOS002", read(losses(lambda row, loss: loss + 0.3 if row > 800 else loss)), ["warning"]),
    ("LOS002", read(losses(wandering)), []),
    ("LOS002", read(losses(spike)), []),
    ("LOS002", read(SOUND), []),
    ("LOS003", read(losses(spike)), ["warning"]),
    ("LOS003", read(losses(small_spike)), ["info"]),
    ("LOS003", read(SOUND), []),
    ("LOS004", read(SOUND, losses(higher(0.04), name="tp2", seed=2)), ["warning"]),
    ("LOS004", read(SOUND, losses(higher(0.009), name="tp2", seed=2)), ["info"]),
    ("LOS004", read(SOUND, losses(growing, name="tp2", seed=2)), ["warning"]),
    ("LOS004", read(SOUND, losses(higher(0.5), name="smaller", seed=2)), []),
    ("LOS004", read(SOUND, ALIKE), []),
    ("LOS004", read(SOUND, SOUND), []),
    ("LOS005", read(SOUND, losses(noisier, name="unshuffled", seed=2)), ["warning"]),
    ("LOS005", read(BY_TOKENS, SMALL_BATCH), ["info"]),
    ("LOS005", read(SOUND, ALIKE), []),
    ("LOS006", read(SOUND, losses(name="resumed", first=960, seed=3)), ["info"]),
    ("LOS006", read(SOUND, losses(higher(0.2), name="resumed", first=960, seed=3)), ["warning"]),
    ("LOS006", read(SOUND, ALIKE), []),
]
