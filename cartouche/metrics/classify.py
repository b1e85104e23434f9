"""Right or wrong answers: accuracy, top-k, precision, recall and F1, and recall at k of retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cartouche.config import CartoucheError

Labels = Sequence[object] | np.ndarray


@dataclass(frozen=True)
class Scores:
    """Precision, recall and F1, and of how many true examples (support)."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Report:
    """Scores of each class, their plain mean (macro), and those of all answers pooled (micro)."""

    classes: dict[str, Scores]
    macro: Scores
    micro: Scores


def accuracy(truth: Labels, said: Labels) -> float:
    """The share of answers that are right. truth, said: (N,) labels of any kind."""
    truth, said = _pair(truth, said)
    return float(np.mean(truth == said))


def top_k(truth: np.ndarray, scores: np.ndarray, k: int = 5) -> float:
    """The share of rows whose true class is among the k best scores.

    truth: (N,) class numbers; scores: (N, classes). Of equal scores the lower class number is the better one.
    """
    ranks = _ranks(np.asarray(scores, float), np.asarray(truth))
    return float(np.mean(ranks < _checked(k, scores.shape[1])))


def f1(truth: Labels, said: Labels) -> Report:
    """Precision, recall and F1 of every class that occurs, macro and micro averages. What has no answers is 0.

    With one label an example, micro precision, recall, F1 and accuracy are one number.
    """
    truth, said = _pair(truth, said)
    names = np.unique(np.concatenate([truth, said]))
    hits = np.array([np.sum((truth == name) & (said == name)) for name in names], float)
    given = np.array([np.sum(said == name) for name in names], float)
    there = np.array([np.sum(truth == name) for name in names], float)
    rows = [_scores(*row) for row in zip(hits, given, there, strict=True)]
    precision, recall, mean = np.mean([(row.precision, row.recall, row.f1) for row in rows], 0).tolist()
    micro = _scores(hits.sum(), given.sum(), there.sum())
    classes = {str(name): row for name, row in zip(names, rows, strict=True)}
    return Report(classes, Scores(precision, recall, mean, len(truth)), micro)


def recall_at_k(similarity: np.ndarray, wanted: np.ndarray | None = None, k: int = 1) -> float:
    """The share of queries that find something wanted among their k nearest.

    similarity: (queries, items), more is nearer. wanted: (queries, items) bool, several right ones allowed; None means
    that item i belongs to query i.
    """
    similarity = np.asarray(similarity, float)
    wanted = np.eye(*similarity.shape, dtype=bool) if wanted is None else np.asarray(wanted, bool)
    if wanted.shape != similarity.shape or not wanted.any(1).all():
        raise CartoucheError(f"wanted {wanted.shape} for similarities {similarity.shape}: each query wants something")
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, : _checked(k, similarity.shape[1])]
    return float(np.mean(np.take_along_axis(wanted, nearest, 1).any(1)))


def _ranks(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How many classes stand before the true one: (N,)."""
    if scores.ndim != 2 or truth.shape != scores.shape[:1] or not len(truth):
        raise CartoucheError(f"scores {scores.shape} for truth {truth.shape}; wanted (N, classes) and (N,)")
    own = np.take_along_axis(scores, truth[:, None], 1)
    before = np.arange(scores.shape[1])[None] < truth[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(1)


def _scores(hits: float, given: float, there: float) -> Scores:
    total = given + there
    return Scores(hits / given if given else 0.0, hits / there if there else 0.0, 2 * hits / total if total else 0.0,
                  int(there))  # fmt: skip


def _pair(truth: Labels, said: Labels) -> tuple[np.ndarray, np.ndarray]:
    here, there = np.asarray(truth), np.asarray(said)
    if here.shape != there.shape or here.ndim != 1 or not len(here):
        raise CartoucheError(f"{here.shape} true and {there.shape} given labels; wanted as many of both, one or more")
    return here, there


def _checked(k: int, most: int) -> int:
    if not 1 <= k <= most:
        raise CartoucheError(f"k={k} given; choose 1 to {most}")
    return k
