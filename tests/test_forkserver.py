"""Ranks that are forked from one process with torch loaded: they come, they are not lost, and nothing stays behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smoldiag.launch import forkserver

BENCH = [sys.executable, "-m", "smoldiag", "nccl-bench", "--ranks-per-node", "3", "--format", "json"]
SHORT, LONG = ["--sizes", "4KiB"], ["--sizes", "1MiB,16MiB", "--budget", "20"]
pytestmark = pytest.mark.skipif(
    not forkserver.fits(2), reason="this machine has accelerators: ranks are not forked here"
)


@pytest.fixture
def bench(tmp_path: Path) -> "Bench":
    return Bench(tmp_path.name, SHORT)


@pytest.fixture
def long_bench(tmp_path: Path) -> "Bench":
    return Bench(tmp_path.name, LONG)


class Bench:
    """One command of ours, and the processes that it has at this moment."""

    def __init__(self, marker: str, options: list[str]) -> None:
        self.marker = f"SMOLDIAG_TEST={marker}".encode()
        env = {"PATH": "/usr/bin:/bin", "SMOLDIAG_TEST": marker}
        self.process = subprocess.Popen([*BENCH, *options], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def processes(self) -> dict[int, list[str]]:
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.marker in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
        return found

    def server(self) -> int:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            for pid, words in self.processes().items():
                if any('"pids"' in word for word in words):
                    return pid
            time.sleep(0.01)
        raise AssertionError("no fork server")

    def document(self) -> dict[str, list[dict[str, object]]]:
        out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, err.decode()
        found: dict[str, list[dict[str, object]]] = json.loads(out)
        return found

    def gone(self) -> bool:
        until = time.monotonic() + 10
        while self.processes() and time.monotonic() < until:
            time.sleep(0.05)
        return not self.processes()


def test_ranks_are_forked_and_share_what_they_loaded(bench: Bench) -> None:
    bench.server()
    assert [row["wrong"] for row in bench.document()["results"]] == [0, 0, 0]
    assert bench.gone()


def test_ranks_that_are_not_born_are_started_by_themselves(bench: Bench) -> None:
    os.kill(bench.server(), signal.SIGKILL)
    assert [row["wrong"] for row in bench.document()["results"]] == [0, 0, 0]
    assert bench.gone()


@pytest.mark.parametrize("after_s", [0.0, 0.3, 0.6, 0.8])
def test_an_agent_that_is_killed_takes_fork_server_and_ranks_along(long_bench: Bench, after_s: float) -> None:
    parent = int(Path(f"/proc/{long_bench.server()}/stat").read_text().rpartition(") ")[2].split()[1])
    time.sleep(after_s)
    os.kill(parent, signal.SIGKILL)
    long_bench.process.communicate(timeout=60)
    assert long_bench.process.returncode == 3
    assert long_bench.gone()


def test_an_interrupt_while_torch_is_loaded_leaves_nothing(long_bench: Bench) -> None:
    long_bench.server()
    long_bench.process.send_signal(signal.SIGINT)
    long_bench.process.communicate(timeout=60)
    assert long_bench.gone()


@pytest.mark.parametrize(
    ("count", "device", "fits"), [(2, None, True), (1, None, False), (65, None, False), (8, "x", False)]
)
def test_only_several_ranks_on_a_host_without_accelerators(
    count: int, device: str | None, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = [tmp_path / "nvidiactl", tmp_path / "kfd"]
    monkeypatch.setattr(forkserver, "ACCELERATORS", tuple(map(str, here)))
    if device:
        here[1].touch()
    assert forkserver.fits(count) is fits


def test_a_rank_that_is_not_wanted_goes_as_soon_as_it_comes() -> None:
    pids_r, pids_w = os.pipe()
    os.set_blocking(pids_r, False)
    mother = subprocess.Popen([sys.executable, "-c", "pass"])
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    rank = forkserver.Forked(forkserver.RankFds(0, 1, 2, 3), mother.pid)
    there = forkserver.ForkServer(mother, pids_r, [rank])
    assert not there.take()
    rank.kill()
    assert (rank.poll(), rank.wait(1.0)) == (None, -signal.SIGKILL)
    os.write(pids_w, b"0 %d\n" % child.pid)
    os.close(pids_w)
    assert not there.take()
    assert there.take()
    assert rank.returncode == -signal.SIGKILL
    os.close(pids_r)
    child.returncode = rank.returncode  # it is gone
