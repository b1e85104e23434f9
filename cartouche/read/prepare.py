"""Pictures as an image tower takes them: resized, cut, and scaled as the tower was trained on.

The settings are those of transformers' image processors, and so is every rounding, so that weights that came with a
`preprocessor_config.json` see here what they see there. A folder without one wants the whole picture, squeezed into a
square, in [-1, 1]: so the built-in nets were trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cartouche.config import CartoucheError, read_json

FILES = ("preprocessor_config.json", "processor_config.json")
NEAREST, LANCZOS, BILINEAR, BICUBIC, BOX, HAMMING = range(6)  # as Pillow numbers its filters
LONGEST = 8
"""Of a picture that is longer than this many times its breadth only the middle is resized, since only that is kept."""


@dataclass(frozen=True)
class Preparation:
    """What is done to a picture before a tower sees it.

    size: (height, width), or one number: the breadth, the length in proportion. crop: (height, width) kept of the
    middle. resample: Pillow's number of the filter. A byte v becomes (v * scale - mean) / std, channel by channel.
    """

    size: tuple[int, int] | int
    crop: tuple[int, int] | None = None
    resample: int = BICUBIC
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @classmethod
    def load(cls, folder: Path | str, side: int, patch: int = 0) -> Preparation:
        """What the folder of a net asks for, whose tower takes pictures of side x side.

        patch: of a tower that stretches its table of places, which takes any square that so many pixels divide.
        Raises CartoucheError for settings that do not end at such a size, or that are none.
        """
        path = next((Path(folder) / name for name in FILES if (Path(folder) / name).is_file()), None)
        if path is None:
            return cls((side, side))
        found = read_json(path)
        try:
            made = cls.from_dict(found.get("image_processor", found), side)
        except (AttributeError, TypeError, ValueError, KeyError, OverflowError) as error:
            raise CartoucheError(f"{path} holds no settings of an image processor: {error!r}") from error
        height, width = made.made or (0, 1)
        stretched = patch > 0 and height == width and height % patch == 0
        if made.made != (side, side) and not stretched:
            raise CartoucheError(f"{path} prepares pictures of {made.made}; the tower beside it takes {side}x{side}")
        return made

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], side: int) -> Preparation:
        """The settings of a preprocessor_config.json, of this year or of earlier ones; what it leaves out is CLIP's."""
        crop = given.get("crop_size", side) if given.get("do_center_crop", True) else None
        size = given.get("size", side) if given.get("do_resize", True) else (side, side)
        settings: dict[str, Any] = {
            "size": _size(size, shortest=crop is not None),
            "crop": None if crop is None else _pair(crop),
            "resample": int(given.get("resample", BICUBIC)),
            "scale": float(given.get("rescale_factor", 1 / 255)) if given.get("do_rescale", True) else 1.0,
        }
        if not NEAREST <= settings["resample"] <= HAMMING:
            raise ValueError(f"resample={settings['resample']}; wanted {NEAREST} to {HAMMING}")
        if not given.get("do_normalize", True):
            return cls(**settings, mean=(0.0,) * 3, std=(1.0,) * 3)
        mean, std = (tuple(map(float, given[name])) for name in ("image_mean", "image_std"))
        if len(mean) != 3 or len(std) != 3 or 0 in std:
            raise ValueError(f"image_mean={mean}, image_std={std}; wanted three numbers each, no std 0")
        return cls(**settings, mean=mean, std=std)

    @property
    def made(self) -> tuple[int, int] | None:
        """(height, width) of what comes out, None where it depends on what goes in."""
        if self.crop is not None:
            least = self.size if isinstance(self.size, int) else min(self.size)
            return self.crop if max(self.crop) <= least else None
        return None if isinstance(self.size, int) else self.size

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """A picture (H, W, 3) uint8 of any size to (3, h, w) float32."""
        from PIL import Image

        image = Image.fromarray(np.ascontiguousarray(pixels if self.crop is None else _middle(pixels)))
        height, width = self._resized(image.height, image.width)
        array = np.asarray(image.resize((width, height), Image.Resampling(self.resample)), np.float32)
        if self.crop is not None:
            top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
            array = array[top : top + self.crop[0], left : left + self.crop[1]]
        scaled = array * np.float32(self.scale) - np.array(self.mean, np.float32)
        return np.ascontiguousarray((scaled / np.array(self.std, np.float32)).transpose(2, 0, 1))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if not isinstance(self.size, int):
            return self.size
        long = int(self.size * max(height, width) / min(height, width))
        return (self.size, long) if height <= width else (long, self.size)


def _middle(pixels: np.ndarray) -> np.ndarray:
    """The middle of a picture that is very long, wide enough for what is cut out of it later."""
    height, width = pixels.shape[:2]
    most = LONGEST * min(height, width)
    top, left = max(0, (height - most) // 2), max(0, (width - most) // 2)
    return pixels[top : height - top, left : width - left]


def _size(given: Any, shortest: bool) -> tuple[int, int] | int:
    """`size` as it has been spelled: a number, a pair, or a dictionary."""
    if isinstance(given, Mapping) and "shortest_edge" in given:
        return int(given["shortest_edge"])
    if isinstance(given, int) and shortest:
        return given
    return _pair(given)


def _pair(given: Any) -> tuple[int, int]:
    if isinstance(given, Mapping):
        return int(given["height"]), int(given["width"])
    if isinstance(given, int):
        return given, given
    height, width = given
    return int(height), int(width)
