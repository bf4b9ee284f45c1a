"""Curves of run folders."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from smoldiag.cli import app
from tests import run_folders


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_parts_ranks_and_pace_are_drawn(ending: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = run_folders.write(tmp_path / "run", ranks=16, steps=40, added_ms={"data": 300.0}, on=(3,), every=5)
    target = tmp_path / f"run{ending}"
    done = CliRunner().invoke(app, ["explain", str(folder), "--plot", str(target)])
    assert done.exit_code == 0, done.output
    assert target.stat().st_size > 10_000
    if ending == ".svg":
        assert "dataloader-stall" in target.read_text()


def test_a_run_without_a_whole_step_has_no_curve(tmp_path: Path) -> None:
    folder = run_folders.write(tmp_path / "run", steps=1)
    lines = (folder / "steps" / "all.jsonl").read_text().splitlines()
    (folder / "steps" / "all.jsonl").write_text(lines[0][:80] + "\n")
    done = CliRunner().invoke(app, ["explain", str(folder), "--plot", str(tmp_path / "run.png")])
    assert done.exit_code != 0
    assert not (tmp_path / "run.png").exists()
