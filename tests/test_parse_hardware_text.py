"""What people paste of their tools, as facts, and what the rules say of it."""

import pytest

from smoldiag import rules
from smoldiag.facts import Cluster, Host
from smoldiag.parse.hardware_text import host, looks_like
from smoldiag.rules import Known

DEVINFO = """hca_id:	mlx5_0
	transport:			InfiniBand (0)
	fw_ver:				28.39.2048
	node_guid:			946d:ae03:0012:3456
	vendor_id:			0x02c9
	vendor_part_id:			4129
	board_id:			MT_0000000838
	phys_port_cnt:			1
		port:	1
			state:			PORT_ACTIVE (4)
			max_mtu:		4096 (5)
			active_mtu:		1024 (3)
			sm_lid:			0
			port_lid:		0
			port_lmc:		0x00
			link_layer:		Ethernet

hca_id:	mlx5_1
	transport:			InfiniBand (0)
	fw_ver:				28.39.2048
	node_guid:			946d:ae03:0012:3457
	board_id:			MT_0000000838
	phys_port_cnt:			1
		port:	1
			state:			PORT_DOWN (1)
			max_mtu:		4096 (5)
			active_mtu:		4096 (5)
			sm_lid:			0
			port_lid:		65535
			link_layer:		Ethernet
"""
IBSTAT = """CA 'mlx5_0'
	CA type: MT4129
	Number of ports: 1
	Firmware version: 28.39.2048
	Hardware version: 0
	Node GUID: 0x946dae0300123456
	System image GUID: 0x946dae0300123456
	Port 1:
		State: Active
		Physical state: LinkUp
		Rate: 400
		Base lid: 18
		LMC: 0
		SM lid: 1
		Capability mask: 0xa651e848
		Port GUID: 0x946dae0300123456
		Link layer: InfiniBand
CA 'mlx5_1'
	CA type: MT4129
	Firmware version: 28.39.2048
	Port 1:
		State: Initializing
		Physical state: LinkUp
		Rate: 400
		Base lid: 65535
		SM lid: 0
		Link layer: InfiniBand
"""
IBSTATUS = """Infiniband device 'mlx5_0' port 1 status:
	default gid:	 fe80:0000:0000:0000:946d:ae03:0012:3456
	base lid:	 0x12
	sm lid:		 0x1
	state:		 4: ACTIVE
	phys state:	 5: LinkUp
	rate:		 200 Gb/sec (2X NDR)
	link_layer:	 InfiniBand

Infiniband device 'mlx5_1' port 1 status:
	state:		 4: ACTIVE
	phys state:	 5: LinkUp
	rate:		 400 Gb/sec (4X NDR)
	link_layer:	 InfiniBand
"""
SHOW_GIDS = """DEV	PORT	INDEX	GID					IPv4  		VER	DEV
---	----	-----	---					------------  	---	---
mlx5_0	1	0	fe80:0000:0000:0000:966d:aeff:fe12:3456			v1	rdma0
mlx5_0	1	1	fe80:0000:0000:0000:966d:aeff:fe12:3456			v2	rdma0
mlx5_0	1	2	0000:0000:0000:0000:0000:ffff:0a00:0007	10.0.0.7  	v1	rdma0
mlx5_0	1	3	0000:0000:0000:0000:0000:ffff:0a00:0007	10.0.0.7  	v2	rdma0
mlx5_1	1	0	fe80:0000:0000:0000:966d:aeff:fe12:3457			v1	rdma1
mlx5_1	1	1	fe80:0000:0000:0000:966d:aeff:fe12:3457			v2	rdma1
n_gids_found=6
"""
FI_INFO = """provider: efa
    fabric: efa
    domain: rdmap0s26-rdm
    version: 121.0
    type: FI_EP_RDM
    protocol: FI_PROTO_EFA
provider: efa
    fabric: efa-direct
    domain: rdmap0s26-rdm
    version: 121.0
provider: efa
    fabric: efa
    domain: rdmap0s27-dgrm
"""
LSPCI = """00:00.0 Host bridge: Intel Corporation Device 09a2 (rev 04)
10:01.0 PCI bridge: Intel Corporation Device 352a (rev 04) (prog-if 00 [Normal decode])
	Bus: primary=10, secondary=11, subordinate=15, sec-latency=0
	Capabilities: [40] Express (v2) Root Port (Slot+), MSI 00
		LnkCap:	Port #0, Speed 32GT/s, Width x16, ASPM not supported
		LnkSta:	Speed 32GT/s, Width x16
11:00.0 PCI bridge: Broadcom / LSI PEX890xx PCIe Gen 5 Switch (rev b0) (prog-if 00 [Normal decode])
	Bus: primary=11, secondary=12, subordinate=15, sec-latency=0
	Capabilities: [68] Express (v2) Upstream Port, MSI 00
		LnkCap:	Port #0, Speed 32GT/s, Width x16, ASPM not supported
		LnkSta:	Speed 32GT/s, Width x16
12:00.0 PCI bridge: Broadcom / LSI PEX890xx PCIe Gen 5 Switch (rev b0) (prog-if 00 [Normal decode])
	Bus: primary=12, secondary=13, subordinate=13, sec-latency=0
	Capabilities: [68] Express (v2) Downstream Port (Slot+), MSI 00
		LnkCap:	Port #0, Speed 32GT/s, Width x16, ASPM not supported
		LnkSta:	Speed 32GT/s, Width x16
	Capabilities: [f24 v1] Access Control Services
		ACSCap:	SrcValid+ TransBlk+ ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl+ DirectTrans+
		ACSCtl:	SrcValid+ TransBlk- ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans-
12:01.0 PCI bridge: Broadcom / LSI PEX890xx PCIe Gen 5 Switch (rev b0) (prog-if 00 [Normal decode])
	Bus: primary=12, secondary=14, subordinate=14, sec-latency=0
	Capabilities: [68] Express (v2) Downstream Port (Slot+), MSI 00
		LnkCap:	Port #1, Speed 32GT/s, Width x16, ASPM not supported
		LnkSta:	Speed 32GT/s, Width x16
13:00.0 3D controller: NVIDIA Corporation GH100 [H100 SXM5 80GB] (rev a1)
	NUMA node: 0
	Capabilities: [60] Express (v2) Endpoint, MSI 00
		LnkCap:	Port #0, Speed 32GT/s, Width x16, ASPM not supported
		LnkSta:	Speed 2.5GT/s (downgraded), Width x16
	Kernel driver in use: nvidia
14:00.0 Infiniband controller: Mellanox Technologies MT2910 Family [ConnectX-7]
	Capabilities: [60] Express (v2) Endpoint, MSI 00
		LnkCap:	Port #0, Speed 32GT/s, Width x16, ASPM not supported
		LnkSta:	Speed 32GT/s, Width x8 (downgraded)
	Kernel driver in use: mlx5_core
15:00.0 3D controller: NVIDIA Corporation GH100 [H100 SXM5 80GB] (rev a1)
	Capabilities: [60] Express (v2) Endpoint, MSI 00
		LnkCap:	Port #0, Speed 32GT/s, Width x16, ASPM not supported
		LnkSta:	Speed 32GT/s, Width x8 (downgraded)
"""
LSMOD = """Module                  Size  Used by
nvidia_peermem         16384  0
nvidia              56717312  420 nvidia_uvm,nvidia_peermem,nvidia_modeset
ib_uverbs             163840  3 rdma_ucm,mlx5_ib
"""
ULIMIT = """real-time non-blocking time  (microseconds, -R) unlimited
core file size              (blocks, -c) 0
data seg size               (kbytes, -d) unlimited
max locked memory           (kbytes, -l) 64
open files                          (-n) 1024
stack size                  (kbytes, -s) 8192
max user processes                  (-u) 1030000
"""


def read(text: str) -> Host:
    assert looks_like("support.txt", text.encode()[:4096])
    return host(text.splitlines(), name="node7")


def codes(facts: Host) -> set[str]:
    outcomes = rules.run(Known(cluster=Cluster(hosts=(facts,))), rules.select(("HST", "PCI", "NIC", "VER")))
    return {f"{f.code}:{','.join(f.where.nics)}" for o in outcomes for f in o.findings if f.severity.value != "info"}


def test_ibv_devinfo() -> None:
    facts = read(DEVINFO)
    first, second = facts.nics or ()
    assert (first.name, first.kind, first.up, first.active_mtu, first.board) == (
        "mlx5_0",
        "roce",
        True,
        1024,
        "MT_0000000838",
    )
    assert (second.up, second.state) == (False, "DOWN")
    assert codes(facts) == {"NIC006:mlx5_0", "NIC002:mlx5_1"}


def test_ibstat() -> None:
    facts = read(IBSTAT)
    first, second = facts.nics or ()
    assert (first.gbit_per_s, first.lid, first.sm_lid, first.phys_state) == (400, 18, 1, "LinkUp")
    assert second.state == "INIT"
    assert codes(facts) == {"NIC003:mlx5_1"}


def test_ibstatus() -> None:
    facts = read(IBSTATUS)
    assert [(n.gbit_per_s, n.lanes, n.signalling) for n in facts.nics or ()] == [(200, 2, "NDR"), (400, 4, "NDR")]
    assert codes(facts) == {"NIC004:mlx5_0"}


def test_show_gids() -> None:
    facts = read(SHOW_GIDS)
    assert [(n.name, n.netdev, len(n.gids or ())) for n in facts.nics or ()] == [
        ("mlx5_0", "rdma0", 4),
        ("mlx5_1", "rdma1", 2),
    ]
    assert codes(facts) == {"NIC005:mlx5_1"}


def test_fi_info_counts_a_device_once() -> None:
    assert [n.name for n in read(FI_INFO).nics or ()] == ["rdmap0s26", "rdmap0s27"]


def test_lspci_gives_the_tree() -> None:
    facts = read(LSPCI)
    gpu = next(d for d in facts.pci or () if d.address == "0000:13:00.0")
    assert (gpu.parent, gpu.vendor, gpu.kind, gpu.driver) == ("0000:12:00.0", "10de", "0x030200", "nvidia")
    assert (gpu.gt_per_s, gpu.gt_per_s_max, gpu.width) == (2.5, 32, 16)
    assert codes(facts) == {"PCI002:", "PCI004:"}


def test_lspci_that_was_not_root_does_not_say_that_acs_is_off() -> None:
    facts = read("\n".join(f"{line}" for line in LSPCI.replace("[68]", "<access denied>").splitlines()))
    bridge = next(d for d in facts.pci or () if d.address == "0000:12:01.0")
    assert bridge.acs is None


def test_ulimit_and_lsmod_in_one_file_with_ibstat() -> None:
    facts = read(IBSTAT + LSMOD + ULIMIT)
    assert facts.limits
    assert (facts.limits.memlock_bytes, facts.limits.nofile, facts.limits.stack_bytes) == (65536, 1024, 8388608)
    assert facts.system
    assert facts.system.modules == ("ib_uverbs", "nvidia", "nvidia_peermem")
    assert codes(facts) == {"NIC003:mlx5_1", "HST003:"}


def test_two_tools_on_one_nic_complete_each_other() -> None:
    (nic, _) = read(DEVINFO + SHOW_GIDS).nics or ()
    assert (nic.board, nic.netdev, nic.active_mtu, len(nic.gids or ())) == ("MT_0000000838", "rdma0", 1024, 4)


@pytest.mark.parametrize(
    "text", ["", "nothing of the kind\n", "hca_id", "key: value\n" * 50, "10:15.3 Training step: 7\n"]
)
def test_anything_else_is_refused(text: str) -> None:
    assert not looks_like("a.txt", text.encode())
    with pytest.raises(ValueError, match="no output of"):
        host(text.splitlines(), name="x")
