"""What describes a machine's inside, in every form."""

from pathlib import Path

import pytest

from smoldiag.errors import SmoldiagError
from smoldiag.facts import Topology
from smoldiag.model import topology as model
from smoldiag.parse.topology import parse, smi_matrix

VENDORS = Path(__file__).parent.parent.parent / "shared/facts/cloud"

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


SWITCHED = """<!-- NCCL -->
<system version="1">
  <cpu numaid="0" affinity="ff" arch="x86_64" vendor="GenuineIntel" familyid="6" modelid="143">
    <pci busid="0000:18:00.0" class="0x060400" link_speed="32.0 GT/s PCIe" link_width="16">
      <pci busid="0000:1B:00.0" class="0x030200" link_speed="32.0 GT/s PCIe" link_width="8">
        <gpu dev="0" sm="90" rank="0" gdr="1"><nvlink target="0000:05:00.0" count="18" tclass="0x068000"/></gpu>
      </pci>
      <pci busid="0000:1a:00.0" class="0x020700" link_speed="32.0 GT/s PCIe" link_width="16">
        <nic><net name="mlx5_0" dev="0" speed="400000" port="1" gdr="1"/></nic>
      </pci>
    </pci>
  </cpu>
  <cpu numaid="1" affinity="ff00" arch="x86_64" vendor="GenuineIntel" familyid="6" modelid="143">
    <pci busid="0000:9b:00.0" class="0x030200" link_speed="" link_width="0">
      <gpu dev="1" sm="90" rank="1" gdr="1"><nvlink target="fffffff:ffff:ff" count="18" tclass="0x068000"/></gpu>
    </pci>
    <nic><net name="eth0" dev="1" speed="100000" gdr="0"/></nic>
  </cpu>
</system>
"""
LSTOPO = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE topology SYSTEM "hwloc2.dtd">
<topology version="2.0">
  <object type="Machine" os_index="0" nodeset="0x00000003">
    <info name="CPUVendor" value="AuthenticAMD"/>
    <object type="Package" os_index="0" nodeset="0x00000001">
      <object type="NUMANode" os_index="0" nodeset="0x00000001"/>
      <object type="Bridge" bridge_type="0-1" bridge_pci="0000:[00-1f]">
        <object type="Bridge" bridge_type="1-1" pci_busid="0000:00:01.0" pci_link_speed="63.0">
          <object type="Bridge" bridge_type="1-1" pci_busid="0000:01:00.0" pci_link_speed="63.0">
            <object type="Bridge" bridge_type="1-1" pci_busid="0000:02:00.0" pci_link_speed="63.0">
              <object type="PCIDev" pci_busid="0000:03:00.0" pci_type="0302 [10de:2330]" pci_link_speed="63.0">
                <object type="OSDev" name="cuda0" osdev_type="5"/>
              </object>
            </object>
            <object type="Bridge" bridge_type="1-1" pci_busid="0000:02:01.0" pci_link_speed="31.5">
              <object type="PCIDev" pci_busid="0000:04:00.0" pci_type="0207 [15b3:1021]" pci_link_speed="31.5">
                <object type="OSDev" name="ib0" osdev_type="2"/>
                <object type="OSDev" name="mlx5_0" osdev_type="3"/>
              </object>
            </object>
          </object>
        </object>
      </object>
    </object>
    <object type="Package" os_index="1" nodeset="0x00000002">
      <object type="NUMANode" os_index="1" nodeset="0x00000002"/>
      <object type="Bridge" bridge_type="0-1" bridge_pci="0000:[80-9f]">
        <object type="Bridge" bridge_type="1-1" pci_busid="0000:80:01.0" pci_link_speed="0.0">
          <object type="PCIDev" pci_busid="0000:81:00.0" pci_type="0300 [10de:2684]" pci_link_speed="0.0"/>
        </object>
        <object type="PCIDev" pci_busid="0000:80:02.0" pci_type="0300 [102b:0536]" pci_link_speed="0.0"/>
      </object>
    </object>
  </object>
</topology>
"""


def paths(text: str) -> dict[tuple[str, str], tuple[str, float | None, str | None]]:
    return {p.ends: (p.kind, p.gb_per_s, p.narrowest) for p in parse(text, name="file").paths}


def test_nccl_xml() -> None:
    assert paths(SWITCHED) == {
        ("GPU0", "mlx5_0"): ("PIX", 24.0, "PCIe 5 x8"),
        ("GPU0", "GPU1"): ("NVL", 370.8, "18 NVLinks"),
        ("GPU0", "eth0"): ("SYS", 12.5, "port of eth0, 100 Gb/s"),
        ("GPU1", "mlx5_0"): ("PXN", 24.0, "PCIe 5 x8"),
        ("GPU1", "eth0"): ("PHB", 12.0, "PCIe, rate not told"),
    }
    t = parse(SWITCHED, name="topo.xml")
    assert t.source == "topo.xml: NCCL topology XML"
    assert [(d.name, d.bus_id, d.numa, d.gdr) for d in t.devices] == [
        ("GPU0", "0000:1b:00.0", (0,), None),
        ("mlx5_0", "0000:1a:00.0", (0,), True),
        ("GPU1", "0000:9b:00.0", (1,), None),
        ("eth0", None, (1,), False),
    ]


def test_lstopo_xml() -> None:
    assert paths(LSTOPO) == {
        ("GPU0", "mlx5_0"): ("PIX", 24.0, "PCIe link of 31.5 GB/s"),
        ("GPU0", "GPU1"): ("SYS", 16.0, "between CPUs"),
        ("GPU1", "mlx5_0"): ("SYS", 16.0, "between CPUs"),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no topology"),
        ("<html></html>", "is XML of <html>"),
        ("<system><cpu></system>", "is broken XML"),
        ("<system>" * 100, "too many elements"),
        ("<system>" + "<cpu/>" * 60_000 + "</system>", "too many elements"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><system>&b;</system>', "declares XML entities"),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><system>&b;</system>', "declares XML entities"),
    ],
)
def test_what_is_no_topology_is_said(text: str, words: str) -> None:
    with pytest.raises(SmoldiagError, match=words):
        parse(text, name="file")


def test_attributes_of_any_kind_are_read() -> None:
    text = SWITCHED.replace('"143"', '"x"').replace('count="18"', 'count="-"').replace('numaid="1"', 'numaid="?"')
    assert len(parse(text, name="file").gpus) == 2


@pytest.mark.skipif(not VENDORS.is_dir(), reason="the collection of vendors' files is not beside this checkout")
@pytest.mark.parametrize(
    ("file", "gpus", "nics", "near"),
    [
        ("topo-aws-azure/aws-p4d-24xl-topo.xml", 8, 4, 1),
        ("topo-aws-azure/azure-ndv4-topo.xml", 8, 8, 2),
        ("topo-aws-azure/azure-ndv5-topo.xml", 8, 8, 1),
        ("topo-gcp-oci-neo/oci-hpc__H100-topology.xml", 8, 16, 2),
        ("topo-gcp-oci-neo/crusoe__b300-288gb-sxm-ib-cloud-hypervisor.xml", 8, 8, 1),
    ],
)
def test_files_of_vendors(file: str, gpus: int, nics: int, near: int) -> None:
    t = parse((VENDORS / file).read_text(), name=file)
    assert (len(t.gpus), len(t.nics)) == (gpus, nics)
    assert {len(names) for names in model.nics_of(t).values()} == {near}
    assert all(model.gpudirect(t, gpu, names[0])[0] for gpu, names in model.nics_of(t).items())


def test_an_affinity_that_is_no_range_is_passed_over() -> None:
    matrix = "\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\nGPU0\t X \tNV4\t0-3\t0-19-1\nGPU1\tNV4\t X \t0-3\t0-1,4\n"
    read = smi_matrix(matrix, source="topo.txt")
    assert read is not None
    assert len(read.devices) == 2
