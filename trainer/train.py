"""The training loop of one rank, top to bottom.

Run by `smoldiag train`; by hand, in a checkout: torchrun -m trainer.train '{"model": "tiny", "steps": 10}'.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from smoldiag import monitor, ranks
from smoldiag.model.training import TrainConfig, from_dict, model
from smoldiag.monitor import traces, weights
from trainer import checkpoint, data, parallel
from trainer import model as models
from trainer.faults import Faults, slowed

GC_EVERY = 50  # steps between collections of young objects, on all ranks at the same step


def main() -> None:
    if len(sys.argv) > 1:
        config = from_dict(json.loads(sys.argv[1]))
        me = ranks.join()
    else:
        me = ranks.join()
        config = from_dict(me.config)
    train(config, me)
    ranks.leave()


def train(config: TrainConfig, me: ranks.Rank, record: Callable[[str, Any], None] = ranks.record) -> None:
    """All steps of the run, from the newest checkpoint on. `record` is given what is measured."""
    ranks.stage("build the model")
    accumulation = config.accumulation(me.world_size)
    shape = model(config.model)
    with torch.device("meta"):
        network = models.Decoder(shape)
    layout = parallel.built(network, config, me.device, me.world_size)
    optimizer = torch.optim.AdamW(
        groups(network, config.weight_decay),
        lr=torch.tensor(0.0) if config.compiled and me.device.type == "cuda" else 0.0,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
    saved, first_step = None, 0
    if config.checkpoint_folder is not None:
        ranks.stage("read the checkpoint")
        folder = Path(config.checkpoint_folder)
        saved = checkpoint.Checkpoints(folder, network, optimizer, asynchronous=config.checkpoint_async)
        first_step = saved.load()
    read = data.source(config, vocab=shape.shape.vocab)
    faults = Faults(config.faults, me.rank)
    micro_batches = data.batches(read, config, first_step=first_step, rank=me.rank, ranks=me.world_size)
    micro_batches = slowed(micro_batches, faults, first_step=first_step, per_step=accumulation)
    tokens_per_step = config.micro_batch * accumulation * me.world_size * config.sequence_tokens
    describe(config, me, network, shape, record, first_step=first_step, tokens_per_step=tokens_per_step)

    # Collections at a time of their own stop one rank after the other, and all wait for each (torchtitan issue 148).
    gc.collect()
    gc.freeze()
    gc.disable()
    watch = monitor.Monitor(
        record,
        rank=me.rank,
        host=me.hosts[me.host_of_rank[me.rank]],
        device=me.device,
        entering=ranks.entering,
        left=ranks.left,
    )
    sampler = monitor.Sampler(ranks.record, rank=me.rank, gpu=me.device.index)
    sampler.start()
    updated = weights.described(optimizer)
    with watch, traced(config, me) as trace:
        for step in range(first_step, config.steps):
            if faults.ends_early(step):
                break
            ranks.stage(f"step {step}")
            with watch.step(step):
                rate = learning_rate(config, step)
                loss = torch.zeros((), device=me.device)
                for micro in range(accumulation):
                    parallel.set_gradient_sync(network, config, last=micro == accumulation - 1)
                    with watch.phase("data"):
                        batch = next(micro_batches)
                    with watch.phase("h2d"):
                        tokens, targets, documents = moved(batch, me.device)
                    with watch.phase("forward"):
                        faults.computing(step)
                        part = network(tokens, targets, documents)
                    with watch.phase("backward"):
                        # Gradients are averaged over the ranks: this makes them those of the mean over all tokens.
                        (part * (me.world_size / tokens_per_step)).backward()
                    loss += part.detach()
                with watch.phase("optimizer"):
                    totals = torch.stack((loss, parallel.squared_norm(network, layout)))
                    if not faults.skips_collective(step):
                        dist.all_reduce(totals)
                    norm = totals[1].sqrt()
                    if config.clip_norm:
                        parallel.scale_gradients(network, (config.clip_norm / (norm + 1e-6)).clamp(max=1.0))
                    set_rate(optimizer, rate)
                    optimizer.step()
                    if step == first_step:
                        record("weights", {"rank": me.rank, **updated, "state": weights.kept(optimizer)})
                    optimizer.zero_grad(set_to_none=True)
                watch.note(loss=totals[0] / tokens_per_step, grad_norm=norm, learning_rate=rate, tokens=tokens_per_step)
                last = step == config.steps - 1
                if saved and (last or (config.checkpoint_every and (step + 1) % config.checkpoint_every == 0)):
                    with watch.phase("checkpoint"):
                        saved.save(step + 1)
                if config.validate_every and (last or (step + 1) % config.validate_every == 0):
                    with watch.phase("evaluation"):
                        watch.note(validation_loss=validation_loss(network, read, config, me))
            trace(step)
            if (step + 1) % GC_EVERY == 0:
                gc.collect(1)
        if saved:
            ranks.stage("write the checkpoint")
            saved.wait()
    sampler.stop()
    if faults.ends_early(config.steps):
        time.sleep(config.steps)  # done before the others, as a loop over uneven data is: they wait in a collective


def groups(network: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices; none for norms and embeddings (OLMo 2, SmolLM3)."""
    decayed = [p for n, p in network.named_parameters() if p.ndim > 1 and "embedding" not in n]
    others = [p for n, p in network.named_parameters() if p.ndim == 1 or "embedding" in n]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Warmup, stable, decay: linear to the rate, constant, linear to 0 over the last `decay_steps`."""
    up = (step + 1) / max(config.warmup_steps, 1)
    down = (config.steps - step) / (config.decay_steps + 1)
    return config.learning_rate * min(up, 1.0, down)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def moved(batch: data.Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    if device.type == "cpu":
        return batch.tokens, batch.targets, batch.documents
    documents = None if batch.documents is None else batch.documents.to(device, non_blocking=True)
    return batch.tokens.to(device, non_blocking=True), batch.targets.to(device, non_blocking=True), documents


@torch.no_grad()
def validation_loss(network: torch.nn.Module, read: Any, config: TrainConfig, me: ranks.Rank) -> torch.Tensor:
    """Mean over all tokens of the validation batches, the same on all ranks."""
    network.eval()
    total = torch.zeros((), device=me.device)
    for number in range(config.validation_batches):
        batch = data.validation_batch(read, config, number=number, rank=me.rank, ranks=me.world_size)
        total += network(*moved(batch, me.device))
    dist.all_reduce(total)
    network.train()
    return total / (config.validation_batches * config.micro_batch * me.world_size * config.sequence_tokens)


def describe(
    config: TrainConfig,
    me: ranks.Rank,
    network: torch.nn.Module,
    shape: Any,
    record: Callable[[str, Any], None],
    *,
    first_step: int,
    tokens_per_step: int,
) -> None:
    """What the steps are measured against."""
    if me.rank == 0:
        what = {
            "config": asdict(config),
            "parameters": models.num_parameters(network),
            "flops_per_token": models.flops_per_token(shape, config.sequence_tokens),
            "tokens_per_step": tokens_per_step,
            "first_step": first_step,
            "device": torch.cuda.get_device_name(me.device) if me.device.type == "cuda" else "cpu",
        }
        record("run", what)


@contextmanager
def traced(config: TrainConfig, me: ranks.Rank) -> Iterator[Callable[[int], None]]:
    """A function to call after each step: torch.profiler traces the steps and ranks that were asked for."""
    if not config.trace_steps or me.rank not in config.trace_ranks:
        yield lambda step: None
        return
    profiler = traces.profiler(
        me.rank,
        steps=config.trace_steps,
        first=min(traces.FIRST, config.steps - config.trace_steps),
        keep=partial(traces.sent, rank=me.rank, record=ranks.record),
        record=ranks.record,
    )
    with profiler:
        yield lambda step: profiler.step()


if __name__ == "__main__":
    main()
