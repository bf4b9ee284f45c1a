"""Failures of InfiniBand, RoCE, EFA and network plugins, as logs show them."""

import re
from collections.abc import Iterator

from smoldiag.facts import Log, LogEvent
from smoldiag.findings import Confidence, Finding, Severity
from smoldiag.rules import rule
from smoldiag.rules.logs import NETWORK, SYMPTOMS, died_before, found, hosts_of, nodes, on, value, without

# ibv_wc_status (libibverbs verbs.h)
PROTECTION = {"4", "8", "10"}  # local protection, local access, remote access: the memory that was named is not reached
FLUSHED = "5"  # what was still queued when something else failed
RETRIES = {"12", "13"}  # no answer
ETHERNET_NAMES = re.compile(r"^(?:lo|eth|en|bond|ib\d|wlan|docker|veth|net)")
MANY_STEPS = 20  # lines of steps from which on a run is surely under way
ATTENDANTS = (*SYMPTOMS, "gdr-peermem-not-active")


UCX = {"transport retry": RETRIES, "local protection": PROTECTION, "remote access": PROTECTION}


def _completions(log: Log, statuses: set[str]) -> list[LogEvent]:
    """Work requests that came back with one of these; UCX says the same in words."""
    events = [e for e in log.find("ib-completion") if e.details.get("status") in statuses]
    words = [start for start, of in UCX.items() if of == statuses]
    return events + [e for e in log.find("ucx-error") if e.details["what"].lower().startswith(tuple(words) or ("-",))]


def _is_roce(log: Log) -> bool | None:
    layer = log.transport.link_layer if log.transport else None
    told = {e.details.get("layer") for e in log.find("link-layer")}
    if layer == "RoCE" or "Ethernet" in told:
        return True
    if layer == "IB" or "InfiniBand" in told:
        return False
    text = " ".join(e.text for e in log.find("ib-completion", "modify-qp", "gid-failed"))
    gids = re.findall(r"(?i)gids? ?([0-9a-f:.]{6,60})", text)  # of InfiniBand they begin with the subnet's prefix, fe80
    if any(not gid.lower().startswith("fe80") for gid in gids) or "RoCE" in text or value(log, "NCCL_IB_GID_INDEX"):
        return True
    return None


def _unanswered(log: Log) -> list[LogEvent]:
    """Work requests that nobody acknowledged, where that has no other explanation in the log."""
    events = _completions(log, RETRIES)
    return [e for e in events if not died_before(log, e)]


@rule("LOG070", Severity.ERROR)
def acs_breaks_gpudirect(log: Log) -> Iterator[Finding]:
    """RDMA to or from GPU memory is refused (status 4, 8 or 10): ACS, or no ATS.

    With PCIe ACS the NIC's access to the GPU is sent to the root complex, and the address is not what it was.

    Fix: turn ACS off on the bridges between GPU and NIC (bare metal), or ATS on (virtual); to go on,
    NCCL_NET_GDR_LEVEL=LOC.
    """
    events = _completions(log, PROTECTION)
    if events:
        local = [e for e in events if e.details.get("status", "4") == "4"]
        yield found(
            "pcie-acs-breaks-gdr",
            f"an RDMA request was refused with status {events[0].details.get('status', '4')}"
            + (f", vendor error {events[0].details['vendor']}" if "vendor" in events[0].details else "")
            + f"{on(events)}: GPU memory is not reached",
            events,
            why="the NIC can't use the address of GPU memory: ACS redirects it, or the registration is not valid",
            fixes=[
                (
                    "turn ACS off between GPU and NIC",
                    "for b in $(lspci -D | awk '/bridge/{print $1}'); do setpci -s $b ECAP_ACS+6.w=0000; done",
                ),
                ("go on without GPUDirect", "export NCCL_NET_GDR_LEVEL=LOC"),
            ],
            confidence=Confidence.LIKELY if local else Confidence.POSSIBLE,
            confirm="export NCCL_NET_GDR_LEVEL=LOC: it should work; lspci -vvv | grep ACSCtl",
            sources=("NCCL user guide: Troubleshooting, PCI Access Control Services", "libibverbs: ibv_wc_status"),
            explains=ATTENDANTS,
            restart="same nodes with NCCL_NET_GDR_LEVEL=LOC, or fix first: ACS",
        )


@rule("LOG071", Severity.ERROR)
def gpudirect_is_off(log: Log) -> Iterator[Finding]:
    """NCCL finds GPUDirect RDMA disabled for a device that could have it.

    nvidia-peermem is not loaded, or not registered with this OFED and kernel; DMA-BUF is the other way.

    Fix: load nvidia-peermem on every host, or use a driver and kernel with DMA-BUF.
    """
    events = [
        e
        for e in log.find("gdr-disabled")
        if e.details.get("net", "IB") not in ("Socket", "FastSocket")
        and not ETHERNET_NAMES.match(e.details.get("hca", ""))
        and e.details.get("why") != "distance"
        and "distance" not in e.text
    ]
    refused = [
        e
        for e in log.find("reg-mr")
        if e.details.get("call") == "ibv_reg_mr"
        and e.details.get("error", "").startswith(("Bad address", "Invalid arg"))
    ]
    module = [*log.find("peermem"), *refused]
    on_sockets = bool(log.transport and log.transport.network in ("Socket", "FastSocket"))
    if not (events or module) or (on_sockets and not module):
        return
    if not module and nodes(log) == 1:
        return
    hca = next((e.details["hca"] for e in events if e.details.get("hca")), "")
    yield found(
        "gdr-peermem-not-active",
        f"GPU memory can't be registered with the NIC{on(refused)}"
        if refused
        else f"GPUDirect RDMA is disabled{f' for {hca}' if hca else ''}{on(events or module)}",
        [*events, *module],
        why="data between nodes is copied through host memory: half of the bandwidth, or less",
        fixes=[
            ("load the module", "modprobe nvidia-peermem"),
            ("see whether it registered", "lsmod | grep -E 'nvidia_peermem|ib_uverbs'; dmesg | grep -i peermem"),
        ],
        severity=Severity.ERROR if refused else Severity.WARNING,
        confidence=Confidence.LIKELY,
        confirm="`via NET/IB/0/GDRDMA` in the channel lines of the next run",
        sources=("NCCL user guide: Troubleshooting, GPU Direct RDMA",),
        explains=(),
    )


@rule("LOG072", Severity.ERROR)
def dmabuf_is_not_supported(log: Log) -> Iterator[Finding]:
    """GPU memory can't be registered through DMA-BUF: something on the way lacks support.

    DMA-BUF needs Linux 5.12, an open NVIDIA kernel module and RDMA drivers that know it; NCCL then needs
    nvidia-peermem instead.

    Fix: NCCL_DMABUF_ENABLE=0 with nvidia-peermem loaded, or newer drivers.
    """
    events = [
        e
        for e in log.find("reg-mr")
        if "dmabuf" in e.details.get("call", "") and "allocate memory" not in e.details.get("error", "")
    ]
    if events:
        error = events[0].details.get("error", "").strip()
        yield found(
            "dmabuf-unsupported",
            f"GPU memory can't be registered through DMA-BUF{on(events)}" + (f": {error}" if error else ""),
            events,
            why="the kernel or a driver on the way does not support DMA-BUF for RDMA",
            fixes=[
                ("use nvidia-peermem instead", "modprobe nvidia-peermem; export NCCL_DMABUF_ENABLE=0"),
                ("see what is there", "uname -r; ofed_info -s; cat /proc/driver/nvidia/version"),
            ],
            confidence=Confidence.LIKELY,
            confirm="export NCCL_DMABUF_ENABLE=0; start again",
            sources=("NCCL user guide: NCCL_DMABUF_ENABLE", "libibverbs: ibv_reg_dmabuf_mr(3)"),
            restart="fix first: NCCL_DMABUF_ENABLE=0 and nvidia-peermem",
        )


@rule("LOG073", Severity.ERROR)
def roce_gid_index_is_wrong(log: Log) -> Iterator[Finding]:
    """RoCE uses an entry of the GID table that does not reach the peer.

    Each address of the interface has entries for RoCE v1 and v2; only the v2 entry of a routable address crosses
    subnets. The index may differ from host to host.

    Fix: on NCCL 2.21 and later unset NCCL_IB_GID_INDEX; before, set it to the RoCE v2 entry of the IPv4 address.
    """
    refused = [  # EINVAL, or ENODATA: the kernel has no entry of that index
        e
        for e in log.find("modify-qp")
        if e.details.get("code") in ("22", "61") or e.details.get("error", "").startswith(("Invalid", "No data"))
    ]
    table = log.find("gid-failed")
    silent = [*_unanswered(log), *_no_path(log)]
    if not (refused or table or (silent and _is_roce(log) is not False)):
        return
    index = value(log, "NCCL_IB_GID_INDEX")
    from_start = silent and not _in_the_middle(log, silent)
    strong = bool(refused or table) or (bool(from_start) and _is_roce(log) is True and not _no_path(log))
    if log.has("ib-port-error", "ib-hca-fatal") and not strong:
        return
    yield found(
        "roce-gid-index-wrong",
        (
            f"a queue pair can't be set up{on(refused)}: the GID is not valid for the peer"
            if refused
            else f"no peer answers over RoCE{on(silent or table)}"
        )
        + (f"; NCCL_IB_GID_INDEX={index}" if index else ""),
        [*refused, *table, *silent],
        why="with a GID of the wrong version or address packets go nowhere",
        fixes=[
            ("see the table", "show_gids  # the v2 entry with the IPv4 address"),
            ("use it", "export NCCL_IB_GID_INDEX=3  # or unset it on NCCL 2.21 and later"),
        ],
        severity=Severity.ERROR if strong else Severity.WARNING,
        confidence=Confidence.LIKELY if strong else Confidence.POSSIBLE,
        confirm="ib_write_bw -d mlx5_0 -x 3 HOST  # works with the v2 entry's index, and not with another?",
        sources=("NCCL user guide: NCCL_IB_GID_INDEX", "NCCL src/misc/ibvwrap.cc: ibv_modify_qp"),
        explains=ATTENDANTS,
        restart="fix first: the GID index",
    )


@rule("LOG074", Severity.ERROR)
def rdma_path_does_not_exist(log: Log) -> Iterator[Finding]:
    """Two NICs of the job do not reach each other over RDMA.

    A rail-only fabric without a path between rails, VLANs or routes that are missing, a switch that drops the traffic
    class: queue pairs time out when they are set up (110), or no work request is answered (status 12).

    Fix: NCCL_CROSS_NIC=0 on rail-only fabrics; otherwise routes, VLANs and switch configuration.
    """
    timed_out = _no_path(log)
    silent = _unanswered(log)
    if not timed_out and not silent:
        return
    blamed = log.has("ib-port-error", "ib-hca-fatal")
    peer = next((e.details["peer"] for e in (*timed_out, *silent) if e.details.get("peer")), "a peer")
    yield found(
        "roce-path-unreachable",
        (
            f"a queue pair timed out when it was set up{on(timed_out)}"
            if timed_out
            else f"{peer} does not answer RDMA requests{on(silent)} (status 12)"
        ),
        [*timed_out, *silent],
        why="the RDMA packets of this pair of NICs do not arrive, while TCP may work",
        fixes=[
            ("see whether the pair works at all", "ib_write_bw -d mlx5_0 HOST; ping -I ib0 HOST"),
            ("keep to the rails", "export NCCL_CROSS_NIC=0"),
        ],
        severity=Severity.ERROR if timed_out or not blamed else Severity.WARNING,
        confidence=Confidence.LIKELY if timed_out else Confidence.POSSIBLE,
        confirm="ib_write_bw between exactly these two devices; ibstat and link counters on both ends",
        sources=("NCCL src/misc/ibvwrap.cc", "libibverbs: IBV_WC_RETRY_EXC_ERR"),
        explains=ATTENDANTS,
        restart="unknown: see first whether this pair of NICs works",
    )


def _in_the_middle(log: Log, events: list[LogEvent]) -> bool:
    """Whether training was under way and stopped with these."""
    if log.steps_from is None or log.steps_to is None or log.num_steps < MANY_STEPS:
        return False
    return log.steps_from < events[0].order and log.steps_to < events[-1].order


def _no_path(log: Log) -> list[LogEvent]:
    """Queue pairs that timed out when they were set up."""
    return [
        e
        for e in log.find("modify-qp")
        if e.details.get("code") in ("110", "101", "113")
        or any(w in e.details.get("error", "") for w in ("timed out", "unreachable", "No route"))
    ]


@rule("LOG075", Severity.ERROR)
def ib_link_went_down(log: Log) -> Iterator[Finding]:
    """A link of the RDMA fabric went down or flaps.

    The adapter reports a port error; requests to that host are then no longer answered (status 12), and those behind
    them are flushed (5).

    Fix: cable, transceiver or switch port of that host; leave the host out until it is sound.
    """
    events = log.find("ib-port-error")
    silent = _unanswered(log) if not events else []
    late = silent if silent and (_in_the_middle(log, silent) or _is_roce(log) is False) else []
    if not events and not late:
        return
    hosts = hosts_of(events) or _peers(late)
    yield found(
        "ib-link-down-or-flapping",
        f"a port of the RDMA network reported an error{on(events)}"
        if events
        else f"{', '.join(hosts[:4]) or 'a peer'} stopped answering in the middle of the run (status 12)",
        [*events, *late, *_completions(log, RETRIES)[:2]],
        why="a link that goes down, even for seconds, ends the queue pairs on it",
        fixes=[
            ("see the port and its errors", "ibstat; ibqueryerrors; dmesg -T | grep -i mlx5"),
            ("ride out short ones", "export NCCL_IB_TIMEOUT=22 NCCL_IB_RETRY_CNT=7"),
        ],
        severity=Severity.ERROR,
        confidence=Confidence.CERTAIN if events and _completions(log, RETRIES) else Confidence.LIKELY,
        confirm="link_downed counters of that host's ports, before and after; dmesg | grep -i 'link down'",
        sources=("NCCL src/transport/net_ib: async event", "libibverbs: IBV_EVENT_PORT_ERR"),
        explains=(*ATTENDANTS, *(n for n in NETWORK if n != "ib-link-down-or-flapping")),
        restart=without(hosts),
        hosts=hosts,
    )


def _peers(events: list[LogEvent]) -> tuple[str, ...]:
    """Who did not answer, of the requests that failed."""
    peers = (e.details.get("peer", "").rpartition("<")[0] for e in events)
    return tuple(dict.fromkeys(p for p in peers if p))


@rule("LOG076", Severity.ERROR)
def rdma_adapter_failed(log: Log) -> Iterator[Finding]:
    """An RDMA adapter reported a fatal error of its own.

    Firmware, PCIe or the board: everything on that adapter fails in the same second.

    Fix: leave the host out; firmware update, reseat or replace the adapter.
    """
    events = log.find("ib-hca-fatal")
    if events:
        more = log.find("ib-event-failed")
        yield found(
            "ib-hca-fatal-error",
            f"an RDMA adapter failed{on(events)}",
            [*events, *more],
            why="the adapter is reset or dead; all its queue pairs are gone",
            fixes=[
                ("see what the driver says", "dmesg -T | grep -i mlx5"),
                ("leave the host out", f"--exclude={','.join(hosts_of(events)[:8]) or 'HOST'}"),
            ],
            confidence=Confidence.CERTAIN,
            confirm="dmesg -T | grep -i -E 'mlx5|health'  # on that host",
            sources=("libibverbs: IBV_EVENT_DEVICE_FATAL", "Linux mlx5_core: health"),
            explains=(*ATTENDANTS, *NETWORK),
            restart=without(hosts_of(events)),
        )


@rule("LOG077", Severity.WARNING)
def hca_filter_matches_nothing(log: Log) -> Iterator[Finding]:
    """NCCL_IB_HCA is set and no RDMA device is found: the filter matches none that is active.

    NCCL then takes TCP sockets without an error.

    Fix: name devices that are there and active, or unset NCCL_IB_HCA.
    """
    events = log.find("ib-no-device")
    wanted = value(log, "NCCL_IB_HCA")
    if events and wanted and value(log, "NCCL_IB_DISABLE") != "1":
        sockets = log.transport is not None and log.transport.network == "Socket"
        yield found(
            "ib-hca-filter-no-match",
            f"NCCL_IB_HCA={wanted} matches no active RDMA device{on(events)}"
            + ("; NCCL took sockets" if sockets else ""),
            events,
            why="the wanted devices do not exist here, are down, or are not passed to the container",
            fixes=[
                ("see what is there", "ibv_devinfo | grep -E 'hca_id|state'"),
                ("drop the filter", "unset NCCL_IB_HCA"),
            ],
            severity=Severity.WARNING,
            confidence=Confidence.LIKELY,
            confirm="export NCCL_NET=IB: NCCL then fails with the reason",
            sources=("NCCL user guide: NCCL_IB_HCA",),
            explains=("net-socket-fallback",),
        )


@rule("LOG078", Severity.ERROR)
def efa_peers_do_not_answer(log: Log) -> Iterator[Finding]:
    """EFA devices do not reach each other: the security group does not let them.

    EFA needs rules for all traffic from and to the security group itself; rules for addresses or TCP do not count.

    Fix: add inbound and outbound rules for all traffic with the security group itself as source and destination.
    """
    events = [e for e in log.find("efa-unreachable", "ofi-insert") if not died_before(log, e)]
    gone = [e for e in events if e.details.get("errno") == "4124" or "previously" in e.details.get("how", "")]
    if events:
        lost = bool(gone) and len(gone) == len(events)
        yield found(
            "efa-security-group" if not lost else "peer-died",
            f"EFA peers do not answer{on(events)}" + ("" if not lost else ", which did before"),
            events,
            why="EFA traffic is filtered apart from TCP: it needs rules that name the security group itself"
            if not lost
            else "a peer that answered before and no longer does has ended or lost its network",
            fixes=[
                (
                    "add the rules",
                    "all traffic, source and destination: the security group itself (inbound and outbound)",
                ),
                ("see that TCP alone works", "export NCCL_NET=Socket"),
            ],
            severity=Severity.ERROR if not lost else Severity.WARNING,
            confidence=Confidence.LIKELY if not lost else Confidence.POSSIBLE,
            confirm="fi_pingpong -p efa between the two instances",
            sources=("libfabric prov/efa/src/efa_errno.h", "AWS: EFA, prepare an EFA-enabled security group"),
            explains=SYMPTOMS,
            restart="fix first: the security group" if not lost else "unknown: see what ended the peer",
        )


@rule("LOG079", Severity.ERROR)
def efa_devices_are_not_visible(log: Log) -> Iterator[Finding]:
    """The AWS plugin finds no EFA: libfabric offers another provider, or none.

    The devices are not passed to the container, libfabric lacks the provider, or another libfabric is loaded.

    Fix: pass /dev/infiniband to the container, and use the libfabric of the EFA installer.
    """
    provider = [e for e in log.find("ofi-provider") if not e.details.get("provider", "").startswith("efa")]
    missing = log.find("ofi-no-provider", "ofi-shared-memory")
    asked = (value(log, "FI_PROVIDER") or "").startswith("efa")
    if not provider and not (missing and (asked or log.has("ofi-error", "ofi-shared-memory", "ofi-provider"))):
        return
    if not provider and log.transport and log.transport.provider == "efa":
        return
    name = provider[0].details["provider"] if provider else "none"
    failing = bool(missing) or log.has("nccl-error", "ofi-error")
    yield found(
        "efa-devices-not-visible",
        f"libfabric offers no EFA{on(provider or missing)}: the plugin took {name}",
        [*provider, *missing, *log.find("ofi-error")[:1]],
        why="without EFA the plugin uses TCP, or fails on an option that only EFA has",
        fixes=[
            ("pass the devices", "docker run --device=/dev/infiniband/uverbs0 ... --ulimit memlock=-1 --network=host"),
            ("see what is offered", "fi_info -p efa; ls /dev/infiniband; ldd $(which fi_info) | grep libfabric"),
        ],
        severity=Severity.ERROR if failing else Severity.WARNING,
        confidence=Confidence.LIKELY,
        confirm="fi_info -p efa  # inside of the container",
        sources=("aws-ofi-nccl: Selected provider", "libfabric fi_efa(7)"),
        explains=(*SYMPTOMS, "loopback-interface-selected", "efa-software-version-bug"),
        restart="fix first: EFA devices of the container",
    )


@rule("LOG080", Severity.ERROR)
def efa_software_does_not_fit(log: Log) -> Iterator[Finding]:
    """Versions of EFA driver, libfabric, the AWS plugin and NCCL do not fit each other.

    Registration of GPU memory that is refused with EINVAL is known of old EFA installers with NCCL 2.19 and later.

    Fix: update the EFA installer and the plugin together.
    """
    register = [e for e in log.find("ofi-register") if e.details.get("code") != "-12"]
    register += [
        e for e in log.find("ofi-error") if "Invalid argument" in e.text and "into AV" not in e.text and not register
    ]
    version = log.find("ofi-version")
    if register or version:
        yield found(
            "efa-software-version-bug",
            f"the AWS plugin and libfabric do not fit NCCL{on(register or version)}: "
            + ("it refuses what the plugin asks for" if register else "a version is too old or not found"),
            [*register, *version],
            why="NCCL's cuMem buffers need a newer libfabric, or FI_EFA_SET_CUDA_SYNC_MEMOPS=0",
            fixes=[
                ("update together", "EFA installer, aws-ofi-nccl"),
                ("until then", "export FI_EFA_SET_CUDA_SYNC_MEMOPS=0  # or NCCL_CUMEM_ENABLE=0"),
            ],
            confidence=Confidence.LIKELY,
            confirm="fi_info --version; cat /opt/amazon/efa_installed_packages",
            sources=("aws-ofi-nccl release notes", "libfabric fi_efa(7)"),
            explains=SYMPTOMS,
            restart="fix first: EFA software",
        )


@rule("LOG081", Severity.ERROR)
def network_plugin_finds_no_device(log: Log) -> Iterator[Finding]:
    """A network that was asked for by name has no device, or is not there.

    NCCL_NET names it, or the image forces its plugin; without its devices or daemon NCCL can't go on.

    Fix: see that the plugin's library, devices and daemon are in the container; or unset NCCL_NET.
    """
    events = log.find("plugin-no-device", "fastrak-failed")
    refused = [e for e in log.find("plugin-refused") if e.details.get("name", "") not in ("IB", "Socket")]
    wanted = value(log, "NCCL_NET")
    network = log.transport.network if log.transport else None
    if not events and not (refused and wanted and network is None):
        return
    name = next((e.details[k] for e in events for k in ("name", "plugin") if k in e.details), None)
    name = name or wanted or next((e.details["name"] for e in refused), "the plugin")
    yield found(
        "net-plugin-no-device",
        f"the network {name} has no device{on(events or refused)}" + (f"; NCCL_NET={wanted}" if wanted else ""),
        [*events, *refused],
        why="a network that is named must work: NCCL does not fall back to another one",
        fixes=[
            (
                "see that it is there",
                "ls /dev/infiniband /sys/class/infiniband; echo $LD_LIBRARY_PATH; ldconfig -p | grep nccl-net",
            ),
            ("let NCCL choose", "unset NCCL_NET NCCL_NET_PLUGIN"),
        ],
        confidence=Confidence.LIKELY,
        confirm="NCCL_DEBUG=INFO NCCL_DEBUG_SUBSYS=INIT,NET: what the plugin says when it starts",
        sources=("NCCL src/plugin/net.cc", "NCCL user guide: NCCL_NET"),
        explains=SYMPTOMS,
        restart="fix first: the plugin or NCCL_NET",
    )


@rule("LOG082", Severity.WARNING)
def link_layers_are_mixed(log: Log) -> Iterator[Finding]:
    """InfiniBand and RoCE ports are mixed, or hosts have different numbers of network devices.

    NCCL connects the n-th device of one host to the n-th of the other; devices of two kinds can't connect.

    Fix: NCCL_IB_HCA with the ports of the compute network only.
    """
    events = log.find("ib-incompatible")
    if events:
        yield found(
            "mixed-fabrics",
            f"network devices of two kinds or numbers are used together{on(events)}",
            events,
            why="an InfiniBand port can't talk to a RoCE port",
            fixes=[("name the ports of one kind", "export NCCL_IB_HCA==mlx5_0,mlx5_1")],
            severity=Severity.WARNING,
            confidence=Confidence.LIKELY,
            confirm="ibv_devinfo | grep -E 'hca_id|link_layer|state'  # on both hosts",
            sources=("NCCL src/transport/net_ib/connect.cc",),
            explains=SYMPTOMS,
            restart="fix first: NCCL_IB_HCA",
        )


@rule("LOG083", Severity.WARNING)
def requests_were_flushed(log: Log) -> Iterator[Finding]:
    """RDMA requests were flushed (status 5): something else ended their queue pair before.

    It names no cause: the first error of that pair, on this host or the other, does.

    Fix: look for the earliest error over all ranks.
    """
    flushed = _completions(log, {FLUSHED})
    if flushed:
        yield found(
            "nccl-failed",
            f"RDMA requests were flushed{on(flushed)}: a consequence of an earlier error",
            flushed,
            why="a queue pair that failed gives back all that was still queued with status 5",
            severity=Severity.WARNING,
            confidence=Confidence.POSSIBLE,
            confirm="the earliest NCCL WARN over the logs of all ranks, and dmesg of that host",
            sources=("libibverbs: IBV_WC_WR_FLUSH_ERR",),
            explains=(),
            restart="unknown: the first error is not in these logs",
        )
