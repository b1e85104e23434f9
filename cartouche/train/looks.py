"""What words look like: a text tower taught to picture things, before a U-Net has to learn from its states.

A contrastive text tower says which picture a caption belongs to, not what is in it: how its things look is not to be
read off its states. A U-Net that listens to it must find that out for every name by itself, from noisy pictures, each
of which costs it as much as fifteen captions cost the tower. So the tower is first taught to foresee a few numbers that
sum up the look of each thing (read/memory.py), which is DALL-E 2's prior (Ramesh et al. 2022, section 2.2) as a
regression inside the tower; its architecture stays as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from cartouche.config import CartoucheError
from cartouche.data import shuffle
from cartouche.data.scenes import Placed, Scene
from cartouche.data.streams import Scenes
from cartouche.nets.clip import CLIPTextModel
from cartouche.text import Tokenizer

THINGS = 2
ECHOED = 1 / 3  # the share of batches that are held against the tower as it was


class Teller(nn.Module):
    """A text tower and what it says two things look like, `numbers` numbers each.

    Only what follows a caption knows all of it, since the tower looks backwards alone: there the tokens at even places
    speak of the first thing and those at odd places of the second, in one language, so that a U-Net can attend to the
    one where it draws the one and to the other where it draws the other.
    """

    def __init__(self, text_encoder: CLIPTextModel, numbers: int) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.look = nn.Linear(text_encoder.config.hidden_size, numbers)
        self.end = text_encoder.config.eos_token_id

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Looks (B, THINGS, K) of token ids (B, N) that end in two end tokens or more; and all states (B, N, D)."""
        states = self.text_encoder(ids)[0]
        turn = (
            torch.arange(ids.shape[1], device=ids.device) % THINGS == torch.arange(THINGS, device=ids.device)[:, None]
        )
        shares = ((ids == self.end)[:, None] & turn).to(states)  # (B, THINGS, N)
        return self.look(shares @ states / shares.sum(2, keepdim=True)), states


class Picturing:
    """Foresee the looks of a caption's two things in order of place; and stay near what the tower said before.

    batch["ids"]: (B, N); batch["looks"]: (B, 2, K), the left or upper thing first, the same twice where there is one;
    batch["placed"]: (B,), whether the caption says which stands where: where it does not, either order will do. echo:
    what moving the states costs, as a share of their square; a U-Net that already listens to them is spared a new
    language.
    """

    def __init__(self, text_encoder: CLIPTextModel, echo: float = 0.1) -> None:
        self.before, self.echo = copy.deepcopy(text_encoder).eval().requires_grad_(False), echo

    def __call__(self, net: Any, batch: dict[str, Any], generator: Generator) -> tuple[Tensor, dict[str, float]]:
        said, states = net(batch["ids"])
        away = squared_error(said.float(), batch["looks"].float(), batch["placed"]).mean()
        notes = {"away": float(away.detach())}
        if not float(torch.rand((), generator=generator, device=generator.device)) < ECHOED:
            return away, notes
        self.before.to(states.device)
        with torch.no_grad():
            before = self.before(batch["ids"])[0].float()
        moved = (states.float() - before).square().mean() / before.square().mean()
        return away + self.echo / ECHOED * moved, notes | {"moved": float(moved.detach())}


def squared_error(said: Tensor, wanted: Tensor, placed: Tensor) -> Tensor:
    """Mean square error (B,) of two vectors each (B, 2, K); unless `placed` (B,), in the order that fits better."""
    straight, crossed = ((said - one).square().mean((1, 2)) for one in (wanted, wanted.flip(1)))
    return torch.where(placed, straight, torch.minimum(straight, crossed))


@dataclass
class Looks:
    """Captions with the looks of their things, computed once; those of a batch are of like length, cut to the longest.

    ids (S, N), the shortest captions first; looks (S, 2, K), in order of place; placed (S,). Sample i belongs to run
    i // batch, which are taken in another order every time round.
    """

    ids: np.ndarray
    looks: np.ndarray
    placed: np.ndarray
    end: int
    batch: int

    @classmethod
    def of(
        cls, stream: Scenes, tokenizer: Tokenizer, look: Callable[[Placed], np.ndarray], count: int, batch: int
    ) -> Looks:
        """Of the first scenes of a stream that show one or two different things, `count` in all; whole batches.

        Captions that fill the context, so that no tokens are left to tell the looks, are passed over.
        The stream's captions must say the place of two things whenever it is clear (Manner.place 1).
        """
        if not 1 <= batch <= count:
            raise CartoucheError(f"captions={count} asked in batches of {batch}; choose as many as a batch, or more")
        end = int(tokenizer.batch([""])[0][-1])
        rows: list[tuple[np.ndarray, ...]] = []
        index = 0
        while len(rows) < count // batch * batch:
            scene = stream.composer[index]
            first, last, said = in_place(scene)
            words = tokenizer.batch([stream.caption(scene, index)])[0]
            if len(scene.counts()) <= THINGS <= (words == end).sum():
                rows.append((words, np.stack([look(first), look(last)]), np.array(said)))
            index += 1
        ids, looks, placed = (np.stack(column) for column in zip(*rows, strict=True))
        order = np.argsort((ids != end).sum(1), kind="stable")
        return cls(ids[order].astype(np.int32), looks[order].astype(np.float32), placed[order], end, batch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: value[0] for name, value in self.gather([index]).items()}

    def gather(self, indices: Sequence[int]) -> dict[str, Any]:
        """{"ids": (B, N'), "looks": (B, 2, K), "placed": (B,)}: two end tokens or more each, every eighth run whole."""
        runs = len(self.ids) // self.batch
        whole = indices[0] // self.batch % 8 == 0
        places = []
        for index in indices:
            run, here = divmod(index, self.batch)
            places.append(shuffle.place(run % runs, runs, 0, run // runs) * self.batch + here)
        ids = self.ids[places]
        longest = ids.shape[1] if whole else int((ids != self.end).sum(1).max()) + 2
        return {
            "ids": ids[:, :longest].astype(np.int64),
            "looks": self.looks[places],
            "placed": self.placed[places],
        }


def scale_of(looks: np.ndarray) -> np.ndarray:
    """What each number of looks (N, K) is divided by, (K,): what differs most counts most, but not alone.

    A number in which nothing differs, as in a pack of few drawings, stays near 0.
    """
    spread = np.maximum(looks.std(0), 1e-6)
    return np.asarray(np.sqrt(spread * np.linalg.norm(spread) / np.sqrt(len(spread))))


def in_place(scene: Scene) -> tuple[Placed, Placed, bool]:
    """A scene's first and last kind of thing, and whether a caption says where: then the left or upper one is first."""
    kinds = list({thing.drawing.concept: thing for thing in scene.objects}.values())
    where = scene.relation(0, 1) if len(scene.objects) == len(kinds) == THINGS else ""
    if where in ("right", "below"):
        kinds.reverse()
    return kinds[0], kinds[-1], bool(where) or len(kinds) == 1
