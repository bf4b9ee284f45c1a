"""NIC."""

from dataclasses import replace
from typing import Any

from smoldiag.facts import Gid, Nic, Route
from tests.rules.known import Facts
from tests.rules.machines import BARE, DOCKER, EFA, GUEST, NICS, TWO_GPUS, changed, env, host

LOCAL = Gid(index=0, address="fe80:0000:0000:0000:1234:56ff:fe78:9abc", kind="RoCE v2")
V4 = Gid(index=3, address="0000:0000:0000:0000:0000:ffff:0a00:0007", kind="RoCE v2")
V6 = Gid(index=3, address="fd02:0000:0000:0000:0000:0000:0000:0007", kind="RoCE v2")
ROCE = tuple(
    replace(n, kind="roce", netdev=f"rdma{i}", mtu=9000, gids=(LOCAL, V4), pkeys=None) for i, n in enumerate(NICS)
)
ETH = Nic(
    name="eth0", kind="ethernet", up=True, state="up", gbit_per_s=25, index=2, addresses=("10.1.0.7/16",), flags=0x1003
)
BRIDGE = replace(ETH, name="br-1a2b", virtual=True, index=1, addresses=("172.18.0.1/16",), gbit_per_s=None)
BOND = replace(ETH, name="bond0", virtual=True, index=4, lower=("eth0", "eth1"))
SLAVE = replace(ETH, name="eth1", up=False, state="down", master="bond0", flags=0x1803, addresses=())
GVNICS = tuple(replace(ETH, name=f"eth{i}", driver="gve", board="1ae0:0042") for i in range(4))
ROUTES = (Route(destination="10.1.0.0/16", interface="eth0", metric=0),)
TWO_ROUTES = (*ROUTES, Route(destination="10.1.0.0/16", interface="eth1", metric=0))
NO_PEERMEM = replace(BARE, modules=("ib_core", "mlx5_core", "nvidia"))
CLOSED = {"driver": "535.104.05", "driver_flavour": "proprietary"}
OFED = {**CLOSED, "ofed": "23.10-1.1.9"}


DOWN: dict[str, Any] = {"up": False, "state": "DOWN", "phys_state": "Polling", "gbit_per_s": 10}

CASES: list[tuple[str, Facts, list[str]]] = [
    ("NIC002", host(nics=changed(NICS, 2, **DOWN)), ["error"]),
    ("NIC002", host(nics=tuple(replace(n, **DOWN) for n in NICS)), ["warning"] * 4),
    ("NIC002", host(nics=tuple(replace(n, **DOWN) for n in NICS), pci=TWO_GPUS), ["info"] * 4),
    ("NIC002", host(nics=(NICS[0], replace(NICS[1], bus_id="0000:14:00.1", **DOWN)), pci=TWO_GPUS), ["info"]),
    ("NIC002", host(), []),
    ("NIC003", host(nics=changed(NICS, 1, up=False, state="INIT")), ["error"]),
    ("NIC003", host(), []),
    ("NIC004", host(nics=changed(NICS, 1, gbit_per_s=200, lanes=2)), ["warning"]),
    ("NIC004", host(nics=(replace(NICS[0], gbit_per_s_max=800),)), ["warning"]),
    ("NIC004", host(nics=(replace(NICS[0], lanes=1, gbit_per_s=100),)), ["warning"]),
    ("NIC004", host(nics=(*NICS, replace(NICS[0], name="mlx5_9", board="MT_2", bus_id=None, gbit_per_s=100))), []),
    ("NIC004", host(nics=changed(NICS, 1, **DOWN)), []),
    ("NIC004", host(), []),
    ("NIC005", host(nics=changed(ROCE, 1, gids=(LOCAL,))), ["warning"]),
    ("NIC005", host(nics=changed(ROCE, 1, gids=(LOCAL, V6))), ["info"]),
    ("NIC005", host(nics=changed(ROCE, 1, gids=(LOCAL, V6)), env=env(NCCL_IB_ADDR_FAMILY="AF_INET6")), []),
    ("NIC005", host(nics=ROCE), []),
    ("NIC005", host(), []),
    ("NIC006", host(nics=tuple(replace(n, mtu=1500) for n in ROCE)), ["warning"] * 4),
    ("NIC006", host(nics=ROCE), []),
    ("NIC006", host(nics=(replace(ROCE[0], mtu=1500),), pci=()), ["info"]),
    ("NIC007", host(nics=changed(ROCE, 1, mtu=4200)), ["warning"]),
    ("NIC007", host(nics=ROCE), []),
    ("NIC008", host(nics=(ETH, replace(ETH, name="eth1", index=3)), routes=TWO_ROUTES), ["warning"]),
    ("NIC008", host(nics=(ETH, replace(ETH, name="eth1")), routes=(*ROUTES, replace(TWO_ROUTES[1], metric=600))), []),
    ("NIC009", host(nics=(BRIDGE, ETH)), ["warning"]),
    ("NIC009", host(nics=(BRIDGE, ETH), env=env(NCCL_SOCKET_IFNAME="=eth0")), []),
    ("NIC009", host(nics=(ETH, replace(BRIDGE, index=7))), []),
    ("NIC010", host(nics=(replace(ETH, addresses=("169.254.3.1/16",)),), container=DOCKER), ["warning"]),
    ("NIC010", host(nics=(ETH,)), []),
    ("NIC010", host(nics=(replace(ETH, addresses=None),)), []),
    ("NIC011", host(system=NO_PEERMEM, versions=CLOSED), ["warning"]),
    ("NIC011", host(system=replace(NO_PEERMEM, kernel="5.4.0-150-generic")), ["warning"]),
    ("NIC011", host(system=NO_PEERMEM), []),
    ("NIC011", host(versions=CLOSED), []),
    ("NIC011", host(system=NO_PEERMEM, versions=CLOSED, nics=EFA), []),
    ("NIC012", host(versions=CLOSED), ["warning"]),
    ("NIC012", host(versions=OFED), []),
    ("NIC013", host(nics=changed(EFA, 0, peer_memory=""), pci=TWO_GPUS, system=GUEST), ["warning"]),
    ("NIC013", host(nics=EFA, pci=TWO_GPUS), []),
    ("NIC013", host(nics=tuple(replace(n, peer_memory="NVIDIA") for n in EFA), pci=TWO_GPUS), []),
    ("NIC014", host(nics=changed(NICS, 0, pkeys=(0x7FFF,))), ["warning"]),
    ("NIC014", host(), []),
    ("NIC015", host(nics=(replace(ROCE[0], name="mlx5_bond_0"),)), ["info"]),
    ("NIC015", host(nics=ROCE), []),
    ("NIC016", host(nics=(BOND, replace(ETH, master="bond0"), SLAVE)), ["warning"]),
    ("NIC016", host(nics=(BOND, replace(ETH, master="bond0"), replace(SLAVE, up=True))), []),
    ("NIC017", host(nics=changed(NICS, 3, firmware="28.33")), ["info"]),
    ("NIC017", host(), []),
    ("NIC018", host(nics=(replace(ETH, gbit_per_s=1),)), ["info"]),
    ("NIC018", host(nics=(ETH,)), []),
    ("NIC019", host(nics=(*GVNICS[:3], replace(GVNICS[3], up=False, state="down"))), ["warning"]),
    ("NIC019", host(nics=GVNICS), []),
    ("NIC019", host(nics=(GVNICS[0], replace(GVNICS[1], up=False, state="down"))), []),
]
