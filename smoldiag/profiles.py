"""Machines that are sold under a name: cloud_profiles/*.toml -> CloudProfile, and which of them a host is.

A file may extend one of cloud_profiles/shared/: its own entries come first, and the first that fits counts. What
identifies a machine stands before the first list of a file, so that only that much is parsed to recognise one.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import tomllib

from smoldiag.errors import SmoldiagError
from smoldiag.facts import Gpu, Host, Nic, PciDevice, Transport
from smoldiag.facts.cloud import CloudHardware, CloudProfile, Detected, ExpectedRate, Marks, Size
from smoldiag.facts.reference import Hardware
from smoldiag.knowledge import busbw
from smoldiag.knowledge import hardware as specs
from smoldiag.paths import CLOUD_PROFILES

RDMA_KINDS = ("infiniband", "roce", "efa")
CLASS_OF_GPU = {name: spec.gpu_class for name, spec in specs.GPUS.items()}
USERS_FOLDER = "SMOLDIAG_PROFILES"
MAX_FILE_BYTES = 2**20
FABRIC_GBIT_PER_S = 200  # from here on a port is one of a compute network; frontends and accelerated ports have less
EFA_IDS = "1d0f:efa?"  # amzn-drivers kernel/linux/efa: efa0 to efa3
GOOGLE_VENDOR = "1ae0"
GVNIC_ID = "1ae0:0042"
NVIDIA_VENDOR = "10de"
DISPLAY_CLASSES = ("0x0302", "0x0300")  # 3D controller, VGA controller
INFINIBAND_CLASS = "0x0207"
MELLANOX_VENDOR = "15b3"
SHOWN_DMI = ("sys_vendor", "product_name", "product_version", "board_vendor", "bios_vendor", "chassis_asset_tag")


# -- reading


def names() -> tuple[str, ...]:
    return tuple(heads())


@cache
def heads() -> dict[str, CloudProfile]:
    """Every profile without its lists, by name; the user's own replace ours of the same name."""
    return _heads_of(CLOUD_PROFILES) | users_heads()


@cache
def users_heads() -> dict[str, CloudProfile]:
    """Those of the folder that SMOLDIAG_PROFILES names."""
    folder = _users_folder()
    return _heads_of(folder) if folder else {}


def _heads_of(folder: Path) -> dict[str, CloudProfile]:
    files = sorted(folder.glob("*.toml"))
    found = (_profile(path, _toml(_text(path).partition("\n[[")[0], path)) for path in files)
    return {profile.name: profile for profile in found}


@cache
def load(name: str) -> CloudProfile:
    """The whole profile of that name, or of that file."""
    if name.endswith(".toml"):
        return _full(Path(name))
    users = _users_folder()
    folder = users if users and (users / f"{name}.toml").is_file() else CLOUD_PROFILES
    return _full(folder / f"{name}.toml")


def find(name: str) -> CloudProfile:
    """By its name, by an instance's name, by the name that published figures have for it, or a file of the user's."""
    if name.endswith(".toml"):
        return load(name)
    wanted = name.lower()
    for profile in heads().values():
        known = (profile.name, *profile.instances, *profile.published_as)
        known += tuple(published.partition(" ")[2] for published in profile.published_as)
        if wanted in (k.lower() for k in known if k):
            return load(profile.name)
    for profile in heads().values():
        if has_instance(profile, wanted):
            return load(profile.name)
    raise SmoldiagError(f"no profile is named {name[:80]!r}", hint="known: " + ", ".join(names()))


def _users_folder() -> Path | None:
    named = os.environ.get(USERS_FOLDER)
    return Path(named) if named else None


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SmoldiagError(f"{path} is larger than 1 MiB", hint="a profile is a small TOML file")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SmoldiagError(f"can't read the profile {path}: {said}", hint="known: " + ", ".join(_ours())) from None


def _ours() -> list[str]:
    return sorted(path.stem for path in CLOUD_PROFILES.glob("*.toml"))


def _toml(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SmoldiagError(f"{path} is not TOML: {error}") from None


def _full(path: Path) -> CloudProfile:
    table = _toml(_text(path), path)
    for base in table.pop("extends", ()):
        table = _merged(table, _shared(str(base)))
    own = _profile(path, _with_sources(table))
    return replace(own, expected=(*own.expected, *_published(own)))


@cache
def _shared(name: str) -> dict[str, Any]:
    path = CLOUD_PROFILES / "shared" / f"{name}.toml"
    return _toml(_text(path), path)


def _merged(own: dict[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Own entries first. An entry of the base that has the same identity as one of ours is left out."""
    merged = dict(own)
    for key, value in base.items():
        if key in ("cloud_marks", "extends"):
            continue
        if isinstance(value, list) and key in own:
            taken = {_identity(entry) for entry in own[key]}
            merged[key] = [*own[key], *(entry for entry in value if _identity(entry) not in taken)]
        elif isinstance(value, dict) and key in own:
            merged[key] = {**value, **own[key]}
        else:
            merged.setdefault(key, value)
    return merged


def _identity(entry: Any) -> tuple[str, ...]:
    if not isinstance(entry, dict):
        return (str(entry),)
    name = next((str(entry[k]) for k in ("name", "what", "line") if k in entry), "")
    return (
        name,
        *map(str, entry.get("values", ())),
        *(str(entry[k]) for k in ("launcher", "value", "minimum") if k in entry),
    )


def _with_sources(table: dict[str, Any]) -> dict[str, Any]:
    """Short names of sources in the words that `sources` gives for them."""
    known = table.pop("sources", {})
    if not isinstance(known, dict):
        return table

    def spelled(value: Any) -> Any:
        if isinstance(value, list):
            return [spelled(v) for v in value]
        if isinstance(value, dict):
            return {k: _spelled_out(v, known) if k == "source" else spelled(v) for k, v in value.items()}
        return value

    return {key: spelled(value) for key, value in table.items()}


def _spelled_out(source: Any, known: Mapping[str, Any]) -> str:
    parts = []
    for part in str(source).split(";"):
        alias, _, rest = part.strip().partition(" ")
        parts.append(f"{known[alias]}{', ' + rest if rest else ''}" if alias in known else part.strip())
    return "; ".join(parts)


def _profile(path: Path, table: dict[str, Any]) -> CloudProfile:
    table = {key: value for key, value in table.items() if key not in ("extends", "sources")}
    table.setdefault("name", path.stem)
    try:
        profile: CloudProfile = _filled(msgspec.convert(table, CloudProfile))
    except msgspec.ValidationError as error:
        raise SmoldiagError(
            f"{path} is not a profile: {error}", hint="smoldiag cloud new --from-host drafts one"
        ) from None
    if extra := _extra(table, msgspec.to_builtins(profile)):
        raise SmoldiagError(f"{path}: {extra} is not a key of a profile", hint="see docs/cloud.md")
    return profile


def _filled(record: Any) -> Any:
    """With the defaults as values of its own: msgspec leaves them to the class, and then out of what it encodes."""
    if isinstance(record, tuple):
        return tuple(map(_filled, record))
    if isinstance(record, dict):
        return {key: _filled(value) for key, value in record.items()}
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        fields = dataclasses.fields(record)
        return replace(record, **{f.name: _filled(getattr(record, f.name)) for f in fields})
    return record


def _extra(given: Any, taken: Any) -> str | None:
    """The first key that was given and that the record did not take."""
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(given, dict):
        if extra := [str(key) for key in given if key not in taken]:
            return extra[0]
        pairs = ((value, taken[key]) for key, value in given.items())
    elif isinstance(given, list):
        pairs = zip(given, taken, strict=True)
    return next((found for g, t in pairs if (found := _extra(g, t))), None)


def _published(profile: CloudProfile) -> Iterator[ExpectedRate]:
    """The measured rows of knowledge/busbw.csv for these instances."""
    for row in busbw.rows():
        ours = row.instance in profile.published_as and row.gpu == profile.hardware.gpu_class
        if ours and row.use == "measured" and row.nodes and row.size_bytes:
            yield ExpectedRate(
                collective=row.collective,
                nodes=row.nodes,
                gpus_per_node=row.gpus_per_node,
                size_bytes=row.size_bytes,
                busbw_gbs=row.busbw_gbs,
                two_node_artefact=row.collective == "all_reduce" and row.nodes == 2,
                nccl_version=row.nccl_version,
                source=row.source,
            )


def of_size(profile: CloudProfile, instance: str | None) -> CloudProfile:
    """The profile with the hardware of that instance."""
    size = next((s for name, s in profile.sizes.items() if instance and name.lower() == instance.lower()), None)
    return replace(profile, hardware=_sized(profile, size)) if size else profile


def _sized(profile: CloudProfile, size: Size) -> CloudHardware:
    given = {f.name: getattr(size, f.name) for f in dataclasses.fields(size)}
    return replace(profile.hardware, **{key: value for key, value in given.items() if value is not None})


# -- recognising


def recognise(host: Host) -> CloudProfile | None:
    """The profile of this host, with the hardware of its size; None where it can't be told."""
    found = detect(host)
    return of_size(load(found.profile), found.instance) if found.profile else None


def of_hosts(hosts: Sequence[Host]) -> CloudProfile | None:
    """The profile of all of them; None where they differ, or one can't be told."""
    found = [recognise(host) for host in hosts]
    return found[0] if found and all(f is not None and f == found[0] for f in found) else None


def detect(host: Host, *, metadata: Mapping[str, str] | None = None, variables: Iterable[str] = ()) -> Detected:
    """Which cloud and instance this is: by DMI, files and devices, then by what its metadata service said.

    `metadata` has "instance_type"; `variables` are the names that are set. Nothing is recognised by GPUs and NICs
    alone: many providers sell the same board.
    """
    saw = tuple(_seen(host, metadata))
    if mine := next((p for p in users_heads().values() if _bears(p.recognise, host)), None):
        return _detected(mine, _only_size(mine, host), "certain", saw)
    cloud = cloud_of(host, variables=variables)
    if cloud is None:
        return Detected(saw=saw)
    instance = _instance_name(host, metadata)
    family = [p for p in heads().values() if p.cloud == cloud]
    if instance:  # a name that no profile has is another instance, whatever it is like
        named = next((p for p in family if has_instance(p, instance)), None)
        unnamed = Detected(cloud=cloud, instance=instance, confidence="certain", saw=saw)
        return _detected(named, instance, "certain", saw) if named else unnamed
    by_firmware = [p for p in family if p.recognise.dmi and _dmi_fits(p.recognise, dmi_of(host))]
    if len(by_firmware) == 1:
        return _detected(by_firmware[0], _only_size(by_firmware[0], host), "certain", saw)
    likeness = {p.name: _likeness(p, host) for p in by_firmware or family}
    best = [p for p in family if likeness.get(p.name) and likeness[p.name] == max(likeness.values())]
    if len(best) == 1:
        return _detected(best[0], _only_size(best[0], host), "likely", saw)
    if best:
        saw += ("fits " + ", ".join(p.name for p in best),)
    return Detected(cloud=cloud, confidence="certain", saw=saw)


def cloud_of(host: Host, *, variables: Iterable[str] = ()) -> str | None:
    """The cloud whose marks this host bears."""
    names = frozenset(variables)
    for path in sorted((CLOUD_PROFILES / "shared").glob("*.toml"), key=lambda p: (p.stem == "onprem", p.stem)):
        table = _shared(path.stem)
        for alternative in table.get("cloud_marks", ()):
            if _bears(msgspec.convert(alternative, Marks), host, names):
                return str(table["cloud"])
    return None


def has_marks(profile: CloudProfile) -> bool:
    """Whether a host of this cloud could be recognised at all."""
    path = CLOUD_PROFILES / "shared" / f"{profile.cloud}.toml"
    return bool(profile.recognise.dmi) or (path.is_file() and bool(_shared(path.stem).get("cloud_marks")))


def _detected(profile: CloudProfile, instance: str | None, confidence: str, saw: tuple[str, ...]) -> Detected:
    return Detected(
        cloud=profile.cloud,
        family=profile.family,
        profile=profile.name,
        instance=instance,
        confidence=confidence,
        saw=saw,
    )


def _bears(marks: Marks, host: Host, variables: frozenset[str] = frozenset()) -> bool:
    """All of them."""
    answers = []
    if marks.dmi:
        answers.append(_dmi_fits(marks, dmi_of(host)))
    if marks.files:
        answers.append(bool(set(marks.files) & set(host.files or ())))
    if marks.pci:
        answers.append(_pci_fits(marks, host))
    if marks.rdma_devices:
        answers.append(_devices_fit(marks, host))
    if marks.variables:
        answers.append(set(marks.variables) <= variables)
    return bool(answers) and all(answers)


def dmi_of(host: Host) -> Mapping[str, str]:
    """As sysfs names the fields; from the product alone where nothing else is known."""
    if host.dmi:
        serial = (host.ids or {}).get("serial", "")
        return {**host.dmi, "product_serial": host.dmi.get("product_serial", serial)}
    vendor, _, product = (host.product or "").rpartition(" ")
    return {key: value for key, value in (("sys_vendor", vendor), ("product_name", product)) if value}


def _dmi_fits(marks: Marks, dmi: Mapping[str, str]) -> bool:
    return bool(dmi) and all(
        any(_like(dmi.get(field, ""), pattern) for pattern in patterns) for field, patterns in marks.dmi.items()
    )


def _pci_fits(marks: Marks, host: Host) -> bool:
    count = sum(any(_like(_pci_id(d), pattern) for pattern in marks.pci) for d in host.pci or ())
    return count == marks.pci_count if marks.pci_count is not None else count > 0


def _devices_fit(marks: Marks, host: Host) -> bool:
    names = [nic.name for nic in host.nics or () if nic.kind in RDMA_KINDS]
    return bool(names) and any(_like(name, marks.rdma_devices) for name in names)


def _like(value: str, pattern: str) -> bool:
    return fnmatchcase(value.strip().lower(), pattern.lower())


def _pci_id(device: PciDevice) -> str:
    return f"{device.vendor}:{device.device}".lower().replace("0x", "")


def _instance_name(host: Host, metadata: Mapping[str, str] | None) -> str | None:
    said = (metadata or {}).get("instance_type")
    product = dmi_of(host).get("product_name", "")
    name = said or (product if re.fullmatch(r"(ml\.)?[a-z][\w-]*\.[\w-]*(xlarge|metal[\w-]*)", product) else None)
    return name.removeprefix("ml.") if name else None


def has_instance(profile: CloudProfile, instance: str) -> bool:
    """Whether a name is one of an instance of this family: exactly, or by a pattern of it."""
    known = (*profile.instances, *profile.sizes, *profile.recognise.metadata)
    return any(_like(instance, pattern) for pattern in known)


def _likeness(profile: CloudProfile, host: Host) -> int:
    """0: the hardware contradicts. More where more of it is as the profile says, in any of its sizes."""
    sizes = (profile.hardware, *(_sized(profile, size) for size in profile.sizes.values()))
    best = max(_likeness_of(h, host) for h in sizes)
    return best + _is_marked(profile.recognise, host) if best else 0


def _is_marked(marks: Marks, host: Host) -> bool:
    """Files or devices that no other family of this cloud has."""
    return bool(set(marks.files) & set(host.files or ())) or bool(marks.pci and _pci_fits(marks, host))


def _likeness_of(hardware: CloudHardware, host: Host) -> int:
    gpus = gpu_names(host)
    if not gpus or (hardware.gpu and not set(gpus) <= set(hardware.gpu)):
        return 0
    if hardware.gpus is not None and not hardware.gpus < 2 * len(gpus) <= 2 * hardware.gpus:  # some may have failed
        return 0
    nics = data_nics(host.nics, host.pci, hardware)
    if nics and hardware.nics == 0 and hardware.nic_kind in RDMA_KINDS:
        return 0
    others = (nic.gbit_per_s or 0 for nic in _rdma(host.nics, host.pci))
    if not nics and hardware.nics and max(others, default=0) >= FABRIC_GBIT_PER_S:
        return 0
    rates = {nic.gbit_per_s for nic in nics if nic.gbit_per_s}
    documented = {hardware.nic_gbit_per_s, *hardware.nic_rates_seen} - {None}
    if hardware.nic_kind in ("infiniband", "roce") and documented and rates - documented:
        return 0
    up = sum(nic.up is not False for nic in nics)
    as_many = hardware.nics is not None and hardware.nics in (len(nics), up)
    named = _has_named(_rdma(host.nics, host.pci), hardware)
    return 2 + 4 * (len(gpus) == hardware.gpus) + 4 * as_many + named


def _only_size(profile: CloudProfile, host: Host) -> str | None:
    """The instance, where one alone of the family is like this host."""
    sizes = {name: _likeness_of(_sized(profile, size), host) for name, size in profile.sizes.items()}
    if not sizes:
        return profile.instances[0] if len(profile.instances) == 1 else None
    best = max(sizes.values())
    like = [name for name, score in sizes.items() if score == best and best]
    return like[0] if len(like) == 1 else None


def _seen(host: Host, metadata: Mapping[str, str] | None) -> Iterator[str]:
    dmi = dmi_of(host)
    shown = [f"{field} {dmi[field]!r}" for field in SHOWN_DMI if dmi.get(field)]
    yield "DMI: " + (", ".join(shown) if shown else f"not readable ({host.unread.get('dmi', 'no /sys/class/dmi/id')})")
    gpus = gpu_names(host)
    yield "GPUs: " + (_counted(gpus) if gpus else "none seen")
    devices = _rdma(host.nics, host.pci)
    nics = [f"{nic.gbit_per_s:g} Gb/s {nic.kind}" if nic.gbit_per_s else nic.kind for nic in devices]
    yield "RDMA devices: " + (_counted(nics) if nics else "none seen")
    google = [_pci_id(d) for d in host.pci or () if d.vendor.lower().removeprefix("0x") == GOOGLE_VENDOR]
    if google:
        yield "Google's PCI devices: " + _counted(google)
    if host.files:
        yield "files: " + ", ".join(host.files)
    for key, value in (metadata or {}).items():
        yield f"metadata service: {key} {value}"


def _counted(items: Iterable[str]) -> str:
    listed = list(items)
    return ", ".join(f"{listed.count(item)} x {item}" for item in dict.fromkeys(listed))


def gpu_names(host: Host) -> tuple[str, ...]:
    return names_of_gpus(host.gpus, host.pci)


def names_of_gpus(gpus: Sequence[Gpu] | None, pci: Sequence[PciDevice] | None) -> tuple[str, ...]:
    """As NVML names them; from the PCI tree where NVML was not asked."""
    if gpus is not None:
        return tuple(gpu.name for gpu in gpus)
    found = (d for d in pci or () if _is_gpu(d))
    return tuple(specs.GPU_OF_PCI_ID.get(_pci_id(d).partition(":")[2], f"NVIDIA GPU {_pci_id(d)}") for d in found)


def _is_gpu(device: PciDevice) -> bool:
    """NVSwitches and audio functions have NVIDIA's vendor id, too."""
    vendor, _, model = _pci_id(device).partition(":")
    return vendor == NVIDIA_VENDOR and (
        device.kind.startswith(DISPLAY_CLASSES) or (not device.kind and model in specs.GPU_OF_PCI_ID)
    )


def _rdma(nics: Sequence[Nic] | None, pci: Sequence[PciDevice] | None) -> tuple[Nic, ...]:
    """The verbs devices; from the PCI tree where sysfs lists none."""
    listed = tuple(nic for nic in nics or () if nic.kind in RDMA_KINDS and not nic.virtual)
    return listed or tuple(nic for device in pci or () for nic in _nic_of_pci(device))


def _nic_of_pci(device: PciDevice) -> Iterator[Nic]:
    if _like(_pci_id(device), EFA_IDS):
        yield Nic(name=device.address, kind="efa")
    elif _pci_id(device).startswith(MELLANOX_VENDOR) and device.kind.startswith(INFINIBAND_CLASS):
        yield Nic(name=device.address, kind="infiniband")


def data_nics(nics: Sequence[Nic] | None, pci: Sequence[PciDevice] | None, hardware: CloudHardware) -> tuple[Nic, ...]:
    """The NICs of the compute network, down ones included: by name where the profile names them, else by rate."""
    if hardware.nic_kind == "ethernet":
        found = [d for d in pci or () if _like(_pci_id(d), GVNIC_ID)]
        most = [nic for nic in nics or () if nic.kind == "ethernet" and not nic.virtual]
        count = max(len(found), len(most)) - 1  # one of them is the host's
        return tuple(Nic(name=f"gvnic{i}", kind="ethernet") for i in range(max(count, 0)))
    devices = _rdma(nics, pci)
    if _has_named(devices, hardware):  # images number the devices differently: all of them, or none
        return tuple(nic for nic in devices if nic.name in hardware.nic_devices)
    of_kind = tuple(nic for nic in devices if nic.kind == hardware.nic_kind)
    fastest = max((nic.gbit_per_s or 0 for nic in of_kind if nic.up is not False), default=0)
    return tuple(nic for nic in of_kind if (nic.gbit_per_s or 0) == fastest or nic.up is False)


def _has_named(devices: Sequence[Nic], hardware: CloudHardware) -> bool:
    return bool(hardware.nic_devices) and set(hardware.nic_devices) <= {nic.name for nic in devices}


def compute_nics(host: Host) -> tuple[Nic, ...]:
    """The RDMA devices of the highest rate; slower ones are for storage and management."""
    up = [nic for nic in host.nics or () if nic.kind in RDMA_KINDS and nic.up is not False and not nic.virtual]
    fastest = max((nic.gbit_per_s or 0 for nic in up), default=0)
    return tuple(nic for nic in up if (nic.gbit_per_s or 0) == fastest)


# -- what a profile expects


def hardware(
    hosts: Sequence[Host],
    *,
    backend: str,
    profile: CloudProfile | None = None,
    transport: Transport | None = None,
    interface: str | None = None,
) -> Hardware:
    """What the hosts have in common; a rate on which they differ is that of the weakest."""
    profile = profile or (recognise(hosts[0]) if hosts else None)
    gpus = {gpu.name for host in hosts for gpu in host.gpus or ()} if backend == "nccl" else set()
    gpu = next(iter(gpus)) if len(gpus) == 1 else None
    spec = specs.gpu(gpu)
    counts = {len(host.gpus) for host in hosts if host.gpus}
    rates = [_nic_rate(host, backend, transport, interface) for host in hosts]
    known = [rate for rate in rates if rate is not None]
    nic_gb_per_s: float | None
    if known and len(known) == len(hosts):
        nic_gb_per_s, nics = min(known)
    elif profile and backend == "nccl":
        nic_gb_per_s, nics = profile.hardware.nic_gb_per_s, profile_nics(profile)
    else:
        nic_gb_per_s, nics = None, ""
    mnnvl = transport.mnnvl if transport and transport.mnnvl is not None else bool(spec and spec.mnnvl)
    return Hardware(
        gpu=gpu,
        gpu_class=spec.gpu_class if spec else profile.hardware.gpu_class if profile and gpu else None,
        gpus_per_node=min(counts, default=None),
        nvlink_gb_per_s=spec.nvlink_gb_per_s if spec else None,
        nvlink_bridge=spec.nvlink_bridge if spec else 0,
        nvls=spec.nvls if spec else None,
        nvswitch=bool(spec and spec.nvswitch),
        mnnvl=mnnvl,
        pcie_gb_per_s=spec.pcie_gb_per_s if spec else None,
        nic_gb_per_s=nic_gb_per_s,
        nics=nics,
        instances=profile.published_as if profile else (),
        host_class=hosts[0].product if hosts else None,
    )


def profile_nics(profile: CloudProfile) -> str:
    """8 x 400 Gb/s infiniband"""
    h = profile.hardware
    return _shown(h.nics, h.nic_gbit_per_s, h.nic_kind) if h.nics and h.nic_gbit_per_s else ""


def _nic_rate(host: Host, backend: str, transport: Transport | None, interface: str | None) -> tuple[float, str] | None:
    if backend == "nccl":
        rdma = compute_nics(host)
        if rdma and rdma[0].gbit_per_s:
            return _sum(rdma)
        interfaces = transport.nics if transport and transport.network == "Socket" else None
    else:
        interfaces = (interface,) if interface else None
    wires = [nic for nic in host.nics or () if nic.kind == "ethernet" and not nic.virtual and nic.up is not False]
    if interfaces is not None:
        wires = [nic for nic in wires if nic.name in interfaces]
        if len(wires) != len(interfaces):  # one of them is virtual, and what is below it is not known
            return None
    return _sum(tuple(wires)) if len(wires) == 1 or interfaces else None


def _sum(nics: tuple[Nic, ...]) -> tuple[float, str] | None:
    if not nics or any(not nic.gbit_per_s for nic in nics):
        return None
    total = sum(nic.gbit_per_s or 0 for nic in nics)
    return specs.nic_gb_per_s(total * 1000), _shown(len(nics), nics[0].gbit_per_s or 0, nics[0].kind)


def _shown(count: int, gbit_per_s: float, kind: str) -> str:
    return f"{count} x {gbit_per_s:g} Gb/s {kind}"
