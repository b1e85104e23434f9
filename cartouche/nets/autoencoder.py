"""The autoencoder of latent diffusion (Rombach et al. 2022): pictures to a small latent map and back."""

# A torch module's call, and some tensor methods, carry no types:
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from cartouche.config import CartoucheError
from cartouche.nets.attention import Attention
from cartouche.nets.blocks import Downsample2D, GroupNorm, ResnetBlock2D, Upsample2D
from cartouche.nets.settings import NetConfig, check_divides

EPS = 1e-6  # of every normalisation in this network


@dataclass(frozen=True)
class AutoencoderConfig(NetConfig):
    """The fields of an AutoencoderKL config.json. Each level after the first halves the picture.

    The latents that diffusion sees are (z - shift_factor) * scaling_factor; the network itself does not apply them.
    """

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    sample_size: int | tuple[int, ...] | None = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    force_upcast: bool = True

    HEADER: ClassVar[Mapping[str, str]] = {"_class_name": "AutoencoderKL"}
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "act_fn": ("silu", "swish"),
        "latents_mean": (None,),
        "latents_std": (None,),
    }
    IGNORED: ClassVar[frozenset[str]] = frozenset({"down_block_types", "up_block_types"})

    def check(self) -> None:
        if not self.block_out_channels:
            raise CartoucheError("block_out_channels=() leaves no level; give one number of channels per level")
        check_divides("norm_num_groups", self.norm_num_groups, self.block_out_channels)

    @property
    def shrink(self) -> int:
        """How many pixels one latent cell is wide."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> AutoencoderConfig:
        """The configuration in a config.json; CartoucheError where its blocks are not those of this network."""
        levels = len(given.get("block_out_channels", cls.block_out_channels))
        for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            kinds = list(given.get(name, [kind] * levels))
            if kinds != [kind] * levels:
                raise CartoucheError(f"AutoencoderConfig got {name}={kinds}; wanted {kind} for each of {levels} levels")
        return super().from_dict(given)

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that diffusers reads as config.json."""
        levels = len(self.block_out_channels)
        kinds = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
        return super().to_dict() | kinds | {"act_fn": "silu"}


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
