"""Masks: intersection over union of one object and of whole label maps, and how well outlines agree."""

from __future__ import annotations

import numpy as np

from cartouche.config import CartoucheError

TOLERANCE = 0.0075  # of the diagonal: how far an outline may lie from the true one


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair of masks: (N, H, W) and (M, H, W) bool to (N, M); 0 where both are
    empty."""
    a, b = (np.asarray(one, bool).reshape(len(one), -1).astype(float) for one in _same(a, b, 3))
    both = a @ b.T
    union = a.sum(1)[:, None] + b.sum(1)[None] - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def mean_iou(said: np.ndarray, truth: np.ndarray, classes: int, ignore: int | None = None) -> float:
    """mIoU of label maps: the mean over classes of pixels in both over pixels in either (Everingham et al. 2010).

    said, truth: integer arrays of one shape, any number of pictures. Classes that occur in neither are left out, and
    so are pixels whose true label is `ignore`.
    """
    per_class = class_iou(said, truth, classes, ignore)
    return float(np.nanmean(per_class))


def class_iou(said: np.ndarray, truth: np.ndarray, classes: int, ignore: int | None = None) -> np.ndarray:
    """IoU of each class of label maps: (classes,), NaN for a class that occurs in neither."""
    said, truth = np.asarray(said), np.asarray(truth)
    if said.shape != truth.shape or not truth.size:
        raise CartoucheError(f"label maps of shapes {said.shape} and {truth.shape}; wanted one shape, not empty")
    kept = np.ones(truth.shape, bool) if ignore is None else truth != ignore
    said, truth = said[kept].astype(np.int64), truth[kept].astype(np.int64)
    if not kept.any() or min(said.min(), truth.min()) < 0 or max(said.max(), truth.max()) >= classes:
        raise CartoucheError(f"labels outside 0 ... {classes - 1}, or no pixel left to count; raise `classes`")
    table = np.bincount(truth * classes + said, minlength=classes * classes).reshape(classes, classes)
    both, union = np.diag(table).astype(float), (table.sum(0) + table.sum(1) - np.diag(table)).astype(float)
    return np.divide(both, union, out=np.full(classes, np.nan), where=union > 0)


def boundary_f(said: np.ndarray, truth: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """F measure of two outlines (Csurka et al. 2013): precision is the share of said boundary pixels within
    `tolerance` of the diagonal of a true one, recall the other way round.

    said, truth: (H, W) bool. 1 where both are empty, 0 where one is. A boundary pixel is a pixel of the mask with a
    neighbour (of four) outside it; the edge of the picture is no boundary.
    """
    said, truth = (np.asarray(one, bool) for one in _same(said, truth, 2))
    reach = tolerance * float(np.hypot(*said.shape))
    lines = boundary(said), boundary(truth)
    if not lines[0].any() or not lines[1].any():
        return float(not lines[0].any() and not lines[1].any())
    precision = float(widened(lines[1], reach)[lines[0]].mean())
    recall = float(widened(lines[0], reach)[lines[1]].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask (H, W) that touch its outside."""
    framed = np.pad(mask, 1, mode="edge")
    inside = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    return mask & ~inside


def widened(line: np.ndarray, reach: float) -> np.ndarray:
    """Every pixel at most `reach` pixels, by the straight way, from one of the line's: (H, W) bool."""
    H, W = line.shape
    r = min(int(reach), max(H, W))
    framed = np.pad(line, r)
    out = np.zeros_like(line)
    for dy in range(-r, r + 1):
        for dx in range(-r, r + 1):
            if dy * dy + dx * dx <= reach * reach:
                out |= framed[r + dy : r + dy + H, r + dx : r + dx + W]
    return out


def _same(a: np.ndarray, b: np.ndarray, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != dimensions or b.ndim != dimensions or a.shape[-2:] != b.shape[-2:]:
        raise CartoucheError(f"masks of shapes {a.shape} and {b.shape}; wanted {dimensions} dimensions, one (H, W)")
    return a, b
