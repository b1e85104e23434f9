"""CLIP: pictures and captions of scenes into one 512-d space; its text tower is what the denoiser listens to.

    cartouche train recipes/clip.py pack=FOLDER

Run on one core of two (AMD EPYC, Zen 4, bf16) beside another training, on from a CLIP that had learned from the
contrast alone (1,650 steps, 42 minutes): tokenizer=FOLDER start=FOLDER steps=1200 cooldown=900, 70 minutes, 37 pairs/s.
Recall@1 among 1,000 full captions of held-out scenes, before and after 250, 500, 750, 1,000 and 1,200 steps, averaged
weights: 0.46, 0.44, 0.60, 0.70, 0.76, 0.78. More of it in benchmarks/results/clip.json. From nothing it has
not been run.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from common import CONTEXT, NUMBERS, PACK, TOKENIZER_SCENES, VOCABULARY, facts, run_folder, scenes

from cartouche.data.captions import FULL, Manner
from cartouche.data.scenes import Mixture
from cartouche.data.streams import Scenes
from cartouche.measure.obedience import hundred_names
from cartouche.nets.clip import CLIPModel
from cartouche.nets.clip_config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from cartouche.text import Tokenizer
from cartouche.train.facts import Telling, Told, Witness
from cartouche.train.loop import Task, TrainSettings
from cartouche.train.sheets import matrix, save_png
from cartouche.train.sources import Tokenized, Turns
from cartouche.train.stream import Source
from cartouche.train.tasks import similarity
from cartouche.weights.folder import load_net, save_net

TEXT = CLIPTextConfig(
    vocab_size=VOCABULARY,
    max_position_embeddings=CONTEXT,
    hidden_size=256,
    intermediate_size=1024,
    num_hidden_layers=4,
    num_attention_heads=4,
    hidden_act="gelu",
    pad_token_id=VOCABULARY - 1,
    bos_token_id=VOCABULARY - 2,
    eos_token_id=VOCABULARY - 1,
)
VISION = CLIPVisionConfig(
    image_size=128,
    patch_size=16,
    hidden_size=256,
    intermediate_size=1024,
    num_hidden_layers=6,
    num_attention_heads=4,
    hidden_act="gelu",
)
COMPANY = Mixture(count=(0.6, 0.2, 0.1, 0.1), two_tone=0.0, settled=0.5)
TALK = Manner(style=0.85, background=0.9, colour=0.5, place=0.85, keyword=0.05)
CONFIG = CLIPConfig(text_config=TEXT, vision_config=VISION)


@dataclass(frozen=True)
class Clip:
    """Batches of scenes with one caption each, English or French.

    Every other run of `company` scenes shows the hundred names that the denoiser learns, all in one style on one
    ground: among strangers a caption finds its picture by ground, style and number, and the names are hardly learned.
    Both towers are asked for the facts of every scene besides (train/facts.py). start: a model folder's clip that is
    trained on, in place of a new one; give its tokenizer too.
    """

    name: str = "clip"
    pack: str = PACK
    tokenizer: str = str(run_folder("tokenizer"))
    start: str = ""
    company: int = 64
    favour: float = 18.0
    settings: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            steps=2500,
            batch=128,
            optimizer="muon",
            learning_rate=1.5e-3,
            warmup=30,
            decay="constant",
            cooldown=1900,
            weight_decay=0.01,
            ema=0.99,
            betas=(0.9, 0.98),
            save_every=100,
            sample_every=250,
        )
    )

    def build_net(self) -> Witness:
        return Witness(load_net(self.start) if self.start else CLIPModel(CONFIG), NUMBERS)

    def task(self) -> Task:
        return Telling()

    def source(self) -> Source:
        strangers, company = scenes(self.pack, "train", seed=3), scenes(self.pack, "train", seed=9, mixture=COMPANY)
        names = hundred_names(company.composer.drawings)
        company.composer = replace(company.composer, alike=self.company, favoured=names, favour=self.favour)
        known = facts(strangers.pack, strangers.composer.drawings)
        for one in (strangers, company):
            one.manner = TALK
        told = [Told(one, known) for one in (strangers, company)]
        return Tokenized(Turns(told, self.company), learned_tokenizer(self.tokenizer, strangers))

    def sample(self, average: Witness, png: Path, step: int) -> None:
        """The similarity matrix of 64 scenes never trained on, and recall@1 among 1,000 full captions."""
        stream = scenes(self.pack, "train", seed=4)
        stream.manner = FULL
        test = Tokenized(stream, Tokenizer.load(self.tokenizer))
        images, texts = encode(average.clip, test, 1000)
        scores = similarity(images, texts, average.clip.logit_scale)
        right = (scores.argmax(1) == torch.arange(len(scores))).float().mean()
        save_png(matrix(scores[:64, :64]), png)
        with (png.parent / "recall.jsonl").open("a") as file:
            file.write(f'{{"step": {step}, "recall@1": {right:.4f}, "captions": {len(scores)}}}\n')

    def export(self, average: Witness, folder: Path) -> None:
        save_net(folder, average.clip)
        Tokenizer.load(self.tokenizer).save(folder)


def learned_tokenizer(folder: str, stream: Scenes) -> Tokenizer:
    """The tokenizer in `folder`, learned there first from the stream's captions where there is none."""
    if not (Path(folder) / "tokenizer.json").is_file():
        captions = (stream.caption(stream.composer[i], i) for i in range(TOKENIZER_SCENES))
        Tokenizer.train(captions, VOCABULARY, CONTEXT).save(folder)
    return Tokenizer.load(folder)


@torch.no_grad()
def encode(clip: CLIPModel, source: Source, count: int, batch: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    """The unit vectors of the first `count` samples: pictures (count, 512) and captions (count, 512)."""
    images, texts = [], []
    for first in range(0, count, batch):
        samples = [source[i] for i in range(first, first + batch)]
        images.append(clip.encode_image(torch.stack([torch.from_numpy(s["image"]) for s in samples])))
        texts.append(clip.encode_text(torch.stack([torch.as_tensor(s["ids"]) for s in samples])))
    return torch.cat(images), torch.cat(texts)


def settings() -> Clip:
    return Clip()
