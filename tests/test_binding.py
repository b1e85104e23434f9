"""Pairs of scenes that differ by one small thing, the facts that tell them apart, and CLIP told to mind them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from toy_pack import MORE_THINGS, write_pack

from cartouche.config import CartoucheError
from cartouche.data import palette
from cartouche.data.captions import LANGUAGES
from cartouche.data.emoji import Pack
from cartouche.data.negatives import CHANGES, SAYING, Negatives, Pairs
from cartouche.data.scenes import Composer, Mixture
from cartouche.data.streams import Scenes
from cartouche.nets.clip import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig
from cartouche.read.memory import Memory
from cartouche.text import Tokenizer
from cartouche.train.binding import Binding, Bound
from cartouche.train.facts import COUNTS, UNKNOWN, Facts, Telling, Told, Witness, in_order, untold
from cartouche.train.stream import collate
from cartouche.train.tasks import contrastive_loss

CONTEXT, SIZE, NUMBERS = 24, 64, 4


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return Pack(write_pack(tmp_path_factory.mktemp("pack"), MORE_THINGS))


@pytest.fixture(scope="module")
def pairs(pack):
    composer = Composer(pack.of("train"), seed=5, size=SIZE, mixture=Mixture(count=(1, 1, 1, 1), tint=0.5))
    return Pairs(composer, Negatives(pack.of("train")))


@pytest.fixture(scope="module")
def facts(pack):
    memory = Memory.of(pack.of("train"), pack.pixels, NUMBERS, fit=1)
    return Facts.about(memory.drawings, memory.codes * memory.scale)


@pytest.fixture(scope="module")
def tokenizer(pack, pairs):
    stream = Scenes(pack, pairs.composer, SAYING)
    return Tokenizer.train([stream[i]["caption"] for i in range(300)], vocab_size=900, context=CONTEXT)


@pytest.fixture
def witness(tokenizer):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    ids = {"pad_token_id": tokenizer.pad_id, "bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.end_id}
    words = CLIPTextConfig(**shape, **ids, vocab_size=tokenizer.vocab_size, max_position_embeddings=CONTEXT)
    eye = CLIPVisionConfig(**shape, image_size=SIZE, patch_size=16)
    return Witness(CLIPModel(CLIPConfig(text_config=words, vision_config=eye, projection_dim=32)), NUMBERS)


def source(pack, pairs, facts, tokenizer, **settings):
    return Bound(pack, pairs, facts, tokenizer, **settings)


# pairs


def test_pairs_take_turns_and_come_again_for_their_number(pairs):
    made = [pairs[i] for i in range(16)]
    assert [one.change for one in made] == 4 * list(CHANGES)
    assert pairs[7] == made[7] and {one.language for one in made} == set(LANGUAGES)
    for one in made:
        said = [pairs.negatives.say(scene, one.seed, one.language) for scene in one.scenes]
        assert tuple(said) == one.captions and said[0] != said[1]


def test_scenes_without_pairs_are_told_of(pairs):
    lone = replace(pairs, composer=replace(pairs.composer, mixture=Mixture(count=(1, 0, 0, 0))))
    with pytest.raises(CartoucheError, match="none of 200 scenes can be changed in its relation"):
        lone[1]


def test_a_pack_in_which_nothing_may_be_absent_is_refused(pack):
    few = [one for one in pack.of("train") if one.family in sorted({d.family for d in pack.drawings})[:4]]
    with pytest.raises(CartoucheError, match="fewer than five families"):
        Negatives(few)


def test_negatives_come_with_their_pictures(pack, pairs, facts, tokenizer):
    sample = source(pack, pairs, facts, tokenizer, count=2)[3]
    assert sample["negatives"].shape == (2, CONTEXT)
    assert not (sample["negatives"] == sample["ids"]).all(-1).any()


def test_the_two_of_a_pair_lie_side_by_side_or_as_far_apart_as_is_asked(pack, pairs, facts, tokenizer):
    near, far = (source(pack, pairs, facts, tokenizer, apart=apart) for apart in (1, 4))
    for number in range(8):
        block, place = divmod(number, 4)
        others = far[8 * block + place], far[8 * block + place + 4]
        for one, other in zip((near[2 * number], near[2 * number + 1]), others, strict=True):
            assert one.keys() == other.keys()
            assert all((one[name] == other[name]).all() for name in one)
        assert (near[2 * number]["image"] != near[2 * number + 1]["image"]).any()
        assert (near[2 * number]["ids"] != near[2 * number + 1]["ids"]).any()


# facts


def test_the_two_of_a_pair_differ_in_the_fact_that_was_changed(pairs, facts):
    asked = {"colours": "colours", "relation": "looks", "counts": "looks", "count": "counts"}
    seen = dict.fromkeys(CHANGES, 0)
    for number in range(80):
        one = pairs[number]
        told = [facts.of(scene) for scene in one.scenes]
        if all(len(scene.counts()) <= 2 and each["placed"] for scene, each in zip(one.scenes, told, strict=True)):
            apart = {name for name in told[0] if (told[0][name] != told[1][name]).any()}
            assert asked[one.change] in apart, one
            seen[one.change] += 1
            if one.change == "relation":
                np.testing.assert_array_equal(told[0]["looks"], told[1]["looks"][::-1])
    assert min(seen.values()) > 3


def test_facts_are_those_of_the_scene(pairs, facts):
    for number in range(60):
        scene = pairs[number].scenes[0]
        told, counts = facts.of(scene), scene.counts()
        first, other, placed = in_order(scene)
        assert told["counts"][0] == len(scene.objects) and told["placed"] == placed
        assert told["known"] == (len(counts) <= 2)
        if not scene.background.split:
            assert palette.NAMES[told["colours"][0]] == scene.background.colours[0]
        if len(counts) == 2:
            assert told["counts"][1] == counts[first.drawing.concept] >= counts[other.drawing.concept]
            if len(scene.objects) == 2 and placed:
                assert first.centre < other.centre or first.centre[1] < other.centre[1]
                assert told["relation"] > 0
        elif len(counts) == 1:
            assert told["counts"].tolist()[1:] == [len(scene.objects), 0] and told["colours"][2] == UNKNOWN
            assert (told["looks"][0] == told["looks"][1]).all()
        else:
            assert (told["counts"][1:] == UNKNOWN).all() and told["relation"] == UNKNOWN


def test_what_is_told_rightly_costs_nothing_and_what_nobody_knows_is_not_asked(pairs, facts, witness):
    batch = collate([facts.of(pairs[i].scenes[0]) for i in range(12)])
    told = witness.tell(F.normalize(torch.randn(12, witness.clip.config.projection_dim), dim=-1))
    assert told["counts"].shape == (12, len(COUNTS), 5) and told["looks"].shape == (12, 2, NUMBERS)
    right = {
        name: 50.0 * F.one_hot(batch[name].clamp(min=0), told[name].shape[-1]).view_as(told[name])
        for name in ("counts", "colours", "relation")
    }
    loss, notes = untold(right | {"looks": batch["looks"]}, batch)
    assert float(loss) == pytest.approx(0, abs=1e-4) and set(notes.values()) == {1.0}
    nothing, notes = untold(right | {"looks": torch.zeros_like(batch["looks"])}, batch)
    assert float(nothing) == pytest.approx(1) and notes["looks"] == pytest.approx(0)


def test_a_stream_of_scenes_comes_with_its_facts(pack, pairs, facts):
    stream = Scenes(pack, pairs.composer)
    sample = Told(stream, facts)[4]
    assert sample["caption"] == stream[4]["caption"]
    assert all((sample[name] == one).all() for name, one in facts.of(pairs.composer[4]).items())


# learning


def test_hard_negatives_are_further_columns_and_pairs_are_told_apart_alone(pack, pairs, facts, tokenizer, witness):
    bound, clip = source(pack, pairs, facts, tokenizer, count=2), witness.clip
    batch = collate([bound[i] for i in range(6)])
    plain, _ = Telling(facts=0)(witness, batch, torch.Generator())
    hard, notes = Binding(facts=0)(witness, batch, torch.Generator())
    ids, false = batch["ids"], batch["negatives"].flatten(0, 1)
    images, texts = clip.encode_image(batch["image"]), clip.encode_text(torch.cat([ids, false]))
    scores = clip.logit_scale.exp() * images @ texts.T
    torch.testing.assert_close(plain, contrastive_loss(scores[:, :6], ids)[0])
    same = (ids[:, None] == ids[None]).all(-1).float()
    wanted = F.pad(same / same.sum(1, keepdim=True), (0, len(false)))
    again = scores.masked_fill(F.pad((false[None] == ids[:, None]).all(-1), (6, 0)), -1e9)
    columns = F.cross_entropy(scores[:, :6].T, wanted[:, :6])
    rivals = [scores[i, i ^ 1] - scores[i, i] for i in range(6)] + [scores[i ^ 1, i] - scores[i, i] for i in range(6)]
    between = 2 * F.softplus(torch.stack(rivals)).mean()
    torch.testing.assert_close(hard, 0.5 * (F.cross_entropy(again, wanted) + columns) + between, atol=1e-4, rtol=1e-4)
    with pytest.raises(CartoucheError, match="batch=5 given; pairs lie side by side"):
        Binding()(witness, {name: value[:5] for name, value in batch.items()}, torch.Generator())
    right = torch.stack(rivals).detach().view(2, 3, 2) < 0
    assert notes["told_apart"] == pytest.approx(float(right.all(2).all(0).float().mean()))


def test_pictures_and_captions_are_both_asked_for_facts_and_learn_them(pack, pairs, facts, tokenizer, witness):
    bound = source(pack, pairs, facts, tokenizer)
    batch = collate([bound[i] for i in range(8)])
    task = Telling(facts=2.0)
    contrast = Telling(facts=0)(witness, batch, torch.Generator())[0]
    vectors = (witness.clip.encode_image(batch["image"]), witness.clip.encode_text(batch["ids"]))
    apart = sum(untold(witness.tell(one), batch)[0] for one in vectors)
    torch.testing.assert_close(task(witness, batch, torch.Generator())[0], contrast + 2 * apart)
    optimizer = torch.optim.AdamW(witness.parameters(), 3e-3)
    for _ in range(150):
        loss, notes = task(witness, batch, torch.Generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for whose in ("picture", "caption"):
        assert notes[f"{whose}_counts"] > 0.9 and notes[f"{whose}_colours"] > 0.9 and notes[f"{whose}_looks"] > 0.7
