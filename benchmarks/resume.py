"""Does training resume? The reference trainer makes some steps, and its last ones again from its own checkpoint.

The losses of the steps that ran twice must be the same. All members train together, in a process group even where there
is one; with several hosts the folder has to be shared by them. Nothing stays in it.
"""

import gc
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.compute import device
from benchmarks.storage import PREFIX, dismissed, host_of, watched
from smoldiag import ranks
from smoldiag.facts.probes import Resume
from smoldiag.model.training import TrainConfig, from_dict
from smoldiag.ranks import Rank
from trainer import checkpoint
from trainer.train import train

STEPS = 20
WARM_UP = 3  # of them, which are not timed
GPU_MODEL, GPU_TOKENS = "SmolLM2-135M", 2048
KEPT = "checkpoint"
Lines = list[tuple[str, Any]]  # what the trainer recorded: kind, record


def measure(me: Rank, config: Mapping[str, Any]) -> dict[str, Any]:
    """A `Resume` as a dictionary. Of `config`: path, a folder that all members share; model, steps, where wanted."""
    given = training(me, config)
    found = Resume(
        device=device(me),
        ranks=me.world_size,
        model=given.model,
        steps=given.steps,
        checkpoint_step=given.checkpoint_every,
        losses={},
        resumed={},
    )
    if len(set(me.host_of_rank)) > 1 and not config.get("path"):
        return asdict(replace(found, skipped="several hosts, and no folder that they share was named (--path)"))
    folder, janitor, why = meeting_place(me, config.get("path"))
    try:
        if why:
            return asdict(replace(found, error=why))
        given = replace(given, checkpoint_folder=str(folder / KEPT))
        first, save_s = run(given, me)
        forget_the_last(me, folder / KEPT, given)
        again, _ = run(given, me)
    finally:
        if janitor is not None:
            shutil.rmtree(folder, ignore_errors=True)
            dismissed(janitor)
    about: dict[str, Any] = next((line for kind, line in first if kind == "run"), {})
    return asdict(
        replace(
            found,
            losses=losses(first),
            resumed=losses(again),
            step_s=tuple(line["step_us"] / 1e6 for kind, line in first if kind == "step")[WARM_UP:],
            save_s=save_s,
            tokens_per_step=about.get("tokens_per_step"),
            flops_per_token=about.get("flops_per_token"),
        )
    )


def training(me: Rank, config: Mapping[str, Any]) -> TrainConfig:
    steps = int(config.get("steps", STEPS))
    on_gpu = me.device.type == "cuda"
    base: dict[str, Any] = {"model": config.get("model") or (GPU_MODEL if on_gpu else "tiny"), "steps": steps}
    base |= {"sequence_tokens": GPU_TOKENS, "dtype": "bfloat16"} if on_gpu else {"micro_batch": 2}
    return replace(from_dict(base), checkpoint_every=steps // 2, checkpoint_async=False)


def run(config: TrainConfig, me: Rank) -> tuple[Lines, float | None]:
    """What the trainer recorded, and the seconds of its longest save. Garbage collection is as before afterwards."""
    lines: Lines = []
    try:
        train(config, me, record=lambda kind, line: lines.append((kind, line)))
    finally:
        gc.unfreeze()
        gc.enable()
    saves = [line["phases_us"].get("checkpoint", 0.0) / 1e6 for kind, line in lines if kind == "step"]
    return lines, max(saves, default=None)


def losses(lines: Lines) -> dict[int, float]:
    return {line["step"]: line["notes"]["loss"] for kind, line in lines if kind == "step" and "loss" in line["notes"]}


def meeting_place(me: Rank, path: str | None) -> tuple[Path, "subprocess.Popen[bytes] | None", str]:
    """(a folder of ours that all members see, its janitor where we made it, else why there is none)."""
    base = Path(path or tempfile.gettempdir())
    number = torch.tensor([time.time_ns()], dtype=torch.int64, device=me.device)
    if me.world_size > 1:
        dist.broadcast(number, 0)
    folder = base / f"{PREFIX}{host_of(me, 0)}-resume-{int(number)}"
    janitor, why = None, ""
    if me.rank == 0:
        try:
            janitor = watched(folder)
        except OSError as error:
            why = str(error)
    if me.world_size > 1:
        ranks.barrier(me)
    there = torch.tensor([int(folder.is_dir())], device=me.device)
    if me.world_size > 1:
        dist.all_reduce(there, op=dist.ReduceOp.MIN)
    if not int(there):
        why = why or (f"{base} is not shared by the hosts" if me.world_size > 1 else f"{base} can't be written")
    return folder, janitor, why


def forget_the_last(me: Rank, folder: Path, config: TrainConfig) -> None:
    """So that the second run begins in the middle."""
    if me.rank == 0:
        shutil.rmtree(folder / f"step-{config.steps}", ignore_errors=True)
    if me.world_size > 1:
        ranks.barrier(me)
    if checkpoint.newest(folder) != folder / f"step-{config.checkpoint_every}":
        raise RuntimeError(f"the checkpoint of step {config.checkpoint_every} is not in {folder}")


def main() -> None:
    me = ranks.join()
    ranks.record("resume", measure(me, me.config))
    ranks.leave()


if __name__ == "__main__":
    main()
