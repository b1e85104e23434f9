"""What a person sees of a command at work, and what a program reads."""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from cartouche.draw.paint import Step


class Screen:
    """What a person sees: a bar and pictures on a terminal, notes, paths; or JSON lines, for a program."""

    def __init__(self, as_json: bool, preview: bool | None = None, doing: str = "drawing") -> None:
        self.as_json, self.doing = as_json, doing
        colours = os.environ.get("COLORTERM") in ("truecolor", "24bit") and "NO_COLOR" not in os.environ
        self.shows = not as_json and (sys.stderr.isatty() and colours if preview is None else preview)
        self._bar: Any = None

    def __enter__(self) -> Screen:
        """While inside there is a bar, and warnings are kept for the end."""
        from cartouche.text import CutWarning

        self._caught = warnings.catch_warnings(record=True)
        self._warnings = self._caught.__enter__()
        warnings.simplefilter("always", CutWarning)
        if sys.stderr.isatty() and not self.as_json:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self.doing, total=None)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._caught.__exit__(None, None, None)
        for one in self._warnings or []:
            sys.stderr.write(f"note: {one.message}\n")

    def step(self, step: Step) -> None:
        """One finished step."""
        self.done(step.index + 1, step.total, event="step", step=step.index + 1, steps=step.total)

    def done(self, count: int, total: int, **event: Any) -> None:
        """So much of the work is behind; a program is told of the event."""
        if self._bar is not None:
            self._bar.update(self._task, total=total, completed=count)
        if self.as_json:
            self.say("", **event)

    def picture(self, pixels: np.ndarray) -> None:
        """(H, W, 3) uint8 as coloured characters, where the terminal can."""
        if self.shows:
            from cartouche.images import half_blocks

            sys.stderr.write(f"{half_blocks(pixels)}\n")

    def say(self, text: str, **event: Any) -> None:
        """A result: the text, or the event as JSON."""
        sys.stdout.write(f"{json.dumps(event) if self.as_json else text}\n")
        sys.stdout.flush()
