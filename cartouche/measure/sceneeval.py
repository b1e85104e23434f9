"""SceneEval: how much of what 553 prompts demand is in the pictures, with the judge's errors counted and corrected for.

`run` draws and judges, picture by picture, and keeps each as it is made, so that an interrupted run goes on; `report`
turns verdicts into rates. A rate stands beside the judge's sensitivity and specificity on true scenes, and the rate
that is behind it (Rogan and Gladen 1978) with a 95 % interval of both uncertainties; pictures of one prompt count as
one where they go together. What the judge cannot tell has no corrected rate.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cartouche import images
from cartouche.config import CartoucheError
from cartouche.data import palette
from cartouche.draw.recipe import Recipe, Request
from cartouche.measure.judge import ADDED, Errors, Judge, Seen, verdict
from cartouche.measure.prompts import AVOIDED, FORM, LINES, QUICK, Demand, demands
from cartouche.metrics.intervals import Interval, Tally, effective_size, rogan_gladen, wilson

if TYPE_CHECKING:
    import numpy as np

    from cartouche.draw.paint import Painter

PICTURES = 4  # of each prompt
TWINS = "French, said in English"
CHANCE = {"negative prompt": 1 - AVOIDED / len(palette.NAMES)}
"""What a line reaches without any obedience: the named backgrounds are drawn by lot, so a picture's own ground is among
them as often as that, whatever grounds a model prefers."""


@dataclass(frozen=True)
class Judged:
    """One picture: which of its prompt, where it lies, what the judge sees, and each clause right or wrong."""

    demand: Demand
    index: int
    path: Path
    seen: Seen

    @property
    def verdict(self) -> dict[str, bool]:
        return verdict(self.demand, self.seen)


def asked(quick: bool = False) -> tuple[tuple[Demand, ...], int]:
    """The prompts of a run, and how many pictures of each: all with 4, or quickly 100 with 1."""
    return (demands()[:QUICK], 1) if quick else (demands(), PICTURES)


# drawing and judging


def run(
    painter: Painter,
    judge: Judge,
    folder: Path,
    asked: Sequence[Demand],
    pictures: int = PICTURES,
    settings: Mapping[str, Any] | None = None,
) -> Iterator[Judged]:
    """Every picture, drawn (or found in the folder, drawn by an earlier run) and judged, one after the other.

    settings: as `Painter.draw` takes them. Pictures lie in folder/pictures, verdicts in a file named after the judge,
    so another judge can look at the same pictures later. Raises CartoucheError where the folder holds pictures of
    another model or of other settings.
    """
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    log = folder / f"verdicts-{judge.hash}.jsonl"
    known = _read(log)
    with log.open("a", encoding="utf-8") as lines:
        for demand in asked:
            for index in range(pictures):
                path = folder / "pictures" / f"{demand.number:03}-{index}.png"
                seen = known.get((demand.number, index)) if path.is_file() else None  # of this picture
                pixels = _picture(painter, demand, index, path, settings or {})
                if seen is None:
                    seen = judge.see(pixels[None])[0]
                    row = {"prompt": demand.number, "index": index, "text": demand.prompt, "line": demand.line}
                    row |= {"verdict": verdict(demand, seen), "seen": seen.to_dict()}
                    lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                    lines.flush()
                yield Judged(demand, index, path, seen)


def _picture(painter: Painter, demand: Demand, index: int, path: Path, settings: Mapping[str, Any]) -> np.ndarray:
    """The pixels (H, W, 3) of one picture of a prompt: those in the file, if it is the very picture, or drawn now."""
    asked = {"negative_prompt": demand.negative_prompt, "seed": demand.seed, "index": index, **settings}
    if not path.is_file():
        picture = painter.draw(demand.prompt, **asked)[0]
        images.save_png(path, picture.pixels, picture.recipe.to_dict())
        return picture.pixels
    recipe = Recipe.from_dict(images.read_recipe(path))
    wanted = vars(Request(demand.prompt, **asked)) | {"model_hash": painter.hash}
    for name in wanted.keys() - {"count", "width", "height"}:
        if getattr(recipe, name) != wanted[name]:
            drawn = f"{path} was drawn with {name}={getattr(recipe, name)!r}, this run has {wanted[name]!r}"
            raise CartoucheError(f"{drawn}; choose another --out")
    return images.read_pixels(path)


def _read(log: Path) -> dict[tuple[int, int], Seen]:
    """What an earlier run saw; a line that a killed run left half-written is cut off."""
    if not log.is_file():
        return {}
    text = log.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        os.truncate(log, len(whole))
    rows = [json.loads(line) for line in whole.decode().splitlines()]
    return {(row["prompt"], row["index"]): Seen.from_dict(row["seen"]) for row in rows}


# rates


def report(judged: Iterable[Judged], judge: Judge) -> dict[str, Any]:
    """Rates by line, the mean over the six lines of GenEval's form, and how often things were added.

    Of each rate: pictures, what the judge saw with its Wilson interval, the judge's sensitivity and specificity, and
    the corrected rate, None with the reason beside it where there is none.
    """
    rows = list(judged)
    by_line = {line: [one for one in rows if one.demand.line == line] for line in LINES}
    twins = {one.demand.twin for one in by_line["French"]}
    by_line[TWINS] = [one for one in rows if one.demand.number in twins]
    lines: dict[str, Any] = {}
    for line, mine in by_line.items():
        if mine:
            clauses = [
                clause for clause in mine[0].verdict if clause != ADDED and all(clause in x.verdict for x in mine)
            ]
            known = {name: judge.confusion.get(("French" if line == TWINS else line, name)) for name in clauses}
            lines[line] = {name: _rate(mine, name, known[name]) for name in clauses}
            if line in CHANCE:
                lines[line]["whole"]["chance"] = CHANCE[line]
    return {
        "judge": judge.hash,
        "note": judge.note,
        "pictures": len(rows),
        "lines": lines,
        "mean of six lines": _mean([lines[line]["whole"] for line in FORM if line in lines]),
        "hallucination": _rate(rows, ADDED, _pooled(judge)) | {"things a picture": _extra(rows)} if rows else None,
    }


def corrected(right: Sequence[bool], prompts: Sequence[int], errors: Errors) -> Interval | None:
    """The true rate behind verdicts, each of a picture of a prompt; None where the judge cannot tell."""
    if not errors.sensitivity.n or not errors.specificity.n:
        return None
    n = effective_size(right, prompts)
    return rogan_gladen(Tally(sum(right) / len(right) * n, n), errors.sensitivity, errors.specificity)


def _rate(judged: Sequence[Judged], clause: str, errors: Errors | None) -> dict[str, Any]:
    right, prompts = [one.verdict[clause] for one in judged], [one.demand.seed for one in judged]
    n = effective_size(right, prompts)
    seen = wilson(sum(right) / len(right) * n, n)
    made: dict[str, Any] = {"pictures": len(right), "effective": n, "seen": _said(seen), "corrected": None}
    if errors is None:
        return made | {"why": "the judge's errors here were not counted"}
    for name, tally in (("sensitivity", errors.sensitivity), ("specificity", errors.specificity)):
        made |= {name: _said(wilson(*tally))} if tally.n else {}
    found = corrected(right, prompts, errors)
    if found is None:
        return made | {"why": "not judgeable: here the judge cannot tell right from wrong"}
    return made | {"corrected": _said(found)}


def _mean(rates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of independent rates; its interval has the mean of their squared half-widths."""
    made: dict[str, Any] = {"lines": len(rates)}
    for kind in ("seen", "corrected"):
        all_there = len(rates) == len(FORM) and all(one[kind] for one in rates)
        made[kind] = _mean_of([Interval(**one[kind]) for one in rates]) if all_there else None
    return made


def _mean_of(rates: Sequence[Interval]) -> dict[str, float]:
    value = sum(one.value for one in rates) / len(rates)
    below, above = (
        sum((one.value - edge) ** 2 for one, edge in zip(rates, edges, strict=True)) ** 0.5 / len(rates)
        for edges in ([one.low for one in rates], [one.high for one in rates])
    )
    return _said(Interval(value, max(0.0, value - below), min(1.0, value + above)))


def _pooled(judge: Judge) -> Errors | None:
    """The judge's errors in seeing that something was added, over all lines."""
    found = [one for (_, clause), one in judge.confusion.items() if clause == ADDED]
    if not found:
        return None
    sums = [Tally(sum(x.right for x in kind), sum(x.n for x in kind)) for kind in zip(*map(_pair, found), strict=True)]
    return Errors(*sums)


def _pair(errors: Errors) -> tuple[Tally, Tally]:
    return errors.sensitivity, errors.specificity


def _extra(judged: Sequence[Judged]) -> float:
    """Things beyond those asked for, as the judge sees them, per picture."""
    return sum(max(0, len(one.seen.things) - len(one.demand.plan.concepts)) for one in judged) / len(judged)


def _said(interval: Interval) -> dict[str, float]:
    return interval._asdict()
