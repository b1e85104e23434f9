"""The configuration of the tiny autoencoder, field by field that of diffusers' config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from cartouche.config import CartoucheError
from cartouche.nets.settings import NetConfig


@dataclass(frozen=True)
class TinyConfig(NetConfig):
    """The fields of an AutoencoderTiny config.json. Each stage after the first halves the picture.

    latent_magnitude and latent_shift say how latents are put into [0, 1] as a picture; the network does not apply them.
    """

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_channels: int = 4
    latent_magnitude: float = 3
    latent_shift: float = 0.5
    scaling_factor: float = 1.0
    shift_factor: float = 0.0

    HEADER: ClassVar[Mapping[str, str]] = {"_class_name": "AutoencoderTiny"}
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "act_fn": ("relu",),
        "upsample_fn": ("nearest",),
        "upsampling_scaling_factor": (2,),
    }
    IGNORED: ClassVar[frozenset[str]] = frozenset({"block_out_channels", "force_upcast"})

    def check(self) -> None:
        sides = (
            ("encoder", self.encoder_block_out_channels, self.num_encoder_blocks),
            ("decoder", self.decoder_block_out_channels, self.num_decoder_blocks),
        )
        for side, widths, blocks in sides:
            if len(set(widths)) != 1 or len(widths) != len(blocks):
                raise CartoucheError(
                    f"{side}_block_out_channels={widths} and num_{side}_blocks={blocks} make no tiny autoencoder; "
                    "give one width, repeated for every stage"
                )

    @property
    def shrink(self) -> int:
        """How many pixels one latent cell is wide."""
        return 2 ** (len(self.decoder_block_out_channels) - 1)
