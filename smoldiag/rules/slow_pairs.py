"""BWD: pairs of hosts, measured by find-slow or by anybody: which host, link or rail is slow."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

from smoldiag.facts import Evidence, Tables
from smoldiag.facts.tables import Pair, PairTable
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.model import curve as curves
from smoldiag.model import slow_nodes
from smoldiag.model.slow_nodes import Explained, Fault, Kind
from smoldiag.rules import rule
from smoldiag.rules.tables import JUDGED_BYTES, seen

MIN_PAIRS = 3
MAX_SHOWN = 8
LOOK = Fix(do="look at its link rate, error counters, PCI width and clocks", command="smoldiag doctor")


def of_hosts(tables: Tables) -> Iterator[tuple[PairTable, Explained]]:
    """Every table of pairs of hosts, with what its rates say."""
    given = [t for t in tables.pairs if t.kind == "hosts"]
    single = [t for t in given if len(t.pairs) < MIN_PAIRS and not t.directed]  # a bench of one pair in each file
    pairs = tuple(p for t in single for p in t.pairs)
    joined = (PairTable(where=pairs[0].where, kind="hosts", pairs=pairs),) if len(single) > 1 else ()
    for table in (*(t for t in given if t not in single), *joined, *_pairs_of_tables(tables)):
        if len(table.pairs) >= MIN_PAIRS and (explained := _explained(table)):
            yield table, explained


@lru_cache(maxsize=8)
def _explained(table: PairTable) -> Explained | None:
    return slow_nodes.explain(table.pairs, directed=table.directed, computes=table.computes)


def _pairs_of_tables(tables: Tables) -> Iterator[PairTable]:
    """Tables of two hosts each, of one collective and size: a bench of pairs, a file for each."""
    groups: dict[tuple[str | None, int | None, str, int | None], list[Pair]] = {}
    for table in tables.bandwidth:
        ordered = curves.by_size(table.rows)
        row = ordered[-1] if ordered else None
        if row and row.best_gbs and (row.size_bytes or 0) >= JUDGED_BYTES and len(table.hosts) == 2:
            a, b = table.hosts
            key = table.collective, table.ranks, table.label, row.size_bytes
            groups.setdefault(key, []).append(Pair(a=a, b=b, gb_per_s=row.best_gbs, where=seen(table, row).where))
    for key, pairs in groups.items():
        if len({frozenset((p.a, p.b)) for p in pairs}) >= MIN_PAIRS:
            yield PairTable(where=pairs[0].where, kind="hosts", pairs=tuple(pairs), label=str(key[0] or ""))


@rule("BWD025", Severity.WARNING)
def host_slow_in_all_its_pairs(tables: Tables) -> Iterator[Finding]:
    """One host is slow with every partner, and its partners are fast with others.

    A fast pair clears both its hosts. What is slow with partners that are fast with others is the host itself: its
    sending, its receiving, or both.

    Fix: leave the host out, and look at its links, counters, PCI width and clocks.
    """
    for table, e in of_hosts(tables):
        found = [f for f in e.faults if f.kind in (Kind.BOTH_WAYS, Kind.SEND, Kind.RECEIVE)]
        for fault in found:
            yield _slow_host(fault, e)
        if e.unclear:
            yield _one_of_two(table, e, others_named=bool(found))


def _slow_host(fault: Fault, e: Explained) -> Finding:
    host, rates = fault.hosts[0], [p.gb_per_s for p in fault.pairs]
    count = f"its {len(rates)} transfers" if fault.kind is not Kind.BOTH_WAYS else f"its {len(rates)} pairs"
    verb = {Kind.SEND: "sends", Kind.RECEIVE: "receives"}.get(fault.kind, "reaches")
    return Finding(
        message=f"{host}{_lanes(fault)} {verb} {max(rates):.4g} GB/s at best in "
        f"{count if len(rates) > 1 else 'its pair'}; pairs of the other hosts {e.usual_gbs:.4g} GB/s",
        cause="slow-node",
        subject=host,
        confidence=_confidence(fault),
        where=Where(hosts=(host,), gpus=fault.lanes),
        evidence=tuple(_seen(p) for p in fault.pairs[:MAX_SHOWN]),
        why="its partners are fast with others; a collective over all hosts runs at the pace of this one",
        cost=f"up to {1 - fault.ratio:.0%} of the bandwidth over all hosts (ratio of the pairs)",
        fixes=(*_without(host), LOOK),
        confirm=f"the job without {host} runs at the pairs' rate",
        explains=("busbw-below-expected",),
    )


def _one_of_two(table: PairTable, e: Explained, *, others_named: bool) -> Finding:
    first = e.unclear[0]
    return Finding(
        message=f"{first.a} and {first.b} exchange {first.gb_per_s:.4g} GB/s, others {e.usual_gbs:.4g}; "
        "neither was measured with another partner",
        cause="slow-node",
        subject="one pair",
        severity=Severity.INFO if others_named else Severity.WARNING,
        confidence=Confidence.POSSIBLE,
        where=Where(hosts=tuple(dict.fromkeys(h for p in e.unclear for h in (p.a, p.b)))),
        evidence=tuple(_seen(p) for p in e.unclear[:MAX_SHOWN]),
        why="one of the two, or the way between them, is slow",
        fixes=(Fix(do="measure each of them with a host that is known to be fast"),),
        confirm=f"smoldiag find-slow --hosts {first.a},{first.b},<two fast hosts>",
    )


@rule("BWD052", Severity.ERROR)
def link_slow_between_sound_hosts(tables: Tables) -> Iterator[Finding]:
    """Two hosts that are fast with all others are slow between themselves, or cut off.

    Both ends are cleared by their other partners, so the way between these two is at fault: a cable or switch port
    on their path, a route, or a rule of a firewall for this pair.

    Fix: keep the two out of one job, or one of them out; have the path between their switches looked at.
    """
    for _, e in of_hosts(tables):
        links: dict[frozenset[str], list[Fault]] = {}
        for fault in (*e.faults, *e.single):
            if fault.kind in (Kind.LINK, Kind.DEAD_LINK):
                links.setdefault(frozenset(fault.hosts), []).append(fault)
        for faults in links.values():
            yield _bad_link(faults, e)


def _bad_link(faults: Sequence[Fault], e: Explained) -> Finding:
    a, b = faults[0].hosts
    ways = f"from {a} to {b}" if len(faults) == 1 else f"between {a} and {b}, both ways"
    dead = all(f.kind is Kind.DEAD_LINK for f in faults)
    rate = max(p.gb_per_s for f in faults for p in f.pairs)
    said = "nothing arrives" if dead else f"{rate:.4g} GB/s"
    times = max(f.partners for f in faults)
    often = "once" if times == 1 else f"{times} times"
    sure = any(f.confirmed for f in faults)
    return Finding(
        message=f"{ways}: {said}{_lanes(faults[0])}, measured {often}; other pairs of both reach "
        f"{e.usual_gbs:.4g} GB/s: the link between them, not the hosts",
        cause="dead-link" if dead else "slow-link",
        subject=f"{a} {b}",
        severity=Severity.INFO if not sure else Severity.ERROR if dead else Severity.WARNING,
        confidence=Confidence.CERTAIN if sure else Confidence.POSSIBLE,
        where=Where(hosts=(a, b), gpus=faults[0].lanes),
        evidence=tuple(_seen(p) for f in faults for p in f.pairs)[:MAX_SHOWN],
        why="both are fast with their other partners; a ring or tree that puts them side by side runs at this pace",
        cost=f"up to {1 - min(f.ratio for f in faults):.0%} of the bandwidth, where a collective takes this way",
        fixes=(Fix(do="leave one of the two out", command=f"srun --exclude={b} ..."), Fix(do="look at the path")),
        confirm=f"smoldiag find-slow --hosts {a},{b},<two fast hosts>",
        explains=("busbw-below-expected",),
    )


@rule("BWD053", Severity.ERROR)
def host_exchanges_nothing(tables: Tables) -> Iterator[Finding]:
    """One host exchanges nothing with any partner, or hangs; its partners do with others.

    Fix: leave the host out; see that it runs, that its interface is up, and that no firewall is in the way.
    """
    for _, e in of_hosts(tables):
        for fault in e.faults:
            if fault.kind not in (Kind.DEAD, Kind.HANG):
                continue
            host, hangs = fault.hosts[0], fault.kind is Kind.HANG
            yield Finding(
                message=f"{host}{_lanes(fault)} {'hangs' if hangs else 'exchanges nothing'} with "
                f"{'each of ' if fault.partners > 1 else ''}{fault.partners} "
                f"partner{'s' if fault.partners > 1 else ''}, which are fast with others",
                cause="hang" if hangs else "dead-node",
                subject=host,
                severity=Severity.ERROR,
                confidence=_confidence(fault),
                where=Where(hosts=(host,), gpus=fault.lanes),
                evidence=tuple(_seen(p) for p in fault.pairs[:MAX_SHOWN]),
                why="a job with this host does not get past its first collective",
                fixes=_without(host),
                confirm=f"smoldiag find-slow --hosts {host},<two fast hosts>",
            )


@rule("BWD054", Severity.WARNING)
def host_computes_slowly(tables: Tables) -> Iterator[Finding]:
    """One host takes longer than the others for the same computation.

    Every step of a synchronous job takes as long as on the slowest host. What a slow processor sends and receives is
    slow, too; then this is the cause.

    Fix: leave the host out; look at clocks, throttling, a quota and other processes.
    """
    for _, e in of_hosts(tables):
        for fault in e.faults:
            if fault.kind is not Kind.COMPUTE:
                continue
            host = fault.hosts[0]
            yield Finding(
                message=f"{host}{_lanes(fault)} computes at {fault.ratio:.0%} of the speed of the other hosts "
                f"(median of {fault.partners} rounds)",
                cause="slow-compute",
                subject=host,
                confidence=_confidence(fault),
                where=Where(hosts=(host,), gpus=fault.lanes),
                evidence=(Evidence(text=f"{host}: {fault.ratio:.3g} of the median host's speed", where="find-slow"),),
                why="every step of a synchronous job takes as long as on this host",
                cost=f"{1 - fault.ratio:.0%} of the speed of all hosts (ratio of the times)",
                fixes=(
                    *_without(host),
                    Fix(do="look at clocks, limits and other processes", command="smoldiag doctor"),
                ),
                confirm=f"the job without {host} runs at the others' speed",
                explains=("slow-node",),
            )


@rule("BWD055", Severity.WARNING)
def host_is_uneven(tables: Tables) -> Iterator[Finding]:
    """Transfers of one host take now and then far longer than usual, with every partner.

    The usual transfer is as fast as elsewhere. A collective waits for the slowest of its ranks each time, so that
    the rare long ones set its pace.

    Fix: leave the host out; look at retransmissions, at interrupts, and at what else runs there.
    """
    for _, e in of_hosts(tables):
        for fault in e.faults:
            if fault.kind is not Kind.JITTER:
                continue
            host = fault.hosts[0]
            yield Finding(
                message=f"{host}{_lanes(fault)}: the slowest repeat takes {fault.ratio:.2g} times the median one in "
                f"{len(fault.pairs)} transfers with {fault.partners} partners; not so on other hosts",
                cause="jitter",
                subject=host,
                confidence=_confidence(fault),
                where=Where(hosts=(host,), gpus=fault.lanes),
                evidence=tuple(_seen(p) for p in fault.pairs[:MAX_SHOWN]),
                why="a collective waits for the slowest each time, so rare delays become frequent ones",
                fixes=(*_without(host), LOOK),
                confirm=f"the job without {host} has even steps",
            )


@rule("BWD056", Severity.WARNING)
def rail_slow_on_all_hosts(tables: Tables) -> Iterator[Finding]:
    """The same GPU index, and the NIC at its side, is slow on all hosts: a rail of the network.

    Fix: have the switches of this rail looked at; a job can do without it by NCCL_IB_HCA.
    """
    for _, e in of_hosts(tables):
        for fault in e.faults:
            if fault.kind is Kind.RAIL:
                yield Finding(
                    message=f"rail {fault.lanes[0]} (local rank {fault.lanes[0]} of all hosts) reaches "
                    f"{fault.ratio:.0%} of the other rails",
                    cause="slow-rail",
                    subject=f"rail {fault.lanes[0]}",
                    confidence=Confidence.LIKELY,
                    where=Where(gpus=fault.lanes),
                    why="rings and trees use all rails alike, and wait for the slowest",
                    cost=f"up to {1 - fault.ratio:.0%} of the bandwidth between hosts",
                    fixes=(Fix(do="have the switches of this rail looked at"),),
                    confirm="smoldiag nccl-bench --groups inter",
                    explains=("busbw-below-expected",),
                )


@rule("BWD057", Severity.INFO)
def pairs_at_two_levels(tables: Tables) -> Iterator[Finding]:
    """Many pairs are slower than the others: two levels of the network, not one slow host.

    Hosts below one switch reach more than hosts far apart where the network above is oversubscribed.

    Fix: none is needed, if that is how it was built; else place the job below one switch.
    """
    for table, e in of_hosts(tables):
        if e.levels:
            low, usual = e.levels
            yield Finding(
                message=f"many pairs exchange about {low:.4g} GB/s, the others {usual:.4g}: two levels of the network, "
                "no single host",
                cause="two-levels",
                severity=Severity.INFO,
                confidence=Confidence.POSSIBLE,
                evidence=(Evidence(text=f"{len(table.pairs)} transfers", where=table.where),),
                fixes=(Fix(do="see whether the slow pairs are in different racks"),),
            )


def _confidence(fault: Fault) -> Confidence:
    if fault.confirmed:
        return Confidence.CERTAIN
    return Confidence.LIKELY if fault.partners > 1 else Confidence.POSSIBLE


def _without(host: str) -> tuple[Fix, ...]:
    return (Fix(do="start the job without it", command=f"srun --exclude={host} ..."),)


def _lanes(fault: Fault) -> str:
    return f" (local rank {', '.join(map(str, fault.lanes))} only)" if fault.lanes else ""


def _seen(p: Pair) -> Evidence:
    said = f"{p.gb_per_s:.4g} GB/s" if p.gb_per_s > 0 else p.fate or "nothing"
    uneven = f", slowest repeat {p.spread:.2g} times the median" if p.spread and p.spread > 1.5 else ""
    return Evidence(text=f"{p.a}, {p.b}: {said}{uneven}", where=p.where)
