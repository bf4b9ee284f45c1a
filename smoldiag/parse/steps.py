"""The step records of a run folder (JSON lines) -> StepTimes."""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from smoldiag.facts.run import CollectiveCall, StepTimes

MAX_LINE = 4 * 2**20


def parse(lines: Iterable[str], *, where: str) -> Iterator[StepTimes]:
    """Lines that are no step records, or were cut off, are passed over. ValueError where there is none at all."""
    found = 0
    for line in lines:
        if len(line) > MAX_LINE or '"step_us"' not in line:
            continue
        try:
            record = msgspec.json.decode(line)
            made = step(record)
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError):
            continue
        found += 1
        yield made
    if not found:
        raise ValueError(f"{where} has no step records")


def step(record: dict[str, Any]) -> StepTimes:
    """One record, as smoldiag.monitor makes it."""
    return StepTimes(
        rank=int(record["rank"]),
        step=int(record["step"]),
        host=str(record.get("host", "")),
        time=float(record.get("time", 0.0)),
        step_us=float(record["step_us"]),
        phases_us={str(k): float(v) for k, v in record["phases_us"].items()},
        device_us={str(k): float(v) for k, v in record["device_us"].items()} if record.get("device_us") else None,
        collectives=tuple(
            CollectiveCall(name=n, group=g, size_bytes=b, entered_us=at, stay_us=stay, phase=phase)
            for n, g, b, at, stay, phase in record.get("collectives", ())
        ),
        window_us={str(k): float(v) for k, v in record["window_us"].items()} if record.get("window_us") else None,
        alloc_retries=record.get("alloc_retries"),
        memory_bytes=record.get("memory_bytes"),
        notes={k: v for k, v in record.get("notes", {}).items() if isinstance(v, int | float)},
    )
