"""Which drawings are for training and which are kept for choices and reports: fixed by hashes, once for ever."""

import hashlib
import re
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

import numpy as np

SEED = "cartouche-emoji-split-v1"
TEST, VAL, OVERSHOOT = 0.05, 0.025, 2  # shares of each group's concepts; concepts a whole family may exceed them by
PAIRED, PAIR_STYLES, UNLIKE = 0.20, 5, 0.06
HELD_OUT_STYLES = ("outline", "noto", "twemoji", "blob", "emojitwo", "fxemoji")
RULE = (
    "sha256(seed+'|concept|'+family) orders the families of each Unicode group; whole families go to test until "
    f">={TEST:.0%} of the group's concepts (overshoot at most {OVERSHOOT}), then to val until >={VAL:.1%}, the rest "
    f"train. pairs: single-concept families of train with >={PAIR_STYLES} styles, sha256(seed+'|pair|'+concept)"
    f"<{PAIRED:.2f}, one style held out among {'/'.join(HELD_OUT_STYLES)} whose 32x32 mean absolute difference to "
    f"every other drawing of the concept exceeds {UNLIKE}."
)


def digest(*words: str) -> str:
    """sha256 of the seed and the words, joined by "|"."""
    return hashlib.sha256("|".join((SEED, *words)).encode()).hexdigest()


def split_concepts(group: Mapping[str, str], family: Mapping[str, str]) -> dict[str, str]:
    """Concept id -> "train", "val" or "test"; a family stays together. group, family: concept id -> name."""
    side: dict[str, str] = {}
    sizes = _counted(family.values())
    for name in sorted(set(group.values())):
        concepts = [concept for concept in group if group[concept] == name]
        wanted = {"test": ceil(TEST * len(concepts)), "val": ceil(VAL * len(concepts))}
        taken = {"test": 0, "val": 0}
        for one in sorted({family[concept] for concept in concepts} - side.keys(), key=lambda f: digest("concept", f)):
            fits = [s for s in taken if taken[s] < wanted[s] and taken[s] + sizes[one] <= wanted[s] + OVERSHOOT]
            side[one] = fits[0] if fits else "train"
            if fits:
                taken[fits[0]] += sizes[one]
    return {concept: side[family[concept]] for concept in group}


def held_out_pairs(
    styles: Mapping[str, list[str]],
    family: Mapping[str, str],
    side: Mapping[str, str],
    thumbnail: Callable[[str, str], np.ndarray],
) -> set[tuple[str, str]]:
    """The (style, concept) pairs kept from training although both are trained on apart.

    styles: concept id -> its styles; thumbnail(style, concept) -> (32, 32, 3) in [0, 1].
    """
    sizes, held = _counted(family.values()), set()
    for concept, drawn in styles.items():
        chosen = int(digest("pair", concept), 16) < PAIRED * 2**256
        if side[concept] != "train" or sizes[family[concept]] > 1 or len(drawn) < PAIR_STYLES or not chosen:
            continue
        small = {style: thumbnail(style, concept) for style in drawn}
        candidates = [style for style in HELD_OUT_STYLES if style in small]
        for style in sorted(candidates, key=lambda one: digest("pairstyle", concept, one)):
            if min(np.abs(small[style] - small[other]).mean() for other in small if other != style) > UNLIKE:
                held.add((style, concept))
                break
    return held


def named_in_training(
    concepts: Mapping[str, dict[str, Any]], side: Mapping[str, str], where: str, language: str
) -> list[str]:
    """The concepts of val or test whose name uses only words that names and keywords of train concepts use."""
    known = set()
    for concept, about in concepts.items():
        if side[concept] == "train":
            for text in (about[f"name_{language}"], *about[f"keywords_{language}"]):
                known |= _words(text)
    return sorted(c for c in concepts if side[c] == where and _words(concepts[c][f"name_{language}"]) <= known)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _counted(values: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts
