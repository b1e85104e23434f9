"""Two engines behind one face: a stored net runs through OpenVINO on a CPU, or as a torch module anywhere.

Both take named numpy arrays and give numpy arrays (one, or a tuple where the net has several outputs), so that
samplers, guidance and prompts never know which one computes. torch is imported only by `TorchNet`, openvino only by
`OpenVINONet`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cartouche.cache import CompileCache as CompileCache
from cartouche.config import CartoucheError, unknown
from cartouche.device import Precision, exact_matrices, has_bf16, processors

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "fp32", "bf16")
_SAMPLED_BYTES = 4096
_SAMPLES = 256
_KEPT = "kept in fp32: "
_BOUND = re.compile(rb"safetensors-header-([0-9a-f]{64})")
"""A graph says which header its weights file had: it refers to places in that file."""
_LOCATION, _NAME = re.compile(rb"(?:\x08|\x88\x80*\x00)location"), re.compile(rb"\x12([\x01-\x7f])", re.DOTALL)
"""Protobuf's key of an entry that names a file, and what stands before its value: a tag and a length of one byte."""


class Net(Protocol):
    """A stored net, ready to run."""

    precision: str
    """What it computes in: "fp32" or "bf16"."""

    def __call__(self, **arrays: np.ndarray) -> Any:
        """The outputs for inputs given by name: one array, or a tuple of arrays. Floats come back as float32."""


class Graph(Protocol):
    """A graph that lies in no file as it is, such as `weights.template.Template`."""

    def read(self, core: Any, precision: str, change: Callable[[Any], None] | None = None) -> Any:
        """It as openvino's model, changed as asked, ready to be computed in "fp32" or "bf16"."""


class OpenVINONet:
    """A graph compiled for this processor. One call at a time; further threads wait.

    graph: an ONNX file, compiled once for every shape and kept in the cache; or what reads itself: that is compiled
    when first called, for the shapes of that call alone, which is faster, and once more for all where others follow.
    precision: "fp32", "bf16", or "auto": bf16 where the processor multiplies it natively. change: what is done to the
    graph, as openvino reads it, before it is compiled; such a graph is not kept in the cache.
    """

    def __init__(
        self,
        graph: Path | str | Graph,
        precision: Precision = "auto",
        cache: CompileCache | None = None,
        change: Callable[[Any], None] | None = None,
    ) -> None:
        self.graph = Path(graph) if isinstance(graph, str) else graph
        self.precision = _choose(precision, openvino_has_bf16())
        self._lock = threading.Lock()
        self._model: Any = None
        self._request: Any = None
        self._outputs: list[Any] = []
        self._shapes: dict[str, tuple[int, ...]] | None = None
        if isinstance(self.graph, Path):
            if not self.graph.is_file():
                raise CartoucheError(f"no graph at {self.graph}; write it with `cartouche weights export FOLDER`")
            cache = cache or CompileCache.default()
            ports = self._use(_compile(self.graph, self.precision, None if change else cache, change)).inputs
        else:
            self._model = _read(self.graph, self.precision, change)
            ports = self._model.inputs
        self.inputs = {one.any_name: one.element_type.to_dtype() for one in ports}

    def __call__(self, **arrays: np.ndarray) -> Any:
        """The graph's outputs. Raises CartoucheError where a name is missing or unknown, or a shape does not fit."""
        _check_names(getattr(self.graph, "name", str(self.graph)), arrays, self.inputs)
        given = {name: np.ascontiguousarray(arrays[name], kind) for name, kind in self.inputs.items()}
        with self._lock:
            try:
                if self._model is not None:
                    self._fit({name: array.shape for name, array in given.items()})
                results = self._request.infer(given, share_inputs=True)
            except RuntimeError as error:
                shapes = ", ".join(f"{name} {array.shape}" for name, array in given.items())
                raise CartoucheError(f"{self.graph} cannot run on {shapes}: {_last_line(error)}") from error
            outputs = tuple(results[port] for port in self._outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _fit(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Compile for these shapes alone if they are the first, for all if others were."""
        if self._shapes == shapes:
            return
        model, first = self._model, self._shapes is None
        if first:
            model = model.clone()
            model.reshape(shapes)
        self._request, self._outputs, self._shapes = None, [], None  # gone before the next one takes as much memory
        self._use(openvino_core().compile_model(model, "CPU", _settings(self.precision)))
        self._shapes = shapes
        if not first:
            self._model = None

    def _use(self, compiled: Any) -> Any:
        self._request = compiled.create_infer_request()
        self._outputs = [port for port in compiled.outputs if not port.any_name.startswith(_KEPT)]
        return compiled


class TorchNet:
    """A torch module, or one of its methods, behind the same face.

    module: its parameters say the device. call: the method to run, `forward` if not given; its parameter names are the
    input names.
    precision: "fp32", "bf16", or "auto": bf16 where the device multiplies it natively. In bf16 the module itself is
    converted, its maps with the channels last. compiled: by torch's own compiler, anew for every shape; that takes a
    minute or two, and on a CPU a C++ compiler.
    """

    def __init__(
        self, module: torch.nn.Module, precision: Precision = "auto", call: str = "forward", compiled: bool = False
    ) -> None:
        import torch

        self._device = next(module.parameters()).device
        self.precision = _choose(precision, has_bf16(self._device))
        short = self.precision == "bf16"
        self._kind = torch.bfloat16 if short else torch.float32
        self._order = torch.channels_last if short else torch.contiguous_format
        self.module = module.to(self._kind, memory_format=self._order).eval()  # type: ignore[call-overload]
        self._call: Callable[..., Any] = getattr(self.module, call)
        self.inputs = {
            name: None
            for name, one in inspect.signature(self._call).parameters.items()
            if one.default is inspect.Parameter.empty
        }
        self._name = type(module).__name__
        if compiled:
            self._call = _compiled(self._call, self._name)

    def __call__(self, **arrays: np.ndarray) -> Any:
        """The module's outputs as numpy arrays. Raises CartoucheError where a name is missing or unknown."""
        import torch

        _check_names(self._name, arrays, self.inputs)
        tensors = {name: self._tensor(array) for name, array in arrays.items()}
        with torch.inference_mode(), exact_matrices(self._device):
            outputs = self._call(**tensors)
        if isinstance(outputs, tuple):
            return tuple(_array(one) for one in outputs)
        return _array(outputs)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        """On the module's device, in its precision; time steps, one number a row, stay exact."""
        import torch

        tensor = torch.from_numpy(np.array(array)).to(self._device)
        if not tensor.is_floating_point() or tensor.ndim < 2:
            return tensor
        return tensor.to(self._kind, memory_format=self._order if tensor.ndim == 4 else torch.preserve_format)


def _compiled(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A module's method, compiled by torch when it is first called."""
    import torch
    from torch._inductor.exc import InductorError

    quick = torch.compile(call, dynamic=False)

    def run(**tensors: torch.Tensor) -> Any:
        try:
            return quick(**tensors)
        except InductorError as error:
            raise CartoucheError(
                f"torch cannot compile {name}: {_last_line(error)}; install a C++ compiler or use engine=torch"
            ) from error

    return run


def openvino_runtime() -> Any:
    """The openvino module without its converter, whose import would send a telemetry event over the network."""
    converter = "openvino.tools.ovc"
    if converter in sys.modules:
        import openvino

        return openvino
    with _hidden(converter):
        import openvino
    return openvino


@lru_cache(maxsize=1)
def openvino_core() -> Any:
    """The one core of this process, kept to its end.

    Every core's CPU plugin gives the main thread a stack for signal handlers, frees it with the core, and puts back the
    one before, which may be gone by then; the next signal that Python handles (a Ctrl-C, a child's end) would crash the
    process. So whoever makes a core keeps it.
    """
    return openvino_runtime().Core()


def openvino_has_bf16() -> bool:
    """True where OpenVINO computes in bf16 on this processor by itself."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """While inside, importing `name` fails as if it were not installed; openvino itself provides for that."""
    modules: dict[str, Any] = sys.modules
    modules[name] = None
    try:
        yield
    finally:
        del modules[name]


def _settings(precision: str) -> dict[str, str]:
    """How openvino is to compile."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(processors()),
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
    }


def _compile(
    graph: Path, precision: str, cache: CompileCache | None, change: Callable[[Any], None] | None = None
) -> Any:
    """The compiled graph, from the cache where it has it."""
    core, settings = openvino_core(), _settings(precision)
    _check_weights(graph)
    key = _key(graph, {**settings, "openvino": openvino_runtime().get_version(), "cpu": _processor(core)})
    blob = cache.read(key) if cache else None
    if cache and blob is not None:
        try:
            return core.import_model(openvino_runtime().Tensor(blob), "CPU", settings)
        except RuntimeError:  # of another build in spite of the key: compile anew
            cache.drop(key)
    try:
        compiled = core.compile_model(_read(graph, precision, change), "CPU", settings)
    except RuntimeError as error:
        raise CartoucheError(f"cannot read {graph} and the weights beside it: {_last_line(error)}") from error
    if cache:
        cache.write(key, compiled.export_model().getbuffer())
    return compiled


def _read(graph: Path | Graph, precision: str, change: Callable[[Any], None] | None) -> Any:
    """openvino's model of a graph, changed as asked."""
    core = openvino_core()
    if isinstance(graph, Path):
        model = core.read_model(graph)
        if change is not None:
            change(model)
    else:
        model = graph.read(core, precision, change)
    if precision == "bf16":
        _keep_angles(model)
    return model


def _check_weights(graph: Path) -> None:
    """Refuse a graph whose weights file was written anew since: its references would point at other tensors."""
    content = graph.read_bytes()
    if not content.startswith(b"\x08"):  # as every ONNX file; openvino would look for other formats, pickles among them
        raise CartoucheError(f"{graph} is not an ONNX graph; write it again with `cartouche weights export`")
    strange = [place for place in _places(content) if Path(place).name != place]
    if strange:
        raise CartoucheError(f"{graph} takes its weights from {strange[0]!r}; wanted a file beside it, without a path")
    bound = _BOUND.search(content)
    if bound and bound[1].decode() not in map(header_digest, graph.parent.glob("*.safetensors")):
        raise CartoucheError(
            f"{graph} does not belong to the weights beside it, or they are missing; "
            f"write it again with `cartouche weights export {graph.parent}`"
        )


def _places(content: bytes) -> list[str]:
    """The files that an ONNX graph takes numbers from: the values of its entries "location", as protobuf writes them.

    An entry that is not written as every writer does counts as a path of its own, so that none goes unseen.
    """
    found = set()
    for key in _LOCATION.finditer(content):
        value = _NAME.match(content, key.end())
        name = content[value.end() : value.end() + value[1][0]] if value else b"an unusual entry/"
        found.add(name.decode(errors="replace"))
    return sorted(found)


def header_digest(path: Path | str) -> str:
    """sha256 of the header of a safetensors file, which says where each tensor lies; "" for what is no such file."""
    with open(path, "rb") as file:
        length = file.read(8)
        size = int.from_bytes(length, "little")
        if size > os.path.getsize(path):
            return ""
        return hashlib.sha256(length + file.read(size)).hexdigest()


def _keep_angles(model: Any) -> None:
    """Keep the arguments of sines and cosines in fp32: bf16 has eight bits, and would take time step 998 for 1000.

    openvino leaves in fp32 what leads to an output without a matrix product on the way, so every wave becomes an output
    too.
    """
    waves = [node.output(0) for node in model.get_ops() if node.get_type_name() in ("Sin", "Cos")]
    for i, port in enumerate(model.add_outputs(waves) if waves else []):
        port.tensor.set_names({f"{_KEPT}{i}"})


def _key(graph: Path, settings: Mapping[str, str]) -> str:
    """A name for the graph, its weights and the settings: the graph's bytes and a print of every weight file."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(graph.read_bytes())
    for path in sorted(graph.parent.glob("*.safetensors")):
        digest.update(path.name.encode())
        digest.update(_print(path))
    return f"{graph.stem}-{digest.hexdigest()[:32]}"


def _print(path: Path) -> bytes:
    """Size, time of the last change, the head and 256 evenly spaced blocks: a new training changes them all."""
    state = path.stat()
    parts = [f"{state.st_size} {state.st_mtime_ns}".encode()]
    with open(path, "rb") as file:
        for i in range(_SAMPLES):
            file.seek(i * state.st_size // _SAMPLES)
            parts.append(file.read(_SAMPLED_BYTES))
    return hashlib.sha256(b"".join(parts)).digest()


def _processor(core: Any) -> str:
    name = core.get_property("CPU", "FULL_DEVICE_NAME")
    return f"{name} {sorted(core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'))}"


def _choose(precision: str, native: bool) -> str:
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if precision == "auto":
        return "bf16" if native else "fp32"
    return precision


def _check_names(owner: str, given: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if given.keys() != wanted.keys():
        raise CartoucheError(f"{owner} got {', '.join(given) or 'nothing'}; it takes {', '.join(wanted)}")


def _array(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
    return array


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
