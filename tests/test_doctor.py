"""doctor: which rules run, what is left out, what it says it looked at; as a hook; and that nothing makes it hang."""

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from benchmarks.peers import doctor_hosts, fleet
from smoldiag import doctor, rules
from smoldiag.bundle import Bundle, Read, save
from smoldiag.cli import app
from smoldiag.collect import guarded
from smoldiag.collect import host as host_facts
from smoldiag.errors import SmoldiagError
from smoldiag.facts import Fault, Host, Launch
from smoldiag.findings import Finding, Report, Severity, Where
from smoldiag.launch import carry
from smoldiag.render import hooks, prometheus, text
from smoldiag.render.json import document
from tests.test_cli import smoldiag
from tests.test_render import shown

run = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}).invoke
UNREACHED = Launch(
    launcher="ssh",
    seats=(),
    faults=(Fault(kind="unreachable", hosts=("node9",), stage="reach hosts", detail="no route to host"),),
)


def seven_gpus(host: Host) -> Host:
    return replace(host, gpus=(host.gpus or ())[:7])


def three(change: Callable[[Host], Host] = lambda host: host) -> Bundle:
    first, second, third = fleet.cluster(3)
    return Bundle(hosts=(first, change(second), third))


def judged(bundle: Bundle, **options: Any) -> Report:
    return doctor.judge(bundle, doctor.Options(**options))


def saved(tmp_path: Path, bundle: Bundle) -> Path:
    save(bundle, tmp_path / "hosts.zip")
    return tmp_path / "hosts.zip"


# -- this host


def test_this_host_without_a_gpu_is_reported_honestly() -> None:
    began = time.monotonic()
    ran = smoldiag("doctor", "--format", "json")
    seconds = time.monotonic() - began
    said = json.loads(ran.stdout)
    assert ran.returncode in (0, 1), ran.stderr
    assert seconds < 10
    checks = {c["code"]: c for c in said["checks"]}
    assert not [c for c in said["checks"] if c["status"] == "crashed"]
    if not any(Path("/dev").glob("nvidia[0-9]")):
        assert "no GPU was checked" in ran.stderr.splitlines()[0]
        assert "no GPU was checked" in said["notes"][0]
        statuses = {c["status"] for code, c in checks.items() if code[:3] in ("GPU", "NVL")}
        assert statuses == {"skipped"}
        assert all(c["reason"] for c in said["checks"] if c["status"] == "skipped")


def test_slurm_variables_lead_to_no_other_host() -> None:
    ran = smoldiag("doctor", env={"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "64", "SLURM_JOB_NODELIST": "n[1-64]"})
    assert ran.returncode in (0, 1), ran.stderr
    assert "64" not in ran.stdout.splitlines()[0]


def test_a_healthy_cluster_has_no_finding() -> None:
    report = judged(three())
    assert [f.message for f in report.findings] == []
    assert report.verdict.value == "ok"


def test_what_was_looked_at() -> None:
    without = replace(fleet.host(0), gpus=None, nics=(), unread={"gpus": "NVML: Driver Not Loaded"})
    assert doctor.looked_at(Bundle(hosts=(without,))) == (
        "looked at node0000: no GPU was checked (NVML: Driver Not Loaded); no NIC was checked (there is none)"
    )
    assert doctor.looked_at(Bundle(hosts=(without, *fleet.cluster(3)[1:]))).startswith(
        "looked at 3 hosts (node[0000-0002]): 16 GPUs; no GPU was checked on node0000 (NVML: Driver Not Loaded); 3"
    )
    assert doctor.looked_at(Bundle()) == "no host was looked at"


def test_hosts_that_were_not_reached_are_findings() -> None:
    report = judged(replace(three(seven_gpus), launch=UNREACHED))
    assert report.verdict.value == "incomplete"
    assert {f.code: f.where.hosts for f in report.findings} == {"HST001": ("node9",), "GPU050": ("node0001",)}


def test_hosts_alone_are_not_compared() -> None:
    report = judged(Bundle(hosts=(fleet.host(0),)), only=("VER050", "NIC053"))
    assert {(c.code, c.status.value, c.reason) for c in report.checks} == {
        (code, "skipped", "compares hosts: one was looked at") for code in ("VER050", "NIC053")
    }


def test_nothing_checked_is_said_in_the_first_line() -> None:
    without = Host(name="n0", unread={"gpus": "NVML: Driver Not Loaded"})
    report = judged(Bundle(hosts=(without,)), only=("GPU",))
    first = shown(text.report(report, looked_at=report.notes[0])).splitlines()[0]
    assert first.startswith("ok: nothing could be checked; looked at n0: no GPU was checked (NVML: Driver Not Loaded)")


# -- what is left out


def test_only_and_ignore() -> None:
    report = judged(three(seven_gpus), only=("GPU", "NIC"), ignore=("GPU05",))
    assert report.findings == ()
    by_family = {c.code[:3] for c in report.checks}
    assert by_family == {"GPU", "NIC"}
    assert {c.reason for c in report.checks if c.code == "GPU050"} == {"left out by --ignore"}


def test_ignored_findings_are_skipped_with_the_reason() -> None:
    lines = "# what we know of\n\nGPU050 @node00* # one GPU each is on loan, ticket 4711\n"
    ignored = doctor.parsed_ignore_file(lines, name="known.txt")
    report = judged(three(seven_gpus), ignored=ignored)
    assert report.findings == ()
    (check,) = (c for c in report.checks if c.code == "GPU050")
    assert (check.status.value, check.reason) == ("skipped", "ignored: one GPU each is on loan, ticket 4711")


def test_ignoring_a_host_leaves_the_others() -> None:
    hosts = [seven_gpus(h) if i in (1, 2) else h for i, h in enumerate(fleet.cluster(6))]
    ignored = doctor.parsed_ignore_file("GPU050 @node0001 # on loan", name="known.txt")
    report = judged(Bundle(hosts=tuple(hosts)), ignored=ignored)
    assert [f.where.hosts for f in report.findings] == [("node0002",)]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("GPU050", "known.txt:1: GPU050 is ignored without a reason"),
        ("GPU050 @a", "known.txt:1: GPU050 is ignored without a reason"),
        ("gpus are fine # yes", "known.txt:1: 'gpus are fine # yes' is no line of an ignore file"),
    ],
)
def test_ignore_file_errors(line: str, error: str) -> None:
    with pytest.raises(SmoldiagError) as caught:
        doctor.parsed_ignore_file(line, name="known.txt")
    assert str(caught.value) == error


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--only", "GPX"], "error: --only 'GPX' is no rule and no family"),
        (["--only", "BWD"], "error: --only 'BWD' is no rule and no family"),
        (["--ignore", "GPU999"], "error: --ignore 'GPU999' is no rule and no family"),
        (["--ignore-file", "/nowhere"], "error: --ignore-file /nowhere: No such file or directory"),
        (["--nccl-version", "new"], "error: --nccl-version 'new' is no version"),
        (["--bundle", "/nowhere"], "error: /nowhere: No such file or directory"),
        (["--bundle", "/etc/hostname"], "error: /etc/hostname is no smoldiag bundle"),
        (["--nodes", "many"], "error: --nodes 'many' is no number of hosts"),
        (["--nodes", "all"], "error: --nodes all: this is no Slurm job"),
        (["--hosts", "a", "--job", "7"], "error: --hosts and --job name different hosts"),
        (["--hosts", "a;b"], "error: 'a;b' is no host name"),
        (["--job", "x"], "error: --job"),
        (["--as", "nagios", "--hosts", "a"], "error: --as nagios looks at this host alone"),
    ],
    ids=lambda x: " ".join(x)[:40] if isinstance(x, list) else "",
)
def test_wrong_usage_is_a_sentence(args: list[str], error: str) -> None:
    ran = smoldiag("doctor", *args)
    assert ran.returncode == 2, ran.stdout + ran.stderr
    assert ran.stderr.startswith(error)
    assert "Traceback" not in ran.stderr


# -- documents


def test_a_report_on_512_hosts_is_small(tmp_path: Path) -> None:
    hosts = tuple(doctor_hosts.with_fault(i, h) for i, h in enumerate(fleet.cluster(512)))
    report = judged(Bundle(hosts=hosts))
    assert len(document(report)) < 1_000_000
    assert len(shown(text.report(report, looked_at="x")).splitlines()) <= 40
    blind = tuple(
        replace(h, gpus=None, nics=None, env=None, limits=None, unread={"gpus": f"NVML: error {h.name}"}) for h in hosts
    )
    report = judged(Bundle(hosts=blind))
    assert len(document(report)) < 1_000_000
    assert len(shown(text.report(report, looked_at="x")).splitlines()) <= 40


def test_saved_hosts_give_the_same_report(tmp_path: Path) -> None:
    bundle = three(seven_gpus)
    live = json.loads(document(judged(bundle)))
    path = saved(tmp_path, bundle)
    ran = smoldiag("doctor", "--bundle", str(path), "--format", "json", env={"SLURMD_NODENAME": "elsewhere"})
    assert ran.returncode == 1
    told = json.loads(ran.stdout)
    assert {k: v for k, v in told.items() if k != "created"} == {k: v for k, v in live.items() if k != "created"}


def test_a_bundle_of_this_host_gives_its_report(tmp_path: Path) -> None:
    assert smoldiag("bundle", str(tmp_path / "x.zip")).returncode == 0
    first, second = (
        json.loads(smoldiag("doctor", str(tmp_path / "x.zip"), "--format", "json", env=env).stdout)
        for env in ({"NCCL_ALGO": "Tree"}, {"HOME": "/nowhere"})
    )
    first.pop("created")
    second.pop("created")
    assert first == second


@pytest.mark.parametrize("fmt", ["text", "json", "markdown", "prometheus"])
def test_formats(tmp_path: Path, fmt: str) -> None:
    path = saved(tmp_path, three(seven_gpus))
    result = run(app, ["doctor", "--bundle", str(path), "--format", fmt, "--output", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "node0001" in (tmp_path / "out").read_text()


def test_fail_on(tmp_path: Path) -> None:
    path = str(saved(tmp_path, three(seven_gpus)))
    assert run(app, ["doctor", path, "--fail-on", "never"]).exit_code == 0
    assert run(app, ["doctor", path, "--only", "VER", "--fail-on", "info"]).exit_code == 0


def test_metrics() -> None:
    lines = prometheus.report(judged(three(seven_gpus))).splitlines()
    assert 'smoldiag_finding{code="GPU050",cause="gpu-missing",severity="error",host="node0001"} 1' in lines
    assert 'smoldiag_findings{severity="error"} 1' in lines
    assert "smoldiag_verdict 2" in lines
    names = [line.split("{")[0].split()[0] for line in lines if not line.startswith("#")]
    typed = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert list(dict.fromkeys(names)) == [t for t in typed if t in names]


# -- as a hook


def report_of(*severities: Severity) -> Report:
    found = tuple(
        Finding(code=f"GPU00{i}", cause="x", message="GPU 3 is | lost", severity=s, where=Where(hosts=("n0",)))
        for i, s in enumerate(severities)
    )
    return replace(judged(Bundle(hosts=(fleet.host(0),)), families=doctor.HARDWARE), findings=found)


@pytest.mark.parametrize(
    ("severities", "codes"),
    [
        ([], {"prolog": 0, "healthcheck": 0, "nagios": 0, "k8s-probe": 0}),
        ([Severity.INFO], {"prolog": 0, "healthcheck": 0, "nagios": 0, "k8s-probe": 0}),
        ([Severity.WARNING], {"prolog": 0, "healthcheck": 0, "nagios": 1, "k8s-probe": 0}),
        ([Severity.ERROR, Severity.WARNING], {"prolog": 1, "healthcheck": 1, "nagios": 2, "k8s-probe": 1}),
    ],
)
def test_exit_codes_of_hooks(severities: list[Severity], codes: Mapping[str, int]) -> None:
    report = report_of(*severities)
    assert {kind: hooks.code(report, kind) for kind in hooks.KINDS} == codes
    assert all("\n" not in hooks.line(report, kind) for kind in hooks.KINDS)


def test_lines_of_hooks() -> None:
    assert hooks.line(report_of(Severity.ERROR), "prolog") == "smoldiag GPU000 x: GPU 3 is | lost"
    assert hooks.line(report_of(Severity.ERROR), "nagios") == (
        "SMOLDIAG CRITICAL - smoldiag GPU000 x: GPU 3 is / lost | errors=1 warnings=0"
    )
    assert hooks.line(report_of(), "prolog").startswith("smoldiag: no fault found (")


def test_hooks_run_no_rule_of_software() -> None:
    report = judged(Bundle(hosts=(fleet.host(0),)), families=doctor.HARDWARE)
    assert {c.code[:3] for c in report.checks} <= {"HST", "GPU", "NVL", "PCI", "NIC", "TOP"}


def test_trouble_of_ours_fails_no_node() -> None:
    for kind, code in (("prolog", 0), ("healthcheck", 0), ("nagios", 3), ("k8s-probe", 0)):
        ran = smoldiag("doctor", "--as", kind, "--ignore-file", "/nowhere")
        assert ran.returncode == code
        assert "could not check this node" in ran.stdout


def test_a_crashed_rule_fails_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(limits: object) -> None:
        raise ZeroDivisionError

    broken_rule = rules.Rule("HST999", Severity.ERROR, broken)  # type: ignore[arg-type]
    monkeypatch.setitem(rules.RULES, "HST999", broken_rule)
    report = judged(Bundle(hosts=(fleet.host(0),)), families=doctor.HARDWARE)
    assert [c.code for c in report.checks if c.status.value == "crashed"] == ["HST999"]
    assert hooks.code(report, "prolog") == 0


# -- nothing makes it hang


def test_facts_until_something_hangs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def collect(*, found: dict[str, Any], unread: dict[str, str], **_: object) -> Host:
        found["cpu_count"] = 7
        time.sleep(60)
        raise AssertionError

    monkeypatch.setattr(host_facts, "collect", collect)
    began = time.monotonic()
    host = msgspec.json.decode(guarded.read(guarded.Plan(seconds=0.3)), type=Read).host
    assert time.monotonic() - began < 5
    assert host.cpu_count == 7
    assert host.unread["gpus"].startswith("did not answer within 0 s (")


def test_a_child_that_can_not_even_give_up_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    def collect(**_: object) -> Host:
        ctypes.PyDLL(None).sleep(60)  # in a library that holds the interpreter
        raise AssertionError

    monkeypatch.setattr(host_facts, "collect", collect)
    began = time.monotonic()
    host = msgspec.json.decode(guarded.read(guarded.Plan(seconds=0.3)), type=Read).host
    assert time.monotonic() - began < 5
    assert host.unread["nics"] == "reading the facts of this host did not end within 0 s"


def test_an_error_of_ours_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def collect(**_: object) -> Host:
        raise AttributeError("oops")

    monkeypatch.setattr(host_facts, "collect", collect)
    host = msgspec.json.decode(guarded.read(guarded.Plan(seconds=5)), type=Read).host
    assert host.unread["env"] == "reading failed: AttributeError: oops"


def test_logs_are_read_and_redacted(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("x --token hf_abcdefghijklmnopqrstuvwxyz\n")
    long = tmp_path / "long.log"
    long.write_text("head\n" + "x" * (guarded.MAX_FILE_BYTES + 100) + "\ntail\n")
    plan = guarded.Plan(files=(str(log), str(long), str(tmp_path / "none")), seconds=20)
    files = msgspec.json.decode(guarded.read(plan), type=Read).files
    assert files[0]["text"] == "x --token [redacted]\n"
    assert files[1]["text"].startswith("head\n")
    assert files[1]["text"].endswith("\ntail\n")
    assert "bytes left out" in files[1]["text"]
    assert files[2]["error"] == "No such file or directory"


def test_carried_collector_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.path = [p for p in sys.path if 'site-packages' not in p]\n"
        "from smoldiag.collect import guarded\n"
        "print(guarded.read(guarded.Plan(seconds=20)).decode())"
    )
    program = tmp_path / "programs.zip"
    program.write_bytes(carry.programs())
    argv = [sys.executable, "-S", "-c", code, str(program)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", check=True)
    assert json.loads(done.stdout)["host"]["name"]


def test_what_a_host_says_itself_is_not_said_again_by_comparing() -> None:
    def limited(host: Host) -> Host:
        assert host.limits
        return replace(host, limits=replace(host.limits, memlock_bytes=65536))

    (finding,) = judged(three(limited)).findings
    assert (finding.code, finding.where.hosts) == ("HST003", ("node0001",))
    assert finding.evidence[-1].where == "compared with the other hosts"
    assert "64 KiB on node0001; unlimited on the other 2 hosts" in finding.evidence[-1].text
