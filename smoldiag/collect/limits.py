"""What a process here may use: resource limits, shared memory, control groups."""

import os
import re
import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

from smoldiag.collect import files
from smoldiag.collect.system import cpu_list, meminfo
from smoldiag.facts import Limits
from smoldiag.facts.probes import Throttling

UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a page-rounded 2**63
LINES = {  # of /proc/PID/limits -> field
    "Max locked memory": "memlock_bytes",
    "Max open files": "nofile",
    "Max processes": "nproc",
    "Max stack size": "stack_bytes",
    "Max core file size": "core_bytes",
}
HARD = {"memlock_bytes": "memlock_hard_bytes", "nofile": "nofile_hard"}


def limits(root: Path, pid: int | None = None) -> Limits:
    """Of process `pid`, else of this one, or of what a tree holds as proc/self."""
    who = files.process(root, pid)
    found = process_limits(files.text(root / "proc" / who / "limits", 16 << 10) or "")
    if not found and root == Path("/") and pid is None:
        found = _own()
    size, free, kind = shm(root)
    memory, cpus, pids = cgroup(root, who)
    return Limits(
        **found,
        shm_bytes=size,
        shm_free_bytes=free,
        shm_kind=kind,
        cgroup_memory_bytes=memory,
        cgroup_cpus=cpus,
        cgroup_pids=pids,
        pid_max=files.number(root / "proc/sys/kernel/pid_max"),
        port_range=_port_range(root),
    )


def _port_range(root: Path) -> tuple[int, int] | None:
    words = (files.text(root / "proc/sys/net/ipv4/ip_local_port_range", 64) or "").split()
    return (int(words[0]), int(words[1])) if len(words) == 2 and all(w.isdigit() for w in words) else None


def process_limits(text: str) -> dict[str, int]:
    """/proc/PID/limits."""
    found = {}
    for line in text.splitlines():
        name = next((n for n in LINES if line.startswith(n)), None)
        match = re.match(r"(\d+|unlimited)\s+(\d+|unlimited)", line[len(name or "") :].strip())
        if name and match:
            soft, hard = (-1 if value == "unlimited" else int(value) for value in match.groups())
            found[LINES[name]] = soft
            if LINES[name] in HARD:
                found[HARD[LINES[name]]] = hard
    return found


def _own() -> dict[str, int]:
    """Without /proc: getrlimit."""
    kinds = {
        "memlock_bytes": resource.RLIMIT_MEMLOCK,
        "nofile": resource.RLIMIT_NOFILE,
        "nproc": resource.RLIMIT_NPROC,
        "stack_bytes": resource.RLIMIT_STACK,
        "core_bytes": resource.RLIMIT_CORE,
    }
    return {field: resource.getrlimit(kind)[0] for field, kind in kinds.items()}


def shm(root: Path) -> tuple[int | None, int | None, str | None]:
    """(size, free bytes, file system) of /dev/shm; a tree tells its size by the options of the mount only."""
    mount = None
    table = files.text(root / "proc" / files.process(root, None) / "mounts") or files.text(root / "proc/mounts")
    for line in (table or "").splitlines():
        words = line.split()
        if len(words) >= 4 and words[1] == "/dev/shm":
            mount = words
    if root == Path("/"):
        try:
            told = os.statvfs("/dev/shm")
        except OSError:
            return None, None, "missing"
        return told.f_blocks * told.f_frsize, told.f_bavail * told.f_frsize, mount[2] if mount else "part of /"
    if mount is None:
        has_none = table and (root / "dev").is_dir() and not (root / "dev/shm").exists()
        return None, None, "missing" if has_none else None
    match = re.search(r"\bsize=(\d+)([kmg]?)", mount[3], re.IGNORECASE)
    if not match:  # tmpfs without a size takes half of the memory
        total = meminfo(root).get("MemTotal")
        return total * 1024 // 2 if total else None, None, mount[2]
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()], None, mount[2]


def cgroup(root: Path, who: str) -> tuple[int | None, float | None, int | None]:
    """(memory bytes, processors, processes) that the control group allows; -1 = unlimited, None = not known."""
    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    for folder in _folders(root, who):
        for file in ("memory.max", "memory.limit_in_bytes"):
            memory = _least(memory, _most(files.text(folder / file, 64)))
        pids = _least(pids, _most(files.text(folder / "pids.max", 64)))
        cpus = _least(cpus, quota_cpus(folder))
    return memory, cpus, pids


def _folders(root: Path, who: str) -> list[Path]:
    """The folders of the process's own control groups, up to their roots; v2 and v1."""
    base = root / "sys/fs/cgroup"
    found = [base, base / "memory", base / "cpu", base / "cpu,cpuacct", base / "pids"]
    for line in (files.text(root / "proc" / who / "cgroup", 16 << 10) or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number.isdigit() and path.startswith("/") and ".." not in path.split("/"):
            top = base / controllers if controllers and not controllers.startswith("name=") else base
            parts = [p for p in path.split("/") if p]
            found += [top.joinpath(*parts[: i + 1]) for i in range(len(parts))]
    return list(dict.fromkeys(found))


def _most(words: str | None) -> int | None:
    if not words:
        return None
    if words == "max":
        return -1
    with suppress(ValueError):
        value = int(words)
        return -1 if value >= UNLIMITED or value < 0 else value
    return None


def _least(a: float | None, b: float | None) -> Any:
    """The smaller limit of two, where -1 is no limit and None is not known."""
    known = [v for v in (a, b) if v is not None]
    limited = [v for v in known if v >= 0]
    return min(limited) if limited else (known[0] if known else None)


def cpuset(root: Path) -> tuple[int, ...] | None:
    """Processors that the process may use."""
    match = re.search(
        r"^Cpus_allowed_list:\s*(\S+)",
        files.text(root / "proc" / files.process(root, None) / "status") or "",
        re.MULTILINE,
    )
    return cpu_list(match[1]) if match else None


def memory_free_bytes(root: Path) -> int:
    """Available memory, within the limit of this cgroup."""
    available = meminfo(root).get("MemAvailable")
    if available is None:
        raise ValueError("/proc/meminfo has no MemAvailable")
    free = available * 1024
    v2, v1 = root / "sys/fs/cgroup", root / "sys/fs/cgroup/memory"
    for limit, used in (
        (v2 / "memory.max", v2 / "memory.current"),
        (v1 / "memory.limit_in_bytes", v1 / "memory.usage_in_bytes"),
    ):
        most, now = files.number(limit), files.number(used)
        if most is not None and now is not None and most < UNLIMITED:
            free = min(free, max(most - now, 0))
    return free


def throttled(root: Path, pid: int | None = None) -> dict[str, Throttling]:
    """How often the processor quotas above this process have held it up so far: folder -> counters.

    nr_throttled and throttled_usec (v1: throttled_time, in ns) of cpu.stat, Documentation/scheduler/sched-bwc.rst.
    """
    found = {}
    for folder in _folders(root, files.process(root, pid)):
        lines = (line.split() for line in (files.text(folder / "cpu.stat", 4096) or "").splitlines())
        counts = {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdigit()}
        lost_us = counts.get("throttled_usec", counts.get("throttled_time", 0) / 1000)
        if "nr_throttled" in counts and "nr_periods" in counts:
            quota = quota_cpus(folder)
            found[str(folder)] = Throttling(
                group=str(folder),
                periods=counts["nr_periods"],
                throttled_periods=counts["nr_throttled"],
                throttled_s=lost_us / 1e6,
                cpus=quota if quota is not None and quota > 0 else None,
            )
    return found


def quota_cpus(folder: Path) -> float | None:
    """Processors that a control group allows by its quota; -1 = unlimited, None = not known."""
    both = (files.text(folder / "cpu.cfs_quota_us", 64), files.text(folder / "cpu.cfs_period_us", 64))
    quota = files.text(folder / "cpu.max", 64) or " ".join(filter(None, both))
    match = re.fullmatch(r"(max|-1|\d+)\s+(\d+)", quota)
    if not match:
        return None
    return -1 if match[1] in ("max", "-1") else int(match[1]) / max(int(match[2]), 1)
