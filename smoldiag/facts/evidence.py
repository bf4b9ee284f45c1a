from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One observation, and where to look to see it again."""

    text: str  # NCCL_SOCKET_IFNAME=ib0
    where: str  # os.environ | /proc/4242/environ | node3.log:118 | nvidia-smi topo -m
