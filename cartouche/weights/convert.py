"""Pickled checkpoints (.ckpt, .pt, .pth, .bin) to safetensors: when asked, offline, in a process that can do no harm.

A pickle can run code when it is opened, so nothing else in this package opens one. See `unpickle.py` for what the other
process may do.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import cartouche
from cartouche import files
from cartouche.config import CartoucheError
from cartouche.weights import safetensors

OLDEST_TORCH = (2, 10)
KEPT_VARIABLES = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "LANG")


class Converted(NamedTuple):
    """What became of a checkpoint. left: names of what it held beside weights, which was left out."""

    path: Path
    tensors: int
    parameters: int
    left: tuple[str, ...]


def convert(
    source: Path | str,
    target: Path | str | None = None,
    *,
    force: bool = False,
    memory: int | None = None,
    seconds: int | None = None,
) -> Converted:
    """Write the tensors of a pickled checkpoint as safetensors, whole or not at all.

    target: the source's name with .safetensors, if not given; an older file is replaced only where `force`. memory,
    seconds: what the reading process may take, in bytes above torch itself and in seconds of processor time; by default
    three times the file and a gigabyte, and two minutes, with one more for each gigabyte.
    Raises CartoucheError for what is not a checkpoint of numbers alone, and where torch is missing or too old.
    """
    source = Path(source)
    if not source.is_file():
        raise CartoucheError(f"no checkpoint at {source}; wanted a .ckpt, .pt, .pth or .bin file")
    target = source.with_suffix(".safetensors") if target is None else Path(target)
    if target.is_dir():
        raise CartoucheError(f"{target} is a folder; give the name of a file in it")
    if target.exists() and not force:
        raise CartoucheError(f"{target} exists already; choose another name, or --force to write over it")
    check_torch()
    size = source.stat().st_size
    memory = 3 * size + (1 << 30) if memory is None else memory
    seconds = 120 + 60 * (size >> 30) if seconds is None else seconds
    with files.whole(target, force=force) as file:
        said = _unpickled(source, file.fileno(), memory, seconds, 2 * size + (16 << 20))
        safetensors.layout(file.name)
    return Converted(target, int(said["tensors"]), int(said["parameters"]), tuple(map(str, said["left"])))


def check_torch() -> None:
    """Refuse a torch whose `weights_only` can be got round. Raises CartoucheError."""
    wanted = ".".join(map(str, OLDEST_TORCH))
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        raise CartoucheError(f"reading a pickle needs torch >= {wanted}; pip install 'cartouche-ai[torch]'") from None
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_TORCH:
        raise CartoucheError(
            f"torch {version} is installed, which can be made to run code even with weights_only; install >= {wanted}"
        )


def _unpickled(source: Path, output: int, memory: int, seconds: int, room: int) -> dict[str, Any]:
    """Let the other process read `source` and write into the open file `output`; returns what it said."""
    limits = [str(memory), str(seconds), str(room)]
    command = [sys.executable, "-B", "-P", "-W", "ignore", "-m", "cartouche.weights.unpickle", str(source.resolve())]
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    kept |= {"PYTHONPATH": os.pathsep.join(_places()), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [*command, *limits],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            env=kept,
            timeout=4 * seconds + 60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CartoucheError(f"{source} is refused: reading it did not end") from None
    said = _last_words(done.stderr)
    if done.returncode == 0 and "tensors" in said:
        return said
    raise CartoucheError(f"{source} is refused: {said.get('error') or _ended(done.returncode, seconds)}")


def _places() -> list[str]:
    """Where the other process finds this package, and what this one was told."""
    return [str(Path(cartouche.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]


def _last_words(stderr: bytes) -> dict[str, Any]:
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    try:
        said = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _ended(code: int, seconds: int) -> str:
    """What to say of a process that could not speak for itself."""
    if code in (-getattr(signal, "SIGXCPU", 24), -getattr(signal, "SIGKILL", 9)):
        return f"reading it took more than {seconds} s of processor time, or more memory than there is"
    return f"the process that read it ended with code {code}"
