"""Failures of GPUs, NVLink, NVSwitch and PCIe, as logs show them."""

from collections.abc import Iterator

from smoldiag.facts import Log, LogEvent
from smoldiag.findings import Confidence, Finding, Severity
from smoldiag.rules import rule
from smoldiag.rules.logs import NETWORK, SYMPTOMS, found, hosts_of, nodes, on, without

# NVIDIA's Xid catalogue (docs.nvidia.com/deploy/xid-errors), by what to do
ECC_XIDS = {48, 64, 94, 95, 140, 171, 172}
OFF_BUS_XIDS = {79}
NVLINK_XIDS = {74, *range(144, 151), 155, 158}
DRIVER_XIDS = {46, 61, 62, 109, 119, 120, 136, 143, 154}
PROGRAM_XIDS = {13, 31, 137}
PROGRAM_ERRORS = (
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "misaligned address",
    "illegal instruction",
    "an illegal",
)
XID_SOURCE = "NVIDIA Xid catalogue, docs.nvidia.com/deploy/xid-errors"


def _xids(log: Log, numbers: set[int]) -> list[LogEvent]:
    return [e for e in log.find("xid") if _number(e) in numbers]


def _number(e: LogEvent) -> int:
    return int(e.details.get("xid") or e.details.get("xid2") or 0)


def _which(events: list[LogEvent]) -> str:
    """' (Xid 79, 0000:1b:00)' of the first."""
    for e in events:
        if e.kind == "xid":
            return f" (Xid {_number(e)}" + (f", GPU {e.details['bus']})" if "bus" in e.details else ")")
    return ""


@rule("LOG050", Severity.ERROR)
def gpu_memory_has_uncorrectable_errors(log: Log) -> Iterator[Finding]:
    """A GPU reported an uncorrectable memory error.

    The process on it is ended. With row remapping the GPU is fit again after a reset; when remapping fails, or errors
    come back, it has to be replaced.

    Fix: take the node out, reset the GPU, and replace it if it happens again.
    """
    events = sorted([*log.find("ecc"), *_xids(log, ECC_XIDS)], key=lambda e: e.order)
    if events:
        yield found(
            "gpu-ecc-error",
            f"a GPU has an uncorrectable memory error{_which(events)}{on(events)}",
            events,
            why="the data in that memory is lost, and the process that used it is ended",
            fixes=[
                ("take the node out", f"scontrol update node={_node(events)} state=drain reason='gpu ecc'"),
                ("see what is pending, then reset", "nvidia-smi -q -d ECC,ROW_REMAPPER; nvidia-smi --gpu-reset -i N"),
            ],
            confirm="nvidia-smi -q -d ECC,ROW_REMAPPER  # on that host; dmesg | grep Xid",
            sources=("CUDA error 214 cudaErrorECCUncorrectable", XID_SOURCE),
            explains=(*SYMPTOMS, *NETWORK, "gpu-driver-error", "program-cuda-error"),
            restart=without(hosts_of(events)),
        )


@rule("LOG051", Severity.ERROR)
def gpu_is_off_the_bus(log: Log) -> Iterator[Finding]:
    """A GPU has fallen off the PCIe bus.

    Power, heat, a riser or the board itself: the driver no longer reaches it, with or without Xid 79.

    Fix: take the node out and power-cycle it; reseat or replace the GPU if it happens again.
    """
    events = sorted([*log.find("gpu-lost"), *_xids(log, OFF_BUS_XIDS)], key=lambda e: e.order)
    if events:
        yield found(
            "gpu-fell-off-bus",
            f"a GPU is no longer reached over PCIe{_which(events)}{on(events)}",
            events,
            why="everything that used it fails at once",
            fixes=[
                ("take the node out", f"scontrol update node={_node(events)} state=drain reason='gpu off bus'"),
                ("power-cycle it, then see whether all GPUs are back", "nvidia-smi -L; dmesg | grep -i -E 'xid|nvrm'"),
            ],
            confirm="nvidia-smi -L  # one fewer than the host has; dmesg | grep -i 'fallen off'",
            sources=(XID_SOURCE,),
            explains=(*SYMPTOMS, *NETWORK, "gpu-driver-error", "program-cuda-error", "nvlink-error", "gpu-ecc-error"),
            restart=without(hosts_of(events)),
        )


def _node(events: list[LogEvent]) -> str:
    return ",".join(hosts_of(events)[:8]) or "NODE"


@rule("LOG052", Severity.ERROR)
def nvlink_has_faults(log: Log) -> Iterator[Finding]:
    """NVLink between GPUs has faults, or is down where the hardware has it.

    Links fail with Xid 74 (144 to 150 from Blackwell on), or the driver shows NVLink GPUs that can't reach each other.

    Fix: take the node out, reset its GPUs and NVSwitches; replace what fails again.
    """
    events = sorted([*log.find("nvlink-error"), *_xids(log, NVLINK_XIDS), *_fatal_sxids(log)], key=lambda e: e.order)
    if events:
        yield found(
            "nvlink-error",
            f"NVLink has faults{_which(events)}{on(events)}",
            events,
            why="GPUs that should reach each other over NVLink can't",
            fixes=[
                ("see the state of the links", "nvidia-smi nvlink -s; nvidia-smi nvlink -e; nvidia-smi topo -m"),
                ("take the node out", f"scontrol update node={_node(events)} state=drain reason=nvlink"),
            ],
            confirm="nvidia-smi nvlink -s; dmesg | grep -i -E 'xid|sxid'",
            sources=("NCCL src/graph/paths.cc", XID_SOURCE),
            explains=(*SYMPTOMS, *NETWORK, "gpu-driver-error", "program-cuda-error"),
            restart=without(hosts_of(events)),
        )


def _fatal_sxids(log: Log) -> list[LogEvent]:
    return [e for e in log.find("sxid") if e.details.get("said", "").startswith("Fatal")]


@rule("LOG053", Severity.ERROR)
def nvswitch_is_not_initialised(log: Log) -> Iterator[Finding]:
    """CUDA says "system not yet initialized": the fabric manager does not run.

    On machines with NVSwitch CUDA works only after the fabric manager, of exactly the driver's version, has set it up.

    Fix: start the fabric manager; install the one of the driver's version.
    """
    events = log.find("fabric-manager")
    if events:
        yield found(
            "fabric-manager-not-running",
            f"the NVSwitch fabric is not initialised (CUDA error 802){on(events)}",
            events,
            why="without its fabric manager no CUDA program runs on an NVSwitch machine",
            fixes=[
                ("start it", "systemctl enable --now nvidia-fabricmanager"),
                ("see that versions match", "nv-fabricmanager --version; cat /proc/driver/nvidia/version"),
            ],
            confirm="systemctl status nvidia-fabricmanager; nvidia-smi -q | grep -A3 Fabric",
            sources=("CUDA error 802 cudaErrorSystemNotReady", "NVIDIA Fabric Manager user guide"),
            explains=(*SYMPTOMS, "nvls-fabric-manager-state"),
            restart=without(hosts_of(events)) if hosts_of(events) else "fix first: the fabric manager of that host",
        )


@rule("LOG054", Severity.ERROR)
def nvls_multicast_fails(log: Log) -> Iterator[Finding]:
    """NVLink SHARP can't set up its multicast memory: the NVSwitch fabric is in a bad state.

    Typical after the fabric manager was restarted without a reset of the GPUs, and for containers or virtual machines
    that got a part of the machine.

    Fix: reset the GPUs with the fabric manager stopped, or reboot; meanwhile NCCL_NVLS_ENABLE=0.
    """
    events = [e for e in log.find("nvls-failed") if "out of memory" not in e.text]
    if events:
        yield found(
            "nvls-fabric-manager-state",
            f"NVLS multicast memory can't be set up{on(events)}",
            events,
            why="the NVSwitch fabric refuses the multicast group; the rest of NVLink may work",
            fixes=[
                ("go on without NVLS", "export NCCL_NVLS_ENABLE=0"),
                (
                    "reset the fabric",
                    "systemctl stop nvidia-fabricmanager; nvidia-smi -r; systemctl start nvidia-fabricmanager",
                ),
            ],
            confidence=Confidence.LIKELY,
            confirm="export NCCL_NVLS_ENABLE=0; start again: it should work",
            sources=("NCCL src/transport/nvls.cc", "NCCL user guide: NCCL_NVLS_ENABLE"),
            restart="same nodes with NCCL_NVLS_ENABLE=0, or fix first: the fabric manager",
        )


@rule("LOG055", Severity.ERROR)
def imex_channel_is_missing(log: Log) -> Iterator[Finding]:
    """Memory with fabric handles can't be made: there is no IMEX channel for this user.

    NVLink between hosts (GB200) needs the IMEX daemon on each host and a channel device in the container.

    Fix: run nvidia-imex, create the channel device and pass it to the container; or NCCL_MNNVL_ENABLE=0.
    """
    events = log.find("not-permitted")
    if log.transport and log.transport.mnnvl:  # memory of a peer on another host can't be imported
        events += tuple(e for e in log.find("invalid-device") if "p2p" in e.details.get("file", ""))
    if events:
        yield found(
            "imex-channel-missing",
            f"CUDA refuses fabric memory (operation not permitted){on(events)}: no IMEX channel",
            events,
            why="cuMemCreate with fabric handles needs /dev/nvidia-caps-imex-channels/channelN",
            fixes=[
                ("see whether there is a channel", "ls -l /dev/nvidia-caps-imex-channels/; nvidia-imex-ctl -N"),
                ("go on without NVLink between hosts", "export NCCL_MNNVL_ENABLE=0 NCCL_CUMEM_ENABLE=0"),
            ],
            confidence=Confidence.LIKELY,
            confirm="ls -l /dev/nvidia-caps-imex-channels/  # in the container",
            sources=("CUDA error 800 cudaErrorNotPermitted", "NVIDIA IMEX service guide"),
            restart="fix first: IMEX; or the same nodes with NCCL_MNNVL_ENABLE=0",
        )


@rule("LOG056", Severity.ERROR)
def pcie_peer_to_peer_hangs(log: Log) -> Iterator[Finding]:
    """Direct transfers between GPUs over PCIe hang: ACS or an IOMMU sends them astray.

    NCCL trusts what CUDA says of peer access; with ACS on, packets between GPUs go up to the root complex and may be
    lost there.

    Fix: turn ACS and the IOMMU off; to go on, NCCL_P2P_DISABLE=1.
    """
    faults = [e for e in log.find("iommu-fault") if "fault" in e.details]
    acs = [e for e in log.find("iommu-fault") if "acs" in e.details]
    paths = dict(log.transport.paths) if log.transport else {}
    direct = any(name.startswith("P2P/") for name in paths)
    stuck = _stops_in_the_first_collective(log)
    on_many = (nodes(log) or 1) > 1
    if not (faults or (direct and acs) or (direct and stuck and not on_many)):
        return
    evidence = [*faults, *acs, *log.find("watchdog-timeout")]
    yield found(
        "pcie-acs-iommu-p2p-hang",
        "the GPUs connect directly over PCIe and then nothing moves"
        + (": the IOMMU reports faults" if faults else ": ACS is on" if acs else "")
        + on(evidence),
        evidence,
        why="with ACS or an IOMMU in between, peer-to-peer writes do not arrive",
        fixes=[
            ("go on without it", "export NCCL_P2P_DISABLE=1"),
            ("turn ACS and IOMMU off", "iommu=off or iommu=pt on the kernel command line; ACS off in the BIOS"),
        ],
        confidence=Confidence.LIKELY if (faults or acs) and not on_many else Confidence.POSSIBLE,
        confirm="export NCCL_P2P_DISABLE=1; the same run: it should not hang",
        sources=("NCCL user guide: Troubleshooting, PCI Access Control Services",),
        restart="same nodes with NCCL_P2P_DISABLE=1, or fix first: ACS",
    )


def _stops_in_the_first_collective(log: Log) -> bool:
    """A time-out of one of the first collectives, and no word of any other failure."""
    waits = log.find("watchdog-timeout")
    early = [e for e in waits if int(e.details.get("seq") or 0) in (1, 2)]
    return (
        bool(early) and log.last_step is None and not log.has("exception", "ib-completion", "progress-bar", "preparing")
    )


@rule("LOG057", Severity.ERROR)
def gpu_driver_reports_an_error(log: Log) -> Iterator[Finding]:
    """The driver reported an error of a GPU's firmware or engines.

    Time-outs of the GSP firmware, of context switches or of the GPU as a whole end all that runs on it.

    Fix: reset the GPU or reboot the node; a newer driver if it comes back.
    """
    events = _xids(log, DRIVER_XIDS)
    if events:
        yield found(
            "gpu-driver-error",
            f"the driver gave a GPU up{_which(events)}{on(events)}",
            events,
            why="the GPU answers no more until it is reset",
            fixes=[
                ("reset it", "nvidia-smi --gpu-reset -i N"),
                ("see what else was reported", "dmesg -T | grep -i nvrm"),
            ],
            confidence=Confidence.LIKELY,
            confirm="dmesg -T | grep -i xid  # on that host",
            sources=(XID_SOURCE,),
            explains=(*SYMPTOMS, *NETWORK, "program-cuda-error"),
            restart=without(hosts_of(events)),
        )


@rule("LOG058", Severity.ERROR)
def a_kernel_of_the_program_failed(log: Log) -> Iterator[Finding]:
    """A GPU kernel of the program failed: an access out of bounds or an assertion.

    CUDA reports it at a later call, so that the stack often shows an innocent line, or NCCL.

    Fix: run that rank with CUDA_LAUNCH_BLOCKING=1, or under compute-sanitizer.
    """
    events = [
        e
        for e in log.find("cuda-error", "cuda-failure")
        if any(word in e.details.get("said", "").lower() for word in PROGRAM_ERRORS)
    ]
    xids = _xids(log, PROGRAM_XIDS)
    if events or xids:
        all_ = sorted([*events, *xids], key=lambda e: e.order)
        said = next((e.details["said"] for e in events), "a fault of the program")
        yield found(
            "program-cuda-error",
            f"a GPU kernel failed: {said.strip()}{_which(xids)}{on(all_)}",
            all_,
            why="every later call on that GPU returns the same error; NCCL only passes it on",
            fixes=[("find the kernel", "CUDA_LAUNCH_BLOCKING=1 ... ; compute-sanitizer python train.py ...")],
            severity=Severity.ERROR if events else Severity.WARNING,
            confidence=Confidence.LIKELY if events else Confidence.POSSIBLE,
            confirm="CUDA_LAUNCH_BLOCKING=1 on the rank that failed first",
            sources=("CUDA errors 700, 710, 719", XID_SOURCE),
            explains=(*SYMPTOMS, *NETWORK),
            restart="fix first: it is the program's, unless it moves with the GPU",
        )
