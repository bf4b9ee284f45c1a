"""The NVIDIA GPUs of this machine through NVML.

Any call may be unsupported on a board, missing in an older driver or refused: then its field is None and the rest
stays. A GPU that is there but does not answer is a fact, too: `Gpu.error` has NVML's words. Read in some 50 ms per
GPU; nothing is changed on it.
"""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from smoldiag import redact
from smoldiag.collect import files
from smoldiag.facts import Gpu, GpuProcess, NvLink

UNCORRECTED, CORRECTED = 1, 0  # nvmlMemoryErrorType_t
VOLATILE, AGGREGATE = 0, 1  # nvmlEccCounterType_t
MEMORY_LOCATIONS = range(8)  # nvmlMemoryLocation_t
GRAPHICS, SM, MEMORY = 0, 1, 2  # nvmlClockType_t
TEMPERATURE_OF_GPU = 0  # nvmlTemperatureSensors_t
SLOWDOWN = 1  # nvmlTemperatureThresholds_t
P2P_READ = 0  # nvmlGpuP2PCapsIndex_t
NODE_SCOPE = 0  # nvmlAffinityScope_t
LINK_VALID = 5  # nvmlNvLinkCapability_t: NVML_NVLINK_CAP_VALID
MOST_LINKS = 36  # NVML_NVLINK_MAX_LINKS of the newest driver; older ones refuse the higher numbers
MAX_CPUS = 4096
MAX_NUMA_NODES = 1024
MAX_NAMED_PROCESSES = 64
NOT_AVAILABLE = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE

# nvml.h, nvmlClocksEventReasons
REASONS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "hw_power_brake",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}
COMPUTE_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}
P2P_STATUS = {
    0: "ok",
    1: "chipset_not_supported",
    2: "gpu_not_supported",
    3: "ioh_topology_not_supported",
    4: "disabled",
    5: "not_supported",
}
FABRIC_STATES = {0: "not_supported", 1: "not_started", 2: "in_progress", 3: "completed"}
# (shift, mask, values that say that something is wrong) of nvmlGpuFabricInfo's healthMask
FABRIC_HEALTH = (
    (0, 0x3, {1: "degraded_bandwidth"}),
    (2, 0x3, {1: "route_recovery"}),
    (4, 0x3, {1: "route_unhealthy"}),
    (6, 0x3, {1: "access_timeout_recovery"}),
    (
        8,
        0xF,
        {
            2: "incorrect_system_guid",
            3: "incorrect_chassis_serial",
            4: "no_partition",
            5: "insufficient_nvlinks",
            6: "incompatible_gpu_firmware",
            7: "invalid_location",
            8: "gpu_state_invalid",
        },
    ),
)
RECOVERY = {
    0: "none",
    1: "gpu_reset",
    2: "node_reboot",
    3: "drain_p2p",
    4: "drain_and_reset",
    5: "recover_imex_domain",
    6: "bus_reset",
    7: "system_reboot",
}
NVLINK_REMOTE = {0: "gpu", 1: "cpu", 2: "nvswitch"}
NVLINK_VERSIONS = {1: "1.0", 2: "2.0", 3: "2.2", 4: "3.0", 5: "3.1", 6: "4.0", 7: "5.0"}  # nvmlNvlinkVersion_t
NVLINK_ERRORS = {0: "replay", 1: "recovery", 2: "crc_flit", 3: "crc_data", 4: "ecc_data"}

# nvml.h, NVML_FI_DEV_*: what newer drivers tell by field only, or some boards by field only
FIELD = {
    "memory_temperature": 82,
    "nvlink_mbps": 90,
    "nvlink_count": 91,
    "pcie_replays": 94,
    "remapped_uncorrectable": 143,
    "remap_pending": 144,
    "remap_failure": 145,
    "c2c_count": 170,
    "recovery": 230,
}
LINK_SPEED = 164  # MB/s, scope: the link
LINK_FIELDS = {  # NVLink 5 counts otherwise than its predecessors
    210: "rcv_general",
    214: "recovery_failed",
    215: "recovery",
    219: "effective",
    221: "symbol",
}


class Nvml:
    """NVML between init and shutdown. Every question that is not answered gives None."""

    def __init__(self) -> None:
        """Raises OSError with the reason, where there is no NVML to ask."""
        try:
            import ctypes

            ctypes.CDLL("libnvidia-ml.so.1")
        except OSError as error:
            raise OSError(f"NVML: {error}") from None
        try:
            import pynvml
        except ImportError:
            raise OSError("NVML: there is a driver, but no pynvml (pip install nvidia-ml-py)") from None
        self.api: Any = pynvml
        self.failed: type[Exception] = pynvml.NVMLError
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            if not _started_the_old_way(pynvml, error):
                raise OSError(f"NVML: {error}") from None

    def __enter__(self) -> "Nvml":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(self.failed):
            self.api.nvmlShutdown()

    def ask(self, call: str, *args: Any) -> Any:
        with suppress(Exception):  # NVML's refusals, and whatever another pynvml makes of a call that it lacks
            return getattr(self.api, call)(*args)
        return None

    def text(self, call: str, *args: Any) -> str | None:
        answer = self.ask(call, *args)
        words = answer.decode(errors="replace") if isinstance(answer, bytes) else answer
        return words or None

    def count(self) -> int:
        try:
            return int(self.api.nvmlDeviceGetCount())
        except self.failed as error:
            raise OSError(f"NVML: {error}") from None

    def handles(self) -> list[tuple[int, Any, str]]:
        """(index, handle, why there is no handle). Those that this process may not use are left out."""
        found: list[tuple[int, Any, str]] = []
        for index in range(self.count()):
            try:
                found.append((index, self.api.nvmlDeviceGetHandleByIndex(index), ""))
            except self.failed as error:
                if getattr(error, "value", None) != self.api.NVML_ERROR_NO_PERMISSION:
                    found.append((index, None, str(error)))
        return found

    def fields(self, handle: Any, ids: Iterable[int | tuple[int, int]]) -> list[int | None]:
        """The values of fields, in their order, in one call."""
        wanted = list(ids)
        answers = self.ask("nvmlDeviceGetFieldValues", handle, wanted)
        return [_field_value(a) for a in answers] if answers is not None else [None] * len(wanted)


def _started_the_old_way(pynvml: Any, error: Any) -> bool:
    """Drivers before 390 have no nvmlInitWithFlags, which is all that pynvml calls."""
    init = getattr(pynvml.nvmlLib, "nvmlInit_v2", None)
    return error.value == pynvml.NVML_ERROR_FUNCTION_NOT_FOUND and init is not None and init() == 0


def _field_value(answer: Any) -> int | None:
    if answer.nvmlReturn != 0:
        return None
    kinds = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # nvmlValueType_t
    if not 0 <= answer.valueType < len(kinds):
        return None
    value = int(getattr(answer.value, kinds[answer.valueType]))
    return None if value == NOT_AVAILABLE else value


def usable(env: Mapping[str, str], *, root: Path = Path("/")) -> tuple[Gpu, ...]:
    """The GPUs that a process here would get from CUDA, with who computes on them; a few calls each.

    Raises OSError with the reason, where there is no NVML to ask.
    """
    with _nvml_of(root) as nvml:
        found = [_basics(nvml, i, handle) for i, handle, _ in nvml.handles() if handle is not None]
    return _visible(found, env.get("CUDA_VISIBLE_DEVICES"))


def read(*, root: Path = Path("/")) -> tuple[tuple[Gpu, ...], dict[str, str]]:
    """Every GPU that NVML shows to this process, in full (those that don't answer have an `error`); and versions.

    The versions: `driver`, and `cuda`, the newest CUDA that this driver supports.
    Raises OSError with the reason, where there is no NVML to ask.
    """
    with _nvml_of(root) as nvml:
        handles = nvml.handles()
        gpus = [_gpu(nvml, i, handle, why) for i, handle, why in handles]
        gpus = [_with_p2p(nvml, g, handles) for g in gpus]
        found = _versions(nvml)
    return (*gpus, *_not_shown(gpus, root)), found


def _nvml_of(root: Path) -> Nvml:
    if root != Path("/"):
        raise OSError(f"NVML: not asked, it answers for this machine and not for {root}")
    return Nvml()


def _versions(nvml: Nvml) -> dict[str, str]:
    cuda = nvml.ask("nvmlSystemGetCudaDriverVersion_v2") or nvml.ask("nvmlSystemGetCudaDriverVersion")
    found = {
        "driver": nvml.text("nvmlSystemGetDriverVersion"),
        "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
    }
    return {name: version for name, version in found.items() if version}


def _basics(nvml: Nvml, index: int, handle: Any) -> Gpu:
    memory, processes = nvml.ask("nvmlDeviceGetMemoryInfo", handle), _processes(nvml, handle)
    if memory is None:
        memory = nvml.ask("nvmlDeviceGetMemoryInfo", handle, getattr(nvml.api, "nvmlMemory_v2", 0))
    return Gpu(
        index=index,
        name=nvml.text("nvmlDeviceGetName", handle) or "unknown GPU",
        uuid=nvml.text("nvmlDeviceGetUUID", handle) or "",
        memory_bytes=memory.total if memory else None,
        memory_free_bytes=memory.free if memory else None,
        busy_pids=tuple(p.pid for p in processes) if processes is not None else None,
        processes=processes,
    )


def _processes(nvml: Nvml, handle: Any) -> tuple[GpuProcess, ...] | None:
    found = nvml.ask("nvmlDeviceGetComputeRunningProcesses_v3", handle)
    if found is None:  # drivers before 510
        found = nvml.ask("nvmlDeviceGetComputeRunningProcesses_v2", handle)
    if found is None:
        return None
    return tuple(
        GpuProcess(
            pid=p.pid,
            memory_bytes=p.usedGpuMemory if p.usedGpuMemory != NOT_AVAILABLE else None,
            name=_name(nvml, p.pid) if i < MAX_NAMED_PROCESSES else None,
        )
        for i, p in enumerate(found)
    )


def _name(nvml: Nvml, pid: int) -> str | None:
    command = nvml.text("nvmlSystemGetProcessName", pid)
    return redact.text(os.path.basename(command.split()[0])) if command and command.split() else None


def _gpu(nvml: Nvml, index: int, handle: Any, why: str) -> Gpu:
    if handle is None:
        return Gpu(index=index, name="unknown GPU", error=why)
    gpu = _basics(nvml, index, handle)
    try:  # one call that every board answers tells whether it is there at all
        nvml.api.nvmlDeviceGetName(handle)
        nvml.api.nvmlDeviceGetUUID(handle)
        nvml.api.nvmlDeviceGetMemoryInfo(handle)
    except nvml.failed as error:
        gone = (nvml.api.NVML_ERROR_GPU_IS_LOST, nvml.api.NVML_ERROR_UNKNOWN, nvml.api.NVML_ERROR_RESET_REQUIRED)
        if getattr(error, "value", None) in gone:
            gpu = replace(gpu, error=str(error))
    fields = dict(zip(FIELD, nvml.fields(handle, FIELD.values()), strict=True))
    return replace(
        gpu,
        **_identity(nvml, handle),
        **_pcie(nvml, handle, fields),
        **_modes(nvml, handle),
        **_errors(nvml, handle, fields),
        **_heat_and_power(nvml, handle, fields),
        **_clocks(nvml, handle),
        **_fabric(nvml, handle),
        **_affinity(nvml, handle),
        nvlinks=_nvlinks(nvml, handle, fields),
        recovery=RECOVERY.get(fields["recovery"]) if fields["recovery"] is not None else None,
        c2c_links=fields["c2c_count"],
    )


def _identity(nvml: Nvml, handle: Any) -> dict[str, Any]:
    bus_id = _bus_id(nvml.ask("nvmlDeviceGetPciInfo", handle))
    return {
        "serial": nvml.text("nvmlDeviceGetSerial", handle),
        "vbios": nvml.text("nvmlDeviceGetVbiosVersion", handle),
        "bus_id": bus_id,
        "numa_node": _numa_node(bus_id),
        "minor": nvml.ask("nvmlDeviceGetMinorNumber", handle),
        "compute_capability": nvml.ask("nvmlDeviceGetCudaComputeCapability", handle),
    }


def _bus_id(info: Any) -> str | None:
    """As sysfs writes it: NVML has eight digits of domain, and capitals."""
    if info is None:
        return None
    raw = info.busId or getattr(info, "busIdLegacy", b"")
    words = raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)
    match = re.fullmatch(r"([0-9a-f]{4,8}):([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])", words.lower())
    return f"{int(match[1], 16):04x}:{match[2]}" if match else None


def _numa_node(bus_id: str | None) -> int | None:
    if bus_id is not None:
        with suppress(OSError, ValueError):
            node = int(Path(f"/sys/bus/pci/devices/{bus_id}/numa_node").read_text())
            return node if node >= 0 else None  # -1: the firmware does not tell
    return None


def _pcie(nvml: Nvml, handle: Any, fields: Mapping[str, int | None]) -> dict[str, Any]:
    replays = nvml.ask("nvmlDeviceGetPcieReplayCounter", handle)
    return {
        "pci_gen": nvml.ask("nvmlDeviceGetCurrPcieLinkGeneration", handle),
        "pci_gen_max": nvml.ask("nvmlDeviceGetMaxPcieLinkGeneration", handle),
        "pci_width": nvml.ask("nvmlDeviceGetCurrPcieLinkWidth", handle),
        "pci_width_max": nvml.ask("nvmlDeviceGetMaxPcieLinkWidth", handle),
        "pci_replays": replays if replays is not None else fields["pcie_replays"],
    }


def _modes(nvml: Nvml, handle: Any) -> dict[str, Any]:
    persistence, mode = nvml.ask("nvmlDeviceGetPersistenceMode", handle), nvml.ask("nvmlDeviceGetComputeMode", handle)
    ecc, ecc_default = nvml.ask("nvmlDeviceGetEccMode", handle), nvml.ask("nvmlDeviceGetDefaultEccMode", handle)
    mig = nvml.ask("nvmlDeviceGetMigMode", handle)
    return {
        "persistence": _yes(persistence),
        "compute_mode": COMPUTE_MODES.get(mode) if mode is not None else None,
        "mig": _yes(mig[0]) if mig else None,
        "ecc": _yes(ecc[0]) if ecc else None,
        "ecc_pending": _yes(ecc[1]) if ecc else None,
        "ecc_default": _yes(ecc_default),
    }


def _errors(nvml: Nvml, handle: Any, fields: Mapping[str, int | None]) -> dict[str, Any]:
    remapped = nvml.ask("nvmlDeviceGetRemappedRows", handle)
    by_call = remapped if remapped else (None, None, None, None)
    by_field = (None, fields["remapped_uncorrectable"], fields["remap_pending"], fields["remap_failure"])
    _, rows, pending, failed = (a if a is not None else b for a, b in zip(by_call, by_field, strict=True))
    retired = [nvml.ask("nvmlDeviceGetRetiredPages", handle, cause) for cause in (0, 1)]
    known = [pages for pages in retired if pages is not None]
    return {
        "ecc_volatile": _ecc(nvml, handle, UNCORRECTED, VOLATILE),
        "ecc_aggregate": _ecc(nvml, handle, UNCORRECTED, AGGREGATE),
        "ecc_corrected_volatile": _ecc(nvml, handle, CORRECTED, VOLATILE),
        "remapped_rows": rows,
        "remap_pending": _yes(pending),
        "remap_failed": _yes(failed),
        "retired_pages": sum(map(len, known)) if known else None,
        "retirement_pending": _yes(nvml.ask("nvmlDeviceGetRetiredPagesPendingStatus", handle)),
    }


def _ecc(nvml: Nvml, handle: Any, kind: int, counter: int) -> int | None:
    """The total; where the driver has none, the sum over the places that it does count."""
    total: int | None = nvml.ask("nvmlDeviceGetTotalEccErrors", handle, kind, counter)
    if total is not None:
        return total
    parts = [nvml.ask("nvmlDeviceGetMemoryErrorCounter", handle, kind, counter, place) for place in MEMORY_LOCATIONS]
    known = [p for p in parts if p is not None]
    return sum(known) if known else None


def _heat_and_power(nvml: Nvml, handle: Any, fields: Mapping[str, int | None]) -> dict[str, Any]:
    temperature = nvml.ask("nvmlDeviceGetTemperature", handle, TEMPERATURE_OF_GPU)
    if temperature is None:
        temperature = nvml.ask("nvmlDeviceGetTemperatureV", handle, TEMPERATURE_OF_GPU)
    slowdown = nvml.ask("nvmlDeviceGetTemperatureThreshold", handle, SLOWDOWN)
    if not slowdown and temperature is not None:  # Hopper and later tell the distance to it instead
        margin = nvml.ask("nvmlDeviceGetMarginTemperature", handle)
        slowdown = temperature + margin if margin is not None else None
    limits = (nvml.ask(f"nvmlDeviceGet{what}", handle) for what in ("EnforcedPowerLimit", "PowerManagementLimit"))
    return {
        "temperature_c": temperature,
        "slowdown_c": slowdown or None,
        "memory_temperature_c": fields["memory_temperature"] or None,
        "power_w": _watts(nvml.ask("nvmlDeviceGetPowerUsage", handle)),
        "power_limit_w": _watts(min((limit for limit in limits if limit), default=None)),
        "power_default_w": _watts(nvml.ask("nvmlDeviceGetPowerManagementDefaultLimit", handle)),
    }


def _clocks(nvml: Nvml, handle: Any) -> dict[str, Any]:
    reasons = nvml.ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
    if reasons is None:  # its name before driver 535
        reasons = nvml.ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    utilization, pstate = nvml.ask("nvmlDeviceGetUtilizationRates", handle), None
    for call in ("nvmlDeviceGetPerformanceState", "nvmlDeviceGetPowerState"):
        pstate = nvml.ask(call, handle) if pstate is None else pstate
    return {
        "throttle": tuple(name for bit, name in REASONS.items() if reasons & bit) if reasons is not None else None,
        "sm_clock_mhz": nvml.ask("nvmlDeviceGetClockInfo", handle, SM),
        "sm_clock_max_mhz": nvml.ask("nvmlDeviceGetMaxClockInfo", handle, SM),
        "memory_clock_mhz": nvml.ask("nvmlDeviceGetClockInfo", handle, MEMORY),
        "memory_clock_max_mhz": nvml.ask("nvmlDeviceGetMaxClockInfo", handle, MEMORY),
        "app_clock_mhz": nvml.ask("nvmlDeviceGetApplicationsClock", handle, GRAPHICS) or None,
        "app_clock_default_mhz": nvml.ask("nvmlDeviceGetDefaultApplicationsClock", handle, GRAPHICS) or None,
        "utilization_percent": utilization.gpu if utilization else None,
        "pstate": pstate if pstate is not None and pstate <= 15 else None,  # 32: unknown
    }


def _nvlinks(nvml: Nvml, handle: Any, fields: Mapping[str, int | None]) -> tuple[NvLink, ...] | None:
    """Those that the board has. None: the driver tells of no link at all."""
    states = {}
    for link in range(min(getattr(nvml.api, "NVML_NVLINK_MAX_LINKS", MOST_LINKS), MOST_LINKS)):
        state = nvml.ask("nvmlDeviceGetNvLinkState", handle, link)
        if state == 0 and nvml.ask("nvmlDeviceGetNvLinkCapability", handle, link, LINK_VALID) == 0:
            continue  # not wired on this board
        if state is not None:
            states[link] = bool(state)
    if not states:
        return None if fields["nvlink_count"] != 0 else ()
    common = fields["nvlink_mbps"]
    speeds = nvml.fields(handle, [(LINK_SPEED, link) for link in states])
    by_field = nvml.fields(handle, [(field, link) for link in states for field in LINK_FIELDS])
    return tuple(
        NvLink(
            index=link,
            active=active,
            version=NVLINK_VERSIONS.get(nvml.ask("nvmlDeviceGetNvLinkVersion", handle, link)),
            gb_per_s=_gb_per_s(speed or common) if active else None,
            remote=NVLINK_REMOTE.get(nvml.ask("nvmlDeviceGetNvLinkRemoteDeviceType", handle, link)) if active else None,
            remote_bus_id=_bus_id(nvml.ask("nvmlDeviceGetNvLinkRemotePciInfo", handle, link)) if active else None,
            errors=_link_errors(nvml, handle, link, by_field[i * len(LINK_FIELDS) : (i + 1) * len(LINK_FIELDS)]),
        )
        for i, ((link, active), speed) in enumerate(zip(states.items(), speeds, strict=True))
    )


def _link_errors(nvml: Nvml, handle: Any, link: int, by_field: list[int | None]) -> dict[str, int]:
    counted = {
        name: nvml.ask("nvmlDeviceGetNvLinkErrorCounter", handle, link, which) for which, name in NVLINK_ERRORS.items()
    }
    for name, value in zip(LINK_FIELDS.values(), by_field, strict=True):
        counted[name] = value if value is not None else counted.get(name)
    return {name: value for name, value in counted.items() if value is not None and value != NOT_AVAILABLE}


def _fabric(nvml: Nvml, handle: Any) -> dict[str, Any]:
    """How far the NVLink fabric is set up for this GPU (by fabric manager), in the newest form that the driver has."""
    for struct, call in (
        ("c_nvmlGpuFabricInfo_v3_t", "nvmlDeviceGetGpuFabricInfoV"),
        ("c_nvmlGpuFabricInfo_v2_t", "nvmlDeviceGetGpuFabricInfoV"),
        ("c_nvmlGpuFabricInfo_t", "nvmlDeviceGetGpuFabricInfo"),
    ):
        if hasattr(nvml.api, struct):
            info = getattr(nvml.api, struct)()
            if nvml.ask(call, handle, nvml.api.byref(info)) == 0 and info.state in FABRIC_STATES:
                return _fabric_fields(nvml, info)
    return {}


def _fabric_fields(nvml: Nvml, info: Any) -> dict[str, Any]:
    state, mask = FABRIC_STATES[info.state], getattr(info, "healthMask", None)
    if state == "not_supported":
        return {"fabric_state": state}
    wrong = [values.get(mask >> shift & bits) for shift, bits, values in FABRIC_HEALTH] if mask is not None else None
    cluster = bytes(info.clusterUuid).hex()
    return {
        "fabric_state": state,
        "fabric_status": "success" if info.status == 0 else str(nvml.api.NVMLError(info.status)),
        "fabric_cluster": cluster if cluster.strip("0") else None,
        "fabric_clique": info.cliqueId,
        "fabric_health": tuple(filter(None, wrong)) if wrong is not None else None,
    }


def _affinity(nvml: Nvml, handle: Any) -> dict[str, Any]:
    nodes = nvml.ask("nvmlDeviceGetMemoryAffinity", handle, MAX_NUMA_NODES // 64, NODE_SCOPE)
    cpus = nvml.ask("nvmlDeviceGetCpuAffinity", handle, MAX_CPUS // 64)
    return {"numa_affinity": _bits(nodes) or None, "cpu_affinity": _bits(cpus) or None}


def _bits(words: Any) -> tuple[int, ...]:
    return tuple(64 * i + bit for i, word in enumerate(words or ()) for bit in range(64) if word >> bit & 1)


def _with_p2p(nvml: Nvml, gpu: Gpu, handles: list[tuple[int, Any, str]]) -> Gpu:
    mine = next(handle for i, handle, _ in handles if i == gpu.index)
    if mine is None:
        return gpu
    answers = {
        i: nvml.ask("nvmlDeviceGetP2PStatus", mine, other, P2P_READ)
        for i, other, _ in handles
        if other is not None and i != gpu.index
    }
    known = {i: P2P_STATUS.get(status, "unknown") for i, status in answers.items() if status is not None}
    return replace(gpu, p2p=known if known or not answers else None)


def _not_shown(gpus: list[Gpu], root: Path) -> list[Gpu]:
    """GPUs that the driver once had and that this process may use, but NVML does not show: fallen off the bus.

    One that a container or a cgroup keeps from us has no device file, or one that we may not open.
    """
    found = []
    shown = {g.bus_id for g in gpus} if all(g.bus_id or g.error for g in gpus) else None
    unreadable = sum(g.error is not None and g.bus_id is None for g in gpus)  # may be one of those below
    for folder in files.listed(root / "proc/driver/nvidia/gpus"):
        bus_id = folder.name.lower()
        if shown is None or bus_id in shown:
            continue
        with suppress(OSError, ValueError):
            words = (folder / "information").read_text()
            minor = re.search(r"^Device Minor:\s*(\d+)", words, re.MULTILINE)
            model = re.search(r"^Model:\s*(\S.*)", words, re.MULTILINE)
            if minor and os.access(root / f"dev/nvidia{minor[1]}", os.R_OK | os.W_OK):
                found.append(
                    Gpu(
                        index=int(minor[1]),
                        name=model[1].strip() if model else "unknown GPU",
                        bus_id=bus_id,
                        minor=int(minor[1]),
                        error="the driver lists it, NVML does not show it",
                    )
                )
    return found[unreadable:] if unreadable else found


def _visible(found: list[Gpu], wanted: str | None) -> tuple[Gpu, ...]:
    """As CUDA reads CUDA_VISIBLE_DEVICES: in its order, up to the first entry that names no device."""
    if wanted is None:
        return tuple(found)
    chosen = []
    for entry in filter(None, (w.strip() for w in wanted.split(","))):
        match = next((g for g in found if entry == str(g.index) or (len(entry) > 4 and g.uuid.startswith(entry))), None)
        if match is None:
            break
        chosen.append(match)
    return tuple(chosen)


def _yes(answer: int | None) -> bool | None:
    return None if answer is None else bool(answer)


def _watts(milliwatts: int | None) -> float | None:
    return milliwatts / 1000 if milliwatts else None


def _gb_per_s(mb_per_s: int | None) -> float | None:
    return mb_per_s / 1000 if mb_per_s else None


def listed(root: Path) -> tuple[Gpu, ...] | None:
    """The GPUs that the driver lists, by model alone: no NVML. None: there is no driver."""
    folder = root / "proc/driver/nvidia/gpus"
    if not folder.is_dir():
        return None
    found = []
    for index, gpu in enumerate(files.listed(folder)):
        with suppress(OSError, ValueError):
            model = re.search(r"^Model:\s*(\S.*)", (gpu / "information").read_text(), re.MULTILINE)
            found.append(Gpu(index=index, name=model[1].strip() if model else "unknown GPU", bus_id=gpu.name.lower()))
    return tuple(found)
