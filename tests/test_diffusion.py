"""The noise ladder, what a net predicts, and seeded noise: closed forms first."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cartouche.config import CartoucheError
from cartouche.diffusion import noise, prediction, schedule
from cartouche.diffusion.schedule import CLEAN, Ladder, Level, add_noise

VP = {
    "linear": schedule.linear(),
    "scaled_linear": schedule.scaled_linear(),
    "cosine": schedule.cosine(),
    "zero_snr": schedule.zero_terminal_snr(schedule.scaled_linear()),
}
ALL = {**VP, "flow": schedule.flow(), "flow_shift_3": schedule.flow(shift=3.0)}


# The ladder


def test_the_linear_ladder_has_the_published_marginals():
    alpha_bar = schedule.linear().alpha_bar
    assert alpha_bar[499] == pytest.approx(0.0786, abs=5e-5)
    assert alpha_bar[999] == pytest.approx(4.04e-5, rel=2e-3)
    assert math.sqrt(alpha_bar[499]) == pytest.approx(0.280, abs=5e-4)


def test_the_scaled_linear_ladder_still_shows_seven_percent_of_the_picture_at_its_end():
    ladder = schedule.scaled_linear()
    assert ladder.alpha_bar[-1] == pytest.approx(4.66e-3, rel=2e-3)
    assert ladder.alpha[-1] == pytest.approx(0.068, abs=5e-4)


def test_the_cosine_ladder_follows_its_curve_until_the_cap():
    t = np.arange(1, 1001) / 1000
    curve = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    assert np.allclose(schedule.cosine().alpha_bar[:-1], curve[:-1], rtol=1e-9)


@pytest.mark.parametrize("name", VP)
def test_variance_is_preserved_on_every_rung(name):
    assert np.allclose(VP[name].alpha ** 2 + VP[name].sigma ** 2, 1, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_every_ladder_only_ever_gets_noisier(name):
    assert np.all(np.diff(ALL[name].alpha) < 0)
    assert np.all(np.diff(ALL[name].sigma) > 0)


def test_flow_lies_on_straight_lines_and_tells_the_net_a_thousand_sigma():
    ladder = schedule.flow()
    assert np.allclose(ladder.alpha + ladder.sigma, 1)
    assert np.allclose(ladder.time, 1000 * ladder.sigma)
    assert (ladder.alpha[-1], ladder.sigma[-1]) == (0, 1)


def test_a_thousand_small_noisings_equal_one_jump_in_mean_and_variance():
    betas = np.linspace(1e-4, 0.02, 1000)
    mean, variance = 1.0, 0.0
    for beta in betas[:500]:
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
    level = schedule.linear().at(499)
    assert mean == pytest.approx(level.alpha, rel=1e-12)
    assert math.sqrt(variance) == pytest.approx(level.sigma, rel=1e-12)


def test_iterated_noise_and_the_jump_agree_on_samples():
    random = np.random.default_rng(0)
    ladder = schedule.linear(50, 0.002, 0.2)
    x = np.full(20_000, 1.5)
    for beta in np.linspace(0.002, 0.2, 50):
        x = math.sqrt(1 - beta) * x + math.sqrt(beta) * random.standard_normal(x.size)
    jump = add_noise(np.full(20_000, 1.5), random.standard_normal(20_000), ladder.at(49))
    assert abs(x.mean() - jump.mean()) < 0.03
    assert abs(x.std() - jump.std()) < 0.03


def test_zero_terminal_snr_ends_in_noise_alone_and_keeps_the_first_rung():
    before, after = schedule.scaled_linear(), VP["zero_snr"]
    assert (after.alpha[-1], after.sigma[-1]) == (0, 1)
    assert after.alpha[0] == pytest.approx(before.alpha[0], rel=1e-12)
    shift = before.alpha - after.alpha * (before.alpha[0] - before.alpha[-1]) / before.alpha[0]
    assert np.allclose(shift, before.alpha[-1])
    assert schedule.zero_terminal_snr(after) is after


# Walking down it


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("spacing", schedule.SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 333, 1000])
def test_levels_fall_without_repeating_and_end_clean(name, spacing, steps):
    levels = ALL[name].levels(steps, spacing)
    assert len(levels) == steps + 1
    assert levels[-1] == CLEAN
    assert all(a.sigma > b.sigma and a.t > b.t for a, b in pairwise(levels))
    assert all(type(number) is float for level in levels for number in level)


def test_trailing_and_linspace_start_at_the_last_rung_and_leading_does_not():
    ladder = schedule.linear()
    assert [level.t for level in ladder.levels(4, "trailing")] == [999, 749, 499, 249, -1]
    assert [level.t for level in ladder.levels(4, "leading", offset=1)] == [751, 501, 251, 1, -1]
    assert [level.t for level in ladder.levels(4, "linspace")] == [999, 666, 333, 0, -1]


def test_a_flow_walk_trails_down_evenly():
    assert [level.sigma for level in schedule.flow().levels(4)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_karras_levels_are_even_in_the_seventh_root_of_the_ratio():
    levels = schedule.scaled_linear().levels(12, "linspace", karras=True)[:-1]
    root = np.array([(level.sigma / level.alpha) ** (1 / 7) for level in levels])
    assert np.allclose(np.diff(root), np.diff(root)[0])
    assert np.allclose([level.alpha**2 + level.sigma**2 for level in levels], 1)
    assert (levels[0].t, levels[-1].t) == (999, 0)


def test_karras_levels_are_refused_where_there_is_no_largest_ratio():
    with pytest.raises(CartoucheError, match="pure noise"):
        VP["zero_snr"].levels(10, karras=True)


@pytest.mark.parametrize("steps", [0, -1, 51])
def test_steps_outside_the_schedule_are_refused(steps):
    with pytest.raises(CartoucheError, match=f"steps={steps} asked of a schedule of 50; choose 1 to 50"):
        schedule.linear(50).levels(steps)


def test_more_steps_than_a_spacing_has_rungs_are_refused():
    ladder = schedule.from_config({"_class_name": "DPMSolverMultistepScheduler"})
    assert len(ladder.levels(999, "leading")) == 1000
    for offset in (0, 1):
        with pytest.raises(CartoucheError, match="steps=1000 of 1000 rungs, leading, visit one twice"):
            ladder.levels(1000, "leading", offset=offset)


def test_an_offset_past_the_last_rung_is_refused():
    with pytest.raises(CartoucheError, match="choose fewer steps or offset=0"):
        schedule.linear().levels(1000, "leading", offset=1)


def test_an_unknown_spacing_is_refused_with_the_nearest():
    with pytest.raises(CartoucheError, match="trailing"):
        schedule.linear().levels(10, "trialing")


def test_a_level_can_be_asked_at_any_time():
    ladder = schedule.linear()
    assert ladder.at(-1) == CLEAN
    assert ladder.at(7) == Level(7.0, float(ladder.alpha[7]), float(ladder.sigma[7]))
    between = ladder.at(7.5)
    assert ladder.alpha[8] < between.alpha < ladder.alpha[7]
    with pytest.raises(CartoucheError, match="t=1000 asked"):
        ladder.at(1000)


def test_a_ladder_keeps_its_own_numbers_and_must_be_whole():
    alpha = np.array([0.9, 0.5])
    ladder = Ladder(alpha, np.sqrt(1 - alpha**2))
    alpha[0] = 2
    assert ladder.alpha[0] == 0.9
    assert torch.as_tensor(ladder.alpha, dtype=torch.float32).tolist() == pytest.approx([0.9, 0.5])
    with pytest.raises(CartoucheError, match="one number per rung"):
        Ladder(np.ones(3), np.ones(4))


def test_a_scheduler_config_that_cannot_be_honoured_is_refused():
    with pytest.raises(CartoucheError, match="use_beta_sigmas"):
        schedule.from_config({"use_beta_sigmas": True})
    with pytest.raises(CartoucheError, match="scaled_linear"):
        schedule.from_config({"beta_schedule": "scaled_liner"})


@pytest.mark.parametrize(
    "config",
    [
        {"beta_start": 0},
        {"trained_betas": [0.1, 1, 0.1]},
        {"num_train_timesteps": 1, "rescale_betas_zero_snr": True},
        {"trained_betas": [0, 0, 0], "rescale_betas_zero_snr": True},
    ],
    ids=str,
)
def test_a_ladder_on_which_no_step_could_be_taken_is_refused(config):
    with pytest.raises(CartoucheError, match="ladder"):
        schedule.from_config(config)


def test_a_folder_may_end_its_walk_at_the_first_rung_instead_of_clean():
    config = {"_class_name": "DDIMScheduler", "set_alpha_to_one": False}
    ladder = schedule.from_config(config)
    assert ladder.levels(10)[-1] == ladder.at(0)
    assert schedule.from_config(config, "EulerDiscreteScheduler").end == CLEAN
    assert schedule.from_config({"final_sigmas_type": "sigma_min"}).end == ladder.at(0)


# Predictions


@pytest.mark.parametrize("kind", prediction.KINDS)
@pytest.mark.parametrize("name", ALL)
def test_every_prediction_names_the_same_clean_picture(kind, name):
    random = np.random.default_rng(1)
    x0, eps = random.standard_normal((2, 3, 4))
    for t in (0, 1, 250, 998):
        level = ALL[name].at(float(ALL[name].time[t]))
        x = add_noise(x0, eps, level)
        found = prediction.to_x0(kind, prediction.target(kind, x0, eps, level), x, level)
        assert np.allclose(found, x0, atol=1e-9 / level.alpha)
        assert np.allclose(prediction.to_eps(x, x0, level), eps, atol=1e-9 / level.sigma)


@pytest.mark.parametrize("kind", ["v_prediction", "sample", "flow"])
def test_predictions_stay_finite_where_only_noise_is_left(kind):
    random = np.random.default_rng(2)
    x0, eps = random.standard_normal((2, 5))
    for ladder in (VP["zero_snr"], schedule.flow()):
        level = ladder.levels(1)[0]
        x = add_noise(x0, eps, level)
        assert np.array_equal(x, eps)
        assert np.allclose(prediction.to_x0(kind, prediction.target(kind, x0, eps, level), x, level), x0)


def test_predictions_of_a_noise_net_are_refused_where_only_noise_is_left():
    with pytest.raises(CartoucheError, match="use v_prediction"):
        prediction.to_x0("epsilon", np.ones(2), np.ones(2), VP["zero_snr"].levels(1)[0])
    with pytest.raises(CartoucheError, match="sigma=0"):
        prediction.to_eps(np.ones(2), np.ones(2), CLEAN)


def test_an_unknown_prediction_is_refused_with_the_nearest():
    level = schedule.linear().at(3)
    for call in (prediction.to_x0, prediction.target):
        with pytest.raises(CartoucheError, match="epsilon"):
            call("epsilom", np.ones(2), np.ones(2), level)


def test_training_levels_may_be_one_per_image():
    ladder = VP["zero_snr"]
    t = torch.tensor([3, 500, 999])
    column = [torch.as_tensor(values)[t].view(-1, 1, 1, 1) for values in (ladder.alpha, ladder.sigma)]
    level = Level(t, *column)
    x0, eps = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = add_noise(x0, eps, level)
    for kind in ("v_prediction", "flow"):
        assert torch.allclose(prediction.to_x0(kind, prediction.target(kind, x0, eps, level), x, level), x0)


def test_a_config_names_its_prediction():
    assert prediction.kind_of({}) == "epsilon"
    assert prediction.kind_of({"prediction_type": "v_prediction"}) == "v_prediction"
    assert prediction.kind_of({"prediction_type": "flow_prediction"}) == "flow"
    assert prediction.kind_of({"_class_name": "FlowMatchEulerDiscreteScheduler"}) == "flow"
    with pytest.raises(CartoucheError, match="epsilon"):
        prediction.kind_of({"prediction_type": "epsilom"})


# Noise


def test_noise_is_unit_normal():
    values = noise.gaussian(7, 0, 0, (200_000,))
    assert values.dtype == np.float32
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    assert abs((values.astype(float) ** 4).mean() - 3) < 0.1
    assert abs((values[0::2] * values[1::2]).mean()) < 0.01
    assert abs(np.mean(np.abs(values) < 1) - 0.6827) < 0.005


def test_noise_of_an_image_is_the_same_alone_and_in_any_batch():
    alone = [noise.NoiseSource(42, [index], (4, 3, 3))(5)[0] for index in range(8)]
    for size in (1, 2, 3, 8):
        assert np.array_equal(noise.NoiseSource(42, range(size), (4, 3, 3))(5), np.stack(alone[:size]))


def test_noise_differs_by_seed_image_and_step():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**64 - 1, 0, 0)]
    drawn = [noise.gaussian(*key, (1000,)) for key in keys]
    for a in range(len(keys)):
        for b in range(a):
            assert abs(np.corrcoef(drawn[a], drawn[b])[0, 1]) < 0.12


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 10_000), st.integers(0, 9))
def test_a_longer_draw_begins_with_a_shorter_one(seed, index, step, count):
    long = noise.gaussian(seed, index, step, (10,))
    assert np.array_equal(long[:count], noise.gaussian(seed, index, step, (count,)))
    assert np.isfinite(long).all()


def test_noise_has_not_changed_since_the_first_picture():
    expected = [-0.6276613, -0.7140588, 0.1039436, -0.1198092]
    assert np.allclose(noise.gaussian(42, 3, 7, (4,)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "7", None])
def test_seeds_that_are_no_64_bit_numbers_are_refused(seed):
    with pytest.raises(CartoucheError, match="whole number from 0 to 18446744073709551615"):
        noise.NoiseSource(seed, [0], (2,))


def test_numpy_integers_are_seeds_too():
    assert noise.check_seed(np.uint64(2**64 - 1)) == 2**64 - 1


def test_noise_can_be_a_torch_tensor():
    batch = noise.NoiseSource(1, [0, 1], (3,), convert=torch.from_numpy)(2)
    assert np.array_equal(batch.numpy(), noise.NoiseSource(1, [0, 1], (3,))(2))
