"""Pictures of a training: sheets of samples, the curve of the loss, the matrix of who matches whom. Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cartouche.files import write_whole
from cartouche.images import grid, to_uint8

INK, PAPER, LINE, FAINT = (35, 35, 40), (255, 255, 255), (24, 95, 165), (205, 205, 210)
MARGIN = (70, 30, 20, 40)  # left, top, right, bottom


def sheet(pictures: Any, columns: int = 0, gap: int = 4) -> Image.Image:
    """Pictures (B, 3, H, W) in [-1, 1] (array or tensor) side by side on one sheet, near square unless told."""
    return Image.fromarray(to_uint8(grid(_array(pictures), columns or None, gap))[0])


def curve(points: Sequence[tuple[float, float]], title: str, levels: Mapping[str, float] | None = None) -> Image.Image:
    """A line through `points` (x, y), with horizontal `levels` by name; y is logarithmic where it spans decades."""
    canvas = Image.new("RGB", (900, 480), PAPER)
    draw = ImageDraw.Draw(canvas)
    levels = levels or {}
    heights = [y for _, y in points] + list(levels.values())
    logarithmic = min(heights) > 0 and max(heights) > 20 * min(heights)
    flat = (lambda y: math.log10(y)) if logarithmic else (lambda y: y)
    low, high = min(map(flat, heights)), max(map(flat, heights))
    first, last = points[0][0], points[-1][0]
    left, top, right, bottom = MARGIN[0], MARGIN[1], 900 - MARGIN[2], 480 - MARGIN[3]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / ((last - first) or 1.0)
        up = (flat(y) - low) / ((high - low) or 1.0)
        return left + across * (right - left), bottom - up * (bottom - top)

    for tick in range(5):
        height = low + (high - low) * tick / 4
        y = bottom - (bottom - top) * tick / 4
        draw.line([(left, y), (right, y)], fill=FAINT)
        draw.text((6, y - 6), f"{10**height if logarithmic else height:.4g}", fill=INK)
        x = left + (right - left) * tick / 4
        draw.text((x - 14, bottom + 8), f"{first + (last - first) * tick / 4:.0f}", fill=INK)
    for name, level in levels.items():
        y = place(first, level)[1]
        draw.line([(left, y), (right, y)], fill=(190, 60, 40))
        draw.text((right - 110, y + 2), f"{name} {level:.3g}", fill=(190, 60, 40))
    draw.line([place(x, y) for x, y in points], fill=LINE, width=2)
    draw.text((left, 8), f"{title}, step {last:.0f}: {points[-1][1]:.4g}", fill=INK)
    return canvas


def matrix(scores: Any, side: int = 512) -> Image.Image:
    """The similarity matrix (N, N) as a picture: pictures down, texts across, darker is closer.

    A net that has learned shows a dark diagonal on pale ground; one at chance shows an even grey.
    """
    values = _array(scores)
    low, high = float(values.min()), float(values.max())
    share = (values - low) / ((high - low) or 1.0)
    pale, dark = np.array(PAPER, np.float32), np.array((12, 50, 105), np.float32)
    pixels = np.round(pale + share[..., None] * (dark - pale)).astype(np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)


def save_png(picture: Image.Image, path: Path | str) -> Path:
    """Write a PNG whole or not at all, over an older one."""
    data = BytesIO()
    picture.save(data, format="PNG")
    return write_whole(Path(path), data.getvalue(), force=True)


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu().float() if hasattr(values, "detach") else values, np.float32)
