"""Paths as NCCL sees them, which NIC a GPU gets, how hosts lie to each other, and the command."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from smoldiag import rules, topo
from smoldiag.collect import host as collected
from smoldiag.errors import SmoldiagError
from smoldiag.facts import Host, System, Topology
from smoldiag.model import topology as model
from smoldiag.parse import network
from smoldiag.render.topology import switches_between
from tests import trees
from tests.rules.gpus import links
from tests.rules.topology import ONE_LESS, PAIRS, grid, machine, matrix

ROOT = Path(__file__).parent.parent
TREE = """\
SwitchName=leaf1 Level=0 LinkSpeed=1 Nodes=node[1-2]
SwitchName=leaf2 Level=0 LinkSpeed=1 Nodes=node[3-4]
SwitchName=top Level=1 LinkSpeed=1 Nodes=node[1-4] Switches=leaf[1-2]
"""
CONF = (
    "SwitchName=top Switches=leaf[1-2]  # spine\nSwitchName=leaf1 Nodes=node[1-2]\nSwitchName=leaf2 Nodes=node[3-4]\n"
)
BLOCKS = """\
BlockName=b1 BlockIndex=0 Nodes=node[1-2] BlockSize=2
BlockName=b2 BlockIndex=1 Nodes=node3,10.0.0.4 BlockSize=2
AggregatedBlock=b[1-2] BlockIndex=2 Nodes=node[1-3],10.0.0.4 BlockSize=4
"""
AWS = json.dumps(
    {
        "Instances": [
            {"InstanceId": "i-1", "NetworkNodes": ["nn-a", "nn-b", "nn-c"]},
            {"InstanceId": "i-2", "NetworkNodes": ["nn-a", "nn-b", "nn-d"]},
        ]
    }
)


def topology(host: Host) -> Topology:
    assert host.topology is not None
    return host.topology


def kind(host: Host, a: str, b: str) -> tuple[str, float | None, str | None]:
    path = topology(host).path(a, b)
    assert path is not None
    return path.kind, path.gb_per_s, path.relay or path.narrowest


def test_a_machine_with_switches() -> None:
    hgx = machine()
    assert kind(hgx, "GPU0", "GPU7") == ("NVL", 370.8, "18 NVLinks")
    assert kind(hgx, "GPU0", "mlx5_0") == ("PIX", 48.0, "PCIe 5 x16")
    assert kind(hgx, "GPU0", "mlx5_7") == ("PXN", 48.0, "GPU7")
    without = machine(nvlinks=False)
    assert kind(without, "GPU0", "GPU1") == ("PHB", 48.0, "PCIe 5 x16")
    assert kind(without, "GPU0", "GPU7") == ("SYS", 22.0, "between CPUs")
    assert kind(without, "GPU0", "mlx5_7") == ("SYS", 22.0, "between CPUs")


def test_each_gpu_gets_the_nic_beside_it() -> None:
    found = model.ways(topology(machine()), machine())
    assert [(w.gpu, w.nics, w.kind, w.gpudirect) for w in found[:2]] == [
        ("GPU0", ("mlx5_0",), "PIX", True),
        ("GPU1", ("mlx5_1",), "PIX", True),
    ]


def test_gpus_are_spread_over_equal_nics_by_mirrored_bits() -> None:
    shared = matrix(grid([[*row, "PIX", "PIX", "PIX", "PIX"] for row in ONE_LESS], nics=4))
    assert [w.nics[0] for w in model.ways(topology(shared))] == ["mlx5_0", "mlx5_2", "mlx5_1", "mlx5_3"]


def test_why_gpudirect_is_not_possible_or_in_doubt() -> None:
    far = matrix(grid([[*row, "SYS"] for row in PAIRS], nics=1))
    assert {w.why for w in model.ways(topology(far))} == {
        "SYS goes through the link between CPUs; NCCL_NET_GDR_LEVEL is PXB"
    }
    hgx = machine()
    with_acs = replace(
        hgx,
        system=System(modules=("mlx5_core", "nvidia")),
        pci=tuple(replace(d, acs=("ReqRedir",)) if d.address == "0000:12:00.0" else d for d in hgx.pci or ()),
    )
    assert model.ways(topology(hgx), with_acs)[0].why == (
        "no CPU on the way; ACS redirects it through the CPU at 0000:12:00.0; "
        "nvidia_peermem is not loaded, so that it needs DMA-BUF"
    )


def test_direct_nvlinks_and_the_way_through_one_gpu() -> None:
    gpus = machine(gpus=3, nvlinks=False).gpus or ()
    to = {g.index: g.bus_id for g in gpus}
    joined = {0: [to[1]], 1: [to[0], to[2]], 2: [to[1]]}
    meshed = tuple(
        replace(g, nvlinks=tuple(replace(x, remote="gpu", remote_bus_id=b) for x, b in
                                 zip(links(2), joined[g.index], strict=False)))
        for g in gpus
    )  # fmt: skip
    host = model.filled(replace(machine(gpus=3, nvlinks=False), gpus=meshed, topology=None))
    assert kind(host, "GPU0", "GPU1") == ("NVL", 20.6, "1 NVLink")
    assert kind(host, "GPU0", "GPU2") == ("NVB", 20.6, "GPU1")


def test_a_gpu_that_does_not_answer_has_no_place() -> None:
    hgx = machine()
    lost = replace(hgx, gpus=tuple(replace(g, error="GPU is lost" if g.index == 3 else None) for g in hgx.gpus or ()))
    assert len(topology(model.filled(replace(lost, topology=None))).gpus) == 7
    assert model.filled(Host(name="n", unread={"gpus": "NVML: none"})).unread["topology"] == "gpus: NVML: none"


def test_a_tree_without_nvml_shows_the_gpus_of_the_bus() -> None:
    hgx = machine()
    gpus_of_bus = tuple(replace(d, vendor="10de") if d.kind == "0x030200" else d for d in hgx.pci or ())
    host = model.filled(replace(hgx, gpus=None, pci=gpus_of_bus, topology=None))
    assert kind(host, "GPU3", "mlx5_3") == ("PIX", 48.0, "PCIe 5 x16")
    assert (topology(host).source, topology(host).tells_nvlinks) == ("PCI tree", False)


@pytest.mark.parametrize(
    "tree", [trees.dgx_h100, trees.roce_host, trees.aws_p5, trees.azure_vm, trees.oci_a100, trees.gb200, trees.laptop]
)
def test_no_rule_trips_on_a_healthy_tree(tmp_path: Path, tree: Callable[[Path], Path]) -> None:
    tree(tmp_path)
    seen = topo.judge([collected.collect(root=tmp_path, env={})], None)
    assert seen.insides[0].topology is not None
    assert seen.report.findings == ()


def test_a_nic_whose_place_is_not_known_is_not_judged() -> None:
    hgx = machine()
    lost = tuple(replace(n, bus_id="0000:ff:00.0") if n.name == "mlx5_3" else n for n in hgx.nics or ())
    host = model.filled(replace(hgx, nics=lost, topology=None))
    assert kind(host, "GPU3", "mlx5_3") == ("DIS", None, None)
    assert topo.judge([host], None).report.findings == ()


@pytest.mark.parametrize(
    ("vendor", "model_id", "name", "rate"),
    [
        ("AuthenticAMD", 1, None, 16.0),
        ("x86_64", None, "AMD EPYC 9654 96-Core Processor", 16.0),
        ("GenuineIntel", 143, None, 22.0),
        ("GenuineIntel", 85, None, 10.0),
        ("x86_64", None, "Intel(R) Xeon(R) Platinum 8480C", 22.0),
        ("x86_64", None, "Intel(R) Xeon(R) Platinum 8568Y+", 40.0),
        ("x86_64", None, "Intel(R) Xeon(R) CPU @ 2.20GHz", None),
        ("aarch64", None, None, 6.0),
        (None, None, None, None),
    ],
)
def test_what_nccl_reckons_between_cpus(
    vendor: str | None, model_id: int | None, name: str | None, rate: float
) -> None:
    assert model.sockets_gb_per_s(vendor=vendor, model_id=model_id, name=name) == rate


@pytest.mark.parametrize("text", [TREE, CONF])
def test_slurm_trees(text: str) -> None:
    found = network.parse(text, name="scontrol show topology")
    assert {p.host: p.switches for p in found.placements} == {
        "node1": ("leaf1", "top"),
        "node2": ("leaf1", "top"),
        "node3": ("leaf2", "top"),
        "node4": ("leaf2", "top"),
    }


def test_slurm_blocks() -> None:
    found = network.parse(BLOCKS, name="file")
    assert {p.host: p.switches for p in found.placements}["node3"] == ("b2", "b[1-2]")
    assert network.of_hosts(found, ["10.0.0.4", "10.9.9.9"]).missing == ("10.9.9.9",)


def test_aws_instance_topology() -> None:
    found = network.parse(AWS, name="file")
    assert [(p.host, p.switches) for p in found.placements] == [
        ("i-1", ("nn-c", "nn-b", "nn-a")),
        ("i-2", ("nn-d", "nn-b", "nn-a")),
    ]
    assert switches_between(*(p.switches for p in found.placements)) == 3
    assert switches_between(("a",), ("a",)) == 1
    assert switches_between(("a",), ("b",)) is None


def test_hosts_that_the_network_does_not_know() -> None:
    found = network.of_hosts(network.parse(TREE, name="file"), ["node3.example.org", "node9"])
    assert ([p.host for p in found.placements], found.missing) == (["node3"], ("node9",))


@pytest.mark.parametrize("text", ["", "no switch here", "{", '{"Instances": 3}', "SwitchName=a Switches=a\n"])
def test_what_does_not_say_how_hosts_lie(text: str) -> None:
    with pytest.raises(SmoldiagError, match="does not say how hosts lie"):
        network.parse(text, name="file")


def run(*args: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "smoldiag", "topo", *args]
    return subprocess.run(command, input=given, capture_output=True, text=True, cwd=ROOT)


def test_the_command_on_a_file(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text(grid([[*row, "PIX"] for row in ONE_LESS], nics=1))
    (tmp_path / "net.txt").write_text(TREE)
    args = (str(tmp_path / "m.txt"), "--nodes", "3", "--network", str(tmp_path / "net.txt"))
    shown = run(*args)
    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    assert lines[0] == "warning: 4 GPUs, 1 NIC (m.txt: nvidia-smi topo -m); 3 hosts in the network (net.txt)"
    assert "GPU3  NV17  NV17  NV17  -     PIX" in lines
    assert "GPU3  0     mlx5_0  PIX   ?     ?              yes: no CPU on the way" in lines
    assert "  leaf1: node[1-2]" in lines
    assert "  switches between two hosts, up and down: 1 for 1 pairs, 3 for 2 pairs" in lines
    report = json.loads(run(*args, "--format", "json").stdout)
    assert [(f["code"], f["where"]["gpus"]) for f in report["findings"]] == [("TOP006", [3]), ("TOP008", [])]
    assert report["facts"]["hosts"][0]["ways"][3]["nics"] == ["mlx5_0"]
    assert "| GPU3 | NV17 | NV17 | NV17 | - | PIX |" in run(*args, "--format", "markdown").stdout
    assert run(*args, "--fail-on", "warning").returncode == 1


def test_the_command_on_standard_input() -> None:
    assert run("-", given=grid(PAIRS)).stdout.startswith("info: 4 GPUs, 0 NICs (standard input: nvidia-smi topo -m)")


def test_the_command_without_a_gpu() -> None:
    shown = run()
    assert shown.returncode == 0
    assert shown.stdout.startswith("nothing looked at: ")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("/nowhere/x.xml",), "can't read /nowhere/x.xml: No such file"),
        (("-",), "standard input is no topology"),
        (("-", "--root", "/tmp"), "FILE and --root name different machines"),
        (("-", "--plot", "a.jpg"), "the file's ending must be one of"),
    ],
)
def test_wrong_usage(args: tuple[str, ...], words: str) -> None:
    done = run(*args)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("host", [machine(), machine(gpus=2, nics=(0,), nvlinks=False), matrix(grid(PAIRS))])
def test_drawings(tmp_path: Path, host: Host) -> None:
    pytest.importorskip("matplotlib")
    from smoldiag.render import machine as drawing

    drawing.draw(topo.judge([host], None), tmp_path / "m.svg")
    text = (tmp_path / "m.svg").read_text()
    assert text.startswith("<?xml")
    assert "<script" not in text


def test_a_thousand_hosts_alike_share_their_topology() -> None:
    hosts = [replace(machine(), name=f"n{i}", topology=None) for i in range(3)]
    first, *others = (model.filled(h).topology for h in hosts)
    assert all(t is first for t in others)
    seen = topo.judge(hosts, None)
    assert (seen.report.findings, len(seen.insides)) == ((), 3)
    assert {c.status.value for c in seen.report.checks if c.code != "TOP008"} == {"passed"}
    assert rules.RULES["TOP008"].needs == ("network",)
