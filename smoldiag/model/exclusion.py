"""Lines that keep hosts out of jobs, and files that schedulers read."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

MAX_CAUSES = 3  # in the reason of a drained node
PLAIN = re.compile(r"[A-Za-z0-9._-]{1,255}")  # what a node of Slurm or Kubernetes is called


def commands(causes: Mapping[str, Sequence[str]], *, of: str = "preflight") -> tuple[tuple[str, str], ...]:
    """Scheduler and line: an option that leaves these hosts out of a job, and lines that take them out of service."""
    hosts = [h for h in causes if PLAIN.fullmatch(h)]
    if not hosts:
        return ()
    drains = (
        f"scontrol update nodename={host} state=drain reason={shlex.quote(reason(causes[host], of=of))}"
        for host in hosts
    )
    return (
        ("slurm", f"--exclude={','.join(hosts)}"),
        *(("slurm", line) for line in drains),
        *(("kubernetes", f"kubectl cordon {host}") for host in hosts),
    )


def reason(causes: Sequence[str], *, of: str = "preflight") -> str:
    return f"smoldiag {of}: " + ", ".join(dict.fromkeys(causes[:MAX_CAUSES]))


def host_file(hosts: Iterable[str]) -> str:
    """One host per line: for `srun -w ./FILE` or `--exclude=./FILE`, which take a name with a slash for a file."""
    return "".join(f"{host}\n" for host in hosts)
