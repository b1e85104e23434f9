"""What each option for speed or memory gains and what it costs in the picture, against plain drawing by one engine.

    python benchmarks/options.py [--model FOLDER] [--rounds 5]        (about six minutes)

Every option draws the same prompts with the same seeds as plain drawing. "times as fast": plain time over its own,
round by round, interleaved. "difference": the mean absolute difference of the two pictures' channels, of 255, and the
PSNR of the same pairs. Compiling is timed after the first pictures, and what those wait for is told beside. Tiled
decoding is measured on random latents of large pictures, in a process of its own, since its gain is memory: the most
that the process held while it decoded, above what it held before.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from autoencoder import psnr
from bench import interleaved, machine, parser, speedups, spread, table, timed, write

from cartouche.draw.paint import Painter
from cartouche.draw.tiles import TILE
from cartouche.images import to_uint8

PROMPTS = ("a fox on a blue background, flat style", "two owls, noto style", "a sunflower on a white background")
OPTIONS: dict[str, dict[str, Any]] = {
    "guidance_interval 0.2-0.9": {"guidance_interval": (0.2, 0.9)},
    "guidance_interval 0.4-1": {"guidance_interval": (0.4, 1.0)},
    "cache_interval 2": {"cache_interval": 2},
    "cache_interval 3": {"cache_interval": 3},
    "10 steps, dpmpp_2m": {"sampler": "dpmpp_2m", "num_inference_steps": 10},
}
DECODING = """
import json, mmap, sys, threading, time
import numpy as np
from cartouche.draw.model import Model
side, tiled, out = int(sys.argv[2]), sys.argv[3] == "tiled", sys.argv[4]

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE / 2**20

def watch():
    while not done.wait(0.002):
        most.append(held())

model = Model(sys.argv[1] or None, engine="openvino")
z = np.random.default_rng(0).standard_normal((1, model.channels, side, side), np.float32)
model.decode(z[:, :, :8, :8])
done, most = threading.Event(), [held()]
watcher = threading.Thread(target=watch)
watcher.start()
started = time.perf_counter()
picture = model.decode(z, tiled)
taken = time.perf_counter() - started
done.set()
watcher.join()
np.save(out, picture)
print(json.dumps({"seconds": taken, "MB": max(most) - most[0]}))
"""


def pictures(painter: Painter, options: Mapping[str, Any]) -> np.ndarray:
    """The pictures of all prompts, (B, H, W, 3) uint8."""
    drawn = [painter.draw(prompt, seed=seed, **options) for seed, prompt in enumerate(PROMPTS)]
    return np.stack([one.pixels for some in drawn for one in some])


def differences(plain: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """How far two sets of pictures (B, H, W, 3) uint8 are apart."""
    away = np.abs(plain.astype(float) - other).mean()
    return {"difference": float(away), "PSNR": float(np.mean(psnr(plain, other)))}


def measured(model: Path | None, engine: str, rounds: int) -> dict[str, Any]:
    """Every option of one engine against plain drawing by it."""
    painter, first = Painter(model, engine), {}
    works: dict[str, Callable[[], np.ndarray]] = {"plain": partial(pictures, painter, {})}
    for name, options in OPTIONS.items():
        if engine == "torch" or "cache_interval" not in options:
            works[name] = partial(pictures, painter, options)
    if engine == "torch":
        works["compiled"] = partial(pictures, Painter(model, "compiled"), {})
        first = {"compiled": {"seconds of the first pictures": timed(works["compiled"])}}
    drawn = {name: work() for name, work in works.items()}
    taken = interleaved(works, rounds, warmup=0)
    faster = speedups(taken, "plain")
    found: dict[str, Any] = {}
    for name in works:
        times = {"seconds": spread(taken[name]), "times as fast": faster[name]}
        found[name] = times | differences(drawn["plain"], drawn[name]) | first.get(name, {})
    return found


def decoding(model: Path | None, sides: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """Whole and tiled decoding of random latents of these sides."""
    found = []
    for side in sides:
        drawn, row = {}, {"cells": side, "tile": TILE}
        for name in ("whole", "tiled"):
            out = folder / f"{name}-{side}.npy"
            command = [sys.executable, "-c", DECODING, str(model or ""), str(side), name, str(out)]
            row[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            drawn[name] = np.load(out)
        found.append(row | differences(*(to_uint8(one) for one in drawn.values())))
    return found


def main() -> None:
    given = parser(__doc__, "options")
    given.add_argument("--model", type=Path, help="a model folder; the built-in one unless given")
    given.add_argument("--engines", nargs="+", default=["openvino", "torch"])
    given.add_argument("--rounds", type=int, default=5)
    given.add_argument("--sides", type=int, nargs="*", default=[128, 192], help="cells of what is decoded")
    a = given.parse_args()
    report: dict[str, Any] = {"machine": machine(), "rounds": a.rounds}
    report["drawing"] = {engine: measured(a.model, engine, a.rounds) for engine in a.engines}
    rows = [
        [f"{engine}: {name}", one["times as fast"]["median"], one["difference"], one["PSNR"]]
        for engine, found in report["drawing"].items()
        for name, one in found.items()
    ]
    print(table(["option", "times as fast", "difference of 255", "PSNR"], rows))
    with TemporaryDirectory(prefix="cartouche-options-") as folder:
        report["decoding"] = decoding(a.model, a.sides, Path(folder))
    rows = [
        [f"{one['cells']} cells: {name}", one[name]["seconds"], one[name]["MB"], one["PSNR"] if name == "tiled" else ""]
        for one in report["decoding"]
        for name in ("whole", "tiled")
    ]
    print(table(["decoding", "seconds", "MB", "PSNR"], rows))
    write(a.out, report)


if __name__ == "__main__":
    main()
