"""NIC: ports, rates, addresses and GPU memory of the network devices of one host."""

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from smoldiag.facts import Container, Env, Evidence, Gpu, Nic, PciDevice, Route, System
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.model.machine import beside_gpus, compute_nics, gpu_count, has_rdma, pci_gpus, rdma_ports
from smoldiag.rules import rule
from smoldiag.rules.forms import fix

Nics = tuple[Nic, ...]
Pci = tuple[PciDevice, ...] | None
Gpus = tuple[Gpu, ...] | None

ROCE_HEADERS = 96  # bytes that the kernel takes off an interface's MTU (linux/include/rdma/ib_addr.h, iboe_get_mtu)
RDMA_MTUS = (4096, 2048, 1024, 512, 256)  # enum ibv_mtu
FULL_MEMBER = 0x8000  # of a partition key (InfiniBand Architecture Specification, 10.9)
DMABUF_KERNEL = (5, 12)  # the first with dma-buf for memory regions (kernelnewbies 5.12, RDMA)
LINK_LOCAL_V4 = ipaddress.ip_network("169.254.0.0/16")
SLOW_SIGNALLING = {"SDR", "DDR", "QDR", "FDR10"}  # mlx5 adapters speak at least FDR
EFA_DRIVER_FOR_580 = (2, 17, 3)  # of the EFA driver, for GPU memory with NVIDIA driver 580 and newer
IFF_UP = 1

NCCL_NET = "NCCL user guide, Troubleshooting: Networking troubleshooting"
NCCL_GDR = "NCCL user guide, Troubleshooting: GPU troubleshooting, GPU-to-NIC communication"
NCCL_ROCE = f"{NCCL_NET}, RDMA over Converged Ethernet (RoCE)"
SYSFS_IB = "Linux: ABI/stable/sysfs-class-infiniband"
CONFIRM_INTER = "smoldiag nccl-bench --groups inter"


@rule("NIC002", Severity.ERROR)
def rdma_port_down(nics: Nics, pci: Pci) -> Iterator[Finding]:
    """A port that collectives use is down, while its siblings are up.

    NCCL leaves it out: the host has one rail less, and every host waits for it. A cable, the switch port, or an
    interface that was never brought up. A second port of a card that is unused on all cards is not counted.

    Fix: look at the physical state: Polling is the cable or the switch, Disabled is this host.
    """
    ports = compute_nics(nics, pci)
    near = beside_gpus(ports, pci)
    for nic in (n for n in ports if n.up is False and not _is_initialising(n)):
        severity = _severity_of_down(nic, ports, beside_gpu=nic.name in near)
        disabled = (nic.phys_state or "").lower() == "disabled"
        yield Finding(
            message=f"{nic.name} ({nic.kind}) is down: {nic.state or 'not active'}"
            + (f", {nic.phys_state}" if nic.phys_state else "")
            + f"; {sum(bool(n.up) for n in ports)} of {len(ports)} ports are up",
            cause="ib-link-down-or-flapping" if severity is not Severity.INFO else "rdma-port-unused",
            severity=severity,
            confidence=Confidence.CERTAIN if severity is Severity.ERROR else Confidence.POSSIBLE,
            where=Where(nics=(nic.name,)),
            evidence=(
                Evidence(
                    text=f"state {nic.state}, phys_state {nic.phys_state}",
                    where=f"/sys/class/infiniband/{nic.device or nic.name}/ports/{nic.port or 1}/state",
                ),
            ),
            why="NCCL uses active ports only; the GPUs that this one serves share another",
            cost=f"up to 1/{len(ports)} of the network bandwidth of the whole job" if len(ports) > 1 else "",
            fixes=(_bring_up(nic) if disabled or nic.kind == "roce" else _look_at_cable(nic),)
            if severity is not Severity.INFO
            else (),
            confirm=CONFIRM_INTER,
            sources=(f"{NCCL_NET}, NIC-level diagnostics", SYSFS_IB),
            explains=("fewer-nics-than-expected", "busbw-below-expected", "nic-interface-down")
            if severity is not Severity.INFO
            else (),
        )


def _is_initialising(nic: Nic) -> bool:
    return nic.kind == "infiniband" and (nic.state or "").upper() in ("INIT", "ARMED")


def _severity_of_down(nic: Nic, ports: Sequence[Nic], *, beside_gpu: bool) -> Severity:
    """By the other ports at the same place of like cards; a port that nothing is like is perhaps not in use."""
    like = [n for n in ports if n is not nic and _place(n) == _place(nic) and n.board == nic.board]
    if any(n.up for n in like):
        return Severity.ERROR if 2 * sum(bool(n.up) for n in like) >= len(like) else Severity.WARNING
    partner = [n for n in ports if n is not nic and _card(n) == _card(nic) is not None]
    if like or any(n.up for n in partner):
        return Severity.WARNING if not any(n.up for n in ports) and beside_gpu else Severity.INFO
    if any(n.up for n in ports):
        return Severity.WARNING
    return Severity.WARNING if beside_gpu else Severity.INFO


def _place(nic: Nic) -> tuple[str, int]:
    """(function, port): which of a card's ports this is."""
    return (nic.bus_id or ".0").rpartition(".")[2], nic.port or 1


def _card(nic: Nic) -> str | None:
    return nic.bus_id.rpartition(".")[0] if nic.bus_id else None


def _bring_up(nic: Nic) -> Fix:
    if nic.kind == "roce" and nic.netdev:
        return Fix(
            do="bring its interface up, and see whether it has carrier",
            command=f"sudo ip link set {nic.netdev} up; ethtool {nic.netdev}",
        )
    return Fix(
        do="enable the port", command=f"sudo ibportstate -C {nic.device or nic.name} -D 0 {nic.port or 1} enable"
    )


def _look_at_cable(nic: Nic) -> Fix:
    return Fix(
        do="see what the link says, then reseat or swap the cable, and look at the switch port",
        command=f"sudo mlxlink -d {nic.device or nic.name} -m"
        if nic.driver == "mlx5_core"
        else f"ibstat {nic.device or nic.name}",
    )


@rule("NIC003", Severity.ERROR)
def port_waits_for_subnet_manager(nics: Nics) -> Iterator[Finding]:
    """An InfiniBand port has a link, but no subnet manager has brought it up.

    State INIT or ARMED with a physical link: nobody configured the port, so that NCCL does not use it.

    Fix: see that a subnet manager runs on this fabric (opensm, UFM, or in the switch) and reaches the port.
    """
    for nic in (n for n in rdma_ports(nics) if _is_initialising(n)):
        yield Finding(
            message=f"{nic.name} has a link, but is in state {nic.state}: no subnet manager",
            cause="ib-no-subnet-manager",
            severity=Severity.ERROR,
            where=Where(nics=(nic.name,)),
            evidence=(
                Evidence(
                    text=f"state {nic.state}, phys_state {nic.phys_state}, sm_lid {nic.sm_lid}",
                    where=f"/sys/class/infiniband/{nic.device or nic.name}/ports/{nic.port or 1}/state",
                ),
            ),
            why="a port without addresses from the subnet manager carries no traffic",
            fixes=(Fix(do="look for the subnet manager", command=f"sudo sminfo -C {nic.device or nic.name}"),),
            confirm=CONFIRM_INTER,
            sources=(f"{NCCL_NET}, InfiniBand: Subnet Manager", SYSFS_IB),
            explains=("fewer-nics-than-expected", "busbw-below-expected", "net-socket-fallback"),
        )


@rule("NIC004", Severity.WARNING)
def port_slower_than_its_siblings(nics: Nics, pci: Pci) -> Iterator[Finding]:
    """A port runs at a lower rate than its siblings, or than it can.

    A link that came up at a lower speed or with fewer lanes: cable, transceiver, or the switch port's setting. NCCL
    gives every rail the same share, so the slow one decides.

    Fix: see both ends of the link; swap the cable with a good port's and see whether the fault moves.
    """
    ports = [n for n in compute_nics(nics, pci) if n.up and n.gbit_per_s]
    near = beside_gpus(ports, pci)
    for nic in ports:
        like = [n for n in ports if n.kind == nic.kind and n.board == nic.board]
        best = max([n.gbit_per_s or 0 for n in like] + [nic.gbit_per_s_max or 0])
        same = sum(n.gbit_per_s == nic.gbit_per_s for n in like)
        lanes = nic.kind == "infiniband" and nic.lanes == 1
        old = nic.kind == "infiniband" and nic.driver == "mlx5_core" and nic.signalling in SLOW_SIGNALLING
        slower = (nic.gbit_per_s or 0) < best and (
            nic.name in near or 2 * same < len(like) or bool(nic.gbit_per_s_max) or len(like) == 2
        )
        if not (slower or lanes or old):
            continue
        few = same > 1 and nic.name not in near and not (lanes or old)  # perhaps another network, on purpose
        rate = f"{nic.gbit_per_s:g} Gb/s" + (f" ({nic.lanes}X {nic.signalling})" if nic.lanes else "")
        others = f"; {'it can' if best == nic.gbit_per_s_max else 'a sibling runs at'} {best:g} Gb/s"
        yield Finding(
            message=f"{nic.name} runs at {rate}" + (others if (nic.gbit_per_s or 0) < best else ""),
            cause="nic-rate-low",
            severity=Severity.INFO if few else Severity.WARNING,
            confidence=Confidence.LIKELY if nic.name in near or pci is None else Confidence.POSSIBLE,
            where=Where(nics=(nic.name,)),
            evidence=tuple(
                Evidence(
                    text=f"{n.gbit_per_s:g} Gb/s",
                    where=f"/sys/class/infiniband/{n.device or n.name}/ports/{n.port or 1}/rate",
                )
                for n in (nic, *[n for n in like if n.gbit_per_s == best and n is not nic][:1])
            ),
            why="collectives give every rail the same share and wait for the slowest",
            cost=f"{1 - (nic.gbit_per_s or 0) / best:.0%} of this rail, and of the whole where all are used"
            if best > (nic.gbit_per_s or 0)
            else "",
            fixes=(_look_at_link(nic),),
            confirm=CONFIRM_INTER,
            sources=(SYSFS_IB,),
            explains=("busbw-below-expected", "slow-node"),
        )


def _look_at_link(nic: Nic) -> Fix:
    if nic.kind == "roce" and nic.netdev:
        return Fix(do="see what both ends offer", command=f"ethtool {nic.netdev}")
    return _look_at_cable(nic)


@rule("NIC005", Severity.WARNING)
def roce_without_ipv4_gid(nics: Nics, pci: Pci, env: Env | None, gpus: Gpus) -> Iterator[Finding]:
    """A RoCE port has no GID that stands for an IPv4 address.

    NCCL takes the GID of RoCE v2 over IPv4. Where the port's interface has no address, only link-local entries are
    left; they do not cross a router: status 12 at once, or "ibv_modify_qp failed with 110".

    Fix: give the interface its IPv4 address; on an IPv6 fabric NCCL_IB_ADDR_FAMILY=AF_INET6.
    """
    if env and (env.get("NCCL_IB_GID_INDEX") or (env.get("NCCL_IB_ADDR_FAMILY") or "").upper() == "AF_INET6"):
        return
    without = [n for n in _roce(nics, pci) if n.gids is not None and not any(_is_v4(g.address) for g in n.gids)]
    for nic in without:
        routable = [g for g in nic.gids or () if not _is_link_local(g.address)]
        kinds = f"{len(routable)} global IPv6" if routable else "only link-local entries" if nic.gids else "none at all"
        interface = nic.netdev or "INTERFACE"
        yield Finding(
            message=f"{nic.name} ({interface}) has no GID with an IPv4 address: {kinds}",
            cause="roce-gid-index-wrong",
            severity=_unless_no_gpu(Severity.INFO if routable else Severity.WARNING, pci, gpus),
            confidence=Confidence.POSSIBLE if routable else Confidence.LIKELY,
            where=Where(nics=(nic.name,)),
            evidence=tuple(
                Evidence(
                    text=f"{g.address} {g.kind or ''}".strip(),
                    where=f"/sys/class/infiniband/{nic.device or nic.name}/ports/{nic.port or 1}/gids/{g.index}",
                )
                for g in (nic.gids or ())[:4]
            ),
            why="NCCL looks for a RoCE v2 GID of the IPv4 family; a link-local one reaches no other subnet",
            fixes=(
                Fix(do="if the fabric is IPv6", command="export NCCL_IB_ADDR_FAMILY=AF_INET6")
                if routable
                else Fix(
                    do="give the interface its address",
                    command=f"sudo ip addr add ADDRESS/PREFIX dev {interface}",
                ),
            ),
            confirm=f"show_gids; {CONFIRM_INTER}",
            sources=(NCCL_ROCE, "https://github.com/NVIDIA/nccl/issues/426"),
            explains=("roce-path-unreachable", "rank-died", "busbw-below-expected"),
        )


def _roce(nics: Nics, pci: Pci) -> list[Nic]:
    """RoCE ports that carry collectives: up, and not the management network of an InfiniBand or EFA host."""
    return [n for n in compute_nics(nics, pci) if n.kind == "roce" and n.up]


def _unless_no_gpu(severity: Severity, pci: Pci, gpus: Gpus) -> Severity:
    """Without GPUs the port may be there for ordinary traffic alone."""
    return Severity.INFO if gpu_count(gpus, pci) == 0 else severity


def _is_v4(gid: str) -> bool:
    """::ffff:a.b.c.d"""
    address = _address(gid)
    return address is not None and address.ipv4_mapped is not None


def _is_link_local(gid: str) -> bool:
    address = _address(gid)
    return address is None or address.is_link_local


def _address(gid: str) -> ipaddress.IPv6Address | None:
    try:
        return ipaddress.IPv6Address(gid)
    except ValueError:
        return None


@rule("NIC006", Severity.WARNING)
def roce_mtu_small(nics: Nics, pci: Pci, gpus: Gpus) -> Iterator[Finding]:
    """A RoCE port whose interface has a small MTU.

    RDMA takes the largest of 256, 512, 1024, 2048 and 4096 bytes that fits: with an MTU of 1500 that is 1024, four
    times as many packets.

    Fix: MTU 4200 or 9000 on the interface and on every switch between the hosts.
    """
    for nic in _roce(nics, pci):
        active = _rdma_bytes(nic)
        if active is None or active >= RDMA_MTUS[0]:
            continue
        interface = nic.netdev or "INTERFACE"
        yield Finding(
            message=f"{nic.name} ({interface})"
            + (f" has MTU {nic.mtu}, so that" if nic.mtu else ":")
            + f" RDMA packets hold {active} bytes, not {RDMA_MTUS[0]}",
            cause="mtu-1500",
            severity=_unless_no_gpu(Severity.WARNING, pci, gpus),
            confidence=Confidence.LIKELY,
            where=Where(nics=(nic.name,)),
            evidence=(
                Evidence(text=str(nic.mtu), where=f"/sys/class/net/{interface}/mtu")
                if nic.mtu
                else Evidence(text=f"active_mtu {active}", where=f"ibv_devinfo -d {nic.name}"),
            ),
            why="small packets cost the NIC and the switches more per byte",
            cost="a few to 20 % of the bandwidth (as seen on RoCE)",
            fixes=(Fix(do="raise it, on the switches first", command=f"sudo ip link set {interface} mtu 9000"),),
            confirm="ping -M do -s 8972 OTHER_HOST over this interface, then " + CONFIRM_INTER,
            sources=(
                "linux/include/rdma/ib_addr.h: iboe_get_mtu",
                "https://github.com/NVIDIA/dgx-spark-playbooks/issues/25",
            ),
            explains=("busbw-below-expected",),
        )


def _rdma_bytes(nic: Nic) -> int | None:
    """Bytes that a packet carries: as told, else the largest size that fits into the interface's MTU."""
    if nic.active_mtu or nic.mtu is None:
        return nic.active_mtu
    return next((m for m in RDMA_MTUS if m + ROCE_HEADERS <= (nic.mtu or 0)), 0)


@rule("NIC007", Severity.WARNING)
def mtu_differs_between_ports(nics: Nics, pci: Pci, gpus: Gpus) -> Iterator[Finding]:
    """The RoCE ports of one host have different MTUs.

    Two ends of a connection agree on the smaller one; packets that are larger than a path allows are lost.

    Fix: one MTU on all ports and switches.
    """
    known = [n for n in _roce(nics, pci) if n.mtu and _rdma_bytes(n) == RDMA_MTUS[0]]  # others: NIC006
    counts = Counter(n.mtu for n in known)
    if len(counts) < 2 or len(known) < 3:
        return
    usual = counts.most_common(1)[0][0]
    odd = [n for n in known if n.mtu != usual]
    yield Finding(
        message=f"{', '.join(f'{n.name} has MTU {n.mtu}' for n in odd[:8])}; the others have {usual}",
        cause="mtu-mismatch",
        severity=_unless_no_gpu(Severity.WARNING, pci, gpus),
        confidence=Confidence.LIKELY,
        where=Where(nics=tuple(n.name for n in odd)),
        evidence=tuple(Evidence(text=str(n.mtu), where=f"/sys/class/net/{n.netdev}/mtu") for n in odd[:8]),
        why="packets are as small as the smaller end wants, or get lost on the way",
        fixes=tuple(Fix(do="make it the same", command=f"sudo ip link set {n.netdev} mtu {usual}") for n in odd[:4]),
        confirm=CONFIRM_INTER,
        sources=(NCCL_ROCE,),
        explains=("busbw-below-expected",),
    )


@rule("NIC008", Severity.WARNING)
def interfaces_share_a_subnet(
    nics: Nics, routes: tuple[Route, ...], pci: Pci, gpus: Gpus, env: Env | None
) -> Iterator[Finding]:
    """Several interfaces lie in one subnet, and nothing says which of them to take.

    The kernel sends all traffic to that subnet out of one of them, whatever address the socket is bound to; answers
    come from the wrong interface, RoCE reaches one rail only.

    Fix: a subnet per interface, or policy routing with a table per interface; else different metrics.
    """
    if not gpu_count(gpus, pci):
        return
    hardware = {n.name: n for n in nics if n.kind == "ethernet" and n.up and not n.master}
    by_network: dict[tuple[str, int | None], list[str]] = {}
    for r in routes:
        if r.gateway is None and r.destination != "default" and r.interface in hardware:
            by_network.setdefault((r.destination, r.metric), []).append(r.interface)
    for (network, _), names in by_network.items():
        several = list(dict.fromkeys(names))
        if len(several) < 2 or all(hardware[n].virtual for n in several):
            continue
        cloud = all(hardware[n].driver in ("ena", "gve") for n in several)
        yield Finding(
            message=f"{', '.join(several[:8])} are all in {network} with the same metric",
            cause="interfaces-share-subnet",
            subject=network,
            severity=Severity.INFO if cloud else Severity.WARNING,
            confidence=Confidence.POSSIBLE,
            where=Where(nics=tuple(several)),
            evidence=tuple(Evidence(text=f"{network} dev {n}", where="/proc/net/route; ip route") for n in several[:8]),
            why="one of them carries all traffic, and packets that come in on another are answered by it",
            fixes=(
                Fix(do="see which one is taken", command=f"ip route get {network.partition('/')[0]}; ip rule"),
                Fix(do="name one for NCCL's bootstrap", command=f"export NCCL_SOCKET_IFNAME=={several[0]}")
                if not (env and env.get("NCCL_SOCKET_IFNAME"))
                else Fix(do="give each its own subnet or routing table (ip rule)"),
            ),
            confirm=CONFIRM_INTER,
            sources=("https://github.com/NVIDIA/nccl/issues/1581", "Linux: ip-sysctl, arp_filter"),
            explains=("roce-path-unreachable", "tcp-connect-blocked"),
        )


@rule("NIC009", Severity.WARNING)
def bootstrap_takes_a_virtual_interface(
    nics: Nics, env: Env | None, gpus: Gpus, pci: Pci, container: Container | None
) -> Iterator[Finding]:
    """NCCL's first choice of interface is a bridge or tunnel that reaches no other host.

    Without NCCL_SOCKET_IFNAME it takes the first interface with an address whose name does not begin with lo, docker
    or virbr (ib first). A bridge of containers that comes before the network is taken for it.

    Fix: NCCL_SOCKET_IFNAME with the interface that reaches the other hosts.
    """
    if (env and env.get("NCCL_SOCKET_IFNAME")) or not gpu_count(gpus, pci, container):
        return
    usable = [n for n in nics if n.kind == "ethernet" and n.up and n.index is not None and _addresses(n)]
    real = [n for n in usable if not n.virtual or _stands_on_hardware(n, nics)]
    usable = [n for n in usable if not n.name.startswith(("docker", "lo", "virbr")) and not n.master]
    usable.sort(key=lambda n: (not n.name.startswith("ib"), n.index))
    if not real or not usable or usable[0] in real:
        return
    first = usable[0]
    yield Finding(
        message=f"NCCL would take {first.name} ({_addresses(first)[0]}), which is virtual; "
        f"{real[0].name} ({_addresses(real[0])[0]}) comes after it",
        cause="link-local-or-virtual-interface-selected",
        severity=Severity.WARNING,
        confidence=Confidence.POSSIBLE,
        where=Where(nics=(first.name,)),
        evidence=tuple(
            Evidence(text=f"{n.index}: {n.name} {', '.join(_addresses(n))}", where="ip addr") for n in (first, real[0])
        ),
        why="the other hosts can't connect to an address that lives inside this host",
        fixes=(
            Fix(do="name the one that reaches the other hosts", command=f"export NCCL_SOCKET_IFNAME=={real[0].name}"),
        ),
        confirm="NCCL_DEBUG=INFO: the line Bootstrap : Using",
        sources=(f"{NCCL_NET}, IP network interfaces", "NCCL src/misc/socket.cc: ncclFindInterfaces"),
        explains=("rendezvous-failed", "tcp-connect-blocked"),
    )


def _addresses(nic: Nic) -> list[str]:
    """Those that another host could connect to."""
    return [a for a in nic.addresses or () if not _stays_local(a.partition("/")[0])]


def _stays_local(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return True
    return parsed.is_loopback or parsed.is_link_local


def _stands_on_hardware(nic: Nic, nics: Iterable[Nic]) -> bool:
    """A bond or VLAN, not a bridge of virtual devices."""
    hardware = {n.name for n in nics if n.kind == "ethernet" and not n.virtual}
    return bool(hardware & set(nic.lower or ()))


@rule("NIC010", Severity.WARNING)
def no_usable_ip_interface(
    nics: Nics, gpus: Gpus, pci: Pci, container: Container | None, routes: tuple[Route, ...] | None
) -> Iterator[Finding]:
    """No interface has an address that another host could connect to.

    A container without a network, or an interface that never got its address: NCCL's bootstrap and torchrun's
    rendezvous have nothing to bind to.

    Fix: --network=host (docker), hostNetwork: true (Kubernetes), or bring the network up.
    """
    interfaces = [n for n in nics if n.kind == "ethernet"]
    if not interfaces and routes is None:
        return  # a tree or text without interfaces
    known = [n for n in interfaces if n.addresses is not None]
    if any(_addresses(n) for n in known if n.up) or len(known) < len(interfaces) or not gpu_count(gpus, pci, container):
        return
    several = (gpu_count(gpus, pci, container) or 0) > 1
    local = [n.name for n in known if n.addresses]
    yield Finding(
        message="no interface that is up has an address for other hosts"
        + (f"; {', '.join(local[:4])} have local ones only" if local else ""),
        cause="no-usable-ip-interface",
        severity=Severity.WARNING if several else Severity.INFO,
        confidence=Confidence.LIKELY,
        evidence=tuple(Evidence(text=f"{n.name}: {n.state}", where="ip addr") for n in interfaces[:8]),
        why="ranks on other hosts can't reach this one; older NCCL fails on this host, too",
        fixes=(
            fix(
                container,
                "give it a network",
                host="ip -br addr; sudo dhclient INTERFACE",
                docker="--network=host",
                kubernetes="hostNetwork: true",
            ),
        ),
        confirm="smoldiag nccl-bench with another host",
        sources=(NCCL_NET,),
        explains=("rendezvous-failed",),
    )


@rule("NIC011", Severity.WARNING)
def gpudirect_rdma_not_possible(
    nics: Nics, system: System, versions: Mapping[str, str], pci: tuple[PciDevice, ...]
) -> Iterator[Finding]:
    """The NICs can't reach GPU memory: neither nvidia_peermem nor DMA-BUF.

    GPUDirect RDMA needs one of them: the module nvidia_peermem, or a kernel of 5.12 or newer with NVIDIA's open
    kernel module. Without, every message is copied through host memory.

    Fix: modprobe nvidia_peermem, at boot, too; or the open kernel module on a newer kernel.
    """
    ports = [n for n in compute_nics(nics, pci) if n.up and n.kind in ("infiniband", "roce")]
    nvidia = [g for g in pci_gpus(pci) if g.vendor == "10de"]
    if not ports or not nvidia or "driver" not in versions or system.modules is None or not system.kernel:
        return
    loaded = {"nvidia_peermem", "nv_peer_mem"} & set(system.modules)
    flavour = versions.get("driver_flavour")
    old_kernel = _kernel(system.kernel) < DMABUF_KERNEL
    if loaded or not (old_kernel or flavour == "proprietary"):
        return
    reasons = [f"kernel {system.kernel} is older than 5.12"] if old_kernel else []
    reasons += [f"driver {versions['driver']} is the proprietary one"] if flavour == "proprietary" else []
    yield Finding(
        message=f"nvidia_peermem is not loaded, and DMA-BUF is not possible: {' and '.join(reasons)}",
        cause="gdr-peermem-not-active",
        severity=Severity.WARNING,
        confidence=Confidence.LIKELY,
        where=Where(nics=tuple(n.name for n in ports)),
        evidence=(
            Evidence(text="no nvidia_peermem, no nv_peer_mem", where="/proc/modules (lsmod)"),
            Evidence(text=f"driver {versions['driver']} {flavour or ''}".strip(), where="/proc/driver/nvidia/version"),
            Evidence(text=system.kernel, where="uname -r"),
        ),
        why="without GPUDirect RDMA data is copied to host memory and back on every hop",
        cost="about half of the NICs' bandwidth, often more (33 instead of 93 GB/s has been seen)",
        fixes=(
            Fix(
                do="load the module, at every boot, too",
                command="sudo modprobe nvidia_peermem && echo nvidia_peermem | sudo tee /etc/modules-load.d/gdr.conf",
            ),
        ),
        confirm="NCCL_DEBUG=INFO smoldiag nccl-bench: channel lines must end in /GDRDMA",
        sources=(
            NCCL_GDR,
            "NVIDIA GPU Operator: GPUDirect RDMA, DMA-BUF",
            "https://github.com/NVIDIA/nccl/issues/1412",
        ),
        explains=("gdr-not-used", "busbw-below-expected"),
    )


def _kernel(release: str) -> tuple[int, int]:
    numbers = release.replace("-", ".").split(".")
    return (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 and all(n.isdigit() for n in numbers[:2]) else (99, 0)


@rule("NIC012", Severity.WARNING)
def peermem_not_registered(nics: Nics, system: System, versions: Mapping[str, str], pci: Pci) -> Iterator[Finding]:
    """nvidia_peermem is loaded beside the kernel's own RDMA drivers, which do not use it.

    It registers with the RDMA drivers of NVIDIA (MLNX_OFED, DOCA). Those of the kernel know DMA-BUF instead; on a
    kernel older than 5.12, or with the proprietary driver, GPU memory is out of reach although the module is there.

    Fix: DOCA or MLNX_OFED, or a kernel of 5.12 or newer with NVIDIA's open kernel module.
    """
    ports = [n for n in compute_nics(nics, pci) if n.up and n.driver == "mlx5_core"]
    modules = set(system.modules or ())
    if not ports or "nvidia_peermem" not in modules or not system.kernel or not {"mlx5_core", "ib_core"} <= modules:
        return
    impossible = _kernel(system.kernel) < DMABUF_KERNEL or versions.get("driver_flavour") == "proprietary"
    if "ofed" in versions or "mlx_compat" in modules or not impossible:
        return
    yield Finding(
        message=f"nvidia_peermem is loaded, but the RDMA drivers are those of kernel {system.kernel}, and DMA-BUF "
        f"is not possible ({versions.get('driver_flavour', 'unknown')} driver)",
        cause="gdr-peermem-not-active",
        severity=Severity.WARNING,
        confidence=Confidence.POSSIBLE,
        where=Where(nics=tuple(n.name for n in ports)),
        evidence=(Evidence(text="no mlx_compat, no version of mlx5_core", where="/sys/module/mlx5_core/version"),),
        why="the module finds nobody to register with; NCCL says GPU Direct RDMA Disabled",
        fixes=(Fix(do="install DOCA-OFED, or the open kernel module of the driver (nvidia-open)"),),
        confirm="NCCL_DEBUG=INFO smoldiag nccl-bench: channel lines must end in /GDRDMA",
        sources=("https://github.com/NVIDIA/nccl/issues/1939", NCCL_GDR),
        explains=("gdr-not-used", "busbw-below-expected"),
    )


@rule("NIC013", Severity.WARNING)
def efa_cannot_reach_gpu_memory(nics: Nics, versions: Mapping[str, str], gpus: Gpus, pci: Pci) -> Iterator[Finding]:
    """The EFA driver says that it can't reach GPU memory.

    It names what it found (NVIDIA, NVIDIA peermem) in a file of each device; an empty one means that data goes
    through host memory. NVIDIA drivers from 580 on need EFA driver 2.17.3.

    Fix: install the current EFA driver after the NVIDIA driver, and reboot.
    """
    without = [n for n in rdma_ports(nics) if n.kind == "efa" and n.up and n.peer_memory == ""]
    if not without or not gpu_count(gpus, pci):
        return
    told, driver = versions.get("efa", "of unknown version"), versions.get("driver", "")
    old = _numbers(told) < EFA_DRIVER_FOR_580 and _numbers(driver) >= (580,)
    yield Finding(
        message=f"EFA driver {told} can't reach GPU memory on {len(without)} devices"
        + (f"; NVIDIA driver {driver} needs EFA driver 2.17.3 or newer" if old else ""),
        cause="efa-stack-version" if old else "gdr-not-used",
        severity=Severity.WARNING,
        confidence=Confidence.LIKELY,
        where=Where(nics=tuple(n.name for n in without)),
        evidence=tuple(
            Evidence(text="empty", where=f"/sys/class/infiniband/{n.device or n.name}/device/p2p") for n in without[:2]
        ),
        why="without GPUDirect RDMA data is copied through host memory",
        fixes=(Fix(do="install the current EFA driver", command="sudo ./efa_installer.sh -y && sudo reboot"),),
        confirm=CONFIRM_INTER,
        sources=("amzn-drivers: EFA RELEASENOTES, 2.17.3", "amzn-drivers: efa_sysfs.c, p2p"),
        explains=("gdr-not-used", "busbw-below-expected"),
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])


@rule("NIC014", Severity.WARNING)
def partition_keys_are_limited(nics: Nics) -> Iterator[Finding]:
    """An InfiniBand port is only a limited member of its partitions.

    Limited members (keys below 0x8000) reach full members, but not each other: hosts see storage and the subnet
    manager, but not their peers.

    Fix: make the ports full members of the partition in the subnet manager.
    """
    for nic in rdma_ports(nics):
        if nic.kind != "infiniband" or not nic.up or not nic.pkeys or any(k & FULL_MEMBER for k in nic.pkeys):
            continue
        keys = ", ".join(f"0x{k:04x}" for k in nic.pkeys[:8])
        yield Finding(
            message=f"{nic.name} is a limited member of all its partitions: {keys}",
            cause="ib-pkey-limited",
            severity=Severity.WARNING,
            confidence=Confidence.LIKELY,
            where=Where(nics=(nic.name,)),
            evidence=(
                Evidence(
                    text=keys,
                    where=f"/sys/class/infiniband/{nic.device or nic.name}/ports/{nic.port or 1}/pkeys",
                ),
            ),
            why="two limited members can't talk to each other",
            fixes=(
                Fix(
                    do="full membership in the subnet manager",
                    command="partitions.conf: Default=0x7fff, ipoib : ALL=full;",
                ),
            ),
            confirm=CONFIRM_INTER,
            sources=("InfiniBand Architecture Specification, 10.9: partitioning", "opensm(8): PARTITION CONFIGURATION"),
            explains=("roce-path-unreachable", "rank-died"),
        )


@rule("NIC015", Severity.INFO)
def rdma_ports_are_bonded(nics: Nics, pci: Pci, gpus: Gpus) -> Iterator[Finding]:
    """Ports of a card are bonded into one RDMA device.

    A connection stays on one of the ports, so that NCCL needs several (NCCL_IB_QPS_PER_CONNECTION) to fill both.

    Fix: several queue pairs per connection, or single ports where the fabric allows it.
    """
    if not gpu_count(gpus, pci):
        return
    bonded = [n.name for n in compute_nics(nics, pci) if n.up and "bond" in n.name]
    if bonded:
        yield Finding(
            message=f"bonded RDMA devices: {', '.join(bonded[:8])}",
            cause="bonded-nics",
            severity=Severity.INFO,
            where=Where(nics=tuple(bonded)),
            evidence=(Evidence(text=", ".join(bonded[:8]), where="/sys/class/infiniband"),),
            why="one queue pair uses one of the bonded ports",
            fixes=(Fix(do="try two and four queue pairs", command="export NCCL_IB_QPS_PER_CONNECTION=2"),),
            confirm=CONFIRM_INTER,
            sources=("NCCL user guide: NCCL_IB_QPS_PER_CONNECTION",),
        )


@rule("NIC016", Severity.WARNING)
def bond_has_lost_a_port(nics: Nics) -> Iterator[Finding]:
    """A bond of interfaces runs with fewer of them than it has.

    One of its interfaces is meant to be up and has no link: half of the bandwidth and no spare is left.

    Fix: look at the cable and the switch port of that interface.
    """
    names = {n.name for n in nics if n.kind == "ethernet" and n.up and n.virtual and len(n.lower or ()) > 1}
    for nic in nics:
        if nic.master not in names or nic.kind != "ethernet" or nic.virtual or nic.up is not False:
            continue
        if not (nic.flags or 0) & IFF_UP:
            continue
        yield Finding(
            message=f"{nic.name} of {nic.master} has no link ({nic.state})",
            cause="bond-degraded",
            severity=Severity.WARNING,
            where=Where(nics=(nic.name,)),
            evidence=(Evidence(text=nic.state or "down", where=f"/sys/class/net/{nic.name}/operstate"),),
            why="the bond has the bandwidth of the interfaces that are left",
            fixes=(Fix(do="see its link", command=f"ethtool {nic.name}; cat /proc/net/bonding/{nic.master}"),),
            confirm="the same file after the cable was swapped",
            sources=("Linux: networking/bonding",),
        )


@rule("NIC017", Severity.INFO)
def firmware_differs_between_ports(nics: Nics) -> Iterator[Finding]:
    """NICs of one kind in one host have different firmware.

    They should behave alike; a card that was swapped often has another one.

    Fix: bring all to the same version.
    """
    by_board: dict[tuple[str, str], list[Nic]] = {}
    for n in rdma_ports(nics):
        if n.board and n.firmware and n.kind != "efa":
            by_board.setdefault((n.kind, n.board), []).append(n)
    for (_, board), alike in by_board.items():
        counts = Counter(n.firmware for n in alike)
        if len(counts) < 2:
            continue
        usual = counts.most_common(1)[0][0]
        odd = [n for n in alike if n.firmware != usual]
        said = ", ".join(f"{n.name} has firmware {n.firmware}" for n in odd[:8])
        yield Finding(
            message=f"{said}; the other {board} have {usual}",
            cause="nic-firmware-differs",
            subject=board,
            severity=Severity.INFO,
            where=Where(nics=tuple(n.name for n in odd)),
            evidence=tuple(
                Evidence(text=n.firmware or "", where=f"/sys/class/infiniband/{n.device or n.name}/fw_ver")
                for n in odd[:8]
            ),
            why="faults that a newer firmware cured come back on one rail",
            fixes=(Fix(do="see what is offered", command="sudo mlxfwmanager --query"),),
            sources=(SYSFS_IB,),
        )


@rule("NIC018", Severity.INFO)
def network_is_slow_ethernet(nics: Nics, gpus: Gpus, pci: Pci) -> Iterator[Finding]:
    """The only network of a host with GPUs runs at 1 Gb/s or less.

    Gradients of a model of 1B parameters take half a minute per step at that rate.

    Fix: a faster network, or stay on one host; see whether the link came up at less than the card can.
    """
    count = gpu_count(gpus, pci)
    up = [n for n in nics if n.kind == "ethernet" and n.up and not n.virtual and n.gbit_per_s]
    if not count or count < 2 or has_rdma(nics) or not up:
        return
    best = max(up, key=lambda n: n.gbit_per_s or 0)
    if (best.gbit_per_s or 0) > 1:
        return
    yield Finding(
        message=f"the fastest interface, {best.name}, runs at {best.gbit_per_s:g} Gb/s",
        cause="slow-ethernet",
        severity=Severity.INFO,
        where=Where(nics=(best.name,)),
        evidence=(Evidence(text=f"{best.gbit_per_s:g} Gb/s", where=f"/sys/class/net/{best.name}/speed"),),
        why="between hosts every gradient goes through it",
        fixes=(Fix(do="see what the card can", command=f"ethtool {best.name}"),),
        confirm=CONFIRM_INTER,
        sources=("Linux: ABI/testing/sysfs-class-net, speed",),
    )


@rule("NIC019", Severity.WARNING)
def interface_without_link(nics: Nics, pci: Pci, gpus: Gpus) -> Iterator[Finding]:
    """An interface is meant to be up and has no link, while its siblings have one.

    A cable, a switch port or a card. Interfaces of RDMA ports are left to the rule on ports.

    Fix: look at the cable and the switch port.
    """
    if not gpu_count(gpus, pci):
        return
    cards = {n.bus_id for n in rdma_ports(nics) if n.bus_id}
    hardware = [n for n in nics if n.kind == "ethernet" and not n.virtual and n.driver and n.bus_id not in cards]
    near = beside_gpus(hardware, pci)
    for nic in hardware:
        if nic.up is not False or not (nic.flags or 0) & IFF_UP or nic.master:
            continue
        like = [n for n in hardware if n is not nic and (n.driver, n.board) == (nic.driver, nic.board)]
        if not like or not all(n.up for n in like) or (len(like) < 3 and nic.name not in near):
            continue
        yield Finding(
            message=f"{nic.name} ({nic.driver}) has no link ({nic.state}); its {len(like)} siblings have one",
            cause="nic-interface-down",
            severity=Severity.WARNING,
            confidence=Confidence.LIKELY,
            where=Where(nics=(nic.name,)),
            evidence=(Evidence(text=nic.state or "down", where=f"/sys/class/net/{nic.name}/operstate"),),
            why="a network that the job counts on is missing on this host",
            fixes=(Fix(do="see its link", command=f"ethtool {nic.name}"),),
            confirm=CONFIRM_INTER,
            sources=("Linux: ABI/testing/sysfs-class-net, operstate",),
            explains=("fewer-nics-than-expected", "busbw-below-expected"),
        )
