"""What a run of the reference trainer is: model, data, optimizer, parallelism, faults. One JSON value tells it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from smoldiag.model import fsdp

TOKENS_MAGIC = "smoldiag-tokens/1"  # a tokens file begins with a line of it, DTYPE, VOCAB and END
TOKENS_HEADER_BYTES = 64
BYTE_VOCAB, BYTE_END = 257, 256  # bytes for tokens: any text, without a download; END stands between two documents
DTYPES = ("float32", "bfloat16")
CHECKPOINTING = ("none", "selective", "full")
MAX_FAULT_S = 60.0
FAULTS = (
    "slow-loader",
    "periodic-stall",
    "slow-rank",
    "gc-storm",
    "uneven-data",
    "skipped-collective",
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder in the style of Llama and SmolLM. The shapes are those that `nccl-bench --fsdp` knows."""

    shape: fsdp.Model
    rope_theta: float = 10_000.0
    no_rope_every: int = 0  # each so many layers one without rotary embedding (SmolLM3: 4); 0: none
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.shape.head_dim or self.shape.hidden // self.shape.heads


TINY = fsdp.Model(
    name="tiny", hidden=64, layers=4, heads=4, kv_heads=2, intermediate=176, vocab=512, tied=True, head_dim=16
)
# rope_theta, no_rope_layer_interval, rms_norm_eps: config.json of each model on the Hugging Face hub
MODELS = {
    "tiny": ModelConfig(shape=TINY),
    "SmolLM2-135M": ModelConfig(shape=fsdp.find("SmolLM2-135M"), rope_theta=100_000.0),
    "SmolLM2-360M": ModelConfig(shape=fsdp.find("SmolLM2-360M"), rope_theta=100_000.0),
    "SmolLM2-1.7B": ModelConfig(shape=fsdp.find("SmolLM2-1.7B"), rope_theta=130_000.0),
    "SmolLM3-3B": ModelConfig(shape=fsdp.find("SmolLM3-3B"), rope_theta=5_000_000.0, no_rope_every=4, norm_eps=1e-6),
    "Llama-3.2-1B": ModelConfig(shape=fsdp.find("Llama-3.2-1B"), rope_theta=500_000.0),
    "Llama-3-8B": ModelConfig(shape=fsdp.find("Llama-3-8B"), rope_theta=500_000.0),
}
ALIASES = {"135m": "SmolLM2-135M", "360m": "SmolLM2-360M", "1.7b": "SmolLM2-1.7B", "3b": "SmolLM3-3B"}
ALIASES |= {"llama-1b": "Llama-3.2-1B", "llama-8b": "Llama-3-8B", "llama-3.1-8b": "Llama-3-8B"}


def model(name: str) -> ModelConfig:
    """By name, without regard to case. Raises ValueError with the known names."""
    wanted = ALIASES.get(name.lower(), name).lower()
    for known, config in MODELS.items():
        if wanted == known.lower():
            return config
    raise ValueError(f"{name[:60]!r} is not known; known: {', '.join([*MODELS, *ALIASES])}")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault on request. `ranks` None: on all of them."""

    kind: str  # one of FAULTS
    ranks: tuple[int, ...] | None = None
    seconds: float = 0.05  # how long it holds the rank up each time
    every: int = 1  # steps from one time to the next
    at_step: int = 0  # the first step that it befalls


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run. Sizes count tokens or sequences over all ranks where they say `global`."""

    model: str = "tiny"
    steps: int = 30
    sequence_tokens: int = 128
    micro_batch: int = 4  # sequences per rank and forward pass
    global_batch: int | None = None  # sequences per optimizer step; None: one micro batch on every rank
    seed: int = 0
    # data
    tokens_file: str | None = None  # as `smoldiag train --prepare` writes it; None: synthetic tokens
    documents: bool = False  # a token attends within its own document only
    workers: int = 0  # threads that prepare batches ahead
    validate_every: int = 0  # steps; 0: never
    validation_batches: int = 2
    # optimizer
    learning_rate: float = 3e-3
    warmup_steps: int = 5
    decay_steps: int = 10  # at the end; in between the rate is constant (warmup-stable-decay)
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float = 1.0  # 0: no clipping
    # parallelism and memory
    dtype: str = "float32"  # of parameters and activations in forward and backward; the optimizer holds float32
    fsdp: bool = True  # False: each rank alone (one rank only), the yardstick of the tests
    replicate: int = 1  # HSDP: so many replicas, each sharded over world size / replicate ranks
    checkpointing: str = "none"  # activations: none | selective (every second layer) | full
    compiled: bool = False
    prefetch: int = 1  # layers whose all-gather is issued ahead in forward and backward
    reshard_after_forward: bool = True
    # checkpoints
    checkpoint_folder: str | None = None  # shared by all hosts; None: no checkpoints
    checkpoint_every: int = 0  # steps; 0: only at the end
    checkpoint_async: bool = True
    # what is recorded
    trace_steps: int = 0  # torch.profiler traces of so many steps
    trace_ranks: tuple[int, ...] = (0,)
    faults: tuple[Fault, ...] = field(default=())

    def accumulation(self, ranks: int) -> int:
        """Forward passes per optimizer step. Raises ValueError where the batch does not fit the ranks."""
        whole = self.micro_batch * ranks
        if self.global_batch is None:
            return 1
        if self.global_batch % whole:
            raise ValueError(
                f"a global batch of {self.global_batch} sequences is no multiple of {ranks} ranks x micro batch "
                f"{self.micro_batch}"
            )
        return self.global_batch // whole


def check(config: TrainConfig) -> None:
    """Raises ValueError for what does not exist."""
    model(config.model)
    for value, known, option in (
        (config.dtype, DTYPES, "--dtype"),
        (config.checkpointing, CHECKPOINTING, "--recompute"),
    ):
        if value not in known:
            raise ValueError(f"{option} {value[:40]!r} is not known; known: {', '.join(known)}")


def from_dict(given: Mapping[str, Any]) -> TrainConfig:
    """Back from JSON. Raises TypeError for a name that it does not have."""
    known = {f.name for f in fields(TrainConfig)}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in known}
    if unknown := set(given) - known:
        raise TypeError(f"no such setting: {', '.join(sorted(unknown))}")
    values["faults"] = tuple(_fault(f) for f in given.get("faults", ()))
    return TrainConfig(**values)


FAULT_SETTINGS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "ranks": ("ranks", lambda text: tuple(map(int, text.split("+")))),
    "seconds": ("seconds", float),
    "every": ("every", int),
    "at": ("at_step", int),
}


def _fault(given: Mapping[str, Any]) -> Fault:
    ranks = given.get("ranks")
    return Fault(**{**given, "ranks": None if ranks is None else tuple(ranks)})


def fault(text: str) -> Fault:
    """KIND[:key=value,...], e.g. slow-rank:ranks=1+3,seconds=0.05,every=10,at=5. Raises ValueError with the reason."""
    kind, _, rest = text.partition(":")
    if kind not in FAULTS:
        raise ValueError(f"{kind[:40]!r} is no fault; known: {', '.join(FAULTS)}")
    given: dict[str, Any] = {}
    for pair in filter(None, rest.split(",")):
        key, _, value = pair.partition("=")
        try:
            given[FAULT_SETTINGS[key][0]] = FAULT_SETTINGS[key][1](value)
        except KeyError:
            known = ", ".join(FAULT_SETTINGS)
            raise ValueError(f"{key[:40]!r} is no setting of a fault; known: {known}") from None
        except ValueError:
            raise ValueError(f"{pair[:40]!r} is no number, or no numbers joined by +") from None
    made = Fault(kind=kind, **given)
    if made.every < 1 or not 0 <= made.seconds <= MAX_FAULT_S:
        raise ValueError(f"{text[:60]!r}: every is 1 or more, seconds from 0 to {MAX_FAULT_S:g}")
    return made
