"""English words without their endings: Porter's algorithm (1980, "An algorithm for suffix stripping")."""

from __future__ import annotations

import re
from functools import lru_cache

_STEP2 = (
    "ational ate tional tion enci ence anci ance izer ize abli able alli al entli ent eli e ousli ous ization ize "
    "ation ate ator ate alism al iveness ive fulness ful ousness ous aliti al iviti ive biliti ble"
)
_STEP3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
_STEP4 = "al ance ence er ic able ible ant ement ment ent ou ism ate iti ous ive ize sion tion"


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """The stem of a lower-case English word; words of one or two letters, or of other alphabets, stay as they are."""
    if len(word) < 3 or not (word.isascii() and word.isalpha()):
        return word
    word = _plural(word)
    word = _past(word)
    if word.endswith("y") and _vowel(word[:-1]):
        word = word[:-1] + "i"
    word = _replaced(word, _PAIRS2)
    word = _replaced(word, _STEP3)
    return _tidy(_cut(word))


def _plural(word: str) -> str:
    """Step 1a."""
    for ending, instead in (("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", "")):
        if word.endswith(ending):
            return word[: -len(ending)] + instead
    return word


def _past(word: str) -> str:
    """Step 1b: -eed, -ed, -ing, and what they leave behind."""
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    ending = next((one for one in ("ed", "ing") if word.endswith(one)), "")
    if not ending or not _vowel(word[: -len(ending)]):
        return word
    word = word[: -len(ending)]
    if word.endswith(("at", "bl", "iz")):
        return word + "e"
    if _double(word) and word[-1] not in "lsz":
        return word[:-1]
    return word + "e" if _measure(word) == 1 and _short(word) else word


def _replaced(word: str, pairs: dict[str, str]) -> str:
    """Steps 2 and 3: the longest ending of the table, replaced where something of measure 1 stands before it."""
    ending = max((one for one in pairs if word.endswith(one)), key=len, default="")
    if not ending or not _measure(word[: -len(ending)]):
        return word
    return word[: -len(ending)] + pairs[ending]


def _cut(word: str) -> str:
    """Step 4: the longest ending goes where something of measure 2 stands before it."""
    ending = max((one for one in _STEP4.split() if word.endswith(one)), key=len, default="")
    kept = ending[0] if ending in ("sion", "tion") else ""
    before = word[: len(word) - len(ending)] + kept
    return before if ending and _measure(before) > 1 else word


def _tidy(word: str) -> str:
    """Step 5: a last e, and a double l."""
    if word.endswith("e"):
        measure = _measure(word[:-1])
        if measure > 1 or (measure == 1 and not _short(word[:-1])):
            word = word[:-1]
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word


def _letters(word: str) -> str:
    """c for consonants, v for vowels; y is a vowel after a consonant."""
    kinds = ""
    for letter in word:
        kinds += "v" if letter in "aeiou" or (letter == "y" and kinds.endswith("c")) else "c"
    return kinds


def _measure(word: str) -> int:
    """How many times a consonant follows a vowel."""
    return len(re.findall("v+c", _letters(word)))


def _vowel(word: str) -> bool:
    return "v" in _letters(word)


def _double(word: str) -> bool:
    return len(word) > 1 and word[-1] == word[-2] and _letters(word)[-1] == "c"


def _short(word: str) -> bool:
    """Ends with consonant, vowel, consonant, the last not w, x or y."""
    return _letters(word)[-3:] == "cvc" and word[-1] not in "wxy"


_WORDS2 = _STEP2.split()
_PAIRS2 = dict(zip(_WORDS2[::2], _WORDS2[1::2], strict=True))
