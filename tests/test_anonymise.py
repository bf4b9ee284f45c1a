"""Pseudonyms: nothing of the names is left, and what rules read out of them is."""

from dataclasses import replace

import msgspec
import pytest

from benchmarks.peers import fleet
from smoldiag import anonymise, doctor
from smoldiag.bundle import Bundle, Log, without_names
from smoldiag.facts import Env, Fault, HostProcess, Launch, Library, Mount, Nic, Variable

NAMES = {
    "host": "nodeX7",
    "domain": "secretlab",
    "address": "10.33.44.55",
    "public": "147.200.3.4",
    "ip6": "2a01:4f8:1c:77::9",
    "user": "alicemiller",
    "project": "moonshot",
    "serial": "SN12345678",
    "gpu": "GPU-aaaa-bbbb",
    "master": "headnode9",
    "unreached": "othernode3",
}


def named() -> Bundle:
    host = replace(
        fleet.host(1),
        name=NAMES["host"],
        aliases=(f"{NAMES['host']}.{NAMES['domain']}.org", NAMES["address"]),
        ids={"serial": NAMES["serial"]},
        gpus=(fleet.gpu(1, 0), replace(fleet.gpu(1, 1), uuid=NAMES["gpu"])),
        nics=(Nic(name="eth0", kind="ethernet", addresses=(f"{NAMES['address']}/16", f"{NAMES['ip6']}/64")),),
        env=Env(
            variables=(
                Variable(name="MASTER_ADDR", value=NAMES["master"], origin=f"/home/{NAMES['user']}/job.sbatch:3"),
                Variable(name="SLURM_JOB_NAME", value=NAMES["project"], origin="environment"),
            )
        ),
        mounts=(Mount(path=f"/fsx/{NAMES['project']}", source=f"{NAMES['public']}@tcp:/x", kind="lustre"),),
        libraries=(Library(name="libnccl.so.2", path=f"/home/{NAMES['user']}/venv/lib/python3.11/x/libnccl.so.2"),),
        processes=(HostProcess(pid=7, command=f"python /home/{NAMES['user']}/{NAMES['project']}.py"),),
        unread={"dcgm": f"ssh {NAMES['user']}@{NAMES['host']}: {NAMES['address']} refused"},
    )
    text = f"{NAMES['host']}: {NAMES['host']}.{NAMES['domain']}.org [{NAMES['address']}]:29500 {NAMES['ip6']}\n"
    fault = Fault(
        kind="unreachable",
        hosts=(f"{NAMES['user']}@{NAMES['unreached']}",),
        stage="reach hosts",
        detail=f"ssh: connect to host {NAMES['unreached']} port 22: No route to host",
    )
    launch = Launch(launcher="ssh", seats=(), faults=(fault,))
    return Bundle(
        hosts=(host,), launch=launch, logs=(Log(host=NAMES["host"], path=f"/home/{NAMES['user']}/a.log", text=text),)
    )


def test_no_name_is_left() -> None:
    made = without_names(named(), users=[NAMES["user"]])
    everything = msgspec.json.encode(made).decode()
    assert [kind for kind, name in NAMES.items() if name in everything] == []
    assert made.hosts[0].name == "host-1"
    assert made.logs[0].text.startswith("host-1: host-1.example [10.")
    assert made.hosts[0].libraries
    assert made.hosts[0].libraries[0].path == "/home/user-1/venv/lib/python3.11/folder-3/libnccl.so.2"


def test_the_same_hosts_get_the_same_pseudonyms() -> None:
    assert without_names(named()) == without_names(named())


def test_rules_find_the_same_in_what_is_anonymised() -> None:
    hosts = fleet.cluster(4)
    odd = replace(hosts[2], gpus=(hosts[2].gpus or ())[:7], nics=(hosts[2].nics or ())[1:])
    bundle = Bundle(hosts=(*hosts[:2], odd, hosts[3]))
    options = doctor.Options()
    before = doctor.judge(bundle, options)
    after = doctor.judge(without_names(bundle), options)
    assert [(f.code, f.cause, len(f.where.hosts)) for f in before.findings] == [
        (f.code, f.cause, len(f.where.hosts)) for f in after.findings
    ]
    assert len(before.findings) == 2
    assert {h for f in after.findings for h in f.where.hosts} == {"host-3"}


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("10.1.2.3 10.1.2.4 10.1.9.3 10.0.0.0/8", "10.1.1.1 10.1.1.2 10.1.2.1 10.0.0.0/8"),
        ("192.168.7.7 172.16.3.3 127.0.0.1 169.254.1.1", "192.168.1.1 172.16.1.1 127.0.0.1 169.254.1.1"),
        ("fe80::1234:5678 ::1 ::ffff:10.1.2.3", "fe80::1 ::1 ::ffff:10.1.1.1"),
        ("fe80:0000:0000:0000:0000:0000:0000:abcd", "fe80:0000:0000:0000:0000:0000:0000:0001"),
        ("0000:1b:00.0 std::vector 12:34:56", "0000:1b:00.0 std::vector 12:34:56"),
        ("de:ad:be:ef:00:01 1070:fd03:00ab:cdef", "02:00:00:00:00:01 0000:0000:0000:0001"),
        ("/usr/lib/x/y.so /proc/4242/environ /etc/nccl.conf:3", "/usr/lib/x/y.so /proc/4242/environ /etc/nccl.conf:3"),
        ("/scratch/team/run 1.log", "/scratch/folder-1/folder-2 1.log"),
        ("https://me:x@git.corp.io:8443/a", "https://user:[redacted]@server-1:8443/folder-1"),
        ("NET/IB : Using [0]mlx5_0:1/RoCE 12 GB/s", "NET/IB : Using [0]mlx5_0:1/RoCE 12 GB/s"),
    ],
)
def test_texts(text: str, made: str) -> None:
    assert anonymise.Pseudonyms().text(text) == made
