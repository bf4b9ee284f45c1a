"""BWD: pairs of GPUs, single links."""

from collections.abc import Iterator
from statistics import median

from smoldiag.facts import Evidence, Tables
from smoldiag.facts.tables import BandwidthTable, PairTable, Row
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.rules import rule
from smoldiag.rules.tables import JUDGED_BYTES, judged, seen

SLOW_PAIR_RATIO = 0.70  # of the pairs' usual rate; sound pairs repeat to within 10 %
MIN_PAIRS = 3
P2P_RATIO = 0.8  # with peer access against without: it should be higher
NARROW_RATIO = 0.60  # PCIe 4 x16 in NCCL's graph is 24 GB/s, a 200G NIC 25: equal ones are never below it
PERFTEST_HALF = 0.60  # of what perftest shows on the same NIC


@rule("BWD026", Severity.WARNING)
def gpus_without_peer_access(tables: Tables) -> Iterator[Finding]:
    """Pairs of GPUs all run at one low rate, whatever lies between them: P2P is not used.

    A pair below one PCIe switch is faster than one across the CPUs. Where both give the same, and others of the
    machine or the same test with P2P give a multiple, both go through host memory. One GPU far below the others in
    a matrix has a narrow or slow link of its own.

    Fix: see what `nvidia-smi topo -p2p r` says, and whether the board and the driver support P2P.
    """
    twos = [(t, r) for t in tables.bandwidth if t.ranks == 2 and t.nodes == 1 and (r := _any(t)) and r.best_gbs]
    if len(twos) >= 3:
        low = min(r.best_gbs or 0.0 for _, r in twos)
        alike = [(t, r) for t, r in twos if (r.best_gbs or 0.0) <= 1.05 * low]
        high = max(r.best_gbs or 0.0 for _, r in twos)
        if len(alike) >= 2 and high >= 2 * low:
            yield _no_peer(
                f"{len(alike)} pairs of GPUs give the same {low:.4g} GB/s, other pairs up to {high:.4g} GB/s",
                tuple(seen(t, r) for t, r in twos[:8]),
                low / high,
            )
    matrices = {t.label.lower(): t for t in tables.pairs if t.kind == "gpus"}
    on = next((t for label, t in matrices.items() if "unidirectional p2p=enabled" in label), None)
    off = next((t for label, t in matrices.items() if "unidirectional p2p=disabled" in label), None)
    if on and off and (a := _typical(on)) and (b := _typical(off)) and a < P2P_RATIO * b:
        yield Finding(
            message=f"with P2P enabled GPUs exchange {a:.4g} GB/s, without {b:.4g} GB/s: peer access takes a detour",
            cause="p2p-through-cpu",
            confidence=Confidence.LIKELY,
            evidence=(Evidence(text=on.label, where=on.where), Evidence(text=off.label, where=off.where)),
            why="writes between the GPUs pass the root complex one by one, where copies through host memory do not",
            cost=f"{1 - a / b:.0%} of the rate between GPUs",
            fixes=(
                Fix(do="see whether PCI ACS is on", command="sudo lspci -vvv | grep ACSCtl"),
                Fix(do="until then let NCCL go through host memory", command="export NCCL_P2P_LEVEL=PXB"),
            ),
            confirm="all_reduce_perf with and without NCCL_P2P_DISABLE=1",
            explains=("busbw-below-expected",),
        )
    for table in tables.pairs:
        if table.kind in ("gpus", "cpu-gpu"):
            yield from _one_gpu_behind(table)


def _any(table: BandwidthTable) -> Row | None:
    return max(table.rows, key=lambda r: r.best_gbs or 0.0, default=None)


def _no_peer(message: str, evidence: tuple[Evidence, ...], ratio: float) -> Finding:
    return Finding(
        message=message,
        cause="p2p-not-used",
        confidence=Confidence.LIKELY,
        evidence=evidence,
        why="equal rates over different ways mean that all take the same way, through host memory",
        cost=f"{1 - ratio:.0%} of the rate between GPUs",
        fixes=(Fix(do="see whether driver and board allow P2P", command="nvidia-smi topo -p2p r"),),
        confirm="p2pBandwidthLatencyTest, or nvbandwidth -t device_to_device_memcpy_read_ce",
        explains=("busbw-below-expected",),
    )


def _typical(table: PairTable) -> float | None:
    rates = [p.gb_per_s for p in table.pairs if p.gb_per_s > 0]
    return median(rates) if len(rates) >= 2 else None


def _one_gpu_behind(table: PairTable) -> Iterator[Finding]:
    best: dict[str, float] = {}
    for p in table.pairs:
        for gpu in (p.b,) if table.kind == "cpu-gpu" else (p.a, p.b):
            best[gpu] = max(best.get(gpu, 0.0), p.gb_per_s)
    if len(best) < MIN_PAIRS:
        return
    usual = median(best.values())
    behind = sorted((g for g, rate in best.items() if rate < SLOW_PAIR_RATIO * usual), key=int)
    if behind and len(behind) <= len(best) // 4:
        yield Finding(
            message=f"GPU {', '.join(behind)} reaches {min(best[g] for g in behind):.4g} GB/s in "
            f"{table.label or 'the test'}, the others {usual:.4g} GB/s",
            cause="pcie-degraded" if table.kind == "cpu-gpu" else "nvlink-degraded",
            confidence=Confidence.LIKELY,
            where=Where(gpus=tuple(int(g) for g in behind)),
            evidence=(Evidence(text=f"{table.label}: {min(best[g] for g in behind):.4g} GB/s", where=table.where),),
            why="its link runs with fewer lanes, slower, or with replays",
            cost=f"{1 - min(best[g] for g in behind) / usual:.0%} of the rate of this GPU's link",
            fixes=(
                Fix(
                    do="compare the link with what it could be",
                    command="nvidia-smi --query-gpu=index,pcie.link.gen.current,pcie.link.width.current,"
                    "pcie.link.width.max --format=csv",
                ),
            ),
            confirm="the same test again while the GPU is busy: idle links may run slower",
        )


@rule("BWD032", Severity.WARNING)
def perftest_reaches_more_than_nccl(tables: Tables) -> Iterator[Finding]:
    """A NIC reaches its rate in perftest, and NCCL half of it over the same NIC.

    perftest sends host memory. What NCCL loses lies between GPU and NIC: PCI ACS sends peer traffic up to the root
    complex, or GPUDirect RDMA is off.

    Fix: on bare metal turn ACS off on the bridges; load nvidia-peermem or use a DMA-BUF kernel.
    """
    links = [(t.gbit_per_s / 8, t.where, t.tool) for t in tables.links if not t.gpu_memory]
    links += [(f.gb_per_s, f.where, f.what) for f in tables.figures if _is_perftest(f.what)]
    if not links:
        return
    rate, where, tool = max(links)
    hca = next((v for n, v, _ in tables.settings if n == "NCCL_IB_HCA"), "")
    nics = max(1, len([x for x in hca.strip("=^").split(",") if x])) if hca else 1
    for table in tables.bandwidth:
        row = _any(table) if table.rows else None
        reached = row.best_gbs if row and (row.size_bytes or 0) >= JUDGED_BYTES else table.average_gbs
        if not reached or table.nodes == 1 or reached >= PERFTEST_HALF * rate * nics:
            continue
        evidence = (
            Evidence(text=f"{tool}: {rate:.4g} GB/s", where=where),
            Evidence(text=f"busbw {reached:.4g} GB/s", where=table.where),
        )
        shown = f"perftest reaches {rate:.4g} GB/s on a NIC, NCCL {reached:.4g} GB/s" + (
            f" over {nics}" if nics > 1 else ""
        )
        shared = f"{1 - reached / (rate * nics):.0%} of what the NIC carries"
        yield Finding(
            message=f"{shown}: what is lost lies between GPU and NIC",
            cause="acs-enabled",
            confidence=Confidence.LIKELY,
            evidence=evidence,
            why="with ACS on, a bridge sends traffic between GPU and NIC up to the root complex and back",
            cost=shared,
            fixes=(
                Fix(do="see whether ACS is on", command="sudo lspci -vvv | grep ACSCtl"),
                Fix(
                    do="turn it off in the BIOS, or on each bridge",
                    command="sudo setpci -s <bridge> ECAP_ACS+0x6.w=0000",
                ),
            ),
            confirm="ib_write_bw --use_cuda=0 on the same NIC: as low as NCCL",
            sources=("NVIDIA NCCL user guide: Troubleshooting, PCI Access Control Services",),
            explains=("busbw-below-expected",),
        )
        yield Finding(
            message=f"{shown}: GPUDirect RDMA may be off",
            cause="gdr-not-used",
            confidence=Confidence.POSSIBLE,
            evidence=evidence,
            why="without it each message is copied through host memory on both sides",
            cost=shared,
            fixes=(Fix(do="load the peer-memory module on every host", command="sudo modprobe nvidia-peermem"),),
            confirm="NCCL_DEBUG=INFO: channel lines end in /GDRDMA",
        )
        return


def _is_perftest(words: str) -> bool:
    return any(w in words.lower() for w in ("ib_write", "ib_read", "ib_send", "perftest"))


@rule("BWD033", Severity.WARNING)
def network_with_small_frames(tables: Tables) -> Iterator[Finding]:
    """The RDMA or Ethernet network runs with frames of 1500 bytes.

    RoCE takes its MTU from the interface: 1500 there means 1024 for RDMA, which costs a few percent to a fifth.

    Fix: set 9000 on hosts, bonds and switches, end to end.
    """
    for note in tables.notes:
        words = note.text.lower()
        listed = any(w in words for w in ("qdisc", "<broadcast", "flags="))  # `ip link` shows every interface
        small = not listed and any(
            f"mtu{sep}{mtu}" in words for sep in (" ", "=", ":", ": ") for mtu in ("1500", "1024")
        )
        cure = "ip link set" in words and "mtu 9000" in words
        if (small or cure) and any(t.nodes != 1 for t in tables.bandwidth):
            yield Finding(
                message=("the network ran with small frames: " if small else "jumbo frames are set by hand here: ")
                + note.text[:120],
                cause="mtu-1500",
                confidence=Confidence.LIKELY if small else Confidence.POSSIBLE,
                evidence=(note, *(seen(t, r) for t in tables.bandwidth[:2] if (r := judged(t)))),
                why="RoCE's MTU follows the interface's: 1500 gives 1024, and four times the headers",
                cost="a few to 20 percent of the bandwidth over RoCE (published runs)",
                fixes=(Fix(do="set jumbo frames end to end", command="sudo ip link set dev <dev> mtu 9000"),),
                confirm="ping -M do -s 8972 <peer>; ibv_devinfo shows active_mtu 4096",
                sources=("NVIDIA RoCE configuration guide",),
            )
    small_links = [t for t in tables.links if t.mtu and t.mtu <= 1024]
    if small_links:
        first = small_links[0]
        yield Finding(
            message=f"{first.tool} on {first.device or 'the device'} ran with an RDMA MTU of {first.mtu} bytes",
            cause="mtu-1500",
            severity=Severity.WARNING,
            confidence=Confidence.LIKELY,
            where=Where(nics=(first.device,) if first.device else ()),
            evidence=(Evidence(text=f"Mtu {first.mtu}, {first.gbit_per_s:.4g} Gb/s", where=first.where),),
            why="the RDMA MTU follows the interface's: 1500 gives 1024",
            fixes=(Fix(do="set jumbo frames end to end", command="sudo ip link set dev <dev> mtu 9000"),),
            confirm="ibv_devinfo shows active_mtu 4096",
        )


@rule("BWD048", Severity.WARNING)
def slot_carries_less_than_its_nic(tables: Tables) -> Iterator[Finding]:
    """NCCL's graph of the machine shows a NIC behind a PCIe link that carries far less.

    NCCL reads width and speed of every link. A NIC of 25 GB/s behind a link of 12 or 6 GB/s trained with fewer lanes
    or at a lower generation, or sits in a slot that is too narrow. Where all links look alike, as in virtual machines,
    nobody read them.

    Fix: compare LnkSta with LnkCap of the NIC and of the bridges above it; reseat it, or move it to another slot.
    """
    slow = [n for n in tables.graph_nics if n.pci_gbs < NARROW_RATIO * n.net_gbs and n.pci_gbs < n.fastest_gbs]
    if slow:
        names = tuple(dict.fromkeys(n.name for n in slow))
        worst = min(slow, key=lambda n: n.pci_gbs / n.net_gbs)
        yield Finding(
            message=f"{len(names)} NIC{'s' if len(names) > 1 else ''} of {worst.net_gbs:g} GB/s "
            f"sit{'' if len(names) > 1 else 's'} behind a PCIe link of {worst.pci_gbs:g} GB/s ({names[0]})",
            cause="pcie-degraded",
            confidence=Confidence.LIKELY,
            where=Where(nics=names),
            evidence=tuple(Evidence(text=n.text, where=n.where) for n in slow[:6]),
            why="what the slot does not carry, the NIC cannot send",
            cost=f"{1 - worst.pci_gbs / worst.net_gbs:.0%} of the NIC's rate (NCCL's graph)",
            fixes=(
                Fix(do="compare the link with what it could be", command="sudo lspci -vvv | grep -E 'LnkCap:|LnkSta:'"),
            ),
            confirm="ib_write_bw over this NIC",
            sources=("NCCL src/graph/topo.cc: ncclTopoPrint",),
            explains=("busbw-below-expected", "slow-node"),
        )
