"""`explain` on dumps, reports and stacks: from files to the report."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from smoldiag.cli import app
from tests.test_flight_recorder import Runs, entry, whole
from tests.test_parse_live_reports import GONE, PY_SPY, TABLE

run = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}).invoke
LONG_AGO_NS = 1_790_000_000_000_000_000
WRITTEN_S = LONG_AGO_NS / 1e9 + 60
LOG = (
    "node7:4711:4712 [0] NCCL INFO ncclCommInitRank comm 0x55 rank 2 nranks 4 cudaDev 0 nvmlDev 0 busId 1000 "
    "commId 0x9 - Init COMPLETE\n"
)


def written(folder: Path, name: str, made: object) -> None:
    data = pickle.dumps(made, 2) if not name.endswith(".json") else json.dumps(made).encode()
    (folder / name).write_bytes(data)
    os.utime(folder / name, (WRITTEN_S, WRITTEN_S))


def hung(folder: Path, *, suffix: str = "") -> None:
    """Ranks 0, 1 and 3 wait in the fifth operation, rank 2 has made four."""
    waits = {"state": "scheduled", "retired": False, "time_discovered_completed_ns": None}
    for rank in range(4):
        made = [entry(i) for i in range(4)] + ([] if rank == 2 else [entry(4, **waits)])
        written(folder, f"nccl_trace_rank_{rank}{suffix}", whole(*made))


def report(*names: Path) -> dict[str, Any]:
    result = run(app, ["explain", *map(str, names), "--format", "json", "--facts"])
    assert result.exit_code in (0, 1), result.output
    made: dict[str, Any] = json.loads(result.stdout)
    return made


@pytest.mark.parametrize("suffix", ["", ".pickle", ".json"])
def test_a_folder_of_dumps_names_the_rank_and_the_line(tmp_path: Path, suffix: str) -> None:
    hung(tmp_path, suffix=suffix)
    made = report(tmp_path)
    first = made["findings"][0]
    assert (first["cause"], first["where"]["ranks"]) == ("straggler-or-hung-rank", [2])
    assert "train.py:40" in first["message"]
    rows = made["facts"]["flight"]["table"]
    assert [(r["rank"], r["last_enqueued"], r["last_completed"], r["waits"]) for r in rows] == [
        (0, 5, 4, True),
        (1, 5, 4, True),
        (2, 4, 4, False),
        (3, 5, 4, True),
    ]


def test_a_log_beside_the_dumps_names_the_host(tmp_path: Path) -> None:
    hung(tmp_path)
    (tmp_path / "slurm.out").write_text(LOG)
    first = report(tmp_path)["findings"][0]
    assert first["where"]["hosts"] == ["node7"]


def test_a_prefix_of_host_and_rank_names_the_host(tmp_path: Path) -> None:
    hung(tmp_path)
    (tmp_path / "job.log").write_text("".join(f"node{r // 2}: [rank{r}]: step 4 loss 2.5\n" for r in range(4)))
    assert report(tmp_path)["findings"][0]["where"]["hosts"] == ["node1"]


def test_without_stacks_a_first_barrier_is_the_end_of_a_loop(tmp_path: Path) -> None:
    waits = {"state": "scheduled", "retired": False, "time_discovered_completed_ns": None}
    for rank in range(4):
        last = entry(4, **waits) | ({"profiling_name": "nccl:barrier", "input_sizes": [[1]]} if rank == 2 else {})
        made = whole(*(e | {"frames": []} for e in (*map(entry, range(4)), last)))
        written(tmp_path, f"nccl_trace_rank_{rank}", made)
    first = report(tmp_path)["findings"][0]
    assert (first["cause"], first["confidence"], first["where"]["ranks"]) == ("uneven-data-across-ranks", "likely", [2])


def test_the_picture_is_the_table_of_ranks(tmp_path: Path) -> None:
    hung(tmp_path)
    result = run(app, ["explain", str(tmp_path), "--facts"])
    assert (
        "0, default_pg (0): enqueued #5, started #4, completed #4; in all_reduce [3, 4] at train.py:40" in result.stdout
    )


def test_a_pickle_that_would_run_code_is_one_sentence(tmp_path: Path) -> None:
    written(tmp_path, "nccl_trace_rank_0", Runs(tmp_path / "made"))
    result = run(app, ["explain", str(tmp_path / "nccl_trace_rank_0")], catch_exceptions=True)
    assert not (tmp_path / "made").exists()
    assert "refused" in str(result.exception)


def test_one_bad_dump_among_good_ones_is_a_note(tmp_path: Path) -> None:
    hung(tmp_path)
    written(tmp_path, "nccl_trace_rank_9", Runs(tmp_path / "made"))
    made = report(tmp_path)
    assert made["findings"][0]["where"]["ranks"] == [2]
    assert any("refused" in note for note in made["notes"])
    assert not (tmp_path / "made").exists()


def test_ras_stacks_and_diagnostics_are_read(tmp_path: Path) -> None:
    (tmp_path / "ras.txt").write_text(TABLE.format(errors="INCOMPLETE") + GONE)
    (tmp_path / "stacks.txt").write_text(PY_SPY)
    (tmp_path / "out.txt").write_text("n1:7 NCCL DIAG [INFO] ECC: 2 uncorrected volatile errors on rank(s) {3}\n")
    made = report(tmp_path)
    assert {"HNG034", "HNG035"} <= {f["code"] for f in made["findings"]}
    assert made["findings"][0]["where"]["ranks"] == [21]
