"""What a file or folder of weights is, and whether it is whole: from names, types and shapes alone; no net is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cartouche import files
from cartouche.config import CartoucheError
from cartouche.weights import embeddings, families, lora, names, safetensors
from cartouche.weights import folder as folders
from cartouche.weights.names import Shape
from cartouche.weights.safetensors import Entry
from cartouche.weights.single import SingleFile
from cartouche.weights.source import Folder, Source, opened

PRECISIONS = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16"}
ALONE = (
    ("encoder.down.0.block.0.conv1.weight", "an autoencoder in latent-diffusion's names"),
    ("visual.conv1.weight", "a CLIP in OpenAI's names"),
    ("vision_model.embeddings.patch_embedding.weight", "a CLIP in transformers' names"),
    ("text_model.embeddings.token_embedding.weight", "a text tower in transformers' names"),
    ("encoder.down_blocks.0.resnets.0.conv1.weight", "an autoencoder in diffusers' names"),
    ("down_blocks.0.resnets.0.conv1.weight", "a U-Net in diffusers' names"),
)
"""A net whose config.json is not beside it, by a weight that it has."""

WORDS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""The width of the states that a family's U-Net attends to."""


@dataclass(frozen=True)
class Info:
    """What is stored at a place. kind: "model", "net", "adapter", "word" or "tensors"; family: None where unknown.

    parts: numbers stored in each part. precision: numbers stored in each type. size: bytes. sha256: of the file, or
    over those of a folder. short: its first ten digits, which people and recipes name a model by.
    """

    path: Path
    kind: str
    family: str | None
    parts: Mapping[str, int]
    precision: Mapping[str, int]
    tensors: int
    size: int
    sha256: str
    metadata: Mapping[str, str]

    @property
    def short(self) -> str:
        return self.sha256[:10]


@dataclass(frozen=True)
class Fit:
    """How the tensors of a part fit its family: the names of those that do, and of those that do not."""

    part: str
    fitting: tuple[str, ...]
    missing: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    misshaped: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether nothing is missing, left over or of another shape."""
        return not (self.missing or self.left_over or self.misshaped)


@dataclass(frozen=True)
class _Found:
    """A place with weights. parts: the layout of each; source: what opens it, where there is one."""

    kind: str
    family: str | None
    parts: Mapping[str, Mapping[str, Entry]]
    files: tuple[Path, ...]
    source: Any = None


def info(path: Path | str) -> Info:
    """What the weights at `path` are. Raises CartoucheError where it holds none, or is no safetensors file."""
    path = Path(path)
    found = _found(path)
    entries = [(part, one) for part, layout in found.parts.items() for one in layout.values()]
    parts, kinds = Counter[str](), Counter[str]()
    for part, one in entries:
        parts[part] += one.numbers
        kinds[PRECISIONS.get(one.dtype, one.dtype.lower())] += one.numbers
    weights = [file for file in found.files if file.suffix == ".safetensors"]
    return Info(
        path,
        found.kind,
        found.family,
        dict(parts),
        dict(kinds.most_common()),
        len(entries),
        sum(file.stat().st_size for file in weights),
        files.digest(*found.files),
        safetensors.metadata(weights[0]) if len(weights) == 1 else {},
    )


def check(path: Path | str, model: Path | str | None = None) -> list[Fit]:
    """How each part at `path` fits its family: the configuration beside it, or the one its names and shapes tell.

    model: for an adapter or a learned word, the model it is for. Raises CartoucheError where nothing is known to check
    against, or an adapter does not fit. Needs torch, which makes the nets' lists of names.
    """
    path = Path(path)
    found = _found(path)
    if found.kind == "adapter":
        return _adapter(path, model)
    if found.kind == "word":
        return _word(path, model)
    if found.kind == "tensors":
        raise CartoucheError(f"{path} is {found.family or 'of no family known here'}; wanted its config.json beside it")
    if isinstance(found.source, SingleFile):
        return _single(found.source)
    return [_stored(part, layout, found.source[part]) for part, layout in found.parts.items()]


# what it is


def _found(path: Path) -> _Found:
    if path.is_dir():
        return _folder(path)
    layout = safetensors.layout(path)
    if (adapter := _as_adapter(path, layout)) is not None:
        return adapter
    if _is_word(layout):
        return _Found("word", "textual inversion", {"words": layout}, (path,))
    try:
        return _as_single(SingleFile(path, strict=False), layout)
    except CartoucheError:
        if (path.parent / "config.json").is_file():
            return _net(path.parent, path)
        told = next((said for name, said in ALONE if name in layout), None)
        return _Found("tensors", told, {"tensors": layout}, (path,))


def _folder(path: Path) -> _Found:
    if (path / lora.PEFT_CONFIG).is_file():
        return _found(path / lora.PEFT_WEIGHTS)
    if (path / "config.json").is_file():
        return _net(path)
    source = Folder(path)
    nets = {one.parent.name: one.parent for one in sorted(path.glob("*/config.json"))}
    configs = {part: folders.read_json(place / "config.json") for part, place in nets.items()}
    layouts = {part: _layout(folders.weights_files(place), place) for part, place in nets.items()}
    kind = str(source.index.get("_class_name", "a folder of nets"))
    width = configs.get("unet", {}).get("cross_attention_dim")
    known = WORDS.get(width) if isinstance(width, int) else None
    return _Found("model", f"{known}, {kind}" if known else kind, layouts, tuple(source.files()), configs)


def _net(place: Path, file: Path | None = None) -> _Found:
    """The net of a folder. file: of its weights that one alone, unless it is one of several shards."""
    config = folders.read_json(place / "config.json")
    family = folders.class_of(config, place / "config.json")
    weights = folders.weights_files(place) if file is None or "-of-" in file.name else [file]
    return _Found("net", family, {place.name: _layout(weights, place)}, tuple(weights), {place.name: config})


def _layout(files: Iterable[Path], place: Path) -> dict[str, Entry]:
    """Every tensor of the files of a net."""
    return folders.joined(map(safetensors.layout, files), place)


def _as_adapter(path: Path, layout: Mapping[str, Entry]) -> _Found | None:
    parts: dict[str, dict[str, Entry]] = {}
    width = None
    try:
        for name, one in layout.items():
            (part, layer), role = lora.placed(path, name)
            parts.setdefault(part, {})[name] = one
            if role == "down" and layer.endswith(("attn2.to_k", "attn2_to_k")):
                width = one.shape[1]
    except CartoucheError:
        return None
    beside = path.with_name(lora.PEFT_CONFIG)
    named = (path, beside) if beside.is_file() else (path,)
    return _Found("adapter", f"LoRA for {WORDS[width]}" if width in WORDS else "LoRA", parts, named) if parts else None


def _is_word(layout: Mapping[str, Entry]) -> bool:
    flat = all(len(one.shape) in (1, 2) and one.shape[-1] in (768, 1024, 1280) for one in layout.values())
    return flat and (len(layout) == 1 or layout.keys() == embeddings.TOWERS.keys())


def _as_single(source: SingleFile, layout: Mapping[str, Entry]) -> _Found:
    parts: dict[str, dict[str, Entry]] = {}
    prefixes = {families.prefix_of(source.family, part): part for part in source.parts}
    for name, one in layout.items():
        part = next((part for prefix, part in prefixes.items() if name.startswith(prefix)), "others")
        parts.setdefault(part, {})[name] = one
    return _Found("model", f"{source.family.name}, {source.family.pipeline}", parts, (source.path,), source)


# whether it is whole


def _stored(part: str, layout: Mapping[str, Entry], config: Mapping[str, Any]) -> Fit:
    given = folders.renamed(layout, folders.class_of(config, f"{part}/config.json"), str(config.get("model_type")))
    return _fit(part, {name: one.shape for name, one in given.items()}, _shapes(config))


def _single(source: SingleFile) -> list[Fit]:
    fits = [Fit("others", (), left_over=tuple(source.strange))] if source.strange else []
    for part in source.parts:
        given = source.tensors(part)
        try:
            wanted = names.stored_shapes(_shapes(source.config(part)), source.dialect(part))
        except CartoucheError as error:  # so much is missing that not even the sizes can be told
            fits.append(Fit(part, (), missing=(str(error),)))
        else:
            fits.append(_fit(part, given, wanted))
    return fits


def _adapter(path: Path, model: Path | str | None) -> list[Fit]:
    adapter = lora.read(path)
    if model is not None:
        source = opened(model)
        for part in adapter.changes:
            if part not in source.parts:
                raise CartoucheError(f"{path} changes {part}, which {model} has not")
            adapter.fitted(part, _shapes(source.config(part)), _spelling(source, part))
    return [Fit(part, tuple(changes)) for part, changes in adapter.changes.items()]


def _spelling(source: Source, part: str) -> Callable[[str], str] | None:
    """Our name of a weight to that of a single file, in whose names some adapters are written."""
    if not isinstance(source, SingleFile):
        return None
    dialect = source.dialect(part)
    return lambda name: dialect(name).name


def _word(path: Path, model: Path | str | None) -> list[Fit]:
    word = embeddings.read(path)
    if model is not None:
        source = opened(model)
        for part in (one for one in source.parts if one.startswith("text_encoder")):
            word.fitted(part, source.config(part)["hidden_size"])
    return [Fit(part, (word.word,)) for part in word.vectors]


def _shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """What the net of a configuration stores; no memory is taken for it."""
    import torch

    with torch.device("meta"):
        return folders.shapes(folders.build(config))


def _fit(part: str, given: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> Fit:
    shared = [name for name in wanted if name in given]
    wrong = {name for name in shared if not names.fits(given[name], wanted[name])}
    return Fit(
        part,
        tuple(name for name in shared if name not in wrong),
        tuple(name for name in wanted if name not in given),
        tuple(name for name in given if name not in wanted),
        tuple(f"{name} {given[name]} for {wanted[name]}" for name in sorted(wrong)),
    )


def listed(what: str, those: Iterable[str]) -> str | None:
    """ "3 missing: a, b, c", the first five of them; None where there are none."""
    found = list(those)
    return f"{len(found)} {what}: {folders.first(found)}" if found else None
