"""What is read from NVML: in full, with calls that are missing or refused, and when there is nothing to ask."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smoldiag.collect import gpus
from smoldiag.facts import Gpu
from tests import nvml

pytestmark = nvml.NEEDS_GCC

ALL_CALLS = tuple(
    line.partition("(")[0].split()[1]
    for line in nvml.SOURCE.read_text().splitlines()
    if line.startswith(("ret nvmlDeviceGet", "ret nvmlSystemGet"))
) + tuple(
    line.partition("(")[2].split(",")[0]
    for line in nvml.SOURCE.read_text().splitlines()
    if line.startswith(("NUMBER", "TEXT"))
)
OPTIONAL_CALLS = sorted({c for c in ALL_CALLS if "Handle" not in c and "Count" not in c and c.startswith("nvml")})


def gpu(tmp_path: Path, *lines: str, index: int = 3) -> Gpu:
    found = nvml.read(tmp_path, lines).gpus
    assert found is not None
    return found[index]


def test_eight_gpus_in_full(tmp_path: Path) -> None:
    host = nvml.read(tmp_path)
    assert host.gpus is not None
    assert [g.index for g in host.gpus] == list(range(8))
    assert host.versions == {"driver": "570.124.06", "cuda": "12.8"}
    g = host.gpus[4]
    assert (g.name, g.bus_id, g.serial, g.minor) == ("NVIDIA H100 80GB HBM3", "0000:9d:00.0", "1651322000004", 4)
    assert (g.power_w, g.power_limit_w, g.power_default_w) == (114.0, 700.0, 700.0)
    assert (g.persistence, g.ecc, g.ecc_default, g.mig, g.compute_mode) == (True, True, True, False, "default")
    assert (g.throttle, g.pstate, g.slowdown_c) == (("gpu_idle",), 0, 87)
    assert (g.fabric_state, g.fabric_status, g.fabric_health) == ("completed", "success", ())
    assert g.nvlinks is not None
    assert {(x.active, x.version, x.gb_per_s, x.remote) for x in g.nvlinks} == {(True, "4.0", 26.562, "nvswitch")}
    assert len(g.nvlinks) == 18
    assert g.p2p == {i: "ok" for i in range(8) if i != 4}
    assert (g.numa_affinity, g.cpu_affinity) == ((1,), tuple(range(64, 80)))


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("3 throttle 0x68", "throttle", ("hw_slowdown", "sw_thermal", "hw_thermal")),
        ("3 throttle 0x84", "throttle", ("sw_power_cap", "hw_power_brake")),
        ("3 compute_mode 3", "compute_mode", "exclusive_process"),
        ("3 ecc_volatile 5", "ecc_volatile", 5),
        ("3 remap_pending 1", "remap_pending", True),
        ("3 fabric_state 2", "fabric_state", "in_progress"),
        ("3 fabric_status 999", "fabric_status", "Unknown Error"),
        ("3 fabric_health 0x1a9", "fabric_health", ("degraded_bandwidth",)),
        ("3 recovery 1", "recovery", "gpu_reset"),
        ("3 p2p 4", "p2p", {i: "disabled" for i in range(8) if i != 3}),
        ("3 mig 1", "mig", True),
        ("3 nvmlDeviceGetNvLinkState 3", "nvlinks", None),
        # where a call is refused, another one that says the same is asked
        ("3 nvmlDeviceGetTemperatureThreshold 3", "slowdown_c", None),
        ("3 nvmlDeviceGetTotalEccErrors 3", "ecc_volatile", 0),
        ("3 nvmlDeviceGetRemappedRows 3", "remap_pending", False),
        ("3 nvmlDeviceGetCurrentClocksEventReasons 3", "throttle", ("gpu_idle",)),
        ("3 nvmlDeviceGetGpuFabricInfoV 3", "fabric_state", "completed"),
        ("3 nvmlDeviceGetEnforcedPowerLimit 3", "power_limit_w", 700.0),
    ],
)
def test_what_nvml_says_is_decoded(tmp_path: Path, line: str, field: str, value: object) -> None:
    assert getattr(gpu(tmp_path, line), field) == value


def test_a_call_that_is_refused_leaves_the_rest(tmp_path: Path) -> None:
    whole = gpu(tmp_path)
    names = list(Gpu.__dataclass_fields__)
    for call in OPTIONAL_CALLS:
        g = gpu(tmp_path, f"3 {call} 3")
        assert (g.error, g.index) == (None, 3), call
        assert sum(getattr(g, f) == getattr(whole, f) for f in names) >= len(names) - 5, call


def test_functions_that_an_older_driver_lacks_leave_the_rest(tmp_path: Path) -> None:
    lacking = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetGpuFabricInfoV", "nvmlDeviceGetFieldValues")
    found = nvml.read(tmp_path, missing=lacking).gpus
    assert found is not None
    assert (found[0].throttle, found[0].fabric_state, found[0].recovery) == (("gpu_idle",), "completed", None)
    everything = nvml.read(tmp_path, missing=tuple(OPTIONAL_CALLS)).gpus
    assert everything is not None
    assert [g.index for g in everything] == list(range(8))
    assert {g.name for g in everything} == {"unknown GPU"}


def test_a_gpu_that_is_lost_is_still_a_fact(tmp_path: Path) -> None:
    found = nvml.read(tmp_path, ["3 nvmlDeviceGetHandleByIndex_v2 15", "5 nvmlDeviceGetMemoryInfo 999"]).gpus
    assert found is not None
    assert [(g.index, g.error) for g in found if g.error] == [(3, "GPU is lost"), (5, "Unknown Error")]


def test_a_gpu_that_we_may_not_use_is_left_out(tmp_path: Path) -> None:
    found = nvml.read(tmp_path, ["3 nvmlDeviceGetHandleByIndex_v2 4"]).gpus
    assert found is not None
    assert [g.index for g in found] == [0, 1, 2, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["* nvmlInitWithFlags 18"], "NVML: RM has detected an NVML/RM version mismatch."),
        (["* nvmlInitWithFlags 9"], "NVML: Driver Not Loaded"),
    ],
)
def test_why_nvml_does_not_start(tmp_path: Path, lines: list[str], reason: str) -> None:
    host = nvml.read(tmp_path, lines)
    assert (host.gpus, host.unread) == (None, {"gpus": reason})


def test_an_old_driver_is_started_the_old_way(tmp_path: Path) -> None:
    found = nvml.read(tmp_path, missing=("nvmlInitWithFlags",)).gpus
    assert found is not None
    assert len(found) == 8


def test_no_gpu_is_not_the_same_as_no_driver(tmp_path: Path) -> None:
    assert nvml.read(tmp_path, ["* count 0"]).gpus == ()


def test_a_tree_has_no_nvml(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not asked"):
        gpus.read(root=tmp_path)


def test_command_lines_of_processes_are_not_kept(tmp_path: Path) -> None:
    (process,) = gpu(tmp_path, "3 pid 4242").processes or ()
    assert (process.pid, process.name) == (4242, "python3")


@pytest.mark.parametrize(
    ("visible", "indices"),
    [(None, [0, 1, 2, 4, 5, 6, 7]), ("6,1", [6, 1]), ("1,9,2", [1]), ("GPU-00000005", [5]), ("", [])],
)
def test_cuda_visible_devices_as_cuda_reads_it(tmp_path: Path, visible: str | None, indices: list[int]) -> None:
    code = (
        "import json, sys; from smoldiag.collect import gpus; "
        "print([g.index for g in gpus.usable(json.loads(sys.argv[1]))])"
    )
    env = nvml.environment(tmp_path, ["3 nvmlDeviceGetHandleByIndex_v2 15"])
    given = json.dumps({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    done = subprocess.run([sys.executable, "-c", code, given], env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == indices


def test_it_is_fast(tmp_path: Path) -> None:
    code = (
        "import time; from smoldiag.collect import gpus; start = time.monotonic(); gpus.read(); "
        "print(time.monotonic() - start)"
    )
    env = nvml.environment(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.5


UNDER_LOAD = """
import dataclasses, json, sys, time
from smoldiag.collect import gpu_load
try:
    with gpu_load.sampled(sys.argv[1]) as sampler:
        time.sleep(0.35)
    load = sampler.load()
    print(json.dumps(load and dataclasses.asdict(load)))
except OSError as error:
    print(json.dumps(str(error)))
"""


def load(tmp_path: Path, uuid: str, *lines: str) -> Any:
    argv = [sys.executable, "-c", UNDER_LOAD, uuid]
    env = nvml.environment(tmp_path, lines)
    return json.loads(subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout)


def test_a_gpu_is_sampled_under_load(tmp_path: Path) -> None:
    uuid = gpu(tmp_path).uuid
    seen = load(tmp_path, uuid, "3 throttle 68", "3 temperature 88")
    assert seen["samples"] >= 2
    assert seen["throttle"] == {"sw_power_cap": 1.0, "hw_thermal": 1.0}
    assert seen["temperature_c"] == 88
    assert seen["sm_clock_max_mhz"] == 1980
    assert load(tmp_path, uuid, "3 throttle 1") is None
    assert load(tmp_path, "GPU-other") == "NVML knows no GPU GPU-other"
