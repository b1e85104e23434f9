"""Scene graphs: what a caption says as facts that can be compared, and what is true of a scene as the same facts.

A caption of our grammar (captions.py), also one that a net wrote in that manner, is parsed back into its graph: the
things with their numbers, colours and sides, how they lie to each other, the style and the background. Things are told
apart by family, since some sets draw several concepts with the same picture. A word that the grammar does not know is
passed over.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from cartouche.data import palette
from cartouche.data.captions import LANGUAGES, NUMBERS, STYLES, countable, plural, sayable_colour, side_of, spoken
from cartouche.data.emoji import Drawing
from cartouche.data.scenes import Scene

Fact = tuple[Any, ...]
Words = tuple[str, ...]

_WORD = re.compile(r"[^\W\d_]+|\d|[^\w\s]|_")
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_COLOURS = {"en": {c.name: c.name for c in palette.COLOURS.values()}, "fr": {c.nom: c.name for c in
            palette.COLOURS.values()}}  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """`count` things of one family; count 0 says that there is none. place: the side of the picture, or ""."""

    family: str
    count: int = 1
    colour: str = ""
    place: str = ""


@dataclass(frozen=True)
class Graph:
    """What a caption says, or what is true of a scene. relations: (family, "left" | "right" | "above" | "below",
    family); style as the pack spells it; background and split as in scenes.Background; "" and () where not said."""

    things: tuple[Thing, ...] = ()
    relations: tuple[tuple[str, str, str], ...] = ()
    style: str = ""
    background: tuple[str, ...] = ()
    split: str = ""

    def facts(self) -> frozenset[Fact]:
        """Each thing, number, colour, side, relation (one of its two spellings), the style and the background."""
        counts: Counter[str] = Counter()
        for thing in self.things:
            counts[thing.family] += thing.count
        facts: set[Fact] = {("absent", thing.family) for thing in self.things if not thing.count}
        facts |= {("thing", family) for family, count in counts.items() if count}
        facts |= {("count", family, count) for family, count in counts.items() if count}
        facts |= {("colour", t.family, t.colour) for t in self.things if t.colour}
        facts |= {("place", t.family, t.place) for t in self.things if t.place}
        facts |= {(a, w, b) if w in ("left", "above") else (b, _OPPOSITE[w], a) for a, w, b in self.relations}
        facts |= {("style", self.style)} if self.style else set()
        facts |= {("background", self.split, *self.background)} if self.background else set()
        return frozenset(facts)


def graph_f1(said: Graph, truth: Graph) -> float:
    """F1 of the facts said against the true ones: 2 |said and true| / (|said| + |true|), as SPICE scores captions
    (Anderson et al. 2016, section 3.2); 1 where both say nothing."""
    a, b = said.facts(), truth.facts()
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0


def is_true(said: Graph, truth: Graph) -> bool:
    """Whether nothing is said that is false: each fact said is a true one, and what is called absent is absent."""
    true = truth.facts()
    return all(("thing", fact[1]) not in true if fact[0] == "absent" else fact in true for fact in said.facts())


def scene_graph(scene: Scene, language: str = "en") -> Graph:
    """All that a caption in `language` could truly say of the scene."""
    things: list[Thing] = []
    for concept, count in scene.counts().items():
        placed = next(p for p in scene.objects if p.drawing.concept == concept)
        sayable = count == 1 or language == "fr" or countable(placed.drawing)
        colour = sayable_colour(placed, language) if sayable else ""
        place = side_of(placed, scene.size) if len(scene.objects) == 1 else ""
        things.append(Thing(placed.drawing.family, count, colour, place))
    relations = []
    if len(scene.objects) == len(things) == 2 and (where := scene.relation(0, 1)):
        relations.append((scene.objects[0].drawing.family, where, scene.objects[1].drawing.family))
    ground = scene.background
    return Graph(tuple(things), tuple(relations), scene.style, ground.colours, ground.split)


def words_of(text: str) -> Words:
    """The words of a text, whatever its case and spacing: letters together, digits and signs one by one."""
    return tuple(_WORD.findall(unicodedata.normalize("NFC", text).lower()))


class Lexicon:
    """The names of drawings, so that captions about them can be parsed."""

    def __init__(self, drawings: Iterable[Drawing]) -> None:
        self.names: dict[str, dict[Words, str]] = {language: {} for language in LANGUAGES}
        self.plurals: dict[str, dict[Words, str]] = {language: {} for language in LANGUAGES}
        for drawing in drawings:
            for language in LANGUAGES:
                name = drawing.name(language)
                self.names[language].setdefault(words_of(name), drawing.family)
                if countable(drawing, language):
                    self.plurals[language].setdefault(words_of(plural(name, language)), drawing.family)
        known = (len(words) for table in (*self.names.values(), *self.plurals.values()) for words in table)
        self.longest = max(known, default=0)

    def parse(self, caption: str, language: str = "en") -> Graph:
        """The graph of a caption in `language`; CartoucheError for a language that the grammar does not have."""
        spoken(language)
        rest, style = _style(" ".join(words_of(caption)), language)
        rest, background, split = _background(rest, language)
        things, relations = _Objects(self, tuple(rest.split()), language).read()
        return Graph(things, relations, style, background, split)

    def find(self, words: Words, start: int, table: dict[Words, str]) -> tuple[int, str]:
        """The longest name of the table at `start`: where it ends and its family; (0, "") where there is none."""
        for end in range(min(len(words), start + self.longest), start, -1):
            if words[start:end] in table:
                return end, table[words[start:end]]
        return 0, ""


_STYLE_WORDS = [{" ".join(words_of(said[i])): name for name, said in STYLES.items()} for i in (0, 1)]
_EITHER = {language: "(" + "|".join(known) + ")" for language, known in _COLOURS.items()}
_STYLE = {
    "en": re.compile(rf"(?:in )?\b({'|'.join(_STYLE_WORDS[0])}) style\b"),
    "fr": re.compile(rf"(?:dans le )?\bstyle ({'|'.join(_STYLE_WORDS[1])})\b"),
}
_C = _EITHER["en"], _EITHER["fr"]
_SPLITS = {
    "en": [
        ("left", re.compile(rf"\b(?:background|half) {_C[0]} on the left (?:and|, half) {_C[0]} on the right\b")),
        ("above", re.compile(rf"\b(?:background|half) {_C[0]} above (?:and|, half) {_C[0]} below\b")),
    ],
    "fr": [
        ("left", re.compile(rf"\b(?:fond|moitié) {_C[1]} à gauche (?:et|, moitié) {_C[1]} à droite\b")),
        ("above", re.compile(rf"\b(?:fond|moitié) {_C[1]} en haut (?:et|, moitié) {_C[1]} en bas\b")),
    ],
}
_PLAIN = {
    "en": re.compile(rf"\b(?:on an? )?{_C[0]} background\b|\bon {_C[0]}(?= ,|$)"),
    "fr": re.compile(rf"\b(?:sur )?fond {_C[1]}(?= ,|$)"),
}


def _style(text: str, language: str) -> tuple[str, str]:
    """The text without its style clause, and the style."""
    found = _STYLE[language].search(text)
    if not found:
        return text, ""
    return _cut(text, found), _STYLE_WORDS[LANGUAGES.index(language)][found.group(1)]


def _background(text: str, language: str) -> tuple[str, tuple[str, ...], str]:
    """The text without its background clause, the colours and how they are split."""
    names = _COLOURS[language]
    for split, pattern in _SPLITS[language]:
        if found := pattern.search(text):
            return _cut(text, found), (names[found.group(1)], names[found.group(2)]), split
    if found := _PLAIN[language].search(text):
        return _cut(text, found), (names[next(one for one in found.groups() if one)],), ""
    return text, (), ""


def _cut(text: str, found: re.Match[str]) -> str:
    return f"{text[: found.start()]} , {text[found.end() :]}"


_PHRASES: dict[str, dict[Words, tuple[str, str]]] = {
    "en": {
        **{tuple(f"to the {side} of".split()): ("relation", side) for side in ("left", "right")},
        **{(side,): ("relation", side) for side in ("above", "below")},
        **{tuple(f"on the {side}".split()): ("side", side) for side in ("left", "right")},
        ("at", "the", "top"): ("side", "above"),
        ("at", "the", "bottom"): ("side", "below"),
        ("and",): ("and", ""),
    },
    "fr": {
        ("à", "gauche"): ("side", "left"),
        ("à", "droite"): ("side", "right"),
        ("en", "haut"): ("side", "above"),
        ("en", "bas"): ("side", "below"),
        ("et",): ("and", ""),
    },
}
_TIMES = {"en": ("times", "×"), "fr": ("fois", "×")}
_NONE: dict[str, tuple[Words, ...]] = {"en": (("no",),), "fr": (("pas", "de"), ("pas", "d", "'"))}
_ARTICLES = {"en": ("a", "an"), "fr": ()}


class _Objects:
    """The clause of the things, read from left to right; what cannot be read is passed over word by word."""

    def __init__(self, lexicon: Lexicon, words: Words, language: str) -> None:
        self.lexicon, self.words, self.language = lexicon, words, language
        self.names, self.plurals = lexicon.names[language], lexicon.plurals[language]
        self.colours = _COLOURS[language]

    def read(self) -> tuple[tuple[Thing, ...], tuple[tuple[str, str, str], ...]]:
        marks: list[tuple[str, Any]] = []
        at = 0
        readers: tuple[Callable[[int], tuple[int, Any]], ...] = (self.absent, self.counted, self.phrase, self.single)
        while at < len(self.words):
            end, mark = next((found for found in (read(at) for read in readers) if found[0]), (at + 1, None))
            if mark is not None:
                marks.append(mark)
            at = end
        return _joined(marks)

    def phrase(self, at: int) -> tuple[int, Any]:
        """A relation, a side, or the conjunction; names that begin with the same words go first."""
        name_end, _ = self.lexicon.find(self.words, at, self.names)
        for words, mark in _PHRASES[self.language].items():
            end = at + len(words)
            if self.words[at:end] == words and end > name_end:
                return end, mark
        return 0, None

    def absent(self, at: int) -> tuple[int, Any]:
        """ "no cat", "pas de chat"; a name such as "no entry" is a name."""
        for words in _NONE[self.language]:
            start = at + len(words)
            if self.words[at:start] == words:
                end, family = self.lexicon.find(self.words, start, self.names)
                if end > self.lexicon.find(self.words, at, self.names)[0]:
                    return end, ("thing", Thing(family, 0))
        return 0, None

    def counted(self, at: int) -> tuple[int, Any]:
        """ "two red apples", "2 times dice", "deux pommes de couleur rouge"."""
        word = self.words[at]
        count = NUMBERS[self.language].index(word) if word in NUMBERS[self.language] else 0
        count = count or (int(word) if word in "1234" else 0)
        if not count:
            return 0, None
        start, table = at + 1, self.plurals
        if self.words[start : start + 1] and self.words[start] in _TIMES[self.language]:
            start, table = start + 1, self.names
        end, family, colour = self.coloured(start, table)
        further = end > self.lexicon.find(self.words, at, self.names)[0]  # "two hearts" may be one name
        return (end, ("thing", Thing(family, count, colour))) if further else (0, None)

    def single(self, at: int) -> tuple[int, Any]:
        """ "a red apple", "apple", "pomme de couleur rouge": whichever reading goes furthest."""
        starts = [at, at + 1] if self.words[at] in _ARTICLES[self.language] else [at]
        end, family, colour = max((self.coloured(start, self.names) for start in starts), key=lambda one: one[0])
        return (end, ("thing", Thing(family, 1, colour))) if end else (0, None)

    def coloured(self, start: int, table: dict[Words, str]) -> tuple[int, str, str]:
        """A name with its colour, in English before and in French after it; a colour in the name belongs to it."""
        end, family = self.lexicon.find(self.words, start, table)
        if self.language == "fr":
            after = self.words[end : end + 3]
            if end and after[:2] == ("de", "couleur") and after[2:] and after[2] in self.colours:
                return end + 3, family, self.colours[after[2]]
            return end, family, ""
        if start < len(self.words) and self.words[start] in self.colours:
            further, other = self.lexicon.find(self.words, start + 1, table)
            if further > end:
                return further, other, self.colours[self.words[start]]
        return end, family, ""


def _joined(marks: list[tuple[str, Any]]) -> tuple[tuple[Thing, ...], tuple[tuple[str, str, str], ...]]:
    """Things and relations from the marks in their order: "a cat above a dog", "a cat on the left and a dog on ..."."""
    things: list[Thing] = []
    sides: list[str] = []
    between = ""
    for kind, value in marks:
        if kind == "thing":
            things.append(value)
            sides.append("")
        elif kind == "relation" and len(things) == 1:
            between = value
        elif kind == "side" and things:
            sides[-1] = value
    there = [(t, side) for t, side in zip(things, sides, strict=True) if t.count]
    none = [t for t in things if not t.count]
    joined = between or any(kind == "and" for kind, _ in marks)
    if not joined:  # what follows a lone thing without a conjunction is a keyword
        there = there[:1]
    if len(there) == 2 and (between or all(side for _, side in there)):
        (a, side), (b, _) = there
        return (a, b, *none), ((a.family, between or side, b.family),)
    return (*(Thing(t.family, t.count, t.colour, side) for t, side in there), *none), ()
