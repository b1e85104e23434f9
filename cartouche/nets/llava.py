"""LLaVA: a language model that reads pictures as words of its own (Liu et al. 2023, "Improved Baselines").

CLIP's patch states of one layer, taken through two linear layers, stand in the prompt where the image token stood, one
after another; several pictures may stand in one prompt. Names and numbers are those of transformers' Llava, in the
spelling of its published files.
"""

# A torch module's call, and some tensor methods, carry no types:
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cartouche.config import CartoucheError
from cartouche.nets.clip import CLIPVisionModel
from cartouche.nets.clip_config import GENERAL, CLIPVisionConfig
from cartouche.nets.llama import LlamaConfig, LlamaForCausalLM
from cartouche.nets.settings import NetConfig

STRATEGIES = ("default", "full")


@dataclass(frozen=True)
class LlavaConfig(NetConfig):
    """Both halves and how they meet.

    image_token_index: the id that stands for a patch of a picture. vision_feature_layer: whose states are read, as an
    index into those before the first layer and after each. vision_feature_select_strategy: "default" leaves out the
    class token, "full" keeps it.
    """

    vision_config: CLIPVisionConfig = field(default_factory=CLIPVisionConfig)
    text_config: LlamaConfig = field(default_factory=LlamaConfig)
    image_token_index: int = 32000
    image_seq_length: int = 576
    vision_feature_layer: int | tuple[int, ...] = -2
    vision_feature_select_strategy: str = "default"
    multimodal_projector_bias: bool = True
    architectures: tuple[str, ...] | None = ("LlavaForConditionalGeneration",)

    HEADER: ClassVar[Mapping[str, str]] = {"model_type": "llava"}
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"projector_hidden_act": ("gelu",)}
    IGNORED: ClassVar[frozenset[str]] = GENERAL | {"ignore_index", "pad_token_id", "vocab_size"}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """The configuration in a config.json; newer ones may say image_token_id for image_token_index."""
        values = dict(given)
        token = values.pop("image_token_id", None)
        if token is not None and values.setdefault("image_token_index", token) != token:
            other = values["image_token_index"]
            raise CartoucheError(
                f"image_token_id={token} and image_token_index={other} name one thing; give one of them"
            )
        vision, text = (dict(given.get(name) or {}) for name in ("vision_config", "text_config"))
        for half in (vision, text):
            half.pop("architectures", None)
        vision.pop("vocab_size", None)  # some files give it to the wrong half too
        if given.get("tie_word_embeddings"):
            text["tie_word_embeddings"] = True  # either half may say so
        halves = {"vision_config": CLIPVisionConfig.from_dict(vision), "text_config": LlamaConfig.from_dict(text)}
        return super().from_dict(values | halves)

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that transformers reads as config.json."""
        halves = {"vision_config": self.vision_config.to_dict(), "text_config": self.text_config.to_dict()}
        tied = {"tie_word_embeddings": self.text_config.tie_word_embeddings}
        return super().to_dict() | halves | tied

    def check(self) -> None:
        if self.vision_feature_select_strategy not in STRATEGIES:
            raise CartoucheError(
                f"vision_feature_select_strategy={self.vision_feature_select_strategy!r}; choose one of {STRATEGIES}"
            )
        depth = self.vision_config.num_hidden_layers
        if any(not -depth - 1 <= layer <= depth for layer in self.layers):
            raise CartoucheError(f"vision_feature_layer={self.vision_feature_layer} of a tower of {depth} layers")
        if self.image_token_index >= self.text_config.vocab_size:
            raise CartoucheError(
                f"image_token_index={self.image_token_index} in a vocabulary of {self.text_config.vocab_size}; "
                f"make text_config.vocab_size larger"
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose states are read."""
        chosen = self.vision_feature_layer
        return (chosen,) if isinstance(chosen, int) else chosen

    @property
    def image_tokens(self) -> int:
        """How many places one picture takes in a prompt."""
        grid = (self.vision_config.image_size // self.vision_config.patch_size) ** 2
        return grid + (self.vision_feature_select_strategy == "full")


class LlavaMultiModalProjector(nn.Module):
    """From the picture's space into the words': (I, P, D) -> (I, P, width of the language model)."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        width, bias = config.text_config.hidden_size, config.multimodal_projector_bias
        self.linear_1 = nn.Linear(config.vision_config.hidden_size * len(config.layers), width, bias=bias)
        self.linear_2 = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(x)))


class LlavaForConditionalGeneration(nn.Module):
    """Pictures and words in, the next word's logits out. Pictures, words and steps can be computed apart."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = CLIPVisionModel(config.vision_config)
        self.multi_modal_projector = LlavaMultiModalProjector(config)
        self.language_model = LlamaForCausalLM(config.text_config)

    def features(self, pixels: Tensor) -> Tensor:
        """Pictures (I, 3, H, W) as words: (I, image_tokens, width of the language model)."""
        states = self.vision_tower.vision_model.hidden_states(pixels)
        first = 0 if self.config.vision_feature_select_strategy == "full" else 1
        return self.multi_modal_projector(torch.cat([states[i][:, first:] for i in self.config.layers], dim=-1))

    def embed(self, ids: Tensor) -> Tensor:
        """Tokens (B, N) as vectors (B, N, D); an image token's is a place to be filled."""
        return self.language_model.embed(ids)

    def prompt(self, ids: Tensor, features: Tensor) -> Tensor:
        """The vectors of a prompt (B, N, D), pictures put in place of the image tokens.

        ids: (B, N), with image_tokens image tokens for each picture; features: (I, image_tokens, D), the pictures of
        the first row, then those of the second and so on. Raises CartoucheError where the numbers do not fit.
        """
        images = ids == self.config.image_token_index
        places, given = int(images.sum()), features.shape[0] * features.shape[1]
        if places != given:
            raise CartoucheError(f"{places} image tokens in the prompt for {given} tokens of pictures; make them equal")
        embeds = self.embed(ids)
        return embeds.masked_scatter(images[..., None], features.to(embeds.dtype))

    def empty(self, batch: int) -> tuple[Tensor, Tensor]:
        """The memory of nothing, for `step`."""
        return self.language_model.empty(batch)

    def step(self, embeds: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read more tokens' vectors (B, N, D) after a memory: logits (B, N, vocabulary) and the longer memory."""
        return self.language_model.step(embeds, keys, values)

    def forward(self, ids: Tensor, pixels: Tensor) -> Tensor:
        """ids (B, N) and the pictures (I, 3, H, W) of all rows. Returns logits (B, N, vocabulary)."""
        return self.step(self.prompt(ids, self.features(pixels)), *self.empty(len(ids)))[0]
