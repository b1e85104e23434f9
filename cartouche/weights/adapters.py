"""What people add to a model: LoRAs and learned words, merged into its nets when they are opened.

Merging works on tensors by name, so it is the same for a torch net and for the constants of a graph. No file is
touched, and a model opened without them is the model it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cartouche.config import CartoucheError
from cartouche.nets.unet_config import UNetConfig
from cartouche.text import Tokenizer
from cartouche.weights import embeddings, lora, names
from cartouche.weights import folder as folders
from cartouche.weights.lora import Patch, Shape

if TYPE_CHECKING:
    import torch

TABLE = "text_model.embeddings.token_embedding.weight"


@dataclass(frozen=True)
class Used:
    """One adapter, as a recipe names it. kind: "lora" or "embedding"; hash: of the file; weight: of a LoRA."""

    kind: str
    name: str
    hash: str
    weight: float = 1.0

    @property
    def same(self) -> tuple[str, str, float]:
        """What has to agree for the same picture; a file may have another name."""
        return self.kind, self.hash, self.weight

    def __str__(self) -> str:
        strength = f" at {self.weight:g}" if self.kind == "lora" else ""
        return f"{self.kind} {self.name} ({self.hash}){strength}"


class Adapters:
    """LoRAs, each with its strength, and learned words.

    loras: files, or (file, strength). Raises CartoucheError for a file that is neither, and for a word given twice.
    """

    def __init__(
        self, loras: Iterable[Path | str | tuple[Path | str, float]] = (), words: Iterable[Path | str] = ()
    ) -> None:
        pairs = [one if isinstance(one, tuple) else (one, 1.0) for one in loras]
        self.loras = [(lora.read(path), float(strength)) for path, strength in pairs]
        self.words = [embeddings.read(path) for path in words]
        for one, strength in self.loras:
            if not np.isfinite(strength):
                raise CartoucheError(f"strength {strength} given for {one.path}; choose a number, 1 is usual")

    def __bool__(self) -> bool:
        return bool(self.loras or self.words)

    @property
    def used(self) -> tuple[Used, ...]:
        """What a recipe says of them."""
        loras = (Used("lora", _name(one.path), one.hash, strength) for one, strength in self.loras)
        return (*loras, *(Used("embedding", one.word, one.hash) for one in self.words))

    def check(self, parts: Iterable[str]) -> None:
        """Raises CartoucheError for a LoRA that changes a part which the model lacks."""
        for one, _ in self.loras:
            if lacking := one.changes.keys() - set(parts):
                raise CartoucheError(
                    f"{one.path} changes {min(lacking)}, which this model lacks; it is of another family"
                )

    def teach(self, tokenizer: Tokenizer, part: str, config: Mapping[str, Any]) -> Tokenizer:
        """The same tokenizer, which knows the learned words from now on; their ids follow the tower's own."""
        row = int(config["vocab_size"])
        for word in self.words:
            count = len(word.fitted(part, int(config["hidden_size"])))
            tokenizer.learn(word.word, range(row, row + count))
            row += count
        return tokenizer

    def patches(self, part: str, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> dict[str, Patch]:
        """What becomes of a part's weights, by name; only those that change. shapes: of all its weights, by name.

        The names may be in any spelling that `folder.renamed` knows, and are given back in it.
        """
        kinds = folders.class_of(config), str(config.get("model_type"))
        spelled = folders.renamed({name: name for name in shapes}, *kinds)
        own = {name: shapes[theirs] for name, theirs in spelled.items()}
        stored = _stored(config) if part == "unet" else None
        fitted = [(one.fitted(part, own, stored), strength) for one, strength in self.loras]
        changed = dict.fromkeys(name for changes, _ in fitted for name in changes)
        found: dict[str, Patch] = {spelled[name]: partial(lora.merged, name, loras=fitted) for name in changed}
        if self.words and part.startswith("text_encoder"):
            found[spelled[TABLE]] = partial(self._longer, part)
        return found

    def merge(self, net: torch.nn.Module, part: str) -> torch.nn.Module:
        """The same net with everything merged in."""
        config: dict[str, Any] = net.config.to_dict()  # type: ignore[operator, union-attr]
        lora.patch(net, self.patches(part, config, folders.shapes(net)))
        return net

    def change(self, part: str, config: Mapping[str, Any]) -> Callable[[Any], None]:
        """What merges everything into a graph as openvino has read it, before it is compiled."""

        def changed(graph: Any) -> None:
            from openvino import opset13

            constants = {
                node.get_friendly_name(): node for node in graph.get_ops() if node.get_type_name() == "Constant"
            }
            shapes = {name: tuple(node.get_output_shape(0)) for name, node in constants.items()}
            for name, patch in self.patches(part, config, shapes).items():
                new = opset13.constant(patch(constants[name].get_data(dtype=np.float32)))
                for reader in constants[name].output(0).get_target_inputs():
                    reader.replace_source_output(new.output(0))
            graph.validate_nodes_and_infer_types()

        return changed

    def _longer(self, part: str, table: np.ndarray) -> np.ndarray:
        """The table of word vectors with those of the learned words behind it."""
        return np.concatenate([table, *(word.fitted(part, table.shape[1]) for word in self.words)]).astype(np.float32)


def _stored(config: Mapping[str, Any]) -> Callable[[str], str]:
    """Our name of a U-Net's weight to that of a single file."""
    unet = UNetConfig.from_dict(config)
    dialect = names.ldm_unet(unet.layers, [kind.startswith("CrossAttn") for kind in unet.down_block_types])
    return lambda name: dialect(name).name


def _name(path: Path) -> str:
    """What a file is called; an adapter of peft is called as its folder."""
    return path.parent.name if path.name == lora.PEFT_WEIGHTS else path.stem
