"""What a preflight planned, and what became of each of its stages."""

from dataclasses import dataclass

# In the order in which they run.
STAGES = ("reach", "facts", "device", "node", "pairs", "together", "storage", "resume", "script")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be done, and within which time."""

    level: str  # quick | standard | deep
    nodes: int | None  # hosts that are asked for; None: as many as there are
    budget_s: float  # of the whole
    stages: tuple[tuple[str, float], ...]  # (name, seconds planned)


@dataclass(frozen=True, kw_only=True)
class StageResult:
    name: str
    status: str  # done | failed | skipped | interrupted
    seconds: float = 0.0
    budget_s: float = 0.0
    detail: str = ""  # why it did not end as planned


@dataclass(frozen=True, kw_only=True)
class Contact:
    """One try to connect from a host to another."""

    src: str
    dst: str
    port: int
    master: bool  # the port of the rendezvous; else one of those that the system gives out
    address: str | None = None
    error: str | None = None  # None: it connected; refused | timeout | the system's words
    local: bool = False  # the error is of the host that tried: its own rules or routes
    interface: str | None = None  # by which it was reached


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """What a host's name means on another host."""

    src: str
    name: str
    addresses: tuple[str, ...] | None = None  # None: it is not known there
    expected: tuple[str, ...] = ()  # what that host has
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Whether the hosts reach each other as a rendezvous needs it."""

    hosts: tuple[str, ...]
    contacts: tuple[Contact, ...] = ()
    lookups: tuple[Lookup, ...] = ()
    master_in_use: tuple[str, ...] = ()  # hosts where something listens on the master port already
    master_port: int = 29500
