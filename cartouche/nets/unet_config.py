"""The configuration of the U-Net, field by field that of diffusers' config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from cartouche.config import CartoucheError
from cartouche.nets.settings import NetConfig, check_divides, per_level

DOWN_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D")
UP_BLOCKS = ("CrossAttnUpBlock2D", "UpBlock2D")

NOT_BUILT: Mapping[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "attention_type": ("default",),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dropout": (0.0,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}


@dataclass(frozen=True)
class UNetConfig(NetConfig):
    """The fields of a UNet2DConditionModel config.json; a tuple has one entry per level, finest first.

    attention_head_dim is, in spite of its name, the number of heads: stored configurations mean it so.
    upcast_attention is kept for whoever reads the file next; attention here is as exact either way.
    """

    sample_size: int | tuple[int, ...] | None = None
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    attention_head_dim: int | tuple[int, ...] = 8
    transformer_layers_per_block: int | tuple[int, ...] = 1
    use_linear_projection: bool = False
    upcast_attention: bool = False
    time_embedding_dim: int | None = None
    addition_embed_type: str | None = None
    addition_embed_type_num_heads: int = 64
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None

    HEADER: ClassVar[Mapping[str, str]] = {"_class_name": "UNet2DConditionModel"}
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = NOT_BUILT

    def check(self) -> None:
        if isinstance(self.sample_size, tuple) and len(self.sample_size) != 2:
            raise CartoucheError(f"sample_size={self.sample_size} given; wanted one number, or height and width")
        self._check_blocks("down_block_types", self.down_block_types, DOWN_BLOCKS)
        self._check_blocks("up_block_types", self.up_block_types, UP_BLOCKS)
        check_divides("norm_num_groups", self.norm_num_groups, self.block_out_channels)
        for heads, width in zip(self.heads, self.block_out_channels, strict=True):
            check_divides("attention_head_dim", heads, (width,))
        per_level("layers_per_block", self.layers_per_block, self.levels)
        per_level("transformer_layers_per_block", self.transformer_layers_per_block, self.levels)
        self._check_addition()

    def _check_blocks(self, name: str, kinds: tuple[str, ...], known: tuple[str, ...]) -> None:
        if len(kinds) != self.levels or not kinds:
            raise CartoucheError(f"{name} has {len(kinds)} blocks for {self.levels} levels; give one block per level")
        for kind in kinds:
            if kind not in known:
                raise CartoucheError(f"{name} names {kind!r}, which is not built here; choose from {', '.join(known)}")

    def _check_addition(self) -> None:
        kind = self.addition_embed_type
        if kind not in (None, "text", "text_time"):
            raise CartoucheError(f"addition_embed_type={kind!r} is not built here; use 'text' or 'text_time'")
        if kind == "text":
            check_divides(
                "addition_embed_type_num_heads", self.addition_embed_type_num_heads, (self.cross_attention_dim,)
            )
        if kind == "text_time" and not (self.addition_time_embed_dim and self.projection_class_embeddings_input_dim):
            raise CartoucheError(
                "addition_embed_type='text_time' also wants addition_time_embed_dim and "
                "projection_class_embeddings_input_dim; give both"
            )

    @property
    def levels(self) -> int:
        """The number of resolutions; each after the first halves height and width."""
        return len(self.block_out_channels)

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level, finest first."""
        return per_level("attention_head_dim", self.attention_head_dim, self.levels)

    @property
    def depths(self) -> tuple[int, ...]:
        """Transformer blocks in each transformer of each level, finest first."""
        return per_level("transformer_layers_per_block", self.transformer_layers_per_block, self.levels)

    @property
    def layers(self) -> tuple[int, ...]:
        """Residual blocks of each level on the way down, finest first; the way up has one more each."""
        return per_level("layers_per_block", self.layers_per_block, self.levels)

    @property
    def time_channels(self) -> int:
        """Width of the time vector."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]
