"""Every check that needs an NVIDIA GPU, in one go and under nine minutes; the record goes to docs/measurements/.

    python benchmarks/gpu_check.py              # on a machine with one GPU or more
    python benchmarks/gpu_check.py --small      # the same steps on CPU with gloo, to try the script itself

A check that fails or hangs is recorded as such, and the next one runs. Exits with 1 where one failed.
"""

import argparse
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 540  # of all checks together
CHECK_S = 150  # of one
SIZES = {"gpu": "8B:256MiB:x8", "small": "8B:1MiB:x32"}
EVERY = "all_reduce,all_gather,reduce_scatter,broadcast,reduce,all_to_all"
PAIR_BYTES = [1 << 20, 16 << 20]


@dataclass
class Check:
    name: str
    passed: bool
    seconds: float
    command: str
    figures: dict[str, Any] = field(default_factory=dict)
    said: str = ""  # where it failed


@dataclass
class Way:
    """How it is run here."""

    small: bool

    @property
    def backend(self) -> str:
        return "gloo" if self.small else "nccl"

    @property
    def sizes(self) -> str:
        return SIZES["small" if self.small else "gpu"]


class Failed(Exception):
    """A check did not hold."""


def one_rank(way: Way) -> tuple[list[str], Callable[[str, str], dict[str, Any]]]:
    """All collectives with one rank on one GPU: device events, verification on the device, the verdict."""
    return smoldiag(
        way, "--ranks-per-node", "1", "--collective", EVERY, "--sizes", way.sizes, "--iterations", "5"
    ), bench_figures


def verdict_size(way: Way) -> tuple[list[str], Callable[[str, str], dict[str, Any]]]:
    """The default run: 1 GiB first, at most a quarter of the free memory."""
    ranks = "2" if way.small else "1"
    return smoldiag(way, "--ranks-per-node", ranks, "--budget", "10"), bench_figures


def model_sizes(way: Way) -> tuple[list[str], Callable[[str, str], dict[str, Any]]]:
    """FSDP's sizes in bfloat16, as a step."""
    model = "SmolLM-135M" if way.small else "SmolLM-1.7B"
    ranks = "2" if way.small else "1"
    return smoldiag(way, "--ranks-per-node", ranks, "--fsdp", model, "--budget", "10"), bench_figures


def all_types(way: Way) -> tuple[list[str], Callable[[str, str], dict[str, Any]]]:
    """bfloat16 sums stay exact on the device."""
    ranks = "2" if way.small else "1"
    more = ["--collective", EVERY, "--sizes", "1MiB", "--iterations", "5", "--dtype", "bfloat16"]
    return smoldiag(way, "--ranks-per-node", ranks, *more), bench_figures


def doctor(way: Way) -> tuple[list[str], Callable[[str, str], dict[str, Any]]]:
    """What NVML of a real driver gives our collector, and what the rules say of it."""
    return command("doctor", "--format", "json", "--facts", "--fail-on", "never"), doctor_figures


def topology(way: Way) -> tuple[list[str], Callable[[str, str], dict[str, Any]]]:
    """The GPU's place in the machine."""
    return command("topo", "--format", "json", "--fail-on", "never"), lambda out, err: {"document": json.loads(out)}


def train_monitored(way: Way) -> tuple[list[str], Callable[[str, str], dict[str, Any]]]:
    """The 360M model in bfloat16: device events, profiled windows, checkpoint, a trace that explain reads."""
    size = ("tiny", "--steps", "40") if way.small else ("360M", "--steps", "40", "--sequence", "2048")
    return trained(way, "monitored", *size, "--micro-batch", "4", "--trace", "2")


def train_mfu(way: Way) -> tuple[list[str], Callable[[str, str], dict[str, Any]]]:
    """MFU of the 1.7B model: compiled, bfloat16."""
    size = ("tiny", "--steps", "12") if way.small else ("1.7B", "--steps", "24", "--sequence", "2048", "--compile")
    return trained(way, "mfu", *size, "--micro-batch", "4")


def compute(way: Way) -> tuple[list[str], Callable[[str, str], dict[str, Any]]]:
    """Products of every type, their bits, and the GPU's clock, heat and limits meanwhile."""
    return probed(way, "compute", budget_s=3 if way.small else 25)


def memory(way: Way) -> tuple[list[str], Callable[[str, str], dict[str, Any]]]:
    """The GPU's memory, and the way to its host by size."""
    return probed(way, "memory", budget_s=2 if way.small else 15)


def links(way: Way) -> tuple[list[str], Callable[[str, str], dict[str, Any]]]:
    """From each GPU to each other one, where there are several."""
    return probed(way, "links", budget_s=2 if way.small else 15)


def resume(way: Way) -> tuple[list[str], Callable[[str, str], dict[str, Any]]]:
    """Steps of the reference trainer, and the last of them again from its checkpoint."""
    return probed(way, "resume")


def preflight(way: Way) -> tuple[list[str], Callable[[str, str], dict[str, Any]]]:
    """All stages that one host has, with one crew: process groups that come and go, the decision."""
    more = ("--backend", way.backend, "--trainer", "--budget", "60" if way.small else "90")
    return command("preflight", *more, "--format", "json", "--fail-on", "never"), preflight_figures


CHECKS = {
    f.__name__: f
    for f in (
        one_rank,
        verdict_size,
        model_sizes,
        all_types,
        doctor,
        topology,
        train_monitored,
        train_mfu,
        compute,
        memory,
        links,
        resume,
        preflight,
    )
}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "smoldiag", *words]


def smoldiag(way: Way, *more: str) -> list[str]:
    return command("nccl-bench", "--backend", way.backend, "--format", "json", "--busy-ok", *more)


def trained(way: Way, name: str, model: str, *more: str) -> tuple[list[str], Callable[[str, str], dict[str, Any]]]:
    """One rank on one GPU, with the rate and the parts of its steps."""
    folder = Path(tempfile.mkdtemp(prefix=f"smoldiag-gpu-check-{name}-"))
    dtype = "float32" if way.small else "bfloat16"
    options = ("--backend", way.backend, "--ranks-per-node", "1", "--dtype", dtype, "--busy-ok", "--fail-on", "never")
    words = command("train", "--model", model, *more, *options, "--format", "json", "--output", str(folder / "run"))
    return words, lambda out, err: run_figures(folder / "run", json.loads(out))


def probed(way: Way, name: str, **config: object) -> tuple[list[str], Callable[[str, str], dict[str, Any]]]:
    """A probe by hand on one GPU, and what the rules say of it."""
    env = ["env", f"SMOLDIAG_BACKEND={way.backend}", f"SMOLDIAG_CONFIG={json.dumps(config)}"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    return [*env, *launch, "-m", f"benchmarks.{name}"], lambda out, err: probe_figures(name, out, err)


def probe_figures(name: str, out: str, err: str) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT))
    from smoldiag import probes, rules

    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    record = next((line for line in lines if line["kind"] == name), None)
    if record is None:
        raise Failed(f"no record: {err[-3000:]}")
    known = rules.Known(probes=probes.read({name: {0: record}}, [socket.gethostname()]))
    outcomes = list(rules.run(known, [r for r in rules.RULES.values() if "probes" in r.needs]))
    if crashed := [o.crashed for o in outcomes if o.crashed]:
        raise Failed(crashed[0])
    assert known.probes
    findings = [f.message for o in outcomes for f in o.findings]
    return {"said": probes.in_words(known.probes), "findings": findings, "record": record}


def run_figures(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """From the run folder: median step, tokens/s, MFU, what the device did; and the trace read by explain."""
    sys.path.insert(0, str(ROOT))
    from smoldiag import explain, runs
    from smoldiag.model import steps as model

    run = runs.read(folder)
    budget = model.budget(run)
    if budget is None or report["verdict"] == "incomplete":
        raise Failed(json.dumps(report)[:3000])
    rate = model.tokens_per_s(run, budget.step_us)
    peak = runs.peak_tflops(run.device or "")
    traces = [str(p) for p in (folder / runs.TRACES).iterdir()]
    read = explain.explain(traces, with_facts=True).report if traces else None
    share = budget.shares[0]
    found = {
        "step_ms": budget.step_us / 1e3,
        "tokens_per_s": rate,
        "mfu": model.mfu(rate, run.flops_per_token, peak) if rate and run.flops_per_token else None,
        "phases_ms": {name: us / 1e3 for name, us in share.phases_us.items()},
        "unattributed_share": share.unattributed_us / share.step_us,
        "windows_us": [s.window_us for s in run.steps if s.window_us],
        "device_us": run.steps[-1].device_us,
        "trace": read.facts["trace"]["ranks"] if read and read.facts and "trace" in read.facts else None,
        "roofline": read.facts["trace"]["roofline"] if read and read.facts and "trace" in read.facts else None,
        "findings": [f["message"] for f in report["findings"]],
    }
    shutil.rmtree(folder.parent, ignore_errors=True)
    return found


def doctor_figures(out: str, err: str) -> dict[str, Any]:
    said = json.loads(out)
    crashed = [c for c in said["checks"] if c["status"] == "crashed"]
    if crashed:
        raise Failed(json.dumps(crashed)[:3000])
    hosts = said["facts"]["hosts"]
    findings = [f"{f['code']} {f['severity']}: {f['message']}" for f in said["findings"]]
    return {"gpus": [h.get("gpus") for h in hosts], "unread": [h.get("unread") for h in hosts], "findings": findings}


def preflight_figures(out: str, err: str) -> dict[str, Any]:
    """The decision and the stages; one that failed is a check that did not hold."""
    document = json.loads(out)
    said = document["preflight"]
    if failed := [s for s in said["stages"] if s["status"] == "failed"]:
        raise Failed(f"{failed[0]['name']}: {failed[0]['detail']}")
    return {"decision": said["decision"], "stages": said["stages"], "findings": document["findings"]}


def bench_figures(out: str, err: str) -> dict[str, Any]:
    said = json.loads(out)
    wrong = sum(r["wrong"] for r in said["results"])
    if wrong or not said["results"]:
        raise Failed(f"{len(said['results'])} results, {wrong} wrong elements: {json.dumps(said['findings'])[:2000]}")
    rows = [
        {key: r[key] for key in ("collective", "size_bytes", "busbw_gbs", "algbw_gbs", "iterations", "purpose")}
        | {"p50_us": r["time_us"]["p50"], "p99_us": r["time_us"]["p99"]}
        for r in said["results"]
    ]
    keep = ("verdict", "transport", "sets", "notes")
    return {k: said[k] for k in keep} | {"findings": [f["message"] for f in said["findings"]], "rows": rows}


def two_ranks_on_one_gpu(way: Way, extra: dict[str, str]) -> Check:
    """Two ranks share the GPU; NCCL takes them for two hosts where each has its own NCCL_HOSTID.

    Real NCCL between two processes, over its socket transport; the log is then read by our own reader.
    """
    config = {"collectives": EVERY.split(","), "sizes": PAIR_BYTES if not way.small else [1 << 16], "typed_sizes": True}
    config |= {"iterations": 10, "any_size": True, "groups": ["all"]}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [Path(os.environ.get("TMPDIR", "/tmp")) / f"smoldiag-gpu-check-{os.getpid()}-{rank}.log" for rank in (0, 1)]
    base = os.environ | {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    base |= {"MASTER_PORT": str(port), "SMOLDIAG_CONFIG": json.dumps(config), "SMOLDIAG_BACKEND": way.backend}
    base |= {
        "NCCL_DEBUG": "INFO",
        "NCCL_DEBUG_SUBSYS": "INIT,NET,ENV,GRAPH",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, "-m", "benchmarks.collectives"]
    began = time.monotonic()
    running = []
    for rank in (0, 1):
        own = {"RANK": str(rank), "NCCL_DEBUG_FILE": str(logs[rank])}
        own |= {k: v.replace("RANK", str(rank)) for k, v in extra.items()}
        running.append(
            subprocess.Popen(
                command, env=base | own, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
    name = "two_ranks_on_one_gpu " + " ".join(f"{k}={v}" for k, v in extra.items())
    try:
        said = [p.communicate(timeout=CHECK_S) for p in running]
        records = [json.loads(line) for line in said[0][0].splitlines() if line.startswith("{")]
        results = [r for r in records if r["kind"] == "result"]
        if any(p.returncode for p in running) or not results or any(r["wrong"] for r in results):
            raise Failed(f"{len(results)} results; " + said[0][1][-3000:] + said[1][1][-1500:])
        figures: dict[str, Any] = {
            "rows": [{k: r[k] for k in ("collective", "size_bytes", "busbw_gbs")} for r in results]
        }
        figures |= read_log(logs[0]) if not way.small else {}
        return Check(name, True, time.monotonic() - began, " ".join(command), figures)
    except (Failed, ValueError, KeyError, subprocess.TimeoutExpired) as error:
        figures = {"log": logs[0].read_text(errors="replace")[-4000:]} if logs[0].is_file() else {}
        return Check(name, False, time.monotonic() - began, " ".join(command), figures, said=str(error)[-4000:])
    finally:
        for p in running:
            if p.poll() is None:
                p.kill()
        for log in logs:
            log.unlink(missing_ok=True)


def read_log(log: Path) -> dict[str, Any]:
    """What our reader makes of what NCCL really printed; it must find the network, the version and the ranks."""
    sys.path.insert(0, str(ROOT))
    from smoldiag.parse import nccl_log

    lines = log.read_text(errors="replace").splitlines()
    t = nccl_log.parse(lines, where="NCCL's log")
    if t.nccl_version is None or t.network is None or t.ranks != 2:
        raise Failed(
            f"the log reader found version {t.nccl_version}, network {t.network}, ranks {t.ranks} in {len(lines)} lines"
        )
    return {"transport": asdict(t) | {"evidence": len(t.evidence)}, "log_lines": len(lines)}


def run(name: str, command: list[str], figures: Callable[[str, str], dict[str, Any]], limit_s: float) -> Check:
    began, shown = time.monotonic(), " ".join(command[1:])
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, cwd=ROOT, check=False)
        found = figures(done.stdout, done.stderr)
        return Check(name, True, time.monotonic() - began, shown, found)
    except subprocess.TimeoutExpired:
        return Check(name, False, limit_s, shown, said=f"not finished within {limit_s:.0f} s")
    except (Failed, ValueError, KeyError) as error:
        return Check(name, False, time.monotonic() - began, shown, said=f"{error}\n{done.stderr[-3000:]}")


def machine() -> dict[str, Any]:
    import torch

    cuda: Any = torch.cuda
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "kernel": platform.release(),
    }
    if cuda.is_available():
        found |= {"gpu": cuda.get_device_name(0), "gpus": cuda.device_count(), "cuda": torch.version.cuda}
        found["nccl"] = ".".join(map(str, cuda.nccl.version()))
        driver = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
        found["driver"] = driver.stdout.strip().partition("\n")[0]
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--small", action="store_true", help="on CPU, with gloo")
    arguments.add_argument("--output", type=Path, default=ROOT / "docs/measurements", help="folder of the record")
    given = arguments.parse_args()
    way, about, began = Way(small=given.small), machine(), time.monotonic()
    if not way.small and "gpu" not in about:
        raise SystemExit("no GPU here; --small tries the same steps on CPU")
    done: list[Check] = []

    def over() -> float:
        return LIMIT_S - (time.monotonic() - began)

    for name, make in CHECKS.items():
        command, figures = make(way)
        done.append(run(name, command, figures, max(min(CHECK_S, over()), 1)))
        print(f"{'ok    ' if done[-1].passed else 'FAILED'} {done[-1].seconds:6.1f} s  {name}", flush=True)
    for extra in ({"NCCL_HOSTID": "host-RANK"}, {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}):
        if over() > 0 and (not way.small or "NCCL_HOSTID" in extra):
            done.append(two_ranks_on_one_gpu(way, extra))
            print(f"{'ok    ' if done[-1].passed else 'FAILED'} {done[-1].seconds:6.1f} s  {done[-1].name}", flush=True)
    created = datetime.now(timezone.utc)
    record: dict[str, Any] = {
        "created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": " ".join(["python", *sys.argv]),
        "machine": about,
    }
    record["checks"] = [asdict(c) for c in done]
    label = re.sub(r"\W+", "-", about.get("gpu", "cpu")).lower()
    file = given.output / f"gpu-check-{created:%Y-%m-%d}-{label}.json"
    file.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{sum(c.passed for c in done)} of {len(done)} passed; the record is {file}")
    sys.exit(int(not all(c.passed for c in done)))


if __name__ == "__main__":
    main()
