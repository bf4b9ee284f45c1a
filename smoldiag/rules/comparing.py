"""How rules compare hosts: what most have is taken as meant, and the others are named."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from smoldiag.facts import Cluster, Evidence, Host
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.model import folded, majority
from smoldiag.rules import NotKnown

MAX_GROUPS = 4  # values in a message; the others are counted
MAX_WORDS = 120  # characters of a value in a message
EVIDENCE_PER_GROUP = 2


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One thing that hosts are compared in."""

    what: str  # for people: memlock limit
    value: Callable[[Host], Hashable | None]  # None: not known
    seen_in: str  # where to see it on a host: ulimit -l
    tolerance: float = 0.0  # for numbers, as a ratio
    shown: Callable[[Any], str] = str
    same_model_only: bool = False  # compare only hosts of the same product
    severity: Severity = Severity.WARNING
    cause: str = ""  # where it is another than that of the whole rule


def differences(
    cluster: Cluster,
    things: Iterable[Compared],
    *,
    cause: str,
    why: str,
    fix: Callable[[str, str], Sequence[Fix]],  # of hosts, folded, and the thing
    confirm: str = "",
    sources: tuple[str, ...] = (),
    explains: tuple[str, ...] = (),
) -> Iterator[Finding]:
    """A finding for each thing in which the hosts differ. NotKnown where none of them is known on two hosts."""
    known = False
    for thing in things:
        for hosts in _classes(cluster, thing):
            values = {h.name: v for h in hosts if (v := thing.value(h)) is not None}
            known |= len(values) > 1
            if thing.tolerance:
                values = {**majority.alike(values, tolerance=thing.tolerance)}  # type: ignore[arg-type]
            found = majority.split(values)
            if found is None:
                continue
            outliers = found.outliers
            yield Finding(
                message=f"{thing.what} differs: {groups(found, thing.shown)}",
                cause=thing.cause or cause,
                subject=thing.what,
                severity=thing.severity,
                confidence=Confidence.CERTAIN if found.usual is not None else Confidence.LIKELY,
                where=Where(hosts=outliers),
                evidence=evidence(found, thing),
                why=why,
                fixes=tuple(fix(folded.hosts(outliers, most=4), thing.what)),
                confirm=confirm,
                sources=sources,
                explains=explains,
            )
    if not known:
        raise NotKnown(nothing_to_compare(cluster))


def _classes(cluster: Cluster, thing: Compared) -> list[list[Host]]:
    if not thing.same_model_only:
        return [list(cluster)]
    classes: dict[str | None, list[Host]] = {}
    for host in cluster:
        classes.setdefault(host.product, []).append(host)
    return list(classes.values())


def nothing_to_compare(cluster: Cluster) -> str:
    return "compares hosts: one was looked at" if len(cluster.hosts) < 2 else "compares hosts: known on fewer than two"


def known_on(cluster: Cluster, fact: str) -> list[Host]:
    """The hosts on which this fact is known. NotKnown where they are fewer than two."""
    hosts = [h for h in cluster if getattr(h, fact) is not None]
    if len(hosts) < 2:
        raise NotKnown(nothing_to_compare(cluster))
    return hosts


def groups(found: majority.Split[str, Any], shown: Callable[[Any], str] = str) -> str:
    """A on node1; B on the other 511."""
    said = [f"{_cut(shown(value))} on {folded.hosts(hosts, most=4)}" for value, hosts in found.others[:MAX_GROUPS]]
    if len(found.others) > MAX_GROUPS:
        said.append(
            f"{len(found.others) - MAX_GROUPS} more values on {sum(len(h) for _, h in found.others[MAX_GROUPS:])}"
        )
    if found.usual is None:
        return "; ".join(said) + " (no majority, so that nobody can say which is meant)"
    usual = len(found.groups[0][1])
    others = f"the other {usual} hosts" if usual != 1 else "the other host"
    return "; ".join([*said, f"{_cut(shown(found.usual))} on {others}"])


def evidence(found: majority.Split[str, Any], thing: Compared) -> tuple[Evidence, ...]:
    """Of each group the first hosts, those in the wrong first."""
    usual = found.groups[:1] if found.usual is not None else ()
    return tuple(
        Evidence(text=f"{thing.what}: {_cut(thing.shown(value))}", where=f"{host}: {thing.seen_in}")
        for value, hosts in (*found.others[:MAX_GROUPS], *usual)
        for host in hosts[:EVIDENCE_PER_GROUP]
    )


def _cut(words: str) -> str:
    return words if len(words) <= MAX_WORDS else f"{words[:MAX_WORDS]} ..."
