"""Character and word error rates: the fewest insertions, deletions and substitutions from what is written to what was
read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cartouche.config import CartoucheError


def distance(one: Sequence, other: Sequence) -> int:
    """Levenshtein's distance (1966) of two sequences: strings by characters, lists by items."""
    codes = {item: i for i, item in enumerate(dict.fromkeys([*one, *other]))}
    left, right = ([codes[item] for item in part] for part in (one, other))
    columns, target = np.arange(len(right) + 1), np.array(right, int)
    row = columns.copy()
    for i, item in enumerate(left, 1):
        best = np.minimum(row[1:] + 1, row[:-1] + (target != item))
        best = np.concatenate([[i], best])
        row = np.minimum.accumulate(best - columns) + columns  # an insertion costs one a column
    return int(row[-1])


def cer(said: Sequence[str], truth: Sequence[str]) -> float:
    """Character error rate of many texts: all edits over all characters that are there. It may exceed 1."""
    return _rate(said, truth, [list(one) for one in said], [list(one) for one in truth])


def wer(said: Sequence[str], truth: Sequence[str]) -> float:
    """Word error rate of many texts: words are what blanks part; all edits over all words that are there."""
    return _rate(said, truth, [one.split() for one in said], [one.split() for one in truth])


def _rate(said: Sequence[str], truth: Sequence[str], read: list[list[str]], there: list[list[str]]) -> float:
    if isinstance(said, str) or isinstance(truth, str) or len(said) != len(truth):
        raise CartoucheError("wanted two lists of texts of one length: what was read, and what is written")
    total = sum(map(len, there))
    if not total:
        raise CartoucheError("nothing is written in any text; an error rate needs at least one character")
    return sum(distance(a, b) for a, b in zip(read, there, strict=True)) / total
