"""Collectives inside each host, held against those of the other hosts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from smoldiag.facts import Result
from smoldiag.model import fleet

# Of the median host. Equal nodes with NVSwitch differ by some percent; ranks on processors share cores and caches.
SHORTFALL = {"nccl": 0.10, "gloo": 0.50}


@dataclass(frozen=True, kw_only=True)
class SlowInside:
    host: str
    result: Result
    usual_gbs: float  # busbw of the median host


def slow(results: Iterable[Result], host_of_rank: Sequence[str], *, backend: str) -> list[SlowInside]:
    """The slow hosts, each with its worst collective."""
    alike: dict[tuple[str, int], dict[str, Result]] = {}
    for r in results:
        if r.group.kind == "node":
            alike.setdefault((r.collective, r.size_bytes), {})[host_of_rank[r.group.ranks[0]]] = r
    worst: dict[str, tuple[float, SlowInside]] = {}
    for by_host in alike.values():
        rates = {host: r.busbw_gbs for host, r in by_host.items()}
        for host, found in fleet.slow(rates, shortfall=SHORTFALL[backend]).items():
            if found.shortfall > worst.get(host, (0.0,))[0]:
                one = SlowInside(host=host, result=by_host[host], usual_gbs=found.usual)
                worst[host] = (found.shortfall, one)
    return [one for _, one in worst.values()]
