"""The model on this rank: sharded, initialised, its activations recomputed and its layers compiled as asked."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from smoldiag.model.training import TrainConfig
from trainer.model import INIT_STD, Decoder, seed_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Layout:
    """Over how many ranks a parameter is cut, which part is this rank's, and how often each part is there."""

    shards: int = 1
    shard: int = 0
    replicas: int = 1


def mesh(config: TrainConfig, device: torch.device, ranks: int) -> DeviceMesh:
    """One dimension for FSDP, (replicate, shard) for HSDP. Raises ValueError where the ranks do not divide."""
    if ranks % config.replicate:
        raise ValueError(f"{ranks} ranks can't hold {config.replicate} replicas of equal size")
    if config.replicate == 1:
        return init_device_mesh(device.type, (ranks,), mesh_dim_names=("shard",))
    shape = (config.replicate, ranks // config.replicate)
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))


def built(model: Decoder, config: TrainConfig, device: torch.device, ranks: int) -> Layout:
    """Recompute, compile, shard and initialise `model`, which was made on the meta device; in place."""
    blocks = list(model.blocks)
    for number, block in enumerate(blocks):
        made: Any = block
        made.recompute = config.checkpointing == "full" or (config.checkpointing == "selective" and number % 2 == 0)
        if config.compiled:
            made.layer = torch.compile(made.layer)
    layout = Layout()
    if config.fsdp:
        over = mesh(config, device, ranks)
        layout = Layout(over["shard"].size(), over["shard"].get_local_rank(), config.replicate)
        _shard(model, blocks, over, config)
    elif ranks > 1:
        raise ValueError("without FSDP there is only one rank")
    model.to_empty(device=device)
    initialise(model, config.seed, layout)
    return layout


def _shard(model: Decoder, blocks: list[nn.Module], over: DeviceMesh, config: TrainConfig) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    precision = MixedPrecisionPolicy(param_dtype=DTYPES[config.dtype], reduce_dtype=torch.float32)
    for block in blocks:
        fully_shard(block, mesh=over, mp_policy=precision, reshard_after_forward=config.reshard_after_forward)
    fully_shard(model, mesh=over, mp_policy=precision, reshard_after_forward=False)
    sharded: list[Any] = blocks
    for i, block in enumerate(sharded):
        block.set_modules_to_forward_prefetch(sharded[i + 1 : i + 1 + config.prefetch])
        block.set_modules_to_backward_prefetch(sharded[max(i - config.prefetch, 0) : i][::-1])


def initialise(model: nn.Module, seed: int, layout: Layout) -> None:
    """Every parameter from its own name and the seed, so that any number of ranks starts with the same model."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mine = local(parameter)
            if parameter.ndim == 1:
                mine.fill_(1.0)
                continue
            numbers = torch.Generator().manual_seed(seed_of(name, seed))
            whole = torch.randn(parameter.shape, generator=numbers) * INIT_STD
            rows = math.ceil(whole.shape[0] / layout.shards)  # as FSDP2 cuts: equal parts, the last ones shorter
            mine.copy_(whole[rows * layout.shard : rows * layout.shard + mine.shape[0]])


def local(tensor: Any) -> torch.Tensor:
    """This rank's part of a parameter or gradient."""
    found: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found


def squared_norm(model: nn.Module, layout: Layout) -> torch.Tensor:
    """This rank's share of the squared norm of all gradients: summed over the ranks it is the whole."""
    parts = [local(p.grad).float().pow(2).sum() for p in model.parameters() if p.grad is not None]
    return torch.stack(parts).sum() / layout.replicas


def scale_gradients(model: nn.Module, factor: torch.Tensor) -> None:
    grads = [local(p.grad) for p in model.parameters() if p.grad is not None]
    torch._foreach_mul_(grads, factor)


def set_gradient_sync(model: Any, config: TrainConfig, *, last: bool) -> None:
    """Reduce gradients only with the last micro batch of a step."""
    if config.fsdp:
        model.set_requires_gradient_sync(last)
        model.set_is_last_backward(last)
