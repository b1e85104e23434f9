"""Where things are: boxes and masks out of what the nets say, and the picture they are drawn on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_readers import PATCHES, PIXELS, reading_model

from cartouche import images
from cartouche.config import CartoucheError
from cartouche.read import locate
from cartouche.read.annotate import annotate, plain
from cartouche.read.locate import Found, Locator, apart
from cartouche.weights import folder as folders


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reading_model(tmp_path_factory.mktemp("locate") / "model")


def pictures(rows: int, height: int = PIXELS, width: int = PIXELS) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (rows, 3, height, width)).astype(np.float32)


class Said:
    """A net that says what it is told to."""

    def __init__(self, *outputs: np.ndarray) -> None:
        self.outputs = outputs

    def __call__(self, **arrays: np.ndarray) -> Any:
        return self.outputs if len(self.outputs) > 1 else self.outputs[0]


@pytest.fixture
def told(model: Path) -> Locator:
    """A locator whose nets say: a cat in the left half, the same again, a dog below right; masks are diagonals."""
    locator = Locator(model, "torch")
    boxes = np.zeros((1, PATCHES, 4), np.float32)
    boxes[0, :3] = [[0.25, 0.5, 0.5, 1.0], [0.26, 0.5, 0.5, 0.98], [0.75, 0.75, 0.5, 0.5]]
    embeds = np.zeros((1, PATCHES, 2), np.float32)
    embeds[0, :2, 0] = embeds[0, 2, 1] = 1.0
    scale = np.full((1, PATCHES), 10.0, np.float32)
    shift = np.full((1, PATCHES), -0.5, np.float32)
    shift[0, 1] = -0.6
    locator.detector._nets |= {
        "detect": Said(boxes, embeds, shift, scale),
        "queries": Said(np.eye(2, dtype=np.float32)),
    }
    diagonal = np.where(np.eye(PIXELS) > 0, 40.0, -1.0).astype(np.float32)
    segmenter = locator.segmenter
    assert segmenter is not None
    segmenter._nets |= {
        "queries": Said(np.zeros((2, 24), np.float32)),
        "features": Said(np.zeros((1, 2, 17, 32), np.float32)),
        "segment": Said(np.stack([diagonal, -diagonal])),
    }
    return locator


# finding


def test_each_object_is_found_once_by_the_name_that_fits_it_best(told: Locator) -> None:
    (found,) = told.find(pictures(1, 40, 80), ["cat", "dog"], masks=False)
    assert [(one.name, one.box) for one in found] == [
        ("cat", (0.0, 0.0, 40.0, 40.0)),
        ("dog", (40.0, 20.0, 80.0, 40.0)),
    ]
    assert found[0].score == pytest.approx(1 / (1 + np.exp(-5)), abs=1e-6)
    assert found[0].mask is None


def test_boxes_on_each_other_stay_where_they_are_asked_for(told: Locator) -> None:
    (found,) = told.find(pictures(1), ["cat", "dog"], overlap=1.0, masks=False)
    assert [one.name for one in found] == ["cat", "dog", "cat"]


def test_what_is_not_sure_enough_is_left_out(told: Locator) -> None:
    assert [one.name for one in told.find(pictures(1), ["cat", "dog"], 0.99, overlap=1.0)[0]] == ["cat", "dog"]
    assert told.find(pictures(1), ["cat", "dog"], 1.0) == [[]]


def test_a_mask_is_cut_by_its_box(told: Locator) -> None:
    (found,) = told.find(pictures(1), ["cat", "dog"])
    cat, dog = (one.mask for one in found)
    assert cat is not None and dog is not None and cat.shape == (PIXELS, PIXELS) and cat.dtype == bool
    half = PIXELS // 2
    assert cat[:, :half].trace() == half and cat.sum() == half and not cat[:, half:].any()
    assert not dog[:half].any() and dog[half:, half:].sum() == half * half - half


def test_a_mask_is_as_large_as_the_picture_it_is_of(told: Locator) -> None:
    (found,) = told.find(pictures(1, 40, 80), ["cat", "dog"])
    assert {one.mask.shape for one in found if one.mask is not None} == {(40, 80)}


def test_the_surest_of_boxes_that_overlap_stays() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [8, 0, 18, 10], [50, 50, 60, 60]], float)
    scores = np.array([0.5, 0.9, 0.7, 0.1])
    assert apart(boxes, scores, 0.5) == [1, 2, 3]
    assert apart(boxes, scores, 0.1) == [1, 3]
    assert apart(np.zeros((0, 4)), np.zeros(0)) == []


# the nets


def test_the_scores_are_those_of_the_whole_net(model: Path) -> None:
    import torch

    locator = Locator(model, "torch")
    given, names = pictures(2), ("cat", "red apple")
    boxes, scores = locator.scores(list(images.to_uint8(given)), names)
    net = folders.load_net(model / "detector")
    pixels = torch.from_numpy(images.from_uint8(images.to_uint8(given)))
    with torch.no_grad():
        logits, centred, _ = net(pixels, torch.from_numpy(locator.detector.tokenizer.batch(names)))
    np.testing.assert_allclose(scores, logits.sigmoid().numpy(), atol=1e-5)
    np.testing.assert_allclose((boxes[..., :2] + boxes[..., 2:]) / 2, centred[..., :2].numpy(), atol=1e-5)


def test_a_batch_gives_what_its_pictures_give_alone(model: Path) -> None:
    given = pictures(3)
    together = Locator(model, "torch", batch=2).find(given, ["cat", "dog"], 0.0)
    alone = [Locator(model, "torch").find(one[None], ["cat", "dog"], 0.0)[0] for one in given]
    for some, others in zip(together, alone, strict=True):
        assert [one.name for one in some] == [one.name for one in others]
        np.testing.assert_allclose([one.score for one in some], [one.score for one in others], atol=1e-5)
        assert all(np.mean(a.mask != b.mask) < 0.01 for a, b in zip(some, others, strict=True))


def test_a_folder_without_a_segmenter_finds_boxes_alone(model: Path) -> None:
    (found,) = Locator(model / "detector", "torch").find(pictures(1), ["cat"], 0.0)
    assert found and all(one.mask is None for one in found)


# what is asked


def test_queries_are_put_into_the_template_they_are_given(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locator = Locator(model, "torch")
    asked: list[tuple[str, ...]] = []
    scores = locator.scores
    monkeypatch.setattr(locator, "scores", lambda some, phrases: asked.append(phrases) or scores(some, phrases))
    for template in (None, "a photo of {an}"):
        locator.find(pictures(1), ["apple", " cat ", "cat"], template=template)
    assert asked == [("apple", "cat"), ("a photo of an apple", "a photo of a cat")]
    assert locator.template("fr") == "{}"


def test_a_detector_of_web_pictures_asks_as_it_was_taught(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locator = Locator(model, "torch")
    monkeypatch.setattr(locate, "WEB_WORDS", 1)
    assert locator.template("en") == "a photo of {an}" and locator.template("fr") == "une photo de {}"


@pytest.mark.parametrize(("queries", "settings", "said"), [
    ([], {}, "nothing to look for"),
    (["cat", " "], {}, "empty name"),
    (["cat"], {"threshold": 1.5}, "threshold=1.5 given; choose 0 to 1"),
    (["cat"], {"overlap": -1}, "overlap=-1 given"),
    (["cat"], {"language": "de"}, "unknown language 'de'"),
])  # fmt: skip
def test_what_cannot_be_asked_is_refused(model: Path, queries: list[str], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(CartoucheError, match=said):
        Locator(model, "torch").find(pictures(1), queries, **settings)


def test_a_model_without_a_detector_says_so(tmp_path: Path) -> None:
    with pytest.raises(CartoucheError, match="has no detector/"):
        Locator(tmp_path)


def test_a_detector_that_sees_only_the_middle_of_a_picture_is_refused(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    settings = {"size": {"shortest_edge": PIXELS}, "crop_size": PIXELS, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    folders.write_json(tmp_path / "model" / "segmenter" / "preprocessor_config.json", settings)
    with pytest.raises(CartoucheError, match="segmenter cuts pictures .* set do_center_crop to false"):
        Locator(tmp_path / "model", "torch")


def test_a_segmenter_may_look_at_larger_pictures_than_its_tower_was_made_for(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    where = tmp_path / "model" / "segmenter" / "preprocessor_config.json"
    patch = folders.read_json(where.with_name("config.json"))["vision_config"]["patch_size"]
    colours = {"do_center_crop": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    side = PIXELS + 2 * patch
    folders.write_json(where, {"size": {"height": side, "width": side}} | colours)
    locator = Locator(tmp_path / "model")
    assert locator.segmenter is not None and locator._mask_prepare.made == (side, side)
    features = locator.segmenter.net("features")(pixels=pictures(1, side, side))
    assert features.shape[2] == 1 + (side // patch) ** 2
    mask = locator.find(pictures(1), ["cat"], threshold=0.0)[0][0].mask
    assert mask is not None and mask.shape == (PIXELS, PIXELS)
    folders.write_json(where, {"size": {"height": side + 1, "width": side + 1}} | colours)
    with pytest.raises(CartoucheError, match="prepares pictures of"):
        Locator(tmp_path / "model")


# drawing


def test_what_was_found_is_drawn_in_a_colour_for_each_name() -> None:
    pixels = np.full((64, 64, 3), 255, np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[40:50, 40:50] = True
    found = [Found("cat", 0.9, (8.0, 24.0, 32.0, 60.0)), Found("dog", 0.8, (36.0, 36.0, 60.0, 60.0), mask)]
    drawn = annotate(pixels, found)
    assert drawn.shape == (512, 512, 3) and drawn.dtype == np.uint8
    assert (pixels == 255).all()
    edge, other, inside, away = drawn[400, 64], drawn[400, 8 * 36], drawn[8 * 45, 8 * 45], drawn[8 * 30, 8 * 34]
    assert len({tuple(one.tolist()) for one in (edge, other, inside, away)}) == 4
    assert (away == 255).all() and (inside < 255).any()


def test_a_large_picture_keeps_its_size_and_nothing_found_leaves_it_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 600, 3), np.uint8)
    assert (annotate(pixels, []) == pixels).all()
    assert annotate(pixels, [Found("cat", 1.0, (590.0, 0.0, 600.0, 10.0))]).shape == pixels.shape


def test_a_name_loses_its_accents_only_where_the_font_has_none() -> None:
    assert plain("Œuf à l'éclair 日") == "OEuf a l'eclair "
