"""Do captions bind? Pairs of scenes that differ by one small thing, told apart or not, with and without hard negatives.

    python benchmarks/binding.py --pack FOLDER --clips built-in=FOLDER plain=FOLDER hard=FOLDER [--pairs 400]

The form is Winoground's (Thrush et al. 2022): two pictures and two captions, each true of its own picture and false of
the other. Text score: each picture prefers its own caption; image score: each caption prefers its own picture; group
score: both. Chance is 25, 25 and 16.7 %. Intervals are bootstrapped over pairs; plain and hard were trained on the same
pictures and captions for as many steps (recipes/binding.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench import against, machine, parser, table, write

from cartouche.data.captions import LANGUAGES
from cartouche.data.emoji import Pack
from cartouche.data.negatives import CHANGES, Negatives, Pair, Pairs
from cartouche.data.scenes import Composer, Mixture, render
from cartouche.images import from_uint8
from cartouche.measure.reading import interval
from cartouche.metrics.intervals import bootstrap
from cartouche.read.match import Matcher

SEED = 1414  # no training reads this stream
MIXTURE = Mixture(count=(0.2, 0.4, 0.25, 0.15), same=0.3, symbols=0.0, two_tone=0.05)
GOAL = 0.6
SCORES = ("text", "image", "group")


def pairs(pack: Pack, each: int, split: str = "train") -> list[Pair]:
    """`each` pairs of every kind of change, about half of them English."""
    drawings = pack.of(split)
    endless = Pairs(Composer(drawings, SEED, mixture=MIXTURE), Negatives(drawings))
    return [endless[number] for number in range(each * len(CHANGES))]


def scored(pack: Pack, matcher: Matcher, chosen: Sequence[Pair]) -> np.ndarray:
    """Text, image and group score of each pair: (N, 3) of 0 and 1."""
    pictures = np.stack([render(pack, scene)[0] for one in chosen for scene in one.scenes])
    images = matcher.images(from_uint8(pictures)).reshape(len(chosen), 2, -1)
    texts = matcher.texts([said for one in chosen for said in one.captions]).reshape(len(chosen), 2, -1)
    likeness = np.einsum("nid,ntd->nit", images, texts)  # (N, picture, caption)
    own, other = np.diagonal(likeness, axis1=1, axis2=2), np.diagonal(likeness[:, :, ::-1], axis1=1, axis2=2)
    text = (own > other).all(1)  # each picture its caption
    image = (own > other[:, ::-1]).all(1)  # each caption its picture
    return np.stack([text, image, text & image], axis=1).astype(float)


def measure(pack: Pack, matcher: Matcher, chosen: Sequence[Pair]) -> dict[str, Any]:
    """The three scores of all pairs, and by change and language."""
    rows = scored(pack, matcher, chosen)
    parts = {"all": np.ones(len(chosen), bool)}
    parts |= {change: np.array([one.change == change for one in chosen]) for change in CHANGES}
    parts |= {language: np.array([one.language == language for one in chosen]) for language in LANGUAGES}
    return {
        name: {score: interval(bootstrap(rows[part, i])) for i, score in enumerate(SCORES)} | {"n": int(part.sum())}
        for name, part in parts.items()
    }


def difference(pack: Pack, better: Matcher, worse: Matcher, chosen: Sequence[Pair]) -> dict[str, float]:
    """How much more of the same pairs one gets right than the other, by group score."""
    a, b = (scored(pack, one, chosen)[:, 2] for one in (better, worse))
    return interval(bootstrap(a - b))


def said(figure: dict[str, float]) -> str:
    """A share with its interval, in per cent."""
    return f"{figure['value']:.1%} ({figure['low']:.0%}-{figure['high']:.0%})"


def main() -> None:
    given = parser(__doc__, "binding")
    given.add_argument("--pack", type=Path, required=True)
    given.add_argument("--clips", nargs="+", required=True, metavar="NAME=FOLDER")
    given.add_argument("--pairs", type=int, default=200, help="of every kind of change")
    a = given.parse_args()
    pack = Pack(a.pack)
    matchers = {name: Matcher(Path(folder)) for name, _, folder in (one.partition("=") for one in a.clips)}
    chosen = pairs(pack, a.pairs)
    report: dict[str, Any] = {name: measure(pack, matcher, chosen) for name, matcher in matchers.items()}
    rows = [
        [f"{name}: {part}", *(said(one[score]) for score in SCORES), one["n"]]
        for name, found in report.items()
        for part, one in found.items()
    ]
    print(table(["pairs", *SCORES, "n"], rows))
    if {"hard", "plain"} <= set(matchers):
        report["hard less plain, group"] = difference(pack, matchers["hard"], matchers["plain"], chosen)
        report["target"] = against(report["hard"]["all"]["group"]["value"], GOAL)
    write(a.out, {"machine": machine(), "seed": SEED, **report})


if __name__ == "__main__":
    main()
