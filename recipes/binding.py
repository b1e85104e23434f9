"""Binding: CLIP told to mind the small things, with hard negatives or, for comparison, without.

    cartouche train recipes/binding.py pack=FOLDER hard=true out=runs/binding-hard
    cartouche train recipes/binding.py pack=FOLDER hard=false out=runs/binding-plain

Both see the same pairs of scenes and the same captions. With hard negatives the two of a pair lie side by side in a
batch, and are told apart alone, too; without, they come a batch after each other. benchmarks/binding.py compares them.

Run once each, on one core of an AMD EPYC (Zen 4, bf16): hard 22 minutes (25 pictures/s), plain 15 (36). Group score of
800 pairs 25 % and 20 %, 21 % before (see docs/journal.md).
"""

from dataclasses import dataclass, field
from pathlib import Path

from common import CLIP, PACK, scenes
from torch import nn

from cartouche.data.negatives import Negatives
from cartouche.data.scenes import Mixture
from cartouche.nets.clip import CLIPModel
from cartouche.text import Tokenizer
from cartouche.train.binding import Binding, Bound
from cartouche.train.loop import Task, TrainSettings
from cartouche.train.stream import Source
from cartouche.weights.folder import load_net, save_net

MIXTURE = Mixture(count=(0.2, 0.4, 0.25, 0.15), same=0.3, symbols=0.0, two_tone=0.05)


@dataclass(frozen=True)
class BindingRecipe:
    """hard: with hard negatives. Starts from the built-in CLIP."""

    name: str = "binding"
    pack: str = PACK
    clip: str = CLIP
    hard: bool = True
    settings: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            steps=500,
            batch=64,
            optimizer="muon",
            learning_rate=1.5e-3,
            warmup=30,
            decay="constant",
            cooldown=350,
            weight_decay=0.01,
            ema=0.98,
            betas=(0.9, 0.98),
            save_every=100,
        )
    )

    def build_net(self) -> CLIPModel:
        return load_net(self.clip)

    def task(self) -> Task:
        return Binding(self.hard)

    def source(self) -> Source:
        stream = scenes(self.pack, "train", seed=14, mixture=MIXTURE)
        negatives, apart = Negatives(stream.pack.of("train")), 1 if self.hard else self.settings.batch
        return Bound(stream, negatives, Tokenizer.load(self.clip), apart=apart)

    def export(self, average: nn.Module, folder: Path) -> None:
        save_net(folder, average, "float16")
        Tokenizer.load(self.clip).save(folder)


def settings() -> BindingRecipe:
    return BindingRecipe()
