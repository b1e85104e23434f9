"""A contact sheet: many pictures of any size on one, a line of text under each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cartouche.read.annotate import lettering, plain

if TYPE_CHECKING:
    from PIL import Image, ImageFont

GAP = 8


def contact_sheet(
    pictures: Sequence[np.ndarray], captions: Sequence[str], columns: int | None = None, side: int = 160
) -> np.ndarray:
    """Pictures, each (H, W, 3) uint8 of a size of its own, on one white sheet, row by row, a line under each.

    Returns (h, w, 3) uint8, nearly square by default. side: the pixels a picture gets each way; its proportions stay.
    """
    from PIL import Image, ImageDraw

    points = max(9, side // 12)
    (font, accents), line = lettering(points), int(points * 1.6)
    columns = max(1, min(len(pictures), columns or int(np.ceil(np.sqrt(len(pictures))))))
    rows = -(-len(pictures) // columns)
    width, height = columns * (side + GAP) + GAP, rows * (side + line + GAP) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (pixels, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = GAP + i % columns * (side + GAP), GAP + i // columns * (side + line + GAP)
        small = _fitted(pixels, side)
        sheet.paste(small, (x + (side - small.width) // 2, y + (side - small.height) // 2))
        words = " ".join(caption.split()).encode("utf-8", "replace").decode()
        draw.text((x, y + side + 2), _shortened(words if accents else plain(words), font, side), "black", font)
    return np.asarray(sheet)


def _fitted(pixels: np.ndarray, side: int) -> Image.Image:
    """The picture within side x side, small ones enlarged without blur."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, its middle left out where it is too wide: a name's end says as much as its beginning."""
    for kept in range(len(text), 1, -1):
        said = text if kept == len(text) else f"{text[: -(-kept // 2)]}...{text[-(kept // 2) :]}"
        if font.getlength(said) <= width:
            return said
    return ""
