"""Rules that judge a bench and its launch."""

from dataclasses import replace
from pathlib import Path

import msgspec

from smoldiag.facts import (
    Bench,
    Cluster,
    Evidence,
    Expected,
    Fault,
    Group,
    Host,
    Launch,
    Nic,
    PairRate,
    RankTimeUs,
    Result,
    TimeUs,
    Transport,
    World,
)
from smoldiag.findings import BenchReport, Verdict
from tests.rules.known import Facts

MIB = 2**20


def result(
    busbw: float = 10.0,
    *,
    collective: str = "all_reduce",
    size: int = 16 * MIB,
    ranks: int = 2,
    nodes: int = 2,
    wrong: int = 0,
    late_us: float = 0.0,
    slowest: int = 0,
) -> Result:
    us = size / busbw / 1e3
    return Result(
        collective=collective,
        group=Group(kind="world", ranks=tuple(range(ranks)), nodes=nodes),
        dtype="float32",
        op="sum",
        size_bytes=size,
        count=size // 4,
        iterations=20,
        time_us=TimeUs(min=us, p50=us, p95=us, p99=us, max=us),
        algbw_gbs=busbw,
        busbw_gbs=busbw,
        wrong=wrong,
        slowest_rank=slowest,
        rank_time_us=RankTimeUs(min=us, p50=us, max=us),
        late_us=late_us,
    )


def bench(*results: Result, nodes: int = 2, **more: object) -> Bench:
    hosts = tuple(f"node{i}" for i in range(nodes))
    given = {
        "backend": "nccl",
        "launcher": "ssh",
        "world": World(nodes=nodes, ranks=nodes, ranks_per_node=1, hosts=hosts),
        "host_of_rank": hosts,
        "results": results or (result(),),
    }
    return Bench(**(given | more))  # type: ignore[arg-type]


def saved(path: Path, *results: Result, **environment: object) -> Path:
    """As nccl-bench writes it with --format json."""
    made = BenchReport(
        version="1",
        created="",
        verdict=Verdict.OK,
        backend="nccl",
        launcher="ssh",
        world=bench().world,
        transport=None,
        results=results,
        expected=(),
        environment=environment,
        findings=(),
    )
    path.write_bytes(msgspec.json.encode(made))
    return path


def expected(busbw: float, kind: str = "measured", **more: object) -> tuple[Expected, ...]:
    row = Expected(collective="all_reduce", size_bytes=16 * MIB, busbw_gbs=busbw, kind=kind, source="a table")
    return (replace(row, **more),)  # type: ignore[arg-type]


def pairs(rates: dict[tuple[str, str], float], *, again: bool = True) -> tuple[PairRate, ...]:
    """Every direction between three hosts, measured once, and once more where `again`."""
    return tuple(
        PairRate(
            src=int(a[-1]), dst=int(b[-1]), src_host=a, dst_host=b, size_bytes=MIB, gb_per_s=rate, round=0, confirming=c
        )
        for (a, b), rate in rates.items()
        for c in ((False, True) if again else (False,))
    )


EVEN = {(a, b): 0.05 for a in ("node0", "node1", "node2") for b in ("node0", "node1", "node2") if a != b}
NODE2_SENDS_SLOWLY = EVEN | {("node2", "node0"): 0.012, ("node2", "node1"): 0.013}
ONE_SLOW_LINK = EVEN | {("node2", "node0"): 0.012}


def hosts(*nics: Nic) -> Cluster:
    return Cluster(hosts=tuple(Host(name=f"node{i}", nics=nics) for i in range(2)))


def mlx(i: int, **more: object) -> Nic:
    return replace(Nic(name=f"mlx5_{i}", kind="infiniband", gbit_per_s=400, up=True), **more)  # type: ignore[arg-type]


ETH = Nic(name="eth0", kind="ethernet", gbit_per_s=25, up=True)
SOCKET = Transport(network="Socket", nics=("eth0",), evidence=(Evidence(text="Using network Socket", where="log:4"),))
IB = Transport(network="IB", nics=("mlx5_0", "mlx5_1"), gpudirect=True)


def fault(kind: str, **more: object) -> Launch:
    broken = Fault(kind=kind, hosts=("node1",), ranks=(1,), stage="all_reduce 16 MiB", detail="it is so")
    return Launch(launcher="ssh", seats=(), faults=(replace(broken, **more),))  # type: ignore[arg-type]


FINE = Launch(launcher="ssh", seats=())

CASES: list[tuple[str, Facts, list[str]]] = [
    ("BWD001", bench(result(5.9), expected=expected(10)), ["error"]),
    ("BWD001", bench(result(7.9), expected=expected(10)), ["warning"]),
    ("BWD001", bench(result(8.1), expected=expected(10)), []),
    ("BWD001", bench(result(5.1), expected=expected(10, "estimated")), []),
    ("BWD001", bench(result(4.9), expected=expected(10, "estimated")), ["warning"]),
    ("BWD001", bench(result(1.0), expected=expected(10, "bound")), ["info"]),
    ("BWD001", bench(result(1.0), expected=expected(10, nodes=4)), []),
    ("BWD001", bench(result(1.0), expected=expected(10, size_bytes=MIB)), []),
    ("BWD001", bench(result(1.0)), []),
    ("BWD002", bench(nodes=3, pairs=pairs(NODE2_SENDS_SLOWLY)), ["warning"]),
    ("BWD002", bench(nodes=3, pairs=pairs(NODE2_SENDS_SLOWLY, again=False)), []),
    ("BWD002", bench(nodes=3, pairs=pairs(EVEN)), []),
    ("BWD002", bench(nodes=3, pairs=pairs(ONE_SLOW_LINK)), []),
    ("BWD003", bench(result(late_us=900, slowest=1)), ["warning"]),
    ("BWD003", bench(result()), []),
    ("BWD004", bench(result(9, size=MIB), result(2, size=2 * MIB), result(9, size=4 * MIB)), ["warning"]),
    ("BWD004", bench(result(9, size=MIB), result(5, size=2 * MIB), result(9, size=4 * MIB)), []),
    ("BWD004", bench(result(9, size=MIB), result(2, size=2 * MIB), result(2.5, size=4 * MIB)), []),
    ("BWD004", bench(result(9, size=4096), result(2, size=8192), result(9, size=16384)), []),
    ("BWD005", bench(result(wrong=3)), ["error"]),
    ("BWD005", bench(result()), []),
    ("BWD006", bench(nodes_asked=3), ["warning"]),
    ("BWD006", bench(result(ranks=1, nodes=1), nodes=1, ranks_asked=8), ["error"]),
    ("BWD006", bench(nodes_asked=2, ranks_asked=2), []),
    ("BWD007", bench(result(487), nics_gbs=400.0), ["info"]),
    ("BWD007", bench(result(380), nics_gbs=400.0), []),
    ("BWD007", bench(result(487, ranks=3, nodes=3), nodes=3, nics_gbs=400.0), []),
    ("BWD008", (bench(transport=SOCKET), hosts(mlx(0), ETH)), ["warning"]),
    ("BWD008", (bench(result(4), transport=SOCKET, expected=expected(400)), hosts(mlx(0), ETH)), ["error"]),
    ("BWD008", (bench(transport=SOCKET), hosts(ETH)), []),
    ("BWD008", (bench(transport=SOCKET), hosts(mlx(0, up=False), ETH)), []),
    ("BWD009", bench(transport=replace(IB, gpudirect=False)), ["warning"]),
    ("BWD009", bench(transport=IB), []),
    ("BWD009", bench(transport=replace(IB, gpudirect=None)), []),
    ("BWD010", (bench(transport=replace(IB, nics=("mlx5_0:1",))), hosts(mlx(0), mlx(1), ETH)), ["warning"]),
    ("BWD010", (bench(transport=IB), hosts(mlx(0), mlx(1), mlx(9, gbit_per_s=100))), []),
    ("BWD010", (bench(transport=replace(IB, nics=("mlx5_0+mlx5_1",))), hosts(mlx(0), mlx(1))), []),
    ("BWD011", bench(transport=replace(IB, env=(("NCCL_P2P_DISABLE", "1"),))), ["info"]),
    (
        "BWD011",
        bench(result(5), expected=expected(10), transport=replace(IB, env=(("NCCL_PROTO", "LL"),))),
        ["warning"],
    ),
    ("BWD011", bench(transport=replace(IB, env=(("NCCL_P2P_DISABLE", "0"), ("NCCL_DEBUG", "INFO")))), []),
    *(
        (code, fault(kind), ["error"])
        for code, kind in {
            "HNG001": "exited",
            "HNG002": "stopped",
            "HNG003": "lost",
            "HNG004": "stalled",
            "HNG005": "rendezvous",
            "HNG006": "skipped",
            "HST001": "unreachable",
            "HST002": "pending",
            "VER001": "no-torch",
            "NIC001": "bad-interface",
            "GPU001": "busy",
            "GPU040": "no-gpu",
        }.items()
    ),
    *((code, FINE, []) for code in ("HNG001", "HNG002", "HNG003", "HNG004", "HNG005", "HNG006")),
    *((code, FINE, []) for code in ("HST001", "HST002", "VER001", "NIC001", "GPU001", "GPU040")),
]
