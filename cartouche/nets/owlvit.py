"""OWL-ViT: CLIP's image tower whose every token is an object that may be there (Minderer et al. 2022).

The class token's pooling is taken away; each patch token gets a small head that says where its object is and another
that gives a vector to be compared with the texts'. Names and numbers are those of transformers' OwlViT.
"""

# A torch module's call, and some tensor methods, carry no types:
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cartouche.config import CartoucheError
from cartouche.nets.clip import CLIPEncoder, CLIPTextTransformer, CLIPVisionEmbeddings, init_tower, projection
from cartouche.nets.clip_config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, TowerConfig

TINY = 1e-4  # keeps the logarithms of the grid's border finite
SMALL = 1e-6  # keeps the length of a class embedding above zero


@dataclass(frozen=True)
class OwlViTTextConfig(CLIPTextConfig):
    """The text tower: short queries. A text ends at its largest id, whatever eos_token_id says."""

    max_position_embeddings: int = 16
    pad_token_id: int | None = 0
    architectures: tuple[str, ...] | None = None

    HEADER: ClassVar[Mapping[str, str]] = {"model_type": "owlvit_text_model"}


@dataclass(frozen=True)
class OwlViTVisionConfig(CLIPVisionConfig):
    """The image tower."""

    image_size: int = 768
    architectures: tuple[str, ...] | None = None

    HEADER: ClassVar[Mapping[str, str]] = {"model_type": "owlvit_vision_model"}


@dataclass(frozen=True)
class OwlViTConfig(CLIPConfig):
    """Both towers; queries of projection_dim numbers, as many as the text tower is wide."""

    text_config: OwlViTTextConfig = field(default_factory=OwlViTTextConfig)
    vision_config: OwlViTVisionConfig = field(default_factory=OwlViTVisionConfig)
    architectures: tuple[str, ...] | None = ("OwlViTForObjectDetection",)

    HEADER: ClassVar[Mapping[str, str]] = {"model_type": "owlvit"}
    TOWERS: ClassVar[Mapping[str, type[TowerConfig]]] = {
        "text_config": OwlViTTextConfig,
        "vision_config": OwlViTVisionConfig,
    }

    def check(self) -> None:
        width = self.text_config.hidden_size
        if self.projection_dim != width:
            raise CartoucheError(
                f"projection_dim={self.projection_dim} with a text tower of width {width}: the class head compares "
                f"vectors of the two sizes; make them equal"
            )


class OwlViTVisionTransformer(nn.Module):
    """CLIP's image tower, whose first normalisation is spelled `pre_layernorm` here."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = CLIPEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: (B, 3, H, W). Returns the last states (B, 1 + P, D), all normalised."""
        return self.post_layernorm(self.encoder(self.pre_layernorm(self.embeddings(pixels)))[-1])


class OwlViTModel(nn.Module):
    """The two towers and their projections. `visual_projection` and `logit_scale` serve matching whole pictures."""

    def __init__(self, config: OwlViTConfig) -> None:
        super().__init__()
        text, vision = config.text_config, config.vision_config
        self.text_model = CLIPTextTransformer(replace(text, eos_token_id=2))  # 2: the text ends at its largest id
        self.vision_model = OwlViTVisionTransformer(vision)
        self.visual_projection = projection(vision, config.projection_dim, config.initializer_factor)
        self.text_projection = projection(text, config.projection_dim, config.initializer_factor)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        init_tower(self.text_model, text)
        init_tower(self.vision_model, vision)


class OwlViTBoxPredictionHead(nn.Module):
    """Three linear layers with GELU between: (B, P, D) -> (B, P, 4), before the grid's bias and the sigmoid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense0 = nn.Linear(width, width)
        self.dense1 = nn.Linear(width, width)
        self.dense2 = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense2(F.gelu(self.dense1(F.gelu(self.dense0(x)))))


class OwlViTClassPredictionHead(nn.Module):
    """What each token's object is: a vector to compare with the queries, and how the comparison becomes a logit."""

    def __init__(self, width: int, query_width: int) -> None:
        super().__init__()
        self.dense0 = nn.Linear(width, query_width)
        self.logit_shift = nn.Linear(width, 1)
        self.logit_scale = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, P, D). Returns unit vectors (B, P, Q's width), shift (B, P) and scale (B, P) > 0."""
        embeds = self.dense0(x)
        embeds = embeds / (embeds.norm(dim=-1, keepdim=True) + SMALL)
        return embeds, self.logit_shift(x)[..., 0], F.elu(self.logit_scale(x))[..., 0] + 1


class OwlViTForObjectDetection(nn.Module):
    """Boxes of a picture, each with its likeness to every text. Text and picture can be encoded apart, each once."""

    def __init__(self, config: OwlViTConfig) -> None:
        super().__init__()
        self.config = config
        vision = config.vision_config
        self.owlvit = OwlViTModel(config)
        self.class_head = OwlViTClassPredictionHead(vision.hidden_size, config.text_config.hidden_size)
        self.box_head = OwlViTBoxPredictionHead(vision.hidden_size)
        self.layer_norm = nn.LayerNorm(vision.hidden_size, eps=vision.layer_norm_eps)
        self.register_buffer("box_bias", grid_bias(vision.image_size // vision.patch_size), persistent=False)

    def detect(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What may be in the pictures (B, 3, H, W), one object a patch token.

        Returns boxes (B, P, 4) as centre x, centre y, width, height in 0..1; class embeddings (B, P, D) of unit length;
        shift (B, P) and scale (B, P), which `match` needs.
        """
        states = self.owlvit.vision_model(pixels)
        x = self.layer_norm(states[:, 1:] * states[:, :1])  # (B, P, D): each patch times the whole
        boxes = (self.box_head(x) + self.box_bias).sigmoid()
        return boxes, *self.class_head(x)

    def queries(self, ids: Tensor) -> Tensor:
        """Texts (Q, N) as unit vectors (Q, D)."""
        return F.normalize(self.owlvit.text_projection(self.owlvit.text_model(ids)[1]), dim=-1)

    def match(self, embeds: Tensor, shift: Tensor, scale: Tensor, queries: Tensor) -> Tensor:
        """Logits (B, P, Q) that each token's object is what each query says; their sigmoid is the score.

        embeds (B, P, D), shift (B, P), scale (B, P) from `detect`; queries (Q, D), or (B, Q, D) for others in each
        picture.
        """
        return (embeds @ queries.transpose(-1, -2) + shift[..., None]) * scale[..., None]

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """pixels (B, 3, H, W), ids (Q, N). Returns logits (B, P, Q), boxes (B, P, 4) and class embeddings (B, P, D)."""
        boxes, embeds, shift, scale = self.detect(pixels)
        return self.match(embeds, shift, scale, self.queries(ids)), boxes, embeds


def grid_bias(side: int) -> Tensor:
    """(side^2, 4): the inverse sigmoid of each token's far corner and of a patch's size, row by row from the top.

    With it a head that says nothing puts a box of one patch where the token is (Minderer et al. 2022, appendix A.1).
    """
    steps = torch.arange(1, side + 1, dtype=torch.float32) / side
    x, y = steps.repeat(side), steps.repeat_interleave(side)
    place = torch.stack([x, y, torch.full_like(x, 1 / side), torch.full_like(x, 1 / side)], dim=-1)
    return torch.log(place + TINY) - torch.log1p(TINY - place)


def corners(boxes: Tensor) -> Tensor:
    """(..., 4) as centre and size to (..., 4) as left, top, right, bottom, in the same unit."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)
