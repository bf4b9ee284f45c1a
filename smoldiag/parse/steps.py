"""The records of a run folder (JSON lines): steps -> StepTimes, what was seen beside them -> Beside."""

from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from typing import Any

import msgspec

from smoldiag.facts.run import Beside, CollectiveCall, Connection, StepTimes, Weights

MAX_LINE = 4 * 2**20


def parse(lines: Iterable[str], *, where: str) -> Iterator[StepTimes]:
    """Lines that are no step records, or were cut off, are passed over. ValueError where there is none at all."""
    found = 0
    for line in lines:
        if len(line) >= MAX_LINE or '"step_us"' not in line:
            continue
        try:
            record = msgspec.json.decode(line)
            made = _checked(step(record))
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
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
            CollectiveCall(
                name=str(n),
                group=str(g),
                size_bytes=b,
                entered_us=at,
                stay_us=stay,
                phase=str(phase),
                left_us=left[0] if left else None,
            )
            for n, g, b, at, stay, phase, *left in record.get("collectives", ())
        ),
        spans=tuple((str(name), float(at), float(length)) for name, at, length in record.get("spans", ())),
        cpu_us=record.get("cpu_us"),
        delay_us=record.get("delay_us"),
        window_us={str(k): float(v) for k, v in record["window_us"].items()} if record.get("window_us") else None,
        alloc_retries=record.get("alloc_retries"),
        memory_bytes=record.get("memory_bytes"),
        notes={k: v for k, v in record.get("notes", {}).items() if isinstance(v, int | float)},
    )


def _checked(s: StepTimes) -> StepTimes:
    """ValueError or TypeError for figures that no step has: a line that was damaged may still be JSON."""
    figures = [s.step_us, s.time, *s.phases_us.values(), *(x for _, *span in s.spans for x in span)]
    figures += (x for c in s.collectives for x in (c.size_bytes, c.entered_us, c.stay_us, c.left_us or 0.0))
    figures += (x or 0 for x in (s.cpu_us, s.delay_us, s.alloc_retries, s.memory_bytes))
    if not all(map(isfinite, figures)) or s.step_us <= 0:
        raise ValueError(f"step {s.step} of rank {s.rank} has figures that no step has")
    return s


BESIDE = ('"kind": "sample"', '"kind": "end"', '"kind": "weights"')  # as the ranks write them


def beside(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Samples, the ends of ranks, and what optimizers update."""
    for line in lines:
        if len(line) <= MAX_LINE and any(kind in line[:40] for kind in BESIDE):
            try:
                yield msgspec.json.decode(line, type=dict)
            except (msgspec.MsgspecError, RecursionError):
                continue


def seen_beside(records: Iterable[Mapping[str, Any]], steps: Iterable[StepTimes]) -> Beside:
    """Counters count from the start of a process: what one lost, by starting again, is passed over."""
    sums: dict[tuple[int, str], list[int]] = {}
    last: dict[tuple[int, str], list[int]] = {}
    throttled: dict[int, int] = {}
    seen = {s.rank: s.time + s.step_us / 1e6 for s in steps}
    ended: dict[int, tuple[int, float]] = {}
    times: list[float] = []
    updated: dict[int, Weights] = {}
    for r in records:
        try:
            if r.get("kind") == "weights":
                updated.setdefault(int(r["rank"]), _weights(r))
                continue
            rank, at = int(r["rank"]), float(r["time"])
            if r.get("kind") == "end":
                ended[rank] = (int(r["step"]), at)
            peers = {("to", str(name)): [int(v) for v in values] for name, values in r.get("peers", {}).items()}
            if "throttled_us" in r:
                peers["quota", ""] = [int(r["throttled_us"])]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            continue
        seen[rank] = max(seen.get(rank, at), at)
        if r.get("kind") == "end":
            continue
        times.append(at)
        for (what, name), values in peers.items():
            key = (rank, what + name)
            before = last.get(key, values)
            if len(before) != len(values):
                continue
            grown = [max(b - a, 0) for a, b in zip(before, values, strict=True)]
            sums[key] = [a + b for a, b in zip(sums.get(key, [0] * len(values)), grown, strict=True)]
            last[key] = values
    for (rank, what), values in sums.items():
        if what == "quota":
            throttled[rank] = values[0]
    connections = tuple(
        Connection(
            rank=rank, peer=what[2:], acked_bytes=v[0], resent_bytes=v[1], busy_us=v[2], min_rtt_us=last[rank, what][3]
        )
        for (rank, what), v in sorted(sums.items())
        if what != "quota" and len(v) == 4
    )
    return Beside(
        connections=connections,
        throttled_us=throttled,
        watched_s=max(times) - min(times) if times else 0.0,
        seen=seen,
        ended=ended,
        weights=updated,
    )


def _weights(record: Mapping[str, Any]) -> Weights:
    return Weights(
        optimizer=str(record["optimizer"]),
        learning_rate=float(record["learning_rate"]),
        parameters={str(k): int(v) for k, v in record["parameters"].items()},
        state={str(k): int(v) for k, v in record["state"].items()},
        shards={str(k): _shard(*v) for k, v in record["shards"].items()},
        place=tuple(map(int, record["place"])) if record["place"] is not None else None,
    )


def _shard(total: float, squares: float, weighted: float, count: float) -> tuple[float, ...]:
    if not count > 0:
        raise ValueError("a shard without values")
    return float(total), float(squares), float(weighted), float(count)
