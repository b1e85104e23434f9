"""How a describing net is spoken to: LLaVA as it was published, against transformers' own tokenizer and its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from small_readers import LLAMA, MARKS, PATCHES, PIXELS, llama_words, llava_folder
from tokenizers import models

from cartouche import images
from cartouche.config import CartoucheError
from cartouche.data.dialogue import IMAGE, Turn
from cartouche.read.describe import Describer
from cartouche.read.speech import Manner
from cartouche.read.tongue import Chat
from cartouche.weights import folder as folders


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llava_folder(tmp_path_factory.mktemp("llava") / "llava")


def picture(seed: int = 0) -> np.ndarray:
    return images.from_uint8(np.random.default_rng(seed).integers(0, 256, (1, PIXELS, PIXELS, 3), np.uint8))


def test_an_answer_is_the_one_that_transformers_gives(llava: Path) -> None:
    describer = Describer(llava, "torch")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(llava)
    net = transformers.LlavaForConditionalGeneration.from_pretrained(llava, dtype=torch.float32).eval()
    banned = sorted(set(range(net.config.text_config.vocab_size)) - set(describer.speech.sayable.tolist()))
    for seed, question in enumerate(("what is in the picture?", "  combien d'œufs ?", "one\ntwo  three")):
        text = f"USER: {IMAGE * PATCHES}\n{question.strip()} ASSISTANT:"
        ids = torch.tensor([[theirs.bos_token_id, *theirs.encode(text, add_special_tokens=False)]])
        expected = net.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=torch.from_numpy(picture(seed)),
            do_sample=False,
            max_new_tokens=12,
            suppress_tokens=banned,
            eos_token_id=theirs.eos_token_id,
            pad_token_id=theirs.eos_token_id,
        )[0, ids.shape[1] :]
        said = describer.ask(picture(seed), question, manner=Manner(longest=12))
        assert said.text == theirs.decode(expected, skip_special_tokens=True).strip() != ""


def test_examples_are_earlier_turns_each_ended(llava: Path) -> None:
    speech = Describer(llava, "torch").speech
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(llava)
    prompt = speech.tongue.question("which?", "en")
    ids = speech.tongue.ids([Turn(prompt, "red"), Turn(prompt)], speech.marks)
    shown = f"USER: {IMAGE * PATCHES}\nwhich? ASSISTANT:"
    assert ids == [speech.marks.start, *theirs.encode(f"{shown} red</s>{shown}", add_special_tokens=False)]
    assert ids.count(speech.marks.image) == 2 * PATCHES and ids.count(speech.marks.end) == 1


def test_pieces_say_what_the_tokenizer_says_byte_by_byte(llava: Path) -> None:
    tongue = Describer(llava, "torch").speech.tongue
    assert isinstance(tongue, Chat)
    pieces = tongue.pieces()
    for text in ("two cats", "a red apple, œuf", "日本"):
        ids = tongue._backend.encode(text, add_special_tokens=False).ids
        assert b"".join(pieces[one] for one in ids) == b" " + text.encode()
        assert tongue.text(ids) == text
    assert {i for i, piece in enumerate(pieces) if not piece} == {
        tongue._backend.token_to_id(one) for one in (*MARKS, IMAGE)
    }


def test_a_caption_is_asked_in_its_language_and_a_scene_is_whole(llava: Path) -> None:
    describer = Describer(llava, "torch")
    asked = [describer.speech.tongue.caption(language) for language in ("en", "fr")]
    assert all(one.startswith(f"{IMAGE}\n") for one in asked) and "image" in asked[1].split("\n")[1]
    (one,) = describer.scenes(picture(), Manner(temperature=1.0, longest=60))
    assert {"objects", "relations", "background", "style"} <= set(one)
    for ask in (describer.speech.tongue.caption, lambda language: describer.speech.tongue.question("?", language)):
        with pytest.raises(CartoucheError, match="unknown language 'de'"):
            ask("de")


def test_a_picture_cannot_be_slipped_in_by_a_question(llava: Path) -> None:
    describer = Describer(llava, "torch")
    said = describer.ask(picture(), f"what{IMAGE}now?", manner=Manner(longest=3))
    assert said == describer.ask(picture(), "what now?", manner=Manner(longest=3))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"eos_token": "<end>"}, "eos_token='<end>' is not in the vocabulary"),
        ({"bos_token": 5}, "bos_token=5 is not in the vocabulary"),
    ],
)
def test_marks_that_are_no_words_are_refused(llava: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    llama_words(tmp_path)
    folders.write_json(tmp_path / "tokenizer_config.json", LLAMA | change)
    (tmp_path / "config.json").write_text((llava / "config.json").read_text())
    with pytest.raises(CartoucheError, match=said):
        Describer(tmp_path, "torch")


def test_words_of_another_kind_are_refused(llava: Path, tmp_path: Path) -> None:
    other = tokenizers.Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, "Ġa": 2}, merges=[]))
    other.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text((llava / "config.json").read_text())
    with pytest.raises(CartoucheError, match="has words of an unknown kind; known are CLIP's, and Llama's"):
        Describer(tmp_path, "torch")
