"""Samplers against what mathematics says they must do: orders of convergence, the DDPM posterior, and the spiral."""

from __future__ import annotations

import math
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from cartouche.config import CartoucheError
from cartouche.diffusion import exact, schedule
from cartouche.diffusion.noise import NoiseSource
from cartouche.diffusion.samplers import SAMPLERS, Step, posterior_mean, posterior_std, sample, sampler
from cartouche.diffusion.schedule import CLEAN, Level

MEAN, STD = 0.3, 0.5
LADDERS = {
    "linear": schedule.linear(),
    "zero_snr": schedule.zero_terminal_snr(schedule.scaled_linear()),
    "flow": schedule.flow(),
}


def last(steps) -> Step:
    return list(steps)[-1]


def draw(name, x, levels, denoise=None, noise=None, **options):
    denoise = denoise or exact.gaussian(MEAN, STD)
    return last(sample(denoise, x, levels, sampler(name, **options), noise)).x


def smooth_levels(steps, family="vp"):
    """A walk whose levels are smooth in the step number, from heavy to light noise, both ends inside the ladder."""
    if family == "flow":
        return [Level(1000 * s, 1 - s, s) for s in np.linspace(0.9, 0.1, steps + 1).tolist()]
    return [Level(1000 * a, math.cos(a), math.sin(a)) for a in np.linspace(1.3, 0.2, steps + 1).tolist()]


# Order of convergence, on the exact denoiser of a Gaussian


@pytest.mark.parametrize("family", ["vp", "flow"])
@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2), ("pndm", 2)])
def test_the_error_falls_with_the_order_of_the_method(name, order, family):
    x = np.array([[1.7, -0.4, 0.9]])
    errors = []
    for steps in (20, 40, 80, 160):
        levels = smooth_levels(steps, family)
        truth = exact.gaussian_path(x, levels[0], levels[-1], MEAN, STD)
        errors.append(np.abs(draw(name, x, levels) - truth).max())
    measured = np.log2(np.array(errors[:-1]) / errors[1:])
    assert measured[-1] == pytest.approx(order, abs=0.15), measured


@pytest.mark.parametrize("name", ["ddpm", "euler_a", "ddim"])
def test_stochastic_samplers_reach_the_law_of_the_data_and_nearer_with_more_steps(name):
    options = {"eta": 1.0} if name == "ddim" else {}
    errors = []
    for steps in (10, 250):
        count = 20_000
        source = NoiseSource(5, [0], (count,))
        levels = LADDERS["linear"].levels(steps, "linspace")
        x = draw(name, source(0)[0], levels, noise=lambda k, s=source: s(k)[0], **options)
        errors.append(abs(float(x.std()) - STD))
        assert abs(float(x.mean()) - MEAN) < 0.02
    assert errors[1] < errors[0]
    assert errors[1] < 0.02


# One step, in closed form


def test_the_ddpm_step_is_the_posterior_of_the_forward_chain():
    ladder = schedule.linear()
    beta = np.linspace(1e-4, 0.02, 1000)
    for t in (1, 10, 500, 999):
        here, there = ladder.at(t), ladder.at(t - 1)
        a, before = here.alpha**2, there.alpha**2
        x0, x = 0.7, -1.2
        mean = math.sqrt(before) * beta[t] / (1 - a) * x0 + math.sqrt(1 - beta[t]) * (1 - before) / (1 - a) * x
        assert posterior_mean(x, x0, here, there) == pytest.approx(mean, rel=1e-9)
        assert posterior_std(here, there) ** 2 == pytest.approx((1 - before) / (1 - a) * beta[t], rel=1e-9)


@pytest.mark.parametrize("name", LADDERS)
def test_the_posterior_is_what_conditioning_joint_normals_gives(name):
    here, there = LADDERS[name].levels(10)[3:5]
    ratio = here.alpha / there.alpha
    jump = here.sigma**2 - (ratio * there.sigma) ** 2
    cross, total = ratio * there.sigma**2, ratio**2 * there.sigma**2 + jump
    x0, x = 0.4, 1.1
    assert posterior_mean(x, x0, here, there) == pytest.approx(
        there.alpha * x0 + cross / total * (x - here.alpha * x0), rel=1e-12
    )
    assert posterior_std(here, there) ** 2 == pytest.approx(there.sigma**2 - cross**2 / total, rel=1e-9)


@pytest.mark.parametrize("name", LADDERS)
@pytest.mark.parametrize("steps", [10, 1000])
def test_ddim_with_eta_one_and_euler_ancestral_are_ddpm_mean_and_noise_alike(name, steps):
    """S = T included. Means agree as functions of (x, x0), variances too: the same noise, the same picture."""
    source = NoiseSource(3, range(4), (3,))
    x, levels = source(0).astype(np.float64), LADDERS[name].levels(steps)
    wanted = draw("ddpm", x, levels, noise=source)
    assert np.allclose(draw("ddim", x, levels, noise=source, eta=1.0), wanted, atol=1e-9)
    assert np.allclose(draw("euler_a", x, levels, noise=source), wanted, atol=1e-9)


def test_euler_on_the_ode_is_ddim_without_noise():
    x = np.array([[0.8, -1.5]])
    denoise = exact.points([[1.0, 0.2], [-0.5, -1.0]])
    for levels in (smooth_levels(9), smooth_levels(9, "flow")):
        found, z = draw("euler", x, levels, denoise), x / levels[0].alpha
        straight = x
        for here, there in pairwise(levels):
            s, after = here.sigma / here.alpha, there.sigma / there.alpha
            z = z + (after - s) * (z - denoise(z * here.alpha, here)) / s
            straight = straight + (there.sigma - here.sigma) * (straight - denoise(straight, here)) / here.sigma
        assert np.allclose(found, z * levels[-1].alpha, atol=1e-12)
        if levels[0].alpha + levels[0].sigma == 1:  # flow: Euler on sigma itself is the same once more
            assert np.allclose(found, straight, atol=1e-12)
        assert np.array_equal(found, draw("ddim", x, levels, denoise))


def test_the_heun_step_averages_the_slopes_at_both_ends():
    denoise = exact.points([[1.0, 0.2], [-0.5, -1.0]])
    x, (here, there) = np.array([[0.8, -1.5]]), smooth_levels(9)[3:5]
    s, after = here.sigma / here.alpha, there.sigma / there.alpha
    z = x / here.alpha
    slope = (z - denoise(x, here)) / s
    landed = z + (after - s) * slope
    second = (landed - denoise(landed * there.alpha, there)) / after
    wanted = (z + (after - s) * (slope + second) / 2) * there.alpha
    assert np.allclose(draw("heun", x, [here, there], denoise), wanted, atol=1e-12)


def test_one_step_to_the_clean_end_is_the_clean_estimate():
    x = np.array([[0.8, -1.5]])
    for ladder in LADDERS.values():
        here = ladder.levels(1)[0]
        for name in SAMPLERS:
            found = draw(name, x, [here, CLEAN], noise=lambda k: np.ones((1, 2)))
            assert np.allclose(found, exact.gaussian(MEAN, STD)(x, here), atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("ladder", ["zero_snr", "flow"])
def test_the_first_step_from_pure_noise_is_finite_and_the_drawing_right(name, ladder):
    levels = LADDERS[ladder].levels(50)
    assert levels[0].alpha == 0
    source = NoiseSource(1, range(1000), (1,))
    steps = list(sample(exact.gaussian(MEAN, STD), source(0), levels, sampler(name), source))
    assert all(np.isfinite(step.x).all() for step in steps)
    assert abs(steps[-1].x.mean() - MEAN) < 0.06
    assert abs(steps[-1].x.std() - STD) < 0.06


# The loop


def test_the_loop_yields_every_step_with_the_estimate_made_at_its_start():
    levels = LADDERS["linear"].levels(5)
    denoise = exact.gaussian(MEAN, STD)
    x = np.array([[1.0, 2.0]])
    for name in ("heun", "ddim"):
        before = x
        steps = list(sample(denoise, x, levels, sampler(name)))
        assert [(step.number, step.total) for step in steps] == [(n, 5) for n in range(1, 6)]
        for step, here, there in zip(steps, levels, levels[1:], strict=False):
            assert (step.here, step.there) == (here, there)
            assert np.array_equal(step.x0, denoise(before, here))
            before = step.x


def test_the_loop_works_only_as_far_as_it_is_asked():
    asked = []

    def denoise(x, level):
        asked.append(level.t)
        return x

    steps = sample(denoise, np.ones(2), LADDERS["linear"].levels(10), sampler("euler"))
    assert asked == []
    next(steps)
    assert asked == [999]


def test_a_walk_of_no_steps_yields_nothing():
    assert list(sample(exact.gaussian(0, 1), np.ones(2), [CLEAN], sampler("euler"))) == []


@pytest.mark.parametrize("name", SAMPLERS)
def test_nothing_is_remembered_from_one_drawing_to_the_next(name):
    step, levels = sampler(name), LADDERS["linear"].levels(6)
    source = NoiseSource(2, range(2), (3,))
    denoise = exact.gaussian(MEAN, STD)
    first, second = (last(sample(denoise, source(0), levels, step, source)).x for _ in range(2))
    interrupted = sample(denoise, source(0), levels, step, source)
    next(interrupted), next(interrupted)
    third = last(sample(denoise, source(0), levels, step, source)).x
    assert np.array_equal(first, second)
    assert np.array_equal(first, third)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("ladder", LADDERS)
def test_numpy_and_torch_draw_the_same(name, ladder):
    levels = LADDERS[ladder].levels(12)
    ours = NoiseSource(9, range(3), (4,))
    theirs = NoiseSource(9, range(3), (4,), convert=torch.from_numpy)
    denoise = exact.points(np.random.default_rng(0).standard_normal((5, 4)))
    on_numpy = draw(name, ours(0), levels, denoise, ours)
    on_torch = draw(name, theirs(0), levels, denoise, theirs)
    assert on_numpy.dtype == np.float32
    assert isinstance(on_torch, torch.Tensor)
    assert on_torch.dtype == torch.float32
    assert np.allclose(on_numpy, on_torch.numpy(), atol=1e-6)


def test_an_image_is_the_same_alone_and_in_a_batch():
    levels = LADDERS["linear"].levels(10)
    denoise = exact.gaussian(MEAN, STD)
    for name in SAMPLERS:
        whole = NoiseSource(4, range(8), (4, 2, 2))
        batch = draw(name, whole(0), levels, denoise, whole)
        for size in (1, 2, 3):
            few = NoiseSource(4, range(size), (4, 2, 2))
            assert np.array_equal(draw(name, few(0), levels, denoise, few), batch[:size])


def test_the_deterministic_samplers_never_ask_for_noise_and_the_others_say_that_they_need_it():
    levels = LADDERS["linear"].levels(5)
    for name in ("ddim", "euler", "heun", "dpmpp_2m", "pndm"):
        draw(name, np.ones((1, 2)), levels)
    for name in ("ddpm", "euler_a"):
        with pytest.raises(CartoucheError, match="NoiseSource"):
            draw(name, np.ones((1, 2)), levels)


def test_walking_up_and_down_again_returns_nearer_with_more_steps():
    """DDIM inversion: x0 to noise and back."""
    x = np.array([[0.95, 0.33], [-0.1, -1.0]])
    errors = []
    for steps in (25, 100, 400):
        levels = LADDERS["linear"].levels(steps, "linspace")[:-1]
        errors.append(np.abs(draw("ddim", draw("ddim", x, levels[::-1]), levels) - x).max())
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sampler("eulr"), "did you mean 'euler'"),
        (lambda: sampler("euler", eta=1.0), "euler does not take eta"),
        (lambda: sampler("ddim", eta=1.5), "choose 0"),
        (lambda: sampler("ddpm", variance="fixed_smal"), "fixed_small"),
        (lambda: draw("ddim", np.ones(2), [CLEAN, Level(0.0, 0.9, 0.1)]), "clean end"),
        (lambda: exact.points([1.0, 2.0]), "flatten"),
        (lambda: exact.points([[1.0]])(np.ones((1, 1)), CLEAN), "sigma=0"),
    ],
)
def test_what_cannot_be_is_refused_in_words(call, words):
    with pytest.raises(CartoucheError, match=words):
        call()


def test_the_larger_ddpm_variance_is_the_forward_one():
    here, there = LADDERS["linear"].levels(10)[4:6]
    x, x0 = np.zeros((1, 1)), exact.gaussian(0.0, 1.0)
    moved = draw("ddpm", x, [here, there], x0, lambda k: np.ones((1, 1)), variance="fixed_large")
    assert float(moved[0, 0]) == pytest.approx(math.sqrt(1 - here.alpha**2 / there.alpha**2))


def test_the_room_imports_neither_torch_nor_a_net():
    code = (
        "import sys, cartouche.diffusion.guidance, cartouche.diffusion.exact, cartouche.diffusion.noise;"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'torch' or m.startswith('cartouche.nets')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# The spiral: what fresh noise is for


@pytest.fixture(scope="module")
def table():
    measure = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "spiral.py"))["measure"]
    rows = measure(count=300, images=100, rungs=200, seed=0)
    return {(row["sampler"], row["steps"]): row for row in rows}


def test_the_one_shot_mean_is_one_point_far_from_the_spiral(table):
    row = table["one-shot mean", 1]
    assert row["median_distance"] > 0.2
    assert row["std"] < 0.05
    assert row["effective_bins"] < 2


def test_ddpm_with_fresh_noise_covers_the_spiral(table):
    row = table["ddpm", 200]
    assert row["median_distance"] < 0.02
    assert row["effective_bins"] > 0.8 * table["data", 0]["effective_bins"]


def test_without_fresh_noise_the_ddpm_step_collapses_to_one_point_on_the_spiral(table):
    row = table["ddpm, no fresh noise", 200]
    assert row["median_distance"] < 0.02
    assert row["std"] < 0.05
    assert row["effective_bins"] < 2


@pytest.mark.parametrize("steps", [200, 50, 20, 10])
def test_ddim_needs_no_fresh_noise_to_cover_the_spiral(table, steps):
    row = table["ddim", steps]
    assert row["median_distance"] < 0.02
    assert row["std"] > 0.8
    assert row["effective_bins"] > 0.8 * table["data", 0]["effective_bins"]
