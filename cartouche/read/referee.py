"""What the referee sees in a picture: objects with their places and names, the style, the background."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from cartouche.config import CartoucheError
from cartouche.weights import folder as folders

if TYPE_CHECKING:
    import torch

    from cartouche.nets.referee import Referee, Sight

SPLITS = ("", "left", "above")
THRESHOLD = 0.3  # of the centre's probability


@dataclass(frozen=True)
class Sighting:
    """One object seen. box: (x0, y0, x1, y1) in pixels; score: chance of a centre; concept: its best name."""

    concept: str
    score: float
    box: tuple[float, float, float, float]

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Reading:
    """One picture read: objects with the surest first, style, background colours (two where it is split)."""

    objects: tuple[Sighting, ...]
    style: str
    split: str
    background: tuple[str, ...]


class RefereeReader:
    """The referee of a folder. `among`: the concepts it may name; all it knows by default."""

    def __init__(self, folder: Path | str, among: Iterable[str] | None = None) -> None:
        self.net = cast("Referee", folders.load_net(folder))
        known = self.net.config.concepts
        self.among = tuple(known) if among is None else tuple(among)
        strange = sorted(set(self.among) - set(known))
        if strange:
            raise CartoucheError(f"among names {strange[0]!r}, which the referee in {folder} never learned")
        self._columns = [known.index(one) for one in self.among]

    def read(self, pictures: np.ndarray, batch: int = 32) -> list[Reading]:
        """pictures (B, 3, H, W) in [-1, 1] to one Reading each."""
        import torch

        readings: list[Reading] = []
        with torch.no_grad():
            for first in range(0, len(pictures), batch):
                part = torch.from_numpy(np.ascontiguousarray(pictures[first : first + batch], np.float32))
                sight = self.net(part)
                readings += [self._reading(sight, i) for i in range(len(part))]
        return readings

    def _reading(self, sight: Sight, i: int) -> Reading:
        config = self.net.config
        split = SPLITS[int(sight.split[i].argmax())]
        grounds = (sight.first, sight.second) if split else (sight.first,)
        background = tuple(config.colours[int(one[i].argmax())] for one in grounds)
        return Reading(tuple(self._objects(sight, i)), config.styles[int(sight.style[i].argmax())], split, background)

    def _objects(self, sight: Sight, i: int) -> Sequence[Sighting]:
        from cartouche.nets.referee import STRIDE

        chance = sight.centre[i].sigmoid()  # (h, w)
        ys, xs = peaks(chance).nonzero(as_tuple=True)
        names = self.net.name(sight.features[i, :, ys, xs].T)[:, self._columns].argmax(1)
        seen = []
        for y, x, name in zip(ys.tolist(), xs.tolist(), names.tolist(), strict=True):
            dx, dy, log_w, log_h = sight.box[i, :, y, x].tolist()
            cx, cy, w, h = (x + dx) * STRIDE, (y + dy) * STRIDE, np.exp(log_w) * STRIDE, np.exp(log_h) * STRIDE
            box = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
            seen.append(Sighting(self.among[name], float(chance[y, x]), box))
        return sorted(seen, key=lambda one: -one.score)


def peaks(chance: torch.Tensor) -> torch.Tensor:
    """Where a map (h, w) has a local maximum of a 3x3 neighbourhood above the threshold: (h, w) bool."""
    from torch.nn.functional import max_pool2d

    return (max_pool2d(chance[None, None], 3, stride=1, padding=1)[0, 0] == chance) & (chance > THRESHOLD)
