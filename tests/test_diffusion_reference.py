"""Step by step against diffusers' schedulers: the same toy net, the same noise, the same picture to 1e-5."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from cartouche.config import CartoucheError
from cartouche.diffusion import prediction, schedule
from cartouche.diffusion.samplers import ALIASES, sample, sampler
from cartouche.diffusion.schedule import Level

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs, not ours

SHAPE = (2, 3, 4, 4)
STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def toy_net(kind: str, ladder: schedule.Ladder):
    """A fixed smooth net of x and t that answers as nets do: near the truth for unit-normal data, and wavy."""

    def net(x, t):
        level = ladder.at(min(max(float(t), float(ladder.time[0])), float(ladder.time[-1])))
        wave = 0.3 * torch.sin(3 * x + float(t) / 100)
        scale = level.alpha**2 + level.sigma**2
        x0 = level.alpha / scale * x + level.sigma * wave
        if kind == "epsilon":
            return level.sigma / scale * x - level.alpha * wave
        if kind == "v_prediction":
            return level.alpha * prediction.to_eps(x, x0, level) - level.sigma * x0
        if kind == "flow":
            return prediction.to_eps(x, x0, level) - x0
        return x0

    return net


def in_float64(scheduler):
    """Their tables at our precision: their float32 ones cancel near the clean end, where 1 - alpha_bar is 1e-4."""
    config = scheduler.config
    ladder = schedule.from_config({**config, "_class_name": type(scheduler).__name__})
    scheduler.alphas_cumprod = torch.as_tensor(ladder.alpha_bar)
    scheduler.betas = torch.as_tensor(1 - ladder.alpha_bar / np.append(1.0, ladder.alpha_bar[:-1]))
    scheduler.alphas = 1 - scheduler.betas
    if not config.get("set_alpha_to_one", True):
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


def theirs(scheduler, net, x, steps, noises=None, start=None, **options):
    """Every x of their walk, in their own scale, and the noise they drew on the way."""
    scheduler.set_timesteps(steps)
    x, walked = x * (scheduler.init_noise_sigma if start is None else start), []
    generator = torch.Generator().manual_seed(11)
    if noises is not None:
        options["generator"] = generator
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(net(scaled, t), t, x, **options).prev_sample
        walked.append(x)
    return walked


def noise_of(steps):
    """What `randn_tensor` draws, one array per step, from the generator above."""
    generator = torch.Generator().manual_seed(11)
    drawn = [torch.randn(SHAPE, generator=generator) for _ in range(steps)]
    return lambda number: drawn[number - 1]


def agree(class_name, config, steps, kind="epsilon", stochastic=False, ratio_scale=False, ours=None, **options):
    """Their whole walk and ours, compared after every step."""
    scheduler = in_float64(getattr(diffusers, class_name)(**config))
    ladder = schedule.from_config(json.loads(scheduler.to_json_string()))
    net, x = toy_net(kind, ladder), torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    levels = ladder.levels(steps)
    start = levels[0].sigma if ratio_scale and ladder.spacing != "leading" else 1.0
    walked = theirs(scheduler, net, x, steps, noises=True if stochastic else None, **options)
    if len(walked) == steps + 1:  # PNDM: they go the first step twice
        walked = walked[1:]
    elif len(walked) > steps:  # Heun: two of their steps are one of ours
        walked = [*walked[1::2], walked[-1]]
    step = sampler(class_name, **(ours or {}))
    found = list(sample(prediction.denoiser(net, kind), x * start, levels, step, noise_of(steps)))
    assert len(found) == len(walked) == steps
    for mine, other in zip(found, walked, strict=True):
        scale = mine.there.alpha if ratio_scale else 1.0
        error = float((mine.x - other * scale).abs().max())
        assert error < 1e-5 * max(1.0, float(mine.x.abs().max())), f"step {mine.number}: {error}"


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_ddpm_agrees(kind):
    agree("DDPMScheduler", {"clip_sample": False, "prediction_type": kind}, 20, kind, stochastic=True)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_each_of_a_thousand_ddpm_steps_agrees(variance):
    scheduler = in_float64(diffusers.DDPMScheduler(clip_sample=False, variance_type=variance))
    ladder = schedule.from_config(dict(scheduler.config))
    net, x = toy_net("epsilon", ladder), torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    walked = [x, *theirs(scheduler, net, x, 1000, noises=True)]
    noise, denoise, levels = noise_of(1000), prediction.denoiser(net, "epsilon"), ladder.levels(1000)
    for number in range(1, 1001):
        here, there = levels[number - 1 : number + 1]
        found = sampler("ddpm", variance=variance)(denoise, walked[number - 1], here, there, lambda n=number: noise(n))
        assert torch.allclose(found, walked[number], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize(
    ("beta", "kind"),
    [("linear", "epsilon"), ("scaled_linear", "epsilon"), ("linear", "sample"), ("squaredcos_cap_v2", "v_prediction")],
)
def test_ddim_agrees(eta, spacing, beta, kind):
    config = {"clip_sample": False, "timestep_spacing": spacing, "beta_schedule": beta, "prediction_type": kind}
    agree("DDIMScheduler", config, 20, kind, stochastic=eta > 0, eta=eta, ours={"eta": eta})


def test_ddim_with_the_settings_of_stable_diffusion_1_agrees():
    config = {**STABLE, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    agree("DDIMScheduler", config, 20)


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_ddim_with_zero_terminal_snr_agrees(eta):
    config = {
        **STABLE,
        "clip_sample": False,
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
    }
    agree("DDIMScheduler", config, 20, "v_prediction", stochastic=eta > 0, eta=eta, ours={"eta": eta})


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("class_name", "stochastic"),
    [("EulerDiscreteScheduler", False), ("EulerAncestralDiscreteScheduler", True), ("HeunDiscreteScheduler", False)],
)
def test_euler_euler_ancestral_and_heun_agree(class_name, stochastic, spacing, kind):
    config = {**STABLE, "timestep_spacing": spacing, "prediction_type": kind}
    agree(class_name, config, 28, kind, stochastic, ratio_scale=True)  # 28 keeps linspace on whole rungs


@pytest.mark.parametrize("class_name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_euler_and_heun_agree_between_the_rungs_too(class_name):
    agree(class_name, STABLE, 20, ratio_scale=True)


def test_euler_with_karras_levels_agrees():
    agree("EulerDiscreteScheduler", {**STABLE, "use_karras_sigmas": True}, 12, ratio_scale=True)


def test_euler_that_stops_at_the_smallest_sigma_agrees():
    agree("EulerDiscreteScheduler", {**STABLE, "final_sigmas_type": "sigma_min"}, 12, ratio_scale=True)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [8, 20])
def test_dpm_solver_2m_agrees(spacing, kind, steps):
    config = {**STABLE, "timestep_spacing": spacing, "prediction_type": kind}
    agree("DPMSolverMultistepScheduler", config, steps, kind)


def test_dpm_solver_2m_with_karras_levels_agrees():
    agree("DPMSolverMultistepScheduler", {**STABLE, "use_karras_sigmas": True}, 12)


def test_dpm_solver_2m_on_a_flow_agrees():
    config = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 2.0}
    agree("DPMSolverMultistepScheduler", config, 20, "flow")


@pytest.mark.parametrize(("spacing", "steps"), [("leading", 3), ("leading", 20), ("leading", 50), ("trailing", 20)])
def test_pndm_agrees_where_its_steps_are_equal(spacing, steps):
    """Elsewhere theirs walks to rungs that it does not visit, and of a velocity it averages that, not the noise."""
    agree("PNDMScheduler", {**STABLE, "skip_prk_steps": True, "timestep_spacing": spacing}, steps)


def test_pndm_with_the_settings_of_stable_diffusion_1_agrees():
    agree("PNDMScheduler", {**STABLE, "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}, 20)


def test_euler_on_a_flow_agrees():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    ladder = schedule.from_config(json.loads(scheduler.to_json_string()))
    net, x = toy_net("flow", ladder), torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    walked = theirs(scheduler, net, x, 20, start=1.0)
    steps = sample(prediction.denoiser(net, "flow"), x, ladder.levels(20), sampler("euler"))
    for mine, other in zip(steps, walked, strict=True):
        assert torch.allclose(mine.x, other, atol=1e-5)


@pytest.mark.parametrize("steps", [2, 7, 20, 50, 333])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(
    "class_name",
    [f"{name}Scheduler" for name in ("DDPM", "DDIM", "EulerDiscrete", "HeunDiscrete", "DPMSolverMultistep")],
)
def test_the_net_is_told_the_same_times(class_name, spacing, steps):
    scheduler = getattr(diffusers, class_name)(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    told = sorted({float(t) for t in scheduler.timesteps}, reverse=True)
    levels = schedule.from_config(dict(scheduler.config), class_name).levels(steps)
    assert [level.t for level in levels[:-1]] == pytest.approx(told, abs=1e-3)


@pytest.mark.parametrize("beta", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_the_ladder_is_theirs(beta, zero_snr):
    scheduler = diffusers.DDIMScheduler(beta_schedule=beta, rescale_betas_zero_snr=zero_snr)
    ladder = schedule.from_config(dict(scheduler.config))
    assert np.allclose(ladder.alpha_bar, scheduler.alphas_cumprod.numpy(), rtol=2e-4, atol=1e-7)


def test_trained_betas_are_honoured():
    betas = np.linspace(0.01, 0.2, 30)
    ladder = schedule.from_config({"trained_betas": betas.tolist(), "num_train_timesteps": 30})
    assert np.allclose(ladder.alpha_bar, np.cumprod(1 - betas))


def test_every_scheduler_class_named_has_a_sampler():
    for class_name in ALIASES:
        assert hasattr(diffusers, class_name)
        assert callable(sampler(class_name))
    with pytest.raises(CartoucheError, match="unknown sampler"):
        sampler("UniPCMultistepScheduler")


def test_the_levels_of_a_walk_are_plain_numbers_whatever_the_config():
    config = {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}
    for level in schedule.from_config(config).levels(9):
        assert isinstance(level, Level)
        assert all(type(number) is float for number in level)
