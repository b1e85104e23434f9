"""Captions against reference captions: BLEU, ROUGE-L and CIDEr-D. METEOR has a file of its own.

Every function takes captions as lists of words, which `words` makes of text: lower case, no punctuation. Scores are
from 0 to 1, CIDEr-D from 0 to 10.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cartouche.config import CartoucheError

Words = Sequence[str]
ORDERS = 4  # n-grams of one to four words
BETA = 1.2  # of ROUGE-L: recall counts more than precision
SIGMA = 6.0  # of CIDEr-D: words by which lengths may differ

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


class Scored(NamedTuple):
    """The score of all captions together, and of each alone."""

    corpus: float
    each: np.ndarray


def words(text: str) -> list[str]:
    """The words of a caption in lower case; punctuation is dropped, hyphens and apostrophes inside words stay."""
    return _WORD.findall(text.lower())


def bleu(said: Sequence[Words], references: Sequence[Sequence[Words]], order: int = ORDERS) -> Scored:
    """BLEU-`order` (Papineni et al. 2002, section 2.3), without smoothing, against the reference nearest in length.

    The corpus score pools n-gram counts of all captions; a single caption with no common 4-gram has BLEU-4 of 0.
    """
    _check(said, references)
    if order < 1:
        raise CartoucheError(f"order={order} given; choose 1 or more, 4 is usual")
    rows = np.array([_counts(one, known, order) for one, known in zip(said, references, strict=True)])
    return Scored(_bleu(rows.sum(0), order), np.array([_bleu(row, order) for row in rows]))


def rouge_l(said: Sequence[Words], references: Sequence[Sequence[Words]]) -> Scored:
    """ROUGE-L (Lin 2004, eq. 2 to 4) with beta 1.2: F of the longest common subsequence.

    Precision and recall are each the best over the references, as COCO's caption evaluation has it.
    """
    _check(said, references)
    each = np.array([_rouge(one, known) for one, known in zip(said, references, strict=True)])
    return Scored(float(each.mean()), each)


def cider_d(said: Sequence[Words], references: Sequence[Sequence[Words]], sigma: float = SIGMA) -> Scored:
    """CIDEr-D (Vedantam et al. 2015, eq. 2 and 4): tf-idf cosine of 1- to 4-grams, clipped, for lengths that differ.

    How rare an n-gram is is counted over the references of all captions, so the score of a caption depends on its
    company, and of one caption alone it is 0.
    """
    _check(said, references)
    rare = _Rarity(references)
    each = []
    for one, known in zip(said, references, strict=True):
        mine = rare.vectors(one)
        scores = [_similar(mine, rare.vectors(other), len(one) - len(other), sigma) for other in known]
        each.append(10 * float(np.mean(scores)))
    return Scored(float(np.mean(each)), np.array(each))


# BLEU


def grams(sentence: Words, n: int) -> Counter[tuple[str, ...]]:
    """How often each run of n words occurs."""
    return Counter(tuple(sentence[i : i + n]) for i in range(len(sentence) - n + 1))


def _counts(said: Words, references: Sequence[Words], order: int) -> list[int]:
    """Length, length of the nearest reference (the shorter of equals), then for each order hits and n-grams said."""
    nearest = min((abs(len(one) - len(said)), len(one)) for one in references)[1]
    row = [len(said), nearest]
    for n in range(1, order + 1):
        most: Counter[tuple[str, ...]] = Counter()
        for one in references:
            most |= grams(one, n)
        here = grams(said, n)
        row += [(here & most).total(), here.total()]
    return row


def _bleu(row: np.ndarray, order: int) -> float:
    length, reference, hits, given = int(row[0]), int(row[1]), row[2::2], row[3::2]
    if not hits.all():
        return 0.0
    brief = min(0.0, 1 - reference / length)
    return math.exp(brief + float(np.log(hits / given).sum()) / order)


# ROUGE-L


def _rouge(said: Words, references: Sequence[Words]) -> float:
    common = [_common(said, one) for one in references]
    precision = max(common) / max(len(said), 1)
    recall = max(length / max(len(one), 1) for length, one in zip(common, references, strict=True))
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if precision and recall else 0.0


def _common(one: Words, other: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = row
        row = [0]
        for j, there in enumerate(other):
            row.append(before[j] + 1 if word == there else max(before[j + 1], row[j]))
    return row[-1]


# CIDEr-D


Vector = dict[tuple[str, ...], float]


class _Rarity:
    """tf-idf of n-grams; a document is all references of one caption."""

    def __init__(self, references: Sequence[Sequence[Words]]) -> None:
        self.documents: Counter[tuple[str, ...]] = Counter()
        for known in references:
            self.documents.update({gram for one in known for n in range(ORDERS) for gram in grams(one, n + 1)})
        self.most = math.log(len(references))

    def vectors(self, sentence: Words) -> list[Vector]:
        """One for each order: n-gram to count times log(captions / captions whose references have it)."""
        return [
            {gram: count * (self.most - math.log(max(1, self.documents[gram]))) for gram, count in found.items()}
            for found in (grams(sentence, n + 1) for n in range(ORDERS))
        ]


def _similar(said: list[Vector], reference: list[Vector], longer: int, sigma: float) -> float:
    """Mean over orders of the cosine, with counts clipped to the reference's, less for another length."""
    cosines = []
    for mine, theirs in zip(said, reference, strict=True):
        dot = sum(min(value, theirs.get(gram, 0.0)) * theirs.get(gram, 0.0) for gram, value in mine.items())
        norm = math.hypot(*mine.values()) * math.hypot(*theirs.values())
        cosines.append(dot / norm if norm else 0.0)
    return float(np.mean(cosines)) * math.exp(-(longer**2) / (2 * sigma**2))


def _check(said: Sequence[Words], references: Sequence[Sequence[Words]]) -> None:
    if len(said) != len(references) or not said or not all(references):
        raise CartoucheError(
            f"{len(said)} captions with {len(references)} sets of references; wanted as many of both, each with one or "
            "more references"
        )
    if any(isinstance(one, str) for one in said) or any(isinstance(one, str) for known in references for one in known):
        raise CartoucheError("captions given as text; split them first with captions.words")
