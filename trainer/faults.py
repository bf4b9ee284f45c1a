"""Faults on request: what slows, stalls or breaks real runs, for teaching and for tests."""

import gc
import time
from collections.abc import Iterator

from smoldiag.model.training import Fault
from trainer.data import Batch

GC_OBJECTS = 400_000  # containers that a full collection has to walk through: some tens of milliseconds


class Faults:
    """Those that befall this rank."""

    def __init__(self, faults: tuple[Fault, ...], rank: int) -> None:
        self.mine = [f for f in faults if f.ranks is None or rank in f.ranks]
        self.garbage: list[list[int]] = []

    def due(self, kind: str, step: int) -> Fault | None:
        fits = (f for f in self.mine if f.kind == kind and step >= f.at_step and (step - f.at_step) % f.every == 0)
        return next(fits, None)

    def loading(self, step: int) -> None:
        """While a batch is fetched."""
        for kind in ("slow-loader", "periodic-stall"):
            if fault := self.due(kind, step):
                time.sleep(fault.seconds)

    def computing(self, step: int) -> None:
        """In the forward pass. Busy, as slow silicon is, not asleep."""
        if fault := self.due("slow-rank", step):
            until = time.perf_counter() + fault.seconds
            while time.perf_counter() < until:
                pass
        if self.due("gc-storm", step):
            self.garbage = self.garbage or [[i] for i in range(GC_OBJECTS)]
            gc.collect()

    def skips_collective(self, step: int) -> bool:
        return self.due("skipped-collective", step) is not None

    def ends_early(self, step: int) -> bool:
        """This rank's data are used up before those of the others."""
        return any(f.kind == "uneven-data" and step >= f.at_step for f in self.mine)


def slowed(batches: Iterator[Batch], faults: Faults, *, first_step: int, per_step: int) -> Iterator[Batch]:
    """The batches, held up where a fault says so."""
    for number, batch in enumerate(batches):
        step = first_step + number // per_step
        if number % per_step == 0:
            faults.loading(step)
        yield batch
