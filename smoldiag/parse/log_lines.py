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


def _p(kind: str, needles: str | tuple[str, ...], regex: str = "", *key: str) -> Pattern:
    words = (needles,) if isinstance(needles, str) else needles
    return Pattern(kind, words, re.compile(regex or "|".join(map(re.escape, words))), key)


# fmt: off
# NCCL: bootstrap.cc, misc/socket.cc, os/linux.cc, include/socket.h before 2.12, transport/net_socket.cc; gloo: transport/tcp/device.cc
SOCKETS = (
    _p("bootstrap-using", "ootstrap", r"Bootstrap ?: ?Using (?:\[\d+\])?(?P<interface>[^\s:<]{1,64}):(?P<address>\S{1,80}?)<\d+>", "interface", "address"),
    _p("interface-using", ("NET/Socket", "NET : Using interface"), r"NET/Socket ?: Using (?P<devices>\[\d+\]\S.*)|NET : Using interface (?P<interface>[^\s:]{1,64}):(?P<address>\S{1,80}?)<\d+>", "devices", "interface", "address"),
    _p("no-interface", ("o socket interface found", "o usable listening interface found", "o IP interface found", "NET/Socket : no interface found", "o interface found in the same subnet", "verify NCCL_OOB_NET_IFNAME", "no device found matching"), r"(?i)no (?:socket |usable listening |IP )?interface found|no device found (?:matching|after excluding)"),
    _p("bad-family", ("is neither AF_INET", "nsupported address family", "unsupported IP family"), r"(?:address (?P<address>\S*) with family (?P<family>\d+) is neither AF_INET)|address with family (?P<family2>\d+) is neither|[Uu]nsupported (?:address|IP) family"),
    _p("no-socket", ("ocket creation failed", "ddress family not supported", "EAFNOSUPPORT"), r"[Ss]ocket creation failed ?: (?P<error>.{1,80})|Address family not supported by protocol|EAFNOSUPPORT"),
    _p("gloo-interface", ("nable to find address for", "nable to find interface", "GLOO_SOCKET_IFNAME"), r"[Uu]nable to find (?:address|interface) for: ?(?P<interface>\S{0,64})|GLOO_SOCKET_IFNAME.{0,60}(?:not found|invalid|no such)"),
    _p("connect-failed", ("onnect to ", "onnect(", "connect returned", "PollConnect"), r"(?P<call>[Cc]onnect(?: to|\(\)? to)?|PollConnect to|connect to) ?(?P<peer>\[?[0-9a-fA-F.:]{2,60}(?:%[\w.-]{1,32})?\]?(?:<\d{1,5}>|:\d{1,5})?)(?:<[^>]{1,20}>)?(?: from \S{1,80})? (?:failed|returned)(?: with error)?[ :]{1,3}(?:\d{1,3} ?\()?(?P<error>Connection timed out|Connection refused|No route to host|Network is unreachable|Host is down|Software caused connection abort|Connection reset by peer|Cannot assign requested address|Invalid argument|Permission denied|Operation timed out)(?!.{0,40}, retrying)", "error"),
    _p("connect-failed", ("exceeded error retry count", "exceeded retries"), r"(?:connect returned (?P<error>[A-Z][\w ]{3,40}), )?exceeded (?:error retry count|retries)", "error"),
    _p("connect-retry", ("retrying",), r"[Cc]onnect.{0,160}(?P<error>Connection timed out|Connection refused|No route to host|Network is unreachable).{0,40}retrying", "error"),
    _p("unreachable", ("o route to host", "etwork is unreachable"), r"(?i)(?:NCCL|gloo|socket|connect|tcp|ssh|bootstrap|store|rank)\b.{0,200}?(?P<error>No route to host|Network is unreachable)", "error"),
    _p("peer-closed", ("onnection closed by remote peer", "onnection closed by peer", "emote process exited or there was a network error"), r"[Cc]onnection closed by (?:remote )?peer ?(?P<peer>[^\s.]{0,80})|[Rr]emote process exited or there was a network error"),
    _p("peer-reset", ("Connection reset by peer", "Broken pipe")),
    _p("foreign-bytes", ("Message truncated : received", "socket magic mismatch", "wrong socket type"), r"Message truncated : received (?P<got>[\d,]+) bytes instead of (?P<wanted>[\d,]+)|socket magic mismatch|wrong socket type"),
    _p("rank-twice", ("has already checked in", "mismatch in info from procs", "mismatch in rank count from procs"), r"rank (?P<twice>\d+) of (?P<world>\d+) ranks has already checked in|mismatch in (?:info|rank count) from procs"),
    _p("open-files", ("Too many open files", "errno: 24 ", "EMFILE", "received 0 items of ancdata")),
    _p("connect-failed", ("SO_ERROR: ", "connectFullMesh failed", "Connect timeout ["), r"SO_ERROR: (?P<error>Connection refused|Connection timed out|No route to host|Network is unreachable)(?:, remote=(?P<peer>\S{1,60}))?|Gloo connectFullMesh failed|Connect timeout (?P<peer2>\[\S{1,60})", "error"),
)
# torch c10d: socket.cpp, TCPStore.cpp; torch elastic: rendezvous; glibc: getaddrinfo
RENDEZVOUS = (
    _p("store-timeout", ("client socket has timed out", "onnect() timed out", "connecting to TCPStore timed out"), r"(?:client socket has timed out after (?P<after>\w+) while trying to connect to (?P<endpoint>\([^)]{1,200}\)|\S{1,200}))|connect\(\) timed out"),
    _p("store-refused", "client socket has failed to connect", r"client socket has failed to connect to (?:any network address of )?(?P<endpoint>\([^)]{1,200}\)|\[?\S{1,200}?) ?\(errno: (?P<errno>\d+) - (?P<error>[^)]{1,80})\)", "errno"),
    _p("unresolvable", ("gai error", "ame or service not known", "emporary failure in name resolution", "odename nor servname", "o address associated with hostname", "ould not resolve hostname", "ame does not resolve", "host not found", "nknown host", "UnknownHostException", "getaddrinfo", "resolving hostname", "nable to resolve hostname", "error encountered when getting address info"), r"(?:(?P<v6>IPv6 )?network addresses of \((?P<name>[^,)]{1,200}),.{0,80})?(?P<error>gai error: -?\d+ - [^)]{1,80}|[Nn]ame or service not known|[Tt]emporary failure in name resolution|[Nn]odename nor servname provided|[Nn]o address associated with hostname|[Cc]ould not resolve hostname (?P<name2>[^\s:]{1,100})|[Nn]ame does not resolve|host not found|UnknownHostException|[Uu]nknown host\b|getaddrinfo (?:failed|ENOTFOUND)|[Uu]nable to resolve hostname|error encountered when getting address info)"),
    _p("rendezvous-failed", ("RendezvousConnectionError", "connection to the C10d store has failed", "DistNetworkError", "EtcdException", "rendezvous backend")),
    _p("rendezvous-timeout", ("RendezvousTimeoutError", "Rendezvous timed out")),
    _p("rendezvous-closed", ("RendezvousClosedError", "RendezvousGracefulExitError")),
    _p("clients-missing", "waiting for clients", r"[Tt]imed out after (?P<seconds>\d+) seconds waiting for clients\. (?P<joined>\d+)/(?P<world>\d+) clients joined"),
    _p("store-barrier", ("tore based barrier", "imed out initializing process group"), r"world_size=(?P<world>\d+), (?:worker_count|num_workers_joined)=(?P<joined>\d+)|[Tt]imed out initializing process group"),
    _p("store-key", ("retrieving ncclUniqueId", "wait timeout after", "Socket Timeout", "DistStoreError"), r"(?:\[(?P<rank>\d+)\] is setting up NCCL communicator and )?retrieving ncclUniqueId from \[(?P<root>\d+)\].{0,120}got error: (?P<error>.{1,60})|wait timeout after (?P<ms>\d+)ms, keys: (?P<keys>\S{1,120})|Socket Timeout|DistStoreError"),
    _p("port-in-use", ("ddress already in use", "EADDRINUSE"), r"(?:bind to (?P<address>\S{1,120}).{0,40}|listen on .{0,60}port: (?P<port>\d+).{0,80})?(?:[Aa]ddress already in use|EADDRINUSE)"),
    _p("port-forbidden", ("errno: 13 -", "ermission denied"), r"bind.{0,160}(?:errno: 13|[Pp]ermission denied)"),
)
# How ranks were started: NCCL init.cc, transport/p2p.cc, graph/search.cc; CUDA driver_types.h; the loader; nccl-tests
LAUNCH = (
    _p("duplicate-gpu", ("Duplicate GPU detected", "Multiple Ranks are using the same GPU"), r"Duplicate GPU detected ?: rank (?P<a>\d+) and rank (?P<b>\d+) both on CUDA device (?P<device>\w+)|Multiple Ranks are using the same GPU", "device"),
    _p("invalid-device", ("nvalid device ordinal", "InvalidDevice", "nvalid device id", "device < num_gpus", "nvalid CUDA 'device"), r"[Ii]nvalid device id|device < num_gpus|[Ii]nvalid CUDA 'device|(?P<file>[\w/.-]{1,80}\.(?:cc|cu|h|cpp|py)):\d+.{0,80}invalid device ordinal|[Ii]nvalid device ordinal|cudaErrorInvalidDevice\b", "file"),
    _p("gpu-busy", ("busy or unavailable", "cudaErrorDevicesUnavailable"), r"busy or unavailable|cudaErrorDevicesUnavailable"),
    _p("peer-limit", ("eer mapping resources exhausted", "TOO_MANY_PEERS", "TooManyPeers")),
    _p("version-mismatch", ("ismatched NCCL version", "NCCL version mismatch with remote peer"), r"[Mm]ismatched NCCL version detected ?: rank (?P<a>\d+) version (?P<va>\d+) rank (?P<b>\d+) version (?P<vb>\d+)|NCCL version mismatch with remote peer|[Mm]ismatched NCCL version"),
    _p("size-mismatch", ("collective mismatch error", "essage truncated : receiving", "op.preamble.length", "posted incorrect receive info"), r"(?P<ib>collective mismatch error),? ?local size (?P<local>\d+) remote (?:size )?(?P<remote>\d+)|essage truncated : receiving (?P<got>\d+) bytes instead of (?P<wanted>\d+)|(?P<ib2>posted incorrect receive info)|op\.preamble\.length <= op\.nbytes\. (?P<got2>\d+) vs (?P<wanted2>\d+)"),
    _p("undefined-symbol", ("undefined symbol", "symbol lookup error"), r"undefined symbol: (?P<symbol>\w{1,120})", "symbol"),
    _p("library-missing", ("libnccl.so", "libnccl_static", "version `NCCL"), r"(?P<library>libnccl\.so[\w.]*): cannot open shared object file|libnccl\.so\S{0,20}: version .{0,40} not found"),
    _p("graph-file", ("XML Import Channel", "XML Graph has wrong version", "Could not open XML graph file"), r"XML Import Channel : dev (?P<dev>\d+) not found|XML Graph has wrong version|Could not open XML graph file (?P<path>\S{1,200})"),
    _p("topology-file", ("XML Parse", "XML Topology", "XML parser", "Attribute ", "too many XML", "local path from gpu"), r"XML (?:Parse|Topology has wrong version|Mismatch|parser is limited)|NCCL WARN Attribute \S{1,40} of node \S{1,40} not found|too many XML (?:nodes|subnodes)|Could not find any local path from gpu"),
    _p("driver-old", ("driver version is insufficient", "NVIDIA driver on your system is too old", "cudaErrorInsufficientDriver", "CUDA Driver version found is"), r"driver version is insufficient|NVIDIA driver on your system is too old(?:.{0,10}found version (?P<found>\d+))?|cudaErrorInsufficientDriver|CUDA Driver version found is (?P<found2>\d+)"),
    _p("driver-mismatch", ("unsupported display driver", "forward compatibility was attempted", "river/library version mismatch", "API mismatch", "NVML_ERROR_LIB_RM_VERSION_MISMATCH"), r"[Dd]river/library version mismatch|NVRM: API mismatch|API mismatch: the (?:client|NVIDIA)|NVML_ERROR_LIB_RM_VERSION_MISMATCH|unsupported display driver / cuda driver combination|forward compatibility was attempted on non supported HW"),
    _p("nvml-unknown", ("NVML: Unknown Error", "NVML: Insufficient Permissions", "failed: Unknown Error", "NVML_ERROR_UNKNOWN", "CUDA unknown error"), r"Failed to initialize NVML: (?:Unknown Error|Insufficient Permissions)|nvml\w{3,40}\([^)]{0,40}\) failed: Unknown Error|NVML_ERROR_UNKNOWN|(?P<cuda>CUDA unknown error)"),
    _p("no-gpu", ("no CUDA-capable device is detected", "No CUDA GPUs are available", "cudaErrorNoDevice", "No devices were found")),
)
# Memory: NCCL misc/shmutils.cc, os/linux.cc, include/alloc.h, misc/ibvwrap.cc; torch c10/cuda; libfabric; libibverbs
MEMORY = (
    _p("shm-full", ("posix_fallocate", "failed to extend ", "nsufficient shared memory", "out of shared memory", "rror while creating shared memory segment", "No space left on device"), r"posix_fallocate.{0,20}failed ?: (?P<error>.{1,60})|failed to extend (?P<path>/dev/shm/\S{0,80}) to (?P<bytes>\d+)|[Ii]nsufficient shared memory|out of shared memory|rror while creating shared memory segment (?P<segment>\S{1,100}) \(size (?P<size>\d+)\)|(?:/dev/shm|shared memory|shm_|nccl-shm|torch_\d+_).{0,120}No space left on device|No space left on device.{0,80}(?:/dev/shm|shared memory)"),
    _p("shm-missing", ("shared memory segment", "shmOpen", "/dev/shm/nccl-"), r"(?:attaching to|opening|open) (?:shared memory segment )?(?P<segment>/dev/shm/nccl-(?P<name>[\w-]{0,80})|nccl-shm\S{0,80}).{0,80}(?:No such file|error: .{1,60})|shared memory segment (?P<segment2>/dev/shm/nccl-) "),
    _p("bus-error", ("Bus error", "signal 7", "SIGBUS"), r"\bBus error\b|[Ss]ignal 7\b|\bSIGBUS\b"),
    _p("cuda-oom", ("out of memory", "OutOfMemoryError", "OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"), r"(?:CUDA|HIP) out of memory\.?(?: Tried to allocate (?P<wanted>[\d.]+ \w+))?(?:.{0,40}GPU (?P<gpu>\d+))?|torch\.(?:cuda\.)?OutOfMemoryError|(?:CUDA|HIP) error: out of memory|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY|RESOURCE_EXHAUSTED: Out of memory|CUBLAS_STATUS_ALLOC_FAILED"),
    _p("nccl-oom", ("Failed to CUDA", "'out of memory'", "Failed to cudaMalloc"), r"Failed to CUDA (?:malloc|calloc|host alloc)(?: async)? (?P<bytes>\d+) bytes|(?:Cuda|HIP|CUDA) failure (?:\d+ )?'out of memory'|(?P<file>[\w/.-]{1,60}\.(?:cc|h)):\d+.{0,60}out of memory"),
    _p("memlock", ("Cannot allocate memory", "(-12)", "errno 12", "RC: -12", "ENOMEM"), r"(?P<call>ibv_\w{3,30}|mlx5dv_\w{3,30}|[Ll]ibfabric|fi_\w{3,30}|NET/OFI|NET/IB|EFA|efa|UCX|ibv_exp\w{3,30}|register memory)\b.{0,200}(?:Cannot allocate memory|ENOMEM|\(-12\)|RC: -12\b|errno 12\b)", "call"),
    _p("memlock-warning", ("RLIMIT_MEMLOCK", "max locked memory"), r"RLIMIT_MEMLOCK is (?P<bytes>\d+)|max locked memory\s+\(kbytes, -l\)\s+(?P<kib>\d+)"),
    _p("efa-buffers", "post internal receive buffers"),
)
# Who died of what: torch elastic, Slurm, mpirun, Kubernetes, shells, kernel
SYSTEM = (
    _p("oom-kill", ("oom-kill", "oom_kill", "Out of memory: Kill", "OOMKilled", "OOM Killed", "OOM-killed", "Memory cgroup out of memory", "xceeded job memory limit", "exceeded memory limit", "out-of-memory handler", "out of memory killer", "OUT_OF_MEMORY", "DataLoader worker (pid"), r"oom[-_]kill|Out of memory: Kill(?:ed)? process (?P<pid>\d+)(?: \((?P<process>[^)]{1,40})\))?|OOM[- ]?[Kk]illed|Memory cgroup out of memory|[Ee]xceeded (?:job |step )?memory limit|out-of-memory handler|(?<![A-Z_])OUT_OF_MEMORY\b|DataLoader worker \(pid\(?s?\)? ?\d+\).{0,40}(?:signal: Killed|exited unexpectedly)"),
    _p("elastic-host", " host ", r"^\W{0,3}\s*host\s{1,10}: (?P<host>\S{1,200})$", "host"),
    _p("elastic-rank", " rank ", r"^\W{0,3}\s*rank\s{1,10}: (?P<rank>\d+) \(local_rank: (?P<local>\d+)\)", "rank"),
    _p("elastic-exit", "exitcode", r"exitcode\s{0,6}: (?P<code>-?\d+)", "code"),
    _p("elastic-failed", ("ChildFailedError", "failed (exitcode:"), r"ChildFailedError|failed \(exitcode: (?P<code>-?\d+)\) local_rank: (?P<local>\d+)(?: \(pid: \d+\))?"),
    _p("elastic-root", ("Root Cause (first observed failure)",)),
    _p("elastic-restart", ("Stopping workers to restart", "estarting worker group", "attempts left; will restart", "worker group is about to be restarted", "DUE TO REQUEUE", "DUE TO PREEMPTION", "has been requeued")),
    _p("signal", ("Signal ", "signal ", "signal:", "SIG"), r"(?:[Ss]ignal:? |traceback : Signal |with signal |on signal |Caught signal |died from signal |killed by signal:? )(?P<signal>\d{1,2})\b(?:.{0,3}\(?(?P<name>SIG[A-Z]{2,6}|[A-Z][a-z]+(?: [a-z]+){0,2}))?|(?:\b(?:by|with|of|from|signal|got|received)|<Signals\.)[\s:<.(]{0,3}(?:Signals\.)?(?P<name2>SIGKILL|SIGSEGV|SIGABRT|SIGBUS)\b", "signal", "name2"),
    _p("killed", ("Killed", "KILLED", "exit code 137", "exit status 137", "exitcode: 137", "Exit 137"), r"^\s*(?:\S{1,200}: line \d+:)?\s*\d+ Killed\s|: task(?:s)? (?P<tasks>[\d,-]+): Killed|^Killed$|\bexit(?:ed with)?[ :_]?(?: ?code| status)?[ :=]{0,2}137\b"),
    _p("segfault", ("egmentation fault", "SIGSEGV", "segfault at"), r"[Ss]egmentation fault|SIGSEGV|segfault at"),
    _p("frame-nccl", ("libnccl.so", "librccl.so", "ras", "nccl"), r"(?:^|[\s#\[(])\d{1,3}\]?:? {1,3}(?:0x[0-9a-f]{4,16} )?\S{0,200}(?P<library>lib[nr]ccl(?!-net)[\w.-]{0,12}\.so[\w.]{0,12})|(?<![:\w])(?P<function>ras[A-Z]\w{3,60}|nccl(?:Proxy|Comm|Topo|Group|Transport|Ib|Net|Shm|P2p|Nvls)\w{2,60}) ?(?:\(|\uff08)\S{0,60}.{0,20}(?:at |/|\[0x|\)|\uff09)|, in (?P<function2>nccl[A-Z]\w{3,60}|ras[A-Z]\w{3,60})$"),
    _p("cancelled", ("CANCELLED", "DUE TO TIME LIMIT", "TIMEOUT", "PREEMPTED"), r"CANCELLED AT (?P<at>\S{10,30})(?: DUE TO (?P<why>[A-Z ]{3,40}))?|DUE TO TIME LIMIT|(?:JobState=|\|)(?P<state>TIMEOUT|CANCELLED|PREEMPTED)\b"),
    _p("node-failed", ("NODE FAILURE", "NODE_FAIL", "Node failure", "node failure", "evicted", "Evicted", "preempt", "PREEMPT", "NodeNotReady"), r"DUE TO NODE FAILURE|NODE_FAIL|[Nn]ode failure on (?P<host>\S{1,80})|The node was low on resource|NodeNotReady|[Pp]od.{0,60}[Ee]victed"),
    _p("task-exit", ("task ", "tasks "), r"srun: error: (?P<host>[\w.-]{1,100}): tasks? (?P<tasks>[\d,-]+): (?P<what>Exited with exit code \d+|Killed|Segmentation fault.{0,20}|Aborted.{0,20}|Bus error.{0,20}|Terminated)", "host", "what"),
    _p("mpi-exit", ("mpirun noticed that process rank", "prterun noticed that process rank"), r"process rank (?P<rank>\d+) with PID \d+ on node (?P<host>\S{1,100}) exited on signal (?P<signal>\d+)", "signal"),
)
# GPU, NVLink, NVSwitch, IMEX, PCIe: CUDA error texts, NVRM kernel messages, NCCL transport/nvls.cc and graph/paths.cc
GPU = (
    _p("xid", ("Xid", "XID"), r"(?:NVRM: )?Xid \((?:PCI:)?(?P<bus>[0-9a-fA-F:.]{7,20})\)[^:]{0,60}: (?P<xid>\d{1,3}),? ?(?P<said>.{0,160})|\b(?:Xid|XID)(?: error)?s?[ :=#]{1,3}(?P<xid2>\d{1,3})\b", "xid", "xid2", "bus"),
    _p("sxid", "SXid", r"SXid \(PCI:(?P<bus>[0-9a-fA-F:.]{7,20})\): (?P<sxid>\d{4,6}), (?P<said>(?:Non-fatal|Fatal)?.{0,120})", "sxid", "bus"),
    _p("gpu-lost", ("allen off the bus", "GPU is lost", "nable to determine the device handle", "GPU has fallen", "cudaErrorDeviceLost", "NVML_ERROR_GPU_IS_LOST", "GPU_IS_LOST")),
    _p("ecc", ("uncorrectable ECC", "ncorrectable ECC", "cudaErrorECCUncorrectable", "ECC_UNCORRECTABLE", "row remapping failure", "Row Remapping Failure", "double bit ECC", "Double Bit ECC", "DBE (double bit error)"), r"[Uu]ncorrectable ECC error|cudaErrorECCUncorrectable|CUDA_ERROR_ECC_UNCORRECTABLE|[Rr]ow [Rr]emapping [Ff]ailure|[Dd]ouble [Bb]it ECC|DBE \(double bit error\)"),
    _p("nvlink-error", ("ncorrectable NVLink error", "NVLINK connected GPUs", "NVLink error", "NVLINK error", "NVLINK_UNCORRECTABLE", "NvlinkUncorrectable", "NVLink: fatal error", "NVLink: link", "nvlink inactive"), r"[Uu]ncorrectable NVLink error|P2P is disabled between NVLINK connected GPUs (?P<a>\d+) and (?P<b>\d+)|NVLINK?_UNCORRECTABLE|NvlinkUncorrectable|NVL(?:ink|INK):? (?:fatal )?error"),
    _p("fabric-manager", ("ystem not yet initialized", "ystemNotReady", "SYSTEM_NOT_READY", "abric manager", "Fabric Manager", "fabricmanager"), r"[Ss]ystem not yet initialized|cudaErrorSystemNotReady|CUDA_ERROR_SYSTEM_NOT_READY|(?:fabricmanager|[Ff]abric [Mm]anager)\S{0,12}.{0,40}(?:not running|inactive|failed to start|is not active|Unit .{0,40}not found)|Failed to start NVIDIA fabric manager"),
    _p("nvls-failed", ("nvls.cc", "NVLink SHARP (NVLS)", "cuMulticast"), r"nvls\.cc:\d+ (?:\(\w+\) )?NCCL WARN (?P<said>.*)|Failed to bind NVLink SHARP \(NVLS\) Multicast|cuMulticast\w+.{0,60}(?:fail|error)"),
    _p("not-permitted", ("peration not permitted", "CUDA_ERROR_NOT_PERMITTED", "nvidia-caps-imex", "IMEX"), r"(?P<file>[\w/.-]{1,60}\.(?:cc|cpp|hpp|h|cu)):\d+.{0,80}operation not permitted|(?P<call>cuMem\w{3,40}|fabric handle|[Ff]abric).{0,80}(?:operation not permitted|NOT_PERMITTED)|Cuda failure 800|CUDA_ERROR_NOT_PERMITTED|(?:nvidia-caps-imex|IMEX).{0,80}(?:not found|missing|No such file|unavailable|not running|DOWN|inaccessible)"),
    _p("ipc-failed", ("UDS: ", "failed to peer with device", "CUDA IPC handle", "register host buffer", "cudaIpcOpenMemHandle", "get device pointer for local shmem", "cudaIpcMemHandle"), r"(?P<what>UDS: (?:Sending|Binding|Receiving)|failed to peer with device|failed to (?:open|get) CUDA IPC handle|failed to register host buffer|cudaIpcOpenMemHandle|failed to get device pointer).{0,80}?(?::|failed) ?(?P<error>.{1,60})?"),
    _p("cuda-failure", ("Cuda failure", "CUDA failure", "Test CUDA failure", "HIP failure"), r"(?:Cuda|CUDA|HIP) failure (?:(?P<at>\S{1,40}:\d+) )?(?:(?P<code>\d+) )?'(?P<said>[^']{3,80})'", "said"),
    _p("cuda-error", ("CUDA error:", "HIP error:", "CUDA kernel errors"), r"(?:CUDA|HIP) error: (?P<said>[^\n(]{3,80})", "said"),
    _p("iommu-fault", ("IO_PAGE_FAULT", "DMAR: [DMA", "DMAR:[DMA", "ACSCtl:", "IOMMU"), r"(?P<fault>IO_PAGE_FAULT|DMAR: ?\[DMA (?:Read|Write)).{0,120}|ACSCtl:.{0,20}(?P<acs>SrcValid\+|ReqRedir\+|.{0,40}ReqRedir\+)"),
    _p("aer", ("AER:", "PCIe Bus Error"), r"AER: (?P<what>(?:Multiple )?(?:Uncorrected|Corrected|Fatal|Non-Fatal)[^:]{0,60})|PCIe Bus Error: severity=(?P<severity>[\w() -]{3,40})", "what", "severity"),
)
# RDMA: NCCL transport/net_ib, misc/ibvwrap.cc; mlx5 kernel driver; aws-ofi-nccl; libfabric prov/efa/src/efa_errno.h; gIB, FasTrak
RDMA = (
    _p("ib-completion", ("ot completion",), r"[Gg]ot completion (?:from peer (?P<peer>\S+) )?with (?:status[= ]|error )(?:(?P<name>IBV_WC_\w+)\()?(?P<status>\d+)\)?(?:.{0,60}?vendor[_ ]err[= ](?P<vendor>\d+))?(?:.{0,300}?hca (?P<hca>\S+))?", "status"),
    _p("ucx-error", ("ransport retry count exceeded", "ocal protection", "emote access error", "emote operation error"), r"(?i)(?P<what>transport retry count exceeded|local protection|remote access error|remote operation error)(?: error)? (?:on|\().{0,60}", "what"),
    _p("ib-port-error", ("port error", "PORT_ERR", "ink down", "Link Down", "phys_state", "link_down"), r"(?:NET/IB : (?P<hca>[^\s:]{1,40}):\d+ )?.{0,30}async (?:fatal )?event.{0,80}port error|NET/IB.{0,60}port error|IBV_EVENT_PORT_ERR|mlx[45]_core \S{1,20} (?P<netdev>[\w.-]{1,20}): Link down|(?P<netdev2>ib\w{1,16}|mlx\w{1,16}): (?:NIC )?[Ll]ink (?:is )?[Dd]own"),
    _p("ib-hca-fatal", ("local catastrophic error", "device fatal", "DEVICE_FATAL", "mlx5_core", "mlx4_core", "async fatal event"), r"local catastrophic error|device fatal|DEVICE_FATAL|mlx[45]_core \S{1,24}:? ?(?:mlx5_\w+\S{0,40} )?.{0,60}(?:health compromised|[Ff]atal error|device's health|Internal error detected|assert_var|firmware internal error|unrecoverable|health poll failed|reached timeout during)|async fatal event(?! on (?:QP|CQ|SRQ))"),
    _p("ib-event-failed", ("ibv_get_async_event failed",)),
    _p("ib-qp-event", ("async fatal event on", "QP fatal", "local access violation work queue error", "communicator encountered a fatal error"), r"async fatal event on (?P<what>QP|CQ|SRQ)|Got async event : (?P<event>[\w ]{3,60})|communicator encountered a fatal error"),
    _p("modify-qp", ("ibv_modify_qp",), r"ibv_modify_qp failed(?: with(?: rc| error)?)? ?(?P<code>\d+)?,? ?(?P<error>Invalid argument|No data available|Connection timed out|No such device|Cannot allocate memory|Network is unreachable|No route to host|Operation not permitted|No such file or directory)?(?:.{0,40}on dev (?P<hca>[\w:-]{1,40}))?", "code", "error"),
    _p("gid-failed", ("ibv_query_gid", "GID index", "GID table", "gid_index"), r"ibv_query_gid\w{0,6} failed|[Ii]nvalid GID index|GID table changed|[Gg][Ii][Dd][ _]index \d+ .{0,40}(?:not found|invalid|empty)"),
    _p("reg-mr", ("ibv_reg_mr", "ibv_reg_dmabuf_mr"), r"(?P<call>ibv_reg_(?:dmabuf_)?mr\w{0,12}) failed(?: with error (?P<error>[A-Z][\w ]{3,40}))?", "call", "error"),
    _p("gdr-disabled", ("GPU Direct RDMA Disabled", "GPU Direct RDMA is disabled", "GPUDirect RDMA disabled"), r"(?:NET/(?P<net>\w{1,20}) ?: )?GPU ?Direct RDMA (?:is )?[Dd]isabled(?: for (?:GPU \S{1,16} / )?HCA (?:\d+ )?'?(?P<hca>[\w.-]{1,40})?)?(?:.{0,10}(?P<why>no module|distance))?", "net", "hca"),
    _p("peermem", ("nvidia_peermem", "nvidia-peermem", "nv_peer_mem", "nv_mem_nc", "memory_peers"), r"(?:nvidia[_-]peermem|nv_peer_mem|nv_mem_nc|memory_peers).{0,80}(?:not found|No such file|not loaded|[Ii]nvalid argument|Unknown symbol|disagrees|could not insert|ERROR)|(?:ERROR|could not insert|FATAL).{0,60}(?:nvidia[_-]peermem|nv_peer_mem)"),
    _p("ib-no-device", ("NET/IB : No device found", "NET/IB: No device found", "NET/IB : Using no device")),
    _p("ib-open-failed", ("Failed to open libibverbs", "Unable to open device", "ibv_open_device failed")),
    _p("ib-incompatible", ("incompatible devices", "device is incompatible with the local", "mixed local Net")),
    _p("ofi-insert", ("address into address vector", "fi_av_insert"), r"[Uu]nable to insert remote address into address vector.{0,80}|fi_av_insert (?:failed|error).{0,60}|Failed call to fi_av_insert"),
    _p("efa-unreachable", ("Unresponsive receiver", "Unreachable remote", "nresponsive remote", "security group on either", "prov_errno: 4126", "prov_errno: 4124", "(4126)", "(4124)", "4126"), r"Unresponsive receiver \((?P<how>[^)]{1,80})\)|(?P<never>Unreachable remote)|[Uu]nresponsive remote|security group on either|prov_errno: (?P<errno>412[46])\b|\((?P<errno2>412[46])\)|\berror:? (?P<errno3>4126)\b", "errno"),
    _p("ofi-provider", ("elected provider is", "elected Provider is"), r"Selected [Pp]rovider is (?P<provider>[^\s,]{1,64}).{0,80}?(?:found (?P<nics>\d+) nics)?", "provider"),
    _p("ofi-no-provider", ("ibfabric", "optimal provider", "o eligible providers", "fi_getinfo", "No provider", "Only EFA provider", "efa provider"), r"(?:fi_getinfo|FI_GETINFO)\w{0,4}(?:\(\))?:? ?.{0,40}(?:-61|No data available|failed|ENODATA)|[Cc]ouldn't find any optimal provider|provider efa output empty list|[Nn]o eligible providers|[Nn]o provider.{0,20}found|Only EFA provider is supported|[Ee][Ff][Aa] provider.{0,40}(?:not (?:found|available)|missing)"),
    _p("ofi-shared-memory", "Disabling shared memory failed"),
    _p("ofi-register", ("nable to register memory", "ould not register memory", "register memory region"), r"(?:NET/OFI|OFI).{0,40}(?:[Uu]nable to register memory|[Cc]ould not register memory|[Cc]ouldn't register memory).{0,80}?(?:RC: (?P<code>-?\d+), (?:Error|ERROR): (?P<error>.{3,60}))?$"),
    _p("ofi-version", ("equires at least libfabric", "libfabric.so", "`FABRIC_", "FI_OPT_CUDA_API_PERMITTED", "incompatible with the installed", "libfabric version"), r"requires at least libfabric|libfabric\.so\S{0,12}: version .{3,40} not found|FABRIC_\d\.\d.{0,20}not found|FI_OPT_CUDA_API_PERMITTED.{0,80}(?:ERROR|failed)|GDR support reported to NCCL but then couldn't be configured"),
    _p("ofi-error", ("NET/OFI",), r"NCCL WARN NET/OFI (?P<said>.{3,120})", "said"),
    _p("plugin-no-device", ("ailed to initialize any NET plugin", "network ", "NET/gIB", "NET/FasTrak", "FasTrak", "No device found", "plugin"), r"[Ff]ailed to initialize any NET plugin|Error: network (?P<name>\S{1,40}) not found|NET/(?P<plugin>gIB|GIB|FasTrak|GPUDirectTCPX?\S{0,10}|TCPX|AWS\S{0,10}|UCX|IBext\S{0,6}|SHARP|OFI)[ :]{1,3}.{0,30}(?:[Nn]o (?:usable )?device|[Nn]o NIC|0 device|[Nn]o netdev)", "name", "plugin"),
    _p("plugin-refused", ("ailed to initialize NET plugin",), r"Failed to initialize NET plugin (?P<name>\S.{0,40})", "name"),
    _p("fastrak-failed", ("RxDM", "rxdm", "FasTrak", "GPUDirectTCPX", "TCPX"), r"(?:RxDM|rxdm|FasTrak|TCPX).{0,80}(?:not running|connect.{0,20}fail|Connection refused|No such file|timed out)"),
)
# torch: ProcessGroupNCCL.cpp, ProcessGroupGloo.cpp, ProcessGroupWrapper.cpp, reducer.cpp, NCCLUtils.cpp; what loops print
TRAINING = (
    _p("watchdog-timeout", ("aught collective operation timeout", "Timeout at collective", "timed out in blocking wait"), r"WorkNCCL\((?:SeqNum=(?P<seq>\d+), )?OpType=(?P<op>\w+)(?:, TensorShape=(?P<shape>\[[^\]]*\]))?(?:, NumelIn=(?P<numel>\d+))?(?:, NumelOut=(?P<numelout>\d+))?, Timeout\(ms\)=(?P<timeout>\d+)\)|Timeout at collective: (?P<op2>\w+), #(?P<seq2>\d+)", "seq", "op", "numel"),
    _p("pg-status", ("last enqueued", "PG status"), r"last enqueued(?: NCCL)? work: (?P<enqueued>-?\d+), last completed(?: NCCL)? work: (?P<completed>-?\d+)", "enqueued", "completed"),
    _p("heartbeat", ("eartbeat monitor", "watchdog got stuck", "atchdog hang", "ould not acquire GIL", "watchdog thread got stuck"), r"[Hh]eartbeat monitor timed out|watchdog (?:thread )?got stuck for (?P<seconds>\d+)|[Cc]ould not acquire GIL"),
    _p("monitored-barrier", ("monitoredBarrier", "reach monitoredBarrier"), r"Ranks? (?P<missing>[\d, ]{1,400}) failed to pass monitoredBarrier|failed to pass monitoredBarrier in (?P<ms>\d+)|timed out in monitoredBarrier|successfully reached monitoredBarrier, but received errors"),
    _p("desync", ("didn't join collective", "joined but didn't finish"), r"\[(?P<ranks>[\d, ]{1,400})\] (?P<what>joined but didn't finish collective|finished collective #\d+, but didn't join collective) #?(?P<number>\d+)"),
    _p("gloo-timeout", ("Timed out waiting",), r"Timed out waiting (?P<ms>\d+)ms for (?P<op>\w+) operation"),
    _p("fingerprint", ("CollectiveFingerPrint", "etected mismatch between collectives", "Collectives differ in the following"), r"[Dd]etected mismatch between collectives on ranks|CollectiveFingerPrint\((?:SequenceNumber=(?P<seq>\d+), ?)?OpType=(?P<op>\w+)|Collectives differ in the following aspects:\s*(?P<aspects>.{0,200})"),
    _p("mismatch", ("ismatched collective", "COLLECTIVE_TYPE_MISMATCH", "MISMATCH", "expects same model across all ranks", "collective mismatch around rank", "SIZE_OR_SYNTAX_MISMATCH"), r"[Mm]ismatched collective(?:s)? (?:operation|detected)|COLLECTIVE_TYPE_MISMATCH|SIZE_OR_SYNTAX_MISMATCH|#\d+-\d+ \(\w+\) MISMATCH|collective mismatch around rank|expects same model across all ranks"),
    _p("ddp-unused", ("xpected to have finished reduction in the prior iteration", "arameters which did not receive grad", "find_unused_parameters=True"), r"[Ee]xpected to have finished reduction in the prior iteration|[Pp]arameter(?:s| indices) which did not receive grad(?: for rank (?P<rank>\d+))?"),
    _p("uneven", ("StopIteration", "join() context", "uneven inputs", "ranks has exhausted", "exhausted all inputs", "different number of batches", "Detected at least one rank that exhausted"), r"uneven inputs|exhausted (?:all )?(?:its )?inputs|different number of (?:batches|samples|steps)|unequal number of (?:batches|samples)"),
    _p("progress-bar", ("it/s]", "s/it]", "B/s]", "examples/s]", "/s]"), r"(?P<what>[A-Za-z][^|%\r]{0,80}?)?:? {0,4}(?P<percent>\d{1,3})%\|[^|]{0,400}\| ?(?P<done>[\d.]{1,20}[kMGTB]?)/(?P<total>[\d.]{1,20}[kMGTB]?) \[(?P<elapsed>[\d:]{4,12})<(?P<left>[\d:?]{1,12})", "what"),
    _p("preparing", ("reparing", "okeniz", "reprocess", "aching", "ndexing", "uilding", "Loading", "ownload", "Saving", "saving", "rocessing", "riting"), r"(?i)\b(?P<what>preparing|tokeniz(?:ing|er on)|preprocess(?:ing)?|caching|indexing|building (?:the )?(?:index|dataset|vocab)|processing (?:the )?data|loading (?:the )?data\w*|downloading|saving (?:model )?checkpoint|writing (?:model )?checkpoint|evaluat(?:ing|ion))\b", "what"),
    _p("nccl-error", ("NCCL error in", "NCCL Error", "ncclSystemError", "ncclInternalError", "ncclUnhandledCudaError", "ncclInvalidUsage", "ncclRemoteError", "NCCL failure", "ncclInvalidArgument"), r"NCCL error in: ?(?P<at>\S+?), (?P<said>[^,(]{1,80})|(?P<code>nccl(?:System|Internal|UnhandledCuda|Remote)Error|ncclInvalid(?:Usage|Argument))|NCCL failure (?P<at2>\S{1,60}) '(?P<said2>[^']{1,60})'", "code", "said"),
    _p("remote-error", ("ncclRemoteError", "remote process exited", "peer memory has been"), r"ncclRemoteError"),
    _p("exception", ("Error", "Exception", "Interrupt"), r"^(?:\[[\w:| ./-]{1,80}\]:? ?|\s|\d{1,6}: ){0,4}(?P<type>[A-Za-z_][\w.]{0,80}(?:Error|Exception|KeyboardInterrupt))(?:: (?P<said>.{0,300}))?$", "type"),
    _p("traceback", "Traceback (most recent call last)"),
    _p("frame", "File \"", r"File \"(?P<path>[^\"]{1,300})\", line (?P<line>\d{1,7}), in (?P<function>[\w<>.]{1,80})", "path", "line"),
)
# What a run says of itself
RUN = (
    _p("init-start", "Init START", r"rank (?P<rank>\d+) nranks (?P<world>\d+)(?:.{0,60}busId (?P<bus>[0-9a-f]{1,16}))?.{0,200}Init START", "world"),
    _p("init-complete", ("Init COMPLETE", "ranks"), r"rank (?P<rank>\d+) n[rR]anks (?P<world>\d+)(?:.{0,60}busId (?P<bus>[0-9a-f]{1,16}))?.{0,200}Init COMPLETE|comm 0x[0-9a-f]+ rank (?P<rank2>\d+) nranks (?P<world2>\d+)\s*$", "world", "world2"),
    _p("nccl-version", ("CCL version",), r"\b[NR]CCL version ?:? ?(?P<version>2\.\d{1,2}\.\d{1,2})", "version"),
    _p("started", ("OMP_NUM_THREADS environment variable for each process", "Starting elastic_operator", "NCCL version", "RCCL version", "# nThread", "Rendezvous complete", "initializing torch distributed", "distributed init"), r"OMP_NUM_THREADS environment variable for each process|Starting elastic_operator|[NR]CCL version ?: ?\d|[NR]CCL version \d|# nThread|Rendezvous complete for workers|restart_count=(?P<restarts>\d+)"),
    _p("connected", "Connected ", r"Connected (?:all (?:rings|trees)|NVLS tree|binomial trees)"),
    _p("timings", "Init timings", r"Init timings(?: - (?P<function>\w+))?: rank (?P<rank>\d+) nranks (?P<world>\d+) total (?P<total>[\d.]+) \((?P<parts>[^)]{1,300})\)", "rank"),
    _p("ring", "Channel ", r"NCCL INFO (?P<ring>Channel \d{1,4}/\d{1,4} :(?: +\d+){2,4096})(?![\[\d])", "ring"),
    _p("tree", "Trees [", r"NCCL INFO (?P<tree>Trees \[.{1,400})", "tree"),
    _p("system", "=== System", r"=== System : (?P<said>maxBw [\d.]+ totalBw [\d.]+) ===", "said"),
    _p("env", ("NCCL_", "FI_", "UCX_", "CUDA_VISIBLE", "GLOO_", "TORCH_", "MASTER_", "NVIDIA_VISIBLE"), r"\b(?P<name>NCCL_[A-Z0-9_]{2,60}) set (?:by environment )?to (?P<value>\S{1,160})|(?:^|-x |--env[ =]|-e |export |\+ |env |setenv )(?P<name2>(?:NCCL|FI|UCX|OFI|GLOO|TORCH|RDMAV)_[A-Z0-9_]{2,60}|CUDA_VISIBLE_DEVICES|MASTER_(?:ADDR|PORT)|NVIDIA_VISIBLE_DEVICES)=['\"]?(?P<value2>[^\s'\";&|]{1,160})", "name", "value", "name2", "value2"),
    _p("option", ("--gpus-per-task", "--gpu-bind", "--gpus_per_task", "-g ", "--ntasks-per-node", "--nproc", "-np ", "--host ", "-H ", "--gres", "--nnodes", "--nodes"), r"(?:^|\s)(?P<option>--gpus-per-task|--gpu-bind|--ntasks-per-node|--nproc[-_]per[-_]node|-g|-np|--host|-H|--nnodes|--nodes|-N)[ =](?P<value>[\w:.,/-]{1,200})", "option", "value"),
    _p("device-table", "Rank ", r"#\s+Rank\s+(?P<rank>\d+)(?: Group\s+\d+)? Pid\s+(?P<pid>\d+) on\s+(?P<host>\S{1,100}) device\s+(?P<device>\d+) \[(?P<bus>[\w:.]{2,16})\] (?P<gpu>.{1,60})$", "rank"),
    _p("step", ("step", "iter", "Step", "Iter", "STEP", "poch"), r"(?i)\b(?:global_?step|step|iter(?:ation)?|epoch)\b[ =:\[(#/'\"]{0,4}(?P<step>\d{1,9})\b.{0,300}?\bloss\b|\bloss\b.{0,200}?\b(?:step|iter(?:ation)?)\b[ =:\[(#'\"]{0,4}(?P<step2>\d{1,9})\b"),
    _p("job-state", ("JobState=", "|COMPLETED|", "|FAILED|"), r"JobState=(?P<state>[A-Z_]{3,20})|\|(?P<state2>COMPLETED|FAILED|RUNNING)\|", "state", "state2"),
    _p("finished", ("raining completed", "raining complete", "raining finished", "raining done", "Destroy COMPLETE", "# Avg bus bandwidth", "Out of bounds values : 0 OK"), r"(?i)training (?:completed?|finished|done)\b|Destroy COMPLETE|# Avg bus bandwidth|Out of bounds values : 0 OK"),
    _p("torch-version", ("torch", "PyTorch"), r"(?i)\b(?:py)?torch(?: version)?\s{0,30}[=:]{0,2}\s{0,4}v?(?P<version>[12]\.\d{1,2}\.\d{1,2}(?:[+.]\S{1,20})?|[12]\.\d{1,2}\b)", "version"),
    _p("compute-mode", ("E. Process", "Exclusive_Process", "EXCLUSIVE_PROCESS", "Prohibited"), r"E\. Process|Exclusive_Process|EXCLUSIVE_PROCESS|Prohibited"),
    _p("nvidia-smi-ok", "GPU ", r"^\s*GPU \d+: .{3,60}\(UUID: "),
    _p("link-layer", ("link_layer", "Link layer"), r"(?i)link[_ ]layer:\s+(?P<layer>Ethernet|InfiniBand)", "layer"),
)
# fmt: on
PATTERNS: tuple[Pattern, ...] = (*SOCKETS, *RENDEZVOUS, *LAUNCH, *MEMORY, *SYSTEM, *GPU, *RDMA, *TRAINING, *RUN)

# Lines that look bad and are not: what a plugin probes, what a store retries, what a test or a hint quotes
BENIGN = re.compile(
    r"hostname of the client socket cannot be retrieved"  # torch socket.cpp: reverse DNS only
    r"|socket cannot be initialized (?:on|to connect to) .{0,120}errno: 97"  # torch socket.cpp: no IPv6 here, IPv4 follows
    r"|TORCHELASTIC_USE_AGENT_STORE is enabled so ignoring"
    r"|Could not find:? ?\S{0,20}lib(?:nccl|nccl-net)|No plugin found|libnccl-net\S{0,20}: cannot open"
    r"|NET/Plugin ?: dlerror="
    r"|dlvsym failed|Cannot get incoming CPU|Maximum retry reached for"  # symbols of newer libraries; FastSocket
    r"|HTTPS?ConnectionPool|Max retries exceeded|NameResolutionError|urllib3|(?i:\bconnect|\brequests?\b|\bdownload\b|\bfetch|\bGET\b|\bPOST\b)[^.]{0,120}https?://|huggingface\.co|wandb"  # downloads
    r"|forcefully exiting via SIGKILL"  # torch elastic ends what it had stopped
    r"|NCCL_SHM_DISABLE|ibvwrap\.cc:\d+ NCCL WARN dlvsym"
)


# Kinds that prose and listings have as well: alone they do not make a text the log of a job
WEAK = {
    "env",
    "option",
    "preparing",
    "torch-version",
    "progress-bar",
    "compute-mode",
    "frame",
    "frame-nccl",
    "link-layer",
}
WEAK |= {
    "elastic-host",
    "elastic-rank",
    "nccl-version",
    "nvidia-smi-ok",
    "started",
    "signal",
    "exception",
    "unreachable",
}


# Of a text whose lines never repeat, only lines that have a word with one of these in it: bad news has
VITAL = re.compile(
    rb"rror|WARN|ailed|ailure|imed|imeout|illed|emory|CCL|Xid|ECC|ignal|ismatch|Traceback|efused|nreachable|found|such"
    rb"|losed|enied|xception|exit|KILL|CANCEL|atchdog|loss|nsufficient|old|lready|many|xhausted|navailable|ermitted"
    rb"|ndefined|ault|space|nvalid|atal|lost|NVML|route|reset|symbol|busy"
)


def matching(line: str) -> Iterator[Pattern]:
    """The patterns that this line, and so all lines of its shape, may be of."""
    for pattern in RUN if BENIGN.search(line) else PATTERNS:
        for needle in pattern.needles:
            if needle in line:
                if pattern.regex.search(line):
                    yield pattern
                break
