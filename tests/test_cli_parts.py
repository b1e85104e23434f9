"""What the options of `cartouche draw` mean, as functions."""

import io
import sys

import pytest

from cartouche.cli import main
from cartouche.cli.draw import chosen_steps, parse_size, places
from cartouche.config import CartoucheError


def test_a_size_is_one_number_or_width_by_height():
    assert parse_size(None) is None
    assert parse_size("128") == (128, 128)
    assert parse_size("96X128") == (96, 128)


@pytest.mark.parametrize(
    ("text", "total", "steps"),
    [
        ("4", 20, {1, 7, 14, 20}),
        ("1", 20, {20}),
        ("99", 3, {1, 2, 3}),
        ("1,2,5", 5, {1, 2, 5}),
        ("5,", 20, None),
        ("0", 20, None),
        ("0,1", 20, None),
        ("²", 20, None),
    ],
)
def test_a_film_strip_is_so_many_moments_or_these_steps(text, total, steps):
    if steps is None:
        with pytest.raises(CartoucheError):
            chosen_steps(text, total)
    else:
        assert chosen_steps(text, total) == steps


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("Une pomme, rouge & verte !", "une-pomme-rouge-verte-7.png"),
        ("../../etc/passwd", "etc-passwd-7.png"),
        ("🍎", "picture-7.png"),
        ("la\udcffla", "la-la-7.png"),
        ("\U0001d49c" * 99, "\U0001d49c" * 48 + "-7.png"),
    ],
)
def test_a_prompt_becomes_a_file_name_that_any_disk_takes(prompt, name):
    names, sheets = places(None, prompt, 7, 1, {}, False)
    assert ([str(one) for one in names], sheets) == ([name], {})
    assert len(name.encode()) < 255


def test_a_path_that_the_terminal_cannot_show_is_shown_escaped(monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    assert main(["--version"]) == 0
    sys.stdout.write("pomme à l'eau")
    narrow.flush()
    assert b"pomme \\xe0 l'eau" in narrow.buffer.getvalue()
