"""Launchers: what they recognise, and what becomes of ranks that fail on this host."""

import json
import os
import py_compile
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from smoldiag import bench, launch, paths, verdict
from smoldiag.errors import SmoldiagError
from smoldiag.facts import Host, World
from smoldiag.findings import BenchReport
from smoldiag.launch import carry, joined, ssh
from smoldiag.launch.channels import Frames
from smoldiag.launch.request import Finished, Request
from smoldiag.model import folded

ROOT = Path(__file__).parent.parent
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "n0"}
TORCHRUN |= {"MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "x"}
SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
}
SRUN |= {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NODELIST": "gpu[07-08]"}
PER_HOST = SRUN | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
MPI = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "2"}
MPI |= {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}


@pytest.mark.parametrize(
    ("env", "launcher", "rank", "size", "local_rank", "master"),
    [
        (TORCHRUN, "torchrun", 3, 8, 1, "n0"),
        ({k: v for k, v in TORCHRUN.items() if k != "LOCAL_RANK"}, "torchrun", 3, 8, None, "n0"),
        (SRUN, "srun", 1, 4, 1, "gpu07"),
        (PER_HOST, "srun", 1, 2, None, "gpu07"),
        (MPI, "mpirun", 2, 4, 2, "127.0.0.1"),
    ],
)
def test_launched_ranks_are_recognised(
    env: Mapping[str, str], launcher: str, rank: int, size: int, local_rank: int | None, master: str
) -> None:
    part = joined.part(env)
    assert part is not None
    found = (part.launcher, part.rank, part.size, part.local_rank, part.master)
    assert found == (launcher, rank, size, local_rank, master)


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"},  # a batch script
        SRUN | {"SLURM_STEP_ID": "4294967290"},  # the shell of salloc
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},  # srun --pty bash
    ],
)
def test_a_shell_in_a_job_is_no_rank(env: Mapping[str, str]) -> None:
    assert joined.part(env) is None


def test_processes_of_one_run_meet_and_those_of_another_do_not() -> None:
    here, there = joined.part(TORCHRUN), joined.part(TORCHRUN | {"RANK": "0"})
    other = joined.part(TORCHRUN | {"TORCHELASTIC_RUN_ID": "y"})
    assert here is not None
    assert there is not None
    assert other is not None
    assert joined.token(here) == joined.token(there) != joined.token(other)
    assert joined.ports(here) == joined.ports(there)


def test_mpirun_on_several_hosts_needs_an_address() -> None:
    with pytest.raises(SmoldiagError, match="none knows the address of rank 0"):
        joined.part(MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"})


def test_world_of_one_under_a_launcher_of_many_is_known() -> None:
    part = joined.part({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "OMPI_COMM_WORLD_SIZE": "16"})
    assert part is not None
    assert (part.size, part.processes) == (1, 16)


@pytest.mark.parametrize(
    ("hostlist", "names"),
    [
        ("node[1-3,07],gpu5", ["node1", "node2", "node3", "node07", "gpu5"]),
        ("r[1-2]n[08-09]", ["r1n08", "r1n09", "r2n08", "r2n09"]),
        ("a", ["a"]),
        ("", []),
    ],
)
def test_hostlists(hostlist: str, names: list[str]) -> None:
    assert folded.expanded(hostlist) == names


def test_hostfile_of_openmpi() -> None:
    assert ssh.parsed_hostfile(["# mine", "a slots=8", "b slots=8  # x", ""]) == (("a", "b"), 8)
    assert ssh.parsed_hostfile(["a slots=8", "b"]) == (("a", "b"), None)


def test_auto_takes_the_first_that_fits(tmp_path: Path) -> None:
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    request = Request(program="benchmarks.collectives")
    chosen = [
        launch.choose("auto", request, path).launcher,
        launch.choose("auto", request, path | TORCHRUN).launcher,
        launch.choose("auto", request, path | {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}).launcher,
        launch.choose("auto", Request(program="x", nodes=2), path).launcher,
    ]
    assert chosen == ["local", "joined", "slurm", "slurm"]
    inside = launch.choose("auto", request, path | {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"})
    assert "--nodes=2" in inside.commands[0]
    assert "--overlap" in inside.commands[0]
    assert "--gpus-per-task" not in inside.commands[0]


def test_no_value_of_the_environment_is_on_a_command_line() -> None:
    request = Request(program="x", hosts=("a",), python="/opt/my env/python")
    command = ssh.remote_command(request)
    assert "'/opt/my env/python'" in command
    assert "NCCL" not in command.replace(carry.BOOTSTRAP, "")


def test_messages_survive_interleaving_and_noise() -> None:
    frames = Frames()
    lines = [b'\x1ea:1\x1f1\x1f{"say": "he', b"srun: noise\n", b'\x1eb:2\x1f0\x1f{"say": "bye"}\n']
    lines += [b'warning: \x1ea:1\x1f0\x1fllo"}\n', b"\x1ea:1\x1f0\x1f{broken\n", b"\xff\xfe\n"]
    said = [m for m in map(frames.message, lines) if m]
    assert said == [("b:2", {"say": "bye"}), ("a:1", {"say": "hello"})]


def test_carried_programs_are_small_and_whole() -> None:
    carried = carry.programs()
    assert len(carried) < 1_000_000
    names = zipfile.ZipFile(BytesIO(carried)).namelist()
    assert {"__main__.py", "smoldiag/ranks.py", "benchmarks/collectives.py", "smoldiag/launch/agent.py"} <= set(names)
    assert not [n for n in names if "cli" in n or "peers" in n or "gpu_check" in n]


@pytest.mark.parametrize("other_python", [False, True])
def test_compiled_programs_are_used_by_the_same_python_and_passed_over_by_another(
    tmp_path: Path, other_python: bool
) -> None:
    py_compile.compile(str(paths.PACKAGE / "errors.py"))
    with zipfile.ZipFile(BytesIO(carry.programs(compiled=True))) as carried, zipfile.ZipFile(tmp_path / "z", "w") as z:
        for entry in carried.infolist():
            data = carried.read(entry)
            z.writestr(entry, b"else" + data[4:] if other_python and entry.filename.endswith(".pyc") else data)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'z')!r}); from smoldiag import errors; print(errors.__file__)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip().endswith("errors.py" if other_python else "errors.pyc")


# -- real ranks on this host


def ran(config: Mapping[str, Any], *, timeout_s: float = 20, ranks: int = 2) -> tuple[Finished, BenchReport]:
    """Two gloo ranks on this host with that configuration, and what is said of them."""
    request = Request(program="benchmarks.collectives", ranks_per_node=ranks, backend="gloo", timeout_s=timeout_s)
    base = {"collectives": ["all_reduce"], "sizes": [1 << 16], "typed_sizes": True, "iterations": 5}

    def configure(hosts: Sequence[Host], world: World, backend: str) -> dict[str, Any]:
        return base | dict(config)

    choice = launch.choose("local", request, {})
    finished = launch.run(choice, request, on_event=lambda event: None, configure=configure)
    return finished, verdict.judge(finished, OPTIONS, nodes_asked=None)


OPTIONS = bench.Options(
    collectives=("all_reduce",),
    sizes=(1 << 16,),
    dtype="float32",
    budget_s=5,
    iterations=5,
    groups=("all",),
    scale=False,
    pairs=(),
    per_rank=False,
    step=None,
    profile=None,
    references=(),
)


@pytest.mark.parametrize(
    "collective", ["all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce", "all_to_all", "send_recv"]
)
def test_swapped_blocks_are_reported_as_wrong(collective: str) -> None:
    broken = {"kind": "swap_block", "collective": collective, "rank": 0}
    _, said = ran({"collectives": [collective, "broadcast"], "break": broken})
    assert said.results[0].wrong > 0
    assert said.findings[0].code == "BWD005"
    assert [r.wrong for r in said.results if r.collective != collective] == ([0] if collective != "broadcast" else [])


def test_rank_that_comes_late_is_named() -> None:
    broken = {"kind": "late", "rank": 1, "ms": 20}
    _, said = ran({"break": broken, "iterations": 20, "per_rank": True})
    assert [f.code for f in said.findings] == ["BWD003"]
    assert said.findings[0].where.ranks == (1,)
    assert said.results[0].slowest_rank == 1
    assert 15_000 < said.results[0].late_us < 60_000
    assert said.results[0].per_rank is not None


def test_rank_that_ends_early_is_named_with_what_it_said() -> None:
    finished, said = ran({"break": {"kind": "exit", "rank": 1, "code": 7}})
    assert said.verdict.value == "incomplete"
    assert [f.kind for f in finished.launch.faults] == ["exited"]
    assert finished.launch.faults[0].ranks == (1,)
    assert "exit code 7" in said.findings[0].message


def test_unknown_program_is_a_fault_not_a_crash() -> None:
    request = Request(program="benchmarks.nothing", ranks_per_node=1, backend="gloo", timeout_s=20)
    choice = launch.choose("local", request, {})
    finished = launch.run(choice, request, on_event=lambda event: None, configure=lambda hosts, world, backend: {})
    assert [f.kind for f in finished.launch.faults] == ["exited"]
    assert "benchmarks.nothing" in finished.launch.faults[0].detail


def sweeping(*more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "smoldiag", "nccl-bench", "--backend", "gloo", "--collective", "all_reduce"]
    command += ["--sizes", "1KiB:64MiB:x2", "--iterations", "300", "--timeout", "20", "--format", "json", *more]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def family(pid: int) -> dict[int, str]:
    """All descendants of a process: id -> command line."""
    found: dict[int, str] = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            found[int(child)] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
            found |= family(int(child))
        except OSError:
            continue
    return found


def ranks_of(process: "subprocess.Popen[Any]") -> list[int]:
    """Its ranks, once they are in the middle of the sweep."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = [pid for pid, line in family(process.pid).items() if " /proc/self/fd/" in line and " -c " not in line]
        if len(found) == 2 and all(map(has_met_the_others, found)):
            time.sleep(4)
            return found
        time.sleep(0.1)
    raise AssertionError("the ranks did not start")


def has_met_the_others(pid: int) -> bool:
    """The store's connection and those of gloo are there."""
    try:
        return sum(os.readlink(fd).startswith("socket:") for fd in Path(f"/proc/{pid}/fd").iterdir()) > 2
    except OSError:
        return False


def alive(pids: Sequence[int]) -> list[int]:
    return [p for p in pids if Path(f"/proc/{p}").exists() and "zombie" not in Path(f"/proc/{p}/status").read_text()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "within_s"),
    [(signal.SIGKILL, "HNG001", 8), (signal.SIGSTOP, "HNG002", 20)],
    ids=["KILL", "STOP"],
)
def test_rank_that_is_killed_or_stopped_is_named(number: signal.Signals, code: str, within_s: float) -> None:
    process = sweeping()
    victims = ranks_of(process)
    everybody = list(family(process.pid))
    os.kill(victims[1], number)
    began = time.monotonic()
    out, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < within_s
    assert process.returncode == 3
    said = json.loads(out)
    assert said["findings"][0]["code"] == code
    assert len(said["findings"][0]["where"]["ranks"]) == 1
    assert said["results"]
    assert alive(everybody) == []


@pytest.mark.slow
def test_nothing_is_left_when_the_command_is_killed() -> None:
    process = sweeping()
    ranks_of(process)
    everybody = list(family(process.pid))
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 5
    while alive(everybody) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(everybody) == []
