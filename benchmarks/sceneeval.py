"""How often SceneEval's judge errs: its verdicts on pictures of which everything is known.

    python benchmarks/sceneeval.py --pack FOLDER [--judge benchmarks/nets/referee] [--rounds 2]      (some minutes)

Writes confusion.json beside the judge's weights, where `cartouche measure scenes` finds it, and
benchmarks/results/sceneeval_judge.json. Each of the 553 demands is shown in true scenes that fulfil it, in scenes that
break one thing of it, and in scenes with one thing too many. The scenes are new, but composed of the pack's train
drawings, from which the judge learned; it may err more on drawings that look like none of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from bench import NETS, machine, parser, table, write

from cartouche.data import palette
from cartouche.data.emoji import Drawing, Pack
from cartouche.data.scenes import DARK, Scene, render, rng_of
from cartouche.files import write_whole
from cartouche.measure import prompts
from cartouche.measure.judge import CONFUSION, Judge, counted, truth_of, verdict
from cartouche.measure.prompts import Demand, Plan, demands, names, scene_of

SEED = 91
BATCH = 64


def measure(pack: Pack, judge: Judge, rounds: int = 2, asked: tuple[Demand, ...] | None = None) -> dict[str, Any]:
    """Sensitivity and specificity, each [right, n], of every line and clause."""
    judged = []
    find = shelf(pack)
    stage = list(staged(demands() if asked is None else asked, rounds, find))
    for first in range(0, len(stage), BATCH):
        part = stage[first : first + BATCH]
        seen = judge.see(np.stack([render(pack, scene)[0] for _, scene in part]))
        judged += [
            (demand.line, verdict(demand, look), verdict(demand, truth_of(scene)))
            for (demand, scene), look in zip(part, seen, strict=True)
        ]
    lines = {
        line: {
            clause: {"sensitivity": list(one.sensitivity), "specificity": list(one.specificity)}
            for clause, one in clauses.items()
        }
        for line, clauses in counted(judged).items()
    }
    return {"judge": judge.hash, "scenes": len(stage), "lines": lines}


def staged(asked: tuple[Demand, ...], rounds: int, find: Callable) -> Iterator[tuple[Demand, Scene]]:
    """Demands with scenes: as demanded, with one thing broken, with one thing added."""
    for i in range(rounds):
        for demand in asked:
            rng = rng_of(SEED + i, demand.number)
            for plan in (demand.plan, broken(demand, rng), added(demand.plan, rng)):
                if plan is not None:
                    yield demand, scene_of(visible(demand, plan, rng, find), rng, find)


def visible(demand: Demand, plan: Plan, rng: np.random.Generator, find: Callable) -> Plan:
    """The plan on a ground in which nothing of it vanishes, where the ground is not what is asked about."""
    if demand.form in ("background", "negative prompt") or plan.style == "outline":
        return plan
    drawings = [find(concept, plan.style) for concept in plan.concepts]
    taken = {one.colors[0][0] for one in drawings if one.colors and one.colors[0][1] > 0.45}
    free = [name for name in palette.NAMES if name not in taken]
    return plan if plan.background in free or not free else replace(plan, background=str(rng.choice(free)))


def shelf(pack: Pack) -> Callable[[str, str], Drawing]:
    """Finds the train drawing of a concept in a style."""
    drawings = {(one.concept, one.style): one for one in pack.of("train")}
    return lambda concept, style: drawings[concept, style]


def broken(demand: Demand, rng: np.random.Generator) -> Plan:
    """The plan with one thing wrong that the demand's line would notice."""
    plan = demand.plan

    def other(values: Any, *but: str) -> str:
        return str(rng.choice([one for one in values if one not in but]))

    if demand.form == "counting" and rng.random() < 0.75:
        here = len(plan.concepts)
        count = int(rng.choice([n for n in (here - 1, here + 1) if n <= 4]))
        return replace(plan, concepts=plan.concepts[:1] * count, colours=("",) * count)
    if demand.form == "position" and rng.random() < 0.75:
        return replace(plan, relation=other(prompts.RELATIONS, plan.relation))
    if demand.form in ("colours", "colour attribution") and rng.random() < 0.75:
        if len(plan.colours) == 2 and rng.random() < 0.5:
            return replace(plan, colours=plan.colours[::-1])
        wrong = other(palette.NAMES, plan.background, *plan.colours)
        return replace(plan, colours=(wrong, *plan.colours[1:]))
    if demand.form == "style":
        shown = [style for style in prompts.STYLES if style not in names()[plan.concepts[0]].missing]
        style = other(shown, plan.style)
        ground = plan.background if style != "outline" else other(set(palette.NAMES) - DARK)
        return replace(plan, style=style, background=ground)
    if demand.form in ("background", "negative prompt"):
        grounds = demand.avoided or [one for one in palette.NAMES if one != plan.background]
        return replace(plan, background=other([one for one in grounds if plan.style != "outline" or one not in DARK]))
    if demand.form == "two objects" and rng.random() < 0.5:
        return replace(plan, concepts=plan.concepts[:1], colours=plan.colours[:1])
    return replace(plan, concepts=(_stranger(plan, rng), *plan.concepts[1:]))


def added(plan: Plan, rng: np.random.Generator) -> Plan | None:
    """The plan with one more thing, none where there are four."""
    if len(plan.concepts) == 4:
        return None
    return replace(plan, concepts=(*plan.concepts, _stranger(plan, rng)), colours=(*plan.colours, ""), relation="")


def _stranger(plan: Plan, rng: np.random.Generator) -> str:
    """A concept that the plan lacks and its style has."""
    return str(
        rng.choice([c for c, one in names().items() if plan.style not in one.missing and c not in plan.concepts])
    )


def main() -> None:
    given = parser(__doc__, "sceneeval_judge")
    given.add_argument("--pack", type=Path, required=True)
    given.add_argument("--judge", type=Path, default=NETS / "referee")
    given.add_argument("--rounds", type=int, default=2)
    a = given.parse_args()
    report = measure(Pack(a.pack), Judge(a.judge), a.rounds)
    rows = []
    for line, clauses in report["lines"].items():
        for clause, one in clauses.items():
            tallies = [one[kind] for kind in ("sensitivity", "specificity")]
            if all(n for _, n in tallies):
                rows.append([line, clause, *(right / n for right, n in tallies)])
    print(table(["line", "clause", "sensitivity", "specificity"], rows))
    write_whole(a.judge / CONFUSION, (json.dumps(report, indent=1) + "\n").encode(), force=True)
    write(a.out, report | {"machine": machine()})


if __name__ == "__main__":
    main()
