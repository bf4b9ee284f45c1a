"""CLD: a host, its variables and what NCCL says of itself, against the profile of its instance family."""

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

from smoldiag import profiles
from smoldiag.facts import Bench, Env, Evidence, Gpu, Log, Nic, PciDevice, Result, Transport, Variable
from smoldiag.facts.cloud import CloudProfile, ExpectedRate, Forbidden, Setting, Threshold, same_value
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.model import ranges
from smoldiag.model.sizes import human
from smoldiag.rules import rule

SEVERITIES = {"aborts": Severity.ERROR, "harmful": Severity.WARNING, "no-such-variable": Severity.WARNING}
FROM_LOG = "NCCL's log"  # origin of variables of which only the log tells; plugins set some of them
IN_PROCESS = "environment"  # origin of the variables of the process that looks
SOCKET_GB_PER_S = 25.0  # the most that published runs over TCP reach, where the interface's rate is not documented
SAME_SIZE = 1.01  # sizes that differ by less are one
RDMA_KINDS = ("infiniband", "roce", "efa")
LOADER_PATH = "LD_LIBRARY_PATH"  # ld.so.conf may say the same
CONFIRM = "smoldiag nccl-bench --collective all_reduce, with and without it"


@rule("CLD001", Severity.ERROR)
def harmful_variable(profile: CloudProfile, env: Env, versions: Mapping[str, str] | None) -> Iterator[Finding]:
    """A variable is set that breaks or slows down this kind of instance, or that nobody reads.

    Presets are copied from one cloud and one release to the next. What was right there can abort a job here, take
    values away that a plugin has tuned, or be a name that never existed.

    Fix: remove it; the message says in which versions it is wrong.
    """
    for variable, entry in _forbidden(profile, env, versions, kinds=SEVERITIES):
        what = {"aborts": "aborts the job", "harmful": "harms", "no-such-variable": "is no variable"}[entry.kind]
        yield Finding(
            message=f"{_shown(variable)} {what} on {profile.name}: {entry.why} (wrong {_range(entry)})",
            cause="cloud-variable-harmful" if entry.kind != "no-such-variable" else "variable-unknown",
            subject=variable.name,
            severity=SEVERITIES[entry.kind],
            evidence=env.evidence(variable.name),
            why=entry.why,
            fixes=_removed(variable, entry.instead),
            confirm=CONFIRM if entry.kind == "harmful" else "",
            sources=(entry.source,),
        )


@rule("CLD002", Severity.INFO)
def obsolete_variable(profile: CloudProfile, env: Env, versions: Mapping[str, str] | None) -> Iterator[Finding]:
    """A variable is set that older versions needed on this kind of instance.

    It does nothing today, or stands in the way of what the software does by itself; on another type of instance of
    the same cloud the same line can abort the job.

    Fix: remove it; the message says from which version on it is not needed.
    """
    for variable, entry in _forbidden(profile, env, versions, kinds=("obsolete",)):
        yield Finding(
            message=f"{_shown(variable)} is obsolete on {profile.name}: {entry.why} (obsolete {_range(entry)})",
            cause="cloud-variable-obsolete",
            subject=variable.name,
            severity=Severity.INFO,
            evidence=env.evidence(variable.name),
            why=entry.why,
            fixes=_removed(variable, entry.instead),
            sources=(entry.source,),
        )


@rule("CLD003", Severity.INFO)
def redundant_variable(profile: CloudProfile, env: Env, versions: Mapping[str, str] | None) -> Iterator[Finding]:
    """Variables are set to what NCCL or the plugin does by itself.

    They cost nothing today. When the next release chooses better values, these stay.

    Fix: remove them.
    """
    found = list(_forbidden(profile, env, versions, kinds=("redundant",)))
    said = [f"{_shown(v)} ({entry.why}; redundant {_range(entry)})" for v, entry in found]
    sources = [entry.source for _, entry in found]
    variables = [v for v, _ in found]
    for a in profile.automatic:
        v = env.find(a.name)
        if v and v.origin != FROM_LOG and same_value(v.value, a.value) and v not in variables:
            said.append(f"{_shown(v)} ({a.by} sets it; redundant {ranges.in_words(a.since, '')})")
            sources.append(a.source)
            variables.append(v)
    if said:
        yield Finding(
            message=f"redundant on {profile.name}: {'; '.join(said)}",
            cause="cloud-variable-redundant",
            severity=Severity.INFO,
            evidence=env.evidence(*(v.name for v in variables)),
            why="what is set by hand stays when the software learns better",
            fixes=tuple(fix for v in variables for fix in _removed(v))[:5],
            sources=tuple(dict.fromkeys(sources)),
        )


@rule("CLD004", Severity.WARNING)
def required_variable_missing(profile: CloudProfile, env: Env, versions: Mapping[str, str] | None) -> Iterator[Finding]:
    """Variables that this kind of instance needs are not set.

    The cloud's images, ConfigMaps or scripts set them; a container, another launcher or a clean shell loses them
    without a word, and the job runs slower or over another network.

    Fix: take them from `smoldiag cloud apply`, or mount the file that has them.
    """
    if not env.complete:
        return
    known = versions or {}
    missing = [
        s
        for s in profile.settings
        if s.level == "required"
        and not s.when
        and env.find(s.name) is None
        and ranges.in_force(s.since, s.until, known)
    ]
    if not missing:
        return
    of_job = any(v.origin != IN_PROCESS and not v.origin.startswith("/etc/") for v in env)
    certain = of_job or any(s.scope == "host" for s in missing)
    yield Finding(
        message=f"not set, but needed on {profile.name}: " + ", ".join(f"{s.name}={s.value}" for s in missing),
        cause="cloud-preset-missing",
        severity=Severity.WARNING if certain else Severity.INFO,
        confidence=Confidence.CERTAIN if of_job else Confidence.LIKELY,
        evidence=(Evidence(text=f"{len(missing)} of {_count(profile.settings)} are not set", where="environment"),),
        why="; ".join(f"{s.name}: {s.why} (right {ranges.in_words(s.since, s.until)})" for s in missing[:4]),
        fixes=(Fix(do="set what is missing", command=f"smoldiag cloud apply {profile.name} --as shell --diff"),),
        confirm=CONFIRM,
        sources=tuple(dict.fromkeys(s.source for s in missing)),
    )


@rule("CLD005", Severity.WARNING)
def variable_differs_from_profile(
    profile: CloudProfile, env: Env, versions: Mapping[str, str] | None
) -> Iterator[Finding]:
    """A variable has another value than the instance needs, or undoes what its plugin sets.

    Plugins set what they have tuned only where nobody has set it: an exported value of the past takes its place.

    Fix: set the profile's value, or unset the variable where the plugin sets it.
    """
    known = versions or {}
    forbidden = {v.name for v, _ in _forbidden(profile, env, known)}
    for v in env:
        if v.name in forbidden:
            continue
        for s in profile.settings:
            if s.name == v.name and not s.when and ranges.in_force(s.since, s.until, known):
                if v.name != LOADER_PATH and not s.accepts(v.value):
                    yield _differs(profile, v, s)
                break
        for a in profile.automatic:
            if a.name == v.name and " " not in a.value and v.origin != FROM_LOG and not same_value(v.value, a.value):
                yield Finding(
                    message=f"{_shown(v)} undoes {a.value}, which {a.by} sets on {profile.name} "
                    f"{ranges.in_words(a.since, '')}",
                    cause="cloud-variable-differs",
                    subject=v.name,
                    evidence=env.evidence(v.name),
                    why=a.why,
                    fixes=_removed(v),
                    confirm=CONFIRM,
                    sources=(a.source,),
                )
                break


def _differs(profile: CloudProfile, v: Variable, s: Setting) -> Finding:
    return Finding(
        message=f"{_shown(v)}, but {profile.name} needs {s.value} (right {ranges.in_words(s.since, s.until)})",
        cause="cloud-variable-differs",
        subject=v.name,
        severity=Severity.WARNING if s.level == "required" else Severity.INFO,
        evidence=(Evidence(text=f"{v.name}={v.value}", where=v.origin),),
        why=s.why,
        fixes=(Fix(do=f"set it in {v.origin}", command=f"export {s.name}={s.value}"),),
        confirm=CONFIRM,
        sources=(s.source,),
    )


@rule("CLD006", Severity.WARNING)
def needed_file_missing(profile: CloudProfile, files: tuple[str, ...]) -> Iterator[Finding]:
    """A file that this kind of instance needs is not there: a plugin, a topology file.

    It is judged only where other files show that the cloud's software was installed or mounted at all.

    Fix: install it, or mount it into the container.
    """
    for needed in profile.files:
        if needed.beside not in files or set(needed.any_of) & set(files):
            continue
        yield Finding(
            message=f"{needed.what} is missing: none of {', '.join(needed.any_of[:3])} exists",
            cause="cloud-file-missing",
            subject=needed.what,
            severity=Severity.WARNING if needed.required else Severity.INFO,
            confidence=Confidence.LIKELY,
            evidence=(Evidence(text=f"{needed.beside} exists, {needed.any_of[0]} does not", where=needed.beside),),
            why=needed.why,
            fixes=(
                Fix(
                    do="mount it into the container" if needed.mount else "install it",
                    command=f"--volume {needed.any_of[0]}:{needed.any_of[0]}:ro" if needed.mount else "",
                ),
            ),
            sources=(needed.source,),
        )


@rule("CLD007", Severity.ERROR)
def gpus_missing(
    profile: CloudProfile, gpus: tuple[Gpu, ...] | None, pci: tuple[PciDevice, ...] | None
) -> Iterator[Finding]:
    """The host has fewer GPUs than its type of instance has.

    Ranks that were meant for the missing ones fail at their first CUDA call, and the job with them.

    Fix: look at the kernel log for Xid 79, then give the host back.
    """
    expected = profile.hardware.gpus
    if expected is None or (gpus is None and pci is None):
        return
    by_nvml, on_bus = profiles.names_of_gpus(gpus, None), profiles.names_of_gpus(None, pci)
    seen = max(by_nvml, on_bus, key=len)  # a container is rightly given some of them; the bus shows all
    if len(seen) < expected:
        where = "NVML" if seen is by_nvml and gpus is not None else "/sys/bus/pci/devices"
        yield Finding(
            message=f"{len(seen)} of the {expected} GPUs of {profile.name} are there",
            cause="gpu-fell-off-bus" if seen else "gpus-not-visible",
            severity=Severity.ERROR,
            evidence=(Evidence(text=", ".join(dict.fromkeys(seen)) or "no NVIDIA GPU", where=where),),
            why="ranks of the missing GPUs can't start",
            fixes=(
                Fix(do="see why it is gone", command="dmesg -T | grep -iE 'xid|fallen off the bus'"),
                Fix(do="give the host back, with what support asks for", command=f"smoldiag cloud show {profile.name}"),
            ),
            sources=(profile.hardware.source,),
        )


@rule("CLD008", Severity.WARNING)
def nics_missing(profile: CloudProfile, nics: tuple[Nic, ...], pci: tuple[PciDevice, ...] | None) -> Iterator[Finding]:
    """The host has fewer data NICs up than its type of instance has.

    Counted are the devices of the right kind, not all that are there: frontend, storage and accelerated networking
    ports are no data NICs. One host with a NIC less slows all others down, or keeps the plugin from connecting.

    Fix: attach or enable them; give the host back where one has failed.
    """
    hardware = profile.hardware
    if not hardware.nics:
        return
    seen = profiles.data_nics(nics, pci, hardware)
    down = [nic for nic in seen if nic.up is False]
    count = len(seen) - len(down)
    if count >= hardware.nics:
        return
    gone = f" ({', '.join(n.name for n in down[:8])} down)" if down else ""
    yield Finding(
        message=f"{count} of the {hardware.nics} {hardware.nic_kind} NICs of {profile.name} are up{gone}",
        cause="fewer-nics-than-expected",
        severity=Severity.WARNING,
        where=Where(nics=tuple(n.name for n in down)),
        evidence=(Evidence(text=f"{len(seen)} devices of the kind, {len(down)} down", where="/sys/class/infiniband"),),
        why="all hosts of a job go at the rate of the slowest",
        cost=_lost_nics(profile, count),
        fixes=(Fix(do="look at the devices", command="grep . /sys/class/infiniband/*/ports/1/{state,rate}"),),
        confirm="smoldiag nccl-bench --collective all_gather over two hosts",
        sources=(hardware.source,),
    )


def _lost_nics(profile: CloudProfile, count: int) -> str:
    h = profile.hardware
    if not h.nics or not h.nic_gbit_per_s:
        return ""
    each, missing = h.nic_gbit_per_s / 8, h.nics - count
    return f"up to {missing * each:g} GB/s of {h.nics * each:g} per host ({missing} x {h.nic_gbit_per_s:g} Gb/s / 8)"


@rule("CLD009", Severity.ERROR)
def fabric_not_used(profile: CloudProfile, log: Log) -> Iterator[Finding]:
    """NCCL's log says that it took another network than the one this instance is bought for.

    Most often TCP: the plugin was not found in the container, or the pod was given no device. The job runs, at a
    fraction of the bandwidth.

    Fix: make the plugin and the devices visible, then force the network once, so that NCCL says what it lacks.
    """
    t = log.transport
    if t is None or t.network is None or not profile.network or t.nodes == 1:
        return
    on_tcp = t.network == "Socket" or (t.provider or "").startswith("tcp")
    if not on_tcp and any(fnmatchcase(t.network.lower(), n.lower()) for n in profile.network):
        return
    if on_tcp and "Socket" in profile.network:
        return
    took = "TCP sockets" if t.network == "Socket" else f"{t.network}{f' over {t.provider}' if on_tcp else ''}"
    lost, derivation = _loss(profile, t)
    fabric = profile.hardware.fabric
    yield Finding(
        message=f"NCCL uses {took} ({', '.join(t.nics or ('interface unknown',))}): the {fabric} of {profile.name} "
        f"({profiles.profile_nics(profile) or profile.hardware.nic_kind}) is lost"
        + (f", about {lost:g} GB/s per host" if lost and on_tcp else ""),
        cause="net-socket-fallback"
        if t.network == "Socket"
        else "efa-provider-tcp"
        if on_tcp
        else "cloud-network-other",
        severity=Severity.ERROR if on_tcp else Severity.WARNING,
        confidence=Confidence.CERTAIN if t.net_channels or (t.nodes or 0) > 1 else Confidence.LIKELY,
        where=Where(nics=t.nics or ()),
        evidence=t.evidence[:4],
        why=f"right is {' or '.join(n for n in profile.network if '*' not in n)}; what NCCL takes instead goes through "
        "the host's memory and one interface",
        cost=derivation if on_tcp else "",
        fixes=_fabric_fixes(profile),
        confirm=f"the log says Using network {profile.network[0]}",
        sources=(profile.hardware.source, "NVIDIA/nccl src/plugin/net.cc: Using network"),
        explains=("busbw-below-expected", "gdr-not-used", "fewer-nics-than-expected"),
    )


def _loss(profile: CloudProfile, t: Transport) -> tuple[float | None, str]:
    """GB/s per host, and how they were found: what the NICs carry, less what TCP over the host's interface can."""
    h = profile.hardware
    fabric = h.nic_gb_per_s
    if fabric is None:
        return (
            None,
            f"the rate of {h.fabric} is not documented; published runs over TCP reach 4 to {SOCKET_GB_PER_S:g} GB/s",
        )
    rate = sum(rate for _, rate in t.nic_mbps) / 1000 or h.host_gbit_per_s or 0.0
    tcp = min(rate / 8, fabric) if rate else SOCKET_GB_PER_S
    over = f"{rate:g} Gb/s / 8 = {rate / 8:g} GB/s over {', '.join(t.nics or ('the host interface',))}"
    by_tcp = f"TCP: at most {over}" if rate else f"TCP: published runs reach at most {tcp:g} GB/s"
    words = (
        f"{h.fabric}: {h.nics} x {h.nic_gbit_per_s:g} Gb/s / 8 = {fabric:g} GB/s per host; {by_tcp}; lost: at least "
    )
    words += f"{fabric:g} - {tcp:g} = {fabric - tcp:g} GB/s of what a ring could carry"
    row = _published(profile, t.nodes)
    if row:
        words += (
            f"; published on this instance: {row.busbw_gbs:g} GB/s {row.collective} of {human(row.size_bytes)} "
            f"on {row.nodes} hosts [{row.source}]"
        )
    return fabric - tcp, words


def _published(profile: CloudProfile, nodes: int | None) -> ExpectedRate | None:
    """A figure that fits the job: all_reduce on the nearest node count, on two hosts only for want of others."""
    rows = [e for e in profile.expected if e.nodes > 1]
    nearest = nodes or 4

    def fitness(e: ExpectedRate) -> tuple[bool, bool, bool, int, int]:
        ring_like = e.collective in ("all_reduce", "all_gather")
        return ring_like, not e.two_node_artefact, e.collective == "all_reduce", -abs(e.nodes - nearest), e.size_bytes

    return max(rows, key=fitness, default=None)


def _fabric_fixes(profile: CloudProfile) -> tuple[Fix, ...]:
    fixes = [
        Fix(do=f"see that {p.name} can be loaded: {p.why}", command=f"ls -l {p.paths[0]}")
        for p in profile.plugins
        if p.paths
    ]
    fixes += [
        Fix(do=f"ask for the devices in the pod: {c.why}", command=f"{c.name}: {c.value}")
        for c in profile.launch
        if c.launcher == "kubernetes" and c.kind == "resource" and c.name not in ("nvidia.com/gpu", "hugepages-2Mi")
    ]
    if profile.hardware.nic_kind in RDMA_KINDS:
        fixes.append(Fix(do="give the container its devices", command="--device /dev/infiniband"))
    network = next((n for n in profile.network if "*" not in n), "")
    fixes.append(Fix(do="force the network once: NCCL then says what it lacks", command=f"export NCCL_NET='{network}'"))
    return tuple(dict.fromkeys(fixes))[:5]


@rule("CLD010", Severity.WARNING)
def known_bad_version(profile: CloudProfile, versions: Mapping[str, str]) -> Iterator[Finding]:
    """A version is installed that is known not to work well on this kind of instance.

    Or a plugin is older than the first release that knows the instance, or tunes NCCL for it.

    Fix: take the version that the finding names.
    """
    for plugin in profile.plugins:
        if plugin.minimum and ranges.holds(plugin.minimum, "", versions) is False:
            component, _ = ranges.parsed(plugin.minimum)
            installed = versions[ranges.KEYS[component]]
            yield Finding(
                message=f"{component} {installed} is older than {profile.name} wants ({plugin.minimum}): {plugin.why}",
                cause="cloud-plugin-old",
                subject=plugin.minimum,
                severity=Severity.INFO,
                evidence=(Evidence(text=f"{component} {installed}", where="versions of this host"),),
                why=plugin.why,
                fixes=(Fix(do=f"install {plugin.minimum} or later"),),
                sources=(plugin.source,),
            )
    for bad in profile.bad_versions:
        if not bad.component or ranges.holds(bad.since, bad.until, versions) is not True:
            continue
        if bad.needs and ranges.holds(bad.needs, "", versions) is not True:
            continue
        key = ranges.KEYS[bad.component]
        yield Finding(
            message=f"{bad.component} {versions[key]}: {bad.what} ({ranges.in_words(bad.since, bad.until)}"
            + (f", with {bad.needs} or later)" if bad.needs else ")"),
            cause="efa-software-version-bug" if profile.cloud == "aws" else "cloud-version-bug",
            subject=bad.what,
            evidence=(Evidence(text=f"{bad.component} {versions[key]}", where="versions of this host"),),
            why=f"symptom: {bad.symptom}",
            fixes=(Fix(do=bad.fix),),
            sources=(bad.source,),
        )


@rule("CLD011", Severity.WARNING)
def log_shows_fewer_nics(profile: CloudProfile, log: Log) -> Iterator[Finding]:
    """NCCL's log names fewer data NICs than this kind of instance has.

    The container was given only some of the devices, NCCL_IB_HCA names only some, or some are down.

    Fix: give the container all devices, and see that NCCL_IB_HCA does not leave any out.
    """
    t, expected = log.transport, profile.hardware.nics
    if t is None or not expected or t.network in (None, "Socket") or profile.hardware.nic_kind not in RDMA_KINDS:
        return
    count = t.nic_count if t.nic_count is not None else len(t.nics) if t.nics else None
    if count is None or count >= expected:
        return
    yield Finding(
        message=f"NCCL uses {count} of the {expected} NICs of {profile.name} ({t.network})",
        cause="fewer-nics-than-expected",
        confidence=Confidence.LIKELY,
        where=Where(nics=t.nics or ()),
        evidence=t.evidence[:4],
        why="the fabric is used in part",
        cost=_lost_nics(profile, count),
        fixes=(Fix(do="see which devices the container has", command="ls /dev/infiniband /sys/class/infiniband"),),
        confirm="smoldiag nccl-bench --collective all_gather over two hosts",
        sources=(profile.hardware.source,),
    )


@rule("CLD012", Severity.ERROR)
def busbw_below_threshold(profile: CloudProfile, bench: Bench) -> Iterator[Finding]:
    """The bus bandwidth is below the threshold of this kind of instance.

    Thresholds hold for one collective, number of hosts and size, with all GPUs of each host; a mean over sizes is
    never judged. Where a figure of the very same size is known, BWD001 judges by that one.

    Fix: measure each host alone, and compare pairs of hosts: smoldiag nccl-bench names the slow one.
    """
    if bench.backend != "nccl" or not profile.hardware.gpus:
        return
    for r in bench.results:
        t = threshold(
            profile,
            collective=r.collective,
            nodes=r.group.nodes,
            ranks=len(r.group.ranks) if r.group.kind == "world" else 0,
            size_bytes=r.size_bytes,
        )
        if t is None or r.busbw_gbs >= t.warn_below_gbs or _is_judged_by_a_figure(bench, r):
            continue
        severe = r.busbw_gbs < t.fail_below_gbs
        yield Finding(
            message=f"{r.collective} of {human(r.size_bytes)} on {r.group.nodes} hosts reaches {r.busbw_gbs:.4g} GB/s; "
            f"{profile.name} should reach {t.fail_below_gbs if severe else t.warn_below_gbs:g} GB/s at least",
            cause="busbw-below-expected",
            subject=r.collective,
            severity=Severity.ERROR if severe else Severity.WARNING,
            confidence=Confidence.LIKELY,
            evidence=(
                Evidence(text=f"warn below {t.warn_below_gbs:g}, fail below {t.fail_below_gbs:g}", where=t.basis),
            ),
            why="every step of a training job waits for these collectives"
            + (f"; the threshold's condition: {t.condition}" if t.condition else ""),
            fixes=(Fix(do="find the part that is slow", command="smoldiag nccl-bench --groups intra,inter"),),
            confirm="smoldiag nccl-bench --groups all,intra,inter",
            sources=(t.source,),
        )


def threshold(profile: CloudProfile, *, collective: str, nodes: int, ranks: int, size_bytes: int) -> Threshold | None:
    """The one for such a run: all GPUs of its hosts, and its size or the next smaller one that has a threshold."""
    if ranks != nodes * (profile.hardware.gpus or 0):
        return None
    fitting = [
        t
        for t in profile.thresholds
        if (t.collective, t.nodes) == (collective, nodes) and t.size_bytes <= size_bytes * SAME_SIZE
    ]
    return max(fitting, key=lambda t: t.size_bytes, default=None)


def _is_judged_by_a_figure(bench: Bench, r: Result) -> bool:
    return any(e.fits(r) and e.kind in ("site", "measured") for e in bench.expected)


def _forbidden(
    profile: CloudProfile, env: Env, versions: Mapping[str, str] | None, *, kinds: Iterable[str] | None = None
) -> Iterator[tuple[Variable, Forbidden]]:
    """Each variable with the first entry that fits it, where these versions do not exclude it."""
    wanted = None if kinds is None else set(kinds)
    for v in env:
        for entry in profile.forbidden:
            if not entry.means(v.name, v.value) or ranges.holds(entry.since, entry.until, versions or {}) is False:
                continue
            if (wanted is None or entry.kind in wanted) and not (entry.kind == "redundant" and v.origin == FROM_LOG):
                yield v, entry
            break


def _shown(v: Variable) -> str:
    return f"{v.name}={v.value if len(v.value) <= 80 else v.value[:77] + '...'}"


def _range(entry: Forbidden) -> str:
    return ranges.in_words(entry.since, entry.until)


def _removed(v: Variable, instead: str = "") -> tuple[Fix, ...]:
    command = f"unset {v.name}" if v.origin in (IN_PROCESS, FROM_LOG) else ""
    fix = Fix(do=f"remove {v.name} ({v.origin})", command=command)
    return (fix, Fix(do=f"use {instead}")) if instead else (fix,)


def _count(settings: Iterable[Setting]) -> int:
    return sum(s.level == "required" and not s.when for s in settings)
