"""Rules on whether hosts reach each other."""

from collections.abc import Iterable, Sequence

from smoldiag.facts.preflight import Contact, Lookup, Reach
from smoldiag.rules import Known
from tests.rules.known import Facts

HOSTS = ("node0", "node1", "node2", "node3")
ADDRESSES = {host: f"10.0.0.{i}" for i, host in enumerate(HOSTS)}


def reach(
    failed: Iterable[tuple[str, str]] = (),
    *,
    hosts: Sequence[str] = HOSTS,
    master: bool = True,
    error: str = "timeout",
    local: Iterable[str] = (),
    unknown: Iterable[tuple[str, str]] = (),
    in_use: tuple[str, ...] = (),
) -> Known:
    bad, own, missing = set(failed), set(local), set(unknown)
    edges = [(a, b) for a in hosts for b in hosts if a != b]
    return Known(
        reach=Reach(
            hosts=tuple(hosts),
            contacts=tuple(
                Contact(
                    src=a,
                    dst=b,
                    port=29500 if of_master else 40000,
                    master=of_master,
                    address=ADDRESSES[b],
                    error=error if (a, b) in bad and of_master is master else None,
                    local=a in own,
                )
                for a, b in edges
                for of_master in (True, False)
            ),
            lookups=tuple(
                Lookup(
                    src=a,
                    name=b,
                    addresses=None if (a, b) in missing else (ADDRESSES[b],),
                    expected=(ADDRESSES[b],),
                    error="Name or service not known" if (a, b) in missing else None,
                )
                for a, b in edges
            ),
            master_in_use=in_use,
        )
    )


def around(host: str) -> list[tuple[str, str]]:
    return [edge for other in HOSTS if other != host for edge in ((host, other), (other, host))]


EVERYBODY = [(a, b) for a in HOSTS for b in HOSTS if a != b]

CASES: list[tuple[str, Facts, list[str]]] = [
    ("HST100", reach(), []),
    ("HST100", reach(around("node2")), ["error"]),
    ("HST100", reach(around("node2"), master=False), ["error"]),
    (
        "HST100",
        reach([("node2", h) for h in HOSTS if h != "node2"], error="Invalid argument", local=["node2"]),
        ["error"],
    ),
    ("HST100", reach([("node1", "node2"), ("node2", "node1")]), ["error"]),
    ("HST100", reach([*around("node1"), *around("node2")]), ["error"]),
    ("HST100", reach(EVERYBODY), ["error"]),
    ("HST101", reach(), []),
    ("HST101", reach(unknown=[("node3", h) for h in HOSTS[:3]]), ["warning"]),
    ("HST101", reach(unknown=[("node3", "node0")]), ["warning"]),
    ("HST101", reach(unknown=EVERYBODY), ["info"]),
    ("HST102", reach(), []),
    ("HST102", reach(in_use=("node1",)), ["warning"]),
]
