"""Text of ibv_devinfo, ibstat, ibstatus, show_gids, fi_info, lspci -vv, lsmod and `ulimit -a` -> the facts of a host.

A file may hold several of them, one after the other, as support bundles do.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from smoldiag.facts import Gid, Host, Limits, Nic, PciDevice, System

MAX_DEVICES = 4096
MAX_LINES = 2_000_000
MAX_LINE = 4096

_ADDRESS = r"(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"
_CLASS = r"[A-Z0-9][^:\[]{0,60}?(?:[Cc]ontroller|[Bb]ridge|peripheral|device|accelerators|counters|Instrumentation)"
_PCI_HEAD = re.compile(rf"^({_ADDRESS}) ({_CLASS})(?: \[([0-9a-f]{{4}})\])?: (.+)$")
_PAIR = re.compile(r"^\s*([A-Za-z][\w ./\[\]]{0,40}?)\s*:\s*(.*?)\s*$")
_LIMIT = re.compile(r"^([a-z][a-z ]{3,30}?)\s{2,}\((?:(\w+)[^,)]*, )?-(\w)\)\s+(\d+|unlimited)\s*$")
_GID_ROW = re.compile(
    r"^(\S{2,40})\s+(\d{1,2})\s+(\d{1,3})\s+([0-9a-f:]{30,39})\s+(?:[\d.]{7,15}\s+)?v([12])\s*(\S*)\s*$"
)
_MODULE = re.compile(r"^(\w{1,60})\s+\d{3,10}\s+-?\d{1,5}(?:\s+\S*)?\s*$")
_IB_STATUS = r"Infiniband device '([\w.-]+' port \d+) status:"

CLASSES = {  # lspci's words -> class as sysfs has it
    "3D controller": "0x030200",
    "VGA compatible controller": "0x030000",
    "Display controller": "0x038000",
    "Processing accelerators": "0x120000",
    "Infiniband controller": "0x020700",
    "InfiniBand controller": "0x020700",
    "Ethernet controller": "0x020000",
    "PCI bridge": "0x060400",
    "Bridge": "0x068000",
    "Non-Volatile memory controller": "0x010802",
}
VENDORS = {
    "NVIDIA Corporation": "10de",
    "Mellanox Technologies": "15b3",
    "Amazon.com": "1d0f",
    "Advanced Micro Devices": "1002",
    "Broadcom": "14e4",
    "Intel Corporation": "8086",
}
PORTS = {"Root Port": "root", "Upstream Port": "upstream", "Downstream Port": "downstream"}
LIMITS = {"l": "memlock_bytes", "n": "nofile", "u": "nproc", "s": "stack_bytes", "c": "core_bytes"}
FACTORS = {"kbytes": 1024, "blocks": 512, None: 1}
SPEEDS = {"2.5": "SDR", "5.0": "DDR", "10.0": "QDR", "14.0": "FDR", "25.0": "EDR", "50.0": "HDR", "100.0": "NDR"}


def looks_like(name: str, head: bytes) -> bool:
    """By its first lines: any of the formats."""
    return any(_reader_of(line) for line in head.decode(errors="replace").splitlines())


def host(lines: Iterable[str], *, name: str) -> Host:
    """What the text tells of one host. ValueError: nothing of the kind in it."""
    parts: dict[Callable[..., dict[str, object]], list[str]] = {}
    current: Callable[..., dict[str, object]] | None = None
    for number, line in enumerate(lines):
        if number > MAX_LINES:
            break
        line = line.rstrip("\r\n")[:MAX_LINE]
        current = _reader_of(line) or current
        if current:
            parts.setdefault(current, []).append(line)
    facts: dict[str, object] = {}
    for read, text in parts.items():
        for fact, value in read(text).items():
            facts[fact] = _joined(facts[fact], value) if fact in facts else value
    if not facts:
        raise ValueError("no output of ibv_devinfo, ibstat, show_gids, fi_info, lspci, lsmod or ulimit")
    return Host(name=name, unread={}, **facts)  # type: ignore[arg-type]


def _reader_of(line: str) -> "Callable[[list[str]], dict[str, object]] | None":
    """Which format begins with this line."""
    if line.startswith("hca_id:"):
        return ibv_devinfo
    if re.match(r"CA '[\w.-]+'$", line):
        return ibstat
    if re.match(_IB_STATUS, line):
        return ibstatus
    if re.match(r"DEV\s+PORT\s+INDEX\s+GID", line):
        return show_gids
    if re.match(r"provider: \S+$", line):
        return fi_info
    if re.match(r"Module\s+Size\s+Used by", line):
        return lsmod
    if _PCI_HEAD.match(line):
        return lspci
    return ulimit if _LIMIT.match(line) else None


def _joined(a: object, b: object) -> object:
    """NICs that two tools tell of are one: the later one fills in what the first does not know."""
    if not isinstance(a, tuple) or not isinstance(b, tuple):
        return a
    found = {n.name: n for n in a}
    for nic in b:
        known = found.get(nic.name)
        found[nic.name] = _filled(known, nic) if known else nic
    return tuple(found.values())


def _filled(nic: Nic, other: Nic) -> Nic:
    missing = {f: v for f, v in vars(other).items() if v is not None and getattr(nic, f) is None}
    return replace(nic, **missing)


def _pairs(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        if match := _PAIR.match(line):
            yield match[1].strip().lower(), match[2]


def _first_number(words: str) -> int | None:
    match = re.match(r"0x[0-9a-fA-F]+|\d+", words)
    return int(match[0], 0) if match else None


def _nic(device: str, port: int, **facts: object) -> Nic:
    kind = {"ethernet": "roce", "unspecified": "efa"}.get(str(facts.pop("layer", "")).lower(), "infiniband")
    return Nic(
        name=device if port == 1 else f"{device}:{port}",
        kind=kind,
        device=device,
        port=port,
        driver="mlx5_core" if device.startswith("mlx5") else None,
        **facts,  # type: ignore[arg-type]
    )


def ibv_devinfo(lines: list[str]) -> dict[str, object]:
    """With -v also the rate and the GIDs."""
    return {"nics": tuple(_devices(lines, r"hca_id:\s*([\w.-]+)", r"\s*port:\s*(\d+)", _devinfo_port))}


def _devinfo_port(device: str, port: int, shared: dict[str, str], own: dict[str, str]) -> Nic:
    state = own.get("state", "").partition(" ")[0].removeprefix("PORT_")
    width = _first_number(own.get("active_width", ""))
    speed = re.match(r"[\d.]+", own.get("active_speed", ""))
    gids = [(int(m[1]), v.split()) for k, v in own.items() if (m := re.match(r"gid\[\s*(\d+)\]", k)) and v]
    return _nic(
        device,
        port,
        layer=own.get("link_layer", "InfiniBand"),
        up=state == "ACTIVE" if state else None,
        state=state or None,
        phys_state=own.get("phys_state", "").partition(" ")[0].title().replace("_", "") or None,
        gbit_per_s=float(speed[0]) * width if speed and width else None,
        lanes=width,
        signalling=SPEEDS.get(speed[0]) if speed else None,
        active_mtu=_first_number(own.get("active_mtu", "")),
        mtu_max=_first_number(own.get("max_mtu", "")),
        lid=_first_number(own.get("port_lid", "")),
        sm_lid=_first_number(own.get("sm_lid", "")),
        firmware=shared.get("fw_ver"),
        board=shared.get("board_id"),
        guid=shared.get("node_guid"),
        gids=tuple(Gid(index=i, address=words[0].rstrip(","), kind=" ".join(words[1:]) or None) for i, words in gids)
        or None,
    )


def _devices(
    lines: list[str], head: str, port_head: str, read: Callable[[str, int, dict[str, str], dict[str, str]], Nic]
) -> Iterator[Nic]:
    """Blocks of a device with blocks of its ports below it."""
    for device, block in _blocks(lines, head):
        ports = list(_blocks(block, port_head))
        shared = dict(_pairs(itertools.takewhile(lambda line: not re.match(port_head, line), block)))
        for port, own in ports:
            yield read(device, int(port), shared, dict(_pairs(own)))


def _blocks(lines: list[str], head: str) -> Iterator[tuple[str, list[str]]]:
    """What follows each line that begins a block, with the name in that line."""
    starts = [(i, match[1]) for i, line in enumerate(lines) if (match := re.match(head, line))]
    ends = [i for i, _ in starts[1:]] + [len(lines)]
    return ((name, lines[start + 1 : end]) for (start, name), end in zip(starts, ends, strict=True))


def ibstat(lines: list[str]) -> dict[str, object]:
    return {"nics": tuple(_devices(lines, r"CA '([\w.-]+)'", r"\s+Port (\d+):", _ibstat_port))}


def _ibstat_port(device: str, port: int, shared: dict[str, str], own: dict[str, str]) -> Nic:
    state = own.get("state")
    return _nic(
        device,
        port,
        layer=own.get("link layer", "InfiniBand"),
        up=state == "Active" if state else None,
        state={"Initializing": "INIT"}.get(state or "", (state or "").upper()) or None,
        phys_state=own.get("physical state"),
        gbit_per_s=_first_number(own.get("rate", "")),
        lid=_first_number(own.get("base lid", "")),
        sm_lid=_first_number(own.get("sm lid", "")),
        firmware=shared.get("firmware version"),
        guid=shared.get("node guid"),
        board=shared.get("ca type"),
    )


def ibstatus(lines: list[str]) -> dict[str, object]:
    found = []
    for named, block in _blocks(lines, _IB_STATUS):
        device, _, port = named.partition("' port ")
        own = dict(_pairs(block))
        rate = re.match(r"([\d.]+) Gb/sec(?: \((\d+)X (\w+)\))?", own.get("rate", ""))
        state = own.get("state", "").partition(":")[2].strip()
        found.append(
            _nic(
                device,
                int(port),
                layer=own.get("link_layer", "InfiniBand"),
                up=state == "ACTIVE" if state else None,
                state=state or None,
                phys_state=own.get("phys state", "").partition(":")[2].strip() or None,
                gbit_per_s=float(rate[1]) if rate else None,
                lanes=int(rate[2]) if rate and rate[2] else None,
                signalling=rate[3] if rate else None,
                lid=_first_number(own.get("base lid", "")),
                sm_lid=_first_number(own.get("sm lid", "")),
            )
        )
    return {"nics": tuple(found)}


def show_gids(lines: list[str]) -> dict[str, object]:
    """It lists the ports of RoCE with their interfaces; one without an interface is InfiniBand."""
    tables: dict[tuple[str, int], list[Gid]] = {}
    for line in lines:
        if match := _GID_ROW.match(line):
            device, port, index, address, version, netdev = match.groups()
            kind = "IB/RoCE v1" if version == "1" else "RoCE v2"
            gid = Gid(index=int(index), address=address, kind=kind, netdev=netdev or None)
            tables.setdefault((device, int(port)), []).append(gid)
    return {
        "nics": tuple(
            _nic(
                device,
                port,
                layer="Ethernet" if any(g.netdev for g in gids) else "InfiniBand",
                up=True,
                netdev=next((g.netdev for g in gids if g.netdev), None),
                gids=tuple(gids),
            )
            for (device, port), gids in tables.items()
        )
    }


def fi_info(lines: list[str]) -> dict[str, object]:
    """EFA devices; libfabric lists each several times, as rdm and dgrm, efa and efa-direct."""
    found: dict[str, Nic] = {}
    provider = ""
    for key, value in _pairs(lines):
        if key == "provider":
            provider = value
        elif key == "domain" and provider == "efa":
            name = re.sub(r"-(rdm|dgrm)$", "", value)
            found[name] = Nic(name=name, device=name, port=1, kind="efa", up=True)
    return {"nics": tuple(found.values())} if found else {}


def lsmod(lines: list[str]) -> dict[str, object]:
    return {"system": System(modules=tuple(sorted(m[1] for line in lines if (m := _MODULE.match(line)))))}


def ulimit(lines: list[str]) -> dict[str, object]:
    """`ulimit -a` of bash."""
    found: dict[str, Any] = {}
    for line in lines:
        match = _LIMIT.match(line)
        if match and match[3] in LIMITS:
            factor = FACTORS.get(match[2], 1)
            found[LIMITS[match[3]]] = -1 if match[4] == "unlimited" else int(match[4]) * factor
    return {"limits": Limits(**found)} if found else {}


def lspci(lines: list[str]) -> dict[str, object]:
    """With -vv links and drivers, with -vvv as root also ACS; -nn gives vendor and device. Without -PP or -t the tree
    comes from the buses that bridges lead to."""
    blocks: list[list[str]] = []
    for line in lines:
        if _PCI_HEAD.match(line):
            blocks.append([line])
        elif blocks:
            blocks[-1].append(line)
    found = [_pci_device(block) for block in blocks[:MAX_DEVICES]]
    above = {
        (d.address.rpartition(":")[0].rpartition(":")[0], bus): d.address
        for d, block in zip(found, blocks, strict=False)
        if (bus := _secondary(block)) is not None
    }
    devices = tuple(replace(d, parent=above.get(_bus_of(d.address))) for d in found)
    detailed = any(d.width for d in devices)
    return {"pci": devices} if detailed else {}


def _bus_of(address: str) -> tuple[str, int]:
    domain, bus, _ = address.split(":")
    return domain, int(bus, 16)


def _secondary(block: list[str]) -> int | None:
    match = re.search(r"\bsecondary=([0-9a-f]{2})", "\n".join(block))
    return int(match[1], 16) if match else None


def _pci_device(block: list[str]) -> PciDevice:
    head = _PCI_HEAD.match(block[0])
    assert head
    address, words, kind, rest = head.groups()
    text = "\n".join(block)
    ids = re.search(r"\[([0-9a-f]{4}):([0-9a-f]{4})\]", rest)
    capable = _link(text, "LnkCap")
    now = _link(text, "LnkSta")
    port = next((p for word, p in PORTS.items() if re.search(rf"Express.*{word}", text)), None)
    acs = re.search(r"ACSCtl:\s*(.*)", text)
    ats = re.search(r"ATSCtl:\s*Enable([+-])", text)
    driver = re.search(r"Kernel driver in use: (\S+)", text)
    numa = re.search(r"NUMA node: (\d+)", text)
    group = re.search(r"IOMMU group: (\d+)", text)
    readable = "<access denied>" not in text and "Capabilities:" in text
    return PciDevice(
        address=address if address.count(":") == 2 else f"0000:{address}",
        vendor=ids[1] if ids else next((v for maker, v in VENDORS.items() if rest.startswith(maker)), ""),
        device=ids[2] if ids else "",
        kind=f"0x{kind}00" if kind else CLASSES.get(words, ""),
        driver=driver[1] if driver else None,
        numa_node=int(numa[1]) if numa else None,
        gt_per_s=now[0],
        gt_per_s_max=capable[0],
        width=now[1],
        width_max=capable[1],
        port=port,
        acs_capable=acs is not None if readable else None,
        acs=tuple(re.findall(r"(\w+)\+", acs[1])) if acs else (() if readable else None),
        ats=ats[1] == "+" if ats else (False if readable else None),
        iommu_group=int(group[1]) if group else None,
    )


def _link(text: str, label: str) -> tuple[float | None, int | None]:
    match = re.search(rf"{label}:.*?Speed ([\d.]+)GT/s.*?Width x(\d+)", text)
    return (float(match[1]), int(match[2])) if match and int(match[2]) else (None, None)
