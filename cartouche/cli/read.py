"""`cartouche read`: what is in a picture, in words, as a table, or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cartouche.cli.app import Engine, Force, app
from cartouche.cli.screen import Screen
from cartouche.config import CartoucheError, shown

if TYPE_CHECKING:
    import numpy as np

    from cartouche.read.reader import Reader
    from cartouche.read.report import Report, Wanted

AT_ONCE = 32
MOST_PIXELS = 8_000_000
"""Pictures that are read together, and their pixels: enough for the nets, little for the memory."""

Files = Annotated[
    list[str], typer.Argument(metavar="FILE|FOLDER|-", help="Pictures, folders of them, or - for standard input.")
]
Labels = Annotated[str, typer.Option(metavar="NAMES", help='Which of these is it? As "cat,dog,fox".')]
Find = Annotated[str, typer.Option(metavar="NAMES", help='Where are these? As "red apple,cat".')]
Ask = Annotated[str, typer.Option(metavar="QUESTION", help='As "how many cats?".')]
Text = Annotated[bool, typer.Option("--text", help="Read the writing in the picture (extra: ocr).")]
Language = Annotated[str, typer.Option(help="Of labels and answers: en or fr.")]
Threshold = Annotated[float | None, typer.Option(help="How sure --find must be, 0 to 1.", min=0, max=1)]
Annotate = Annotated[Path | None, typer.Option(help="Draw what --find finds: NAME.png, or a folder for many pictures.")]
ReadModel = Annotated[Path | None, typer.Option(metavar="FOLDER", help="A model to read with; built in if not given.")]
ReadJson = Annotated[bool, typer.Option("--json", help="JSON lines on stdout: a line for each picture.")]


@app.command()
def read(
    files: Files,
    labels: Labels = "",
    find: Find = "",
    ask: Ask = "",
    text: Text = False,
    language: Language = "en",
    threshold: Threshold = None,
    annotate: Annotate = None,
    as_json: ReadJson = False,
    model: ReadModel = None,
    engine: Engine = None,
    force: Force = False,
) -> int:
    """Say what is in pictures; asked nothing else, describe them. Exit code 1: some could not be read."""
    from cartouche.read.reader import Reader
    from cartouche.read.report import Wanted

    wanted = Wanted(listed(labels), listed(find), ask.strip(), text, language, threshold)
    paths = list(chosen(files))
    places = marked(annotate, paths, wanted, force)
    reader = Reader(model, engine or "auto")
    broken: dict[str, str] = {}
    with Screen(as_json, doing="reading") as screen:
        found = reports(reader, paths, wanted, broken, alone=len(paths) == 1)
        for done, (report, pixels) in enumerate(found, 1):
            say(report, screen)
            if report.name in places:
                _annotate(places[report.name], pixels, report, screen, force)
            if not as_json:
                screen.done(done + len(broken), len(paths))
        for name, why in broken.items():
            if as_json:
                screen.say("", event="broken", path=name, why=why)
    if broken and not as_json:
        lines = "\n".join(f"  {why}" for why in broken.values())
        sys.stderr.write(f"{len(broken)} of {len(paths)} pictures could not be read:\n{lines}\n")
    return 1 if broken else 0


def listed(names: str) -> tuple[str, ...]:
    """The names of a list with commas, each once. Raises CartoucheError for a list that has none."""
    found = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if names and not found:
        raise CartoucheError(f'no name in "{names}"; write names as "cat,dog"')
    return found


def chosen(files: Sequence[str]) -> Iterator[str]:
    """The pictures that are named: files as they are, of folders the pictures in them."""
    from cartouche.read.search import pictures

    for name in dict.fromkeys(files):
        if name == "-" or not Path(name).is_dir():
            yield name
            continue
        found = [str(Path(name, entry.name)) for entry in pictures(name)]
        if not found:
            raise CartoucheError(f"{name} has no pictures in it; wanted PNG, JPEG or WebP")
        yield from found


def marked(annotate: Path | None, paths: Sequence[str], wanted: Wanted, force: bool) -> dict[str, Path]:
    """Where the picture with marks of each picture goes. Raises CartoucheError where it cannot."""
    if annotate is None:
        return {}
    if not wanted.find:
        raise CartoucheError('--annotate draws what --find finds; add --find "NAMES"')
    if len(paths) == 1 and annotate.suffix.lower() == ".png":
        places = {paths[0]: annotate}
    elif annotate.is_dir():
        places = {path: annotate / f"{'picture' if path == '-' else Path(path).stem}.png" for path in paths}
    else:
        raise CartoucheError(f"--annotate {annotate} is neither NAME.png, for one picture, nor a folder that exists")
    same = len(places) - len(set(places.values()))
    if same:
        raise CartoucheError(f"{same + 1} of the pictures have the same name; annotate folders one by one")
    taken = [place for path, place in places.items() if place.exists() and (not force or _is(path, place))]
    if taken:
        raise CartoucheError(f"{taken[0]} exists already; choose another --annotate, or --force to write over it")
    return places


def _is(path: str, place: Path) -> bool:
    """Whether the picture that is read is the file at a place that exists."""
    return path != "-" and Path(path).exists() and place.samefile(path)


def reports(
    reader: Reader, paths: Sequence[str], wanted: Wanted, broken: dict[str, str], alone: bool
) -> Iterator[tuple[Report, np.ndarray]]:
    """Each picture read, a batch at a time; what cannot be read goes into `broken` with the reason.

    alone: raise the reason instead.
    """
    from cartouche.read.report import read as read_all

    some: list[tuple[str, np.ndarray]] = []
    for i, path in enumerate(paths):
        try:
            some.append((path, opened(path)))
        except CartoucheError as error:
            if alone:
                raise
            broken[path] = str(error)
        full = len(some) >= AT_ONCE or sum(pixels.size // 3 for _, pixels in some) >= MOST_PIXELS
        if some and (full or i == len(paths) - 1):
            yield from zip(read_all(reader, some, wanted), [pixels for _, pixels in some], strict=True)
            some = []


def opened(path: str) -> np.ndarray:
    """A picture (H, W, 3) uint8 from a file, or from standard input where it is called "-"."""
    from cartouche import images

    return images.decode(sys.stdin.buffer.read(images.MAX_BYTES) if path == "-" else path)


def say(report: Report, screen: Screen) -> None:
    """A reading as a line of JSON; or for people: name and size, a paragraph, a table."""
    rows = list(report.rows())
    width = max((len(row.what) for row in rows), default=0)
    lines = [f"{report.name} ({report.width}x{report.height})", report.paragraph()]
    lines += [f"  {row.what:{width}}  {row.sure:6.1%}  {row.said}" for row in rows]
    text = "".join(f"{shown(line, longest=10_000)}\n" for line in lines if line)
    screen.say(text, event="reading", **report.to_dict())


def _annotate(place: Path, pixels: np.ndarray, report: Report, screen: Screen, force: bool) -> None:
    from cartouche import images
    from cartouche.read.annotate import annotate

    images.save_png(place, annotate(pixels, report.found or []), force=force)
    screen.say(str(place), event="annotated", path=str(place))
