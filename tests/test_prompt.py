"""Prompts as people write them: what the brackets mean, what goes into which chunk, and that nothing is an error."""

import gc
import re
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cartouche import prompt as prompts
from cartouche.prompt import CHUNKS, LARGEST_WEIGHT, Piece, chunks, parse, weigh
from cartouche.text import Tokenizer

CAPTIONS = ("a red apple on a blue background", "two green frogs, smooth", "a cat left of a dog")
CONTEXT = 16
TOKENIZER = Tokenizer.train(CAPTIONS, vocab_size=600, context=CONTEXT)

plain_text = st.text(st.characters(exclude_characters="\\()[]:", exclude_categories=("Cs",)), max_size=60)
any_text = st.text(max_size=60)
bracket_text = st.text("ab ()[]\\:.19+-", max_size=60)


def pieces(prompt):
    return [(text, round(weight, 6)) for section in parse(prompt) for text, weight in section]


def slow(prompt):
    """The meaning of brackets at its plainest: each closed bracket multiplies every letter inside, one by one."""
    letters, waiting, at = [], {"(": [], "[": []}, 0

    def close(bracket, factor):
        start = waiting[bracket].pop()
        for letter in letters[start:]:
            letter[1] *= factor

    while at < len(prompt):
        number = re.match(r":\s*([+-]?(\d+(\.\d*)?|\.\d+))\s*\)", prompt[at:])
        one = prompt[at]
        if one == "\\" and prompt[at + 1 : at + 2] in tuple("\\()[]"):
            letters.append([prompt[at + 1], 1.0])
            at += 1
        elif one in waiting:
            waiting[one].append(len(letters))
        elif number and waiting["("]:
            close("(", float(number[1]))
            at += len(number[0]) - 1
        elif one == ")" and waiting["("]:
            close("(", 1.1)
        elif one == "]" and waiting["["]:
            close("[", 1 / 1.1)
        else:
            letters.append([one, 1.0])
        at += 1
    for bracket, factor in (("(", 1.1), ("[", 1 / 1.1)):
        while waiting[bracket]:
            close(bracket, factor)
    return "".join(letter for letter, _ in letters), [weight for _, weight in letters]


# what brackets mean


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red apple", [("a red apple", 1)]),
        ("a (red) apple", [("a ", 1), ("red", 1.1), (" apple", 1)]),
        ("a ((red)) apple", [("a ", 1), ("red", 1.21), (" apple", 1)]),
        ("a [red] apple", [("a ", 1), ("red", round(1 / 1.1, 6)), (" apple", 1)]),
        ("(red:1.3)", [("red", 1.3)]),
        ("(red: .5 ) (blue:-2)", [("red", 0.5), (" ", 1), ("blue", -2)]),
        ("((red:2) frog:1.5)", [("red", 3), (" frog", 1.5)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", round(1 / 1.1, 6))]),
        (r"a \(red\) \[x\] \\", [("a (red) [x] \\", 1)]),
        (r"C:\new", [("C:\\new", 1)]),
        ("", [("", 1)]),
        ("12:30 o'clock", [("12:30 o'clock", 1)]),
    ],
)
def test_brackets_weigh_their_words(prompt, expected):
    assert pieces(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a (red apple", [("a ", 1), ("red apple", 1.1)]),
        ("a red) apple]", [("a red) apple]", 1)]),
        ("red:1.3)", [("red:1.3)", 1)]),
        ("(red:1.2.3)", [("red:1.2.3", 1.1)]),
        ("(red:1.3", [("red:1.3", 1.1)]),
        ("happy :) sad :(", [("happy :) sad :", 1)]),
        ("[[[", [("", 1)]),
    ],
)
def test_an_unbalanced_bracket_is_no_error(prompt, expected):
    assert pieces(prompt) == expected


@settings(max_examples=400)
@given(st.one_of(bracket_text, any_text))
def test_every_letter_weighs_what_its_brackets_say_one_by_one(text):
    letters, weights = slow(text)
    found = [(letter, piece.weight) for section in parse(text) for piece in section for letter in piece.text]
    if "BREAK" not in text and letters.strip():
        assert "".join(letter for letter, _ in found) == letters
        held = np.clip(weights, -LARGEST_WEIGHT, LARGEST_WEIGHT)
        np.testing.assert_allclose([weight for _, weight in found], held, rtol=1e-9)


def test_break_parts_a_prompt_wherever_it_stands():
    assert parse("a cat BREAK a dog") == [[Piece("a cat ", 1.0)], [Piece(" a dog", 1.0)]]
    assert parse("(a cat BREAK a dog:1.5)") == [[Piece("a cat ", 1.5)], [Piece(" a dog", 1.5)]]
    assert parse("BREAK a dog BREAK") == parse(" a dog ") and parse("BREAK BREAK") == [[Piece("", 1.0)]]
    assert len(parse("daBREAK break Break")) == 1


# what changes nothing


@given(plain_text.filter(lambda text: "BREAK" not in text and text.strip()))
def test_a_prompt_without_marks_is_one_piece(text):
    assert parse(text) == [[Piece(text, 1.0)]]


@given(plain_text, plain_text, plain_text)
def test_a_weight_of_one_is_the_plain_prompt(a, b, c):
    for written in (f"{a}({b}:1.0){c}", f"{a}([{b}]){c}", f"{a}[({b})]{c}", f"({a}{b}{c}:1)"):
        assert parse(written) == parse(a + b + c)


@given(plain_text.filter(lambda text: "BREAK" not in text))
def test_escaped_brackets_are_letters(text):
    assert parse(rf"\({text}\)\[{text}\]") == [[Piece(f"({text})[{text}]", 1.0)]]


@given(plain_text)
def test_a_plain_prompt_that_fits_is_the_row_of_the_tokenizer(text):
    encoded = TOKENIZER.encode(text)
    if not encoded.cut and "BREAK" not in text:
        (chunk,), cut = chunks(text, TOKENIZER)
        assert chunk.ids.tolist() == encoded.ids.tolist() and (chunk.weights == 1).all() and cut == ()


# chunks


def words_of(chunk):
    return TOKENIZER.decode(chunk.ids)


def test_a_long_prompt_goes_on_in_the_next_chunk_and_no_word_is_parted():
    text = " ".join(["a red apple on a blue background"] * 4)
    found, cut = chunks(text, TOKENIZER)
    assert len(found) > 1 and cut == ()
    assert " ".join(map(words_of, found)) == text
    assert all(chunk.ids.shape == chunk.weights.shape == (CONTEXT,) for chunk in found)
    assert all(chunk.ids[0] == TOKENIZER.start_id and TOKENIZER.end_id in chunk.ids for chunk in found)


def test_a_word_longer_than_a_chunk_is_parted():
    found, cut = chunks("x" * 40, TOKENIZER)
    assert len(found) == 3 and cut == ()
    assert "".join(map(words_of, found)) == "x" * 40


def test_break_begins_a_chunk_before_the_last_is_full():
    found, _ = chunks("two frogs BREAK (a dog:1.5)", TOKENIZER)
    assert [words_of(chunk) for chunk in found] == ["two frogs", "a dog"]
    assert (found[0].weights == 1).all() and sorted(set(found[1].weights.tolist())) == [1.0, 1.5]


def test_weights_stand_at_their_tokens_and_the_marks_around_weigh_one():
    (chunk,), _ = chunks("a (red:1.5) apple", TOKENIZER)
    alone = len(TOKENIZER.words("red")[0].ids)
    first = 1 + len(TOKENIZER.words("a")[0].ids)
    assert chunk.weights[first : first + alone].tolist() == [1.5] * alone
    assert (np.delete(chunk.weights, range(first, first + alone)) == 1).all()


def test_what_does_not_fit_into_all_chunks_is_said_as_it_was_typed():
    found, cut = chunks("a Red apple, " * 80 + "and (a Frog:1.2)", TOKENIZER)
    assert len(found) == CHUNKS and cut[-2:] == ("a", "Frog") and set(cut) <= {"a", "Red", "apple,", "and", "Frog"}


@given(st.one_of(any_text, bracket_text.map(lambda text: text * 9)))
def test_no_prompt_is_an_error(text):
    found, _ = chunks(text, TOKENIZER)
    assert 1 <= len(found) <= CHUNKS
    for chunk in found:
        assert np.isfinite(chunk.weights).all() and np.abs(chunk.weights).max() <= LARGEST_WEIGHT
        assert chunk.ids[0] == TOKENIZER.start_id and TOKENIZER.end_id in chunk.ids


# size


@pytest.mark.parametrize(
    "unit", ["(", "[", ")", "(a", "(a:9)", "[a]", ":", ": ", ":1", "\\", "a ", " ", "BREAK ", "((a:1.2)", "(1:", "\\("]
)
def test_time_grows_with_the_length_and_not_with_its_square(unit):
    def seconds(length):
        text = unit * (length // len(unit))
        gc.disable()  # it would look through all that two thousand tests have left behind
        try:
            start = process_time()
            parse(text)
            return process_time() - start
        finally:
            gc.enable()

    short, long = (min(seconds(length) for _ in range(3)) for length in (20_000, 200_000))
    assert long < 40 * max(short, 0.01)  # 10 if it grows with the length, 100 with its square


def test_a_million_letters_and_ten_thousand_brackets_are_read():
    deep = "(" * 10_000 + "x" + ")" * 10_000
    assert pieces(deep) == [("x", LARGEST_WEIGHT)]
    assert pieces("[" * 10_000 + "x" + "]" * 10_000) == [("x", pytest.approx(0, abs=1e-4))]
    assert pieces("(" * 10_000 + "x" + ":2)" * 10_000) == [("x", LARGEST_WEIGHT)]
    assert len(parse("(a) b" * 200_000)[0]) == 400_000


# what weights do


def test_weights_multiply_states_and_the_mean_stays():
    rng = np.random.default_rng(0)
    states = (rng.standard_normal((8, 5)) + 0.4).astype(np.float32)
    weights = np.array([1, 1.5, 1.5, 1, 0.7, 1, 1, 1], np.float32)
    out = weigh(states, weights)
    np.testing.assert_allclose(out.mean(), states.mean(), rtol=1e-5)
    ratio = out / (states * weights[:, None])
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)
    assert out.dtype == np.float32 and out.shape == states.shape


def test_weights_of_one_give_the_same_array():
    states = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    assert weigh(states, np.ones(4, np.float32)) is states


@pytest.mark.parametrize(
    "states",
    [
        np.zeros((2, 2)),
        np.array([[1.001, -1], [1, -1]]),
        np.array([[1, -1], [1, -1]]),
        np.array([[1.0, 1.0], [-0.9, -0.9]]),
    ],
)
def test_a_mean_near_zero_neither_explodes_nor_turns_the_sign(states):
    states = states.astype(np.float32)
    weights = np.array([1, 1.2], np.float32)
    out = weigh(states, weights)
    np.testing.assert_allclose(out, states * weights[:, None])


def test_the_module_says_its_own_syntax():
    for example in ("(word:1.3)", "[word]", "BREAK"):
        assert example in prompts.__doc__
