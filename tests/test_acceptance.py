"""Criteria and certificates; the history of runs."""

import json
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from smoldiag import criteria, history, rules
from smoldiag.cli.common import printed
from smoldiag.errors import SmoldiagError
from smoldiag.facts import Gpu, Host, Nic, PairRate
from smoldiag.facts.acceptance import Certificate, History, HostRun, PastRun
from smoldiag.findings import Finding
from smoldiag.model import history as model
from smoldiag.render import acceptance as render
from smoldiag.rules import Known
from tests.rules.acceptance import certificate, past
from tests.rules.probes import EIGHT, compute, gpus

TOML = """
name = "Two nodes"
[minimum]
gpus = 8
bfloat16_tflops = 650
[equal]
driver = "570.124.06"
[fleet.minimum]
nodes = 2
all_reduce_busbw_gbs = 300
"""


def host(name: str, driver: str = "570.124.06") -> Host:
    cards = tuple(Gpu(index=i, name="H100", serial=f"16{i}", vbios="96.00.74") for i in range(8))
    nics = (Nic(name="mlx5_0", kind="infiniband", firmware="28.39.1002", guid="a088:c203"),)
    return Host(name=name, gpus=cards, nics=nics, versions={"driver": driver}, ids={"serial": f"S{name}"})


def accepted(text: str, *hosts: Host, slow: bool = False, tmp_path: Path) -> tuple[Certificate, ...]:
    file = tmp_path / "criteria.toml"
    file.write_text(text)
    rates = [*EIGHT[:7], 400.0] if slow else EIGHT
    probes = compute(*(c for h in hosts for c in gpus(*rates, host=h.name))).probes
    of_hosts, fleet = criteria.figures(hosts, probes, (), (), host_of_rank=())
    return criteria.certificates(criteria.load(file), hosts, of_hosts, fleet)


def found(known: Known, code: str) -> list[Finding]:
    return [f for o in rules.run(known, [rules.RULES[code]]) for f in o.findings]


def test_a_node_is_accepted_when_all_is_met_and_measured(tmp_path: Path) -> None:
    made = accepted(TOML.partition("[fleet")[0], host("a"), host("b"), tmp_path=tmp_path)
    assert [(c.host, c.passed) for c in made] == [("a", True), ("b", True)]
    assert made[0].serials == {"serial": "Sa", "mlx5_0": "a088:c203"} | {f"GPU {i}": f"16{i}" for i in range(8)}
    assert made[0].firmware["GPU 3"] == "96.00.74"
    assert not found(Known(certificates=made), "ACC001") + found(Known(certificates=made), "ACC002")


def test_what_was_not_measured_is_not_met(tmp_path: Path) -> None:
    fleet = accepted(TOML, host("a"), host("b"), tmp_path=tmp_path)[-1]
    assert (fleet.host, fleet.passed) == ("", False)
    (finding,) = found(Known(certificates=(fleet,)), "ACC002")
    assert finding.message == "the fleet: all_reduce_busbw_gbs was not measured"


def test_the_slowest_gpu_of_a_node_counts_and_the_node_is_named(tmp_path: Path) -> None:
    slow = accepted(TOML, host("a"), slow=True, tmp_path=tmp_path)
    (finding,) = found(Known(certificates=slow[:1]), "ACC001")
    assert finding.message == "a: bfloat16_tflops is 400, required at least 650"
    other = accepted(TOML, host("a", "550.54"), tmp_path=tmp_path)
    assert [f.subject for f in found(Known(certificates=other[:1]), "ACC001")] == ["driver"]


def test_a_node_that_never_answered_has_a_certificate_too(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"minimum": {"gpus": 8}}')
    made = criteria.certificates(
        criteria.load(tmp_path / "c.json"), [host("a")], {"a": {"gpus": 8}}, {}, names=["a", "b"]
    )
    assert [(c.host, c.passed) for c in made] == [("a", True), ("b", False)]


def test_rates_of_pairs_are_figures() -> None:
    pairs = [
        PairRate(src=0, dst=1, src_host="a", dst_host="b", size_bytes=1, gb_per_s=g, round=0, confirming=False)
        for g in (1.0, 2.0)
    ]
    of_hosts, _ = criteria.figures([], None, [], pairs, host_of_rank=())
    assert of_hosts == {"a": {"send_gb_per_s": 2.0}, "b": {"receive_gb_per_s": 2.0}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no criteria"),
        ("[minimum]\nbfloat16_tflop = 3", "nothing measures bfloat16_tflop"),
        ("[minimum]\ngpus = 'many'", "no number"),
        ("[minimum]\ngpus = true", "no number"),
        ("[minimum]\ngpus = nan", "no number"),
        ("[least]\ngpus = 3", "'least' is no table"),
        ("minimum = 3", "minimum is no table"),
        ("[minimum", "no toml"),
    ],
)
def test_bad_criteria_are_a_sentence(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "criteria.toml"
    file.write_text(text)
    with pytest.raises(SmoldiagError, match=words):
        criteria.load(file)
    with pytest.raises(SmoldiagError, match="can't be read"):
        criteria.load(tmp_path / "none.toml")


def test_certificates_are_shown(tmp_path: Path) -> None:
    made = accepted(TOML, host("a"), tmp_path=tmp_path)
    wanted = criteria.load(tmp_path / "criteria.toml")
    text = printed(render.certificates(wanted, made), colour=False)
    assert "a: accepted against Two nodes" in text
    assert "all nodes together: NOT accepted" in text
    assert "GPU 7 167" in text
    assert "| bfloat16_tflops | at least 650 | 698 | met |" in render.as_markdown(wanted, made).replace("\\_", "_")
    assert json.loads(render.as_json(wanted, made))["accepted"] == ["a"]


# -- history


def test_runs_are_written_whole_and_read_back(tmp_path: Path) -> None:
    run = past("2026-11-25T10:00:00Z", a="passed", b="failed")
    file = history.record(tmp_path / "new" / "folder", run)
    again = history.read(file.parent)
    assert again.runs == (run,)
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    assert history.record(file.parent, run) != file


def test_spoilt_files_are_left_out_with_a_note(tmp_path: Path) -> None:
    good = history.record(tmp_path, past("2026-11-25T10:00:00Z", a="passed"))
    for name, content in (
        ("1", b""),
        ("2", good.read_bytes()[:60]),
        ("3", b'{"schema": "other/1", "created": "", "command": "", "verdict": "", "hosts": {}}'),
        ("4", b"[" * 100_000),
        ("5", b"\xff\x00"),
    ):
        (tmp_path / f"{name}{history.SUFFIX}").write_bytes(content)
    (tmp_path / f".{good.name}.part").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("not ours")
    read = history.read(tmp_path)
    assert (len(read.runs), len(read.notes)) == (1, 5)
    with pytest.raises(SmoldiagError, match="can't be read"):
        history.read(tmp_path / "none")


def _record_ten(folder: str) -> None:
    for i in range(10):
        history.record(Path(folder), past(f"2026-11-25T10:00:{i:02}Z", a="passed"))


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    workers = [get_context("spawn").Process(target=_record_ten, args=(str(tmp_path),)) for _ in range(3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
    read = history.read(tmp_path)
    assert (len(read.runs), read.notes) == (30, ())


def runs(marks: str, **figures: list[float]) -> History:
    status = {".": "passed", "F": "failed", "?": "unknown"}
    made = [
        PastRun(
            created=f"2026-11-{i + 1:02}T00:00:00Z",
            command="preflight",
            verdict="ok",
            hosts={
                "a": HostRun(
                    status=status[mark],
                    codes=("HST063",) if mark == "F" else (),
                    figures={name: values[i] for name, values in figures.items()},
                )
            },
        )
        for i, mark in enumerate(marks)
    ]
    return History(runs=tuple(made), where="H")


def test_a_node_that_fails_now_and_then_is_seen() -> None:
    (row,) = model.rows(runs("..F...F.?."))
    assert (row.failed, row.runs, row.marks, row.codes, row.flaky) == (2, 9, "..F...F.?.", ("HST063",), True)
    assert row.interval == pytest.approx((0.063, 0.547), abs=0.001)
    text = printed(render.history(runs("..F...F.?.")), colour=False)
    assert "2 of 9" in text
    assert "6% to 55%" in text


@pytest.mark.parametrize("marks", ["..........", "FFFFFFFF", ".F", "....F....", "F", ""])
def test_nodes_that_are_well_or_broken_are_not_flaky(marks: str) -> None:
    assert not found(Known(history=runs(marks)), "ACC003")


def test_a_figure_that_falls_is_seen_and_noise_is_not() -> None:
    steady = [700.0 + x for x in (3, -4, 2, 0, 5, -3, 1, 2, -2, 4)]
    assert not found(Known(history=runs("." * 10, bfloat16_tflops=steady)), "ACC004")
    falling = [*steady[:7], 610.0, 600.0, 590.0]
    (finding,) = found(Known(history=runs("." * 10, bfloat16_tflops=falling)), "ACC004")
    assert "fell from 701 to 600 (-14%)" in finding.message
    assert "bfloat16_tflops -14%" in printed(render.history(runs("." * 10, bfloat16_tflops=falling)), colour=False)


def test_the_history_in_other_forms() -> None:
    assert "| a | 2 of 4 |" in render.history_as_markdown(runs("F.F."))
    assert json.loads(render.history_as_json(runs("F.F.")))["nodes"][0]["failed"] == 2
    assert replace(certificate(None), host="x").passed is False
