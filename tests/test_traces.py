"""Traces of torch.profiler: read in pieces, and what the devices did."""

import gzip
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from smoldiag import explain
from smoldiag.cli import app
from smoldiag.errors import SmoldiagError
from smoldiag.facts.trace import Peaks, RankTrace
from smoldiag.model import traces as model
from smoldiag.parse import trace

CASES = Path(__file__).parent.parent.parent / "shared" / "cases" / "traces"


def kernel(name: str, ts: float, dur: float, *, launched: float | None = None, n: int = 0, **args: Any) -> list[Any]:
    """A device event and the runtime call that launched it."""
    found: list[Any] = [
        {
            "ph": "X",
            "cat": "kernel",
            "name": name,
            "ts": ts,
            "dur": dur,
            "args": {"stream": 7, "correlation": n, **args},
        }
    ]
    if launched is not None:
        call = {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": launched, "dur": 4}
        found.append({**call, "args": {"correlation": n}})
    return found


def document(*events: list[Any], rank: int | str = 0) -> bytes:
    flat = [e for group in events for e in group]
    return json.dumps({"schemaVersion": 1, "distributedInfo": {"rank": rank}, "traceEvents": flat}, indent=1).encode()


def pieces(data: bytes, size: int = 1 << 16) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


TWO_STREAMS = document(
    kernel("gemm", 100.25, 50.5, launched=90, n=1),
    kernel("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 140, 60, launched=91, n=2),
    kernel("Memcpy HtoD (Pageable -> Device)", 210, 10, launched=205, n=3),
    kernel("gemm", 260, 40, launched=255, n=4),
)


def test_shares_of_a_trace() -> None:
    (share,) = model.summary([trace.parse(pieces(TWO_STREAMS), where="t.json")]).ranks
    assert share.window_us == 300 - 100.25
    assert share.compute_us == 90.5
    assert share.communication_us == 60
    assert share.exposed_communication_us == 60 - 10.75
    assert share.memory_us == 10
    assert share.idle_us == pytest.approx(10 + 40)
    assert share.idle_launch_us == pytest.approx(5 + 35)


def test_the_other_definition_rounds_to_whole_microseconds() -> None:
    (share,) = model.summary([trace.parse(pieces(TWO_STREAMS), where="t.json")], hta=True).ranks
    assert (share.window_us, share.compute_us) == (300 - 101, 150 - 101 + 40)


def test_pieces_of_any_size_give_the_same() -> None:
    whole = trace.parse([TWO_STREAMS], where="t.json")
    for size in (7, 100, 1000):
        cut = trace.parse(pieces(TWO_STREAMS, size), where="t.json")
        assert (cut.start, cut.end, cut.name_of, cut.rank) == (whole.start, whole.end, whole.name_of, whole.rank)


def test_what_is_cut_off_is_left_out_with_a_note() -> None:
    cut = trace.parse(pieces(TWO_STREAMS[:-160]), where="t.json")
    assert len(cut.start) == 3
    assert cut.notes == ("it is cut off; what stands before the cut was read",)


def test_ranks_may_be_words_and_numbers_huge() -> None:
    odd = document(
        kernel("gemm", 1, 1, n=2**70, External=2**80),
        [
            {
                "ph": "X",
                "cat": "kernel",
                "name": 5,
                "ts": "17.5",
                "dur": "2",
                "args": {"stream": "7", "correlation": "9"},
            }
        ],
        [{"ph": "X", "cat": "kernel", "name": "gemm", "ts": 30, "dur": 1, "args": ["no", "object"]}],
        rank="12",
    )
    read = trace.parse([odd], where="t.json")
    assert read.rank == 12
    assert list(read.start) == [1, 17.5, 30]


@pytest.mark.parametrize("data", [b"", b"{}", b'{"traceEvents": []}', b"[1, 2", b'{"traceEvents": [{"ph": tru'])
def test_no_events_is_a_sentence(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        trace.parse([data], where="t.json")


def all_reduces(late: int, *, ranks: int = 4) -> list[bytes]:
    """Twenty all-reduces; the late rank comes 500 us after the others, and its kernels are short."""
    documents = []
    for rank in range(ranks):
        events = []
        for i in range(20):
            stay = 40.0 if rank == late else 540.0
            start = i * 1000.0
            events += kernel("gemm", start, 400 if rank != late else 900, launched=start - 5, n=2 * i)
            info = {"Collective name": "allreduce", "In msg nelems": 1 << 20, "dtype": "Float", "Group size": ranks}
            name = "ncclDevKernel_AllReduce_Sum_f32_RING_LL"
            at = start + 400 + (500 if rank == late else 0)
            events += kernel(name, at, stay, launched=at - 5, n=2 * i + 1, **info)
        documents.append(document(events, rank=rank))
    return documents


def test_the_late_rank_is_named(tmp_path: Path) -> None:
    for rank, data in enumerate(all_reduces(late=2)):
        (tmp_path / f"rank{rank}.json.gz").write_bytes(gzip.compress(data))
    report = explain.explain([str(tmp_path)], with_facts=True).report
    assert (report.findings[0].cause, report.findings[0].where.ranks) == ("straggler-rank", (2,))
    assert report.facts is not None
    first = report.facts["trace"]["collectives"][0]
    assert (first["name"], first["size_bytes"], first["last_rank"]) == ("all_reduce", 4 << 20, 2)
    assert (first["transfer_us"], first["wait_us"]) == (40, 500)
    assert first["busbw_gbs"] == pytest.approx((4 << 20) / 40e3 * 1.5)


def test_even_ranks_are_not_accused(tmp_path: Path) -> None:
    numbers = random.Random(1)
    for rank in range(4):
        events = []
        for i in range(50):
            start = i * 1000.0
            events += kernel("gemm", start, 900 + numbers.random() * 20, launched=start - 300, n=2 * i)
            at = start + 500 + numbers.random() * 10
            events += kernel("ncclDevKernel_AllGather_RING_LL", at, 80, launched=at - 300, n=2 * i + 1)
        (tmp_path / f"rank{rank}.json").write_bytes(document(events, rank=rank))
    report = explain.explain([str(tmp_path)]).report
    assert not [f for f in report.findings if f.severity.value != "info"], report.findings


def test_a_trace_without_a_gpu_is_read(tmp_path: Path) -> None:
    (tmp_path / "cpu.json").write_bytes(
        document([{"ph": "X", "cat": "cpu_op", "name": "aten::add", "ts": 1, "dur": 2}])
    )
    assert "no event of a GPU" in explain.explain([str(tmp_path / "cpu.json")]).notes[0]


def test_garbage_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "trace.json").write_bytes(b'{"traceEvents": [{"ph": "X", nonsense')
    with pytest.raises(SmoldiagError):
        explain.explain([str(tmp_path / "trace.json")])


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared traces are not here")
def test_shares_agree_with_holistic_trace_analysis() -> None:
    expected = json.loads((CASES / "EXPECTED.json").read_text())["hta"]
    for case in expected:
        path = CASES / case["file"]
        if path.name.endswith(".tar.gz"):
            continue
        with gzip.open(path) as file:
            read = trace.parse(iter(lambda: file.read(1 << 20), b""), where=path.name)
        (share,) = model.summary([read], hta=True).ranks
        wanted, overlap = case["steps_minus_last/temporal"][0], case["steps_minus_last/overlap"][0]
        assert 100 * share.compute_us / share.window_us == pytest.approx(wanted["compute_time_pctg"], abs=0.01)
        assert 100 * share.idle_us / share.window_us == pytest.approx(wanted["idle_time_pctg"], abs=0.01)
        if overlap["comp_comm_overlap_pctg"] is not None:
            assert share.overlap_percent == pytest.approx(overlap["comp_comm_overlap_pctg"], abs=0.01)


def host(cat: str, name: str, ts: float, dur: float) -> list[Any]:
    return [{"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur}]


def parsed(*events: list[Any], rank: int = 0) -> RankTrace:
    return trace.parse([document(*events, rank=rank)], where=f"rank{rank}.json")


def test_idle_is_split_by_what_the_host_did() -> None:
    read = parsed(
        kernel("gemm", 0, 100, launched=-10, n=1),
        host("cpu_op", "enumerate(DataLoader)#_MultiProcessingDataLoaderIter.__next__", 110, 200),
        host("python_function", "Python GC", 400, 50),
        host("python_function", "torch/serialization.py(944): save", 500, 100),
        host("user_annotation", "gloo:all_reduce", 700, 30),
        kernel("gemm", 1000, 100, launched=900, n=2),
    )
    (share,) = model.summary([read]).ranks
    assert share.idle_us == 900
    assert share.idle_launch_us == 800
    assert (share.idle_data_us, share.idle_gc_us) == (200, 50)
    assert (share.idle_checkpoint_us, share.idle_peer_us) == (100, 30)


def called(op: str, ts: float, dur: float, dims: Any, types: Any, tid: int = 1) -> list[Any]:
    """An operator of the host with the shapes of its arguments."""
    args = {"Input Dims": dims, "Input type": types}
    return [{"ph": "X", "cat": "cpu_op", "name": op, "ts": ts, "dur": dur, "tid": tid, "args": args}]


BF16 = ["c10::BFloat16"] * 3


def test_products_are_held_against_the_roofline() -> None:
    data = document(
        called("aten::addmm", 0, 20, [[4096], [8192, 4096], [4096, 4096], [], []], [*BF16, "Scalar", "Scalar"]),
        kernel("sm90_xmma_gemm_bf16", 30, 400, launched=5, n=1),
        called("aten::mm", 30, 20, [[16, 4096], [4096, 4096]], BF16[:2]),
        kernel("gemvx", 440, 20, launched=35, n=2),
        kernel("splitKreduce", 460, 5, launched=45, n=3),
        called("aten::mm", 60, 20, [[16, 4096], [4096]], BF16[:2]),  # no product of two matrices
        kernel("other", 470, 10, launched=65, n=4),
        called("aten::_scaled_mm", 90, 10, [[64, 64], [64, 64]], ["c10::Float8_e4m3fn"] * 2),
        kernel("fp8", 490, 10, launched=95, n=5),
        called("aten::mm", 110, 20, "[[16, 16], [16, 16]]", BF16[:2]),  # as older profilers wrote it
        called("aten::bmm", 150, 20, [[2, 8, 8], [2, 8, 8]], BF16[:2]),
        called("aten::mm", 160, 20, [[8, 8], [8, 8]], BF16[:2], tid=2),  # two at the same time
        kernel("whose", 510, 10, launched=165, n=6),
    )
    peaks = Peaks(tflops={"bfloat16": 989, "float8_e4m3fn": 1979}, memory_gb_per_s=3350, source="")
    roof = model.summary([trace.parse(pieces(data), where="t.json")], peaks=peaks).roofline
    assert roof is not None
    large, small, fp8 = roof.products
    assert (large.shape, large.bound, large.count) == ((8192, 4096, 4096), "compute", 1)
    assert large.tflops == pytest.approx(2 * 8192 * 4096 * 4096 / 400e-6 / 1e12)
    assert large.of_roof == pytest.approx(large.tflops / 989)
    assert (small.bound, small.device_us, small.dtype) == ("memory", 25, "bfloat16")
    num_bytes = 2 * (16 * 4096 + 4096 * 4096 + 16 * 4096)
    assert small.flop_per_byte == pytest.approx(2 * 16 * 4096 * 4096 / num_bytes)
    assert small.of_roof == pytest.approx(num_bytes / 25e-6 / 3.35e12)
    assert (fp8.dtype, fp8.peak_tflops) == ("float8_e4m3fn", 1979)
    assert roof.of_compute == pytest.approx((400 + 25 + 10) / (400 + 25 + 10 + 10 + 10))
    assert roof.memory_bound == pytest.approx((25 + 10) / 435)


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared traces are not here")
def test_the_products_of_a_real_trace_on_an_h100() -> None:
    report = explain.explain([str(CASES / "tracelens-timesformer-h100.json.gz")], with_facts=True).report
    assert report.facts is not None
    products = report.facts["trace"]["roofline"]["products"]
    large = [p for p in products if p["op"] == "aten::addmm" and p["shape"][0] > 20_000]
    assert large
    assert all(p["bound"] == "compute" and 0.6 < p["of_roof"] < 0.85 for p in large)
    (said,) = [f for f in report.findings if f.code == "TRC013"]
    assert (said.cause, said.severity.value) == ("memory-bound-products", "info")
    assert "aten::bmm 96x3137x3137x64" in said.evidence[0].text


def test_steps_begin_with_the_first_kernel_that_they_launch() -> None:
    read = parsed(
        host("user_annotation", "ProfilerStep#1", 0, 100),
        host("user_annotation", "ProfilerStep#2", 100, 100),
        kernel("gemm", 50, 100, launched=10, n=1),
        kernel("gemm", 250, 30, launched=110, n=2),
        kernel("Memcpy DtoH (Device -> Pinned)", 280, 20, launched=120, n=3),
    )
    first, second = model.summary([read]).steps
    assert (first.name, first.window_us, first.compute_us, first.idle_us) == ("ProfilerStep#1", 200, 100, 100)
    assert (second.window_us, second.compute_us, second.memory_us) == (50, 30, 20)


def test_collectives_of_rccl_are_named_by_their_annotation() -> None:
    read = parsed(
        host("user_annotation", "nccl:_reduce_scatter_base", 10, 50),
        kernel("ncclDevKernel_Generic(ncclDevKernelArgsStorage<4096ul>)", 100, 10, launched=20, n=1),
    )
    assert [c.name for c in model.summary([read]).collectives] == ["reduce_scatter"]


def test_fsdp_layers_show_what_the_prefetch_hides() -> None:
    read = parsed(
        host("user_annotation", "FSDP::all_gather (layers.3)", 0, 50),
        kernel("ncclDevKernel_AllGather_RING_LL", 100, 40, launched=20, n=1),
        kernel("gemm", 120, 100, launched=30, n=2),
    )
    (layer,) = model.summary([read]).layers
    assert (layer.layer, layer.all_gather_us, layer.exposed_all_gather_us) == ("layers.3", 40, 20)


@pytest.mark.parametrize(
    ("name", "written_for"),
    [
        ("void cutlass::Kernel2<cutlass_75_tensorop_bf16_s1688gemm_bf16_128x128_nn_align1>", 75),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", 90),
        ("ampere_sgemm_128x64_tn", 80),
        ("void at::native::vectorized_elementwise_kernel<4, float>", None),
        ("_ZN5flash16flash_fwd_kernelI23Flash_fwd_kernel_traitsILi128", None),
    ],
)
def test_kernels_say_for_which_architecture_they_were_written(name: str, written_for: int | None) -> None:
    assert model.architecture(name) == written_for


def test_damaged_events_are_counted_and_the_others_read() -> None:
    broken = TWO_STREAMS.replace(b'"dur": 60', b'"dur": 60..').replace(b'"ts": 210', b'"ts": "soon"')
    read = trace.parse(pieces(broken), where="t.json")
    assert list(read.start) == [100.25, 260]
    assert read.notes == ("2 damaged events in it were left out",)


def test_numbers_that_are_none_are_no_obstacle() -> None:
    odd = TWO_STREAMS.replace(b'"stream": 7', b'"est. achieved occupancy %": NaN, "stream": 7')
    assert len(trace.parse(pieces(odd), where="t.json").start) == 4


def test_what_takes_no_time_and_what_is_nested_without_end_are_no_obstacle(tmp_path: Path) -> None:
    nested = TWO_STREAMS.replace(b'"stream": 7', b'"deep": ' + b"[" * 100_000 + b"]" * 100_000 + b', "stream": 7', 1)
    assert len(trace.parse(pieces(nested), where="t.json").start) == 3
    (tmp_path / "trace.json").write_bytes(document(kernel("gemm", 5, 0)))
    result = CliRunner().invoke(app, ["explain", str(tmp_path / "trace.json"), "--facts"])
    assert result.exit_code == 0, result.output


def test_half_a_character_is_replaced() -> None:
    odd = TWO_STREAMS.replace(b'"gemm"', b'"ge\\ud800mm \\ud83d\\ude00"').replace(b'"dur": 60', b'"dur": NaN')
    assert trace.parse(pieces(odd), where="t.json").names[0] == "ge\ufffdmm \U0001f600"


def write_all_reduces(folder: Path, late: int) -> None:
    for rank, data in enumerate(all_reduces(late)):
        (folder / f"rank{rank}.json").write_bytes(data)


def test_an_archive_is_its_traces(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    write_all_reduces(tmp_path / "traces", late=1)
    for kind in ("gztar", "zip"):
        name = shutil.make_archive(str(tmp_path / "all"), kind, tmp_path / "traces")
        report = explain.explain([name]).report
        assert (report.findings[0].cause, report.findings[0].where.ranks) == ("straggler-rank", (1,))


def test_the_merged_trace_has_all_ranks_on_one_clock_and_the_findings(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_all_reduces(tmp_path / "in", late=2)
    merged = tmp_path / "all.json.gz"
    result = CliRunner().invoke(app, ["explain", str(tmp_path / "in"), "--perfetto", str(merged)])
    assert result.exit_code == 0, result.output
    events = json.loads(gzip.decompress(merged.read_bytes()))["traceEvents"]
    named = {e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert named == {"smoldiag", "rank 0", "rank 1", "rank 2", "rank 3"}
    assert len([e for e in events if e.get("cat") == "kernel"]) == 4 * 40
    assert [e["name"] for e in events if e["name"].startswith("TRC001 straggler-rank: rank 2 comes last")]
    assert len([e for e in events if e["name"] == "waits for rank 2 (all_reduce)"]) == 3 * 20


def test_a_step_of_all_ranks_is_drawn(tmp_path: Path) -> None:
    write_all_reduces(tmp_path, late=0)
    drawn = tmp_path / "step.svg"
    result = CliRunner().invoke(app, ["explain", str(tmp_path), "--plot", str(drawn)])
    assert result.exit_code == 0, result.output
    assert "rank 3" in drawn.read_text()


def test_what_has_no_timeline_is_not_drawn(tmp_path: Path) -> None:
    (tmp_path / "nccl.log").write_text("n0:1:1 [0] NCCL INFO Bootstrap : Using eth0:10.0.0.1<0>\n")
    result = CliRunner().invoke(app, ["explain", str(tmp_path / "nccl.log"), "--perfetto", str(tmp_path / "x.json")])
    assert isinstance(result.exception, SmoldiagError)


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared traces are not here")
def test_the_late_ranks_of_each_collective_are_named() -> None:
    report = explain.explain([str(CASES / "dlrm-v100-8ranks.tar.gz")], with_facts=True).report
    assert report.findings[0].cause == "straggler-rank"
    assert "rank 7 comes last to 4 of 5 all_to_all" in report.findings[0].message
    assert "ranks 4, 5 come last to 3 of 3 all_reduce" in report.findings[0].message
    assert report.facts is not None
    found = report.facts["trace"]["collectives"]
    assert {c["last_rank"] for c in found[:4]} == {7}
    assert all({4, 5} <= set(c["late_ranks"]) for c in found if c["name"] == "all_reduce")


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared traces are not here")
def test_a_real_step_without_its_loader_is_foretold() -> None:
    """The same training with 0 and with 4 workers of its loader."""

    def read(name: str) -> RankTrace:
        with gzip.open(CASES / name) as file:
            return trace.parse(iter(lambda: file.read(1 << 20), b""), where=name)

    slow = model.summary([read("kineto-resnet50-workers0-v100.json.gz")]).replay
    assert slow is not None
    (foretold,) = (w.step_us for w in slow.what_if if w.cause == "dataloader-stall")
    took = sorted(end - start for _, start, end in read("kineto-resnet50-workers4-v100.json.gz").steps)
    assert foretold == pytest.approx(took[len(took) // 2], rel=0.1)
