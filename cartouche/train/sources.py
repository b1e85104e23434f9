"""Sources that prepare samples for a task: captions to token ids, runs of several sources in turn, stored latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cartouche.config import CartoucheError
from cartouche.text import Tokenizer
from cartouche.train.stream import Source


@dataclass
class Tokenized:
    """`source` with `ids` (N,) int64 in place of the caption."""

    source: Source
    tokenizer: Tokenizer

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = dict(self.source[index])
        sample["ids"] = np.asarray(self.tokenizer.encode(sample.pop("caption")).ids, np.int64)
        return sample


@dataclass
class Turns:
    """Runs of `run` samples from each source in turn; each source's own samples keep their order."""

    sources: Sequence[Source]
    run: int

    def __post_init__(self) -> None:
        if self.run < 1:
            raise CartoucheError(f"runs of {self.run} samples asked; choose 1 or more")

    def __getitem__(self, index: int) -> dict[str, Any]:
        block, place = divmod(index, self.run)
        turn, which = divmod(block, len(self.sources))
        return self.sources[which][turn * self.run + place]


@dataclass
class Cached:
    """Latents and captions of a fixed set of scenes, computed once: what a denoiser trains on.

    latents (S, C, h, w) float16; ids (S * captions, N), `captions` rows for each scene. Sample i is scene i mod S, told
    with another of its captions each time round. `gather` takes a whole batch at once.
    """

    latents: np.ndarray
    ids: np.ndarray

    def __post_init__(self) -> None:
        self.captions = len(self.ids) // len(self.latents)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: value[0] for name, value in self.gather([index]).items()}

    def gather(self, indices: list[int]) -> dict[str, Any]:
        """The samples `indices` stacked: {"latents": (B, C, h, w) float32, "prompt": (B, N) token ids}."""
        turns, scenes = np.divmod(np.asarray(indices), len(self.latents))
        rows = scenes * self.captions + turns % self.captions
        return {"latents": self.latents[scenes].astype(np.float32), "prompt": self.ids[rows].astype(np.int64)}
