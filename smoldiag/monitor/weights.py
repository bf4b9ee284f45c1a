"""What an optimizer updates: kinds of numbers, and the first values of each shard. Once, around the first step."""

import sys
from collections import Counter
from typing import Any

import torch

MAX_SHARDS = 64  # parameters that are looked at
MAX_VALUES = 65_536  # of each, so that nothing large is allocated


def described(optimizer: Any) -> dict[str, Any]:
    """Before the first update: numbers of its parameters by dtype, the learning rate, the shards as they start."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    counts: Counter[str] = Counter()
    for p in parameters:
        counts[_dtype(p)] += _local(p).numel()
    return {
        "optimizer": type(optimizer).__name__,
        "learning_rate": max((float(group.get("lr", 0.0)) for group in optimizer.param_groups), default=0.0),
        "parameters": dict(counts),
        **_shards(parameters),
    }


def kept(optimizer: Any) -> dict[str, int]:
    """After the first update: how many numbers it keeps beside the parameters, by dtype."""
    counts: Counter[str] = Counter()
    for state in optimizer.state.values():
        for value in state.values() if isinstance(state, dict) else ():
            if torch.is_tensor(value) and _local(value).numel() > 1:
                counts[_dtype(value)] += _local(value).numel()
    return dict(counts)


@torch.no_grad()
def _shards(parameters: list[torch.Tensor]) -> dict[str, Any]:
    """Of the first values of each sharded matrix: sum, sum of squares, sum weighted by place, how many; and which of
    the shards this rank has. Stacks of matrices are left out: experts may start as copies of one."""
    module: Any = sys.modules.get("torch.distributed.tensor")  # a program without shards need not import it
    names, found, place = [], [], None
    for number, p in enumerate(parameters):
        if module is None or not isinstance(p, module.DTensor) or p.ndim != 2:
            continue
        dims = [i for i, x in enumerate(p.placements) if x.is_shard() and p.device_mesh.size(i) > 1]
        coordinate, local = p.device_mesh.get_coordinate(), _local(p)
        if not dims or coordinate is None or not local.is_contiguous() or not local.numel():
            continue
        values = local.view(-1)[:MAX_VALUES].double()
        names.append(str(number))
        count = float(values.numel())
        places = torch.arange(values.numel(), dtype=values.dtype, device=values.device)
        found.append(torch.stack((values.sum(), values.square().sum(), values @ places, values.new_tensor(count))))
        place = place or [coordinate[i] for i in dims]
        if len(names) == MAX_SHARDS:
            break
    values_of = torch.stack(found).tolist() if found else []
    return {"shards": dict(zip(names, values_of, strict=True)), "place": place}


def _local(tensor: Any) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[no-any-return]


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
