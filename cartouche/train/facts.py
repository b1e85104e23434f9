"""What a scene holds, for one vector to tell: how many things, which stands first, and the colour of each.

Among random scenes names and colours suffice to find the right caption, so a contrast teaches neither tower of CLIP to
count, or to mind which thing is the left one. Here each picture's vector and each caption's is asked for them, through
one and the same read-out, so that what the towers say of them is said in the same directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from cartouche.data import palette
from cartouche.data.emoji import Drawing
from cartouche.data.scenes import Placed, Scene
from cartouche.data.streams import Scenes
from cartouche.nets.clip import CLIPModel
from cartouche.train.looks import in_place, scale_of, squared_error
from cartouche.train.reading import trimmed
from cartouche.train.tasks import Batch, Notes, compared, contrastive_loss

UNKNOWN = -100  # what cross-entropy passes over
COUNTS = ("things", "first", "other")  # how many there are, 0 to 4
COLOURS = ("ground", "first", "other")  # their colours
RELATIONS = ("", "beside", "above")  # how the first lies to the other, where a word is clearly true


@dataclass(frozen=True)
class Facts:
    """The facts of scenes. looks: by each drawing's key, the numbers (K,) that sum up what it looks like.

    Of two kinds of things the first is the one of which there are more, or else the left or upper one. Of three and
    more kinds nothing is asked but how many things there are and the ground.
    """

    looks: Mapping[str, np.ndarray]

    @classmethod
    def about(cls, drawings: Sequence[Drawing], numbers: np.ndarray) -> Facts:
        """Of scenes of these N drawings, whose looks are summed up in numbers (N, K), as read/memory.py does."""
        looks = ((numbers - numbers.mean(0)) / scale_of(numbers)).astype(np.float32)
        return cls(dict(zip((one.key for one in drawings), looks, strict=True)))

    def of(self, scene: Scene) -> dict[str, Any]:
        """counts (3,), colours (3,) and relation () int64; looks (2, K); placed (), whether the order is told; and
        known (), whether there are one or two kinds."""
        counts = scene.counts()
        first, other, told = in_order(scene)
        few, alone, unasked = len(counts) <= 2, len(counts) == 1, (UNKNOWN, UNKNOWN)
        numbers = (counts[first.drawing.concept], 0 if alone else counts[other.drawing.concept])
        colours = (_colour(first.colour), _colour("" if alone else other.colour))
        ground = scene.background
        return {
            "counts": np.array([len(scene.objects), *(numbers if few else unasked)]),
            "colours": np.array(
                [_colour("" if ground.split else ground.colours[0]), *(colours if few and told else unasked)]
            ),
            "relation": np.array(RELATIONS.index(_relation(scene)) if few else UNKNOWN),
            "looks": np.stack([self.looks[one.drawing.key] for one in (first, other)]),
            "placed": np.array(told),
            "known": np.array(few),
        }


def in_order(scene: Scene) -> tuple[Placed, Placed, bool]:
    """A scene's first and last kind of thing, and whether number or place says which is first."""
    first, last, told = in_place(scene)
    counts = scene.counts()
    more = counts[first.drawing.concept] - counts[last.drawing.concept]
    return (last, first, True) if more < 0 else (first, last, told or more > 0)


def _relation(scene: Scene) -> str:
    where = scene.relation(0, 1) if len(scene.objects) == 2 else ""
    return "beside" if where in ("left", "right") else "above" if where else ""


def _colour(name: str) -> int:
    return palette.NAMES.index(name) if name else UNKNOWN


@dataclass
class Told:
    """The samples of a stream of scenes, each with the facts of its scene."""

    stream: Scenes
    facts: Facts

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene = self.stream.composer[index]
        return self.stream.sample(scene, index) | self.facts.of(scene)


class Witness(nn.Module):
    """CLIP and what its vectors tell: `read` is the one read-out of both towers' (B, 512) vectors."""

    def __init__(self, clip: CLIPModel, numbers: int) -> None:
        super().__init__()
        self.clip = clip
        width = clip.config.projection_dim
        self.sizes = {
            "counts": (len(COUNTS), 5),
            "colours": (len(COLOURS), len(palette.NAMES)),
            "relation": (1, len(RELATIONS)),
            "looks": (2, numbers),
        }
        self.read = nn.Linear(width, sum(rows * columns for rows, columns in self.sizes.values()))
        self.scale = width**0.5  # a vector of length 1 has small numbers

    def tell(self, vectors: Tensor) -> dict[str, Tensor]:
        """What vectors (B, D) of length 1 tell: looks (B, 2, K), and the logits of counts (B, 3, 5), colours (B, 3, C)
        and relation (B, 1, 3)."""
        said = self.read(self.scale * vectors).float()
        parts = said.split([rows * columns for rows, columns in self.sizes.values()], dim=-1)
        return {name: part.unflatten(-1, size) for (name, size), part in zip(self.sizes.items(), parts, strict=True)}


def untold(told: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """How far what `Witness.tell` gives is from what `Facts.of` gives, stacked: the sum () of the mean cross-entropies
    and of the square error of looks as a share of their variance; and what share of each is told rightly."""
    losses, notes = [], {}
    for name in ("counts", "colours", "relation"):
        wanted = batch[name].flatten()
        logits = told[name].flatten(0, 1)
        asked = wanted != UNKNOWN
        losses.append(F.cross_entropy(logits, wanted, ignore_index=UNKNOWN, reduction="sum") / asked.sum().clamp(min=1))
        notes[name] = float((logits.detach().argmax(-1) == wanted)[asked].float().mean())
    known = batch["known"].float()
    away = (known * squared_error(told["looks"], batch["looks"], batch["placed"])).sum()
    share = away / (known * batch["looks"].square().mean((1, 2))).sum().clamp(min=1e-6)
    notes["looks"] = 1 - float(share.detach())
    return torch.stack([*losses, share]).sum(), notes


@dataclass(frozen=True)
class Telling:
    """Each picture must find its caption among the batch's, and the other way round, and both tell the facts of their
    scenes, with a weight of `facts`.

    The net is a `Witness`; batch: image (B, 3, H, W), ids (B, N), and what `Facts.of` gives. Noted are the contrast,
    which is the loss of CLIP alone, and what share of the facts is told rightly.
    """

    facts: float = 1.0

    def __call__(self, net: Any, batch: Batch, generator: Generator) -> tuple[Tensor, Notes]:
        loss, notes, _ = self.learned(net, batch, batch["ids"])
        return loss, notes

    def learned(self, net: Witness, batch: Batch, ids: Tensor) -> tuple[Tensor, Notes, Tensor]:
        """Loss, notes, and the scores (B, B + K) of the pictures with captions ids (B + K, N), the first B their own;
        the others have no part in the loss."""
        count = len(batch["ids"])
        images, texts, scores = compared(net.clip, batch["image"], trimmed(ids))
        loss, notes = contrastive_loss(scores[:, :count], batch["ids"])
        notes["contrast"] = float(loss.detach())
        for whose, vectors in (("picture", images), ("caption", texts[:count])):
            away, told = untold(net.tell(vectors), batch)
            loss = loss + self.facts * away
            notes |= {f"{whose}_{name}": value for name, value in told.items()}
        return loss, notes, scores
