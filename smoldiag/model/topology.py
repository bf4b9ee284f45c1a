"""Paths through a machine as NCCL sees them: their kinds, their narrowest hop, the NIC that a GPU gets.

NCCL src/graph/topo.h, topo.cc, paths.cc of 2.30. Bandwidths are those that NCCL reckons with, in GB/s and one
direction; links carry a little more.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from smoldiag.facts import Gpu, GpuWay, Host, Nic, PciDevice, TopoDevice, TopoHop, Topology, TopoNode, TopoPath

ORDER = ("LOC", "NVL", "NVB", "C2C", "PIX", "PXB", "P2C", "PXN", "PHB", "SYS", "DIS")  # nearer first
GDR_LEVEL = "PXB"  # NCCL uses GPUDirect up to here, and over P2C (NCCL_NET_GDR_LEVEL, NCCL_NET_GDR_C2C)

# paths.cc, topo.h: GB/s of one NVLink, by compute capability; the greatest that is not above the GPU's
NVLINK_GB_PER_S = {60: 18.0, 70: 20.0, 80: 20.0, 86: 12.0, 90: 20.6, 100: 40.1}
PCI_CODE = {2.5: 15, 5.0: 30, 8.0: 60, 16.0: 120, 32.0: 240, 64.0: 480}  # GT/s -> GB/s per 80 lanes
PCI_GENERATION = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}
UNTOLD_GT_PER_S, UNTOLD_WIDTH = 8.0, 16  # what NCCL takes where a machine does not tell
SOCKETS_GB_PER_S = {"amd": 16.0, "arm64": 6.0, "ppc64": 32.0, "zhaoxin": 6.0}  # between two CPUs
INTEL_GB_PER_S = ((207, 40.0), (143, 22.0), (85, 10.0), (0, 6.0))  # from this model id on: Emerald, Sapphire, Skylake
# Intel's model number behind its name, where only the name is known: 8480C is a Sapphire Rapids
INTEL_NAMES = ((r"\b[3-9]5\d\d[A-Z+]*\b", 207), (r"\b[3-9]4\d\d[A-Z+]*\b", 143), (r"\b[3-9][123]\d\d[A-Z]*\b", 85))
DISPLAY, NETWORK = "0x03", "0x02"  # PCI classes
NVIDIA = "10de"
RDMA = ("infiniband", "roce", "efa")


def rank(kind: str) -> int:
    """Smaller is nearer."""
    return _RANK[kind]


_RANK = {kind: i for i, kind in enumerate(ORDER)}


def is_near(kind: str) -> bool:
    """Whether NCCL uses GPUDirect over it by default."""
    return rank(kind) <= rank(GDR_LEVEL) or kind == "P2C"


def nvlink_gb_per_s(sm: int | None) -> float | None:
    return next((rate for least, rate in sorted(NVLINK_GB_PER_S.items(), reverse=True) if sm and sm >= least), None)


def pci_gb_per_s(gt_per_s: float | None, width: int | None) -> float:
    code = PCI_CODE.get(gt_per_s or UNTOLD_GT_PER_S, PCI_CODE[UNTOLD_GT_PER_S])
    return (width or UNTOLD_WIDTH) * code / 80


def pci_label(gt_per_s: float | None, width: int | None) -> str:
    if gt_per_s is None or width is None:
        return "PCIe, rate not told"
    return f"PCIe {PCI_GENERATION.get(gt_per_s, '?')} x{width}"


def sockets_gb_per_s(*, vendor: str | None, model_id: int | None = None, name: str | None = None) -> float | None:
    """Between two CPUs. `vendor`: as /proc/cpuinfo and NCCL's XML have it, or an architecture."""
    words = f"{vendor or ''} {name or ''}".lower()
    for key, rate in SOCKETS_GB_PER_S.items():
        if key in words or (key == "amd" and "authenticamd" in words) or (key == "arm64" and "aarch64" in words):
            return rate
    if "intel" in words:
        known = model_id or next((m for pattern, m in INTEL_NAMES if re.search(pattern, name or "")), None)
        return next((rate for least, rate in INTEL_GB_PER_S if known is not None and known >= least), None)
    return None


# ---- a machine from parts


@dataclass
class Machine:
    """Parts and links, put together by whoever reads a description of a machine."""

    nodes: dict[str, TopoNode] = field(default_factory=dict)
    hops: dict[tuple[str, str, str], TopoHop] = field(default_factory=dict)
    devices: list[TopoDevice] = field(default_factory=list)

    def add(self, node: TopoNode) -> None:
        self.nodes.setdefault(node.id, node)

    def device(self, device: TopoDevice, *, above: str, gb_per_s: float | None, label: str) -> None:
        """A GPU or a NIC below a switch or a CPU."""
        self.devices.append(device)
        self.add(TopoNode(id=device.name, kind=device.kind, label=device.model or ""))
        self.link(device.name, above, "pci", gb_per_s, label)

    def link(self, a: str, b: str, kind: str, gb_per_s: float | None, label: str) -> None:
        ends = (a, b) if a <= b else (b, a)
        self.hops.setdefault((*ends, kind), TopoHop(ends=ends, kind=kind, gb_per_s=gb_per_s, label=label))

    def sockets(self, gb_per_s: float | None) -> None:
        """Every CPU with every other, as NCCL has it."""
        cpus = [n.id for n in self.nodes.values() if n.kind == "cpu"]
        for i, a in enumerate(cpus):
            for b in cpus[i + 1 :]:
                self.link(a, b, "sys", gb_per_s, "between CPUs")

    def topology(self, source: str, *, tells_nvlinks: bool = True) -> Topology:
        nodes, hops = tuple(self.nodes.values()), tuple(self.hops.values())
        paths = _all_paths(self.devices, nodes, hops)
        bare = Topology(
            source=source,
            devices=tuple(self.devices),
            paths=paths,
            tells_nvlinks=tells_nvlinks,
            nodes=nodes,
            hops=hops,
        )
        return with_relays(bare)


# ---- paths


@dataclass(frozen=True)
class _Way:
    kind: str
    count: int
    gb_per_s: float  # inf where no hop tells
    narrowest: str
    via: tuple[str, ...]  # ids of the nodes, the start first


def _all_paths(
    devices: Sequence[TopoDevice], nodes: Sequence[TopoNode], hops: Sequence[TopoHop]
) -> tuple[TopoPath, ...]:
    kinds = {n.id: n.kind for n in nodes}
    beside: dict[str, list[TopoHop]] = {}
    for hop in hops:
        for end in hop.ends:
            beside.setdefault(end, []).append(hop)
    nics = {d.name: d for d in devices if d.kind == "nic"}
    found = []
    for i, a in enumerate(devices):
        ways = _ways(a.name, kinds, beside) if a.kind == "gpu" else {}
        for b in (*devices[i + 1 :], *(d for d in devices[:i] if d.kind == "nic")) if a.kind == "gpu" else ():
            way = ways.get(b.name)
            found.append(_path(a.name, b.name, way, nics.get(b.name)))
    return tuple(found)


def _path(a: str, b: str, way: _Way | None, nic: TopoDevice | None) -> TopoPath:
    if way is None:
        return TopoPath(ends=(a, b), kind="DIS")
    rate, narrowest = way.gb_per_s, way.narrowest
    if nic and nic.gb_per_s and nic.gb_per_s < rate:
        rate, narrowest = nic.gb_per_s, f"port of {nic.name}, {nic.gb_per_s * 8:g} Gb/s"
    known = rate != float("inf")
    links = narrowest.partition(" NVLink")[0]
    return TopoPath(
        ends=(a, b),
        kind=way.kind,
        written=f"NV{links}" if way.kind == "NVL" and links.isdigit() else None,
        gb_per_s=round(rate, 1) if known else None,
        narrowest=narrowest if known else None,
        relay=way.via[1] if way.kind == "NVB" else None,
    )


def _ways(start: str, kinds: Mapping[str, str], beside: Mapping[str, Sequence[TopoHop]]) -> dict[str, _Way]:
    """The shortest ways, of these the widest, layer by layer (paths.cc: ncclTopoSetPaths)."""
    best = {start: _Way("LOC", 0, float("inf"), "", (start,))}
    layer = [start]
    while layer:
        following: list[str] = []
        for here in layer:
            way = best[here]
            if here != start and kinds[here] in ("gpu", "nic") and not (kinds[here] == "gpu" and way.count == 1):
                continue
            for hop in beside.get(here, ()):
                there = hop.ends[1] if hop.ends[0] == here else hop.ends[0]
                if there == start or (kinds[here] == "gpu" and here != start and not _is_bridge_hop(hop, there, kinds)):
                    continue
                rate = min(way.gb_per_s, hop.gb_per_s if hop.gb_per_s is not None else float("inf"))
                old = best.get(there)
                if old is None or (old.count > way.count and old.gb_per_s < rate):
                    narrower = hop.gb_per_s is not None and hop.gb_per_s < way.gb_per_s
                    best[there] = _Way(
                        _kind(way, hop, here, there, kinds),
                        way.count + 1,
                        rate,
                        hop.label if narrower else way.narrowest,
                        (*way.via, there),
                    )
                    following.append(there)
        layer = list(dict.fromkeys(following))
    return best


def _is_bridge_hop(hop: TopoHop, there: str, kinds: Mapping[str, str]) -> bool:
    """NCCL goes through one GPU only from NVLink to NVLink, and to a GPU."""
    return hop.kind == "nvl" and kinds[there] == "gpu"


def _kind(way: _Way, hop: TopoHop, here: str, there: str, kinds: Mapping[str, str]) -> str:
    if hop.kind == "nvl":
        through = kinds[here] == "gpu" and way.count > 0
        return "NVB" if through else max("NVL", way.kind, key=rank)
    if hop.kind == "c2c":
        return max("C2C", way.kind, key=rank)
    if hop.kind == "sys":
        return "SYS"
    pair = {kinds[here], kinds[there]}
    if way.kind in ("C2C", "P2C"):
        return "P2C"  # from the CPU that the chip is joined to, to a NIC beside it
    if "cpu" in pair:
        return max("PHB", way.kind, key=rank)
    if pair == {"pci"}:
        return max("PXB", way.kind, key=rank)
    return max("PIX", way.kind, key=rank)


def with_relays(topology: Topology) -> Topology:
    """With PXN: a GPU far from a NIC sends over NVLink to a GPU near it (paths.cc: ncclTopoComputePaths)."""
    gpus, nics = [g.name for g in topology.gpus], {n.name for n in topology.nics}
    kinds = {frozenset(p.ends): p for p in topology.paths}

    def relayed(path: TopoPath) -> TopoPath:
        gpu, nic = path.ends
        if nic not in nics or rank(path.kind) <= rank("PXN"):
            return path
        for relay in gpus:
            to, on = kinds.get(frozenset((gpu, relay))), kinds.get(frozenset((relay, nic)))
            if relay != gpu and to and on and to.kind == "NVL" and is_near(on.kind):
                narrow = min((p for p in (to, on) if p.gb_per_s), key=lambda p: p.gb_per_s or 0, default=None)
                return replace(
                    path,
                    kind="PXN",
                    direct=path.kind,
                    written=path.written or path.kind,
                    relay=relay,
                    gb_per_s=narrow.gb_per_s if narrow else None,
                    narrowest=narrow.narrowest if narrow else None,
                )
        return path

    return replace(topology, paths=tuple(relayed(p) for p in topology.paths))


def own_kind(path: TopoPath) -> str:
    """Without the help of another GPU."""
    return path.direct or path.kind


# ---- which NIC a GPU gets


def nics_of(topology: Topology) -> dict[str, tuple[str, ...]]:
    """GPU -> the NICs that it may get, in front the one of its first channel (topo.cc: ncclTopoGetLocalNet).

    The widest path decides, then the nearest; GPUs are spread over equal ones by their index.
    """
    found = {}
    for position, gpu in enumerate(topology.gpus):
        reached = [(n.name, p) for n in topology.nics if (p := topology.path(gpu.name, n.name)) and p.kind != "DIS"]
        order = {name: (-(p.gb_per_s or 0), rank(p.kind), rank(own_kind(p))) for name, p in reached}
        nearest = [name for name, key in order.items() if key == min(order.values())]
        if nearest:
            first = _mirrored(gpu.index if gpu.index is not None else position, len(nearest))
            found[gpu.name] = (*nearest[first:], *nearest[:first])
    return found


def _mirrored(number: int, count: int) -> int:
    """NCCL spreads GPUs over their NICs by the mirrored bits of their index, where the count is a power of two."""
    if count & (count - 1):
        return number % count
    mirrored, bit = 0, count >> 1
    while bit:
        mirrored |= bit if number & 1 else 0
        number >>= 1
        bit >>= 1
    return mirrored % count


def ways(topology: Topology, host: Host | None = None) -> tuple[GpuWay, ...]:
    """For each GPU the NIC that it gets, how, and whether GPUDirect RDMA is possible there."""
    chosen = nics_of(topology)
    found = []
    for gpu in topology.gpus:
        nics = chosen.get(gpu.name, ())
        path = topology.path(gpu.name, nics[0]) if nics else None
        possible, why = gpudirect(topology, gpu.name, nics[0]) if nics else (None, "no NIC is known")
        found.append(
            GpuWay(
                gpu=gpu.name,
                numa=gpu.numa,
                nics=nics,
                kind=path.kind if path else None,
                gb_per_s=path.gb_per_s if path else None,
                narrowest=path.narrowest if path else None,
                gpudirect=possible,
                why="; ".join((why, *(_doubts(gpu, nics[0], topology, host) if host and possible else ()))),
            )
        )
    return tuple(found)


def gpudirect(topology: Topology, gpu: str, nic: str) -> tuple[bool | None, str]:
    """(whether NCCL would use GPUDirect RDMA between them by their distance, why)."""
    path = topology.path(gpu, nic)
    device = next((n for n in topology.nics if n.name == nic), None)
    if path is None or path.kind == "DIS":
        return None, "no path is known"
    if device and device.model == "ethernet":
        return False, f"{nic} is no RDMA device"
    if device and device.gdr is False:
        return False, f"{nic} has no GPU memory support (gdr=0)"
    if path.kind == "PXN":
        return True, f"through {path.relay}, {path.direct} by itself"
    own = own_kind(path)
    if is_near(own):
        return True, "over the chip-to-chip link" if own == "P2C" else "no CPU on the way"
    through = "a host bridge" if own == "PHB" else "the link between CPUs"
    return False, f"{own} goes through {through}; NCCL_NET_GDR_LEVEL is {GDR_LEVEL}"


def _doubts(gpu: TopoDevice, nic: str, topology: Topology, host: Host) -> Iterable[str]:
    """What else has to be so, where this host's facts say that it is not."""
    bus_ids = {gpu.bus_id, *(n.bus_id for n in topology.nics if n.name == nic)}
    above = {d.address: d for d in host.pci or ()}
    bridges = {b for start in bus_ids if start for b in _upward(start, above)}
    redirecting = sorted(b for b in bridges if "ReqRedir" in (above[b].acs or ()))
    if redirecting:
        yield f"ACS redirects it through the CPU at {', '.join(redirecting[:2])}"
    device = next((n for n in host.nics or () if n.name == nic), None)
    modules = host.system.modules if host.system else None
    if device and device.kind != "efa" and modules is not None and not PEER_MEMORY & set(modules):
        yield "nvidia_peermem is not loaded, so that it needs DMA-BUF"


PEER_MEMORY = {"nvidia_peermem", "nv_peer_mem"}


def _upward(start: str, above: Mapping[str, PciDevice]) -> Iterable[str]:
    here = above.get(start)
    for _ in range(16):
        here = above.get(here.parent) if here and here.parent else None
        if here is None:
            return
        yield here.address


# ---- this host


@dataclass(frozen=True)
class _Port:
    """A PCI device with what its link carries."""

    parent: str | None
    numa: int | None
    gt_per_s: float | None
    width: int | None


@dataclass(frozen=True)
class _Gpu:
    device: TopoDevice
    numa: int | None
    sm: int | None
    links: tuple[tuple[str | None, str | None], ...]  # of each NVLink that is up: what it leads to, its bus id
    c2c: bool


def filled(host: Host) -> Host:
    """With its topology, where its facts give one."""
    if host.topology is not None:
        return host
    found = of_host(host)
    if found is None:
        why = next(
            (f"{f}: {host.unread.get(f, 'not collected')}" for f in ("gpus", "pci") if getattr(host, f) is None), ""
        )
        return replace(host, unread={**host.unread, "topology": why or "no GPU with a place on the PCI bus"})
    return replace(host, topology=found)


def of_host(host: Host) -> Topology | None:
    """From the PCI tree, NVML and the NICs. Without NVML (a captured tree) the PCI bus tells which GPUs there are.

    None: the PCI bus could not be read, or there are no GPUs.
    """
    if not host.pci:
        return None
    found = _gpus_on_the_bus(host.pci) if host.gpus is None else host.gpus
    above = {d.address: d for d in host.pci}
    gpus = [g for g in found if g.error is None and g.bus_id in above]
    if not gpus:
        return None
    nics = sorted((n for n in _collective_nics(host.nics or ()) if n.bus_id), key=_natural)
    starts = [bus_id for bus_id in (*(g.bus_id for g in gpus), *(n.bus_id for n in nics)) if bus_id in above]
    needed = dict.fromkeys(address for start in starts for address in (start, *_upward(start, above)))
    cpu = host.cpu
    return _built(
        tuple((address, _port(above[address])) for address in needed),
        tuple(_gpu(g) for g in gpus),
        tuple((_nic(n), n.numa_node) for n in nics),
        sockets_gb_per_s(vendor=cpu.architecture if cpu else None, name=cpu.model if cpu else None),
        all(g.nvlinks is not None for g in gpus),
    )


@lru_cache(maxsize=64)  # the hosts of a cluster are alike
def _built(
    ports: tuple[tuple[str, _Port], ...],
    gpus: tuple[_Gpu, ...],
    nics: tuple[tuple[TopoDevice, int | None], ...],
    between_cpus: float | None,
    tells_nvlinks: bool,
) -> Topology:
    machine, by_address = Machine(), dict(ports)
    for gpu in gpus:
        _place(machine, gpu.device, gpu.device.bus_id or "", by_address, gpu.numa)
    for nic, numa in nics:
        if nic.bus_id in by_address:
            _place(machine, nic, nic.bus_id or "", by_address, numa)
        else:  # nobody knows where it sits: no path leads to it
            machine.devices.append(nic)
    _join_gpus(machine, gpus)
    machine.sockets(between_cpus)
    return machine.topology("PCI tree and NVML" if tells_nvlinks else "PCI tree", tells_nvlinks=tells_nvlinks)


def _port(d: PciDevice) -> _Port:
    return _Port(d.parent, d.numa_node, d.gt_per_s_max or d.gt_per_s, d.width or d.width_max)


def _gpu(gpu: Gpu) -> _Gpu:
    near = gpu.numa_affinity or ((gpu.numa_node,) if gpu.numa_node is not None else None)
    alone = near[0] if near and len(near) == 1 else None
    return _Gpu(
        device=TopoDevice(
            name=f"GPU{gpu.index}", kind="gpu", index=gpu.index, bus_id=gpu.bus_id, numa=near, model=gpu.name
        ),
        numa=gpu.numa_node if gpu.numa_node is not None else alone,
        sm=gpu.compute_capability[0] * 10 + gpu.compute_capability[1] if gpu.compute_capability else None,
        links=tuple((x.remote, x.remote_bus_id) for x in gpu.nvlinks or () if x.active),
        c2c=bool(gpu.c2c_links),
    )


def _nic(nic: Nic) -> TopoDevice:
    return TopoDevice(
        name=nic.name,
        kind="nic",
        bus_id=nic.bus_id,
        numa=(nic.numa_node,) if nic.numa_node is not None else None,
        model=nic.kind,
        gb_per_s=nic.gbit_per_s / 8 if nic.gbit_per_s else None,
    )


def _natural(nic: Nic) -> list[tuple[str, int]]:
    """mlx5_2 before mlx5_10."""
    return [(word, int(number or 0)) for word, number in re.findall(r"(\D+)(\d*)", nic.name)]


def _gpus_on_the_bus(devices: Iterable[PciDevice]) -> list[Gpu]:
    """NVIDIA's, in the order of the bus, as NVML numbers them; those that were given to a virtual machine left out."""
    found = [d for d in devices if d.vendor == NVIDIA and d.kind.startswith(DISPLAY) and d.driver != "vfio-pci"]
    ordered = sorted(found, key=lambda d: d.address)
    return [Gpu(index=i, name="GPU", bus_id=d.address, numa_node=d.numa_node) for i, d in enumerate(ordered)]


def _collective_nics(nics: Iterable[Nic]) -> list[Nic]:
    """The RDMA devices; where there are none, the Ethernet interfaces that are up."""
    rdma = [n for n in nics if n.kind in RDMA and n.bus_id]
    return rdma or [n for n in nics if n.kind == "ethernet" and n.bus_id and n.up and not n.virtual]


def _place(machine: Machine, device: TopoDevice, bus_id: str, ports: Mapping[str, _Port], numa: int | None) -> None:
    """Hang a device into the tree: NCCL takes the ports of a switch as one node, and every root port as the CPU."""
    here, below = bus_id, ""
    while True:
        port = ports.get(here)
        up = ports.get(port.parent) if port and port.parent else None
        switch = up.parent if up else None
        above = switch if switch in ports else None
        rate, label = _link(port, up)
        if above is None:
            node = numa if numa is not None else next((p.numa for p in (port, up) if p and p.numa is not None), 0)
            target = f"cpu{node}"
            machine.add(TopoNode(id=target, kind="cpu", label=f"NUMA node {node}"))
        else:
            target = above
            machine.add(TopoNode(id=target, kind="pci", label="PCIe switch"))
        if below:
            machine.link(below, target, "pci", rate, label)
        else:
            machine.device(device, above=target, gb_per_s=rate, label=label)
        if above is None:
            return
        here = below = above


def _link(port: _Port | None, up: _Port | None) -> tuple[float, str]:
    """A link carries what the slower end can."""
    speeds = [p.gt_per_s for p in (port, up) if p and p.gt_per_s]
    widths = [p.width for p in (port, up) if p and p.width]
    speed, width = min(speeds, default=None), min(widths, default=None)
    return pci_gb_per_s(speed, width), pci_label(speed, width)


def _join_gpus(machine: Machine, gpus: Sequence[_Gpu]) -> None:
    """NVLinks to switches and to other GPUs, and the chip-to-chip link of Grace."""
    by_bus = {g.device.bus_id: g.device.name for g in gpus}
    for gpu in gpus:
        name, per_link = gpu.device.name, nvlink_gb_per_s(gpu.sm)
        # an end that is hidden, in a virtual machine, leads to an NVSwitch: so NCCL takes it
        targets = ["nvs" if kind == "nvswitch" else by_bus.get(bus_id, "nvs") for kind, bus_id in gpu.links]
        for target in dict.fromkeys(targets):
            count = targets.count(target)
            if target == "nvs":
                machine.add(TopoNode(id="nvs", kind="nvs", label="NVSwitch"))
            rate = per_link * count if per_link else None
            machine.link(name, target, "nvl", rate, f"{count} NVLink{'s' if count > 1 else ''}")
        if gpu.c2c and f"cpu{gpu.numa}" in machine.nodes:
            machine.link(name, f"cpu{gpu.numa}", "c2c", None, "NVLink-C2C")
