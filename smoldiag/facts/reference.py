"""What a bench is compared with: figures of others and of this site, and the hardware, as bounds need it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published bus bandwidth. Only `use` "measured" may stand for what such hardware gives."""

    collective: str
    gpu: str  # the class: H100 SXM, A100 SXM, B200 (knowledge/hardware.py)
    gpus_per_node: int  # ranks per node of the run
    nodes: int | None
    fabric: str
    instance: str  # as published: AWS p5.48xlarge; empty where not stated
    size_bytes: int | None
    busbw_gbs: float
    kind: str  # how its publisher came to it
    use: str  # measured, or why not: threshold | NVLS off | older stack ...
    source: str
    nccl_version: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One figure of this site's own reference."""

    collective: str
    size_bytes: int
    nodes: int
    ranks_per_node: int
    backend: str
    busbw_gbs: float
    dtype: str | None = None
    gpu: str | None = None  # NVML name; None on CPU
    host_class: str | None = None  # product or instance type
    created: str = ""  # ISO 8601
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One host of a uniform world. GB/s are 1e9 bytes/s in one direction; None = not known."""

    gpu: str | None = None  # NVML name; None on CPU
    gpu_class: str | None = None  # as published rows name it
    gpus_per_node: int | None = None  # present, used or not
    nvlink_gb_per_s: float | None = None  # per GPU, all its links; 0 = it has none
    nvlink_bridge: int = 0  # how many cards one bridge joins; 0: the links join all GPUs of the node
    nvls: bool | None = None  # the NVLink switch can reduce
    nvswitch: bool = False  # one node of such GPUs is the same machine everywhere
    mnnvl: bool = False  # NVLink reaches other nodes
    pcie_gb_per_s: float | None = None  # per GPU
    nic_gb_per_s: float | None = None  # all NICs of the node's compute network
    nics: str = ""  # for people: 8 x 400 Gb/s infiniband
    instances: tuple[str, ...] = ()  # the names that published rows may have for such a machine
    host_class: str | None = None
