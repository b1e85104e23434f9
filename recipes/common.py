"""What the recipes share: where the drawings are, and the streams of scenes made from them.

The pack is looked for in data/emoji; `pack=FOLDER` on the command line, or CARTOUCHE_PACK, names another place.
"""

import os
from pathlib import Path

from cartouche.data.emoji import Pack
from cartouche.data.scenes import Composer, Mixture
from cartouche.data.streams import Scenes

PACK = os.environ.get("CARTOUCHE_PACK", "data/emoji")
TOKENIZER_SCENES = 60_000
VOCABULARY = 4096
CONTEXT = 40  # 99.9 % of 20,000 captions take 35 tokens or fewer


def scenes(pack: str, split: str, seed: int, mixture: Mixture | None = None, crop: int = 0) -> Scenes:
    """The endless stream of scenes number `seed` from one split of the pack."""
    drawings = Pack(pack)
    return Scenes(drawings, Composer(drawings.of(split), seed, mixture=mixture or Mixture()), crop=crop)


def run_folder(name: str) -> Path:
    """Where a recipe leaves its run unless told otherwise: what later recipes build on."""
    return Path("runs") / name
