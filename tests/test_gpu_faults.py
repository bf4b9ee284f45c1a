"""From NVML to findings: a fault put into the stand-in is found, and eight healthy GPUs are."""

from pathlib import Path

import pytest

from smoldiag import rules
from smoldiag.facts import Cluster, Host
from smoldiag.findings import Finding, Severity
from tests import nvml

pytestmark = nvml.NEEDS_GCC

LOADED = ("* utilization 100", "* sm_clock 1755", "* power 690000", "* throttle 4")
FAULTS: list[tuple[str, tuple[str, ...], str, str]] = [  # what, the lines of GPU 3, code, cause
    ("hardware thermal slowdown", ("3 throttle 0x48",), "GPU004", "gpu-throttled"),
    ("software thermal slowdown", ("3 throttle 0x20",), "GPU005", "gpu-throttled"),
    ("power brake", ("3 throttle 0x88",), "GPU006", "gpu-power-brake"),
    ("x8 link", ("3 pci_width 8",), "GPU009", "pcie-degraded"),
    ("x8 slot", ("3 pci_width 8", "3 pci_width_max 8"), "GPU009", "pcie-degraded"),
    ("generation 1 under load", (*LOADED, "3 pci_gen 1"), "GPU010", "pcie-degraded"),
    ("uncorrectable ECC", ("3 ecc_volatile 1",), "GPU011", "gpu-ecc-error"),
    ("ECC off", ("3 ecc 0",), "GPU013", "ecc-off"),
    ("row remap pending", ("3 remap_pending 1",), "GPU014", "gpu-row-remap-pending"),
    ("row remap failed", ("3 remap_failed 1",), "GPU015", "gpu-row-remap-failed"),
    ("inactive NVLink", ("3 link7.active 0",), "NVL001", "nvlink-error"),
    ("no NVLink", ("3 active 0",), "NVL001", "nvlink-error"),
    ("fabric not completed", ("3 fabric_state 2",), "NVL003", "fabric-manager-not-running"),
    ("exclusive mode", ("3 compute_mode 3",), "GPU017", "gpu-exclusive-mode-or-busy"),
    ("MIG on", ("3 mig 1",), "GPU018", "mig-enabled"),
    ("persistence off", ("3 persistence 0",), "GPU019", "persistence-off"),
    ("power limit low", ("3 power_limit 400000",), "GPU020", "gpu-power-limited"),
    ("GPU lost", ("3 nvmlDeviceGetHandleByIndex_v2 15",), "GPU002", "gpu-fell-off-bus"),
    ("reset wanted", ("3 recovery 1",), "GPU028", "gpu-needs-reset"),
    ("peer-to-peer off", ("3 p2p 4",), "GPU025", "p2p-not-used"),
]
UNSUPPORTED = (  # by a driver or a virtual machine that tells little
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetTemperatureThreshold",
    "nvmlDeviceGetSerial",
    "nvmlDeviceGetMinorNumber",
    "nvmlDeviceGetApplicationsClock",
    "nvmlDeviceGetDefaultApplicationsClock",
    "nvmlDeviceGetDefaultEccMode",
    "nvmlDeviceGetMaxPcieLinkWidth",
    "nvmlDeviceGetPowerManagementDefaultLimit",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetPcieReplayCounter",
    "nvmlDeviceGetMemoryAffinity",
    "nvmlDeviceGetNvLinkErrorCounter",
    "nvmlDeviceGetNvLinkRemoteDeviceType",
)
LITTLE = tuple(f"* {call} 3" for call in UNSUPPORTED)


def findings(host: Host) -> list[Finding]:
    known = rules.Known(cluster=Cluster(hosts=(host,)))
    outcomes = list(rules.run(known, rules.select(["GPU", "NVL"])))
    assert not [o.crashed for o in outcomes if o.crashed]
    return [f for o in outcomes for f in o.findings]


def grave(host: Host) -> list[Finding]:
    return [f for f in findings(host) if f.severity is not Severity.INFO]


@pytest.mark.parametrize("lines", [(), LOADED, LITTLE, (*LITTLE, *LOADED), ("* count 4",), ("* count 1",)])
def test_healthy_gpus_are_healthy(tmp_path: Path, lines: tuple[str, ...]) -> None:
    assert grave(nvml.read(tmp_path, lines)) == []


@pytest.mark.parametrize("little", [(), LITTLE], ids=["all calls", "few calls"])
@pytest.mark.parametrize(("lines", "code", "cause"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_is_found_on_its_gpu(
    tmp_path: Path, lines: tuple[str, ...], code: str, cause: str, little: tuple[str, ...]
) -> None:
    found = grave(nvml.read(tmp_path, (*little, *lines)))
    assert [(f.code, f.cause, f.where.gpus, f.where.hosts) for f in found if f.code == code] == [
        (code, cause, (3,), ("n0",))
    ]
    assert {f.code for f in found} == {code}, [f.message for f in found]


def test_seven_of_eight(tmp_path: Path) -> None:
    (found,) = grave(nvml.read(tmp_path, ["* count 7"]))
    assert (found.code, found.cause, found.where.gpus) == ("GPU003", "gpu-missing", (7,))
    (found,) = grave(nvml.read(tmp_path, ["* count 6"]))
    assert found.where.gpus == (6, 7)
    (found,) = grave(nvml.read(tmp_path, ["3 nvmlDeviceGetHandleByIndex_v2 4"]))  # not permitted, and none else has it
    assert (found.code, found.where.gpus) == ("GPU003", (3,))
    gap = [f"{i} minor {i + (i >= 5)}" for i in range(7)]
    (found,) = grave(nvml.read(tmp_path, ["* count 7", *gap]))
    assert found.where.gpus == (5,)


def test_each_finding_says_what_to_do(tmp_path: Path) -> None:
    for _, lines, code, _ in FAULTS:
        for f in (f for f in findings(nvml.read(tmp_path, lines)) if f.code == code):
            assert f.message
            assert f.evidence
            assert f.why
            assert f.fixes
            assert f.confirm
            assert f.sources
            assert "None" not in f.message + f.cost, f.message
