"""From a drawing's file to 128 x 128 RGBA, and what is measured of it: box, area, mean colour, basic colours."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import colours

SIDE = 128  # pixels of a drawing in the pack
RENDERED = 512  # an SVG is rendered four times as large, then averaged
VISIBLE = 127  # alpha above which a pixel counts as seen
FAINT = 16  # alpha from which a pixel is inside the box
LEAST_AREA = 0.02


def read_drawing(path: Path) -> Image.Image:
    """A PNG as it is, an SVG rendered by resvg at RENDERED pixels; RGBA, in the middle of a square."""
    if path.suffix == ".svg":
        import resvg_py

        text = path.read_text(encoding="utf-8")
        data = bytes(resvg_py.svg_to_bytes(svg_string=text, width=RENDERED, height=RENDERED, skip_system_fonts=True))
    else:
        data = path.read_bytes()
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return squared(image.convert("RGBA"))


def squared(image: Image.Image) -> Image.Image:
    """The picture in the middle of a transparent square."""
    if image.width == image.height:
        return image
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def shrunk(image: Image.Image) -> Image.Image:
    """The picture at SIDE pixels, colours weighted by alpha (Pillow does): large ones averaged, others by Lanczos."""
    if image.width == SIDE:
        return image
    how = Image.Resampling.LANCZOS if image.width < RENDERED else Image.Resampling.BOX
    return image.resize((SIDE, SIDE), how)


def opened(data: bytes) -> Image.Image:
    """A drawing of the pack as RGBA."""
    with Image.open(io.BytesIO(data), formats=("WEBP",)) as image:
        return image.convert("RGBA")


def webp(image: Image.Image) -> bytes:
    """Lossless WebP; the smaller of the encoder's methods 4 and 6, whichever wins varies from drawing to drawing."""
    return min((_encoded(image, method) for method in (4, 6)), key=len)


def measured(image: Image.Image) -> dict[str, Any]:
    """bbox [x0, y0, x1, y1); area, the share of visible pixels; colors (name, share) and mean_rgb of those."""
    pixels = np.asarray(image)
    alpha = pixels[..., 3]
    seen = pixels[alpha > VISIBLE][:, :3]
    box = Image.fromarray((alpha >= FAINT).astype(np.uint8)).getbbox()
    return {
        "bbox": list(box or (0, 0, 0, 0)),
        "area": round(float((alpha > VISIBLE).mean()), 4),
        "colors": colours.dominant(seen),
        "mean_rgb": np.rint(seen.mean(0)).astype(int).tolist() if len(seen) else [0, 0, 0],
    }


def thumbnail(image: Image.Image) -> np.ndarray:
    """(32, 32, 3) in [0, 1], on mid-grey so that black lines and white ones show: to tell how alike drawings are."""
    ground = Image.new("RGBA", image.size, (128, 128, 128, 255))
    ground.alpha_composite(image)
    return np.asarray(ground.convert("RGB").resize((32, 32), Image.Resampling.BOX), float) / 255


def _encoded(image: Image.Image, method: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=True, quality=75, method=method)
    return file.getvalue()
