"""Matrix products of a trace beside what the device can: how fast, and whether computing or memory limits them. Pure.

The roofline model (Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009): a product that does fewer operations
per byte than peak / bandwidth can't be faster than its bytes allow. Bytes are those that must move if each factor is
read once; what stays in the caches may be faster than that.
"""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from smoldiag.facts.trace import COMPUTE, Peaks, Product, ProductShare, RankTrace, Roofline

TOP = 20
TF32 = re.compile(r"tf32|s1688")  # in the names of kernels for float32: they use the tensor cores


@dataclass
class _Calls:
    count: int = 0
    device_us: float = 0.0
    tf32: bool = False


def roofline(
    traces: Sequence[RankTrace], kept: Mapping[int, Sequence[int]], kinds: Mapping[int, bytes], peaks: Peaks | None
) -> Roofline | None:
    """None where the shapes of no product were recorded (record_shapes=True)."""
    calls: dict[Product, _Calls] = {}
    compute_us = sum(_of_rank(calls, t, kept[t.rank], kinds[t.rank]) for t in traces)
    total = sum(c.device_us for c in calls.values())
    if not total:
        return None
    shares = sorted((_share(p, c, peaks) for p, c in calls.items() if c.device_us), key=lambda s: -s.device_us)
    judged = [s for s in shares if s.peak_tflops and s.bound]
    judged_us = sum(s.device_us for s in judged)
    return Roofline(
        products=tuple(shares[:TOP]),
        device_us=total,
        of_compute=total / compute_us,
        of_peak=sum(s.tflops / (s.peak_tflops or 1) * s.device_us for s in judged) / judged_us if judged_us else None,
        memory_bound=sum(s.device_us for s in judged if s.bound == "memory") / judged_us if judged_us else None,
        source=peaks.source if peaks else "",
    )


def _of_rank(calls: dict[Product, _Calls], t: RankTrace, places: Sequence[int], kinds: bytes) -> float:
    """Adds the kernels that were launched within a product's call; the time of all computation. Where two threads call
    products at the same time, nothing is said of these."""
    alone = [
        p
        for i, p in enumerate(t.products)
        if (i == 0 or t.products[i - 1][1] <= p[0]) and (i + 1 == len(t.products) or p[1] <= t.products[i + 1][0])
    ]
    starts = [start for start, _, _ in alone]
    seen: set[int] = set()
    compute_us = 0.0
    for i in places:
        if kinds[t.name_of[i]] != COMPUTE:
            continue
        us = t.end[i] - t.start[i]
        compute_us += us
        if not alone or t.call[i] < 0:
            continue
        launched = t.launch(i)
        at = bisect_right(starts, launched) - 1
        if at < 0 or launched > alone[at][1]:
            continue
        found = calls.setdefault(alone[at][2], _Calls())
        found.count += at not in seen
        found.device_us += us
        found.tf32 = found.tf32 or bool(TF32.search(t.names[t.name_of[i]]))
        seen.add(at)
    return compute_us


def _share(product: Product, calls: _Calls, peaks: Peaks | None) -> ProductShare:
    dtype = "tf32" if calls.tf32 and product.dtype == "float32" else product.dtype
    peak = peaks.tflops.get(dtype) if peaks else None
    memory = peaks.memory_gb_per_s if peaks else None
    intensity = product.flops / product.num_bytes
    roof = min(peak, intensity * memory / 1e3) if peak and memory else None
    tflops = product.flops * calls.count / calls.device_us / 1e6
    return ProductShare(
        op=product.op,
        dtype=dtype,
        shape=product.shape,
        count=calls.count,
        device_us=calls.device_us,
        tflops=tflops,
        gb_per_s=product.num_bytes * calls.count / calls.device_us / 1e3,
        flop_per_byte=intensity,
        bound=None if roof is None else "compute" if roof == peak else "memory",
        peak_tflops=peak,
        of_roof=tflops / roof if roof else None,
    )
