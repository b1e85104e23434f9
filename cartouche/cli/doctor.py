"""`cartouche doctor`: what is here, what will draw and why, what to type to do better. It never fails."""

from __future__ import annotations

import sys
import textwrap

from cartouche.cli.app import Json, Model, app
from cartouche.cli.screen import Screen

WIDTH = 100


@app.command()
def doctor(model: Model = None, as_json: Json = False) -> None:
    """Say what this machine has, what will draw on it and why, and what to type to do better."""
    from cartouche.doctor import examine

    screen = Screen(as_json, preview=False)
    findings = examine(model)
    for one in findings:
        lines = textwrap.wrap(f"{one.name:10} {one.text}", WIDTH, subsequent_indent=" " * 11) or [one.name]
        screen.say("\n".join(lines), event="finding", name=one.name, said=one.text, facts=one.facts, advice=one.advice)
    advice = [f"  {one.name}: {one.advice}" for one in findings if one.advice]
    if advice and not as_json:
        sys.stdout.write("\n".join(["", "To do better:", *advice, ""]))
