"""Decoding by tiles: a large picture in the memory of a small one.

Every tile is decoded on its own and blended into its neighbours over what they share. The decoder's normalisation and
attention see a tile in place of the whole, so the picture is near that of whole decoding, not equal to it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

TILE = 64  # latent cells: at 8 pixels a cell, a tile of 512 pixels
SHARED = 16  # of them also in the next tile


def tiled(
    decode: Callable[[np.ndarray], np.ndarray], z: np.ndarray, tile: int = TILE, shared: int = SHARED
) -> np.ndarray:
    """The pictures of latents z (B, C, h, w), no more than tile x tile cells of which are decoded at once.

    decode: latents to pictures (B, 3, H, W), some whole number of pixels a cell. Every tile has the same size.
    """
    high, wide = (min(tile, side) for side in z.shape[2:])
    tops, lefts = starts(z.shape[2], high, shared), starts(z.shape[3], wide, shared)
    total = weights = np.zeros(0, np.float32)
    for top in tops:
        for left in lefts:
            part = decode(np.ascontiguousarray(z[:, :, top : top + high, left : left + wide]))
            if not total.size:
                scale = part.shape[2] // high
                total = np.zeros((*part.shape[:2], z.shape[2] * scale, z.shape[3] * scale), np.float32)
                weights = np.zeros(total.shape[2:], np.float32)
            rows = ramp(high * scale, shared * scale, top > 0, top < tops[-1])
            columns = ramp(wide * scale, shared * scale, left > 0, left < lefts[-1])
            place = np.s_[..., top * scale : (top + high) * scale, left * scale : (left + wide) * scale]
            share = rows[:, None] * columns
            total[place] += part * share
            weights[place] += share
    return total / weights


def starts(side: int, tile: int, shared: int) -> list[int]:
    """Where tiles begin along a side, the last one at its end; neighbours share at least `shared` cells."""
    return [*range(0, side - tile, tile - shared), side - tile]


def ramp(size: int, shared: int, before: bool, behind: bool) -> np.ndarray:
    """How much a tile counts along one side: 1, but rising from 0 where a tile is before it, falling where behind."""
    rising = (np.arange(size, dtype=np.float32) + 1) / (min(shared, size) + 1)
    up = np.minimum(rising, 1) if before else np.ones(size, np.float32)
    return np.minimum(up, np.minimum(rising[::-1], 1)) if behind else up
