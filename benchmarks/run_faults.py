"""Faults put into runs of the trainer, and what `smoldiag explain` makes of the run folder alone.

    python -m benchmarks.run_faults [--rounds 3] [--clean 10] [--only NAME] [--keep FOLDER]

Each fault is run between two clean runs of the same shape. Printed for each: the first cause and where it is said to
be, the time of a step with the fault, what the replay says that it would be without, and what it is without, in the
clean runs. Then clean runs alone: how many say anything above `info`. Those with several hosts build a lab, as root.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "SMOLDIAG_METADATA": "off", "HF_HUB_OFFLINE": "1"}
STEPS = 60
TOLERANCE = 0.10  # of the step time without the fault


@dataclass(frozen=True, kw_only=True)
class Case:
    """One fault: how it is put in, and what must be said of it."""

    name: str
    cause: str
    fault: str = ""  # a flag of the trainer
    options: tuple[str, ...] = ()
    hosts: int = 1  # 1: two ranks here; more: a lab of so many hosts with one rank each
    befall: Callable[[Any], object] | None = None  # what happens to the lab
    ranks: tuple[int, ...] | None = None  # that must be named; None: not asked
    where: tuple[str, ...] = ()  # hosts that must be named
    replayed: bool = True  # whether the run goes on, so that there is a step time without the fault


CASES = (
    Case(name="slow loader, rank 1", cause="dataloader-stall", fault="slow-loader:ranks=1,seconds=0.05", ranks=(1,)),
    Case(name="slow loader, all", cause="dataloader-stall", fault="slow-loader:seconds=0.05", ranks=()),
    Case(
        name="periodic stall", cause="dataloader-stall", fault="periodic-stall:ranks=0,seconds=0.3,every=5", ranks=(0,)
    ),
    Case(name="slow rank", cause="straggler-rank", fault="slow-rank:ranks=1,seconds=0.05", ranks=(1,)),
    Case(name="GC storms, all", cause="gc-stragglers", fault="gc-storm", ranks=()),
    Case(name="GC storms, rank 1", cause="gc-stragglers", fault="gc-storm:ranks=1,every=2", ranks=(1,)),
    Case(name="checkpoint every 3", cause="checkpoint-stall", options=("--checkpoint-every", "3"), ranks=()),
    Case(
        name="uneven data",
        cause="uneven-data-across-ranks",
        fault="uneven-data:ranks=1,at=20",
        options=("--timeout", "10"),
        ranks=(1,),
        replayed=False,
    ),
    Case(
        name="CPU quota, 1 of 2 hosts",
        cause="straggler-rank",
        hosts=2,
        befall=lambda lab: lab.hosts[1].cpu_quota(0.3),
        where=("node1",),
    ),
    Case(
        name="slow host of three",
        cause="straggler-rank",
        hosts=3,
        befall=lambda lab: lab.hosts[2].cpu_quota(0.2),
        where=("node2",),
    ),
    Case(
        name="slow host by flag",
        cause="straggler-rank",
        hosts=3,
        fault="slow-rank:ranks=2,seconds=0.05",
        where=("node2",),
        ranks=(2,),
    ),
    Case(
        name="shaped link, 2 hosts",
        cause="slow-link",
        hosts=2,
        befall=lambda lab: lab.hosts[1].shape("200mbit"),
        where=("node1",),
    ),
    Case(
        name="shaped link, 3 hosts",
        cause="slow-link",
        hosts=3,
        befall=lambda lab: lab.hosts[0].shape("200mbit"),
        where=("node0",),
    ),
)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=1)
    arguments.add_argument("--clean", type=int, default=10, help="clean runs of each shape")
    arguments.add_argument("--only", default="", help="cases whose names contain this")
    arguments.add_argument("--keep", type=Path, help="keep the run folders here")
    given = arguments.parse_args()
    cases = [c for c in CASES if given.only in c.name]
    with ExitStack() as stack:
        folder = given.keep.absolute() if given.keep else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        labs = {n: stack.enter_context(_lab(n)) for n in sorted({c.hosts for c in cases if c.hosts > 1})}
        print(f"{'fault':26} {'first cause':18} {'where':16} {'with':>7} {'what if':>8} {'without':>8} {'off by':>7}")
        wrong = 0
        for number in range(given.rounds):
            for case in cases:
                wrong += not shown(case, labs.get(case.hosts), folder / f"{number}-{case.name.replace(' ', '-')}")
        alarms = [said for n in (1, *labs) for said in clean(n, labs.get(n), folder / f"clean-{n}", given.clean)]
        print(f"{wrong} wrong of {given.rounds * len(cases)}; clean runs with more than info: {len(alarms)} {alarms}")


def shown(case: Case, lab: Any, folder: Path) -> bool:
    """One line of the table; whether all in it is as it must be."""
    without = [measured(trained(case, lab, folder / "before", faulty=False))]
    faulty = explained(trained(case, lab, folder / "fault", faulty=True))
    without.append(measured(trained(case, lab, folder / "after", faulty=False)))
    first: dict[str, Any] = next(iter(faulty["findings"]), {"cause": "none", "where": {"hosts": [], "ranks": []}})
    named: dict[str, list[Any]] = first["where"]
    told = faulty["facts"]["run"]["what_if"]
    what_if = next((w for w in told if w["cause"] == first["cause"]), None)
    right = first["cause"] == case.cause and (case.ranks is None or tuple(named["ranks"]) == case.ranks)
    right = right and (not case.where or tuple(named["hosts"]) == case.where)
    where = ",".join([*named["hosts"], *map(str, named["ranks"])])
    line = f"{case.name:26} {first['cause']:18} {where:16} {measured(faulty) / 1e3:7.1f}"
    if case.replayed and what_if:
        off = what_if["without_us"] / mean(without) - 1
        right = right and abs(off) <= TOLERANCE
        line += f" {what_if['without_us'] / 1e3:8.1f} {mean(without) / 1e3:8.1f} {off:+7.1%}"
    print(line + ("" if right else "   WRONG"), [f"{w / 1e3:.1f}" for w in without], flush=True)
    return right


def clean(hosts: int, lab: Any, folder: Path, count: int) -> Iterator[str]:
    """What is said above info."""
    for number in range(count):
        report = explained(trained(Case(name="clean", cause="", hosts=hosts), lab, folder / str(number), faulty=False))
        print(f"clean, {hosts} hosts: {report['verdict']}, {measured(report) / 1e3:.1f} ms", flush=True)
        yield from (f["cause"] for f in report["findings"] if f["severity"] != "info")


def trained(case: Case, lab: Any, folder: Path, *, faulty: bool) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    fault = ["--fault", case.fault] if case.fault else []
    options = ["--steps", str(STEPS), "--fail-on", "never", *([*fault, *case.options] if faulty else ())]
    if lab is None:
        command = [
            sys.executable,
            "-m",
            "smoldiag",
            "train",
            "--ranks-per-node",
            "2",
            "--output",
            str(folder),
            *options,
        ]
        subprocess.run(command, env=ENV, cwd="/", capture_output=True, timeout=300)
        return folder
    from tests.lab.test_train_hosts import over_ssh

    if faulty and case.befall:
        case.befall(lab)
    try:
        names = [h.name for h in lab.hosts]
        over_ssh(lab, names, "--output", folder, "--ranks-per-node", "1", *options).ended(timeout=300)
    finally:
        lab.restore()
    return folder


def explained(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "smoldiag", "explain", str(folder), "--format", "json", "--facts"]
    done = subprocess.run(command, env=ENV, cwd="/", capture_output=True, text=True, timeout=120)
    return dict(json.loads(done.stdout))


def measured(run: Path | dict[str, Any]) -> float:
    """Mean step, of the slowest rank, in us."""
    report = explained(run) if isinstance(run, Path) else run
    return float(report["facts"]["run"]["step_us"])


def _lab(hosts: int) -> Any:
    from tests.lab import ssh
    from tests.lab.hosts import Lab

    made = Lab(hosts)
    ssh.start(made)
    return made


if __name__ == "__main__":
    main()
