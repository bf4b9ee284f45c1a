"""The step monitor in programs that are not ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smoldiag import explain, runs
from smoldiag.facts import CollectiveCall, Run, StepTimes
from smoldiag.model import steps as model

ROOT = Path(__file__).parent.parent
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

PLAIN = """
import gc, sys, time, torch
from torch.utils.data import DataLoader, TensorDataset
{lines}
net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
class Slow(torch.utils.data.Dataset):
    def __len__(self): return 64
    def __getitem__(self, i):
        time.sleep(0.001)
        return torch.ones(64)
for number, batch in enumerate(DataLoader(Slow(), batch_size=4)):
    loss = net(batch).sum()
    loss.backward()
    if number % {accumulation} == {accumulation} - 1:
        optimizer.step()
        optimizer.zero_grad()
    if number == 7:
        torch.save(net.state_dict(), sys.argv[1])
net.eval()
"""
LINES = "from smoldiag import monitor\nmonitor.install({folder!r})"


def watched(tmp_path: Path, *, accumulation: int = 1) -> Run:
    script = PLAIN.format(lines=LINES.format(folder=str(tmp_path / "run")), accumulation=accumulation)
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "saved")], env=ENV, check=True, timeout=60)
    return runs.read(tmp_path / "run")


def test_two_lines_in_a_plain_loop(tmp_path: Path) -> None:
    run = watched(tmp_path)
    assert [s.step for s in run.steps] == list(range(16))
    for s in run.steps:
        assert {"data", "forward", "backward", "optimizer"} <= set(s.phases_us)
        assert s.phases_us["data"] > 3500  # four items of a millisecond
        assert sum(s.phases_us.values()) == pytest.approx(s.step_us, rel=1e-3)
    assert [s.step for s in run.steps if "checkpoint" in s.phases_us] == [8]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["schema"] == "smoldiag.run/1"
    assert len(list((tmp_path / "run" / "hosts").iterdir())) == 1


def test_accumulated_micro_batches_are_one_step(tmp_path: Path) -> None:
    run = watched(tmp_path, accumulation=4)
    assert [s.step for s in run.steps] == [0, 1, 2, 3]
    assert all(s.phases_us["data"] > 14_000 for s in run.steps)


def test_a_folder_that_cannot_be_written_does_not_stop_the_job(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file is in the way")
    script = PLAIN.format(lines=LINES.format(folder=str(tmp_path / "run" / "sub")), accumulation=1)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "saved")], env=ENV, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "records of the step monitor were lost" in done.stdout


def times(rank: int, stays: list[float], *, step: int = 0, own: float = 10.0) -> StepTimes:
    calls = tuple(
        CollectiveCall(name="all_reduce", group="all", size_bytes=8, entered_us=i, stay_us=stay, phase="backward")
        for i, stay in enumerate(stays)
    )
    total = own + sum(stays)
    return StepTimes(
        rank=rank, step=step, host=f"node{rank}", step_us=total, phases_us={"backward": total}, collectives=calls
    )


def test_waiting_and_transfer_are_told_apart() -> None:
    """Rank 2 comes last to both collectives: what it stays is the transfer, what others stay longer is waiting."""
    run = Run(steps=(times(0, [30, 9]), times(1, [25, 8]), times(2, [5, 4], own=39)))
    budget = model.budget(run)
    assert budget is not None
    assert [(s.transfer_us, s.wait_us) for s in budget.shares] == [(9, 30), (9, 24), (9, 0)]
    assert [s.phases_us["backward"] for s in budget.shares] == [10, 10, 39]
    assert budget.waited_for_us == {2: 30}


UNAWARE = """
import gc, sys
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
dist.init_process_group("gloo")
net = DistributedDataParallel(torch.nn.Linear(64, 1))
optimizer = torch.optim.AdamW(net.parameters())
for (batch,) in DataLoader(TensorDataset(torch.ones(24, 64)), batch_size=2):
    net(batch).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
sys.stdout.write(f"rank {dist.get_rank()} is through\\n")
sys.stdout.flush()
dist.barrier()
del net, optimizer  # gloo's threads may abort the process where DDP outlives its group
gc.collect()
dist.destroy_process_group()
"""


def under_run(tmp_path: Path, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, "-m", "smoldiag", "run", "--output", str(tmp_path / "run"), *options, "--", *command]
    return subprocess.run(run, env=ENV, cwd=tmp_path, capture_output=True, text=True, timeout=120)


TRACED = ("--monitor", "--trace", "1", "--trace-ranks", "1")


@pytest.mark.slow
def test_a_script_that_is_not_edited_is_watched(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(UNAWARE)
    (tmp_path / "trainer").mkdir()  # of the user's own; ours must not be in its way
    (tmp_path / "trainer" / "__init__.py").write_text("")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = under_run(tmp_path, *torchrun, str(tmp_path / "script.py"), options=TRACED)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["rank 0 is through", "rank 1 is through"]
    run = runs.read(tmp_path / "run")
    assert {(s.rank, s.step) for s in run.steps} == {(rank, step) for rank in range(2) for step in range(12)}
    assert all({"forward", "backward", "optimizer", "data"} <= set(s.phases_us) for s in run.steps)
    assert "waiting for a peer" in done.stderr
    assert [p.name for p in (tmp_path / "run" / "traces").iterdir()] == ["rank1.json.gz"]
    assert len(list((tmp_path / "run" / "facts").glob("*-after.json"))) == 1


SHARDED = """
import sys, torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
from smoldiag import monitor
dist.init_process_group("gloo")
torch.manual_seed(7)
net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64), torch.nn.Linear(64, 64)).to(torch.{dtype})
fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
if {equal}:
    for p in net.parameters():
        torch.manual_seed(7)
        p.to_local().detach().normal_()
monitor.install(sys.argv[1])
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
for _ in range(3):
    net(torch.ones(4, 64, dtype=torch.{dtype})).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
monitor.uninstall()
dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("equal", "dtype", "causes"),
    [
        (True, "float32", {"shards-start-equal"}),
        (False, "float32", set()),
        (False, "bfloat16", {"weights-in-low-precision"}),
    ],
)
def test_shards_and_numbers_that_a_run_starts_with(tmp_path: Path, equal: bool, dtype: str, causes: set[str]) -> None:
    (tmp_path / "script.py").write_text(SHARDED.format(equal=equal, dtype=dtype))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, tmp_path / "script.py", tmp_path / "run"], env=ENV, check=True, timeout=60)
    report = explain.explain([str(tmp_path / "run")]).report
    found = {f.cause: f for f in report.findings if f.code in ("LOS007", "LOS008")}
    assert set(found) == causes
    if equal:
        assert found["shards-start-equal"].message.startswith("2 of 2 sharded matrices")
        assert found["shards-start-equal"].where.ranks == (0, 1)


def test_a_command_is_run_as_it_is_and_its_failure_explained(tmp_path: Path) -> None:
    code = (
        "import sys; print('out'); print('torch.OutOfMemoryError: CUDA out of memory.', file=sys.stderr); sys.exit(7)"
    )
    done = under_run(tmp_path, sys.executable, "-c", code)
    assert (done.returncode, done.stdout) == (7, "out\n")
    assert "exit code 7" in done.stderr
    assert "out" in (tmp_path / "run" / "log.txt").read_text()
    assert len(list((tmp_path / "run" / "facts").iterdir())) == 2


def test_what_the_user_has_set_stays(tmp_path: Path) -> None:
    from smoldiag import evidence

    chosen = evidence.variables(tmp_path, {"TORCH_FR_BUFFER_SIZE": "9", "NCCL_DEBUG": "TRACE"}, monitor=False)
    assert "TORCH_FR_BUFFER_SIZE" not in chosen
    assert "NCCL_DEBUG" not in chosen
    assert chosen["NCCL_DEBUG_FILE"].endswith("/nccl/%h.%p.log")
    ours = evidence.variables(tmp_path, {"NCCL_DEBUG": "WARN", "NCCL_DEBUG_FILE": "/home/me/log"}, monitor=False)
    assert not [name for name in ours if name.startswith("NCCL_")]


def test_a_command_that_does_not_exist_is_said_in_a_sentence(tmp_path: Path) -> None:
    done = under_run(tmp_path, "no-such-program")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no-such-program: No such file or directory")
