"""The environment as the ranks see it: variables, and where each value comes from."""

from collections.abc import Iterator
from dataclasses import dataclass

from smoldiag.facts.evidence import Evidence


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One setting, redacted. `value` is what the reader of it would get, blanks and quotes included."""

    name: str
    value: str
    origin: str  # environment | /proc/4242/environ | /etc/nccl.conf:3 | job.sbatch:17
    shadowed: tuple[str, ...] = ()  # further values of the same name, which are not used: "/etc/nccl.conf:3 (4194304)"
    exists: bool | None = None  # the file that the value names; None: it names none, or nobody looked


@dataclass(frozen=True, kw_only=True)
class Env:
    """What reaches the ranks, each name once, in NCCL's own precedence."""

    variables: tuple[Variable, ...] = ()
    complete: bool = True  # False: a script or a log, which shows only some of the variables

    def __iter__(self) -> Iterator[Variable]:
        return iter(self.variables)

    def find(self, name: str) -> Variable | None:
        return next((v for v in self.variables if v.name == name), None)

    def get(self, name: str) -> str | None:
        found = self.find(name)
        return found.value if found else None

    def evidence(self, *names: str) -> tuple[Evidence, ...]:
        found = (self.find(name) for name in names)
        return tuple(Evidence(text=f"{v.name}={v.value}", where=v.origin) for v in found if v)
