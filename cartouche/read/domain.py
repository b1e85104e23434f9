"""How far a picture lies from those that a CLIP was trained on: whether what is read of it can be believed.

Two things are looked at, each summed up over training pictures by a mean and a covariance, and measured by its squared
Mahalanobis distance to them (Lee et al. 2018, section 2.1, with one Gaussian for all, since scenes have no classes):
the CLIP's vector, which tells strange contents, and the texture, which tells photographs from drawings. Both distances
are put into units of their spread over true scenes, and added. A distance alone says nothing to people, so it is told
as the share of true scenes, others than those of the covariance, that lie nearer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cartouche.config import CartoucheError
from cartouche.read.match import Matcher, batches
from cartouche.weights import safetensors

FILE = "domain.safetensors"
OUTSIDE = 0.99
"""From this share on a picture is called outside: one true scene in a hundred is, wrongly."""
STEPS = 1000
SIDE, SCALES, SHARES = 128, 4, (0.25, 0.5, 0.75, 0.9)
RIDGES = {"vector": 1e-3, "texture": 5e-2}
"""Added to the variance in every direction, some of which hardly vary at all: of a vector, this part of the mean
variance; of a texture, as much as a drawing loses on its way through a JPEG or an autoencoder."""


class Seen(NamedTuple):
    """What is looked at of pictures: their vectors (B, D) and their textures (B, SCALES * len(SHARES))."""

    vector: np.ndarray
    texture: np.ndarray


class Cloud(NamedTuple):
    """Where training pictures lie. mean: (D,); whiten: (D, D), the covariance's inverse root; usual: (2,), mean and
    spread of the squared distances of true scenes."""

    mean: np.ndarray
    whiten: np.ndarray
    usual: np.ndarray

    def squared(self, x: np.ndarray) -> np.ndarray:
        """Squared Mahalanobis distances of (B, D): (B,)."""
        return np.asarray((((x - self.mean).astype(np.float64) @ self.whiten) ** 2).sum(1))

    def unusual(self, x: np.ndarray) -> np.ndarray:
        """The same in units of their spread over true scenes, whose mean is at 0: (B,)."""
        return (self.squared(x) - self.usual[0]) / self.usual[1]


@dataclass(frozen=True)
class Domain:
    """What training pictures look like. edges: STEPS + 1 distances, between which equal shares of true scenes lie.

    model: the hash of the weights whose vectors these are.
    """

    vector: Cloud
    texture: Cloud
    edges: np.ndarray
    model: str

    @classmethod
    def fit(cls, known: Seen, scenes: Seen, model: str) -> Domain:
        """Of training pictures and of scenes that are not among them. Raises CartoucheError where there are too few."""
        least = known.vector.shape[1] + 1
        if len(known.vector) < least or len(scenes.vector) < 2:
            given = f"{len(known.vector)} and {len(scenes.vector)} pictures"
            raise CartoucheError(f"{given} given; wanted at least {least}, more than a vector has numbers, and 2")
        vector = _cloud(known.vector, scenes.vector, "vector")
        texture = _cloud(known.texture, scenes.texture, "texture")
        made = cls(vector, texture, np.zeros(0), model)
        edges = np.quantile(made.distance(scenes), np.linspace(0, 1, STEPS + 1))
        return cls(vector, texture, edges, model)

    def distance(self, seen: Seen) -> np.ndarray:
        """How unusual pictures are, in vector and texture together: (B,)."""
        return self.vector.unusual(seen.vector) + self.texture.unusual(seen.texture)

    def score(self, seen: Seen) -> np.ndarray:
        """The share of true scenes that lie nearer, 0 to 1: (B,). 1 is beyond them all."""
        return np.interp(self.distance(seen), self.edges, np.linspace(0, 1, len(self.edges)))

    def save(self, folder: Path | str) -> Path:
        """Write `domain.safetensors` into a CLIP's folder."""
        path = Path(folder) / FILE
        safetensors.save(
            path, {name: one.astype(np.float32) for name, one in self._tensors().items()}, {"model": self.model}
        )
        return path

    def _tensors(self) -> dict[str, np.ndarray]:
        clouds = {"vector": self.vector, "texture": self.texture}
        named = {f"{what}.{name}": one for what, cloud in clouds.items() for name, one in cloud._asdict().items()}
        return named | {"edges": self.edges}

    @classmethod
    def load(cls, folder: Path | str, model: str) -> Domain | None:
        """Of a CLIP's folder, None where it does not tell. Raises CartoucheError where it is of other weights."""
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        found, about = safetensors.load_numpy(path), safetensors.metadata(path)
        if about.get("model") != model:
            raise CartoucheError(
                f"{path} belongs to other weights than those beside it; make it again: benchmarks/outside.py --write"
            )
        try:
            vector, texture = (Cloud(*(found[f"{what}.{name}"] for name in Cloud._fields)) for what in RIDGES)
            _check((vector, texture), found["edges"])
        except (KeyError, ValueError) as error:
            raise CartoucheError(f"{path} is damaged: {error}; make it again: benchmarks/outside.py --write") from error
        return cls(vector, texture, found["edges"], model)


def look(matcher: Matcher, pictures: Iterable[np.ndarray]) -> Seen:
    """What is looked at of pictures, each (H, W, 3) uint8 of a size of its own."""
    some = [(matcher.pixels(batch), np.stack(list(map(texture, batch)))) for batch in batches(pictures, matcher.batch)]
    if not some:
        return Seen(np.zeros((0, matcher.width), np.float32), np.zeros((0, SCALES * len(SHARES))))
    return Seen(*(np.concatenate(parts) for parts in zip(*some, strict=True)))


def texture(pixels: np.ndarray) -> np.ndarray:
    """How much neighbouring pixels differ, fine and coarse, in smooth places and rough ones: (SCALES * len(SHARES),).

    Of a picture (H, W, 3) uint8, at SIDE x SIDE in grey and then halved again and again: log(2 + quantiles of the
    larger of both differences). The 2, of 255, hides what a JPEG does to a flat ground.
    """
    from PIL import Image

    small = Image.fromarray(np.ascontiguousarray(pixels)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    grey = np.asarray(small, np.float32).mean(-1)
    found = []
    for _ in range(SCALES):
        across, down = np.abs(np.diff(grey, axis=1))[:-1], np.abs(np.diff(grey, axis=0))[:, :-1]
        found.append(np.log(2 + np.quantile(np.maximum(across, down), SHARES)))
        grey = grey.reshape(len(grey) // 2, 2, len(grey) // 2, 2).mean((1, 3))
    return np.concatenate(found)


def _cloud(known: np.ndarray, scenes: np.ndarray, what: str) -> Cloud:
    x = known.astype(np.float64)
    covariance = np.cov(x, rowvar=False)
    size = np.trace(covariance) / len(covariance) if what == "vector" else 1.0
    covariance += RIDGES[what] * size * np.eye(len(covariance))
    whiten = np.linalg.inv(np.linalg.cholesky(covariance)).T
    squared = Cloud(x.mean(0), whiten, np.zeros(2)).squared(scenes)
    return Cloud(x.mean(0), whiten, np.array([squared.mean(), squared.std()]))


def _check(clouds: Sequence[Cloud], edges: np.ndarray) -> None:
    for one in clouds:
        D = len(one.mean)
        if one.mean.shape != (D,) or one.whiten.shape != (D, D) or one.usual.shape != (2,):
            raise ValueError(f"shapes {one.mean.shape}, {one.whiten.shape}, {one.usual.shape}")
    if edges.ndim != 1 or not all(np.isfinite(one).all() for one in (edges, *(part for one in clouds for part in one))):
        raise ValueError("numbers that are not finite")
