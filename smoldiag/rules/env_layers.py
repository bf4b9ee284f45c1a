"""ENV: settings that work against each other, or come from several places."""

from collections.abc import Iterator

from smoldiag.facts import Env, Nic
from smoldiag.findings import Confidence, Finding, Severity
from smoldiag.model import nccl_values as values
from smoldiag.rules import rule
from smoldiag.rules.env_reading import Plain, Setting, Versions, evidence, finding, plain, remove, settings

OF_IB = (
    "NCCL_IB_HCA",
    "NCCL_IB_GID_INDEX",
    "NCCL_IB_TIMEOUT",
    "NCCL_IB_QPS_PER_CONNECTION",
    "NCCL_IB_TC",
    "NCCL_IB_SL",
)
OF_GID_CHOICE = ("NCCL_IB_ADDR_FAMILY", "NCCL_IB_ADDR_RANGE", "NCCL_IB_ROCE_VERSION_NUM")
OF_PLUGINS = {"aws libfabric", "fastrak", "gib", "gpudirecttcpx_v7", "ibext", "ibext_v8", "ucx"}
MOST_SOCKETS = 64  # threads times sockets (user guide, NCCL_SOCKET_NTHREADS)
FLOORS_AND_CEILINGS = (
    ("NCCL_MIN_CTAS", "NCCL_MAX_CTAS"),
    ("NCCL_MIN_NCHANNELS", "NCCL_MAX_NCHANNELS"),
    ("NCCL_MIN_P2P_NCHANNELS", "NCCL_MAX_P2P_NCHANNELS"),
)
OF_TORCHRUN = ("RANK", "LOCAL_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")
OF_AWS_PLUGIN = (
    *("NCCL_BUFFSIZE", "NCCL_P2P_NET_CHUNKSIZE", "NCCL_NVLSTREE_MAX_CHUNKSIZE", "NCCL_NVLS_CHUNKSIZE"),
    *("NCCL_NET_FORCE_FLUSH", "NCCL_NETDEVS_POLICY"),
)
OLD_AND_NEW = (
    ("NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_ASYNC_ERROR_HANDLING"),
    ("NCCL_BLOCKING_WAIT", "TORCH_NCCL_BLOCKING_WAIT"),
    ("TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_FR_BUFFER_SIZE"),
    ("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "TORCH_FR_DUMP_TEMP_FILE"),
)


@rule("ENV032", Severity.WARNING)
def settings_that_contradict(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """One variable takes away what another one sets.

    One of the two has no effect, or init fails; which one, nobody says.

    Fix: decide for one of them and remove the other.
    """
    taken = plain(env, versions)
    for s, other, effect, severity in _pairs(taken):
        yield finding(
            s,
            f"{s.text} and {other.text}: {effect}",
            cause="variables-contradict",
            severity=severity,
            evidence=evidence(s, other),
            why="only one of the two can be in force",
            fixes=(remove(s.variable, scripted=s.scripted),),
        )


def _pairs(taken: Plain) -> Iterator[tuple[Setting, Setting, str, Severity]]:
    number = taken.number
    off = taken.get("NCCL_IB_DISABLE")
    if off and number(off.name):
        if (net := taken.get("NCCL_NET")) and net.value.upper() == "IB":
            yield net, off, "the network that is asked for is switched off, and init fails", Severity.ERROR
        for ib in filter(None, map(taken.get, OF_IB)):
            yield ib, off, f"{ib.name} has no effect without InfiniBand and RoCE", Severity.INFO
    off = taken.get("NCCL_P2P_DISABLE")
    if off and number(off.name) == 1 and (level := taken.get("NCCL_P2P_LEVEL")):
        yield level, off, "NCCL_P2P_LEVEL has no effect while P2P is off", Severity.INFO
    off = taken.get("NCCL_CUMEM_ENABLE")
    if off and number(off.name) == 0:
        for name in ("NCCL_NVLS_ENABLE", "NCCL_MNNVL_ENABLE"):
            if (on := taken.get(name)) and number(name) == 1:
                yield on, off, f"{name} needs cuMem buffers", Severity.WARNING
    for floor, ceiling in FLOORS_AND_CEILINGS:
        least, most = number(floor), number(ceiling)
        low, high = taken.get(floor), taken.get(ceiling)
        if low and high and least is not None and most is not None and least > most:
            yield low, high, "the floor is above the ceiling", Severity.WARNING
    fixed = taken.get("NCCL_IB_GID_INDEX")
    if fixed and (number(fixed.name) or 0) >= 0:
        for choice in filter(None, map(taken.get, OF_GID_CHOICE)):
            yield choice, fixed, f"{choice.name} has no effect on a fixed GID index", Severity.INFO
    threads, sockets = taken.get("NCCL_SOCKET_NTHREADS"), taken.get("NCCL_NSOCKS_PERTHREAD")
    product = (number("NCCL_SOCKET_NTHREADS") or 0) * (number("NCCL_NSOCKS_PERTHREAD") or 0)
    if threads and sockets and product > MOST_SOCKETS:
        yield (
            sockets,
            threads,
            f"their product is {product}, NCCL opens at most {MOST_SOCKETS} sockets",
            Severity.WARNING,
        )
    plugin, net = taken.get("NCCL_NET_PLUGIN"), taken.get("NCCL_NET")
    if plugin and net and plugin.value.lower() == "none" and net.value.lower() in OF_PLUGINS:
        yield net, plugin, "the network is a plugin's, and no plugin is loaded: init fails", Severity.ERROR
    nvls, algorithm = taken.get("NCCL_NVLS_ENABLE"), taken.get("NCCL_ALGO")
    if nvls and algorithm and number(nvls.name) == 0:
        allowed = values.elements(algorithm.value, values.ALGORITHMS)["AllReduce"]
        if allowed and allowed <= {"NVLS", "NVLSTree"}:
            yield algorithm, nvls, "the only algorithm for all-reduce is switched off", Severity.ERROR
    yield from _pairs_of_torch(taken)


def _pairs_of_torch(taken: Plain) -> Iterator[tuple[Setting, Setting, str, Severity]]:
    for old_name, new_name in OLD_AND_NEW:
        old, new = taken.get(old_name), taken.get(new_name)
        if old and new and old.value != new.value:
            yield old, new, f"torch takes {new_name}", Severity.INFO
    hook = taken.get("TORCH_NCCL_USE_TENSOR_REGISTER_ALLOCATOR_HOOK")
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        options = taken.get(name)
        if hook and taken.on(hook.name) and options and "expandable_segments:True" in options.value:
            yield hook, options, "torch does not register expandable segments with NCCL", Severity.WARNING
    dump, monitor = taken.get("TORCH_NCCL_DUMP_ON_TIMEOUT"), taken.get("TORCH_NCCL_ENABLE_MONITORING")
    if dump and monitor and taken.on(dump.name) and taken.on(monitor.name) is False:
        yield dump, monitor, "the dump is made by the monitor, which is off", Severity.INFO


@rule("ENV033", Severity.WARNING)
def file_that_does_not_exist(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """A variable names a file that is not there.

    NCCL goes on without it: settings of a missing NCCL_CONF_FILE are not read, and ~/.nccl.conf is
    not read in its place; a topology is detected, a plugin is left out.

    Fix: correct the path, or remove the variable.
    """
    for s in settings(env, versions):
        if s.variable.exists is False:
            tilde = "; NCCL does not expand ~" if s.value.startswith("~") else ""
            yield finding(
                s,
                f"{s.text}: there is no such file{tilde}",
                cause="topology-file-wrong-or-missing" if "TOPO" in s.name else "variable-file-missing",
                why="what the file was to bring is missing, mostly without a warning",
                fixes=(remove(s.variable, scripted=s.scripted),),
            )


@rule("ENV034", Severity.INFO)
def setting_that_is_overridden(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """A variable is set in several places with different values.

    The environment goes before NCCL_CONF_FILE or ~/.nccl.conf, and these before /etc/nccl.conf. What
    an administrator wrote there is not in force for this process.

    Fix: keep one place.
    """
    for s in settings(env, versions) if env.complete else ():
        other = [shadow for shadow in s.variable.shadowed if not shadow.endswith(f" ({s.value})")]
        if other:
            yield finding(
                s,
                f"{s.text} from {s.variable.origin} is in force; not used: {', '.join(other)}",
                cause="variable-overridden",
                severity=Severity.INFO,
                why="the first place counts, and nothing says so",
                fixes=(remove(s.variable, scripted=s.scripted),),
                sources=("NVIDIA/nccl src/misc/param.cc: files are read with setenv(overwrite=0)",),
            )


@rule("ENV035", Severity.INFO)
def setting_that_needs_care(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """A variable changes what NCCL takes for granted, e.g. who is on which host.

    The same NCCL_HOSTID on two hosts makes NCCL use shared memory between them; a plug-in named by
    NCCL_ENV_PLUGIN replaces every other setting.

    Fix: remove it, unless you know what sets it.
    """
    effects = {
        "NCCL_HOSTID": "it must be another text on each host: equal texts count as the same host",
        "NCCL_ENV_PLUGIN": "the plugin's values replace all other NCCL variables, these included",
        "NCCL_GRAPH_FILE": "no channels are searched; the file must fit this very topology",
    }
    taken = plain(env, versions)
    for name, effect in effects.items():
        s = taken.get(name)
        if s and s.variable.exists is not False and s.value.lower() != "none":
            yield finding(
                s,
                f"{s.text}: {effect}",
                cause="setting-needs-care",
                severity=Severity.INFO,
                confidence=Confidence.POSSIBLE,
                why=s.spec.does,
                fixes=(remove(s.variable, scripted=s.scripted),),
            )


@rule("ENV036", Severity.INFO)
def setting_that_another_layer_makes(
    env: Env, versions: Versions | None, nics: tuple[Nic, ...] | None
) -> Iterator[Finding]:
    """A variable is set by hand that the launcher or a plugin sets by itself.

    torchrun gives RANK and LOCAL_RANK to each rank, and a number in a script is the same for all; aws-ofi-nccl
    chooses NCCL_BUFFSIZE, NCCL_P2P_NET_CHUNKSIZE and others per instance type, but only where they are not set.

    Fix: remove it.
    """
    taken = plain(env, versions)
    for name in OF_TORCHRUN if not env.complete else ():
        if (s := taken.get(name)) and s.value.isdigit():
            effect = "torchrun gives each rank its own; this number is the same for all ranks of the script"
            yield _other_layer(s, effect, ("torch/distributed/run.py: environment variables",))
    efa = any(n.kind == "efa" for n in nics or ()) or (env.get("FI_PROVIDER") or "").startswith("efa")
    for s in filter(None, map(taken.get, OF_AWS_PLUGIN if efa else ())):
        effect = "aws-ofi-nccl chooses it per instance type, but only where it is not set"
        yield _other_layer(s, effect, ("aws/aws-ofi-nccl src/platform-aws.cpp", s.spec.source))


def _other_layer(s: Setting, effect: str, sources: tuple[str, ...]) -> Finding:
    return finding(
        s,
        f"{s.text}: {effect}",
        cause="variable-of-another-layer",
        severity=Severity.INFO,
        confidence=Confidence.POSSIBLE,
        why="what is set by hand stays when the launcher, the plugin or the instance type changes",
        fixes=(remove(s.variable, scripted=s.scripted),),
        sources=sources,
    )
