"""The journal of a training: one JSON line per logged step, and the picture of its loss.

Lines survive a crash up to the last one; a training resumed from an older checkpoint drops the lines that it is about
to write again, so the file always tells one straight story.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cartouche import files
from cartouche.train import sheets

if TYPE_CHECKING:
    from cartouche.train.loop import Progress

FILE = "journal.jsonl"


class Journal:
    """Writes OUT/journal.jsonl; `every` steps one line, and one for the first, the last and every saved step."""

    def __init__(self, out: Path, every: int = 1) -> None:
        self.path, self.every = Path(out) / FILE, max(1, every)
        self._started = False
        self._losses: list[float] = []

    def write(self, progress: Progress) -> bool:
        """Note a step if it is due. Returns whether a line was written."""
        if not self._started:
            forget_from(self.path, progress.step)
        self._losses.append(progress.loss)
        due = progress.step % self.every == 0 or progress.saved is not None or not self._started
        self._started = True
        if due:
            line = json.dumps(entry(progress, sum(self._losses) / len(self._losses)))
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
            self._losses.clear()
        return due


def entry(progress: Progress, mean: float) -> dict[str, Any]:
    """What a line says. `loss` is this step's (`hex`: every bit of it), `mean` that of the steps since the last."""
    line = {
        "step": progress.step,
        "loss": progress.loss,
        "hex": float(progress.loss).hex(),
        "mean": mean,
        "rate": progress.rate,
        "norm": progress.norm,
        "images_per_second": round(progress.images_per_second, 2),
        "seconds": round(progress.seconds, 2),
        "skipped": progress.skipped,
        **{f"note/{name}": value for name, value in progress.notes.items()},
    }
    if progress.saved:
        line["saved"] = progress.saved.name
    return line


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a journal; a line torn by a crash is passed over."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and "step" in line:
                yield line


def forget_from(path: Path, step: int) -> None:
    """Drop the lines of `step` and later, which a resumed training writes anew, and any torn line."""
    if not path.is_file():
        return
    kept = "".join(json.dumps(line) + "\n" for line in read(path) if line["step"] < step)
    if kept == path.read_text(encoding="utf-8", errors="replace"):
        return
    with files.whole(path) as file:
        file.write(kept.encode())


def plot(out: Path) -> Path | None:
    """Draw OUT/loss.png from the journal: the mean loss over steps, with the line of chance where there is one."""
    lines = list(read(Path(out) / FILE))
    points = [(float(line["step"]), float(line["mean"])) for line in lines if math.isfinite(line.get("mean", math.nan))]
    if len(points) < 2:
        return None
    chance = lines[-1].get("note/chance") if "note/contrast" not in lines[-1] else None  # of a part of the loss only
    levels = {"chance": float(chance)} if chance is not None else {}
    path = Path(out) / "loss.png"
    sheets.save_png(sheets.curve(points, "loss", levels), path)
    return path
