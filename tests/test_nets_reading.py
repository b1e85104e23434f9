"""The networks that read, against transformers: same names, same numbers, both ways; then the parts and the memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from cartouche.config import CartoucheError
from cartouche.nets.clip_config import CLIPVisionConfig
from cartouche.nets.clipseg import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegTextConfig,
    CLIPSegVisionConfig,
)
from cartouche.nets.llama import LlamaConfig, LlamaForCausalLM, rotation, turned
from cartouche.nets.llava import LlavaConfig, LlavaForConditionalGeneration
from cartouche.nets.owlvit import (
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTTextConfig,
    OwlViTVisionConfig,
    corners,
    grid_bias,
)
from cartouche.weights import folder

TEXT: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 99,
    "max_position_embeddings": 16,
    "bos_token_id": 97,
    "eos_token_id": 98,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
LLAMA: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
IMAGE = 98
PATCHES = 16


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def detector() -> OwlViTForObjectDetection:
    text, vision = OwlViTTextConfig(**TEXT), OwlViTVisionConfig(**VISION)
    return OwlViTForObjectDetection(OwlViTConfig(text_config=text, vision_config=vision, projection_dim=24))


def segmenter(**changes: Any) -> CLIPSegForImageSegmentation:
    text, vision = CLIPSegTextConfig(**TEXT), CLIPSegVisionConfig(**VISION)
    small = {"extract_layers": (0, 2), "reduce_dim": 16, "decoder_intermediate_size": 24, "projection_dim": 20}
    return CLIPSegForImageSegmentation(CLIPSegConfig(text_config=text, vision_config=vision, **small | changes))


def speaker(**changes: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**LLAMA | changes))


def describer(text: dict[str, Any] | None = None, **changes: Any) -> LlavaForConditionalGeneration:
    halves = {"vision_config": CLIPVisionConfig(**VISION), "text_config": LlamaConfig(**LLAMA | (text or {}))}
    return LlavaForConditionalGeneration(LlavaConfig(image_token_index=IMAGE, **halves, **changes))


NETS = {
    "owlvit": detector,
    "clipseg": segmenter,
    "clipseg complex": lambda: segmenter(use_complex_transposed_convolution=True, conditional_layer=1),
    "llama": speaker,
    "llama grouped": lambda: speaker(num_key_value_heads=2, head_dim=8, rope_theta=500.0, attention_bias=True),
    "llama tied": lambda: speaker(tie_word_embeddings=True, mlp_bias=True, num_key_value_heads=1),
    "llava": describer,
    "llava tied": lambda: describer({"tie_word_embeddings": True}, vision_feature_layer=-1),
    "llava several layers": lambda: describer(
        vision_feature_layer=(-3, -1), vision_feature_select_strategy="full", multimodal_projector_bias=False
    ),
}


def inputs(kind: str, net: nn.Module) -> tuple[Tensor, ...]:
    """What the net's forward takes."""
    pixels = torch.randn(2, 3, 32, 32)
    if kind.startswith("owlvit"):
        return pixels, texts(3)
    if kind.startswith("clipseg"):
        return pixels, texts(2)
    if kind.startswith("llama"):
        return (torch.randint(0, 97, (2, 9)),)
    return prompt(net.config.image_tokens), pixels  # type: ignore[union-attr, arg-type, operator]


def texts(rows: int) -> Tensor:
    """Texts of growing length, padded with the token that ends them."""
    ids = torch.randint(1, 97, (rows, 12))
    for row in range(rows):
        ids[row, 3 + 2 * row :] = 98
    return ids


def prompt(patches: int, pictures: int = 1, rows: int = 2) -> Tensor:
    """A word, then pictures with words after each."""
    parts = [torch.randint(0, 97, (rows, 1))]
    for _ in range(pictures):
        parts += [torch.full((rows, patches), IMAGE), torch.randint(0, 97, (rows, 3))]
    return torch.cat(parts, dim=1)


def reference(kind: str, folder: Path) -> nn.Module:
    """The folder as transformers opens it, nothing left over."""
    name = {
        "owlvit": "OwlViTForObjectDetection",
        "clipseg": "CLIPSegForImageSegmentation",
        "llama": "LlamaForCausalLM",
        "llava": "LlavaForConditionalGeneration",
    }[kind.split()[0]]
    net, notes = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not notes["missing_keys"] and not notes["unexpected_keys"] and not notes["mismatched_keys"]
    return net.eval()


def outputs_of(kind: str, net: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What transformers computes of our inputs, in our order."""
    if kind.startswith("owlvit"):
        pixels, ids = given
        out = net(input_ids=ids.repeat(len(pixels), 1), pixel_values=pixels)
        return out.logits, out.pred_boxes, out.class_embeds
    if kind.startswith("clipseg"):
        return (net(pixel_values=given[0], input_ids=given[1]).logits,)
    if kind.startswith("llama"):
        return (net(input_ids=given[0]).logits,)
    return (net(input_ids=given[0], pixel_values=given[1]).logits,)


def spread(net: nn.Module) -> None:
    """Move every number away from its start, so that no term is tested at zero or one."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def compare(ours: Any, theirs: tuple[Tensor, ...], tolerance: float = 1e-5) -> None:
    ours = ours if isinstance(ours, tuple) else (ours,)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kind", NETS)
@torch.no_grad()
def test_our_folder_opens_in_transformers_and_theirs_here_with_the_same_numbers(kind: str, tmp_path: Path) -> None:
    ours = NETS[kind]().eval()
    spread(ours)
    given = inputs(kind, ours)
    folder.save_net(tmp_path / "ours", ours)
    theirs = reference(kind, tmp_path / "ours")
    compare(ours(*given), outputs_of(kind, theirs, given))
    spread(theirs)
    theirs.save_pretrained(tmp_path / "theirs")  # type: ignore[operator]
    again = folder.load_net(tmp_path / "theirs")
    assert type(again) is type(ours)
    compare(again(*given), outputs_of(kind, theirs, given))


@pytest.mark.parametrize("kind", NETS)
def test_a_configuration_survives_its_config_json(kind: str) -> None:
    config: Any = NETS[kind]().config
    assert type(config).from_dict(config.to_dict()) == config


# parts


@torch.no_grad()
def test_text_and_picture_encoded_apart_give_the_detections_of_both_together() -> None:
    net = detector().eval()
    spread(net)
    pixels, ids = torch.randn(2, 3, 32, 32), texts(3)
    logits, boxes, embeds = net(pixels, ids)
    found, apart, shift, scale = net.detect(pixels)
    assert boxes.shape == (2, PATCHES, 4) and embeds.shape == (2, PATCHES, 24) and shift.shape == scale.shape
    compare((found, apart, net.match(apart, shift, scale, net.queries(ids))), (boxes, embeds, logits), 1e-6)


def test_a_silent_box_head_puts_a_patch_at_every_token() -> None:
    boxes = grid_bias(4).sigmoid()
    assert boxes.shape == (16, 4)
    torch.testing.assert_close(boxes[:, 2:], torch.full((16, 2), 0.25), atol=1e-3, rtol=0)
    torch.testing.assert_close(boxes[6, :2], torch.tensor([0.75, 0.5]), atol=1e-3, rtol=0)


def test_centre_and_size_become_corners() -> None:
    assert corners(torch.tensor([[0.5, 0.25, 0.5, 0.5]])).tolist() == [[0.25, 0.0, 0.75, 0.5]]


@torch.no_grad()
def test_one_encoded_picture_serves_many_masks() -> None:
    net = segmenter().eval()
    spread(net)
    pixels, ids = torch.randn(1, 3, 32, 32), texts(3)
    features, queries = net.features(pixels), net.queries(ids)
    masks = net.segment(features.expand(3, -1, -1, -1), queries)
    assert masks.shape == (3, 32, 32)
    compare(masks, (net(pixels.expand(3, -1, -1, -1), ids),), 1e-6)


@torch.no_grad()
def test_masks_of_a_larger_picture_and_of_an_example_are_the_references(tmp_path: Path) -> None:
    ours = segmenter().eval()
    spread(ours)
    folder.save_net(tmp_path, ours)
    theirs: Any = reference("clipseg", tmp_path)
    large, example = torch.randn(2, 3, 48, 48), torch.randn(2, 3, 32, 32)
    masks = ours.segment(ours.features(large), ours.examples(example))
    compare(masks, (theirs(pixel_values=large, conditional_pixel_values=example).logits,))


def test_a_picture_that_patches_do_not_divide_is_refused() -> None:
    with pytest.raises(CartoucheError, match="square whose side 8 divides"):
        segmenter()(torch.zeros(1, 3, 36, 36), texts(1))


# the memory


@pytest.mark.parametrize("kind", ["llama", "llama grouped", "llama tied"])
@torch.no_grad()
def test_reading_token_by_token_with_a_memory_equals_reading_at_once(kind: str) -> None:
    net: Any = NETS[kind]().eval()
    spread(net)
    ids = torch.randint(0, 97, (2, 9))
    whole = net(ids)
    memory, seen = net.empty(2), []
    for part in ids.split([4, 1, 1, 3], dim=1):
        logits, *memory = net.step(net.embed(part), *memory)
        seen.append(logits)
    compare(torch.cat(seen, dim=1), (whole,))
    assert memory[0].shape == (2, 2, net.config.key_value_heads, 9, net.config.width_of_head)


def test_rotary_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def product(here: int, there: int) -> float:
        waves = [rotation(torch.tensor([place]), 8, 100.0, torch.float32) for place in (here, there)]
        return float((turned(q, *waves[0]) * turned(k, *waves[1])).sum())

    assert product(5, 3) == pytest.approx(product(12, 10), abs=1e-5)
    assert product(5, 3) != pytest.approx(product(5, 4), abs=1e-3)


# pictures among words


@torch.no_grad()
def test_several_pictures_stand_in_one_prompt(tmp_path: Path) -> None:
    ours = describer().eval()
    spread(ours)
    folder.save_net(tmp_path, ours)
    ids, pixels = prompt(PATCHES, pictures=3), torch.randn(6, 3, 32, 32)
    compare(ours(ids, pixels), outputs_of("llava", reference("llava", tmp_path), (ids, pixels)))


@torch.no_grad()
def test_an_answer_step_by_step_equals_the_whole_conversation() -> None:
    net = describer().eval()
    spread(net)
    ids, pixels = prompt(PATCHES), torch.randn(2, 3, 32, 32)
    said = torch.randint(0, 97, (2, 4))
    logits, *memory = net.step(net.prompt(ids, net.features(pixels)), *net.empty(2))
    seen = [logits]
    for part in said.split(1, dim=1):
        logits, *memory = net.step(net.embed(part), *memory)
        seen.append(logits)
    compare(torch.cat(seen, dim=1), (net(torch.cat([ids, said], dim=1), pixels),))


def test_pictures_that_do_not_fit_their_places_are_refused() -> None:
    net = describer()
    with pytest.raises(CartoucheError, match="32 image tokens in the prompt for 48 tokens of pictures"):
        net(prompt(PATCHES), torch.zeros(3, 3, 32, 32))


# configurations


def test_what_cannot_be_built_is_refused_with_what_to_do() -> None:
    with pytest.raises(CartoucheError, match="projection_dim=512 with a text tower of width 24"):
        OwlViTConfig(text_config=OwlViTTextConfig(**TEXT), projection_dim=512)
    with pytest.raises(CartoucheError, match=r"extract_layers=\(3, 6, 9\) of a tower of 3; choose 0 to 2"):
        CLIPSegConfig(vision_config=CLIPSegVisionConfig(**VISION))
    with pytest.raises(CartoucheError, match="num_key_value_heads=3 does not divide 4"):
        LlamaConfig(**LLAMA, num_key_value_heads=3)
    with pytest.raises(CartoucheError, match="rope_type='llama3' is not built here"):
        LlamaConfig.from_dict({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}})
    with pytest.raises(CartoucheError, match="image_token_index=99 in a vocabulary of 99"):
        replace(describer().config, image_token_index=99)
    with pytest.raises(CartoucheError, match="vision_feature_layer=-5 of a tower of 3"):
        replace(describer().config, vision_feature_layer=-5)
    with pytest.raises(CartoucheError, match="vision_feature_select_strategy='all'"):
        replace(describer().config, vision_feature_select_strategy="all")


def test_settings_of_published_files_are_understood() -> None:
    """Fields as in the config.json of llava-1.5-7b and of Llama 2."""
    text = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32064, "torch_dtype": "float16"}
    text |= {"pretraining_tp": 1, "rope_scaling": None, "hidden_act": "silu", "use_cache": True}
    vision = {"model_type": "clip_vision_model", "vocab_size": 32000, "projection_dim": 768, "image_size": 336}
    vision |= {"patch_size": 14, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    given = {"text_config": text, "vision_config": vision, "model_type": "llava", "ignore_index": -100}
    given |= {"image_token_index": 32000, "projector_hidden_act": "gelu", "vision_feature_layer": -2}
    config = LlavaConfig.from_dict(given)
    assert config.text_config.vocab_size == 32064 and config.image_tokens == 576
