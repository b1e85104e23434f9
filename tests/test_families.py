"""Stable Diffusion 1, 2 and XL: the pictures of diffusers, from folders and from single files."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from small_families import NEGATIVE, PROMPT, SAMPLERS, small

from cartouche.config import CartoucheError
from cartouche.diffusion.noise import gaussian
from cartouche.draw.paint import Painter
from cartouche.weights import names, safetensors, single, source

pytestmark = pytest.mark.usefixtures("one_thread")  # else the rounding of twenty steps is three times the tolerance
STEPS = 20
NOISE = gaussian(7, 0, 0, (4, 8, 8))[None]


@pytest.fixture(params=SAMPLERS)
def model(request):
    """A small random model of each family."""
    return small(request.param)


@pytest.fixture
def xl():
    return small("sdxl")


def painter(path, **options):
    return Painter(path, "torch", "fp32", "cpu", **options)


def ours(path, sampler, negative=NEGATIVE, steps=STEPS, **settings):
    """The latents of our drawing."""
    settings = {"seed": 7, "size": 64, "guidance_scale": 5.0, "sampler": sampler} | settings
    *_, last = painter(path).trace(PROMPT, negative_prompt=negative, num_inference_steps=steps, **settings)
    return last.x


def theirs(pipeline, negative=NEGATIVE, steps=STEPS):
    """The latents of diffusers' drawing from the same noise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {"guidance_scale": 5.0, "height": 64, "width": 64, "output_type": "latent"}
        noise = torch.from_numpy(NOISE)
        made = pipeline(PROMPT, negative_prompt=negative, latents=noise, num_inference_steps=steps, **settings)
    return made.images.numpy()


def test_the_picture_is_that_of_diffusers_from_a_folder_and_from_a_single_file(model):
    """Twenty steps, guidance, a negative prompt: latents to 1e-4."""
    expected = theirs(model.pipeline)
    for path in (model.folder, model.file):
        np.testing.assert_allclose(ours(path, model.sampler), expected, atol=1e-4)
    other = ours(model.folder, model.sampler, negative="another negative prompt")
    assert np.abs(other - expected).max() > 1e-2  # the words matter a hundred times more than the tolerance


def test_diffusers_opens_our_single_file_and_draws_the_same(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = type(model.pipeline)
        opened = kind.from_single_file(model.file, config=str(model.folder), local_files_only=True)
    opened.set_progress_bar_config(disable=True)
    np.testing.assert_allclose(theirs(opened, steps=3), theirs(model.pipeline, steps=3), atol=1e-5)


def test_a_single_file_becomes_a_folder_that_diffusers_opens(model, tmp_path):
    """In half precision, which every weight here fits."""
    short = tmp_path / "short.safetensors"
    single.save(short, source.Folder(model.folder), dtype="float16")
    assert short.stat().st_size < 0.51 * model.file.stat().st_size
    source.save_folder(tmp_path / "model", source.opened(short))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = type(model.pipeline).from_pretrained(tmp_path / "model", local_files_only=True)
    for part in painter(short).source.parts:
        again, before = (getattr(one, part).state_dict() for one in (opened, model.pipeline))
        assert all(torch.equal(again[name], one.half().float()) for name, one in before.items())
    assert opened.scheduler.config.prediction_type == model.pipeline.scheduler.config.prediction_type
    texts = [
        tokenizer(PROMPT, padding="max_length").input_ids for tokenizer in (opened.tokenizer, model.pipeline.tokenizer)
    ]
    assert texts[0] == texts[1]


def test_an_earlier_layer_of_the_words_is_that_of_transformers(model):
    """clip_skip: of one tower the states are normalised, of XL's two, which begin one layer earlier, they are not."""
    opened = painter(model.file)
    towers = [getattr(model.pipeline, part) for part in opened.towers]
    for skip in (0, 1):
        ids = [torch.from_numpy(opened.tokenizers[part].encode(PROMPT).ids[None]) for part in opened.towers]
        with torch.no_grad():
            read = [one(row, output_hidden_states=True) for one, row in zip(towers, ids, strict=True)]
            states = [one.hidden_states[-1 - skip - opened.sized] for one in read]
            states = states if opened.sized else [towers[0].final_layer_norm(states[0])]
        context = opened.encode(PROMPT, skip).context
        told = context["encoder_hidden_states"] if opened.sized else context
        np.testing.assert_allclose(told, torch.cat(states, -1).numpy(), atol=1e-5)
        if opened.sized:
            np.testing.assert_allclose(context["text_embeds"], read[1].text_embeds.numpy(), atol=1e-5)
    with pytest.raises(CartoucheError, match="clip_skip=9 asked of 3 layers; choose 0 to"):
        opened.encode(PROMPT, 9)


def test_xl_without_a_negative_prompt_is_told_zeros(xl):
    np.testing.assert_allclose(ours(xl.file, "euler", "", 3), theirs(xl.pipeline, None, 3), atol=1e-4)


def test_xl_is_told_the_size_that_is_drawn(xl):
    steps = painter(xl.file).trace(PROMPT, seed=7, size=(72, 64), num_inference_steps=2)
    *_, wide = steps
    assert wide.x.shape == (1, 4, 8, 9)
    assert wide.recipes[0].width == 72
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = xl.pipeline._get_add_time_ids((64, 72), (0, 0), (64, 72), torch.float32, 128)
    told = painter(xl.file)._told(wide.recipes[0].request()).words["time_ids"]
    np.testing.assert_array_equal(told, wanted.numpy())


def test_a_recipe_of_a_single_file_names_it_and_draws_it_again(xl):
    opened = painter(xl.file)
    picture = opened.draw(PROMPT, seed=3, size=64, num_inference_steps=2, clip_skip=1)[0]
    assert picture.recipe.model == "sdxl" and picture.recipe.clip_skip == 1
    assert (opened.redraw(picture.recipe).pixels == picture.pixels).all()


def test_drawings_of_xl_in_company_are_those_alone(xl):
    opened = painter(xl.file)
    both = opened.draw(PROMPT, seed=3, count=2, size=64, num_inference_steps=2)
    alone = opened.draw(PROMPT, seed=3, index=1, size=64, num_inference_steps=2)
    assert (both[1].pixels == alone[0].pixels).all()


def test_another_autoencoder_may_take_the_place_of_the_models_own(xl, tmp_path):
    """A folder, or a file in latent-diffusion's names, which does not say how its latents are scaled."""
    weights = safetensors.load(xl.file)
    prefix = "first_stage_model."
    alone = {name.removeprefix(prefix): one for name, one in weights.items() if name.startswith(prefix)}
    safetensors.save(tmp_path / "vae.safetensors", alone)
    own = painter(xl.file)
    z = np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32)
    for path in (tmp_path / "vae.safetensors", xl.folder / "vae"):
        other = painter(xl.file, vae=path)
        np.testing.assert_allclose(other.decode(z), own.decode(z), atol=1e-5)
        assert other.hash != own.hash


def test_a_tiny_autoencoder_draws_too(xl, tmp_path):
    """From the two files of its author; its latents need no scaling."""
    import diffusers

    torch.manual_seed(0)
    tiny = diffusers.AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    stored = names.scattered(tiny.state_dict(), names.taesd)
    for side in ("encoder", "decoder"):
        half = {name.removeprefix(f"{side}."): one for name, one in stored.items() if name.startswith(side)}
        safetensors.save(tmp_path / f"taesd_{side}.safetensors", half)
    other = painter(xl.file, vae=tmp_path / "taesd_decoder.safetensors")
    z, x = (torch.randn(1, 4, 8, 8), torch.rand(1, 3, 64, 64) * 2 - 1)
    with torch.no_grad():
        np.testing.assert_allclose(other.decode(z.numpy()), tiny.decode(z).sample.numpy(), atol=1e-5)
        np.testing.assert_allclose(other.latents(x.numpy(), z.numpy()), tiny.encode(x).latents.numpy(), atol=1e-5)
    assert other.draw(PROMPT, seed=1, size=64, num_inference_steps=1)[0].pixels.shape == (64, 64, 3)


def test_old_folders_have_their_tokenizer_in_two_files(xl, tmp_path):
    shutil.copytree(xl.folder, tmp_path / "model")
    for place, part in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")):
        single.SingleFile(xl.file).tokenizer(part).save(tmp_path / "model" / place)
        (tmp_path / "model" / place / "tokenizer.json").unlink()
    old, new = painter(tmp_path / "model"), painter(xl.folder)
    for part in old.towers:
        assert (old.tokenizers[part].encode(PROMPT).ids == new.tokenizers[part].encode(PROMPT).ids).all()
    assert old.tokenizers["text_encoder"].pad_id == 49407 and old.tokenizers["text_encoder_2"].pad_id == 0


def test_latents_of_a_picture_are_those_of_diffusers(xl):
    x = np.random.default_rng(0).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    noise = np.random.default_rng(1).standard_normal((1, 4, 8, 8), np.float32)
    with torch.no_grad():
        law = xl.pipeline.vae.encode(torch.from_numpy(x)).latent_dist
    opened = painter(xl.folder)
    np.testing.assert_allclose(opened.latents(x), 0.13025 * law.mean.numpy(), atol=1e-5)
    np.testing.assert_allclose(
        opened.latents(x, noise), 0.13025 * (law.mean.numpy() + law.std.numpy() * noise), atol=1e-5
    )


def test_sharded_folders_open_and_give_the_same_net(xl, tmp_path):
    """As diffusers saves what is large."""
    shutil.copytree(xl.folder, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "unet")
    xl.pipeline.unet.save_pretrained(tmp_path / "model" / "unet", max_shard_size="2MB")
    assert len(list((tmp_path / "model" / "unet").glob("*.safetensors"))) > 1
    shards, whole = painter(tmp_path / "model"), painter(xl.folder)
    given = whole._told(whole.draw(PROMPT, seed=1, size=64, num_inference_steps=1)[0].recipe.request()).words
    sample, t = np.ones((1, 4, 8, 8), np.float32), np.ones(1, np.float32)
    np.testing.assert_array_equal(*(one.net("unet")(sample=sample, timestep=t, **given) for one in (shards, whole)))
    index = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    places = json.loads(index.read_text())
    places["weight_map"]["conv_in.weight"] = "../../elsewhere.safetensors"
    index.write_text(json.dumps(places))
    with pytest.raises(CartoucheError, match="names no shards"):
        painter(tmp_path / "model").net("unet")


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.input_blocks.0.0.weight",
        "first_stage_model.encoder.conv_in.weight",
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
    ],
)
@pytest.mark.parametrize("shape", [(), (4,)])
def test_a_single_file_with_a_tensor_of_no_such_shape_is_refused(xl, tmp_path, name, shape):
    path = tmp_path / "model.safetensors"
    tensors = safetensors.load_numpy(xl.file)
    assert name in tensors
    safetensors.save(path, tensors | {name: np.zeros(shape, np.float16)})
    with pytest.raises(CartoucheError, match="has the shape"):
        source.opened(path).config("unet" if "diffusion" in name else "vae" if "first" in name else "text_encoder")


def test_a_model_without_the_tower_its_net_wants_is_refused(xl, tmp_path):
    shutil.copytree(xl.folder, tmp_path / "model", ignore=shutil.ignore_patterns("text_encoder_2"))
    with pytest.raises(CartoucheError, match="wants a second text tower"):
        painter(tmp_path / "model")


def test_the_ladder_of_a_file_is_what_its_makers_say(model, tmp_path):
    """By metadata, or by tensors of known names."""
    usual = single.SingleFile(model.file).scheduler
    assert usual["prediction_type"] == ("v_prediction" if model.name == "sd2" else "epsilon")
    marked = safetensors.load(model.file) | {"v_pred": torch.ones(1), "ztsnr": torch.ones(1)}
    safetensors.save(tmp_path / "marked.safetensors", marked)
    opened = single.SingleFile(tmp_path / "marked.safetensors").scheduler
    assert opened["prediction_type"] == "v_prediction" and opened["rescale_betas_zero_snr"]
    assert single.SingleFile(model.file, "v_prediction").scheduler["prediction_type"] == "v_prediction"
    assert painter(tmp_path / "marked.safetensors").ladder("ddim").alpha[-1] == 0
