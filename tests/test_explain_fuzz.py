"""Whatever is given, `explain` answers with a report or a sentence, soon."""

import gzip
import random
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.explain_fuzz import MARKS, answered, mutated
from smoldiag.explain import explain
from smoldiag.facts import Series
from smoldiag.model import series
from smoldiag.parse import log, log_origin
from tests import run_folders
from tests.causes import LISTED

LINES = sorted({line for _, text in LISTED for line in text.split("\n") if line})
LIMIT_S = 10.0  # of one example, on a busy machine

telling = st.sampled_from(LINES)
mangled = st.tuples(telling, st.integers(0, 400), st.sampled_from(MARKS)).map(
    lambda x: x[0][: x[1]] + x[2] + x[0][x[1] :]
)
cut = st.tuples(telling, st.integers(0, 300), st.integers(0, 300)).map(lambda x: x[0][min(x[1:]) : max(x[1:])])
logs = st.lists(st.one_of(telling, mangled, cut, st.text(max_size=200)), max_size=40).map("\n".join)
contents = st.one_of(
    logs.map(lambda text: text.encode("utf-8", "surrogatepass")),
    logs.map(lambda text: text.encode("utf-16", "surrogatepass")),
    logs.map(lambda text: gzip.compress(text.encode("utf-8", "surrogatepass"))),
    st.binary(max_size=6000),
    st.tuples(
        st.sampled_from([b"\x1f\x8b\x08", b"\x80\x02}q\x00", b"{", b"[", b"BZh9", b"\xfd7zXZ\x00", b"PK\x03\x04"]),
        st.binary(max_size=500),
    ).map(b"".join),
)
relaxed = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))


@relaxed
@given(contents)
def test_any_file_gives_a_report_or_a_sentence(content: bytes) -> None:
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        path = Path(folder, "job.log")
        path.write_bytes(content)
        answered(path)
    assert time.monotonic() - began < LIMIT_S


@relaxed
@given(logs)
def test_any_text_has_facts(text: str) -> None:
    found = log.parse(text)
    assert [e.order for e in found.events] == sorted(e.order for e in found.events)
    assert all(e.count >= 1 and e.text.isprintable() for e in found.events)


@given(st.text(max_size=400))
def test_any_line_has_an_origin(line: str) -> None:
    assert log_origin.origin(line) == log_origin.origin(line + "\n")


@pytest.mark.parametrize(
    "line", ["a" * 200_000, "[" * 50_000, "NCCL INFO " + "x" * 100_000, "connect to " * 20_000, "0" * 99_999]
)
def test_long_lines_are_quick(line: str) -> None:
    began = time.monotonic()
    log.parse(f"{line}\n{line}")
    assert time.monotonic() - began < LIMIT_S


def test_mutated_files_are_answered(tmp_path: Path) -> None:
    """`python -m benchmarks.explain_fuzz FOLDER` does this for minutes."""
    chance = random.Random(5)
    files = sorted((Path(__file__).parent / "logs").glob("*.*"))
    for _ in range(40):
        made = mutated(chance, files, tmp_path)
        began = time.monotonic()
        answered(made.path)
        assert time.monotonic() - began < LIMIT_S, made


def test_damaged_records_of_a_run_are_passed_over(tmp_path: Path) -> None:
    run = run_folders.write(tmp_path / "run", steps=10)
    good = explain([str(run)])
    record = (run / "steps" / "all.jsonl").read_text().splitlines()[0]
    bad = [
        record.replace('"step_us": ', '"step_us": -'),
        record.replace('"all", 1048576, 1000.0,', '"all", 1048576, "late",'),
        record.replace('"phases_us": {', '"phases_us": [{').replace('}, "collectives"', '}], "collectives"'),
        '{"kind": "step", "step_us": ' + "[" * 5000,
        '{"kind": "end", "rank": 0, "time": 1.0, "step": null}',
        '{"kind": "sample", "rank": 0, "time": 1.0, "peers": [1]}',
    ]
    with (run / "steps" / "all.jsonl").open("a") as file:
        file.write("\n".join(bad) + "\n")
    (run / "run.json").write_text('{"schema": "smoldiag.run/1", "world": [], "run": 3, "backend": {"a": 1}}')
    found = explain([str(run)])
    assert found.known.run
    assert good.known.run
    assert found.known.run.steps == good.known.run.steps
    assert any("run.json" in note and "damaged" in note for note in found.notes)


@pytest.mark.parametrize("line", ["{'loss': '1.5.2', 'epoch': '0.1'}", '{"step": 1, "loss": ' + "[" * 5000 + "}"])
def test_damaged_metrics_are_passed_over(tmp_path: Path, line: str) -> None:
    (tmp_path / "log").write_text("\n".join([line, *(f"step {i} loss 2.5 step_time: 0.5 s" for i in range(20))]))
    found = explain([str(tmp_path / "log")])
    assert [s.rows for s in found.known.series or ()] == [20]


@pytest.mark.parametrize(("name", "nodes"), [("3B-nn48-mbs3", 48), ("nn016", 16), ("nn0", None), ("0 nodes", None)])
def test_a_run_has_no_zero_nodes(name: str, nodes: int | None) -> None:
    assert series.nodes(Series(where="x:1", name=name, columns={"step": (1.0,)})) == nodes
