"""The collectives that FSDP2 or DDP of a model sends in one step: their sizes, in their order.

FSDP2 (torch/distributed/fsdp/_fully_shard): every parameter is cut along dimension 0 into equal parts, the last ones
padded, so that a group of parameters moves sum(ceil(dim0 / W) * W * rest) elements. Each decoder layer is a group, and
the rest of the model (embedding, last norm, head) another, which is not freed after the forward pass. In the backward
pass a layer is gathered one layer ahead of its use.
DDP (torch/csrc/distributed/c10d/reducer.cpp): gradients fill buckets in the order in which they become ready, the
reverse of that in which the forward pass uses the parameters; a bucket is closed by the tensor that reaches its limit.
The first one's limit is 1 MiB where bucket_cap_mb is left at DDP's default, 25 (torch/nn/parallel/distributed.py:
BucketCapacityConfig).
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

FIRST_BUCKET_BYTES = 2**20  # torch.distributed._DEFAULT_FIRST_BUCKET_BYTES
DEFAULT_BUCKET_MB = 25  # MiB; torch/nn/parallel/distributed.py: _DEFAULT_BUCKET_CAP_MB
ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
MAX_LAYERS = 10_000
FLAT_TENSOR = (
    2**18
)  # elements; small against a bucket, so that the buckets of a model of unknown shape have their limit

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A decoder in the style of Llama. Shapes come in the order in which the forward pass uses them."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    tied: bool  # the head is the embedding
    head_dim: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False  # of the attention's output
    mlp_bias: bool = False
    qk_norm: bool = False  # a norm for the queries and one for the keys of a head

    def layer(self) -> list[Shape]:
        head_dim = self.head_dim or self.hidden // self.heads
        q, kv = self.heads * head_dim, self.kv_heads * head_dim
        norm: Shape = (self.hidden,)
        qkv = [s for out in (q, kv, kv) for s in _linear(out, self.hidden, bias=self.qkv_bias)]
        qk_norms: list[Shape] = [(head_dim,), (head_dim,)] if self.qk_norm else []
        out = _linear(self.hidden, q, bias=self.out_bias)
        up = _linear(self.intermediate, self.hidden, bias=self.mlp_bias)
        down = _linear(self.hidden, self.intermediate, bias=self.mlp_bias)
        return [norm, *qkv, *qk_norms, *out, norm, *up, *up, *down]

    def rest(self) -> list[Shape]:
        head = [] if self.tied else [(self.vocab, self.hidden)]
        return [(self.vocab, self.hidden), (self.hidden,), *head]

    def tensors(self) -> list[Shape]:
        first, *last = self.rest()
        return [first, *self.layer() * self.layers, *last]

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, self.tensors()))


def _linear(out: int, into: int, *, bias: bool) -> list[Shape]:
    return [(out, into), (out,)] if bias else [(out, into)]


@dataclass(frozen=True, kw_only=True)
class Flat:
    """A model of which only the size is known: its parameters in equal layers."""

    name: str
    params: int
    layers: int

    def layer(self) -> list[Shape]:
        return [(math.ceil(self.params / self.layers),)]

    def rest(self) -> list[Shape]:
        return []

    def tensors(self) -> list[Shape]:
        whole, left = divmod(self.params, FLAT_TENSOR)
        tensors: list[Shape] = [(FLAT_TENSOR,)] * whole
        return [*tensors, (left,)] if left else tensors

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


SAME_SHAPE = {  # other names of these shapes, as the hub has them
    "Llama-3.1-8B": "Llama-3-8B",
    "Llama-3.1-70B": "Llama-3-70B",
    "Llama-3.3-70B": "Llama-3-70B",
}
_DECORATION = re.compile(r"^meta-|-(?:hf|base|instruct|chat)(?=-|$)")

TIED_UNLESS_SAID = {"smollm3"}  # the default of tie_word_embeddings in the configuration class of transformers
QKV_BIAS_ALWAYS = {"qwen2"}
QK_NORM_ALWAYS = {"qwen3"}
MODEL_TYPES = {"llama", "mistral", "smollm3"} | QKV_BIAS_ALWAYS | QK_NORM_ALWAYS


def find(name: str) -> Model:
    """By name, without regard to case, owner and suffix (-Instruct, -hf). Raises ValueError with the known names."""
    wanted = _DECORATION.sub("", name.lower().rpartition("/")[2])
    for known, shape in {**{n: n for n in MODELS}, **SAME_SHAPE}.items():
        if wanted == known.lower():
            return replace(MODELS[shape], name=known)
    raise ValueError(f"{name[:60]!r} is not known; known: {', '.join(MODELS)}, or a config.json")


def from_config(config: Mapping[str, Any], name: str) -> Model:
    """Of a Hugging Face config.json. Raises ValueError where it lacks a number, or is of another kind of model."""
    kind = config.get("model_type", "llama")
    if kind not in MODEL_TYPES:
        raise ValueError(f"model_type {str(kind)[:40]!r} has other layers; known: {', '.join(sorted(MODEL_TYPES))}")

    def number(key: str, otherwise: int | None = None, *, most: int = 10**7) -> int:
        value = config.get(key)
        value = otherwise if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise ValueError(f"{key} is {str(value)[:40]!r}, not a number from 1 to {most}")
        return value

    def said(key: str) -> bool:
        return config.get(key) is True

    heads, hidden = number("num_attention_heads"), number("hidden_size")
    return Model(
        name=name,
        hidden=hidden,
        layers=number("num_hidden_layers", most=MAX_LAYERS),
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        intermediate=number("intermediate_size"),
        vocab=number("vocab_size"),
        tied=config.get("tie_word_embeddings", kind in TIED_UNLESS_SAID) is True,
        head_dim=number("head_dim", max(hidden // heads, 1)),
        qkv_bias=kind in QKV_BIAS_ALWAYS or said("attention_bias"),
        out_bias=kind not in QKV_BIAS_ALWAYS and said("attention_bias"),
        mlp_bias=said("mlp_bias"),
        qk_norm=kind in QK_NORM_ALWAYS,
    )


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one training step sends."""

    model: Model | Flat
    ddp_bucket_mb: float | None = None  # None: FSDP2
    dtype: str = "bfloat16"  # of the parameters as FSDP2 gathers them; DDP reduces float32
    reduce_dtype: str | None = None  # MixedPrecisionPolicy.reduce_dtype; None: that of the parameters

    def sets(self, world_size: int) -> list[dict[str, Any]]:
        """In order: {purpose, collective, size_bytes, dtype, repeat}."""
        if self.ddp_bucket_mb is not None:
            name, buckets = f"ddp:{self.model.name}", ddp_buckets(self.model.tensors(), bucket_mb=self.ddp_bucket_mb)
            return [_set(f"{name} bucket", "all_reduce", size, "float32") for size in buckets]
        dtypes = {"all_gather": self.dtype, "reduce_scatter": self.reduce_dtype or self.dtype}
        return [
            _set(f"fsdp:{self.model.name} {group}", c, elements * ELEMENT_BYTES[dtypes[c]], dtypes[c])
            for c, group, elements in fsdp_step(self.model, world_size)
        ]


def _set(purpose: str, collective: str, size_bytes: int, dtype: str) -> dict[str, Any]:
    return {"purpose": purpose, "collective": collective, "size_bytes": size_bytes, "dtype": dtype, "repeat": 1}


def fsdp_step(model: Model | Flat, world_size: int) -> Iterator[tuple[str, str, int]]:
    """(collective, group, elements over all ranks), as FSDP2 sends them in a step without accumulation."""
    layer, rest = sharded_elements(model.layer(), world_size), sharded_elements(model.rest(), world_size)
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


def sharded_elements(shapes: Sequence[Shape], world_size: int) -> int:
    """Of one group of parameters, padded so that each rank has the same share of every parameter."""
    return sum(math.ceil(s[0] / world_size) * world_size * math.prod(s[1:]) for s in shapes)


def ddp_buckets(tensors: Sequence[Shape], *, bucket_mb: float = DEFAULT_BUCKET_MB, element_bytes: int = 4) -> list[int]:
    """Bytes of each bucket, in the order in which they are reduced."""
    bucket_bytes = int(bucket_mb * 2**20)
    buckets, filled = [], 0
    limit = FIRST_BUCKET_BYTES if bucket_mb == DEFAULT_BUCKET_MB else bucket_bytes
    for shape in reversed(tensors):
        filled += math.prod(shape) * element_bytes
        if filled >= limit:
            buckets.append(filled)
            filled, limit = 0, bucket_bytes
    return [*buckets, filled] if filled else buckets
