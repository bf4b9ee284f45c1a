"""NVL: the NVLinks of one host's GPUs, and the fabric that joins them."""

from collections import Counter
from collections.abc import Iterator

from smoldiag.facts import Evidence, Gpu, KernelLog, NvLink
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.knowledge import hardware
from smoldiag.rules import rule
from smoldiag.rules.gpu import NVML, answering, ids, named, seen, told, where

MANY_ERRORS = 100  # corrected events of one link since boot that are worth a look; a sound link has next to none
SPEED_RATIO = 0.95  # of the fastest link; NVML rounds speeds
HARD_ERRORS = ("recovery", "recovery_failed")  # the link went down for a moment; the others were corrected
STATUS = "nvidia-smi nvlink -s"
FABRIC = "nvidia-smi -q | grep -A4 Fabric"
FABRIC_MANAGER = "NVIDIA Fabric Manager user guide, docs.nvidia.com/datacenter/tesla/fabric-manager-user-guide"


@rule("NVL001", Severity.ERROR)
def nvlink_inactive(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """NVLinks of a GPU are down that should be up.

    Its neighbours have theirs, or its board wires all of them. The GPU has less bandwidth to the others, or none but
    PCIe, and every collective runs at its pace.

    Fix: restart fabric manager and reset the GPUs; a link that stays down is a fault of GPU, bridge or board.
    """
    linked = [g for g in answering(gpus) if g.nvlinks and not g.mig]
    wanted = {g.index: _wanted(g, linked) for g in linked}
    bad = [g for g in linked if _up(g) < wanted[g.index]]
    if bad:
        worst = min(bad, key=_up)
        alone = _up(worst) == 0 and any(_up(g) for g in linked)
        yield Finding(
            message=f"{told(bad, 'has', 'have')} {_up(worst)} of {wanted[worst.index]} NVLinks up",
            cause="nvlink-error",
            severity=Severity.ERROR if alone else Severity.WARNING,
            where=where(bad),
            evidence=seen(bad, _links_down, STATUS),
            why="NCCL builds its rings and trees for the weakest GPU",
            cost=f"{1 - _up(worst) / wanted[worst.index]:.0%} of that GPU's NVLink bandwidth (links)",
            fixes=(
                Fix(
                    do="stop all jobs of the host, then restart fabric manager and reset all GPUs (as root)",
                    command="systemctl restart nvidia-fabricmanager && nvidia-smi -r",
                ),
                Fix(do="see what the driver said of the links", command="dmesg | grep -iE 'nvlink|sxid|xid.*: 74'"),
            ),
            confirm=f"{STATUS}; smoldiag nccl-bench --groups intra",
            sources=(f"{NVML}: nvmlDeviceGetNvLinkState",),
            explains=("busbw-below-expected", "p2p-not-used", "slow-node"),
        )


def _up(g: Gpu) -> int:
    return sum(bool(n.active) for n in g.nvlinks or ())


def _links_down(g: Gpu) -> str:
    down = ", ".join(str(n.index) for n in g.nvlinks or () if n.active is False)
    return f"links down: {down}" if down else f"{_up(g)} links are listed"


def _wanted(g: Gpu, linked: list[Gpu]) -> int:
    """How many links should be up.

    An NVSwitch board wires all of them, as many as the model is sold with. A single GPU of such a board, given to a
    virtual machine, may have none. Elsewhere it is as many as its best twin has; but a card without a bridge has none.
    """
    spec, listed = hardware.gpu(g.name), len(g.nvlinks or ())
    twins = [t for t in linked if t.name == g.name]
    most = max(_up(t) for t in twins)
    if spec is not None and spec.nvswitch:
        return max(most, min(listed, spec.nvlinks or listed)) if most or len(twins) > 1 else 0
    bridged = spec is None or spec.nvlink_bridge > 0
    return 0 if bridged and not _up(g) else most


@rule("NVL002", Severity.INFO)
def nvlink_errors_counted(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """NVLinks of a GPU counted errors since boot.

    Replays and checksum errors were repaired by the link. Only an increase under load says that a link is bad now.

    Fix: read the counters again after a run; where they rise, reset the GPUs or have the board looked at.
    """
    counted = [(g, n, _worst_errors(n)) for g in answering(gpus) for n in g.nvlinks or ()]
    links = [(g, n, errors) for g, n, errors in counted if errors]
    if links:
        bad = list({g.index: g for g, _, _ in links}.values())
        g, n, (kind, count) = links[0]
        yield Finding(
            message=f"NVLink {n.index} of GPU {g.index} counts {count} {kind.replace('_', ' ')} errors since boot"
            + (f" (and {len(links) - 1} more links)" if len(links) > 1 else ""),
            cause="nvlink-errors-counted",
            severity=Severity.INFO,
            where=where(bad),
            evidence=tuple(
                Evidence(text=f"GPU {g.index} link {n.index}: {number} {name}", where="nvidia-smi nvlink -e")
                for g, n, (name, number) in links
            ),
            why="a link that repeats packets loses bandwidth, and may go down",
            fixes=(Fix(do="read them again after a run", command=f"nvidia-smi nvlink -e -i {ids(bad)}"),),
            confirm="nvidia-smi nvlink -e, before and after smoldiag nccl-bench --groups intra",
            sources=(f"{NVML}: nvmlDeviceGetNvLinkErrorCounter",),
        )


def _worst_errors(n: NvLink) -> tuple[str, int] | None:
    bad = {k: v for k, v in n.errors.items() if v >= (1 if k in HARD_ERRORS else MANY_ERRORS)}
    return max(bad.items(), key=lambda item: item[1]) if bad else None


@rule("NVL003", Severity.ERROR)
def fabric_not_ready(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """The NVLink fabric is not set up for a GPU: fabric manager did not finish, or failed.

    CUDA then fails with error 802 ("system not yet initialized"), or NVLink SHARP and memory of other nodes are
    missing.

    Fix: start nvidia-fabricmanager, in the very version of the driver.
    """
    waiting = [g for g in answering(gpus) if g.fabric_state in ("not_started", "in_progress")]
    failed = [g for g in answering(gpus) if g.fabric_state == "completed" and g.fabric_status not in (None, "success")]
    for bad in (waiting, failed):
        if bad:
            yield Finding(
                message=f"the NVLink fabric is not ready on {named(bad)}: {_fabric(bad[0])}",
                cause="fabric-manager-not-running",
                subject="failed" if bad is failed else "not completed",
                severity=Severity.ERROR,
                where=where(bad),
                evidence=seen(bad, _fabric, FABRIC),
                why="CUDA can't start on these GPUs (error 802), or runs without NVLink between them",
                fixes=(
                    Fix(do="start it (as root)", command="systemctl enable --now nvidia-fabricmanager"),
                    Fix(
                        do="see that it has the driver's version, and what it says",
                        command="nvidia-smi --query-gpu=driver_version --format=csv,noheader -i 0; "
                        "journalctl -u nvidia-fabricmanager -n 20",
                    ),
                ),
                confirm="nvidia-smi -q | grep -A4 Fabric: state Completed, status Success",
                sources=(f"{NVML}: nvmlGpuFabricInfoV_t", FABRIC_MANAGER),
                explains=("no-cuda-device", "nvls-fabric-manager-state", "nvlink-error", "rank-died"),
            )


def _fabric(g: Gpu) -> str:
    state = (g.fabric_state or "").replace("_", " ")
    return f"state {state}, status {g.fabric_status}" if g.fabric_state == "completed" else f"state {state}"


@rule("NVL004", Severity.WARNING)
def fabric_unhealthy(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """The NVLink fabric works, but says that something is wrong with it.

    Bandwidth is reduced, a route is unhealthy, or the partition does not fit: on racks of GB200 a tray or a switch.

    Fix: look at fabric manager's log, or at the NVLink switches of the rack.
    """
    bad = [g for g in answering(gpus) if g.fabric_health]
    if bad:
        what = ", ".join(h.replace("_", " ") for h in bad[0].fabric_health or ())
        yield Finding(
            message=f"the NVLink fabric of {named(bad)} reports: {what}",
            cause="nvlink-fabric-unhealthy",
            severity=Severity.WARNING,
            where=where(bad),
            evidence=seen(bad, lambda g: ", ".join(g.fabric_health or ()), "nvidia-smi -q | grep -A12 Fabric"),
            why="traffic between GPUs is slower, or does not reach all of them",
            fixes=(
                Fix(do="see what fabric manager says", command="journalctl -u nvidia-fabricmanager -n 50"),
                Fix(
                    do="on a rack of several trays: look at its NVLink switches and at the IMEX domain",
                    command="nvidia-imex-ctl -N",
                ),
            ),
            confirm="smoldiag nccl-bench --groups intra",
            sources=(f"{NVML}: NVML_GPU_FABRIC_HEALTH_MASK",),
            explains=("busbw-below-expected",),
        )


@rule("NVL005", Severity.WARNING)
def nvlink_slower_than_the_others(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """An NVLink came up at a lower rate than the others of the same model.

    The link trained down; collectives run at the pace of the slowest link.

    Fix: reset the GPUs; a link that stays slow is a fault of GPU, bridge or board.
    """
    fastest: dict[str, float] = {}
    for g in answering(gpus):
        fastest[g.name] = max([fastest.get(g.name, 0.0), *(n.gb_per_s or 0.0 for n in g.nvlinks or ())])
    slow = [
        (g, n)
        for g in answering(gpus)
        for n in g.nvlinks or ()
        if n.active and n.gb_per_s and n.gb_per_s < SPEED_RATIO * fastest[g.name]
    ]
    if slow:
        bad = list({g.index: g for g, _ in slow}.values())
        g, n = slow[0]
        yield Finding(
            message=f"NVLink {n.index} of GPU {g.index} runs at {n.gb_per_s:.3g} GB/s, "
            f"others at {fastest[g.name]:.3g} GB/s" + (f" (and {len(slow) - 1} more links)" if len(slow) > 1 else ""),
            cause="nvlink-degraded",
            severity=Severity.WARNING,
            where=where(bad),
            evidence=tuple(
                Evidence(text=f"GPU {g.index} link {n.index}: {n.gb_per_s} GB/s", where=STATUS) for g, n in slow
            ),
            why="NCCL builds its rings and trees for the weakest link",
            cost=f"{1 - (n.gb_per_s or 0) / fastest[g.name]:.0%} of that link's bandwidth (rates)",
            fixes=(Fix(do="stop all jobs of the host and reset all GPUs (as root)", command="nvidia-smi -r"),),
            confirm=f"{STATUS}; smoldiag nccl-bench --groups intra",
            sources=(f"{NVML}: NVML_FI_DEV_NVLINK_GET_SPEED",),
            explains=("busbw-below-expected",),
        )


@rule("NVL006", Severity.WARNING)
def fabric_cliques_differ(gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """GPUs of one host are in different NVLink partitions.

    They can't use NVLink among each other, although the board could: NCCL goes over the network instead.

    Fix: put the GPUs that train together into one partition.
    """
    cliques = Counter((g.fabric_cluster, g.fabric_clique) for g in answering(gpus) if g.fabric_cluster)
    if len(cliques) > 1:
        (usual, _), *_ = cliques.most_common()
        bad = [g for g in answering(gpus) if g.fabric_cluster and (g.fabric_cluster, g.fabric_clique) != usual]
        yield Finding(
            message=f"{told(bad, 'is', 'are')} in another NVLink partition than the other GPUs "
            f"(clique {bad[0].fabric_clique} and {usual[1]})",
            cause="nvlink-partition",
            severity=Severity.WARNING,
            where=where(bad),
            evidence=seen(bad, lambda g: f"cluster {g.fabric_cluster}, clique {g.fabric_clique}", FABRIC),
            why="NVLink works inside a partition only",
            fixes=(Fix(do="see how the partitions are cut", command="nvidia-smi -q | grep -iE 'clique|cluster'"),),
            confirm="smoldiag nccl-bench --groups intra",
            sources=(f"{NVML}: nvmlGpuFabricInfoV_t", FABRIC_MANAGER),
            explains=("busbw-below-expected",),
        )


@rule("NVL007", Severity.ERROR)
def nvswitch_errors_in_kernel_log(gpus: tuple[Gpu, ...], kernel_log: KernelLog) -> Iterator[Finding]:
    """The NVSwitch driver logged errors (SXid) since boot.

    Fatal ones end all programs on the GPUs of the board, and need a reset of all of them.

    Fix: drain the host, reset all GPUs; have the board looked at if it comes again.
    """
    lines = [evidence for kind, evidence in kernel_log.events if kind == "nvswitch-error"]
    if lines:
        fatal = [e for e in lines if ", Fatal" in e.text]
        shown = fatal or lines
        yield Finding(
            message=f"{len(lines)} NVSwitch errors in the kernel log ({len(fatal)} fatal): {shown[-1].text[:160]}",
            cause="nvlink-error",
            subject="NVSwitch",
            severity=Severity.ERROR if fatal else Severity.WARNING,
            confidence=Confidence.CERTAIN if fatal else Confidence.LIKELY,
            where=Where(gpus=tuple(g.index for g in gpus) if fatal else ()),
            evidence=tuple(shown[-4:]),
            why="a link or port of the switch that joins the GPUs is at fault",
            fixes=(Fix(do="stop all jobs of the host and reset all GPUs (as root)", command="nvidia-smi -r"),),
            confirm=f"dmesg | grep SXid; {STATUS}",
            sources=(f"{FABRIC_MANAGER}: NVSwitch SXid errors",),
            explains=("rank-died", "busbw-below-expected") if fatal else (),
        )
