"""How weights move: the learning rate of a step, AdamW, the gradient's norm, and the moving average of the weights."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn


class Schedule(Protocol):
    """The settings that the learning rate is a function of."""

    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup(self) -> int: ...
    @property
    def decay(self) -> str: ...
    @property
    def floor(self) -> float: ...
    @property
    def cooldown(self) -> int: ...


def learning_rate(settings: Schedule, step: int) -> float:
    """The rate of step 0, 1, 2 ...: linear warm-up, constant or a half cosine, then a linear cooldown to the floor.

    The cosine (SGDR, Loshchilov and Hutter 2017, eq. 5, one period) falls from the peak to `floor` times the peak;
    the cooldown (the last `cooldown` steps) falls linearly from wherever the rate is to the floor.
    """
    peak, floor = settings.learning_rate, settings.floor * settings.learning_rate
    if step < settings.warmup:
        return peak * (step + 1) / settings.warmup
    body = settings.steps - settings.cooldown
    here = min(step, body)
    rate = peak
    if settings.decay == "cosine":
        share = (here - settings.warmup) / max(1, body - settings.warmup)
        rate = floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, share))))
    if step >= body and settings.cooldown:
        rate = floor + (rate - floor) * max(0, settings.steps - step) / settings.cooldown
    return rate


def adamw(net: nn.Module, rate: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2); matrices and kernels decay; biases, norms, scales do not."""
    trained = [one for one in net.parameters() if one.requires_grad]
    groups = [
        {"params": [one for one in trained if one.ndim >= 2], "weight_decay": weight_decay},
        {"params": [one for one in trained if one.ndim < 2], "weight_decay": 0.0},
    ]
    device = trained[0].device.type if trained else "cpu"
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, betas=betas, fused=device in ("cpu", "cuda"))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The rate of the coming step, for every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradient(net: nn.Module, most: float) -> float:
    """The norm of the whole gradient, which is scaled down to `most` where it is longer; 0 measures only."""
    gradients = [one.grad for one in net.parameters() if one.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if most > 0:
        torch.nn.utils.clip_grads_with_norm_([one for one in net.parameters() if one.grad is not None], most, norm)
    return float(norm)


def ema_decay(most: float, step: int) -> float:
    """The decay after `step` steps: it rises with the age of the training, so that early weights are soon forgotten.

    min(most, (1 + step) / (10 + step)): as TensorFlow's ExponentialMovingAverage with num_updates.
    """
    return min(most, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, decay: float) -> None:
    """average <- decay average + (1 - decay) net, for every parameter; buffers are copied."""
    mine: list[Tensor] = list(average.parameters())
    theirs: list[Tensor] = list(net.parameters())
    torch._foreach_lerp_(mine, theirs, 1.0 - decay)
    for old, new in zip(average.buffers(), net.buffers(), strict=True):
        old.copy_(new)


def optimizer_tensors(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's memory by weight name: `WEIGHT/exp_avg`, `WEIGHT/exp_avg_sq`, `WEIGHT/step`."""
    return {
        f"{name}/{part}": value
        for name, weight in net.named_parameters()
        for part, value in optimizer.state.get(weight, {}).items()
    }


def restore_optimizer(net: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave, in each weight's own device and memory order."""
    weights = dict(net.named_parameters())
    for key, value in tensors.items():
        name, _, part = key.rpartition("/")
        weight = weights[name]
        mine = value.to(weight.device) if part == "step" else torch.empty_like(weight, requires_grad=False).copy_(value)
        optimizer.state[weight][part] = mine
