"""Which hosts are measured together, round by round: disjoint pairs, so that a round takes as long as one pair.

Every host meets another partner in each round. Few rounds are enough to tell a slow host from its partners, whatever
the number of hosts; all pairs take as many rounds as there are hosts, and are for few hosts or for single links.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

CONFIRMING_ROUNDS = 2  # at most: the second for suspects that had the same partner

Pairs = list[tuple[int, int]]


def every_round(num_hosts: int) -> list[Pairs]:
    """All pairs in num_hosts - 1 rounds (num_hosts, where that is odd): the circle method of tournaments."""
    seats: list[int | None] = list(range(num_hosts))
    if num_hosts % 2:
        seats.append(None)
    half = len(seats) // 2
    made = []
    for _ in range(len(seats) - 1):
        met = zip(seats[:half], reversed(seats[half:]), strict=True)
        made.append([(min(a, b), max(a, b)) for a, b in met if a is not None and b is not None])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return made


def most_rounds(num_hosts: int) -> int:
    """What finding one fault may take, confirming included."""
    return math.ceil(math.log2(max(num_hosts, 2))) + 3


@lru_cache(maxsize=4)
def searching(num_hosts: int, *, exhaustive: bool = False) -> list[Pairs]:
    """The rounds of the search. All pairs where one round is left for confirming; else a spread of them.

    The rounds that are left out lie evenly between those taken, so that partners are near and far in the order of
    the hosts, which is often that of the racks.
    """
    if num_hosts < 2:
        return []
    total = num_hosts - 1 + num_hosts % 2
    if exhaustive or total <= most_rounds(num_hosts) - 1:
        return every_round(num_hosts)
    wanted = most_rounds(num_hosts) - CONFIRMING_ROUNDS
    return [_round(num_hosts, round(i * total / wanted)) for i in range(wanted)]


def _round(num_hosts: int, number: int) -> Pairs:
    """Round `number` of every_round, without the others."""
    turning = num_hosts - 1 + num_hosts % 2  # seats that move; one seat stays
    at = [0, *((seat - 1 - number) % turning + 1 for seat in range(1, turning + 1))]
    pairs = ((at[i], at[turning - i]) for i in range((turning + 1) // 2))
    return [(min(a, b), max(a, b)) for a, b in pairs if max(a, b) < num_hosts]


def confirming(
    hosts: Sequence[int],
    *,
    suspects: Collection[int],
    links: Iterable[tuple[int, int]],
    met: Collection[tuple[int, int]],
) -> Pairs:
    """A round that measures suspects again: links as they are, hosts with partners above suspicion.

    Partners are such as they have not met, where there are any. The hosts that are left are paired, too, so that the
    network is as busy as it was before. Suspects that find no free partner are left out: there may be another round.
    """
    free = dict.fromkeys(hosts)
    seen = {frozenset(pair) for pair in met}
    pairs: Pairs = []
    for a, b in dict.fromkeys(links):
        if a in free and b in free:
            pairs.append((a, b))
            del free[a], free[b]
    for host in suspects:
        partner = _partner(host, free, suspects, seen)
        if host in free and partner is not None:
            pairs.append((min(host, partner), max(host, partner)))
            del free[host], free[partner]
    rest = [h for h in free if h not in suspects]
    half = len(rest) // 2
    return [*pairs, *zip(rest[:half], rest[half : 2 * half], strict=True)] if pairs else []


def _partner(
    host: int, free: Collection[int], suspects: Collection[int], seen: Collection[frozenset[int]]
) -> int | None:
    """Above suspicion, and not met before if there is one."""
    trusted = [h for h in free if h != host and h not in suspects]
    return next((h for h in trusted if frozenset((host, h)) not in seen), trusted[0] if trusted else None)
