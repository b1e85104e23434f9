"""Where things are: a box for whatever a text names, and its mask.

    locator = Locator()                                         # the built-in detector, or any OWL-ViT folder
    locator.find(pictures, ["red apple", "cat"])                # for each picture the boxes found, the surest first

Each patch of the picture proposes one box and says how well each text fits it (Minderer et al. 2022, section 3.1). Of
boxes that lie on each other only the surest stays, so an object is found once, by the text that fits it best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from cartouche import images
from cartouche.config import CartoucheError
from cartouche.data.captions import spoken
from cartouche.device import Precision
from cartouche.metrics.boxes import iou
from cartouche.read.match import WEB_WORDS, batches, filled
from cartouche.read.parts import Part, has
from cartouche.read.prepare import Preparation

THRESHOLD = 0.3
OVERLAP = 0.5
"""Boxes of a larger intersection over union are taken for one object."""

PHOTOGRAPHS = {"en": "a photo of {an}", "fr": "une photo de {}"}
"""Queries as detectors of web pictures were trained on; ours were trained on the bare names."""

REMEMBERED = 16  # lists of queries whose vectors are kept


@dataclass(frozen=True, eq=False)
class Found:
    """One object. name: the query that fits best; score: 0 to 1; box: left, top, right, bottom in the picture's pixels;
    mask: (H, W) bool, the object's pixels within the box, or None where there is no segmenter."""

    name: str
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None


class _Words:
    """The texts of one part: encoded once, kept for the next pictures."""

    def __init__(self, part: Part) -> None:
        self.part = part
        longest = int(part.config.get("text_config", {}).get("max_position_embeddings", 16))
        self.tokenizer = part.tokenizer.limit(longest)
        self.vectors = lru_cache(REMEMBERED)(self._vectors)

    def _vectors(self, texts: tuple[str, ...], batch: int) -> np.ndarray:
        rows = iter(self.tokenizer.batch(texts))
        return np.concatenate([self.part.net("queries")(ids=np.stack(some)) for some in batches(rows, batch)])


class Locator:
    """An opened detector, and the segmenter beside it where there is one.

    folder: a model folder with detector/ (and segmenter/), an OWL-ViT folder in transformers' layout, or None for the
    built-in model. engine: "openvino", "torch" or "auto", as in parts.py; batch: how many pictures go through together.
    Raises CartoucheError where there is no detector.
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
        self.batch = batch
        self.detector = Part(folder, "detector", engine, precision, device)
        self.segmenter = _segmenter(folder, engine, precision, device) if has(folder, "segmenter") else None
        self._words = _Words(self.detector)
        self._prepare = _whole(self.detector)
        if self.segmenter is not None:
            self._mask_words = _Words(self.segmenter)
            self._mask_prepare = _whole(self.segmenter)

    def template(self, language: str = "en") -> str:
        """The phrase that a query is put into: that of the captions this detector was trained on."""
        phrase = PHOTOGRAPHS[spoken(language)]
        return phrase if self._words.tokenizer.vocab_size >= WEB_WORDS else "{}"

    def find(
        self,
        pictures: np.ndarray,
        queries: Sequence[str],
        threshold: float | None = None,
        *,
        language: str = "en",
        template: str | None = None,
        masks: bool = True,
        overlap: float = OVERLAP,
    ) -> list[list[Found]]:
        """What the queries name in pictures (B, 3, H, W) in [-1, 1]: a list for each, the surest first."""
        seen = images.to_uint8(pictures)
        return self.look(seen, queries, threshold, language=language, template=template, masks=masks, overlap=overlap)

    def look(
        self,
        pictures: Iterable[np.ndarray],
        queries: Sequence[str],
        threshold: float | None = None,
        *,
        language: str = "en",
        template: str | None = None,
        masks: bool = True,
        overlap: float = OVERLAP,
    ) -> list[list[Found]]:
        """The same of pictures (H, W, 3) uint8, each of a size of its own.

        queries: names in English or French. threshold: the least score, 0 to 1, THRESHOLD if not given. template: a
        phrase with {} for the query, or {an} for it with its article; the model's own if not given. masks: whether to
        ask the segmenter too, where there is one. overlap: the intersection over union beyond which two boxes are one
        object; 1 keeps all.
        Raises CartoucheError for an empty query or a number out of range.
        """
        least = THRESHOLD if threshold is None else threshold
        names = _checked(queries, least, overlap)
        phrase = template or self.template(language)
        phrases = tuple(filled(phrase, name) for name in names)
        found = []
        for some in batches(iter(pictures), self.batch):
            boxes, scores = self.scores(some, phrases)
            for picture, places, likely in zip(some, boxes, scores, strict=True):
                objects = _objects(places, likely, names, picture.shape[:2], least, overlap)
                wanted = masks and self.segmenter is not None
                found.append(self._masked(picture, objects, phrase) if wanted else objects)
        return found

    def scores(self, pictures: Sequence[np.ndarray], phrases: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Every box of pictures (H, W, 3) uint8 and its likeness to every phrase, before anything is left out.

        Returns boxes (B, P, 4), left, top, right, bottom in 0..1, and scores (B, P, Q) in 0..1.
        """
        queries = self._words.vectors(phrases, 8 * self.batch)
        pixels = np.stack([self._prepare(picture) for picture in pictures])
        boxes, embeds, shift, scale = self.detector.net("detect")(pixels=pixels)
        logits = (embeds @ queries.T + shift[..., None]) * scale[..., None]
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        return np.concatenate([centre - half, centre + half], axis=-1), _sigmoid(logits)

    def _masked(self, picture: np.ndarray, objects: list[Found], phrase: str) -> list[Found]:
        """The same objects, each with the pixels of its box that its own name fits."""
        names = tuple(dict.fromkeys(one.name for one in objects))
        if not names or self.segmenter is None:
            return objects
        queries = self._mask_words.vectors(tuple(filled(phrase, name) for name in names), 8 * self.batch)
        features = self.segmenter.net("features")(pixels=self._mask_prepare(picture)[None])
        repeated = np.repeat(features, len(names), axis=0)
        logits = self.segmenter.net("segment")(features=repeated, queries=queries)
        masks = dict(zip(names, (_stretched(one, picture.shape[:2]) > 0 for one in logits), strict=True))
        return [Found(one.name, one.score, one.box, _within(masks[one.name], one.box)) for one in objects]


def _objects(
    boxes: np.ndarray,
    scores: np.ndarray,
    names: Sequence[str],
    size: tuple[int, ...],
    threshold: float,
    overlap: float,
) -> list[Found]:
    """The objects of one picture: boxes (P, 4) in 0..1 and scores (P, Q) to what is sure enough and stands alone."""
    best = scores.argmax(1)
    sure = scores[np.arange(len(scores)), best]
    likely = np.flatnonzero(sure >= threshold)
    corners = (boxes[likely].clip(0, 1) * np.array([size[1], size[0]] * 2)).astype(float)
    kept = apart(corners, sure[likely], overlap)
    return [
        Found(names[best[likely[i]]], float(sure[likely[i]]), (*map(float, corners[i]),))  # type: ignore[arg-type]
        for i in kept
    ]


def apart(
    corners: np.ndarray,
    scores: np.ndarray,
    overlap: float = OVERLAP,
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray] = iou,
) -> list[int]:
    """Non-maximum suppression: indices of boxes (N, 4), the surest first, none lying on a surer one that is kept.

    Two lie on each other where `measure`, one of metrics/boxes.py, is above `overlap`.
    """
    order = np.argsort(-scores, kind="stable").tolist()
    shared = measure(corners, corners)
    kept: list[int] = []
    for i in order:
        if all(shared[i, j] <= overlap for j in kept):
            kept.append(i)
    return kept


def _checked(queries: Sequence[str], threshold: float, overlap: float) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(query.strip() for query in queries))
    if not names or not all(names):
        raise CartoucheError('nothing to look for, or an empty name among it; write names as "cat,dog"')
    for what, value in (("threshold", threshold), ("overlap", overlap)):
        if not 0 <= value <= 1:
            raise CartoucheError(f"{what}={value} given; choose 0 to 1")
    return names


def _whole(part: Part) -> Preparation:
    """How the part's tower wants its pictures. Raises CartoucheError where it sees only a cut of them."""
    side, patch = _tower(part)
    prepare = part.preparation(side, patch if part.name == "segmenter" else 0)
    if prepare.crop is not None:
        raise CartoucheError(
            f"{part.folder} cuts pictures before it looks, so nothing would be where it says; "
            f"set do_center_crop to false in its preprocessor_config.json"
        )
    return prepare


def _segmenter(folder: Path | str | None, engine: str, precision: Precision, device: str) -> Part:
    """The segmenter: CLIPSeg as it was published looks at pictures of 352 with a tower of 224, and graphs are fixed."""
    part = Part(folder, "segmenter", engine, precision, device)
    side, patch = _tower(part)
    made = part.preparation(side, patch).made
    if engine == "torch" or made in (None, (side, side)):
        return part
    if engine == "openvino":
        raise CartoucheError(f"{part.folder} looks at pictures of {made}, its graph at {side}x{side}; use engine=torch")
    return Part(folder, "segmenter", "torch", precision, device)


def _tower(part: Part) -> tuple[int, int]:
    """The side of the pictures that the part's tower was made for, and of its patches."""
    vision = part.config.get("vision_config", {})
    return int(vision.get("image_size", 224)), int(vision.get("patch_size", 32))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))


def _stretched(logits: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Logits (h, w) over a picture of (H, W)."""
    from PIL import Image

    stretched = Image.fromarray(np.asarray(logits, np.float32)).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(stretched)


def _within(mask: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """What of a mask (H, W) lies in a box; a pixel that the box cuts belongs to it."""
    cut = np.zeros_like(mask)
    left, top = (int(np.floor(edge)) for edge in box[:2])
    right, bottom = (int(np.ceil(edge)) for edge in box[2:])
    cut[top:bottom, left:right] = mask[top:bottom, left:right]
    return cut
