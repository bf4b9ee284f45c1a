"""How often `smoldiag preflight` names exactly the host that something is wrong with, on four hosts of a lab.

    python -m benchmarks.peers.preflight_faults [--repeats 5] [--healthy 20] [--only "shaped link"]

Needs root (network namespaces). Right: exactly the guilty host is not GO; of healthy hosts, the whole is GO.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tests.lab import preflight, ssh
from tests.lab.bench import Ran
from tests.lab.hosts import Lab

HOSTS = 4
HEALTHY = "healthy"


@dataclass(frozen=True, kw_only=True)
class Trial:
    right: bool
    seconds: float
    decision: str
    accused: tuple[str, ...]
    codes: tuple[str, ...]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--healthy", type=int, default=20)
    arguments.add_argument("--only", action="append", choices=[HEALTHY, *preflight.FAULTS])
    options = arguments.parse_args()
    wanted = options.only or [*preflight.FAULTS, HEALTHY]
    missed = 0
    print(f"{'fault':<17}{'right':>9}{'seconds':>15}  decision, and the first finding")
    with Lab(HOSTS) as lab:
        ssh.start(lab)
        for name in wanted:
            repeats = options.healthy if name == HEALTHY else options.repeats
            trials = [trial(lab, name, number % HOSTS) for number in range(repeats)]
            missed += sum(not t.right for t in trials)
            print(row(name, trials), flush=True)
    sys.exit(int(missed > 0))


def trial(lab: Lab, name: str, index: int) -> Trial:
    if name == HEALTHY:
        return judged(preflight.start(lab).ended(timeout=120), guilty="")
    ran = preflight.with_fault(lab, preflight.FAULTS[name], index)
    lab.restore()
    return judged(ran, guilty=lab.hosts[index].name)


def judged(ran: Ran, *, guilty: str) -> Trial:
    said = preflight.report(ran)
    accused = tuple(preflight.accused(said))
    decision = said["preflight"]["decision"]
    return Trial(
        right=(accused == (guilty,)) if guilty else decision == "GO",
        seconds=ran.seconds,
        decision=decision,
        accused=accused,
        codes=tuple(f["code"] for f in said["findings"] if f["severity"] != "info"),
    )


def row(name: str, trials: Sequence[Trial]) -> str:
    times = sorted(t.seconds for t in trials)
    right = f"{sum(t.right for t in trials)} of {len(trials)}"
    first = dict.fromkeys(f"{t.decision} {t.codes[0] if t.codes else ''}".strip() for t in trials)
    wrong = "".join(f"\n    {t.decision}: {', '.join(t.accused)} ({', '.join(t.codes)})" for t in trials if not t.right)
    return f"{name:<17}{right:>9}{times[0]:>7.1f} to {times[-1]:>4.1f}  {'; '.join(first)}{wrong}"


if __name__ == "__main__":
    main()
