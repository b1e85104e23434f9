"""Seeded noise: a seed is one picture, whatever the batch, the device or the engine.

Each image draws its own stream from numpy's counter-based Philox, keyed by (seed, index) and counted by the step.
numpy keeps the raw words of Philox fixed for ever but not what its generators make of them, so the normals are our
own (Box-Muller).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cartouche.config import CartoucheError
from cartouche.diffusion.schedule import Array

LARGEST_SEED = 2**64 - 1


def check_seed(seed: Any) -> int:
    """`seed` as a Python int. Raises CartoucheError unless it is a whole number from 0 to 2**64 - 1."""
    return _whole("seed", seed)


def gaussian(seed: int, index: int, step: int, shape: Sequence[int]) -> np.ndarray:
    """Unit normals for one image at one step, float32 of the given shape; step 0 is the starting noise.

    The same (seed, index, step) always gives the same values, and a longer draw begins with a shorter one's.
    """
    key = np.array([_whole("seed", seed), _whole("index", index)], dtype=np.uint64)
    counter = np.array([0, 0, 0, _whole("step", step)], dtype=np.uint64)
    count = math.prod(shape)
    words = np.random.Philox(key=key, counter=counter).random_raw(count + count % 2)
    uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53  # [0, 1)
    radius = np.sqrt(-2 * np.log1p(-uniform[0::2]))
    angle = 2 * math.pi * uniform[1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.reshape(-1)[:count].reshape(tuple(shape)).astype(np.float32)


@dataclass(frozen=True)
class NoiseSource:
    """The noise of a batch: source(step) -> (B, *shape), row b being image indices[b]'s own.

    convert: makes each batch an array of the caller's kind, such as torch.from_numpy.
    """

    seed: int
    indices: Sequence[int]
    shape: Sequence[int]
    convert: Callable[[np.ndarray], Array] | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)

    def __call__(self, step: int) -> Array:
        """Unit normals for every image of the batch at one step; step 0 is the starting noise."""
        batch = np.stack([gaussian(self.seed, index, step, self.shape) for index in self.indices])
        return batch if self.convert is None else self.convert(batch)


def _whole(name: str, value: Any) -> int:
    """`value` as an int that fits a 64-bit word."""
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number <= LARGEST_SEED:
        raise CartoucheError(f"{name}={value!r} given; choose a whole number from 0 to {LARGEST_SEED}")
    return number
