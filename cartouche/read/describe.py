"""What a picture shows, in words: captions, answers to questions, and the whole scene as JSON.

    describer = Describer()                                     # the built-in captioner, or any LLaVA folder
    describer.caption(pictures)                                 # a caption each, in English or French
    describer.ask(picture, "how many cats?")                    # an answer, and how sure it is
    describer.ask(picture, "old or new?", [(one, "old"), (two, "new")])   # after two examples
    describer.scene(picture)                                    # objects with boxes, relations, background, style

The scene is said by the same net under a grammar that lets nothing else through (grammar.py), so it is always whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cartouche import images
from cartouche.config import CartoucheError, read_json
from cartouche.data import dialogue
from cartouche.data.dialogue import Turn
from cartouche.device import Precision
from cartouche.read.grammar import Array, Enum, Integer, Record, Row, Shape, Text, Writer
from cartouche.read.parts import Part
from cartouche.read.speech import Allowed, Manner, Prompt, Speech

CAPTION = Manner(longest=64)
ANSWER = Manner(longest=24)
SCENE = Manner(longest=400)
WORDS = "words.json"
"""The names, colours and styles that a scene may be said in; a captioner without it names freely."""

Example = tuple[np.ndarray, str]
"""A picture (1, 3, H, W) or (3, H, W) in [-1, 1] and what is to be said of it."""


class Said(NamedTuple):
    """A text, and how sure the net was of it: the mean probability of its words, 0 to 1."""

    text: str
    confidence: float


class Describer:
    """An opened captioner. folder: a model folder with captioner/, a LLaVA folder in transformers' layout, or None.

    engine: "openvino", "torch" or "auto", as in parts.py; batch: how many pictures go through together.
    Raises CartoucheError where there is no captioner, or its words are of no kind known here (tongue.py).
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        engine: str = "auto",
        precision: Precision = "fp32",
        device: str = "auto",
        batch: int = 8,
    ) -> None:
        if batch < 1:
            raise CartoucheError(f"batch={batch} given; choose 1 or more")
        part = Part(folder, "captioner", engine, precision, device)
        self.speech = Speech(part, batch)
        words = part.folder / WORDS
        self.shape = scene_shape(_listed(words) if words.is_file() else {})

    def caption(
        self,
        pictures: np.ndarray,
        language: str = "en",
        examples: Sequence[Example] = (),
        manner: Manner = CAPTION,
    ) -> list[Said]:
        """A caption of each picture, (B, 3, H, W) in [-1, 1], in the language; the examples' captions go before."""
        prompt = self.speech.tongue.caption(language)
        return self._said([(prompt, examples, one) for one in images.to_uint8(pictures)], manner)

    def ask(
        self,
        picture: np.ndarray,
        question: str,
        examples: Sequence[Example] = (),
        language: str = "en",
        manner: Manner = ANSWER,
    ) -> Said:
        """The answer to a question about one picture, (1, 3, H, W) or (3, H, W) in [-1, 1].

        examples: pictures and their answers to the same question.
        """
        return self.answers(_batch(picture), [question], language, examples, manner)[0]

    def answers(
        self,
        pictures: np.ndarray,
        questions: Sequence[str],
        language: str = "en",
        examples: Sequence[Example] = (),
        manner: Manner = ANSWER,
    ) -> list[Said]:
        """One answer a picture, (B, 3, H, W) in [-1, 1], to the question of the same place."""
        if len(pictures) != len(questions):
            raise CartoucheError(f"{len(questions)} questions about {len(pictures)} pictures; give one for each")
        if not all(question.strip() for question in questions):
            raise CartoucheError("an empty question was asked; write what you want to know")
        seen = images.to_uint8(pictures)
        prompts = [self.speech.tongue.question(question, language) for question in questions]
        return self._said([(prompt, examples, one) for prompt, one in zip(prompts, seen, strict=True)], manner)

    def scene(self, picture: np.ndarray, manner: Manner = SCENE) -> dict[str, Any]:
        """All that is in a picture, (1, 3, H, W) or (3, H, W) in [-1, 1]. See `scenes`."""
        return self.scenes(_batch(picture), manner)[0]

    def scenes(self, pictures: np.ndarray, manner: Manner = SCENE) -> list[dict[str, Any]]:
        """What is in each picture, (B, 3, H, W) in [-1, 1], as JSON can hold it.

        objects: name, colour ("" for no one colour), count, and box, the pixels (left, top, right, bottom) around all
        of that name. relations: (i, word, j), object i lies "left" of, "right" of, "above" or "below" object j.
        background: its colours, two where split is "left" (first left, second right) or "above". style. confidence:
        the mean probability of what the net itself said.
        """
        seen = images.to_uint8(pictures)
        prompts = [self.speech.prompt([Turn(self.speech.tongue.scene())], [one]) for one in seen]
        writers = [Writer(self.speech.vocabulary, self.shape) for _ in prompts]
        said = self.speech.say(prompts, manner, [_under(writer) for writer in writers])
        for writer, words in zip(writers, said, strict=True):
            _follow(writer, words.ids)
        return [
            settled(writer.value(), one.shape[:2]) | {"confidence": words.confidence}
            for writer, words, one in zip(writers, said, seen, strict=True)
        ]

    def _said(self, asked: Sequence[tuple[str, Sequence[Example], np.ndarray]], manner: Manner) -> list[Said]:
        """What is said to prompts, each about a picture (H, W, 3) uint8 and after examples."""
        prompts = [self._prompt(*one) for one in asked]
        told = self.speech.say(prompts, manner)
        return [Said(self.speech.tongue.text(words.ids), words.confidence) for words in told]

    def _prompt(self, prompt: str, examples: Sequence[Example], picture: np.ndarray) -> Prompt:
        turns = [*(Turn(prompt, answer) for _, answer in examples), Turn(prompt)]
        shown = [images.to_uint8(_batch(one))[0] for one, _ in examples]
        return self.speech.prompt(turns, [*shown, picture])


def _listed(path: Path) -> dict[str, list[str]]:
    """What a WORDS file lists. Raises CartoucheError where it is anything but lists of texts."""
    found = read_json(path)
    if not all(isinstance(words, list) and all(isinstance(one, str) for one in words) for words in found.values()):
        raise CartoucheError(f'{path} is damaged; wanted lists of texts, as in {{"names": ["cat", "dog"]}}')
    return found


def scene_shape(words: Mapping[str, Sequence[str]]) -> Record:
    """The shape of a scene as JSON (dialogue.described). words: what may stand for names, colours and styles."""

    def one_of(kind: str, *more: str) -> Shape:
        known = tuple(words.get(kind) or ())
        return Enum((*more, *known)) if known else Text(40)

    whole = Integer(0, dialogue.WHOLE)
    index = Integer(0, dialogue.MOST_OBJECTS - 1)
    thing = {
        "name": one_of("names"),
        "colour": one_of("colours", ""),
        "count": Integer(1, dialogue.MOST_OBJECTS),
        "box": Row((whole,) * 4),
    }
    return Record(
        {
            "objects": Array(Record(thing), 1, dialogue.MOST_OBJECTS),
            "relations": Array(Row((index, Enum(dialogue.RELATIONS), index)), 0, dialogue.MOST_RELATIONS),
            "background": Array(one_of("colours"), 1, 2),
            "split": Enum(dialogue.SPLITS),
            "style": one_of("styles"),
        }
    )


def settled(scene: Mapping[str, Any], size: tuple[int, ...]) -> dict[str, Any]:
    """A scene as it was said, made to agree with itself: boxes in pixels of a picture of (H, W), the right way round;
    no relation to an object that is not there or to itself; two colours where the background is split, else one."""
    objects = [{**thing, "box": _pixels(thing["box"], size)} for thing in scene["objects"]]
    count = len(objects)
    relations = [[i, word, j] for i, word, j in scene["relations"] if i != j and max(i, j) < count]
    split = scene["split"] if len(scene["background"]) == 2 else ""
    background = list(scene["background"]) if split else list(scene["background"][:1])
    return dict(scene) | {"objects": objects, "relations": relations, "background": background, "split": split}


def _pixels(box: Sequence[int], size: tuple[int, ...]) -> list[float]:
    """(x0, y0, x1, y1) in hundredths to pixels, left before right and top before bottom."""
    across, down = sorted(box[0::2]), sorted(box[1::2])
    scale = (size[1] / dialogue.WHOLE, size[0] / dialogue.WHOLE)
    return [round(edge * scale[i % 2], 1) for i, edge in enumerate((across[0], down[0], across[1], down[1]))]


def _under(writer: Writer) -> Allowed:
    """A rule that lets through what the writer allows."""

    def allowed(said: Sequence[int]) -> np.ndarray | None:
        _follow(writer, said)
        return None if writer.done else writer.allowed()

    return allowed


def _follow(writer: Writer, said: Sequence[int]) -> None:
    """Let the writer take what was said since it was last asked."""
    for token in said[writer.taken :]:
        writer.say(token)


def _batch(picture: np.ndarray) -> np.ndarray:
    """One picture as a batch of one."""
    picture = picture if picture.ndim == 4 else picture[None]
    if len(picture) != 1:
        raise CartoucheError(f"{len(picture)} pictures given where one is asked about; give (1, 3, H, W)")
    return picture
