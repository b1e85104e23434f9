"""Convolutional blocks that the U-Net and the autoencoder share, and the embedding of a time step."""

# A torch module's call, and some tensor methods, carry no types:
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """Group normalisation (Wu & He 2018); on a CPU computed in float32, whatever the input, and returned in its dtype.

    A CPU's own bfloat16 kernel takes three times as long on channels-last maps; a GPU's needs no such help.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype == self.weight.dtype == torch.float32:
            return super().forward(x)
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


class ResnetBlock2D(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + time))): the residual block of DDPM (Ho et al. 2020, appendix B).

    time_channels None builds the block without a time input, as the autoencoder wants it.
    """

    def __init__(self, inputs: int, outputs: int, groups: int, eps: float, time_channels: int | None = None) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, inputs, eps=eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_channels, outputs) if time_channels else None
        self.norm2 = GroupNorm(groups, outputs, eps=eps)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x: (B, inputs, H, W); time: (B, time_channels) or None. Returns (B, outputs, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None and time is not None:
            h = h + self.time_emb_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class Downsample2D(nn.Module):
    """Halve height and width by a strided convolution.

    `corner` pads only right and below, as the autoencoder of latent diffusion does; else both sides are padded by one.
    """

    def __init__(self, channels: int, corner: bool = False) -> None:
        super().__init__()
        self.corner = corner
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if corner else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.corner else x)


class Upsample2D(nn.Module):
    """Repeat pixels to twice the size, or to `like`'s size where that was odd, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        if like is None:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv(F.interpolate(x, size=like.shape[-2:], mode="nearest"))


def sinusoids(t: Tensor, channels: int, cos_first: bool, shift: float) -> Tensor:
    """Sines and cosines of t at channels/2 frequencies from 1 down to about 1/10000 (Vaswani et al. 2017, 3.5).

    t: (B,) any number type; returns (B, channels) float32. `shift` is subtracted from the number of frequencies.
    An odd number of channels ends in a 0.
    """
    half = channels // 2
    frequency = torch.exp(-math.log(10000) / (half - shift) * torch.arange(half, dtype=torch.float32, device=t.device))
    angle = t.float()[:, None] * frequency  # (B, channels / 2)
    waves = (angle.cos(), angle.sin()) if cos_first else (angle.sin(), angle.cos())
    together = torch.cat(waves, dim=-1)
    return F.pad(together, (0, 1)) if channels % 2 else together


class TimestepEmbedding(nn.Module):
    """Sinusoids, or any vector, to the U-Net's time vector by two linear layers. (B, inputs) -> (B, outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, outputs)
        self.linear_2 = nn.Linear(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))
