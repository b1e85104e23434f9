"""What a picture shows, in words: prompts, the loop that goes on from them, and scenes that are always whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_readers import NAMES, PATCHES, PIXELS, reading_model
from test_grammar import fits

from cartouche import images
from cartouche.config import CartoucheError
from cartouche.data import dialogue
from cartouche.data.dialogue import Turn
from cartouche.read.describe import Describer, scene_shape, settled
from cartouche.read.speech import Manner, Words, chosen
from cartouche.weights import folder as folders

SHORT = Manner(longest=6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reading_model(tmp_path_factory.mktemp("describe") / "model")


@pytest.fixture(scope="module")
def describer(model: Path) -> Describer:
    return Describer(model, "torch")


@pytest.fixture(scope="module")
def net(model: Path) -> Any:
    return folders.load_net(model / "captioner")


def pictures(rows: int, side: int = PIXELS, seed: int = 0) -> np.ndarray:
    """Pictures whose numbers bytes can hold, so that no rounding stands between the two ways of reading."""
    bytes_ = np.random.default_rng(seed).integers(0, 256, (rows, side, side, 3), np.uint8)
    return images.from_uint8(bytes_)


def greedy(net: Any, ids: list[int], pixels: np.ndarray, sayable: np.ndarray, end: int, longest: int) -> Words:
    """The likeliest words by reading the whole text anew for each, without any memory."""
    said = Words([], [])
    for _ in range(longest):
        with torch.no_grad():
            logits = net(torch.tensor([ids + said.ids]), torch.from_numpy(pixels))[0, -1].double().numpy()
        token = int(sayable[logits[sayable].argmax()])
        said.ids.append(token)
        said.chances.append(float(np.exp(logits[token] - logits.max()) / np.exp(logits - logits.max()).sum()))
        if token == end:
            break
    return said


# saying


def test_captions_of_a_batch_are_the_likeliest_words_one_by_one(describer: Describer, net: Any) -> None:
    given, speech = pictures(3), describer.speech
    said = describer.caption(given, manner=SHORT)
    ids = speech.prompt([Turn(dialogue.caption_prompt())], [images.to_uint8(given)[0]]).ids
    for one, picture in zip(said, given, strict=True):
        words = greedy(net, ids, picture[None], speech.sayable, speech.marks.end, 6)
        assert one.text == speech.tongue.text([i for i in words.ids if i != speech.marks.end])
        assert one.confidence == pytest.approx(words.confidence, rel=1e-3)


def test_examples_stand_before_the_question_with_their_pictures(describer: Describer, net: Any) -> None:
    given, speech = pictures(3), describer.speech
    said = describer.ask(given[2], "which?", [(given[0], "red"), (given[1:2], "blue")], manner=SHORT)
    prompt = dialogue.question_prompt("which?")
    turns = [Turn(prompt, "red"), Turn(prompt, "blue"), Turn(prompt)]
    ids = speech.tongue.ids(turns, speech.marks)
    assert ids.count(speech.marks.image) == 3 * PATCHES and ids.count(speech.marks.end) == 2
    words = greedy(net, ids, given, speech.sayable, speech.marks.end, 6)
    assert said.confidence == pytest.approx(words.confidence, rel=1e-3)


def test_questions_of_any_lengths_are_answered_in_their_order(describer: Describer) -> None:
    given = pictures(4)
    questions = ["what?", "how many cats?", "why?", "where is the red apple?"]
    together = describer.answers(given, questions, manner=SHORT)
    for said, picture, question in zip(together, given, questions, strict=True):
        alone = describer.ask(picture, question, manner=SHORT)
        assert said.text == alone.text and said.confidence == pytest.approx(alone.confidence, rel=1e-3)


def test_french_is_asked_in_french(describer: Describer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    prompt = describer.speech.prompt
    monkeypatch.setattr(
        describer.speech, "prompt", lambda turns, shown: asked.append(turns[-1][0]) or prompt(turns, shown)
    )
    describer.caption(pictures(1), "fr", manner=SHORT)
    describer.ask(pictures(1), "combien ?", language="fr", manner=SHORT)
    assert asked == [dialogue.caption_prompt("fr"), dialogue.question_prompt("combien ?", "fr")]


def test_a_seed_says_the_same_again_and_another_something_else(describer: Describer) -> None:
    def said(seed: int) -> list[str]:
        return [one.text for one in describer.caption(pictures(2), manner=Manner(1.0, seed, 8))]

    assert said(1) == said(1) != said(2)


def test_words_are_drawn_as_often_as_they_are_likely() -> None:
    logits, allowed = np.log(np.array([0.1, 0.6, 0.2, 0.1])), np.array([1, 2])
    random, drawn = np.random.default_rng(0), Words([], [])
    for _ in range(4000):
        chosen(logits, allowed, 1.0, random, drawn)
    assert np.mean(np.array(drawn.ids) == 1) == pytest.approx(0.75, abs=0.03)
    assert set(np.round(drawn.chances, 6)) == {0.6, 0.2}
    flat = Words([], [])
    for _ in range(4000):
        chosen(logits, allowed, 100.0, random, flat)
    assert np.mean(np.array(flat.ids) == 1) == pytest.approx(0.5, abs=0.03)
    assert chosen(logits, allowed, 0.0, random, drawn) == 1


def test_signs_and_digits_join_the_words_they_belong_to(describer: Describer) -> None:
    speech = describer.speech
    for text in ("a red apple, 3d style", "12 cats", "l'e-mail", "a cat (two)", "rouge : oui"):
        assert speech.tongue.text(speech.tongue.spelled(text)) == text


# scenes


def test_a_scene_is_whole_whatever_the_net_says_and_wherever_it_is_cut_off(describer: Describer) -> None:
    for seed in range(12):
        manner = Manner(temperature=1.0, seed=seed, longest=(3, 30, 200)[seed % 3])
        for one in describer.scenes(pictures(2, 40, seed), manner):
            assert json.loads(json.dumps(one)) == one
            assert list(one) == ["objects", "relations", "background", "split", "style", "confidence"]
            assert 1 <= len(one["objects"]) <= 4 and {thing["name"] for thing in one["objects"]} <= {*NAMES}
            assert all(0 <= edge <= 40 for thing in one["objects"] for edge in thing["box"])
            assert (len(one["background"]) == 2) == (one["split"] != "") and one["style"] in ("flat", "3d")
            assert 0 <= one["confidence"] <= 1


def test_a_captioner_without_words_of_its_own_names_freely(tmp_path: Path) -> None:
    free = Describer(reading_model(tmp_path / "free", words=False), "torch")
    (one,) = free.scenes(pictures(1), Manner(temperature=1.0, longest=40))
    assert all(isinstance(thing["name"], str) for thing in one["objects"])


@pytest.mark.parametrize("said", ['{"names": 5}', '{"names": [5]}', "[]"])
def test_damaged_lists_of_words_are_refused(tmp_path: Path, said: str) -> None:
    model = reading_model(tmp_path / "model")
    (model / "captioner" / "words.json").write_text(said)
    with pytest.raises(CartoucheError, match=r"words\.json"):
        Describer(model, "torch")


def test_what_training_says_of_a_scene_is_of_the_shape() -> None:
    shape = scene_shape({"names": NAMES, "colours": ["red", "blue"], "styles": ["flat"]})
    thing = {"name": "red apple", "colour": "", "count": 2, "box": [0, 5, 100, 99]}
    said = {
        "objects": [thing, thing],
        "relations": [[0, "left", 1]],
        "background": ["blue"],
        "split": "",
        "style": "flat",
    }
    assert fits(shape, said)
    assert not fits(shape, said | {"background": ["teal"]})


def test_a_scene_is_made_to_agree_with_itself() -> None:
    thing = {"name": "cat", "colour": "red", "count": 1, "box": [80, 10, 20, 60]}
    said = {"objects": [thing, thing], "relations": [[0, "left", 1], [1, "left", 1], [0, "above", 3]]}
    said |= {"background": ["red", "blue"], "split": "", "style": "flat"}
    one = settled(said, (50, 200))
    assert one["objects"][0]["box"] == [40.0, 5.0, 160.0, 30.0]
    assert one["relations"] == [[0, "left", 1]] and one["background"] == ["red"] and one["split"] == ""
    split = settled(said | {"split": "left"}, (50, 200))
    assert split["background"] == ["red", "blue"] and split["split"] == "left"
    assert settled(said | {"split": "left", "background": ["red"]}, (50, 200))["split"] == ""


# what is refused


def test_more_examples_than_the_net_can_remember_are_refused(describer: Describer) -> None:
    example = (pictures(1), "red")
    with pytest.raises(CartoucheError, match="for a net of 256; give fewer examples"):
        describer.ask(pictures(1), "which?", [example] * 12)


def test_what_cannot_be_asked_is_refused(describer: Describer) -> None:
    with pytest.raises(CartoucheError, match="an empty question"):
        describer.ask(pictures(1), " ")
    with pytest.raises(CartoucheError, match="1 questions about 2 pictures"):
        describer.answers(pictures(2), ["what?"])
    with pytest.raises(CartoucheError, match="2 pictures given where one is asked about"):
        describer.scene(pictures(2))
    with pytest.raises(CartoucheError, match="unknown language 'de'"):
        describer.caption(pictures(1), "de")
    with pytest.raises(CartoucheError, match="temperature=-1"):
        Manner(temperature=-1)
    with pytest.raises(CartoucheError, match="longest=0"):
        Manner(longest=0)


def test_a_model_without_a_captioner_says_so(tmp_path: Path) -> None:
    with pytest.raises(CartoucheError, match="has no captioner/"):
        Describer(tmp_path)
