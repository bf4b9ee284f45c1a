"""GPU: whether every GPU is there, its memory errors, modes and users; what the rules of GPUs share."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from smoldiag.facts import Container, Evidence, Gpu, PciDevice
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.knowledge import hardware
from smoldiag.rules import rule

HELD_BYTES = 4 * 2**30  # memory in use; the driver itself takes up to about 1 GiB
BOARD_SIZES = (1, 2, 4, 8, 16)  # GPUs of NVSwitch boards, and of the virtual machines that are cut from them
NVIDIA, DISPLAY_CLASS = "10de", "0x03"  # PCI vendor; class of display and 3D controllers

NVML = "NVIDIA NVML API reference, docs.nvidia.com/deploy/nvml-api"
MEMORY_GUIDE = "NVIDIA GPU Memory Error Management, docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt"


def answering(gpus: Iterable[Gpu]) -> list[Gpu]:
    return [g for g in gpus if g.error is None]


def where(gpus: Iterable[Gpu]) -> Where:
    return Where(gpus=tuple(dict.fromkeys(g.index for g in gpus)))


def ids(gpus: Iterable[Gpu]) -> str:
    """For nvidia-smi -i."""
    return ",".join(str(g.index) for g in gpus)


def named(gpus: list[Gpu]) -> str:
    return f"GPU {gpus[0].index}" if len(gpus) == 1 else f"GPUs {', '.join(str(g.index) for g in gpus)}"


def seen(gpus: Iterable[Gpu], text: Callable[[Gpu], str], command: str) -> tuple[Evidence, ...]:
    """One line for each GPU, and the command that shows it again."""
    return tuple(Evidence(text=f"GPU {g.index}: {text(g)}", where=command) for g in gpus)


def told(gpus: list[Gpu], one: str, several: str) -> str:
    """The beginning of a sentence about them."""
    return f"{named(gpus)} {one if len(gpus) == 1 else several}"


def _made_for_training(g: Gpu) -> bool:
    """A data centre GPU; on a desktop card several settings are off as shipped."""
    return not any(word in g.name for word in ("GeForce", "TITAN", "Quadro", "RTX"))


# ---- there or not


@rule("GPU002", Severity.ERROR)
def gpu_does_not_answer(gpus: tuple[Gpu, ...], container: Container | None) -> Iterator[Finding]:
    """A GPU is there, but does not answer.

    It fell off the PCIe bus, needs a reset, or this container lost its right to use it. Programs that touch it
    fail, and CUDA may number the other GPUs differently.

    Fix: drain the host; reset the GPU or power-cycle the host. In a container: start it again.
    """
    inside = container is not None and container.kind not in ("none", "unknown")
    causes = {
        "gpu-needs-reset": [g for g in gpus if g.error and "restart" in g.error.lower()],
        "container-lost-gpu-access": [g for g in gpus if g.error and "unknown error" in g.error.lower() and inside],
    }
    others = {g.index for found in causes.values() for g in found}
    causes["gpu-fell-off-bus"] = [g for g in gpus if g.error and g.index not in others]
    for cause, bad in causes.items():
        if bad:
            yield Finding(
                message=f"{told(bad, 'does', 'do')} not answer: {bad[0].error}",
                cause=cause,
                severity=Severity.ERROR,
                confidence=Confidence.LIKELY if cause == "container-lost-gpu-access" else Confidence.CERTAIN,
                where=where(bad),
                evidence=seen(bad, lambda g: f"{g.error}{f' ({g.bus_id})' if g.bus_id else ''}", "nvidia-smi -L"),
                why="ranks on this GPU can't start, or die at their next call",
                fixes=_ANSWERS[cause],
                confirm="nvidia-smi -q; dmesg | grep -i xid",
                sources=(f"{NVML}: nvmlDeviceGetHandleByIndex, NVML_ERROR_GPU_IS_LOST",),
                explains=("rank-died", "no-cuda-device", "nvlink-error", "gpu-missing"),
            )


_ANSWERS = {
    "gpu-needs-reset": (
        Fix(do="stop what runs on it and reset it; where that fails, reboot", command="nvidia-smi -r"),
    ),
    "container-lost-gpu-access": (
        Fix(do="start the container again; a systemd daemon-reload took its devices away"),
        Fix(
            do="so that it does not come again: give the device nodes to the container by name",
            command="docker run --device /dev/nvidia0 --device /dev/nvidiactl --device /dev/nvidia-uvm ...",
        ),
    ),
    "gpu-fell-off-bus": (
        Fix(do="drain the host and power-cycle it (a warm reboot may not bring the GPU back)"),
        Fix(do="see what the driver said of it", command="dmesg | grep -iE 'xid|fallen off'"),
    ),
}


@rule("GPU003", Severity.ERROR)
def gpu_missing(gpus: tuple[Gpu, ...], pci: tuple[PciDevice, ...] | None) -> Iterator[Finding]:
    """This host has fewer GPUs than its board carries, or the driver left one out.

    A job with one rank per GPU then starts with fewer ranks, or not at all. A job that was given only some of the
    GPUs is no such case: the PCI bus shows the others.

    Fix: look at the kernel log for the GPU that did not come up; power-cycle the host.
    """
    there = [d for d in pci or () if d.vendor == NVIDIA and d.kind.startswith(DISPLAY_CLASS)]
    shown = {g.bus_id for g in gpus}
    hidden = [d for d in there if d.address not in shown] if all(g.bus_id for g in gpus) else []
    models = {d.device for d in there if d.address in shown}
    left_out = [d for d in hidden if d.driver is None and d.device in models]
    if left_out:
        after_these = tuple(range(len(gpus), len(gpus) + len(left_out)))
        yield _missing(
            f"{len(left_out)} of {len(there)} GPUs on the PCI bus, {left_out[0].address}, is not taken by the driver",
            _missing_minors(gpus) or after_these,
            Confidence.CERTAIN,
            tuple(Evidence(text=f"{d.address} {d.vendor}:{d.device}, no driver", where="lspci -k") for d in left_out),
        )
    elif not hidden and _is_odd_board(gpus):
        size = next(s for s in BOARD_SIZES if s > len(gpus))
        yield _missing(
            f"{len(gpus)} GPUs {gpus[0].name} are here; boards with an NVSwitch carry {size}",
            _missing_minors(gpus) or tuple(range(len(gpus), size)),
            Confidence.LIKELY,
            (Evidence(text=f"{len(gpus)} GPUs: {', '.join(g.bus_id or '?' for g in gpus)}", where="nvidia-smi -L"),),
        )


def _is_odd_board(gpus: tuple[Gpu, ...]) -> bool:
    specs = {hardware.gpu(g.name) for g in answering(gpus)}
    switched = len(specs) == 1 and all(s is not None and s.nvswitch for s in specs)
    return switched and len(gpus) not in BOARD_SIZES and len(gpus) < max(BOARD_SIZES)


def _missing_minors(gpus: Iterable[Gpu]) -> tuple[int, ...]:
    """Device files are numbered through: a gap is a GPU."""
    minors = [g.minor for g in gpus if g.minor is not None]
    return tuple(sorted(set(range(max(minors, default=0) + 1)) - set(minors)))


def _missing(message: str, at: tuple[int, ...], confidence: Confidence, evidence: tuple[Evidence, ...]) -> Finding:
    return Finding(
        message=message,
        cause="gpu-missing",
        severity=Severity.ERROR if confidence is Confidence.CERTAIN else Severity.WARNING,
        confidence=confidence,
        where=Where(gpus=at),
        evidence=evidence,
        why="a rank per GPU is one rank less than planned, or the job does not start",
        cost="the share of that GPU, on every host of the job if all must have equally many",
        fixes=(
            Fix(do="see why it did not come up", command="dmesg | grep -iE 'nvrm|xid|aer'; lspci -d 10de: -k"),
            Fix(do="drain the host and power-cycle it"),
        ),
        confirm="nvidia-smi -L; lspci -d 10de:",
        explains=("duplicate-gpu-rank-mapping", "wrong-gpu-count-per-process"),
    )


# ---- memory errors


@rule("GPU011", Severity.ERROR)
def uncorrectable_ecc_errors(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """A GPU had uncorrectable memory errors since the driver was loaded.

    Programs on it were killed or computed with wrong data. After a reset the row is remapped and the count is zero.

    Fix: drain the host and reset the GPU; replace it if the error comes again or remapping failed.
    """
    bad = [g for g in answering(gpus) if g.ecc_volatile]
    if bad:
        yield Finding(
            message=f"{told(bad, 'has', 'have')} {bad[0].ecc_volatile} uncorrectable ECC error"
            f"{'s' if bad[0].ecc_volatile != 1 else ''} since the driver was loaded",
            cause="gpu-ecc-error",
            severity=Severity.ERROR,
            where=where(bad),
            evidence=seen(bad, lambda g: f"{g.ecc_volatile} uncorrectable, {_lifetime(g)}", "nvidia-smi -q -d ECC"),
            why="the memory cell is bad until the row is remapped at the next reset",
            fixes=(
                Fix(do="stop what runs on it and reset it (as root)", command=f"nvidia-smi -i {ids(bad)} -r"),
                Fix(do="see whether rows could be remapped", command="nvidia-smi -q -d ROW_REMAPPER"),
            ),
            confirm=f"dcgmi diag -r 3 -i {ids(bad)}; dmesg | grep -E 'Xid.*: (48|63|64|94|95)'",
            sources=(MEMORY_GUIDE,),
            explains=("rank-died", "wrong-data"),
        )


def _lifetime(g: Gpu) -> str:
    return f"{g.ecc_aggregate} in its life" if g.ecc_aggregate is not None else "history not known"


@rule("GPU012", Severity.INFO)
def ecc_errors_in_the_past(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """A GPU had uncorrectable memory errors some day, and none since the driver was loaded.

    Rows with errors are remapped at a reset and are sound afterwards; a GPU that collects them is worth watching.

    Fix: none is needed; watch the number.
    """
    bad = [g for g in answering(gpus) if not g.ecc_volatile and (g.ecc_aggregate or g.remapped_rows)]
    if bad:
        rows = f", {bad[0].remapped_rows} rows remapped" if bad[0].remapped_rows else ""
        yield Finding(
            message=f"{told(bad, 'has', 'have')} had {bad[0].ecc_aggregate or 0} uncorrectable ECC errors{rows}",
            cause="gpu-ecc-history",
            severity=Severity.INFO,
            where=where(bad),
            evidence=seen(
                bad,
                lambda g: f"{g.ecc_aggregate} uncorrectable in its life, {g.remapped_rows} rows remapped",
                "nvidia-smi -q -d ECC,ROW_REMAPPER",
            ),
            why="an H100 or A100 can remap up to 512 rows; then it has to be replaced",
            confirm="nvidia-smi -q -d ECC,ROW_REMAPPER",
            sources=(MEMORY_GUIDE,),
        )


@rule("GPU013", Severity.WARNING)
def ecc_off(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """ECC is off on a GPU that has it.

    A flipped bit then goes into gradients and weights without a trace.

    Fix: switch ECC on and reboot.
    """
    off = [g for g in answering(gpus) if g.ecc is False and g.ecc_default is not False]
    bad = [g for g in off if g.ecc_default or _made_for_training(g)]
    if bad:
        pending = " (it comes on at the next reboot)" if bad[0].ecc_pending else ""
        yield Finding(
            message=f"ECC is off on {named(bad)}{pending}",
            cause="ecc-off",
            severity=Severity.WARNING,
            where=where(bad),
            evidence=seen(
                bad, lambda g: f"ECC mode off, pending {'on' if g.ecc_pending else 'off'}", "nvidia-smi -q -d ECC"
            ),
            why="memory errors are neither corrected nor noticed: losses diverge without a reason",
            fixes=(Fix(do="switch it on (as root), then reboot", command=f"nvidia-smi -i {ids(bad)} -e 1"),),
            confirm="nvidia-smi --query-gpu=index,ecc.mode.current,ecc.mode.pending --format=csv",
            sources=(f"{NVML}: nvmlDeviceGetEccMode",),
        )


@rule("GPU014", Severity.WARNING)
def row_remap_pending(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """A GPU waits for a reset to remap a memory row with errors.

    Until then the bad row is in use, or its page is taken out; more errors may follow.

    Fix: reset the GPU between two jobs.
    """
    bad = [g for g in answering(gpus) if g.remap_pending]
    if bad:
        yield Finding(
            message=f"{told(bad, 'has', 'have')} a row remapping pending: a reset is due",
            cause="gpu-row-remap-pending",
            severity=Severity.WARNING,
            where=where(bad),
            evidence=seen(bad, lambda g: f"remapping pending; {g.remapped_rows} rows remapped", _REMAPPER),
            why="the row with the error stays in use until the GPU is reset",
            fixes=(Fix(do="stop what runs on it and reset it (as root)", command=f"nvidia-smi -i {ids(bad)} -r"),),
            confirm=_REMAPPER,
            sources=(MEMORY_GUIDE,),
            explains=("gpu-ecc-history",),
        )


_REMAPPER = "nvidia-smi -q -d ROW_REMAPPER"


@rule("GPU015", Severity.ERROR)
def row_remap_failed(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """A memory row with errors could not be remapped: the GPU has no spare row left there.

    The next access to it kills the program. NVIDIA takes such a GPU back.

    Fix: drain the host and have the GPU replaced.
    """
    bad = [g for g in answering(gpus) if g.remap_failed]
    if bad:
        yield Finding(
            message=f"{told(bad, 'has', 'have')} a row that could not be remapped",
            cause="gpu-row-remap-failed",
            severity=Severity.ERROR,
            where=where(bad),
            evidence=seen(bad, lambda g: f"remapping failed; {g.remapped_rows} rows remapped", _REMAPPER),
            why="the spare rows of that bank are used up",
            fixes=(Fix(do="drain the host and have the GPU replaced", command="nvidia-bug-report.sh"),),
            confirm=f"{_REMAPPER}; dcgmi diag -r 3 -i {ids(bad)}",
            sources=(MEMORY_GUIDE,),
            explains=("gpu-ecc-error", "gpu-ecc-history", "rank-died"),
        )


@rule("GPU016", Severity.WARNING)
def page_retirement_pending(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """A GPU waits for a reboot to retire a memory page with errors (GPUs before Ampere).

    Until then the page with errors is in use.

    Fix: reset the GPU or reboot the host between two jobs.
    """
    bad = [g for g in answering(gpus) if g.retirement_pending]
    if bad:
        yield Finding(
            message=f"{told(bad, 'has', 'have')} a page retirement pending: a reset is due",
            cause="gpu-page-retirement-pending",
            severity=Severity.WARNING,
            where=where(bad),
            evidence=seen(
                bad, lambda g: f"pending; {g.retired_pages} pages retired", "nvidia-smi -q -d PAGE_RETIREMENT"
            ),
            why="the page with the error stays in use until the GPU is reset",
            fixes=(Fix(do="stop what runs on it and reset it (as root)", command=f"nvidia-smi -i {ids(bad)} -r"),),
            confirm="nvidia-smi -q -d PAGE_RETIREMENT",
            sources=("NVIDIA Dynamic Page Retirement, docs.nvidia.com/deploy/dynamic-page-retirement",),
        )


@rule("GPU028", Severity.ERROR)
def driver_asks_for_a_reset(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """The driver says that a GPU has to be reset, or the host rebooted, before it works again.

    It says so after errors from which it can't recover by itself.

    Fix: do what it names.
    """
    bad = [g for g in answering(gpus) if g.recovery not in (None, "none")]
    if bad:
        wanted = (bad[0].recovery or "").replace("_", " ")
        host = "reboot" in wanted
        yield Finding(
            message=f"the driver asks for a recovery of {named(bad)}: {wanted}",
            cause="gpu-needs-reset",
            severity=Severity.ERROR,
            where=where(bad),
            evidence=seen(bad, lambda g: f"recovery action {g.recovery}", "nvidia-smi -q | grep -i recovery"),
            why="until then programs on it fail or hang",
            fixes=(
                Fix(do="drain and reboot the host", command="reboot")
                if host
                else Fix(do="stop what runs on it and reset it (as root)", command=f"nvidia-smi -i {ids(bad)} -r"),
            ),
            confirm="nvidia-smi -q | grep -i 'recovery action'; dmesg | grep -i xid",
            sources=(f"{NVML}: NVML_FI_DEV_GET_GPU_RECOVERY_ACTION",),
            explains=("rank-died",),
        )


# ---- modes and use


@rule("GPU017", Severity.ERROR)
def compute_mode_not_default(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """A GPU admits only one process, or none.

    In exclusive mode a second process (a rank that shares the GPU, a data loader that opens CUDA, a profiler, the
    rest of a job that died) fails with "all CUDA-capable devices are busy"; prohibited admits nobody.

    Fix: set the default compute mode.
    """
    for mode, severity in (("prohibited", Severity.ERROR), ("exclusive", Severity.WARNING)):
        bad = [g for g in answering(gpus) if (g.compute_mode or "").startswith(mode)]
        if bad:
            yield Finding(
                message=f"{told(bad, 'is', 'are')} in compute mode {bad[0].compute_mode}",
                cause="gpu-exclusive-mode-or-busy",
                subject=mode,
                severity=severity,
                where=where(bad),
                evidence=seen(bad, lambda g: f"compute mode {g.compute_mode}", "nvidia-smi -q -d COMPUTE"),
                why="every further process on the GPU fails to open CUDA"
                if mode == "exclusive"
                else "no process can open CUDA on it",
                fixes=(Fix(do="admit several processes (as root)", command=f"nvidia-smi -i {ids(bad)} -c DEFAULT"),),
                confirm="nvidia-smi --query-gpu=index,compute_mode --format=csv",
                sources=(f"{NVML}: nvmlComputeMode_t",),
                explains=("rank-died",),
            )


@rule("GPU018", Severity.WARNING)
def mig_on(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """MIG is on: a GPU is divided, and a rank gets a part of it.

    NCCL has no peer-to-peer between MIG instances and admits one instance per GPU and process: training over
    several GPUs does not work as on whole ones.

    Fix: switch MIG off on the GPUs that train together.
    """
    bad = [g for g in answering(gpus) if g.mig]
    if bad:
        yield Finding(
            message=f"MIG is on on {named(bad)}",
            cause="mig-enabled",
            severity=Severity.WARNING,
            where=where(bad),
            evidence=seen(bad, lambda g: "MIG mode enabled", "nvidia-smi -q -d MIG"),
            why="a rank sees a part of the GPU, without NVLink and peer-to-peer",
            fixes=(
                Fix(do="stop what runs on it and switch MIG off (as root)", command=f"nvidia-smi -i {ids(bad)} -mig 0"),
            ),
            confirm="nvidia-smi -L; smoldiag nccl-bench --groups intra",
            sources=("NVIDIA MIG user guide: no P2P and no NVLink between instances", f"{NVML}: nvmlDeviceGetMigMode"),
            explains=("p2p-not-used", "no-cuda-device"),
        )


@rule("GPU019", Severity.WARNING)
def persistence_off(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """Persistence mode is off: the driver lets go of a GPU when its last process ends.

    Each start then takes seconds longer, settings and clocks fall back, and NVLink comes up anew, which is where
    many GPU faults show.

    Fix: start nvidia-persistenced at boot.
    """
    bad = [g for g in answering(gpus) if g.persistence is False]
    if bad:
        desktop = not any(_made_for_training(g) for g in bad)
        yield Finding(
            message=f"persistence mode is off on {named(bad)}",
            cause="persistence-off",
            severity=Severity.INFO if desktop else Severity.WARNING,
            where=where(bad),
            evidence=seen(bad, lambda g: "persistence mode disabled", "nvidia-smi -q | grep -i persistence"),
            why="the driver unloads the GPU's state between jobs",
            cost="one to several seconds per GPU at every start (driver initialisation)",
            fixes=(
                Fix(do="now and at every boot (as root)", command="systemctl enable --now nvidia-persistenced"),
                Fix(do="where there is no such service", command="nvidia-smi -pm 1"),
            ),
            confirm="nvidia-smi --query-gpu=index,persistence_mode --format=csv",
            sources=("NVIDIA Driver Persistence, docs.nvidia.com/deploy/driver-persistence",),
        )


@rule("GPU023", Severity.WARNING)
def memory_held(gpus: tuple[Gpu, ...], container: Container | None) -> Iterator[Finding]:
    """Memory of a GPU is in use before the job.

    Another process has it, the rest of a job that died, or somebody in another container. The job has less memory,
    and shares the GPU's time.

    Fix: see who it is; end what is left of a dead job.
    """
    whole = [g for g in answering(gpus) if not g.mig and not g.c2c_links]  # Linux itself uses the memory beside Grace
    held = [g for g in whole if _held_bytes(g) >= HELD_BYTES and not any(p.ours for p in g.processes or ())]
    known = [g for g in held if g.processes]
    outside = container is not None and container.kind == "none"
    for bad, nobody in ((known, False), ([g for g in held if g.processes == ()], True)):
        if bad:
            users = ", ".join(f"{p.name or 'a process'} ({p.pid})" for p in (bad[0].processes or ())[:4])
            size = f"{_held_bytes(bad[0]) / 2**30:.0f} GiB of {named(bad)}"
            yield Finding(
                message=f"{size} in use by {users}" if users else f"{size} in use, and no process is shown for it",
                cause="gpu-memory-held" if nobody else "gpu-in-use",
                severity=Severity.WARNING if nobody and outside else Severity.INFO,
                confidence=Confidence.LIKELY if nobody else Confidence.CERTAIN,
                where=where(bad),
                evidence=seen(bad, lambda g: f"{_held_bytes(g) / 2**30:.1f} GiB in use", "nvidia-smi"),
                why="a job that starts now runs out of memory earlier, or shares the GPU",
                fixes=(
                    Fix(do="see which processes have it open (as root)", command="fuser -v /dev/nvidia*"),
                    Fix(do="nobody has it: reset the GPU (as root)", command=f"nvidia-smi -i {ids(bad)} -r"),
                )
                if nobody
                else (Fix(do="see who it is", command="nvidia-smi pmon -c 1"),),
                confirm="nvidia-smi",
                sources=(f"{NVML}: nvmlDeviceGetMemoryInfo, nvmlDeviceGetComputeRunningProcesses",),
                explains=("rank-oom-first",),
            )


def _held_bytes(g: Gpu) -> int:
    return g.memory_bytes - g.memory_free_bytes if g.memory_bytes and g.memory_free_bytes is not None else 0


@rule("GPU025", Severity.WARNING)
def p2p_not_possible(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """GPUs that NVLink joins can't read each other's memory.

    The driver has peer-to-peer switched off, or the links between them are not up: NCCL then goes through host memory.

    Fix: remove the driver option that switches it off; see that all NVLinks are up.
    """
    by_index = {g.index: g for g in answering(gpus) if not g.mig}
    pairs = {
        (min(a, b), max(a, b)): status
        for a, g in by_index.items()
        for b, status in (g.p2p or {}).items()
        if status not in ("ok", "unknown") and b in by_index and (status == "disabled" or _joined(g, by_index[b]))
    }
    if pairs:
        concerned = sorted({i for pair in pairs for i in pair})
        guilty = [i for i in concerned if len(pairs) > 1 and all(i in pair for pair in pairs)]
        bad = [by_index[i] for i in guilty or concerned]
        (a, b), status = next(iter(pairs.items()))
        many = f" (and {len(pairs) - 1} more pairs)" if len(pairs) > 1 else ""
        off = "disabled" in pairs.values()
        yield Finding(
            message=f"no peer-to-peer between GPU {a} and GPU {b}: {status.replace('_', ' ')}{many}",
            cause="p2p-not-used",
            severity=Severity.WARNING,
            where=where(bad),
            evidence=tuple(
                Evidence(text=f"GPU {a} - {b}: {s}", where="nvidia-smi topo -p2p r") for (a, b), s in pairs.items()
            ),
            why="NCCL copies through host memory between these GPUs instead of over NVLink or PCIe",
            cost="most of the bandwidth inside the host (A100 with NVSwitch: some 230 GB/s busbw against 10 to 20)",
            fixes=(
                Fix(
                    do="find the option that disables it and remove it, then load the driver again",
                    command="grep -r NVreg_RegistryDwords /etc/modprobe.d /proc/driver/nvidia/params",
                )
                if off
                else Fix(do="see that the links are up", command="nvidia-smi nvlink -s; nvidia-smi topo -p2p n"),
            ),
            confirm="nvidia-smi topo -p2p r; smoldiag nccl-bench --groups intra",
            sources=(f"{NVML}: nvmlDeviceGetP2PStatus",),
            explains=("busbw-below-expected",),
        )


def _joined(a: Gpu, b: Gpu) -> bool:
    """Whether the board joins them by NVSwitch."""
    return all(
        (spec := hardware.gpu(g.name)) and spec.nvswitch and any(n.active for n in g.nvlinks or ()) for g in (a, b)
    )


@rule("GPU027", Severity.WARNING)
def mixed_models(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """The GPUs of this host are of several models.

    In data parallel training the fastest waits for the slowest, and CUDA numbers them by speed, NVML by bus.

    Fix: choose GPUs of one model with CUDA_VISIBLE_DEVICES, and set CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    models = Counter(g.name for g in answering(gpus) if g.name != "unknown GPU")
    if len(models) > 1:
        (usual, count), *rest = models.most_common()
        others = [g for g in answering(gpus) if g.name in dict(rest)]
        chosen = ",".join(g.uuid or str(g.index) for g in answering(gpus) if g.name == usual)
        known = all(hardware.gpu(name) for name in models)
        yield Finding(
            message=f"{count} {usual}, and {', '.join(f'{n} {name}' for name, n in rest)}",
            cause="mixed-gpu-models",
            severity=Severity.WARNING if known else Severity.INFO,  # a display adapter beside them is no fault
            where=where(others),
            evidence=seen(others, lambda g: g.name, "nvidia-smi -L"),
            why="every step takes as long as on the slowest model",
            fixes=(Fix(do="train on one model", command=f"export CUDA_VISIBLE_DEVICES={chosen}"),),
            confirm="nvidia-smi -L",
        )
