"""Does a drawing obey its prompt? Prompts made from scenes, pictures read by the referee, each clause right or wrong.

The prompts are true captions of composed scenes, so the scene itself is the truth of the prompt, and its own picture
shows how often the referee is right where the answer is known: that figure stands beside every rate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cartouche.data.captions import FULL, LANGUAGES, caption, countable
from cartouche.data.emoji import Drawing
from cartouche.data.scenes import Composer, Mixture, Scene, rng_of
from cartouche.metrics.intervals import wilson
from cartouche.read.referee import Reading, Sighting

PLAIN = {"two_tone": 0.0, "tint": 0.0, "symbols": 0.0}
PEOPLE = ("People & Body", "Smileys & Emotion")
LINES: dict[str, Mixture] = {
    "single": Mixture(count=(1, 0, 0, 0), **PLAIN),
    "two": Mixture(count=(0, 1, 0, 0), same=0.0, **PLAIN),
    "counting": Mixture(count=(0, 1, 1, 1), same=1.0, **PLAIN),
}


@dataclass(frozen=True)
class Ask:
    """A prompt and the scene that it describes."""

    prompt: str
    language: str
    scene: Scene


def hundred_names(drawings: Iterable[Drawing]) -> list[str]:
    """100 concepts with one-word countable English names that most styles draw, one a family, chosen by a hash."""
    styles: dict[str, set[str]] = {}
    first: dict[str, Drawing] = {}
    for d in drawings:
        if d.scene and " " not in d.name_en and countable(d, "en") and d.group not in PEOPLE:
            styles.setdefault(d.concept, set()).add(d.style)
            first.setdefault(d.concept, d)
    common = [c for c in styles if len(styles[c]) >= 7]
    common.sort(key=lambda c: hashlib.sha256(f"hundred names|{c}".encode()).hexdigest())
    chosen: dict[str, str] = {}
    for concept in common:
        chosen.setdefault(first[concept].family, concept)
    return list(chosen.values())[:100]


def asks(line: str, drawings: Sequence[Drawing], count: int, seed: int = 77) -> list[Ask]:
    """`count` prompts of one line over `drawings`, English and French in turn."""
    composer = Composer(drawings, seed, mixture=LINES[line])
    made = []
    for i in range(count):
        scene, language = composer[i], LANGUAGES[i % 2]
        made.append(Ask(caption(scene, rng_of(seed + 1, i), language, FULL), language, scene))
    return made


def verdict(line: str, scene: Scene, reading: Reading, family: Mapping[str, str]) -> dict[str, bool]:
    """Each clause of the prompt, right or wrong; a clause that cannot be judged is left out."""
    said = {"background": reading.background == scene.background.colours, "style": reading.style == scene.style}
    if line == "counting":
        return said | {f"count {len(scene.objects)}": len(reading.objects) == len(scene.objects)}
    found = matched(scene, reading.objects, family)
    if line == "single":
        return said | {"object": found[0] is not None}
    both = all(found)
    said |= {"two objects": both}
    where = scene.relation(0, 1)
    if both and where:
        said["position"] = holds(where, *(one.box for one in found if one))
    return said


def matched(scene: Scene, seen: Sequence[Sighting], family: Mapping[str, str]) -> list[Sighting | None]:
    """For each object of the scene a sighting of its family among the surest, none used twice."""
    left = list(seen[: len(scene.objects)])
    found: list[Sighting | None] = []
    for placed in scene.objects:
        hit = next((s for s in left if family[s.concept] == placed.drawing.family), None)
        if hit is not None:
            left.remove(hit)
        found.append(hit)
    return found


def holds(where: str, a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether box a lies to box b as the word says, by the centres."""
    axis = 0 if where in ("left", "right") else 1
    here, there = a[axis] + a[axis + 2], b[axis] + b[axis + 2]
    return here < there if where in ("left", "above") else here > there


def rates(verdicts: Sequence[Mapping[str, bool]]) -> dict[str, dict[str, float]]:
    """Per clause: the share that is right, its 95 % interval (Wilson 1927) and how many were judged."""
    clauses = sorted({clause for one in verdicts for clause in one})
    return {clause: rate([one[clause] for one in verdicts if clause in one]) for clause in clauses}


def rate(right: Sequence[bool]) -> dict[str, float]:
    """Share right with its Wilson interval."""
    share, low, high = wilson(sum(right), len(right))
    return {"rate": share, "low": low, "high": high, "n": len(right)}
