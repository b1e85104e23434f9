"""The prompts of SceneEval stay what they are, and say what can be shown."""

import hashlib
import os
from collections import Counter
from pathlib import Path

import pytest

from cartouche.data import palette
from cartouche.data.emoji import Pack
from cartouche.measure.obedience import hundred_names
from cartouche.measure.prompts import LINES, RELATIONS, STYLES, demands, names
from cartouche.measure.sceneeval import asked

PROMPTS_SHA256 = "948ce35122afaf074febdca50d3c83f2af5d6358decb3092542bb068d6ab835b"
PACK = Path(os.environ.get("CARTOUCHE_PACK", "data/emoji"))


def of(line):
    return [one for one in demands() if one.line == line]


def test_the_553_prompts_are_these_and_no_others():
    text = "\n".join(f"{one.line}|{one.prompt}|{one.negative_prompt}|{one.seed}|{one.plan}" for one in demands())
    assert len(demands()) == 553
    assert hashlib.sha256(text.encode()).hexdigest() == PROMPTS_SHA256


def test_every_line_has_its_prompts_and_a_quick_run_ten_of_each():
    assert Counter(one.line for one in demands()) == LINES
    quick, pictures = asked(quick=True)
    assert pictures == 1
    assert Counter(one.line for one in quick) == dict.fromkeys(LINES, 10)
    assert [one.number for one in demands()] == list(range(553))


def test_plans_keep_to_what_can_be_shown_and_said():
    for one in demands():
        assert one.plan.style in STYLES
        assert all(one.plan.style not in names()[concept].missing for concept in one.plan.concepts)
        assert one.plan.background not in (*one.plan.colours, *one.avoided)
    for i, one in enumerate(of("position")):
        assert one.plan.relation == RELATIONS[i % 4]
    for one in of("colour attribution"):
        assert len(set(one.plan.colours)) == len(set(one.plan.concepts)) == 2
        assert all(colour in one.prompt for colour in one.plan.colours)
    assert {len(one.plan.concepts) for one in of("counting")} == {2, 3, 4}
    assert Counter(one.plan.colours[0] for one in of("colours")) == dict.fromkeys(palette.NAMES, 5)
    for one in of("negative prompt"):
        assert len(one.avoided) == 4
        assert all(f"{colour} background" in one.negative_prompt for colour in one.avoided)


def test_french_prompts_are_the_scenes_of_english_ones_with_their_seeds():
    for one in of("French"):
        twin = demands()[one.twin]
        assert (one.plan, one.seed, one.form) == (twin.plan, twin.seed, twin.line)
        assert one.prompt != twin.prompt or names()[one.plan.concepts[0]].en == names()[one.plan.concepts[0]].fr
    assert {one.form for one in of("French")} == set(LINES) - {"French", "negative prompt"}


def test_no_prompt_is_too_long_for_the_built_in_model():
    from cartouche.text import Tokenizer
    from cartouche.weights.builtin import builtin

    tokenizer = Tokenizer.load(builtin() / "tokenizer")
    assert [
        one.number for one in demands() if any(tokenizer.encode(t).cut for t in (one.prompt, one.negative_prompt))
    ] == []


@pytest.mark.skipif(not (PACK / "index.jsonl").is_file(), reason="needs the emoji pack; CARTOUCHE_PACK says where")
def test_the_hundred_names_are_those_of_the_pack():
    train = Pack(PACK).of("train")
    for concept in hundred_names(train):
        mine = [one for one in train if one.concept == concept]
        known = names()[concept]
        assert (known.en, known.fr) == (mine[0].name_en, mine[0].name_fr)
        assert set(known.missing) == set(STYLES) - {one.style for one in mine}
