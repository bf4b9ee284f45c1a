"""BWD: what tables of other tools show: nccl-tests and its kin, pairs, link tests, single figures.

A table says rarely what it was measured on. A rule here judges only where what is known bounds what is normal: the
GPU's name, sisters of the same machine in the same call, or a level that no machine of the kind stays at when well.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from smoldiag.facts import Evidence
from smoldiag.facts.reference import Hardware
from smoldiag.facts.tables import BandwidthTable, Figure, Pair, PairTable, Row, Tables
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.knowledge import busbw, hardware
from smoldiag.model import curve as curves
from smoldiag.model.sizes import human
from smoldiag.model.table_reference import Reference, reference
from smoldiag.rules import rule
from smoldiag.rules.bandwidth import ERROR_SHORTFALL, HARMFUL, NCCL_TESTS, WARNING_SHORTFALL

MAX_COMPARED = 200  # tables of one call that are held against each other
JUDGED_BYTES = 16 * 2**20  # smaller ones differ twofold on equal machines (model/expected.py)
SISTERS_RATIO = 1.3  # two tables of one machine, size and collective: published repeats differ by 5 to 10 %
VARIANT_RATIO = 1.10  # columns of one table, measured in one go
NVLS_MIN_RANKS = 8  # NCCL takes NVLS from 5 or 6 GPUs on (knowledge/busbw.csv); of 8 it is sure
RING_EFFICIENCY = (
    0.72,
    0.85,
)  # of the links, that rings reach: 365/450 Hopper, 682/900 Blackwell (knowledge/busbw.csv)
SLOW_PAIR_RATIO = 0.70  # of the pairs' usual rate; sound pairs repeat to within 10 %
MIN_PAIRS = 3
SLOW_VERSION_RATIO = 0.70
LIKENESS = 0.10  # published repeats of one machine differ by as much
FALL_RATIO = 0.80  # of the first repeats, that the last ones still reach
MIN_REPEATS = 6
NARROW_RATIO = 0.60  # PCIe 4 x16 in NCCL's graph is 24 GB/s, a 200G NIC 25: equal ones are never below it
SPLIT_RATIO = 0.60  # many messages against one of the same sum
NODE_STEP_RATIO = 0.10  # over several nodes against one: even one 100G NIC per GPU keeps more
SEND_RECV_HALF = (0.40, 0.62)  # what is left when one of two channels per peer goes
PERFTEST_HALF = 0.60  # of what perftest shows on the same NIC
OFF_VARIANTS = (  # words of a column -> (cause, what it says)
    (("nvls", "sharp"), "nvls-off", "NVLink SHARP"),
    (("p2p",), "p2p-disabled", "P2P between the GPUs"),
    (("gdr", "gpudirect"), "gdr-not-used", "GPUDirect RDMA"),
    (("shm",), "shm-disabled", "shared memory"),
)
SOCKET_WORDS = ("socket", "tcp", "ethernet")
CHOICES = ("ring", "tree", "nvls", "nvlstree", "collnet", "pat", "ll", "ll128", "simple")


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


def _name(table: BandwidthTable, row: Row) -> str:
    size = f" of {human(row.size_bytes)}" if row.size_bytes else ""
    label = f" [{table.label}]" if table.label else ""
    return f"{table.collective or 'a collective'}{size}{label} over {world(table)}"


def _seen(table: BandwidthTable, row: Row) -> Evidence:
    size = f"{human(row.size_bytes)} " if row.size_bytes else ""
    who = f"{row.nodes} nodes " if row.nodes else f"{row.ranks} ranks " if row.ranks else ""
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
            message=f"{_name(table, row)} reaches {rate:.4g} GB/s, no more than PCIe carries "
            f"({spec.pcie_gb_per_s:g} GB/s); NVLink gives {spec.nvlink_gb_per_s:g} GB/s per GPU",
            cause="p2p-not-used",
            confidence=Confidence.LIKELY,
            where=Where(hosts=table.hosts),
            evidence=(_seen(table, row), Evidence(text=spec.source, where="data sheet")),
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
            message=f"{_name(table, row)} reaches {row.best_gbs:.4g} GB/s: the level of rings ({share:.0%} of NVLink), "
            "not of NVLink SHARP",
            cause="nvls-off",
            confidence=Confidence.LIKELY,
            where=Where(hosts=table.hosts),
            evidence=(_seen(table, row),),
            why="the NVLink switch could add up, and every GPU would send half as much",
            cost="about 23 % of all_reduce inside the node (published pairs with NVLS on and off)",
            fixes=(Fix(do="let NCCL use NVLS", command="unset NCCL_NVLS_ENABLE NCCL_ALGO"),),
            confirm="NCCL_DEBUG=INFO: `NVLS multicast support is available`, and `nvls channels` above 0",
            sources=("knowledge/busbw.csv: H200 and B200 with NCCL_NVLS_ENABLE=0", "NVIDIA NCCL user guide"),
            explains=("busbw-below-expected",),
        )


@rule("BWD022", Severity.WARNING)
def setting_of_a_slow_bench(tables: Tables) -> Iterator[Finding]:
    """The bench was started with a variable that costs bandwidth, and a table is low.

    Fix: unset the variable, and measure again.
    """
    slow = next(iter(_slower_sister(tables)), None) or next(iter(_below_published(tables)), None)
    given = dict.fromkeys([*tables.settings, *((n, v, t.where) for t in tables.bandwidth for n, v in t.settings)])
    for name, value, where in given:
        values, cause, effect = HARMFUL.get(name, (set(), "", ""))
        if values is not None and value not in values:
            continue
        seen = (Evidence(text=f"{name}={value}", where=where),)
        yield Finding(
            message=f"{name}={value} on the bench's command line: {effect}" + (f"; {slow[0]}" if slow else ""),
            cause=cause,
            severity=Severity.WARNING if slow else Severity.INFO,
            confidence=Confidence.LIKELY if slow else Confidence.POSSIBLE,
            evidence=seen + (slow[1] if slow else ()),
            why=effect,
            fixes=(Fix(do="remove it", command=f"unset {name}"),),
            confirm="the same bench without it",
            sources=(f"NVIDIA NCCL user guide: {name}",),
            explains=("busbw-below-expected", "p2p-not-used") if slow else (),
        )


def _slower_sister(tables: Tables) -> Iterator[tuple[str, tuple[Evidence, ...]]]:
    """A table far below another one of the same collective, ranks and size."""
    some = tables.bandwidth[:MAX_COMPARED]
    for slow in some:
        for fast in some:
            if slow is fast or (slow.collective, slow.ranks, slow.label) != (fast.collective, fast.ranks, fast.label):
                continue
            pair = _common(slow, fast)
            if pair and SISTERS_RATIO * (pair[0].best_gbs or 0) < (pair[1].best_gbs or 0) and pair[0].best_gbs:
                a, b = pair
                words = f"{_name(slow, a)} gives {a.best_gbs:.4g} GB/s there and {b.best_gbs:.4g} in {fast.file}"
                yield words, (_seen(slow, a), _seen(fast, b))


def _common(a: BandwidthTable, b: BandwidthTable) -> tuple[Row, Row] | None:
    """The rows of the largest size that both have."""
    of_b = {r.size_bytes: r for r in curves.by_size(b.rows)}
    shared = [r for r in curves.by_size(a.rows) if r.size_bytes in of_b and (r.size_bytes or 0) >= JUDGED_BYTES]
    return (shared[-1], of_b[shared[-1].size_bytes]) if shared else None


def _below_published(tables: Tables) -> Iterator[tuple[str, tuple[Evidence, ...]]]:
    for table in tables.bandwidth:
        row, ref = compared(table) or (None, None)
        if row and ref and ref.named and (row.best_gbs or 0.0) < (1 - WARNING_SHORTFALL) * ref.low.busbw_gbs:
            words = f"{_name(table, row)} gives {row.best_gbs:.4g} GB/s, published {ref.low.busbw_gbs:.4g}"
            yield words, (_seen(table, row), Evidence(text=f"{ref.low.busbw_gbs:.4g} GB/s", where=ref.low.source))


@rule("BWD023", Severity.WARNING)
def forced_choice_is_better(tables: Tables) -> Iterator[Finding]:
    """Of the columns of a table, measured with different settings, one is clearly slower.

    Columns of one table are measured in one go, so that their difference is the setting's.

    Fix: leave on what is faster; where a forced algorithm wins, tell NCCL so for this job alone, and try a newer NCCL.
    """
    groups: dict[tuple[str, int], list[BandwidthTable]] = {}
    for table in tables.bandwidth:
        if table.label:
            groups.setdefault((table.where, len(table.rows)), []).append(table)
    for sisters in groups.values():
        if len(sisters) < 2:
            continue
        plain = next((t for t in sisters if _is_plain(t.label)), None)
        for table in sisters:
            if table is not plain:
                yield from _variant(table, plain, sisters)


def _is_plain(label: str) -> bool:
    words = label.lower()
    return not any(w in words for w in ("off", "no ", "without", "disable", "=0", *SOCKET_WORDS)) and (
        "auto" in words or "default" in words or words.strip() in ("busbw", "bus bw", "on", "with", "busbw (gb/s)")
    )


def _variant(
    table: BandwidthTable, plain: BandwidthTable | None, sisters: Sequence[BandwidthTable]
) -> Iterator[Finding]:
    words = table.label.lower()
    off = any(w in words for w in ("off", "no ", "no-", "without", "disable", "=0"))
    against = plain or next((t for t in sisters if t is not table), None)
    if against is None or (worst := _widest(table, against)) is None:
        return
    low, high = worst
    rates = low.best_gbs or 0.0, high.best_gbs or 0.0
    cause = next(((c, what) for keys, c, what in OFF_VARIANTS if off and any(k in words for k in keys)), None)
    if cause and rates[0] * VARIANT_RATIO < rates[1]:
        yield _variant_finding(table, against, low, high, cause[0], f"without {cause[1]}")
    elif any(w in words for w in SOCKET_WORDS) and rates[0] * SISTERS_RATIO < rates[1]:
        yield _variant_finding(table, against, low, high, "net-socket-fallback", "over sockets")
    elif plain and any(w in words.split() for w in CHOICES) and rates[1] * VARIANT_RATIO < rates[0]:
        yield _variant_finding(plain, table, high, low, "nccl-tuner-choice", "with NCCL's own choice")


def _variant_finding(slow: BandwidthTable, fast: BandwidthTable, low: Row, high: Row, cause: str, how: str) -> Finding:
    a, b = low.best_gbs or 0.0, high.best_gbs or 0.0
    at = (
        f"{human(low.size_bytes)}"
        if low.size_bytes
        else f"{low.nodes or low.ranks} {'nodes' if low.nodes else 'ranks'}"
    )
    return Finding(
        message=f"{how} the table shows {a:.4g} GB/s at {at}; the column {fast.label!r} {b:.4g} GB/s ({b / a:.2f}x)",
        cause=cause,
        confidence=Confidence.LIKELY,
        evidence=(_seen(slow, low), _seen(fast, high)),
        why="both columns are from one machine; the setting alone differs",
        cost=f"{1 - a / b:.0%} of the bandwidth at {at}",
        fixes=(Fix(do=f"run as in the column {fast.label!r}", command=_CURES.get(cause, "")),),
        confirm="measure both settings at the sizes of the job",
        explains=("busbw-below-expected",),
    )


_CURES = {
    "nvls-off": "unset NCCL_NVLS_ENABLE",
    "p2p-disabled": "unset NCCL_P2P_DISABLE NCCL_P2P_LEVEL",
    "gdr-not-used": "unset NCCL_NET_GDR_LEVEL",
    "shm-disabled": "unset NCCL_SHM_DISABLE",
}


def _widest(a: BandwidthTable, b: BandwidthTable) -> tuple[Row, Row] | None:
    """The rows of one size or world with the widest ratio, small messages left out."""
    of_b = {(r.size_bytes, r.nodes, r.ranks): r for r in b.rows if r.best_gbs}
    pairs = [
        (r, of_b[key])
        for r in a.rows
        if r.best_gbs
        and (key := (r.size_bytes, r.nodes, r.ranks)) in of_b
        and (r.size_bytes is None or r.size_bytes >= JUDGED_BYTES)
    ]
    return max(pairs, key=lambda p: abs((p[0].best_gbs or 1) / (p[1].best_gbs or 1) - 1), default=None)


TOGGLES = {  # variable -> (cause where it makes things faster, cause where it makes them slower); "" = says nothing
    "NCCL_NET_GDR_READ": ("gdr-not-used", ""),
    "NCCL_NET_GDR_LEVEL": ("gdr-not-used", "gdr-not-used"),
    "NCCL_DMABUF_ENABLE": ("gdr-not-used", ""),
    "FI_EFA_USE_DEVICE_RDMA": ("gdr-not-used", ""),
    "NCCL_P2P_DISABLE": ("p2p-through-cpu", "p2p-disabled"),
    "NCCL_P2P_LEVEL": ("p2p-not-used", "p2p-disabled"),
    "NCCL_SHM_DISABLE": ("", "shm-disabled"),
    "NCCL_NVLS_ENABLE": ("", "nvls-off"),
    "NCCL_ALGO": ("nccl-tuner-choice", "nccl-proto-forced"),
    "NCCL_PROTO": ("nccl-tuner-choice", "nccl-proto-forced"),
    "NCCL_MAX_NCHANNELS": ("", "channels-capped"),
    "NCCL_MIN_NCHANNELS": ("channels-capped", "channels-capped"),
    "NCCL_NCHANNELS_PER_NET_PEER": ("nchannels-per-net-peer-reduced", ""),
    "NCCL_BUFFSIZE": ("buffer-size-cache-thrash", ""),
    "NCCL_IB_HCA": ("fewer-nics-than-expected", "fewer-nics-than-expected"),
    "NCCL_IB_DISABLE": ("", "net-socket-fallback"),
    "NCCL_IGNORE_CPU_AFFINITY": ("cpu-affinity", ""),
    "NCCL_PXN_DISABLE": ("nccl-version-regression", ""),
    "NCCL_TOPO_FILE": ("topology-file-wrong-or-missing", "topology-file-wrong-or-missing"),
    "CUDA_DEVICE_MAX_CONNECTIONS": ("", "cuda-device-max-connections"),
}


@rule("BWD049", Severity.WARNING)
def one_setting_changes_the_figure(tables: Tables) -> Iterator[Finding]:
    """Two figures differ in one variable alone, and one of them is much better.

    It was measured both ways, so that the variable, and what it stands for, is the cause of the difference.

    Fix: keep the better setting if it is the default; else fix what the default trips over, and force it until then.
    """
    variants = [_Variant(f.what, f.settings, f.gb_per_s, f.where, f.where.rpartition(":")[0]) for f in tables.figures]
    for table in tables.bandwidth:
        if row := judged(table):
            key = f"{table.collective} {table.ranks} {table.nodes} {row.size_bytes} {table.label}"
            where = _seen(table, row).where
            variants.append(_Variant(_name(table, row), table.settings, row.best_gbs or 0.0, where, key))
    for plain in variants[:MAX_COMPARED]:
        for toggled in variants[:MAX_COMPARED]:
            extra = set(toggled.settings) - set(plain.settings)
            if plain.group != toggled.group or len(extra) != 1 or not set(plain.settings) <= set(toggled.settings):
                continue
            ((name, value),) = extra
            better, worse = TOGGLES.get(name, ("", ""))
            ratio = toggled.gb_per_s / plain.gb_per_s if plain.gb_per_s > 0 else 1.0
            cause = better if ratio >= SISTERS_RATIO else worse if ratio <= 1 / SISTERS_RATIO else ""
            if not cause:
                continue
            yield Finding(
                message=f"{name}={value} changes {plain.gb_per_s:.4g} to {toggled.gb_per_s:.4g} GB/s ({ratio:.2f}x)",
                cause=cause,
                confidence=Confidence.LIKELY,
                evidence=(
                    Evidence(text=f"{plain.what}: {plain.gb_per_s:.4g} GB/s", where=plain.where),
                    Evidence(text=f"{toggled.what}: {toggled.gb_per_s:.4g} GB/s", where=toggled.where),
                ),
                why="both were measured; the variable alone differs",
                cost=f"{1 - min(ratio, 1 / ratio):.0%} of the bandwidth in the worse setting",
                fixes=(Fix(do="keep the better setting", command=f"export {name}={value}"),)
                if ratio > 1
                else (Fix(do="remove it", command=f"unset {name}"),),
                confirm="both settings again, in turn",
                sources=(f"NVIDIA NCCL user guide: {name}",),
                explains=("busbw-below-expected", "nccl-version-regression"),
            )


class _Variant(NamedTuple):
    what: str
    settings: tuple[tuple[str, str], ...]
    gb_per_s: float
    where: str
    group: str


@rule("BWD024", Severity.WARNING)
def version_is_slower(tables: Tables) -> Iterator[Finding]:
    """The same collective on the same machine is much slower with one NCCL than with another.

    Fix: take the faster version, and report the topology dump (NCCL_TOPO_DUMP_FILE) with both figures.
    """
    by_version = [(f.version, f.gb_per_s, f.where, f.what) for f in tables.figures if f.version and not f.settings]
    for table in tables.bandwidth[:MAX_COMPARED]:
        row = judged(table)
        sisters = [t for t in tables.bandwidth[:MAX_COMPARED] if _alike(t, table)]
        if row and table.nccl_version and len({t.nccl_version for t in sisters}) > 1 and row.best_gbs:
            same = next((p for t in sisters if t.nccl_version != table.nccl_version and (p := _common(table, t))), None)
            if same and same[0].best_gbs:
                by_version.append(
                    (table.nccl_version, same[0].best_gbs, _seen(table, same[0]).where, _name(table, row))
                )
    if len({v for v, *_ in by_version}) < 2:
        return
    slow = min(by_version, key=lambda x: x[1])
    fast = max(by_version, key=lambda x: x[1])
    if slow[0] == fast[0] or slow[1] >= SLOW_VERSION_RATIO * fast[1]:
        return
    yield Finding(
        message=f"NCCL {slow[0]} gives {slow[1]:.4g} GB/s where {fast[0]} gives {fast[1]:.4g} GB/s",
        cause="nccl-version-regression",
        confidence=Confidence.LIKELY,
        evidence=tuple(Evidence(text=f"{what}: {rate:.4g} GB/s", where=where) for _, rate, where, what in (slow, fast)),
        why="the version is all that is said to differ",
        cost=f"{1 - slow[1] / fast[1]:.0%} of the bandwidth (figures of both versions)",
        fixes=(Fix(do=f"run with NCCL {fast[0]}, or a release after {max(slow[0], fast[0])}"),),
        confirm="both versions in one allocation, one after the other",
        explains=("busbw-below-expected",),
    )


def _alike(a: BandwidthTable, b: BandwidthTable) -> bool:
    """Of one machine and world, as far as they say."""
    return (a.collective, a.ranks, a.nodes, a.label, a.gpu) == (b.collective, b.ranks, b.nodes, b.label, b.gpu)


@rule("BWD025", Severity.WARNING)
def host_slow_in_all_its_pairs(tables: Tables) -> Iterator[Finding]:
    """One host is slow with every partner, and its partners are fast with others.

    A fast pair clears both its hosts. A slow pair of a cleared host and another one accuses the other.

    Fix: leave the host out, and look at its links, counters, PCI width and clocks.
    """
    for table in (*tables.pairs, *_pairs_of_tables(tables)):
        if table.kind != "hosts" or len(table.pairs) < MIN_PAIRS:
            continue
        rates = sorted(p.gb_per_s for p in table.pairs)
        usual = rates[(3 * (len(rates) - 1) + 3) // 4]  # the upper quartile: half of the pairs may be slow
        fast = {h for p in table.pairs if p.gb_per_s >= SLOW_PAIR_RATIO * usual for h in (p.a, p.b)}
        slow = [p for p in table.pairs if p.gb_per_s < SLOW_PAIR_RATIO * usual]
        accused = dict.fromkeys(h for p in slow for h in (p.a, p.b) if h not in fast and (({p.a, p.b} - {h}) & fast))
        both = [p for p in slow if not {p.a, p.b} & fast and not {p.a, p.b} & set(accused)]
        for host in accused:
            yield _slow_host(host, [p for p in slow if host in (p.a, p.b)], usual)
        if both:
            yield Finding(
                message=f"{both[0].a} and {both[0].b} exchange {both[0].gb_per_s:.4g} GB/s, others {usual:.4g}; "
                "neither was measured with another partner",
                cause="slow-node",
                subject="one pair",
                severity=Severity.WARNING if not accused else Severity.INFO,
                confidence=Confidence.POSSIBLE,
                where=Where(hosts=tuple(dict.fromkeys(h for p in both for h in (p.a, p.b)))),
                evidence=tuple(_pair_seen(p) for p in both[:6]),
                why="one of the two, or the way between them, is slow",
                fixes=(Fix(do="measure each of them with a host that is known to be fast"),),
                confirm=f"smoldiag nccl-bench --hosts {both[0].a},<a fast host>",
            )


def _pairs_of_tables(tables: Tables) -> Iterator[PairTable]:
    """Tables of two hosts each, of one collective and size: a bench of pairs, a file for each."""
    groups: dict[tuple[str | None, int | None, str, int | None], list[Pair]] = {}
    for table in tables.bandwidth:
        ordered = curves.by_size(table.rows)
        row = ordered[-1] if ordered else None
        if row and row.best_gbs and (row.size_bytes or 0) >= JUDGED_BYTES and len(table.hosts) == 2:
            a, b = table.hosts
            key = table.collective, table.ranks, table.label, row.size_bytes
            groups.setdefault(key, []).append(Pair(a=a, b=b, gb_per_s=row.best_gbs, where=_seen(table, row).where))
    for key, pairs in groups.items():
        if len({frozenset((p.a, p.b)) for p in pairs}) >= MIN_PAIRS:
            yield PairTable(where=pairs[0].where, kind="hosts", pairs=tuple(pairs), label=str(key[0] or ""))


def _slow_host(host: str, slow: Sequence[Pair], usual: float) -> Finding:
    best = max(p.gb_per_s for p in slow)
    count = f"its {len(slow)} pairs" if len(slow) > 1 else "its pair"
    return Finding(
        message=f"{host} reaches {best:.4g} GB/s at best in {count}; pairs of the other hosts {usual:.4g} GB/s",
        cause="slow-node",
        confidence=Confidence.LIKELY,
        where=Where(hosts=(host,)),
        evidence=tuple(_pair_seen(p) for p in slow[:8]),
        why="its partners are fast with others; a collective over all hosts runs at the pace of this one",
        cost=f"up to {1 - best / usual:.0%} of the bandwidth over all hosts (ratio of the pairs)",
        fixes=(
            Fix(do="start the job without it", command=f"srun --exclude={host} ..."),
            Fix(do="look at its link rate, error counters, PCI width and clocks", command="smoldiag doctor"),
        ),
        confirm=f"the job without {host} runs at the pairs' rate",
        explains=("busbw-below-expected",),
    )


def _pair_seen(pair: Pair) -> Evidence:
    return Evidence(text=f"{pair.a}, {pair.b}: {pair.gb_per_s:.4g} GB/s", where=pair.where)


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
                tuple(_seen(t, r) for t, r in twos[:8]),
                low / high,
            )
    matrices = {t.label.lower(): t for t in tables.pairs if t.kind == "gpus"}
    on = next((t for label, t in matrices.items() if "unidirectional p2p=enabled" in label), None)
    off = next((t for label, t in matrices.items() if "unidirectional p2p=disabled" in label), None)
    if on and off and (a := _typical(on)) and (b := _typical(off)) and a < 0.6 * b:
        yield _no_peer(
            f"with P2P enabled GPUs exchange {a:.4g} GB/s, without {b:.4g} GB/s: peer access goes the longer way",
            (Evidence(text=on.label, where=on.where), Evidence(text=off.label, where=off.where)),
            a / b,
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
        evidence=tuple(_seen(table, r) for r in (b.before, b.at, b.after) if r is not None),
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


@rule("BWD030", Severity.WARNING)
def falls_with_the_nodes(tables: Tables) -> Iterator[Finding]:
    """The bandwidth falls at a node count by more than the fabric of such machines explains.

    From one node to two the way changes from NVLink to NICs: what is left below a tenth of NVLink is the level of
    TCP sockets. A send_recv that halves from one node count to the next, with all else equal, has lost one of its
    channels per peer: NCCL shares them out among more peers.

    Fix: between nodes see which network NCCL names; for send_recv set NCCL_NCHANNELS_PER_NET_PEER.
    """
    for collective, points in _by_nodes(tables).items():
        if collective == "send_recv":
            yield from _halved(points)
        else:
            yield from _left_the_node(collective, points)


Point = tuple[int, Row, BandwidthTable]


def _by_nodes(tables: Tables) -> dict[str, list[Point]]:
    """Per collective the best row for each node count, of tables by node count and of tables for one each."""
    found: dict[str, dict[int, Point]] = {}
    for table in tables.bandwidth:
        if (
            table.label
            and not _is_plain(table.label)
            and len([t for t in tables.bandwidth if t.where == table.where]) > 1
        ):
            continue
        rows = [r for r in table.rows if r.nodes and r.best_gbs and (r.size_bytes or JUDGED_BYTES) >= JUDGED_BYTES]
        if not rows and table.nodes and (row := judged(table)):
            rows = [row]
        for row in rows:
            nodes = row.nodes or table.nodes or 1
            kept = found.setdefault(table.collective or "all_reduce", {})
            if nodes not in kept or (row.best_gbs or 0) > (kept[nodes][1].best_gbs or 0):
                kept[nodes] = (nodes, row, table)
    return {name: [points[n] for n in sorted(points)] for name, points in found.items() if len(points) > 1}


def _left_the_node(collective: str, points: Sequence[Point]) -> Iterator[Finding]:
    inside, outside = points[0], points[1]
    a, b = inside[1].best_gbs or 0.0, outside[1].best_gbs or 0.0
    if inside[0] != 1 or a < 100 or collective == "all_to_all" or b >= NODE_STEP_RATIO * a:
        return
    yield Finding(
        message=f"{collective} falls from {a:.4g} GB/s in the node to {b:.4g} GB/s over {outside[0]} nodes: "
        "the level of TCP sockets, not of a fabric for such nodes",
        cause="net-socket-fallback",
        confidence=Confidence.LIKELY,
        evidence=tuple(_seen(t, r) for _, r, t in points[:6]),
        why="NCCL found no RDMA device or plugin, or only one of many NICs is used",
        cost="typically 3 to 25 GB/s instead of the fabric's (published socket runs)",
        fixes=(
            Fix(do="see which network NCCL takes", command="NCCL_DEBUG=INFO ... | grep -E 'Using network|NET/'"),
            Fix(do="force the wanted one once, to see why it is refused", command="NCCL_NET=IB"),
        ),
        confirm="the line `Using network` of NCCL's log",
        explains=("busbw-below-expected",),
    )


def _halved(points: Sequence[Point]) -> Iterator[Finding]:
    for (n0, r0, t0), (n1, r1, t1) in pairwise(points):
        before, after = r0.best_gbs or 0.0, r1.best_gbs or 0.0
        if n0 < 2 or not before or not SEND_RECV_HALF[0] <= after / before <= SEND_RECV_HALF[1]:
            continue
        rest = [r.best_gbs or 0.0 for n, r, _ in points if n >= n1]
        if max(rest) > SEND_RECV_HALF[1] * before:
            continue
        yield Finding(
            message=f"send_recv gives {before:.4g} GB/s up to {n0} nodes and {after:.4g} GB/s from {n1} on",
            cause="nchannels-per-net-peer-reduced",
            confidence=Confidence.LIKELY,
            evidence=(_seen(t0, r0), _seen(t1, r1)),
            why="NCCL uses fewer channels per peer when there are more peers",
            cost=f"{1 - after / before:.0%} of send_recv between nodes",
            fixes=(Fix(do="give each peer more channels", command="export NCCL_NCHANNELS_PER_NET_PEER=4"),),
            confirm="send_recv on both node counts with and without it",
            sources=("NVIDIA NCCL user guide: NCCL_NCHANNELS_PER_NET_PEER",),
        )
        return


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
        seen = row.best_gbs if row and (row.size_bytes or 0) >= JUDGED_BYTES else table.average_gbs
        if not seen or table.nodes == 1 or seen >= PERFTEST_HALF * rate * nics:
            continue
        evidence = (
            Evidence(text=f"{tool}: {rate:.4g} GB/s", where=where),
            Evidence(text=f"busbw {seen:.4g} GB/s", where=table.where),
        )
        shown = f"perftest reaches {rate:.4g} GB/s on a NIC, NCCL {seen:.4g} GB/s" + (
            f" over {nics}" if nics > 1 else ""
        )
        shared = f"{1 - seen / (rate * nics):.0%} of what the NIC carries"
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
        small = any(f"mtu{sep}{mtu}" in words for sep in (" ", "=", ":", ": ") for mtu in ("1500", "1024"))
        cure = "ip link set" in words and "mtu 9000" in words
        if small or (cure and tables.bandwidth):
            yield Finding(
                message=("the network ran with small frames: " if small else "jumbo frames are set by hand here: ")
                + note.text[:120],
                cause="mtu-1500",
                confidence=Confidence.LIKELY if small else Confidence.POSSIBLE,
                evidence=(note, *(_seen(t, r) for t in tables.bandwidth[:2] if (r := judged(t)))),
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
                message=f"{count:.0f} elements of {_name(table, row)} are wrong ({len(bad)} rows have such)",
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
                message=f"{_name(table, row)} reaches {rate:.4g} GB/s{latency}; the least that is published for such "
                f"nodes is {lowest[0]:.4g} GB/s: {_NETWORK[cause][0]}",
                cause=cause,
                confidence=Confidence.LIKELY if place == 0 else Confidence.POSSIBLE,
                where=Where(hosts=table.hosts[:16]),
                evidence=(_seen(table, row), Evidence(text=f"{lowest[0]:.4g} GB/s", where=lowest[1])),
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
            message=f"{_name(table, row)} reaches {row.best_gbs:.4g} GB/s, {ratio:.0%} of the "
            f"{'' if ref.exact else 'least, '}{ref.low.busbw_gbs:.4g} GB/s that others measured on such GPUs",
            cause="busbw-below-expected" if ref.named else "busbw-against-published",
            severity=severity,
            confidence=Confidence.LIKELY if ref.exact else Confidence.POSSIBLE,
            where=Where(hosts=table.hosts[:16]),
            evidence=(_seen(table, row), Evidence(text=f"{ref.low.busbw_gbs:.4g} GB/s", where=ref.low.source)),
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
            message=f"{_name(table, row)} falls from {first:.4g} to {last:.4g} GB/s over {len(rates)} repeats",
            cause="gpu-throttled",
            confidence=Confidence.POSSIBLE,
            where=Where(hosts=table.hosts[:16]),
            evidence=(_seen(*repeats[0]), _seen(*repeats[-1])),
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
        seen = (
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
                evidence=(*seen, virtual),
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
                evidence=seen,
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


@rule("BWD038", Severity.INFO)
def two_nodes_beat_the_wire(tables: Tables) -> Iterator[Finding]:
    """On exactly two nodes an all_reduce shows more busbw than the network carries.

    busbw assumes a ring. A tree over two nodes sends less, so that the figure may be up to twice the wire's rate.

    Fix: none is needed; compare two nodes with two nodes, or measure three.
    """
    for collective, points in _by_nodes(tables).items():
        by_count = {n: (r, t) for n, r, t in points}
        if collective != "all_reduce" or 2 not in by_count or 3 not in by_count:
            continue
        (two, t2), (three, t3) = by_count[2], by_count[3]
        if (two.best_gbs or 0.0) > 1.2 * (three.best_gbs or 0.0):
            yield Finding(
                message=f"all_reduce shows {two.best_gbs:.4g} GB/s on 2 nodes and {three.best_gbs:.4g} GB/s on 3: "
                "a tree of two nodes sends less than busbw assumes",
                cause="measurement-artifact",
                severity=Severity.INFO,
                evidence=(_seen(t2, two), _seen(t3, three)),
                sources=("nccl-tests issue 22", "knowledge/busbw.csv: p5 on 2 against 3 to 16 nodes"),
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
            evidence=(_seen(table, row), Evidence(text=f"{ref.low.busbw_gbs:.4g} GB/s", where=ref.low.source)),
            sources=(ref.low.source,),
        )


def against(table: BandwidthTable, row: Row, ref: Reference | None) -> str:
    """One sentence: what, how much, how much of what is published."""
    said = f"{_name(table, row)}: {row.best_gbs:.4g} GB/s"
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
