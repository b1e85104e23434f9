"""Questions about scenes with true answers, in English and French, in several phrasings each.

An answer is one word or a name: what a picture shows, a number in digits, a colour, a side, yes or no, a style. Answers
are spread, so that guessing without the picture earns little: yes and no each half of the time for every sort of
statement, numbers from 0 to 4, names and sides by turns. French names come without article or gender, so a French
question cites the name: "combien de chats ?", "de quelle couleur est ceci : chat ?".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cartouche.config import CartoucheError, unknown
from cartouche.data import palette
from cartouche.data.captions import LANGUAGES, STYLES, countable, plural, sayable_colour, side_of, spoken
from cartouche.data.emoji import Drawing
from cartouche.data.scenes import Placed, Scene

KINDS = ("what", "count", "colour", "where", "yes_no", "style", "background")
SIDES = {
    "en": {"left": "left", "right": "right", "above": "top", "below": "bottom"},
    "fr": {"left": "gauche", "right": "droite", "above": "haut", "below": "bas"},
}
COUNT_WEIGHTS = (0.35, 0.35, 0.9, 1.3, 1.6)  # of asking for 0, 1, 2, 3, 4 things: few scenes have many
RELATIONS = {
    "en": {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"},
    "fr": {"left": "à gauche de", "right": "à droite de", "above": "au-dessus de", "below": "au-dessous de"},
}
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Question:
    """kind: one of KINDS; text and answer in `language`."""

    kind: str
    text: str
    answer: str
    language: str


# fmt: off
SAID: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "what": ("what is this?", "what is in the picture?", "what do you see?", "what is shown?"),
        "what beside": ("what is {side} the {name}?", "what do you see {side} the {name}?"),
        "count": ("how many {names} are there?", "how many {names} do you see?", "count the {names}"),
        "count one": ("how many times {name}?", "how often is there: {name}?"),
        "count all": ("how many things are there?", "how many objects do you see?", "count all things"),
        "colour": ("what colour is the {name}?", "which colour does the {name} have?",
                   "what is the colour of the {name}?"),
        "where": ("where is the {name}?", "on which side is the {name}?", "at which side do you see the {name}?"),
        "where from": ("where is the {name}, seen from the {other}?", "at which side of the {other} is the {name}?"),
        "is there": ("is there a {name}?", "do you see a {name}?", "is a {name} in the picture?"),
        "is coloured": ("is the {name} {colour}?", "does the {name} have the colour {colour}?"),
        "is beside": ("is the {name} {side} the {other}?", "do you see the {name} {side} the {other}?"),
        "are there": ("are there exactly {count} {names}?", "do you see exactly {count} {names}?"),
        "is on": ("is the background {colour}?", "does the background have the colour {colour}?"),
        "style": ("which style is it?", "in what style is it drawn?", "what is the style?"),
        "background": ("what colour is the background?", "which colour does the background have?",
                       "what is behind: which colour?"),
        "half": ("what colour is the {half} half of the background?", "which colour is the background at the {half}?"),
    },
    "fr": {
        "what": ("qu'est-ce que c'est ?", "que montre l'image ?", "que voit-on ?", "qu'y a-t-il sur l'image ?"),
        "what beside": ("qu'y a-t-il {side} ceci : {name} ?", "que voit-on {side} ceci : {name} ?"),
        "count": ("combien {of_names} ?", "combien voit-on {of_names} ?", "combien y a-t-il {of_names} ?"),
        "count one": ("combien de fois {name} ?", "combien de fois voit-on ceci : {name} ?"),
        "count all": ("combien de choses y a-t-il ?", "combien d'objets voit-on ?", "combien de choses en tout ?"),
        "colour": ("de quelle couleur est ceci : {name} ?", "quelle couleur pour {name} ?"),
        "where": ("où se trouve ceci : {name} ?", "de quel côté voit-on ceci : {name} ?", "{name} : de quel côté ?"),
        "where from": ("par rapport à ceci : {other}, où se trouve {name} ?",
                       "de quel côté de ceci : {other}, voit-on {name} ?"),
        "is there": ("y a-t-il ceci : {name} ?", "voit-on ceci : {name} ?", "{name} : est-ce sur l'image ?"),
        "is coloured": ("{name} : est-ce de couleur {colour} ?", "voit-on ceci : {name} de couleur {colour} ?"),
        "is beside": ("voit-on {name} {side} ceci : {other} ?", "{name} est-il {side} ceci : {other} ?"),
        "are there": ("y a-t-il exactement {count} {names} ?", "voit-on exactement {count} {names} ?"),
        "is on": ("le fond est-il {colour} ?", "le fond est-il de couleur {colour} ?"),
        "style": ("quel est le style ?", "dans quel style est-ce dessiné ?"),
        "background": ("de quelle couleur est le fond ?", "quelle est la couleur du fond ?",
                       "quelle couleur derrière ?"),
        "half": ("de quelle couleur est la moitié {half} du fond ?", "quelle couleur pour le fond, côté {half} ?"),
    },
}
# fmt: on
YES = {"en": ("no", "yes"), "fr": ("non", "oui")}


class Asker:
    """Asks about scenes. drawings: where the names come from that are asked for in vain."""

    def __init__(self, drawings: Sequence[Drawing]) -> None:
        self.things = list({d.concept: d for d in drawings if d.scene}.values())
        if len({d.family for d in self.things}) < 5:
            raise CartoucheError("fewer than five families of things given; a scene of four leaves none to ask for")
        makers: tuple[Callable[[_Asked], tuple[str, str] | None], ...] = (
            self.what, self.count, self.colour, self.where, self.yes_no, self.style, self.background,
        )  # fmt: skip
        self._makers = dict(zip(KINDS, makers, strict=True))

    def ask(self, scene: Scene, rng: np.random.Generator, language: str = "en", kind: str = "") -> Question | None:
        """A question of the kind, or of any kind for ""; None where nothing of the kind can be asked of the scene."""
        spoken(language)
        if kind and kind not in KINDS:
            raise unknown("kind of question", kind, KINDS)
        kinds = [kind] if kind else [KINDS[i] for i in rng.permutation(len(KINDS))]
        for one in kinds:
            if made := self._makers[one](_Asked(scene, rng, language)):
                return Question(one, *made, language)
        return None

    def absent(self, asked: _Asked) -> Drawing:
        """A thing that the scene does not have, nor any of its family."""
        there = {p.drawing.family for p in asked.scene.objects}
        while True:
            chosen = self.things[int(asked.rng.integers(len(self.things)))]
            if chosen.family not in there:
                return chosen

    def what(self, asked: _Asked) -> tuple[str, str] | None:
        if len(asked.groups) == 1:
            return asked.say("what"), asked.name(asked.groups[0][0].drawing)
        if pair := asked.pair():
            one, where, other = pair
            side = RELATIONS[asked.language][where]
            return asked.say("what beside", side=side, name=asked.name(other.drawing)), asked.name(one.drawing)
        return None

    def count(self, asked: _Asked) -> tuple[str, str]:
        options = [*((placed.drawing, count) for placed, count in asked.groups), (self.absent(asked), 0)]
        weights = np.array([COUNT_WEIGHTS[count] for _, count in options])
        if len(asked.groups) > 1 and asked.rng.random() < 0.3:
            return asked.say("count all"), str(len(asked.scene.objects))
        drawing, count = options[int(asked.rng.choice(len(options), p=weights / weights.sum()))]
        if not countable(drawing, asked.language):
            return asked.say("count one", name=asked.name(drawing)), str(count)
        names = plural(asked.name(drawing), asked.language)
        return asked.say("count", names=names, of_names=_of(names)), str(count)

    def colour(self, asked: _Asked) -> tuple[str, str] | None:
        known = [p for p, _ in asked.groups if sayable_colour(p, asked.language)]
        if not known:
            return None
        placed = known[int(asked.rng.integers(len(known)))]
        return asked.say("colour", name=asked.name(placed.drawing)), asked.colour(placed.colour)

    def where(self, asked: _Asked) -> tuple[str, str] | None:
        sides = SIDES[asked.language]
        if pair := asked.pair():
            one, where, other = pair
            asks = ("where", "where from")[int(asked.rng.integers(2))]
            return asked.say(asks, name=asked.name(one.drawing), other=asked.name(other.drawing)), sides[where]
        lone = asked.scene.objects[0]
        if len(asked.scene.objects) == 1 and (side := side_of(lone, asked.scene.size)):
            return asked.say("where", name=asked.name(lone.drawing)), sides[side]
        return None

    def yes_no(self, asked: _Asked) -> tuple[str, str]:
        true = int(asked.rng.random() < 0.5)
        makers = (self._is_there, self._is_coloured, self._is_beside, self._are_there, self._is_on)
        for i in asked.rng.permutation(len(makers)):
            if text := makers[i](asked, bool(true)):
                return text, YES[asked.language][true]
        return self._is_there(asked, bool(true)), YES[asked.language][true]

    def style(self, asked: _Asked) -> tuple[str, str]:
        return asked.say("style"), STYLES[asked.scene.style][LANGUAGES.index(asked.language)]

    def background(self, asked: _Asked) -> tuple[str, str]:
        ground = asked.scene.background
        if not ground.split:
            return asked.say("background"), asked.colour(ground.colours[0])
        second = int(asked.rng.integers(2))
        half = ("right" if second else "left") if ground.split == "left" else ("below" if second else "above")
        return asked.say("half", half=SIDES[asked.language][half]), asked.colour(ground.colours[second])

    def _is_there(self, asked: _Asked, true: bool) -> str:
        drawing = asked.any().drawing if true else self.absent(asked)
        return asked.say("is there", name=asked.name(drawing))

    def _is_coloured(self, asked: _Asked, true: bool) -> str:
        known = [p for p, _ in asked.groups if sayable_colour(p, asked.language)]
        if not known:
            return ""
        placed = known[int(asked.rng.integers(len(known)))]
        colour = placed.colour if true else asked.other_colour((placed.colour,))
        return asked.say("is coloured", name=asked.name(placed.drawing), colour=asked.colour(colour))

    def _is_beside(self, asked: _Asked, true: bool) -> str:
        pair = asked.pair()
        if not pair:
            return ""
        one, where, other = pair
        side = RELATIONS[asked.language][where if true else _OPPOSITE[where]]
        return asked.say("is beside", name=asked.name(one.drawing), side=side, other=asked.name(other.drawing))

    def _are_there(self, asked: _Asked, true: bool) -> str:
        placed, count = asked.groups[int(asked.rng.integers(len(asked.groups)))]
        if count == 1 or not countable(placed.drawing, asked.language):
            return ""  # nobody asks for "exactly 1 cats", so of single things a yes could not be asked
        wrong = [n for n in (2, 3, 4) if n != count]
        said = count if true else wrong[int(asked.rng.integers(len(wrong)))]
        return asked.say("are there", count=str(said), names=plural(asked.name(placed.drawing), asked.language))

    def _is_on(self, asked: _Asked, true: bool) -> str:
        ground = asked.scene.background
        if ground.split:
            return ""
        colour = ground.colours[0] if true else asked.other_colour(ground.colours)
        return asked.say("is on", colour=asked.colour(colour))


def _of(names: str) -> str:
    """French "de", elided before a vowel; the h of the names is left alone, since no rule says which are mute."""
    return f"d'{names}" if names[0].lower() in "aeiouyàâéèêîïôœ" else f"de {names}"


class _Asked:
    """A scene about to be asked about, with the words of one language."""

    def __init__(self, scene: Scene, rng: np.random.Generator, language: str) -> None:
        self.scene, self.rng, self.language = scene, rng, language
        first = {p.drawing.concept: p for p in reversed(scene.objects)}
        self.groups = [(first[concept], count) for concept, count in scene.counts().items()]

    def say(self, what: str, **parts: str) -> str:
        options = SAID[self.language][what]
        return options[int(self.rng.integers(len(options)))].format(**parts)

    def name(self, drawing: Drawing) -> str:
        return drawing.name(self.language)

    def colour(self, name: str) -> str:
        return name if self.language == "en" else palette.COLOURS[name].nom

    def any(self) -> Placed:
        return self.groups[int(self.rng.integers(len(self.groups)))][0]

    def other_colour(self, taken: Sequence[str]) -> str:
        free = [name for name in palette.NAMES if name not in taken]
        return free[int(self.rng.integers(len(free)))]

    def pair(self) -> tuple[Placed, str, Placed] | None:
        """Two things of different families and how the first lies to the second; None but for just two."""
        if len(self.scene.objects) != 2 or len({p.drawing.family for p in self.scene.objects}) != 2:
            return None
        a, b = self.rng.permutation(2).tolist()
        where = self.scene.relation(a, b)
        return (self.scene.objects[a], where, self.scene.objects[b]) if where else None
