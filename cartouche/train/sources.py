"""Sources that prepare samples for a task: captions to token ids, and stored latents with their text states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

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
class Cached:
    """Latents and text states of a fixed set of scenes, computed once: what a denoiser trains on.

    latents (S, C, h, w) float16; states (S * captions, N, D) float16, `captions` rows for each scene. Sample i is
    scene i mod S, told with another of its captions each time round. `gather` takes a whole batch at once.
    """

    latents: np.ndarray
    states: np.ndarray

    def __post_init__(self) -> None:
        self.captions = len(self.states) // len(self.latents)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: value[0] for name, value in self.gather([index]).items()}

    def gather(self, indices: list[int]) -> dict[str, Any]:
        """The samples `indices` stacked: {"latents": (B, C, h, w), "states": (B, N, D)}, float32."""
        turns, scenes = np.divmod(np.asarray(indices), len(self.latents))
        rows = scenes * self.captions + turns % self.captions
        return {"latents": self.latents[scenes].astype(np.float32), "states": self.states[rows].astype(np.float32)}
