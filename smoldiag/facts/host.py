"""One host, and all the hosts of a job.

Whatever the source (sysfs, NVML, a captured `nvidia-smi -q`, a bundle), a host becomes these facts. Each is None
where nobody could read it, and `Host.unread` says why; an empty tuple says that somebody looked and there is none.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from smoldiag.facts.env import Env
from smoldiag.facts.evidence import Evidence
from smoldiag.facts.topology import Topology


@dataclass(frozen=True, kw_only=True)
class NvLink:
    """One NVLink of a GPU."""

    index: int
    active: bool | None = None
    version: str | None = None  # 4.0
    gb_per_s: float | None = None  # one direction
    remote: str | None = None  # what it leads to: nvswitch | gpu | cpu
    remote_bus_id: str | None = None
    errors: Mapping[str, int] = field(default_factory=dict)  # replay, recovery, crc_flit, crc_data ... since boot


@dataclass(frozen=True, kw_only=True)
class GpuProcess:
    pid: int
    memory_bytes: int | None = None
    name: str | None = None
    ours: bool = False  # of the job that is looked at


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as NVML tells it. Clocks in MHz, temperatures in degrees Celsius, powers in W."""

    index: int  # NVML's
    name: str
    uuid: str = ""
    memory_bytes: int | None = None
    memory_free_bytes: int | None = None
    busy_pids: tuple[int, ...] | None = None  # processes that compute on it and are not ours
    serial: str | None = None
    bus_id: str | None = None  # 0000:1b:00.0, lower case
    numa_node: int | None = None
    pci_gen: int | None = None  # now
    pci_gen_max: int | None = None  # the most that GPU and slot can together
    pci_width: int | None = None
    pci_width_max: int | None = None
    pci_replays: int | None = None
    persistence: bool | None = None
    compute_mode: str | None = None  # default | exclusive_process | exclusive_thread | prohibited
    mig: bool | None = None
    ecc: bool | None = None
    ecc_pending: bool | None = None  # the mode after the next reboot
    ecc_volatile: int | None = None  # uncorrectable errors since the driver was loaded
    ecc_aggregate: int | None = None  # uncorrectable errors in its life
    ecc_corrected_volatile: int | None = None
    remapped_rows: int | None = None  # because of uncorrectable errors
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    retired_pages: int | None = None
    retirement_pending: bool | None = None
    throttle: tuple[str, ...] | None = None  # NVML's clocks event reasons, decoded: hw_thermal, sw_power_cap ...
    temperature_c: int | None = None
    slowdown_c: int | None = None  # from here on the hardware slows down
    memory_temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None  # as enforced
    power_default_w: float | None = None
    sm_clock_mhz: int | None = None
    sm_clock_max_mhz: int | None = None
    memory_clock_mhz: int | None = None
    memory_clock_max_mhz: int | None = None
    app_clock_mhz: int | None = None  # application clock; None where none is set or supported
    utilization_percent: int | None = None
    nvlinks: tuple[NvLink, ...] | None = None
    fabric_state: str | None = None  # not_supported | not_started | in_progress | completed
    fabric_status: str | None = None  # success, or NVML's error text
    fabric_cluster: str | None = None
    fabric_clique: int | None = None
    p2p: Mapping[int, str] | None = None  # to the GPU of this index: ok | chipset_not_supported | disabled ...
    numa_affinity: tuple[int, ...] | None = None
    processes: tuple[GpuProcess, ...] | None = None
    compute_capability: tuple[int, int] | None = None
    error: str | None = None  # NVML's words, where the GPU is there but does not answer: GPU is lost
    minor: int | None = None  # of /dev/nvidia3
    pstate: int | None = None  # 0 (fastest) to 15
    ecc_default: bool | None = None  # as the board is shipped
    app_clock_default_mhz: int | None = None
    recovery: str | None = None  # what the driver asks for: none | gpu_reset | node_reboot | drain_p2p ...
    fabric_health: tuple[str, ...] | None = None  # what is wrong in the fabric: degraded_bandwidth, route_unhealthy ...
    cpu_affinity: tuple[int, ...] | None = None  # the CPUs next to it
    c2c_links: int | None = None  # chip-to-chip links to the CPU (Grace)
    vbios: str | None = None  # version of its firmware


@dataclass(frozen=True, kw_only=True)
class Gid:
    index: int
    address: str  # fe80:0000:...
    kind: str | None = None  # IB/RoCE v1 | RoCE v2
    netdev: str | None = None


@dataclass(frozen=True, kw_only=True)
class Nic:
    """A network device that collectives could use: a port of a verbs device, or an Ethernet interface."""

    name: str  # mlx5_0 | eth0
    kind: str  # infiniband | roce | efa | ethernet
    gbit_per_s: float | None = None  # link rate; None where the driver does not know (virtual devices)
    up: bool | None = None
    virtual: bool = False  # no hardware below it: veth, bridge, tap
    state: str | None = None  # ACTIVE | DOWN | INIT | ARMED, or operstate
    phys_state: str | None = None  # LinkUp | Polling | Disabled
    gbit_per_s_max: float | None = None  # what the port could do, where it is told
    mtu: int | None = None  # bytes: of an interface; of a RoCE port's interface
    mtu_max: int | None = None
    active_mtu: int | None = None  # bytes of an RDMA packet, where a tool told it: 256 ... 4096
    bus_id: str | None = None
    numa_node: int | None = None
    driver: str | None = None  # mlx5_core, ena, efa
    firmware: str | None = None
    board: str | None = None  # PSID, or the vendor and device id
    guid: str | None = None
    netdev: str | None = None  # the interface of a RoCE port
    gids: tuple[Gid, ...] | None = None
    pkeys: tuple[int, ...] | None = None
    addresses: tuple[str, ...] | None = None  # 10.0.0.1/24 ...
    master: str | None = None  # the bond or bridge that it belongs to
    counters: Mapping[str, int] | None = None  # since boot; only an increase says anything
    device: str | None = None  # the verbs device of this port
    port: int | None = None
    lanes: int | None = None  # 4 of "400 Gb/sec (4X NDR)"
    signalling: str | None = None  # NDR
    lid: int | None = None  # of an InfiniBand port; 0 where no subnet manager gave one
    sm_lid: int | None = None
    peer_memory: str | None = None  # the driver's own word on GPU memory (EFA): NVIDIA ...; empty: it can not
    flags: int | None = None  # of an interface, linux/if.h: 1 up, 8 loopback
    index: int | None = None  # of an interface: the order in which programs see them
    lower: tuple[str, ...] | None = None  # interfaces that a bond, bridge or VLAN stands on


@dataclass(frozen=True, kw_only=True)
class PciDevice:
    """A device or bridge of the PCI tree. Rates in GT/s per lane."""

    address: str  # 0000:1b:00.0
    vendor: str = ""  # 10de
    device: str = ""  # 2330
    kind: str = ""  # class as sysfs has it: 0x030200
    parent: str | None = None  # address of the bridge above; None at a root port's top
    driver: str | None = None
    numa_node: int | None = None
    gt_per_s: float | None = None
    gt_per_s_max: float | None = None
    width: int | None = None
    width_max: int | None = None
    acs: tuple[str, ...] | None = None  # flags of ACSCtl that are on: SrcValid, ReqRedir ...; None where unreadable
    ats: bool | None = None
    iommu_group: int | None = None
    aer_fatal: int | None = None
    aer_nonfatal: int | None = None
    aer_correctable: int | None = None
    port: str | None = None  # of a bridge: root | upstream | downstream
    acs_capable: bool | None = None
    subsystem: str | None = None  # vendor:device of the board: 15b3:0041
    is_virtual_function: bool = False


@dataclass(frozen=True, kw_only=True)
class Route:
    destination: str  # 10.0.0.0/16 | default
    interface: str
    gateway: str | None = None
    metric: int | None = None


@dataclass(frozen=True, kw_only=True)
class System:
    """Kernel, firmware, virtualisation."""

    kernel: str | None = None
    command_line: str | None = None
    distribution: str | None = None
    machine_id: str | None = None  # hashed
    boot_id: str | None = None
    bios_date: str | None = None
    virtual: str | None = None  # kvm, xen, hyperv, amazon ...; "none" on bare metal
    iommu: str | None = None  # off | passthrough | translated
    iommu_type: str | None = None  # of the group of a GPU, else of the most groups: DMA | DMA-FQ | identity
    modules: tuple[str, ...] | None = None
    hugepages_total: int | None = None
    hugepages_free: int | None = None
    hugepage_bytes: int | None = None  # size of a default huge page
    memory_bytes: int | None = None
    numa_nodes: int | None = None
    uptime_s: float | None = None
    daemons: tuple[str, ...] | None = None  # services that run, of those that matter: nv-fabricmanager, chronyd ...
    own_addresses: tuple[str, ...] | None = None  # that /etc/hosts gives to the host's own name; empty: it is not there
    host_id: str | None = None  # what NCCL takes for the identity of this host: boot id and namespace, or NCCL_HOSTID


@dataclass(frozen=True, kw_only=True)
class Cpu:
    model: str | None = None
    architecture: str | None = None  # x86_64 | aarch64 | ppc64le
    sockets: int | None = None
    cores: int | None = None  # physical, of the machine
    threads: int | None = None
    governor: str | None = None
    frequency_driver: str | None = None  # intel_pstate, amd-pstate-epp, acpi-cpufreq
    smt: bool | None = None
    numa_balancing: bool | None = None
    cpus_of_numa: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    allowed: tuple[int, ...] | None = None  # what this process may run on


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a process here may use. None = unlimited is never used: -1 is."""

    memlock_bytes: int | None = None  # soft; -1 unlimited
    memlock_hard_bytes: int | None = None
    nofile: int | None = None
    nofile_hard: int | None = None
    nproc: int | None = None
    stack_bytes: int | None = None
    core_bytes: int | None = None
    shm_bytes: int | None = None  # size of /dev/shm
    shm_free_bytes: int | None = None
    shm_kind: str | None = None  # tmpfs; missing where there is no /dev/shm
    cgroup_memory_bytes: int | None = None  # -1 unlimited
    cgroup_cpus: float | None = None  # quota / period; -1 unlimited
    cgroup_pids: int | None = None
    pid_max: int | None = None
    port_range: tuple[int, int] | None = None  # ports of connections that are not bound to one, first and last


@dataclass(frozen=True, kw_only=True)
class Container:
    kind: str  # none | docker | kubernetes | podman | apptainer | enroot | unknown
    image: str | None = None
    pid_namespace: str | None = None
    network_namespace: str | None = None
    ipc_namespace: str | None = None
    own_network: bool | None = None  # not the host's
    capabilities: tuple[str, ...] | None = None
    devices: tuple[str, ...] | None = None  # /dev/nvidia0, /dev/infiniband/uverbs0, /dev/nvidia-caps-imex-channels/...


@dataclass(frozen=True, kw_only=True)
class Mount:
    path: str
    source: str
    kind: str  # ext4, lustre, nfs4, wekafs, overlay ...
    options: tuple[str, ...] = ()
    size_bytes: int | None = None
    free_bytes: int | None = None
    inodes_free_percent: float | None = None
    device_kind: str | None = None  # nvme | nvme-raid | ebs | network | memory


@dataclass(frozen=True, kw_only=True)
class Library:
    """A shared library that is mapped, or would be loaded."""

    name: str  # libnccl.so.2
    path: str
    version: str | None = None
    how: str = ""  # mapped | LD_PRELOAD | LD_LIBRARY_PATH | wheel | ld.so.cache | installed (not on the loader's path)
    missing: tuple[str, ...] | None = None  # libraries that it needs and the loader would not find
    glibc: str | None = None  # the newest glibc whose symbols it needs: 2.34


@dataclass(frozen=True, kw_only=True)
class Clock:
    offset_s: float | None = None  # against the head of the run; positive: this host is ahead
    synchronised: bool | None = None
    uncertainty_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Xid:
    """One NVIDIA driver event of the kernel log."""

    xid: int
    bus_id: str
    text: str
    where: str
    time: str | None = None


@dataclass(frozen=True, kw_only=True)
class KernelLog:
    """What the kernel log says that concerns training."""

    xids: tuple[Xid, ...] = ()
    events: tuple[tuple[str, Evidence], ...] = ()  # (kind, line): oom-kill, aer, nic-down, pcie-limited, nvrm-mismatch


@dataclass(frozen=True, kw_only=True)
class HostProcess:
    """A process of a running job on this host."""

    pid: int
    rank: int | None = None
    command: str = ""  # redacted
    state: str | None = None  # R S D T Z
    wchan: str | None = None
    env: Env | None = None
    python_stack: tuple[str, ...] = ()
    kernel_stack: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Increase:
    """What grew between two readings of the counters while a job ran; what did not grow is left out."""

    seconds: float
    gpus: Mapping[int, Mapping[str, int]] = field(
        default_factory=dict
    )  # pci_replays, ecc_volatile, nvlink 3 replay ...
    nics: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Host:
    """Everything known about one host. Rules name the fields that they need."""

    name: str  # the scheduler's, else the host name
    aliases: tuple[str, ...] = ()
    created: str = ""  # ISO 8601, when the facts were read
    unread: Mapping[str, str] = field(default_factory=dict)  # why a fact is None: {"gpus": "NVML: not found"}
    gpus: tuple[Gpu, ...] | None = None
    nics: tuple[Nic, ...] | None = None
    env: Env | None = None  # the variables that reach the ranks, redacted
    cpu_count: int | None = None
    memory_free_bytes: int | None = None
    product: str | None = None  # DMI vendor and product, or instance type
    dmi: Mapping[str, str] | None = (
        None  # sys_vendor, product_name, board_asset_tag, chassis_asset_tag, bios_vendor ...
    )
    ids: Mapping[str, str] | None = None  # what support asks for: instance, zone, physical_host, serial, uuid
    system: System | None = None
    cpu: Cpu | None = None
    limits: Limits | None = None
    container: Container | None = None
    pci: tuple[PciDevice, ...] | None = None
    routes: tuple[Route, ...] | None = None
    mounts: tuple[Mount, ...] | None = None
    versions: Mapping[str, str] | None = None  # driver, cuda, torch, torch_cuda, nccl, ofi_nccl, libfabric, ofed ...
    libraries: tuple[Library, ...] | None = None
    files: tuple[str, ...] | None = None  # of those that profiles and rules look for, which exist
    clock: Clock | None = None
    kernel_log: KernelLog | None = None
    # a test of dcgmi diag, or test:GPU -> pass | warn: why | fail: why | skip
    dcgm: Mapping[str, str] | None = None
    topology: Topology | None = None  # its inside, from a file, or derived from pci, gpus and nics
    processes: tuple[HostProcess, ...] | None = None  # the ranks of the job that was named
    increase: Increase | None = None


@dataclass(frozen=True, kw_only=True)
class Cluster:
    hosts: tuple[Host, ...]

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts)
