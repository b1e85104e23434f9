"""The eleven basic colours: their names in English and French, and where they lie in RGB.

Eleven because that is how many basic colour terms English and French have (Berlin & Kay, 1969), which is also what
the drawings' own colour labels use; a picture of the built-in world can always be described with these words alone.
"""

from typing import NamedTuple

import numpy as np


class Colour(NamedTuple):
    """A colour with its names; rgb in 0..255."""

    name: str
    nom: str
    rgb: tuple[int, int, int]


COLOURS: dict[str, Colour] = {
    c.name: c
    for c in (
        Colour("red", "rouge", (214, 48, 49)),
        Colour("orange", "orange", (243, 146, 34)),
        Colour("yellow", "jaune", (250, 219, 60)),
        Colour("green", "vert", (46, 160, 78)),
        Colour("blue", "bleu", (45, 110, 220)),
        Colour("purple", "violet", (128, 60, 180)),
        Colour("pink", "rose", (250, 152, 195)),
        Colour("brown", "marron", (121, 76, 44)),
        Colour("black", "noir", (18, 18, 20)),
        Colour("gray", "gris", (142, 146, 152)),
        Colour("white", "blanc", (252, 252, 252)),
    )
}
NAMES: tuple[str, ...] = tuple(COLOURS)
JITTER = 10  # a named background varies by at most this much per channel, well inside the space between names


def shade(name: str, rng: np.random.Generator) -> tuple[int, int, int]:
    """One shade of a named colour: its centre moved by at most JITTER in each channel."""
    r, g, b = np.clip(np.array(COLOURS[name].rgb) + rng.integers(-JITTER, JITTER + 1, 3), 0, 255).tolist()
    return r, g, b


def nearest(rgb: np.ndarray) -> str:
    """The basic colour whose centre is nearest to rgb (3,), Euclidean in 0..255."""
    centres = np.array([COLOURS[n].rgb for n in NAMES], float)
    return NAMES[int(((centres - np.asarray(rgb, float)) ** 2).sum(1).argmin())]
