"""Scenes are pure functions of their number, and neither truth nor caption ever lies about the picture."""

import re
from collections import Counter

import numpy as np
import pytest
from toy_pack import THINGS, write_pack

from cartouche.config import CartoucheError
from cartouche.data import palette
from cartouche.data.captions import FULL, STYLES, caption, countable, plural
from cartouche.data.emoji import Pack
from cartouche.data.scenes import DARK, Composer, Mixture, flippable, render, rng_of, tintable
from cartouche.data.streams import Scenes

MANY = range(400)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return Pack(write_pack(tmp_path_factory.mktemp("pack")))


@pytest.fixture(scope="module")
def composer(pack):
    return Composer(pack.of("train"), seed=3, mixture=Mixture(count=(1, 1, 1, 1), two_tone=0.3, tint=0.5))


def test_a_scene_is_a_pure_function_of_seed_and_number(pack, composer):
    again = Composer(pack.of("train"), seed=3, mixture=composer.mixture)
    assert composer[17] == again[17]
    assert composer[17] != composer[18]
    assert composer[17] != Composer(pack.of("train"), seed=4, mixture=composer.mixture)[17]
    np.testing.assert_array_equal(render(pack, composer[17])[0], render(pack, again[17])[0])


def test_objects_never_overlap_and_stay_inside(composer):
    for i in MANY:
        boxes = [placed.box for placed in composer[i].objects]
        for x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= 128
            assert 0 <= y0 < y1 <= 128
        for n, a in enumerate(boxes):
            for b in boxes[n + 1 :]:
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], f"scene {i}: {a} meets {b}"


def test_settled_objects_stand_in_the_middle_of_their_cells_unmirrored(pack):
    settled = Composer(pack.of("train"), seed=3, mixture=Mixture(count=(1, 1, 1, 1), settled=1.0, flip=1.0))
    middles = {
        1: {(64, 64)},
        2: {(32, 64), (96, 64), (64, 32), (64, 96)},
        3: {(32, 32), (96, 32), (64, 96)},
        4: {(32, 32), (96, 32), (32, 96), (96, 96)},
    }
    for i in MANY:
        objects = settled[i].objects
        found = {
            min(middles[len(objects)], key=lambda m, c=one.centre: np.hypot(*np.subtract(m, c))) for one in objects
        }
        assert len(found) == len(objects)
        for one in objects:
            assert not one.flip
            assert min(np.abs(np.subtract(m, one.centre)).max() for m in found) <= 1


def test_unsettled_scenes_are_those_of_before_there_was_a_choice(pack):
    assert [Composer(pack.of("train"), 3)[i].objects[0].box for i in range(3)] == [
        (21, 19, 97, 90),
        (9, 4, 60, 55),
        (14, 75, 64, 123),
    ]


def test_masks_lie_in_their_boxes_and_show_the_objects_colour(pack):
    plain = Composer(pack.of("train"), seed=5, mixture=Mixture(two_tone=0, tint=0, flip=0))
    for i in range(40):
        scene = plain[i]
        pixels, masks = render(pack, scene)
        assert pixels.shape == (128, 128, 3)
        for placed, mask in zip(scene.objects, masks, strict=True):
            ys, xs = np.nonzero(mask)
            x0, y0, x1, y1 = placed.box
            assert x0 <= xs.min() <= xs.max() < x1
            assert y0 <= ys.min() <= ys.max() < y1
            if placed.drawing.style == "flat":
                assert palette.nearest(np.median(pixels[mask], axis=0)) == placed.drawing.colors[0][0]


def test_a_tint_is_the_colour_one_sees(pack, composer):
    seen = 0
    for i in MANY:
        scene = composer[i]
        if not scene.objects[0].tint:
            continue
        pixels, masks = render(pack, scene)
        assert palette.nearest(np.median(pixels[masks[0]], axis=0)) == scene.objects[0].tint
        assert scene.objects[0].tint not in scene.background.colours
        seen += 1
    assert seen > 20


def test_coloured_scenes_are_outlines_of_which_every_kind_has_its_own_colour(pack):
    coloured = Composer(pack.of("train"), seed=3, mixture=Mixture(count=(1, 1, 1, 1), tint=0, coloured=0.5))
    apart = 0
    for i in MANY:
        scene = coloured[i]
        colours = {placed.drawing.concept: placed.tint for placed in scene.objects}
        assert all(placed.tint == colours[placed.drawing.concept] for placed in scene.objects)
        if scene.style == "outline" and len(colours) > 1 and all(colours.values()):
            apart += len(set(colours.values())) == len(colours)
            assert len(set(colours.values())) == len(colours) or DARK & set(scene.background.colours)
            assert not set(colours.values()) & set(scene.background.colours)
    assert apart > 10
    with pytest.raises(CartoucheError, match=r"coloured=0.5 given, and no drawings in outline style; choose 0"):
        Composer([one for one in pack.of("train") if one.style == "flat"], mixture=Mixture(coloured=0.5))


def test_backgrounds_are_the_named_colours_where_the_caption_says_so(pack, composer):
    for i in MANY:
        scene = composer[i]
        pixels = render(pack, ground_of(scene))[0]
        corners = {"": (pixels[0, 0],), "left": (pixels[0, 0], pixels[0, -1]), "above": (pixels[0, 0], pixels[-1, 0])}
        assert tuple(palette.nearest(c) for c in corners[scene.background.split]) == scene.background.colours


def ground_of(scene):
    """The scene's background alone."""
    return type(scene)(scene.size, scene.style, scene.background, ())


def test_black_outlines_never_stand_on_dark_grounds(composer):
    for i in MANY:
        scene = composer[i]
        if scene.style == "outline" and not scene.objects[0].tint:
            assert not {"black", "brown", "purple"} & set(scene.background.colours)


def test_captions_say_the_count_the_style_and_the_ground_truly(composer):
    numbers = {1: "one", 2: "two", 3: "three", 4: "four"}
    for i in MANY:
        scene = composer[i]
        text = caption(scene, rng_of(1, i), "en", FULL)
        assert STYLES[scene.style][0] in text
        assert all(colour in text for colour in scene.background.colours)
        for concept, count in scene.counts().items():
            name = THINGS[concept][0]
            assert name in text or plural(name, "en") in text
            if count > 1:
                assert re.search(rf"\b({numbers[count]}|{count})\b", text), text
        others = {THINGS[c][0] for c in THINGS} - {THINGS[c][0] for c in scene.counts()}
        assert not any(name in text for name in others)


def test_left_of_means_left_of(composer):
    checked = 0
    for i in MANY:
        scene = composer[i]
        text = caption(scene, rng_of(2, i), "en", FULL)
        for word, axis, sign in (("to the left of", 0, -1), ("to the right of", 0, 1), (" above ", 1, -1)):
            if word not in text or len(scene.objects) != 2 or "background" in text.split(word)[0]:
                continue
            first = text.split(word)[0]
            a, b = sorted(scene.objects, key=lambda p: THINGS[p.drawing.concept][0] not in first)
            if THINGS[b.drawing.concept][0] in text.split(word)[1].split(",")[0]:
                assert sign * (a.centre[axis] - b.centre[axis]) > 0, text
                checked += 1
    assert checked > 5


def test_french_captions_name_the_same_things(composer):
    for i in range(100):
        scene = composer[i]
        text = caption(scene, rng_of(3, i), "fr", FULL)
        for concept in scene.counts():
            nom = THINGS[concept][1]
            assert nom in text or plural(nom, "fr") in text
        assert all(palette.COLOURS[c].nom in text for c in scene.background.colours)


@pytest.mark.parametrize(
    ("name", "language", "several"),
    [
        ("cat", "en", "cats"),
        ("strawberry", "en", "strawberries"),
        ("peach", "en", "peaches"),
        ("chat", "fr", "chats"),
        ("gâteau", "fr", "gâteaux"),
        ("noix", "fr", "noix"),
    ],
)
def test_plurals_are_regular(name, language, several):
    assert plural(name, language) == several


def test_what_points_a_way_is_not_mirrored_and_what_names_a_colour_keeps_it(pack):
    drawings = {d.name_en: d for d in pack.of("train") if d.style == "flat"}
    assert not flippable(drawings["right arrow"])
    assert flippable(drawings["cherry"])
    assert not tintable(drawings["orange book"])
    assert tintable(drawings["cherry"])
    assert countable(drawings["cherry"])


def test_a_stream_gives_the_same_sample_for_the_same_number(pack, composer):
    stream = Scenes(pack, composer)
    a, b = stream[9], Scenes(pack, composer)[9]
    np.testing.assert_array_equal(a["image"], b["image"])
    assert a["caption"] == b["caption"]
    assert a["image"].dtype == np.float32
    assert -1 <= a["image"].min() <= a["image"].max() <= 1
    assert Scenes(pack, composer, crop=64)[9]["image"].shape == (3, 64, 64)


def test_held_out_drawings_stay_out(pack):
    assert {d.key for d in pack.of("pairs")} == {"outline-c2"}
    assert "outline-c2" not in {d.key for d in pack.of("train")}


def test_a_folder_that_is_no_pack_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(CartoucheError, match="index.jsonl"):
        Pack(tmp_path)


def test_an_unknown_split_is_refused(pack):
    with pytest.raises(CartoucheError, match="train, val, test, pairs"):
        pack.of("dev")


def test_a_run_of_scenes_shares_its_style_and_its_ground_where_nothing_would_vanish(pack):
    composer = Composer(pack.of("train"), seed=5, mixture=Mixture(two_tone=0.0), alike=8)
    grounds = []
    for first in range(0, 160, 8):
        run = [composer[i] for i in range(first, first + 8)]
        assert len({scene.style for scene in run}) == 1
        grounds.append(Counter(scene.background.colours for scene in run).most_common(1)[0][1])
        assert len({scene.objects[0].drawing.concept for scene in run}) > 1
    assert np.mean(grounds) > 4  # of 8; by chance it would be about 2
    assert len({composer[i].style for i in range(0, 160, 8)}) > 1
    assert composer[9] == composer[9]
