"""Metrics of runs: what readers take from files, what the curves show, and that sound ones give no alarm."""

import json
import math
import random
from pathlib import Path

import pytest

from smoldiag.errors import SmoldiagError
from smoldiag.explain import explain
from smoldiag.explained import as_facts
from smoldiag.facts.series import Series
from smoldiag.findings import Severity
from smoldiag.model import loss, series
from smoldiag.parse import metrics, step_lines
from smoldiag.render import series as rendered
from tests.rules import series as made

TRAINERS = Path(__file__).parent / "logs" / "trainers"


def parsed(text: str, where: str = "x.csv") -> tuple[Series, ...]:
    return metrics.parse(text.splitlines(), where=where)


def pace(values: list[float]) -> series.Pace:
    found = series.pace(parsed(made.table(values))[0])
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "source", "unit", "rows", "columns"),
    [
        ("torchtitan.log", "torchtitan", "tokens/s/GPU", 11, "step time_s rank rate loss grad_norm"),
        ("megatron.log", "Megatron-LM", "", 12, "step time_s step_s loss grad_norm"),
        ("nanotron.log", "nanotron", "tokens/s/GPU", 12, "step tokens time_s rate step_s loss grad_norm"),
        ("deepspeed.log", "DeepSpeed", "samples/s", 6, "step time_s rate"),
        ("deepspeed-pipe.log", "DeepSpeed", "samples/s", 6, "step rate step_s loss"),
        ("transformers-5.24.log", "Hugging Face Trainer", "", 12, "tokens elapsed_s loss grad_norm"),
        ("trainer_state.json", "Hugging Face Trainer", "", 8, "step tokens elapsed_s loss grad_norm"),
        ("metrics.csv", "Lightning CSV", "samples/s", 20, "step elapsed_s rate loss"),
        ("wandb-export.csv", "W&B export", "tokens/s/GPU", 8, "step rate"),
        ("run-7_tag-train_loss.csv", "TensorBoard export", "", 8, "step time_s loss"),
    ],
)
def test_logs_of_trainers(name: str, source: str, unit: str, rows: int, columns: str) -> None:
    known = explain([str(TRAINERS / name)]).known.series
    assert known is not None
    (found,) = known
    assert (found.source, found.rate_unit, found.rows) == (source, unit, rows)
    assert list(found.columns) == columns.split()


@pytest.mark.parametrize("name", sorted(p.name for p in TRAINERS.iterdir()))
def test_short_sound_logs_raise_no_alarm(name: str) -> None:
    assert not [f for f in explain([str(TRAINERS / name)]).report.findings if f.severity is not Severity.INFO]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            " iteration      100/     500 | elapsed time per iteration (ms): 1234.5 | lm loss: 2.3E+00",
            {"step": 100, "step_s": 1.2345, "loss": 2.3},
        ),
        ("ep 2 train, step 37, ce 5.4, mem_usage:cuda:3 6.7GB, 3.169 sec/step", {"step_s": 3.169, "rank": 3}),
        ("step: 12 loss: 2.1 step_time: 0.512s data_time: 0.101s", {"step_s": 0.512, "data_s": 0.101, "loss": 2.1}),
        ("Iter 40: loss 3.1, step time: 480 ms", {"step": 40, "step_s": 0.48, "loss": 3.1}),
        ("step 8 loss=1.2 4.00it/s", {"step_s": 0.25}),
        ("step: 5 loss: 2.0 tokens/s: 12.5K", {"rate": 12_500}),
        ("step: 5 loss: 2.0 tokens/s/gpu: 12,500", {"rate": 12_500}),
        ("{'loss': nan, 'grad_norm': 1.5, 'learning_rate': 5e-05, 'epoch': 0.5}", {"loss": math.nan, "grad_norm": 1.5}),
    ],
)
def test_lines_of_steps(line: str, expected: dict[str, float]) -> None:
    found = step_lines.line(line)
    assert found is not None
    for name, value in expected.items():
        assert found.values[name] == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize(
    "line",
    [
        "[titan] INFO - validate step: 50  loss:  9.8123  memory: 22.55GiB(23.74%)  tps: 9,876",
        "step 3: eval loss 2.31",
        "{'eval_loss': 2.1, 'epoch': 1.0}",
        "{'loss': '1.5.2', 'grad_norm': '1.0', 'epoch': '0.1'}",
        "{'train_runtime': '0.19', 'train_samples_per_second': '2497', 'train_loss': '4.1', 'epoch': '0.9'}",
        "saved checkpoint of step 100 in 3.2 s",
        "NCCL INFO comm 0x55 rank 3 nranks 8",
    ],
)
def test_lines_that_tell_of_no_training_step(line: str) -> None:
    assert step_lines.line(line) is None


def test_shapes_of_tables() -> None:
    long = parsed("run_name,tokens,loss\na,1,3.0\nb,1,3.1\n" * 1 + "a,2,2.9\nb,2,3.0\na,3,2\nb,3,2\na,4,2\nb,4,2\n")
    assert [(s.name, s.rows) for s in long] == [("a", 4), ("b", 4)]
    wide = parsed("Step,throughput_drops,throughput_no_drops\r\n" + "".join(f"{i},{i}5,{i}6\r\n" for i in range(1, 6)))
    assert [(s.name, s.column("rate")[0]) for s in wide] == [("throughput_drops", 15), ("throughput_no_drops", 16)]
    board = '"consumed_tokens","a - _step","a - lm_loss","a - lm_loss__MIN","b - _step","b - lm_loss"\n' + "".join(
        f'"{i * 8}","{i}","2.5","2.4",,\n"{i * 8 + 4}",,,,"{i}","2.6"\n' for i in range(1, 6)
    )
    assert [(s.name, s.rows, s.column("step")[1]) for s in parsed(board)] == [("a", 5, 2), ("b", 5, 2)]
    times = parsed("iteration,step time (ms),data_time_ms\n" + "".join(f"{i},{500 + i},20\n" for i in range(5)))
    assert times[0].column("step_s")[1] == pytest.approx(0.501)
    assert times[0].column("data_s")[1] == pytest.approx(0.02)


def test_columns_without_a_telling_name_are_losses_where_they_fall_like_one() -> None:
    falls = "".join(f'"{i}","{2.4 + 8 * math.exp(-i / 5)}","1","2"\n' for i in range(60))
    (found,) = parsed('"Step","TP2","TP=2__MIN","TP=2__MAX"\n' + falls)
    assert (found.name, found.source, found.has("loss")) == ("TP2", "W&B export", True)
    with pytest.raises(ValueError, match="no metrics"):
        parsed("Step,temperature\n" + "".join(f"{i},{40 + i % 3}\n" for i in range(60)))


def test_json_of_any_shape(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": 3.0 - i / 10, "tokens_per_sec": 1000.0 + i} for i in range(10)]
    for text in (
        json.dumps(rows),
        "\n".join(map(json.dumps, rows)),
        json.dumps({"run a": rows}),
        json.dumps({name: [r[name] for r in rows] for name in rows[0]}),
    ):
        assert metrics.looks_like("x.json", text.encode()[:4096])
        (found,), note = metrics.from_json(text.encode(), where="x.json")
        assert (found.rows, found.column("rate")[1], note) == (10, 1001.0, "")
    cut = json.dumps({"log_history": rows})[:400]
    (found,), note = metrics.from_json(cut.encode(), where="trainer_state.json")
    assert found.rows == 7
    assert note == "trainer_state.json: cut off; its 7 whole rows are read"


@pytest.mark.parametrize(
    "content", ["", "{", "[1, 2", "step,loss\n", "step,throughput\nx,y\n", "\x00\x01" * 99, "[[]]"]
)
def test_what_holds_no_metrics_is_a_sentence(content: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    with pytest.raises(SmoldiagError):
        explain([str(path)])


def test_a_cut_and_torn_table_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    lines = made.HEALTHY.splitlines()
    lines[300:310] = ["", "run,301", "garbage", "run,x,y", "run,305,NaN", "run,306,", "run,307,-5", "run,308,1e308"]
    (tmp_path / "a.csv").write_text("\r\n".join(lines)[:-9])
    report = explain([str(tmp_path / "a.csv")]).report
    assert not [f for f in report.findings if f.severity is not Severity.INFO]


TORN = [
    b".",
    b"1.5.2",
    b":",
    b"7",
    b"': '",
    b"e",
    b"nan",
    b"-1",
    b"1e308",
    b"",
    b"\xff",
    b'"',
    b",",
    b"\n",
    b"{",
    b"}",
    b"step",
]


@pytest.mark.parametrize("name", sorted(p.name for p in TRAINERS.iterdir()))
@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_give_a_report_or_a_sentence(name: str, seed: int, tmp_path: Path) -> None:
    random_ = random.Random(seed)
    content = bytearray((TRAINERS / name).read_bytes())
    for _ in range([1, 5, 30, 200][seed]):
        at = random_.randrange(len(content) + 1)
        content[at : at + random_.choice([0, 1, 5, 40])] = random_.choice(TORN)
    (tmp_path / name).write_bytes(content)
    try:
        explained = explain([str(tmp_path / name)], with_facts=True)
    except SmoldiagError:
        return
    assert not [c for c in explained.report.checks if c.status.value == "crashed"]
    list(rendered.figures(explained.known.series or ()))


def test_long_series_are_thinned_with_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_ROWS", 400)
    (tmp_path / "a.csv").write_text(made.HEALTHY)
    explained = explain([str(tmp_path / "a.csv")])
    assert explained.known.series is not None
    assert explained.known.series[0].rows <= 400
    assert any("one of 4 rows is kept" in note for note in explained.notes)


def test_a_log_is_read_from_where_its_steps_begin(tmp_path: Path) -> None:
    before = "\n".join(f"node0:1:1 [0] NCCL INFO Channel {i:02d}/64 : 0 1 2 3 4 5 6 7" for i in range(200))
    (tmp_path / "job.log").write_text(before + "\n" + made.log(made.STEADY))
    explained = explain([str(tmp_path / "job.log")])
    assert explained.known.series is not None
    assert explained.known.series[0].where == "job.log:201"
    assert explained.known.series[0].rows == 80


def test_figures_of_a_known_series() -> None:
    values = [100.0] * 1020
    for i in range(100, 1000, 90):  # 10 steps that take 9 steps longer
        values[i] = 10.0
    values[0] = 1.0
    found = pace(values)
    assert (found.warm_up, found.rows, found.median) == (20, 1000, 100.0)
    assert found.harmonic == pytest.approx(1000 / (990 / 100 + 10 / 10))
    assert found.time_lost == pytest.approx(90 / 1090)
    assert [(p.every, p.offset, p.dips) for p in found.periods] == [(90, 11, 10)]
    assert not found.irregular


def test_stretches_are_found_where_they_begin() -> None:
    found = pace(made.speeds(made.collapse))
    assert [(x.first, x.last) for x in found.stretches] == [(21, 450), (451, 880), (881, 1000)]
    assert pace(made.speeds(made.throttled)).stretches[1].first == 601


def test_a_change_tells_the_time_of_day() -> None:
    values = made.speeds(made.throttled)
    text = "_step,_timestamp,step_time\n" + "".join(
        f"{i},{1772712000 + i},{6144 / v}\n" for i, v in enumerate(values, 1)
    )
    (finding,) = made_findings(text)
    assert "from step 601 on (since 2026-03-05 12:10:01)" in finding


def made_findings(*texts: str) -> list[str]:
    from smoldiag import rules

    known = made.read(*texts)
    outcomes = rules.run(known, rules.select(("STP02", "STO", "LOS")))
    return [f.message for o in outcomes for f in o.findings if f.severity is not Severity.INFO]


def test_one_slope_is_a_drift_and_no_change() -> None:
    found = pace(made.speeds(made.drifting))
    assert len(found.stretches) == 1
    assert found.drift == pytest.approx(-0.25, abs=0.02)


def test_a_schedule_and_chance_are_told_apart() -> None:
    both = pace(made.speeds(lambda step, v: made.checkpoints(step, made.narrow(0.6)(step, v))))
    assert [p.every for p in both.periods] == [50]
    assert len(both.irregular) >= len(made.OFTEN) - 3


def test_every_tenth_step_gives_the_same_rates() -> None:
    rows = made.table(made.speeds(made.narrow(0.4), steps=20_000)).splitlines()
    whole, part = (series.pace(parsed("\n".join(text))[0]) for text in (rows, rows[:1] + rows[1::3]))
    assert whole is not None
    assert part is not None
    assert part.sampled == pytest.approx(1 / 3, abs=0.01)
    assert part.median == pytest.approx(whole.median, rel=0.001)


def test_the_same_steps_in_two_runs() -> None:
    (a,), (b,), (c,) = (parsed(t) for t in (made.STALLS, made.SAME_STALLS, made.table(made.speeds(made.narrow(0.3)))))
    same, other = series.replay(a, b), series.replay(a, c)
    assert same is not None
    assert other is not None
    assert (same.shared, same.of_a, same.is_sure) == (len(made.STALLED), len(made.STALLED), True)
    assert same.by_chance == pytest.approx(17 * 17 / 980)
    assert not other.is_sure
    assert series.same_run(a, a)


@pytest.mark.parametrize(
    ("name", "count"), [("3B-old-nn1-fwedu", 1), ("3B-nn48-mbs3", 48), ("16nodes", 16), ("48nn", 48), ("cnn12x", None)]
)
def test_nodes_by_name(name: str, count: int | None) -> None:
    (found,) = parsed(made.table([1.0] * 5, name=name))
    assert series.nodes(found) == count


def test_losses_paired_at_equal_tokens() -> None:
    (a,), (b,) = (parsed(t) for t in (made.SOUND, made.losses(made.higher(0.04), name="tp2", seed=2)))
    found = loss.gap(a, b)
    assert found is not None
    assert (found.above, found.below, found.shape) == ("tp2", "run", "constant")
    assert found.mean == pytest.approx(0.04, abs=0.001)
    assert found.positive == 1.0
    assert min(found.noises) > 5 * found.std / math.sqrt(2) / 2
    told = series.tokens_per_step(a)
    assert told is not None
    assert (told.per_step, told.exact) == (2_359_296, True)


def test_steps_that_start_over_with_each_epoch_go_on() -> None:
    first, second = made.log(made.UNEVEN), made.log(made.STEADY)
    (found,) = parsed(f"{first}\n{second}")
    assert [p.step for p in series.points(found)] == list(range(160))
    assert loss.joins(found) == ()
    of_both = series.pace(found)
    assert of_both is not None
    assert len(of_both.irregular) == 5


def test_a_resume_within_one_file() -> None:
    first, again = made.losses(rows=500).splitlines(), made.losses(rows=500, first=480, seed=4).splitlines()
    (found,) = parsed("\n".join((*first, *again[1:])))
    (join,) = loss.joins(found)
    assert (join.at, join.repeated, join.is_clean) == (480, 20, True)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scatter", [0.003, 0.02, 0.15, "heavy", "lengths"])
def test_sound_runs_of_any_scatter_raise_no_alarm(seed: int, scatter: float | str) -> None:
    random_ = random.Random(seed)
    steps = random_.choice([60, 400, 3000])

    def noisy() -> float:
        if scatter == "heavy":
            return math.exp(-abs(random_.gauss(0, 0.1)))
        if scatter == "lengths":
            return random_.choice([0.85, 0.95, 1.0, 1.05, 1.2])
        return math.exp(random_.gauss(0, float(scatter)))

    assert made_findings(made.table([250.0 * noisy() * (0.3 if i < 3 else 1) for i in range(steps)])) == []


@pytest.mark.parametrize("seed", range(4))
def test_sound_losses_raise_no_alarm(seed: int) -> None:
    texts = [made.losses(name=f"run {i}", seed=10 * seed + i, rows=[300, 1000][i % 2]) for i in range(3)]
    assert made_findings(*texts) == []


def test_facts_have_figures_and_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(made.STALLS)
    (tmp_path / "b.csv").write_text(made.SAME_STALLS)
    explained = explain([str(tmp_path)], with_facts=True)
    facts = as_facts(explained.known)["series"]
    json.dumps(facts)
    assert facts["runs"][0]["pace"]["dips"]["irregular"] == len(made.STALLED)
    assert facts["replays"][0]["shared"] == len(made.STALLED)
    assert len(json.dumps(facts)) < 20_000
    assert explained.known.series is not None
    shown = list(rendered.figures(explained.known.series))
    assert any("17 at the same step" in line for line in shown)
