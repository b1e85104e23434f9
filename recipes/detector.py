"""The detector: OWL-ViT's layout; finds what a text names in a picture of 128x128.

    cartouche train recipes/detector.py pack=FOLDER

It starts from the first layers of CLIP's image tower; a small text tower of its own learns the names (half of CLIP's
weights are its text tower, and 96 numbers tell 3,000 names apart). One core (AMD EPYC, bf16): 140 images/s. Reached on
the averaged weights: see benchmarks/results/reading.json.

Run here: 1,400 steps of 64 with AdamW at 6e-4, then 1,900 of 32 as it stands: 150,000 pictures, about half an hour
of a core.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from common import CLIP, PACK, image_tower, scenes, start_from, text_tower
from torch import nn

from cartouche.data.emoji import Pack
from cartouche.data.scenes import Mixture
from cartouche.nets.owlvit import OwlViTConfig, OwlViTForObjectDetection, OwlViTTextConfig, OwlViTVisionConfig
from cartouche.text import Tokenizer
from cartouche.train.loop import Task, TrainSettings
from cartouche.train.reading import Detection
from cartouche.train.scenes import Families, Pointed
from cartouche.train.stream import Source
from cartouche.weights.folder import load_net, save_net

MIXTURE = Mixture(count=(0.2, 0.2, 0.2, 0.4), same=0.15, symbols=0.3)  # many names a picture
SPACE = 96  # the width of a query


@dataclass(frozen=True)
class Detector:
    """layers: how many of CLIP's image layers it starts from and keeps. Its own small text tower learns the names."""

    name: str = "detector"
    pack: str = PACK
    clip: str = CLIP
    layers: int = 3
    settings: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            steps=6000,
            batch=32,
            optimizer="muon",
            learning_rate=2e-3,
            warmup=100,
            decay="constant",
            cooldown=1200,
            weight_decay=0.05,
            ema=0.998,
            betas=(0.9, 0.98),
            clip=50.0,
            save_every=250,
        )
    )

    def build_net(self) -> OwlViTForObjectDetection:
        clip = load_net(self.clip)
        text = text_tower(OwlViTTextConfig, SPACE, layers=2)
        vision = image_tower(clip, self.layers, OwlViTVisionConfig, SPACE)
        net = OwlViTForObjectDetection(OwlViTConfig(text_config=text, vision_config=vision, projection_dim=SPACE))
        start_from(clip, net.owlvit.vision_model)
        with torch.no_grad():  # likeness 0.5 is a chance of one half, and no likeness is a chance of 0.00005
            net.owlvit.vision_model.post_layernorm.weight.fill_(0.5)  # (1 + p/2) (1 + c/2): a patch times the whole
            net.owlvit.vision_model.post_layernorm.bias.fill_(1.0)  # begins as their sum, not with signs turned
            for head, start in ((net.class_head.logit_scale, 19.0), (net.class_head.logit_shift, -0.5)):
                head.weight.zero_()
                head.bias.fill_(start)
        return net

    def task(self) -> Task:
        families = Families(Pack(self.pack), "train", Tokenizer.load(self.clip))
        return Detection(torch.from_numpy(families.ids), torch.from_numpy(families.of_ids))

    def source(self) -> Source:
        tokenizer = Tokenizer.load(self.clip)
        stream = scenes(self.pack, "train", seed=11, mixture=MIXTURE)
        return Pointed(stream, Families(stream.pack, "train", tokenizer), tokenizer)

    def export(self, average: nn.Module, folder: Path) -> None:
        save_net(folder, average, "float16")


def settings() -> Detector:
    return Detector()
