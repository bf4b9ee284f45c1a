"""BWD: what a bench of collectives shows."""

from collections.abc import Iterable, Iterator
from statistics import median

from smoldiag.facts import Bench, Cluster, Evidence, Expected, PairRate, Result
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.model.sizes import human as size
from smoldiag.rules import rule

ERROR_SHORTFALL = 0.40  # of a figure measured on the same hardware, size and node count: not noise, not tuning
WARNING_SHORTFALL = 0.20  # of such a figure; published repeats of one machine differ by 5 to 10 % (knowledge/busbw.csv)
WARNING_SHORTFALL_OF_ESTIMATE = 0.50  # an estimate is right to about a factor of 1.5
SLOW_HOST_RATIO = 0.70  # of the median host's pair rate; the same hosts repeat to within about 10 % of each other
COLLAPSE_RATIO = 0.40  # of both neighbouring sizes, in the best iteration too
MIN_COLLAPSE_BYTES = 64 * 1024  # below it the latency decides, and one late packet halves the figure
MIN_HOSTS_TO_COMPARE = 3  # with two, nobody can say which of them is slow
RDMA_KINDS = {"infiniband", "roce", "efa"}
NCCL_TESTS = "nccl-tests doc/PERFORMANCE.md"

HARMFUL = {  # variable -> (values that cost bandwidth; None = any value, cause, what it does)
    "NCCL_P2P_DISABLE": ({"1"}, "p2p-disabled", "GPUs of a node talk through host memory"),
    "NCCL_SHM_DISABLE": ({"1"}, "shm-disabled", "ranks of a node without P2P talk over the network"),
    "NCCL_IB_DISABLE": ({"1"}, "net-socket-fallback", "RDMA devices are not used by NCCL's own IB transport"),
    "NCCL_NVLS_ENABLE": ({"0"}, "nvls-off", "NVLink SHARP is off: all_reduce on NVSwitch stays at ring speed"),
    "NCCL_NET_GDR_LEVEL": ({"0", "LOC"}, "gdr-not-used", "GPUDirect RDMA is off"),
    "NCCL_ALGO": (None, "nccl-proto-forced", "one algorithm is forced at every size"),
    "NCCL_PROTO": (None, "nccl-proto-forced", "one protocol is forced at every size"),
    "NCCL_MAX_NCHANNELS": (None, "channels-capped", "the number of channels is capped"),
}


def judged(results: Iterable[Result]) -> list[Result]:
    """The results that the verdict rests on: per collective over all ranks, the verdict size, else the largest."""
    world = [r for r in results if r.group.kind == "world" and not r.purpose.startswith(("fsdp", "ddp"))]
    ranks = max((len(r.group.ranks) for r in world), default=0)
    best: dict[str, Result] = {}
    for r in world:
        if len(r.group.ranks) == ranks:
            key = (r.purpose == "verdict", r.size_bytes)
            if r.collective not in best or key > (
                best[r.collective].purpose == "verdict",
                best[r.collective].size_bytes,
            ):
                best[r.collective] = r
    return list(best.values())


def expectation(bench: Bench, result: Result) -> Expected | None:
    return next((e for e in bench.expected if e.fits(result)), None)


@rule("BWD001", Severity.ERROR)
def busbw_below_expected(bench: Bench) -> Iterator[Finding]:
    """The bus bandwidth is below what this hardware gives.

    Training waits for the same collectives: what is missing here is missing in every step. Only a
    figure measured on the same hardware, size and node count is held against the machine in full;
    an estimate only where half is missing, and a bound by hardware arithmetic never.

    Fix: look at the transport line first (network, GPUDirect, NICs), then at each node alone (--groups intra).
    """
    for r in judged(bench.results):
        e = expectation(bench, r)
        if e is None or e.busbw_gbs <= 0:
            continue
        ratio = r.busbw_gbs / e.busbw_gbs
        severity = _severity(e.kind, ratio)
        if severity is None:
            continue
        yield Finding(
            message=f"{r.collective} at {size(r.size_bytes)} over {_world(bench, r)} reaches {r.busbw_gbs:.4g} GB/s "
            f"busbw, "
            f"{ratio:.0%} of the {e.busbw_gbs:.4g} GB/s {_EXPECTED_AS[e.kind]}",
            cause="busbw-below-expected" if severity is not Severity.INFO else "busbw-against-bound",
            severity=severity,
            confidence=Confidence.CERTAIN if e.kind in ("site", "measured") else Confidence.POSSIBLE,
            evidence=(
                Evidence(text=_timing(r), where="this run"),
                Evidence(text=f"{e.busbw_gbs:.4g} GB/s", where=e.source),
            ),
            why="every step of a training job waits for these collectives",
            cost=""
            if severity is Severity.INFO
            else f"{1 - ratio:.0%} of the bus bandwidth (measured against {e.kind} figure)",
            fixes=()
            if severity is Severity.INFO
            else (
                Fix(
                    do="measure each node alone and one rank per node, to see which part is slow",
                    command="smoldiag nccl-bench --groups intra,inter",
                ),
            ),
            confirm="smoldiag nccl-bench --groups all,intra,inter",
            sources=(e.source, NCCL_TESTS),
        )


_EXPECTED_AS = {
    "site": "of this site's own reference",
    "measured": "that others measured on this hardware",
    "estimated": "estimated for this hardware",
    "bound": "that the hardware allows at most",
}


def _severity(kind: str, ratio: float) -> Severity | None:
    if kind in ("site", "measured"):
        if ratio < 1 - ERROR_SHORTFALL:
            return Severity.ERROR
        return Severity.WARNING if ratio < 1 - WARNING_SHORTFALL else None
    if kind == "estimated":
        return Severity.WARNING if ratio < 1 - WARNING_SHORTFALL_OF_ESTIMATE else None
    return Severity.INFO  # a bound says how far it could go, not what is normal


def _world(bench: Bench, r: Result) -> str:
    nodes = "1 node" if r.group.nodes == 1 else f"{r.group.nodes} nodes"
    return f"{len(r.group.ranks)} ranks on {nodes}"


def _timing(r: Result) -> str:
    spread = f"p50 {r.time_us.p50:.1f} us, p99 {r.time_us.p99:.1f} us"
    return f"{r.collective} {size(r.size_bytes)}: {spread}, {r.iterations} iterations"


@rule("BWD002", Severity.WARNING)
def host_slower_than_the_others(bench: Bench) -> Iterator[Finding]:
    """One host sends or receives more slowly than the others, with every partner.

    A collective takes equally long on all ranks, so it does not show who is slow. Disjoint pairs of hosts do:
    a host that is slow even with its best partner, and again when measured a second time, is slow itself.

    Fix: leave the host out of the job and look at its link, counters and clocks.
    """
    for direction, verb in (("src", "sends to even"), ("dst", "receives from even")):
        search = _best_rates(bench.pairs, direction, confirming=False)
        again = _best_rates(bench.pairs, direction, confirming=True)
        if len(search) < MIN_HOSTS_TO_COMPARE:
            continue
        usual = median(search.values())
        for host, rate in sorted(search.items(), key=lambda item: item[1]):
            confirmed = again.get(host)
            if (
                usual <= 0
                or rate >= SLOW_HOST_RATIO * usual
                or confirmed is None
                or confirmed >= SLOW_HOST_RATIO * usual
            ):
                continue
            yield Finding(
                message=f"{host} {verb} its best partner at {confirmed:.3g} GB/s; "
                f"the other hosts reach {usual:.3g} GB/s",
                cause="slow-node",
                severity=Severity.WARNING,
                where=Where(hosts=(host,), ranks=tuple(r for r, h in enumerate(bench.host_of_rank) if h == host)),
                evidence=tuple(_pair_evidence(bench.pairs, host, direction)),
                why="a ring or tree is as fast as its slowest member: this host holds back all the others",
                cost=f"up to {1 - confirmed / usual:.0%} of the bandwidth over all hosts (ratio of the pair rates)",
                fixes=(
                    Fix(do=f"start the job without {host}", command=_without(host, bench)),
                    Fix(do=f"on {host}, look at link rate, error counters, CPU limits and traffic shaping"),
                ),
                confirm=f"measure again without {host}: all_reduce over the others then runs at the pairs' rate",
                explains=("busbw-below-expected", "late-rank"),
            )


def _without(host: str, bench: Bench) -> str:
    if bench.launcher in ("slurm", "joined"):
        return f"srun --exclude={host} ..."
    others = [h for h in bench.world.hosts if h != host]
    return f"smoldiag nccl-bench --hosts {','.join(others[:64])}{',...' if len(others) > 64 else ''}"


def _best_rates(pairs: Iterable[PairRate], direction: str, *, confirming: bool) -> dict[str, float]:
    """Per host, the best rate with any partner, all its ranks together (GB/s)."""
    flows: dict[tuple[str, str, int], float] = {}
    for p in pairs:
        if p.confirming == confirming:
            key = (p.src_host, p.dst_host, p.round)
            flows[key] = flows.get(key, 0.0) + p.gb_per_s
    best: dict[str, float] = {}
    for (src, dst, _), rate in flows.items():
        host = src if direction == "src" else dst
        best[host] = max(best.get(host, 0.0), rate)
    return best


def _pair_evidence(pairs: Iterable[PairRate], host: str, direction: str) -> Iterator[Evidence]:
    for p in pairs:
        if host == (p.src_host if direction == "src" else p.dst_host):
            again = ", measured again" if p.confirming else ""
            yield Evidence(
                text=f"{p.src_host} -> {p.dst_host} {p.gb_per_s:.3g} GB/s",
                where=f"send_recv {size(p.size_bytes)}, round {p.round}{again}",
            )


@rule("BWD003", Severity.WARNING)
def rank_arrives_late(bench: Bench) -> Iterator[Finding]:
    """One rank comes late to every collective, and the others wait for it.

    Its own time inside the collective is short and its time between two collectives is long: it is held up
    on its host (another process on its cores, a CPU limit, interrupts), not by the network.

    Fix: look at what else runs on that host, and at the CPU binding of that rank.
    """
    for r in judged(bench.results):
        if r.late_us <= 0:
            continue
        host = bench.host_of_rank[r.slowest_rank]
        yield Finding(
            message=f"rank {r.slowest_rank} on {host} arrives {r.late_us:.0f} us late at every {r.collective} "
            f"of {size(r.size_bytes)} "
            f"(one takes {r.time_us.p50:.0f} us)",
            cause="late-rank",
            confidence=Confidence.LIKELY,
            where=Where(hosts=(host,), ranks=(r.slowest_rank,)),
            evidence=(
                Evidence(
                    text=f"median time between two collectives {r.late_us:.0f} us on rank {r.slowest_rank}",
                    where="this run",
                ),
            ),
            why="all the other ranks wait for it in every collective",
            cost=f"{r.late_us:.0f} us per collective (median)",
            fixes=(
                Fix(
                    do=f"see what else uses the cores of {host}, and whether a CPU limit holds there",
                    command="cat /sys/fs/cgroup/cpu.max; uptime",
                ),
            ),
            confirm="smoldiag nccl-bench --per-rank --format json",
        )


@rule("BWD004", Severity.WARNING)
def bandwidth_collapses_at_a_size(bench: Bench) -> Iterator[Finding]:
    """At one size the bandwidth falls far below that of both neighbouring sizes.

    A wrong algorithm or protocol is chosen there, or buffers and the network's flow control get into each other's way.

    Fix: force another algorithm or protocol at that size only to see which choice is to blame; do not leave it forced.
    """
    curves: dict[tuple[str, tuple[int, ...]], list[Result]] = {}
    for r in bench.results:
        if not r.purpose.startswith(("fsdp", "ddp")):
            curves.setdefault((r.collective, r.group.ranks), []).append(r)
    for curve in curves.values():
        ordered = sorted(curve, key=lambda r: r.size_bytes)
        for before, r, after in zip(ordered, ordered[1:], ordered[2:], strict=False):
            if before.size_bytes < MIN_COLLAPSE_BYTES or not _far_below(r, before) or not _far_below(r, after):
                continue
            yield Finding(
                message=f"{r.collective} falls to {r.busbw_gbs:.4g} GB/s at {size(r.size_bytes)}; "
                f"{size(before.size_bytes)} gives {before.busbw_gbs:.4g} GB/s, "
                f"{size(after.size_bytes)} {after.busbw_gbs:.4g} GB/s",
                cause="nccl-tuner-choice" if bench.backend == "nccl" else "bandwidth-collapse",
                confidence=Confidence.LIKELY,
                evidence=tuple(Evidence(text=_timing(x), where="this run") for x in (before, r, after)),
                why="messages of this size are slower than larger ones",
                cost=f"{1 - r.busbw_gbs / min(before.busbw_gbs, after.busbw_gbs):.0%} of the bandwidth at this size",
                fixes=(
                    Fix(
                        do="see which algorithm and protocol NCCL chooses there",
                        command="NCCL_DEBUG=INFO NCCL_DEBUG_SUBSYS=TUNING",
                    ),
                )
                if bench.backend == "nccl"
                else (),
                confirm=f"smoldiag nccl-bench --collective {r.collective} "
                f"--sizes {before.size_bytes},{r.size_bytes},{after.size_bytes}",
            )


def _far_below(r: Result, neighbour: Result) -> bool:
    best_of = r.size_bytes / r.time_us.min, neighbour.size_bytes / neighbour.time_us.min
    return r.busbw_gbs < COLLAPSE_RATIO * neighbour.busbw_gbs and best_of[0] < COLLAPSE_RATIO * best_of[1]


@rule("BWD005", Severity.ERROR)
def data_arrives_wrong(bench: Bench) -> Iterator[Finding]:
    """A collective gave values that differ from the exact expected ones.

    Training on such a machine goes wrong silently: the loss diverges or checkpoints are poisoned.

    Fix: take the machine out of service; run the same bench on halves of the hosts until one is left.
    """
    for r in bench.results:
        if r.wrong:
            yield Finding(
                message=f"{r.wrong} elements of {r.collective} at {size(r.size_bytes)} ({r.dtype}) differ from the "
                "expected values",
                cause="wrong-data",
                severity=Severity.ERROR,
                where=Where(hosts=tuple(dict.fromkeys(bench.host_of_rank[x] for x in r.group.ranks))),
                evidence=(
                    Evidence(
                        text=f"#wrong {r.wrong} of {len(r.group.ranks)} x {r.count}",
                        where=f"{r.collective} {size(r.size_bytes)}",
                    ),
                ),
                why="the same corruption reaches gradients and weights",
                fixes=(
                    Fix(
                        do="repeat on halves of the hosts until the guilty one is left",
                        command=f"smoldiag nccl-bench --collective {r.collective} --sizes {r.size_bytes}",
                    ),
                ),
                explains=("busbw-below-expected",),
            )


@rule("BWD006", Severity.ERROR)
def world_smaller_than_asked(bench: Bench) -> Iterator[Finding]:
    """Fewer ranks or hosts take part than were asked for or started.

    The figures are then those of a smaller machine: one rank alone measures its own memory, not the network.

    Fix: see that the launcher's variables reach the ranks, or name the hosts.
    """
    asked = [("nodes", bench.nodes_asked, bench.world.nodes), ("ranks", bench.ranks_asked, bench.world.ranks)]
    for what, wanted, got in asked:
        if wanted is not None and got < wanted:
            yield Finding(
                message=f"only {got} of {wanted} {what} take part"
                + ("; a world of 1 measures no network at all" if bench.world.ranks == 1 else ""),
                cause="world-smaller-than-asked",
                severity=Severity.ERROR if bench.world.ranks == 1 else Severity.WARNING,
                evidence=(
                    Evidence(
                        text=f"launcher {bench.launcher}, hosts {', '.join(bench.world.hosts[:8])}",
                        where="this run",
                    ),
                ),
                why="what was measured is not what was asked for",
                fixes=(
                    Fix(
                        do="name the hosts, or start one task per host",
                        command="smoldiag nccl-bench --hosts a,b  |  srun --ntasks-per-node=1 smoldiag nccl-bench",
                    ),
                ),
                explains=("busbw-below-expected",),
            )


@rule("BWD007", Severity.INFO)
def two_node_figure_above_the_nics(bench: Bench) -> Iterator[Finding]:
    """On exactly two nodes an all_reduce shows more busbw than the NICs can carry.

    The formula of busbw assumes a ring. A tree of two nodes sends less over the network than that, so that the
    figure is no measure of the NICs; it falls to their rate from three nodes on (AWS p5: 487 GB/s on 2 nodes,
    314 to 355 on 3 to 16, against 400 GB/s of NICs).

    Fix: none is needed; compare with a two-node figure, or measure three nodes.
    """
    for r in judged(bench.results):
        if r.collective == "all_reduce" and r.group.nodes == 2 and bench.nics_gbs and r.busbw_gbs > bench.nics_gbs:
            yield Finding(
                message=f"all_reduce on 2 nodes shows {r.busbw_gbs:.4g} GB/s, above the {bench.nics_gbs:.4g} GB/s "
                "that the NICs of a node carry: an artefact of the formula on two nodes",
                cause="measurement-artifact",
                severity=Severity.INFO,
                evidence=(Evidence(text=f"NICs of one node: {bench.nics_gbs:.4g} GB/s", where="link rates"),),
                sources=("nccl-tests issue 22", "knowledge/busbw.csv: p5 on 2 against 3 to 16 nodes"),
            )


@rule("BWD008", Severity.ERROR)
def nccl_fell_back_to_sockets(bench: Bench, cluster: Cluster) -> Iterator[Finding]:
    """NCCL uses TCP sockets although the hosts have RDMA devices.

    It found no usable RDMA device or network plugin, so that the bandwidth between nodes is a fraction of the fabric's.

    Fix: force the wanted network once (NCCL_NET=IB, or the plugin's name): NCCL then fails with the real reason.
    """
    t = bench.transport
    if t is None or bench.backend != "nccl" or t.network != "Socket" or bench.world.nodes < 2:
        return
    rdma = {host.name: [n.name for n in host.nics or () if n.kind in RDMA_KINDS and n.up] for host in cluster}
    present = {host: names for host, names in rdma.items() if names}
    if not present:
        return
    host, names = next(iter(present.items()))
    yield Finding(
        message=f"NCCL uses TCP sockets ({', '.join(t.nics or ('?',))}) although {host} has {', '.join(names[:8])}",
        cause="net-socket-fallback",
        severity=_cause_severity(bench),
        where=Where(hosts=tuple(present), nics=tuple(dict.fromkeys(n for ns in present.values() for n in ns))),
        evidence=t.evidence[:4],
        why="sockets reach a fraction of the RDMA bandwidth, at many times the latency",
        cost="typically 3 to 25 GB/s busbw instead of the fabric's (published socket runs)",
        fixes=(
            Fix(
                do="force the RDMA network once, to see why it is refused",
                command="NCCL_NET=IB smoldiag nccl-bench --collective all_reduce",
            ),
        ),
        confirm="the transport line of this bench says IB, or the plugin's name",
        sources=("NCCL src/plugin/net.cc: Using network", "NVIDIA NCCL user guide: NCCL_NET"),
        explains=("busbw-below-expected", "gdr-not-used", "fewer-nics-than-expected"),
    )


@rule("BWD009", Severity.ERROR)
def gpudirect_not_used(bench: Bench) -> Iterator[Finding]:
    """NCCL uses RDMA between nodes, but not GPUDirect: data goes through host memory.

    About half of the NIC's rate is lost, more on machines with slow CPU paths.

    Fix: load nvidia-peermem (or use a DMA-BUF kernel), and see that PCI ACS is off on bare metal.
    """
    t = bench.transport
    if t is None or bench.backend != "nccl" or t.gpudirect is not False or t.network in (None, "Socket"):
        return
    yield Finding(
        message=f"NCCL uses {t.network} between nodes without GPUDirect RDMA",
        cause="gdr-not-used",
        severity=_cause_severity(bench),
        evidence=t.evidence[:4],
        why="each message is copied through host memory on both sides",
        cost="about half of the NIC rate (NCCL issues 489, 371: 2 to 10 times less)",
        fixes=(
            Fix(do="load the peer-memory module on every host", command="modprobe nvidia-peermem"),
            Fix(do="see whether PCI ACS is on between GPU and NIC", command="lspci -vvv | grep ACSCtl"),
        ),
        confirm="channel lines end in /GDRDMA",
        sources=("NVIDIA NCCL user guide: NCCL_NET_GDR_LEVEL, Troubleshooting: GPU Direct RDMA",),
        explains=("busbw-below-expected",),
    )


@rule("BWD010", Severity.ERROR)
def fewer_nics_than_present(bench: Bench, cluster: Cluster) -> Iterator[Finding]:
    """NCCL uses fewer network devices than the host has.

    Each missing device takes its share of the bandwidth between nodes with it.

    Fix: unset NCCL_IB_HCA, or list all devices of the compute network in it.
    """
    t = bench.transport
    if t is None or t.nics is None or bench.backend != "nccl" or bench.world.nodes < 2 or t.network in (None, "Socket"):
        return
    used = {name.partition(":")[0] for merged in t.nics for name in merged.split("+")}
    for host in cluster:
        present = [n for n in host.nics or () if n.kind in RDMA_KINDS and n.up]
        fastest = max((n.gbit_per_s or 0 for n in present), default=0)
        compute = [n.name for n in present if (n.gbit_per_s or 0) >= fastest]  # slower ones are storage or management
        missing = [name for name in compute if name not in used]
        if not missing or not used & set(compute):
            continue
        yield Finding(
            message=f"NCCL uses {len(used)} of the {len(compute)} network devices of {host.name}; "
            f"not used: {', '.join(missing[:16])}",
            cause="fewer-nics-than-expected",
            severity=_cause_severity(bench),
            where=Where(hosts=(host.name,), nics=tuple(missing)),
            evidence=t.evidence[:4],
            why="bandwidth between nodes is the sum over the devices in use",
            cost=f"{len(missing) / len(compute):.0%} of the NIC bandwidth (devices not used)",
            fixes=(Fix(do="let NCCL use all devices", command="unset NCCL_IB_HCA"),)
            if "NCCL_IB_HCA" in dict(t.env)
            else (),
            sources=("NVIDIA NCCL user guide: NCCL_IB_HCA",),
            explains=("busbw-below-expected",),
        )
        return  # the log is one host's; the others are alike or have a finding of their own in `doctor`


@rule("BWD011", Severity.WARNING)
def variable_holds_nccl_back(bench: Bench) -> Iterator[Finding]:
    """NCCL took a variable that is known to cost bandwidth.

    Such variables are copied from old advice and stay for years.

    Fix: unset it, and measure again.
    """
    if bench.transport is None:
        return
    below = any(r < 1 - WARNING_SHORTFALL for r in _ratios(bench))
    for name, value in bench.transport.env:
        values, cause, effect = HARMFUL.get(name, (set(), "", ""))
        if values is None or value in values:
            yield Finding(
                message=f"{name}={value} is set: {effect}",
                cause=cause,
                severity=Severity.WARNING if below else Severity.INFO,
                confidence=Confidence.LIKELY if below else Confidence.POSSIBLE,
                evidence=(Evidence(text=f"{name} set by environment to {value}", where="NCCL's log of this run"),),
                why=effect,
                fixes=(Fix(do="remove it", command=f"unset {name}"),),
                confirm=f"env -u {name} smoldiag nccl-bench",
                sources=(f"NVIDIA NCCL user guide: {name}",),
                explains=("busbw-below-expected",) if below else (),
            )


def _ratios(bench: Bench) -> list[float]:
    pairs = [(r, expectation(bench, r)) for r in judged(bench.results)]
    return [r.busbw_gbs / e.busbw_gbs for r, e in pairs if e and e.kind != "bound" and e.busbw_gbs > 0]


def _cause_severity(bench: Bench) -> Severity:
    return Severity.ERROR if any(r < 1 - ERROR_SHORTFALL for r in _ratios(bench)) else Severity.WARNING
