"""Zero-shot labels with and without templates, and what vector arithmetic is worth when nothing is left out.

    python benchmarks/match.py --pack FOLDER [--clip FOLDER] [--count 500]                            (five minutes)

Labels: scenes of one object, of a seed that no training uses, are named among a hundred common concepts: the bare name,
and the model's templates averaged (read/match.py). Shares of right names with their 95 % intervals (Wilson); an object
counts as right by its family. The gain of the templates is over the same pictures.

Arithmetic: "red cherry" - "red" + "blue" ought to be "blue cherry", among every colour with every name and the colours
alone. `honest` is how often it is nearest; `usual` leaves the three terms out first, as is the custom; `term` is how
often a term of the sum is nearest, which the custom hides.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench import machine, parser, table, write

from cartouche.data.captions import LANGUAGES
from cartouche.data.emoji import Drawing, Pack
from cartouche.data.palette import COLOURS
from cartouche.data.scenes import Composer, render, rng_of
from cartouche.measure.obedience import LINES, hundred_names, rate
from cartouche.read.match import Matcher
from cartouche.weights.builtin import builtin

SEED, NAMES = 4, 30  # training reads scenes of seed 3


def labels(matcher: Matcher, pack: Pack, count: int) -> dict[str, Any]:
    """Shares of `count` lone objects named right, by language and by how the label is put."""
    concepts = set(hundred_names(pack.of("train")))
    known = {drawing.concept: drawing for drawing in pack.of("train") if drawing.concept in concepts}
    composer = Composer([one for one in pack.of("train") if one.concept in concepts], SEED, mixture=LINES["single"])
    made = [composer[i] for i in range(count)]
    vectors = matcher.pixels(render(pack, scene)[0] for scene in made)
    families = np.array([one.family for one in known.values()])
    right = np.array([scene.objects[0].drawing.family for scene in made])[:, None] == families[None]
    report = {}
    for language in LANGUAGES:
        for put, templates in {"bare": ["{}"], "templates": None}.items():
            words = matcher.label_vectors([one.name(language) for one in known.values()], language, templates)
            hits = np.take_along_axis(right, np.argsort(-(vectors @ words.T), axis=1, kind="stable"), axis=1)
            report[f"{put}, {language}"] = {f"@{k}": rate(hits[:, :k].any(1).tolist()) for k in (1, 5)}
    return {"names": len(known), **report}


def arithmetic(matcher: Matcher, drawings: Sequence[Drawing], count: int) -> dict[str, Any]:
    """How often the sum is nearest to what it ought to be, with the terms among the names and without them."""
    concepts = set(hundred_names(drawings))
    names = sorted({one.name_en for one in drawings if one.concept in concepts})[:NAMES]
    colours = list(COLOURS)
    among = [*colours, *(f"{colour} {name}" for colour in colours for name in names)]
    outcomes, ranks = [], []
    for i in range(count):
        rng = rng_of(SEED, i)
        name, (one, other) = str(rng.choice(names)), rng.choice(colours, 2, replace=False).tolist()
        near = matcher.arithmetic([f"{one} {name}", other], [one], among)
        wanted = next(near_one for near_one in near if near_one.name == f"{other} {name}")
        usual = next(near_one for near_one in near if not near_one.given)
        outcomes.append({"honest": wanted.rank == 1, "usual": usual == wanted, "term": near[0].given})
        ranks.append(wanted.rank)
    shares = {what: rate([outcome[what] for outcome in outcomes]) for what in outcomes[0]}
    return {"names": len(among), "median rank": float(np.median(ranks)), **shares}


def measure(matcher: Matcher, pack: Pack, count: int) -> dict[str, Any]:
    """Everything this script reports."""
    return {"labels": labels(matcher, pack, count), "arithmetic": arithmetic(matcher, pack.of("train"), count)}


def main() -> None:
    given = parser(__doc__, "match")
    given.add_argument("--pack", type=Path, required=True)
    given.add_argument("--clip", type=Path, default=builtin() / "clip")
    given.add_argument("--count", type=int, default=500)
    a = given.parse_args()
    report = measure(Matcher(a.clip), Pack(a.pack), a.count)
    rows = [
        [f"labels, {put}", *(said(one[k]) for k in ("@1", "@5"))]
        for put, one in report["labels"].items()
        if put != "names"
    ]
    rows += [[f"arithmetic, {what}", said(report["arithmetic"][what]), ""] for what in ("honest", "usual", "term")]
    print(table(["share right", "@1", "@5"], rows))
    write(a.out, {"machine": machine(), "scene seed": SEED, **report})


def said(share: dict[str, float]) -> str:
    """A share with its interval."""
    return f"{share['rate']:.1%} ({share['low']:.0%}-{share['high']:.0%})"


if __name__ == "__main__":
    main()
