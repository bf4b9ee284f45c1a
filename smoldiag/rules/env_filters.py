"""ENV: lists of interfaces and devices, held against those that are here."""

import ipaddress
from collections.abc import Iterator

from smoldiag.facts import Env, Gid, Gpu, Nic
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.model.nccl_values import NameFilter, name_filter
from smoldiag.rules import rule
from smoldiag.rules.env_reading import Setting, Versions, finding, is_unresolved, plain, remove, replace_by

VERBS = {"infiniband", "roce"}
EXACT_LISTS = ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME")  # names, not prefixes
PREFIXES = "NVIDIA/nccl src/misc/utils.cc matchIfList: entries are prefixes unless the list begins with ="
GID_BY_ITSELF = (2, 21, 0)  # from here on, NCCL looks for a RoCE v2 GID with an IPv4 address (user guide)
MOST_NAMED = 6


def interfaces(nics: tuple[Nic, ...]) -> list[str]:
    """Those that NCCL would consider: running and with an address."""
    running = (n for n in nics if n.kind == "ethernet" and (n.up is not False or n.state == "unknown"))
    return [n.name for n in running if n.addresses is None or n.addresses]


def devices(nics: tuple[Nic, ...]) -> list[Nic]:
    """Ports that NCCL's InfiniBand transport would consider."""
    return [n for n in nics if n.kind in VERBS and n.up is not False]


def device(n: Nic) -> str:
    return n.device or n.name.partition(":")[0]


def _ports(found: list[Nic], wanted: NameFilter) -> list[Nic]:
    return [n for n in found if wanted.takes(device(n), port=n.port)]


@rule("ENV019", Severity.ERROR)
def filter_that_matches_nothing(
    env: Env, versions: Versions | None, nics: tuple[Nic, ...], gpus: tuple[Gpu, ...] | None
) -> Iterator[Finding]:
    """A list of interfaces or devices matches none that is up on this host.

    Without an interface NCCL's init and gloo fail; without an RDMA device NCCL goes over TCP and says
    so only at INFO. Lists are copied from hosts whose devices are named otherwise. NCCL_SOCKET_IFNAME and
    NCCL_IB_HCA hold prefixes, GLOO_SOCKET_IFNAME and TP_SOCKET_IFNAME whole names.

    Fix: name what is here, or remove the variable.
    """
    taken = plain(env, versions)
    up = [*interfaces(nics), "lo"]
    here = bool(gpus)
    s = taken.get("NCCL_SOCKET_IFNAME")
    wanted = name_filter(s.value) if s else None
    if s and wanted and not any(wanted.takes(n) for n in up):
        yield _no_interface(s, up, here, "NCCL finds no interface, and init fails here", wanted)
    for name in EXACT_LISTS:
        if (s := taken.get(name)) and set(s.value.split(",")) - set(up):
            yield _no_interface(s, up, here, "the address of this interface can't be found, and init fails", None)
    found = devices(nics)
    if (s := taken.get("NCCL_IB_HCA")) and (wanted := name_filter(s.value)) and found and not _ports(found, wanted):
        names = sorted({device(n) for n in found})
        yield finding(
            s,
            f"{s.text} takes none of the RDMA devices that are up here: {_some(names)}",
            cause="ib-hca-filter-no-match",
            severity=Severity.WARNING,
            confidence=Confidence.CERTAIN if here else Confidence.LIKELY,
            where=Where(nics=tuple(names)),
            why="NCCL then goes over TCP sockets, and only an INFO line says so",
            fixes=(remove(s.variable), replace_by(s.variable, "=" + ",".join(names))),
            confirm="NCCL_DEBUG=INFO: `NET/IB : No device found`, then `Using network Socket`",
            explains=("net-socket-fallback", "busbw-below-expected"),
        )


def _no_interface(s: Setting, up: list[str], here: bool, effect: str, wanted: NameFilter | None) -> Finding:
    usable = [n for n in up if n != "lo" and not n.startswith(("docker", "veth", "virbr", "br-"))]
    open_end = wanted is not None and not wanted.exact and not wanted.exclude and not wanted.names[0][-1].isdigit()
    stem = wanted.names[0] if wanted else ""
    how = f" (a prefix: it would take {stem}0 and {stem}0.2093 alike)" if open_end else ""
    return finding(
        s,
        f"{s.text}{how} matches no interface that is up here: {_some(up)}",
        cause="socket-ifname-no-match",
        severity=Severity.ERROR if here else Severity.WARNING,
        confidence=Confidence.CERTAIN if here else Confidence.LIKELY,
        where=Where(nics=tuple(usable)),
        why=effect + ("" if here else "; a host with GPUs may have other interfaces"),
        fixes=(
            *((replace_by(s.variable, f"={usable[0]}" if wanted else usable[0]),) if len(usable) == 1 else ()),
            Fix(do="let it be chosen", command=remove(s.variable).command),
        ),
        confirm="NCCL_DEBUG=INFO: `Bootstrap: no socket interface found`" if wanted else "",
        explains=("no-usable-ip-interface",),
    )


@rule("ENV020", Severity.WARNING)
def filter_that_takes_more_than_it_names(
    env: Env, versions: Versions | None, nics: tuple[Nic, ...] | None
) -> Iterator[Finding]:
    """An entry of a list is a prefix, and takes further interfaces or devices.

    Without a leading `=` in NCCL_IB_HCA or NCCL_SOCKET_IFNAME, mlx5_1 is mlx5_10 to mlx5_19 as well, bond0 is
    bond0.2093 as well: traffic goes over a network that was not meant, and may not even lead to the other hosts.

    Fix: begin the list with `=`.
    """
    taken = plain(env, versions)
    off = taken.number("NCCL_IB_DISABLE")
    for name in ("NCCL_SOCKET_IFNAME", *(() if off else ("NCCL_IB_HCA",))):
        s = taken.get(name)
        wanted = name_filter(s.value) if s else None
        if s is None or wanted is None or wanted.exact:
            continue
        if nics is None:
            yield from _possible_trap(s, wanted)
            continue
        names = sorted({device(n) for n in devices(nics)}) if name == "NCCL_IB_HCA" else interfaces(nics)
        yield from _trap(s, wanted, names)


def _trap(s: Setting, wanted: NameFilter, names: list[str]) -> Iterator[Finding]:
    caught = {n: entry for entry in wanted.names for n in wanted.taken_by(entry, names) if n not in wanted.names}
    whole = {n: entry for n, entry in caught.items() if entry in names}
    vlans = {n: entry for n, entry in caught.items() if n.partition(".")[0] in caught and "." in n}
    extra = whole or vlans
    if not extra:
        return
    verb = "leaves out" if wanted.exclude else "takes"
    bare = s.value.removeprefix("^")
    listed = bare if set(wanted.names) <= set(names) else ",".join(sorted(n for n in caught if n not in extra))
    yield finding(
        s,
        f"{s.text} {verb} {_some(sorted(extra))} as well: entries are prefixes unless the list begins with =",
        cause="filter-prefix-trap",
        where=Where(nics=tuple(sorted(extra))),
        why="traffic takes a network that was not meant, and hosts whose names differ choose differently",
        fixes=(replace_by(s.variable, f"{'^' * wanted.exclude}={listed}", scripted=s.scripted),),
        confirm="NCCL_DEBUG=INFO prints what is used: `NET/IB : Using ...`, `Bootstrap: Using ...`",
        sources=(PREFIXES, s.spec.source),
    )


def _possible_trap(s: Setting, wanted: NameFilter) -> Iterator[Finding]:
    """Where the devices are not known: entries that commonly take more."""
    if s.name == "NCCL_IB_HCA":
        risky = [e for e in wanted.names if e.endswith("_1") and not any(n.startswith(e + "0") for n in wanted.names)]
        more = f"{risky[0]}0 and up" if risky else ""
    else:
        risky = [e for e in wanted.names if not e[-1].isdigit() and not wanted.exclude]
        more = f"{risky[0]}0 and {risky[0]}0.2093" if risky else ""
    if not risky:
        return
    yield finding(
        s,
        f"{s.text}: entries are prefixes; {risky[0]} takes {more} alike where a host has them",
        cause="filter-prefix-trap",
        severity=Severity.INFO,
        confidence=Confidence.POSSIBLE,
        why="traffic may take a network that was not meant",
        fixes=(Fix(do=f"name the interfaces exactly, after a further =: {s.name}==..."),)
        if s.name != "NCCL_IB_HCA"
        else (replace_by(s.variable, f"{'^' * wanted.exclude}={s.value.removeprefix('^')}", scripted=s.scripted),),
        sources=(PREFIXES, s.spec.source),
    )


@rule("ENV021", Severity.ERROR)
def loopback_forced(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """A variable binds ranks to the loopback interface, which no other host reaches.

    NCCL_SOCKET_IFNAME=lo or MASTER_ADDR=127.0.0.1 work on one host, where such lines are tried out; with
    several, every rank waits for peers at its own address.

    Fix: name the interface that the hosts share, or remove the variable.
    """
    hosts = num_hosts(env)
    if hosts == 1:
        return
    taken = plain(env, versions)
    for name in ("NCCL_SOCKET_IFNAME", *EXACT_LISTS, "MASTER_ADDR"):
        s = taken.get(name)
        if s is None or not (_is_loopback(s.value) if name == "MASTER_ADDR" else s.value in ("lo", "=lo")):
            continue
        if hosts is None and name == "MASTER_ADDR":
            continue
        yield finding(
            s,
            f"{s.text} is the loopback"
            + (f", and the job has {hosts} hosts" if hosts else ": only ranks of one host meet"),
            cause="loopback-interface-selected",
            severity=Severity.ERROR if hosts else Severity.INFO,
            confidence=Confidence.CERTAIN if hosts else Confidence.POSSIBLE,
            evidence=(*env.evidence(name), *env.evidence("SLURM_NNODES", "SLURM_JOB_NUM_NODES", "GROUP_WORLD_SIZE")),
            why="no other host reaches this address",
            fixes=(
                Fix(do="name the first host", command="export MASTER_ADDR=$(scontrol show hostnames | head -1)")
                if name == "MASTER_ADDR"
                else remove(s.variable, scripted=s.scripted),
            ),
        )


def num_hosts(env: Env) -> int | None:
    """Of the job, as launchers say it."""
    for name in ("GROUP_WORLD_SIZE", "SLURM_JOB_NUM_NODES", "SLURM_NNODES"):
        if (text := env.get(name)) and text.isdigit():
            return int(text)
    for world, local in (("WORLD_SIZE", "LOCAL_WORLD_SIZE"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")):
        counts = [t for t in (env.get(world), env.get(local)) if t and t.isdigit() and int(t)]
        if len(counts) == 2:
            return -(-int(counts[0]) // int(counts[1]))
    return None


def _is_loopback(address: str) -> bool:
    if address in ("localhost", "localhost.localdomain"):
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


@rule("ENV022", Severity.ERROR)
def gid_index_fixed(env: Env, versions: Versions | None, nics: tuple[Nic, ...] | None) -> Iterator[Finding]:
    """NCCL_IB_GID_INDEX fixes an entry of the GID table, which differs between hosts and ports.

    Tables are filled in the order in which addresses come up. A wrong entry, RoCE v1 or link-local,
    does not route: connections time out with error 12. From 2.21 on NCCL finds the entry itself.

    Fix: remove it; NCCL_IB_ADDR_RANGE narrows the choice where several addresses fit.
    """
    s = plain(env, versions).get("NCCL_IB_GID_INDEX")
    index = plain(env, versions).number("NCCL_IB_GID_INDEX")
    if s is None or index is None or index < 0:
        return
    wanted = name_filter(env.get("NCCL_IB_HCA") or "") if not is_unresolved(env.get("NCCL_IB_HCA") or "") else None
    roce = [
        n
        for n in devices(nics or ())
        if n.kind == "roce" and n.gids is not None and (not wanted or _ports([n], wanted))
    ]
    wrong = {n.name: _gid(n, index) for n in roce if not _routes(_gid(n, index))}
    if wrong:
        name, gid = next(iter(wrong.items()))
        has = f"{gid.kind or 'a GID'} {gid.address}" if gid else "no such entry"
        yield finding(
            s,
            f"{s.text}: entry {index} of {name} is {has}, not RoCE v2 with an IPv4 address"
            + (f"; {len(wrong)} of {len(roce)} ports are like this" if len(wrong) > 1 else ""),
            cause="roce-gid-index-wrong",
            severity=Severity.ERROR,
            confidence=Confidence.LIKELY,
            where=Where(nics=tuple(wrong)),
            why="such a GID does not route between hosts: connections time out with error 12",
            fixes=(remove(s.variable, scripted=s.scripted),),
            confirm="smoldiag nccl-bench between two hosts, with NCCL_DEBUG=INFO",
            explains=("roce-path-unreachable",),
        )
    elif s.version is None or s.version >= GID_BY_ITSELF:
        picks = f"{s.release} picks" if s.version else "NCCL 2.21 and later pick"
        yield finding(
            s,
            f"{s.text} fixes the GID entry for all hosts and ports; {picks} a fitting one per port",
            cause="gid-index-fixed",
            severity=Severity.INFO,
            why="the table is filled in the order in which addresses come up, and differs between hosts",
            fixes=(remove(s.variable, scripted=s.scripted),),
        )


def _gid(n: Nic, index: int) -> Gid | None:
    return next((g for g in n.gids or () if g.index == index), None)


def _routes(gid: Gid | None) -> bool:
    """RoCE v2 with an address that is not link-local; None of the kind counts as unknown, hence as good."""
    if gid is None:
        return False
    try:
        address = ipaddress.IPv6Address(gid.address)
    except ValueError:
        return True
    link_local = address.is_link_local or int(address) == 0
    return not link_local and (gid.kind is None or "v2" in gid.kind)


def _some(names: list[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")
