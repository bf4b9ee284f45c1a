"""Failures of how ranks were started: devices, versions, libraries, drivers, as logs show them."""

import re
from collections.abc import Iterator

from smoldiag.facts import Log, LogEvent
from smoldiag.findings import Confidence, Finding, Severity
from smoldiag.rules import rule
from smoldiag.rules.logs import SYMPTOMS, found, hosts_of, on, ranks_of, value

# Variables that change what NCCL sends: ranks that differ in one speak past each other (NCCL user guide)
MUST_AGREE = re.compile(
    r"^NCCL_(?:ALGO|PROTO|BUFFSIZE|NTHREADS|M(?:AX|IN)_(?:NCHANNELS|CTAS|P2P_NCHANNELS)|NET|IB_DISABLE|P2P_DISABLE"
    r"|SHM_DISABLE|P2P_NET_CHUNKSIZE|P2P_(?:NVL_|PCI_)?CHUNKSIZE|CROSS_NIC|COLLNET_ENABLE|NVLS_ENABLE|CUMEM_ENABLE"
    r"|CHUNK_SIZE|LL_THRESHOLD|LL128_\w+|PXN_DISABLE|MNNVL_ENABLE|TOPO_FILE|GRAPH_FILE)$"
)
NCCL_FILES = re.compile(
    r"(?:^|/)(?:p2p|shm|alloc|net|nvls|coll_net|transport|init|enqueue|strongstream|proxy|register)"
)


@rule("LOG020", Severity.ERROR)
def two_ranks_on_one_gpu(log: Log) -> Iterator[Finding]:
    """Two ranks of a host use the same GPU.

    LOCAL_RANK is not used to choose the device, every process sees one GPU only, or there are more ranks than GPUs.

    Fix: torch.cuda.set_device(local_rank) before the first collective, and no more ranks per host than GPUs.
    """
    events = log.find("duplicate-gpu")
    if events:
        first = events[0].details
        who = f"ranks {first['a']} and {first['b']}" if "a" in first else "several ranks"
        device = f" (bus id {first['device']})" if "device" in first else ""
        yield found(
            "duplicate-gpu-rank-mapping",
            f"{who} use one GPU{device}{on(events)}",
            events,
            why="NCCL refuses two ranks on one device",
            fixes=[
                ("choose the device by the local rank", "torch.cuda.set_device(int(os.environ['LOCAL_RANK']))"),
                ("start no more ranks per host than it has GPUs", "nvidia-smi -L | wc -l"),
            ],
            confirm="echo $LOCAL_RANK $CUDA_VISIBLE_DEVICES  # on each rank",
            sources=("NCCL src/init.cc: Duplicate GPU detected",),
            restart="fix first: rank to GPU mapping; then the same nodes",
            ranks=tuple(sorted({*ranks_of(events), *(int(first[k]) for k in ("a", "b") if k in first)})),
        )


@rule("LOG021", Severity.ERROR)
def more_gpus_asked_than_there_are(log: Log) -> Iterator[Finding]:
    """A process asks for a device that it does not have.

    The command starts more ranks per host than there are GPUs, or asks each process for all the GPUs of the host.

    Fix: as many ranks per host as GPUs, one GPU each.
    """
    events = log.find("invalid-device")
    if events and not _hidden(log):
        options = {e.details["option"]: e.details["value"] for e in log.find("option")}
        shown = " ".join(f"{o} {v}" for o, v in options.items() if o in ("-g", "-np", "--nproc_per_node", "--host"))
        yield found(
            "wrong-gpu-count-per-process",
            f"a process asks for a GPU that is not there{on(events)}" + (f" (started with {shown})" if shown else ""),
            [*events, *log.find("option")[:2]],
            why="device numbers run from 0 to the number of visible GPUs less one",
            fixes=[
                ("start one rank per GPU", "--nproc-per-node=$(nvidia-smi -L | wc -l)"),
                ("and give each process one GPU", "all_reduce_perf -g 1"),
            ],
            confidence=Confidence.LIKELY,
            confirm="nvidia-smi -L; echo $CUDA_VISIBLE_DEVICES  # in a rank",
            sources=("CUDA error 101 cudaErrorInvalidDevice",),
            restart="fix first: ranks per host",
        )


@rule("LOG022", Severity.ERROR)
def gpus_of_the_host_hidden_from_a_rank(log: Log) -> Iterator[Finding]:
    """Each rank sees its own GPU only, so NCCL can't open the memory of its neighbours.

    Slurm's --gpus-per-task and --gpu-bind, or one container per GPU, hide the peers' devices.

    Fix: let every task of a host see all its GPUs, and choose by local rank.
    """
    events = log.find("invalid-device")
    between_hosts = log.transport is not None and log.transport.mnnvl  # then it is the peer's IMEX, not the binding
    if events and not between_hosts and (hidden := _hidden(log)):
        yield found(
            "gpu-binding-hides-local-gpus",
            f"a rank can't open the memory of a GPU on its own host{on(events)}: it does not see that GPU",
            [*events, *hidden],
            why="NCCL imports the memory of the other GPUs of the host, and needs to see them for it",
            fixes=[
                ("ask for GPUs per node, without binding", "srun --gpus-per-node=8 --gpu-bind=none ..."),
                ("choose the device by the local rank", "torch.cuda.set_device(int(os.environ['SLURM_LOCALID']))"),
            ],
            confidence=Confidence.LIKELY,
            confirm="srun -l nvidia-smi -L | sort  # each task should list all GPUs",
            sources=("NCCL src/transport/p2p.cc; Slurm: srun --gpu-bind, --gpus-per-task",),
            restart="fix first: GPU binding; then the same nodes",
        )


def _hidden(log: Log) -> list[LogEvent]:
    """Signs that devices are hidden: from NCCL's own files, or in how the job was started."""
    inside = [e for e in log.find("invalid-device") if NCCL_FILES.search(e.details.get("file", ""))]
    bound = [e for e in log.find("option") if e.details["option"] in ("--gpus-per-task", "--gpu-bind")]
    asked = [e for e in log.find("option") if e.details["option"] == "-g" and e.details["value"] not in ("1", "0")]
    return [] if asked else [*inside[:2], *bound] if inside or bound else []


@rule("LOG023", Severity.ERROR)
def gpu_is_busy_or_exclusive(log: Log) -> Iterator[Finding]:
    """A GPU refuses another process: it is in exclusive mode, or taken.

    In exclusive-process mode the second process on a GPU is refused, be it a leftover of the last run.

    Fix: set the compute mode to default, and end what is left on the GPU.
    """
    events = log.find("gpu-busy")
    if events:
        exclusive = log.find("compute-mode")
        yield found(
            "gpu-exclusive-mode-or-busy",
            f"a GPU is busy or unavailable{on(events)}"
            + (": it is in exclusive-process mode" if exclusive else ": exclusive mode, or a process has it"),
            [*events, *exclusive],
            why="in exclusive mode a GPU takes one process only",
            fixes=[
                (
                    "see mode and processes",
                    "nvidia-smi --query-gpu=index,compute_mode --format=csv; nvidia-smi pmon -c 1",
                ),
                ("set the default mode", "nvidia-smi -c DEFAULT"),
            ],
            confidence=Confidence.CERTAIN,
            confirm="nvidia-smi -q -d COMPUTE",
            sources=("CUDA error 46 cudaErrorDevicesUnavailable",),
            restart="fix first: compute mode or leftovers on that host",
        )


@rule("LOG024", Severity.ERROR)
def peer_limit_of_a_process_reached(log: Log) -> Iterator[Finding]:
    """One process drives more GPUs than CUDA lets peer with each other.

    A device may have peer access to eight others in one process.

    Fix: one process per GPU, or at most eight GPUs per process.
    """
    events = log.find("peer-limit")
    if events:
        yield found(
            "cuda-peer-limit",
            f"CUDA's limit of peer mappings is reached{on(events)}",
            events,
            why="more than eight peers of one device in one process are refused (CUDA error 711)",
            fixes=[("start one process per GPU", "torchrun --nproc-per-node=$(nvidia-smi -L | wc -l) ...")],
            confirm="nvidia-smi -L | wc -l",
            sources=("CUDA error 711 cudaErrorTooManyPeers",),
            restart="fix first: fewer GPUs per process",
        )


@rule("LOG025", Severity.ERROR)
def ranks_differ_in_version_or_settings(log: Log) -> Iterator[Finding]:
    """Ranks use different NCCL versions or different NCCL settings.

    Sizes and protocols are chosen from version and variables: ranks that differ wait for messages that never come, or
    get ones of another size.

    Fix: the same image and the same NCCL_* variables on every host.
    """
    mismatch = log.find("version-mismatch")
    sizes = [
        *log.find("size-mismatch"),
        *(e for e in log.find("ib-completion") if e.details.get("status") in ["1", "9"]),
    ]
    differing = {n: v for n, v in log.env.items() if len(v) > 1 and MUST_AGREE.match(n)}
    versions = tuple(sorted({e.details["version"] for e in log.find("nccl-version")}))
    if len(versions) > 1:
        differing = {"NCCL's version": versions} | differing
    failing = bool(sizes) or log.has("peer-closed", "watchdog-timeout", "nccl-error", "cuda-failure")
    if not mismatch and not sizes and not (differing and failing):
        return
    if mismatch and "va" in mismatch[0].details:
        d = mismatch[0].details
        message = f"rank {d['a']} has NCCL {_version(d['va'])}, rank {d['b']} {_version(d['vb'])}"
    elif mismatch:
        message = f"ranks have different NCCL versions{on(mismatch)}"
    elif differing:
        name, values = next(iter(differing.items()))
        message = f"ranks differ in {name}: {' and '.join(values[:3])}"
    else:
        message = f"the ends of a message differ in its size{on(sizes)}: perhaps their settings differ"
    certain = bool(mismatch)
    yield found(
        "env-or-version-mismatch-across-ranks",
        message,
        [*mismatch, *sizes],
        why="every rank must derive the same algorithm, protocol and chunk sizes",
        fixes=[("compare what each host has", "smoldiag doctor --nodes all --only ENV,VER")],
        severity=Severity.ERROR if certain or sizes else Severity.WARNING,
        confidence=Confidence.CERTAIN if certain else Confidence.LIKELY if differing else Confidence.POSSIBLE,
        confirm="env | grep NCCL_ | sort | md5sum  # equal on all hosts?",
        sources=(
            "NCCL src/init.cc: Mismatched NCCL version detected",
            "NCCL src/transport/net_ib: collective mismatch",
        ),
        explains=SYMPTOMS,
        restart="fix first: one image, one environment",
    )


def _version(code: str) -> str:
    """22304 -> 2.23.4 (src/nccl.h.in: NCCL_VERSION)."""
    number = int(code)
    if number < 10_000:
        return f"{number // 1000}.{number % 1000 // 100}.{number % 100}"
    return f"{number // 10_000}.{number % 10_000 // 100}.{number % 100}"


@rule("LOG026", Severity.ERROR)
def another_nccl_is_loaded(log: Log) -> Iterator[Finding]:
    """A wrong or second libnccl is loaded, or none is found.

    A function that torch needs is not in it.

    An older package, LD_LIBRARY_PATH or LD_PRELOAD comes before the library that torch was built for.

    Fix: remove the other library or its path.
    """
    symbols = [e for e in log.find("undefined-symbol") if re.match(r"p?nccl|rccl", e.details.get("symbol", ""))]
    missing = log.find("library-missing")
    if symbols or missing:
        what = symbols[0].details["symbol"] if symbols else missing[0].details.get("library", "libnccl.so.2")
        yield found(
            "nccl-library-conflict",
            (f"the libnccl that is loaded has no {what}" if symbols else f"{what} is not found")
            + on([*symbols, *missing]),
            [*symbols, *missing],
            why="torch needs the NCCL that it was built for, or a newer one",
            fixes=[
                ("see which one is loaded", "LD_DEBUG=libs python -c 'import torch' 2>&1 | grep libnccl"),
                ("see what is installed", "pip list | grep -i nccl; ldconfig -p | grep nccl; echo $LD_LIBRARY_PATH"),
            ],
            confidence=Confidence.CERTAIN if symbols else Confidence.LIKELY,
            confirm="LD_DEBUG=libs python -c 'import torch' 2>&1 | grep libnccl",
            sources=("ld.so(8)",),
            restart="fix first: the library; it fails on every node",
        )


@rule("LOG027", Severity.ERROR)
def graph_file_does_not_fit(log: Log) -> Iterator[Finding]:
    """A graph file is set that does not fit the GPUs of this job.

    Images of some clouds set NCCL_GRAPH_FILE, or /etc/nccl.conf does, for another number of GPUs.

    Fix: unset NCCL_GRAPH_FILE.
    """
    events = log.find("graph-file")
    path = value(log, "NCCL_GRAPH_FILE")
    failed = log.find("nccl-error", "cuda-failure")
    if events or (path and failed):
        yield found(
            "nccl-graph-file-mismatch",
            f"the graph file {path or 'in use'} does not fit the GPUs of this job{on(events)}",
            events or failed,
            why="a graph file names the devices of each channel; a device that is not there stops the init",
            fixes=[
                ("remove it", "unset NCCL_GRAPH_FILE"),
                ("see who sets it", "grep -r NCCL_GRAPH_FILE /etc/nccl.conf ~/.nccl.conf /etc/environment"),
            ],
            confidence=Confidence.CERTAIN if events else Confidence.LIKELY,
            confirm="env -u NCCL_GRAPH_FILE ...",
            sources=("NCCL src/graph/search.cc: XML Import Channel",),
            restart="fix first: NCCL_GRAPH_FILE; then the same nodes",
        )


@rule("LOG033", Severity.ERROR)
def topology_file_is_refused(log: Log) -> Iterator[Finding]:
    """NCCL can't use the topology that it was given, or that it made of this machine.

    NCCL_TOPO_FILE, /etc/nccl.conf or a network plugin give a file of another machine or of another NCCL version; or
    filters leave a GPU without a NIC.

    Fix: unset NCCL_TOPO_FILE, or use the file of this instance and this plugin version.
    """
    events = log.find("topology-file")
    if events:
        path = value(log, "NCCL_TOPO_FILE")
        yield found(
            "topology-file-wrong-or-missing",
            f"NCCL can't use its topology{f' {path}' if path else ''}{on(events)}",
            events,
            why="without a topology that it understands NCCL makes no communicator",
            fixes=[
                ("let NCCL look itself", "unset NCCL_TOPO_FILE"),
                ("keep what it sees", "export NCCL_TOPO_DUMP_FILE=/tmp/t.xml"),
            ],
            confidence=Confidence.LIKELY,
            confirm="env -u NCCL_TOPO_FILE ...; ls /sys/class/pci_bus  # is /sys complete in the container?",
            sources=("NCCL src/graph/xml.cc, src/graph/topo.cc", "NCCL user guide: NCCL_TOPO_FILE"),
            restart="fix first: NCCL_TOPO_FILE",
        )


@rule("LOG028", Severity.ERROR)
def crash_inside_nccl(log: Log) -> Iterator[Finding]:
    """A process crashed inside of NCCL.

    A segmentation fault whose innermost frames are NCCL's own is most often a fault of that release.

    Fix: another release of NCCL; for a crash in RAS, NCCL_RAS_ENABLE=0.
    """
    frames = log.find("frame-nccl")
    crash = [e for e in log.find("segfault", "signal") if e.kind == "segfault" or e.details.get("signal") == "11"]
    named = [e for e in frames if (e.details.get("function") or e.details.get("function2", "")).startswith("ras")]
    if crash and frames:
        version = log.transport.nccl_version if log.transport else None
        function = next(
            (e.details[k] for e in (*named, *frames) for k in ("function", "function2") if k in e.details), ""
        )
        inside = f" in {function}" if function else ""
        yield found(
            "nccl-version-bug",
            f"a process crashed inside of NCCL {version or ''}{inside}".replace("  ", " ") + on(crash),
            [*crash, *named[:1], *frames[:2]],
            why="the innermost frames are NCCL's: a fault of this release, or memory that was overwritten",
            fixes=[
                *([("turn RAS off", "export NCCL_RAS_ENABLE=0")] if named else []),
                ("use another release of NCCL", "pip install -U nvidia-nccl-cu12"),
            ],
            confidence=Confidence.LIKELY,
            confirm="the same run with another NCCL release",
            sources=("NCCL release notes, known issues",),
            restart="fix first: another NCCL release",
        )


@rule("LOG029", Severity.ERROR)
def driver_older_than_cuda(log: Log) -> Iterator[Finding]:
    """The NVIDIA driver is too old for the CUDA runtime in use.

    Each CUDA runtime needs a driver of its own generation, or the forward compatibility package.

    Fix: a newer driver, or a build for the older CUDA.
    """
    events = log.find("driver-old")
    if events:
        yield found(
            "driver-too-old-for-cuda",
            f"the NVIDIA driver is older than the CUDA runtime needs{on(events)}",
            events,
            why="the runtime refuses to start on an older driver",
            fixes=[
                ("see what the driver supports", "nvidia-smi | grep 'CUDA Version'"),
                (
                    "use a build for that CUDA version",
                    "pip install torch --index-url https://download.pytorch.org/whl/cu118",
                ),
            ],
            confirm="nvidia-smi | head -4; python -c 'import torch; print(torch.version.cuda)'",
            sources=("CUDA error 35 cudaErrorInsufficientDriver",),
            restart="fix first: driver or CUDA version",
        )


@rule("LOG030", Severity.ERROR)
def driver_library_differs_from_module(log: Log) -> Iterator[Finding]:
    """NVIDIA's user-space libraries and the loaded kernel module are of different versions.

    A package update replaced the libraries; the old module stays loaded until a reboot.

    Fix: reboot the host, and hold the driver packages.
    """
    events = log.find("driver-mismatch")
    if events:
        yield found(
            "driver-library-version-mismatch",
            f"driver library and kernel module differ in version{on(events)}",
            events,
            why="running processes live on, new ones can't start",
            fixes=[
                ("reboot, or reload the modules where nothing uses them", "cat /proc/driver/nvidia/version; reboot"),
                ("hold the packages", "apt-mark hold 'nvidia-*'"),
            ],
            confirm="cat /proc/driver/nvidia/version; modinfo nvidia | grep ^version",
            sources=("NVML_ERROR_LIB_RM_VERSION_MISMATCH",),
            restart=f"without {', '.join(hosts_of(events))}" if hosts_of(events) else "fix first: reboot that host",
        )


@rule("LOG031", Severity.ERROR)
def container_lost_its_gpus(log: Log) -> Iterator[Finding]:
    """NVML answers "Unknown Error": the container may no longer open the GPUs.

    A `systemctl daemon-reload` on the host rewrites the container's device cgroup; the host still sees the GPUs.

    Fix: restart the container; for good, use CDI or the cgroupfs driver.
    """
    events = log.find("nvml-unknown")
    if events:
        fine = log.find("nvidia-smi-ok")
        yield found(
            "container-lost-gpu-access",
            f"NVML fails with an unknown error{on(events)}: the container lost access to its GPUs",
            [*events, *fine[:1]],
            why="the device cgroup no longer lets the container open /dev/nvidia*",
            fixes=[
                ("restart the container", "docker restart NAME"),
                ("see whether the host is fine", "nvidia-smi -L  # on the host"),
            ],
            confidence=Confidence.CERTAIN if fine else Confidence.LIKELY,
            confirm="nvidia-smi -L  # on the host and inside of the container",
            sources=("NVIDIA container toolkit: troubleshooting, containers losing access to GPUs",),
            restart="fix first: restart the container; then the same nodes",
        )


@rule("LOG032", Severity.ERROR)
def no_gpu_visible(log: Log) -> Iterator[Finding]:
    """A process sees no GPU at all.

    No GPU was asked for, CUDA_VISIBLE_DEVICES is empty, or the container runtime passes none.

    Fix: ask the scheduler or the container runtime for GPUs.
    """
    events = log.find("no-gpu")
    if events:
        yield found(
            "no-gpu-visible",
            f"a process sees no GPU{on(events)}",
            events,
            why="without a device NCCL can't start on that rank",
            fixes=[("see what is passed", "nvidia-smi -L; echo $CUDA_VISIBLE_DEVICES; ls /dev/nvidia*")],
            confidence=Confidence.LIKELY,
            confirm="nvidia-smi -L  # where the rank runs",
            sources=("CUDA error 100 cudaErrorNoDevice",),
            restart="fix first: GPUs of that host or container",
        )
