"""The collectives of a training step, against published sizes and against what torch's FSDP2 and DDP really send."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smoldiag.model import fsdp

ROOT = Path(__file__).parent.parent
RANKS = 2  # some dimensions of TINY are odd: padding shows
TINY = fsdp.Model(
    name="tiny", hidden=40, layers=4, heads=4, kv_heads=2, intermediate=71, vocab=101, tied=False, head_dim=10
)
BUCKET_MB = 0.02


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # "Model size" in the safetensors metadata of each model on the Hugging Face hub
        ("SmolLM-135M", 134_515_008),
        ("HuggingFaceTB/SmolLM2-360M", 361_821_120),
        ("SmolLM2-1.7B-Instruct", 1_711_376_384),
        ("HuggingFaceTB/SmolLM3-3B", 3_075_098_624),
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("Llama-2-70B-chat-hf", 68_976_648_192),
        ("meta-llama/Meta-Llama-3-8B", 8_030_261_248),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("Llama-3.3-70B-Instruct", 70_553_706_496),
        ("Llama-3.1-405B", 405_853_388_800),
        ("Llama-3.2-1B", 1_235_814_400),
        ("Llama-3.2-3B", 3_212_749_824),
    ],
)
def test_shapes_add_up_to_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert fsdp.find(name).parameters == parameters


@pytest.mark.parametrize("name", ["", "/", "gpt2", "Llama-3.1-405", "smollm3", "meta-llama/"])
def test_unknown_model_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"is not known; known: SmolLM-135M, .*SmolLM3-3B"):
        fsdp.find(name)


CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}


def test_config_of_the_hub_gives_the_same_as_the_name() -> None:
    assert fsdp.from_config(CONFIG, "Llama-3.2-1B") == fsdp.find("Llama-3.2-1B")


@pytest.mark.parametrize(
    ("config", "parameters"),
    [  # Qwen/Qwen2-0.5B and Qwen/Qwen3-0.6B: biases of q, k, v; norms of q and k
        (
            {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14}
            | {"num_hidden_layers": 24, "num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": 151936},
            494_032_768,
        ),
        (
            {"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16}
            | {"num_hidden_layers": 28, "num_key_value_heads": 8, "tie_word_embeddings": True, "vocab_size": 151936}
            | {"head_dim": 128, "attention_bias": False},
            596_049_920,
        ),
    ],
)
def test_biases_and_norms_of_other_llama_like_models_are_counted(config: dict[str, Any], parameters: int) -> None:
    assert fsdp.from_config(config, "x").parameters == parameters


def test_head_is_not_tied_unless_the_config_says_so() -> None:
    untied = {k: v for k, v in CONFIG.items() if k != "tie_word_embeddings"}
    assert not fsdp.from_config(untied, "x").tied
    assert fsdp.from_config(untied | {"model_type": "smollm3"}, "x").tied


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": None}, "hidden_size is 'None'"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is '1000000', not a number from 1 to 10000"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"intermediate_size": True}, "intermediate_size is 'True'"),
        ({"head_dim": -1}, "head_dim is '-1'"),
        ({"model_type": "mixtral"}, "model_type 'mixtral' has other layers"),
    ],
)
def test_config_of_another_kind_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fsdp.from_config(CONFIG | change, "x")


def test_step_of_fsdp_in_its_order() -> None:
    step = fsdp.Step(model=fsdp.find("SmolLM3-3B"), reduce_dtype="float32").sets(16)
    sent = [(s["collective"], s["purpose"].rpartition(" ")[2], s["size_bytes"]) for s in step]
    layer, rest = 78_123_008, 262_670_336  # parameters of a decoder layer; embedding and last norm
    assert sent[:2] == [("all_gather", "rest", 2 * rest), ("all_gather", "layer", 2 * layer)]
    assert sent[-2:] == [("reduce_scatter", "layer", 4 * layer), ("reduce_scatter", "rest", 4 * rest)]
    assert len(sent) == 2 * 36 + 1 + 36 + 1
    assert sum(size for c, _, size in sent if c == "all_gather") == 2 * (2 * 36 * layer + rest)


def test_model_of_which_only_the_size_is_known() -> None:
    flat = fsdp.Flat(name="3e9 parameters", params=3 * 10**9, layers=36)
    assert {s["size_bytes"] for s in fsdp.Step(model=flat).sets(8)} == {2 * 83_333_336}  # 83,333,334 in 8 equal parts
    buckets = fsdp.ddp_buckets(flat.tensors())
    assert sum(buckets) == 4 * flat.params
    assert set(buckets[1:-1]) == {25 * 2**20}


def test_only_the_default_bucket_size_begins_with_a_small_bucket() -> None:
    tensors = [(2**16,)] * 500  # 256 KiB each
    assert fsdp.ddp_buckets(tensors)[:2] == [2**20, 25 * 2**20]
    assert fsdp.ddp_buckets(tensors, bucket_mb=50)[:2] == [50 * 2**20, 50 * 2**20]


@pytest.fixture(scope="module")
def sent() -> dict[str, list[list[Any]]]:
    """What torch sends for TINY."""
    pytest.importorskip("torch")
    env = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    code = "from tests.test_model_fsdp import train; train()"
    command = [sys.executable, "-c", code]
    first = subprocess.Popen(
        command, env=env | {"RANK": "0"}, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert first.stdout
    port = first.stdout.readline().strip()
    second = subprocess.Popen(command, env=env | {"RANK": "1", "STORE_PORT": port}, cwd=ROOT)
    out, err = first.communicate(timeout=120)
    assert (first.returncode, second.wait(timeout=60)) == (0, 0), err
    said: dict[str, list[list[Any]]] = json.loads(out)
    return said


def test_fsdp2_sends_what_the_model_of_it_says(sent: dict[str, list[list[Any]]]) -> None:
    ours = fsdp.Step(model=TINY, reduce_dtype="float32").sets(RANKS)
    assert sent["fsdp"] == [[s["collective"], s["size_bytes"]] for s in ours]


def test_ddp_sends_what_the_model_of_it_says(sent: dict[str, list[list[Any]]]) -> None:
    ours = fsdp.Step(model=TINY, ddp_bucket_mb=BUCKET_MB).sets(RANKS)
    assert len(ours) > 5
    assert sent["ddp"] == [s["size_bytes"] for s in ours]


def train() -> None:
    """One rank: a step with FSDP2 and one with DDP of a model with the shapes of TINY."""
    import torch
    import torch.distributed as dist
    from torch import Tensor, nn
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            h, q, kv, i = TINY.hidden, TINY.heads * 10, TINY.kv_heads * 10, TINY.intermediate
            self.norm1, self.norm2 = nn.RMSNorm(h), nn.RMSNorm(h)
            self.q, self.k, self.v = (nn.Linear(h, out, bias=False) for out in (q, kv, kv))
            self.o = nn.Linear(q, h, bias=False)
            self.gate, self.up = (nn.Linear(h, i, bias=False) for _ in "ab")
            self.down = nn.Linear(i, h, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm1(x)
            q, k, v = self.q(y), self.k(y), self.v(y)
            x = x + self.o(q * k.repeat(1, 2) + v.repeat(1, 2))
            y = self.norm2(x)
            result: Tensor = x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))
            return result

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(TINY.vocab, TINY.hidden)
            self.layers = nn.ModuleList(Layer() for _ in range(TINY.layers))
            self.norm = nn.RMSNorm(TINY.hidden)
            self.head = nn.Linear(TINY.hidden, TINY.vocab, bias=False)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embedding(tokens)
            for layer in self.layers:
                x = layer(x)
            result: Tensor = self.head(self.norm(x)).float().sum()
            return result

    c10d: Any = dist
    rank = int(os.environ["RANK"])
    store = c10d.TCPStore("127.0.0.1", int(os.environ.get("STORE_PORT", "0")), None, rank == 0, wait_for_workers=False)
    if rank == 0:
        print(store.port, flush=True)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    fsdp_sent: list[list[Any]] = []

    def recorded(collective: str, name: str, which: str) -> None:
        inner = getattr(c10d, name)

        def record(*args: Any, **kwargs: Any) -> Any:
            whole = kwargs.get(which, args[0 if which == "output" else 1] if args else None)
            whole = whole if whole is not None else kwargs[f"{which}_tensor"]
            fsdp_sent.append([collective, whole.nbytes])
            return inner(*args, **kwargs)

        setattr(c10d, name, record)

    newer = hasattr(c10d, "all_gather_single")
    recorded("all_gather", "all_gather_single" if newer else "all_gather_into_tensor", "output")
    recorded("reduce_scatter", "reduce_scatter_single" if newer else "reduce_scatter_tensor", "input")
    tokens = torch.arange(8) % TINY.vocab
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model: Any = Decoder()
    for layer in model.layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    model(tokens).backward()
    ddp = nn.parallel.DistributedDataParallel(Decoder(), bucket_cap_mb=BUCKET_MB)
    ddp_sent: list[int] = []

    def reduce(_, bucket):  # type: ignore[no-untyped-def]  # DDP checks annotations
        ddp_sent.append(bucket.buffer().nbytes)
        done: Any = dist.all_reduce(bucket.buffer(), async_op=True)
        return done.get_future().then(lambda future: future.value()[0])

    ddp.register_comm_hook(None, reduce)
    for _ in range(2):  # buckets are built anew after the first step, in the order of the gradients
        ddp_sent.clear()
        ddp(tokens).backward()
    if rank == 0:
        print(json.dumps({"fsdp": fsdp_sent, "ddp": ddp_sent}), flush=True)
    dist.barrier()
    os._exit(0)
