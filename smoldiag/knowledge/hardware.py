"""What links and memories of GPU models carry. Matched by the exact NVML name; what is not here is not known.

GB/s are 1e9 bytes/s in one direction. NVLink figures are the data sheets' (their "900 GB/s" is both directions);
what a collective gets out of a link is less: NCCL reckons with 20 GB/s of 25 on A100 and 20.6 on H100
(src/graph/topo.h), and published rings reach that.
"""

from dataclasses import dataclass

# one direction, x16: transfer rate x 16 lanes x 128/130 coding / 8 (PCI Express base specification)
PCIE_GB_PER_S = {3: 15.75, 4: 31.5, 5: 63.0}


# Least ratio of the data sheet's figure. Large products reach 0.65 to 0.85 of the dense peak (H100 SXM: 0.72 to 0.77);
# cards that their power limit holds back, as the L4, some 0.5.
LEAST_OF_PEAK = 0.40
TYPICAL_OF_PEAK = 0.7


@dataclass(frozen=True, kw_only=True)
class GpuSpec:
    gpu_class: str  # how knowledge/busbw.csv names it
    nvlink_gb_per_s: float = 0.0  # all links of one GPU, one direction
    nvlinks: int = 0  # of one GPU
    nvlink_bridge: int = 0  # how many cards one bridge joins; 0: the links join all GPUs of the node
    nvswitch: bool = False  # sold as a board on which a switch joins all GPUs of the node
    nvls: bool = False  # NVLink SHARP: third-generation NVSwitch with Hopper and later
    mnnvl: bool = False  # sold as racks whose NVLink joins nodes
    pcie_gen: int | None = None  # x16
    memory_gb_per_s: float | None = None
    bf16_tflops: float | None = None  # dense peak of the tensor cores; fp16 has the same
    tf32_tflops: float | None = None
    fp8_tflops: float | None = None
    power_w: float | None = None  # the board's limit as shipped
    source: str

    @property
    def peak_tflops(self) -> dict[str, float]:
        """Dense, of the tensor cores, by dtype. Float32 without TF32 does not use them, and is not in the table."""
        of = {"bfloat16": self.bf16_tflops, "float16": self.bf16_tflops, "tf32": self.tf32_tflops}
        of |= dict.fromkeys(("float8_e4m3fn", "float8_e5m2"), self.fp8_tflops)
        return {dtype: peak for dtype, peak in of.items() if peak}

    @property
    def pcie_gb_per_s(self) -> float | None:
        return PCIE_GB_PER_S[self.pcie_gen] if self.pcie_gen else None


_V100 = GpuSpec(
    gpu_class="V100 SXM",
    nvlink_gb_per_s=150,
    nvlinks=6,
    pcie_gen=3,
    memory_gb_per_s=900,
    power_w=300,
    source="NVIDIA V100 data sheet: NVLink 300 GB/s, 900 GB/s",
)
_A100_40 = GpuSpec(
    gpu_class="A100 SXM",
    nvlink_gb_per_s=300,
    nvlinks=12,
    nvswitch=True,
    pcie_gen=4,
    memory_gb_per_s=1555,
    bf16_tflops=312,
    tf32_tflops=156,
    power_w=400,
    source="NVIDIA A100 data sheet: NVLink 600 GB/s, PCIe 4, 1555 GB/s, 312 TFLOPS",
)
_A100_80 = GpuSpec(
    gpu_class="A100 SXM",
    nvlink_gb_per_s=300,
    nvlinks=12,
    nvswitch=True,
    pcie_gen=4,
    memory_gb_per_s=2039,
    bf16_tflops=312,
    tf32_tflops=156,
    power_w=400,
    source="NVIDIA A100 data sheet: NVLink 600 GB/s, PCIe 4, 2039 GB/s, 312 TFLOPS",
)
_A100_PCIE = GpuSpec(
    gpu_class="A100 PCIe",
    nvlink_gb_per_s=300,
    nvlinks=12,
    nvlink_bridge=2,
    pcie_gen=4,
    memory_gb_per_s=1935,
    bf16_tflops=312,
    tf32_tflops=156,
    power_w=300,
    source="NVIDIA A100 data sheet: bridge 600 GB/s, PCIe 4, 1935 GB/s, 312 TFLOPS",
)

GPUS = {
    "Tesla V100-SXM2-16GB": _V100,
    "Tesla V100-SXM2-32GB": _V100,
    "NVIDIA A100-SXM4-40GB": _A100_40,
    "A100-SXM4-40GB": _A100_40,  # drivers before 470
    "NVIDIA A100-SXM4-80GB": _A100_80,
    "A100-SXM4-80GB": _A100_80,
    "NVIDIA A100 80GB PCIe": _A100_PCIE,
    "NVIDIA A800-SXM4-80GB": GpuSpec(
        gpu_class="A800 SXM",
        nvlink_gb_per_s=200,
        nvlinks=8,
        nvswitch=True,
        pcie_gen=4,
        memory_gb_per_s=2039,
        bf16_tflops=312,
        tf32_tflops=156,
        power_w=400,
        source="NVIDIA A800 data sheet: NVLink 400 GB/s",
    ),
    "NVIDIA H100 80GB HBM3": GpuSpec(
        gpu_class="H100 SXM",
        nvlink_gb_per_s=450,
        nvlinks=18,
        nvswitch=True,
        nvls=True,
        pcie_gen=5,
        memory_gb_per_s=3350,
        bf16_tflops=989,
        tf32_tflops=495,
        fp8_tflops=1979,
        power_w=700,
        source="NVIDIA H100 data sheet: NVLink 900 GB/s, PCIe 5, 3.35 TB/s, 989 TFLOPS dense",
    ),
    "NVIDIA H100 NVL": GpuSpec(
        gpu_class="H100 NVL",
        nvlink_gb_per_s=300,
        nvlinks=12,
        nvlink_bridge=2,
        pcie_gen=5,
        memory_gb_per_s=3900,
        bf16_tflops=835,
        tf32_tflops=417.5,
        fp8_tflops=1671,
        power_w=400,
        source="NVIDIA H100 data sheet: NVLink 600 GB/s, PCIe 5, 3.9 TB/s, 835 TFLOPS dense",
    ),
    "NVIDIA H100 PCIe": GpuSpec(
        gpu_class="H100 PCIe",
        nvlink_gb_per_s=300,
        nvlinks=12,
        nvlink_bridge=2,
        pcie_gen=5,
        memory_gb_per_s=2000,
        bf16_tflops=756,
        tf32_tflops=378,
        fp8_tflops=1513,
        power_w=350,
        source="NVIDIA H100 PCIe product brief: bridge 600 GB/s, PCIe 5, 2 TB/s, 756 TFLOPS dense",
    ),
    "NVIDIA H800": GpuSpec(
        gpu_class="H800 SXM",
        nvlink_gb_per_s=200,
        nvlinks=8,
        nvswitch=True,
        nvls=True,
        pcie_gen=5,
        memory_gb_per_s=3350,
        bf16_tflops=989,
        tf32_tflops=495,
        fp8_tflops=1979,
        power_w=700,
        source="H800: H100 with NVLink 400 GB/s (DeepSeek-V3 report, section 3.1 and hardware paper)",
    ),
    "NVIDIA H200": GpuSpec(
        gpu_class="H200 SXM",
        nvlink_gb_per_s=450,
        nvlinks=18,
        nvswitch=True,
        nvls=True,
        pcie_gen=5,
        memory_gb_per_s=4800,
        bf16_tflops=989,
        tf32_tflops=495,
        fp8_tflops=1979,
        power_w=700,
        source="NVIDIA H200 data sheet: NVLink 900 GB/s, PCIe 5, 4.8 TB/s, 989 TFLOPS dense",
    ),
    "NVIDIA H200 NVL": GpuSpec(
        gpu_class="H200 NVL",
        nvlink_gb_per_s=450,
        nvlinks=18,
        nvlink_bridge=4,
        pcie_gen=5,
        memory_gb_per_s=4800,
        bf16_tflops=835,
        tf32_tflops=417.5,
        fp8_tflops=1671,
        power_w=600,
        source="NVIDIA H200 data sheet: 2- or 4-way bridge 900 GB/s, PCIe 5, 4.8 TB/s, 835 TFLOPS dense",
    ),
    "NVIDIA H20": GpuSpec(
        gpu_class="H20",
        nvlink_gb_per_s=450,
        nvlinks=18,
        nvswitch=True,
        nvls=True,
        pcie_gen=5,
        memory_gb_per_s=4000,
        bf16_tflops=148,
        source="H20 figures as published by resellers: NVLink 900 GB/s, 4 TB/s, 148 TFLOPS",
    ),
    "NVIDIA B200": GpuSpec(
        gpu_class="B200",
        nvlink_gb_per_s=900,
        nvlinks=18,
        nvswitch=True,
        nvls=True,
        pcie_gen=5,
        memory_gb_per_s=8000,
        bf16_tflops=2250,
        tf32_tflops=1125,
        fp8_tflops=4500,
        power_w=1000,
        source="NVIDIA DGX B200 data sheet: NVLink 14.4 TB/s for 8, 64 TB/s for 8, 72 PFLOPS FP8 sparse for 8",
    ),
    "NVIDIA B300 SXM6 AC": GpuSpec(
        gpu_class="B300",
        nvlink_gb_per_s=900,
        nvlinks=18,
        nvswitch=True,
        nvls=True,
        memory_gb_per_s=8000,
        source="NVIDIA HGX B300 page: NVLink 14.4 TB/s for 8; PCIe left out (generation not checked)",
    ),
    "NVIDIA GB200": GpuSpec(
        gpu_class="GB200",
        nvlink_gb_per_s=900,
        nvlinks=18,
        nvswitch=True,
        nvls=True,
        mnnvl=True,
        memory_gb_per_s=8000,
        bf16_tflops=2500,
        tf32_tflops=1250,
        fp8_tflops=5000,
        source="NVIDIA GB200 NVL72 data sheet: NVLink 130 TB/s for 72, 576 TB/s for 72, 180 PFLOPS dense for 72",
    ),
    "NVIDIA GB300": GpuSpec(
        gpu_class="GB300",
        nvlink_gb_per_s=900,
        nvlinks=18,
        nvswitch=True,
        nvls=True,
        mnnvl=True,
        memory_gb_per_s=8000,
        bf16_tflops=2500,
        source="NVIDIA GB300 NVL72 data sheet: NVLink 130 TB/s for 72, 576 TB/s for 72, 180 PFLOPS dense for 72",
    ),
    "NVIDIA L40S": GpuSpec(
        gpu_class="L40S",
        pcie_gen=4,
        memory_gb_per_s=864,
        bf16_tflops=362,
        tf32_tflops=183,
        fp8_tflops=733,
        power_w=350,
        source="NVIDIA L40S data sheet: PCIe 4, 864 GB/s, 362 TFLOPS dense",
    ),
    "NVIDIA L40": GpuSpec(
        gpu_class="L40",
        pcie_gen=4,
        memory_gb_per_s=864,
        bf16_tflops=181,
        tf32_tflops=90.5,
        fp8_tflops=362,
        power_w=300,
        source="NVIDIA L40 data sheet: PCIe 4, 864 GB/s, 181 TFLOPS dense",
    ),
    "NVIDIA L4": GpuSpec(
        gpu_class="L4",
        pcie_gen=4,
        memory_gb_per_s=300,
        bf16_tflops=121,
        tf32_tflops=60,
        fp8_tflops=242.5,
        power_w=72,
        source="NVIDIA L4 data sheet: PCIe 4, 300 GB/s, 242 TFLOPS sparse",
    ),
    "NVIDIA A10G": GpuSpec(
        gpu_class="A10G",
        pcie_gen=4,
        memory_gb_per_s=600,
        source="AWS G5 page; peak left out (no NVIDIA data sheet for the G model)",
    ),
    "NVIDIA A10": GpuSpec(
        gpu_class="A10",
        pcie_gen=4,
        memory_gb_per_s=600,
        bf16_tflops=125,
        tf32_tflops=62.5,
        power_w=150,
        source="NVIDIA A10 data sheet: PCIe 4, 600 GB/s, 125 TFLOPS dense",
    ),
    "NVIDIA A40": GpuSpec(
        gpu_class="A40",
        nvlink_gb_per_s=56.25,
        nvlinks=4,
        nvlink_bridge=2,
        pcie_gen=4,
        memory_gb_per_s=696,
        bf16_tflops=149.7,
        tf32_tflops=74.8,
        power_w=300,
        source="NVIDIA A40 data sheet: bridge 112.5 GB/s, PCIe 4, 696 GB/s, 149.7 TFLOPS dense",
    ),
    "NVIDIA RTX A6000": GpuSpec(
        gpu_class="RTX A6000",
        nvlink_gb_per_s=56.25,
        nvlinks=4,
        nvlink_bridge=2,
        pcie_gen=4,
        memory_gb_per_s=768,
        bf16_tflops=154.8,
        tf32_tflops=77.4,
        power_w=300,
        source="NVIDIA RTX A6000 data sheet: bridge 112.5 GB/s, PCIe 4, 768 GB/s, 154.8 TFLOPS dense",
    ),
    "Tesla T4": GpuSpec(
        gpu_class="T4",
        pcie_gen=3,
        memory_gb_per_s=320,
        power_w=70,
        source="NVIDIA T4 data sheet: PCIe 3, 320 GB/s; no bf16",
    ),
    "NVIDIA GeForce RTX 4090": GpuSpec(
        gpu_class="RTX 4090",
        pcie_gen=4,
        memory_gb_per_s=1008,
        bf16_tflops=165.2,
        tf32_tflops=82.6,
        fp8_tflops=330.3,
        power_w=450,
        source="NVIDIA Ada GPU architecture paper: PCIe 4, 1008 GB/s, 165.2 TFLOPS dense with FP32 accumulate",
    ),
    "NVIDIA GeForce RTX 5090": GpuSpec(
        gpu_class="RTX 5090",
        pcie_gen=5,
        memory_gb_per_s=1792,
        bf16_tflops=209.5,
        tf32_tflops=104.8,
        fp8_tflops=419,
        power_w=575,
        source="NVIDIA RTX Blackwell architecture paper: PCIe 5, 1792 GB/s, 209.5 TFLOPS dense with FP32 accumulate",
    ),
}

# device id -> NVML name, of vendor 10de: NVIDIA/open-gpu-kernel-modules README.md; V100 as pci.ids has it
GPU_OF_PCI_ID = {
    "1db1": "Tesla V100-SXM2-16GB",
    "1db5": "Tesla V100-SXM2-32GB",
    "1eb8": "Tesla T4",
    "20b0": "NVIDIA A100-SXM4-40GB",
    "20b2": "NVIDIA A100-SXM4-80GB",
    "20b5": "NVIDIA A100 80GB PCIe",
    "20f1": "NVIDIA A100-PCIE-40GB",
    "20f3": "NVIDIA A800-SXM4-80GB",
    "2230": "NVIDIA RTX A6000",
    "2236": "NVIDIA A10",
    "2237": "NVIDIA A10G",
    "2321": "NVIDIA H100 NVL",
    "2324": "NVIDIA H800",
    "2329": "NVIDIA H20",
    "2330": "NVIDIA H100 80GB HBM3",
    "2331": "NVIDIA H100 PCIe",
    "2335": "NVIDIA H200",
    "233b": "NVIDIA H200 NVL",
    "26b5": "NVIDIA L40",
    "26b9": "NVIDIA L40S",
    "27b8": "NVIDIA L4",
    "2901": "NVIDIA B200",
    "2941": "NVIDIA GB200",
    "2bb5": "NVIDIA RTX PRO 6000 Blackwell Server Edition",
    "2e12": "NVIDIA GB10",
    "3182": "NVIDIA B300 SXM6 AC",
    "31c2": "NVIDIA GB300",
}


def gpu(name: str | None) -> GpuSpec | None:
    return GPUS.get(name) if name else None


def nic_gb_per_s(mbit_per_s: float) -> float:
    """As NCCL converts link rates: 400 Gb/s = 50 GB/s (src/graph/topo.cc)."""
    return mbit_per_s / 8000
