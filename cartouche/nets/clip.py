"""CLIP: a text tower and an image tower that meet in one space (Radford et al. 2021)."""

# A torch module's call, and some tensor methods, carry no types:
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cartouche.config import CartoucheError
from cartouche.nets.attention import attention
from cartouche.nets.clip_config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, TowerConfig

__all__ = [
    "CLIPConfig",
    "CLIPModel",
    "CLIPTextConfig",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPVisionConfig",
    "CLIPVisionModel",
    "CLIPVisionModelWithProjection",
]


class CLIPAttention(nn.Module):
    """Self-attention of one layer. (B, N, D) -> (B, N, D)."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self._split(self.q_proj(x)), self._split(self.k_proj(x)), self._split(self.v_proj(x))
        return self.out_proj(attention(q, k, v, mask).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, D / heads)


class CLIPMLP(nn.Module):
    """Two linear layers around GELU, or its sigmoid form x sigmoid(1.702 x) (Hendrycks & Gimpel 2016, section 2)."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.quick = config.hidden_act == "quick_gelu"
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))


class CLIPEncoderLayer(nn.Module):
    """Attention and feed-forward, each on the normalised input and added to it."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.self_attn = CLIPAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(nn.Module):
    """The stack of layers; returns the states before the first layer and after each: num_hidden_layers + 1 of them."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1], mask))
        return states


class CLIPTextEmbeddings(nn.Module):
    """Words and their places as vectors. (B, N) -> (B, N, D)."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        longest = self.position_embedding.num_embeddings
        if ids.shape[1] > longest:
            raise CartoucheError(f"{ids.shape[1]} tokens given to a text tower of {longest}; cut the text to {longest}")
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class CLIPTextTransformer(nn.Module):
    """The text tower: each word sees itself and those before it."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.eos = config.eos_token_id
        self.vocabulary = config.vocab_size
        self.embeddings = CLIPTextEmbeddings(config)
        self.encoder = CLIPEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def hidden_states(self, ids: Tensor) -> list[Tensor]:
        """States before the first layer and after each, none normalised. ids: (B, N); each (B, N, D)."""
        x = self.embeddings(ids)
        blocked = torch.full((ids.shape[1], ids.shape[1]), float("-inf"), dtype=x.dtype, device=x.device)
        return self.encoder(x, blocked.triu(1))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids: (B, N). Returns the normalised last states (B, N, D) and the state at the end of the text (B, D)."""
        states = self.final_layer_norm(self.hidden_states(ids)[-1])
        return states, _at(states, self._end(ids))

    def inner(self, ids: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """The states `skip` layers before the last, not normalised, and the state at the end of the text as ever."""
        states = self.hidden_states(ids)
        chosen = torch.stack(states).index_select(0, (len(states) - 1 - skip).reshape(1))[0]
        return chosen, _at(self.final_layer_norm(states[-1]), self._end(ids))

    def _end(self, ids: Tensor) -> Tensor:
        """Where the text ends; ids beyond the vocabulary are learned words (weights/embeddings.py), and no end."""
        return end_of_text(ids * (ids < self.vocabulary) if self.eos == 2 else ids, self.eos)


def end_of_text(ids: Tensor, eos: int) -> Tensor:
    """Where the text ends: the first `eos`; for eos 2, as in early files, the first largest id. (B, N) -> (B,).

    The place is subtracted before the search, so that no two scores are equal and every engine finds the same one.
    """
    score = ids if eos == 2 else (ids == eos).to(ids.dtype)
    return (score * ids.shape[1] - torch.arange(ids.shape[1], device=ids.device)).argmax(-1)


def _at(states: Tensor, index: Tensor) -> Tensor:
    place = index[:, None, None].expand(-1, 1, states.shape[-1])
    return states.gather(1, place).squeeze(1)  # (B, D)


class CLIPVisionEmbeddings(nn.Module):
    """Patches and their places as vectors, after one vector for the whole picture. (B, 3, H, W) -> (B, 1 + P, D)."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.size = config.image_size
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        if height != self.size or width != self.size:
            raise CartoucheError(f"picture of {height}x{width} given to an image tower of {self.size}; resize it first")
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (B, P, D)
        whole = self.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        return torch.cat([whole, patches], dim=1) + self.position_embedding.weight


class CLIPVisionTransformer(nn.Module):
    """The image tower: a vision transformer (Dosovitskiy et al. 2021) with a normalisation before the first layer."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # spelled so in stored weights
        self.encoder = CLIPEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def hidden_states(self, pixels: Tensor) -> list[Tensor]:
        """States before the first layer and after each. pixels: (B, 3, H, W); each (B, 1 + P, D)."""
        return self.encoder(self.pre_layrnorm(self.embeddings(pixels)))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels: (B, 3, H, W). Returns the last states (B, 1 + P, D), not normalised, and the whole picture (B, D)."""
        states = self.hidden_states(pixels)[-1]
        return states, self.post_layernorm(states[:, 0])


class CLIPTextModel(nn.Module):
    """The text tower alone, as the text encoder of a diffusion model."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = replace(config, architectures=(type(self).__name__,))
        self.text_model = CLIPTextTransformer(config)
        init_tower(self.text_model, config)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids: (B, N). Returns states (B, N, D) after the final normalisation and the pooled state (B, D)."""
        return self.text_model(ids)

    def inner(self, ids: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """As Stable Diffusion XL hears its words: the states `skip` layers before the last, not normalised.

        ids: (B, N); skip: one integer, 0 being the last layer. Returns states (B, N, D) and what `forward` pools.
        """
        return self.text_model.inner(ids, skip)

    def earlier(self, ids: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, with the states taken `skip` layers before the last ("clip skip") and normalised."""
        states, pooled = self.inner(ids, skip)
        return self.text_model.final_layer_norm(states), pooled


class CLIPTextModelWithProjection(CLIPTextModel):
    """The text tower and its projection into the shared space."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__(config)
        self.text_projection = projection(config, config.projection_dim, config.initializer_factor)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids: (B, N). Returns states (B, N, D) and the projected pooled state (B, projection_dim), not scaled."""
        states, pooled = self.text_model(ids)
        return states, self.text_projection(pooled)

    def inner(self, ids: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """As without the projection, the pooled state projected."""
        states, pooled = self.text_model.inner(ids, skip)
        return states, self.text_projection(pooled)


class CLIPVisionModel(nn.Module):
    """The image tower alone."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.config = replace(config, architectures=(type(self).__name__,))
        self.vision_model = CLIPVisionTransformer(config)
        init_tower(self.vision_model, config)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels: (B, 3, H, W). Returns states (B, 1 + P, D), not normalised, and the whole picture (B, D)."""
        return self.vision_model(pixels)


class CLIPVisionModelWithProjection(CLIPVisionModel):
    """The image tower and its projection into the shared space."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        self.visual_projection = projection(config, config.projection_dim, config.initializer_factor)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels: (B, 3, H, W). Returns states (B, 1 + P, D) and the projected pooled state (B, projection_dim)."""
        states, pooled = self.vision_model(pixels)
        return states, self.visual_projection(pooled)


class CLIPModel(nn.Module):
    """Both towers in one space; `logit_scale` is the logarithm of the factor on their cosines."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = CLIPTextTransformer(config.text_config)
        self.vision_model = CLIPVisionTransformer(config.vision_config)
        factor = config.initializer_factor
        self.visual_projection = projection(config.vision_config, config.projection_dim, factor)
        self.text_projection = projection(config.text_config, config.projection_dim, factor)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        init_tower(self.text_model, config.text_config)
        init_tower(self.vision_model, config.vision_config)

    def encode_text(self, ids: Tensor) -> Tensor:
        """ids: (B, N). Returns (B, projection_dim) float32 of unit length."""
        return F.normalize(self.text_projection(self.text_model(ids)[1]).float(), dim=-1)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """pixels: (B, 3, H, W) as the tower was trained on. Returns (B, projection_dim) float32 of unit length."""
        return F.normalize(self.visual_projection(self.vision_model(pixels)[1]).float(), dim=-1)

    def forward(self, ids: Tensor, pixels: Tensor) -> Tensor:
        """Scaled cosines of every picture (rows) with every text (columns): (images, texts)."""
        return self.logit_scale.exp() * self.encode_image(pixels) @ self.encode_text(ids).T


def projection(tower: TowerConfig, outputs: int, factor: float) -> nn.Linear:
    """From a tower's width into the shared space."""
    layer = nn.Linear(tower.hidden_size, outputs, bias=False)
    nn.init.normal_(layer.weight, std=factor * tower.hidden_size**-0.5)
    return layer


def init_tower(tower: nn.Module, config: TowerConfig) -> None:
    """Normal weights scaled by width and depth, as CLIP was trained from (Radford et al. 2021, 2.4); zero biases."""
    width = config.initializer_factor * config.hidden_size**-0.5
    inner = width * (2 * config.num_hidden_layers) ** -0.5
    spread = {"q_proj": inner, "k_proj": inner, "v_proj": inner, "out_proj": width}
    spread |= {"fc1": width * 2**-0.5, "fc2": inner}
    table = config.initializer_factor * config.initializer_range
    for name, layer in tower.named_modules():
        if isinstance(layer, (nn.Embedding, nn.Conv2d)):
            nn.init.normal_(layer.weight, std=table)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=spread[name.rpartition(".")[2]])
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, CLIPVisionEmbeddings):
            nn.init.normal_(layer.class_embedding, std=width)
