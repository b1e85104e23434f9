"""Endless training streams of scenes: sample i is a pure function of (seed, i), so a stream has no state to save."""

from dataclasses import dataclass

import numpy as np

from cartouche.config import CartoucheError
from cartouche.data.captions import LANGUAGES, Manner, caption
from cartouche.data.emoji import Pack
from cartouche.data.scenes import Composer, Scene, render, rng_of
from cartouche.images import from_uint8

CAPTION_STREAM = 0xC0FFEE  # keeps the randomness of captions apart from that of scenes
CROP_STREAM = 0xC209


@dataclass
class Scenes:
    """Composed pictures with captions: stream[i] = {"image": (3, H, W) float32 in [-1, 1], "caption": str}.

    length: how many samples a reader of the whole stream sees (the scenes themselves never end). crop: side of a
    random square cut from the picture, 0 for the whole; a cropped sample has no caption, since the caption would
    no longer be true.
    """

    pack: Pack
    composer: Composer
    manner: Manner | None = None
    languages: tuple[str, ...] = LANGUAGES
    crop: int = 0
    length: int = 1 << 40

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        return self.sample(self.composer[index], index)

    def sample(self, scene: Scene, index: int) -> dict:
        """The picture (3, H, W) and caption of the scene that the composer gives at `index`."""
        pixels, _ = render(self.pack, scene)
        if self.crop:
            pixels = _crop(pixels, self.crop, rng_of(self.composer.seed ^ CROP_STREAM, index))
            return {"image": from_uint8(pixels[None])[0]}
        return {"image": from_uint8(pixels[None])[0], "caption": self.caption(scene, index)}

    def caption(self, scene: Scene, index: int, which: int = 0) -> str:
        """Caption number `which` of the scene at `index`; languages alternate at random."""
        rng = rng_of(self.composer.seed ^ CAPTION_STREAM, 16 * index + which)
        language = self.languages[int(rng.integers(len(self.languages)))]
        return caption(scene, rng, language, self.manner)


def _crop(pixels: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    if not 0 < side <= min(pixels.shape[:2]):
        raise CartoucheError(f"crop={side} given for pictures of {min(pixels.shape[:2])} pixels; choose less, or 0")
    y, x = rng.integers(0, pixels.shape[0] - side + 1, 2).tolist()
    return pixels[y : y + side, x : x + side]
