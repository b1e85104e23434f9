"""`cartouche train RECIPE key=value ...`: a recipe is a Python file whose function `settings()` returns all it takes.

The run lives in one folder (runs/NAME unless `out=` says otherwise): checkpoints, journal.jsonl, loss.png, samples/,
export/. The same command on the same folder goes on where the last one stopped, however it stopped.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from cartouche.config import CartoucheError, field_types, override, read_toml, unknown
from cartouche.train import checkpoint
from cartouche.train.journal import Journal, plot
from cartouche.train.loop import Progress, Task, TrainSettings, fit
from cartouche.train.screen import Screen
from cartouche.train.stream import Source

Sample = Callable[[nn.Module, Path, int], None]
Export = Callable[[nn.Module, Path], None]


@runtime_checkable
class Recipe(Protocol):
    """A frozen dataclass with these members; methods `sample(average, png, step)` and `export(average, folder)` if it
    likes, and any further fields, all of them settable as `a.b=value`."""

    name: Any
    settings: Any
    build_net: Any
    task: Any
    source: Any


@dataclass(frozen=True)
class TrainRecipe:
    """The plainest recipe: functions put together. One with settings of its own is a dataclass with these members."""

    name: str
    build_net: Callable[[], nn.Module]
    task: Callable[[], Task]
    source: Callable[[], Source]
    settings: TrainSettings
    sample: Sample | None = None
    export: Export | None = None


class Interrupt:
    """What Ctrl-C or SIGTERM asked: `asked()` is the loop's `stop`, `exit_code` what to leave with."""

    def __init__(self) -> None:
        self.number = 0

    def asked(self) -> bool:
        return self.number != 0

    @property
    def exit_code(self) -> int:
        return 130 if self.number == signal.SIGINT else 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The first signal asks for a save; the second leaves at once."""
        if self.number:
            os._exit(128 + number)
        self.number = number
        os.write(2, b"\nsaving after this step; once more to leave at once\n")


def train(recipe: str | Path | Recipe, assignments: Sequence[str] = ()) -> int:
    """Run a recipe with `key=value` changes; returns the exit code: 0, or 130 after Ctrl-C.

    Raises CartoucheError for a recipe that cannot be read, unknown settings, and everything `fit` refuses.
    """
    chosen = load_recipe(recipe) if isinstance(recipe, (str, Path)) else recipe
    out, chosen = adjusted(chosen, assignments)
    settings: TrainSettings = chosen.settings
    torch.manual_seed(settings.seed)
    net = chosen.build_net()
    with interruptible() as interrupt, Screen() as screen:
        screen.say(f"{chosen.name}: {count(net)} weights, batches of {settings.batch}, in {out}")
        try:
            stopped = follow(chosen, net, out, interrupt, screen)
            finish(chosen, net, out, stopped, screen)
        except OSError as error:
            raise CartoucheError(f"training stopped: {error}; the checkpoints in {out} are untouched") from error
    return interrupt.exit_code


def follow(recipe: Recipe, net: nn.Module, out: Path, interrupt: Interrupt, screen: Screen) -> str:
    """Pull the loop, feeding the journal, the screen, the plot and the sample sheets; returns why it stopped."""
    journal, stopped = Journal(out, recipe.settings.log_every), ""
    for progress in fit(recipe.settings, net, recipe.task(), recipe.source(), out, interrupt.asked, journal.write):
        screen.show(progress)
        look(recipe, progress, out)
        if progress.saved:
            plot(out)
        stopped = progress.stopped
    return stopped


def look(recipe: Recipe, progress: Progress, out: Path) -> None:
    """Have the recipe draw its sample sheet where one is due."""
    every, sample = recipe.settings.sample_every, getattr(recipe, "sample", None)
    if sample is not None and every and (progress.step % every == 0 or progress.stopped == "done"):
        (out / "samples").mkdir(exist_ok=True)
        with torch.no_grad():
            sample(
                on_cpu(progress.average), out / "samples" / f"{checkpoint.name_of(progress.step)}.png", progress.step
            )


def on_cpu(net: nn.Module) -> nn.Module:
    """The net, or a copy of it where it lies on another device: recipes draw their sheets on the CPU."""
    return net if next(net.parameters()).device.type == "cpu" else copy.deepcopy(net).cpu()


def finish(recipe: Recipe, net: nn.Module, out: Path, stopped: str, screen: Screen) -> None:
    """After the last step, export the averaged weights; otherwise say how to go on."""
    found = checkpoint.newest(out)
    if found is None or found.step < recipe.settings.steps:
        screen.say(f"saved {found.folder if found else 'nothing'}; the same command goes on from there")
        return
    if stopped == "":
        screen.say(f"{out} is already at step {found.step}; give more steps= to go on")
    export = getattr(recipe, "export", None)
    if export is not None:
        net.load_state_dict(found.tensors("ema"))
        with torch.no_grad():
            export(net.cpu().eval(), out / "export")
        screen.say(f"exported to {out / 'export'}")


def adjusted(recipe: Any, assignments: Sequence[str]) -> tuple[Path, Any]:
    """The run's folder, and the recipe with the changes made; a bare name is a training setting or a recipe's field.

    assignments: `name=value`, or a TOML file of such, whose tables are the part of a name before its dot.
    """
    out, rest = "", []
    training, fields = field_types(type(recipe.settings)), field_types(type(recipe))
    for text in listed(assignments):
        name, _, value = text.partition("=")
        first = name.strip().partition(".")[0]
        if first == "out":
            out = value.strip()
        elif first in fields:
            rest.append(text)
        elif first in training or "=" not in text:
            rest.append(f"settings.{text}" if "=" in text else text)
        else:
            raise unknown("setting", name.strip(), ["out", *training, *(one for one in fields if one != "settings")])
    changed = override(recipe, rest)
    return Path(out or Path("runs") / changed.name), changed


def listed(assignments: Iterable[str]) -> Iterator[str]:
    """The assignments one by one, those of TOML files among them."""
    for text in assignments:
        if "=" in text or not text.endswith(".toml"):
            yield text
        else:
            yield from flat(read_toml(text))


def flat(table: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """A TOML table as assignments: `a.b=value`, lists as `a=1,2`."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}={','.join(map(str, value)) if isinstance(value, list) else value}"


def load_recipe(path: str | Path) -> Any:
    """What the `settings()` of a recipe file returns; `clip` stands for recipes/clip.py."""
    path = Path(path)
    if not path.suffix and not path.exists():
        path = Path("recipes") / f"{path}.py"
    if not path.is_file():
        known = [one.stem for one in sorted(Path("recipes").glob("*.py"))]
        raise unknown("recipe", path.stem, known) if known else CartoucheError(f"no recipe at {path}; give a .py file")
    spec = importlib.util.spec_from_file_location(f"cartouche_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise CartoucheError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # recipes may share a module, as scripts do
    sys.modules[spec.name] = module  # dataclasses and worker processes look their module up by name
    spec.loader.exec_module(module)
    if not hasattr(module, "settings"):
        raise CartoucheError(f"{path} has no function settings(); it must return a recipe (cartouche.train.run.Recipe)")
    recipe: Any = module.settings()
    if not (dataclasses.is_dataclass(recipe) and isinstance(recipe, Recipe)):
        given = type(recipe).__name__
        raise CartoucheError(f"settings() of {path} returned {given}; wanted a dataclass like TrainRecipe")
    return recipe


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Answer SIGINT and SIGTERM by asking the loop to stop, while this lasts."""
    interrupt = Interrupt()
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def count(net: nn.Module) -> str:
    """27.2 million"""
    number = sum(one.numel() for one in net.parameters())
    return f"{number / 1e6:.1f} million" if number >= 1e5 else str(number)


def main() -> int:
    """python -m cartouche.train.run RECIPE key=value ..."""
    if len(sys.argv) < 2:
        sys.stderr.write("usage: python -m cartouche.train.run RECIPE key=value ...\n")
        return 2
    try:
        return train(sys.argv[1], sys.argv[2:])
    except CartoucheError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
