"""The segmenter: CLIPSeg's layout; masks what a text names in a picture of 128x128.

    cartouche train recipes/segmenter.py pack=FOLDER

One layer of CLIP's image tower is enough to tell things from their ground; which thing is meant is told by the
detector's box, to which read/locate.py cuts every mask. One core (AMD EPYC, bf16): 140 images/s, three masks each.
Reached on the averaged weights: see benchmarks/results/reading.json.

Run here for 700 steps (22,000 pictures, five minutes of a core).
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from common import CLIP, PACK, image_tower, scenes, start_from, text_tower
from torch import nn

from cartouche.data.scenes import Mixture
from cartouche.nets.clipseg import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegTextConfig,
    CLIPSegVisionConfig,
)
from cartouche.text import Tokenizer
from cartouche.train.loop import Task, TrainSettings
from cartouche.train.reading import Segmentation
from cartouche.train.scenes import Masked
from cartouche.train.stream import Source
from cartouche.weights.folder import load_net, save_net

MIXTURE = Mixture(count=(0.2, 0.3, 0.25, 0.25), same=0.2, symbols=0.3)
SPACE = 48


@dataclass(frozen=True)
class Segmenter:
    """layers: how many of CLIP's image layers it starts from and keeps; all of them are read by the decoder."""

    name: str = "segmenter"
    pack: str = PACK
    clip: str = CLIP
    layers: int = 1
    settings: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            steps=3000,
            batch=32,
            optimizer="muon",
            learning_rate=5e-3,
            warmup=100,
            decay="constant",
            cooldown=600,
            weight_decay=0.05,
            ema=0.998,
            betas=(0.9, 0.98),
            save_every=250,
        )
    )

    def build_net(self) -> CLIPSegForImageSegmentation:
        clip = load_net(self.clip)
        config = CLIPSegConfig(
            text_config=text_tower(CLIPSegTextConfig, SPACE, layers=1),
            vision_config=image_tower(clip, self.layers, CLIPSegVisionConfig, SPACE),
            projection_dim=SPACE,
            extract_layers=tuple(range(self.layers)),
            reduce_dim=64,
            decoder_intermediate_size=256,
        )
        net = CLIPSegForImageSegmentation(config)
        start_from(clip, net.clip.vision_model)
        with torch.no_grad():  # a text begins by turning the picture up or down a little, and logits begin near 1
            net.decoder.film_mul.bias.fill_(1.0)
            net.decoder.transposed_convolution.weight.normal_(std=config.reduce_dim**-0.5)
        return net

    def task(self) -> Task:
        return Segmentation()

    def source(self) -> Source:
        stream = scenes(self.pack, "train", seed=13, mixture=MIXTURE)
        return Masked(stream, stream.pack.of("train"), Tokenizer.load(self.clip))

    def export(self, average: nn.Module, folder: Path) -> None:
        save_net(folder, average, "float16")


def settings() -> Segmenter:
    return Segmenter()
