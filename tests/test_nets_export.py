"""The networks as graphs: exported to ONNX once, run at other batch sizes, heights and widths, equal to the net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from cartouche.nets.autoencoder import AutoencoderConfig, AutoencoderKL
from cartouche.nets.clip import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection
from cartouche.nets.unet import UNet2DConditionModel, UNetConfig

TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "projection_dim": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def texts(batch: int, end: int) -> Tensor:
    """Texts of growing length, padded with the token that ends them."""
    ids = torch.randint(0, 90, (batch, 12))
    for row in range(batch):
        ids[row, 3 + 2 * row :] = end
    return ids


def text_tower(hidden_act: str, eos: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(vocab_size=99, max_position_embeddings=16, hidden_act=hidden_act, eos_token_id=eos, **TOWER)
    )


class Method(nn.Module):
    """One method of a net as a module, which is what the exporter takes."""

    def __init__(self, net: nn.Module, name: str) -> None:
        super().__init__()
        self.net, self.name = net, name

    def forward(self, *inputs: Tensor) -> Any:
        return getattr(self.net, self.name)(*inputs)


def export_cases() -> dict[str, tuple[nn.Module, tuple[Tensor, ...], tuple[Tensor, ...], list[dict[int, str]]]]:
    """Per case: the module, inputs to trace with, inputs of other sizes to compare on, and which sizes are free."""
    unet = UNet2DConditionModel(
        UNetConfig(
            block_out_channels=(16, 32),
            norm_num_groups=8,
            cross_attention_dim=24,
            layers_per_block=1,
            attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )
    )
    vae = AutoencoderKL(AutoencoderConfig(block_out_channels=(16, 32), norm_num_groups=8))
    early, later = text_tower("quick_gelu", 2), text_tower("gelu", 95)
    image = CLIPVisionModelWithProjection(CLIPVisionConfig(image_size=32, patch_size=8, **TOWER))
    free = {0: "batch", 2: "height", 3: "width"}

    def denoising(batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        return torch.randn(batch, 4, height, width), torch.arange(batch) + 5.5, torch.randn(batch, 7, 24)

    return {
        "unet": (unet, denoising(2, 8, 12), denoising(3, 11, 9), [free, {0: "batch"}, {0: "batch"}]),
        "encode": (Method(vae, "encode"), (torch.randn(2, 3, 16, 24),), (torch.randn(3, 3, 32, 20),), [free]),
        "decode": (Method(vae, "decode"), (torch.randn(2, 4, 8, 12),), (torch.randn(3, 4, 7, 6),), [free]),
        "early text": (early, (texts(2, 98),), (texts(3, 98),), [{0: "batch"}]),
        "later text": (later, (texts(2, 95),), (texts(3, 95),), [{0: "batch"}]),
        "image": (
            image,
            (torch.randn(2, 3, 32, 32),),
            (torch.randn(5, 3, 32, 32),),
            [{0: "batch"}],
        ),
    }


@pytest.mark.parametrize("kind", ["unet", "encode", "decode", "early text", "later text", "image"])
@pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning")
@torch.no_grad()
def test_an_exported_graph_gives_the_same_numbers_at_other_sizes(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, traced, others, sizes = export_cases()[kind]
    path = tmp_path / "graph.onnx"
    torch.onnx.export(net.eval(), traced, path, dynamo=True, dynamic_shapes=dynamic(net, sizes), verbose=False)
    session = onnxruntime.InferenceSession(path)
    names = [given.name for given in session.get_inputs()]
    got = session.run(None, dict(zip(names, (value.numpy() for value in others), strict=True)))
    wanted = net(*others)
    for ours, graph in zip(wanted if isinstance(wanted, tuple) else (wanted,), got, strict=True):
        np.testing.assert_allclose(graph, ours.numpy(), atol=1e-5, rtol=1e-4)


def dynamic(net: nn.Module, sizes: list[dict[int, str]]) -> Any:
    free = [dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in sizes]
    return (tuple(free),) if isinstance(net, Method) else tuple(free)
