"""Faults put into a simulated program, as they occur in real ones."""

import random
from collections.abc import Callable
from dataclasses import replace

from tests.hangs.simulated import Job, Op

CAUSES = {
    "skip": "collective-mismatch",
    "size": "collective-mismatch",
    "branch": "collective-mismatch",
    "uneven": "uneven-data-across-ranks",
    "slow": "straggler-or-hung-rank",
    "killed": "straggler-or-hung-rank",
}


def put(fault: str, job: Job, rank: int, *, step: int, chance: random.Random) -> None:
    """Change the program of `rank` somewhere in its middle; `step`: operations of one."""
    program = job.ranks[rank].program
    fitting = [i for i, op in enumerate(program) if 60 < i < 0.6 * len(program) and _can_differ(op)]
    at = chance.choice(fitting)
    if fault in ("slow", "killed"):
        job.ranks[rank].gone_at = at
    else:
        job.ranks[rank].program = CHANGES[fault](program, at, step)


def _can_differ(op: Op) -> bool:
    return op.op in ("all_reduce", "all_gather", "reduce_scatter")


def _skip(program: list[Op], at: int, step: int) -> list[Op]:
    return program[:at] + program[at + 1 :]


def _size(program: list[Op], at: int, step: int) -> list[Op]:
    return [*program[:at], replace(program[at], elements=program[at].elements + 5), *program[at + 1 :]]


def _branch(program: list[Op], at: int, step: int) -> list[Op]:
    return [*program[:at], Op("default", "all_reduce", 13, 77, name="special"), *program[at:]]


def _uneven(program: list[Op], at: int, step: int) -> list[Op]:
    return [*program[: max(at // step, 1) * step], program[-1]]


CHANGES: dict[str, Callable[[list[Op], int, int], list[Op]]] = {
    "skip": _skip,
    "size": _size,
    "branch": _branch,
    "uneven": _uneven,
}
