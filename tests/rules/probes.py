"""Rules that judge what probes measured."""

from dataclasses import replace
from typing import Any

from smoldiag.facts.probes import (
    CheckpointTime,
    Compute,
    Copy,
    Device,
    LinkRate,
    Links,
    Load,
    Matmul,
    Memory,
    Probes,
    Resume,
    Storage,
    StorageRate,
    Throttling,
)
from smoldiag.rules import Known
from tests.rules.known import Facts

H100 = "NVIDIA H100 80GB HBM3"
GIB = 2**30


def gpu(host: str = "node0", index: int = 0, model: str = H100) -> Device:
    return Device(host=host, rank=index, gpu=index, model=model, software="torch 2.9, CUDA 12.8")


def cpu(host: str) -> Device:
    return Device(host=host, model="AMD EPYC", software="torch 2.13, AVX512")


def product(tflops: float, *, checksum: str = "a", changed: int = 0) -> Matmul:
    """8192 cubed, five repeats."""
    seconds = 2 * 8192**3 / tflops / 1e12
    return Matmul(dtype="bfloat16", m=8192, n=8192, k=8192, seconds=(seconds,) * 5, checksum=checksum, changed=changed)


def compute(*records: Compute) -> Known:
    return Known(probes=Probes(compute=records))


def gpus(*tflops: float, host: str = "node0") -> tuple[Compute, ...]:
    return tuple(Compute(device=gpu(host, i), matmuls=(product(rate),)) for i, rate in enumerate(tflops))


def hosts(*tflops: float) -> tuple[Compute, ...]:
    return tuple(Compute(device=cpu(f"node{i}"), matmuls=(product(rate),)) for i, rate in enumerate(tflops))


def with_checksums(*checksums: str) -> Known:
    return compute(
        *(Compute(device=gpu(f"node{i}"), matmuls=(product(700, checksum=c),)) for i, c in enumerate(checksums))
    )


def loaded(**throttle: float) -> Known:
    load = Load(
        samples=50, sm_clock_mhz=1400, sm_clock_max_mhz=1980, temperature_c=80, power_w=690, power_limit_w=700,
        throttle=throttle,
    )  # fmt: skip
    return compute(replace(gpus(700)[0], load=load))


def quota(throttled: int, cpu_s: float, *, cpus: float = 2.0, threads: int = 4) -> Known:
    still = 0.05 * throttled
    counts = Throttling(
        group="/sys/fs/cgroup/job", periods=40, throttled_periods=throttled, throttled_s=still, cpus=cpus
    )
    host = replace(hosts(0.1)[0], wall_s=4.0, cpu_s=cpu_s, threads=threads, throttling=counts)
    return compute(host)


def memory(kind: str, *gb_per_s: float, model: str = H100) -> Known:
    moved = 2 if kind in ("device", "host") else 1
    copies = [Copy(kind=kind, num_bytes=GIB, seconds=(moved * GIB / rate / 1e9,) * 5) for rate in gb_per_s]
    devices = [cpu(f"node{i}") if kind == "host" else gpu(f"node{i}", model=model) for i in range(len(copies))]
    return Known(
        probes=Probes(memory=tuple(Memory(device=d, copies=(c,)) for d, c in zip(devices, copies, strict=True)))
    )


def pairs(slow: tuple[int, ...] = ()) -> Known:
    """All pairs of eight GPUs; those with a slow one at 100 GB/s."""
    rates = tuple(
        LinkRate(src=a, dst=b, num_bytes=GIB, peer=True, seconds=(GIB / (100e9 if {a, b} & {*slow} else 380e9),) * 3)
        for a in range(8)
        for b in range(8)
        if a != b
    )
    return Known(probes=Probes(links=(Links(device=gpu(), rates=rates),)))


def disk(host: str = "node0", *, gb_per_s: float = 2.0, **more: Any) -> Storage:
    """A local disk that one thread does not fill."""
    rates = tuple(
        StorageRate(operation=o, pattern="sequential", threads=t, io_bytes=1 << 20, operations=1000 * t, seconds=s * t)
        for o in ("read", "write")
        for t in (1, 4)
        for s in (1000 * (1 << 20) / gb_per_s / 1e9,)
    )
    known: dict[str, Any] = {
        "rates": rates,
        "path": "/scratch",
        "file_system": "xfs",
        "source": "/dev/md0",
        "size_bytes": 100 * GIB,
        "free_bytes": 50 * GIB,
    }
    return Storage(device=cpu(host), **{**known, **more})


def storage(*records: Storage) -> Known:
    return Known(probes=Probes(storage=records))


def writes(gb_per_s: dict[tuple[int, int], float], **more: Any) -> Storage:
    """Rates by (threads, bytes)."""
    rates = tuple(
        StorageRate(
            operation="write", pattern="sequential", threads=t, io_bytes=z, operations=1000, seconds=z / rate / 1e6
        )
        for (t, z), rate in gb_per_s.items()
    )
    return disk(rates=rates, **more)


VOLUME = {(1, 65536): 0.05, (1, 1 << 20): 0.6, (4, 65536): 0.05, (4, 1 << 20): 0.6}  # limited by operations


def again(**more: Any) -> Known:
    known: dict[str, Any] = {"losses": {9: 2.5, 10: 2.4, 11: 2.3}, "resumed": {10: 2.4, 11: 2.3001}}
    made = Resume(device=cpu("node0"), ranks=4, model="tiny", steps=12, checkpoint_step=10, **{**known, **more})
    return Known(probes=Probes(resume=(made,)))


SAVED = CheckpointTime(num_bytes=GIB, wanted_bytes=2 * GIB, write_s=1.0, fsync_s=0.5)
EIGHT = (705.0, 712.0, 698.0, 709.0, 715.0, 701.0, 707.0, 704.0)
FULL: dict[str, Any] = {
    "refused": "space",
    "error": "[Errno 28] No space left on device",
    "free_bytes": 4096,
    "rates": (),
}
OTHER: dict[str, Any] = {"shared": False, "hosts": 3}

CASES: list[tuple[str, Facts, list[str]]] = [
    ("GPU068", with_checksums("a", "a", "b", "a"), ["error"]),
    ("GPU068", with_checksums("a", "b"), ["error", "error"]),
    ("GPU068", with_checksums("a", "a", "a"), []),
    ("GPU068", compute(*hosts(0.1), *gpus(700)), []),
    ("GPU061", compute(Compute(device=gpu(), matmuls=(product(700, changed=1),))), ["error"]),
    ("GPU061", compute(*gpus(*EIGHT)), []),
    ("GPU062", compute(*gpus(*EIGHT[:7], 560.0)), ["warning"]),
    ("GPU062", compute(*gpus(*EIGHT)), []),
    ("GPU062", compute(*gpus(700, 350)), []),
    ("GPU062", compute(*gpus(*EIGHT), *gpus(*(x * 0.7 for x in EIGHT), host="node1")), []),
    ("GPU063", compute(*gpus(300, 300)), ["warning", "warning"]),
    ("GPU063", compute(*gpus(*EIGHT)), []),
    ("GPU063", compute(Compute(device=gpu(model="a card that nobody knows"), matmuls=(product(5),))), []),
    ("GPU064", loaded(hw_thermal=0.6, hw_slowdown=0.6), ["error"]),
    ("GPU064", loaded(sw_thermal=0.4), ["warning"]),
    ("GPU064", loaded(sw_power_cap=1.0), []),
    ("GPU064", loaded(hw_slowdown=0.02), []),
    ("GPU065", memory("device", 2900, 2910, 2300, 2895), ["warning"]),
    ("GPU065", memory("device", 1500, 1500), ["warning", "warning"]),
    ("GPU065", memory("device", 2900, 2910, 2890), []),
    ("GPU066", memory("h2d", 52, 53, 26, 52), ["warning"]),
    ("GPU066", memory("d2h", 52, 53, 50), []),
    ("GPU066", memory("h2d", 100, model="NVIDIA GB200"), []),
    ("GPU067", pairs(slow=(3,)), ["warning"]),
    ("GPU067", pairs(), []),
    ("HST057", compute(*hosts(0.10, 0.11, 0.05, 0.10)), ["warning"]),
    ("HST057", compute(*hosts(0.10, 0.11, 0.09, 0.10)), []),
    ("HST057", compute(*hosts(0.10, 0.05)), []),
    ("HST063", quota(30, 1.2), ["warning"]),
    ("HST063", quota(1, 0.6, cpus=0.5, threads=1), ["warning"]),
    ("HST063", quota(0, 0.6, cpus=0.5, threads=1), ["warning"]),
    ("HST063", quota(0, 0.6, cpus=1.0, threads=1), []),
    ("HST063", quota(0, 1.2), []),
    ("HST063", quota(2, 3.9), []),
    ("HST064", memory("host", 40, 41, 12, 39), ["warning"]),
    ("HST064", memory("host", 40, 41, 30, 39), []),
    ("STO040", storage(disk(), disk("node1", **FULL)), ["error"]),
    ("STO040", storage(disk(), disk("node1")), []),
    ("STO041", storage(disk(), disk("node1", refused="readonly", error="mounted read-only")), ["error"]),
    ("STO041", storage(disk(), disk("node1", **FULL)), []),
    ("STO042", storage(disk(model_bytes=200 * GIB)), ["error"]),
    ("STO042", storage(*(disk(f"node{i}", model_bytes=160 * GIB, hosts=4) for i in range(4))), []),
    ("STO043", storage(*(disk(f"node{i}", gb_per_s=g) for i, g in enumerate((2, 2.1, 0.4, 1.9)))), ["warning"] * 2),
    ("STO043", storage(*(disk(f"node{i}", gb_per_s=g) for i, g in enumerate((2, 2.1, 1.4, 1.9)))), []),
    ("STO044", storage(writes(VOLUME)), ["info"]),
    ("STO044", storage(disk(**FULL)), []),
    ("STO045", storage(disk(file_system="tmpfs")), ["info"]),
    ("STO045", storage(disk()), []),
    ("STO046", storage(*(disk(f"node{i}", **OTHER) for i in range(3))), ["info"]),
    ("STO046", storage(disk(shared=True), disk("node1", shared=True)), []),
    (
        "STO047",
        storage(
            *(disk(f"node{i}", file_system="nfs4", source="fs:/x", **OTHER) for i in (0, 1)), disk("node2", **OTHER)
        ),
        ["warning"],
    ),
    ("STO047", storage(*(disk(f"node{i}", **OTHER) for i in range(3))), []),
    ("STO048", storage(disk(model_bytes=2 * GIB, checkpoint=SAVED)), ["info"]),
    ("STO048", storage(disk()), []),
    ("CKP040", again(losses={}, resumed={}, error="/tmp is not shared by the hosts"), ["error"]),
    ("CKP040", again(), []),
    ("CKP041", again(resumed={10: 2.41, 11: 2.3}), ["error"]),
    ("CKP041", again(resumed={10: float("nan")}), ["error"]),
    ("CKP041", again(), []),
]
