"""Facts of a healthy cluster of any size: hosts with eight GPUs, sixteen RDMA ports, and what is around them."""

from smoldiag.facts import (
    Clock,
    Container,
    Cpu,
    Env,
    Gid,
    Gpu,
    Host,
    Library,
    Limits,
    Mount,
    Nic,
    NvLink,
    PciDevice,
    Route,
    System,
    Variable,
)

GIB = 2**30
GPUS, PORTS, LINKS = 8, 16, 18
VARIABLES = {
    "NCCL_IB_HCA": "^mlx5_bond",
    "NCCL_SOCKET_IFNAME": "eth0",
    "NCCL_DEBUG": "WARN",
    "GLOO_SOCKET_IFNAME": "eth0",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "OMP_NUM_THREADS": "8",
    "MASTER_ADDR": "node0000",
    "MASTER_PORT": "29500",
    "WORLD_SIZE": "8192",
    "LD_LIBRARY_PATH": "/opt/hpcx/lib:/usr/local/cuda/lib64",
}


def host(i: int) -> Host:
    """The i-th host: its own names, addresses, ids and counters, everything else as on the others."""
    first, second = divmod(i, 250)
    address = f"10.{first}.{second + 1}.7"
    return Host(
        name=f"node{i:04d}",
        aliases=(f"node{i:04d}.cluster.example", address),
        created="2026-01-01T00:00:00+00:00",
        unread={"dcgm": "no result of dcgmi diag"},
        gpus=tuple(gpu(i, g) for g in range(GPUS)),
        nics=(*(port(i, p) for p in range(PORTS)), ethernet(i, address)),
        env=Env(variables=tuple(Variable(name=k, value=v, origin="environment") for k, v in sorted(VARIABLES.items()))),
        cpu_count=192,
        memory_free_bytes=1900 * GIB + i * 4096,
        product="Supermicro SYS-821GE-TNHR",
        dmi={"sys_vendor": "Supermicro", "product_name": "SYS-821GE-TNHR", "bios_vendor": "AMI", "bios_version": "2.3"},
        ids={"uuid": f"00000000-0000-0000-0000-{i:012d}", "serial": f"S{i:09d}"},
        system=System(
            kernel="6.8.0-60-generic",
            command_line="BOOT_IMAGE=/vmlinuz root=UUID=1 ro iommu=pt",
            distribution="Ubuntu 22.04.5 LTS",
            machine_id=f"{i:016x}",
            boot_id=f"boot-{i}",
            bios_date="04/01/2025",
            virtual="none",
            iommu="passthrough",
            modules=("gdrdrv", "ib_uverbs", "mlx5_core", "mlx5_ib", "nvidia", "nvidia_peermem", "nvidia_uvm"),
            hugepages_total=0,
            hugepages_free=0,
            memory_bytes=2015 * GIB + (i % 5) * 4096,
            numa_nodes=2,
            uptime_s=1e6 + i,
            host_id=f"{i:016x}",
        ),
        cpu=Cpu(
            model="INTEL(R) XEON(R) PLATINUM 8568Y+",
            sockets=2,
            cores=96,
            threads=192,
            governor="performance",
            smt=True,
            numa_balancing=False,
            cpus_of_numa={0: tuple(range(0, 192, 2)), 1: tuple(range(1, 192, 2))},
            allowed=tuple(range(192)),
        ),
        limits=Limits(
            memlock_bytes=-1,
            memlock_hard_bytes=-1,
            nofile=1048576,
            nofile_hard=1048576,
            nproc=8255000 + i,
            stack_bytes=8 * 2**20,
            core_bytes=0,
            shm_bytes=1007 * GIB,
            shm_free_bytes=1007 * GIB,
            shm_kind="tmpfs",
            cgroup_memory_bytes=-1,
            cgroup_cpus=-1,
            cgroup_pids=-1,
            pid_max=4194304,
        ),
        container=Container(kind="none", own_network=False, devices=tuple(f"/dev/nvidia{g}" for g in range(GPUS))),
        pci=tuple(pci()),
        routes=(
            Route(destination="default", interface="eth0", gateway=f"10.{first}.0.1", metric=100),
            Route(destination=f"10.{first}.0.0/16", interface="eth0"),
        ),
        mounts=(
            Mount(path="/", source="/dev/md0", kind="ext4", size_bytes=1800 * GIB, free_bytes=1500 * GIB - i),
            Mount(path="/data", source="10.200.0.1@tcp:/data", kind="lustre", device_kind="network"),
            Mount(path="/dev/shm", source="tmpfs", kind="tmpfs", size_bytes=1007 * GIB, device_kind="memory"),
        ),
        versions={
            "driver": "570.133.20",
            "driver_flavour": "open",
            "cuda": "12.8",
            "torch": "2.7.1+cu128",
            "torch_cuda": "12.8",
            "nccl": "2.26.2",
            "ofed": "24.10-2.1.8",
            "python": "3.12.3",
        },
        libraries=(
            Library(name="libnccl.so.2", path="/opt/venv/lib/libnccl.so.2", version="2.26.2", how="wheel"),
            Library(name="libibverbs.so.1", path="/usr/lib/x86_64-linux-gnu/libibverbs.so.1", how="ld.so.cache"),
        ),
        files=("/etc/nvidia-imex/nodes_config.cfg",),
        clock=Clock(offset_s=0.0002 * (i % 7), synchronised=True, uncertainty_s=0.001),
    )


def gpu(i: int, g: int) -> Gpu:
    return Gpu(
        index=g,
        name="NVIDIA H100 80GB HBM3",
        uuid=f"GPU-{i:08x}-{g:04x}",
        serial=f"165{i:06d}{g}",
        minor=g,
        bus_id=f"0000:{0x10 + 0x10 * g:02x}:00.0",
        numa_node=g // 4,
        memory_bytes=80 * GIB,
        memory_free_bytes=79 * GIB,
        busy_pids=(),
        processes=(),
        pci_gen=5,
        pci_gen_max=5,
        pci_width=16,
        pci_width_max=16,
        pci_replays=0,
        persistence=True,
        compute_mode="default",
        mig=False,
        ecc=True,
        ecc_pending=True,
        ecc_default=True,
        ecc_volatile=0,
        ecc_aggregate=0,
        remapped_rows=0,
        remap_pending=False,
        remap_failed=False,
        retirement_pending=False,
        throttle=("gpu_idle",),
        temperature_c=30 + (i + g) % 6,
        slowdown_c=87,
        power_w=70.0 + (i + g) % 9,
        power_limit_w=700.0,
        power_default_w=700.0,
        sm_clock_mhz=345,
        sm_clock_max_mhz=1980,
        memory_clock_mhz=2619,
        memory_clock_max_mhz=2619,
        app_clock_mhz=1980,
        app_clock_default_mhz=1980,
        utilization_percent=0,
        nvlinks=tuple(
            NvLink(
                index=n, active=True, version="4.0", gb_per_s=26.562, remote="nvswitch", errors={"replay": 0, "crc": 0}
            )
            for n in range(LINKS)
        ),
        fabric_state="completed",
        fabric_status="success",
        fabric_health=(),
        fabric_cluster="00000000-0000-0000-0000-000000000000",
        fabric_clique=0,
        p2p={other: "ok" for other in range(GPUS) if other != g},
        compute_capability=(9, 0),
        recovery="none",
    )


def port(i: int, p: int) -> Nic:
    return Nic(
        name=f"mlx5_{p}",
        device=f"mlx5_{p}",
        port=1,
        kind="infiniband",
        gbit_per_s=400.0,
        up=True,
        state="ACTIVE",
        phys_state="LinkUp",
        gbit_per_s_max=400.0,
        mtu=4096,
        mtu_max=4096,
        lanes=4,
        signalling="NDR",
        lid=i * PORTS + p + 1,
        sm_lid=1,
        bus_id=f"0000:{0x18 + 0x10 * (p // 2):02x}:00.{p % 2}",
        numa_node=p // 8,
        driver="mlx5_core",
        firmware="28.43.1014",
        board="MT_0000000838",
        guid=f"{i:08x}:{p:04x}:0001",
        gids=(Gid(index=0, address=f"fe80:0000:0000:0000:{i:04x}:0000:0000:{p:04x}", kind="IB/RoCE v1"),),
        pkeys=(0x7FFF, 0xFFFF),
        counters={"port_rcv_errors": 0, "link_downed": i % 3, "symbol_error": 0, "port_xmit_data": 10**12 + i},
    )


def ethernet(i: int, address: str) -> Nic:
    return Nic(
        name="eth0",
        kind="ethernet",
        gbit_per_s=25.0,
        up=True,
        state="up",
        mtu=9000,
        bus_id="0000:05:00.0",
        numa_node=0,
        driver="ice",
        firmware="4.40",
        board="8086:159b",
        addresses=(f"{address}/16", f"fe80::{i:x}/64"),
        flags=4163,
    )


def pci() -> list[PciDevice]:
    """Per GPU a root port, a switch with three ports, the GPU and two network functions."""
    found = []
    for g in range(GPUS):
        base = 0x0E + 0x10 * g
        root, up = f"0000:{base:02x}:01.0", f"0000:{base + 1:02x}:00.0"
        bridge = {"vendor": "1000", "device": "c030", "kind": "0x060400", "numa_node": g // 4, "acs_capable": True}
        link = {"gt_per_s": 32.0, "gt_per_s_max": 32.0, "width": 16, "width_max": 16}
        found.append(PciDevice(address=root, port="root", acs=(), **bridge, **link))  # type: ignore[arg-type]
        found.append(PciDevice(address=up, parent=root, port="upstream", acs=(), **bridge, **link))  # type: ignore[arg-type]
        for n, (address, vendor, device, kind) in enumerate(
            (
                (f"0000:{base + 2:02x}:00.0", "10de", "2330", "0x030200"),
                (f"0000:{base + 10:02x}:00.0", "15b3", "1021", "0x020700"),
                (f"0000:{base + 10:02x}:00.1", "15b3", "1021", "0x020700"),
            )
        ):
            down = f"0000:{base + 1:02x}:{n + 1:02x}.0"
            found.append(PciDevice(address=down, parent=up, port="downstream", acs=(), **bridge, **link))  # type: ignore[arg-type]
            found.append(
                PciDevice(
                    address=address,
                    parent=down,
                    vendor=vendor,
                    device=device,
                    kind=kind,
                    driver="nvidia" if vendor == "10de" else "mlx5_core",
                    numa_node=g // 4,
                    iommu_group=g,
                    aer_fatal=0,
                    aer_nonfatal=0,
                    aer_correctable=0,
                    **link,  # type: ignore[arg-type]
                )
            )
    return found


def cluster(count: int) -> tuple[Host, ...]:
    return tuple(host(i) for i in range(count))
