"""`cartouche measure ...`: scores, with how sure they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cartouche.cli.app import Engine, Json, Model, measure_app
from cartouche.cli.screen import Screen
from cartouche.config import CartoucheError

if TYPE_CHECKING:
    from cartouche.measure.sceneeval import Judged

Quick = Annotated[bool, typer.Option("--quick", help="100 prompts with one picture each, for development.")]
Prompts = Annotated[int | None, typer.Option(min=1, help="Only so many prompts, the lines in turn.")]
Folder = Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="Where pictures and verdicts are kept.")]
JudgeFolder = Annotated[Path | None, typer.Option(metavar="FOLDER", help="The referee that judges.")]
Steps = Annotated[int | None, typer.Option(help="Steps from noise to picture.")]
Guidance = Annotated[float | None, typer.Option(help="How strongly to follow the prompt.")]


@measure_app.command()
def scenes(
    model: Model = None,
    quick: Quick = False,
    prompts: Prompts = None,
    out: Folder = None,
    judge: JudgeFolder = None,
    steps: Steps = None,
    guidance: Guidance = None,
    engine: Engine = None,
    as_json: Json = False,
) -> None:
    """SceneEval: does the model draw what 553 prompts ask for? Run it again to go on where it was stopped."""
    import cartouche
    from cartouche.files import write_whole
    from cartouche.images import save_png
    from cartouche.measure import sceneeval
    from cartouche.measure.judge import Judge
    from cartouche.measure.sheet import sheet

    referee = Judge(_judge_folder(judge))
    painter = cartouche.load(model, engine or "auto")
    out = out or Path(f"sceneeval-{painter.name}-{painter.hash}")
    asked, pictures = sceneeval.asked(quick)
    asked = asked[:prompts]
    settings = {"num_inference_steps": steps, "guidance_scale": guidance}
    given = {name: value for name, value in settings.items() if value is not None}
    judged: list[Judged] = []
    with Screen(as_json, preview=False) as screen:
        for one in sceneeval.run(painter, referee, out, asked, pictures, given):
            judged.append(one)
            event = {"prompt": one.demand.number, "index": one.index, "path": str(one.path), "verdict": one.verdict}
            screen.done(len(judged), len(asked) * pictures, event="judged", **event)
    report = sceneeval.report(judged, referee) | {"model": painter.name, "model_hash": painter.hash, "settings": given}
    for line, mine in by_line(judged).items():
        save_png(out / f"sheet-{line.replace(' ', '-')}.png", sheet(mine), force=True)
    write_whole(out / "report.json", (json.dumps(report, indent=1) + "\n").encode(), force=True)
    screen.say(table(report, out), event="scenes", out=str(out), **report)


def by_line(judged: list[Judged]) -> dict[str, list[Judged]]:
    """The first picture of every prompt, by line: what the sheets show."""
    lines: dict[str, list[Judged]] = {}
    for one in judged:
        if one.index == 0:
            lines.setdefault(one.demand.line, []).append(one)
    return lines


def table(report: dict[str, Any], out: Path) -> str:
    """The report in words and columns."""
    rows = [["SceneEval", "pictures", "seen", "judge: right, wrong", "corrected", "95 %"]]
    for line, clauses in report["lines"].items():
        rows += [_row(line if clause == "whole" else f"  {clause} alone", one) for clause, one in clauses.items()]
    rows.append(_row("hallucination", report["hallucination"]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    mean = report["mean of six lines"]
    for kind in ("seen", "corrected"):
        lines.append(f"mean of the first six lines, {kind}: {_interval(mean[kind]) if mean[kind] else 'not judgeable'}")
    notes = [report["note"]] if report["note"] else []
    if "negative prompt" in report["lines"]:
        notes.append(
            f"negative prompt: without any obedience {report['lines']['negative prompt']['whole']['chance']:.3f}"
        )
    notes.append("seen: as the judge sees it; judge: how often it is right on true scenes that are right, and wrong")
    notes.append(
        "corrected: the rate behind it, with both uncertainties. hallucination: more things than were asked for"
    )
    return "\n".join([*lines, *notes, f"pictures with verdicts: {out}/sheet-*.png"])


def _row(name: str, rate: dict[str, Any]) -> list[str]:
    judge = f"{rate['sensitivity']['value']:.2f}, {rate['specificity']['value']:.2f}" if "sensitivity" in rate else "-"
    seen, fixed = rate["seen"], rate["corrected"]
    corrected = [f"{fixed['value']:.3f}", f"{fixed['low']:.3f} ... {fixed['high']:.3f}"] if fixed else [rate["why"], ""]
    return [name, str(rate["pictures"]), f"{seen['value']:.3f}", judge, *corrected]


def _interval(rate: dict[str, float]) -> str:
    return f"{rate['value']:.3f} ({rate['low']:.3f} ... {rate['high']:.3f})"


def _judge_folder(given: Path | None) -> Path:
    """The folder that was named, or the referee of a checkout."""
    import cartouche

    folder = given or Path(cartouche.__file__).parents[1] / "benchmarks" / "nets" / "referee"
    if not (folder / "model.safetensors").is_file():
        asked = f"no referee in {folder}" if given else "no judge: the package has none"
        raise CartoucheError(f"{asked}; give --judge FOLDER, as benchmarks/nets/referee of the source")
    return folder
