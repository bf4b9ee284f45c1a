"""HST."""

from dataclasses import replace

from smoldiag.facts import Clock, Container, Cpu, Gpu, Mount
from tests.rules.known import Facts
from tests.rules.machines import BARE, DOCKER, EFA, GUEST, NICS, TWO_GPUS, UNLIMITED, gpu, host, rail

GIB = 1 << 30
GRAPHICS = tuple(gpu(f"0000:0{i}:00.0", kind="0x030000") for i in (1, 2))
SWITCH = replace(gpu("0000:05:00.0"), device="22a3", kind="0x068000")
FULL = Mount(path="/ckpt", source="/dev/nvme1n1", kind="xfs", size_bytes=1000 * GIB, free_bytes=2 * GIB)
POLICY = Cpu(governor="powersave", frequency_driver="acpi-cpufreq")
TWO_NODES = Cpu(numa_balancing=True, architecture="x86_64", cpus_of_numa={0: (0, 1), 1: (2, 3)})
RACK = (Gpu(index=0, name="NVIDIA GB200", fabric_state="completed"),)
NO_VERBS = Container(kind="none", devices=("/dev/nvidia0",))
CHANNEL = Container(kind="none", devices=("/dev/nvidia0", "/dev/nvidia-caps-imex-channels/channel0"))
TRANSLATES = replace(BARE, iommu="translated", iommu_type="DMA-FQ", command_line="ro intel_iommu=on")

CASES: list[tuple[str, Facts, list[str]]] = [
    ("HST003", host(limits=replace(UNLIMITED, memlock_bytes=65536)), ["error"]),
    ("HST003", host(limits=replace(UNLIMITED, memlock_bytes=4 * GIB)), ["warning"]),
    (
        "HST003",
        host(
            limits=replace(UNLIMITED, memlock_bytes=65536), container=Container(kind="none", capabilities=("ipc_lock",))
        ),
        ["info"],
    ),
    ("HST003", host(limits=replace(UNLIMITED, memlock_bytes=65536), nics=()), []),
    ("HST003", host(limits=replace(UNLIMITED, memlock_bytes=65536), pci=()), []),
    ("HST003", host(), []),
    ("HST004", host(limits=replace(UNLIMITED, nofile=1024)), ["warning"]),
    ("HST004", host(limits=replace(UNLIMITED, nofile=1024), nics=(), pci=TWO_GPUS), ["info"]),
    ("HST004", host(limits=replace(UNLIMITED, nofile=1024), pci=(gpu("0000:01:00.0"),)), []),
    ("HST004", host(), []),
    ("HST005", host(limits=replace(UNLIMITED, shm_bytes=64 << 20), container=DOCKER), ["error"]),
    ("HST005", host(limits=replace(UNLIMITED, shm_bytes=512 << 20), container=DOCKER), ["warning"]),
    ("HST005", host(limits=replace(UNLIMITED, shm_bytes=None, shm_kind="missing")), ["error"]),
    ("HST005", host(limits=replace(UNLIMITED, shm_free_bytes=1 << 20)), ["error"]),
    ("HST005", host(limits=replace(UNLIMITED, shm_bytes=64 << 20), pci=()), []),
    ("HST005", host(), []),
    ("HST006", host(system=TRANSLATES), ["warning"]),
    ("HST006", host(system=TRANSLATES, pci=GRAPHICS, nics=()), ["info"]),
    ("HST006", host(system=replace(TRANSLATES, virtual="kvm")), []),
    ("HST006", host(system=TRANSLATES, cpu=Cpu(architecture="aarch64")), []),
    ("HST006", host(system=TRANSLATES, pci=(gpu("0000:01:00.0"),), nics=()), []),
    ("HST006", host(system=replace(TRANSLATES, iommu="passthrough")), []),
    ("HST003", host(limits=replace(UNLIMITED, memlock_bytes=65536), container=DOCKER), []),
    ("HST007", host(container=DOCKER), ["info"]),
    ("HST007", host(container=DOCKER, pci=(*rail(0), *rail(1))), ["warning"]),
    ("HST007", host(container=DOCKER, nics=EFA, pci=TWO_GPUS), ["warning"]),
    ("HST007", host(container=replace(DOCKER, devices=("/dev/nvidia0",))), ["info"]),
    ("HST007", host(container=NO_VERBS, system=replace(BARE, modules=("mlx5_core", "nvidia"))), ["error"]),
    ("HST007", host(container=NO_VERBS), []),
    ("HST007", host(), []),
    ("HST008", host(gpus=RACK, container=DOCKER), ["warning"]),
    ("HST008", host(gpus=RACK, container=CHANNEL), []),
    ("HST009", host(cpu=POLICY), ["warning"]),
    ("HST009", host(cpu=replace(POLICY, frequency_driver="intel_pstate")), ["info"]),
    ("HST009", host(cpu=POLICY, system=GUEST), []),
    ("HST009", host(cpu=replace(POLICY, governor="performance")), []),
    ("HST010", host(cpu=TWO_NODES), ["info"]),
    ("HST010", host(cpu=replace(TWO_NODES, architecture="aarch64")), ["warning"]),
    ("HST010", host(cpu=replace(TWO_NODES, numa_balancing=False)), []),
    ("HST011", host(cpu_count=4, cpu=Cpu(threads=112)), ["warning"]),
    ("HST011", host(limits=replace(UNLIMITED, cgroup_cpus=8.0)), ["warning"]),
    ("HST011", host(cpu_count=2, cpu=Cpu(threads=2)), ["info"]),
    ("HST011", host(), []),
    ("HST012", host(nics=EFA, pci=TWO_GPUS, system=replace(GUEST, hugepages_total=0)), ["info"]),
    ("HST012", host(nics=EFA, pci=TWO_GPUS, system=replace(GUEST, hugepages_total=5128)), []),
    ("HST013", host(clock=Clock(synchronised=False)), ["info"]),
    ("HST013", host(clock=Clock(synchronised=True)), []),
    ("HST014", host(mounts=(FULL,)), ["warning"]),
    ("HST014", host(mounts=(replace(FULL, free_bytes=500 * GIB, inodes_free_percent=0.5),)), ["warning"]),
    ("HST014", host(mounts=(replace(FULL, kind="squashfs"), replace(FULL, size_bytes=10**15, free_bytes=10**13))), []),
    ("HST015", host(limits=replace(UNLIMITED, cgroup_pids=512)), ["warning"]),
    ("HST015", host(limits=replace(UNLIMITED, cgroup_pids=-1)), []),
    ("HST016", host(container=replace(DOCKER, capabilities=("chown",)), cpu=TWO_NODES), ["info"]),
    ("HST016", host(container=DOCKER, cpu=TWO_NODES), []),
    ("HST017", host(pci=(gpu("0000:01:00.0", driver="nouveau"),), nics=NICS), ["info"]),
    ("HST017", host(), []),
    ("HST018", host(limits=replace(UNLIMITED, stack_bytes=-1)), ["info"]),
    ("HST018", host(limits=replace(UNLIMITED, stack_bytes=-1), versions={"nccl": "2.28.9"}), []),
    ("HST018", host(limits=replace(UNLIMITED, stack_bytes=8 << 20)), []),
    ("HST019", host(container=DOCKER), ["warning"]),
    ("HST019", host(container=replace(DOCKER, devices=(*(DOCKER.devices or ()), "/dev/nvidia-uvm"))), []),
    ("HST020", host(limits=replace(UNLIMITED, port_range=(50000, 50200))), ["warning"]),
    ("HST020", host(limits=replace(UNLIMITED, port_range=(32768, 60999))), []),
    ("HST021", host(system=replace(BARE, own_addresses=("127.0.1.1",))), ["info"]),
    ("HST021", host(system=replace(BARE, own_addresses=("10.1.0.7",))), []),
    ("HST021", host(system=replace(BARE, own_addresses=())), []),
    ("HST022", host(system=replace(BARE, daemons=("chronyd",)), pci=(*TWO_GPUS, SWITCH)), ["error"]),
    ("HST022", host(system=replace(BARE, daemons=("nv-fabricmanager",)), pci=(*TWO_GPUS, SWITCH)), []),
    ("HST022", host(pci=(*TWO_GPUS, SWITCH)), []),
    ("HST022", host(system=replace(BARE, daemons=())), []),
    ("HST023", host(system=replace(BARE, daemons=("firewalld",))), ["info"]),
    ("HST023", host(system=replace(BARE, daemons=())), []),
]
