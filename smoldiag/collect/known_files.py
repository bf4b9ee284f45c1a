"""Files whose mere existence says something: plug-ins, topology files, services of clouds."""

from pathlib import Path

PATHS: tuple[str, ...] = (
    "/etc/nccl.conf",
    "/var/run/nvidia-topologyd/virtualTopology.xml",
    "/sys/kernel/mm/memory_peers/nv_mem/version",
    "/sys/kernel/mm/memory_peers/nv_mem_nc/version",
    "/sys/module/nvidia_peermem/version",
    "/sys/module/nv_peer_mem/version",
    "/opt/amazon/efa_installed_packages",
    "/opt/amazon/ofi-nccl/lib/libnccl-net-ofi.so",
    "/opt/amazon/ofi-nccl/lib/libnccl-net.so",
    "/opt/aws-ofi-nccl/lib/libnccl-net.so",
    "/opt/amazon/ofi-nccl/lib/x86_64-linux-gnu/libnccl-net.so",
    "/opt/amazon/ofi-nccl/lib/aarch64-linux-gnu/libnccl-net.so",
    "/opt/microsoft/ndv4-topo.xml",
    "/opt/microsoft/ndv5-topo.xml",
    "/opt/microsoft/ncv4/topo.xml",
    "/opt/microsoft/ndv4/topo.xml",
    "/opt/microsoft/ndv5/topo.xml",
    "/usr/local/gib/lib64/libnccl-net.so",
    "/usr/local/gib/scripts/set_nccl_env.sh",
    "/usr/local/nvidia/lib64/libnccl-net.so",
    "/var/lib/tcpxo/lib64/libnccl-net.so",
    "/var/lib/tcpx/lib64/libnccl-net.so",
    "/var/run/oci-hpc/oci-hpc-rdma-configure.json",
    "/etc/nvidia-imex/nodes_config.cfg",
    "/etc/chrony.conf",
    "/etc/chrony/chrony.conf",
    "/dev/gdrdrv",
    "/dev/shm",
    "/dev/infiniband/rdma_cm",
)


def existing(root: Path) -> tuple[str, ...]:
    return tuple(path for path in PATHS if (root / path.lstrip("/")).exists())
