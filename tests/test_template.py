"""Graphs that ship without numbers: filled from weights as people have them they are the nets, and torch is absent."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from small_families import NEGATIVE, PROMPT, hollow, real_names, small
from small_templates import SMALL

from cartouche.config import CartoucheError
from cartouche.draw.paint import Painter
from cartouche.engine import OpenVINONet, TorchNet, openvino_core
from cartouche.weights import families, names, safetensors, single, source, template
from cartouche.weights.narrow import rounded

FP32 = 1e-4  # of the largest number
USED = {
    "text_encoder": ("forward", "earlier"),
    "text_encoder_2": ("inner",),
    "unet": ("forward",),
    "vae": ("decode", "encode"),
}
XL_USED = USED | {"text_encoder": ("inner",), "unet": ("sized",)}
SETTINGS = {"seed": 7, "size": 64, "num_inference_steps": 3, "negative_prompt": NEGATIVE, "sampler": "ddim"}


@pytest.fixture(autouse=True)
def shipped(monkeypatch, request):
    """The graphs of the small families in the place of the large ones."""
    if "full_size" not in request.fixturenames:
        monkeypatch.setattr(template, "TEMPLATES", SMALL)


@pytest.fixture(params=["sd1", "sdxl"])
def model(request):
    return small(request.param)


def used(opened):
    return XL_USED if "text_encoder_2" in opened.parts else USED


def example(opened, part, call, rows=2, side=8, words=77):
    """Inputs of a part's net."""
    random = np.random.default_rng(0)

    def normal(*shape):
        return random.standard_normal(shape, np.float32)

    if part.startswith("text_encoder"):
        ids = {"ids": random.integers(0, 49000, (rows, 77))}
        return ids if call == "forward" else ids | {"skip": np.array(1)}
    if part == "vae":
        return {"z": normal(rows, 4, side, side)} if call == "decode" else {"x": normal(rows, 3, 8 * side, 8 * side)}
    config = opened.config("unet")
    told = {"encoder_hidden_states": normal(rows, words, config["cross_attention_dim"])}
    if call == "sized":
        told |= {"text_embeds": normal(rows, 128), "time_ids": np.full((rows, 6), 64, np.float32)}
    return {"sample": normal(rows, config["in_channels"], side, side), "timestep": np.float32([998, 3])[:rows]} | told


def assert_same(found, expected, tolerance=FP32):
    for ours, theirs in zip(*(one if isinstance(one, tuple) else (one,) for one in (found, expected)), strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def assert_nets_are_those_of_torch(opened):
    for part in opened.parts:
        module = opened.net(part)
        for call in used(opened)[part]:
            given = example(opened, part, call)
            graph = opened.graph(part, call)
            assert isinstance(graph, template.Template)
            assert_same(OpenVINONet(graph, "fp32")(**given), TorchNet(module, "fp32", call)(**given))


# filled


def test_every_graph_filled_from_a_folder_and_from_a_single_file_is_the_net(model):
    for path in (model.folder, model.file):
        assert_nets_are_those_of_torch(source.opened(path))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_of_either_kind_is_widened_in_the_graph(dtype, tmp_path):
    whole = source.Folder(small("sd1").folder)
    source.save_folder(tmp_path / "model", whole, dtype)
    single.save(tmp_path / "model.safetensors", whole, dtype)
    for path in (tmp_path / "model", tmp_path / "model.safetensors"):
        assert_nets_are_those_of_torch(source.opened(path))


@pytest.mark.parametrize(("name", "dtype"), [("sd1", None), ("sd1", "float16"), ("sdxl", "bfloat16")])
def test_a_net_in_bf16_is_of_bf16_and_near_the_exact_one(name, dtype, tmp_path):
    """Its time step is not rounded: 998 and 999 would be one number."""
    single.save(tmp_path / "model.safetensors", source.Folder(small(name).folder), dtype)
    opened = source.opened(tmp_path / "model.safetensors")
    for part, call in (("vae", "decode"), ("vae", "encode"), ("unet", used(opened)["unet"][0])):
        given = example(opened, part, call)
        graph = opened.graph(part, call)
        kinds = [str(one.get_output_element_type(0)) for one in graph.read(openvino_core(), "bf16").get_ops()]
        assert kinds.count("<Type: 'bfloat16'>") > 0.3 * len(kinds)
        assert graph.held and all(one.dtype == np.uint16 for one in graph.held)  # the file's own numbers are let go
        expected = TorchNet(opened.net(part), "fp32", call)(**given)
        assert_same(OpenVINONet(graph, "bf16")(**given), expected, 0.06)
    net, exact = OpenVINONet(graph, "bf16"), OpenVINONet(graph, "fp32")
    later, much_later = (given | {"timestep": given["timestep"] + np.float32(steps)} for steps in (1, 10))
    assert (net(**later) != net(**given)).any()
    moved, wanted = (one(**much_later) - one(**given) for one in (net, exact))
    assert np.corrcoef(moved.ravel(), wanted.ravel())[0, 1] > 0.5


def test_numbers_are_rounded_to_bf16_as_torch_rounds_them():
    array = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    expected = torch.from_numpy(array).bfloat16().view(torch.uint16).numpy()
    assert (rounded(array) == expected).all()


def test_shards_and_older_spellings_are_found(tmp_path):
    path = tmp_path / "model"
    shutil.copytree(small("sd1").folder, path)
    for part, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        file = path / part / f"{name}.safetensors"
        tensors = {one.removeprefix("text_model."): tensor for one, tensor in safetensors.load(file).items()}
        file.unlink()
        places = {one: f"{name}-0000{1 + i % 2}-of-00002.safetensors" for i, one in enumerate(tensors)}
        for shard in set(places.values()):
            own = {one: tensor for one, tensor in tensors.items() if places[one] == shard}
            safetensors.save(path / part / shard, own, {"format": "pt"})
        (path / part / f"{name}.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert_nets_are_those_of_torch(source.opened(path))


def test_a_net_that_also_sees_a_mask_is_the_same_graph(tmp_path):
    path = tmp_path / "model"
    shutil.copytree(small("sd1").folder, path)
    config = json.loads((path / "unet/config.json").read_text()) | {"in_channels": 9}
    (path / "unet/config.json").write_text(json.dumps(config))
    file = path / "unet/diffusion_pytorch_model.safetensors"
    tensors = safetensors.load(file)
    safetensors.save(file, tensors | {"conv_in.weight": torch.randn(32, 9, 3, 3) * 0.1})
    assert_nets_are_those_of_torch(source.opened(path))


def test_a_net_serves_one_size_and_then_every_size():
    opened = source.opened(small("sd1").file)
    net, expected = OpenVINONet(opened.graph("unet", "forward"), "fp32"), TorchNet(opened.net("unet"), "fp32")
    for rows, side, words in ((2, 8, 77), (2, 8, 77), (1, 16, 154), (2, 8, 77)):
        given = example(opened, "unet", "forward", rows, side, words)
        assert_same(net(**given), expected(**given))


def test_what_a_net_cannot_run_is_said_and_does_not_harm_it():
    opened = source.opened(small("sd1").file)
    net, given = OpenVINONet(opened.graph("vae", "decode"), "fp32"), example(opened, "vae", "decode")
    with pytest.raises(CartoucheError, match="vae/decode.onnx.gz cannot run on z"):
        net(z=given["z"][:, :3])
    assert net(**given).shape == (2, 3, 64, 64)


# drawn


def test_a_drawing_is_that_of_torch(model):
    ours, theirs = (Painter(model.file, engine, "fp32", "cpu") for engine in ("auto", "torch"))
    assert ours.engine == "openvino"
    for settings in ({}, {"clip_skip": 1}):
        (*_, found), (*_, expected) = (one.trace(PROMPT, **SETTINGS, **settings) for one in (ours, theirs))
        assert_same(found.x, expected.x)


def test_without_torch_a_person_draws_from_a_folder_and_from_a_file(model, tmp_path):
    code = f"""
import sys
from pathlib import Path
sys.modules["torch"] = None
from cartouche.cli import main
from cartouche.weights import template
template.TEMPLATES = Path({str(SMALL)!r})
for i, model in enumerate(({str(model.folder)!r}, {str(model.file)!r})):
    code = main(["draw", "a fox", "--model", model, "--steps", "1", "--size", "64", "--out", f"{tmp_path}/{{i}}.png"])
    assert code == 0
"""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_another_autoencoder_fills_its_graph_too(tmp_path):
    """A folder, or a file in the names of latent-diffusion."""
    model = small("sd1")
    prefix = "first_stage_model."
    tensors = safetensors.load(model.file)
    alone = {one.removeprefix(prefix): tensor for one, tensor in tensors.items() if one.startswith(prefix)}
    safetensors.save(tmp_path / "vae.safetensors", alone)
    for path in (model.folder / "vae", tmp_path / "vae.safetensors"):
        opened = source.with_vae(source.opened(model.file), path)
        assert opened.config("vae")["scaling_factor"] == 0.18215
        given = example(opened, "vae", "decode")
        expected = TorchNet(source.opened(model.file).net("vae"), "fp32", "decode")(**given)
        assert_same(OpenVINONet(opened.graph("vae", "decode"), "fp32")(**given), expected)
        assert_same(TorchNet(opened.net("vae"), "fp32", "decode")(**given), expected, 0)


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
def test_adapters_are_merged_into_the_graph(dtype, tmp_path):
    single.save(tmp_path / "model.safetensors", source.Folder(small("sd1").folder), dtype)
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tower = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    random = torch.Generator().manual_seed(0)
    lora = {
        f"{layer}.lora_down.weight": torch.randn(2, 32, generator=random),
        f"{layer}.lora_up.weight": torch.randn(32, 2, generator=random),
        f"{tower}.lora_down.weight": torch.randn(2, 64, generator=random) * 0.1,
        f"{tower}.lora_up.weight": torch.randn(256, 2, generator=random) * 0.1,
    }
    safetensors.save(tmp_path / "style.safetensors", lora)
    safetensors.save(tmp_path / "word.safetensors", {"<someone>": torch.randn(2, 64, generator=random)})
    added = {"loras": [(tmp_path / "style.safetensors", 0.7)], "embeddings": [tmp_path / "word.safetensors"]}
    found, expected = (
        Painter(tmp_path / "model.safetensors", engine, "fp32", "cpu", **added) for engine in ("openvino", "torch")
    )
    (*_, ours), (*_, theirs) = (one.trace("a fox by <someone>", **SETTINGS) for one in (found, expected))
    assert_same(ours.x, theirs.x)
    *_, plain = Painter(tmp_path / "model.safetensors", "openvino", "fp32").trace("a fox by <someone>", **SETTINGS)
    assert np.abs(ours.x - plain.x).max() > 1e-3 * np.abs(plain.x).max()


# refused


def test_weights_that_do_not_fit_are_refused_as_torch_refuses_them(tmp_path):
    path = tmp_path / "unet"
    shutil.copytree(small("sd1").folder / "unet", path)
    file = path / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.load(file)
    for changed, message in (
        ({name: one for name, one in tensors.items() if name != "conv_in.bias"}, "1 missing: conv_in.bias"),
        (tensors | {"odd": torch.ones(1)}, "1 unexpected: odd"),
        (tensors | {"conv_in.bias": torch.ones(3)}, re.escape("conv_in.bias (3,) for (32,)")),
        (tensors | {"conv_in.bias": torch.ones(32, dtype=torch.float64)}, "conv_in.bias: stored neither as float32"),
    ):
        safetensors.save(file, changed)
        with pytest.raises(CartoucheError, match=message):
            OpenVINONet(source._Part(path).graph("forward"))


@pytest.mark.parametrize(
    "change", [{"norm_eps": 1e-4}, {"attention_head_dim": 4}, {"flip_sin_to_cos": False}, {"center_input_sample": True}]
)
def test_a_net_that_differs_in_anything_has_no_graph_here(change):
    config = source.Folder(small("sd1").folder).config("unet")
    assert template.find(config, "forward", dict) is not None
    assert template.find(config | change, "forward", dict) is None


def test_settings_that_change_no_number_make_no_difference():
    opened = source.Folder(small("sd1").folder)
    unet = opened.config("unet") | {"sample_size": 96, "layers_per_block": [2] * 4, "upcast_attention": True}
    assert template.find(unet, "forward", dict) is not None
    tower = opened.config("text_encoder")
    assert template.find(tower | {"eos_token_id": 49407}, "forward", dict) is not None
    assert template.find(tower | {"eos_token_id": 7}, "forward", dict) is None


# those that ship


@pytest.fixture
def full_size():
    """The graphs are those that ship."""


@pytest.mark.parametrize("name", families.FAMILIES)
def test_the_graphs_that_ship_take_exactly_the_tensors_of_published_files(name, tmp_path, full_size):
    """Names and shapes; so the whole file is used, and nothing is wanted that it has not."""
    opened = single.SingleFile(hollow(tmp_path / "model.safetensors", real_names(name)))
    for part in opened.parts:
        for call in used(opened)[part]:
            graph = opened.graph(part, call)
            wanted = template.shapes(graph.path.parent)
            assert names.stored_shapes(wanted, opened.dialect(part)).keys() == opened.tensors(part).keys()
            single._check(opened.tensors(part), wanted, opened.dialect(part), opened.path)
            inputs = openvino_core().read_model(template.content(graph.path)).get_parameters()
            taken = {one.get_friendly_name(): one for one in inputs if "." in one.get_friendly_name()}
            assert {one: tuple(node.get_output_shape(0)) for one, node in taken.items()}.items() <= wanted.items()


def test_what_ships_is_small(full_size):
    size = sum(path.stat().st_size for path in template.TEMPLATES.rglob("*"))
    assert size < 1_000_000
