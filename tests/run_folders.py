"""Run folders made up for tests: steps of several ranks with noise, and what is wrong with them."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from smoldiag.facts import Host

PHASES_MS = {"data": 2.0, "h2d": 1.0, "forward": 150.0, "backward": 250.0, "optimizer": 40.0, "other": 2.0}
TRANSFER_MS = {"all_gather": 30.0, "reduce_scatter": 40.0}
STARTED = 1_795_600_000.0


def write(
    folder: Path,
    *,
    seed: int = 0,
    steps: int = 100,
    ranks: int = 4,
    noise: float = 0.03,
    added_ms: Mapping[str, float] | None = None,
    on: tuple[int, ...] | None = None,
    every: int = 1,
    since: int = 0,
    transfer: float = 1.0,
    loss: float = 0.0,
    hosts: tuple[Host, ...] = (),
    **about: Any,
) -> Path:
    """`added_ms` to phases of the ranks `on` (None: all) in each `every`-th step from `since` on.

    `transfer`: factor of the collectives' time; `loss`: what it is higher by at the end.
    """
    pick = random.Random(seed)
    (folder / "steps").mkdir(parents=True)
    (folder / "hosts").mkdir()
    names = [f"node{r // 2}" for r in range(ranks)]
    lines: list[str] = []
    now = STARTED
    for step in range(steps):
        drift = 1 + noise * pick.gauss(0, 1) / 2
        own = [
            _own(
                pick,
                drift,
                noise,
                added_ms if step % every == 0 and step >= since and (on is None or r in on) else None,
            )
            for r in range(ranks)
        ]
        transfers = {name: ms * transfer * drift * (1 + noise * pick.gauss(0, 1)) for name, ms in TRANSFER_MS.items()}
        latest = max(sum(o.values()) for o in own)
        for rank, phases in enumerate(own):
            wait = latest - sum(phases.values())
            stay = {**transfers, "all_gather": transfers["all_gather"] + wait}
            took = {**phases, "backward": phases["backward"] + sum(stay.values())}
            calls, spans, at = [], [], 0.0
            for name, ms in phases.items():
                spans.append([name, at * 1e3, ms * 1e3])
                at += ms
            spans.append(["backward", at * 1e3, sum(stay.values()) * 1e3])
            for name, ms in stay.items():
                calls.append([name, "all", 2**20, at * 1e3, ms * 1e3, "backward", (at + ms) * 1e3])
                at += ms
            record = {
                "kind": "step",
                "rank": rank,
                "host": names[rank],
                "step": step,
                "time": now,
                "step_us": sum(took.values()) * 1e3,
                "phases_us": {name: ms * 1e3 for name, ms in took.items()},
                "collectives": calls,
                "spans": spans,
                "notes": {"loss": 6.0 - step / 100 + 0.05 * random.Random(step).gauss(0, 1) + loss * step / steps},
            }
            lines.append(json.dumps(record))
        now += (latest + sum(transfers.values())) / 1e3
    (folder / "steps" / "all.jsonl").write_text("\n".join(lines) + "\n")
    for host in hosts:
        (folder / "hosts" / f"{host.name}.json").write_bytes(msgspec.json.encode(host))
    told = {
        "schema": "smoldiag.run/1",
        "config": {"model": "tiny", "micro_batch": 4},
        "world": {"nodes": ranks // 2, "ranks": ranks, "hosts": list(dict.fromkeys(names))},
        "run": {"tokens_per_step": 1 << 20, "device": "NVIDIA H100 80GB HBM3"},
        "environment": {},
        "versions": {"torch": "2.8.0", "nccl": "2.27.5"},
    }
    (folder / "run.json").write_text(json.dumps(told | about))
    return folder


def _own(pick: random.Random, drift: float, noise: float, added: Mapping[str, float] | None) -> dict[str, float]:
    """One rank's phases without collectives, in ms."""
    phases = {name: ms * drift * (1 + noise * pick.gauss(0, 1)) for name, ms in PHASES_MS.items()}
    for name, ms in (added or {}).items():
        phases[name] = phases.get(name, 0.0) + ms * (1 + noise * pick.gauss(0, 1))
    return phases
