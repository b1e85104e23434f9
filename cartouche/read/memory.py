"""Drawings remembered as a few numbers each: a thing is named by the drawing that it is nearest to.

A drawing is cut to its edges, shrunk to SIDE x SIDE with its transparency, and summed up in the directions in which
drawings differ most (principal components; Turk and Pentland 1991, "Eigenfaces"), one byte each: thirty-two bytes a
drawing. The nearest one is looked for by comparing with all (Cover and Hart 1967). Nothing is learned by trial: what it
has seen once it knows by name and style, and of what it has never seen it knows nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cartouche import files
from cartouche.config import CartoucheError, read_json
from cartouche.data.captions import STYLES
from cartouche.data.emoji import Drawing
from cartouche.weights import safetensors

FOLDER, WEIGHTS, CONCEPTS = "memory", "drawings.safetensors", "concepts.json"
SIDE = 16
COLOUR_WEIGHT, SHAPE_WEIGHT = 1.5, 2.0
"""How much colours, and the ratio of width to height, count beside the outline."""
FIT = 3  # the directions are found from every so many drawings
SHAPES = {"mean": 1, "basis": 2, "scale": 1, "codes": 2, "concept": 1, "style": 1}
TOLD = ("concept", "family", "group", "name_en", "name_fr", "scene")


class Look(NamedTuple):
    """A cut-out: colour (h, w, 3) in 0..1, already times alpha (h, w) in 0..1."""

    colour: np.ndarray
    alpha: np.ndarray


class Recalled(NamedTuple):
    """The drawing that a thing is nearest to; mirrored or not; and how sure that is.

    sure: 0 to 1, by how much nearer it is than any drawing of another family (the ratio test of Lowe 2004, section
    7.1): 0 where another is as near, 1 where it is the very picture. styles: how far the nearest drawing of every style
    is, which several things of one style have a say in together.
    """

    drawing: Drawing
    mirrored: bool
    sure: float
    styles: Mapping[str, float]


@dataclass(frozen=True)
class Memory:
    """N drawings: codes (N, K) int8 times scale (K,) along basis (K, D) from mean (D,); drawings names them."""

    mean: np.ndarray
    basis: np.ndarray
    scale: np.ndarray
    codes: np.ndarray
    drawings: tuple[Drawing, ...]

    @classmethod
    def of(
        cls, drawings: Sequence[Drawing], pixels: Callable[[Drawing], np.ndarray], numbers: int = 32, fit: int = FIT
    ) -> Memory:
        """Of drawings whose cut-outs `pixels` gives, (h, w, 4) uint8; `numbers` bytes are kept of each."""
        seen = np.stack([_of_cutout(pixels(one)) for one in drawings])
        mean = seen.mean(0)
        _, _, basis = np.linalg.svd(seen[::fit] - mean, full_matrices=False)
        basis = basis[:numbers].astype(np.float16).astype(np.float32)
        along = (seen - mean) @ basis.T
        scale = np.maximum(np.abs(along).max(0), 1e-6) / 127
        return cls(mean, basis, scale, np.rint(along / scale).astype(np.int8), tuple(drawings))

    @cached_property
    def _places(self) -> np.ndarray:
        return self.codes.astype(np.float32) * self.scale

    @cached_property
    def _styles(self) -> dict[str, np.ndarray]:
        """The numbers of the drawings of every style."""
        styles = np.array([one.style for one in self.drawings])
        return {style: np.flatnonzero(styles == style) for style in dict.fromkeys(styles.tolist())}

    @cached_property
    def _families(self) -> np.ndarray:
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(one.family, len(numbers)) for one in self.drawings])

    def numbers(self, look: Look) -> np.ndarray:
        """What a cut-out looks like, as (K,) numbers."""
        return np.asarray((_summed_up(*look) - self.mean) @ self.basis.T)

    def recall(self, *looks: Look) -> Recalled:
        """The drawing nearest to any of the looks of one thing, or to their mirror images."""
        both = [Look(c[:, ::turn], a[:, ::turn]) for c, a in looks for turn in (1, -1)]
        along = np.stack([self.numbers(one) for one in both])  # (2 looks, K), every other one mirrored
        away = np.linalg.norm(self._places[:, None] - along[None], axis=-1)  # (N, V)
        nearest, view = np.unravel_index(int(away.argmin()), away.shape)
        others = away[self._families != self._families[nearest]]
        ratio = float(away[nearest, view] / max(float(others.min()), 1e-9)) if len(others) else 0.0
        styles = {style: float(away[those].min()) for style, those in self._styles.items()}
        return Recalled(self.drawings[int(nearest)], bool(view % 2), 1.0 - min(1.0, ratio), styles)

    def save(self, folder: Path | str) -> Path:
        """Write the numbers and the names into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        concepts = {one.concept: one for one in self.drawings}
        places = {concept: i for i, concept in enumerate(concepts)}
        styles = list(STYLES)
        tensors = {
            "mean": self.mean.astype(np.float16),
            "basis": self.basis.astype(np.float16),
            "scale": self.scale.astype(np.float32),
            "codes": self.codes,
            "concept": np.array([places[one.concept] for one in self.drawings], np.int16),
            "style": np.array([styles.index(one.style) for one in self.drawings], np.uint8),
        }
        safetensors.save(folder / WEIGHTS, tensors)
        colours = [[one.colors[0][0], round(one.colors[0][1], 2)] if one.colors else [] for one in self.drawings]
        about = [{name: getattr(one, name) for name in TOLD} for one in concepts.values()]
        text = json.dumps({"concepts": about, "colours": colours}, ensure_ascii=False, separators=(",", ":"))
        files.write_whole(folder / CONCEPTS, text.encode(), force=True)
        return folder

    @classmethod
    def load(cls, folder: Path | str) -> Memory:
        """As saved. Raises CartoucheError where it is damaged."""
        folder = Path(folder)
        told, found = read_json(folder / CONCEPTS), safetensors.load_numpy(folder / WEIGHTS)
        try:
            _check(found)
            concepts = [{name: one[name] for name in TOLD} for one in told["concepts"]]
            styles = list(STYLES)
            drawings = tuple(
                _drawing(concepts[int(concept)], styles[int(style)], colour)
                for concept, style, colour in zip(found["concept"], found["style"], told["colours"], strict=True)
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CartoucheError(f"the memory in {folder} is damaged: {error}; make it again") from error
        mean, basis, scale = (found[name].astype(np.float32) for name in ("mean", "basis", "scale"))
        return cls(mean, basis, scale, found["codes"], drawings)


def _of_cutout(pixels: np.ndarray) -> np.ndarray:
    """A drawing's numbers before they are reduced. pixels: (h, w, 4) uint8, colours not yet times alpha."""
    x = pixels.astype(np.float32) / 255
    return _summed_up(x[..., :3] * x[..., 3:], x[..., 3])


def _summed_up(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Outline, colours against grey, and shape of a cut-out, as one vector (4 SIDE^2 + 1,)."""
    height, width = alpha.shape
    layers = [alpha, *(COLOUR_WEIGHT * (colour[..., i] - 0.5 * alpha) for i in range(3))]
    small = [Image.fromarray(np.ascontiguousarray(one)).resize((SIDE, SIDE), Image.Resampling.BOX) for one in layers]
    shape = SHAPE_WEIGHT * np.log(width / height)
    return np.append(np.concatenate([np.asarray(one).ravel() for one in small]), np.float32(shape)).astype(np.float32)


def _check(found: dict[str, np.ndarray]) -> None:
    """Refuse tensors that do not belong together."""
    if {name: found[name].ndim for name in SHAPES} != SHAPES:
        raise ValueError("tensors of other shapes")
    (K, D), N = found["basis"].shape, len(found["codes"])
    lengths = [len(found[name]) for name in ("mean", "scale", "concept", "style")]
    if lengths != [D, K, N, N] or found["codes"].shape[1] != K or D != 4 * SIDE**2 + 1 or not N:
        raise ValueError("tensors of other sizes")
    if found["codes"].dtype != np.int8:
        raise ValueError(f"codes of {found['codes'].dtype}")
    if not all(np.isfinite(found[name]).all() for name in ("mean", "basis", "scale")):
        raise ValueError("numbers that are not finite")


def _drawing(concept: dict, style: str, colour: Sequence) -> Drawing:
    """What is known of a remembered drawing; its picture is not kept."""
    known = {name: str(concept[name]) for name in TOLD if name != "scene"}
    colours = ((str(colour[0]), float(colour[1])),) if colour else ()
    return Drawing(
        **known,
        key=f"{concept['concept']}/{style}",
        style=style,
        split="train",
        scene=bool(concept["scene"]),
        keywords_en=(),
        keywords_fr=(),
        colors=colours,
        bbox=(0, 0, 0, 0),
        shard="",
        offset=0,
        bytes=0,
    )
