"""GPU, HST: what probes of each device alone show: wrong results, slow devices, limits under load."""

from collections import Counter
from collections.abc import Iterator, Mapping

from smoldiag.facts.probes import Compute, Device, Links, Memory, Probes, Throttling
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.knowledge import hardware
from smoldiag.knowledge.hardware import LEAST_OF_PEAK
from smoldiag.model import fleet
from smoldiag.model import probes as model
from smoldiag.model.stats import median
from smoldiag.rules import NotKnown, rule

GPU_SHORTFALL = 0.10  # of the equals' median: GPU Fryer's threshold; equal H100s differ by 1 to 3 %
CPU_SHORTFALL = 0.25  # best repeat in processor time; repeats on shared cores differ by some 10 %
HOST_MEMORY_SHORTFALL = 0.50  # neighbours share the memory's bandwidth, whoever's time is counted
LINK_SHORTFALL = 0.30  # of the equals' median; a generation or half of the lanes is 0.5
LEAST_OF_MEMORY = 0.65  # copies reach 0.85 to 0.93
LEAST_OF_PCIE = 0.55  # pinned copies reach 0.8 to 0.88 of what the generation carries after coding
OFTEN = 0.2  # ratio of the samples under load
LIMITS = {  # reason of NVML -> (cause, what it means, severity)
    "hw_thermal": ("gpu-throttled", "slowed down by the hardware for heat", Severity.ERROR),
    "hw_power_brake": ("gpu-power-brake", "slowed down by the host's power brake", Severity.ERROR),
    "hw_slowdown": ("gpu-throttled", "slowed down by the hardware", Severity.WARNING),
    "sw_thermal": ("gpu-throttled", "slowed down by the driver for heat", Severity.WARNING),
}
THROTTLED_RATIO = 0.05  # of the periods in which the group ran
THROTTLED_PERIODS = 3  # fewer say nothing: a start of threads can use up one period
STOOD_STILL_RATIO = 0.05  # of the time of the probe
CUBLAS = "cuBLAS documentation, Results Reproducibility: equal architecture and number of SMs, equal bits"
SDC = "Dixit et al., Silent Data Corruptions at Scale, arXiv 2102.11245"


def computed(probes: Probes) -> tuple[Compute, ...]:
    if probes.compute is None:
        raise NotKnown("the compute probe did not run")
    return probes.compute


def remembered(probes: Probes) -> tuple[Memory, ...]:
    if probes.memory is None:
        raise NotKnown("the memory probe did not run")
    return probes.memory


def where(device: Device) -> Where:
    return Where(hosts=(device.host,), ranks=(device.rank,), gpus=() if device.gpu is None else (device.gpu,))


def leave_out(host: str) -> Fix:
    return Fix(do=f"start the job without {host}", command=f"srun --exclude={host} ...")


@rule("GPU068", Severity.ERROR)
def computes_other_bits(probes: Probes) -> Iterator[Finding]:
    """A device computes other bits than its equals from the same numbers.

    The sums of the probe are exact, so that order plays no part. A device that differs corrupts weights and
    gradients without a word, and no restart helps.

    Fix: leave the host out, and have the device tested (dcgmi diag -r 3 or 4) or replaced.
    """
    for equals in model.equals(computed(probes)):
        wrong: dict[Device, list[str]] = {}
        certain = True
        for key in dict.fromkeys((m.dtype, m.shape) for c in equals for m in c.matmuls):
            sums = {c.device: m.checksum for c in equals for m in c.matmuls if (m.dtype, m.shape) == key and m.checksum}
            differing, known = fleet.dissenters(sums)
            certain &= known
            for device in differing:
                wrong.setdefault(device, []).append(f"{key[0]} {key[1]}: {sums[device]}")
        for device, seen in wrong.items():
            doubt = "" if certain else "; without a majority nobody can say which of them is wrong"
            yield Finding(
                message=f"{device.name} computes other bits than its equals in {len(seen)} "
                f"product{'s' if len(seen) > 1 else ''}, {seen[0].partition(':')[0]} for one{doubt}",
                cause="silent-data-corruption",
                confidence=Confidence.CERTAIN if certain else Confidence.POSSIBLE,
                severity=Severity.ERROR,
                where=where(device),
                evidence=tuple(probes.seen(f"{device.name}, checksum of {text}") for text in seen[:8]),
                why="wrong weights and gradients go into every rank with the next collective",
                fixes=(leave_out(device.host), *_tests(device)),
                confirm="the same probe again, alone on that device",
                sources=(SDC, CUBLAS),
                explains=("wrong-data",),
            )


def _tests(device: Device) -> tuple[Fix, ...]:
    if device.gpu is None:
        return (Fix(do="have the host's processors and memory tested"),)
    return (Fix(do="have the GPU tested", command=f"dcgmi diag -r 3 -i {device.gpu}"),)


@rule("GPU061", Severity.ERROR)
def computes_other_bits_each_time(probes: Probes) -> Iterator[Finding]:
    """A device gives other bits for the same product when it repeats it.

    The same program on the same numbers must give the same bits. One that does not corrupts training silently.

    Fix: leave the host out, and have the device tested (dcgmi diag -r 3 or 4) or replaced.
    """
    for c in computed(probes):
        if bad := [m for m in c.matmuls if m.changed]:
            yield Finding(
                message=f"{c.device.name} gave other bits in {sum(m.changed for m in bad)} of "
                f"{sum(len(m.seconds) for m in bad)} repeats of one product ({bad[0].dtype} {bad[0].shape})",
                cause="silent-data-corruption",
                subject="repeats",
                severity=Severity.ERROR,
                where=where(c.device),
                evidence=tuple(
                    probes.seen(f"{m.dtype} {m.shape}: {m.changed} of {len(m.seconds)} repeats differ") for m in bad[:8]
                ),
                why="wrong weights and gradients go into every rank with the next collective",
                fixes=(leave_out(c.device.host), *_tests(c.device)),
                confirm="the same probe again, alone on that device",
                sources=(SDC,),
                explains=("wrong-data",),
            )


@rule("GPU062", Severity.WARNING)
def gpu_slower_than_its_equals(probes: Probes) -> Iterator[Finding]:
    """A GPU multiplies matrices more slowly than the others of its model.

    Every rank waits for the slowest one in each step: the whole job runs at its rate.

    Fix: look at its clocks, temperature and power under load; leave the host out if it stays slow.
    """
    yield from _slow_compute(probes, on_gpu=True)


@rule("HST057", Severity.WARNING)
def processors_slower_than_the_others(probes: Probes) -> Iterator[Finding]:
    """The processors of a host compute more slowly than those of its equals.

    Processor time is counted, so that what others take away does not matter: the clock is low (governor, heat,
    power), or the virtual machine gets less than a whole core.

    Fix: look at the host's clock frequency and governor, and at what the hypervisor promises.
    """
    yield from _slow_compute(probes, on_gpu=False)


def _slow_compute(probes: Probes, *, on_gpu: bool) -> Iterator[Finding]:
    for equals in model.equals([c for c in computed(probes) if (c.device.gpu is not None) == on_gpu]):
        ratios = _ratios(equals)
        found = fleet.slow(ratios, shortfall=GPU_SHORTFALL if on_gpu else CPU_SHORTFALL)
        for c in equals:
            if c.device not in found:
                continue
            slow = found[c.device]
            yield Finding(
                message=f"{c.device.name} computes at {slow.value / slow.usual:.0%} of the rate of its "
                f"{len(ratios) - 1} equals ({_rates(c)})",
                cause="slow-gpu" if on_gpu else "slow-node",
                confidence=Confidence.LIKELY,
                where=where(c.device),
                evidence=(
                    probes.seen(f"{c.device.name}: {_rates(c)}"),
                    probes.seen(f"median of {len(ratios)}: {_usual_rates(equals)}"),
                    *((probes.seen(_load_text(c)),) if c.load else ()),
                ),
                why="each step ends when the slowest rank is through",
                cost=f"{slow.shortfall:.0%} of the compute rate of the whole job (ratio to the median device)",
                fixes=(
                    Fix(
                        do="watch it under load",
                        command=f"nvidia-smi dmon -s pct -i {c.device.gpu}" if on_gpu else "grep MHz /proc/cpuinfo",
                    ),
                    leave_out(c.device.host),
                ),
                confirm=f"smoldiag preflight on {c.device.host} alone",
                explains=("late-rank", "straggler-rank", "busbw-below-expected"),
            )


def _ratios(equals: list[Compute]) -> dict[Device, float]:
    """Per device the mean over its products of its rate against the median of all in that product."""
    rates = {(c.device, m.dtype, m.shape): model.figure(c, m) for c in equals for m in c.matmuls}
    usual = {
        key: median([rate for (_, *other), rate in rates.items() if tuple(other) == key])
        for key in {(dtype, shape) for _, dtype, shape in rates}
    }
    return {
        c.device: fleet.geometric_mean([model.figure(c, m) / usual[m.dtype, m.shape] for m in c.matmuls])
        for c in equals
        if c.matmuls
    }


def _rates(c: Compute) -> str:
    return ", ".join(f"{dtype} {rate:.3g} TFLOP/s" for dtype, rate in model.tflops_by_dtype(c).items())


def _usual_rates(equals: list[Compute]) -> str:
    by_type: dict[str, list[float]] = {}
    for c in equals:
        for dtype, rate in model.tflops_by_dtype(c).items():
            by_type.setdefault(dtype, []).append(rate)
    return ", ".join(f"{dtype} {median(rates):.3g} TFLOP/s" for dtype, rates in by_type.items())


def _load_text(c: Compute) -> str:
    assert c.load
    parts = [
        f"SM clock {c.load.sm_clock_mhz:.0f} of {c.load.sm_clock_max_mhz} MHz" if c.load.sm_clock_mhz else "",
        f"{c.load.temperature_c} C" if c.load.temperature_c is not None else "",
        f"{c.load.power_w:.0f} of {c.load.power_limit_w:.0f} W" if c.load.power_w and c.load.power_limit_w else "",
        "; ".join(f"{name} in {ratio:.0%} of the samples" for name, ratio in c.load.throttle.items()),
    ]
    return f"{c.device.name} under load: " + ", ".join(filter(None, parts))


@rule("GPU063", Severity.WARNING)
def gpu_far_below_its_data_sheet(probes: Probes) -> Iterator[Finding]:
    """A GPU reaches far less of its dense peak than large matrix products usually do.

    Where all GPUs of a fleet are equally slow, only the data sheet shows it: a power or clock limit on all of them,
    or a library without kernels for this GPU.

    Fix: look at power limit and clocks under load, and at the versions of torch and CUDA.
    """
    for c in computed(probes):
        spec = hardware.gpu(c.device.model)
        if c.device.gpu is None or spec is None:
            continue
        low = []
        for dtype, rate in model.tflops_by_dtype(c).items():
            peak = spec.peak_tflops.get(dtype)
            if peak and rate < LEAST_OF_PEAK * peak:
                low.append(f"{dtype} {rate:.3g} of {peak:g} TFLOP/s ({rate / peak:.0%})")
        if low:
            yield Finding(
                message=f"{c.device.name} ({c.device.model}) reaches {', '.join(low)}",
                cause="slow-gpu",
                subject="data sheet",
                confidence=Confidence.LIKELY,
                where=where(c.device),
                evidence=(probes.seen(low[0]), *((probes.seen(_load_text(c)),) if c.load else ())),
                why=f"large products reach more than {LEAST_OF_PEAK:.0%} of the dense peak even on power-limited cards",
                fixes=(
                    Fix(do="look at limits", command=f"nvidia-smi -q -d POWER,CLOCK,PERFORMANCE -i {c.device.gpu}"),
                ),
                confirm="the same probe with nothing else on the GPU",
                sources=(spec.source,),
            )


@rule("GPU064", Severity.ERROR)
def gpu_held_back_under_load(probes: Probes) -> Iterator[Finding]:
    """A GPU is slowed down for heat or by the power brake as soon as it works.

    An idle GPU does not show it. A power cap (sw_power_cap) is usual in large products and is not meant here.

    Fix: drain the host; look at fans, air flow, inlet temperature and power supplies.
    """
    for c in computed(probes):
        for reason, (cause, meaning, severity) in LIMITS.items():
            ratio = c.load.throttle.get(reason, 0.0) if c.load else 0.0
            if ratio < OFTEN or (reason == "hw_slowdown" and _said_why(c)):
                continue
            yield Finding(
                message=f"{c.device.name} is {meaning} in {ratio:.0%} of the samples under load",
                cause=cause,
                subject=f"under load {reason}",
                severity=severity,
                where=where(c.device),
                evidence=(probes.seen(_load_text(c)),),
                why="its clock falls while it works, and every rank waits for it",
                fixes=(Fix(do="check cooling and power of the host"), leave_out(c.device.host)),
                confirm=f"nvidia-smi -q -d PERFORMANCE,TEMPERATURE -i {c.device.gpu}, under load",
                sources=("NVML API reference, NvmlClocksEventReasons",),
                explains=("slow-gpu", "late-rank", "straggler-rank"),
            )


def _said_why(c: Compute) -> bool:
    assert c.load
    return any(c.load.throttle.get(reason, 0.0) >= OFTEN for reason in ("hw_thermal", "hw_power_brake"))


@rule("GPU065", Severity.WARNING)
def gpu_memory_slow(probes: Probes) -> Iterator[Finding]:
    """A GPU copies within its memory too slowly: against its equals or its data sheet.

    Norms, optimizers and attention over long contexts run at the rate of the memory.

    Fix: look at memory clock and temperature under load; leave the host out if it stays slow.
    """
    yield from _slow_copies(probes, "device", GPU_SHORTFALL, "slow-gpu-memory", "copies within its memory")


@rule("HST064", Severity.WARNING)
def host_memory_slower_than_the_others(probes: Probes) -> Iterator[Finding]:
    """The memory of a host is slower than that of its equals.

    Channels without modules, modules at a lower rate, or a process bound to the far NUMA node.

    Fix: compare the modules (dmidecode -t memory) and the NUMA binding with those of another host.
    """
    yield from _slow_copies(probes, "host", HOST_MEMORY_SHORTFALL, "slow-host-memory", "copies within its memory")


@rule("GPU066", Severity.WARNING)
def host_link_slow(probes: Probes) -> Iterator[Finding]:
    """The way between a GPU and its host is slow: against its equals or its generation.

    Half of the lanes or a lower generation halves it; so does memory on the far NUMA node.

    Fix: look at width and generation of the link under load; reseat the GPU, or leave the host out.
    """
    for kind, words in (("h2d", "gets data from its host"), ("d2h", "sends data to its host")):
        yield from _slow_copies(probes, kind, LINK_SHORTFALL, "pcie-degraded", words)


def _slow_copies(probes: Probes, kind: str, shortfall: float, cause: str, words: str) -> Iterator[Finding]:
    groups: dict[tuple[str | None, str], dict[Device, float]] = {}
    for m in remembered(probes):
        if (rate := model.memory_gb_per_s(m).get(kind)) is not None:
            groups.setdefault((m.device.model, m.device.software), {})[m.device] = rate
    for (name, _), rates in groups.items():
        found = fleet.slow(rates, shortfall=shortfall)
        least, source = _least_of_spec(name, kind)
        for device, rate in rates.items():
            if device in found:
                against = f"its {len(rates) - 1} equals reach {found[device].usual:.3g} GB/s"
                lost = found[device].shortfall
            elif least and rate < least:
                against = f"at least {least:.3g} GB/s are usual for {name}"
                lost = 1 - rate / least
            else:
                continue
            yield Finding(
                message=f"{device.name} {words} at {rate:.3g} GB/s; {against}",
                cause=cause,
                subject=kind,
                confidence=Confidence.LIKELY,
                where=where(device),
                evidence=(probes.seen(f"{device.name}: {kind} {rate:.3g} GB/s"), probes.seen(against)),
                why="every rank waits for the slowest one",
                cost=f"{lost:.0%} of that rate",
                fixes=(*_look_at(device, kind), leave_out(device.host)),
                confirm=f"smoldiag preflight on {device.host} alone",
                sources=(source,) if source else (),
                explains=("late-rank", "straggler-rank"),
            )


def _least_of_spec(name: str | None, kind: str) -> tuple[float | None, str]:
    spec = hardware.gpu(name)
    if spec is None:
        return None, ""
    if kind == "device":
        return spec.memory_gb_per_s and LEAST_OF_MEMORY * spec.memory_gb_per_s, spec.source
    if kind in ("h2d", "d2h") and not spec.mnnvl:  # those are joined to their processor by NVLink
        return spec.pcie_gb_per_s and LEAST_OF_PCIE * spec.pcie_gb_per_s, spec.source
    return None, ""


def _look_at(device: Device, kind: str) -> tuple[Fix, ...]:
    if device.gpu is None:
        return (Fix(do="compare the memory modules", command="sudo dmidecode -t memory"),)
    query = "clocks.mem,temperature.memory" if kind == "device" else "pcie.link.gen.current,pcie.link.width.current"
    return (Fix(do="look under load", command=f"nvidia-smi --query-gpu={query} --format=csv -i {device.gpu}"),)


@rule("GPU067", Severity.WARNING)
def gpu_pair_slow(probes: Probes) -> Iterator[Finding]:
    """Two GPUs of a node exchange data more slowly than the other pairs of the node.

    On a board with NVSwitch all pairs are alike. A pair that is not has lost links, or goes through the host.

    Fix: nvidia-smi nvlink -s on both; reset them, or leave the host out.
    """
    if probes.links is None:
        raise NotKnown("the probe of links between GPUs did not run")
    for found in probes.links:
        spec = hardware.gpu(found.device.model)
        if spec is None or not spec.nvswitch:  # elsewhere pairs differ by design: bridges, sockets
            continue
        rates = model.pair_gb_per_s(found)
        slow = fleet.slow(rates, shortfall=LINK_SHORTFALL)
        if slow:
            yield _slow_pairs(probes, found, rates, slow)


def _slow_pairs(
    probes: Probes, found: Links, rates: Mapping[tuple[int, int], float], slow: Mapping[tuple[int, int], fleet.Slow]
) -> Finding:
    (a, b), worst = next(iter(slow.items()))
    gpus = sorted({gpu for pair in slow for gpu in pair})
    common = [gpu for gpu in gpus if all(gpu in pair for pair in slow)]
    blamed = tuple(common if len(common) == 1 else gpus)
    return Finding(
        message=f"{found.device.host}: GPU {a} to {b} at {worst.value:.3g} GB/s, {len(slow)} of {len(rates)} "
        f"directions are slow; the usual one reaches {worst.usual:.3g} GB/s",
        cause="nvlink-degraded",
        confidence=Confidence.LIKELY,
        where=Where(hosts=(found.device.host,), gpus=blamed),
        evidence=tuple(probes.seen(f"GPU {x} to {y}: {s.value:.3g} GB/s") for (x, y), s in list(slow.items())[:8]),
        why="a ring inside the node is as fast as its slowest pair",
        cost=f"{worst.shortfall:.0%} of the rate between these GPUs",
        fixes=(
            Fix(do="look at the links", command=f"nvidia-smi nvlink -s -i {','.join(map(str, blamed))}"),
            leave_out(found.device.host),
        ),
        confirm="smoldiag nccl-bench --groups intra",
        explains=("busbw-below-expected", "slow-node"),
    )


@rule("HST063", Severity.WARNING)
def processor_quota_used_up(probes: Probes) -> Iterator[Finding]:
    """A quota of the control group holds the ranks of a host up.

    The kernel counts the periods in which the group had used up its processor time and stood still: other processes
    on the host can't cause that. Threads that launch kernels, load data or drive the network stand still with it.
    Less than one processor is named before it was used up: it will be as soon as others leave it more.

    Fix: raise the CPU limit of the container or job, or take it away.
    """
    ranks_of = Counter((c.device.host, c.throttling.group) for c in computed(probes) if c.throttling)
    for c in computed(probes):
        t, lost = c.throttling, model.cpu_lost(c)
        if t is None or lost is None or not _holds_up(t, c.wall_s or 0.0, ranks_of[c.device.host, t.group]):
            continue
        yield Finding(
            message=_quota_text(c, t, lost),
            cause="cpu-quota",
            where=where(c.device),
            evidence=(
                probes.seen(f"{t.group}/cpu.stat: nr_periods +{t.periods}, nr_throttled +{t.throttled_periods}"),
                probes.seen(f"{c.cpu_s:.2f} s of processor time in {c.wall_s:.2f} s"),
            ),
            why="while the group stands still, nothing of its ranks runs, and all other hosts wait",
            cost=f"{lost:.0%} of the processor time of that rank (processor time over wall time)"
            if t.throttled_periods
            else "",
            fixes=(
                Fix(do="raise or remove it: --cpus (docker), resources.limits.cpu (Kubernetes), CPUQuota (systemd)"),
                leave_out(c.device.host),
            ),
            confirm=f"grep throttled {t.group}/cpu.stat, twice while the job runs",
            sources=("kernel documentation, scheduler/sched-bwc: nr_periods, nr_throttled",),
            explains=("late-rank", "slow-node", "straggler-rank", "limits-differ"),
        )


def _holds_up(t: Throttling, wall_s: float, ranks: int) -> bool:
    """By the counters. Less than a processor holds a rank up as soon as others on the host leave it more."""
    if t.cpus is not None and (t.cpus < 1 or (t.cpus < ranks and t.throttled_periods)):
        return True
    often = t.throttled_periods >= max(THROTTLED_PERIODS, THROTTLED_RATIO * t.periods)
    return often and t.throttled_s >= STOOD_STILL_RATIO * wall_s


def _quota_text(c: Compute, t: Throttling, lost: float) -> str:
    threads = f"{c.threads} thread{'s' if c.threads > 1 else ''}"
    if not t.throttled_periods:
        return f"the CPU quota of {c.device.host} allows its ranks {t.cpus:.3g} processors in all"
    allowed = f"{t.cpus:.3g} processors for " if t.cpus else ""
    return (
        f"the CPU quota of {c.device.host} held its rank up in {t.throttled_periods} of {t.periods} "
        f"periods: {allowed}{threads} got {1 - lost:.0%} of the time they could use"
    )
