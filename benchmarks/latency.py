"""How long a person waits: for a picture in a running program, from a cold shell, and for the help.

    python benchmarks/latency.py [--model FOLDER] [--rounds 7] [--count 30]        (about four minutes)

"warm" draws with an open model: 20 steps with guidance, one picture, another prompt and seed each time, so the text
tower runs too. "cold" is `python -m cartouche draw ...` in a process of its own, from the shell to the finished PNG:
once with an empty cache of compiled graphs, once again with the cache that the first left. "diffusers, cold" is a
process that opens the same folder with diffusers' pipeline, draws as many steps and writes the PNG: at most half of its
time is wanted, round by round. "python" starts and does nothing: no command can be faster. One process of each kind
beforehand is not counted: it leaves Python's bytecode and the files in memory, as installing and a first try do.
Processes are interleaved.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench import against, installed, interleaved, machine, parser, spread, table, timed, write

import cartouche
from cartouche.data import palette
from cartouche.draw.paint import Painter
from cartouche.draw.recipe import GUIDANCE_SCALE, STEPS
from cartouche.weights.builtin import builtin

RIVAL = "diffusers, cold"
PROMPT = "a red apple on a blue background, flat style"
THINGS = ("cat", "red apple", "rocket", "guitar", "pizza")
TARGETS = {  # seconds
    "warm picture": 0.6,
    "cold, empty cache": 4.0,
    "cold, filled cache": 2.5,
    "cartouche --help": 0.4,
}
SHARE = 0.5  # of the time of diffusers, at most
DIFFUSERS = f"""
import sys
import torch
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1], dtype=torch.float32, local_files_only=True)
settings = {{"num_inference_steps": {STEPS}, "guidance_scale": {GUIDANCE_SCALE}}}
pipeline({PROMPT!r}, generator=torch.Generator().manual_seed(7), **settings).images[0].save(sys.argv[2])
"""


def warm(painter: Painter, count: int = 30, steps: int = STEPS) -> list[float]:
    """Seconds of `count` pictures drawn one after another, the first (which opens the nets) left out."""
    prompts = (f"a {thing} on a {colour} background" for thing, colour in itertools.product(THINGS, palette.NAMES))
    painter.draw(PROMPT, seed=0, num_inference_steps=steps)
    return [
        timed(lambda seed=seed, prompt=prompt: painter.draw(prompt, seed=seed, num_inference_steps=steps))  # type: ignore[misc]
        for seed, prompt in zip(range(1, count + 1), itertools.cycle(list(prompts)), strict=False)
    ]


def cold(model: Path | None = None, rounds: int = 7) -> dict[str, list[float]]:
    """Seconds of whole processes, by what they do."""
    with tempfile.TemporaryDirectory(prefix="cartouche-latency-") as folder:
        shell = Shell(Path(folder), model)
        for name in ("cartouche --help", "cold, filled cache", RIVAL):
            if name in shell.calls():
                shell.calls()[name]()
        return interleaved(shell.calls(), rounds, warmup=0)


class Shell:
    """Starts processes that know nothing of each other but the files in `folder`."""

    def __init__(self, folder: Path, model: Path | None) -> None:
        self.folder, self.caches, self.pictures = folder, itertools.count(), itertools.count()
        self.model = [] if model is None else ["--model", str(model.resolve())]
        self.filled = folder / "filled"
        self.opened = str((model or builtin()).resolve())

    def calls(self) -> dict[str, Callable[[], object]]:
        """What is timed, by name; diffusers where it is installed."""
        rival = {RIVAL: self.diffusers} if installed("diffusers") else {}
        return rival | {
            "python": lambda: self.python("-c", "pass"),
            "import cartouche": lambda: self.python("-c", "import cartouche"),
            "cartouche --help": lambda: self.python("-m", "cartouche", "--help"),
            "cold, empty cache": lambda: self.draw(self.folder / f"cache{next(self.caches)}"),
            "cold, filled cache": lambda: self.draw(self.filled),
        }

    def draw(self, cache: Path) -> None:
        """From the shell to the PNG."""
        out = self.folder / f"{next(self.pictures)}.png"
        self.python("-m", "cartouche", "draw", PROMPT, "--seed", "7", "--out", str(out), *self.model, cache=cache)
        if not out.is_file():
            raise SystemExit("the command left no picture; draw once by hand and see what it says")

    def diffusers(self) -> None:
        """The same from the shell by diffusers."""
        out = self.folder / f"{next(self.pictures)}.png"
        self.python("-c", DIFFUSERS, self.opened, str(out))

    def python(self, *arguments: str, cache: Path | None = None) -> None:
        """One process; what it prints is kept for the case that it fails."""
        room = str(Path(cartouche.__file__).parents[1])
        path = os.pathsep.join(one for one in (room, os.environ.get("PYTHONPATH", "")) if one)
        environment = os.environ | {"PYTHONPATH": path, "XDG_CACHE_HOME": str(cache or self.filled)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # Python's own default, which a user has
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments[:3])} ended with {done.returncode}: {done.stderr.strip()[-500:]}")


def measure(model: Path | None = None, count: int = 30, rounds: int = 7) -> dict[str, Any]:
    """Everything a person waits for, in seconds, with what is wanted of it."""
    painter = cartouche.load(model)
    taken = {"warm picture": warm(painter, count)} | cold(model, rounds)
    waits = {name: spread(seconds) for name, seconds in taken.items()}
    held = {name: against(waits[name]["median"], most, least=False) for name, most in TARGETS.items()}
    if RIVAL in taken:
        shares = np.asarray(taken["cold, filled cache"]) / np.asarray(taken[RIVAL])
        held[f"share of {RIVAL}"] = against(float(np.median(shares)), SHARE, least=False)
    return {
        "model": painter.hash,
        "size": list(painter.size),
        "steps": STEPS,
        "guidance": GUIDANCE_SCALE,
        "engine": painter.engine,
        "precision": painter.net("unet").precision,
        "seconds": waits,
        "targets": held,
    }


def main() -> None:
    given = parser(__doc__, "latency")
    given.add_argument("--model", type=Path, default=None, help="a model folder; the built-in one unless given")
    given.add_argument("--rounds", type=int, default=7, help="processes of each kind")
    given.add_argument("--count", type=int, default=30, help="warm pictures")
    a = given.parse_args()
    here = machine()
    report = measure(a.model, a.count, a.rounds)
    rows = []
    for name, row in report["seconds"].items():
        wanted = report["targets"].get(name)
        numbers = (f"{row[key]:.3f}" for key in ("median", "min", "max"))
        rows.append([name, *numbers, f"< {wanted['target']}" if wanted else "", wanted["met"] if wanted else ""])
    print(table(["seconds", "median", "min", "max", "wanted", "met"], rows))
    if share := report["targets"].get(f"share of {RIVAL}"):
        print(f"share of {RIVAL}: {share['reached']:.3f}, wanted at most {share['target']}")
    write(a.out, {"machine": here, **report})


if __name__ == "__main__":
    main()
