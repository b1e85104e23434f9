"""A training that its own parent kills: run as a script by test_train.py, so that torch is imported once for all forks.

It prints one JSON object: what the kills, the second signal and the second training in the same folder came to.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cartouche.config import CartoucheError
from cartouche.train import checkpoint
from cartouche.train.journal import Journal, read
from cartouche.train.loop import TrainSettings, fit
from cartouche.train.run import TrainRecipe, train

SETTINGS = TrainSettings(
    steps=400, batch=3, warmup=20, cooldown=30, ema=0.99, channels_last=True, precision="bf16", workers=0, threads=1,
    save_every=6, keep=2, log_every=1, device="cpu",
)  # fmt: skip
KILLS = 12
STEP = b"." * 4096  # all that a pipe of one page holds: a child is never more than two steps ahead of its killer


@dataclass(frozen=True)
class Numbers:
    """Sample i is drawn from the generator of seed i."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng(index)
        return {"image": rng.standard_normal((3, 6, 6)).astype(np.float32), "index": index}


def net() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Dropout(0.1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))


def task(model: nn.Module, batch: dict[str, Any], generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
    """Take noise out; every sample's index is noted, so that the journal holds the order of the data."""
    noise = torch.randn(batch["image"].shape, generator=generator)
    loss = (model(batch["image"] + noise).float() - batch["image"]).square().mean()
    return loss, {f"sample{place}": float(index) for place, index in enumerate(batch["index"])}


def run(out: Path, pipe: int) -> None:
    journal = Journal(out, 1)
    for _ in fit(SETTINGS, net(), task, Numbers(), out, note=journal.write):
        if pipe >= 0:
            os.write(pipe, STEP)


def forked(work: Any, *arguments: Any) -> int:
    """Run in a forked child that never returns here; gives its process id."""
    child = os.fork()
    if child:
        return child
    try:
        work(*arguments)
        os._exit(0)
    except CartoucheError as error:
        os.write(1, f"# {error}\n".encode())
        os._exit(7)
    except BaseException as error:
        os.write(2, f"{error!r}\n".encode())
        os._exit(1)


def kill_at_random(out: Path, rng: random.Random) -> int:
    """Start, let a random number of steps and a random moment pass, SIGKILL. Returns the signal the child died of."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, len(STEP))
    child = forked(run, out, writing)
    os.close(writing)
    for _ in range(rng.randint(1, 18)):
        os.read(reading, len(STEP))
    time.sleep(rng.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(reading)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def story(out: Path) -> dict[str, Any]:
    """Every step's loss, rate, gradient norm and samples to the last bit, and the sums of the final files."""
    steps = [
        [line["step"], line["hex"], float(line["rate"]).hex(), float(line["norm"]).hex()]
        + [line[f"note/sample{place}"] for place in range(SETTINGS.batch)]
        for line in read(out / "journal.jsonl")
    ]
    found = checkpoint.newest(out)
    return {"steps": steps, "sums": found.state["sha256"] if found else None}


def killed(folder: Path) -> dict[str, Any]:
    rng = random.Random(3)
    deaths, resumed = [], []
    for _ in range(KILLS):
        deaths.append(kill_at_random(folder / "killed", rng))
        resumed.append(len(checkpoint.folders(folder / "killed")) and checkpoint.folders(folder / "killed")[-1].name)
    _, last = os.waitpid(forked(run, folder / "killed", -1), 0)
    _, straight = os.waitpid(forked(run, folder / "straight", -1), 0)
    left = sorted(one.name for one in (folder / "killed").glob(".step*"))
    return {
        "deaths": deaths,
        "resumed": resumed,
        "exits": [last, straight],
        "left": left,
        "killed": story(folder / "killed"),
        "straight": story(folder / "straight"),
    }


def twice_interrupted(folder: Path) -> int:
    """A child that is sent SIGINT twice within one step; its exit code."""

    def impatient(*arguments: Any) -> tuple[torch.Tensor, dict[str, float]]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return task(*arguments)

    recipe = TrainRecipe("impatient", net, lambda: impatient, Numbers, SETTINGS)
    _, status = os.waitpid(forked(train, recipe, [f"out={folder / 'impatient'}"]), 0)
    return os.waitstatus_to_exitcode(status)


def two_in_one_folder(folder: Path) -> int:
    """The exit code of a training that starts where another is running: 7 is a CartoucheError."""
    reading, writing = os.pipe()
    first = forked(run, folder / "shared", writing)
    os.read(reading, 1)
    _, status = os.waitpid(forked(run, folder / "shared", -1), 0)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    next(fit(SETTINGS, net(), task, Numbers(), folder / "warm"))  # what torch imports at the first step, once for all
    report = {"second": twice_interrupted(folder), "two": two_in_one_folder(folder), **killed(folder)}
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
