"""Hangs recorded on real ranks (gloo): from dumps and logs the cause, the rank and the line are named."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smoldiag import explain
from smoldiag.findings import Finding, Severity
from tests.hangs.train import FAULTS, LOOPS

ROOT = Path(__file__).parent.parent.parent
TRAIN = Path(__file__).with_name("train.py")
FAULTY = 2
MISMATCH = {"collective-mismatch"}
GONE = {"rank-died", "straggler-or-hung-rank"}
CAUSES = {
    "skip": MISMATCH,
    "size": MISMATCH,
    "order": MISMATCH,
    "branch": MISMATCH,
    "uneven": {"uneven-data-across-ranks"},
    "killed": GONE,
    "stopped": GONE,
    "slow": {"straggler-or-hung-rank"},
}
ALARMS = (Severity.ERROR, Severity.WARNING)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recorded")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "tests.hangs.record", str(out)], cwd=ROOT, env=env, timeout=250)
    assert done.returncode == 0
    return out


def alarms(*files: Path) -> list[Finding]:
    found = explain.explain([str(f) for f in files]).report.findings
    return [f for f in found if f.severity in ALARMS]


def lines_of(fault: str, loop: str) -> set[str]:
    """The lines that a reader wants to be led to: the fault's, or those of the collectives around it."""
    named = [
        i for i, line in enumerate(TRAIN.read_text().splitlines(), 1) if "# fault: " in line or "# place: " in line
    ]
    return {f"train.py:{i}" for i in named}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("loop", LOOPS)
def test_cause_rank_and_line_are_named(recorded: Path, loop: str, fault: str) -> None:
    folder = recorded / f"{loop}-{fault}"
    first = alarms(folder)[0]
    assert first.cause in CAUSES[fault], first.message
    assert first.where.ranks == (FAULTY,), first.message
    assert any(line in first.message for line in lines_of(fault, loop)), first.message


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("loop", LOOPS)
def test_half_of_the_dumps_name_it_or_a_shortlist(recorded: Path, loop: str, fault: str) -> None:
    dumps = sorted((recorded / f"{loop}-{fault}").glob("*.pickle"))
    for kept in itertools.combinations(dumps, 2):
        found = alarms(*kept)
        assert found, kept
        assert FAULTY in {r for f in found for r in f.where.ranks}, [f.message for f in found]
        assert all(f.where.ranks == (FAULTY,) for f in found if f.confidence.value == "certain")


@pytest.mark.parametrize("loop", LOOPS)
def test_a_healthy_run_raises_no_alarm(recorded: Path, loop: str) -> None:
    dumps = sorted((recorded / f"{loop}-none").glob("*.pickle"))
    assert len(dumps) == 4
    for count in (4, 3, 2):
        for kept in itertools.combinations(dumps, count):
            assert not alarms(*kept), kept
