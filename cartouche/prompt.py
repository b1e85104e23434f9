"""Prompts as people write them: weights, escapes, breaks, and more words than the text tower takes.

    (word)         1.1 times as strong; ((word)) 1.1 * 1.1 times
    [word]         1 / 1.1 times as strong
    (word:1.3)     1.3 times as strong; brackets may stand in brackets, and their weights multiply
    \\( \\) \\[ \\] \\\\  the character itself
    BREAK          what follows starts a new chunk

This is the syntax of the A1111 web UI (its wiki, "Features", attention/emphasis). A bracket that is never closed weighs
all that follows, a closing one that was never opened is a character like any other: no prompt is an error.

A text tower of N tokens takes chunks of N - 2, the start and the end standing around each; a word goes into the next
chunk rather than over an edge. Each chunk goes through the tower on its own, and their states stand behind each other,
(1, chunks * N, D): the U-Net's attention to the words takes any number of them.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

import numpy as np

STEP = 1.1
LARGEST_WEIGHT = 100.0
"""Weights beyond this, either way, are held here: brackets in brackets would otherwise overflow."""

SMALLEST_MEAN = 0.01  # of the spread
LARGEST_CORRECTION = 2.0
CHUNKS = 8
"""The most chunks of one prompt: every step of a drawing looks at all of them."""

_MARKS = re.compile(r"\\[\\()\[\]]|[(\[\])]|:\s*+([+-]?+(?:\d++(?:\.\d*+)?|\.\d++))\s*+\)|[^\\()\[\]:]++|[\\:]")
_BREAK = re.compile(r"\bBREAK\b")
_TYPED = re.compile(r"\S+", re.ASCII)  # as Tokenizer.encode parts them


class Piece(NamedTuple):
    """A part of a prompt, and how strong its words are; 1 is plain."""

    text: str
    weight: float


class Word(Protocol):
    """One word as a tokenizer spells it. text: as it was typed, up to the next one."""

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def text(self) -> str: ...


class Speller(Protocol):
    """What is wanted of a tokenizer: `text.Tokenizer` has it."""

    context: int

    def words(self, text: str) -> Sequence[Word]:
        """The words of a text of any length."""

    def row(self, ids: Sequence[int]) -> np.ndarray:
        """(context,) int64: the start, these ids, the end, padding."""


class Chunk(NamedTuple):
    """What goes through the text tower at once. ids: (N,) int64; weights: (N,) float32, 1 where no word stands."""

    ids: np.ndarray
    weights: np.ndarray


def parse(prompt: str) -> list[list[Piece]]:
    """The sections that BREAK parts, at least one, each a list of pieces of which no two neighbours weigh the same.

    Takes time in proportion to the prompt's length, however deep the brackets, and never raises.
    """
    sections: list[list[Piece]] = [[]]
    for text, weight in _weighed(prompt):
        first, *others = _BREAK.split(text)
        sections[-1].append(Piece(first, weight))
        sections += [[Piece(one, weight)] for one in others]
    merged = [_merged(section) for section in sections]
    return [section for section in merged if any(piece.text.strip(string.whitespace) for piece in section)] or [
        [Piece("", 1.0)]
    ]


def chunks(prompt: str, speller: Speller) -> tuple[list[Chunk], tuple[str, ...]]:
    """The prompt as rows for the text tower, 1 to CHUNKS of them, and the words that did not fit, as typed."""
    room = speller.context - 2
    full: list[list[_Part]] = []
    for section in parse(prompt):
        words = ((word, piece.weight) for piece in section for word in speller.words(piece.text))
        full += _packed((part for word, weight in words for part in _parts(word, weight, room)), room)
    cut = "".join(part.text for chunk in full[CHUNKS:] for part in chunk)
    return [_chunk(parts, speller) for parts in full[:CHUNKS]], tuple(_TYPED.findall(cut))


def weigh(states: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """States (N, D) times the weights (N,) of their tokens, then the mean over all of them put back where it was.

    As A1111's web UI does ("original" emphasis). Where the mean is near zero that would multiply by chance: the factor
    is left out for a mean below SMALLEST_MEAN of the spread, and where it is beyond LARGEST_CORRECTION. Weights of 1
    give the very same array back.
    """
    if (weights == 1).all():
        return states
    weighed = states * weights[:, None]
    before, after = float(states.mean()), float(weighed.mean())
    factor = before / after if after and abs(before) >= SMALLEST_MEAN * float(states.std()) else 1.0
    return np.asarray(weighed * np.float32(factor if 1 / LARGEST_CORRECTION <= factor <= LARGEST_CORRECTION else 1.0))


# inside


class _Part(NamedTuple):
    """A word, or a part of one that is longer than a chunk."""

    ids: Sequence[int]
    text: str
    weight: float


def _parts(word: Word, weight: float, room: int) -> Iterator[_Part]:
    for i in range(0, len(word.ids), room):
        yield _Part(word.ids[i : i + room], "" if i else word.text, weight)


def _packed(parts: Iterable[_Part], room: int) -> list[list[_Part]]:
    """At least one chunk, each of at most `room` ids."""
    packed: list[list[_Part]] = [[]]
    used = 0
    for part in parts:
        if used + len(part.ids) > room:
            packed.append([])
            used = 0
        packed[-1].append(part)
        used += len(part.ids)
    return packed


def _chunk(parts: Sequence[_Part], speller: Speller) -> Chunk:
    ids = speller.row([one for part in parts for one in part.ids])
    weights = np.ones(len(ids), np.float32)
    inner = [part.weight for part in parts for _ in part.ids]
    weights[1 : len(inner) + 1] = inner
    return Chunk(ids, weights)


def _merged(section: Iterable[Piece]) -> list[Piece]:
    """Neighbours of one weight as one piece, so that brackets that change nothing change nothing."""
    runs = groupby((piece for piece in section if piece.text), key=lambda piece: piece.weight)
    return [Piece("".join(piece.text for piece in run), weight) for weight, run in runs]


def _weighed(prompt: str) -> Iterator[tuple[str, float]]:
    """Every bit of text with its weight.

    Brackets with a number stand one in another, so their product is a stack; the others are only counted, one up and
    one down, which makes ([x]) exactly 1.
    """
    marks = [(mark.group(), mark[1]) for mark in _MARKS.finditer(prompt)]
    opening, numbers = _pairs(marks)
    products, net = [1.0], 0
    for i, (text, _) in enumerate(marks):
        start = opening.get(i, i)
        if start != i and start in numbers:
            products.pop()
        elif start != i:
            net -= 1 if marks[start][0] == "(" else -1
        elif text in ("(", "["):
            if i in numbers:
                products.append(_held(products[-1] * numbers[i]))
            else:
                net += 1 if text == "(" else -1
        else:
            weight = _held(products[-1] * STEP ** max(-LARGEST_WEIGHT, min(net, LARGEST_WEIGHT)))
            yield (text[1:] if text[0] == "\\" and len(text) > 1 else text), weight


def _pairs(marks: Sequence[tuple[str, str | None]]) -> tuple[dict[int, int], dict[int, float]]:
    """For every mark that closes a bracket, the mark that opened it; for every bracket with a number, the number."""
    waiting: dict[str, list[int]] = {"(": [], "[": []}
    opening: dict[int, int] = {}
    numbers: dict[int, float] = {}
    for i, (text, number) in enumerate(marks):
        if text in waiting:
            waiting[text].append(i)
        elif (text == ")" or number) and waiting["("]:
            opening[i] = waiting["("].pop()
            if number:
                numbers[opening[i]] = float(number)
        elif text == "]" and waiting["["]:
            opening[i] = waiting["["].pop()
    return opening, numbers


def _held(weight: float) -> float:
    return max(-LARGEST_WEIGHT, min(weight, LARGEST_WEIGHT))
