"""NCCL's INFO and WARN lines (2.3 to 2.32, RCCL where it says the same) -> Transport.

The picture is of the largest communicator in the log: its network, NICs, channels. Lines that name no
communicator are given to the one that their process and thread set up. One pass; what is kept is bounded.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from smoldiag.facts import Evidence, Transport

MAX_LINE = 8192  # NCCL's own lines end at about 2 KiB
MAX_TEXT = 400  # of a line that is kept
MAX_WARNINGS = 64
MAX_EVIDENCE_PER_TOPIC = 2
MAX_ENV = 200
MAX_COMMS = 1024
MAX_THREADS = 20_000
MAX_NAMES = 512  # hosts, NICs, kinds of paths, device numbers: each
MAX_RANKS = 65_536

INTERNAL = ("IB", "Socket")  # NCCL's own networks; any other name is a plugin's
LAZY_CONNECT_SINCE = (2, 22)  # src/init.cc runtimeConn: from then on an algorithm is connected when it is first used

# "host:pid:tid [dev] " with a source place before WARN; launchers put anything before it (src/debug.cc)
_PREFIX = re.compile(
    r"(?P<host>[^\s:]{1,255}):(?P<pid>\d{1,10}):(?P<tid>\d{1,10}) \[ ?-?\d{1,4} ?\] "
    r"(?:\S{1,200}:\d{1,7} (?:\(.{0,200}\) )?)?$"
)
_LEVEL = re.compile(r"NCCL (INFO|WARN|ATTN|TRACE|CALL) ")
_BARE = (  # messages that people paste without their prefix
    "NET/",
    "Channel ",
    "Using network ",
    "Initialized NET plugin ",
    "Failed to initialize NET plugin ",
    "Assigned NET plugin ",
    "Connected all ",
    "NVLS multicast ",
    "comm 0x",
    "NCCL version ",
    "RCCL version ",
)
_VERSION = re.compile(
    r"\b[NR]CCL version ?:? ?(\d{1,3}\.\d{1,3}(?:\.\d{1,3})?)[^\s+]{0,40}(?:\+cuda(\d{1,3}\.\d{1,3}))?"
)
_ENV = re.compile(r"\b(NCCL_[A-Z0-9_]{1,80}) set (?:by environment )?to (\S.*)$")
_INT_WITH_DOT = re.compile(r"-?(?:0x)?[0-9a-fA-F]{1,20}\.")
_USING_DEVICES = re.compile(r"NET/([^\s:/]{1,64}) ?: Using (\[\d.*)$")
_IB_DEVICE = re.compile(r"\[\d{1,4}\] ?([^\s:\[\]{},]{1,64}):(\d{1,4})[:\d]{0,12}/(IB|RoCE)")
_OTHER_DEVICE = re.compile(r"\[\d{1,4}\] ?([^\s:\[\]{},]{1,64})(?=[:\s]|$)")
_IB_SPEED = re.compile(
    r"NET/IB ?: \[\d{1,4}\] ?([^\s:]{1,64}):[^\s:]{0,64}:(\d{1,4})/(IB|RoCE) (?:provider=\S{1,40} )?speed=(\d{1,9})"
)
_HCA = re.compile(
    r"NET/(.{1,64}?) ?: GPU Direct RDMA (Enabled|Disabled) for (?:GPU \S+ / )?HCA (\d{1,4}) '([^']{1,64})'"
)
_OFI_PLUGIN = re.compile(r"NET/OFI (?:Initializing|Using) (aws-ofi-[a-z]{1,10} \S{1,40})")
_OFI_PROVIDER = re.compile(
    r"NET/OFI Selected [Pp]rovider is ([^\s,]{1,64})(?:, fabric is \S{1,64})?(?: \(found (\d{1,4}) nics\))?"
)
_PLUGIN_LOADED = re.compile(
    r"NET/Plugin ?: Loaded net plugin (.{1,64}?) \(v\d{1,3}\)|\bP2P plugin (?:v\d{1,3} )?(\S{1,64})$"
)
_PLUGIN_VERSION = re.compile(
    r"NET/([A-Za-z0-9_]{1,64}) ?: Initializing \1 (v\S{1,40})|Initializing network ([^,]{1,64}), version: (\S{1,40})"
)
_INITIALIZED = re.compile(r"(Initialized|Failed to initialize|Assigned) NET plugin (\S.{0,63}?)(?: to comm)?$")
_NETWORK = re.compile(r"Using (?:internal )?[Nn]etwork (\S.{0,63}?)\s*$")
_COMM = re.compile(r"\bcomm (0x[0-9a-f]{1,16})\b.{0,12}? rank (\d{1,7}) n[rR]anks (\d{1,7})\b(.*)$")
_COMM_ID = re.compile(r"commId (0x[0-9a-f]{1,16})")
_SPLIT = re.compile(r"parent 0x[0-9a-f]{1,16} (?:(?:splitCount|childCount) (\d{1,9}) )?color (-?\d{1,10}) key")
_LAYOUT = re.compile(r" nNodes (\d{1,6}) localRanks (\d{1,5})(?: localRank \d{1,5})?(?: MNNVL (\d))?")
_CHANNELS = re.compile(r"^(\d{1,4}) coll channels, (?:\d{1,4} collnet channels, )?(?:(\d{1,4}) nvls channels, )?")
_RING_ORDER = re.compile(r"^Channel (\d{1,4})(?:/(\d{1,4}))? :(?: {1,8}\d{1,7})+")
_ENDS = re.compile(r"\b(\d{1,7})(?:\[[0-9a-fA-F]{1,16}\])? -> (\d{1,7})(?:\[[0-9a-fA-F]{1,16}\])?")
_NET_PATH = re.compile(r"(NET|COLLNET)/([^/]{1,64})(?:/(\d{1,4})(?:\(\d{1,7}\))?)?(/GDRDMA)?")
_GPU_PATH = re.compile(
    r"P2P/(direct pointer|common device|[A-Za-z0-9_]{1,32})|SHM/([A-Za-z]{1,16})|direct shared memory"
)
_PATH_COMM = re.compile(r" comm (0x[0-9a-f]{1,16}) nRanks \d{1,7}\s*$")  # RCCL ends its channel lines so
_NVLS_SUPPORT = re.compile(r"NVLS multicast support is (not )?available")
_RINGS = re.compile(r"Connected all rings(?:, use ring PXN (\d) GDR (\d))?")
_CHOICE = re.compile(r"\d Bytes -> Algo ([A-Za-z0-9_]{1,32}) proto ")
_DRIVER = re.compile(r"cudaDriverVersion (\d{1,3})0(\d)0$")

_ALGORITHMS = ("Tree", "Ring", "CollNetDirect", "CollNetChain", "NVLS", "NVLSTree", "PAT")  # src/include/nccl_common.h
_ALGORITHM_OF = {name.lower().replace("_", ""): name for name in _ALGORITHMS}


@dataclass(kw_only=True)
class _Comm:
    """What the lines of one communicator added up to, over the ranks that the log has."""

    ranks: int | None = None
    ranks_seen: set[int] = field(default_factory=set)
    hosts: set[str] = field(default_factory=set)
    nodes: int | None = None
    mnnvl: bool | None = None
    channels: int | None = None
    ring_channels: int | None = None
    nvls_channels: int | None = None
    nvls_support: set[bool] = field(default_factory=set)
    networks: Counter[str] = field(default_factory=Counter)
    paths: Counter[str] = field(default_factory=Counter)
    net: Counter[str] = field(default_factory=Counter)  # name -> channel lines
    directions: Counter[tuple[str, bool]] = field(default_factory=Counter)  # (send | receive, GDR) -> lines
    devices: set[int] = field(default_factory=set)
    ring_gdr: bool | None = None
    connected: dict[str, None] = field(default_factory=dict)
    chosen: dict[str, None] = field(default_factory=dict)
    evidence: dict[str, list[tuple[int, Evidence]]] = field(default_factory=dict)

    def absorb(self, other: "_Comm") -> None:
        """Take over what was read before it was known whose it is."""
        self.ranks_seen |= other.ranks_seen
        self.hosts |= other.hosts
        self.nvls_support |= other.nvls_support
        self.devices |= other.devices
        for name in ("networks", "paths", "net", "directions"):
            getattr(self, name).update(getattr(other, name))
        for name in ("nodes", "mnnvl", "channels", "ring_channels", "nvls_channels"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(other, name))
        self.ring_gdr = _both(self.ring_gdr, other.ring_gdr)
        self.connected |= other.connected
        self.chosen |= other.chosen
        for topic, lines in other.evidence.items():
            kept = self.evidence.setdefault(topic, [])
            kept.extend(lines[: MAX_EVIDENCE_PER_TOPIC - len(kept)])


@dataclass(kw_only=True)
class _Thread:
    """A thread of a process; `comm` while it sets one up, `pending` what it said before it was known for whom."""

    comm: _Comm | None = None
    pending: _Comm | None = None


@dataclass(kw_only=True)
class _Process:
    says_start: bool = False  # 2.18.3 and later announce each communicator; older ones name it at the end
    latest: list[_Comm] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Line:
    number: int
    level: str
    host: str
    pid: str
    tid: str
    text: str
    shown: str
    where: str

    @property
    def evidence(self) -> Evidence:
        return Evidence(text=_printable(self.shown), where=f"{self.where}:{self.number}")


@dataclass(kw_only=True)
class _Log:
    """All that is known after some lines."""

    comms: dict[str, _Comm] = field(default_factory=dict)
    by_pointer: dict[tuple[str, str, str], _Comm] = field(default_factory=dict)
    processes: dict[tuple[str, str], _Process] = field(default_factory=dict)
    threads: dict[tuple[str, str, str], _Thread] = field(default_factory=dict)
    loose: _Comm = field(default_factory=_Comm)  # lines whose communicator never shows
    env: dict[tuple[str, str], None] = field(default_factory=dict)
    version: str | None = None
    cuda: str | None = None
    driver: str | None = None
    devices: dict[tuple[str, str], dict[str, None]] = field(default_factory=dict)  # (network, host) -> NICs
    hca: dict[tuple[str, str], dict[int, str]] = field(default_factory=dict)  # (network, host) -> number -> NIC
    hca_gdr: dict[str, set[bool]] = field(default_factory=dict)
    layers: set[str] = field(default_factory=set)
    mbps: dict[str, int] = field(default_factory=dict)
    provider: str | None = None
    nic_count: int | None = None
    plugins: dict[str, None] = field(default_factory=dict)
    plugin_version: dict[str, str] = field(default_factory=dict)
    initialized: str | None = None
    assigned: str | None = None
    warnings: dict[str, Evidence] = field(default_factory=dict)
    hosts: dict[str, None] = field(default_factory=dict)
    pairs: Counter[tuple[int, int, str]] = field(default_factory=Counter)  # (from, to, path) -> channel lines
    order: int = 0


def parse(log: str | Iterable[str], *, where: str = "NCCL's log") -> Transport:
    """What NCCL said of the largest communicator in the log; `where` names the file in the evidence."""
    return parse_all({where: log})


def parse_all(logs: Mapping[str, str | Iterable[str]]) -> Transport:
    """The same from several files of one job: name -> text or lines."""
    state = _Log()
    for where, log in logs.items():
        for number, raw in enumerate(_lines(log), 1):
            line = _line(raw, number, where)
            if line is not None:
                state.order += 1
                _read(state, line)
    return _picture(state)


State = _Log


def concerns(line: str) -> bool:
    """Whether this line adds to the picture."""
    read = _line(line, 0, "")
    return read is not None and (read.level != "INFO" or any(needle in read.text for needle, _ in _READERS))


def feed(state: State, line: str, number: int, where: str) -> None:
    """One more line, for a pass that reads other things of a log, too."""
    read = _line(line[:MAX_LINE], number, where)
    if read is not None:
        state.order += 1
        if read.host and len(state.hosts) < MAX_THREADS:
            state.hosts.setdefault(read.host)
        _read(state, read)


def hosts(state: State) -> tuple[str, ...]:
    """Who spoke, by NCCL's own prefix."""
    return tuple(state.hosts)


def pairs(state: State) -> tuple[tuple[int, int, str, int], ...]:
    """By which path ranks reach each other: (from, to, path, channels), of all communicators."""
    return tuple((a, b, path, channels) for (a, b, path), channels in sorted(state.pairs.items()))


def picture(state: State) -> Transport:
    """What the lines that were fed add up to."""
    return _picture(state)


def _lines(log: str | Iterable[str]) -> Iterator[str]:
    if not isinstance(log, str):
        yield from (line[:MAX_LINE] for line in log)
        return
    start = 0
    while start < len(log):
        end = log.find("\n", start)
        end = len(log) if end < 0 else end
        yield log[start : min(end, start + MAX_LINE)]
        start = end + 1


def _line(raw: str, number: int, where: str) -> _Line | None:
    """The message without the prefixes of launchers and NCCL, if NCCL printed the line."""
    if "CCL" not in raw and not raw.lstrip().startswith(_BARE):
        return None
    raw = raw.rstrip()
    level = _LEVEL.search(raw)
    host, pid, tid = "", "", ""
    if level:
        head, text, kind = raw[: level.start()], raw[level.end() :].strip(), level.group(1)
        prefix = _PREFIX.search(head[-600:])
        if prefix:
            host, pid, tid = prefix.group("host", "pid", "tid")
            head = prefix.group(0)
        shown = text if kind == "INFO" else f"{head[-300:]}{level.group(0)}{text}"
    else:
        text, kind = raw.lstrip(), "INFO"
        if not text.startswith(_BARE) and not _VERSION.search(text):
            return None
        shown = text
    return _Line(number=number, level=kind, host=host, pid=pid, tid=tid, text=text, shown=shown, where=where)


def _printable(text: str) -> str:
    cut = text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."
    return cut if cut.isprintable() else "".join(c if c.isprintable() else "?" for c in cut)


def _read(state: _Log, line: _Line) -> None:
    if line.level in ("WARN", "ATTN"):  # ATTN: 2.32 and later, between WARN and INFO
        if len(state.warnings) < MAX_WARNINGS:
            state.warnings.setdefault(line.text[:MAX_TEXT], line.evidence)
        return
    if line.level == "INFO":
        for needle, reader in _READERS:
            if needle in line.text:
                reader(state, line)


def _read_version(state: _Log, line: _Line) -> None:
    found = _VERSION.search(line.text)
    if found and state.version is None:
        state.version, state.cuda = found.groups()


def _read_driver(state: _Log, line: _Line) -> None:
    found = _DRIVER.search(line.text)
    if found and state.driver is None:
        state.driver = f"{found.group(1)}.{found.group(2)}"


def _read_env(state: _Log, line: _Line) -> None:
    found = _ENV.search(line.text)
    if found and len(state.env) < MAX_ENV:
        name, value = found.groups()
        value = value.strip()
        if _INT_WITH_DOT.fullmatch(value):
            value = value[:-1]
        state.env.setdefault((name, value[:MAX_TEXT]))


def _read_devices(state: _Log, line: _Line) -> None:
    found = _USING_DEVICES.search(line.text)
    if not found:
        return
    network, rest = found.groups()
    rest = rest.partition("; OOB")[0]
    ports = _IB_DEVICE.findall(rest)
    if ports:
        state.layers |= {layer for _, _, layer in ports}
        names = [name if port == "1" else f"{name}:{port}" for name, port, _ in ports]
    else:
        names = _OTHER_DEVICE.findall(rest)
    _add_names(state.devices, (network, line.host), names)
    _keep(state.loose, state, line, f"devices {network}")


def _add_names(table: dict[tuple[str, str], dict[str, None]], key: tuple[str, str], names: list[str]) -> None:
    if key in table or len(table) < MAX_NAMES:
        kept = table.setdefault(key, {})
        for name in names[:MAX_NAMES]:
            if len(kept) < MAX_NAMES:
                kept.setdefault(name)


def _read_no_device(state: _Log, line: _Line) -> None:
    _keep(state.loose, state, line, "refused")


def _read_speed(state: _Log, line: _Line) -> None:
    found = _IB_SPEED.search(line.text)
    if found and len(state.mbps) < MAX_NAMES:
        name, port, layer, mbps = found.groups()
        state.layers.add(layer)
        state.mbps.setdefault(name if port == "1" else f"{name}:{port}", int(mbps))


def _read_hca(state: _Log, line: _Line) -> None:
    found = _HCA.search(line.text)
    if not found:
        return
    network, verdict, number, name = found.groups()
    key = (network, line.host)
    if key in state.hca or len(state.hca) < MAX_NAMES:
        state.hca.setdefault(key, {}).setdefault(int(number), name)
        state.hca_gdr.setdefault(network, set()).add(verdict == "Enabled")
    _keep(state.loose, state, line, f"hca {verdict}")


def _read_plugin(state: _Log, line: _Line) -> None:
    """What an external plugin says of itself, and whether NCCL took it."""
    text = line.text
    if found := _OFI_PLUGIN.search(text):
        _note_plugin(state, "aws-ofi-nccl", found.group(1))
    elif found := _OFI_PROVIDER.search(text):
        state.provider = state.provider or found.group(1)
        state.nic_count = state.nic_count or (int(found.group(2)) if found.group(2) else None)
    elif found := _PLUGIN_LOADED.search(text):
        name = found.group(1) or found.group(2)
        _note_plugin(state, name, name)
    elif found := _PLUGIN_VERSION.search(text):
        name, version = (found.group(1), found.group(2)) if found.group(1) else (found.group(3), found.group(4))
        _note_plugin(state, name, f"{name} {version}")
    elif found := _INITIALIZED.search(text):
        what, name = found.groups()
        if what == "Initialized":
            state.initialized = name
        elif what == "Assigned":
            state.assigned = name
        else:
            _keep(state.loose, state, line, "refused")
            return
    elif (
        "lugin" not in text
        or "NET/" not in text
        or ("ailed" not in text and "not found" not in text and "o plugin found" not in text)
    ):
        return
    _keep(state.loose, state, line, "plugin")


def _note_plugin(state: _Log, name: str, shown: str) -> None:
    if len(state.plugins) < MAX_NAMES:
        state.plugins.setdefault(name)
        state.plugin_version[name] = shown


def _read_network(state: _Log, line: _Line) -> None:
    found = _NETWORK.search(line.text)
    if found:
        comm = _pending(state, line)  # it is said before the communicator is named
        _count(comm.networks, found.group(1))
        _keep(comm, state, line, "network")


def _read_comm(state: _Log, line: _Line) -> None:
    """A line that names its communicator: start, layout, or end of its set-up."""
    found = _COMM.search(line.text)
    if not found:
        return
    pointer, rank, ranks, rest = found.group(1), int(found.group(2)), int(found.group(3)), found.group(4)
    layout = _LAYOUT.search(rest)
    starts, ends = "Init START" in rest, rest.rstrip().endswith("COMPLETE") and "Init" in rest
    if not (layout or starts or ends):
        if "cudaDev" in rest:  # Destroy, Abort
            return
        ends = True  # 2.3: "comm 0x... rank 0 nranks 2"
    comm = _named_comm(state, line, pointer, ranks, rest)
    if len(comm.ranks_seen) < MAX_RANKS:
        comm.ranks_seen.add(rank)
    if line.host and len(comm.hosts) < MAX_NAMES * 16:
        comm.hosts.add(line.host)
    thread = _thread(state, line)
    process = _process(state, line)
    if thread.pending is not None:
        comm.absorb(thread.pending)
        thread.pending = None
    if starts:
        process.says_start = True
    if layout:
        comm.nodes = int(layout.group(1))
        if layout.group(3) is not None:
            comm.mnnvl = layout.group(3) != "0"
        _keep(comm, state, line, "layout")
    thread.comm = None if ends else comm
    if comm not in process.latest[-8:]:
        process.latest = [*process.latest[-7:], comm]


def _named_comm(state: _Log, line: _Line, pointer: str, ranks: int, rest: str) -> _Comm:
    at = (line.host, line.pid, pointer)
    known = state.by_pointer.get(at)
    same_size = known is not None and known.ranks == ranks
    if known is not None and same_size and "Init START" not in rest:
        return known
    identity, split = _COMM_ID.search(rest), _SPLIT.search(rest)
    if identity:
        key = f"id {identity.group(1)} {ranks}"
    elif split:
        key = f"split {split.group(1)} {split.group(2)} {ranks}"
    else:
        key = f"size {ranks}"  # before 2.18 nothing tells two communicators of one size apart
    comm = state.comms.get(key)
    if comm is None:
        if len(state.comms) >= MAX_COMMS:
            _forget_small(state)
        comm = state.comms[key] = _Comm(ranks=ranks)
    if len(state.by_pointer) >= MAX_THREADS:
        state.by_pointer.clear()
    state.by_pointer[at] = comm
    return comm


def _forget_small(state: _Log) -> None:
    largest = max(comm.ranks or 0 for comm in state.comms.values())
    kept = {key: comm for key, comm in state.comms.items() if comm.ranks == largest}
    state.comms = dict(list(kept.items())[: MAX_COMMS // 2])
    state.by_pointer.clear()
    state.processes.clear()
    for thread in state.threads.values():
        thread.comm = None


def _thread(state: _Log, line: _Line) -> _Thread:
    if len(state.threads) >= MAX_THREADS:
        for thread in state.threads.values():
            if thread.pending is not None:
                state.loose.absorb(thread.pending)
        state.threads.clear()
    return state.threads.setdefault((line.host, line.pid, line.tid), _Thread())


def _process(state: _Log, line: _Line) -> _Process:
    if len(state.processes) >= MAX_THREADS:
        state.processes.clear()
    return state.processes.setdefault((line.host, line.pid), _Process())


def _pending(state: _Log, line: _Line) -> _Comm:
    thread = _thread(state, line)
    if thread.pending is None:
        thread.pending = _Comm()
    return thread.pending


def _comm_of(state: _Log, line: _Line, highest_rank: int = 0) -> _Comm:
    """Whose line it is: what its thread sets up, else the process's newest communicator that is large enough."""
    thread = _thread(state, line)
    if thread.comm is not None and (thread.comm.ranks or 0) > highest_rank:
        return thread.comm
    process = _process(state, line)
    if process.says_start:
        for comm in reversed(process.latest):
            if (comm.ranks or 0) > highest_rank:
                return comm
    return _pending(state, line)


def _read_path(state: _Log, line: _Line) -> None:
    """Channel 00/0 : 7[7] -> 8[0] [send] via NET/IB/0(6)/GDRDMA"""
    left, _, right = line.text.partition(" via ")
    if not right or not left.startswith(("Channel ", "Ring ", "Coll ", "CollNet ")):
        return
    ends = _ENDS.search(left)
    named = _PATH_COMM.search(right)
    comm = state.by_pointer.get((line.host, line.pid, named.group(1))) if named else None
    if comm is None:
        comm = _comm_of(state, line, max(int(ends.group(1)), int(ends.group(2))) if ends else 0)
    over_net, over_gpu = _NET_PATH.match(right), _GPU_PATH.match(right)
    if ends and "[receive]" not in left:
        pair = (int(ends[1]), int(ends[2]), _PATH_COMM.sub("", right).strip()[:64])
        if pair in state.pairs or len(state.pairs) < MAX_RANKS:
            state.pairs[pair] += 1
    if over_net:
        kind, network, device, gdr = over_net.groups()
        network = network.strip()
        _count(comm.paths, f"{kind}/{network}{gdr or ''}")
        if device is not None and len(comm.devices) < MAX_NAMES:
            comm.devices.add(int(device))
        if kind == "NET":
            _count(comm.net, network)
            comm.directions["send" if "[send]" in left else "receive", bool(gdr)] += 1
        else:
            comm.chosen.setdefault("CollNet")
        _keep(comm, state, line, f"path {kind}{gdr or ''}")
    elif over_gpu:
        pointer, shm = over_gpu.groups()
        kind = f"P2P/{pointer}" if pointer else f"SHM/{shm or 'direct'}"
        _count(comm.paths, kind)
        _keep(comm, state, line, f"path {kind[:3]}")


def _count(counter: Counter[str], name: str) -> None:
    if name in counter or len(counter) < MAX_NAMES:
        counter[name] += 1


def _read_channels(state: _Log, line: _Line) -> None:
    found = _CHANNELS.search(line.text)
    if found:
        comm = _comm_of(state, line)
        comm.channels = int(found.group(1))
        if found.group(2) is not None:
            comm.nvls_channels = int(found.group(2))
        _keep(comm, state, line, "channels")


def _read_ring_order(state: _Log, line: _Line) -> None:
    found = _RING_ORDER.search(line.text)
    if found and " -> " not in line.text:
        comm = _comm_of(state, line)
        channels = int(found.group(2) or int(found.group(1)) + 1)  # before 2.6 their number is not said
        comm.ring_channels = max(channels, comm.ring_channels or 0)


def _read_nvls(state: _Log, line: _Line) -> None:
    found = _NVLS_SUPPORT.search(line.text)
    if found:
        comm = _comm_of(state, line)
        comm.nvls_support.add(found.group(1) is None)
        _keep(comm, state, line, "nvls")


def _read_connected(state: _Log, line: _Line) -> None:
    comm = _comm_of(state, line)
    rings = _RINGS.search(line.text)
    if rings:
        if rings.group(2) is not None:
            comm.ring_gdr = _both(comm.ring_gdr, rings.group(2) == "1")
        comm.connected.setdefault("Ring")
    elif "all trees" in line.text:
        comm.connected.setdefault("Tree")
    elif "NVLS tree" in line.text:
        comm.connected.setdefault("NVLSTree")
    elif "binomial trees" in line.text:
        comm.connected.setdefault("PAT")
    else:
        return
    _keep(comm, state, line, "connected")


def _both(a: bool | None, b: bool | None) -> bool | None:
    return b if a is None else a if b is None else a and b


def _read_choice(state: _Log, line: _Line) -> None:
    found = _CHOICE.search(line.text)
    if found:
        word = found.group(1)
        name = (
            _ALGORITHMS[int(word)]
            if word.isdigit() and int(word) < len(_ALGORITHMS)
            else _ALGORITHM_OF.get(word.lower().replace("_", ""), word)
        )
        chosen = _comm_of(state, line).chosen
        if len(chosen) < len(_ALGORITHMS) + 8:
            chosen.setdefault(name)


def _keep(comm: _Comm, state: _Log, line: _Line, topic: str) -> None:
    kept = comm.evidence.setdefault(topic, []) if len(comm.evidence) < MAX_NAMES else []
    if len(kept) < MAX_EVIDENCE_PER_TOPIC and all(e.text != line.evidence.text for _, e in kept):
        kept.append((state.order, line.evidence))


_READERS: tuple[tuple[str, Callable[[_Log, _Line], None]], ...] = (
    ("CCL version", _read_version),
    ("cudaDriverVersion", _read_driver),
    (" to ", _read_env),
    (" Using [", _read_devices),
    ("o device found", _read_no_device),
    ("Failed to open libibverbs", _read_no_device),
    (" speed=", _read_speed),
    ("GPU Direct RDMA", _read_hca),
    ("NET/OFI", _read_plugin),
    ("lugin", _read_plugin),
    ("Initializing ", _read_plugin),
    ("etwork ", _read_network),
    ("comm 0x", _read_comm),
    (" via ", _read_path),
    ("coll channels", _read_channels),
    ("Channel ", _read_ring_order),
    ("NVLS multicast", _read_nvls),
    ("Connected ", _read_connected),
    (" -> Algo ", _read_choice),
)


def _picture(state: _Log) -> Transport:
    comm = max(state.comms.values(), key=lambda c: c.ranks or 0, default=_Comm())
    for thread in state.threads.values():
        if thread.pending is not None:
            comm.absorb(thread.pending)
    comm.absorb(state.loose)
    network = _network(state, comm)
    nics = _nics_by_host(state, network)
    return Transport(
        network=network,
        plugin=_plugin(state, network),
        nics=min((names for _, names in nics), key=len, default=None),
        gpudirect=_gpudirect(state, comm, network),
        nvls=_nvls(comm),
        channels=comm.channels if comm.channels is not None else comm.ring_channels,
        nccl_version=state.version,
        cuda_version=state.cuda,
        nodes=_nodes(comm),
        ranks=comm.ranks,
        env=tuple(state.env),
        paths=tuple(sorted(comm.paths.items())),
        warnings=tuple(state.warnings.values()),
        evidence=_evidence(comm, network),
        algorithms=_algorithms(state, comm),
        networks=tuple(comm.networks.most_common()),
        plugins_loaded=tuple(state.plugin_version[name] for name in state.plugins),
        provider=state.provider,
        nics_by_host=nics if len(nics) > 1 else (),
        nic_count=state.nic_count,
        nic_mbps=tuple(state.mbps.items()),
        link_layer=_link_layer(state, network),
        net_channels=sum(comm.net.values()),
        gdr_channels=sum(lines for (_, gdr), lines in comm.directions.items() if gdr),
        net_devices=tuple(sorted(comm.devices)),
        nvls_channels=comm.nvls_channels,
        mnnvl=comm.mnnvl,
        driver_version=state.driver,
        comms=len(state.comms),
    )


def _network(state: _Log, comm: _Comm) -> str | None:
    """As NCCL names it; before 2.6 it does not, and the lists of devices tell which one it took."""
    if comm.networks:
        return comm.networks.most_common(1)[0][0]
    if comm.net:
        return comm.net.most_common(1)[0][0]
    if state.assigned or state.initialized:
        return state.assigned or state.initialized
    if state.provider:
        return "AWS Libfabric"
    listed = {network for network, _ in state.devices}
    return next((name for name in INTERNAL if name in listed), min(listed, default=None))


def _plugin(state: _Log, network: str | None) -> str | None:
    if network is None:
        return None
    if network in INTERNAL:
        return "internal"
    if "libfabric" in network.lower():
        return state.plugin_version.get("aws-ofi-nccl") or network
    return state.plugin_version.get(network) or network


def _family(network: str | None) -> str | None:
    """The name under which the network lists its devices."""
    return "IB" if network and network.startswith("IBext") else network  # NVIDIA's nccl-rdma-sharp-plugins


def _nics_by_host(state: _Log, network: str | None) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The list that the network printed; for plugins, the devices that NCCL asked about GPUDirect."""
    if network is None:
        return ()
    listed = {host: tuple(names) for (net, host), names in state.devices.items() if net == _family(network)}
    asked = {
        host: tuple(name.removesuffix("-rdm") for _, name in sorted(names.items()))
        for (net, host), names in state.hca.items()
        if net == network
    }
    if (
        not listed and state.nic_count is not None
    ):  # a plugin that joins several NICs to one device names only the first
        asked = {host: names for host, names in asked.items() if len(names) == state.nic_count}
    return tuple((listed or asked).items())


def _link_layer(state: _Log, network: str | None) -> str | None:
    if network in (None, "Socket") or not state.layers:
        return None
    return next(iter(state.layers)) if len(state.layers) == 1 else "mixed"


def _gpudirect(state: _Log, comm: _Comm, network: str | None) -> bool | None:
    """Whether data goes from NIC to GPU directly: on the receiving side of every channel, as older GPUs send without.

    "GDR 1" of the rings line says nothing: it is so too where no rank uses the network (transport/generic.cc).
    """
    if _nodes(comm) == 1:
        return None
    with_gdr, without = comm.directions["receive", True], comm.directions["receive", False]
    if not with_gdr and not without:
        with_gdr, without = comm.directions["send", True], comm.directions["send", False]
    if with_gdr or without:
        return without == 0
    if comm.ring_gdr is False:
        return False
    verdicts = state.hca_gdr.get(network or "")
    return False if verdicts == {False} and comm.ranks != 1 else None


def _nvls(comm: _Comm) -> bool | None:
    if comm.nvls_channels is not None:
        return comm.nvls_channels > 0
    if "NVLSTree" in comm.connected:
        return True
    return False if comm.nvls_support == {False} else None


def _nodes(comm: _Comm) -> int | None:
    if comm.nodes is not None:
        return comm.nodes
    complete = comm.ranks is not None and len(comm.ranks_seen) == comm.ranks  # then all hosts are in the log
    return len(comm.hosts) if complete and comm.hosts else None


def _algorithms(state: _Log, comm: _Comm) -> tuple[str, ...]:
    used = dict(comm.chosen)
    if state.version and tuple(int(x) for x in state.version.split(".")[:2]) >= LAZY_CONNECT_SINCE:
        used |= comm.connected
    return tuple(used)


def _evidence(comm: _Comm, network: str | None) -> tuple[Evidence, ...]:
    others = {f"devices {name}" for name in INTERNAL if name != _family(network)}
    lines = [line for topic, kept in comm.evidence.items() if topic not in others for line in kept]
    return tuple(evidence for _, evidence in sorted(lines, key=lambda item: item[0]))
