"""How fast training is: our U-Net as the training loop runs it, against diffusers' of the very same configuration.

    python benchmarks/training.py [--rounds 12]          (about four minutes on two cores; needs diffusers)

A step is the loop's own step, for all of them: forward, backward, gradient clipping, AdamW, moving average, on the same
latents and the same weights. What differs is what a user gets: "cartouche" is our net as recipes/denoiser.py trains it
(bf16 where the processor has it, channels last, attention as two products), "diffusers fp32" is theirs as installed,
"diffusers bf16" the same under autocast, "diffusers fp32, channels last" its best plain fp32. Steps are interleaved.

Two nets: the recipe's own, and a U-Net of 27 million weights with attention where the grid is fine. The target is at
least 1.4 times the rate of diffusers in fp32 as installed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench import against, interleaved, machine, parser, speedups, spread, table, write
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cartouche import device as devices
from cartouche.diffusion import schedule
from cartouche.nets.unet import UNet2DConditionModel, UNetConfig
from cartouche.train.loop import Clock, TrainSettings, autocast, one_step, prepare
from cartouche.train.run import load_recipe
from cartouche.train.stream import Batch
from cartouche.train.tasks import Denoising
from cartouche.weights.builtin import builtin

RECIPE = Path(__file__).parents[1] / "recipes" / "denoiser.py"
WORDS = 40  # tokens of a caption of the built-in model
TARGET = 1.4
BASE = "diffusers fp32"
LARGER = UNetConfig(
    sample_size=16,
    block_out_channels=(64, 160, 320),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=256,
)


class Theirs(nn.Module):
    """diffusers' U-Net, called as ours is."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel as Reference

        self.unet = Reference.from_config(config.to_dict())

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """As `UNet2DConditionModel.forward`."""
        out: Tensor = self.unet(sample, timestep, encoder_hidden_states).sample
        return out


def measure(
    config: UNetConfig, settings: TrainSettings, words: int = WORDS, rounds: int = 12, limit: float = 110.0
) -> dict[str, Any]:
    """Rates of one configuration, ours and theirs, in batches of `settings.batch` latents with `words` tokens each."""
    target = devices.choose(settings.device)
    devices.use_threads(settings.threads)
    torch.manual_seed(0)
    ours = UNet2DConditionModel(config)
    example = batch_of(config, settings.batch, words)
    gflop = step_gflop(ours, example)
    apart = difference(ours, example)
    plain = replace(settings, precision="fp32", channels_last=False)
    rivals = {"cartouche": settings, BASE: plain, f"{BASE}, channels last": replace(plain, channels_last=True)}
    if devices.has_bf16(target):
        rivals["diffusers bf16"] = replace(plain, precision="bf16")
    steps = {name: stepper(ours, config, one, example, name == "cartouche") for name, one in rivals.items()}
    taken = interleaved(steps, rounds, warmup=2, limit=limit)
    times = speedups(taken, BASE)
    rows = {
        name: {
            "precision": devices.choose_precision(rivals[name].precision, target),
            "channels last": rivals[name].channels_last,
            "seconds a step": spread(seconds),
            "images/s": settings.batch / spread(seconds)["median"],
            "GFLOP/s": settings.batch * gflop / spread(seconds)["median"],
            "times diffusers fp32": times[name],
        }
        for name, seconds in taken.items()
    }
    return {
        "weights": sum(one.numel() for one in ours.parameters()),
        "latents": [config.in_channels, config.sample_size, config.sample_size],
        "tokens": words,
        "batch": settings.batch,
        "device": target.type,
        "GFLOP an image": gflop,
        "largest difference of predictions in fp32": apart,
        "rates": rows,
        "target": against(times["cartouche"]["median"], TARGET),
    }


def batch_of(config: UNetConfig, count: int, words: int) -> Batch:
    """Latents and text states of unit normals: speed does not look at what is learned."""
    side, draw = int(config.sample_size or 16), torch.Generator().manual_seed(1)  # type: ignore[arg-type]
    latents = torch.randn(count, config.in_channels, side, side, generator=draw)
    states = torch.randn(count, words, config.cross_attention_dim, generator=draw)
    return Batch(first=0, size=count, values={"latents": latents, "prompt": states})


def stepper(
    ours: UNet2DConditionModel, config: UNetConfig, settings: TrainSettings, batch: Batch, own: bool
) -> Callable[[], object]:
    """One step of the training loop as a call: our net, or theirs with our weights."""
    net: nn.Module = UNet2DConditionModel(config) if own else Theirs(config)
    (net if own else net.unet).load_state_dict(ours.state_dict())  # type: ignore[union-attr]
    target = devices.choose(settings.device)
    with tempfile.TemporaryDirectory() as empty:
        state = prepare(settings, net, Path(empty), target)
    task = Denoising(schedule.cosine(), batch.values["prompt"][0])
    region, clock = autocast(settings, target), Clock()

    def step() -> None:
        one_step(settings, state, task, batch, region, target, clock)
        if target.type == "cuda":
            torch.cuda.synchronize()

    return step


def step_gflop(net: nn.Module, batch: Batch) -> float:
    """Arithmetic of forward and backward for one image, in 10^9, a multiply-add being two.

    Counted where attention is two products: of the fused form torch counts nothing.
    """
    part = {name: value[:2] for name, value in batch.values.items()}
    with FlopCounterMode(display=False) as counter:
        with torch.autocast("cpu", torch.bfloat16):
            out = net(part["latents"], torch.zeros(len(part["latents"])), part["prompt"])
        out.float().square().mean().backward()
    net.zero_grad(set_to_none=True)
    return counter.get_total_flops() / len(part["latents"]) / 1e9


@torch.no_grad()
def difference(ours: UNet2DConditionModel, batch: Batch) -> float:
    """The largest difference between our prediction and theirs with the same weights: are they the same net?"""
    theirs = Theirs(ours.config).eval()
    theirs.unet.load_state_dict(ours.state_dict())
    x, words = batch.values["latents"][:2], batch.values["prompt"][:2]
    given = x, torch.full((len(x),), 500.0), words
    return float((ours(*given) - theirs(*given)).abs().max())


def show(name: str, result: dict[str, Any]) -> None:
    """One net's table."""
    print(f"\n{name}: {result['weights'] / 1e6:.1f} M weights, batch {result['batch']}, latents {result['latents']}, "
          f"{result['GFLOP an image']:.2f} GFLOP an image")  # fmt: skip
    head = ["", "images/s", "GFLOP/s", "ms a step", "min", "max", "times diffusers fp32"]
    rows = []
    for rival, row in result["rates"].items():
        ms = {key: 1000 * value for key, value in row["seconds a step"].items()}
        numbers = row["images/s"], row["GFLOP/s"], ms["median"], ms["min"], ms["max"]
        rows.append([rival, *(f"{one:.1f}" for one in numbers), f"{row['times diffusers fp32']['median']:.2f}"])
    print(table(head, rows))
    print(f"wanted at least {TARGET}: {'met' if result['target']['met'] else 'missed'}")


def main() -> None:
    given = parser(__doc__, "training")
    given.add_argument("--rounds", type=int, default=12)
    given.add_argument("--device", default="cpu")
    given.add_argument("--limit", type=float, default=110.0, help="seconds a net, after which no round begins")
    a = given.parse_args()
    here = machine()
    recipe = replace(load_recipe(RECIPE), start=str(builtin()))
    settings = replace(recipe.settings, device=a.device, init_from="")
    nets = {
        "the recipe's": (recipe.build_net().unet.config, settings, WORDS),
        "27 M": (LARGER, replace(settings, batch=16), 16),
    }
    report: dict[str, Any] = {"machine": here, "nets": {}}
    for name, (config, chosen, words) in nets.items():
        report["nets"][name] = measure(config, chosen, words, a.rounds, a.limit)
        show(name, report["nets"][name])
    write(a.out, report)


if __name__ == "__main__":
    main()
