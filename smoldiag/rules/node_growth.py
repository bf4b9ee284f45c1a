"""BWD: the bandwidth while a world grows node by node: which node brought it down."""

import re
from collections.abc import Iterable, Iterator

from smoldiag.facts import Evidence, Tables
from smoldiag.facts.tables import BandwidthTable, Row
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.model import growth
from smoldiag.parse.nccl_tests import collective_of_name
from smoldiag.rules import rule
from smoldiag.rules.tables import seen

MAX_SHOWN = 8
# GB/s that one GPU has of its NIC: 100 to 800 Gbit/s, and 100 Gbit/s for two GPUs (p4d)
NIC_GB_PER_S = (6.25, 12.5, 25.0, 50.0, 100.0)
SOUND_OF_NIC = 0.75  # sound networks carry 0.8 and more of it (Smol Training Playbook: 42.7 of 50 GB/s)
LEAST_OF_NIC = 0.40  # less of the slowest is no such NIC
_NODES = re.compile(r"\d{1,5}[_ ]?nodes?|nodes?[_ ]?\d{1,5}", re.IGNORECASE)

Key = tuple[str, str | None, int | None]  # label, GPU, ranks per node: of one machine and setting
Points = dict[int, dict[int, tuple[Row, BandwidthTable]]]  # node count -> size -> the best row
Sweep = dict[str, Points]  # by collective


@rule("BWD065", Severity.WARNING)
def node_that_slows_the_world(tables: Tables) -> Iterator[Finding]:
    """From one node count on all is slower by one share: the node that joined is slow.

    A network that runs short loses a little with every node that is added, and some collectives more than others. A
    slow node, often one with a GPU that throttles, costs nothing until it takes part, and then the same share at
    every large size, at that count and at all later ones.

    A slow second node shows in all_reduce: two nodes that a tree joins use the network half as much as more nodes do,
    so that what two don't reach, though the first alone does, is no matter of the network.

    Fix: run the same count without the node that joined last; look at its clocks, temperatures and links.
    """
    for sweep in sweeps(tables):
        found = growth.step(series(sweep))
        if found is None:
            yield from _second_node(sweep)
            continue
        joined = _joined(sweep, found)
        who = f"{', '.join(joined)} joined" if joined else _node_count(found)
        while_measured = " (it began while that count was measured)" if found.during else ""
        names = ", ".join(found.collectives)
        share = f"{found.ratio:.0%} of what"
        reach = f"reaches {share} it does" if len(found.collectives) == 1 else f"reach {share} they do"
        yield Finding(
            message=f"from {found.at} nodes on{while_measured} {names} {reach} up to "
            f"{found.before}, at all large sizes and at every later count: {who}, and it is a slow node, not the "
            "network, which would lose a little with each node",
            cause="slow-node",
            subject=f"{found.at} nodes",
            confidence=Confidence.LIKELY,
            where=Where(hosts=joined),
            evidence=tuple(_shown(sweep, found)),
            why="a collective over all nodes waits for its slowest member at every size",
            cost=f"{1 - found.ratio:.0%} of the bandwidth over {found.at} nodes and more (ratio of the sweep)",
            fixes=(
                Fix(
                    do="start the job without the node that joined there",
                    command=f"srun --exclude={','.join(joined)} ..." if joined else "",
                ),
                Fix(
                    do="look at clocks, temperature and throttle reasons on it under load",
                    command="nvidia-smi -q -d CLOCK,PERFORMANCE,TEMPERATURE",
                ),
            ),
            confirm=f"{found.at} nodes with another one in its place run as fast as {found.before}",
            explains=(
                "busbw-below-expected",
                "bandwidth-collapse",
                "nccl-tuner-choice",
                "nchannels-per-net-peer-reduced",
            ),
        )


@rule("BWD066", Severity.INFO)
def two_nodes_below_one(tables: Tables) -> Iterator[Finding]:
    """A sweep is slower from two nodes on: the network, or the second node; it can't tell.

    One node alone uses no network. Where two reach less than one, or less than a NIC gives, that is what the network
    gives, or the node that joined second is slow; a sweep that has it in every count over one shows no difference.
    Where the share stays the same however many nodes are added, it is an end that is slow (a node, or a setting of all
    nodes), and not what lies between: a network that runs short loses with each node.

    Fix: measure other two nodes, or pairs: `smoldiag find-slow`.
    """
    for sweep in sweeps(tables):
        if growth.step(series(sweep)) or next(_second_node(sweep), None):
            continue
        for name in ("all_reduce", "all_gather", "reduce_scatter"):
            points = sweep.get(name, {})
            if 1 not in points or 2 not in points:
                continue
            size = max(set(points[1]) & set(points[2]), default=None)
            if size is None:
                continue
            (one, of_one), (two, of_two) = points[1][size], points[2][size]
            if (two.best_gbs or 0.0) < growth.TREE_OF_TWO * (one.best_gbs or 0.0):
                said = f"{name} reaches {one.best_gbs:.4g} GB/s on 1 node and {two.best_gbs:.4g} GB/s on 2"
                yield _from_two_on(said, (seen(of_one, one), seen(of_two, two)), steady_to=None)
                break
        else:
            yield from _below_a_nic(sweep)


def _second_node(sweep: Sweep) -> Iterator[Finding]:
    """Slow from two nodes on, where neither the first node nor the network can be what limits two."""
    points = sweep.get("all_reduce", {})
    share = growth.second(curves(points))
    if share is None:
        return
    yield Finding(
        message=f"from 2 nodes on all_reduce reaches {share:.0%} of what it could: two nodes send half as much through "
        "the network as a ring of more does, which leaves room up to what the first reaches alone: what joined as node "
        "2 is the cause, and it is a slow node, not the network, which would hold up 3 nodes more than 2",
        cause="slow-node",
        subject="2 nodes",
        confidence=Confidence.POSSIBLE,
        evidence=tuple(_at_largest("all_reduce", points, (1, 2, 3, max(points)))),
        why="a collective over all nodes waits for its slowest member at every size",
        cost=f"at least {1 - share:.0%} of the bandwidth over 2 nodes and more (ratio of the sweep)",
        fixes=(Fix(do="measure pairs of nodes, to have it confirmed and named", command="smoldiag find-slow"),),
        confirm="2 nodes with another one in its place reach what the first one does alone",
    )


def _below_a_nic(sweep: Sweep) -> Iterator[Finding]:
    """What two nodes exchange is no NIC's rate: between the shares that sound networks give of the usual ones."""
    for name, to_others in (("send_recv", 1.0), ("all_to_all", 0.5)):
        sizes = sweep.get(name, {}).get(2, {})
        if not sizes or max(sizes) < growth.LARGE_BYTES:
            continue
        row, table = sizes[max(sizes)]
        rate = (row.best_gbs or 0.0) * to_others
        nic = next((nic for nic in NIC_GB_PER_S if rate <= nic), None)
        if nic and rate >= LEAST_OF_NIC * NIC_GB_PER_S[0] and rate < SOUND_OF_NIC * nic:
            said = (
                f"each rank sends {rate:.4g} GB/s ({name} over 2 nodes), {rate / nic:.0%} of a NIC of "
                f"{nic * 8:g} Gbit/s where sound networks give 80% and more"
            )
            steady_to = growth.steady(series(sweep))
            yield _from_two_on(said, (seen(table, row),), steady_to=steady_to)
        return


def _from_two_on(said: str, evidence: tuple[Evidence, ...], *, steady_to: int | None) -> Finding:
    """`steady_to`: the largest count, where the share is the same at all of them: then it is an end."""
    which = (
        "what the network gives, or one of the first 2 nodes is slow; a sweep that has both in every count can't tell"
    )
    if steady_to:
        which = (
            f"it stays so up to {steady_to} nodes, and a network that runs short loses with each, so that from 2 nodes "
            "on an end is slow, and not what lies between: one of the first 2 nodes, or a setting of all nodes"
        )
    return Finding(
        message=f"{said}: {which}",
        cause="slow-node" if steady_to else "second-node-or-network",
        subject="2 nodes" if steady_to else "",
        severity=Severity.INFO,
        confidence=Confidence.POSSIBLE,
        evidence=evidence,
        fixes=(Fix(do="measure pairs of nodes", command="smoldiag find-slow"),),
    )


def _node_count(found: growth.Step) -> str:
    if found.at == found.before + 1:
        return f"what joined as node {found.at} is the cause"
    return f"what joined between {found.before} and {found.at} nodes is the cause"


def sweeps(tables: Tables) -> Iterator[Sweep]:
    """Tables of one machine at several node counts."""
    found: dict[Key, Sweep] = {}
    for table in tables.bandwidth:
        for row in table.rows:
            nodes = row.nodes or table.nodes
            if not nodes or not row.best_gbs or row.ranks:
                continue
            each = table.ranks // nodes if table.ranks and table.nodes else None
            sweep = found.setdefault((_setting(table), table.gpu, each), {})
            sizes = sweep.setdefault(table.collective or "all_reduce", {}).setdefault(nodes, {})
            size = row.size_bytes or 0
            if size not in sizes or row.best_gbs > (sizes[size][0].best_gbs or 0.0):
                sizes[size] = (row, table)
    for sweep in found.values():
        if max(len(points) for points in sweep.values()) > 2:
            yield sweep


def _setting(table: BandwidthTable) -> str:
    """The label without what tells node count and collective."""
    words = _NODES.sub(" ", table.label).split()
    return " ".join(w for w in words if not collective_of_name(w))


def curves(points: Points) -> dict[int, dict[int, float]]:
    return {n: {size: row.best_gbs or 0.0 for size, (row, _) in sizes.items()} for n, sizes in points.items()}


def series(sweep: Sweep) -> dict[str, dict[int, dict[int, float]]]:
    """Of more than one node: one alone uses no network."""
    return {name: {n: c for n, c in curves(points).items() if n > 1} for name, points in sweep.items()}


def _joined(sweep: Sweep, found: growth.Step) -> tuple[str, ...]:
    """Hosts of the later world that the earlier one had not, where the tables name them."""
    for points in sweep.values():
        if found.before in points and found.at in points:
            before, at = (next(iter(points[n].values()))[1].hosts for n in (found.before, found.at))
            if len(before) == found.before and set(before) < set(at):
                return tuple(h for h in at if h not in before)
    return ()


def _shown(sweep: Sweep, found: growth.Step) -> Iterator[Evidence]:
    """At the largest common size: the count before, that one, the last one."""
    for name in found.collectives:
        yield from _at_largest(name, sweep[name], (found.before, found.at, max(sweep[name])))


def _at_largest(name: str, points: Points, counts: Iterable[int]) -> Iterator[Evidence]:
    for n in dict.fromkeys(counts):
        if n in points:
            row, table = points[n][max(points[n])]
            said = seen(table, row)
            yield Evidence(text=f"{name} on {n} node{'s' if n > 1 else ''}: {said.text}", where=said.where)
