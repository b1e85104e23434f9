from dataclasses import replace

import numpy as np
import pytest
from small_readers import NAMES, reading_model

from cartouche import images
from cartouche.config import CartoucheError
from cartouche.metrics.intervals import auroc
from cartouche.read.domain import FILE, OUTSIDE, Domain, Seen, look, texture
from cartouche.read.reader import Reader
from cartouche.read.sheets import contact_sheet


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return reading_model(tmp_path_factory.mktemp("reading") / "model")


@pytest.fixture(scope="module")
def reader(model):
    return Reader(model, "torch")


def noise(count=2, height=32, width=32, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)
    return images.from_uint8(pixels)


# one face


def test_one_face_gives_what_each_part_gives(reader):
    x = noise()
    assert reader.parts == ("clip", "detector", "segmenter", "captioner")
    assert np.array_equal(reader.labels(x, ["cat", "dog"]), reader.matcher.labels(x, ["cat", "dog"]))
    found = reader.find(x, ["cat"], 0.0)
    assert [one.box for one in found[0]] == [one.box for one in reader.locator.find(x, ["cat"], 0.0)[0]]
    assert reader.caption(x)[0] == reader.describer.caption(x)[0]
    assert reader.ask(x[:1], "how many?") == reader.describer.ask(x[:1], "how many?")
    assert {thing["name"] for thing in reader.scene(x[:1])["objects"]} <= set(NAMES)


def test_parts_are_opened_when_they_are_asked(model):
    reader = Reader(model, "torch")
    reader.labels(noise(1), ["cat"])
    assert "matcher" in vars(reader) and not {"locator", "describer", "ocr"} & set(vars(reader))


def test_what_the_folder_lacks_is_named(model, tmp_path):
    reader = Reader(model / "clip", "torch")
    assert reader.parts == ("clip",)
    for part, ask in {
        "detector": lambda: reader.find(noise(), ["cat"]),
        "captioner": lambda: reader.caption(noise()),
    }.items():
        with pytest.raises(CartoucheError, match=f"has no {part}/"):
            ask()
    with pytest.raises(CartoucheError, match=r"does not tell what it was trained on; wanted clip/domain\.safetensors"):
        reader.out_of_domain(noise())
    with pytest.raises(CartoucheError, match="reads nothing; wanted one of clip/, detector/"):
        Reader(tmp_path)
    with pytest.raises(CartoucheError, match="unknown engine 'onnx'"):
        Reader(model, "onnx")


# outside


def gaussian(count, seed, spread=(3.0, 1.0, 0.1)):
    rng = np.random.default_rng(seed)
    return Seen((rng.normal(size=(count, len(spread))) * spread + 1).astype(np.float32), rng.normal(size=(count, 16)))


def test_the_distance_is_that_of_a_gaussian_in_every_direction():
    cloud = Domain.fit(gaussian(20_000, 0), gaussian(20_000, 1), "m").vector
    for direction, spread in enumerate((3.0, 1.0, 0.1)):
        out = np.ones((1, 3), np.float32)
        out[0, direction] += 2 * spread
        assert cloud.squared(out)[0] == pytest.approx(4, rel=0.3 if direction == 2 else 0.08)
    assert cloud.squared(np.ones((1, 3)))[0] == pytest.approx(0, abs=0.01)
    assert cloud.usual == pytest.approx([3, 6**0.5], rel=0.15), "chi-square of three directions"


def test_the_score_is_the_share_of_true_scenes_that_lie_nearer():
    fitted = Domain.fit(gaussian(5000, 0), gaussian(5000, 1), "m")
    scores = fitted.score(gaussian(5000, 2))
    assert np.abs(np.quantile(scores, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.03
    assert (scores >= OUTSIDE).mean() == pytest.approx(0.01, abs=0.005)


@pytest.mark.parametrize("what", [0, 1], ids=Seen._fields)
def test_what_is_strange_in_either_way_is_outside(what):
    fitted, near = Domain.fit(gaussian(5000, 0), gaussian(5000, 1), "m"), gaussian(100, 3)
    far = Seen(*(one + 9 * (i == what) for i, one in enumerate(near)))
    assert (fitted.score(far) == 1).all()
    both = np.concatenate([fitted.distance(near), fitted.distance(far)])
    assert auroc(both, [False] * 100 + [True] * 100) == 1


def test_a_texture_tells_noise_from_a_flat_drawing_and_a_photograph_from_its_blur():
    rng = np.random.default_rng(0)
    flat, noisy = np.full((64, 64, 3), 90, np.uint8), rng.integers(0, 256, (64, 64, 3), np.uint8)
    assert np.allclose(texture(flat), np.log(2)) and (texture(noisy) > texture(flat)).all()
    assert texture(noisy).shape == (16,) and np.isfinite(texture(np.zeros((1, 500, 3), np.uint8))).all()
    drawing = flat.copy()
    drawing[20:40, 20:40] = 250
    assert np.abs(texture(drawing)[:3] - np.log(2)).max() < 1e-6 < texture(noisy)[0] - np.log(2)


def test_what_the_training_pictures_look_like_is_kept_with_the_weights(reader, model):
    pictures = [images.to_uint8(noise(count, seed=seed)) for count, seed in ((40, 0), (20, 1), (3, 2))]
    known, scenes, new = (look(reader.matcher, some) for some in pictures)
    fitted = Domain.fit(known, scenes, reader.matcher.part.weights)
    path = fitted.save(model / "clip")
    scores = Reader(model, "torch").out_of_domain(images.from_uint8(pictures[2]))
    assert path.name == FILE and scores.shape == (3,) and np.allclose(scores, fitted.score(new), atol=1e-3)
    with pytest.raises(CartoucheError, match="belongs to other weights"):
        Domain.load(model / "clip", "0" * 16)
    replace(fitted, vector=fitted.vector._replace(whiten=fitted.vector.whiten[:3]), model="m").save(model / "clip")
    with pytest.raises(CartoucheError, match=r"damaged: shapes .*benchmarks/outside\.py"):
        Domain.load(model / "clip", "m")
    replace(fitted, edges=fitted.edges * np.nan, model="m").save(model / "clip")
    with pytest.raises(CartoucheError, match="not finite"):
        Domain.load(model / "clip", "m")
    path.unlink()
    assert Domain.load(model / "clip", "m") is None


def test_too_few_pictures_tell_nothing(reader):
    with pytest.raises(CartoucheError, match="3 and 9 pictures given; wanted at least 4"):
        Domain.fit(gaussian(3, 0), gaussian(9, 1), "m")
    assert len(look(reader.matcher, []).vector) == len(look(reader.matcher, []).texture) == 0


# sheets


def test_a_contact_sheet_keeps_proportions_and_order():
    wide, tall = np.full((10, 40, 3), (255, 0, 0), np.uint8), np.full((40, 10, 3), (0, 0, 255), np.uint8)
    sheet = contact_sheet([wide, tall, wide], ["a", "b" * 300, "caf\udce9 \n é"], columns=2, side=80)
    red, blue = (sheet == (255, 0, 0)).all(2), (sheet == (0, 0, 255)).all(2)
    assert red.sum() == 2 * 80 * 20 and blue.sum() == 80 * 20
    assert np.argwhere(red)[:, 1].max() < np.argwhere(blue)[:, 1].min()
    assert sheet.shape[1] == 2 * 80 + 3 * 8 and sheet.shape[0] > 2 * 80


def test_a_sheet_of_one_picture_is_no_wider_than_it_needs():
    assert contact_sheet([np.zeros((5, 5, 3), np.uint8)], ["x"], columns=9, side=50).shape[1] == 50 + 16
