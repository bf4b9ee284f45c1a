"""How GPUs, NICs and CPUs of one host are joined, and how hosts lie in their network.

Bandwidths are GB/s in one direction, as NCCL reckons with them.
"""

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, kw_only=True)
class TopoDevice:
    """A GPU or a NIC, as the end of a path."""

    name: str  # GPU0 | mlx5_0
    kind: str  # gpu | nic
    index: int | None = None  # NVML's, or NCCL's number of a NIC
    bus_id: str | None = None
    numa: tuple[int, ...] | None = None  # NUMA nodes next to it; several where nobody told the machine which
    model: str | None = None
    gb_per_s: float | None = None  # what a NIC's port carries
    gdr: bool | None = None  # whether it takes part in GPUDirect RDMA, where the source says so


@dataclass(frozen=True, kw_only=True)
class TopoPath:
    """Between two devices, in both directions."""

    ends: tuple[str, str]  # their names
    kind: str  # NCCL's: LOC NVL NVB C2C PIX PXB P2C PXN PHB SYS, DIS: none
    written: str | None = None  # as the source wrote it, where that is another word: NV12, NODE
    gb_per_s: float | None = None  # of the narrowest hop
    narrowest: str | None = None  # which hop that is
    relay: str | None = None  # PXN, NVB: the GPU between
    direct: str | None = None  # PXN: the kind of the GPU's own path


@dataclass(frozen=True, kw_only=True)
class TopoNode:
    """A part of the machine: GPU, NIC, PCIe switch, NVSwitch or CPU."""

    id: str  # of GPUs and NICs the device's name, else the bus id, or cpu0, nvs
    kind: str  # gpu | nic | pci | nvs | cpu
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class TopoHop:
    """A link between two parts."""

    ends: tuple[str, str]  # ids of nodes
    kind: str  # nvl | c2c | pci | sys | net
    gb_per_s: float | None = None
    label: str = ""  # PCIe 5 x16 | 18 NVLinks


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The inside of a host."""

    source: str  # this host | topo.xml: NCCL topology XML | topo.txt: nvidia-smi topo -m
    devices: tuple[TopoDevice, ...]
    paths: tuple[TopoPath, ...]  # one for each pair of GPUs and each GPU and NIC, as far as the source tells
    tells_nvlinks: bool = True  # False: the source has no place for them, or left them out
    nodes: tuple[TopoNode, ...] = ()  # empty where the source has only a matrix
    hops: tuple[TopoHop, ...] = ()

    @cached_property
    def gpus(self) -> tuple[TopoDevice, ...]:
        return tuple(d for d in self.devices if d.kind == "gpu")

    @cached_property
    def nics(self) -> tuple[TopoDevice, ...]:
        return tuple(d for d in self.devices if d.kind == "nic")

    def path(self, a: str, b: str) -> TopoPath | None:
        return self._by_ends.get((a, b)) or self._by_ends.get((b, a))

    @cached_property
    def _by_ends(self) -> dict[tuple[str, str], TopoPath]:
        return {p.ends: p for p in self.paths}


@dataclass(frozen=True, kw_only=True)
class GpuWay:
    """How a GPU gets to the network."""

    gpu: str
    numa: tuple[int, ...] | None = None
    nics: tuple[str, ...] = ()  # those that NCCL may give it, its first channel's in front
    kind: str | None = None  # of the path to the first
    gb_per_s: float | None = None
    narrowest: str | None = None
    gpudirect: bool | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A host in its network: the switches above it, the nearest first."""

    host: str
    switches: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Network:
    """How the hosts of a job lie to each other."""

    source: str  # scontrol show topology | aws.json
    placements: tuple[Placement, ...]
    missing: tuple[str, ...] = ()  # hosts that the source does not know
