"""Rules on collectives inside the hosts."""

from dataclasses import replace

from smoldiag.facts import Bench, Group
from tests.rules.bench import bench, result
from tests.rules.known import Facts


def inside(*busbw: float) -> Bench:
    results = [
        replace(result(gbs), group=Group(kind="node", ranks=(2 * i, 2 * i + 1), nodes=1)) for i, gbs in enumerate(busbw)
    ]
    hosts = tuple(f"node{i // 2}" for i in range(2 * len(busbw)))
    return replace(bench(*results, nodes=len(busbw)), host_of_rank=hosts)


CASES: list[tuple[str, Facts, list[str]]] = [
    ("BWD070", inside(400, 401, 398, 250), ["warning"]),
    ("BWD070", inside(400, 401, 398, 380), []),
    ("BWD070", inside(400, 250), []),  # of two, nobody knows who is right
]
