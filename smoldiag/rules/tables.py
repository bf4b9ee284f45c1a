"""BWD: what one table of another tool shows: nccl-tests and its kin, single figures.

A table says rarely what it was measured on. A rule here judges only where what is known bounds what is normal: the
GPU's name, a machine that is named beside it, or a level that no machine of the kind stays at when well.
"""

from collections.abc import Iterator
from statistics import median

from smoldiag.facts import Evidence, Tables
from smoldiag.facts.reference import Hardware
from smoldiag.facts.tables import BandwidthTable, Figure, Row
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.knowledge import busbw, hardware
from smoldiag.model import curve as curves
from smoldiag.model.sizes import human
from smoldiag.model.table_reference import Reference, reference
from smoldiag.rules import rule
from smoldiag.rules.bandwidth import ERROR_SHORTFALL, NCCL_TESTS, WARNING_SHORTFALL

JUDGED_BYTES = 16 * 2**20  # smaller ones differ twofold on equal machines (model/expected.py)
NVLS_MIN_RANKS = 8  # NCCL takes NVLS from 5 or 6 GPUs on (knowledge/busbw.csv); of 8 it is sure
RING_EFFICIENCY = (0.72, 0.85)  # of the links: 365/450 Hopper, 682/900 Blackwell (knowledge/busbw.csv)
LIKENESS = 0.10  # published repeats of one machine differ by as much
FALL_RATIO = 0.80  # of the first repeats, that the last ones still reach
MIN_REPEATS = 6
SPLIT_RATIO = 0.60  # many messages against one of the same sum


def hardware_of(table: BandwidthTable) -> Hardware:
    """What the GPU's model tells; NICs are not in a table. Only exact names count, a class needs a machine's name."""
    spec = hardware.gpu(table.gpu)
    if spec is None:
        return Hardware(gpu_class=table.gpu_class)
    return Hardware(
        gpu=table.gpu,
        gpu_class=spec.gpu_class,
        nvlink_gb_per_s=spec.nvlink_gb_per_s,
        nvlink_bridge=spec.nvlink_bridge,
        nvls=spec.nvls,
        nvswitch=spec.nvswitch,
        mnnvl=spec.mnnvl,
        pcie_gb_per_s=spec.pcie_gb_per_s,
    )


def judged(table: BandwidthTable) -> Row | None:
    """The row that speaks for the table: the best of the large sizes."""
    large = [r for r in curves.by_size(table.rows) if (r.size_bytes or 0) >= JUDGED_BYTES and not (r.nodes or r.ranks)]
    return max(large, key=lambda r: r.best_gbs or 0.0, default=None)


def compared(table: BandwidthTable) -> tuple[Row, Reference] | None:
    """The largest row that somebody published the like of; else the best row, if it can be estimated."""
    best = judged(table)
    if best is None:
        return None
    rows, on = busbw.rows(), hardware_of(table)
    large = [
        r for r in curves.by_size(table.rows) if (r.size_bytes or 0) >= max(JUDGED_BYTES, (best.size_bytes or 0) // 4)
    ]
    exact = ((r, ref) for r in reversed(large) if (ref := reference(table, r.size_bytes or 0, rows, on)) and ref.exact)
    estimate = reference(table, best.size_bytes or 0, rows, on)
    return next(exact, None) or ((best, estimate) if estimate else None)


def world(table: BandwidthTable) -> str:
    ranks = f"{table.ranks} ranks" if table.ranks else "unknown ranks"
    nodes = "" if table.nodes is None else " on 1 node" if table.nodes == 1 else f" on {table.nodes} nodes"
    return f"{ranks}{nodes}" + (f" ({table.gpu})" if table.gpu else "")


def named(table: BandwidthTable, row: Row) -> str:
    size = f" of {human(row.size_bytes)}" if row.size_bytes else ""
    label = f" [{table.label}]" if table.label else ""
    return f"{table.collective or 'a collective'}{size}{label} over {world(table)}"


def seen(table: BandwidthTable, row: Row) -> Evidence:
    size = f"{human(row.size_bytes)} " if row.size_bytes else ""
    many = "" if row.nodes == 1 else "s"
    who = f"{row.nodes} node{many} " if row.nodes else f"{row.ranks} ranks " if row.ranks else ""
    label = f"{table.label} " if table.label else ""
    return Evidence(text=f"{label}{who}{size}{row.best_gbs or 0:.4g} GB/s", where=f"{table.file}:{row.line}")


@rule("BWD020", Severity.WARNING)
def nvlink_not_used(tables: Tables) -> Iterator[Finding]:
    """GPUs that have NVLink to each other move no more than PCIe carries.

    On a board with NVLink switches a collective inside the node runs at hundreds of GB/s. At the rate of PCIe or
    below, the data takes the way through the CPU: P2P is off or not possible between these GPUs.

    Fix: unset NCCL_P2P_DISABLE and NCCL_P2P_LEVEL; look at `nvidia-smi topo -p2p r` and at the fabric manager.
    """
    for table in tables.bandwidth:
        spec, row = hardware.gpu(table.gpu), judged(table)
        if spec is None or row is None or not spec.nvswitch or not spec.pcie_gb_per_s or table.nodes != 1:
            continue
        rate = row.best_gbs or 0.0
        if (table.ranks or 0) < 2 or rate > spec.pcie_gb_per_s or table.collective in ("gather", "scatter"):
            continue
        yield Finding(
            message=f"{named(table, row)} reaches {rate:.4g} GB/s, no more than PCIe carries "
            f"({spec.pcie_gb_per_s:g} GB/s); NVLink gives {spec.nvlink_gb_per_s:g} GB/s per GPU",
            cause="p2p-not-used",
            confidence=Confidence.LIKELY,
            where=Where(hosts=table.hosts),
            evidence=(seen(table, row), Evidence(text=spec.source, where="data sheet")),
            why="the GPUs of the node exchange data through the CPU and its memory",
            cost=f"{1 - rate / (RING_EFFICIENCY[0] * spec.nvlink_gb_per_s):.0%} of what rings reach on these links",
            fixes=(
                Fix(do="let NCCL use P2P", command="unset NCCL_P2P_DISABLE NCCL_P2P_LEVEL"),
                Fix(do="see whether the driver allows P2P, and the links are up", command="nvidia-smi topo -p2p r"),
            ),
            confirm="NCCL_DEBUG=INFO: channel lines say via P2P/..., not via SHM/...",
            sources=(spec.source, "NVIDIA NCCL user guide: NCCL_P2P_DISABLE"),
            explains=("busbw-below-expected",),
        )


@rule("BWD021", Severity.WARNING)
def nvls_not_used(tables: Tables) -> Iterator[Finding]:
    """all_reduce inside a node with NVLink SHARP stays at the level of rings.

    Since NCCL 2.18 eight GPUs on third-generation NVLink switches reduce in the switch: 475 instead of 365 GB/s on
    H100 and H200, 838 instead of 682 on B200. The level of rings means that NVLS is off or was refused.

    Fix: unset NCCL_NVLS_ENABLE and NCCL_ALGO; see that the fabric manager runs and the log says NVLS multicast.
    """
    for table in tables.bandwidth:
        spec, row = hardware.gpu(table.gpu), judged(table)
        if spec is None or row is None or not spec.nvls or table.nodes != 1 or table.collective != "all_reduce":
            continue
        share = (row.best_gbs or 0.0) / spec.nvlink_gb_per_s
        small = (row.size_bytes or 0) < 2**29  # before half a GiB curves still rise
        if (table.ranks or 0) < NVLS_MIN_RANKS or small or not RING_EFFICIENCY[0] <= share <= RING_EFFICIENCY[1]:
            continue
        yield Finding(
            message=f"{named(table, row)} reaches {row.best_gbs:.4g} GB/s: the level of rings ({share:.0%} of NVLink), "
            "not of NVLink SHARP",
            cause="nvls-off",
            confidence=Confidence.LIKELY,
            where=Where(hosts=table.hosts),
            evidence=(seen(table, row),),
            why="the NVLink switch could add up, and every GPU would send half as much",
            cost="about 23 % of all_reduce inside the node (published pairs with NVLS on and off)",
            fixes=(Fix(do="let NCCL use NVLS", command="unset NCCL_NVLS_ENABLE NCCL_ALGO"),),
            confirm="NCCL_DEBUG=INFO: `NVLS multicast support is available`, and `nvls channels` above 0",
            sources=("knowledge/busbw.csv: H200 and B200 with NCCL_NVLS_ENABLE=0", "NVIDIA NCCL user guide"),
            explains=("busbw-below-expected",),
        )


@rule("BWD027", Severity.WARNING)
def curve_breaks(tables: Tables) -> Iterator[Finding]:
    """From one size on, or at one size, larger messages are far slower than smaller ones.

    A step between two sizes with smooth curves on both sides is a switch of algorithm or protocol. A fall to nearly
    nothing over several nodes is rather the network: lost packets on a RoCE fabric without flow control. A curve that
    falls on and on has run out of something else: memory, cache, or the cooling of a long test.

    Fix: see with NCCL_DEBUG_SUBSYS=TUNING what is chosen on both sides; force it only to find out.
    """
    for table in tables.bandwidth:
        if table.collective is None and table.tool == "table":
            continue  # copies of memory have shapes of their own
        for b in curves.collapses(table.rows):
            lost = b.lost_ratio > 0.9 and (table.nodes or 1) > 1
            yield _break(table, b, "roce-no-lossless" if lost else "nccl-tuner-choice")
        if found := curves.drop(table.rows):
            yield _break(table, found, "nccl-tuner-choice" if found.level else "bandwidth-collapse")


def _break(table: BandwidthTable, b: curves.Break, cause: str) -> Finding:
    size = human(b.at.size_bytes or 0)
    rest = f"; {human(b.after.size_bytes or 0)} gives {b.after.best_gbs:.4g}" if b.after else " and does not recover"
    return Finding(
        message=f"{table.collective or 'bandwidth'} falls to {b.at.best_gbs:.4g} GB/s at {size}; "
        f"{human(b.before.size_bytes or 0)} gives {b.before.best_gbs:.4g}{rest}",
        cause=cause,
        confidence=Confidence.LIKELY if cause == "nccl-tuner-choice" else Confidence.POSSIBLE,
        evidence=tuple(seen(table, r) for r in (b.before, b.at, b.after) if r is not None),
        why="a larger message should never be slower: another algorithm or protocol begins here, or packets are lost",
        cost=f"{b.lost_ratio:.0%} of the bandwidth at this size",
        fixes=(
            Fix(do="see what NCCL chooses on both sides", command="NCCL_DEBUG=INFO NCCL_DEBUG_SUBSYS=TUNING"),
            Fix(do="on RoCE compare the drop counters before and after", command="ethtool -S <dev> | grep -i discard"),
        ),
        confirm="the same sizes with NCCL_ALGO=Ring and with NCCL_ALGO=Tree",
        explains=("busbw-below-expected",),
    )


@rule("BWD028", Severity.WARNING)
def many_small_messages(tables: Tables) -> Iterator[Finding]:
    """Many small messages take far longer than one large one of the same sum.

    Each call pays the latency; below a few MiB it is most of the time.

    Fix: larger buckets or FSDP units, fewer calls.
    """
    sized = [f for f in tables.figures if f.size_bytes and f.repeats]
    for few in sized:
        for many in sized:
            if not _splits(few, many) or many.gb_per_s >= SPLIT_RATIO * few.gb_per_s:
                continue
            yield Finding(
                message=f"{many.repeats} messages of {human(many.size_bytes or 0)} reach {many.gb_per_s:.4g} GB/s, "
                f"{few.repeats} of {human(few.size_bytes or 0)} {few.gb_per_s:.4g} GB/s",
                cause="small-message-latency-bound",
                confidence=Confidence.LIKELY,
                evidence=tuple(Evidence(text=f"{f.what}: {f.gb_per_s:.4g} GB/s", where=f.where) for f in (few, many)),
                why="each call pays the latency of the whole ring or tree",
                cost=f"{1 - many.gb_per_s / few.gb_per_s:.0%} of the bandwidth with messages of this size",
                fixes=(
                    Fix(do="make buckets larger (DDP: bucket_cap_mb; FSDP: larger units)"),
                    Fix(do="put small tensors into one call"),
                ),
                confirm="smoldiag nccl-bench --sizes 1MiB:1GiB:x4",
            )


def _splits(few: Figure, many: Figure) -> bool:
    total = (few.repeats or 0) * (few.size_bytes or 0)
    same_sum = 0.5 < total / max(1, (many.repeats or 0) * (many.size_bytes or 0)) < 2
    return same_sum and (many.repeats or 0) >= 8 * (few.repeats or 0)


@rule("BWD029", Severity.WARNING)
def measured_without_warmup(tables: Tables) -> Iterator[Finding]:
    """The bench had no warm-up, so that set-up counts as communication.

    The first collective of a communicator connects and registers buffers; timed with it, the figures are too low by
    a factor, most of all with few iterations.

    Fix: measure again with the default of five warm-up iterations (-w 5 -n 20).
    """
    for table in tables.bandwidth:
        if table.warmup != 0 or not table.rows:
            continue
        few = (table.iterations or 0) <= 5
        yield Finding(
            message=f"{table.collective or 'the bench'} was measured without warm-up"
            + (f" and with {table.iterations} iterations" if few else ""),
            cause="measurement-artifact",
            severity=Severity.WARNING if few else Severity.INFO,
            confidence=Confidence.LIKELY if few else Confidence.POSSIBLE,
            evidence=(Evidence(text=f"warmup iters: 0 iters: {table.iterations}", where=table.where),),
            why="set-up of connections is in the times",
            cost="unknown; a bench of eight H200 without warm-up showed a sixth of the bandwidth",
            fixes=(
                Fix(do="measure again with warm-up", command=f"{table.collective or 'all_reduce'}_perf -w 5 -n 20"),
            ),
            sources=("nccl-tests README: -w", "stas00/ml-engineering network/README.md"),
            explains=("busbw-below-expected",),
        )


@rule("BWD031", Severity.WARNING)
def hosts_with_different_gpus(tables: Tables) -> Iterator[Finding]:
    """The hosts or pods of the run have different GPUs of their machine.

    The same rank sits elsewhere on each. Pods that got some GPUs of a node, and NICs apart from them, send through
    other rails and across sockets.

    Fix: claim GPU and NIC together by their PCIe root, the same indices on every node, or take whole nodes.
    """
    for table in tables.bandwidth:
        buses: dict[str, tuple[str, ...]] = {}
        for d in table.devices:
            if d.bus_id:
                buses[d.host] = (*buses.get(d.host, ()), d.bus_id)
        sets = [set(b) for b in buses.values()]
        each = len(sets[0]) if sets else 0
        mixed = any(a & b and a != b for a in sets for b in sets)
        if len(sets) < 2 or each < 2 or each >= 8 or not mixed or any(len(s) != each for s in sets):
            continue
        rate = f"{table.average_gbs:.4g} GB/s on average" if table.average_gbs else ""
        row = judged(table)
        rate = f"{row.best_gbs:.4g} GB/s" if row else rate
        yield Finding(
            message=f"{len(buses)} hosts with {each} GPUs each do not have the same ones"
            + (f" (average {table.average_gbs:.4g} GB/s)" if table.average_gbs else f" ({rate})" if rate else ""),
            cause="gpu-nic-misaligned",
            confidence=Confidence.LIKELY,
            where=Where(hosts=tuple(buses)),
            evidence=tuple(
                Evidence(text=f"{host}: {', '.join(bus)}", where=table.file) for host, bus in list(buses.items())[:6]
            ),
            why="ranks of one rail sit behind different switches, and NICs may not be those next to the GPUs",
            cost="unknown from this table alone; published pods of this kind lost 60 to 80 % of their average",
            fixes=(
                Fix(
                    do="claim GPU and NIC with one constraint on their PCIe root (DRA: resource.kubernetes.io/pcieRoot)"
                ),
                Fix(do="or take whole nodes, one pod for each"),
            ),
            confirm="nvidia-smi topo -m in each pod: every GPU has a NIC at PIX or PXB",
            explains=("busbw-below-expected",),
        )


@rule("BWD034", Severity.ERROR)
def wrong_values_in_the_table(tables: Tables) -> Iterator[Finding]:
    """The bench counted elements that differ from the exact expected ones.

    Fix: take the machine out of service; repeat on halves of the hosts until one is left.
    """
    for table in tables.bandwidth:
        bad = [r for r in table.rows if any(m is not None and m.wrong for m in (r.out_of_place, r.in_place))]
        if bad:
            row = bad[0]
            count = max(m.wrong or 0 for m in (row.out_of_place, row.in_place) if m is not None)
            yield Finding(
                message=f"{count:.0f} elements of {named(table, row)} are wrong ({len(bad)} rows have such)",
                cause="wrong-data",
                severity=Severity.ERROR,
                where=Where(hosts=table.hosts),
                evidence=tuple(Evidence(text="#wrong above 0", where=f"{table.file}:{r.line}") for r in bad[:4]),
                why="the same corruption reaches gradients and weights",
                fixes=(Fix(do="repeat on halves of the hosts until the guilty one is left"),),
                explains=("busbw-below-expected",),
            )


@rule("BWD035", Severity.WARNING)
def network_far_below_such_machines(tables: Tables) -> Iterator[Finding]:
    """Over several nodes a table reaches less than half of what is published for such GPUs.

    That is no question of tuning. In this order: TCP sockets instead of the fabric, one of many NICs, data that goes
    through host memory.

    Fix: look at NCCL's own words first: `Using network`, `NET/IB : Using`, `/GDRDMA` at the channels.
    """
    for table in tables.bandwidth:
        row = judged(table)
        if row is None or (table.nodes or 1) < 2 or (spec := hardware.gpu(table.gpu)) is None or not spec.nvswitch:
            continue
        lowest = _lowest_anywhere(table, row)
        rate = row.best_gbs or 0.0
        if lowest is None or rate >= 0.5 * lowest[0] or table.average_gbs == rate:
            continue
        shape = curves.curve(table.rows)
        floor = shape.latency_us if shape else None
        slow_start = floor is not None and floor >= 100 * ((table.nodes or 2) - 1)
        sockets = (rate < 30 and floor is None) or slow_start
        causes = ["net-socket-fallback", "fewer-nics-than-expected", "gdr-not-used"]
        if not sockets:
            causes = ["fewer-nics-than-expected", "gdr-not-used", "net-socket-fallback"]
        latency = f", {floor:.0f} us for small messages" if floor is not None else ""
        for place, cause in enumerate(causes):
            yield Finding(
                message=f"{named(table, row)} reaches {rate:.4g} GB/s{latency}; the least that is published for such "
                f"nodes is {lowest[0]:.4g} GB/s: {_NETWORK[cause][0]}",
                cause=cause,
                confidence=Confidence.LIKELY if place == 0 else Confidence.POSSIBLE,
                where=Where(hosts=table.hosts[:16]),
                evidence=(seen(table, row), Evidence(text=f"{lowest[0]:.4g} GB/s", where=lowest[1])),
                why=_NETWORK[cause][1],
                cost=f"{1 - rate / lowest[0]:.0%} of the least that is published",
                fixes=(Fix(do="see what NCCL says", command=_NETWORK[cause][2]),),
                confirm=_NETWORK[cause][3],
                explains=("busbw-below-expected",),
            )


_NETWORK = {  # cause -> (what it would be, why, what to type, what shows it)
    "net-socket-fallback": (
        "the level of TCP sockets",
        "NCCL found no RDMA device or plugin and went on over TCP",
        "NCCL_DEBUG=INFO ... | grep -E 'Using network|NET/'",
        "NCCL_NET=IB (or the plugin's name): it then fails with the real reason",
    ),
    "fewer-nics-than-expected": (
        "the level of one of several NICs",
        "NCCL sees or may use only some of the NICs",
        "NCCL_DEBUG=INFO ... | grep 'NET/.*Using'; ibstat",
        "unset NCCL_IB_HCA: the line NET/IB : Using lists all devices",
    ),
    "gdr-not-used": (
        "data may go through host memory",
        "without GPUDirect RDMA each message is copied through host memory",
        "NCCL_DEBUG=INFO ... | grep -E 'GPU Direct RDMA|GDRDMA'",
        "channel lines end in /GDRDMA",
    ),
}


def _lowest_anywhere(table: BandwidthTable, row: Row) -> tuple[float, str] | None:
    """The least published figure for such GPUs on so many nodes; of rings, where it is a ring's collective."""
    rings = ("all_reduce", "all_gather", "reduce_scatter")
    local = (table.ranks or 0) // (table.nodes or 1)
    rates = [
        (p.busbw_gbs, p.source)
        for p in busbw.rows()
        if p.use == "measured"
        and p.gpu == table.gpu_class
        and p.gpus_per_node == local
        and (p.nodes or 0) > 1
        and (p.collective in rings if table.collective in rings else p.collective == table.collective)
        and (row.size_bytes or 0) / 4 <= (p.size_bytes or 0) <= (row.size_bytes or 0)
    ]
    return min(rates, default=None)


@rule("BWD036", Severity.ERROR)
def table_below_published(tables: Tables) -> Iterator[Finding]:
    """A table is below what others measured on such GPUs.

    One node of a board with NVLink switches is the same machine everywhere. Over several nodes only a machine that
    is named beside the table counts in full: tables do not tell their NICs, and figures differ threefold with them.

    Fix: look at the transport first (NCCL_DEBUG=INFO), then at each node alone.
    """
    for table in tables.bandwidth:
        row, ref = compared(table) or (None, None)
        if row is None or ref is None:
            continue
        ratio = (row.best_gbs or 0.0) / ref.low.busbw_gbs
        shortfall = WARNING_SHORTFALL if ref.low.kind == "measured" else 0.5
        if ratio >= 1 - shortfall:
            continue
        error = ref.exact and ref.named and ratio < 1 - ERROR_SHORTFALL
        severity = Severity.ERROR if error else Severity.WARNING if ref.named else Severity.INFO
        yield Finding(
            message=f"{named(table, row)} reaches {row.best_gbs:.4g} GB/s, {ratio:.0%} of the "
            f"{'' if ref.exact else 'least, '}{ref.low.busbw_gbs:.4g} GB/s that others measured on such GPUs",
            cause="busbw-below-expected" if ref.named else "busbw-against-published",
            severity=severity,
            confidence=Confidence.LIKELY if ref.exact else Confidence.POSSIBLE,
            where=Where(hosts=table.hosts[:16]),
            evidence=(seen(table, row), Evidence(text=f"{ref.low.busbw_gbs:.4g} GB/s", where=ref.low.source)),
            why="every step of a training job waits for these collectives",
            cost=f"{1 - ratio:.0%} of the bus bandwidth (measured against published)",
            fixes=(
                Fix(
                    do="measure each node alone and one rank per node",
                    command="smoldiag nccl-bench --groups intra,inter",
                ),
            ),
            confirm="NCCL_DEBUG=INFO in front of the same bench",
            sources=(ref.low.source, NCCL_TESTS),
        )


@rule("BWD047", Severity.WARNING)
def falls_from_repeat_to_repeat(tables: Tables) -> Iterator[Finding]:
    """The same measurement, repeated, falls with time.

    Nothing of the program changes between repeats: the machine does. Clocks fall under heat or a power cap, first on
    one GPU, and the others wait for it.

    Fix: look at clocks, temperatures and throttle reasons of all GPUs while it runs.
    """
    groups: dict[tuple[object, ...], list[tuple[BandwidthTable, Row]]] = {}
    for table in tables.bandwidth:
        for row in table.rows:
            if (row.size_bytes or 0) >= JUDGED_BYTES and row.best_gbs and not (row.nodes or row.ranks):
                key = (table.file, table.collective, table.label, table.ranks, row.size_bytes)
                groups.setdefault(key, []).append((table, row))
    for repeats in groups.values():
        rates = [row.best_gbs or 0.0 for _, row in repeats]
        third = len(rates) // 3
        if len(rates) < MIN_REPEATS:
            continue
        first, last = median(rates[:third]), median(rates[-third:])
        if last >= FALL_RATIO * first or max(rates[-third:]) >= min(rates[:third]):
            continue
        table, row = repeats[-1]
        yield Finding(
            message=f"{named(table, row)} falls from {first:.4g} to {last:.4g} GB/s over {len(rates)} repeats",
            cause="gpu-throttled",
            confidence=Confidence.POSSIBLE,
            where=Where(hosts=table.hosts[:16]),
            evidence=(seen(*repeats[0]), seen(*repeats[-1])),
            why="a GPU whose clock falls holds back all the others in every collective",
            cost=f"{1 - last / first:.0%} of the bandwidth at the end",
            fixes=(
                Fix(
                    do="look at clocks and throttle reasons on each node while it runs",
                    command="nvidia-smi -q -d CLOCK,PERFORMANCE,TEMPERATURE",
                ),
            ),
            confirm="the same run on other nodes, or on these after a pause",
        )


@rule("BWD050", Severity.WARNING)
def several_worlds_instead_of_one(tables: Tables) -> Iterator[Finding]:
    """The launcher started several copies of the bench, each a world of its own.

    nccl-tests that was built without MPI does not see the launcher: each copy measures its own GPUs alone, and all at
    the same time on the same ones.

    Fix: build it with MPI=1 and MPI_HOME, and start it with the mpirun of the same MPI.
    """
    for table in tables.bandwidth:
        if table.worlds > 1 and table.rows:
            yield Finding(
                message=f"{table.worlds} copies of the bench ran side by side, each with "
                f"{table.ranks or 'its own'} ranks: they are not one world",
                cause="world-smaller-than-asked",
                confidence=Confidence.LIKELY,
                evidence=(Evidence(text=f"{table.worlds} headers before the first row", where=table.where),),
                why="the figures are of several small worlds that disturb each other, not of the network",
                fixes=(Fix(do="build nccl-tests with MPI", command="make MPI=1 MPI_HOME=<path of the MPI>"),),
                confirm="one list of devices, with all ranks in it",
                sources=("nccl-tests README: Build",),
                explains=("busbw-below-expected", "net-socket-fallback", "fewer-nics-than-expected", "gdr-not-used"),
            )
            return


@rule("BWD037", Severity.WARNING)
def measured_below_what_was_expected(tables: Tables) -> Iterator[Finding]:
    """Somebody wrote beside the figures what the machine should give, and it gives about half.

    Half of the NICs' rate, with more than one NIC's worth measured, is no missing NIC: the way between GPU and NIC
    is the long one. In a virtual machine that is PCI ACS without ATS, on bare metal ACS or GPUDirect RDMA.

    Fix: see ACS (lspci -vvv), in a virtual machine the host's settings for passthrough; see /GDRDMA in NCCL's log.
    """
    virtual = next((n for n in tables.notes if _is_virtual(n.text)), None)
    for figure in tables.figures:
        if not figure.expected_gbs or figure.gb_per_s >= 0.7 * figure.expected_gbs:
            continue
        ratio = figure.gb_per_s / figure.expected_gbs
        told = (
            Evidence(
                text=f"expected {figure.expected_gbs:.4g}, measured {figure.gb_per_s:.4g} GB/s", where=figure.where
            ),
        )
        shown = f"measured {figure.gb_per_s:.4g} GB/s where {figure.expected_gbs:.4g} were expected ({ratio:.0%})"
        if virtual:
            yield Finding(
                message=f"{shown}, in a virtual machine: peer traffic goes through the host's root complex",
                cause="vm-acs-ats",
                confidence=Confidence.LIKELY,
                evidence=(*told, virtual),
                why="without ACS DirectTrans and ATS on the NIC, GPU and NIC of a guest meet only at the root complex",
                cost=f"{1 - ratio:.0%} of what was expected",
                fixes=(
                    Fix(do="set ACS DirectTrans on the host's bridges and ATS on the NIC (NVIDIA's guide for VMs)"),
                ),
                confirm="ib_write_bw --use_cuda=0 against ib_write_bw in the guest",
            )
        for cause, why in (
            ("acs-enabled", "a bridge sends traffic between GPU and NIC up to the root complex"),
            ("gdr-not-used", "each message is copied through host memory"),
        ):
            yield Finding(
                message=f"{shown}: {why}",
                cause=cause,
                confidence=Confidence.POSSIBLE,
                evidence=told,
                why=why,
                cost=f"{1 - ratio:.0%} of what was expected",
                fixes=(Fix(do="see whether ACS is on", command="sudo lspci -vvv | grep ACSCtl"),)
                if cause == "acs-enabled"
                else (Fix(do="load the peer-memory module", command="sudo modprobe nvidia-peermem"),),
                confirm="ib_write_bw with and without --use_cuda on one NIC",
            )


def _is_virtual(words: str) -> bool:
    return any(
        w in f" {words.lower()} " for w in (" vm", "vms ", "virtual machine", "kvm", "qemu", "sr-iov", "passthrough")
    )


@rule("BWD039", Severity.INFO)
def table_as_published(tables: Tables) -> Iterator[Finding]:
    """A table shows what such hardware gives: how much of the published figures.

    Fix: none is needed.
    """
    for table in tables.bandwidth:
        row, ref = compared(table) or (None, None)
        if row is None or ref is None or (row.best_gbs or 0.0) < (1 - WARNING_SHORTFALL) * ref.low.busbw_gbs:
            continue
        yield Finding(
            message=against(table, row, ref),
            cause="busbw-as-published",
            severity=Severity.INFO,
            confidence=Confidence.LIKELY if ref.exact else Confidence.POSSIBLE,
            evidence=(seen(table, row), Evidence(text=f"{ref.low.busbw_gbs:.4g} GB/s", where=ref.low.source)),
            sources=(ref.low.source,),
        )


def against(table: BandwidthTable, row: Row, ref: Reference | None) -> str:
    """One sentence: what, how much, how much of what is published."""
    said = f"{named(table, row)}: {row.best_gbs:.4g} GB/s"
    if ref is None:
        return f"{said}; {_resembling(table, row) or 'nothing published to compare it with'}"
    rate = row.best_gbs or 0.0
    if ref.low is ref.high:
        return f"{said} = {rate / ref.low.busbw_gbs:.0%} of {ref.low.kind} {ref.low.busbw_gbs:.4g} GB/s"
    low, high = ref.low.busbw_gbs, ref.high.busbw_gbs
    return f"{said}; published for such nodes: {low:.4g} to {high:.4g} GB/s ({rate / low:.0%} to {rate / high:.0%})"


def _resembling(table: BandwidthTable, row: Row) -> str:
    """Where the table names no GPU: whose published figures of one node these are."""
    if table.gpu or table.nodes != 1 or not table.collective:
        return ""
    like = {
        p.gpu
        for p in busbw.rows()
        if (p.use, p.collective, p.nodes, p.gpus_per_node) == ("measured", table.collective, 1, table.ranks)
        and p.size_bytes
        and abs(p.size_bytes - (row.size_bytes or 0)) <= 0.01 * p.size_bytes
        and abs(p.busbw_gbs / (row.best_gbs or 1.0) - 1) <= LIKENESS
    }
    return f"no GPU is named; {table.ranks} of {' or '.join(sorted(like))} give as much" if like else ""
