"""The data that we carry: complete, in one vocabulary, with sources."""

from collections import Counter
from typing import Any

import pytest

from smoldiag.errors import SmoldiagError
from smoldiag.facts import Gpu, Host, Nic, Transport
from smoldiag.knowledge import busbw
from smoldiag.knowledge import hardware as specs
from smoldiag.profiles import compute_nics, find, hardware, heads, recognise

COLLECTIVES = {"all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce", "all_to_all", "send_recv"}
WITHOUT_NVML_NAME = {"GB10", "RTX PRO 6000", "MI300X", "MI355X"}  # NVML's spelling is not known to us, or AMD


def test_every_row_has_a_source_and_our_names() -> None:
    rows = busbw.rows()
    assert len(rows) == 440
    assert {row.collective for row in rows} == COLLECTIVES
    assert all(row.source and row.busbw_gbs > 0 for row in rows)
    assert {row.gpu for row in rows} <= {spec.gpu_class for spec in specs.GPUS.values()} | WITHOUT_NVML_NAME


def test_what_stands_as_measured_has_size_and_node_count() -> None:
    measured = [row for row in busbw.rows() if row.use == "measured"]
    assert len(measured) == 310
    assert all(row.size_bytes and row.nodes and row.kind.startswith("measured") for row in measured)


@pytest.mark.parametrize(
    ("use", "rows"), [("threshold", 38), ("NVLS off", 11), ("older stack", 4), ("contradicted by others", 2)]
)
def test_rows_that_are_no_measure_of_a_healthy_default_run_say_why(use: str, rows: int) -> None:
    assert Counter(row.use for row in busbw.rows())[use] == rows


def test_what_a_profile_says_is_published_of_it_is() -> None:
    for profile in heads().values():
        known = [row.gpu for row in busbw.rows() if row.instance in profile.published_as]
        assert not known or profile.hardware.gpu_class in known, profile.name


def test_specifications_are_in_one_direction() -> None:
    h100 = specs.gpu("NVIDIA H100 80GB HBM3")
    assert h100 is not None
    assert (h100.nvlink_gb_per_s, h100.pcie_gb_per_s, h100.nvls) == (450, 63.0, True)
    assert specs.nic_gb_per_s(400_000) == 50
    assert specs.gpu("NVIDIA H100") is None  # exact names only
    assert specs.gpu(None) is None


def host(gpu: str = "NVIDIA H100 80GB HBM3", gpus: int = 8, nics: tuple[Nic, ...] = (), **more: Any) -> Host:
    return Host(name="n0", gpus=tuple(Gpu(index=i, name=gpu) for i in range(gpus)), nics=nics, **more)


def ib(count: int, gbit: float = 400, kind: str = "infiniband") -> tuple[Nic, ...]:
    return tuple(Nic(name=f"mlx5_{i}", kind=kind, gbit_per_s=gbit, up=True) for i in range(count))


ORACLE = {"chassis_asset_tag": "OracleCloud.com"}


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        (host(product="Amazon EC2 p5.48xlarge"), "aws-p5"),
        (host(dmi={"sys_vendor": "Amazon EC2"}, nics=ib(32, 100, "efa")), "aws-p5"),
        (host(dmi=ORACLE, nics=ib(16, 200, "roce")), "oci-h100"),
        (host(nics=ib(16, 200, "roce")), None),  # whoever sells such a board: no mark of a cloud
        (host(dmi=ORACLE, nics=ib(8)), None),  # native InfiniBand is nothing that this cloud has
        (host("NVIDIA B200", dmi={"product_name": "Google Compute Engine"}, nics=ib(8, 400, "roce")), "gcp-a4"),
        (host("NVIDIA L40S"), None),
        (Host(name="n0"), None),
    ],
)
def test_a_machine_is_recognised_only_where_one_profile_fits(machine: Host, name: str | None) -> None:
    found = recognise(machine)
    assert (found.name if found else None) == name


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(SmoldiagError, match="no profile is named 'p99'") as error:
        find("p99")
    assert "aws-p5" in error.value.hint


def test_slower_rdma_devices_are_not_counted_to_the_compute_network() -> None:
    storage = Nic(name="mlx5_9", kind="roce", gbit_per_s=100, up=True)
    down = Nic(name="mlx5_8", kind="infiniband", gbit_per_s=400, up=False)
    assert compute_nics(host(nics=(*ib(2), storage, down))) == ib(2)


def test_hardware_is_that_of_the_weakest_host() -> None:
    found = hardware([host(nics=ib(8)), host(nics=ib(7))], backend="nccl")
    assert (found.nic_gb_per_s, found.nics, found.gpus_per_node) == (350, "7 x 400 Gb/s infiniband", 8)


def test_rates_come_from_the_profile_where_the_host_does_not_tell_them() -> None:
    found = hardware([host()], backend="nccl", profile=find("gcp-a3-mega"))
    assert (found.nic_gb_per_s, found.instances) == (200, ("GCP a3-megagpu-8g",))
    assert hardware([host()], backend="nccl").nic_gb_per_s is None


ETH = Nic(name="eth0", kind="ethernet", gbit_per_s=25, up=True)
VETH = Nic(name="eth0", kind="ethernet", gbit_per_s=10, up=True, virtual=True)
OTHER = Nic(name="eth1", kind="ethernet", gbit_per_s=100, up=True)


@pytest.mark.parametrize(
    ("nics", "interface", "gb_per_s"),
    [
        ((ETH, OTHER), "eth0", 3.125),
        ((ETH, OTHER), None, None),  # which of them is not known
        ((ETH,), None, 3.125),
        ((VETH,), "eth0", None),  # a virtual device's 10 Gb/s are made up
        ((), "eth0", None),
    ],
)
def test_gloo_runs_at_the_rate_of_a_physical_interface(
    nics: tuple[Nic, ...], interface: str | None, gb_per_s: float | None
) -> None:
    cpu = Host(name="n0", nics=nics)
    assert hardware([cpu, cpu], backend="gloo", interface=interface).nic_gb_per_s == gb_per_s


def test_sockets_of_nccl_are_bound_by_the_interfaces_that_it_uses() -> None:
    transport = Transport(network="Socket", nics=("eth0", "eth1"))
    machine = host(nics=(ETH, OTHER))
    assert hardware([machine], backend="nccl", transport=transport).nic_gb_per_s == 15.625
    with_ib = host(nics=(*ib(8), ETH, OTHER))  # what it falls back to is no bound of the machine
    assert hardware([with_ib], backend="nccl", transport=transport).nic_gb_per_s == 400
