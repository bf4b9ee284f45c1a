"""Rules that judge a log: what each says of lines that carry its cause, and of a healthy run."""

from smoldiag.parse import log
from smoldiag.rules import Known
from tests.causes import CAUSES, HEALTHY
from tests.rules.known import Facts


def read(text: str) -> Known:
    return Known(log=log.parse(text))


WATCHDOG = (
    "[E ProcessGroupNCCL.cpp:828] [Rank {rank}] Watchdog caught collective operation timeout: WorkNCCL(SeqNum={seq}, "
    "OpType={op}, NumelIn=4096, NumelOut=4096, Timeout(ms)=600000) ran for 600029 milliseconds before timing out."
)
FLAGGED = {
    "LOG001": (CAUSES["no-usable-ip-interface"][0], ["error"]),
    "LOG002": (CAUSES["socket-ifname-no-match"][0], ["error"]),
    "LOG003": (CAUSES["loopback-interface-selected"][0], ["error"]),
    "LOG004": (CAUSES["link-local-or-virtual-interface-selected"][0], ["error"]),
    "LOG005": (CAUSES["tcp-connect-blocked"][0], ["error"]),
    "LOG006": (CAUSES["rendezvous-hostname-unresolvable"][0], ["error"]),
    "LOG007": (CAUSES["rendezvous-endpoint-unreachable"][0], ["error"]),
    "LOG008": (CAUSES["port-in-use"][0], ["error"]),
    "LOG009": (CAUSES["open-files-limit"][0], ["error"]),
    "LOG010": (CAUSES["hostname-collision"][0], ["error"]),
    "LOG011": (
        "n:1:2 [0] bootstrap.cc:335 NCCL WARN Bootstrap Root : rank 3 of 8 ranks has already checked in",
        ["error"],
    ),
    "LOG012": ("n:1:2 [0] misc/socket.cc:58 NCCL WARN Net : Connection closed by remote peer n2<4000>", ["warning"]),
    "LOG020": (CAUSES["duplicate-gpu-rank-mapping"][0], ["error"]),
    "LOG021": (CAUSES["wrong-gpu-count-per-process"][1], ["error"]),
    "LOG022": (CAUSES["gpu-binding-hides-local-gpus"][0], ["error"]),
    "LOG023": (CAUSES["gpu-exclusive-mode-or-busy"][0], ["error"]),
    "LOG024": (CAUSES["cuda-peer-limit"][0], ["error"]),
    "LOG025": (CAUSES["env-or-version-mismatch-across-ranks"][0], ["error"]),
    "LOG026": (CAUSES["nccl-library-conflict"][0], ["error"]),
    "LOG027": (CAUSES["nccl-graph-file-mismatch"][0], ["error"]),
    "LOG028": (CAUSES["nccl-version-bug"][0], ["error"]),
    "LOG033": (CAUSES["topology-file-wrong-or-missing"][0], ["error"]),
    "LOG029": (CAUSES["driver-too-old-for-cuda"][0], ["error"]),
    "LOG030": (CAUSES["driver-library-version-mismatch"][0], ["error"]),
    "LOG031": (CAUSES["container-lost-gpu-access"][0], ["error"]),
    "LOG032": ("RuntimeError: No CUDA GPUs are available", ["error"]),
    "LOG040": (CAUSES["dev-shm-too-small"][0], ["error"]),
    "LOG041": (CAUSES["cumem-host-asymmetry"][0], ["error"]),
    "LOG042": (CAUSES["memlock-limit"][0], ["error"]),
    "LOG043": (CAUSES["rank-oom-first"][0], ["error"]),
    "LOG044": (CAUSES["nccl-buffer-alloc-oom"][0], ["error"]),
    "LOG045": (CAUSES["host-oom-sigkill"][0], ["error"]),
    "LOG046": (
        "slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO NODE FAILURE ***",
        ["error"],
    ),
    "LOG050": (CAUSES["gpu-ecc-error"][0], ["error"]),
    "LOG051": (CAUSES["gpu-fell-off-bus"][0], ["error"]),
    "LOG052": (CAUSES["nvlink-error"][0], ["error"]),
    "LOG053": (CAUSES["fabric-manager-not-running"][0], ["error"]),
    "LOG054": (CAUSES["nvls-fabric-manager-state"][0], ["error"]),
    "LOG055": (CAUSES["imex-channel-missing"][0], ["error"]),
    "LOG056": (CAUSES["pcie-acs-iommu-p2p-hang"][0], ["error"]),
    "LOG057": (
        "kernel: NVRM: Xid (PCI:0000:1b:00): 119, pid=1, name=python, Timeout waiting for RPC from GSP!",
        ["error"],
    ),
    "LOG058": ("RuntimeError: CUDA error: an illegal memory access was encountered", ["error"]),
    "LOG070": (CAUSES["pcie-acs-breaks-gdr"][0], ["error"]),
    "LOG071": (CAUSES["gdr-peermem-not-active"][0], ["warning"]),
    "LOG072": (CAUSES["dmabuf-unsupported"][0], ["error"]),
    "LOG073": (CAUSES["roce-gid-index-wrong"][0], ["error"]),
    "LOG074": (CAUSES["roce-path-unreachable"][0], ["error"]),
    "LOG075": (CAUSES["ib-link-down-or-flapping"][0], ["error"]),
    "LOG076": (CAUSES["ib-hca-fatal-error"][0], ["error"]),
    "LOG077": (CAUSES["ib-hca-filter-no-match"][0], ["warning"]),
    "LOG078": (CAUSES["efa-security-group"][0], ["error"]),
    "LOG079": (CAUSES["efa-devices-not-visible"][1], ["error"]),
    "LOG080": (CAUSES["efa-software-version-bug"][0], ["error"]),
    "LOG081": (CAUSES["net-plugin-no-device"][0], ["error"]),
    "LOG082": (
        "n:1:2 [0] init.cc:1339 NCCL WARN Detected mixed local Net device counts across ranks (min 7, max 8)",
        ["warning"],
    ),
    "LOG083": (
        "n:1:2 [0] net_ib.cc:9 NCCL WARN NET/IB : Got completion from peer 10.0.0.2<1> with status=5",
        ["warning"],
    ),
    "LOG090": (CAUSES["collective-mismatch"][0], ["error"]),
    "LOG091": (CAUSES["ddp-unused-parameters"][0], ["error"]),
    "LOG092": (CAUSES["uneven-data-across-ranks"][0], ["error"]),
    "LOG093": (CAUSES["slow-rank-preprocessing"][0], ["error"]),
    "LOG094": (WATCHDOG.format(rank=1, seq=900, op="ALLREDUCE"), ["warning"]),
    "LOG095": (
        '[rank3]: Traceback (most recent call last):\n[rank3]:   File "/w/train.py", line 7, in step\n[rank3]: '
        "KeyError: 'labels'",
        ["error"],
    ),
    "LOG096": (CAUSES["host-oom-sigkill"][1], ["warning"]),
    "LOG097": (
        "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***",
        ["warning"],
    ),
    "LOG098": (CAUSES["socket-ifname-no-match"][2], ["warning"]),
}
CASES: list[tuple[str, Facts, list[str]]] = [
    *((code, read(text), severities) for code, (text, severities) in FLAGGED.items()),
    *((code, read(HEALTHY[9]), []) for code in FLAGGED),
]
