"""The paradox of the mean, measured: what does the fresh noise of an ancestral sampler rescue?

    python benchmarks/spiral.py            (about a minute on one core; writes benchmarks/results/spiral.json)

The data are 1,500 points on a spiral and the denoiser is the exact mean of x0 given xt, so nothing here is a net's
fault. Every sampler starts from the same 400 noises on the 1000-step linear ladder. What to see:

- the mean of all possible pictures is no picture: asked once from pure noise, the denoiser answers with the middle, far
  from the spiral, and the same for everyone;
- DDPM without its fresh noise does reach the spiral, but from 400 different noises it reaches practically one point.
  What the fresh noise rescues is coverage;
- DDIM, deterministic throughout, covers everything even in 10 steps: no noise is not by itself the fault.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cartouche.diffusion import exact, schedule
from cartouche.diffusion.noise import NoiseSource
from cartouche.diffusion.prediction import Denoiser
from cartouche.diffusion.samplers import Sampler, sample, sampler
from cartouche.files import write_whole

BINS = 50
RESULT = Path(__file__).parent / "results" / "spiral.json"


def describe(x: np.ndarray, data: np.ndarray) -> dict[str, float]:
    """How a cloud x (B, 2) sits on the spiral (M, 2): nearness to it, spread, and how much of its length is visited.

    effective_bins: exp of the entropy of the arc bins hit, at most 50; about 47 for 400 fair draws of the data itself.
    """
    distance = np.sqrt(((x[:, None] - data[None]) ** 2).sum(axis=2))  # (B, M)
    hits = np.bincount(distance.argmin(axis=1) * BINS // len(data), minlength=BINS)
    share = hits[hits > 0] / hits.sum()
    return {
        "median_distance": float(np.median(distance.min(axis=1))),
        "std": float(np.sqrt(x.var(axis=0).mean())),
        "bins_hit": int((hits > 0).sum()),
        "effective_bins": float(np.exp(-(share * np.log(share)).sum())),
    }


def walks(rungs: int) -> list[tuple[str, int, Sampler, bool]]:
    """(name, steps, sampler, fresh noise) of every row that is a walk."""
    short = [steps for steps in (rungs, 100, 50, 20, 10) if steps <= rungs]
    return [
        ("ddpm", rungs, sampler("ddpm"), True),
        ("ddpm, no fresh noise", rungs, sampler("ddpm"), False),
        *(("ddim", steps, sampler("ddim"), False) for steps in short),
        *(("ddim, eta 1", steps, sampler("ddim", eta=1.0), True) for steps in (50, 10)),
        *(("heun", steps, sampler("heun"), False) for steps in (20, 10)),
        *(("dpmpp_2m", steps, sampler("dpmpp_2m"), False) for steps in (20, 10)),
    ]


def measure(count: int = 1500, images: int = 400, rungs: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
    """The rows of the table, each for the same starting noises."""
    data = exact.spiral(count)
    denoise = exact.points(data)
    ladder = schedule.linear(rungs, 0.1 / rungs, 20 / rungs)
    noise = NoiseSource(seed, range(images), (2,))
    start = noise(0).astype(np.float64)
    drawn = data[np.random.default_rng(seed).integers(0, count, images)]
    top = ladder.levels(1)[0]
    rows = [
        {"sampler": "data", "steps": 0, **describe(drawn, data)},
        {"sampler": "one-shot mean", "steps": 1, **describe(denoise(start, top), data)},
    ]
    for name, steps, step, fresh in walks(rungs):
        began = time.perf_counter()
        source: Callable[[int], np.ndarray] = noise if fresh else lambda _: np.zeros_like(start)
        x = walk(denoise, start, ladder.levels(steps, "linspace"), step, source)
        rows.append({"sampler": name, "steps": steps, **describe(x, data), "seconds": time.perf_counter() - began})
    return rows


def walk(
    denoise: Denoiser, x: np.ndarray, levels: list[schedule.Level], step: Sampler, noise: Callable[[int], np.ndarray]
) -> np.ndarray:
    """Where one sampler ends."""
    for done in sample(denoise, x, levels, step, noise):
        x = done.x
    return x


def main() -> None:
    """Measure two seeds, print the first, write both."""
    runs = {str(seed): measure(seed=seed) for seed in (0, 1)}
    settings = {"points": 1500, "images": 400, "ladder": "linear, 1000 rungs", "spacing": "linspace", "bins": BINS}
    RESULT.parent.mkdir(exist_ok=True)
    text = json.dumps({"settings": settings, "seeds": runs}, indent=1) + "\n"
    write_whole(RESULT, text.encode(), force=True)
    print(f"{'sampler':22} {'steps':>5} {'distance':>9} {'std':>6} {'bins':>5} {'effective':>9}")
    for row in runs["0"]:
        numbers = f"{row['median_distance']:9.4f} {row['std']:6.3f} {row['bins_hit']:5d} {row['effective_bins']:9.1f}"
        print(f"{row['sampler']:22} {row['steps']:5d} {numbers}")


if __name__ == "__main__":
    main()
