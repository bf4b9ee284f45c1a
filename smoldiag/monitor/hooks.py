"""The monitor in a program that does not know of it: torch's own hooks tell the phases.

A step lasts from the end of one optimizer step to the end of the next, so that gradient accumulation counts as one
step. Forward is the outermost module's, evaluation the same while it is not training; backward is
torch.autograd.backward; data is waiting for a DataLoader; checkpoint is torch.save and torch.distributed.checkpoint.
"""

import atexit
import importlib
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from smoldiag.monitor import folder, traces, weights
from smoldiag.monitor.clock import Monitor
from smoldiag.monitor.samples import Sampler

VARIABLE = "SMOLDIAG_MONITOR"  # the run folder, for processes that `smoldiag run --monitor` started
TRACE_VARIABLE = "SMOLDIAG_TRACE"  # STEPS:RANK,RANK
SAVES = (("torch", "save"), ("torch.distributed.checkpoint", "save"), ("torch.distributed.checkpoint", "async_save"))
_installed: "Hooks | None" = None


def install(output: str | os.PathLike[str]) -> Monitor:
    """Watch this process from here on, and write its steps into the run folder `output`. Safe to call again."""
    global _installed
    if _installed is None:
        _installed = Hooks(Path(output))
        atexit.register(uninstall)
    return _installed.monitor


def uninstall() -> None:
    """Stop watching, and write what is left."""
    global _installed
    if _installed is not None:
        _installed.remove()
        _installed = None


class Hooks:
    """All that is hooked, and how to take it away again."""

    def __init__(self, output: Path) -> None:
        rank, world_size, local_rank, host = folder.place()
        self.writer = folder.Writer(output, rank=rank, world_size=world_size, host=host, local_rank=local_rank)
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", local_rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
        self.monitor = Monitor(self.writer.take, rank=rank, host=host, device=device)
        self.writer.describe(torch.cuda.get_device_name(device) if cuda else "cpu")
        self.sampler = Sampler(self.writer.take, rank=rank, gpu=device.index)
        self.depth = 0  # of module calls
        self.optimizing = 0
        self.weights: dict[str, Any] | None = None  # of the first optimizer, until they are written
        self.weights_told = False
        self.undo: list[Callable[[], object]] = []
        self.profiler = self._profiler(output)
        self.monitor.__enter__()
        self.monitor.begin()
        self._hook_modules()
        self._hook_optimizers()
        self._wrap(torch.autograd, "backward", "backward")
        for module, name in SAVES:
            with suppress(ImportError, AttributeError):
                self._wrap(importlib.import_module(module), name, "checkpoint")
        self._wrap(torch.utils.data.dataloader._BaseDataLoaderIter, "__next__", "data")
        self.sampler.start()

    def _profiler(self, output: Path) -> Any:
        """Where traces of this rank were asked for; it is stepped with the steps."""
        steps, _, ranks = os.environ.get(TRACE_VARIABLE, "").partition(":")
        if not steps.isdecimal() or str(self.writer.rank) not in ranks.split(","):
            return None
        made = traces.profiler(
            self.writer.rank,
            steps=int(steps),
            first=traces.FIRST,
            keep=partial(traces.moved, folder=output / "traces"),
            record=self.writer.take,
        )
        made.__enter__()
        self.undo.append(partial(made.__exit__, None, None, None))
        return made

    def _hook_modules(self) -> None:
        """The first forward pass shows which module is the outermost; afterwards only that one is hooked."""
        module_hooks: Any = torch.nn.modules.module
        seen: dict[int, Any] = {}

        def before(module: Any, args: Any) -> None:
            if self.depth == 0:
                if id(module) not in seen:
                    seen[id(module)] = module
                self.monitor.enter("forward" if module.training else "evaluation")
            self.depth += 1

        def after(module: Any, args: Any, result: Any) -> None:
            self.depth -= 1
            if self.depth == 0:
                self.monitor.leave()

        handles = [
            module_hooks.register_module_forward_pre_hook(before),
            module_hooks.register_module_forward_hook(after, always_call=True),
        ]
        self.undo += [handle.remove for handle in handles]
        self.global_hooks, self.outermost = handles, seen
        self.before, self.after = before, after

    def _settle_modules(self) -> None:
        """After the first step: hooks on the outermost modules alone, instead of on every one."""
        if not self.global_hooks or not self.outermost:
            return
        for handle in self.global_hooks:
            handle.remove()
        self.global_hooks = []
        for module in self.outermost.values():
            handles = [
                module.register_forward_pre_hook(self.before),
                module.register_forward_hook(self.after, always_call=True),
            ]
            self.undo += [handle.remove for handle in handles]

    def _hook_optimizers(self) -> None:
        optimizers: Any = importlib.import_module("torch.optim.optimizer")

        def before(optimizer: Any, args: Any, kwargs: Any) -> None:
            self.optimizing += 1
            if self.optimizing == 1:
                if not self.weights_told and self.weights is None:
                    with suppress(Exception):  # optimizers come in all shapes, and the job goes on
                        self.weights = weights.described(optimizer)
                self.monitor.enter("optimizer")

        def after(optimizer: Any, args: Any, kwargs: Any) -> None:
            self.optimizing -= 1
            if self.optimizing == 0:
                self.monitor.leave()
                self._tell_weights(optimizer)
                self.monitor.end()
                if self.profiler is not None:
                    self.profiler.step()
                self._settle_modules()
                self.monitor.begin()

        handles = [
            optimizers.register_optimizer_step_pre_hook(before),
            optimizers.register_optimizer_step_post_hook(after),
        ]
        self.undo += [handle.remove for handle in handles]

    def _tell_weights(self, optimizer: Any) -> None:
        if not self.weights_told and self.weights is not None:
            with suppress(Exception):
                self.writer.take(
                    "weights", {"rank": self.writer.rank, **self.weights, "state": weights.kept(optimizer)}
                )
        self.weights_told, self.weights = True, None

    def _wrap(self, owner: Any, name: str, phase: str) -> None:
        original = getattr(owner, name)
        monitor = self.monitor

        def timed(*args: Any, **kwargs: Any) -> Any:
            monitor.enter(phase)
            try:
                return original(*args, **kwargs)
            finally:
                monitor.leave()

        setattr(owner, name, timed)
        self.undo.append(lambda: setattr(owner, name, original))

    def remove(self) -> None:
        self.sampler.stop()
        for undo in reversed(self.undo):
            with suppress(Exception):  # the process ends
                undo()
        self.undo.clear()
        self.monitor.abandon()
        with suppress(Exception):  # the process ends, and its device may be gone
            self.monitor.__exit__()
            if not hasattr(sys, "last_value"):  # no exception ended the process
                self.monitor.number -= 1  # the one that began after the last
                self.monitor.through()
        self.writer.end()
        if dist.is_available() and self.writer.lost and self.writer.rank == 0:
            print(f"smoldiag: {self.writer.lost} records of the step monitor were lost", flush=True)
