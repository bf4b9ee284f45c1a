"""Two of a kind: equal ones show no difference, and what differs is named with its likeliest reason first."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from smoldiag import bundle as archives
from smoldiag import compare as comparing
from smoldiag import settings
from smoldiag.bundle import Bundle
from smoldiag.cli import app
from smoldiag.errors import SmoldiagError
from smoldiag.facts import Cluster, Env, Gpu, Host, Limits, Nic, System
from smoldiag.facts.comparison import AREAS, Change
from smoldiag.findings import Severity, Verdict
from smoldiag.model import paired
from tests import run_folders
from tests.rules.bench import MIB, result, saved
from tests.test_traces import document, kernel
from tests.test_trainer import trained

run = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}).invoke
LOG = """node1:11:12 [0] NCCL INFO NCCL version 2.27.5+cuda12.9
node1:11:12 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [RO]; OOB eth0:10.0.0.1<0>
node1:11:12 [0] NCCL INFO Using network IB
node1:11:12 [0] NCCL INFO ncclCommInitRank comm 0x1 rank 0 nranks 2 cudaDev 0 nvmlDev 0 busId 1000 - Init COMPLETE
"""
TABLE = """# nThread 1 nGpus 8 minBytes 1048576 maxBytes 1073741824 step: 2(factor) warmup iters: 5 iters: 20
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
"""


def causes(a: Path, b: Path) -> list[str]:
    """Of what is at warning or above, the likeliest first."""
    found = comparing.compare(str(a), str(b)).report.findings
    return [f.cause for f in found if f.severity is not Severity.INFO]


def host(name: str = "node0", **facts: Any) -> Host:
    nics = (Nic(name="mlx5_0", kind="infiniband", gbit_per_s=400.0, up=True),)
    given = {"nics": nics, "versions": {"nccl": "2.27.5", "driver": "570.133.20"}, "limits": Limits(cgroup_cpus=-1.0)}
    return Host(name=name, **(given | facts))  # type: ignore[arg-type]


# -- runs


@pytest.mark.parametrize("noise", [0.005, 0.03, 0.15])
def test_equal_runs_do_not_differ(tmp_path: Path, noise: float) -> None:
    first = run_folders.write(tmp_path / "first", noise=noise)
    for seed in range(1, 6):
        again = run_folders.write(tmp_path / str(seed), seed=seed, noise=noise)
        found = comparing.compare(str(first), str(again))
        assert not found.report.findings
        assert not any(m.significant for m in found.comparison.metrics)


def test_a_small_but_sure_difference_is_found(tmp_path: Path) -> None:
    a = run_folders.write(tmp_path / "a", noise=0.01)
    b = run_folders.write(tmp_path / "b", noise=0.01, seed=1, added_ms={"forward": 30.0})
    found = comparing.compare(str(a), str(b))
    (step,) = (m for m in found.comparison.metrics if m.kind == "step")
    assert step.significant
    assert step.change_percent == pytest.approx(30 / 515 * 100, abs=1)
    assert step.low is not None
    assert step.high is not None
    assert step.low < 30 / 515 * 100 < step.high
    assert [f.cause for f in found.report.findings] == ["compute-slower", "slower-than-before"]


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ({"added_ms": {"data": 80.0}}, "dataloader-stall"),
        ({"added_ms": {"checkpoint": 900.0}, "every": 10}, "checkpoint-stall"),
        ({"added_ms": {"gc": 60.0}, "on": (1,)}, "gc-stragglers"),
        ({"added_ms": {"forward": 100.0}, "on": (2,)}, "straggler-rank"),
        ({"transfer": 3.0}, "communication-slower"),
    ],
)
def test_the_part_that_grew_is_named_first(tmp_path: Path, fault: dict[str, Any], cause: str) -> None:
    a = run_folders.write(tmp_path / "a")
    b = run_folders.write(tmp_path / "b", seed=1, **fault)
    found = comparing.compare(str(a), str(b)).report.findings
    assert found[0].cause == cause
    if on := fault.get("on"):
        assert found[0].where.ranks == on
        assert found[0].where.hosts == (f"node{on[0] // 2}",)


def test_rare_long_steps_are_stalls_and_not_a_slower_step(tmp_path: Path) -> None:
    a = run_folders.write(tmp_path / "a", steps=300)
    b = run_folders.write(tmp_path / "b", steps=300, seed=1, added_ms={"data": 3000.0}, every=25)
    found = comparing.compare(str(a), str(b))
    assert "stalls-more-than-before" in {f.cause for f in found.report.findings}
    assert not any(m.kind == "step" and m.significant for m in found.comparison.metrics)


def test_a_run_that_becomes_slower_on_its_way(tmp_path: Path) -> None:
    a = run_folders.write(tmp_path / "a", steps=200)
    b = run_folders.write(tmp_path / "b", steps=200, seed=1, added_ms={"forward": 200.0}, since=150)
    found = comparing.compare(str(a), str(b))
    (shift,) = found.comparison.shifts
    assert 148 <= shift.at <= 152
    assert shift.time
    assert "slower-from-a-step-on" in causes(a, b)
    assert "slower-from-a-step-on" not in causes(b, b)


def test_a_setting_comes_before_what_got_slower_for_it(tmp_path: Path) -> None:
    a = run_folders.write(tmp_path / "a", hosts=(host("node0"), host("node1")))
    nics = (Nic(name="mlx5_0", kind="infiniband", gbit_per_s=100.0, up=True),)
    b = run_folders.write(
        tmp_path / "b", seed=1, transfer=3.0, hosts=(host("node0", nics=nics), host("node1", nics=nics))
    )
    assert causes(a, b)[:1] == ["nic-changed"]
    found = comparing.compare(str(a), str(b))
    assert found.report.findings[0].message.startswith("link rate of mlx5_0: 100 Gbit/s, before 400 Gbit/s")
    assert found.comparison.changed[0].hosts == ()


def test_a_setting_of_another_part_is_only_told(tmp_path: Path) -> None:
    a = run_folders.write(tmp_path / "a", hosts=(host(),))
    nics = (Nic(name="mlx5_0", kind="infiniband", gbit_per_s=100.0, up=True),)
    b = run_folders.write(tmp_path / "b", seed=1, added_ms={"data": 100.0}, hosts=(host(nics=nics),))
    assert causes(a, b)[0] == "dataloader-stall"
    assert "nic-changed" not in causes(a, b)


def test_a_cpu_quota_explains_the_rank_of_its_host(tmp_path: Path) -> None:
    a = run_folders.write(tmp_path / "a", hosts=(host("node0"), host("node1")))
    slow = host("node1", limits=Limits(cgroup_cpus=0.5))
    b = run_folders.write(tmp_path / "b", seed=1, added_ms={"forward": 200.0}, on=(2, 3), hosts=(host("node0"), slow))
    first = comparing.compare(str(a), str(b)).report.findings[0]
    assert (first.cause, first.where.hosts) == ("host-changed", ("node1",))
    assert "CPU quota on node1: 0.5 CPUs, before none" in first.message


def test_a_variable_of_the_run(tmp_path: Path) -> None:
    a = run_folders.write(tmp_path / "a")
    b = run_folders.write(tmp_path / "b", seed=1, transfer=2.0, environment={"NCCL_ALGO": "Ring"})
    first = comparing.compare(str(a), str(b)).report.findings[0]
    assert first.cause == "variable-changed"
    assert first.fixes[0].command == "unset NCCL_ALGO"


def test_other_work_is_no_slowness_of_the_machine(tmp_path: Path) -> None:
    a = run_folders.write(tmp_path / "a")
    config = {"model": "tiny", "micro_batch": 8}
    b = run_folders.write(tmp_path / "b", seed=1, added_ms={"forward": 150.0, "backward": 250.0}, config=config)
    assert causes(a, b)[0] == "configuration-changed"


def test_a_gap_in_loss_shows_by_pairs(tmp_path: Path) -> None:
    a = run_folders.write(tmp_path / "a")
    b = run_folders.write(tmp_path / "b", seed=1, loss=0.04)  # the noise of a single step is 0.05
    assert causes(a, b) == ["loss-higher-than-before"]


def test_faster_is_worth_knowing(tmp_path: Path) -> None:
    a = run_folders.write(tmp_path / "a", added_ms={"forward": 100.0})
    b = run_folders.write(tmp_path / "b", seed=1)
    found = comparing.compare(str(a), str(b))
    assert found.report.verdict is Verdict.INFO
    assert run(app, ["compare", str(a), str(b)]).output.startswith("info: faster than before")


@pytest.mark.slow
def test_real_runs(tmp_path: Path) -> None:
    for name, options in (("a", ()), ("b", ()), ("slow", ("--fault", "slow-rank:ranks=1,seconds=0.1"))):
        done = trained(tmp_path / name, "--model", "tiny", "--steps", "30", *options)
        assert done.returncode == 0, done.stderr
    assert causes(tmp_path / "a", tmp_path / "b") == []
    first = comparing.compare(str(tmp_path / "a"), str(tmp_path / "slow")).report.findings[0]
    assert (first.cause, first.where.ranks) == ("straggler-rank", (1,))


# -- settings


def test_bundles_of_the_same_hosts(tmp_path: Path) -> None:
    archives.save(Bundle(hosts=(host("a"), host("b"))), tmp_path / "a.zip")
    after = host("b", versions={"nccl": "2.28.3", "driver": "570.133.20"}, system=System(kernel="6.8"))
    archives.save(Bundle(hosts=(host("a"), after, host("c"))), tmp_path / "b.zip")
    found = comparing.compare(str(tmp_path / "a.zip"), str(tmp_path / "b.zip"))
    assert [(c.name, c.a, c.b, c.hosts) for c in found.comparison.changed] == [("nccl", "2.27.5", "2.28.3", ("b",))]
    assert found.comparison.hosts_new == ("c",)
    assert found.report.findings[0].code.startswith(
        "VER"
    )  # versions now differ between the hosts: a rule's own finding


def test_gpus_that_changed_alike_are_one_change() -> None:
    def of(watts: float) -> Host:
        return host(gpus=tuple(Gpu(index=i, name="NVIDIA H100", power_limit_w=watts) for i in range(8)))

    changed, _, _ = settings.changes(*(Cluster(hosts=(of(w),)) for w in (700, 500)))
    assert [(c.name, c.a, c.b) for c in changed] == [("power limit of GPU [0-7]", "700 W", "500 W")]


def test_hosts_without_a_common_name_are_compared_as_two_kinds() -> None:
    old, new = (
        Cluster(hosts=tuple(host(f"{n}{i}", system=System(kernel=k)) for i in range(2)))
        for n, k in (("a", "5.15"), ("b", "6.8"))
    )
    changed, gone, there = settings.changes(old, new)
    assert changed == (Change(family="HST", name="kernel", a="5.15", b="6.8", weight="known", affects=AREAS),)
    assert (gone, there) == (("a0", "a1"), ("b0", "b1"))


def test_what_nobody_could_read_is_no_change() -> None:
    old = Cluster(hosts=(host(system=System(kernel="5.15"), env=Env(variables=())),))
    new = Cluster(hosts=(host(nics=None, versions=None, limits=None),))
    assert settings.changes(old, new)[0] == ()


def test_two_scripts(tmp_path: Path) -> None:
    (tmp_path / "a.sbatch").write_text("#!/bin/bash\nexport NCCL_DEBUG=WARN\nsrun python train.py\n")
    (tmp_path / "b.sbatch").write_text(
        "#!/bin/bash\nexport NCCL_DEBUG=WARN\nexport NCCL_P2P_DISABLE=1\nsrun python train.py\n"
    )
    found = comparing.compare(str(tmp_path / "a.sbatch"), str(tmp_path / "b.sbatch"))
    first = found.report.findings[0]
    assert first.code.startswith("ENV")
    assert first.cause == "p2p-disabled"
    assert first.evidence[-1].text == "not so on the other side"
    assert [(c.name, c.weight) for c in found.comparison.changed] == [("NCCL_P2P_DISABLE", "rule")]


def test_logs(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(LOG)
    (tmp_path / "b").write_text(
        LOG.replace("Using network IB", "Using network Socket").replace(
            "NET/IB : Using [0]mlx5_0:1/IB [RO]; OOB eth0:10.0.0.1<0>", "NET/Socket : Using [0]eth0:10.0.0.1<0>"
        )
    )
    found = comparing.compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert ("NCCL's network", "IB", "Socket") in [(c.name, c.a, c.b) for c in found.comparison.changed]
    (tmp_path / "c").write_text(LOG.replace("2.27.5", "2.28.3"))
    found = comparing.compare(str(tmp_path / "a"), str(tmp_path / "c"))
    assert [(c.name, c.b) for c in found.comparison.changed] == [("nccl", "2.28.3")]
    assert [f.severity for f in found.report.findings] == [Severity.INFO]


# -- bandwidths


def table(path: Path, factor: float = 1.0, *, above: int = 0) -> Path:
    rows = []
    for n in range(20, 31):
        size, rate = 2**n, 300.0 * 2**n / (2**n + 2**24)
        if size > above:
            rate *= factor
        us = size / rate / 1e3 * 2 * 7 / 8
        cells = f"{us:8.2f} {rate / 1.75:7.2f} {rate:7.2f} 0"
        rows.append(f"{size:12d} {size // 4:12d} float sum -1 {cells} {cells}")
    path.write_text(TABLE + "\n".join(rows) + "\n# Avg bus bandwidth    : 150.0\n")
    return path


def test_tables(tmp_path: Path) -> None:
    a = table(tmp_path / "a.txt")
    assert causes(a, table(tmp_path / "same.txt", 0.97)) == []
    assert causes(a, table(tmp_path / "half.txt", 0.5, above=2**24))[-1:] == ["bandwidth-lower-than-before"]


def report(path: Path, busbw: float, nccl: str = "2.27.5") -> Path:
    results = [result(busbw * f, size=size * MIB) for f, size in ((0.6, 1), (0.9, 16), (1.0, 64))]
    return saved(path, *results, variables={}, versions={"nccl": nccl})


def test_benches(tmp_path: Path) -> None:
    a = report(tmp_path / "a.json", 100.0)
    assert causes(a, report(tmp_path / "b.json", 95.0)) == []
    assert causes(a, report(tmp_path / "c.json", 60.0)) == ["bandwidth-lower-than-before"]
    changed = report(tmp_path / "d.json", 60.0, nccl="2.28.3")
    assert causes(a, changed) == ["version-changed", "bandwidth-lower-than-before"]


# -- documents, logs of steps, traces


def test_reports(tmp_path: Path) -> None:
    for name, script in (
        ("a", "export NCCL_P2P_DISABLE=1\n"),
        ("b", "export NCCL_P2P_DISABLE=1\nexport NCCL_ALGO=Ring\n"),
    ):
        (tmp_path / f"{name}.sh").write_text("#!/bin/sh\n" + script)
        run(
            app,
            ["explain", str(tmp_path / f"{name}.sh"), "--format", "json", "--output", str(tmp_path / f"{name}.json")],
        )
    found = comparing.compare(str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    assert [f.subject or f.message for f in found.report.findings] != []
    assert all("NCCL_ALGO" in f.message for f in found.report.findings)
    assert found.comparison.same >= 1
    back = comparing.compare(str(tmp_path / "b.json"), str(tmp_path / "a.json"))
    assert back.report.findings == ()
    assert back.comparison.gone


def test_step_logs(tmp_path: Path) -> None:
    def written(name: str, seconds: float) -> Path:
        lines = [
            f"step {i} loss {5 - i / 100:.3f} step_time: {seconds + (i * 7 % 11) / 1000:.4f} s" for i in range(200)
        ]
        (tmp_path / name).write_text("\n".join(lines))
        return tmp_path / name

    a = written("a", 0.5)
    assert causes(a, written("b", 0.501)) == []
    assert causes(a, written("c", 0.6)) == ["slower-than-before"]


def test_traces(tmp_path: Path) -> None:
    def written(name: str, gemm: float, idle: float) -> Path:
        events, at = [], 0.0
        for n in range(40):
            events.append(kernel("gemm", at, gemm, launched=at - 5, n=n))
            at += gemm + idle
        (tmp_path / name).write_bytes(document(*events))
        return tmp_path / name

    a = written("a.json", 100, 5)
    assert causes(a, written("b.json", 101, 5)) == []
    found = comparing.compare(str(a), str(written("c.json", 150, 5))).report.findings
    assert (found[0].code, found[0].confidence.value) == ("STP045", "possible")
    assert "most of it computing" in found[0].message


def test_traces_step_by_step(tmp_path: Path) -> None:
    def written(name: str, gemm: float) -> Path:
        events, at = [], 0.0
        for n in range(20):
            step = {"ph": "X", "cat": "user_annotation", "name": f"ProfilerStep#{n}", "ts": at, "dur": gemm + 90}
            events.append([{**step, "pid": 1, "tid": 1}])
            events.append(kernel("gemm", at + 40, gemm + n % 3, launched=at + 20, n=n))
            at += gemm + 100
        (tmp_path / name).write_bytes(document(*events))
        return tmp_path / name

    a = written("a.json", 1000)
    assert causes(a, written("b.json", 1005)) == []
    assert causes(a, written("c.json", 1200))[0] == "compute-slower"


def test_losses_and_changes_of_pace_of_step_logs(tmp_path: Path) -> None:
    def written(name: str, *, late: float = 0.1, loss: float = 0.0) -> Path:
        rows = ["step,timestamp,step_time_s,loss"]
        now = 1_795_600_000.0
        for n in range(200):
            seconds = (0.1 if n < 120 else late) + (n * 7 % 11) / 5000
            now += seconds
            noise = 0.05 * random.Random(n).gauss(0, 1)
            rows.append(f"{n},{now:.3f},{seconds:.4f},{5 - n / 100 + noise + loss:.4f}")
        (tmp_path / name).write_text("\n".join(rows))
        return tmp_path / name

    a = written("a.csv")
    assert causes(a, written("b.csv", loss=0.03)) == ["loss-higher-than-before"]
    found = comparing.compare(str(a), str(written("c.csv", late=0.2)))
    (shift,) = found.comparison.shifts
    assert (shift.side, shift.axis, round(shift.before), round(shift.after)) == ("b", "step", 10, 5)
    assert 115 <= shift.at <= 125
    assert shift.time
    assert shift.time.startswith("2026-11-25T")
    assert found.report.findings[0].severity is Severity.WARNING
    assert "changes at step 1" in run(app, ["compare", str(a), found.b.name]).output


# -- what can't be compared


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\x01\x02" * 500, b'{"schema": "smoldiag.bench/1", "version": "1"', b"PK\x03\x04rest", b"hello\n"],
)
def test_what_can_not_be_read_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    for name in ("x", "x.zip"):
        (tmp_path / name).write_bytes(content)
        good = run_folders.write(tmp_path / f"run-{name}", steps=10)
        for pair in ((good, tmp_path / name), (tmp_path / name, good)):
            with pytest.raises(SmoldiagError) as error:
                comparing.compare(*map(str, pair))
            assert "\n" not in str(error.value)
    with pytest.raises(SmoldiagError, match="there is no such file"):
        comparing.compare(str(tmp_path / "none"), str(tmp_path / "x"))


def test_two_kinds_have_nothing_in_common(tmp_path: Path) -> None:
    a = run_folders.write(tmp_path / "a", steps=10)
    with pytest.raises(SmoldiagError, match=r"is a run.* is a table of bandwidths.*nothing in common"):
        comparing.compare(str(a), str(table(tmp_path / "t.txt")))


# -- the command


def test_command(tmp_path: Path) -> None:
    a = run_folders.write(tmp_path / "a")
    b = run_folders.write(tmp_path / "b", seed=1, added_ms={"forward": 100.0}, on=(2,))
    same = run_folders.write(tmp_path / "same", seed=2)
    done = run(app, ["compare", str(a), str(same), "--fail-on", "info"])
    assert done.exit_code == 0
    assert done.output.startswith("ok: no difference beyond noise: step ")
    done = run(app, ["compare", str(a), str(b), "--fail-on", "warning", "--plot", str(tmp_path / "p.png")])
    assert done.exit_code == 1
    assert (tmp_path / "p.png").stat().st_size > 1000
    assert len(done.output.splitlines()) <= 40
    told = json.loads(run(app, ["compare", str(a), str(b), "--format", "json"]).output)
    assert told["schema"] == "smoldiag.report/1"
    assert {"name", "a", "b", "change_percent", "low", "high", "significant"} <= set(
        told["facts"]["compare"]["metrics"][0]
    )
    assert "b" not in told["facts"]
    told = json.loads(run(app, ["compare", str(a), str(b), "--format", "json", "--facts"]).output)
    assert told["facts"]["b"]["run"]["steps"]
    assert run(app, ["compare", str(a), str(b), "--format", "markdown"]).output.startswith("# warning: rank 2")


# -- the arithmetic


def test_neighbours_that_wander_are_no_difference() -> None:
    wander = [100 + 10 * ((i // 25) % 2) for i in range(200)]  # two states, each for 25 steps
    later = [100 + 10 * ((i // 25 + 1) % 2) for i in range(175)]
    assert paired.difference(wander, later).excludes_zero is False


def test_few_samples_say_nothing() -> None:
    assert paired.difference([1.0] * 7, [2.0] * 100).excludes_zero is None
    assert paired.of_pairs([1.0] * 3) is None
    assert paired.difference([1.0] * 8, [2.0] * 8) == replace(paired.difference([1.0] * 9, [2.0] * 9))
