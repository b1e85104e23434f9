"""How a describing net goes on from a prompt: word by word, the likeliest or a drawn one, freely or in a given shape.

The prompt with its pictures is read once; after that each word costs one step, since what was read is remembered as
keys and values (nets/llama.py), which go in and out of the net as plain arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from cartouche.config import CartoucheError
from cartouche.data.dialogue import Marks, Turn
from cartouche.data.scenes import rng_of
from cartouche.read.grammar import Vocabulary
from cartouche.read.parts import Part
from cartouche.read.tongue import tongue_of


class Prompt(NamedTuple):
    """What a net is asked: ids, and the pictures (k, 3, side, side) that stand in them, in their order."""

    ids: list[int]
    pictures: np.ndarray


class Words(NamedTuple):
    """What a net said: ids, without the end; and how likely each was among all words, the end among them."""

    ids: list[int]
    chances: list[float]

    @property
    def confidence(self) -> float:
        """The mean of the chances, 0 to 1."""
        return float(np.mean(self.chances)) if self.chances else 0.0


@dataclass(frozen=True)
class Manner:
    """temperature: 0 takes the likeliest word, 1 draws words as likely as the net finds them, above 1 more evenly.
    seed: it draws the same words for the same prompt at the same place of a list. longest: ids of an answer."""

    temperature: float = 0.0
    seed: int = 0
    longest: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise CartoucheError(f"temperature={self.temperature} given; choose 0 (the likeliest words) to 100")
        if self.longest < 1:
            raise CartoucheError(f"longest={self.longest} given; choose 1 or more")


Allowed = Callable[[Sequence[int]], "np.ndarray | None"]
"""The ids that may follow what is said so far; None where nothing more may be said."""


class Speech:
    """The net, the words and the marks of a captioner. Raises CartoucheError where they do not belong together."""

    def __init__(self, part: Part, batch: int) -> None:
        self.part, self.batch = part, batch
        config = part.config
        self.text, vision = dict(config.get("text_config") or {}), dict(config.get("vision_config") or {})
        grid = (int(vision.get("image_size", 336)) // int(vision.get("patch_size", 14))) ** 2
        patches = grid + (config.get("vision_feature_select_strategy", "default") == "full")
        self.tongue = tongue_of(part)
        image = config.get("image_token_index", config.get("image_token_id", 32000))
        self.marks = Marks(self.tongue.start, self.tongue.end, int(image), patches)
        self.prepare = part.preparation(int(vision.get("image_size", 336)))
        if self.tongue.size > int(self.text["vocab_size"]):
            raise CartoucheError(
                f"{part.folder} has {self.text['vocab_size']} words for a tokenizer of {self.tongue.size}"
            )

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What each id says, for constrained decoding."""
        return Vocabulary(self.tongue.pieces())

    @cached_property
    def sayable(self) -> np.ndarray:
        """The ids of free speech: those that say something, and the end."""
        said = [i for i, piece in enumerate(self.vocabulary.pieces) if self.tongue.speaks(piece)]
        return np.array(sorted({*said, self.marks.end}), np.int64)

    def prompt(self, turns: Sequence[Turn], pictures: Sequence[np.ndarray]) -> Prompt:
        """A conversation and its pictures, each (H, W, 3) uint8. Raises CartoucheError where it is too long."""
        ids = self.tongue.ids(turns, self.marks)
        if ids.count(self.marks.image) != len(pictures) * self.marks.patches:
            raise CartoucheError(f"{len(pictures)} pictures given for a prompt with another number of places for them")
        room = int(self.text.get("max_position_embeddings", 2048))
        if len(ids) >= room:
            raise CartoucheError(f"a prompt of {len(ids)} words and patches for a net of {room}; give fewer examples")
        return Prompt(ids, np.stack([self.prepare(picture) for picture in pictures]))

    def say(self, prompts: Sequence[Prompt], manner: Manner, allowed: Sequence[Allowed] | None = None) -> list[Words]:
        """What the net says to each prompt, in the order given; those of one length go through it together.

        allowed: for each prompt what may be said; freely and until the end if not given.
        """
        rules = allowed or [self._freely] * len(prompts)
        lengths: dict[int, list[int]] = {}
        for i, prompt in enumerate(prompts):
            lengths.setdefault(len(prompt.ids), []).append(i)
        told: dict[int, Words] = {}
        for rows in lengths.values():
            for first in range(0, len(rows), self.batch):
                some = rows[first : first + self.batch]
                draws = [rng_of(manner.seed, i) for i in some]
                said = self._together([prompts[i] for i in some], [rules[i] for i in some], draws, manner)
                told |= dict(zip(some, said, strict=True))
        return [told[i] for i in range(len(prompts))]

    def _freely(self, said: Sequence[int]) -> np.ndarray | None:
        return None if said and said[-1] == self.marks.end else self.sayable

    def _together(
        self, prompts: Sequence[Prompt], rules: Sequence[Allowed], draws: Sequence[np.random.Generator], manner: Manner
    ) -> list[Words]:
        """The answers to prompts of one length."""
        said = [Words([], []) for _ in prompts]
        room = int(self.text.get("max_position_embeddings", 2048)) - len(prompts[0].ids)
        logits, keys, values = self._read(prompts)
        for step in range(min(manner.longest, room)):
            masks = [rule(words.ids) for rule, words in zip(rules, said, strict=True)]
            if all(mask is None for mask in masks):
                break
            following = np.full((len(prompts), 1), self.marks.end, np.int64)
            for row, mask in enumerate(masks):
                if mask is not None:
                    following[row] = chosen(logits[row, -1], mask, manner.temperature, draws[row], said[row])
            if step + 1 < min(manner.longest, room):
                embeds = self.part.net("embed")(ids=following)
                logits, keys, values = self.part.net("step")(embeds=embeds, keys=keys, values=values)
        return [Words([one for one in ids if one != self.marks.end], chances) for ids, chances in said]

    def _read(self, prompts: Sequence[Prompt]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The prompts with their pictures, read at once: logits (B, N, V) and the memory."""
        ids = np.array([prompt.ids for prompt in prompts], np.int64)
        features = self.part.net("features")(pixels=np.concatenate([prompt.pictures for prompt in prompts]))
        embeds = np.array(self.part.net("embed")(ids=ids))
        embeds[ids == self.marks.image] = features.reshape(-1, features.shape[-1])
        heads = int(self.text.get("num_key_value_heads") or self.text["num_attention_heads"])
        width = int(self.text.get("head_dim") or self.text["hidden_size"] // self.text["num_attention_heads"])
        empty = np.zeros((int(self.text["num_hidden_layers"]), len(prompts), heads, 0, width), np.float32)
        logits, keys, values = self.part.net("step")(embeds=embeds, keys=empty, values=empty)
        return logits, keys, values


def chosen(logits: np.ndarray, allowed: np.ndarray, temperature: float, draw: np.random.Generator, said: Words) -> int:
    """One of the allowed ids, the likeliest or a drawn one; it is put to what is said, with its chance among all ids.

    logits: (V,) of all ids.
    """
    wide = logits.astype(np.float64)
    wide -= wide.max()
    some = wide[allowed]
    pick = int(some.argmax())
    if temperature > 0:
        weights = np.exp((some - some.max()) / temperature)
        pick = min(int(np.searchsorted(np.cumsum(weights), draw.random() * weights.sum())), len(allowed) - 1)
    token = int(allowed[pick])
    said.ids.append(token)
    said.chances.append(float(np.exp(wide[token]) / np.exp(wide).sum()))
    return token
