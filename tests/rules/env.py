"""Rules that judge variables."""

from pathlib import Path
from typing import Any

from smoldiag.collect import env as collect
from smoldiag.facts import Cpu, Env, Gid, Gpu, Host, Nic, Variable
from smoldiag.parse import script
from tests.rules.known import Facts

HERE = Path("/nowhere")  # no configuration files below it


def host(
    version: str | None = None, *, nics: tuple[Nic, ...] | None = None, gpus: int | None = None, **env: str
) -> Host:
    """A host whose environment is this, with a release of NCCL where one is given."""
    return Host(
        name="n0",
        env=collect.env(root=HERE, environ=env),
        versions={"nccl": version} if version else {},
        nics=nics,
        gpus=None if gpus is None else tuple(Gpu(index=i, name="NVIDIA H100 80GB HBM3") for i in range(gpus)),
    )


def torch(version: str, **env: str) -> Host:
    return Host(name="n0", env=collect.env(root=HERE, environ=env), versions={"torch": version})


def cpus(count: int, threads: int | None = None, **env: str) -> Host:
    return Host(
        name="n0",
        env=collect.env(root=HERE, environ=env),
        cpu_count=count,
        cpu=Cpu(threads=threads) if threads else None,
    )


def scripted(text: str) -> Host:
    return Host(name="job.sh", env=script.parse(text, file="job.sh"))


def variable(**given: Any) -> Host:
    return Host(name="n0", env=Env(variables=(Variable(**given),)))


def eth(*names: str) -> tuple[Nic, ...]:
    return tuple(Nic(name=n, kind="ethernet", up=True, addresses=("10.0.0.1/24",)) for n in names)


def mlx(count: int, **more: Any) -> tuple[Nic, ...]:
    given: dict[str, Any] = {"kind": "infiniband", "up": True, "port": 1}
    return tuple(Nic(name=f"mlx5_{i}", device=f"mlx5_{i}", **(given | more)) for i in range(count))


def roce(*gids: tuple[int, str, str]) -> tuple[Nic, ...]:
    return mlx(2, kind="roce", gids=tuple(Gid(index=i, address=a, kind=k) for i, a, k in gids))


V4 = "0000:0000:0000:0000:0000:ffff:0a00:0001"
LINK_LOCAL = "fe80:0000:0000:0000:0000:0000:0000:0001"
GIDS = roce((0, LINK_LOCAL, "IB/RoCE v1"), (1, LINK_LOCAL, "RoCE v2"), (2, V4, "IB/RoCE v1"), (3, V4, "RoCE v2"))
NCCL = "2.27.5"

CASES: list[tuple[str, Facts, list[str]]] = [
    ("ENV001", host(NCCL_DEBGU="INFO"), ["warning"]),
    ("ENV001", host(NCLL_DEBUG="INFO"), ["warning"]),
    ("ENV001", host(OMP_NUM_THREAD="8"), ["warning"]),
    ("ENV001", host(MASTER_ADDRESS="a", MASTER_ADDR="a"), []),  # a script's own variable
    ("ENV001", host(NCCL_DEBUG="INFO", NCCL_VERSION="2.27.3", TORCH_CUDA_ARCH_LIST="9.0"), []),
    ("ENV002", host(NCCL_P2P_ENABLE="1"), ["info"]),
    ("ENV002", host(NCCL_SOCKET_TIMEOUT="1"), ["info"]),
    ("ENV002", host(OFI_NCCL_PATH="/opt/ofi", NCCL_TESTS_SPLIT_MASK="7", NCCL_CONTAINER="x"), []),
    ("ENV002", host(NCCL_DEBGU="INFO", NCCL_IBEXT_DISABLE="1", FI_EFA_MTU_SIZE="9000", UCX_RC_PATH_MTU="4096"), []),
    ("ENV003", host(NCCL, NCCL_TREE_THRESHOLD="0"), ["warning"]),
    ("ENV003", host(NCCL_TREE_THRESHOLD="0"), ["warning"]),
    ("ENV003", host("2.4.8", NCCL_TREE_THRESHOLD="0"), []),
    ("ENV003", host("2.30.7", NCCL_GIN_NCONTEXTS="4"), ["warning"]),
    ("ENV003", host(NCCL_GIN_NCONTEXTS="4"), ["info"]),  # removed in a release that is not everywhere
    ("ENV003", host("2.23.4", NCCL_RAS_ENABLE="1"), ["warning"]),
    ("ENV003", host("2.24.3", NCCL_RAS_ENABLE="1"), []),
    ("ENV003", host(NCCL_RAS_ENABLE="1"), []),
    ("ENV004", host(NCCL, NCCL_MAX_NCHANNELS="32"), ["info"]),
    ("ENV004", host("2.16.2", NCCL_MAX_NCHANNELS="32"), []),
    ("ENV004", host(NCCL_ASYNC_ERROR_HANDLING="1"), ["info"]),
    ("ENV004", torch("2.8.0", PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True"), []),
    ("ENV004", host(PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True"), []),
    ("ENV004", torch("2.13.0+cu130", PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True"), ["info"]),
    ("ENV005", host(NCCL_BUFFSIZE="4M"), ["warning"]),
    ("ENV005", host(NCCL_IB_DISABLE="true"), ["warning"]),
    ("ENV005", host(NCCL_MAX_CTAS="010"), ["warning"]),
    ("ENV005", host(TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC="600s"), ["warning"]),
    ("ENV005", host(NCCL_BUFFSIZE="8388608", NCCL_IB_TC="0x60", NCCL_CROSS_NIC=" 1", NCCL_IB_SL=""), []),
    ("ENV005", host("2.30.7", NCCL_SET_THREAD_NAME="true"), []),  # its typed parser knows the word
    ("ENV005", host("2.29.7", NCCL_SET_THREAD_NAME="true"), ["warning"]),
    ("ENV005", scripted("export NCCL_BUFFSIZE=$SIZE"), []),
    ("ENV006", host(NCCL_P2P_LEVEL="nvl"), ["warning"]),
    ("ENV006", host(NCCL_SOCKET_FAMILY="ipv4"), ["warning"]),
    ("ENV006", host(NCCL_DEBUG="ERROR"), ["warning"]),
    ("ENV006", host("2.23.4", NCCL_ALGO="Rings"), ["warning"]),
    ("ENV006", host(FI_EFA_USE_DEVICE_RDMA="1 # for p4d"), ["warning"]),
    ("ENV006", host(NCCL_SOCKET_IFNAME="e"), ["warning"]),
    ("ENV006", host(NCCL_DEBUG="info", NCCL_P2P_LEVEL="4", NCCL_DEBUG_SUBSYS="init,net"), []),
    ("ENV007", host(NCCL, NCCL_ALGO="Rings"), ["error"]),
    ("ENV007", host(NCCL_ALGO="Rings"), ["warning"]),
    ("ENV007", host(TORCH_NCCL_BLOCKING_WAIT="on"), ["error"]),
    ("ENV007", host(MASTER_PORT="http"), ["error"]),
    ("ENV007", host(TORCH_DISTRIBUTED_DEBUG="DEBUG"), ["error"]),
    ("ENV007", host(TORCH_DISTRIBUTED_DEBUG="detail"), []),
    ("ENV007", host(NCCL, NCCL_ALGO="ring,tree;allreduce:nvls", NCCL_PROTO="^ll128", TORCH_NCCL_NAN_CHECK="YES"), []),
    ("ENV008", host(NCCL_IB_TIMEOUT="0"), ["warning"]),
    ("ENV008", host(NCCL_NTHREADS="100"), ["warning"]),
    ("ENV008", host(NCCL_CROSS_NIC="3"), ["warning"]),
    ("ENV008", host(NCCL_BUFFSIZE="-1"), ["warning"]),
    ("ENV008", host(NCCL_IB_TIMEOUT="22", NCCL_NTHREADS="256", NCCL_CROSS_NIC="2", NCCL_CUMEM_ENABLE="-2"), []),
    ("ENV009", host(NCCL, NCCL_IB_TIMEOUT="20"), ["info"]),
    ("ENV009", host("2.22.3", NCCL_IB_TIMEOUT="20"), []),
    ("ENV009", host(NCCL_IB_TIMEOUT="20"), ["info"]),
    ("ENV009", host(NCCL_BUFFSIZE="4194304"), ["info"]),
    ("ENV009", host(TORCH_NCCL_BLOCKING_WAIT="no"), ["info"]),
    ("ENV009", host(NCCL, NCCL_COLLNET_ENABLE="0", NCCL_IB_TIMEOUT="22", TORCHELASTIC_MAX_RESTARTS="0"), []),
    ("ENV010", host(NCCL_IB_HCA='"mlx5_0"'), ["warning"]),
    ("ENV010", host(NCCL_IB_DISABLE="'1'"), ["warning"]),
    ("ENV010", host(NCCL_SOCKET_IFNAME="eth0, eth1"), ["warning"]),
    ("ENV010", host("2.29.7", NCCL_DEBUG="WARN "), ["warning"]),
    ("ENV010", host("2.30.7", NCCL_DEBUG="WARN "), []),
    ("ENV010", host(NCCL_IB_HCA="mlx5_0,mlx5_1", NCCL_CROSS_NIC=" 1", NCCL_DEBUG_TIMESTAMP_FORMAT="[%F %T] "), []),
    ("ENV011", host(NCCL_P2P_DISABLE="1"), ["warning"]),
    ("ENV011", host(NCCL_P2P_DISABLE="1", gpus=1), ["info"]),
    ("ENV011", host(NCCL_P2P_LEVEL="LOC"), ["warning"]),
    ("ENV011", host(NCCL_NVLS_ENABLE="0"), ["info"]),
    ("ENV011", host(NCCL_NVLS_ENABLE="0", gpus=8), ["warning"]),
    ("ENV011", host(NCCL_P2P_DISABLE="0", NCCL_SHM_DISABLE="0", NCCL_P2P_LEVEL="SYS", NCCL_NVLS_ENABLE="1"), []),
    ("ENV012", host(NCCL_IB_DISABLE="1"), ["warning"]),
    ("ENV012", host(NCCL_IB_DISABLE="1", nics=eth("eth0")), ["info"]),
    ("ENV012", host(NCCL_NET="socket", nics=mlx(1)), ["warning"]),
    ("ENV012", host(FI_PROVIDER="tcp"), ["warning"]),
    ("ENV012", host(NCCL_NET_PLUGIN="none", nics=mlx(8, kind="efa")), ["warning"]),
    ("ENV012", host(NCCL_NET_PLUGIN="none"), []),
    ("ENV012", host(FI_PROVIDER="efa", NCCL_IB_DISABLE="0", NCCL_NET="IB", FI_EFA_USE_DEVICE_RDMA="1"), []),
    ("ENV013", host(NCCL_NET_GDR_LEVEL="0"), ["warning"]),
    ("ENV013", host(NCCL_DMABUF_ENABLE="0"), ["info"]),
    ("ENV013", host(NCCL_NET_GDR_LEVEL="SYS", NCCL_NET_GDR_READ="1", NCCL_DMABUF_ENABLE="1"), []),
    ("ENV014", host(NCCL, NCCL_PROTO="LL128"), ["warning"]),
    ("ENV014", host(NCCL, NCCL_PROTO="Simple"), ["info"]),
    ("ENV014", host(NCCL, NCCL_PROTO="^LL"), ["info"]),
    ("ENV014", host(NCCL, NCCL_ALGO="Ring"), []),
    ("ENV015", host(NCCL, NCCL_ALGO="Tree"), ["error"]),
    ("ENV015", host(NCCL_ALGO="Tree"), ["warning"]),
    ("ENV015", host("2.23.4", NCCL_ALGO="Tree"), ["warning"]),
    ("ENV015", host(NCCL, NCCL_ALGO="Ring"), ["warning"]),
    ("ENV015", host(NCCL, NCCL_ALGO="Ring", NCCL_FASTRAK_IFNAME="eth1"), ["info"]),  # Google's preset
    ("ENV015", host(NCCL, NCCL_ALGO="^NVLS"), ["info"]),
    ("ENV015", host(NCCL, NCCL_ALGO="NVLS", NCCL_PROTO="LL"), ["error"]),
    ("ENV015", host(NCCL, NCCL_PROTO="LL128"), []),
    ("ENV016", host(NCCL_MAX_NCHANNELS="8"), ["warning"]),
    ("ENV016", host(NCCL_MAX_CTAS="16"), ["info"]),
    ("ENV016", host(NCCL_BUFFSIZE="1048576"), ["info"]),
    ("ENV016", host(NCCL_BUFFSIZE="8388608", NCCL_MAX_CTAS="32", NCCL_MIN_NCHANNELS="4", NCCL_NTHREADS="512"), []),
    ("ENV017", host(NCCL, NCCL_IB_TIMEOUT="18"), ["warning"]),
    ("ENV017", host("2.22.3", NCCL_IB_TIMEOUT="18"), []),
    ("ENV017", host(NCCL_IB_TIMEOUT="2"), ["warning"]),
    ("ENV017", host(NCCL_IB_RETRY_CNT="3"), ["warning"]),
    ("ENV017", host(NCCL_IB_TIMEOUT="22", NCCL_IB_RETRY_CNT="7", TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC="1200"), []),
    ("ENV018", host(NCCL_GDR_FLUSH_DISABLE="1"), ["warning"]),
    ("ENV018", host(OFI_NCCL_GDR_FLUSH_DISABLE="true"), ["warning"]),
    ("ENV018", host(NCCL_GDR_FLUSH_DISABLE="0", NCCL_GRAPH_MIXING_SUPPORT="1", FI_FORK_UNSAFE="0"), []),
    ("ENV019", host(NCCL_SOCKET_IFNAME="bond", nics=eth("eth0"), gpus=8), ["error"]),
    ("ENV019", host(NCCL_SOCKET_IFNAME="bond", nics=eth("eth0")), ["warning"]),
    ("ENV019", host(GLOO_SOCKET_IFNAME="eth", nics=eth("eth0"), gpus=8), ["error"]),
    ("ENV019", host(NCCL_IB_HCA="mlx4", nics=mlx(8), gpus=8), ["warning"]),
    ("ENV019", host(NCCL_SOCKET_IFNAME="^docker,lo", NCCL_IB_HCA="mlx5", nics=(*eth("eth0"), *mlx(8)), gpus=8), []),
    ("ENV020", host(NCCL_SOCKET_IFNAME="bond0", nics=eth("bond0", "bond0.2093")), ["warning"]),
    ("ENV020", host(NCCL_SOCKET_IFNAME="bond", nics=eth("bond0", "bond0.2093")), ["warning"]),
    ("ENV020", host(NCCL_IB_HCA="mlx5_0,mlx5_1", nics=mlx(12)), ["warning"]),
    ("ENV020", host(NCCL_IB_HCA="^mlx5_1", nics=mlx(12)), ["warning"]),
    ("ENV020", host(NCCL_IB_HCA="mlx5_0,mlx5_1"), ["info"]),
    ("ENV020", host(NCCL_SOCKET_IFNAME="eth"), ["info"]),
    ("ENV020", host(NCCL_IB_HCA="=mlx5_1", NCCL_SOCKET_IFNAME="eth0", nics=(*eth("eth0"), *mlx(12))), []),
    ("ENV020", host(NCCL_IB_HCA="mlx5", NCCL_SOCKET_IFNAME="^docker,lo", nics=(*eth("eth0"), *mlx(12))), []),
    ("ENV021", host(NCCL_SOCKET_IFNAME="lo", WORLD_SIZE="16", LOCAL_WORLD_SIZE="8"), ["error"]),
    ("ENV021", host(MASTER_ADDR="127.0.0.1", SLURM_NNODES="4"), ["error"]),
    ("ENV021", host(GLOO_SOCKET_IFNAME="lo"), ["info"]),
    ("ENV021", host(MASTER_ADDR="localhost", WORLD_SIZE="8", LOCAL_WORLD_SIZE="8"), []),
    ("ENV021", host(MASTER_ADDR="127.0.0.1"), []),
    ("ENV022", host(NCCL_IB_GID_INDEX="2", nics=GIDS), ["error"]),
    ("ENV022", host(NCCL_IB_GID_INDEX="7", nics=GIDS), ["error"]),
    ("ENV022", host(NCCL, NCCL_IB_GID_INDEX="3", nics=GIDS), ["info"]),
    ("ENV022", host("2.20.5", NCCL_IB_GID_INDEX="3", nics=GIDS), []),
    ("ENV023", host(CUDA_LAUNCH_BLOCKING="1"), ["warning"]),
    ("ENV023", host(NCCL_DEBUG="INFO"), ["info"]),
    ("ENV023", host(NCCL_DEBUG="INFO", NCCL_DEBUG_SUBSYS="ALL", NCCL_DEBUG_FILE="/tmp/x.%h.%p"), ["warning"]),
    ("ENV023", host(TORCH_DISTRIBUTED_DEBUG="DETAIL"), ["warning"]),
    ("ENV023", host(NCCL_DEBUG="WARN", CUDA_LAUNCH_BLOCKING="0", NCCL_CHECK_POINTERS="0", FI_LOG_LEVEL="warn"), []),
    ("ENV024", host(NCCL_DEBUG_SUBSYS="INIT,NET"), ["info"]),
    ("ENV024", host(NCCL_DEBUG="INFO", NCCL_DEBUG_FILE="/tmp/nccl.log"), ["info"]),
    ("ENV024", host(NCCL_DEBUG="INFO", NCCL_DEBUG_FILE="/tmp/nccl.%h.%p", NCCL_DEBUG_SUBSYS="INIT"), []),
    ("ENV024", scripted("export NCCL_DEBUG_SUBSYS=INIT"), []),  # NCCL_DEBUG may come from elsewhere
    ("ENV025", host(CUDA_DEVICE_MAX_CONNECTIONS="1"), ["info"]),
    ("ENV025", host(CUDA_DEVICE_MAX_CONNECTIONS="1", ACCELERATE_USE_FSDP="true"), ["warning"]),
    ("ENV025", host(CUDA_DEVICE_MAX_CONNECTIONS="8"), []),
    ("ENV026", host(TORCH_NCCL_BLOCKING_WAIT="1"), ["warning"]),
    ("ENV026", host(TORCH_NCCL_ASYNC_ERROR_HANDLING="0"), ["warning"]),
    ("ENV026", host(TORCH_NCCL_ENABLE_MONITORING="0"), ["warning"]),
    ("ENV026", host(TORCH_NCCL_ASYNC_ERROR_HANDLING="1", TORCH_NCCL_BLOCKING_WAIT="0"), []),
    ("ENV027", host(TORCH_FR_BUFFER_SIZE="0"), ["info"]),
    ("ENV027", host(NCCL_RAS_ENABLE="0"), ["info"]),
    ("ENV027", host(TORCH_FR_BUFFER_SIZE="20000", NCCL_RAS_ENABLE="1"), []),
    ("ENV028", cpus(8, OMP_NUM_THREADS="16"), ["warning"]),
    ("ENV028", cpus(16, 128, OMP_NUM_THREADS="16", LOCAL_WORLD_SIZE="16"), ["warning"]),
    ("ENV028", cpus(16, 128, OMP_NUM_THREADS="16", LOCAL_WORLD_SIZE="8"), []),
    ("ENV028", cpus(8, OMP_NUM_THREADS="1"), []),
    ("ENV029", host(RANK="8", WORLD_SIZE="8"), ["error"]),
    ("ENV029", host(MASTER_ADDR="tcp://n0:29500"), ["error"]),
    ("ENV029", host(MASTER_PORT="22"), ["warning"]),
    ("ENV029", host(RANK="7", WORLD_SIZE="8", LOCAL_RANK="7", LOCAL_WORLD_SIZE="8", MASTER_ADDR="fd00::1"), []),
    ("ENV030", host(CUDA_VISIBLE_DEVICES="0,1,1"), ["warning"]),
    ("ENV030", host(CUDA_VISIBLE_DEVICES="0,-1,2"), ["warning"]),
    ("ENV030", host(CUDA_VISIBLE_DEVICES="0,1,GPU-8f1b2c3d-0000"), []),
    ("ENV030", host(CUDA_VISIBLE_DEVICES=""), []),
    ("ENV031", host(PYTORCH_CUDA_ALLOC_CONF="expandable_segments=True"), ["error"]),
    ("ENV031", host(PYTORCH_CUDA_ALLOC_CONF="max_split_size:512"), ["error"]),
    ("ENV031", host(PYTORCH_CUDA_ALLOC_CONF="a:1", PYTORCH_ALLOC_CONF="b:1"), ["warning"]),
    (
        "ENV031",
        host(PYTORCH_ALLOC_CONF="expandable_segments:True,roundup_power2_divisions:[256:1,512:2,>:4],new_option:1"),
        [],
    ),
    ("ENV032", host(NCCL_P2P_DISABLE="1", NCCL_P2P_LEVEL="NVL"), ["info"]),
    ("ENV032", host(NCCL_IB_DISABLE="1", NCCL_NET="IB"), ["error"]),
    ("ENV032", host(NCCL_MIN_CTAS="16", NCCL_MAX_CTAS="8"), ["warning"]),
    ("ENV032", host(NCCL_SOCKET_NTHREADS="16", NCCL_NSOCKS_PERTHREAD="8"), ["warning"]),
    ("ENV032", host(NCCL_MIN_CTAS="8", NCCL_MAX_CTAS="16", NCCL_IB_HCA="mlx5", NCCL_SOCKET_NTHREADS="4"), []),
    ("ENV033", variable(name="NCCL_TOPO_FILE", value="/x.xml", origin="environment", exists=False), ["warning"]),
    ("ENV033", variable(name="NCCL_TOPO_FILE", value="/x.xml", origin="environment", exists=True), []),
    (
        "ENV034",
        variable(name="NCCL_DEBUG", value="WARN", origin="environment", shadowed=("/etc/nccl.conf:1 (INFO)",)),
        ["info"],
    ),
    (
        "ENV034",
        variable(name="NCCL_DEBUG", value="WARN", origin="environment", shadowed=("/etc/nccl.conf:1 (WARN)",)),
        [],
    ),
    ("ENV034", scripted("export NCCL_DEBUG=INFO\nexport NCCL_DEBUG=WARN"), []),
    ("ENV035", host(NCCL_HOSTID="a"), ["info"]),
    ("ENV035", host(NCCL_ENV_PLUGIN="none"), []),
    ("ENV036", scripted("export RANK=0"), ["info"]),
    ("ENV036", host(FI_PROVIDER="efa", NCCL_BUFFSIZE="8388608"), ["info"]),
    ("ENV036", host(RANK="0", NCCL_BUFFSIZE="8388608"), []),
    ("ENV036", scripted("export RANK=$SLURM_PROCID"), []),
]
