"""This host in a few milliseconds: what a launcher must know before it starts ranks there.

All paths are below `root`, so that tests read trees. A fact that cannot be read is None, and `unread` says why.
"""

import fcntl
import os
import re
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from smoldiag.collect import gpus
from smoldiag.facts import Host, Nic

SIOCGIFADDR = 0x8915  # linux/sockios.h
UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a page-rounded 2**63
RDMA_STATE_ACTIVE = "4"  # sysfs: "4: ACTIVE"
NAME_VARIABLES = ("SLURMD_NODENAME", "NODE_NAME")  # the scheduler's name of this host


def collect(*, root: Path = Path("/"), env: Mapping[str, str] | None = None) -> Host:
    """Facts of this host. Never raises for what a host lacks."""
    env = os.environ if env is None else env
    unread: dict[str, str] = {}
    found: dict[str, Any] = {}
    readers: dict[str, Callable[[], Any]] = {
        "gpus": lambda: gpus.usable(env, root=root),
        "nics": lambda: nics(root),
        "memory_free_bytes": lambda: memory_free_bytes(root),
        "product": lambda: product(root),
    }
    for fact, read in readers.items():
        try:
            found[fact] = read()
        except (OSError, ValueError) as error:  # one fact that cannot be read must not hide the others
            unread[fact] = str(error)
    name, aliases = names(env)
    return Host(name=name, aliases=aliases, unread=unread, cpu_count=cpu_count(), **found)


def names(env: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """The scheduler's name, else the host name; and the other ones."""
    own = socket.gethostname()
    name = next((env[v] for v in NAME_VARIABLES if env.get(v)), own)
    return name, tuple(n for n in dict.fromkeys((own, own.partition(".")[0])) if n != name)


def cpu_count() -> int:
    return len(os.sched_getaffinity(0))


def memory_free_bytes(root: Path) -> int:
    """Available memory, within the limit of this cgroup."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text(), re.MULTILINE)
    if not match:
        raise ValueError("/proc/meminfo has no MemAvailable")
    free = int(match[1]) * 1024
    v2, v1 = root / "sys/fs/cgroup", root / "sys/fs/cgroup/memory"
    for limit, used in (
        (v2 / "memory.max", v2 / "memory.current"),
        (v1 / "memory.limit_in_bytes", v1 / "memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):
            most = int(limit.read_text())
            if most < UNLIMITED:
                free = min(free, max(most - int(used.read_text()), 0))
    return free


def product(root: Path) -> str | None:
    """What the firmware calls this machine; clouds put the instance type there."""
    dmi = root / "sys/class/dmi/id"
    return " ".join(filter(None, (_text(dmi / "sys_vendor"), _text(dmi / "product_name")))) or None


def nics(root: Path) -> tuple[Nic, ...]:
    return (*rdma(root), *ethernet(root))


def rdma(root: Path) -> tuple[Nic, ...]:
    """One per port of a verbs device."""
    found = []
    for device in _listed(root / "sys/class/infiniband"):
        for port in _listed(device / "ports"):
            layer = _text(port / "link_layer") or ""
            rate = re.match(r"([\d.]+) Gb/sec", _text(port / "rate") or "")
            state = _text(port / "state")
            kind = "efa" if device.name.startswith("efa") or "efa" in _driver(device) else layer.lower()
            found.append(
                Nic(
                    name=device.name if port.name == "1" else f"{device.name}:{port.name}",
                    kind={"ethernet": "roce", "": "efa", "unspecified": "efa"}.get(kind, kind),
                    gbit_per_s=float(rate[1]) if rate else None,
                    up=state.startswith(RDMA_STATE_ACTIVE) if state else None,
                )
            )
    return tuple(found)


def ethernet(root: Path) -> tuple[Nic, ...]:
    found = []
    for interface in _listed(root / "sys/class/net"):
        if interface.name == "lo" or not (interface / "operstate").is_file():
            continue
        virtual = not (interface / "device").exists()
        speed = _text(interface / "speed")  # EINVAL while down; virtual devices report a made-up 10000
        known = speed is not None and re.fullmatch(r"\d+", speed) is not None and not virtual
        found.append(
            Nic(
                name=interface.name,
                kind="ethernet",
                gbit_per_s=int(speed or 0) / 1000 if known else None,
                up=_text(interface / "operstate") == "up",
                virtual=virtual,
            )
        )
    return tuple(found)


def addresses() -> dict[str, str]:
    """interface -> IPv4 address, of every interface but the loopback."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                answer = fcntl.ioctl(s.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                address = socket.inet_ntoa(answer[20:24])
                if not address.startswith("127."):
                    found[name] = address
    return found


def carriers(root: Path = Path("/")) -> dict[str, bool]:
    """interface -> has carrier, for every interface that is meant to be up."""
    return {
        i.name: state == "1"
        for i in _listed(root / "sys/class/net")
        if i.name != "lo" and (state := _text(i / "carrier")) is not None
    }


def _driver(device: Path) -> str:
    with suppress(OSError):
        return (device / "device/driver").resolve().name
    return ""


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return None
