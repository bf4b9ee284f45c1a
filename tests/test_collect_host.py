"""Trees of machines in, facts and findings out."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from smoldiag import rules
from smoldiag.collect import host
from smoldiag.facts import Cluster, Host
from smoldiag.findings import Finding, Severity
from smoldiag.rules import Known
from tests import trees
from tests.trees import port, write

FAMILIES = ("HST", "PCI", "NIC", "VER")


def findings(facts: Host, *codes: str) -> list[Finding]:
    outcomes = list(rules.run(Known(cluster=Cluster(hosts=(facts,))), rules.select(codes or FAMILIES)))
    assert not [o.crashed for o in outcomes if o.crashed]
    return [f for o in outcomes for f in o.findings]


def serious(facts: Host) -> list[Finding]:
    return [f for f in findings(facts) if f.severity is not Severity.INFO]


@pytest.mark.parametrize("machine", trees.HEALTHY.values(), ids=trees.HEALTHY)
def test_a_healthy_machine_has_no_finding_above_info(machine: Callable[[Path], Path], tmp_path: Path) -> None:
    facts = host.collect(root=machine(tmp_path))
    assert [f"{f.code} {f.message}" for f in serious(facts)] == []


def test_this_machine_is_read_at_once_and_without_false_alarms() -> None:
    host.collect()
    began = time.process_time()
    facts = host.collect()
    assert time.process_time() - began < 0.5
    assert facts.system
    assert facts.system.kernel
    assert [f"{f.code} {f.message}" for f in serious(facts)] == []


def test_facts_are_read_without_torch() -> None:
    code = "import sys; from smoldiag.collect import host; host.collect(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_an_empty_tree_says_why_nothing_is_known(tmp_path: Path) -> None:
    facts = host.collect(root=tmp_path)
    assert facts.nics is None
    assert facts.unread["nics"] == "no /sys/class/net and no /sys/class/infiniband"
    assert facts.unread["pci"] == "no devices below /sys/bus/pci"
    assert serious(facts) == []


def test_a_dgx_is_read_in_full(tmp_path: Path) -> None:
    facts = host.collect(root=trees.dgx_h100(tmp_path))
    assert facts.name == "node7"
    assert facts.product == "NVIDIA DGXH100"
    assert facts.system
    assert (facts.system.virtual, facts.system.iommu) == ("none", "off")
    assert facts.cpu
    assert (facts.cpu.sockets, facts.cpu.cores) == (2, 112)
    assert facts.limits
    assert (facts.limits.memlock_bytes, facts.limits.nofile) == (-1, 1048576)
    assert facts.versions
    assert (facts.versions["driver"], facts.versions["driver_flavour"]) == ("535.104.05", "proprietary")
    nic = next(n for n in facts.nics or () if n.name == "mlx5_3")
    assert (nic.kind, nic.gbit_per_s, nic.lanes, nic.signalling) == ("infiniband", 400, 4, "NDR")
    assert (nic.bus_id, nic.driver, nic.board, nic.lid, nic.sm_lid) == (
        "0000:44:00.0",
        "mlx5_core",
        "MT_0000000838",
        0x12,
        1,
    )
    gpu = next(d for d in facts.pci or () if d.address == "0000:43:00.0")
    assert (gpu.parent, gpu.gt_per_s, gpu.width, gpu.driver) == ("0000:42:00.0", 32, 16, "nvidia")
    above = next(d for d in facts.pci or () if d.address == "0000:42:00.0")
    assert (above.port, above.acs, above.acs_capable) == ("downstream", (), True)
    assert facts.unread["gpus"]


def test_a_tree_whose_links_were_copied_as_folders_is_read_as_well(tmp_path: Path) -> None:
    import shutil

    trees.roce_host(tmp_path / "linked")
    flat = tmp_path / "flat/sys"
    for folder in ("bus/pci/devices", "class/infiniband", "class/net"):
        for entry in sorted((tmp_path / "linked/sys" / folder).iterdir()):
            ignored = shutil.ignore_patterns(
                "0000:*", "driver", "infiniband", "net", "device" if "pci" in folder else "-"
            )
            shutil.copytree(entry.resolve(), flat / folder / entry.name, symlinks=False, ignore=ignored)
    shutil.copytree(tmp_path / "linked/proc", tmp_path / "flat/proc")
    facts = host.collect(root=tmp_path / "flat")
    nic = next(n for n in facts.nics or () if n.name == "mlx5_3")
    assert (nic.bus_id, nic.driver, nic.netdev, nic.mtu) == ("0000:44:00.0", "mlx5_core", "rdma3", 9000)


def test_files_that_tar_filled_up_with_zeros(tmp_path: Path) -> None:
    root = trees.dgx_h100(tmp_path)
    for file in sorted((tmp_path / "sys").rglob("*")):
        if file.is_file() and not file.is_symlink():
            file.write_bytes(file.read_bytes().ljust(4096, b"\0"))
    facts = host.collect(root=root)
    nic = next(n for n in facts.nics or () if n.name == "mlx5_3")
    assert (nic.kind, nic.up, nic.gbit_per_s, nic.bus_id) == ("infiniband", True, 400, "0000:44:00.0")
    assert serious(facts) == []


def code_and_where(facts: Host, code: str) -> list[tuple[str, tuple[int, ...], tuple[str, ...]]]:
    return [(f.severity.value, f.where.gpus, f.where.nics) for f in findings(facts, code)]


def test_acs_on_the_switch_of_a_gpu(tmp_path: Path) -> None:
    root = trees.dgx_h100(tmp_path)
    write(root, "sys/bus/pci/devices/0000:32:00.0/config", trees.config("downstream", acs=0x1D))
    facts = host.collect(root=root)
    assert code_and_where(facts, "PCI002") == [("warning", (2,), ())]
    (finding,) = findings(facts, "PCI002")
    assert "0000:32:00.0 (CmpltRedir+ ReqRedir+ SrcValid+ UpstreamFwd+)" in finding.message
    assert "setpci -s $b ECAP_ACS+0x6.w=0000" in finding.fixes[0].command


def test_acs_that_only_root_can_read_is_not_a_pass(tmp_path: Path) -> None:
    root = trees.dgx_h100(tmp_path)
    for device in (root / "sys/bus/pci/devices").iterdir():
        write(root, f"sys/bus/pci/devices/{device.name}/config", (device / "config").read_bytes()[:64])
    known = Known(cluster=Cluster(hosts=(host.collect(root=root),)))
    (outcome,) = rules.run(known, [rules.RULES["PCI002"]])
    assert outcome.skipped == "not known: acs (the configuration space of bridges is readable by root only)"


def test_a_nic_down(tmp_path: Path) -> None:
    root = trees.dgx_h100(tmp_path)
    trees.down(root, "mlx5_4")
    assert code_and_where(host.collect(root=root), "NIC002") == [("error", (), ("mlx5_4",))]


def test_a_nic_at_half_rate(tmp_path: Path) -> None:
    root = trees.dgx_h100(tmp_path)
    write(root, f"{port('mlx5_5')}/rate", "200 Gb/sec (2X NDR)\n")
    assert code_and_where(host.collect(root=root), "NIC004") == [("warning", (), ("mlx5_5",))]


def test_roce_gids_without_an_ipv4_entry(tmp_path: Path) -> None:
    root = trees.roce_host(tmp_path)
    for i in (2, 3):
        write(root, f"{port('mlx5_6')}/gids/{i}", trees.ZERO + "\n")
    assert code_and_where(host.collect(root=root), "NIC005") == [("warning", (), ("mlx5_6",))]


def test_mtu_1500_on_a_roce_rail(tmp_path: Path) -> None:
    root = trees.roce_host(tmp_path)
    write(root, "sys/class/net/rdma1/mtu", "1500\n")
    facts = host.collect(root=root)
    assert code_and_where(facts, "NIC006") == [("warning", (), ("mlx5_1",))]
    assert findings(facts, "NIC007") == []


@pytest.mark.parametrize(
    "files",
    [
        {"proc/cmdline": "ro intel_iommu=on", "sys/kernel/iommu_groups/7/type": "DMA"},
        {"proc/cmdline": "ro quiet", "sys/class/iommu/ivhd0/amd-iommu/cap": "1"},
        {"proc/cmdline": "ro amd_iommu=on"},
    ],
    ids=["type", "class", "command-line"],
)
def test_iommu_on(files: dict[str, str], tmp_path: Path) -> None:
    root = trees.dgx_h100(tmp_path)
    (root / "sys/class/iommu").rmdir()
    for path, text in files.items():
        write(root, path, text + "\n")
    assert code_and_where(host.collect(root=root), "HST006") == [("warning", (), ())]


def test_iommu_that_lets_addresses_through_is_fine(tmp_path: Path) -> None:
    root = trees.dgx_h100(tmp_path)
    write(root, "sys/kernel/iommu_groups/7/type", "identity\n")
    assert code_and_where(host.collect(root=root), "HST006") == []


def test_a_width_and_a_speed_below_both_ends(tmp_path: Path) -> None:
    root = trees.dgx_h100(tmp_path)
    write(root, "sys/bus/pci/devices/0000:14:00.0/current_link_width", "8\n")
    write(root, "sys/bus/pci/devices/0000:21:00.0/current_link_speed", "16.0 GT/s PCIe\n")
    facts = host.collect(root=root)
    assert code_and_where(facts, "PCI004") == [("warning", (), ("mlx5_0",))]
    assert code_and_where(facts, "PCI005") == [("warning", (1,), ("mlx5_1",))]


def test_gpu_that_idles_at_a_low_rate_is_fine(tmp_path: Path) -> None:
    root = trees.dgx_h100(tmp_path)
    write(root, "sys/bus/pci/devices/0000:13:00.0/current_link_speed", "2.5 GT/s PCIe\n")
    assert serious(host.collect(root=root)) == []


def test_no_peer_memory_and_no_dma_buf(tmp_path: Path) -> None:
    root = trees.dgx_h100(tmp_path)
    write(root, "proc/modules", "nvidia 56000000 4 - Live 0x0\nib_core 1 1 - Live 0x0\n")
    assert len(findings(host.collect(root=root), "NIC011")) == 1
    write(root, "proc/driver/nvidia/version", trees.OPEN_DRIVER)
    assert findings(host.collect(root=root), "NIC011") == []


def test_a_small_memlock_matters_where_rdma_is(tmp_path: Path) -> None:
    small = trees.LIMITS.replace("unlimited            unlimited            bytes\n", "65536 65536 bytes\n")
    rdma, plain = trees.dgx_h100(tmp_path / "rdma"), trees.azure_vm(tmp_path / "plain")
    for root in (rdma, plain):
        write(root, "proc/self/limits", small)
    assert code_and_where(host.collect(root=rdma), "HST003") == [("error", (), ())]
    assert findings(host.collect(root=plain), "HST003") == []


def test_a_dead_network_mount_does_not_hold_up_the_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    from smoldiag.collect import files

    began = time.monotonic()
    answers = files.within(0.2, {"dead": lambda: time.sleep(3), "alive": lambda: 7})
    assert time.monotonic() - began < 1
    assert answers == {"alive": 7}


def test_wheels_of_nccl_that_own_the_same_file(tmp_path: Path) -> None:
    site = "usr/lib/python3/dist-packages"
    for name in ("nvidia_nccl_cu12-2.27.5", "nvidia_nccl_cu13-2.28.9"):
        write(tmp_path, f"{site}/{name}.dist-info/METADATA", "")
    write(tmp_path, f"{site}/torch/version.py", "__version__ = '2.9.0+cu128'\ncuda: Optional[str] = '12.8'\n")
    metadata = "Requires-Dist: nvidia-nccl-cu12==2.27.5; platform_system == 'Linux'\n"
    write(tmp_path, f"{site}/torch-2.9.0+cu128.dist-info/METADATA", metadata)
    facts = host.collect(root=tmp_path)
    assert facts.versions
    assert facts.versions["torch_cuda"] == "12.8"
    assert facts.versions["torch_nccl"] == "2.27.5"
    (finding,) = findings(facts, "VER003")
    assert finding.fixes[0].command.endswith("pip install nvidia-nccl-cu12==2.27.5")


def test_the_quick_facts_are_a_part_of_the_full_ones() -> None:
    quick, full = host.quick(), host.collect()
    assert [n.name for n in quick.nics or ()] == [n.name for n in full.nics or ()]
    assert quick.name == full.name


@pytest.mark.parametrize(
    "garbage", [b"", b"\xff\xfe\x00 nonsense\n", b"99999999999999999999999999999\n", b"-1\n", b"a b c d e f g h\n" * 3]
)
def test_files_full_of_nonsense_hide_no_other_fact(garbage: bytes, tmp_path: Path) -> None:
    root = trees.roce_host(tmp_path)
    for file in sorted(tmp_path.rglob("*")):
        if file.is_file() and not file.is_symlink():
            file.write_bytes(garbage)
    facts = host.collect(root=root)
    assert facts.system
    assert facts.limits
    assert facts.container
    assert len(facts.nics or ()) >= 9
    findings(facts)


def test_a_tree_that_was_copied_without_the_process_that_copied_it(tmp_path: Path) -> None:
    root = trees.dgx_h100(tmp_path)
    (root / "proc/self").rename(root / "proc/1")
    (root / "proc/self").symlink_to("4242")
    facts = host.collect(root=root)
    assert facts.limits
    assert facts.limits.memlock_bytes == -1


def test_devices_that_lie_flat_find_their_bridge_by_its_bus(tmp_path: Path) -> None:
    for address, kind, space in (
        ("0000:10:01.0", "0x060400", trees.config("root", bus=0x11)),
        ("0000:11:00.0", "0x060400", trees.config("upstream", bus=0x12)),
        ("0000:12:04.0", "0x060400", trees.config("downstream", bus=0x13, acs=0x1D)),
        ("0000:13:00.0", "0x030200", trees.config()),
    ):
        write(tmp_path, f"sys/bus/pci/devices/{address}/class", kind)
        write(tmp_path, f"sys/bus/pci/devices/{address}/vendor", "0x10de" if kind == "0x030200" else "0x1000")
        write(tmp_path, f"sys/bus/pci/devices/{address}/config", space)
    facts = host.collect(root=tmp_path)
    assert [(d.parent, d.port) for d in facts.pci or ()] == [
        (None, "root"),
        ("0000:10:01.0", "upstream"),
        ("0000:11:00.0", "downstream"),
        ("0000:12:04.0", None),
    ]
    assert (facts.pci or ())[2].acs == ("SrcValid", "ReqRedir", "CmpltRedir", "UpstreamFwd")
