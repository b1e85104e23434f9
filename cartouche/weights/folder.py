"""Model folders in the layout of diffusers and transformers: written there they open here, and the other way round.

What lies where:

    model_index.json                      which class stands in which sub-folder
    unet/, vae/                           config.json, diffusion_pytorch_model.safetensors
    text_encoder/                         config.json, model.safetensors
    tokenizer/, scheduler/                see text.py and diffusion/schedule.py
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cartouche.config import CartoucheError
from cartouche.text import Tokenizer
from cartouche.weights import safetensors

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float16", "bfloat16")
DIFFUSERS_NETS = {"UNet2DConditionModel": "unet.UNetConfig", "AutoencoderKL": "autoencoder.AutoencoderConfig"}
OWN_NETS = {"Referee": "referee.RefereeConfig"}
CLIP_NETS = {
    "clip_text_model": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "clip_vision_model": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "clip": ("CLIPModel",),
}
FILES = {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}

OLD_NAMES = (
    (r"^(embeddings|encoder|final_layer_norm)\.", r"text_model.\1.", "clip_text_model"),  # as transformers 5 writes it
    (r"^(embeddings|encoder|pre_layrnorm|post_layernorm)\.", r"vision_model.\1.", "clip_vision_model"),
    (r"(mid_block\.attentions\.0)\.query\.", r"\1.to_q.", "AutoencoderKL"),  # as diffusers wrote it before 0.18
    (r"(mid_block\.attentions\.0)\.key\.", r"\1.to_k.", "AutoencoderKL"),
    (r"(mid_block\.attentions\.0)\.value\.", r"\1.to_v.", "AutoencoderKL"),
    (r"(mid_block\.attentions\.0)\.proj_attn\.", r"\1.to_out.0.", "AutoencoderKL"),
)
COUNTERS = re.compile(r"embeddings\.position_ids$")
"""Rows 0, 1, 2, ... that older transformers stored among the weights."""

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
}
"""What a scheduler_config.json says beside the ladder. diffusers' pipeline insists on clip_sample and steps_offset."""


def read_json(path: Path | str) -> dict[str, Any]:
    """A JSON object. Raises CartoucheError where the file is missing or is something else."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CartoucheError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise CartoucheError(f"{path} holds a {type(found).__name__}; wanted a JSON object")
    return found


def write_json(path: Path | str, value: Mapping[str, Any]) -> None:
    """Write a JSON object whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def class_of(config: Mapping[str, Any], where: Path | str = "config.json") -> str:
    """The class a config.json was written for: `_class_name`, or in transformers `architectures` or `model_type`."""
    name = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
    family = CLIP_NETS.get(str(config.get("model_type")), ())
    name = name or (family[0] if family else None)
    known = [*DIFFUSERS_NETS, *OWN_NETS, *(one for names in CLIP_NETS.values() for one in names)]
    if name in known:
        return str(name)
    raise CartoucheError(f"{where} describes {name or 'no class'}; networks known here: {', '.join(known)}")


def weights_file(folder: Path | str) -> Path:
    """The safetensors file of a net's folder. Raises CartoucheError where there is none."""
    folder = Path(folder)
    for name in FILES.values():
        for path in (folder / name, folder / name.replace(".safetensors", ".fp16.safetensors")):
            if path.is_file():
                return path
    if not folder.is_dir():
        raise CartoucheError(f"no folder {folder}; wanted config.json and {' or '.join(FILES.values())} in it")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in safetensors.PICKLED)
    hint = f"; {pickles[0]} is a pickle, which can run code when opened: convert it first" if pickles else ""
    raise CartoucheError(f"no weights in {folder}; wanted {' or '.join(FILES.values())}{hint}")


def build(config: Mapping[str, Any], where: Path | str = "config.json") -> torch.nn.Module:
    """The net that a config.json describes, with weights as its class starts them."""
    name = class_of(config, where)
    clip = f"clip.{name.removesuffix('WithProjection').removesuffix('Model')}Config"
    module, _, settings = (DIFFUSERS_NETS | OWN_NETS).get(name, clip).partition(".")
    room = importlib.import_module(f"cartouche.nets.{module}")
    built: torch.nn.Module = getattr(room, name)(getattr(room, settings).from_dict(config))
    return built


def save_net(folder: Path | str, net: torch.nn.Module, dtype: str | None = None) -> str:
    """Write `config.json` and the weights; returns the weights' sha256.

    dtype: "float16" or "bfloat16" halve the file; None keeps each tensor's own. Raises CartoucheError where a number is
    not finite, or is too large for float16.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = net.config.to_dict()  # type: ignore[operator, union-attr]
    tensors = {name: _stored(name, tensor, dtype) for name, tensor in net.state_dict().items()}
    library = "diffusers" if class_of(config) in DIFFUSERS_NETS else "transformers"
    write_json(folder / "config.json", config)
    return safetensors.save(folder / FILES[library], tensors, {"format": "pt"})


def load_net(folder: Path | str, device: str | torch.device = "cpu", dtype: str = "float32") -> torch.nn.Module:
    """The net in a folder, ready to run. Raises CartoucheError where a weight is left over, missing or misshaped."""
    import torch

    folder = Path(folder)
    _check_dtype(dtype)
    config = read_json(folder / "config.json")
    path = weights_file(folder)
    net = build(config, folder / "config.json")
    tensors = renamed(safetensors.load(path), class_of(config), str(config.get("model_type")))
    check_names({name: tuple(one.shape) for name, one in tensors.items()}, _shapes(net), path)
    net.load_state_dict(tensors)
    return net.to(device=device, dtype=getattr(torch, dtype)).eval()


def renamed(tensors: Mapping[str, Any], *kinds: str) -> dict[str, Any]:
    """Older and newer spellings as the nets here have them; `kinds` are the class and the model_type they belong to."""
    found = {}
    for name, tensor in tensors.items():
        if COUNTERS.search(name):
            continue
        for pattern, replacement, kind in OLD_NAMES:
            if kind in kinds:
                name = re.sub(pattern, replacement, name)
        found[name] = tensor
    return found


def check_names(given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], where: Path | str) -> None:
    """Refuse weights whose names or shapes are not the net's, listing the first five of each kind."""
    wrong = [f"{name} {given[name]} for {shape}" for name, shape in wanted.items() if given.get(name, shape) != shape]
    problems = {
        "missing": [name for name in wanted if name not in given],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": wrong,
    }
    said = [f"{len(names)} {what}: {_first(names)}" for what, names in problems.items() if names]
    if said:
        raise CartoucheError(f"{where} does not fit its config.json; " + "; ".join(said))


def save_pipeline(
    folder: Path | str,
    unet: torch.nn.Module,
    vae: torch.nn.Module,
    text_encoder: torch.nn.Module,
    tokenizer: Tokenizer,
    scheduler_config: Mapping[str, Any],
    dtype: str | None = None,
) -> None:
    """Write the folder that diffusers' StableDiffusionPipeline.from_pretrained opens.

    scheduler_config: the ladder and prediction_type, as in a scheduler_config.json; what it leaves out is SCHEDULER's.
    """
    folder = Path(folder)
    nets = {"unet": unet, "vae": vae, "text_encoder": text_encoder}
    for name, net in nets.items():
        save_net(folder / name, net, dtype)
    tokenizer.save(folder / "tokenizer")
    (folder / "scheduler").mkdir(exist_ok=True)
    scheduler = SCHEDULER | dict(scheduler_config)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(folder / "model_index.json", _index(scheduler["_class_name"], class_of(text_encoder.config.to_dict())))  # type: ignore[operator, union-attr]


def _index(scheduler: Any, text_encoder: str) -> dict[str, Any]:
    """A model_index.json: pairs of library and class; a pair of nulls is a part the model does without."""
    absent = [None, None]
    return {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": absent,
        "image_encoder": absent,
        "requires_safety_checker": False,
        "safety_checker": absent,
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", text_encoder],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _stored(name: str, tensor: torch.Tensor, dtype: str | None) -> torch.Tensor:
    import torch

    kept = tensor.detach()
    if dtype is not None and kept.is_floating_point():
        kept = kept.to(getattr(torch, _check_dtype(dtype)))
    if not torch.isfinite(kept).all():
        kind = dtype or str(tensor.dtype).removeprefix("torch.")
        raise CartoucheError(f"{name} holds numbers that are not finite as {kind}; store it as float32")
    return kept


def _check_dtype(dtype: str) -> str:
    if dtype not in DTYPES:
        raise CartoucheError(f"dtype={dtype!r} given; choose one of {', '.join(DTYPES)}")
    return dtype


def _shapes(net: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(one.shape) for name, one in net.state_dict().items()}


def _first(names: Iterable[str], count: int = 5) -> str:
    listed = list(names)
    return ", ".join(listed[:count]) + (", ..." if len(listed) > count else "")
