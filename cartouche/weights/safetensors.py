"""safetensors, written so that a power cut leaves the old file or the new one, and read so that nothing is ever run.

The layout is the public one: 8 bytes of header length, a JSON header, the tensors' bytes. The library `safetensors`
reads and checks; the writer is ours because theirs neither syncs nor respects the user's file mode.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cartouche.config import CartoucheError

if TYPE_CHECKING:
    import torch

NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
PICKLED = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
ALIGNMENT = 64  # so that a graph's external data and memory maps start on a cache line


class Entry(NamedTuple):
    """Where one tensor lies in the file: `start` and `stop` are byte offsets from the file's beginning."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def write(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> str:
    """Create `path` with these tensors (torch or numpy), synced to the disk; returns the file's sha256.

    No rename: this is for a file in a folder that is itself renamed later. Elsewhere use `save`.
    """
    digest = hashlib.sha256()
    with open(path, "xb") as file:
        for piece in _pieces(tensors, metadata or {}):
            file.write(piece)
            digest.update(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def save(path: Path | str, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> str:
    """Write `path` whole or not at all: temporary file beside it, fsync, rename, fsync of the folder.

    The file gets the ordinary mode (0666 less the umask). Returns its sha256. Raises CartoucheError for tensors that
    the format cannot hold, OSError where the disk refuses; the old file is then untouched and no temporary is left.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        digest = write(temporary, tensors, metadata)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return digest


def load(path: Path | str, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file as torch tensors on `device`. Raises CartoucheError for anything else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = checked(path)
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise CartoucheError(f"cannot read {path} as safetensors: {error}") from error


def load_numpy(path: Path | str) -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file as numpy arrays, without torch; bf16 is widened to float32, exactly."""
    path = checked(path)
    entries = layout(path)
    kinds = {code: np.dtype(name) for name, code in NAMES.items() if name != "bfloat16"}
    found = {}
    with open(path, "rb") as file:
        for name, entry in entries.items():
            file.seek(entry.start)
            data = file.read(entry.stop - entry.start)
            if entry.dtype == "BF16":
                wide = np.frombuffer(data, np.uint16).astype(np.uint32) << np.uint32(16)
                found[name] = wide.view(np.float32).reshape(entry.shape)
            elif entry.dtype in kinds:
                found[name] = np.frombuffer(data, kinds[entry.dtype]).reshape(entry.shape).copy()
            else:
                raise CartoucheError(f"{path}: tensor {name!r} is {entry.dtype}, which numpy cannot hold")
    return found


def layout(path: Path | str) -> dict[str, Entry]:
    """Name -> where the tensor lies. The file is validated whole by the library first."""
    from safetensors import SafetensorError, safe_open

    path = checked(path)
    try:
        with safe_open(path, framework="numpy"):
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CartoucheError(f"cannot read {path} as safetensors: {error}") from error
    header.pop("__metadata__", None)
    base = 8 + length
    return {
        name: Entry(one["dtype"], tuple(one["shape"]), base + one["data_offsets"][0], base + one["data_offsets"][1])
        for name, one in header.items()
    }


def metadata(path: Path | str) -> dict[str, str]:
    """The text that was stored with the tensors."""
    from safetensors import SafetensorError, safe_open

    path = checked(path)
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CartoucheError(f"cannot read {path} as safetensors: {error}") from error


def checked(path: Path | str) -> Path:
    """The path, if it is a file that is not a pickle under any name; CartoucheError otherwise."""
    path = Path(path)
    if not path.is_file():
        raise CartoucheError(f"no weights at {path}; wanted a .safetensors file")
    with open(path, "rb") as file:
        start = file.read(10)
    if path.suffix.lower() in PICKLED or (start[8:9] != b"{" and start[:1] in (b"P", b"\x80")):
        raise CartoucheError(f"{path} is a pickle, which can run code when opened; wanted a .safetensors file")
    return path


def sync_folder(folder: Path | str) -> None:
    """Make the names inside a folder durable (after a rename). Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _pieces(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The file's bytes: header length, header padded to ALIGNMENT, then each tensor, widest elements first."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    described = {name: _describe(name, one) for name, one in tensors.items()}
    order = sorted(tensors, key=lambda name: (-described[name][2], name))
    offset = 0
    for name in order:
        kind, shape, width = described[name]
        size = width * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in order:
        yield _bytes(tensors[name])


def _describe(name: str, tensor: Any) -> tuple[str, list[int], int]:
    kind = str(tensor.dtype).removeprefix("torch.")
    if name == "__metadata__" or kind not in NAMES:
        raise CartoucheError(f"tensor {name!r} of type {kind} cannot be stored; known types: {', '.join(NAMES)}")
    return NAMES[kind], [int(one) for one in tensor.shape], int(tensor.dtype.itemsize)


def _bytes(tensor: Any) -> memoryview:
    if not isinstance(tensor, np.ndarray):
        import torch

        flat = tensor.detach().cpu().contiguous().reshape(-1)
        return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")
    flat_array = np.ascontiguousarray(tensor.astype(tensor.dtype.newbyteorder("<"), copy=False)).reshape(-1)
    return flat_array.view(np.uint8).data if flat_array.size else memoryview(b"")
