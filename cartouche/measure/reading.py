"""How well pictures are read: held-out scenes, whose truth is known, against what the readers say of them.

Every scene is given by a seed and a number, so the set is a few numbers, not pictures. Things are told apart by family
(emoji.py): some sets draw several concepts with one picture. Each figure comes with its 95 % interval and the number of
its cases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from cartouche.data.captions import LANGUAGES
from cartouche.data.dialogue import described
from cartouche.data.emoji import Drawing, Pack
from cartouche.data.graphs import Lexicon, graph_f1, scene_graph
from cartouche.data.questions import KINDS, Asker, Question
from cartouche.data.scenes import Composer, Mixture, Placed, Scene, render, rng_of
from cartouche.images import from_uint8
from cartouche.measure.obedience import holds
from cartouche.metrics import masks
from cartouche.metrics.boxes import Boxes, average_precision, iou
from cartouche.metrics.intervals import Interval, bootstrap, wilson
from cartouche.metrics.questions import normal

SEED = 2000
"""Of the held-out scenes; no training reads this stream."""
COUNT = 2000
MIXTURE = Mixture(count=(1, 1, 1, 1), same=0.3, symbols=0.3)
ASKED = 0x45C
FAINT = 0.01  # least score of a box that counts for average precision
CHUNK = 50  # pictures held at a time
Figure = dict[str, float]


class Finds(Protocol):
    """What is asked of a locator (read/locate.py)."""

    def look(self, pictures: Any, queries: Sequence[str], threshold: float | None = None, **more: Any) -> list[Any]: ...


class Describes(Protocol):
    """What is asked of a describer (read/describe.py)."""

    def caption(self, pictures: np.ndarray, language: str = "en") -> list[Any]: ...

    def answers(self, pictures: np.ndarray, questions: Sequence[str], language: str = "en") -> list[Any]: ...

    def scenes(self, pictures: np.ndarray) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class Held:
    """Scenes of one split of a pack, drawn when they are looked at."""

    pack: Pack
    scenes: tuple[Scene, ...]

    @classmethod
    def of(cls, pack: Pack, split: str = "train", count: int = COUNT, seed: int = SEED) -> Held:
        """`count` scenes: of train drawings in combinations never seen, of held-out styles (pairs), or of test."""
        composer = Composer(pack.of(split), seed, mixture=MIXTURE)
        return cls(pack, tuple(composer[i] for i in range(count)))

    def pixels(self, first: int, count: int = CHUNK) -> list[np.ndarray]:
        """Some of the pictures, (H, W, 3) uint8 each."""
        return [render(self.pack, scene)[0] for scene in self.scenes[first : first + count]]

    def pictures(self, chosen: Sequence[int]) -> np.ndarray:
        """The pictures of these numbers, (B, 3, H, W) in [-1, 1]."""
        return from_uint8(np.stack([render(self.pack, self.scenes[i])[0] for i in chosen]))


# finding


def found_in(held: Held, locator: Finds, drawings: Sequence[Drawing], threshold: float = FAINT) -> list[Boxes]:
    """All that the locator finds with the name of every concept asked for at once; names are families here."""
    family = {drawing.name_en: drawing.family for drawing in drawings}
    found: list[Boxes] = []
    for first in range(0, len(held.scenes), CHUNK):
        for seen in locator.look(held.pixels(first), list(family), threshold, template="{}", masks=False):
            corners = np.array([one.box for one in seen]).reshape(-1, 4)
            found.append(Boxes(corners, [family[one.name] for one in seen], np.array([one.score for one in seen])))
    return found


class Recalls(Protocol):
    """What is asked of a recaller (read/recall.py)."""

    def look(self, pictures: Any, threshold: float | None = None) -> list[list[Any]]: ...


def recalled_in(held: Held, recaller: Recalls, threshold: float = FAINT) -> list[Boxes]:
    """All things that the recaller finds, by their families."""
    found: list[Boxes] = []
    for first in range(0, len(held.scenes), CHUNK):
        for seen in recaller.look(held.pixels(first), threshold):
            corners = np.array([one.box for one in seen]).reshape(-1, 4)
            names = [one.recalled.drawing.family for one in seen]
            found.append(Boxes(corners, names, np.array([one.score for one in seen])))
    return found


def true_boxes(held: Held) -> list[Boxes]:
    """What is there."""
    return [
        Boxes(np.array([p.box for p in scene.objects], float), [p.drawing.family for p in scene.objects])
        for scene in held.scenes
    ]


def finding(held: Held, found: Sequence[Boxes], threshold: float) -> dict[str, Any]:
    """mAP with and without names, the share named right and counts, from all boxes found.

    threshold: the least score of what is said to be there, for counts. An object is named right where the surest box
    on it (IoU at least .5) has its family.
    """
    truth = true_boxes(held)
    named = average_precision(found, truth)
    boxes = average_precision([_nameless(one) for one in found], [_nameless(one) for one in truth])
    right = [one for seen, there in zip(found, truth, strict=True) for one in _named(seen, there)]
    counts = [
        (int((np.asarray(seen.scores) >= threshold).sum()), len(there.names))
        for seen, there in zip(found, truth, strict=True)
    ]
    return {
        "mAP@.5": named.map50,
        "mAP@[.5:.95]": named.map,
        "mAP@.5 of boxes alone": boxes.map50,
        "mAP@[.5:.95] of boxes alone": boxes.map,
        "classes": len(named.classes),
        "threshold": threshold,
        "name": share(right),
        "count": share([said == there for said, there in counts]),
        "count by number": {
            str(n): share([said == there for said, there in counts if there == n])
            for n in sorted({there for _, there in counts})
        },
    }


def best_threshold(found: Sequence[Boxes], truth: Sequence[Boxes]) -> float:
    """The least score that counts most pictures right; to be chosen on other scenes than are reported."""
    options = np.round(np.arange(0.05, 0.75, 0.025), 3)
    wanted = np.array([len(one.names) for one in truth])
    said = np.array([[(np.asarray(one.scores) >= t).sum() for one in found] for t in options])
    return float(options[(said == wanted).mean(1).argmax()])


class Spot(NamedTuple):
    """Something seen: its family, its box, and its pixels (H, W), None where they were not asked for."""

    family: str
    box: Sequence[float]
    mask: np.ndarray | None


Sees = Callable[[np.ndarray, Mapping[str, str]], list[Spot]]
"""What is seen in a picture (H, W, 3) uint8 of which the names of what is there, with their families, are known."""


def asking(locator: Finds, threshold: float | None = None, with_masks: bool = True) -> Sees:
    """A locator that is asked for the names of what is there."""

    def sees(pixels: np.ndarray, names: Mapping[str, str]) -> list[Spot]:
        (seen,) = locator.look([pixels], list(names), threshold, template="{}", masks=with_masks)
        return [Spot(names[one.name], one.box, one.mask) for one in seen]

    return sees


def remembering(recaller: Recalls, threshold: float | None = None) -> Sees:
    """A recaller, which is told nothing."""

    def sees(pixels: np.ndarray, names: Mapping[str, str]) -> list[Spot]:
        (seen,) = recaller.look([pixels], threshold)
        return [Spot(one.recalled.drawing.family, one.box, one.mask) for one in seen]

    return sees


def positions(held: Held, sees: Sees) -> Figure:
    """Of two different things: whether the surest boxes seen of each lie to each other as the things do."""
    right = []
    for scene, (a, b), pixels in _pairs(held):
        seen = sees(pixels, _names(scene))
        first = [next((one for one in seen if one.family == p.drawing.family), None) for p in (a, b)]
        right.append(all(first) and holds(scene.relation(0, 1), *(one.box for one in first if one)))
    return share(right)


def masking(held: Held, sees: Sees) -> dict[str, Any]:
    """mIoU: for each family in a scene, the pixels seen of it against all pixels of its things."""
    shared: list[float] = []
    for scene in held.scenes:
        pixels, parts = render(held.pack, scene)
        shared += _shared(scene, parts, sees(pixels, _names(scene)))
    return interval(bootstrap(np.array(shared))) | {"n": len(shared)}


# saying


def answering(held: Held, describer: Describes, per_kind: int = 500) -> dict[str, Any]:
    """Accuracy of answers by kind and language, and of the same answers given to a blank picture."""
    asker = Asker(held.pack.of("train"))
    report: dict[str, Any] = {}
    for language in LANGUAGES:
        for kind in KINDS:
            asked = _questions(held, asker, language, kind, per_kind)
            chosen, questions = [i for i, _ in asked], [q for _, q in asked]
            if asked:
                blank = _answers(describer, None, questions, held)
                seen = _answers(describer, chosen, questions, held)
                report[f"{kind}, {language}"] = {"accuracy": share(seen), "blank picture": share(blank)}
    return report


def captioning(held: Held, describer: Describes, lexicon: Lexicon, count: int = 1000) -> dict[str, Any]:
    """Graph-F1 of captions parsed back, by language, and the share of things said that are not there."""
    report: dict[str, Any] = {}
    scenes = held.scenes[:count]
    for language in LANGUAGES:
        scores, invented = [], []
        for first in range(0, len(scenes), CHUNK):
            chosen = range(first, min(first + CHUNK, len(scenes)))
            for i, said in zip(chosen, describer.caption(held.pictures(chosen), language), strict=True):
                graph = lexicon.parse(said.text, language)
                scores.append(graph_f1(graph, scene_graph(scenes[i], language)))
                there = {p.drawing.family for p in scenes[i].objects}
                invented += [thing.family not in there for thing in graph.things]
        report[language] = {"graph-F1": interval(bootstrap(np.array(scores))) | {"n": len(scores)}}
        report[language]["invented things"] = share(invented) if invented else None
    return report


def telling(held: Held, describer: Describes, count: int = 200) -> dict[str, Any]:
    """Scenes said as JSON: how many numbers of things, grounds and styles are right."""
    right: dict[str, list[bool]] = {"things": [], "background": [], "style": []}
    for i in range(0, min(count, len(held.scenes)), 10):
        chosen = range(i, min(i + 10, len(held.scenes)))
        for one, said in zip(chosen, describer.scenes(held.pictures(chosen)), strict=True):
            truth = described(held.scenes[one])
            right["things"].append(sum(t["count"] for t in said["objects"]) == len(held.scenes[one].objects))
            right["background"].append(said["background"] == truth["background"] and said["split"] == truth["split"])
            right["style"].append(said["style"] == truth["style"])
    return {name: share(each) for name, each in right.items()}


# parts


def share(right: Sequence[bool]) -> Figure:
    """How many are right, with Wilson's interval and their number."""
    return interval(wilson(float(np.sum(right)), len(right))) | {"n": len(right)} if len(right) else {"n": 0}


def interval(found: Interval) -> Figure:
    """As JSON has it."""
    return {"value": found.value, "low": found.low, "high": found.high}


def _names(scene: Scene) -> dict[str, str]:
    """The names of what is there, with their families."""
    return {p.drawing.name_en: p.drawing.family for p in scene.objects}


def _shared(scene: Scene, parts: np.ndarray, said: Sequence[Spot]) -> list[float]:
    """IoU for each family in a scene of the pixels seen of it, and all of its things' parts (n, H, W)."""
    found = []
    for family in dict.fromkeys(p.drawing.family for p in scene.objects):
        truth = np.asarray(parts[[p.drawing.family == family for p in scene.objects]].any(0))
        said_there = [one.mask for one in said if one.family == family and one.mask is not None]
        all_said = np.any(said_there or [np.zeros_like(truth)], axis=0)
        found.append(float(masks.iou(all_said[None], truth[None])[0, 0]))
    return found


def _nameless(boxes: Boxes) -> Boxes:
    return Boxes(boxes.corners, ["thing"] * len(boxes.names), boxes.scores)


def _named(seen: Boxes, there: Boxes) -> list[bool]:
    """For each true object whether the surest box on it has its name."""
    shared = iou(there.corners, seen.corners)  # (M, N), the surest first
    hits = [np.flatnonzero(row >= 0.5) for row in shared]
    return [bool(len(hit)) and seen.names[hit[0]] == name for hit, name in zip(hits, there.names, strict=True)]


def _pairs(held: Held) -> list[tuple[Scene, tuple[Placed, Placed], np.ndarray]]:
    """The scenes of two things of different families that lie clearly to each other."""
    chosen = []
    for scene in held.scenes:
        if len(scene.objects) == 2 and len({p.drawing.family for p in scene.objects}) == 2 and scene.relation(0, 1):
            chosen.append((scene, (scene.objects[0], scene.objects[1]), render(held.pack, scene)[0]))
    return chosen


def _questions(held: Held, asker: Asker, language: str, kind: str, most: int) -> list[tuple[int, Question]]:
    """At most so many questions of one kind, each with the number of its scene."""
    asked: list[tuple[int, Question]] = []
    for i, scene in enumerate(held.scenes):
        question = asker.ask(scene, rng_of(ASKED, i), language, kind)
        if question is not None:
            asked.append((i, question))
        if len(asked) == most:
            break
    return asked


def _answers(
    describer: Describes, chosen: Sequence[int] | None, questions: Sequence[Question], held: Held
) -> list[bool]:
    """Whether each question is answered right, looking at the scenes chosen or, for None, at plain gray."""
    right: list[bool] = []
    family = _families(held.pack, questions[0].language)
    for first in range(0, len(questions), CHUNK):
        some = questions[first : first + CHUNK]
        size = held.scenes[0].size
        blank = np.zeros((len(some), 3, size, size), np.float32)
        pictures = blank if chosen is None else held.pictures(chosen[first : first + CHUNK])
        said = describer.answers(pictures, [one.text for one in some], some[0].language)
        right += [_same(one.text, asked.answer, family) for one, asked in zip(said, some, strict=True)]
    return right


def _same(said: str, wanted: str, family: Mapping[str, str]) -> bool:
    """The same answer, as VQA compares them, or a name of the same family."""
    a, b = (normal(_joined(one)) for one in (said, wanted))
    return a == b or (b in family and family.get(a) == family[b])


def _joined(text: str) -> str:
    """An answer without the blanks that a tokenizer puts around signs."""
    return "".join(text.lower().split())


def _families(pack: Pack, language: str) -> dict[str, str]:
    return {normal(_joined(d.name(language))): d.family for d in pack.drawings}
