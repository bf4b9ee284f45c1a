"""Bounds by hardware arithmetic, and that no published measurement exceeds them."""

import re
from dataclasses import replace

import pytest

from smoldiag.facts.reference import Hardware, Published
from smoldiag.knowledge import busbw
from smoldiag.knowledge import hardware as specs
from smoldiag.model.bounds import bound
from smoldiag.profiles import find

H100_NODE = Hardware(
    gpu="NVIDIA H100 80GB HBM3",
    gpu_class="H100 SXM",
    gpus_per_node=8,
    nvlink_gb_per_s=450,
    nvls=True,
    nvswitch=True,
    pcie_gb_per_s=63,
    nic_gb_per_s=400,
)
A100_NODE = Hardware(
    gpu="NVIDIA A100-SXM4-80GB",
    gpu_class="A100 SXM",
    gpus_per_node=8,
    nvlink_gb_per_s=300,
    nvls=False,
    nvswitch=True,
    pcie_gb_per_s=31.5,
    nic_gb_per_s=50,
)
L40S_NODE = Hardware(gpu="NVIDIA L40S", gpus_per_node=8, nvlink_gb_per_s=0, pcie_gb_per_s=31.5)
CPU_HOST = Hardware(nic_gb_per_s=0.125)


@pytest.mark.parametrize(
    ("collective", "nodes", "ranks_per_node", "hardware", "busbw_gbs", "limit"),
    [
        ("all_reduce", 1, 8, H100_NODE, 700.0, "NVLink"),  # 450 x 14/8 x 8/9: NVLink SHARP
        ("all_gather", 1, 8, H100_NODE, 450.0, "NVLink"),
        ("all_reduce", 1, 8, A100_NODE, 300.0, "NVLink"),  # no NVLink SHARP: the ring's
        ("all_reduce", 1, 8, L40S_NODE, 31.5, "PCIe"),
        ("all_reduce", 2, 8, A100_NODE, 93.75, "NICs"),  # 50 x 30/16: a tree of two nodes
        ("all_reduce", 3, 8, A100_NODE, 50.0, "NICs"),
        ("all_gather", 2, 8, A100_NODE, 50.0, "NICs"),
        ("broadcast", 4, 8, H100_NODE, 400.0, "NICs"),
        ("all_gather", 2, 1, H100_NODE, 63.0, "PCIe"),  # one GPU reaches eight NICs through its own slot only
        ("all_to_all", 2, 8, H100_NODE, 93.75, "NICs"),  # 400/8 x 15/8
        ("all_to_all", 16, 8, H100_NODE, 52.917, "NICs"),  # 400/8 x 127/120
        ("all_to_all", 1, 8, H100_NODE, 450.0, "NVLink"),
        ("send_recv", 2, 8, H100_NODE, 50.0, "NICs"),  # one rank of a node sends outside, through its GPU's NICs
        ("all_reduce", 2, 1, CPU_HOST, 0.125, "NICs"),
        ("all_reduce", 4, 2, CPU_HOST, 0.125, "NICs"),
        ("send_recv", 3, 1, CPU_HOST, 0.125, "NICs"),
    ],
)
def test_bound_is_the_slowest_link_on_the_way(
    collective: str, nodes: int, ranks_per_node: int, hardware: Hardware, busbw_gbs: float, limit: str
) -> None:
    backend = "gloo" if hardware is CPU_HOST else "nccl"
    found = bound(collective, nodes=nodes, ranks_per_node=ranks_per_node, hardware=hardware, backend=backend)
    assert found is not None
    assert (round(found.busbw_gbs, 3), found.limit) == (busbw_gbs, limit)


def test_the_formula_shows_the_numbers() -> None:
    found = bound("all_reduce", nodes=1, ranks_per_node=8, hardware=H100_NODE)
    assert found is not None
    assert found.formula == "NVLink 450 GB/s per GPU x 2(8-1)/8 x 8/(8+1) (NVLink SHARP)"
    assert found.ring_gbs == 450


@pytest.mark.parametrize("collective", ["all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all"])
@pytest.mark.parametrize("nodes", [1, 2, 3, 16])
@pytest.mark.parametrize("ranks_per_node", [1, 2, 8])
@pytest.mark.parametrize("hardware", [H100_NODE, A100_NODE])
def test_ring_is_at_most_what_the_library_can_and_that_at_most_what_anything_can(
    collective: str, nodes: int, ranks_per_node: int, hardware: Hardware
) -> None:
    found = bound(collective, nodes=nodes, ranks_per_node=ranks_per_node, hardware=hardware)
    if nodes * ranks_per_node == 1:
        assert found is None
        return
    assert found is not None
    assert found.ring_gbs <= found.busbw_gbs + 1e-9
    assert found.busbw_gbs <= found.any_gbs + 1e-9


@pytest.mark.parametrize(
    ("collective", "nodes", "ranks_per_node", "hardware"),
    [
        ("all_reduce", 2, 8, replace(H100_NODE, nic_gb_per_s=None)),  # the NICs might be anything
        ("all_reduce", 1, 8, replace(H100_NODE, nvlink_gb_per_s=None, pcie_gb_per_s=None)),
        ("all_reduce", 1, 2, CPU_HOST),  # memory of one host
        ("all_reduce", 1, 1, H100_NODE),
        ("gather", 2, 8, H100_NODE),
    ],
)
def test_what_is_not_known_gives_no_bound(collective: str, nodes: int, ranks_per_node: int, hardware: Hardware) -> None:
    assert bound(collective, nodes=nodes, ranks_per_node=ranks_per_node, hardware=hardware) is None


def test_nvlink_between_nodes_takes_the_place_of_nics() -> None:
    rack = Hardware(gpu="NVIDIA GB200", nvlink_gb_per_s=900, nvls=True, mnnvl=True, nic_gb_per_s=200)
    found = bound("all_gather", nodes=18, ranks_per_node=4, hardware=rack)
    assert found is not None
    assert (found.busbw_gbs, found.limit) == (900, "NVLink")


BY_CLASS = {spec.gpu_class: (name, spec) for name, spec in specs.GPUS.items()}
MEASURED = [row for row in busbw.rows() if row.use == "measured" and row.gpu in BY_CLASS]


def machine_of(row: Published) -> Hardware:
    name, spec = BY_CLASS[row.gpu]
    nics = re.search(r"(\d+)x(\d+)G\b", row.fabric)
    one = re.search(r"one CX-7 (\d+)G", row.fabric)
    gbit = int(nics[1]) * int(nics[2]) if nics else int(one[1]) if one else None
    return Hardware(
        gpu=name,
        gpus_per_node=row.gpus_per_node,
        nvlink_gb_per_s=spec.nvlink_gb_per_s,
        nvlink_bridge=spec.nvlink_bridge,
        nvls=spec.nvls,
        mnnvl=spec.mnnvl,
        pcie_gb_per_s=spec.pcie_gb_per_s,
        nic_gb_per_s=gbit / 8 if gbit else None,
    )


@pytest.mark.parametrize(
    "row", MEASURED, ids=lambda r: f"{r.collective}-{r.gpu}-{r.nodes}x{r.gpus_per_node}-{r.size_bytes}-{r.busbw_gbs}"
)
def test_no_published_measurement_exceeds_the_bound_of_its_hardware(row: Published) -> None:
    found = bound(row.collective, nodes=row.nodes or 0, ranks_per_node=row.gpus_per_node, hardware=machine_of(row))
    if found is None:
        assert (row.nodes or 0) > 1  # the NICs are not stated
        return
    assert row.busbw_gbs <= found.busbw_gbs
    artefact = row.collective == "all_reduce" and row.nodes == 2
    nvls = row.collective == "all_reduce" and BY_CLASS[row.gpu][1].nvls
    if not artefact and not nvls:
        assert row.busbw_gbs <= found.ring_gbs


def test_every_profile_that_published_rows_name_is_found_by_that_name() -> None:
    assert find("AWS p5.48xlarge").name == find("p5.48xlarge").name == find("aws-p5").name == "aws-p5"
