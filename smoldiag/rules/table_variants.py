"""BWD: tables and figures held against each other: settings, versions, node counts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from smoldiag.facts import Evidence, Tables
from smoldiag.facts.tables import BandwidthTable, Row
from smoldiag.findings import Confidence, Finding, Fix, Severity
from smoldiag.model import curve as curves
from smoldiag.model.sizes import human
from smoldiag.rules import rule
from smoldiag.rules.bandwidth import HARMFUL, WARNING_SHORTFALL
from smoldiag.rules.tables import JUDGED_BYTES, compared, judged, named, seen

MAX_COMPARED = 200  # tables of one call that are held against each other
SISTERS_RATIO = 1.3  # two tables of one machine, size and collective: published repeats differ by 5 to 10 %
VARIANT_RATIO = 1.10  # columns of one table, measured in one go
SLOW_VERSION_RATIO = 0.70
NODE_STEP_RATIO = 0.10  # over several nodes against one: even one 100G NIC per GPU keeps more
SEND_RECV_HALF = (0.40, 0.62)  # what is left when one of two channels per peer goes
OFF_VARIANTS = (  # words of a column -> (cause, what it says)
    (("nvls", "sharp"), "nvls-off", "NVLink SHARP"),
    (("p2p",), "p2p-disabled", "P2P between the GPUs"),
    (("gdr", "gpudirect"), "gdr-not-used", "GPUDirect RDMA"),
    (("shm",), "shm-disabled", "shared memory"),
)
SOCKET_WORDS = ("socket", "tcp", "ethernet")
CHOICES = ("ring", "tree", "nvls", "nvlstree", "collnet", "pat", "ll", "ll128", "simple")


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
        yield Finding(
            message=f"{name}={value} on the bench's command line: {effect}" + (f"; {slow[0]}" if slow else ""),
            cause=cause,
            severity=Severity.WARNING if slow else Severity.INFO,
            confidence=Confidence.LIKELY if slow else Confidence.POSSIBLE,
            evidence=(Evidence(text=f"{name}={value}", where=where), *(slow[1] if slow else ())),
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
                words = f"{named(slow, a)} gives {a.best_gbs:.4g} GB/s there and {b.best_gbs:.4g} in {fast.file}"
                yield words, (seen(slow, a), seen(fast, b))


def _common(a: BandwidthTable, b: BandwidthTable) -> tuple[Row, Row] | None:
    """The rows of the largest size that both have."""
    of_b = {r.size_bytes: r for r in curves.by_size(b.rows)}
    shared = [r for r in curves.by_size(a.rows) if r.size_bytes in of_b and (r.size_bytes or 0) >= JUDGED_BYTES]
    return (shared[-1], of_b[shared[-1].size_bytes]) if shared else None


def _below_published(tables: Tables) -> Iterator[tuple[str, tuple[Evidence, ...]]]:
    for table in tables.bandwidth:
        row, ref = compared(table) or (None, None)
        if row and ref and ref.named and (row.best_gbs or 0.0) < (1 - WARNING_SHORTFALL) * ref.low.busbw_gbs:
            words = f"{named(table, row)} gives {row.best_gbs:.4g} GB/s, published {ref.low.busbw_gbs:.4g}"
            yield words, (seen(table, row), Evidence(text=f"{ref.low.busbw_gbs:.4g} GB/s", where=ref.low.source))


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
        evidence=(seen(slow, low), seen(fast, high)),
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
            where = seen(table, row).where
            variants.append(_Variant(named(table, row), table.settings, row.best_gbs or 0.0, where, key))
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
                by_version.append((table.nccl_version, same[0].best_gbs, seen(table, same[0]).where, named(table, row)))
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
        fixes=(Fix(do=f"run with NCCL {fast[0]}, or a release after {max(slow[0], fast[0], key=_release)}"),),
        confirm="both versions in one allocation, one after the other",
        explains=("busbw-below-expected",),
    )


def _release(version: str | None) -> list[int]:
    return [int(part) for part in (version or "").split(".") if part.isdigit()]


def _alike(a: BandwidthTable, b: BandwidthTable) -> bool:
    """Of one machine and world, as far as they say."""
    return (a.collective, a.ranks, a.nodes, a.label, a.gpu) == (b.collective, b.ranks, b.nodes, b.label, b.gpu)


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
    columns = Counter(table.where for table in tables.bandwidth)
    for table in tables.bandwidth:
        if table.label and not _is_plain(table.label) and columns[table.where] > 1:
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
        evidence=tuple(seen(t, r) for _, r, t in points[:6]),
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
            evidence=(seen(t0, r0), seen(t1, r1)),
            why="NCCL uses fewer channels per peer when there are more peers",
            cost=f"{1 - after / before:.0%} of send_recv between nodes",
            fixes=(Fix(do="give each peer more channels", command="export NCCL_NCHANNELS_PER_NET_PEER=4"),),
            confirm="send_recv on both node counts with and without it",
            sources=("NVIDIA NCCL user guide: NCCL_NCHANNELS_PER_NET_PEER",),
        )
        return


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
                evidence=(seen(t2, two), seen(t3, three)),
                sources=("nccl-tests issue 22", "knowledge/busbw.csv: p5 on 2 against 3 to 16 nodes"),
            )
