"""Graphs that ship without numbers: Stable Diffusion 1, 2 and XL on a CPU without torch, from the weights people have.

A folder of TEMPLATES holds one net: its config.json, the names and shapes of its weights, and for each method that
drawing uses an ONNX graph whose weights are inputs under our own names (scripts/export_graphs.py writes them). A net
with the same configuration, wherever and however its weights are stored, is that graph with each of those inputs
replaced by a constant, which is the tensor itself, mapped from the person's file.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cartouche import files
from cartouche.config import CartoucheError
from cartouche.weights import folder as folders
from cartouche.weights.families import FREE
from cartouche.weights.names import Shape
from cartouche.weights.narrow import narrow
from cartouche.weights.safetensors import forget

TEMPLATES = Path(__file__).parent / "graphs"
WEIGHTS = "weights.json.gz"
ANY = FREE | {"in_channels", "scaling_factor", "shift_factor", "eos_token_id"}
"""Settings that leave the graph as it is: the weights bring the channels that a U-Net takes."""

PER_LEVEL = ("layers_per_block", "attention_head_dim", "transformer_layers_per_block")

Weights = Callable[[Mapping[str, Shape]], Mapping[str, np.ndarray]]
"""From the names and shapes that are wanted to the tensors: float32, float16, or bf16 as its bits in uint16; those of
another kind are left out. Raises CartoucheError where the names and shapes are not those in the file."""


@dataclass(frozen=True)
class Template:
    """A graph of one method of a net, and what fills it.

    path: the graph. weights: gives the tensors. channels: those of a U-Net's input.
    """

    path: Path
    weights: Weights
    channels: int | None = None
    held: list[np.ndarray] = field(default_factory=list, compare=False, repr=False)
    """What models that were read from here share and openvino does not keep alive: they may not outlive this object."""

    def __str__(self) -> str:
        return f"the graph {self.path.parent.name}/{self.path.name}"

    def read(self, core: Any, precision: str, change: Callable[[Any], None] | None = None) -> Any:
        """openvino's model with the weights in it, changed as asked; for "bf16" it is of bfloat16 itself.

        Raises CartoucheError where the weights do not fit.
        """
        held: list[np.ndarray] = []
        model = self._filled(core, held)
        if change is not None:
            change(model)
        if precision == "bf16" and narrow(model, held):
            for one in held:  # the file's own numbers, unless they are bf16, have been rounded
                if one.dtype != np.uint16:
                    forget(one)
            held = [one for one in held if one.dtype == np.uint16]
        self.held.extend(held)
        return model

    def _filled(self, core: Any, held: list[np.ndarray]) -> Any:
        model = core.read_model(content(self.path))
        places = {node.get_friendly_name(): node for node in model.get_parameters()}
        wanted = shapes(self.path.parent)
        if self.channels is not None:
            first = wanted["conv_in.weight"]
            wanted["conv_in.weight"] = (first[0], self.channels, *first[2:])
            places["sample"].set_partial_shape(_free(self.channels))
        given = self.weights(wanted)
        if odd := [name for name in wanted if name not in given]:
            raise CartoucheError(f"{folders.first(odd)}: stored neither as float32, float16 nor bf16; use engine=torch")
        for name in (one for one in wanted if one in places):  # a graph may do without some: decoding does not encode
            held.append(np.require(given[name], requirements=["C", "A"]))
            places[name].output(0).replace(_constant(name, held[-1]))
            model.remove_parameter(places[name])
        model.validate_nodes_and_infer_types()
        return model


def find(config: Mapping[str, Any], call: str, weights: Weights) -> Template | None:
    """The shipped graph of one method of the net with this configuration, or None where there is none."""
    structure = _structure(config)
    for path in sorted(TEMPLATES.glob("*/config.json")):
        graph = path.with_name(f"{call}.onnx.gz")
        if graph.is_file() and _shipped(path) == structure:
            unet = folders.class_of(config) == "UNet2DConditionModel"
            return Template(graph, weights, int(config.get("in_channels", 4)) if unet else None)
    return None


def shapes(folder: Path) -> dict[str, Shape]:
    """The names and shapes of the weights of the net in one folder of TEMPLATES."""
    return {name: tuple(shape) for name, shape in json.loads(content(folder / WEIGHTS)).items()}


def content(path: Path) -> bytes:
    """What a file of TEMPLATES holds."""
    return gzip.decompress(path.read_bytes())


def write(folder: Path | str, config: Mapping[str, Any], calls: Sequence[str]) -> list[Path]:
    """Write the config.json of a net and the graphs of its methods, without numbers; returns their paths. By torch."""
    import torch

    from cartouche.weights import graph

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        net = folders.build(config).eval()
    folders.write_json(folder / "config.json", net.config.to_dict())  # type: ignore[operator, union-attr]
    made = {f"{call}.onnx.gz": graph.template(net, call).SerializeToString(deterministic=True) for call in calls}
    for name, content in (made | {WEIGHTS: json.dumps(folders.shapes(net)).encode()}).items():
        with files.whole(folder / name) as file:
            file.write(gzip.compress(content, mtime=0))
    return [folder / name for name in made]


@cache
def _shipped(path: Path) -> dict[str, Any]:
    return _structure(folders.read_json(path))


def _structure(config: Mapping[str, Any]) -> dict[str, Any]:
    """All settings that the graph depends on, spelled in one way."""
    made = folders.settings(config).to_dict()
    levels = len(made.get("block_out_channels", ()))
    spelled = {name: value for name, value in made.items() if name not in ANY}
    spelled |= {name: [made[name]] * levels for name in PER_LEVEL if isinstance(made.get(name), int)}
    ends = made.get("eos_token_id") in (2, made.get("vocab_size", 0) - 1)  # for either the text ends at the same token
    return spelled | {"class": folders.class_of(config), "ends": ends}


def _constant(name: str, array: np.ndarray) -> Any:
    """The output of a constant that shares the array, widened to float32 where it is shorter."""
    from openvino import Tensor, Type, opset13
    from openvino.op import Constant

    kinds = {np.dtype(np.float32): Type.f32, np.dtype(np.float16): Type.f16, np.dtype(np.uint16): Type.bf16}
    kind = kinds[array.dtype]
    node = Constant(Tensor(array, array.shape, kind), shared_memory=True)
    node.set_friendly_name(name)
    return node.output(0) if kind == Type.f32 else opset13.convert(node, "f32").output(0)


def _free(channels: int) -> Any:
    from openvino import PartialShape

    return PartialShape([-1, channels, -1, -1])
