"""Which variables concern training, and how NCCL's configuration files are read. Carried to the ranks."""

import re
from collections.abc import Iterator

MOST_TEXT = 1023  # characters of a name or value that NCCL takes from a file (src/misc/param.cc)
MOST_LINE = 4095  # characters that it reads at once
PREFIXES = (
    *("NCCL_", "RCCL_", "TORCH_", "TORCHELASTIC_", "PYTORCH_", "GLOO_", "TP_", "DCP_", "FSDP_", "ACCELERATE_USE_"),
    *("FI_", "OFI_", "UCX_", "RDMAV_", "IBV_", "MLX5_", "SHARP_", "DOCA_GPUNETIO_", "OMP_", "GOMP_", "KMP_", "MKL_"),
    *("CUDA_", "HIP_", "HSA_", "ROCR_", "MASTER_", "OMPI_COMM_WORLD_", "PMI_"),
)
NAMES = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME"),
    *("ROLE_RANK", "ROLE_WORLD_SIZE", "USE_LIBUV", "LOGLEVEL", "KINETO_USE_DAEMON", "FR_TRACE_VERBOSE_OUTPUT"),
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_IMEX_CHANNELS", "NVIDIA_DRIVER_CAPABILITIES"),
    *("SLURM_JOBID", "SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_NNODES", "SLURM_JOB_NUM_NODES", "SLURM_NTASKS"),
    *("SLURM_NTASKS_PER_NODE", "SLURM_CPUS_PER_TASK", "SLURM_CPU_BIND", "SLURM_PROCID", "SLURM_LOCALID"),
    *("SLURM_NODEID", "SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND", "SLURM_MPI_TYPE"),
}
MISSPELT = re.compile(r"[NCL]{3,5}_", re.IGNORECASE)  # NCLL_DEBUG, nccl_debug


def is_relevant(name: str) -> bool:
    return name.startswith(PREFIXES) or name in NAMES or MISSPELT.match(name) is not None


def conf_lines(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, name and value of each setting, as NCCL takes them: blanks and quotes are part of the value."""
    for number, line in enumerate(text.split("\n"), 1):
        name, equals, value = line[:MOST_LINE].removesuffix("\r").partition("=")
        if equals and name and not line.startswith("#"):
            yield number, name[:MOST_TEXT], value[:MOST_TEXT]
