"""Answers to the questions of questions.py, read off a scene: the grammar backwards."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from cartouche.data import palette
from cartouche.data.captions import LANGUAGES, STYLES, countable, plural, side_of, spoken
from cartouche.data.emoji import Drawing
from cartouche.data.questions import RELATIONS, SAID, SIDES, YES
from cartouche.data.scenes import Placed, Scene

Families = Mapping[str, str]
"""The family of every name, single and several, in lower case."""


def families(drawings: Iterable[Drawing], language: str) -> dict[str, str]:
    """What the names that a question may hold stand for."""
    known: dict[str, str] = {}
    spoken(language)
    for one in drawings:
        name = one.name(language).lower()
        known.setdefault(name, one.family)
        if countable(one, language):
            known.setdefault(plural(name, language), one.family)
    return known


def answer(question: str, scene: Scene, language: str, known: Families) -> str | None:
    """What is true of the scene; None for a question of no known form, about an unknown name, or without an answer."""
    text = " ".join(question.lower().split())
    for kind, pattern in _patterns(language):
        if found := pattern.fullmatch(text):
            parts = _Parts(scene, language, known, found.groupdict())
            if said := _ANSWERS[kind](parts):
                return said
    return None


@lru_cache(maxsize=len(LANGUAGES))
def _patterns(language: str) -> list[tuple[str, re.Pattern[str]]]:
    """Every phrasing as a pattern, those that leave least open first."""
    found = [(kind, phrase) for kind, phrases in SAID[language].items() for phrase in phrases]
    found.sort(key=lambda one: (one[1].count("{"), -len(re.sub(r"{\w+}", "", one[1]))))
    colours = palette.NAMES if language == "en" else tuple(one.nom for one in palette.COLOURS.values())
    holes = {
        "name": "(?P<name>.+)",
        "names": "(?P<name>.+)",
        "of_names": "(?:de |d')(?P<name>.+)",
        "other": "(?P<other>.+)",
        "count": r"(?P<count>\d+)",
        "side": f"(?P<side>{'|'.join(RELATIONS[language].values())})",
        "half": f"(?P<half>{'|'.join(SIDES[language].values())})",
        "colour": f"(?P<colour>{'|'.join(colours)})",
    }
    return [
        (kind, re.compile(re.escape(phrase).replace(r"\{", "{").replace(r"\}", "}").format(**holes)))
        for kind, phrase in found
    ]


class _Parts:
    """A question taken apart, and the scene it is about."""

    def __init__(self, scene: Scene, language: str, known: Families, given: dict[str, str]) -> None:
        self.scene, self.language, self.known, self.given = scene, language, known, given
        self.side = next((side for side, said in RELATIONS[language].items() if said == given.get("side")), "")

    def colour(self, name: str) -> str:
        return name if self.language == "en" else palette.COLOURS[name].nom

    def called(self, part: str = "name") -> list[int] | None:
        """Which objects have the name; None where nobody knows it."""
        family = self.known.get(self.given[part])
        if family is None:
            return None
        return [i for i, one in enumerate(self.scene.objects) if one.drawing.family == family]

    def yes(self, true: bool) -> str:
        return YES[self.language][true]


def _what(parts: _Parts) -> str | None:
    return parts.scene.objects[0].drawing.name(parts.language) if parts.scene.objects else None


def _what_beside(parts: _Parts) -> str | None:
    for j in parts.called() or ():
        for i, one in enumerate(parts.scene.objects):
            if i != j and parts.scene.relation(i, j) == parts.side:
                return one.drawing.name(parts.language)
    return None


def _count(parts: _Parts) -> str | None:
    found = parts.called()
    return None if found is None else str(len(found))


def _colour(parts: _Parts) -> str | None:
    seen = [_main_colour(parts.scene.objects[i]) for i in parts.called() or ()]
    return parts.colour(seen[0]) if seen and seen[0] else None


def _where(parts: _Parts) -> str | None:
    """Of two things, the side of the other one; of one, the side of the picture."""
    found, scene = parts.called(), parts.scene
    if not found:
        return None
    others = [j for j in range(len(scene.objects)) if j not in found]
    side = scene.relation(found[0], others[0]) if others else side_of(scene.objects[found[0]], scene.size)
    return SIDES[parts.language].get(side)


def _where_from(parts: _Parts) -> str | None:
    found, others = parts.called(), parts.called("other")
    return SIDES[parts.language].get(parts.scene.relation(found[0], others[0])) if found and others else None


def _is_there(parts: _Parts) -> str | None:
    found = parts.called()
    return None if found is None else parts.yes(bool(found))


def _is_coloured(parts: _Parts) -> str | None:
    found = parts.called()
    if found is None:
        return None
    seen = [_main_colour(parts.scene.objects[i]) for i in found]
    return parts.yes(any(one and parts.colour(one) == parts.given["colour"] for one in seen))


def _is_beside(parts: _Parts) -> str | None:
    found, others = parts.called(), parts.called("other")
    if found is None or others is None:
        return None
    return parts.yes(any(parts.scene.relation(i, j) == parts.side for i in found for j in others if i != j))


def _are_there(parts: _Parts) -> str | None:
    found = parts.called()
    return None if found is None else parts.yes(str(len(found)) == parts.given["count"])


def _is_on(parts: _Parts) -> str | None:
    return parts.yes(parts.given["colour"] in [parts.colour(one) for one in parts.scene.background.colours])


def _half(parts: _Parts) -> str | None:
    """The colour of one half of the ground; of a plain ground, its colour."""
    side = next((side for side, said in SIDES[parts.language].items() if said == parts.given["half"]), "")
    return parts.colour(parts.scene.background.colours[-1 if side in ("right", "below") else 0])


def _main_colour(thing: Placed) -> str:
    """The colour that covers most of a thing, or the first of its several."""
    named = [name for name, _ in thing.drawing.colors if name in palette.COLOURS]
    return thing.colour or (named[0] if named else "")


_ANSWERS: dict[str, Callable[[_Parts], str | None]] = {
    "what": _what,
    "what beside": _what_beside,
    "count": _count,
    "count one": _count,
    "count all": lambda parts: str(len(parts.scene.objects)),
    "colour": _colour,
    "where": _where,
    "where from": _where_from,
    "is there": _is_there,
    "is coloured": _is_coloured,
    "is beside": _is_beside,
    "are there": _are_there,
    "is on": _is_on,
    "style": lambda parts: STYLES[parts.scene.style][LANGUAGES.index(parts.language)],
    "background": lambda parts: parts.colour(parts.scene.background.colours[0]),
    "half": _half,
}
