"""Attention: the one function every network here uses, and the transformer that stands inside the U-Net."""

# A torch module's call, and some tensor methods, carry no types:
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cartouche.device import processor_flags
from cartouche.nets.blocks import GroupNorm

ROWS = 256  # queries of one head taken at a time on a CPU, so that their weights stay in its cache
FEW = 128  # keys, as those of a prompt: the fused form is as fast for them, but for its backward pass


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D) + mask) v (Vaswani et al. 2017, eq. 1).

    q: (B, heads, N, D); k, v: (B, heads, M, D); mask: added to the (N, M) products, or None. Returns (B, heads, N, D).
    """
    mask = None if mask is None else mask.to(q.dtype)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and _fused_is_slow(k.shape[-2]):
        return _two_products(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _fused_is_slow(keys: int) -> bool:
    """Whether torch's fused form loses in bfloat16 on this CPU: its backward pass does; forwards, where there are many
    keys and no matrix units to do them on (docs/journal.md has the times)."""
    return torch.is_grad_enabled() or (keys >= FEW and "amx_bf16" not in processor_flags())


def _two_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The same by plain products: in bfloat16 on a CPU the fused form is half as fast, and slower still backwards."""
    q = q * q.shape[-1] ** -0.5
    if mask is not None:
        return (q @ k.transpose(-1, -2) + mask).softmax(-1) @ v
    if q.shape[-2] <= ROWS:
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v
    heads = zip(q.flatten(0, 1), k.flatten(0, 1).transpose(-1, -2), v.flatten(0, 1), strict=True)
    mixed = [torch.cat([(rows @ keys).softmax(-1) @ values for rows in one.split(ROWS)]) for one, keys, values in heads]
    return torch.stack(mixed).unflatten(0, q.shape[:2])


class Attention(nn.Module):
    """Queries from x, keys and values from `context` (or x itself), split over heads, mixed and projected back."""

    def __init__(self, channels: int, context_channels: int, heads: int, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(context_channels, channels, bias=bias)
        self.to_v = nn.Linear(context_channels, channels, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, N, channels); context: (B, M, context_channels) or None for x. Returns (B, N, channels)."""
        context = x if context is None else context
        q, k, v = self._split(self.to_q(x)), self._split(self.to_k(context)), self._split(self.to_v(context))
        mixed = attention(q, k, v).transpose(1, 2).flatten(2)  # (B, N, channels)
        return self.to_out[0](mixed)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, D)


class AttentionPooling(nn.Module):
    """A row of vectors summed up by attention from their mean. (B, N, D) -> (B, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(1, width) * width**-0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True) + self.positional_embedding.to(x.dtype)
        x = torch.cat([mean, x], dim=1)  # (B, 1 + N, D)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q_proj(mean), self.k_proj(x), self.v_proj(x))
        )
        return attention(q, k, v).flatten(1)


class TextTimeEmbedding(nn.Module):
    """The words as a whole, to be added to the U-Net's time vector: a short way from what is asked for to every block.

    Saharia et al. 2022 (Imagen, appendix F.1), in diffusers' layout. (B, N, D) -> (B, outputs).
    """

    def __init__(self, width: int, outputs: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.pool = AttentionPooling(width, heads)
        self.proj = nn.Linear(width, outputs)
        self.norm2 = nn.LayerNorm(outputs)

    def forward(self, words: Tensor) -> Tensor:
        return self.norm2(self.proj(self.pool(self.norm1(words))))


class GEGLU(nn.Module):
    """One half of a linear layer, gated by the GELU of the other half (Shazeer 2020, eq. 6)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs * 2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """channels -> 4 channels -> channels. The layers are numbered 0 and 2, the names that stored weights carry."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(channels, channels * 4), nn.Identity(), nn.Linear(channels * 4, channels)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention to the words, feed-forward; each on the normalised input and added to it."""

    def __init__(self, channels: int, context_channels: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, context_channels, heads)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """x: (B, N, channels) picture positions; words: (B, M, context_channels). Returns (B, N, channels)."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), words)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nn.Module):
    """Transformer blocks over the positions of a feature map, with a residual around all of them (Rombach et al. 2022).

    `linear` enters and leaves by linear layers instead of 1x1 convolutions: the same mathematics, other weight shapes.
    """

    def __init__(self, channels: int, context_channels: int, heads: int, depth: int, groups: int, linear: bool) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in: nn.Module = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, context_channels, heads) for _ in range(depth)
        )
        self.proj_out: nn.Module = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.linear = linear

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """x: (B, channels, H, W); words: (B, M, context_channels). Returns (B, channels, H, W)."""
        height, width = x.shape[-2:]
        h = self.norm(x)
        h = self.proj_in(_rows(h)) if self.linear else _rows(self.proj_in(h))  # (B, H W, channels)
        for block in self.transformer_blocks:
            h = block(h, words)
        h = _map(self.proj_out(h), height, width) if self.linear else self.proj_out(_map(h, height, width))
        return x + h


def _rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H W, C)


def _map(x: Tensor, height: int, width: int) -> Tensor:
    return x.unflatten(1, (height, width)).permute(0, 3, 1, 2)  # (B, C, H, W)
