"""How long `smoldiag doctor` takes over the facts of many hosts, and how much memory.

    python -m benchmarks.peers.doctor_hosts [--hosts 1024] [--files] [--repeats 3]

The hosts have eight GPUs and sixteen RDMA ports each; twelve of them a fault. `--files`: an archive per host.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks.peers import fleet
from smoldiag import bundle
from smoldiag.facts import Host

LIMIT_S, LIMIT_MB = 5.0, 500


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--hosts", type=int, default=1024)
    arguments.add_argument("--files", action="store_true")
    arguments.add_argument("--repeats", type=int, default=3)
    options = arguments.parse_args()
    hosts = [with_fault(i, host) for i, host in enumerate(fleet.cluster(options.hosts))]
    with tempfile.TemporaryDirectory() as folder:
        if options.files:
            for host in hosts:
                bundle.save(bundle.Bundle(hosts=(host,)), Path(folder) / f"{host.name}.zip")
        else:
            bundle.save(bundle.Bundle(hosts=tuple(hosts)), Path(folder) / "all.zip")
        stored = sum(f.stat().st_size for f in Path(folder).iterdir())
        for fmt in ("text", "json"):
            runs = [doctor(folder, fmt) for _ in range(options.repeats)]
            seconds, processor_s = (median(getattr(r, name) for r in runs) for name in ("seconds", "processor_s"))
            print(
                f"doctor --format {fmt:5} of {options.hosts} hosts ({stored / 1e6:.1f} MB stored): {seconds:.2f} s, "
                f"{processor_s:.2f} s of processor time, {max(r.megabytes for r in runs):.0f} MB, "
                f"report of {runs[0].num_bytes / 1e3:.0f} kB (limits {LIMIT_S:.0f} s, {LIMIT_MB} MB)"
            )


def with_fault(i: int, host: Host) -> Host:
    """Some hosts lack a GPU, have a slow link, another driver, or another limit."""
    gpus, nics = host.gpus or (), host.nics or ()
    if i % 100 == 7:
        return replace(host, gpus=gpus[:-1])
    if i % 300 == 11:
        return replace(host, nics=(replace(nics[0], gbit_per_s=200.0), *nics[1:]))
    if i % 400 == 13:
        return replace(host, versions={**(host.versions or {}), "driver": "535.183.01"})
    if i % 500 == 17 and host.limits:
        return replace(host, limits=replace(host.limits, memlock_bytes=65536))
    return host


@dataclass(frozen=True, kw_only=True)
class Run:
    seconds: float
    processor_s: float
    megabytes: float  # at most
    num_bytes: int  # of the report


def doctor(folder: str, fmt: str) -> Run:
    argv = [sys.executable, "-m", "smoldiag", "doctor", "--bundle", folder, "--format", fmt]
    began = time.monotonic()
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):
        raise SystemExit(f"doctor ended with {process.returncode}")
    return Run(
        seconds=time.monotonic() - began,
        processor_s=usage.ru_utime + usage.ru_stime,
        megabytes=usage.ru_maxrss / 1024,
        num_bytes=len(out),
    )


if __name__ == "__main__":
    main()
