"""The command itself: its families of subcommands, and the options that several of them share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Draws pictures from words, reads pictures into words, checks the one with the other.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
weights_app = typer.Typer(help="Model folders and files of weights.")
measure_app = typer.Typer(help="Scores of drawing and reading.")
app.add_typer(weights_app, name="weights")
app.add_typer(measure_app, name="measure")

Model = Annotated[Path | None, typer.Option(metavar="MODEL", help="A diffusers folder or .safetensors file.")]
Out = Annotated[Path | None, typer.Option(help="NAME.png or a folder; without it, a name made from the prompt.")]
Json = Annotated[bool, typer.Option("--json", help="JSON lines on stdout: a line for each step and each file.")]
Force = Annotated[bool, typer.Option("--force", help="Write over files that exist.")]
Engine = Annotated[str | None, typer.Option(help="auto, openvino, torch or compiled.")]
Preview = Annotated[bool | None, typer.Option(help="Show pictures in the terminal, where it has the colours.")]
