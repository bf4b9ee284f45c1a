"""What NCCL said of itself in its log: which network, with what help."""

from dataclasses import dataclass, field

from smoldiag.facts.evidence import Evidence


@dataclass(frozen=True, kw_only=True)
class Transport:
    """The picture of one communicator's transports; None = the log does not say."""

    network: str | None = None  # IB | Socket | AWS Libfabric | gloo over eth0 ...
    plugin: str | None = None
    nics: tuple[str, ...] | None = None  # devices that the network uses
    gpudirect: bool | None = None  # between nodes; None where there is no inter-node network in the log
    nvls: bool | None = None
    channels: int | None = None
    nccl_version: str | None = None
    cuda_version: str | None = None
    nodes: int | None = None
    ranks: int | None = None
    env: tuple[tuple[str, str], ...] = ()  # variables that NCCL says it took
    paths: tuple[tuple[str, int], ...] = ()  # how many channel lines per kind: ("P2P/CUMEM", 24), ("NET/IB/GDRDMA", 16)
    warnings: tuple[Evidence, ...] = ()
    evidence: tuple[Evidence, ...] = field(default=())  # the lines that the above rests on
    algorithms: tuple[
        str, ...
    ] = ()  # that were used, as far as the log shows it: Ring, Tree, NVLS, NVLSTree, PAT, CollNet
    networks: tuple[
        tuple[str, int], ...
    ] = ()  # how many communicator inits named which network; more than one is a fault
    plugins_loaded: tuple[str, ...] = ()  # external network plugins that were loaded, used in the end or not
    provider: str | None = None  # libfabric's, below aws-ofi-nccl: efa | tcp;ofi_rxm ...
    nics_by_host: tuple[
        tuple[str, tuple[str, ...]], ...
    ] = ()  # where the log covers several hosts, `nics` is the shortest
    nic_count: int | None = None  # where the plugin only counts them
    nic_mbps: tuple[tuple[str, int], ...] = ()  # link rates as NCCL read them
    link_layer: str | None = None  # IB | RoCE | mixed
    net_channels: int = 0  # channel lines over the network
    gdr_channels: int = 0  # of these, with /GDRDMA
    net_devices: tuple[int, ...] = ()  # device numbers of these lines; the ranks in the log only
    nvls_channels: int | None = None
    mnnvl: bool | None = None  # NVLink between nodes
    driver_version: str | None = None  # the CUDA version that the driver supports
    comms: int = 0  # communicators in the log; all but paths, channels and warnings of the largest are left out
