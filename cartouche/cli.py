"""The command: `cartouche draw PROMPT`, `redraw FILE`, `train RECIPE`, `weights export FOLDER`.

Results go to stdout (paths, or JSON lines with --json), everything else to stderr. An error is one line and exit code
2. Nothing heavy is imported before it is known that there is something to draw.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cartouche.config import CartoucheError

if TYPE_CHECKING:
    import numpy as np

    from cartouche.draw.paint import Picture, Step

app = typer.Typer(help="Draws pictures from words.", add_completion=False, pretty_exceptions_enable=False)
weights_app = typer.Typer(help="Model folders.")
app.add_typer(weights_app, name="weights")

Prompt = Annotated[str, typer.Argument(help="What to draw, in English or French.", show_default=False)]
Negative = Annotated[str, typer.Option(help="What to keep away from.", show_default=False)]
Guidance = Annotated[float | None, typer.Option(help="How strongly to follow the prompt: 1 is neutral, 0 ignores it.")]
Steps = Annotated[int | None, typer.Option(help="Steps from noise to picture.")]
Sampler = Annotated[str | None, typer.Option(help="ddpm, ddim, euler, euler_a, heun or dpmpp_2m.")]
Seed = Annotated[int | None, typer.Option(help="A seed is one picture; without it, one is chosen.")]
Count = Annotated[int, typer.Option(help="How many pictures of this seed.", min=1, max=10_000)]
Size = Annotated[str | None, typer.Option(metavar="WxH", help="Pixels, as 128 or 96x128; without it, the model's own.")]
Model = Annotated[Path | None, typer.Option(metavar="FOLDER", help="A diffusers-layout folder to draw with.")]
Out = Annotated[Path | None, typer.Option(help="NAME.png or a folder; without it, a name made from the prompt.")]
Grid = Annotated[bool, typer.Option("--grid", help="Also write one sheet with all pictures.")]
FilmStrip = Annotated[str | None, typer.Option(metavar="STEPS", help="Also write how it came about: 8, or 1,2,5,20.")]
Json = Annotated[bool, typer.Option("--json", help="JSON lines on stdout: a line for each step and each file.")]
NoMetadata = Annotated[bool, typer.Option("--no-metadata", help="Leave the recipe out of the files.")]
Force = Annotated[bool, typer.Option("--force", help="Write over files that exist.")]
Engine = Annotated[str | None, typer.Option(help="auto, openvino or torch.")]
Preview = Annotated[bool | None, typer.Option(help="Show pictures in the terminal, where it has the colours.")]
Drawn = Annotated[Path, typer.Argument(metavar="FILE", help="A picture that carries its recipe.", show_default=False)]
TrainRecipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A .py file, or the name of one in recipes/.")]
Changes = Annotated[list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="Settings to change.")]
ModelFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A diffusers-layout folder.", show_default=False)]

UsageError: type[Exception] = typer.BadParameter.__bases__[0]
EXTRAS = {"torch": "torch", "onnx": "train", "onnxscript": "train", "onnx_ir": "train"}
"""Which extra brings a package that drawing does without."""


@app.command()
def draw(
    prompt: Prompt,
    negative: Negative = "",
    guidance: Guidance = None,
    steps: Steps = None,
    sampler: Sampler = None,
    seed: Seed = None,
    count: Count = 1,
    size: Size = None,
    model: Model = None,
    out: Out = None,
    grid: Grid = False,
    film_strip: FilmStrip = None,
    as_json: Json = False,
    no_metadata: NoMetadata = False,
    force: Force = False,
    engine: Engine = None,
    preview: Preview = None,
) -> None:
    """Draw a picture from words and say where it is."""
    import cartouche

    seed = secrets.randbelow(2**32) if seed is None else seed
    names, sheets = places(out, prompt, seed, count, {"grid": grid, "film": film_strip is not None}, force)
    settings = _given(
        negative_prompt=negative,
        guidance_scale=guidance,
        num_inference_steps=steps,
        sampler=sampler,
        seed=seed,
        count=count,
        size=parse_size(size),
    )
    with Screen(as_json, preview) as screen:
        painter = cartouche.load(model, engine or "auto")
        pictures, moments = watch(painter.trace(prompt, **settings), screen, film_strip)
    save(dict(zip(names, pictures, strict=True)), sheets, moments, screen, metadata=not no_metadata, force=force)


@app.command()
def redraw(
    file: Drawn,
    model: Model = None,
    out: Out = None,
    as_json: Json = False,
    force: Force = False,
    engine: Engine = None,
    preview: Preview = None,
) -> int:
    """Draw a picture again from the recipe it carries, and say whether the pixels are the same (exit code 1: no)."""
    import cartouche
    from cartouche.draw.recipe import Recipe
    from cartouche.images import read_pixels, read_recipe

    recipe = Recipe.from_dict(read_recipe(file))
    if out is not None:
        places(out, recipe.prompt, recipe.seed, 1, {}, force)
    with Screen(as_json, preview) as screen:
        painter = cartouche.load(model, engine or recipe.engine)
        if painter.net("unet").precision != recipe.precision:
            painter = cartouche.load(model, engine or recipe.engine, precision=recipe.precision)
        picture = painter.redraw(recipe)
    if out is not None:
        names, sheets = places(out, recipe.prompt, recipe.seed, 1, {}, force)
        save({names[0]: picture}, sheets, [], screen, metadata=True, force=force)
    differ, largest = difference(read_pixels(file), picture.pixels)
    same = f"{file}: the same pixels" if not differ else f"{file}: {differ} pixels differ, by at most {largest} of 255"
    screen.say(same, event="redraw", path=str(file), same=differ == 0, differ=differ, largest=largest)
    return 1 if differ else 0


@app.command()
def train(recipe: TrainRecipe, changes: Changes = None) -> int:
    """Train a net by a recipe; the same command goes on where the last one stopped. Ctrl-C saves and leaves."""
    from cartouche.train.run import train as run

    return run(recipe, changes or [])


@weights_app.command()
def export(folder: ModelFolder) -> None:
    """Write the graphs with which a folder draws without torch, beside its weights."""
    from cartouche.weights.graph import export as write

    for path in write(folder):
        sys.stdout.write(f"{path}\n")


def _say_version(wanted: bool) -> None:
    import cartouche

    if wanted:
        sys.stdout.write(f"cartouche {cartouche.__version__}\n")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_say_version)]


@app.callback()
def options(version: Version = False) -> None:
    """Draws pictures from words."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 1 (redrawn otherwise), 2 (an error, said in one line) or 130 (Ctrl-C)."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a path in other letters
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return int(app(arguments or ["--help"], prog_name="cartouche", standalone_mode=False) or 0)
    except UsageError as error:
        return _complain(error.format_message())  # type: ignore[attr-defined]
    except CartoucheError as error:
        return _complain(str(error))
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        extra = EXTRAS[error.name]
        return _complain(f"this needs {error.name}, which is not installed; pip install 'cartouche-ai[{extra}]'")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody listens: Python need not say so again
        return 1
    except OSError as error:
        return _complain(f"{error.filename or 'the system'}: {error.strerror or error}")
    except MemoryError:
        return _complain("out of memory; choose a smaller --size or --count")
    except (KeyboardInterrupt, typer.Abort):
        return 130


def _complain(message: str) -> int:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return 2


# what was asked


def _given(**options: Any) -> dict[str, Any]:
    """Without the options that were not given, so that the painter's own defaults hold."""
    return {name: value for name, value in options.items() if value is not None}


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(width, height) from "128" or "96x128"."""
    from cartouche.images import MAX_PIXELS

    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text.strip().lower())
    if found is None:
        raise CartoucheError(f"--size {text} is not a size; write 128, or WIDTHxHEIGHT as in 96x128")
    width, height = int(found[1]), int(found[2] or found[1])
    if width * height > MAX_PIXELS:
        raise CartoucheError(f"--size {text} is {width * height:,} pixels; choose at most {MAX_PIXELS:,}")
    return width, height


def chosen_steps(text: str, total: int) -> set[int]:
    """The steps, from 1, of a film strip: "8" is that many, evenly from the first to the last; "1,2,5,20" are these."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise CartoucheError(f"--film-strip {text} is neither a number of moments, as 8, nor steps, as 1,2,5,20")
    steps = {int(part) for part in parts}
    if len(parts) == 1 and min(steps) > 0:
        moments = min(*steps, total)
        return {total - round(i * (total - 1) / max(moments - 1, 1)) for i in range(moments)}
    if min(steps) < 1 or max(steps) > total:
        raise CartoucheError(f"--film-strip {text} asked of {total} steps; choose steps from 1 to {total}")
    return steps


def places(
    out: Path | None, prompt: str, seed: int, count: int, wanted: dict[str, bool], force: bool
) -> tuple[list[Path], dict[str, Path]]:
    """Where `count` pictures and the wanted sheets go. Raises CartoucheError where one exists, or cannot be there."""
    stem = _stem(out, f"{_words(prompt)}-{seed}")
    names = [Path(f"{stem}.png")] if count == 1 else [Path(f"{stem}-{i}.png") for i in range(count)]
    sheets = {kind: Path(f"{stem}-{kind}.png") for kind, yes in wanted.items() if yes}
    taken = [name for name in [*names, *sheets.values()] if name.exists()]
    if taken and not force:
        raise CartoucheError(f"{taken[0]} exists already; choose another --out, or --force to write over it")
    if not os.access(names[0].parent, os.W_OK):
        raise CartoucheError(f"{names[0].parent} is not a folder that can be written; choose another --out")
    return names, sheets


def _stem(out: Path | None, name: str) -> Path:
    """The path of the pictures, less what follows the name: `-0.png`, `-grid.png`."""
    if out is None or out.is_dir():
        return (out or Path()) / name
    if out.suffix.lower() == ".png":
        return out.with_suffix("")
    raise CartoucheError(f"--out {out} is neither NAME.png nor a folder that exists")


def _words(prompt: str, longest: int = 48) -> str:
    """A prompt as part of a file name."""
    return re.sub(r"\W+", "-", prompt.lower())[:longest].strip("-") or "picture"


# what is seen


class Screen:
    """What a person sees: a bar and pictures on a terminal, notes, paths; or JSON lines, for a program."""

    def __init__(self, as_json: bool, preview: bool | None) -> None:
        self.as_json = as_json
        colours = os.environ.get("COLORTERM") in ("truecolor", "24bit") and "NO_COLOR" not in os.environ
        self.shows = not as_json and (sys.stderr.isatty() and colours if preview is None else preview)
        self._bar: Any = None

    def __enter__(self) -> Screen:
        """While inside there is a bar, and warnings are kept for the end."""
        from cartouche.draw.paint import CutWarning

        self._caught = warnings.catch_warnings(record=True)
        self._warnings = self._caught.__enter__()
        warnings.simplefilter("always", CutWarning)
        if sys.stderr.isatty() and not self.as_json:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("drawing", total=None)
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
        if self._bar is not None:
            self._bar.update(self._task, total=step.total, completed=step.index + 1)
        if self.as_json:
            self.say("", event="step", step=step.index + 1, steps=step.total)

    def picture(self, pixels: np.ndarray) -> None:
        """(H, W, 3) uint8 as coloured characters, where the terminal can."""
        if self.shows:
            from cartouche.images import half_blocks

            sys.stderr.write(f"{half_blocks(pixels)}\n")

    def say(self, text: str, **event: Any) -> None:
        """A result: the text, or the event as JSON."""
        sys.stdout.write(f"{json.dumps(event) if self.as_json else text}\n")
        sys.stdout.flush()


def watch(trace: Iterator[Step], screen: Screen, film_strip: str | None) -> tuple[list[Picture], list[np.ndarray]]:
    """Pull the steps out of a drawing; returns its pictures, and the clean estimates of the chosen steps as images."""
    moments: list[np.ndarray] = []
    for step in trace:
        screen.step(step)
        if film_strip is not None and step.index + 1 in chosen_steps(film_strip, step.total):
            moments.append(step.images())
    return step.pictures(), moments


def save(
    pictures: dict[Path, Picture],
    sheets: dict[str, Path],
    moments: Sequence[np.ndarray],
    screen: Screen,
    *,
    metadata: bool,
    force: bool,
) -> None:
    """Write the pictures and the sheets that are wanted, and say where they are."""
    from cartouche import images

    for path, picture in pictures.items():
        images.save_png(path, picture.pixels, picture.recipe.to_dict(), metadata=metadata, force=force)
        screen.picture(picture.pixels)
        screen.say(str(path), event="picture", path=str(path), seed=picture.recipe.seed, index=picture.recipe.index)
    made = {
        "grid": lambda: images.grid(images.from_uint8(_stack(picture.pixels for picture in pictures.values()))),
        "film": lambda: images.film_strip(moments),
    }
    for kind, path in sheets.items():
        images.save_png(path, images.to_uint8(made[kind]())[0], force=force)
        screen.say(str(path), event=kind, path=str(path))


def difference(one: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """How many pixels of two pictures (H, W, 3) differ, and the largest difference; of two sizes, all by 255."""
    import numpy as np

    if one.shape != other.shape:
        return max(one.size, other.size) // 3, 255
    apart = np.abs(one.astype(int) - other).max(-1)
    return int((apart > 0).sum()), int(apart.max())


def _stack(pixels: Iterable[np.ndarray]) -> np.ndarray:
    import numpy as np

    return np.stack(list(pixels))
