"""Where a model comes from: one face over a folder and a single file, so that drawing never asks which it is.

A source knows the parts of a model ("text_encoder", "text_encoder_2", "unet", "vae"), what each is (its config.json),
and gives its net. Nothing is read before it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from cartouche.config import CartoucheError
from cartouche.text import Tokenizer
from cartouche.weights import folder as folders
from cartouche.weights import safetensors, template
from cartouche.weights.names import Shape
from cartouche.weights.template import Template

if TYPE_CHECKING:
    import torch

PARTS = ("text_encoder", "text_encoder_2", "unet", "vae")
GRAPHS = {"forward": "graph.onnx", "decode": "decoder.onnx", "encode": "encoder.onnx"}


class Source(Protocol):
    """A model on the disk."""

    path: Path
    parts: tuple[str, ...]
    """Those of PARTS that it has."""

    @property
    def index(self) -> Mapping[str, Any]:
        """What a model_index.json says of the whole: `_class_name`, `force_zeros_for_empty_prompt`."""

    @property
    def scheduler(self) -> Mapping[str, Any]:
        """What a scheduler_config.json says of the ladder."""

    def config(self, part: str) -> dict[str, Any]:
        """What the config.json of a part says."""

    def tokenizer(self, part: str) -> Tokenizer:
        """The tokenizer of a text encoder."""

    def net(self, part: str, device: str | torch.device = "cpu") -> torch.nn.Module:
        """The net of a part, in float32. Raises CartoucheError where a weight is left over, missing or misshaped."""

    def graph(self, part: str, call: str) -> Path | Template | None:
        """The graph of one method of a part's net, beside its weights or shipped here; None where there is none."""

    def files(self) -> list[Path]:
        """Every file that shapes a picture: weights, ladder, vocabulary."""


def opened(path: Path | str, prediction: str | None = None) -> Source:
    """The model at `path`: a folder in diffusers' layout, or a .safetensors file.

    prediction: of a file, what its U-Net predicts, see `single.SingleFile`. Raises CartoucheError for anything else.
    """
    path = Path(path)
    if path.is_file():
        from cartouche.weights.single import SingleFile

        return SingleFile(path, prediction)
    if prediction is not None:
        raise CartoucheError(f"prediction={prediction} given for a folder; its scheduler_config.json says that already")
    return Folder(path)


class Folder:
    """A model folder in diffusers' layout."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not (self.path / "model_index.json").is_file():
            what = "holds no model" if self.path.is_dir() else "does not exist"
            raise CartoucheError(
                f"model folder {self.path} {what}; wanted model_index.json, unet/, vae/, text_encoder/"
            )
        self.parts = tuple(part for part in PARTS if (self.path / part / "config.json").is_file())

    @cached_property
    def index(self) -> Mapping[str, Any]:
        return folders.read_json(self.path / "model_index.json")

    @cached_property
    def scheduler(self) -> Mapping[str, Any]:
        return folders.read_json(self.path / "scheduler" / "scheduler_config.json")

    def config(self, part: str) -> dict[str, Any]:
        return _Part(self.path / part).config

    def tokenizer(self, part: str) -> Tokenizer:
        return Tokenizer.load(self.path / part.replace("text_encoder", "tokenizer"))

    def net(self, part: str, device: str | torch.device = "cpu") -> torch.nn.Module:
        return _Part(self.path / part).net(device)

    def graph(self, part: str, call: str) -> Path | Template | None:
        return _Part(self.path / part).graph(call)

    def files(self) -> list[Path]:
        weights = [path for part in self.parts for path in folders.weights_files(self.path / part)]
        return [*weights, *sorted([*self.path.glob("scheduler/*.json"), *self.path.glob("tokenizer*/*.json")])]


class _Part:
    """The net of one folder, with its config.json."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config(self) -> dict[str, Any]:
        return folders.read_config(self.path / "config.json")

    def net(self, device: str | torch.device = "cpu") -> torch.nn.Module:
        return folders.load_net(self.path, device)

    def graph(self, call: str) -> Path | Template | None:
        beside = self.path / GRAPHS.get(call, f"{call}.onnx")
        return beside if beside.is_file() else template.find(self.config, call, self._weights)

    def _weights(self, wanted: Mapping[str, Shape]) -> Mapping[str, np.ndarray]:
        spelled = folders.class_of(self.config), str(self.config.get("model_type"))
        paths = folders.weights_files(self.path)
        layout = folders.renamed(folders.joined(map(safetensors.layout, paths), self.path), *spelled)
        folders.check_names({name: one.shape for name, one in layout.items()}, wanted, self.path)
        return folders.renamed(folders.joined(map(safetensors.mapped, paths), self.path), *spelled)


class _WithVAE:
    """A model whose autoencoder is another one."""

    def __init__(self, source: Source, path: Path) -> None:
        from cartouche.weights.single import VAEFile

        self._source = source
        self._path = path
        self._vae = _Part(path) if path.is_dir() else VAEFile(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def config(self, part: str) -> dict[str, Any]:
        if part != "vae":
            return self._source.config(part)
        config = folders.settings(self._vae.config).to_dict()  # what it leaves out too: the scale of its latents
        alone = not self._path.is_dir() and config["_class_name"] == "AutoencoderKL"
        return config | ({"scaling_factor": self._source.config("vae")["scaling_factor"]} if alone else {})

    def net(self, part: str, device: str | torch.device = "cpu") -> torch.nn.Module:
        return self._vae.net(device) if part == "vae" else self._source.net(part, device)

    def graph(self, part: str, call: str) -> Path | Template | None:
        return self._vae.graph(call) if part == "vae" else self._source.graph(part, call)

    def files(self) -> list[Path]:
        return [*self._source.files(), *(folders.weights_files(self._path) if self._path.is_dir() else [self._path])]


def with_vae(source: Source, path: Path | str) -> Source:
    """The same model with the autoencoder at `path`: a folder with its config.json, or a file as `single.VAEFile` has
    it, whose latents are then scaled as the model scales them. Raises CartoucheError where there is none."""
    return cast(Source, _WithVAE(source, Path(path)))


def save_folder(path: Path | str, source: Source, dtype: str | None = None) -> None:
    """Write a model as a folder in diffusers' layout. dtype: as in `folder.save_net`."""
    nets = {part: source.net(part) for part in source.parts}
    tokenizers = {part: source.tokenizer(part) for part in source.parts if part.startswith("text_encoder")}
    folders.save_model(path, nets, tokenizers, source.scheduler, source.index, dtype)
