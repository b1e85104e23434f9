"""Opens every file of some folders with everything that opens files here, and writes down what that set off.

    python hostile_loads.py HARMLESS HOSTILE

The harmless ones first, so that all is imported that opening imports. Then an audit hook listens. Prints JSON: the
events that must not be, and for each file the loaders that took it, or failed otherwise than with a CartoucheError.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cartouche.config import CartoucheError, read_json, read_toml
from cartouche.data import Shards
from cartouche.draw.model import Model
from cartouche.engine import OpenVINONet
from cartouche.images import read_image, read_recipe
from cartouche.read.memory import Memory
from cartouche.text import Tokenizer
from cartouche.train import checkpoint, latents, loop
from cartouche.weights import embeddings, folder, inspect, lora, safetensors, single, source

FORBIDDEN = (
    *("pickle.find_class", "exec", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn"),
    *("subprocess.Popen", "socket.connect", "socket.getaddrinfo", "ctypes.dlopen", "pty.spawn", "webbrowser.open"),
)

CACHE = Path(tempfile.mkdtemp())

LOADERS: dict[str, Callable[[Path], Any]] = {
    "tensors": safetensors.load,
    "arrays": safetensors.load_numpy,
    "layout": safetensors.layout,
    "metadata": safetensors.metadata,
    "info": inspect.info,
    "check": inspect.check,
    "adapter": lora.read,
    "adapter folder": lambda path: lora.read(path.parent),
    "word": embeddings.read,
    "single file": single.SingleFile,
    "autoencoder": single.load_vae,
    "clip": lambda path: single.load_clip(path, "gelu"),
    "source": source.opened,
    "source folder": lambda path: source.opened(path.parent),
    "model": lambda path: Model(path, engine="torch"),
    "model folder": lambda path: Model(path.parent, engine="torch"),
    "net": lambda path: folder.load_net(path.parent),
    "weights of a run": lambda path: loop.load_weights(None, path),  # type: ignore[arg-type]
    "checkpoint": lambda path: checkpoint.verify(path.parent),
    "newest checkpoint": lambda path: checkpoint.newest(path.parent.parent),
    "latents": lambda path: latents.opened(path.parent),
    "tokenizer": lambda path: Tokenizer.load(path.parent),
    "graph": OpenVINONet,
    "json": read_json,
    "toml": read_toml,
    "picture": read_image,
    "recipe": read_recipe,
    "memory": lambda path: Memory.load(path.parent),
    "shard": lambda path: list(Shards(path, cache=CACHE)),
}


def attempts(place: Path) -> dict[str, dict[str, str]]:
    """What came of every loader with every file, but for a plain refusal."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(one for one in place.rglob("*") if one.is_file() and one.name != "config.json"):
        for name, load in LOADERS.items():
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    if not load(path):  # nothing was found in it
                        continue
                outcome = "taken"
            except CartoucheError:
                continue
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"
            found.setdefault(str(path.relative_to(place)), {})[name] = outcome
    return found


def main(harmless: Path, hostile: Path) -> None:
    warnings.simplefilter("ignore")
    attempts(harmless)
    events: list[str] = []
    sys.addaudithook(lambda event, _: events.append(event) if event.startswith(FORBIDDEN) else None)
    found = attempts(hostile)
    seen = list(events)
    pickle.loads(b"cos\ngetcwd\n(tR.")  # to show that the hook hears what it listens for
    sys.stdout.write(json.dumps({"events": seen, "outcomes": found, "heard": events[len(seen) :]}))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    finally:
        shutil.rmtree(CACHE)
