"""Names of the same weights elsewhere: every tensor used once, every weight filled once, both ways, at full size."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict

import diffusers
import numpy as np
import pytest
import torch
from diffusers.loaders import single_file_utils as rules
from small_families import SAMPLERS, UNETS, hollow, real_names, small, tower
from torch import nn

from cartouche.config import CartoucheError
from cartouche.nets.clip import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig
from cartouche.nets.unet import UNet2DConditionModel, UNetConfig
from cartouche.weights import families, folder, names, safetensors, single
from cartouche.weights.source import Folder

L_TOWER = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
H_TOWER = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
G_TOWER = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
PUBLISHED = {
    "sd1": {
        "unet": {"cross_attention_dim": 768, "attention_head_dim": (8, 8, 8, 8), "use_linear_projection": False},
        "text_encoder": L_TOWER | {"hidden_act": "quick_gelu"},
        "parameters": 859_520_964,
    },
    "sd2": {
        "unet": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
        "text_encoder": H_TOWER | {"hidden_act": "gelu"},
        "parameters": 865_910_724,
    },
    "sdxl": {
        "unet": {
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10),
            "projection_class_embeddings_input_dim": 2816,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        },
        "text_encoder": L_TOWER | {"hidden_act": "quick_gelu"},
        "text_encoder_2": G_TOWER | {"hidden_act": "gelu", "projection_dim": 1280},
        "parameters": 2_567_463_684,
    },
}


def meta(shapes, prefix=""):
    """Tensors without numbers, as the reference's converters take them."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items() if name.startswith(prefix)}


@pytest.fixture(scope="module", params=SAMPLERS)
def real(request, tmp_path_factory):
    """A published file of each family, full size, without its numbers."""
    path = tmp_path_factory.mktemp("real") / f"{request.param}.safetensors"
    return request.param, hollow(path, real_names(request.param))


# full size


def test_every_tensor_of_a_published_file_is_used_once_and_every_weight_is_filled_once(real):
    name, path = real
    opened = single.SingleFile(path)
    assert opened.family.name == name
    opened.check()
    used = []
    for part in opened.parts:
        with torch.device("meta"):
            net = folder.build(opened.config(part))
        pieces = list(map(opened.dialect(part), net.state_dict()))
        assert len({(one.name, one.part) for one in pieces}) == len(pieces)
        used += {one.name for one in pieces}
        assert sum(1 / one.parts for one in pieces) == pytest.approx(len({one.name for one in pieces}))
    left = {one for one in opened.stored if one not in used and not families.IGNORED.search(one)}
    assert len(set(used)) == len(used)
    last = "cond_stage_model.model.transformer.resblocks.23."
    spare = [one for one in left if not one.startswith(last) and one != "cond_stage_model.model.text_projection"]
    assert not spare and (len(left) == 13 if name == "sd2" else not left)


def test_the_configurations_of_a_published_file_are_the_published_ones(real):
    name, path = real
    opened = single.SingleFile(path)
    unet = UNetConfig.from_dict(opened.config("unet"))
    for setting, value in PUBLISHED[name]["unet"].items():
        assert getattr(unet, setting) == value
    assert unet.sample_size == {"sd1": 64, "sd2": 96, "sdxl": 128}[name]
    with torch.device("meta"):
        assert sum(one.numel() for one in UNet2DConditionModel(unet).parameters()) == PUBLISHED[name]["parameters"]
        vae = folder.build(opened.config("vae"))
    assert sum(one.numel() for one in vae.parameters()) == 83_653_863
    for part in opened.family.towers:
        assert PUBLISHED[name][part].items() <= opened.config(part).items()
    assert opened.config("vae")["scaling_factor"] == (0.13025 if name == "sdxl" else 0.18215)


def test_the_published_rules_of_diffusers_give_the_same_names_and_shapes(real):
    """Its converters, on the same file, against ours: U-Net, autoencoder and fused towers, whole."""
    _, path = real
    opened = single.SingleFile(path)
    stored = meta(opened.stored)
    for part in opened.parts:
        with torch.device("meta"):
            ours = folder.shapes(folder.build(opened.config(part)))
        config = opened.config(part)
        if part == "unet":
            theirs = rules.convert_ldm_unet_checkpoint(stored, config | {"layers_per_block": 2})
        elif part == "vae":
            sides = {"down_block_types": [0] * 4, "up_block_types": [0] * 4}
            theirs = rules.convert_ldm_vae_checkpoint(stored, config | sides)
        elif opened.family.towers[part].fused:
            theirs = rules.convert_open_clip_checkpoint(None, stored, opened.family.towers[part].prefix)
        else:
            theirs = rules.convert_ldm_clip_checkpoint(stored)
        theirs = {name: tuple(one.shape) for name, one in theirs.items() if not name.endswith("position_ids")}
        assert theirs == ours


@pytest.mark.parametrize("name", UNETS)
def test_each_tensor_becomes_the_weight_it_becomes_in_diffusers(name):
    """The numbers, not only the names: nothing exchanged for another of its shape."""
    theirs = diffusers.UNet2DConditionModel(sample_size=8, **UNETS[name])
    family = families.FAMILIES[name]
    dialect = families.dialect_of(family, "unet", dict(theirs.config))
    stored = names.scattered(theirs.state_dict(), dialect)
    back = rules.convert_ldm_unet_checkpoint(stored, dict(theirs.config))
    again = names.gathered(stored, folder.shapes(theirs), dialect)
    for key, value in theirs.state_dict().items():
        assert torch.equal(back[key], value) and torch.equal(again[key], value)


def test_the_autoencoder_too():
    levels = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    theirs = diffusers.AutoencoderKL(block_out_channels=(32, 32, 64), layers_per_block=2, **levels)
    stored = names.scattered(theirs.state_dict(), names.prefixed(names.ldm_vae(3), "first_stage_model."))
    back = rules.convert_ldm_vae_checkpoint(stored, dict(theirs.config))
    assert stored["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (64, 64, 1, 1)
    for key, value in theirs.state_dict().items():
        assert torch.equal(back[key], value)


def test_numpy_arrays_go_the_same_way_as_tensors():
    weights = tower(64, "gelu", 2, projected=True).state_dict()
    stored = names.scattered(weights, names.openai_clip)
    arrays = names.scattered({name: one.numpy() for name, one in weights.items()}, names.openai_clip)
    back = names.gathered(arrays, {name: tuple(one.shape) for name, one in weights.items()}, names.openai_clip)
    for name, one in stored.items():
        np.testing.assert_array_equal(arrays[name], one)
    for name, one in weights.items():
        np.testing.assert_array_equal(back[name], one)


# what is refused


def test_what_is_left_over_missing_or_of_another_shape_is_said_with_the_first_five(tmp_path):
    good = real_names("sd1")
    unet = "model.diffusion_model."
    without = {
        key: shape for key, shape in good.items() if key not in (f"{unet}out.0.bias", f"{unet}time_embed.0.bias")
    }
    more = good | {f"{unet}odd.{i}": (3,) for i in range(7)}
    other = good | {f"{unet}time_embed.0.bias": (7,)}
    broken = {
        "2 missing: model.diff": without,
        "7 unexpected: model.diff": more,
        "1 of another shape: model.diff": other,
    }
    for i, (message, shapes) in enumerate(broken.items()):
        opened = single.SingleFile(hollow(tmp_path / f"{i}.safetensors", shapes))
        with pytest.raises(CartoucheError, match=message) as caught:
            opened.check()
        assert str(caught.value).count("model.diffusion_model.odd.") in (0, 5)


def test_tensors_of_no_part_are_refused_when_the_file_is_opened(tmp_path):
    shapes = real_names("sd1") | {"lora_unet_x.alpha": ()}
    with pytest.raises(CartoucheError, match="holds 1 tensors of no part: lora_unet_x.alpha"):
        single.SingleFile(hollow(tmp_path / "odd.safetensors", shapes))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"weight": (1,)}, r"of no family known here \(sdxl, sd2, sd1\)$"),
        ({"double_blocks.0.img_attn.qkv.weight": (3, 1)}, "it looks like FLUX"),
        ({"lora_unet_down.lora_up.weight": (1, 1)}, "it looks like an adapter"),
        ({"conditioner.embedders.0.model.ln_final.bias": (1,)}, "the refiner of SDXL"),
    ],
)
def test_files_of_other_kinds_are_named_where_they_are_known(tmp_path, shapes, message):
    with pytest.raises(CartoucheError, match=message):
        single.SingleFile(hollow(tmp_path / "other.safetensors", shapes))


def test_a_file_that_is_cut_short_says_what_it_lacks(tmp_path):
    few = {name: shape for name, shape in real_names("sd1").items() if ".input_blocks.4." not in name}
    opened = single.SingleFile(hollow(tmp_path / "few.safetensors", few))
    with pytest.raises(CartoucheError, match="is not whole|missing"):
        opened.check()


def test_inpainting_and_older_spellings_are_read_from_the_names(tmp_path):
    first = "model.diffusion_model.input_blocks.0.0.weight"
    shapes = {
        name.replace("transformer.text_model.", "transformer."): shape for name, shape in real_names("sd1").items()
    }
    flat = {f"first_stage_model.{side}.mid.attn_1.q.weight": (512, 512) for side in ("encoder", "decoder")}
    opened = single.SingleFile(hollow(tmp_path / "inpaint.safetensors", shapes | {first: (320, 9, 3, 3)} | flat))
    opened.check()
    assert opened.config("unet")["in_channels"] == 9
    assert opened.index["_class_name"] == "StableDiffusionInpaintPipeline"


def test_marks_of_the_ladder_hold_no_number(tmp_path):
    """As files in the wild have them."""
    shapes = real_names("sdxl") | {"v_pred": (0,), "ztsnr": (0,)}
    ladder = single.SingleFile(hollow(tmp_path / "v.safetensors", shapes)).scheduler
    assert ladder["prediction_type"] == "v_prediction" and ladder["rescale_betas_zero_snr"]
    said = hollow(tmp_path / "said.safetensors", real_names("sd2"), metadata={"modelspec.prediction_type": "epsilon"})
    assert single.SingleFile(said).scheduler["prediction_type"] == "epsilon"
    with pytest.raises(CartoucheError, match="unknown prediction 'v'; known: epsilon"):
        _ = single.SingleFile(said, "v").scheduler


def test_a_text_tower_of_another_vocabulary_is_sent_to_its_folder(tmp_path):
    words = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    opened = single.SingleFile(hollow(tmp_path / "few.safetensors", real_names("sd1") | {words: (600, 768)}))
    with pytest.raises(CartoucheError, match="knows 600 ids, CLIP's vocabulary has 49408"):
        opened.tokenizer("text_encoder")


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        ("unet/config.json", {"attention_head_dim": 4}, "unet: attention_head_dim=.* a single file of sd1 would mean"),
        (
            "vae/config.json",
            {"scaling_factor": 0.5},
            "vae: scaling_factor=0.5, and .* would mean 0.18215; save a folder",
        ),
        ("scheduler/scheduler_config.json", {"beta_end": 0.02}, "sd1 cannot say this model's ladder; save a folder"),
    ],
)
def test_a_model_that_a_single_file_would_change_is_not_saved_as_one(tmp_path, place, change, message):
    shutil.copytree(small("sd1").folder, tmp_path / "model")
    config = tmp_path / "model" / place
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(CartoucheError, match=message):
        single.save(tmp_path / "sd1.safetensors", Folder(tmp_path / "model"))
    assert not list(tmp_path.glob("*.safetensors"))


def test_clips_vocabulary_gives_clips_ids():
    """As OpenAI's tokenizer numbers them."""
    tokenizer = single.clip_tokenizer(49408)
    assert tokenizer.encode("a photo of a cat").ids[:8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 49407]
    padded = single.clip_tokenizer(49408, 77, "!")
    assert padded.encode("a cat").ids[:6].tolist() == [49406, 320, 2368, 49407, 0, 0]


# CLIP


class Block(nn.Module):
    """A layer in open_clip's names, of torch's own parts."""

    def __init__(self, width, activation):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // 64, batch_first=True)
        inner = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", activation), ("c_proj", nn.Linear(4 * width, width))]
        self.mlp = nn.Sequential(OrderedDict(inner))

    def forward(self, x, mask=None):
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class OpenCLIP(nn.Module):
    """Both towers as open_clip stores them, for pictures of 32x32 in patches of 8."""

    def __init__(self, activation, text=128, image=64, shared=64):
        super().__init__()
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(Block(text, activation) for _ in range(3))
        self.token_embedding = nn.Embedding(99, text)
        self.positional_embedding = nn.Parameter(torch.randn(16, text))
        self.ln_final = nn.LayerNorm(text)
        self.text_projection = nn.Parameter(torch.randn(text, shared))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.visual = nn.Module()
        self.visual.class_embedding = nn.Parameter(torch.randn(image))
        self.visual.conv1 = nn.Conv2d(3, image, 8, 8, bias=False)
        self.visual.positional_embedding = nn.Parameter(torch.randn(17, image))
        self.visual.ln_pre, self.visual.ln_post = nn.LayerNorm(image), nn.LayerNorm(image)
        self.visual.transformer = nn.Module()
        self.visual.transformer.resblocks = nn.ModuleList(Block(image, activation) for _ in range(2))
        self.visual.proj = nn.Parameter(torch.randn(image, shared))

    def encode_text(self, ids):
        x = self.token_embedding(ids) + self.positional_embedding
        mask = torch.full((16, 16), float("-inf")).triu(1)
        for block in self.transformer.resblocks:
            x = block(x, mask)
        x = self.ln_final(x)[torch.arange(len(ids)), ids.argmax(-1)]
        return nn.functional.normalize(x @ self.text_projection, dim=-1)

    def encode_image(self, pixels):
        x = self.visual.conv1(pixels).flatten(2).transpose(1, 2)
        whole = self.visual.class_embedding.expand(len(x), 1, -1)
        x = self.visual.ln_pre(torch.cat([whole, x], 1) + self.visual.positional_embedding)
        for block in self.visual.transformer.resblocks:
            x = block(x)
        return nn.functional.normalize(self.visual.ln_post(x[:, 0]) @ self.visual.proj, dim=-1)


def open_clip_model(activation):
    """open_clip's own class where that library is installed, else the same of torch's parts."""
    try:
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
    except (ImportError, RuntimeError):
        return OpenCLIP({"gelu": nn.GELU(), "quick_gelu": QuickGELU()}[activation])
    image = CLIPVisionCfg(layers=2, width=64, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=16, vocab_size=99, width=128, heads=2, layers=3)
    return CLIP(64, image, text, quick_gelu=activation == "quick_gelu")


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@torch.no_grad()
def test_clip_in_open_clips_names_is_open_clips(tmp_path, activation):
    torch.manual_seed(0)
    theirs = open_clip_model(activation).eval()
    for parameter in theirs.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    state = {name: one for name, one in theirs.state_dict().items() if name != "attn_mask"}
    safetensors.save(tmp_path / "clip.safetensors", state)
    ours = single.load_clip(tmp_path / "clip.safetensors", activation)
    ids, pixels = torch.randint(0, 98, (3, 16)), torch.rand(2, 3, 32, 32) * 2 - 1
    ids[:, 9] = 98
    unit = (
        nn.functional.normalize(theirs.encode_text(ids), dim=-1),
        nn.functional.normalize(theirs.encode_image(pixels), dim=-1),
    )
    torch.testing.assert_close(ours.encode_text(ids), unit[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.encode_image(pixels), unit[1], atol=1e-5, rtol=0)
    single.save_clip(tmp_path / "again.safetensors", ours)
    again = safetensors.load(tmp_path / "again.safetensors")
    assert again.keys() == state.keys() and all(torch.equal(again[name], one) for name, one in state.items())


@torch.no_grad()
def test_clip_goes_from_transformers_to_openai_and_back(tmp_path):
    """What transformers computes from the same weights, under the other names."""
    import transformers

    towers = {"projection_dim": 64, "num_hidden_layers": 2, "hidden_act": "quick_gelu"}
    text = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2, "vocab_size": 99}
    text |= {"max_position_embeddings": 16, "eos_token_id": 2}
    image = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 1, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(CLIPTextConfig(**text, **towers), CLIPVisionConfig(**image, **towers), 64)
    theirs = transformers.CLIPModel(transformers.CLIPConfig.from_dict(config.to_dict())).eval()
    ours = CLIPModel(config)
    ours.load_state_dict(theirs.state_dict())
    single.save_clip(tmp_path / "clip.safetensors", ours)
    with pytest.raises(CartoucheError, match="does not say its activation"):
        single.load_clip(tmp_path / "clip.safetensors")
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"quick_gelu": true}}')
    again = single.load_clip(tmp_path / "clip.safetensors")
    ids, pixels = torch.randint(0, 98, (3, 16)), torch.rand(2, 3, 32, 32) * 2 - 1
    wanted = theirs(input_ids=ids, pixel_values=pixels).logits_per_image
    torch.testing.assert_close(again(ids, pixels), wanted, atol=1e-5, rtol=1e-5)
