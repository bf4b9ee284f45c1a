"""Data whose every element is known beforehand, so that a swapped, dropped or doubled block shows.

Element j of a message is TABLE[j % PERIOD], small pseudo-random integers. In a reduction each rank adds its own
multiple, and all partial sums stay exact in the dtype: integers up to LIMIT.
"""

import math

import torch
from torch import Tensor

PERIOD = 65_521  # prime, so that no two blocks of a power-of-two size look alike
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int32": torch.int32,
    "int64": torch.int64,
}
LIMIT = {  # integers up to here are exact: 2**(mantissa bits + 1), or the largest of an integer type
    "float32": 2**24,
    "float16": 2**11,
    "bfloat16": 2**8,
    "float64": 2**40,
    "int8": 2**7 - 1,
    "uint8": 2**8 - 1,
    "int32": 2**31 - 1,
    "int64": 2**40,
}
VALUES = 4  # at least so many different values are left for the table


def weights(world_size: int, dtype: str) -> list[int]:
    """By how much each rank's contribution is multiplied; neighbours differ where the dtype has room for it.

    Where it has none (bfloat16 beyond 64 ranks), only some ranks, evenly spread, contribute at all.
    """
    most = LIMIT[dtype] // VALUES
    period = min(world_size, 128)
    while period > 1 and sum(1 + r % period for r in range(world_size)) > most:
        period //= 2
    if period > 1 or world_size <= most:
        return [1 + r % period for r in range(world_size)]
    stride = math.ceil(world_size / most)
    return [int(r % stride == 0) for r in range(world_size)]


def table(dtype: str, weight_sum: int, device: torch.device) -> Tensor:
    """PERIOD integers from 1 up; `weight_sum` times the largest of them is still exact."""
    most = max(min(LIMIT[dtype] // weight_sum, 2**20), 1)
    index = torch.arange(PERIOD, dtype=torch.int64)
    mixed = (index * 2_654_435_761 + 12_345) % 4_294_967_291  # Knuth's multiplicative hash, modulo a prime below 2**32
    return ((mixed >> 7) % most + 1).to(DTYPES[dtype]).to(device)


def write(out: Tensor, values: Tensor, start: int) -> None:
    """Elements start, start + 1, ... of the endless message into `out`; nothing of its size is allocated."""
    rolled, (rows, rest) = _cut(out, values, start)
    rows.copy_(rolled)
    rest.copy_(rolled[: rest.numel()])


def differing(got: Tensor, values: Tensor, start: int) -> int:
    """How many elements of `got` are not elements start, start + 1, ... of the endless message."""
    rolled, (rows, rest) = _cut(got, values, start)
    return int(torch.count_nonzero(rows != rolled)) + int(torch.count_nonzero(rest != rolled[: rest.numel()]))


def _cut(message: Tensor, values: Tensor, start: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The table from `start` on; the message as whole rows of it, and what is left."""
    whole = message.numel() // PERIOD * PERIOD
    return torch.roll(values, -(start % PERIOD)), (message[:whole].view(-1, PERIOD), message[whole:])
