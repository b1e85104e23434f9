"""The model inside the package: small enough, true to the ground that the words name, and the same in diffusers."""

import warnings

import numpy as np
import pytest

import cartouche
from cartouche.data import palette
from cartouche.diffusion.noise import gaussian
from cartouche.weights.builtin import builtin


@pytest.fixture(scope="module")
def painter():
    return cartouche.load()


def ground(pixels):
    """The colour word of a picture's edge."""
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return palette.nearest(np.median(edge, axis=0))


def test_it_is_small_enough_to_ship():
    assert sum(path.stat().st_size for path in builtin().rglob("*.safetensors")) <= 96_000_000


@pytest.mark.parametrize(
    ("prompt", "colour"),
    [("a cat on a blue background, flat style", "blue"), ("une pizza sur fond vert", "green")],
)
def test_the_ground_is_the_colour_that_the_prompt_says(painter, prompt, colour):
    pictures = painter.draw(prompt, seed=11, count=3)
    assert [ground(one.pixels) for one in pictures] == [colour] * 3
    assert pictures[0].pixels.shape == (128, 128, 3)
    assert pictures[0].pixels.std() > 1  # there is something on it


def test_the_negative_prompt_and_the_guidance_change_the_picture(painter):
    prompt = "a fox on a white background"
    plain = painter.draw(prompt, seed=3)[0].pixels
    assert not np.array_equal(plain, painter.draw(prompt, seed=3, negative_prompt="fox")[0].pixels)
    assert not np.array_equal(plain, painter.draw(prompt, seed=3, guidance_scale=1)[0].pixels)
    assert np.array_equal(plain, painter.draw(prompt, seed=3)[0].pixels)


def test_diffusers_draws_the_same_picture():
    import diffusers
    import torch

    prompt = "two cats on a yellow background"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            builtin(), safety_checker=None, local_files_only=True, torch_dtype=torch.float32
        )
        pipeline.set_progress_bar_config(disable=True)
        noise = torch.from_numpy(gaussian(5, 0, 0, (8, 16, 16))[None])
        theirs = pipeline(prompt, latents=noise, num_inference_steps=10, guidance_scale=4.0, output_type="np").images[0]
    ours = cartouche.load(engine="torch", precision="fp32").draw(
        prompt, seed=5, sampler="ddim", num_inference_steps=10, guidance_scale=4.0
    )[0]
    assert np.abs(ours.pixels - 255 * theirs).mean() < 0.6  # rounding to 8 bits alone is 0.25
