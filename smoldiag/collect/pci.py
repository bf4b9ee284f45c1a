"""The PCI tree, from sysfs: links, bridges, ACS, error counters."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from smoldiag.collect import files
from smoldiag.facts import PciDevice

ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
PCI_EXPRESS = 0x10  # capability id; PCI Express Base Specification, 7.5
ACS = 0x000D  # extended capabilities
ATS = 0x000F
ACS_FLAGS = ("SrcValid", "TransBlk", "ReqRedir", "CmpltRedir", "UpstreamFwd", "EgressCtrl", "DirectTrans")
PORT_TYPES = {4: "root", 5: "upstream", 6: "downstream"}
MOST_CAPABILITIES = 96
KEPT = ("0x01", "0x02", "0x03", "0x06", "0x12", "0x0b")  # storage, network, display, bridges, accelerators, processors
STANDARD_BYTES = 64  # of the header; without root nothing behind it is readable
EXTENDED = 256  # where extended capabilities begin
CONFIGURED = ("0x02", "0x03", "0x06", "0x12")  # classes whose configuration space is read


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the configuration space of one device says; None = not readable."""

    port: str | None = None
    bus: int | None = None  # that a bridge leads to
    acs_capable: bool | None = None
    acs: tuple[str, ...] | None = None
    ats: bool | None = None


GOOGLE = "0x1ae0"  # whose aperture devices tell an A3 Mega, whatever their class is


def devices(root: Path) -> tuple[PciDevice, ...]:
    """GPUs, network, storage and the bridges above them; not what lies inside processors. OSError: no bus at all."""
    folders = [f for f in files.listed(root / "sys/bus/pci/devices") if ADDRESS.fullmatch(f.name)]
    if not folders:
        folders = _walked(root / "sys/devices")
    if not folders:
        raise OSError("no devices below /sys/bus/pci")
    folders = [f for f in folders if _is_kept(f)]
    configs = {
        f.name: configuration(f / "config")
        for f in folders
        if (files.text(f / "class", 16) or "").startswith(CONFIGURED)
    }
    above = _bridges(folders, configs)
    return tuple(_device(f, configs.get(f.name, Config()), above) for f in folders)


def _is_kept(folder: Path) -> bool:
    kind = files.text(folder / "class", 16)
    return kind is None or kind.startswith(KEPT) or files.text(folder / "vendor", 16) == GOOGLE


def address_of(folder: Path) -> str | None:
    """Address of the PCI device that a folder of sysfs (or a link to it) stands for."""
    resolved = folder.resolve().name
    if ADDRESS.fullmatch(resolved):
        return resolved
    match = re.search(r"^PCI_SLOT_NAME=(\S+)$", files.text(folder / "uevent", 4096) or "", re.MULTILINE)
    return match[1] if match else None


def driver_of(folder: Path) -> str | None:
    """Name of the driver that is bound to a device of sysfs."""
    match = re.search(r"^DRIVER=(\S+)$", files.text(folder / "uevent", 4096) or "", re.MULTILINE)
    return files.link_name(folder / "driver") or (match[1] if match else None)


def _walked(base: Path) -> list[Path]:
    """Devices by their place in the tree, for trees without /sys/bus."""
    found: list[Path] = []
    left = [f for f in files.listed(base) if f.name.startswith("pci")]
    while left:
        for f in files.listed(left.pop()):
            if ADDRESS.fullmatch(f.name) and not f.is_symlink():
                found.append(f)
                left.append(f)
    return sorted(found, key=lambda f: f.name)


def _device(folder: Path, config: Config, above: dict[tuple[str, int], str]) -> PciDevice:
    return PciDevice(
        address=folder.name,
        vendor=_hex(folder / "vendor"),
        device=_hex(folder / "device"),
        kind=files.text(folder / "class", 16) or "",
        subsystem=":".join(filter(None, (_hex(folder / "subsystem_vendor"), _hex(folder / "subsystem_device"))))
        or None,
        parent=_parent(folder, above),
        driver=driver_of(folder),
        numa_node=_not_negative(files.number(folder / "numa_node")),
        gt_per_s=_speed(folder / "current_link_speed"),
        gt_per_s_max=_speed(folder / "max_link_speed"),
        width=_width(folder / "current_link_width"),
        width_max=_width(folder / "max_link_width"),
        port=config.port,
        acs_capable=config.acs_capable,
        acs=config.acs,
        ats=config.ats,
        iommu_group=_group(folder),
        aer_fatal=_errors(folder / "aer_dev_fatal", "TOTAL_ERR_FATAL"),
        aer_nonfatal=_errors(folder / "aer_dev_nonfatal", "TOTAL_ERR_NONFATAL"),
        aer_correctable=_errors(folder / "aer_dev_correctable", "TOTAL_ERR_COR"),
        is_virtual_function=(folder / "physfn").exists(),
    )


def _hex(path: Path) -> str:
    return (files.text(path, 16) or "").removeprefix("0x")


def _not_negative(value: int | None) -> int | None:
    return value if value is not None and value >= 0 else None


def _speed(path: Path) -> float | None:
    """ "32.0 GT/s PCIe" -> 32.0; "Unknown speed" -> None."""
    match = re.match(r"([\d.]+) GT/s", files.text(path, 64) or "")
    return float(match[1]) if match else None


def _width(path: Path) -> int | None:
    """0 and 255 stand for a link that is not there."""
    match = re.match(r"x?(\d+)", files.text(path, 16) or "")
    return int(match[1]) if match and 0 < int(match[1]) < 255 else None


def _group(folder: Path) -> int | None:
    name = files.link_name(folder / "iommu_group")
    return int(name) if name and name.isdigit() else None


def _errors(path: Path, total: str) -> int | None:
    match = re.search(rf"^{total} (\d+)$", files.text(path, 8192) or "", re.MULTILINE)
    return int(match[1]) if match else None


def _parent(folder: Path, above: dict[tuple[str, int], str]) -> str | None:
    """By the place in the tree; where devices lie flat, by the bus that a bridge leads to."""
    name = folder.resolve().parent.name
    if ADDRESS.fullmatch(name):
        return name
    domain, bus, _ = folder.name.split(":")
    return above.get((domain, int(bus, 16)))


def _bridges(folders: list[Path], configs: dict[str, Config]) -> dict[tuple[str, int], str]:
    """(domain, bus) -> the bridge that leads to it."""
    found = {}
    for f in folders:
        if not (files.text(f / "class", 16) or "").startswith("0x0604"):
            continue
        bus = files.number(f / "secondary_bus_number") or configs.get(f.name, Config()).bus
        if bus:
            found[(f.name.split(":")[0], bus)] = f.name
    return found


def configuration(path: Path) -> Config:
    """Field by field: each read goes to the device, and all 4 KiB of it take milliseconds."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return Config()
    try:
        return _configuration(lambda at, size: os.pread(handle, size, at))
    except OSError:
        return Config()
    finally:
        os.close(handle)


def _configuration(read: Callable[[int, int], bytes]) -> Config:
    head = read(0, STANDARD_BYTES)
    if len(head) < STANDARD_BYTES:
        return Config()
    is_bridge = head[0x0E] & 0x7F == 1 or head[0x0B] == 0x06
    port, bus = _port_type(head, read), head[0x19] if is_bridge else None
    if len(read(EXTENDED, 4)) < 4:
        return Config(port=port, bus=bus)
    found = dict(_extended(read))
    acs, ats = found.get(ACS), found.get(ATS)
    return Config(
        port=port,
        bus=bus,
        acs_capable=acs is not None,
        acs=_flags(read(acs + 6, 2)) if acs else (),
        ats=bool(ats and int.from_bytes(read(ats + 6, 2), "little") >> 15),
    )


def _port_type(head: bytes, read: Callable[[int, int], bytes]) -> str | None:
    """What a bridge is, by its PCI Express capability."""
    if not head[0x06] & 0x10:
        return None
    at = head[0x34] & 0xFC
    for _ in range(MOST_CAPABILITIES):
        entry = read(at, 4) if at >= STANDARD_BYTES else b""
        if len(entry) < 4:
            return None
        if entry[0] == PCI_EXPRESS:
            return PORT_TYPES.get(entry[2] >> 4)
        at = entry[1] & 0xFC
    return None


def _extended(read: Callable[[int, int], bytes]) -> Iterator[tuple[int, int]]:
    """(id, place) of the extended capabilities."""
    at = EXTENDED
    for _ in range(MOST_CAPABILITIES):
        header = int.from_bytes(read(at, 4), "little") if at >= EXTENDED else 0
        if header in (0, 0xFFFFFFFF):
            return
        yield header & 0xFFFF, at
        at = header >> 20


def _flags(control: bytes) -> tuple[str, ...]:
    bits = int.from_bytes(control, "little")
    return tuple(name for bit, name in enumerate(ACS_FLAGS) if bits >> bit & 1)
