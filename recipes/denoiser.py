"""The denoiser: from noise and a caption to the latents of a picture.

    cartouche train recipes/denoiser.py pack=FOLDER

It needs the runs of recipes/autoencoder.py, recipes/clip.py and recipes/looks.py beside its own. The first start
encodes the scenes (six minutes on one core).

Run seven times. On one core of an AMD EPYC (bf16): 147,000 pictures with AdamW, then 4,200 steps of 48 with Muon as it
stands here, the text tower held. On one core of an Intel Xeon (AMX), from those weights: 1,740 steps of 96 with the
text tower (start=FOLDER steps=1740 cooldown=990 batch=96, text_rate 0.25 at first, 0.75 from step 460), 85 minutes at
33 images/s. On two cores of an AMD EPYC (Zen 4), from those weights but with the tower of recipes/looks.py as it first
was: 1,500 steps of 96 (start=FOLDER text=FOLDER batch=96 text_rate=0.3 warmup=60 steps=1500 cooldown=1150), 80 minutes
at 31 images/s; it moved more than all before. There again, with MIXTURE as it stands here (twice as many pairs of
different things): 480 steps with the tower that told both things by all tokens, then 900 with the one that tells each
at places of its own (compile=true warmup=40 steps=900 cooldown=720), 70 minutes together, 33 images/s: what stood on
which side was chance before, and is obeyed now. There again, with as much care for how things look as for what they are
and where (start=FOLDER shift=1 batch=96 text_rate=0.3 compile=true warmup=40 steps=1350 cooldown=1080): 72 minutes, 31
images/s; style of one thing 46 to 56 %, of two 52 to 67 %. There again, with outlines in several colours (MIXTURE) and
captions that leave more open (MANNER in common.py), cached anew, and the tower of recipes/looks.py taught by the same:
900 steps on one core, 88 minutes, which alone were no better, then to 2,950 with a cooldown of 1,500 on both, two
hours, 31 images/s (start=FOLDER text=FOLDER shift=1 batch=96 text_rate=0.3 compile=true warmup=40 steps=2950
cooldown=1500): one object of a hundred names 75 to 86 %, both of two 75 to 85, style 56 to 62 and 67 to 74. Reached on
the averaged weights: see benchmarks/results/drawing.json, and docs/journal.md for what is left to learn and how to go
on.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from common import MANNER, PACK, run_folder, scenes

from cartouche.data.scenes import Mixture
from cartouche.diffusion.guidance import guided
from cartouche.diffusion.noise import NoiseSource
from cartouche.diffusion.samplers import sample as sampling
from cartouche.diffusion.samplers import sampler
from cartouche.diffusion.schedule import from_config
from cartouche.measure.obedience import hundred_names
from cartouche.nets.unet import UNet2DConditionModel, zero_init_residuals
from cartouche.nets.unet_config import UNetConfig
from cartouche.text import Tokenizer
from cartouche.train import latents
from cartouche.train.drawing import Drawer
from cartouche.train.loop import Task, TrainSettings
from cartouche.train.sheets import save_png, sheet
from cartouche.train.stream import Source
from cartouche.train.tasks import Denoising
from cartouche.weights.folder import load_net, save_net, write_json

CONFIG = UNetConfig(
    sample_size=16,
    in_channels=8,
    out_channels=8,
    block_out_channels=(112, 256, 256),  # thin where the grid is fine: most arithmetic is done on 8x8
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=16,
    cross_attention_dim=256,
    attention_head_dim=8,
    use_linear_projection=True,
    addition_embed_type="text",
    addition_embed_type_num_heads=8,
)
SCHEDULER = {  # cosine, down to pure noise: a flat ground's colour survives any smaller amount of noise
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
}
MIXTURE = Mixture(count=(0.45, 0.4, 0.075, 0.075), same=0.25, tint=0.3, settled=0.8, coloured=0.12)
PROMPTS = (
    "a fox on a blue background, flat style",
    "a sunflower on a white background, 3D style",
    "two owls on a green background, noto style",
    "an umbrella to the left of a camera on a yellow background",
    "a rabbit above a tangerine, blob style, pink background",
    "trois canards sur fond violet, style twemoji",
    "un dauphin sur fond orange",
    "a crab, outline style, on a white background",
)


@dataclass(frozen=True)
class Denoiser:
    """scenes: how many are encoded once and trained on again and again, each with two captions.

    text_rate: at what share of the U-Net's rate the text tower learns. start: a model folder whose U-Net and text tower
    are trained on, in place of a new net and the tower of recipes/looks.py; text: another tower than that.

    shift: towards noise, where it is learned what is to be drawn and where; with 1 half of the steps are of the later
    half of the ladder, where it is learned how that looks.

    favour: how many times as often the hundred names of measure/obedience.py are drawn; at 18 they are three objects in
    four: a net this small, trained this briefly, has no time for fifteen hundred (it has not learned the hundred yet).
    """

    name: str = "denoiser"
    pack: str = PACK
    scenes: int = 32_768
    favour: float = 18.0
    drop: float = 0.1
    shift: float = 3.0
    text: str = ""
    text_rate: float = 0.25
    start: str = ""
    autoencoder: str = str(run_folder("autoencoder") / "export")
    clip: str = str(run_folder("clip") / "export")
    cache: str = str(run_folder("latents"))
    settings: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            steps=4200,
            batch=48,
            optimizer="muon",
            learning_rate=1.2e-3,
            warmup=100,
            decay="constant",
            cooldown=2400,
            weight_decay=0.01,
            ema=0.998,
            channels_last=True,
            save_every=250,
            sample_every=500,
        )
    )

    def build_net(self) -> Drawer:
        net = load_net(Path(self.start) / "unet") if self.start else UNet2DConditionModel(CONFIG)
        if not self.start:
            zero_init_residuals(net)
        own = Path(self.start) / "text_encoder" if self.start else run_folder("looks") / "export"
        return Drawer(net, load_net(self.text or own), self.text_rate)

    def task(self) -> Task:
        self.prepare()
        _, empty = latents.opened(self.cache)
        return Denoising(from_config(SCHEDULER), empty, kind="v_prediction", drop=self.drop, shift=self.shift)

    def source(self) -> Source:
        self.prepare()
        return latents.opened(self.cache)[0]

    def prepare(self) -> None:
        """Encode the scenes, where that is still to be done."""
        stream = scenes(self.pack, "train", seed=7, mixture=MIXTURE)
        names = hundred_names(stream.composer.drawings)
        stream.composer = replace(stream.composer, favoured=names, favour=self.favour)
        stream.manner = MANNER
        latents.compute(Path(self.cache), load_net(self.autoencoder), Tokenizer.load(self.clip), stream, self.scenes)

    def sample(self, average: Drawer, png: Path, step: int) -> None:
        """Eight prompts, drawn twice each in 20 steps with guidance 4."""
        text, vae, tokenizer = average.text_encoder, load_net(self.autoencoder), Tokenizer.load(self.clip)
        prompts = [p for p in PROMPTS for _ in range(2)]
        states, empty = (text(torch.from_numpy(tokenizer.batch(t)))[0] for t in (prompts, [""]))
        denoise = guided(average.unet, "v_prediction", states, empty, guidance_scale=4.0)
        noise = NoiseSource(0, range(len(prompts)), (8, 16, 16), convert=torch.from_numpy)
        steps = sampling(denoise, noise(0), from_config(SCHEDULER).levels(20), sampler("ddim"), noise)
        *_, last = steps
        pictures = vae.decode(last.x / vae.config.scaling_factor).clamp(-1, 1)
        save_png(sheet(pictures, columns=8), png)

    def export(self, average: Drawer, folder: Path) -> None:
        save_net(folder / "unet", average.unet)
        save_net(folder / "text_encoder", average.text_encoder)
        (folder / "scheduler").mkdir(parents=True, exist_ok=True)
        write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)


def settings() -> Denoiser:
    return Denoiser()
