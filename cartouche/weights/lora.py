"""LoRA: small changes to a net's weights, as two thin matrices for each layer (Hu et al., arXiv 2106.09685, eq. 3).

    W' = W + strength * (alpha / rank) * up @ down

Files come in dialects, told apart by their names alone, and one table of endings reads them all:

    diffusers   unet.down_blocks.0...to_q.lora.down.weight, text_encoder...lora_linear_layer.up.weight, lora_A, lora_B
    peft        base_model.model.down_blocks.0...to_q.lora_A.weight, with adapter_config.json beside it
    kohya       lora_unet_down_blocks_0_..._to_q.lora_down.weight, lora_te_..., .alpha; also in the names of
                single-file checkpoints (lora_unet_input_blocks_4_1_...)

Convolutions are changed like matrices. A change is merged into the weights, or runs beside the layer as it is ("live");
both can be taken away again, and leave every bit as it was.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cartouche.config import CartoucheError
from cartouche.files import fingerprint
from cartouche.weights import folder as folders
from cartouche.weights import safetensors

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LARGEST_ALPHA = 1e30  # a strength; more is no number that float32 holds
DIFFUSERS_METADATA = "lora_adapter_metadata"
PARTS = {
    "unet.": "unet",
    "lora_unet_": "unet",
    "text_encoder_2.": "text_encoder_2",
    "lora_te2_": "text_encoder_2",
    "text_encoder.": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te_": "text_encoder",
}
"""What a name begins with where it says which net it belongs to; peft's adapters do not."""

_PEFT = "base_model.model."
_ENDS = (
    (re.compile(r"\.lora_A(\.default)?\.weight$"), "down"),
    (re.compile(r"\.lora_B(\.default)?\.weight$"), "up"),
    (re.compile(r"([._]lora|\.lora_linear_layer)\.(?P<role>down|up)\.weight$"), ""),
    (re.compile(r"\.lora_(?P<role>down|up|mid)\.weight$"), ""),
    (re.compile(r"\.(?P<role>alpha)$"), ""),
)
_OTHERS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_embedding_": "LoRA of an embedding",
}
_UNET = ("down_blocks.", "mid_block.", "up_blocks.", "conv_", "time_embedding.", "add_embedding.")


@dataclass(frozen=True)
class Change:
    """The change of one layer. down: (rank, in, ...); up: (out, rank, ...); mid: (rank, rank, kh, kw) of a convolution
    in three steps; scale: alpha / rank."""

    down: np.ndarray
    up: np.ndarray
    scale: float
    mid: np.ndarray | None = None

    def fits(self, shape: Shape) -> bool:
        """Whether it changes a weight of this shape."""
        rank = self.down.shape[0]
        if self.mid is not None:
            made = (self.up.shape[0], self.down.shape[1], *self.mid.shape[2:])
            return made == shape and self.mid.shape[:2] == (self.up.shape[1], rank)
        matrix = self.up.shape[0], math.prod(self.down.shape[1:])
        return self.up.shape[1] == rank and matrix == (shape[0], math.prod(shape[1:]))

    def delta(self, shape: Shape) -> np.ndarray:
        """What is added to a weight of this shape at strength 1. float32."""
        down, up = _matrix(self.down), _matrix(self.up)
        if self.mid is None:
            return np.asarray(self.scale * (up @ down).reshape(shape), np.float32)
        inner = np.einsum("oa,abkl,bi->oikl", up, self.mid.astype(np.float32), down, optimize=True)
        return np.asarray(self.scale * inner, np.float32)


@dataclass(frozen=True)
class Lora:
    """An opened file. changes: part of the model -> layer, spelled as the file spells it -> its change.

    hash: the first ten hexadecimal digits of its sha256, as model sites show them; with peft's settings where it has
    them.
    """

    path: Path
    hash: str
    changes: Mapping[str, Mapping[str, Change]]

    def fitted(self, part: str, shapes: Mapping[str, Shape], stored: Callable[[str], str] | None = None) -> Changes:
        """The changes of one part by the names of the net's weights. shapes: those of all its weights.

        stored: our weight name to that of a single-file checkpoint, in whose names some files are written. Raises
        CartoucheError where a layer is not in the net or has another shape, and lists the first five.
        """
        spelled = _spellings(shapes, stored)
        changes = self.changes.get(part, {})
        unknown = [layer for layer in changes if layer not in spelled]
        if unknown:
            raise CartoucheError(
                f"{self.path} changes layers that this model's {part} has not: {folders.first(unknown)}"
            )
        wrong = [layer for layer, change in changes.items() if not change.fits(shapes[spelled[layer]])]
        if wrong:
            raise CartoucheError(f"{self.path} was made for a {part} of another size; so {folders.first(wrong)}")
        found = {spelled[layer]: change for layer, change in changes.items()}
        if len(found) < len(changes):
            raise CartoucheError(f"{self.path} names some layers twice, in two spellings; keep one of them")
        return found


Changes = dict[str, Change]
"""Weight name -> its change."""

Patch = Callable[[np.ndarray], np.ndarray]
"""A weight as it is stored to the weight as it is to be."""


def read(path: Path | str) -> Lora:
    """Open a LoRA: a .safetensors file of any dialect, or a folder as peft saves it.

    Raises CartoucheError for pickles, for adapters of other kinds, and for files in which something is left over.
    """
    path = Path(path)
    path = path / PEFT_WEIGHTS if path.is_dir() else path
    tensors = safetensors.load_numpy(path)
    layers: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        place, role = placed(path, name)
        if layers.setdefault(place, {}).setdefault(role, tensor) is not tensor:
            raise CartoucheError(f"{path} names {place[1]} twice, in two spellings; keep one of them")
    if not layers:
        raise CartoucheError(f"{path} holds no tensors; wanted a LoRA")
    peft = any(name.startswith(_PEFT) for name in tensors)
    settings = _settings(path, peft)
    changes: dict[str, dict[str, Change]] = {}
    for (part, layer), found in layers.items():
        scale = partial(_scale, path, settings.get("" if peft else part, {}), layer)
        changes.setdefault(part, {})[layer] = _change(path, layer, found, scale)
    return Lora(path, fingerprint(path, *[path.with_name(PEFT_CONFIG)] * peft), changes)


def merged(name: str, weight: np.ndarray, loras: Sequence[tuple[Changes, float]]) -> np.ndarray:
    """The weight with all changes of its name added, each times its strength. float32, of the same shape."""
    wide = weight.astype(np.float32)
    for changes, strength in loras:
        if name in changes:
            wide += np.float32(strength) * changes[name].delta(weight.shape)
    return wide


def merge(net: torch.nn.Module, loras: Sequence[tuple[Changes, float]]) -> Callable[[], None]:
    """Merge into a torch net; the function returned takes all of it away again, to the bit.

    To take one of several away, undo and merge the others. Until then the weights as they were stay in memory.
    """
    names = dict.fromkeys(name for changes, _ in loras for name in changes)
    return patch(net, {name: partial(merged, name, loras=loras) for name in names})


def patch(net: torch.nn.Module, patches: Mapping[str, Patch]) -> Callable[[], None]:
    """Put new weights in the place of those named; the function returned puts the old ones back."""
    import torch

    old = {name: net.get_parameter(name) for name in patches}

    def put(parameters: Mapping[str, torch.nn.Parameter]) -> None:
        for name, parameter in parameters.items():
            layer, _, leaf = name.rpartition(".")
            setattr(net.get_submodule(layer), leaf, parameter)

    def changed(name: str) -> torch.nn.Parameter:
        weight = old[name].detach()
        array = patches[name](weight.float().cpu().numpy())
        return torch.nn.Parameter(torch.from_numpy(array).to(weight.device, weight.dtype), old[name].requires_grad)

    put({name: changed(name) for name in old})
    return lambda: put(old)


def attach(net: torch.nn.Module, loras: Sequence[tuple[Changes, float]]) -> Callable[[], None]:
    """Let the changes run beside their layers, whose weights stay as they are; the function returned takes them away.

    Slower than merging, but nothing is rounded twice, and strengths may change from picture to picture at no cost.
    """
    handles = []
    for changes, strength in loras:
        for name, change in changes.items():
            layer = net.get_submodule(name.removesuffix(".weight"))
            handles.append(layer.register_forward_hook(_beside(layer, change, strength)))

    def detach() -> None:
        for handle in handles:
            handle.remove()

    return detach


def _beside(layer: Any, change: Change, strength: float) -> Callable[[Any, Any, Any], Any]:
    """A hook after a layer: its output y becomes y + strength * scale * up(down(x))."""
    import torch
    import torch.nn.functional as F

    weight = layer.weight

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(weight.device, weight.dtype)

    def through(x: Any, first: torch.Tensor) -> Any:
        if not isinstance(layer, torch.nn.Conv2d):
            return F.linear(x, first)
        return F.conv2d(x, first, None, layer.stride, layer.padding, layer.dilation)

    if change.mid is not None:
        whole = tensor(change.delta(tuple(weight.shape)))
        return lambda _, inputs, y: y + strength * through(inputs[0], whole)
    down = tensor(change.down.reshape(-1, *weight.shape[1:]))
    up = tensor(_matrix(change.up))
    scale = strength * change.scale
    if not isinstance(layer, torch.nn.Conv2d):
        return lambda _, inputs, y: y + scale * F.linear(through(inputs[0], down), up)
    return lambda _, inputs, y: y + scale * F.conv2d(through(inputs[0], down), up[..., None, None])


# reading


def placed(path: Path, name: str) -> tuple[tuple[str, str], str]:
    """((part, layer), role) of a tensor's name. Raises CartoucheError for what is no LoRA."""
    for ending, role in _ENDS:
        if match := ending.search(name):
            layer = name[: match.start()].replace(_PEFT, "").replace(".processor", "")
            start = next((start for start in PARTS if layer.startswith(start)), None)
            if start is not None:
                return (PARTS[start], layer.removeprefix(start)), role or match["role"]
            return ("unet" if layer.startswith(_UNET) else "text_encoder", layer), role or match["role"]
    kind = next((kind for mark, kind in _OTHERS.items() if mark in name), None)
    said = f"is {kind}, which is not known here" if kind else "is no LoRA"
    raise CartoucheError(f"{path} {said}: it holds {name}; wanted pairs of lora_down and lora_up, or lora_A and lora_B")


def _change(path: Path, layer: str, found: Mapping[str, np.ndarray], scale: Callable[[int], float]) -> Change:
    """The change that the tensors of one layer make. Raises CartoucheError where they do not belong together."""
    if missing := {"down", "up"} - found.keys():
        raise CartoucheError(f"{path} has no {missing.pop()} matrix of {layer}; the file is not whole")
    down, up, mid = found["down"], found["up"], found.get("mid")
    for role, tensor in found.items():
        if not np.isfinite(tensor).all():
            raise CartoucheError(f"{path} holds numbers that are not finite: {role} of {layer}; train it anew")
    odd = down.ndim < 2 or up.ndim < 2 or (mid is not None and mid.ndim != 4) or 0 in (*down.shape, *up.shape)
    if odd or math.prod(up.shape[2:]) != 1 or (mid is not None and math.prod(down.shape[2:]) != 1):
        raise CartoucheError(
            f"{path}: {layer} has matrices of {down.shape} and {up.shape}; wanted (r, in) and (out, r)"
        )
    rank = down.shape[0]
    if "alpha" not in found:
        return Change(down, up, scale(rank), mid)
    if found["alpha"].size != 1:
        raise CartoucheError(f"{path}: alpha of {layer} has shape {found['alpha'].shape}; wanted one number")
    return Change(down, up, float(found["alpha"].reshape(())) / rank, mid)


def _settings(path: Path, peft: bool) -> dict[str, dict[str, Any]]:
    """What is said of alpha outside the tensors: part -> settings, by peft ("" for all parts) or by diffusers."""
    if peft:
        beside = path.with_name(PEFT_CONFIG)
        if not beside.is_file():
            raise CartoucheError(f"{path} is an adapter of peft; wanted its {PEFT_CONFIG} beside it, which says alpha")
        return {"": folders.read_json(beside)}
    try:
        said = json.loads(safetensors.metadata(path).get(DIFFUSERS_METADATA, "{}"))
        parted = [(*name.split(".", 1), value) for name, value in said.items() if "." in name]
    except (ValueError, AttributeError, RecursionError):
        raise CartoucheError(f"{path}: its {DIFFUSERS_METADATA} is damaged; wanted a JSON object") from None
    found: dict[str, dict[str, Any]] = {}
    for part, name, value in parted:
        found.setdefault(part, {})[name] = value
    return found


def _scale(path: Path, settings: Mapping[str, Any], layer: str, rank: int) -> float:
    """alpha / rank as the settings say it, else 1; or alpha / sqrt(rank) (Kalajdzievski, arXiv 2312.03732)."""
    if settings.get("use_dora"):
        raise CartoucheError(f"{path} is DoRA, which is not known here; wanted a LoRA")
    patterns = settings.get("alpha_pattern")
    own = patterns.items() if isinstance(patterns, dict) else ()
    alpha = next((value for end, value in own if f".{layer}".endswith(f".{end}")), None)
    alpha = settings.get("lora_alpha", rank) if alpha is None else alpha
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= LARGEST_ALPHA:
        raise CartoucheError(f"{path}: alpha of {layer} is {alpha!r}; wanted a number")
    return float(alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank))


def _spellings(shapes: Mapping[str, Shape], stored: Callable[[str], str] | None) -> dict[str, str]:
    """Every way in which a file may spell a layer -> the name of its weight."""
    found: dict[str, str] = {}
    for name, shape in shapes.items():
        layer = name.removesuffix(".weight")
        if layer == name or layer.endswith("_embedding") or len(shape) not in (2, 4):
            continue
        ways = [layer, layer.removeprefix("text_model."), re.sub(r"\.to_out\.0$", ".to_out", layer)]
        ways.append(re.sub(r"self_attn\.(q|k|v|out)_proj$", r"self_attn.to_\1", layer))
        ways += [stored(name).removesuffix(".weight")] if stored else []
        for way in ways:
            found[way] = found[way.replace(".", "_")] = name
    return found


def _matrix(tensor: np.ndarray) -> np.ndarray:
    return tensor.astype(np.float32).reshape(tensor.shape[0], -1)
