"""Boxes: how much two overlap, and average precision as COCO counts it.

Not here, because our scenes have neither: crowd regions and ignored boxes. Every box counts, whatever its area.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cartouche.config import CartoucheError

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of IoU, for mAP@[.5:.95]
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # detections of one class that count in one picture, the surest ones


@dataclass(frozen=True)
class Boxes:
    """The boxes of one picture: corners (N, 4) as x0, y0, x1, y1, names (N,), and scores (N,) where they are found."""

    corners: np.ndarray
    names: Sequence[str]
    scores: np.ndarray | None = None

    def of(self, name: str, most: int = MOST) -> tuple[np.ndarray, np.ndarray]:
        """Corners and scores of one class, the surest first, at most `most`; without scores, in order."""
        mine = np.array([one == name for one in self.names], bool)
        corners = np.asarray(self.corners, float).reshape(-1, 4)[mine]
        if self.scores is None:
            return corners, np.ones(len(corners))
        scores = np.asarray(self.scores, float)[mine]
        order = np.argsort(-scores, kind="stable")[:most]
        return corners[order], scores[order]


@dataclass(frozen=True)
class Precision:
    """map50: mAP at IoU .5; map: mean over IoU .5 to .95; classes: AP of each class, one for each IoU threshold."""

    map50: float
    map: float
    classes: dict[str, np.ndarray]


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair: corners (N, 4) and (M, 4) to (N, M); 0 where both are empty."""
    both, first, second = _areas(a, b)
    union = first + second - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def overlap_coefficient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over the smaller of every pair: corners (N, 4) and (M, 4) to (N, M); 0 where one is empty."""
    both, first, second = _areas(a, b)
    smaller = np.minimum(first, second)
    return np.divide(both, smaller, out=np.zeros_like(both), where=smaller > 0)


def _areas(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every pair the area of the intersection (N, M), and each one's own, (N, 1) and (1, M)."""
    a, b = (np.asarray(one, float).reshape(-1, 4) for one in (a, b))
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    first, second = ((one[:, 2:] - one[:, :2]).clip(0).prod(-1) for one in (a, b))
    return (high - low).clip(0).prod(-1), first[:, None], second[None]


def average_precision(
    found: Sequence[Boxes], truth: Sequence[Boxes], thresholds: Sequence[float] | np.ndarray = THRESHOLDS
) -> Precision:
    """COCO's average precision over pictures: 101 recall points, precision made to fall (Lin et al. 2014; its code).

    found, truth: one Boxes a picture, in the same order. Only classes that are there in truth count. Raises
    CartoucheError where there is nothing to find.
    """
    if len(found) != len(truth):
        raise CartoucheError(f"{len(found)} pictures read, {len(truth)} known; give one of each, in the same order")
    thresholds = np.asarray(thresholds, float)
    half = np.flatnonzero(np.abs(thresholds - 0.5) < 1e-9)
    if not len(half):
        raise CartoucheError(f"thresholds {thresholds.tolist()} lack 0.5, at which mAP@.5 is taken; add it")
    where: dict[str, list[int]] = {name: [] for name in sorted({name for one in truth for name in one.names})}
    if not where:
        raise CartoucheError("no true boxes given; there is nothing to find")
    for i, (seen, known) in enumerate(zip(found, truth, strict=True)):
        for name in {*seen.names, *known.names} & where.keys():
            where[name].append(i)
    classes = {
        name: _class_precision([(found[i].of(name), truth[i].of(name)[0]) for i in there], thresholds)
        for name, there in where.items()
    }
    mean = np.mean(list(classes.values()), 0)
    return Precision(float(mean[half[0]]), float(mean.mean()), classes)


def hits(overlap: np.ndarray, threshold: float) -> np.ndarray:
    """Which of N found boxes, the surest first, hit one of M true ones: (N, M) IoU to (N,) bool.

    Each takes the free true box that it overlaps most, if at least by the threshold; of equals the last. A true box
    can be hit once.
    """
    N, M = overlap.shape
    free, hit = np.ones(M, bool), np.zeros(N, bool)
    for i, row in enumerate(np.where(overlap >= min(threshold, 1 - 1e-10), overlap, -1.0)):
        here = np.where(free, row, -1.0)
        if M and here.max() >= 0:
            free[M - 1 - int(here[::-1].argmax())] = False
            hit[i] = True
    return hit


def _class_precision(
    pictures: Sequence[tuple[tuple[np.ndarray, np.ndarray], np.ndarray]], thresholds: np.ndarray
) -> np.ndarray:
    """AP of one class at every threshold, (T,), from ((found corners, scores), true corners) of each picture."""
    scores = np.concatenate([score for (_, score), _ in pictures])
    order = np.argsort(-scores, kind="stable")
    there = sum(len(true) for _, true in pictures)
    overlaps = [iou(corners, true) for (corners, _), true in pictures]
    return np.array([_area(np.concatenate([hits(one, t) for one in overlaps])[order], there) for t in thresholds])


def _area(hit: np.ndarray, there: int) -> float:
    """Mean precision at the 101 recalls; precision at a recall is the best at that recall or beyond."""
    right = np.cumsum(hit)
    precision = np.maximum.accumulate((right / np.arange(1, len(hit) + 1))[::-1])[::-1]
    at = np.searchsorted(right / there, RECALLS, side="left")
    return float(np.append(precision, 0.0)[at].mean())
