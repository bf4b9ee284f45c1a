"""Collectives of a run or trace beside what the same size reached alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from smoldiag import documents, explain
from smoldiag.cli import app
from smoldiag.errors import SmoldiagError
from smoldiag.facts import Result
from smoldiag.model import alone
from tests import run_folders
from tests.rules.bench import result, saved
from tests.test_traces import document, kernel

run = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}).invoke


def of(name: str, size: int, us: float, ranks: int = 4) -> Result:
    made = result(collective=name, size=size, ranks=ranks)
    return replace(made, time_us=replace(made.time_us, p50=us, p95=us * 1.05))


def test_a_run_that_gets_what_the_bench_got(tmp_path: Path) -> None:
    folder = run_folders.write(tmp_path / "run")
    measured = saved(tmp_path / "b.json", of("all_gather", 2**20, 29_000), of("reduce_scatter", 2**20, 39_000))
    found = explain.explain([str(folder)], bench=measured)
    assert not found.report.findings
    assert found.known.alone
    assert {(r.name, r.ranks, r.calls, r.lost_us) for r in found.known.alone.rows} == {
        ("all_gather", 4, 1.0, 0.0),
        ("reduce_scatter", 4, 1.0, 0.0),
    }


def test_a_run_that_gets_half(tmp_path: Path) -> None:
    folder = run_folders.write(tmp_path / "run", transfer=2.0)
    measured = saved(tmp_path / "b.json", of("all_gather", 2**20, 30_000), of("reduce_scatter", 2**20, 40_000))
    done = run(app, ["explain", str(folder), "--bench", str(measured), "--format", "json", "--facts"])
    told = json.loads(done.output)
    (finding,) = told["findings"]
    assert finding["code"] == "BWD091"
    assert finding["cause"] == "collectives-slower-than-alone"
    rows = told["facts"]["alone"]["rows"]
    assert rows[0]["name"] == "reduce_scatter"
    assert rows[0]["lost_us"] == pytest.approx(40_000, rel=0.03)
    assert "collectives of the run, and alone" in run(app, ["explain", str(folder), "--bench", str(measured)]).output


def test_a_size_between_two_of_the_bench_is_interpolated() -> None:
    results = [of("all_reduce", 2**20, 100), of("all_reduce", 2**22, 400)]
    (row,) = alone._rows({("all_reduce", 2**21, 4): [200.0]}, results, 1)
    assert row.alone_us == pytest.approx(200)
    assert row.between == (2**20, 2**22)
    (row,) = alone._rows({("all_reduce", 2**23, 4): [200.0]}, results, 1)
    assert row.alone_us is None


def test_a_trace_beside_a_bench(tmp_path: Path) -> None:
    for rank in range(2):
        events = []
        for n in range(20):
            args = {"Collective name": "allreduce", "In msg nelems": 2**20, "dtype": "Float", "Group size": 2}
            events.append(kernel("gemm", n * 1000, 300, launched=n * 1000 - 5, n=2 * n))
            reduce = "ncclDevKernel_AllReduce_Sum_f32_RING_LL(x)"
            events.append(kernel(reduce, n * 1000 + 300, 600, launched=n * 1000 + 200, n=2 * n + 1, **args))
        (tmp_path / f"rank{rank}.json").write_bytes(document(*events, rank=rank))
    traces = [str(tmp_path / f"rank{r}.json") for r in range(2)]
    found = explain.explain(traces, bench=saved(tmp_path / "b.json", of("all_reduce", 2**22, 300, ranks=2)))
    assert [f.code for f in found.report.findings if f.code == "BWD091"]
    assert found.known.alone
    (row,) = found.known.alone.rows
    assert (row.transfer_us, row.alone_us, row.lost_us) == (600, 300, 20 * 300)
    same = explain.explain(traces, bench=saved(tmp_path / "c.json", of("all_reduce", 2**22, 590, ranks=2)))
    assert not [f for f in same.report.findings if f.code == "BWD091"]


def test_what_a_bench_did_not_measure_is_said(tmp_path: Path) -> None:
    folder = run_folders.write(tmp_path / "run", steps=10)
    other = saved(tmp_path / "b.json", of("all_gather", 2**20, 30_000, ranks=8))
    found = explain.explain([str(folder)], bench=other)
    assert (
        "it measured none of these at such sizes: all_gather over 4 ranks, reduce_scatter over 4 ranks"
        in found.notes[-1]
    )
    (tmp_path / "log").write_text("node1:11:12 [0] NCCL INFO Using network IB\n")
    found = explain.explain([str(tmp_path / "log")], bench=other)
    assert "no run or trace with collectives" in found.notes[-1]


@pytest.mark.parametrize("content", ["", "{}", '{"schema": "smoldiag.bench/1"', "hello"])
def test_a_file_that_is_no_bench_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(SmoldiagError, match=r"is no smoldiag\.bench/1"):
        documents.named_bench(tmp_path / "x.json")


def test_groups_of_a_run_are_counted() -> None:
    assert [alone._size_of(g, 8, 1) for g in ("all", "0-3", "0,2", "", "0-1,6-7")] == [8, 4, 2, 8, 4]
