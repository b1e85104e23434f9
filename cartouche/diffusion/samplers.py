"""Samplers: how a drawing walks down the ladder, and the one loop that does it.

Every deterministic sampler here is the same straight move, `_move`: keep the noise that x holds, shrink it to the next
level, and put the clean estimate under it. They differ in the estimate they trust:

    euler, ddim    D = x0                                  order 1, one net call a step
    heun           D = x0 + (s / 2 s') (x0' - x0)          order 2, two calls: also looks where the step lands
    dpmpp_2m       D = x0 + (h / 2 h0) (x0 - x0 before)    order 2, one call: also remembers the step before
    pndm           D from eps averaged over four steps     order 2, one call: also remembers three steps

with s = sigma / alpha, s' the same at the end of the step, h = log(s / s') and h0 the h of the step before. The
stochastic ones put fresh noise back. Three names are one step there: Euler ancestral, DDIM with eta = 1 and DDPM with
its posterior variance agree exactly, for any pair of levels; and Euler's method on sigma / alpha, or on the flow's
sigma, is DDIM with eta = 0.

Written in alpha and sigma, every step is finite from alpha = 0 (zero terminal SNR, flow), where heun and dpmpp_2m
fall back to `D = x0`: the first step from pure noise has no slope to average.

What fresh noise is for: with the DDPM mean, leaving it out pulls all starting noises to nearly one picture; what it
rescues is coverage. The deterministic samplers need none (see benchmarks/spiral.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from cartouche.config import CartoucheError, unknown
from cartouche.diffusion.prediction import Denoiser, to_eps
from cartouche.diffusion.schedule import Array, Level

Noise = Callable[[], Array]
"""Gives a fresh unit-normal array shaped like x; a step asks at most once."""

Sampler = Callable[[Denoiser, Array, Level, Level, Noise], Array]
"""(denoise, x, here, there, noise) -> x at `there`."""


class Step(NamedTuple):
    """One finished step of a drawing, `number` of `total`, counted from 1.

    x: the picture at `there`; x0: the clean estimate that was made at `here`.
    """

    number: int
    total: int
    here: Level
    there: Level
    x: Array
    x0: Array
    passes: Any = None
    """Both guidance passes, where `guidance.attach` put them."""


def sample(
    denoise: Denoiser,
    x: Array,
    levels: Sequence[Level],
    step: Sampler,
    noise: Callable[[int], Array] | None = None,
) -> Iterator[Step]:
    """THE loop: walk x down the levels and yield every step; the drawing is the last one's x.

    x: (B, ...) at levels[0]: unit noise for a drawing from nothing. noise: k -> unit normals shaped like x, asked
    with the number of the step, from 1 (0 being the starting noise); deterministic samplers need none.
    """
    for number, (here, there) in enumerate(pairwise(levels), start=1):
        estimates: list[Array] = []
        x = step(_watched(denoise, estimates), x, here, there, _numbered(noise, number))
        yield Step(number, len(levels) - 1, here, there, x, estimates[0])


def ddpm(variance: str = "fixed_small") -> Sampler:
    """Ancestral sampling (Ho et al., arXiv 2006.11239, algorithm 2), also over fewer steps than the ladder has rungs.

    variance: `fixed_small`, the posterior's own, or `fixed_large`, the forward step's (section 3.2; sigma-hat of the
    DDIM paper).
    """
    if variance not in ("fixed_small", "fixed_large"):
        raise unknown("DDPM variance", variance, ("fixed_small", "fixed_large"))

    def step(denoise: Denoiser, x: Array, here: Level, there: Level, noise: Noise) -> Array:
        mean = posterior_mean(x, denoise(x, here), here, there)
        spread = posterior_std(here, there)
        if variance == "fixed_large" and spread > 0:
            spread = math.sqrt(_transition(here, there)[1])
        return mean + spread * noise() if spread > 0 else mean

    return step


def ddim(eta: float = 0.0) -> Sampler:
    """Song et al., arXiv 2010.02502, eq. 12: deterministic at eta = 0, DDPM at eta = 1 (eq. 16)."""
    if not 0 <= eta <= 1:
        raise CartoucheError(f"eta={eta} asked of DDIM; choose 0 (no fresh noise) to 1 (as much as DDPM)")

    def step(denoise: Denoiser, x: Array, here: Level, there: Level, noise: Noise) -> Array:
        x0 = denoise(x, here)
        spread = eta * posterior_std(here, there) if eta > 0 else 0.0
        kept = math.sqrt(max(there.sigma**2 - spread**2, 0.0))
        moved = _move(x, x0, here, there._replace(sigma=kept))
        return moved + spread * noise() if spread > 0 else moved

    return step


def euler() -> Sampler:
    """Euler's method on the probability-flow ODE dz/ds = eps, z = x / alpha (Karras et al., arXiv 2206.00364, eq. 4).

    The slope eps is held for the whole step: z' = z + (s' - s) eps, which times alpha' is DDIM at eta = 0.
    """
    return ddim(eta=0.0)


def euler_a() -> Sampler:
    """Euler ancestral (k-diffusion): an Euler step to s'^2 / s, below s', then noise back up to s'.

    Times alpha' that is DDIM at eta = 1: the same mean, the same fresh noise.
    """
    return ddim(eta=1.0)


def heun() -> Sampler:
    """Heun's method on the same ODE (Karras et al., arXiv 2206.00364, algorithm 1 without churn): order 2.

    z' = z + (s' - s)(eps + eps') / 2 with eps' taken where the Euler step lands;
    as a move, that is D = x0 + (s / 2s')(x0' - x0).
    """

    def step(denoise: Denoiser, x: Array, here: Level, there: Level, noise: Noise) -> Array:
        x0 = denoise(x, here)
        landed = _move(x, x0, here, there)
        if here.alpha == 0 or there.sigma == 0:
            return landed
        weight = (here.sigma * there.alpha) / (2 * here.alpha * there.sigma)
        return _move(x, x0 + weight * (denoise(landed, there) - x0), here, there)

    return step


def dpmpp_2m() -> Sampler:
    """DPM-Solver++ 2M (Lu et al., arXiv 2211.01095, algorithm 2, midpoint form): order 2 at one net call a step.

    The step keeps one estimate, and uses it only where the walk goes on from the level on which that one ended: a walk
    from the top starts afresh. Take a new step for every drawing, as `sampler` gives it, and nothing can be mixed up.
    """
    before: list[tuple[Array, Level, Level]] = []

    def step(denoise: Denoiser, x: Array, here: Level, there: Level, noise: Noise) -> Array:
        x0 = estimate = denoise(x, here)
        if before and before[-1][2] == here and before[-1][1].alpha > 0 and there.sigma > 0:
            last, start, _ = before[-1]
            weight = (_half_log_snr(there) - _half_log_snr(here)) / (2 * (_half_log_snr(here) - _half_log_snr(start)))
            estimate = x0 + weight * (x0 - last)
        before[:] = [(x0, here, there)]
        return _move(x, estimate, here, there)

    return step


ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def pndm() -> Sampler:
    """The linear multistep half of PNDM (Liu et al., arXiv 2202.09778, eq. 12), as Stable Diffusion's PLMS begins it.

    The noise is averaged over the last steps by Adams and Bashforth's weights, which take the steps for equal: as they
    are not in sigma / alpha, it is of order 2. The first step looks where it lands and is made again with the mean of
    both. For a walk of two steps or more.
    """
    noises: list[Array] = []
    ended: list[Level] = []

    def step(denoise: Denoiser, x: Array, here: Level, there: Level, noise: Noise) -> Array:
        x0 = denoise(x, here)
        if here.alpha == 0:
            return _move(x, x0, here, there)
        if ended != [here]:  # not where the last step ended: another walk
            noises.clear()
        noises[:] = [to_eps(x, x0, here), *noises[:3]]
        if len(noises) == 1 and there.sigma > 0:
            landed = _move(x, x0, here, there)
            eps = (noises[0] + to_eps(landed, denoise(landed, there), there)) / 2
        else:
            eps = sum(weight * one for weight, one in zip(ADAMS_BASHFORTH[len(noises) - 1], noises, strict=True))
        ended[:] = [there]
        return _move(x, (x - here.sigma * eps) / here.alpha, here, there)

    return step


SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "euler_a": euler_a,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "pndm": pndm,
}

ALIASES = {
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "HeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "PNDMScheduler": "pndm",
}
"""Scheduler classes as folders name them."""


def sampler(name: str, **options: Any) -> Sampler:
    """A fresh sampler by its name or its scheduler class, as in sampler("ddim", eta=0.5).

    Raises CartoucheError for an unknown name, with the nearest known one.
    """
    name = ALIASES.get(name, name)
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    try:
        return SAMPLERS[name](**options)
    except TypeError as error:
        raise CartoucheError(f"sampler {name} does not take {', '.join(options)}; leave it out") from error


def posterior_mean(x: Array, x0: Array, here: Level, there: Level) -> Array:
    """Mean of q(x at `there` | x at `here`, x0) (DDPM, eq. 7, for any alpha and sigma)."""
    ratio, variance = _transition(here, there)
    return (there.alpha * variance / here.sigma**2) * x0 + (ratio * there.sigma**2 / here.sigma**2) * x


def posterior_std(here: Level, there: Level) -> float:
    """Standard deviation of q(x at `there` | x at `here`, x0) (DDPM, eq. 7; DDIM, eq. 16 at eta = 1)."""
    return there.sigma / here.sigma * math.sqrt(_transition(here, there)[1])


def _transition(here: Level, there: Level) -> tuple[float, float]:
    """(ratio, variance) of the forward step up: x here = ratio * x there + sqrt(variance) * noise (DDPM, eq. 2)."""
    ratio = here.alpha / there.alpha
    return ratio, max(here.sigma**2 - (ratio * there.sigma) ** 2, 0.0)


def _move(x: Array, estimate: Array, here: Level, there: Level) -> Array:
    """alpha' D + (sigma' / sigma)(x - alpha D): the noise that x holds beside D, kept and shrunk (DDIM, eq. 12)."""
    if here.sigma == 0:
        raise CartoucheError("a step asked from the clean end (sigma=0); start from a rung of the ladder")
    return there.alpha * estimate + (there.sigma / here.sigma) * (x - here.alpha * estimate)


def _half_log_snr(level: Level) -> float:
    """lambda = log(alpha / sigma), the time of DPM-Solver."""
    return math.log(level.alpha / level.sigma)


def _watched(denoise: Denoiser, estimates: list[Array]) -> Denoiser:
    """The same denoiser, its answers kept."""

    def watched(x: Array, level: Level) -> Array:
        estimates.append(denoise(x, level))
        return estimates[-1]

    return watched


def _numbered(noise: Callable[[int], Array] | None, number: int) -> Noise:
    """The fresh noise of one step, or a clear error where a sampler needs it and none was given."""

    def fresh() -> Array:
        if noise is None:
            raise CartoucheError("this sampler draws fresh noise; give noise=NoiseSource(seed, indices, shape)")
        return noise(number)

    return fresh
