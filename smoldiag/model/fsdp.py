"""The collectives that FSDP2 or DDP of a model sends in one step: their sizes, in their order.

FSDP2 (torch/distributed/fsdp/_fully_shard): every parameter is cut along dimension 0 into equal parts, the last ones
padded, so that a group of parameters moves sum(ceil(dim0 / W) * W * rest) elements. Each decoder layer is a group, and
the rest of the model (embedding, last norm, head) another, which is not freed after the forward pass. In the backward
pass a layer is gathered one layer ahead of its use.
DDP (torch/csrc/distributed/c10d/reducer.cpp): gradients in the reverse order of the parameters fill buckets; a bucket
is closed by the tensor that reaches its limit, and the first one's limit is 1 MiB.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FIRST_BUCKET_BYTES = 2**20  # torch.distributed._DEFAULT_FIRST_BUCKET_BYTES
ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
MAX_LAYERS = 10_000

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A decoder in the style of Llama."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    tied: bool  # the head is the embedding
    head_dim: int | None = None

    def layer(self) -> list[Shape]:
        head_dim = self.head_dim or self.hidden // self.heads
        q, kv = self.heads * head_dim, self.kv_heads * head_dim
        attention = [(q, self.hidden), (kv, self.hidden), (kv, self.hidden), (self.hidden, q)]
        mlp = [(self.intermediate, self.hidden), (self.intermediate, self.hidden), (self.hidden, self.intermediate)]
        return [*attention, *mlp, (self.hidden,), (self.hidden,)]

    def rest(self) -> list[Shape]:
        head = [] if self.tied else [(self.vocab, self.hidden)]
        return [(self.vocab, self.hidden), (self.hidden,), *head]

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, self.rest())) + self.layers * sum(map(math.prod, self.layer()))


@dataclass(frozen=True, kw_only=True)
class Flat:
    """A model of which only the size is known: its parameters in equal layers, one tensor each."""

    name: str
    params: int
    layers: int

    def layer(self) -> list[Shape]:
        return [(math.ceil(self.params / self.layers),)]

    def rest(self) -> list[Shape]:
        return []

    @property
    def parameters(self) -> int:
        return self.params


def _llama(
    name: str,
    hidden: int,
    layers: int,
    heads: int,
    kv: int,
    inner: int,
    vocab: int,
    tied: bool,
    head_dim: int | None = None,
) -> Model:
    return Model(
        name=name,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv,
        intermediate=inner,
        vocab=vocab,
        tied=tied,
        head_dim=head_dim,
    )


MODELS = {  # config.json of each model on the Hugging Face hub
    m.name: m
    for m in (
        _llama("SmolLM-135M", 576, 30, 9, 3, 1536, 49152, True),
        _llama("SmolLM-360M", 960, 32, 15, 5, 2560, 49152, True),
        _llama("SmolLM-1.7B", 2048, 24, 32, 32, 8192, 49152, True),
        _llama("SmolLM2-135M", 576, 30, 9, 3, 1536, 49152, True),
        _llama("SmolLM2-360M", 960, 32, 15, 5, 2560, 49152, True),
        _llama("SmolLM2-1.7B", 2048, 24, 32, 32, 8192, 49152, True),
        _llama("SmolLM3-3B", 2048, 36, 16, 4, 11008, 128256, True),
        _llama("Llama-2-7B", 4096, 32, 32, 32, 11008, 32000, False),
        _llama("Llama-2-13B", 5120, 40, 40, 40, 13824, 32000, False),
        _llama("Llama-2-70B", 8192, 80, 64, 8, 28672, 32000, False),
        _llama("Llama-3-8B", 4096, 32, 32, 8, 14336, 128256, False),
        _llama("Llama-3-70B", 8192, 80, 64, 8, 28672, 128256, False),
        _llama("Llama-3.1-405B", 16384, 126, 128, 8, 53248, 128256, False),
        _llama("Llama-3.2-1B", 2048, 16, 32, 8, 8192, 128256, True, 64),
        _llama("Llama-3.2-3B", 3072, 28, 24, 8, 8192, 128256, True, 128),
    )
}


def find(name: str) -> Model:
    """By name, without regard to case. Raises ValueError with the known names."""
    wanted = name.lower().rpartition("/")[2]
    for known, model in MODELS.items():
        if wanted in (known.lower(), known.lower().replace("llama-3-", "llama-3.1-").replace("llama-3.1-405b", "")):
            return model
    raise ValueError(f"{name[:60]!r} is not known; known: {', '.join(MODELS)}, or a config.json")


def from_config(config: Mapping[str, Any], name: str) -> Model:
    """Of a Hugging Face config.json. Raises ValueError where it lacks a number."""

    def number(key: str, otherwise: int | None = None) -> int:
        value = config.get(key, otherwise)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10**7:
            raise ValueError(f"{key} is {value!r}, not a positive number")
        return value

    heads = number("num_attention_heads")
    return Model(
        name=name,
        hidden=number("hidden_size"),
        layers=min(number("num_hidden_layers"), MAX_LAYERS),
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        intermediate=number("intermediate_size"),
        vocab=number("vocab_size"),
        tied=bool(config.get("tie_word_embeddings", True)),
        head_dim=config["head_dim"] if isinstance(config.get("head_dim"), int) else None,
    )


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one training step sends."""

    model: Model | Flat
    ddp_bucket_mb: float | None = None  # None: FSDP2
    dtype: str = "bfloat16"  # of parameters as gathered, and of gradients as reduced; DDP reduces float32

    def sets(self, world_size: int) -> list[dict[str, Any]]:
        """In order: {purpose, collective, size_bytes, dtype, repeat}."""
        if self.ddp_bucket_mb is not None:
            name, limit = f"ddp:{self.model.name}", int(self.ddp_bucket_mb * 2**20)
            return [_set(f"{name} bucket", "all_reduce", s, "float32") for s in ddp_buckets(self.model, limit)]
        return [
            _set(f"fsdp:{self.model.name} {group}", collective, size, self.dtype)
            for collective, group, size in fsdp_step(self.model, world_size, ELEMENT_BYTES[self.dtype])
        ]


def _set(purpose: str, collective: str, size_bytes: int, dtype: str) -> dict[str, Any]:
    return {"purpose": purpose, "collective": collective, "size_bytes": size_bytes, "dtype": dtype, "repeat": 1}


def fsdp_step(model: Model | Flat, world_size: int, element_bytes: int) -> Iterator[tuple[str, str, int]]:
    """(collective, group, bytes over all ranks), as FSDP2 sends them in a step without accumulation."""
    layer = sharded_bytes(model.layer(), world_size, element_bytes)
    rest = sharded_bytes(model.rest(), world_size, element_bytes)
    if rest:
        yield "all_gather", "rest", rest
    for _ in range(model.layers):  # forward
        yield "all_gather", "layer", layer
    yield "all_gather", "layer", layer  # backward: the last layer was freed, too
    for _ in range(model.layers - 1):
        yield "all_gather", "layer", layer  # the one before it, while this one computes
        yield "reduce_scatter", "layer", layer
    yield "reduce_scatter", "layer", layer
    if rest:
        yield "reduce_scatter", "rest", rest


def sharded_bytes(shapes: Sequence[Shape], world_size: int, element_bytes: int) -> int:
    """Of one group of parameters, padded so that each rank has the same share of every parameter."""
    return sum(math.ceil(s[0] / world_size) * world_size * math.prod(s[1:]) for s in shapes) * element_bytes


def ddp_buckets(model: Model | Flat, limit_bytes: int, element_bytes: int = 4) -> list[int]:
    """Bytes of each bucket, in the order in which they are reduced."""
    rest = model.rest()
    parameters = [*rest[:1], *(s for _ in range(model.layers) for s in model.layer()), *rest[1:]]
    buckets, filled, limit = [], 0, FIRST_BUCKET_BYTES
    for shape in reversed(parameters):
        filled += math.prod(shape) * element_bytes
        if filled >= limit:
            buckets.append(filled)
            filled, limit = 0, limit_bytes
    return [*buckets, filled] if filled else buckets
