"""Whether `smoldiag explain` says the same of a failure told otherwise: mutated logs, and failures lost in a long log.

    python -m benchmarks.explain_mutations FOLDER [--cases 10] [--each 30] [--spread]

Each mutation of a case changes how the log is told: names of hosts, numbers of ranks, the layout of NCCL's lines,
prefixes of launchers, lines of other ranks in between, colours and line ends, what stands before or after the decisive
line. Where the decisive line itself is cut away, the answer may be another, but must not be `certain`.

With --spread the lines of each case stand, in their order, between the 100,000 lines of a healthy job of 64 ranks that
had two attempts before, which ended otherwise.
"""

import argparse
import random
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import explain_score as scoring
from smoldiag.errors import SmoldiagError
from smoldiag.explain import explain
from smoldiag.findings import Confidence, Finding, Severity

HOST = re.compile(r"(?:^|(?<=[\s>]))([A-Za-z][\w.-]{1,80})(?=:\d{1,7}:\d{1,7} \[)")
RANKED = re.compile(r"(\[[Rr]ank ?)(\d+)(\])")
WARN = re.compile(r"(:\d+:\d+ \[\d+\]) (\S+:\d+) NCCL WARN ")
NCCL_START = re.compile(r"^(?=\S+:\d+:\d+ \[\d+\] )")
RANKS, STEPS, LINES = 64, 1500, 100_000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=10, help="how many of the folder's failures are mutated")
    parser.add_argument("--each", type=int, default=30)
    parser.add_argument("--spread", action="store_true", help="spread each failure into a long healthy log instead")
    options = parser.parse_args(arguments)
    groups = scoring.equivalents(options.folder)
    cases = [c for c in scoring.cases(options.folder) if c[1]["root_cause"] != scoring.HEALTHY]
    with tempfile.TemporaryDirectory() as folder:
        if options.spread:
            return spread(cases, groups, Path(folder))
        rng = random.Random(7)
        chosen = rng.sample(cases, min(options.cases, len(cases)))
        return mutated(chosen, groups, options.each, Path(folder))


def mutated(
    cases: Sequence[tuple[Path, dict[str, Any], list[Path]]], groups: Sequence[set[str]], each: int, folder: Path
) -> int:
    same = honest = wrong = total = 0
    for case, label, paths in cases:
        rng = random.Random(case.name)
        text = "\n".join(p.read_text(errors="replace") for p in paths)
        decisive = [line.strip() for e in label.get("decisive_evidence", ()) for line in e.split("\n") if line.strip()]
        for number in range(each):
            how, told, kept = mutation(text, decisive, number, rng)
            findings = found(told, folder / "job.log")
            hit = bool(findings) and findings[0].cause in accepted(label, groups)
            sure = bool(findings) and findings[0].confidence is Confidence.CERTAIN
            total += 1
            same += hit
            honest += not hit and not kept and not sure
            if not hit and (kept or sure):
                wrong += 1
                said = f"{findings[0].cause} ({findings[0].confidence.value})" if findings else "nothing"
                print(f"{case.name} {how}: said {said}")
    print(f"{total} mutations: same cause {same}, decisive line cut and not certain {honest}, wrong {wrong}")
    return int(wrong > 0)


def accepted(label: dict[str, Any], groups: Sequence[set[str]]) -> set[str]:
    names = {label["root_cause"], *label.get("also_consistent_with", ())}
    return names | {slug for group in groups if group & names for slug in group}


def found(text: str, path: Path) -> list[Finding]:
    path.write_text(text)
    try:
        return [f for f in explain([str(path)]).report.findings if f.severity is not Severity.INFO]
    except SmoldiagError:
        return []


def mutation(text: str, decisive: Sequence[str], number: int, rng: random.Random) -> tuple[str, str, bool]:
    """How, the log told so, and whether its decisive lines are still there."""
    how, change = MUTATIONS[number % len(MUTATIONS)]
    lines = text.split("\n")
    at = [i for i, line in enumerate(lines) if any(d in line for d in decisive)]
    if how == "without the decisive line":
        return how, "\n".join(line for i, line in enumerate(lines) if i not in at), False
    if how == "cut after the decisive line" and at:
        return how, "\n".join(lines[: at[-1] + 1]), True
    if how == "cut before the decisive line" and at:
        return how, "\n".join(lines[at[0] :]), True
    return how, "\n".join(change(lines, rng)), True


def hosts(lines: list[str], rng: random.Random) -> list[str]:
    names: dict[str, str] = {}

    def renamed(match: re.Match[str]) -> str:
        return names.setdefault(match[1], f"{rng.choice(['gpu', 'n', 'ip-10-1-2-', 'worker-'])}{rng.randrange(9999)}")

    return [HOST.sub(renamed, line) for line in lines]


def rank_numbers(lines: list[str], rng: random.Random) -> list[str]:
    more = rng.choice([8, 64, 1016])
    return [RANKED.sub(lambda m: f"{m[1]}{int(m[2]) + more}{m[3]}", line) for line in lines]


def newer_layout(lines: list[str], rng: random.Random) -> list[str]:
    return [
        f"[2026-03-0{rng.randrange(1, 9)} 10:11:12] " + WARN.sub(r"\1 \2 (ncclSomeFunction) NCCL WARN ", line)
        if WARN.search(line)
        else line
        for line in lines
    ]


def prefixed(lines: list[str], rng: random.Random) -> list[str]:
    rank = rng.randrange(64)
    prefix = rng.choice(
        [
            f"[rank{rank}]: ",
            f"{rank}: ",
            f"[1,{rank}]<stderr>:",
            f"[default{rank % 8}]:",
            f"node{rank // 8}: ",
            "2026-03-01T10:11:12.123456789Z stderr F ",
            f"[pod/train-worker-{rank}/pytorch] ",
            f"(RayTrainWorker pid={4000 + rank}, ip=10.0.0.{rank}) ",
        ]
    )
    return [prefix + line for line in lines]


def interleaved(lines: list[str], rng: random.Random) -> list[str]:
    told: list[str] = []
    for line in lines:
        told += [next(_noise(rng)) for _ in range(rng.randrange(4))]
        told.append(line)
    return told


def _noise(rng: random.Random) -> Iterator[str]:
    rank, step = rng.randrange(64), rng.randrange(5000)
    yield rng.choice(
        [
            f"[rank{rank}]: step {step} | loss {rng.random() * 9:.3f} | tokens/s {rng.randrange(99999)}",
            f"node{rank // 8}:{4000 + rank}:{5000 + rank} [{rank % 8}] NCCL INFO Connected all rings",
            "",
            f"INFO:root:batch {step} read in {rng.random():.3f} s",
        ]
    )


def coloured(lines: list[str], rng: random.Random) -> list[str]:
    return [f"\x1b[3{rng.randrange(1, 8)}m{line}\x1b[0m\r" for line in lines]


def cut_lines(lines: list[str], rng: random.Random) -> list[str]:
    return [line[:1000] for line in lines]


def repeated(lines: list[str], rng: random.Random) -> list[str]:
    return [line for line in lines for _ in range(rng.randrange(1, 4))]


def same(lines: list[str], rng: random.Random) -> list[str]:
    return lines


Change = Callable[[list[str], random.Random], list[str]]
MUTATIONS: tuple[tuple[str, Change], ...] = (
    ("other hosts", hosts),
    ("other ranks", rank_numbers),
    ("newer layout", newer_layout),
    ("launcher prefix", prefixed),
    ("interleaved", interleaved),
    ("colours and CRLF", coloured),
    ("cut lines", cut_lines),
    ("repeated lines", repeated),
    ("cut after the decisive line", same),
    ("cut before the decisive line", same),
    ("without the decisive line", same),
    ("launcher prefix and interleaved", lambda lines, rng: interleaved(prefixed(lines, rng), rng)),
)


def spread(cases: Sequence[tuple[Path, dict[str, Any], list[Path]]], groups: Sequence[set[str]], folder: Path) -> int:
    first = among = 0
    for case, label, paths in cases:
        rng = random.Random(case.name)
        lines = [line for p in paths for line in p.read_text(errors="replace").split("\n")]
        healthy = list(healthy_job(rng, pid=7000))[:LINES]
        places = sorted(rng.sample(range(len(healthy) // 4, len(healthy)), len(lines)))
        told = [*ended_attempt(rng, 3000), *ended_attempt(rng, 5000)]
        for i, place in enumerate([0, *places]):
            told += healthy[place : places[i] if i < len(places) else len(healthy)]
            told += lines[i : i + 1]
        causes = list(dict.fromkeys(f.cause for f in found("\n".join(told), folder / "job.log")))
        hit = [cause in accepted(label, groups) for cause in causes]
        first += hit[:1] == [True]
        among += any(hit[:3])
        if hit[:1] != [True]:
            print(f"{case.name}: wanted {label['root_cause']}, said {', '.join(causes[:4]) or 'nothing'}")
    print(f"spread over {LINES} lines: first {first}/{len(cases)}, among 3 {among}/{len(cases)}")
    return 0


def ended_attempt(rng: random.Random, pid: int) -> Iterator[str]:
    """An attempt that ended of something else, and was started again."""
    yield from list(healthy_job(rng, pid=pid))[:4000]
    yield "[rank7]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    yield "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:"
    yield "slurmstepd: error: *** JOB 4711 ON gpu-000 CANCELLED AT 2026-03-01T10:11:12 DUE TO REQUEUE ***"


def healthy_job(rng: random.Random, *, pid: int) -> Iterator[str]:
    """A job of 64 ranks on 8 hosts that is well."""
    yield "NCCL version 2.26.2+cuda12.8"
    for r in range(RANKS):
        head = f"gpu-{r // 8:03d}:{pid + r}:{pid + 500 + r} [{r % 8}] NCCL INFO"
        device = f"cudaDev {r % 8} nvmlDev {r % 8} busId {r % 8 + 1}b000"
        comm = f"comm 0x{pid + r:x} rank {r} nranks {RANKS} {device} commId 0x6"
        yield f"{head} Bootstrap: Using eth0:10.0.0.{r // 8 + 1}<0>"
        yield f"{head} NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/IB [RO]; OOB eth0:10.0.0.{r // 8 + 1}<0>"
        yield f"{head} Using network IB"
        yield f"{head} ncclCommInitRankConfig {comm} - Init START"
        yield f"{head} comm 0x{pid + r:x} rank {r} nRanks {RANKS} nNodes 8 localRanks 8 localRank {r % 8} MNNVL 0"
        for channel in range(8):
            yield f"{head} Channel {channel:02d}/0 : {r}[{r % 8}] -> {(r + 1) % RANKS}[{(r + 1) % 8}] via P2P/CUMEM"
        yield f"{head} Channel 00/0 : {r}[7] -> {(r + 1) % RANKS}[0] [send] via NET/IB/0/GDRDMA"
        yield f"{head} Connected all rings, use ring PXN 0 GDR 1"
        yield f"{head} ncclCommInitRankConfig {comm} - Init COMPLETE"
    for step in range(STEPS):
        for r in range(RANKS):
            loss = 9 / (1 + step / 200) + rng.random() / 9
            yield f"[rank{r}]: step {step} | loss {loss:.4f} | grad norm {rng.random():.3f}"


if __name__ == "__main__":
    sys.exit(main())
