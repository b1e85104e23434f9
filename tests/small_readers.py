"""Folders that read, tiny and random: a model with clip/, detector/, segmenter/, captioner/ and the words they share,
and a LLaVA as it was published, with the words of its Llama."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, trainers

from cartouche.data.dialogue import IMAGE
from cartouche.text import Tokenizer

PIXELS, PATCHES, CONTEXT = 32, 16, 16
NAMES = ("cat", "dog", "red apple", "e-mail: new")
MARKS = ("<unk>", "<s>", "</s>")
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizerFast"}
SAID = ("USER: what is in the picture? ASSISTANT: two cats and a red apple", "décris l'image en une phrase")
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


def llama_words(folder: Path) -> tokenizers.Tokenizer:
    """A tokenizer.json in the form of Llama's: pieces with a sign for the space, and bytes for what has no piece."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    letters = [chr(one) for one in range(33, 127)] + ["▁"]
    fallback = [f"<0x{one:02X}>" for one in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=[*MARKS, *fallback], initial_alphabet=letters, show_progress=False
    )
    backend.train_from_iterator(SAID, trainer)
    plain = tokenizers.Tokenizer.from_str(_only_marked(backend.to_str()))
    plain.add_special_tokens([*MARKS, IMAGE])
    folder.mkdir(parents=True, exist_ok=True)
    plain.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(LLAMA))
    return plain


def _only_marked(described: str) -> str:
    """The trainer marks the bytes as special too; in Llama's file they are pieces like others."""
    whole: dict[str, Any] = json.loads(described)
    whole["added_tokens"] = [one for one in whole["added_tokens"] if one["content"] in MARKS]
    return json.dumps(whole)


def llava_folder(path: Path) -> Path:
    """Write a LLaVA folder of transformers' layout."""
    import torch

    from cartouche.nets.clip_config import CLIPVisionConfig
    from cartouche.nets.llama import LlamaConfig
    from cartouche.nets.llava import LlavaConfig, LlavaForConditionalGeneration
    from cartouche.weights import folder

    backend = llama_words(path)
    torch.manual_seed(0)
    depth: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    eye = CLIPVisionConfig(**depth, hidden_size=32, image_size=PIXELS, patch_size=8, projection_dim=24)
    speech = LlamaConfig(
        **depth,
        hidden_size=32,
        num_key_value_heads=2,
        vocab_size=backend.get_vocab_size(),
        max_position_embeddings=256,
    )
    image = backend.token_to_id(IMAGE)
    net = LlavaForConditionalGeneration(LlavaConfig(vision_config=eye, text_config=speech, image_token_index=image))
    for one in net.parameters():
        one.data.mul_(6)  # far enough from even that no two words are equally likely
    folder.save_net(path, net)
    return path
