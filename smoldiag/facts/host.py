"""One host, and all the hosts of a job."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Gpu:
    index: int
    name: str
    uuid: str = ""
    memory_bytes: int | None = None
    memory_free_bytes: int | None = None
    busy_pids: tuple[int, ...] | None = None  # processes that compute on it and are not ours


@dataclass(frozen=True, kw_only=True)
class Nic:
    """A network device that collectives could use."""

    name: str  # mlx5_0 | eth0
    kind: str  # infiniband | roce | efa | ethernet
    gbit_per_s: float | None = None  # link rate; None where the driver does not know (virtual devices)
    up: bool | None = None
    virtual: bool = False  # no hardware below it: veth, bridge, tap


@dataclass(frozen=True, kw_only=True)
class Host:
    """Everything known about one host. Rules name the fields that they need."""

    name: str  # the scheduler's, else the host name
    aliases: tuple[str, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)  # why a fact is None: {"gpus": "NVML: not found"}
    gpus: tuple[Gpu, ...] | None = None
    nics: tuple[Nic, ...] | None = None
    env: Mapping[str, str] | None = None  # the variables that reach the ranks, redacted
    cpu_count: int | None = None
    memory_free_bytes: int | None = None
    product: str | None = None  # DMI product or instance type


@dataclass(frozen=True, kw_only=True)
class Cluster:
    hosts: tuple[Host, ...]

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts)
