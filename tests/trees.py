"""Trees of sysfs, procfs and files as real machines have them, for `--root`: healthy ones, to be broken by a test."""

import os
import struct
from pathlib import Path

XEON = (
    "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Platinum 8480C\n"
    "physical id\t: 0\nflags\t\t: fpu vme ssse3 avx512f amx_tile{}\n"
)
LIMITS = """Limit                     Soft Limit           Hard Limit           Units
Max stack size            8388608              unlimited            bytes
Max core file size        0                    unlimited            bytes
Max processes             1030000              1030000              processes
Max open files            1048576              1048576              files
Max locked memory         unlimited            unlimited            bytes
"""
OPEN_DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs-builder@U22)\n"
CLOSED_DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
MOUNTS = "/dev/nvme0n1p2 / ext4 rw,relatime 0 0\ntmpfs /dev/shm tmpfs rw,nosuid,nodev 0 0\n"
H100, CX7, EFA_V2, NVSWITCH = ("10de", "2330"), ("15b3", "1021"), ("1d0f", "efa1"), ("10de", "22a3")
PORT_TYPES = {"endpoint": 0, "root": 4, "upstream": 5, "downstream": 6}
LINK_LOCAL = "fe80:0000:0000:0000:1234:56ff:fe78:9abc"
ZERO = "0000:0000:0000:0000:0000:0000:0000:0000"


def write(root: Path, path: str, text: str | bytes) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())


def link(root: Path, path: str, target: str) -> None:
    """A relative symlink, both given from the root."""
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(os.path.relpath(root / target, place.parent))


def config(port: str = "endpoint", *, acs: int | None = None, ats: bool | None = None, bus: int = 0) -> bytes:
    """Configuration space: a PCI Express capability, then ACS and ATS where they are given; `bus`: below a bridge."""
    space = bytearray(4096)
    space[0x0E] = int(port != "endpoint")  # header type
    space[0x19] = bus
    space[0x06] = 0x10  # status: capability list
    space[0x34] = 0x60
    space[0x60:0x64] = bytes((0x10, 0x00, PORT_TYPES[port] << 4 | 2, 0x00))
    wanted = [(0x0001, b"\0" * 4)]  # AER comes first on real devices
    wanted += [(0x000D, struct.pack("<HH", 0x5F, acs))] if acs is not None else []
    wanted += [(0x000F, struct.pack("<HH", 0, 0x8000 if ats else 0))] if ats is not None else []
    for i, (capability, content) in enumerate(wanted):
        at, following = 0x100 + 0x80 * i, 0x100 + 0x80 * (i + 1)
        struct.pack_into("<I", space, at, capability | 1 << 16 | (following if i + 1 < len(wanted) else 0) << 20)
        space[at + 4 : at + 4 + len(content)] = content
    return bytes(space)


def device(
    root: Path,
    place: str,
    ids: tuple[str, str],
    kind: str,
    *,
    speed: float = 32.0,
    width: int = 16,
    numa: int = 0,
    driver: str = "",
    space: bytes | None = None,
) -> str:
    """A PCI device at its place in the tree (pci0000:17/0000:17:01.0/...). Its folder, from the root."""
    folder, address = f"sys/devices/{place}", place.rpartition("/")[2]
    for name, text in {
        "vendor": f"0x{ids[0]}",
        "device": f"0x{ids[1]}",
        "class": kind,
        "current_link_speed": f"{speed:.1f} GT/s PCIe",
        "max_link_speed": f"{speed:.1f} GT/s PCIe",
        "current_link_width": str(width),
        "max_link_width": str(width),
        "numa_node": str(numa),
        "uevent": f"DRIVER={driver}\nPCI_SLOT_NAME={address}\n" if driver else f"PCI_SLOT_NAME={address}\n",
    }.items():
        write(root, f"{folder}/{name}", text + "\n")
    write(root, f"{folder}/config", space if space is not None else config())
    if driver:
        (root / f"sys/bus/pci/drivers/{driver}").mkdir(parents=True, exist_ok=True)
        link(root, f"{folder}/driver", f"sys/bus/pci/drivers/{driver}")
    link(root, f"sys/bus/pci/devices/{address}", folder)
    return folder


def bridge(root: Path, place: str, port: str, *, acs: int | None = 0, numa: int = 0) -> str:
    space = config(port, acs=acs)
    return device(root, place, ("1000", "c030"), "0x060400", numa=numa, driver="pcieport", space=space)


def verbs(
    root: Path,
    name: str,
    folder: str,
    *,
    layer: str = "InfiniBand",
    rate: str = "400 Gb/sec (4X NDR)",
    board: str = "MT_0000000838",
    firmware: str = "28.39.2048",
    gids: tuple[tuple[str, str], ...] = ((LINK_LOCAL, "IB/RoCE v1"),),
    netdev: str = "",
) -> None:
    """A verbs device with one active port; `gids`: (address, type)."""
    base = f"{folder}/infiniband/{name}"
    write(root, f"{base}/board_id", board + "\n")
    write(root, f"{base}/fw_ver", firmware + "\n")
    write(root, f"{base}/node_guid", "946d:ae03:0012:3456\n")
    write(root, f"{base}/node_type", "1: CA\n")
    port = f"{base}/ports/1"
    for file, text in {
        "state": "4: ACTIVE",
        "phys_state": "5: LinkUp",
        "rate": rate,
        "link_layer": layer,
        "lid": "0x12" if layer == "InfiniBand" else "0x0",
        "sm_lid": "0x1" if layer == "InfiniBand" else "0x0",
        "pkeys/0": "0xffff",
        "pkeys/1": "0x0000",
        "counters/link_downed": "0",
        "counters/symbol_error": "0",
    }.items():
        write(root, f"{port}/{file}", text + "\n")
    for i, (address, kind) in enumerate(gids):
        write(root, f"{port}/gids/{i}", address + "\n")
        write(root, f"{port}/gid_attrs/types/{i}", kind + "\n")
        if netdev:
            write(root, f"{port}/gid_attrs/ndevs/{i}", netdev + "\n")
    write(root, f"{port}/gids/{len(gids)}", ZERO + "\n")
    link(root, f"{base}/device", folder)
    link(root, f"sys/class/infiniband/{name}", base)


def interface(
    root: Path, name: str, folder: str = "", *, mtu: int = 1500, mbit: int = 25000, up: bool = True, index: int = 2
) -> None:
    """An Ethernet interface, on hardware where a folder is given."""
    base = f"{folder or 'sys/devices/virtual'}/net/{name}"
    for file, text in {
        "operstate": "up" if up else "down",
        "mtu": mtu,
        "flags": "0x1003" if up else "0x1002",
        "ifindex": index,
        "dev_port": 0,
        "statistics/rx_errors": 0,
    }.items():
        write(root, f"{base}/{file}", f"{text}\n")
    if up:
        write(root, f"{base}/speed", f"{mbit}\n")
        write(root, f"{base}/carrier", "1\n")
    if folder:
        link(root, f"{base}/device", folder)
    link(root, f"sys/class/net/{name}", base)


def v4(address: str) -> str:
    """The GID that stands for an IPv4 address."""
    a, b, c, d = (int(part) for part in address.split("."))
    return f"0000:0000:0000:0000:0000:ffff:{a:02x}{b:02x}:{c:02x}{d:02x}"


def roce_gids(address: str) -> tuple[tuple[str, str], ...]:
    return (
        (LINK_LOCAL, "IB/RoCE v1"),
        (LINK_LOCAL, "RoCE v2"),
        (v4(address), "IB/RoCE v1"),
        (v4(address), "RoCE v2"),
    )


def route_table(*rows: tuple[str, str, int, int]) -> str:
    """(interface, network, prefix, metric)"""
    lines = ["Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT"]
    for name, network, prefix, metric in rows:
        words = [int.from_bytes(bytes(int(p) for p in network.split(".")), "little")]
        words.append(int.from_bytes(((0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF).to_bytes(4, "big"), "little"))
        lines.append(f"{name}\t{words[0]:08X}\t00000000\t0001\t0\t0\t{metric}\t{words[1]:08X}\t0\t0\t0")
    return "\n".join(lines) + "\n"


def local_table(*addresses: str) -> str:
    """/proc/net/fib_trie, as far as it is read."""
    return "Local:\n" + "".join(f"        |-- {a}\n           /32 host LOCAL\n" for a in addresses)


def server(root: Path, *, vendor: str, product: str, hypervisor: bool = False, driver: str = OPEN_DRIVER) -> None:
    """What every Linux server has."""
    for path, text in {
        "proc/cmdline": "BOOT_IMAGE=/vmlinuz-5.15.0-1045-nvidia root=UUID=1 ro iommu=pt",
        "proc/cpuinfo": XEON.format(" hypervisor" if hypervisor else ""),
        "proc/meminfo": "MemTotal: 2113000000 kB\nMemAvailable: 2000000000 kB\nHugePages_Total: 5128\n"
        "HugePages_Free: 5128\nHugepagesize: 2048 kB\n",
        "proc/modules": "nvidia_peermem 16384 0 - Live 0x0\nnvidia 56000000 4 - Live 0x0\nib_uverbs 1 1 - Live 0x0\n",
        "proc/mounts": MOUNTS,
        "proc/self/limits": LIMITS,
        "proc/uptime": "86400.12 1000000.00",
        "proc/driver/nvidia/version": driver,
        "proc/sys/kernel/osrelease": "5.15.0-1045-nvidia",
        "proc/sys/kernel/hostname": "node7",
        "proc/sys/kernel/random/boot_id": "6f9d0e5c-0d8e-4c55-a7a5-a7c1d5fd5cba",
        "proc/sys/kernel/numa_balancing": "0",
        "sys/class/dmi/id/sys_vendor": vendor,
        "sys/class/dmi/id/product_name": product,
        "sys/devices/system/node/node0/cpulist": "0-55",
        "sys/devices/system/node/node1/cpulist": "56-111",
        "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.4 LTS"\n',
    }.items():
        write(root, path, text + "\n")
    for cpu in range(112):
        write(root, f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id", f"{cpu // 56}\n")
        write(root, f"sys/devices/system/cpu/cpu{cpu}/topology/core_id", f"{cpu % 56}\n")
    write(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n")
    (root / "sys/class/iommu").mkdir(parents=True)


def rail(root: Path, i: int, *, acs: int = 0) -> tuple[str, str]:
    """Root port, switch, and below it a GPU; where a NIC goes. (place of the GPU, place for the NIC)"""
    bus, numa = 0x10 + 0x10 * i, i // 4
    top = f"pci0000:{bus:02x}/0000:{bus:02x}:01.0"
    upstream = f"{top}/0000:{bus + 1:02x}:00.0"
    down = [f"{upstream}/0000:{bus + 2:02x}:{slot:02x}.0" for slot in (0, 1)]
    bridge(root, top, "root", acs=None, numa=numa)
    bridge(root, upstream, "upstream", acs=None, numa=numa)
    for place in down:
        bridge(root, place, "downstream", acs=acs, numa=numa)
    gpu = f"{down[0]}/0000:{bus + 3:02x}:00.0"
    device(root, gpu, H100, "0x030200", numa=numa, driver="nvidia")
    return gpu, f"{down[1]}/0000:{bus + 4:02x}:00.0"


def dgx_h100(root: Path) -> Path:
    """Eight GPUs, eight InfiniBand rails, two dual-port storage cards of which the second ports are not connected."""
    server(root, vendor="NVIDIA", product="DGXH100", driver=CLOSED_DRIVER)
    for i in range(8):
        _, place = rail(root, i)
        folder = device(root, place, CX7, "0x020700", numa=i // 4, driver="mlx5_core", space=config(ats=False))
        verbs(root, f"mlx5_{i}", folder)
    for card in range(2):
        for function in range(2):
            place = f"pci0000:a{card}/0000:a{card}:01.0/0000:a{card + 2}:00.{function}"
            if not function:
                bridge(root, place.rpartition("/")[0], "root", acs=None)
            folder = device(root, place, CX7, "0x020700", driver="mlx5_core")
            name = f"mlx5_{8 + 2 * card + function}"
            verbs(root, name, folder, board="MT_0000001093", rate="200 Gb/sec (4X HDR)")
            if function:
                down(root, name)
    for i in range(4):
        device(root, f"pci0000:c0/0000:c{i + 1}:00.0", NVSWITCH, "0x068000", width=2, driver="nvidia-nvswitch")
    folder = device(root, "pci0000:d0/0000:d0:1f.6", ("8086", "1563"), "0x020000", speed=8.0, width=4, driver="ixgbe")
    interface(root, "eno3", folder, mbit=10000)
    interface(root, "eno4", f"{folder}/second", up=False, index=3)
    interface(root, "docker0", index=4)
    write(root, "proc/net/route", route_table(("eno3", "10.1.0.0", 16, 0), ("docker0", "172.17.0.0", 16, 0)))
    write(root, "proc/net/fib_trie", local_table("10.1.0.7", "172.17.0.1"))
    return root


def roce_host(root: Path) -> Path:
    """Eight GPUs, eight RoCE rails with MTU 9000, a management port of the same maker with MTU 1500."""
    server(root, vendor="Supermicro", product="SYS-821GE-TNHR")
    for i in range(8):
        _, place = rail(root, i)
        folder = device(root, place, CX7, "0x020000", numa=i // 4, driver="mlx5_core")
        verbs(
            root,
            f"mlx5_{i}",
            folder,
            layer="Ethernet",
            gids=roce_gids(f"10.0.{i}.7"),
            netdev=f"rdma{i}",
        )
        interface(root, f"rdma{i}", folder, mtu=9000, mbit=400000, index=10 + i)
    folder = device(
        root, "pci0000:d0/0000:d1:00.0", ("15b3", "101f"), "0x020000", speed=16.0, width=8, driver="mlx5_core"
    )
    verbs(
        root,
        "mlx5_8",
        folder,
        layer="Ethernet",
        rate="25 Gb/sec (1X EDR)",
        board="MT_0000000547",
        gids=((LINK_LOCAL, "IB/RoCE v1"), (LINK_LOCAL, "RoCE v2")),
        netdev="eth0",
    )
    interface(root, "eth0", folder, index=2)
    rows = [(f"rdma{i}", f"10.0.{i}.0", 24, 0) for i in range(8)]
    write(root, "proc/net/route", route_table(("eth0", "192.168.4.0", 22, 0), *rows))
    write(root, "proc/net/fib_trie", local_table("192.168.4.7", *(f"10.0.{i}.7" for i in range(8))))
    return root


def aws_p5(root: Path) -> Path:
    """A virtual machine with eight GPUs and 32 EFA devices; PCIe as the hypervisor shows it."""
    server(root, vendor="Amazon EC2", product="p5.48xlarge", hypervisor=True)
    write(root, "sys/class/dmi/id/board_asset_tag", "i-0123456789abcdef0\n")
    for i in range(8):
        device(root, f"pci0000:{0x44 + i:02x}/0000:{0x44 + i:02x}:00.0", H100, "0x030200", numa=i // 4, driver="nvidia")
    for i in range(32):
        place = f"pci0000:{0x50 + i:02x}/0000:{0x50 + i:02x}:00.0"
        folder = device(root, place, EFA_V2, "0x020000", speed=16.0, width=8, numa=i // 16, driver="efa")
        verbs(root, f"rdmap{0x50 + i}s0", folder, layer="Unspecified", rate="100 Gb/sec (4X EDR)", board="")
        write(root, f"{folder}/p2p", "NVIDIA peermem\n")
    folder = device(root, "pci0000:00/0000:00:05.0", ("1d0f", "ec20"), "0x020000", driver="ena")
    interface(root, "ens5", folder, mtu=9001, mbit=100000)
    write(root, "sys/module/efa/version", "2.17.3g\n")
    write(root, "proc/net/route", route_table(("ens5", "172.31.16.0", 20, 512)))
    write(root, "proc/net/fib_trie", local_table("172.31.20.7"))
    return root


def azure_vm(root: Path) -> Path:
    """Two GPUs and accelerated networking: a mlx5 device below a synthetic interface is no RDMA network."""
    server(root, vendor="Microsoft Corporation", product="Virtual Machine", hypervisor=True)
    for i in range(2):
        device(root, f"000{i + 1}:00/000{i + 1}:00:00.0".replace("000", "pci000", 1), H100, "0x030200", driver="nvidia")
    folder = device(
        root, "pci9a2f:00/9a2f:00:02.0", ("15b3", "101a"), "0x020000", speed=8.0, width=8, driver="mlx5_core"
    )
    verbs(root, "mlx5_an0", folder, layer="Ethernet", rate="40 Gb/sec (4X QDR)", netdev="enP39471s1")
    interface(root, "enP39471s1", folder, mbit=40000, index=3)
    vmbus = "sys/devices/vmbus0/eth0"
    write(root, f"{vmbus}/uevent", "DRIVER=hv_netvsc\n")
    interface(root, "eth0", vmbus, mbit=40000)
    link(root, f"{folder}/net/enP39471s1/master", f"{vmbus}/net/eth0")
    write(
        root, "proc/self/limits", LIMITS.replace("unlimited            unlimited            bytes", "65536 65536 bytes")
    )
    write(root, "proc/net/route", route_table(("eth0", "10.4.0.0", 24, 100)))
    write(root, "proc/net/fib_trie", local_table("10.4.0.5"))
    return root


def laptop(root: Path) -> Path:
    """One graphics card, IOMMU on, power saving, wireless up, Ethernet without a cable."""
    server(root, vendor="LENOVO", product="21DE")
    write(root, "proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/mapper/root ro quiet splash\n")
    write(root, "proc/modules", "nouveau 3000000 1 - Live 0x0\n")
    write(root, "proc/self/limits", LIMITS.replace("1048576              1048576", "1024 1048576"))
    (root / "proc/driver/nvidia/version").unlink()
    write(root, "sys/kernel/iommu_groups/0/type", "DMA-FQ\n")
    write(root, "sys/class/iommu/dmar0/name", "dmar0\n")
    write(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n")
    write(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", "intel_pstate\n")
    bridge(root, "pci0000:00/0000:00:01.0", "root", acs=0x1D)
    place = "pci0000:00/0000:00:01.0/0000:01:00.0"
    device(root, place, ("10de", "24b6"), "0x030000", speed=16.0, width=8, driver="nouveau")
    write(root, f"sys/devices/{place}/current_link_speed", "2.5 GT/s PCIe\n")
    wireless = device(root, "pci0000:00/0000:00:14.3", ("8086", "51f0"), "0x028000", driver="iwlwifi")
    interface(root, "wlp0s20f3", wireless, mbit=0)
    ethernet = device(
        root, "pci0000:00/0000:00:1f.6", ("8086", "1a1e"), "0x020000", speed=2.5, width=1, driver="e1000e"
    )
    interface(root, "enp0s31f6", ethernet, up=False, index=3)
    write(root, "proc/net/route", route_table(("wlp0s20f3", "192.168.178.0", 24, 600)))
    write(root, "proc/net/fib_trie", local_table("192.168.178.20"))
    return root


def cpu_server(root: Path) -> Path:
    """No GPU; an uncabled InfiniBand card, a RoCE-capable port with MTU 1500, small limits."""
    server(root, vendor="Dell Inc.", product="PowerEdge R750")
    write(
        root, "proc/self/limits", LIMITS.replace("unlimited            unlimited            bytes", "65536 65536 bytes")
    )
    write(root, "sys/kernel/iommu_groups/0/type", "DMA-FQ\n")
    folder = device(
        root, "pci0000:d0/0000:d1:00.0", ("15b3", "101f"), "0x020000", speed=16.0, width=8, driver="mlx5_core"
    )
    verbs(root, "mlx5_0", folder, layer="Ethernet", rate="25 Gb/sec (1X EDR)", netdev="eth0")
    interface(root, "eth0", folder)
    folder = device(root, "pci0000:d2/0000:d3:00.0", CX7, "0x020700", driver="mlx5_core")
    verbs(root, "mlx5_1", folder)
    down(root, "mlx5_1")
    write(root, "proc/net/route", route_table(("eth0", "192.168.4.0", 22, 0)))
    write(root, "proc/net/fib_trie", local_table("192.168.4.9"))
    return root


def pod(root: Path) -> Path:
    """A Kubernetes pod with two of the eight GPUs and no RDMA device, on a host whose sysfs shows all of them."""
    dgx_h100(root)
    write(root, "var/run/secrets/kubernetes.io/serviceaccount/namespace", "default")
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "shm/x"):
        write(root, f"dev/{name}", "")
    write(
        root, "proc/self/limits", LIMITS.replace("unlimited            unlimited            bytes", "65536 65536 bytes")
    )
    write(
        root, "proc/self/mounts", "overlay / overlay rw,lowerdir=/var/lib/containerd 0 0\ntmpfs /dev/shm tmpfs rw 0 0\n"
    )
    write(root, "proc/self/status", "Name:\tpython\nCapEff:\t00000000a80425fb\nCpus_allowed_list:\t0-111\n")
    for entry in (root / "sys/class/net").iterdir():
        entry.unlink()
    interface(root, "eth0", index=3)
    write(root, "proc/net/route", route_table(("eth0", "10.244.3.0", 24, 0)))
    write(root, "proc/net/fib_trie", local_table("10.244.3.17"))
    return root


def oci_a100(root: Path) -> Path:
    """Eight dual-port RoCE cards beside the GPUs, MTU 4220, and one for the cloud's own network."""
    server(root, vendor="Oracle Corporation", product="ORACLE SERVER E4-2c")
    for i in range(8):
        _, place = rail(root, i)
        for function in range(2):
            port_number = 2 * i + function
            folder = device(root, f"{place[:-1]}{function}", CX7, "0x020000", numa=i // 4, driver="mlx5_core")
            address = f"192.168.{port_number}.7"
            name = f"rdma{port_number}"
            verbs(root, f"mlx5_{port_number}", folder, layer="Ethernet", rate="100 Gb/sec (2X HDR)", board="ORC_1",
                  gids=roce_gids(address), netdev=name)  # fmt: skip
            interface(root, name, folder, mtu=4220, mbit=100000, index=20 + port_number)
    folder = device(root, "pci0000:d0/0000:d1:00.0", ("15b3", "101d"), "0x020000", speed=16.0, driver="mlx5_core")
    verbs(
        root, "mlx5_16", folder, layer="Ethernet", rate="50 Gb/sec (1X HDR)", gids=roce_gids("10.0.0.7"), netdev="eth0"
    )
    interface(root, "eth0", folder, mtu=9000, mbit=50000)
    return root


def gb200(root: Path) -> Path:
    """Four GPUs at Grace processors: aarch64, an SMMU that translates, NICs that share no switch with a GPU."""
    server(root, vendor="NVIDIA", product="GB200 NVL")
    write(root, "proc/cpuinfo", "processor\t: 0\nBogoMIPS\t: 2000.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd4f\n")
    write(root, "sys/kernel/iommu_groups/3/type", "DMA-FQ\n")
    for i in range(4):
        top = f"pci000{i}:00/000{i}:00:00.0"
        bridge(root, top, "root", acs=0x1D)
        device(root, f"{top}/000{i}:01:00.0", ("10de", "2941"), "0x030200", numa=i // 2, driver="nvidia")
        top = f"pci001{i}:00/001{i}:00:00.0"
        bridge(root, top, "root", acs=0x1D)
        folder = device(root, f"{top}/001{i}:01:00.0", CX7, "0x020700", numa=i // 2, driver="mlx5_core")
        verbs(root, f"mlx5_{i}", folder)
    folder = device(root, "pci0020:00/0020:00:00.0", ("15b3", "a2dc"), "0x020700", driver="mlx5_core")
    verbs(root, "mlx5_4", folder, rate="200 Gb/sec (4X HDR)", board="MT_0000000884")
    return root


HEALTHY = {
    "dgx-h100": dgx_h100,
    "roce": roce_host,
    "aws-p5": aws_p5,
    "azure-vm": azure_vm,
    "laptop": laptop,
    "cpu-server": cpu_server,
    "pod": pod,
    "oci-a100": oci_a100,
    "gb200": gb200,
}


def port(name: str) -> str:
    return f"sys/class/infiniband/{name}/ports/1"


def down(root: Path, name: str) -> None:
    """A port without a cable."""
    write(root, f"{port(name)}/state", "1: DOWN\n")
    write(root, f"{port(name)}/phys_state", "3: Disabled\n")
    write(root, f"{port(name)}/rate", "10 Gb/sec (4X SDR)\n")
