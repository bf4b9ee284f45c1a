"""Results kept by the identity of their arguments: facts are immutable, and rules ask the same of them many times."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
MOST = 20_000  # results of one function; then all are forgotten


def by_identity(function: Callable[P, R]) -> Callable[P, R]:
    """For functions of facts that are slow to hash. The arguments are kept, so that their identities stay theirs."""
    kept: dict[tuple[int, ...], tuple[object, R]] = {}

    @wraps(function)
    def remembered(*args: P.args, **kwargs: P.kwargs) -> R:
        same = (*map(id, args), *map(id, kwargs.values()))
        if same not in kept:
            if len(kept) >= MOST:
                kept.clear()
            kept[same] = ((args, kwargs), function(*args, **kwargs))
        return kept[same][1]

    return remembered
