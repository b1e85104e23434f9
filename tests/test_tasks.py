"""The losses: what they are at chance, at the goal, and in closed form between."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cartouche.config import CartoucheError
from cartouche.diffusion import schedule
from cartouche.train import tasks

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Towers(nn.Module):
    """A net with CLIP's face: random projections of pictures and words into 64 dimensions."""

    def __init__(self, scale: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.word = nn.Linear(48, 64), nn.Embedding(50, 64)
        self.logit_scale = nn.Parameter(torch.tensor(scale))

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.image(pixels.flatten(1)), dim=-1)

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.word(ids).mean(1), dim=-1)


def pairs(count: int) -> dict[str, Any]:
    return {
        "image": torch.randn(count, 3, 4, 4, generator=generator(1)),
        "ids": torch.randint(0, 50, (count, 6), generator=generator(2)),
    }


def test_a_clip_that_knows_nothing_is_at_ln_n():
    images, texts, scores = tasks.compared(Towers(), **pairs(128))
    assert images.shape == texts.shape == (128, 64)
    loss, notes = tasks.contrastive_loss(scores)
    assert notes["chance"] == pytest.approx(math.log(128))
    assert float(loss.detach()) == pytest.approx(math.log(128), rel=0.01)
    exactly, _ = tasks.contrastive_loss(torch.zeros(128, 128))
    assert float(exactly.detach()) == pytest.approx(math.log(128), rel=1e-6)


def test_a_clip_that_knows_all_has_no_loss_and_finds_every_pair():
    loss, notes = tasks.contrastive_loss(100 * torch.eye(16))
    assert float(loss.detach()) < 1e-6
    assert notes["image_to_text"] == notes["text_to_image"] == 1.0


def test_the_contrastive_loss_is_the_mean_of_both_cross_entropies():
    scores = torch.randn(5, 5, generator=generator())
    rows = -torch.stack([scores[i, i] - scores[i].logsumexp(0) for i in range(5)]).mean()
    columns = -torch.stack([scores[i, i] - scores[:, i].logsumexp(0) for i in range(5)]).mean()
    loss, _ = tasks.contrastive_loss(scores)
    assert float(loss.detach()) == pytest.approx(float(rows + columns) / 2, rel=1e-5)


def test_equal_captions_are_not_punished_as_wrong_pairs():
    ids = torch.tensor([[1, 2], [1, 2], [3, 4]])
    same = (ids[:, None] == ids[None]).all(-1).float()
    loss, notes = tasks.contrastive_loss(100 * same, ids)
    assert float(loss.detach()) == pytest.approx(2 / 3 * math.log(2), rel=1e-5)  # only which of the two remains unknown
    assert notes["image_to_text"] == 1.0
    alone = torch.tensor([[1, 2], [5, 2], [3, 4]])
    scores = torch.randn(3, 3, generator=generator())
    assert torch.allclose(tasks.contrastive_loss(scores, alone)[0], tasks.contrastive_loss(scores)[0])


def test_the_scale_of_scores_never_passes_a_hundred():
    towers = Towers(scale=9.0)
    tasks.compared(towers, **pairs(4))
    assert float(towers.logit_scale.detach().exp()) == pytest.approx(100, rel=1e-5)


class Mirror(nn.Module):
    """An autoencoder that gives back what it got, plus `shift`: latents are the pixels' first channel and no spread."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, torch.full_like(x, -30.0)], 1)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z + self.shift


def test_a_perfect_autoencoder_has_only_its_kl_left():
    image = torch.rand(2, 3, 16, 16, generator=generator()) * 2 - 1
    loss, notes = tasks.Autoencoding(kl=0.0)(Mirror(), {"image": image}, generator())
    assert float(loss.detach()) < 1e-5 and notes["psnr"] > 60
    kl = 0.5 * (float(image.square().mean()) + math.exp(-30) - 1 + 30)
    assert notes["kl"] == pytest.approx(kl, rel=1e-5)
    with_kl, _ = tasks.Autoencoding(kl=0.1)(Mirror(), {"image": image}, generator())
    assert float(with_kl.detach()) == pytest.approx(0.1 * kl, rel=1e-3)


def test_a_constant_error_is_seen_by_pixels_and_not_by_edges():
    image = torch.zeros(1, 3, 16, 16)
    _, notes = tasks.Autoencoding(kl=0.0)(Mirror(0.2), {"image": image}, generator())
    assert notes["pixels"] == pytest.approx(0.2, rel=1e-4) and notes["edges"] == pytest.approx(0, abs=1e-5)
    assert notes["psnr"] == pytest.approx(-20 * math.log10(0.1), rel=1e-3)  # a range of 2 makes 0.2 a tenth
    huber, _ = tasks.Autoencoding("huber", kl=0.0)(Mirror(0.2), {"image": image}, generator())
    assert float(huber.detach()) == pytest.approx(0.2 - 0.025, rel=1e-4)


def test_a_lost_edge_costs_its_height_once_per_row():
    image = torch.zeros(1, 1, 8, 8)
    image[..., 4:] = 1.0
    assert float(tasks.edge_difference(torch.zeros_like(image), image, scales=1)) == pytest.approx(1 / 7)
    assert float(tasks.edge_difference(torch.zeros_like(image), image, scales=2)) == pytest.approx(1 / 7 + 1 / 3)


def test_weighted_pixels_count_as_much_as_their_weight():
    values, weight = torch.tensor([[[[1.0, 3.0]]]]).expand(1, 3, 1, 2), torch.tensor([[[[3.0, 1.0]]]])
    assert float(tasks.weighted(values, weight)) == pytest.approx(1.5)
    assert float(tasks.weighted(values, None)) == pytest.approx(2.0)


def test_bytes_become_pictures_between_minus_one_and_one():
    assert tasks.pictures(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


class Oracle(nn.Module):
    """Knows the latents and so predicts any kind exactly; remembers the text states it was given."""

    def __init__(self, kind: str, x0: torch.Tensor, ladder: schedule.Ladder, off: float = 0.0) -> None:
        super().__init__()
        self.kind, self.x0, self.ladder, self.off = kind, x0, ladder, off

    def forward(self, xt: torch.Tensor, t: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        self.states = states
        index = np.searchsorted(self.ladder.time, t.numpy() - 1e-3)
        alpha = torch.tensor(self.ladder.alpha[index], dtype=torch.float32).view(-1, 1, 1, 1)
        sigma = torch.tensor(self.ladder.sigma[index], dtype=torch.float32).view(-1, 1, 1, 1)
        eps = (xt - alpha * self.x0) / sigma
        x0 = self.x0
        exact = {"epsilon": eps, "v_prediction": alpha * eps - sigma * x0, "sample": x0, "flow": eps - x0}
        return exact[self.kind] + self.off


def latents(count: int = 16) -> dict[str, Any]:
    return {
        "latents": torch.randn(count, 4, 3, 3, generator=generator(3)),
        "prompt": torch.ones(count, 5, 6),
    }


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
def test_the_denoiser_that_knows_the_answer_has_no_loss(kind: str):
    ladder, batch = schedule.flow() if kind == "flow" else schedule.scaled_linear(), latents()
    task = tasks.Denoising(ladder, torch.zeros(5, 6), kind)
    loss, _ = task(Oracle(kind, batch["latents"], ladder), batch, generator())
    assert float(loss.detach()) < 1e-3
    off, notes = task(Oracle(kind, batch["latents"], ladder, off=0.5), batch, generator())
    assert float(off.detach()) == pytest.approx(0.25, rel=0.01)
    assert notes["noisy"] == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize(("drop", "low", "high"), [(0.0, 0, 0), (1.0, 4000, 4000), (0.1, 300, 500)])
def test_the_wanted_share_of_prompts_is_made_empty(drop: float, low: int, high: int):
    task = tasks.Denoising(schedule.linear(), np.full((5, 6), 7.0), drop=drop)
    states = task.dropped(torch.ones(4000, 5, 6), generator())
    empty = (states == 7).all(-1).all(-1)
    assert low <= int(empty.sum()) <= high
    assert bool((states[~empty] == 1).all())


def test_steps_are_stratified_half_uniform_half_logit_normal():
    t = tasks.timesteps(2000, 1000, generator(), CPU)
    uniform, peaked = t[:1000], t[1000:]
    assert uniform.tolist() == list(range(1000))  # one draw in each slice
    below = torch.special.ndtr(torch.logit(torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])))
    got = torch.stack([(peaked < 1000 * cut).float().mean() for cut in (0.1, 0.25, 0.5, 0.75, 0.9)])
    assert torch.allclose(got, below, atol=0.003)
    few = tasks.timesteps(1, 1000, generator(), CPU)
    assert few.shape == (1,) and 0 <= int(few) < 1000


def test_a_shift_moves_the_steps_towards_noise():
    t = tasks.timesteps(2000, 1000, generator(), CPU, shift=3.0).float()
    for here, there in [(0.25, 0.5), (0.5, 0.75), (0.75, 0.9)]:  # 3u / (1 + 2u)
        assert (t[:1000] < 1000 * there).float().mean() == pytest.approx(here, abs=0.002)
    assert (t[1000:] < 750).float().mean() == pytest.approx(0.5, abs=0.002)


def test_min_snr_weighs_the_clean_estimate_by_the_capped_ratio():
    alpha, sigma = torch.tensor([0.9, 0.6, 0.1]), torch.tensor([math.sqrt(0.19), 0.8, math.sqrt(0.99)])
    snr = (alpha / sigma).square()
    capped = snr.clamp(max=3.0)
    for kind, wanted in [("epsilon", capped / snr), ("v_prediction", capped / (snr + 1)), ("sample", capped)]:
        task = tasks.Denoising(schedule.linear(), torch.zeros(1, 1), kind, weighting="min_snr", gamma=3.0)
        assert torch.allclose(task.weight(alpha, sigma), wanted, rtol=1e-4)
    plain = tasks.Denoising(schedule.linear(), torch.zeros(1, 1))
    assert plain.weight(alpha, sigma).tolist() == [1.0, 1.0, 1.0]


def test_unknown_weightings_and_kinds_are_refused():
    with pytest.raises(CartoucheError, match="min_snr"):
        tasks.Denoising(schedule.linear(), torch.zeros(1, 1), weighting="min-snr")  # type: ignore[arg-type]
    with pytest.raises(CartoucheError, match="l1"):
        tasks.Autoencoding("l3").pixels(torch.zeros(1), torch.zeros(1))  # type: ignore[arg-type]
