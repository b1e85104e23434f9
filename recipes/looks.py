"""What words look like: CLIP's text tower is taught to foresee the looks of things, before the denoiser listens to it.

    cartouche train recipes/looks.py pack=FOLDER

It needs the run of recipes/clip.py beside its own, or clip=FOLDER; with text=FOLDER it goes on from another tower.

Run three times, on two cores of an AMD EPYC (Zen 4, bf16); foreseen of the variance of looks, in captions never seen:

    850 steps, 7 minutes     read off all that follows a caption, in either order      one thing 81 %   two 64 %
    1,600 steps, 15 minutes  the same, in order of place                                         87 %       80 %
    700 steps, 8 minutes     as it stands here: each thing off places of its own                 87 %       87 %

(two: whose places are said; where they are not, 80 % in the last run.) Each went on from the tower that the denoiser
had trained on by then (text=FOLDER); the last with captions=60000 steps=700 cooldown=500 warmup=30. A linear reading of
CLIP's tower has 28 % of one thing's.
"""

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from common import MANNER, NUMBERS, PACK, run_folder, scenes

from cartouche.data.emoji import Pack
from cartouche.data.scenes import Mixture, Placed, cutout
from cartouche.measure.obedience import hundred_names
from cartouche.nets.clip import CLIPTextModel
from cartouche.read.memory import Look, Memory
from cartouche.text import Tokenizer
from cartouche.train.looks import Looks, Picturing, Teller, scale_of, squared_error
from cartouche.train.loop import Task, TrainSettings
from cartouche.train.stream import Source
from cartouche.weights.folder import load_net, save_net

MIXTURE = Mixture(
    count=(0.4, 0.5, 0.07, 0.03), same=0.2, settled=0.8, coloured=0.2
)  # two things are the harder ones to foresee
HELD = 2048  # captions of another stream, on which `sample` measures


@dataclass(frozen=True)
class LooksRecipe:
    """Captions of scenes; the hundred names that the denoiser learns are `favour` times as frequent as by chance."""

    name: str = "looks"
    pack: str = PACK
    captions: int = 60_000
    favour: float = 8.0
    clip: str = str(run_folder("clip") / "export")
    text: str = ""
    settings: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            steps=1000,
            batch=256,
            optimizer="muon",
            learning_rate=2.5e-3,
            warmup=50,
            decay="constant",
            cooldown=750,
            ema=0.99,
            save_every=300,
            sample_every=300,
        )
    )

    def build_net(self) -> Teller:
        return Teller(self.tower(), NUMBERS)

    def task(self) -> Task:
        return Picturing(self.tower())

    def tower(self) -> CLIPTextModel:
        """The text tower in `text`, or else CLIP's as a net of its own."""
        if self.text:
            return load_net(self.text)
        clip = load_net(self.clip)
        text = CLIPTextModel(clip.config.text_config).eval()
        text.text_model.load_state_dict(clip.text_model.state_dict())
        return text

    def source(self) -> Source:
        return self.looks(seed=55, count=self.captions, batch=self.settings.batch)

    @cached_property
    def memory(self) -> Memory:
        """The train drawings, summed up."""
        pack = Pack(self.pack)
        return Memory.of(pack.of("train"), pack.pixels, NUMBERS)

    def looks(self, seed: int, count: int, batch: int) -> Looks:
        """Captions and looks of the stream of scenes number `seed`; what differs most among looks counts most."""
        stream = scenes(self.pack, "train", seed, MIXTURE)
        names = hundred_names(stream.composer.drawings)
        stream.composer = replace(stream.composer, favoured=names, favour=self.favour)
        stream.manner = replace(MANNER, place=1.0)
        memory = self.memory
        scale = scale_of(memory.codes * memory.scale)

        def look(placed: Placed) -> np.ndarray:
            x0, y0, x1, y1 = placed.box
            colour, alpha = cutout(stream.pack.pixels(placed.drawing), (x1 - x0, y1 - y0), placed)
            return memory.numbers(Look(colour / 255, alpha[..., 0])) / scale

        return Looks.of(stream, Tokenizer.load(self.clip), look, count, batch)

    @torch.no_grad()
    def sample(self, average: Teller, png: Path, step: int) -> None:
        """How much of the looks of things in captions never trained on is foreseen."""
        held = self.looks(seed=56, count=HELD, batch=HELD).gather(range(HELD))
        ids, wanted, placed = (torch.from_numpy(held[name]) for name in ("ids", "looks", "placed"))
        away = squared_error(average(ids)[0], wanted, placed)
        spread = (wanted - wanted.mean(0)).square().mean()
        lone = (wanted[:, 0] == wanted[:, 1]).all(1)
        shares = {"lone": lone, "two, placed": placed & ~lone, "two, not placed": ~placed}
        foreseen = {name: round(float(1 - away[rows].mean() / spread), 4) for name, rows in shares.items()}
        with (png.parent / "looks.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "foreseen": foreseen, "captions": HELD}) + "\n")

    def export(self, average: Teller, folder: Path) -> None:
        save_net(folder, average.text_encoder)


def settings() -> LooksRecipe:
    return LooksRecipe()
