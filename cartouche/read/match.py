"""Pictures and words in one space: which label fits, how well a caption fits, what lies nearest.

    matcher = Matcher()                                       # the built-in CLIP, or any CLIP folder
    matcher.labels(pictures, ["cat", "dog"])                  # (B, 2) probabilities
    matcher.arithmetic(["king", "woman"], ["man"], names)     # what king - man + woman is, and the honest rank of each

Every vector is float32 of length 1, so a product of two is the cosine of their angle.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from cartouche import images
from cartouche.config import CartoucheError
from cartouche.data.captions import an, spoken
from cartouche.data.palette import COLOURS
from cartouche.device import Precision
from cartouche.read.parts import Part
from cartouche.text import CutWarning
from cartouche.weights import safetensors
from cartouche.weights.folder import weights_file

T = TypeVar("T")
WEB_WORDS = 49408
"""Size of the vocabulary of every CLIP trained on photographs from the web."""

PHOTOGRAPHS = {
    "en": ("a photo of {an}", "a picture of {an}", "a drawing of {an}", "a close-up of {an}", "{}"),
    "fr": ("une photo de {}", "une image de {}", "un dessin de {}", "un gros plan de {}", "{}"),
}
"""Labels as the captions of web pictures put them (after Radford et al. 2021, section 3.1.4)."""

SCENES = {
    "en": ("{}", "{an}", *(f"{{an}} on {an(colour.name)} background" for colour in COLOURS.values())),
    "fr": ("{}", *(f"{{}} sur fond {colour.nom}" for colour in COLOURS.values())),
}
"""Labels as the captions of scenes put them, which the built-in net was trained on (data/captions.py)."""

REMEMBERED = 4096  # texts whose vectors are kept


class Near(NamedTuple):
    """A name on the scale of nearness to a sum of vectors. rank: from 1, among all; given: it was a term of the sum."""

    name: str
    cosine: float
    rank: int
    given: bool


class Matcher:
    """An opened CLIP. folder: a model folder with clip/, a CLIP folder in transformers' layout, or None.

    engine: "openvino", "torch" or "auto", as in parts.py; batch: how many go through a tower together.
    Raises CartoucheError where there is no CLIP.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        engine: str = "auto",
        precision: Precision = "fp32",
        device: str = "auto",
        batch: int = 16,
    ) -> None:
        if batch < 1:
            raise CartoucheError(f"batch={batch} given; choose 1 or more")
        self.part = Part(folder, "clip", engine, precision, device)
        self.batch = batch
        towers = [dict(self.part.config.get(name) or {}) for name in ("text_config", "vision_config")]
        self.side = int(towers[1].get("image_size", 224))
        self.width = int(self.part.config.get("projection_dim", 512))
        self.tokenizer = self.part.tokenizer.limit(int(towers[0].get("max_position_embeddings", 77)))
        self.prepare = self.part.preparation(self.side)
        self._remembered: dict[str, np.ndarray] = {}

    @property
    def hash(self) -> str:
        """What tells this model from another, in an index of its vectors."""
        return self.part.hash

    @cached_property
    def scale(self) -> float:
        """What cosines are multiplied with before they become probabilities: exp(logit_scale)."""
        stored = safetensors.load_numpy(weights_file(self.part.folder), ("logit_scale",))
        if "logit_scale" not in stored:
            raise CartoucheError(f"{self.part.folder} has no logit_scale: it is no whole CLIP")
        return float(np.exp(stored["logit_scale"].astype(np.float64)))

    @property
    def templates(self) -> Mapping[str, tuple[str, ...]]:
        """The phrases that a label is put into, by language: those of the captions this CLIP was trained on."""
        return PHOTOGRAPHS if self.tokenizer.vocab_size >= WEB_WORDS else SCENES

    # vectors

    def images(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures (B, 3, H, W) in [-1, 1] of any size to (B, D)."""
        return self.pixels(images.to_uint8(pictures))

    def pixels(self, pictures: Iterable[np.ndarray]) -> np.ndarray:
        """Pictures, each (H, W, 3) uint8 of a size of its own, to (B, D)."""
        return self.prepared(map(self.prepare, pictures))

    def prepared(self, arrays: Iterable[np.ndarray]) -> np.ndarray:
        """What `prepare` made of pictures, each (3, side, side), to (B, D)."""
        net = self.part.net("encode_image")
        found = [net(pixels=np.stack(some)) for some in batches(arrays, self.batch)]
        return _unit(np.concatenate([np.zeros((0, self.width), np.float32), *found]))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to (B, D); remembered for the next time. Warns with CutWarning where one does not fit the tower."""
        known = self._remembered
        fresh = [text for text in dict.fromkeys(texts) if text not in known]
        found = [self._read(some) for some in batches(fresh, self.batch)]
        known = known | {text: vector for some in found for text, vector in some}
        self._remembered = dict(list(known.items())[-REMEMBERED:])
        return np.stack([known[text] for text in texts]) if texts else np.zeros((0, self.width), np.float32)

    def _read(self, texts: Sequence[str]) -> list[tuple[str, np.ndarray]]:
        encoded = [self.tokenizer.encode(text) for text in texts]
        for one in encoded:
            if one.cut:
                room = self.tokenizer.context - 2
                said = f"the text is longer than {room} tokens; left out: {' '.join(one.cut)}"
                warnings.warn(said, CutWarning, stacklevel=4)
        vectors = self.part.net("encode_text")(ids=np.stack([one.ids for one in encoded]))
        return list(zip(texts, _unit(vectors), strict=True))

    # labels

    def label_vectors(
        self, labels: Sequence[str], language: str = "en", templates: Sequence[str] | None = None
    ) -> np.ndarray:
        """One vector a label, (L, D): the mean direction of the label in every template.

        templates: phrases with {} for the label, or {an} for it with its article; the model's own if not given.
        """
        spoken(language)
        if not labels or not all(label.strip() for label in labels):
            raise CartoucheError('an empty label was given; write them as "cat,dog"')
        phrases = templates or self.templates[language]
        said = [filled(phrase, label.strip()) for label in labels for phrase in phrases]
        return _unit(self.texts(said).reshape(len(labels), len(phrases), -1).mean(1))

    def labels(
        self,
        pictures: np.ndarray,
        labels: Sequence[str],
        language: str = "en",
        templates: Sequence[str] | None = None,
    ) -> np.ndarray:
        """How likely each label is for each picture, among these labels: (B, L), rows that add up to 1.

        Zero-shot classification (Radford et al. 2021, section 3.1.2): the softmax of scaled cosines.
        """
        return self.probabilities(self.images(pictures), self.label_vectors(labels, language, templates))

    def probabilities(self, pictures: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The same of vectors: pictures (B, D), labels (L, D) to (B, L)."""
        logits = self.scale * (pictures @ labels.T).astype(np.float64)
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(powers / powers.sum(1, keepdims=True), np.float32)

    def similarity(self, pictures: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Cosines of pictures (B, 3, H, W) in [-1, 1] with texts: (B, T)."""
        return np.asarray(self.images(pictures) @ self.texts(texts).T)

    # arithmetic

    def sum(self, plus: Sequence[str | np.ndarray], minus: Sequence[str | np.ndarray] = ()) -> np.ndarray:
        """Terms added and taken away, each a text or a vector (D,): the direction of the result, (D,)."""
        if not plus:
            raise CartoucheError("nothing to add up; give at least one word to add")
        parts = [(self._term(term), sign) for terms, sign in ((plus, 1), (minus, -1)) for term in terms]
        total = sum(vector * np.float32(sign) for vector, sign in parts)
        if np.linalg.norm(total) < 1e-6:
            raise CartoucheError("the words cancel each other out; what is added must not all be taken away")
        return _unit(np.asarray(total))

    def arithmetic(self, plus: Sequence[str], minus: Sequence[str], among: Sequence[str]) -> list[Near]:
        """The names `among` by their nearness to plus - minus, with honest ranks: no term of the sum is left out.

        The usual reckoning leaves the terms out, and king - man + woman is then queen, where the honest nearest is most
        often king (Linzen 2016, "Issues in evaluating semantic spaces using word analogies"). Near.given tells them.
        """
        names, given = list(dict.fromkeys(among)), {*plus, *minus}
        cosines = self.texts(names) @ self.sum(plus, minus)
        order = np.argsort(-cosines, kind="stable")
        return [Near(names[i], float(cosines[i]), rank, names[i] in given) for rank, i in enumerate(order.tolist(), 1)]

    def _term(self, term: str | np.ndarray) -> np.ndarray:
        return self.texts([term])[0] if isinstance(term, str) else np.asarray(term, np.float32)


def filled(template: str, label: str) -> str:
    """A template with the label in its place."""
    return template.replace("{an}", an(label)).replace("{}", label)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., D) at length 1."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32(1e-12))


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of `size`, the last perhaps shorter."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch
