"""ENV, HST, GPU, NVL, PCI, NIC: a running job, looked at from beside it (`--job`).

Counters count by what they grew between two readings under load, never since boot.
"""

from collections.abc import Iterator, Mapping

from smoldiag.facts import Cluster, Evidence, HostProcess, Increase
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.knowledge import variables
from smoldiag.model import folded, majority
from smoldiag.rules import NotKnown, rule

STOPPED = {"T": "stopped by a signal", "t": "held by a debugger", "D": "stuck in the kernel", "Z": "dead (a zombie)"}
INNERMOST = 3  # frames that say where a rank stands
MIN_STACKS = 3  # so that most ranks show what is usual
MAX_ODD_SHARE = 0.25  # of the ranks; where more stand elsewhere, there is no one that holds up the others
UNCORRECTABLE = "ecc_volatile"
LINK_TROUBLE = {  # counters that grow on a bad link: what they mean
    "symbol_error": "symbols could not be decoded: cable, transceiver or port",
    "link_downed": "the link went down",
    "link_error_recovery": "the link retrained",
    "local_link_integrity_errors": "too many local errors on the link",
    "port_rcv_errors": "damaged packets came in",
    "rx_crc_errors": "damaged frames came in",
    "rx_icrc_encapsulated": "RoCE packets with a wrong checksum came in",
}
LOSS_TROUBLE = {  # counters that grow where packets are lost or late
    "out_of_sequence": "packets came out of order or were lost",
    "packet_seq_err": "the other side asked for packets again",
    "local_ack_timeout_err": "no acknowledgement came in time",
    "rnr_nak_retry_err": "the receiver was not ready",
    "roce_slow_restart": "congestion control restarted a flow",
    "roce_adp_retrans": "packets were sent again",
    "port_xmit_discards": "packets were dropped before they were sent",
    "retrans_timeout_events": "packets were sent again after a timeout",
    "unresponsive_remote_events": "the other side did not answer",
    "rx_errors": "frames with errors came in",
    "tx_errors": "frames could not be sent",
}
OCCASIONAL = 10  # a few lost or repeated packets in some seconds are no trouble


@rule("HST060", Severity.ERROR)
def rank_does_not_run(processes: tuple[HostProcess, ...]) -> Iterator[Finding]:
    """A rank of the running job is stopped, stuck in the kernel, or dead.

    All the others wait for it in their next collective.

    Fix: see who stopped it (kill -CONT lets it go on); stuck in the kernel: storage or a driver does not answer.
    """
    for state, meaning in STOPPED.items():
        found = [p for p in processes if p.state == state]
        if found:
            waits = sorted({p.wchan for p in found if p.wchan and p.wchan != "0"})
            where = f", in {', '.join(waits[:3])}" if waits else ""
            yield Finding(
                message=f"rank {folded.ranges(p.rank or 0 for p in found)} is {meaning} (process state {state}{where})",
                cause="rank-stopped",
                subject=state,
                severity=Severity.WARNING if state == "D" else Severity.ERROR,
                confidence=Confidence.LIKELY if state == "D" else Confidence.CERTAIN,
                where=Where(ranks=tuple(p.rank for p in found if p.rank is not None)),
                evidence=tuple(
                    Evidence(text=" < ".join(p.kernel_stack[:4]) or f"state {state}", where=f"/proc/{p.pid}/stat")
                    for p in found[:4]
                ),
                why="a collective ends only when its last rank has come",
                fixes=(
                    Fix(do="let it go on", command=f"kill -CONT {found[0].pid}"),
                    Fix(do="or see what it waits for", command=f"cat /proc/{found[0].pid}/stack; dmesg -T | tail"),
                )
                if state in "Tt"
                else (Fix(do="see what it waits for", command=f"cat /proc/{found[0].pid}/stack; dmesg -T | tail"),),
                confirm=f"ps -o pid,stat,wchan:32,args -p {found[0].pid}",
            )


@rule("HST061", Severity.ERROR)
def ranks_are_missing(cluster: Cluster) -> Iterator[Finding]:
    """A host of the running job has fewer ranks than the others, or none.

    They ended or never started; the others wait for them.

    Fix: see the job's output of that host, and the kernel log for the OOM killer.
    """
    counts = {h.name: len(h.processes) if h.processes is not None else 0 for h in cluster}
    if not any(counts.values()) or len(counts) < 2:
        raise NotKnown("compares the ranks of a running job: none was looked at")
    found = majority.split(counts)
    if found is None or found.usual is None:
        return
    fewer = {h: c for c, hosts in found.groups for h in hosts if c < found.usual}
    if fewer:
        host, count = next(iter(fewer.items()))
        yield Finding(
            message=f"{folded.hosts(fewer, most=4)}: {count} of {found.usual} ranks run there"
            + (f" on {host}" if len(fewer) > 1 else ""),
            cause="rank-died",
            severity=Severity.ERROR,
            where=Where(hosts=tuple(fewer)),
            evidence=tuple(Evidence(text=f"{c} ranks", where=f"{h}: /proc") for h, c in list(fewer.items())[:4]),
            why="the other ranks wait for them in their next collective",
            fixes=(
                Fix(
                    do="see whether the kernel killed them",
                    command="dmesg -T | grep -iE 'killed process|out of memory'",
                ),
            ),
            confirm="the job's output of that host",
        )


@rule("HST062", Severity.WARNING)
def rank_stands_elsewhere(cluster: Cluster) -> Iterator[Finding]:
    """Most ranks of the running job stand in one place, and a few somewhere else.

    Where a job hangs, the many wait in a collective for the few that have not come to it.

    Fix: look at what these ranks do: data, a checkpoint, an exception handler, another collective.
    """
    places: dict[tuple[str, int], tuple[str, ...]] = {}
    stacks: dict[tuple[str, int], HostProcess] = {}
    for host in cluster:
        for p in host.processes or ():
            if p.python_stack and p.rank is not None:
                places[host.name, p.rank] = tuple(frame.partition(" (")[0] for frame in p.python_stack[:INNERMOST])
                stacks[host.name, p.rank] = p
    if len(places) < MIN_STACKS:
        raise NotKnown(f"compares Python stacks: fewer than {MIN_STACKS} ranks' are known (py-spy)")
    found = majority.split(places)
    if found is None or found.usual is None or len(found.outliers) > MAX_ODD_SHARE * len(places):
        return
    odd = found.outliers
    usual = stacks[found.groups[0][1][0]].python_stack[0]
    first, rank = odd[0]
    yield Finding(
        message=f"rank {folded.ranges(r for _, r in odd)} stands in {stacks[odd[0]].python_stack[0]}; "
        f"the other {len(places) - len(odd)} ranks in {usual}",
        cause="straggler-or-hung-rank",
        confidence=Confidence.POSSIBLE,
        where=Where(hosts=tuple(dict.fromkeys(h for h, _ in odd)), ranks=tuple(r for _, r in odd)),
        evidence=tuple(
            Evidence(text=" < ".join(stacks[k].python_stack[:6]), where=f"{k[0]}: py-spy dump, rank {k[1]}")
            for k in odd[:4]
        ),
        why="one look at a running job is a snapshot: it is the culprit only if it still stands there later",
        fixes=(
            Fix(do="look again", command=f"py-spy dump --nonblocking --pid {stacks[odd[0]].pid}"),
            Fix(do=f"on {first}: see what rank {rank} waits for"),
        ),
        confirm="the same command a minute later: the ranks that have not moved",
    )


@rule("ENV052", Severity.ERROR)
def variables_differ_between_ranks(processes: tuple[HostProcess, ...]) -> Iterator[Finding]:
    """Ranks of one host have different values of a variable that must be the same.

    A wrapper script that sets variables by rank, or a rank that was started by hand.

    Fix: set it once for all ranks.
    """
    envs = {p.rank or 0: p.env for p in processes if p.env is not None}
    if len(envs) < 2:
        raise NotKnown("compares ranks of a host: the variables of fewer than two are known")
    names = sorted({v.name for env in envs.values() for v in env} & variables.must_match())
    for name in names:
        found = majority.split({rank: env.get(name) or "not set" for rank, env in envs.items()})
        if found is not None:
            said = "; ".join(f"{value} on rank {folded.ranges(ranks)}" for value, ranks in found.groups[:4])
            yield Finding(
                message=f"{name} differs between the ranks of one host: {said}",
                cause="env-or-version-mismatch-across-ranks",
                subject=name,
                severity=Severity.ERROR,
                where=Where(ranks=found.outliers),
                evidence=tuple(e for rank in found.outliers[:4] for e in envs[rank].evidence(name)),
                why="ranks do not compare it, and collectives hang or fail where it differs",
                fixes=(Fix(do=f"set {name} once for all ranks"),),
                confirm="the variables of each rank: smoldiag doctor --job ID --facts --format json",
            )


# -- counters


def _named(grown: Mapping[int, Mapping[str, int]], prefixes: tuple[str, ...]) -> dict[int, dict[str, int]]:
    found = {i: {k: n for k, n in counts.items() if k.startswith(prefixes)} for i, counts in grown.items()}
    return {i: counts for i, counts in found.items() if counts}


def _said(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{key} +{count}" for key, count in sorted(counts.items(), key=lambda item: -item[1])[:4])


def _growth(found: Mapping[int, Mapping[str, int]], increase: Increase) -> str:
    index, counts = next(iter(found.items()))
    rest = f" ({len(found) - 1} more GPUs alike)" if len(found) > 1 else ""
    return f"GPU {index}: {_said(counts)} in {increase.seconds:.0f} s under load{rest}"


def _evidence(found: Mapping[int, Mapping[str, int]]) -> tuple[Evidence, ...]:
    return tuple(
        Evidence(text=_said(counts), where=f"NVML, GPU {i}, read twice") for i, counts in list(found.items())[:6]
    )


@rule("GPU055", Severity.ERROR)
def gpu_memory_errors_grow(increase: Increase) -> Iterator[Finding]:
    """A GPU counts memory errors while the job runs.

    Uncorrectable errors end the process that meets them (Xid 48, 94, 95); corrected ones that grow by the second
    announce them.

    Fix: take the host out of the job, and reset or replace the GPU.
    """
    found = _named(increase.gpus, ("ecc_", "remapped_rows"))
    if found:
        uncorrectable = {i for i, counts in found.items() if UNCORRECTABLE in counts or "remapped_rows" in counts}
        yield Finding(
            message=_growth(found, increase),
            cause="gpu-ecc-error",
            severity=Severity.ERROR if uncorrectable else Severity.WARNING,
            where=Where(gpus=tuple(sorted(found))),
            evidence=_evidence(found),
            why="an uncorrectable error ends the process that meets it",
            fixes=(Fix(do="see the errors and pending repairs", command="nvidia-smi -q -d ECC,ROW_REMAPPER"),),
            confirm="dcgmi diag -r 2 on that host, without the job",
            sources=("https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/index.html",),
        )


@rule("NVL050", Severity.WARNING)
def nvlink_errors_grow(increase: Increase) -> Iterator[Finding]:
    """NVLinks of a GPU count errors while the job runs.

    Each replay or CRC error sends data again; a link that keeps doing so is about to fail (Xid 74).

    Fix: reset the GPU; where they come back, have the board or baseboard looked at.
    """
    found = _named(increase.gpus, ("nvlink",))
    if found:
        yield Finding(
            message=_growth(found, increase),
            cause="nvlink-error",
            where=Where(gpus=tuple(sorted(found))),
            evidence=_evidence(found),
            why="data is sent again, and all ranks wait for it",
            fixes=(Fix(do="see which links", command=f"nvidia-smi nvlink -e -i {min(found)}"),),
            confirm="nvidia-smi nvlink -e twice, a minute apart",
        )


@rule("PCI051", Severity.WARNING)
def pcie_replays_grow(increase: Increase) -> Iterator[Finding]:
    """A GPU repeats PCIe packets while the job runs.

    Slot, riser or retimer disturb the link: copies and GPUDirect through it are slow, and it may fall off the bus.

    Fix: reseat the card or riser; where it comes back, have the slot looked at.
    """
    found = _named(increase.gpus, ("pci_replays",))
    if found:
        yield Finding(
            message=_growth(found, increase),
            cause="pcie-link-degraded",
            where=Where(gpus=tuple(sorted(found))),
            evidence=_evidence(found),
            why="repeated packets cost bandwidth on the way to host and NIC",
            fixes=(Fix(do="see link and replays", command=f"nvidia-smi -q -d PCIE -i {min(found)}"),),
            confirm="nvidia-smi -q -d PCIE twice under load",
        )


@rule("NIC058", Severity.ERROR)
def nic_errors_grow(increase: Increase) -> Iterator[Finding]:
    """A NIC counts link errors, or lost and repeated packets, while the job runs.

    A bad cable or port disturbs every collective over it; losses on RoCE mean that flow control does not hold.

    Fix: clean or swap cable and transceiver; for losses check PFC and ECN on NICs and switches.
    """
    for trouble, cause, severity, least in (
        (LINK_TROUBLE, "ib-link-down-or-flapping", Severity.ERROR, 1),
        (LOSS_TROUBLE, "packets-lost-or-repeated", Severity.WARNING, OCCASIONAL),
    ):
        found = {
            nic: grown
            for nic, counts in increase.nics.items()
            if (grown := {k: n for k, n in counts.items() if k in trouble and n >= least})
        }
        if not found:
            continue
        nic, grown = next(iter(found.items()))
        worst = max(grown, key=lambda k: grown[k])
        yield Finding(
            message=f"{nic}: {_said(grown)} in {increase.seconds:.0f} s while the job ran: {trouble[worst]}"
            + (f" ({len(found) - 1} more NICs alike)" if len(found) > 1 else ""),
            cause=cause,
            severity=severity,
            where=Where(nics=tuple(found)),
            evidence=tuple(
                Evidence(text=_said(counts), where=f"/sys/class/infiniband/{name} or /sys/class/net/{name}, read twice")
                for name, counts in list(found.items())[:6]
            ),
            why="every collective over this NIC waits for the packets that are sent again",
            fixes=(Fix(do="see cable and port", command=f"mlxlink -d {nic} -c, or ethtool -S {nic}"),),
            confirm="the same command again: the counters go on growing",
        )
