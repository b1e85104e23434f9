"""`cartouche weights info` and `check`: what weights are, and what is missing or left over."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cartouche.cli import main
from cartouche.config import CartoucheError
from cartouche.nets.autoencoder import AutoencoderConfig, AutoencoderKL
from cartouche.nets.clip import CLIPTextConfig, CLIPTextModel
from cartouche.nets.unet import UNet2DConditionModel, UNetConfig
from cartouche.text import Tokenizer
from cartouche.weights import families, folder, inspect, safetensors, single
from cartouche.weights.source import Folder


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Stable Diffusion 1 with few channels: its folder, and the same as a single file."""
    place = tmp_path_factory.mktemp("narrow")
    text = CLIPTextConfig(
        hidden_size=64,
        intermediate_size=64,
        projection_dim=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        vocab_size=600,
        max_position_embeddings=16,
    )
    unet = UNetConfig(
        sample_size=64,
        block_out_channels=(32, 64),
        cross_attention_dim=64,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderConfig(block_out_channels=(32, 32), sample_size=512)
    nets = UNet2DConditionModel(unet), AutoencoderKL(vae), CLIPTextModel(text)
    tokenizer = Tokenizer.train(["a red apple"], vocab_size=600, context=16)
    ladder = families.scheduler_of(families.FAMILIES["sd1"])
    folder.save_pipeline(place / "model", *nets, tokenizer, ladder, dtype="float16")
    single.save(place / "model.safetensors", Folder(place / "model"), dtype="float16")
    return place / "model", place / "model.safetensors"


def changed(path: Path, target: Path, change: Any) -> Path:
    """A copy of a file of weights, its tensors passed through `change`."""
    safetensors.save(target, change(safetensors.load_numpy(path)))
    return target


def count(net: torch.nn.Module) -> int:
    return sum(one.numel() for one in net.parameters())


# what it is


def test_a_single_file_and_its_folder_are_the_same_family_with_as_many_numbers_in_each_part(narrow):
    whole, alone = inspect.info(narrow[0]), inspect.info(narrow[1])
    numbers = {part: count(Folder(narrow[0]).net(part)) for part in ("text_encoder", "unet", "vae")}
    assert dict(whole.parts) == numbers == dict(alone.parts)
    assert alone.family == "sd1, StableDiffusionPipeline" and alone.kind == whole.kind == "model"
    assert whole.precision == alone.precision == {"fp16": sum(numbers.values())}


def test_the_hash_is_the_one_that_model_sites_show_and_the_one_in_recipes(narrow):
    found = inspect.info(narrow[1])
    assert found.sha256 == hashlib.sha256(narrow[1].read_bytes()).hexdigest()
    assert found.short == found.sha256[:10] and found.size == narrow[1].stat().st_size
    from cartouche.draw.model import Model

    assert inspect.info(narrow[0]).short == Model(narrow[0], engine="torch").hash


def test_one_net_of_a_folder_is_known_by_the_configuration_beside_it(narrow):
    found = inspect.info(narrow[0] / "unet" / "diffusion_pytorch_model.safetensors")
    assert (found.kind, found.family) == ("net", "UNet2DConditionModel")
    assert dict(found.parts) == {"unet": count(Folder(narrow[0]).net("unet"))}


def test_a_file_beside_another_of_the_same_net_is_told_by_itself(narrow, tmp_path):
    place = Path(shutil.copytree(narrow[0] / "vae", tmp_path / "vae"))
    whole = place / "diffusion_pytorch_model.safetensors"
    other = place / "diffusion_pytorch_model.fp16.safetensors"
    changed(whole, other, lambda tensors: dict(list(tensors.items())[1:]))
    assert inspect.info(whole).tensors == inspect.info(other).tensors + 1
    assert inspect.info(other).sha256 == hashlib.sha256(other.read_bytes()).hexdigest()
    assert [len(fit.missing) for file in (whole, other) for fit in inspect.check(file)] == [0, 1]


def test_a_weight_that_two_shards_hold_is_refused_as_it_is_when_opened(narrow, tmp_path):
    place = Path(shutil.copytree(narrow[0] / "vae", tmp_path / "vae"))
    whole = place / "diffusion_pytorch_model.safetensors"
    shards = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in shards:
        shutil.copy(whole, place / name)
    whole.unlink()
    index = {"weight_map": dict(zip("ab", shards, strict=True))}
    (place / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    for path in (place, place / shards[0]):
        with pytest.raises(CartoucheError, match="in two files"):
            inspect.check(path)


def test_an_adapter_is_known_by_its_names_and_its_family_by_the_width_of_the_words(tmp_path):
    tensors = {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": np.zeros((4, 768)),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": np.zeros((320, 4)),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": np.zeros((4, 768)),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": np.zeros((3072, 4)),
    }
    path = tmp_path / "style.safetensors"
    safetensors.save(path, {name: one.astype(np.float16) for name, one in tensors.items()}, {"ss_network_dim": "4"})
    found = inspect.info(path)
    assert (found.kind, found.family) == ("adapter", "LoRA for sd1")
    assert dict(found.parts) == {"unet": 4 * 768 + 320 * 4, "text_encoder": 4 * 768 + 3072 * 4}
    assert found.metadata == {"ss_network_dim": "4"}
    assert [fit.whole for fit in inspect.check(path)] == [True, True]


def test_a_learned_word_and_tensors_of_no_family_are_told_apart(tmp_path):
    safetensors.save(tmp_path / "cat.safetensors", {"emb_params": np.zeros((2, 768), np.float32)})
    assert inspect.info(tmp_path / "cat.safetensors").kind == "word"
    assert inspect.check(tmp_path / "cat.safetensors")[0].whole
    safetensors.save(tmp_path / "odd.safetensors", {"a": np.zeros((2, 5, 5), np.int8), "b": np.zeros(3, np.float32)})
    found = inspect.info(tmp_path / "odd.safetensors")
    assert (found.kind, found.family, found.precision) == ("tensors", None, {"i8": 50, "fp32": 3})
    with pytest.raises(CartoucheError, match="no family known"):
        inspect.check(tmp_path / "odd.safetensors")


def test_a_clip_without_its_configuration_is_named_but_not_checked(tmp_path):
    path = tmp_path / "clip.safetensors"
    safetensors.save(path, {"visual.conv1.weight": np.zeros((4, 3, 2, 2), np.float32), "logit_scale": np.zeros(())})
    assert inspect.info(path).family == "a CLIP in OpenAI's names"
    with pytest.raises(CartoucheError, match=r"config\.json beside it"):
        inspect.check(path)


# whether it is whole


def test_a_whole_model_fits_to_the_last_tensor(narrow):
    for path in narrow:
        fits = inspect.check(path)
        assert {fit.part for fit in fits} == {"text_encoder", "unet", "vae"} and all(fit.whole for fit in fits)
    stored = len(safetensors.layout(narrow[1]))
    assert sum(len(fit.fitting) for fit in inspect.check(narrow[1])) == stored


def test_what_is_missing_left_over_or_misshaped_is_named(narrow, tmp_path):
    def change(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors["model.diffusion_model.odd"] = tensors.pop("model.diffusion_model.out.2.bias")
        tensors["first_stage_model.encoder.conv_in.bias"] = np.zeros(5, np.float16)
        return tensors | {"elsewhere.weight": np.zeros(1, np.float16)}

    fits = {fit.part: fit for fit in inspect.check(changed(narrow[1], tmp_path / "a.safetensors", change))}
    assert fits["unet"].missing == ("model.diffusion_model.out.2.bias",)
    assert fits["unet"].left_over == ("model.diffusion_model.odd",)
    assert fits["vae"].misshaped == ("first_stage_model.encoder.conv_in.bias (5,) for (32,)",)
    assert fits["others"].left_over == ("elsewhere.weight",) and fits["text_encoder"].whole


def test_a_part_of_which_too_much_is_missing_is_said_to_be_not_whole(narrow, tmp_path):
    path = changed(
        narrow[1],
        tmp_path / "a.safetensors",
        lambda tensors: {name: one for name, one in tensors.items() if "input_blocks.0" not in name},
    )
    fits = {fit.part: fit for fit in inspect.check(path)}
    assert "not whole" in fits["unet"].missing[0] and fits["vae"].whole


def test_a_folder_with_a_torn_net_is_told_part_by_part(narrow, tmp_path):
    shutil.copytree(narrow[0], tmp_path / "model")
    path = tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors"
    changed(path, path, lambda tensors: dict(list(tensors.items())[7:]))
    fits = {fit.part: fit for fit in inspect.check(tmp_path / "model")}
    assert len(fits["vae"].missing) == 7 and fits["unet"].whole and fits["text_encoder"].whole


def test_an_adapter_is_held_against_the_model_it_is_for(narrow, tmp_path):
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    for width, said in ((64, None), (768, "another size")):
        tensors = {f"{layer}.lora_A.weight": np.zeros((4, width)), f"{layer}.lora_B.weight": np.zeros((32, 4))}
        path = tmp_path / f"{width}.safetensors"
        safetensors.save(path, {name: one.astype(np.float32) for name, one in tensors.items()})
        if said is None:
            assert inspect.check(path, narrow[0])[0].whole and inspect.check(path, narrow[1])[0].whole
        else:
            with pytest.raises(CartoucheError, match=said):
                inspect.check(path, narrow[0])


# the commands


def test_the_commands_say_it_in_a_few_lines_and_by_their_exit_code(narrow, tmp_path, capsys):
    assert main(["weights", "info", str(narrow[1])]) == 0
    out = capsys.readouterr().out
    assert "model: sd1" in out and f"hash       {inspect.info(narrow[1]).short}" in out
    assert main(["weights", "check", str(narrow[1])]) == 0
    assert capsys.readouterr().out.count("tensors fit\n") == 3
    torn = changed(narrow[1], tmp_path / "a.safetensors", lambda t: {f"x.{n}" if "attn" in n else n: t[n] for n in t})
    assert main(["weights", "check", str(torn)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert max(line.count("x.") for line in lines) == 5 and any(line.endswith(", ...") for line in lines)


def test_as_json_a_program_reads_the_same(narrow, capsys):
    assert main(["weights", "info", str(narrow[0]), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["parts"].keys() == {"text_encoder", "unet", "vae"} and said["hash"] == said["sha256"][:10]
    assert main(["weights", "check", str(narrow[0]), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["whole"] for line in lines] == [True] * 3


def test_a_name_that_would_move_the_cursor_does_not(tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    names = [f"lora_unet_\x1b[2J{i}.lora_down.weight" for i in range(3)]
    safetensors.save(path, {name: np.zeros((2, 2), np.float32) for name in names})
    assert main(["weights", "check", str(path)]) == 2
    assert main(["weights", "info", str(path)]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
