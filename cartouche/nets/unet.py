"""The U-Net that denoises latents while it reads the words (Ronneberger et al. 2015; Rombach et al. 2022)."""

# A torch module's call, and some tensor methods, carry no types:
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cartouche.config import CartoucheError
from cartouche.nets.attention import TextTimeEmbedding, Transformer2DModel
from cartouche.nets.blocks import (
    Downsample2D,
    GroupNorm,
    ResnetBlock2D,
    TimestepEmbedding,
    Upsample2D,
    sinusoids,
)
from cartouche.nets.unet_config import UNetConfig

__all__ = ["UNet2DConditionModel", "UNetConfig", "zero_init_residuals"]


class UNet2DConditionModel(nn.Module):
    """Noisy latents, their time and the words to the prediction the net is trained for (noise, velocity or picture)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], config.time_channels)
        self.add_embedding = _added_embedding(config)
        self.down_blocks = nn.ModuleList(DownBlock(config, level) for level in range(config.levels))
        self.mid_block = MidBlock(config)
        self.up_blocks = nn.ModuleList(UpBlock(config, level) for level in reversed(range(config.levels)))
        self.conv_norm_out = GroupNorm(config.norm_num_groups, widths[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        added: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """sample: (B, C, H, W); timestep: (B,) or one number; encoder_hidden_states: (B, N, D). Returns (B, C, H, W).

        added: for "text_time" nets, text_embeds (B, E) and time_ids (B, 6): sizes and crop of the picture asked for.
        A "text" net sums the words up by itself (Saharia et al. 2022, appendix F.1) and wants nothing added.
        """
        time = self._time(sample, timestep, encoder_hidden_states, added)
        first = self._first(sample)
        return self._last(self._inside(first, time, encoder_hidden_states), first, time, encoder_hidden_states)

    def deep(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """All but the last block, (B, channels, H, W): what changes slowly from step to step (see draw/reuse.py)."""
        time = self._time(sample, timestep, encoder_hidden_states, None)
        return self._inside(self._first(sample), time, encoder_hidden_states)

    def shallow(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, deep: Tensor) -> Tensor:
        """The last block, given what `deep` returned, perhaps for an earlier step. Returns (B, C, H, W)."""
        time = self._time(sample, timestep, encoder_hidden_states, None)
        return self._last(deep, self._first(sample), time, encoder_hidden_states)

    def sized(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, text_embeds: Tensor, time_ids: Tensor
    ) -> Tensor:
        """`forward` of a "text_time" net, every input by its own name."""
        return self(sample, timestep, encoder_hidden_states, {"text_embeds": text_embeds, "time_ids": time_ids})

    def _first(self, sample: Tensor) -> Tensor:
        return self.conv_in(2 * sample - 1 if self.config.center_input_sample else sample)

    def _inside(self, first: Tensor, time: Tensor, words: Tensor) -> Tensor:
        skips = [first]
        for down in self.down_blocks:
            skips += down(skips[-1], time, words)
        x = self.mid_block(skips[-1], time, words)
        for up in self.up_blocks[:-1]:
            x = up(x, skips, time, words)
        for i in range(self.config.layers[0]):
            x = self._finest.layer(i, x, skips.pop(), time, words)
        return x

    def _last(self, x: Tensor, first: Tensor, time: Tensor, words: Tensor) -> Tensor:
        x = self._finest.layer(self.config.layers[0], x, first, time, words)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    @property
    def _finest(self) -> UpBlock:
        last: Any = self.up_blocks[-1]
        return last

    def _time(
        self, sample: Tensor, timestep: Tensor | float, words: Tensor, added: Mapping[str, Tensor] | None
    ) -> Tensor:
        config, dtype = self.config, self.time_embedding.linear_1.weight.dtype
        t = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        waves = sinusoids(t, config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift)
        time = self.time_embedding(waves.to(dtype))  # (B, time_channels)
        if self.add_embedding is None:
            return time
        given = words if config.addition_embed_type == "text" else self._added(added)
        return time + self.add_embedding(given.to(dtype))

    def _added(self, added: Mapping[str, Tensor] | None) -> Tensor:
        """Pooled text and the sinusoids of the size numbers, side by side (Podell et al. 2023, section 2.2)."""
        if added is None or not {"text_embeds", "time_ids"} <= added.keys():
            raise CartoucheError("this U-Net wants added={'text_embeds': (B, E), 'time_ids': (B, 6)}; give both")
        config = self.config
        numbers = added["time_ids"].flatten()
        waves = sinusoids(numbers, config.addition_time_embed_dim or 0, config.flip_sin_to_cos, config.freq_shift)
        return torch.cat([added["text_embeds"], waves.reshape(added["text_embeds"].shape[0], -1)], dim=-1)


class DownBlock(nn.Module):
    """One level on the way down: residual blocks, each followed by a transformer where the level has them; then half
    the size, but for the coarsest level."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__()
        inputs, outputs = config.block_out_channels[max(level - 1, 0)], config.block_out_channels[level]
        count = config.layers[level]
        crossed = config.down_block_types[level] == "CrossAttnDownBlock2D"
        self.resnets = nn.ModuleList(_resnet(config, outputs if i else inputs, outputs) for i in range(count))
        self.attentions = nn.ModuleList(_transformer(config, level) for _ in range(count if crossed else 0))
        self.downsamplers = nn.ModuleList([Downsample2D(outputs)] if level < config.levels - 1 else [])

    def forward(self, x: Tensor, time: Tensor, words: Tensor) -> list[Tensor]:
        """Every state that the way up wants back, the last of them being the way on."""
        states = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if self.attentions:
                x = self.attentions[i](x, words)
            states.append(x)
        for down in self.downsamplers:
            states.append(down(x))
        return states


class MidBlock(nn.Module):
    """The coarsest place: residual block, transformer, residual block."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width = config.block_out_channels[-1]
        self.resnets = nn.ModuleList(_resnet(config, width, width) for _ in range(2))
        self.attentions = nn.ModuleList([_transformer(config, config.levels - 1)])

    def forward(self, x: Tensor, time: Tensor, words: Tensor) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, time), words)
        return self.resnets[1](x, time)


class UpBlock(nn.Module):
    """One level on the way up: as on the way down with one more residual block, each beside a state kept from there."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__()
        widths, count = config.block_out_channels, config.layers[level] + 1
        crossed = config.up_block_types[config.levels - 1 - level] == "CrossAttnUpBlock2D"
        kept = [widths[level]] * (count - 1) + [widths[max(level - 1, 0)]]
        entering = [widths[min(level + 1, config.levels - 1)]] + [widths[level]] * (count - 1)
        self.resnets = nn.ModuleList(
            _resnet(config, own + skip, widths[level]) for own, skip in zip(entering, kept, strict=True)
        )
        self.attentions = nn.ModuleList(_transformer(config, level) for _ in range(count if crossed else 0))
        self.upsamplers = nn.ModuleList([Upsample2D(widths[level])] if level else [])

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor, words: Tensor) -> Tensor:
        """Takes its states from the end of `skips`."""
        for i in range(len(self.resnets)):
            x = self.layer(i, x, skips.pop(), time, words)
        for up in self.upsamplers:
            x = up(x, like=skips[-1])
        return x

    def layer(self, i: int, x: Tensor, skip: Tensor, time: Tensor, words: Tensor) -> Tensor:
        """One residual block beside a state kept from the way down, and its transformer."""
        x = self.resnets[i](torch.cat([x, skip], dim=1), time)
        return self.attentions[i](x, words) if self.attentions else x


def zero_init_residuals(unet: UNet2DConditionModel) -> None:
    """Let every residual branch, and so the net's output, start at zero (ADM, Dhariwal & Nichol 2021)."""
    last: list[nn.Module] = [unet.conv_out]
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            last.append(module.conv2)
        elif isinstance(module, Transformer2DModel):
            last.append(module.proj_out)
    for layer in last:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


def _resnet(config: UNetConfig, inputs: int, outputs: int) -> ResnetBlock2D:
    return ResnetBlock2D(inputs, outputs, config.norm_num_groups, config.norm_eps, config.time_channels)


def _transformer(config: UNetConfig, level: int) -> Transformer2DModel:
    return Transformer2DModel(
        channels=config.block_out_channels[level],
        context_channels=config.cross_attention_dim,
        heads=config.heads[level],
        depth=config.depths[level],
        groups=config.norm_num_groups,
        linear=config.use_linear_projection,
    )


def _added_embedding(config: UNetConfig) -> nn.Module | None:
    if config.addition_embed_type is None:
        return None
    if config.addition_embed_type == "text":
        heads = config.addition_embed_type_num_heads
        return TextTimeEmbedding(config.cross_attention_dim, config.time_channels, heads)
    return TimestepEmbedding(config.projection_class_embeddings_input_dim or 0, config.time_channels)
