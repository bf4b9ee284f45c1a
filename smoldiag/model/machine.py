"""What a host's facts say together: its GPUs in the PCI tree, what lies beside them, which NICs collectives use."""

from collections.abc import Iterable, Mapping, Sequence

from smoldiag.facts import Container, Gpu, Nic, PciDevice
from smoldiag.model.remember import by_identity

NVIDIA = "10de"
AMD = "1002"
GPU_CLASSES = {NVIDIA: ("0x0302", "0x0300"), AMD: ("0x0380", "0x0302", "0x1200")}  # 3D, VGA; accelerators
AMD_ACCELERATORS = ("74a", "740", "738", "75a")  # MI300, MI200, MI100, MI350: the others are graphics
GRAPHICS = "0x0300"
RDMA = {"infiniband", "roce", "efa"}
SYNTHETIC = {"hv_netvsc"}  # its lower device is the same network once more (Azure accelerated networking)


@by_identity
def by_address(pci: Iterable[PciDevice]) -> dict[str, PciDevice]:
    return {d.address: d for d in pci}


def ancestors(devices: Mapping[str, PciDevice], address: str) -> tuple[PciDevice, ...]:
    """The bridges above a device, nearest first."""
    found: list[PciDevice] = []
    here = devices.get(address)
    while here and here.parent and here.parent in devices and len(found) < 32:
        here = devices[here.parent]
        found.append(here)
    return tuple(found)


@by_identity
def pci_gpus(pci: Iterable[PciDevice]) -> tuple[PciDevice, ...]:
    """In the order of their addresses, which is NVML's."""
    found = [d for d in pci if d.kind.startswith(GPU_CLASSES.get(d.vendor, ("-",))) and not d.is_virtual_function]
    return tuple(
        sorted(
            (d for d in found if d.vendor == NVIDIA or d.device.startswith(AMD_ACCELERATORS)), key=lambda d: d.address
        )
    )


def gpu_indices(pci: Sequence[PciDevice], gpus: Sequence[Gpu] | None) -> dict[str, int]:
    """PCI address -> GPU index; NVML's where it was asked."""
    told = {g.bus_id: g.index for g in gpus or () if g.bus_id}
    return told or {d.address: i for i, d in enumerate(pci_gpus(pci))}


def gpu_count(
    gpus: Sequence[Gpu] | None, pci: Sequence[PciDevice] | None, container: Container | None = None
) -> int | None:
    """GPUs that a job here can use. None: nobody could look."""
    if gpus is not None:
        return len(gpus)
    if container and container.kind != "none" and container.devices is not None:
        seen = [d for d in container.devices if d.removeprefix("/dev/nvidia").isdigit()]
        if seen:
            return len(seen)
    return len(pci_gpus(pci)) if pci is not None else None


def is_root_port(bridge: PciDevice) -> bool:
    """By its own word; else by having no bridge above it."""
    return bridge.port == "root" or (bridge.port is None and bridge.parent is None)


def switch_ports(devices: Mapping[str, PciDevice], address: str) -> tuple[PciDevice, ...]:
    """The bridges above a device without the root port."""
    return tuple(d for d in ancestors(devices, address) if not is_root_port(d))


@by_identity
def beside_gpus(nics: Iterable[Nic], pci: Sequence[PciDevice] | None) -> frozenset[str]:
    """Names of the NICs that a switch joins with a GPU without the processor (path PIX or PXB)."""
    placed = [n for n in nics if n.bus_id]
    if not pci or not placed:
        return frozenset()
    devices = by_address(pci)
    above = {d.address for g in pci_gpus(pci) for d in switch_ports(devices, g.address)}
    near = (n.name for n in placed if n.bus_id and any(d.address in above for d in ancestors(devices, n.bus_id)))
    return frozenset(near)


def link_gb_per_s(gt_per_s: float, width: int) -> float:
    """One direction: transfer rate x lanes x line coding (PCI Express Base Specification: 8b/10b, then 128b/130b)."""
    return gt_per_s * width * (0.8 if gt_per_s < 8 else 128 / 130) / 8


@by_identity
def rdma_ports(nics: Iterable[Nic]) -> tuple[Nic, ...]:
    """Ports of hardware that speaks RDMA by itself: not rxe, not the lower device of a synthetic interface."""
    nics = tuple(nics)
    synthetic = {n.name for n in nics if n.driver in SYNTHETIC}
    return tuple(n for n in nics if n.kind in RDMA and not n.virtual and not (n.master and n.master in synthetic))


@by_identity
def compute_nics(nics: Iterable[Nic], pci: Sequence[PciDevice] | None) -> tuple[Nic, ...]:
    """Ports that collectives are meant to use: those beside a GPU; else InfiniBand or EFA; else the fastest RoCE."""
    ports = rdma_ports(nics)
    if near := beside_gpus(ports, pci):
        return tuple(n for n in ports if n.name in near)
    fabric = tuple(n for n in ports if n.kind in ("infiniband", "efa"))
    if fabric:
        return fabric
    rates = [n.gbit_per_s for n in ports if n.up and n.gbit_per_s]
    return tuple(n for n in ports if not n.up or not n.gbit_per_s or 2 * n.gbit_per_s >= max(rates))


def needs_peer_access(pci: Iterable[PciDevice], nics: Iterable[Nic], gpus: Sequence[Gpu] | None) -> bool:
    """Whether GPUs and NICs of this host are to reach each other over PCIe: graphics cards alone often can't at all."""
    found = pci_gpus(pci)
    if found and rdma_ports(nics):
        return True
    told = any(status == "ok" for g in gpus or () for status in (g.p2p or {}).values())
    return len(found) > 1 and (told or any(not g.kind.startswith(GRAPHICS) for g in found))


def has_rdma(nics: Iterable[Nic]) -> bool:
    return any(n.up for n in rdma_ports(nics))
