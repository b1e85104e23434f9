"""What a caption says is what is true of its scene, in both languages; answers are true and negatives are not."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from toy_pack import MORE_THINGS, write_pack

from cartouche.config import CartoucheError
from cartouche.data.captions import LANGUAGES, STYLES, Manner, caption, plural
from cartouche.data.emoji import Pack
from cartouche.data.graphs import Graph, Lexicon, Thing, graph_f1, is_true, scene_graph, words_of
from cartouche.data.negatives import CHANGES, Negatives, bound, changed, pair
from cartouche.data.questions import KINDS, SIDES, Asker
from cartouche.data.scenes import Composer, Mixture, render, rng_of, tintable

THOROUGH = Manner(style=1, background=1, colour=1, place=1, keyword=0)
MANY = range(1500)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return Pack(write_pack(tmp_path_factory.mktemp("pack"), MORE_THINGS))


@pytest.fixture(scope="module")
def scenes(pack):
    composer = Composer(pack.of("train"), seed=3, mixture=Mixture(count=(1, 1, 1, 1), two_tone=0.3, tint=0.5))
    return [composer[i] for i in MANY]


@pytest.fixture(scope="module")
def lexicon(pack):
    return Lexicon(pack.drawings)


@pytest.fixture(scope="module")
def negatives(pack):
    return Negatives(pack.of("train"))


# graphs


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_thorough_caption_parses_to_all_that_is_true_of_the_scene(scenes, lexicon, language):
    for i in MANY:
        scene = scenes[i]
        text = caption(scene, rng_of(9, i), language, THOROUGH)
        assert lexicon.parse(text, language).facts() == scene_graph(scene, language).facts(), text


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_everyday_caption_parses_to_nothing_that_is_false(scenes, lexicon, language):
    said = 0
    for i in MANY:
        scene = scenes[i]
        text = caption(scene, rng_of(10, i), language)
        graph = lexicon.parse(text, language)
        assert is_true(graph, scene_graph(scene, language)), text
        said += len(graph.facts())
    assert said > 4 * len(MANY)


def test_spacing_and_case_change_nothing(scenes, lexicon):
    for i in range(100):
        text = caption(scenes[i], rng_of(9, i), "fr", THOROUGH)
        spaced = " ".join(words_of(text)).upper()
        assert lexicon.parse(spaced, "fr") == lexicon.parse(text, "fr")


@pytest.mark.parametrize(
    ("text", "graph"),
    [
        ("two red cherries on blue", Graph((Thing("fam-c1", 2, "red"),), (), "", ("blue",))),
        ("a hammer and wrench", Graph((Thing("fam-c6"),))),
        ("a red apple", Graph((Thing("fam-c5"),))),
        ("a blue red apple and a kite", Graph((Thing("fam-c5", 1, "blue"), Thing("fam-c2")))),
        ("a cherry, no kite", Graph((Thing("fam-c1"), Thing("fam-c2", 0)))),
        ("a cherry above a kite", Graph((Thing("fam-c1"), Thing("fam-c2")), (("fam-c1", "above", "fam-c2"),))),
        ("3 times tooth, in flat style", Graph((Thing("fam-c7", 3),), (), "flat")),
        ("a cherry, kite", Graph((Thing("fam-c1"),))),
        ("a cherry that nobody ever saw", Graph((Thing("fam-c1"),))),
        ("", Graph()),
    ],
)
def test_captions_parse_as_they_read(lexicon, text, graph):
    assert lexicon.parse(text) == graph


def test_a_relation_and_its_opposite_are_one_fact():
    a = Graph((Thing("a"), Thing("b")), (("a", "right", "b"),))
    b = Graph((Thing("b"), Thing("a")), (("b", "left", "a"),))
    assert a.facts() == b.facts()
    assert graph_f1(a, b) == 1.0


def test_f1_is_twice_the_common_facts_over_all_facts():
    truth = Graph((Thing("a", 2, "red"),), (), "flat", ("blue",))
    assert graph_f1(truth, truth) == 1.0
    assert graph_f1(Graph(), Graph()) == 1.0
    assert graph_f1(Graph(), truth) == 0.0
    said = replace(truth, style="noto", things=(Thing("a", 3),))
    assert graph_f1(said, truth) == pytest.approx(2 * 2 / (4 + 5))  # the thing and the background


def test_what_is_said_to_be_absent_is_true_of_what_is_not_there():
    truth = Graph((Thing("a"),))
    assert is_true(Graph((Thing("b", 0),)), truth)
    assert not is_true(Graph((Thing("a"), Thing("a", 0))), truth)


def test_an_unknown_language_is_refused(lexicon, pack):
    with pytest.raises(CartoucheError, match="known: en, fr"):
        lexicon.parse("ein Hund", "de")
    with pytest.raises(CartoucheError, match="known: en, fr"):
        Asker(pack.of("train")).ask(None, rng_of(0, 0), "de")


# questions


def truth_of(question, scene):
    """The answer worked out again from the scene, by another way than the grammar's."""
    lower, language = question.text.lower(), question.language
    which = LANGUAGES.index(language)
    names = {c: {THING[which].lower(), plural(THING[which].lower(), language)} for c, THING in MORE_THINGS.items()}
    spoken = {c for c, forms in names.items() if any(re.search(rf"\b{re.escape(f)}\b", lower) for f in forms)}
    there = Counter(p.drawing.concept for p in scene.objects)
    if question.kind == "count" and spoken:
        return str(sum(there[c] for c in spoken))
    if question.kind == "count":
        return str(len(scene.objects))
    if question.kind == "style":
        return STYLES[scene.style][which]
    return None


@pytest.mark.parametrize("language", LANGUAGES)
def test_counts_and_styles_answered_are_those_of_the_scene(pack, scenes, language):
    asker = Asker(pack.of("train"))
    checked = 0
    for i in range(600):
        for kind in ("count", "style"):
            question = asker.ask(scenes[i], rng_of(4, i), language, kind)
            assert question.answer == truth_of(question, scenes[i]), question
            checked += 1
    assert checked == 1200


def test_yes_is_said_of_what_is_true_and_no_of_what_is_not(pack, scenes, lexicon):
    asker = Asker(pack.of("train"))
    seen = Counter()
    for i in MANY:
        scene = scenes[i]
        question = asker.ask(scene, rng_of(5, i), "en", "yes_no")
        seen[question.answer] += 1
        truth, text = scene_graph(scene), question.text.rstrip("?")
        if found := re.search(r"(?:is there|do you see|is) an? (.*?)(?: in the picture)?$", text):
            family = lexicon.parse(found.group(1)).things[0].family
            assert (family in {t.family for t in truth.things}) == (question.answer == "yes"), question
            seen["there"] += 1
        elif found := re.search(r"background (?:have the colour )?(\w+)$", text):
            assert (found.group(1) == scene.background.colours[0]) == (question.answer == "yes"), question
            seen["ground"] += 1
        elif found := re.search(r"exactly (.*)$", text):
            said = lexicon.parse(found.group(1)).things[0]
            there = {t.family: t.count for t in truth.things}
            assert (there.get(said.family) == said.count) == (question.answer == "yes"), question
            seen["counted"] += 1
    assert min(seen["there"], seen["ground"], seen["counted"]) > 60
    assert abs(seen["yes"] - seen["no"]) < 0.1 * len(MANY)


def test_sides_are_those_of_the_centres(pack, scenes):
    asker = Asker(pack.of("train"))
    checked = 0
    for i in MANY:
        scene = scenes[i]
        question = asker.ask(scene, rng_of(6, i), "en", "where")
        if question is None or len(scene.objects) != 2:
            continue
        name = re.search(r"the (.*?)(?:,.*)?\?$", question.text.replace("at which side of the ", "other ")).group(1)
        if "other" in question.text or "seen from" in question.text or " of the " in question.text:
            continue
        a = next(p for p in scene.objects if p.drawing.name_en == name)
        b = next(p for p in scene.objects if p is not a)
        axis = 0 if question.answer in ("left", "right") else 1
        assert (a.centre[axis] < b.centre[axis]) == (question.answer in ("left", "top")), question
        checked += 1
    assert checked > 40


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_are_spread_so_that_guessing_earns_little(pack, scenes, language):
    asker = Asker(pack.of("train"))
    most = {"what": 0.35, "count": 0.45, "colour": 0.45, "where": 0.4, "yes_no": 0.56, "background": 0.25}
    for kind, limit in most.items():
        asked = [asker.ask(scenes[i], rng_of(7, i), language, kind) for i in range(600)]
        answers = Counter(one.answer for one in asked if one)
        assert answers.most_common(1)[0][1] / answers.total() < limit, (kind, answers)


def test_every_kind_can_be_asked_and_an_unknown_one_is_refused(pack, scenes):
    asker = Asker(pack.of("train"))
    kinds = {asker.ask(scenes[i], rng_of(8, i), "en").kind for i in range(200)}
    assert kinds == set(KINDS)
    with pytest.raises(CartoucheError, match="did you mean 'colour'"):
        asker.ask(scenes[0], rng_of(8, 0), "en", "color")
    with pytest.raises(CartoucheError, match="five families"):
        Asker(pack.of("pairs"))


def test_sides_are_said_in_each_languages_words(pack, scenes):
    asker = Asker(pack.of("train"))
    for language in LANGUAGES:
        asked = [asker.ask(scenes[i], rng_of(6, i), language, "where") for i in range(300)]
        assert {one.answer for one in asked if one} == set(SIDES[language].values())


# negatives


@pytest.mark.parametrize("language", LANGUAGES)
def test_negatives_are_never_true_and_captions_always(scenes, negatives, lexicon, language):
    for i in range(400):
        scene = bound(scenes[i], rng_of(1, i))
        said, false = negatives.captioned(scene, i, language, 3)
        truth = scene_graph(scene, language)
        assert is_true(lexicon.parse(said, language), truth), said
        assert len(false) == 3
        for one in false:
            assert not is_true(lexicon.parse(one, language), truth), (said, one)


def test_half_of_the_captions_say_what_is_absent_so_that_no_is_not_a_sign_of_falsehood(scenes, negatives):
    said = [negatives.captioned(scenes[i], i, "en", 2)[0] for i in range(300)]
    assert 0.35 < np.mean([", no " in one for one in said]) < 0.65


@pytest.mark.parametrize("change", CHANGES)
def test_pairs_are_told_apart_by_their_captions_alone(pack, scenes, negatives, lexicon, change):
    made = []
    for i in range(400):
        one = pair(bound(scenes[i], rng_of(1, i)), change, negatives, i, "en")
        if one is None:
            continue
        made.append(one)
        for scene in one.scenes:
            boxes = [p.box for p in scene.objects]
            assert all(0 <= b[0] < b[2] <= 128 and 0 <= b[1] < b[3] <= 128 for b in boxes)
            for n, a in enumerate(boxes):
                assert all(a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1] for b in boxes[n + 1 :])
        said = [lexicon.parse(caption, "en") for caption in one.captions]
        truths = [scene_graph(scene, "en") for scene in one.scenes]
        assert [[is_true(graph, truth) for truth in truths] for graph in said] == [[True, False], [False, True]]
        first, second = (render(pack, scene)[0] for scene in one.scenes)
        assert (first != second).any()
    assert len(made) > 5


def test_a_swap_of_colours_or_places_keeps_the_words(scenes, negatives):
    for change in ("colours", "relation"):
        made = [pair(bound(scenes[i], rng_of(1, i)), change, negatives, i, "fr") for i in range(400)]
        pairs = [one for one in made if one]
        same = [sorted(words_of(a)) == sorted(words_of(b)) for a, b in (one.captions for one in pairs)]
        assert np.mean(same) > 0.9


def test_a_scene_that_cannot_be_changed_so_says_so(scenes):
    lone = next(s for s in scenes if len(s.objects) == 1)
    assert changed(lone, "relation", rng_of(0, 0)) is None
    assert changed(lone, "count", rng_of(0, 0)) is None


def test_every_thing_that_can_takes_a_colour_of_its_own(scenes):
    for i in range(200):
        scene = bound(scenes[i], rng_of(1, i))
        tints = {p.drawing.concept: p.tint for p in scene.objects if tintable(p.drawing)}
        assert all(tints.values()) and len(set(tints.values())) == len(tints)
        assert not set(tints.values()) & set(scene.background.colours)
