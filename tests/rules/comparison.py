"""Rules that judge two of a kind."""

from dataclasses import replace

from smoldiag.facts.alone import Alone, Beside
from smoldiag.facts.comparison import COMMUNICATION, COMPUTE, DATA, Change, Comparison, Metric, Shift
from smoldiag.rules import Known
from tests.rules.known import Facts


def metric(kind: str = "step", change: float = 30.0, **more: object) -> Metric:
    """A figure that got worse beyond noise, unless `more` says otherwise."""
    whole = Metric(
        name=kind,
        kind=kind,
        unit="us",
        a=100_000.0,
        b=100_000.0 + change * 1000,
        change_percent=change,
        low=change - 5,
        high=change + 5,
        significant=True,
        worse=change > 0,
        samples=(100, 100),
        cost_us=change * 1000,
    )
    return replace(whole, **more)  # type: ignore[arg-type]


def two(*metrics: Metric, changed: tuple[Change, ...] = (), **more: object) -> Known:
    return Known(
        comparison=Comparison(a="A", b="B", kinds=("run",), metrics=metrics, changed=changed, **more)  # type: ignore[arg-type]
    )


STEP = metric()
TRANSFER = metric("part", part="transfer", area=COMMUNICATION)
FORWARD = metric("part", part="forward", area=COMPUTE)
NOISE = metric(significant=False)
BUSBW = metric("busbw", -30.0, unit="GB/s", part="all_reduce", area=COMMUNICATION, worse=True, cost_us=None)


def change(family: str, name: str, *affects: str, weight: str = "known") -> Change:
    return Change(family=family, name=name, a="1", b="2", affects=affects, weight=weight)


SHIFT = Shift(side="b", run="", axis="step", at=120.0, time=None, unit="steps/s", before=10.0, after=5.0)
ALGO = change("ENV", "NCCL_ALGO", COMMUNICATION)


def beside(lost_us: float, exposed_us: float | None = 50_000.0) -> Known:
    row = Beside(
        name="all_gather",
        size_bytes=2**24,
        ranks=8,
        calls=10,
        transfer_us=2000.0,
        alone_us=1000.0,
        busbw_gbs=7.3,
        alone_busbw_gbs=14.7,
        lost_us=lost_us,
    )
    return Known(alone=Alone(bench="b.json", where="run", step_us=100_000.0, exposed_us=exposed_us, rows=(row,)))


CASES: list[tuple[str, Facts, list[str]]] = [
    ("STP040", two(STEP), ["warning"]),
    ("STP040", two(metric(change=3.0)), ["info"]),
    ("STP040", two(NOISE), []),
    ("STP040", two(metric(change=-30.0)), []),
    ("STP041", two(STEP, TRANSFER), ["warning"]),
    ("STP041", two(STEP, replace(TRANSFER, cost_us=1000.0)), []),
    ("STP041", two(NOISE, TRANSFER), []),
    ("STP042", two(metric("stalls", unit="%", a=1.0, b=20.0)), ["warning"]),
    ("STP042", two(metric("stalls", significant=False)), []),
    ("STP043", two(STEP, changed=(change("STP", "micro_batch", COMPUTE),)), ["warning"]),
    ("STP043", two(STEP, changed=(change("STP", "seed", COMPUTE, weight="other"),)), []),
    ("STP044", two(metric(change=-30.0)), ["info"]),
    ("STP044", two(STEP), []),
    ("STP045", two(metric("step", name="window", significant=None), metric("share", significant=None)), ["warning"]),
    ("STP045", two(metric("step", 3.0, name="window", significant=None)), []),
    ("STP046", two(shifts=(SHIFT,)), ["warning"]),
    ("STP046", two(shifts=(SHIFT, replace(SHIFT, side="a"))), []),
    ("STP046", two(shifts=(replace(SHIFT, after=12.0),)), []),
    ("BWD090", two(BUSBW, replace(BUSBW, name="2")), ["warning"]),
    ("BWD090", two(BUSBW, replace(BUSBW, significant=False), replace(BUSBW, significant=False)), []),
    ("BWD090", two(replace(BUSBW, change_percent=-60.0), *[replace(BUSBW, significant=False)] * 3), ["warning"]),
    ("BWD091", beside(20_000.0), ["warning"]),
    ("BWD091", beside(20_000.0, None), ["warning"]),
    ("BWD091", beside(20_000.0, 5_000.0), []),
    ("BWD091", beside(5_000.0), []),
    ("LOS040", two(metric("loss", unit="nats", a=2.4, b=2.44)), ["warning"]),
    ("LOS040", two(metric("loss", unit="nats", a=2.4, b=2.404)), ["info"]),
    ("LOS040", two(metric("loss", unit="nats", significant=False)), []),
    ("ENV090", two(STEP, TRANSFER, changed=(ALGO,)), ["warning"]),
    ("ENV090", two(STEP, FORWARD, changed=(ALGO,)), ["info"]),
    ("ENV090", two(changed=(ALGO,)), ["info"]),
    ("ENV090", two(STEP, changed=(replace(ALGO, weight="rule"),)), []),
    ("VER090", two(STEP, TRANSFER, changed=(change("VER", "nccl", COMMUNICATION),)), ["warning"]),
    ("VER090", two(STEP, TRANSFER), []),
    (
        "HST090",
        two(STEP, metric("part", part="data", area=DATA), changed=(change("HST", "CPU quota", DATA),)),
        ["warning"],
    ),
    ("HST090", two(STEP), []),
    ("HST091", two(hosts_new=("node7",), hosts_gone=("node3",)), ["info"]),
    ("HST091", two(), []),
    ("GPU090", two(STEP, FORWARD, changed=(change("GPU", "power limit", COMPUTE),)), ["warning"]),
    ("GPU090", two(STEP), []),
    ("NIC090", two(STEP, TRANSFER, changed=(change("NIC", "link rate", COMMUNICATION),)), ["warning"]),
    ("NIC090", two(STEP), []),
    ("PCI090", two(STEP, TRANSFER, changed=(change("PCI", "link width", COMMUNICATION),)), ["warning"]),
    ("PCI090", two(STEP), []),
]
