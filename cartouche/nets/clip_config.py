"""The configurations of CLIP's towers, field by field those of transformers' config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from cartouche.config import CartoucheError
from cartouche.nets.settings import NetConfig, check_divides

ACTIVATIONS = ("quick_gelu", "gelu")

# Settings that transformers writes into every config.json, most of them about generating text; none shapes CLIP.
# fmt: off
GENERAL = frozenset({
    "add_cross_attention", "bad_words_ids", "begin_suppress_tokens", "chunk_size_feed_forward",
    "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype",
    "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "finetuning_task",
    "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "id2label", "is_decoder",
    "is_encoder_decoder", "label2id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_return_sequences", "output_attentions", "output_hidden_states",
    "output_scores", "prefix", "problem_type", "pruned_heads", "remove_invalid_values", "repetition_penalty",
    "return_dict", "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params",
    "temperature", "tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings", "tokenizer_class", "top_k",
    "top_p", "torch_dtype", "torchscript", "transformers_version", "typical_p", "use_bfloat16",
    "use_return_dict",
})
# fmt: on


@dataclass(frozen=True)
class TowerConfig(NetConfig):
    """What the text tower and the image tower have in common."""

    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    initializer_factor: float = 1.0

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"attention_dropout": (0.0,), "dropout": (0.0,)}
    IGNORED: ClassVar[frozenset[str]] = GENERAL

    def check(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            raise CartoucheError(f"hidden_act={self.hidden_act!r} is not built here; choose one of {ACTIVATIONS}")
        check_divides("num_attention_heads", self.num_attention_heads, (self.hidden_size,))


@dataclass(frozen=True)
class CLIPTextConfig(TowerConfig):
    """The text tower. eos_token_id 2 is the rule of early files: the text ends at the token of the largest number."""

    vocab_size: int = 49408
    max_position_embeddings: int = 77
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407
    architectures: tuple[str, ...] | None = ("CLIPTextModel",)

    HEADER: ClassVar[Mapping[str, str]] = {"model_type": "clip_text_model"}


@dataclass(frozen=True)
class CLIPVisionConfig(TowerConfig):
    """The image tower: a square picture of image_size pixels cut into squares of patch_size."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    architectures: tuple[str, ...] | None = ("CLIPVisionModel",)

    HEADER: ClassVar[Mapping[str, str]] = {"model_type": "clip_vision_model"}
    IGNORED: ClassVar[frozenset[str]] = GENERAL | {"pad_token_id", "bos_token_id", "eos_token_id"}

    def check(self) -> None:
        super().check()
        check_divides("patch_size", self.patch_size, (self.image_size,))


@dataclass(frozen=True)
class CLIPConfig(NetConfig):
    """Both towers and the width of the space they share. logit_scale_init_value is the logarithm of 1/temperature."""

    text_config: CLIPTextConfig = field(default_factory=CLIPTextConfig)
    vision_config: CLIPVisionConfig = field(default_factory=CLIPVisionConfig)
    projection_dim: int = 512
    logit_scale_init_value: float = 2.6592
    initializer_factor: float = 1.0
    architectures: tuple[str, ...] | None = ("CLIPModel",)

    HEADER: ClassVar[Mapping[str, str]] = {"model_type": "clip"}
    IGNORED: ClassVar[frozenset[str]] = GENERAL | {"text_config_dict", "vision_config_dict"}
    TOWERS: ClassVar[Mapping[str, type[TowerConfig]]] = {
        "text_config": CLIPTextConfig,
        "vision_config": CLIPVisionConfig,
    }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """The configuration in a config.json; early files repeat a tower's settings as `text_config_dict`: it wins, and
        so does, as in transformers, the usual value of whatever it leaves out."""
        values = dict(given)
        for name, kind in cls.TOWERS.items():
            tower, again = dict(given.get(name) or {}), given.get(f"{name}_dict")
            tower |= {} if again is None else kind.from_dict(again).to_dict()
            values[name] = kind.from_dict({key: value for key, value in tower.items() if key != "architectures"})
        return super().from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that transformers reads as config.json."""
        towers = {"text_config": self.text_config.to_dict(), "vision_config": self.vision_config.to_dict()}
        return super().to_dict() | towers
