"""The environment variables that NCCL, its plugins, torch and the libraries below them read (variables.json).

Versions are those of the component that reads a variable: a `since` of an NCCL variable is a release of NCCL.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache

import msgspec

from smoldiag.paths import KNOWLEDGE

Release = tuple[int, int, int]
CLOSE_PREFIX = 4  # a word of so many letters that another begins with is the same word: SUBSYS, SUBSYSTEM
OLDEST: Mapping[str, Release] = {"torch": (2, 6, 0), "nccl": (2, 21, 5)}  # that we support, and what that torch brings
NEARLY_NCCL = re.compile(r"[NCL]{3,5}")
ALIKE_FROM = 0.6  # share of words in common from which a name is worth mentioning
CLOSE_FROM = 0.85  # the same for letters, as difflib counts them
WORDS_ALIKE = {"IFACE": "IFNAME", "INTERFACE": "IFNAME", "IFNAMES": "IFNAME", "DISABLED": "DISABLE"}


@dataclass(frozen=True, kw_only=True)
class VariableSpec:
    """What is known of one variable."""

    name: str
    component: str  # nccl | torch | gloo | aws-ofi-nccl | libfabric | ucx | tcpx | tcpxo | cuda | image | nobody ...
    kind: str  # bool | int | size | float | enum | list | path | text
    does: str
    values: str = ""  # what is accepted, in words
    default: str = ""  # in words
    reads: str = (
        ""  # how the value is read: integer | level | algorithms | protocols | interfaces | word ...; "": unknown
    )
    typed: str | None = None  # from this release on, NCCL reads it with its typed parser: words, not integers
    choices: tuple[str, ...] = ()
    lowest: int | None = None
    highest: int | None = None
    defaults: tuple[tuple[str, str | None], ...] = ()  # (from release on, default); None: depends on the machine
    since: str | None = None
    removed: str | None = None  # the first release that does not read it; "unknown": some release
    deprecated: str | None = None  # still read from here on, but has another name or no effect of its own
    instead: str | None = None
    risk: tuple[str, ...] = ()  # slow | breaks | debug
    match: str = ""  # required | recommended: the same everywhere; host, rank: may differ by it; first rank
    set_by: str | None = None  # the launcher that sets it
    documented: bool = True
    source: str


@cache
def specs() -> Mapping[str, VariableSpec]:
    """By name."""
    rows = msgspec.json.decode((KNOWLEDGE / "variables.json").read_bytes(), type=list[VariableSpec])
    return {row.name: row for row in rows}


def find(name: str) -> VariableSpec | None:
    return specs().get(name)


@cache
def must_match() -> frozenset[str]:
    """Variables whose values must be the same on all ranks: a difference hangs, fails or corrupts."""
    return frozenset(name for name, spec in specs().items() if spec.match == "required")


@cache
def may_differ() -> frozenset[str]:
    """Variables that rightly have another value on each host or rank."""
    return frozenset(name for name, spec in specs().items() if spec.match in ("host", "rank", "first rank"))


@cache
def release(text: str | None) -> Release | None:
    """2.27.5, v2.27.5-1, 2.13.0+cu129 as numbers; None where it is no version."""
    match = re.match(r"\s*v?(\d+)\.(\d+)(?:\.(\d+))?", text or "")
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def is_removed(spec: VariableSpec, version: Release | None) -> bool | None:
    """None: not known, because nobody wrote down when, or because some releases that we support still read it."""
    if spec.removed is None:
        return False
    gone = release(spec.removed)
    if gone is None:
        return None
    if version is None:
        return True if OLDEST.get(spec.component, (0, 0, 0)) >= gone else None
    return version >= gone


def is_missing_yet(spec: VariableSpec, version: Release | None) -> bool | None:
    since = release(spec.since)
    if since is None:
        return False
    return None if version is None else version < since


def is_deprecated(spec: VariableSpec, version: Release | None) -> bool:
    """Without a version: whether every release that we support has the new name."""
    if spec.deprecated is None:
        return False
    since = release(spec.deprecated)
    return since is None or (version or OLDEST.get(spec.component, since)) >= since


def default_at(spec: VariableSpec, version: Release) -> str | None:
    """The default of a release; None where it has none, or depends on the machine."""
    found = None
    for since, default in spec.defaults:
        if version >= (release(since) or (0, 0, 0)):
            found = default
    return found


def misspelt(name: str) -> VariableSpec | None:
    """The variable that an unknown name most probably means: the same words, misspelt or in another order."""
    if name in specs():
        return None
    found = [(score, spec.name) for spec in specs().values() if (score := _distance(name, spec.name)) is not None]
    return specs()[min(found)[1]] if found else None


def nearest(name: str) -> VariableSpec | None:
    """The variable of the same family whose name is most alike; what is alike need not be meant."""
    if of_torch := specs().get(f"TORCH_{name.upper()}"):
        return of_torch
    family = name.upper().partition("_")[0] + "_"
    wanted = _subject(name)
    scores = {
        spec.name: (len(wanted & words) / len(wanted | words), spec.component in ("nccl", "torch"), spec.documented)
        for spec in specs().values()
        if spec.name.startswith(family) and len(wanted & (words := _subject(spec.name))) > 1
    }
    best = max(scores, key=scores.__getitem__, default=None)
    if best and scores[best][0] >= ALIKE_FROM:
        return specs()[best]
    close = get_close_matches(name.upper(), (n for n in specs() if n.startswith(family)), n=1, cutoff=CLOSE_FROM)
    return specs()[close[0]] if close else None


def _subject(name: str) -> frozenset[str]:
    return frozenset("DISABLE" if word == "ENABLE" else word for word in _words(name))


def _distance(name: str, known: str) -> int | None:
    """How many letters are wrong; None where the names do not consist of the same words."""
    ours, theirs = _words(name), _words(known)
    if not ours or (ours[0] != theirs[0] and not (theirs[0] == "NCCL" and NEARLY_NCCL.fullmatch(ours[0]))):
        return None
    if len(ours) == len(theirs):
        wrong = [_word_distance(a, b) for a, b in zip(ours, theirs, strict=True)]
        total = sum(w for w in wrong if w is not None)
        if None not in wrong and sum(bool(w) for w in wrong) <= 2:
            return total
        return 1 if sorted(ours) == sorted(theirs) else None
    return 1 if "".join(ours) == "".join(theirs) else None


def _words(name: str) -> list[str]:
    return [WORDS_ALIKE.get(word, word) for word in name.strip().upper().replace("-", "_").split("_") if word]


def _word_distance(a: str, b: str) -> int | None:
    """0 for the same word, 1 or 2 for a misspelt one, None for another word."""
    if a == b:
        return 0
    if min(len(a), len(b)) >= CLOSE_PREFIX and (a.startswith(b) or b.startswith(a)):
        return 1
    if sorted(a) == sorted(b) and len(a) <= 2:
        return 1
    allowed = 0 if min(len(a), len(b)) < 3 else 1 if max(len(a), len(b)) < 6 else 2
    distance = _edits(a, b)
    return distance if distance <= allowed else None


def _edits(a: str, b: str) -> int:
    """Letters to insert, leave out, replace or swap with their neighbour (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, y in enumerate(b, 1):
            least = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if last and j > 1 and x == b[j - 2] and y == a[i - 2]:
                least = min(least, last[j - 2] + 1)
            row.append(least)
    return row[-1]


def by_component() -> Iterator[tuple[str, list[VariableSpec]]]:
    """All of them, NCCL's first."""
    groups: dict[str, list[VariableSpec]] = {"nccl": [], "torch": []}
    for spec in specs().values():
        groups.setdefault(spec.component, []).append(spec)
    yield from groups.items()
