"""The probes on real hosts that share two cores: who is held up, whose disk is full, and nobody else."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from smoldiag import probes, rules
from smoldiag.findings import Finding, Severity
from smoldiag.rules import Known
from tests.lab import software
from tests.lab.hosts import CHECKOUT, Lab, LabError

pytestmark = pytest.mark.lab
CODE = """
import json, os, sys, torch
sys.path.insert(0, sys.argv[1])
from smoldiag.ranks import Rank
from benchmarks import compute, memory, storage
torch.set_num_threads(1)
me = Rank(rank=0, world_size=1, local_rank=0, host_of_rank=(0,), hosts=(os.uname().nodename,), backend="gloo",
          device=torch.device("cpu"), config={})
config = {"budget_s": 2.0, "path": sys.argv[2]}
print("RECORD" + json.dumps({m.__name__.split(".")[1]: m.measure(me, config) for m in (compute, memory, storage)}))
"""


def measured(lab: Lab, path: str = "/tmp") -> list[Finding]:
    """What the rules say that is worth a warning, of all hosts at the same time."""
    argv: list[str | Path] = [software.without_smoldiag(lab), "-c", CODE, CHECKOUT, path]
    running = [h.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for h in lab.hosts]
    records: dict[str, dict[int, Mapping[str, Any]]] = {}
    for rank, process in enumerate(running):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        for name, record in json.loads(out.partition("RECORD")[2]).items():
            records.setdefault(name, {})[rank] = record
    known = Known(probes=probes.read(records, [h.name for h in lab.hosts]))
    outcomes = list(rules.run(known, [r for r in rules.RULES.values() if "probes" in r.needs]))
    assert not [o for o in outcomes if o.crashed], outcomes
    return [f for o in outcomes for f in o.findings if f.severity is not Severity.INFO]


@pytest.fixture(scope="module")
def four_hosts() -> Iterator[Lab]:
    try:
        lab = Lab(4)
    except LabError as error:
        pytest.skip(f"no lab: {error}")
    with lab:
        yield lab


def test_hosts_that_are_well_are_left_alone(four_hosts: Lab) -> None:
    assert measured(four_hosts) == []


def test_a_host_under_a_quota_is_named(four_hosts: Lab) -> None:
    four_hosts.hosts[2].cpu_quota(0.25)
    found = measured(four_hosts)
    four_hosts.restore()
    assert [(f.code, f.where.hosts) for f in found] == [("HST063", ("node2",))]


def test_a_host_whose_disk_is_full_is_named_and_nothing_is_written(four_hosts: Lab) -> None:
    for host in four_hosts.hosts:
        host.run(["mkdir", "-p", "/tmp/scratch"], check=True)
    full = four_hosts.hosts[1]
    full.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/tmp/scratch"], check=True)
    full.run(["sh", "-c", "head -c 2M /dev/zero > /tmp/scratch/data || true"])
    found = measured(four_hosts, "/tmp/scratch")
    assert full.run(["ls", "-A", "/tmp/scratch"], check=True).stdout == "data\n"
    full.run(["umount", "/tmp/scratch"], check=True)
    assert [(f.code, f.where.hosts) for f in found] == [("STO040", ("node1",))]
    assert "/tmp/scratch on node1 is full" in found[0].message
