"""Llama: a causal language model of rotary places, grouped queries and gated feed-forward (Touvron et al. 2023).

What it has seen is kept as two plain tensors, keys and values of all layers, given in and out: nothing else is
remembered, so the net exports to a graph as it stands. Names and numbers are those of transformers' Llama.
"""

# A torch module's call, and some tensor methods, carry no types:
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cartouche.config import CartoucheError
from cartouche.nets.attention import attention
from cartouche.nets.clip_config import GENERAL
from cartouche.nets.settings import NetConfig, check_divides


@dataclass(frozen=True)
class LlamaConfig(NetConfig):
    """Field by field transformers' config.json. num_key_value_heads and head_dim: None for those of the queries."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    initializer_range: float = 0.02
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    architectures: tuple[str, ...] | None = ("LlamaForCausalLM",)

    HEADER: ClassVar[Mapping[str, str]] = {"model_type": "llama"}
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "hidden_act": ("silu",),
        "attention_dropout": (0.0,),
        "rope_scaling": (None,),
        "pretraining_tp": (1, None),
    }
    IGNORED: ClassVar[frozenset[str]] = (GENERAL - {"tie_word_embeddings"}) | {"use_cache"}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """The configuration in a config.json, whose rotary settings newer files keep as `rope_parameters`."""
        values = dict(given)
        rotary = dict(values.pop("rope_parameters", None) or {})
        kind = rotary.pop("rope_type", "default")
        if kind != "default":
            raise CartoucheError(f"rope_type={kind!r} is not built here; this network is built with 'default' only")
        return super().from_dict(values | rotary)

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that transformers reads as config.json, its older and its newer versions."""
        rotary = {"rope_type": "default", "rope_theta": self.rope_theta}
        return super().to_dict() | {"rope_parameters": rotary, "hidden_act": "silu"}

    def check(self) -> None:
        check_divides("num_attention_heads", self.num_attention_heads, (self.hidden_size,))
        check_divides("num_key_value_heads", self.key_value_heads, (self.num_attention_heads,))
        if self.width_of_head % 2:
            raise CartoucheError(f"a head_dim of {self.width_of_head} cannot be turned in pairs; choose an even one")

    @property
    def key_value_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def width_of_head(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads


class LlamaRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), scaled by channel (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class LlamaMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020, eq. 6)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaAttention(nn.Module):
    """Self-attention in which several query heads share a key and a value (Ainslie et al. 2023, section 2.2)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width, head, bias = config.hidden_size, config.width_of_head, config.attention_bias
        self.head, self.shared = head, config.num_attention_heads // config.key_value_heads
        self.q_proj = nn.Linear(width, config.num_attention_heads * head, bias=bias)
        self.k_proj = nn.Linear(width, config.key_value_heads * head, bias=bias)
        self.v_proj = nn.Linear(width, config.key_value_heads * head, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * head, width, bias=bias)

    def forward(
        self, x: Tensor, waves: tuple[Tensor, Tensor], mask: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, N, D); keys, values: (B, heads, M, d) of what came before. Returns x's successor and both, longer."""
        q, k, v = self._split(self.q_proj(x)), self._split(self.k_proj(x)), self._split(self.v_proj(x))
        keys = torch.cat([keys, turned(k, *waves).to(k.dtype)], dim=2)
        values = torch.cat([values, v], dim=2)
        mixed = attention(turned(q, *waves).to(q.dtype), self._spread(keys), self._spread(values), mask)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), keys, values

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head)).transpose(1, 2)  # (B, heads, N, d)

    def _spread(self, x: Tensor) -> Tensor:
        """Each key-value head as often as query heads share it."""
        return x if self.shared == 1 else x[:, :, None].expand(-1, -1, self.shared, -1, -1).flatten(1, 2)


class LlamaDecoderLayer(nn.Module):
    """Attention and feed-forward, each on the normalised input and added to it."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, waves: tuple[Tensor, Tensor], mask: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        mixed, keys, values = self.self_attn(self.input_layernorm(x), waves, mask, keys, values)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), keys, values


class LlamaModel(nn.Module):
    """The stack of layers over token vectors."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head, self.theta = config.width_of_head, config.rope_theta
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, embeds: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """embeds (B, N, D) after a memory of M tokens. Returns normalised states (B, N, D) and the longer memory."""
        seen, new = keys.shape[3], embeds.shape[1]
        places = torch.arange(new, device=embeds.device) + seen
        mask = torch.zeros(new, seen + new, device=embeds.device, dtype=embeds.dtype)
        mask = mask.masked_fill(torch.arange(seen + new, device=embeds.device) > places[:, None], float("-inf"))
        waves = rotation(places, self.head, self.theta, embeds.dtype)
        x, longer = embeds, []
        for i, layer in enumerate(self.layers):
            x, *pair = layer(x, waves, mask, keys[i], values[i])
            longer.append(pair)
        all_keys, all_values = (torch.stack(one) for one in zip(*longer, strict=True))
        return self.norm(x), all_keys, all_values


class LlamaForCausalLM(nn.Module):
    """The next token's logits. `step` goes on from a memory; `forward` reads a whole text at once."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = LlamaModel(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for layer in self.modules():
            if isinstance(layer, (nn.Linear, nn.Embedding)):
                nn.init.normal_(layer.weight, std=config.initializer_range)
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def embed(self, ids: Tensor) -> Tensor:
        """Tokens (B, N) as vectors (B, N, D)."""
        return self.model.embed_tokens(ids)

    def empty(self, batch: int) -> tuple[Tensor, Tensor]:
        """The memory of nothing: keys and values, each (layers, batch, key-value heads, 0, width of a head)."""
        config, weight = self.config, self.model.embed_tokens.weight
        shape = (config.num_hidden_layers, batch, config.key_value_heads, 0, config.width_of_head)
        return weight.new_zeros(shape), weight.new_zeros(shape)

    def step(self, embeds: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read N more tokens' vectors (B, N, D) after the memory of M.

        keys, values: (layers, B, key-value heads, M, width of a head), as `empty` or the last step gave them. Returns
        logits (B, N, vocabulary) of each next token, and the memory of M + N.
        """
        states, keys, values = self.model(embeds, keys, values)
        return self.logits(states), keys, values

    def logits(self, states: Tensor) -> Tensor:
        """The model's states (..., D) as logits (..., vocabulary)."""
        head = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return F.linear(states, head.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: (B, N). Returns logits (B, N, vocabulary) of the token after each."""
        return self.step(self.embed(ids), *self.empty(len(ids)))[0]


def rotation(places: Tensor, width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of place * theta^(-2 i / width) (Su et al. 2021, eq. 15), each (N, width), halves alike."""
    rates = theta ** (-torch.arange(0, width, 2, device=places.device, dtype=torch.float32) / width)
    angles = places[:, None].float() * rates
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Each pair (x_i, x_{i + d/2}) turned by its place's angle (Su et al. 2021, eq. 34). x: (B, heads, N, d)."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine
