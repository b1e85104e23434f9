"""How weights move: the rate of a step, AdamW and Muon, the gradient's norm, and the moving average of the weights."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from cartouche.device import has_bf16


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
    return torch.optim.AdamW(by_rate(net, groups), lr=rate, betas=betas, fused=device in ("cpu", "cuda"))


def by_rate(net: nn.Module, groups: list[dict]) -> list[dict]:
    """`groups` of weights split by how fast they learn, the empty ones left out.

    A net may say `rates = {"part": 0.25}`: the weights of that part learn at a quarter of the rate of the others.
    """
    rates: dict[str, float] = getattr(net, "rates", {})
    factors = {id(one): rate for part, rate in rates.items() for one in net.get_submodule(part).parameters()}
    split = []
    for group in groups:
        for factor in sorted({factors.get(id(one), 1.0) for one in group["params"]}):
            here = [one for one in group["params"] if factors.get(id(one), 1.0) == factor]
            split.append({**group, "params": here, "factor": factor})
    return split


class Muon(torch.optim.AdamW):
    """Muon (Jordan 2024) for matrices and kernels, AdamW for all else, at one rate.

    A matrix moves by its momentum (Nesterov's) with every singular value made about 1, and kernels count as matrices of
    (outputs, all else). The step is scaled to the size of AdamW's usual one, 0.2 a number (Liu et al. 2025, "Muon is
    scalable", eq. 4). Look-up tables are AdamW's: a row that was not looked up must not move.
    """

    def __init__(self, net: nn.Module, rate: float, betas: tuple[float, float], weight_decay: float) -> None:
        trained = {id(one) for one in net.parameters() if one.requires_grad}
        tables = {id(one.weight) for one in net.modules() if isinstance(one, nn.Embedding)}
        matrices = [one for one in net.parameters() if id(one) in trained - tables and one.ndim >= 2]
        taken = {id(one) for one in matrices}
        rest = [one for one in net.parameters() if id(one) in trained - taken]
        groups = [
            {"params": matrices, "orthogonal": True, "weight_decay": weight_decay},
            {"params": rest, "orthogonal": False, "weight_decay": 0.0},
        ]
        super().__init__(
            by_rate(net, groups),
            lr=rate,
            betas=betas,
            fused=next(net.parameters()).device.type in ("cpu", "cuda"),
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if not group["orthogonal"]:
                continue
            for weight in (one for one in group["params"] if one.grad is not None):
                if "momentum" not in self.state[weight]:  # the first step, or the first after AdamW's
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
                momentum = self.state[weight]["momentum"]
                momentum.lerp_(weight.grad, 0.05)
                matrix = weight.grad.lerp(momentum, 0.95).flatten(1)  # (outputs, all else)
                move = orthogonal(matrix) * (0.2 * math.sqrt(max(matrix.shape)))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(move.view(weight.shape), alpha=group["lr"])
                weight.grad = None  # AdamW below takes what is left
        super().step()


@torch.no_grad()
def orthogonal(matrix: Tensor, rounds: int = 5) -> Tensor:
    """`matrix` (N, D) with its singular values brought near 1, those under 1e-3 of its norm less near.

    Newton-Schulz rounds s -> 3.4445 s - 4.775 s^3 + 2.0315 s^5 (Jordan 2024), in bfloat16 where the device multiplies
    that natively. The same rounds on the small square product of the matrix with itself would be a third of the work
    for long rows, but do not bear rounding: singular values of 20 came out, and a training was lost in fifty steps.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(torch.bfloat16 if has_bf16(matrix.device) else torch.float32)
    x = x / (x.norm() + 1e-7)
    for _ in range(rounds):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return (x.T if tall else x).to(matrix.dtype)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The rate of the coming step, for every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


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
    """The optimizer's memory by weight name: `WEIGHT/exp_avg`, `.../exp_avg_sq`, `.../step`, or `WEIGHT/momentum`."""
    return {
        f"{name}/{part}": value
        for name, weight in net.named_parameters()
        for part, value in optimizer.state.get(weight, {}).items()
    }


def restore_optimizer(net: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave, in each weight's own device and memory order.

    What another optimizer remembered of a weight is left out: this one begins there anew.
    """
    weights = dict(net.named_parameters())
    turned = {id(one) for group in optimizer.param_groups if group.get("orthogonal") for one in group["params"]}
    for key, value in tensors.items():
        name, _, part = key.rpartition("/")
        weight = weights[name]
        if (part == "momentum") != (id(weight) in turned):
            continue
        mine = value.to(weight.device) if part == "step" else torch.empty_like(weight, requires_grad=False).copy_(value)
        optimizer.state[weight][part] = mine
