"""What kind of container this is, and what it lets through: namespaces, capabilities, devices."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from smoldiag.collect import files
from smoldiag.facts import Container

DEVICES = ("dev", "dev/infiniband", "dev/nvidia-caps-imex-channels", "dev/nvidia-caps")
DEVICE = re.compile(r"nvidia.*|infiniband|uverbs\d+|rdma_cm|umad\d+|channel\d+|gdrdrv|kfd|nvme\d+n\d+|nv.*cap\d+")
MOST_DEVICES = 512  # an IMEX domain has up to 2,048 channels; the first ones say enough
CAPABILITIES = (  # linux/capability.h, by bit
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
)
IMAGE_VARIABLES = ("CONTAINER_IMAGE", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", "NVIDIA_PRODUCT_NAME")


def container(root: Path, env: Mapping[str, str], pid: int | None = None) -> Container:
    who = files.process(root, pid)
    kind = kind_of(root, env, who)
    return Container(
        kind=kind,
        image=next((env[v] for v in IMAGE_VARIABLES if env.get(v)), None),
        pid_namespace=files.link_name(root / "proc" / who / "ns/pid"),
        network_namespace=files.link_name(root / "proc" / who / "ns/net"),
        ipc_namespace=files.link_name(root / "proc" / who / "ns/ipc"),
        own_network=None if kind == "none" else _own_network(root),
        capabilities=capabilities(root, who),
        devices=devices(root),
    )


def kind_of(root: Path, env: Mapping[str, str], who: str) -> str:
    """none | docker | kubernetes | podman | apptainer | enroot | lxc | unknown."""
    groups = files.text(root / "proc" / who / "cgroup") or ""
    mounts = files.text(root / "proc" / who / "mounts") or files.text(root / "proc/mounts") or ""
    top = next((line for line in mounts.splitlines() if re.match(r"\S+ / ", line)), "")
    signs = (
        (
            "kubernetes",
            "KUBERNETES_SERVICE_HOST" in env
            or (root / "var/run/secrets/kubernetes.io/serviceaccount").exists()
            or "kubepods" in groups
            or "/kubelet/pods/" in mounts,
        ),
        (
            "apptainer",
            (root / ".singularity.d").exists() or "APPTAINER_CONTAINER" in env or "SINGULARITY_CONTAINER" in env,
        ),
        (
            "enroot",
            "ENROOT_ROOTFS" in env or "/enroot/" in top,
        ),
        ("podman", (root / "run/.containerenv").exists() or env.get("container") == "podman"),
        ("docker", (root / ".dockerenv").exists() or re.search(r"[/:]docker[/-]", groups) or "/docker/" in top),
        ("lxc", env.get("container") == "lxc" or ":/lxc" in groups),
        ("unknown", bool(env.get("container")) or "containerd" in top or "/containers/storage" in top),
    )
    return next((name for name, sign in signs if sign), "none")


def _own_network(root: Path) -> bool | None:
    """Of its own: no interface stands on hardware. A namespace does not tell whether it is the host's."""
    interfaces = [i for i in files.listed(root / "sys/class/net") if i.name != "lo"]
    return None if not interfaces else not any((i / "device").exists() for i in interfaces)


def capabilities(root: Path, who: str) -> tuple[str, ...] | None:
    status = files.text(root / "proc" / who / "status") or ""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    if not match:
        return None
    bits = int(match[1], 16)
    return tuple(name for bit, name in enumerate(CAPABILITIES) if bits >> bit & 1)


def devices(root: Path) -> tuple[str, ...] | None:
    """Devices of GPUs, RDMA and IMEX channels that can be seen here. None: no /dev."""
    if not (root / "dev").is_dir():
        return None
    found = []
    for folder in DEVICES:
        try:
            names = sorted(os.listdir(root / folder))
        except OSError:
            continue
        found += [f"/{folder}/{name}" for name in names if DEVICE.fullmatch(name)]
    return tuple(found[:MOST_DEVICES])
