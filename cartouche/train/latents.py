"""Latents and captions of a fixed set of scenes, computed once: the denoiser then trains without the autoencoder.

The folder holds latents.npy (S, C, h, w) float16, ids.npy (S * captions, N) int32, the captions' token ids, and
empty.npy (N,), those of the empty prompt. The latents are written under another name, last, and renamed when whole: a
folder that has all three is whole. Whether it is of the same scenes, autoencoder and tokenizer as asked is seen by
making a few samples again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from cartouche import files
from cartouche.config import CartoucheError
from cartouche.data.streams import Scenes
from cartouche.nets.autoencoder import AutoencoderKL
from cartouche.text import Tokenizer
from cartouche.train.sources import Cached
from cartouche.train.stream import batches

FILES = ("latents.npy", "ids.npy", "empty.npy")
AGAIN = 8  # samples made again of a set that is there
ALIKE = 0.05
"""How far latents, of unit spread, of one picture lie apart at most in the mean, by the rounding of bf16."""


class Prepared:
    """Sample i: the picture of scene i and the token ids of `captions` of its captions."""

    def __init__(self, stream: Scenes, tokenizer: Tokenizer, captions: int):
        self.stream, self.tokenizer, self.captions = stream, tokenizer, captions

    def __getitem__(self, index: int) -> dict:
        scene = self.stream.composer[index]
        texts = [self.stream.caption(scene, index, which) for which in range(self.captions)]
        return {"image": self.stream[index]["image"], "ids": self.tokenizer.batch(texts)}


def opened(folder: Path | str) -> tuple[Cached, np.ndarray]:
    """The stored set as a source, and the empty prompt's token ids (N,); read through the page cache."""
    try:
        latents, ids, empty = (np.load(Path(folder) / name, mmap_mode="r") for name in FILES)
    except (OSError, ValueError, EOFError) as error:
        raise CartoucheError(f"{folder} holds no latents that can be read: {error}") from error
    return Cached(latents, ids), np.array(empty, np.int64)


@torch.no_grad()
def compute(
    folder: Path,
    vae: AutoencoderKL,
    tokenizer: Tokenizer,
    stream: Scenes,
    count: int,
    captions: int = 2,
    batch: int = 32,
) -> None:
    """Encode `count` scenes and `captions` captions of each into `folder`. Latents are the posterior's mean, scaled.

    Raises CartoucheError where the folder holds a set that is not of these.
    """
    if count < 1:
        raise CartoucheError(f"{count} scenes asked; choose 1 or more")
    vae = vae.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    samples = Prepared(stream, tokenizer, captions)
    if all((folder / name).is_file() for name in FILES):
        return compare(folder, vae, samples, count)
    folder.mkdir(parents=True, exist_ok=True)
    shape = encode(vae, torch.zeros(1, 3, 128, 128)).shape[1:]
    latents = open_memmap(folder / "latents.tmp", "w+", np.float16, (count, *shape))
    ids = np.empty((count * captions, tokenizer.context), np.int32)
    for part in batches(samples, 0, batch, -(-count // batch), workers=1, prefetch=4):
        here = slice(part.first, min(part.first + batch, count))
        keep = here.stop - here.start
        latents[here] = encode(vae, part.values["image"][:keep]).numpy()
        ids[here.start * captions : here.stop * captions] = part.values["ids"][:keep].flatten(0, 1)
    latents.flush()
    for name, array in (("ids.npy", ids), ("empty.npy", tokenizer.batch([""])[0])):
        with files.whole(folder / name) as file:
            np.save(file, array)
    (folder / "latents.tmp").replace(folder / "latents.npy")
    files.sync_folder(folder)


def compare(folder: Path, vae: AutoencoderKL, samples: Prepared, count: int) -> None:
    """Raises CartoucheError where the stored set is not of these samples: some of them are made again and compared."""
    stored, _ = opened(folder)
    instead = "choose another cache=, or delete it"
    if len(stored.latents) != count or stored.captions != samples.captions:
        here = f"{len(stored.latents)} scenes with {stored.captions} captions each"
        raise CartoucheError(f"{folder} holds {here}; {count} with {samples.captions} are asked: {instead}")
    for index in np.linspace(0, count - 1, min(AGAIN, count)).astype(int).tolist():
        made = samples[index]
        latents = encode(vae, torch.from_numpy(made["image"])[None])[0].numpy()
        rows = stored.ids[index * stored.captions : (index + 1) * stored.captions]
        if not np.array_equal(rows, made["ids"]):
            raise CartoucheError(f"{folder} holds other scenes, captions or words than are asked: {instead}")
        if latents.shape != stored.latents.shape[1:] or np.abs(latents - stored.latents[index]).mean() > ALIKE:
            raise CartoucheError(f"{folder} holds latents of another autoencoder: {instead}")


def encode(vae: AutoencoderKL, image: torch.Tensor) -> torch.Tensor:
    """Scaled latents (B, C, h, w) float32 of pictures (B, 3, H, W)."""
    with torch.autocast("cpu", torch.bfloat16):
        mean = vae.encode(image.contiguous(memory_format=torch.channels_last)).float().chunk(2, 1)[0]
    return (mean - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, stream: Scenes, count: int = 256) -> float:
    """1 / the standard deviation of the latents over `count` scenes: the scaling factor that makes them unit."""
    means = []
    for first in range(0, count, 32):
        image = torch.stack([torch.from_numpy(stream[i]["image"]) for i in range(first, first + 32)])
        means.append(vae.encode(image).chunk(2, 1)[0])
    return float(1 / torch.cat(means).std())
