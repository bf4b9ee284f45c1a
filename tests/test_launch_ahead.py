"""The agent that starts before the command line is read: only where it will be wanted, and never left behind."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from smoldiag.launch import ahead


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["doctor"],
        ["nccl-bench", "--nodes", "2"],
        ["nccl-bench", "--hosts=a,b"],
        ["nccl-bench", "--dry-run"],
        ["nccl-bench", "-h"],
        ["nccl-bench", "--python", "python3"],
    ],
)
def test_no_agent_where_no_rank_will_run_here(arguments: list[str]) -> None:
    ahead.start(arguments, {})
    assert ahead.take() is None


@pytest.mark.parametrize("name", ["RANK", "SLURM_JOB_ID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"])
def test_no_agent_under_a_launcher(name: str) -> None:
    ahead.start(["nccl-bench"], {name: "0"})
    assert ahead.take() is None


@pytest.mark.parametrize(
    ("arguments", "ranks"),
    [
        ([], None),
        (["--ranks-per-node", "3"], 3),
        (["--ranks-per-node=4", "--sizes", "1MiB"], 4),
        (["--ranks-per-node"], None),
        (["--ranks-per-node", "many"], None),
        (["--ranks-per-node", "100000"], None),
    ],
)
def test_as_many_ranks_as_were_typed(arguments: list[str], ranks: int | None) -> None:
    assert ahead.typed_ranks(["nccl-bench", *arguments]) == ranks


def test_wrong_usage_leaves_no_process_behind(tmp_path: Path) -> None:
    marker = f"{tmp_path.name}"  # in the environment of every process that this command starts
    done = subprocess.run(
        [sys.executable, "-m", "smoldiag", "nccl-bench", "--sizes", "nonsense"],
        env={"PATH": "/usr/bin:/bin", "SMOLDIAG_TEST": marker},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "--sizes" in done.stderr
    until = time.monotonic() + 10
    while with_variable(marker) and time.monotonic() < until:
        time.sleep(0.1)
    assert with_variable(marker) == []


def with_variable(marker: str) -> list[str]:
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"SMOLDIAG_TEST={marker}".encode() in environ.read_bytes():
                found.append(environ.parent.name)
        except OSError:
            continue
    return found
