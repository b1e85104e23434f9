"""The smallest whole net, for tests of what may lie in a net's folder."""

from __future__ import annotations

from pathlib import Path

from cartouche.nets.clip import CLIPTextConfig, CLIPTextModel
from cartouche.weights import folder

TEXT = CLIPTextConfig(
    hidden_size=16,
    intermediate_size=16,
    projection_dim=16,
    num_hidden_layers=1,
    num_attention_heads=1,
    vocab_size=20,
    max_position_embeddings=4,
)


def save(path: Path) -> Path:
    """Write a text tower of these settings with random weights."""
    folder.save_net(path, CLIPTextModel(TEXT))
    return path
