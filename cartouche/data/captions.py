"""Captions of scenes in English and French: many ways to say what is there, none that says what is not.

A caption is a list of clauses joined by commas: the objects (alone, counted, listed or related), then perhaps the
style and the background. Every clause may be left out, none is ever false: a colour is said only when it covers most
of the drawing, a side only when it is clear, a plural only of names whose plural is regular. French names come
without article or gender (CLDR gives neither), so the French grammar needs none.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cartouche.config import unknown
from cartouche.data import palette
from cartouche.data.emoji import Drawing
from cartouche.data.scenes import Background, Placed, Scene

STYLES: dict[str, tuple[str, str]] = {  # name of the pack: (English, French)
    "3d": ("3D", "3D"),
    "color": ("gradient", "dégradé"),
    "flat": ("flat", "plat"),
    "outline": ("outline", "contour"),
    "noto": ("noto", "noto"),
    "blob": ("blob", "blob"),
    "twemoji": ("twemoji", "twemoji"),
    "emojitwo": ("emojitwo", "emojitwo"),
    "fxemoji": ("fxemoji", "fxemoji"),
}
NUMBERS = {"en": ("", "one", "two", "three", "four"), "fr": ("", "un", "deux", "trois", "quatre")}
LANGUAGES = ("en", "fr")
_COLOUR_WORDS = {
    *palette.NAMES,
    *(c.nom for c in palette.COLOURS.values()),
    "grey",
    "verte",
    "bleue",
    "noire",
    "blanche",
    "violette",
    "grise",
}


@dataclass(frozen=True)
class Manner:
    """How talkative a caption is: the chance of each clause that may be left out."""

    style: float = 0.75
    background: float = 0.85
    colour: float = 0.35
    place: float = 0.7
    keyword: float = 0.1


FULL = Manner(style=1.0, background=1.0, colour=0.5, place=1.0, keyword=0.0)


def caption(scene: Scene, rng: np.random.Generator, language: str = "en", manner: Manner | None = None) -> str:
    """One true caption of the scene, drawn from the grammar of the language ("en" | "fr")."""
    manner = manner or Manner()
    say = _English(rng, manner) if spoken(language) == "en" else _French(rng, manner)
    clauses = [say.objects(scene)]
    background = say.background(scene.background) if rng.random() < manner.background else ""
    style = say.style(scene.style) if rng.random() < manner.style else ""
    if background.startswith(say.joined):
        clauses[0] += " " + background
        background = ""
    clauses += [c for c in ((style, background) if rng.random() < 0.5 else (background, style)) if c]
    return ", ".join(clauses)


def spoken(language: str) -> str:
    """The language itself. Raises CartoucheError where nothing is said in it."""
    if language not in LANGUAGES:
        raise unknown("language", language, LANGUAGES)
    return language


def countable(drawing: Drawing, language: str = "en") -> bool:
    """Whether the name has a regular plural, so that "two NAMEs" can be said."""
    words = drawing.name(language).split()
    limit = 2 if language == "en" else 1
    last = words[-1].lower()
    return (
        len(words) <= limit
        and last.replace("-", "").isalpha()
        and not last.endswith("s")
        and last not in _IRREGULAR.split()
    )


def sayable_colour(thing: Placed, language: str = "en") -> str:
    """The colour that may be said of the object, "" where it has none or its name already says one."""
    named = set(thing.drawing.name(language).lower().replace("-", " ").split()) & _COLOUR_WORDS
    return "" if named else thing.colour


def an(phrase: str) -> str:
    """An English phrase with its indefinite article."""
    vowel = phrase[0].lower() in "aeiou" and not phrase.startswith(("uni", "one", "eu"))
    return f"{'an' if vowel else 'a'} {phrase}"


def plural(name: str, language: str) -> str:
    """The regular plural of a countable name."""
    if language == "fr":
        return name if name[-1] in "sxz" else name + ("x" if name.endswith(("eau", "au", "eu")) else "s")
    if name.endswith(("ch", "sh", "x", "z")) or name in {"tomato", "potato", "mango"}:
        return name + "es"
    if name.endswith("y") and name[-2:-1] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def side_of(thing: Placed, size: int) -> str:
    """The side of the picture a lone object is clearly on, or ""."""
    x, y = (c / size - 0.5 for c in thing.centre)
    if max(abs(x), abs(y)) < 0.12 or max(abs(x), abs(y)) < 1.5 * min(abs(x), abs(y)):
        return ""
    if abs(x) > abs(y):
        return "left" if x < 0 else "right"
    return "above" if y < 0 else "below"


_IRREGULAR = (  # names whose plural is irregular, or that cannot be counted
    "mouse ox person man woman fish sheep child foot tooth leaf wolf knife loaf deer bison children people rice bread "
    "money hair luggage cheese butter salt fire water snow music sushi bacon honey milk lightning fog wind cheval "
    "animal journal oeil œil"
)


class _English:
    language: ClassVar[str] = "en"
    joined: ClassVar[str] = "on "
    sides: ClassVar[dict[str, str]] = {
        "left": "on the left",
        "right": "on the right",
        "above": "at the top",
        "below": "at the bottom",
    }
    relations: ClassVar[dict[str, str]] = {
        "left": "to the left of",
        "right": "to the right of",
        "above": "above",
        "below": "below",
    }
    conjunction: ClassVar[str] = "and"

    def __init__(self, rng: np.random.Generator, manner: Manner):
        self.rng, self.manner = rng, manner

    def choose(self, *options: str) -> str:
        return options[int(self.rng.integers(len(options)))]

    def objects(self, scene: Scene) -> str:
        things, counts = scene.objects, scene.counts()
        if len(things) == 1:
            return self.single(scene)
        if len(counts) == 1:
            return self.counted(things[0], len(things))
        if len(things) == 2 and scene.relation(0, 1) and self.rng.random() < self.manner.place:
            return self.related(scene)
        return self.listed(scene, counts)

    def single(self, scene: Scene) -> str:
        thing = scene.objects[0]
        words = self.thing(thing)
        keywords = thing.drawing.keywords(self.language)
        if keywords and self.rng.random() < self.manner.keyword:
            words += ", " + keywords[int(self.rng.integers(len(keywords)))]
        side = side_of(thing, scene.size)
        return f"{words} {self.sides[side]}" if side and self.rng.random() < self.manner.place else words

    def thing(self, thing: Placed) -> str:
        name, colour = thing.drawing.name(self.language), self.colour(thing)
        phrase = f"{colour} {name}" if colour else name
        if (
            (" " in phrase and not colour and len(name.split()) > 2)
            or name.endswith("s")
            or ":" in name
            or self.rng.random() < 0.15
        ):
            return phrase
        return an(phrase)

    def colour(self, thing: Placed) -> str:
        """The colour word, where there is one to say: always for a tint, sometimes for a natural colour."""
        sayable = sayable_colour(thing, self.language)
        if not sayable or (not thing.tint and self.rng.random() > self.manner.colour):
            return ""
        colour = palette.COLOURS[sayable]
        return colour.name if self.language == "en" else colour.nom

    def counted(self, thing: Placed, count: int) -> str:
        name, number = thing.drawing.name(self.language), self.choose(NUMBERS[self.language][count], str(count))
        if not countable(thing.drawing, self.language):
            return self.choose(f"{number} times {name}", f"{number} × {name}")
        return " ".join(w for w in (number, self.colour(thing), plural(name, self.language)) if w)

    def related(self, scene: Scene) -> str:
        a, b = (0, 1) if self.rng.random() < 0.5 else (1, 0)
        one, other, where = self.thing(scene.objects[a]), self.thing(scene.objects[b]), scene.relation(a, b)
        back = scene.relation(b, a)
        return self.choose(
            f"{one} {self.relations[where]} {other}", f"{one} {self.sides[where]} and {other} {self.sides[back]}"
        )

    def listed(self, scene: Scene, counts: dict[str, int]) -> str:
        first = {p.drawing.concept: p for p in reversed(scene.objects)}
        parts = [self.thing(first[c]) if n == 1 else self.counted(first[c], n) for c, n in counts.items()]
        parts = [parts[i] for i in self.rng.permutation(len(parts))]
        return f"{', '.join(parts[:-1])} {self.conjunction} {parts[-1]}"

    def style(self, style: str) -> str:
        return self.choose(f"{STYLES[style][0]} style", f"in {STYLES[style][0]} style")

    def background(self, ground: Background) -> str:
        first = ground.colours[0]
        if not ground.split:
            article = "an" if first == "orange" else "a"
            return self.choose(f"on {article} {first} background", f"{first} background", f"on {first}")
        second = ground.colours[1]
        here, there = ("on the left", "on the right") if ground.split == "left" else ("above", "below")
        return self.choose(
            f"background {first} {here} and {second} {there}", f"half {first} {here}, half {second} {there}"
        )


class _French(_English):
    language = "fr"
    joined = "sur "
    sides: ClassVar[dict[str, str]] = {"left": "à gauche", "right": "à droite", "above": "en haut", "below": "en bas"}
    conjunction = "et"

    def thing(self, thing: Placed) -> str:
        colour = self.colour(thing)
        return thing.drawing.name_fr + (f" de couleur {colour}" if colour else "")

    def counted(self, thing: Placed, count: int) -> str:
        colour, number = self.colour(thing), self.choose(NUMBERS["fr"][count], str(count))
        name = thing.drawing.name_fr
        words = (
            f"{number} {plural(name, 'fr')}"
            if countable(thing.drawing, "fr")
            else self.choose(f"{number} fois {name}", f"{number} × {name}")
        )
        return words + (f" de couleur {colour}" if colour else "")

    def related(self, scene: Scene) -> str:
        a, b = (0, 1) if self.rng.random() < 0.5 else (1, 0)
        one, other = self.thing(scene.objects[a]), self.thing(scene.objects[b])
        return f"{one} {self.sides[scene.relation(a, b)]} et {other} {self.sides[scene.relation(b, a)]}"

    def style(self, style: str) -> str:
        return self.choose(f"style {STYLES[style][1]}", f"dans le style {STYLES[style][1]}")

    def background(self, ground: Background) -> str:
        noms = [palette.COLOURS[c].nom for c in ground.colours]
        if not ground.split:
            return self.choose(f"sur fond {noms[0]}", f"fond {noms[0]}")
        here, there = ("à gauche", "à droite") if ground.split == "left" else ("en haut", "en bas")
        return self.choose(
            f"fond {noms[0]} {here} et {noms[1]} {there}", f"moitié {noms[0]} {here}, moitié {noms[1]} {there}"
        )
