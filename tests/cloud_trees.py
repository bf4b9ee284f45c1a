"""Trees of hosts as sysfs and files show them: firmware names, PCI devices, verbs devices, interfaces."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

AZURE = {
    "sys_vendor": "Microsoft Corporation",
    "product_name": "Virtual Machine",
    "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77",
}
GCP = {"sys_vendor": "Google", "product_name": "Google Compute Engine"}
OCI = {"sys_vendor": "Oracle Corporation", "chassis_asset_tag": "OracleCloud.com"}
QEMU = {"sys_vendor": "QEMU", "product_name": "Standard PC (Q35 + ICH9, 2009)"}
METAL = {"sys_vendor": "Supermicro", "product_name": "SYS-821GE-TNHR"}


@dataclass(frozen=True, kw_only=True)
class Verbs:
    """Verbs devices of one kind."""

    names: tuple[str, ...]
    gbit_per_s: int
    layer: str = "InfiniBand"  # InfiniBand | Ethernet | Unspecified
    pci_id: str = "15b3:1021"
    state: str = "4: ACTIVE"


@dataclass(frozen=True, kw_only=True)
class Machine:
    dmi: Mapping[str, str] = field(default_factory=dict)
    gpu: str = ""  # device id of vendor 10de
    gpus: int = 0
    verbs: tuple[Verbs, ...] = ()
    gvnics: int = 0
    pci: tuple[str, ...] = ()  # further devices, vendor:device
    files: Mapping[str, str] = field(default_factory=dict)


def efa(count: int, gbit_per_s: int, device: str = "efa1") -> Verbs:
    names = tuple(f"rdmap{79 + i}s0" for i in range(count))
    return Verbs(names=names, gbit_per_s=gbit_per_s, layer="Unspecified", pci_id=f"1d0f:{device}")


def mlx5(numbers: Iterable[int], gbit_per_s: int, *, layer: str = "InfiniBand", prefix: str = "mlx5_") -> Verbs:
    return Verbs(names=tuple(f"{prefix}{n}" for n in numbers), gbit_per_s=gbit_per_s, layer=layer)


def write(machine: Machine, root: Path) -> Path:
    """The tree, below `root`."""
    for name, value in machine.dmi.items():
        _file(root / "sys/class/dmi/id" / name, value)
    bus = 0x10
    for _ in range(machine.gpus):
        bus += 1
        _pci(root, bus, f"10de:{machine.gpu}", "0x030200")
    for verbs in machine.verbs:
        for name in verbs.names:
            bus += 1
            kind = "0x020700" if verbs.layer == "InfiniBand" else "0x020000"
            device = _pci(root, bus, verbs.pci_id, kind)
            folder = root / "sys/class/infiniband" / name
            folder.mkdir(parents=True)
            (folder / "device").symlink_to(Path("../../../bus/pci/devices") / device.name)
            port = folder / "ports/1"
            _file(port / "link_layer", verbs.layer)
            _file(port / "rate", f"{verbs.gbit_per_s} Gb/sec (4X EDR)")
            _file(port / "state", verbs.state)
    for i in range(machine.gvnics):
        bus += 1
        device = _pci(root, bus, "1ae0:0042", "0x020000")
        interface = root / "sys/class/net" / f"eth{i}"
        _file(interface / "operstate", "up")
        (interface / "device").symlink_to(Path("../../../bus/pci/devices") / device.name)
    for pci_id in machine.pci:
        bus += 1
        _pci(root, bus, pci_id, "0x088000")
    for path, text in machine.files.items():
        _file(root / path.lstrip("/"), text)
    return root


def _pci(root: Path, bus: int, pci_id: str, kind: str) -> Path:
    folder = root / "sys/bus/pci/devices" / f"0000:{bus:02x}:00.0"
    vendor, _, device = pci_id.partition(":")
    _file(folder / "vendor", f"0x{vendor}")
    _file(folder / "device", f"0x{device}")
    _file(folder / "class", kind)
    return folder


def _file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def aws(name: str, gpu: str, gpus: int, *verbs: Verbs) -> Machine:
    return Machine(dmi={"sys_vendor": "Amazon EC2", "product_name": name}, gpu=gpu, gpus=gpus, verbs=verbs)


A100_40, A100_80, H100, H200, B200, B300, GB200, GB300 = (
    "20b0",
    "20b2",
    "2330",
    "2335",
    "2901",
    "3182",
    "2941",
    "31c2",
)
OCI_H100 = (0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16, 17)
OCI_A100_V2 = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 16, 17)
OCI_A100 = (0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17)
OCI_H200 = (0, 3, 4, 5, 6, 9, 10, 11)
OCI_B300 = (0, 1, 7, 8, 9, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21)
EIGHT = range(8)
ROCE = "Ethernet"
FRONTEND = Verbs(names=("mlx5_2", "mlx5_11"), gbit_per_s=50, layer=ROCE)
GIB = {"/usr/local/gib/lib64/libnccl-net.so": "", "/usr/local/gib/scripts/set_nccl_env.sh": ""}
EFA_INSTALLED = {
    "/opt/amazon/efa_installed_packages": "# EFA installer version: 1.43.1",
    "/opt/amazon/ofi-nccl/lib/libnccl-net.so": "",
}
IBP = tuple(f"ibp{i}" for i in range(8))


def ibp(count: int, gbit_per_s: int = 400, layer: str = "InfiniBand") -> Verbs:
    return Verbs(names=IBP[:count], gbit_per_s=gbit_per_s, layer=layer)


def azure(gpu: str, gpus: int, *verbs: Verbs) -> Machine:
    return Machine(dmi=AZURE, gpu=gpu, gpus=gpus, verbs=verbs)


def gcp(gpu: str, gpus: int, *verbs: Verbs, gvnics: int = 2, pci: tuple[str, ...] = (), gib: bool = False) -> Machine:
    return Machine(dmi=GCP, gpu=gpu, gpus=gpus, verbs=verbs, gvnics=gvnics, pci=pci, files=GIB if gib else {})


def oci(gpu: str, gpus: int, *verbs: Verbs) -> Machine:
    return Machine(dmi=OCI, gpu=gpu, gpus=gpus, verbs=verbs)


def crusoe(gpu: str, sku: str, data: Iterable[int], gbit_per_s: int = 400) -> Machine:
    return Machine(
        dmi=QEMU,
        gpu=gpu,
        gpus=8,
        verbs=(mlx5(data, gbit_per_s), Verbs(names=("mlx5_0",), gbit_per_s=100, layer=ROCE)),
        files={f"/etc/crusoe/nccl_topo/{sku}-cloud-hypervisor.xml": "<system/>"},
    )


def nebius(gpu: str) -> Machine:
    return Machine(
        dmi=QEMU,
        gpu=gpu,
        gpus=8,
        verbs=(mlx5(EIGHT, 400),),
        files={"/var/run/nvidia-topologyd/virtualTopology.xml": "<system/>"},
    )


# (machine, profile, instance or None where nothing on the host tells it)
MACHINES: dict[str, tuple[Machine, str, str | None]] = {
    "p4d": (aws("p4d.24xlarge", A100_40, 8, efa(4, 100, "efa0")), "aws-p4d", "p4d.24xlarge"),
    "p4de": (aws("p4de.24xlarge", A100_80, 8, efa(4, 100, "efa0")), "aws-p4de", "p4de.24xlarge"),
    "p5": (aws("p5.48xlarge", H100, 8, efa(32, 100)), "aws-p5", "p5.48xlarge"),
    "p5 of HyperPod": (aws("ml.p5.48xlarge", H100, 8, efa(32, 100)), "aws-p5", "p5.48xlarge"),
    "p5e": (aws("p5e.48xlarge", H200, 8, efa(32, 100)), "aws-p5e", "p5e.48xlarge"),
    "p5.4xlarge": (aws("p5.4xlarge", H100, 1, efa(1, 100)), "aws-p5.4xlarge", "p5.4xlarge"),
    "p5en": (aws("p5en.48xlarge", H200, 8, efa(16, 200, "efa2")), "aws-p5en", "p5en.48xlarge"),
    "p6-b200": (
        aws("p6-b200.48xlarge", B200, 8, efa(8, 400, "efa3"), Verbs(names=("mlx5_0", "mlx5_1"), gbit_per_s=100)),
        "aws-p6-b200",
        "p6-b200.48xlarge",
    ),
    "p6-b300": (aws("p6-b300.48xlarge", B300, 8, efa(16, 400, "efa3")), "aws-p6-b300", "p6-b300.48xlarge"),
    "p6e-gb200": (aws("p6e-gb200.36xlarge", GB200, 4, efa(4, 400, "efa2")), "aws-p6e-gb200", "p6e-gb200.36xlarge"),
    "g5": (aws("g5.48xlarge", "2237", 8, efa(1, 100, "efa0")), "aws-g5", "g5.48xlarge"),
    "g5.xlarge": (aws("g5.xlarge", "2237", 1), "aws-g5", "g5.xlarge"),
    "g6": (aws("g6.48xlarge", "27b8", 8, efa(1, 100)), "aws-g6", "g6.48xlarge"),
    "g6e": (aws("g6e.48xlarge", "26b9", 8, efa(4, 100)), "aws-g6e", "g6e.48xlarge"),
    "p3dn": (aws("p3dn.24xlarge", "1db5", 8, efa(1, 100, "efa0")), "aws-p3dn", "p3dn.24xlarge"),
    "p5 without firmware names": (Machine(gpu=H100, gpus=8, verbs=(efa(32, 100),)), "aws-p5", "p5.48xlarge"),
    "ND A100 80 GB": (azure(A100_80, 8, mlx5(EIGHT, 200)), "azure-nd-a100-v4", "Standard_ND96amsr_A100_v4"),
    "ND A100 40 GB": (azure(A100_40, 8, mlx5(EIGHT, 200)), "azure-nd-a100-v4", "Standard_ND96asr_v4"),
    "ND H100": (azure(H100, 8, mlx5(EIGHT, 400, prefix="mlx5_ib")), "azure-nd-h100-v5", "Standard_ND96isr_H100_v5"),
    "ND H100 without r": (azure(H100, 8), "azure-nd-h100-v5", "Standard_ND96is_H100_v5"),
    "ND H200": (
        azure(
            H200,
            8,
            mlx5(EIGHT, 400, prefix="mlx5_ib"),
            Verbs(names=("mlx5_an0",), gbit_per_s=100, layer=ROCE, pci_id="15b3:101e"),
        ),
        "azure-nd-h200-v5",
        None,
    ),
    "ND GB200": (azure(GB200, 4, mlx5(range(4), 400)), "azure-nd-gb200-v6", None),
    "ND GB300": (azure(GB300, 4, mlx5(range(4), 800)), "azure-nd-gb300-v6", None),
    "NC A100": (azure("20b5", 4), "azure-nc-a100-v4", "Standard_NC96ads_A100_v4"),
    "NC H100": (azure("2321", 2), "azure-nc-h100-v5", "Standard_NC80adis_H100_v5"),
    "a2": (gcp(A100_40, 8, gvnics=1), "gcp-a2", "a2-highgpu-8g"),
    "a3-high": (gcp(H100, 8, gvnics=5), "gcp-a3-high", "a3-highgpu-8g"),
    "a3-mega": (gcp(H100, 8, gvnics=9, pci=("1ae0:0084",) * 8), "gcp-a3-mega", "a3-megagpu-8g"),
    "a3-ultra": (gcp(H200, 8, mlx5(EIGHT, 400, layer=ROCE), gib=True), "gcp-a3-ultra", "a3-ultragpu-8g"),
    "a4": (gcp(B200, 8, mlx5(EIGHT, 400, layer=ROCE), gib=True), "gcp-a4", "a4-highgpu-8g"),
    "a4x": (gcp(GB200, 4, mlx5(range(4), 400, layer=ROCE)), "gcp-a4x", "a4x-highgpu-4g"),
    "a4x-max": (gcp(GB300, 4, mlx5(EIGHT, 400, layer=ROCE)), "gcp-a4x-max", None),
    "GPU4.8": (oci(A100_40, 8, mlx5(OCI_A100, 100, layer=ROCE)), "oci-a100", "BM.GPU4.8"),
    "A100-v2.8": (oci(A100_80, 8, mlx5(OCI_A100_V2, 100, layer=ROCE)), "oci-a100-v2", None),
    "OCI H100": (oci(H100, 8, mlx5(OCI_H100, 200, layer=ROCE), FRONTEND), "oci-h100", "BM.GPU.H100.8"),
    "OCI H200": (oci(H200, 8, mlx5(OCI_H200, 400, layer=ROCE)), "oci-h200", "BM.GPU.H200.8"),
    "OCI B200": (oci(B200, 8, mlx5(OCI_H200, 400, layer=ROCE)), "oci-b200", "BM.GPU.B200.8"),
    "OCI B300": (oci(B300, 8, mlx5(OCI_B300, 400, layer=ROCE)), "oci-b300", "BM.GPU.B300.8"),
    "OCI GB200": (oci(GB200, 4, mlx5((0, 1, 3, 4), 400, layer=ROCE)), "oci-gb200", None),
    "OCI GB200-v3": (
        oci(GB200, 4, mlx5((0, 1, 2, 3, 5, 6, 7, 8), 400, layer=ROCE)),
        "oci-gb200-v3",
        "BM.GPU.GB200-v3.4",
    ),
    "OCI GB300": (oci(GB300, 4, mlx5((0, 1, 2, 3, 5, 6, 7, 8), 400, layer=ROCE)), "oci-gb300", "BM.GPU.GB300.4"),
    "CoreWeave H100": (Machine(dmi=METAL, gpu=H100, gpus=8, verbs=(ibp(8),)), "coreweave-h100", "gd-8xh100ib-i128"),
    "CoreWeave H200": (Machine(dmi=METAL, gpu=H200, gpus=8, verbs=(ibp(8),)), "coreweave-h200", "HGX H200"),
    "CoreWeave GB200": (Machine(dmi=METAL, gpu=GB200, gpus=4, verbs=(ibp(4),)), "coreweave-gb200", "gb200-4x"),
    "CoreWeave GB300": (Machine(dmi=METAL, gpu=GB300, gpus=4, verbs=(ibp(4, 800),)), "coreweave-gb300", "gb300-4x"),
    "CoreWeave GB300 RoCE": (
        Machine(dmi=METAL, gpu=GB300, gpus=4, verbs=(ibp(8, 400, ROCE),)),
        "coreweave-gb300-roce",
        "gb300-4x-e",
    ),
    "Crusoe A100": (crusoe(A100_80, "a100-80gb-sxm-ib", range(1, 9), 200), "crusoe-a100", None),
    "Crusoe H100": (crusoe(H100, "h100-80gb-sxm-ib", range(1, 9)), "crusoe-h100", None),
    "Crusoe H200": (crusoe(H200, "h200-141gb-sxm-ib", range(1, 9)), "crusoe-h200", None),
    "Crusoe B200": (crusoe(B200, "b200-180gb-sxm-ib", range(5, 13)), "crusoe-b200", None),
    "Nebius H100": (nebius(H100), "nebius-h100", None),
    "Nebius H200": (nebius(H200), "nebius-h200", None),
    "DGX A100": (
        Machine(
            dmi={"sys_vendor": "NVIDIA", "product_name": "DGXA100 920-23687-2530-000"},
            gpu=A100_80,
            gpus=8,
            verbs=(mlx5((0, 1, 2, 3, 6, 7, 8, 9), 200),),
        ),
        "dgx-a100",
        "DGX A100",
    ),
    "DGX H100": (
        Machine(
            dmi={"sys_vendor": "NVIDIA", "product_name": "DGXH100"},
            gpu=H100,
            gpus=8,
            verbs=(mlx5(OCI_H200, 400),),
        ),
        "dgx-h100",
        "DGX H100",
    ),
    "DGX B200": (
        Machine(
            dmi={"sys_vendor": "NVIDIA", "product_name": "DGXB200"}, gpu=B200, gpus=8, verbs=(mlx5(OCI_H200, 400),)
        ),
        "dgx-b200",
        "DGX B200",
    ),
}
UNKNOWN = {
    "a laptop": Machine(
        dmi={"sys_vendor": "LENOVO", "product_name": "20XW0026GE", "chassis_asset_tag": "No Asset Information"},
        gpu="1f95",
        gpus=1,
    ),
    "a Surface": Machine(dmi={"sys_vendor": "Microsoft Corporation", "product_name": "Surface Laptop 5"}),
    "a made-up cloud": Machine(
        dmi={"sys_vendor": "Nimbus Cloud", "product_name": "n9.48xlarge"},
        gpu=H100,
        gpus=8,
        verbs=(mlx5(EIGHT, 400),),
    ),
    "a made-up cloud with Oracle's board": Machine(
        dmi=METAL, gpu=H100, gpus=8, verbs=(mlx5(OCI_H100, 200, layer=ROCE),)
    ),
    "a Hyper-V guest that is not Azure's": Machine(
        dmi={
            "sys_vendor": "Microsoft Corporation",
            "product_name": "Virtual Machine",
            "chassis_asset_tag": "0000-0000",
        },
        gpu=H100,
        gpus=8,
    ),
    "nothing at all": Machine(),
}
