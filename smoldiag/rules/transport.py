"""BWD: what NCCL said of its network, beside the tables that were measured with it; and the GPUs in use.

What a log says of itself outranks what a table lets one guess.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import combinations

from smoldiag.facts import Evidence, Log, Tables, Topology, Transport
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.rules import rule
from smoldiag.rules.tables import judged

SOCKET_GBS = 30.0  # published runs over sockets end at 28.6 GB/s busbw, whatever the GPUs
ONE_NIC_GBS = 50.0  # 400 Gb/s, the fastest single port that is sold with such nodes
SHARE_OF_A_BOND = 0.65  # a single link of two is half
MANY_GPUS = 8  # boards of eight are sold with a fabric of several NICs
RANKS_OF_ONE_NODE = 16  # no host has more GPUs, racks of NVLink apart
# A plugin that is there and breaks. One that is not there, and a verbs library that is missing, are the rule on hosts
# without a fabric: NCCL looks for both everywhere.
_BROKEN_PLUGIN = re.compile(
    r"GLIBC\w*_[\d.]+' not found|undefined symbol|Failed to initialize NET plugin (?!IB\b|Socket\b)\S|"
    r"lib(?:nccl-net|fabric|efa|rccl-net)\S*: .*(?:version|symbol|wrong ELF)"
)
_ORDER = ("NV", "PIX", "PXB", "PHB", "NODE", "SYS")  # from near to far, as NCCL ranks them (src/graph/topo.h)
EXPLAINED = ("busbw-below-expected", "gdr-not-used", "fewer-nics-than-expected", "p2p-not-used")


def _low(tables: Tables | None, limit: float) -> Evidence | None:
    """A figure over several nodes that is below the limit."""
    for table in tables.bandwidth if tables else ():
        row = judged(table)
        if row and (table.nodes or 1) > 1 and (row.best_gbs or 0.0) < limit:
            return Evidence(text=f"busbw {row.best_gbs:.4g} GB/s on {table.nodes} nodes", where=table.where)
        for r in table.rows:
            if (r.nodes or 1) > 1 and r.best_gbs is not None and r.best_gbs < limit:
                return Evidence(text=f"busbw {r.best_gbs:.4g} GB/s on {r.nodes} nodes", where=f"{table.file}:{r.line}")
    return None


def _ranks(log: Log) -> int:
    """The most ranks that a ring of the log goes over."""
    counts = [len(re.findall(r"\d+", ring.partition(":")[2])) for ring in log.rings]
    return max([*counts, log.transport.ranks or 0 if log.transport else 0, log.world or 0])


@rule("BWD040", Severity.WARNING)
def sockets_beside_a_fabric(log: Log, tables: Tables | None) -> Iterator[Finding]:
    """NCCL uses TCP sockets between nodes, and something shows that there is a faster network.

    Sockets alone are no fault: many clusters have nothing else, and NCCL looks for verbs and plugins in vain there. But
    a plugin that is there and breaks, an interface over InfiniBand, a pod that asked for EFA, or a figure that no
    fabric gives show that a better way was there.

    Fix: force the wanted network once (NCCL_NET=IB, or the plugin's name): NCCL then fails with the real reason.
    """
    t = log.transport
    if t is None or t.network != "Socket":
        return
    hard = [e for e in (*t.evidence, *t.warnings) if _BROKEN_PLUGIN.search(e.text)]
    verbs = [e for e in (*t.evidence, *t.warnings) if "Failed to open libibverbs" in e.text]
    asked = [n for n in (tables.notes if tables else ()) if "efa" in n.text.lower() or "rdma/" in n.text.lower()]
    over_ib = [n for n in t.nics or () if n.startswith("ib")]
    low = _low(tables, SOCKET_GBS)
    wide = _ranks(log) > RANKS_OF_ONE_NODE
    reason = (
        f"its network plugin would not load ({hard[0].text[:100]})" if hard
        else f"the pod asks for RDMA devices ({asked[0].text[:60]})" if asked
        else f"it runs over {over_ib[0]}, an InfiniBand interface" if over_ib
        else f"the table shows {low.text}" if low
        else f"{_ranks(log)} ranks on nodes of {MANY_GPUS} GPUs talk over it" if wide
        else ""
    )  # fmt: skip
    if not reason:
        return
    yield Finding(
        message=f"NCCL uses TCP sockets ({', '.join(t.nics or ('?',))}) between nodes, and {reason}",
        cause="net-socket-fallback",
        confidence=Confidence.LIKELY if hard or low or over_ib else Confidence.POSSIBLE,
        evidence=(*hard[:2], *verbs[:1], *asked[:1], *([low] if low else []), *t.evidence[:4]),
        why="sockets reach a fraction of the RDMA bandwidth, at many times the latency",
        cost="typically 3 to 25 GB/s busbw instead of the fabric's (published socket runs)",
        fixes=(
            Fix(do="force the RDMA network once, to see why it is refused", command="export NCCL_NET=IB"),
            Fix(do="put the verbs library (libibverbs1) or the network plugin of this distribution into the image"),
        ),
        confirm="the line `Using network` names IB or the plugin",
        sources=("NCCL src/plugin/net.cc: Using network", "NVIDIA NCCL user guide: NCCL_NET"),
        explains=EXPLAINED,
    )


@rule("BWD041", Severity.WARNING)
def libfabric_over_tcp(log: Log) -> Iterator[Finding]:
    """The OFI plugin was loaded, and libfabric gave it TCP.

    The name of the plugin in the log proves nothing: the provider is what counts. On AWS it should be efa.

    Fix: set FI_PROVIDER=efa, put EFA's libfabric first on LD_LIBRARY_PATH, attach EFA interfaces.
    """
    t = log.transport
    seen = (
        [e for e in t.evidence if re.search(r"Selected [Pp]rovider is (?:tcp|sockets|udp|net)\b", e.text)] if t else []
    )
    if seen:
        yield Finding(
            message=f"libfabric's provider is TCP: {seen[0].text[:120]}",
            cause="efa-provider-tcp",
            confidence=Confidence.LIKELY,
            evidence=tuple(seen[:4]),
            why="libfabric finds no EFA device: not attached, not in the container, or another libfabric comes first",
            cost="about a third of EFA's bandwidth on p3dn, far less on newer instances (aws-ofi-nccl issues)",
            fixes=(
                Fix(do="ask for the provider", command="export FI_PROVIDER=efa"),
                Fix(
                    do="put EFA's library first", command="export LD_LIBRARY_PATH=/opt/amazon/efa/lib:$LD_LIBRARY_PATH"
                ),
            ),
            confirm="fi_info -p efa in the same container; then `Selected Provider is efa`",
            sources=("aws-ofi-nccl: nccl_ofi_net.c",),
            explains=EXPLAINED,
        )


@rule("BWD042", Severity.WARNING)
def no_gpudirect_between_nodes(log: Log, tables: Tables | None) -> Iterator[Finding]:
    """NCCL uses RDMA between nodes, and its channels are without GPUDirect RDMA.

    Channel lines of GPUDirect end in /GDRDMA. Without it each message is copied through host memory.

    Fix: load nvidia-peermem or use a DMA-BUF kernel; on EFA set FI_EFA_USE_DEVICE_RDMA=1; ACS off on bare metal.
    """
    t = log.transport
    known = t is not None and (t.network == "IB" or "libfabric" in (t.network or "").lower())
    if t is None or t.gpudirect is not False or not known:  # other plugins have words of their own for it
        return
    if log.has("gdr-disabled", "peermem", "reg-mr"):
        return  # the rules of failures say why it is off
    low = _low(tables, 10 * ONE_NIC_GBS)
    yield Finding(
        message=f"NCCL uses {t.network} between nodes without GPUDirect RDMA",
        cause="gdr-not-used",
        confidence=Confidence.LIKELY,
        evidence=(*t.evidence[:5], *([low] if low else [])),
        why="each message is copied through host memory on both sides",
        cost="about half of the NIC rate (NCCL issues 489, 371: 2 to 10 times less)",
        fixes=_gdr_fixes(t),
        confirm="channel lines end in /GDRDMA",
        sources=("NVIDIA NCCL user guide: NCCL_NET_GDR_LEVEL, Troubleshooting: GPU Direct RDMA",),
        explains=("busbw-below-expected",),
    )


def _gdr_fixes(t: Transport) -> tuple[Fix, ...]:
    if "Libfabric" in (t.network or "") or "ofi" in (t.plugin or "").lower():
        return (Fix(do="let libfabric use device memory (p4d and later)", command="export FI_EFA_USE_DEVICE_RDMA=1"),)
    return (
        Fix(do="load the peer-memory module on every host", command="sudo modprobe nvidia-peermem"),
        Fix(do="see whether PCI ACS is on between GPU and NIC", command="sudo lspci -vvv | grep ACSCtl"),
    )


@rule("BWD043", Severity.WARNING)
def one_nic_for_many_gpus(log: Log, tables: Tables) -> Iterator[Finding]:
    """NCCL lists one RDMA device for eight or more GPUs, and the figures are those of one.

    Boards of eight GPUs are sold with a NIC for each GPU or for two of them.

    Fix: unset NCCL_IB_HCA; see with ibstat which devices are there and up, in the container, too.
    """
    t = log.transport
    if t is None or t.nics is None or len(t.nics) != 1 or t.network in (None, "Socket"):
        return
    for table in tables.bandwidth:
        rates = [r.best_gbs for r in table.rows if r.best_gbs is not None]
        if not rates or max(rates) > ONE_NIC_GBS or (table.ranks or 0) < MANY_GPUS or table.nodes == 1:
            continue
        yield Finding(
            message=f"NCCL lists one device, {t.nics[0]}, for {table.ranks} ranks, which reach {max(rates):.4g} GB/s",
            cause="fewer-nics-than-expected",
            confidence=Confidence.POSSIBLE,
            where=Where(nics=t.nics),
            evidence=(*t.evidence[:2], Evidence(text=f"busbw {max(rates):.4g} GB/s", where=table.where)),
            why="the bandwidth between nodes is the sum over the devices in use; far GPUs cross the CPU to reach it",
            cost="all but one device's share, where the host has more",
            fixes=(
                Fix(do="let NCCL use all devices", command="unset NCCL_IB_HCA"),
                Fix(do="see which devices there are", command="ibstat -l; nvidia-smi topo -m"),
            ),
            confirm="the line `NET/IB : Using` lists as many devices as ibstat",
            sources=("NVIDIA NCCL user guide: NCCL_IB_HCA",),
            explains=("busbw-below-expected",),
        )
        return


@rule("BWD051", Severity.WARNING)
def bond_carries_one_link(log: Log, tables: Tables) -> Iterator[Finding]:
    """NCCL sends over a bond of RDMA ports and reaches much less than perftest.

    A flow over a bond takes one of its links. NCCL's few queue pairs may all fall on one, where two ports of their
    own would both be used.

    Fix: give NCCL the ports themselves instead of the bond; or NCCL_IB_QPS_PER_CONNECTION=4 with a hash over ports.
    """
    t = log.transport
    bonds = [n for n in (t.nics if t else None) or () if "bond" in n]
    rates = [(x.gbit_per_s / 8, x.where) for x in tables.links]
    rates += [(f.gb_per_s, f.where) for f in tables.figures if "ib_" in f.what or "perftest" in f.what.lower()]
    if t is None or not bonds or not rates:
        return
    wire, where = max(rates)
    for table in tables.bandwidth:
        best = max((r.best_gbs or 0.0 for r in table.rows), default=table.average_gbs or 0.0)
        if not best or best >= SHARE_OF_A_BOND * wire * len(bonds):
            continue
        yield Finding(
            message=f"NCCL reaches {best:.4g} GB/s over {', '.join(bonds)}, perftest {wire:.4g} GB/s",
            cause="bonded-nics",
            confidence=Confidence.LIKELY,
            where=Where(nics=tuple(bonds)),
            evidence=(
                *t.evidence[:2],
                Evidence(text=f"busbw {best:.4g} GB/s", where=table.where),
                Evidence(text=f"perftest {wire:.4g} GB/s", where=where),
            ),
            why="each flow of a bond uses one of its links",
            cost=f"{1 - best / (wire * len(bonds)):.0%} of what the bond carries",
            fixes=(
                Fix(do="spread flows over the links", command="export NCCL_IB_QPS_PER_CONNECTION=4"),
                Fix(do="or take the bond apart and name both ports in NCCL_IB_HCA"),
            ),
            confirm="ib_write_bw -q 1 and -q 8 on the bond: only several queue pairs fill it",
            explains=("busbw-below-expected", "acs-enabled", "gdr-not-used"),
        )
        return


@rule("BWD044", Severity.WARNING)
def graph_search_found_nothing(log: Log) -> Iterator[Finding]:
    """NCCL's search found no path through the machine for a pattern and took the simple order.

    Rings then leave through one NIC port or cross the CPU. It happens with some versions on some machines, and with
    topology files of another machine.

    Fix: try another NCCL version, NCCL_PXN_DISABLE=1, and without NCCL_TOPO_FILE; report the topology dump.
    """
    t = log.transport
    seen = [w for w in (t.warnings if t else ()) if "falling back to simple order" in w.text]
    if seen:
        yield Finding(
            message=f"NCCL found no path through this machine: {seen[0].text[-120:]}",
            cause="nccl-version-regression",
            confidence=Confidence.POSSIBLE,
            evidence=tuple(seen[:4]),
            why="channels are then laid out without regard to the machine, mostly through one NIC",
            cost="up to a factor of 7 (NCCL issue 1876: 7 instead of 50 GB/s)",
            fixes=(
                Fix(do="try without PXN", command="export NCCL_PXN_DISABLE=1"),
                Fix(do="try an older and a newer NCCL, and without NCCL_TOPO_FILE and NCCL_GRAPH_FILE"),
            ),
            confirm="the same bench with another NCCL version",
            sources=("NCCL src/graph/search.cc",),
            explains=("busbw-below-expected",),
        )


@rule("BWD045", Severity.WARNING)
def gpus_far_apart(tables: Tables) -> Iterator[Finding]:
    """The GPUs in use are further apart than as many others of the host.

    A ring is as fast as its longest step. Across the CPUs' link, without NVLink, that is a few GB/s.

    Fix: take GPUs that are joined by NVLink, or of one socket (CUDA_VISIBLE_DEVICES).
    """
    visible = next((e for e in tables.settings if e[0] == "CUDA_VISIBLE_DEVICES"), None)
    for machine in tables.topologies:
        gpus = [d.index for d in machine.gpus if d.index is not None]
        used = [int(x) for x in visible[1].split(",") if x.strip().isdigit()] if visible else []
        if not visible or not 2 <= len(used) < len(gpus) <= RANKS_OF_ONE_NODE or not set(used) <= set(gpus):
            continue
        worst = _longest(machine, used)
        best = min(combinations(gpus, len(used)), key=lambda c: _ORDER.index(_longest(machine, c)))
        nearer = _longest(machine, best)
        if worst not in ("SYS", "PHB", "NODE") or _ORDER.index(nearer) >= _ORDER.index(worst):
            continue
        shown, near = ",".join(map(str, used)), ",".join(map(str, best))
        yield Finding(
            message=f"GPUs {shown} reach each other over {worst}; GPUs {near} over {nearer}",
            cause="phb-sys-path",
            confidence=Confidence.LIKELY,
            where=Where(gpus=tuple(used)),
            evidence=(
                Evidence(text=f"GPU{used[0]} to GPU{used[-1]}: {worst}", where=machine.source),
                Evidence(text=f"{visible[0]}={visible[1]}", where=visible[2]),
            ),
            why="a ring is as fast as its longest step, and that one goes through the CPUs",
            cost="a factor of ten and more against NVLink (1.4 against 47 GB/s on eight A40)",
            fixes=(Fix(do="take GPUs that are near", command=f"export CUDA_VISIBLE_DEVICES={near}"),),
            confirm="the same bench on the nearer GPUs",
            explains=("busbw-below-expected", "p2p-disabled", "p2p-not-used"),
        )


def _longest(machine: Topology, gpus: Sequence[int]) -> str:
    """The kind of the longest path that a ring over these GPUs can't avoid: some step of it joins the two halves."""
    kinds = {
        frozenset((a, b)): _rank(machine, a, b) for a, b in combinations(gpus, 2)
    }  # fmt: skip
    for limit in range(len(_ORDER)):
        joined = {gpus[0]}
        for _ in gpus:
            joined |= {b for a in joined for b in gpus if b not in joined and kinds[frozenset((a, b))] <= limit}
        if len(joined) == len(gpus):
            return _ORDER[limit]
    return _ORDER[-1]


def _rank(machine: Topology, a: int, b: int) -> int:
    path = machine.path(f"GPU{a}", f"GPU{b}")
    kind = (path.written or path.kind) if path else "SYS"
    return 0 if kind.startswith("NV") else _ORDER.index(kind) if kind in _ORDER else len(_ORDER) - 1


@rule("BWD046", Severity.WARNING)
def virtual_machine_hides_the_topology(tables: Tables) -> Iterator[Finding]:
    """A virtual machine hides the topology: all GPUs look equally far from each other.

    NCCL can't know which GPUs share a switch or a socket, and its rings cross sockets as it happens.

    Fix: give NCCL the cloud's topology file for this instance (NCCL_TOPO_FILE).
    """
    for machine in tables.topologies:
        gpus = machine.gpus
        kinds = {p.kind for p in machine.paths if all(e.startswith("GPU") for e in p.ends)}
        numa = {d.numa for d in gpus}
        only = next(iter(numa), None)
        if len(gpus) < 4 or kinds != {"PHB"} or len(numa) != 1 or not only or len(only) < 2:
            continue
        yield Finding(
            message=f"all pairs of {len(gpus)} GPUs are PHB and each is next to NUMA nodes {only[0]}-{only[-1]}: "
            "the machine's topology is hidden",
            cause="topology-file-wrong-or-missing",
            confidence=Confidence.LIKELY,
            evidence=(Evidence(text=f"GPU0: PHB to all; NUMA {only[0]}-{only[-1]}", where=machine.source),),
            why="a virtual machine shows a flat PCI tree, so that NCCL can't tell near from far",
            cost="unknown; the spread between topology files on such instances is large",
            fixes=(
                Fix(do="name the topology file of this instance", command="export NCCL_TOPO_FILE=<file of the cloud>"),
            ),
            confirm="all_reduce_perf with and without the file",
            sources=("aws-ofi-nccl topology/, Azure azhpc-images topology/",),
        )
