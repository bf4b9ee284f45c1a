"""Failures of memory: shared, locked, of the GPU and of the host, as logs show them."""

from collections.abc import Iterator

from smoldiag.facts import Log, LogEvent
from smoldiag.findings import Confidence, Finding
from smoldiag.findings import Severity as Sev
from smoldiag.rules import rule
from smoldiag.rules.logs import NETWORK, SYMPTOMS, found, on, without

DEFAULT_SHM = "64 MB is Docker's default; NCCL and data loader workers need gigabytes"


@rule("LOG040", Sev.ERROR)
def shared_memory_is_full(log: Log) -> Iterator[Finding]:
    """/dev/shm is full or too small.

    NCCL's shared-memory transport and the workers of data loaders keep segments there; in a container it has 64 MB
    unless told otherwise, and segments of killed runs stay.

    Fix: a larger /dev/shm, and remove what is left there.
    """
    events = log.find("shm-full")
    bus = log.find("bus-error")
    if events or bus:
        yield found(
            "dev-shm-too-small",
            f"/dev/shm is full or too small{on(events or bus)}"
            + ("" if events else ": a bus error is how a process learns of it"),
            events or bus,
            why=DEFAULT_SHM,
            fixes=[
                ("give the container more", "docker run --shm-size=16g ...  # Kubernetes: emptyDir, medium: Memory"),
                ("remove what killed runs left", "ls -la /dev/shm; rm /dev/shm/nccl-* /dev/shm/torch_*"),
            ],
            confidence=Confidence.CERTAIN if events else Confidence.POSSIBLE,
            confirm="df -h /dev/shm  # inside of the container",
            sources=("NCCL user guide: Troubleshooting, Shared memory", "shm_overview(7)"),
            restart="fix first: /dev/shm; then the same nodes",
        )


@rule("LOG041", Sev.ERROR)
def shared_memory_segment_is_missing(log: Log) -> Iterator[Finding]:
    """A shared-memory segment of a neighbour can't be opened.

    Without a name in the message the neighbour allocated by cuMem on the host and this rank did not: host allocation
    works on some ranks only (NUMA nodes or capabilities of the container differ). With a name, the two are not on one
    machine, or in containers that do not share /dev/shm.

    Fix: NCCL_CUMEM_HOST_ENABLE=0; or one /dev/shm for all ranks of a host, and a host name per machine.
    """
    events = log.find("shm-missing")
    nameless = [e for e in events if "segment2" in e.details or e.details.get("name") == ""]
    if nameless:
        yield found(
            "cumem-host-asymmetry",
            f"a rank is told a shared-memory segment without a name{on(nameless)}: cuMem host memory works on some "
            "ranks only",
            nameless,
            why="one side allocates with cuMem on the host, the other looks for a file in /dev/shm",
            fixes=[("let all use /dev/shm", "export NCCL_CUMEM_HOST_ENABLE=0")],
            confidence=Confidence.LIKELY,
            confirm="export NCCL_CUMEM_HOST_ENABLE=0; start again",
            sources=("NCCL src/misc/shmutils.cc, src/transport/shm.cc", "NCCL user guide: NCCL_CUMEM_HOST_ENABLE"),
            restart="fix first: NCCL_CUMEM_HOST_ENABLE=0; then the same nodes",
        )
    elif events and not log.has("shm-full"):
        yield found(
            "hostname-collision",
            f"a shared-memory segment of another rank is not there{on(events)}: the two do not share /dev/shm",
            events,
            why="NCCL takes ranks with one host identity for neighbours and shares memory between them",
            fixes=[
                ("give each container its own host name, or one IPC namespace to all", "docker run --ipc=host ..."),
                ("or tell NCCL apart", "export NCCL_HOSTID=$HOSTNAME"),
            ],
            confidence=Confidence.POSSIBLE,
            confirm="hostname; readlink /proc/self/ns/ipc; cat /proc/sys/kernel/random/boot_id  # in both containers",
            sources=("NCCL src/misc/shmutils.cc",),
            restart="fix first: host names or IPC namespaces",
        )


@rule("LOG042", Sev.ERROR)
def locked_memory_limit_too_low(log: Log) -> Iterator[Finding]:
    """RDMA can't pin memory: the limit of locked memory is too low.

    Every RDMA buffer is pinned; ulimit -l is 64 KiB by default, in containers and Slurm steps too.

    Fix: unlimited locked memory for the job.
    """
    events = [e for e in log.find("memlock") if "dmabuf" not in e.details.get("call", "")]
    buffers = log.find("efa-buffers")
    if events or buffers:
        warned = log.find("memlock-warning")
        yield found(
            "memlock-limit",
            f"RDMA memory can't be pinned{on(events or buffers)}: the limit of locked memory is too low",
            [*events, *buffers, *warned],
            why="ibv_reg_mr and alike fail with ENOMEM once ulimit -l is reached",
            fixes=[
                ("raise it for the container", "docker run --ulimit memlock=-1 ..."),
                (
                    "raise it for Slurm steps",
                    "LimitMEMLOCK=infinity in slurmd.service; PropagateResourceLimitsExcept=MEMLOCK",
                ),
            ],
            confidence=Confidence.CERTAIN if warned or (events and buffers) else Confidence.LIKELY,
            confirm="ulimit -l  # in a rank's own shell",
            sources=("NCCL user guide: Troubleshooting, memlock", "libfabric fi_efa(7)"),
            explains=(*SYMPTOMS, *NETWORK),
            restart="fix first: ulimit -l",
        )


@rule("LOG043", Sev.ERROR)
def a_rank_ran_out_of_gpu_memory(log: Log) -> Iterator[Finding]:
    """A rank ran out of GPU memory and ended; the others only wait for it.

    What the other ranks report afterwards (time-outs, closed connections) follows from it.

    Fix: less memory on that rank: smaller batch or sequence, activation checkpointing, or find why it has more to hold.
    """
    events = log.find("cuda-oom")
    if events:
        first = events[0]
        others = log.world or len(log.ranks)
        alone = len({r for e in events for r in e.ranks}) < (others or 0)
        wanted = f" ({first.details['wanted']} wanted)" if "wanted" in first.details else ""
        yield found(
            "rank-oom-first",
            f"out of GPU memory{_first(first)}{wanted}",
            events,
            why="the rank ends, and the others wait in their next collective until a timer ends them",
            fixes=[
                ("less per step on that rank", "smaller micro batch or sequence; activation checkpointing"),
                ("less fragmentation", "export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"),
            ],
            confidence=Confidence.CERTAIN,
            confirm="torch.cuda.memory_summary() on "
            + ("that rank: why more than the others?" if alone else "one rank, before the step that fails"),
            sources=("torch CUDACachingAllocator",),
            explains=(*SYMPTOMS, *NETWORK, "nccl-buffer-alloc-oom", "host-oom-sigkill"),
            restart="fix first: it runs out of memory on any node",
        )


def _first(e: LogEvent) -> str:
    if e.rank is not None:
        return f" on rank {e.rank}" + (f" ({e.host})" if e.host else "")
    return f" on {e.host}" if e.host else ""


@rule("LOG044", Sev.ERROR)
def nccl_found_no_gpu_memory(log: Log) -> Iterator[Finding]:
    """NCCL can't allocate its own buffers: the GPU is full.

    The framework's allocator holds all memory before the first communicator of a group is made; each communicator
    takes hundreds of MiB.

    Fix: create the groups before the model fills the GPU, or leave some memory.
    """
    events = log.find("nccl-oom")
    other = [e for e in log.find("cuda-failure") if "out of memory" not in e.details.get("said", "")]
    if other and not any("out of memory" in e.text for e in events):
        return  # the allocation failed because of that error
    if events:
        yield found(
            "nccl-buffer-alloc-oom",
            f"NCCL finds no GPU memory for its buffers{on(events)}",
            events,
            why="buffers of every channel and peer are allocated when a communicator is made or first used",
            fixes=[
                ("leave memory to NCCL", "torch.cuda.set_per_process_memory_fraction(0.9)"),
                ("smaller buffers", "export NCCL_BUFFSIZE=2097152 NCCL_MAX_NCHANNELS=8  # to see that it is so"),
            ],
            confidence=Confidence.CERTAIN if not log.has("cuda-oom") else Confidence.LIKELY,
            confirm="nvidia-smi  # free memory when the group is made; also a second process on the GPU",
            sources=("NCCL src/include/alloc.h", "CUDA error 2"),
            restart="fix first: memory for NCCL",
        )


@rule("LOG045", Sev.ERROR)
def a_process_was_killed_for_memory(log: Log) -> Iterator[Finding]:
    """A process was killed with SIGKILL: most often the host or its cgroup ran out of memory.

    The kernel's OOM killer leaves no trace in the process's own output; dmesg, Slurm and Kubernetes have it.

    Fix: less host memory per rank (data loader workers, pinned buffers, checkpoints), or a higher limit.
    """
    told = log.find("oom-kill")
    killed = [*log.find("killed"), *(e for e in log.find("task-exit") if e.details.get("what") == "Killed")]
    killed += [e for e in log.find("elastic-exit", "elastic-failed") if e.details.get("code") == "-9"]
    killed += [
        e
        for e in log.find("signal", "mpi-exit")
        if e.details.get("signal") == "9" or e.details.get("name2") == "SIGKILL"
    ]
    killed.sort(key=lambda e: e.order)
    if not told and not killed:
        return
    cancelled = [e for e in log.find("cancelled") if killed and e.order < killed[0].order]
    if cancelled and not told:
        return  # the scheduler killed what it had cancelled
    waited = log.first("watchdog-timeout", "heartbeat", "gloo-timeout")
    followed = bool(waited and killed and not told and waited.order < killed[0].order)
    events = [*told, *killed]
    yield found(
        "host-oom-sigkill",
        ("a process was killed for memory" if told else "a process got SIGKILL, most often for want of host memory")
        + on(told or killed[:1]),
        events,
        why="the kernel or the cgroup ends the largest process when memory is gone",
        fixes=[
            ("see who was killed, and why", "dmesg -T | grep -i -E 'oom|killed process'; sacct -j JOB -o State,MaxRSS"),
            ("less host memory per rank", "fewer data loader workers, smaller prefetch, no full copies of checkpoints"),
        ],
        confidence=Confidence.CERTAIN if told else Confidence.POSSIBLE if followed else Confidence.LIKELY,
        confirm="dmesg -T | grep -i oom  # on that host; cat /sys/fs/cgroup/memory.events",
        sources=("cgroup v2: memory.events", "Slurm: OUT_OF_MEMORY"),
        explains=(*SYMPTOMS, *NETWORK),
        restart="fix first: host memory; on the same nodes it happens again",
    )


@rule("LOG046", Sev.ERROR)
def a_node_failed(log: Log) -> Iterator[Finding]:
    """The scheduler took a node for failed, or evicted the pod on it.

    What the ranks on other nodes report afterwards follows from it.

    Fix: start again without that node.
    """
    events = log.find("node-failed")
    if events:
        hosts = tuple(dict.fromkeys(h for e in events for h in (*e.hosts, e.details.get("host", "")) if h))
        yield found(
            "node-failed",
            f"a node failed or was taken away{on(events)}",
            events,
            why="its ranks are gone at once; the others see closed connections and time-outs",
            fixes=[("see what the scheduler says", "scontrol show node NODE; kubectl describe node NODE")],
            confidence=Confidence.CERTAIN,
            confirm="sacct -j JOB -o State,NodeList; dmesg of that node",
            sources=("Slurm: NODE_FAIL", "Kubernetes: node-pressure eviction"),
            explains=(*SYMPTOMS, *NETWORK),
            restart=without(hosts),
            hosts=hosts,
        )
