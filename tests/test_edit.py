"""Drawing into pictures: what is kept stays to the bit, strength says how much is new, and diffusers does the same."""

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from cartouche import images
from cartouche.config import CartoucheError
from cartouche.diffusion.noise import gaussian
from cartouche.draw import edit
from cartouche.draw.paint import Painter
from cartouche.draw.recipe import Recipe
from cartouche.weights import folder, graph

PROMPT = "a red apple on a blue background"
SIDE = 16  # of the tiny model's pictures; a latent cell is 2 pixels


@pytest.fixture(scope="module")
def painter(tiny_model):
    return Painter(tiny_model, "openvino", "fp32")


@pytest.fixture(scope="module")
def torch_painter(tiny_model):
    return Painter(tiny_model, "torch", "fp32", device="cpu")


@pytest.fixture(scope="module")
def inpainting_model(tiny_model, tmp_path_factory):
    """The tiny model with a U-Net that also takes a mask and the masked picture."""
    import shutil

    from cartouche.nets.unet import UNet2DConditionModel, UNetConfig

    path = tmp_path_factory.mktemp("inpainting") / "model"
    shutil.copytree(tiny_model, path, ignore=shutil.ignore_patterns("unet"))
    config = json.loads((tiny_model / "unet" / "config.json").read_text()) | {"in_channels": 9}
    torch.manual_seed(4)
    folder.save_net(path / "unet", UNet2DConditionModel(UNetConfig.from_dict(config)))
    graph.export_net(path / "unet")
    return path


def picture(height=SIDE, width=SIDE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def left_half(height=SIDE, width=SIDE):
    """A mask that paints the left half."""
    mask = np.zeros((height, width))
    mask[:, : width // 2] = 1
    return mask


def drawn(painter, **settings):
    return painter.draw(**({"prompt": PROMPT, "seed": 7, "num_inference_steps": 6, "image": picture()} | settings))


# strength


def test_strength_nought_gives_the_picture_back_to_the_bit(painter):
    made = drawn(painter, strength=0, count=2)
    assert len(made) == 2 and all((one.pixels == picture()).all() for one in made)
    assert made[0].recipe.strength == 0


def test_strength_one_does_not_see_the_picture(painter):
    a, b = (drawn(painter, strength=1, image=picture(seed=seed))[0].pixels for seed in (1, 2))
    nothing = painter.draw(PROMPT, seed=7, num_inference_steps=6)[0].pixels
    assert (a == b).all() and (a == nothing).all()


def test_in_between_the_picture_is_seen_and_fewer_steps_are_walked(painter):
    steps = list(painter.trace(PROMPT, seed=7, num_inference_steps=10, image=picture(), strength=0.4))
    assert [step.index for step in steps] == [0, 1, 2, 3] and steps[-1].last and steps[0].total == 4
    a, b = (drawn(painter, strength=0.5, image=picture(seed=seed))[0].pixels for seed in (1, 2))
    assert (a != b).any()


def test_a_little_strength_is_nearer_to_the_picture_than_much(painter):
    known = painter.latents(images.from_uint8(picture()[None]))
    far = []
    for strength in (0.1, 0.5, 0.9):
        *_, last = painter.trace(PROMPT, seed=7, num_inference_steps=10, image=picture(), strength=strength)
        far.append(np.abs(last.x - known).mean())
    assert far == sorted(far) and far[0] < far[-1]


def test_the_smallest_strength_takes_one_step(painter):
    assert len(list(painter.trace(PROMPT, image=picture(), strength=0.01, num_inference_steps=10))) == 1


def test_without_a_strength_a_picture_is_kept_in_part_and_a_mask_painted_anew(painter):
    assert drawn(painter)[0].recipe.strength == 0.75
    assert drawn(painter, mask=left_half())[0].recipe.strength == 1.0


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "euler_a", "heun"])
def test_both_engines_draw_the_same_into_a_picture(painter, torch_painter, sampler):
    a, b = (
        drawn(one, strength=0.6, sampler=sampler, mask=left_half())[0].pixels.astype(int)
        for one in (painter, torch_painter)
    )
    assert np.abs(a - b).mean() <= 0.05


def test_a_picture_is_the_same_alone_or_in_company(painter):
    together = drawn(painter, strength=0.6, count=3, sampler="euler_a", mask=left_half())
    alone = [drawn(painter, strength=0.6, index=i, sampler="euler_a", mask=left_half())[0] for i in range(3)]
    assert all((a.pixels == b.pixels).all() for a, b in zip(together, alone, strict=True))
    assert (together[0].pixels != together[1].pixels).any()


# masks


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "euler_a"])
@pytest.mark.parametrize("model", ["tiny_model", "inpainting_model"])
def test_outside_the_mask_no_bit_changes(request, model, sampler):
    painter = Painter(request.getfixturevalue(model), "openvino", "fp32")
    mask = np.zeros((SIDE, SIDE))
    mask[3:9, 5:12] = 1  # not on the edges of latent cells
    for strength in (0.3, 1.0):
        made = drawn(painter, mask=mask, strength=strength, sampler=sampler)[0].pixels
        assert (made[mask == 0] == picture()[mask == 0]).all()
        assert (made[mask == 1] != picture()[mask == 1]).any()


def test_outside_the_mask_the_latents_are_those_of_the_picture(painter):
    known = painter.latents(images.from_uint8(picture()[None]))
    *steps, last = painter.trace(PROMPT, seed=7, num_inference_steps=5, image=picture(), mask=left_half())
    np.testing.assert_array_equal(last.x[..., 4:], known[..., 4:])
    noise = gaussian(7, 0, 0, (4, 8, 8))
    for step, after in zip(steps, [*steps[1:], last], strict=True):
        level = after.level
        np.testing.assert_allclose(step.x[0, ..., 4:], level.alpha * known[0, ..., 4:] + level.sigma * noise[..., 4:])


def test_a_grey_mask_mixes(painter):
    grey = np.full((SIDE, SIDE), 0.5)
    whole = drawn(painter, mask=np.ones((SIDE, SIDE)))[0].pixels.astype(float)
    mixed = drawn(painter, mask=np.full((SIDE, SIDE), 128, np.uint8))[0].pixels
    np.testing.assert_allclose(mixed, (whole * 128 + picture() * 127.0) / 255, atol=1)
    assert drawn(painter, mask=grey)[0].recipe.mask


def test_an_inpainting_net_sees_the_mask_and_the_picture_without_what_is_painted(inpainting_model):
    painter = Painter(inpainting_model, "torch", "fp32", device="cpu")
    a, b = picture(seed=1), picture(seed=1)
    b[:, : SIDE // 2] = 9  # under the mask
    made = [drawn(painter, image=one, mask=left_half(), strength=1)[0].pixels for one in (a, b)]
    assert (made[0][:, : SIDE // 2] == made[1][:, : SIDE // 2]).all()
    b[:, SIDE // 2 :] = 9
    other = drawn(painter, image=b, mask=left_half(), strength=1)[0].pixels
    assert (made[0][:, : SIDE // 2] != other[:, : SIDE // 2]).any()


# reading


def test_a_mask_cell_is_painted_where_any_of_its_pixels_is():
    mask = np.zeros((4, 6), np.float32)
    mask[1, 2] = 0.5
    mask[3, 5] = 0.4
    original = edit.Original(picture(4, 6), mask, 1.0, "")
    assert original.cells(2).tolist() == [[[[0, 1, 0], [0, 0, 0]]]]
    assert original.without()[0, 0, 1, 2] == 0 and original.without()[0, 0, 3, 5] != 0
    whole = edit.Original(picture(4, 6), None, 1.0, "")
    assert (whole.cells(2) == 1).all() and (whole.without() == 0).all()


@pytest.mark.parametrize(
    ("own", "size"),
    [
        ((16, 16), (16, 16)),
        ((12, 10), (12, 10)),
        ((13, 9), (12, 8)),
        ((64, 64), (16, 16)),
        ((64, 16), (32, 8)),
        ((1, 1), (2, 2)),
    ],
)
def test_a_picture_keeps_its_size_up_to_the_area_of_the_model(own, size):
    assert edit.fitting(own, (16, 16), 2) == size


def test_files_arrays_and_bytes_are_the_same_picture(painter, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "x.png")
    Image.fromarray((left_half() * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    clear = np.dstack([picture(seed=5), (255 * (1 - left_half())).astype(np.uint8)])
    Image.fromarray(clear, "RGBA").save(tmp_path / "clear.png")
    expected = drawn(painter, mask=left_half())[0]
    for given in (tmp_path / "x.png", str(tmp_path / "x.png"), (tmp_path / "x.png").read_bytes()):
        for mask in (tmp_path / "mask.png", (tmp_path / "clear.png").read_bytes(), left_half().astype(bool)):
            made = drawn(painter, image=given, mask=mask, num_inference_steps=6)[0]
            assert (made.pixels == expected.pixels).all() and made.recipe == expected.recipe


def test_a_picture_of_another_size_is_cut_and_resampled_with_its_mask(painter):
    wide = np.full((32, 64, 3), 200, np.uint8)
    mask = np.zeros((32, 64))
    mask[:16] = 1
    made = drawn(painter, image=wide, mask=mask, size=16)[0]
    assert made.pixels.shape == (SIDE, SIDE, 3) and (made.recipe.width, made.recipe.height) == (16, 16)
    assert (made.pixels[9:] == 200).all()
    assert drawn(painter, image=wide)[0].pixels.shape == (12, 22, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": "nowhere.png"}, "no picture at nowhere.png"),
        ({"image": b"GIF89a"}, "not a picture"),
        ({"image": np.zeros((4, 4), np.uint8)}, "wanted \\(H, W, 3\\) uint8"),
        ({"image": np.zeros((0, 4, 3), np.uint8)}, "wanted \\(H, W, 3\\) uint8"),
        ({"mask": b"GIF89a"}, "not a picture"),
        ({"mask": np.zeros((8, 16))}, "the mask has 16x8 pixels, the picture 16x16"),
        ({"mask": np.zeros((16, 16))}, "the mask paints nothing"),
        ({"mask": np.full((16, 16), 7.0)}, "numbers from 0 to 1"),
        ({"mask": np.full((16, 16), np.nan)}, "numbers from 0 to 1"),
        ({"strength": 1.5}, "strength=1.5 given"),
        ({"strength": float("nan")}, "strength=nan given"),
        ({"image": None, "mask": left_half()}, "mask given, and no picture"),
        ({"image": None, "strength": 0.5}, "strength given, and no picture"),
        ({"size": 17}, "not a multiple of 2"),
    ],
)
def test_what_cannot_be_drawn_into_is_refused_before_the_first_step(painter, given, message):
    with pytest.raises(CartoucheError, match=message):
        painter.trace(**({"prompt": PROMPT, "image": picture()} | given))


def test_a_net_that_only_paints_into_pictures_says_so(inpainting_model):
    with pytest.raises(CartoucheError, match="takes 9 channels: it draws into pictures"):
        Painter(inpainting_model, "torch", device="cpu").trace(PROMPT)


# the recipe


def test_a_recipe_draws_the_same_again_into_the_same_picture_alone(painter, tmp_path):
    made = drawn(painter, strength=0.5, mask=left_half(), count=2)[1]
    recipe = Recipe.from_dict(json.loads(json.dumps(made.recipe.to_dict())))
    assert recipe == made.recipe and recipe.image == edit.digest(picture()) and recipe.strength == 0.5
    assert (painter.redraw(recipe, picture(), left_half()).pixels == made.pixels).all()
    for given, message in (
        ((), "drawing with image"),
        ((picture(),), "drawing with mask"),
        ((picture(seed=3), left_half()), "the image given is"),
        ((picture(), 1 - left_half()), "the mask given is"),
    ):
        with pytest.raises(CartoucheError, match=message):
            painter.redraw(recipe, *given)
    with pytest.raises(CartoucheError, match="without image; leave it out"):
        painter.redraw(painter.draw(PROMPT, seed=1, num_inference_steps=1)[0].recipe, picture())


def test_the_strength_stands_in_the_text_that_others_read(painter):
    recipe = drawn(painter, strength=0.5)[0].recipe.to_dict()
    assert "Denoising strength: 0.5" in images.parameters(recipe)
    assert "Denoising" not in images.parameters(painter.draw(PROMPT, num_inference_steps=1)[0].recipe.to_dict())


def test_the_model_that_was_opened_before_edits_is_told_of_its_missing_encoder(tiny_model, tmp_path):
    import shutil

    shutil.copytree(tiny_model, tmp_path / "old", ignore=shutil.ignore_patterns("encoder.onnx"))
    old = Painter(tmp_path / "old", "openvino", "fp32")
    assert old.draw(PROMPT, num_inference_steps=1)
    with pytest.raises(CartoucheError, match="no graph of vae.encode"):
        old.draw(PROMPT, image=picture())


# against diffusers


def pipeline(kind, model, scheduler, monkeypatch):
    """The latents that diffusers' pipeline of this model draws, its noise ours."""
    import diffusers

    module = {"StableDiffusionImg2ImgPipeline": "img2img", "StableDiffusionInpaintPipeline": "inpaint"}[kind]
    noise = torch.from_numpy(gaussian(7, 0, 0, (4, SIDE // 2, SIDE // 2))[None])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = getattr(diffusers, kind).from_pretrained(model, safety_checker=None, local_files_only=True)
        made.scheduler = getattr(diffusers, f"{scheduler}Scheduler").from_config(made.scheduler.config)
    place = f"diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_{module}.randn_tensor"
    monkeypatch.setattr(place, lambda *_, **__: noise)
    made.set_progress_bar_config(disable=True)

    def latents(prompt, **settings):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return made(prompt, guidance_scale=5.0, output_type="latent", **settings).images.numpy()

    return latents


def last_latents(painter, **settings):
    *_, last = painter.trace(PROMPT, seed=7, guidance_scale=5.0, image=picture(), **settings)
    return last.x


@pytest.mark.parametrize(("sampler", "scheduler"), [("ddim", "DDIM"), ("dpmpp_2m", "DPMSolverMultistep")])
@pytest.mark.parametrize("strength", [0.3, 0.75])
def test_diffusers_draws_the_same_into_a_picture(tiny_model, painter, monkeypatch, sampler, scheduler, strength):
    theirs = pipeline("StableDiffusionImg2ImgPipeline", tiny_model, scheduler, monkeypatch)
    known = torch.from_numpy(painter.latents(images.from_uint8(picture()[None])))
    settings = {"strength": strength, "num_inference_steps": 20}
    expected = theirs(PROMPT, image=known, **settings)
    np.testing.assert_allclose(last_latents(painter, sampler=sampler, **settings), expected, atol=1e-4)


def test_latents_of_a_picture_are_the_mean_that_diffusers_encodes(tiny_model, painter):
    import diffusers

    vae = diffusers.AutoencoderKL.from_pretrained(tiny_model / "vae", local_files_only=True)
    x = images.from_uint8(picture(20, 24)[None])
    with torch.no_grad():
        expected = vae.encode(torch.from_numpy(x)).latent_dist.mode() * vae.config.scaling_factor
    np.testing.assert_allclose(painter.latents(x), expected, atol=1e-4)


@pytest.mark.parametrize("model", ["tiny_model", "inpainting_model"])
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_diffusers_paints_the_same_under_a_mask(request, monkeypatch, model, strength):
    path = request.getfixturevalue(model)
    theirs = pipeline("StableDiffusionInpaintPipeline", path, "DDIM", monkeypatch)
    painter = Painter(path, "openvino", "fp32")
    original = edit.Original(picture(), left_half().astype(np.float32), strength, "")
    known, masked = (torch.from_numpy(painter.latents(one)) for one in (original.images, original.without()))
    settings = {"strength": strength, "num_inference_steps": 20}
    mask = torch.from_numpy(left_half()[None, None]).float()
    given = {"image": known, "mask_image": mask, "masked_image_latents": masked, "height": SIDE, "width": SIDE}
    expected = theirs(PROMPT, **given, **settings)
    found = last_latents(painter, sampler="ddim", mask=left_half(), **settings)
    np.testing.assert_allclose(found, expected, atol=1e-4)
