"""Scenes are read by recalling: boxes are made to fit, things named by the nearest drawing, captions are true."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cartouche import images
from cartouche.config import CartoucheError
from cartouche.data.answers import families
from cartouche.data.emoji import Drawing
from cartouche.data.graphs import Lexicon, graph_f1, scene_graph
from cartouche.data.scenes import Composer, Mixture, render
from cartouche.metrics.boxes import iou
from cartouche.metrics.masks import iou as mask_iou
from cartouche.read import recall
from cartouche.read.memory import Look, Memory
from cartouche.read.recall import Recaller, ground

COLOURS = {"red": (214, 48, 49), "green": (46, 160, 78), "blue": (45, 110, 220), "purple": (128, 60, 180)}
NAMES = ("kite", "lamp", "drum", "boat", "bell", "comb", "vase", "coin", "harp", "kettle", "ladder", "anchor")


def blob(number: int, style: str) -> np.ndarray:
    """A shape of its own, (h, w, 4) uint8: two ellipses and a bar in two shades of a colour, or in black."""
    rng = np.random.default_rng(number)
    picture = Image.new("RGBA", (64, 64))
    draw = ImageDraw.Draw(picture)
    light = (0, 0, 0) if style == "outline" else COLOURS[list(COLOURS)[number % len(COLOURS)]]
    dark = tuple(int(0.6 * one) for one in light)
    for ink in (light, dark):
        x, y = rng.integers(0, 20, 2).tolist()
        draw.ellipse((x, y, x + 24 + int(rng.integers(20)), y + 24 + int(rng.integers(20))), fill=(*ink, 255))
    draw.rectangle((28, 28, 36 + int(rng.integers(20)), 36 + int(rng.integers(20))), fill=(*light, 255))
    pixels = np.asarray(picture)
    rows, columns = np.flatnonzero(pixels[..., 3].any(1)), np.flatnonzero(pixels[..., 3].any(0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


class BlobPack:
    """Twelve blobs in two styles, as scenes want them."""

    def __init__(self) -> None:
        self.cut: dict[str, np.ndarray] = {}
        self.drawings = []
        for style in ("flat", "outline"):
            for number, name in enumerate(NAMES):
                key = f"{style}-{name}"
                self.cut[key] = blob(number, style)
                height, width = self.cut[key].shape[:2]
                colour = "black" if style == "outline" else list(COLOURS)[number % len(COLOURS)]
                colours = ((colour, 1.0 if style == "outline" else 0.6),)
                about = {"group": "Objects", "name_en": name, "name_fr": f"le{name}", "colors": colours, "scene": True}
                place = {"shard": "", "offset": 0, "bytes": 1, "bbox": (0, 0, width, height)}
                words = {"keywords_en": (), "keywords_fr": ()}
                kind = {"concept": name, "family": f"fam {name}", "style": style, "split": "train"}
                self.drawings.append(Drawing(key=key, **kind, **about, **place, **words))

    def pixels(self, drawing: Drawing) -> np.ndarray:
        return self.cut[drawing.key]


class Sighted:
    """Stands for a detector: it finds a part of every thing, the whole of two, and something where nothing is."""

    batch = 4

    def __init__(self, scenes):
        self.left = list(scenes)

    def scores(self, pictures, phrases):
        boxes, scores = np.zeros((len(pictures), 12, 4)), np.zeros((len(pictures), 12, len(phrases)))
        for row in range(len(pictures)):
            scene = self.left.pop(0)
            found = []
            for one in scene.objects:
                x0, y0, x1, y1 = one.box
                found += [((x0, y0, x0 + 0.8 * (x1 - x0), y1), 0.9), ((x0 + 2, y0 - 2, x1 + 3, y1 + 1), 0.8)]
            if len(scene.objects) > 1:
                every = np.array([one.box for one in scene.objects])
                found.append(((*every[:, :2].min(0), *every[:, 2:].max(0)), 0.5))
            found.append(((0, 0, 2, 2), 0.7))
            for i, (box, score) in enumerate(found):
                boxes[row, i], scores[row, i, i % len(phrases)] = np.array(box) / scene.size, score
        return boxes, scores


@pytest.fixture(scope="module")
def pack():
    return BlobPack()


@pytest.fixture(scope="module")
def memory(pack):
    return Memory.of(pack.drawings, pack.pixels, numbers=20, fit=1)


@pytest.fixture(scope="module")
def scenes(pack):
    mixture = Mixture(count=(1, 1, 1, 1), two_tone=0.3, tint=0.5, symbols=0.0)
    return [Composer(pack.drawings, seed=4, mixture=mixture)[i] for i in range(60)]


def test_every_thing_is_found_whole_once_and_by_its_name(pack, memory, scenes):
    seen = Recaller(Sighted(scenes), memory).look([render(pack, scene)[0] for scene in scenes])
    named = []
    for scene, things in zip(scenes, seen, strict=True):
        truth, masks = np.array([one.box for one in scene.objects], float), render(pack, scene)[1]
        assert len(things) == len(scene.objects)
        shared = iou(truth, np.array([one.box for one in things]))
        assert shared.max(1).min() > 0.85
        pairs = [(i, things[int(j)]) for i, j in enumerate(shared.argmax(1))]
        assert np.mean([mask_iou(masks[i][None], one.mask[None])[0, 0] for i, one in pairs]) > 0.85
        named += [one.recalled.drawing.concept == scene.objects[i].drawing.concept for i, one in pairs]
    assert np.mean(named) > 0.9


@pytest.mark.parametrize("language", ["en", "fr"])
def test_captions_and_answers_are_true_of_the_scene(pack, memory, scenes, language):
    lexicon, scores, right = Lexicon(pack.drawings), [], []
    for scene in scenes[:30]:
        picture = images.from_uint8(render(pack, scene)[0][None])
        said = Recaller(Sighted([scene]), memory).caption(picture, language)[0].text
        scores.append(graph_f1(lexicon.parse(said, language), scene_graph(scene, language)))
        count = {"en": "how many things are there?", "fr": "combien de choses y a-t-il ?"}[language]
        (answer,) = Recaller(Sighted([scene]), memory).answers(picture, [count], language)
        right.append(answer.text == str(len(scene.objects)))
    assert np.mean(scores) > 0.85
    assert all(right)


def test_a_language_that_is_not_known_is_refused(pack, memory, scenes):
    recaller, pictures = Recaller(Sighted(scenes[:1]), memory), images.from_uint8(render(pack, scenes[0])[0][None])
    for ask in (
        lambda: recaller.answers(pictures, ["how many cats?"], "de"),
        lambda: recaller.knows("cat", "de"),
        lambda: recaller.caption(pictures, "de"),
    ):
        with pytest.raises(CartoucheError, match="unknown language 'de'"):
            ask()


def test_a_scene_is_told_as_describers_tell_it(pack, memory, scenes):
    scene = next(one for one in scenes if one.background.split and len(one.objects) == 2)
    picture = images.from_uint8(render(pack, scene)[0][None])
    (told,) = Recaller(Sighted([scene]), memory).scenes(picture)
    assert told["background"] == list(scene.background.colours) and told["split"] == scene.background.split
    assert told["style"] == scene.style and sum(one["count"] for one in told["objects"]) == 2
    assert 0 <= told["confidence"] <= 1


def test_the_things_of_a_scene_choose_its_style_together(pack, memory, scenes):
    pixels = render(pack, scenes[0])[0]
    (seen,) = Recaller(Sighted(scenes[:1]), memory).look([pixels])
    away = [{"flat": 1.0, "outline": 1.1}, {"flat": 1.0, "outline": 1.1}, {"flat": 9.0, "outline": 1.0}]
    things = [seen[0]._replace(recalled=seen[0].recalled._replace(styles=one)) for one in away]
    assert recall._reading(pixels, things[:2]).scene.style == "flat"
    assert recall._reading(pixels, things).scene.style == "outline"  # though two of three are nearer to the other


def test_the_ground_is_read_off_the_rim(pack, scenes):
    for scene in scenes:
        found = ground(render(pack, scene)[0]).background
        assert (found.colours, found.split) == (scene.background.colours, scene.background.split)


def test_an_empty_picture_has_no_things_and_says_so(memory):
    class Blind:
        batch = 1

        def scores(self, pictures, phrases):
            return np.full((1, 1, 4), 0.5), np.ones((1, 1, len(phrases)))

    picture = images.from_uint8(np.full((1, 40, 30, 3), 252, np.uint8))
    assert Recaller(Blind(), memory).caption(picture)[0].text == "nothing on white"
    assert Recaller(Blind(), memory).caption(picture, "fr")[0].text == "rien sur fond blanc"
    with pytest.raises(CartoucheError, match="threshold"):
        Recaller(Blind(), memory, threshold=2)


def test_a_saved_memory_recalls_the_same(pack, memory, tmp_path):
    memory.save(tmp_path)
    again = Memory.load(tmp_path)
    for drawing in pack.drawings:
        x = pack.pixels(drawing).astype(np.float32) / 255
        found, same = (one.recall(Look(x[..., :3] * x[..., 3:], x[..., 3])) for one in (memory, again))
        assert found.drawing.concept == same.drawing.concept == drawing.concept
        assert found.drawing.style == same.drawing.style == drawing.style
        assert found.sure == pytest.approx(same.sure, abs=0.01) and not found.mirrored
    assert families(again.drawings, "fr") == families(memory.drawings, "fr")


@pytest.mark.parametrize("name", ["drawings.safetensors", "concepts.json"])
def test_a_damaged_memory_is_refused(memory, tmp_path, name):
    memory.save(tmp_path)
    (tmp_path / name).write_bytes(b"{}" if name.endswith("json") else (tmp_path / name).read_bytes()[:-7])
    with pytest.raises(CartoucheError, match=name.partition(".")[0] if name[0] == "d" else "memory"):
        Memory.load(tmp_path)


def test_a_large_picture_is_read_as_the_small_one_is(pack, memory, scenes):
    scene = next(one for one in scenes if len(one.objects) == 2)
    small = render(pack, scene)[0]
    large = small.repeat(6, 0).repeat(6, 1)
    before, after = (Recaller(Sighted([scene]), memory).look([one])[0] for one in (small, large))
    for one, same in zip(before, after, strict=True):
        assert same.recalled.drawing == one.recalled.drawing and same.mask.shape == (768, 768)
        np.testing.assert_allclose(np.array(same.box) / 6, one.box, atol=1)
        assert mask_iou(same.mask[None], one.mask.repeat(6, 0).repeat(6, 1)[None])[0, 0] > 0.9
