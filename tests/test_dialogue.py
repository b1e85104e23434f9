"""What is said to the describing reader: prompts, the ids of a conversation, and scenes as JSON."""

from __future__ import annotations

import json

import pytest

from cartouche.config import CartoucheError
from cartouche.data import dialogue
from cartouche.data.dialogue import IMAGE, Marks, Turn
from cartouche.data.emoji import Drawing
from cartouche.data.scenes import Background, Placed, Scene

MARKS = Marks(start=1000, end=1001, image=1002, patches=3)


def drawing(name: str, colour: str = "red") -> Drawing:
    fields = dict.fromkeys(Drawing.__dataclass_fields__, "")
    fields |= {"concept": name, "name_en": name, "name_fr": name, "style": "flat", "colors": ((colour, 0.9),)}
    return Drawing(**fields)  # type: ignore[arg-type]


CAT, DOG = drawing("cat"), drawing("dog", "brown")


def scene(*placed: Placed, background: Background | None = None) -> Scene:
    return Scene(128, "flat", background or Background(("blue",), ((0, 0, 255),)), placed)


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text if letter != " "]


def test_a_conversation_is_its_pictures_words_and_ends_in_order():
    turns = [Turn(f"{IMAGE} a:", "b"), Turn(f"c {IMAGE} d:")]
    ids, said = dialogue.spell(turns, letters, MARKS)
    assert ids == [1000, 1002, 1002, 1002, *map(ord, "a:b"), 1001, ord("c"), 1002, 1002, 1002, *map(ord, "d:")]
    assert [i for i, mine in zip(ids, said, strict=True) if mine] == [ord("b"), 1001]


def test_a_question_cannot_bring_a_picture_of_its_own():
    assert dialogue.question_prompt(f"what is {IMAGE} this?").count(IMAGE) == 1


@pytest.mark.parametrize("prompt", [dialogue.caption_prompt, lambda one: dialogue.question_prompt("?", one)])
def test_each_language_is_asked_in_its_own_words_and_others_are_refused(prompt):
    assert prompt("en") != prompt("fr")
    with pytest.raises(CartoucheError, match="unknown language 'de'"):
        prompt("de")


def test_a_scene_is_described_from_left_to_right_with_its_relations():
    right, left = Placed(DOG, (64, 32, 128, 96)), Placed(CAT, (0, 32, 32, 64))
    said = dialogue.described(scene(right, left))
    assert said["objects"] == [
        {"name": "cat", "colour": "red", "count": 1, "box": [0, 25, 25, 50]},
        {"name": "dog", "colour": "brown", "count": 1, "box": [50, 25, 100, 75]},
    ]
    assert said["relations"] == [[0, "left", 1]]
    assert (said["background"], said["split"], said["style"]) == (["blue"], "", "flat")


def test_things_of_one_name_are_one_entry_with_a_box_around_all():
    cats = Placed(CAT, (0, 0, 32, 32)), Placed(CAT, (64, 64, 128, 128))
    said = dialogue.described(scene(*cats, Placed(DOG, (96, 0, 128, 32))))
    assert [(one["name"], one["count"], one["box"]) for one in said["objects"]] == [
        ("cat", 2, [0, 0, 100, 100]),
        ("dog", 1, [75, 0, 100, 25]),
    ]
    assert said["relations"] == []


def test_the_answer_is_one_line_of_json_that_says_the_same():
    two = Background(("blue", "green"), ((0, 0, 255), (0, 255, 0)), "above")
    one = scene(Placed(CAT, (0, 0, 64, 64)), background=two)
    text = dialogue.scene_answer(one)
    assert json.loads(text) == dialogue.described(one) and " " not in text and "\n" not in text
    assert json.loads(text)["split"] == "above"


def test_the_words_of_scenes_are_each_name_once():
    words = dialogue.scene_words([CAT, DOG, CAT])
    assert words["names"] == ["cat", "dog"] and "blue" in words["colours"] and "flat" in words["styles"]
