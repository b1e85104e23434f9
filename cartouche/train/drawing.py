"""The U-Net and the text tower that it listens to, as one net to train."""

from __future__ import annotations

from torch import Tensor, nn

from cartouche.nets.clip import CLIPTextModel
from cartouche.nets.unet import UNet2DConditionModel


class Drawer(nn.Module):
    """A U-Net told by token ids: its text tower is trained with it, as in GLIDE (Nichol et al. 2022, section 4.1).

    The tower starts from CLIP's, which knows language but tells things apart only as far as its own task needed;
    learning to draw them teaches it the rest. It learns at `text_rate` times the U-Net's rate; 0 keeps it as it is, as
    Stable Diffusion does.
    """

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, text_rate: float = 0.25) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder.requires_grad_(text_rate > 0)
        self.rates = {"text_encoder": text_rate}

    def forward(self, sample: Tensor, timestep: Tensor, ids: Tensor) -> Tensor:
        """As the U-Net's, with token ids (B, N) in place of text states."""
        out: Tensor = self.unet(sample, timestep, self.text_encoder(ids)[0])
        return out
