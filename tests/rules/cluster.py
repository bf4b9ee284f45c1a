"""Rules that compare hosts: one that differs among three, and what is no difference."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.peers import fleet
from smoldiag.facts import Clock, Cluster, Env, Gid, Host, Mount, Nic, Variable
from tests.rules.known import Facts

GIB = 2**30


def three(change: Callable[[Host], Host] = lambda host: host, *, hosts: int = 3) -> Cluster:
    """Healthy hosts; the second with a difference."""
    return Cluster(hosts=tuple(change(h) if i == 1 else h for i, h in enumerate(fleet.cluster(hosts))))


def of(field: str, **changes: Any) -> Callable[[Host], Host]:
    """A change in one of the facts that are a record of their own."""
    return lambda host: replace(host, **{field: replace(getattr(host, field), **changes)})


def versions(**changes: str) -> Callable[[Host], Host]:
    return lambda host: replace(host, versions={**(host.versions or {}), **changes})


def variable(name: str, value: str | None) -> Callable[[Host], Host]:
    def change(host: Host) -> Host:
        kept = tuple(v for v in host.env or () if v.name != name)
        new = (Variable(name=name, value=value, origin="/etc/nccl.conf:3"),) if value is not None else ()
        return replace(host, env=Env(variables=(*kept, *new)))

    return change


def gpu(index: int, **changes: Any) -> Callable[[Host], Host]:
    return lambda host: replace(
        host, gpus=tuple(replace(g, **changes) if g.index == index else g for g in host.gpus or ())
    )


def nic(which: str, /, **changes: Any) -> Callable[[Host], Host]:
    return lambda host: replace(
        host, nics=tuple(replace(n, **changes) if n.name == which else n for n in host.nics or ())
    )


def without_nic(name: str) -> Callable[[Host], Host]:
    return lambda host: replace(host, nics=tuple(n for n in host.nics or () if n.name != name))


def another(name: str, **more: Any) -> Callable[[Host], Host]:
    new = replace(Nic(name=name, kind="ethernet", up=True, virtual=True, addresses=("10.99.0.1/24",)), **more)
    return lambda host: replace(host, nics=(*(host.nics or ()), new))


def roce(index: int) -> Callable[[Host], Host]:
    gids = (
        Gid(index=0, address="fe80::1", kind="IB/RoCE v1"),
        Gid(index=index, address="0000:0000:0000:0000:0000:ffff:0a00:0001", kind="RoCE v2"),
    )
    change = nic("mlx5_0", kind="roce", gids=gids)
    return lambda host: variable("NCCL_IB_GID_INDEX", "3")(change(host))


def loaded(mhz: int) -> Callable[[Host], Host]:
    return lambda host: replace(
        host,
        gpus=tuple(
            replace(g, utilization_percent=100, sm_clock_mhz=mhz if g.index == 2 else 1755, power_w=690.0)
            for g in host.gpus or ()
        ),
    )


def each(change: Callable[[Host], Host]) -> Cluster:
    return Cluster(hosts=tuple(change(h) for h in fleet.cluster(3)))


def no_modules(host: Host) -> Host:
    assert host.system
    return of("system", modules=tuple(m for m in host.system.modules or () if m != "nvidia_peermem"))(host)


def extra_module(host: Host) -> Host:
    assert host.system
    return of("system", modules=(*(host.system.modules or ()), "efa"))(host)


def no_data(host: Host) -> Host:
    return replace(host, mounts=tuple(m for m in host.mounts or () if m.path != "/data"))


def data_on_demand(host: Host) -> Host:
    return replace(
        no_data(host), mounts=(*(no_data(host).mounts or ()), Mount(path="/data", source="x", kind="autofs"))
    )


def own_home(host: Host) -> Host:
    return replace(host, mounts=(*(host.mounts or ()), Mount(path="/home/a", source="nfs:/a", kind="nfs4")))


HEALTHY = three()
ALONE_ON_NUMA_0 = gpu(7, numa_node=0)

CASES: list[tuple[str, Facts, list[str]]] = [
    ("VER050", three(versions(nccl="2.27.3")), ["error"]),
    ("VER050", HEALTHY, []),
    ("VER051", three(versions(torch="2.6.0+cu124", torch_cuda="12.4")), ["warning"]),
    ("VER051", HEALTHY, []),
    ("VER052", three(versions(driver="535.183.01")), ["warning"]),
    ("VER052", HEALTHY, []),
    ("VER053", three(versions(ofed="5.8-2.0.3")), ["warning"]),
    ("VER053", HEALTHY, []),
    ("VER054", three(of("system", kernel="5.15.0-130-generic")), ["warning"]),
    ("VER054", HEALTHY, []),
    ("ENV050", three(variable("NCCL_ALGO", "Tree")), ["error"]),
    ("ENV050", three(variable("MASTER_PORT", "29501")), ["error"]),
    ("ENV050", three(variable("NCCL_SOCKET_IFNAME", "ens5")), []),  # a host's own
    ("ENV050", three(variable("SLURM_PROCID", "1")), []),
    ("ENV050", HEALTHY, []),
    ("ENV051", three(variable("OMP_NUM_THREADS", "1")), ["warning"]),
    ("ENV051", three(variable("NCCL_DEBUG", None)), ["info"]),
    ("ENV051", three(variable("RANK", "1")), []),
    ("ENV051", HEALTHY, []),
    ("HST050", three(of("limits", memlock_bytes=65536)), ["warning"]),
    ("HST050", three(of("limits", nofile=1024)), ["warning"]),
    ("HST050", three(of("limits", shm_bytes=64 * 2**20)), ["warning"]),
    ("HST050", three(of("limits", shm_bytes=1000 * GIB)), []),
    ("HST050", HEALTHY, []),
    ("HST051", three(of("clock", offset_s=-20.0)), ["warning"]),
    ("HST051", three(of("clock", offset_s=3.0), hosts=2), ["warning"]),
    ("HST051", three(of("clock", offset_s=3.0, uncertainty_s=4.0)), []),
    ("HST051", each(lambda h: replace(h, clock=Clock(offset_s=77.0, uncertainty_s=0.1))), []),  # it is the head
    ("HST051", HEALTHY, []),
    ("HST052", three(of("system", host_id=f"{0:016x}")), ["error"]),
    ("HST052", three(nic("eth0", addresses=("10.0.1.7/16",))), ["error"]),
    ("HST052", three(lambda h: replace(h, aliases=("localhost", "10.0.2.7")), hosts=2), []),
    ("HST052", each(lambda h: replace(h, aliases=("localhost",))), ["warning"]),
    ("HST052", each(another("docker0", addresses=("172.17.0.1/16",))), []),
    ("HST052", HEALTHY, []),
    ("HST053", three(of("system", memory_bytes=1760 * GIB)), ["warning"]),
    ("HST053", HEALTHY, []),
    ("HST054", three(of("cpu", governor="powersave")), ["warning"]),
    ("HST054", HEALTHY, []),
    ("HST055", three(no_modules), ["warning"]),
    ("HST055", three(extra_module), []),
    ("HST055", HEALTHY, []),
    ("HST056", three(no_data), ["warning"]),
    ("HST056", three(own_home), []),
    ("HST056", three(data_on_demand), []),
    ("HST056", HEALTHY, []),
    ("GPU050", three(lambda h: replace(h, gpus=(h.gpus or ())[:7])), ["error"]),
    ("GPU050", three(lambda h: replace(h, gpus=None, unread={"gpus": "NVML: Unknown Error"})), ["warning"]),
    ("GPU050", HEALTHY, []),
    ("GPU051", three(lambda h: gpu(0, name="NVIDIA H200")(h)), ["warning"]),
    ("GPU051", HEALTHY, []),
    ("GPU052", three(gpu(3, power_limit_w=500.0)), ["warning"]),
    ("GPU052", three(gpu(3, ecc=False)), ["warning"]),
    ("GPU052", three(gpu(3, persistence=False)), ["info"]),
    ("GPU052", HEALTHY, []),
    ("GPU053", three(gpu(3, uuid="GPU-00000000-0003")), ["error"]),
    ("GPU053", HEALTHY, []),
    ("GPU054", each(loaded(1755)), []),
    ("GPU054", Cluster(hosts=(loaded(1755)(fleet.host(0)), loaded(1200)(fleet.host(1)))), ["warning"]),
    ("PCI050", three(gpu(3, pci_width_max=8)), ["warning"]),
    ("PCI050", HEALTHY, []),
    ("NIC050", three(without_nic("mlx5_5")), ["warning"]),
    ("NIC050", HEALTHY, []),
    ("NIC051", three(nic("mlx5_5", gbit_per_s=200.0)), ["warning"]),
    ("NIC051", HEALTHY, []),
    ("NIC052", three(nic("mlx5_5", firmware="28.39.1002")), ["warning"]),
    ("NIC052", HEALTHY, []),
    ("NIC053", three(nic("eth0", name="ens5")), ["warning"]),
    ("NIC053", three(nic("eth0", name="ens5"), hosts=2), ["warning"]),
    ("NIC053", three(another("aaa0")), ["info"]),
    ("NIC053", three(another("veth12ab34")), []),
    ("NIC053", three(nic("mlx5_5", name="rocep1s0")), ["warning"]),
    ("NIC053", HEALTHY, []),
    ("NIC054", three(nic("eth0", mtu=1500)), ["warning"]),
    ("NIC054", HEALTHY, []),
    ("NIC055", three(nic("mlx5_5", up=False)), ["error"]),
    ("NIC055", each(nic("mlx5_5", up=False)), []),
    ("NIC055", HEALTHY, []),
    ("NIC056", Cluster(hosts=(roce(3)(fleet.host(0)), roce(3)(fleet.host(1)), roce(5)(fleet.host(2)))), ["error"]),
    ("NIC056", each(roce(3)), []),
    ("NIC057", three(nic("mlx5_5", guid=fleet.port(0, 5).guid)), ["error"]),
    ("NIC057", HEALTHY, []),
    ("TOP050", three(ALONE_ON_NUMA_0), ["warning"]),
    ("TOP050", three(lambda h: replace(h, gpus=(h.gpus or ())[:7])), []),  # GPU050 says it
    ("TOP050", HEALTHY, []),
]
