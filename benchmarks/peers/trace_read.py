"""`smoldiag explain` on traces of torch.profiler, beside HolisticTraceAnalysis and beside plain decompress and decode.

    python -m benchmarks.peers.trace_read [--hta-python VENV/bin/python] [--ranks 64] [--gigabytes 2] [TRACE ...]

Writes a trace of 35 MB (or takes those that are named), reads it with all three, and prints seconds and peak memory
of each; then many ranks of it, and a long one. HolisticTraceAnalysis 0.5.0 (temporal breakdown and overlap, without
plots) runs in the Python that is named, for it brings pandas and plotly: `pip install HolisticTraceAnalysis==0.5.0`.
"""

import argparse
import gzip
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

ROOT = Path(__file__).parent.parent.parent
ROUNDS = 3
LAYERS, KERNELS_OF_LAYER, OPERATORS_OF_KERNEL = 32, 45, 15
STEP_US = 75_000.0
FIRST_NUMBER = 1 << 20  # of a launch: jobs have launched many before they are traced
PEER = """
import logging, os, sys
logging.disable(logging.CRITICAL)
from hta.trace_analysis import TraceAnalysis
t = TraceAnalysis(trace_files={0: sys.argv[1]}, trace_dir=os.path.dirname(os.path.abspath(sys.argv[1])))
t.get_temporal_breakdown(visualize=False)
t.get_comm_comp_overlap(visualize=False)
"""
DECODE = """
import gzip, msgspec, sys
with (gzip.open if sys.argv[1].endswith("gz") else open)(sys.argv[1], "rb") as file:
    msgspec.json.decode(file.read())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="*", type=Path, help="traces to read instead of a written one")
    parser.add_argument("--hta-python", default=None, help="a Python that has HolisticTraceAnalysis")
    parser.add_argument("--ranks", type=int, default=64, help="traces read together; 0: leave that out")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the long trace; 0: leave that out")
    options = parser.parse_args()
    if not options.hta_python:
        print("HolisticTraceAnalysis is left out: name a Python that has it with --hta-python")
    print(f"{len(os.sched_getaffinity(0))} cores; seconds and peak memory of the whole command")
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder, "rank0.json.gz")
        if not options.traces:
            write(one, rank=0)
        for path in options.traces or [one]:
            beside(path, options.hta_python)
        if options.ranks:
            first = Path(folder, "ranks")
            first.mkdir()
            for rank in range(options.ranks):
                write(first / f"rank{rank}.json.gz", rank=rank)
            show(f"{options.ranks} ranks of 35 MB", measured(explain(first)))
        if options.gigabytes:
            path = Path(folder, "long.json")
            write(path, rank=0, num_bytes=options.gigabytes * 1e9)
            show(f"one trace of {path.stat().st_size / 1e9:.2f} GB", measured(explain(path)))


def beside(path: Path, hta_python: str | None) -> None:
    """In turns, so that what else the machine does hits all of them."""
    print(f"{path.name}, {path.stat().st_size / 1e6:.1f} MB:")
    commands = {"smoldiag explain": explain(path), "decompress, decode": [sys.executable, "-c", DECODE, str(path)]}
    if hta_python:
        commands["HTA"] = [hta_python, "-c", PEER, str(path)]
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            runs[name].append(measured(command))
    best = {name: min(of_name) for name, of_name in runs.items()}
    ours = best["smoldiag explain"]
    for name, run in best.items():
        times = f"; smoldiag: {ours.seconds / run.seconds:.2f} of its time, {ours.mb / run.mb:.2f} of its memory"
        show(name, run, "" if run is ours else times)


def explain(path: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "smoldiag",
        "explain",
        str(path),
        "--definition",
        "hta",
        "--facts",
        "--format",
        "json",
    ]


class Run(NamedTuple):
    seconds: float
    cpu_s: float
    mb: float  # at most of any of its processes
    said: str  # why it failed


def measured(command: list[str]) -> Run:
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=out, cwd=ROOT)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        out.seek(0)
        said = out.read().strip().rpartition("\n")[2] if child.returncode else ""
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3, said)


def show(name: str, run: Run, more: str = "") -> None:
    print(
        f"  {name:24} {run.seconds:7.2f} s ({run.cpu_s:.2f} s CPU) {run.mb:5.0f} MB{more} {run.said[:200]}", flush=True
    )


def write(path: Path, *, rank: int, num_bytes: float = 35e6) -> None:
    """A trace as Kineto writes it: operators, launches, kernels, flows, an all-gather or reduce-scatter per layer."""
    head = {
        "schemaVersion": 1,
        "deviceProperties": [{"id": 0, "name": "NVIDIA H100 80GB HBM3", "computeMajor": 9, "computeMinor": 0}],
        "distributedInfo": {"backend": "nccl", "rank": rank, "world_size": 64},
    }
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb", **({"compresslevel": 1} if path.suffix == ".gz" else {})) as file:
        file.write(msgspec.json.encode(head)[:-1] + b',\n"traceEvents": [\n')
        written = step = 0
        while written < num_bytes:
            events = msgspec.json.encode(list(_step(rank, step)))[1:-1].replace(b'},{"ph"', b'},\n  {"ph"')
            written += file.write(events if step == 0 else b",\n" + events)
            step += 1
        file.write(b'\n],\n"traceName": "/tmp/trace.json"\n}\n')


def _step(rank: int, step: int) -> Iterator[dict[str, Any]]:
    numbers = random.Random(rank * 1_000_003 + step)
    at = 1.7e15 + step * STEP_US
    number = FIRST_NUMBER + step * LAYERS * (KERNELS_OF_LAYER + 2) * 2
    yield _event("user_annotation", f"ProfilerStep#{step}", 1, 1, at, STEP_US, {"External id": number, "Ev Idx": 0})
    device = at + 500.0
    for layer in range(2 * LAYERS):
        host = at + layer * STEP_US / LAYERS / 2
        for kernel in range(KERNELS_OF_LAYER // 2):
            for operator in range(OPERATORS_OF_KERNEL):
                args = {"External id": number, "Input Dims": [[8, 4096, 4096], [4096]], "Ev Idx": operator}
                yield _event("cpu_op", f"aten::op_{kernel}_{operator}", 1, 1, host + operator, 20 - operator, args)
            took = 20.0 + numbers.random() * 10
            yield from _launch(number, host + 8, f"void kernel_{kernel}<float, 4>(float*, int)", device, took, 7, {})
            number, host, device = number + 1, host + 22, device + took + 1
        name = "all_gather_into_tensor" if layer < LAYERS else "reduce_scatter"
        args = {"Collective name": name, "In msg nelems": 1 << 20, "Out msg nelems": 1 << 26, "Group size": 64}
        args |= {"dtype": "BFloat16", "Process Group Name": "0", "Process Group Ranks": "[0, 1, 2, 3, ...]"}
        kind = "AllGather" if layer < LAYERS else "ReduceScatter_Sum_bf16"
        yield from _launch(number, host, f"ncclDevKernel_{kind}_RING_LL", device - 300, 400.0, 20, args)
        number += 1


def _launch(
    number: int, host: float, name: str, start: float, took: float, stream: int, args: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    yield _event("cuda_runtime", "cudaLaunchKernel", 1, 1, host, 5.0, {"External id": number, "correlation": number})
    yield {"ph": "s", "id": number, "pid": 1, "tid": 1, "ts": host, "cat": "ac2g", "name": "ac2g"}
    shape = {
        "device": 0,
        "context": 1,
        "stream": stream,
        "correlation": number,
        "grid": [64, 1, 1],
        "block": [128, 1, 1],
    }
    yield _event("kernel", name, 0, stream, max(start, host + 5), took, shape | args)
    yield {"ph": "f", "id": number, "pid": 0, "tid": stream, "ts": start, "cat": "ac2g", "name": "ac2g", "bp": "e"}


def _event(cat: str, name: str, pid: int, tid: int, ts: float, dur: float, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": args}


if __name__ == "__main__":
    main()
