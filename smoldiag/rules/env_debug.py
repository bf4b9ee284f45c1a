"""ENV: what was set to look for a fault, and is still there."""

from collections.abc import Callable, Iterator

from smoldiag.facts import Env
from smoldiag.findings import Finding, Severity
from smoldiag.model.nccl_values import torch_bool
from smoldiag.rules import rule
from smoldiag.rules.env_reading import Plain, Setting, Versions, finding, plain, remove, replace_by

# parts of NCCL that print at every operation (src/: the calls of INFO with these masks)
PER_OPERATION = {"COLL", "CALL", "PROFILE", "ALL"}
PRINTING = {"INFO", "TRACE"}


def on(value: str) -> bool:
    return torch_bool(value) is True or value.lower() == "on"


def one_of(*words: str) -> Callable[[str], bool]:
    return lambda value: value.strip().lower() in words


def any_value(value: str) -> bool:
    return bool(value)


# name -> (value that is a left-over, what it does, severity)
LEFT_OVER: dict[str, tuple[Callable[[str], bool], str, Severity]] = {
    "CUDA_LAUNCH_BLOCKING": (on, "the host waits for every kernel: no overlap, launches in a row", Severity.WARNING),
    "NCCL_CHECK_POINTERS": (on, "every call looks each pointer up", Severity.WARNING),
    "NCCL_CHECK_MODE": (one_of("debug_local", "debug_global"), "arguments are checked at each call", Severity.WARNING),
    "NCCL_NO_CACHE": (any_value, "variables are read from the environment at each use", Severity.WARNING),
    "NCCL_LAUNCH_MODE": (one_of("group"), "without effect since NCCL 2.9", Severity.INFO),
    "NCCL_RUN_DIAGNOSTICS": (on, "links are tested at each new communicator", Severity.INFO),
    "NCCL_TOPO_DUMP_FILE": (any_value, "the topology is written at each start", Severity.INFO),
    "NCCL_GRAPH_DUMP_FILE": (any_value, "the graphs are written at each start", Severity.INFO),
    "NCCL_FASTRAK_ENABLE_HOTPATH_LOGGING": (on, "TCPXO logs each transfer", Severity.WARNING),
    "TORCH_NCCL_NAN_CHECK": (on, "an extra kernel looks at the input of every collective", Severity.WARNING),
    "TORCH_NCCL_DESYNC_DEBUG": (on, "ranks write to the store at every collective", Severity.INFO),
    "TORCH_NCCL_ENABLE_TIMING": (on, "an extra event is recorded per collective", Severity.INFO),
    "TORCH_SHOW_CPP_STACKTRACES": (on, "exceptions carry C++ stacks", Severity.INFO),
    "TORCH_CPP_LOG_LEVEL": (one_of("info"), "torch prints INFO lines", Severity.INFO),
    "TORCH_LOGS": (any_value, "torch.compile prints", Severity.INFO),
    "TORCH_USE_CUDA_DSA": (on, "device-side assertions are on", Severity.INFO),
    "GLOO_LOG_LEVEL": (one_of("debug"), "gloo prints debug lines", Severity.INFO),
    "LOGLEVEL": (one_of("debug"), "torchrun prints debug lines", Severity.INFO),
    "PYTORCH_NO_CUDA_MEMORY_CACHING": (on, "each tensor is a cudaMalloc, which waits for the GPU", Severity.WARNING),
    "FI_HOOK": (any_value, "each libfabric call passes a hook", Severity.WARNING),
    "FI_EFA_TRACK_MR": (on, "libfabric keeps books on registrations", Severity.INFO),
    "UCX_LOG_LEVEL": (
        one_of("debug", "trace", "trace_req", "data", "async", "func", "poll"),
        "UCX prints",
        Severity.INFO,
    ),
    "OFI_NCCL_ERRORCHECK_MUTEX": (on, "the plugin checks each lock", Severity.INFO),
}


@rule("ENV023", Severity.WARNING)
def debug_setting_left_over(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """A variable for debugging is set.

    Some slow every step (launches that wait, collectives that are compared or printed), others fill
    the log of each rank; all of them are forgotten in scripts.

    Fix: remove it when the fault is found.
    """
    taken = plain(env, versions)
    for s in taken:
        left, effect, severity = LEFT_OVER.get(s.name, (None, "", Severity.INFO))
        if left and left(s.value):
            yield _left_over(s, effect, severity)
    yield from _nccl_debug(taken, complete=env.complete)
    if compared := taken.get("TORCH_DISTRIBUTED_DEBUG"):
        detail = compared.value.upper() == "DETAIL"
        effect = "each collective is compared over all ranks before it runs" if detail else "torch prints more"
        yield _left_over(compared, effect, Severity.WARNING if detail else Severity.INFO)
    if (libfabric := taken.get("FI_LOG_LEVEL")) and libfabric.value.lower() in ("debug", "trace", "info"):
        loud = libfabric.value.lower() != "info"
        yield _left_over(libfabric, "libfabric prints", Severity.WARNING if loud else Severity.INFO)


def _nccl_debug(taken: Plain, *, complete: bool) -> Iterator[Finding]:
    s, parts = taken.get("NCCL_DEBUG"), taken.get("NCCL_DEBUG_SUBSYS")
    prints = s is not None and s.value.strip().upper() in PRINTING
    listed = set(parts.value.upper().removeprefix("^").split(",")) if parts else set()
    loud = PER_OPERATION & (listed if parts and not parts.value.startswith("^") else PER_OPERATION - listed)
    if prints and parts and loud:
        yield _left_over(
            parts, f"NCCL prints {', '.join(sorted(loud))} lines at every operation of every rank", Severity.WARNING
        )
    if s and prints and not taken.get("NCCL_DEBUG_FILE"):
        trace = s.value.strip().upper() == "TRACE"
        more = "; TRACE needs a libnccl that was built for it, others print INFO" if trace else ""
        yield finding(
            s,
            f"{s.text}: every rank prints dozens of lines per communicator into the job's log{more}",
            cause="debug-left-over",
            severity=Severity.WARNING if trace else Severity.INFO,
            why="right for finding a fault, and much to read for everything else",
            fixes=(
                replace_by(s.variable, "WARN", scripted=s.scripted),
                remove(s.variable, scripted=s.scripted),
            ),
        )


def _left_over(s: Setting, effect: str, severity: Severity) -> Finding:
    return finding(
        s,
        f"{s.text}: {effect}",
        cause="debug-left-over",
        severity=severity,
        why=s.spec.does,
        fixes=(remove(s.variable, scripted=s.scripted),),
        confirm=f"time a step with and without: env -u {s.name}" if severity is Severity.WARNING else "",
    )


@rule("ENV024", Severity.INFO)
def debug_output_is_lost(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """NCCL's log is not written, or ranks write over each other.

    NCCL_DEBUG_FILE and NCCL_DEBUG_SUBSYS do nothing without NCCL_DEBUG, and a file name without %h
    and %p is one file for all ranks.

    Fix: NCCL_DEBUG=INFO NCCL_DEBUG_FILE=/tmp/nccl.%h.%p.log
    """
    taken = plain(env, versions)
    level = env.get("NCCL_DEBUG")
    file = taken.get("NCCL_DEBUG_FILE")
    if file and "%p" not in file.value and not file.value.startswith("/dev/"):
        yield finding(
            file,
            f"{file.text} has no %p: ranks of a host write over each other",
            cause="debug-output-lost",
            severity=Severity.INFO,
            why="each process opens the file anew, and the last one wins",
            fixes=(replace_by(file.variable, f"{file.value}.%h.%p", scripted=file.scripted),),
        )
    quiet = level is None and env.complete
    for s in (file, taken.get("NCCL_DEBUG_SUBSYS"), taken.get("NCCL_DEBUG_TIMESTAMP_FORMAT")):
        if quiet and s and not (s is file and "%p" not in s.value):
            yield finding(
                s,
                f"{s.text} has no effect: NCCL_DEBUG is not set, so NCCL prints nothing",
                cause="debug-output-lost",
                severity=Severity.INFO,
                why="NCCL is silent without NCCL_DEBUG",
                fixes=(remove(s.variable, scripted=s.scripted),),
            )
