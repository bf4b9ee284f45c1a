"""HST: limits, memory, processors, IOMMU, file systems and containers of one host."""

from collections.abc import Iterator, Mapping

from smoldiag.facts import Clock, Container, Cpu, Evidence, Gpu, Limits, Mount, Nic, PciDevice, System
from smoldiag.findings import Confidence, Finding, Fix, Severity
from smoldiag.model.machine import NVIDIA, compute_nics, gpu_count, has_rdma, needs_peer_access, pci_gpus, rdma_ports
from smoldiag.model.sizes import human as size
from smoldiag.rules import rule
from smoldiag.rules.forms import fix, in_container

Gpus = tuple[Gpu, ...] | None
Pci = tuple[PciDevice, ...] | None

GIB = 1 << 30
MIB = 1 << 20
MEMLOCK_ENOUGH = 16 * GIB  # below it the health check of AWS's distributed-training images warns
MEMLOCK_FAILS = GIB  # a process of 8 GPUs registers more than that; kernels default to 64 KiB or 8 MiB
NOFILE_LOW = 1024  # the usual soft limit; 32 ranks used it up (goodfire-ai/spd pull 957)
SHM_FAILS = 128 * MIB  # docker gives 64 MiB; NCCL takes some MiB per pair of ranks and channel
SHM_ENOUGH = GIB  # what NCCL's troubleshooting page gives docker
SHM_FULL = 64 * MIB  # free bytes
CPUS_PER_GPU = 3  # the training loop, NCCL's proxy and one loader; fewer and they wait for each other
FREE_PERCENT_LOW = 5
FREE_BYTES_LOW = 50 * GIB  # a checkpoint of a 7B model with its optimizer takes about 84 GB
INODES_PERCENT_LOW = 2
PIDS_LOW = 1024  # 8 ranks with 8 loaders each, their threads counted
PORTS_LOW = 1024  # for all ranks of a host; one rank alone listens on dozens
NCCL_SETS_STACK = (2, 28)  # from then on NCCL gives its threads a stack that suffices
NVSWITCHES = {"1ac2", "1af1", "22a3"}  # PCI devices of DGX-2, A100 and H100 systems
READ_ONLY = {"squashfs", "erofs", "iso9660"}

NCCL_TROUBLE = "NCCL user guide, Troubleshooting"
NCCL_RUNTIME = f"{NCCL_TROUBLE}: Runtime and MPI issues"
NCCL_IB = f"{NCCL_TROUBLE}: Networking troubleshooting, InfiniBand"
NCCL_PCI = f"{NCCL_TROUBLE}: GPU troubleshooting, PCI Access Control Services (ACS)"
CONFIRM_RDMA = "smoldiag nccl-bench: with too little, registration fails before the first collective"


@rule("HST003", Severity.ERROR)
def memlock_too_small_for_rdma(
    limits: Limits, nics: tuple[Nic, ...], pci: Pci, container: Container | None, gpus: Gpus
) -> Iterator[Finding]:
    """The limit of locked memory is too small for RDMA.

    Verbs devices pin the memory that they read and write. Registration fails with "Cannot allocate memory"
    (ibv_reg_mr, libfabric -12), unless the process has CAP_IPC_LOCK on the host.

    Fix: ulimit -l unlimited where the job is started: limits.conf, LimitMEMLOCK of slurmd, --ulimit memlock=-1.
    """
    soft = limits.memlock_bytes
    if soft is None or soft < 0 or soft >= MEMLOCK_ENOUGH or not has_rdma(compute_nics(nics, pci)):
        return
    if gpu_count(gpus, pci, container) == 0 or _has_no_verbs(container):
        return
    free_of_it = bool(container and "ipc_lock" in (container.capabilities or ()))
    severity = Severity.ERROR if soft < MEMLOCK_FAILS else Severity.WARNING
    raise_it = (
        "ulimit -l unlimited"
        if limits.memlock_hard_bytes in (-1, None)
        else "echo '* - memlock unlimited' | sudo tee /etc/security/limits.d/rdma.conf  # then log in again"
    )
    yield Finding(
        message=f"locked memory is limited to {size(soft)}"
        + (", which does not bind this process (it has CAP_IPC_LOCK) but any job without it" if free_of_it else ""),
        cause="memlock-limit",
        severity=Severity.INFO if free_of_it else severity,
        confidence=Confidence.POSSIBLE if free_of_it else Confidence.CERTAIN,
        evidence=(Evidence(text=f"Max locked memory {soft}", where="/proc/self/limits (ulimit -l)"),),
        why="RDMA pins its buffers; what cannot be locked cannot be registered",
        fixes=(
            fix(
                container,
                "lift the limit",
                host=raise_it,
                docker="--ulimit memlock=-1:-1",
                kubernetes='securityContext: {capabilities: {add: ["IPC_LOCK"]}}',
                apptainer="ulimit -l unlimited  # in the shell that starts apptainer",
                enroot="ulimit -l unlimited  # in the job script, before srun",
            ),
            *(
                ()
                if in_container(container)
                else (
                    Fix(
                        do="for jobs of Slurm, in slurmd's unit (systemctl edit slurmd)",
                        command="LimitMEMLOCK=infinity",
                    ),
                )
            ),
        ),
        confirm=CONFIRM_RDMA,
        sources=(NCCL_IB, "libfabric fi_efa(7)", "ibv_reg_mr(3)"),
        explains=("busbw-below-expected", "net-socket-fallback", "rank-died"),
    )


def _has_no_verbs(container: Container | None) -> bool:
    """A container into which no RDMA device was passed: another rule's case."""
    if container is None or container.kind == "none" or container.devices is None:
        return False
    return not any("/uverbs" in d for d in container.devices)


@rule("HST004", Severity.WARNING)
def few_open_files(
    limits: Limits, gpus: Gpus, pci: Pci, nics: tuple[Nic, ...] | None, container: Container | None
) -> Iterator[Finding]:
    """The soft limit of open files is so low that jobs of some nodes run out of it.

    Every rank holds sockets to its peers, files of CUDA and of data loaders. With 1024, jobs fail from about four
    nodes on with "Too many open files", while one node never shows it.

    Fix: ulimit -n to the hard limit in the job script, or LimitNOFILE of the service that starts it.
    """
    soft, count = limits.nofile, gpu_count(gpus, pci, container)
    if soft is None or soft < 0 or soft > NOFILE_LOW or not count or count < 2:
        return
    many = count >= 4 and has_rdma(nics or ())
    target = limits.nofile_hard if limits.nofile_hard and limits.nofile_hard > NOFILE_LOW else 65536
    yield Finding(
        message=f"a process may open {soft} files here, with {count} GPUs",
        cause="open-files-limit",
        severity=Severity.WARNING if many else Severity.INFO,
        confidence=Confidence.LIKELY if many else Confidence.POSSIBLE,
        evidence=(Evidence(text=f"Max open files {soft}", where="/proc/self/limits (ulimit -n)"),),
        why="each rank opens sockets to its peers; at the limit NCCL's bootstrap and data loaders fail",
        fixes=(
            fix(
                container,
                "raise it where the job starts",
                host=f"ulimit -n {target}",
                docker="--ulimit nofile=1048576:1048576",
                kubernetes=f"ulimit -n {target}  # first line of the container's command",
            ),
        ),
        confirm="count what a running rank holds: ls /proc/PID/fd | wc -l",
        sources=(f"{NCCL_RUNTIME}, File Descriptors", "https://github.com/NVIDIA/nccl/issues/550"),
        explains=("rank-died", "rendezvous-failed"),
    )


@rule("HST005", Severity.ERROR)
def shm_small_or_missing(limits: Limits, gpus: Gpus, pci: Pci, container: Container | None) -> Iterator[Finding]:
    """/dev/shm is missing, too small or full.

    NCCL keeps buffers and proxies of the ranks of one host there, and data loaders hand over their batches there.
    Containers get 64 MiB unless told otherwise: "No space left on device", or a bus error in a loader.

    Fix: --shm-size (docker), an emptyDir with medium Memory at /dev/shm (Kubernetes), or remove stale files.
    """
    count = gpu_count(gpus, pci, container)
    if not count:
        return
    total, free = limits.shm_bytes, limits.shm_free_bytes
    if limits.shm_kind == "missing":
        message, severity = "there is no /dev/shm", Severity.ERROR if count > 1 else Severity.WARNING
    elif total is not None and total < SHM_ENOUGH:
        message = f"/dev/shm holds {size(total)}, with {count} GPU{'s' if count > 1 else ''}"
        severity = Severity.ERROR if total < SHM_FAILS and count > 1 else Severity.WARNING
    elif free is not None and free < SHM_FULL:
        message, severity = f"/dev/shm is full: {size(free)} of {size(total or 0)} free", Severity.ERROR
    else:
        return
    full = total is not None and total >= SHM_ENOUGH
    yield Finding(
        message=message,
        cause="dev-shm-too-small",
        severity=severity,
        evidence=(Evidence(text=f"size {total}, free {free}, {limits.shm_kind or '?'}", where="df -B1 /dev/shm"),),
        why="NCCL's shared-memory transport and the workers of data loaders allocate there",
        fixes=(
            Fix(
                do="remove what dead processes left",
                command="ls -lt /dev/shm; rm /dev/shm/nccl-*  # with no job running",
            )
            if full
            else fix(
                container,
                "make it larger",
                host="sudo mount -o remount,size=50% /dev/shm"
                if total
                else "sudo mount -t tmpfs -o size=50% tmpfs /dev/shm",
                docker="--shm-size=16g  # or --ipc=host",
                kubernetes="volumes: [{name: shm, emptyDir: {medium: Memory}}]  with  "
                "volumeMounts: [{name: shm, mountPath: /dev/shm}]",
                apptainer="--bind /dev/shm",
            ),
        ),
        confirm="smoldiag nccl-bench --groups intra",
        sources=(f"{NCCL_RUNTIME}, Shared memory", "https://github.com/NVIDIA/nccl/issues/525"),
        explains=("rank-died", "cumem-host-asymmetry"),
    )


@rule("HST006", Severity.WARNING)
def iommu_translates(
    system: System, pci: tuple[PciDevice, ...], nics: tuple[Nic, ...] | None, cpu: Cpu | None, gpus: Gpus
) -> Iterator[Finding]:
    """The IOMMU translates addresses on a bare-metal host with GPUs.

    Transfers between GPUs, and between a GPU and a NIC, then go up to the processor to be translated, instead of
    straight through the PCIe switch: they are slow, or hang. In a virtual machine and on Grace it belongs so.

    Fix: iommu=pt on the kernel command line (addresses pass through), or off: VT-d / AMD-Vi in the firmware.
    """
    count = len(pci_gpus(pci))
    virtual = system.virtual not in (None, "none")
    alone = count + len(rdma_ports(nics or ())) < 2 or not count
    if system.iommu != "translated" or virtual or alone or (cpu and cpu.architecture == "aarch64"):
        return
    line = [w for w in (system.command_line or "").split() if "iommu" in w]
    yield Finding(
        message="the IOMMU is on and translates"
        + (f" (type {system.iommu_type})" if system.iommu_type else "")
        + f", with {count} GPU{'s' if count > 1 else ''} on bare metal"
        + (f"; kernel command line: {' '.join(line)}" if line else ""),
        cause="iommu-on",
        severity=Severity.WARNING if needs_peer_access(pci, nics or (), gpus) else Severity.INFO,
        confidence=Confidence.CERTAIN if system.virtual == "none" else Confidence.LIKELY,
        evidence=(
            Evidence(text=f"iommu {system.iommu}, type {system.iommu_type}", where="/sys/kernel/iommu_groups/*/type"),
            Evidence(text=" ".join(line) or "no word on the IOMMU", where="/proc/cmdline"),
        ),
        why="peer-to-peer traffic goes up to the root complex to be translated; the kernel turns ACS on for it",
        cost="up to the whole gain of GPUDirect; peer-to-peer copies may hang",
        fixes=(
            Fix(
                do="let addresses pass through, and reboot",
                command="sudo sed -i 's/^GRUB_CMDLINE_LINUX=\"/&iommu=pt /' /etc/default/grub && sudo update-grub",
            ),
            Fix(do="or switch VT-d / AMD-Vi off in the firmware"),
        ),
        confirm="smoldiag nccl-bench --groups intra; with GPUDirect RDMA also --groups inter",
        sources=(NCCL_PCI, "NVIDIA GPUDirect Storage guide: PCIe ACS and IOMMU"),
        explains=("acs-enabled", "pcie-acs-iommu-p2p-hang", "pcie-acs-breaks-gdr", "busbw-below-expected"),
    )


@rule("HST007", Severity.ERROR)
def rdma_devices_not_in_dev(
    container: Container, nics: tuple[Nic, ...], system: System, pci: Pci, gpus: Gpus
) -> Iterator[Finding]:
    """The host has RDMA devices, but /dev/infiniband is not there.

    In a container they were not passed, which only a job on one host can do without; on a host the module ib_uverbs is
    not loaded. NCCL falls back to sockets.

    Fix: pass them: --device=/dev/infiniband (docker), an RDMA or EFA device plug-in (Kubernetes).
    """
    ports = [n for n in compute_nics(nics, pci) if n.up]
    count = gpu_count(gpus, pci, container)
    if container.devices is None or not ports or not count or any("/uverbs" in d for d in container.devices):
        return
    if container.kind == "none" and "ib_uverbs" in (system.modules or ("ib_uverbs",)):
        return  # a tree without these devices
    efa = any(n.kind == "efa" for n in ports)
    whole = count > 1 and (pci is None or count >= len(pci_gpus(pci)))  # a part of a machine is not for several hosts
    severity = Severity.ERROR if not in_container(container) else Severity.WARNING if whole else Severity.INFO
    resource = f"vpc.amazonaws.com/efa: {len(ports)}" if efa else "rdma/hca: 1  # as your device plug-in calls it"
    yield Finding(
        message=f"{len(ports)} RDMA port{'s' if len(ports) > 1 else ''} ({_some([n.name for n in ports])}), "
        f"but no /dev/infiniband/uverbs*" + (f" in this {container.kind} container" if in_container(container) else ""),
        cause="efa-devices-not-visible" if efa else "rdma-devices-not-visible",
        severity=severity,
        confidence=Confidence.LIKELY if severity is not Severity.INFO else Confidence.POSSIBLE,
        evidence=(Evidence(text=_some(list(container.devices)) or "no devices", where="/dev"),),
        why="libibverbs opens these files; without them NCCL uses TCP sockets",
        cost="RDMA: sockets reach a tenth of it or less (3 to 25 GB/s have been seen)",
        fixes=(
            fix(
                container,
                "let the devices through",
                host="sudo modprobe -a ib_uverbs rdma_ucm",
                docker="--device=/dev/infiniband --cap-add=IPC_LOCK --ulimit memlock=-1:-1",
                kubernetes=f"resources: {{limits: {{{resource}}}}}",
                apptainer="--bind /dev/infiniband",
                enroot="--container-mounts=/dev/infiniband:/dev/infiniband",
            ),
        ),
        confirm="NCCL_NET=IB smoldiag nccl-bench: it fails with the reason instead of falling back",
        sources=(NCCL_IB,),
        explains=("net-socket-fallback", "busbw-below-expected", "gdr-not-used"),
    )


@rule("HST008", Severity.WARNING)
def imex_channel_missing(container: Container, gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """GPUs whose NVLink reaches other hosts, but no IMEX channel.

    On GB200 and GB300 racks memory is shared between hosts through channels of the IMEX service. Without
    /dev/nvidia-caps-imex-channels/channel0 NCCL can't use NVLink between hosts.

    Fix: create channel 0 (NVreg_CreateImexChannel0=1), run nvidia-imex, and pass the channel into containers.
    """
    rack = [g for g in gpus if "GB200" in g.name or "GB300" in g.name]
    fabric = [g for g in rack if g.fabric_state in (None, "completed")]
    channels = [d for d in container.devices or () if "/nvidia-caps-imex-channels/channel" in d]
    if container.devices is None or not fabric or channels:
        return
    yield Finding(
        message=f"{len(fabric)} x {fabric[0].name}, but no channel below /dev/nvidia-caps-imex-channels",
        cause="imex-channel-missing",
        severity=Severity.WARNING,
        confidence=Confidence.LIKELY,
        evidence=(Evidence(text="no channel*", where="ls /dev/nvidia-caps-imex-channels"),),
        why="NVLink between hosts needs an IMEX channel that the job may open; else cuMemImport fails",
        fixes=(
            fix(
                container,
                "give the job a channel",
                host="echo 'options nvidia NVreg_CreateImexChannel0=1' | sudo tee /etc/modprobe.d/nvidia-imex.conf  "
                "# then reload the driver",
                docker="--device=/dev/nvidia-caps-imex-channels/channel0",
                kubernetes="a ResourceClaim of a ComputeDomain (NVIDIA DRA driver), in the pod's resourceClaims",
                enroot="NVIDIA_IMEX_CHANNELS=0",
            ),
            Fix(do="see that the service is up", command="nvidia-imex-ctl -N"),
        ),
        confirm="smoldiag nccl-bench across two hosts of the rack",
        sources=("NVIDIA IMEX service user guide: IMEX channels",),
    )


@rule("HST009", Severity.WARNING)
def governor_saves_power(cpu: Cpu, system: System, gpus: Gpus, pci: Pci) -> Iterator[Finding]:
    """The processors run under a governor that saves power.

    With acpi-cpufreq "powersave" holds them at their lowest clock: kernels are launched late and proxies poll
    slowly. With intel_pstate and amd-pstate the same word means dynamic clocks, which costs little.

    Fix: cpupower frequency-set -g performance.
    """
    if cpu.governor not in ("powersave", "conservative") or not gpu_count(gpus, pci):
        return
    if system.virtual not in (None, "none"):
        return
    dynamic = cpu.frequency_driver is None or "pstate" in cpu.frequency_driver
    yield Finding(
        message=f"the governor of the processors is {cpu.governor} ({cpu.frequency_driver or 'driver not known'})",
        cause="cpu-governor-powersave",
        severity=Severity.INFO if dynamic else Severity.WARNING,
        confidence=Confidence.POSSIBLE if dynamic else Confidence.LIKELY,
        evidence=(Evidence(text=cpu.governor, where="/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),),
        why="kernels are launched and network proxies polled by processors; slow clocks show in small messages first",
        fixes=(Fix(do="let them run at full clock", command="sudo cpupower frequency-set -g performance"),),
        confirm="smoldiag nccl-bench --sizes 8 --iterations 200, before and after: the latency",
        sources=("Linux admin guide: CPU performance scaling",),
    )


@rule("HST010", Severity.WARNING)
def numa_balancing_on(cpu: Cpu, gpus: Gpus, pci: Pci) -> Iterator[Finding]:
    """The kernel moves memory between NUMA nodes by itself.

    It unmaps pages to see who touches them; processes with GPUs pay with faults and stalls. NVIDIA's guides for
    Grace ask to switch it off; elsewhere it is worth a try when steps jitter.

    Fix: sysctl kernel.numa_balancing=0.
    """
    if not cpu.numa_balancing or len([c for c in cpu.cpus_of_numa.values() if c]) < 2 or not gpu_count(gpus, pci):
        return
    grace = cpu.architecture == "aarch64"
    yield Finding(
        message=f"automatic NUMA balancing is on, with {len(cpu.cpus_of_numa)} NUMA nodes",
        cause="numa-balancing-on",
        severity=Severity.WARNING if grace else Severity.INFO,
        confidence=Confidence.LIKELY if grace else Confidence.POSSIBLE,
        evidence=(Evidence(text="1", where="/proc/sys/kernel/numa_balancing"),),
        why="page faults that it causes stop threads that feed GPUs and NICs",
        fixes=(Fix(do="switch it off", command="sudo sysctl -w kernel.numa_balancing=0"),),
        confirm="step times with and without it",
        sources=("NVIDIA Grace performance tuning guide", "Linux admin guide: sysctl/kernel, numa_balancing"),
    )


@rule("HST011", Severity.WARNING)
def few_cpus_per_gpu(
    cpu_count: int, gpus: Gpus, pci: Pci, container: Container | None, limits: Limits | None, cpu: Cpu | None
) -> Iterator[Finding]:
    """A process here may use few processors for the GPUs that it drives.

    The training loop, NCCL's proxy threads and data loaders share them. An affinity or a cgroup quota leaves less
    than the machine has: --cpus-per-task, docker --cpus, limits.cpu of a pod.

    Fix: give the job its share of the machine's processors.
    """
    count = gpu_count(gpus, pci, container)
    if not count or count < 2:
        return
    quota = limits.cgroup_cpus if limits and limits.cgroup_cpus and limits.cgroup_cpus > 0 else None
    usable = min(cpu_count, quota) if quota else cpu_count
    if usable >= CPUS_PER_GPU * count:
        return
    machine = cpu.threads if cpu else None
    by = f"quota of the control group: {quota:g}" if quota and quota < cpu_count else f"affinity: {cpu_count}"
    restricted = usable < max(cpu_count, machine or 0)
    yield Finding(
        message=f"{usable:g} processors for {count} GPUs"
        + (f"; the machine has {machine or cpu_count} ({by})" if restricted else ""),
        cause="cpu-affinity",
        severity=Severity.WARNING if restricted else Severity.INFO,  # a small machine is what was ordered
        confidence=Confidence.LIKELY,
        evidence=(Evidence(text=by, where="/proc/self/status Cpus_allowed_list; cpu.max"),),
        why="proxy threads that wait for a processor hold up the network; loaders that wait hold up the step",
        fixes=(
            fix(
                container,
                "give the job more",
                host=f"srun --cpus-per-task={max((machine or 16 * count) // count, 1)} --cpu-bind=none ...",
                docker=f"--cpus={machine or 16 * count}  # or without --cpus and --cpuset-cpus",
                kubernetes=f"resources: {{requests: {{cpu: {(machine or 16 * count) - 8}}}}}  # and no limits.cpu",
            ),
        )
        if restricted
        else (),
        confirm="smoldiag nccl-bench inside and outside of the restriction",
        sources=("NCCL user guide: NCCL_IGNORE_CPU_AFFINITY", "https://github.com/LBANN/lbann/pull/560"),
        explains=("cpu-launch-bound", "dataloader-stall", "straggler-rank", "busbw-below-expected"),
    )


@rule("HST012", Severity.INFO)
def no_hugepages_for_efa(system: System, nics: tuple[Nic, ...], gpus: Gpus, pci: Pci) -> Iterator[Finding]:
    """EFA devices, but no huge pages are reserved.

    libfabric takes huge pages for its buffers where there are some, and ordinary ones else.

    Fix: reserve 5128 pages of 2 MiB (what AWS's images for P5 have), hugepages-2Mi in pods.
    """
    efa = [n for n in rdma_ports(nics) if n.kind == "efa" and n.up]
    if not efa or system.hugepages_total != 0 or not gpu_count(gpus, pci):
        return
    yield Finding(
        message=f"{len(efa)} EFA devices and no huge pages reserved",
        cause="no-hugepages",
        severity=Severity.INFO,
        evidence=(Evidence(text="HugePages_Total: 0", where="/proc/meminfo"),),
        why="with ordinary pages the device holds more translations",
        fixes=(Fix(do="reserve them", command="sudo sysctl -w vm.nr_hugepages=5128"),),
        sources=("Amazon EKS user guide: EFA", "libfabric fi_efa(7): FI_EFA_USE_HUGE_PAGE"),
    )


@rule("HST013", Severity.INFO)
def clock_not_synchronised(clock: Clock) -> Iterator[Finding]:
    """No service keeps the clock of this host in time.

    Logs and traces of several hosts can't be laid side by side, certificates and tokens may be refused.

    Fix: run chrony or systemd-timesyncd.
    """
    if clock.synchronised is not False:
        return
    yield Finding(
        message="the kernel says that its clock is not synchronised",
        cause="clock-unsynchronised",
        severity=Severity.INFO,
        evidence=(Evidence(text="STA_UNSYNC", where="adjtimex(2); timedatectl"),),
        why="times in logs of different hosts do not compare",
        fixes=(
            Fix(do="keep it in time", command="sudo systemctl enable --now chronyd || sudo timedatectl set-ntp true"),
        ),
        confirm="chronyc tracking",
        sources=("adjtimex(2)",),
    )


@rule("HST014", Severity.WARNING)
def file_system_nearly_full(mounts: tuple[Mount, ...]) -> Iterator[Finding]:
    """A file system that data or checkpoints can lie on is nearly full.

    A checkpoint that finds no room ends the run, or leaves half a file.

    Fix: make room, or write checkpoints elsewhere.
    """
    for m in mounts:
        if m.kind in READ_ONLY or "ro" in m.options or m.device_kind == "memory" or m.path.startswith("/boot"):
            continue
        if m.size_bytes and m.free_bytes is not None:
            percent = 100 * m.free_bytes / m.size_bytes
            full = percent < FREE_PERCENT_LOW and m.free_bytes < FREE_BYTES_LOW
        else:
            percent, full = None, False
        inodes = m.inodes_free_percent is not None and m.inodes_free_percent < INODES_PERCENT_LOW
        if not full and not inodes:
            continue
        said = f"{size(m.free_bytes or 0)} ({percent:.1f} %) free" if full else "no inodes left: "
        said += "" if full else f"{m.inodes_free_percent:.1f} % free"
        yield Finding(
            message=f"{m.path} ({m.kind}, {m.source}) is nearly full: {said}",
            cause="file-system-full",
            subject=m.path,
            severity=Severity.WARNING,
            evidence=(Evidence(text=said, where=f"df {m.path}" if full else f"df -i {m.path}"),),
            why="checkpoints and caches that find no room end the run",
            fixes=(Fix(do="see what takes it", command=f"du -xh --max-depth=2 {m.path} | sort -h | tail -20"),),
            sources=("statvfs(3)",),
        )


@rule("HST015", Severity.WARNING)
def few_processes_allowed(limits: Limits, gpus: Gpus, pci: Pci, container: Container | None) -> Iterator[Finding]:
    """The control group allows few processes and threads.

    Ranks, their NCCL and CUDA threads and the workers of data loaders count together; at the limit fork fails
    with "Resource temporarily unavailable".

    Fix: --pids-limit=-1 (docker), podPidsLimit of the kubelet, TasksMax of the service.
    """
    allowed = limits.cgroup_pids
    count = gpu_count(gpus, pci, container)
    if allowed is None or allowed < 0 or allowed >= PIDS_LOW or not count:
        return
    yield Finding(
        message=f"{allowed} processes and threads are allowed here, with {count} GPUs",
        cause="pids-limit",
        severity=Severity.WARNING,
        confidence=Confidence.LIKELY,
        evidence=(Evidence(text=str(allowed), where="pids.max of the control group"),),
        why="a rank alone has dozens of threads",
        fixes=(
            fix(
                container,
                "raise it",
                host="systemctl set-property SERVICE TasksMax=infinity",
                docker="--pids-limit=-1",
                kubernetes="podPidsLimit: -1  # of the kubelet's configuration",
            ),
        ),
        confirm="cat pids.current of the group while the job runs",
        sources=("Linux admin guide: cgroup-v2, PID",),
    )


@rule("HST016", Severity.INFO)
def numa_calls_not_allowed(container: Container, gpus: Gpus, pci: Pci, cpu: Cpu | None) -> Iterator[Finding]:
    """A container that may not place memory on NUMA nodes.

    Without CAP_SYS_NICE docker allows no NUMA calls. NCCL 2.24 and newer allocates host buffers with them; from 2.26.5
    on it falls back to /dev/shm where they fail, before that it fails or differs between ranks.

    Fix: --cap-add SYS_NICE, or NCCL_CUMEM_HOST_ENABLE=0 on all ranks.
    """
    if container.kind not in ("docker", "podman", "kubernetes") or container.capabilities is None:
        return
    count = gpu_count(gpus, pci, container)
    nodes = [c for c in cpu.cpus_of_numa.values() if c] if cpu else []
    if "sys_nice" in container.capabilities or not count or count < 2 or len(nodes) < 2:
        return
    yield Finding(
        message=f"this {container.kind} container has no CAP_SYS_NICE, on a host with {len(nodes)} NUMA nodes",
        cause="cumem-host-asymmetry",
        severity=Severity.INFO,
        evidence=(Evidence(text="no sys_nice in CapEff", where="/proc/self/status"),),
        why="host memory of NCCL can't be placed near its GPU",
        fixes=(
            fix(
                container,
                "allow it",
                docker="--cap-add SYS_NICE",
                kubernetes='securityContext: {capabilities: {add: ["SYS_NICE"]}}',
            ),
        ),
        confirm="NCCL_DEBUG=INFO: lines about cuMem host allocations",
        sources=(f"{NCCL_RUNTIME}, cuMem host allocations",),
    )


@rule("HST017", Severity.INFO)
def gpus_without_driver(pci: tuple[PciDevice, ...], system: System) -> Iterator[Finding]:
    """NVIDIA GPUs are on the bus, but no driver of NVIDIA's is bound to them.

    The module is not loaded, nouveau took them, or they are handed to virtual machines (vfio-pci).

    Fix: load the driver: modprobe nvidia; nvidia-smi says more.
    """
    gpus = [g for g in pci_gpus(pci) if g.vendor == "10de"]
    without = [g for g in gpus if g.driver in ("nouveau", "vfio-pci")]
    if not without and gpus and system.modules is not None and "nvidia" not in system.modules:
        without = [g for g in gpus if g.driver is None]
    if not without:
        return
    drivers = sorted({g.driver or "none" for g in without})
    yield Finding(
        message=f"{len(without)} of {len(gpus)} NVIDIA GPUs have another driver or none: {', '.join(drivers)}",
        cause="gpu-driver-not-loaded",
        severity=Severity.INFO,
        evidence=tuple(Evidence(text=f"{g.address}: {g.driver or 'no driver'}", where="lspci -k") for g in without[:8]),
        why="CUDA does not see these GPUs",
        fixes=(Fix(do="load NVIDIA's driver", command="sudo modprobe nvidia && nvidia-smi"),)
        if drivers == ["none"]
        else (),
        sources=("NVIDIA driver installation guide",),
    )


@rule("HST018", Severity.INFO)
def stack_is_unlimited(limits: Limits, versions: Mapping[str, str] | None, gpus: Gpus, pci: Pci) -> Iterator[Finding]:
    """The stack limit is "unlimited", which makes the stacks of threads small.

    The C library then gives every thread 2 MiB; NCCL's search of the topology may need more on racks that NVLink
    joins, and crashes. NCCL 2.28 and newer asks for what it needs.

    Fix: ulimit -s 8192.
    """
    nccl = (versions or {}).get("nccl", "")
    numbers = tuple(int(n) for n in nccl.split(".")[:2] if n.isdigit())
    count = gpu_count(gpus, pci)
    if limits.stack_bytes != -1 or not count or count < 2 or (numbers and numbers >= NCCL_SETS_STACK):
        return
    yield Finding(
        message="ulimit -s is unlimited" + (f", with NCCL {nccl}" if nccl else ""),
        cause="stack-unlimited",
        severity=Severity.INFO,
        confidence=Confidence.POSSIBLE,
        evidence=(Evidence(text="Max stack size unlimited", where="/proc/self/limits (ulimit -s)"),),
        why="threads get 2 MiB of stack, too little for NCCL before 2.28 on large NVLink systems",
        fixes=(Fix(do="limit it where the job starts", command="ulimit -s 8192"),),
        confirm="smoldiag nccl-bench: a crash while communicators are made",
        sources=(f"{NCCL_RUNTIME}, Stack size", "pthread_create(3)"),
    )


@rule("HST019", Severity.WARNING)
def uvm_device_missing(container: Container) -> Iterator[Finding]:
    """A container sees GPUs, but not /dev/nvidia-uvm.

    CUDA needs it for unified memory, NCCL 2.23 and newer for memory pools: initialization fails. It is missing
    where devices are passed by hand, or where nothing used CUDA on the host since it started.

    Fix: --gpus all with the NVIDIA container toolkit, or nvidia-modprobe -u -c=0 on the host.
    """
    devices = container.devices or ()
    seen = [d for d in devices if d.removeprefix("/dev/nvidia").isdigit()]
    if not in_container(container) or not seen or "/dev/nvidia-uvm" in devices:
        return
    yield Finding(
        message=f"{len(seen)} GPU devices in this {container.kind} container, but no /dev/nvidia-uvm",
        cause="uvm-not-available",
        severity=Severity.WARNING,
        confidence=Confidence.LIKELY,
        evidence=(Evidence(text=_some(list(devices)), where="ls /dev"),),
        why="CUDA fails to initialize without it",
        fixes=(
            fix(
                container,
                "pass it with the GPUs",
                docker="--gpus all  # or --device=/dev/nvidia-uvm",
                kubernetes="resources: {limits: {nvidia.com/gpu: 8}}",
                apptainer="--nv",
            ),
            Fix(do="make it on the host", command="sudo nvidia-modprobe -u -c=0"),
        ),
        confirm="python -c 'import torch; torch.zeros(1).cuda()'",
        sources=(f"{NCCL_RUNTIME}, Unified Memory (UVM)",),
        explains=("rank-failed", "rank-died"),
    )


@rule("HST020", Severity.WARNING)
def few_ports(limits: Limits, gpus: Gpus, pci: Pci) -> Iterator[Finding]:
    """The range of ports that connections may take is small.

    Every rank listens and connects on ports of net.ipv4.ip_local_port_range; a range that was narrowed for a
    firewall is used up by a large job.

    Fix: widen it: sysctl -w net.ipv4.ip_local_port_range='32768 60999'.
    """
    count = gpu_count(gpus, pci)
    if limits.port_range is None or not count or count < 2:
        return
    first, last = limits.port_range
    if last - first + 1 >= PORTS_LOW:
        return
    yield Finding(
        message=f"{last - first + 1} ports ({first} to {last}) for the connections of {count} ranks",
        cause="few-ports",
        severity=Severity.WARNING,
        confidence=Confidence.POSSIBLE,
        evidence=(Evidence(text=f"{first} {last}", where="/proc/sys/net/ipv4/ip_local_port_range"),),
        why='connections fail with "Cannot assign requested address" when no port is left',
        fixes=(Fix(do="widen it", command="sudo sysctl -w net.ipv4.ip_local_port_range='32768 60999'"),),
        confirm="ss -tan | wc -l while the job runs",
        sources=(f"{NCCL_TROUBLE}: Networking troubleshooting, IP ports",),
        explains=("rendezvous-failed", "tcp-connect-blocked"),
    )


@rule("HST021", Severity.INFO)
def own_name_is_loopback(system: System, gpus: Gpus, pci: Pci, container: Container | None) -> Iterator[Finding]:
    """The host's own name stands for a loopback address in /etc/hosts.

    Gloo listens on the address that the own name resolves to, and torchrun compares names with addresses: with
    127.0.1.1 (what Debian's installer writes) the other hosts can't connect. NCCL looks at interfaces and is not
    affected.

    Fix: put the host's address there, or set GLOO_SOCKET_IFNAME and give MASTER_ADDR as an address.
    """
    count = gpu_count(gpus, pci, container)
    if not system.own_addresses or not count or count < 2:
        return
    if not all(a.startswith("127.") or a == "::1" for a in system.own_addresses):
        return
    yield Finding(
        message=f"/etc/hosts gives this host's own name the address {', '.join(system.own_addresses)}",
        cause="loopback-interface-selected",
        severity=Severity.INFO,
        confidence=Confidence.POSSIBLE,
        evidence=(Evidence(text=", ".join(system.own_addresses), where="/etc/hosts; getent hosts $(hostname)"),),
        why="ranks of other hosts that are told this address connect to themselves",
        fixes=(Fix(do="name the interface for gloo", command="export GLOO_SOCKET_IFNAME=INTERFACE"),),
        confirm="smoldiag nccl-bench --backend gloo with another host",
        sources=("https://github.com/pytorch/pytorch/issues/107021",),
    )


@rule("HST022", Severity.ERROR)
def fabric_manager_not_running(
    system: System, pci: tuple[PciDevice, ...], container: Container | None, gpus: Gpus
) -> Iterator[Finding]:
    """A machine with NVSwitches on which no Fabric Manager runs.

    It brings the switches up. Without it CUDA says 802, system not yet initialized; when it was stopped later, NVLink
    SHARP and new jobs fail.

    Fix: start nvidia-fabricmanager, of exactly the driver's version.
    """
    switches = [d for d in pci if d.vendor == NVIDIA and d.device in NVSWITCHES]
    done = any(g.fabric_state == "completed" for g in gpus or ())
    if in_container(container) or not switches or done or system.daemons is None:
        return
    if "nv-fabricmanager" in system.daemons:
        return
    yield Finding(
        message=f"{len(switches)} NVSwitches, but no nv-fabricmanager runs",
        cause="fabric-manager-not-running",
        severity=Severity.ERROR,
        confidence=Confidence.LIKELY,
        evidence=(Evidence(text="no nv-fabricmanager", where="ps -e"),),
        why="GPUs behind NVSwitches can't be used before it has set them up",
        fixes=(Fix(do="start it", command="sudo systemctl enable --now nvidia-fabricmanager"),),
        confirm="nvidia-smi -q | grep -A2 Fabric; smoldiag nccl-bench --groups intra",
        sources=("NVIDIA Fabric Manager user guide: running as a service",),
        explains=("rank-failed", "rank-died", "nvls-fabric-manager-state", "nvls-off"),
    )


@rule("HST023", Severity.INFO)
def firewall_runs(system: System, gpus: Gpus, pci: Pci) -> Iterator[Finding]:
    """A firewall service runs on a host with GPUs.

    NCCL, gloo and torchrun connect on ports that are chosen at run time; a firewall that lets ssh through and not
    these makes jobs of several hosts hang while they start.

    Fix: allow all traffic between the hosts of the cluster.
    """
    count = gpu_count(gpus, pci)
    if not system.daemons or "firewalld" not in system.daemons or not count or count < 2:
        return
    yield Finding(
        message="firewalld runs here",
        cause="tcp-connect-blocked",
        severity=Severity.INFO,
        confidence=Confidence.POSSIBLE,
        evidence=(Evidence(text="firewalld", where="ps -e; firewall-cmd --list-all"),),
        why="connections between ranks take any port",
        fixes=(
            Fix(
                do="let the cluster's network through",
                command="sudo firewall-cmd --permanent --zone=trusted --add-source=NETWORK/PREFIX && "
                "sudo firewall-cmd --reload",
            ),
        ),
        confirm="smoldiag nccl-bench with another host",
        sources=(f"{NCCL_TROUBLE}: Networking troubleshooting, IP ports",),
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
