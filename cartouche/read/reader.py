"""The one face of reading: whatever a model folder can say of a picture, asked in one place.

    reader = Reader()                                        # the built-in model
    reader.labels(pictures, ["cat", "dog"])                  # clip/
    reader.find(pictures, ["red apple"])                     # detector/, and segmenter/ for the masks
    reader.caption(pictures)                                 # memory/ and detector/, or else captioner/
    reader.ask(picture, "how many cats?")                    # captioner/
    reader.out_of_domain(pictures)                           # whether any of it can be believed

Each part is opened when it is first asked; one that the folder lacks is an error that names it. Pictures are
(B, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cartouche import images
from cartouche.config import CartoucheError, unknown
from cartouche.read import parts
from cartouche.read.domain import FILE, Domain, Seen, texture
from cartouche.read.match import Matcher
from cartouche.read.memory import FOLDER, Memory
from cartouche.weights.builtin import builtin

if TYPE_CHECKING:
    from cartouche.read.describe import Describer, Example, Said
    from cartouche.read.locate import Found, Locator
    from cartouche.read.ocr import Line, Ocr
    from cartouche.read.recall import Recaller


SURE = 0.2
"""Below this confidence a scene is taken for one of drawings that are not remembered (docs/journal.md)."""


class Reader:
    """A model that reads. folder: a model folder, one reading part alone, or None for the built-in model.

    engine: "openvino", "torch" or "auto", as in parts.py. Raises CartoucheError where the folder reads nothing.
    """

    def __init__(self, folder: Path | str | None = None, engine: str = "auto") -> None:
        if engine not in parts.ENGINES:
            raise unknown("engine", engine, parts.ENGINES)
        self.folder, self.engine = folder, engine
        self.parts = tuple(name for name in parts.KINDS if parts.has(folder, name))
        """Those of parts.KINDS that the folder has."""
        if not self.parts:
            wanted = ", ".join(f"{name}/" for name in parts.KINDS)
            raise CartoucheError(f"model folder {folder or 'built in'} reads nothing; wanted one of {wanted} in it")

    @cached_property
    def matcher(self) -> Matcher:
        return Matcher(self.folder, self.engine)

    @cached_property
    def locator(self) -> Locator:
        from cartouche.read.locate import Locator

        return Locator(self.folder, self.engine)

    @cached_property
    def describer(self) -> Describer:
        from cartouche.read.describe import Describer

        return Describer(self.folder, self.engine)

    @cached_property
    def recaller(self) -> Recaller | None:
        """The detector with a memory of drawings; None where the folder has no memory."""
        folder = (builtin() if self.folder is None else Path(self.folder)) / FOLDER
        if "detector" not in self.parts or not folder.is_dir():
            return None
        from cartouche.read.recall import Recaller

        return Recaller(self.locator, Memory.load(folder))

    @property
    def teller(self) -> Recaller | Describer:
        """Who says what is on a picture: the one that recalls, or where there is no memory, the one that describes."""
        return self.recaller or self.describer

    @cached_property
    def ocr(self) -> Ocr:
        from cartouche.read.ocr import Ocr

        return Ocr()

    @cached_property
    def domain(self) -> Domain | None:
        """What this model's training pictures look like; None where the folder does not tell."""
        if "clip" not in self.parts:
            return None
        return Domain.load(self.matcher.part.folder, self.matcher.part.weights)

    def labels(self, pictures: np.ndarray, labels: Sequence[str], language: str = "en") -> np.ndarray:
        """How likely each label is, among these: (B, L), rows that add up to 1. See match.py."""
        return self.matcher.labels(pictures, labels, language)

    def find(self, pictures: np.ndarray, queries: Sequence[str], threshold: float | None = None) -> list[list[Found]]:
        """The things asked for, with their boxes, masks and scores, picture by picture. See `look`."""
        return self.look(list(images.to_uint8(pictures)), queries, threshold)

    def look(
        self,
        pictures: Sequence[np.ndarray],
        queries: Sequence[str],
        threshold: float | None = None,
        language: str = "en",
    ) -> list[list[Found]]:
        """The same of pictures (H, W, 3) uint8, each of a size of its own.

        By memory where it knows all that is asked for, or else by the detector's own words (locate.py).
        """
        if self.recaller is not None and queries and all(self.recaller.knows(one, language) for one in queries):
            return self.recaller.find(pictures, queries, threshold, language)
        return self.locator.look(pictures, queries, threshold, language=language)

    def caption(self, pictures: np.ndarray, language: str = "en") -> list[Said]:
        """A sentence about each picture. See `teller`."""
        return self.teller.caption(pictures, language)

    def told(self, pictures: np.ndarray, language: str = "en") -> list[tuple[Said, dict[str, Any]]]:
        """A sentence and the scene of each picture, which is looked at once where it is recalled."""
        if self.recaller is None:
            captions, scenes = self.describer.caption(pictures, language), self.describer.scenes(pictures)
            return list(zip(captions, scenes, strict=True))
        from cartouche.read import recall

        readings = self.recaller.read(pictures)
        return [(recall.said(one, language), recall.told(one, pictures.shape[2:])) for one in readings]

    def ask(self, picture: np.ndarray, question: str, examples: Sequence[Example] = (), language: str = "en") -> Said:
        """The answer to a question about one picture, (1, 3, H, W), perhaps after examples.

        By the scene that is recalled, where it has an answer and its things are known, or there is no describer; or
        else by the describer.
        """
        if self.recaller is not None and not examples:
            (said,) = self.recaller.answers(picture, [question], language)
            if said.text and (said.confidence >= SURE or "captioner" not in self.parts):
                return said
        return self.describer.ask(picture, question, examples, language)

    def scene(self, picture: np.ndarray) -> dict[str, Any]:
        """All that is in one picture, (1, 3, H, W), as JSON can hold it. See `teller`, and Describer.scenes."""
        return self.teller.scenes(picture)[0]

    def text(self, pictures: np.ndarray) -> list[list[Line]]:
        """The lines of writing in each picture. See ocr.py; needs the extra `ocr`, and no part of the folder."""
        return self.ocr.read(pictures)

    def out_of_domain(self, pictures: np.ndarray) -> np.ndarray:
        """How far each picture lies from what the model was trained on, (B,): see Domain.score.

        From domain.OUTSIDE on, what is read of it is not to be believed. Raises CartoucheError where the folder does
        not tell what it was trained on.
        """
        if self.domain is None:
            raise CartoucheError(
                f"model folder {self.folder or 'built in'} does not tell what it was trained on; wanted clip/{FILE}"
            )
        pixels = images.to_uint8(pictures)
        return self.domain.score(Seen(self.matcher.pixels(pixels), np.stack([texture(one) for one in pixels])))
