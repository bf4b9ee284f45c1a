"""The model: a decoder with grouped-query attention, rotary embedding (not in every layer), RMSNorm and SwiGLU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smoldiag.model.training import ModelConfig

INIT_STD = 0.02  # initializer_range of SmolLM2's and Llama's config.json


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Causal attention of x (batch, tokens, hidden) with fewer key and value heads than query heads."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        shape, dim = config.shape, config.head_dim
        self.heads, self.kv_heads, self.dim = shape.heads, shape.kv_heads, dim
        self.rotates = not (config.no_rope_every and (layer + 1) % config.no_rope_every == 0)
        self.q = nn.Linear(shape.hidden, shape.heads * dim, bias=False)
        self.k = nn.Linear(shape.hidden, shape.kv_heads * dim, bias=False)
        self.v = nn.Linear(shape.hidden, shape.kv_heads * dim, bias=False)
        self.out = nn.Linear(shape.heads * dim, shape.hidden, bias=False)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None) -> Tensor:
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, self.heads, self.dim).transpose(1, 2)
        k = self.k(x).view(batch, tokens, self.kv_heads, self.dim).transpose(1, 2)
        v = self.v(x).view(batch, tokens, self.kv_heads, self.dim).transpose(1, 2)
        if self.rotates:
            q, k = rotated(q, rope), rotated(k, rope)
        grouped = self.heads != self.kv_heads
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
        mixed: Tensor = self.out(y.transpose(1, 2).reshape(batch, tokens, self.heads * self.dim))
        return mixed


class Block(nn.Module):
    """One decoder layer; the unit that FSDP shards and activation checkpointing recomputes."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        shape = config.shape
        self.attention_norm = RMSNorm(shape.hidden, config.norm_eps)
        self.attention = Attention(config, layer)
        self.mlp_norm = RMSNorm(shape.hidden, config.norm_eps)
        self.gate = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down = nn.Linear(shape.intermediate, shape.hidden, bias=False)
        self.recompute = False  # activations are dropped after the forward pass

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None) -> Tensor:
        if self.recompute and self.training:
            again: Tensor = checkpoint(self.layer, x, rope, mask, use_reentrant=False)
            return again
        return self.layer(x, rope, mask)

    def layer(self, x: Tensor, rope: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rope, mask)
        h = self.mlp_norm(x)
        y: Tensor = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return y


class Decoder(nn.Module):
    """Tokens (batch, tokens) and targets -> the sum of the cross entropies over all tokens, in float32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        shape = config.shape
        self.embedding = nn.Embedding(shape.vocab, shape.hidden)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, config.norm_eps)
        self.head = None if shape.tied else nn.Linear(shape.hidden, shape.vocab, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        """`documents` (batch, tokens): the number of each token's document, where attention stays within it."""
        x = self.embedding(tokens)
        rope = angles(tokens.shape[1], self.config, x.device)
        mask = None if documents is None else same_document(documents)
        for block in self.blocks:
            x = block(x, rope, mask)
        x = self.norm(x)
        logits = self.head(x) if self.head is not None else F.linear(x, self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")


def seed_of(name: str, seed: int) -> int:
    """FNV-1a of the name: `hash` differs from process to process."""
    value = 0xCBF29CE484222325 ^ seed
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value >> 1


def angles(tokens: int, config: ModelConfig, device: torch.device) -> Tensor:
    """The rotation of each position: complex numbers as (tokens, head_dim / 2, 2) of cosine and sine."""
    half = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32)
    frequencies = config.rope_theta ** (-half / config.head_dim)
    turned = torch.outer(torch.arange(tokens, device=device, dtype=torch.float32), frequencies)
    return torch.stack((turned.cos(), turned.sin()), dim=-1)


def rotated(x: Tensor, rope: Tensor) -> Tensor:
    """Rotary embedding in the half-split layout of Hugging Face's Llama. x: (batch, heads, tokens, dim)."""
    cos, sin = rope[..., 0], rope[..., 1]
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


def same_document(documents: Tensor) -> Tensor:
    """True where a token may look: its own document, not ahead. (batch, 1, tokens, tokens)."""
    tokens = documents.shape[1]
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=documents.device).tril()
    return (documents[:, :, None] == documents[:, None, :])[:, None] & causal


def flops_per_token(config: ModelConfig, sequence_tokens: int) -> float:
    """Floating-point operations of forward and backward per token: 6 N + 6 L H T.

    N counts each weight of a matrix multiplication (a tied embedding once, for the head); H = heads x head_dim. The
    attention term counts only what causal attention computes; nanotron's and PaLM's convention (appendix B, 12 L H T)
    counts the masked half, too. Recomputed activations are not counted.
    """
    shape = config.shape
    untied = 0 if shape.tied else shape.vocab * shape.hidden  # a lookup multiplies nothing
    matrices = shape.parameters - untied
    return 6.0 * matrices + 6.0 * shape.layers * shape.heads * config.head_dim * sequence_tokens


def num_parameters(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())
