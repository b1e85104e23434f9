"""Adapters in a model: the same on both engines and in diffusers, named in the recipe, gone without a trace."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from cartouche import images
from cartouche.cli import main
from cartouche.cli.draw import parse_loras
from cartouche.config import CartoucheError
from cartouche.diffusion.noise import gaussian
from cartouche.draw.paint import Painter
from cartouche.draw.recipe import Recipe
from cartouche.weights import folder, graph, safetensors
from cartouche.weights.adapters import Adapters, Used

PROMPT = "a red apple on a blue background"
SETTINGS = {"seed": 7, "num_inference_steps": 4}


def kohya(path, model, seed=0, rank=2, size=0.1):
    """A LoRA of every layer of the U-Net and of the text tower, in kohya's dialect."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for part, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_")):
        for name, weight in folder.load_net(model / part).state_dict().items():
            if weight.ndim not in (2, 4) or "embedding" in name:
                continue
            layer = prefix + name.removesuffix(".weight").replace(".", "_")
            down = size * torch.randn(rank, *weight.shape[1:], generator=generator)
            up = size * torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2), generator=generator)
            tensors |= {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}
            tensors[f"{layer}.alpha"] = torch.tensor(1.0)
    safetensors.save(path, tensors)
    return path


@pytest.fixture(scope="module")
def files(tiny_model, tmp_path_factory):
    place = tmp_path_factory.mktemp("loras")
    word = place / "learned_embeds.safetensors"
    safetensors.save(word, {"<cat-toy>": np.random.default_rng(0).standard_normal(32).astype(np.float32)})
    return kohya(place / "one.safetensors", tiny_model), kohya(place / "two.safetensors", tiny_model, seed=9), word


def pixels(painter, prompt=PROMPT):
    return painter.draw(prompt, **SETTINGS)[0].pixels.astype(int)


def opened(model, engine, **adapters):
    return Painter(model, engine, "fp32", device="cpu", **adapters)


# what they change


def test_both_engines_draw_the_same_with_adapters_and_something_else_than_without(tiny_model, files):
    one, two, word = files
    adapters = {"loras": [one, (two, -0.5)], "embeddings": [word]}
    prompt = "a (<cat-toy>:1.2) on a blue background"
    a, b = (pixels(opened(tiny_model, engine, **adapters), prompt) for engine in ("openvino", "torch"))
    assert np.abs(a - b).mean() <= 0.05
    for fewer in ({"loras": [one, (two, -0.5)]}, {"loras": [one], "embeddings": [word]}, {}):
        assert np.abs(a - pixels(opened(tiny_model, "openvino", **fewer), prompt)).mean() > 0.1


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_the_next_model_without_them_is_the_model_it_was(tiny_model, files, engine):
    before = pixels(opened(tiny_model, engine))
    assert (pixels(opened(tiny_model, engine, loras=[files[0]])) != before).any()
    assert (pixels(opened(tiny_model, engine)) == before).all()


def test_a_compiled_graph_with_adapters_is_not_kept(tiny_model, files, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    opened(tiny_model, "openvino", loras=[files[0]]).net("unet")
    assert not list(tmp_path.rglob("graph-*"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_weights_are_widened_before_they_are_changed(tiny_model, files, tmp_path, dtype):
    model = tmp_path / "short"
    shutil.copytree(tiny_model, model)
    for part in ("unet", "text_encoder"):
        folder.save_net(model / part, folder.load_net(model / part), dtype)
        graph.export_net(model / part)
    a, b = (pixels(opened(model, engine, loras=[files[0]])) for engine in ("openvino", "torch"))
    assert np.abs(a - b).mean() <= 0.05
    net = opened(model, "torch", loras=[files[0]]).net("unet").module
    assert {one.dtype for one in net.parameters()} == {torch.float32}


def test_diffusers_draws_the_same_with_the_same_lora_and_word(tiny_model, files, tmp_path):
    import diffusers

    one, _, word = files
    attention = {name: tensor for name, tensor in safetensors.load(one).items() if "attn" in name}
    safetensors.save(tmp_path / "x.safetensors", attention)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = diffusers.StableDiffusionPipeline.from_pretrained(
            tiny_model, safety_checker=None, local_files_only=True
        )
        theirs.scheduler = diffusers.DDIMScheduler.from_config(theirs.scheduler.config)
        theirs.load_lora_weights(tmp_path, weight_name="x.safetensors", adapter_name="own")
        theirs.set_adapters(["own"], [0.7])
        theirs.load_textual_inversion(word.parent, weight_name=word.name)
        theirs.set_progress_bar_config(disable=True)
        expected = theirs(
            "a <cat-toy> on blue",
            latents=torch.from_numpy(gaussian(7, 0, 0, (4, 8, 8))[None]),
            num_inference_steps=20,
            guidance_scale=5.0,
            output_type="latent",
            height=16,
            width=16,
        ).images
    painter = opened(tiny_model, "openvino", loras=[(tmp_path / "x.safetensors", 0.7)], embeddings=[word])
    *_, last = painter.trace("a <cat-toy> on blue", seed=7, sampler="ddim", guidance_scale=5.0)
    np.testing.assert_allclose(last.x, expected, atol=1e-4)
    *_, plain = opened(tiny_model, "openvino").trace("a <cat-toy> on blue", seed=7, sampler="ddim", guidance_scale=5.0)
    assert np.abs(plain.x - last.x).max() > 0.01


# what is said of them


def test_the_recipe_names_them_and_only_they_draw_it_again(tiny_model, files):
    one, two, word = files
    adapters = {"loras": [one, (two, 0.5)], "embeddings": [word]}
    made = opened(tiny_model, "openvino", **adapters).draw(PROMPT, **SETTINGS)[0]
    recipe = Recipe.from_dict(json.loads(json.dumps(made.recipe.to_dict())))
    assert recipe == made.recipe
    assert [(used.kind, used.name, used.weight) for used in recipe.adapters] == [
        ("lora", "one", 1.0),
        ("lora", "two", 0.5),
        ("embedding", "<cat-toy>", 1.0),
    ]
    said = images.parameters(recipe.to_dict())
    assert f'Lora hashes: "one: {recipe.adapters[0].hash}, two: {recipe.adapters[1].hash}"' in said
    assert f'TI hashes: "<cat-toy>: {recipe.adapters[2].hash}"' in said
    assert (opened(tiny_model, "openvino", **adapters).redraw(recipe).pixels == made.pixels).all()
    for others in ({}, {"loras": [one, two], "embeddings": [word]}, {"loras": [one, (two, 0.5)]}):
        with pytest.raises(CartoucheError, match="with adapters lora one"):
            opened(tiny_model, "openvino", **others).redraw(recipe)
    shutil.copy(one, one.with_name("renamed.safetensors"))
    renamed = {"loras": [one.with_name("renamed.safetensors"), (two, 0.5)], "embeddings": [word]}
    assert (opened(tiny_model, "openvino", **renamed).redraw(recipe).pixels == made.pixels).all()


def test_without_adapters_there_are_none(tiny_model):
    assert not Adapters() and Adapters().used == ()
    assert "hashes" not in images.parameters(
        opened(tiny_model, "openvino").draw(PROMPT, **SETTINGS)[0].recipe.to_dict()
    )
    assert str(Used("lora", "x", "abc", 0.5)) == "lora x (abc) at 0.5"


def test_a_lora_for_a_part_that_the_model_lacks_or_of_odd_strength_is_refused(tiny_model, files, tmp_path):
    tensors = {"lora_te2_x.lora_down.weight": torch.ones(1, 1), "lora_te2_x.lora_up.weight": torch.ones(1, 1)}
    safetensors.save(tmp_path / "xl.safetensors", tensors)
    with pytest.raises(CartoucheError, match="changes text_encoder_2, which this model lacks"):
        Painter(tiny_model, loras=[tmp_path / "xl.safetensors"])
    with pytest.raises(CartoucheError, match="strength nan"):
        Painter(tiny_model, loras=[(files[0], float("nan"))])


# the command


@pytest.fixture
def command(tiny_model, tmp_path, monkeypatch, capsys):
    """`cartouche draw` with the tiny model, in a folder of its own: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main([*map(str, arguments), "--model", str(tiny_model)])
        return code, *capsys.readouterr()

    return run


def test_the_command_draws_with_adapters_and_draws_again_with_the_weights_it_wrote_down(command, files):
    one, two, word = files
    asked = ("--lora", f"{one}:0.8", "--lora", two, "--embedding", word)
    assert command("draw", "a <cat-toy>", *asked, "--steps", 2, "--out", "a.png")[0] == 0
    used = images.read_recipe("a.png")["adapters"]
    assert [(one["name"], one["weight"]) for one in used] == [("one", 0.8), ("two", 1.0), ("<cat-toy>", 1.0)]
    again = ("--lora", one, "--lora", two, "--embedding", word)
    assert command("redraw", "a.png", *again) == (0, "a.png: the same pixels\n", "")
    code, _, error = command("redraw", "a.png")
    assert code == 2 and "with adapters lora one" in error


def test_the_command_draws_into_a_picture_and_needs_it_again(command):
    before = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(before).save("x.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[:8] = 255
    Image.fromarray(mask).save("mask.png")
    asked = ("--image", "x.png", "--mask", "mask.png", "--strength", 0.6)
    assert command("draw", PROMPT, *asked, "--steps", 5, "--out", "a.png")[0] == 0
    made = images.read_pixels("a.png")
    assert (made[8:] == before[8:]).all() and (made[:8] != before[:8]).any()
    assert command("redraw", "a.png", *asked[:4]) == (0, "a.png: the same pixels\n", "")
    code, _, error = command("redraw", "a.png")
    assert code == 2 and "--image FILE" in error and error.count("\n") == 1
    code, _, error = command("draw", PROMPT, "--mask", "mask.png", "--out", "b.png")
    assert code == 2 and "no picture to draw into" in error


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a:0.5", ("a", 0.5)),
        ("a:-1", ("a", -1.0)),
        ("a:b", ("a:b", 1.0)),
        ("C:/x:.5", ("C:/x", 0.5)),
    ],
)
def test_a_lora_is_a_file_and_perhaps_a_weight(text, found):
    ((path, weight),) = parse_loras([text])
    assert (str(path), weight) == found
    assert [one[1] for one in parse_loras(["a", "b:2", "c"], [0.3, 0.4])] == [0.3, 2.0, 1.0]
