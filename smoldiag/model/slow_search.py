"""The search for a slow host, a round at a time: what is measured next follows from what was measured so far."""

from collections.abc import Sequence
from dataclasses import dataclass

from smoldiag.facts.tables import HostCompute, Pair
from smoldiag.model import pair_schedule, slow_nodes


@dataclass(frozen=True, kw_only=True)
class Round:
    """Pairs of hosts that are measured at the same time; no host is in two of them."""

    number: int
    pairs: tuple[tuple[str, str], ...]
    confirming: bool = False


def next_round(
    hosts: Sequence[str],
    *,
    done: int,
    pairs: Sequence[Pair],
    computes: Sequence[HostCompute] = (),
    lost: Sequence[str] = (),
    exhaustive: bool = False,
) -> Round | None:
    """After `done` rounds that gave `pairs`; None when the search is over. Hosts that were `lost` are left out."""
    search = pair_schedule.searching(len(hosts), exhaustive=exhaustive)
    if done < len(search):
        return _round(hosts, search[done], lost, number=done)
    most = max(pair_schedule.most_rounds(len(hosts)), len(search) + 1)
    explained = slow_nodes.explain(pairs, directed=True, computes=computes) if done < most else None
    if explained is None or (explained.levels and not explained.slow_links and not explained.faults):
        return None
    place = {host: i for i, host in enumerate(hosts)}
    sound = [i for i, host in enumerate(hosts) if host not in lost]
    again = confirming_pairs(pairs)
    unclear = {h for p in explained.unclear for h in (p.a, p.b)} if not explained.levels else set()
    to_confirm = {h for f in explained.faults if not f.confirmed and len(f.hosts) == 1 for h in f.hosts} | unclear
    links = [sorted((place[a], place[b])) for a, b in explained.slow_links if frozenset((a, b)) not in again]
    planned = pair_schedule.confirming(
        sound,
        suspects=sorted(place[h] for h in to_confirm if h not in lost),
        links=[(a, b) for a, b in links],
        met={(place[p.a], place[p.b]) for p in pairs},
    )
    return _round(hosts, planned, lost, number=done, confirming=True) if planned else None


def confirming_pairs(pairs: Sequence[Pair]) -> set[frozenset[str]]:
    return {frozenset((p.a, p.b)) for p in pairs if p.confirming}


def _round(
    hosts: Sequence[str], planned: pair_schedule.Pairs, lost: Sequence[str], *, number: int, confirming: bool = False
) -> Round:
    named = ((hosts[a], hosts[b]) for a, b in planned)
    return Round(
        number=number,
        pairs=tuple((a, b) for a, b in named if a not in lost and b not in lost),
        confirming=confirming,
    )
