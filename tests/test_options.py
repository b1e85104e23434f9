"""What trades exactness for time or memory, what opens a model otherwise, and that a recipe remembers all of it."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from small_families import PROMPT, small

from cartouche import images
from cartouche.cli import main
from cartouche.cli.draw import parse_interval
from cartouche.config import CartoucheError
from cartouche.draw import tiles
from cartouche.draw.paint import Painter
from cartouche.draw.recipe import Recipe
from cartouche.draw.reuse import Reused
from cartouche.engine import TorchNet
from cartouche.nets.tiny import AutoencoderTiny, TinyConfig
from cartouche.weights import folder, safetensors


@pytest.fixture(scope="module")
def painter(tiny_model):
    return Painter(tiny_model, "torch", "fp32", "cpu")


# reuse of deep features


@torch.no_grad()
def test_the_deep_part_and_the_shallow_part_are_the_whole_net(tiny_model):
    net = folder.load_net(tiny_model / "unet")
    given = torch.randn(2, 4, 8, 12), torch.tensor([998.0, 3.0]), torch.randn(2, 16, 32)
    assert torch.equal(net.shallow(*given, net.deep(*given)), net(*given))


def test_the_deep_part_is_computed_at_every_second_step_and_where_the_passes_change():
    seen = []

    def net(name):
        def call(**arrays):
            seen.append((name, len(arrays["sample"])))
            return arrays["sample"]

        call.precision = "fp32"
        return call

    reused = Reused(net("deep"), net("shallow"), 2)
    for rows in (2, 2, 2, 1, 1, 1):
        reused(sample=np.zeros((rows, 4, 8, 8), np.float32))
    assert [rows for name, rows in seen if name == "shallow"] == [2, 2, 2, 1, 1, 1]
    assert [i for i, (name, _) in enumerate(seen) if name == "deep"] == [0, 3, 5, 8]


def test_a_drawing_that_reuses_deep_features_is_near_and_drawn_again_alike(painter):
    whole = painter.draw("a red apple", seed=7)[0]
    found = painter.draw("a red apple", seed=7, cache_interval=2)[0]
    assert found.recipe.cache_interval == 2 and (found.pixels != whole.pixels).any()
    assert np.abs(found.pixels.astype(int) - whole.pixels).mean() < 8
    assert (painter.redraw(found.recipe).pixels == found.pixels).all()


def test_where_deep_features_cannot_be_reused_is_said(tiny_model, painter):
    with pytest.raises(CartoucheError, match="cache_interval=2 given for the engine openvino; use engine=torch"):
        Painter(tiny_model, "openvino", "fp32").draw("a red apple", cache_interval=2)
    with pytest.raises(CartoucheError, match="cache_interval=2 given for a U-Net that is told sizes"):
        Painter(small("sdxl").file, "torch", "fp32", "cpu").draw(PROMPT, size=64, cache_interval=2)
    with pytest.raises(CartoucheError, match="cache_interval=0 given; choose 1"):
        painter.draw("a red apple", cache_interval=0)


# decoding by tiles


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 40), (160, 200), (112, 96)])
def test_tiles_of_a_decoder_that_sees_one_cell_make_the_whole_exactly(height, width):
    z = np.random.default_rng(0).standard_normal((2, 3, height, width), np.float32)
    seen = []

    def decode(part):
        seen.append(part.shape[2:])
        return part.repeat(2, axis=2).repeat(2, axis=3)

    np.testing.assert_allclose(tiles.tiled(decode, z), decode(z), atol=1e-5)
    assert set(seen[:-1]) == {(min(64, height), min(64, width))}


def test_a_large_picture_decoded_by_tiles_is_near_the_whole_one(painter):
    latents = np.random.default_rng(0).standard_normal((1, 4, 96, 128), np.float32)
    whole, found = painter.decode(latents), painter.decode(latents, tiled=True)
    assert found.shape == whole.shape == (1, 3, 192, 256)
    assert np.abs(found - whole).mean() < 0.05 * whole.std()


def test_decoding_by_tiles_takes_less_memory():
    """Peaks only rise, so the tiles go first."""
    code = """
import re
from pathlib import Path
import numpy as np
from cartouche.draw.tiles import tiled
from cartouche.engine import TorchNet
from cartouche.nets.tiny import AutoencoderTiny, TinyConfig
from cartouche.nets.autoencoder import AutoencoderConfig, AutoencoderKL
config = AutoencoderConfig(block_out_channels=(32, 32), norm_num_groups=8, mid_block_add_attention=False)
net = TorchNet(AutoencoderKL(config), "fp32", "decode")
z = np.zeros((1, 4, 320, 320), np.float32)
for decode in (lambda z: tiled(lambda part: net(z=part), z), lambda z: net(z=z)):
    decode(z)
    print(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    small_peak, large_peak = map(int, done.stdout.split())
    assert large_peak > small_peak + 50_000  # kilobytes


# precision


def test_torch_in_bf16_lays_its_maps_with_the_channels_last(tiny_model):
    net = TorchNet(folder.load_net(tiny_model / "unet"), "bf16")
    assert net.module.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert net.module.conv_in.weight.dtype == torch.bfloat16


def test_matrices_are_multiplied_as_exactly_as_ever_and_the_switch_goes_back():
    from cartouche.device import exact_matrices

    a, b = torch.randn(2, 300, 300)
    wanted, before = a.double() @ b.double(), torch.backends.mkldnn.matmul.fp32_precision
    with exact_matrices(torch.device("cpu")):
        found = a @ b
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert (found - wanted).norm() < 1e-5 * wanted.norm()


# the command


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = small("sd1")
    tensors = safetensors.load(model.folder / "vae" / "diffusion_pytorch_model.safetensors")
    folder.save_net(tmp_path / "vae", folder.load_net(model.folder / "vae"))
    other = {name: one * 1.01 for name, one in tensors.items()}
    safetensors.save(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", other, {"format": "pt"})
    return tmp_path


def test_every_option_of_the_command_is_in_the_recipe_and_drawn_again(here, capsys):
    model = ["--model", str(small("sd1").file)]
    asked = ["--steps", "3", "--size", "64", "--seed", "7", "--out", "fox.png", "--vae", "vae"]
    asked += ["--prediction", "v_prediction", "--clip-skip", "1", "--guidance-interval", "0.2-0.9", "--tiled"]
    assert main(["draw", PROMPT, *model, *asked, "--cache-interval", "2", "--engine", "torch"]) == 0
    recipe = Recipe.from_dict(images.read_recipe(here / "fox.png"))
    assert recipe.prediction == "v_prediction" and len(recipe.vae) == 10
    assert (recipe.clip_skip, recipe.guidance_interval) == (1, (0.2, 0.9))
    assert recipe.tiled and recipe.cache_interval == 2
    assert main(["redraw", "fox.png", *model, "--vae", "vae"]) == 0
    assert "the same pixels" in capsys.readouterr().out
    assert main(["redraw", "fox.png", *model]) == 2
    assert f"autoencoder {recipe.vae}; give it with --vae" in capsys.readouterr().err


def test_a_preview_shows_the_steps_and_leaves_the_picture_alone(here, capsys):
    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    folder.save_net(here / "tiny", AutoencoderTiny(TinyConfig(**widths)))
    model = ["--model", str(small("sd1").file)]
    asked = ["--steps", "3", "--size", "64", "--seed", "7", "--film-strip", "3"]
    assert main(["draw", PROMPT, *model, *asked, "--out", "own.png"]) == 0
    assert main(["draw", PROMPT, *model, *asked, "--out", "quick.png", "--preview-vae", "tiny"]) == 0
    own, quick, film, other = (
        images.read_pixels(here / f"{name}.png") for name in ("own", "quick", "own-film", "quick-film")
    )
    assert (own == quick).all() and film.shape == other.shape and (film != other).any()
    assert main(["redraw", "quick.png", *model]) == 0
    assert main(["draw", PROMPT, *model, "--out", "none.png", "--preview-vae", "tiny"]) == 2
    assert "give --film-strip too" in capsys.readouterr().err and not (here / "none.png").exists()
    with pytest.raises(CartoucheError, match="decodes 4 channels; this model has 8"):
        Painter(preview=here / "tiny")


def test_an_interval_is_two_shares():
    assert parse_interval("0.2-0.8") == (0.2, 0.8) and parse_interval("0-1") == (0.0, 1.0)
    assert parse_interval(None) is None
    with pytest.raises(CartoucheError, match="write LOW-HIGH"):
        parse_interval("0.2")


def test_a_recipe_of_another_prediction_is_not_drawn_as_this_one(tiny_model):
    made = Painter(small("sd1").file, "torch", "fp32", "cpu", prediction="v_prediction")
    picture = made.draw(PROMPT, seed=7, size=64, num_inference_steps=1)[0]
    with pytest.raises(CartoucheError, match="drawing with prediction=v_prediction; give that"):
        Painter(small("sd1").file, "torch", "fp32", "cpu").redraw(picture.recipe)
