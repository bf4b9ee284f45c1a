"""HNG, HST, VER, NIC, GPU: what kept a launched program from finishing, and who."""

from collections.abc import Iterator

from smoldiag.facts import Fault, Launch
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.rules import rule


def _finding(
    fault: Fault, *, cause: str, why: str, fixes: tuple[Fix, ...] = (), explains: tuple[str, ...] = ()
) -> Finding:
    ranks = (
        f"rank {', '.join(map(str, fault.ranks[:8]))}" + (" ..." if len(fault.ranks) > 8 else "") if fault.ranks else ""
    )
    hosts = ", ".join(fault.hosts[:8]) + (" ..." if len(fault.hosts) > 8 else "")
    who = f"{ranks} on {hosts}" if ranks and hosts else ranks or hosts or "the run"
    last = f"; last finished: {fault.last_finished}" if fault.last_finished else ""
    return Finding(
        message=f"{who}: {fault.detail} (stage: {fault.stage}{last})",
        cause=cause,
        severity=Severity.ERROR,
        confidence=Confidence.CERTAIN if fault.certain else Confidence.LIKELY,
        where=Where(hosts=fault.hosts, ranks=fault.ranks),
        evidence=fault.evidence,
        why=why,
        fixes=fixes,
        explains=explains,
    )


def _of(launch: Launch, *kinds: str) -> Iterator[Fault]:
    return (f for f in launch.faults if f.kind in kinds)


CONSEQUENCES = ("rank-stalled", "rank-failed")


@rule("HNG001", Severity.ERROR)
def rank_died(launch: Launch) -> Iterator[Finding]:
    """A rank ended in the middle of the run.

    All the others wait for it in their next collective; their own errors (connection closed by peer, timeouts)
    are its consequences.

    Fix: read what it said last; signal 9 without a word is the OOM killer or a person: see the kernel log there.
    """
    for fault in _of(launch, "exited", "crashed"):
        yield _finding(
            fault,
            cause="rank-died",
            why="the other ranks can't finish a collective without it",
            fixes=(
                Fix(
                    do="see whether the kernel killed it",
                    command="dmesg -T | grep -iE 'killed process|out of memory|xid'",
                ),
            ),
            explains=CONSEQUENCES,
        )


@rule("HNG002", Severity.ERROR)
def rank_stopped(launch: Launch) -> Iterator[Finding]:
    """A rank is stopped (process state T) or stuck in the kernel (D).

    It is there, but does not run: somebody sent SIGSTOP, a debugger holds it, or storage or a driver does not answer.

    Fix: see who stopped it; kill -CONT lets it go on.
    """
    for fault in _of(launch, "stopped"):
        yield _finding(
            fault,
            cause="rank-stopped",
            why="the other ranks wait for it in their collective",
            fixes=(
                Fix(
                    do="see its state and what it waits for", command="ps -eo pid,stat,wchan:32,args | grep -E ' [TD]'"
                ),
            ),
            explains=CONSEQUENCES,
        )


@rule("HNG003", Severity.ERROR)
def host_lost(launch: Launch) -> Iterator[Finding]:
    """A host stopped answering in the middle of the run.

    Its link, the host itself or its launcher daemon is gone; the ranks there can't be reached.

    Fix: see that the host is up and its link has carrier.
    """
    for fault in _of(launch, "lost"):
        host = fault.hosts[0] if fault.hosts else "HOST"
        yield _finding(
            fault,
            cause="host-lost",
            why="the other ranks wait for the ranks of that host",
            fixes=(
                Fix(
                    do="see whether it answers and its link is up", command=f"ping -c 3 {host}; ssh {host} ip -br link"
                ),
            ),
            explains=CONSEQUENCES,
        )


@rule("HNG004", Severity.ERROR)
def rank_never_arrived(launch: Launch) -> Iterator[Finding]:
    """The run makes no progress, and a rank is behind the others.

    The ranks that wait are healthy; the one that has not entered the collective is not.

    Fix: look at what that rank does: py-spy dump --pid PID on its host.
    """
    for fault in _of(launch, "stalled"):
        yield _finding(
            fault,
            cause="rank-stalled",
            why="a collective ends only when its last rank is through",
            fixes=(Fix(do="see where it stands", command="py-spy dump --nonblocking --pid PID"),),
        )


@rule("HNG006", Severity.ERROR)
def collective_left_out(launch: Launch) -> Iterator[Finding]:
    """A rank left a collective out that the others have entered.

    It now waits in a later one, and all wait for each other for ever. A branch that depends on the rank, or on values
    that differ between ranks, is the usual reason.

    Fix: let every rank call every collective, in the same order; decide on reduced values only.
    """
    for fault in _of(launch, "skipped"):
        yield _finding(
            fault,
            cause="collective-mismatch",
            why="a collective ends only when every rank of its group has called it",
            fixes=(
                Fix(do="see where the ranks stand", command="py-spy dump --nonblocking --pid PID"),
                Fix(do="look for a branch on the rank, or on a value that is not the same on all ranks"),
            ),
            explains=("rank-stalled",),
        )


@rule("HNG005", Severity.ERROR)
def ranks_do_not_meet(launch: Launch) -> Iterator[Finding]:
    """A rank can't reach the store of rank 0, or the ranks can't connect to each other.

    A firewall or security group that lets ssh or Slurm through but not high ports, a wrong interface, or a name
    that resolves to another address.

    Fix: name the interface that reaches the other hosts (--interface), and open all ports between the hosts.
    """
    for fault in _of(launch, "rendezvous"):
        yield _finding(
            fault,
            cause="rendezvous-failed",
            why="no collective can start before all ranks have met",
            fixes=(
                Fix(
                    do="name the interface by which the hosts reach each other",
                    command="smoldiag nccl-bench --interface eth0 ...",
                ),
                Fix(do="see which address leads to the first host", command="ip route get ADDRESS"),
            ),
            explains=CONSEQUENCES,
        )


@rule("HST001", Severity.ERROR)
def host_unreachable(launch: Launch) -> Iterator[Finding]:
    """A host of the run can't be reached by the launcher.

    Nothing could be started there.

    Fix: try the same command by hand, or leave the host out.
    """
    for fault in _of(launch, "unreachable"):
        host = fault.hosts[0] if fault.hosts else "HOST"
        yield _finding(
            fault,
            cause="host-unreachable",
            why="no rank can run there",
            fixes=(
                Fix(do="try it by hand", command=f"ssh -o BatchMode=yes {host} true"),
                Fix(do=f"or leave {host} out"),
            ),
            explains=CONSEQUENCES,
        )


@rule("HST002", Severity.ERROR)
def launch_refused(launch: Launch) -> Iterator[Finding]:
    """The scheduler did not start the run.

    The allocation is still pending, was refused, or was taken away.

    Fix: see the scheduler's reason.
    """
    for fault in _of(launch, "pending", "refused"):
        yield _finding(
            fault,
            cause="launch-refused",
            why="nothing was measured",
            fixes=(Fix(do="see the scheduler's reason", command="squeue --me -o '%i %T %r'"),),
        )


@rule("VER001", Severity.ERROR)
def python_without_torch(launch: Launch) -> Iterator[Finding]:
    """The Python that was found on a host is too old, missing, or has no torch.

    smoldiag needs nothing of its own on the hosts, but a Python of 3.10 or newer with torch.

    Fix: name the Python of your training environment: --python /path/to/venv/bin/python.
    """
    for fault in _of(launch, "no-torch", "no-python"):
        yield _finding(
            fault,
            cause="python-without-torch",
            why="ranks are started with this Python",
            fixes=(
                Fix(
                    do="name the Python of your training environment",
                    command="smoldiag nccl-bench --python /path/to/venv/bin/python ...",
                ),
            ),
            explains=CONSEQUENCES,
        )


@rule("NIC001", Severity.ERROR)
def interface_not_there(launch: Launch) -> Iterator[Finding]:
    """The interface that was asked for does not exist or is down on a host.

    gloo and NCCL's bootstrap are bound to it, so that the ranks of that host never join.

    Fix: name an interface that is up on every host, or leave --interface away.
    """
    for fault in _of(launch, "bad-interface"):
        yield _finding(
            fault,
            cause="interface-not-there",
            why="ranks bind to this interface and can't join without it",
            fixes=(Fix(do="list the interfaces of that host", command="ip -br addr"),),
            explains=(*CONSEQUENCES, "rendezvous-failed"),
        )


@rule("GPU001", Severity.ERROR)
def gpu_in_use(launch: Launch) -> Iterator[Finding]:
    """A GPU is in use by another process, so that it was not measured.

    A measurement would slow that process down and show a figure that is not the machine's.

    Fix: wait for the other process, choose other GPUs, or measure all the same with --busy-ok.
    """
    for fault in _of(launch, "busy"):
        yield _finding(
            fault,
            cause="gpu-in-use",
            why="two jobs on one GPU slow each other down",
            fixes=(
                Fix(do="see who uses it", command="nvidia-smi"),
                Fix(do="measure all the same", command="smoldiag nccl-bench --busy-ok"),
            ),
        )


@rule("GPU040", Severity.ERROR)
def no_cuda_device(launch: Launch) -> Iterator[Finding]:
    """NCCL was asked for on a host where torch finds no CUDA device.

    NCCL runs on NVIDIA GPUs only. Either there is none, or the container does not show it, or torch was built
    without CUDA, or for a newer CUDA than the driver has.

    Fix: see what torch finds there; measure the CPUs with --backend gloo.
    """
    for fault in _of(launch, "no-gpu"):
        yield _finding(
            fault,
            cause="no-cuda-device",
            why="NCCL needs a CUDA device for each rank",
            fixes=(
                Fix(do="see which GPUs the driver shows there", command="nvidia-smi -L"),
                Fix(do="see what torch is built for", command='python3 -c "import torch; print(torch.version.cuda)"'),
                Fix(do="measure the CPUs instead", command="smoldiag nccl-bench --backend gloo"),
            ),
            explains=CONSEQUENCES,
        )
