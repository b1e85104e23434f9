"""A model folder that reads, tiny and random: clip/, detector/, segmenter/, captioner/ and the words they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cartouche.text import Tokenizer

PIXELS, PATCHES, CONTEXT = 32, 16, 16
NAMES = ("cat", "dog", "red apple", "e-mail: new")
CAPTIONS = ("a red apple on a blue background", "two cats and a dog", "describe the picture:", "question: answer:")


def reading_model(path: Path, words: bool = True) -> Path:
    """Write the folder; its weights are random, its shapes those that the tests of reading know."""
    import torch

    from cartouche.nets.clip import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig
    from cartouche.nets.clipseg import (
        CLIPSegConfig,
        CLIPSegForImageSegmentation,
        CLIPSegTextConfig,
        CLIPSegVisionConfig,
    )
    from cartouche.nets.llama import LlamaConfig
    from cartouche.nets.llava import LlavaConfig, LlavaForConditionalGeneration
    from cartouche.nets.owlvit import OwlViTConfig, OwlViTForObjectDetection, OwlViTTextConfig, OwlViTVisionConfig
    from cartouche.weights import folder

    tokenizer = Tokenizer.train(CAPTIONS, vocab_size=620, context=CONTEXT)
    size = tokenizer.vocab_size
    torch.manual_seed(0)
    depth: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    eye: dict[str, Any] = {**depth, "hidden_size": 32, "image_size": PIXELS, "patch_size": 8, "projection_dim": 24}
    ear: dict[str, Any] = {
        **depth,
        "num_hidden_layers": 1,
        "hidden_size": 24,
        "projection_dim": 24,
        "vocab_size": size,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": tokenizer.start_id,
        "eos_token_id": tokenizer.end_id,
        "pad_token_id": tokenizer.pad_id,
    }
    clip = CLIPConfig(
        text_config=CLIPTextConfig(**ear),
        vision_config=CLIPVisionConfig(**eye | {"num_hidden_layers": 1}),
        projection_dim=24,
    )
    detector = OwlViTConfig(
        text_config=OwlViTTextConfig(**ear), vision_config=OwlViTVisionConfig(**eye), projection_dim=24
    )
    segmenter = CLIPSegConfig(
        text_config=CLIPSegTextConfig(**ear),
        vision_config=CLIPSegVisionConfig(**eye),
        projection_dim=24,
        extract_layers=(0, 1),
        reduce_dim=16,
        decoder_intermediate_size=24,
    )
    speech = LlamaConfig(
        **depth,
        hidden_size=32,
        num_key_value_heads=2,
        vocab_size=size + 1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.start_id,
        eos_token_id=tokenizer.end_id,
    )
    captioner = LlavaConfig(
        vision_config=CLIPVisionConfig(**eye), text_config=speech, image_token_index=size, vision_feature_layer=-1
    )
    folder.save_net(path / "clip", CLIPModel(clip))
    folder.save_net(path / "detector", OwlViTForObjectDetection(detector))
    folder.save_net(path / "segmenter", CLIPSegForImageSegmentation(segmenter))
    folder.save_net(path / "captioner", LlavaForConditionalGeneration(captioner))
    tokenizer.save(path / "tokenizer")
    if words:
        said = {"names": list(NAMES), "colours": ["red", "blue"], "styles": ["flat", "3d"]}
        folder.write_json(path / "captioner" / "words.json", said)
    return path
