"""The monitor for trainers that take callbacks: one class each, made where its library is there.

Trainer(..., callbacks=[smoldiag.monitor.callbacks.hugging_face("RUN")])
lightning.Trainer(..., callbacks=[smoldiag.monitor.callbacks.lightning("RUN")])
"""

import importlib
from collections.abc import Mapping
from typing import Any

from smoldiag.monitor.hooks import install, uninstall


def hugging_face(output: str) -> Any:
    """A TrainerCallback that watches from the beginning of the training to its end."""
    base: Any = importlib.import_module("transformers").TrainerCallback

    class StepMonitor(base):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.monitor = install(output)

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **more: Any
        ) -> None:
            numbers = {k: v for k, v in (logs or {}).items() if isinstance(v, int | float)}
            self.monitor.note(**numbers)

        def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            uninstall()

    return StepMonitor()


def lightning(output: str) -> Any:
    """A Callback that watches from the beginning of the fit to its end."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            base: Any = importlib.import_module(name).Callback
            break
        except ImportError:
            continue
    else:
        raise ImportError("neither lightning nor pytorch_lightning is installed")

    class StepMonitor(base):  # type: ignore[misc]
        def on_fit_start(self, trainer: Any, module: Any) -> None:
            install(output)

        def on_fit_end(self, trainer: Any, module: Any) -> None:
            uninstall()

    return StepMonitor()
