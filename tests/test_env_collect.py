"""The variables of a process and of NCCL's files, as NCCL would merge them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from smoldiag.collect import env as collect
from smoldiag.collect import host
from smoldiag.knowledge import variables
from smoldiag.model.environment import is_relevant


def tree(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / {"etc": "etc/nccl.conf", "home": "home/u/.nccl.conf", "own": "opt/own.conf"}[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_process_goes_before_the_files_and_the_own_file_before_the_host_s(tmp_path: Path) -> None:
    root = tree(tmp_path, etc="NCCL_A=3\nNCCL_B=3\nNCCL_C=3\n", home="NCCL_B=2\nNCCL_A=2\n")
    found = collect.env(root=root, environ={"NCCL_A": "1", "HOME": "/home/u", "PATH": "/bin"})
    assert [(v.name, v.value, v.origin, v.shadowed) for v in found] == [
        ("NCCL_A", "1", "environment", ("/home/u/.nccl.conf:2 (2)", "/etc/nccl.conf:1 (3)")),
        ("NCCL_B", "2", "/home/u/.nccl.conf:1", ("/etc/nccl.conf:2 (3)",)),
        ("NCCL_C", "3", "/etc/nccl.conf:3", ()),
    ]


def test_a_named_file_replaces_that_of_the_home_folder_alone(tmp_path: Path) -> None:
    root = tree(tmp_path, etc="NCCL_B=3\n", home="NCCL_A=2\n", own="NCCL_A=9\n")
    found = collect.env(root=root, environ={"HOME": "/home/u", "NCCL_CONF_FILE": "/opt/own.conf"})
    assert {v.name: v.value for v in found} == {"NCCL_A": "9", "NCCL_B": "3", "NCCL_CONF_FILE": "/opt/own.conf"}
    missing = collect.env(root=root, environ={"HOME": "/home/u", "NCCL_CONF_FILE": "~/own.conf"})
    assert {v.name: v.exists for v in missing} == {"NCCL_B": None, "NCCL_CONF_FILE": False}


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("NCCL_A=1", ("NCCL_A", "1")),
        ("NCCL_SOCKET_IFNAME==eth0", ("NCCL_SOCKET_IFNAME", "=eth0")),
        ("NCCL_A= 1 ", ("NCCL_A", " 1 ")),
        ('NCCL_A="1"', ("NCCL_A", '"1"')),
        ("NCCL_A =1", ("NCCL_A ", "1")),
        ("NCCL_A=1 # why", ("NCCL_A", "1 # why")),
        (" # NCCL_A=1", None),  # no comment, but no name of ours either
        ("NCCL_A=1\r", ("NCCL_A", "1")),
        ("# NCCL_A=1", None),
        ("NCCL_A", None),
        ("=1", None),
        ("export NCCL_A=1", None),
    ],
)
def test_lines_of_a_file_are_taken_as_they_stand(line: str, read: tuple[str, str] | None, tmp_path: Path) -> None:
    found = collect.env(root=tree(tmp_path, etc=f"{line}\n"), environ={})
    assert [(v.name, v.value) for v in found] == ([read] if read else [])


def test_the_first_line_of_a_name_counts(tmp_path: Path) -> None:
    found = collect.env(root=tree(tmp_path, etc="NCCL_A=1\nNCCL_A=2\n"), environ={})
    assert [(v.value, v.shadowed) for v in found] == [("1", ("/etc/nccl.conf:2 (2)",))]


def test_secrets_are_gone_and_what_does_not_concern_training_is_left_out() -> None:
    environ = {"NCCL_TOKEN": "hunter2hunter2", "FI_PROVIDER": "efa", "AWS_SECRET_ACCESS_KEY": "x", "EDITOR": "vi"}
    found = collect.env(environ=environ | {"NCLL_DEBUG": "INFO"})
    assert {v.name: v.value for v in found if v.origin == "environment"} == {
        "NCCL_TOKEN": "[redacted]",
        "FI_PROVIDER": "efa",
        "NCLL_DEBUG": "INFO",
    }


def test_every_variable_of_the_table_is_collected() -> None:
    assert {name for name in variables.specs() if not is_relevant(name)} == {"HOME"}


def test_a_running_process_is_read() -> None:
    environ = {"NCCL_DEBUG": "INFO", "PATH": os.environ["PATH"]}
    waits = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(waits, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as process:
        assert process.stdout
        process.stdout.readline()  # it runs
        found = collect.env(pid=process.pid)
        whole = host.collect(pid=process.pid).env
        process.kill()
    assert [(v.name, v.origin) for v in found] == [("NCCL_DEBUG", f"/proc/{process.pid}/environ")]
    assert whole == found


def test_a_process_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="there is no process 99"):
        collect.env(root=tmp_path, pid=99)
    assert host.collect(root=tmp_path, pid=99).unread["env"] == "there is no process 99"


def test_the_files_of_a_container_are_those_that_its_process_sees(tmp_path: Path) -> None:
    tree(tmp_path, etc="NCCL_A=host\n")
    tree(tmp_path / "proc/7/root", etc="NCCL_A=container\n")
    (tmp_path / "proc/7/environ").write_bytes(b"NCCL_B=1\0NCCL_C=a=b\0")
    found = collect.env(root=tmp_path, pid=7)
    assert {v.name: v.value for v in found} == {"NCCL_A": "container", "NCCL_B": "1", "NCCL_C": "a=b"}
