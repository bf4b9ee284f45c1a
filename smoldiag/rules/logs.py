"""What the LOG rules share: how events become a finding, who died first, what a failure explains."""

from collections.abc import Iterable, Sequence

from smoldiag.facts import Log, LogEvent
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where

MAX_SHOWN = 6  # lines of evidence per finding
MAX_HOSTS_TO_EXCLUDE = 8  # a fault of more hosts is none of theirs

# What every failure brings with it: they name no cause by themselves
SYMPTOMS = ("straggler-or-hung-rank", "peer-died", "rank-died", "rank-failed", "nccl-failed", "network-wedged")
# Faults of the network that the death of a process or host looks like from afar
NETWORK = (
    "tcp-connect-blocked",
    "rendezvous-endpoint-unreachable",
    "roce-path-unreachable",
    "roce-gid-index-wrong",
    "ib-link-down-or-flapping",
    "efa-security-group",
)
# A process ended by itself, or was ended: what others say afterwards is their view of that
DEATHS = ("cuda-oom", "oom-kill", "killed", "ecc", "gpu-lost", "segfault", "bus-error", "node-failed", "nvlink-error")


def found(
    cause: str,
    message: str,
    events: Sequence[LogEvent],
    *,
    why: str,
    fixes: Iterable[tuple[str, str]] = (),
    severity: Severity = Severity.ERROR,
    confidence: Confidence = Confidence.CERTAIN,
    confirm: str = "",
    sources: tuple[str, ...] = (),
    explains: tuple[str, ...] = SYMPTOMS,
    restart: str = "",
    hosts: tuple[str, ...] | None = None,
    ranks: tuple[int, ...] | None = None,
) -> Finding:
    """A finding whose evidence are these events of the log, the first first."""
    ordered = sorted(events, key=lambda e: e.order)
    return Finding(
        message=message,
        cause=cause,
        severity=severity,
        confidence=confidence,
        where=Where(
            hosts=hosts if hosts is not None else hosts_of(ordered),
            ranks=ranks if ranks is not None else ranks_of(ordered),
        ),
        evidence=tuple(e.evidence for e in ordered[:MAX_SHOWN]),
        why=why,
        fixes=tuple(Fix(do=do, command=command) for do, command in fixes),
        confirm=confirm,
        sources=sources,
        explains=tuple(slug for slug in explains if slug != cause),
        restart=restart,
        first=ordered[0].order if ordered else 0,
    )


def hosts_of(events: Iterable[LogEvent]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(host for e in events for host in e.hosts))


def ranks_of(events: Iterable[LogEvent]) -> tuple[int, ...]:
    return tuple(sorted({rank for e in events for rank in e.ranks}))


def without(hosts: Sequence[str]) -> str:
    """What to do about a restart where hosts are at fault."""
    if not hosts:
        return "without the host at fault: its log or `dmesg` names it"
    if len(hosts) > MAX_HOSTS_TO_EXCLUDE:
        return f"fix first: {len(hosts)} hosts are concerned"
    return f"without {', '.join(hosts)}: --exclude={','.join(hosts)}"


def on(events: Iterable[LogEvent]) -> str:
    """Where, for a message: ' on node3', ' on rank 2 (node3)', or nothing."""
    listed = list(events)
    hosts, ranks = hosts_of(listed), ranks_of(listed)
    if len(ranks) == 1 and len(hosts) <= 1:
        return f" on rank {ranks[0]}" + (f" ({hosts[0]})" if hosts else "")
    if hosts:
        return f" on {hosts[0]}" if len(hosts) == 1 else f" on {len(hosts)} hosts"
    return f" on {len(ranks)} ranks" if ranks else ""


def died_before(log: Log, event: LogEvent) -> LogEvent | None:
    """A process that ended before this was said, which may be why it was said."""
    return next((e for e in log.events if e.kind in DEATHS and e.order < event.order), None)


def value(log: Log, name: str) -> str | None:
    """A variable as the log shows it; of several values the first."""
    return next(iter(log.env.get(name, ())), None)


def nodes(log: Log) -> int | None:
    """On how many hosts the job is, as far as the log shows it; None if it may be one or many."""
    counted = len({h for h in log.nccl_hosts or log.hosts if h != "localhost"})
    said = log.transport.nodes if log.transport else None
    if said is not None or counted > 1:
        return max(said or 0, counted)
    peers = {e.details.get("peer", "").rpartition("<")[0] for e in log.find("connect-failed", "ib-completion")}
    return 2 if peers - {"", "127.0.0.1"} else None
