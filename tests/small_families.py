"""Small random models with the structure of the real ones, made by the reference libraries, for several tests."""

from __future__ import annotations

import gzip
import json
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cartouche.weights import single

PROMPT, NEGATIVE = "a red fox on a blue background", "grey, blurry"
LADDER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
COARSE = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
FINE = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
SD1 = {"down_block_types": COARSE, "up_block_types": FINE, "attention_head_dim": 8}
UNETS: dict[str, dict[str, Any]] = {
    "sd1": SD1 | {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 64},
    "sd2": SD1
    | {"block_out_channels": (32, 64, 128, 64), "cross_attention_dim": 64}
    | {"attention_head_dim": (1, 1, 2, 1), "use_linear_projection": True},
    "sdxl": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (32, 64, 128),
        "cross_attention_dim": 64 + 128,
        "attention_head_dim": (1, 1, 2),
        "transformer_layers_per_block": (1, 2, 3),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 128 + 6 * 256,
    },
}
WIDTHS = {"F16": 2, "F32": 4}
_PLACE = tempfile.TemporaryDirectory()
SAMPLERS = {"sd1": "ddim", "sd2": "ddim", "sdxl": "euler"}


@dataclass
class Small:
    """One model in every form: the reference's pipeline, its folder, our single file."""

    name: str
    pipeline: Any
    folder: Path
    file: Path

    @property
    def sampler(self) -> str:
        return SAMPLERS[self.name]


@cache
def small(name: str) -> Small:
    """The model of a family, random, its pictures 64x64; made once, in a folder that goes with the process."""
    path = Path(_PLACE.name) / name
    path.mkdir()
    return _small(name, path)


def _small(name: str, path: Path) -> Small:
    from cartouche.weights.source import Folder

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = _pipeline(name, path)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.save_pretrained(path / name)
    single.save(path / f"{name}.safetensors", Folder(path / name))
    return Small(name, pipeline, path / name, path / f"{name}.safetensors")


def real_names(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a published file of a family, full size."""
    text = gzip.decompress((Path(__file__).parent / "fixtures" / f"keys_{name}.txt.gz").read_bytes()).decode()
    lines = (line.split(" ") for line in text.splitlines())
    return {key: tuple(int(side) for side in shape.split("x") if side) for key, shape in lines}


def hollow(path, shapes, kind="F16", metadata=None):
    """A safetensors file of these names and shapes with no numbers in it: a hole in the disk of the right length."""
    header, offset = {"__metadata__": metadata or {}}, 0
    for name, shape in shapes.items():
        size = WIDTHS[kind] * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return path


def tower(width: int, act: str, layers: int, projected: bool = False) -> Any:
    """A random text tower of transformers."""
    import transformers

    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    config = transformers.CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        hidden_act=act,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return kind(config)


def _pipeline(name: str, path: Path) -> Any:
    import diffusers
    import torch

    torch.manual_seed(0)
    levels = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    scale = {"scaling_factor": 0.13025 if name == "sdxl" else 0.18215}
    vae = diffusers.AutoencoderKL(block_out_channels=(32, 32, 64, 64), layers_per_block=2, **levels, **scale)
    unet = diffusers.UNet2DConditionModel(sample_size=8, **UNETS[name])
    with torch.no_grad():
        unet.conv_out.weight *= 0.03  # a net that is unsure of its noise: differences of rounding stay small
    parts = {"vae": vae, "unet": unet}
    if name == "sdxl":
        scheduler = diffusers.EulerDiscreteScheduler(timestep_spacing="leading", **LADDER)
        towers = {"text_encoder": tower(64, "quick_gelu", 3), "text_encoder_2": tower(128, "gelu", 4, projected=True)}
        tokenizers = {"tokenizer": _tokenizer(path / "1"), "tokenizer_2": _tokenizer(path / "2", "!")}
        parts |= towers | tokenizers
        return diffusers.StableDiffusionXLPipeline(**parts, scheduler=scheduler, add_watermarker=False)
    kind = {"prediction_type": "v_prediction" if name == "sd2" else "epsilon"}
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **LADDER, **kind)
    parts |= {"text_encoder": tower(64, "quick_gelu", 3) if name == "sd1" else tower(64, "gelu", 3)}
    parts |= {"tokenizer": _tokenizer(path / "1", "<|endoftext|>" if name == "sd1" else "!")}
    absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return diffusers.StableDiffusionPipeline(**parts, scheduler=scheduler, **absent)


def _tokenizer(path: Path, pad: str = "<|endoftext|>") -> Any:
    import transformers

    single.clip_tokenizer(49408, 77, pad).save(path)
    return transformers.CLIPTokenizer.from_pretrained(path)
