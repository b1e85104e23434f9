"""The model that ships inside the package: drawn with when no other is named."""

from __future__ import annotations

from pathlib import Path

from cartouche.config import CartoucheError


def builtin() -> Path:
    """The folder of the built-in model. Raises CartoucheError where this copy of the package has none."""
    folder = Path(__file__).parent / "builtin"
    if not (folder / "model_index.json").is_file():
        raise CartoucheError("this copy of cartouche has no built-in model; name one with model=FOLDER")
    return folder
