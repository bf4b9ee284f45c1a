"""One job as Slurm remembers it: its state and hosts, and where its output went."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from smoldiag.errors import SmoldiagError

TIMEOUT_S = 20  # of one command; slurmctld may be busy
SACCT_FIELDS = "JobID,JobName,State,ExitCode,NodeList,Elapsed,Timelimit,MaxRSS,Restarts"


@dataclass(frozen=True, kw_only=True)
class Job:
    files: tuple[str, ...]  # its output, as far as it is there
    record: str  # what scontrol and sacct say of it
    missing: tuple[str, ...] = ()  # output that is named and not there


def job(number: str) -> Job:
    """SmoldiagError where Slurm is not there, or knows nothing of the job."""
    if not re.fullmatch(r"\d{1,12}(?:_\d{1,9})?(?:\+\d{1,4})?", number):
        raise SmoldiagError(f"--job {number[:40]!r} is no job id", hint="a number, as squeue and sacct print it")
    shown = _said("scontrol", "show", "job", "-o", number)
    accounted = _said("sacct", "-j", number, "-P", "-o", SACCT_FIELDS)
    if shown is None and accounted is None:
        raise SmoldiagError("--job needs Slurm's scontrol or sacct, and neither is here", hint="name the job's log")
    record = "\n".join(filter(None, (shown, accounted)))
    if not re.search(rf"\b{re.escape(number.partition('_')[0])}\b", record):
        raise SmoldiagError(f"Slurm knows nothing of job {number}", hint="sacct -j JOB -S DATE looks further back")
    named = tuple(
        dict.fromkeys(_expanded(path, number, record) for path in re.findall(r"\bStd(?:Out|Err)=(\S+)", record))
    )
    there = tuple(path for path in named if Path(path).is_file() and path != "/dev/null")
    return Job(files=there, record=record, missing=tuple(p for p in named if p not in there and p != "/dev/null"))


def _said(*command: str) -> str | None:
    """What a command of Slurm prints; None where it is not there, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _expanded(path: str, number: str, record: str) -> str:
    """%j and alike, which scontrol leaves as they are where a job has not begun (sbatch(1), filename pattern)."""
    name = re.search(r"\bJobName=(\S+)", record)
    user = re.search(r"\bUserId=([^\s(]+)", record)
    known = {"%j": number, "%A": number.partition("_")[0], "%a": number.partition("_")[2]}
    known |= {"%x": name[1] if name else "%x", "%u": user[1] if user else "%u"}
    for sign, value in known.items():
        path = path.replace(sign, value)
    return path
