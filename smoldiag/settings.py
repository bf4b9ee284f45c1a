"""What is set on hosts, as name and value, and what of it is not the same on two sides. Pure.

Readings that change by themselves (temperatures, counters, free memory, clocks of the moment) are no settings.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smoldiag.facts import Cluster, Host
from smoldiag.facts.comparison import AREAS, CHECKPOINT, COMMUNICATION, COMPUTE, DATA, HOST, Change
from smoldiag.knowledge import variables
from smoldiag.model import folded

OF_LAUNCHES = ("SLURM_", "OMPI_", "PMI_", "TORCHELASTIC_", "MASTER_")  # ranks, ids, ports: other for every job
MODULES = re.compile(
    r"nvidia|nv_peer|gdr|ib_|mlx|efa|rdma|irdma|bnxt_re|xpmem|knem|lustre|weka|nfs"
)  # matter to training
OF_SMOLDIAG = {"NCCL_DEBUG_FILE", "TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"}  # a folder of the run
STORAGE = ("/proc", "/sys", "/dev", "/run", "/etc", "/boot", "/snap")  # mounts below these hold no data
AREAS_OF_VARIABLE = (  # by the start of its name, the first that fits
    ("TORCH_NCCL_", (COMMUNICATION,)),
    (("NCCL_", "RCCL_", "GLOO_", "FI_", "OFI_", "UCX_", "MLX5_", "SHARP_", "RDMAV_", "IBV_"), (COMMUNICATION,)),
    (("OMP_", "GOMP_", "KMP_", "MKL_"), (COMPUTE, HOST, DATA)),
    (("CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_LAUNCH_BLOCKING"), (COMPUTE, COMMUNICATION)),
    (("PYTORCH_", "TORCH_", "CUDA_", "HIP_", "HSA_"), (COMPUTE,)),
)
AREAS_OF_VERSION = {
    **dict.fromkeys(("nccl", "rccl", "ofi_nccl", "libfabric", "ofed", "ucx", "gdrcopy", "efa"), (COMMUNICATION,)),
    **dict.fromkeys(("driver", "cuda", "torch", "torch_cuda", "kernel", "python"), AREAS),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One value. `item`: which of several things of the same name it belongs to, as GPU 3."""

    family: str
    name: str
    value: str
    item: str = ""
    affects: tuple[str, ...] = ()
    known: bool = True  # that it can matter to speed
    why: str = ""
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Settings that were read together. `all_listed`: what is missing is not there, and not merely unknown."""

    settings: tuple[Setting, ...]
    all_listed: bool = False


def changes(a: Cluster, b: Cluster) -> tuple[tuple[Change, ...], tuple[str, ...], tuple[str, ...]]:
    """What changed on the hosts that are on both sides, and the hosts of one side only.

    Where the sides have no host in common, what all hosts of a side agree on is compared.
    """
    pairs, gone, new = _matched(a, b)
    if len(a.hosts) == len(b.hosts) == 1:  # two files, or a host and its successor
        pairs = [(a.hosts[0], b.hosts[0])]
    if not pairs:
        only_a, only_b = _agreed(a), _agreed(b)
        return tuple(_folded([("", s, t) for s, t in _differing(only_a, only_b)], {"": ""})), gone, new
    found = [(host.name, s, t) for host, other in pairs for s, t in _differing(groups(host), groups(other))]
    return tuple(_folded(found, {h.name for h, _ in pairs})), gone, new


def of_variables(a: Mapping[str, str], b: Mapping[str, str]) -> tuple[Change, ...]:
    """Between two lists of variables, as a log or a run has them."""
    pair = ({"env": _variables(a)}, {"env": _variables(b)})
    return tuple(_folded([("", s, t) for s, t in _differing(*pair)], {""}))


def of_versions(a: Mapping[str, str], b: Mapping[str, str]) -> tuple[Change, ...]:
    """Of what both sides tell a version of."""
    pair = ({"versions": _versions(a)}, {"versions": _versions(b)})
    return tuple(_folded([("", s, t) for s, t in _differing(*pair)], {""}))


def areas_of(variable: str) -> tuple[str, ...]:
    """What of a training step a variable has to do with; empty where that is not known."""
    return next((areas for start, areas in AREAS_OF_VARIABLE if variable.startswith(start)), ())


def _matched(a: Cluster, b: Cluster) -> tuple[list[tuple[Host, Host]], tuple[str, ...], tuple[str, ...]]:
    by_name = {name: host for host in b for name in (*host.aliases, host.name)}
    pairs = [(host, other) for host in a if (other := _same(host, by_name))]
    seen = {id(other) for _, other in pairs}
    matched = {host.name for host, _ in pairs}
    gone = tuple(h.name for h in a if h.name not in matched and _is_machine(h))
    return pairs, gone, tuple(h.name for h in b if id(h) not in seen and _is_machine(h))


def _is_machine(host: Host) -> bool:
    """Not a script or a listing, which has the name of its file."""
    return host.env is None or host.env.complete


def _same(host: Host, by_name: Mapping[str, Host]) -> Host | None:
    return next((by_name[name] for name in (host.name, *host.aliases) if name in by_name), None)


def _agreed(hosts: Cluster) -> dict[str, Group]:
    """Settings that all hosts of a side have in common."""
    every = [groups(host) for host in hosts]
    common = set.intersection(*(set(g) for g in every)) if every else set()
    agreed = {}
    for name in common:
        sets = [set(g[name].settings) for g in every]
        agreed[name] = Group(
            settings=tuple(s for s in every[0][name].settings if all(s in other for other in sets)),
            all_listed=len(every) == 1 and every[0][name].all_listed,
        )
    return agreed


def _differing(a: Mapping[str, Group], b: Mapping[str, Group]) -> Iterator[tuple[Setting | None, Setting | None]]:
    """Only of groups that both sides know."""
    for name in a.keys() & b.keys():
        left = {(s.name, s.item): s for s in a[name].settings}
        right = {(s.name, s.item): s for s in b[name].settings}
        for key in dict.fromkeys((*left, *right)):
            s, t = left.get(key), right.get(key)
            if s and t:
                if s.value != t.value:
                    yield s, t
            elif a[name].all_listed and b[name].all_listed:
                yield s, t


def _folded(found: Iterable[tuple[str, Setting | None, Setting | None]], hosts: Iterable[str]) -> Iterator[Change]:
    """One change for all items and hosts on which the same became the same."""
    alike: dict[tuple[str, str, str | None, str | None], list[tuple[str, Setting]]] = {}
    for host, s, t in found:
        either = s or t
        assert either is not None
        key = (either.family, either.name, s.value if s else None, t.value if t else None)
        alike.setdefault(key, []).append((host, either))
    everywhere = set(hosts)
    for (family, name, a, b), group in alike.items():
        on = tuple(dict.fromkeys(host for host, _ in group if host))
        items = tuple(dict.fromkeys(s.item for _, s in group if s.item))
        setting = group[0][1]
        yield Change(
            family=family,
            name=f"{name} of {folded.hosts(items)}" if items else name,
            a=a,
            b=b,
            hosts=() if set(on) == everywhere else on,
            weight="known" if setting.known else "other",
            affects=setting.affects,
            why=setting.why,
            source=setting.source,
        )


# -- what is set on a host


def groups(host: Host) -> dict[str, Group]:
    """By what was read together; what nobody could read is left out."""
    found: dict[str, Group | None] = {
        "env": _variables({v.name: v.value for v in host.env}) if host.env is not None else None,
        "versions": _versions(host.versions) if host.versions is not None else None,
        "host": Group(settings=tuple(_host(host))),
        "modules": _listed("HST", "kernel module", _modules(host), (COMMUNICATION,)),
        "daemons": _listed("HST", "service", host.system.daemons if host.system else None, (HOST,)),
        "mounts": _mounts(host),
        "gpus": _things("GPU", host.gpus, lambda g: f"GPU {g.index}", GPU, (COMPUTE,)),
        "nics": _things("NIC", host.nics, lambda n: n.name, NIC, (COMMUNICATION,)),
        "nic": _listed("NIC", "NIC", [n.name for n in host.nics or () if not n.virtual] or None, (COMMUNICATION,)),
        "pci": _things("PCI", host.pci, lambda p: p.address, PCI, (COMMUNICATION, DATA)),
    }
    return {name: group for name, group in found.items() if group is not None}


def _variables(values: Mapping[str, str]) -> Group:
    return Group(
        settings=tuple(_variable(n, v) for n, v in values.items() if not _is_of_one_launch(n)), all_listed=True
    )


def _is_of_one_launch(name: str) -> bool:
    spec = variables.find(name)
    return name.startswith(OF_LAUNCHES) or name in OF_SMOLDIAG or (spec is not None and spec.match == "rank")


def _variable(name: str, value: str) -> Setting:
    spec = variables.find(name)
    return Setting(
        family="ENV",
        name=name,
        value=value,
        affects=areas_of(name),
        known=spec is not None and bool({"slow", "breaks"} & set(spec.risk)),
        why=spec.does if spec else "",
        source=spec.source if spec else "",
    )


def _versions(values: Mapping[str, str]) -> Group:
    return Group(
        settings=tuple(
            Setting(
                family="VER",
                name=name,
                value=value,
                affects=AREAS_OF_VERSION.get(name, ()),
                known=name in AREAS_OF_VERSION,
            )
            for name, value in values.items()
        )
    )


@dataclass(frozen=True)
class Field:
    """A field of a fact: how people call it, and how its value is shown."""

    path: str  # below the thing: system.kernel
    name: str
    affects: tuple[str, ...] = ()
    known: bool = True
    shown: Callable[[Any], str] = str


def _yes(value: bool) -> str:
    return "on" if value else "off"


def _count(values: Sequence[Any]) -> str:
    return str(len(values))


def _gib(value: int) -> str:
    return "unlimited" if value < 0 else f"{value / 2**30:.1f} GiB"


def _joined(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values)) or "none"


HOST_FIELDS = (
    Field("product", "machine", AREAS),
    Field("system.kernel", "kernel", AREAS),
    Field("system.command_line", "kernel command line", AREAS),
    Field("system.distribution", "distribution", AREAS, known=False),
    Field("system.virtual", "virtualisation", AREAS),
    Field("system.iommu", "IOMMU", (COMMUNICATION, DATA)),
    Field("system.bios_date", "BIOS date", AREAS),
    Field("system.numa_nodes", "NUMA nodes", (HOST, COMMUNICATION)),
    Field("system.hugepages_total", "huge pages", (COMMUNICATION,)),
    Field("system.memory_bytes", "memory", (DATA, HOST), shown=_gib),
    Field("cpu.model", "CPU", (HOST, DATA, COMPUTE)),
    Field("cpu.cores", "CPU cores", (HOST, DATA, COMPUTE)),
    Field("cpu.governor", "CPU governor", (HOST, DATA, COMPUTE)),
    Field("cpu.smt", "hyper-threading", (HOST, DATA), shown=_yes),
    Field("cpu.numa_balancing", "NUMA balancing", (HOST, COMMUNICATION), shown=_yes),
    Field("cpu_count", "CPUs that the job may use", (HOST, DATA, COMPUTE)),
    Field("limits.cgroup_cpus", "CPU quota", (HOST, DATA, COMPUTE), shown=lambda v: "none" if v < 0 else f"{v:g} CPUs"),
    Field("limits.cgroup_memory_bytes", "memory limit", (HOST, DATA), shown=_gib),
    Field("limits.memlock_bytes", "memlock limit", (COMMUNICATION,), shown=_gib),
    Field("limits.shm_bytes", "/dev/shm", (COMMUNICATION, DATA), shown=_gib),
    Field("limits.nofile", "open files limit", (COMMUNICATION, DATA)),
    Field("container.kind", "container", AREAS),
    Field("container.image", "container image", AREAS),
    Field("container.own_network", "network of its own", (COMMUNICATION,), shown=_yes),
)
GPU = (
    Field("name", "model"),
    Field("power_limit_w", "power limit", shown=lambda v: f"{v:g} W"),
    Field("app_clock_mhz", "application clock", shown=lambda v: f"{v} MHz"),
    Field("ecc", "ECC", shown=_yes),
    Field("mig", "MIG", shown=_yes),
    Field("persistence", "persistence mode", shown=_yes),
    Field("compute_mode", "compute mode"),
    Field("pci_gen_max", "PCIe generation", (COMMUNICATION, DATA)),
    Field("pci_width", "PCIe width", (COMMUNICATION, DATA), shown=lambda v: f"x{v}"),
    Field("numa_node", "NUMA node", (HOST, COMMUNICATION)),
    Field("fabric_state", "NVLink fabric", (COMMUNICATION,)),
    Field("nvlinks", "NVLinks up", (COMMUNICATION,), shown=lambda links: str(sum(x.active is True for x in links))),
    Field("uuid", "device", known=False),
)
NIC = (
    Field("kind", "kind"),
    Field("gbit_per_s", "link rate", shown=lambda v: f"{v:g} Gbit/s"),
    Field("up", "link", shown=lambda up: "up" if up else "down"),
    Field("mtu", "MTU"),
    Field("active_mtu", "RDMA MTU"),
    Field("lanes", "lanes"),
    Field("driver", "driver"),
    Field("firmware", "firmware"),
    Field("numa_node", "NUMA node"),
    Field("gids", "GIDs", shown=_count),
    Field("peer_memory", "GPU memory"),
)
PCI = (
    Field("width", "link width", shown=lambda v: f"x{v}"),
    Field("gt_per_s_max", "link rate at most", shown=lambda v: f"{v:g} GT/s"),
    Field("acs", "ACS", shown=_joined),
    Field("ats", "ATS", shown=_yes),
    Field("driver", "driver", known=False),
)


def _host(host: Host) -> Iterator[Setting]:
    yield from _fields(host, "HST", HOST_FIELDS, (), "")
    default = [r.interface for r in host.routes or () if r.destination == "default"]
    if default:
        yield Setting(family="HST", name="default route", value=default[0], affects=(COMMUNICATION,))
    if host.gpus is not None:
        yield Setting(family="GPU", name="number of GPUs", value=str(len(host.gpus)), affects=(COMPUTE,))


def _fields(thing: Any, family: str, wanted: Iterable[Field], areas: tuple[str, ...], item: str) -> Iterator[Setting]:
    for f in wanted:
        value: Any = thing
        for part in f.path.split("."):
            value = getattr(value, part, None)
        if value is not None:
            yield Setting(
                family=family,
                name=f.name,
                value=f.shown(value),
                item=item,
                affects=f.affects or areas,
                known=f.known,
            )


def _things(
    family: str,
    things: Sequence[Any] | None,
    name: Callable[[Any], str],
    wanted: Iterable[Field],
    areas: tuple[str, ...],
) -> Group | None:
    if things is None:
        return None
    wanted = tuple(wanted)
    real = [t for t in things if not getattr(t, "virtual", False)]
    return Group(settings=tuple(s for t in real for s in _fields(t, family, wanted, areas, name(t))))


def _modules(host: Host) -> list[str] | None:
    if host.system is None or host.system.modules is None:
        return None
    return [m for m in host.system.modules if MODULES.match(m)]


def _listed(family: str, what: str, values: Iterable[str] | None, areas: tuple[str, ...]) -> Group | None:
    """Things that are there or not."""
    if values is None:
        return None
    settings = tuple(Setting(family=family, name=f"{what} {v}", value="there", affects=areas) for v in values)
    return Group(settings=settings, all_listed=True)


def _mounts(host: Host) -> Group | None:
    if host.mounts is None:
        return None
    return Group(
        settings=tuple(
            Setting(family="HST", name=f"mount {m.path}", value=f"{m.kind} from {m.source}", affects=(DATA, CHECKPOINT))
            for m in host.mounts
            if not m.path.startswith(STORAGE)
        ),
        all_listed=True,
    )
