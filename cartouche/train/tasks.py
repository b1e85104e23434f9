"""What is learned: each task is `(net, batch, generator) -> (loss, notes)`, and that is all the loop knows of it.

Losses are computed in fp32, also where the net runs in bf16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from cartouche.config import unknown
from cartouche.diffusion.prediction import target as target_of
from cartouche.diffusion.schedule import Ladder, Level

Batch = dict[str, Any]
Notes = dict[str, float]
LN_100 = math.log(100.0)


def compared(net: Any, image: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A CLIP's vectors of pictures (B, 3, H, W) and of texts (T, N), (B, D) and (T, D), and their scores (B, T)."""
    with torch.no_grad():
        net.logit_scale.clamp_(0.0, LN_100)  # CLIP, section 2.5: never scale by more than 100
    images, texts = net.encode_image(pictures(image)).float(), net.encode_text(ids).float()
    return images, texts, similarity(images, texts, net.logit_scale)


def similarity(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """exp(logit_scale) times the cosine of every picture with every text: (B, T), pictures down, texts across."""
    with torch.autocast(images.device.type, enabled=False):
        return logit_scale.float().exp() * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T


def contrastive_loss(scores: Tensor, ids: Tensor | None = None) -> tuple[Tensor, Notes]:
    """Each picture must find its caption among the batch's, and each caption its picture (CLIP, figure 3): the mean of
    the cross-entropies along rows and columns of `scores` (B, B).

    With ids (B, N), captions that are word for word the same count as one, so that no true pair is punished. The loss
    of a net that knows nothing is ln B, noted as "chance".
    """
    count = len(scores)
    same = torch.eye(count, device=scores.device, dtype=torch.bool)
    if ids is not None:
        same = (ids[:, None] == ids[None]).all(-1)
    wanted = same.float() / same.sum(1, keepdim=True)
    loss = 0.5 * (F.cross_entropy(scores, wanted) + F.cross_entropy(scores.T, wanted))
    with torch.no_grad():
        rows = torch.arange(count, device=scores.device)
        found = same[rows, scores.argmax(1)].float().mean()
        back = same[scores.argmax(0), rows].float().mean()
    return loss, {"chance": math.log(count), "image_to_text": float(found), "text_to_image": float(back)}


@dataclass(frozen=True)
class Autoencoding:
    """Give the picture back through a small latent: reconstruction + a little KL + edges.

    batch["image"]: (B, 3, H, W) in [-1, 1]; batch["weight"], if there: (B, 1, H, W), how much each pixel counts.
    reconstruction: "l1", or "huber" (quadratic below `beta`: small errors fade, so that flat areas become truly
    flat). kl: weight of the mean KL divergence of a latent number from the unit normal (Kingma and Welling 2014,
    eq. 10): keeps latents near a normal without blurring. edges: weight of the difference of the pictures'
    gradients at `scales` sizes, each half the one before; pixel losses alone forgive a soft edge, this does not.
    """

    reconstruction: Literal["l1", "huber"] = "l1"
    beta: float = 0.05
    kl: float = 1e-5
    edges: float = 1.0
    scales: int = 3

    def __call__(self, net: Any, batch: Batch, generator: Generator) -> tuple[Tensor, Notes]:
        image = pictures(batch["image"])
        mean, logvar = net.encode(image).float().chunk(2, dim=1)  # (B, C, h, w) each
        logvar = logvar.clamp(-30.0, 20.0)
        eps = torch.randn(mean.shape, generator=generator, device=mean.device)
        again = net.decode(mean + (0.5 * logvar).exp() * eps).float()  # (B, 3, H, W)
        weight = batch.get("weight")
        pixels = self.pixels(again, image, weight)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        edges = edge_difference(again, image, self.scales, weight)
        loss = pixels + self.kl * kl + self.edges * edges
        with torch.no_grad():
            psnr = -10 * torch.log10((again.clamp(-1, 1) - image).square().mean(dim=(1, 2, 3)) / 4 + 1e-10).mean()
        notes = {"pixels": pixels, "edges": edges, "kl": kl, "psnr": psnr, "latent": mean.std()}
        return loss, {name: float(value.detach()) for name, value in notes.items()}

    def pixels(self, again: Tensor, image: Tensor, weight: Tensor | None = None) -> Tensor:
        """The mean pixel difference, weighted where weights are given."""
        if self.reconstruction == "l1":
            return weighted((again - image).abs(), weight)
        if self.reconstruction == "huber":
            return weighted(F.smooth_l1_loss(again, image, beta=self.beta, reduction="none"), weight)
        raise unknown("reconstruction", self.reconstruction, ["l1", "huber"])


def edge_difference(again: Tensor, image: Tensor, scales: int, weight: Tensor | None = None) -> Tensor:
    """How far the gradients of two pictures (B, 3, H, W) are apart, summed over `scales` sizes.

    The gradient-difference loss of Mathieu et al. 2016 (eq. 6, alpha 1) with signed gradients, on a pyramid.
    """
    total = again.new_zeros(())
    difference = again - image  # a gradient is linear: the difference of gradients is the gradient of the difference
    for scale in range(scales):
        if scale:
            difference = F.avg_pool2d(difference, 2)
            weight = F.avg_pool2d(weight, 2) if weight is not None else None
        across, down = difference.diff(dim=3).abs(), difference.diff(dim=2).abs()
        total = total + weighted(across, None if weight is None else weight[..., 1:])
        total = total + weighted(down, None if weight is None else weight[..., 1:, :])
    return total


def weighted(values: Tensor, weight: Tensor | None) -> Tensor:
    """The mean of (B, C, H, W), or the mean under weights (B, 1, H, W)."""
    if weight is None:
        return values.mean()
    return (values * weight).sum() / (weight.sum() * values.shape[1]).clamp(min=1e-8)


class Denoising:
    """Learn to take noise out of latents, told by text how (DDPM, section 3.4; latent diffusion, eq. 3).

    batch["latents"]: (B, C, h, w), already scaled; batch["prompt"]: what the net is told, (B, N, D) text states, or
    (B, N) token ids where it has a text tower of its own (drawing.py). A share `drop` of the prompts is replaced by
    `empty`, the empty prompt in the same form, so that the net can also draw unprompted, as guidance needs (Ho and
    Salimans 2022, algorithm 1).

    weighting "none" is the plain mean square of the predicted kind. With kind "v_prediction" that already weighs the
    clean estimate's error by snr + 1 (Salimans and Ho 2022, section 4), so no step drowns the others. "min_snr" weighs
    the clean estimate's error by min(snr, gamma) (Hang et al. 2023, eq. 7): less work on the last fine noise.
    """

    def __init__(
        self,
        ladder: Ladder,
        empty: Any,
        kind: str = "v_prediction",
        drop: float = 0.1,
        weighting: Literal["none", "min_snr"] = "none",
        gamma: float = 5.0,
        spread: float = 1.0,
        shift: float = 1.0,
    ) -> None:
        if weighting not in ("none", "min_snr"):
            raise unknown("weighting", weighting, ["none", "min_snr"])
        self.kind, self.drop, self.weighting, self.gamma = kind, drop, weighting, gamma
        self.spread, self.shift = spread, shift
        self.alpha = torch.as_tensor(ladder.alpha, dtype=torch.float32)
        self.sigma = torch.as_tensor(ladder.sigma, dtype=torch.float32)
        self.time = torch.as_tensor(ladder.time, dtype=torch.float32)  # what the net is told
        self.empty = torch.as_tensor(empty)

    def __call__(self, net: nn.Module, batch: Batch, generator: Generator) -> tuple[Tensor, Notes]:
        x0 = batch["latents"].float()
        count, device = len(x0), x0.device
        t = timesteps(count, len(self.alpha), generator, device, self.spread, self.shift)
        alpha = self.alpha.to(device)[t].view(-1, 1, 1, 1)
        sigma = self.sigma.to(device)[t].view(-1, 1, 1, 1)
        eps = torch.randn(x0.shape, generator=generator, device=device)
        prompt = self.dropped(batch["prompt"], generator)
        out = net(alpha * x0 + sigma * eps, self.time.to(device)[t], prompt).float()
        level: Any = Level(t, alpha, sigma)  # type: ignore[arg-type]  # one level for each picture
        wanted = target_of(self.kind, x0, eps, level)
        error = (out - wanted).square().mean(dim=(1, 2, 3))  # (B,)
        loss = (error * self.weight(alpha, sigma).view(-1)).mean()
        late = t >= len(self.alpha) // 2
        return loss, {"noisy": _mean(error.detach(), late), "clean": _mean(error.detach(), ~late)}

    def dropped(self, prompt: Tensor, generator: Generator) -> Tensor:
        """`prompt` (B, ...) with a random share of its rows made empty."""
        empty = self.empty.to(prompt.device, prompt.dtype)
        here = torch.rand(len(prompt), generator=generator, device=prompt.device) < self.drop
        return torch.where(here.view(-1, *[1] * empty.ndim), empty, prompt)

    def weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the square error of the predicted kind counts at a level."""
        if self.weighting == "none":
            return torch.ones_like(alpha)
        snr = (alpha / sigma.clamp(min=1e-4)).square()
        per_kind = {  # how far the clean estimate moves when the prediction does, squared
            "epsilon": (sigma / alpha.clamp(min=1e-4)).square(),
            "v_prediction": sigma.square(),
            "sample": torch.ones_like(alpha),
            "flow": sigma.square(),
        }
        if self.kind not in per_kind:
            raise unknown("prediction kind", self.kind, per_kind)
        return snr.clamp(max=self.gamma) * per_kind[self.kind]


def timesteps(
    count: int, steps: int, generator: Generator, device: torch.device, spread: float = 1.0, shift: float = 1.0
) -> Tensor:
    """`count` steps of 0 .. steps-1: half of them uniform, half logit-normal (in the middle), both stratified.

    The middle is where the picture is decided and most is to be learned (Esser et al. 2024, section 3.1); the uniform
    half keeps both ends in training. Stratified: of n equal slices of probability each gets one draw, so a batch never
    misses a part of the ladder and the loss is less noisy. The slices come in random order. A shift above 1 moves both
    towards noise (eq. 23 of the same): where little of the picture is left, only the words can say what it is.
    """
    uniform = (count + 1) // 2
    flat = strata(uniform, generator, device)
    peaked = strata(count - uniform, generator, device).clamp(1e-6, 1 - 1e-6)
    u = torch.cat([flat, torch.sigmoid(spread * torch.special.ndtri(peaked))])
    u = shift * u / (1 + (shift - 1) * u)
    return (u * steps).long().clamp(0, steps - 1)


def strata(count: int, generator: Generator, device: torch.device) -> Tensor:
    """One uniform draw in each of `count` equal slices of [0, 1)."""
    inside = torch.rand(count, generator=generator, device=device)
    return (torch.arange(count, device=device) + inside) / max(1, count)


def pictures(image: Tensor) -> Tensor:
    """Pictures as the nets want them: uint8 becomes float in [-1, 1], the rest stays (B, 3, H, W)."""
    return image.float() / 127.5 - 1 if image.dtype == torch.uint8 else image


def _mean(values: Tensor, where: Tensor) -> float:
    return float(values[where].mean()) if bool(where.any()) else 0.0
