"""NCCL's log lines -> Transport: each fact from what NCCL prints, per version and launcher."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smoldiag.facts import Transport
from smoldiag.parse import nccl_log

LOGS = Path(__file__).parent / "logs"
CASES = Path(__file__).parents[2] / "shared" / "cases"


def read(name: str) -> Transport:
    with (LOGS / name).open(encoding="utf-8") as lines:
        return nccl_log.parse(lines, where=name)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        (
            "nccl-2.28-ib-2x2.log",
            {
                "network": "IB",
                "plugin": "internal",
                "nics": ("mlx5_0", "mlx5_1"),
                "gpudirect": True,
                "nvls": True,
                "channels": 4,
                "nccl_version": "2.28.9",
                "cuda_version": "13.0",
                "driver_version": "13.0",
                "nodes": 2,
                "ranks": 4,
                "comms": 2,
                "env": (("NCCL_IB_HCA", "mlx5_0,mlx5_1"),),
                "paths": (("NET/IB/GDRDMA", 5), ("P2P/CUMEM", 2)),
                "algorithms": ("Ring",),
                "nics_by_host": (("node0", ("mlx5_0", "mlx5_1")), ("node1", ("mlx5_0", "mlx5_1"))),
                "nic_mbps": (("mlx5_0", 400000), ("mlx5_1", 400000)),
                "link_layer": "IB",
                "mnnvl": False,
            },
        ),
        (
            "nccl-2.4-ib-no-gdr.log",
            {
                "network": "IB",  # not said by this version: the list of devices tells it
                "plugin": "internal",
                "nics": ("mlx4_0",),
                "gpudirect": False,
                "nvls": None,
                "channels": 1,
                "nccl_version": "2.4.8",
                "nodes": 2,
                "ranks": 2,
                "env": (("NCCL_IB_TIMEOUT", "22"),),
                "paths": (("NET/IB", 4),),
                "algorithms": (),  # this version connects all of them
            },
        ),
        (
            "nccl-2.23-efa.log",
            {
                "network": "AWS Libfabric",
                "plugin": "aws-ofi-nccl 1.13.0-aws",
                "provider": "efa",
                "nics": None,  # 32 of them, four to a device: the devices' names are not the NICs
                "nic_count": 32,
                "gpudirect": True,
                "nvls": True,
                "channels": 16,
                "nodes": 4,
                "ranks": 32,
                "net_devices": (0,),
                "algorithms": ("NVLSTree", "Ring"),
            },
        ),
        (
            "nccl-2.26-one-node-shm.log",
            {
                "network": "IB",
                "nics": ("mlx5_bond_0",),
                "gpudirect": None,  # "GDR 1" where nothing goes over the network
                "nvls": False,
                "channels": 2,
                "nodes": 1,
                "ranks": 2,
                "env": (("NCCL_P2P_DISABLE", "1"), ("NCCL_P2P_LEVEL", "LOC")),
                "paths": (("SHM/direct", 2),),
                "link_layer": "RoCE",
            },
        ),
        (
            "nccl-2.30-gib-rails.log",
            {
                "network": "gIB",
                "plugin": "gIB v1.1.2",
                "nics": ("mlx5_0", "mlx5_1", "mlx5_2:2"),
                "gpudirect": False,  # one of two channels receives without
                "net_channels": 2,
                "gdr_channels": 1,
                "net_devices": (2,),
                "algorithms": ("NVLSTree",),
                "ranks": 16,
                "nodes": 2,
            },
        ),
        (
            "nccl-2.29-plugin-refused.log",
            {
                "network": "Socket",
                "plugin": "internal",
                "nics": ("eth0", "eth1"),
                "gpudirect": False,
                "plugins_loaded": (),
                "env": (("NCCL_SOCKET_IFNAME", "eth"),),
                "nodes": 2,
                "ranks": 16,
            },
        ),
        (
            "rccl-2.27-one-node.log",
            {
                "network": "Socket",
                "nccl_version": "2.27.7",
                "cuda_version": None,
                "ranks": 8,
                "nodes": 1,
                "comms": 2,
                "paths": (("P2P/IPC", 1),),  # the other line is the small communicator's, by its own word
            },
        ),
    ],
)
def test_each_version_and_launcher_gives_the_same_facts(name: str, facts: dict[str, Any]) -> None:
    transport = read(name)
    assert {field: getattr(transport, field) for field in facts} == facts


def test_evidence_names_file_and_line() -> None:
    transport = read("nccl-2.29-plugin-refused.log")
    seen = [(e.where, e.text) for e in transport.evidence]
    assert ("nccl-2.29-plugin-refused.log:5", "NET/IB : No device found.") in seen
    assert ("nccl-2.29-plugin-refused.log:10", "Using network Socket") in seen
    assert any("GLIBC_2.38" in text for _, text in seen)


def test_warnings_are_kept_once_with_their_place_in_nccl_and_in_the_log() -> None:
    (warning,) = read("nccl-2.30-gib-rails.log").warnings
    assert warning.where == "nccl-2.30-gib-rails.log:12"
    assert warning.text.startswith("a3-0:3704:4784 [5] transport/net_ib/p2p.cc:688 (ncclIbLogCompletionWithError)")


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("Using network IBext_v8", "network", "IBext_v8"),
        ("Using internal Network Socket", "network", "Socket"),
        ("NCCL version 2.31.2+cuda13.1", "nccl_version", "2.31.2"),
        ("cudaDriverVersion 12020", "driver_version", "12.2"),
        ("NCCL_IB_GID_INDEX set by environment to 3.", "env", (("NCCL_IB_GID_INDEX", "3"),)),
        ("NCCL_SOCKET_IFNAME set by environment to ^docker0,lo", "env", (("NCCL_SOCKET_IFNAME", "^docker0,lo"),)),
        ("NCCL_TOPO_FILE set by environment to /opt/ndv4.xml", "env", (("NCCL_TOPO_FILE", "/opt/ndv4.xml"),)),
        ("NCCL_NCHANNELS_PER_NET_PEER set by environment to -2.", "env", (("NCCL_NCHANNELS_PER_NET_PEER", "-2"),)),
        ("16 coll channels, 0 nvls channels, 16 p2p channels, 2 p2p channels per peer", "nvls", False),
        ("2 coll channels, 2 p2p channels, 1 p2p channels per peer", "channels", 2),
        ("Channel 01/16 :    0   7   6   5", "channels", 16),
        ("Connected NVLS tree", "nvls", True),
        ("NVLS multicast support is available on dev 0", "nvls", None),  # it could, which is not that it does
        ("Channel 00/0 : 0[0] -> 1[1] via P2P/indirect/2[2]", "paths", (("P2P/indirect", 1),)),
        ("Ring 00 : 0[0] -> 1[1] via direct shared memory", "paths", (("SHM/direct", 1),)),
        ("Ring 00 : 7 -> 8 via NET/IB/0/GDRDMA/GDCopy", "paths", (("NET/IB/GDRDMA", 1),)),
        ("Channel 00 : 9[101d0] -> 0[101c0] [send] via NET/AWS Libfabric/0", "network", "AWS Libfabric"),
        ("Channel 00/0 : 7[7] -> 8[0] [receive] via NET/IB/0/GDRDMA(PCI)/Shared", "gpudirect", True),
        ("Channel 00/0 : 7[7] -> 8[0] [receive] via NET/IB/0", "gpudirect", False),
        ("CollNet 00/0 : 0 [receive] via COLLNET/SHARP/1/GDRDMA", "paths", (("COLLNET/SHARP/GDRDMA", 1),)),
        ("NET/Socket : Using [0]ib0:10.5.134.88<0>", "nics", ("ib0",)),
        ("NET/IB : Using [0]={[0] mlx5_0:1/RoCE, [1] mlx5_1:1/RoCE} [RO]; OOB eth0:1<0>", "nics", ("mlx5_0", "mlx5_1")),
        ("NET/OFI Selected Provider is tcp;ofi_rxm", "provider", "tcp;ofi_rxm"),
        ("NET/OFI Selected Provider is efa (found 4 nics)", "nic_count", 4),
        ("Initializing network FasTrak, version: 1.0.17", "plugins_loaded", ("FasTrak 1.0.17",)),
        ("AllReduce: 1048576 Bytes -> Algo RING proto SIMPLE channel{Lo..Hi}={0..15}", "algorithms", ("Ring",)),
        ("1048576 Bytes -> Algo 0 proto 2 time 35.1", "algorithms", ("Tree",)),
    ],
)
@pytest.mark.parametrize(
    "prefix",
    [
        "node01:4021:4107 [3] NCCL INFO ",
        "[2026-06-11 18:44:01] node01:4021:4107 [3] NCCL INFO ",
        "[rank12]: node01:4021:4107 [3] NCCL INFO ",
        "12: node01:4021:4107 [3] NCCL INFO ",
        "2019-06-02T16:13:44.884Z: [1,12]<stdout>:node01:4021:4107 [0] NCCL INFO ",
        "(Worker pid=3590, ip=10.48.4.17)\x1b[0m node01:4021:4107 [3] NCCL INFO ",
        "2026-11-24T10:00:00.123456789Z stdout F node01:4021:4107 [3] NCCL INFO ",
        "NCCL INFO ",
    ],
)
def test_a_line_says_the_same_behind_any_prefix(prefix: str, line: str, field: str, value: object) -> None:
    assert getattr(nccl_log.parse([prefix + line]), field) == value


def test_a_wandering_rank_of_a_small_communicator_does_not_change_the_picture() -> None:
    start = (
        "h:1:{tid} [0] NCCL INFO ncclCommInitRankConfig comm {p} rank 0 nranks {n} cudaDev 0 commId {p} - Init START"
    )
    lines = [
        start.format(tid=2, p="0xa", n=16),
        "h:1:2 [0] NCCL INFO comm 0xa rank 0 nRanks 16 nNodes 2 localRanks 8 localRank 0 MNNVL 0",
        "h:1:2 [0] NCCL INFO Channel 00/0 : 15[7] -> 0[0] [receive] via NET/IB/0/GDRDMA",
        start.format(tid=3, p="0xb", n=2),
        "h:1:3 [0] NCCL INFO Channel 00/0 : 1[1] -> 0[0] [receive] via NET/IB/0",
        "h:1:3 [0] NCCL INFO 1 coll channels, 0 nvls channels, 1 p2p channels, 1 p2p channels per peer",
    ]
    transport = nccl_log.parse(lines)
    assert (transport.ranks, transport.gpudirect, transport.channels) == (16, True, None)


def test_hosts_that_see_fewer_nics_show() -> None:
    lines = [
        "n0:1:1 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/IB ; OOB eth0:10.0.0.1<0>",
        "n1:1:1 [0] NCCL INFO NET/IB : Using [0]mlx5_1:1/IB ; OOB eth0:10.0.0.2<0>",
    ]
    transport = nccl_log.parse(lines)
    assert transport.nics == ("mlx5_1",)
    assert transport.nics_by_host == (("n0", ("mlx5_0", "mlx5_1")), ("n1", ("mlx5_1",)))


def test_several_files_make_one_picture_with_their_own_line_numbers() -> None:
    logs = {
        "r0.log": "a:1:1 [0] NCCL INFO NCCL version 2.28.9+cuda13.0\na:1:1 [0] NCCL INFO Using network IB\n",
        "r8.log": "b:1:1 [0] NCCL INFO Using network Socket\n",
    }
    transport = nccl_log.parse_all(logs)
    assert dict(transport.networks) == {"IB": 1, "Socket": 1}
    assert [e.where for e in transport.evidence] == ["r0.log:2", "r8.log:1"]


def test_a_log_without_nccl_says_nothing() -> None:
    assert nccl_log.parse("step 1 loss 2.3\nall good\n") == Transport()


def hostile() -> Iterator[str]:
    yield "x" * 5_000_000
    yield "NCCL INFO " + ":" * 1_000_000
    yield "a:1:1 [0] NCCL INFO Using network " + " " * 100_000 + "IB" + " " * 100_000
    yield "a:1:1 [0] NCCL INFO NET/IB : Using " + "[0]" * 300_000
    yield "\x00\x01\xff NCCL WARN \x1b[31m[/red]" + "\u2028" * 10_000
    yield "comm 0x" + "f" * 100_000
    for i in range(30_000):
        yield f"h{i}:{i}:{i} [0] NCCL INFO comm 0x{i:x} rank {i} nranks {i + 1} cudaDev 0 commId 0x{i:x} - Init START"
        yield f"h{i}:{i}:{i} [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] [send] via NET/N{i}/{i % 9999}"
        yield f"h{i}:{i}:{i} [0] NCCL WARN number {i}"
        yield f"h{i}:{i}:{i} [0] NCCL INFO NCCL_X{i} set by environment to {i}."


@pytest.mark.timeout(60)
def test_hostile_input_ends_soon_and_keeps_little() -> None:
    transport = nccl_log.parse(hostile())
    assert len(transport.warnings) == nccl_log.MAX_WARNINGS
    assert len(transport.env) == nccl_log.MAX_ENV
    assert all(e.text.isprintable() and len(e.text) <= nccl_log.MAX_TEXT for e in transport.warnings)


@pytest.mark.skipif(not CASES.is_dir(), reason="the collection of real cases is not beside this checkout")
@pytest.mark.parametrize(
    ("case", "facts"),
    [
        ("slow/008-sglang1427-libibverbs-missing-in-container", {"network": "Socket"}),
        ("slow/016-nccltests29-gdr-disabled-v100", {"network": "IB", "nics": ("mlx5_0",)}),
        ("slow/022-nccltests128-only-one-nic-visible", {"network": "IB", "nics": ("mlx5_0",)}),
        ("slow/058-nccl229-ofi-provider-tcp", {"provider": "tcp;ofi_rxm", "network": "AWS Libfabric"}),
        ("slow/059-awsofinccl64-p4d-no-gdr-2-channels", {"gpudirect": False, "channels": 2, "net_devices": (0,)}),
        ("slow/060-awsofinccl65-drop-from-46MB", {"channels": 8}),
        ("slow/074-gcp-a3high-gvnic-socket-no-tcpx", {"network": "Socket", "nics": ("eth0",), "gpudirect": False}),
        ("slow/081-p6b300-ofi-plugin-glibc-socket", {"network": "Socket", "plugin": "internal"}),
        ("slow/082-esm2-efa-requested-but-socket-used", {"network": "Socket", "gpudirect": False, "channels": 2}),
        ("failures/033-efa-container-no-devices", {"provider": "tcp", "plugin": "aws-ofi-nccl 1.12.1-aws"}),
        ("failures/054-linklocal-tunnel-ip6tnl0", {"nics": ("ip6tnl0", "veth0"), "nccl_version": "2.5.6"}),
        ("failures/068-p2p-hang-acs-a6000", {"network": "Socket", "channels": 2, "gpudirect": None}),
        ("failures/074-loopback-forced-by-env", {"nics": ("lo",)}),
        ("failures/075-linklocal-vlan-parents", {"network": "Socket", "ranks": 2, "nodes": 2}),
        ("failures/101-healthy-connected-all-trees", {"channels": 2, "network": None}),
        ("failures/102-healthy-p2p-disabled-run", {"network": "IB", "gpudirect": None, "link_layer": "RoCE"}),
        ("failures/103-healthy-four-tasks-ib", {"network": "IB", "nics": ("mlx4_0",), "nccl_version": "2.4.2"}),
        ("failures/105-healthy-loopback-single-host", {"network": "Socket", "nics": ("lo",)}),
    ],
)
def test_logs_that_people_posted(case: str, facts: dict[str, Any]) -> None:
    text = (CASES / case / "log.txt").read_text(encoding="utf-8", errors="replace")
    transport = nccl_log.parse(text)
    assert {field: getattr(transport, field) for field in facts} == facts


@pytest.mark.skipif(not CASES.is_dir(), reason="the collection of real cases is not beside this checkout")
def test_no_posted_file_of_any_kind_is_too_much() -> None:
    for path in sorted(CASES.glob("*/*/*.txt")):
        nccl_log.parse(path.read_text(encoding="utf-8", errors="replace"))
    for path in sorted(CASES.glob("failures/*/label.json")):
        nccl_log.parse(json.loads(path.read_text(encoding="utf-8")).get("decisive_evidence", []))
