"""Kernel, firmware, virtualisation, IOMMU; processors; what the machine is called."""

import hashlib
import os
import re
import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from smoldiag import redact
from smoldiag.collect import files
from smoldiag.facts import Cpu, System

NAME_VARIABLES = ("SLURMD_NODENAME", "NODE_NAME")  # the scheduler's name of this host
DMI = (
    "sys_vendor",
    "product_name",
    "product_version",
    "product_family",
    "board_vendor",
    "board_name",
    "board_asset_tag",
    "chassis_asset_tag",
    "chassis_vendor",
    "bios_vendor",
    "bios_version",
    "bios_date",
)
IDS = {  # what support asks for -> file below /sys/class/dmi/id
    "uuid": "product_uuid",  # root only
    "serial": "product_serial",  # root only
    "asset_tag": "board_asset_tag",
}
FILLERS = {"", "none", "not specified", "to be filled by o.e.m.", "default string", "0", "n/a", "unknown", "system"}
HYPERVISORS = {  # DMI vendor or product, lower case -> name; longer ones first where one holds the other
    "amazon ec2": "amazon",
    "google": "google",
    "microsoft corporation": "hyperv",
    "vmware": "vmware",
    "virtualbox": "virtualbox",
    "innotek": "virtualbox",
    "parallels": "parallels",
    "cloud hypervisor": "cloud-hypervisor",
    "openstack": "kvm",
    "qemu": "kvm",
    "kvm": "kvm",
    "xen": "xen",
    "alibaba": "kvm",
    "digitalocean": "kvm",
}
MAY_BE_METAL = {"amazon", "google", "hyperv"}  # vendors that sell bare metal under the same name, or laptops
CPUINFO_HEAD = 16 << 10  # bytes: the first processors are like the others
GPU_VENDORS = {"0x10de", "0x1002"}
KIB = 1024
DAEMONS = {  # as /proc/PID/comm cuts them -> name
    "nv-fabricmanage": "nv-fabricmanager",
    "nvidia-imex": "nvidia-imex",
    "nvidia-persiste": "nvidia-persistenced",
    "nv-hostengine": "nv-hostengine",
    "opensm": "opensm",
    "chronyd": "chronyd",
    "ntpd": "ntpd",
    "systemd-timesyn": "systemd-timesyncd",
    "firewalld": "firewalld",
    "slurmd": "slurmd",
    "kubelet": "kubelet",
}
MOST_PROCESSES = 65536
FEW_PROCESSES = 20  # a tree or a container with fewer does not show the services of the host


def names(env: Mapping[str, str], root: Path = Path("/")) -> tuple[str, tuple[str, ...]]:
    """The scheduler's name, else the host name; and the other ones."""
    own = host_name(root)
    name = next((env[v] for v in NAME_VARIABLES if env.get(v)), own)
    return name, tuple(n for n in dict.fromkeys((own, own.partition(".")[0])) if n != name)


def host_name(root: Path) -> str:
    if root == Path("/"):
        return socket.gethostname()
    paths = ("proc/sys/kernel/hostname", "etc/hostname")
    return next(filter(None, (files.name(root / p) for p in paths)), None) or root.name or "host"


def product(dmi: Mapping[str, str]) -> str | None:
    """What the firmware calls this machine; clouds put the instance type there."""
    return " ".join(filter(None, (dmi.get("sys_vendor"), dmi.get("product_name")))) or None


def dmi(root: Path) -> dict[str, str] | None:
    folder = _dmi_folder(root)
    if folder is None:
        return None
    found = {name: files.text(folder / name, 256) for name in DMI}
    return {name: redact.text(value) for name, value in found.items() if value}


def ids(root: Path) -> dict[str, str]:
    """Ids of this machine that a file tells; a cloud's metadata service knows more."""
    folder = _dmi_folder(root)
    found = {name: files.text(folder / file, 256) for name, file in IDS.items()} if folder else {}
    if (found.get("asset_tag") or "").startswith("i-"):  # AWS puts the instance id there
        found["instance"] = found.pop("asset_tag")
    return {name: value for name, value in found.items() if value and value.lower() not in FILLERS}


def _dmi_folder(root: Path) -> Path | None:
    folders = (root / "sys/class/dmi/id", root / "sys/devices/virtual/dmi/id")
    return next((f for f in folders if f.is_dir()), None)


def system(root: Path, env: Mapping[str, str], dmi: Mapping[str, str] | None) -> System:
    memory = meminfo(root)
    boot_id = files.text(root / "proc/sys/kernel/random/boot_id", 128)
    machine_id = files.text(root / "etc/machine-id", 128)
    uptime = files.text(root / "proc/uptime", 128)
    iommu, iommu_type = iommu_mode(root)
    command_line = files.text(root / "proc/cmdline", 8 << 10)
    page_kib = memory.get("Hugepagesize")
    return System(
        kernel=kernel(root),
        command_line=redact.text(command_line) if command_line else None,
        distribution=distribution(root),
        machine_id=hashlib.sha256(machine_id.encode()).hexdigest()[:16] if machine_id else None,
        boot_id=boot_id,
        bios_date=(dmi or {}).get("bios_date"),
        virtual=virtual(root, dmi),
        iommu=iommu,
        iommu_type=iommu_type,
        modules=modules(root),
        hugepages_total=memory.get("HugePages_Total"),
        hugepages_free=memory.get("HugePages_Free"),
        hugepage_bytes=page_kib * KIB if page_kib else None,
        memory_bytes=memory["MemTotal"] * KIB if "MemTotal" in memory else None,
        numa_nodes=len(cpus_of_numa(root)) or None,
        uptime_s=float(uptime.split()[0]) if uptime and re.match(r"[\d.]+( |$)", uptime) else None,
        host_id=host_id(host_name(root), boot_id, env),
        daemons=daemons(root),
        own_addresses=own_addresses(root),
    )


def kernel(root: Path) -> str | None:
    release = files.text(root / "proc/sys/kernel/osrelease", 256)
    if release:
        return release
    match = re.match(r"Linux version (\S+)", files.text(root / "proc/version", KIB) or "")
    return match[1] if match else None


def distribution(root: Path) -> str | None:
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        words = files.text(files.below(root, path), 16 * KIB) or ""
        if match := re.search(r'^PRETTY_NAME="?([^"\n]*)', words, re.MULTILINE):
            return match[1].strip()
    return None


def meminfo(root: Path) -> dict[str, int]:
    """/proc/meminfo as it stands: kB, or counts of pages."""
    words = files.text(root / "proc/meminfo", 64 * KIB) or ""
    return {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+)", words, re.MULTILINE)}


def modules(root: Path) -> tuple[str, ...] | None:
    """Loaded, or built in with parameters or a version."""
    loaded = re.findall(r"^(\w+) ", files.text(root / "proc/modules") or "", re.MULTILINE)
    present = [p.name for p in files.listed(root / "sys/module")]
    return tuple(sorted({*loaded, *present})) if loaded or present else None


def virtual(root: Path, dmi: Mapping[str, str] | None) -> str | None:
    """The hypervisor's name, "none" on bare metal, None where nothing tells.

    On x86 every hypervisor sets a flag that /proc/cpuinfo shows; elsewhere the firmware's names must do.
    """
    info = files.text(root / "proc/cpuinfo", CPUINFO_HEAD) or ""
    flags = re.search(r"^flags\s*:(.*)$", info, re.MULTILINE)
    told = _told_by_firmware(dmi or {}) or files.text(root / "sys/hypervisor/type", 64)
    if flags:
        return (told or "unknown") if "hypervisor" in flags[1].split() else "none"
    if told in MAY_BE_METAL and "metal" in (dmi or {}).get("product_name", ""):
        return "none"
    if told:
        return told
    return "none" if dmi else None


def _told_by_firmware(dmi: Mapping[str, str]) -> str | None:
    words = f"{dmi.get('sys_vendor', '')} {dmi.get('product_name', '')}".lower()
    if "microsoft" in words and "virtual machine" not in words:
        return None
    return next((name for mark, name in HYPERVISORS.items() if mark in words), None)


def iommu_mode(root: Path) -> tuple[str | None, str | None]:
    """(off | passthrough | translated, type of the group of a GPU or of most groups).

    An IOMMU that translates has groups; their `type` (kernel 5.11 and newer) is identity where addresses pass through.
    Where there is no type, the command line decides.
    """
    line = (files.text(root / "proc/cmdline", 8 * KIB) or "").split()
    wants_passthrough = {"iommu=pt", "iommu.passthrough=1"} & set(line) or any(
        re.match(r"(intel|amd)_iommu=(\S*,)?pt\b", w) for w in line
    )
    groups = files.listed(root / "sys/kernel/iommu_groups")
    if groups or files.listed(root / "sys/class/iommu"):
        kind = _group_type(root, groups)
        if kind:
            return ("passthrough" if kind == "identity" else "translated"), kind
        return ("passthrough" if wants_passthrough else "translated"), None
    wanted_on = any(re.match(r"(intel_iommu|amd_iommu)=(\S*,)?(on|force_enable)\b|iommu=force\b", w) for w in line)
    if wanted_on and not (root / "sys/class/iommu").is_dir():
        return ("passthrough" if wants_passthrough else "translated"), None
    if (root / "sys/class/iommu").is_dir() or (root / "sys/kernel/iommu_groups").is_dir():
        return "off", None
    return None, None


def _group_type(root: Path, groups: list[Path]) -> str | None:
    of_gpus = [
        kind
        for device in files.listed(root / "sys/bus/pci/devices")
        if files.text(device / "vendor", 16) in GPU_VENDORS
        and (files.text(device / "class", 16) or "").startswith("0x03")
        and (kind := files.text(device / "iommu_group/type", 32))
    ]
    kinds = of_gpus or [kind for g in groups[:64] if (kind := files.text(g / "type", 32))]
    return Counter(kinds).most_common(1)[0][0] if kinds else None


def host_id(name: str, boot_id: str | None, env: Mapping[str, str]) -> str | None:
    """By what NCCL knows a host: ranks with equal ids share memory (src/misc/utils.cc, getHostHash: djb2a)."""
    words = env.get("NCCL_HOSTID") or (f"{name}{boot_id}" if boot_id else None)
    if words is None:
        return None
    value = 5381
    for byte in words.encode():
        value = ((value * 33) ^ byte) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def daemons(root: Path) -> tuple[str, ...] | None:
    """Those of DAEMONS that run. None: the processes of the host are not to be seen here."""
    try:
        numbers = [name for name in os.listdir(root / "proc") if name.isdigit()][:MOST_PROCESSES]
    except OSError:
        return None
    if len(numbers) < FEW_PROCESSES:
        return None
    running = {files.text(root / "proc" / number / "comm", 64) for number in numbers}
    return tuple(sorted(name for comm, name in DAEMONS.items() if comm in running))


def own_addresses(root: Path) -> tuple[str, ...] | None:
    """Addresses that /etc/hosts gives to this host's own name."""
    words = files.text(files.below(root, "/etc/hosts"))
    if words is None:
        return None
    own = host_name(root)
    rows = [line.partition("#")[0].split() for line in words.splitlines()]
    return tuple(dict.fromkeys(row[0] for row in rows if len(row) > 1 and own in row[1:]))


def cpu(root: Path) -> Cpu:
    base = root / "sys/devices/system/cpu"
    folders = [f for f in files.listed(base) if re.fullmatch(r"cpu\d+", f.name)]
    places = [
        (files.number(f / "topology/physical_package_id"), files.number(f / "topology/core_id"))
        for f in folders
        if (f / "topology").is_dir()
    ]
    info = files.text(root / "proc/cpuinfo", CPUINFO_HEAD) or ""
    model = re.search(r"^(?:model name|cpu)\s*:\s*(.+)$", info, re.MULTILINE)
    smt = files.number(base / "smt/active")
    balancing = files.number(root / "proc/sys/kernel/numa_balancing")
    return Cpu(
        model=model[1].strip() if model else None,
        architecture=architecture(root, info),
        sockets=len({package for package, _ in places}) or None,
        cores=len(set(places)) or None,
        threads=len(places) or None,
        governor=_most(files.text(f / "cpufreq/scaling_governor", 64) for f in folders),
        frequency_driver=files.text(base / "cpu0/cpufreq/scaling_driver", 64),
        smt=bool(smt) if smt is not None else None,
        numa_balancing=bool(balancing) if balancing is not None else None,
        cpus_of_numa=cpus_of_numa(root),
        allowed=tuple(sorted(os.sched_getaffinity(0))) if root == Path("/") else None,
    )


def _most(values: Iterable[str | None]) -> str | None:
    known = Counter(v for v in values if v)
    return known.most_common(1)[0][0] if known else None


def architecture(root: Path, cpuinfo: str) -> str | None:
    if root == Path("/"):
        return os.uname().machine
    for mark, name in (
        (r"^vendor_id", "x86_64"),
        (r"^flags", "x86_64"),
        (r"^CPU implementer", "aarch64"),
        (r"POWER", "ppc64le"),
    ):
        if re.search(mark, cpuinfo, re.MULTILINE):
            return name
    return None


def cpus_of_numa(root: Path) -> dict[int, tuple[int, ...]]:
    found = {}
    for node in files.listed(root / "sys/devices/system/node"):
        if re.fullmatch(r"node\d+", node.name):
            found[int(node.name[4:])] = cpu_list(files.text(node / "cpulist") or "")
    return dict(sorted(found.items()))


def cpu_list(words: str) -> tuple[int, ...]:
    """As the kernel writes sets: 0-3,8,10-11."""
    found: list[int] = []
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", words):
        found += range(int(first), min(int(last or first), int(first) + 4096) + 1)
    return tuple(found)
