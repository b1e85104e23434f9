"""A net as an ONNX graph without numbers: its external data are the tensors inside the safetensors file beside it.

So the weights are stored once, torch reads them as weights, and OpenVINO or ONNX Runtime read them as a graph.
Half-precision tensors are followed by a Cast to float32 in the graph; the engine decides what it computes in.

How a weight is found again in what the exporter made: a copy of the net gets random weights, no two alike, before it is
exported. Every constant of the graph is then either exactly one weight, perhaps transposed or reshaped, and becomes a
reference to it; or it is no weight, and stays inline.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cartouche import files
from cartouche.config import CartoucheError
from cartouche.weights import folder as folders
from cartouche.weights import ports, safetensors
from cartouche.weights.ports import Port
from cartouche.weights.source import GRAPHS

if TYPE_CHECKING:
    import torch

OPSET = 20
LARGEST_CONSTANT = 1 << 20  # bytes; more that is not a weight means that the exporter computed with weights
PARTS = ("text_encoder", "unet", "vae", "clip", "detector", "segmenter", "captioner")

ONNX_TYPES = {"F32": "FLOAT", "F16": "FLOAT16", "BF16": "BFLOAT16"}


class Stored(NamedTuple):
    """One weight in a safetensors file: the file, the name it has there, and where it lies."""

    file: str
    name: str
    entry: safetensors.Entry


def export(folder: Path | str) -> list[Path]:
    """Write the graphs of a pipeline folder, or of a folder that holds one net; returns their paths.

    `unet/graph.onnx`, `vae/decoder.onnx`, `clip/encode_text.onnx` and so on, as ports.py has them. Weights and graph
    belong together: export again when the weights file is written again. Raises CartoucheError where the folder holds
    no net that has a graph.
    """
    folder = Path(folder)
    if (folder / "config.json").is_file():
        return export_net(folder)
    parts = [folder / name for name in PARTS if (folder / name / "config.json").is_file()]
    if not parts:
        raise CartoucheError(f"{folder} holds no net; wanted config.json, or sub-folders {', '.join(PARTS)}")
    return [path for part in parts for path in export_net(part)]


def export_net(folder: Path | str) -> list[Path]:
    """Write the graph, or graphs, of the net in this folder. Its numbers are not read, only where they lie."""
    folder = Path(folder)
    config = folders.read_json(folder / "config.json")
    net = folders.build(config, folder / "config.json").eval()
    weights = folders.weights_file(folder)
    stored = _stored(net, config, weights)
    header = _header_digest(weights, stored)
    _mark(net)
    names = {call: GRAPHS.get(call, f"{call}.onnx") for call in ports.calls(net)}
    return [_write(folder / name, _graph(net, call, stored, header)) for call, name in names.items()]


def template(net: torch.nn.Module, call: str) -> Any:
    """The ONNX model of one of the net's methods without any number: its weights are inputs, under their own names.

    The net may lie on the meta device, so that one of any size takes no memory. See template.py, which fills it.
    """
    import torch
    from onnxscript import optimizer

    with torch.device("meta"):
        inputs = ports.inputs(net, call)
    model = _exported(net, call, inputs, optimize=False)
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        del graph.initializers[name]
        value.const_value, value.name = None, name.removeprefix("net.")
        graph.inputs.append(value)
    optimizer.optimize(model)
    for i, node in enumerate(graph):
        node.name = str(i)
    return _plain(model, inputs)


def _stored(net: torch.nn.Module, config: Mapping[str, Any], weights: Path) -> dict[str, Stored]:
    """Where each of the net's weights lies in the file."""
    layout = safetensors.layout(weights)
    kinds = (type(net).__name__, str(config.get("model_type")))
    found = folders.renamed({name: Stored(weights.name, name, entry) for name, entry in layout.items()}, *kinds)
    wanted = {name: tuple(one.shape) for name, one in net.state_dict().items()}
    folders.check_names({name: one.entry.shape for name, one in found.items()}, wanted, weights)
    return found


def _header_digest(weights: Path, stored: Mapping[str, Stored]) -> str:
    """sha256 of all that comes before the numbers: a file with another header has its tensors elsewhere."""
    with open(weights, "rb") as file:
        return hashlib.sha256(file.read(min(one.entry.start for one in stored.values()))).hexdigest()


def _graph(net: torch.nn.Module, call: str, stored: Mapping[str, Stored], header: str) -> Any:
    """The ONNX model of one of the net's methods, its weights references into the file."""
    import onnx

    inputs = ports.inputs(net, call)
    model = _exported(net, call, inputs)
    _refer(model.graph, dict(net.named_parameters()), stored)
    proto = _plain(model, inputs)
    onnx.helper.set_model_props(proto, {"weights": f"safetensors-header-{header}"})  # read by engine.py
    return proto


def _mark(net: torch.nn.Module) -> None:
    """Random numbers into every weight, so that none equals another or a constant of the architecture."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0.0, 0.02, generator=generator)


def _exported(net: torch.nn.Module, call: str, inputs: Mapping[str, Port], optimize: bool = True) -> Any:
    """torch's own exporter, quiet, with the axes of `inputs` dynamic. optimize: fold what is constant."""
    import torch

    dynamic = torch.export.Dim.DYNAMIC
    shapes = tuple({i: dynamic for i, axis in enumerate(port.axes) if axis} for port in inputs.values())
    examples = tuple(port.example for port in inputs.values())
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _method(net, call),
            examples,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=ports.outputs(net, call),
            dynamic_shapes=(shapes,),
            verbose=False,
            optimize=optimize,
        )
    return program.model  # type: ignore[union-attr]


def _refer(graph: Any, weights: Mapping[str, torch.Tensor], stored: Mapping[str, Stored]) -> None:
    """Put a reference into the file in place of every initialiser that is a weight."""
    known: dict[bytes, tuple[str, bool]] = {}
    for name, weight in weights.items():
        if weight.ndim == 2:
            known[_digest(weight.detach().numpy().T)] = (name, True)
        known[_digest(weight.detach().numpy())] = (name, False)
    nodes: list[Any] = []
    wide: dict[str, Any] = {}
    for name, value in list(graph.initializers.items()):
        array = value.const_value.numpy()
        match = known.get(_digest(array))
        if match is None:
            _check_constant(name, array)
            continue
        source, turned = match
        if source not in wide:
            wide[source] = _reference(graph, nodes, stored[source])
        del graph.initializers[name]
        value.replace_all_uses_with(_shaped(graph, nodes, wide[source], weights[source], turned, array.shape))
    graph.insert_before(graph[0], nodes)


def _reference(graph: Any, nodes: list[Any], stored: Stored) -> Any:
    """A value of the graph that is a tensor of the file, widened to float32 where it is stored shorter."""
    import onnx_ir as ir

    start, stop = stored.entry.start, stored.entry.stop
    kind, shape = ir.DataType[ONNX_TYPES[stored.entry.dtype]], ir.Shape(stored.entry.shape)
    tensor = ir.ExternalTensor(stored.file, start, stop - start, kind, shape=shape, name=stored.name)
    value = ir.Value(name=stored.name, shape=shape, type=ir.TensorType(kind), const_value=tensor)
    graph.register_initializer(value)
    if kind == ir.DataType.FLOAT:
        return value
    return _then(nodes, "Cast", [value], {"to": ir.DataType.FLOAT}, f"{stored.name}.wide")


def _shaped(
    graph: Any, nodes: list[Any], value: Any, weight: torch.Tensor, turned: bool, shape: tuple[int, ...]
) -> Any:
    """The weight as the exporter wanted it: transposed, or of another shape."""
    import numpy as np
    import onnx_ir as ir

    now = tuple(weight.shape)
    if turned and now[::-1] == shape:
        return _then(nodes, "Transpose", [value], {"perm": [1, 0]}, f"{value.name}.turned")
    if turned or now == shape:
        return value
    name = f"{value.name}.shape"
    wanted = ir.tensor(np.array(shape, np.int64), name=name)
    extent = ir.Value(name=name, shape=ir.Shape([len(shape)]), type=ir.TensorType(wanted.dtype), const_value=wanted)
    graph.register_initializer(extent)
    return _then(nodes, "Reshape", [value, extent], {}, f"{value.name}.shaped")


def _then(nodes: list[Any], operation: str, inputs: list[Any], attributes: dict[str, Any], name: str) -> Any:
    """The output of one more node."""
    import onnx_ir as ir

    output = ir.Value(name=name)
    nodes.append(ir.node(operation, inputs, attributes, outputs=[output], name=f"{name}.node"))
    return output


def _check_constant(name: str, array: Any) -> None:
    """A large table that is no weight was computed from weights, and from the wrong ones."""
    if array.dtype.kind == "f" and array.nbytes > LARGEST_CONSTANT:
        raise CartoucheError(f"the exporter computed {name} {array.shape} from weights; they cannot be shared so")


def _digest(array: Any) -> bytes:
    return hashlib.sha256(str(array.dtype).encode() + array.tobytes()).digest()


def _plain(model: Any, inputs: Mapping[str, Port]) -> Any:
    """The model as a protocol buffer without the exporter's notes, which quote source files and machines' paths."""
    import onnx_ir as ir

    proto = ir.to_proto(model)
    graph = proto.graph
    del graph.value_info[:]
    for part in (proto, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    proto.producer_name, proto.producer_version, graph.name = "cartouche", "", "net"
    for value in graph.input:
        axes = inputs[value.name].axes if value.name in inputs else ()  # a weight has none that change
        for axis, dimension in zip(axes, value.type.tensor_type.shape.dim, strict=bool(axes)):
            if axis:
                dimension.dim_param = axis
    for value in graph.output:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.Clear()
    return proto


def _write(path: Path, proto: Any) -> Path:
    """Write a graph whole or not at all."""
    with files.whole(path) as file:
        file.write(proto.SerializeToString(deterministic=True))
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about itself off the screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _method(net: torch.nn.Module, call: str) -> torch.nn.Module:
    """A module whose forward is one of the net's methods."""
    import torch

    class Method(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, *arrays: torch.Tensor) -> Any:
            return getattr(self.net, call)(*arrays)

    return Method().eval()
