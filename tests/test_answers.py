"""Every question that the grammar asks of a scene is answered from that scene as the grammar answers it."""

import pytest
from toy_pack import MORE_THINGS, write_pack

from cartouche.data.answers import answer, families
from cartouche.data.emoji import Pack
from cartouche.data.questions import KINDS, LANGUAGES, Asker
from cartouche.data.scenes import Composer, Mixture, rng_of


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return Pack(write_pack(tmp_path_factory.mktemp("pack"), MORE_THINGS))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_question_asked_of_a_scene_is_answered_from_it(pack, kind, language):
    composer = Composer(pack.of("train"), seed=8, mixture=Mixture(count=(1, 2, 1, 1), two_tone=0.4, tint=0.4))
    asker, known = Asker(pack.of("train")), families(pack.drawings, language)
    asked = 0
    for i in range(300):
        scene = composer[i]
        question = asker.ask(scene, rng_of(5, i), language, kind)
        if question is None:
            continue
        asked += 1
        said = answer(question.text, scene, language, known)
        assert said is not None, question
        if said != question.answer:  # several drawings may share a name's family
            assert known.get(said.lower()) == known.get(question.answer.lower()) is not None, (question, said)
    assert asked > 40


def test_what_the_grammar_does_not_ask_or_name_has_no_answer(pack):
    scene, known = Composer(pack.of("train"), seed=8)[0], families(pack.drawings, "en")
    for question in ("why?", "is there a unicorn of glass?", "how many unicorns of glass are there?", ""):
        assert answer(question, scene, "en", known) is None
