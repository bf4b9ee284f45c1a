"""Batches, a function of the seed and the step alone: any number of ranks sees the same sequences, any resume the same.

A tokens file is little-endian uint16 or uint32 tokens behind a header of one line: `smoldiag-tokens/1 DTYPE VOCAB END`,
padded with blanks to 64 bytes. END is the token between two documents.
"""

import mmap
import random
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from smoldiag.model.training import TOKENS_HEADER_BYTES, TOKENS_MAGIC, TrainConfig

HELD_OUT_SHARE, MOST_HELD_OUT = 20, 4096  # one sequence in so many, at the end, is for validation only
AHEAD = 2  # batches per worker that are prepared before they are asked for
SYNTHETIC_STRIDES = 16  # the ways in which a synthetic sequence goes on: enough to be learnt, little to remember


@dataclass(frozen=True)
class Batch:
    """(sequences, tokens) each; `documents` is None where attention may cross documents."""

    tokens: Tensor
    targets: Tensor
    documents: Tensor | None


class TokenFile:
    """Memory-mapped tokens. Raises ValueError for what is no tokens file, or too short for one sequence."""

    def __init__(self, path: Path, *, sequence_tokens: int) -> None:
        with path.open("rb") as file:
            words = file.read(TOKENS_HEADER_BYTES).decode("ascii", "replace").split()
            if len(words) != 4 or words[0] != TOKENS_MAGIC or words[1] not in ("uint16", "uint32"):
                raise ValueError(f"{path} is no tokens file: smoldiag train --prepare FILE.txt makes one")
            self.mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.dtype, self.vocab, self.end = words[1], int(words[2]), int(words[3])
        self.sequence_tokens = sequence_tokens
        self.width = 2 if self.dtype == "uint16" else 4
        self.num_tokens = (len(self.mapped) - TOKENS_HEADER_BYTES) // self.width
        whole = (self.num_tokens - 1) // sequence_tokens
        self.held_out = max(1, min(whole // HELD_OUT_SHARE, MOST_HELD_OUT))
        self.sequences = whole - self.held_out
        if self.sequences < 1:
            raise ValueError(f"{path} has {self.num_tokens} tokens, less than two sequences of {sequence_tokens + 1}")

    def sequence(self, index: int) -> Tensor:
        """sequence_tokens + 1 tokens as int64; the last is only a target."""
        first = TOKENS_HEADER_BYTES + index * self.sequence_tokens * self.width
        raw = bytearray(self.mapped[first : first + (self.sequence_tokens + 1) * self.width])
        kind = torch.uint16 if self.dtype == "uint16" else torch.uint32
        return torch.frombuffer(raw, dtype=kind).to(torch.int64)


class Synthetic:
    """Sequences that can be learnt: each counts up by a stride of its own, modulo the vocabulary."""

    end = -1

    def __init__(self, *, vocab: int, sequence_tokens: int, seed: int) -> None:
        self.vocab, self.sequence_tokens, self.seed = vocab, sequence_tokens, seed
        self.sequences, self.held_out = 1 << 20, MOST_HELD_OUT

    def sequence(self, index: int) -> Tensor:
        numbers = random.Random(f"{self.seed}/{index}")
        first, stride = numbers.randrange(self.vocab), 1 + numbers.randrange(SYNTHETIC_STRIDES)
        return (first + stride * torch.arange(self.sequence_tokens + 1)) % self.vocab


def source(config: TrainConfig, *, vocab: int) -> TokenFile | Synthetic:
    """What the run reads. Raises ValueError where the file's tokens do not fit the model."""
    if config.tokens_file is None:
        return Synthetic(vocab=vocab, sequence_tokens=config.sequence_tokens, seed=config.seed)
    found = TokenFile(Path(config.tokens_file), sequence_tokens=config.sequence_tokens)
    if found.vocab > vocab:
        raise ValueError(f"{config.tokens_file} has {found.vocab} different tokens, the model only {vocab}")
    return found


@cache
def order(sequences: int, epoch: int, seed: int) -> tuple[int, int]:
    """(step, offset) of a walk through all sequences once: i -> (i * step + offset) mod sequences."""
    numbers = random.Random(f"{seed}/{epoch}")
    step = next(s for s in iter(lambda: numbers.randrange(1, sequences + 1), None) if _coprime(s, sequences))
    return step, numbers.randrange(sequences)


def _coprime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1


def index_of(position: int, sequences: int, seed: int) -> int:
    """Which sequence is the `position`-th of the run; every epoch has an order of its own."""
    epoch, place = divmod(position, sequences)
    step, offset = order(sequences, epoch, seed)
    return (place * step + offset) % sequences


def batch(read: TokenFile | Synthetic, positions: Iterable[int], config: TrainConfig) -> Batch:
    return stacked(read, (index_of(p, read.sequences, config.seed) for p in positions), config)


def stacked(read: TokenFile | Synthetic, indices: Iterable[int], config: TrainConfig) -> Batch:
    rows = torch.stack([read.sequence(i) for i in indices])
    tokens = rows[:, :-1].contiguous()
    documents = (tokens == read.end).cumsum(dim=1) if config.documents else None
    return Batch(tokens, rows[:, 1:].contiguous(), documents)


def positions(config: TrainConfig, *, step: int, micro: int, rank: int, ranks: int) -> range:
    """Of one micro batch. The sequences of a step are dealt out in order: micro batches first, ranks within them."""
    per_micro = config.micro_batch * ranks
    first = (step * config.accumulation(ranks) + micro) * per_micro + rank * config.micro_batch
    return range(first, first + config.micro_batch)


def batches(
    read: TokenFile | Synthetic, config: TrainConfig, *, first_step: int, rank: int, ranks: int
) -> Iterator[Batch]:
    """All micro batches of the run from `first_step` on, prepared ahead by `config.workers` threads."""
    wanted = (
        positions(config, step=step, micro=micro, rank=rank, ranks=ranks)
        for step in range(first_step, config.steps)
        for micro in range(config.accumulation(ranks))
    )
    if not config.workers:
        yield from (batch(read, p, config) for p in wanted)
        return
    with ThreadPoolExecutor(config.workers, thread_name_prefix="loader") as pool:
        waiting: list[Future[Batch]] = []
        for p in wanted:
            waiting.append(pool.submit(batch, read, p, config))
            if len(waiting) > config.workers * AHEAD:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def validation_batch(read: TokenFile | Synthetic, config: TrainConfig, *, number: int, rank: int, ranks: int) -> Batch:
    """Of the sequences that are held out, in their order."""
    first = (number * ranks + rank) * config.micro_batch
    places = (read.sequences + (first + i) % read.held_out for i in range(config.micro_batch))
    return stacked(read, places, config)
