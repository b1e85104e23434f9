"""SceneEval's prompts: 553 in ten lines, a pure function of the names that the judge knows.

Six lines have the form of GenEval (Ghosh et al. 2023): one object, two, counting, colours, position, colours of two
objects. Four more: style, background, negative prompts, and the same scenes said in French. A prompt is a caption of a
plan, which says what must be in the picture; no drawing is needed to make one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from cartouche.data import palette
from cartouche.data.captions import Manner, caption, countable, sayable_colour
from cartouche.data.emoji import Drawing
from cartouche.data.scenes import DARK, Background, Placed, Scene, place, rng_of, settle

SEED = 553
SIZE = 128
STYLES = ("3d", "blob", "color", "emojitwo", "flat", "fxemoji", "noto", "outline", "twemoji")
RELATIONS = ("left", "right", "above", "below")
LINES = {  # how many prompts of each
    "single object": 55,
    "two objects": 55,
    "counting": 56,
    "colours": 55,
    "position": 56,
    "colour attribution": 56,
    "style": 54,
    "background": 55,
    "negative prompt": 55,
    "French": 56,
}
FORM = tuple(LINES)[:6]  # the lines that GenEval has too
QUICK = 100
AVOIDED = 4  # backgrounds that a negative prompt names, of eleven


@dataclass(frozen=True)
class Name:
    """A thing that can be asked for, and the styles that no drawing shows it in."""

    concept: str
    en: str
    fr: str
    missing: tuple[str, ...]

    def drawing(self, style: str) -> Drawing:
        """A stand-in without pixels: what the composer and the grammar of captions need."""
        return Drawing(
            key=f"{style}-{self.concept}",
            concept=self.concept,
            family=self.concept,
            style=style,
            split="train",
            scene=True,
            group="",
            name_en=self.en,
            name_fr=self.fr,
            keywords_en=(),
            keywords_fr=(),
            colors=(),
            bbox=(0, 0, SIZE, SIZE),
            shard="",
            offset=0,
            bytes=0,
        )


@dataclass(frozen=True)
class Plan:
    """What a picture shows. colours: the colour of each object, "" where it has its own; relation: of the first object
    to the second, "" where it does not matter."""

    concepts: tuple[str, ...]
    colours: tuple[str, ...]
    style: str
    background: str
    relation: str = ""


@dataclass(frozen=True)
class Demand:
    """One prompt and what it demands. form: the line whose rule judges it, `line` itself but for French.

    twin: the number of the English prompt of the same scene, whose seed it shares; None for English prompts.
    """

    line: str
    form: str
    number: int
    prompt: str
    negative_prompt: str
    language: str
    seed: int
    plan: Plan
    avoided: tuple[str, ...] = ()
    twin: int | None = None


@cache
def names() -> dict[str, Name]:
    """The hundred names that the judge can tell apart, by concept."""
    rows = json.loads(Path(__file__).with_name("names.json").read_text(encoding="utf-8"))
    return {row["concept"]: Name(row["concept"], row["en"], row["fr"], tuple(row["missing"])) for row in rows}


@cache
def demands() -> tuple[Demand, ...]:
    """All 553, the lines in turn; the first hundred hold ten of each line."""
    made: list[Demand] = []
    numbers: dict[tuple[str, int], int] = {}
    for i in range(max(LINES.values())):
        for line, count in LINES.items():
            if i < count:
                numbers[line, i] = len(made)
                made.append(_french(i, len(made), made, numbers) if line == "French" else _demand(line, i, len(made)))
    return tuple(made)


def scene_of(plan: Plan, rng: np.random.Generator, drawing: Callable[[str, str], Drawing] | None = None) -> Scene:
    """A scene that shows the plan, its objects where chance puts them; half of the scenes are arranged plainly.

    drawing: what shows a concept in a style; by default stand-ins without pixels.
    """
    find = drawing or (lambda concept, style: names()[concept].drawing(style))
    drawings = [find(concept, plan.style) for concept in plan.concepts]
    ground = Background((plan.background,), (palette.shade(plan.background, rng),))
    arrange = settle if rng.random() < 0.5 else place
    while True:
        boxes = arrange(drawings, SIZE, rng)
        objects = [Placed(*one) for one in zip(drawings, boxes, [False] * len(boxes), plan.colours, strict=True)]
        scene = Scene(SIZE, plan.style, ground, tuple(objects))
        if not plan.relation or scene.relation(0, 1) == plan.relation:
            return scene


# the lines


def _demand(line: str, i: int, number: int) -> Demand:
    """Prompt i of a line, in English."""
    rng = rng_of(SEED + 1 + list(LINES).index(line), i)
    plan = _PLANS[line](i, rng)
    avoided: tuple[str, ...] = ()
    if line == "negative prompt":
        others = [name for name in palette.NAMES if name != plan.background]
        avoided = tuple(rng.choice(others, AVOIDED, replace=False).tolist())
    prompt = _said(line, plan, rng, "en")
    return Demand(
        line, line, number, prompt, ", ".join(f"{one} background" for one in avoided), "en", number, plan, avoided
    )


def _french(i: int, number: int, made: Sequence[Demand], numbers: dict[tuple[str, int], int]) -> Demand:
    """An earlier prompt's scene said in French, with the seed of its English twin."""
    forms = [line for line in LINES if line not in ("French", "negative prompt")]
    twin = made[numbers[forms[i % len(forms)], i // len(forms)]]
    prompt = _said(twin.form, twin.plan, rng_of(SEED, i), "fr")
    return replace(twin, line="French", number=number, prompt=prompt, language="fr", twin=twin.number)


def _said(line: str, plan: Plan, rng: np.random.Generator, language: str) -> str:
    """The plan in words, no more than the line demands; colours are those of outlines, so their style is said too."""
    manner = Manner(
        style=float(line in ("style", "colours", "colour attribution")),
        background=float(line == "background"),
        colour=1.0,
        place=float(line == "position"),
        keyword=0.0,
    )
    return caption(scene_of(plan, rng), rng, language, manner)


def _single(i: int, rng: np.random.Generator, style: str = "", background: str = "", shift: int = 0) -> Plan:
    name = _turn(i, shift, style)
    return _plan([name], rng, style=style, background=background)


def _two(i: int, rng: np.random.Generator, relation: str = "", shift: int = 3) -> Plan:
    return _plan(_pair(i, shift), rng, relation=relation)


def _counting(i: int, rng: np.random.Generator) -> Plan:
    plain = [name for name in names().values() if countable(name.drawing("flat"))]
    return _plan([plain[int(rng.integers(len(plain)))]] * (2 + i % 3), rng)


def _coloured(names: Sequence[Name], colours: Sequence[str], rng: np.random.Generator) -> Plan:
    """Outlines, which are drawn in any colour, on a ground on which they show."""
    grounds = [one for one in palette.NAMES if one not in DARK and one not in colours]
    return _plan(names, rng, colours, "outline", str(rng.choice(grounds)))


def _attribution(i: int, rng: np.random.Generator) -> Plan:
    return _coloured(_pair(i, 5, "outline"), rng.choice(palette.NAMES, 2, replace=False).tolist(), rng)


_PLANS: dict[str, Callable[[int, np.random.Generator], Plan]] = {
    "single object": _single,
    "two objects": _two,
    "counting": _counting,
    "colours": lambda i, rng: _coloured([_turn(i, 4, "outline")], [palette.NAMES[i % len(palette.NAMES)]], rng),
    "position": lambda i, rng: _two(i, rng, RELATIONS[i % 4], shift=6),
    "colour attribution": _attribution,
    "style": lambda i, rng: _single(i, rng, style=STYLES[i % len(STYLES)], shift=1),
    "background": lambda i, rng: _single(i, rng, background=palette.NAMES[i % len(palette.NAMES)], shift=2),
    "negative prompt": lambda i, rng: _single(i, rng, shift=7),
}


def _plan(
    things: Sequence[Name],
    rng: np.random.Generator,
    colours: Sequence[str] = (),
    style: str = "",
    background: str = "",
    relation: str = "",
) -> Plan:
    """What the line leaves open is left to chance; a thing is shown only in a style that it is drawn in."""
    shown = [one for one in STYLES if one != "outline" and not any(one in thing.missing for thing in things)]
    style = style or str(rng.choice(shown))
    free = [one for one in palette.NAMES if style != "outline" or one not in DARK]
    background = background or str(rng.choice(free))
    return Plan(
        tuple(one.concept for one in things), tuple(colours) or ("",) * len(things), style, background, relation
    )


def _turn(i: int, shift: int, style: str = "") -> Name:
    """The names in an order of the line's own, none twice before all have come; such as are drawn in the style."""
    fit = [one for one in names().values() if style not in one.missing and (style != "outline" or _tintable(one))]
    order = rng_of(SEED + 100 + shift, i // len(fit)).permutation(len(fit))
    return fit[order[i % len(fit)]]


def _pair(i: int, shift: int, style: str = "") -> list[Name]:
    """Two names that some style shows both of."""
    first = _turn(i, shift, style)
    second = next(other for k in range(10**6) if _match(first, other := _turn(i + k, shift + 20, style)))
    return [first, second]


def _match(one: Name, other: Name) -> bool:
    return one != other and bool(set(STYLES) - {"outline", *one.missing, *other.missing})


def _tintable(name: Name) -> bool:
    """Whether a colour can be said with the name, in both languages."""
    thing = Placed(name.drawing("outline"), (0, 0, 1, 1), tint="red")
    return all(sayable_colour(thing, language) for language in ("en", "fr"))
