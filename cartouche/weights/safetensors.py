"""safetensors, written so that a power cut leaves the old file or the new one, and read so that nothing is ever run.

The layout is the public one: 8 bytes of header length, a JSON header, the tensors' bytes. The library `safetensors`
reads and checks; the writer is ours because theirs neither syncs nor respects the user's file mode.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from cartouche import files
from cartouche.config import CartoucheError, shown

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
PICKLE_STARTS = (b"PK\x03\x04", b"\x80", b"\x93NUMPY")  # torch's zip, a bare pickle, an array that may hold objects
HEADER_BYTES = 100_000_000  # the format's own limit
MOST_TENSORS = 100_000  # the largest published shards have a few thousand
MOST_AXES = 16
LARGEST = 2**56  # numbers in a tensor, so that the bytes can be counted
ALIGNMENT = 64  # so that a graph's external data and memory maps start on a cache line


class Entry(NamedTuple):
    """Where one tensor lies in the file: `start` and `stop` are byte offsets from the file's beginning."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def numbers(self) -> int:
        """How many it holds."""
        return math.prod(self.shape)


def write(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> str:
    """Create `path` with these tensors (torch or numpy), synced to the disk; returns the file's sha256.

    No rename: this is for a file in a folder that is itself renamed later. Elsewhere use `save`.
    """
    with files.created(path) as file:
        return put(file, tensors, metadata or {})


def save(path: Path | str, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> str:
    """Write `path` whole or not at all; returns the file's sha256.

    Raises CartoucheError for tensors that the format cannot hold, OSError where the disk refuses; the old file is then
    untouched.
    """
    with files.whole(path) as file:
        return put(file, tensors, metadata or {})


def load(path: Path | str, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file as torch tensors on `device`. Raises CartoucheError for anything else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    layout(path)
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:  # KeyError: a type torch has not
        raise CartoucheError(f"cannot read {path} as safetensors: {shown(error)}") from error


def load_numpy(path: Path | str, only: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as numpy arrays, without torch; bf16 is widened to float32, exactly.

    only: the names that are wanted; those that the file lacks are left out. Without it, all of them.
    """
    entries = {name: entry for name, entry in layout(path).items() if only is None or name in only}
    kinds = {code: np.dtype(name) for name, code in NAMES.items() if name != "bfloat16"} | {"BF16": np.dtype(np.uint16)}
    found = {}
    with open(path, "rb") as file:
        for name, entry in entries.items():
            if entry.dtype not in kinds:
                raise CartoucheError(f"{path}: tensor {name!r} is {entry.dtype}, which numpy cannot hold")
            file.seek(entry.start)
            flat = np.fromfile(file, kinds[entry.dtype], math.prod(entry.shape))
            if entry.dtype == "BF16":
                flat = (flat.astype(np.uint32) << np.uint32(16)).view(np.float32)
            found[name] = flat.reshape(entry.shape)
    return found


def mapped(path: Path | str) -> dict[str, np.ndarray]:
    """The float32, float16 and bf16 tensors of a file, mapped from the disk, not read; bf16 as its bits, in uint16."""
    kinds = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    entries = layout(path)
    whole = np.memmap(path, np.uint8, "c")  # openvino wants memory that can be written; it would be this process's own
    known = {name: entry for name, entry in entries.items() if entry.dtype in kinds}
    return {name: np.ndarray(one.shape, kinds[one.dtype], whole, one.start) for name, one in known.items()}


def forget(array: np.ndarray) -> None:
    """Give the memory of the file that `array` is mapped from back to the system; what is touched again is read again.

    Only for arrays that nobody has written to. Anything but a `mapped` array stays as it is.
    """
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def layout(path: Path | str) -> dict[str, Entry]:
    """Name -> where the tensor lies. Raises CartoucheError for a file that is not safetensors to the last byte."""
    return _opened(path)[0]


def metadata(path: Path | str) -> dict[str, str]:
    """The text that was stored with the tensors."""
    return _opened(path)[1]


def checked(path: Path | str) -> Path:
    """The path, if it is a file that may be safetensors, and not a pickle under any name; CartoucheError otherwise."""
    path = Path(path)
    if not path.is_file():
        raise CartoucheError(f"no weights at {path}; wanted a .safetensors file")
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CartoucheError(f"cannot read {path}: {error.strerror or error}") from error
    if path.suffix.lower() in PICKLED or (start[8:] != b"{" and start.startswith(PICKLE_STARTS)):
        raise CartoucheError(
            f"{path} is a pickle, which can run code when opened; wanted a .safetensors file: "
            "make one with `cartouche weights convert`"
        )
    if start[8:] != b"{":
        raise CartoucheError(f"{path} is not a safetensors file: its header does not begin with {{")
    return path


def _opened(path: Path | str) -> tuple[dict[str, Entry], dict[str, str]]:
    """What a file's header says, once it is known that the file keeps to the format."""
    from safetensors import SafetensorError, safe_open

    path = checked(path)
    try:
        header, base = _header(path)
        with safe_open(path, framework="numpy"):  # the library checks every type, shape and place
            pass
        said = json.loads(header, object_pairs_hook=_without_twins)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CartoucheError(f"cannot read {path} as safetensors: {shown(error)}") from error
    text = dict(said.pop("__metadata__", None) or {})
    entries = {name: _entry(one, base) for name, one in said.items()}
    _check_entries(path, entries)
    return entries, text


def _header(path: Path) -> tuple[bytes, int]:
    """The JSON of a header and where the numbers begin. Raises ValueError before reading what no model has."""
    with open(path, "rb") as file:
        length, size = int.from_bytes(file.read(8), "little"), path.stat().st_size
        if length > min(HEADER_BYTES, size - 8):
            raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
        header = file.read(length)
    if (count := header.count(b"{") - 1) > MOST_TENSORS:
        raise ValueError(f"{count:,} tensors; wanted {MOST_TENSORS:,} at most")
    return header, 8 + length


def _entry(said: Mapping[str, Any], base: int) -> Entry:
    start, stop = said["data_offsets"]
    return Entry(said["dtype"], tuple(said["shape"]), base + start, base + stop)


def _check_entries(path: Path, entries: Mapping[str, Entry]) -> None:
    """What the library lets pass: shapes that no array can have, and tensors of no numbers in one place."""
    places = set()
    for name, one in entries.items():
        if len(one.shape) > MOST_AXES or math.prod(size or 1 for size in one.shape) > LARGEST:
            raise CartoucheError(f"{path}: tensor {shown(name)!r} has a shape that no array can have")
        if (one.start, one.stop) in places and one.shape != (0,):  # files mark things by names alone: v_pred, ztsnr
            raise CartoucheError(f"{path}: tensor {shown(name)!r} lies where another one lies")
        places.add((one.start, one.stop))


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def put(file: BinaryIO, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """Write a whole safetensors file into an open one; returns the sha256 of what was written."""
    digest = hashlib.sha256()
    for piece in _pieces(tensors, metadata):
        file.write(piece)
        digest.update(piece)
    return digest.hexdigest()


def _pieces(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The file's bytes: header length, header padded to ALIGNMENT, then each tensor, widest elements first."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    described = {name: _describe(name, one) for name, one in tensors.items()}
    order = sorted(tensors, key=lambda name: (-described[name][2], name))
    if len(empty := [name for name in order if 0 in described[name][1]]) > 1:
        raise CartoucheError(f"tensors {empty[0]!r} and {empty[1]!r} hold no number; at most one such can be stored")
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
