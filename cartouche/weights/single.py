"""Single-file checkpoints: a whole Stable Diffusion 1, 2 or XL in one .safetensors file, opened and written.

    SingleFile(path)            the same face as a folder: see source.py
    save(path, source)          any model of a known family as such a file
    VAEFile, load_clip          an autoencoder or a CLIP that comes alone, in the names of its own authors

The file has weights only. The rest of a model comes with this package: configurations and ladder from families.py, and
the vocabulary that all of these were trained with (OpenAI's CLIP; 48,894 merges, MIT licence, see NOTICE).
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cartouche.config import CartoucheError
from cartouche.diffusion import schedule
from cartouche.diffusion.prediction import kind_of
from cartouche.text import END, Tokenizer
from cartouche.weights import families, names, safetensors, template
from cartouche.weights import folder as folders
from cartouche.weights.families import Family
from cartouche.weights.names import Dialect, Shape
from cartouche.weights.template import Template

if TYPE_CHECKING:
    import torch

    from cartouche.weights.source import Source

VOCABULARY = Path(__file__).parent / "clip_merges.txt.gz"
KINDS = {"v": "v_prediction", "epsilon": "epsilon"}  # as the metadata of files says it, under one of these names
SAID = ("modelspec.prediction_type", "modelspec.predict_key")
MARKS = {"v_pred": "v_prediction"}  # as others say it: by a tensor of this name


class SingleFile:
    """A model in one .safetensors file, recognised by its names.

    prediction: what the U-Net predicts, "epsilon" or "v_prediction", where the file does not say it and it is not what
    its family usually does. strict: refuse what no part uses, the names of which are `strange`.
    Raises CartoucheError where the file is of no known family, or holds what none has.
    """

    def __init__(self, path: Path | str, prediction: str | None = None, *, strict: bool = True) -> None:
        self.path = Path(path)
        self.stored: dict[str, Shape] = {name: entry.shape for name, entry in safetensors.layout(self.path).items()}
        self.family = families.family_of(self.stored, str(self.path))
        self.parts = (*self.family.towers, "unet", "vae")
        prefixes = tuple(families.prefix_of(self.family, part) for part in self.parts)
        others = (name for name in self.stored if not name.startswith(prefixes))
        self.strange = [name for name in others if not families.IGNORED.search(name)]
        if self.strange and strict:
            count, some = len(self.strange), folders.first(self.strange)
            raise CartoucheError(f"{self.path} holds {count} tensors of no part: {some}")
        self._prediction = prediction

    @cached_property
    def index(self) -> dict[str, Any]:
        kinds = {4: "", 8: "InstructPix2Pix", 9: "Inpaint"}
        kind = kinds.get(self.config("unet")["in_channels"], "")
        return {
            "_class_name": self.family.pipeline.replace("Pipeline", f"{kind}Pipeline"),
            "force_zeros_for_empty_prompt": True,
        }

    @cached_property
    def scheduler(self) -> dict[str, Any]:
        text = safetensors.metadata(self.path)
        said = next((KINDS[text[key]] for key in SAID if text.get(key) in KINDS), None)
        marked = next((kind for mark, kind in MARKS.items() if mark in self.stored), None)
        return families.scheduler_of(self.family, self._prediction or said or marked, "ztsnr" in self.stored)

    def config(self, part: str) -> dict[str, Any]:
        prefix = families.prefix_of(self.family, part)
        return families.config_of(self.family, part, _under(prefix, self.stored))

    def tokenizer(self, part: str) -> Tokenizer:
        context = self.config(part)["max_position_embeddings"]
        return clip_tokenizer(self.config(part)["vocab_size"], context, self.family.towers[part].padded)

    def dialect(self, part: str) -> Dialect:
        """Where each weight of a part lies in the file."""
        return families.dialect_of(self.family, part, self.config(part), self.stored)

    def tensors(self, part: str) -> dict[str, Shape]:
        """The tensors that make up a part, every one of which its net has to use."""
        prefix, spare = families.prefix_of(self.family, part), self._spare(part)
        own = {name: shape for name, shape in self.stored.items() if name.startswith(prefix) and name not in spare}
        return {name: shape for name, shape in own.items() if not families.IGNORED.search(name)}

    def check(self) -> None:
        """Raises CartoucheError where a tensor is left over, missing or misshaped. No numbers are read."""
        for part in self.parts:
            _unfilled(self.config(part), self.dialect(part), self.tensors(part), self.path)

    def net(self, part: str, device: str | torch.device = "cpu") -> torch.nn.Module:
        return _net(self.config(part), self.dialect(part), self.tensors(part), {"": self.path}, device)

    def graph(self, part: str, call: str) -> Template | None:
        weights = partial(_mapped, self.dialect(part), self.tensors(part), self.path)
        return template.find(self.config(part), call, weights)

    def files(self) -> list[Path]:
        return [self.path]

    def _spare(self, part: str) -> set[str]:
        """The last layer and the projection of a text tower that is used without them."""
        tower = self.family.towers.get(part)
        if tower is None or not tower.fused or tower.projected:
            return set()
        last = f"{tower.prefix}transformer.resblocks.{self.config(part)['num_hidden_layers']}."
        return {name for name in self.stored if name.startswith(last) or name == f"{tower.prefix}text_projection"}


def save(path: Path | str, source: Source, dtype: str | None = None) -> str:
    """Write a model as a single file that opens again here and elsewhere; returns the file's sha256.

    dtype: as in `folder.save_net`. Raises CartoucheError where the model's family keeps no file, or where the file
    would lose something: a setting that shapes do not tell and the family has otherwise, or another ladder.
    """
    family = _family_like(source)
    tensors: dict[str, Any] = {}
    for part in source.parts:
        net = source.net(part)
        weights = {name: folders.stored(name, tensor, dtype) for name, tensor in net.state_dict().items()}
        config = net.config.to_dict()  # type: ignore[operator, union-attr]
        own = names.scattered(weights, families.dialect_of(family, part, config))
        shapes = {name: tuple(one.shape) for name, one in own.items()}
        read = families.config_of(family, part, _under(families.prefix_of(family, part), shapes))
        _check_kept(part, config, read, family)
        tensors |= own
    marks, said = _said(source, family)
    return safetensors.save(path, tensors | marks, {"format": "pt"} | said)


class VAEFile:
    """An autoencoder that comes alone: latent-diffusion's, or one half of TAESD, whose other half lies beside it.

    The halves are named alike but for "encoder" and "decoder". Raises CartoucheError for anything else.
    """

    def __init__(self, path: Path | str) -> None:
        path = Path(path)
        stored = {name: entry.shape for name, entry in safetensors.layout(path).items()}
        if any(name.startswith("encoder.down.") for name in stored):
            own = {name: shape for name, shape in stored.items() if not name.startswith(("loss.", "model_ema."))}
            self.config = families.vae_config(families.Shapes(own), families.FAMILIES["sd1"].scaling_factor, 512)
            self._dialect, self._given = names.ldm_vae(len(self.config["block_out_channels"])), own
            self._paths = {"": path}
            return
        halves = {side: path.with_name(path.name.replace("encoder", side).replace("decoder", side)) for side in HALVES}
        if path not in halves.values() or not all(half.is_file() for half in halves.values()):
            wanted = "wanted latent-diffusion's, or both files of TAESD"
            raise CartoucheError(f"{path} is no autoencoder known here; {wanted}")
        self._given = {
            f"{side}.{name}": entry.shape
            for side, half in halves.items()
            for name, entry in safetensors.layout(half).items()
        }
        self.config, self._dialect = families.tiny_config(self._given), names.taesd
        self._paths = {f"{side}.": half for side, half in halves.items()}

    def net(self, device: str | torch.device = "cpu") -> torch.nn.Module:
        return _net(self.config, self._dialect, self._given, self._paths, device)

    def graph(self, call: str) -> Template | None:
        path = next(iter(self._paths.values()))
        return template.find(self.config, call, partial(_mapped, self._dialect, self._given, path))


def load_vae(path: Path | str, device: str | torch.device = "cpu") -> torch.nn.Module:
    """An autoencoder that comes alone, as `VAEFile` says."""
    return VAEFile(path).net(device)


def load_clip(path: Path | str, hidden_act: str | None = None, device: str | torch.device = "cpu") -> torch.nn.Module:
    """A whole CLIP in the names of OpenAI and open_clip. hidden_act: "quick_gelu" or "gelu"; no shape tells it.

    Without it, OpenAI's own files are known by the numbers they also hold, and open_clip's by the
    open_clip_config.json beside them. Raises CartoucheError where nothing says it.
    """
    path = Path(path)
    stored = {name: entry.shape for name, entry in safetensors.layout(path).items()}
    prefix = "text." if "text.token_embedding.weight" in stored else ""  # open_clip's later form of the text tower
    own = {name: shape for name, shape in stored.items() if name not in CONSTANTS and name != f"{prefix}attn_mask"}
    shapes = {name.removeprefix(prefix): shape for name, shape in own.items()}
    config = families.clip_config(shapes, hidden_act or _activation(path, stored))

    def dialect(name: str) -> names.Piece:
        piece = names.openai_clip(name)
        outside = piece.name.startswith("visual.") or piece.name == "logit_scale"
        return piece if outside else piece._replace(name=prefix + piece.name)

    return _net(config, dialect, own, {"": path}, device)


def save_clip(path: Path | str, net: torch.nn.Module, dtype: str | None = None) -> str:
    """Write a CLIP as OpenAI and open_clip name it; returns the file's sha256."""
    weights = {name: folders.stored(name, tensor, dtype) for name, tensor in net.state_dict().items()}
    return safetensors.save(path, names.scattered(weights, names.openai_clip), {"format": "pt"})


HALVES = ("encoder", "decoder")
CONSTANTS = ("input_resolution", "context_length", "vocab_size")


def clip_tokenizer(size: int, context: int = 77, pad: str = END) -> Tokenizer:
    """The tokenizer of OpenAI's CLIP. Raises CartoucheError where a tower of `size` ids was trained with another."""
    lines = gzip.decompress(VOCABULARY.read_bytes()).decode().splitlines()
    tokenizer = Tokenizer.from_merges([(a, b) for a, b in (line.split(" ") for line in lines)], context, pad)
    if tokenizer.vocab_size != size:
        raise CartoucheError(
            f"the text tower knows {size} ids, CLIP's vocabulary has {tokenizer.vocab_size}; "
            "open the model's folder, which has its own tokenizer"
        )
    return tokenizer


def _net(
    config: Mapping[str, Any], dialect: Dialect, given: Mapping[str, Shape], paths: Mapping[str, Path], device: Any
) -> torch.nn.Module:
    """The net of a configuration, filled from files in a dialect. given: every name that has to be used.

    paths: the files, each under what its names begin with here.
    """
    net = _unfilled(config, dialect, given, next(iter(paths.values())))
    stored = {prefix + name: one for prefix, path in paths.items() for name, one in safetensors.load(path).items()}
    return folders.filled(net, names.gathered(stored, folders.shapes(net), dialect), device)


def _mapped(
    dialect: Dialect, given: Mapping[str, Shape], path: Path, wanted: Mapping[str, Shape]
) -> Mapping[str, np.ndarray]:
    """The tensors of a file in a dialect, as template.py wants them. given: every name that has to be used."""
    _check(given, wanted, dialect, path)
    stored = safetensors.mapped(path)
    known = {name: shape for name, shape in wanted.items() if dialect(name).name in stored}
    return names.gathered(stored, known, dialect)


def _unfilled(config: Mapping[str, Any], dialect: Dialect, given: Mapping[str, Shape], path: Path) -> torch.nn.Module:
    """The net without numbers, once every given name is one of its weights and every weight is given."""
    import torch

    with torch.device("meta"):
        net = folders.build(config)
    _check(given, folders.shapes(net), dialect, path)
    return net


def _check(given: Mapping[str, Shape], shapes: Mapping[str, Shape], dialect: Dialect, path: Path) -> None:
    """Refuse where the given names are not those that hold weights of these shapes."""
    wanted = names.stored_shapes(shapes, dialect)
    folders.check_names(_squeezed(given, wanted), wanted, path, "the net its names and shapes describe")


def _squeezed(given: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> dict[str, Shape]:
    """The given shapes, with axes of size 1 at the end added or taken away where that makes them the wanted ones."""
    return {
        name: wanted[name] if name in wanted and names.fits(shape, wanted[name]) else shape
        for name, shape in given.items()
    }


def _under(prefix: str, stored: Mapping[str, Shape]) -> dict[str, Shape]:
    return {name.removeprefix(prefix): shape for name, shape in stored.items() if name.startswith(prefix)}


def _family_like(source: Source) -> Family:
    """The family that a model could be written as."""
    if "text_encoder_2" in source.parts:
        return families.FAMILIES["sdxl"]
    act = source.config("text_encoder").get("hidden_act", "quick_gelu")
    return families.FAMILIES["sd1" if act == "quick_gelu" else "sd2"]


def _check_kept(part: str, config: Mapping[str, Any], read: Mapping[str, Any], family: Family) -> None:
    """Refuse where the file, read again, would be another net."""
    import torch

    with torch.device("meta"):
        found: dict[str, Any] = folders.build(read).config.to_dict()  # type: ignore[operator, union-attr]
    for name, value in config.items():
        again = found.get(name)
        if isinstance(again, list) and isinstance(value, int):
            value = [value] * len(again)
        if name not in families.FREE and value != again:
            raise CartoucheError(
                f"{part}: {name}={value!r}, and a single file of {family.name} would mean {again!r}; save a folder"
            )


def _said(source: Source, family: Family) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What the file says of its ladder: tensors whose names others look for, and metadata (Stability's ModelSpec)."""
    kind, usual = kind_of(source.scheduler), family.prediction
    zero_snr = bool(source.scheduler.get("rescale_betas_zero_snr"))
    own = schedule.from_config(source.scheduler).alpha
    meant = schedule.from_config(families.scheduler_of(family, None, zero_snr)).alpha
    if kind not in KINDS.values() or own.shape != meant.shape or not np.allclose(own, meant, atol=1e-6):
        raise CartoucheError(f"a single file of {family.name} cannot say this model's ladder; save a folder")
    wanted = {"v_pred": kind == "v_prediction" != usual, "ztsnr": zero_snr}
    marks = {name: np.ones(1, np.float32) for name, yes in wanted.items() if yes}
    said = {short for short, name in KINDS.items() if name == kind}
    return marks, {SAID[0]: said.pop()}


def _activation(path: Path, stored: Mapping[str, Shape]) -> str:
    beside = path.with_name("open_clip_config.json")
    if beside.is_file():
        return "quick_gelu" if folders.read_json(beside).get("model_cfg", {}).get("quick_gelu") else "gelu"
    if "input_resolution" in stored:
        return "quick_gelu"
    raise CartoucheError(f"{path} does not say its activation; give hidden_act='quick_gelu' (OpenAI) or 'gelu'")
