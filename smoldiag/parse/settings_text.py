"""Files that set variables -> Host with its Env: scripts, command lines, listings of an environment, nccl.conf."""

import re
from collections.abc import Iterable
from dataclasses import replace

from smoldiag.facts import Host, Variable
from smoldiag.parse import host_of_file, script

MAX_LINES = 20_000

_NAMES = (".sh", ".bash", ".sbatch", ".slurm", ".env", ".conf", ".yaml", ".yml", "dockerfile", ".dockerfile", ".srun")
_STARTS = re.compile(
    r"^#!|^#SBATCH\b|^\s*export [A-Z]\w*=|^\s*-x [A-Z]\w*|^\s*(?:\$ )?(?:[A-Z][A-Z0-9_]*=\S* +)+\S|"
    r"^\s*(?:\$ )?(?:mpirun|mpiexec|srun|torchrun|accelerate launch|deepspeed|python3? -m torch\.distributed)\b|"
    r"^apiVersion:",
    re.MULTILINE,
)
_LISTING = re.compile(r"^(?:declare -x |export )?[A-Za-z_][A-Za-z0-9_]*=.*$")
_LOG = re.compile(r"NCCL (?:INFO|WARN)|\[rank\d|Traceback \(most recent")
_BENCH = re.compile(r"\b(?:all_reduce|all_gather|reduce_scatter|alltoall|broadcast|reduce|sendrecv)_perf\b")
MIN_LISTED = 3
LISTED_SHARE = 0.8  # of the lines


def looks_like(name: str, head: bytes) -> bool:
    """By name or by how its lines start; logs, which print variables and commands too, are left to their readers."""
    text = head.decode("utf-8", "replace")
    if _LOG.search(text):
        return False
    known = name.lower().endswith(_NAMES) and ("=" in text or ":" in text)
    return known or bool(_STARTS.search(text)) or _is_listing(text.splitlines())


def host(lines: Iterable[str], *, where: str) -> Host:
    """ValueError where nothing is set that matters to training."""
    kept = [line for line, _ in zip(lines, range(MAX_LINES), strict=False)]
    text = "\n".join(kept)
    env = script.parse(text, file=where, export_all=_is_listing(kept) or None)
    if _BENCH.search(text):
        env = replace(env, variables=tuple(v for v in env.variables if not is_choice_of_a_bench(v)))
    if not env.variables:
        raise ValueError(f"{where}: sets no variable of NCCL, torch or their libraries")
    return Host(name=host_of_file.name(where), env=env)


def is_choice_of_a_bench(variable: Variable) -> bool:
    """Benches force an algorithm, or the protocol for large messages, to measure just that; tables judge the result."""
    return variable.name == "NCCL_ALGO" or (variable.name == "NCCL_PROTO" and variable.value.lower() == "simple")


def _is_listing(lines: list[str]) -> bool:
    """`env`, `printenv`, `export -p`."""
    told = [line for line in lines if line.strip() and not line.startswith("#")]
    listed = sum(bool(_LISTING.match(line)) for line in told)
    return listed >= MIN_LISTED and listed >= LISTED_SHARE * len(told)
