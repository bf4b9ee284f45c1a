"""`smoldiag env`: what is asked, and what is answered."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smoldiag import environment
from smoldiag.bundle import Bundle
from smoldiag.collect import env as collect
from smoldiag.doctor import Options, judge
from smoldiag.facts import Host, Nic
from smoldiag.knowledge import variables
from smoldiag.redact import HIDDEN

ROOT = Path(__file__).parent.parent
PLAIN = {"PATH": os.environ["PATH"], "HOME": "/nowhere", "SMOLDIAG_METADATA": "off"}
ASKED = {
    "NCCL_SOCKET_IFNAME": "bond",
    "NCCL_IB_TIMEOUT": "20",
    "NCCL_PROTO": "LL128",
    "NCCL_BUFFSIZE": "4M",
    "NCCL_P2P_DISABLE": "1",
    "NCCL_DEBGU": "INFO",
}


def smoldiag(*args: str, env: dict[str, str] | None = None, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "smoldiag", "env", *args],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        input=given,
        env=PLAIN | (env or {}),
    )


def report(*args: str, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(smoldiag(*args, "--format", "json", **more).stdout)
    return found


def subjects(found: dict[str, Any]) -> dict[str, str]:
    return {f["subject"]: f["severity"] for f in found["findings"]}


def test_one_finding_per_variable_that_deserves_one() -> None:
    found = report("--nccl-version", "2.27.5", env=ASKED)
    assert found["schema"] == "smoldiag.report/1"
    assert found["verdict"] == "warning"
    assert subjects(found) == {
        "NCCL_DEBGU": "warning",
        "NCCL_BUFFSIZE": "warning",
        "NCCL_P2P_DISABLE": "warning",
        "NCCL_PROTO": "warning",
        "NCCL_SOCKET_IFNAME": "warning",
        "NCCL_IB_TIMEOUT": "info",
    }
    said = {f["subject"]: f for f in found["findings"]}
    assert all(f["sources"] and f["fixes"] and f["evidence"] and f["subject"] in f["message"] for f in said.values())
    assert "NCCL_DEBUG was probably meant" in said["NCCL_DEBGU"]["message"]
    assert "read as 4 bytes" in said["NCCL_BUFFSIZE"]["message"]
    assert "the default of NCCL 2.27.5" in said["NCCL_IB_TIMEOUT"]["message"]
    assert "prefix" in said["NCCL_SOCKET_IFNAME"]["message"]


def test_findings_are_those_of_the_release() -> None:
    env = {"NCCL_IB_TIMEOUT": "18", "NCCL_NETDEVS_POLICY": "ALL", "NCCL_ALGO": "Tree"}
    assert subjects(report("--nccl-version", "2.22.3", env=env)) == {
        "NCCL_IB_TIMEOUT": "info",  # the default then
        "NCCL_NETDEVS_POLICY": "warning",
        "NCCL_ALGO": "warning",
    }
    assert subjects(report("--nccl-version", "2.29.7", env=env)) == {"NCCL_IB_TIMEOUT": "warning", "NCCL_ALGO": "error"}


def test_text_says_what_is_set_where_and_what_it_does() -> None:
    done = smoldiag("--nccl-version", "2.27.5", env=ASKED | {"FI_PROVIDER": "efa"})
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["verdict", "set", "from", "default", "risk", "what", "it", "does"]
    assert any(x.startswith("ok") and "FI_PROVIDER=efa" in x and "environment" in x for x in lines)
    assert any(x.startswith("warning: 5 warnings, 1 info; 7 variables of ") for x in lines)
    assert done.returncode == 0
    assert smoldiag("--fail-on", "warning", env=ASKED).returncode == 1


def test_nothing_set_is_nothing_found() -> None:
    done = smoldiag()
    assert done.stdout.startswith("ok: nothing found; no variables of ")
    assert done.returncode == 0


def test_a_file_is_read_for_what_it_sets(tmp_path: Path) -> None:
    job = tmp_path / "job.sbatch"
    job.write_text("#!/bin/bash\n#SBATCH -N 2\nexport NCCL_IB_DISABEL=1\nsrun --export=ALL,NCCL_ALGO=Tree ./a\n")
    found = report(str(job), "--nccl-version", "2.27.5", env=ASKED)  # what is set here does not matter
    assert subjects(found) == {"NCCL_IB_DISABEL": "warning", "NCCL_ALGO": "error"}
    assert {f["subject"]: f["evidence"][0]["where"] for f in found["findings"]}["NCCL_ALGO"] == f"{job}:4"
    assert "take NCCL_ALGO out of" in str(found["findings"])
    assert smoldiag(str(job), "--nccl-version", "2.27.5").returncode == 1


def test_standard_input_is_a_file() -> None:
    assert subjects(report("-", given="mpirun -x NCCL_DEBGU=INFO ./a\n")) == {"NCCL_DEBGU": "warning"}
    assert "stdin:1" in smoldiag("-", given="mpirun -x NCCL_DEBGU=INFO ./a\n").stdout


def test_a_tree_gives_interfaces_and_files(tmp_path: Path) -> None:
    for name in ("bond0", "bond0.2093"):
        (tmp_path / "sys/class/net" / name).mkdir(parents=True)
        (tmp_path / "sys/class/net" / name / "operstate").write_text("up\n")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nccl.conf").write_text("NCCL_IB_TIMEOUT=18\n")
    found = report("--root", str(tmp_path), "--nccl-version", "2.27.5", env={"NCCL_SOCKET_IFNAME": "bond0"})
    assert subjects(found) == {"NCCL_SOCKET_IFNAME": "warning", "NCCL_IB_TIMEOUT": "warning"}
    assert "bond0.2093" in str(found["findings"])
    assert "sed -i '1d' /etc/nccl.conf" in str(found["findings"])


def test_a_running_process_and_two_of_them() -> None:
    environ = [
        PLAIN | {"NCCL_DEBGU": "1", "NCCL_ALGO": "Ring", "RANK": "0"},
        PLAIN | {"NCCL_ALGO": "Tree", "RANK": "1"},
    ]
    pipe, waits = subprocess.PIPE, [sys.executable, "-c", "print(flush=True); input()"]
    processes = [subprocess.Popen(waits, stdin=pipe, stdout=pipe, env=e, text=True) for e in environ]
    for p in processes:
        assert p.stdout
        p.stdout.readline()  # it runs
    try:
        a, b = (str(p.pid) for p in processes)
        one = report("--pid", a)
        assert subjects(one) == {"NCCL_DEBGU": "warning", "NCCL_ALGO": "warning"}
        assert one["findings"][0]["evidence"][0]["where"] == f"/proc/{a}/environ"
        both = smoldiag("--pid", a, "--pid", b).stdout
        assert "NCCL_ALGO" in both
        assert "RANK" not in both  # differs rightly
        assert report("--pid", a, "--pid", b)["facts"]["differences"] == [
            {"name": "NCCL_ALGO", "here": "Ring", "there": "Tree", "must_match": True},
            {"name": "NCCL_DEBGU", "here": "1", "there": None, "must_match": False},
        ]
    finally:
        for p in processes:
            p.communicate("\n", timeout=10)


def test_saved_hosts_are_judged_like_this_one(tmp_path: Path) -> None:
    saved = tmp_path / "a.zip"
    command = [sys.executable, "-m", "smoldiag", "bundle", str(saved)]
    subprocess.run(command, check=True, cwd=ROOT, env=PLAIN | ASKED, capture_output=True, timeout=60)
    asked = ("--bundle", str(saved), "--nccl-version", "2.27.5")
    assert subjects(report(*asked)) == subjects(report("--nccl-version", "2.27.5", env=ASKED))
    assert "NCCL_BUFFSIZE=4M" in smoldiag(*asked).stdout


def test_a_variable_has_one_finding_on_each_host() -> None:
    def host(name: str, **environ: str) -> Host:
        return Host(name=name, env=collect.env(root=Path("/nowhere"), environ=environ))

    hosts = (host("a", NCCL_MAX_NCHANNELS="8"), host("b", NCCL_MAX_NCHANNELS="32"), host("c", NCCL_MAX_NCHANNELS="8"))
    found = environment.report(*hosts).findings
    assert [(f.code, f.where.hosts) for f in found if f.code < "ENV05"] == [
        ("ENV016", ("a", "c")),
        ("ENV004", ("a", "b", "c")),
    ]


def test_a_file_is_compared_with_here(tmp_path: Path) -> None:
    job = tmp_path / "job.sh"
    job.write_text("export NCCL_ALGO=Ring NCCL_DEBUG=WARN\n")
    out = smoldiag("--diff", str(job), env={"NCCL_ALGO": "Ring", "NCCL_DEBUG": "INFO"}).stdout
    assert [line.split() for line in out.splitlines()][1:] == [["NCCL_DEBUG", "INFO", "WARN"]]


def test_a_page_and_the_catalogue() -> None:
    page = smoldiag("nccl_ib_timeout", env={"NCCL_IB_TIMEOUT": "20"}).stdout
    assert page.startswith("NCCL_IB_TIMEOUT  nccl, int\n")
    assert "20 from 2.23.4" in page
    assert "here       NCCL_IB_TIMEOUT=20 (environment)" in page
    assert "ENV017" in page
    every = smoldiag("--all").stdout
    assert all(f"  {name} " in every for name in variables.specs())
    assert json.loads(smoldiag("NCCL_ALGO", "--format", "json").stdout)["name"] == "NCCL_ALGO"
    assert len(json.loads(smoldiag("--all", "--format", "json").stdout)) == len(variables.specs())


def test_facts_hold_every_variable_without_its_secrets() -> None:
    found = report("--facts", env={"NCCL_TOKEN": "hunter2hunter2", "FI_PROVIDER": "efa"})
    assert "hunter2" not in json.dumps(found)
    assert {r["variable"]["name"]: r["variable"]["value"] for r in found["facts"]["variables"]} == {
        "FI_PROVIDER": "efa",
        "NCCL_TOKEN": HIDDEN,
    }
    assert "hunter2" not in smoldiag(env={"NCCL_DEBGU": "token=hunter2hunter2"}).stdout


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--nccl-version", "new"], "error: --nccl-version 'new' is no version"),
        (["/nowhere/job.sh"], "error: /nowhere/job.sh can't be read"),
        (["NCCL_IB_HCAS"], "error: no variable NCCL_IB_HCAS is known"),
        (["--pid", "999999999"], "error: --pid 999999999: there is no process 999999999"),
        (["--pid", "1", "--pid", "2", "--pid", "3"], "error: too many things to look at"),
        (["a.sh", "--pid", "1"], "error: too many things to look at"),
        (["--root", "/nowhere"], "error: --root /nowhere is no folder"),
        ([sys.executable], " is no script"),
        (["tests"], "error: tests is a folder"),
    ],
)
def test_wrong_usage_is_a_sentence(args: list[str], error: str) -> None:
    done = smoldiag(*args)
    assert done.returncode == 2, done.stdout
    assert error in done.stderr
    assert "Traceback" not in done.stderr


def test_markup_in_values_stays_text() -> None:
    out = smoldiag(env={"NCCL_DEBUG_FILE": "[red]/tmp/[x].%h.%p", "NCCL_DEBUG": "WARN"}).stdout
    assert "NCCL_DEBUG_FILE=[red]/tmp/[x].%h.%p" in out


# -- what is set on healthy machines


def variables_of(text: str) -> dict[str, str]:
    """NAME=value, one a line."""
    return dict(line.strip().split("=", 1) for line in text.strip().splitlines())


TORCHRUN = variables_of("""
    MASTER_ADDR=10.0.0.1
    MASTER_PORT=29500
    WORLD_SIZE=16
    RANK=3
    LOCAL_RANK=3
    LOCAL_WORLD_SIZE=8
    GROUP_RANK=0
    GROUP_WORLD_SIZE=2
    ROLE_NAME=default
    ROLE_RANK=3
    ROLE_WORLD_SIZE=16
    OMP_NUM_THREADS=1
    TORCH_NCCL_ASYNC_ERROR_HANDLING=1
    TORCHELASTIC_RESTART_COUNT=0
    TORCHELASTIC_MAX_RESTARTS=0
    TORCHELASTIC_RUN_ID=none
    TORCHELASTIC_USE_AGENT_STORE=True
    TORCHELASTIC_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT
""")
STANDALONE = TORCHRUN | {"MASTER_ADDR": "localhost", "WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "1"}
SLURM = variables_of("""
    SLURM_JOB_ID=12
    SLURM_JOBID=12
    SLURM_JOB_NAME=x
    SLURM_NNODES=2
    SLURM_NTASKS=16
    SLURM_NTASKS_PER_NODE=8
    SLURM_CPUS_PER_TASK=24
    SLURM_CPU_BIND=quiet,mask_cpu:0xFFF
    SLURM_PROCID=3
    SLURM_LOCALID=3
    PMI_RANK=3
    CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
""")
NGC = variables_of("""
    CUDA_VERSION=12.9.1.010
    CUDA_CACHE_DISABLE=1
    CUDA_HOME=/usr/local/cuda
    CUDA_MODULE_LOADING=LAZY
    NCCL_VERSION=2.27.3
    TORCH_NCCL_USE_COMM_NONBLOCKING=0
    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1
    TORCH_CUDA_ARCH_LIST=8.0 8.6 9.0 10.0 12.0+PTX
    PYTORCH_HOME=/opt/pytorch/pytorch
    PYTORCH_BUILD_VERSION=2.8.0a0+5228986
    PYTORCH_BUILD_NUMBER=0
    PYTORCH_VERSION=2.8.0a0+5228986
    PYTORCH_TRITON_VERSION=3.3.0
    NVIDIA_VISIBLE_DEVICES=all
    LD_LIBRARY_PATH=/usr/local/cuda/compat/lib
""")
AWS = variables_of("""
    FI_PROVIDER=efa
    FI_EFA_USE_DEVICE_RDMA=1
    FI_EFA_FORK_SAFE=1
    FI_EFA_USE_HUGE_PAGE=0
    RDMAV_FORK_SAFE=1
    NCCL_SOCKET_IFNAME=^docker,lo,veth
    NCCL_BUFFSIZE=8388608
    NCCL_P2P_NET_CHUNKSIZE=524288
    NCCL_TUNER_PLUGIN=libnccl-ofi-tuner.so
    NCCL_NET_PLUGIN=ofi
    NCCL_DEBUG=WARN
    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
""")
AZURE = variables_of("""
    NCCL_IB_PCI_RELAXED_ORDERING=1
    NCCL_SOCKET_IFNAME=eth0
    NCCL_IB_QPS_PER_CONNECTION=4
    CUDA_DEVICE_ORDER=PCI_BUS_ID
    UCX_NET_DEVICES=mlx5_0:1
    UCX_TLS=rc
""")
GOOGLE = variables_of("""
    NCCL_FASTRAK_CTRL_DEV=eth0
    NCCL_FASTRAK_IFNAME=eth1,eth2
    NCCL_FASTRAK_USE_SNAP=1
    NCCL_SOCKET_IFNAME=eth0
    NCCL_CROSS_NIC=0
    NCCL_ALGO=Ring,Tree
    NCCL_PROTO=Simple,LL128
    NCCL_MIN_NCHANNELS=4
    NCCL_TUNER_PLUGIN=libnccl-tuner.so
    NCCL_DYNAMIC_CHUNK_SIZE=524288
    NCCL_P2P_NVL_CHUNKSIZE=1048576
    NCCL_NVLS_ENABLE=0
    NCCL_NET_GDR_LEVEL=PIX
""")
NICS = (
    *(Nic(name=n, kind="ethernet", up=True, addresses=("10.0.0.1/24",)) for n in ("eth0", "eth1", "docker0")),
    *(Nic(name=f"mlx5_{i}", device=f"mlx5_{i}", kind="infiniband", up=True, port=1) for i in range(8)),
)


@pytest.mark.parametrize("version", [None, "2.21.5", "2.27.5", "2.30.7"])
@pytest.mark.parametrize("nics", [None, NICS], ids=["without NICs", "with NICs"])
@pytest.mark.parametrize(
    "env",
    [TORCHRUN, STANDALONE, SLURM, NGC | TORCHRUN, AWS | TORCHRUN, AZURE | SLURM, GOOGLE | TORCHRUN],
    ids=["torchrun", "standalone", "slurm", "ngc", "aws", "azure", "google"],
)
def test_what_healthy_machines_set_is_no_warning(
    env: dict[str, str], nics: tuple[Nic, ...] | None, version: str | None, tmp_path: Path
) -> None:
    host = Host(name="n0", env=collect.env(root=tmp_path, environ=env), nics=nics, cpu_count=192)
    found = judge(Bundle(hosts=(host,)), Options(families=("ENV",), nccl_version=version)).findings
    assert [f.message for f in found if f.severity.value != "info"] == []


def test_no_variable_has_two_findings() -> None:
    for name, spec in variables.specs().items():
        for value in ("1", "4M", *spec.choices[:1]):
            host = Host(
                name="n0", env=collect.env(root=Path("/nowhere"), environ={name: value}), nics=NICS, cpu_count=8
            )
            found = environment.report(host).findings
            assert len(found) == len({f.subject for f in found}) <= 1, (name, value, [f.code for f in found])


def test_it_answers_at_once() -> None:
    smoldiag()
    spent = []
    for _ in range(3):
        before = os.times()
        smoldiag(env=ASKED)
        after = os.times()
        spent.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(spent) < 0.6  # seconds of CPU, where others may run beside
