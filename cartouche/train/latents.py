"""Latents and text states of a fixed set of scenes, computed once: the denoiser then trains without the other two nets.

The folder holds latents.npy (S, C, h, w) and states.npy (S * captions, N, D), float16, and empty.npy (N, D), the
states of the empty prompt. They are written under other names and renamed when whole: a folder that has them is whole.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from cartouche.data.streams import Scenes
from cartouche.nets.autoencoder import AutoencoderKL
from cartouche.nets.clip import CLIPTextModel
from cartouche.text import Tokenizer
from cartouche.train.sources import Cached
from cartouche.train.stream import batches

FILES = ("latents.npy", "states.npy", "empty.npy")


class Prepared:
    """Sample i: the picture of scene i and the token ids of `captions` of its captions, ready for both nets."""

    def __init__(self, stream: Scenes, tokenizer: Tokenizer, captions: int):
        self.stream, self.tokenizer, self.captions = stream, tokenizer, captions

    def __getitem__(self, index: int) -> dict:
        scene = self.stream.composer[index]
        texts = [self.stream.caption(scene, index, which) for which in range(self.captions)]
        return {"image": self.stream[index]["image"], "ids": self.tokenizer.batch(texts)}


def opened(folder: Path | str) -> tuple[Cached, np.ndarray]:
    """The stored set as a source, and the empty prompt's states (N, D); read through the page cache."""
    latents, states, empty = (np.load(Path(folder) / name, mmap_mode="r") for name in FILES)
    return Cached(latents, states), np.asarray(empty, np.float32)


@torch.no_grad()
def compute(
    folder: Path,
    vae: AutoencoderKL,
    text: CLIPTextModel,
    tokenizer: Tokenizer,
    stream: Scenes,
    count: int,
    captions: int = 2,
    batch: int = 32,
) -> None:
    """Encode `count` scenes and `captions` captions of each into `folder`. Latents are the posterior's mean, scaled."""
    if all((folder / name).is_file() for name in FILES):
        return
    folder.mkdir(parents=True, exist_ok=True)
    vae = vae.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    shape = encode(vae, torch.zeros(1, 3, 128, 128)).shape[1:]
    width, length = text.config.hidden_size, tokenizer.context
    latents = open_memmap(folder / "latents.tmp", "w+", np.float16, (count, *shape))
    states = open_memmap(folder / "states.tmp", "w+", np.float16, (count * captions, length, width))
    for part in batches(Prepared(stream, tokenizer, captions), 0, batch, -(-count // batch), workers=1, prefetch=4):
        here = slice(part.first, min(part.first + batch, count))
        keep = here.stop - here.start
        latents[here] = encode(vae, part.values["image"][:keep]).numpy()
        ids = part.values["ids"][:keep].flatten(0, 1)  # (keep * captions, N)
        states[here.start * captions : here.stop * captions] = told(text, ids)
    latents.flush()
    states.flush()
    np.save(folder / "empty.npy", told(text, torch.from_numpy(tokenizer.batch([""])))[0])
    (folder / "states.tmp").replace(folder / "states.npy")
    (folder / "latents.tmp").replace(folder / "latents.npy")


def encode(vae: AutoencoderKL, image: torch.Tensor) -> torch.Tensor:
    """Scaled latents (B, C, h, w) float32 of pictures (B, 3, H, W)."""
    with torch.autocast("cpu", torch.bfloat16):
        mean = vae.encode(image.contiguous(memory_format=torch.channels_last)).float().chunk(2, 1)[0]
    return (mean - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def told(text: CLIPTextModel, ids: torch.Tensor) -> np.ndarray:
    """Text states (B, N, D) float16 of token ids (B, N), in fp32: drawing must find the very same states."""
    return text(ids)[0].numpy().astype(np.float16)


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, stream: Scenes, count: int = 256) -> float:
    """1 / the standard deviation of the latents over `count` scenes: the scaling factor that makes them unit."""
    means = []
    for first in range(0, count, 32):
        image = torch.stack([torch.from_numpy(stream[i]["image"]) for i in range(first, first + 32)])
        means.append(vae.encode(image).chunk(2, 1)[0])
    return float(1 / torch.cat(means).std())
