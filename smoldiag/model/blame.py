"""Who is to blame for failures between hosts: the fewest hosts that account for them."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

Edge = tuple[str, str]  # (from, to)
MOST = 0.5  # of the hosts: where more would be to blame, it is nobody's own fault


@dataclass(frozen=True, kw_only=True)
class Blame:
    """`hosts`: each fails with several others, or says itself that it fails. `pairs`: two that fail with each other
    alone. `general`: most hosts fail, so that it is a matter of the network or its settings.
    """

    hosts: tuple[str, ...] = ()
    pairs: tuple[Edge, ...] = ()
    general: bool = False


def of_edges(failed: Iterable[Edge], hosts: Collection[str], *, own: Collection[str] = ()) -> Blame:
    """`failed`: tries from one host to another that did not succeed; `own`: hosts whose own system refused the try."""
    left = {edge for edge in failed if not set(edge) & set(own)}
    guilty = list(dict.fromkeys(h for h in hosts if h in own))
    while left:
        partners = {h: {a if b == h else b for a, b in left if h in (a, b)} for h in hosts}
        worst = max(partners, key=lambda h: len(partners[h]))
        if len(partners[worst]) < 2:
            break
        guilty.append(worst)
        left = {edge for edge in left if worst not in edge}
    if len(guilty) > MOST * len(hosts) or (not own and len(guilty) == MOST * len(hosts)):
        return Blame(general=True)
    pairs = tuple(dict.fromkeys((min(edge), max(edge)) for edge in sorted(left)))
    return Blame(hosts=tuple(guilty), pairs=pairs)
