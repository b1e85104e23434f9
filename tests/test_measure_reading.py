"""The figures of reading are 1 for a reader that knows the truth, and little for one that says always the same."""

from types import SimpleNamespace

import numpy as np
import pytest
from toy_pack import MORE_THINGS, write_pack

from cartouche.data.captions import FULL, LANGUAGES, Manner, caption
from cartouche.data.dialogue import described
from cartouche.data.emoji import Pack
from cartouche.data.graphs import Lexicon
from cartouche.data.questions import KINDS, Asker
from cartouche.data.scenes import render, rng_of
from cartouche.images import to_uint8
from cartouche.measure import reading
from cartouche.measure.reading import Held
from cartouche.metrics.boxes import Boxes
from cartouche.read.locate import Found

THOROUGH = Manner(style=1, background=1, colour=1, place=1, keyword=0)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return Pack(write_pack(tmp_path_factory.mktemp("pack"), MORE_THINGS))


@pytest.fixture(scope="module")
def held(pack):
    return Held.of(pack, "train", 40)


class Oracle:
    """Knows each held scene by its pixels."""

    def __init__(self, held):
        self.held = held
        self.known = {render(held.pack, scene)[0].tobytes(): i for i, scene in enumerate(held.scenes)}
        asker = Asker(held.pack.of("train"))
        self.answered = {
            (i, question.text): question.answer
            for language in LANGUAGES
            for kind in KINDS
            for i, question in reading._questions(held, asker, language, kind, 1000)
        }

    def numbers(self, pictures):
        return [self.known.get(one.tobytes()) for one in to_uint8(pictures)]

    def look(self, pictures, queries, threshold=None, template=None, masks=True):
        found = []
        for pixels in pictures:
            scene = self.held.scenes[self.known[pixels.tobytes()]]
            parts = render(self.held.pack, scene)[1]
            found.append(
                [
                    Found(p.drawing.name_en, 0.9, p.box, part if masks else None)
                    for p, part in zip(scene.objects, parts, strict=True)
                    if p.drawing.name_en in queries
                ]
            )
        return found

    def caption(self, pictures, language="en"):
        told = [caption(self.held.scenes[i], rng_of(1, i), language, THOROUGH) for i in self.numbers(pictures)]
        return [SimpleNamespace(text=one.upper()) for one in told]

    def answers(self, pictures, questions, language="en"):
        told = [self.answered.get((i, q), "red") for i, q in zip(self.numbers(pictures), questions, strict=True)]
        return [SimpleNamespace(text=one) for one in told]

    def scenes(self, pictures):
        return [described(self.held.scenes[i]) for i in self.numbers(pictures)]


@pytest.fixture(scope="module")
def oracle(held):
    return Oracle(held)


def test_a_held_out_set_is_a_seed_and_a_number(pack, held):
    assert Held.of(pack, "train", 40).scenes == held.scenes
    assert Held.of(pack, "train", 10).scenes == held.scenes[:10]
    assert Held.of(pack, "train", 10, seed=1).scenes != held.scenes[:10]
    assert {len(scene.objects) for scene in held.scenes} == {1, 2, 3, 4}


def test_a_reader_that_knows_the_truth_is_right_in_everything(pack, held, oracle):
    found = reading.found_in(held, oracle, pack.drawings)
    figures = reading.finding(held, found, 0.3)
    assert figures["mAP@.5"] == figures["mAP@[.5:.95] of boxes alone"] == pytest.approx(1.0)
    assert figures["name"]["value"] == figures["count"]["value"] == 1.0
    assert figures["name"]["n"] == sum(len(scene.objects) for scene in held.scenes)
    assert reading.positions(held, reading.asking(oracle))["value"] == 1.0
    assert reading.masking(held, reading.asking(oracle))["value"] == 1.0
    assert reading.masking(held, reading.asking(oracle, with_masks=False))["value"] == 0.0
    for figure in reading.telling(held, oracle, 40).values():
        assert figure["value"] == 1.0
    for figure in reading.captioning(held, oracle, Lexicon(pack.drawings)).values():
        assert figure["graph-F1"]["value"] == 1.0
        assert figure["invented things"]["value"] == 0.0


def test_answers_to_a_picture_are_right_and_to_a_blank_one_seldom(held, oracle):
    report = reading.answering(held, oracle)
    assert {name.split(",")[0] for name in report} == set(KINDS)
    for figure in report.values():
        assert figure["accuracy"]["value"] == 1.0
        assert figure["blank picture"]["value"] < 0.5
        assert figure["blank picture"]["n"] == figure["accuracy"]["n"]


def test_a_wrong_name_or_a_box_too_many_is_counted_against_the_reader(pack, held, oracle):
    found = reading.found_in(held, oracle, pack.drawings)
    renamed = [Boxes(one.corners, ["fam-c9"] * len(one.names), one.scores) for one in found]
    figures = reading.finding(held, renamed, 0.3)
    assert figures["mAP@.5"] == figures["name"]["value"] == 0.0
    assert figures["mAP@.5 of boxes alone"] == pytest.approx(1.0)
    more = [Boxes(np.vstack([one.corners, [[0, 0, 5, 5]]]), [*one.names, "fam-c1"], np.append(one.scores, 0.5))
            for one in found]  # fmt: skip
    assert reading.finding(held, more, 0.3)["count"]["value"] == 0.0
    assert reading.best_threshold(more, reading.true_boxes(held)) > 0.5


def test_names_of_one_family_and_of_any_spacing_are_the_same_answer(pack):
    family = {"cherry": "a", "sweetcherry": "a", "kite": "b"}
    assert reading._same("sweet  cherry", "Cherry", family)
    assert not reading._same("kite", "cherry", family)
    assert reading._same("3 D", "3D", family)


def test_captions_that_leave_things_out_score_less(pack, held, oracle):
    class Terse(Oracle):
        def caption(self, pictures, language="en"):
            told = [caption(self.held.scenes[i], rng_of(1, i), language, FULL) for i in self.numbers(pictures)]
            return [SimpleNamespace(text=one.split(",")[0]) for one in told]

    figures = reading.captioning(held, Terse(held), Lexicon(pack.drawings))
    assert all(0.3 < one["graph-F1"]["value"] < 1.0 for one in figures.values())
