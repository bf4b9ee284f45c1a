"""PCI: access control, links and errors of the PCI tree."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from smoldiag.facts import Cpu, Evidence, Gpu, Nic, PciDevice, System
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.model.machine import (
    ancestors,
    by_address,
    compute_nics,
    gpu_indices,
    is_root_port,
    link_gb_per_s,
    needs_peer_access,
    pci_gpus,
    rdma_ports,
    switch_ports,
)
from smoldiag.rules import NotKnown, rule
from smoldiag.rules.forms import named

Pci = tuple[PciDevice, ...]
REDIRECTS = {"ReqRedir", "CmpltRedir", "UpstreamFwd"}  # the flags that send peer traffic up to the root complex
ROUNDING = 0.97  # a link that carries 97 % of the port's rate holds nothing back
SIBLINGS = 3  # devices of one kind, of which most agree, before one can be called different
NCCL_ACS = "NCCL user guide, Troubleshooting: GPU troubleshooting, PCI Access Control Services (ACS)"
NCCL_ATS = f"{NCCL_ACS}, virtual machines"
PCIE = "PCI Express Base Specification: Link Status Register; /sys/bus/pci/devices/*/current_link_*"


@rule("PCI002", Severity.WARNING)
def acs_above_a_gpu(
    pci: Pci, system: System | None, gpus: tuple[Gpu, ...] | None, nics: tuple[Nic, ...] | None, cpu: Cpu | None
) -> Iterator[Finding]:
    """Access control (ACS) is on at a PCIe switch above a GPU, on bare metal.

    The switch then sends traffic between GPUs, and between a GPU and a NIC, up to the processor instead of straight
    across: GPUDirect RDMA is slow or fails with status 4 (vendor error 0x51), peer-to-peer copies may hang. In a
    virtual machine ACS must stay on; there ATS on the NIC is what helps.

    Fix: setpci -s BRIDGE ECAP_ACS+0x6.w=0000 for each switch port, at every boot, or ACS off in the firmware.
    """
    if system and system.virtual not in (None, "none"):
        return
    indices = gpu_indices(pci, gpus)
    peers = len(pci_gpus(pci)) + len(rdma_ports(nics or ()))
    devices = by_address(pci)
    bridges = [(gpu, bridge) for gpu in pci_gpus(pci) for bridge in _judged_bridges(devices, gpu)]
    if bridges and all(b.acs is None for _, b in bridges):
        raise NotKnown("not known: acs (the configuration space of bridges is readable by root only)")
    above: dict[str, list[int]] = {}
    for gpu, bridge in bridges:
        if bridge.acs:
            above.setdefault(bridge.address, []).append(indices.get(gpu.address, -1))
    if not above or peers < 2:
        return
    flags = sorted({flag for address in above for flag in devices[address].acs or ()})
    redirects = bool(REDIRECTS & set(flags))
    grace = cpu is not None and cpu.architecture == "aarch64"  # its SMMU translates for the GPUs, too
    translated = system is not None and system.iommu == "translated" and not grace
    redirected = translated and needs_peer_access(pci, nics or (), gpus)
    roots = all(is_root_port(devices[a]) for a in above)
    addresses = sorted(above)
    yield Finding(
        message=f"ACS is on at {len(above)} bridge{'s' if len(above) > 1 else ''} above GPUs: {_some(addresses)} "
        f"({' '.join(f + '+' for f in flags)})",
        cause="acs-enabled",
        severity=Severity.WARNING if not roots or redirected else Severity.INFO,
        confidence=Confidence.CERTAIN if redirects and not roots else Confidence.POSSIBLE,
        where=Where(gpus=tuple(sorted({i for at in above.values() for i in at if i >= 0}))),
        evidence=tuple(
            Evidence(
                text=f"{a} ACSCtl: {' '.join(f + '+' for f in devices[a].acs or ())}",
                where=f"sudo lspci -vvv -s {a}",
            )
            for a in addresses[:8]
        ),
        why="peer-to-peer traffic is redirected through the root complex",
        cost="GPUDirect RDMA at about half or less (33 instead of 93 GB/s has been seen), or a hang",
        fixes=(
            Fix(
                do="switch it off on these bridges until the next boot, and at every boot by a service",
                command="for b in " + " ".join(addresses) + "; do sudo setpci -s $b ECAP_ACS+0x6.w=0000; done",
            ),
            Fix(do="or switch it off for good in the firmware (ACS, VT-d, AMD IOMMU)"),
        ),
        confirm="smoldiag nccl-bench --groups intra,inter; NCCL_P2P_DISABLE=1 runs where a hang is cured by it",
        sources=(
            NCCL_ACS,
            "https://github.com/NVIDIA/nccl/issues/1412",
            "https://github.com/NVIDIA/nccl/issues/2079",
        ),
        explains=(
            "pcie-acs-iommu-p2p-hang",
            "pcie-acs-breaks-gdr",
            "gdr-not-used",
            "p2p-not-used",
            "busbw-below-expected",
        ),
    )


def _judged_bridges(devices: Mapping[str, PciDevice], gpu: PciDevice) -> tuple[PciDevice, ...]:
    """Switch ports; for a GPU in a slot of the processor, the root port."""
    return switch_ports(devices, gpu.address) or ancestors(devices, gpu.address)


@rule("PCI003", Severity.INFO)
def vm_nic_without_ats(pci: Pci, system: System, nics: tuple[Nic, ...]) -> Iterator[Finding]:
    """A virtual machine whose NICs do not use address translation services (ATS).

    Between passed-through GPUs and NICs, ACS with direct translated peer-to-peer and ATS on the NIC let traffic
    take the short way; without ATS it goes through the root complex (27 instead of 48 GB/s have been seen). Set on
    the hypervisor and in the NIC's firmware, not in the guest.

    Fix: ask who runs the hypervisor for ATS_ENABLED=true in the NIC's firmware and ACS direct translated P2P.
    """
    if system.virtual in (None, "none") or not pci_gpus(pci):
        return
    devices = by_address(pci)
    ports = [n for n in rdma_ports(nics) if n.kind != "efa" and n.bus_id in devices]
    without = [n.name for n in ports if n.bus_id and devices[n.bus_id].ats is False]
    if without and len(without) == len(ports):
        yield Finding(
            message=f"no ATS on {_some(without)} in this {system.virtual} guest",
            cause="vm-acs-ats",
            severity=Severity.INFO,
            confidence=Confidence.POSSIBLE,
            where=Where(nics=tuple(without)),
            evidence=(
                Evidence(text="ATSCtl: Enable-", where=f"sudo lspci -vvv -s {devices[ports[0].bus_id or ''].address}"),
            ),
            why="without ATS, traffic between passed-through devices goes through the root complex",
            fixes=(
                Fix(
                    do="on the hypervisor: ATS in the NIC's firmware",
                    command="mlxconfig -d DEVICE set ATS_ENABLED=true",
                ),
            ),
            confirm="smoldiag nccl-bench --groups inter, against the NICs' rate",
            sources=(NCCL_ATS, "https://github.com/NVIDIA/nccl/issues/949"),
        )


@rule("PCI004", Severity.WARNING)
def link_narrower_than_both_ends(
    pci: Pci, nics: tuple[Nic, ...] | None, gpus: tuple[Gpu, ...] | None, system: System | None
) -> Iterator[Finding]:
    """A PCIe link of a GPU, NIC or switch has fewer lanes than both of its ends could use.

    A bad contact, a riser or a firmware setting: half of the lanes is half of the bandwidth.

    Fix: reseat the card, swap the slot or cable, look at the firmware's bifurcation.
    """
    if system and system.virtual not in (None, "none"):
        return
    only_gpu = len(pci_gpus(pci)) == 1 and not rdma_ports(nics or ())
    devices, alike = by_address(pci), _alike(pci)
    by_nvml = {g.bus_id for g in gpus or () if g.pci_width is not None}
    for device in _judged(pci, nics):
        if device.address in by_nvml:
            continue  # GPU rules have it, with what NVML says
        parent = devices.get(device.parent or "")
        most = _least(device.width_max, parent.width_max if parent else None)
        usual = _usual(d.width for d in alike[_likeness(device)])
        expected = _higher(device.width, most, usual)
        if expected is None:
            continue
        yield Finding(
            message=f"{named(device)} runs at x{device.width}, "
            + (f"both ends can x{most}" if expected == most else f"its siblings run at x{usual}"),
            cause="pcie-degraded",
            subject="width",
            severity=Severity.INFO if only_gpu else Severity.WARNING,
            confidence=Confidence.LIKELY,
            where=_where(pci, device, nics, gpus),
            evidence=(
                Evidence(
                    text=f"x{device.width} of x{device.width_max}",
                    where=f"/sys/bus/pci/devices/{device.address}/current_link_width",
                ),
            ),
            why="all traffic of this device shares fewer lanes",
            cost=_lost(device, width=expected),
            fixes=(
                Fix(
                    do="see whether the kernel complained, then reseat the card or swap the slot",
                    command=f"sudo lspci -vvv -s {device.address} | grep -E 'LnkCap|LnkSta'; dmesg | grep 'limited by'",
                ),
            ),
            confirm="smoldiag nccl-bench --groups intra; the host link of this GPU against the others",
            sources=(PCIE,),
            explains=("busbw-below-expected", "slow-node"),
        )


@rule("PCI005", Severity.WARNING)
def link_slower_than_both_ends(pci: Pci, nics: tuple[Nic, ...] | None, system: System | None) -> Iterator[Finding]:
    """A PCIe link of a NIC or of a switch above GPUs is slower than both ends could go.

    Each generation doubles the rate. GPUs lower theirs when idle, so that theirs is judged under load only.

    Fix: reseat the card; look for a generation that the firmware fixes for this slot.
    """
    if system and system.virtual not in (None, "none"):
        return
    gpus = {g.address for g in pci_gpus(pci)}
    devices, alike = by_address(pci), _alike(pci)
    for device in _judged(pci, nics):
        if device.address in gpus or device.gt_per_s is None:
            continue
        parent = devices.get(device.parent or "")
        most = _least(device.gt_per_s_max, parent.gt_per_s_max if parent else None)
        usual = _usual(d.gt_per_s for d in alike[_likeness(device)])
        expected = _higher(device.gt_per_s, most, usual)
        if expected is None:
            continue
        yield Finding(
            message=f"{named(device)} runs at {device.gt_per_s:g} GT/s per lane, "
            + (f"both ends can {most:g}" if expected == most else f"its siblings run at {usual:g}"),
            cause="pcie-degraded",
            subject="speed",
            severity=Severity.WARNING,
            confidence=Confidence.LIKELY,
            where=_where(pci, device, nics, None),
            evidence=(
                Evidence(
                    text=f"{device.gt_per_s:g} of {device.gt_per_s_max:g} GT/s" if device.gt_per_s_max else "",
                    where=f"/sys/bus/pci/devices/{device.address}/current_link_speed",
                ),
            ),
            why="all traffic of this device goes at the lower rate",
            cost=_lost(device, gt_per_s=expected),
            fixes=(
                Fix(
                    do="see both ends, then reseat the card or set the slot's generation in the firmware",
                    command=f"sudo lspci -vvv -s {device.address} | grep -E 'LnkCap|LnkSta'",
                ),
            ),
            confirm="smoldiag nccl-bench --groups inter",
            sources=(PCIE,),
            explains=("busbw-below-expected", "slow-node"),
        )


@rule("PCI006", Severity.INFO)
def slot_below_the_ports_rate(pci: Pci, nics: tuple[Nic, ...], system: System | None) -> Iterator[Finding]:
    """The PCIe link of a NIC carries less than the ports on it.

    The link is as fast as slot and card can together, but the network is faster. Known machines are built so (two
    functions share a port, a 400 Gb/s card in a PCIe 4 slot).

    Fix: a slot with more lanes or a newer generation, or count on the lower figure.
    """
    if system and system.virtual not in (None, "none"):
        return
    devices = by_address(pci)
    on_card: dict[str, list[Nic]] = {}
    for n in rdma_ports(nics):
        if n.bus_id in devices and n.up and n.gbit_per_s:
            on_card.setdefault(n.bus_id, []).append(n)
    for address, ports in on_card.items():
        device = devices[address]
        if not device.gt_per_s or not device.width:
            continue
        rate = sum(n.gbit_per_s or 0 for n in ports)
        link = 8 * link_gb_per_s(device.gt_per_s, device.width)
        if link >= ROUNDING * rate:
            continue
        yield Finding(
            message=f"{', '.join(n.name for n in ports)}: {rate:g} Gb/s of ports on a PCIe link of {link:.0f} Gb/s "
            f"({device.gt_per_s:g} GT/s x{device.width})",
            cause="nic-slot-too-slow",
            severity=Severity.INFO,
            where=Where(nics=tuple(n.name for n in ports)),
            evidence=(
                Evidence(
                    text=f"{device.gt_per_s:g} GT/s x{device.width}",
                    where=f"/sys/bus/pci/devices/{device.address}/current_link_*",
                ),
            ),
            why="the network can't be filled through this link",
            cost=f"{rate - link:.0f} Gb/s of {rate:g} Gb/s (link rate x lanes x coding)",
            confirm="smoldiag nccl-bench --groups inter",
            sources=(PCIE,),
        )


@rule("PCI007", Severity.INFO)
def pcie_errors_counted(pci: Pci, nics: tuple[Nic, ...] | None, gpus: tuple[Gpu, ...] | None) -> Iterator[Finding]:
    """PCIe errors that could not be corrected were counted on a GPU, a NIC or their switch.

    They count since boot, and some come from starting up: only an increase while a job runs says that it fails.

    Fix: look again after a run; a count that grows is a bad link or card.
    """
    counted = [d for d in _judged(pci, nics) if d.aer_fatal or d.aer_nonfatal]
    for device in counted:
        yield Finding(
            message=f"{named(device)}: {device.aer_fatal or 0} fatal and {device.aer_nonfatal or 0} non-fatal "
            "PCIe errors since boot",
            cause="pcie-errors",
            severity=Severity.INFO,
            where=_where(pci, device, nics, gpus),
            evidence=(
                Evidence(
                    text=f"TOTAL_ERR_FATAL {device.aer_fatal}, TOTAL_ERR_NONFATAL {device.aer_nonfatal}",
                    where=f"/sys/bus/pci/devices/{device.address}/aer_dev_*",
                ),
            ),
            why="a link that loses packets sends them again, or drops the device",
            fixes=(
                Fix(
                    do="look again after a run",
                    command=f"grep . /sys/bus/pci/devices/{device.address}/aer_dev_*fatal",
                ),
            ),
            confirm="the same counters after smoldiag nccl-bench",
            sources=("Linux: PCI/pcieaer-howto, AER statistics",),
        )


def _judged(pci: Pci, nics: tuple[Nic, ...] | None) -> list[PciDevice]:
    """GPUs, NICs that collectives use, and the upstream ports of switches that join them to others."""
    devices = by_address(pci)
    ends = [g.address for g in pci_gpus(pci)]
    ends += [n.bus_id for n in compute_nics(nics or (), pci) if n.bus_id in devices and n.up]
    below = Counter(p.address for end in dict.fromkeys(ends) for p in switch_ports(devices, end))
    upstream = [a for a, count in below.items() if count > 1 and _is_upstream(devices, devices[a])]
    return [devices[a] for a in dict.fromkeys((*ends, *upstream))]


def _is_upstream(devices: Mapping[str, PciDevice], bridge: PciDevice) -> bool:
    above = devices.get(bridge.parent or "")
    return bridge.port == "upstream" or (bridge.port is None and above is not None and is_root_port(above))


def _higher(now: float | None, most: float | None, usual: float | None) -> float | None:
    """What it should be where it is less than both ends can, or than its siblings have."""
    return next((v for v in (most, usual) if now and v and now < v), None)


def _least(*values: float | None) -> float | None:
    known = [v for v in values if v]
    return min(known) if known else None


def _alike(pci: Pci) -> dict[tuple[str | None, ...], list[PciDevice]]:
    groups: dict[tuple[str | None, ...], list[PciDevice]] = {}
    for d in pci:
        groups.setdefault(_likeness(d), []).append(d)
    return groups


def _likeness(device: PciDevice) -> tuple[str | None, ...]:
    return (device.vendor, device.device, device.subsystem, device.port)


def _usual(values: Iterable[float | None]) -> float | None:
    """What most devices of this kind have, where there are enough of them."""
    known = Counter(v for v in values if v)
    if sum(known.values()) < SIBLINGS:
        return None
    value, count = known.most_common(1)[0]
    return value if 2 * count > sum(known.values()) else None


def _lost(device: PciDevice, *, width: float | None = None, gt_per_s: float | None = None) -> str:
    if not (device.width and device.gt_per_s):
        return ""
    now = link_gb_per_s(device.gt_per_s, device.width)
    could = link_gb_per_s(gt_per_s or device.gt_per_s, int(width or device.width))
    return f"{now:.1f} instead of {could:.1f} GB/s per direction (rate x lanes x coding)"


def _where(pci: Pci, device: PciDevice, nics: tuple[Nic, ...] | None, gpus: tuple[Gpu, ...] | None) -> Where:
    """The device itself, or all that lies below a switch."""
    indices, devices = gpu_indices(pci, gpus), by_address(pci)
    below = {g.address for g in pci_gpus(pci) if device in (g, *switch_ports(devices, g.address))}
    ports = [
        n.name
        for n in rdma_ports(nics or ())
        if n.bus_id and (n.bus_id == device.address or device in switch_ports(devices, n.bus_id))
    ]
    return Where(gpus=tuple(sorted(indices[a] for a in below if a in indices)), nics=tuple(ports))


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
