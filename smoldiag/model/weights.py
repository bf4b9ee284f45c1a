"""Shards of parameters that start with the same values on several ranks. Pure."""

from collections.abc import Mapping

from smoldiag.facts.run import Weights

CONSTANT = 1e-9  # ratio of the variance to the mean square, below which all values are one and the same


def equal_shards(weights: Mapping[int, Weights]) -> dict[str, tuple[int, ...]]:
    """Parameter -> ranks that hold different shards of it with the same values. Norms start as ones everywhere: what is
    one value throughout does not count."""
    found: dict[str, tuple[int, ...]] = {}
    for name in dict.fromkeys(name for w in weights.values() for name in w.shards):
        alike: dict[tuple[float, ...], list[int]] = {}
        for rank, w in sorted(weights.items()):
            if name in w.shards and w.place is not None:
                alike.setdefault(w.shards[name], []).append(rank)
        for values, ranks in alike.items():
            if not is_constant(values) and len({weights[r].place for r in ranks}) > 1:
                found[name] = tuple(ranks)
    return found


def is_constant(shard: tuple[float, ...]) -> bool:
    """By its sum, its sum of squares and its size. Of what is larger than the sample, nothing else is known."""
    total, squares, _, count = shard
    return squares <= 0 or abs(squares - total * total / count) <= CONSTANT * squares
