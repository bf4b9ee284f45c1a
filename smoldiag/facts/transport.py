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
    algorithms: tuple[str, ...] = ()  # as the log names them: Ring, Tree, NVLS
