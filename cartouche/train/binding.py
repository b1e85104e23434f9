"""Contrastive learning with hard negatives (NegCLIP, Yuksekgonul et al. 2023, section 4), and the scenes for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from cartouche.data.captions import LANGUAGES
from cartouche.data.negatives import Negatives, bound
from cartouche.data.scenes import Scene, render, rng_of
from cartouche.data.streams import Scenes
from cartouche.images import from_uint8
from cartouche.text import Tokenizer
from cartouche.train.reading import trimmed
from cartouche.train.tasks import LN_100, Batch, Notes, contrastive_loss, pictures, similarity

COLOURING = 0xB0DE


@dataclass
class Bound:
    """Scenes whose things have colours of their own, with a true caption and `count` hard negatives.

    image (3, H, W); ids (N,) and negatives (count, N) int64.
    """

    scenes: Scenes
    negatives: Negatives
    tokenizer: Tokenizer
    count: int = 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene = self.scene(index)
        pixels, _ = render(self.scenes.pack, scene)
        seed = self.scenes.composer.seed
        language = LANGUAGES[int(rng_of(seed, index).integers(len(LANGUAGES)))]
        said, false = self.negatives.captioned(scene, (seed << 40) + index, language, self.count)
        ids = [self.tokenizer.encode(text).ids for text in (said, *false)]
        return {"image": from_uint8(pixels[None])[0], "ids": ids[0], "negatives": np.stack(ids[1:])}

    def scene(self, index: int) -> Scene:
        """Scene `index`, its things coloured."""
        composer = self.scenes.composer
        return bound(composer[index], rng_of(composer.seed ^ COLOURING, index))


@dataclass(frozen=True)
class Binding:
    """As train.tasks.Contrastive, each picture also against its negatives: further columns that no picture matches.

    batch: what `Bound` gives. hard=False leaves the negatives out: plain contrastive learning on the same pictures.
    """

    hard: bool = True

    def __call__(self, net: Any, batch: Batch, generator: Generator) -> tuple[Tensor, Notes]:
        with torch.no_grad():
            net.logit_scale.clamp_(0.0, LN_100)
        ids, false = batch["ids"], batch["negatives"].flatten(0, 1)
        images = net.encode_image(pictures(batch["image"])).float()
        texts = net.encode_text(trimmed(torch.cat([ids, false]) if self.hard else ids)).float()
        scores = similarity(images, texts, net.logit_scale)  # (B, B + K)
        square, more = scores[:, : len(ids)], scores[:, len(ids) :]
        loss, notes = contrastive_loss(square, ids)
        if not self.hard:
            return loss, notes
        own = (false[None] == ids[:, None]).all(-1)  # what is false of one picture may be another's caption
        apart = torch.cat([square, more.masked_fill(own, float("-inf"))], dim=1).logsumexp(1) - square.logsumexp(1)
        wrong = more.detach().view(len(ids), len(ids), -1).diagonal().amax(0)  # (B,), each picture's own best negative
        notes["told_apart"] = float((square.detach().diagonal() > wrong).float().mean())
        return loss + 0.5 * apart.mean(), notes
