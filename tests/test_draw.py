"""Drawing: an iterator of steps, the same picture alone or in company, on either engine and in diffusers."""

import inspect
import json
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest

import cartouche
from cartouche.config import CartoucheError
from cartouche.diffusion.noise import gaussian
from cartouche.draw.paint import CutWarning, Painter
from cartouche.draw.recipe import Recipe

PROMPT = "a red apple on a blue background"
SIZED = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Compiled graphs of these tests lie apart."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="module")
def painter(tiny_model):
    return Painter(tiny_model, "openvino", "fp32")


@pytest.fixture(scope="module")
def torch_painter(tiny_model):
    return Painter(tiny_model, "torch", "fp32", device="cpu")


def apart(a, b):
    """Mean difference of two pictures in levels of 255."""
    return np.abs(a.pixels.astype(float) - b.pixels).mean()


# steps


def test_a_trace_yields_every_step_and_draw_is_its_last(painter):
    steps = list(painter.trace(PROMPT, seed=7, num_inference_steps=6))
    assert [step.index for step in steps] == list(range(6)) and {step.total for step in steps} == {6}
    levels = [step.level.sigma for step in steps]
    assert levels == sorted(levels, reverse=True) and levels[0] > 0.99
    assert [step.last for step in steps] == [False] * 5 + [True]
    drawn = painter.draw(PROMPT, seed=7, num_inference_steps=6)
    assert (steps[-1].pictures()[0].pixels == drawn[0].pixels).all()
    assert drawn[0].pixels.shape == (16, 16, 3) and drawn[0].pixels.dtype == np.uint8


def test_each_step_shows_both_guidance_passes_and_what_became_of_them(painter):
    for step in painter.trace(PROMPT, seed=7, num_inference_steps=3, guidance_scale=4.0):
        assert step.x.shape == step.x0.shape == (1, 4, 8, 8)
        mixed = step.unconditional + 4.0 * (step.conditional - step.unconditional)
        np.testing.assert_allclose(step.x0, mixed, atol=1e-4)
        assert not np.allclose(step.conditional, step.unconditional)
        assert step.images().shape == step.images(step.conditional).shape == (1, 3, 16, 16)


def test_the_last_clean_estimate_is_the_drawing(painter):
    """The ladder ends at no noise at all."""
    *_, last = painter.trace(PROMPT, seed=7, sampler="ddim")
    np.testing.assert_allclose(last.x, last.x0, atol=1e-6)


def test_only_the_passes_that_are_needed_are_made(painter):
    for scale, made in ((1.0, "conditional"), (0.0, "unconditional")):
        step = next(painter.trace(PROMPT, seed=1, guidance_scale=scale))
        other = {"conditional": "unconditional", "unconditional": "conditional"}[made]
        assert getattr(step, made) is not None and getattr(step, other) is None


def test_a_drawing_can_be_left_at_any_step(painter):
    steps = painter.trace(PROMPT, seed=3)
    next(steps)
    steps.close()
    assert (painter.draw(PROMPT, seed=3)[0].pixels == painter.draw(PROMPT, seed=3)[0].pixels).all()


def test_two_drawings_may_run_in_turns(painter):
    alone = painter.draw(PROMPT, seed=3)[0].pixels, painter.draw("two frogs", seed=4)[0].pixels
    first, second = painter.trace(PROMPT, seed=3), painter.trace("two frogs", seed=4)
    for a, b in zip(first, second, strict=True):
        last = a, b
    for step, expected in zip(last, alone, strict=True):
        assert (step.pictures()[0].pixels == expected).all()


# what decides a picture


def test_prompt_negative_prompt_seed_and_scale_each_change_the_picture(painter):
    base = {"prompt": PROMPT, "seed": 7}
    pictures = [
        painter.draw(**(base | change))[0]
        for change in (
            {},
            {"prompt": "two green frogs"},
            {"seed": 8},
            {"index": 1},
            {"negative_prompt": "une pomme"},
            {"guidance_scale": 2.0},
            {"sampler": "euler_a"},
            {"num_inference_steps": 19},
        )
    ]
    for i, one in enumerate(pictures):
        assert all(apart(one, other) > 0.05 for other in pictures[:i])


def test_scale_zero_does_not_see_the_prompt(painter):
    a, b = (painter.draw(prompt, seed=7, guidance_scale=0)[0] for prompt in (PROMPT, "two frogs"))
    assert (a.pixels == b.pixels).all()


@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_a"])
def test_a_seed_is_one_picture_alone_or_in_a_batch(painter, torch_painter, engine, sampler):
    """Bit for bit: with fresh noise and without."""
    chosen = {"openvino": painter, "torch": torch_painter}[engine]
    settings = {"seed": 7, "sampler": sampler, "num_inference_steps": 5}
    alone = [chosen.draw(PROMPT, index=i, **settings)[0].pixels for i in range(8)]
    for count in (1, 2, 3, 8):
        batch = chosen.draw(PROMPT, count=count, **settings)
        assert all((one.pixels == alone[i]).all() for i, one in enumerate(batch))


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_drawn_together_in_the_nets_pictures_stay_within_a_level(tiny_model, painter, torch_painter, engine):
    together = Painter(tiny_model, engine, "fp32", device="cpu", batch=4).draw(PROMPT, seed=7, count=6)
    chosen = {"openvino": painter, "torch": torch_painter}[engine]
    for one, other in zip(together, chosen.draw(PROMPT, seed=7, count=6), strict=True):
        assert np.abs(one.pixels.astype(int) - other.pixels).max() <= 1


def test_the_whole_picture_is_the_same_on_both_engines(painter, torch_painter):
    for sampler in ("ddpm", "ddim", "euler", "euler_a", "heun", "dpmpp_2m"):
        ours, theirs = (one.draw(PROMPT, seed=7, sampler=sampler)[0] for one in (painter, torch_painter))
        assert apart(ours, theirs) <= 0.05


@pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="needs a GPU")
def test_the_whole_picture_is_the_same_on_a_gpu(tiny_model, torch_painter):
    there, here = (
        one.draw(PROMPT, seed=7)[0].pixels
        for one in (Painter(tiny_model, "torch", precision="fp32", device="cuda"), torch_painter)
    )
    assert np.abs(there.astype(int) - here).max() <= 1


def test_bf16_stays_near(tiny_model, painter):
    """Two levels of 255 in the mean, after 20 steps of a net with random weights."""
    short = Painter(tiny_model, "openvino", "bf16").draw(PROMPT, seed=7)[0]
    assert apart(short, painter.draw(PROMPT, seed=7)[0]) <= 2.0
    assert short.recipe.precision == "bf16"


@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_words_are_read_in_fp32_whatever_the_rest_computes_in(tiny_model, painter, engine, precision):
    other = Painter(tiny_model, engine, precision, device="cpu")
    assert other.net("text_encoder").precision == "fp32"
    assert np.abs(other.encode(PROMPT)[0] - painter.encode(PROMPT)[0]).max() < 1e-5


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_a_recipe_is_drawn_again_at_the_precision_it_names(tiny_model, precision):
    picture = Painter(tiny_model, "openvino", precision).draw(PROMPT, seed=7, num_inference_steps=3)[0]
    again = Painter(tiny_model, "openvino", picture.recipe.precision).redraw(picture.recipe)
    assert (again.pixels == picture.pixels).all()


def test_other_sizes_are_drawn_and_named_width_first(painter, torch_painter):
    picture = painter.draw(PROMPT, seed=7, size=(24, 20))[0]
    assert picture.pixels.shape == (20, 24, 3) and (picture.recipe.width, picture.recipe.height) == (24, 20)
    assert apart(picture, torch_painter.draw(PROMPT, seed=7, size=(24, 20))[0]) <= 0.05
    assert painter.draw(PROMPT, seed=7, size=24)[0].pixels.shape == (24, 24, 3)


# the recipe


def test_a_recipe_draws_the_same_picture_again(painter):
    picture = painter.draw(PROMPT, seed=11, count=3, negative_prompt="frog", size=(20, 16), sampler="euler_a")[2]
    assert picture.recipe.index == 2 and picture.recipe.seed == 11
    recipe = Recipe.from_dict(picture.recipe.to_dict())
    assert recipe == picture.recipe
    assert (painter.redraw(recipe).pixels == picture.pixels).all()


def test_a_recipe_says_all_that_decided_and_nothing_of_the_machine(painter, tiny_model):
    recipe = painter.draw(PROMPT, seed=7)[0].recipe.to_dict()
    assert recipe["model"] == tiny_model.name and len(recipe["model_hash"]) == 10
    assert (recipe["engine"], recipe["precision"]) == ("openvino", "fp32")
    assert recipe["version"] == cartouche.__version__
    assert not any("/" in str(value) for value in recipe.values())


def test_a_recipe_of_another_model_or_with_odd_parts_is_refused(painter):
    recipe = painter.draw(PROMPT, seed=7, num_inference_steps=1)[0].recipe.to_dict()
    with pytest.raises(CartoucheError, match="of model other"):
        painter.redraw(Recipe.from_dict(recipe | {"model": "other", "model_hash": "0" * 10}))
    with pytest.raises(CartoucheError, match="did you mean 'recipe.seed'"):
        Recipe.from_dict(recipe | {"sed": 1})
    with pytest.raises(CartoucheError):
        Recipe.from_dict({"prompt": PROMPT})


def test_a_seed_is_chosen_and_recorded_where_none_is_given(painter):
    first, second = (painter.draw(PROMPT, num_inference_steps=1)[0].recipe.seed for _ in range(2))
    assert first != second and 0 <= first < 2**32


# prompts


def test_the_words_that_did_not_fit_are_said_and_recorded(painter):
    long = " ".join(["a red apple"] * 80 + ["and a Frog"])
    with pytest.warns(CutWarning, match="Frog"):
        picture = painter.draw(long, seed=7, num_inference_steps=1)[0]
    assert picture.recipe.cut[-1] == "Frog" and picture.recipe.prompt == long


def test_a_prompt_is_encoded_once(painter, monkeypatch):
    painter.encode("quite new words")
    monkeypatch.setattr(painter, "net", None)
    states, cut = painter.encode("quite new words")
    assert states.shape == (1, 16, 32) and cut == ()


# what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "  "}, "the prompt is empty; say what to draw"),
        ({"num_inference_steps": 0}, "steps=0 asked; choose 1 or more"),
        ({"num_inference_steps": 1001}, "steps=1001 asked of a schedule of 1000"),
        ({"sampler": "dpmpp_3m"}, "unknown sampler 'dpmpp_3m'; did you mean 'dpmpp_2m'"),
        ({"size": 17}, "width=17 is not a multiple of 2; choose 16 or 18"),
        ({"size": (16, 0)}, "height=0 is not a multiple of 2; choose 2"),
        ({"size": "x"}, "width='x': wanted a whole number"),
        ({"size": (16, 16, 3)}, "one number or"),
        ({"size": 8_000_000_000}, "pixels asked; choose at most 33,177,600"),
        ({"size": 4096, "count": 100}, "count=100 of 16,777,216 pixels each asked; choose at most 15 at once"),
        ({"count": 0}, "count=0 asked"),
        ({"count": -2}, "count=-2 asked"),
        ({"seed": -1}, "seed=-1 given; choose a whole number"),
        ({"seed": 2**64}, "choose a whole number"),
        ({"seed": "x"}, "wanted a whole number"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"guidance_scale": -1.0}, "guidance_scale=-1"),
        ({"guidance_rescale": 2.0}, "rescale=2"),
        ({"guidance": 7}, "did you mean 'guidance_scale'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_the_first_step(painter, settings, message):
    with pytest.raises(CartoucheError, match=message):
        painter.trace(**({"prompt": PROMPT} | settings))


def test_a_folder_or_engine_that_cannot_be_used_is_refused(tiny_model, tmp_path):
    with pytest.raises(CartoucheError, match="nothing does not exist"):
        Painter(tmp_path / "nothing")
    with pytest.raises(CartoucheError, match="holds no model"):
        Painter(tmp_path)
    with pytest.raises(CartoucheError, match="unknown engine 'onnx'"):
        Painter(tiny_model, "onnx")
    with pytest.raises(CartoucheError, match="unknown precision 'int8'"):
        Painter(tiny_model, precision="int8")
    with pytest.raises(CartoucheError, match="batch=0"):
        Painter(tiny_model, batch=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"in_channels": 9}, "takes 9 channels"), (SIZED, "second text tower")],
)
def test_a_model_that_needs_more_than_a_prompt_is_refused(tiny_model, tmp_path, change, message):
    shutil.copytree(tiny_model, tmp_path / "model")
    config = tmp_path / "model" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(CartoucheError, match=message):
        Painter(tmp_path / "model").trace(PROMPT)


def test_without_graphs_openvino_says_how_to_write_them_and_auto_takes_torch(tiny_model, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare, ignore=shutil.ignore_patterns("*.onnx"))
    with pytest.raises(CartoucheError, match="cartouche weights export"):
        Painter(bare, "openvino")
    assert Painter(bare).engine == "torch"


def test_a_tokenizer_of_no_stated_length_is_as_long_as_its_tower(tiny_model, painter, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    config = tmp_path / "model" / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": int(1e30)}))
    (states, _), (wanted, _) = (one.encode(PROMPT) for one in (Painter(tmp_path / "model"), painter))
    assert states.shape == wanted.shape


# the house


def run_alone(code, tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=environment)


def test_drawing_imports_no_torch(tiny_model, tmp_path):
    run_alone(
        f"""
import sys, cartouche
assert not {{"numpy", "torch", "openvino"}} & set(sys.modules)
pictures = cartouche.load({str(tiny_model)!r}).draw({PROMPT!r}, seed=7, count=2)
assert len(pictures) == 2
assert not {{"torch", "diffusers", "transformers", "onnx"}} & set(sys.modules)
""",
        tmp_path,
    )


def test_load_offers_what_the_painter_takes(tiny_model):
    options = inspect.signature(cartouche.load).parameters
    taken = inspect.signature(Painter).parameters
    assert list(options)[:2] == ["model", "engine"] and options["engine"].default == taken["engine"].default
    assert cartouche.load(tiny_model, precision="fp32", batch=3).batch == 3
    with pytest.raises(TypeError, match="colour"):
        cartouche.load(tiny_model, colour="red")


# against diffusers


@pytest.mark.parametrize(("sampler", "scheduler"), [("ddim", "DDIM"), ("dpmpp_2m", "DPMSolverMultistep")])
def test_diffusers_draws_the_same_picture_from_the_same_noise(tiny_model, painter, sampler, scheduler):
    import diffusers
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            tiny_model, safety_checker=None, local_files_only=True
        )
        kind = getattr(diffusers, f"{scheduler}Scheduler")
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        noise = torch.from_numpy(gaussian(7, 0, 0, (4, 8, 8))[None])
        theirs = pipeline(
            PROMPT, latents=noise, num_inference_steps=20, guidance_scale=5.0, output_type="np", height=16, width=16
        ).images[0]
    ours = painter.draw(PROMPT, seed=7, sampler=sampler, guidance_scale=5.0, num_inference_steps=20)[0]
    assert np.abs(ours.pixels - 255 * theirs).max() <= 1.0
