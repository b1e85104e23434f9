"""The referee: finds and names the objects of a scene, its style and its background.

It judges drawings, so it is trained apart from the CLIP that conditions them, with exact labels.

    cartouche train recipes/referee.py pack=FOLDER

Run on one core of two (AMD EPYC, bf16), 12 minutes at 95 images/s, then 1,950 steps more from those weights beside
tests. Its accuracy on true scenes stands beside every figure in benchmarks/results/drawing.json.
"""

from dataclasses import dataclass, field
from pathlib import Path

from common import PACK
from torch import nn

from cartouche.data import palette
from cartouche.data.emoji import Drawing, Pack
from cartouche.data.scenes import Composer, Mixture
from cartouche.data.streams import Scenes
from cartouche.measure.obedience import hundred_names
from cartouche.nets.referee import Referee, RefereeConfig
from cartouche.train.loop import Task, TrainSettings
from cartouche.train.referee import RefereeSamples, RefereeTask
from cartouche.train.stream import Source
from cartouche.weights.folder import save_net

MIXTURE = Mixture(count=(0.4, 0.25, 0.2, 0.15), symbols=0, settled=0.3)


@dataclass(frozen=True)
class RefereeRecipe:
    """Batches of 48 scenes, softened and noised at random so that drawn pictures are read like true ones."""

    name: str = "referee"
    pack: str = PACK
    width: int = 128
    depth: int = 2
    settings: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            steps=1950,
            batch=48,
            learning_rate=1.5e-3,
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
        pack = Pack(self.pack)
        composer = Composer(drawings(pack), seed=6, mixture=MIXTURE)
        return RefereeSamples(Scenes(pack, composer), config(self.pack, self.width, self.depth))

    def export(self, average: nn.Module, folder: Path) -> None:
        save_net(folder, average, "float16")


def drawings(pack: Pack) -> list[Drawing]:
    """The train split's drawings of the hundred names: the referee has to tell these apart, and learns them well."""
    train = pack.of("train")
    names = set(hundred_names(train))
    return [d for d in train if d.concept in names]


def config(pack: str, width: int, depth: int) -> RefereeConfig:
    """One class for each of the hundred names."""
    known = drawings(Pack(pack))
    concepts, styles = sorted({d.concept for d in known}), sorted({d.style for d in known})
    return RefereeConfig(tuple(concepts), tuple(styles), palette.NAMES, width, depth)


def settings() -> RefereeRecipe:
    return RefereeRecipe()
