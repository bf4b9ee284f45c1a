"""The probes run here, on processors: what they measure, what they leave behind, what follows from it."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from benchmarks import compute, links, memory, storage
from smoldiag import probes, rules
from smoldiag.collect import limits, mounts
from smoldiag.facts.probes import Compute, Device, Links, Matmul, Memory, Probes, Storage, StorageRate
from smoldiag.model import fleet
from smoldiag.model import probes as model
from smoldiag.model import storage as storage_model
from smoldiag.ranks import Rank
from smoldiag.rules import Known

ROOT = Path(__file__).parent.parent
MIB = 2**20


def rank(**config: Any) -> Rank:
    return Rank(
        rank=0,
        world_size=1,
        local_rank=0,
        host_of_rank=(0,),
        hosts=("node0",),
        backend="gloo",
        device=torch.device("cpu"),
        config=config,
    )


def measured(**config: Any) -> Storage:
    return msgspec.convert(storage.measure(rank(), config), Storage)


# -- compute and memory


def test_compute_keeps_its_budget_and_gives_the_same_bits_again() -> None:
    began = time.process_time()  # others may hold the machine up
    first, again = (msgspec.convert(compute.measure(rank(), {"budget_s": 0.3}), Compute) for _ in range(2))
    assert time.process_time() - began < 5
    of_first, of_again = ({(m.dtype, m.shape): m.checksum for m in c.matmuls} for c in (first, again))
    assert all(of_first[key] == of_again[key] for key in of_first.keys() & of_again.keys())
    assert not any(m.changed for m in (*first.matmuls, *again.matmuls))
    assert len({m.shape for m in first.matmuls}) == 5
    assert model.tflops_by_dtype(first)["float32"] > 0
    assert first.throttling is None or first.throttling.periods >= 0


@pytest.mark.parametrize("said", ["CUDA error: uncorrectable ECC error encountered", "CUDA out of memory"])
def test_an_error_of_the_device_is_not_passed_over(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> list[Matmul]:
        raise RuntimeError(said)

    monkeypatch.setattr(compute, "products", broken)
    with pytest.raises(RuntimeError, match=said):
        compute.measure(rank(), {"budget_s": 0.1})


def test_a_dtype_that_torch_does_not_have_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object) -> list[Matmul]:
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")

    monkeypatch.setattr(compute, "products", lacking)
    assert set(compute.measure(rank(), {"budget_s": 0.1})["skipped"]) >= set(compute.CPU_DTYPES)


def test_the_products_are_exact() -> None:
    """In float64 the same numbers come out, whatever the order: no rounding on the way."""
    for dtype in ("float32", "bfloat16"):
        product = compute.made(torch.device("cpu"), dtype, 64, 32, 448)
        kind = getattr(torch, dtype)
        a = compute.matrix(64, 448, 127, kind, torch.device("cpu"))
        b = compute.matrix(32, 448, 127, kind, torch.device("cpu"))
        assert torch.equal(product.run(), (a.double() @ b.double().t()).to(kind))
        assert len(set(a.flatten().tolist())) == 255


def test_one_flipped_bit_changes_the_checksum() -> None:
    out = compute.made(torch.device("cpu"), "bfloat16", 64, 32, 40).run()
    before = compute.checksum_of(out)
    compute.bits(out)[17, 5] ^= 1
    assert compute.checksum_of(out) != before


def test_swapped_rows_change_the_checksum() -> None:
    out = compute.made(torch.device("cpu"), "float32", 64, 32, 40).run()
    assert compute.checksum_of(out) != compute.checksum_of(out.flip(0))


def test_memory_and_links() -> None:
    found = msgspec.convert(memory.measure(rank(), {"budget_s": 0.2}), Memory)
    assert model.memory_gb_per_s(found)["host"] > 0.1
    pairs = msgspec.convert(links.measure(rank(), {"budget_s": 0.2}), Links)
    assert pairs.skipped == {"pairs": "no GPU"}


def test_counters_of_both_control_groups(tmp_path: Path) -> None:
    v1, v2 = tmp_path / "one/sys/fs/cgroup/cpu/job", tmp_path / "two/sys/fs/cgroup/job"
    for folder, lines, group in (
        (v1, "nr_periods 10\nnr_throttled 4\nthrottled_time 2000000000\n", "2:cpu:/job"),
        (v2, "usage_usec 5\nnr_periods 10\nnr_throttled 4\nthrottled_usec 2000000\n", "0::/job"),
    ):
        folder.mkdir(parents=True)
        (folder / "cpu.stat").write_text(lines)
        proc = tmp_path / folder.relative_to(tmp_path).parts[0] / "proc/self"
        proc.mkdir(parents=True)
        (proc / "cgroup").write_text(group + "\n")
    (v1 / "cpu.cfs_quota_us").write_text("50000\n")
    (v1 / "cpu.cfs_period_us").write_text("100000\n")
    (v2 / "cpu.max").write_text("50000 100000\n")
    for root in ("one", "two"):
        (found,) = limits.throttled(tmp_path / root).values()
        assert (found.periods, found.throttled_periods, found.throttled_s, found.cpus) == (10, 4, 2.0, 0.5)


# -- resume


def test_training_resumes_with_the_same_losses(tmp_path: Path) -> None:
    code = """
import json, sys, torch.distributed as dist
from benchmarks import resume
from tests.test_probes import rank
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
print("RECORD" + json.dumps(resume.measure(rank(), {"path": sys.argv[1], "steps": 6})))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.partition("RECORD")[2])
    found = probes.read({"resume": {3: record}}, ["a", "b", "c", "d"])
    (made,) = found.resume or ()
    assert (made.device.host, made.device.rank) == ("d", 3)
    assert sorted(made.losses) == list(range(6))
    assert made.resumed == {step: made.losses[step] for step in (3, 4, 5)}
    assert "tokens/s" in probes.in_words(found)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_record_is_refused() -> None:
    with pytest.raises(ValueError, match="no record"):
        probes.read({"compute": {0: {"device": {}, "matmuls": 3}}}, ["a"])


# -- the fleet


def test_half_of_a_fleet_outvotes_nobody() -> None:
    assert fleet.slow({"a": 1.0, "b": 0.5}, shortfall=0.1) == {}
    assert fleet.slow({"a": 1.0, "b": 1.0, "c": 0.5, "d": 0.5}, shortfall=0.1) == {}
    assert list(fleet.slow({"a": 1.0, "b": 1.0, "c": 0.5}, shortfall=0.1)) == ["c"]


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_fleet_has_no_outlier_and_a_slow_device_is_found(seed: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    rates = {i: 700 * (1 + 0.03 * float(torch.randn((), generator=noise))) for i in range(512)}
    assert fleet.slow(rates, shortfall=0.10) == {}
    rates[77] = 700 * 0.75
    assert list(fleet.slow(rates, shortfall=0.10)) == [77]


def test_without_a_majority_of_checksums_both_are_named_in_doubt() -> None:
    assert fleet.dissenters({"a": "1", "b": "2"}) == (("a", "b"), False)
    assert fleet.dissenters({"a": "1", "b": "2", "c": "1"}) == (("b",), True)
    assert fleet.dissenters({"a": "1", "b": "1"}) == ((), True)


def test_figures_are_those_of_the_worst_device() -> None:
    records = tuple(
        Compute(
            device=Device(host="node0", gpu=i, model="X"),
            matmuls=(Matmul(dtype="bfloat16", m=1000, n=1000, k=1000, seconds=(seconds,)),),
        )
        for i, seconds in enumerate((1e-3, 2e-3))
    )
    assert model.figures(Probes(compute=records)) == {"node0": {"bfloat16_tflops": pytest.approx(1.0)}}


# -- storage


def test_storage_is_measured_and_nothing_stays(tmp_path: Path) -> None:
    found = measured(path=str(tmp_path), budget_s=3.0, model_bytes=8 * MIB)
    assert not found.refused
    assert ("write", "sequential") in {(r.operation, r.pattern) for r in found.rates}
    there = {r.operation for r in found.rates if r.pattern == "sequential"}
    there |= {"random"} if {r.operation for r in found.rates if r.pattern == "random"} == {"read", "write"} else set()
    there |= {"checkpoint"} if found.checkpoint else set()
    there |= {"metadata"} if set(found.metadata) == {"create", "stat", "unlink"} else set()
    # a disk that others use as well may leave no time for the rest, which is said
    assert there | set(found.skipped) >= {"read", "write", "random", "checkpoint", "metadata"}
    assert found.checkpoint is None or found.checkpoint.num_bytes <= found.checkpoint.wanted_bytes == 8 * MIB
    assert list(tmp_path.iterdir()) == []


def test_two_hosts_measure_together_and_see_each_other(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "SMOLDIAG_BACKEND": "gloo"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    env |= {"SMOLDIAG_CONFIG": json.dumps({"path": str(tmp_path), "budget_s": 1.0})}
    argv = [sys.executable, "-m", "benchmarks.storage"]
    running = [
        subprocess.Popen(argv, cwd=ROOT, env=env | {"RANK": str(r)}, stdout=subprocess.PIPE, text=True) for r in (0, 1)
    ]
    said = [p.communicate(timeout=120)[0] for p in running]
    records = [next(json.loads(line) for line in out.splitlines() if '"storage"' in line) for out in said]
    found = probes.read({"storage": dict(enumerate(records))}, ["a", "b"]).storage or ()
    assert [(s.device.host, s.shared, s.hosts, s.refused) for s in found] == [("a", True, 2, ""), ("b", True, 2, "")]
    assert [s.alone is not None for s in found] == [True, False]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_probe_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    code = f"from tests.test_probes import measured; measured(path={str(tmp_path)!r}, budget_s=60)"
    running = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    _wait(lambda: any(tmp_path.iterdir()), 60)
    time.sleep(0.3)
    running.send_signal(number)
    running.wait(10)
    _wait(lambda: not any(tmp_path.iterdir()), 10)
    assert list(tmp_path.iterdir()) == []


def _wait(until: Any, seconds: float) -> None:
    over = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < over, "waited in vain"
        time.sleep(0.02)


def test_a_full_disk_is_named_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = os.statvfs(tmp_path)
    values = list(told)
    values[4] = 1  # f_bavail
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(values))
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("something was written"))
    found = measured(path=str(tmp_path), budget_s=1.0)
    assert found.refused == "space"
    outcomes = rules.run(Known(probes=Probes(storage=(found,))), [rules.RULES["STO040"]])
    (finding,) = (f for o in outcomes for f in o.findings)
    assert finding.where.hosts == ("node0",)
    assert str(tmp_path) in finding.message


def test_a_disk_that_fills_meanwhile_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "pwritev", full)
    found = measured(path=str(tmp_path), budget_s=1.0)
    assert (found.refused, list(tmp_path.iterdir())) == ("space", [])


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / f"{storage.PREFIX}node0-{os.getpid()}"
    theirs.mkdir()
    (theirs / "data").touch()
    assert measured(path=str(tmp_path), budget_s=1.0).refused == "failed"
    assert (theirs / "data").exists()


def test_without_o_direct_the_page_cache_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[int] = []
    monkeypatch.setattr(storage, "takes_direct", lambda name: False)
    monkeypatch.setattr(os, "posix_fadvise", lambda handle, first, length, advice: dropped.append(advice))
    found = measured(path=str(tmp_path), budget_s=2.0)
    assert found.direct is False
    assert {*dropped} == {os.POSIX_FADV_DONTNEED}


def test_a_missing_folder_is_a_result(tmp_path: Path) -> None:
    assert measured(path=str(tmp_path / "none"), budget_s=1.0).refused == "missing"


def test_the_mount_of_a_folder() -> None:
    kind, _ = mounts.of(Path("/proc/self"))
    assert kind == "proc"


def test_folders_of_dead_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node-0")
    dead, other, living = (
        tmp_path / f"smoldiag-storage-{name}"
        for name in (f"node-0-{2**30}", f"node-1-{2**30}", f"node-0-{os.getpid()}")
    )
    for folder in (dead, other, living):
        folder.mkdir()
        os.utime(folder, (0, 0))
    storage.remove_stale(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([other, living])


# -- what limits a storage: GB/s by (threads, KiB), as volumes and file systems of published runs behave

VOLUME = {(1, 64): 0.047, (1, 1024): 0.65, (1, 8192): 1.08, (4, 64): 0.047, (4, 1024): 0.65, (4, 8192): 1.08} | {
    (16, 64): 0.047,
    (16, 1024): 0.65,
    (16, 8192): 1.08,
}
NVME = {(1, 64): 1.2, (1, 1024): 5.3, (1, 8192): 12.2, (4, 64): 4.4, (4, 1024): 13.3, (4, 8192): 26.3} | {
    (16, 64): 14.3,
    (16, 1024): 23.0,
    (16, 8192): 24.9,
}
NETWORK = {(1, 64): 0.14, (1, 1024): 0.4, (1, 8192): 0.54, (4, 64): 0.56, (4, 1024): 1.58, (4, 8192): 2.04} | {
    (16, 64): 1.98,
    (16, 1024): 4.21,
    (16, 8192): 3.93,
}


def of(grid: dict[tuple[int, int], float], *, hosts: int = 1, alone: float | None = None) -> Storage:
    def rate(threads: int, kib: int, gb_per_s: float) -> StorageRate:
        size = kib * 1024
        return StorageRate(
            operation="write",
            pattern="sequential",
            threads=threads,
            io_bytes=size,
            operations=1000,
            seconds=1000 * size / gb_per_s / 1e9,
        )

    return Storage(
        device=Device(host="node0"),
        path="/x",
        hosts=hosts,
        rates=tuple(rate(t, z, g) for (t, z), g in grid.items()),
        alone=rate(16, 1024, alone) if alone else None,
    )


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (of(VOLUME), "iops"),
        (of(NVME), "bandwidth"),
        (of(NETWORK), "latency"),
        (of(NVME, hosts=4, alone=23.5), "client"),
        (of(NVME, hosts=4, alone=80.0), "file-system"),
    ],
)
def test_what_limits_a_storage(found: Storage, kind: str) -> None:
    limit = storage_model.limit(found, "write")
    assert limit
    assert limit.kind == kind
