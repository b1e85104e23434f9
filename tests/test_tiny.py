"""Tiny autoencoders, TAESD's layout: the numbers of the reference, from a folder and from its two files."""

import diffusers
import pytest
import torch

from cartouche.config import CartoucheError
from cartouche.nets.tiny import AutoencoderTiny, TinyConfig
from cartouche.weights import folder, names, safetensors, single


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    return diffusers.AutoencoderTiny(**widths).eval()


@torch.no_grad()
def test_the_tiny_autoencoder_is_that_of_diffusers(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    ours = folder.load_net(tmp_path)
    assert isinstance(ours, AutoencoderTiny) and ours.config.shrink == 8
    x, z = torch.rand(2, 3, 32, 48) * 2 - 1, 3 * torch.randn(2, 4, 4, 6)
    torch.testing.assert_close(ours.encode(x), tiny.encode(x).latents, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.decode(z), tiny.decode(z).sample, atol=1e-5, rtol=0)
    folder.save_net(tmp_path / "again", ours)
    again = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "again")
    assert all(torch.equal(one, tiny.state_dict()[name]) for name, one in again.state_dict().items())


@torch.no_grad()
def test_the_two_files_of_taesd_are_one_autoencoder(tiny, tmp_path):
    """The encoder's numbers are those of diffusers; the decoder counts its clamp."""
    stored = names.scattered(tiny.state_dict(), names.taesd)
    for side in ("encoder", "decoder"):
        half = {name.removeprefix(f"{side}."): one for name, one in stored.items() if name.startswith(side)}
        safetensors.save(tmp_path / f"taesd_{side}.safetensors", half)
        assert ("0.weight" if side == "encoder" else "1.weight") in half
    for side in ("encoder", "decoder"):
        ours = single.load_vae(tmp_path / f"taesd_{side}.safetensors")
        assert ours.config.num_decoder_blocks == (3, 3, 3, 1) and ours.config.num_encoder_blocks == (1, 3, 3, 3)
        z = torch.randn(1, 4, 4, 4)
        torch.testing.assert_close(ours.decode(z), tiny.decode(z).sample, atol=1e-5, rtol=0)
    (tmp_path / "taesd_decoder.safetensors").unlink()
    with pytest.raises(CartoucheError, match="wanted latent-diffusion's, or both files of TAESD"):
        single.load_vae(tmp_path / "taesd_encoder.safetensors")


def test_stages_of_different_widths_are_no_tiny_autoencoder():
    with pytest.raises(CartoucheError, match="give one width"):
        TinyConfig(encoder_block_out_channels=(8, 16, 8, 8))
