"""The endless training stream over a reader: shuffled anew each epoch, with no state to save.

Sample i is a pure function of (seed, i) and of what is on disk. Resuming is starting at a number; how many processes
read, and which read what, changes nothing.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
from PIL import Image

from cartouche.config import CartoucheError
from cartouche.images import from_uint8

from .records import BadSampleError, Reader

ROUNDS = 8


def place(position: int, count: int, seed: int, epoch: int) -> int:
    """Which of `count` samples stands at `position` of the epoch: a permutation that needs no table.

    A Feistel network on pairs below ceil(sqrt(count)) (Luby and Rackoff, 1988), repeated until the answer is below
    count (cycle walking: Black and Rogaway, 2002). The answer depends on the arguments alone, not on a library's random
    generator, so it never changes.
    """
    side = isqrt(count - 1) + 1
    while True:
        left, right = divmod(position, side)
        for turn in range(ROUNDS):
            mixed = hashlib.blake2b(f"{seed}|{epoch}|{turn}|{right}".encode(), digest_size=8).digest()
            left, right = right, (left + int.from_bytes(mixed, "little")) % side
        position = left * side + right
        if position < count:
            return position


@dataclass
class Pictures:
    """The training stream: stream[i] = {"image": (3, size, size) float32 in [-1, 1], "caption": str}.

    Each epoch reads every sample once, in an order of its own (in the reader's order with shuffle=False). In the place
    of a broken sample stands the next good one of the epoch, and the others keep theirs. Raises CartoucheError when
    more are broken than the limits allow. length: how many samples someone who reads the whole stream sees (the stream
    itself never ends).
    """

    reader: Reader
    size: int
    seed: int = 0
    shuffle: bool = True
    length: int = 1 << 40

    def __post_init__(self) -> None:
        if len(self.reader) == 0:
            raise CartoucheError("the data holds no sample; a training stream needs at least one")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        for number in self._numbers(index):
            try:
                sample = self.reader[number]
            except BadSampleError as broken:
                self.reader.count_broken(number, broken)
            else:
                return {"image": from_uint8(square(sample["image"], self.size)[None])[0], "caption": sample["caption"]}
        raise CartoucheError("no sample of the data can be read; see the reader's tally for the reasons")

    def _numbers(self, index: int) -> Iterator[int]:
        """The reader's numbers to try for sample `index`: its own, then those that follow in the same epoch."""
        count = len(self.reader)
        epoch, position = divmod(index, count)
        for after in range(count):
            at = (position + after) % count
            yield place(at, count, self.seed, epoch) if self.shuffle else at


def square(pixels: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) uint8 to (size, size, 3): the largest centred square, resampled (Lanczos)."""
    height, width, _ = pixels.shape
    side = min(height, width)
    x, y = (width - side) // 2, (height - side) // 2
    if side == size:
        return pixels[y : y + side, x : x + side]
    image = Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS, box=(x, y, x + side, y + side))
    return np.asarray(image)
