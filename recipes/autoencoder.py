"""The autoencoder: 128x128 pictures to 16x16x8 latents and back.

    cartouche train recipes/autoencoder.py pack=FOLDER

Run on one core of two (AMD EPYC, bf16), 33 minutes at 42 images/s beside another training. Reached on the averaged
weights: see benchmarks/results/autoencoder.json.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from common import PACK, scenes
from torch import nn

from cartouche.data.scenes import Mixture
from cartouche.nets.autoencoder import AutoencoderConfig, AutoencoderKL
from cartouche.train.latents import latent_scale
from cartouche.train.loop import Task, TrainSettings
from cartouche.train.sheets import save_png, sheet
from cartouche.train.stream import Source
from cartouche.train.tasks import Autoencoding
from cartouche.weights.folder import save_net

CONFIG = AutoencoderConfig(
    block_out_channels=(32, 64, 96, 128),
    latent_channels=8,
    norm_num_groups=1,  # one group: a flat ground keeps its colour through the normalisation
    mid_block_add_attention=False,  # so that training on quarter pictures carries over to whole ones
    sample_size=128,
)
MIXTURE = Mixture(count=(0.3, 0.3, 0.2, 0.2), symbols=0.3)


@dataclass(frozen=True)
class Autoencoder:
    """Trained on 64x64 cuts: four times the pictures for the same arithmetic."""

    name: str = "autoencoder"
    pack: str = PACK
    crop: int = 64
    kl: float = 1e-4
    edges: float = 0.15
    settings: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            steps=5000,
            batch=16,
            learning_rate=8e-4,
            warmup=50,
            weight_decay=1e-3,
            ema=0.998,
            channels_last=True,
            save_every=250,
            sample_every=500,
        )
    )

    def build_net(self) -> AutoencoderKL:
        net = AutoencoderKL(CONFIG)
        with torch.no_grad():
            net.quant_conv.bias[CONFIG.latent_channels :] = -4.0  # begin with little noise on the latents
        return net

    def task(self) -> Task:
        return Autoencoding("huber", beta=0.2, kl=self.kl, edges=self.edges, scales=2)

    def source(self) -> Source:
        return scenes(self.pack, "train", seed=1, mixture=MIXTURE, crop=self.crop)

    def sample(self, average: nn.Module, png: Path, step: int) -> None:
        """Twelve scenes of test drawings above what comes back."""
        test = scenes(self.pack, "test", seed=2)
        pictures = torch.stack([torch.from_numpy(test[i]["image"]) for i in range(12)])
        mean = average.encode(pictures).chunk(2, 1)[0]
        again = average.decode(mean).clamp(-1, 1)
        psnr = 10 * torch.log10(4 / (again - pictures).square().mean((1, 2, 3)))
        save_png(sheet(torch.cat([pictures, again]), columns=12), png)
        with (png.parent / "psnr.jsonl").open("a") as file:
            file.write(f'{{"step": {step}, "psnr": {psnr.mean():.3f}}}\n')

    def export(self, average: nn.Module, folder: Path) -> None:
        """Save with the scaling factor that makes the latents of scenes unit."""
        factor = latent_scale(average, scenes(self.pack, "train", seed=1))
        average.config = replace(average.config, scaling_factor=round(factor, 5))
        save_net(folder, average)


def settings() -> Autoencoder:
    return Autoencoder()
