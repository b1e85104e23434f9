"""What the reader learns to say: captions, answers and scenes as JSON, in the form of data/dialogue.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from cartouche.data.captions import LANGUAGES, Manner, caption
from cartouche.data.dialogue import Marks, Turn, caption_prompt, question_prompt, scene_answer, scene_prompt, spell
from cartouche.data.questions import Asker
from cartouche.data.scenes import Scene, render, rng_of
from cartouche.data.streams import Scenes
from cartouche.images import from_uint8
from cartouche.text import Tokenizer
from cartouche.train.referee import roughen
from cartouche.train.tasks import Batch, Notes, pictures

ROUGH, TALK = 0xB1, 0x7A1C
THOROUGH = Manner(style=1.0, background=1.0, colour=1.0, place=1.0, keyword=0.0)
"""What a caption is to be: nothing left out, so that it can be held against the scene."""
PLACES = {"caption": 44, "answers": 28, "scene": 280}
"""How many ids a turn of each kind may take after the picture; a longer one is not learned. Always the same shapes: a
new one costs a CPU more time than the padding."""
EVERY = 12  # of so many pictures one is also said as JSON


@dataclass
class Described:
    """Scenes with turns about them: a caption, `questions` answers, and for one in EVERY the scene as JSON.

    image (3, H, W); for each kind of PLACES KIND (T, N) int64, the turns after the picture, padded with the end, and
    KIND_said (T, N) bool, the ids that are to be learned: none where a turn is left out.
    """

    scenes: Scenes
    asker: Asker
    tokenizer: Tokenizer
    marks: Marks
    questions: int = 3

    def __post_init__(self) -> None:
        self._word = lru_cache(maxsize=1 << 15)(self._spelled)

    def __getitem__(self, index: int) -> dict[str, Any]:
        composer = self.scenes.composer
        scene, rng = composer[index], rng_of(composer.seed ^ TALK, index)
        pixels, _ = render(self.scenes.pack, scene)
        sample: dict[str, Any] = {"image": roughen(from_uint8(pixels[None])[0], rng_of(composer.seed ^ ROUGH, index))}
        for kind, turns in self.turns(scene, rng, index % EVERY == 0).items():
            rows = [self.row(turn, PLACES[kind]) for turn in turns]
            sample[kind], sample[f"{kind}_said"] = (np.stack(one) for one in zip(*rows, strict=True))
        return sample

    def turns(self, scene: Scene, rng: np.random.Generator, said: bool) -> dict[str, list[Turn | None]]:
        """A caption in either language, questions in either, and the scene where it is to be `said`."""
        language = _either(rng)
        answers: list[Turn | None] = []
        for other in (_either(rng) for _ in range(self.questions)):
            asked = self.asker.ask(scene, rng, other)
            answers.append(Turn(question_prompt(asked.text, other), asked.answer) if asked else None)
        return {
            "caption": [Turn(caption_prompt(language), caption(scene, rng, language, THOROUGH))],
            "answers": answers,
            "scene": [Turn(scene_prompt(), scene_answer(scene)) if said else None],
        }

    def row(self, turn: Turn | None, places: int) -> tuple[np.ndarray, np.ndarray]:
        """A turn's ids and which of them are learned, from after the picture on: two of (places,)."""
        ids, said = np.full(places, self.marks.end, np.int64), np.zeros(places, bool)
        if turn is not None:
            whole = spell([turn], self.spelled, self.marks)
            first = whole.ids.index(self.marks.image) + self.marks.patches
            size = len(whole.ids) - first
            if size <= places:
                ids[:size], said[:size] = whole.ids[first:], whole.said[first:]
        return ids, said

    def spelled(self, text: str) -> list[int]:
        """A text's ids. Merges never cross a space, so words are spelled one by one, each once."""
        return [one for word in text.split() for one in self._word(word)]

    def _spelled(self, word: str) -> tuple[int, ...]:
        return tuple(one for part in self.tokenizer.words(word) for one in part.ids)


@dataclass(frozen=True)
class Describing:
    """The next id of every answer, by cross-entropy on the answers alone (LLaVA, Liu et al. 2023, eq. 3).

    batch: what `Described` gives. All turns begin with the picture, so it is read once, and each turn goes on from a
    copy of what was remembered.
    """

    marks: Marks

    def __call__(self, net: Any, batch: Batch, generator: Generator) -> tuple[Tensor, Notes]:
        image = pictures(batch["image"])
        model, features = net.language_model.model, net.features(image)
        start = net.embed(torch.full((len(image), 1), self.marks.start, device=image.device))
        opening = torch.cat([start.to(features.dtype), features], dim=1)  # (B, 1 + P, D)
        _, keys, values = model(opening, *(one.to(features.dtype) for one in net.empty(len(image))))
        losses, notes = [], {}
        for kind in PLACES:
            said = batch[f"{kind}_said"]  # (B, T, N)
            owner, turn = (said.any(-1) | (kind != "scene")).nonzero(as_tuple=True)
            if len(owner):
                ids, mine = batch[kind][owner, turn], said[owner, turn, 1:]
                states, _, _ = model(net.embed(ids[:, :-1]), keys[:, owner], values[:, owner])
                each, right = next_ids(net, states, ids[:, 1:], mine)
                losses.append(each)
                notes[kind] = right
        loss = torch.cat(losses)
        return loss.mean(), notes


def next_ids(net: Any, states: Tensor, wanted: Tensor, said: Tensor, step: int = 256) -> tuple[Tensor, float]:
    """The loss of each id that is said, and how many of them were likeliest. states (B, N, D), wanted, said (B, N).

    The vocabulary's logits are made for what is said alone, in multiples of `step`, since new shapes cost a CPU time.
    """
    row, place = said.nonzero(as_tuple=True)
    count = len(row)
    more = torch.zeros(-count % step, dtype=row.dtype, device=row.device)
    logits = net.language_model.logits(states[torch.cat([row, more]), torch.cat([place, more])])[:count].float()
    right = logits.detach().argmax(-1) == wanted[row, place]
    return F.cross_entropy(logits, wanted[row, place], reduction="none"), float(right.float().mean())


def _either(rng: np.random.Generator) -> str:
    return LANGUAGES[int(rng.integers(len(LANGUAGES)))]
