"""What a person sees while a net trains: a bar on a terminal, a line now and then elsewhere. All on stderr."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from cartouche.train.loop import Progress

AT_CHANCE = 0.97  # a loss above this share of ln N has learned nothing worth the name


class Screen:
    """Shows progress; `with Screen() as screen: screen.show(progress)`. A line at most every `pause` seconds."""

    def __init__(self, stream: TextIO | None = None, pause: float = 20.0) -> None:
        self.stream = stream or sys.stderr
        self.pause = pause
        self._last = -math.inf
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, progress: Progress) -> None:
        """One finished step."""
        if self.stream.isatty():
            self._move_bar(progress)
        elif time.monotonic() - self._last > self.pause or progress.stopped:
            self._last = time.monotonic()
            self.say(describe(progress))

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            self.stream.write(f"{text}\n")
            self.stream.flush()

    def _move_bar(self, progress: Progress) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (MofNCompleteColumn(), BarColumn(bar_width=20), TextColumn("{task.description}"))
            self._bar = Bar(*columns, console=Console(file=self.stream))
            self._task = self._bar.add_task("", total=progress.steps)
            self._bar.start()
        self._bar.update(self._task, completed=progress.step, description=short(progress))


def describe(progress: Progress) -> str:
    """A progress in one line: step, loss (in words where it is at chance), what the task notes, speed, time left."""
    notes = "  ".join(f"{name} {value:.3g}" for name, value in progress.notes.items() if name != "chance")
    return f"step {progress.step}/{progress.steps}  {short(progress)}" + (f"  {notes}" if notes else "")


def short(progress: Progress) -> str:
    """The loss, the speed and the time left."""
    skipped = f"  {progress.skipped} bad samples" if progress.skipped else ""
    return (
        f"loss {progress.loss:.4g}{chance(progress)}  {progress.images_per_second:.3g} images/s  "
        f"{duration(progress.left)} left{skipped}"
    )


def chance(progress: Progress) -> str:
    """The words `, at chance (ln 128 = 4.85)` where the task knows its chance level and the loss has not left it; where
    the loss is a sum of several, its part "contrast" is what chance is of."""
    level, loss = progress.notes.get("chance"), progress.notes.get("contrast", progress.loss)
    if level is None or loss < AT_CHANCE * level:
        return ""
    where = "at chance" if loss < level / AT_CHANCE else "worse than chance"
    return f", {where} (ln {round(math.exp(level))} = {level:.2f})"


def duration(seconds: float) -> str:
    """12 s, 3 min, 1 h 05 min"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
