"""CLIPSeg: a mask for whatever a text says, from CLIP's own tokens (Lüddecke & Ecker 2022).

A few layers of the image tower, narrowed to `reduce_dim`, are read by a small transformer, which the text modulates
once (FiLM, Perez et al. 2018, eq. 2); a transposed convolution makes pixels of tokens. Names and numbers are those of
transformers' CLIPSeg.
"""

# A torch module's call, and some tensor methods, carry no types:
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cartouche.config import CartoucheError
from cartouche.nets.clip import CLIPMLP, CLIPAttention, CLIPModel, CLIPVisionEmbeddings, init_tower
from cartouche.nets.clip_config import GENERAL, CLIPConfig, CLIPTextConfig, CLIPVisionConfig, TowerConfig
from cartouche.nets.settings import check_divides


@dataclass(frozen=True)
class CLIPSegTextConfig(CLIPTextConfig):
    """The text tower."""

    architectures: tuple[str, ...] | None = None

    HEADER: ClassVar[Mapping[str, str]] = {"model_type": "clipseg_text_model"}


@dataclass(frozen=True)
class CLIPSegVisionConfig(CLIPVisionConfig):
    """The image tower; pictures of another size than image_size are taken, their places interpolated."""

    architectures: tuple[str, ...] | None = None

    HEADER: ClassVar[Mapping[str, str]] = {"model_type": "clipseg_vision_model"}


@dataclass(frozen=True)
class CLIPSegConfig(CLIPConfig):
    """Both towers and the decoder.

    extract_layers: whose states the decoder reads, counted from 0. conditional_layer: before which of the decoder's
    layers the text comes in, 0 being the one that reads the deepest states.
    """

    text_config: CLIPSegTextConfig = field(default_factory=CLIPSegTextConfig)
    vision_config: CLIPSegVisionConfig = field(default_factory=CLIPSegVisionConfig)
    extract_layers: tuple[int, ...] = (3, 6, 9)
    reduce_dim: int = 64
    decoder_num_attention_heads: int = 4
    decoder_intermediate_size: int = 2048
    conditional_layer: int = 0
    use_complex_transposed_convolution: bool = False
    architectures: tuple[str, ...] | None = ("CLIPSegForImageSegmentation",)

    HEADER: ClassVar[Mapping[str, str]] = {"model_type": "clipseg"}
    FIXED: ClassVar[Mapping[str, tuple[object, ...]]] = {"decoder_attention_dropout": (0.0,)}
    IGNORED: ClassVar[frozenset[str]] = GENERAL | {"text_config_dict", "vision_config_dict", "decoder_hidden_act"}
    TOWERS: ClassVar[Mapping[str, type[TowerConfig]]] = {
        "text_config": CLIPSegTextConfig,
        "vision_config": CLIPSegVisionConfig,
    }

    def check(self) -> None:
        depth = self.vision_config.num_hidden_layers
        wrong = [layer for layer in self.extract_layers if not 0 <= layer < depth]
        if wrong or not self.extract_layers:
            raise CartoucheError(f"extract_layers={self.extract_layers} of a tower of {depth}; choose 0 to {depth - 1}")
        check_divides("decoder_num_attention_heads", self.decoder_num_attention_heads, (self.reduce_dim,))

    def decoder(self) -> TowerConfig:
        """The shape of the decoder's layers."""
        return TowerConfig(
            hidden_size=self.reduce_dim,
            intermediate_size=self.decoder_intermediate_size,
            num_hidden_layers=len(self.extract_layers),
            num_attention_heads=self.decoder_num_attention_heads,
            layer_norm_eps=self.vision_config.layer_norm_eps,
        )


class CLIPSegVisionEmbeddings(CLIPVisionEmbeddings):
    """CLIP's patches; for a picture of another size the table of places is stretched over it (bicubic)."""

    def forward(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        if height == self.size and width == self.size:
            return super().forward(pixels)
        patch = self.patch_embedding.stride[0]
        if height != width or height % patch:
            raise CartoucheError(f"picture of {height}x{width} given; wanted a square whose side {patch} divides")
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (B, P, D)
        whole = self.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        return torch.cat([whole, patches], dim=1) + self.stretched(height // patch)

    def stretched(self, side: int) -> Tensor:
        """The table of places for a grid of side x side tokens: (1 + side^2, D)."""
        table = self.position_embedding.weight
        grid = table[1:].T.unflatten(1, (isqrt(len(table) - 1),) * 2)[None]  # (1, D, h, w)
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
        return torch.cat([table[:1], grid[0].flatten(1).T])


class CLIPSegMLP(CLIPMLP):
    """The decoder's feed-forward, with ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


class CLIPSegDecoderLayer(nn.Module):
    """Attention and feed-forward, each added to its input and normalised after (Vaswani et al. 2017, section 3.1)."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.self_attn = CLIPAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPSegMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_norm1(x + self.self_attn(x, None))
        return self.layer_norm2(x + self.mlp(x))


class CLIPSegDecoder(nn.Module):
    """States of several layers and a text's vector to one logit a pixel."""

    def __init__(self, config: CLIPSegConfig) -> None:
        super().__init__()
        inner, patch = config.reduce_dim, config.vision_config.patch_size
        self.conditional_layer = config.conditional_layer
        self.film_mul = nn.Linear(config.projection_dim, inner)
        self.film_add = nn.Linear(config.projection_dim, inner)
        self.transposed_convolution: nn.Module = nn.ConvTranspose2d(inner, 1, patch, stride=patch)
        if config.use_complex_transposed_convolution:
            step = patch // 4
            self.transposed_convolution = nn.Sequential(
                nn.Conv2d(inner, inner, 3, padding=1),
                nn.ReLU(),
                nn.ConvTranspose2d(inner, inner // 2, step, stride=step),
                nn.ReLU(),
                nn.ConvTranspose2d(inner // 2, 1, step, stride=step),
            )
        depth = len(config.extract_layers)
        self.reduces = nn.ModuleList(nn.Linear(config.vision_config.hidden_size, inner) for _ in range(depth))
        self.layers = nn.ModuleList(CLIPSegDecoderLayer(config.decoder()) for _ in range(depth))

    def forward(self, states: Tensor, conditions: Tensor) -> Tensor:
        """states: (B, L, 1 + P, D), deepest first; conditions: (B, projection_dim). Returns (B, H, W) logits."""
        x = torch.zeros(())
        for i, (reduce, layer) in enumerate(zip(self.reduces, self.layers, strict=True)):
            x = reduce(states[:, i]) + (x if i else 0)
            if i == self.conditional_layer:
                x = self.film_mul(conditions)[:, None] * x + self.film_add(conditions)[:, None]
            x = layer(x)
        tokens = x[:, 1:].transpose(1, 2)  # (B, reduce_dim, P)
        grid = tokens.unflatten(2, (isqrt(tokens.shape[2]),) * 2)
        return self.transposed_convolution(grid).squeeze(1)


class CLIPSegForImageSegmentation(nn.Module):
    """A mask of what a text says. Text and picture can be encoded apart, each once, for many masks."""

    def __init__(self, config: CLIPSegConfig) -> None:
        super().__init__()
        self.config = config
        self.clip = CLIPModel(config)
        self.clip.vision_model.embeddings = CLIPSegVisionEmbeddings(config.vision_config)
        init_tower(self.clip.vision_model, config.vision_config)
        self.decoder = CLIPSegDecoder(config)

    def features(self, pixels: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) as the states the decoder reads, deepest first: (B, L, 1 + P, D)."""
        states = self.clip.vision_model.hidden_states(pixels)
        return torch.stack([states[layer + 1] for layer in reversed(self.config.extract_layers)], dim=1)

    def queries(self, ids: Tensor) -> Tensor:
        """Texts (Q, N) as vectors (Q, projection_dim), not scaled."""
        return self.clip.text_projection(self.clip.text_model(ids)[1])

    def examples(self, pixels: Tensor) -> Tensor:
        """Pictures (Q, 3, H, W) of what is meant, in place of texts: (Q, projection_dim)."""
        return self.clip.visual_projection(self.clip.vision_model(pixels)[1])

    def segment(self, features: Tensor, queries: Tensor) -> Tensor:
        """One mask for each row: features (B, L, 1 + P, D), queries (B, projection_dim). Returns (B, H, W) logits."""
        return self.decoder(features, queries)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """pixels (B, 3, H, W), one text for each: ids (B, N). Returns logits (B, H, W): above 0 is what is meant."""
        return self.segment(self.features(pixels), self.queries(ids))
