"""A text tower taught what words look like: what it is shown, what it is asked, and that it learns it."""

import copy

import numpy as np
import pytest
import torch
from toy_pack import MORE_THINGS, write_pack

from cartouche.data.captions import FULL
from cartouche.data.emoji import Pack
from cartouche.data.scenes import Composer, Mixture, Placed, cutout
from cartouche.data.streams import Scenes
from cartouche.nets.clip import CLIPTextModel
from cartouche.nets.clip_config import CLIPTextConfig
from cartouche.read.memory import Look, Memory
from cartouche.text import Tokenizer
from cartouche.train.looks import Looks, Picturing, Teller, in_place, squared_error
from cartouche.train.loop import TrainSettings, fit

NUMBERS, BATCH = 4, 8


@pytest.fixture(scope="module")
def looks(tmp_path_factory):
    pack = Pack(write_pack(tmp_path_factory.mktemp("pack"), MORE_THINGS))
    stream = Scenes(pack, Composer(pack.of("train"), seed=1, mixture=Mixture(count=(2, 1, 1, 0))), FULL)
    tokenizer = Tokenizer.train([stream[i]["caption"] for i in range(60)], 600, 40)
    memory = Memory.of(pack.of("train"), pack.pixels, NUMBERS, fit=1)

    def look(placed: Placed) -> np.ndarray:
        x0, y0, x1, y1 = placed.box
        colour, alpha = cutout(pack.pixels(placed.drawing), (x1 - x0, y1 - y0), placed)
        return memory.numbers(Look(colour / 255, alpha[..., 0])) / 10

    return Looks.of(stream, tokenizer, look, 50, BATCH), tokenizer, stream


def tower(tokenizer):
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.vocab_size - 2, "eos_token_id": tokenizer.vocab_size - 1}
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=40, **shape, **ends))


def test_a_batch_holds_captions_of_like_length_and_each_is_seen_once_a_round(looks):
    source, _, _ = looks
    assert len(source.ids) == 48 and source.looks.shape == (48, 2, NUMBERS)
    lengths = (source.ids != source.end).sum(1)
    assert (np.diff(lengths) >= 0).all()
    rounds = [[source.gather(range(i, i + BATCH)) for i in range(first, first + 48, BATCH)] for first in (0, 48)]
    for batches in rounds:
        seen = np.concatenate([one["looks"][:, 0, 0] for one in batches])
        np.testing.assert_allclose(np.sort(seen), np.sort(source.looks[:, 0, 0]))
        for one in batches:
            cut = (one["ids"] != source.end).sum(1)
            assert one["ids"].shape[1] == 40 or one["ids"].shape[1] == cut.max() + 2
            assert ((one["ids"] == source.end).sum(1) >= 2).all()
    assert rounds[0][0]["ids"].shape[1] == 40  # every eighth run keeps the padding that drawing meets
    order = [[one["looks"].sum() for one in batches] for batches in rounds]
    assert order[0] != order[1] and np.allclose(sorted(order[0]), sorted(order[1]))
    np.testing.assert_array_equal(source[5]["looks"], source.gather(range(BATCH))["looks"][5])


def test_one_thing_is_shown_twice_and_two_are_both_shown(looks):
    source, _, stream = looks
    shown = [len(stream.composer[i].counts()) for i in range(80)]
    taken = [count for count in shown if count <= 2][: len(source.ids)]
    same = (source.looks[:, 0] == source.looks[:, 1]).all(-1)
    assert 3 in shown and int(same.sum()) == taken.count(1) < len(taken)


def test_the_left_or_upper_thing_comes_first_wherever_a_caption_says_so(looks):
    _, _, stream = looks
    told = {"left": 0, "right": 0, "above": 0, "below": 0, "": 0}
    for i in range(300):
        scene = stream.composer[i]
        first, last, placed = in_place(scene)
        if first is last:
            assert placed and len(scene.counts()) == 1
            continue
        where = scene.relation(0, 1) if len(scene.objects) == 2 else ""
        told[where] += 1
        assert placed == bool(where)
        if where:
            axis = 0 if where in ("left", "right") else 1
            assert first.centre[axis] < last.centre[axis]
            across = ("left", "right", "gauche", "droite")
            says = across if axis == 0 else ("above", "below", "haut", "bas", "top", "bottom")
            assert any(word in stream.caption(scene, i) for word in says)
    assert min(told[where] for where in ("left", "right", "above", "below")) > 5


def test_what_is_placed_keeps_its_order_and_what_is_not_may_come_in_either():
    one, other = torch.ones(1, 3), torch.zeros(1, 3)
    wanted = torch.stack([one, other], 1)
    free, fixed = torch.tensor([False]), torch.tensor([True])
    assert squared_error(wanted, wanted, free).item() == squared_error(wanted.flip(1), wanted, free).item() == 0
    assert squared_error(wanted, wanted, fixed).item() == 0 and squared_error(wanted.flip(1), wanted, fixed).item() == 1
    assert squared_error(torch.stack([one, one], 1), wanted, free).item() == pytest.approx(0.5)


def test_looks_are_read_off_what_follows_the_caption_at_even_and_at_odd_places(looks):
    source, tokenizer, _ = looks
    net = Teller(tower(tokenizer), NUMBERS).eval()
    ids = torch.from_numpy(source.gather(range(BATCH))["ids"])
    said, states = net(ids)
    for row, state, (first, last) in zip(ids, states, said, strict=True):
        ended = int((row == source.end).nonzero()[0])
        even, odd = ended + ended % 2, ended + 1 - ended % 2
        torch.testing.assert_close(first, net.look(state[even::2].mean(0)))
        torch.testing.assert_close(last, net.look(state[odd::2].mean(0)))


def test_the_echo_is_nothing_at_first_and_holds_the_tower_back(looks):
    source, tokenizer, _ = looks
    net = Teller(tower(tokenizer), NUMBERS)
    task = Picturing(net.text_encoder, echo=1.0)
    batch = {name: torch.from_numpy(value) for name, value in source.gather(range(BATCH)).items()}
    notes = [task(net, batch, torch.Generator().manual_seed(seed))[1] for seed in range(30)]
    moved = [one["moved"] for one in notes if "moved" in one]
    assert 3 < len(moved) < 20 and max(moved) < 1e-10
    with torch.no_grad():
        net.text_encoder.text_model.final_layer_norm.weight.mul_(1.5)
    seed = next(seed for seed, one in enumerate(notes) if "moved" in one)
    loss, after = task(net, batch, torch.Generator().manual_seed(seed))
    assert after["moved"] == pytest.approx(0.25, rel=0.02)
    assert loss.item() == pytest.approx(after["away"] + 3 * after["moved"], rel=1e-5)


def test_looks_are_learned(looks, tmp_path, one_thread):
    source, tokenizer, _ = looks
    net = Teller(tower(tokenizer), NUMBERS)
    before = copy.deepcopy(net.text_encoder.state_dict())
    settings = TrainSettings(steps=80, batch=BATCH, learning_rate=3e-3, warmup=5, ema=0.5, save_every=0, log_every=1000)
    losses = [one.notes["away"] for one in fit(settings, net, Picturing(net.text_encoder), source, tmp_path)]
    assert np.mean(losses[-6:]) < 0.5 * np.mean(losses[:6])
    assert any((net.text_encoder.state_dict()[name] != value).any() for name, value in before.items())
