"""Rules that judge pairs of hosts, and sweeps over node counts."""

import json
from collections.abc import Mapping, Sequence
from itertools import permutations

from smoldiag.facts import Tables
from smoldiag.facts.tables import HostCompute, Pair, PairTable
from smoldiag.parse import tables
from smoldiag.rules import Known
from tests.rules.known import Facts

GIB = 2**30
HOSTS = tuple(f"node{i}" for i in range(6))
USUAL_GBS = 46.0


def pairs(
    slow: Mapping[tuple[str, str], float] | None = None,
    *,
    fate: str = "",
    spread: Mapping[str, float] | None = None,
    compute: Mapping[str, float] | None = None,
    lanes: Sequence[float] = (1.0,),
    confirmed: bool = True,
) -> Known:
    """Every pair of six hosts, both ways; `slow`: (sender, receiver) -> GB/s, "*" = anybody. It comes again."""
    found = []
    for i, (a, b) in enumerate(permutations(HOSTS, 2)):
        given = [v for (x, y), v in (slow or {}).items() if x in (a, "*") and y in (b, "*")]
        uneven = max((spread or {}).get(a, 1.1), (spread or {}).get(b, 1.1))
        rate = min(given) if given else USUAL_GBS + i % 5
        found += [
            Pair(
                a=a,
                b=b,
                gb_per_s=rate * share,
                where="find-slow",
                lane=lane,
                spread=uneven,
                fate="" if rate else fate,
                confirming=again,
            )
            for again in ([False, True] if given and confirmed else [False])
            for lane, share in enumerate(lanes)
        ]
    computes = tuple(
        HostCompute(host=h, lane=0, seconds=0.1 * (compute or {}).get(h, 1.0) + 0.001 * n)
        for h in HOSTS
        for n in range(3)
    )
    table = PairTable(where="find-slow", kind="hosts", pairs=tuple(found), directed=True, computes=computes)
    return Known(tables=Tables(pairs=(table,)))


def sweep(joined: int = 99, ratio: float = 1.0, *, second: float = 1.0, lost_with_each: float = 0.0) -> Known:
    """all_reduce and all_to_all over 1 to 12 nodes; from `joined` nodes on they reach `ratio`."""

    def rate(nodes: int, top: float) -> float:
        shared = (second if nodes > 1 else 1.0) * (1 - lost_with_each) ** (nodes - 1)
        return round(top * shared * (ratio if nodes >= joined else 1.0), 2)

    def rows(nodes: int, top: float) -> list[dict[str, float]]:
        return [{"messageSize": size, "bandwidth": rate(nodes, top)} for size in (GIB, 2 * GIB, 4 * GIB, 8 * GIB)]

    document = {
        "all_reduce": {f"{n}_nodes": rows(n, 350.0) for n in range(1, 13)},
        "alltoall": {f"{n}_nodes": rows(n, 45.0 * n / max(n - 1, 0.15)) for n in range(1, 13)},
    }
    return Known(tables=tables.parse([json.dumps(document)], where="sweep.json"))


BETWEEN_RACKS = {(a, b): 23.0 for a, b in permutations(HOSTS, 2) if (a < "node3") != (b < "node3")}
TWO_RACKS = pairs(BETWEEN_RACKS, confirmed=False)

CASES: list[tuple[str, Facts, list[str]]] = [
    ("BWD025", pairs({("node2", "*"): 30.0}), ["warning"]),
    ("BWD025", pairs({("*", "node2"): 30.0}), ["warning"]),
    ("BWD025", pairs({("node2", "*"): 30.0, ("*", "node2"): 30.0, ("node4", "*"): 20.0}), ["warning", "warning"]),
    ("BWD025", pairs(), []),
    ("BWD025", pairs({("node2", "node3"): 30.0}), []),
    ("BWD025", TWO_RACKS, []),
    ("BWD052", pairs({("node2", "node3"): 30.0, ("node3", "node2"): 30.0}), ["warning"]),
    ("BWD052", pairs({("node2", "node3"): 0.0}, fate="hung"), ["error"]),
    ("BWD052", pairs({("node2", "*"): 30.0}), []),
    ("BWD052", pairs(), []),
    ("BWD052", TWO_RACKS, []),
    ("BWD053", pairs({("node1", "*"): 0.0, ("*", "node1"): 0.0}, fate="hung"), ["error"]),
    ("BWD053", pairs({("node1", "*"): 0.0, ("*", "node1"): 0.0}, fate="failed"), ["error"]),
    ("BWD053", pairs({("node1", "*"): 20.0}), []),
    ("BWD054", pairs({("node1", "*"): 20.0}, compute={"node1": 2.0}), ["warning"]),
    ("BWD054", pairs({("node1", "*"): 20.0}, compute={"node1": 1.05}), []),
    ("BWD055", pairs(spread={"node5": 2.5}), ["warning"]),
    ("BWD055", pairs(spread=dict.fromkeys(HOSTS, 2.5)), []),
    ("BWD056", pairs(lanes=(1.0, 0.98, 0.6, 1.01)), ["warning"]),
    ("BWD056", pairs(lanes=(1.0, 0.98, 0.95, 1.01)), []),
    ("BWD057", TWO_RACKS, ["info"]),
    ("BWD057", pairs({("node2", "*"): 30.0}), []),
    ("BWD065", sweep(joined=5, ratio=0.5), ["warning"]),
    ("BWD065", sweep(joined=12, ratio=0.75), ["warning"]),
    ("BWD065", sweep(), []),
    ("BWD065", sweep(lost_with_each=0.08), []),
    ("BWD066", sweep(second=0.3), ["info"]),
    ("BWD066", sweep(second=0.7), ["info"]),
    ("BWD066", sweep(second=0.95), []),
    ("BWD066", sweep(), []),
]
