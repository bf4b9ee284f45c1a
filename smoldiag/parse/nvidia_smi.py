"""`nvidia-smi -q`, also in part (-d PERFORMANCE, CLOCK ...), and the query form in CSV -> Gpu.

A fact that the text does not have stays None. The short table of plain `nvidia-smi` gives names and loads.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from smoldiag.facts import Gpu, Host
from smoldiag.parse import host_of_file

MAX_GPUS = 1024
MAX_DEPTH = 12

_GPU = re.compile(r"^GPU ([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f])\s*$")
_PAIR = re.compile(r"^(\s*)([A-Za-z][^:]{0,80}?)\s*(?::\s?(.*))?$")
_STARTS = re.compile(
    r"NVSMI LOG|^GPU [0-9A-Fa-f]{8}:|Clocks (?:Throttle|Event) Reasons|^\s*Performance State\s+:|"
    r"(?:SW|HW) (?:Thermal|Power Brake) Slowdown\s+: |^index, |NVIDIA-SMI \d",
    re.MULTILINE,
)
_REASONS = {  # as nvidia-smi prints them -> names of NVML's bits, as Gpu.throttle has them
    "idle": "gpu_idle",
    "applications clocks setting": "applications_clocks_setting",
    "sw power cap": "sw_power_cap",
    "hw slowdown": "hw_slowdown",
    "sync boost": "sync_boost",
    "sw thermal slowdown": "sw_thermal",
    "hw thermal slowdown": "hw_thermal",
    "hw power brake slowdown": "hw_power_brake",
    "display clock setting": "display_clock_setting",
}
_SHORT_ROW = re.compile(r"^\|\s+(\d{1,3})\s{1,3}(\S.{3,40}?)\s+(?:On|Off|N/A)\s+\|\s*([0-9A-Fa-f:.]{10,16})\s")
_SHORT_USE = re.compile(r"\|\s*\S+\s+(\d{1,3})C\s+P(\d{1,2})\s+(\d{1,4})W\s*/\s*(\d{1,4})W\s*\|.*?\|\s*(\d{1,3})%")


def looks_like(name: str, head: bytes) -> bool:
    return bool(_STARTS.search(head.decode("utf-8", "replace")))


def host(lines: Iterable[str], *, where: str) -> Host:
    """The host whose text this is; it has no name but the file's."""
    return Host(name=host_of_file.name(where), gpus=parse(lines, where=where))


def parse(lines: Iterable[str], *, where: str) -> tuple[Gpu, ...]:
    """ValueError where no GPU is described."""
    blocks: list[tuple[str | None, dict[str, str]]] = []
    short: list[dict[str, Any]] = []
    csv: tuple[str, ...] = ()
    stack: list[tuple[int, str]] = []
    for raw in lines:
        line = raw.rstrip()
        if match := _GPU.match(line.strip()):
            blocks.append((match[1].lower()[-12:], {}))
            stack = []
        elif line.startswith("index, ") or (csv and line.count(",") == len(csv) - 1):
            cells = tuple(c.strip() for c in line.split(","))
            if line.startswith("index, "):
                csv = cells
            elif len(short) < MAX_GPUS:
                short.append(_of_query(dict(zip(csv, cells, strict=True))))
        elif line.startswith("|"):
            _short(line, short)
        elif ":" in line or (line.strip() and line[:1] in (" ", "C", "P", "T")):
            if not blocks and _STARTS.search(line):
                blocks.append((None, {}))  # a part of the text, without the line that names the GPU
            if blocks and len(blocks) <= MAX_GPUS:
                _pair(line, stack, blocks[-1][1])
    gpus = [g for i, (bus, values) in enumerate(blocks) if values and (g := _gpu(i, bus, values))]
    gpus += [Gpu(**values) for values in short if "index" in values and "name" in values]
    if not gpus:
        raise ValueError(f"{where}: no GPU is described")
    return tuple(gpus)


def _pair(line: str, stack: list[tuple[int, str]], values: dict[str, str]) -> None:
    """Keys by their path: `clocks event reasons/sw power cap`."""
    match = _PAIR.match(line)
    if not match:
        return
    depth, key, value = len(match[1]), match[2].strip().lower(), match[3]
    while stack and stack[-1][0] >= depth:
        stack.pop()
    path = "/".join([name for _, name in stack] + [key])
    if value is None or value.strip() == "":
        if len(stack) < MAX_DEPTH:
            stack.append((depth, key))
    else:
        values.setdefault(path, value.strip())
        if key == "hw slowdown":  # its parts stand below it
            stack.append((depth, key))


def _gpu(index: int, bus: str | None, values: Mapping[str, str]) -> Gpu | None:
    find = _Values(values)
    throttle = _throttle(values)
    gpu = Gpu(
        index=find.whole("minor number", default=index) if bus else 0,
        name=find.text("product name") or "unknown",
        uuid=find.text("gpu uuid") or "",
        serial=find.text("serial number"),
        bus_id=bus,
        memory_bytes=find.mib("fb memory usage/total"),
        memory_free_bytes=find.mib("fb memory usage/free"),
        persistence=find.enabled("persistence mode"),
        compute_mode=(find.text("compute mode") or "").lower().replace(" ", "_") or None,
        mig=find.enabled("mig mode/current"),
        ecc=find.enabled("ecc mode/current"),
        ecc_pending=find.enabled("ecc mode/pending"),
        ecc_volatile=find.total("ecc errors/volatile", ("uncorrectable",)),
        ecc_aggregate=find.total("ecc errors/aggregate", ("uncorrectable",)),
        ecc_corrected_volatile=find.total("ecc errors/volatile", (" correctable",)),
        remapped_rows=find.number("remapped rows/uncorrectable error"),
        remap_pending=find.yes("remapped rows/pending"),
        remap_failed=find.yes("remapped rows/remapping failure occurred"),
        throttle=throttle,
        temperature_c=find.number("temperature/gpu current temp"),
        slowdown_c=find.number("temperature/gpu slowdown temp"),
        memory_temperature_c=find.number("temperature/memory current temp"),
        power_w=find.decimal("power draw"),
        power_limit_w=find.decimal("current power limit", "enforced power limit", "power limit"),
        power_default_w=find.decimal("default power limit"),
        sm_clock_mhz=find.number("clocks/sm"),
        sm_clock_max_mhz=find.number("max clocks/sm"),
        memory_clock_mhz=find.number("clocks/memory"),
        memory_clock_max_mhz=find.number("max clocks/memory"),
        app_clock_mhz=find.number("applications clocks/graphics"),
        utilization_percent=find.number("utilization/gpu"),
        pci_gen=find.number("pcie generation/current", "pcie generation/device current"),
        pci_gen_max=find.number("pcie generation/max"),
        pci_width=find.number("link width/current"),
        pci_width_max=find.number("link width/max"),
        pci_replays=find.number("replays since reset"),
        pstate=find.pstate(),
        fabric_state=(find.text("fabric/state") or "").lower().replace(" ", "_") or None,
        fabric_status=find.text("fabric/status"),
    )
    told = gpu.name != "unknown" or throttle is not None or gpu.sm_clock_mhz is not None or bus is not None
    return gpu if told else None


class _Values:
    """Values by the end of their path, as sections moved between versions."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = values

    def text(self, *ends: str) -> str | None:
        for end in ends:
            for path, value in self.values.items():
                if (path == end or path.endswith(f"/{end}")) and value not in ("N/A", "[N/A]", "Unknown Error", ""):
                    return value
        return None

    def _as(self, make: Callable[[str], Any], ends: tuple[str, ...]) -> Any:
        found = self.text(*ends)
        match = re.match(r"[\d.]{1,20}", found) if found else None
        try:
            return make(match[0]) if match else None
        except ValueError:
            return None

    def number(self, *ends: str) -> int | None:
        value: int | None = self._as(lambda t: int(float(t)), ends)
        return value

    def whole(self, end: str, *, default: int) -> int:
        value = self.number(end)
        return default if value is None else value

    def decimal(self, *ends: str) -> float | None:
        value: float | None = self._as(float, ends)
        return value

    def mib(self, end: str) -> int | None:
        value = self.number(end)
        return None if value is None else value * 2**20

    def enabled(self, end: str) -> bool | None:
        return {"Enabled": True, "Disabled": False}.get(self.text(end) or "")

    def yes(self, end: str) -> bool | None:
        return {"Yes": True, "No": False}.get(self.text(end) or "")

    def total(self, section: str, words: tuple[str, ...]) -> int | None:
        """The counts of a section that have such a word, together."""
        counts = [
            int(v) for path, v in self.values.items()
            if section in path and any(w in f" {path.rpartition('/')[2]}" for w in words) and v.isdigit()
        ]  # fmt: skip
        return sum(counts) if counts else None

    def pstate(self) -> int | None:
        found = re.match(r"P(\d{1,2})\b", self.text("performance state") or "")
        return int(found[1]) if found else None


def _throttle(values: Mapping[str, str]) -> tuple[str, ...] | None:
    found: dict[str, bool] = {}
    for path, value in values.items():
        name = _REASONS.get(path.rpartition("/")[2])
        if name and ("Active" in value) and "counters" not in path:
            found[name] = not value.startswith("Not")
    return tuple(name for name, on in found.items() if on) if found else None


def _of_query(row: Mapping[str, str]) -> dict[str, Any]:
    """nvidia-smi --query-gpu=index,name,... --format=csv"""
    got = {re.sub(r"\s*\[.*", "", k): v for k, v in row.items()}

    def number(name: str) -> int | None:
        match = re.match(r"\d{1,9}", got.get(name, ""))
        return int(match[0]) if match else None

    reasons = {
        "clocks_throttle_reasons.hw_thermal_slowdown": "hw_thermal",
        "clocks_event_reasons.hw_thermal_slowdown": "hw_thermal",
        "clocks_throttle_reasons.sw_thermal_slowdown": "sw_thermal",
        "clocks_event_reasons.sw_thermal_slowdown": "sw_thermal",
        "clocks_throttle_reasons.hw_power_brake_slowdown": "hw_power_brake",
        "clocks_event_reasons.hw_power_brake_slowdown": "hw_power_brake",
        "clocks_throttle_reasons.sw_power_cap": "sw_power_cap",
        "clocks_event_reasons.sw_power_cap": "sw_power_cap",
        "clocks_throttle_reasons.hw_slowdown": "hw_slowdown",
        "clocks_event_reasons.hw_slowdown": "hw_slowdown",
    }
    told = {r: got[r] for r in reasons if r in got}
    made = {
        "index": number("index"),
        "name": got.get("name", "unknown"),
        "uuid": got.get("uuid", ""),
        "throttle": tuple(dict.fromkeys(reasons[r] for r, v in told.items() if v == "Active")) if told else None,
        "temperature_c": number("temperature.gpu"),
        "sm_clock_mhz": number("clocks.sm") or number("clocks.current.sm"),
        "sm_clock_max_mhz": number("clocks.max.sm"),
        "utilization_percent": number("utilization.gpu"),
        "pci_gen": number("pcie.link.gen.current") or number("pcie.link.gen.gpucurrent"),
        "pci_gen_max": number("pcie.link.gen.max"),
        "pci_width": number("pcie.link.width.current"),
        "pci_width_max": number("pcie.link.width.max"),
    }
    return {k: v for k, v in made.items() if v is not None}


def _short(line: str, gpus: list[dict[str, Any]]) -> None:
    """Two lines of plain nvidia-smi's table."""
    if (match := _SHORT_ROW.match(line)) and len(gpus) < MAX_GPUS:
        gpus.append({"index": int(match[1]), "name": match[2].strip(), "bus_id": match[3].lower()[-12:]})
    elif gpus and (match := _SHORT_USE.match(line)):
        gpus[-1].update(
            temperature_c=int(match[1]),
            pstate=int(match[2]),
            power_w=float(match[3]),
            power_limit_w=float(match[4]),
            utilization_percent=int(match[5]),
        )
