"""TOP: where GPUs and NICs sit in a machine, and hosts in their network."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import combinations
from statistics import median

from smoldiag.facts import Cpu, Env, Evidence, Gpu, Network, System, TopoDevice, Topology, TopoPath
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.model import folded
from smoldiag.model import topology as model
from smoldiag.rules import rule

MIN_GPUS_TO_COMPARE = 4  # fewer do not show a pattern
SWITCHED_SHARE = 0.5  # of the pairs with the most NVLinks: from here on all were meant to have them
MIN_SWITCHED_LINKS = 6  # to an NVSwitch; meshes of cards have 1 to 4 to each other
NARROW_RATIO = 0.75  # of the usual path; x8 for x16 is half
FAST_PORT_RATIO = (
    0.6  # of the port's rate that the PCIe link behind it carries; a 200 Gb/s port on generation 4 has 0.96
)
SLOW_PORT_RATIO = 0.5  # of the fastest port: those below are for storage or management
AZURE_ETHERNET = "mlx5_an"  # accelerated networking, as Azure's images name it; mlx5_ib are the compute network's
MATRIX = "nvidia-smi topo -m"
VIRTUAL_TOPOLOGY = "/var/run/nvidia-topologyd/virtualTopology.xml"  # NCCL reads it by itself
NCCL_PATHS = "NCCL src/graph/paths.cc: ncclTopoCheckGdr, ncclTopoCheckP2p"
GDR_LEVEL = "NVIDIA NCCL user guide: NCCL_NET_GDR_LEVEL"


def _compute_nics(t: Topology) -> list[TopoDevice]:
    """The NICs that collectives use: RDMA, and no slower ports for storage and management beside faster ones."""
    rdma = [n for n in t.nics if n.gdr is not False and n.model != "ethernet" and not n.name.startswith(AZURE_ETHERNET)]
    fastest = max((n.gb_per_s or 0 for n in rdma), default=0)
    return [n for n in rdma if n.gb_per_s is None or n.gb_per_s >= SLOW_PORT_RATIO * fastest]


def _reached(t: Topology, gpu: TopoDevice) -> list[TopoPath]:
    """Paths from a GPU to the NICs that collectives use."""
    paths = [p for n in _compute_nics(t) if (p := t.path(gpu.name, n.name))]
    return [p for p in paths if p.kind != "DIS"]


def _pairs(t: Topology) -> list[TopoPath]:
    """Paths between GPUs."""
    return [p for a, b in combinations(t.gpus, 2) if (p := t.path(a.name, b.name))]


def _nearest(t: Topology, gpu: TopoDevice) -> TopoPath | None:
    return min(_reached(t, gpu), key=lambda p: model.rank(model.own_kind(p)), default=None)


def _far(t: Topology) -> list[tuple[TopoDevice, TopoPath]]:
    """GPUs without a NIC within reach of GPUDirect, and their nearest one. None where a NIC's place is not known."""
    if any(all(kind == "DIS" for kind in _to(t, n)) for n in _compute_nics(t)):
        return []
    nearest = [(gpu, path) for gpu in t.gpus if (path := _nearest(t, gpu))]
    return [(gpu, path) for gpu, path in nearest if not model.is_near(model.own_kind(path))]


def _known(t: Topology) -> int:
    return sum(_nearest(t, gpu) is not None for gpu in t.gpus)


def _where(gpus: Iterable[TopoDevice], nics: Iterable[str] = ()) -> Where:
    return Where(gpus=tuple(g.index for g in gpus if g.index is not None), nics=tuple(nics))


def _seen(t: Topology, paths: Iterable[TopoPath]) -> tuple[Evidence, ...]:
    return tuple(Evidence(text=f"{p.ends[0]} - {p.ends[1]}: {p.written or p.kind}", where=t.source) for p in paths)


def _names(devices: Iterable[TopoDevice]) -> str:
    listed = list(devices)
    numbers = [d.index for d in listed if d.index is not None]
    if len(numbers) == len(listed) and len(listed) > 1:
        return f"GPUs {folded.ranges(numbers)}"
    return ", ".join(d.name for d in listed)


def _is_judged(t: Topology) -> bool:
    """EFA's plugin tells NCCL the topology by itself, in virtual machines that show a flat bus."""
    nics = _compute_nics(t)
    return bool(nics) and all(n.model != "efa" for n in nics)


@rule("TOP001", Severity.WARNING)
def no_gpu_near_a_nic(topology: Topology, cpu: Cpu | None) -> Iterator[Finding]:
    """Every GPU reaches the NICs only through a CPU.

    NCCL uses GPUDirect RDMA up to PXB: farther away, data goes through host memory, at half the NIC's rate or less.

    Fix: move the NIC below the switch of the GPUs; in a virtual machine, give NCCL the cloud's topology file.
    """
    far = _far(topology)
    if not far or len(far) < _known(topology) or not _is_judged(topology) or _is_flat(topology):
        return
    if cpu is not None and cpu.architecture == "aarch64" and not topology.tells_nvlinks:
        return  # a Grace's chip-to-chip link is near, and only NVML tells of it
    kinds = Counter(model.own_kind(path) for _, path in far)
    worst = "SYS" if len(kinds) == 1 and "SYS" in kinds else "PHB"
    yield Finding(
        message=f"no GPU is near a NIC: the nearest way is {worst} ("
        + ", ".join(f"{count} of {len(far)} GPUs over {kind}" for kind, count in kinds.items())
        + ")",
        cause="nic-behind-cpu-phb",
        severity=Severity.WARNING if len(far) > 1 else Severity.INFO,  # one GPU and one NIC in two slots is usual
        confidence=Confidence.LIKELY,
        where=_where((gpu for gpu, _ in far), (n.name for n in _compute_nics(topology))),
        evidence=_seen(topology, (path for _, path in far)),
        why="GPUDirect RDMA ends at the host bridge: NCCL copies through host memory",
        cost="some 15 of 25 GB/s on a 200 Gb/s NIC (NCCL issue 412), less on faster ones",
        fixes=(
            Fix(do="put the NIC below the PCIe switch of the GPUs, or into a slot of their root port"),
            Fix(
                do="where CPU and NIC are known to carry it: let NCCL use GPUDirect over the CPU, and measure",
                command=f"NCCL_NET_GDR_LEVEL={'PHB' if 'PHB' in kinds else 'SYS'} smoldiag nccl-bench --groups inter",
            ),
        ),
        confirm=f"{MATRIX}; the NCCL log has no /GDRDMA on its NET lines",
        sources=(NCCL_PATHS, GDR_LEVEL, "NCCL issue 412"),
        explains=("gdr-not-used", "busbw-below-expected"),
    )


def _is_flat(t: Topology) -> bool:
    """All GPUs look alike, next to every NUMA node or to no switch: as a virtual machine shows it."""
    several = [g for g in t.gpus if g.numa and len(g.numa) > 1]
    kinds = {p.kind for p in _pairs(t)}
    return len(t.gpus) >= MIN_GPUS_TO_COMPARE and len(several) == len(t.gpus) and kinds <= {"PHB", "NVL"}


@rule("TOP002", Severity.WARNING)
def some_gpus_without_a_near_nic(topology: Topology) -> Iterator[Finding]:
    """Some GPUs have a NIC next to them, others have none.

    The others send through the CPU, or over NVLink through a GPU that has one (PXN), and share its NIC.

    Fix: use as many ranks as there are GPUs with a NIC, or put NICs to the other switches.
    """
    far = _far(topology)
    near = _known(topology) - len(far)
    if not far or not near or not _is_judged(topology):
        return
    relayed = all(path.kind == "PXN" for _, path in far)
    used = len({names[0] for names in model.nics_of(topology).values()})
    yield Finding(
        message=f"{_names(gpu for gpu, _ in far)} of {len(topology.gpus)} without a NIC within PXB; {near} with one"
        + (" (NCCL goes through them by PXN)" if relayed else ""),
        cause="gpu-nic-unbalanced",
        severity=Severity.WARNING,
        where=_where(gpu for gpu, _ in far),
        evidence=_seen(topology, (path for _, path in far)),
        why="several GPUs share the NICs of the others, and reach them on a longer way",
        cost=f"between nodes the host has the rate of {used} NICs for {len(topology.gpus)} GPUs",
        fixes=(
            Fix(do="see where the NICs sit", command=f"{MATRIX}; lspci -tv"),
            Fix(do="keep PXN on", command="unset NCCL_PXN_DISABLE"),
        ),
        confirm="smoldiag nccl-bench --pairs between hosts: ranks on GPUs with a NIC against ranks on those without",
        sources=(NCCL_PATHS, "nccl-tests issue 347"),
        explains=("gdr-not-used", "busbw-below-expected"),
    )


@rule("TOP003", Severity.WARNING)
def topology_hidden(
    topology: Topology, system: System | None, files: tuple[str, ...] | None, env: Env | None
) -> Iterator[Finding]:
    """A virtual machine hides where GPUs and NICs sit, and no topology file tells NCCL.

    All GPUs look equally far from each other and from every NIC: rings cross sockets as it happens, and NICs are
    given to GPUs at the other end of the machine.

    Fix: give NCCL the cloud's topology file for this instance (NCCL_TOPO_FILE).
    """
    told = VIRTUAL_TOPOLOGY in (files or ()) or (env is not None and env.get("NCCL_TOPO_FILE"))
    hidden = _looks_virtual(topology, system) if topology.nodes else _is_flat(topology)
    if hidden and not told:
        numa = sorted({n for g in topology.gpus for n in g.numa or ()})
        yield Finding(
            message=f"all {len(topology.gpus)} GPUs look equally far from each other"
            + (f" and from NUMA nodes {folded.ranges(numa)}" if len(numa) > 1 else "")
            + ": the machine's topology is hidden",
            cause="topology-file-wrong-or-missing",
            confidence=Confidence.LIKELY,
            where=_where(topology.gpus),
            evidence=_seen(topology, _pairs(topology)[:4]),
            why="NCCL can't tell near from far",
            cost="unknown; the spread between topology files on such instances is large",
            fixes=(
                Fix(do="name the topology file of this instance", command="export NCCL_TOPO_FILE=<file of the cloud>"),
                Fix(do="see which the cloud has", command="smoldiag cloud"),
            ),
            confirm="smoldiag nccl-bench with and without the file",
            sources=(
                "Azure azhpc-images topology/, aws-ofi-nccl topology/, NCCL_TOPO_FILE in NVIDIA's NCCL user guide",
            ),
            explains=("gdr-not-used", "busbw-below-expected"),
        )


def _looks_virtual(t: Topology, system: System | None) -> bool:
    """A virtual machine with several GPUs and RDMA devices, and no PCIe switch between them."""
    virtual = system is not None and system.virtual not in (None, "none")
    switches = any(n.kind == "pci" for n in t.nodes)
    return virtual and not switches and len(t.gpus) >= MIN_GPUS_TO_COMPARE and len(t.nics) > 1 and _is_judged(t)


@rule("TOP004", Severity.WARNING)
def nic_on_the_wrong_socket(topology: Topology) -> Iterator[Finding]:
    """A NIC hangs on a CPU at which there is no GPU.

    Whatever it sends crosses the link between the CPUs.

    Fix: put it into a slot of the other CPU, or leave it out with NCCL_IB_HCA=^NAME.
    """
    gpu_numa = {n for g in topology.gpus for n in g.numa or ()}
    if not gpu_numa or not _is_judged(topology):
        return
    bad = [n for n in _compute_nics(topology) if (reached := _to(topology, n)) and set(reached) == {"SYS"}]
    if bad and len(bad) < len(topology.nics):
        names = ", ".join(n.name for n in bad)
        yield Finding(
            message=f"{names}: every GPU is across the CPUs' link",
            cause="nic-on-wrong-socket",
            severity=Severity.INFO,
            where=Where(nics=tuple(n.name for n in bad)),
            evidence=_seen(
                topology, [p for n in bad for g in topology.gpus[:1] if (p := topology.path(g.name, n.name))]
            ),
            why="NCCL does not choose it while a nearer one is there; a filter that names it alone does",
            fixes=(Fix(do="leave it out", command=f"export NCCL_IB_HCA=^{','.join(n.name for n in bad)}"),),
            confirm=MATRIX,
            sources=(NCCL_PATHS,),
        )


def _to(t: Topology, nic: TopoDevice) -> list[str]:
    return [model.own_kind(p) for g in t.gpus if (p := t.path(g.name, nic.name))]


@rule("TOP005", Severity.INFO)
def gpus_joined_through_the_cpu(topology: Topology) -> Iterator[Finding]:
    """GPUs of this host reach each other only through the CPUs, while others have NVLink.

    NCCL copies through host memory between them (P2P ends at PXB by default). It is how such machines are built:
    what matters is which GPUs a job takes.

    Fix: take GPUs that are joined by NVLink, or of one switch, for one job.
    """
    pairs = _pairs(topology)
    far = [p for p in pairs if model.rank(p.kind) >= model.rank("PHB") and p.kind != "DIS"]
    if not far or not topology.tells_nvlinks or _is_flat(topology):
        return
    groups = _islands(topology)
    names = [_names(group) for group in groups if len(group) > 1]
    kinds = Counter(p.kind for p in far)
    yield Finding(
        message=f"{len(far)} of {len(pairs)} pairs of GPUs go through the CPUs ("
        + ", ".join(f"{n} over {kind}" for kind, n in kinds.items())
        + ")"
        + (f"; near each other: {'; '.join(names[:8])}" if names else ""),
        cause="phb-sys-path",
        severity=Severity.INFO,
        where=_where(topology.gpus),
        evidence=_seen(topology, far[:6]),
        why="a ring over them is as fast as its longest step",
        cost="a few GB/s through host memory, against tens or hundreds over NVLink",
        fixes=(Fix(do="take near ones for one job", command=f"export CUDA_VISIBLE_DEVICES={_indices(groups[0])}"),)
        if names
        else (),
        confirm="smoldiag nccl-bench --groups intra on near and on far GPUs",
        sources=(NCCL_PATHS,),
        explains=("busbw-below-expected",),
    )


def _islands(t: Topology) -> list[list[TopoDevice]]:
    """GPUs that reach each other without a CPU, the largest group first."""
    left, groups = list(t.gpus), []
    while left:
        group = [left.pop(0)]
        for here in group:
            near = [g for g in left if (p := t.path(here.name, g.name)) and model.rank(p.kind) <= model.rank("PXB")]
            group += near
            left = [g for g in left if g not in near]
        groups.append(group)
    return sorted(groups, key=len, reverse=True)


def _indices(gpus: Iterable[TopoDevice]) -> str:
    return ",".join(str(g.index) for g in gpus)


@rule("TOP006", Severity.WARNING)
def nvlink_missing_between_some(topology: Topology, gpus: tuple[Gpu, ...] | None) -> Iterator[Finding]:
    """Most GPUs of this host are joined by NVLink, but some pair is not, or by fewer links.

    An NVSwitch joins all GPUs alike: a GPU that differs has links down.

    Fix: look at the links of that GPU (nvidia-smi nvlink -s), restart fabric manager, reset the GPUs.
    """
    pairs = _pairs(topology)
    linked = [p for p in pairs if p.kind == "NVL"]
    counts = Counter(_links(p) for p in linked)
    usual = max((n for n in counts if n), default=0)
    if gpus is not None or len(topology.gpus) < MIN_GPUS_TO_COMPARE or usual < MIN_SWITCHED_LINKS:
        return  # where NVML told of the links, NVL001 names those that are down
    if counts[usual] < SWITCHED_SHARE * len(pairs):  # a mesh of bridges, unequal by design
        return
    bad = [p for p in pairs if p.kind != "NVL" or (_links(p) or usual) < usual]
    if bad:
        ends = Counter(name for p in bad for name in p.ends)
        most = max(ends.values())
        guilty = [g for g in topology.gpus if ends[g.name] == most]
        yield Finding(
            message=f"{_names(guilty)}: {bad[0].written or bad[0].kind} to {_other(bad[0], guilty[0].name)}, "
            f"other pairs have NV{usual}",
            cause="nvlink-error",
            severity=Severity.WARNING,
            where=_where(guilty),
            evidence=_seen(topology, bad[:6]),
            why="NCCL builds its rings and trees for the weakest GPU",
            cost="at least the share of the missing links",
            fixes=(
                Fix(do="see which links are down", command="nvidia-smi nvlink -s"),
                Fix(
                    do="stop all jobs of the host, restart fabric manager and reset all GPUs (as root)",
                    command="systemctl restart nvidia-fabricmanager && nvidia-smi -r",
                ),
            ),
            confirm="nvidia-smi nvlink -s; smoldiag nccl-bench --groups intra",
            sources=(NCCL_PATHS,),
            explains=("busbw-below-expected", "p2p-not-used"),
        )


def _links(p: TopoPath) -> int | None:
    digits = (p.written or "").removeprefix("NV")
    return int(digits) if digits.isdigit() else None


def _other(p: TopoPath, name: str) -> str:
    return p.ends[1] if p.ends[0] == name else p.ends[0]


@rule("TOP007", Severity.WARNING)
def narrow_way_to_a_nic(topology: Topology) -> Iterator[Finding]:
    """The way from a GPU to its NIC is narrower than the others, or than the NIC's port.

    A slot with fewer lanes, a card that trained down, or a fast NIC in an old slot bounds all traffic between nodes.

    Fix: reseat the card, or put it into a slot with all its lanes.
    """
    near = [(g.name, p) for g in topology.gpus for p in _reached(topology, g) if model.is_near(model.own_kind(p))]
    ways: dict[str, TopoPath] = {}
    for name, path in sorted(near, key=lambda item: (model.rank(item[1].kind), -(item[1].gb_per_s or 0))):
        if path.gb_per_s:
            ways.setdefault(name, path)
    usual = median(p.gb_per_s or 0 for p in ways.values()) if len(ways) >= MIN_GPUS_TO_COMPARE else None
    ports = {n.name: n.gb_per_s for n in topology.nics}
    for gpu in topology.gpus:
        if gpu.name not in ways or "not told" in (ways[gpu.name].narrowest or ""):
            continue
        path, rate = ways[gpu.name], ways[gpu.name].gb_per_s or 0
        port = ports.get(path.ends[1])
        below = usual is not None and rate < NARROW_RATIO * usual
        slow_slot = port is not None and rate < FAST_PORT_RATIO * port
        if below or slow_slot:
            against = usual if below and usual else port or 0
            yield Finding(
                message=f"{gpu.name} - {path.ends[1]}: {rate:g} GB/s ({path.narrowest}), "
                + (f"the others {against:g} GB/s" if below else f"the port carries {against:g} GB/s"),
                cause="pcie-degraded",
                severity=Severity.WARNING if below else Severity.INFO,
                where=_where([gpu], [path.ends[1]]),
                evidence=(Evidence(text=f"narrowest hop: {path.narrowest}", where=topology.source),),
                why="traffic between nodes of this GPU goes through this link",
                cost=f"{1 - rate / against:.0%} of its rate between nodes (ratio of the hops)",
                fixes=(Fix(do="see the links on the way", command="lspci -vvv | grep -E 'LnkCap|LnkSta:'"),),
                confirm="smoldiag nccl-bench --groups inter",
                sources=("PCI Express base specification; NCCL src/graph/topo.cc: ncclTopoAddPci",),
                explains=("busbw-below-expected",),
            )


@rule("TOP008", Severity.INFO)
def hosts_far_apart(network: Network) -> Iterator[Finding]:
    """The hosts of the job do not share their lowest switch.

    Traffic between them crosses more switches, which others use as well. Schedulers place by it when told to.

    Fix: ask for hosts of one switch (srun --switches=1), or order ranks by switch.
    """
    leaves = Counter(p.switches[0] for p in network.placements if p.switches)
    if len(leaves) < 2:
        return
    apart = [p for p in network.placements if p.switches and not set(p.switches) & set(network.placements[0].switches)]
    yield Finding(
        message=f"{len(network.placements)} hosts are below {len(leaves)} lowest switches ("
        + ", ".join(f"{n} at {name}" for name, n in leaves.most_common(6))
        + (", ..." if len(leaves) > 6 else "")
        + ")"
        + ("; some share no switch at all" if apart else ""),
        cause="hosts-far-apart",
        severity=Severity.WARNING if apart else Severity.INFO,
        confidence=Confidence.LIKELY,
        where=Where(hosts=tuple(p.host for p in network.placements)),
        evidence=tuple(Evidence(text=f"{name}: {n} hosts", where=network.source) for name, n in leaves.most_common(8)),
        why="rings and trees cross shared links of the upper switches, the more the less ranks follow the switches",
        fixes=(
            Fix(
                do="ask for hosts of one switch, and wait for them at most that long",
                command="srun --switches=1@10:00 ...",
            ),
            Fix(do="let Slurm number the ranks by switch (slurm.conf)", command="TopologyPlugin=topology/tree"),
        ),
        confirm="smoldiag nccl-bench --groups inter: pairs of hosts below one switch against others",
        sources=("Slurm topology guide, slurm.schedmd.com/topology.html", "Amazon EC2 instance topology"),
    )
