"""The networks against the reference libraries: same names, same numbers, both ways; then errors and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from cartouche.config import CartoucheError
from cartouche.nets.attention import Transformer2DModel, attention
from cartouche.nets.autoencoder import AutoencoderConfig, AutoencoderKL
from cartouche.nets.blocks import GroupNorm, ResnetBlock2D, sinusoids
from cartouche.nets.clip import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    end_of_text,
)
from cartouche.nets.unet import UNet2DConditionModel, UNetConfig, zero_init_residuals

SMALL = {"block_out_channels": (16, 32, 32), "norm_num_groups": 8, "cross_attention_dim": 24, "sample_size": 16}
FINE_FIRST = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
COARSE_ONLY = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
UNETS: dict[str, dict[str, Any]] = {
    "sd1": SMALL | FINE_FIRST | {"attention_head_dim": 4},
    "sd2": SMALL | FINE_FIRST | {"attention_head_dim": (2, 4, 8), "use_linear_projection": True},
    "sdxl": SMALL
    | COARSE_ONLY
    | {
        "attention_head_dim": (2, 4, 8),
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2, 3),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 20 + 6 * 8,
    },
    "summed up": SMALL
    | COARSE_ONLY
    | {"attention_head_dim": 4, "addition_embed_type": "text", "addition_embed_type_num_heads": 3},
    "odd": SMALL
    | COARSE_ONLY
    | {
        "layers_per_block": (1, 2, 1),
        "in_channels": 9,
        "out_channels": 5,
        "time_embedding_dim": 40,
        "center_input_sample": True,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "upcast_attention": True,
    },
}
AUTOENCODERS: dict[str, dict[str, Any]] = {
    "sd": {"layers_per_block": 2},
    "without attention": {"mid_block_add_attention": False, "use_quant_conv": False, "latent_channels": 8},
    "sd3": {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06, "scaling_factor": 1.5},
}
CLIPS: dict[str, dict[str, Any]] = {
    "openai": {"hidden_act": "quick_gelu", "eos_token_id": 2},
    "laion": {"hidden_act": "gelu", "eos_token_id": 95},
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def clip_config(hidden_act: str, eos_token_id: int) -> CLIPConfig:
    tower = {"projection_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": hidden_act}
    text = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=64,
        vocab_size=99,
        max_position_embeddings=16,
        bos_token_id=94,
        eos_token_id=eos_token_id,
        **tower,
    )
    vision = CLIPVisionConfig(hidden_size=48, intermediate_size=80, image_size=32, patch_size=8, **tower)
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)


def padded_ids(eos: int) -> Tensor:
    """Three texts of different lengths, padded with the token that ends them, in numbers below it."""
    end = 98 if eos == 2 else eos
    ids = torch.randint(0, 94, (3, 12))
    for row, length in enumerate((3, 7, 11)):
        ids[row, length:] = end
    return ids


def spread(net: nn.Module) -> None:
    """Move every number away from its start, so that no term is tested at zero or one."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def exchanged(ours: nn.Module, theirs: nn.Module, prefix: str = "") -> None:
    """Weights go over to the reference and another set comes back, each time strictly, name by name."""
    spread(ours)
    theirs.eval().load_state_dict({name.removeprefix(prefix): value for name, value in ours.state_dict().items()})
    spread(theirs)
    ours.eval().load_state_dict({prefix + name: value for name, value in theirs.state_dict().items()})


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


# --- closed forms


def test_attention_with_equal_keys_is_the_mean_of_the_values() -> None:
    v = torch.randn(2, 3, 5, 4)
    mixed = attention(torch.randn(2, 3, 7, 4), torch.ones(2, 3, 5, 4), v)
    close(mixed, v.mean(2, keepdim=True).expand(-1, -1, 7, -1))


def test_sinusoids_start_with_sine_zero_and_cosine_one_and_step_down_in_frequency() -> None:
    close(sinusoids(torch.zeros(1), 4, cos_first=False, shift=0), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    close(sinusoids(torch.tensor([1.0]), 4, cos_first=True, shift=0)[0, :2], torch.tensor([1.0, 0.01]).cos())


@pytest.mark.parametrize(("eos", "ids", "place"), [(2, [5, 9, 9, 1], 1), (7, [5, 9, 7, 7], 2), (7, [5, 9, 1, 1], 0)])
def test_the_text_ends_at_the_first_end_token(eos: int, ids: list[int], place: int) -> None:
    assert end_of_text(torch.tensor([ids]), eos).tolist() == [place]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("queries", [9, 1030])
def test_attention_in_bfloat16_is_that_of_float32_within_its_rounding(masked: bool, queries: int) -> None:
    q, k, v = (torch.randn(2, 2, n, 8, requires_grad=True) for n in (queries, 9, 9))
    mask = torch.full((queries, 9), float("-inf")).triu(1) if masked else None
    exact = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    rounded = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=4e-2, rtol=4e-2)


def test_group_norm_in_bfloat16_rounds_only_its_result() -> None:
    norm = GroupNorm(2, 8)
    spread(norm)
    x = torch.randn(2, 8, 4, 4).bfloat16()
    assert torch.equal(norm(x), norm(x.float()).bfloat16())
    assert norm.bfloat16()(x).dtype == torch.bfloat16


# --- the reference libraries


@pytest.mark.parametrize("kind", UNETS)
@torch.no_grad()
def test_unet_is_that_of_diffusers(kind: str) -> None:
    config = UNetConfig(**UNETS[kind])
    ours = UNet2DConditionModel(config)
    theirs = diffusers.UNet2DConditionModel.from_config(config.to_dict())
    assert UNetConfig.from_dict(dict(theirs.config)) == config
    exchanged(ours, theirs)
    words = torch.randn(2, 7, 24)
    added = {"text_embeds": torch.randn(2, 20), "time_ids": torch.rand(2, 6) * 512}
    for size, time in (((16, 16), torch.tensor([3, 700])), ((9, 14), torch.tensor(41)), ((12, 20), 999)):
        x = torch.randn(2, config.in_channels, *size)
        close(ours(x, time, words, added), theirs(x, time, words, added_cond_kwargs=added).sample)


@pytest.mark.parametrize("kind", AUTOENCODERS)
@torch.no_grad()
def test_autoencoder_is_that_of_diffusers(kind: str) -> None:
    config = AutoencoderConfig(block_out_channels=(16, 32, 48), norm_num_groups=8, **AUTOENCODERS[kind])
    ours = AutoencoderKL(config)
    theirs = diffusers.AutoencoderKL.from_config(config.to_dict())
    assert AutoencoderConfig.from_dict(dict(theirs.config)) == config
    assert config.shrink == 4
    exchanged(ours, theirs)
    x = torch.rand(2, 3, 32, 44) * 2 - 1
    moments = theirs.encode(x).latent_dist
    close(ours.encode(x), moments.parameters)
    close(ours.decode(moments.mean), theirs.decode(moments.mean).sample)
    close(ours(x), theirs(x).sample)


@pytest.mark.parametrize("kind", CLIPS)
@torch.no_grad()
def test_clip_and_its_logits_are_those_of_transformers(kind: str) -> None:
    config = clip_config(**CLIPS[kind])
    ours, theirs = CLIPModel(config), transformers.CLIPModel(transformers.CLIPConfig.from_dict(config.to_dict()))
    assert CLIPConfig.from_dict(theirs.config.to_dict()) == config
    exchanged(ours, theirs)
    ids, pixels = padded_ids(config.text_config.eos_token_id), torch.rand(4, 3, 32, 32) * 2 - 1
    wanted = theirs(input_ids=ids, pixel_values=pixels)
    close(ours.encode_text(ids), wanted.text_embeds)
    close(ours.encode_image(pixels), wanted.image_embeds)
    close(ours(ids, pixels), wanted.logits_per_image)


@pytest.mark.parametrize("kind", CLIPS)
@torch.no_grad()
def test_text_tower_alone_is_that_of_transformers(kind: str) -> None:
    config = clip_config(**CLIPS[kind]).text_config
    ids = padded_ids(config.eos_token_id)
    plain, theirs = CLIPTextModel(config), transformers.CLIPTextModel(reference_config(config))
    exchanged(plain, theirs, prefix="text_model." if bare(theirs) else "")
    wanted = theirs(ids, output_hidden_states=True)
    close(plain(ids)[0], wanted.last_hidden_state)
    close(plain(ids)[1], wanted.pooler_output)
    close(plain.text_model.hidden_states(ids)[-2], wanted.hidden_states[-2])
    projected = CLIPTextModelWithProjection(config)
    reference = transformers.CLIPTextModelWithProjection(reference_config(projected.config))
    assert CLIPTextConfig.from_dict(reference.config.to_dict()) == projected.config
    exchanged(projected, reference)
    close(projected(ids)[1], reference(ids).text_embeds)


@pytest.mark.parametrize("kind", CLIPS)
@torch.no_grad()
def test_image_tower_alone_is_that_of_transformers(kind: str) -> None:
    config = clip_config(**CLIPS[kind]).vision_config
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    plain, theirs = CLIPVisionModel(config), transformers.CLIPVisionModel(reference_config(config))
    exchanged(plain, theirs, prefix="vision_model." if bare(theirs) else "")
    close(plain(pixels)[0], theirs(pixels).last_hidden_state)
    close(plain(pixels)[1], theirs(pixels).pooler_output)
    projected = CLIPVisionModelWithProjection(config)
    reference = transformers.CLIPVisionModelWithProjection(reference_config(projected.config))
    assert CLIPVisionConfig.from_dict(reference.config.to_dict()) == projected.config
    exchanged(projected, reference)
    close(projected(pixels)[1], reference(pixels).image_embeds)


def reference_config(config: CLIPTextConfig | CLIPVisionConfig) -> Any:
    kind = transformers.CLIPTextConfig if isinstance(config, CLIPTextConfig) else transformers.CLIPVisionConfig
    return kind.from_dict(config.to_dict())


def bare(tower: nn.Module) -> bool:
    """Newer releases drop the prefix that stored files and the models with a projection keep."""
    return not any(name.startswith(("text_model.", "vision_model.")) for name in tower.state_dict())


def test_towers_start_as_wide_as_those_of_transformers() -> None:
    config = clip_config("gelu", 95)
    wide = {"hidden_size": 256, "intermediate_size": 512}
    config = replace(
        config, text_config=replace(config.text_config, **wide), vision_config=replace(config.vision_config, **wide)
    )
    ours = CLIPModel(config)
    reference = transformers.CLIPModel(transformers.CLIPConfig.from_dict(config.to_dict())).state_dict()
    for name, value in ours.state_dict().items():
        if value.numel() > 1:
            assert value.std().item() == pytest.approx(reference[name].std().item(), rel=0.2), name


# --- errors, gradients, start


def test_inputs_of_the_wrong_size_are_refused_with_what_was_wanted() -> None:
    clip = CLIPModel(clip_config("gelu", 95))
    with pytest.raises(CartoucheError, match="17 tokens given to a text tower of 16"):
        clip.encode_text(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(CartoucheError, match="32x40 given to an image tower of 32"):
        clip.encode_image(torch.zeros(1, 3, 32, 40))
    with pytest.raises(CartoucheError, match="time_ids"):
        UNet2DConditionModel(UNetConfig(**UNETS["sdxl"]))(torch.zeros(1, 4, 8, 8), 0, torch.zeros(1, 7, 24))


def nets_and_losses() -> dict[str, Callable[[], tuple[nn.Module, Tensor]]]:
    def unet() -> tuple[nn.Module, Tensor]:
        net = UNet2DConditionModel(UNetConfig(**UNETS["sdxl"]))
        added = {"text_embeds": torch.randn(2, 20), "time_ids": torch.rand(2, 6)}
        return net, net(torch.randn(2, 4, 8, 8), torch.tensor([3, 9]), torch.randn(2, 7, 24), added)

    def autoencoder() -> tuple[nn.Module, Tensor]:
        net = AutoencoderKL(AutoencoderConfig(block_out_channels=(16, 32), norm_num_groups=8))
        moments = net.encode(torch.rand(2, 3, 16, 16))
        return net, net.decode(moments[:, :4] + moments[:, 4:].exp())

    def clip() -> tuple[nn.Module, Tensor]:
        net = CLIPModel(clip_config("quick_gelu", 95))
        return net, net(padded_ids(95), torch.rand(3, 3, 32, 32)).log_softmax(-1).diagonal()

    return {"unet": unet, "autoencoder": autoencoder, "clip": clip}


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("kind", ["unet", "autoencoder", "clip"])
def test_every_weight_receives_a_finite_gradient(kind: str, bfloat16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        net, out = nets_and_losses()[kind]()
    out.float().square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_zeroed_residuals_make_the_net_start_at_zero_and_still_learn() -> None:
    net = UNet2DConditionModel(UNetConfig(**UNETS["sd1"]))
    zero_init_residuals(net)
    out = net(torch.randn(2, 4, 8, 8), 5, torch.randn(2, 7, 24))
    assert not out.any()
    (out - 1).square().mean().backward()
    assert net.conv_out.weight.grad is not None and net.conv_out.weight.grad.any()
    for module in net.modules():
        if isinstance(module, ResnetBlock2D):
            assert not module.conv2.weight.any()
        if isinstance(module, Transformer2DModel):
            assert not module.proj_out.get_parameter("weight").any()
