"""The reader's losses have their closed forms, samples tell the truth, and each net learns a few scenes by heart."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from toy_pack import MORE_THINGS, write_pack

from cartouche.data import palette
from cartouche.data.captions import LANGUAGES
from cartouche.data.dialogue import Marks, scene_answer
from cartouche.data.emoji import Pack
from cartouche.data.questions import Asker
from cartouche.data.scenes import Composer, Mixture, render
from cartouche.data.streams import Scenes
from cartouche.nets.clip import CLIPTextConfig, CLIPVisionConfig
from cartouche.nets.clipseg import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegTextConfig, CLIPSegVisionConfig
from cartouche.nets.llama import LlamaConfig
from cartouche.nets.llava import LlavaConfig, LlavaForConditionalGeneration
from cartouche.nets.owlvit import OwlViTConfig, OwlViTForObjectDetection, OwlViTTextConfig, OwlViTVisionConfig
from cartouche.text import Tokenizer
from cartouche.train.describing import PLACES, Described, Describing
from cartouche.train.reading import (
    Detection,
    Segmentation,
    dice,
    focal,
    generalised_iou,
    naming,
    owners,
    trimmed,
    true_of,
)
from cartouche.train.scenes import Families, Masked, Pointed
from cartouche.train.stream import collate

WIDTH, CONTEXT, SIZE = 32, 24, 64
MIXTURE = Mixture(count=(1, 1, 1, 1), tint=0.5)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return Pack(write_pack(tmp_path_factory.mktemp("pack"), MORE_THINGS))


@pytest.fixture(scope="module")
def scenes(pack):
    return Scenes(pack, Composer(pack.of("train"), seed=5, size=SIZE, mixture=MIXTURE))


@pytest.fixture(scope="module")
def tokenizer(scenes):
    words = [text for i in range(400) for text in (scenes.caption(scenes.composer[i], i), f"question: answer: {i % 5}")]
    return Tokenizer.train([*words, scene_answer(scenes.composer[0])], vocab_size=900, context=CONTEXT)


@pytest.fixture(scope="module")
def marks(tokenizer):
    return Marks(tokenizer.start_id, tokenizer.end_id, tokenizer.vocab_size, (SIZE // 16) ** 2)


def towers(tokenizer, text=CLIPTextConfig, vision=CLIPVisionConfig):
    common = {"hidden_size": WIDTH, "intermediate_size": 64, "projection_dim": WIDTH, "num_attention_heads": 2}
    ids = {"pad_token_id": tokenizer.pad_id, "bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.end_id}
    words = text(**common, **ids, vocab_size=tokenizer.vocab_size, max_position_embeddings=CONTEXT, num_hidden_layers=1)
    return {
        "text_config": words,
        "vision_config": vision(**common, image_size=SIZE, patch_size=16, num_hidden_layers=1),
        "projection_dim": WIDTH,
    }


def learned(net, task, batch, steps, rate=3e-3):
    """The notes and losses of the first and the last step of learning one batch by heart."""
    optimizer = torch.optim.AdamW(net.parameters(), rate)
    first = None
    for step in range(steps):
        loss, notes = task(net, batch, torch.Generator().manual_seed(step))
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return first, loss.item(), notes


# closed forms


def test_giou_is_one_of_equal_boxes_and_negative_of_distant_ones():
    a = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 2.0]])
    b = torch.tensor([[0.0, 0.0, 1.0, 1.0], [3.0, 0.0, 4.0, 1.0], [1.0, 1.0, 3.0, 3.0]])
    expected = torch.tensor([1.0, 0.0 - 2 / 4, 1 / 7 - 2 / 9])
    torch.testing.assert_close(generalised_iou(a, b), expected)


def test_focal_loss_without_focus_is_cross_entropy_weighed():
    logits, truth = torch.randn(5, 7), (torch.rand(5, 7) > 0.5).float()
    plain = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    torch.testing.assert_close(focal(logits, truth, gamma=0, alpha=0.5), 0.5 * plain)
    one = focal(torch.tensor([2.0]), torch.tensor([1.0]))
    p = torch.sigmoid(torch.tensor([2.0]))
    torch.testing.assert_close(one, -0.25 * (1 - p) ** 2 * p.log())


def test_naming_is_cross_entropy_where_one_text_is_right_and_a_sum_where_two_are():
    logits = torch.randn(3, 6)
    right = F.one_hot(torch.tensor([1, 4, 0]), 6).bool()
    never = torch.zeros(3, 6, dtype=torch.bool)
    expected = F.cross_entropy(logits, torch.tensor([1, 4, 0]), reduction="none")
    torch.testing.assert_close(naming(logits, right, never), expected)
    both = right | F.one_hot(torch.tensor([2, 2, 2]), 6).bool()
    torch.testing.assert_close(naming(logits, both, never), -logits.softmax(-1)[both].view(3, 2).sum(-1).log())
    torch.testing.assert_close(naming(logits, never, never), torch.zeros(3))
    left_out = F.one_hot(torch.tensor([5, 5, 5]), 6).bool()
    torch.testing.assert_close(naming(logits, right, left_out), F.cross_entropy(logits[:, :5], torch.tensor([1, 4, 0]),
                                                                                reduction="none"))  # fmt: skip


def test_dice_is_nothing_for_the_mask_itself_and_leaves_empty_masks_out():
    mask = torch.zeros(2, 8, 8)
    mask[0, 2:5, 2:5] = 1
    assert dice(mask, mask) < 1e-6
    assert dice(1 - mask, mask) > 0.9


def test_texts_are_true_of_their_family_and_colour_and_unsure_where_there_is_no_colour():
    right, unsure = true_of(torch.tensor([3, 3, -1]), torch.tensor([1, -1, -1]), torch.tensor([3, 3, 3, 4, -1]),
                            torch.tensor([-1, 1, 2, -1, -1]))  # fmt: skip
    assert right.tolist() == [[True, True, False, False, False], [True, False, False, False, False], [False] * 5]
    assert unsure.tolist() == [[False] * 5, [False, True, True, False, False], [False] * 5]


def test_tokens_belong_to_the_object_they_lie_in_and_one_lies_under_each_centre():
    boxes = torch.tensor([[[0.25, 0.25, 0.5, 0.5], [0.8, 0.8, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0]]])
    centre, owner, weight = owners(boxes, torch.tensor([[True, True, False]]), 16, middle=4.0)
    grid = weight.view(4, 4)
    assert (grid[:2, :2] > 0).all()
    assert grid[3, 3] == 4.0
    assert (weight > 0).sum() == 5 + int(grid[:3, :3].count_nonzero() - 4)
    assert owner.view(4, 4)[3, 3] == 1
    assert owner.view(4, 4)[0, 0] == 0
    assert centre.sum() >= 2


def test_trimming_leaves_every_end_of_text():
    ids = torch.tensor([[8, 1, 9, 9, 9, 9, 9, 9, 9, 9], [8, 1, 1, 1, 9, 9, 9, 9, 9, 9]])
    assert trimmed(ids).shape == (2, 8)


# samples


def test_what_is_pointed_at_is_what_is_there(pack, scenes, tokenizer):
    families = Families(pack, "train", tokenizer)
    source = Pointed(scenes, families, tokenizer)
    for i in range(60):
        sample, scene = source[i], scenes.composer[i]
        assert sample["there"].sum() == len(scene.objects)
        for row, placed in enumerate(scene.objects):
            x, y, w, h = sample["boxes"][row] * SIZE
            np.testing.assert_allclose((x - w / 2, y - h / 2, x + w / 2, y + h / 2), placed.box, atol=1e-4)
            text = tokenizer.decode(sample["ids"][row])
            names = {" ".join(tokenizer.decode(tokenizer.encode(placed.drawing.name(one)).ids) for _ in [0])
                     for one in LANGUAGES}  # fmt: skip
            assert any(name in text for name in names)
            if sample["said"][row] >= 0:
                colour = palette.NAMES[sample["said"][row]]
                assert colour == placed.colour
                assert colour in text or palette.COLOURS[colour].nom in text
    np.testing.assert_array_equal(source[7]["image"], Pointed(scenes, families, tokenizer)[7]["image"])


def test_masks_are_of_what_the_text_names_and_empty_for_what_is_not_there(pack, scenes, tokenizer):
    source = Masked(scenes, pack.of("train"), tokenizer)
    empty = 0
    for i in range(60):
        sample, scene = source[i], scenes.composer[i]
        every = render(pack, scene)[1].any(0)
        for mask in sample["mask"]:
            assert not (mask & ~every).any()
            empty += not mask.any()
    assert 10 < empty < 70


def test_what_is_to_be_said_is_learned_to_its_end_and_the_prompt_is_not(scenes, pack, tokenizer, marks):
    source = Described(scenes, Asker(pack.of("train")), tokenizer, marks)
    sample = source[0]
    for kind, places in PLACES.items():
        ids, said = sample[kind], sample[f"{kind}_said"]
        assert ids.shape == said.shape
        assert ids.shape[1] == places
        for row, mine in zip(ids, said, strict=True):
            if mine.any():
                assert row[mine][-1] == marks.end
                assert (np.diff(np.flatnonzero(mine)) == 1).all()
                assert not mine[0]
    assert not source[1]["scene_said"].any()


# tasks


def test_a_detector_learns_scenes_by_heart(pack, scenes, tokenizer):
    torch.manual_seed(0)
    families = Families(pack, "train", tokenizer)
    source = Pointed(scenes, families, tokenizer)
    net = OwlViTForObjectDetection(OwlViTConfig(**towers(tokenizer, OwlViTTextConfig, OwlViTVisionConfig)))
    task = Detection(torch.from_numpy(families.ids), torch.from_numpy(families.of_ids), others=4)
    first, last, notes = learned(net, task, collate([source[i] for i in range(4)]), 100, 6e-3)
    assert last < 0.45 * first
    assert notes["named"] > 0.7
    assert notes["iou"] > 0.4


@pytest.mark.usefixtures("one_thread")  # so few pictures and such a rate: other sums, another course
def test_a_segmenter_learns_scenes_by_heart(pack, scenes, tokenizer):
    torch.manual_seed(0)
    source = Masked(scenes, pack.of("train"), tokenizer)
    shape = towers(tokenizer, CLIPSegTextConfig, CLIPSegVisionConfig)
    config = CLIPSegConfig(**shape, extract_layers=(0,), reduce_dim=16, decoder_intermediate_size=32)
    net = CLIPSegForImageSegmentation(config)
    torch.nn.init.ones_(net.decoder.film_mul.bias)
    first, last, notes = learned(net, Segmentation(), collate([source[i] for i in range(3)]), 300, 1e-2)
    assert last < 0.6 * first
    assert notes["iou"] > 0.35


@pytest.fixture(scope="module")
def captioner(tokenizer, marks):
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=tokenizer.vocab_size + 1,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    vision = towers(tokenizer)["vision_config"]
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=marks.image, vision_feature_layer=-1)
    )


def test_reading_the_picture_once_gives_the_loss_of_reading_it_for_every_turn(
    captioner, scenes, pack, tokenizer, marks
):
    source = Described(scenes, Asker(pack.of("train")), tokenizer, marks, questions=1)
    batch = collate([source[i] for i in range(3)])
    task = Describing(marks)
    loss, _ = task(captioner, batch, torch.Generator())
    losses = []
    for i in range(3):
        for kind in PLACES:
            ids, said = batch[kind][i, 0], batch[f"{kind}_said"][i, 0]
            whole = torch.cat([torch.tensor([marks.start]), torch.full((marks.patches,), marks.image), ids])[None]
            logits = captioner(whole, batch["image"][i : i + 1])[0, marks.patches : -1]
            losses.append(F.cross_entropy(logits[said], ids[said], reduction="none"))
    torch.testing.assert_close(loss, torch.cat(losses).mean())


def test_a_captioner_learns_scenes_by_heart(captioner, scenes, pack, tokenizer, marks):
    source = Described(scenes, Asker(pack.of("train")), tokenizer, marks, questions=1)
    batch = collate([source[i] for i in range(1, 4)])
    first, last, notes = learned(captioner, Describing(marks), batch, 70, 1e-2)
    assert last < 0.2 * first
    assert notes["caption"] > 0.9
