"""Acceptance of a node against requirements, and what earlier runs said of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """`minimum` and `maximum` are of a figure, `equal` of a figure or a version."""

    name: str  # bfloat16_tflops | driver
    kind: str  # minimum | maximum | equal
    value: float | str
    scope: str = "node"  # node: each of them | fleet: all together


@dataclass(frozen=True, kw_only=True)
class Criteria:
    requirements: tuple[Requirement, ...]
    name: str = ""
    where: str = ""  # the file


@dataclass(frozen=True, kw_only=True)
class Line:
    """A requirement and what was measured. None: nobody measured it, which is not met."""

    requirement: Requirement
    measured: float | str | None
    met: bool


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Of a node, or of the fleet (then `host` is empty)."""

    host: str
    lines: tuple[Line, ...]
    serials: Mapping[str, str] = field(default_factory=dict)  # host | GPU 0 | ... -> number
    firmware: Mapping[str, str] = field(default_factory=dict)  # driver | bios | mlx5_0 | GPU 0 -> version

    @property
    def passed(self) -> bool:
        return all(line.met for line in self.lines)


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """`smoldiag.certificates/1`: those of all nodes, and last that of the fleet."""

    schema: str = "smoldiag.certificates/1"
    criteria: Criteria
    accepted: tuple[str, ...]  # hosts
    refused: tuple[str, ...]
    certificates: tuple[Certificate, ...]


@dataclass(frozen=True, kw_only=True)
class HostRun:
    """One host in one run."""

    status: str  # passed | failed | unknown
    codes: tuple[str, ...] = ()  # of the findings that name it
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """`smoldiag.history/1`: one run, as one file of a history folder."""

    schema: str = "smoldiag.history/1"
    created: str  # ISO 8601, UTC
    command: str  # preflight
    verdict: str
    hosts: Mapping[str, HostRun]
    job: str = ""
    level: str = ""


@dataclass(frozen=True, kw_only=True)
class History:
    runs: tuple[PastRun, ...]  # the oldest first
    notes: tuple[str, ...] = ()  # files that could not be read
    where: str = ""
