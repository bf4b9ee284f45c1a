"""What a cloud's instance family is and needs, and what was recognised. The records of cloud_profiles/*.toml.

Versions are written with their component: "NCCL 2.28.3", "aws-ofi-nccl 1.16.0". A range begins with `since` and
ends before `until`; an empty one is open.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase


def same_value(a: str, b: str) -> bool:
    """Without regard to case; lists of devices in any order, port 1 named or not."""
    return _normal(a) == _normal(b)


def _normal(value: str) -> tuple[str, tuple[str, ...]]:
    text = value.strip().lower()
    names = text.lstrip("=^")
    return text[: len(text) - len(names)], tuple(sorted(name.removesuffix(":1") for name in names.split(",")))


@dataclass(frozen=True, kw_only=True)
class Size:
    """Where one instance of a family differs from `Hardware`."""

    gpus: int | None = None
    nics: int | None = None
    nic_gbit_per_s: float | None = None
    gpu: tuple[str, ...] | None = None  # NVML names


@dataclass(frozen=True, kw_only=True)
class CloudHardware:
    """One host. Rates in Gb/s per NIC, in one direction."""

    gpu_class: str  # how published figures name it: H100 SXM
    gpu: tuple[str, ...]  # names that NVML gives; empty: any
    gpus: int | None = None
    gpu_memory_gib: int | None = None
    nics: int | None = None  # of the compute network; None: not documented
    nic_gbit_per_s: float | None = None
    nic_rates_seen: tuple[float, ...] = ()  # other rates that are documented for the same instances
    nic_kind: str  # infiniband | roce | efa | ethernet
    nic_devices: tuple[str, ...] = ()  # names of the data ports, where they are fixed
    fabric: str
    host_gbit_per_s: float | None = None  # of the interface that TCP between hosts uses
    numa_nodes: int | None = None
    nvlink: str = ""
    nvlink_hosts: int | None = None  # how many hosts one NVLink domain joins, where it joins any
    layout: str = ""  # what shares a PCI switch or NUMA node
    source: str

    @property
    def nic_gb_per_s(self) -> float | None:
        """All NICs of the compute network together, GB/s."""
        if self.nics is None or self.nic_gbit_per_s is None:
            return None
        return self.nics * self.nic_gbit_per_s / 8


@dataclass(frozen=True, kw_only=True)
class Marks:
    """How to recognise a cloud or an instance. Patterns are those of a shell, without regard to case."""

    dmi: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # file of /sys/class/dmi/id -> values; one is enough
    files: tuple[str, ...] = ()  # one that exists is enough
    pci: tuple[str, ...] = ()  # vendor:device
    pci_count: int | None = None  # exactly so many of `pci`
    rdma_devices: str = ""  # names of all verbs devices
    variables: tuple[str, ...] = ()  # all of them are set
    metadata: tuple[str, ...] = ()  # what the metadata service calls the instance
    how: str = ""  # for people, where nothing can be recognised
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A variable, why it has this value, and from when to when."""

    name: str
    value: str
    on_host: str = ""  # the value outside of containers, where it differs
    level: str = "required"  # required | recommended | optional
    accepted: tuple[str, ...] = ()  # further values that are right, as patterns
    when: str = ""  # the condition of an optional one
    why: str
    since: str = ""
    until: str = ""
    scope: str = "launcher"  # host | container | launcher: where it has to be set
    source: str

    def accepts(self, value: str) -> bool:
        """Whether this value is right: the setting's, or one of those that are right as well."""
        right = (self.value, *self.accepted, *([self.on_host] if self.on_host else []))
        return any(same_value(value, r) or fnmatchcase(value.strip().lower(), r.lower()) for r in right)


@dataclass(frozen=True, kw_only=True)
class Automatic:
    """What a plugin or image sets by itself, as long as nobody else sets it."""

    name: str
    value: str
    by: str
    why: str = ""
    since: str = ""
    source: str


@dataclass(frozen=True, kw_only=True)
class Forbidden:
    """What must not be set here. `since` and `until`: from when to when it is wrong."""

    name: str
    values: tuple[str, ...] = ()  # patterns; empty: any value
    allowed: tuple[str, ...] = ()  # values that are right, as patterns
    kind: str  # aborts | harmful | no-such-variable | obsolete | redundant
    why: str
    since: str = ""
    until: str = ""
    instead: str = ""  # what to do rather than only removing it
    source: str

    def means(self, name: str, value: str) -> bool:
        """Whether it is about this variable with this value."""
        if not fnmatchcase(name, self.name):
            return False
        low = value.strip().lower()
        if any(fnmatchcase(low, pattern.lower()) for pattern in self.allowed):
            return False
        return not self.values or any(fnmatchcase(low, pattern.lower()) for pattern in self.values)


@dataclass(frozen=True, kw_only=True)
class NeededFile:
    """A file or folder that must be there. `any_of`: one is enough."""

    what: str
    any_of: tuple[str, ...]
    beside: str = ""  # judged only where this exists too: it shows that such software was installed at all
    mount: bool = False  # a container must be given it
    required: bool = True
    why: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Module:
    name: str
    required: bool = True
    why: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Plugin:
    name: str
    paths: tuple[str, ...] = ()
    minimum: str = ""
    why: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Limit:
    name: str  # memlock | shm | hugepages | nofile
    value: str
    minimum_bytes: int | None = None  # below it is a fault; None: not judged
    why: str
    source: str


@dataclass(frozen=True, kw_only=True)
class ExpectedRate:
    """A published bus bandwidth, GB/s, of a healthy run."""

    collective: str
    nodes: int
    gpus_per_node: int
    size_bytes: int
    busbw_gbs: float
    algorithm: str = ""  # as its publisher states it; empty: NCCL's own choice
    two_node_artefact: bool = False  # trees of two nodes send less than busbw assumes: says nothing of the NICs
    nccl_version: str = ""
    source: str


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Below it something is wrong, under its conditions. GB/s of bus bandwidth."""

    collective: str
    nodes: int
    size_bytes: int
    warn_below_gbs: float
    fail_below_gbs: float
    condition: str = ""
    basis: str  # published by whom, or how it was derived
    source: str


@dataclass(frozen=True, kw_only=True)
class Convention:
    """One habit of a launcher: a line for Slurm, a resource or annotation for Kubernetes, an option for Docker."""

    launcher: str  # slurm | kubernetes | docker | mpirun | torchrun
    kind: str = "note"  # option | resource | annotation | capability | memory | note
    name: str = ""
    value: str = ""
    why: str
    source: str


@dataclass(frozen=True, kw_only=True)
class BadVersions:
    """A version, or a pair of them, that is known not to work."""

    what: str
    component: str = ""  # as in versions: NCCL, aws-ofi-nccl ...; empty: not told by a version alone
    since: str = ""  # first version that has it
    until: str = ""  # first version that does not
    needs: str = ""  # only together with this: "NVIDIA driver 580"
    symptom: str
    fix: str
    source: str


@dataclass(frozen=True, kw_only=True)
class LogLine:
    line: str  # as it is printed, in part
    level: str  # good | benign | warning | fatal
    meaning: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Support:
    """What a ticket needs."""

    what: str
    command: str
    source: str


@dataclass(frozen=True, kw_only=True)
class CloudProfile:
    """`smoldiag.cloud-profile/1`: one instance family."""

    schema: str = "smoldiag.cloud-profile/1"
    name: str
    cloud: str
    family: str
    title: str
    status: str  # measured: there are published bandwidths | documented: there are none, and no verdict rests on it
    instances: tuple[str, ...] = ()  # as the cloud calls them
    published_as: tuple[str, ...] = ()  # as published figures call them
    network: tuple[str, ...] = ()  # what NCCL calls the right network: "AWS Libfabric"
    hardware: CloudHardware
    sizes: Mapping[str, Size] = field(default_factory=dict)
    recognise: Marks = field(default_factory=Marks)
    settings: tuple[Setting, ...] = ()
    automatic: tuple[Automatic, ...] = ()
    conditional: tuple[Setting, ...] = ()  # only against the fault that `when` names
    forbidden: tuple[Forbidden, ...] = ()
    modules: tuple[Module, ...] = ()
    plugins: tuple[Plugin, ...] = ()
    files: tuple[NeededFile, ...] = ()
    limits: tuple[Limit, ...] = ()
    expected: tuple[ExpectedRate, ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    launch: tuple[Convention, ...] = ()
    bad_versions: tuple[BadVersions, ...] = ()
    log_lines: tuple[LogLine, ...] = ()
    support: tuple[Support, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Detected:
    """`smoldiag.cloud-detect/1`: which cloud and instance this is, and what that rests on."""

    schema: str = "smoldiag.cloud-detect/1"
    cloud: str = "unknown"
    family: str | None = None
    profile: str | None = None
    instance: str | None = None
    confidence: str | None = None  # certain | likely
    saw: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ExplainedVariable:
    """`smoldiag.cloud-explain/1`: what a profile says of one variable."""

    schema: str = "smoldiag.cloud-explain/1"
    profile: str
    name: str
    settings: tuple[Setting, ...]
    conditional: tuple[Setting, ...]
    automatic: tuple[str, ...]
    forbidden: tuple[Forbidden, ...]
    does: str = ""  # what it does, whatever the cloud
    default: str = ""
