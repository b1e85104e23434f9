"""What was read of a picture: all that was asked, with how sure each of it is, in words, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cartouche import images
from cartouche.data.captions import spoken
from cartouche.read.domain import OUTSIDE, Seen, texture
from cartouche.read.reader import Reader

if TYPE_CHECKING:
    from cartouche.read.describe import Said
    from cartouche.read.locate import Found
    from cartouche.read.ocr import Line

OUTSIDE_WORDS = {
    "en": "Outside what this model was trained on ({share:.1%} of its pictures are nearer): do not rely on this.",
    "fr": "Hors de ce que ce modèle a appris ({share:.1%} de ses images sont plus proches) : ne pas s'y fier.",
}
NOTHING = {"en": "nothing found", "fr": "rien trouvé"}


@dataclass(frozen=True)
class Wanted:
    """What is asked of every picture. Asked nothing, a picture is described."""

    labels: tuple[str, ...] = ()
    find: tuple[str, ...] = ()
    ask: str = ""
    text: bool = False
    language: str = "en"
    threshold: float | None = None

    def __post_init__(self) -> None:
        spoken(self.language)

    @property
    def describe(self) -> bool:
        return not (self.labels or self.find or self.ask or self.text)


class Row(NamedTuple):
    """A line of the table. sure: 0 to 1."""

    what: str
    sure: float
    said: str


@dataclass
class Report:
    """One picture read; what was not asked is None. outside: Domain.score, None where the model does not tell."""

    name: str
    width: int
    height: int
    language: str = "en"
    outside: float | None = None
    caption: Said | None = None
    scene: dict[str, Any] | None = None
    labels: list[tuple[str, float]] | None = None
    found: list[Found] | None = None
    answer: Said | None = None
    lines: list[Line] | None = None

    def paragraph(self) -> str:
        """The answers in a few sentences; a warning first, where the picture is none that the model knows."""
        said = []
        if self.outside is not None and self.outside >= OUTSIDE:
            said.append(OUTSIDE_WORDS[self.language].format(share=self.outside))
        said += [_sentence(one.text) for one in (self.caption, self.answer) if one is not None]
        if self.labels:
            said.append(_sentence(self.labels[0][0]))
        if self.found is not None:
            names = [one.name for one in self.found]
            counted = [f"{names.count(name)} {name}" for name in dict.fromkeys(names)]
            said.append(_sentence(", ".join(counted) or NOTHING[self.language]))
        if self.lines is not None:
            said.append(" ".join(line.text for line in self.lines) or _sentence(NOTHING[self.language]))
        return " ".join(said)

    def rows(self) -> Iterator[Row]:
        """Each thing that was read, with how sure it is."""
        for what, one in (("caption", self.caption), ("answer", self.answer)):
            if one is not None:
                yield Row(what, one.confidence, one.text)
        if self.scene is not None:
            sure = self.scene["confidence"]
            yield from (Row("object", one.get("confidence", sure), _thing(one)) for one in self.scene["objects"])
            yield Row("background", sure, ", ".join(self.scene["background"]))
            yield Row("style", sure, self.scene["style"])
        for label, chance in self.labels or ():
            yield Row("label", chance, label)
        for thing in self.found or ():
            yield Row("found", thing.score, f"{thing.name} at {_place(thing.box)}")
        for line in self.lines or ():
            yield Row("text", line.confidence, line.text)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON can hold it; what was not asked is left out."""
        told: dict[str, Any] = {"path": self.name, "width": self.width, "height": self.height, "outside": self.outside}
        for what, one in (("caption", self.caption), ("answer", self.answer)):
            if one is not None:
                told[what] = {"text": one.text, "confidence": one.confidence}
        if self.scene is not None:
            told["scene"] = self.scene
        if self.labels is not None:
            told["labels"] = dict(self.labels)
        if self.found is not None:
            told["found"] = [_found(one) for one in self.found]
        if self.lines is not None:
            told["text"] = [
                {"text": one.text, "confidence": one.confidence, "corners": one.corners} for one in self.lines
            ]
        return told


def read(reader: Reader, pictures: Sequence[tuple[str, np.ndarray]], wanted: Wanted) -> list[Report]:
    """Read named pictures, each (H, W, 3) uint8 of a size of its own, together where the nets can.

    Raises CartoucheError where the model lacks a part that is wanted.
    """
    names, pixels = [name for name, _ in pictures], [one for _, one in pictures]
    sizes = [(one.shape[1], one.shape[0]) for one in pixels]
    reports = [Report(name, *size, wanted.language) for name, size in zip(names, sizes, strict=True)]
    if wanted.labels or reader.domain is not None:
        _match(reader, reports, pixels, wanted)
    if wanted.find:
        _find(reader, reports, pixels, wanted)
    if wanted.describe or wanted.ask:
        for size in dict.fromkeys(sizes):
            same = [i for i, other in enumerate(sizes) if other == size]
            _describe(reader, [reports[i] for i in same], np.stack([pixels[i] for i in same]), wanted)
    if wanted.text:
        for report, one in zip(reports, pixels, strict=True):
            report.lines = reader.ocr.pixels(one)
    return reports


def _match(reader: Reader, reports: Sequence[Report], pixels: Sequence[np.ndarray], wanted: Wanted) -> None:
    """What the pictures' vectors tell: the labels, and whether they are of the world that the model knows."""
    vectors = reader.matcher.pixels(pixels)
    if reader.domain is not None:
        seen = Seen(vectors, np.stack([texture(one) for one in pixels]))
        for report, share in zip(reports, reader.domain.score(seen).tolist(), strict=True):
            report.outside = share
    if wanted.labels:
        words = reader.matcher.label_vectors(wanted.labels, wanted.language)
        for report, chances in zip(reports, reader.matcher.probabilities(vectors, words).tolist(), strict=True):
            report.labels = sorted(zip(wanted.labels, chances, strict=True), key=lambda pair: -pair[1])


def _find(reader: Reader, reports: Sequence[Report], pixels: Sequence[np.ndarray], wanted: Wanted) -> None:
    found = reader.look(pixels, wanted.find, wanted.threshold, wanted.language)
    for report, things in zip(reports, found, strict=True):
        report.found = things


def _describe(reader: Reader, reports: Sequence[Report], pixels: np.ndarray, wanted: Wanted) -> None:
    """What is said of pictures of one size, (B, H, W, 3) uint8."""
    pictures = images.from_uint8(pixels)
    if wanted.describe:
        for report, one in zip(reports, reader.told(pictures, wanted.language), strict=True):
            report.caption, report.scene = one
    if wanted.ask:
        for i, report in enumerate(reports):
            report.answer = reader.ask(pictures[i : i + 1], wanted.ask, language=wanted.language)


def _thing(thing: dict[str, Any]) -> str:
    """An object of a scene in a few words, with its place."""
    words = (str(thing["count"]), thing["colour"], thing["name"])
    return f"{' '.join(word for word in words if word)} at {_place(thing['box'])}"


def _place(box: Sequence[float]) -> str:
    return " ".join(f"{edge:.0f}" for edge in box)


def _found(one: Found) -> dict[str, Any]:
    told = {"name": one.name, "score": one.score, "box": list(one.box)}
    return told if one.mask is None else told | {"pixels": int(one.mask.sum())}


def _sentence(text: str) -> str:
    """A text as a sentence: a capital, and a full stop where it has no end of its own."""
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}" if text else ""
