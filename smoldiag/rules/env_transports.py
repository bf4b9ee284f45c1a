"""ENV: ways of moving data that a variable switches off."""

from collections.abc import Iterator

from smoldiag.facts import Env, Gpu, Nic
from smoldiag.findings import Finding, Severity
from smoldiag.knowledge import hardware
from smoldiag.model import nccl_values as values
from smoldiag.rules import rule
from smoldiag.rules.env_reading import Plain, Setting, Versions, finding, plain, remove

SLOW_PROVIDERS = {"tcp", "sockets", "udp", "net", "shm"}
VERBS = {"infiniband", "roce"}
MEASURE = "smoldiag nccl-bench, and again with env -u {}"


@rule("ENV011", Severity.WARNING)
def gpu_path_switched_off(env: Env, versions: Versions | None, gpus: tuple[Gpu, ...] | None) -> Iterator[Finding]:
    """A variable forbids the GPUs of a host their direct ways to each other.

    NVLink and PCIe peer access carry the traffic within a host; without them (NCCL_P2P_DISABLE, NCCL_P2P_LEVEL=LOC)
    it goes through host memory, without that too (NCCL_SHM_DISABLE) over the network, often at a tenth of the rate.
    NCCL_NVLS_ENABLE=0 and NCCL_CUMEM_ENABLE=0 take the NVSwitch's reductions away. Such variables are left over from
    a work-around.

    Fix: remove it; where that brings a hang back, look for its cause (IOMMU, ACS, Fabric Manager).
    """
    taken = plain(env, versions)
    alone = gpus is not None and len(gpus) < 2
    spec = hardware.gpu(gpus[0].name) if gpus else None
    for s, cause, effect, severity in _gpu_paths(taken):
        if alone:
            severity = Severity.INFO
        elif cause == "p2p-disabled" and spec and not spec.nvlink_gb_per_s:
            severity = Severity.INFO  # cards without NVLink, many of them without peer access at all
        elif cause == "nvls-off" and spec and spec.nvls:
            severity = Severity.WARNING
        rates = spec and cause == "p2p-disabled" and spec.nvlink_gb_per_s and spec.pcie_gb_per_s
        yield finding(
            s,
            f"{s.text}: {effect}",
            cause=cause,
            severity=severity,
            why="data within a host takes a slower way",
            cost=f"at most {spec.pcie_gb_per_s:g} instead of {spec.nvlink_gb_per_s:g} GB/s per GPU and direction"
            if spec and rates
            else "",
            fixes=(remove(s.variable, scripted=s.scripted),),
            confirm=MEASURE.format(s.name),
            explains=("busbw-below-expected",),
        )


def _gpu_paths(taken: Plain) -> Iterator[tuple[Setting, str, str, Severity]]:
    off = {  # value at which it is off, cause, effect, severity where the GPUs are not known
        "NCCL_P2P_DISABLE": (1, "p2p-disabled", "GPUs of a host do not use NVLink or PCIe to each other", "warning"),
        "NCCL_SHM_DISABLE": (1, "shm-disabled", "ranks of a host without peer access talk over the network", "warning"),
        "NCCL_P2P_DIRECT_DISABLE": (1, "p2p-disabled", "ranks of a process copy through a buffer", "info"),
        "NCCL_NVB_DISABLE": (1, "p2p-not-used", "nothing goes over NVLink through a GPU in between", "info"),
        "NCCL_NVLS_ENABLE": (0, "nvls-off", "the NVSwitch does not reduce (NVLink SHARP is off)", "info"),
        "NCCL_CUMEM_ENABLE": (0, "cumem-off", "no NVLink SHARP, multi-node NVLink or memory windows", "info"),
        "NCCL_MNNVL_ENABLE": (0, "mnnvl-off", "hosts of an NVLink domain talk over their NICs", "info"),
    }
    for name, (value, cause, effect, severity) in off.items():
        if (s := taken.get(name)) and taken.number(name) == value:
            yield s, cause, effect, Severity(severity)
    if (s := taken.get("NCCL_P2P_LEVEL")) and taken.number("NCCL_P2P_DISABLE") != 1:
        level = values.level(s.value)
        if level == "LOC":
            yield s, "p2p-disabled", "GPUs of a host do not use NVLink or PCIe to each other", Severity.WARNING
        elif level in ("NVL", "NVB", "PIX"):
            yield s, "p2p-not-used", f"GPUs farther apart than {level} go through host memory", Severity.INFO


@rule("ENV012", Severity.WARNING)
def network_switched_off(env: Env, versions: Versions | None, nics: tuple[Nic, ...] | None) -> Iterator[Finding]:
    """A variable keeps NCCL off the fast network.

    With NCCL_IB_DISABLE, NCCL_NET=Socket or FI_PROVIDER=tcp traffic between hosts goes over TCP, at a tenth of the
    rate and without GPUDirect, and only an INFO line says so.

    Fix: remove it; to prove that it matters, measure with and without.
    """
    taken = plain(env, versions)
    has = {n.kind for n in nics if n.up is not False} if nics is not None else None
    for s, cause, effect, fast in _networks(taken):
        there = has is None or bool(fast & has)
        yield finding(
            s,
            f"{s.text}: {effect}" + ("" if there else "; this host has no such devices, so it changes nothing here"),
            cause=cause,
            severity=Severity.WARNING if there else Severity.INFO,
            why="between hosts, TCP on a fast NIC gives a fraction of what RDMA gives, and takes CPU time",
            fixes=(remove(s.variable, scripted=s.scripted),),
            confirm="NCCL_DEBUG=INFO prints `Using network ...`; " + MEASURE.format(s.name),
            explains=("busbw-below-expected",) if there else (),
        )
    plugin = taken.get("NCCL_NET_PLUGIN")
    if plugin and plugin.value.lower() == "none" and has is not None and "efa" in has and not has & VERBS:
        yield finding(
            plugin,
            f"{plugin.text}: no plugin is loaded, and without one NCCL does not use the EFA devices of this host",
            cause="net-socket-fallback",
            why="traffic between hosts goes over TCP",
            fixes=(remove(plugin.variable, scripted=plugin.scripted),),
            confirm="NCCL_DEBUG=INFO prints `Using network ...`",
            explains=("busbw-below-expected",),
        )
    for name in ("NCCL_PXN_DISABLE", "NCCL_P2P_PXN_LEVEL"):
        s_pxn = taken.get(name)
        if s_pxn and taken.number(name) == (1 if name == "NCCL_PXN_DISABLE" else 0):
            yield finding(
                s_pxn,
                f"{s_pxn.text}: no GPU reaches another rail through a neighbour over NVLink",
                cause="pxn-off",
                severity=Severity.INFO,
                why="on networks with rails, traffic between them crosses the spine switches",
                fixes=(remove(s_pxn.variable, scripted=s_pxn.scripted),),
                confirm=MEASURE.format(name),
            )


def _networks(taken: Plain) -> Iterator[tuple[Setting, str, str, set[str]]]:
    """What is off, its cause, the effect, the kinds of devices that would carry the traffic."""
    if (s := taken.get("NCCL_IB_DISABLE")) and taken.number(s.name):
        yield s, "net-socket-fallback", "InfiniBand and RoCE devices are not used by NCCL's own transport", VERBS
    if (s := taken.get("NCCL_NET")) and s.value.lower() == "socket":
        yield s, "net-socket-fallback", "all traffic between hosts goes over TCP", {*VERBS, "efa"}
    if s := taken.get("FI_PROVIDER"):
        listed = {p.strip().lower() for p in s.value.split(",")}
        if not s.value.startswith("^") and listed <= SLOW_PROVIDERS:
            yield s, "efa-provider-tcp", f"libfabric uses {s.value}, not the RDMA of the NICs", {*VERBS, "efa"}
        elif s.value.startswith("^") and "efa" in {p.removeprefix("^") for p in listed}:
            yield s, "efa-provider-tcp", "libfabric does not use EFA", {"efa"}
    if (s := taken.get("FI_EFA_USE_DEVICE_RDMA")) and values.libfabric_bool(s.value) is False:
        yield s, "efa-rdma-off", "EFA's RDMA is emulated in software", {"efa"}


@rule("ENV013", Severity.WARNING)
def gpudirect_switched_off(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """A variable turns GPUDirect RDMA off, in part or altogether.

    With NCCL_NET_GDR_LEVEL=LOC or NCCL_NET_GDR_READ=0 NICs read and write host memory, and every byte crosses PCIe
    and the memory controller twice more.

    Fix: remove it; GPUDirect is used by itself where GPU and NIC are near enough.
    """
    taken = plain(env, versions)
    for s, effect, severity in _gpudirect(taken):
        yield finding(
            s,
            f"{s.text}: {effect}",
            cause="gdr-not-used",
            severity=severity,
            why="traffic between hosts goes through host memory",
            fixes=(remove(s.variable, scripted=s.scripted),),
            confirm="NCCL_DEBUG=INFO prints `/GDRDMA` for connections with GPUDirect; " + MEASURE.format(s.name),
            explains=("busbw-below-expected",),
        )


def _gpudirect(taken: Plain) -> Iterator[tuple[Setting, str, Severity]]:
    if (s := taken.get("NCCL_NET_GDR_LEVEL")) and values.level(s.value) == "LOC":
        yield s, "GPUDirect RDMA is off", Severity.WARNING
    if (s := taken.get("NCCL_NET_GDR_READ")) and taken.number(s.name) == 0:
        yield s, "what is sent is copied to host memory first", Severity.WARNING
    if (s := taken.get("NCCL_DMABUF_ENABLE")) and taken.number(s.name) == 0:
        yield s, "GPUDirect RDMA is left to the nvidia_peermem module", Severity.INFO
    if (s := taken.get("NCCL_NET_GDR_C2C")) and taken.number(s.name) == 0:
        yield s, "no GPUDirect RDMA through the CPU of a Grace system", Severity.INFO
    if (s := taken.get("FI_HMEM_DISABLE_P2P")) and values.libfabric_bool(s.value) is True:
        yield s, "libfabric copies GPU data to host memory", Severity.WARNING
    if (s := taken.get("FI_HMEM_CUDA_USE_DMABUF")) and values.libfabric_bool(s.value) is False:
        yield s, "libfabric registers GPU memory without DMA-BUF", Severity.INFO
    if (s := taken.get("OFI_NCCL_DISABLE_GDR_REQUIRED_CHECK")) and values.libfabric_bool(s.value) is True:
        yield s, "the plugin runs on without GPUDirect RDMA instead of failing", Severity.INFO
