"""Network devices: ports of verbs devices, Ethernet interfaces, addresses, routes."""

import fcntl
import ipaddress
import re
import socket
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from smoldiag.collect import files
from smoldiag.collect.pci import address_of, driver_of
from smoldiag.facts import Gid, Nic, Route

SIOCGIFADDR = 0x8915  # linux/sockios.h
SIOCGIFNETMASK = 0x891B
RDMA_STATE_ACTIVE = "4"  # sysfs: "4: ACTIVE"
RTF_UP = 1  # linux/route.h
ROUTE = re.compile(  # interface, destination, gateway, flags, reference count, use, metric, mask
    r"^(\S+)\s+([0-9A-F]{8})\s+([0-9A-F]{8})\s+([0-9A-F]{4})\s+\d+\s+\d+\s+(\d+)\s+([0-9A-F]{8})\s", re.MULTILINE
)
IWARP = "4"  # node_type "4: RNIC": verbs over TCP, which NCCL's IB transport does not use
MOST_GIDS = 256  # the longest table that drivers have
EMPTY_GIDS = {"0000:0000:0000:0000:0000:0000:0000:0000", "fe80:0000:0000:0000:0000:0000:0000:0000"}
COUNTERS = {  # those that tell of trouble or traffic; they count since boot
    "symbol_error",
    "link_downed",
    "link_error_recovery",
    "port_rcv_errors",
    "port_rcv_data",
    "port_xmit_data",
    "port_xmit_discards",
    "port_xmit_wait",
    "local_link_integrity_errors",
    "excessive_buffer_overrun_errors",
    "VL15_dropped",
    "out_of_sequence",
    "out_of_buffer",
    "packet_seq_err",
    "local_ack_timeout_err",
    "rnr_nak_retry_err",
    "implied_nak_seq_err",
    "np_cnp_sent",
    "np_ecn_marked_roce_packets",
    "rp_cnp_handled",
    "roce_slow_restart",
    "roce_adp_retrans",
    "req_cqe_error",
    "rx_icrc_encapsulated",
    "rx_drops",
    "tx_bytes",
    "rx_bytes",
    "retrans_bytes",
    "retrans_pkts",
    "retrans_timeout_events",
    "unresponsive_remote_events",
    "impaired_remote_conn_events",
}
INTERFACE_COUNTERS = ("rx_errors", "tx_errors", "rx_dropped", "tx_dropped", "rx_bytes", "tx_bytes", "rx_crc_errors")


def nics(root: Path) -> tuple[Nic, ...]:
    """Everything that there is to know. OSError: no network folder in sysfs."""
    if not (root / "sys/class/net").is_dir() and not (root / "sys/class/infiniband").is_dir():
        raise OSError("no /sys/class/net and no /sys/class/infiniband")
    return (*rdma(root), *ethernet(root))


def rdma(root: Path, *, brief: bool = False) -> tuple[Nic, ...]:
    """One per port of a verbs device. `brief`: state and rate alone, a few files each."""
    return tuple(
        _port(root, device, port, brief=brief)
        for device in files.listed(root / "sys/class/infiniband")
        for port in files.listed(device / "ports")
        if port.name.isdigit()
    )


def _port(root: Path, device: Path, port: Path, *, brief: bool) -> Nic:
    rate = re.match(r"([\d.]+) Gb/sec(?: \((\d+)X ([\w ]+)\))?", files.text(port / "rate", 64) or "")
    state = files.text(port / "state", 64)
    driver = driver_of(device / "device")
    nic = Nic(
        name=device.name if port.name == "1" else f"{device.name}:{port.name}",
        kind=_kind(device, port, driver),
        gbit_per_s=float(rate[1]) if rate else None,
        up=state.startswith(RDMA_STATE_ACTIVE) if state else None,
        virtual=_is_software(device),
    )
    if brief:
        return nic
    attributes = gids(port)
    netdev = next((g.netdev for g in attributes or () if g.netdev), None) or _netdev(device, int(port.name))
    address = address_of(device / "device") or _parent_address(root, device)
    netdev = netdev or _netdev_of(root, address)
    return replace(
        nic,
        device=device.name,
        port=int(port.name),
        state=_word(state),
        phys_state=_word(files.text(port / "phys_state", 64)),
        lanes=int(rate[2]) if rate and rate[2] else None,
        signalling=rate[3].strip() if rate and rate[3] else None,
        lid=files.number(port / "lid"),
        sm_lid=files.number(port / "sm_lid"),
        bus_id=address,
        numa_node=_numa(root, device, address),
        driver=driver,
        firmware=files.text(device / "fw_ver", 128),
        board=files.text(device / "board_id", 128) or _vendor_and_device(root, device, address),
        guid=files.text(device / "node_guid", 64),
        netdev=netdev,
        mtu=files.number(root / "sys/class/net" / netdev / "mtu") if netdev and nic.kind == "roce" else None,
        gids=attributes,
        pkeys=_pkeys(port),
        peer_memory=_first_line(device / "device/p2p"),
        counters=_counters(port, device),
        master=files.link_name(root / "sys/class/net" / netdev / "master") if netdev else None,
    )


def _is_software(device: Path) -> bool:
    """rxe or siw: verbs over an ordinary interface, done by the processor."""
    return (device / "parent").is_file() or device.name.startswith(("rxe", "siw"))


def _kind(device: Path, port: Path, driver: str | None) -> str:
    if (files.text(device / "node_type", 64) or "").startswith(IWARP):
        return "iwarp"
    layer = (files.text(port / "link_layer", 64) or "").lower()
    if driver == "efa" or device.name.startswith("efa"):
        return "efa"
    return {"ethernet": "roce", "": "efa", "unspecified": "efa"}.get(layer, layer)


def _word(state: str | None) -> str | None:
    """ "4: ACTIVE" -> ACTIVE"""
    return state.partition(":")[2].strip() or state if state else None


def _parent_address(root: Path, device: Path) -> str | None:
    """For trees whose links are gone: the PCI device that holds a folder of this name."""
    for folder in (root / "sys/bus/pci/devices").glob(f"*/infiniband/{device.name}"):
        return folder.parent.parent.name
    return None


def _numa(root: Path, device: Path, address: str | None) -> int | None:
    folders = [device / "device", *([root / "sys/bus/pci/devices" / address] if address else [])]
    value = next((v for f in folders if (v := files.number(f / "numa_node")) is not None), None)
    return value if value is not None and value >= 0 else None


def _vendor_and_device(root: Path, device: Path, address: str | None) -> str | None:
    folders = [device / "device", *([root / "sys/bus/pci/devices" / address] if address else [])]
    for f in folders:
        ids = [(files.text(f / name, 16) or "").removeprefix("0x") for name in ("vendor", "device")]
        if all(ids):
            return ":".join(ids)
    return None


def _netdev(device: Path, port: int) -> str | None:
    """The interface of this port: dev_port counts from 0."""
    found = files.listed(device / "device/net")
    for interface in found:
        number = files.number(interface / "dev_port")
        if number is None or number == port - 1 or len(found) == 1:
            return interface.name
    return None


def _netdev_of(root: Path, address: str | None) -> str | None:
    """For trees without that folder: the one interface on the same PCI device."""
    interfaces = [
        i.name for i in files.listed(root / "sys/class/net") if address and address_of(i / "device") == address
    ]
    return interfaces[0] if len(interfaces) == 1 else None


def gids(port: Path) -> tuple[Gid, ...] | None:
    """The entries in use."""
    if not (port / "gids").is_dir():
        return None
    found = []
    entries = [g for g in files.listed(port / "gids") if g.name.isdigit()]
    for entry in sorted(entries, key=lambda g: int(g.name))[:MOST_GIDS]:
        address = files.text(entry, 64)
        if not address or address in EMPTY_GIDS:
            continue
        found.append(
            Gid(
                index=int(entry.name),
                address=address,
                kind=files.text(port / "gid_attrs/types" / entry.name, 64),
                netdev=files.name(port / "gid_attrs/ndevs" / entry.name),
            )
        )
    return tuple(found)


def _pkeys(port: Path) -> tuple[int, ...] | None:
    if not (port / "pkeys").is_dir():
        return None
    values = (files.number(p) for p in sorted(files.listed(port / "pkeys"), key=lambda p: p.name.zfill(4)))
    return tuple(v for v in values if v)


def _first_line(path: Path) -> str | None:
    words = files.text(path, 256)
    return words.partition("\n")[0] if words is not None else None


def _counters(port: Path, device: Path) -> dict[str, int] | None:
    found = {}
    for folder in (port / "counters", port / "hw_counters", device / "hw_counters"):
        for file in files.listed(folder):
            if file.name in COUNTERS and (value := files.number(file)) is not None:
                found[file.name] = value
    return found or None


def ethernet(root: Path, *, brief: bool = False) -> tuple[Nic, ...]:
    """Interfaces but the loopback."""
    folders = [
        i for i in files.listed(root / "sys/class/net") if i.name != "lo" and (files.text(i / "operstate") or "")
    ]
    found = tuple(_interface(i) for i in folders)
    if brief:
        return found
    told = interface_addresses(root)
    return tuple(_with_details(root, i, n, told) for i, n in zip(folders, found, strict=True))


def _interface(interface: Path) -> Nic:
    virtual = not (interface / "device").exists()
    speed = files.text(interface / "speed", 32)  # EINVAL while down; virtual devices report a made-up 10000
    known = speed is not None and re.fullmatch(r"[1-9]\d*", speed) is not None and not virtual
    return Nic(
        name=interface.name,
        kind="ethernet",
        gbit_per_s=int(speed or 0) / 1000 if known else None,
        up=files.text(interface / "operstate", 32) == "up",
        virtual=virtual,
    )


def _with_details(root: Path, interface: Path, nic: Nic, told: dict[str, tuple[str, ...]] | None) -> Nic:
    counters = {name: files.number(interface / "statistics" / name) for name in INTERFACE_COUNTERS}
    address = address_of(interface / "device")
    return replace(
        nic,
        state=files.text(interface / "operstate", 32),
        mtu=files.number(interface / "mtu"),
        flags=files.number(interface / "flags"),
        index=files.number(interface / "ifindex"),
        bus_id=address,
        numa_node=_numa(root, interface, address),
        driver=driver_of(interface / "device"),
        board=_vendor_and_device(root, interface, address),
        master=files.link_name(interface / "master"),
        lower=tuple(f.name.removeprefix("lower_") for f in files.listed(interface) if f.name.startswith("lower_")),
        addresses=told.get(interface.name, ()) if told is not None else None,
        counters={name: value for name, value in counters.items() if value is not None} or None,
    )


def addresses() -> dict[str, str]:
    """interface -> IPv4 address, of every interface of this host but the loopback."""
    with_mask = _asked()
    return {name: address.partition("/")[0] for name, address in with_mask.items() if not address.startswith("127.")}


def _asked() -> dict[str, str]:
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with suppress(OSError):
                address = socket.inet_ntoa(fcntl.ioctl(s.fileno(), SIOCGIFADDR, request)[20:24])
                mask = fcntl.ioctl(s.fileno(), SIOCGIFNETMASK, request)[20:24]
                found[name] = f"{address}/{int.from_bytes(mask, 'big').bit_count()}"
    return found


def interface_addresses(root: Path) -> dict[str, tuple[str, ...]] | None:
    """interface -> addresses with prefix length. None: nothing tells.

    IPv4 of a tree: the local addresses of the routing table, each given to the one interface whose network holds it.
    """
    found: dict[str, list[str]] = {}
    known = False
    if root == Path("/"):
        for name, address in _asked().items():
            found.setdefault(name, []).append(address)
        known = True
    elif local := _local_addresses(root):
        known = True
        connected = [r for r in routes(root) or () if r.gateway is None and r.destination != "default"]
        for address in local:
            inside = [r for r in connected if ipaddress.ip_address(address) in ipaddress.ip_network(r.destination)]
            longest = max((_prefix(r) for r in inside), default=None)
            owners = [r for r in inside if _prefix(r) == longest]
            if len(owners) == 1:
                found.setdefault(owners[0].interface, []).append(f"{address}/{longest}")
    v6 = files.text(_net(root) / "if_inet6")
    for line in (v6 or "").splitlines():
        words = line.split()
        if len(words) == 6 and re.fullmatch(r"[0-9a-f]{32}", words[0]):
            address6 = ipaddress.IPv6Address(int(words[0], 16))
            found.setdefault(words[5], []).append(f"{address6}/{int(words[2], 16)}")
    return {name: tuple(a) for name, a in found.items()} if known or v6 is not None else None


def _prefix(route: Route) -> int:
    return int(route.destination.partition("/")[2])


def _net(root: Path) -> Path:
    folders = (root / "proc/net", root / "proc/self/net", root / "proc/1/net")
    return next((f for f in folders if (f / "route").is_file()), folders[0])


def _local_addresses(root: Path) -> list[str]:
    words = files.text(_net(root) / "fib_trie", 4 << 20) or ""
    found = re.findall(r"\|-- ([\d.]+)\n\s+/32 host LOCAL", words)
    return list(dict.fromkeys(a for a in found if not a.startswith("127.")))


def routes(root: Path) -> tuple[Route, ...] | None:
    """IPv4 routes of /proc/net/route: the main table."""
    words = files.text(_net(root) / "route")
    if words is None:
        return None
    found = []
    for interface, destination, gateway, flags, metric, mask in ROUTE.findall(words):
        if not int(flags, 16) & RTF_UP:
            continue
        prefix = int(mask, 16).bit_count()
        found.append(
            Route(
                destination=f"{_dotted(destination)}/{prefix}" if prefix else "default",
                interface=interface,
                gateway=_dotted(gateway) if int(gateway, 16) else None,
                metric=int(metric),
            )
        )
    return tuple(found)


def _dotted(word: str) -> str:
    return socket.inet_ntoa(struct.pack("<I", int(word, 16)))


def carriers(root: Path = Path("/")) -> dict[str, bool]:
    """interface -> has carrier, for every interface that is meant to be up."""
    return {
        i.name: state == "1"
        for i in files.listed(root / "sys/class/net")
        if i.name != "lo" and (state := files.text(i / "carrier", 16)) is not None
    }
