"""Traces of torch.profiler: read in pieces, and what the devices did."""

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smoldiag import explain
from smoldiag.errors import SmoldiagError
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
        assert 100 * share.compute_us / share.window_us == pytest.approx(wanted["compute_time_pctg"], abs=0.05)
        assert 100 * share.idle_us / share.window_us == pytest.approx(wanted["idle_time_pctg"], abs=0.05)
        if overlap["comp_comm_overlap_pctg"] is not None:
            assert share.overlap_percent == pytest.approx(overlap["comp_comm_overlap_pctg"], abs=0.05)
