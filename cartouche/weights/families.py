"""Which family a single file is of, and the configurations that go with it: they are not in the file.

Names say the family. Shapes say widths, depths and channels, so a pruned net, or one that also takes a mask, is read as
it is. What neither says stands in FAMILIES: the heads, the activation, the ladder. Nothing is fetched from anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cartouche.config import CartoucheError, unknown
from cartouche.nets.unet_config import UNetConfig
from cartouche.weights import names
from cartouche.weights.names import Dialect, Shape

UNET, VAE = "model.diffusion_model.", "first_stage_model."
GROUPS = 32  # of every normalisation in these U-Nets and autoencoders
HEAD_WIDTH = 64  # of every text tower, and of the U-Nets since Stable Diffusion 2
IMAGE_HEADS = {1280: 16, 1408: 16, 1664: 16}  # the image towers of ViT-H, g and bigG have wider heads

IGNORED = re.compile(
    r"^(model_ema|first_stage_model\.(loss|model_ema))\."  # a second set of weights; the critic of its training
    r"|^(betas|(sqrt_)?alphas_cumprod(_prev)?|(sqrt|log)_one_minus_alphas_cumprod|sqrt_recip(m1)?_alphas_cumprod)$"
    r"|^(posterior_\w+|lvlb_weights|logvar|scale_factor|denoiser\.sigmas|v_pred|ztsnr)$"  # tables of the ladder
    r"|^(cond_stage_model|conditioner\.embedders\.[01])\.(\w+\.)*(position_ids|logit_scale|attn_mask)$"
    r"|^(cond_stage_model|conditioner\.embedders\.0)\.transformer\.text_projection(\.weight)?$"
)
"""What real files also hold, and no picture depends on."""

FREE = frozenset(
    "sample_size upcast_attention force_upcast architectures projection_dim bos_token_id eos_token_id pad_token_id "
    "initializer_range initializer_factor addition_embed_type_num_heads".split()
)
"""Settings that a single file does not keep, and that change no picture."""

LADDER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "skip_prk_steps": True,
    "timestep_spacing": "leading",
}


@dataclass(frozen=True)
class Tower:
    """A text tower: where it lies in the file, in whose names, and what shapes do not tell of it."""

    prefix: str
    hidden_act: str
    fused: bool = False
    projected: bool = False
    padded: str = "<|endoftext|>"


@dataclass(frozen=True)
class Family:
    """What the files of a family have in common. size: pixels it was trained for."""

    name: str
    pipeline: str
    towers: Mapping[str, Tower]
    scheduler: str
    prediction: str
    size: int
    scaling_factor: float = 0.18215
    head_width: int | None = HEAD_WIDTH
    """Of the U-Net; None: eight heads at every level."""


FAMILIES = {
    "sdxl": Family(
        "sdxl",
        "StableDiffusionXLPipeline",
        {
            "text_encoder": Tower("conditioner.embedders.0.transformer.", "quick_gelu"),
            "text_encoder_2": Tower("conditioner.embedders.1.model.", "gelu", fused=True, projected=True, padded="!"),
        },
        "EulerDiscreteScheduler",
        "epsilon",
        1024,
        0.13025,
    ),
    "sd2": Family(
        "sd2",
        "StableDiffusionPipeline",
        {"text_encoder": Tower("cond_stage_model.model.", "gelu", fused=True, padded="!")},
        "DDIMScheduler",
        "v_prediction",
        768,
    ),
    "sd1": Family(
        "sd1",
        "StableDiffusionPipeline",
        {"text_encoder": Tower("cond_stage_model.transformer.", "quick_gelu")},
        "PNDMScheduler",
        "epsilon",
        512,
        head_width=None,
    ),
}
OTHERS = {
    "conditioner.embedders.0.model.": "the refiner of SDXL, which only finishes pictures",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "model.diffusion_model.double_blocks.": "FLUX",
    "double_blocks.": "FLUX",
    "lora_unet_": "an adapter (LoRA)",
    "control_model.": "a ControlNet",
}


def family_of(stored: Iterable[str], where: str) -> Family:
    """The family whose parts are all among these names. Raises CartoucheError where there is none."""
    given = list(stored)

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in given)

    for family in FAMILIES.values():
        if all(map(has, (UNET, VAE, *(tower.prefix for tower in family.towers.values())))):
            return family
    other = next((f"; it looks like {what}" for prefix, what in OTHERS.items() if has(prefix)), "")
    raise CartoucheError(f"{where} is of no family known here ({', '.join(FAMILIES)}){other}")


def prefix_of(family: Family, part: str) -> str:
    """What the names of a part begin with."""
    return {"unet": UNET, "vae": VAE}.get(part) or family.towers[part].prefix


def config_of(family: Family, part: str, stored: Mapping[str, Shape]) -> dict[str, Any]:
    """The config.json of a part. stored: its names, without the prefix, and shapes."""
    shapes = Shapes(stored)
    if part == "unet":
        return unet_config(shapes, family)
    if part == "vae":
        return vae_config(shapes, family.scaling_factor, family.size)
    return text_config(shapes, family.towers[part])


def dialect_of(family: Family, part: str, config: Mapping[str, Any], stored: Iterable[str] = ()) -> Dialect:
    """The names of a part in a single file, prefix included. stored: names that are there, where there is a choice."""
    prefix = prefix_of(family, part)
    if part == "unet":
        unet = UNetConfig.from_dict(config)
        crossed = [kind.startswith("CrossAttn") for kind in unet.down_block_types]
        return names.prefixed(names.ldm_unet(unet.layers, crossed), prefix)
    if part == "vae":
        return names.prefixed(names.ldm_vae(len(config["block_out_channels"])), prefix)
    if family.towers[part].fused:
        return names.prefixed(names.openai_clip, prefix)
    if any(name.startswith(f"{prefix}embeddings.") for name in stored):  # as the earliest files have it
        return lambda name: names.Piece(prefix + name.removeprefix("text_model."))
    return names.prefixed(names.plain, prefix)


def scheduler_of(family: Family, prediction: str | None = None, zero_snr: bool = False) -> dict[str, Any]:
    """The scheduler_config.json of a family. prediction: what the U-Net predicts, where not the family's usual."""
    kinds = ("epsilon", "v_prediction")
    if prediction not in (None, *kinds):
        raise unknown("prediction", str(prediction), kinds)
    ladder = LADDER | {"_class_name": family.scheduler, "prediction_type": prediction or family.prediction}
    if zero_snr:
        ladder |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return ladder


# configurations from shapes


class Shapes(dict[str, Shape]):
    """Names and shapes; a name that is not there is an error for people."""

    def __missing__(self, name: str) -> Shape:
        raise CartoucheError(f"the file has no {name}, so it is not whole; wanted a complete model")

    def axis(self, name: str, number: int) -> int:
        """How long one axis of a tensor is. Raises CartoucheError for a tensor that has no such axis."""
        shape = self[name]
        if number >= len(shape):
            raise CartoucheError(f"{name} has the shape {shape}, so the file holds no model known here; wanted another")
        return shape[number]

    def count(self, pattern: str) -> int:
        """How many numbers stand behind `pattern`, which are 0, 1, 2, ..."""
        return len({found[1] for name in self if (found := re.match(rf"{pattern}(\d+)\.", name))})


def unet_config(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The configuration of latent-diffusion's U-Net with these tensors."""
    levels: list[list[int]] = [[]]
    for number in range(1, shapes.count(r"input_blocks\.")):
        if f"input_blocks.{number}.0.op.weight" in shapes:
            levels.append([])
        else:
            levels[-1].append(number)
    if not all(levels):
        raise CartoucheError("the file's U-Net has a level without blocks, so it is not whole; wanted a complete model")
    first = [blocks[0] for blocks in levels]
    widths = [shapes.axis(f"input_blocks.{number}.0.in_layers.2.weight", 0) for number in first]
    depths = [shapes.count(rf"input_blocks\.{number}\.1\.transformer_blocks\.") for number in first]
    middle = shapes.count(r"middle_block\.1\.transformer_blocks\.")
    kinds = ["CrossAttn" if depth else "" for depth in depths]
    config = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": family.size // 8,
        "in_channels": shapes.axis("input_blocks.0.0.weight", 1),
        "out_channels": shapes.axis("out.2.weight", 0),
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "block_out_channels": widths,
        "layers_per_block": [len(blocks) for blocks in levels],
        "norm_num_groups": GROUPS,
        "cross_attention_dim": shapes.axis("middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1),
        "attention_head_dim": [max(width // family.head_width, 1) if family.head_width else 8 for width in widths],
        "transformer_layers_per_block": [*(depth or 1 for depth in depths[:-1]), depths[-1] or middle],
        "use_linear_projection": len(shapes["middle_block.1.proj_in.weight"]) == 2,
    }
    if "label_emb.0.0.weight" in shapes:
        added = {"projection_class_embeddings_input_dim": shapes.axis("label_emb.0.0.weight", 1)}
        config |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256} | added
    return config


def vae_config(shapes: Shapes, scaling_factor: float, size: int) -> dict[str, Any]:
    """The configuration of latent-diffusion's autoencoder with these tensors."""
    levels = range(shapes.count(r"encoder\.down\."))
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": size,
        "in_channels": shapes.axis("encoder.conv_in.weight", 1),
        "out_channels": shapes.axis("decoder.conv_out.weight", 0),
        "block_out_channels": [shapes.axis(f"encoder.down.{i}.block.0.conv1.weight", 0) for i in levels],
        "layers_per_block": shapes.count(r"encoder\.down\.0\.block\."),
        "latent_channels": shapes.axis("decoder.conv_in.weight", 1),
        "norm_num_groups": GROUPS,
        "mid_block_add_attention": "encoder.mid.attn_1.norm.weight" in shapes,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "scaling_factor": scaling_factor,
    }


def text_config(shapes: Shapes, tower: Tower) -> dict[str, Any]:
    """The configuration of a text tower with these tensors.

    A tower that stands alone but was stored whole, with its projection, is that of Stable Diffusion 2: trained with the
    states before the last layer, which transformers therefore stores without that layer.
    """
    if tower.fused:
        config = openai_tower(shapes, "", tower.hidden_act)
        config["num_hidden_layers"] -= not tower.projected and "text_projection" in shapes
    else:
        old = "text_model." if "text_model.final_layer_norm.weight" in shapes else ""
        vocabulary, width = (shapes.axis(f"{old}embeddings.token_embedding.weight", number) for number in (0, 1))
        config = {
            "hidden_size": width,
            "intermediate_size": shapes.axis(f"{old}encoder.layers.0.mlp.fc1.weight", 0),
            "num_hidden_layers": shapes.count(rf"{re.escape(old)}encoder\.layers\."),
            "num_attention_heads": max(width // HEAD_WIDTH, 1),
            "max_position_embeddings": shapes.axis(f"{old}embeddings.position_embedding.weight", 0),
            "vocab_size": vocabulary,
            "projection_dim": width,
            "hidden_act": tower.hidden_act,
        }
    kind = "CLIPTextModelWithProjection" if tower.projected else "CLIPTextModel"
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    return {"model_type": "clip_text_model", "architectures": [kind]} | ends | config


def openai_tower(shapes: Shapes, prefix: str, hidden_act: str) -> dict[str, Any]:
    """What both towers have in common, and what the text tower alone has where `prefix` is not "visual."."""
    width = shapes.axis(f"{prefix}transformer.resblocks.0.ln_1.weight", 0)
    heads = IMAGE_HEADS.get(width) if prefix else None
    config = {
        "hidden_size": width,
        "intermediate_size": shapes.axis(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", 0),
        "num_hidden_layers": shapes.count(rf"{re.escape(prefix)}transformer\.resblocks\."),
        "num_attention_heads": heads or max(width // HEAD_WIDTH, 1),
        "hidden_act": hidden_act,
    }
    if prefix:
        return config
    tokens = {"vocab_size": shapes.axis("token_embedding.weight", 0)}
    tokens["max_position_embeddings"] = shapes.axis("positional_embedding", 0)
    tokens["projection_dim"] = shapes.axis("text_projection", 1) if "text_projection" in shapes else width
    return config | tokens


def clip_config(stored: Mapping[str, Shape], hidden_act: str) -> dict[str, Any]:
    """The configuration of a whole CLIP in OpenAI's names. hidden_act: "quick_gelu" for OpenAI's own, "gelu" for most
    of open_clip; no shape tells it."""
    shapes = Shapes(stored)
    channels, patch = (shapes.axis("visual.conv1.weight", number) for number in (1, 2))
    side = round(max(shapes.axis("visual.positional_embedding", 0) - 1, 0) ** 0.5)
    image = {"image_size": side * patch, "patch_size": patch, "num_channels": channels}
    text = openai_tower(shapes, "", hidden_act) | {"bos_token_id": 49406, "eos_token_id": 2}
    shared = {"projection_dim": text["projection_dim"]}
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "text_config": {"model_type": "clip_text_model"} | text,
        "vision_config": {"model_type": "clip_vision_model"}
        | openai_tower(shapes, "visual.", hidden_act)
        | image
        | shared,
    } | shared


def tiny_config(stored: Mapping[str, Shape]) -> dict[str, Any]:
    """The configuration of a tiny autoencoder. stored: names as in TAESD's files, behind "encoder." or "decoder."."""
    shapes = Shapes(stored)
    stages = {side: _stages(side, shapes) for side in ("encoder", "decoder")}
    return {
        "_class_name": "AutoencoderTiny",
        "in_channels": shapes.axis("encoder.0.weight", 1),
        "latent_channels": shapes.axis("decoder.1.weight", 1),
        "encoder_block_out_channels": [shapes.axis("encoder.0.weight", 0)] * len(stages["encoder"]),
        "decoder_block_out_channels": [shapes.axis("decoder.1.weight", 0)] * len(stages["decoder"]),
        "num_encoder_blocks": stages["encoder"],
        "num_decoder_blocks": stages["decoder"],
    }


def _stages(side: str, shapes: Shapes) -> list[int]:
    """How many blocks stand between the convolutions that change the size, which have no bias."""
    stages = [0]
    for number in sorted({int(name.split(".")[1]) for name in shapes if name.startswith(f"{side}.")}):
        if f"{side}.{number}.conv.0.weight" in shapes:
            stages[-1] += 1
        elif f"{side}.{number}.bias" not in shapes:
            stages.append(0)
    return stages
