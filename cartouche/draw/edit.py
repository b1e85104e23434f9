"""Drawing into a picture that is there: img2img (Meng et al., SDEdit, arXiv 2108.01073) and inpainting.

    strength 0     the picture itself, to the bit
    in between     its latents are noised up to a level of the ladder, and the drawing goes on from there
    strength 1     the drawing begins with noise alone, as if there were no picture

With a mask (1 is painted, 0 is kept) two kinds of net paint. An ordinary one draws the whole picture, and after each
step what is kept is put back at that level's noise (Lugmayr et al., RePaint, arXiv 2201.09865, eq. 8, not resampled).
An inpainting net (Rombach et al., arXiv 2112.10752, section 4.5) sees, beside the noisy latents, the mask and the
latents of the picture without what is painted. In the end the pixels that are kept are pasted back, so that no bit of
them changes, whatever the codec does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cartouche import images
from cartouche.config import CartoucheError
from cartouche.diffusion.prediction import Denoiser
from cartouche.diffusion.samplers import Noise, Sampler
from cartouche.diffusion.schedule import Level, add_noise
from cartouche.draw.recipe import STRENGTH, Request

Given = Path | str | bytes | np.ndarray
"""A file, its bytes, or an array: of a picture (H, W, 3) uint8, of a mask (H, W) numbers from 0 to 1 (or uint8)."""

EDGE = 0.5  # a pixel of at least so much mask is painted in the latents; in the end mask and picture are mixed


@dataclass(frozen=True)
class Original:
    """The picture that is drawn into, in the size of the drawing.

    pixels: (H, W, 3) uint8. mask: (H, W) float32, how much of each pixel is painted; None is all of it. strength: as
    above. picture_hash, mask_hash: of what was given, before any resizing; "" where there is no mask.
    """

    pixels: np.ndarray
    mask: np.ndarray | None
    strength: float
    picture_hash: str
    mask_hash: str = ""

    @property
    def images(self) -> np.ndarray:
        """(1, 3, H, W) in [-1, 1]."""
        return images.from_uint8(self.pixels[None])

    def without(self) -> np.ndarray:
        """The picture with grey where it is painted: (1, 3, H, W)."""
        painted = np.ones(self.pixels.shape[:2], bool) if self.mask is None else self.mask >= EDGE
        return np.where(painted, np.float32(0), self.images)

    def cells(self, shrink: int) -> np.ndarray:
        """(1, 1, h, w) float32: 1 for each latent cell in which any pixel is painted, else 0."""
        H, W = self.pixels.shape[:2]
        if self.mask is None:
            return np.ones((1, 1, H // shrink, W // shrink), np.float32)
        blocks = self.mask.reshape(H // shrink, shrink, W // shrink, shrink)
        return (blocks.max((1, 3)) >= EDGE).astype(np.float32)[None, None]

    def paste(self, drawn: np.ndarray) -> np.ndarray:
        """Drawn pixels (B, H, W, 3) uint8 with what is kept as it was: at strength 0, everything."""
        if self.strength == 0:
            return np.repeat(self.pixels[None], len(drawn), axis=0)
        if self.mask is None:
            return drawn
        share = self.mask[:, :, None]
        mixed = share * drawn + (1 - share) * self.pixels
        return np.where(share > 0, np.rint(mixed), self.pixels).astype(np.uint8)


class Way(NamedTuple):
    """How a drawing goes: it begins with x (B, C, h, w) at the first of the levels, and goes from each to the next by
    `step`. beside: (1, E, h, w), what the net sees beside x; original: what is drawn into."""

    x: np.ndarray
    levels: Sequence[Level]
    step: Sampler
    beside: np.ndarray | None = None
    original: Original | None = None


def opened(
    picture: Given, mask: Given | None, request: Request, usual: tuple[int, int], shrink: int
) -> tuple[Original, Request]:
    """The picture to draw into, read and brought to size, and the request with that size and its strength.

    Without a size in the request the picture keeps its own, but is brought down to the area of `usual`, the model's
    (width, height), and to whole cells of `shrink` pixels. Of another shape, what stands out is cut off evenly. Raises
    CartoucheError where something cannot be read, the mask is not of the picture's size, or it paints nothing.
    """
    pixels = _pixels(picture)
    width, height = fitting((pixels.shape[1], pixels.shape[0]), usual, shrink)
    width, height = request.width or width, request.height or height
    strength = request.strength
    if strength is None:
        strength = STRENGTH if mask is None else 1.0
    share, mask_hash = (None, "") if mask is None else _share(mask, pixels.shape[:2], (width, height))
    original = Original(images.fitted(pixels, width, height), share, strength, digest(pixels), mask_hash)
    return original, replace(request, width=width, height=height, strength=strength)


def fitting(own: tuple[int, int], usual: tuple[int, int], shrink: int) -> tuple[int, int]:
    """(width, height): a picture's own size, brought down to the area of the usual one, in whole cells."""
    smaller = min(1.0, (usual[0] * usual[1] / (own[0] * own[1])) ** 0.5)
    width, height = (max(1, round(side * smaller / shrink)) * shrink for side in own)
    return width, height


def into(
    original: Original,
    known: np.ndarray,
    noise: np.ndarray,
    levels: Sequence[Level],
    step: Sampler,
    shrink: int,
    masked: np.ndarray | None,
) -> Way:
    """The way of a drawing into a picture, of a strength above 0: the last share of the levels.

    known: (1, C, h, w) latents of the picture; noise: (B, C, h, w); levels: all of a drawing from nothing; masked: for
    an inpainting net, the latents of the picture without what is painted.
    """
    steps = len(levels) - 1
    walked = max(1, min(int(steps * original.strength), steps))  # as diffusers counts, but for the one step
    levels = levels[steps - walked :]
    x = noise if original.strength == 1 else add_noise(known, noise, levels[0])
    cells = original.cells(shrink)
    if masked is not None:
        return Way(x, levels, step, np.concatenate([cells, masked], axis=1), original)
    if original.mask is not None:
        step = keeping(step, known, noise, cells, levels[-1])
    return Way(x, levels, step, None, original)


def keeping(step: Sampler, known: np.ndarray, noise: np.ndarray, cells: np.ndarray, end: Level) -> Sampler:
    """A sampler that puts back, after each step, what is kept: the picture's latents at that level's noise, clean at
    the end.

    known: (1, C, h, w); noise: (B, C, h, w), the same at every step; cells: (1, 1, h, w), 1 where it is painted.
    """

    def kept(denoise: Denoiser, x: Any, here: Level, there: Level, fresh: Noise) -> Any:
        x = step(denoise, x, here, there, fresh)
        return cells * x + (1 - cells) * (known if there == end else add_noise(known, noise, there))

    return kept


def digest(pixels: np.ndarray) -> str:
    """Ten hexadecimal digits of a sha256 over the shape and the bytes of a picture (H, W, 3) or a mask (H, W)."""
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:10]


def _pixels(picture: Given) -> np.ndarray:
    if not isinstance(picture, np.ndarray):
        return images.decode(picture)
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or 0 in picture.shape:
        raise CartoucheError(f"a picture of shape {picture.shape}, {picture.dtype} given; wanted (H, W, 3) uint8")
    return picture


def _share(mask: Given, shape: tuple[int, ...], size: tuple[int, int]) -> tuple[np.ndarray, str]:
    """How much of each pixel is painted, (H, W) float32 of the wanted size, and the hash of the mask as given."""
    stencil = _stencil(mask)
    if stencil.shape != shape:
        given, wanted = ("x".join(map(str, one[::-1])) for one in (stencil.shape, shape))
        raise CartoucheError(f"the mask has {given} pixels, the picture {wanted}; give a mask of the picture's size")
    share = images.fitted(stencil, *size).astype(np.float32) / np.float32(255)
    if not (share >= EDGE).any():
        raise CartoucheError("the mask paints nothing, it is black; make white what is to be painted")
    return share, digest(stencil)


def _stencil(mask: Given) -> np.ndarray:
    """(H, W) uint8, 255 where it is painted."""
    if not isinstance(mask, np.ndarray):
        return images.read_mask(mask)
    share = mask.astype(np.float64) / (255 if mask.dtype == np.uint8 else 1)
    if mask.ndim != 2 or not ((share >= 0) & (share <= 1)).all():
        raise CartoucheError(f"a mask of shape {mask.shape}, {mask.dtype} given; wanted (H, W) numbers from 0 to 1")
    return np.rint(255 * share).astype(np.uint8)
