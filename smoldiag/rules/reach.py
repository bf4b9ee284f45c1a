"""HST: whether the hosts reach each other as the rendezvous of a job needs it."""

from collections.abc import Collection, Iterator, Sequence

from smoldiag.facts import Evidence
from smoldiag.facts.preflight import Contact, Lookup, Reach
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.model import blame, folded
from smoldiag.rules import NotKnown, rule

MAX_EVIDENCE = 6
MEANING = {
    "refused": "refused: the packets arrive, and are rejected (we listened there)",
    "timeout": "timeout: the packets, or their answers, are dropped on the way",
}


@rule("HST100", Severity.ERROR)
def port_is_blocked(reach: Reach) -> Iterator[Finding]:
    """Hosts can't connect to each other on the port of the rendezvous, or on high ports.

    torchrun and init_process_group meet at MASTER_PORT; NCCL, gloo and the store then use ports that the system gives
    out. ssh and the scheduler use other ports, so that they work all the same. A timeout means dropped packets (a
    firewall or security group), a refusal where something listens means a rejecting firewall.

    Fix: open all TCP ports between the hosts of the job, or leave the host out.
    """
    if not reach.contacts:
        raise NotKnown("one host alone connects to nobody")
    for master in (True, False):
        tried = [c for c in reach.contacts if c.master is master]
        failed = [c for c in tried if c.error]
        if not failed:
            continue
        own = {c.src for c in failed if c.local}
        found = blame.of_edges([(c.src, c.dst) for c in failed], reach.hosts, own=own)
        what = f"port {reach.master_port} (the rendezvous)" if master else "high ports"
        groups = [(h,) for h in found.hosts] + [*found.pairs] if not found.general else [()]
        for hosts in groups:
            yield _blocked(what, hosts, [c for c in tried if not hosts or _concerns(c, hosts)], port_of_job=master)


def _concerns(c: Contact, hosts: Sequence[str]) -> bool:
    return {c.src, c.dst} >= set(hosts)


def _blocked(what: str, hosts: Sequence[str], tried: Sequence[Contact], *, port_of_job: bool) -> Finding:
    failed = [c for c in tried if c.error]
    kinds = sorted({MEANING.get(c.error or "", c.error or "") for c in failed})
    who = {0: "most hosts", 1: hosts[0] if hosts else "", 2: " and ".join(hosts)}[len(hosts)]
    with_whom = "each other" if len(hosts) != 1 else "the others"
    local = [c for c in failed if c.local]
    return Finding(
        message=f"{who} can't connect with {with_whom} on {what}: {len(failed)} of {len(tried)} tries failed "
        f"({'; '.join(kinds)})",
        cause="port-blocked",
        subject=f"{what} {who}",
        severity=Severity.ERROR,
        confidence=Confidence.CERTAIN if len(hosts) == 1 else Confidence.LIKELY,
        where=Where(hosts=tuple(hosts)),
        evidence=tuple(
            Evidence(text=f"{c.src} -> {c.dst} ({c.address}) port {c.port}: {c.error}", where=f"tried on {c.src}")
            for c in failed[:MAX_EVIDENCE]
        ),
        why="no process group forms over a port that is blocked: the job hangs at its start until its time-out",
        fixes=(
            Fix(do="look for routing rules there", command="ip rule; nft list ruleset; iptables -S")
            if local
            else Fix(do="open all TCP ports between the hosts", command="nft list ruleset; iptables -S"),
            *((Fix(do="or use another port", command="export MASTER_PORT=..."),) if port_of_job else ()),
        ),
        confirm="smoldiag preflight --level quick",
        explains=("rendezvous-failed", "rank-stalled"),
        sources=("https://docs.pytorch.org/docs/stable/distributed.html#environment-variable-initialization",),
    )


@rule("HST101", Severity.WARNING)
def host_name_is_not_known(reach: Reach) -> Iterator[Finding]:
    """A host's name is not known on another host, or means another address there.

    MASTER_ADDR is usually a host name: a host that does not know it, or finds another address behind it, never joins.

    Fix: correct /etc/hosts or DNS on that host, or use addresses.
    """
    if not reach.lookups:
        raise NotKnown("one host alone looks nobody up")
    failed = [found for found in reach.lookups if is_wrong(found)]
    if not failed:
        return
    blamed = blame.of_edges([(f.src, f.name) for f in failed], reach.hosts)
    if blamed.general or not any(f.addresses for f in reach.lookups if f not in failed):
        yield _unknown_names((), failed, Severity.INFO)
        return
    for hosts in [(h,) for h in blamed.hosts] + [*blamed.pairs]:
        mine = [f for f in failed if {f.src, f.name} >= set(hosts)]
        yield _unknown_names(_of_pair(hosts, mine), mine, Severity.WARNING)


def is_wrong(found: Lookup) -> bool:
    return found.addresses is None or not set(found.addresses) & set(found.expected)


def _of_pair(hosts: Collection[str], failed: Sequence[Lookup]) -> tuple[str, ...]:
    """Of two hosts, the one that does not know the other's name."""
    return tuple(hosts) if len(hosts) == 1 else tuple(dict.fromkeys(f.src for f in failed))


def _unknown_names(hosts: tuple[str, ...], failed: Sequence[Lookup], severity: Severity) -> Finding:
    f = failed[0]
    means = f"means {', '.join(f.addresses)}" if f.addresses else "is not known"
    who = folded.hosts(hosts) if hosts else "the hosts"
    return Finding(
        message=f"{who}: names of hosts are not resolved: {f.name} {means} on {f.src}"
        + (f", and {len(failed) - 1} more" if len(failed) > 1 else ""),
        cause="name-resolution",
        severity=severity,
        where=Where(hosts=hosts),
        evidence=tuple(
            Evidence(
                text=f"{f.name}: {', '.join(f.addresses) if f.addresses else f.error}, not {', '.join(f.expected)}",
                where=f"getaddrinfo on {f.src}",
            )
            for f in failed[:MAX_EVIDENCE]
        ),
        why="a job whose MASTER_ADDR is a host name starts only where that name leads to the right address",
        fixes=(Fix(do="see what the name means there", command=f"getent hosts {f.name}"),),
        explains=("rendezvous-failed",),
    )


@rule("HST102", Severity.WARNING)
def master_port_in_use(reach: Reach) -> Iterator[Finding]:
    """Something else listens on the port of the rendezvous.

    The store of a job whose first rank runs there fails with "address already in use", or a job meets another job.

    Fix: end the process that listens there, or give the job another MASTER_PORT.
    """
    if reach.master_in_use:
        yield Finding(
            message=f"port {reach.master_port} is in use on {folded.hosts(reach.master_in_use)}",
            cause="port-in-use",
            severity=Severity.WARNING,
            where=Where(hosts=reach.master_in_use),
            evidence=tuple(
                Evidence(text=f"bind to port {reach.master_port}: address already in use", where=host)
                for host in reach.master_in_use[:MAX_EVIDENCE]
            ),
            why="the store of rank 0 can't listen there",
            fixes=(
                Fix(do="see what listens there", command=f"ss -ltnp 'sport = :{reach.master_port}'"),
                Fix(do="or use another port", command="export MASTER_PORT=..."),
            ),
        )
