"""STO: what the storage probe shows of the folder that a job will write to."""

from collections.abc import Iterator

from smoldiag.facts.probes import Probes, Storage
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.model import fleet
from smoldiag.model import storage as model
from smoldiag.model.probes import storage_gb_per_s
from smoldiag.model.sizes import human
from smoldiag.rules import NotKnown, rule

SLOWER = 0.6  # below the other hosts' median: a server gives its clients unequal shares for a second or two
IN_MEMORY = ("tmpfs", "ramfs")  # as fast as the processor that copies
UNUSABLE = {
    "missing": "is not there",
    "readonly": "can't be written: it is mounted read-only",
    "permission": "can't be written by this user",
    "failed": "failed",
}
WHAT_HELPS = {
    "iops": "fewer and larger operations: pack small files (shards, tar), write checkpoints in large pieces",
    "latency": "more threads or processes that read and write at the same time",
    "client": "more hosts get more; one host has its network or its client as limit (mount options, nconnect)",
    "file-system": "more hosts get no more: stage data on local disks, let fewer hosts write at the same time",
    "bandwidth": "nothing on the side of the job: this is what the device or the way to it gives",
}


def stored(probes: Probes) -> tuple[Storage, ...]:
    if probes.storage is None:
        raise NotKnown("no folder was probed (--path)")
    return probes.storage


def where(s: Storage) -> Where:
    return Where(hosts=(s.device.host,))


@rule("STO040", Severity.ERROR)
def storage_is_full(probes: Probes) -> Iterator[Finding]:
    """The file system of the job's folder is full on a host, or its quota is used up.

    The first checkpoint fails, often hours into the run, and takes the run with it. The probe wrote nothing there.

    Fix: free space, raise the quota, or name another folder.
    """
    for s in stored(probes):
        if s.refused == "space":
            free = "no inode" if s.free_inodes == 0 else human(s.free_bytes) if s.free_bytes is not None else "unknown"
            of = f" of {human(s.size_bytes)}" if s.size_bytes and s.free_inodes != 0 else ""
            yield Finding(
                message=f"{s.path} on {s.device.host} is full: {free}{of} free",
                cause="file-system-full",
                subject=s.path,
                severity=Severity.ERROR,
                where=where(s),
                evidence=(probes.seen(f"{s.path} ({s.file_system or '?'}) on {s.device.host}: {s.error}"),),
                why="a checkpoint that can't be written ends the run, or is lost without a word",
                fixes=(
                    Fix(
                        do="see what fills it", command=f"df -h {s.path}; df -i {s.path}; du -xsh {s.path}/* | sort -h"
                    ),
                ),
                confirm=f"smoldiag preflight --path {s.path}",
                explains=("checkpoint-stall", "rank-died"),
            )


@rule("STO041", Severity.ERROR)
def storage_not_usable(probes: Probes) -> Iterator[Finding]:
    """The job's folder is missing on a host, can't be written there, or fails.

    Fix: mount it on that host, create it, or correct its owner.
    """
    for s in stored(probes):
        if s.refused in UNUSABLE:
            yield Finding(
                message=f"{s.path} on {s.device.host} {UNUSABLE[s.refused]}",
                cause="storage-not-usable",
                subject=s.refused,
                severity=Severity.ERROR,
                where=where(s),
                evidence=(probes.seen(f"{s.path} on {s.device.host}: {s.error}"),),
                why="a rank there can't read its data or write its part of a checkpoint",
                fixes=(Fix(do=f"look at it on {s.device.host}", command=f"ls -ld {s.path}; findmnt -T {s.path}"),),
                confirm=f"smoldiag preflight --path {s.path}",
                explains=("rank-died",),
            )


@rule("STO042", Severity.ERROR)
def checkpoint_does_not_fit(probes: Probes) -> Iterator[Finding]:
    """A checkpoint of the model is larger than the free space of its folder.

    Fix: free space, keep fewer checkpoints, or name another folder.
    """
    for s in stored(probes):
        if s.refused or not s.model_bytes or s.free_bytes is None:
            continue
        needed = s.model_bytes if s.shared or s.hosts == 1 else -(-s.model_bytes // s.hosts)
        if needed > s.free_bytes:
            yield Finding(
                message=f"{s.path} on {s.device.host} has {human(s.free_bytes)} free; "
                f"a checkpoint needs {human(needed)} there",
                cause="file-system-full",
                subject="checkpoint",
                severity=Severity.ERROR,
                where=where(s),
                evidence=(probes.seen(f"{s.free_bytes} bytes free, {needed} needed"),),
                why="the first checkpoint fails, and with it the run",
                fixes=(Fix(do="free space or name another folder", command=f"df -h {s.path}"),),
                confirm=f"df -h {s.path}",
            )


@rule("STO043", Severity.WARNING)
def storage_slower_than_on_the_other_hosts(probes: Probes) -> Iterator[Finding]:
    """One host reads or writes much more slowly than the others at the same time.

    A checkpoint takes as long as its slowest part, and a rank that waits for data makes all the others wait.

    Fix: compare mount options, network and local disk of that host with those of another one.
    """
    seen = [s for s in stored(probes) if not s.refused and s.file_system not in IN_MEMORY]
    for operation in ("write", "read"):
        rates = {s.device.host: rate for s in seen if (rate := storage_gb_per_s(s, operation, "sequential"))}
        for host, slow in fleet.slow(rates, shortfall=SLOWER).items():
            yield Finding(
                message=f"{host} {operation}s at {slow.value:.3g} GB/s; "
                f"its {len(rates) - 1} equals reach {slow.usual:.3g} GB/s",
                cause="slow-storage",
                subject=operation,
                confidence=Confidence.LIKELY,
                where=Where(hosts=(host,)),
                evidence=(probes.seen(f"{host}: best sequential {operation} {slow.value:.3g} GB/s"),),
                why="a checkpoint takes as long as its slowest part",
                cost=f"{slow.shortfall:.0%} of the rate of that host",
                fixes=(Fix(do="compare how it is mounted", command="findmnt -t nfs4,lustre,ext4,xfs"),),
                confirm=f"smoldiag preflight --path DIR on {host} alone",
                explains=("storage-read-stall", "checkpoint-stall"),
            )


@rule("STO044", Severity.INFO)
def what_limits_the_storage(probes: Probes) -> Iterator[Finding]:
    """What limits reads and writes of the job's folder.

    The latency of each operation, operations per second, each host, the file system, or plain bandwidth.

    Fix: nothing is wrong; it says what would make it faster.
    """
    for operation in ("write", "read"):
        limits = {s.device.host: found for s in stored(probes) if (found := model.limit(s, operation))}
        if not limits:
            continue
        kinds = [found.kind for found in limits.values()]
        kind = max(set(kinds), key=kinds.count)
        host, found = next((h, f) for h, f in limits.items() if f.kind == kind)
        yield Finding(
            message=f"{operation}s are limited by {_LIMITED_BY[kind]}: on {host} {found.text}",
            cause="storage-limit",
            subject=operation,
            severity=Severity.INFO,
            confidence=Confidence.LIKELY,
            where=Where(hosts=tuple(h for h, f in limits.items() if f.kind == kind)),
            evidence=tuple(probes.seen(f"{h}: {f.text}") for h, f in list(limits.items())[:8]),
            why="it says which change would make it faster, and which would not",
            fixes=(Fix(do=WHAT_HELPS[kind]),),
        )


_LIMITED_BY = {
    "iops": "operations per second",
    "latency": "the latency of each operation",
    "client": "each host",
    "file-system": "the file system that they share",
    "bandwidth": "bandwidth",
}


@rule("STO045", Severity.INFO)
def storage_is_memory(probes: Probes) -> Iterator[Finding]:
    """The job's folder lies in memory.

    What is written there takes memory from the job, and is gone when the host restarts.

    Fix: name a folder on a disk or a shared file system for checkpoints.
    """
    if hosts := tuple(s.device.host for s in stored(probes) if s.file_system in IN_MEMORY):
        path = stored(probes)[0].path
        yield Finding(
            message=f"{path} is in memory",
            cause="storage-in-memory",
            severity=Severity.INFO,
            where=Where(hosts=hosts),
            evidence=(probes.seen(f"{path} is a tmpfs"),),
            why="checkpoints there are lost with the host",
            fixes=(Fix(do="name a folder on a disk or a shared file system"),),
        )


@rule("STO046", Severity.INFO)
def storage_not_shared(probes: Probes) -> Iterator[Finding]:
    """The job's folder is another one on each host.

    A distributed checkpoint is then in pieces on the hosts: a restart on other hosts does not find them all.

    Fix: write checkpoints to a shared file system, or copy them to one before the job ends.
    """
    apart = [s for s in stored(probes) if s.shared is False]
    if apart and len(apart) == sum(s.shared is not None for s in stored(probes)):
        yield Finding(
            message=f"{apart[0].path} is not shared: each of {apart[0].hosts} hosts has its own",
            cause="storage-not-shared",
            severity=Severity.INFO,
            where=Where(hosts=tuple(s.device.host for s in apart)),
            evidence=(probes.seen(f"no host saw the others' folders in {apart[0].path}"),),
            why="a checkpoint in pieces can't be read where a host is replaced",
            fixes=(Fix(do="write checkpoints to a shared file system, or copy each of them to one"),),
        )


@rule("STO047", Severity.WARNING)
def storage_shared_by_some(probes: Probes) -> Iterator[Finding]:
    """A shared folder is not the same one on every host.

    The file system is not mounted on a host, and its mount point is written instead: what that host writes is lost to
    the others, and it fills the local disk.

    Fix: mount the file system on that host.
    """
    told = [s for s in stored(probes) if s.shared is not None]
    kinds = {s.device.host: f"{s.file_system} {s.source}" for s in told}
    usual = max(set(kinds.values()), key=list(kinds.values()).count, default="")
    odd = [s for s in told if kinds[s.device.host] != usual]
    if len(told) > 2 and odd and len(odd) * 2 < len(told) and any(_network(s) for s in told):
        yield Finding(
            message=f"{odd[0].path} is {kinds[odd[0].device.host]} on {odd[0].device.host}; the others have {usual}",
            cause="shared-mount-missing",
            where=Where(hosts=tuple(s.device.host for s in odd)),
            evidence=tuple(probes.seen(f"{s.device.host}: {kinds[s.device.host]}") for s in odd[:8]),
            why="what it writes there is not where the others look for it",
            fixes=(Fix(do="mount it there as on the other hosts", command=f"findmnt -T {odd[0].path}"),),
            confirm=f"findmnt -T {odd[0].path} on each host",
        )


def _network(s: Storage) -> bool:
    return s.file_system is not None and (s.file_system.startswith(("nfs", "fuse.")) or s.file_system in NETWORK_KINDS)


NETWORK_KINDS = ("lustre", "wekafs", "gpfs", "beegfs", "ceph", "glusterfs", "cifs", "smb3")


@rule("STO048", Severity.INFO)
def time_of_a_checkpoint(probes: Probes) -> Iterator[Finding]:
    """How long a checkpoint of the model takes on this storage.

    As long as the slowest host takes for its part, with all hosts at once. Asynchronous ones let training go on.

    Fix: nothing is wrong; save as often as this allows.
    """
    took = {s.device.host: seconds for s in stored(probes) if (seconds := model.checkpoint_s(s)) is not None}
    if took:
        host = max(took, key=lambda h: took[h])
        whole = next(s for s in stored(probes) if s.device.host == host)
        yield Finding(
            message=f"a checkpoint of {human(whole.model_bytes or 0)} takes {took[host]:.3g} s on {whole.path}",
            cause="checkpoint-time",
            severity=Severity.INFO,
            confidence=Confidence.LIKELY,
            evidence=tuple(probes.seen(f"{h}: {seconds:.3g} s") for h, seconds in list(took.items())[:8]),
            why="it says how often saving is cheap",
        )
