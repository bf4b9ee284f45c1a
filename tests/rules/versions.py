"""VER."""

from dataclasses import replace

from smoldiag.facts import Library
from tests.rules.known import Facts
from tests.rules.machines import DOCKER, EFA, GUEST, TWO_GPUS, env, host

WHEEL = "/venv/lib/python3.12/site-packages/nvidia/nccl/lib/libnccl.so.2"
NCCL = Library(name="libnccl.so.2", path=WHEEL, version="2.27.5", how="wheel")
OLD = Library(name="libnccl.so.2", path="/usr/lib/libnccl.so.2.18.3", version="2.18.3", how="LD_PRELOAD")
PLUGIN = Library(
    name="libnccl-net.so",
    path="/opt/amazon/ofi-nccl/lib/libnccl-net.so",
    how="ld.so.cache",
    missing=("libfabric.so.1",),
    glibc="2.31",
)
GOOD = Library(name="libnccl-net.so", path="/usr/lib/libnccl-net.so", how="ld.so.cache", missing=(), glibc="2.31")
OFI = replace(GOOD, name="libnccl-net-ofi.so")
IBVERBS = Library(name="libibverbs.so.1", path="/usr/lib/libibverbs.so.1", how="ld.so.cache")
TORCH = {"torch": "2.9.0+cu128", "torch_cuda": "12.8", "torch_nccl": "2.27.5", "torch_nccl_wheel": "nvidia-nccl-cu12"}
BOTH = {"nvidia-nccl-cu12": "2.27.5", "nvidia-nccl-cu13": "2.28.9"}
ON_EFA = host(nics=EFA, pci=TWO_GPUS, system=GUEST, versions={**TORCH, "glibc": "2.35"}, libraries=(PLUGIN,))

CASES: list[tuple[str, Facts, list[str]]] = [
    ("VER002", host(versions={"driver": "550.54.15", "user_driver": "550.90.07"}), ["error"]),
    ("VER002", host(versions={"driver": "550.54.15", "user_driver": "550.54.15"}), []),
    ("VER003", host(versions=TORCH | BOTH, libraries=(NCCL,)), ["warning"]),
    ("VER003", host(versions=TORCH | {"nvidia-nccl-cu12": "2.27.5"}), []),
    ("VER004", host(versions=TORCH, libraries=(OLD, NCCL)), ["warning"]),
    ("VER004", host(versions=TORCH, libraries=(NCCL, OLD)), []),
    ("VER005", host(libraries=(NCCL, OLD)), ["info"]),
    ("VER005", host(libraries=(NCCL,)), []),
    ("VER006", ON_EFA, ["error"]),
    ("VER006", host(libraries=(PLUGIN,)), ["warning"]),
    ("VER006", host(libraries=(GOOD,), versions={"glibc": "2.28"}), ["warning"]),
    ("VER006", host(libraries=(GOOD,), versions={"glibc": "2.35"}), []),
    ("VER007", host(nics=EFA, pci=TWO_GPUS, versions=TORCH, container=DOCKER), ["warning"]),
    ("VER007", host(nics=EFA, pci=TWO_GPUS, versions=TORCH, libraries=(GOOD,)), []),
    ("VER007", host(nics=EFA, pci=TWO_GPUS, versions=TORCH, libraries=(OFI,)), ["warning"]),
    ("VER007", host(nics=EFA, pci=TWO_GPUS, versions=TORCH, libraries=(OFI,), env=env(NCCL_NET_PLUGIN="ofi")), []),
    ("VER007", host(nics=EFA, pci=TWO_GPUS, versions={}), []),
    ("VER008", host(versions={"driver": "470.82.01", **TORCH}), ["error"]),
    ("VER008", host(versions={"driver": "525.60.13", **TORCH}), []),
    ("VER009", host(versions=TORCH, libraries=(NCCL,)), ["warning"]),
    ("VER009", host(versions=TORCH, libraries=(NCCL, IBVERBS)), []),
    ("VER010", host(versions={"driver": "550.54.15", "fabricmanager": "550.90.07"}), ["warning"]),
    ("VER010", host(versions={"driver": "550.54.15", "fabricmanager": "550.54.15"}), []),
    ("VER011", host(versions={"driver": "550.54.15", "torch": "2.9.0+cpu"}), ["warning"]),
    ("VER011", host(versions={"driver": "550.54.15", **TORCH}), []),
    ("VER012", host(nics=EFA, versions={"efa_installer": "1.28.0", "nccl": "2.19.3"}), ["warning"]),
    ("VER012", host(nics=EFA, versions={"efa_installer": "1.47.0", "nccl": "2.28.9"}), []),
    ("VER013", host(versions={"nccl": "2.27.7"}), ["info"]),
    ("VER013", host(versions={"nccl": "2.27.7"}, env=env(NCCL_RAS_ENABLE="0")), []),
    ("VER013", host(versions={"nccl": "2.28.9"}), []),
]
