"""Model folders: our names are theirs, weights are stored once, and what does not fit is refused."""

import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from cartouche.config import CartoucheError
from cartouche.nets.autoencoder import AutoencoderConfig, AutoencoderKL
from cartouche.nets.clip import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel
from cartouche.nets.unet import UNet2DConditionModel
from cartouche.text import Tokenizer
from cartouche.weights import builtin, folder, graph, safetensors

GRAPHS = ("text_encoder/graph.onnx", "unet/graph.onnx", "vae/decoder.onnx", "vae/encoder.onnx")
TEXT = CLIPTextConfig(
    hidden_size=32,
    intermediate_size=64,
    projection_dim=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    vocab_size=520,
    max_position_embeddings=8,
    eos_token_id=519,
)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A text tower stored in half precision, with its graph."""
    path = tmp_path_factory.mktemp("half")
    torch.manual_seed(1)
    folder.save_net(path, CLIPTextModel(TEXT), dtype="float16")
    graph.export(path)
    return path


def edited(source: Path, target: Path, change) -> Path:
    """A copy of a net's folder, its tensors passed through `change`."""
    shutil.copytree(source, target)
    path = folder.weights_file(target)
    safetensors.save(path, change(safetensors.load(path)), safetensors.metadata(path))
    return target


def unprefixed(prefix: str):
    return lambda tensors: {name.removeprefix(prefix): one for name, one in tensors.items()}


# folders


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_net_saved_and_loaded_is_the_same_net(tiny_model, tmp_path, part):
    net = folder.load_net(tiny_model / part)
    folder.save_net(tmp_path, net)
    again = folder.load_net(tmp_path)
    assert type(again) is type(net) and again.config == net.config and not again.training
    for name, tensor in net.state_dict().items():
        assert (again.state_dict()[name] == tensor).all()


def test_half_precision_halves_the_file_and_comes_back_as_float32(half):
    net = folder.load_net(half)
    assert {one.dtype for one in net.parameters()} == {torch.float32}
    size = sum(one.numel() for one in net.parameters())
    assert folder.weights_file(half).stat().st_size < 2.2 * size
    assert {entry.dtype for entry in safetensors.layout(folder.weights_file(half)).values()} == {"F16"}


def test_a_number_too_large_for_half_precision_is_refused(tmp_path):
    net = CLIPTextModel(TEXT)
    with torch.no_grad():
        net.text_model.final_layer_norm.bias[0] = 1e5
    with pytest.raises(CartoucheError, match=r"final_layer_norm.bias .*not finite as float16"):
        folder.save_net(tmp_path, net, dtype="float16")
    folder.save_net(tmp_path, net)
    with pytest.raises(CartoucheError, match="choose one of float32"):
        folder.save_net(tmp_path, net, dtype="int8")


def test_a_leftover_or_missing_weight_is_refused_with_the_first_five(tiny_model, tmp_path):
    def rename_some(tensors):
        return {(f"odd.{name}" if i < 7 else name): one for i, (name, one) in enumerate(tensors.items())}

    path = edited(tiny_model / "unet", tmp_path / "unet", rename_some)
    with pytest.raises(CartoucheError, match="7 missing: .*, ...; 7 unexpected: odd.*, ...") as caught:
        folder.load_net(path)
    assert str(caught.value).count("odd.") == 5


def test_a_weight_of_another_shape_is_refused(tiny_model, tmp_path):
    path = edited(tiny_model / "unet", tmp_path / "unet", lambda t: t | {"conv_in.bias": torch.zeros(3)})
    with pytest.raises(CartoucheError, match=r"1 of another shape: conv_in.bias \(3,\) for \(16,\)"):
        folder.load_net(path)


def test_a_text_tower_without_its_prefix_is_opened(tiny_model, tmp_path):
    """As transformers 5 writes it."""
    new = edited(tiny_model / "text_encoder", tmp_path / "new", unprefixed("text_model."))
    ids = torch.arange(16)[None]
    assert (folder.load_net(new)(ids)[0] == folder.load_net(tiny_model / "text_encoder")(ids)[0]).all()


def test_an_image_tower_and_stored_counters_are_opened(tmp_path):
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    net = CLIPVisionModel(config)
    folder.save_net(tmp_path / "old", net)
    counters = {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
    folder.load_net(edited(tmp_path / "old", tmp_path / "older", lambda t: t | counters))
    folder.load_net(edited(tmp_path / "old", tmp_path / "new", unprefixed("vision_model.")))


def test_attention_names_of_early_autoencoders_are_opened(tiny_model, tmp_path):
    early = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def age(tensors):
        for new, old in early.items():
            tensors = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): t for name, t in tensors.items()}
        return tensors

    path = edited(tiny_model / "vae", tmp_path / "vae", age)
    z = torch.zeros(1, 4, 4, 4)
    assert (folder.load_net(path).decode(z) == folder.load_net(tiny_model / "vae").decode(z)).all()


def test_pickles_and_empty_folders_are_refused(tiny_model, tmp_path):
    with pytest.raises(CartoucheError, match="cannot read .*config.json"):
        folder.load_net(tmp_path)
    shutil.copy(tiny_model / "unet" / "config.json", tmp_path)
    with pytest.raises(CartoucheError, match="no weights in"):
        folder.load_net(tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(CartoucheError, match="diffusion_pytorch_model.bin is a pickle"):
        folder.load_net(tmp_path)
    with pytest.raises(CartoucheError, match="no folder"):
        folder.weights_file(tmp_path / "nothing")


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc to ask for resident memory")
def test_a_mapped_file_that_is_forgotten_takes_no_memory_and_is_read_again(tmp_path):
    def resident() -> int:
        return int(re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024

    numbers = np.arange(1 << 22, dtype=np.float32)
    safetensors.save(tmp_path / "net.safetensors", {"a": numbers, "b": numbers[:7]})
    found = safetensors.mapped(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(found["a"], numbers)
    before = resident()
    safetensors.forget(found["b"])
    assert resident() < before - 0.9 * numbers.nbytes
    np.testing.assert_array_equal(found["a"], numbers)
    safetensors.forget(numbers)
    assert numbers[5] == 5


def test_an_unknown_class_is_refused_with_the_known_ones(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "MotionAdapter"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CartoucheError, match=r"describes MotionAdapter; networks known here: UNet2DConditionModel"):
        folder.load_net(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CartoucheError, match="wanted a JSON object"):
        folder.load_net(tmp_path)


def test_the_index_names_what_diffusers_looks_for(tiny_model):
    index = json.loads((tiny_model / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"] and index["safety_checker"] == [None, None]
    assert json.loads((tiny_model / "scheduler" / "scheduler_config.json").read_text())["clip_sample"] is False


def test_a_copy_without_its_builtin_model_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "__file__", str(tmp_path / "builtin.py"))
    with pytest.raises(CartoucheError, match="model=FOLDER"):
        builtin.builtin()


# against diffusers


def opened_by_diffusers(path):
    from diffusers import StableDiffusionPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = StableDiffusionPipeline.from_pretrained(path, safety_checker=None, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_diffusers_opens_the_folder_with_nothing_left_over(tiny_model):
    pipeline = opened_by_diffusers(tiny_model)
    for part in ("unet", "vae", "text_encoder"):
        ours = folder.load_net(tiny_model / part).state_dict()
        theirs = getattr(pipeline, part).state_dict()
        assert sum(one.numel() for one in theirs.values()) == sum(one.numel() for one in ours.values())
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"


def test_a_folder_that_diffusers_saved_is_opened(tiny_model, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened_by_diffusers(tiny_model).save_pretrained(tmp_path)
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = folder.load_net(tiny_model / part), folder.load_net(tmp_path / part)
        for name, tensor in ours.state_dict().items():
            assert (theirs.state_dict()[name] == tensor).all()
    texts = ["a red apple", "une pomme rouge sur fond bleu et un chien"]
    ours, theirs = (Tokenizer.load(path / "tokenizer") for path in (tiny_model, tmp_path))
    assert (ours.batch(texts) == theirs.batch(texts)).all()


# graphs


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_holds_no_numbers_and_no_notes_of_the_machine(tiny_model, name):
    path = tiny_model / name
    model = onnx.load(path, load_external_data=False)
    weights = folder.weights_file(path.parent)
    outside = [one for one in model.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL]
    inside = [one for one in model.graph.initializer if one.data_location != onnx.TensorProto.EXTERNAL]
    assert {entry.value for one in outside for entry in one.external_data if entry.key == "location"} == {weights.name}
    assert sum(len(one.raw_data) for one in inside) < 20_000
    assert path.stat().st_size < 200_000
    data = path.read_bytes()
    for note in (b"torch/", b"site-packages", b"File ", b"/home", b"/root", b"/tmp", b"stack_trace", b"pkg."):
        assert note not in data, note
    onnx.checker.check_model(str(path))


@pytest.mark.parametrize("name", GRAPHS)
def test_the_references_of_a_graph_are_the_tensors_of_the_file(tiny_model, name):
    path = tiny_model / name
    weights = folder.weights_file(path.parent)
    layout = safetensors.layout(weights)
    for one in onnx.load(path, load_external_data=False).graph.initializer:
        place = {entry.key: entry.value for entry in one.external_data}
        if place:
            entry = layout[one.name]
            assert (int(place["offset"]), int(place["length"])) == (entry.start, entry.stop - entry.start)
            assert tuple(one.dims) == entry.shape


def test_every_weight_of_the_unet_is_in_its_graph(tiny_model):
    names = {one.name for one in onnx.load(tiny_model / "unet/graph.onnx", load_external_data=False).graph.initializer}
    assert names >= set(folder.load_net(tiny_model / "unet").state_dict())


def test_onnx_runtime_computes_what_torch_computes(tiny_model):
    random = np.random.default_rng(0)
    unet: UNet2DConditionModel = folder.load_net(tiny_model / "unet")  # type: ignore[assignment]
    session = onnxruntime.InferenceSession(tiny_model / "unet/graph.onnx")
    for rows, height, width in ((1, 8, 8), (3, 4, 10)):
        sample = random.standard_normal((rows, 4, height, width), np.float32)
        states = random.standard_normal((rows, 9, 32), np.float32)
        t = random.uniform(0, 999, rows).astype(np.float32)
        (ours,) = session.run(None, {"sample": sample, "timestep": t, "encoder_hidden_states": states})
        with torch.inference_mode():
            theirs = unet(*map(torch.from_numpy, (sample, t, states))).numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_a_half_precision_graph_widens_each_weight_once(half):
    model = onnx.load(half / "graph.onnx", load_external_data=False)
    stored = [one.name for one in model.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL]
    casts = [node.input[0] for node in model.graph.node if node.op_type == "Cast" and node.input[0] in stored]
    assert sorted(casts) == sorted(stored) and len(set(casts)) == len(casts)
    ids = np.random.default_rng(0).integers(0, 519, (3, 8))
    ids[:, 5] = 519
    with torch.inference_mode():
        expected = folder.load_net(half)(torch.from_numpy(ids))
    found = onnxruntime.InferenceSession(half / "graph.onnx").run(None, {"ids": ids})
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_the_same_weights_give_the_same_graph_byte_for_byte(half):
    before = (half / "graph.onnx").read_bytes()
    graph.export(half)
    assert (half / "graph.onnx").read_bytes() == before
    assert not list(half.glob("*.tmp"))


def test_the_graph_has_the_weights_that_are_in_the_file_now(half, tmp_path):
    """The numbers are looked up when the graph is opened, not when it is written."""
    path = edited(
        half,
        tmp_path / "twice",
        lambda t: {k: v * 2 if k.endswith("final_layer_norm.weight") else v for k, v in t.items()},
    )
    ids = np.zeros((1, 8), np.int64)
    before, after = (
        onnxruntime.InferenceSession(one / "graph.onnx").run(None, {"ids": ids})[0] for one in (half, path)
    )
    np.testing.assert_allclose(after, 2 * before, atol=1e-5)
    assert np.abs(before).max() > 1


def test_a_folder_without_a_net_has_no_graph(tmp_path):
    with pytest.raises(CartoucheError, match="holds no net"):
        graph.export(tmp_path)


def test_weights_that_do_not_fit_get_no_graph(tmp_path):
    vae = AutoencoderKL(AutoencoderConfig(block_out_channels=(8, 8), norm_num_groups=4))
    folder.save_net(tmp_path, vae)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "latent_channels": 3}))
    with pytest.raises(CartoucheError, match="of another shape"):
        graph.export(tmp_path)
    assert not list(tmp_path.glob("*.onnx"))


def test_no_file_of_the_model_names_a_place_on_this_machine(tiny_model):
    for path in tiny_model.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".txt"):
            assert not re.search(r"/(home|root|tmp|work)/", path.read_text(encoding="utf-8")), path
