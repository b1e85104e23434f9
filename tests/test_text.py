"""The tokenizer: closed forms of byte-pair merging first, then transformers' CLIPTokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cartouche import text as texts
from cartouche.config import CartoucheError
from cartouche.text import END, START, Tokenizer, learn_merges

CAPTIONS = [
    "a red apple on a blue background, flat style",
    "two green pears left of a dog, outline",
    "une pomme rouge sur fond bleu, à gauche d'un chien",
    "it's the cat's hat; 3 cats don't sleep",
    "three red apples above a yellow banana",
]
TOKENIZER = Tokenizer.train(CAPTIONS, vocab_size=620, context=16)
any_text = st.text(st.characters(), max_size=200)


def transformers_tokenizer(folder: Path):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def test_the_most_frequent_pair_is_merged_first_and_ties_go_to_the_first_in_order():
    assert learn_merges(Counter({"ab": 3, "cd": 5}), 2) == [("c", "d</w>"), ("a", "b</w>")]
    assert learn_merges(Counter({"xy": 1, "ab": 1}), 1) == [("a", "b</w>")]
    assert learn_merges(Counter({"abc": 2, "abd": 1}), 9) == [("a", "b"), ("ab", "c</w>"), ("ab", "d</w>")]


def test_a_repeated_letter_is_merged_from_the_left():
    assert learn_merges(Counter({"aaaa": 1}), 9)[0] == ("a", "a")
    tokenizer = Tokenizer.from_merges([("a", "a")], context=8)
    assert tokenizer.decode(tokenizer.encode("aaaa").ids) == "aaaa"


def test_ids_stand_where_clip_has_them():
    size = TOKENIZER.vocab_size
    assert (TOKENIZER.start_id, TOKENIZER.end_id, TOKENIZER.pad_id) == (size - 2, size - 1, size - 1)
    assert TOKENIZER.encode("!").ids[:4].tolist() == [size - 2, 256, size - 1, size - 1]
    assert Tokenizer.from_merges([], 8).encode("hi").ids.tolist()[1:3] == [ord("h") - 33, ord("i") - 33 + 256]


def test_training_does_not_depend_on_the_order_of_the_captions_or_the_process(tmp_path):
    TOKENIZER.save(tmp_path / "a")
    Tokenizer.train(reversed(CAPTIONS), 620, 16).save(tmp_path / "b")
    code = f"from cartouche.text import Tokenizer; Tokenizer.train({CAPTIONS!r}, 620, 16).save({str(tmp_path / 'c')!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        whole = (tmp_path / "a" / name).read_bytes()
        assert whole == (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


def test_captions_with_few_words_give_a_smaller_vocabulary_and_whole_words():
    tokenizer = Tokenizer.train(["red red blue"], vocab_size=5000, context=8)
    assert tokenizer.vocab_size == 514 + 2 + 3  # r e d -> 2 merges, b l u e -> 3
    assert (tokenizer.encode("red blue").ids != tokenizer.end_id).sum() == 3


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(CartoucheError, match="at least 514"):
        Tokenizer.train(CAPTIONS, vocab_size=100)


def test_the_words_that_did_not_fit_are_reported_as_typed():
    tokenizer = Tokenizer.train(["red apple and green Pear, under blue sky"] * 3, 900, context=6)
    ids, cut = tokenizer.encode("red apple AND green  Pear, Under blue")
    assert cut == ("Pear,", "Under", "blue")
    assert ids.shape == (6,) and ids[-1] == tokenizer.end_id
    assert tokenizer.encode("red apple and green").cut == ()


def test_a_word_cut_in_the_middle_counts_as_cut_whole():
    tokenizer = Tokenizer.from_merges([], context=6)
    assert tokenizer.encode("abc def").cut == ("def",)
    assert tokenizer.encode("été été").cut == ("été", "été")  # five bytes each, and room for four
    assert tokenizer.encode("abcdef").cut == ("abcdef",)


def test_batch_gives_the_rows_of_encode():
    rows = TOKENIZER.batch([*CAPTIONS, ""])
    assert rows.shape == (6, 16) and rows.dtype == np.int64
    for row, text in zip(rows, [*CAPTIONS, ""], strict=True):
        assert (row == TOKENIZER.encode(text).ids).all()
    assert TOKENIZER.batch([]).shape == (0, 16)


@settings(max_examples=300)
@given(any_text)
def test_any_text_has_ids_in_range_between_start_and_end(text):
    ids, cut = TOKENIZER.encode(text)
    assert ids.shape == (16,) and ids.min() >= 0 and ids.max() < TOKENIZER.vocab_size
    assert ids[0] == TOKENIZER.start_id and (ids == TOKENIZER.end_id).any()
    assert all(word in text for word in cut)
    assert (TOKENIZER.batch([text])[0] == ids).all()


@pytest.mark.parametrize("text", ["\0", "\ud800", "a\udfffb", "\U0010ffff", "", " \n\t", "👩‍👩‍👧", "İ", "a" * 50_000])
def test_odd_texts_are_encoded(text):
    assert TOKENIZER.encode(text).ids[0] == TOKENIZER.start_id


@given(st.lists(st.sampled_from(" ".join(CAPTIONS).split()), max_size=4).map(" ".join))
def test_a_text_that_fits_comes_back_from_its_ids(text):
    wide = Tokenizer(TOKENIZER._backend, context=200)
    assert wide.decode(wide.encode(text).ids).replace(" ", "") == text.lower().replace(" ", "")


def test_a_saved_tokenizer_is_the_same_again_in_both_layouts(tmp_path):
    TOKENIZER.save(tmp_path / "new")
    TOKENIZER.save(tmp_path / "old")
    (tmp_path / "old" / "tokenizer.json").unlink()
    for name in ("new", "old"):
        again = Tokenizer.load(tmp_path / name)
        assert again.context == 16 and again.vocab_size == TOKENIZER.vocab_size
        assert (again.batch(CAPTIONS) == TOKENIZER.batch(CAPTIONS)).all()


def test_transformers_opens_a_saved_tokenizer_and_gives_the_same_ids(tmp_path):
    TOKENIZER.save(tmp_path)
    theirs = transformers_tokenizer(tmp_path)
    assert theirs.model_max_length == 16

    @settings(max_examples=200)
    @given(
        st.one_of(
            any_text.filter(speakable), st.text("aple rd's 3,.!<|>endoftxsra", max_size=80), st.sampled_from(CAPTIONS)
        )
    )
    def same(text):
        rows = theirs([text, ""], padding="max_length", truncation=True, return_tensors="np")["input_ids"]
        assert rows.tolist() == TOKENIZER.batch([text, ""]).tolist()

    same()


def test_a_special_token_typed_in_a_prompt_is_what_it_is_for_transformers(tmp_path):
    TOKENIZER.save(tmp_path)
    text = f"a {END} b {START}"
    theirs = transformers_tokenizer(tmp_path)(text, padding="max_length", truncation=True)["input_ids"]
    assert theirs == TOKENIZER.encode(text).ids.tolist()


def test_a_tokenizer_that_transformers_saved_is_opened(tmp_path):
    TOKENIZER.save(tmp_path / "ours")
    transformers_tokenizer(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = Tokenizer.load(tmp_path / "theirs")
    assert (again.batch(CAPTIONS) == TOKENIZER.batch(CAPTIONS)).all() and again.context == 16


def test_padding_with_another_token_is_read_from_the_folder(tmp_path):
    """SD 2.x pads with `!`, said only in special_tokens_map.json."""
    TOKENIZER.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    mapping = json.loads((tmp_path / "special_tokens_map.json").read_text())
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({**mapping, "pad_token": {"content": "!"}}))
    again = Tokenizer.load(tmp_path)
    theirs = transformers_tokenizer(tmp_path)
    for text in ("red!", "red"):
        expected = theirs(text, padding="max_length", truncation=True)["input_ids"]
        assert again.encode(text).ids.tolist() == expected
    assert again.pad_id == 0


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no tokenizer"),
        ({"tokenizer.json": "{"}, "is not a tokenizer"),
        ({"vocab.json": "[1]", "merges.txt": ""}, "wanted a JSON object"),
        ({"vocab.json": "{}", "merges.txt": "#version: 0.2\na b c"}, "not two pieces"),
        ({"vocab.json": '{"a": 0}', "merges.txt": ""}, "it is not CLIP's"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "a q"}, "'q', which vocab.json has not"),
        ({"vocab.json": '{"a": "0"}', "merges.txt": ""}, "numbers of pieces that are none"),
        ({"vocab.json": '{"a": -1}', "merges.txt": ""}, "numbers of pieces that are none"),
        ({"vocab.json": '{"a": 0}', "merges.txt": b"\xe9"}, "no text in UTF-8"),
    ],
)
def test_a_folder_that_is_no_tokenizer_is_refused_with_its_name(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CartoucheError, match=message):
        Tokenizer.load(tmp_path)


def test_the_tokenizer_itself_is_written_last_so_a_folder_that_has_it_is_whole(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(texts, "_write", lambda path, said: written.append(path.name))
    TOKENIZER.save(tmp_path)
    assert written[-1] == "tokenizer.json" and len(written) == 5


def test_the_room_imports_no_torch():
    code = "import sys, cartouche.text; assert not {'torch', 'openvino', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def speakable(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
