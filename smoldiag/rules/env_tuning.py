"""ENV: what a variable forces that NCCL would choose by itself."""

from collections.abc import Iterator

from smoldiag.facts import Env
from smoldiag.findings import Confidence, Finding, Severity
from smoldiag.knowledge import variables
from smoldiag.model import nccl_values as values
from smoldiag.model.sizes import human as size
from smoldiag.rules import rule
from smoldiag.rules.env_reading import Plain, Setting, Versions, finding, plain, remove

MEASURE = "smoldiag nccl-bench, and again with env -u {}"
GOOGLE = (
    "NCCL_FASTRAK_",
    "NCCL_GPUDIRECTTCPX_",
    "NCCL_SHIMNET_",
)  # presets of these plugins set algorithm and protocol
WITHOUT_FALLBACK = (2, 24, 0)  # from here on, nothing falls back to ring (user guide, NCCL_ALGO)
FEW_CHANNELS = 16  # fewer can't fill NVLink and eight NICs: NCCL itself takes 16 to 32 on such hosts
ALL_CHANNELS = 32  # as many as NCCL takes by itself
MANY_CHANNELS = 24  # of an H100's 132 SMs, taken from compute whatever the size
FEW_THREADS = 256
SMALL_BUFFER = 1 << 20  # bytes; less makes chunks so small that their overhead counts (the default is 4 MiB)
LONG_WAIT_S = 300.0  # InfiniBand: retries until a peer counts as gone
IB_UNIT_S = 4.096e-6  # InfiniBand specification 12.7.34: local ACK timeout 4.096 us x 2^value
SHORT_HEARTBEAT_S = 120
ALL_REDUCE = values.ALGORITHMS_OF["AllReduce"]
IN_USE_BY_TRAINING = {"AllGather", "ReduceScatter", "AllReduce"}


@rule("ENV014", Severity.WARNING)
def protocol_forced(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """NCCL_PROTO takes the choice of protocol away from NCCL.

    LL gives at most half of the bandwidth, LL128 forced where the links do not keep its order gives
    wrong data without an error, and NVLS, PAT and CollNet know Simple alone.

    Fix: remove it; NCCL chooses per size, and uses LL128 only where it is safe.
    """
    taken = plain(env, versions)
    s = taken.get("NCCL_PROTO")
    if s is None or _lost(taken):
        return
    allowed = values.elements(s.value, values.PROTOCOLS)
    some = frozenset().union(*allowed.values())
    all_reduce = allowed["AllReduce"]
    unsafe = "LL128" in some
    effects = [
        f"{s.release} skips its own test whether LL128 is safe on these links, and data is wrong where it is not"
        if unsafe
        else "",
        "" if "Simple" in all_reduce else "NVLS, PAT and CollNet are off, which know Simple alone",
        "LL gives at most half of the bandwidth" if all_reduce == {"LL"} else "",
        "small messages lose the latency of LL" if all_reduce == {"Simple"} else "",
        f"{', '.join(sorted(set(values.PROTOCOLS) - some))} is left out" if not unsafe and len(some) > 1 else "",
    ]
    yield finding(
        s,
        f"{s.text}: {'; '.join(filter(None, effects)) or 'NCCL no longer chooses the protocol'}",
        cause="nccl-proto-forced",
        severity=Severity.INFO if "Simple" in all_reduce or _google(env) else Severity.WARNING,
        why="NCCL chooses per size and topology; a forced protocol is right for one of them at most",
        fixes=(remove(s.variable, scripted=s.scripted),),
        confirm=MEASURE.format(s.name),
        explains=("busbw-below-expected",),
    )


@rule("ENV015", Severity.ERROR)
def algorithm_forced(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """NCCL_ALGO takes the choice of algorithm away from NCCL, or leaves a collective none.

    All-gather and reduce-scatter, which FSDP consists of, have no tree, and broadcast has ring
    alone. From NCCL 2.24 on nothing falls back to ring: a list without an algorithm for a
    collective fails it.

    Fix: remove it, or name the collective: NCCL_ALGO=allreduce:tree.
    """
    taken = plain(env, versions)
    s = taken.get("NCCL_ALGO") or taken.get("NCCL_PROTO")
    if s is None:
        return
    if lost := _lost(taken):
        yield from _nothing_left(s, taken, lost)
        return
    if s.name != "NCCL_ALGO":
        return
    allowed = values.elements(s.value, values.ALGORITHMS)
    left = allowed["AllReduce"] & ALL_REDUCE
    gone = ALL_REDUCE - left
    partial = s.value.startswith("^") or ":" in s.value
    how = f"leaves out {', '.join(sorted(gone))}" if partial else f"may use {', '.join(sorted(left))} alone"
    yield finding(
        s,
        f"{s.text}: all-reduce {how if gone else 'keeps all of its algorithms'}, at every size",
        cause="nccl-proto-forced",
        severity=Severity.INFO if len(left) > 1 or partial or _google(env) else Severity.WARNING,
        why="the best algorithm depends on size and number of hosts: trees and NVLS for small messages and many hosts, "
        "rings for large messages",
        fixes=(remove(s.variable, scripted=s.scripted),),
        confirm=MEASURE.format(s.name),
        explains=("busbw-below-expected",),
    )


def _lost(taken: Plain) -> list[str]:
    return values.without_a_way(taken.text("NCCL_ALGO"), taken.text("NCCL_PROTO"))


def _nothing_left(s: Setting, taken: Plain, lost: list[str]) -> Iterator[Finding]:
    both = " ".join(x.text for x in (taken.get("NCCL_ALGO"), taken.get("NCCL_PROTO")) if x)
    fails = s.version is not None and s.version >= WITHOUT_FALLBACK
    old = s.version is not None and not fails
    effect = "falls back to ring, whatever was meant" if old else "fails: `no algorithm/protocol available`"
    since = "" if s.version else "from NCCL 2.24 on "
    hit = bool(IN_USE_BY_TRAINING & set(lost))
    yield finding(
        s,
        f"{both} leaves {', '.join(lost)} no algorithm: {since}each {effect}",
        cause="nccl-algo-impossible",
        severity=Severity.ERROR if fails and hit else Severity.WARNING,
        confidence=Confidence.CERTAIN if s.version else Confidence.LIKELY,
        why="FSDP gathers and reduce-scatters in every step, DDP broadcasts at its start",
        fixes=(remove(s.variable, scripted=s.scripted),),
        confirm="smoldiag nccl-bench --collective all_reduce,all_gather,reduce_scatter,broadcast",
        sources=("NVIDIA/nccl src/graph/tuning.cc ncclTopoTuneModel, src/enqueue.cc", s.spec.source),
    )


def _google(env: Env) -> bool:
    return any(v.name.startswith(GOOGLE) for v in env)


@rule("ENV016", Severity.WARNING)
def resources_capped(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """A variable leaves NCCL fewer channels, threads or bytes than it takes by itself.

    Channels run in parallel and each fills a part of the links: too few (NCCL_MAX_CTAS, NCCL_MAX_NCHANNELS) leave
    bandwidth unused, as do small buffers (NCCL_BUFFSIZE) and few threads (NCCL_NTHREADS). The opposite, a high
    floor (NCCL_MIN_CTAS, NCCL_MIN_NCHANNELS), takes multiprocessors from compute at every size.

    Fix: remove it; NCCL takes what the topology needs.
    """
    taken = plain(env, versions)
    for s, effect, severity in _caps(taken):
        yield finding(
            s,
            f"{s.text}: {effect}",
            cause="channels-capped" if "CHANNELS" in s.name or "CTAS" in s.name else "nccl-resources-capped",
            severity=severity,
            why="caps are copied from recipes for one machine, and bind all others too",
            fixes=(remove(s.variable, scripted=s.scripted),),
            confirm=MEASURE.format(s.name),
            explains=("busbw-below-expected",) if severity is Severity.WARNING else (),
        )


def _caps(taken: Plain) -> Iterator[tuple[Setting, str, Severity]]:
    for name in ("NCCL_MAX_CTAS", "NCCL_MAX_NCHANNELS", "NCCL_MAX_NRINGS"):
        if (s := taken.get(name)) and (most := taken.number(name)) is not None and most < ALL_CHANNELS:
            few = most < FEW_CHANNELS
            effect = f"at most {most} channels; NCCL takes 16 to 32 where NVLink and many NICs are to be filled"
            yield s, effect, Severity.WARNING if few else Severity.INFO
    for name in ("NCCL_MIN_CTAS", "NCCL_MIN_NCHANNELS", "NCCL_MIN_NRINGS"):
        if (s := taken.get(name)) and (least := taken.number(name)) is not None and least >= MANY_CHANNELS:
            yield s, f"every collective takes {least} thread blocks from compute, whatever its size", Severity.INFO
    if (s := taken.get("NCCL_NTHREADS")) and (threads := taken.number(s.name)) is not None and 0 < threads < 512:
        yield (
            s,
            f"{threads} threads per block instead of up to 512",
            Severity.WARNING if threads < FEW_THREADS else Severity.INFO,
        )
    if (s := taken.get("NCCL_BUFFSIZE")) and (num_bytes := taken.number(s.name)) is not None and num_bytes < 4 << 20:
        tiny = num_bytes < SMALL_BUFFER
        yield s, f"buffers of {size(num_bytes)} instead of 4 MiB", Severity.WARNING if tiny else Severity.INFO
    if (s := taken.get("NCCL_NCHANNELS_PER_NET_PEER")) and taken.number(s.name) == 1:
        yield s, "send/recv between two hosts uses one channel per peer", Severity.INFO


@rule("ENV017", Severity.WARNING)
def time_limit_changed_for_the_worse(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """A time limit is so short that a hiccup ends the job, or so long that it hangs.

    Defaults of NCCL_IB_TIMEOUT, NCCL_IB_RETRY_CNT and TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC grew with the size of
    clusters; a value that was copied when it was an increase is a decrease today.

    Fix: remove it.
    """
    taken = plain(env, versions)
    yield from _ib_timeout(taken)
    if (s := taken.get("NCCL_IB_RETRY_CNT")) and (count := taken.number(s.name)) is not None and 0 <= count < 7:
        yield _limit(s, f"the NIC gives a connection up after {count} retries instead of 7", Severity.WARNING)
    name = "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"
    if (s := taken.get(name)) and (seconds := taken.number(name)) is not None and 0 <= seconds < SHORT_HEARTBEAT_S:
        yield _limit(
            s,
            f"a watchdog that is silent for {seconds} s ends the process (default 480 s); a long CUDA call is enough",
            Severity.WARNING,
        )
    if (s := taken.get("NCCL_SOCKET_RETRY_CNT")) and (count := taken.number(s.name)) is not None and 0 <= count < 34:
        yield _limit(s, f"a rank that starts late is given up after {count} tries instead of 34", Severity.INFO)


def _ib_timeout(taken: Plain) -> Iterator[Finding]:
    s = taken.get("NCCL_IB_TIMEOUT")
    value = taken.number("NCCL_IB_TIMEOUT")
    if s is None or value is None or not 0 < value < 32:
        return
    retries = taken.number("NCCL_IB_RETRY_CNT")
    total_s = IB_UNIT_S * 2**value * (7 if retries is None else retries)
    default = int(variables.default_at(s.spec, s.version) or 0) if s.version else 18
    if value < default:
        since = f"the default of {s.release} is {default}" if s.version else "the default is 18 from 2.14, 20 from 2.23"
        message = f"a peer counts as gone after {total_s:.2g} s; {since}"
        yield _limit(s, message, Severity.WARNING)
    elif total_s > LONG_WAIT_S:
        yield _limit(s, f"a dead peer is noticed only after {total_s / 60:.0f} minutes", Severity.INFO)


def _limit(s: Setting, effect: str, severity: Severity) -> Finding:
    return finding(
        s,
        f"{s.text}: {effect}",
        cause="time-limit-changed",
        severity=severity,
        why="networks and file systems pause for seconds; limits are there to tell such pauses from failures",
        fixes=(remove(s.variable, scripted=s.scripted),),
    )


UNSAFE = {  # name -> (value at which it is unsafe, what can happen)
    "NCCL_GDR_FLUSH_DISABLE": (1, "data that a NIC wrote may be read before it is in GPU memory"),
    "OFI_NCCL_GDR_FLUSH_DISABLE": (1, "data that a NIC wrote may be read before it is in GPU memory"),
    "NCCL_LEGACY_CUDA_REGISTER": (1, "registration of cudaMalloc memory is documented as able to hang"),
    "NCCL_MULTI_RANK_GPU_ENABLE": (1, "kernels of ranks on one GPU hang where they do not fit beside each other"),
    "NCCL_GRAPH_MIXING_SUPPORT": (0, "collectives inside and outside of CUDA graphs hang or corrupt when they overlap"),
    "NCCL_LAUNCH_RACE_FATAL": (0, "host threads that race on launches hang instead of failing"),
    "NCCL_IGNORE_DISABLED_P2P": (1, "NCCL goes on where the driver found peer access broken"),
    "NCCL_IB_RETURN_ASYNC_EVENTS": (0, "a NIC's fatal error does not end the operation, which hangs"),
    "NCCL_ENABLE_VERSION_CHECK": (0, "device code of another NCCL is run unchecked"),
    "FI_FORK_UNSAFE": (1, "registered memory is corrupted when a data loader forks"),
}


@rule("ENV018", Severity.WARNING)
def safety_switched_off(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """A variable turns a safeguard off, at the price of hangs or wrong data.

    The gain is a few per cent in a special case; what it costs is found weeks later, as a loss curve
    or a hang that nobody can explain.

    Fix: remove it.
    """
    for s in plain(env, versions):
        value, effect = UNSAFE.get(s.name, (None, ""))
        if value is None:
            continue
        read = values.integer(s.value)
        word = values.torch_bool(s.value)
        number = int(word) if s.spec.component != "nccl" and word is not None else read[0] if read else None
        if number == value or (s.name == "NCCL_IGNORE_DISABLED_P2P" and number == 2):
            yield finding(
                s,
                f"{s.text}: {effect}",
                cause="safeguard-off",
                why="a safeguard is off",
                fixes=(remove(s.variable, scripted=s.scripted),),
            )
