"""Descriptions of a machine's inside: `nvidia-smi topo -m`, NCCL topology XML, lstopo XML."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from xml.parsers import expat

from smoldiag.errors import SmoldiagError
from smoldiag.facts import TopoDevice, Topology, TopoNode, TopoPath
from smoldiag.model import topology as model

MAX_XML = 8 << 20  # characters; NCCL admits 256 elements, a large lstopo has some thousand
MAX_ELEMENTS = 50_000
MAX_DEPTH = 64
MAX_DEVICES = 256  # columns of a matrix
MAX_LINES = 20_000

NCCL_NAME = {"X": "LOC", "PIX": "PIX", "PXB": "PXB", "PHB": "PHB", "NODE": "PHB", "SYS": "SYS", "SOC": "SYS"}
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_CELL = re.compile(r"^(?:X|NV\d{1,3}|PIX|PXB|PHB|NODE|SYS|SOC|N/A)$")
_DEVICE = re.compile(r"^[A-Za-z][\w.:+-]{1,40}$")
_LEGEND = re.compile(r"\b(NIC\d{1,3}):\s*([A-Za-z][\w.:-]{0,40})")
_GPU = re.compile(r"^GPU(\d{1,3})$")


def parse(text: str, *, name: str) -> Topology:
    """Whichever of them it is. Raises SmoldiagError where it is none."""
    if text.lstrip("\ufeff \t\r\n").startswith("<"):
        root = _xml(text, name)
        if root.tag == "system":
            return nccl_xml(root, source=f"{name}: NCCL topology XML")
        if root.tag == "topology":
            return lstopo_xml(root, source=f"{name}: lstopo XML")
        raise SmoldiagError(
            f"{name} is XML of <{root.tag[:40]}>, not of a topology", hint="NCCL_TOPO_DUMP_FILE, or lstopo FILE.xml"
        )
    found = smi_matrix(text, source=f"{name}: nvidia-smi topo -m")
    if found is None:
        raise SmoldiagError(
            f"{name} is no topology", hint="nvidia-smi topo -m, an XML of NCCL_TOPO_DUMP_FILE, or lstopo FILE.xml"
        )
    return model.with_relays(found)


def smi_matrix(text: str, *, source: str = "nvidia-smi topo -m") -> Topology | None:
    """The matrix of `nvidia-smi topo -m` of any version; whole, or as much of it as was posted. None: there is none."""
    lines = [_ANSI.sub("", line) for line in text.splitlines()[:MAX_LINES]]
    head = next(((i, found) for i, line in enumerate(lines) if (found := _header(line))), None)
    if head is None:
        return None
    start, columns = head
    names = dict(_LEGEND.findall("\n".join(lines[start:])))
    rows: dict[str, list[str]] = {}
    near: dict[str, tuple[int, ...]] = {}
    for line in lines[start + 1 :]:
        if (row := _row(line)) and row[0] not in rows:
            rows[row[0]] = row[1][: len(columns)]
            near[row[0]] = _numa(row[1][len(columns) :] if len(row[1]) > len(columns) else row[2])
        elif rows and _header(line):
            break  # the matrix of another host
    if not rows:
        return None
    known = list(dict.fromkeys((*columns, *rows)))
    return Topology(
        source=source,
        devices=tuple(_device(name, names, near) for name in known),
        paths=tuple(_paths(columns, rows, names)),
    )


def _header(line: str) -> list[str] | None:
    """Names of the columns; the first is a GPU."""
    before = re.split(r"\s+CPU Affinity|\s+CPU\b", line, maxsplit=1)[0]
    tokens = [t for t in before.split() if t.strip(".")]
    start = next((i for i, t in enumerate(tokens) if _GPU.match(t)), None)
    if start is None or start > 3 or len(tokens) - start > MAX_DEVICES:  # a log may put a few words before it
        return None
    names = tokens[start:]
    alone = len(names) == 1 and "CPU Affinity" in line
    are_devices = all(_DEVICE.match(t) and not _CELL.match(t) for t in names)
    return names if are_devices and (alone or len(names) > 1) else None


def _row(line: str) -> tuple[str, list[str], list[str]] | None:
    """(device, cells, what stands behind them)."""
    tokens = line.split()
    for i, (name, cell) in enumerate(pairwise(tokens[:5])):  # a log may put a few words before it
        if _DEVICE.match(name) and not _CELL.match(name) and _CELL.match(cell):
            cells = []
            for token in tokens[i + 1 :]:
                if not _CELL.match(token):
                    break
                cells.append(token)
            return name, cells, tokens[i + 1 + len(cells) :]
    return None


def _numa(behind: list[str]) -> tuple[int, ...]:
    """Behind the CPU affinity: 0, or 0-1 where the machine does not tell which. Older versions have no such column."""
    words = [w for w in behind if w != "..."]
    if len(words) < 2 or not re.fullmatch(r"\d{1,3}(?:-\d{1,3})?(?:,\d{1,3}(?:-\d{1,3})?)*", words[1]):
        return ()
    found: list[int] = []
    for part in words[1].split(","):
        low, _, high = part.partition("-")
        found += range(int(low), min(int(high or low), int(low) + 63) + 1)
    return tuple(found)


def _device(name: str, names: dict[str, str], near: dict[str, tuple[int, ...]]) -> TopoDevice:
    gpu = _GPU.match(name)
    return TopoDevice(
        name=names.get(name, name),
        kind="gpu" if gpu else "nic",
        index=int(gpu[1]) if gpu else None,
        numa=near.get(name) or None,
    )


def _paths(columns: list[str], rows: dict[str, list[str]], names: dict[str, str]) -> list[TopoPath]:
    found: dict[frozenset[str], TopoPath] = {}
    for row, cells in rows.items():
        for column, cell in zip(columns, cells, strict=False):
            ends = (names.get(row, row), names.get(column, column))
            if row == column or cell in ("X", "N/A") or not (_GPU.match(row) or _GPU.match(column)):
                continue
            kind = "NVL" if cell.startswith("NV") else NCCL_NAME[cell]
            path = TopoPath(ends=ends, kind=kind, written=cell if cell != kind else None)
            found.setdefault(frozenset(ends), path)
    return list(found.values())


# ---- XML


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    children: list["Element"] = field(default_factory=list)

    def each(self, tag: str) -> Iterator["Element"]:
        return (child for child in self.children if child.tag == tag)


def _xml(text: str, name: str) -> Element:
    """The elements. Entities are refused, so that nothing is fetched or multiplied; size and depth are bounded."""
    if len(text) > MAX_XML:
        raise SmoldiagError(f"{name} is too long for a topology: {len(text)} characters")
    top = Element("", {})
    stack, count = [top], 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if count > MAX_ELEMENTS or len(stack) > MAX_DEPTH:
            raise SmoldiagError(f"{name} has too many elements for a topology")
        element = Element(tag, attributes)
        stack[-1].children.append(element)
        stack.append(element)

    def refuse(*_: Any) -> None:
        raise SmoldiagError(f"{name} declares XML entities, which no topology does")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: stack.pop()
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(text.encode("utf-8", errors="replace").lstrip(), True)
    except expat.ExpatError as error:
        raise SmoldiagError(f"{name} is broken XML: {error}") from None
    return top.children[0]


def nccl_xml(root: Element, *, source: str) -> Topology:
    """What NCCL_TOPO_FILE is given, or NCCL_TOPO_DUMP_FILE gives."""
    machine = model.Machine()
    cpus = list(root.each("cpu"))
    found = _Found()
    for i, cpu in enumerate(cpus):
        node = f"cpu{cpu.attributes.get('numaid', i)}"
        machine.add(TopoNode(id=node, kind="cpu", label=f"NUMA node {cpu.attributes.get('numaid', i)}"))
        for child in cpu.children:
            _nccl_element(machine, child, above=node, numa=_int(cpu.attributes.get("numaid")), found=found)
    for gpu, element in found.gpus:
        _nccl_nvlinks(machine, gpu, element, {g.bus_id: g.name for g, _ in found.gpus})
    first = cpus[0].attributes if cpus else {}
    vendor = first.get("vendor") or first.get("arch")
    machine.sockets(model.sockets_gb_per_s(vendor=vendor, model_id=_int(first.get("modelid"))))
    return machine.topology(source, tells_nvlinks=any(element is not None for _, element in found.gpus))


@dataclass
class _Found:
    """GPUs and NICs in the order of the file."""

    gpus: list[tuple[TopoDevice, Element | None]] = field(default_factory=list)
    nics: int = 0


def _nccl_element(machine: model.Machine, e: Element, *, above: str, numa: int | None, found: _Found) -> None:
    if e.tag == "nic":  # a NIC without a place on the bus
        _nccl_nics(machine, e, above=above, numa=numa, found=found, rate=None, label="place not told", bus_id=None)
        return
    if e.tag != "pci":
        return
    bus_id, kind = e.attributes.get("busid", "").lower(), e.attributes.get("class", "").lower()
    speed, width = _gt_per_s(e.attributes.get("link_speed")), _int(e.attributes.get("link_width")) or None
    rate, label = model.pci_gb_per_s(speed, width), model.pci_label(speed, width)
    below = list(e.each("pci"))
    gpu, nic = next(e.each("gpu"), None), next(e.each("nic"), None)
    if gpu is not None or kind.startswith(model.DISPLAY):
        index = _int(gpu.attributes.get("dev")) if gpu else None
        index = len(found.gpus) if index is None else index
        device = TopoDevice(
            name=f"GPU{index}", kind="gpu", index=index, bus_id=bus_id, numa=(numa,) if numa is not None else None
        )
        found.gpus.append((device, gpu))
        machine.device(device, above=above, gb_per_s=rate, label=label)
    elif nic is not None or kind.startswith(model.NETWORK):
        _nccl_nics(machine, nic, above=above, numa=numa, found=found, rate=rate, label=label, bus_id=bus_id)
    elif below:
        machine.add(TopoNode(id=bus_id, kind="pci", label="PCIe switch"))
        machine.link(bus_id, above, "pci", rate, label)
        for child in below:
            _nccl_element(machine, child, above=bus_id, numa=numa, found=found)


def _nccl_nics(
    machine: model.Machine,
    nic: Element | None,
    *,
    above: str,
    numa: int | None,
    found: _Found,
    rate: float | None,
    label: str,
    bus_id: str | None,
) -> None:
    """Each port is a device of its own; a file may list only the place on the bus."""
    ports = list(nic.each("net")) if nic else []
    for net in ports or [Element("net", {})]:
        speed = _int(net.attributes.get("speed"))  # Mb/s
        device = TopoDevice(
            name=net.attributes.get("name") or f"NIC{found.nics}",
            kind="nic",
            index=_int(net.attributes.get("dev")),
            bus_id=bus_id,
            numa=(numa,) if numa is not None else None,
            gb_per_s=speed / 8000 if speed and speed > 0 else None,
            gdr={"0": False, "1": True}.get(net.attributes.get("gdr", "")),
        )
        found.nics += 1
        machine.device(device, above=above, gb_per_s=rate, label=label)


def _nccl_nvlinks(machine: model.Machine, gpu: TopoDevice, e: Element | None, by_bus: Mapping[str | None, str]) -> None:
    if e is None:
        return
    per_link = model.nvlink_gb_per_s(_int(e.attributes.get("sm")))
    ends: dict[str, int] = {}
    for link in e.each("nvlink"):
        target = by_bus.get(link.attributes.get("target", "").lower(), "nvs")
        if target != gpu.name:
            ends[target] = ends.get(target, 0) + (_int(link.attributes.get("count")) or 0)
    for target, count in ends.items():
        if target == "nvs":
            machine.add(TopoNode(id="nvs", kind="nvs", label="NVSwitch"))
        rate = per_link * count if per_link else None
        machine.link(gpu.name, target, "nvl", rate, f"{count} NVLink{'s' if count > 1 else ''}")
    for link in e.each("c2c"):
        cpu = f"cpu{gpu.numa[0]}" if gpu.numa else "cpu0"
        machine.link(gpu.name, cpu, "c2c", _float(link.attributes.get("bw")), "NVLink-C2C")


def _gt_per_s(words: str | None) -> float | None:
    """32.0 GT/s PCIe, or 8 GT/s."""
    match = re.match(r"([\d.]{1,6}) GT/s", words or "")
    return _float(match[1]) if match else None


def _int(words: str | None) -> int | None:
    return int(words) if words and re.fullmatch(r"-?\d{1,12}", words) else None


def _float(words: str | None) -> float | None:
    return float(words) if words and re.fullmatch(r"\d{1,9}(\.\d{1,9})?", words) else None


# ---- lstopo


def lstopo_xml(root: Element, *, source: str) -> Topology:
    """What `lstopo FILE.xml` (hwloc 1 and 2) writes. It does not tell NVLinks."""
    machine = model.Machine()
    counts = {"gpu": 0}
    for e in root.each("object"):
        _lstopo_object(machine, e, numa=None, bridges=(), counts=counts)
    cpu = next((i.attributes.get("value") for i in _infos(root) if i.attributes.get("name") == "CPUModel"), None)
    vendor = next((i.attributes.get("value") for i in _infos(root) if i.attributes.get("name") == "CPUVendor"), None)
    machine.sockets(model.sockets_gb_per_s(vendor=vendor, name=cpu))
    return machine.topology(source, tells_nvlinks=False)


def _infos(e: Element) -> Iterator[Element]:
    for child in e.children:
        if child.tag == "info":
            yield child
        elif child.tag == "object" and child.attributes.get("type") not in ("Bridge", "PCIDev"):
            yield from _infos(child)


@dataclass(frozen=True)
class _Bridge:
    bus_id: str
    gb_per_s: float | None


def _lstopo_object(
    machine: model.Machine, e: Element, *, numa: int | None, bridges: tuple[_Bridge, ...], counts: dict[str, int]
) -> None:
    kind = e.attributes.get("type", "")
    if kind == "PCIDev":
        _lstopo_device(machine, e, numa=numa, bridges=bridges, counts=counts)
        return
    if kind == "Bridge":
        if e.attributes.get("bridge_type", "").startswith("0-"):
            bridges = ()
        else:
            rate = _float(e.attributes.get("pci_link_speed")) or None
            bridges = (*bridges, _Bridge(e.attributes.get("pci_busid", "").lower(), rate))
    else:
        own = _nodeset(e)
        numa = own if own is not None else numa
    for child in e.each("object"):
        _lstopo_object(machine, child, numa=numa, bridges=bridges, counts=counts)


def _nodeset(e: Element) -> int | None:
    """The NUMA node of an object that lies in one alone."""
    words = e.attributes.get("nodeset", "").split(",")
    try:
        mask = sum(int(word, 16) << 32 * i for i, word in enumerate(reversed(words)) if word.startswith("0x"))
    except ValueError:
        return None
    return mask.bit_length() - 1 if mask and mask & (mask - 1) == 0 else None


def _lstopo_device(
    machine: model.Machine, e: Element, *, numa: int | None, bridges: tuple[_Bridge, ...], counts: dict[str, int]
) -> None:
    kind = "0x" + e.attributes.get("pci_type", "")[:4]
    bus_id = e.attributes.get("pci_busid", "").lower()
    rate = _float(e.attributes.get("pci_link_speed")) or None
    system = [o.attributes for o in e.each("object") if o.attributes.get("type") == "OSDev"]
    devices: list[TopoDevice] = []
    place = (numa,) if numa is not None else None
    if kind.startswith(model.DISPLAY) and "10de" in e.attributes.get("pci_type", ""):
        devices = [TopoDevice(name=f"GPU{counts['gpu']}", kind="gpu", index=counts["gpu"], bus_id=bus_id, numa=place)]
        counts["gpu"] += 1
    elif kind.startswith(model.NETWORK):
        verbs = [o["name"] for o in system if o.get("osdev_type") in _OPENFABRICS and "name" in o]
        devices = [TopoDevice(name=name, kind="nic", bus_id=bus_id, numa=place) for name in verbs]
    for device in devices:
        _hang(machine, device, bridges=bridges, rate=rate, numa=numa)


_OPENFABRICS = ("3", "32")  # hwloc 1 and 2; hwloc 3


def _hang(
    machine: model.Machine, device: TopoDevice, *, bridges: tuple[_Bridge, ...], rate: float | None, numa: int | None
) -> None:
    """As NCCL takes them: a root port belongs to the CPU, the two ports on a way through a switch are one node."""
    switches = bridges[::-1][1::2][::-1]  # of root port, upstream, downstream: every second, from below
    cpu = f"cpu{numa if numa is not None else 0}"
    machine.add(TopoNode(id=cpu, kind="cpu", label=f"NUMA node {numa}" if numa is not None else "CPU"))
    above = cpu
    for switch in switches:
        machine.add(TopoNode(id=switch.bus_id, kind="pci", label="PCIe switch"))
        machine.link(switch.bus_id, above, "pci", _as_nccl(switch.gb_per_s), _lstopo_label(switch.gb_per_s))
        above = switch.bus_id
    if device.kind == "gpu":  # lstopo has the present rate, and an idle GPU lowers it
        machine.device(device, above=above, gb_per_s=None, label="PCIe")
    else:
        machine.device(device, above=above, gb_per_s=_as_nccl(rate), label=_lstopo_label(rate))


def _as_nccl(gb_per_s: float | None) -> float:
    """lstopo has the rate with the coding taken off (15.75 for generation 3 x16), NCCL takes 12 for it."""
    return round(gb_per_s * 12 / 15.75, 1) if gb_per_s else model.pci_gb_per_s(None, None)


def _lstopo_label(gb_per_s: float | None) -> str:
    return f"PCIe link of {gb_per_s:.3g} GB/s" if gb_per_s else "PCIe, rate not told"
