"""Training the referee: exact targets from composed scenes, and the loss of "Objects as Points" (Zhou et al. 2019,
eq. 1-4)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor, nn

from cartouche.data import palette
from cartouche.data.scenes import Scene, render, rng_of
from cartouche.data.streams import Scenes
from cartouche.images import from_uint8
from cartouche.nets.referee import STRIDE, Referee, RefereeConfig

MOST = 4  # objects in a scene
SPLITS = ("", "left", "above")


@dataclass
class RefereeSamples:
    """Scenes with the referee's targets: image (3, H, W), objects (4, 7) float32, whole (4,) int64.

    objects: one row an object: present, cell x, cell y, offset x, offset y, log width, log height (cells), and
    `concepts` (4,) int64. whole: style, split, first and second background colour. Pictures are blurred or noised
    at random, so that the softness of a drawn picture is not taken for another object.
    """

    scenes: Scenes
    config: RefereeConfig

    def __post_init__(self) -> None:
        self._concepts = {c: i for i, c in enumerate(self.config.concepts)}

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict:
        scene = self.scenes.composer[index]
        pixels, _ = render(self.scenes.pack, scene)
        image = roughen(from_uint8(pixels[None])[0], rng_of(self.scenes.composer.seed ^ 0xB1, index))
        objects, concepts = self._objects(scene)
        return {"image": image, "objects": objects, "concepts": concepts, "whole": self._whole(scene)}

    def _objects(self, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
        rows, concepts = np.zeros((MOST, 7), np.float32), np.zeros(MOST, np.int64)
        for i, placed in enumerate(scene.objects):
            x, y = (c / STRIDE for c in placed.centre)
            x0, y0, x1, y1 = placed.box
            rows[i] = (
                1,
                int(x),
                int(y),
                x - int(x),
                y - int(y),
                np.log((x1 - x0) / STRIDE),
                np.log((y1 - y0) / STRIDE),
            )
            concepts[i] = self._concepts[placed.drawing.concept]
        return rows, concepts

    def _whole(self, scene: Scene) -> np.ndarray:
        ground = scene.background
        colours = [palette.NAMES.index(c) for c in ground.colours]
        return np.array(
            [self.config.styles.index(scene.style), SPLITS.index(ground.split), colours[0], colours[-1]], np.int64
        )


def roughen(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Soften (a 3x3 binomial, once or twice) and add a little noise, each to a third of the pictures."""
    for _ in range(int(rng.choice([0, 0, 1, 2]))):
        for axis in (1, 2):
            image = 0.5 * image + 0.25 * (np.roll(image, 1, axis) + np.roll(image, -1, axis))
    if rng.random() < 0.33:
        image = image + rng.normal(0, rng.uniform(0, 0.08), image.shape)
    return np.clip(image, -1, 1).astype(np.float32)


@dataclass(frozen=True)
class RefereeTask:
    """Focal loss on the centres (alpha 2, beta 4), L1 on the boxes, cross-entropy on concepts, style and background."""

    smoothing: float = 0.05

    def __call__(self, net: Referee, batch: dict[str, Tensor], generator: Generator) -> tuple[Tensor, dict[str, float]]:
        sight = net(batch["image"])
        rows, there = batch["objects"], batch["objects"][..., 0] > 0
        owner, _ = there.nonzero(as_tuple=True)
        cells = rows[there]  # (N, 7)
        x, y = cells[:, 1].long(), cells[:, 2].long()
        logits = net.name(sight.features[owner, :, y, x])
        concepts = batch["concepts"][there]
        cross = nn.functional.cross_entropy
        losses = {
            "centre": focal(sight.centre, heatmap(rows, sight.centre.shape[1:])),
            "box": (sight.box[owner, :, y, x] - cells[:, 3:]).abs().mean(),
            "concept": cross(logits, concepts, label_smoothing=self.smoothing),
            "style": cross(sight.style, batch["whole"][:, 0], label_smoothing=self.smoothing),
            "split": cross(sight.split, batch["whole"][:, 1]),
            "ground": cross(sight.first, batch["whole"][:, 2]) + cross(sight.second, batch["whole"][:, 3]),
        }
        notes = {name: float(value.detach()) for name, value in losses.items()}
        notes["right"] = float((logits.argmax(1) == concepts).float().mean())
        return sum(losses.values(), torch.zeros((), device=rows.device)), notes


def heatmap(rows: Tensor, size: torch.Size) -> Tensor:
    """A peak of 1 at each centre's cell, falling off as a Gaussian as narrow as an IoU of 0.7 asks for: (B, h, w)."""
    h, w = size
    ys, xs = torch.arange(h, device=rows.device).view(1, 1, h, 1), torch.arange(w, device=rows.device).view(1, 1, 1, w)
    there, x, y = (rows[..., i, None, None] for i in range(3))
    sigma = rows[..., 5:7].mean(-1).exp()[..., None, None] / 18 + 0.3
    bumps = there * torch.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * sigma**2))
    return bumps.amax(1)


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """Penalty-reduced focal loss, averaged over the objects (Objects as Points, eq. 1)."""
    p = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    peak = target > 0.999
    found = -((1 - p) ** 2) * p.log() * peak
    empty = -((1 - target) ** 4) * p**2 * (1 - p).log() * ~peak
    return (found + empty).sum() / peak.sum().clamp(min=1)
