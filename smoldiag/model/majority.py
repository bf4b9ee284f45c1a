"""Who differs from the others: one value per host (or GPU, or rank), and what most of them have."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Hashable)


@dataclass(frozen=True)
class Split(Generic[K, V]):
    """Values that are not all the same."""

    groups: tuple[tuple[V, tuple[K, ...]], ...]  # value -> who has it, the largest group first

    @property
    def usual(self) -> V | None:
        """What most have; None where as many have another value."""
        first, second = self.groups[:2]
        return first[0] if len(first[1]) > len(second[1]) else None

    @property
    def others(self) -> tuple[tuple[V, tuple[K, ...]], ...]:
        """The groups in the wrong: all but the usual one, or all where nobody can say which."""
        return self.groups if self.usual is None else self.groups[1:]

    @property
    def outliers(self) -> tuple[K, ...]:
        return tuple(key for _, keys in self.others for key in keys)


def split(values: Mapping[K, V]) -> Split[K, V] | None:
    """None where all values are the same, or there are fewer than two."""
    groups: dict[V, list[K]] = {}
    for key, value in values.items():
        groups.setdefault(value, []).append(key)
    if len(groups) < 2:
        return None
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return Split(tuple((value, tuple(keys)) for value, keys in ordered))


def alike(values: Mapping[K, float], *, tolerance: float) -> dict[K, float]:
    """The same numbers, where those that differ by less than `tolerance` (a ratio) became one."""
    merged: dict[K, float] = {}
    shown = last = None
    for key, value in sorted(values.items(), key=lambda item: item[1]):
        if last is None or value - last > tolerance * abs(last):
            shown = value
        assert shown is not None
        merged[key], last = shown, value
    return {key: merged[key] for key in values}
