"""The two engines side by side: how long a step of the U-Net takes in each, and how far their pictures are apart.

    python benchmarks/engines.py [--model FOLDER] [--rounds 15]          (about two minutes; needs torch)

A step is one call of the U-Net: for one picture with guidance (both passes, a batch of 2) and for a batch of 16. The
engines are called as drawing calls them, one after the other in every round. bf16 is measured where the processor
multiplies it natively. Pictures are drawn from the same seeds by each engine whole (text tower, steps, decoder) and
compared with those of torch in fp32, in units of 255; in fp32 a mean difference of at most 2 is wanted.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench import against, interleaved, machine, parser, speedups, spread, table, write

from cartouche.device import processor_has_bf16, use_threads
from cartouche.draw.paint import Painter
from cartouche.draw.recipe import STEPS
from cartouche.weights import folder as folders

BATCHES = (2, 16)
TARGET = 2.0  # of 255
BASE = ("torch", "fp32")
PROMPTS = (
    "a red apple on a blue background, flat style",
    "two cats on a yellow background, noto style",
    "a guitar to the left of a rocket on a white background, 3D style",
    "trois poires sur fond violet, style twemoji",
)


def painters(model: Path | None = None) -> dict[str, Painter]:
    """The model opened in every engine and precision that this machine has, under names like "torch fp32"."""
    precisions = ("fp32", "bf16") if processor_has_bf16() else ("fp32",)
    return {
        f"{engine} {precision}": Painter(model, engine=engine, precision=precision, device="cpu")  # type: ignore[arg-type]
        for engine in ("openvino", "torch")
        for precision in precisions
    }


def steps(opened: dict[str, Painter], batch: int, rounds: int = 15, limit: float = 60.0) -> dict[str, Any]:
    """Seconds of one call of the U-Net on `batch` latents, by engine."""
    given = step_inputs(next(iter(opened.values())), batch)
    calls = {name: partial(painter.net("unet"), **given) for name, painter in opened.items()}
    taken = interleaved(calls, rounds, warmup=2, limit=limit)
    times = speedups(taken, " ".join(BASE))
    return {name: {"seconds": spread(one), "times torch fp32": times[name]} for name, one in taken.items()}


def step_inputs(painter: Painter, batch: int) -> dict[str, np.ndarray]:
    """Noise at the model's size, and the states of a prompt."""
    channels = folders.read_json(painter.folder / "unet" / "config.json")["in_channels"]
    width, height = (side // painter.shrink for side in painter.size)
    states, _ = painter.encode(PROMPTS[0])
    return {
        "sample": np.random.default_rng(0).standard_normal((batch, channels, height, width), np.float32),
        "timestep": np.full(batch, 500, np.float32),
        "encoder_hidden_states": np.repeat(states, batch, axis=0),
    }


def pictures(opened: dict[str, Painter], num_inference_steps: int = STEPS) -> dict[str, Any]:
    """How far each engine's pictures are from those of torch in fp32, of 255."""
    drawn = {name: drawings(painter, num_inference_steps) for name, painter in opened.items()}
    there: np.ndarray = drawn.pop(" ".join(BASE)).astype(int)
    apart = {name: np.abs(there - here) for name, here in drawn.items()}
    return {name: {"mean": one.mean(), "largest": one.max(), "pictures": len(one)} for name, one in apart.items()}


def drawings(painter: Painter, num_inference_steps: int) -> np.ndarray:
    """One picture for each prompt: (B, H, W, 3) uint8."""
    settings = {"num_inference_steps": num_inference_steps}
    return np.stack([painter.draw(prompt, seed=seed, **settings)[0].pixels for seed, prompt in enumerate(PROMPTS)])


def measure(model: Path | None = None, rounds: int = 15, limit: float = 60.0) -> dict[str, Any]:
    """Steps in every engine and batch, and the pictures' differences."""
    use_threads()
    opened = painters(model)
    differences = pictures(opened)
    return {
        "model": next(iter(opened.values())).hash,
        "steps": {f"batch of {batch}": steps(opened, batch, rounds, limit) for batch in BATCHES},
        "differences from torch fp32, of 255": differences,
        "target": against(float(differences["openvino fp32"]["mean"]), TARGET, least=False),
    }


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    """A line for each engine: milliseconds, and how many times as fast as torch in fp32."""
    rows = []
    for name, row in found.items():
        ms = (f"{1000 * row['seconds'][key]:.1f}" for key in ("median", "min", "max"))
        rows.append([name, *ms, f"{row['times torch fp32']['median']:.2f}"])
    return rows


def main() -> None:
    given = parser(__doc__, "engines")
    given.add_argument("--model", type=Path, default=None, help="a model folder; the built-in one unless given")
    given.add_argument("--rounds", type=int, default=15)
    given.add_argument("--limit", type=float, default=60.0, help="seconds a batch size, after which no round begins")
    a = given.parse_args()
    here = machine()
    report = measure(a.model, a.rounds, a.limit)
    for batch, found in report["steps"].items():
        print(table([f"{batch}, ms a step", "median", "min", "max", "times torch fp32"], rows_of(found)), end="\n\n")
    apart = report["differences from torch fp32, of 255"]
    rows = [[name, f"{row['mean']:.3f}", row["largest"]] for name, row in apart.items()]
    print(table(["pictures, of 255", "mean", "largest"], rows))
    write(a.out, {"machine": here, **report})


if __name__ == "__main__":
    main()
