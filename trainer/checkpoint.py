"""Distributed checkpoints: each rank writes its own part; a folder counts once torch has written its `.metadata`.

Any number of ranks reads what any other number wrote.
"""

import importlib
import re
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

dcp: Any = importlib.import_module("torch.distributed.checkpoint")  # its exports are not declared
STEP_FOLDER = re.compile(r"step-(\d{1,12})")
KEPT = 2  # the newest ones; the last may be the one that a crash has just spoilt


class Checkpoints:
    """Saves and finds the checkpoints of one run in one folder, which all hosts share."""

    def __init__(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, asynchronous: bool) -> None:
        self.folder, self.model, self.optimizer, self.asynchronous = folder, model, optimizer, asynchronous
        self.pending: Any = None
        # Saving in the background needs collectives of its own, beside those of the training.
        self.group = dist.new_group(backend="gloo") if asynchronous and dist.get_world_size() > 1 else None

    def save(self, step: int) -> None:
        """After `step` steps. Returns when the state is copied; the writing is awaited by the next save."""
        self.wait()
        weights, moments = get_state_dict(self.model, self.optimizer)
        state = {"model": weights, "optimizer": moments, "step": torch.tensor(step)}
        target = self.folder / f"step-{step}"
        if self.asynchronous:
            self.pending = dcp.async_save(state, checkpoint_id=target, process_group=self.group)
        else:
            dcp.save(state, checkpoint_id=target)
            self._forget()

    def wait(self) -> None:
        if self.pending is not None:
            self.pending.result()
            self.pending = None
            self._forget()

    def load(self) -> int:
        """Into model and optimizer; gives the number of steps done, 0 where there is no checkpoint."""
        found = newest(self.folder)
        if found is None:
            return 0
        weights, moments = get_state_dict(self.model, self.optimizer)
        step = torch.tensor(0)
        state: dict[str, Any] = {"model": weights, "optimizer": moments, "step": step}
        dcp.load(state, checkpoint_id=found)
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        return int(state["step"])

    def _forget(self) -> None:
        if dist.get_rank() == 0:
            for old in complete(self.folder)[:-KEPT]:
                shutil.rmtree(old, ignore_errors=True)


def complete(folder: Path) -> list[Path]:
    """The checkpoints that were written to the end, oldest first."""
    found = [(int(m[1]), p) for p in folder.glob("step-*") if (m := STEP_FOLDER.fullmatch(p.name))]
    return [p for _, p in sorted(found) if (p / ".metadata").is_file()]


def newest(folder: Path) -> Path | None:
    found = complete(folder) if folder.is_dir() else []
    return found[-1] if found else None
