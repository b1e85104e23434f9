"""Answers to visual questions: the VQA accuracy (Antol et al. 2015) with the normaliser of its own evaluation code.

What that code does (as of 2021) is kept, oddities too: a comma between digits lets all punctuation vanish rather than
become blanks, "none" is a number, and where all people said the same nothing is normalised, on either side.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from cartouche.config import CartoucheError

ENOUGH = 3  # people who must have said the same for full marks
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {word: str(i) for i, word in enumerate("zero one two three four five six seven eight nine ten".split())}
NUMBERS["none"] = "0"
ONCE = (  # contractions written without their apostrophe
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've "
    "shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're "
    "there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd "
    "where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're "
    "you've"
)
OFTEN = (  # contractions of several apostrophes, one of which is missing
    "couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've someone'd've "
    "something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'd've y'all'll you'd've"
)
CONTRACTIONS = {whole.replace("'", ""): whole for whole in ONCE.split()}
CONTRACTIONS |= {
    whole[:i] + whole[i + 1 :]: whole for whole in OFTEN.split() for i, letter in enumerate(whole) if letter == "'"
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the wrong way round, as there

_PERIOD = re.compile(r"\.(?!\d)")
_NUMERIC_COMMA = re.compile(r"\d,\d")


def normal(answer: str) -> str:
    """An answer as it is compared: lower case, digits, no punctuation, no articles, apostrophes restored."""
    words = _unpunctuated(_stripped(answer)).lower().split()
    kept = [NUMBERS.get(word, word) for word in words]
    return " ".join(CONTRACTIONS.get(word, word) for word in kept if word not in ARTICLES)


def accuracy(said: str, people: Sequence[str]) -> float:
    """One answer's accuracy: the mean over people of min(how many of the others said so / 3, 1).

    people: their answers, ten in VQA. Each is left out once, so a model is held to what people reach among themselves.
    """
    if isinstance(people, str) or len(people) < 2:
        raise CartoucheError("wanted the answers of two people or more, as a list")
    differ = len({_stripped(one) for one in people}) > 1
    mine, *theirs = [normal(one) if differ else _stripped(one) for one in (said, *people)]
    agree = np.array([one == mine for one in theirs], float)
    return float(np.minimum((agree.sum() - agree) / ENOUGH, 1).mean())


def mean_accuracy(said: Sequence[str], people: Sequence[Sequence[str]]) -> float:
    """The mean accuracy over questions."""
    if len(said) != len(people) or not said:
        raise CartoucheError(f"{len(said)} answers to {len(people)} questions given; wanted as many of both")
    return float(np.mean([accuracy(one, truth) for one, truth in zip(said, people, strict=True)]))


def _stripped(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _unpunctuated(answer: str) -> str:
    """Without punctuation: beside a blank, or where a comma stands between digits, it vanishes; else it is a blank."""
    vanish = _NUMERIC_COMMA.search(answer) is not None
    out = answer
    for mark in PUNCTUATION:
        out = out.replace(mark, "" if vanish or f"{mark} " in answer or f" {mark}" in answer else " ")
    return _PERIOD.sub("", out)
