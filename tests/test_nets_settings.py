"""The networks' configurations: published ones give the published networks, impossible ones are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from cartouche.config import CartoucheError
from cartouche.nets.autoencoder import AutoencoderConfig, AutoencoderKL
from cartouche.nets.blocks import sinusoids
from cartouche.nets.clip import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig
from cartouche.nets.llava import LlavaConfig
from cartouche.nets.unet import UNet2DConditionModel, UNetConfig

XL_WORDS = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
KNOWN: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "Stable Diffusion 1.5 U-Net": (
        859_520_964,
        lambda: UNet2DConditionModel(UNetConfig.from_dict({"cross_attention_dim": 768, "attention_head_dim": 8})),
    ),
    "Stable Diffusion 2.1 U-Net": (
        865_910_724,
        lambda: UNet2DConditionModel(
            UNetConfig(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)
        ),
    ),
    "Stable Diffusion XL U-Net": (
        2_567_463_684,
        lambda: UNet2DConditionModel(
            UNetConfig(
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                block_out_channels=(320, 640, 1280),
                cross_attention_dim=2048,
                attention_head_dim=(5, 10, 20),
                transformer_layers_per_block=(1, 2, 10),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            )
        ),
    ),
    "Stable Diffusion autoencoder": (
        83_653_863,
        lambda: AutoencoderKL(AutoencoderConfig(block_out_channels=(128, 256, 512, 512), layers_per_block=2)),
    ),
    "CLIP ViT-B/32": (151_277_313, lambda: CLIPModel(CLIPConfig())),
    "Stable Diffusion XL second text tower": (
        694_659_840,
        lambda: CLIPTextModelWithProjection(CLIPTextConfig(**XL_WORDS, hidden_act="gelu", projection_dim=1280)),
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_published_networks_have_their_published_number_of_weights(name: str) -> None:
    count, build = KNOWN[name]
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build().parameters()) == count


@pytest.mark.parametrize(
    ("kind", "given", "told"),
    [
        (UNetConfig, {"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift='scale_shift'"),
        (UNetConfig, {"num_class_embeds": 1000}, "num_class_embeds=1000"),
        (UNetConfig, {"down_block_types": ["AttnDownBlock2D"] * 4}, "AttnDownBlock2D"),
        (UNetConfig, {"block_out_channels": [320, 640]}, "4 blocks for 2 levels"),
        (UNetConfig, {"attention_head_dim": 7}, "does not divide"),
        (UNetConfig, {"attention_head_dim": [8, 8]}, "2 entries for 4 levels"),
        (UNetConfig, {"addition_embed_type": "image"}, "addition_embed_type='image'"),
        (UNetConfig, {"addition_embed_type": "text", "addition_embed_type_num_heads": 3}, "does not divide"),
        (UNetConfig, {"addition_embed_type": "text_time"}, "addition_time_embed_dim"),
        (UNetConfig, {"cross_attention_dims": 768}, "did you mean 'cross_attention_dim'"),
        (UNetConfig, {"cross_attention_dim": "768"}, "wrong type"),
        (UNetConfig, {"_class_name": "UNet2DModel"}, "_class_name='UNet2DModel'"),
        (AutoencoderConfig, {"block_out_channels": []}, "no level"),
        (AutoencoderConfig, {"down_block_types": ["AttnDownEncoderBlock2D"]}, "AttnDownEncoderBlock2D"),
        (AutoencoderConfig, {"block_out_channels": [48]}, "norm_num_groups=32"),
        (AutoencoderConfig, {"latents_mean": [0.0]}, "latents_mean"),
        (CLIPTextConfig, {"hidden_act": "relu"}, "hidden_act='relu'"),
        (CLIPTextConfig, {"model_type": "bert"}, "model_type='bert'"),
        (CLIPTextConfig, {"num_attention_heads": 7}, "does not divide"),
        (CLIPVisionConfig, {"patch_size": 15}, "patch_size=15"),
        (CLIPConfig, {"text_config": {"hidden_sise": 5}}, "did you mean 'hidden_size'"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused_by_name(kind: Any, given: dict[str, Any], told: str) -> None:
    with pytest.raises(CartoucheError) as caught:
        kind.from_dict(given)
    assert told in str(caught.value)


def test_fields_that_leave_the_network_as_it_is_are_read_over() -> None:
    given = {"_diffusers_version": "0.6.0", "_name_or_path": "x"}
    assert UNetConfig.from_dict(given) == UNetConfig()
    assert (
        CLIPTextConfig.from_dict({"torch_dtype": "float16", "top_k": 50, "attention_dropout": 0.0}) == CLIPTextConfig()
    )


def test_a_tower_repeated_in_an_early_file_overrides_the_first_mention() -> None:
    given = {"text_config": {"hidden_size": 512}, "text_config_dict": {"hidden_size": 768, "num_attention_heads": 12}}
    assert CLIPConfig.from_dict(given).text_config.hidden_size == 768


@pytest.mark.parametrize("again", [{}, {"hidden_size": 768, "num_attention_heads": 12}])
def test_what_the_repeated_tower_leaves_out_is_as_usual_as_transformers_has_it(again) -> None:
    given = {"text_config": {"hidden_act": "gelu", "hidden_size": 512}, "text_config_dict": again}
    ours, theirs = CLIPConfig.from_dict(given).text_config, transformers.CLIPConfig(**given).text_config
    assert (
        (ours.hidden_act, ours.hidden_size)
        == (theirs.hidden_act, theirs.hidden_size)
        == ("quick_gelu", ours.hidden_size)
    )


def test_llava_reads_what_newer_files_rename_and_what_either_half_ties() -> None:
    tiny = {"vocab_size": 50, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    given = {"text_config": tiny, "image_token_id": 7, "tie_word_embeddings": True}
    config = LlavaConfig.from_dict(given)
    assert config.image_token_index == 7 and config.text_config.tie_word_embeddings
    with pytest.raises(CartoucheError, match="image_token_id=7 and image_token_index=8 name one thing"):
        LlavaConfig.from_dict(given | {"image_token_index": 8})
    with pytest.raises(CartoucheError, match="a head_dim of 3 cannot be turned in pairs"):
        LlavaConfig.from_dict({"text_config": tiny | {"head_dim": 3}, "image_token_id": 7})


def test_an_odd_number_of_sinusoids_ends_in_nothing_as_in_diffusers() -> None:
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.tensor([0.0, 3.0, 999.0])
    ours, theirs = (
        sinusoids(t, 7, True, 0.0),
        get_timestep_embedding(t, 7, flip_sin_to_cos=True, downscale_freq_shift=0),
    )
    torch.testing.assert_close(ours, theirs)
