"""A running job, looked at from beside it: its ranks in a process table, their stacks, what counters grew."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from smoldiag.collect import job
from smoldiag.facts import Gpu, Nic, NvLink

DUMP = """Process 22801: python train.py --note
    not a frame
Python v3.11.7 (/usr/bin/python3.11)

Thread 22801 (idle): "MainThread"
    all_reduce (torch/distributed/distributed_c10d.py:2810)
    step (train.py:88)
    <module> (train.py:120)
Thread 22810 (idle): "Thread-1"
    wait (threading.py:331)
"""


def process(root: Path, pid: int, parent: int, command: str, maps: str = "", **environ: str) -> None:
    folder = root / "proc" / str(pid)
    folder.mkdir(parents=True)
    (folder / "environ").write_text("".join(f"{k}={v}\0" for k, v in environ.items()))
    (folder / "cmdline").write_text(command.replace(" ", "\0") + "\0")
    (folder / "stat").write_text(f"{pid} (a b) c) S {parent} 1 1 0")
    (folder / "maps").write_text(maps)
    (folder / "wchan").write_text("futex_wait_queue")


TORCH = "7f00 r-xp /venv/lib/libtorch_cpu.so\n7f01 r-xp /venv/lib/libnccl.so.2\n"
JOB = {"SLURM_JOB_ID": "42"}


def test_ranks_of_torchrun_are_found_without_their_data_loaders(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, "bash job.sh", SLURM_PROCID="0", **JOB)
    process(tmp_path, 20, 10, "torchrun train.py", TORCH, SLURM_PROCID="0", **JOB)
    for rank in (0, 1):
        process(tmp_path, 30 + rank, 20, "python train.py --api-key abc", TORCH, RANK=str(rank), **JOB)
        process(tmp_path, 40 + rank, 30 + rank, "python train.py", TORCH, RANK=str(rank), **JOB)
    process(tmp_path, 50, 1, "python train.py", TORCH, RANK="0", SLURM_JOB_ID="43")
    process(tmp_path, 60, 1, "python -c ... smoldiag.launch ...", RANK="7", **JOB)
    found = job.ranks("42", root=tmp_path)
    assert [(p.rank, p.pid) for p in found] == [(0, 30), (1, 31)]
    seen = job.looked_at(found, root=tmp_path, until=time.monotonic() + 5)
    assert [(p.state, p.wchan) for p in seen] == [("S", "futex_wait_queue")] * 2
    assert seen[0].command == "python train.py --api-key [redacted]"
    assert seen[1].env
    assert seen[1].env.get("RANK") == "1"


def test_ranks_of_srun_are_those_that_have_the_libraries(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, "bash wrap.sh", SLURM_PROCID="3", **JOB)
    process(tmp_path, 11, 10, "python train.py", TORCH, SLURM_PROCID="3", **JOB)
    assert [(p.rank, p.pid) for p in job.ranks("42_1", root=tmp_path)] == [(3, 11)]
    assert job.ranks("41", root=tmp_path) == []


def test_hosts_that_share_a_process_table_are_told_apart(tmp_path: Path) -> None:
    for node in ("a", "b"):
        process(tmp_path, ord(node), 1, "python", TORCH, RANK=str(ord(node)), SLURMD_NODENAME=node, **JOB)
    assert [p.pid for p in job.ranks("42", root=tmp_path, node="b")] == [ord("b")]


def test_the_stack_is_that_of_the_first_thread() -> None:
    assert job.main_thread(DUMP) == (
        "all_reduce (torch/distributed/distributed_c10d.py:2810)",
        "step (train.py:88)",
        "<module> (train.py:120)",
    )
    assert job.main_thread("Permission Denied: try sudo") == ()


def test_py_spy_reads_a_running_process() -> None:
    beside = {"PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}
    if not shutil.which("py-spy", path=beside["PATH"]):
        pytest.skip("no py-spy here")
    child = subprocess.Popen([sys.executable, "-c", "import time\ndef inner():\n    time.sleep(60)\ninner()"])
    try:
        stack: tuple[str, ...] = ()
        until = time.monotonic() + 20
        while not stack and time.monotonic() < until:  # until the interpreter has started
            time.sleep(0.2)
            found = job.Found(child.pid, 0, 0, "", beside)
            stack = job.python_stacks([found], until=time.monotonic() + 10).get(child.pid, ())
        assert [frame.partition(" (")[0] for frame in stack] == ["inner", "<module>"]
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def gpu(replays: int, errors: Mapping[str, int]) -> Gpu:
    return Gpu(index=3, name="x", pci_replays=replays, ecc_volatile=0, nvlinks=(NvLink(index=4, errors=errors),))


def test_only_what_grows_counts() -> None:
    grown = job.increase(
        ((gpu(100, {"replay": 5, "crc": 1}),), (gpu(107, {"replay": 5, "crc": 3}),)),
        (
            (Nic(name="mlx5_0", kind="roce", counters={"link_downed": 2, "tx_bytes": 1, "out_of_sequence": 4}),),
            (Nic(name="mlx5_0", kind="roce", counters={"link_downed": 2, "tx_bytes": 9, "out_of_sequence": 9}),),
        ),
        seconds=5.0,
    )
    assert grown.gpus == {3: {"pci_replays": 7, "nvlink 4 crc": 2}}
    assert grown.nics == {"mlx5_0": {"out_of_sequence": 5}}
    assert job.increase((None, None), (None, None), seconds=5.0).gpus == {}
