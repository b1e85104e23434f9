"""Contrastive learning with hard negatives (NegCLIP, Yuksekgonul et al. 2023, section 4), and the scenes for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from cartouche.config import CartoucheError
from cartouche.data.emoji import Pack
from cartouche.data.negatives import Pairs
from cartouche.data.scenes import render
from cartouche.images import from_uint8
from cartouche.text import Tokenizer
from cartouche.train.facts import Facts, Telling
from cartouche.train.tasks import Batch, Notes


@dataclass
class Bound:
    """Pairs of scenes that differ by one small thing, every scene with a true caption and `count` false ones.

    Samples i and i + `apart` are a pair, for i in the first half of every 2 `apart` samples: with 1 the two lie side by
    side in a batch; with the batch's size the same pictures and captions come, but never two of a pair in one batch.
    image (3, H, W); ids (N,) and negatives (count, N) int64; and the scene's facts.
    """

    pack: Pack
    pairs: Pairs
    facts: Facts
    tokenizer: Tokenizer
    count: int = 1
    apart: int = 1

    def __post_init__(self) -> None:
        self._pair = lru_cache(maxsize=self.apart)(self.pairs.__getitem__)  # until its second scene has come

    def __getitem__(self, index: int) -> dict[str, Any]:
        block, place = divmod(index, 2 * self.apart)
        pair = self._pair(block * self.apart + place % self.apart)
        scene = pair.scenes[place // self.apart]
        pixels, _ = render(self.pack, scene)
        said, false = self.pairs.negatives.captioned(scene, pair.seed, pair.language, self.count)
        ids = [self.tokenizer.encode(text).ids for text in (said, *false)]
        sample = {"image": from_uint8(pixels[None])[0], "ids": ids[0], "negatives": np.stack(ids[1:])}
        return sample | self.facts.of(scene)


class Binding(Telling):
    """Each picture also against its negatives, further columns that no picture matches, and the two of a pair against
    each other alone, both ways, since nothing but what binds tells those apart.

    batch: what `Bound` gives, with pairs side by side.
    """

    def __call__(self, net: Any, batch: Batch, generator: Generator) -> tuple[Tensor, Notes]:
        ids, false = batch["ids"], batch["negatives"].flatten(0, 1)
        if len(ids) % 2:
            raise CartoucheError(f"batch={len(ids)} given; pairs lie side by side in it: choose an even number")
        loss, notes, scores = self.learned(net, batch, torch.cat([ids, false]))  # (B, B + K)
        square, more = scores[:, : len(ids)], scores[:, len(ids) :]
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
