"""Guidance: neutral at 1, blind to the prompt at 0, the published formula elsewhere, two passes as one batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cartouche.config import CartoucheError
from cartouche.diffusion import schedule
from cartouche.diffusion.guidance import Passes, attach, guided
from cartouche.diffusion.noise import NoiseSource
from cartouche.diffusion.prediction import KINDS, to_x0
from cartouche.diffusion.samplers import sample, sampler

LADDER = schedule.linear()
LEVEL = LADDER.at(600)
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((3, 4, 2, 2)).astype(np.float32)
PROMPT, EMPTY, NEGATIVE = RANDOM.standard_normal((3, 3, 5, 8)).astype(np.float32)


class Net:
    """A small net on (x, t, context), each image for itself; it counts what it is asked."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x, t, context):
        self.batches.append(len(x))
        words = context.reshape(len(context), -1).sum(1).reshape(-1, 1, 1, 1)
        return 0.5 * x + 0.1 * words * x + 0.01 * words + t / 5000


def raw(context, x=X, kind="epsilon", level=LEVEL):
    return to_x0(kind, Net()(x, level.t, context), x, level)


@pytest.mark.parametrize("kind", KINDS)
def test_scale_one_is_the_net_with_the_prompt_bit_for_bit_and_in_one_pass(kind):
    net = Net()
    assert np.array_equal(guided(net, kind, PROMPT, EMPTY, 1.0)(X, LEVEL), raw(PROMPT, kind=kind))
    assert net.batches == [3]


@pytest.mark.parametrize("kind", KINDS)
def test_scale_zero_ignores_the_prompt_bit_for_bit_and_in_one_pass(kind):
    net = Net()
    found = guided(net, kind, PROMPT, EMPTY, 0.0)(X, LEVEL)
    assert np.array_equal(found, raw(EMPTY, kind=kind))
    assert np.array_equal(found, guided(net, kind, NEGATIVE, EMPTY, 0.0)(X, LEVEL))
    assert net.batches == [3, 3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.5, 2.0, 8.0])
def test_other_scales_follow_the_formula_in_one_batch_of_both_passes(kind, scale):
    net = Net()
    found = guided(net, kind, PROMPT, EMPTY, scale)(X, LEVEL)
    c, u = Net()(X, LEVEL.t, PROMPT), Net()(X, LEVEL.t, EMPTY)
    wanted = to_x0(kind, u.astype(np.float64) + scale * (c.astype(np.float64) - u), X.astype(np.float64), LEVEL)
    assert np.allclose(found, wanted, rtol=1e-6, atol=1e-6 * np.abs(wanted).max())
    assert net.batches == [6]


def test_guiding_the_output_is_guiding_the_clean_estimate():
    """Every prediction is affine in x0 for a fixed x, so the formula may be read on either."""
    found = guided(Net(), "epsilon", PROMPT, EMPTY, 8.0)(X, LEVEL)
    u, c = raw(EMPTY), raw(PROMPT)
    assert np.allclose(found, u + 8 * (c - u), rtol=1e-4, atol=1e-4)


def test_a_negative_prompt_stands_in_place_of_the_empty_one():
    found = guided(Net(), "epsilon", PROMPT, NEGATIVE, 3.0)(X, LEVEL)
    u, c = raw(NEGATIVE), raw(PROMPT)
    assert np.allclose(found, u + 3 * (c - u), rtol=1e-4, atol=1e-4)


def test_a_prompt_that_is_its_own_negative_changes_nothing():
    assert np.allclose(guided(Net(), "sample", PROMPT, PROMPT, 8.0)(X, LEVEL), raw(PROMPT, kind="sample"), atol=1e-6)


def test_each_image_follows_its_own_prompt():
    together = guided(Net(), "sample", PROMPT, EMPTY, 4.0)(X, LEVEL)
    for b in range(3):
        alone = guided(Net(), "sample", PROMPT[b : b + 1], EMPTY[b : b + 1], 4.0)(X[b : b + 1], LEVEL)
        assert np.allclose(together[b], alone[0], atol=1e-6)


def test_one_row_of_context_serves_every_image():
    row, rows = PROMPT[:1], np.repeat(PROMPT[:1], 3, axis=0)
    for scale in (0.0, 1.0, 4.0):
        single = guided(Net(), "sample", row, EMPTY[:1], scale)(X, LEVEL)
        assert np.array_equal(single, guided(Net(), "sample", rows, np.repeat(EMPTY[:1], 3, axis=0), scale)(X, LEVEL))


def test_a_context_may_be_several_arrays():
    def net(x, t, context):
        return Net()(x, t, context["states"]) + context["pooled"].reshape(-1, 1, 1, 1)

    conditional = {"states": PROMPT, "pooled": np.ones((1, 1), np.float32)}
    unconditional = {"states": EMPTY, "pooled": np.zeros((1, 1), np.float32)}
    found = guided(net, "sample", conditional, unconditional, 2.0)(X, LEVEL)
    u, c = raw(EMPTY, kind="sample"), raw(PROMPT, kind="sample") + 1
    assert np.allclose(found, u + 2 * (c - u), atol=1e-5)


def test_rescale_agrees_with_diffusers():
    reference = pytest.importorskip("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    c, u = (torch.from_numpy(Net()(X, LEVEL.t, context)) for context in (PROMPT, EMPTY))
    for share in (0.3, 0.7, 1.0):
        wanted = reference.rescale_noise_cfg(u + 7.5 * (c - u), c, share).numpy()
        found = guided(Net(), "sample", PROMPT, EMPTY, 7.5, rescale=share)(X, LEVEL)
        assert np.allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_full_rescale_gives_every_image_the_spread_of_its_conditional_pass():
    found = guided(Net(), "sample", PROMPT, EMPTY, 7.5, rescale=1.0)(X, LEVEL)
    assert np.allclose(found.std(axis=(1, 2, 3)), raw(PROMPT, kind="sample").std(axis=(1, 2, 3)), rtol=1e-5)


def test_outside_the_interval_the_prompt_is_asked_alone():
    net = Net()
    denoise = guided(net, "epsilon", PROMPT, EMPTY, 8.0, interval=(0.3, 0.6))
    for t in (999, 500, 1):
        level = LADDER.at(t)
        found, inside = denoise(X, level), 0.3 <= level.sigma / (level.alpha + level.sigma) <= 0.6
        assert net.batches.pop() == (6 if inside else 3)
        assert inside or np.array_equal(found, raw(PROMPT, level=level))


def test_the_interval_of_a_flow_is_its_time():
    net = Net()
    denoise = guided(net, "flow", PROMPT, EMPTY, 8.0, interval=(0.25, 0.75))
    for level in schedule.flow().levels(4)[:-1]:
        denoise(X, level)
    assert net.batches == [3, 6, 6, 6]


def test_a_scale_of_zero_stays_blind_outside_the_interval():
    found = guided(Net(), "epsilon", PROMPT, EMPTY, 0.0, interval=(0.0, 0.1))(X, LEVEL)
    assert np.array_equal(found, raw(EMPTY))


def test_both_passes_can_be_watched():
    seen: list[Passes] = []
    found = guided(Net(), "epsilon", PROMPT, EMPTY, 8.0, observe=seen.append)(X, LEVEL)
    assert seen[0].level == LEVEL
    assert np.allclose(seen[0].conditional, raw(PROMPT), atol=1e-5)
    assert np.allclose(seen[0].unconditional, raw(EMPTY), atol=1e-5)
    assert np.array_equal(seen[0].x0, found)


@pytest.mark.parametrize(("scale", "made"), [(0.0, (False, True)), (1.0, (True, False)), (2.0, (True, True))])
def test_a_pass_that_was_not_made_is_none(scale, made):
    seen: list[Passes] = []
    guided(Net(), "epsilon", PROMPT, EMPTY, scale, observe=seen.append)(X, LEVEL)
    assert (seen[0].conditional is not None, seen[0].unconditional is not None) == made


@pytest.mark.parametrize("name", ["ddim", "heun"])
def test_every_step_of_a_drawing_can_carry_its_passes(name):
    seen: list[Passes] = []
    denoise = guided(Net(), "epsilon", PROMPT, EMPTY, 3.0, observe=seen.append)
    steps = list(attach(sample(denoise, X, LADDER.levels(6), sampler(name)), seen))
    for step in steps:
        assert step.passes.level == step.here
        assert np.array_equal(step.passes.x0, step.x0)
        u, c = step.passes.unconditional, step.passes.conditional
        assert np.allclose(step.x0, u + 3 * (c - u), rtol=1e-3, atol=1e-3 * np.abs(step.x0).max())
    assert seen == []


@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_numpy_and_torch_are_guided_the_same(scale):
    on_numpy = guided(Net(), "v_prediction", PROMPT, EMPTY[:1], scale, rescale=0.5)(X, LEVEL)
    tensors = [torch.from_numpy(array) for array in (PROMPT, EMPTY[:1], X)]
    on_torch = guided(Net(), "v_prediction", *tensors[:2], scale, rescale=0.5)(tensors[2], LEVEL)
    assert isinstance(on_torch, torch.Tensor)
    assert np.allclose(on_numpy, on_torch.numpy(), atol=1e-5)


def test_a_guided_drawing_is_the_same_alone_and_in_a_batch():
    def draw(size):
        source = NoiseSource(8, range(size), (4, 2, 2))
        denoise = guided(Net(), "sample", PROMPT[:1], EMPTY[:1], 2.0)
        return [step.x for step in sample(denoise, source(0), LADDER.levels(5), sampler("ddpm"), source)][-1]

    for size in (1, 2, 3):
        assert np.allclose(draw(size), draw(8)[:size], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guidance_scale": -1.0}, "choose 0 or more"),
        ({"guidance_scale": float("nan")}, "choose 0 or more"),
        ({"guidance_scale": 2.0, "rescale": 1.5}, "rescale=1.5"),
        ({"guidance_scale": 2.0, "interval": (0.6, 0.3)}, "low <= high"),
    ],
)
def test_settings_out_of_range_are_refused_before_the_first_step(options, words):
    with pytest.raises(CartoucheError, match=words):
        guided(Net(), "epsilon", PROMPT, EMPTY, **options)


def test_a_context_of_the_wrong_length_is_refused():
    with pytest.raises(CartoucheError, match="2 rows given for 3 images"):
        guided(Net(), "epsilon", PROMPT[:2], EMPTY, 1.0)(X, LEVEL)
