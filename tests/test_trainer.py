"""The reference trainer on CPU: the same losses however it is cut up, stopped and resumed."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from smoldiag import runs
from smoldiag.cli import train
from smoldiag.facts import Host
from smoldiag.model import fsdp, training

ROOT = Path(__file__).parent.parent
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "SMOLDIAG_METADATA": "off", "HF_HUB_OFFLINE": "1"}
BATCH = ("--global-batch", "8", "--steps", "5")
TOLERANCE = 2e-4  # relative, of float32 sums in another order over some steps


def trained(folder: Path, *options: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "smoldiag", "train", "--output", str(folder), *options]
    return subprocess.run(command, env=ENV, cwd="/", capture_output=True, text=True, timeout=timeout)


def losses(folder: Path) -> list[float]:
    return [s.notes["loss"] for s in runs.read(folder).steps if s.rank == 0]


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """One process without FSDP, the whole batch in one forward pass."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    done = trained(folder, *BATCH, "--ranks-per-node", "1", "--micro-batch", "8", "--no-fsdp")
    assert done.returncode == 0, done.stderr
    return losses(folder)


def test_losses_are_those_that_they_were(one_rank: list[float], golden: Callable[[str, str], None]) -> None:
    golden("tests/golden/losses.txt", "\n".join(f"{loss:.3f}" for loss in one_rank) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "cut",
    [
        ("--ranks-per-node", "1", "--micro-batch", "8"),
        ("--ranks-per-node", "2", "--micro-batch", "4"),
        ("--ranks-per-node", "4", "--micro-batch", "2"),
        ("--ranks-per-node", "4", "--micro-batch", "2", "--replicate", "2"),
        ("--ranks-per-node", "2", "--micro-batch", "1"),
        ("--ranks-per-node", "1", "--micro-batch", "2", "--no-fsdp"),
        ("--ranks-per-node", "2", "--micro-batch", "4", "--recompute", "full"),
        ("--ranks-per-node", "2", "--micro-batch", "4", "--workers", "2", "--prefetch", "2"),
    ],
    ids=["FSDP 1", "FSDP 2", "FSDP 4", "HSDP 2x2", "accumulation 4", "accumulation 4 alone", "recomputed", "ahead"],
)
def test_losses_do_not_depend_on_how_the_batch_is_cut(
    cut: tuple[str, ...], one_rank: list[float], tmp_path: Path
) -> None:
    done = trained(tmp_path / "run", *BATCH, *cut)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == pytest.approx(one_rank, rel=TOLERANCE)


STOPPED = ("--steps", "16", "--ranks-per-node", "2", "--checkpoint-every", "4", "--fault", "slow-loader:seconds=0.1")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
@pytest.mark.parametrize("after", [2, 9])
def test_a_stopped_run_goes_on_with_the_same_losses(number: signal.Signals, after: int, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", *STOPPED)
    assert whole.returncode in (0, 1), whole.stderr
    folder = tmp_path / "stopped"
    command = [sys.executable, "-m", "smoldiag", "train", "--output", str(folder), *STOPPED]
    with subprocess.Popen(command, env=ENV, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        wait_for_step(folder, after)
        running.send_signal(number)
    resumed = subprocess.run(
        [sys.executable, "-m", "smoldiag", "train", "--resume", str(folder), "--ranks-per-node", "2"],
        env=ENV, cwd="/", capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert resumed.returncode in (0, 1), resumed.stderr
    assert losses(folder) == losses(tmp_path / "whole")
    assert len(json.loads((folder / "run.json").read_text())["attempts"]) == 2


def wait_for_step(folder: Path, step: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        lines = [line for p in (folder / "steps").glob("*.jsonl") for line in p.read_text().splitlines()]
        if any(f'"step": {step},' in line for line in lines):
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached")


FAULTS: Mapping[tuple[str, str], tuple[str, tuple[int, ...]]] = {
    ("--fault", "slow-loader:ranks=1,seconds=0.05"): ("dataloader-stall", (1,)),
    ("--fault", "slow-rank:ranks=1,seconds=0.05"): ("straggler-rank", (1,)),
    ("--fault", "periodic-stall:ranks=0,seconds=0.3,every=5"): ("dataloader-stall", (0,)),
    ("--fault", "gc-storm"): ("gc-stragglers", ()),
    ("--checkpoint-every", "2"): ("checkpoint-stall", ()),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: " ".join(fault))
def test_the_cause_of_a_slow_step_is_named(fault: tuple[str, str], tmp_path: Path) -> None:
    """By the command itself, and from its run folder alone."""
    done = trained(tmp_path / "run", "--ranks-per-node", "2", *fault, "--format", "json")
    cause, ranks = FAULTS[fault]
    for report in (json.loads(done.stdout), explained(tmp_path / "run")):
        assert report["findings"][0]["cause"] == cause, report["findings"]
        assert tuple(report["findings"][0]["where"]["ranks"]) == ranks
    assert_attributed(tmp_path / "run")


def explained(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "smoldiag", "explain", str(folder), "--format", "json", "--fail-on", "never"]
    done = subprocess.run(command, env=ENV, cwd="/", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def assert_attributed(folder: Path) -> None:
    """At most 3 % of the measured time of every rank is in none of the phases."""
    whole: dict[int, float] = {}
    other: dict[int, float] = {}
    for s in runs.read(folder).steps:
        whole[s.rank] = whole.get(s.rank, 0.0) + s.step_us
        other[s.rank] = other.get(s.rank, 0.0) + s.phases_us.get("other", 0.0)
        assert sum(s.phases_us.values()) == pytest.approx(s.step_us, rel=1e-3)
    assert all(other[rank] <= 0.03 * whole[rank] for rank in whole), (other, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "cause"), [("skipped-collective", "collective-mismatch"), ("uneven-data", "uneven-data-across-ranks")]
)
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_rank_that_keeps_the_others_waiting_is_named(fault: str, cause: str, ranks: int, tmp_path: Path) -> None:
    options = ("--ranks-per-node", str(ranks), "--fault", f"{fault}:ranks=1,at=5", "--timeout", "10")
    done = trained(tmp_path / "run", *options, "--format", "json")
    assert done.returncode == 3, done.stdout
    for report in (json.loads(done.stdout), explained(tmp_path / "run")):
        first = report["findings"][0]
        assert (first["cause"], first["where"]["ranks"]) == (cause, [1]), report["findings"]
    assert len(losses(tmp_path / "run")) >= 4
    assert_attributed(tmp_path / "run")


def test_run_folder_is_complete(tmp_path: Path) -> None:
    done = trained(tmp_path / "run", "--steps", "6", "--ranks-per-node", "2", "--trace", "1", "--validate-every", "3")
    assert done.returncode == 0, done.stderr
    about: dict[str, Any] = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["schema"] == "smoldiag.run/1"
    assert about["world"]["ranks"] == 2
    assert about["run"]["tokens_per_step"] == 2 * 4 * 128
    steps = runs.read(tmp_path / "run").steps
    assert [(s.rank, s.step) for s in steps] == [(rank, step) for step in range(6) for rank in range(2)]
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]
    assert sum("validation_loss" in s.notes for s in steps) == 4
    (facts,) = (tmp_path / "run" / "hosts").iterdir()
    host = msgspec.json.decode(facts.read_bytes(), type=Host)
    assert host.env is not None  # which a launcher does not read: all facts, not the quick ones
    assert host.limits is not None
    (traced,) = (tmp_path / "run" / "traces").iterdir()
    assert json.loads(gzip.decompress(traced.read_bytes()))["traceEvents"]
    assert (tmp_path / "run" / "checkpoints" / "step-6" / ".metadata").is_file()


def test_tokens_of_a_text_are_read(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("Every rank waits.\n\nThe last one comes.\n" * 200)
    assert runs.prepare(tmp_path / "book.txt", tmp_path / "book.tokens") > 1000
    options = ("--tokens", str(tmp_path / "book.tokens"), "--documents", "--ranks-per-node", "1", "--steps", "4")
    done = trained(tmp_path / "run", *options)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]


@pytest.mark.parametrize("name", training.MODELS)
def test_models_have_the_parameters_that_nccl_bench_counts(name: str) -> None:
    import torch

    from trainer.model import Decoder

    config = training.model(name)
    with torch.device("meta"):
        made = Decoder(config)
    assert sum(p.numel() for p in made.parameters()) == config.shape.parameters
    if name != "tiny":
        assert config.shape == fsdp.find(name)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "gpt-9"), "'gpt-9' is not known"),
        (("--fault", "bad-luck"), "'bad-luck' is no fault"),
        (("--fault", "slow-rank:ranks=x"), "ranks=x"),
        (("--dtype", "float8"), "'float8' is not known"),
        (("--global-batch", "7", "--ranks-per-node", "2"), "no multiple of 2 ranks"),
        (("--resume", "/nowhere"), "no run folder"),
        (("--trace", "1", "--trace-ranks", "1-x"), "'1-x' are no ranks"),
        (("--trace", "1", "--trace-ranks", "0,9"), "names rank 9"),
        (("--tokens", "/etc/passwd"), "no tokens file"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_sentence(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = trained(tmp_path / "run", *options)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_examples_are_in_the_help() -> None:
    assert "--resume RUN" in train.EXAMPLES
