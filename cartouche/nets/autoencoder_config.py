"""The configuration of the autoencoder, field by field that of diffusers' config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from cartouche.config import CartoucheError, shown
from cartouche.nets.settings import NetConfig, check_divides


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
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """The configuration in a config.json; CartoucheError where its blocks are not those of this network."""
        config = super().from_dict(given)
        levels = len(config.block_out_channels)
        for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            kinds = given.get(name, [kind] * levels)
            if kinds not in ([kind] * levels, (kind,) * levels):
                wanted = f"wanted {kind} for each of {levels} levels"
                raise CartoucheError(f"AutoencoderConfig got {name}={shown(kinds)}; {wanted}")
        return config

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that diffusers reads as config.json."""
        levels = len(self.block_out_channels)
        kinds = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
        return super().to_dict() | kinds | {"act_fn": "silu"}
