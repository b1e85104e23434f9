"""Writing that we set ourselves, read back: several fonts, blurred and turned."""

import subprocess
import sys

import numpy as np
import pytest
from test_benchmarks import script

from cartouche import images
from cartouche.metrics.characters import cer

pytest.importorskip("rapidocr", reason="rapidocr is not installed: pip install 'cartouche-ai[ocr]'")
LINES = ("Two red apples on a table", "Open from 9:30 to 17:45")


@pytest.fixture(scope="module")
def ocr():
    from cartouche.read.ocr import Ocr

    return Ocr()


def error(ocr, font, **how):
    """The character error rate of the two lines in a font."""
    setter = script("ocr")
    said = "\n".join(line.text for line in ocr.pixels(setter.set_text(LINES, setter.fonts()[font], **how)))
    return cer([said], ["\n".join(LINES)])


def known_fonts():
    return list(script("ocr").fonts())


@pytest.mark.parametrize("font", known_fonts())
def test_sharp_upright_text_is_read_in_every_font(ocr, font):
    assert error(ocr, font) <= 0.05


@pytest.mark.parametrize("how", [{"blur": 2.0}, {"angle": 10}], ids=str)
def test_text_is_read_though_it_is_blurred_or_turned(ocr, how):
    assert error(ocr, known_fonts()[0], **how) <= 0.1


def test_a_line_says_where_it_stands_and_how_sure_it_is(ocr):
    setter = script("ocr")
    pixels = setter.set_text(LINES, setter.fonts()[known_fonts()[0]])
    (read,) = ocr.read(images.from_uint8(pixels[None]))
    first, second = read
    assert first.confidence > 0.9 and len(first.corners) == 4
    assert all(0 <= x <= pixels.shape[1] and 0 <= y <= pixels.shape[0] for x, y in first.corners)
    ink = np.argwhere(pixels[..., 0] < 128)
    assert abs(first.corners[0][0] - ink[:, 1].min()) < 12 and max(y for _, y in first.corners) < second.corners[2][1]


def test_a_picture_without_writing_has_no_lines(ocr):
    assert ocr.pixels(np.full((64, 64, 3), 200, np.uint8)) == []
    assert ocr.pixels(np.zeros((1, 1, 3), np.uint8)) == []


def test_signals_are_handled_when_the_reader_is_gone():
    code = """
import gc, os, signal
from cartouche.read.ocr import Ocr
signal.signal(signal.SIGUSR1, lambda *_: None)
for _ in range(2):
    Ocr()
    gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
