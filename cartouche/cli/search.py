"""`cartouche index PHOTOS/` and `cartouche search "a happy cat" --in PHOTOS/`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cartouche.cli.app import Engine, Force, Json, app
from cartouche.cli.read import ReadModel, listed
from cartouche.cli.screen import Screen
from cartouche.config import CartoucheError, shown

if TYPE_CHECKING:
    from cartouche.read.match import Matcher
    from cartouche.read.search import Hit, Index

Photos = Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of pictures.", show_default=False)]
Place = Annotated[Path | None, typer.Option("--index", metavar="FOLDER", help="Where the index lies, if not beside.")]
Query = Annotated[str | None, typer.Argument(help="Words, or a picture.", show_default=False)]
In = Annotated[Path | None, typer.Option("--in", metavar="FOLDER", help="Which pictures: a folder that is indexed.")]
Plus = Annotated[list[str] | None, typer.Option(help="Words or a picture to add; may be given again.")]
Minus = Annotated[list[str] | None, typer.Option(help="Words or a picture to take away; may be given again.")]
Among = Annotated[str, typer.Option(metavar="NAMES", help="Rank these names in place of pictures, the terms included.")]
Count = Annotated[int, typer.Option(help="How many to show.", min=1, max=10_000)]
Sheet = Annotated[Path | None, typer.Option(metavar="NAME.png", help="Also write a contact sheet of what was found.")]


@app.command()
def index(
    folder: Photos,
    place: Place = None,
    as_json: Json = False,
    model: ReadModel = None,
    engine: Engine = None,
    force: Force = False,
) -> None:
    """Make a folder searchable, or bring its index up to date; stopped, it goes on there. --force makes it anew."""
    from cartouche.read.match import Matcher
    from cartouche.read.search import update

    broken = []
    with Screen(as_json, doing="indexing") as screen:
        for step in update(folder, Matcher(model, engine or "auto"), place, anew=force):
            if step.why:
                broken.append(f"  {step.why}")
            screen.done(step.done, step.total, event="picture", path=step.name, why=step.why, done=step.done)
    if broken:
        lines = "\n".join(broken)
        sys.stderr.write(f"{len(broken)} of {step.total} pictures could not be read and are left out:\n{lines}\n")
    told = {"read": step.total - len(broken), "known": step.kept, "gone": step.gone, "broken": len(broken)}
    words = ", ".join(f"{count} {what}" for what, count in told.items())
    screen.say(f"{folder}: {words}", event="index", folder=str(folder), **told)


@app.command()
def search(
    query: Query = None,
    folder: In = None,
    plus: Plus = None,
    minus: Minus = None,
    among: Among = "",
    count: Count = 10,
    sheet: Sheet = None,
    place: Place = None,
    as_json: Json = False,
    model: ReadModel = None,
    engine: Engine = None,
    force: Force = False,
) -> None:
    """Find the pictures of an indexed folder that are nearest to words, to a picture, or to a sum of them."""
    terms = [*([query] if query else []), *(plus or [])]
    if not terms or (folder is None) == (not among):
        raise CartoucheError('give words to search for and --in FOLDER, as in: cartouche search "a cat" --in PHOTOS')
    if sheet is not None and sheet.exists() and not force:
        raise CartoucheError(f"{sheet} exists already; choose another --sheet, or --force to write over it")
    from cartouche.read.match import Matcher
    from cartouche.read.search import Index

    with Screen(as_json, doing="searching") as screen:
        if folder is None:
            rank(Matcher(model, engine or "auto"), terms, minus or [], listed(among), count, screen)
            return
        opened = Index.load(folder, place)
        hits = find(opened, Matcher(model, engine or "auto"), terms, minus or [], count)
        for i, hit in enumerate(hits, 1):
            screen.say(
                f"{hit.score:6.3f}  {shown(str(hit.path), longest=4096)}",
                event="hit",
                rank=i,
                score=hit.score,
                path=str(hit.path),
            )
        if sheet is not None:
            write_sheet(sheet, hits, force)
            screen.say(str(sheet), event="sheet", path=str(sheet))


def find(index: Index, matcher: Matcher, plus: Sequence[str], minus: Sequence[str], count: int) -> list[Hit]:
    """What an index holds nearest to the sum of the terms, each words or a picture."""
    from cartouche.read.search import asked

    added, taken = ([asked(matcher, term) for term in terms] for terms in (plus, minus))
    return index.checked(matcher).search(matcher.sum(added, taken), count)


def rank(
    matcher: Matcher, plus: Sequence[str], minus: Sequence[str], among: Sequence[str], count: int, screen: Screen
) -> None:
    """Say how near each name is to the sum, the terms themselves included and marked."""
    for one in matcher.arithmetic(plus, minus, [*among, *plus, *minus])[:count]:
        said = f"{one.rank:4}  {one.cosine:6.3f}  {one.name}{'  (a term)' if one.given else ''}"
        screen.say(said, event="name", rank=one.rank, score=one.cosine, name=one.name, term=one.given)


def write_sheet(sheet: Path, hits: Sequence[Hit], force: bool) -> None:
    """A contact sheet of what was found; pictures that are gone or broken by now are left out."""
    from cartouche import images
    from cartouche.read.sheets import contact_sheet

    pictures, captions = [], []
    for hit in hits:
        try:
            pictures.append(images.decode(hit.path))
            captions.append(f"{hit.score:.3f} {hit.path.name}")
        except CartoucheError as error:
            sys.stderr.write(f"note: {error}\n")
    if not pictures:
        raise CartoucheError(f"nothing to put on {sheet}")
    images.save_png(sheet, contact_sheet(pictures, captions), force=force)
