"""What people and programs read, from literal reports."""

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from smoldiag.errors import SmoldiagError
from smoldiag.facts import Evidence, Expected, Group, RankTimeUs, Result, TimeUs, World
from smoldiag.findings import (
    BenchReport,
    Check,
    Finding,
    Fix,
    Report,
    Severity,
    Status,
    TransportSummary,
    Verdict,
    Where,
)
from smoldiag.render import json as documents
from smoldiag.render import markdown, numbers, plot, text

Golden = Callable[[str, str], None]


def result(size: int, busbw: float, **more: object) -> Result:
    us = size / busbw / 1e3
    row = Result(
        collective="all_reduce",
        group=Group(kind="world", ranks=(0, 1), nodes=2),
        dtype="float32",
        op="sum",
        size_bytes=size,
        count=size // 4,
        iterations=20,
        time_us=TimeUs(min=us, p50=us, p95=us, p99=us * 1.25, max=us * 1.5),
        algbw_gbs=busbw,
        busbw_gbs=busbw,
        wrong=0,
        slowest_rank=1,
        rank_time_us=RankTimeUs(min=us, p50=us, max=us),
        late_us=0.0,
    )
    return replace(row, **more)  # type: ignore[arg-type]


SLOW = Finding(
    code="BWD002",
    message="node2 sends slowly, says [rank0]: [/dev/shm/x]",
    cause="slow-node",
    where=Where(hosts=("node2",), ranks=(2,)),
    evidence=(Evidence(text="node2 -> node0 0.0124 GB/s", where="send_recv 4 MiB, round 0"),),
    why="a ring is as fast as its slowest member",
    cost="up to 75 % of the bandwidth",
    fixes=(Fix(do="start the job without node2", command="srun --exclude=node2 ..."),),
    confirm="measure again without node2",
)
BENCH = BenchReport(
    version="0.0.0",
    created="2026-11-24T12:00:00Z",
    verdict=Verdict.WARNING,
    backend="gloo",
    launcher="ssh",
    world=World(nodes=2, ranks=2, ranks_per_node=1, hosts=("node0", "node1")),
    transport=TransportSummary(
        network="gloo over eth0", plugin=None, nics=("eth0",), gpudirect=None, nvls=None, channels=None
    ),
    results=(result(1024, 0.004), result(16 << 20, 0.0461)),
    expected=(Expected(collective="all_reduce", size_bytes=16 << 20, busbw_gbs=0.05, kind="site", source="ours.json"),),
    environment={"variables": {}},
    findings=(SLOW,),
    checks=(Check(code="BWD008", status=Status.SKIPPED, reason="not known: cluster (not collected)"),),
)


def shown(renderable: object) -> str:
    out = StringIO()
    Console(file=out, width=200, soft_wrap=True, no_color=True).print(renderable)
    return out.getvalue()


def test_bench_as_text(golden: Golden) -> None:
    golden("tests/golden/bench.txt", shown(text.bench(BENCH)))


def test_bench_as_markdown(golden: Golden) -> None:
    golden("tests/golden/bench.md", markdown.bench(BENCH))


def test_text_from_outside_is_never_markup() -> None:
    assert "says [rank0]: [/dev/shm/x]" in shown(text.bench(BENCH))


@pytest.mark.parametrize("name", documents.DOCUMENTS)
def test_schemas_are_current(name: str, golden: Golden) -> None:
    golden(f"docs/schemas/{name}.json", documents.schema(documents.DOCUMENTS[name]))


def test_a_document_reads_back_as_itself() -> None:
    again = msgspec.json.decode(documents.document(BENCH), type=BenchReport)
    assert again == BENCH
    assert json.loads(documents.document(BENCH))["schema"] == "smoldiag.bench/1"


def test_a_report_of_512_hosts_is_small() -> None:
    hosts = tuple(f"node{i:04d}" for i in range(512))
    found = tuple(replace(SLOW, code=f"BWD{i:03d}", where=Where(hosts=hosts)) for i in range(40))
    checks = tuple(Check(code=f"ENV{i:03d}", status=Status.SKIPPED, reason="x", hosts=hosts) for i in range(60))
    report = Report(
        command="doctor", version="0", created="now", verdict=Verdict.WARNING, findings=found, checks=checks
    )
    assert len(msgspec.json.encode(report)) < 1_000_000
    assert shown(text.report(report)).count("\n") <= text.MAX_LINES + 4
    assert shown(text.report(report, everything=True)).count("\n") > text.MAX_LINES


def test_of_many_nodes_alone_only_the_slowest_is_shown() -> None:
    alone = [result(1024, 1.0 + i, group=Group(kind="node", ranks=(2 * i, 2 * i + 1), nodes=1)) for i in range(500)]
    assert [(title, cells[8]) for title, cells in text.rows(alone)] == [("each node alone, the slowest of 500", "1.00")]


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        (["node3", "node4", "node5", "node12"], "node[3-5,12]"),
        (["gpu007", "gpu008", "login"], "login, gpu[007-008]"),
        (["a"], "a"),
        ([], ""),
    ],
)
def test_hosts_are_folded(names: list[str], folded: str) -> None:
    assert numbers.hosts(names) == folded


def test_nothing_measured_is_said() -> None:
    empty = replace(BENCH, results=(), world=None, findings=(replace(SLOW, severity=Severity.ERROR),), transport=None)
    assert shown(text.bench(empty)).startswith("warning: nothing was measured (1 error)\nnetwork: unknown")


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plot(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    plot.busbw(BENCH, tmp_path / f"busbw.{ending}")
    assert (tmp_path / f"busbw.{ending}").stat().st_size > 1000


def test_plot_refuses_other_endings(tmp_path: Path) -> None:
    with pytest.raises(SmoldiagError, match=r"must be one of \.png, \.svg"):
        plot.check_path(tmp_path / "busbw.txt")


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        ([f"node{i}" for i in (0, 1, 2, 7)], "node[0-2,7]"),
        (["node007", "node008"], "node[007-008]"),
        (["n098", "n099", "n100"], "n[098-100]"),
        (["a", "node3.rack.example", "node4.rack.example"], "a, node[3-4].rack.example"),
        ([f"n{2 * i}" for i in range(100)], "n[0,2,4,6,8,10,12,14,16,18,20,22 and 88 more]"),
        (["GPU001", "GPU003"], "GPU[001,003]"),
    ],
)
def test_names_are_folded(names: list[str], folded: str) -> None:
    assert numbers.hosts(names) == folded
