"""Hard negatives: captions that are false of a picture by one small thing, and pairs of scenes that differ by it.

A net that treats a caption as a bag of words cannot tell "a cat to the left of a dog" from "a dog to the left of a cat"
(Yuksekgonul et al. 2023; Thrush et al. 2022). Each change is made to the scene, and the changed scene is captioned with
the same random numbers, so that caption and negative differ in what was changed and hardly in anything else. A negative
is kept only where parsing it finds something that is not true of the scene (graphs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cartouche.config import CartoucheError
from cartouche.data import palette
from cartouche.data.captions import LANGUAGES, Manner, caption
from cartouche.data.emoji import Drawing
from cartouche.data.graphs import Lexicon, is_true, scene_graph
from cartouche.data.scenes import Composer, Placed, Scene, rng_of, tintable

CHANGES = ("colours", "relation", "counts", "count")
"""Those that make pairs of scenes."""
COLOURING = 0xB0DE
TRIES = 200  # scenes looked at for one that can be changed
SAYING = Manner(style=0.5, background=1.0, colour=1.0, place=1.0, keyword=0.0)
"""What binds is always said."""
_NO = {"en": "no", "fr": "pas de"}


def bound(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with a colour of its own for every object that can take one, none of them the background's."""
    free = [name for name in palette.NAMES if name not in scene.background.colours]
    names = rng.permutation(free).tolist()
    colour: dict[str, str] = {}
    for placed in scene.objects:
        if tintable(placed.drawing):
            colour.setdefault(placed.drawing.concept, names[len(colour)])
    return replace(scene, objects=tuple(replace(p, tint=colour.get(p.drawing.concept, p.tint)) for p in scene.objects))


def changed(scene: Scene, change: str, rng: np.random.Generator, others: Sequence[Drawing] = ()) -> Scene | None:
    """The scene with one small thing otherwise, drawable as it stands; None where the change cannot be made.

    change: "colours" (of two things, or of a thing and the ground, swapped), "relation" (two things in each other's
    place), "counts" (of two kinds, swapped), "count" (one thing less) or "name" (a thing of `others` in its place).
    """
    makers: dict[str, Callable[[], Scene | None]] = {
        "colours": lambda: _colours(scene),
        "relation": lambda: _swapped(scene) if len(scene.objects) == 2 else None,
        "counts": lambda: _swapped(scene) if len(scene.objects) > 2 else None,
        "count": lambda: _fewer(scene, rng),
        "name": lambda: _renamed(scene, others, rng),
    }
    return makers[change]()


def _colours(scene: Scene) -> Scene | None:
    """Two things' colours swapped, or a lone kind's with the background's."""
    first, *rest = _kinds(scene)
    if not all(tintable(p.drawing) and p.tint for p in (first, *rest[:1])) or len(rest) > 1:
        return None
    if rest:
        swap = {first.drawing.concept: rest[0].tint, rest[0].drawing.concept: first.tint}
        if first.tint == rest[0].tint:
            return None
        return replace(scene, objects=tuple(replace(p, tint=swap[p.drawing.concept]) for p in scene.objects))
    ground = scene.background
    if ground.split or ground.colours[0] == first.tint:
        return None
    other = replace(ground, colours=(first.tint,), shades=(palette.COLOURS[first.tint].rgb,))
    return replace(scene, background=other, objects=tuple(replace(p, tint=ground.colours[0]) for p in scene.objects))


def _swapped(scene: Scene) -> Scene | None:
    """Two kinds of things in each other's places: who lies where, or how many there are of each, is turned round."""
    kinds = _kinds(scene)
    if len(kinds) != 2:
        return None
    other = {kinds[0].drawing.concept: kinds[1], kinds[1].drawing.concept: kinds[0]}
    objects = []
    for placed in scene.objects:
        new = other[placed.drawing.concept]
        objects.append(replace(new, box=_fitted(new.drawing, placed.box)))
    return replace(scene, objects=tuple(objects))


def _fewer(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """One less of a kind of which there are several."""
    several = [i for i, p in enumerate(scene.objects) if scene.counts()[p.drawing.concept] > 1]
    if not several:
        return None
    gone = several[int(rng.integers(len(several)))]
    return replace(scene, objects=tuple(p for i, p in enumerate(scene.objects) if i != gone))


def _renamed(scene: Scene, others: Sequence[Drawing], rng: np.random.Generator) -> Scene | None:
    """Something else, of another family, in place of one kind of things."""
    there = {p.drawing.family for p in scene.objects}
    free = [d for d in others if d.family not in there and d.style == scene.style] if others else []
    if not free:
        return None
    kinds = _kinds(scene)
    old, new = kinds[int(rng.integers(len(kinds)))].drawing.concept, free[int(rng.integers(len(free)))]
    objects = (
        Placed(new, _fitted(new, p.box), tint=p.tint if tintable(new) else "") if p.drawing.concept == old else p
        for p in scene.objects
    )
    return replace(scene, objects=tuple(objects))


def _kinds(scene: Scene) -> list[Placed]:
    """The first object of each concept."""
    return list({p.drawing.concept: p for p in reversed(scene.objects)}.values())[::-1]


def _fitted(drawing: Drawing, box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The largest box of the drawing's shape inside `box`, in its middle."""
    x0, y0, x1, y1 = box
    w0, h0 = drawing.bbox[2] - drawing.bbox[0], drawing.bbox[3] - drawing.bbox[1]
    scale = min((x1 - x0) / w0, (y1 - y0) / h0)
    w, h = max(1, round(w0 * scale)), max(1, round(h0 * scale))
    x, y = x0 + (x1 - x0 - w) // 2, y0 + (y1 - y0 - h) // 2
    return x, y, x + w, y + h


@dataclass
class Negatives:
    """Captions of scenes with hard negatives. drawings: what a scene's things may be mistaken for.

    Raises CartoucheError for fewer than five families of things.
    """

    drawings: Sequence[Drawing]

    def __post_init__(self) -> None:
        if len({drawing.family for drawing in self.drawings}) < 5:
            raise CartoucheError("fewer than five families of things given; a scene of four leaves none that is absent")
        self.lexicon = Lexicon(self.drawings)
        self._of_style: dict[str, list[Drawing]] = {}
        for drawing in self.drawings:
            if drawing.scene:
                self._of_style.setdefault(drawing.style, []).append(drawing)

    def captioned(self, scene: Scene, seed: int, language: str, count: int) -> tuple[str, list[str]]:
        """A true caption and `count` false ones, of as many sorts as the scene allows; pure in (scene, seed).

        Half of the true ones end in what is truly absent, so that "no" is not a sign of falsehood.
        """
        rng, said = rng_of(seed, 1), self.say(scene, seed, language)
        absent, present = (f"{said}, {_without(one.name(language), language)}" for one in self._two(scene, rng))
        sorts = [*CHANGES, "more", "name"]
        if rng.random() < 0.5:
            said, sorts = absent, [*sorts, "no"]
        made: list[str] = []
        for sort in rng.permutation(sorts).tolist():
            if len(made) == count:
                break
            if false := present if sort == "no" else self.false(scene, sort, seed, language, rng):
                made.append(false)
        while len(made) < count:
            made.append(self.false(scene, "name", seed, language, rng) or present)
        return said, made

    def say(self, scene: Scene, seed: int, language: str) -> str:
        """The scene's caption for this seed."""
        return caption(scene, rng_of(seed, 0), language, SAYING)

    def false(self, scene: Scene, change: str, seed: int, language: str, rng: np.random.Generator) -> str:
        """The caption of the changed scene, or "" where it cannot be changed so or the caption is still true."""
        others = self._of_style.get(scene.style, ())
        other = _more(scene, rng) if change == "more" else changed(scene, change, rng, others)
        if other is None:
            return ""
        said = self.say(other, seed, language)
        return "" if is_true(self.lexicon.parse(said, language), scene_graph(scene, language)) else said

    def _two(self, scene: Scene, rng: np.random.Generator) -> tuple[Drawing, Drawing]:
        """Something that is not in the scene, and something that is."""
        there = {p.drawing.family for p in scene.objects}
        absent = next(d for d in self._any(rng) if d.family not in there)
        return absent, scene.objects[int(rng.integers(len(scene.objects)))].drawing

    def _any(self, rng: np.random.Generator) -> Iterator[Drawing]:
        while True:
            yield self.drawings[int(rng.integers(len(self.drawings)))]


def _more(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """One more of a kind, said but not drawable: it has no place of its own."""
    counts = scene.counts()
    fit = [p for p in _kinds(scene) if counts[p.drawing.concept] < 4]
    if not fit:
        return None
    return replace(scene, objects=(*scene.objects, fit[int(rng.integers(len(fit)))]))


def _without(name: str, language: str) -> str:
    elided = language == "fr" and name[0].lower() in "aeiouyàâéèêîïôœ"
    return f"pas d'{name}" if elided else f"{_NO[language]} {name}"


@dataclass(frozen=True)
class Pair:
    """As Winoground has them (Thrush et al. 2022): captions[i] is true of scenes[i] and false of the other.

    Both captions are of one language and seed.
    """

    scenes: tuple[Scene, Scene]
    captions: tuple[str, str]
    change: str
    language: str
    seed: int


def pair(scene: Scene, change: str, negatives: Negatives, seed: int, language: str) -> Pair | None:
    """Two scenes and two captions, each true of its own scene and false of the other; None where there is no such."""
    other = changed(scene, change, rng_of(seed, 2))
    if other is None:
        return None
    captions = tuple(negatives.say(one, seed, language) for one in (scene, other))
    graphs = [negatives.lexicon.parse(said, language) for said in captions]
    truths = [scene_graph(one, language) for one in (scene, other)]
    right = all(is_true(graphs[i], truths[j]) == (i == j) for i in range(2) for j in range(2))
    return Pair((scene, other), (captions[0], captions[1]), change, language, seed) if right else None


@dataclass(frozen=True)
class Pairs:
    """Pairs without end, things coloured, the kinds of change in turn; `pairs[i]` is a pure function of i."""

    composer: Composer
    negatives: Negatives

    def __getitem__(self, number: int) -> Pair:
        change, stream = CHANGES[number % len(CHANGES)], self.composer.seed
        language = LANGUAGES[int(rng_of(stream, number).integers(len(LANGUAGES)))]
        for index in range(number * TRIES, (number + 1) * TRIES):
            scene = bound(self.composer[index], rng_of(stream ^ COLOURING, index))
            if found := pair(scene, change, self.negatives, (stream << 40) + number, language):
                return found
        raise CartoucheError(f"none of {TRIES} scenes can be changed in its {change}; give a mixture with more in it")
