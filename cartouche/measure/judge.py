"""SceneEval's judge: what it sees in a picture, what it finds right of what was demanded, and how often it errs.

The judge is the referee, trained apart from the CLIP that conditions the drawing. Its errors were counted on true
scenes, pictures composed of drawings so that all is known of them, and lie beside its weights as confusion.json
(`benchmarks/sceneeval.py` makes it). They are those of scenes: on drawings that are unlike any scene it may err more.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cartouche import images
from cartouche.config import CartoucheError
from cartouche.data import palette
from cartouche.data.scenes import Scene
from cartouche.measure.prompts import SIZE, Demand, names
from cartouche.metrics.intervals import Tally
from cartouche.read.referee import Reading, RefereeReader

CONFUSION = "confusion.json"
ADDED = "added objects"
"""The clause that more is in the picture than was asked for."""
TOLERANCE = 0.1  # of two things' sizes: so far apart they must be before one lies to the left of the other

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Thing:
    """An object in a picture: its name's concept, its colour, its box in pixels, how sure it is."""

    concept: str
    colour: str
    box: Box
    score: float = 1.0


@dataclass(frozen=True)
class Seen:
    """A picture as the judge sees it, or as it is: things with the surest first."""

    things: tuple[Thing, ...]
    style: str
    background: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        things = [[one.concept, one.colour, [round(x, 1) for x in one.box], round(one.score, 3)] for one in self.things]
        return {"things": things, "style": self.style, "background": list(self.background)}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Seen:
        """What `to_dict` wrote."""
        things = tuple(Thing(name, colour, tuple(box), score) for name, colour, box, score in given["things"])
        return cls(things, given["style"], tuple(given["background"]))


@dataclass(frozen=True)
class Errors:
    """Of one clause: how often the judge said yes where it was true, and no where it was false."""

    sensitivity: Tally
    specificity: Tally


class Judge:
    """The referee of a folder, with what is known of its errors.

    confusion: Errors by (line, clause), empty where they were never counted, or for other weights than these; `note`
    says so then. Raises CartoucheError where the folder holds no referee.
    """

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        self.reader = RefereeReader(folder, among=names())
        self.hash = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:10]
        self.confusion: dict[tuple[str, str], Errors] = {}
        self.note = self._read(folder / CONFUSION)

    def see(self, pixels: np.ndarray) -> list[Seen]:
        """Pictures (B, H, W, 3) uint8, of any size, which are brought to the size of scenes first."""
        if pixels.shape[1:3] != (SIZE, SIZE):
            pixels = np.stack([np.asarray(Image.fromarray(one).resize((SIZE, SIZE))) for one in pixels])
        readings = self.reader.read(images.from_uint8(pixels))
        return [_seen(reading, one) for reading, one in zip(readings, pixels, strict=True)]

    def _read(self, path: Path) -> str:
        again = "count them with benchmarks/sceneeval.py"
        if not path.is_file():
            return f"the errors of the judge in {path.parent} were never counted, so no rate is corrected; {again}"
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            counted = {
                (line, clause): Errors(Tally(*one["sensitivity"]), Tally(*one["specificity"]))
                for line, clauses in stored["lines"].items()
                for clause, one in clauses.items()
            }
            judge = stored["judge"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CartoucheError(f"{path} is damaged ({error!r}); {again}") from error
        if judge != self.hash:
            return f"{path} is of another judge ({judge}, this is {self.hash}), no rate is corrected; {again}"
        self.confusion = counted
        return ""


# what is there


def truth_of(scene: Scene) -> Seen:
    """What a perfect judge would see in a scene's picture."""
    things = tuple(Thing(one.drawing.concept, one.colour, one.box) for one in scene.objects)
    return Seen(things, scene.style, scene.background.colours)


def _seen(reading: Reading, pixels: np.ndarray) -> Seen:
    things = tuple(Thing(one.concept, colour_in(one.box, pixels), one.box, one.score) for one in reading.objects)
    return Seen(things, reading.style, reading.background)


def colour_in(box: Box, pixels: np.ndarray) -> str:
    """The commonest colour name of what stands out from the ground in a box of pixels (H, W, 3) uint8.

    The ground is the median of the box's rim; what is at least half as far from it as the farthest few stands out,
    which leaves out the blended rims of thin lines.
    """
    h, w = pixels.shape[:2]
    x0, y0 = max(0, round(box[0]) - 1), max(0, round(box[1]) - 1)
    x1, y1 = min(w, max(round(box[2]) + 1, x0 + 3)), min(h, max(round(box[3]) + 1, y0 + 3))
    cut = pixels[y0:y1, x0:x1].astype(float)
    if not cut.size:
        return ""
    rim = np.concatenate([cut[0], cut[-1], cut[:, 0], cut[:, -1]])
    far = np.linalg.norm(cut - np.median(rim, axis=0), axis=-1)
    shown = cut[far >= max(0.5 * float(np.quantile(far, 0.95)), 1.0)]
    return Counter(palette.nearest(one) for one in shown).most_common(1)[0][0] if len(shown) else ""


# what is right


def verdict(demand: Demand, seen: Seen) -> dict[str, bool]:
    """Each clause of the demand, right or wrong; "whole" is what the line's rate counts.

    As in GenEval a name counts wherever it is seen, and things that were not asked for do no harm; they are counted
    apart, as "added objects", which is a fault: more things than were asked for. Counting wants so many of the asked
    name; "number" is how many things there are, and "colour" whether the asked colours are there, whatever the names.
    """
    said = {ADDED: len(seen.things) > len(demand.plan.concepts)}
    return said | _RULES[demand.form](demand, seen)


def found(demand: Demand, seen: Seen) -> list[Thing | None]:
    """For each asked name, with its colour if one is asked, a thing that is so or None; no thing is used twice."""
    left, hits = list(seen.things), []
    for concept, colour in zip(demand.plan.concepts, demand.plan.colours, strict=True):
        hit = next((one for one in left if one.concept == concept and colour in ("", one.colour)), None)
        if hit is not None:
            left.remove(hit)
        hits.append(hit)
    return hits


def _objects(demand: Demand, seen: Seen) -> dict[str, bool]:
    return {"whole": all(found(demand, seen))}


def _counting(demand: Demand, seen: Seen) -> dict[str, bool]:
    wanted = len(demand.plan.concepts)
    named = sum(one.concept == demand.plan.concepts[0] for one in seen.things)
    return {"whole": named == wanted, "number": len(seen.things) == wanted}


def _colours(demand: Demand, seen: Seen) -> dict[str, bool]:
    shown = Counter(one.colour for one in seen.things)
    return _objects(demand, seen) | {"colour": Counter(demand.plan.colours) <= shown}


def _position(demand: Demand, seen: Seen) -> dict[str, bool]:
    a, b = found(demand, seen)
    return {"whole": a is not None and b is not None and demand.plan.relation in relations(a.box, b.box)}


def relations(a: Box, b: Box) -> set[str]:
    """How box a lies to box b, by GenEval's rule: "left", "right", "above", "below", two of them, or none.

    The offset of the centres, less a tenth of both sizes in each direction, is more than half of their distance.
    """
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a, b
    dx, dy = (ax0 + ax1 - bx0 - bx1) / 2, (ay0 + ay1 - by0 - by1) / 2
    far = float(np.hypot(dx, dy))
    slack_x, slack_y = TOLERANCE * (ax1 - ax0 + bx1 - bx0), TOLERANCE * (ay1 - ay0 + by1 - by0)
    there = {
        "left": -dx - slack_x > far / 2,
        "right": dx - slack_x > far / 2,
        "above": -dy - slack_y > far / 2,
        "below": dy - slack_y > far / 2,
    }
    return {word for word, true in there.items() if true}


_RULES = {
    "single object": _objects,
    "two objects": _objects,
    "counting": _counting,
    "colours": _colours,
    "position": _position,
    "colour attribution": _colours,
    "style": lambda demand, seen: {"whole": seen.style == demand.plan.style},
    "background": lambda demand, seen: {"whole": seen.background == (demand.plan.background,)},
    "negative prompt": lambda demand, seen: {"whole": not set(seen.background) & set(demand.avoided)},
}


# how often it errs


def counted(judged: Sequence[tuple[str, Mapping[str, bool], Mapping[str, bool]]]) -> dict[str, dict[str, Errors]]:
    """Errors by line and clause, from (line, the judge's verdict, the true verdict) of pictures that are known."""
    tallies: dict[str, dict[str, dict[bool, list[int]]]] = {}
    for line, said, true in judged:
        for clause, truth in true.items():
            tally = tallies.setdefault(line, {}).setdefault(clause, {True: [0, 0], False: [0, 0]})[truth]
            tally[0] += said[clause] == truth
            tally[1] += 1
    return {
        line: {clause: Errors(Tally(*one[True]), Tally(*one[False])) for clause, one in clauses.items()}
        for line, clauses in tallies.items()
    }
