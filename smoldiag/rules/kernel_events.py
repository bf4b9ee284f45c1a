"""HST: what else the kernel log says of a host that trains."""

from collections.abc import Iterator
from dataclasses import dataclass

from smoldiag.facts import Evidence, KernelLog
from smoldiag.findings import Confidence, Finding, Fix, Severity
from smoldiag.rules import rule

SHOWN = 4  # lines of one kind


@dataclass(frozen=True)
class _Meaning:
    cause: str
    what: str
    why: str
    fix: Fix
    severity: Severity = Severity.INFO  # of something that is over, perhaps for long
    at_least: int = 1  # lines; fewer are usual


MEANINGS = {  # kind of event, as smoldiag.model.kernel_log names it
    "oom-kill": _Meaning(
        "host-oom-sigkill",
        "the kernel killed processes for want of memory",
        "a rank that is killed leaves the others waiting in their collective",
        Fix(do="see who used the memory, and the limit of the job", command="dmesg -T | grep -iE 'oom-kill|killed'"),
    ),
    "hung-task": _Meaning(
        "task-hung-in-kernel",
        "tasks hung in the kernel for minutes",
        "storage or a driver did not answer; a rank in this state can't even be killed",
        Fix(do="see what they wait for", command="dmesg -T | grep -A 20 'blocked for more than'"),
    ),
    "cpu-lockup": _Meaning(
        "cpu-lockup",
        "a processor was stuck in the kernel",
        "ranks on it stand still, and the others wait for them",
        Fix(do="drain the host; see in which driver it was", command="dmesg -T | grep -A 20 -i lockup"),
        severity=Severity.WARNING,
    ),
    "machine-check": _Meaning(
        "host-memory-error",
        "the processor reported hardware errors",
        "host memory or a processor is going bad: data may be wrong, or the host stops",
        Fix(do="see where, then have the part replaced", command="ras-mc-ctl --summary"),
        severity=Severity.WARNING,
    ),
    "cpu-throttled": _Meaning(
        "cpu-throttled",
        "processors were slowed down for heat",
        "data loading and NCCL's proxies slow down with them",
        Fix(do="check the cooling of the host", command="sensors; ipmitool sdr type Temperature"),
        at_least=10,
    ),
    "iommu-fault": _Meaning(
        "iommu-fault",
        "the IOMMU refused accesses of devices",
        "peer-to-peer and GPUDirect that the IOMMU translates fail or hang",
        Fix(do="on bare metal: set iommu=pt and switch ACS off", command="dmesg -T | grep -iE 'dmar|amd-vi|iommu'"),
        severity=Severity.WARNING,
    ),
    "aer": _Meaning(
        "pcie-errors",
        "the PCIe bus reported uncorrectable errors",
        "a device on a link with such errors resets or falls off the bus",
        Fix(do="see which device, then reseat or replace it", command="dmesg -T | grep -A 6 'severity=Uncorrect'"),
        severity=Severity.WARNING,
    ),
    "aer-corrected": _Meaning(
        "pcie-errors",
        "the PCIe bus reported many corrected errors",
        "a link that repeats packets loses bandwidth, and may fail later",
        Fix(do="see which device", command="dmesg -T | grep -A 6 'severity=Corrected'"),
        at_least=20,
    ),
    "nic-error": _Meaning(
        "ib-hca-fatal-error",
        "a network adapter reported an error of itself",
        "connections over it break, and NCCL's with them",
        Fix(do="see what it says; reset it or update its firmware", command="dmesg -T | grep -E 'mlx5|efa|bnxt|ice'"),
    ),
    "storage-error": _Meaning(
        "storage-error",
        "storage reported errors",
        "data loading and checkpoints hang or fail",
        Fix(do="see which device or mount", command="dmesg -T | grep -iE 'i/o error|nvme|lustre|nfs|read-only'"),
    ),
    "fork-rejected": _Meaning(
        "process-limit",
        "the limit of processes kept programs from starting threads",
        "data loaders and NCCL's threads fail to start",
        Fix(do="raise the limit of the container or job", command="cat /sys/fs/cgroup/pids.max"),
    ),
}


@rule("HST070", Severity.WARNING)
def kernel_reports_trouble(kernel_log: KernelLog) -> Iterator[Finding]:
    """The kernel log tells of killed, hung or failing parts of this host since boot.

    Memory that ran out, tasks that hang, processors, PCIe, adapters or storage with errors. What was before the last
    boot is left out; what GPUs and NVSwitches report has rules of its own.

    Fix: read the lines; drain the host where hardware is at fault.
    """
    for kind, meaning in MEANINGS.items():
        lines = [evidence for k, evidence in kernel_log.events if k == kind]
        if len(lines) >= meaning.at_least:
            yield Finding(
                message=f"{meaning.what}: {_times(lines)}",
                cause=meaning.cause,
                subject=kind,
                severity=meaning.severity,
                confidence=Confidence.LIKELY,
                evidence=tuple(lines[-SHOWN:]),
                why=meaning.why,
                fixes=(meaning.fix,),
                confirm="dmesg -T, and again after a run: only new lines concern it",
                sources=("Linux kernel log",),
            )


def _times(lines: list[Evidence]) -> str:
    last = lines[-1].text[:120]
    return last if len(lines) == 1 else f"{len(lines)} lines, the last: {last}"
