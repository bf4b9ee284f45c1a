"""Rules of topology: machines from their parts, and matrices as nvidia-smi prints them."""

from dataclasses import replace

from smoldiag.facts import Cpu, Env, Host, Network, Nic, PciDevice, Placement, System, Topology, Variable
from smoldiag.model import topology as model
from smoldiag.parse.topology import parse
from smoldiag.rules import Known
from tests.rules.gpus import h100, links
from tests.rules.known import Facts

BRIDGE, GPU, NIC = "0x060400", "0x030200", "0x020700"


def device(address: str, kind: str, parent: str | None, numa: int, width: int = 16) -> PciDevice:
    return PciDevice(
        address=address, kind=kind, parent=parent, numa_node=numa, gt_per_s_max=32.0, width=width, width_max=16, acs=()
    )


def machine(
    *,
    gpus: int = 8,
    nics: tuple[int, ...] = tuple(range(8)),
    narrow: int | None = None,
    nvlinks: bool = True,
    switches: bool = True,
    port_gbit_per_s: float = 400,
) -> Host:
    """Each GPU below a switch of its own, a NIC beside those that `nics` names; four GPUs to a CPU."""
    tree, boards, cards = [], [], []
    for i in range(gpus):
        bus, numa = 0x10 * (i + 1), i // 4
        root, up = f"0000:{bus:02x}:01.0", f"0000:{bus + 1:02x}:00.0"
        down = [f"0000:{bus + 2:02x}:0{k}.0" for k in range(2)]
        gpu, nic = f"0000:{bus + 3:02x}:00.0", f"0000:{bus + 4:02x}:00.0"
        if switches:
            tree += [device(root, BRIDGE, None, numa), device(up, BRIDGE, root, numa)]
            tree += [device(d, BRIDGE, up, numa) for d in down]
        tree.append(device(gpu, GPU, down[0] if switches else None, numa))
        tree.append(device(nic, NIC, down[1] if switches else None, numa, width=4 if i == narrow else 16))
        boards.append(
            h100(
                i,
                bus_id=gpu,
                numa_node=numa,
                compute_capability=(9, 0),
                nvlinks=links(18, remote="nvswitch") if nvlinks else (),
            )
        )
        if i in nics:
            rate = port_gbit_per_s
            cards.append(Nic(name=f"mlx5_{i}", kind="infiniband", gbit_per_s=rate, up=True, bus_id=nic, numa_node=numa))
    cpu = Cpu(model="Intel(R) Xeon(R) Platinum 8480C", architecture="x86_64")
    host = Host(
        name="n0",
        gpus=tuple(boards),
        nics=tuple(cards),
        pci=tuple(tree),
        cpu=cpu,
        system=System(virtual="none"),
        files=(),
        env=Env(),
    )
    return model.filled(host)


def matrix(text: str) -> Host:
    return Host(name="n0", topology=parse(text, name="topo.txt"), system=System(), files=(), env=Env(), cpu=Cpu())


def grid(cells: list[list[str]], *, nics: int = 0, numa: str = "0") -> str:
    names = [f"GPU{i}" for i in range(len(cells))] + [f"mlx5_{i}" for i in range(nics)]
    rows = [f"GPU{i} {' '.join(row)} 0-15 {numa}" for i, row in enumerate(cells)]
    return "\n".join([" ".join(names) + " CPU Affinity NUMA Affinity", *rows])


def square(kind: str, count: int = 4, nic: str | None = None) -> list[list[str]]:
    rows = [["X" if a == b else kind for b in range(count)] for a in range(count)]
    return [row + ([nic] if nic else []) for row in rows]


def with_pair(host: Host, a: str, b: str, written: str) -> Host:
    """With fewer NVLinks between two GPUs."""
    t = host.topology
    assert isinstance(t, Topology)
    paths = tuple(replace(p, written=written) if set(p.ends) == {a, b} else p for p in t.paths)
    return replace(host, topology=replace(t, paths=paths))


HGX = machine()
HALF = machine(nics=(0, 2, 4, 6))
FLAT = matrix(grid(square("PHB", nic="PHB"), nics=1, numa="0-1"))
IN_A_VM = replace(machine(switches=False, nvlinks=False), system=System(virtual="kvm"))
FILE = Env(variables=(Variable(name="NCCL_TOPO_FILE", value="/opt/topo.xml", origin="environment"),))
PAIRS = [["X", "NV4", "SYS", "SYS"], ["NV4", "X", "SYS", "SYS"], ["SYS", "SYS", "X", "NV4"], ["SYS", "SYS", "NV4", "X"]]
ONE_LESS = [["X", "NV18", "NV18", "NV17"], ["NV18", "X", "NV18", "NV17"], ["NV18", "NV18", "X", "NV17"],
            ["NV17", "NV17", "NV17", "X"]]  # fmt: skip
ONE_OUT = [["X", "NV18", "NV18", "SYS"], ["NV18", "X", "NV18", "SYS"], ["NV18", "NV18", "X", "SYS"],
           ["SYS", "SYS", "SYS", "X"]]  # fmt: skip
SOCKET = machine(nics=(0, 1, 2, 3), nvlinks=False)
MESH = [["X", "NV1", "NV1", "NV2"], ["NV1", "X", "NV2", "NV1"], ["NV1", "NV2", "X", "NV2"], ["NV2", "NV1", "NV2", "X"]]


def network(*switches: tuple[str, ...]) -> Known:
    placements = tuple(Placement(host=f"n{i}", switches=s) for i, s in enumerate(switches))
    return Known(network=Network(source="scontrol show topology", placements=placements))


assert isinstance(HGX.topology, Topology)
FAST_PORT = machine(port_gbit_per_s=1600)
ETHERNET = replace(HGX, nics=tuple(replace(n, kind="ethernet") for n in HGX.nics or ()), topology=None)

EFA = replace(IN_A_VM, nics=tuple(replace(n, kind="efa") for n in HGX.nics or ()), topology=None)
AZURE = machine(gpus=2, nics=(0,), switches=False, nvlinks=False)
AZURE = replace(AZURE, nics=tuple(replace(n, name="mlx5_an0") for n in AZURE.nics or ()), topology=None)
BEHIND_CPUS = machine(switches=False)

CASES: list[tuple[str, Facts, list[str]]] = [
    ("TOP001", matrix(grid(square("NV18", nic="NODE"), nics=1)), ["warning"]),
    ("TOP001", matrix(grid(square("PHB", nic="SYS"), nics=1)), ["warning"]),
    ("TOP001", matrix(grid([["X", "NODE"]], nics=1)), ["info"]),  # one GPU and a NIC in two slots
    ("TOP001", matrix(grid(square("NV18", nic="PXB"), nics=1)), []),
    ("TOP001", matrix(grid(square("NV18"))), []),
    ("TOP001", BEHIND_CPUS, ["warning"]),
    ("TOP001", HGX, []),
    ("TOP001", model.filled(EFA), []),
    ("TOP001", model.filled(AZURE), []),
    ("TOP001", model.filled(ETHERNET), []),
    ("TOP002", HALF, ["warning"]),
    ("TOP002", HGX, []),
    ("TOP003", FLAT, ["warning"]),
    ("TOP003", replace(FLAT, env=FILE), []),
    ("TOP003", replace(FLAT, files=("/var/run/nvidia-topologyd/virtualTopology.xml",)), []),
    ("TOP003", IN_A_VM, ["warning"]),
    ("TOP003", replace(HGX, system=System(virtual="kvm")), []),  # its switches are shown
    ("TOP003", matrix(grid(square("PHB"), numa="0")), []),
    ("TOP003", HGX, []),
    ("TOP003", model.filled(EFA), []),
    ("TOP004", matrix(grid([[*row, "PIX", "SYS"] for row in square("NV18")], nics=2)), ["info"]),
    ("TOP004", HGX, []),
    ("TOP005", matrix(grid(PAIRS)), ["info"]),
    ("TOP005", HGX, []),
    ("TOP006", matrix(grid(ONE_LESS)), ["warning"]),
    ("TOP006", matrix(grid(ONE_OUT)), ["warning"]),
    ("TOP006", replace(with_pair(HGX, "GPU2", "GPU5", "NV16"), gpus=None), ["warning"]),
    ("TOP006", matrix(grid(PAIRS)), []),
    ("TOP006", matrix(grid(MESH)), []),
    ("TOP006", HGX, []),
    ("TOP007", machine(narrow=3), ["warning"]),
    ("TOP007", FAST_PORT, ["info"] * 8),
    ("TOP007", HGX, []),
    ("TOP007", matrix(grid(square("NV18", nic="PIX"), nics=1)), []),
    ("TOP008", network(("s1", "top"), ("s1", "top"), ("s2", "top")), ["info"]),
    ("TOP008", network(("s1", "a"), ("s2", "b")), ["warning"]),
    ("TOP008", network(("s1", "top"), ("s1", "top")), []),
]
