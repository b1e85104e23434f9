"""A tiny autoencoder (TAESD, madebyollin): Stable Diffusion's latents to a rough picture in a hundredth of the time.

It was distilled from the large autoencoder, so its latents are those the U-Net knows, with no factor between.
"""

# A torch module's call, and some tensor methods, carry no types:
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cartouche.nets.tiny_config import TinyConfig

__all__ = ["AutoencoderTiny", "TinyConfig"]

RANGE = 3.0  # latents beyond this many are bent back


class AutoencoderTiny(nn.Module):
    """Encoder to latents, decoder from latents; H and W are multiples of `config.shrink`."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = EncoderTiny(config)
        self.decoder = DecoderTiny(config)

    def encode(self, x: Tensor) -> Tensor:
        """x: (B, 3, H, W) in [-1, 1]. Returns latents (B, C, h, w), with no spread about them."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """z: (B, C, h, w). Returns (B, 3, H, W), about in [-1, 1]."""
        return self.decoder(z)

    def forward(self, x: Tensor) -> Tensor:
        """Encode and decode. (B, 3, H, W) -> (B, 3, H, W)."""
        return self.decode(self.encode(x))


class EncoderTiny(nn.Module):
    """(B, 3, H, W) -> (B, C, h, w)."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        width = config.encoder_block_out_channels[0]
        layers: list[nn.Module] = []
        for stage, blocks in enumerate(config.num_encoder_blocks):
            shrinking = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
            layers.append(shrinking if stage else nn.Conv2d(config.in_channels, width, 3, padding=1))
            layers += [TinyBlock(width) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, config.latent_channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x + 1) / 2)


class DecoderTiny(nn.Module):
    """(B, C, h, w) -> (B, 3, H, W)."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        width, last = config.decoder_block_out_channels[0], len(config.num_decoder_blocks) - 1
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, width, 3, padding=1), nn.ReLU()]
        for stage, blocks in enumerate(config.num_decoder_blocks):
            layers += [TinyBlock(width) for _ in range(blocks)]
            if stage < last:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, config.out_channels, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(torch.tanh(z / RANGE) * RANGE) * 2 - 1


class TinyBlock(nn.Module):
    """relu(x + conv(relu(conv(relu(conv(x)))))). (B, C, H, W) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)
