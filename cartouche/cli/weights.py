"""`cartouche weights ...`: model folders and files of weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cartouche.cli.app import Force, Json, Model, weights_app
from cartouche.cli.screen import Screen

if TYPE_CHECKING:
    from cartouche.weights.inspect import Fit

Weights = Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors file or a folder.", show_default=False)]
Pickled = Annotated[Path, typer.Argument(metavar="FILE", help="A .ckpt, .pt, .pth or .bin file.", show_default=False)]
Target = Annotated[Path | None, typer.Option("--out", help="NAME.safetensors; without it, FILE's name with that end.")]
ModelFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A diffusers-layout folder.", show_default=False)]


@weights_app.command()
def export(folder: ModelFolder) -> None:
    """Write the graphs with which a folder draws and reads without torch, beside its weights."""
    from cartouche.weights.graph import export as write

    for path in write(folder):
        sys.stdout.write(f"{path}\n")


@weights_app.command()
def info(file: Weights, as_json: Json = False) -> None:
    """Say what weights are: family, numbers in each part, precision, hash."""
    from cartouche.config import shown
    from cartouche.weights.inspect import info as look

    found = look(file)
    rows = {
        "family": f"{found.kind}: {found.family or 'unknown'}",
        "parts": _counts(found.parts),
        "precision": _counts(found.precision),
        "size": f"{found.size / 1e6:,.1f} MB in {found.tensors} tensors",
        "sha256": found.sha256,
        "hash": found.short,
    }
    said = "\n".join(f"{name:10} {shown(text)}" for name, text in rows.items())
    facts: dict[str, Any] = {
        "kind": found.kind,
        "family": found.family,
        "parts": found.parts,
        "precision": found.precision,
    }
    facts |= {"tensors": found.tensors, "size": found.size, "sha256": found.sha256, "hash": found.short}
    Screen(as_json, preview=False).say(said, event="weights", path=str(file), **facts, metadata=found.metadata)


@weights_app.command()
def check(file: Weights, model: Model = None, as_json: Json = False) -> int:
    """Say what is missing or left over against the family (exit code 1). --model: the one an adapter is for."""
    from cartouche.weights.inspect import check as look

    fits, screen = look(file, model), Screen(as_json, preview=False)
    for fit in fits:
        facts = {"fitting": len(fit.fitting), "missing": fit.missing, "left_over": fit.left_over}
        screen.say(_verdict(fit), event="part", part=fit.part, whole=fit.whole, **facts, misshaped=fit.misshaped)
    return 0 if all(fit.whole for fit in fits) else 1


@weights_app.command()
def convert(file: Pickled, out: Target = None, force: Force = False, as_json: Json = False) -> None:
    """Write a pickled checkpoint as safetensors, read by a process without network, with bounded memory and time."""
    from cartouche.config import shown
    from cartouche.weights.convert import convert as write

    done = write(file, out, force=force)
    if done.left:
        sys.stderr.write(f"note: left out, being no weights: {shown(', '.join(done.left))}\n")
    facts = {"path": str(done.path), "tensors": done.tensors, "parameters": done.parameters, "left": done.left}
    Screen(as_json, preview=False).say(str(done.path), event="converted", **facts)


def _counts(numbers: Mapping[str, int]) -> str:
    said = {name: f"{count / 1e6:,.1f} M" if count >= 1_000_000 else f"{count:,}" for name, count in numbers.items()}
    return ", ".join(f"{name} {count}" for name, count in said.items())


def _verdict(fit: Fit) -> str:
    """One line on a part: what fits, and the first five of what does not."""
    from cartouche.weights.inspect import listed

    problems = {"missing": fit.missing, "left over": fit.left_over, "of another shape": fit.misshaped}
    said = [text for what, those in problems.items() if (text := listed(what, those))]
    return f"{fit.part}: " + "; ".join([f"{len(fit.fitting)} tensors fit", *said])
