"""Archives of hosts: the same facts come out, no secret goes in, and a bad archive is a sentence."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from smoldiag import bundle as archives
from smoldiag.bundle import Bundle, Log
from smoldiag.errors import SmoldiagError
from smoldiag.facts import Cpu, Env, Fault, Gpu, Host, HostProcess, Launch, Library, System, Variable

SECRETS = {
    "token": "hf_abcdefghijklmnopqrstuvwxyz123456",
    "password": "correct-horse-battery",
    "key": "AKIAIOSFODNN7EXAMPLE",
    "signature": "f4e1c0ffee0badc0de12f4e1c0ffee0badc0de12",
}
URL = f"https://bucket.s3.amazonaws.com/data?X-Amz-Credential=x&X-Amz-Signature={SECRETS['signature']}"


def host(name: str = "node0", **facts: object) -> Host:
    given = {
        "gpus": (Gpu(index=0, name="NVIDIA H100", p2p={1: "ok"}, compute_capability=(9, 0)),),
        "cpu": Cpu(cpus_of_numa={0: (0, 1)}),
        "versions": {"nccl": "2.27.5"},
    }
    return Host(name=name, **(given | facts))  # type: ignore[arg-type]


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    fault = Fault(kind="unreachable", hosts=("node9",), stage="reach hosts", detail="no route")
    saved = Bundle(
        hosts=(host("a"), host("b", unread={"nics": "no"})),
        launch=Launch(launcher="ssh", seats=(), faults=(fault,)),
        logs=(Log(host="a", path="/var/log/x", text="line\n"), Log(host="b", path="/y", text="", error="No such file")),
    )
    archives.save(saved, tmp_path / "x.zip")
    assert archives.load([tmp_path / "x.zip"], logs=True) == saved
    assert [p.name for p in tmp_path.iterdir()] == ["x.zip"]


def test_no_secret_is_in_the_archive(tmp_path: Path) -> None:
    variables = [
        Variable(name="HF_TOKEN", value=SECRETS["token"], origin="/etc/nccl.conf:1"),
        Variable(
            name="NCCL_NET_PLUGIN", value=f"x --password={SECRETS['password']}", origin=f"--token {SECRETS['token']}"
        ),
        Variable(name="DATA", value=URL, origin="environment"),
    ]
    env = Env(variables=tuple(variables))
    process = HostProcess(pid=1, command=f"python train.py --api-key {SECRETS['key']} --url {URL}", env=env)
    planted = host(
        env=env,
        processes=(process,),
        system=System(command_line=f"quiet ds=nocloud;s=http://user:{SECRETS['password']}@host/ aws={SECRETS['key']}"),
        libraries=(Library(name="x", path=f"/opt/{SECRETS['token']}/lib.so"),),
        unread={"nics": f"could not: {URL}"},
        ids={"password": SECRETS["password"]},
    )
    text = f"a\n-----BEGIN RSA PRIVATE KEY-----\nMIIabc{SECRETS['signature']}\n-----END RSA PRIVATE KEY-----\n{URL}\n"
    fault = Fault(kind="lost", hosts=(), stage="x", detail=f"Authorization: Bearer {SECRETS['token']}")
    log = Log(host="node0", path=f"/x?sig={SECRETS['signature']}", text=text)
    archives.save(
        Bundle(hosts=(planted,), logs=(log,), launch=Launch(launcher="ssh", seats=(), faults=(fault,))),
        tmp_path / "x.zip",
    )
    with zipfile.ZipFile(tmp_path / "x.zip") as z:
        everything = b"".join(z.read(n) for n in z.namelist()).decode() + "".join(z.namelist())
    assert [name for name, secret in SECRETS.items() if secret in everything] == []


def test_cleaning_twice_changes_nothing() -> None:
    dirty = host(env=Env(variables=(Variable(name="A", value=f"--token abc {URL} x:y@z", origin="x"),)))
    assert archives.clean(archives.clean(dirty)) == archives.clean(dirty)


def test_the_latest_reading_of_a_machine_counts(tmp_path: Path) -> None:
    for day, machine in ((1, "m"), (2, "m"), (1, "other")):
        saved = host(created=f"2026-01-0{day}", system=System(machine_id=machine))
        archives.save(Bundle(hosts=(saved,)), tmp_path / f"{day}{machine}.zip")
    loaded = archives.load([tmp_path])
    assert [(h.created[-1], h.system.machine_id) for h in loaded.hosts if h.system] == [("2", "m"), ("1", "other")]


def test_folders_and_patterns_name_archives(tmp_path: Path) -> None:
    for name in "ab":
        archives.save(Bundle(hosts=(host(name),)), tmp_path / f"{name}.zip")
    for named in (tmp_path, tmp_path / "*.zip", tmp_path / "[ab].zip"):
        assert [h.name for h in archives.load([named]).hosts] == ["a", "b"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(SmoldiagError, match=r"no \*\.zip in this folder"):
        archives.load([tmp_path / "empty"])
    with pytest.raises(SmoldiagError, match="no file matches"):
        archives.load([tmp_path / "c*.zip"])


def test_equal_facts_of_many_hosts_are_kept_once(tmp_path: Path) -> None:
    archives.save(Bundle(hosts=tuple(host(f"n{i}") for i in range(3))), tmp_path / "x.zip")
    first, *others = archives.load([tmp_path / "x.zip"]).hosts
    assert all(h.gpus is first.gpus for h in others)


def with_index(**changes: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        index = {"schema": "smoldiag.bundle/1", "hosts": ["hosts/00000.json"]} | changes
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
            z.writestr("bundle.json", json.dumps(index))
            z.writestr("hosts/00000.json", json.dumps({"name": "n"}))
            z.writestr("../escape", "x")

    return write


def with_host(text: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
            z.writestr("bundle.json", json.dumps({"schema": "smoldiag.bundle/1", "hosts": ["hosts/00000.json"]}))
            z.writestr("hosts/00000.json", text)

    return write


def cut_off(path: Path) -> None:
    archives.save(Bundle(hosts=(host(),)), path)
    path.write_bytes(path.read_bytes()[:-100])


def damaged(path: Path) -> None:
    archives.save(Bundle(hosts=(host(),)), path)
    data = bytearray(path.read_bytes())
    data[60:80] = bytes(20)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("write", "error"),
    [
        (lambda path: path.write_bytes(b""), "is no smoldiag bundle"),
        (lambda path: path.write_text("hello"), "is no smoldiag bundle"),
        (lambda path: None, "No such file"),
        (cut_off, "is no smoldiag bundle"),
        (damaged, "can't be read"),
        (with_index(schema="smoldiag.bundle/2"), "its schema is smoldiag.bundle/2"),
        (with_index(schema=None), "is no smoldiag bundle"),
        (with_index(hosts=["../escape"]), "'../escape' is no name of a file in a bundle"),
        (with_index(hosts=["hosts/00001.json"]), "hosts/00001.json is missing"),
        (with_index(hosts=7), "is no smoldiag bundle"),
        (with_host(b"[]"), "is no facts of a host"),
        (with_host(b"{"), "is no facts of a host"),
        (with_host(b"{}"), "is no facts of a host"),
        (with_host(b'{"name": 7}'), "is no facts of a host"),
        (with_host(b'{"name": "n", "gpus": [{"index": "x"}]}'), "is no facts of a host"),
        (with_host(b"[" * 100_000), "is no facts of a host"),
        (with_host(b" " * (archives.MAX_HOST_BYTES + 1)), "is larger than 16 MiB"),
    ],
)
def test_what_is_no_bundle_is_a_sentence(tmp_path: Path, write: Callable[[Path], object], error: str) -> None:
    write(tmp_path / "x.zip")
    with pytest.raises(SmoldiagError, match=error):
        archives.load([tmp_path / "x.zip"])
