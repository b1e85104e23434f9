"""Reading by recalling: the detector says where things are, the ground what is no thing, and memory what each is.

    recaller = Recaller(Locator(), Memory.load(folder))
    recaller.things(pictures)        # every thing with its drawing, box and mask
    recaller.caption(pictures)       # a true caption of what was read, by the grammar of data/captions.py

For the built-in world, whose grounds are plain and whose drawings are few enough to be remembered, this is far surer
than the nets that generalise (read/describe.py); outside of it, it is worth nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cartouche import images
from cartouche.config import CartoucheError
from cartouche.data import palette
from cartouche.data.answers import answer, families
from cartouche.data.captions import FULL, LANGUAGES, STYLES, caption, spoken
from cartouche.data.dialogue import MOST_OBJECTS, described
from cartouche.data.scenes import Background, Placed, Scene, rng_of
from cartouche.metrics.boxes import overlap_coefficient
from cartouche.read.describe import Said, settled
from cartouche.read.locate import Found, Locator, apart
from cartouche.read.match import batches
from cartouche.read.memory import Look, Memory, Recalled

OVERLAP = 0.5  # of the smaller of two boxes
THRESHOLD = 0.05
"""The least score of a thing: it counts most scenes right that no figure is reported of (benchmarks/reading.py)."""
FREE, SOLID = 0.04, 0.16
"""A pixel that differs from the ground by less than this part of a channel is ground; by more, it is a thing."""
ONE_INK = 0.06  # how far colours lie beside the line from ground to ink where a thing is drawn in one
EMPTY = 0.04  # a box of which a smaller part is no ground holds nothing
RIM = 0.015  # of the picture's side: this much is free of things in every scene
LARGEST = 512  # the longer side of what is looked at; larger pictures are shrunk first
UNITS = 128  # the side of the square that a scene is measured in
NOTHING = {"en": "nothing on {}", "fr": "rien sur fond {}"}


class Thing(NamedTuple):
    """One thing. score: how sure it is that something is there; box: left, top, right, bottom in the picture's pixels;
    mask: (H, W) bool; recalled: which drawing it is, and how sure that is."""

    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray
    recalled: Recalled


class Reading(NamedTuple):
    """A picture as a scene, measured in UNITS; and how sure the name of each of its objects is, 0 to 1."""

    scene: Scene
    sure: tuple[float, ...]

    @property
    def confidence(self) -> float:
        """The mean over its objects; 0 where there are none."""
        return float(np.mean(self.sure)) if self.sure else 0.0


class Ground(NamedTuple):
    """What things stand on: its colours, a picture of it alone (H, W, 3) in 0..1, and how little of it every pixel of
    the true picture is, (H, W) in 0..1, 0 being ground."""

    background: Background
    plain: np.ndarray
    solid: np.ndarray


class Recaller:
    """A detector with a memory. threshold: the least score of a thing. Raises CartoucheError where it is not 0 to 1."""

    def __init__(self, locator: Locator, memory: Memory, threshold: float = THRESHOLD) -> None:
        if not 0 <= threshold <= 1:
            raise CartoucheError(f"threshold={threshold} given; choose 0 to 1")
        self.locator, self.memory, self.threshold = locator, memory, threshold
        self._names = tuple(dict.fromkeys(one.name_en for one in memory.drawings))
        self._families = lru_cache(len(LANGUAGES))(partial(families, memory.drawings))

    def look(self, pictures: Iterable[np.ndarray], threshold: float | None = None) -> list[list[Thing]]:
        """All things in pictures (H, W, 3) uint8, each of a size of its own, the surest first."""
        least = self.threshold if threshold is None else threshold
        found: list[list[Thing]] = []
        for some in batches(iter(pictures), self.locator.batch):
            small = [_shrunk(one) for one in some]
            boxes, scores = self.locator.scores(small, self._names)
            for picture, pixels, places, sure in zip(some, small, boxes, scores.max(-1), strict=True):
                found.append([_grown(one, picture.shape[:2]) for one in self._things(pixels, places, sure, least)])
        return found

    def knows(self, query: str, language: str) -> tuple[str, str] | None:
        """The family and the colour, "" for any, of a query such as "red apple"; None where no such name is known."""
        known, text = self._families(language), " ".join(query.lower().split())
        if text in known:
            return known[text], ""
        for colour in palette.COLOURS.values():
            name = text.removeprefix(f"{colour.name} ") if language == "en" else text.removesuffix(f" {colour.nom}")
            if name != text and name in known:
                return known[name], colour.name
        return None

    def find(
        self, pictures: Sequence[np.ndarray], queries: Sequence[str], threshold: float | None, language: str
    ) -> list[list[Found]]:
        """The things of pictures (H, W, 3) uint8 that queries name, which must all be known; the surest first."""
        wanted = [(query, *known) for query in queries if (known := self.knows(query, language)) is not None]
        found = []
        for pixels, things in zip(pictures, self.look(pictures, threshold), strict=True):
            here = []
            for one in things:
                family, colour = one.recalled.drawing.family, _colour(one, pixels)
                names = [query for query, name, ink in wanted if name == family and ink in ("", colour)]
                here += [Found(name, one.score, one.box, one.mask) for name in names[:1]]
            found.append(here)
        return found

    def read(self, pictures: np.ndarray) -> list[Reading]:
        """Pictures (B, 3, H, W) in [-1, 1] as scenes of MOST_OBJECTS things at most."""
        seen = [_shrunk(one) for one in images.to_uint8(pictures)]
        return [_reading(one, things[:MOST_OBJECTS]) for one, things in zip(seen, self.look(seen), strict=True)]

    def caption(self, pictures: np.ndarray, language: str = "en") -> list[Said]:
        """What stands in each picture, (B, 3, H, W) in [-1, 1], in one sentence."""
        return [said(one, language) for one in self.read(pictures)]

    def answers(self, pictures: np.ndarray, questions: Sequence[str], language: str = "en") -> list[Said]:
        """The answer to a question about each picture, (B, 3, H, W) in [-1, 1]: of the forms of data/questions.py.

        "" where a question has another form, or a name that is not remembered.
        """
        told, names = [], self._families(language)
        for one, question in zip(self.read(pictures), questions, strict=True):
            text = answer(question, one.scene, language, names)
            told.append(Said(text, one.confidence) if text else Said("", 0.0))
        return told

    def scenes(self, pictures: np.ndarray) -> list[dict[str, Any]]:
        """What is in each picture, (B, 3, H, W) in [-1, 1]: see `told`."""
        return [told(one, pictures.shape[2:]) for one in self.read(pictures)]

    def _things(self, pixels: np.ndarray, boxes: np.ndarray, scores: np.ndarray, least: float) -> list[Thing]:
        """The things of one picture: boxes (P, 4) in 0..1, and scores (P,) of the name that fits each best."""
        height, width = pixels.shape[:2]
        likely = np.flatnonzero(scores >= least)
        corners = boxes[likely].clip(0, 1) * np.array([width, height] * 2)
        below = ground(pixels)
        fitted = [_fitted(one, below.solid > 0.5) for one in corners]
        full = [i for i, one in enumerate(fitted) if one is not None]
        tight = np.array([fitted[i] for i in full], int).reshape(-1, 4)
        sure = scores[likely[full]]
        kept = apart(tight, sure, OVERLAP, overlap_coefficient)  # things never overlap: none within or around another
        return [self._thing(pixels, below, tight[i], float(sure[i])) for i in kept]

    def _thing(self, pixels: np.ndarray, below: Ground, box: np.ndarray, score: float) -> Thing:
        x0, y0, x1, y1 = box.tolist()
        colour, alpha = pixels[y0:y1, x0:x1].astype(np.float32) / 255, below.solid[y0:y1, x0:x1]
        ink = _in_one_ink(colour, below.plain[y0:y1, x0:x1])
        recalled = self.memory.recall(Look(colour * alpha[..., None], alpha), *ink)
        mask = np.zeros(below.solid.shape, bool)
        mask[y0:y1, x0:x1] = alpha > 0.5
        return Thing(score, (float(x0), float(y0), float(x1), float(y1)), mask, recalled)


def ground(pixels: np.ndarray) -> Ground:
    """The ground of a picture (H, W, 3) uint8, read off its rim: one colour, or two beside or above each other."""
    height, width = pixels.shape[:2]
    rim = max(1, round(RIM * min(height, width)))
    x = pixels.astype(np.float32) / 255
    top, bottom, left, right = x[:rim], x[-rim:], x[:, :rim], x[:, -rim:]
    sides = [_middle(left), _middle(right), _middle(top), _middle(bottom)]
    names = [palette.nearest(255 * one) for one in sides]
    split = "left" if names[0] != names[1] else "above" if names[2] != names[3] else ""
    first, second = {"left": (0, 1), "above": (2, 3), "": (0, 0)}[split]
    around = np.concatenate([one.reshape(-1, 3) for one in (top, bottom, left, right)])
    plain = np.broadcast_to(_middle(around), x.shape)
    if split:
        plain = np.array(plain)
        halves = (slice(None), slice(width // 2, None)) if split == "left" else (slice(height // 2, None), slice(None))
        plain[:], plain[halves] = sides[first], sides[second]
    away = np.abs(x - plain).max(-1)
    solid = np.clip((away - FREE) / (SOLID - FREE), 0, 1)
    shades = [tuple(np.rint(255 * sides[i]).astype(int).tolist()) for i in dict.fromkeys((first, second))]
    colours = tuple(names[i] for i in dict.fromkeys((first, second)))
    return Ground(Background(colours, tuple(shades), split), plain, solid)


def _middle(pixels: np.ndarray) -> np.ndarray:
    """The median colour of some pixels (..., 3)."""
    return np.asarray(np.median(pixels.reshape(-1, 3), axis=0))


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) uint8 whose longer side is LARGEST at most."""
    height, width = pixels.shape[:2]
    if max(height, width) <= LARGEST:
        return pixels
    scale = LARGEST / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BOX))


def _grown(thing: Thing, size: tuple[int, ...]) -> Thing:
    """A thing of a shrunk picture in the picture as it was, of (H, W) pixels."""
    if thing.mask.shape == size:
        return thing
    across, down = size[1] / thing.mask.shape[1], size[0] / thing.mask.shape[0]
    x0, y0, x1, y1 = thing.box
    mask = Image.fromarray(thing.mask).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return thing._replace(box=(x0 * across, y0 * down, x1 * across, y1 * down), mask=np.asarray(mask))


def _fitted(corners: np.ndarray, solid: np.ndarray) -> tuple[int, int, int, int] | None:
    """A box (4,) in pixels made to fit the thing in it: drawn in to what is no ground, then let out while it cuts it.

    Things have ground around them, so a box that has found a part of one ends as the box of the whole. None where
    there is nothing but ground.
    """
    height, width = solid.shape
    x0, y0 = np.floor(corners[:2]).astype(int).tolist()
    x1, y1 = np.ceil(corners[2:]).astype(int).tolist()
    inside = solid[y0:y1, x0:x1]
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if inside.sum() < EMPTY * max(1, inside.size):
        return None
    x0, x1 = x0 + int(columns[0]), x0 + int(columns[-1]) + 1
    y0, y1 = y0 + int(rows[0]), y0 + int(rows[-1]) + 1
    grown = True
    while grown:
        grown = False
        if x0 > 0 and solid[y0:y1, x0 - 1].any():
            x0, grown = x0 - 1, True
        if y0 > 0 and solid[y0 - 1, x0:x1].any():
            y0, grown = y0 - 1, True
        if x1 < width and solid[y0:y1, x1].any():
            x1, grown = x1 + 1, True
        if y1 < height and solid[y1, x0:x1].any():
            y1, grown = y1 + 1, True
    return x0, y0, x1, y1


def _in_one_ink(colour: np.ndarray, plain: np.ndarray) -> tuple[Look, ...]:
    """A thing of one colour as if it were drawn in black, as line drawings are remembered; nothing for any other.

    colour, plain: (h, w, 3) in 0..1, the thing on its ground, and the ground alone. Of one colour is what lies on the
    straight line from the ground's colour to the ink's.
    """
    away = colour - plain
    lengths = np.linalg.norm(away, axis=-1)
    ink = away[lengths >= 0.9 * lengths.max()].mean(0)
    alpha = np.clip(away @ ink / max(float(ink @ ink), 1e-6), 0, 1)
    beside = np.linalg.norm(away - alpha[..., None] * ink, axis=-1)
    if np.quantile(beside, 0.95) > ONE_INK:
        return ()
    return (Look(np.zeros_like(colour), alpha.astype(np.float32)),)


def _placed(thing: Thing, box: np.ndarray, pixels: np.ndarray) -> Placed:
    """A thing as a scene has it; its tint is the colour one sees, where the drawing is known in another."""
    drawing, mirrored = thing.recalled[:2]
    seen = _colour(thing, pixels)
    plain = bool(drawing.colors) and drawing.colors[0][1] >= 0.9
    tint = seen if plain and seen != drawing.colors[0][0] else ""
    return Placed(drawing, (int(box[0]), int(box[1]), int(box[2]), int(box[3])), mirrored, tint)


def _colour(thing: Thing, pixels: np.ndarray) -> str:
    """The basic colour that lies in the middle of a thing's, "" of a thing without pixels."""
    return palette.nearest(_middle(pixels[thing.mask])) if thing.mask.any() else ""


def _reading(pixels: np.ndarray, things: Sequence[Thing]) -> Reading:
    """The things of a picture (H, W, 3) uint8 as a scene, in the style whose drawings are nearest to them."""
    height, width = pixels.shape[:2]
    unit = np.array([UNITS / width, UNITS / height] * 2)
    placed = tuple(_placed(one, np.rint(np.array(one.box) * unit).astype(int), pixels) for one in things)
    styles = things[0].recalled.styles if things else STYLES
    away = {style: sum(one.recalled.styles[style] for one in things) for style in styles}
    style = min(away, key=lambda style: away[style])
    scene = Scene(UNITS, style, ground(pixels).background, placed)
    return Reading(scene, tuple(one.recalled.sure for one in things))


def said(reading: Reading, language: str) -> Said:
    """What stands in a picture, in one sentence."""
    scene = reading.scene
    if scene.objects:
        return Said(caption(scene, rng_of(0, 0), language, FULL), reading.confidence)
    colour = palette.COLOURS[scene.background.colours[0]]
    return Said(NOTHING[spoken(language)].format(colour.name if language == "en" else colour.nom), 0.0)


def told(reading: Reading, size: tuple[int, ...]) -> dict[str, Any]:
    """What is in a picture of (H, W) pixels as `Describer.scenes` tells it; each object has a confidence of its own."""
    scene = reading.scene
    whole = settled(described(scene), size) | {"confidence": reading.confidence}
    for thing in whole["objects"]:
        named = [one.drawing.name_en.lower() == thing["name"] for one in scene.objects]
        thing["confidence"] = float(np.mean([sure for sure, same in zip(reading.sure, named, strict=True) if same]))
    return whole
