"""Rules of GPUs and NVLinks: faults of one GPU among eight healthy ones."""

from dataclasses import replace

from smoldiag.facts import Container, Evidence, Gpu, GpuProcess, Host, KernelLog, NvLink, PciDevice, Xid
from tests.rules.known import Facts

GIB = 2**30


def h100(index: int, **more: object) -> Gpu:
    """A healthy, idle H100 of an eight-GPU board."""
    healthy = Gpu(
        index=index,
        name="NVIDIA H100 80GB HBM3",
        uuid=f"GPU-{index}",
        bus_id=f"0000:{index + 16:02x}:00.0",
        minor=index,
        memory_bytes=80 * GIB,
        memory_free_bytes=79 * GIB,
        processes=(),
        pci_gen=5,
        pci_gen_max=5,
        pci_width=16,
        pci_width_max=16,
        pci_replays=0,
        persistence=True,
        compute_mode="default",
        mig=False,
        ecc=True,
        ecc_pending=True,
        ecc_default=True,
        ecc_volatile=0,
        ecc_aggregate=0,
        remapped_rows=0,
        remap_pending=False,
        remap_failed=False,
        retirement_pending=False,
        throttle=("gpu_idle",),
        temperature_c=31,
        slowdown_c=87,
        power_w=75.0,
        power_limit_w=700.0,
        power_default_w=700.0,
        sm_clock_mhz=345,
        sm_clock_max_mhz=1980,
        app_clock_mhz=1980,
        app_clock_default_mhz=1980,
        utilization_percent=0,
        pstate=0,
        nvlinks=links(18),
        fabric_state="completed",
        fabric_status="success",
        fabric_health=(),
        fabric_cluster="ab",
        fabric_clique=0,
        p2p={i: "ok" for i in range(8) if i != index},
        recovery="none",
    )
    return replace(healthy, **more)  # type: ignore[arg-type]


def links(count: int, *, down: int = 0, **more: object) -> tuple[NvLink, ...]:
    return tuple(
        replace(NvLink(index=i, active=i >= down, gb_per_s=26.562 if i >= down else None), **more)  # type: ignore[arg-type]
        for i in range(count)
    )


def host(**more: object) -> Host:
    """Eight of them; GPU 3 with a difference."""
    return Host(name="n0", gpus=tuple(h100(i, **(more if i == 3 else {})) for i in range(8)))


def all_alike(**more: object) -> Host:
    return Host(name="n0", gpus=tuple(h100(i, **more) for i in range(8)))


def first(count: int, given: Host) -> Host:
    return replace(given, gpus=(given.gpus or ())[:count])


HEALTHY = host()
BAD_CELL = {"memory": "fail: bad cell", "memory:3": "fail: bad cell", "pcie": "pass"}
FATAL = "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 LTSSM Fault Up"
NON_FATAL = "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 12028, Non-fatal, Link 32 egress non-posted PRIV error"
LOADED: dict[str, object] = {
    "utilization_percent": 100,
    "sm_clock_mhz": 1755,
    "power_w": 690.0,
    "throttle": ("sw_power_cap",),
    "temperature_c": 68,
}
BUSY = all_alike(**LOADED)
A100_40 = "NVIDIA A100-SXM4-40GB"
L4: dict[str, object] = {
    "name": "NVIDIA L4",
    "nvlinks": None,
    "fabric_state": "not_supported",
    "pci_gen": 1,
    "pci_gen_max": 4,
    "pstate": 8,
    "power_w": 12.0,
    "power_limit_w": 72.0,
    "power_default_w": 72.0,
    "p2p": dict.fromkeys(range(8), "chipset_not_supported"),
}
RTX4090: dict[str, object] = {
    **L4,
    "name": "NVIDIA GeForce RTX 4090",
    "ecc": False,
    "ecc_default": False,
    "persistence": False,
    "pci_width": 8,
    "power_limit_w": 450.0,
    "power_default_w": 450.0,
}


def with_(given: Host, **more: object) -> Host:
    return replace(given, **more)  # type: ignore[arg-type]


def pci(*, without: int | None = None, unbound: int | None = None) -> tuple[PciDevice, ...]:
    return tuple(
        PciDevice(
            address=f"0000:{i + 16:02x}:00.0",
            vendor="10de",
            device="2330",
            kind="0x030200",
            driver=None if i == unbound else "nvidia",
        )
        for i in range(8)
        if i != without
    )


def log(*xids: int, events: tuple[tuple[str, str], ...] = ()) -> Host:
    return with_(
        HEALTHY,
        kernel_log=KernelLog(
            xids=tuple(Xid(xid=x, bus_id="0000:13:00.0", text="pid=1", where="dmesg:9", time="12.5") for x in xids),
            events=tuple((kind, Evidence(text=text, where="dmesg:3")) for kind, text in events),
        ),
    )


BRIDGED = tuple(h100(i, name="NVIDIA A40", nvlinks=links(4, down=0 if i < 2 else 4)) for i in range(4))
SEVEN = tuple(replace(h100(i), index=i - (i > 5)) for i in range(8) if i != 5)
BARE = Container(kind="none")
HELD: dict[str, object] = {"memory_free_bytes": 60 * GIB}
WITH_A_DISPLAY = with_(HEALTHY, gpus=(*(HEALTHY.gpus or ()), Gpu(index=8, name="NVIDIA T400 4GB")))

CASES: list[tuple[str, Facts, list[str]]] = [
    ("GPU002", host(error="GPU is lost"), ["error"]),
    ("GPU002", with_(host(error="Unknown Error"), container=Container(kind="docker")), ["error"]),
    ("GPU002", host(error="GPU requires restart"), ["error"]),
    ("GPU002", HEALTHY, []),
    ("GPU003", with_(first(7, HEALTHY), pci=pci(unbound=7)), ["error"]),
    ("GPU003", with_(HEALTHY, gpus=SEVEN), ["warning"]),
    ("GPU003", with_(HEALTHY, gpus=SEVEN, pci=pci(without=5)), ["warning"]),
    ("GPU003", with_(first(3, HEALTHY), pci=pci()), []),  # a job that was given three
    ("GPU003", with_(HEALTHY, pci=pci()), []),
    ("GPU003", first(4, HEALTHY), []),
    ("GPU003", first(3, all_alike(**L4)), []),
    ("GPU004", host(throttle=("hw_slowdown", "hw_thermal")), ["error"]),
    ("GPU004", host(throttle=("hw_slowdown",), temperature_c=88), ["error"]),
    ("GPU004", BUSY, []),
    ("GPU005", host(throttle=("sw_thermal",)), ["warning"]),
    ("GPU005", host(throttle=("sw_power_cap", "gpu_idle", "sync_boost")), []),
    ("GPU005", host(throttle=None), []),
    ("GPU006", host(throttle=("hw_slowdown", "hw_power_brake")), ["error"]),
    ("GPU006", BUSY, []),
    ("GPU007", host(throttle=("hw_slowdown",)), ["warning"]),
    ("GPU007", host(throttle=("hw_slowdown", "hw_thermal")), []),
    ("GPU008", host(temperature_c=85), ["warning"]),
    ("GPU008", host(temperature_c=82, slowdown_c=None), ["warning"]),
    ("GPU008", host(temperature_c=70), []),
    ("GPU008", all_alike(temperature_c=80), []),
    ("GPU009", host(pci_width=8), ["warning"]),
    ("GPU009", host(pci_width=8, pci_width_max=8), ["warning"]),
    ("GPU009", host(pci_width=8, pci_width_max=None), ["warning"]),
    ("GPU009", all_alike(**RTX4090), ["info"]),
    ("GPU009", host(pci_width=None), []),
    ("GPU010", host(**LOADED | {"pci_gen": 1}), ["warning"]),
    ("GPU010", host(pci_gen=1, utilization_percent=None, sm_clock_mhz=1980), ["warning"]),
    ("GPU010", host(pci_gen=1, utilization_percent=None, sm_clock_mhz=None, power_w=600.0), ["warning"]),
    (
        "GPU010",
        host(pci_gen=1, utilization_percent=None, sm_clock_mhz=None, power_w=None, throttle=()),
        ["warning"],
    ),
    ("GPU010", all_alike(**L4), []),
    ("GPU010", host(pci_gen=1), []),
    ("GPU010", BUSY, []),
    ("GPU011", host(ecc_volatile=2), ["error"]),
    ("GPU011", HEALTHY, []),
    ("GPU012", host(ecc_aggregate=4, remapped_rows=2), ["info"]),
    ("GPU012", host(ecc_aggregate=4, ecc_volatile=2), []),
    ("GPU013", host(ecc=False, ecc_pending=False), ["warning"]),
    ("GPU013", host(ecc=False, ecc_default=None), ["warning"]),
    ("GPU013", all_alike(**RTX4090), []),
    ("GPU013", host(ecc=None), []),
    ("GPU014", host(remap_pending=True), ["warning"]),
    ("GPU014", host(remap_pending=None), []),
    ("GPU015", host(remap_failed=True), ["error"]),
    ("GPU015", HEALTHY, []),
    ("GPU016", host(retirement_pending=True), ["warning"]),
    ("GPU016", HEALTHY, []),
    ("GPU017", host(compute_mode="exclusive_process"), ["warning"]),
    ("GPU017", host(compute_mode="prohibited"), ["error"]),
    ("GPU017", HEALTHY, []),
    ("GPU018", host(mig=True), ["warning"]),
    ("GPU018", HEALTHY, []),
    ("GPU019", host(persistence=False), ["warning"]),
    ("GPU019", all_alike(**RTX4090), ["info"]),
    ("GPU019", HEALTHY, []),
    ("GPU020", host(power_limit_w=350.0), ["warning"]),
    ("GPU020", host(power_limit_w=350.0, power_default_w=None), ["warning"]),
    ("GPU020", host(power_limit_w=650.0), ["info"]),
    ("GPU020", HEALTHY, []),
    ("GPU021", host(app_clock_mhz=1200), ["warning"]),
    ("GPU021", host(app_clock_mhz=None), []),
    ("GPU022", host(utilization_percent=100, sm_clock_mhz=1200, throttle=()), ["warning"]),
    ("GPU022", BUSY, []),
    ("GPU022", HEALTHY, []),
    ("GPU023", with_(host(**HELD), container=BARE), ["warning"]),
    ("GPU023", host(**HELD), ["info"]),
    ("GPU023", with_(host(**HELD | {"processes": (GpuProcess(pid=7, name="python3"),)}), container=BARE), ["info"]),
    ("GPU023", host(**HELD | {"processes": (GpuProcess(pid=7, ours=True),)}), []),
    ("GPU023", HEALTHY, []),
    ("GPU024", with_(log(79), gpus=(host(error="GPU is lost").gpus or ())), ["error"]),
    ("GPU024", with_(log(79), gpus=first(3, HEALTHY).gpus), ["error"]),
    ("GPU024", log(79), ["warning"]),  # the GPU answers
    ("GPU024", with_(log(48), gpus=host(ecc_volatile=1).gpus), ["warning"]),
    ("GPU024", log(48), ["info"]),  # and its memory is sound since
    ("GPU024", log(31, 31), ["info"]),
    ("GPU024", log(94, 119), ["warning", "warning"]),
    ("GPU024", log(999), ["warning"]),
    ("GPU024", log(), []),
    ("GPU025", host(p2p={i: "disabled" for i in range(8) if i != 3}), ["warning"]),
    ("GPU025", host(p2p={4: "chipset_not_supported"}), ["warning"]),
    ("GPU025", all_alike(**L4), []),
    ("GPU025", HEALTHY, []),
    ("GPU026", host(pci_replays=5000), ["info"]),
    ("GPU026", host(pci_replays=3), []),
    ("GPU027", host(name=A100_40), ["warning"]),
    ("GPU027", WITH_A_DISPLAY, ["info"]),
    ("GPU027", HEALTHY, []),
    ("GPU028", host(recovery="gpu_reset"), ["error"]),
    ("GPU028", host(recovery="node_reboot"), ["error"]),
    ("GPU028", HEALTHY, []),
    (
        "GPU029",
        with_(HEALTHY, dcgm=BAD_CELL),
        ["error"],
    ),
    ("GPU029", with_(HEALTHY, dcgm={"Persistence Mode": "fail", "GPU Memory": "warn: slow"}), ["warning", "warning"]),
    ("GPU029", with_(HEALTHY, dcgm={"memory": "pass", "pulse_test": "skip"}), []),
    ("GPU030", log(events=(("gpu-off-bus", "NVRM: GPU 0000:13:00.0: GPU has fallen off the bus."),)), ["error"]),
    ("GPU030", log(events=(("oom-kill", "Out of memory: Killed process 3"),)), []),
    ("HST070", log(events=(("oom-kill", "Out of memory: Killed process 3 (python3)"),)), ["info"]),
    (
        "HST070",
        log(events=(("machine-check", "mce: [Hardware Error]"), ("aer", "severity=Uncorrected"))),
        ["warning"] * 2,
    ),
    ("HST070", log(events=(("aer-corrected", "severity=Corrected"),) * 3), []),
    ("HST070", log(events=(("segfault", "python3[3]: segfault"), ("nic-down", "eth0: Link down"))), []),
    ("HST070", log(79), []),
    ("NVL001", host(nvlinks=links(18, down=1)), ["warning"]),
    ("NVL001", host(nvlinks=links(18, down=18)), ["error"]),
    ("NVL001", host(nvlinks=links(17)), ["warning"]),
    ("NVL001", all_alike(nvlinks=links(18, down=18)), ["warning"]),
    ("NVL001", first(1, all_alike(nvlinks=links(18, down=18))), []),  # one GPU of a board, given to a virtual machine
    ("NVL001", all_alike(name="NVIDIA H800", nvlinks=links(18, down=10)), []),
    ("NVL001", Host(name="n0", gpus=BRIDGED), []),
    ("NVL001", host(nvlinks=None), []),
    ("NVL001", HEALTHY, []),
    ("NVL002", host(nvlinks=links(18, errors={"replay": 5000})), ["info"]),
    ("NVL002", host(nvlinks=links(18, errors={"recovery": 1})), ["info"]),
    ("NVL002", host(nvlinks=links(18, errors={"replay": 3, "crc_flit": 0})), []),
    ("NVL003", host(fabric_state="in_progress", fabric_status="success"), ["error"]),
    ("NVL003", host(fabric_state="not_started"), ["error"]),
    ("NVL003", host(fabric_status="Unknown Error"), ["error"]),
    ("NVL003", host(fabric_state="not_supported", fabric_status=None), []),
    ("NVL003", HEALTHY, []),
    ("NVL004", host(fabric_health=("degraded_bandwidth",)), ["warning"]),
    ("NVL004", HEALTHY, []),
    ("NVL005", host(nvlinks=links(18, gb_per_s=13.3)), ["warning"]),
    ("NVL005", HEALTHY, []),
    ("NVL006", host(fabric_clique=5), ["warning"]),
    ("NVL006", HEALTHY, []),
    (
        "NVL007",
        log(events=(("nvswitch-error", FATAL),)),
        ["error"],
    ),
    (
        "NVL007",
        log(events=(("nvswitch-error", NON_FATAL),)),
        ["warning"],
    ),
    ("NVL007", log(), []),
]
