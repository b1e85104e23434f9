"""Do three independent readers find the wrong drawings? A picture, a claim about it, and what each reader makes of it.

    python benchmarks/agreement.py --pack FOLDER [--model FOLDER] [--count 400]

Every picture is a scene whose truth is known; half of the claims are its caption, half a hard negative of it (one
thing, number, colour or place otherwise, or something denied). The candidates are the claim and three others; where the
claim is wrong, the caption is among them. Wrong claims stand for wrong drawings: the picture is what was drawn, the
claim what was asked for. Each reader's score is how far it prefers the claim; theirs together is the mean. AUROC: how
often a right claim scores above a wrong one; intervals are bootstrapped over pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from bench import machine, parser, table, write

from cartouche.data.captions import LANGUAGES
from cartouche.data.emoji import Pack
from cartouche.data.graphs import Lexicon
from cartouche.data.negatives import Negatives, bound
from cartouche.data.scenes import Composer, Mixture, render, rng_of
from cartouche.draw.model import Model
from cartouche.images import from_uint8
from cartouche.measure import readers
from cartouche.measure.reading import interval
from cartouche.metrics.intervals import Interval, auroc, bootstrap
from cartouche.read.match import Matcher
from cartouche.read.reader import Reader

SEED = 606  # no training reads this stream
MIXTURE = Mixture(count=(0.3, 0.4, 0.2, 0.1), same=0.3, symbols=0.0, two_tone=0.05)
OTHERS = 3
NAMES = ("contrastive", "describing", "drawer", "all three")


def case(pack: Pack, composer: Composer, negatives: Negatives, index: int) -> tuple[np.ndarray, list[str], str, bool]:
    """Picture number `index` (3, H, W), the candidates with the claim first, their language, whether it is true."""
    language = LANGUAGES[index % len(LANGUAGES)]
    scene = bound(composer[index], rng_of(SEED, index))
    said, false = negatives.captioned(scene, index, language, OTHERS + 1)
    true = bool(rng_of(SEED ^ 1, index).random() < 0.5)
    candidates = [said, *false[:OTHERS]] if true else [false[0], said, *false[1:OTHERS]]
    return from_uint8(render(pack, scene)[0][None])[0], candidates, language, true


def measure(
    pack: Pack, matcher: Matcher, describer: readers.Describes, model: Model, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """How far each reader, and all together, prefer each claim: (count, 4), and which claims are true: (count,)."""
    composer, negatives = Composer(pack.of("train"), SEED, mixture=MIXTURE), Negatives(pack.of("train"))
    lexicon, rows, truth = Lexicon(pack.drawings), [], []
    for index in range(count):
        picture, candidates, language, true = case(pack, composer, negatives, index)
        scores = {
            "contrastive": readers.contrastive(matcher, picture, candidates),
            "describing": readers.describing(describer, lexicon, picture, candidates, language),
            "drawer": readers.denoising(model, picture, candidates),
        }
        rows.append([*(readers.preference(one) for one in scores.values()), readers.agreement(scores)])
        truth.append(true)
    return np.array(rows), np.array(truth)


def found(scores: np.ndarray, true: np.ndarray) -> Interval:
    """AUROC of one score, with its interval."""
    both = np.stack([scores, true.astype(float)], axis=1)

    def area(rows: np.ndarray) -> float:
        right = rows[:, 1] > 0.5
        return auroc(rows[:, 0], right) if 0 < right.sum() < len(right) else 0.5

    return bootstrap(both, area, draws=1000)


def main() -> None:
    given = parser(__doc__, "agreement")
    given.add_argument("--pack", type=Path, required=True)
    given.add_argument("--model", type=Path, help="a folder that draws and reads; the built-in one")
    given.add_argument("--count", type=int, default=400)
    a = given.parse_args()
    pack = Pack(a.pack)
    rows, true = measure(pack, Matcher(a.model), Reader(a.model).teller, Model(a.model), a.count)
    report: dict[str, Any] = {name: interval(found(rows[:, i], true)) for i, name in enumerate(NAMES)}
    print(table(["finding wrong claims, AUROC", "value", "low", "high"], [[k, *v.values()] for k, v in report.items()]))
    write(a.out, {"machine": machine(), "seed": SEED, "pictures": a.count, "true": int(true.sum()), "AUROC": report})


if __name__ == "__main__":
    main()
