"""What the reader trains on: composed scenes with their truth, each sample a pure function of its number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cartouche.data import palette
from cartouche.data.captions import LANGUAGES, sayable_colour
from cartouche.data.emoji import Drawing, Pack
from cartouche.data.scenes import Placed, Scene, render, rng_of
from cartouche.data.streams import Scenes
from cartouche.images import from_uint8
from cartouche.text import Tokenizer
from cartouche.train.referee import MOST, roughen

ROUGH, QUERY = 0xB1, 0x9E
QUERIES = 3
ABSENT = 0.25  # of the texts to be masked name what is not there
COLOURED = 0.3  # of the queries speak of a colour, where there is one to speak of


class Families:
    """The families of a pack's drawings as numbers, and a name of each of their concepts in each language."""

    def __init__(self, pack: Pack, split: str, tokenizer: Tokenizer) -> None:
        self.number = {family: i for i, family in enumerate(sorted({d.family for d in pack.drawings}))}
        concepts = list({d.concept: d for d in pack.of(split)}.values())
        self.ids = tokenizer.batch([d.name(language) for language in LANGUAGES for d in concepts])  # (T, N)
        self.of_ids = np.array([self.number[d.family] for _ in LANGUAGES for d in concepts])


@dataclass
class Pointed:
    """Scenes with a query for each object: what train.reading.Detection takes, and with `masks` Segmentation."""

    scenes: Scenes
    families: Families
    tokenizer: Tokenizer

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene = self.scenes.composer[index]
        seed = self.scenes.composer.seed
        pixels, _ = render(self.scenes.pack, scene)
        image = roughen(from_uint8(pixels[None])[0], rng_of(seed ^ ROUGH, index))
        return {"image": image, **self.objects(scene, rng_of(seed ^ QUERY, index))}

    def objects(self, scene: Scene, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """there, boxes, family, colour, ids and said of the scene's objects, in MOST rows."""
        rows: dict[str, np.ndarray] = {
            "there": np.arange(MOST) < len(scene.objects),
            "boxes": np.zeros((MOST, 4), np.float32),
            **{name: np.full(MOST, -1, np.int64) for name in ("family", "colour", "said")},
        }
        texts = [""] * MOST
        for i, placed in enumerate(scene.objects):
            x0, y0, x1, y1 = placed.box
            rows["boxes"][i] = np.array([x0 + x1, y0 + y1, 2 * (x1 - x0), 2 * (y1 - y0)]) / (2 * scene.size)
            rows["family"][i] = self.families.number[placed.drawing.family]
            rows["colour"][i] = palette.NAMES.index(placed.colour) if placed.colour else -1
            texts[i], said = query(placed, rng)
            rows["said"][i] = palette.NAMES.index(said) if said else -1
        return rows | {"ids": np.stack([self.tokenizer.encode(text).ids for text in texts])}


def query(placed: Placed, rng: np.random.Generator) -> tuple[str, str]:
    """A text that is true of the object, in either language, and the colour it speaks of, or ""."""
    language = LANGUAGES[int(rng.integers(len(LANGUAGES)))]
    colour = sayable_colour(placed, language)
    said = colour if rng.random() < COLOURED else ""
    return phrase(placed.drawing, said, language), said


def phrase(drawing: Drawing, colour: str, language: str) -> str:
    """ "red apple", "pomme de couleur rouge"; without a colour the name alone."""
    name = drawing.name(language)
    if not colour:
        return name
    return f"{colour} {name}" if language == "en" else f"{name} de couleur {palette.COLOURS[colour].nom}"


@dataclass
class Masked:
    """Scenes with texts and what they mean as masks: what train.reading.Segmentation takes.

    ids (QUERIES, N) and mask (QUERIES, H, W) uint8: names of things there, one in four of a thing that is not.
    """

    scenes: Scenes
    drawings: Sequence[Drawing]
    tokenizer: Tokenizer

    def __getitem__(self, index: int) -> dict[str, Any]:
        composer = self.scenes.composer
        scene, rng = composer[index], rng_of(composer.seed ^ QUERY, index)
        pixels, masks = render(self.scenes.pack, scene)
        image = roughen(from_uint8(pixels[None])[0], rng_of(composer.seed ^ ROUGH, index))
        ids, meant = zip(*(self.text(scene, masks, rng) for _ in range(QUERIES)), strict=True)
        return {"image": image, "ids": np.stack(ids), "mask": np.stack(meant)}

    def text(self, scene: Scene, masks: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A text and the pixels (H, W) it means: those of every object of its family and colour."""
        placed = scene.objects[int(rng.integers(len(scene.objects)))]
        if rng.random() < ABSENT:
            other = self.drawings[int(rng.integers(len(self.drawings)))]
            placed = Placed(other, placed.box)
        text, said = query(placed, rng)
        family = placed.drawing.family
        meant = [p.drawing.family == family and (not said or p.colour == said) for p in scene.objects]
        return self.tokenizer.encode(text).ids, np.asarray(masks[meant].any(0), np.uint8)
