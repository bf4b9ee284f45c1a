"""Hosts as the cases of several families need them."""

from dataclasses import replace
from typing import Any

from smoldiag.facts import Container, Env, Gpu, Host, Limits, Nic, PciDevice, System, Variable

BARE = System(
    kernel="5.15.0-1045-nvidia",
    virtual="none",
    iommu="off",
    modules=("ib_core", "ib_uverbs", "mlx5_core", "nvidia", "nvidia_peermem"),
)
GUEST = replace(BARE, virtual="kvm")
UNLIMITED = Limits(memlock_bytes=-1, nofile=1048576, shm_bytes=1 << 37, shm_free_bytes=1 << 37, shm_kind="tmpfs")
DOCKER = Container(kind="docker", capabilities=("chown", "sys_nice"), devices=("/dev/nvidia0", "/dev/nvidia1"))
HOST = Container(kind="none", devices=("/dev/infiniband/uverbs0",))


def gpu(address: str, parent: str | None = None, **more: Any) -> PciDevice:
    given: dict[str, Any] = {"gt_per_s": 32, "gt_per_s_max": 32, "width": 16, "width_max": 16, "driver": "nvidia"}
    given |= {"vendor": "10de", "device": "2330", "kind": "0x030200"}
    return PciDevice(address=address, parent=parent, **{**given, **more})


def card(address: str, parent: str | None = None, **more: Any) -> PciDevice:
    given: dict[str, Any] = {"gt_per_s": 32, "gt_per_s_max": 32, "width": 16, "width_max": 16, "driver": "mlx5_core"}
    return PciDevice(address=address, vendor="15b3", device="1021", kind="0x020700", parent=parent, **{**given, **more})


def bridge(address: str, parent: str | None, port: str, acs: tuple[str, ...] | None = (), **more: Any) -> PciDevice:
    return PciDevice(address=address, vendor="1000", kind="0x060400", parent=parent, port=port, acs=acs, **more)


def rail(i: int, acs: tuple[str, ...] | None = ()) -> tuple[PciDevice, ...]:
    """A GPU and a NIC below one switch."""
    bus = f"{i + 1}"
    return (
        bridge(f"0000:{bus}0:00.0", None, "root", acs=()),
        bridge(f"0000:{bus}1:00.0", f"0000:{bus}0:00.0", "upstream", acs=()),
        bridge(f"0000:{bus}2:00.0", f"0000:{bus}1:00.0", "downstream", acs=acs),
        bridge(f"0000:{bus}2:01.0", f"0000:{bus}1:00.0", "downstream", acs=acs),
        gpu(f"0000:{bus}3:00.0", f"0000:{bus}2:00.0"),
        card(f"0000:{bus}4:00.0", f"0000:{bus}2:01.0"),
    )


RAILS = tuple(d for i in range(4) for d in rail(i))
NICS = tuple(
    Nic(
        name=f"mlx5_{i}",
        device=f"mlx5_{i}",
        port=1,
        kind="infiniband",
        gbit_per_s=400,
        lanes=4,
        signalling="NDR",
        up=True,
        state="ACTIVE",
        phys_state="LinkUp",
        bus_id=f"0000:{i + 1}4:00.0",
        driver="mlx5_core",
        board="MT_1",
        firmware="28.39",
        pkeys=(0xFFFF,),
    )
    for i in range(4)
)
TWO_GPUS = (gpu("0000:01:00.0"), gpu("0000:02:00.0"))
H100S = tuple(Gpu(index=i, name="NVIDIA H100 80GB HBM3") for i in range(2))
EFA = tuple(Nic(name=f"rdmap{i}s0", device=f"rdmap{i}s0", kind="efa", gbit_per_s=100, up=True) for i in range(2))


def env(**variables: str) -> Env:
    return Env(variables=tuple(Variable(name=n, value=v, origin="environment") for n, v in variables.items()))


def changed(nics: tuple[Nic, ...], index: int, **more: Any) -> tuple[Nic, ...]:
    """The same NICs, one of them otherwise."""
    return tuple(replace(n, **more) if i == index else n for i, n in enumerate(nics))


def host(**facts: Any) -> Host:
    """A healthy server with four GPUs and four InfiniBand rails, and what a case says otherwise."""
    given: dict[str, Any] = {
        "system": BARE,
        "limits": UNLIMITED,
        "container": HOST,
        "nics": NICS,
        "pci": RAILS,
        "cpu_count": 112,
        "versions": {"driver": "570.86.15", "driver_flavour": "open", "user_driver": "570.86.15"},
        "libraries": (),
        "files": (),
        "routes": (),
        "mounts": (),
    }
    return Host(name="node7", **{**given, **facts})
