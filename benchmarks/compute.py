"""What one device computes by itself: matrix products, how fast and whether always the same bits.

The inputs are sixteenths of small integers, the same on every device: each product and each sum of a row is exact in
float32, so that the result does not depend on the order of the additions, and equal devices give equal bits.
On a GPU its clock, heat and limits are sampled meanwhile; on processors the quota of the control group is watched.
"""

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from smoldiag import ranks
from smoldiag.collect import limits, system
from smoldiag.collect.gpu_load import Sampler, sampled
from smoldiag.facts.probes import Compute, Device, Matmul, Throttling
from smoldiag.ranks import Rank

# (m, n, k) of a Llama-70B layer at tensor parallelism 8, and a square: attention out and in, MLP down and up
SHAPES = ((16384, 8192, 1280), (16384, 1024, 8192), (16384, 8192, 7168), (16384, 3584, 8192), (8192, 8192, 8192))
SMALLER = 16  # on processors: a product of some milliseconds on one core
DEFAULT_BUDGET_S = 20.0
CPU_DTYPES = ("float32", "bfloat16")
GPU_DTYPES = ("bfloat16", "float16", "tf32", "float32", "float8_e4m3fn")
LEAST_REPEATS, REPEATS = 3, 20  # of each product
MOST_IN_A_ROW = 1000
SLOW_S = 0.1  # a product that takes longer is repeated once only where the time is short
ROWS_AT_ONCE = 512  # of a matrix that is made or summed up: keeps what is needed besides small
LARGEST = {"float8_e4m3fn": 15}  # 4 bits of significand; the others hold 8 and more
DEFAULT_LARGEST = 127
MASK = (1 << 64) - 1
UNSUPPORTED = re.compile(r"not implemented|not supported|only supported|unsupported")  # as torch says it of a dtype
cuda: Any = torch.cuda


@dataclass
class Product:
    """One matrix product, ready to run."""

    dtype: str
    m: int
    n: int
    k: int
    run: Callable[[], torch.Tensor]


def measure(me: Rank, config: Mapping[str, Any]) -> dict[str, Any]:
    """A `Compute` as a dictionary. Of `config`: budget_s; dtypes, where others than all are wanted."""
    budget_s = float(config.get("budget_s", DEFAULT_BUDGET_S))
    on_gpu = me.device.type == "cuda"
    dtypes = tuple(config.get("dtypes") or (GPU_DTYPES if on_gpu else CPU_DTYPES))
    about, skipped = device(me), dict[str, str]()
    until = time.monotonic() + budget_s
    before, began, cpu, waited = limits.throttled(Path("/")), time.monotonic(), time.process_time(), waited_s()
    found: list[Matmul] = []
    with ExitStack() as stack:
        stack.enter_context(exact_sums())
        watch = stack.enter_context(watched(about, skipped)) if on_gpu else None
        for number, dtype in enumerate(dtypes):
            share_s = max(until - time.monotonic(), 0) / (len(dtypes) - number)
            if number and not share_s:
                skipped[dtype] = "no time was left"
                continue
            try:
                found += products(me, dtype, share_s)
            except (RuntimeError, AttributeError, TypeError) as error:
                if isinstance(error, RuntimeError) and not UNSUPPORTED.search(str(error)):
                    raise  # an error of the device, or memory that is taken: nothing to pass over
                skipped[dtype] = str(error).strip().partition("\n")[0][:200]
    wall, used = time.monotonic() - began, time.process_time() - cpu
    result = Compute(device=about, matmuls=tuple(found), skipped=skipped)
    if on_gpu:
        cuda.empty_cache()
        return asdict(replace(result, load=watch.load() if watch else None))
    return asdict(
        replace(
            result,
            threads=torch.get_num_threads(),
            wall_s=wall,
            cpu_s=used,
            waited_s=None if waited is None else (waited_s() or 0.0) - waited,
            throttling=most_throttled(before, limits.throttled(Path("/"))),
        )
    )


def device(me: Rank) -> Device:
    host = me.hosts[me.host_of_rank[me.rank]] if me.rank < len(me.host_of_rank) else me.hosts[0]
    if me.device.type != "cuda":
        capability = torch.backends.cpu.get_cpu_capability()
        model = system.cpu(Path("/")).model
        return Device(host=host, rank=me.rank, model=model, software=f"torch {torch.__version__}, {capability}")
    properties = cuda.get_device_properties(me.device)
    uuid = getattr(properties, "uuid", None)
    return Device(
        host=host,
        rank=me.rank,
        gpu=me.device.index,
        model=properties.name,
        serial=f"GPU-{uuid}" if uuid else None,
        software=f"torch {torch.__version__}, CUDA {torch.version.cuda}",
    )


@contextmanager
def exact_sums() -> Iterator[None]:
    """Partial sums stay in float32; how float32 itself is multiplied is left as it was afterwards."""
    flags: Any = torch.backends.cuda.matmul
    names = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    kept, precision = {name: getattr(flags, name) for name in names}, torch.get_float32_matmul_precision()
    try:
        for name in names:
            setattr(flags, name, False)
        yield
    finally:
        for name, value in kept.items():
            setattr(flags, name, value)
        torch.set_float32_matmul_precision(precision)


@contextmanager
def watched(about: Device, skipped: dict[str, str]) -> Iterator[Sampler | None]:
    """Without NVML, or a UUID by which it knows the GPU: None, and why."""
    with ExitStack() as stack:
        sampler = None
        try:
            sampler = stack.enter_context(sampled(about.serial or "without UUID"))
        except OSError as error:
            skipped["load"] = str(error)
        yield sampler


def products(me: Rank, dtype: str, share_s: float) -> Iterator[Matmul]:
    """The shapes in turn, each for its part of the time. Raises RuntimeError where the device has no such product."""
    shapes = (
        SHAPES if me.device.type == "cuda" else tuple((m // SMALLER, n // SMALLER, k // SMALLER) for m, n, k in SHAPES)
    )
    until = time.monotonic() + share_s
    for number, shape in enumerate(shapes):
        left_s = max(until - time.monotonic(), 0)
        yield timed(made(me.device, dtype, *shape), me.device, left_s / (len(shapes) - number))


def made(on: torch.device, dtype: str, m: int, n: int, k: int) -> Product:
    largest = LARGEST.get(dtype, DEFAULT_LARGEST)
    kind = getattr(torch, "float32" if dtype == "tf32" else dtype)
    a, b = matrix(m, k, largest, kind, on), matrix(n, k, largest, kind, on)
    if dtype == "float8_e4m3fn":
        scale = torch.ones((), device=on)
        multiply: Any = torch._scaled_mm
        return Product(
            dtype, m, n, k, lambda: multiply(a, b.t(), scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16)
        )
    if dtype in ("tf32", "float32"):
        torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    return Product(dtype, m, n, k, lambda: a @ b.t())


def matrix(rows: int, columns: int, largest: int, dtype: torch.dtype, on: torch.device) -> torch.Tensor:
    """Integers from -largest to largest over 16, by a mixing function of row and column: the same everywhere."""
    out = torch.empty(rows, columns, dtype=dtype, device=on)
    column = torch.arange(columns, dtype=torch.int64, device=on) * 40503
    for first in range(0, rows, ROWS_AT_ONCE):
        row = torch.arange(first, min(first + ROWS_AT_ONCE, rows), dtype=torch.int64, device=on)[:, None] * 2654435761
        mixed = (row ^ column) % (1 << 31) * 2246822519 % (1 << 31)  # below 2**63 on the way
        mixed = (mixed ^ (mixed >> 13)) * 3266489917 % (1 << 31)
        values = (mixed >> 7) % (2 * largest + 1) - largest
        out[first : first + ROWS_AT_ONCE] = (values.to(torch.float32) / 16).to(dtype)
    return out


def timed(product: Product, on: torch.device, share_s: float) -> Matmul:
    """Repeats for `share_s`, each of as many products in a row as give some tens of repeats.

    The bits of a repeat's last result are held against those of the first product, outside the clock.
    """
    until = time.monotonic() + share_s
    first = product.run()
    checksum = checksum_of(first)
    repeat = _on_gpu if on.type == "cuda" else _on_processors
    once, _, _ = repeat(product, 1)
    in_a_row = min(max(int(share_s / REPEATS / once), 1), MOST_IN_A_ROW)
    least = LEAST_REPEATS if once < SLOW_S else 1
    seconds: list[float] = []
    cpu_s: list[float] = []
    changed = 0
    while len(seconds) < least or (time.monotonic() < until and len(seconds) < 2 * REPEATS):
        took, used, out = repeat(product, in_a_row)
        seconds.append(took)
        cpu_s.append(used)
        changed += not torch.equal(bits(out), bits(first))
    return Matmul(
        dtype=product.dtype,
        m=product.m,
        n=product.n,
        k=product.k,
        seconds=tuple(seconds),
        cpu_s=() if on.type == "cuda" else tuple(cpu_s),
        checksum=checksum,
        changed=changed,
    )


def _on_gpu(product: Product, in_a_row: int) -> tuple[float, float, torch.Tensor]:
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    start.record()
    for _ in range(in_a_row):
        out = product.run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / in_a_row, 0.0, out


def _on_processors(product: Product, in_a_row: int) -> tuple[float, float, torch.Tensor]:
    cpu, start = time.process_time(), time.perf_counter()
    for _ in range(in_a_row):
        out = product.run()
    return (time.perf_counter() - start) / in_a_row, (time.process_time() - cpu) / in_a_row, out


def bits(out: torch.Tensor) -> torch.Tensor:
    return out.view(torch.int32 if out.element_size() == 4 else torch.int16)


def checksum_of(out: torch.Tensor) -> str:
    """Of all bits and their places, modulo 2**64."""
    weights = torch.arange(out.shape[1], dtype=torch.int64, device=out.device) * 2654435761 + 1
    total = 0
    for first in range(0, out.shape[0], ROWS_AT_ONCE):
        sums = (bits(out[first : first + ROWS_AT_ONCE]).to(torch.int64) * weights).sum(dim=1).tolist()
        total += sum(value * (2 * (first + i) + 1) for i, value in enumerate(sums))
    return f"{total & MASK:016x}"


def waited_s() -> float | None:
    """Time that this thread was ready to run and others ran: second number of schedstat, in nanoseconds."""
    try:
        with open("/proc/self/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return None


def most_throttled(before: Mapping[str, Throttling], after: Mapping[str, Throttling]) -> Throttling | None:
    """Of the control groups above us the one whose quota held us up most, else the smallest; None without counters."""
    grown = [
        replace(
            now,
            periods=now.periods - old.periods,
            throttled_periods=now.throttled_periods - old.throttled_periods,
            throttled_s=now.throttled_s - old.throttled_s,
        )
        for group, now in after.items()
        if (old := before.get(group))
    ]
    return max(grown, key=lambda t: (t.throttled_periods, -(t.cpus or math.inf)), default=None)


def main() -> None:
    me = ranks.join()
    ranks.record("compute", measure(me, me.config))
    ranks.leave()


if __name__ == "__main__":
    main()
