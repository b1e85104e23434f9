"""What was found, drawn over the picture: boxes, masks and names."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cartouche.data.palette import COLOURS
from cartouche.read.locate import Found

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

LEAST = 512  # a smaller picture is drawn enlarged, so that names fit on it
FONTS = ("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial.ttf")
INKS = ("red", "blue", "green", "orange", "purple", "pink", "brown", "yellow")
MASKED = 0.4  # how much of its colour a mask lays over the picture
SPELLED = str.maketrans({"×": "x", "œ": "oe", "Œ": "OE", "æ": "ae", "Æ": "AE"})


def annotate(pixels: np.ndarray, found: Sequence[Found]) -> np.ndarray:
    """A copy of a picture (H, W, 3) uint8 with what was found on it: a box, a name and a score each, masks tinted.

    A name has one colour. Returns (kH, kW, 3) uint8, where k enlarges small pictures and is 1 for others.
    """
    from PIL import Image, ImageDraw

    k = max(1, LEAST // max(pixels.shape[:2]))
    names = list(dict.fromkeys(one.name for one in found))
    ink = {name: COLOURS[INKS[i % len(INKS)]].rgb for i, name in enumerate(names)}
    large = _tinted(pixels, found, ink).repeat(k, axis=0).repeat(k, axis=1)
    image = Image.fromarray(large)
    draw = ImageDraw.Draw(image)
    font, accents = lettering(max(12, max(image.size) // 36))
    width = max(2, max(image.size) // 250)
    for one in reversed(found):  # the surest last, on top
        left, top, right, bottom = (edge * k for edge in one.box)
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=ink[one.name], width=width)
        label = f"{one.name} {one.score:.2f}"
        _label(draw, (left, top), label if accents else plain(label), ink[one.name], font)
    return np.asarray(image)


def plain(text: str) -> str:
    """The text in letters without accents, for a font that has no others."""
    return unicodedata.normalize("NFKD", text.translate(SPELLED)).encode("ascii", "ignore").decode()


def _tinted(pixels: np.ndarray, found: Sequence[Found], ink: dict[str, tuple[int, int, int]]) -> np.ndarray:
    canvas = pixels.astype(np.float32)
    for one in found:
        if one.mask is not None:
            canvas[one.mask] += MASKED * (np.array(ink[one.name], np.float32) - canvas[one.mask])
    return np.rint(canvas).astype(np.uint8)


def _label(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """The text on a patch of the box's colour, above its corner, or in it where the picture ends."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    x = max(0, min(corner[0], draw.im.size[0] - width))
    y = corner[1] - height if corner[1] >= height else corner[1]
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    light = sum(colour) > 380
    draw.text((x + 3 - left, y + 3 - top), text, fill="black" if light else "white", font=font)


def lettering(size: int) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, bool]:
    """A font and whether it has accents: one of the machine's, or Pillow's own, which has none."""
    from PIL import ImageFont

    for name in FONTS:
        try:
            return ImageFont.truetype(name, size), True
        except OSError:
            continue
    return ImageFont.load_default(size), False
