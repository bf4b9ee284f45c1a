"""Hangs of real ranks on two hosts (gloo): `explain` on what they leave names cause, rank, host and line."""

import itertools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.hangs.record import FAULTY, RANKS
from tests.hangs.test_recorded import CAUSES, alarms, lines_of
from tests.hangs.train import FAULTS, LOOPS
from tests.lab.hosts import CHECKOUT, Lab, finished

pytestmark = pytest.mark.lab

PER_HOST = RANKS // 2
HOST = f"node{FAULTY // PER_HOST}"
ABORTED = {("flat", "size"), ("flat", "order")}  # gloo ends a rank whose message does not fit: it leaves no dump
each = pytest.mark.parametrize(("loop", "fault"), list(itertools.product(LOOPS, FAULTS)))


@pytest.fixture(scope="module")
def recorded(_two_hosts: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LOOP-FAULT/rank_N.pickle, .json and job.log, as two hosts wrote them within one minute."""
    there = _two_hosts.folder / "hangs"
    there.mkdir()
    env = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"}
    ranks = [[str(h.index * PER_HOST + i) for i in range(PER_HOST)] for h in _two_hosts.hosts]
    started = [
        h.popen([sys.executable, "-m", "tests.hangs.record", there, *own], cwd=CHECKOUT, env=env)
        for h, own in zip(_two_hosts.hosts, ranks, strict=True)
    ]
    assert [finished(p, timeout=120).returncode for p in started] == [0, 0]
    out = tmp_path_factory.mktemp("hangs") / "hangs"
    shutil.copytree(there, out)  # with the times of the dumps
    for folder in out.iterdir():
        (folder / "job.log").write_text("".join(labelled(folder, rank) for rank in range(RANKS)))
    return out


def labelled(folder: Path, rank: int) -> str:
    """A rank's output as a parallel shell and torchrun put host and rank before each line."""
    lines = (folder / f"rank_{rank}.log").read_text().splitlines()
    return "".join(f"node{rank // PER_HOST}: [rank{rank}]: {line}\n" for line in lines)


def dumps(folder: Path, ending: str = "pickle") -> list[Path]:
    return sorted(folder.glob(f"*.{ending}"))


@each
def test_dumps_alone(recorded: Path, loop: str, fault: str) -> None:
    first = alarms(*dumps(recorded / f"{loop}-{fault}"))[0]
    assert first.where.ranks == (FAULTY,), first.message
    assert names_a_line(first.message, fault, loop), first.message
    if (loop, fault) in ABORTED:
        assert first.confidence.value != "certain"
        assert "left no dump" in first.message
    else:
        assert first.cause in CAUSES[fault], first.message


@each
def test_dumps_as_json_which_have_no_stacks(recorded: Path, loop: str, fault: str) -> None:
    first = alarms(*dumps(recorded / f"{loop}-{fault}", "json"))[0]
    assert first.where.ranks == (FAULTY,), first.message
    if (loop, fault) not in ABORTED:
        assert first.cause in CAUSES[fault], first.message


@each
def test_dumps_and_logs(recorded: Path, loop: str, fault: str) -> None:
    folder = recorded / f"{loop}-{fault}"
    first = alarms(*dumps(folder), folder / "job.log")[0]
    assert first.cause in CAUSES[fault], first.message
    assert (first.where.ranks, first.where.hosts) == ((FAULTY,), (HOST,)), first.message
    assert names_a_line(first.message, fault, loop), first.message


@each
@pytest.mark.parametrize("with_log", [False, True], ids=["dumps", "dumps and log"])
def test_half_of_the_dumps(recorded: Path, loop: str, fault: str, with_log: bool) -> None:
    """The rank is named, alone or in a shortlist; what is certain is right."""
    folder = recorded / f"{loop}-{fault}"
    for kept in halves(dumps(folder)):
        found = alarms(*kept, *([folder / "job.log"] if with_log else []))
        assert FAULTY in {r for f in found for r in f.where.ranks}, [f.message for f in found]
        assert all(f.where.ranks == (FAULTY,) for f in found if f.confidence.value == "certain")


@pytest.mark.parametrize("loop", LOOPS)
def test_a_healthy_run_raises_no_alarm(recorded: Path, loop: str) -> None:
    folder = recorded / f"{loop}-none"
    assert not alarms(*dumps(folder), folder / "job.log")
    for kept in halves(dumps(folder)):
        assert not alarms(*kept), kept


def halves(files: Sequence[Path]) -> list[tuple[Path, ...]]:
    return list(itertools.combinations(files, RANKS // 2))


def names_a_line(message: str, fault: str, loop: str) -> bool:
    return any(line in message for line in lines_of(fault, loop))
