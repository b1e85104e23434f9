import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from small_readers import CAPTIONS, CONTEXT, reading_model
from small_readers import PIXELS as SIDE

from cartouche import images
from cartouche.config import CartoucheError
from cartouche.read.match import PHOTOGRAPHS, SCENES, Matcher, filled
from cartouche.read.parts import Part, has
from cartouche.read.prepare import BILINEAR, Preparation
from cartouche.text import CutWarning

WIDTH = 24


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return reading_model(tmp_path_factory.mktemp("reading") / "model") / "clip"


@pytest.fixture(scope="module")
def matcher(clip):
    return Matcher(clip)


def noise(height=40, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def photographs(count=3):
    return [noise(20 + 17 * i, 61 - 13 * i, i) for i in range(count)]


# pictures are prepared


def test_without_settings_the_whole_picture_is_squeezed_into_minus_one_to_one(clip):
    prepare = Preparation.load(clip, SIDE)
    x = noise(SIDE, SIDE)
    assert np.allclose(prepare(x), images.from_uint8(x[None])[0], atol=1e-6)
    flat = np.full((7, 90, 3), 255, np.uint8)
    assert np.allclose(prepare(flat), 1, atol=1e-6) and prepare(flat).shape == (3, SIDE, SIDE)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"size": {"shortest_edge": 41}},
        {"size": {"height": 36, "width": 39}, "crop_size": {"height": 32, "width": 32}},
        {"size": {"height": 32, "width": 32}, "do_center_crop": False, "resample": BILINEAR},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "rescale_factor": 1 / 128},
        {"do_normalize": False},
    ],
    ids=str,
)
def test_pictures_are_prepared_as_transformers_prepares_them(settings, tmp_path):
    from transformers.models.clip import CLIPImageProcessorPil

    theirs = CLIPImageProcessorPil(**{"size": {"shortest_edge": SIDE}, "crop_size": SIDE, **settings})
    theirs.save_pretrained(tmp_path)
    ours = Preparation.load(tmp_path, SIDE)
    for pixels in [*photographs(), noise(SIDE, SIDE), noise(1, 1), noise(3, 100), noise(130, 17)]:
        expected = theirs(pixels, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
        found = ours(pixels)
        assert found.dtype == np.float32 and found.shape == expected.shape
        if max(pixels.shape[:2]) <= 8 * min(pixels.shape[:2]):
            assert np.abs(found - expected).max() < 1e-5


def test_settings_of_early_files_and_of_the_newest_are_read(tmp_path):
    early = {"size": 40, "crop_size": 32, "image_mean": [0, 0, 0], "image_std": [1, 1, 1], "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(early))
    first = Preparation.load(tmp_path, SIDE)
    assert (first.size, first.crop) == (40, (32, 32))
    (tmp_path / "preprocessor_config.json").unlink()
    new = early | {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": new}))
    assert Preparation.load(tmp_path, SIDE) == first


def test_of_a_picture_like_a_thread_only_the_middle_is_resized():
    prepare = Preparation(SIDE, (SIDE, SIDE))
    x = np.zeros((2, 1_000_000, 3), np.uint8)
    x[:, 499_980:500_020] = 255
    assert prepare(x).min() == 1
    assert prepare(x.transpose(1, 0, 2)).shape == (3, SIDE, SIDE)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 40, "crop_size": 36, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]},
        {"size": 30, "crop_size": 32, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]},
        {"size": 32},
        {"image_processor": 5},
        {"size": 32, "image_mean": [0, 0, 0], "image_std": [1, 1, 1], "resample": 99},
        {"size": 32, "image_mean": [0, 0], "image_std": [1, 1]},
        {"size": 32, "image_mean": [0, 0, 0], "image_std": [1, 1, 0]},
        {"size": "large", "image_mean": [0, 0, 0], "image_std": [1, 1, 1]},
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_tower_are_refused(settings, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(CartoucheError, match=r"preprocessor_config\.json"):
        Preparation.load(tmp_path, SIDE)


# vectors


def test_vectors_have_length_one_and_do_not_depend_on_their_neighbours(matcher):
    together = matcher.pixels(photographs(5))
    alone = np.concatenate([matcher.pixels([one]) for one in photographs(5)])
    assert together.shape == (5, WIDTH) and together.dtype == np.float32
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    assert np.abs(together - alone).max() < 1e-5
    words = matcher.texts(list(CAPTIONS))
    assert np.abs(words - np.concatenate([matcher.texts([one]) for one in CAPTIONS])).max() < 1e-5
    assert matcher.pixels([]).shape == matcher.texts([]).shape == (0, WIDTH)


def test_images_are_the_same_pictures_as_pixels(matcher):
    x = images.from_uint8(np.stack([noise(seed=i) for i in range(3)]))
    assert np.array_equal(matcher.images(x), matcher.pixels([noise(seed=i) for i in range(3)]))


def test_a_clip_of_the_ecosystem_gives_what_transformers_gives(clip, tmp_path):
    import torch
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip import CLIPImageProcessorPil

    folder = shutil.copytree(clip, tmp_path / "clip")
    shutil.copytree(clip.parent / "tokenizer", folder, dirs_exist_ok=True)
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE)
    processor.save_pretrained(folder)
    theirs, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    words = tokenizer(list(CAPTIONS), return_tensors="pt", padding="max_length", max_length=CONTEXT, truncation=True)
    pixels = processor(photographs(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        told = theirs(input_ids=words["input_ids"], pixel_values=pixels)
    ours = Matcher(folder)
    seen, read = ours.pixels(photographs()), ours.texts(list(CAPTIONS))
    assert np.abs(seen - told.image_embeds.numpy()).max() < 1e-5
    assert np.abs(read - told.text_embeds.numpy()).max() < 1e-5
    assert np.abs(ours.probabilities(seen, read) - told.logits_per_image.softmax(-1).numpy()).max() < 1e-5
    assert ours.hash != Matcher(clip).hash, "pictures are prepared otherwise, so the vectors are others"


def test_words_that_do_not_fit_are_named_and_not_lost_in_silence(matcher):
    with pytest.warns(CutWarning, match="left out: .*zebra"):
        matcher.texts([("a red apple " * 9) + "zebra"])


# labels


def test_labels_are_a_softmax_of_scaled_cosines(matcher):
    x = images.from_uint8(np.stack([noise(seed=i) for i in range(2)]))
    chances = matcher.labels(x, ["cat", "dog", "frog"], templates=["{}"])
    logits = matcher.scale * matcher.similarity(x, ["cat", "dog", "frog"]).astype(float)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.allclose(chances, expected, atol=1e-6) and np.allclose(chances.sum(1), 1, atol=1e-6)


def test_the_scale_is_read_without_the_rest_of_the_weights(matcher):
    assert matcher.scale == pytest.approx(np.exp(2.6592), rel=1e-5)


def test_a_label_is_the_mean_direction_of_its_phrases(matcher):
    found = matcher.label_vectors(["owl"], templates=["{}", "{an}"])[0]
    mean = matcher.texts(["owl", "an owl"]).mean(0)
    assert np.allclose(found, mean / np.linalg.norm(mean), atol=1e-6)


def test_templates_are_those_of_the_captions_that_the_clip_was_trained_on(matcher, monkeypatch):
    assert matcher.templates is SCENES
    monkeypatch.setattr("cartouche.read.match.WEB_WORDS", matcher.tokenizer.vocab_size)
    assert matcher.templates is PHOTOGRAPHS
    assert all("{}" in one or "{an}" in one for table in (SCENES, PHOTOGRAPHS) for say in table.values() for one in say)
    assert filled("a photo of {an}", "apple") == "a photo of an apple"
    assert filled("une photo de {}", "pomme") == "une photo de pomme"


def test_a_language_or_a_label_that_cannot_be_is_refused(matcher):
    with pytest.raises(CartoucheError, match="unknown language 'de'"):
        matcher.label_vectors(["Katze"], "de")
    for labels in ([], ["cat", " "]):
        with pytest.raises(CartoucheError, match="empty label"):
            matcher.label_vectors(labels)


# arithmetic


def test_arithmetic_ranks_all_names_and_tells_which_were_terms(matcher, monkeypatch):
    plane = {"king": (1, 1, 0), "man": (0, 1, 0), "woman": (0, 0, 1), "queen": (1, 0, 0.9), "boat": (-1, 0, 0)}
    vectors = {name: np.array(one, np.float32) / np.linalg.norm(one) for name, one in plane.items()}
    monkeypatch.setattr(matcher, "texts", lambda texts: np.stack([vectors[one] for one in texts]))
    near = matcher.arithmetic(["king", "woman"], ["man"], ["boat", "king", "man", "queen", "woman", "king"])
    target = vectors["king"] + vectors["woman"] - vectors["man"]
    assert [one.rank for one in near] == [1, 2, 3, 4, 5]
    assert near[0].name == "queen" and not near[0].given
    assert {one.name for one in near if one.given} == {"king", "man", "woman"}
    assert near[1].cosine == pytest.approx(float(vectors["woman"] @ target / np.linalg.norm(target)), abs=1e-6)


def test_a_sum_may_hold_pictures_and_must_not_be_nothing(matcher):
    picture = matcher.pixels([noise()])[0]
    assert np.allclose(matcher.sum([picture]), picture, atol=1e-6)
    with pytest.raises(CartoucheError, match="cancel"):
        matcher.sum(["cat"], ["cat"])
    with pytest.raises(CartoucheError, match="at least one"):
        matcher.sum([], ["cat"])


# folders


def test_the_part_is_found_in_a_model_folder_and_alone_and_shares_the_tokenizer(clip, tmp_path):
    alone = shutil.copytree(clip, tmp_path / "alone")
    shutil.copytree(clip.parent / "tokenizer", alone, dirs_exist_ok=True)
    for folder in (clip.parent, alone):
        assert np.array_equal(Matcher(folder).texts(["cat"]), Matcher(clip).texts(["cat"]))
    assert has(clip.parent, "detector") and has(alone, "clip") and not has(alone, "detector")


def test_what_a_folder_lacks_is_named(clip, tmp_path):
    with pytest.raises(CartoucheError, match=r"has no detector/; .*owlvit folder"):
        Part(clip, "detector")
    with pytest.raises(CartoucheError, match="does not exist"):
        Matcher(tmp_path / "none")
    with pytest.raises(CartoucheError, match="unknown engine"):
        Matcher(clip, engine="tensorflow")
    with pytest.raises(CartoucheError, match="no graph at .*encode_text"):
        Matcher(clip, engine="openvino").texts(["cat"])


def test_a_graph_gives_what_torch_gives_and_needs_no_torch(clip, tmp_path):
    from cartouche.weights import graph

    model = shutil.copytree(clip.parent, tmp_path / "model", ignore=shutil.ignore_patterns("detector", "segmenter"))
    graph.export(model / "clip")
    ours, theirs = Matcher(model, "openvino"), Matcher(clip, "torch")
    assert np.abs(ours.pixels(photographs(5)) - theirs.pixels(photographs(5))).max() < 1e-5
    assert np.abs(ours.texts(list(CAPTIONS)) - theirs.texts(list(CAPTIONS))).max() < 1e-5
    code = (
        "import sys; from cartouche.read.match import Matcher; import numpy as np; "
        f"m = Matcher({str(model)!r}); m.labels(np.zeros((1, 3, 8, 8)), ['cat']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
