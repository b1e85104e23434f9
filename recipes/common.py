"""What the recipes share: where the drawings are, and the streams of scenes made from them.

The pack is looked for in data/emoji; `pack=FOLDER` on the command line, or CARTOUCHE_PACK, names another place.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from cartouche.data.captions import Manner
from cartouche.data.emoji import Drawing, Pack
from cartouche.data.scenes import Composer, Mixture
from cartouche.data.streams import Scenes
from cartouche.nets.clip_config import TowerConfig
from cartouche.read.memory import Memory
from cartouche.train.facts import Facts

PACK = os.environ.get("CARTOUCHE_PACK", "data/emoji")
TOKENIZER_SCENES = 60_000
VOCABULARY = 4096
CLIP = "cartouche/weights/builtin/clip"  # what the reading nets start from
NUMBERS = 32  # that sum up what a thing looks like
CONTEXT = 40  # 99.9 % of 20,000 captions take 35 tokens or fewer
MANNER = Manner(style=0.8, background=0.8, colour=0.35, place=0.6, keyword=0.05)
"""How talkative the captions are that drawing is learned from: what is not said cannot be learned, and a net that was
always told the style or the ground draws badly where a prompt leaves it open."""

Tower = TypeVar("Tower", bound=TowerConfig)


def scenes(pack: str, split: str, seed: int, mixture: Mixture | None = None, crop: int = 0) -> Scenes:
    """The endless stream of scenes number `seed` from one split of the pack."""
    drawings = Pack(pack, cached=1 << 14)
    return Scenes(drawings, Composer(drawings.of(split), seed, mixture=mixture or Mixture()), crop=crop)


def facts(pack: Pack, drawings: Sequence[Drawing]) -> Facts:
    """The facts of scenes of these drawings."""
    memory = Memory.of(drawings, pack.pixels, NUMBERS)
    return Facts.about(memory.drawings, memory.codes * memory.scale)


def run_folder(name: str) -> Path:
    """Where a recipe leaves its run unless told otherwise: what later recipes build on."""
    return Path("runs") / name


def image_tower(clip: Any, layers: int, kind: type[Tower], space: int = 512) -> Tower:
    """The configuration of CLIP's image tower cut to its first `layers`, as another net's `kind`."""
    given = clip.config.vision_config
    kept = {one.name: getattr(given, one.name) for one in fields(given) if one.name != "architectures"}
    return kind(**kept | {"num_hidden_layers": layers, "projection_dim": space})


def text_tower(kind: type[Tower], width: int, layers: int) -> Tower:
    """A small text tower for names: `width` wide, and so is the space that it projects into."""
    ids = {"pad_token_id": VOCABULARY - 1, "bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1}
    sizes = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "hidden_size": width,
        "projection_dim": width,
    }
    shape = {"intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": 4}
    return kind(**ids, **sizes, **shape, hidden_act="gelu")


def start_from(clip: Any, tower: nn.Module) -> None:
    """Copy CLIP's image tower, as far as it goes, into another net's, whatever that calls its first normalisation."""
    given = {name.replace("pre_layrnorm", "pre_norm"): one for name, one in clip.vision_model.state_dict().items()}
    spelled = {name: re.sub("pre_lay(r|er)norm", "pre_norm", name) for name in tower.state_dict()}
    tower.load_state_dict({name: given[same] for name, same in spelled.items()})
