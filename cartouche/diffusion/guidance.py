"""Classifier-free guidance: the net is asked twice, with the prompt and without, and the difference is exaggerated.

    out = u + guidance_scale * (c - u)      (Ho and Salimans, arXiv 2207.12598, eq. 6, whose w is guidance_scale - 1)

Neutral at 1, blind to the prompt at 0, exaggerated above 1. A negative prompt stands in place of the empty one in u.
The mixing is done on the net's own output, as diffusers does. Both passes go through the net as one batch, and which
half is which is known in `_two_passes` alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from cartouche.config import CartoucheError
from cartouche.diffusion.prediction import Denoiser, to_x0
from cartouche.diffusion.samplers import Step
from cartouche.diffusion.schedule import Array, Level

Context = Any
"""What the prompt became: an array (B, N, D) or (1, N, D), or a dict of such arrays for nets that take several."""

ConditionalNet = Callable[[Array, float, Context], Array]
"""(x, t, context) -> the net's raw output, shaped like x."""


class Passes(NamedTuple):
    """What one guided call of the net saw, as clean estimates; None for a pass that was not made."""

    level: Level
    conditional: Array | None
    unconditional: Array | None
    x0: Array


def guided(
    net: ConditionalNet,
    kind: str,
    conditional: Context,
    unconditional: Context,
    guidance_scale: float,
    rescale: float = 0.0,
    interval: tuple[float, float] = (0.0, 1.0),
    observe: Callable[[Passes], None] | None = None,
) -> Denoiser:
    """A denoiser that follows the prompt guidance_scale times as far as the net alone would.

    kind: what the net predicts (`prediction.KINDS`). rescale: 0 ... 1, pulls the spread of the result back to the
    conditional one's (Lin et al., arXiv 2305.08891, eq. 16). interval: guide only where the share of noise, sigma /
    (alpha + sigma), lies in it, and ask with the prompt alone elsewhere (Kynkaanniemi et al., arXiv 2404.07724).
    observe: told of both passes. At scale 1, at scale 0 and outside the interval the net is asked once. Raises
    CartoucheError for settings out of range.
    """
    _check(guidance_scale, rescale, interval)

    def denoise(x: Array, level: Level) -> Array:
        share = level.sigma / (level.alpha + level.sigma)
        c = u = None
        if guidance_scale == 0:
            out = u = net(x, level.t, _rows(unconditional, len(x)))
        elif guidance_scale == 1 or not interval[0] <= share <= interval[1]:
            out = c = net(x, level.t, _rows(conditional, len(x)))
        else:
            c, u = _two_passes(net, x, level.t, conditional, unconditional)
            out = _rescaled(u + guidance_scale * (c - u), c, rescale)
        x0 = to_x0(kind, out, x, level)
        if observe is not None:
            halves = [None if half is None else to_x0(kind, half, x, level) for half in (c, u)]
            observe(Passes(level, conditional=halves[0], unconditional=halves[1], x0=x0))
        return x0

    return denoise


def attach(steps: Iterable[Step], seen: list[Passes]) -> Iterator[Step]:
    """The same steps, each with the passes made at its start; `seen` is the list whose append is `guided`'s observe."""
    for step in steps:
        passes = seen[0] if seen else None
        seen.clear()
        yield step._replace(passes=passes)


def _two_passes(
    net: ConditionalNet, x: Array, t: float, conditional: Context, unconditional: Context
) -> tuple[Array, Array]:
    """(conditional, unconditional) outputs, both passes as one batch of 2B."""
    size = len(x)
    out = net(_join(x, x), t, _join(_rows(unconditional, size), _rows(conditional, size)))
    return out[size:], out[:size]


def _rescaled(out: Array, like: Array, share: float) -> Array:
    """`out` with each image's spread moved by `share` of the way to that of `like` (Lin et al., eq. 15 and 16)."""
    if share == 0:
        return out
    return share * (out * (_spread(like) / _spread(out))) + (1 - share) * out


def _spread(x: Array) -> Array:
    """(B, 1, ..., 1): the standard deviation of every image."""
    flat = x.reshape(len(x), -1)
    deviation = flat - flat.mean(1).reshape(-1, 1)
    return ((deviation * deviation).mean(1) ** 0.5).reshape(-1, *[1] * (x.ndim - 1))


def _rows(context: Context, size: int) -> Context:
    """The context with one row per image; a single row serves them all."""
    if isinstance(context, dict):
        return {name: _rows(part, size) for name, part in context.items()}
    if len(context) == size:
        return context
    if len(context) != 1:
        raise CartoucheError(f"a context of {len(context)} rows given for {size} images; give one, or one per image")
    return context[[0] * size]


def _join(first: Context, second: Context) -> Context:
    """Two batches as one, for arrays, tensors and dicts of them."""
    if isinstance(first, dict):
        return {name: _join(part, second[name]) for name, part in first.items()}
    if isinstance(first, np.ndarray):
        return np.concatenate([first, second])
    import torch

    return torch.cat([first, second])


def _check(guidance_scale: float, rescale: float, interval: tuple[float, float]) -> None:
    """Settings out of range are refused here, before the first step."""
    if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
        raise CartoucheError(f"guidance_scale={guidance_scale} given; choose 0 or more (1 is neutral)")
    if not 0 <= rescale <= 1:
        raise CartoucheError(f"rescale={rescale} given; choose 0 (off) to 1")
    if not 0 <= interval[0] <= interval[1] <= 1:
        raise CartoucheError(f"interval={interval} given; choose two shares of noise, 0 <= low <= high <= 1")
