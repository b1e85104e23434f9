"""Binding: CLIP told to mind the small things, with hard negatives or, for comparison, without.

    cartouche train recipes/binding.py pack=FOLDER hard=true out=runs/binding-hard
    cartouche train recipes/binding.py pack=FOLDER hard=false out=runs/binding-plain

Both see the same pairs of scenes and the same captions, and both are asked for the facts of every scene
(train/facts.py). With hard negatives the two of a pair lie side by side in a batch, and are told apart alone, too;
without, they come a batch after each other. benchmarks/binding.py compares them.

Run once each, on one core of an AMD EPYC (Zen 4, bf16) beside the other: 1,000 steps with a cooldown of 600, hard 36
minutes (30 pictures/s), plain 32, then gone on with to 1,500 steps as it stands here, 18 and 16 minutes. Group score of
800 pairs, 20 % before: hard 60 % after 1,000 steps and 74 % after 1,500, plain 28 % and 45 %.
"""

from dataclasses import dataclass, field
from pathlib import Path

from common import CLIP, NUMBERS, PACK, facts, scenes

from cartouche.data.negatives import Negatives, Pairs
from cartouche.data.scenes import Mixture
from cartouche.text import Tokenizer
from cartouche.train.binding import Binding, Bound
from cartouche.train.facts import Telling, Witness
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
            steps=1500,
            batch=64,
            optimizer="muon",
            learning_rate=1.5e-3,
            warmup=30,
            decay="constant",
            cooldown=1100,
            weight_decay=0.01,
            ema=0.98,
            betas=(0.9, 0.98),
            save_every=250,
        )
    )

    def build_net(self) -> Witness:
        return Witness(load_net(self.clip), NUMBERS)

    def task(self) -> Task:
        return Binding() if self.hard else Telling()

    def source(self) -> Source:
        stream = scenes(self.pack, "train", seed=14, mixture=MIXTURE)
        drawings = stream.pack.of("train")
        pairs, apart = Pairs(stream.composer, Negatives(drawings)), 1 if self.hard else self.settings.batch
        return Bound(stream.pack, pairs, facts(stream.pack, drawings), Tokenizer.load(self.clip), apart=apart)

    def export(self, average: Witness, folder: Path) -> None:
        save_net(folder, average.clip, "float16")
        Tokenizer.load(self.clip).save(folder)


def settings() -> BindingRecipe:
    return BindingRecipe()
