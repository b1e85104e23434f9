"""The referee: a small convolutional net that finds and names the objects of a scene, its style and its background.

It judges drawings, so it shares nothing with the CLIP that conditions them: another architecture (objects as points,
Zhou et al. 2019, "Objects as Points", heads as in section 3), other training, exact labels. Layout and state-dict
names are our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from cartouche.nets.settings import NetConfig

STRIDE = 8  # pixels per cell of the output grid


@dataclass(frozen=True)
class RefereeConfig(NetConfig):
    """concepts: one class per entry; styles, colours: the names the global heads choose from.

    width: channels on the output grid; depth: blocks at each stage.
    """

    concepts: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    width: int = 128
    depth: int = 3

    HEADER: ClassVar[Mapping[str, str]] = {"_class_name": "Referee"}


class Sight(NamedTuple):
    """What the net sees. h = w = side / 8.

    features (B, W, h, w): what `name` reads; centre (B, h, w): logit that an object's centre lies in the cell;
    box (B, 4, h, w): centre offset in the cell and log size, in cells; style (B, S); split (B, 3): plain,
    left|right, above|below; first, second (B, C): logits of the background colours (second means something only
    where split is not plain).
    """

    features: Tensor
    centre: Tensor
    box: Tensor
    style: Tensor
    split: Tensor
    first: Tensor
    second: Tensor


class ConvBlock(nn.Module):
    """Depthwise 5x5 and a two-layer perceptron per place, added to the input (ConvNeXt block, Liu et al. 2022,
    with a small kernel)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.spread = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.wide = nn.Conv2d(width, 3 * width, 1)
        self.back = nn.Conv2d(3 * width, width, 1)
        nn.init.zeros_(self.back.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(nn.functional.gelu(self.wide(self.spread(self.norm(x)))))


class Referee(nn.Module):
    """(B, 3, H, W) in [-1, 1], sides multiples of 16, to a Sight on a grid of stride 8."""

    def __init__(self, config: RefereeConfig):
        super().__init__()
        self.config, width = config, config.width
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 2, 4, stride=4), nn.GELU(), nn.Conv2d(width // 2, width // 2, 3, padding=1), nn.GELU()
        )
        self.down = nn.Conv2d(width // 2, width, 2, stride=2)
        self.fine = nn.Sequential(*(ConvBlock(width) for _ in range(config.depth)))
        self.downer = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.coarse = nn.Sequential(*(ConvBlock(2 * width) for _ in range(2 * config.depth)))
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.merge = nn.Sequential(*(ConvBlock(width) for _ in range(config.depth)))
        self.centre, self.box = nn.Conv2d(width, 1, 1), nn.Conv2d(width, 4, 1)
        nn.init.constant_(self.centre.bias, -4.0)  # type: ignore[arg-type] # centres are rare (Lin et al. 2017, section 4.1)
        self.concept = nn.Sequential(
            nn.LayerNorm(3 * width),
            nn.Linear(3 * width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, len(config.concepts)),
        )
        whole = len(config.styles) + 3 + 2 * len(config.colours)
        self.whole = nn.Sequential(
            nn.LayerNorm(6 * width), nn.Linear(6 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, whole)
        )

    def forward(self, x: Tensor) -> Sight:
        fine = self.fine(self.down(self.stem(x)))
        coarse = self.coarse(self.downer(fine))
        merged = self.merge(fine + self.up(coarse))
        wide = nn.functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
        edges = [
            merged[..., 0, :],
            merged[..., -1, :],
            merged[..., :, 0],
            merged[..., :, -1],
        ]  # where the background shows
        whole = self.whole(torch.cat([coarse.mean((2, 3)), *(e.mean(-1) for e in edges)], 1).float())  # (B, 6 W)
        styles, colours = len(self.config.styles), len(self.config.colours)
        style, split, first, second = whole.split([styles, 3, colours, colours], 1)
        return Sight(
            torch.cat([merged, wide], 1),
            self.centre(merged)[:, 0].float(),
            self.box(merged).float(),
            style,
            split,
            first,
            second,
        )

    def name(self, features: Tensor) -> Tensor:
        """Concept logits (N, concepts) of the features (N, 3 width) gathered at N cells."""
        return self.concept(features.float())
