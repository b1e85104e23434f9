"""A sheet of judged pictures, each with its prompt, the verdict and what the judge saw, for a person to check it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cartouche import images
from cartouche.measure.prompts import SIZE, names
from cartouche.measure.sceneeval import Judged
from cartouche.read.annotate import plain

COLUMNS, GAP, LETTERS, LINE = 8, 6, 30, 11  # letters in a line of text, pixels it is high
WIDTH, HEIGHT = SIZE + 28, SIZE + 7 * LINE + 8
RIGHT, WRONG = (30, 140, 60), (200, 40, 40)


def sheet(judged: Sequence[Judged], columns: int = COLUMNS) -> np.ndarray:
    """(H, W, 3) uint8: the pictures in rows; framed green where the judge finds the prompt obeyed, red where not."""
    columns = min(columns, len(judged))
    rows = -(-len(judged) // columns)
    page = Image.new("RGB", (columns * (WIDTH + GAP) + GAP, rows * (HEIGHT + GAP) + GAP), "white")
    for i, one in enumerate(judged):
        page.paste(_cell(one), (GAP + i % columns * (WIDTH + GAP), GAP + i // columns * (HEIGHT + GAP)))
    return np.asarray(page)


def _cell(one: Judged) -> Image.Image:
    right = one.verdict["whole"]
    cell = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(cell)
    left = (WIDTH - SIZE) // 2
    pen.rectangle((left - 2, 0, left + SIZE + 1, SIZE + 3), fill=RIGHT if right else WRONG)
    cell.paste(Image.fromarray(images.read_pixels(one.path)).resize((SIZE, SIZE)), (left, 2))
    prompt = one.demand.prompt + (f" | not: {one.demand.negative_prompt}" if one.demand.negative_prompt else "")
    lines = [(text, (0, 0, 0)) for text in textwrap.wrap(prompt, LETTERS)[:4]]
    lines += [("right" if right else "wrong", RIGHT if right else WRONG)]
    lines += [(text, (90, 90, 90)) for text in textwrap.wrap(_seen(one), LETTERS)[: 7 - len(lines)]]
    for i, (text, colour) in enumerate(lines):
        pen.text((2, SIZE + 6 + i * LINE), plain(text), colour, _font())
    return cell


def _seen(one: Judged) -> str:
    """What the judge sees, in words; colours of things only where they were asked for."""
    coloured = any(one.demand.plan.colours)
    things = [f"{thing.colour} {names()[thing.concept].en}" if coloured else names()[thing.concept].en
              for thing in one.seen.things]  # fmt: skip
    return f"sees {', '.join(things) or 'nothing'}; {one.seen.style}; {'/'.join(one.seen.background)}"


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=10)
