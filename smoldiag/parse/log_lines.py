"""What single lines of a log say: one pattern per thing said, from the sources that print it.

`kind` is what the rules ask for. A pattern is tried on lines that hold one of its needles. Named groups become the
event's details; `key` names those that tell two events of one kind apart. Groups `rank` and `host` say of whom.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_DETAIL = 200  # characters


@dataclass(frozen=True)
class Pattern:
    kind: str
    needles: tuple[str, ...]
    regex: re.Pattern[str]
    key: tuple[str, ...] = ()


def _p(kind: str, needles: str | tuple[str, ...], regex: str | None = None, *key: str) -> Pattern:
    words = (needles,) if isinstance(needles, str) else needles
    return Pattern(kind, words, re.compile(regex if regex is not None else "|".join(map(re.escape, words))), key)


# NCCL src: bootstrap.cc, misc/socket.cc, os/linux.cc, transport/net_socket.cc; gloo transport/tcp/device.cc
_SOCKETS = (
    _p(
        "bootstrap-using",
        "Bootstrap",
        r"Bootstrap ?: ?Using (?:\[\d+\])?(?P<interface>[^\s:<]{1,64}):(?P<address>\S{1,80}?)<\d+>",
        "interface",
        "address",
    ),
    _p("socket-using", "NET/Socket", r"NET/Socket ?: Using (?P<devices>\[\d+\]\S.*)", "devices"),
    _p(
        "no-interface",
        (
            "no socket interface found",
            "No usable listening interface found",
            "No IP interface found",
            "NET/Socket : no interface found",
            "No interface found in the same subnet",
        ),
    ),
    _p("bad-family", "is neither AF_INET", r"address (?P<address>\S*) with family (?P<family>\d+) is neither AF_INET"),
    _p(
        "socket-refused",
        ("ocket creation failed", "Address family not supported"),
        r"[Ss]ocket creation failed ?: (?P<error>.{1,80})|(?P<error2>Address family not supported by protocol)",
    ),
    _p(
        "gloo-interface",
        ("Unable to find address for", "Unable to find interface"),
        r"Unable to find (?:address|interface) for: ?(?P<interface>\S{0,64})",
    ),
    _p(
        "connect-failed",
        ("onnect to ", "onnect to"),
        r"[Cc]onnect to (?P<peer>\S{3,120}?)(?: from \S{1,80})? (?:failed|returned)(?: with error)?[ :]{1,3}(?P<error>[A-Z][A-Za-z ]{3,60}?)(?:, exceeded|\.|,|$| \()",
        "error",
    ),
    _p(
        "connect-retries",
        ("exceeded retries", "exceeded error retry count"),
        r"exceeded (?:retries|error retry count)",
    ),
    _p(
        "peer-closed",
        ("Connection closed by remote peer", "Connection closed by peer"),
        r"Connection closed by (?:remote )?peer ?(?P<peer>[^\s.]{0,80})",
    ),
    _p(
        "peer-reset",
        ("Call to recv", "Call to send", "Call to writev", "Connection reset by peer", "Broken pipe"),
        r"Call to (?:recv|send|writev)\w{0,4}(?: from| to)? ?(?P<peer>\S{0,80}) failed : (?P<error>.{1,60})|(?P<error2>Connection reset by peer|Broken pipe)",
    ),
    _p(
        "foreign-bytes",
        ("Message truncated : received", "socket magic mismatch", "wrong socket type"),
        r"Message truncated : received (?P<got>\d+) bytes instead of (?P<wanted>\d+)|socket magic mismatch|wrong socket type",
    ),
    _p("rank-twice", "has already checked in", r"rank (?P<twice>\d+) of (?P<world>\d+) ranks has already checked in"),
)
# torch c10d: socket.cpp, TCPStore.cpp; elastic/rendezvous; getaddrinfo of glibc
_RENDEZVOUS = (
    _p(
        "store-timeout",
        "client socket has timed out",
        r"client socket has timed out after (?P<after>\w+) while trying to connect to (?P<endpoint>\([^)]{1,200}\)|\S{1,200})",
    ),
    _p(
        "store-refused",
        "client socket has failed to connect",
        r"client socket has failed to connect to (?:any network address of )?(?P<endpoint>\([^)]{1,200}\)|\[?\S{1,200}?) ?\(errno: (?P<errno>\d+) - (?P<error>[^)]{1,80})\)",
        "errno",
    ),
    _p(
        "unresolvable",
        (
            "gai error",
            "Name or service not known",
            "Temporary failure in name resolution",
            "nodename nor servname",
            "No address associated with hostname",
            "Could not resolve hostname",
            "Name does not resolve",
            "host not found",
        ),
        r"(?:addresses of \((?P<name>[^,)]{1,200}),.{0,80})?(?P<error>gai error: -?\d+ - [^)]{1,80}|Name or service not known|Temporary failure in name resolution|nodename nor servname provided|No address associated with hostname|Could not resolve hostname (?P<name2>\S{1,100})|Name does not resolve|host not found)",
    ),
    _p("rendezvous-failed", ("RendezvousConnectionError", "The connection to the C10d store has failed")),
    _p("rendezvous-timeout", "RendezvousTimeoutError"),
    _p("rendezvous-closed", "RendezvousClosedError"),
    _p(
        "clients-missing",
        "waiting for clients",
        r"[Tt]imed out after (?P<seconds>\d+) seconds waiting for clients\. (?P<joined>\d+)/(?P<world>\d+) clients joined",
    ),
    _p(
        "store-barrier",
        "store based barrier",
        r"store based barrier on rank:? (?P<rank>\d+).{0,120}world_size=(?P<world>\d+), (?:worker_count|num_workers_joined)=(?P<joined>\d+)",
    ),
    _p(
        "port-in-use",
        ("ddress already in use", "EADDRINUSE"),
        r"(?:bind to (?P<address>\S{1,120}).{0,40})?(?:[Aa]ddress already in use|EADDRINUSE)",
    ),
    _p("port-forbidden", "failed to bind", r"failed to bind to (?P<address>\S{1,120}) \(errno: 13"),
    _p("open-files", ("Too many open files", "errno: 24", "EMFILE")),
)
_LAUNCH = (
    _p(
        "duplicate-gpu",
        "Duplicate GPU detected",
        r"Duplicate GPU detected ?: rank (?P<a>\d+) and rank (?P<b>\d+) both on CUDA device (?P<device>\w+)",
        "device",
    ),
    _p("duplicate-gpu", "Multiple Ranks are using the same GPU"),
    _p("invalid-device", "invalid device ordinal"),
    _p(
        "gpu-busy",
        ("busy or unavailable",),
        r"all CUDA-capable devices are busy or unavailable|CUDA-capable device\(s\) is/are busy or unavailable",
    ),
    _p("peer-limit", ("peer mapping resources exhausted", "TOO_MANY_PEERS", "TooManyPeers", "too many peers")),
    _p(
        "version-mismatch",
        ("Mismatched NCCL version", "NCCL version mismatch with remote peer"),
        r"Mismatched NCCL version detected : rank (?P<a>\d+) version (?P<va>\d+) rank (?P<b>\d+) version (?P<vb>\d+)|NCCL version mismatch with remote peer",
    ),
    _p(
        "size-mismatch",
        ("collective mismatch error", "essage truncated : receiving"),
        r"collective mismatch error,? ?local size (?P<local>\d+) remote size (?P<remote>\d+)|essage truncated : receiving (?P<got>\d+) bytes instead of (?P<wanted>\d+)",
    ),
    _p("undefined-symbol", "undefined symbol", r"undefined symbol: (?P<symbol>\w{1,120})", "symbol"),
    _p(
        "library-missing",
        ("libnccl.so", "libnccl-net.so"),
        r"(?P<library>libnccl[\w.-]*): cannot open shared object file",
    ),
    _p("graph-file", "XML Import Channel", r"XML Import Channel : dev (?P<dev>\d+) not found"),
    _p("driver-old", ("driver version is insufficient", "driver on your system is too old")),
    _p("driver-mismatch", ("Driver/library version mismatch", "NVRM: API mismatch", "API mismatch: the client")),
    _p("nvml-unknown", ("Failed to initialize NVML: Unknown Error",)),
    _p("no-gpu", ("no CUDA-capable device is detected", "No CUDA GPUs are available")),
)
_MEMORY = (
    _p(
        "shm-full",
        (
            "posix_fallocate failed",
            "failed to extend /dev/shm",
            "insufficient shared memory",
            "out of shared memory",
            "rror while creating shared memory segment",
        ),
        r"posix_fallocate failed : (?P<error>.{1,60})|failed to extend (?P<name>/dev/shm/\S{0,80}) to (?P<bytes>\d+)|insufficient shared memory|out of shared memory|rror while creating shared memory segment (?P<segment>\S{1,100}) \(size (?P<size>\d+)\)",
    ),
    _p(
        "shm-missing",
        ("rror while attaching to shared memory", "failed to open /dev/shm", "shared memory segment /dev/shm"),
        r"(?P<segment>/dev/shm/nccl-[\w-]{0,80})?.{0,60}No such file",
    ),
    _p("no-space", "No space left on device"),
    _p("bus-error", "Bus error"),
    _p(
        "cuda-oom",
        ("CUDA out of memory", "OutOfMemoryError", "CUDA error: out of memory", "HIP out of memory"),
        r"(?:CUDA|HIP) out of memory\.?(?: Tried to allocate (?P<wanted>[\d.]+ \w+))?|OutOfMemoryError|CUDA error: out of memory",
    ),
    _p(
        "nccl-oom",
        ("Failed to CUDA", "'out of memory'"),
        r"Failed to CUDA (?:malloc|calloc|host alloc)\S* (?P<bytes>\d+) bytes|Cuda failure (?:\d+ )?'out of memory'",
    ),
    _p(
        "memlock",
        ("Cannot allocate memory",),
        r"(?P<call>ibv_\w+|[Ll]ibfabric error|fi_\w+|NET/OFI).{0,120}(?:\(?-12\)?|errno 12)?.{0,60}Cannot allocate memory",
        "call",
    ),
)
_SYSTEM = (
    _p(
        "oom-kill",
        (
            "oom-kill",
            "oom_kill",
            "Out of memory: Kill",
            "OOMKilled",
            "OOM Killed",
            "Memory cgroup out of memory",
            "Exceeded job memory limit",
            "out-of-memory handler",
        ),
    ),
    _p("exit-code", "exitcode", r"exitcode ?: (?P<code>-?\d+)", "code"),
    _p(
        "signal",
        ("Signal ", "signal "),
        r"(?:Signal|signal:?) (?P<signal>\d{1,2})\b(?: \((?P<name>SIG\w+)\))?",
        "signal",
    ),
    _p(
        "xid",
        "NVRM: Xid",
        r"NVRM: Xid \((?:PCI:)?(?P<bus>[0-9a-fA-F:.]+)\)?.{0,80}?: (?P<xid>\d+),(?P<said>.*)",
        "xid",
        "bus",
    ),
    _p("gpu-lost", ("fallen off the bus", "GPU is lost", "Unable to determine the device handle")),
    _p("ecc", ("uncorrectable ECC error",)),
    _p("nvlink-error", ("uncorrectable NVLink error", "P2P is disabled between NVLINK connected GPUs", "NVLink error")),
    _p("fabric-manager", "system not yet initialized"),
    _p(
        "nvls-failed",
        ("nvls.cc", "NVLink SHARP (NVLS) Multicast"),
        r"nvls\.cc:\d+ (?:\(\w+\) )?NCCL WARN (?P<said>.*)|Failed to bind NVLink SHARP \(NVLS\) Multicast",
    ),
    _p("not-permitted", ("operation not permitted", "CUDA_ERROR_NOT_PERMITTED")),
)
_RDMA = (
    _p(
        "ib-completion",
        "Got completion",
        r"Got completion (?:from peer (?P<peer>\S+) )?with (?:status=|error )(?:(?P<name>IBV_WC_\w+)\()?(?P<status>\d+)\)?(?:.{0,40}vendor[_ ]err[= ](?P<vendor>\d+))?(?:.{0,200}?hca (?P<hca>\S+))?",
        "status",
    ),
    _p(
        "ib-port-error",
        ("port error", "async fatal event", "Got async event"),
        r"(?:NET/IB : (?P<hca>[^\s:]{1,40}):\d+ )?(?:Got (?:non-fatal )?)?async (?:fatal )?event.{0,60}port error",
    ),
    _p(
        "ib-hca-fatal",
        ("local catastrophic error", "device fatal", "ibv_get_async_event failed"),
        r"local catastrophic error|device fatal",
    ),
    _p(
        "modify-qp",
        "ibv_modify_qp",
        r"ibv_modify_qp failed with (?:rc |error )?(?P<code>\d+)? ?(?P<error>[A-Z][\w ]{2,50})?",
    ),
    _p("gdr-disabled", "GPU Direct RDMA Disabled", r"GPU Direct RDMA Disabled for (?:GPU \S+ / )?HCA (?P<hca>\S+)"),
    _p("dmabuf-failed", "dmabuf", r"ibv_reg_dmabuf_mr\w* failed.{0,60}"),
    _p("ofi-error", "NET/OFI", r"NCCL WARN NET/OFI (?P<said>.*)", "said"),
)
_TORCH = (
    _p(
        "watchdog-timeout",
        "Watchdog caught collective operation timeout",
        r"WorkNCCL\(SeqNum=(?P<seq>\d+), OpType=(?P<op>\w+)(?:, (?:NumelIn=(?P<numel>\d+)|TensorShape=(?P<shape>\[[^\]]*\])).{0,60}?)?, Timeout\(ms\)=(?P<timeout>\d+)\) ran for (?P<ms>\d+)",
        "seq",
        "op",
    ),
    _p(
        "fingerprint",
        ("CollectiveFingerPrint", "Detected mismatch between collectives"),
        r"Detected mismatch between collectives on ranks|CollectiveFingerPrint",
    ),
    _p("ddp-unused", "Expected to have finished reduction in the prior iteration"),
    _p("nccl-error", "NCCL error in", r"NCCL error in: ?(?P<at>\S+?), (?P<said>[^,(]{1,80})"),
    _p("elastic-failed", "ChildFailedError"),
    _p(
        "step",
        ("step", "iter", "Step", "Iter", "Epoch", "epoch"),
        r"(?i)\b(?:step|iter(?:ation)?|global_step)\b\W{0,4}(?P<step>\d{1,9})\b.{0,200}?\b(?:loss|lm.loss|train_loss)\b",
    ),
    _p(
        "exception",
        ("Error", "Exception"),
        r"^\W{0,4}(?P<type>[A-Za-z_][\w.]{0,80}(?:Error|Exception|Interrupt))(?:: (?P<said>.{0,300}))?$",
        "type",
        "said",
    ),
)
PATTERNS: tuple[Pattern, ...] = (*_SOCKETS, *_RENDEZVOUS, *_LAUNCH, *_MEMORY, *_SYSTEM, *_RDMA, *_TORCH)


def matching(line: str) -> Iterator[Pattern]:
    """The patterns that this line, and so all lines of its shape, may be of."""
    for pattern in PATTERNS:
        if any(needle in line for needle in pattern.needles) and pattern.regex.search(line):
            yield pattern
