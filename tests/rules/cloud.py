"""CLD: hosts, variables and logs against a small profile."""

from typing import Any

from smoldiag.facts import Cluster, Env, Evidence, Expected, Gpu, Host, Log, Nic, PciDevice, Transport, Variable
from smoldiag.facts.cloud import (
    Automatic,
    BadVersions,
    CloudHardware,
    CloudProfile,
    Convention,
    ExpectedRate,
    Forbidden,
    NeededFile,
    Plugin,
    Setting,
    Threshold,
)
from smoldiag.rules import Known
from smoldiag.rules.cloud import FROM_LOG
from tests.rules.bench import bench, result
from tests.rules.known import Facts

H100 = "NVIDIA H100 80GB HBM3"
PROFILE = CloudProfile(
    name="cirrus-c5",
    cloud="cirrus",
    family="c5",
    title="Cirrus c5: 8 x H100, 4 x 200 Gb/s",
    status="measured",
    network=("Cirrus Net",),
    hardware=CloudHardware(
        gpu_class="H100 SXM",
        gpu=(H100,),
        gpus=8,
        nics=4,
        nic_gbit_per_s=200,
        nic_kind="efa",
        fabric="Cirrus fabric",
        host_gbit_per_s=100,
        source="Cirrus instance types",
    ),
    settings=(
        Setting(name="NCCL_IB_TC", value="41", why="the lossless class", scope="host", source="Cirrus docs"),
        Setting(
            name="NCCL_IB_HCA",
            value="=mlx5_0,mlx5_1",
            accepted=("mlx5",),
            why="the data ports",
            source="Cirrus docs",
        ),
        Setting(name="NCCL_CUMEM_ENABLE", value="1", level="recommended", why="why not", source="Cirrus docs"),
        Setting(name="NCCL_IB_SPLIT_DATA_ON_QPS", value="0", why="old", until="NCCL 2.20", source="Cirrus docs"),
    ),
    automatic=(
        Automatic(name="NCCL_BUFFSIZE", value="8388608", by="cirrus-ofi", since="aws-ofi-nccl 1.16", source="plugin"),
    ),
    forbidden=(
        Forbidden(name="FI_EFA_MTU_SIZE", kind="aborts", why="removed", source="libfabric"),
        Forbidden(name="NCCL_PROTO", values=("simple",), kind="harmful", since="NCCL 2.19", why="slow", source="docs"),
        Forbidden(name="NCCL_TOPO_FILE", allowed=("/proc/self/fd/*",), kind="harmful", why="guess", source="docs"),
        Forbidden(name="NCCL_MIN_CHANNELS", kind="no-such-variable", why="never", instead="nothing", source="docs"),
        Forbidden(name="FI_EFA_USE_DEVICE_RDMA", kind="obsolete", since="libfabric 1.18", why="asked", source="docs"),
        Forbidden(name="FI_PROVIDER", values=("efa",), kind="redundant", why="asked for", source="docs"),
    ),
    plugins=(
        Plugin(
            name="cirrus-ofi",
            minimum="aws-ofi-nccl 1.10",
            paths=("/opt/cirrus/libnccl-net.so",),
            why="the network",
            source="docs",
        ),
    ),
    files=(
        NeededFile(
            what="the plugin", any_of=("/opt/cirrus/a.so", "/opt/cirrus/b.so"), beside="/opt/cirrus", why="", source=""
        ),
    ),
    expected=(
        ExpectedRate(
            collective="all_reduce", nodes=4, gpus_per_node=8, size_bytes=2**33, busbw_gbs=95.0, source="Cirrus table"
        ),
    ),
    thresholds=(
        Threshold(
            collective="all_reduce",
            nodes=4,
            size_bytes=2**30,
            warn_below_gbs=85,
            fail_below_gbs=76,
            basis="0.9 and 0.8 of 95",
            source="Cirrus table",
        ),
    ),
    launch=(
        Convention(launcher="kubernetes", kind="resource", name="cirrus/net", value="4", why="or TCP", source="docs"),
    ),
    bad_versions=(
        BadVersions(
            what="small messages hang",
            component="aws-ofi-nccl",
            since="aws-ofi-nccl 1.12.0",
            until="aws-ofi-nccl 1.12.1",
            needs="EFA installer 1.35",
            symptom="a hang",
            fix="1.12.1",
            source="release notes",
        ),
    ),
)
THE_SAME = (
    Expected(collective="all_reduce", size_bytes=2**33, busbw_gbs=95.0, kind="measured", source="Cirrus table"),
)
RIGHT = {"NCCL_IB_TC": "41", "NCCL_IB_HCA": "=mlx5_1,mlx5_0"}


def env(**variables: str) -> Env:
    return Env(variables=tuple(Variable(name=n, value=v, origin="environment") for n, v in variables.items()))


def logged(**variables: str) -> Env:
    found = tuple(Variable(name=n, value=v, origin=FROM_LOG) for n, v in variables.items())
    return Env(variables=found, complete=False)


def on(profile: CloudProfile = PROFILE, log: Log | None = None, **facts: Any) -> Known:
    """One host with these facts."""
    return Known(cluster=Cluster(hosts=(Host(name="n0", **facts),)), profile=profile, log=log)


def says(network: str | None, **more: Any) -> Log:
    seen = (Evidence(text=f"Using network {network}", where="nccl.log:7"),)
    return Log(transport=Transport(network=network, evidence=seen, **({"nodes": 2} | more)))


def gpus(count: int) -> tuple[Gpu, ...]:
    return tuple(Gpu(index=i, name=H100) for i in range(count))


def on_bus(count: int) -> tuple[PciDevice, ...]:
    return tuple(
        PciDevice(address=f"0000:{i:02x}:00.0", vendor="10de", device="2330", kind="0x030200") for i in range(count)
    )


def nics(count: int, down: int = 0) -> tuple[Nic, ...]:
    efa = tuple(Nic(name=f"rdmap{i}s0", kind="efa", gbit_per_s=200, up=i >= down) for i in range(count))
    return (*efa, Nic(name="mlx5_0", kind="roce", gbit_per_s=400, up=True))


def benched(busbw: float, *, ranks: int = 32, expected: tuple[Expected, ...] = ()) -> Known:
    """An all_reduce of 8 GiB over four hosts."""
    run = bench(result(busbw, size=2**33, ranks=ranks, nodes=4), nodes=4, expected=expected)
    return Known(bench=run, profile=PROFILE)


CASES: list[tuple[str, Facts, list[str]]] = [
    ("CLD001", on(env=env(**RIGHT, FI_EFA_MTU_SIZE="4096")), ["error"]),
    ("CLD001", on(env=env(**RIGHT, NCCL_PROTO="Simple")), ["warning"]),
    ("CLD001", on(env=env(**RIGHT, NCCL_PROTO="Simple"), versions={"nccl": "2.18.3"}), []),
    ("CLD001", on(env=env(**RIGHT, NCCL_PROTO="LL128", NCCL_TOPO_FILE="/proc/self/fd/7")), []),
    ("CLD001", on(env=env(NCCL_TOPO_FILE="/x.xml", NCCL_MIN_CHANNELS="4")), ["warning", "warning"]),
    ("CLD001", on(env=logged(NCCL_MIN_CHANNELS="4")), ["warning"]),
    ("CLD002", on(env=env(FI_EFA_USE_DEVICE_RDMA="1")), ["info"]),
    ("CLD002", on(env=env(FI_EFA_USE_DEVICE_RDMA="1"), versions={"libfabric": "1.17.1"}), []),
    ("CLD003", on(env=env(FI_PROVIDER="efa", NCCL_BUFFSIZE="8388608")), ["info"]),
    ("CLD003", on(env=env(FI_PROVIDER="tcp")), []),
    # a plugin sets it, and NCCL says that it was "set by environment"
    ("CLD003", on(env=logged(NCCL_BUFFSIZE="8388608")), []),
    ("CLD004", on(env=env(NCCL_IB_HCA="mlx5")), ["warning"]),
    ("CLD004", on(env=env(**RIGHT)), []),
    ("CLD004", on(env=logged()), []),  # what a log does not show may be set
    ("CLD005", on(env=env(NCCL_IB_TC="106", NCCL_BUFFSIZE="2097152")), ["warning", "warning"]),
    ("CLD005", on(env=env(NCCL_CUMEM_ENABLE="0")), ["info"]),
    ("CLD005", on(env=env(**RIGHT, NCCL_DEBUG="INFO", NCCL_BUFFSIZE="8388608")), []),
    ("CLD005", on(env=env(NCCL_IB_SPLIT_DATA_ON_QPS="1"), versions={"nccl": "2.27.5"}), []),
    ("CLD006", on(files=("/opt/cirrus",)), ["warning"]),
    ("CLD006", on(files=("/opt/cirrus", "/opt/cirrus/b.so")), []),
    ("CLD006", on(files=()), []),  # nothing of the cloud's software was captured
    ("CLD007", on(gpus=gpus(7)), ["error"]),
    ("CLD007", on(gpus=gpus(8)), []),
    ("CLD007", on(gpus=gpus(2), pci=on_bus(8)), []),  # a container that was given two of them
    ("CLD007", on(gpus=gpus(7), pci=on_bus(7)), ["error"]),
    ("CLD007", on(), []),
    ("CLD008", on(nics=nics(3)), ["warning"]),
    ("CLD008", on(nics=nics(4, down=1)), ["warning"]),
    ("CLD008", on(nics=nics(4)), []),
    ("CLD009", on(log=says("Socket", nics=("eth0",), net_channels=2)), ["error"]),
    ("CLD009", on(log=says("AWS Libfabric", provider="tcp;ofi_rxm")), ["error"]),
    ("CLD009", on(log=says("IB")), ["warning"]),
    ("CLD009", on(log=says("Cirrus Net")), []),
    ("CLD009", on(log=says("Socket", nodes=1)), []),  # nothing goes over it
    ("CLD009", on(log=says(None)), []),
    ("CLD010", on(versions={"ofi_nccl": "1.12.0", "efa_installer": "1.35.0"}), ["warning"]),
    ("CLD010", on(versions={"ofi_nccl": "1.9.2"}), ["info"]),
    ("CLD010", on(versions={"ofi_nccl": "1.12.0"}), []),  # whether the other half is there is not known
    ("CLD010", on(versions={"ofi_nccl": "1.12.1", "efa_installer": "1.35.0"}), []),
    ("CLD011", on(log=says("Cirrus Net", nic_count=2)), ["warning"]),
    ("CLD011", on(log=says("Cirrus Net", nic_count=4)), []),
    ("CLD011", on(log=says("Socket", nics=("eth0",))), []),
    ("CLD012", benched(70.0), ["error"]),
    ("CLD012", benched(82.0), ["warning"]),
    ("CLD012", benched(90.0), []),
    ("CLD012", benched(20.0, ranks=4), []),  # one GPU per host is another machine
    ("CLD012", benched(70.0, expected=THE_SAME), []),  # BWD001 judges by the figure itself
]
