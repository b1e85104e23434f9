"""The captioner: LLaVA's layout; says what a picture of 128x128 shows, and answers questions about it.

    cartouche train recipes/captioner.py pack=FOLDER

It starts from the first layers of CLIP's image tower; the layers of the language model go on from there. One core (AMD
EPYC, bf16): 75 images/s with a caption and three answers each. Reached on the averaged weights: see
benchmarks/results/reading.json.

Run here for 1,150 steps (55,000 pictures, twenty minutes of a core beside tests).
"""

from dataclasses import dataclass, field
from pathlib import Path

from common import CLIP, PACK, VOCABULARY, image_tower, scenes, start_from
from torch import nn

from cartouche.data.dialogue import Marks, scene_words
from cartouche.data.emoji import Pack
from cartouche.data.questions import Asker
from cartouche.data.scenes import Mixture
from cartouche.nets.clip_config import CLIPVisionConfig
from cartouche.nets.llama import LlamaConfig
from cartouche.nets.llava import LlavaConfig, LlavaForConditionalGeneration
from cartouche.text import Tokenizer
from cartouche.train.describing import Described, Describing
from cartouche.train.loop import Task, TrainSettings
from cartouche.train.stream import Source
from cartouche.weights.folder import load_net, save_net, write_json

MIXTURE = Mixture(count=(0.25, 0.25, 0.25, 0.25), same=0.35, symbols=0.3)
IMAGE = VOCABULARY  # one id more than the tokenizer has
MARKS = Marks(start=VOCABULARY - 2, end=VOCABULARY - 1, image=IMAGE, patches=64)


@dataclass(frozen=True)
class Captioner:
    """layers: how many of CLIP's image layers it starts from and keeps; width, depth: of the language model."""

    name: str = "captioner"
    pack: str = PACK
    clip: str = CLIP
    layers: int = 2
    width: int = 160
    depth: int = 3
    settings: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            steps=3500,
            batch=48,
            optimizer="muon",
            learning_rate=3e-3,
            warmup=100,
            decay="constant",
            cooldown=700,
            weight_decay=0.05,
            ema=0.998,
            betas=(0.9, 0.98),
            save_every=250,
        )
    )

    def build_net(self) -> LlavaForConditionalGeneration:
        clip = load_net(self.clip)
        net = LlavaForConditionalGeneration(
            config(image_tower(clip, self.layers, CLIPVisionConfig), self.width, self.depth)
        )
        start_from(clip, net.vision_tower.vision_model)
        return net

    def task(self) -> Task:
        return Describing(MARKS)

    def source(self) -> Source:
        stream = scenes(self.pack, "train", seed=12, mixture=MIXTURE)
        return Described(stream, Asker(stream.pack.of("train")), Tokenizer.load(self.clip), MARKS)

    def export(self, average: nn.Module, folder: Path) -> None:
        """The net, and the words that a scene may be said in."""
        save_net(folder, average, "float16")
        write_json(folder / "words.json", scene_words(Pack(self.pack).of("train")))


def config(vision: CLIPVisionConfig, width: int, depth: int) -> LlavaConfig:
    """A narrow language model whose words go in and out by one table; it reads the image tower's last states."""
    text = LlamaConfig(
        vocab_size=VOCABULARY + 1,
        hidden_size=width,
        intermediate_size=64 * round(2.5 * width / 64),
        num_hidden_layers=depth,
        num_attention_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=VOCABULARY - 1,
        bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=MARKS.patches,
        vision_feature_layer=-1,
    )


def settings() -> Captioner:
    return Captioner()
