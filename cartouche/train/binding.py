"""Contrastive learning with hard negatives (NegCLIP, Yuksekgonul et al. 2023, section 4), and the scenes for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from cartouche.config import CartoucheError
from cartouche.data.captions import LANGUAGES
from cartouche.data.negatives import CHANGES, Negatives, bound, pair
from cartouche.data.scenes import Scene, render, rng_of
from cartouche.data.streams import Scenes
from cartouche.images import from_uint8
from cartouche.text import Tokenizer
from cartouche.train.reading import trimmed
from cartouche.train.tasks import LN_100, Batch, Notes, contrastive_loss, pictures, similarity

COLOURING = 0xB0DE
TRIES = 200  # scenes looked at for one that can be changed


@dataclass
class Bound:
    """Pairs of scenes that differ by one small thing, every scene with a true caption and `count` false ones.

    Samples i and i + `apart` are a pair, for i in the first half of every 2 `apart` samples: with 1 the two lie side by
    side in a batch; with the batch's size the same pictures and captions come, but never two of a pair in one batch.
    image (3, H, W); ids (N,) and negatives (count, N) int64.
    """

    scenes: Scenes
    negatives: Negatives
    tokenizer: Tokenizer
    count: int = 2
    apart: int = 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        block, place = divmod(index, 2 * self.apart)
        number = block * self.apart + place % self.apart
        scene, language = self.pair(number)[place // self.apart], self.language(number)
        pixels, _ = render(self.scenes.pack, scene)
        said, false = self.negatives.captioned(scene, self.seed(number), language, self.count)
        ids = [self.tokenizer.encode(text).ids for text in (said, *false)]
        return {"image": from_uint8(pixels[None])[0], "ids": ids[0], "negatives": np.stack(ids[1:])}

    def pair(self, number: int) -> tuple[Scene, Scene]:
        """The two scenes of pair `number`, things coloured; the kinds of change take turns."""
        composer, change = self.scenes.composer, CHANGES[number % len(CHANGES)]
        for index in range(number * TRIES, (number + 1) * TRIES):
            scene = bound(composer[index], rng_of(composer.seed ^ COLOURING, index))
            found = pair(scene, change, self.negatives, self.seed(number), self.language(number))
            if found:
                return found.scenes
        raise CartoucheError(f"none of {TRIES} scenes can be changed in its {change}; give a mixture with more in it")

    def seed(self, number: int) -> int:
        """Of the words of both scenes of a pair."""
        return (self.scenes.composer.seed << 40) + number

    def language(self, number: int) -> str:
        """What both scenes of a pair are told in."""
        return LANGUAGES[int(rng_of(self.scenes.composer.seed, number).integers(len(LANGUAGES)))]


@dataclass(frozen=True)
class Binding:
    """As train.tasks.Contrastive; each picture also against its negatives, further columns that no picture matches, and
    the two of a pair against each other alone, both ways, since nothing but what binds tells those apart.

    batch: what `Bound` gives with pairs side by side. hard=False is plain contrastive learning, in whatever order.
    """

    hard: bool = True

    def __call__(self, net: Any, batch: Batch, generator: Generator) -> tuple[Tensor, Notes]:
        with torch.no_grad():
            net.logit_scale.clamp_(0.0, LN_100)
        ids, false = batch["ids"], batch["negatives"].flatten(0, 1)
        if self.hard and len(ids) % 2:
            raise CartoucheError(f"batch={len(ids)} given; pairs lie side by side in it: choose an even number")
        images = net.encode_image(pictures(batch["image"])).float()
        texts = net.encode_text(trimmed(torch.cat([ids, false]) if self.hard else ids)).float()
        scores = similarity(images, texts, net.logit_scale)  # (B, B + K)
        square, more = scores[:, : len(ids)], scores[:, len(ids) :]
        loss, notes = contrastive_loss(square, ids)
        if not self.hard:
            return loss, notes
        own = (false[None] == ids[:, None]).all(-1)  # what is false of one picture may be another's caption
        apart = torch.cat([square, more.masked_fill(own, float("-inf"))], dim=1).logsumexp(1) - square.logsumexp(1)
        pairs = torch.stack([square[i : i + 2, i : i + 2] for i in range(0, len(ids), 2)])  # (P, picture, caption)
        true, other_caption, other_picture = (
            one.diagonal(dim1=1, dim2=2) for one in (pairs, pairs.flip(2), pairs.flip(1))
        )  # (P, 2)
        between = F.softplus(other_caption - true).mean() + F.softplus(other_picture - true).mean()
        right = true.detach() > torch.maximum(other_caption, other_picture)
        notes["told_apart"] = float(right.all(1).float().mean())
        return loss + 0.5 * apart.mean() + between, notes
