"""`cartouche train RECIPE [NAME=VALUE]...`."""

from __future__ import annotations

from typing import Annotated

import typer

from cartouche.cli.app import app

TrainRecipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A .py file, or the name of one in recipes/.")]
Changes = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="Settings to change; or a .toml file of such.")
]


@app.command()
def train(recipe: TrainRecipe, changes: Changes = None) -> int:
    """Train a net by a recipe; the same command goes on where the last one stopped. Ctrl-C saves and leaves."""
    from cartouche.train.run import train as run

    return run(recipe, changes or [])
