"""The referee: a small convolutional net that finds and names the objects of a scene, its style and its background.

It judges drawings, so it shares nothing with the CLIP that conditions them: another architecture (objects as points,
Zhou et al. 2019, "Objects as Points", section 3, on a residual net), other training, exact labels. Layout and
state-dict names are our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

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
    depth: int = 2

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


class Residual(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))), batch-normalised (He et al. 2016): it learns fast."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), norm(outputs)
        self.skip = nn.Conv2d(inputs, outputs, stride, stride) if stride > 1 or inputs != outputs else None
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(relu(self.norm1(self.conv1(x)))))
        return relu((x if self.skip is None else self.skip(x)) + y)


def norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation whose running figures are those of the last hundred batches or so."""
    return nn.BatchNorm2d(channels, momentum=0.02)


class Referee(nn.Module):
    """(B, 3, H, W) in [-1, 1], sides multiples of 16, to a Sight on a grid of stride 8."""

    def __init__(self, config: RefereeConfig):
        super().__init__()
        self.config, width = config, config.width
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 4, 5, stride=2, padding=2, bias=False), norm(width // 4), nn.ReLU()
        )
        self.quarter = stage(width // 4, width // 2, config.depth)  # stride 4
        self.fine = stage(width // 2, width, config.depth)  # stride 8
        self.coarse = stage(width, 2 * width, config.depth)  # stride 16
        self.up = nn.Conv2d(2 * width, width, 1)
        self.merge = Residual(width, width)
        self.centre, self.box = nn.Conv2d(width, 1, 1), nn.Conv2d(width, 4, 1)
        # centres are rare (Lin et al. 2017, section 4.1)
        nn.init.constant_(self.centre.bias, -4.0)  # type: ignore[arg-type]
        self.concept = perceptron(3 * width, len(config.concepts))
        self.whole = perceptron(7 * width, len(config.styles) + 3 + 2 * len(config.colours))

    def forward(self, x: Tensor) -> Sight:
        fine = self.fine(self.quarter(self.stem(x)))
        coarse = self.coarse(fine)
        wide = nn.functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
        merged = self.merge(fine + nn.functional.interpolate(self.up(coarse), scale_factor=2.0, mode="nearest"))
        sides = (merged[..., 0, :], merged[..., -1, :], merged[..., :, 0], merged[..., :, -1])  # the ground shows here
        pooled = [fine.amax((2, 3)), coarse.amax((2, 3)), *(side.mean(-1) for side in sides)]
        whole = self.whole(torch.cat(pooled, 1).float())  # (B, 7 W)
        styles, colours = len(self.config.styles), len(self.config.colours)
        style, split, first, second = whole.split([styles, 3, colours, colours], 1)
        centre, box = self.centre(merged)[:, 0].float(), self.box(merged).float()
        return Sight(torch.cat([merged, wide], 1), centre, box, style, split, first, second)

    def name(self, features: Tensor) -> Tensor:
        """Concept logits (N, concepts) of the features (N, 3 width) gathered at N cells."""
        return self.concept(features.float())


def stage(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """`depth` residual blocks, the first of which halves the grid."""
    return nn.Sequential(Residual(inputs, outputs, stride=2), *(Residual(outputs, outputs) for _ in range(depth - 1)))


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    """One hidden layer of 256."""
    return nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, outputs))
