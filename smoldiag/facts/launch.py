"""How ranks were started on hosts, and what went wrong there."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from smoldiag.facts.evidence import Evidence


@dataclass(frozen=True, kw_only=True)
class Seat:
    """One host of the run and the ranks that it was given."""

    host: str
    ranks: tuple[int, ...]
    address: str | None = None  # by which the others reach it
    interface: str | None = None
    python: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)  # python, torch


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A rank or host that kept the run from finishing."""

    # unreachable | no-python | no-torch | no-gpu | bad-interface | rendezvous | exited | crashed | stopped | stalled |
    # skipped | lost | busy | pending | refused
    kind: str
    hosts: tuple[str, ...]
    ranks: tuple[int, ...] = ()
    stage: str  # reach hosts | import | rendezvous | all_reduce 16 MiB
    detail: str  # a sentence with the values seen: killed by signal 9 (SIGKILL)
    last_finished: str | None = None  # the last stage that it completed
    evidence: tuple[Evidence, ...] = ()  # what its stderr said last, redacted
    certain: bool = True  # seen itself (exit, state T, no answer); False: inferred from who waits for whom


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What became of a launched program."""

    launcher: str
    seats: tuple[Seat, ...]
    faults: tuple[Fault, ...] = ()
    interrupted: str | None = None  # SIGINT | SIGTERM
    warnings: tuple[str, ...] = ()
