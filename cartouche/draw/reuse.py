"""Reuse of deep features between steps: what the U-Net finds at its coarser levels changes slowly from step to step.

Ma et al., DeepCache (CVPR 2024, arXiv 2312.00858), with equal intervals and the shallowest branch: between two whole
passes only the first convolution and the last block of the U-Net are computed, beside what the whole pass kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cartouche.engine import Net


class Reused:
    """A U-Net whose inside is computed at every `interval`-th call, and whenever the size of its batch changes."""

    def __init__(self, deep: Net, shallow: Net, interval: int) -> None:
        self._deep, self._shallow, self._interval = deep, shallow, interval
        self.precision = shallow.precision
        self._calls = 0
        self._kept: np.ndarray | None = None

    def __call__(self, **arrays: np.ndarray) -> Any:
        if self._kept is None or len(self._kept) != len(arrays["sample"]) or self._calls % self._interval == 0:
            self._kept, self._calls = self._deep(**arrays), 0
        self._calls += 1
        return self._shallow(**arrays, deep=self._kept)
