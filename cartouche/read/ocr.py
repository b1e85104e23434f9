"""Writing in pictures, read by rapidocr (extra `ocr`), whose small nets come inside its package.

It knows Latin letters, French ones among them, digits and Chinese; how well is in benchmarks/results/ocr.json.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from cartouche import images
from cartouche.device import processors
from cartouche.engine import openvino_core

STAGES = ("Det", "Cls", "Rec")  # where text is, which way up it is, what it says


@dataclass(frozen=True)
class Line:
    """A line of writing. confidence: 0 to 1; corners: four (x, y) in pixels, the upper left of the writing first."""

    text: str
    confidence: float
    corners: tuple[tuple[float, float], ...]


class Ocr:
    """The reader of writing. Raises ModuleNotFoundError where the extra is not installed. One call at a time."""

    def __init__(self) -> None:
        self._engine, self._lock = engine()

    def read(self, pictures: np.ndarray) -> list[list[Line]]:
        """The lines of each picture (B, 3, H, W) in [-1, 1], from top to bottom."""
        return [self.pixels(one) for one in images.to_uint8(pictures)]

    def pixels(self, pixels: np.ndarray) -> list[Line]:
        """The lines of one picture (H, W, 3) uint8, from top to bottom."""
        with self._lock:
            found = self._engine(np.ascontiguousarray(pixels[:, :, ::-1]))  # blue first
        if found.txts is None:
            return []
        corners = [tuple((float(x), float(y)) for x, y in box) for box in found.boxes]
        return [Line(*one) for one in zip(found.txts, map(float, found.scores), corners, strict=True)]


@lru_cache(maxsize=1)
def engine() -> tuple[Any, threading.Lock]:
    """The one engine of this process and the lock of its calls, kept to its end.

    Each of its nets has an OpenVINO core of its own, and cores must not be freed: `openvino_core` says why.
    """
    from rapidocr import EngineType, RapidOCR

    openvino_core()
    settings: dict[str, Any] = {f"{stage}.engine_type": EngineType.OPENVINO for stage in STAGES}
    settings |= {"Global.log_level": "critical", "EngineConfig.openvino.inference_num_threads": processors()}
    return RapidOCR(params=settings), threading.Lock()
