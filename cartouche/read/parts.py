"""Where the reading parts of a model lie, and how they are opened; a part that is missing is asked for by name.

A folder that reads has `clip/`, `detector/`, `segmenter/`, `captioner/` in transformers' layouts, each with a tokenizer
of its own or sharing the `tokenizer/` beside it. A folder that is one such part and nothing else is taken for it, so
that any CLIP folder of the ecosystem can be given in place of a model.
"""

from __future__ import annotations

import hashlib
import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cartouche.config import CartoucheError, read_json, unknown
from cartouche.device import Precision
from cartouche.engine import Net, OpenVINONet, TorchNet
from cartouche.read.prepare import FILES, Preparation
from cartouche.text import Tokenizer
from cartouche.weights import folder as folders
from cartouche.weights.builtin import builtin
from cartouche.weights.source import GRAPHS

if TYPE_CHECKING:
    import torch

KINDS = {"clip": "clip", "detector": "owlvit", "segmenter": "clipseg", "captioner": "llava"}
"""Which model_type stands in which sub-folder."""
ENGINES = ("auto", "openvino", "torch")
DIGITS = 16


class Part:
    """One reading part of a model: its settings, its words, its pictures, its nets, each opened when first needed.

    folder: a model folder, that part alone, or None for the built-in model. name: one of KINDS. engine: "openvino"
    runs the graphs beside the weights, "torch" builds the net from them, "auto" takes openvino where there is a graph.
    Raises CartoucheError where the folder has no such part.
    """

    def __init__(
        self,
        folder: Path | str | None,
        name: str,
        engine: str = "auto",
        precision: Precision = "fp32",
        device: str = "auto",
    ) -> None:
        if engine not in ENGINES:
            raise unknown("engine", engine, ENGINES)
        self.name, self.engine, self.precision, self.device = name, engine, precision, device
        self.folder = found(folder, name)
        self.config = read_json(self.folder / "config.json")
        self._nets: dict[str, Net] = {}
        self._opening = threading.RLock()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The part's own words, or those that the whole model shares."""
        return Tokenizer.load(self.words)

    def preparation(self, side: int, patch: int = 0) -> Preparation:
        """How a picture becomes what a tower of side x side takes, or one that stretches its places (prepare.py)."""
        return Preparation.load(self.folder, side, patch)

    @cached_property
    def weights(self) -> str:
        """Sixteen hexadecimal digits of the weights' sha256."""
        with open(folders.weights_file(self.folder), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]

    @cached_property
    def hash(self) -> str:
        """Sixteen hexadecimal digits of a sha256 over all that shapes a reading: weights, settings, words."""
        digest = hashlib.sha256(self.weights.encode())
        for path in self._settings():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:DIGITS]

    def net(self, call: str = "forward") -> Net:
        """One method of the part's net, opened the first time."""
        with self._opening:
            if call not in self._nets:
                self._nets[call] = self._open(call)
            return self._nets[call]

    def _open(self, call: str) -> Net:
        graph = self.folder / GRAPHS.get(call, f"{call}.onnx")
        if self.engine == "openvino" and not graph.is_file():
            raise CartoucheError(f"no graph at {graph}; write it with `cartouche weights export {self.folder}`")
        if self.engine != "torch" and graph.is_file():
            return OpenVINONet(graph, self.precision)
        return TorchNet(self._module, self.precision, call)

    @cached_property
    def _module(self) -> torch.nn.Module:
        from cartouche.device import choose

        return folders.load_net(self.folder, choose(self.device))

    @property
    def words(self) -> Path:
        """Where the tokenizer lies."""
        shared = self.folder.parent / "tokenizer"
        own = any((self.folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
        return self.folder if own or not shared.is_dir() else shared

    def _settings(self) -> list[Path]:
        pictures = [self.folder / name for name in ("config.json", *FILES)]
        return [path for path in (*pictures, *sorted(self.words.glob("*.json"))) if path.is_file()]


def found(folder: Path | str | None, name: str) -> Path:
    """Where the part `name` of a model lies. Raises CartoucheError, saying what is missing, where it has none."""
    root = builtin() if folder is None else Path(folder)
    part = root / name
    if (part / "config.json").is_file():
        return part
    alone = root / "config.json"
    if alone.is_file() and read_json(alone).get("model_type") == KINDS[name]:
        return root
    what = f"has no {name}/" if root.is_dir() else "does not exist"
    raise CartoucheError(
        f"model folder {root} {what}; this reading needs a folder with {name}/ in it, "
        f"or a {KINDS[name]} folder of transformers' layout"
    )


def has(folder: Path | str | None, name: str) -> bool:
    """Whether a model has the part."""
    try:
        found(folder, name)
    except CartoucheError:
        return False
    return True
