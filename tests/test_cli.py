"""What a user can type, and what is answered."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from smoldiag import rules
from smoldiag.cli import app, start
from smoldiag.render import markdown
from tests.test_launch import ranks_of

ROOT = Path(__file__).parent.parent
run = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}).invoke
Golden = Callable[[str, str], None]


def smoldiag(*args: str, env: dict[str, str] | None = None, timeout: float = 90) -> subprocess.CompletedProcess[str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RANK", "WORLD_SIZE", "SMOLDIAG_SITE"))}
    command = [sys.executable, "-m", "smoldiag", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=timeout, env=own | (env or {}))


def surface(command: Any, name: str) -> Iterator[str]:
    """In our words: Typer's own help layout changes between its versions."""
    yield f"{name}: {(command.help or '').splitlines()[0] if command.help else ''}"
    for param in command.params:
        if param.name != "help":
            default = "" if param.required or param.default in (None, "", False) else f" [{param.default}]"
            yield f"    {', '.join(param.opts)}{default}: {param.help}"
    for sub in sorted(getattr(command, "commands", {})):
        yield from surface(command.commands[sub], f"{name} {sub}")


def test_surface(golden: Golden) -> None:
    golden("tests/golden/surface.txt", "\n".join(surface(get_command(app), "smoldiag")) + "\n")


@pytest.mark.parametrize("command", [[], ["nccl-bench"], ["rule"]])
def test_help_works(command: list[str]) -> None:
    assert run(app, [*command, "--help"]).exit_code == 0


def test_rules_page(golden: Golden) -> None:
    golden("docs/rules.md", markdown.rules_page(rules.RULES))


def test_rule_prints_a_page_and_lists() -> None:
    assert run(app, ["rule", "bwd002"]).output.startswith("BWD002 host-slower-than-the-others, at worst warning")
    assert len(run(app, ["rule"]).output.splitlines()) == len(rules.RULES)
    assert {line[:3] for line in run(app, ["rule", "HNG"]).output.splitlines()} == {"HNG"}


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["rule", "ENV999"], "error: no rule 'ENV999'"),
        (["nccl-bench", "--sizes", "1XB"], "error: --sizes: '1XB' is no size"),
        (["nccl-bench", "--sizes", "8:1:x2"], "error: --sizes: '8:1:x2' starts above its end"),
        (["nccl-bench", "--sizes", "1B:1GiB:+1B"], "error: --sizes: '1B:1GiB:+1B' is more than 200 sizes"),
        (["nccl-bench", "--collective", "allreduce"], "error: --collective 'allreduce' is not known"),
        (["nccl-bench", "--dtype", "float8"], "error: --dtype 'float8' is not known"),
        (["nccl-bench", "--fsdp", "GPT-5"], "error: --fsdp GPT-5: 'GPT-5' is not known"),
        (["nccl-bench", "--params", "3e9"], "error: --params and --layers go together"),
        (["nccl-bench", "--hosts", "a;reboot"], "error: 'a;reboot' is no host name"),
        (["nccl-bench", "--hosts=-oProxyCommand=x"], "error: '-oProxyCommand=x' is no host name"),
        (["nccl-bench", "--hosts", "a,a"], "error: host a is named twice"),
        (["nccl-bench", "--hostfile", "/nowhere"], "error: --hostfile /nowhere: No such file or directory"),
        (["nccl-bench", "--reference", "/dev/null"], "error: "),
        (["nccl-bench", "--launcher", "joined"], "error: --launcher joined: no launcher started this process"),
        (["nccl-bench", "--launcher", "ssh"], "error: --launcher ssh needs hosts"),
        (["nccl-bench", "--launcher", "local", "--nodes", "2"], "error: --launcher local has only this host, not 2"),
        (["nccl-bench", "--output", "/nowhere/x"], "error: can't write /nowhere/x: no folder /nowhere"),
        (["nccl-bench", "--plot", "x.bmp"], "error: --plot x.bmp: the file's ending must be one of .png, .svg, .pdf"),
        (["nccl-bench", "--profile", "abacus"], "error: "),
        (["nccl-bench", "--python", "/nowhere/python"], "error: --python /nowhere/python: No such file or directory"),
    ],
    ids=lambda x: " ".join(x)[:50] if isinstance(x, list) else "",
)
def test_wrong_usage_is_a_sentence_and_exit_code_2(args: list[str], error: str) -> None:
    done = smoldiag(*args)
    assert done.returncode == 2, done.stderr
    assert error in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_nodes_that_nothing_here_reaches_are_explained() -> None:
    done = smoldiag("nccl-bench", "--nodes", "2", env={"PATH": "/nowhere"})
    assert done.returncode == 2
    assert "--hosts HOST0,HOST1" in done.stderr
    assert "torchrun --nnodes 2" in done.stderr


def test_job_without_srun_gets_the_line_for_the_host() -> None:
    done = smoldiag("nccl-bench", env={"SLURM_JOB_ID": "42", "SLURM_JOB_NUM_NODES": "4", "PATH": "/nowhere"})
    assert done.returncode == 2
    assert "srun --jobid=42 --overlap -N 4 --ntasks-per-node=1 smoldiag nccl-bench" in done.stderr


def test_dry_run_prints_what_would_run() -> None:
    done = smoldiag("nccl-bench", "--hosts", "a,b", "--dry-run", "--ssh-command", f"{sys.executable} -F x")
    assert done.returncode == 0
    assert done.stdout.startswith("launcher ssh: 2 hosts named\n")
    assert done.stdout.count(f"{sys.executable} -F x") == 2


def test_smoldiag_alone_leads_from_symptom_to_command() -> None:
    done = smoldiag()
    assert done.returncode == 0
    assert "hangs or died" in done.stdout


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8"}, "rank 3 of 8, no NVIDIA GPU here"),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}, "a host of Slurm job 7 (2 nodes), no NVIDIA GPU here"),
    ],
)
def test_it_says_where_it_stands(env: dict[str, str], place: str, tmp_path: Path) -> None:
    assert start.place(env, root=tmp_path) == place


def test_gpus_are_counted(tmp_path: Path) -> None:
    for bus in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "proc/driver/nvidia/gpus" / bus).mkdir(parents=True)
    assert start.place({"SLURM_JOB_ID": "7"}, root=tmp_path).endswith("2 NVIDIA GPUs here")


# -- real runs on this host, two gloo ranks


def bench(*args: str, **more: Any) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    done = smoldiag("nccl-bench", "--backend", "gloo", "--ranks-per-node", "2", "--format", "json", *args, **more)
    return done, json.loads(done.stdout)


def test_all_sizes_of_all_collectives_are_measured_and_right() -> None:
    every = "all_reduce,all_gather,reduce_scatter,broadcast,reduce,all_to_all,send_recv"
    done, said = bench("--collective", every, "--sizes", "8B,1KiB,1000001B", "--iterations", "3", "--pairs", "0-1")
    assert done.returncode == 0, done.stderr
    assert len(said["results"]) == 3 * 7 + 3
    assert {r["wrong"] for r in said["results"]} == {0}
    assert said["world"] == {"nodes": 1, "ranks": 2, "ranks_per_node": 2, "hosts": said["world"]["hosts"]}
    assert {r["group"]["kind"] for r in said["results"]} == {"world", "pair"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "uint8", "int64"])
def test_data_types(dtype: str) -> None:
    done, said = bench(
        "--collective", "all_reduce,all_gather", "--sizes", "64KiB", "--iterations", "2", "--dtype", dtype
    )
    assert done.returncode == 0, done.stderr
    assert [(r["dtype"], r["wrong"]) for r in said["results"]] == [(dtype, 0)] * 2


@pytest.mark.slow
def test_the_sizes_of_a_model_are_measured_as_a_set(tmp_path: Path) -> None:
    plot = tmp_path / "busbw.png"
    done, said = bench("--fsdp", "SmolLM-135M", "--sizes", "1MiB", "--iterations", "2", "--plot", str(plot))
    assert done.returncode == 0, done.stderr
    assert [s["purpose"] for s in said["sets"]] == ["fsdp:SmolLM-135M"]
    assert said["sets"][0]["collectives"] == 1 + 30 * 3 + 1
    assert plot.stat().st_size > 1000


def test_figures_are_saved_as_a_reference_and_compared_with_later(tmp_path: Path) -> None:
    saved = tmp_path / "ours.json"
    assert bench("--sizes", "1MiB", "--iterations", "3", "--save-reference", str(saved))[0].returncode == 0
    rows = json.loads(saved.read_text())
    for row in rows["rows"]:
        row["busbw_gbs"] *= 1000
    saved.write_text(json.dumps(rows))
    done, said = bench("--sizes", "1MiB", "--iterations", "3", "--reference", str(saved))
    assert done.returncode == 1
    assert said["verdict"] == "error"
    assert said["findings"][0]["code"] == "BWD001"
    assert {e["kind"] for e in said["expected"]} == {"site"}


def test_a_secret_in_a_forwarded_variable_is_not_shown() -> None:
    done, said = bench(
        "--sizes", "1KiB", "--iterations", "2", env={"NCCL_TOKEN": "hunter2hunter2", "NCCL_ALGO": "Ring"}
    )
    assert "hunter2" not in done.stdout + done.stderr
    assert said["environment"]["variables"]["NCCL_ALGO"] == "Ring"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_interrupt_keeps_what_was_measured(number: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    command = [sys.executable, "-m", "smoldiag", "nccl-bench", "--backend", "gloo", "--sizes", "1KiB:256MiB:x2"]
    command += ["--iterations", "20", "--format", "json", "--output", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    ranks_of(process)
    process.send_signal(number)
    assert process.wait(20) == 3
    said = json.loads(out.read_text())
    assert said["verdict"] == "incomplete"
    assert said["results"]
    assert said["launch"]["interrupted"] == number.name
