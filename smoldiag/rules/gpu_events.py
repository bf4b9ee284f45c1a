"""GPU: what the kernel log and NVIDIA's diagnostics say."""

from collections.abc import Iterator, Mapping

from smoldiag.facts import Evidence, Gpu, KernelLog, Xid
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.knowledge import xid
from smoldiag.rules import rule


@rule("GPU024", Severity.ERROR)
def xid_in_kernel_log(gpus: tuple[Gpu, ...], kernel_log: KernelLog) -> Iterator[Finding]:
    """The NVIDIA driver logged an Xid since boot.

    Its number says whether memory, NVLink, the bus, the firmware or a program was at fault, and what to do. Those
    that a program causes (13, 31, 43 ...) are told as information.

    Fix: what the Xid's own action says.
    """
    by_code: dict[int, list[Xid]] = {}
    for event in kernel_log.xids:
        by_code.setdefault(event.xid, []).append(event)
    for code, events in by_code.items():
        known = xid.meaning(code)
        at = tuple(dict.fromkeys(g.index for e in events for g in gpus if g.bus_id == e.bus_id))
        buses = ", ".join(dict.fromkeys(e.bus_id for e in events))
        times = f"{len(events)} times, last" if len(events) > 1 else "once"
        meaning = f" ({known.meaning})" if known else ""
        yield Finding(
            message=f"Xid {code}{meaning} on {buses}, {times} at {events[-1].time or 'an unknown time'}",
            cause=_XID_CAUSES.get(known.kind if known else "", "gpu-driver-error")
            if code != 79
            else "gpu-fell-off-bus",
            subject=f"Xid {code}",
            severity=_severity(known, [g for g in gpus if g.index in at]),
            confidence=Confidence.CERTAIN if known and known.severity == "error" else Confidence.LIKELY,
            where=Where(gpus=at),
            evidence=tuple(Evidence(text=f"Xid {e.xid} {e.text}", where=e.where) for e in events[-4:]),
            why="the driver reports an error of this GPU" if not known else f"{known.name}: {known.meaning}",
            fixes=(Fix(do=known.action),) if known else (Fix(do="look it up", command="dmesg | grep -i xid"),),
            confirm="dmesg -T | grep -i xid; nvidia-smi -q",
            sources=(xid.SOURCE,),
            explains=("rank-died",) if known and known.severity == "error" else (),
        )


def _severity(known: xid.XidMeaning | None, concerned: list[Gpu]) -> Severity:
    """The log goes back to the last boot. A GPU that answers was reset since, or came over it; one whose memory
    counts no error since its driver was loaded has that behind it."""
    severity = Severity(known.severity) if known else Severity.WARNING
    answering = bool(concerned) and all(g.error is None and g.recovery in (None, "none") for g in concerned)
    if known is None or severity is not Severity.ERROR or not answering:
        return severity
    memory_is_sound = all(g.ecc_volatile == 0 and not g.remap_pending and not g.remap_failed for g in concerned)
    return Severity.INFO if known.kind == "memory" and memory_is_sound else Severity.WARNING


_XID_CAUSES = {
    "memory": "gpu-ecc-error",
    "nvlink": "nvlink-error",
    "bus": "gpu-fell-off-bus",
    "firmware": "gpu-firmware-error",
    "power": "gpu-power-fault",
    "application": "application-gpu-fault",
    "driver": "gpu-driver-error",
}
_DRIVER_EVENTS: Mapping[str, tuple[str, str]] = {  # kind of event -> cause, what it means
    "gpu-off-bus": ("gpu-fell-off-bus", "a GPU fell off the PCIe bus"),
    "nvrm-init-failed": ("gpu-init-failed", "the driver could not initialise a GPU"),
}


@rule("GPU030", Severity.ERROR)
def driver_lost_a_gpu(gpus: tuple[Gpu, ...], kernel_log: KernelLog) -> Iterator[Finding]:
    """The driver could not initialise a GPU, or lost it, without an Xid.

    At boot a GPU that does not come up is only a line of the kernel log; it is then missing in every list.

    Fix: drain the host and power-cycle it; have the GPU replaced if it comes again.
    """
    for kind, (cause, what) in _DRIVER_EVENTS.items():
        lines = [evidence for k, evidence in kernel_log.events if k == kind]
        at = tuple(g.index for g in gpus if g.bus_id and any(g.bus_id.rpartition(".")[0] in e.text for e in lines))
        if lines:
            yield Finding(
                message=f"the kernel log says that {what}: {lines[-1].text[:160]}",
                cause=cause,
                severity=Severity.ERROR,
                where=Where(gpus=at),
                evidence=tuple(lines[-4:]),
                why="the GPU can't be used until it was initialised again",
                fixes=(
                    Fix(do="drain the host and power-cycle it"),
                    Fix(do="see all that the driver said", command="dmesg | grep NVRM"),
                ),
                confirm="nvidia-smi -L; lspci -d 10de: -k",
                sources=(xid.SOURCE,),
                explains=("gpu-missing", "no-cuda-device"),
            )


@rule("GPU029", Severity.ERROR)
def dcgm_test_failed(dcgm: Mapping[str, str]) -> Iterator[Finding]:
    """A test of NVIDIA's own diagnostics (dcgmi diag) failed.

    Its hardware tests say that a GPU is faulty; its deployment tests that a setting or a library is not as they
    expect.

    Fix: what the test's own message says; drain the host where a hardware test failed.
    """
    for test, result in dcgm.items():
        status, _, why = result.partition(": ")
        if status in ("fail", "warn") and ":" not in test:
            at = tuple(int(name.rpartition(":")[2]) for name in dcgm if name.startswith(f"{test}:"))
            setting = test.lower() in _DEPLOYMENT_TESTS
            yield Finding(
                message=f"dcgmi diag: {test} {'failed' if status == 'fail' else 'warns'}{f': {why}' if why else ''}",
                cause="dcgm-test-failed",
                subject=test,
                severity=Severity.ERROR if status == "fail" and not setting else Severity.WARNING,
                where=Where(gpus=at),
                evidence=(Evidence(text=f"{test}: {result}", where="dcgmi diag"),),
                why="NVIDIA's test did not pass on this host",
                fixes=(Fix(do="run it again alone", command="dcgmi diag -r 3 -v"),),
                confirm="dcgmi diag -r 3",
                sources=("NVIDIA DCGM diagnostics, docs.nvidia.com/datacenter/dcgm",),
            )


_DEPLOYMENT_TESTS = {  # of settings and libraries, not of hardware
    "software",
    "denylist",
    "blacklist",
    "nvml library",
    "cuda main library",
    "cuda toolkit library",
    "permissions and os-related blocks",
    "persistence mode",
    "environmental variables",
    "page retirement",
    "graphics processes",
    "inforom",
}
