"""GPU, PCI, NIC, TOP: what the hosts of a job have in hardware, compared."""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from smoldiag.facts import Cluster, Evidence, Gpu, Host, Nic
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.model import folded, majority
from smoldiag.model.stats import median
from smoldiag.rules import NotKnown, rule
from smoldiag.rules.comparing import Compared, differences, groups, known_on, nothing_to_compare

RDMA = {"infiniband", "roce", "efa"}
# Interfaces of containers, bridges and tunnels: their names and number come and go.
PASSING = re.compile(
    r"(lo|docker|br-|virbr|veth|cni|flannel|cali|cilium|lxc|kube|podman|tun|tap|vxlan|genev|dummy|ovs|azv|eni|gke|nodelocaldns"
    r"|ip6tnl|sit|gre|erspan|teql|bonding_masters|ifb|wg|tailscale)"
)
LOADED_PERCENT = 90  # from here on the clock is that of a GPU at work
SLOW_CLOCK_RATIO = 0.92  # GPUs of one model at the same work run within a few percent of each other
MIN_LOADED = 4  # GPUs, so that most of them show what is normal
POWER_TOLERANCE = 0.02
XID_HELP = "https://docs.nvidia.com/deploy/xid-errors/index.html"
Key = tuple[str, int | str]  # host, and GPU or NIC


def _gpu_hosts(cluster: Cluster) -> list[Host]:
    return known_on(cluster, "gpus")


@rule("GPU050", Severity.ERROR)
def gpu_count_differs(cluster: Cluster) -> Iterator[Finding]:
    """A host has fewer GPUs than its siblings, or none that can be read.

    A GPU fell off the bus, is held back by the scheduler or the container, or its driver does not answer. A job
    that takes all GPUs of each host can't start on this one.

    Fix: see the kernel log of this host for Xid 79, and whether the GPU is on the bus; then drain it.
    """
    by_model: dict[str | None, dict[str, int]] = {}
    unread = {}
    for host in cluster:
        if host.gpus is not None:
            by_model.setdefault(host.product, {})[host.name] = len(host.gpus)
        else:
            unread[host.name] = host.unread.get("gpus", "not collected")
    if sum(map(len, by_model.values())) < 2 and not (by_model and unread):
        raise NotKnown(nothing_to_compare(cluster))
    for counts in by_model.values():
        if found := majority.split(counts):
            fewer = _fewer(found)
            yield Finding(
                message=f"number of GPUs differs: {groups(found)}",
                cause="gpu-missing",
                severity=Severity.ERROR,
                where=Where(hosts=fewer),
                evidence=tuple(Evidence(text=f"{counts[h]} GPUs", where=f"{h}: NVML") for h in fewer[:4]),
                why="a rank per GPU can't start where GPUs are missing, and all the others wait for it",
                fixes=(
                    Fix(do="see whether it is still on the bus", command="lspci -d 10de: | grep -E '3D|VGA'"),
                    Fix(do="see why it was lost", command="dmesg -T | grep -iE 'xid|fallen off'"),
                    Fix(do=f"leave {folded.hosts(fewer, most=4)} out until it is repaired"),
                ),
                confirm="nvidia-smi -L on that host and on one of the others",
                sources=(XID_HELP,),
            )
    have = [n for counts in by_model.values() for n in counts.values() if n]
    if unread and len(have) > len(unread):
        names = tuple(unread)
        yield Finding(
            message=f"the GPUs of {folded.hosts(names, most=4)} can't be read ({next(iter(unread.values()))}); "
            f"{len(have)} other hosts have {max(set(have), key=have.count)} each",
            cause="gpus-not-readable",
            severity=Severity.WARNING,
            where=Where(hosts=names),
            evidence=tuple(Evidence(text=why, where=f"{h}: NVML") for h, why in list(unread.items())[:4]),
            why="a driver that does not answer there stops every rank of this host",
            fixes=(Fix(do="see what the driver says", command="nvidia-smi; dmesg -T | grep -i nvrm"),),
            confirm="nvidia-smi on that host",
        )


def _fewer(found: majority.Split[str, int]) -> tuple[str, ...]:
    """Those with less than the others: fewer GPUs or NICs are the fault, even where most have them."""
    most = max(count for count, _ in found.groups)
    usual = found.usual if found.usual is not None else most
    fewer = tuple(h for count, hosts in found.groups if count < usual for h in hosts)
    return fewer or found.outliers


@rule("GPU051", Severity.WARNING)
def gpu_models_differ(cluster: Cluster) -> Iterator[Finding]:
    """The hosts have different GPU models, memory sizes or firmware.

    Every step ends when its slowest rank does: the faster GPUs wait.

    Fix: use hosts of one kind, or give each rank work by what its GPU can do.
    """

    def of(value: Callable[[Gpu], Hashable | None]) -> Callable[[Host], Hashable | None]:
        def values(host: Host) -> str | None:
            found = Counter(str(v) for g in host.gpus or () if (v := value(g)) is not None)
            return ", ".join(sorted(found)) or None

        return values

    yield from differences(
        cluster,
        [
            Compared(what="GPU model", value=of(lambda g: g.name), seen_in="nvidia-smi -L"),
            Compared(
                what="memory of a GPU in MiB",
                value=of(lambda g: g.memory_bytes // 2**20 if g.memory_bytes else None),
                seen_in="nvidia-smi -q",
            ),
        ],
        cause="gpu-models-differ",
        why="each step lasts as long as on the slowest GPU",
        fix=lambda hosts, what: (Fix(do=f"leave {hosts} out, or run only on hosts of that kind"),),
        confirm="nvidia-smi -L",
    )


@dataclass(frozen=True, kw_only=True)
class Setting:
    what: str
    value: Callable[[Gpu], Any]
    option: str  # of nvidia-smi, that sets it; {} is the value
    cause: str
    shown: Callable[[Any], str] = str
    severity: Severity = Severity.WARNING


def _on(value: bool) -> str:
    return "on" if value else "off"


SETTINGS = (
    Setting(
        what="persistence mode",
        value=lambda g: g.persistence,
        option="-pm 1",
        cause="persistence-off",
        shown=_on,
        severity=Severity.INFO,
    ),
    Setting(what="ECC", value=lambda g: g.ecc, option="-e 1 (and a reboot)", cause="ecc-off", shown=_on),
    Setting(what="MIG", value=lambda g: g.mig, option="-mig 0", cause="mig-on", shown=_on),
    Setting(
        what="compute mode",
        value=lambda g: g.compute_mode,
        option="-c DEFAULT",
        cause="gpu-exclusive-mode-or-busy",
    ),
    Setting(
        what="power limit",
        value=lambda g: round(g.power_limit_w) if g.power_limit_w else None,
        option="-pl {}",
        cause="gpu-power-limited",
        shown=lambda w: f"{w} W",
    ),
    Setting(
        what="application clock",
        value=lambda g: g.app_clock_mhz,
        option="-rac",
        cause="gpu-clocks-limited",
        shown=lambda mhz: f"{mhz} MHz",
    ),
)


@rule("GPU052", Severity.WARNING)
def gpu_settings_differ(cluster: Cluster) -> Iterator[Finding]:
    """A GPU is set up otherwise than the others of its model.

    ECC, MIG, compute mode, power limit or application clock: a lower limit or clock slows down all ranks; MIG or an
    exclusive compute mode stops one.

    Fix: set it as on the others with nvidia-smi.
    """
    hosts = _gpu_hosts(cluster)
    for model in sorted({g.name for h in hosts for g in h.gpus or ()}):
        for setting in SETTINGS:
            values = {
                (h.name, g.index): v
                for h in hosts
                for g in h.gpus or ()
                if g.name == model and (v := setting.value(g)) is not None
            }
            found = majority.split(values)
            if found is not None:
                yield _setting(setting, found)


def _setting(setting: Setting, found: majority.Split[tuple[str, int], Any]) -> Finding:
    outliers = found.outliers
    names = tuple(dict.fromkeys(host for host, _ in outliers))
    usual = setting.shown(found.usual) if found.usual is not None else None
    odd = ", ".join(dict.fromkeys(setting.shown(value) for value, _ in found.others[:4]))
    where = f"{len(outliers)} GPUs of {folded.hosts(names, most=4)}" if len(outliers) > 1 else _gpu(outliers[0])
    fixes: tuple[Fix, ...] = (Fix(do=f"set the {setting.what} alike on all GPUs"),)
    if usual is not None:
        gpus = folded.ranges(index for _, index in outliers).replace("-", "..") if len(names) == 1 else None
        command = f"nvidia-smi {setting.option.format(found.usual)}"
        fixes = (Fix(do=f"set it as on the others, on {folded.hosts(names, most=4)}", command=_for(command, gpus)),)
    return Finding(
        message=f"{setting.what}: {odd} on {where}, elsewhere {usual}"
        if usual is not None
        else f"{setting.what} differs, and no value has a majority: {odd}",
        cause=setting.cause,
        subject=setting.what,
        severity=setting.severity,
        where=Where(hosts=names, gpus=tuple(sorted({index for _, index in outliers}))),
        evidence=tuple(
            Evidence(text=f"{setting.what}: {setting.shown(value)}", where=f"{_gpu(key)}: NVML")
            for value, keys in found.others
            for key in keys[:3]
        ),
        why="every step lasts as long as on the slowest GPU",
        fixes=fixes,
        confirm="smoldiag nccl-bench over these hosts; nvidia-smi -q -d POWER,CLOCK,ECC,COMPUTE",
    )


def _for(command: str, gpus: str | None) -> str:
    return f"{command} -i {gpus}" if gpus and ".." not in gpus else command


def _gpu(key: tuple[str, int]) -> str:
    return f"GPU {key[1]} of {key[0]}"


@rule("GPU053", Severity.ERROR)
def gpu_twice(cluster: Cluster) -> Iterator[Finding]:
    """One GPU is seen on two hosts, or twice on one.

    Two containers or virtual machines share it, or one machine is named twice. NCCL refuses two ranks on one GPU
    ("Duplicate GPU detected"); ranks that do not notice slow each other down.

    Fix: give each host its own GPUs, and name each machine once.
    """
    owners: dict[str, list[tuple[str, int]]] = {}
    hosts = _gpu_hosts(cluster)
    for host in hosts:
        for gpu in host.gpus or ():
            if gpu.uuid:
                owners.setdefault(gpu.uuid, []).append((host.name, gpu.index))
    if not owners:
        raise NotKnown(nothing_to_compare(cluster))
    twice = {uuid: keys for uuid, keys in owners.items() if len(keys) > 1}
    if twice:
        names = tuple(dict.fromkeys(host for keys in twice.values() for host, _ in keys))
        first, keys = next(iter(twice.items()))
        yield Finding(
            message=f"{len(twice)} GPU{'s are' if len(twice) > 1 else ' is'} seen more than once, "
            f"e.g. {first} as {' and '.join(_gpu(k) for k in keys[:3])}",
            cause="duplicate-gpu-rank-mapping",
            severity=Severity.ERROR,
            where=Where(hosts=names, gpus=tuple(sorted({i for keys in twice.values() for _, i in keys}))),
            evidence=tuple(
                Evidence(text=uuid, where=", ".join(_gpu(k) for k in keys[:4]))
                for uuid, keys in list(twice.items())[:4]
            ),
            why="NCCL refuses two ranks on one GPU, or they share its time and memory",
            fixes=(
                Fix(do="see which hosts are one machine", command="nvidia-smi -L; cat /proc/sys/kernel/random/boot_id"),
            ),
            confirm="nvidia-smi -L on each of them",
            sources=("NVIDIA/nccl src/init.cc: Duplicate GPU detected",),
        )


@rule("GPU054", Severity.WARNING)
def gpu_slower_under_load(cluster: Cluster) -> Iterator[Finding]:
    """A loaded GPU runs at a lower clock than the other loaded ones of its model.

    It is hotter, gets less power, or is held back by its board: all ranks wait for it in every collective.

    Fix: see its temperature, power and clocks event reasons, and swap the host if cooling and limits are right.
    """
    loaded: dict[str, dict[tuple[str, int], Gpu]] = {}
    for host in cluster:
        for gpu in host.gpus or ():
            if (gpu.utilization_percent or 0) >= LOADED_PERCENT and gpu.sm_clock_mhz:
                loaded.setdefault(gpu.name, {})[host.name, gpu.index] = gpu
    if not any(len(gpus) >= MIN_LOADED for gpus in loaded.values()):
        raise NotKnown(f"compares GPUs under load: fewer than {MIN_LOADED} are")
    for model, gpus in loaded.items():
        usual = median([g.sm_clock_mhz or 0 for g in gpus.values()])
        slow = {k: g for k, g in gpus.items() if (g.sm_clock_mhz or 0) < SLOW_CLOCK_RATIO * usual}
        if len(gpus) < MIN_LOADED or not slow or len(slow) > len(gpus) / 2:
            continue
        worst = min(slow, key=lambda k: slow[k].sm_clock_mhz or 0)
        lost = 1 - (slow[worst].sm_clock_mhz or 0) / usual
        yield Finding(
            message=f"{_gpu(worst)} runs at {slow[worst].sm_clock_mhz} MHz under load; the other {model} at "
            f"{usual:.0f} MHz" + (f" ({len(slow) - 1} more are slow, too)" if len(slow) > 1 else ""),
            cause="gpu-throttled",
            severity=Severity.WARNING,
            confidence=Confidence.LIKELY,
            where=Where(hosts=tuple(dict.fromkeys(h for h, _ in slow)), gpus=tuple(sorted({i for _, i in slow}))),
            evidence=tuple(Evidence(text=_state(g), where=f"{_gpu(k)}: NVML") for k, g in list(slow.items())[:6]),
            why="the others wait for it in every collective",
            cost=f"up to {lost:.0%} of each step's compute, for all ranks (the ratio of the clocks)",
            fixes=(Fix(do="see what holds it back", command="nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER,CLOCK"),),
            confirm="a matrix multiplication on that GPU alone and on another (dcgmproftester)",
        )


def _state(g: Gpu) -> str:
    said = [f"{g.sm_clock_mhz} MHz"]
    said += [f"{g.temperature_c} C"] if g.temperature_c is not None else []
    said += [f"{g.power_w:.0f} W of {g.power_limit_w:.0f} W"] if g.power_w and g.power_limit_w else []
    said += [", ".join(g.throttle)] if g.throttle else []
    return ", ".join(said)


@rule("PCI050", Severity.WARNING)
def gpu_slots_differ(cluster: Cluster) -> Iterator[Finding]:
    """A GPU's PCIe link can do less than that of the others of its model.

    Its slot was brought up with fewer lanes or a lower generation, by a riser, a BIOS setting or a fault.

    Fix: reseat the card or riser, and compare the BIOS settings with those of another host.
    """
    hosts = _gpu_hosts(cluster)
    for model in sorted({g.name for h in hosts for g in h.gpus or ()}):
        values = {
            (h.name, g.index): (g.pci_gen_max, g.pci_width_max)
            for h in hosts
            for g in h.gpus or ()
            if g.name == model and g.pci_gen_max and g.pci_width_max
        }
        found = majority.split(values)
        if found is None or found.usual is None:
            continue
        (gen, width) = found.usual
        slower = [
            (k, v) for v, keys in found.others for k in keys if (v[0] or 0) < (gen or 0) or (v[1] or 0) < (width or 0)
        ]
        if not slower:
            continue
        names = tuple(dict.fromkeys(host for (host, _), _ in slower))
        (first, (slow_gen, slow_width)) = slower[0]
        yield Finding(
            message=f"{_gpu(first)} can do PCIe gen {slow_gen} x{slow_width} at most; the other {model} "
            f"gen {gen} x{width}" + (f" ({len(slower) - 1} more alike)" if len(slower) > 1 else ""),
            cause="pcie-degraded",
            where=Where(hosts=names, gpus=tuple(sorted({i for (_, i), _ in slower}))),
            evidence=tuple(
                Evidence(text=f"at most gen {v[0]} x{v[1]}", where=f"{_gpu(k)}: NVML") for k, v in slower[:4]
            ),
            why="copies to and from the host, and GPUDirect through this slot, are slower",
            fixes=(Fix(do=f"reseat the card or riser of {folded.hosts(names, most=4)}; compare BIOS settings"),),
            confirm="nvidia-smi -q -d PCIE, and a copy test (nvbandwidth) on both hosts",
        )


# -- network


def ports(host: Host) -> list[Nic]:
    """RDMA ports of hardware."""
    return [n for n in host.nics or () if n.kind in RDMA and not n.virtual]


def interfaces(host: Host) -> list[Nic]:
    """Ethernet interfaces that are up and there to stay."""
    return [n for n in host.nics or () if n.kind == "ethernet" and n.up and not PASSING.match(n.name)]


@rule("NIC050", Severity.WARNING)
def nic_count_differs(cluster: Cluster) -> Iterator[Finding]:
    """A host has fewer RDMA ports than its siblings.

    Its ranks share fewer rails, and NCCL's rings and trees are as fast as their slowest host.

    Fix: see whether the adapter is on the bus and its driver is loaded.
    """
    known_on(cluster, "nics")
    classes: dict[str | None, dict[str, int]] = {}
    for host in cluster:
        if host.nics is not None:
            classes.setdefault(host.product, {})[host.name] = len(ports(host))
    for counts in classes.values():
        found = majority.split(counts)
        if found is None:
            continue
        fewer = _fewer(found)
        all_names = Counter(n.name for h in cluster if h.name in counts and h.name not in fewer for n in ports(h))
        missing = {h.name: sorted(set(all_names) - {n.name for n in ports(h)}) for h in cluster if h.name in fewer}
        yield Finding(
            message=f"number of RDMA ports differs: {groups(found)}",
            cause="nic-missing",
            where=Where(hosts=fewer, nics=tuple(dict.fromkeys(n for names in missing.values() for n in names))[:16]),
            evidence=tuple(
                Evidence(
                    text=f"{counts[h]} ports" + (f"; without {', '.join(missing[h][:8])}" if missing.get(h) else ""),
                    where=f"{h}: /sys/class/infiniband",
                )
                for h in fewer[:4]
            ),
            why="rings and trees over all hosts are as fast as the host with the fewest rails",
            fixes=(
                Fix(do="see whether the adapter is on the bus", command="lspci -nn | grep -iE 'mellanox|15b3|1d0f'"),
                Fix(do="see what its driver said", command="dmesg -T | grep -iE 'mlx5|efa|ib_'"),
            ),
            confirm="ibv_devinfo -l on that host and on one of the others",
        )


def _per_nic(
    cluster: Cluster, value: Callable[[Nic], Any], of: Callable[[Host], Iterable[Nic]]
) -> Iterator[tuple[str, majority.Split[str, Any]]]:
    """For each NIC name, how the hosts of one product differ in it. NotKnown where two hosts know nothing of it."""
    known_on(cluster, "nics")
    known = False
    classes: dict[tuple[str | None, str], dict[str, Any]] = {}
    for host in cluster:
        for nic in of(host):
            if (v := value(nic)) is not None:
                classes.setdefault((host.product, nic.name), {})[host.name] = v
    for (_, name), values in classes.items():
        known |= len(values) > 1
        if found := majority.split(values):
            yield name, found
    if not known:
        raise NotKnown(nothing_to_compare(cluster))


def _nic_finding(
    found: Mapping[str, majority.Split[str, Any]], what: str, shown: Callable[[Any], str], **more: Any
) -> Finding:
    """One finding for all NICs that differ in the same thing."""
    hosts = tuple(dict.fromkeys(h for split in found.values() for h in split.outliers))
    name, first = next(iter(found.items()))
    rest = f" (and {len(found) - 1} more NICs alike)" if len(found) > 1 else ""
    return Finding(
        message=f"{what} of {name} differs: {groups(first, shown)}{rest}",
        where=Where(hosts=hosts, nics=tuple(found)),
        confidence=Confidence.CERTAIN if first.usual is not None else Confidence.LIKELY,
        evidence=tuple(
            Evidence(text=f"{n}: {what} {shown(value)}", where=f"{host}: /sys")
            for n, split in list(found.items())[:4]
            for value, keys in split.groups[:2]
            for host in keys[:1]
        ),
        **more,
    )


@rule("NIC051", Severity.WARNING)
def link_rates_differ(cluster: Cluster) -> Iterator[Finding]:
    """A NIC runs at another rate than the NIC of the same name on the other hosts.

    A cable, transceiver or switch port trained to a lower speed; all ranks wait for this host.

    Fix: check cable and switch port of this NIC, and set its speed.
    """
    found = dict(
        _per_nic(
            cluster,
            lambda n: n.gbit_per_s if n.up is not False else None,
            lambda h: [n for n in h.nics or () if not n.virtual and not PASSING.match(n.name)],
        )
    )
    if found:
        hosts = folded.hosts(dict.fromkeys(h for s in found.values() for h in s.outliers), most=4)
        yield _nic_finding(
            found,
            "link rate",
            lambda rate: f"{rate:g} Gbit/s",
            cause="nic-rate-low",
            why="rings and trees over all hosts are as fast as their slowest link",
            fixes=(
                Fix(do=f"check cable, transceiver and switch port on {hosts}", command=f"ibstat {next(iter(found))}"),
            ),
            confirm="smoldiag nccl-bench over these hosts: disjoint pairs name the slow one",
        )


@rule("NIC052", Severity.WARNING)
def firmware_differs(cluster: Cluster) -> Iterator[Finding]:
    """NICs of one kind have different firmware on different hosts.

    Firmware decides about congestion control, adaptive routing and known faults; a single old adapter is hard to find
    by its symptoms.

    Fix: bring the firmware of these NICs to that of the others (mlxfwmanager, or the cloud's image).
    """
    known_on(cluster, "nics")
    boards: dict[str, dict[tuple[str, str], str]] = {}
    for host in cluster:
        for nic in host.nics or ():
            if nic.firmware and not nic.virtual and (board := nic.board or nic.driver):
                boards.setdefault(board, {})[host.name, nic.name] = nic.firmware
    if not any(len({host for host, _ in nics}) > 1 for nics in boards.values()):
        raise NotKnown(nothing_to_compare(cluster))
    for board, nics in boards.items():
        found = majority.split(nics)
        if found is not None:
            yield _firmware(board, found)


def _firmware(board: str, found: majority.Split[tuple[str, str], str]) -> Finding:
    hosts = tuple(dict.fromkeys(host for host, _ in found.outliers))
    said = [
        f"{release} on {len(keys)} NICs of {folded.hosts(dict.fromkeys(h for h, _ in keys), most=4)}"
        if len(keys) > 1
        else f"{release} on {keys[0][1]} of {keys[0][0]}"
        for release, keys in found.others[:4]
    ]
    usual = f"; {found.usual} on the other {len(found.groups[0][1])}" if found.usual is not None else ""
    return Finding(
        message=f"firmware of NICs {board} differs: {'; '.join(said)}{usual}",
        cause="nic-firmware-differs",
        subject=board,
        where=Where(hosts=hosts, nics=tuple(dict.fromkeys(nic for _, nic in found.outliers))[:16]),
        evidence=tuple(
            Evidence(text=f"firmware {release}", where=f"{keys[0][0]}: /sys/class/infiniband/{keys[0][1]}/fw_ver")
            for release, keys in found.groups[:4]
        ),
        why="congestion control and adaptive routing have to fit on both ends",
        fixes=(Fix(do=f"update the firmware on {folded.hosts(hosts, most=4)}", command="mlxfwmanager --query"),),
        confirm="ibv_devinfo | grep fw_ver",
    )


@rule("NIC053", Severity.WARNING)
def interface_names_differ(cluster: Cluster) -> Iterator[Finding]:
    """An interface that the other hosts have is not there, or has another name.

    One value of NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME or NCCL_IB_HCA then fits some hosts only; without one, NCCL
    takes the first interface of each host, which need not reach the others.

    Fix: name the interface alike on all hosts (udev, netplan), or use a prefix that fits all.
    """
    hosts = known_on(cluster, "nics")
    names = {h.name: {n.name for n in interfaces(h)} for h in hosts}
    count = Counter(n for own in names.values() for n in own)
    usual = {n for n, c in count.items() if c > len(hosts) / 2}
    lacking = {host: sorted(usual - own) for host, own in names.items() if usual - own}
    if lacking:
        yield _names(names, lacking, usual, len(hosts))
    elif len(hosts) == 2 and all(own - usual for own in names.values()):
        first, second = (sorted(own - usual) for own in names.values())
        a, b = names
        yield _name_finding(
            f"{a} has {', '.join(first[:4])}, {b} has {', '.join(second[:4])}: the interfaces are named differently",
            tuple(names),
            names,
        )
    else:
        extra = {host: sorted(own - usual) for host, own in names.items() if own - usual}
        if extra and len(extra) < len(hosts) / 2:
            host, more = next(iter(extra.items()))
            said = (
                f"{folded.hosts(extra, most=4)} {'has' if len(extra) == 1 else 'have'} interfaces that the others lack"
            )
            on = f" on {host}" if len(extra) > 1 else ""
            found = _name_finding(f"{said}: {', '.join(more[:4])}{on}", tuple(extra), names)
            yield replace(found, severity=Severity.INFO)
    yield from _device_names(hosts)


def _names(names: Mapping[str, set[str]], lacking: Mapping[str, list[str]], usual: set[str], num_hosts: int) -> Finding:
    host, missing = next(iter(lacking.items()))
    instead = sorted(names[host] - usual)
    said = f"{host} has no interface {', '.join(missing[:4])} that is up" + (
        f", but {', '.join(instead[:4])}" if instead else ""
    )
    rest = len(lacking) - 1
    others = f"; {num_hosts - len(lacking)} other hosts have {', '.join(missing[:4])}"
    return _name_finding(f"{said}{f' ({rest} more hosts alike)' if rest else ''}{others}", tuple(lacking), names)


def _name_finding(message: str, hosts: tuple[str, ...], names: Mapping[str, set[str]]) -> Finding:
    return Finding(
        message=message,
        cause="interface-names-differ",
        where=Where(hosts=hosts),
        evidence=tuple(
            Evidence(text=f"up: {', '.join(sorted(names[h])[:8]) or 'none'}", where=f"{h}: /sys/class/net")
            for h in (*hosts[:3], *[h for h in names if h not in hosts][:1])
        ),
        why="one value of NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME does not fit all hosts",
        fixes=(
            Fix(do="list the interfaces of these hosts", command="ip -br addr"),
            Fix(do="name the interface alike on all hosts, or use a prefix or subnet that fits all"),
        ),
        confirm="smoldiag nccl-bench over these hosts, without --interface",
        sources=("NCCL user guide: NCCL_SOCKET_IFNAME",),
        explains=("socket-ifname-no-match",),
    )


def _device_names(hosts: list[Host]) -> Iterator[Finding]:
    """Verbs devices: as many on each host, but called otherwise."""
    values = {h.name: tuple(sorted(n.name for n in ports(h))) for h in hosts if ports(h)}
    found = majority.split(values)
    if found is None or len({len(v) for v in values.values()}) > 1:
        return
    yield Finding(
        message=f"names of RDMA devices differ: {groups(found, lambda v: ', '.join(v[:8]))}",
        cause="interface-names-differ",
        subject="RDMA devices",
        where=Where(hosts=found.outliers),
        evidence=tuple(
            Evidence(text=", ".join(value[:8]), where=f"{keys[0]}: /sys/class/infiniband")
            for value, keys in found.groups[:3]
        ),
        why="one value of NCCL_IB_HCA does not fit all hosts",
        fixes=(Fix(do="name the devices alike on all hosts (udev), or leave NCCL_IB_HCA unset"),),
        confirm="ibv_devinfo -l",
    )


@rule("NIC054", Severity.WARNING)
def mtus_differ(cluster: Cluster) -> Iterator[Finding]:
    """An interface has another MTU than on the other hosts.

    Frames that are larger than the receiver's MTU are dropped: small messages pass and large ones hang. RDMA takes the
    smaller of the two, and is slower.

    Fix: set the same MTU on all hosts and on the switch ports between them.
    """
    found = dict(
        _per_nic(
            cluster,
            lambda n: n.mtu if n.up is not False else None,
            lambda h: [n for n in h.nics or () if n.kind in RDMA or not PASSING.match(n.name)],
        )
    )
    if found:
        name, split = next(iter(found.items()))
        fix = Fix(do=f"the same MTU on {folded.hosts(split.outliers, most=4)}")
        if split.usual is not None:
            fix = Fix(do=fix.do, command=f"ip link set {name} mtu {split.usual}")
        yield _nic_finding(
            found,
            "MTU",
            str,
            cause="mtu-mismatch",
            why="frames larger than the receiver's MTU are dropped; RDMA falls back to the smaller MTU",
            fixes=(fix,),
            confirm="ping -M do -s 8972 ADDRESS between these hosts, for an MTU of 9000",
        )


@rule("NIC055", Severity.ERROR)
def nic_down_on_some_hosts(cluster: Cluster) -> Iterator[Finding]:
    """A NIC is down on a host, while the NIC of the same name is up on most others.

    Its siblings show that it is meant to be used; ranks of this host lose a rail or never connect.

    Fix: check its cable and switch port, and bring it up.
    """
    found = {
        name: split
        for name, split in _per_nic(
            cluster,
            lambda n: n.up,
            lambda h: [n for n in h.nics or () if not n.virtual and not PASSING.match(n.name)],
        )
        if split.usual is True
    }
    if found:
        name = next(iter(found))
        yield _nic_finding(
            found,
            "state",
            lambda up: "up" if up else "down",
            cause="ib-link-down-or-flapping",
            severity=Severity.ERROR,
            why="ranks there lose a rail, or find no way to the others",
            fixes=(Fix(do="check its cable and switch port, then bring it up", command=f"ip link set {name} up"),),
            confirm=f"ibstat {name}, or ip link show {name}",
        )


@rule("NIC056", Severity.ERROR)
def gid_indexes_differ(cluster: Cluster) -> Iterator[Finding]:
    """NCCL_IB_GID_INDEX is set, but on some hosts another entry is the RoCE v2 one.

    The index counts a table that each host fills in its own order; on these hosts it names another kind of address, and
    connections fail (status 12) or time out.

    Fix: unset NCCL_IB_GID_INDEX (NCCL 2.21 and later finds the right entry), or choose by subnet.
    """
    hosts = [h for h in known_on(cluster, "nics") if h.env is not None and h.env.get("NCCL_IB_GID_INDEX")]
    if len(hosts) < 2:
        if any(h.env is not None for h in cluster):
            return
        raise NotKnown(nothing_to_compare(cluster))
    values = {h.name: index for h in hosts if (index := _roce_v2_index(h)) is not None}
    found = majority.split(values)
    if found is None:
        return
    yield Finding(
        message=f"NCCL_IB_GID_INDEX is set, but the index of the RoCE v2 address differs: {groups(found)}",
        cause="roce-gid-index-wrong",
        severity=Severity.ERROR,
        where=Where(hosts=found.outliers),
        evidence=tuple(
            Evidence(text=f"RoCE v2 with IPv4 at index {value}", where=f"{keys[0]}: show_gids")
            for value, keys in found.groups
        ),
        why="a fixed index names another address on these hosts",
        fixes=(Fix(do="let NCCL choose", command="unset NCCL_IB_GID_INDEX"),),
        confirm="show_gids on each host",
        sources=("NCCL user guide: NCCL_IB_GID_INDEX",),
    )


def _roce_v2_index(host: Host) -> int | None:
    found = [
        gid.index
        for nic in ports(host)
        if nic.kind == "roce"
        for gid in nic.gids or ()
        if gid.kind == "RoCE v2" and ":ffff:" in gid.address.lower()
    ]
    return min(found, default=None)


@rule("NIC057", Severity.ERROR)
def nic_guid_twice(cluster: Cluster) -> Iterator[Finding]:
    """Two NICs have the same GUID.

    The subnet manager and connection managers take them for one: packets of one host end at the other.

    Fix: see whether one host is named twice; otherwise have the adapter's GUID set anew.
    """
    owners: dict[str, list[tuple[str, str]]] = {}
    for host in known_on(cluster, "nics"):
        for guid, nic in dict.fromkeys((n.guid, n.device or n.name) for n in ports(host) if n.guid):
            if guid and guid.strip("0:"):
                owners.setdefault(guid, []).append((host.name, nic))
    if not owners:
        raise NotKnown(nothing_to_compare(cluster))
    for guid, keys in owners.items():
        hosts = tuple(dict.fromkeys(host for host, _ in keys))
        if len(hosts) > 1:
            yield Finding(
                message=f"GUID {guid} is that of {' and '.join(f'{nic} of {host}' for host, nic in keys[:3])}",
                cause="guid-twice",
                severity=Severity.ERROR,
                where=Where(hosts=hosts, nics=tuple(dict.fromkeys(nic for _, nic in keys))),
                evidence=tuple(Evidence(text=guid, where=f"{host}: {nic}") for host, nic in keys[:4]),
                why="the network takes two adapters for one",
                fixes=(
                    Fix(do="see whether these are one machine; else set the GUID anew", command="ibstat | grep GUID"),
                ),
                confirm="ibstat on both hosts",
            )


@rule("TOP050", Severity.WARNING)
def topologies_differ(cluster: Cluster) -> Iterator[Finding]:
    """GPUs and NICs of a host lie otherwise on its NUMA nodes than on its siblings.

    NCCL pairs each GPU with a NIC near to it; where they lie otherwise, rails do not match, and traffic crosses the
    sockets or the spine switches.

    Fix: compare BIOS settings (NUMA nodes per socket, PCIe), slots and the VM's topology with another host.
    """
    usual = Counter((len(h.gpus or ()), len(ports(h))) for h in cluster).most_common(1)[0][0]
    things = [
        Compared(
            what="layout of GPUs and NICs on NUMA nodes",
            value=lambda h: _shape(h) if (len(h.gpus or ()), len(ports(h))) == usual else None,
            seen_in="nvidia-smi topo -m",
            same_model_only=True,
        )
    ]
    yield from differences(
        cluster,
        things,
        cause="topology-differs",
        why="NCCL pairs GPUs with NICs by distance; rails that do not match cross sockets and spine switches",
        fix=lambda hosts, what: (
            Fix(do=f"compare BIOS settings and slots of {hosts} with another host", command="nvidia-smi topo -m"),
        ),
        confirm="nvidia-smi topo -m on both",
    )


def _shape(host: Host) -> str | None:
    """How many GPUs and RDMA ports are on each NUMA node."""
    gpus = Counter(g.numa_node for g in host.gpus or () if g.numa_node is not None)
    nics = Counter(n.numa_node for n in ports(host) if n.numa_node is not None)
    if not gpus:
        return None

    def said(counts: Mapping[int, int]) -> str:
        return " ".join(f"{node}:{counts[node]}" for node in sorted(counts))

    return f"GPUs {said(gpus)}" + (f", RDMA ports {said(nics)}" if nics else "")
