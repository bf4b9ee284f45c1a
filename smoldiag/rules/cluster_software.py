"""VER, ENV, HST: what the hosts of a job have in software, variables and limits, compared."""

from collections.abc import Callable, Hashable, Iterator, Sequence

from smoldiag.facts import Cluster, Evidence, Host
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.knowledge import variables
from smoldiag.model import folded, majority
from smoldiag.model.sizes import human
from smoldiag.model.stats import median
from smoldiag.rules import NotKnown, rule
from smoldiag.rules.comparing import Compared, differences, groups, known_on, nothing_to_compare

MISMATCH = "env-or-version-mismatch-across-ranks"
SKEW_S = 1.0  # beyond it the logs of two hosts can't be put into one order
ELASTIC_S = 15.0  # torch's dynamic_rendezvous.py: keep_alive_interval 5 s times keep_alive_max_attempt 3
MEMORY_TOLERANCE = 0.05  # firmware and kernel take a little more or less on equal machines
NOT_SET = "not set"
# Kernel modules that training notices the lack of, without those that are loaded at their first use (nvidia_uvm).
MODULES = ("nvidia_peermem", "nv_peer_mem", "gdrdrv", "efa", "mlx5_ib", "ib_uverbs", "irdma", "bnxt_re")
SHARED_FILE_SYSTEMS = ("lustre", "nfs", "nfs4", "wekafs", "gpfs", "beegfs", "ceph", "fuse.ceph", "glusterfs", "vast")
NCCL_CHECKS = "NVIDIA/nccl src/init.cc: Mismatched NCCL version detected"
OWN_PER_JOB = ("SLURM_", "PMI_", "OMPI_COMM_WORLD_", "TORCHELASTIC_RUN_ID")  # set by launchers, by host and rank


def version(key: str, what: str, severity: Severity = Severity.WARNING) -> Compared:
    def value(host: Host) -> str | None:
        return (host.versions or {}).get(key)

    return Compared(what=what, value=value, seen_in=f"version of {what}", severity=severity)


def same_version(hosts: str, what: str) -> Sequence[Fix]:
    return (Fix(do=f"bring {what} on {hosts} to the version of the other hosts, e.g. with the same image"),)


@rule("VER050", Severity.ERROR)
def nccl_versions_differ(cluster: Cluster) -> Iterator[Finding]:
    """The hosts would load different versions of NCCL.

    NCCL compares the versions of all ranks when a communicator is made, and refuses to run (ncclInvalidUsage);
    older releases hang or send data of the wrong size.

    Fix: run the same container image or Python environment on every host.
    """
    yield from differences(
        cluster,
        [version("nccl", "NCCL", Severity.ERROR)],
        cause=MISMATCH,
        why="ncclCommInitRank fails where two ranks have different versions",
        fix=same_version,
        confirm="smoldiag nccl-bench over these hosts",
        sources=(NCCL_CHECKS,),
        explains=("collective-mismatch",),
    )


def _torch(host: Host) -> str | None:
    found = host.versions or {}
    cuda = f" for CUDA {found['torch_cuda']}" if "torch_cuda" in found else ""
    return f"{found['torch']}{cuda}" if "torch" in found else None


@rule("VER051", Severity.WARNING)
def torch_versions_differ(cluster: Cluster) -> Iterator[Finding]:
    """The hosts have different versions of torch, or torch for different CUDA versions.

    Ranks of different torch releases may issue other collectives, or the same in another order.

    Fix: run the same container image or Python environment on every host.
    """
    yield from differences(
        cluster,
        [Compared(what="torch", value=_torch, seen_in="version of torch")],
        cause=MISMATCH,
        why="ranks of different releases need not issue the same collectives",
        fix=same_version,
        confirm="smoldiag nccl-bench over these hosts",
    )


@rule("VER052", Severity.WARNING)
def driver_versions_differ(cluster: Cluster) -> Iterator[Finding]:
    """The hosts have different NVIDIA drivers or CUDA versions.

    What a driver can (NVLS, DMA-BUF, cuMem) decides which paths NCCL takes, and NCCL takes the least that all have.

    Fix: bring the driver of these hosts to the version of the others.
    """
    things = [version("driver", "NVIDIA driver"), version("driver_flavour", "kind of NVIDIA driver")]
    yield from differences(
        cluster,
        [*things, version("cuda", "CUDA"), version("imex", "nvidia-imex")],
        cause="driver-versions-differ",
        why="a path that one driver lacks is off for all ranks, or fails on that host alone",
        fix=same_version,
        confirm="nvidia-smi --query-gpu=driver_version --format=csv",
    )


@rule("VER053", Severity.WARNING)
def network_software_differs(cluster: Cluster) -> Iterator[Finding]:
    """The hosts have different network plugins, libfabric, OFED or EFA software.

    Both ends of a connection have to speak the same protocol of the plugin; mixed releases fail to connect or fall
    back to another transport on some hosts.

    Fix: install the same release on all hosts, plugin and libfabric together.
    """
    names = {
        "ofi_nccl": "aws-ofi-nccl",
        "libfabric": "libfabric",
        "efa": "EFA driver",
        "efa_installer": "EFA installer",
        "ofed": "OFED",
        "doca_ofed": "DOCA-OFED",
        "gdrdrv": "GDRCopy driver",
    }
    yield from differences(
        cluster,
        [version(key, what) for key, what in names.items()],
        cause="network-software-differs",
        why="plugin and libfabric on both ends of a connection have to fit",
        fix=same_version,
        confirm="NCCL_DEBUG=INFO: the lines NET/ of each host",
    )


@rule("VER054", Severity.WARNING)
def kernels_differ(cluster: Cluster) -> Iterator[Finding]:
    """The hosts run different kernels or distributions.

    A host that missed an update, or got one that the others did not, is where the next difference shows.

    Fix: bring these hosts to the kernel of the others and reboot them.
    """
    things = [
        Compared(what="kernel", value=lambda h: h.system.kernel if h.system else None, seen_in="uname -r"),
        Compared(
            what="distribution",
            value=lambda h: h.system.distribution if h.system else None,
            seen_in="/etc/os-release",
            severity=Severity.INFO,
        ),
    ]
    yield from differences(
        cluster,
        things,
        cause="kernels-differ",
        why="drivers, RDMA and file systems behave differently by kernel",
        fix=lambda hosts, what: (Fix(do=f"bring {hosts} to the {what} of the other hosts"),),
    )


# -- variables


def _variable(name: str) -> Callable[[Host], Hashable | None]:
    def value(host: Host) -> str | None:
        if host.env is None:
            return None
        found = host.env.get(name)
        return found if found is not None else NOT_SET if host.env.complete else None

    return value


def _names(cluster: Cluster) -> list[str]:
    """Of all variables that are set on a host."""
    return sorted({v.name for h in known_on(cluster, "env") for v in h.env or ()})


def _differing(cluster: Cluster, names: Sequence[str], severity: Callable[[str], Severity]) -> Iterator[Finding]:
    for name in names:
        values = {h.name: v for h in cluster if (v := _variable(name)(h)) is not None}
        found = majority.split({host: str(value) for host, value in values.items()})
        if found is None:
            continue
        by_name = {h.name: h for h in cluster}
        outliers = found.outliers
        seen = tuple(
            Evidence(text=e.text, where=f"{host}: {e.where}")
            for host in (*outliers[:3], *found.groups[0][1][:1])
            for e in (by_name[host].env.evidence(name) if by_name[host].env else ())  # type: ignore[union-attr]
        )
        spec = variables.find(name)
        yield Finding(
            message=f"{name} differs between hosts: {groups(found)}",
            cause=MISMATCH,
            subject=name,
            severity=severity(name),
            confidence=Confidence.CERTAIN if found.usual is not None else Confidence.LIKELY,
            where=Where(hosts=outliers),
            evidence=tuple(dict.fromkeys(seen)),
            why=f"{spec.does}; ranks do not compare it with each other" if spec else "ranks do not compare it",
            fixes=(_fix(name, found, by_name),),
            confirm="smoldiag nccl-bench over these hosts, with the values made equal",
            sources=(spec.source,) if spec else (),
            explains=("collective-mismatch",) if severity(name) is Severity.ERROR else (),
        )


def _fix(name: str, found: majority.Split[str, str], hosts: dict[str, Host]) -> Fix:
    where = folded.hosts(found.outliers, most=4)
    if found.usual is None:
        return Fix(do=f"set {name} to one value on all hosts, or unset it on all")
    first = hosts[found.outliers[0]]
    variable = first.env.find(name) if first.env else None
    if variable is not None and variable.origin.startswith(("/", "~")) and not variable.origin.startswith("/proc"):
        file, _, line = variable.origin.rpartition(":")
        if found.usual == NOT_SET and file and line.isdecimal():
            return Fix(do=f"on {where}: remove {name} from {file}", command=f"sed -i '{line}d' {file}")
        return Fix(do=f"on {where}: set {name}={found.usual} in {file or variable.origin}, as on the other hosts")
    if found.usual == NOT_SET:
        return Fix(
            do=f"on {where}: take {name} out of what sets it (profile, image, job script)", command=f"unset {name}"
        )
    return Fix(do=f"the same on all hosts, {where} included", command=f"export {name}={found.usual}")


@rule("ENV050", Severity.ERROR)
def variables_that_must_match_differ(cluster: Cluster) -> Iterator[Finding]:
    """A variable that has to be the same on all ranks differs between hosts.

    NCCL reads algorithm, protocol, buffer sizes and transports on each rank for itself, without asking the others:
    where they differ, collectives hang, fail with truncated messages, or give wrong data.

    Fix: set it to one value for all ranks, in the job script rather than in a file of one host.
    """
    must = variables.must_match()
    names = [n for n in _names(cluster) if n in must and not n.startswith(OWN_PER_JOB)]
    yield from _differing(cluster, names, lambda name: Severity.ERROR)


@rule("ENV051", Severity.WARNING)
def variables_differ(cluster: Cluster) -> Iterator[Finding]:
    """A variable that concerns training differs between hosts.

    It need not be the same everywhere, but a host that differs by accident is slower or behaves differently.

    Fix: set it to one value for all ranks, unless the difference is meant.
    """
    apart = variables.must_match() | variables.may_differ()
    names = [n for n in _names(cluster) if n not in apart and not n.startswith(OWN_PER_JOB)]

    def severity(name: str) -> Severity:
        spec = variables.find(name)
        return Severity.WARNING if spec is not None and spec.match == "recommended" else Severity.INFO

    yield from _differing(cluster, names, severity)


# -- limits, clocks, identities


def _limit(field: str, what: str, seen_in: str, *, size: bool, tolerance: float = 0.0, cause: str = "") -> Compared:
    def value(host: Host) -> float | None:
        return getattr(host.limits, field) if host.limits else None

    def shown(amount: float) -> str:
        return "unlimited" if amount == -1 else human(int(amount)) if size else f"{round(amount, 2):.10g}"

    return Compared(what=what, value=value, seen_in=seen_in, shown=shown, tolerance=tolerance, cause=cause)


@rule("HST050", Severity.WARNING)
def limits_differ(cluster: Cluster) -> Iterator[Finding]:
    """A limit on what a process may use differs between hosts.

    Locked memory, open files or /dev/shm run out on this host while the others go on; the job then hangs or dies there.

    Fix: raise it on these hosts as on the others: limits.conf, the unit of slurmd or sshd, or the container's options.
    """
    t = MEMORY_TOLERANCE
    things = [
        _limit("memlock_bytes", "limit of locked memory", "ulimit -l", size=True, cause="memlock-limit"),
        _limit("nofile", "limit of open files", "ulimit -n", size=False, cause="open-files-limit"),
        _limit("nproc", "limit of processes", "ulimit -u", size=False, tolerance=t),
        _limit("stack_bytes", "limit of the stack", "ulimit -s", size=True),
        _limit("shm_bytes", "size of /dev/shm", "df /dev/shm", size=True, tolerance=t, cause="dev-shm-too-small"),
        _limit("cgroup_memory_bytes", "memory limit of the control group", "memory.max", size=True, tolerance=t),
        _limit("cgroup_cpus", "CPU limit of the control group", "cpu.max", size=False, tolerance=t),
        _limit("cgroup_pids", "process limit of the control group", "pids.max", size=False, tolerance=t),
    ]

    def fix(hosts: str, what: str) -> Sequence[Fix]:
        if what == "limit of locked memory":
            return (
                Fix(
                    do=f"raise it on {hosts}: LimitMEMLOCK=infinity in the unit of slurmd or sshd, or limits.conf",
                    command="echo '* - memlock unlimited' > /etc/security/limits.d/memlock.conf",
                ),
            )
        return (Fix(do=f"set the {what} on {hosts} as on the other hosts"),)

    yield from differences(
        cluster,
        things,
        cause="limits-differ",
        why="what runs out on one host stops the whole job; the other hosts show nothing",
        fix=fix,
        confirm="srun --ntasks-per-node=1 sh -c 'hostname; ulimit -a', or the same over ssh",
    )


@rule("HST051", Severity.WARNING)
def clocks_differ(cluster: Cluster) -> Iterator[Finding]:
    """The clock of a host is ahead of or behind those of the others.

    Logs and traces of such a host can't be put into order with the others. From 15 s on torchrun's c10d rendezvous
    takes the host for dead: it compares heartbeats with its own clock.

    Fix: start a time service (chrony, systemd-timesyncd) on this host.
    """
    clocks = {
        h.name: h.clock
        for h in cluster
        if h.clock and h.clock.offset_s is not None and h.clock.uncertainty_s is not None
    }
    if len(clocks) < 2:
        raise NotKnown(nothing_to_compare(cluster))
    offsets = {name: c.offset_s or 0.0 for name, c in clocks.items()}
    # Of two hosts the one that agrees with the clock of the head is right.
    right = median(list(offsets.values())) if len(offsets) > 2 else 0.0
    wrong = {
        name: offset - right
        for name, offset in offsets.items()
        if abs(offset - right) > SKEW_S + (clocks[name].uncertainty_s or 0.0)
    }
    if len(offsets) == 2 and len(wrong) == 2 and abs(_between(offsets)) <= SKEW_S:
        return  # it is the head's clock that differs
    if not wrong:
        return
    worst = max(wrong, key=lambda name: abs(wrong[name]))
    most = abs(wrong[worst])
    yield Finding(
        message=f"the clock of {folded.hosts(wrong, most=4)} differs from the others by up to {_seconds(most)} "
        f"({worst} is {'ahead' if wrong[worst] > 0 else 'behind'})",
        cause="clock-skew",
        where=Where(hosts=tuple(wrong)),
        evidence=tuple(
            Evidence(
                text=f"{_seconds(abs(offsets[name]))} {'ahead of' if offsets[name] > 0 else 'behind'} the clock of the "
                f"command, give or take {_seconds(clocks[name].uncertainty_s or 0.0)}",
                where=f"{name}: its clock, asked over the connection to it",
            )
            for name in list(wrong)[:4]
        ),
        why="torchrun's c10d rendezvous drops a host whose heartbeats look older than 15 s"
        if most > ELASTIC_S
        else "logs, traces and timeouts of the hosts can't be compared",
        fixes=(
            Fix(do=f"start a time service on {folded.hosts(wrong, most=4)}", command="systemctl enable --now chronyd"),
        ),
        confirm="chronyc tracking, or timedatectl, on that host",
        sources=("torch/distributed/elastic/rendezvous/dynamic_rendezvous.py: last_heartbeats",),
    )


def _between(offsets: dict[str, float]) -> float:
    first, second = offsets.values()
    return first - second


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if abs(value) >= 0.1 else f"{value * 1000:.1f} ms"


@rule("HST052", Severity.ERROR)
def host_identity_twice(cluster: Cluster) -> Iterator[Finding]:
    """Two hosts look like one: NCCL's host id, the host name or an address occurs twice.

    NCCL takes ranks with one id for neighbours and tries shared memory and CUDA IPC between machines; by one name or
    address only one of the two is reached.

    Fix: give each host its own name and address, or set NCCL_HOSTID to something of its own on each.
    """
    hosts = known_on(cluster, "system")
    seen: set[tuple[str, ...]] = set()
    for what, of, severity in (
        ("NCCL's host id", _host_ids, Severity.ERROR),
        ("the address", _addresses, Severity.ERROR),
        ("the host name", _own_names, Severity.WARNING),
    ):
        owners: dict[str, list[str]] = {}
        for host in hosts:
            for value in of(host):
                owners.setdefault(value, []).append(host.name)
        for value, names in owners.items():
            if len(names) < 2 or tuple(names) in seen:
                continue
            seen.add(tuple(names))
            yield Finding(
                message=f"{what} {value} is that of {len(names)} hosts: {folded.hosts(names, most=4)}",
                cause="hostname-collision",
                subject=value,
                severity=severity,
                where=Where(hosts=tuple(names)),
                evidence=tuple(Evidence(text=f"{what} {value}", where=name) for name in names[:4]),
                why="NCCL takes ranks with one host id for neighbours, and tries shared memory between them"
                if what == "NCCL's host id"
                else "others reach only one of the two",
                fixes=(
                    Fix(do="give each host its own name", command="hostnamectl set-hostname NAME"),
                    Fix(do="or tell NCCL on each host", command="export NCCL_HOSTID=$(cat /etc/machine-id)-NAME"),
                )
                if what != "the address"
                else (Fix(do="give each host its own address, and see who answers", command=f"arping -D {value}"),),
                confirm="run hostname; cat /proc/sys/kernel/random/boot_id on both",
                sources=("NVIDIA/nccl src/misc/utils.cc: getHostHash",),
            )


def _host_ids(host: Host) -> list[str]:
    return [host.system.host_id] if host.system and host.system.host_id else []


def _own_names(host: Host) -> list[str]:
    """Its host names in full; ids and addresses among its aliases are no names."""
    ids = set((host.ids or {}).values())
    own = [n for n in (host.name, *host.aliases) if n not in ids and not n[:1].isdigit() and ":" not in n]
    return [n for n in dict.fromkeys(own) if not any(other.startswith(f"{n}.") for other in own)]


def _addresses(host: Host) -> list[str]:
    found = []
    for nic in host.nics or ():
        if nic.kind != "ethernet" or (nic.virtual and not nic.name.startswith(("eth", "en", "bond", "ib"))):
            continue  # docker0 and its like have the same address everywhere
        for address in nic.addresses or ():
            ip, _, prefix = address.partition("/")
            if not ip.startswith(("127.", "169.254.", "fe80")) and ip != "::1" and prefix not in ("32", "128"):
                found.append(ip)
    return list(dict.fromkeys(found))


@rule("HST053", Severity.WARNING)
def machines_differ(cluster: Cluster) -> Iterator[Finding]:
    """Memory, processors or NUMA nodes of a host differ from those of its siblings.

    A memory module or a processor that was disabled after a fault, or another BIOS setting.

    Fix: see the firmware's event log of this host (ipmitool sel list), and its BIOS settings.
    """
    things = [
        Compared(
            what="memory",
            value=lambda h: h.system.memory_bytes if h.system else None,
            seen_in="/proc/meminfo",
            shown=lambda v: human(int(v)),
            tolerance=MEMORY_TOLERANCE,
            same_model_only=True,
        ),
        Compared(
            what="NUMA nodes",
            value=lambda h: h.system.numa_nodes if h.system else None,
            seen_in="lscpu",
            same_model_only=True,
        ),
        Compared(
            what="processor", value=lambda h: h.cpu.model if h.cpu else None, seen_in="lscpu", same_model_only=True
        ),
        Compared(
            what="number of cores",
            value=lambda h: h.cpu.cores if h.cpu else None,
            seen_in="lscpu",
            same_model_only=True,
        ),
        Compared(
            what="hardware threads of a core",
            value=lambda h: h.cpu.smt if h.cpu else None,
            seen_in="/sys/devices/system/cpu/smt/active",
            shown=lambda v: "on" if v else "off",
            same_model_only=True,
        ),
    ]
    yield from differences(
        cluster,
        things,
        cause="machines-differ",
        why="the slowest host sets the pace of all ranks",
        fix=lambda hosts, what: (
            Fix(do=f"see what the firmware of {hosts} says about its {what}", command="ipmitool sel list"),
        ),
        confirm="lscpu; free -g on these hosts and one of the others",
    )


@rule("HST054", Severity.WARNING)
def kernel_settings_differ(cluster: Cluster) -> Iterator[Finding]:
    """IOMMU, CPU governor, NUMA balancing, huge pages or virtualisation differ between hosts.

    Such a host copies more slowly, or takes other paths to its NICs.

    Fix: boot and tune these hosts as the others.
    """

    def of_system(field: str) -> Callable[[Host], Hashable | None]:
        return lambda h: getattr(h.system, field) if h.system else None

    def of_cpu(field: str) -> Callable[[Host], Hashable | None]:
        return lambda h: getattr(h.cpu, field) if h.cpu else None

    things = [
        Compared(
            what="IOMMU", value=of_system("iommu"), seen_in="/proc/cmdline", same_model_only=True, cause="iommu-on"
        ),
        Compared(
            what="virtualisation", value=of_system("virtual"), seen_in="systemd-detect-virt", same_model_only=True
        ),
        Compared(
            what="CPU governor",
            value=of_cpu("governor"),
            seen_in="scaling_governor",
            same_model_only=True,
            cause="cpu-governor-powersave",
        ),
        Compared(
            what="NUMA balancing",
            value=of_cpu("numa_balancing"),
            seen_in="/proc/sys/kernel/numa_balancing",
            shown=lambda v: "on" if v else "off",
        ),
        Compared(
            what="number of huge pages",
            value=of_system("hugepages_total"),
            seen_in="/proc/meminfo",
            tolerance=MEMORY_TOLERANCE,
            severity=Severity.INFO,
        ),
        Compared(
            what="container",
            value=lambda h: h.container.kind if h.container else None,
            seen_in="where the ranks would run",
            severity=Severity.INFO,
        ),
    ]
    yield from differences(
        cluster,
        things,
        cause="kernel-settings-differ",
        why="the slowest host sets the pace of all ranks",
        fix=lambda hosts, what: (Fix(do=f"set {what} on {hosts} as on the other hosts"),),
    )


@rule("HST055", Severity.WARNING)
def kernel_modules_missing(cluster: Cluster) -> Iterator[Finding]:
    """A kernel module that the other hosts have is not loaded on this one.

    Without nvidia_peermem, GDRCopy or the RDMA drivers a host takes slower paths, or none.

    Fix: load it, and see why it was not loaded at boot.
    """
    hosts = [h for h in known_on(cluster, "system") if h.system and h.system.modules is not None]
    if len(hosts) < 2:
        raise NotKnown(nothing_to_compare(cluster))
    for module in MODULES:
        there = {h.name: module in (h.system.modules or ()) for h in hosts if h.system}
        found = majority.split(there)
        if found is None or not found.groups[0][0]:  # on a few hosts only: they may have other hardware
            continue
        without = tuple(name for name, loaded in there.items() if not loaded)
        yield Finding(
            message=f"kernel module {module} is not loaded on {folded.hosts(without, most=4)}, but on "
            f"{len(hosts) - len(without)} other hosts",
            cause="kernel-module-missing",
            subject=module,
            where=Where(hosts=without),
            evidence=tuple(Evidence(text=f"{module} is not there", where=f"{h}: /proc/modules") for h in without[:4]),
            why="GPUDirect and RDMA need it on both ends",
            fixes=(Fix(do=f"load it on {folded.hosts(without, most=4)}", command=f"modprobe {module}"),),
            confirm=f"lsmod | grep {module}",
        )


def _is_automounted(host: Host, path: str) -> bool:
    """Mounted when somebody goes there, and not before."""
    return any(m.kind == "autofs" and f"{path}/".startswith(f"{m.path.rstrip('/')}/") for m in host.mounts or ())


@rule("HST056", Severity.WARNING)
def shared_mount_missing(cluster: Cluster) -> Iterator[Finding]:
    """A shared file system that the other hosts have is not mounted on this one.

    Ranks there find no data, or write their checkpoints into a local folder of the same name.

    Fix: mount it on this host.
    """
    hosts = known_on(cluster, "mounts")
    shared = {
        h.name: {m.path: m for m in h.mounts or () if m.kind in SHARED_FILE_SYSTEMS or m.device_kind == "network"}
        for h in hosts
    }
    paths = sorted({path for mounts in shared.values() for path in mounts})
    for path in paths:
        owners = [name for name, mounts in shared.items() if path in mounts]
        without = tuple(h.name for h in hosts if h.name not in owners and not _is_automounted(h, path))
        if not without or len(owners) <= len(without):  # home folders and the like come and go
            continue
        mount = shared[owners[0]][path]
        yield Finding(
            message=f"{path} ({mount.kind}) is not mounted on {folded.hosts(without, most=4)}, but on {len(owners)} "
            "other hosts",
            cause="shared-mount-missing",
            subject=path,
            where=Where(hosts=without),
            evidence=(Evidence(text=f"{mount.source} on {path}", where=f"{owners[0]}: /proc/mounts"),),
            why="ranks there find no data, or write checkpoints where nobody looks for them",
            fixes=(Fix(do=f"mount it on {folded.hosts(without, most=4)}", command=f"mount {path}"),),
            confirm=f"findmnt {path}",
        )
