"""What a net predicts, and how each of it becomes the clean estimate x0.

From xt = alpha x0 + sigma eps, a net may be trained to predict any one mixture of x0 and eps; given xt, every one of
them names the same x0. All four conversions are affine and exact for any (alpha, sigma), variance preserving or flow.

| kind | the net's output | x0 fails |
|---|---|---|
| epsilon | eps (DDPM, arXiv 2006.11239, eq. 14) | where alpha = 0: noise alone says nothing of the picture |
| v_prediction | alpha eps - sigma x0 (Salimans and Ho, arXiv 2202.00512, section 4) | never |
| sample | x0 | never |
| flow | eps - x0 (Liu et al., arXiv 2209.03003, eq. 1) | never |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cartouche.config import CartoucheError, unknown
from cartouche.diffusion.schedule import Array, Level

Denoiser = Callable[[Array, Level], Array]
"""(x, level) -> x0: everything a sampler knows of a network."""

KINDS = ("epsilon", "v_prediction", "sample", "flow")


def to_x0(kind: str, out: Array, x: Array, level: Level) -> Array:
    """The clean estimate from the net's output. out, x and result: same shape.

    For training, alpha and sigma of `level` may be arrays that broadcast against x, such as (B, 1, 1, 1).
    Raises CartoucheError for an unknown kind, and for epsilon at alpha = 0.
    """
    alpha, sigma = level.alpha, level.sigma
    if kind == "epsilon":
        _nonzero(alpha, "an epsilon net asked for x0 at alpha=0; use v_prediction, sample or flow there")
        return (x - sigma * out) / alpha
    if kind == "v_prediction":
        return (alpha * x - sigma * out) / (alpha * alpha + sigma * sigma)
    if kind == "sample":
        return out
    if kind == "flow":
        return (x - sigma * out) / (alpha + sigma)
    raise unknown("prediction type", kind, KINDS)


def target(kind: str, x0: Array, eps: Array, level: Level) -> Array:
    """What the net should have said, for the loss. x0, eps, result: same shape; levels may broadcast."""
    if kind == "epsilon":
        return eps
    if kind == "v_prediction":
        return level.alpha * eps - level.sigma * x0
    if kind == "sample":
        return x0
    if kind == "flow":
        return eps - x0
    raise unknown("prediction type", kind, KINDS)


def to_eps(x: Array, x0: Array, level: Level) -> Array:
    """The noise that x holds if x0 is its picture: (x - alpha x0) / sigma. Raises CartoucheError at sigma = 0."""
    _nonzero(level.sigma, "the noise of a picture without any asked for (sigma=0); start from a rung of the ladder")
    return (x - level.alpha * x0) / level.sigma


def denoiser(net: Callable[[Array, float], Array], kind: str) -> Denoiser:
    """A net (x, t) -> output as a denoiser, without guidance."""
    return lambda x, level: to_x0(kind, net(x, level.t), x, level)


def kind_of(config: Mapping[str, Any]) -> str:
    """The prediction kind a diffusers `scheduler_config.json` names; else epsilon, or flow for flow matching."""
    straight = str(config.get("_class_name", "")).startswith("FlowMatch")
    name = config.get("prediction_type", "flow" if straight else "epsilon")
    kind = "flow" if name == "flow_prediction" else str(name)
    if kind not in KINDS:
        raise unknown("prediction type", kind, KINDS)
    return kind


def _nonzero(scale: Any, why: str) -> None:
    """Levels of a drawing are floats and are checked; arrays of training levels are the caller's care."""
    if isinstance(scale, float | int) and scale == 0:
        raise CartoucheError(why)
