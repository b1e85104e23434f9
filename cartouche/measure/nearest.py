"""The nearest training drawing to a picture: is it new, or a copy?

Compared as 32x32 thumbnails: each training drawing is set on the picture's own background before the difference is
taken, so that the ground does not decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from cartouche.data.emoji import Drawing, Pack

SIDE = 32


class Neighbour(NamedTuple):
    """The key of the nearest drawing, and the mean absolute difference to it (0 ... 1)."""

    key: str
    distance: float


class Nearest:
    """Thumbnails of `drawings`, ready to be compared with."""

    def __init__(self, pack: Pack, drawings: Sequence[Drawing]) -> None:
        self.keys = [d.key for d in drawings]
        thumbs = np.stack([_thumbnail(pack.pixels(d)) for d in drawings])  # (N, 32, 32, 4) premultiplied
        self.colour, self.clear = thumbs[..., :3], 255 - thumbs[..., 3:]

    def __call__(self, pixels: np.ndarray, box: tuple[float, float, float, float]) -> Neighbour:
        """The drawing nearest to what is in `box` (x0, y0, x1, y1) of pixels (H, W, 3) uint8, mirrored or not."""
        h, w = pixels.shape[:2]
        x0, y0, x1, y1 = max(0, round(box[0])), max(0, round(box[1])), min(w, round(box[2])), min(h, round(box[3]))
        cut = Image.fromarray(pixels[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]).resize((SIDE, SIDE))
        here = np.asarray(cut, np.float32)
        ground = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
        best = Neighbour("", np.inf)
        for view in (here, here[:, ::-1]):
            gaps = np.abs(self.colour + self.clear / 255 * ground.astype(np.float32) - view).mean((1, 2, 3)) / 255
            i = int(gaps.argmin())
            best = min(best, Neighbour(self.keys[i], float(gaps[i])), key=lambda one: one.distance)
        return best


def _thumbnail(rgba: np.ndarray) -> np.ndarray:
    image = Image.fromarray(rgba).convert("RGBa").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(image, np.float32)
