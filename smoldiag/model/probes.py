"""Figures of probes: rates from seconds and bytes, and all figures of a host by name.

On a GPU the median repeat counts, since clocks that fall under load are part of it. On processors the best repeat
counts, in processor time: what a neighbour takes away is not the machine's fault.
"""

from collections.abc import Callable, Sequence

from smoldiag.facts.probes import Compute, Copy, Links, Matmul, Memory, Probes, Storage
from smoldiag.model.stats import median

MOVED = {"device": 2, "host": 2}  # a copy within one memory reads and writes each byte
LOW_IS_BETTER = ("_us", "_offset_s")


def tflops(m: Matmul) -> float:
    """Of its median repeat, by the clock on the wall."""
    return m.flops / median(m.seconds) / 1e12


def best_tflops(m: Matmul) -> float:
    """Of its best repeat, in processor time where that was taken: what the device can do."""
    return m.flops / max(min(m.cpu_s or m.seconds), 1e-9) / 1e12


def figure(c: Compute, m: Matmul) -> float:
    """What devices of this kind are compared by, in TFLOP/s."""
    return tflops(m) if c.device.gpu is not None else best_tflops(m)


def tflops_by_dtype(c: Compute) -> dict[str, float]:
    """All shapes of a type together: operations over seconds."""
    found: dict[str, float] = {}
    for dtype in dict.fromkeys(m.dtype for m in c.matmuls):
        of_type = [m for m in c.matmuls if m.dtype == dtype]
        found[dtype] = sum(m.flops for m in of_type) / sum(m.flops / figure(c, m) for m in of_type)
    return found


def gb_per_s(copy: Copy) -> float:
    """Bytes moved per second, 1e9: of the best repeat within the host's memory, else of the median one."""
    seconds = min(copy.cpu_s or copy.seconds) if copy.kind == "host" else median(copy.seconds)
    return MOVED.get(copy.kind, 1) * copy.num_bytes / max(seconds, 1e-9) / 1e9


def memory_gb_per_s(m: Memory) -> dict[str, float]:
    """Of its largest copy of each kind."""
    largest = {copy.kind: copy for copy in sorted(m.copies, key=lambda c: c.num_bytes)}
    return {kind: gb_per_s(copy) for kind, copy in largest.items()}


def link_latency_us(m: Memory, kind: str) -> float | None:
    """Of the smallest copy over the link."""
    smallest = min((c for c in m.copies if c.kind == kind), key=lambda c: c.num_bytes, default=None)
    return median(smallest.seconds) * 1e6 if smallest else None


def pair_gb_per_s(found: Links) -> dict[tuple[int, int], float]:
    return {(r.src, r.dst): r.num_bytes / median(r.seconds) / 1e9 for r in found.rates}


def cpu_lost(c: Compute) -> float | None:
    """Ratio of the processor time that its threads could have had and did not get; None on a GPU."""
    if c.wall_s is None or c.cpu_s is None or c.wall_s <= 0:
        return None
    return max(1 - c.cpu_s / (c.wall_s * c.threads), 0.0)


def storage_gb_per_s(s: Storage, operation: str, pattern: str) -> float | None:
    """The best over threads and sizes."""
    return max((r.gb_per_s for r in s.rates if (r.operation, r.pattern) == (operation, pattern)), default=None)


def worst(name: str, a: float, b: float) -> float:
    """Of two values of a figure: times are better low, rates high."""
    return max(a, b) if name.endswith(LOW_IS_BETTER) else min(a, b)


def figures(probes: Probes) -> dict[str, dict[str, float]]:
    """Host -> name of a figure -> value: of a host with several devices that of the worst one."""
    found: dict[str, dict[str, float]] = {}

    def add(host: str, name: str, value: float | None) -> None:
        if value is not None:
            of_host = found.setdefault(host, {})
            of_host[name] = worst(name, value, of_host.get(name, value))

    for c in probes.compute or ():
        for dtype, rate in tflops_by_dtype(c).items():
            add(c.device.host, f"{dtype}_tflops", rate)
    for m in probes.memory or ():
        for kind, rate in memory_gb_per_s(m).items():
            add(m.device.host, f"{kind}_memory_gb_per_s" if kind in MOVED else f"{kind}_gb_per_s", rate)
        for kind in ("h2d", "d2h"):
            add(m.device.host, f"{kind}_latency_us", link_latency_us(m, kind))
    for found_links in probes.links or ():
        for rate in pair_gb_per_s(found_links).values():
            add(found_links.device.host, "gpu_pair_gb_per_s", rate)
    for s in probes.storage or ():
        _storage(s, add)
    for r in probes.resume or ():
        if r.step_s and r.tokens_per_step:
            add(r.device.host, "tokens_per_s", r.tokens_per_step / median(r.step_s))
    return found


def _storage(s: Storage, add: Callable[[str, str, float | None], None]) -> None:
    for operation in ("read", "write"):
        add(s.device.host, f"storage_{operation}_gb_per_s", storage_gb_per_s(s, operation, "sequential"))
    add(s.device.host, "storage_fsync_us", median(s.fsync_us) if s.fsync_us else None)
    for operation in s.metadata:
        add(s.device.host, f"storage_{operation}_per_s", s.metadata[operation])
    if s.checkpoint:
        seconds = s.checkpoint.write_s + s.checkpoint.fsync_s
        add(s.device.host, "checkpoint_gb_per_s", s.checkpoint.num_bytes / max(seconds, 1e-9) / 1e9)


def equals(compute: Sequence[Compute]) -> list[list[Compute]]:
    """Those of the same model and software together: only they can be compared."""
    groups: dict[tuple[str | None, str, bool], list[Compute]] = {}
    for c in compute:
        groups.setdefault((c.device.model, c.device.software, c.device.gpu is None), []).append(c)
    return list(groups.values())
