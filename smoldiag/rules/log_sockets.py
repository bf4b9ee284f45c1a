"""Failures of interfaces, TCP connections and rendezvous, as logs show them."""

import re
from collections.abc import Iterator

from smoldiag.facts import Log, LogEvent
from smoldiag.findings import Confidence, Finding, Severity
from smoldiag.rules import rule
from smoldiag.rules.logs import NETWORK, SYMPTOMS, died_before, found, hosts_of, nodes, on, value, without

VIRTUAL = re.compile(
    r"^(?:veth|docker|br-|virbr|cni|cali|flannel|cilium|tunl|ip6tnl|sit|gre|vxlan|tap|tun|dummy|kube|weave|lxc|podman)"
)
LOOPBACK = ("127.", "::1")
BLOCKED = ("No route to host", "Host is down", "Network is unreachable", "Permission denied")
TIMED_OUT = ("Connection timed out", "Operation timed out")
PRIVILEGED_PORTS = 1024  # below, only root may listen


@rule("LOG001", Severity.ERROR)
def no_ip_interface(log: Log) -> Iterator[Finding]:
    """The process has no usable IP interface at all.

    NCCL can't open the socket for its bootstrap: a container without a network, or with IPv6 off and nothing else.

    Fix: start the container with the host's network, or with a working interface of its own.
    """
    refused, none = log.find("no-socket"), log.find("no-interface")
    unfiltered = none and not value(log, "NCCL_SOCKET_IFNAME")
    if refused or unfiltered:
        events = refused or none
        yield found(
            "no-usable-ip-interface",
            f"sockets can't be created{on(events)}: the address family is not supported there"
            if refused
            else f"there may be no IP interface at all{on(events)}",
            events,
            why="NCCL and torch meet over TCP; without an interface that has an address nothing can start",
            fixes=[("give the container the host's network", "docker run --network=host ...")],
            severity=Severity.ERROR if refused else Severity.WARNING,
            confidence=Confidence.CERTAIN if refused else Confidence.POSSIBLE,
            confirm="ip addr  # inside of the container",
            sources=("NCCL src/misc/socket.cc: Socket creation failed",),
            explains=(*SYMPTOMS, *NETWORK, "socket-ifname-no-match") if refused else SYMPTOMS,
            restart="fix first: the container's network",
        )


@rule("LOG002", Severity.ERROR)
def interface_filter_matches_nothing(log: Log) -> Iterator[Finding]:
    """NCCL or gloo found no interface: the filter of interface names leaves none.

    NCCL_SOCKET_IFNAME takes prefixes, `=` for exact names and `^` for exclusions; a name of another cluster or of
    another node type matches nothing. 2.27 goes on with an empty address, and fails at the first connect.

    Fix: name an interface that is up on every host, or unset the variable.
    """
    events = log.find("no-interface", "bad-family", "gloo-interface")
    if not events:
        return
    gloo = [e for e in events if e.kind == "gloo-interface"]
    name = "GLOO_SOCKET_IFNAME" if gloo and len(gloo) == len(events) else "NCCL_SOCKET_IFNAME"
    wanted = value(log, name) or (gloo[0].details.get("interface") if gloo else None)
    said = f"{name}={wanted} matches no interface" if wanted else "no network interface was found to meet over"
    excluded = wanted is None and name == "NCCL_SOCKET_IFNAME"
    yield found(
        "socket-ifname-no-match",
        f"{said}{on(events)}",
        events,
        why="the bootstrap needs one IP interface; a filter that matches none leaves nothing to meet over",
        fixes=[("see which interfaces are up", "ip -br addr"), ("drop the filter", f"unset {name}")],
        confidence=Confidence.LIKELY if excluded else Confidence.CERTAIN,
        confirm=f"ip -br addr; echo ${name}  # on the host that failed",
        sources=("NCCL src/bootstrap.cc: no socket interface found", "NCCL user guide: NCCL_SOCKET_IFNAME"),
        explains=(*SYMPTOMS, *NETWORK),
        restart=f"fix first: {name}",
    )


@rule("LOG003", Severity.ERROR)
def loopback_between_hosts(log: Log) -> Iterator[Finding]:
    """NCCL meets over the loopback interface although it has to reach other hosts.

    Every host has its own 127.0.0.1: ranks of other hosts are never reached. On a single host it does no harm.

    Fix: name the interface that carries the hosts' addresses, or exclude lo as well: an own list replaces the default.
    """
    using = [e for e in log.find("bootstrap-using", "interface-using") if _on_loopback(e)]
    refused = [
        e
        for e in log.find("connect-failed", "store-timeout", "store-refused")
        if any(a in f"{e.details.get('peer', '')}{e.details.get('endpoint', '')}" for a in ("127.0.0.1", "localhost"))
    ]
    forced = [v for v in log.env.get("NCCL_SOCKET_IFNAME", ()) if v.lstrip("=") == "lo"]
    several = (nodes(log) or 0) > 1
    if not using or _on_one_host(log):
        return
    if not several and not refused and not (forced and not log.started):
        return
    yield found(
        "loopback-interface-selected",
        f"NCCL uses lo ({using[0].details.get('address') or '127.0.0.1'}){on(using)}"
        + (", because NCCL_SOCKET_IFNAME=lo" if forced else ""),
        [*using, *refused],
        why="127.0.0.1 is each host's own: ranks on other hosts can't be reached through it",
        fixes=[
            ("name the interface with the host's address", "export NCCL_SOCKET_IFNAME=eth0  # as `ip -br addr` has it"),
            ("or exclude lo along with the rest", "export NCCL_SOCKET_IFNAME=^lo,docker0"),
        ],
        severity=Severity.ERROR if refused or several else Severity.WARNING,
        confidence=Confidence.CERTAIN if several and refused else Confidence.LIKELY,
        confirm="the line `Bootstrap: Using` of every host",
        sources=("NCCL src/misc/socket.cc: findInterfaces", "NCCL user guide: NCCL_SOCKET_IFNAME"),
        explains=(*SYMPTOMS, *NETWORK, "hostname-collision", "net-socket-fallback"),
        restart="fix first: NCCL_SOCKET_IFNAME",
    )


def _on_loopback(e: LogEvent) -> bool:
    where = e.details.get("address", "") + e.details.get("devices", "")
    first = re.search(r"\[0\]([^\s:]+):(\S+?)<", where)
    interface = e.details.get("interface") or (first.group(1) if first else "")
    address = e.details.get("address") or (first.group(2) if first else "")
    return interface == "lo" or address.startswith(LOOPBACK)


def _on_one_host(log: Log) -> bool:
    """Whether the log shows that the whole job is on one host."""
    said = log.transport.nodes if log.transport else None
    placed = {e.host for e in log.find("device-table")}
    hosts = [e.details["value"] for e in log.find("option") if e.details["option"] in ("-H", "--host")]
    local = hosts and all(re.fullmatch(r"(localhost|127\.0\.0\.1)(:\d+)?", h) for h in hosts)
    return said == 1 or bool(local) or (log.has("device-table") and len(log.hosts) <= 1 and len(placed) <= 1)


@rule("LOG004", Severity.ERROR)
def unroutable_interface(log: Log) -> Iterator[Finding]:
    """NCCL uses an interface that other hosts can't reach: link-local, or virtual.

    Without a filter NCCL takes what is up, and data channels use all of the interfaces that it lists; a fe80 address
    is good on its own link only, a bridge's on its own host only.

    Fix: name the interface that carries the hosts' addresses, exactly: NCCL_SOCKET_IFNAME==eth0.
    """
    using = [e for e in log.find("bootstrap-using", "interface-using") if _unroutable(e)]
    failing = [
        e
        for e in log.find("connect-failed", "unreachable", "peer-closed", "gloo-timeout", "watchdog-timeout")
        if e.kind == "connect-failed" or using
    ]
    bad_peer = [e for e in failing if _unroutable_peer(e)]
    network = log.transport.network if log.transport else None
    works = log.last_step is not None or log.ended_well or log.has("connected") or network not in (None, "Socket")
    stuck = (nodes(log) or 0) > 1 and not works
    if not (bad_peer or (using and (failing or stuck or _hosts_differ(log)))) or _on_one_host(log):
        return
    names = sorted({n for e in using for n in _unroutable(e)})
    shown = ", ".join(names) or bad_peer[0].details.get("peer", "a link-local address")
    yield found(
        "link-local-or-virtual-interface-selected",
        f"NCCL connects over {shown}{on(using)}, which other hosts can't reach",
        [*using, *bad_peer, *failing[:1]],
        why="a link-local or bridge address is valid on its own link or host only; connects to it time out",
        fixes=[
            ("name the routable interface", "export NCCL_SOCKET_IFNAME==eth0  # as `ip -br addr` has it"),
            ("or exclude these", f"export NCCL_SOCKET_IFNAME=^{','.join(['lo', *names][:8])}"),
        ],
        severity=Severity.ERROR if bad_peer or failing else Severity.WARNING,
        confidence=Confidence.CERTAIN if bad_peer and using else Confidence.LIKELY,
        confirm="ip -br addr  # on two hosts; ping the address that NCCL listed",
        sources=("NCCL src/misc/socket.cc: findInterfaces", "NCCL user guide: NCCL_SOCKET_IFNAME"),
        explains=(*SYMPTOMS, *NETWORK, "net-socket-fallback"),
        restart="fix first: NCCL_SOCKET_IFNAME",
    )


def _unroutable(e: LogEvent) -> list[str]:
    """Interfaces of this line that no other host reaches."""
    pairs = re.findall(r"\[\d+\]([^\s:]+):(\S+?)(?:<\d+>)", e.details.get("devices", ""))
    if "interface" in e.details:
        pairs.append((e.details["interface"], e.details.get("address", "")))
    routable = [name for name, address in pairs if not address.lower().startswith("fe80")]
    return [
        name
        for name, address in pairs
        if address.lower().startswith("fe80")
        or (VIRTUAL.match(name) and not (name.startswith(("veth", "tun", "tap", "dummy")) and routable == [name]))
    ]


def _hosts_differ(log: Log) -> bool:
    """Whether hosts list different numbers of interfaces: then the n-th of one is not the n-th of the other."""
    listed: dict[str, set[str]] = {}
    for e in log.find("interface-using"):
        names = re.findall(r"\[\d+\]([^\s:]+):", e.details.get("devices", "")) or [e.details.get("interface", "")]
        for host in e.hosts:
            listed.setdefault(host, set()).update(names)
    return len({len(names) for names in listed.values()}) > 1


def _unroutable_peer(e: LogEvent) -> bool:
    peer = e.details.get("peer", "").lower().lstrip("[")
    return peer.startswith(("fe80", "169.254.", "172.17.0.", "172.18.0."))


@rule("LOG005", Severity.ERROR)
def tcp_between_hosts_is_blocked(log: Log) -> Iterator[Finding]:
    """A TCP connection between two hosts of the job is dropped or rejected.

    NCCL's bootstrap and torch's store use arbitrary ports: a firewall or security group that lets only some ports
    through stops them. "Connection refused" alone may as well mean that the process at the other end is gone.

    Fix: let all TCP ports through between the hosts of the job.
    """
    events = [e for e in log.find("connect-failed") if not _unroutable_peer(e) and not _loopback_peer(e)]
    loose = [e for e in log.find("unreachable") if not events]
    if not events and not loose:
        return
    first = (events or loose)[0]
    error = first.details.get("error", "")
    dead = died_before(log, first)
    refused = error.startswith(("Connection refused", "Connection reset", "Software caused"))
    confidence = Confidence.POSSIBLE if dead or not error or (refused and log.started) else Confidence.LIKELY
    peer = first.details.get("peer", "another host")
    yield found(
        "tcp-connect-blocked",
        f"connect to {peer}{on(events or loose)} failed: {error or 'gave up after its retries'}",
        [*events, *loose],
        why="ranks of different hosts must reach each other on any TCP port; this connection was "
        + ("rejected, or nobody listens there" if refused else "dropped or rejected on the way"),
        fixes=[
            ("let all TCP ports through between the hosts", "iptables -L -n; firewall-cmd --list-all"),
            ("see whether the port is reached", f"nc -vz {_host_of(peer)} 29500"),
        ],
        confidence=confidence,
        confirm=f"nc -l 40000 on {_host_of(peer)}, and `nc -vz {_host_of(peer)} 40000` on the other host",
        sources=("NCCL src/os/linux.cc: connect to", "NCCL user guide: Troubleshooting, Networking issues"),
        restart="fix first: the firewall or route between the hosts",
    )


def _loopback_peer(e: LogEvent) -> bool:
    return e.details.get("peer", "").lstrip("[").startswith(LOOPBACK)


def _host_of(peer: str) -> str:
    return re.split(r"[<\]]", peer.lstrip("["))[0] or "HOST"


@rule("LOG006", Severity.ERROR)
def rendezvous_name_does_not_resolve(log: Log) -> Iterator[Finding]:
    """The name of the master or of another host does not resolve.

    In Kubernetes a pod's name resolves only once the pod is ready, or with a headless service.

    Fix: use an address, or wait until the name resolves.
    """
    events = log.find("unresolvable")
    only_v6 = all("v6" in e.details for e in events)  # IPv4 is tried next, and may do
    if events and not (only_v6 and (log.started or log.ended_well)):
        name = next((e.details[k] for e in events for k in ("name", "name2") if k in e.details), "")
        yield found(
            "rendezvous-hostname-unresolvable",
            f"the host name {name or 'of the rendezvous'} does not resolve{on(events)} "
            f"({events[0].details.get('error', 'host not found')})",
            events,
            why="ranks look the master up by name before they connect",
            fixes=[
                ("see what the name resolves to", f"getent hosts {name or '$MASTER_ADDR'}"),
                ("use the address instead", "export MASTER_ADDR=$(hostname -I | cut -d' ' -f1)  # on the first host"),
            ],
            confidence=Confidence.CERTAIN,
            confirm=f"getent hosts {name or '$MASTER_ADDR'}  # where it failed",
            sources=("torch c10d socket.cpp", "getaddrinfo(3)"),
            explains=(*SYMPTOMS, "rendezvous-endpoint-unreachable", "tcp-connect-blocked"),
            restart="fix first: the name; in Kubernetes often the same nodes again, once DNS knows the pod",
        )


@rule("LOG007", Severity.ERROR)
def rendezvous_endpoint_does_not_answer(log: Log) -> Iterator[Finding]:
    """Nobody answers at the rendezvous address, or not all of the ranks came.

    The first host is not up yet or died, MASTER_ADDR or the port is another host's, or a firewall drops the packets.

    Fix: see that the process at MASTER_ADDR runs and listens, and that the port is open from the other hosts.
    """
    events = log.find(
        "store-timeout",
        "rendezvous-failed",
        "rendezvous-timeout",
        "clients-missing",
        "store-barrier",
        "store-refused",
        "store-key",
        "rendezvous-closed",
    )
    decisive = [e for e in events if e.kind not in ("store-refused", "store-key", "rendezvous-closed")]
    went_on = log.started or log.ended_well or log.has("init-start", "progress-bar", "bootstrap-using")
    if not decisive and (went_on or not events):
        return
    first = (decisive or list(events))[0]
    if any("127.0.0.1" in e.details.get("endpoint", "") for e in events) and (nodes(log) or 0) > 1:
        return  # the loopback rule says it
    dead = died_before(log, first)
    missing = next((e for e in events if "joined" in e.details), None)
    at = next((e.details["endpoint"] for e in events if "endpoint" in e.details), "")
    if missing and "world" in missing.details:
        message = f"only {missing.details['joined']} of {missing.details['world']} ranks came to the rendezvous"
    else:
        message = f"the rendezvous {at or 'endpoint'} does not answer{on(events)}"
    yield found(
        "rendezvous-endpoint-unreachable",
        message,
        decisive or events,
        why="every rank connects to the store of the first one before anything else",
        fixes=[
            ("see that the first host listens", "ss -ltn  # at MASTER_ADDR"),
            ("see that the port is reached from the others", "nc -vz $MASTER_ADDR $MASTER_PORT"),
        ],
        confidence=Confidence.LIKELY if decisive and not dead else Confidence.POSSIBLE,
        confirm="nc -vz $MASTER_ADDR $MASTER_PORT  # from a host that waited",
        sources=("torch c10d TCPStore.cpp, socket.cpp", "torch elastic rendezvous"),
        restart="fix first: the rendezvous address or the firewall",
    )


@rule("LOG008", Severity.ERROR)
def rendezvous_port_is_taken(log: Log) -> Iterator[Finding]:
    """The rendezvous port is taken by another process, or may not be used.

    A second job on the host, a process left over from the last run, or a port of a system service.

    Fix: choose another port, or end the process that holds it.
    """
    events = log.find("port-in-use", "port-forbidden")
    if events:
        at = next((e.details[k] for e in events for k in ("address", "port") if k in e.details), "")
        port = at.rpartition(":")[2].strip("])")
        small = port.isdigit() and int(port) < PRIVILEGED_PORTS
        yield found(
            "port-in-use",
            f"port {port or 'of the rendezvous'} can't be bound{on(events)}: "
            + ("it is a system service's" if small else "another process has it"),
            events,
            why="the first rank must listen there before the others can come",
            fixes=[
                ("see who has it", f"ss -ltnp 'sport = :{port or '29500'}'"),
                ("choose another", "export MASTER_PORT=$((20000 + RANDOM % 20000))"),
            ],
            confidence=Confidence.CERTAIN,
            confirm=f"ss -ltnp 'sport = :{port or '29500'}'",
            sources=("torch c10d socket.cpp: The server socket has failed to bind",),
            explains=(*SYMPTOMS, "rendezvous-endpoint-unreachable", "tcp-connect-blocked"),
            restart="fix first: another port; then the same nodes",
        )


@rule("LOG009", Severity.ERROR)
def open_files_limit_reached(log: Log) -> Iterator[Finding]:
    """A process ran out of file descriptors.

    NCCL opens sockets per peer and channel, data loaders open files and pipes; a soft limit of 1,024 is reached from a
    few nodes on.

    Fix: raise the soft limit in the job script.
    """
    events = log.find("open-files")
    if events:
        yield found(
            "open-files-limit",
            f"too many open files{on(events)}: the limit of descriptors per process is reached",
            events,
            why="each connection of NCCL is a descriptor; their number grows with ranks and channels",
            fixes=[("raise the soft limit before the job's command", "ulimit -n $(ulimit -Hn)")],
            confidence=Confidence.CERTAIN,
            confirm="ulimit -n  # in the job's shell; cat /proc/PID/limits",
            sources=("errno 24 EMFILE; NCCL src/os/linux.cc: Accept failed",),
            explains=(*SYMPTOMS, *NETWORK),
            restart="fix first: ulimit -n; then the same nodes",
        )


@rule("LOG010", Severity.ERROR)
def hosts_share_one_name(log: Log) -> Iterator[Finding]:
    """Different machines report the same host identity, so NCCL takes them for one.

    It then tries CUDA IPC and shared memory between machines. NCCL builds the identity of host name and boot id.

    Fix: give each machine or container its own host name, or set NCCL_HOSTID.
    """
    ipc = log.find("ipc-failed", "shm-missing")
    addresses: dict[str, dict[str, set[str]]] = {}
    for e in log.find("bootstrap-using", "interface-using"):
        if "address" in e.details and e.host and not e.details["address"].startswith(LOOPBACK):
            addresses.setdefault(e.host, {}).setdefault(e.details.get("interface", ""), set()).add(e.details["address"])
    doubled = {h: sorted(a) for h, by in addresses.items() for a in by.values() if len(a) > 1}
    called_localhost = [e for e in ipc if "localhost" in e.hosts]
    duplicates = [e for e in log.find("duplicate-gpu") if doubled]
    sure = bool(doubled or called_localhost)
    if not sure:
        ipc = log.find("ipc-failed")
    if not (ipc or duplicates or (doubled and _failed(log))):
        return
    host = next(iter(doubled), "localhost" if called_localhost else next(iter(hosts_of(ipc)), "of a rank"))
    seen = f"has the addresses {', '.join(doubled[host][:4])}" if doubled else "may be that of several machines"
    lines = [e for e in log.find("bootstrap-using", "interface-using") if e.host in doubled]
    yield found(
        "hostname-collision",
        f"the host name {host} {seen}: NCCL takes different machines for one",
        [*lines[:3], *ipc, *duplicates],
        why="NCCL then opens GPU memory and shared memory of another machine, which can't work",
        fixes=[
            ("give each machine its own name", "hostnamectl set-hostname NAME"),
            ("or tell NCCL apart", "export NCCL_HOSTID=$(cat /sys/class/net/eth0/address)"),
        ],
        confidence=Confidence.LIKELY if sure else Confidence.POSSIBLE,
        confirm="hostname; cat /proc/sys/kernel/random/boot_id  # on each",
        sources=("NCCL src/misc/utils.cc: getHostHash", "NCCL user guide: NCCL_HOSTID"),
        explains=(*SYMPTOMS, *(("duplicate-gpu-rank-mapping", "cumem-host-asymmetry") if sure else ())),
        restart="fix first: host names",
        hosts=(host,),
    )


def _failed(log: Log) -> bool:
    return log.has("nccl-error", "cuda-failure", "peer-closed")


@rule("LOG011", Severity.ERROR)
def a_foreign_process_speaks(log: Log) -> Iterator[Finding]:
    """A process that is not of this job speaks on its ports, or two claim one rank.

    Two jobs share MASTER_ADDR and port, a process of the last run is still there, RANK is set twice, or a port scanner
    knocked.

    Fix: end what is left of the last run, and give each job its own port and each rank its own number.
    """
    twice = log.find("rank-twice")
    foreign = log.find("foreign-bytes")
    if not twice and (not foreign or log.started):
        return
    yield found(
        "port-in-use",
        (
            "two processes claim one rank at the bootstrap"
            if twice
            else "a process that is not of this job answers at the bootstrap"
        )
        + on([*twice, *foreign]),
        [*twice, *foreign],
        why="the ranks of two jobs, or two starts of one rank, met at the same port",
        fixes=[
            ("see what is left of earlier runs", "ps aux | grep -c python"),
            ("choose another port", "export MASTER_PORT=$((20000 + RANDOM % 20000))"),
        ],
        severity=Severity.ERROR if twice else Severity.WARNING,
        confidence=Confidence.LIKELY if twice else Confidence.POSSIBLE,
        confirm="echo $RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT  # on each rank",
        sources=("NCCL src/bootstrap.cc: has already checked in",),
        restart="fix first: leftovers and the port",
        hosts=hosts_of([*twice, *foreign]),
    )


@rule("LOG012", Severity.WARNING)
def a_peer_closed_its_connection(log: Log) -> Iterator[Finding]:
    """Other ranks closed their connections: they ended before this one.

    This is what survivors see. It names no cause: the rank that ended first does.

    Fix: look at the log of the rank or host that is named, at the time of the first such line.
    """
    events = log.find("peer-closed", "peer-reset", "remote-error")
    if events and not log.ended_well:
        peers = sorted({e.details["peer"] for e in events if e.details.get("peer")})
        yield found(
            "peer-died",
            f"connections were closed by the other end{on(events)}"
            + (f"; peers: {', '.join(peers[:4])}" if peers else ""),
            events,
            why="a process closes its connections when it ends; the survivors report it",
            severity=Severity.WARNING,
            confidence=Confidence.POSSIBLE,
            confirm="the log of the peer, and `dmesg` and the scheduler's record of its host",
            sources=("NCCL src/misc/socket.cc: Connection closed by remote peer",),
            explains=("straggler-or-hung-rank", "nccl-failed"),
            restart=without(()) if not peers else f"unknown: see what ended {peers[0]} first",
        )
