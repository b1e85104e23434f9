"""METEOR 1.5 for captions (Denkowski and Lavie 2014), with its exact and stem stages.

Absent, because they are large tables: the synonym stage (WordNet) and the paraphrase stage. So scores are a little
lower than those of the whole METEOR, and can be compared with each other only. Stems are Porter's of 1980 where its own
program has the later ones; words of other languages match exactly. Alignments follow the paper's rule, while the
program sometimes leaves repeated stems unmatched. On 2,000 captions of scenes the two differed in one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np

from cartouche.metrics.captions import Scored, Words, _check
from cartouche.metrics.stemmer import stem

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75  # English, as tuned there (table 1)
EXACT, STEM = 1.0, 0.6  # what a match of each stage is worth
BEAM = 40  # alignments kept while one is searched
FUNCTION_WORDS = frozenset(  # the commonest words of English, which count less; the list is part of the metric
    "a about after all also an and are as at be been but by can could first for from had has have he her his if in "
    "into is it its last more new no not of on one or other out over people said she so some than that the their "
    "there they this time to two up was we were what when which who will with would year years you i s 's 't".split()
)


class Pair(NamedTuple):
    """Word i of the caption matches word j of the reference at a weight."""

    i: int
    j: int
    weight: float


class Counts(NamedTuple):
    """What a score is made of, to be added up over captions.

    hits, length: weighted matches and words of the caption; reference_hits, reference_length: those of the reference;
    matched, chunks: pairs and the runs they form.
    """

    hits: float
    length: float
    reference_hits: float
    reference_length: float
    matched: float
    chunks: float


def meteor(said: Sequence[Words], references: Sequence[Sequence[Words]]) -> Scored:
    """METEOR of captions, lists of words as `captions.words` makes them: each against its best reference.

    The corpus score is that of the summed counts, not the mean.
    """
    _check(said, references)
    best = [
        max((counts(one, other) for other in known), key=score) for one, known in zip(said, references, strict=True)
    ]
    total = Counts(*np.sum(best, 0).tolist())
    return Scored(score(total), np.array([score(one) for one in best]))


def score(counts: Counts) -> float:
    """(1 - gamma (chunks / matches)^beta) P R / (alpha P + (1 - alpha) R)."""
    if not counts.hits or not counts.reference_hits:
        return 0.0
    precision, recall = counts.hits / counts.length, counts.reference_hits / counts.reference_length
    penalty = GAMMA * (counts.chunks / counts.matched) ** BETA if counts.chunks else 0.0
    return (1 - penalty) / ((1 - ALPHA) / precision + ALPHA / recall)


def counts(said: Words, reference: Words) -> Counts:
    """The counts of a caption against one reference; no chunk is counted where the two agree word for word."""
    pairs = align(said, reference)
    whole = len(pairs) == len(said) == len(reference) and _chunks(pairs) == 1
    return Counts(
        sum(pair.weight * _worth(said[pair.i]) for pair in pairs),
        sum(map(_worth, said)),
        sum(pair.weight * _worth(reference[pair.j]) for pair in pairs),
        sum(map(_worth, reference)),
        len(pairs),
        0 if whole else _chunks(pairs),
    )


def align(said: Words, reference: Words) -> list[Pair]:
    """The pairs of an alignment: the most matches, then the fewest chunks, then the least shifting, no word twice.

    Searched with a beam along the caption and along the reference; the better find is kept.
    """
    stems = [stem(word) for word in said], [stem(word) for word in reference]
    pairs = [
        Pair(i, j, EXACT if word == other else STEM)
        for i, word in enumerate(said)
        for j, other in enumerate(reference)
        if word == other or stems[0][i] == stems[1][j]
    ]
    along = _search(pairs), [_turned(one) for one in _search([_turned(one) for one in pairs])]
    return min((sorted(one) for one in along), key=_cost)


def _turned(pair: Pair) -> Pair:
    return Pair(pair.j, pair.i, pair.weight)


def _search(pairs: Sequence[Pair]) -> list[Pair]:
    """The best alignment that a beam finds going along the words i."""
    rivals = Counter(pair.j for pair in pairs)
    beam: list[list[Pair]] = [[]]
    for _, group in groupby(sorted(pairs), key=lambda pair: pair.i):
        choices = list(group)
        only = len(choices) == 1 and rivals[choices[0].j] == 1
        grown = ([*one, choices[0]] for one in beam) if only else _grown(beam, choices)
        alike: dict[object, list[Pair]] = {}  # of those that leave the same words free, the best will stay the best
        for one in sorted(grown, key=_cost):
            alike.setdefault((frozenset(pair.j for pair in one), one[-1] if one else None), one)
        beam = list(alike.values())[:BEAM]
    return beam[0]


def _grown(beam: list[list[Pair]], choices: list[Pair]) -> Iterable[list[Pair]]:
    """Every alignment with each free choice added, and with none."""
    for pairs in beam:
        taken = {pair.j for pair in pairs}
        yield from ([*pairs, one] for one in choices if one.j not in taken)
        yield pairs


def _cost(pairs: list[Pair]) -> tuple[int, int, int]:
    return -len(pairs), _chunks(pairs), sum(abs(pair.i - pair.j) for pair in pairs)


def _chunks(pairs: list[Pair]) -> int:
    """Runs of matches that are adjacent and in the same order on both sides."""
    joined = sum(b.i == a.i + 1 and b.j == a.j + 1 for a, b in pairwise(pairs))
    return len(pairs) - joined


def _worth(word: str) -> float:
    return 1 - DELTA if word in FUNCTION_WORDS else DELTA
