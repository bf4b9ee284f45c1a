"""Two small training loops on CPU with gloo, each with one fault that real programs have.

The faults are written as they occur in programs: a branch on the rank, a loader with fewer batches, a process that
is killed. Their lines are looked up by the tests through the comments that end in `fault: NAME`.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

STEPS = 12
FAULT_STEP = 8
FAULTS = ("skip", "size", "order", "branch", "uneven", "killed", "stopped", "slow")
COMPUTE_S = 0.005
LONG_S = 600.0  # longer than any recording


def batches(*, fault: str, faulty: bool, steps: int, reached: Callable[[], None]) -> Iterator[int]:
    """The faulty rank's part of the data is shorter, or comes late. It tells when it has reached its fault."""
    for step in range(steps):
        if faulty and step == FAULT_STEP:
            reached()
        if faulty and step == FAULT_STEP:
            if fault == "uneven":
                return
            if fault == "slow":
                time.sleep(LONG_S)
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(COMPUTE_S)
        print(f"step {step} loss {5 / (step + 1):.3f}", flush=True)
        yield step


def flat(*, fault: str, faulty: bool, reached: Callable[[], None], steps: int = STEPS) -> None:
    """Gradients, then a metric; now and then a broadcast."""
    gradients, metric, table = torch.ones(4096), torch.ones(2), torch.ones(64)
    for step in batches(fault=fault, faulty=faulty, steps=steps, reached=reached):
        now = faulty and step == FAULT_STEP
        if fault == "size" and now:
            gradients = torch.ones(4095)
        if fault == "order" and now:
            dist.all_reduce(metric)  # fault: order
            dist.all_reduce(gradients)
            continue
        dist.all_reduce(gradients)  # place: gradients
        if fault == "branch" and now:
            dist.broadcast(table, src=0)  # fault: branch
        if fault == "skip" and now:
            continue
        dist.all_reduce(metric)  # place: metric
    dist.barrier()  # place: end


def mesh(*, fault: str, faulty: bool, reached: Callable[[], None], steps: int = STEPS) -> None:
    """HSDP: sharded in pairs, replicated across them, with a metric over all ranks at the end of a step."""
    device_mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=device_mesh)
    fully_shard(model, mesh=device_mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    metric, extra = torch.ones(2), torch.ones(3)
    for step in batches(fault=fault, faulty=faulty, steps=steps, reached=reached):
        now = faulty and step == FAULT_STEP
        if fault == "order" and now:
            dist.all_reduce(metric)  # fault: mesh order
        model(torch.randn(4, 64)).sum().backward()  # place: mesh backward
        if fault == "branch" and now:
            dist.all_reduce(extra)  # fault: mesh branch
        optimizer.step()
        optimizer.zero_grad()
        if fault == "size" and now:
            metric = torch.ones(3)
        if fault == "skip" and now:
            continue
        if not (fault == "order" and now):
            dist.all_reduce(metric)  # place: mesh metric
    dist.barrier()  # place: mesh end


LOOPS = {"flat": flat, "mesh": mesh}
