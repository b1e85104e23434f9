"""What is said to the describing reader and what it answers: one form, for training it and for asking it.

A conversation is a list of turns. A turn shows a picture (IMAGE stands where it is) and asks for a caption, for the
answer to a question, or for the scene as JSON; the answer follows, then the end token. Earlier turns with their answers
are the examples of a few-shot prompt: nothing else tells them from what was learned.

    <image> describe the picture:            a red apple on a blue background, flat style
    <image> décris l'image :                 pomme de couleur rouge, sur fond bleu
    <image> question: how many cats? answer: 2
    <image> the scene as json:               {"objects":[{"name":"cat","colour":"","count":2,"box":[5,20,95,70]}], ...
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from cartouche.data import palette
from cartouche.data.captions import STYLES, spoken
from cartouche.data.emoji import Drawing
from cartouche.data.scenes import Placed, Scene

IMAGE = "<image>"
CAPTION = {"en": "describe the picture:", "fr": "décris l'image :"}
QUESTION = {"en": "question: {} answer:", "fr": "question : {} réponse :"}
SCENE = "the scene as json:"
WHOLE = 100  # boxes of a scene are said in hundredths of the picture's sides
MOST_OBJECTS = 4
MOST_RELATIONS = 6
SPLITS = ("", "left", "above")  # as in scenes.Background
RELATIONS = ("left", "right", "above", "below")


class Turn(NamedTuple):
    """A prompt, in which IMAGE stands for a picture, and its answer; None where the answer is asked for."""

    prompt: str
    answer: str | None = None


class Marks(NamedTuple):
    """The ids that are no words: start, end, and the image token, of which `patches` stand for one picture."""

    start: int
    end: int
    image: int
    patches: int


class Spelled(NamedTuple):
    """A conversation as ids, and which of them the net is to say itself: the answers and the end after each."""

    ids: list[int]
    said: list[bool]


def caption_prompt(language: str = "en") -> str:
    """Shows a picture and asks for a caption in the language."""
    return f"{IMAGE} {CAPTION[spoken(language)]}"


def question_prompt(question: str, language: str = "en") -> str:
    """Shows a picture and asks a question about it; an IMAGE that the question itself holds is taken out."""
    return f"{IMAGE} {QUESTION[spoken(language)].format(question.replace(IMAGE, ' ').strip())}"


def scene_prompt() -> str:
    """Shows a picture and asks for all that is on it, as `scene_answer` writes it."""
    return f"{IMAGE} {SCENE}"


def spell(turns: Iterable[Turn], ids_of: Callable[[str], Sequence[int]], marks: Marks) -> Spelled:
    """A conversation in ids. ids_of: a text's ids, without start and end.

    Training learns the ids that are `said`; asking ends with a turn without an answer.
    """
    ids, said = [marks.start], [False]

    def add(more: Sequence[int], mine: bool) -> None:
        ids.extend(more)
        said.extend([mine] * len(more))

    for prompt, answer in turns:
        for i, text in enumerate(prompt.split(IMAGE)):
            add([marks.image] * marks.patches if i else [], False)
            add(ids_of(text), False)
        if answer is not None:
            add([*ids_of(answer), marks.end], True)
    return Spelled(ids, said)


def described(scene: Scene) -> dict[str, Any]:
    """The scene as the reader is to say it, in English and in lower case, which is all that its words have.

    objects, from left to right: name, colour ("" where no one colour covers it), count, and box, the hundredths (x0,
    y0, x1, y1) of the picture around all of that name. relations: (i, word, j), object i lies so to object j, where
    both are single. background: one colour, or two with split "left" or "above".
    """
    groups: dict[str, list[Placed]] = {}
    for placed in scene.objects:
        groups.setdefault(placed.drawing.concept, []).append(placed)
    ordered = sorted(groups.values(), key=lambda group: _around(group, scene.size))
    places = {id(placed): i for i, placed in enumerate(scene.objects)}
    single = [(i, places[id(group[0])]) for i, group in enumerate(ordered) if len(group) == 1]
    related = [(i, scene.relation(a, b), j) for i, a in single for j, b in single if i < j]
    return {
        "objects": [_object(group, scene.size) for group in ordered],
        "relations": [[i, word, j] for i, word, j in related if word],
        "background": list(scene.background.colours),
        "split": scene.background.split,
        "style": scene.style,
    }


def scene_answer(scene: Scene) -> str:
    """`described` as the one line of JSON that the reader says: no spaces but in names, everything in its order."""
    return json.dumps(described(scene), ensure_ascii=False, separators=(",", ":"))


def scene_words(drawings: Iterable[Drawing]) -> dict[str, list[str]]:
    """The words a scene may be said in: what a captioner's `words.json` holds, so that it can name nothing else."""
    names = sorted({drawing.name_en.lower() for drawing in drawings})
    return {"names": names, "colours": list(palette.NAMES), "styles": list(STYLES)}


def _object(group: Sequence[Placed], size: int) -> dict[str, Any]:
    first = group[0]
    return {
        "name": first.drawing.name_en.lower(),
        "colour": first.colour,
        "count": len(group),
        "box": list(_around(group, size)),
    }


def _around(group: Sequence[Placed], size: int) -> tuple[int, int, int, int]:
    """The box around all of a group, in hundredths."""
    edges = list(zip(*(placed.box for placed in group), strict=True))
    x0, y0, x1, y1 = (round(WHOLE * edge / size) for edge in (*map(min, edges[:2]), *map(max, edges[2:])))
    return x0, y0, x1, y1
