"""The referee: finds and names the objects of a scene, its style and its background.

It judges drawings, so it is trained apart from the CLIP that conditions them, with exact labels.

    cartouche train recipes/referee.py pack=FOLDER
"""

from dataclasses import dataclass, field
from pathlib import Path

from common import PACK, scenes
from torch import nn

from cartouche.data import palette
from cartouche.data.emoji import Pack
from cartouche.data.scenes import Mixture
from cartouche.nets.referee import Referee, RefereeConfig
from cartouche.train.loop import Task, TrainSettings
from cartouche.train.referee import RefereeSamples, RefereeTask
from cartouche.train.stream import Source
from cartouche.weights.folder import save_net

MIXTURE = Mixture(count=(0.4, 0.25, 0.2, 0.15), symbols=0.15)


@dataclass(frozen=True)
class RefereeRecipe:
    """Batches of 48 scenes, softened and noised at random so that drawn pictures are read like true ones."""

    name: str = "referee"
    pack: str = PACK
    width: int = 128
    depth: int = 2
    settings: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            steps=2600,
            batch=48,
            learning_rate=2e-3,
            warmup=100,
            weight_decay=0.05,
            ema=0.997,
            channels_last=True,
            save_every=200,
        )
    )

    def build_net(self) -> Referee:
        return Referee(config(self.pack, self.width, self.depth))

    def task(self) -> Task:
        return RefereeTask()

    def source(self) -> Source:
        return RefereeSamples(
            scenes(self.pack, "train", seed=6, mixture=MIXTURE), config(self.pack, self.width, self.depth)
        )

    def export(self, average: nn.Module, folder: Path) -> None:
        save_net(folder, average)


def config(pack: str, width: int, depth: int) -> RefereeConfig:
    """One class for each concept of the train split."""
    train = Pack(pack).of("train")
    concepts = tuple(sorted({d.concept for d in train}))
    styles = tuple(sorted({d.style for d in train}))
    return RefereeConfig(concepts, styles, palette.NAMES, width, depth)


def settings() -> RefereeRecipe:
    return RefereeRecipe()
