"""The referee learns to read made-up scenes, its losses have their closed forms, and verdicts follow from readings."""

import numpy as np
import pytest
import torch
from toy_pack import write_pack

from cartouche.config import CartoucheError
from cartouche.data import palette
from cartouche.data.emoji import Pack
from cartouche.data.scenes import Composer, Mixture, render
from cartouche.data.streams import Scenes
from cartouche.measure.nearest import Nearest
from cartouche.measure.obedience import asks, holds, matched, rate, rates, verdict
from cartouche.nets.referee import Referee, RefereeConfig
from cartouche.read.referee import Reading, RefereeReader, Sighting, peaks
from cartouche.train.referee import RefereeSamples, RefereeTask, focal, heatmap
from cartouche.train.stream import collate
from cartouche.weights.folder import load_net, save_net


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return Pack(write_pack(tmp_path_factory.mktemp("pack")))


@pytest.fixture(scope="module")
def config(pack):
    train = pack.of("train")
    concepts, styles = sorted({d.concept for d in train}), sorted({d.style for d in train})
    return RefereeConfig(tuple(concepts), tuple(styles), palette.NAMES, width=16, depth=1)


@pytest.fixture(scope="module")
def samples(pack, config):
    return RefereeSamples(Scenes(pack, Composer(pack.of("train"), seed=8)), config)


def test_the_heatmap_peaks_where_the_centres_are(samples):
    batch = collate([samples[i] for i in range(16)])
    target = heatmap(batch["objects"], torch.Size((16, 16)))
    for rows, peak in zip(batch["objects"], target, strict=True):
        there = rows[rows[:, 0] > 0]
        assert int((peak > 0.999).sum()) == len({(int(r[1]), int(r[2])) for r in there})
        assert all(peak[int(r[2]), int(r[1])] == 1 for r in there)


def test_focal_loss_is_small_for_the_truth_and_large_for_its_opposite():
    target = torch.zeros(1, 4, 4)
    target[0, 1, 2] = 1
    right = torch.where(target > 0.5, 9.0, -9.0)
    assert focal(right, target) < 1e-3
    assert focal(-right, target) > 10


def test_the_referee_overfits_a_few_scenes_and_then_reads_them(samples, config, pack, tmp_path):
    torch.manual_seed(0)
    net, task = Referee(config), RefereeTask(smoothing=0.0)
    batch = collate([samples[i] for i in range(4)])
    optimizer = torch.optim.AdamW(net.parameters(), 6e-3)
    first = None
    for step in range(160):
        loss, notes = task(net, batch, torch.Generator().manual_seed(step))
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.15 * first
    assert notes["right"] == 1.0
    save_net(tmp_path, net)
    readings = RefereeReader(tmp_path).read(batch["image"].numpy())
    for i, reading in enumerate(readings):
        scene = samples.scenes.composer[i]
        assert reading.background == scene.background.colours
        assert reading.style == scene.style
        assert sorted(s.concept for s in reading.objects) == sorted(p.drawing.concept for p in scene.objects)


def test_the_referee_survives_its_folder(config, tmp_path):
    net = Referee(config).eval()
    save_net(tmp_path, net)
    again = load_net(tmp_path)
    x = torch.zeros(1, 3, 64, 64)
    torch.testing.assert_close(again(x).style, net(x).style)
    with pytest.raises(CartoucheError, match="never learned"):
        RefereeReader(tmp_path, among=["c9"])


def test_peaks_are_local_and_above_the_threshold():
    chance = torch.zeros(6, 6)
    chance[1, 1], chance[1, 2], chance[4, 4], chance[5, 0] = 0.9, 0.8, 0.5, 0.2
    assert peaks(chance).nonzero().tolist() == [[1, 1], [4, 4]]


def reading_of(scene, **changes):
    """What a perfect reader says of the scene."""
    objects = tuple(Sighting(p.drawing.concept, 1.0, tuple(map(float, p.box))) for p in scene.objects)
    perfect = Reading(objects, scene.style, scene.background.split, scene.background.colours)
    return Reading(**{**vars(perfect), **changes})


@pytest.mark.parametrize("line", ["single", "two", "counting"])
def test_a_perfect_reading_is_right_in_every_clause_and_a_wrong_one_is_not(pack, line):
    family = {d.concept: d.family for d in pack.drawings}
    for ask in asks(line, pack.of("train"), 20):
        assert all(verdict(line, ask.scene, reading_of(ask.scene), family).values())
        nothing = verdict(line, ask.scene, reading_of(ask.scene, objects=(), style="x", background=("x",)), family)
        assert not any(nothing.values())


def test_one_sighting_answers_for_one_object_only(pack):
    family = {d.concept: d.family for d in pack.drawings}
    scene = next(
        s for s in (Composer(pack.of("train"), 1, mixture=Mixture(count=(0, 1, 0, 0), same=1))[i] for i in range(9))
    )
    one = Sighting(scene.objects[0].drawing.concept, 1.0, (0, 0, 9, 9))
    assert matched(scene, [one], family) == [one, None]


def test_positions_are_judged_by_centres():
    a, b = (0, 0, 10, 10), (20, 5, 30, 15)
    assert holds("left", a, b)
    assert not holds("right", a, b)
    assert holds("above", a, b)


def test_wilson_intervals_hold_the_rate_and_the_textbook_value():
    half = rate([True] * 50 + [False] * 50)
    assert half["rate"] == 0.5
    assert (round(half["low"], 4), round(half["high"], 4)) == (0.4038, 0.5962)
    assert rates([{"a": True}, {"a": False, "b": True}])["b"] == rate([True])


def test_the_nearest_drawing_to_a_planted_copy_is_the_copied_one(pack):
    train = [d for d in pack.of("train") if d.style == "flat"]
    look = Nearest(pack, train)
    composer = Composer(train, 2, mixture=Mixture(count=(1, 0, 0, 0), two_tone=0, tint=0, symbols=0))
    for i in range(12):
        scene = composer[i]
        found = look(render(pack, scene)[0], scene.objects[0].box)
        assert found.key == scene.objects[0].drawing.key
        assert found.distance < 0.02
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    assert look(noise, (10, 10, 90, 90)).distance > 0.1
