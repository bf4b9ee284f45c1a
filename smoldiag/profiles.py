"""Machines that are sold under a name: how to recognise one, and what hardware it is.

What a cloud needs beyond that (settings, versions, checks) belongs to cloud_profiles/.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from smoldiag.errors import SmoldiagError
from smoldiag.facts import Host, Nic, Transport
from smoldiag.facts.reference import Hardware
from smoldiag.knowledge import hardware as specs

RDMA_KINDS = ("infiniband", "roce", "efa")
CLASS_OF_GPU = {name: spec.gpu_class for name, spec in specs.GPUS.items()}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One machine type. `instances`: its names in knowledge/busbw.csv; `products`: in DMI."""

    name: str
    instances: tuple[str, ...]
    products: tuple[str, ...] = ()
    gpu_class: str
    gpus: int
    nics: int
    nic_gbit_per_s: float
    nic_kind: str  # infiniband | roce | efa | ethernet
    fabric: str
    source: str

    @property
    def nic_gb_per_s(self) -> float:
        return self.nics * self.nic_gbit_per_s / 8


PROFILES = (
    Profile(
        name="aws-p3dn",
        instances=("AWS p3dn.24xlarge",),
        products=("p3dn.24xlarge",),
        gpu_class="V100 SXM",
        gpus=8,
        nics=1,
        nic_gbit_per_s=100,
        nic_kind="efa",
        fabric="EFA v1",
        source="AWS EC2 user guide, EFA with NCCL",
    ),
    Profile(
        name="aws-p4d",
        instances=("AWS p4d.24xlarge",),
        products=("p4d.24xlarge",),
        gpu_class="A100 SXM",
        gpus=8,
        nics=4,
        nic_gbit_per_s=100,
        nic_kind="efa",
        fabric="EFA v1",
        source="Karpenter instance type table; aws-ofi-nccl src/platform-aws.cpp",
    ),
    Profile(
        name="aws-p4de",
        instances=("AWS p4de.24xlarge",),
        products=("p4de.24xlarge",),
        gpu_class="A100 SXM",
        gpus=8,
        nics=4,
        nic_gbit_per_s=100,
        nic_kind="efa",
        fabric="EFA v1",
        source="Karpenter instance type table; aws-ofi-nccl src/platform-aws.cpp",
    ),
    Profile(
        name="aws-p5",
        instances=("AWS p5.48xlarge", "AWS p5 (Batch sample)"),
        products=("p5.48xlarge",),
        gpu_class="H100 SXM",
        gpus=8,
        nics=32,
        nic_gbit_per_s=100,
        nic_kind="efa",
        fabric="EFA v2",
        source="Karpenter instance type table; aws-ofi-nccl src/platform-aws.cpp",
    ),
    Profile(
        name="aws-p5e",
        instances=("AWS p5e.48xlarge",),
        products=("p5e.48xlarge",),
        gpu_class="H200 SXM",
        gpus=8,
        nics=32,
        nic_gbit_per_s=100,
        nic_kind="efa",
        fabric="EFA v2",
        source="Karpenter instance type table; aws-ofi-nccl src/platform-aws.cpp",
    ),
    Profile(
        name="aws-p5en",
        instances=("AWS p5en.48xlarge",),
        products=("p5en.48xlarge",),
        gpu_class="H200 SXM",
        gpus=8,
        nics=16,
        nic_gbit_per_s=200,
        nic_kind="efa",
        fabric="EFA v3",
        source="Karpenter instance type table; aws-ofi-nccl src/platform-aws.cpp",
    ),
    Profile(
        name="aws-p6-b200",
        instances=("AWS p6-b200.48xlarge", *(f"AWS p6-b200, {n} GPUs" for n in range(4, 9))),
        products=("p6-b200.48xlarge",),
        gpu_class="B200",
        gpus=8,
        nics=8,
        nic_gbit_per_s=400,
        nic_kind="efa",
        fabric="EFA v4",
        source="Karpenter instance type table; aws-ofi-nccl src/platform-aws.cpp",
    ),
    Profile(
        name="aws-p6-b300",
        instances=("AWS p6-b300.48xlarge",),
        products=("p6-b300.48xlarge",),
        gpu_class="B300",
        gpus=8,
        nics=16,
        nic_gbit_per_s=400,
        nic_kind="efa",
        fabric="EFA v4",
        source="Karpenter instance type table; aws-ofi-nccl src/platform-aws.cpp",
    ),
    Profile(
        name="azure-nd-a100-v4",
        instances=("Azure ND96amsr_A100_v4",),
        gpu_class="A100 SXM",
        gpus=8,
        nics=8,
        nic_gbit_per_s=200,
        nic_kind="infiniband",
        fabric="InfiniBand HDR",
        source="Azure VM sizes; Azure/azurehpc-health-checks conf/",
    ),
    Profile(
        name="azure-nd-h100-v5",
        instances=("Azure ND96isr_H100_v5",),
        gpu_class="H100 SXM",
        gpus=8,
        nics=8,
        nic_gbit_per_s=400,
        nic_kind="infiniband",
        fabric="InfiniBand NDR",
        source="Azure VM sizes; Azure/azurehpc-health-checks conf/",
    ),
    Profile(
        name="azure-nd-h200-v5",
        instances=("Azure ND96isr_H200_v5",),
        gpu_class="H200 SXM",
        gpus=8,
        nics=8,
        nic_gbit_per_s=400,
        nic_kind="infiniband",
        fabric="InfiniBand NDR",
        source="Azure VM sizes; Azure/azurehpc-health-checks conf/",
    ),
    Profile(
        name="gcp-a3-high",
        instances=("GCP a3-highgpu-8g",),
        gpu_class="H100 SXM",
        gpus=8,
        nics=4,
        nic_gbit_per_s=200,
        nic_kind="ethernet",
        fabric="GPUDirect-TCPX",
        source="GoogleCloudPlatform/cluster-toolkit examples/gke-a3-highgpu",
    ),
    Profile(
        name="gcp-a3-mega",
        instances=("GCP a3-megagpu-8g",),
        gpu_class="H100 SXM",
        gpus=8,
        nics=8,
        nic_gbit_per_s=200,
        nic_kind="ethernet",
        fabric="GPUDirect-TCPXO",
        source="GoogleCloudPlatform/cluster-toolkit examples/gke-a3-megagpu",
    ),
    Profile(
        name="gcp-a3-ultra",
        instances=("GCP a3-ultragpu-8g",),
        gpu_class="H200 SXM",
        gpus=8,
        nics=8,
        nic_gbit_per_s=400,
        nic_kind="roce",
        fabric="RoCE with gIB",
        source="GoogleCloudPlatform/cluster-toolkit examples/gke-a3-ultragpu",
    ),
    Profile(
        name="gcp-a4",
        instances=("GCP a4-highgpu-8g",),
        gpu_class="B200",
        gpus=8,
        nics=8,
        nic_gbit_per_s=400,
        nic_kind="roce",
        fabric="RoCE with gIB",
        source="GoogleCloudPlatform/cluster-toolkit examples/gke-a4",
    ),
    Profile(
        name="oci-a100",
        instances=("OCI BM.GPU.B4.8",),
        gpu_class="A100 SXM",
        gpus=8,
        nics=16,
        nic_gbit_per_s=100,
        nic_kind="roce",
        fabric="RoCE cluster network",
        source="oracle-quickstart/oci-hpc: 16 devices, ib_write_bw limit 96 Gb/s",
    ),
    Profile(
        name="oci-h100",
        instances=("OCI BM.GPU.H100.8",),
        gpu_class="H100 SXM",
        gpus=8,
        nics=16,
        nic_gbit_per_s=200,
        nic_kind="roce",
        fabric="RoCE cluster network",
        source="oracle-quickstart/oci-hpc: 16 devices, ib_write_bw limit 192 Gb/s",
    ),
    Profile(
        name="coreweave-h100",
        instances=("CoreWeave",),
        gpu_class="H100 SXM",
        gpus=8,
        nics=8,
        nic_gbit_per_s=400,
        nic_kind="infiniband",
        fabric="InfiniBand NDR",
        source="coreweave/nccl-tests README.md",
    ),
    Profile(
        name="coreweave-gb200",
        instances=("CoreWeave",),
        gpu_class="GB200",
        gpus=4,
        nics=4,
        nic_gbit_per_s=400,
        nic_kind="infiniband",
        fabric="NVLink between nodes, InfiniBand between racks",
        source="coreweave/nccl-tests README.md; GB200 node with four 400G devices as on other clouds",
    ),
    Profile(
        name="dgx-spark",
        instances=("2x DGX Spark", "2x DGX Spark (torch bf16)"),
        gpu_class="GB10",
        gpus=1,
        nics=1,
        nic_gbit_per_s=200,
        nic_kind="roce",
        fabric="RoCE",
        source="NVIDIA/dgx-spark-playbooks",
    ),
)


def names() -> tuple[str, ...]:
    return tuple(profile.name for profile in PROFILES)


def find(name: str) -> Profile:
    """By its name here, by a product name, or by the name that published rows have for it."""
    wanted = name.lower()
    for profile in PROFILES:
        known = (profile.name, *profile.products, *profile.instances)
        known += tuple(instance.partition(" ")[2] for instance in profile.instances)
        if wanted in (k.lower() for k in known if k):
            return profile
    raise SmoldiagError(f"no profile is named {name!r}", hint="known: " + ", ".join(names()))


def recognise(host: Host) -> Profile | None:
    """By the product name, else where GPUs and NICs fit one profile only."""
    by_product = [p for p in PROFILES if host.product and host.product.lower() in p.products]
    fitting = by_product or [p for p in PROFILES if _fits(p, host)]
    return fitting[0] if len(fitting) == 1 else None


def _fits(profile: Profile, host: Host) -> bool:
    if not host.gpus or len(host.gpus) != profile.gpus:
        return False
    if any(CLASS_OF_GPU.get(gpu.name) != profile.gpu_class for gpu in host.gpus):
        return False
    nics = compute_nics(host)
    return len(nics) == profile.nics and all(
        (nic.kind, nic.gbit_per_s) == (profile.nic_kind, profile.nic_gbit_per_s) for nic in nics
    )


def compute_nics(host: Host) -> tuple[Nic, ...]:
    """The RDMA devices of the highest rate; slower ones are for storage and management."""
    up = [nic for nic in host.nics or () if nic.kind in RDMA_KINDS and nic.up is not False and not nic.virtual]
    fastest = max((nic.gbit_per_s or 0 for nic in up), default=0)
    return tuple(nic for nic in up if (nic.gbit_per_s or 0) == fastest)


def hardware(
    hosts: Sequence[Host],
    *,
    backend: str,
    profile: Profile | None = None,
    transport: Transport | None = None,
    interface: str | None = None,
) -> Hardware:
    """What the hosts have in common; a rate on which they differ is that of the weakest."""
    profile = profile or (recognise(hosts[0]) if hosts else None)
    gpus = {gpu.name for host in hosts for gpu in host.gpus or ()} if backend == "nccl" else set()
    gpu = next(iter(gpus)) if len(gpus) == 1 else None
    spec = specs.gpu(gpu)
    counts = {len(host.gpus) for host in hosts if host.gpus}
    rates = [_nic_rate(host, backend, transport, interface) for host in hosts]
    known = [rate for rate in rates if rate is not None]
    if known and len(known) == len(hosts):
        nic_gb_per_s, nics = min(known)
    elif profile and backend == "nccl":
        nic_gb_per_s, nics = profile.nic_gb_per_s, _shown(profile.nics, profile.nic_gbit_per_s, profile.nic_kind)
    else:
        nic_gb_per_s, nics = None, ""
    mnnvl = transport.mnnvl if transport and transport.mnnvl is not None else bool(spec and spec.mnnvl)
    return Hardware(
        gpu=gpu,
        gpu_class=spec.gpu_class if spec else profile.gpu_class if profile and gpu else None,
        gpus_per_node=min(counts, default=None),
        nvlink_gb_per_s=spec.nvlink_gb_per_s if spec else None,
        nvlink_bridge=spec.nvlink_bridge if spec else 0,
        nvls=spec.nvls if spec else None,
        nvswitch=bool(spec and spec.nvswitch),
        mnnvl=mnnvl,
        pcie_gb_per_s=spec.pcie_gb_per_s if spec else None,
        nic_gb_per_s=nic_gb_per_s,
        nics=nics,
        instances=profile.instances if profile else (),
        host_class=hosts[0].product if hosts else None,
    )


def _nic_rate(host: Host, backend: str, transport: Transport | None, interface: str | None) -> tuple[float, str] | None:
    if backend == "nccl":
        rdma = compute_nics(host)
        if rdma and rdma[0].gbit_per_s:
            return _sum(rdma)
        interfaces = transport.nics if transport and transport.network == "Socket" else None
    else:
        interfaces = (interface,) if interface else None
    wires = [nic for nic in host.nics or () if nic.kind == "ethernet" and not nic.virtual and nic.up is not False]
    if interfaces is not None:
        wires = [nic for nic in wires if nic.name in interfaces]
        if len(wires) != len(interfaces):  # one of them is virtual, and what is below it is not known
            return None
    return _sum(tuple(wires)) if len(wires) == 1 or interfaces else None


def _sum(nics: tuple[Nic, ...]) -> tuple[float, str] | None:
    if not nics or any(not nic.gbit_per_s for nic in nics):
        return None
    total = sum(nic.gbit_per_s or 0 for nic in nics)
    return specs.nic_gb_per_s(total * 1000), _shown(len(nics), nics[0].gbit_per_s or 0, nics[0].kind)


def _shown(count: int, gbit_per_s: float, kind: str) -> str:
    return f"{count} x {gbit_per_s:g} Gb/s {kind}"
