"""Cartouche draws pictures from words: latent diffusion, small, open at every step.

An example:

    import cartouche
    picture = cartouche.load().draw("a red apple on a blue background", seed=7)[0]

Importing this package costs nothing: it opens no file, and neither torch nor openvino is imported before they are
needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from cartouche.draw.paint import Painter

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(model: Path | str | None = None, engine: str = "auto", **options: Any) -> Painter:
    """Open a model for drawing: a folder in diffusers' layout, or the built-in one.

    engine: "auto", "openvino", "torch" or "compiled"; options: precision, device, batch, loras, embeddings and others,
    as in `draw.paint.Painter`.
    Raises CartoucheError where the model or an option cannot be used.
    """
    from cartouche.draw.paint import Painter

    return Painter(model, engine, **options)
