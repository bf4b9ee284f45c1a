"""From files to the report: what is opened, what is left alone, what is said of what can't be read."""

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from smoldiag import explain as explaining
from smoldiag.cli import app
from smoldiag.collect import inputs
from smoldiag.errors import SmoldiagError

run = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}).invoke
LINE = "node1:11:12 [0] NCCL INFO Using network IB"


def lines(path: Path) -> list[str]:
    (source,) = inputs.find([str(path)]).sources
    return list(source.lines())


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, bytes])
def test_text_is_read_compressed_or_not(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / "log").write_bytes(pack(b"one\r\n\x1b[31mtwo\x1b[0m\n10%\r50%\r100%\nno end"))
    assert lines(tmp_path / "log") == ["one", "two", "100%", "no end"]


def test_utf16_and_nul_bytes_are_read(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes("one\ntwo\n".encode("utf-16"))
    assert lines(tmp_path / "log") == ["one", "two"]
    (tmp_path / "log").write_bytes(b"one\x00\x00\ntwo\xff\n")
    assert lines(tmp_path / "log") == ["one", "two\ufffd"]


def test_a_truncated_gz_gives_what_is_there_and_a_note(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b"line %d %d\n" % (i, i * i) for i in range(100_000)))
    (tmp_path / "log.gz").write_bytes(whole[: len(whole) // 2])
    (source,) = inputs.find([str(tmp_path / "log.gz")]).sources
    assert len(list(source.lines())) > 1000
    assert "ends early" in source.problems[0]


def test_a_bomb_is_left_alone(tmp_path: Path) -> None:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=9) as file:
        for _ in range(300):
            file.write(b"\x00" * 2**20)
    (tmp_path / "log.gz").write_bytes(out.getvalue())
    (source,) = inputs.find([str(tmp_path / "log.gz")]).sources
    with pytest.raises(SmoldiagError, match="which no log does"):
        list(source.lines())


def test_weights_in_a_folder_are_counted_and_left_alone(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32"}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(100))
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04" + bytes(200))
    (tmp_path / "b.pt").write_bytes(b"PK\x03\x04" + bytes(200))
    (tmp_path / "rank10.log").write_text(LINE)
    (tmp_path / "rank2.log").write_text(LINE)
    found = inputs.find([str(tmp_path)])
    assert [Path(s.name).name for s in found.sources] == ["rank2.log", "rank10.log"]
    assert {kind: count for kind, count, _ in found.left_alone} == {
        "checkpoint or archive (zip)": 2,
        "weights (safetensors)": 1,
    }
    result = run(app, ["explain", str(tmp_path)])
    assert result.exit_code == 0
    assert "left alone: 2 x checkpoint or archive (zip)" in result.output


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02\x03" * 500, b"The quick brown fox.\n", b"\x1f\x8b\x08"])
def test_what_is_nothing_known_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "thing").write_bytes(content)
    result = run(app, ["explain", str(tmp_path / "thing")])
    assert isinstance(result.exception, SmoldiagError)
    assert "\n" not in str(result.exception)
    assert "thing" in str(result.exception)


def test_no_such_file_is_one_sentence() -> None:
    result = run(app, ["explain", "/no/such/file"])
    assert isinstance(result.exception, SmoldiagError)
    assert str(result.exception) == "/no/such/file: No such file or directory"


def test_standard_input_is_read() -> None:
    result = run(app, ["explain", "-"], input=LINE + "\n")
    assert result.exit_code == 0
    assert "standard input, 1 lines" in result.output


def test_markdown_holds_the_picture(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(LINE)
    result = run(app, ["explain", str(tmp_path / "log"), "--format", "markdown"])
    assert "| network | IB" in result.output


def test_a_job_is_found_through_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slurm-4711.out").write_text("[rank3]: step 7 loss 2.1\n")
    for name, says in (
        (
            "scontrol",
            f"JobId=4711 JobName=train UserId=me(1) JobState=OUT_OF_MEMORY StdErr=/gone/%j.err "
            f"StdOut={tmp_path}/slurm-%j.out",
        ),
        ("sacct", "JobID|JobName|State|ExitCode|NodeList\n4711|train|OUT_OF_MEMORY|0:125|node[3-4]"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{says}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    report = json.loads(run(app, ["explain", "--job", "4711", "--format", "json"]).output)
    assert report["findings"][0]["cause"] == "host-oom-sigkill"
    assert report["notes"] == ["/gone/4711.err: Slurm names it as the job's output, and it is not here"]


@pytest.mark.parametrize("number", ["x", "1;ls", ""])
def test_a_job_without_slurm_is_one_sentence(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    result = run(app, ["explain", "--job", number or "7"])
    assert isinstance(result.exception, SmoldiagError)


def test_of_a_long_log_a_reader_gets_the_lines_that_it_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = "   100.0    {n}.00   {n}.00      0"
    row = "{size:12d}{count:12d}     float     sum      -1" + half + half + "\n"
    rows = "".join(row.format(size=1 << n, count=1 << (n - 2), n=n) for n in range(10, 20))
    (tmp_path / "job.log").write_text("step 1 loss 2.0\n" * 50 + "# nThread 1 nGpus 8 minBytes 8\n" + rows)
    short = explaining.explain([str(tmp_path / "job.log")]).known.tables
    monkeypatch.setattr(explaining, "MAX_TEXT_BYTES", 10)
    long = explaining.explain([str(tmp_path / "job.log")]).known.tables
    assert short is not None
    assert long is not None
    assert [(t.where, len(t.rows)) for t in long.bandwidth] == [(t.where, len(t.rows)) for t in short.bandwidth] != []
