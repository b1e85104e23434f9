"""The autoencoder of latent diffusion (Rombach et al. 2022): pictures to a small latent map and back."""

# A torch module's call, and some tensor methods, carry no types:
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cartouche.nets.attention import Attention
from cartouche.nets.autoencoder_config import AutoencoderConfig
from cartouche.nets.blocks import Downsample2D, GroupNorm, ResnetBlock2D, Upsample2D

__all__ = ["AutoencoderConfig", "AutoencoderKL"]

EPS = 1e-6  # of every normalisation in this network


class AutoencoderKL(nn.Module):
    """Encoder to a Gaussian over latents, decoder from latents. H and W are best multiples of `config.shrink`."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        latent = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1) if config.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if config.use_post_quant_conv else None

    def encode(self, x: Tensor) -> Tensor:
        """Mean and log-variance of the latents. x: (B, 3, H, W) in [-1, 1]; returns (B, 2 C, h, w), the mean first."""
        moments = self.encoder(x)
        return moments if self.quant_conv is None else self.quant_conv(moments)

    def decode(self, z: Tensor) -> Tensor:
        """The picture of latents that are not scaled. z: (B, C, h, w); returns (B, 3, H, W), about in [-1, 1]."""
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))

    def forward(self, x: Tensor) -> Tensor:
        """Encode x and decode the mean. (B, 3, H, W) -> (B, 3, H, W)."""
        mean, _ = self.encode(x).chunk(2, dim=1)
        return self.decode(mean)


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, 2 latent, h, w)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownEncoderBlock2D(config, widths[max(i - 1, 0)], width, shrink=i < len(widths) - 1)
            for i, width in enumerate(widths)
        )
        self.mid_block = MidBlock(config)
        self.conv_norm_out = GroupNorm(config.norm_num_groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """(B, latent, h, w) -> (B, 3, H, W), the encoder backwards with one more residual block per level."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.block_out_channels[::-1]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(config)
        self.up_blocks = nn.ModuleList(
            UpDecoderBlock2D(config, widths[max(i - 1, 0)], width, grow=i < len(widths) - 1)
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = GroupNorm(config.norm_num_groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class DownEncoderBlock2D(nn.Module):
    """Residual blocks at one size, then half the size."""

    def __init__(self, config: AutoencoderConfig, inputs: int, outputs: int, shrink: bool) -> None:
        super().__init__()
        self.resnets = _resnets(config, inputs, outputs, config.layers_per_block)
        self.downsamplers = nn.ModuleList([Downsample2D(outputs, corner=True)] if shrink else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpDecoderBlock2D(nn.Module):
    """Residual blocks at one size, then twice the size."""

    def __init__(self, config: AutoencoderConfig, inputs: int, outputs: int, grow: bool) -> None:
        super().__init__()
        self.resnets = _resnets(config, inputs, outputs, config.layers_per_block + 1)
        self.upsamplers = nn.ModuleList([Upsample2D(outputs)] if grow else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class MidBlock(nn.Module):
    """Residual block, attention over all positions where the configuration has it, residual block."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        width = config.block_out_channels[-1]
        self.resnets = _resnets(config, width, width, 2)
        self.attentions = nn.ModuleList([AttentionBlock(config, width)] if config.mid_block_add_attention else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.resnets[0], *self.attentions, self.resnets[1]):
            x = layer(x)
        return x


class AttentionBlock(Attention):
    """One head over all positions of a feature map, added to the map. (B, C, H, W) -> the same."""

    def __init__(self, config: AutoencoderConfig, channels: int) -> None:
        super().__init__(channels, channels, heads=1, bias=True)
        self.group_norm = GroupNorm(config.norm_num_groups, channels, eps=EPS)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        rows = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, H W, C)
        mixed = super().forward(rows, context)
        return x + mixed.transpose(1, 2).unflatten(2, x.shape[-2:])


def _resnets(config: AutoencoderConfig, inputs: int, outputs: int, count: int) -> nn.ModuleList:
    groups = config.norm_num_groups
    return nn.ModuleList(ResnetBlock2D(outputs if i else inputs, outputs, groups, EPS) for i in range(count))
