"""GPU: what slows one down: heat, power, clocks, its PCIe link."""

from collections.abc import Iterable, Iterator
from statistics import median

from smoldiag.facts import Gpu
from smoldiag.findings import Confidence, Finding, Fix, Severity
from smoldiag.knowledge import hardware
from smoldiag.rules import rule
from smoldiag.rules.gpu import NVML, answering, ids, seen, told, where

BUSY_PERCENT = 20  # utilization from which a GPU counts as loaded
BUSY_CLOCK_RATIO = 0.6  # of the highest SM clock: an idle GPU lowers it far below (H100: 345 of 1980 MHz)
BUSY_POWER_RATIO = 0.5  # of the limit; an idle H100 draws 70 to 120 of 700 W
FULL_PERCENT = 90  # utilization at which a GPU should run at its clock
LOW_CLOCK_RATIO = 0.75  # of the highest SM clock, at full load and with no limiter named
NEAR_SLOWDOWN_C = 3  # degrees below the slowdown temperature
HOT_C = 80  # below it a difference between GPUs is of no concern
HOTTER_THAN_SIBLINGS_C = 15  # than the median of the others; neighbours in one air flow differ by about 10
LOW_POWER_RATIO = 0.90  # of the board's own limit; below it clocks fall noticeably under load
NO_POWER_CHANGE_RATIO = 0.99
MANY_REPLAYS = 1000  # PCIe replays since boot; a sound link has next to none
REASONS = f"{NVML}: NvmlClocksEventReasons"
XID_79 = "NVIDIA/open-gpu-kernel-modules issue 507: heat is among the common causes of Xid 79"


def under_load(g: Gpu) -> bool:
    """Whether something runs on it; an idle GPU lowers its clocks and its PCIe generation."""
    if g.utilization_percent is not None and g.utilization_percent >= BUSY_PERCENT:
        return True
    if g.sm_clock_mhz and g.sm_clock_max_mhz and g.sm_clock_mhz >= BUSY_CLOCK_RATIO * g.sm_clock_max_mhz:
        return True
    if g.power_w and g.power_limit_w and g.power_w >= BUSY_POWER_RATIO * g.power_limit_w:
        return True
    unknown = g.utilization_percent is None and g.sm_clock_mhz is None and g.power_w is None
    return unknown and g.pstate == 0 and g.throttle is not None and "gpu_idle" not in g.throttle


@rule("GPU004", Severity.ERROR)
def hardware_thermal_slowdown(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """The hardware slows a GPU down because it is too hot.

    The core clock falls to half or less, and every rank of the job waits for this one.

    Fix: drain the host and look at its cooling: fans, air flow, inlet temperature, a heat sink that came loose.
    """
    bad = [g for g in answering(gpus) if "hw_thermal" in (g.throttle or ()) or _hot_slowdown(g)]
    if bad:
        yield Finding(
            message=f"{told(bad, 'is', 'are')} slowed down by the hardware for heat{_in_brackets(_clock(bad[0]))}",
            cause="gpu-throttled",
            subject="hardware",
            severity=Severity.ERROR,
            where=where(bad),
            evidence=seen(bad, _reasons, "nvidia-smi -q -d PERFORMANCE"),
            why="the clock is halved or worse until it has cooled down",
            cost=_clock_cost(bad),
            fixes=(
                Fix(do="drain the host; check its fans, air flow and inlet temperature"),
                Fix(do="watch it under load", command=f"nvidia-smi dmon -s pct -i {ids(bad)}"),
            ),
            confirm=f"nvidia-smi -q -d PERFORMANCE,TEMPERATURE -i {ids(bad)}, under load",
            sources=(REASONS, XID_79),
            explains=("slow-node", "late-rank", "straggler-rank", "gpu-fell-off-bus"),
        )


def _hot_slowdown(g: Gpu) -> bool:
    """`hw_slowdown` alone does not say why; at the slowdown temperature it is the heat."""
    hot = g.temperature_c is not None and g.slowdown_c is not None and g.temperature_c >= g.slowdown_c - NEAR_SLOWDOWN_C
    return hot and "hw_slowdown" in (g.throttle or ()) and "hw_power_brake" not in (g.throttle or ())


def _reasons(g: Gpu) -> str:
    return f"clocks event reasons {', '.join(g.throttle or ()) or 'none'}; {_clock(g)}".rstrip("; ")


@rule("GPU005", Severity.WARNING)
def software_thermal_slowdown(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """The driver lowers the clock of a GPU because it or its memory is near its limit.

    It may be the memory that is hot: the core looks cool then. Every rank of the job waits for this GPU.

    Fix: look at the cooling of the host; compare with the other GPUs under the same load.
    """
    bad = [g for g in answering(gpus) if "sw_thermal" in (g.throttle or ()) and "hw_thermal" not in (g.throttle or ())]
    if bad:
        memory = bad[0].memory_temperature_c
        heat = ", ".join(filter(None, (_clock(bad[0]), f"memory {memory} C" if memory else "")))
        yield Finding(
            message=f"{told(bad, 'is', 'are')} slowed down by the driver for heat{_in_brackets(heat)}",
            cause="gpu-throttled",
            subject="software",
            severity=Severity.WARNING,
            where=where(bad),
            evidence=seen(bad, _reasons, "nvidia-smi -q -d PERFORMANCE"),
            why="the clock is lowered until core and memory are below their limits",
            cost=_clock_cost(bad),
            fixes=(
                Fix(do="check fans, air flow and inlet temperature of the host"),
                Fix(do="watch it under load", command=f"nvidia-smi dmon -s pct -i {ids(bad)}"),
            ),
            confirm=f"nvidia-smi -q -d PERFORMANCE,TEMPERATURE -i {ids(bad)}, under load",
            sources=(REASONS, XID_79),
            explains=("slow-node", "late-rank", "straggler-rank", "gpu-fell-off-bus"),
        )


@rule("GPU006", Severity.ERROR)
def power_brake(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """The host asks a GPU to slow down at once: the power brake is on.

    A power supply failed or is overloaded, or the rack's power is capped; the core clock falls to half or less.

    Fix: look at the power supplies of the host and at the rack's power limit.
    """
    bad = [g for g in answering(gpus) if "hw_power_brake" in (g.throttle or ())]
    if bad:
        yield Finding(
            message=f"{told(bad, 'is', 'are')} slowed down by the external power brake{_in_brackets(_clock(bad[0]))}",
            cause="gpu-power-brake",
            severity=Severity.ERROR,
            where=where(bad),
            evidence=seen(bad, _reasons, "nvidia-smi -q -d PERFORMANCE"),
            why="the clock is halved or worse for as long as the host asserts the brake",
            cost=_clock_cost(bad),
            fixes=(
                Fix(
                    do="check the power supplies", command="ipmitool sdr type 'Power Supply'; ipmitool sel list | tail"
                ),
            ),
            confirm=f"nvidia-smi -q -d PERFORMANCE,POWER -i {ids(bad)}, under load",
            sources=(REASONS,),
            explains=("slow-node", "late-rank", "straggler-rank"),
        )


@rule("GPU007", Severity.WARNING)
def hardware_slowdown(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """The hardware slows a GPU down and does not say why.

    Heat, the power brake or a power draw that rose too fast. A change of clocks shows it for a moment, too.

    Fix: look again under load; if it stays, treat it as a thermal or power fault of the host.
    """
    known = {"hw_thermal", "hw_power_brake"}
    bad = [
        g
        for g in answering(gpus)
        if "hw_slowdown" in (g.throttle or ()) and not known & set(g.throttle or ()) and not _hot_slowdown(g)
    ]
    if bad:
        yield Finding(
            message=f"{told(bad, 'is', 'are')} slowed down by the hardware for no named reason"
            f"{_in_brackets(_clock(bad[0]))}",
            cause="gpu-throttled",
            subject="hardware, reason not told",
            severity=Severity.WARNING,
            confidence=Confidence.LIKELY,
            where=where(bad),
            evidence=seen(bad, _reasons, "nvidia-smi -q -d PERFORMANCE"),
            why="the clock is halved or worse while it lasts",
            cost=_clock_cost(bad),
            fixes=(Fix(do="watch it under load", command=f"nvidia-smi dmon -s pct -i {ids(bad)}"),),
            confirm=f"nvidia-smi -q -d PERFORMANCE -i {ids(bad)}, a minute later and under load",
            sources=(REASONS,),
            explains=("slow-node", "late-rank", "straggler-rank"),
        )


@rule("GPU008", Severity.WARNING)
def gpu_hot(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """A GPU is near its slowdown temperature, or much hotter than its neighbours.

    It will slow down in the next long step; a GPU that alone is hot has a cooling fault of its own.

    Fix: check fans, air flow and the heat sink of that GPU.
    """
    known = [g for g in answering(gpus) if g.temperature_c is not None and not _thermal(g)]
    usual = median(g.temperature_c or 0 for g in known) if len(known) >= 3 else None
    bad = []
    for g in known:
        heat = g.temperature_c or 0
        near = g.slowdown_c is not None and heat >= g.slowdown_c - NEAR_SLOWDOWN_C
        alone = usual is not None and heat >= HOT_C and heat >= usual + HOTTER_THAN_SIBLINGS_C
        if near or alone:
            bad.append(g)
    if bad:
        others = f"; the median of this host is {usual:.0f} C" if usual is not None else ""
        limit = f", it slows down at {bad[0].slowdown_c} C" if bad[0].slowdown_c else ""
        yield Finding(
            message=f"{told(bad, 'is', 'are')} at {bad[0].temperature_c} C{limit}{others}",
            cause="gpu-hot",
            severity=Severity.WARNING,
            where=where(bad),
            evidence=seen(bad, lambda g: f"{g.temperature_c} C", "nvidia-smi -q -d TEMPERATURE"),
            why="it will slow down, and every rank of the job waits for it",
            fixes=(Fix(do="watch it under load", command=f"nvidia-smi dmon -s pct -i {ids(bad)}"),),
            confirm=f"nvidia-smi -q -d TEMPERATURE,PERFORMANCE -i {ids(bad)}, under load",
            sources=(f"{NVML}: nvmlDeviceGetTemperatureThreshold, nvmlDeviceGetMarginTemperature",),
            explains=("gpu-throttled",),
        )


def _thermal(g: Gpu) -> bool:
    return bool({"hw_thermal", "sw_thermal"} & set(g.throttle or ())) or _hot_slowdown(g)


@rule("GPU020", Severity.WARNING)
def power_limit_low(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """The power limit of a GPU is set below the board's own.

    Training runs at the power limit: below it the clock falls. Sites cap power on purpose, then on all hosts alike.

    Fix: set the limit back, or make it the same on all hosts of the job.
    """
    limits = {g.index: limit for g in answering(gpus) if (limit := _own_limit_w(g)) and g.power_limit_w}
    share = {g.index: (g.power_limit_w or 0) / limits[g.index] for g in answering(gpus) if g.index in limits}
    bad = [g for g in answering(gpus) if share.get(g.index, 1) < NO_POWER_CHANGE_RATIO]
    if bad:
        worst = min(bad, key=lambda g: share[g.index])
        ratio, own = share[worst.index], limits[worst.index]
        yield Finding(
            message=f"{told(bad, 'is', 'are')} limited to {worst.power_limit_w:.0f} W, {ratio:.0%} of the board's "
            f"{own:.0f} W",
            cause="gpu-power-limited",
            severity=Severity.WARNING if ratio < LOW_POWER_RATIO else Severity.INFO,
            where=where(bad),
            evidence=seen(bad, lambda g: f"{g.power_limit_w:.0f} of {limits[g.index]:.0f} W", "nvidia-smi -q -d POWER"),
            why="under training load the clock falls until the draw fits the limit",
            cost=f"less than {1 - ratio:.0%} of the compute rate (clocks fall more slowly than power)",
            fixes=(
                Fix(
                    do="set the board's own limit (as root)",
                    command=f"nvidia-smi -i {ids(bad)} -pl {own:.0f}",
                ),
            ),
            confirm=f"nvidia-smi dmon -s pc -i {ids(bad)}, under load: power at the limit, clock below its maximum",
            sources=(f"{NVML}: nvmlDeviceGetEnforcedPowerLimit, nvmlDeviceGetPowerManagementDefaultLimit",),
            explains=("slow-node", "straggler-rank"),
        )


def _own_limit_w(g: Gpu) -> float | None:
    spec = hardware.gpu(g.name)
    return g.power_default_w or (spec.power_w if spec else None)


@rule("GPU021", Severity.WARNING)
def application_clock_low(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """The application clock of a GPU is set below the board's own.

    Somebody fixed the clock for a measurement and left it so; the GPU never runs faster than this.

    Fix: reset the application clocks.
    """
    bad = [
        g
        for g in answering(gpus)
        if g.app_clock_mhz and g.app_clock_default_mhz and g.app_clock_mhz < g.app_clock_default_mhz
    ]
    if bad:
        g = bad[0]
        lost = 1 - (g.app_clock_mhz or 0) / (g.app_clock_default_mhz or 1)
        yield Finding(
            message=f"{told(bad, 'has', 'have')} an application clock of {g.app_clock_mhz} MHz; "
            f"{g.app_clock_default_mhz} MHz is the board's own",
            cause="gpu-clock-capped",
            severity=Severity.WARNING,
            where=where(bad),
            evidence=seen(
                bad, lambda g: f"{g.app_clock_mhz} of {g.app_clock_default_mhz} MHz", "nvidia-smi -q -d CLOCK"
            ),
            why="the SM clock is held there under load",
            cost=f"up to {lost:.0%} of the compute rate (ratio of the clocks)",
            fixes=(Fix(do="reset them (as root)", command=f"nvidia-smi -i {ids(bad)} -rac"),),
            confirm=f"nvidia-smi dmon -s pc -i {ids(bad)}, under load",
            sources=(f"{NVML}: nvmlDeviceGetApplicationsClock, nvmlDeviceGetDefaultApplicationsClock",),
            explains=("slow-node", "straggler-rank"),
        )


@rule("GPU022", Severity.WARNING)
def clock_low_under_load(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """A GPU is fully loaded at a low clock, and names no reason for it.

    Locked clocks (nvidia-smi -lgc) show in no setting that can be read, only in this.

    Fix: reset locked clocks.
    """
    free = {"applications_clocks_setting", "display_clock_setting", "gpu_idle"}
    bad = [
        g
        for g in answering(gpus)
        if g.throttle is not None
        and not set(g.throttle) - free
        and (g.utilization_percent or 0) >= FULL_PERCENT
        and g.sm_clock_mhz
        and g.sm_clock_max_mhz
        and g.sm_clock_mhz < LOW_CLOCK_RATIO * g.sm_clock_max_mhz
    ]
    if bad:
        yield Finding(
            message=f"{told(bad, 'runs', 'run')} fully loaded without a limiter at {_clock(bad[0])}",
            cause="gpu-clock-capped",
            severity=Severity.WARNING,
            confidence=Confidence.LIKELY,
            where=where(bad),
            evidence=seen(bad, _reasons, "nvidia-smi -q -d CLOCK,PERFORMANCE"),
            why="the clock is held there by a setting",
            cost=_clock_cost(bad),
            fixes=(Fix(do="reset locked clocks (as root)", command=f"nvidia-smi -i {ids(bad)} -rgc"),),
            confirm=f"nvidia-smi dmon -s puc -i {ids(bad)}, under load",
            sources=(REASONS,),
            explains=("slow-node", "straggler-rank"),
        )


# ---- PCI Express


@rule("GPU009", Severity.WARNING)
def pcie_width_reduced(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """A GPU runs on fewer PCIe lanes than it has.

    Copies to and from the host, and GPUDirect to a NIC, run at the fraction that is left. The width does not change
    with load: it is a slot, a riser, a contact, or a setting of the firmware.

    Fix: drain the host and reseat the GPU or its riser; check the slot's bifurcation in the BIOS.
    """
    widest = {g.index: _usual_width(g, gpus) for g in answering(gpus)}
    bad = [g for g in answering(gpus) if g.pci_width and g.pci_width < (widest[g.index] or 0)]
    if not bad:
        return
    alike = len({g.pci_width for g in answering(gpus)}) == 1
    spec = hardware.gpu(bad[0].name)
    built_so = alike and not (spec and spec.nvlink_gb_per_s)  # T4, L4, A10G in clouds are; desktop boards, too
    width, most = bad[0].pci_width or 0, widest[bad[0].index] or 1
    yield Finding(
        message=f"{told(bad, 'is', 'are')} linked with x{width}, x{most} is possible",
        cause="pcie-degraded",
        severity=Severity.INFO if built_so else Severity.WARNING,
        confidence=Confidence.POSSIBLE if built_so else Confidence.CERTAIN,
        where=where(bad),
        evidence=seen(bad, lambda g: f"x{g.pci_width} of x{widest[g.index]}, generation {g.pci_gen}", "nvidia-smi -q"),
        why="host copies and GPUDirect RDMA of this GPU have fewer lanes",
        cost=f"{1 - width / most:.0%} of the PCIe bandwidth (lanes)",
        fixes=(
            Fix(do="drain the host; reseat the GPU or its riser, check the slot's bifurcation"),
            Fix(do="see the link of every bridge on the way", command=_lspci(bad[0])),
        ),
        confirm="smoldiag nccl-bench --groups intra, with NCCL_P2P_DISABLE=1 to go through the host; nvidia-smi -q",
        sources=(f"{NVML}: nvmlDeviceGetCurrPcieLinkWidth",),
        explains=("slow-node", "busbw-below-expected"),
    )


def _usual_width(g: Gpu, gpus: tuple[Gpu, ...]) -> int | None:
    """The widest of: what GPU and slot can, what its twins have, what the model is sold with."""
    twins = [t.pci_width for t in answering(gpus) if t.name == g.name and t.pci_width]
    model = 16 if (spec := hardware.gpu(g.name)) and spec.pcie_gen and spec.nvlink_gb_per_s else None
    return max((w for w in (g.pci_width_max, *twins, model) if w), default=None)


def _lspci(g: Gpu) -> str:
    return f"lspci -vvv -s {g.bus_id} | grep -E 'LnkCap|LnkSta'" if g.bus_id else "lspci -vvv | grep -E 'LnkCap|LnkSta'"


@rule("GPU010", Severity.WARNING)
def pcie_generation_low_under_load(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """A loaded GPU runs its PCIe link below the generation that GPU and slot can.

    An idle GPU lowers it to save power, so that it is judged only while the GPU is loaded.

    Fix: drain the host; check the BIOS setting of the slot, riser and retimer.
    """
    bad = [g for g in answering(gpus) if g.pci_gen and g.pci_gen_max and g.pci_gen < g.pci_gen_max and under_load(g)]
    if bad:
        now, most = bad[0].pci_gen or 0, bad[0].pci_gen_max or 0
        lost = 1 - _rate(now) / _rate(most)
        yield Finding(
            message=f"{told(bad, 'is', 'are')} loaded and linked with PCIe generation {now}, {most} is possible",
            cause="pcie-degraded",
            severity=Severity.WARNING,
            where=where(bad),
            evidence=seen(
                bad,
                lambda g: f"generation {g.pci_gen} of {g.pci_gen_max}; {_load(g)}",
                "nvidia-smi -q -d PERFORMANCE,UTILIZATION,CLOCK",
            ),
            why="host copies and GPUDirect RDMA of this GPU run at the lower rate",
            cost=f"{lost:.0%} of the PCIe bandwidth (transfer rates)",
            fixes=(
                Fix(do="see the link of every bridge on the way", command=_lspci(bad[0])),
                Fix(do="drain the host; check the slot's speed in the BIOS, and riser or retimer"),
            ),
            confirm="nvidia-smi --query-gpu=index,pcie.link.gen.current,pcie.link.gen.max --format=csv, under load",
            sources=(f"{NVML}: nvmlDeviceGetCurrPcieLinkGeneration",),
            explains=("slow-node", "busbw-below-expected"),
        )


def _rate(generation: int) -> float:
    """GT/s per lane: it doubles, but from the second to the third the coding improved as well."""
    return {1: 2.0, 2: 4.0}.get(generation, 8.0 * float(2 ** (generation - 3)))


def _load(g: Gpu) -> str:
    utilization = f"{g.utilization_percent} % utilized" if g.utilization_percent is not None else ""
    return ", ".join(filter(None, (utilization, _clock(g)))) or f"P{g.pstate}"


@rule("GPU026", Severity.INFO)
def pcie_replays_many(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """A GPU has repeated many PCIe packets since boot.

    Only an increase under load says that the link is bad now; a count since boot says where to look.

    Fix: read it again after a run; if it rises, reseat the GPU or its riser.
    """
    bad = [g for g in answering(gpus) if (g.pci_replays or 0) >= MANY_REPLAYS]
    if bad:
        yield Finding(
            message=f"{told(bad, 'has', 'have')} repeated {bad[0].pci_replays} PCIe packets since boot",
            cause="pcie-replays",
            severity=Severity.INFO,
            where=where(bad),
            evidence=seen(bad, lambda g: f"{g.pci_replays} replays since boot", "nvidia-smi -q"),
            why="a marginal link loses bandwidth to repeats, and may fall off the bus",
            fixes=(Fix(do="read it again after a run", command="nvidia-smi -q | grep -i replay"),),
            confirm="nvidia-smi -q | grep -i replay, before and after smoldiag nccl-bench --groups intra",
            sources=(f"{NVML}: nvmlDeviceGetPcieReplayCounter",),
        )


def _clock(g: Gpu) -> str:
    clock = f"SM clock {g.sm_clock_mhz}" if g.sm_clock_mhz is not None else ""
    clock += f" of {g.sm_clock_max_mhz} MHz" if clock and g.sm_clock_max_mhz else " MHz" if clock else ""
    heat = f"{g.temperature_c} C" if g.temperature_c is not None else ""
    return ", ".join(filter(None, (clock, heat)))


def _in_brackets(words: str) -> str:
    return f" ({words})" if words else ""


def _clock_cost(gpus: Iterable[Gpu]) -> str:
    ratios = [g.sm_clock_mhz / g.sm_clock_max_mhz for g in gpus if g.sm_clock_mhz and g.sm_clock_max_mhz]
    if not ratios:
        return "the core clock is lowered; every other rank waits for this GPU"
    return f"up to {1 - min(ratios):.0%} of the compute rate (SM clock against its maximum), for every rank that waits"
