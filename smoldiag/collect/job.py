"""A running job on this host, looked at without touching it: which processes are its ranks, what they do, and what the
counters of GPUs and NICs do meanwhile. Nothing is stopped, traced or written.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from smoldiag import redact
from smoldiag.collect import env as variables
from smoldiag.collect import files
from smoldiag.facts import Gpu, HostProcess, Increase, Nic

RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")  # the first that some process has counts
LIBRARIES = ("libnccl", "libtorch", "libcuda.so")  # what a rank has mapped
OURS = "smoldiag.launch"  # in the command line of our own agents
MOST_RANKS = 64  # on one host
MOST_FRAMES = 40
STACK_S = 5.0
TRAFFIC = {"port_rcv_data", "port_xmit_data", "tx_bytes", "rx_bytes", "np_ecn_marked_roce_packets", "rp_cnp_handled"}


@dataclass(frozen=True)
class Found:
    pid: int
    parent: int
    rank: int | None
    command: str
    environ: Mapping[str, str]


def ranks(job: str, *, root: Path = Path("/"), node: str | None = None) -> list[Found]:
    """The processes of a Slurm job on this host that are ranks, one for each rank.

    `node`: Slurm's name of this host, where hosts share a process table.
    """
    number = job.partition("_")[0]
    members = [p for p in _processes(root) if number in (p.environ.get("SLURM_JOB_ID"), p.environ.get("SLURM_JOBID"))]
    here = [p for p in members if node is None or p.environ.get("SLURMD_NODENAME", node) == node]
    others = [p for p in here if OURS not in p.command and p.pid not in _ourselves()]
    for name in RANK_VARIABLES:
        having = [p for p in others if p.environ.get(name, "").isdecimal()]
        if name == "SLURM_PROCID":  # the shells of a job script have it, too
            having = [p for p in having if _has_mapped(root, p.pid, LIBRARIES)]
        if having:
            return _one_per_rank(root, having, name)[:MOST_RANKS]
    return []


def _one_per_rank(root: Path, found: Iterable[Found], name: str) -> list[Found]:
    """Of the processes of a rank (its data loaders inherit its variables) the topmost that has the libraries mapped."""
    by_rank: dict[int, list[Found]] = {}
    for p in found:
        by_rank.setdefault(int(p.environ[name]), []).append(p)
    chosen = []
    for rank, group in sorted(by_rank.items()):
        likely = [p for p in group if _has_mapped(root, p.pid, LIBRARIES)] or group
        pids = {p.pid for p in likely}
        top = next((p for p in sorted(likely, key=lambda p: p.pid) if p.parent not in pids), likely[0])
        chosen.append(Found(pid=top.pid, parent=top.parent, rank=rank, command=top.command, environ=top.environ))
    return chosen


def _processes(root: Path) -> list[Found]:
    """All whose variables we may read."""
    found = []
    for folder in files.listed(root / "proc"):
        if not folder.name.isdigit():
            continue
        words = files.content(folder / "environ")
        stat = files.content(folder / "stat", 4096)
        if not words or not stat:
            continue
        pairs = (part.partition("=") for part in words.decode(errors="replace").split("\0") if "=" in part)
        environ = {key: value for key, _, value in pairs}
        line = (files.content(folder / "cmdline", 16 << 10) or b"").decode(errors="replace").strip("\0").split("\0")
        parent = int(stat.rpartition(b") ")[2].split()[1])
        found.append(Found(int(folder.name), parent, None, redact.command(line)[:2000], environ))
    return found


def _ourselves() -> set[int]:
    return {os.getpid(), os.getppid()}


def _has_mapped(root: Path, pid: int, names: Sequence[str]) -> bool:
    maps = files.content(root / f"proc/{pid}/maps", 8 << 20) or b""
    return any(name.encode() in maps for name in names)


def looked_at(found: Sequence[Found], *, root: Path = Path("/"), until: float) -> tuple[HostProcess, ...]:
    """What each rank does now."""
    stacks = python_stacks(found, until=until) if root == Path("/") else {}
    seen = []
    for p in found:
        env = None
        with suppress(OSError):
            env = variables.env(root=root, pid=p.pid)
        folder = root / f"proc/{p.pid}"
        stat = files.content(folder / "stat", 4096) or b""
        seen.append(
            HostProcess(
                pid=p.pid,
                rank=p.rank,
                command=p.command,
                state=stat.rpartition(b") ")[2][:1].decode() or None,
                wchan=files.text(folder / "wchan", 128),
                env=env,
                python_stack=stacks.get(p.pid, ()),
                kernel_stack=_kernel_stack(folder),
            )
        )
    return tuple(seen)


def _kernel_stack(folder: Path) -> tuple[str, ...]:
    """Root may read it; others get nothing."""
    words = files.text(folder / "stack", 16 << 10) or ""
    return tuple(re.sub(r"^\[<\w*>\]\s*|\+0x\w+/0x\w+.*$", "", line) for line in words.splitlines())[:MOST_FRAMES]


def python_stacks(found: Sequence[Found], *, until: float) -> dict[int, tuple[str, ...]]:
    """By py-spy where it is installed: --nonblocking reads the memory of the process and does not pause it."""
    running = {}
    for p in found:
        program = py_spy(p.environ)
        if program:
            with suppress(OSError):
                running[p.pid] = subprocess.Popen(
                    [program, "dump", "--nonblocking", "--pid", str(p.pid)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
                )
    deadline = min(until, time.monotonic() + STACK_S)
    stacks = {}
    for pid, process in running.items():
        try:
            out, _ = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
            stacks[pid] = main_thread(out.decode(errors="replace"))
        except subprocess.TimeoutExpired:
            process.kill()
    return stacks


def py_spy(environ: Mapping[str, str]) -> str | None:
    """On the path of the rank, or beside our Python."""
    folders = [*environ.get("PATH", "").split(os.pathsep), os.path.dirname(sys.executable), "/usr/local/bin"]
    paths = (os.path.join(folder, "py-spy") for folder in folders if folder.startswith("/"))
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def main_thread(dump: str) -> tuple[str, ...]:
    """The frames of the first thread, innermost first: wait (threading.py:331)."""
    first = re.split(r"^Thread ", dump, flags=re.MULTILINE)[1:2]
    lines = first[0].splitlines()[1:] if first else []
    frames = [redact.text(line.strip())[:200] for line in lines if line.startswith("    ") and line.strip()]
    return tuple(frames[:MOST_FRAMES])


# -- counters, twice


def increase(
    gpus: tuple[Sequence[Gpu] | None, Sequence[Gpu] | None],
    nics: tuple[Sequence[Nic] | None, Sequence[Nic] | None],
    *,
    seconds: float,
) -> Increase:
    """What grew between two readings; traffic is no trouble, and is left out."""
    before, after = ({g.index: _of_gpu(g) for g in reading or ()} for reading in gpus)
    old, new = ({n.name: n.counters or {} for n in reading or ()} for reading in nics)
    return Increase(
        seconds=round(seconds, 3),
        gpus={i: grown for i in after if i in before and (grown := _grown(before[i], after[i]))},
        nics={name: grown for name in new if name in old and (grown := _grown(old[name], new[name]))},
    )


def _of_gpu(gpu: Gpu) -> dict[str, int]:
    counters = {
        "pci_replays": gpu.pci_replays,
        "ecc_volatile": gpu.ecc_volatile,
        "ecc_corrected_volatile": gpu.ecc_corrected_volatile,
        "remapped_rows": gpu.remapped_rows,
    }
    for link in gpu.nvlinks or ():
        for kind, count in link.errors.items():
            key = f"nvlink {link.index} {kind}"
            counters[key] = (counters.get(key) or 0) + count
    return {key: count for key, count in counters.items() if count is not None}


def _grown(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    return {
        key: after[key] - before[key]
        for key in after
        if key in before and after[key] > before[key] and key not in TRAFFIC
    }
