"""What describes a machine's inside, in every form."""

import pytest

from smoldiag.facts import Topology
from smoldiag.parse.topology import smi_matrix

HGX = """\
\x1b[4mGPU0\tGPU1\tNIC0\tNIC1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tPIX\tSYS\t0-55,112-167\t0\t\tN/A
GPU1\tNV18\t X \tSYS\tNODE\t56-111,168-223\t1\t\tN/A
NIC0\tPIX\tSYS\t X \tSYS\t\t\t\t
NIC1\tSYS\tNODE\tSYS\t X \t\t\t\t

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NV#  = Connection traversing a bonded set of # NVLinks

NIC Legend:

  NIC0: mlx5_0
  NIC1: mlx5_bond_1
"""
OLD = """\
$ nvidia-smi topo -m
        GPU0    GPU1    GPU2    mlx5_0  CPU Affinity
GPU0     X      NV2     SOC     NODE    0-23,48-71
GPU1    NV2      X      PHB     PXB     0-23,48-71
"""
CUT = """\
        GPU0    GPU1    GPU2    ...
GPU0     X      NV4     NODE    ...
GPU1    NV4      X      NODE    ...
"""
VIRTUAL = """\
2025-01-01T00:00:00 node7:         GPU0    GPU1    CPU Affinity    NUMA Affinity
2025-01-01T00:00:00 node7: GPU0     X      PHB     0-191   0-1
2025-01-01T00:00:00 node7: GPU1    PHB      X      0-191   0-1
"""
ONE = "\tGPU0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\nGPU0\t X \t0-15\t0\t\tN/A\n"


def matrix(text: str) -> Topology:
    found = smi_matrix(text)
    assert found is not None
    return found


def test_the_matrix_of_a_new_version() -> None:
    t = matrix(HGX)
    assert [(d.name, d.kind, d.index, d.numa) for d in t.devices] == [
        ("GPU0", "gpu", 0, (0,)),
        ("GPU1", "gpu", 1, (1,)),
        ("mlx5_0", "nic", None, None),
        ("mlx5_bond_1", "nic", None, None),
    ]
    kinds = {p.ends: (p.kind, p.written) for p in t.paths}
    assert kinds == {
        ("GPU0", "GPU1"): ("NVL", "NV18"),
        ("GPU0", "mlx5_0"): ("PIX", None),
        ("GPU0", "mlx5_bond_1"): ("SYS", None),
        ("GPU1", "mlx5_0"): ("SYS", None),
        ("GPU1", "mlx5_bond_1"): ("PHB", "NODE"),
    }


def test_the_matrix_of_an_old_version_with_rows_missing() -> None:
    t = matrix(OLD)
    kinds = {p.ends: p.kind for p in t.paths}
    assert kinds == {
        ("GPU0", "GPU1"): "NVL",
        ("GPU0", "GPU2"): "SYS",
        ("GPU0", "mlx5_0"): "PHB",
        ("GPU1", "GPU2"): "PHB",
        ("GPU1", "mlx5_0"): "PXB",
    }
    assert [d.name for d in t.nics] == ["mlx5_0"]


def test_a_matrix_that_was_cut() -> None:
    assert [p.ends for p in matrix(CUT).paths] == [("GPU0", "GPU1"), ("GPU0", "GPU2"), ("GPU1", "GPU2")]


def test_a_virtual_machine_names_several_numa_nodes() -> None:
    assert [d.numa for d in matrix(VIRTUAL).gpus] == [(0, 1), (0, 1)]


def test_one_gpu() -> None:
    assert (len(matrix(ONE).gpus), matrix(ONE).paths) == (1, ())


@pytest.mark.parametrize("text", ["", "GPU0 is busy", "GPU0 GPU1\nnothing here\n", "X X X\n" * 100, "GPU0\n" * 100])
def test_what_is_no_matrix_gives_nothing(text: str) -> None:
    assert smi_matrix(text) is None
