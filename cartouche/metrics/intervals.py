"""How sure a rate is: Wilson's interval, the bootstrap, a judge's rate corrected for the judge's own errors, AUROC."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from cartouche.config import CartoucheError

LEVEL = 0.95
TELLS = 0.2  # least Youden index: below it a corrected rate is more than five times as unsure as the raw one


class Interval(NamedTuple):
    """An estimate and the interval that holds the truth as often as its level says."""

    value: float
    low: float
    high: float


class Tally(NamedTuple):
    """`right` out of `n`; n may be the effective size of a clustered sample, and so a fraction."""

    right: float
    n: float


def wilson(right: float, n: float, level: float = LEVEL) -> Interval:
    """The interval of a share `right` / `n` (Wilson 1927): right where Wald's collapses, at 0, at 1 and for few."""
    _check(right, n)
    z, p = _z(level), right / n
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    scale = 1 + z * z / n
    return Interval(p, max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale))


def effective_size(right: Sequence[bool], clusters: Sequence[Hashable]) -> float:
    """How many independent yes-or-no answers these are worth, when those of one cluster go together.

    Several pictures of one prompt succeed or fail together, so n pictures tell less than n prompts would. The variance
    of the share is that of the cluster totals (Kish 1965); the result lies between the number of clusters
    and n, and is the former where all answers are the same and nothing can be seen of their tie.
    """
    if len(right) != len(clusters) or not len(right):
        raise CartoucheError(f"{len(right)} answers in {len(clusters)} clusters given; give a cluster for each answer")
    y, (names, which) = np.asarray(right, float), np.unique([str(one) for one in clusters], return_inverse=True)
    n, C, p = len(y), len(names), float(y.mean())
    if C < 2 or p in (0.0, 1.0):
        return float(C)
    residuals = np.bincount(which, y - p)
    variance = float((residuals**2).sum()) * C / (C - 1) / n**2
    return float(np.clip(p * (1 - p) / variance, C, n)) if variance > 0 else float(n)


def bootstrap(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], float] = np.mean,
    level: float = LEVEL,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """The percentile interval of a statistic over resampled rows of `values` (Efron and Tibshirani 1993, chapter 13).

    values: (N, ...), one row an independent sample. The same seed gives the same interval.
    """
    values = np.asarray(values)
    if not len(values):
        raise CartoucheError("nothing to resample; give at least one value")
    rng = np.random.Generator(np.random.Philox(seed))
    found = [float(statistic(values[rng.integers(0, len(values), len(values))])) for _ in range(draws)]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(values)), float(low), float(high))


def youden(sensitivity: Tally, specificity: Tally, level: float = LEVEL) -> Interval:
    """Youden's index, sensitivity + specificity - 1: 1 for a perfect judge, 0 for one that tosses a coin.

    The interval is Newcombe's for a difference of two shares (1998, method 10), made of the two Wilson intervals.
    """
    se, sp = wilson(*sensitivity, level), wilson(*specificity, level)
    value = se.value + sp.value - 1
    below = ((se.value - se.low) ** 2 + (sp.value - sp.low) ** 2) ** 0.5
    above = ((se.high - se.value) ** 2 + (sp.high - sp.value) ** 2) ** 0.5
    return Interval(value, value - below, value + above)


def rogan_gladen(
    seen: Tally, sensitivity: Tally, specificity: Tally, level: float = LEVEL, tells: float = TELLS
) -> Interval | None:
    """The true rate behind a rate that an imperfect judge saw, with an interval that carries all three uncertainties.

    value: (p + Sp - 1) / (Se + Sp - 1), cut to [0, 1] (Rogan and Gladen 1978). The interval is Lang and
    Reiczigel's (2014): shares are first drawn towards one half, then the three binomial variances are added.
    seen: how often the judge said yes. sensitivity: how often it said yes where yes was true; specificity: no where no.
    None where the judge cannot tell: its Youden index is not surely above `tells`.
    """
    index = youden(sensitivity, specificity, level)
    if index.low <= tells:
        return None
    z = _z(level)
    n = seen.n + z * z
    p = (seen.right + z * z / 2) / n
    se, sp = ((one.right + 1) / (one.n + 2) for one in (sensitivity, specificity))
    spread_se, spread_sp = se * (1 - se) / (sensitivity.n + 2), sp * (1 - sp) / (specificity.n + 2)
    middle = (p + sp - 1) / (se + sp - 1)
    shift = 2 * z * z * (middle * spread_se - (1 - middle) * spread_sp)
    variance = p * (1 - p) / n + middle**2 * spread_se + (1 - middle) ** 2 * spread_sp
    half = z * variance**0.5 / (se + sp - 1)
    value = (seen.right / seen.n + specificity.right / specificity.n - 1) / index.value
    low, high, value = (float(np.clip(one, 0, 1)) for one in (middle + shift - half, middle + shift + half, value))
    return Interval(value, min(low, value), max(high, value))


def auroc(scores: Sequence[float] | np.ndarray, positive: Sequence[bool] | np.ndarray) -> float:
    """Chance that a positive's score is above a negative's, ties counting one half (Hanley and McNeil 1982).

    scores, positive: (N,). Raises CartoucheError where one of the two kinds is missing.
    """
    scores, positive = np.asarray(scores, float), np.asarray(positive, bool)
    yes, no = int(positive.sum()), int((~positive).sum())
    if scores.shape != positive.shape or not yes or not no:
        raise CartoucheError(f"{yes} positives and {no} negatives for {len(scores)} scores; wanted some of each kind")
    _, which, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[which]  # ties share their mean rank
    return float((ranks[positive].sum() - yes * (yes + 1) / 2) / (yes * no))


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise CartoucheError(f"level={level} given; choose a share between 0 and 1, as 0.95")
    return NormalDist().inv_cdf((1 + level) / 2)


def _check(right: float, n: float) -> None:
    if not (n > 0 and 0 <= right <= n):
        raise CartoucheError(f"{right} right of {n}; wanted 0 <= right <= n, and n above 0")
