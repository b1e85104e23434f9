"""Denoisers that are right by mathematics: the mean of x0 given xt, for data whose law is known.

They need no training, so whatever a sampler does wrong with them is the sampler's own fault. The best possible net on
a data set is exactly `points` of that set, which is also why a net that were perfect on its training data could only
repeat it. All of them compute in float64 and answer in the kind of array they were asked with (numpy, or torch on any
device).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cartouche.config import CartoucheError
from cartouche.diffusion.prediction import Denoiser
from cartouche.diffusion.schedule import Array, Level


def gaussian(mean: Any, std: Any) -> Denoiser:
    """The denoiser of x0 ~ N(mean, std^2), independent coordinates; mean and std broadcast against x.

    E[x0 | xt] = mean + alpha std^2 / (alpha^2 std^2 + sigma^2) (xt - alpha mean), by conditioning of joint normals.
    """
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)

    def denoise(x: Array, level: Level) -> Array:
        gain = level.alpha * std**2 / (level.alpha**2 * std**2 + level.sigma**2)
        return _like(x, mean + gain * (_float64(x) - level.alpha * mean))

    return denoise


def gaussian_path(x: Array, here: Level, there: Level, mean: Any, std: Any) -> Array:
    """Where the probability-flow ODE takes x from `here` to `there` for that data.

    Its distance from the mean, in standard deviations of the level's law N(alpha mean, alpha^2 std^2 + sigma^2), never
    changes.
    """
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    start, end = (np.hypot(level.alpha * std, level.sigma) for level in (here, there))
    return _like(x, there.alpha * mean + end / start * (_float64(x) - here.alpha * mean))


def points(data: Any) -> Denoiser:
    """The denoiser of a finite data set (M, D), every point equally likely; it takes x of shape (B, D).

    E[x0 | xt] = sum of w_i data_i, with w the softmax over i of -|xt - alpha data_i|^2 / (2 sigma^2) (Bayes).
    Raises CartoucheError for data that is not (M, D), and at sigma = 0.
    """
    data = np.asarray(data, np.float64)
    if data.ndim != 2:
        raise CartoucheError(f"data of shape {data.shape} given; flatten it to (points, coordinates)")
    squares = (data**2).sum(axis=1)

    def denoise(x: Array, level: Level) -> Array:
        if level.sigma == 0:
            raise CartoucheError("the mean over a data set asked for at sigma=0; ask at a rung of the ladder")
        # |xt|^2 is the same for every point, so the softmax does not need it.
        near = _float64(x) @ data.T - level.alpha / 2 * squares  # (B, M)
        logits = near * (level.alpha / level.sigma**2)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return _like(x, weights @ data / weights.sum(axis=1, keepdims=True))

    return denoise


def spiral(count: int = 1500) -> np.ndarray:
    """(count, 2): points at equal distances along a spiral around 0, unit standard deviation per coordinate."""
    angle = np.linspace(math.pi, 4 * math.pi, 20 * count)
    curve = np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=1)
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(curve, axis=0).T))])
    even = np.linspace(0, length[-1], count)
    placed = np.stack([np.interp(even, length, coordinate) for coordinate in curve.T], axis=1)
    placed -= placed.mean(axis=0)
    return np.asarray(placed / np.sqrt((placed**2).mean()))


def _float64(x: Array) -> np.ndarray:
    return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x, dtype=np.float64)


def _like(x: Array, values: np.ndarray) -> Array:
    """`values` as an array of x's kind and number type."""
    return values.astype(x.dtype) if isinstance(x, np.ndarray) else x.new_tensor(values)
