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
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cartouche import files
from cartouche.config import CartoucheError, shown
from cartouche.config import read_json as read_json
from cartouche.nets.settings import NetConfig
from cartouche.text import Tokenizer
from cartouche.weights import safetensors

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float16", "bfloat16")
DIFFUSERS_NETS = {"UNet2DConditionModel": "unet.UNetConfig", "AutoencoderKL": "autoencoder.AutoencoderConfig"}
DIFFUSERS_NETS |= {"AutoencoderTiny": "tiny.TinyConfig"}
OWN_NETS = {"Referee": "referee.RefereeConfig"}
TRANSFORMERS_NETS = {  # model_type: {class: its settings}; the first is meant where a config.json names no class
    "clip_text_model": dict.fromkeys(("CLIPTextModel", "CLIPTextModelWithProjection"), "clip.CLIPTextConfig"),
    "clip_vision_model": dict.fromkeys(("CLIPVisionModel", "CLIPVisionModelWithProjection"), "clip.CLIPVisionConfig"),
    "clip": {"CLIPModel": "clip.CLIPConfig"},
    "owlvit": {"OwlViTForObjectDetection": "owlvit.OwlViTConfig"},
    "clipseg": {"CLIPSegForImageSegmentation": "clipseg.CLIPSegConfig"},
    "llama": {"LlamaForCausalLM": "llama.LlamaConfig"},
    "llava": {"LlavaForConditionalGeneration": "llava.LlavaConfig"},
}
NETS = DIFFUSERS_NETS | OWN_NETS
NETS |= {name: settings for family in TRANSFORMERS_NETS.values() for name, settings in family.items()}
APART = ("autoencoder", "clip", "tiny", "unet")
"""Nets whose settings lie in a file of their own, `..._config.py`, and can be read without torch."""

LAYOUT = "0.42.1"
"""The version of diffusers whose layout this is; its inpainting pipeline asks for it."""

FILES = {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}

OLD_NAMES = (
    (r"^(embeddings|encoder|final_layer_norm)\.", r"text_model.\1.", "clip_text_model"),  # as transformers 5 writes it
    (r"^(embeddings|encoder|pre_layrnorm|post_layernorm)\.", r"vision_model.\1.", "clip_vision_model"),
    (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", "LlavaForConditionalGeneration"),
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


def write_json(path: Path | str, value: Mapping[str, Any]) -> None:
    """Write a JSON object whole or not at all."""
    with files.whole(path) as file:
        file.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def class_of(config: Mapping[str, Any], where: Path | str = "config.json") -> str:
    """The class a config.json was written for: `_class_name`, or in transformers `architectures` or `model_type`."""
    listed = config.get("architectures")
    name = config.get("_class_name") or (listed[0] if isinstance(listed, list | tuple) and listed else None)
    name = name or next(iter(TRANSFORMERS_NETS.get(str(config.get("model_type")), ())), None)
    if isinstance(name, str) and name in NETS:
        return name
    raise CartoucheError(f"{where} describes {shown(name or 'no class')}; networks known here: {', '.join(NETS)}")


def settings(config: Mapping[str, Any], where: Path | str = "config.json") -> NetConfig:
    """The settings that a config.json describes, checked: their names, kinds and sizes, before a net is made of them.

    Raises CartoucheError for all that no net here can be.
    """
    room, _, kind = NETS[class_of(config, where)].partition(".")
    module = importlib.import_module(f"cartouche.nets.{room}_config" if room in APART else f"cartouche.nets.{room}")
    try:
        found: NetConfig = getattr(module, kind).from_dict(config)
    except (TypeError, AttributeError, KeyError) as error:
        raise CartoucheError(f"{where} is no configuration of {class_of(config)}: {shown(error)}") from error
    return found


def read_config(path: Path | str) -> dict[str, Any]:
    """The config.json of a net, once `settings` has nothing against it."""
    config = read_json(path)
    settings(config, path)
    return config


def weights_files(folder: Path | str) -> list[Path]:
    """The safetensors files of a net's folder: one, or the shards its index names. CartoucheError where is none."""
    folder = Path(folder)
    for name in FILES.values():
        for path in (folder / name, folder / name.replace(".safetensors", ".fp16.safetensors")):
            if path.is_file():
                return [path]
        for index in (folder / f"{name}.index.json", folder / f"{name}.index.fp16.json"):
            if index.is_file():
                return _shards(index)
    if not folder.is_dir():
        raise CartoucheError(f"no folder {folder}; wanted config.json and {' or '.join(FILES.values())} in it")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in safetensors.PICKLED)
    hint = f"; {pickles[0]} is a pickle, which can run code when opened: convert it first" if pickles else ""
    raise CartoucheError(f"no weights in {folder}; wanted {' or '.join(FILES.values())}{hint}")


def weights_file(folder: Path | str) -> Path:
    """The one safetensors file of a net's folder. Raises CartoucheError where there is none, or are several."""
    found = weights_files(folder)
    if len(found) > 1:
        raise CartoucheError(f"{folder} has its weights in {len(found)} files; wanted one: open the model and save it")
    return found[0]


def _shards(index: Path) -> list[Path]:
    """The files beside an index that it names, each once; never one elsewhere."""
    places = read_json(index).get("weight_map")
    names = sorted({str(one) for one in places.values()}) if isinstance(places, dict) else []
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise CartoucheError(f"{index} names no shards; wanted a weight_map to .safetensors files beside it")
    return [index.parent / name for name in names]


def joined(shards: Iterable[Mapping[str, Any]], where: Path) -> dict[str, Any]:
    """What several files hold together. Raises CartoucheError where two hold the same."""
    found: dict[str, Any] = {}
    for shard in shards:
        if twice := found.keys() & shard.keys():
            raise CartoucheError(f"{where} holds {first(sorted(twice))} in two files; wanted each weight once")
        found |= shard
    return found


def build(config: Mapping[str, Any], where: Path | str = "config.json") -> torch.nn.Module:
    """The net that a config.json describes, with weights as its class starts them.

    Under `torch.device("meta")` it takes no memory, whatever the config says.
    """
    name, checked = class_of(config, where), settings(config, where)
    room = importlib.import_module(f"cartouche.nets.{NETS[name].partition('.')[0]}")
    built: torch.nn.Module = getattr(room, name)(checked)
    return built


def save_net(folder: Path | str, net: torch.nn.Module, dtype: str | None = None) -> str:
    """Write `config.json` and the weights; returns the weights' sha256.

    dtype: "float16" or "bfloat16" halve the file; None keeps each tensor's own. Raises CartoucheError where a number is
    not finite, or is too large for float16.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = net.config.to_dict()  # type: ignore[operator, union-attr]
    tensors = {name: stored(name, tensor, dtype) for name, tensor in net.state_dict().items()}
    library = "diffusers" if class_of(config) in DIFFUSERS_NETS else "transformers"
    write_json(folder / "config.json", config)
    return safetensors.save(folder / FILES[library], tensors, {"format": "pt"})


def load_net(folder: Path | str, device: str | torch.device = "cpu", dtype: str = "float32") -> torch.nn.Module:
    """The net in a folder, ready to run. Raises CartoucheError where a weight is left over, missing or misshaped."""
    import torch

    folder = Path(folder)
    _check_dtype(dtype)
    config = read_json(folder / "config.json")
    paths = weights_files(folder)
    spelled = class_of(config, folder / "config.json"), str(config.get("model_type"))
    with torch.device("meta"):
        net = build(config, folder / "config.json")
    layout = renamed(joined(map(safetensors.layout, paths), folder), *spelled)
    check_names({name: one.shape for name, one in layout.items()}, shapes(net), paths[0] if len(paths) == 1 else folder)
    return filled(net, renamed(joined(map(safetensors.load, paths), folder), *spelled), device, dtype)


def filled(
    net: torch.nn.Module, tensors: Mapping[str, torch.Tensor], device: str | torch.device, dtype: str = "float32"
) -> torch.nn.Module:
    """The net of a `build` on the meta device with these tensors for weights, ready to run."""
    import torch

    wanted = net.state_dict()
    odd = [name for name, one in tensors.items() if one.is_floating_point() != wanted[name].is_floating_point()]
    if odd:
        raise CartoucheError(f"weights of another kind of number than the net's: {first(odd)}")
    kind = getattr(torch, dtype)
    ready = {name: _settled(one.to(device, kind if one.is_floating_point() else None)) for name, one in tensors.items()}
    net.load_state_dict(ready, assign=True)
    if any(one.is_meta for one in net.buffers()):  # tables that are computed, not stored
        net = build(net.config.to_dict())  # type: ignore[operator, union-attr]
        net.load_state_dict(ready)
    return net.to(device=device, dtype=kind).eval()


def _settled(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as it would lie in memory of its own: kernels give other last bits where rows begin elsewhere.

    So a model is the same model whatever file it was stored in; what lies well in its file stays mapped.
    """
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % safetensors.ALIGNMENT == 0 else tensor.clone()


def renamed(tensors: Mapping[str, Any], *kinds: str) -> dict[str, Any]:
    """Older and newer spellings as the nets here have them; `kinds` are the class and the model_type they belong to."""
    found = {}
    for name, tensor in tensors.items():
        if COUNTERS.search(name):
            continue
        for pattern, replacement, kind in OLD_NAMES:
            if kind in kinds:
                name = re.sub(pattern, replacement, name)
        if name in found:
            raise CartoucheError(f"{shown(name)} is there in two spellings; wanted each weight once")
        found[name] = tensor
    return found


def check_names(
    given: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    where: Path | str,
    what: str = "its config.json",
) -> None:
    """Refuse weights whose names or shapes are not the net's, listing the first five of each kind."""
    wrong = [f"{name} {given[name]} for {shape}" for name, shape in wanted.items() if given.get(name, shape) != shape]
    problems = {
        "missing": [name for name in wanted if name not in given],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": wrong,
    }
    said = [f"{len(names)} {kind}: {first(names)}" for kind, names in problems.items() if names]
    if said:
        raise CartoucheError(f"{where} does not fit {what}; " + "; ".join(said))


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
    nets = {"unet": unet, "vae": vae, "text_encoder": text_encoder}
    save_model(folder, nets, {"text_encoder": tokenizer}, SCHEDULER | dict(scheduler_config), {}, dtype)


def save_model(
    folder: Path | str,
    nets: Mapping[str, torch.nn.Module],
    tokenizers: Mapping[str, Tokenizer],
    scheduler: Mapping[str, Any],
    index: Mapping[str, Any],
    dtype: str | None = None,
) -> None:
    """Write a whole model as diffusers has it.

    nets: by the name of their sub-folder; tokenizers: by the name of the text encoder they belong to. index: what its
    model_index.json says beside the classes, such as the class of the pipeline. dtype: as in `save_net`.
    """
    folder = Path(folder)
    classes = {"scheduler": ["diffusers", scheduler["_class_name"]]}
    for name, net in nets.items():
        save_net(folder / name, net, dtype)
        kind = class_of(net.config.to_dict())  # type: ignore[operator, union-attr]
        classes[name] = ["diffusers" if kind in DIFFUSERS_NETS else "transformers", kind]
    for name, tokenizer in tokenizers.items():
        place = name.replace("text_encoder", "tokenizer")
        tokenizer.save(folder / place)
        classes[place] = ["transformers", "CLIPTokenizer"]
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(folder / "model_index.json", dict(sorted((_whole_index(index) | classes).items())))


def _whole_index(index: Mapping[str, Any]) -> dict[str, Any]:
    """What a pipeline wants to read of parts that the model does without: a pair of nulls each."""
    said = {"_class_name": "StableDiffusionPipeline", "feature_extractor": [None, None], "image_encoder": [None, None]}
    said["_diffusers_version"] = LAYOUT
    said |= {name: value for name, value in index.items() if not isinstance(value, list)}
    if "XL" not in str(said["_class_name"]):
        return {"requires_safety_checker": False, "safety_checker": [None, None]} | said
    return said


def stored(name: str, tensor: torch.Tensor, dtype: str | None) -> torch.Tensor:
    """A weight as a file keeps it. Raises CartoucheError where a number of it is not finite there."""
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


def shapes(net: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """What a net stores, name by name."""
    return {name: tuple(one.shape) for name, one in net.state_dict().items()}


def first(names: Iterable[str], count: int = 5) -> str:
    """The first few of a list of names, for an error."""
    listed = [shown(name) for name in names]
    return ", ".join(listed[:count]) + (", ..." if len(listed) > count else "")
