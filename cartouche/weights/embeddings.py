"""Textual inversion: words that a text tower learned later, each one or several vectors (Gal et al., arXiv 2208.01618).

Three layouts are read, all safetensors, each (D,) or (vectors, D):

    diffusers    learned_embeds.safetensors: one tensor, named as the word is written, "<cat-toy>"
    A1111        emb_params; the word is the file's name
    two towers   clip_l and clip_g, for Stable Diffusion XL; the word is the file's name
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cartouche.config import CartoucheError
from cartouche.files import fingerprint
from cartouche.weights import safetensors

TOWERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
UNNAMED = "emb_params"


@dataclass(frozen=True)
class Embedding:
    """A learned word. vectors: text tower -> (K, D) float32, K the same for all; hash: as of `lora.Lora`."""

    path: Path
    hash: str
    word: str
    vectors: Mapping[str, np.ndarray]

    def fitted(self, part: str, width: int) -> np.ndarray:
        """(K, D): the vectors for one tower of `width`. Raises CartoucheError where there are none of that width."""
        found = self.vectors.get(part)
        if found is None:
            raise CartoucheError(f"{self.path} has no vectors for {part}; wanted clip_l and clip_g, for this model")
        if found.shape[1] != width:
            given = f"vectors of {found.shape[1]} numbers"
            raise CartoucheError(f"{self.path} has {given}, {part} has {width}; it was made for another model")
        return found


def read(path: Path | str) -> Embedding:
    """Open a learned word. Raises CartoucheError for pickles, and for files that hold something else."""
    path = Path(path)
    tensors = safetensors.load_numpy(path)
    if tensors.keys() and tensors.keys() <= TOWERS.keys():
        word, parts = path.stem, {TOWERS[name]: one for name, one in tensors.items()}
    elif len(tensors) == 1:
        name, only = next(iter(tensors.items()))
        word, parts = (path.stem if name == UNNAMED else name), {"text_encoder": only}
    else:
        held = ", ".join(list(tensors)[:5]) or "nothing"
        raise CartoucheError(f"{path} is no learned word: it holds {held}; wanted one tensor, or clip_l and clip_g")
    vectors = {part: np.atleast_2d(one.astype(np.float32)) for part, one in parts.items()}
    shapes = [one.shape for one in vectors.values()]
    if any(len(shape) != 2 or 0 in shape for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
        raise CartoucheError(
            f"{path} holds {' and '.join(map(str, shapes))}; wanted (vectors, width), as many for each"
        )
    if not all(np.isfinite(one).all() for one in vectors.values()):
        raise CartoucheError(f"{path} holds numbers that are not finite; train the word anew")
    return Embedding(path, fingerprint(path), word, vectors)
