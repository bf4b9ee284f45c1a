"""Labs for tests. Each lives as long as the session; each test gets it as it was made."""

import os
from collections.abc import Callable, Iterator

import pytest

from tests.lab import slurm, ssh
from tests.lab.hosts import Lab, LabError


@pytest.fixture
def two_hosts(_two_hosts: Lab) -> Iterator[Lab]:
    """node0 and node1 with sshd."""
    yield _two_hosts
    _two_hosts.restore()


@pytest.fixture
def three_hosts(_three_hosts: Lab) -> Iterator[Lab]:
    """node0, node1 and node2 with sshd."""
    yield _three_hosts
    _three_hosts.restore()


@pytest.fixture
def four_hosts(_four_hosts: Lab) -> Iterator[Lab]:
    """node0 to node3 with sshd."""
    yield _four_hosts
    _four_hosts.restore()


@pytest.fixture
def six_hosts(_six_hosts: Lab) -> Iterator[Lab]:
    """node0 to node5 with sshd."""
    yield _six_hosts
    _six_hosts.restore()


@pytest.fixture
def slurm_hosts(_slurm_hosts: Lab) -> Iterator[Lab]:
    """node0 and node1 under Slurm; commands on node0 submit to it."""
    yield _slurm_hosts
    _slurm_hosts.restore()
    slurm.restore(_slurm_hosts)


@pytest.fixture(scope="session")
def _two_hosts() -> Iterator[Lab]:
    yield from _lab(2, ssh.start)


@pytest.fixture(scope="session")
def _three_hosts() -> Iterator[Lab]:
    yield from _lab(3, ssh.start)


@pytest.fixture(scope="session")
def _four_hosts() -> Iterator[Lab]:
    yield from _lab(4, ssh.start)


@pytest.fixture(scope="session")
def _six_hosts() -> Iterator[Lab]:
    yield from _lab(6, ssh.start)


@pytest.fixture(scope="session")
def _slurm_hosts() -> Iterator[Lab]:
    yield from _lab(2, slurm.start)


def _lab(num_hosts: int, start: Callable[[Lab], object]) -> Iterator[Lab]:
    lab = None
    try:
        lab = Lab(num_hosts)
        start(lab)
    except LabError as error:
        if lab:
            lab.close()
        if os.environ.get("SMOLDIAG_REQUIRE_LAB") == "1":
            pytest.fail(f"the lab is required (SMOLDIAG_REQUIRE_LAB=1): {error}")
        pytest.skip(f"no lab: {error}")
    with lab:
        yield lab
