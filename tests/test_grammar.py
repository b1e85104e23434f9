"""Constrained decoding: whatever a net says, and wherever it is cut off, the text is JSON of the shape asked for."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cartouche.config import CartoucheError
from cartouche.read import grammar
from cartouche.read.grammar import Array, Enum, Integer, Record, Row, Shape, Text, Vocabulary, Writer
from cartouche.text import Tokenizer

NAMES = ("cat", "red apple", "cats", 'say "hi"', "œil", "zèbre", "a\\b", "e-mail: new", "")
THING = Record({"name": Enum(NAMES), "count": Integer(1, 12), "box": Row((Integer(0, 100),) * 4)})
SHAPE = Record(
    {
        "objects": Array(THING, 0, 3),
        "pairs": Array(Row((Integer(0, 3), Enum(("left", "right")), Integer(0, 3))), 1, 2),
        "note": Text(12),
        "empty": Array(Integer(7, 7), 0, 0),
    }
)
BYTES = [bytes([one]) for one in range(256)]
WORDS = ['"}', '{"', '":"', '"},{"', "],", "cat ", "red ", "apple ", '"objects":[', "1 ", "12", "  ", '" ', "é", "\n"]
VOCABULARY = Vocabulary([*BYTES, *(word.encode() for word in WORDS), b"", b""])


def fits(shape: Shape, value: Any) -> bool:
    """Whether a value is of the shape, said a second time and plainly."""
    if isinstance(shape, Record):
        return list(value) == list(shape.fields) and all(fits(one, value[name]) for name, one in shape.fields.items())
    if isinstance(shape, Row):
        return len(value) == len(shape.items) and all(map(fits, shape.items, value))
    if isinstance(shape, Array):
        return shape.low <= len(value) <= shape.high and all(fits(shape.item, one) for one in value)
    if isinstance(shape, Integer):
        return type(value) is int and shape.low <= value <= shape.high
    if isinstance(shape, Enum):
        return value in shape.values
    return isinstance(value, str) and len(value.encode()) <= shape.longest


def said_by(random: np.random.Generator, shape: Record, vocabulary: Vocabulary, budget: int) -> Writer:
    """What a net of random logits says within the budget."""
    writer = Writer(vocabulary, shape)
    for _ in range(budget):
        if writer.done:
            break
        allowed = writer.allowed()
        logits = random.standard_normal(len(vocabulary.pieces))
        writer.say(int(allowed[logits[allowed].argmax()]))
    return writer


def test_a_random_net_says_json_of_the_shape_a_thousand_times_cut_off_or_not():
    ended = 0
    for seed in range(1000):
        random = np.random.default_rng(seed)
        writer = said_by(random, SHAPE, VOCABULARY, budget=int(random.integers(0, 160)))
        json.loads(writer.text + grammar.closing(writer.state))
        assert fits(SHAPE, writer.value()), writer.text
        ended += writer.done
    assert 100 < ended < 900


def test_every_state_on_the_way_allows_a_token_and_ends_in_the_shape():
    random = np.random.default_rng(0)
    writer = Writer(VOCABULARY, SHAPE)
    while not writer.done:
        allowed = writer.allowed()
        assert len(allowed)
        writer.say(int(random.choice(allowed)))
        assert fits(SHAPE, writer.value())
    assert list(writer.allowed()) == []


def walk(text: bytes, shape: Record) -> grammar.State | None:
    state: grammar.State | None = grammar.start(shape)
    for byte in text:
        if state is None:
            return None
        state = grammar.step(state, byte)
    return state


NUMBER = Record({"n": Integer(8, 120)})


def test_a_number_is_one_in_its_range():
    for digits in ("8", "9", "120", "12", "77"):
        assert walk(f'{{"n":{digits}}}'.encode(), NUMBER) == ()
    for digits in ("7", "121", "0", "08", "1200", ""):
        assert walk(f'{{"n":{digits}}}'.encode(), NUMBER) is None


def test_a_number_that_is_cut_off_is_ended_within_its_range():
    for said, whole in (("", "8"), ("1", "10"), ("12", "12"), ("8", "8")):
        state = walk(f'{{"n":{said}'.encode(), NUMBER)
        assert said.encode() + grammar.closing(state) == whole.encode() + b"}"


@pytest.mark.parametrize("text", ['{"n":["cat"]}', '{"n":["cat","cats","red apple"]}', '{ "n" : [ "re d ap ple" ] } '])
def test_names_are_known_however_they_are_spaced(text):
    shape = Record({"n": Array(Enum(NAMES), 1, 3)})
    assert walk(text.encode(), shape) == ()


@pytest.mark.parametrize(
    "text", ['{"n":["dog"', '{"n":["catsy"', '{"n":[]', '{"m"', '["cat"]', '{"n":["cat",]', '{"n":cat']
)
def test_what_the_shape_does_not_have_is_refused(text):
    assert walk(text.encode(), Record({"n": Array(Enum(NAMES), 1, 3)})) is None


def test_names_come_back_as_they_are_spelled():
    writer = Writer(VOCABULARY, Record({"n": Enum(NAMES)}))
    for letter in b'{ "n": "e-mail : new"}':
        writer.say(letter) if letter != ord(" ") else None
    assert writer.done and writer.value() == {"n": "e-mail: new"}


def test_free_text_keeps_its_single_spaces_and_never_ends_inside_a_letter():
    shape = Record({"t": Text(9)})
    writer = Writer(VOCABULARY, shape)
    for byte in '{"t":"  a  zé b '.encode():
        if byte in writer.allowed() or byte == ord(" "):
            writer.state, said = VOCABULARY.read(writer.state, byte)
            writer.text += said
    assert writer.value() == {"t": "a zé b"}
    half = walk('{"t":"zé'.encode()[:-1], shape)
    assert json.loads('{"t":"zé'.encode()[:-1] + grammar.closing(half))["t"] == "zé"
    assert walk('{"t":"日'.encode(), shape) is None and walk(b'{"t":"a\n', shape) is None


def test_a_token_that_is_not_allowed_is_refused():
    with pytest.raises(CartoucheError, match="token 65 cannot come here"):
        Writer(VOCABULARY, SHAPE).say(65)


def test_shapes_that_nothing_fits_are_refused():
    for wrong in (lambda: Enum(()), lambda: Enum(("a b", "ab")), lambda: Integer(3, 2), lambda: Array(NUMBER, 2, 1)):
        with pytest.raises(CartoucheError):
            wrong()


def test_what_our_tokenizer_spells_is_what_the_mask_allows():
    """Training spells the whole text; reading takes it token by token: both must agree on every one."""
    value = {"objects": [{"name": "red apple", "count": 2, "box": [0, 5, 100, 99]},
                         {"name": "e-mail: new", "count": 1, "box": [1, 2, 3, 4]}],
             "pairs": [[0, "left", 1]], "note": "so it is", "empty": []}  # fmt: skip
    text = json.dumps(value, separators=(",", ":"))
    for corpus in (["a red apple", "two cats"], [text] * 3):
        tokenizer = Tokenizer.train(corpus, vocab_size=700)
        writer = Writer(Vocabulary(tokenizer.spelling()), SHAPE)
        for word in tokenizer.words(text):
            for token in word.ids:
                assert token in writer.allowed()
                writer.say(token)
        assert writer.done and writer.value() == value
