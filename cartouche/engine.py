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
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cartouche.config import CartoucheError, unknown
from cartouche.device import Precision, processors

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "fp32", "bf16")
CACHE_BYTES = 4 << 30  # a Stable Diffusion of 1.7 GB fits twice
_SAMPLED_BYTES = 4096
_SAMPLES = 256
_KEPT = "kept in fp32: "
_BOUND = re.compile(rb"safetensors-header-([0-9a-f]{64})")
"""A graph says which header its weights file had: it refers to places in that file."""


class Net(Protocol):
    """A stored net, ready to run."""

    precision: str
    """What it computes in: "fp32" or "bf16"."""

    def __call__(self, **arrays: np.ndarray) -> Any:
        """The outputs for inputs given by name: one array, or a tuple of arrays. Floats come back as float32."""


class OpenVINONet:
    """An ONNX graph compiled for this processor. One call at a time; further threads wait.

    precision: "fp32", "bf16", or "auto": bf16 where the processor multiplies it natively.
    """

    def __init__(self, graph: Path | str, precision: Precision = "auto", cache: CompileCache | None = None) -> None:
        self.graph = Path(graph)
        if not self.graph.is_file():
            raise CartoucheError(f"no graph at {self.graph}; write it with `cartouche weights export FOLDER`")
        core = _core()
        native = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision = _choose(precision, native)
        cache = cache or CompileCache.default()
        self._compiled = _compile(core, self.graph, self.precision, cache)
        self._request = self._compiled.create_infer_request()
        self._outputs = [port for port in self._compiled.outputs if not port.any_name.startswith(_KEPT)]
        self._lock = threading.Lock()
        self.inputs = {one.any_name: one.element_type.to_dtype() for one in self._compiled.inputs}

    def __call__(self, **arrays: np.ndarray) -> Any:
        """The graph's outputs. Raises CartoucheError where a name is missing or unknown, or a shape does not fit."""
        _check_names(self.graph.name, arrays, self.inputs)
        given = {name: np.ascontiguousarray(arrays[name], kind) for name, kind in self.inputs.items()}
        with self._lock:
            try:
                results = self._request.infer(given, share_inputs=True)
            except RuntimeError as error:
                shapes = ", ".join(f"{name} {array.shape}" for name, array in given.items())
                raise CartoucheError(f"{self.graph} cannot run on {shapes}: {_last_line(error)}") from error
            outputs = tuple(results[port] for port in self._outputs)
        return outputs[0] if len(outputs) == 1 else outputs


class TorchNet:
    """A torch module, or one of its methods, behind the same face.

    module: its parameters say the device. call: the method to run, `forward` if not given; its parameter names are the
    input names.
    precision: "fp32", "bf16", or "auto": bf16 on a GPU that has it. In bf16 the module itself is converted.
    """

    def __init__(self, module: torch.nn.Module, precision: Precision = "auto", call: str = "forward") -> None:
        import torch

        parameter = next(module.parameters())
        native = parameter.device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.precision = _choose(precision, native)
        self._kind = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self._device = parameter.device
        self._call: Callable[..., Any] = getattr(module.to(self._kind).eval(), call)
        self.inputs = {
            name: None
            for name, one in inspect.signature(self._call).parameters.items()
            if one.default is inspect.Parameter.empty
        }
        self._name = type(module).__name__

    def __call__(self, **arrays: np.ndarray) -> Any:
        """The module's outputs as numpy arrays. Raises CartoucheError where a name is missing or unknown."""
        import torch

        _check_names(self._name, arrays, self.inputs)
        with torch.inference_mode():
            outputs = self._call(**{name: self._tensor(array) for name, array in arrays.items()})
        if isinstance(outputs, tuple):
            return tuple(_array(one) for one in outputs)
        return _array(outputs)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        """On the module's device, in its precision; time steps, one number a row, stay exact."""
        import torch

        tensor = torch.from_numpy(np.array(array)).to(self._device)
        return tensor.to(self._kind) if tensor.is_floating_point() and tensor.ndim > 1 else tensor


@dataclass(frozen=True)
class CompileCache:
    """A folder of compiled graphs, at most `limit` bytes: the least recently used go first. Safe to delete at any time.

    A folder that cannot be written is no error: graphs are then compiled each time.
    """

    folder: Path
    limit: int = CACHE_BYTES

    @classmethod
    def default(cls) -> CompileCache:
        """`$XDG_CACHE_HOME/cartouche`, or `~/.cache/cartouche`."""
        root = os.environ.get("XDG_CACHE_HOME", "")
        return cls((Path(root) if os.path.isabs(root) else Path("~/.cache").expanduser()) / "cartouche" / "compiled")

    def read(self, key: str) -> np.ndarray | None:
        """The bytes stored under `key`, mapped from the disk; None where there are none or they are damaged."""
        path = self.folder / key
        try:
            whole = np.memmap(path, np.uint8, "r")
            os.utime(path)
        except (OSError, ValueError):
            return None
        blob, check = whole[:-4], whole[-4:].tobytes()
        return blob if zlib.crc32(blob.data) == int.from_bytes(check, "little") else None

    def write(self, key: str, blob: bytes | memoryview) -> None:
        """Store whole or not at all, then drop the oldest until the folder is within its limit."""
        if len(blob) + 4 > self.limit:
            return
        temporary = self.folder / f"{key}.{os.getpid()}.{threading.get_ident()}.tmp"
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                with open(temporary, "xb") as file:
                    file.write(blob)
                    file.write(zlib.crc32(blob).to_bytes(4, "little"))
                os.replace(temporary, self.folder / key)
            finally:
                temporary.unlink(missing_ok=True)
            self.prune()

    def drop(self, key: str) -> None:
        """Forget what is stored under `key`."""
        with suppress(OSError):
            (self.folder / key).unlink(missing_ok=True)

    def prune(self) -> None:
        """Delete the least recently used files, those of a killed process among them, until `limit` holds."""
        found = []
        for path in self.folder.iterdir():
            with suppress(OSError):
                found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        excess = sum(size for _, size, _ in found) - self.limit
        for _, size, path in sorted(found):
            if excess <= 0:
                return
            with suppress(OSError):
                path.unlink()
                excess -= size


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
def _core() -> Any:
    """The one core of this process, kept to its end.

    OpenVINO's CPU plugin gives the main thread a stack for signal handlers and frees it with the last core; the next
    signal that Python handles (a Ctrl-C, a child's end) would then crash the process.
    """
    return openvino_runtime().Core()


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """While inside, importing `name` fails as if it were not installed; openvino itself provides for that."""
    modules: dict[str, Any] = sys.modules
    modules[name] = None
    try:
        yield
    finally:
        del modules[name]


def _compile(core: Any, graph: Path, precision: str, cache: CompileCache) -> Any:
    """The compiled graph, from the cache where it has it."""
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(processors()),
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
    }
    _check_weights(graph)
    key = _key(graph, {**settings, "openvino": openvino_runtime().get_version(), "cpu": _processor(core)})
    blob = cache.read(key)
    if blob is not None:
        try:
            return core.import_model(openvino_runtime().Tensor(blob), "CPU", settings)
        except RuntimeError:  # of another build in spite of the key: compile anew
            cache.drop(key)
    try:
        model = core.read_model(graph)
        if precision == "bf16":
            _keep_angles(model)
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise CartoucheError(f"cannot read {graph} and the weights beside it: {_last_line(error)}") from error
    cache.write(key, compiled.export_model().getbuffer())
    return compiled


def _check_weights(graph: Path) -> None:
    """Refuse a graph whose weights file was written anew since: its references would point at other tensors."""
    bound = _BOUND.search(graph.read_bytes())
    if bound and bound[1].decode() not in map(header_digest, graph.parent.glob("*.safetensors")):
        raise CartoucheError(
            f"{graph} does not belong to the weights beside it, or they are missing; "
            f"write it again with `cartouche weights export {graph.parent}`"
        )


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
